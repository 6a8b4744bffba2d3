"""The configuration: every fault is one line that names the key, every answer reads back."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from rebias_dist.commands.parser import run_cli
from rebias_dist.commands.train import parse_train
from rebias_dist.config.files import (
    configs_folder,
    list_configs,
    parse_yaml,
    read_config_file,
    section_of,
    to_yaml,
    validate,
)
from rebias_dist.config.schema import Config, Section
from rebias_dist.errors import ConfigError
from rebias_dist.methods.registry import METHODS
from tests import ROOT

SHIPPED = [name for name, _ in list_configs()]


def run(*argv: str) -> tuple[int, str, str]:
    """Parse a command line as ``rebias-train`` does; return exit code, stdout and stderr."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as stopped,
    ):
        run_cli("rebias-train", lambda: 0 if parse_train(argv) else 1)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, out.getvalue(), err.getvalue()


def refused(*argv: str) -> str:
    """Return the one line with which a command line is refused."""
    code, out, err = run(*argv)
    assert (code, out) == (2, "")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    return err


def written(folder: Path, text: str) -> str:
    path = folder / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def all_fields(section: type[Section] = Config, prefix: str = "") -> list[tuple[str, FieldInfo]]:
    """Return every field by its dotted name; the entries of a list by their first."""
    found = []
    for name, field in section.model_fields.items():
        found.append((prefix + name, field))
        inner = section_of(field.annotation)
        if inner is not None:
            entry = "0." if str(field.annotation).startswith("list") else ""
            found += all_fields(inner, f"{prefix}{name}.{entry}")  # type: ignore[arg-type]
    return found


FAULTS = {
    "unknown key": ("optimiser: {lr: 1.0}", ["optimiser", "did you mean 'optimizer'"]),
    "unknown key inside": ("optimizer: {lrr: 1.0}", ["optimizer.lrr", "did you mean 'lr'"]),
    "unknown key of g": ("g: [{kernel: 1}]", ["g.0.kernel", "no such key"]),
    "duplicate key": ("epochs: 1\nepochs: 2", ["line 2", "'epochs'", "twice"]),
    "duplicate inside": ("data:\n  rho: 1.0\n  rho: 0.5", ["line 3", "'rho'", "twice"]),
    "text for a number": ("optimizer: {lr: fast}", ["optimizer.lr", "'fast'"]),
    "text for an integer": ("epochs: '3'", ["epochs", "'3'"]),
    "fraction for an integer": ("epochs: 2.5", ["epochs", "2.5"]),
    "boolean for an integer": ("epochs: yes", ["epochs", "True"]),
    "integer for a boolean": ("deterministic: 1", ["deterministic", "1"]),
    "NaN": ("optimizer: {lr: .nan}", ["optimizer.lr", "nan", "finite"]),
    "infinite": ("optimizer: {lr: .inf}", ["optimizer.lr", "inf", "finite"]),
    "NaN weight": ("method: {lambda_f: .nan}", ["method.lambda_f", "nan"]),
    "NaN radius": ("radius: {f: .nan}", ["radius.f", "nan"]),
    "negative rate": ("optimizer: {lr: -0.1}", ["optimizer.lr", "-0.1", "greater than 0"]),
    "zero rate": ("optimizer: {lr: 0.0}", ["optimizer.lr", "0.0", "greater than 0"]),
    "negative decay": ("optimizer: {weight_decay: -1e-4}", ["optimizer.weight_decay"]),
    "one beta": ("optimizer: {betas: [0.9]}", ["optimizer.betas", "at least 2 items"]),
    "beta of one": ("optimizer: {betas: [0.9, 1.0]}", ["optimizer.betas.1", "less than 1"]),
    "zero eps": ("optimizer: {eps: 0.0}", ["optimizer.eps", "greater than 0"]),
    "unit of a schedule": ("scheduler: {unit: steps}", ["scheduler.unit", "did you mean 'step'"]),
    "hue beyond the circle": ("data: {augment: {hue: 0.6}}", ["data.augment.hue", "0.6"]),
    "three views": ("data: {views: 3}", ["data.views", "3"]),
    "equal views": ("data: {views: 2}", ["data.views", "data.augment"]),
    "unknown sampling": ("data: {sampling: balanced}", ["data.sampling", "class_balanced"]),
    "zero radius": ("radius: {f: 0.0}", ["radius.f: 0.0: input should be greater than 0"]),
    "radius by another name": (
        "radius: {f: mean}",
        ["'mean': input should be 'median' or 'dimension' or a valid number; did you mean"],
    ),
    "selection above one": (
        "data: {selection: 1.5}",
        ["data.selection: 1.5: input should be less than 1"],
    ),
    "weights by number": ("f: {pretrained: 5}", ["f.pretrained: 5", "boolean or a valid string"]),
    "zero epochs": ("epochs: 0", ["epochs", "0"]),
    "rho above one": ("data: {rho: 1.5}", ["data.rho", "1.5"]),
    "unknown method": ("method: {name: rebais}", ["method.name", "'rebais'", "'rebias'"]),
    "two methods": ("method: {name: [lff, jtt]}", ["method.name", "['lff', 'jtt']", "string"]),
    "method as a mapping": ("method: {name: {a: B}}", ["method.name", "{'a': 'B'}", "string"]),
    "unknown precision": ("precision: float23", ["precision", "'float32'"]),
    "b does not divide N": (
        "global_batch: 100\nmicro_batch: 32",
        ["micro_batch", "32", "100", "25"],
    ),
    "N too small for HSIC": ("global_batch: 3\nmicro_batch: 3", ["global_batch", "3", "4"]),
    "learned_mixin without pretraining": (
        "method: {name: learned_mixin}",
        ["method.g_pretrain_epochs", "1 or more"],
    ),
    "vanilla with g": (
        "method: {name: vanilla, g_pretrain_epochs: 1}",
        ["method.g_pretrain_epochs"],
    ),
    "biased with f": ("method: {name: biased, f_pretrain_epochs: 1}", ["method.f_pretrain_epochs"]),
    "g without objective": (
        "method: {name: rubi, update_g_cls: false}",
        ["method.update_g_cls", "rubi"],
    ),
    "g without weight": ("method: {update_g_cls: false, lambda_g: 0}", ["method.lambda_g"]),
    "no shards": ("data: {dataset: imagenet9}", ["data.root", "imagenet9"]),
    "monitor without split": (
        "data: {selection: none}\nevaluate: {monitor: val}",
        ["evaluate.monitor", "'val'", "unbiased"],
    ),
    "no g": ("g: []", ["g", "at least 1"]),
    "no test split": ("data: {test_splits: []}", ["data.test_splits"]),
    "name of a folder": ("name: ../up", ["name", "'../up'"]),
    "alias": ("f: &a {kernel_size: 3}\ng: [*a]", ["line 2", "alias"]),
    "alias bomb": ("a: &a [1]\nb: &b [*a, *a]\nc: [*b, *b]", ["line 2", "alias"]),
    "python object": ("name: !!python/object/apply:os.getcwd []", ["line 1", "tag"]),
    "not a mapping": ("- 1\n- 2", ["mapping"]),
    "not YAML": ("epochs: [1", ["line"]),
    "key that is no name": ("1: 2", ["line 1", "1"]),
    "control character": ("name: \x00", ["mine.yaml"]),
    "nested without end": ("name: " + "[" * 20_000, ["mine.yaml"]),
    "section that is a text": ("optimizer: adam", ["optimizer", "'adam'"]),
    "section that is empty": ("optimizer:", ["optimizer"]),
}


@pytest.mark.parametrize(("text", "named"), FAULTS.values(), ids=FAULTS.keys())
def test_a_fault_in_a_file_is_one_line_that_names_it(tmp_path, text, named):
    path = written(tmp_path, text)
    line = refused("--config", path)
    assert path in line
    for part in named:
        assert part in line
    assert len(line) < 500


FLAG_FAULTS = {
    "unknown flag": (["--optimizer.lrr", "1"], ["--optimizer.lrr", "did you mean --optimizer.lr"]),
    "last part of a flag": (["--lr", "1"], ["--lr", "did you mean --optimizer.lr"]),
    "text for a number": (["--optimizer.lr", "fast"], ["optimizer.lr", "'fast'"]),
    "NaN": (["--optimizer.lr", ".nan"], ["optimizer.lr", "nan"]),
    "negative": (["--optimizer.lr", "-1"], ["optimizer.lr", "-1"]),
    "zero": (["--optimizer.lr", "0"], ["optimizer.lr", "0"]),
    "b does not divide N": (["--micro-batch", "7"], ["micro_batch", "7", "64"]),
    "N too small": (["--global-batch", "3", "--micro-batch", "3"], ["global_batch", "3"]),
    "unknown method": (["--method", "rebais"], ["method.name", "did you mean 'rebias'"]),
    "two methods": (["--method", "[lff, jtt]"], ["method.name", "'[lff, jtt]' is no method"]),
    "blank in a method": (["--method", "mine: Mine"], ["'mine: Mine'", "as package.module:Class"]),
    "method without a class": (["--method", "mine:"], ["'mine:'", "as package.module:Class"]),
    "colon as a method": (["--method", ":"], ["':'", "as package.module:Class"]),
    "negative radius": (["--radius.f", "-1"], ["radius.f: -1: input should be greater than 0"]),
    "alias": (["--data.test_splits", "[&a x, *a]"], ["--data.test_splits", "alias"]),
    "not YAML": (["--data.test_splits", "[a"], ["--data.test_splits"]),
    "no value": (["--seed"], ["--seed"]),
    "a stray word": (["rebias"], ["rebias"]),
    "unknown configuration": (
        ["--config", "biased_mnist/rebais"],
        ["biased_mnist/rebais", "did you mean 'biased_mnist/rebias'"],
    ),
    "no configuration": (["--config"], ["--config"]),
    "entry of g that is not there": (["--g.7.width", "1"], ["--g.7.width"]),
}


@pytest.mark.parametrize(("argv", "named"), FLAG_FAULTS.values(), ids=FLAG_FAULTS.keys())
def test_a_fault_in_a_flag_is_one_line_that_names_it(argv, named):
    line = refused(*argv)
    for part in named:
        assert part in line


def test_an_unreadable_file_is_one_line(tmp_path):
    (tmp_path / "latin.yaml").write_bytes("name: é".encode("latin-1"))
    assert "latin.yaml" in refused("--config", str(tmp_path / "latin.yaml"))
    assert str(tmp_path) in refused("--config", str(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_a_forbidden_file_is_one_line(tmp_path):
    path = Path(written(tmp_path, "epochs: 1"))
    path.chmod(0)
    assert str(path) in refused("--config", str(path))


def test_shipped_names_do_not_leave_their_folder(tmp_path):
    outside = Path(os.path.relpath(written(tmp_path, "epochs: 1"), configs_folder()))
    assert "no shipped configuration" in refused("--config", str(outside.with_suffix("")))


def test_numbers_without_a_dot_are_numbers(tmp_path):
    values = parse_yaml("[1e-3, 1E3, -2e+5, 1.5e-3, 1e, e3, '1e-3', 0x1e3]", "here")
    assert values == [0.001, 1000.0, -200000.0, 0.0015, "1e", "e3", "1e-3", 0x1E3]
    path = written(tmp_path, "optimizer: {lr: 1e-3}")
    assert parse_train(["--config", path]).config.optimizer.lr == 0.001
    assert parse_train(["--optimizer.lr", "2e-4"]).config.optimizer.lr == 0.0002


def test_a_flag_overrides_one_field_and_leaves_the_others(tmp_path):
    path = written(tmp_path, "optimizer: {lr: 0.5, momentum: 0.1}\ng: [{width: 2.0}, {width: 3.0}]")
    config = parse_train(["--config", path, "--optimizer.lr=0.25", "--g.1.width", "4"]).config
    assert (config.optimizer.lr, config.optimizer.momentum) == (0.25, 0.1)
    assert [g.width for g in config.g] == [2.0, 4.0]


def test_a_tilde_in_a_path_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    written(
        tmp_path,
        "runs_dir: ~/runs\n"
        "data: {dataset: pets, root: ~/shards, test_splits: [val], other_tests: {a: ~/a, b: b~}}\n",
    )
    config = parse_train(["--config=~/mine.yaml"]).config
    assert config.runs_dir == f"{tmp_path}/runs"
    assert config.data.root == f"{tmp_path}/shards"
    assert config.data.other_tests == {"a": f"{tmp_path}/a", "b": "b~"}
    assert config == parse_train(["--config=~/mine.yaml", "--data.root=~/shards"]).config
    assert parse_train(["--data.source=~/mnist"]).config.data.source == f"{tmp_path}/mnist"
    assert parse_train(["--runs-dir=~"]).config.runs_dir == str(tmp_path)


def test_the_defaults_of_a_list_survive_a_flag_for_one_of_its_fields(tmp_path):
    path = written(tmp_path, "epochs: 1")
    config = parse_train(["--config", path, "--g.0.width", "2.0"]).config
    assert config.g[0] == Config().g[0].model_copy(update={"width": 2.0})


def test_dashes_underscores_and_equal_signs_are_the_same():
    configs = [
        parse_train(argv).config
        for argv in (["--max-steps", "3"], ["--max_steps", "3"], ["--max-steps=3"])
    ]
    assert configs[0].max_steps == 3
    assert configs[0] == configs[1] == configs[2]


def test_a_boolean_flag_needs_no_value():
    assert parse_train(["--deterministic"]).config.deterministic is True
    assert parse_train(["--method.update_g_cls", "false"]).config.method.update_g_cls is False


def test_null_on_the_command_line_unsets_a_field():
    config = parse_train(["--data.rho", "null", "--data.seed", "3", "--seed", "null"]).config
    assert (config.data.rho, config.data.seed, config.seed) == (0.99, 3, 0)
    assert config.data.image_size == 14  # of biased_mnist/demo
    plain = [name for name, field in all_fields() if section_of(field.annotation) is None]
    others = [name for name in plain if not name.startswith("g.")]
    unset = [word for name in others for word in (f"--{name}", "null")]
    config = parse_train(["--config", "biased_mnist/rebias", "--g", "null", *unset]).config
    assert config == validate({"f": {"name": "simple_convnet"}})


MADE = ["--data.rho", "--data.source", "--data.seed", "--data.image_size"]


@pytest.mark.parametrize("name", ["biased_mnist/demo", "biased_mnist/rebias"])
def test_a_folder_of_shards_replaces_those_that_the_file_would_make(name):
    config = parse_train(["--config", name, "--data.root", "shards/mine"]).config
    assert config.data.root == "shards/mine"
    assert config.data.image_size == 28  # unset: the shards say
    assert parse_train(["--config", name, "--data.root", "null"]).config.data.root is None


@pytest.mark.parametrize(("key", "value"), [*zip(MADE, ("0.9", "mnist", "7", "9"), strict=True)])
def test_what_is_given_beside_a_folder_of_shards_is_refused(tmp_path, key, value):
    demo = ["--config", "biased_mnist/demo"]
    line = refused(*demo, "--data.root", "shards/mine", key, value)
    assert f"{key.removeprefix('--')}: {value} would change nothing" in line
    path = written(tmp_path, "data: {root: shards/mine}")
    assert "set data.root to null" in refused("--config", path, key, value)
    assert (
        parse_train(["--config", path, key, value, "--data.root", "null"]).config.data.root is None
    )
    both = written(tmp_path, f"data: {{root: shards/mine, {key.removeprefix('--data.')}: {value}}}")
    assert both in refused("--config", both)
    assert parse_train(["--config", both, "--data.root", "others"]).config.data.root == "others"


def test_the_micro_batch_is_written_down_when_it_is_left_out(tmp_path):
    for n, b in ((256, 32), (64, 32), (8, 8)):
        path = written(tmp_path, f"global_batch: {n}")
        assert yaml.safe_load(run("--config", path, "--print-config")[1])["micro_batch"] == b


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_configuration_is_valid_and_complete(name):
    values = read_config_file(name)
    config = validate(values, name)
    assert "micro_batch" in values
    path = configs_folder() / f"{name}.yaml"
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert re.fullmatch(r"# .{20,}\.", first)
    larger = re.search(r"_n(\d+)$", name)
    if larger:  # a larger batch for more ranks
        assert config.global_batch == int(larger[1])
        assert config.global_batch // config.b in (16, 32)
    else:
        assert config.global_batch // config.b == 8
    # What is printed reads back to the same run.
    code, printed, _ = run("--config", name, "--print-config")
    assert code == 0
    assert validate(yaml.safe_load(printed)) == config


def test_the_list_of_configurations_is_complete():
    assert {f"biased_mnist/{method}" for method in METHODS} <= set(SHIPPED)
    assert {"biased_mnist/demo", "imagenet9/rebias", "imagenet1k/rebias"} <= set(SHIPPED)
    code, out, _ = run("--list-configs")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == SHIPPED


@pytest.mark.parametrize("name", SHIPPED)
def test_a_method_has_the_configuration_of_its_name(name):
    method = re.sub(r"_(n\d+|gpu)$", "", name.rpartition("/")[2])
    method = method.replace("demo", "rebias").replace("stylised", "vanilla")
    assert validate(read_config_file(name)).method.name == method


numbers = st.floats(1e-8, 1e8)
configs = st.builds(
    lambda b, m, **values: {**values, "micro_batch": b, "global_batch": b * m},
    b=st.integers(1, 64),
    m=st.integers(4, 16),
    name=st.none() | st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,20}", fullmatch=True),
    runs_dir=st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1),
    seed=st.integers(0, 2**40),
    max_steps=st.none() | st.integers(1, 10**9),
    precision=st.sampled_from(["float32", "tf32", "bf16", "fp16", "float64"]),
    optimizer=st.fixed_dictionaries({"lr": numbers, "clip_norm": st.none() | numbers}),
    radius=st.fixed_dictionaries({"f": numbers | st.sampled_from(["median", "dimension"])}),
    g=st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "kernel_size": st.integers(1, 9),
                "feature": st.text(st.characters(exclude_categories=["Cs", "Cc"])),
                "options": st.dictionaries(st.text("abc", min_size=1), st.integers() | numbers),
            },
        ),
        min_size=1,
        max_size=3,
    ),
    data=st.fixed_dictionaries(
        {"selection": st.just("none") | st.floats(0.01, 0.99), "rho": st.floats(0, 1)}
    ),
)


@given(configs)
@example({"name": "1e3", "runs_dir": "0x1f"})
@example({"name": "null", "runs_dir": "yes"})
@settings(max_examples=50, deadline=None)
def test_a_resolved_configuration_reads_back_to_itself(values: dict[str, Any]):
    config = validate(values)
    assert validate(parse_yaml(to_yaml(config), "here")) == config


@given(st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_text_makes_the_reader_fail_in_another_way(text: str):
    with contextlib.suppress(ConfigError):
        values = parse_yaml(text, "here")
        if isinstance(values, dict):
            validate(values)


def test_help_names_every_field_and_explains_it():
    code, out, _ = run("--help")
    assert code == 0
    text = re.sub(r"\s+", " ", out)
    for dotted, field in all_fields():
        described = re.sub(r"\s+", " ", field.description or "").strip()
        assert described, f"{dotted} has no description"
        if section_of(field.annotation) is None:
            assert f"--{dotted}" in text
            # argparse may break a line after a hyphen.
            assert described.replace(" ", "").replace("-", "") in (
                text.replace(" ", "").replace("-", "")
            ), dotted


@pytest.mark.parametrize(
    "flags", [["--help"], ["--print-config"], ["--list-configs"], ["--lr", "1"]]
)
def test_answers_come_without_torch(flags):
    code = (
        "import sys\nfrom rebias_dist.commands.train import parse_train\n"
        "try: parse_train(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "sys.exit(9 if 'torch' in sys.modules else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *flags], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_only_rank_zero_speaks():
    for rank, spoken in (("0", 1), ("1", 0)):
        code = "import sys, rebias_dist.commands.train as t; t.parse_train(sys.argv[1:])"
        done = subprocess.run(
            [sys.executable, "-c", code, "--lr", "1"],
            cwd=ROOT,
            env={**os.environ, "RANK": rank},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == spoken


@pytest.mark.parametrize(
    ("text", "flags", "named"),
    [
        ("", ["--g", "[]", "--g.0.width", "1"], "g: [] has no entry 0"),
        ("", ["--g", "foo", "--g.0.width", "1"], "g: 'foo' has no entry 0"),
        ("data: 5", ["--data.rho", ".9"], "data: 5 is not a mapping"),
        ("method: rebias", ["--method", "vanilla"], "method: 'rebias' is not a mapping"),
        ("g: {name: x}", ["--g.0.width", "1"], "has no entry 0"),
        ("g: [5]", ["--g.0.width", "1"], "g.0: 5 is not a mapping"),
        ("", ["--resume", "must"], "--name"),
    ],
)
def test_a_flag_below_what_is_no_section_is_one_line(tmp_path, text, flags, named):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    code, _, stderr = run("--config", str(path), *flags)
    assert (code, stderr.count("\n")) == (2, 1), stderr
    assert named in stderr
