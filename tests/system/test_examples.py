"""The examples run as their first lines say."""

import re

from tests import ROOT
from tests.system.test_train import torchrun

EXAMPLES = ROOT / "examples"


def test_own_loop_learns_on_two_ranks_in_under_sixty_lines(tmp_path):
    script = EXAMPLES / "own_loop.py"
    assert len(script.read_text().splitlines()) < 60
    done = torchrun(2, str(script), cwd=tmp_path, module=None)
    assert done.returncode == 0, done.stderr
    losses = [float(value) for value in re.findall(r"f loss (\S+),", done.stdout)]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
