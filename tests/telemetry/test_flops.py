"""Operations of a step: against closed forms, and against what the game really does."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rebias_dist import methods, models
from rebias_dist.config.schema import MethodConfig, OptimizerConfig
from rebias_dist.data.batch import MicroBatch
from rebias_dist.methods.options import LearnedMixinOptions
from rebias_dist.methods.radii import Radii
from rebias_dist.step.minimax import Minimax
from rebias_dist.step.player import Player
from rebias_dist.step.precision import Precision
from rebias_dist.telemetry.flops import Work, count_flops, device_peak, peak_of

SIDE, CLASSES, N = 6, 3, 8
CPU = torch.device("cpu")


class Convolutions(nn.Module):
    """Two convolutions and nothing else that counts: the second gives the logits."""

    def __init__(self, kernel: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, kernel, padding=kernel // 2)
        self.norm = nn.BatchNorm2d(width)
        self.last = nn.Conv2d(width, CLASSES, 1)

    def forward(self, images):
        maps = self.norm(self.first(images)).relu()
        return self.last(maps).mean((2, 3)), maps.mean((2, 3))


class Unreadable(nn.Module):
    """Decides by the values that it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(SIDE, CLASSES)

    def forward(self, images):
        rows = images.mean((1, 2))
        return self.layer(rows if rows.sum() > 0 else -rows), rows


@pytest.mark.parametrize(("kernel", "width"), [(1, 4), (3, 5)])
def test_two_convolutions_have_the_operations_of_the_closed_form(kernel, width):
    found = count_flops(Convolutions(kernel, width), (3, SIDE, SIDE))
    first = 2 * SIDE**2 * kernel**2 * 3 * width
    last = 2 * SIDE**2 * width * CLASSES
    assert found.forward == first + last
    # The gradient of the weights costs as much as the forward, that of the input as well, and
    # the images need none.
    assert found.backward == first + 2 * last
    assert found.training == found.forward + found.backward


def test_a_resnet_has_the_published_operations():
    found = count_flops(models.build("resnet50", num_classes=1000), (3, 224, 224))
    print(f"{found.forward / 2e9:.3f} · 10⁹ multiplications and additions")
    assert found.forward / 2e9 == pytest.approx(4.09, abs=0.01)  # torchvision's documentation


@pytest.mark.parametrize(
    ("name", "options"),
    [("simple_convnet", {"kernel_size": 3}), ("bagnet18", {}), ("resnet18", {})],
)
def test_counting_changes_neither_the_network_nor_random_states(name, options):
    network = nn.Sequential(nn.Dropout(0.5), models.build(name, num_classes=CLASSES, **options))
    network[1].eval()
    before = copy.deepcopy(network)
    state = torch.get_rng_state()
    count_flops(network, (3, 32, 32))
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in network.state_dict().items():
        assert torch.equal(value, before.state_dict()[key]), key
    assert all(parameter.grad is None for parameter in network.parameters())
    assert [m.training for m in network.modules()] == [m.training for m in before.modules()]


def test_a_network_that_cannot_be_counted_leaves_the_figure_out():
    networks = {"f": Convolutions(1, 4), "g0": Unreadable()}
    work = Work(methods.build(MethodConfig()), networks, (3, SIDE, SIDE), N)
    assert work.game() is None
    assert work.pretraining(train_f=True, train_g=False) is None


CASES = {
    "rebias": (MethodConfig(), 1),
    "two g, updated twice": (MethodConfig(n_g_update=2), 2),
    "f is not coupled": (MethodConfig(lambda_f=0.0), 1),
    "g is not coupled": (MethodConfig(lambda_g=0.0), 1),
    "vanilla": (MethodConfig(name="vanilla"), 0),
    "biased": (MethodConfig(name="biased"), 1),
    "rubi": (MethodConfig(name="rubi"), 1),
    "learned_mixin": (LearnedMixinOptions(), 1),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step_in_one_micro_batch_does_what_is_counted(case):
    config, gs = CASES[case]
    method = methods.build(config)
    networks = {"f": Convolutions(3, 4)} if method.facts.has_f else {}
    networks |= {f"g{i}": Convolutions(1, 4 + i) for i in range(gs)}
    heads = method.heads(4, [4] * gs, CLASSES) if "f" in networks else None
    players = {
        name: Player(
            name,
            network,
            heads=heads if name == "f" else None,
            optimizer=OptimizerConfig(),
            precision=Precision("float32", CPU),
        )
        for name, network in networks.items()
    }
    game = Minimax(
        method,
        players.get("f"),
        [player for name, player in players.items() if name != "f"],
        normalise=lambda images: images.float() / 255,
        global_batch=N,
        micro_batches=1,
        seed=0,
    )
    images = torch.randint(0, 256, (N, 3, SIDE, SIDE)).to(torch.uint8)
    labels = torch.randint(0, CLASSES, (N,))
    batches = [MicroBatch(images, labels, labels, labels, 0)]
    work = Work(method, networks, (3, SIDE, SIDE), N)

    def convolutions(run) -> int:
        # HSIC and heads are matrix products, and not counted.
        with FlopCounterMode(display=False) as counter:
            run()
        total = counter.get_flop_counts().get("Global", {})
        return sum(count for op, count in total.items() if "convolution" in str(op))

    for train_f, train_g in ((True, False), (False, True), (True, True)):
        done = convolutions(
            lambda f=train_f, g=train_g: game.pretrain(batches, 0, train_f=f, train_g=g)
        )
        assert work.pretraining(train_f=train_f, train_g=train_g) == done
    if method.facts.fixed_g:
        for g in game.gs:
            g.fix()
    done = convolutions(lambda: game.step(batches, 0, Radii(1.0, (1.0,) * gs)))
    assert work.game() == done > 0


def test_peaks_are_known_for_whole_cards_of_the_table_alone():
    assert peak_of("NVIDIA A100-SXM4-80GB", "bf16") == 312e12
    assert peak_of("NVIDIA A100-SXM4-40GB", "tf32") == 156e12
    assert peak_of("NVIDIA H100 80GB HBM3", "float32") == 67e12
    assert peak_of("NVIDIA H100 PCIe", "fp16") == 756e12
    assert peak_of("Tesla T4", "tf32") == peak_of("Tesla T4", "float32") == 8.1e12
    assert peak_of("Tesla V100-SXM2-32GB", "bf16") is None
    for unknown in ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", "NVIDIA H100 NVL", "NVIDIA A1000", ""):
        assert peak_of(unknown, "bf16") is None
    assert peak_of("NVIDIA A100-SXM4-80GB", "float64") is None
    assert all(device_peak(Precision(p, CPU)) is None for p in ("float32", "bf16", "float64"))
