"""HSIC on one process: definition, independent libraries, invariants, precision, refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rebias_dist.errors import ConfigError, NonFiniteError
from rebias_dist.objectives import LOCAL, gather_features, hsic, tiles
from tests.objectives import reference
from tests.objectives.reference import assert_equal_to, dependent


def value_and_gradients(function, x: Tensor, y: Tensor, *arguments, **options):
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    value = function(x, y, *arguments, **options)
    return value.detach(), *torch.autograd.grad(value, (x, y))


def compare(tolerance, x, y, sigma_x, sigma_y, expected_by, label, **options):
    """Value and both gradients against another function, in the norms of the design."""
    actual = value_and_gradients(hsic, x, y, sigma_x, sigma_y, **options)
    expected = value_and_gradients(expected_by, x.double(), y.double(), sigma_x, sigma_y)
    scale = reference.value_scale(x.double(), y.double(), sigma_x, sigma_y)
    for name, a, b, s in zip(("H", "∂x", "∂y"), actual, expected, (scale, 0, 0), strict=True):
        assert_equal_to(tolerance, a, b, s, f"{label} {name}")


@pytest.mark.parametrize("n", [4, 5, 6, 7, 8])
def test_definition_over_all_quadruples(n):
    x, y = dependent(n, 3, 2, seed=n)
    for tile in (1, 3, n):
        compare(1e-12, x, y, 1.3, 0.9, reference.over_quadruples, f"N={n} tile={tile}", tile=tile)


@pytest.mark.slow
def test_dcor_agrees():
    # Here, and so in one process: at its first import it compiles, and two that do at a time
    # leave a cache that crashes.
    import dcor

    x, y = dependent(60, 5, 4)
    u = [
        dcor.u_centered(k - np.diag(np.diag(k)))
        for k in (1 + reference.kernel_excess(v, s).numpy() for v, s in ((x, 2.0), (y, 1.5)))
    ]
    expected = dcor.u_product(*u)
    difference = abs(float(hsic(x, y, 2.0, 1.5)) - expected)
    print(f"largest difference to dcor {difference:.3g}")
    assert difference <= 1e-12 * reference.value_scale(x, y, 2.0, 1.5)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(4, 40),
    widths=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    tile=st.integers(1, 41),
    sigmas=st.tuples(st.floats(0.3, 50), st.floats(0.3, 50)),
    estimator=st.sampled_from(["unbiased", "biased"]),
    seed=st.integers(0, 2**31),
)
def test_any_shape_and_tile(n, widths, tile, sigmas, estimator, seed):
    x, y = dependent(n, *widths, seed=seed)
    expected_by = {"unbiased": reference.unbiased, "biased": reference.biased}[estimator]
    actual = value_and_gradients(hsic, x, y, *sigmas, tile=tile, estimator=estimator)
    expected = value_and_gradients(expected_by, x, y, *sigmas)
    # trace(KHLH) and the U-centred sum cancel too; the kernels' deviations set the scale.
    deviations = [reference.kernel_excess(v, s).abs().max() for v, s in zip((x, y), sigmas)]  # noqa: B905
    scale = float(deviations[0] * deviations[1])
    tolerance = 1e-12 if estimator == "unbiased" else 1e-9
    for a, b, s in zip(
        actual, expected, (scale, scale / sigmas[0], scale / sigmas[1]), strict=True
    ):
        assert_equal_to(tolerance, a, b, s, f"N={n} {estimator}")


def test_invariants_of_the_gradient():
    x, y = dependent(50, 4, 3)
    sigma, tau, step = 1.7, 1.1, 1e-5
    for tile in (7, 64):
        value, gx, gy = value_and_gradients(hsic, x, y, sigma, tau, tile=tile)
        swapped = hsic(y, x, tau, sigma, tile=tile)
        assert_equal_to(1e-13, swapped, value, 0, "H(y, x)")
        for g, v, name in ((gx, x, "x"), (gy, y, "y")):
            size = float(g.abs().sum())
            # HSIC changes neither when all rows move together nor when they are rotated.
            assert_equal_to(1e-13, g.sum(0), torch.zeros(v.shape[1]), size, f"Σ∇ of {name}")
            assert_equal_to(1e-13, v.T @ g, (v.T @ g).T, size, f"XᵀG of {name}")
        # Nor when rows and radius are scaled together (Euler's identity).
        along_sigma = (
            hsic(x, y, sigma + step, tau, tile=tile) - hsic(x, y, sigma - step, tau, tile=tile)
        ) / (2 * step)
        assert_equal_to(1e-7, (x * gx).sum(), -sigma * along_sigma, 0, "Euler's identity")
        order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
        moved, mx, _ = value_and_gradients(hsic, x[order], y[order], sigma, tau, tile=tile)
        assert_equal_to(1e-13, moved, value, 0, "H of permuted rows")
        assert_equal_to(1e-12, mx, gx[order], 0, "∇ of permuted rows")


def test_four_far_classes_and_identical_rows():
    classes = torch.eye(4).repeat_interleave(5, 0) * 1e3
    for rows in (classes, classes.double()):
        value, gx, gy = value_and_gradients(hsic, rows, rows, 1.0, 1.0)
        assert float(value) == pytest.approx(0.18575851393188852, rel=1e-14)
        assert gx.abs().max() == gy.abs().max() == 0
        value, gx, gy = value_and_gradients(hsic, rows[:5], rows[:5], 1.0, 1.0)
        assert value == 0
        assert gx.abs().max() == gy.abs().max() == 0


def test_wide_kernels_tend_to_the_linear_kernel():
    x, y = dependent(8, 3, 2)
    expected = value_and_gradients(reference.linear, x, y)
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        sigma = 1e6
        actual = value_and_gradients(hsic, x.to(dtype), y.to(dtype), sigma, sigma)
        for a, b, name in zip(actual, expected, ("H", "∂x", "∂y"), strict=True):
            assert_equal_to(tolerance, a.double() * sigma**4, b, 0, f"σ⁴{name} in {dtype}")


def test_narrow_kernels_keep_their_digits():
    x, y = dependent(64, 4, 3)
    compare(1e-5, x.float(), y.float(), 0.3, 0.3, reference.unbiased, "σ = 0.3")


def test_float32_keeps_a_value_near_zero():
    generator = torch.Generator().manual_seed(35)  # a draw whose value is nearer zero than most
    x, y = (torch.randn(512, 64, generator=generator) for _ in range(2))
    expected = reference.unbiased(x.double(), y.double(), 8.0, 8.0)
    print(f"HSIC of independent features {float(expected):.3g}")
    assert abs(float(expected)) < 1e-6 < reference.value_scale(x.double(), y.double(), 8.0, 8.0)
    for tile in (128, 512):
        assert_equal_to(1e-4, hsic(x, y, 8.0, 8.0, tile=tile), expected, 0, f"tile {tile}")


@pytest.mark.parametrize(
    ("shift", "scale"), [(30.0, 1.0), (0.0, 1e4), (0.0, 1e-4)], ids=["mean 30", "1e4", "1e-4"]
)
def test_float32_gradients(shift, scale):
    x, y = dependent(256, 64, 32)
    x, y = (x * scale + shift).float(), (y * scale + shift).float()
    compare(1e-4, x, y, 11.0 * scale, 8.0 * scale, reference.unbiased, f"{shift} {scale}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_features(dtype):
    x, y = (v.to(dtype) for v in dependent(96, 16, 16))
    half = value_and_gradients(hsic, x, y, 6.0, 5.0)
    single = value_and_gradients(hsic, x.float(), y.float(), 6.0, 5.0)
    assert half[1].dtype == dtype
    for a, b, name in zip(half, single, ("H", "∂x", "∂y"), strict=True):
        assert_equal_to(0.01, a.double(), b.double(), 0, f"{dtype} {name}")


def test_mixed_dtypes():
    x, y = dependent(40, 5, 4)
    actual = value_and_gradients(hsic, x.bfloat16(), y, 2.0, 2.0, tile=16)
    expected = value_and_gradients(hsic, x.bfloat16().double(), y, 2.0, 2.0)
    for a, b, name in zip(actual, expected, ("H", "∂x", "∂y"), strict=True):
        assert_equal_to(0.01 if name == "∂x" else 1e-5, a.double(), b, 0, name)


def test_autocast_and_reduced_precision_products_change_nothing():
    x, y = (v.float() for v in dependent(64, 8, 8))
    expected = value_and_gradients(hsic, x, y, 3.0, 3.0)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        settings_before = torch.backends.mkldnn.matmul.fp32_precision
        with torch.autocast("cpu", torch.bfloat16):
            actual = value_and_gradients(hsic, x, y, 3.0, 3.0)
            assert (x @ y.T).dtype == torch.bfloat16
        assert torch.backends.mkldnn.matmul.fp32_precision == settings_before
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    for a, b in zip(actual, expected, strict=True):
        assert torch.equal(a, b)


def test_gradients_follow_the_request():
    x, y = dependent(12, 3, 3)
    full = value_and_gradients(hsic, x, y, 1.0, 1.0, tile=5)
    x.requires_grad_()
    value = hsic(x, y, 1.0, 1.0, tile=5)
    (3 * value).backward()
    assert y.grad is None
    assert_equal_to(1e-14, x.grad, 3 * full[1], 0, "3∇")
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()

    # The same tensor on both sides gets the sum of both parts.
    both, expected = (
        torch.autograd.grad(f(x, x, 1.0, 1.3), x)[0] for f in (hsic, reference.unbiased)
    )
    assert_equal_to(1e-12, both, expected, 0, "∇H(x, x)")


def test_second_derivatives_are_refused():
    x, y = dependent(8, 2, 2)
    x.requires_grad_()
    (gradient,) = torch.autograd.grad(hsic(x, y, 1.0, 1.0), x, create_graph=True)
    with pytest.raises(RuntimeError, match="have first derivatives only"):
        torch.autograd.grad(gradient.square().sum(), x)
    with pytest.raises(RuntimeError, match="have first derivatives only"):
        gradient.sum().backward()


def test_features_are_reusable_and_detachable():
    x, y = dependent(20, 3, 3)
    x.requires_grad_()
    y.requires_grad_()
    fx, fy = gather_features(x), gather_features(y, group=None)
    assert (fx.counts, fx.offset, fx.total) == ((20,), 0, 20)
    assert not fx.rows.requires_grad
    for sigma in (1.0, 2.0):
        expected = torch.autograd.grad(reference.unbiased(x, y, sigma, 1.0), x)[0]
        value = hsic(fx, fy.detach(), sigma, 1.0)
        value.backward()
        assert_equal_to(1e-12, x.grad, expected, 0, f"σ={sigma}")
        assert y.grad is None
        x.grad = None
    assert_equal_to(1e-14, hsic(fx, y.detach(), 1.0, 1.0), hsic(x, fy, 1.0, 1.0), 0, "mixed")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf, 1e20])
@pytest.mark.parametrize("tile", [4, 64])
def test_non_finite_rows(bad, tile):
    x, y = (v.float() for v in dependent(12, 3, 3))
    x[7, 1] = bad
    with pytest.raises(NonFiniteError, match="hsic: x has"):
        hsic(x, y, 1.0, 1.0, tile=tile)
    with pytest.raises(NonFiniteError, match="hsic: y has"):
        hsic(y, x, 1.0, 1.0, tile=tile)
    for value in value_and_gradients(hsic, x, y, 1.0, 1.0, tile=tile, check=False):
        assert value.isnan().all()
    if bad == 1e20:  # its square fits in float64
        assert hsic(x.double(), y.double(), 1.0, 1.0).isfinite()


def test_refusals():
    x, y = dependent(8, 2, 2)
    for arguments, options, message in (
        ((x[:3], y[:3], 1.0, 1.0), {}, "at least 4 rows in the global batch, got 3"),
        ((x[:0], y[:0], 1.0, 1.0), {"estimator": "biased"}, "at least 1 rows"),
        ((x, y, 0.0, 1.0), {}, "sigma_x must lie between 1e-18 and 1e18, got 0.0"),
        ((x, y, 1.0, float("nan")), {}, "sigma_y"),
        ((x, y, 1.0, 1.0), {"tile": 0}, "tile"),
        ((x, y, 1.0, 1.0), {"estimator": "plugin"}, "estimator"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            hsic(*arguments, **options)
        assert isinstance(refused.value, ConfigError)  # one line and exit code 2 in a command
    for left, right, message in (
        (x, y[:7], "same number of rows"),
        (x[0], y, "rows \\(n, d\\), got shape \\(2,\\)"),
        (x.long(), y, "floating point, got torch.int64"),
        (gather_features(x), y[:7], "counts say that rank 0 has 8 rows, but its tensor has 7"),
        (gather_features(x), gather_features(y[:7]), "same number of rows"),
        (gather_features(x), gather_features(y, group=LOCAL), "different groups"),
    ):
        with pytest.raises(ValueError, match=message):
            hsic(left, right, 1.0, 1.0)
    gathered = gather_features(x)
    for left, right in ((gathered, y), (y, gathered), (gathered, gather_features(y))):
        with pytest.raises(ValueError, match="gathered in another group than group="):
            hsic(left, right, 1.0, 1.0, group=LOCAL)
    local = gather_features(x, group=LOCAL)
    assert hsic(local, y, 1.0, 1.0, group=LOCAL) == hsic(x, y, 1.0, 1.0)
    with pytest.raises(ValueError, match="counts must list the rows of 1 ranks"):
        gather_features(x, counts=[4, 4])


def test_far_clusters_lose_the_documented_digits_in_float32_and_none_in_float64():
    torch.manual_seed(0)
    sigma = 1.5
    for apart in (30.0, 300.0):
        centres = apart * torch.eye(4, dtype=torch.float64).repeat_interleave(12, 0)
        x, y = (centres + 0.3 * torch.randn_like(centres) for _ in range(2))
        exact = value_and_gradients(reference.unbiased, x, y, sigma, sigma)
        double = value_and_gradients(hsic, x, y, sigma, sigma)
        single = value_and_gradients(hsic, x.float(), y.float(), sigma, sigma)
        farthest = float((x - x.mean(0)).square().sum(1).max())
        for name, a, b, e in zip(("H", "∂x", "∂y"), single, double, exact, strict=True):
            scale = float(e.abs().max())
            off = float((a.double() - e).abs().max()) / scale
            print(f"clusters {apart} apart, {name}: off by {off:.1e} in float32")
            assert off < 10 * farthest * 1.2e-7 / sigma**2
            assert float((b - e).abs().max()) / scale < 1e-9


def test_a_detached_side_costs_nothing_and_small_kernels_are_kept(monkeypatch):
    x, y = (torch.randn(40, 8) for _ in range(2))
    calls = {"tile": 0, "times_kernel": 0}

    def counted(name):
        original = getattr(tiles.Side, name)

        def call(self, *arguments):
            calls[name] += 1
            return original(self, *arguments)

        monkeypatch.setattr(tiles.Side, name, call)

    counted("tile")
    counted("times_kernel")
    # (x and y need gradients, one tile?): kernels computed, products M = U(L) ∘ K formed
    for needs, tile, expected in (
        ((True, True), 64, {"tile": 2, "times_kernel": 2}),
        ((True, False), 64, {"tile": 2, "times_kernel": 1}),
        ((False, False), 64, {"tile": 2, "times_kernel": 0}),
        ((True, True), 20, {"tile": 12, "times_kernel": 6}),  # three blocks, kernels twice
        ((False, True), 20, {"tile": 12, "times_kernel": 3}),
    ):
        calls.update(tile=0, times_kernel=0)
        sides = [
            side.clone().requires_grad_(need) for side, need in zip((x, y), needs, strict=True)
        ]
        value = hsic(*sides, 2.0, 2.0, tile=tile)
        if any(needs):
            value.backward()
        assert calls == expected, (needs, tile)


def test_settings_that_were_inherited_are_inherited_afterwards():
    backend = torch.backends.mkldnn
    before, explicit = backend.fp32_precision, backend.matmul.fp32_precision
    x = torch.randn(8, 2)
    try:
        backend.matmul.fp32_precision = "none"
        backend.fp32_precision = "bf16"
        hsic(x, x, 1.0, 1.0)
        assert backend.matmul.fp32_precision == "bf16"
        backend.fp32_precision = "ieee"
        assert backend.matmul.fp32_precision == "ieee"
    finally:
        backend.fp32_precision = before
        backend.matmul.fp32_precision = explicit
