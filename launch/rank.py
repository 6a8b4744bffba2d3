"""One rank under the supervisor: it dies with torchrun, and its exit code is written down.

Started by torchrun as ``python -m launch.rank FOLDER training-arguments``. torchrun returns 1
whatever its ranks return. So each rank leaves its code in ``FOLDER/<rank>``; a rank that was
killed leaves none.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from launch.agent import AGENT_PID
from rebias_dist import train
from rebias_dist.runtime.parent import die_with_parent


def main() -> None:
    """Train, as ``python -m rebias_dist.train`` does."""
    die_with_parent(int(os.environ[AGENT_PID]))
    path = Path(sys.argv[1]) / os.environ["RANK"]

    def note(code: int) -> None:
        temporary = path.with_suffix(".tmp")
        temporary.write_text(f"{code}\n", encoding="ascii")
        temporary.replace(path)

    try:
        train.cli(sys.argv[2:], note)
    except SystemExit as leaving:
        note(leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None))
        raise


if __name__ == "__main__":
    main()
