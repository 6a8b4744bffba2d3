"""The networks: names, sizes, what their features are, and what they can see."""

import copy
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from rebias_dist.models import build, feature_dim, receptive_field
from rebias_dist.models.bagnet import STAGES
from rebias_dist.models.simple_convnet import CHANNELS


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def trainable(network: nn.Module) -> dict[str, bool]:
    return {name: p.requires_grad for name, p in network.named_parameters()}


# --- simple_convnet ------------------------------------------------------------


def test_simple_convnet_has_the_public_names_and_shapes() -> None:
    state = build("simple_convnet", num_classes=10).state_dict()
    expected: dict[str, tuple[int, ...]] = {}
    before = 3
    for index, channels in zip((0, 3, 6, 9), CHANNELS, strict=True):
        expected[f"extracter.{index}.weight"] = (channels, before, 7, 7)
        expected[f"extracter.{index}.bias"] = (channels,)
        for name in ("weight", "bias", "running_mean", "running_var"):
            expected[f"extracter.{index + 1}.{name}"] = (channels,)
        expected[f"extracter.{index + 1}.num_batches_tracked"] = ()
        before = channels
    expected |= {"fc.weight": (10, 128), "fc.bias": (10,)}
    assert {name: tuple(value.shape) for name, value in state.items()} == expected


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("kernel_size", [1, 7])
def test_simple_convnet_parameter_count(norm: str, kernel_size: int) -> None:
    network = build("simple_convnet", num_classes=4, kernel_size=kernel_size, norm=norm)
    widths = (3, *CHANNELS)
    count = sum(
        a * b * kernel_size**2 + b + (0 if norm == "none" else 2 * b) for a, b in pairwise(widths)
    )
    assert sum(p.numel() for p in network.parameters()) == count + 128 * 4 + 4


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_simple_convnet_features_are_what_their_names_say(norm: str, dtype: torch.dtype) -> None:
    images = torch.randn(6, 3, 9, 7, dtype=dtype)
    logits, features = {}, {}
    for feature in ("pre", "post", "logits"):
        torch.manual_seed(1)
        network = build("simple_convnet", num_classes=4, kernel_size=3, norm=norm, feature=feature)
        network.to(dtype)
        logits[feature], features[feature] = network(images)
        assert logits[feature].dtype == features[feature].dtype == dtype
        assert feature_dim(network, (3, 9, 7)) == features[feature].shape[1]
    assert features["pre"].shape == (6, 128 * 9 * 7)
    pooled = features["pre"].unflatten(1, (128, 63)).sum(dim=2) / 63
    torch.testing.assert_close(features["post"], pooled)
    torch.testing.assert_close(features["logits"], logits["post"], rtol=0, atol=0)
    assert (features["pre"] >= 0).all()
    assert features["pre"].gt(0).any()


def test_simple_convnet_width_and_in_channels() -> None:
    network = build("simple_convnet", num_classes=2, width=0.03, in_channels=1, kernel_size=1)
    sizes = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert sizes == [1, 1, 2, 4]  # 0.48, 0.96, 1.92, 3.84
    assert network(torch.randn(2, 1, 4, 4))[1].shape == (2, 4)


@pytest.mark.parametrize(("width", "groups"), [(1, [8, 8, 8, 8]), (0.3, [1, 2, 1, 2])])
def test_group_norm_divides_any_width(width: float, groups: list[int]) -> None:
    network = build("simple_convnet", num_classes=2, norm="group", width=width)  # 5 10 19 38
    assert [m.num_groups for m in network.modules() if isinstance(m, nn.GroupNorm)] == groups


def test_initial_weights_are_kaiming_normal_over_fan_out() -> None:
    network = build("simple_convnet", num_classes=10)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            expected = (2 / (layer.out_channels * 49)) ** 0.5
            ratio = layer.weight.std().item() / expected
            error = 4 / (2 * layer.weight.numel()) ** 0.5  # four standard errors
            print(f"std / expected {ratio:.4f}, allowed deviation {error:.4f}")
            assert abs(ratio - 1) < error


def test_same_seed_same_network() -> None:
    for name in ("simple_convnet", "bagnet18", "resnet18"):
        states = []
        for _ in range(2):
            torch.manual_seed(3)
            states.append(build(name, num_classes=5).state_dict())
        assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))


def test_dropout_touches_the_logits_and_never_the_features() -> None:
    options = {"num_classes": 4, "kernel_size": 1, "width": 0.25}
    torch.manual_seed(1)
    plain = build("simple_convnet", **options)
    torch.manual_seed(1)
    dropping = build("simple_convnet", **options, dropout=0.5)
    images = torch.randn(8, 3, 5, 5)
    logits, features = plain(images)
    dropped_logits, dropped_features = dropping(images)
    assert torch.equal(features, dropped_features)
    assert not torch.allclose(logits, dropped_logits)
    torch.manual_seed(5)
    _, features = dropping(images)
    torch.manual_seed(5)
    expected = dropping.fc(F.dropout(features, 0.5))
    torch.manual_seed(5)
    assert torch.equal(dropping(images)[0], expected)


# --- biases that a BatchNorm cancels -------------------------------------------


def bias_and_weight_gradients(network: nn.Module) -> list[tuple[float, float]]:
    """Largest entries of each convolution's bias and weight gradient, biases unfrozen."""
    network.double().requires_grad_(True)
    logits, features = network(torch.randn(8, 3, 6, 6, dtype=torch.float64))
    (logits.square().sum() + features.square().sum()).backward()
    found = []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            assert layer.bias.grad is not None
            assert layer.weight.grad is not None
            found.append((layer.bias.grad.abs().max().item(), layer.weight.grad.abs().max().item()))
    return found


def test_a_bias_before_batchnorm_is_frozen_because_its_gradient_is_zero() -> None:
    network = build("simple_convnet", num_classes=4, kernel_size=3)
    frozen = {name for name, trains in trainable(network).items() if not trains}
    assert frozen == {f"extracter.{i}.bias" for i in (0, 3, 6, 9)}
    assert frozen <= network.state_dict().keys()
    network(torch.randn(4, 3, 6, 6))[0].sum().backward()
    assert all((p.grad is None) == (n in frozen) for n, p in network.named_parameters())
    ratios = [bias / weight for bias, weight in bias_and_weight_gradients(network)]
    print(f"largest bias gradient, relative to the weight's: {max(ratios):.1e}")
    assert max(ratios) < 1e-12


@pytest.mark.parametrize("norm", ["group", "none"])
def test_a_bias_that_matters_is_trained(norm: str) -> None:
    network = build("simple_convnet", num_classes=4, kernel_size=3, norm=norm)
    assert all(trainable(network).values())
    assert all(bias > 1e-3 * weight for bias, weight in bias_and_weight_gradients(network))


def test_biases_of_a_user_network_are_frozen_where_the_order_is_certain() -> None:
    network = build("tests.models.networks:tiny", num_classes=3, feature="5")
    assert {name for name, trains in trainable(network).items() if not trains} == {"0.bias"}


# --- bagnet18 ------------------------------------------------------------------


def reference_bagnet(state: dict[str, Tensor], images: Tensor) -> tuple[Tensor, Tensor]:
    """BagNet-18 with batch statistics, from its parameters, written a second time."""

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], stride=stride)

    def norm(x: Tensor, name: str) -> Tensor:
        mean = x.mean(dim=(0, 2, 3), keepdim=True)
        variance = (x - mean).square().mean(dim=(0, 2, 3), keepdim=True)
        scale, shift = (state[f"{name}.{p}"].view(1, -1, 1, 1) for p in ("weight", "bias"))
        return (x - mean) / (variance + 1e-5).sqrt() * scale + shift

    x = norm(conv(conv(images, "conv1"), "conv2"), "bn1").clamp(min=0)
    for stage, (_, first_stride) in enumerate(STAGES, start=1):
        for block in range(2):
            stride = first_stride if block == 0 else 1
            name = f"layer{stage}.{block}"
            out = norm(conv(x, f"{name}.conv1", stride), f"{name}.bn1").clamp(min=0)
            out = norm(conv(out, f"{name}.conv2"), f"{name}.bn2")
            if block == 0:
                x = norm(conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
            x = (out + x[:, :, : out.shape[2], : out.shape[3]]).clamp(min=0)
    features = x.sum(dim=(2, 3)) / (x.shape[2] * x.shape[3])
    return features @ state["fc.weight"].T + state["fc.bias"], features


@pytest.mark.parametrize("size", [(32, 32), (31, 22)])
def test_bagnet18_computes_what_its_parameter_names_say(size: tuple[int, int]) -> None:
    network = build("bagnet18", num_classes=9).double()
    for name, parameter in network.named_parameters():  # every scale and shift must matter
        if "bn" in name or "downsample.1" in name:
            nn.init.normal_(parameter, 1.0, 0.2)
    images = torch.randn(3, 3, *size, dtype=torch.float64)
    logits, features = network(images)
    expected_logits, expected_features = reference_bagnet(network.state_dict(), images)
    for got, expected in ((logits, expected_logits), (features, expected_features)):
        print(
            f"largest difference {(got - expected).abs().max():.1e} of {expected.abs().max():.1f}"
        )
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


def test_bagnet18_names_kernels_and_count() -> None:
    network = build("bagnet18", num_classes=9, feature="pool")
    state = network.state_dict()
    assert {name.split(".")[0] for name in state} == {
        *("conv1", "conv2", "bn1", "fc"),
        *("layer1", "layer2", "layer3", "layer4"),
    }
    assert {name.split(".", 2)[2] for name in state if name.startswith("layer1.0")} == {
        *("conv1.weight", "conv2.weight", "downsample.0.weight"),
        *(
            f"{bn}.{name}"
            for bn in ("bn1", "bn2", "downsample.1")
            for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
        ),
    }
    kernels = {n: m.kernel_size for n, m in network.named_modules() if isinstance(m, nn.Conv2d)}
    assert {n for n, k in kernels.items() if k == (3, 3)} == {"conv2", "layer1.0.conv1"}
    assert {k for n, k in kernels.items()} == {(3, 3), (1, 1)}
    assert network.bn1.momentum == 0.001
    count = 3 * 64 + 64 * 64 * 9 + 2 * 64 + 512 * 9 + 9  # stem, fc
    before = 64
    for channels, _ in STAGES:
        kernel = 9 if before == channels else 1
        count += before * channels * (kernel + 1) + 3 * channels**2 + 5 * 2 * channels
        before = channels
    assert sum(p.numel() for p in network.parameters()) == count
    weight = network.layer4[1].conv2.weight
    assert weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.01)


# --- receptive fields, measured ------------------------------------------------


def test_bagnet18_sees_five_by_five_pixels() -> None:
    network = build("bagnet18", num_classes=9)
    assert receptive_field(network, "layer4") == (5, 5)
    assert receptive_field(network, "conv2") == (3, 3)


@pytest.mark.parametrize(("kernel_size", "field"), [(1, 1), (3, 9), (7, 25)])
def test_receptive_field_of_stacked_convolutions(kernel_size: int, field: int) -> None:
    network = build("simple_convnet", num_classes=10, kernel_size=kernel_size)
    assert receptive_field(network, "extracter") == (field, field)  # 4 (k - 1) + 1


def test_receptive_field_of_resnet18_first_stage() -> None:
    # 7×7 stride 2 → 7; 3×3 pool stride 2 → 11; four 3×3 at a jump of 4 → 43
    network = build("resnet18", num_classes=9)
    assert receptive_field(network, "layer1", image_size=96) == (43, 43)


def test_measuring_changes_neither_network_nor_random_state() -> None:
    network = build("bagnet18", num_classes=9)
    network.layer1.eval()
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    receptive_field(network, "layer4")
    assert feature_dim(network, (3, 32, 32)) == 512
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert network.training
    assert not network.layer1.training
    assert network.layer2.training
    assert all(p.grad is None for p in network.parameters())


# --- torchvision and user networks ---------------------------------------------


def test_resnet18_is_torchvisions_with_its_pooled_features() -> None:
    torch.manual_seed(2)
    bare = torchvision.models.resnet18(weights=None, num_classes=9)
    for feature in (None, "pool", "avgpool"):
        torch.manual_seed(2)
        network = build("resnet18", num_classes=9, feature=feature)
        assert network.state_dict().keys() == bare.state_dict().keys()
        images = torch.randn(2, 3, 64, 64)
        logits, features = network(images)
        assert torch.equal(logits, bare(images))
        assert features.shape == (2, 512)
        torch.testing.assert_close(F.linear(features, bare.fc.weight, bare.fc.bias), logits)
    assert sum(p.numel() for p in build("resnet18", num_classes=1000).parameters()) == 11_689_512


def test_a_deep_copy_has_its_own_features() -> None:
    network = build("resnet18", num_classes=3, feature="layer1")
    twin = copy.deepcopy(network)
    nn.init.zeros_(twin.conv1.weight)
    images = torch.randn(2, 3, 32, 32)
    features = network(images)[1]
    assert features.shape == (2, 64)
    assert not torch.allclose(twin(images)[1], features)
    assert torch.equal(copy.deepcopy(network).train()(images)[1], features)


@pytest.mark.parametrize(
    ("name", "feature", "size", "dim"),
    [
        ("convnext_tiny", "avgpool", 32, 768),
        ("squeezenet1_1", "classifier.3", 64, 4),
        ("shufflenet_v2_x0_5", "conv5", 32, 1024),
        ("googlenet", "avgpool", 32, 1024),
    ],
)
def test_torchvision_networks_in_training(name: str, feature: str, size: int, dim: int) -> None:
    network = build(name, num_classes=4, feature=feature)
    logits, features = network(torch.randn(2, 3, size, size))
    assert logits.shape == (2, 4)
    assert features.shape == (2, dim)
    features.square().sum().backward()
    assert any(p.grad is not None for p in network.parameters())


@pytest.mark.parametrize("separator", [":", "."])
def test_user_network_by_dotted_path(separator: str) -> None:
    path = f"tests.models.networks{separator}tiny"
    network = build(path, num_classes=3, channels=6, feature="3")
    images = torch.randn(2, 3, 9, 9)
    logits, features = network(images)
    assert logits.shape == (2, 3)
    assert features.shape == (2, 6)
    # The ReLU after layer 3 works in place; the features are the layer's own output.
    expected = nn.Sequential(*list(network)[:4])(images).mean(dim=(2, 3))
    assert torch.equal(features, expected)
    assert (features < 0).any()


def test_user_network_that_returns_its_features() -> None:
    network = build("tests.models.networks.Pair", num_classes=3)
    logits, features = network(torch.randn(2, 3, 6, 6))
    assert logits.shape == (2, 3)
    assert features.shape == (2, 5)
