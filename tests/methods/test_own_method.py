"""A method that lives outside of the package: on the command line, on two ranks, resumed."""

import json
import re
import sys

import pytest
import torch
import yaml

import rebias_dist
from rebias_dist.commands.train import parse_train
from rebias_dist.config.files import validate
from rebias_dist.errors import ConfigError, RebiasError
from rebias_dist.methods.registry import METHODS
from rebias_dist.reporting.command import command_of
from rebias_dist.runs.checkpoint import load_choice
from rebias_dist.train import main
from tests import ROOT
from tests.distributed.ranks import run_ranks
from tests.system.test_train import torchrun, train

PAGE = (ROOT / "docs/methods.md").read_text(encoding="utf-8")


@pytest.fixture
def folder(small_run, tmp_path, monkeypatch):
    """A folder with the method of the page and a small configuration."""
    (code,) = (
        block for block in re.findall(r"```python\n(.*?)```", PAGE, re.S) if "MyLfF" in block
    )
    (tmp_path / "my_lff.py").write_text(code)
    settings = {**small_run, "runs_dir": "runs", "max_steps": 14, "micro_batch": 12}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    return tmp_path


def losses(run) -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "f/loss" in line]


def test_the_method_of_the_page_is_lff_on_two_ranks_and_through_a_stop(folder, monkeypatch):
    config = ["--config", "small.yaml"]
    done = train(*config, "--method", "lff", "--method.q", "0.5", "--name", "own", cwd=folder)
    assert done.returncode == 0, done.stderr
    mine = [*config, "--method", "my_lff:MyLfF", "--method.q", "0.5", "--name", "mine"]
    for steps in ("6", "14"):
        done = torchrun(2, *mine, "--max-steps", steps, cwd=folder)
        assert done.returncode == 0, done.stderr
    pairs = list(zip(losses(folder / "runs/own"), losses(folder / "runs/mine"), strict=True))
    assert len(pairs) == 14
    for own, other in pairs:
        for name in ("f/loss", "g0/loss"):
            assert other[name] == pytest.approx(own[name], rel=1e-9)
    state = load_choice(folder / "runs/mine/checkpoints", "last")["method"]
    assert state["seen"].any()
    assert state["table"].shape == (2, len(state["seen"]))

    # A report or an evaluation of the run does not import what the run names.
    (folder / "my_lff.py").rename(folder / "gone.py")
    monkeypatch.chdir(folder)
    run = rebias_dist.load("runs/mine")
    assert run.config.method.model_dump()["smoothing"] == 0.7
    assert run.predict(torch.zeros(1, 3, 8, 8, dtype=torch.uint8)).shape == (1, 10)
    assert (rebias_dist.results("runs/mine")["method"] == "my_lff:MyLfF").all()
    assert "--method.q 0.5" in command_of(run.config)
    assert "my_lff" not in sys.modules


def test_its_options_are_flags_and_others_are_refused(folder):
    done = train("--method", "my_lff:MyLfF", "--help", cwd=folder)
    assert "Weight of a sample's old loss in the table." in re.sub(r"\s+", " ", done.stdout)
    for flag, value, message in (
        ("--method.q", "7", "method.q: 7: input should be less than or equal to 1"),
        ("--method.lambda_f", "2", "method.lambda_f: my_lff:MyLfF does not use it"),
        ("--method.temperature", "2", "method.temperature: no such key"),
    ):
        done = train("--method", "my_lff:MyLfF", flag, value, "--print-config", cwd=folder)
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_state_that_is_not_kept_is_refused_at_resume(folder, small_run, monkeypatch):
    (folder / "forgetful.py").write_text(
        "import torch\n"
        "from rebias_dist.methods.base import Method\n"
        "from rebias_dist.methods.registry import Facts\n\n\n"
        "class Forgetful(Method):\n"
        "    facts = Facts(has_g=False)\n"
        "    n = 0\n\n"
        "    def state(self):\n"
        "        return {'n': torch.tensor(self.n)}\n\n"
        "    def after_step(self, step, engine):\n"
        "        self.n += 1\n"
    )
    monkeypatch.syspath_prepend(folder)
    values = {**small_run, "name": "a", "method": {"name": "forgetful:Forgetful"}}
    main(validate({**values, "max_steps": 3}))
    with pytest.raises(ConfigError, match="Forgetful did not keep its state 'n'"):
        main(validate({**values, "max_steps": 5}))


def test_the_pages_command_works_over_the_default_configuration(folder):
    done = train("--method", "my_lff:MyLfF", "--method.q", "0.5", "--print-config", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert yaml.safe_load(done.stdout)["method"] == {
        "name": "my_lff:MyLfF",
        "q": 0.5,
        "smoothing": 0.7,
    }
    for name in ("no_such_module:X", "broken:X"):
        (folder / "broken.py").write_text("this is no Python")
        done = train("--method", name, "--dry-run", cwd=folder)
        assert done.returncode == 2
        assert f"method.name: '{name}' cannot be imported" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_a_flag_with_another_method_drops_what_is_for_the_files_method():
    for config, method in (("biascon", "vanilla"), ("learned_mixin", "end"), ("demo", "softcon")):
        words = ["--config", f"biased_mnist/{config}", "--method", method]
        words += ["--method.g_pretrain_epochs", "1"] if METHODS[method].fixed_g else []
        found = parse_train(words).config
        assert (found.method.name, found.data.views) == (method, 1)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:Method", "method.name: 'no_such_module:Method' cannot be imported"),
        ("json:JSONEncoder", "must be a subclass of rebias_dist.methods.base.Method"),
        ("json:no_such_name", "cannot be imported"),
        ("lfff", "did you mean 'lff'?"),
    ],
)
def test_what_is_no_method_is_one_line(name, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        validate({"method": {"name": name}})


PARTS = {
    "a wrong shape": ("def f_terms(self, f, gs, batch, heads): return {'x': f.logits.sum()}", 2),
    "no name": ("def f_terms(self, f, gs, batch, heads): return f.logits.sum(1)", 2),
    "not finite": ("def f_terms(self, f, gs, batch, heads): return {'x': f.logits[:, 0] / 0}", 3),
    "weights of a wrong shape": ("observes = True\n"
        "    def values(self, f, gs, batch): return {'x': f.logits[:, 0]}\n"
        "    def observe(self, values, batch): return values['x'][:3]", 2),
    "a value that is not per sample": ("observes = True\n"
        "    def values(self, f, gs, batch): return {'x': f.logits.sum()}\n"
        "    def observe(self, values, batch): return None", 2),
    "no observe": ("observes = True", 2),
    "terms that do not depend on the network": (
        "def f_terms(self, f, gs, batch, heads): return {'x': batch.labels.double()}", 2),
    "a name that is taken": (
        "def f_terms(self, f, gs, batch, heads): return {'loss': f.logits[:, 0]}", 2),
    "a coupled term that is no scalar": ("def f_coupled(self, f, gs, batch):\n"
        "        from rebias_dist.methods.base import Term\n"
        "        from rebias_dist.objectives import coupled\n"
        "        return [Term('x', 1.0, coupled(lambda x: x, f))]", 2),
    "coupled terms that are no list": ("def f_coupled(self, f, gs, batch): return None", 2),
    "a prepare that fails": ("def prepare(self, training, networks): raise KeyError('x')", 2),
    "a state that is no dict of tensors": ("def state(self): return {'n': 0}", 2),
    "a constructor without the base's": ("def __init__(self, config): pass", 2),
    "a constructor that fails": ("def __init__(self, config): raise RuntimeError('no luck')", 2),
}  # fmt: skip


def _fail_in_turn(values: dict, folder: str) -> list[tuple[int, str]]:
    sys.path.insert(0, folder)
    found = []
    for number in range(len(PARTS)):
        method = {"name": f"faulty:Faulty{number}"}
        try:
            main(validate({**values, "name": f"faulty{number}", "method": method}))
        except RebiasError as error:
            found.append((error.exit_code, str(error)))
    return found


def test_faulty_methods_are_one_line_on_all_ranks(folder, small_run):
    text = (
        "from rebias_dist.methods.base import Method\n"
        "from rebias_dist.methods.registry import Facts\n"
    )
    for number, (body, _) in enumerate(PARTS.values()):
        text += f"class Faulty{number}(Method):\n    facts = Facts(has_g=False)\n    {body}\n"
    (folder / "faulty.py").write_text(text)
    first, second = run_ranks(2, _fail_in_turn, small_run, str(folder), timeout=1000)
    assert first == second
    for number, ((part, (_, code)), (found, line)) in enumerate(
        zip(PARTS.items(), first, strict=True)
    ):
        print(f"{part}: {line}")
        assert found == code
        assert len(line.splitlines()) == 1
        assert f"Faulty{number}" in line or code == 3
