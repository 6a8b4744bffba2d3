"""Mixed precision on real ranks: decisions about a network are taken by all ranks alike."""

import copy

import pytest
import torch

from tests.distributed.ranks import run_ranks

N, M, CLASSES = 24, 4, 5


def _game(precision_name: str, optimizer: str = "adam"):
    from rebias_dist import methods, models
    from rebias_dist.config.schema import MethodConfig, OptimizerConfig
    from rebias_dist.step.minimax import Minimax
    from rebias_dist.step.player import Player
    from rebias_dist.step.precision import Precision

    precision = Precision(precision_name, torch.device("cpu"))
    players = []
    for name, kernel_size in (("f", 3), ("g0", 1)):
        torch.manual_seed(kernel_size)
        network = models.build(
            "simple_convnet", num_classes=CLASSES, kernel_size=kernel_size, width=0.25
        ).to(precision.parameters)
        players.append(
            Player(name, network, optimizer=OptimizerConfig(name=optimizer), precision=precision)
        )
    return Minimax(
        methods.build(MethodConfig()),
        players[0],
        players[1:],
        normalise=lambda images: images.to(precision.parameters) / 255 - 0.5,
        global_batch=N,
        micro_batches=M,
        seed=0,
    )


def _batches(rank: int, world: int, step: int = 0):
    from rebias_dist.data.batch import MicroBatch

    generator = torch.Generator().manual_seed(step)
    images = torch.randint(0, 256, (N, 3, 6, 6), generator=generator).to(torch.uint8)
    labels = torch.randint(0, CLASSES, (N,), generator=generator)
    parts = [t.chunk(M) for t in (images, labels, labels, torch.arange(N))]
    return [MicroBatch(*(part[j] for part in parts), j) for j in range(rank, M, world)]


def _weights(network) -> dict[str, list]:
    return {key: value.double().flatten().tolist() for key, value in network.state_dict().items()}


def _step_with_overflow() -> dict:
    import torch.distributed as dist

    from rebias_dist.methods.radii import Radii

    rank, world = dist.get_rank(), dist.get_world_size()
    game = _game("fp16")
    # Settle: the first scale is large, and its own overflows are not what is tested.
    for player in (game.f, *game.gs):
        player.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    g = game.gs[0]
    if rank == 1:
        g.parameters[0].register_hook(lambda gradient: gradient * float("inf"))
    before = {"f": _weights(game.f.network), "g0": _weights(g.network)}
    game.step(_batches(rank, world), 0, Radii(0.7, (0.9,)))
    return {
        "before": before,
        "after": {"f": _weights(game.f.network), "g0": _weights(g.network)},
        "scales": {"f": game.f.scaler.get_scale(), "g0": g.scaler.get_scale()},
    }


def test_an_overflow_on_one_rank_skips_that_network_on_all():
    ranks = run_ranks(2, _step_with_overflow)
    assert ranks[0] == ranks[1]
    found = ranks[0]
    assert found["after"]["g0"] == found["before"]["g0"]  # weights and buffers
    assert found["after"]["f"] != found["before"]["f"]
    assert found["scales"] == {"f": 256.0, "g0": 128.0}


def _non_finite_in(precision: str) -> str:
    import torch.distributed as dist

    from rebias_dist.errors import NonFiniteError
    from rebias_dist.methods.radii import Radii

    rank, world = dist.get_rank(), dist.get_world_size()
    game = _game(precision)
    if rank == 1:
        game.f.parameters[0].register_hook(lambda gradient: gradient * float("nan"))
    try:
        game.step(_batches(rank, world), 0, Radii(0.7, (0.9,)))
    except NonFiniteError as error:
        return str(error)
    return "no error"


def test_without_a_scaler_a_nan_on_one_rank_ends_the_run_on_all():
    ranks = run_ranks(2, _non_finite_in, "float32")
    assert ranks[0] == ranks[1]
    assert "gradient of f is not finite" in ranks[0]


def _one_step(precision: str) -> dict[str, list[float]]:
    """One step from equal state: figures, gradients of the parameters, and the new weights."""
    import torch.distributed as dist

    from rebias_dist.methods.radii import Radii
    from rebias_dist.step.player import Player

    rank, world = dist.get_rank(), dist.get_world_size()
    # Adam divides by the gradient's size: its first step turns rounding into signs.
    game = _game(precision, "sgd")
    found = {}
    take_step = Player.take_step

    def record(self, micro_batches):
        for number, parameter in enumerate(self.parameters):
            found[f"{self.name} gradient {number}"] = parameter.grad.double().flatten().tolist()
        return take_step(self, micro_batches)

    Player.take_step = record
    try:
        metrics = game.step(_batches(rank, world), 0, Radii(0.7, (0.9,))).reduce(N)
    finally:
        Player.take_step = take_step
    for player in (game.f, *game.gs):
        found |= {f"{player.name}.{key}": v for key, v in _weights(player.network).items()}
    return found | {name: [value] for name, value in metrics.items()}


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bf16", 1e-4)])
def test_one_step_is_the_same_on_any_number_of_ranks(precision, tolerance):
    alone = run_ranks(1, _one_step, precision)[0]
    worst = {"gradient": 0.0, "figure or weight": 0.0}
    for world in (2, 4):
        found = run_ranks(world, _one_step, precision)[0]
        assert found.keys() == alone.keys()
        for name, value in alone.items():
            expected, seen = torch.tensor(value), torch.tensor(found[name])
            scale = max(float(expected.abs().max()), 1e-2)
            kind = "gradient" if "gradient" in name else "figure or weight"
            worst[kind] = max(worst[kind], float((seen - expected).abs().max()) / scale)
    print(f"{precision}, largest differences: {worst}")
    assert max(worst.values()) <= tolerance


def test_bf16_stays_near_float32():
    full, half = (run_ranks(1, _one_step, p)[0] for p in ("float32", "bf16"))
    for name in ("f/ce", "g0/ce", "f/hsic_g0", "g0/hsic"):
        print(f"{name}: {full[name][0]:.6f} in float32, {half[name][0]:.6f} in bf16")
        assert half[name] == pytest.approx(full[name], rel=0.03, abs=3e-4)


def _gradients(naive: bool) -> list[float]:
    """f's gradient: of the global batch, or of HSIC on each micro-batch, averaged."""
    from rebias_dist.objectives import LOCAL, hsic

    game = _game("float64")
    batches = _batches(0, 1)
    f, g = game.f.network, copy.deepcopy(game.gs[0].network)
    outputs = [(f(game.normalise(b.images))[1], g(game.normalise(b.images))[1]) for b in batches]
    if naive:
        terms = [hsic(x, y.detach(), 0.7, 0.9, group=LOCAL) for x, y in outputs]
        value = torch.stack(terms).mean()
    else:
        x, y = (torch.cat(parts) for parts in zip(*outputs, strict=True))
        value = hsic(x, y.detach(), 0.7, 0.9, group=LOCAL)
    value.backward()
    return torch.cat([p.grad.flatten() for p in game.f.parameters if p.grad is not None]).tolist()


def _dense_hsic(x: torch.Tensor, y: torch.Tensor, sigma: float) -> torch.Tensor:
    """HSIC₁ as a user would write it, in whatever precision the context gives."""
    n = len(x)

    def kernel(a: torch.Tensor) -> torch.Tensor:
        squares = (a * a).sum(1)
        squared = squares[:, None] + squares[None] - 2 * a @ a.T
        return torch.exp(-squared / (2 * sigma**2)) * (1 - torch.eye(n, dtype=a.dtype))

    k, l = kernel(x), kernel(y)  # noqa: E741
    both = (k * l).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2))
    return (both - 2 / (n - 2) * (k.sum(1) @ l.sum(1))) / (n * (n - 3))


def test_hsic_under_autocast_is_exact_here_and_noise_when_written_plainly():
    """A control: nearly independent features, which is where ReBias takes f."""
    from rebias_dist.objectives import LOCAL, hsic

    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(512, 512, generator=generator)
        y = 0.1 * x + torch.randn(512, 512, generator=generator)
        true = float(_dense_hsic(x.double(), y.double(), 32.0))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            plain = float(_dense_hsic(x, y, 32.0))
            ours = float(hsic(x, y, 32.0, 32.0, group=LOCAL))
        print(f"HSIC {true:.2e}: plainly {plain:+.2e} under autocast, ours {ours:+.2e}")
        assert ours == pytest.approx(true, rel=1e-4)
        assert abs(plain - true) > 100 * true


def test_hsic_per_micro_batch_is_another_gradient():
    """A control: what plain accumulation would train, and how far off it is."""
    exact, naive = torch.tensor(_gradients(False)), torch.tensor(_gradients(True))
    off = float((naive - exact).norm() / exact.norm())
    cosine = float(torch.nn.functional.cosine_similarity(exact, naive, dim=0))
    print(f"HSIC per micro-batch: gradient off by {100 * off:.0f} %, cosine {cosine:.2f}")
    assert (off, cosine) == pytest.approx((1.2, 0.52), abs=0.02)
