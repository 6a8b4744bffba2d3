"""One rank under the supervisor: it dies with torchrun and writes its exit code to a file.

torchrun starts it as ``python -m launch.local.rank FOLDER training-arguments``.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from data_shards.system.processes import die_with_parent
from launch.local.children import PARENT
from launch.record.exit_codes import train_and_note


def main() -> None:
    """Train, bound to torchrun."""
    die_with_parent(int(os.environ[PARENT]))
    train_and_note(sys.argv[2:], Path(sys.argv[1]) / os.environ["RANK"])


if __name__ == "__main__":
    main()
