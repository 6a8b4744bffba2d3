"""How long does training wait for a checkpoint, and how long does the whole checkpoint take?

    python -m benchmarks.checkpoint [--quick] [--folder DIR]

The state is that of ResNet-18 and BagNet-18 with Adam. Our program copies it and writes it beside
the training. It is compared, in turn and on the same disk, with saving in the foreground with the
same guarantees (hashed, synced, renamed), and with a plain torch.save that has none of them. The
lower limit of the wait is one copy of the state in memory.
"""

import argparse
import copy
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Benchmark, in_turn, ratio, share
from rebias_dist import models
from rebias_dist.config.schema import OptimizerConfig
from rebias_dist.runs import checkpoint
from rebias_dist.runs.saver import Saver
from rebias_dist.step.player import make_optimizer


def state_of(names: list[str], **options: Any) -> dict[str, Any]:
    """Return the state of networks whose optimizers have taken a step."""
    players = {}
    for name in names:
        network = models.build(name, num_classes=9, **options)
        parameters = [p for p in network.parameters() if p.requires_grad]
        optimizer = make_optimizer(parameters, OptimizerConfig(name="adam"))
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        players[name] = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    return {"step": 1, "players": players}


def tensors(state: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested dictionaries and lists."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for part in state.values() if isinstance(state, dict) else state:
            yield from tensors(part)


def main() -> None:
    def folder(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--folder", type=Path, help="on the disk to measure (default: /tmp)")

    run = Benchmark("checkpoint", __doc__, folder)
    quick = run.options.quick
    names = ["simple_convnet"] if quick else ["resnet18", "bagnet18"]
    state = state_of(names)
    table = run.table(
        "Milliseconds, median (smallest to largest)",
        *("networks", "MB", "training waits", "writing beside it", "foreground", "torch.save"),
        *("copy alone", "load", "foreground / waits", "copy's share of the wait"),
        baselines=("foreground", "torch.save", "copy alone"),
    )  # fmt: skip
    with tempfile.TemporaryDirectory(dir=run.options.folder) as place:
        parts = list(tensors(state))
        saver = Saver(Path(place) / "ours", keep=2)

        def begin() -> None:
            saver.begin(1, state, None)

        def finish() -> None:
            saver.wait()  # so that the next save finds the disk idle, as after minutes of training
            fault = saver.fault()
            if fault is not None:
                raise fault

        foreground = partial(checkpoint.save, Path(place) / "foreground", 1, state, keep=2)
        programs = {
            "begin": begin,
            "finish": finish,
            "foreground": foreground,
            "plain": partial(torch.save, state, Path(place) / "plain.pt"),
            "copy": partial(torch._foreach_copy_, list(tensors(copy.deepcopy(state))), parts),
            "load": partial(checkpoint.load, Path(place) / "ours", 1),
        }
        times = in_turn(programs, least=3 if quick else 7, seconds=0.0)
        saver.close()
        size = (Path(place) / "plain.pt").stat().st_size
        table.add(
            " + ".join(names), f"{size / 1e6:.1f}", times["begin"], times["finish"],
            times["foreground"], times["plain"], times["copy"], times["load"],
            ratio(times["foreground"], times["begin"]), share(times["copy"], times["begin"]),
        )  # fmt: skip
    run.record()


if __name__ == "__main__":
    main()
