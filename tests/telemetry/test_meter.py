"""What a meter makes of its readings, and that training is the same with and without one."""

import pytest
import torch

from rebias_dist import methods, models
from rebias_dist.config.schema import MethodConfig, OptimizerConfig
from rebias_dist.data.batch import MicroBatch
from rebias_dist.methods.radii import Radii
from rebias_dist.phases import PHASES
from rebias_dist.step.minimax import Minimax
from rebias_dist.step.player import Player
from rebias_dist.step.precision import Precision
from rebias_dist.telemetry.meter import Meter, Reading, describe_speed, peak_rss

N, CLASSES, STEPS = 16, 4, 3
FLOAT32 = Precision("float32", torch.device("cpu"))


def game_of(parts: int, samples: int = N) -> tuple[Minimax, list[MicroBatch]]:
    """Return a game and its global batch, alike on every rank."""
    players = []
    for index, name in enumerate(("f", "g0")):
        torch.manual_seed(index)
        net = models.build("simple_convnet", num_classes=CLASSES, kernel_size=3, width=0.1)
        players.append(Player(name, net, optimizer=OptimizerConfig(), precision=FLOAT32))
    game = Minimax(
        methods.build(MethodConfig()),
        players[0],
        players[1:],
        normalise=lambda images: images.float() / 255,
        global_batch=samples,
        micro_batches=parts,
        seed=0,
    )
    images = torch.randint(0, 256, (samples, 3, 8, 8)).to(torch.uint8)
    labels = torch.arange(samples) % CLASSES
    chunks = [t.chunk(parts) for t in (images, labels, labels, labels)]
    return game, [MicroBatch(*(chunk[j] for chunk in chunks), j) for j in range(parts)]


def trained(meter: Meter | None, parts: int) -> tuple[list[dict], list[torch.Tensor]]:
    torch.manual_seed(7)
    game, batches = game_of(parts)
    losses = []
    for step in range(STEPS):
        found = game.step(batches, step, Radii(1.0, (1.0,)))
        if meter is None:
            losses.append(found.reduce(N))
        else:
            meter.step()
            losses.append(found.reduce(N, meter.read().by_rank))
    tensors = [t for p in (game.f, *game.gs) for t in p.network.state_dict().values()]
    return losses, [*tensors, torch.get_rng_state()]


@pytest.mark.parametrize("parts", [1, 4])
def test_training_has_the_same_bits_with_and_without_a_meter(parts):
    losses, tensors = trained(None, parts)
    meter = Meter(N, 0, 1, FLOAT32)
    with meter.running():
        losses_metered, tensors_metered = trained(meter, parts)
    assert losses == losses_metered
    assert all(map(torch.equal, tensors, tensors_metered))


@pytest.mark.parametrize("parts", [1, 4])
def test_a_step_has_every_phase_but_those_that_it_does_not_need(parts):
    meter = Meter(N, 0, 1, FLOAT32)
    game, batches = game_of(parts)
    with meter.running():
        game.step(batches, 0, Radii(1.0, (1.0,)))
        seconds = dict(zip(PHASES, meter.read().by_rank[0].tolist(), strict=False))
    absent = {name for name, value in seconds.items() if value == 0}
    assert absent == {"data_wait", "communication"}


def reading(rows: list[list[float]], **changes) -> Reading:
    values = {"seconds": 2.0, "images": 512, "flops": 6e12, "peak": None, **changes}
    return Reading(**values, by_rank=torch.tensor(rows, dtype=torch.float64))


def test_shares_speed_and_memory_of_two_ranks():
    rows = [
        [0.2, 0.6, 0.6, 0.2, 0.2, 0.1, 0.1, 300, 0],
        [0.8, 0.4, 0.4, 0.2, 0.0, 0.1, 0.1, 400, 0],
    ]
    assert reading(rows).scalars() == pytest.approx(
        {
            "speed/images_per_s": 256,
            "speed/images_per_s_rank": 128,
            "speed/tflops": 3,
            "time/data_wait": 25,
            "time/forward": 25,
            "time/backward": 25,
            "time/objective": 10,
            "time/communication": 5,
            "time/optimizer": 5,
            "time/other": 5,
            "time/data_wait_most": 40,
            "memory/peak_rss_mib": 400,
        }
    )
    assert describe_speed(reading(rows).scalars()) == (
        "data wait 25 %, forward 25 %, backward 25 %, objective 10 %, communication 5 %, "
        "optimizer 5 %, other 5 %, 3 TFLOP/s, 400 MiB resident"
    )


def test_utilisation_is_of_the_gpus_of_all_ranks():
    rows = [[1.0] * len(PHASES) + [300, 1000]] * 2
    values = reading(rows, peak=15e12).scalars()
    assert values["speed/mfu"] == pytest.approx(10)
    assert values["memory/peak_cuda_mib"] == 1000
    assert "MFU 10.0 %, 1000 MiB on the GPU" in describe_speed(values)
    unknown = reading(rows, peak=15e12, flops=None).scalars()
    assert not {"speed/tflops", "speed/mfu"} & unknown.keys()


def test_each_reading_starts_anew_and_steps_add_their_work():
    meter = Meter(N, 1, 3, FLOAT32)
    meter.flops_per_step = 5.0
    meter.step()
    meter.start()
    meter.step()
    meter.flops_per_step = 7.0
    meter.step()
    first, second = meter.read(), meter.read()
    assert (first.images, first.flops) == (2 * N, 12)
    assert (second.images, second.flops) == (0, 0)
    assert first.by_rank.shape == (3, len(PHASES) + 2)
    assert not first.by_rank[[0, 2]].any()
    assert second.seconds > 0


def test_the_peak_of_memory_holds_what_was_touched():
    before = peak_rss()
    held = torch.ones(64 * 2**20 // 4)
    assert peak_rss() >= max(before, held.numel() * 4 / 2**20)
