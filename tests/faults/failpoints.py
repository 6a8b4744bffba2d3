"""Places at which a run is made to fail: patches from outside, in this process or another's.

The product knows nothing of them. A test installs them in its own process, or writes a
``sitecustomize.py`` (:func:`plant`) that installs them in the processes that it starts.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests import ROOT

TRAINING = ("before backward", "between g and f", "after the optimizer")
WRITING = ("while writing", "before rename", "after rename")


class Killed(BaseException):
    """Stands for the end of the process: nothing in the product may catch it for good."""


@contextmanager
def failpoint(point: str, step: int, action: Callable[[], object]) -> Iterator[None]:
    """Run ``action`` when a run comes to ``point`` at ``step``, the first time.

    Steps are counted as a checkpoint counts them: the training points of step k lie in the
    step that makes it k, the writing points in the saving of checkpoint k.
    """
    from rebias_dist.runs import checkpoint
    from rebias_dist.step.minimax import Minimax
    from rebias_dist.step.player import Player

    now = {"step": 0, "saved": 0, "armed": True}

    def reached(place: str, count: str = "step") -> None:
        if now["armed"] and place == point and now[count] == step:
            now["armed"] = False
            action()

    take = Minimax.step
    backward, update_f, take_step = Player.backward, Minimax._update_f, Player.take_step
    save, sync, hashing = checkpoint.save, checkpoint.sync_folder, checkpoint._Hashing.__init__

    def stepped(self, batches, number, radii):
        now["step"] = number + 1
        reached("start of the step")
        return take(self, batches, number, radii)

    def before_backward(self, loss):
        reached("before backward")
        return backward(self, loss)

    def between(self, *arguments):
        reached("between g and f")
        return update_f(self, *arguments)

    def after_optimizer(self, micro_batches):
        norm = take_step(self, micro_batches)
        if self.name == "f":
            reached("after the optimizer")
        return norm

    def saving(folder, number, state, **keywords):
        now["saved"] = number
        return save(folder, number, state, **keywords)

    class Stopping:
        """A file that ends the process after its first 10,000 bytes."""

        def __init__(self, file):
            self.file, self.bytes = file, 0

        def write(self, content):
            self.bytes += len(content)
            done = self.file.write(content)
            if self.bytes > 10_000:
                self.file.flush()
                reached("while writing", "saved")
            return done

        def flush(self):
            self.file.flush()

    def opening(self, file):
        hashing(self, Stopping(file))

    def syncing(folder):
        if not folder.name.startswith(".step-"):
            reached("after rename", "saved")
        sync(folder)
        if folder.name.startswith(".step-"):
            reached("before rename", "saved")

    patched = [
        (Minimax, "step", stepped, take),
        (Player, "backward", before_backward, backward),
        (Minimax, "_update_f", between, update_f),
        (Player, "take_step", after_optimizer, take_step),
        (checkpoint, "save", saving, save),
        (checkpoint._Hashing, "__init__", opening, hashing),
        (checkpoint, "sync_folder", syncing, sync),
    ]
    for owner, name, new, _ in patched:
        setattr(owner, name, new)
    try:
        yield
    finally:
        for owner, name, _, old in patched:
            setattr(owner, name, old)


def _raise(error: Exception) -> None:
    raise error


def _not_a_number() -> None:
    """Make this rank's next forward pass return NaN."""
    from rebias_dist.step.player import Player

    forward = Player.forward

    def broken(self, images, *, gradient):
        Player.forward = forward
        output = forward(self, images, gradient=gradient)
        return output._replace(
            logits=output.logits * float("nan"), features=output.features * float("nan")
        )

    Player.forward = broken


def _damage() -> None:
    """Flip a bit in each image of the run's training shards but the first ones."""
    for shard in Path(json.loads(os.environ["FAILPOINT"])["data"]).glob("train/*.tar"):
        content = bytearray(shard.read_bytes())
        starts = [i for i in range(len(content)) if content.startswith(b"IDAT", i)]
        for start in starts[40:]:
            content[start + 8] ^= 1
        with shard.open("r+b") as file:  # in place, under whoever has it open
            file.write(content)


def _await_hangup() -> None:
    """Stay in the step until the terminal is closed."""
    while os.isatty(2):
        time.sleep(0.05)


ACTIONS: dict[str, Callable[[], object]] = {
    "kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "stop": lambda: os.kill(os.getpid(), signal.SIGSTOP),
    "terminate": lambda: os.kill(os.getpid(), signal.SIGTERM),
    "exit": lambda: os._exit(7),
    "raise": lambda: _raise(ZeroDivisionError("a mistake in somebody's code")),
    "memory": lambda: _raise(MemoryError()),
    "nan": _not_a_number,
    "damage": _damage,
    "hangup": _await_hangup,
}

_SITE = """\
import json, os, time
plan = json.loads(os.environ["FAILPOINT"])
if plan.get("clock"):
    true_time = time.time
    time.time = lambda: true_time() + plan["clock"]
if os.environ.get("RANK", "0") == str(plan.get("rank")) and not os.path.exists(plan["once"]):
    from tests.faults.failpoints import install
    install(plan)
"""


_installed = ExitStack()


def install(plan: dict) -> None:
    """Install a planned failpoint in this process, for good."""

    def act() -> None:
        Path(plan["once"]).touch()
        ACTIONS[plan["action"]]()

    _installed.enter_context(failpoint(plan["point"], plan["step"], act))


def plant(folder: Path, **plan: object) -> dict[str, str]:
    """Return the environment in which processes have a failpoint that works once.

    Args:
        folder: for the ``sitecustomize.py`` and the note that it has worked; not shared.
        plan: ``rank``, ``point``, ``step``, ``action``; ``clock``, in seconds, sets it wrong.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_SITE)
    root = ROOT
    plan["once"] = str(folder / "has worked")
    return {"PYTHONPATH": f"{folder}:{root}", "FAILPOINT": json.dumps(plan)}
