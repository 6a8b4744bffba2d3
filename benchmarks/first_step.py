"""Train the demo until its first step is taken, and print the seconds of each stage as JSON.

    python -m benchmarks.first_step BEGAN

benchmarks.startup runs this in a process of its own; BEGAN is time.time() at the start of that
process. A stage begins with the first call of a certain function.
"""

import json
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any

FINAL = "first step"


class Marks:
    """The time at which each stage began."""

    def __init__(self, began: float) -> None:
        self._times = [("Python", began)]

    def begin(self, stage: str) -> None:
        """Record the time at which a stage begins; later calls do nothing."""
        if stage not in dict(self._times):
            self._times.append((stage, time.time()))

    def opens(self, stage: str, owner: Any, function: str) -> None:
        """Replace a function so that its first call begins a stage."""
        original: Callable[..., Any] = getattr(owner, function)

        def marked(*arguments: Any, **keywords: Any) -> Any:
            self.begin(stage)
            result = original(*arguments, **keywords)
            if stage == FINAL:
                self.begin("end")
                raise SystemExit
            return result

        setattr(owner, function, marked)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage."""
        ends = [moment for _, moment in self._times[1:]]
        return {stage: end - at for (stage, at), end in zip(self._times, ends, strict=False)}


def main(began: float) -> None:
    """Train until the first step, and print the seconds."""
    marks = Marks(began)
    for module, why in (("torch", ""), ("torch._dynamo", ", which torch's optimizers need")):
        marks.begin(f"import {module}{why}")
        import_module(module)
    marks.begin("other imports, process group")
    from rebias_dist import assemble, train
    from rebias_dist.config.files import DEFAULT_CONFIG, read_config_file, validate
    from rebias_dist.runs import resumption
    from rebias_dist.step.minimax import Minimax

    marks.opens("data", assemble, "data_root")
    marks.opens("networks", assemble, "build_networks")
    marks.opens("run folder, records, first batch", resumption, "resume_run")
    marks.opens(FINAL, Minimax, "step")
    try:
        train.main(validate(read_config_file(DEFAULT_CONFIG)))
    finally:
        print(json.dumps(marks.seconds()))


if __name__ == "__main__":
    main(float(sys.argv[1]))
