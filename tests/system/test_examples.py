"""The examples run as their first lines say."""

import re

import pytest

from tests import ROOT
from tests.system.test_train import torchrun

EXAMPLES = ROOT / "examples"


def losses(name, ranks, words, folder):
    done = torchrun(ranks, str(EXAMPLES / name), cwd=folder, module=None)
    assert done.returncode == 0, done.stderr
    found = [float(value) for value in re.findall(rf"{words} loss (\d+\.\d+)", done.stdout)]
    assert len(found) == 3
    return found


@pytest.mark.parametrize("script", sorted(EXAMPLES.glob("*_loop.py")), ids=lambda path: path.name)
def test_a_loop_has_under_sixty_lines(script):
    assert len(script.read_text().splitlines()) < 60


def test_hsic_in_a_loop_learns_on_two_ranks(tmp_path):
    found = losses("hsic_loop.py", 2, "f", tmp_path)
    assert found[-1] < found[0]


def test_the_contrastive_loss_of_a_loop_is_the_same_on_any_number_of_ranks(tmp_path):
    """Three ranks have 22, 21 and 21 of the 64 rows."""
    alone = losses("own_loop.py", 1, "contrastive", tmp_path)
    assert alone[-1] < alone[0]
    assert losses("own_loop.py", 3, "contrastive", tmp_path) == pytest.approx(alone, rel=1e-4)
