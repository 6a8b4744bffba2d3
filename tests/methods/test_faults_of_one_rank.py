"""What code of the user's does wrong on one micro-batch: all ranks end, with the same line."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from torch import nn

from rebias_dist.config.files import validate
from rebias_dist.errors import RebiasError
from rebias_dist.train import main
from tests import ROOT
from tests.distributed.ranks import run_ranks
from tests.system.test_train import torchrun

HEAD = """
from torch.nn.functional import cross_entropy
from rebias_dist.errors import ConfigError
from rebias_dist.methods.base import Method, Term, wide
from rebias_dist.methods.registry import Facts
from rebias_dist.objectives import coupled_by_rows


def odd(batch):  # true for one micro-batch of an epoch
    return bool((batch.samples == 100).any())


def losses(f, batch):
    return cross_entropy(wide(f.logits), batch.labels, reduction="none")
"""
TERMS = "def f_terms(self, f, gs, batch, heads):\n        "
SEES = "observes = True\n    def observe(self, values, batch): return None\n    "
ROWS = (
    "def f_coupled(self, f, gs, batch):\n"
    "        def of_rows(own, all):\n"
    "            if (batch.samples[own.index] == 100).any(): raise ValueError('no such pair')\n"
    "            return own.features[0].sum()\n"
    "        return [Term('x', 1.0, coupled_by_rows(of_rows, f, check={}))]"
)
METHODS = {
    "a row is missing": (
        TERMS + "return {'ce': losses(f, batch)[odd(batch):]}",
        "f_terms() returned 'ce' as (11,); it must be a tensor with one value for each of the 12",
    ),
    "a constant": (
        TERMS + "loss = losses(f, batch)\n"
        "        return {'ce': loss.detach() if odd(batch) else loss}",
        "the objective of f does not depend on its output",
    ),
    "an error of its own": (
        TERMS + "if odd(batch): raise ConfigError('method.name: no weight for this sample')\n"
        "        return {'ce': losses(f, batch)}",
        "no weight for this sample",
    ),
    "a value that is not per sample": (
        SEES + "def values(self, f, gs, batch): return {'x': f.logits[odd(batch):, 0]}",
        "values() returned 'x' as (11,)",
    ),
    "other names": (
        SEES + "def values(self, f, gs, batch): return {'xy'[odd(batch)]: f.logits[:, 0]}",
        "it must return the same names for each micro-batch",
    ),
    "a function of rows": (ROWS.format(False), "f_coupled(): no such pair"),
    "a function of rows, checked": (ROWS.format(True), "f_coupled(): no such pair"),
}


class Moody(nn.Module):
    """Loses the logits of a sample where a micro-batch has a bright image."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.layer, self.fc = nn.Linear(3, 4), nn.Linear(4, num_classes)

    def forward(self, images):
        features = self.layer(images.mean((2, 3)))
        # One micro-batch in ten; neither the trial pass nor an evaluation.
        lost = self.training and len(images) == 12 and images.mean((1, 2, 3)).max() > 0.485
        return self.fc(features)[int(lost) :], features


def _outcomes(cases: list[dict], folder: str) -> list[tuple[int, str]]:
    sys.path.insert(0, folder)
    found = []
    for values in cases:
        try:
            main(validate(values))
            found.append((0, ""))
        except RebiasError as error:
            found.append((error.exit_code, str(error)))
    return found


@pytest.fixture
def values(small_run, tmp_path) -> dict:
    """The settings of a run, and a module with the faulty methods."""
    text = HEAD
    for number, (body, _) in enumerate(METHODS.values()):
        text += f"\n\nclass Faulty{number}(Method):\n    facts = Facts(has_g=False)\n    {body}\n"
    (tmp_path / "one_rank.py").write_text(text)
    return {**small_run, "evaluate": {"final": "none"}, "epochs": 1}


def test_all_ranks_end_with_the_line_of_the_one(values, tmp_path):
    runs = [{"method": {"name": f"one_rank:Faulty{number}"}} for number in range(len(METHODS))]
    network = {"name": "tests.methods.test_faults_of_one_rank:Moody"}
    runs += [{"method": {"name": name}, "f": network} for name in ("vanilla", "rebias")]
    # Two ranks have two micro-batches each, or one.
    cases = [
        {**values, **run, "global_batch": size, "name": f"{number}-{size}"}
        for size in (48, 24)
        for number, run in enumerate(runs)
    ]
    alone = _outcomes([{**case, "name": f"{case['name']}-alone"} for case in cases], str(tmp_path))
    first, second = run_ranks(2, _outcomes, cases, str(tmp_path))
    assert first == second
    messages = [message for _, message in METHODS.values()] + ["do not have one row"] * 2
    for of_two, of_one, message in zip(first, alone, messages * 2, strict=True):
        print(of_two)
        for code, line in (of_two, of_one):
            assert code == 2
            assert message in line
            assert len(line.splitlines()) == 1
        assert of_two[1].startswith("rank ") or "on one rank and" in of_two[1]


def test_the_line_is_printed_once_and_the_exit_code_says_that_a_retry_cannot_help(
    values, tmp_path, monkeypatch
):
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    (tmp_path / "small.yaml").write_text(
        yaml.safe_dump({**values, "method": {"name": "one_rank:Faulty0"}})
    )
    done = torchrun(2, "--config", "small.yaml", "--name", "a", cwd=tmp_path)
    lines = [line for line in done.stderr.splitlines() if "f_terms() returned" in line]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("rebias-train: error: rank ")
    assert "is lost" not in done.stderr
    assert "exitcode:2(" in done.stderr.replace(" ", ""), done.stderr
    assert json.loads((tmp_path / "runs/a/state.json").read_text())["status"] == "failed"


SOMETIMES = """

class Sometimes(Method):
    facts = Facts(has_g=False)

    def f_terms(self, f, gs, batch, heads):
        found = {"ce": losses(f, batch)}
        # In the first steps, and of some micro-batches only.
        if batch.step < 4 and int(batch.samples[0]) % 3 == 0:
            found["size"] = 0.1 * f.features.square().mean(1)
        return found
"""


def test_a_term_that_few_micro_batches_have_counts_alike_on_any_layout(values, tmp_path):
    (tmp_path / "sometimes.py").write_text(HEAD + SOMETIMES)
    values |= {"method": {"name": "sometimes:Sometimes"}, "log": {"to": [], "every_steps": 1}}
    (code,) = _outcomes([{**values, "name": "alone"}], str(tmp_path))
    assert code == (0, "")
    assert run_ranks(2, _outcomes, [{**values, "name": "two"}], str(tmp_path)) == [[code]] * 2
    alone, two = (
        [
            {tag: value for tag, value in json.loads(line).items() if tag.startswith("f/")}
            for line in (Path(values["runs_dir"]) / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("alone", "two")
    )
    assert 0 < sum("f/size" in line for line in alone) <= 4
    for one, other in zip(alone, two, strict=True):
        assert other == pytest.approx(one, rel=1e-9)
