"""What a report says of the published protocols and figures, and the commands of its runs."""

import json
import re
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebias_dist.commands.train import parse_train
from rebias_dist.config.files import config_comment, list_configs, read_config_file, validate
from rebias_dist.reporting.command import command_of
from rebias_dist.reporting.comparison import Group
from rebias_dist.reporting.protocol import departures
from rebias_dist.reporting.published import published
from tests.commands.test_report import compared, method, write_run

SHIPPED = [name for name, _ in list_configs() if "/sweeps/" not in name]


# ---------------------------------------------------------------- protocols


@pytest.mark.parametrize("name", [name for name in SHIPPED if "/demo" not in name])
def test_shipped_configurations_depart_from_the_protocol_as_they_say(name):
    """Their comments name the choices: a selection split, the micro-batch, and of which network
    a radius is in g's step, where it is the median of each.
    """
    config = validate({**read_config_file(name), "name": "x"})
    found = departures(Group("", "", config))
    if config.data.dataset == "imagenet1k":
        assert found is None
        return
    assert found is not None
    keys = {one.key for one in found}
    named = {"data.selection", "micro_batch"}
    if name.startswith("imagenet9/rebias"):
        named.add("method.swap_inner_bandwidth")
    if "_n" in name:  # a larger batch for more ranks
        named |= {"global_batch", "optimizer.lr"}
        assert "not the published protocol" in config_comment(name)
    assert keys - {"data.source"} == named
    assert ("data.source" in keys) is (config.data.dataset == "biased_mnist")


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"epochs": 81}, "epochs"),
        ({"max_steps": 7}, "max_steps"),
        ({"precision": "bf16"}, "precision"),
        ({"optimizer": {"name": "sgd"}}, "optimizer.name"),
        ({"f": {"kernel_size": 5}}, "f.kernel_size"),
        ({"g": [{"kernel_size": 1}, {"kernel_size": 3}]}, "g"),
        ({"radius": {"f": "median", "g": 1.0}}, "radius.f"),
        ({"method": {"name": "rebias", "lambda_f": 2.0}}, "method.lambda_f"),
    ],
)
def test_each_departure_is_named(change, key):
    known = {
        "micro_batch": 256,
        "radius": {"f": 1.0, "g": 1.0},
        "data": {"selection": "none", "source": "mnist"},
    }
    assert departures(Group("", "", validate(known))) == []
    found = departures(Group("", "", validate({**known, **change})))
    assert [one.key for one in found] == [key]


BIASED_MNIST = """
Bahng et al., ICML 2020, table 1 (arXiv 1910.02806)
Vanilla      .999 10.4  .997 33.4  .995 72.1  .99 89.1
Biased       .999 10.0  .997 10.0  .995 10.0  .99 10.0
LearnedMixin .999 12.1  .997 50.2  .995 78.2  .99 88.3
RUBi         .999 13.7  .997 43.0  .995 90.4  .99 93.6
ReBias       .999 22.7  .997 64.2  .995 76.0  .99 88.1
re-run of the paper, ML Reproducibility Challenge 2020
Vanilla .999 10.2  .997 48.6  .995 73.0  .99 88.1  .98 93.6  .95 96.9  .9 98.1  .85 98.4
Biased  .999 10.0  .997 10.0  .995 10.0  .99 10.0            .95 12.7  .9 14.3  .85 15.5
ReBias  .999 21.1  .997 62.0  .995 75.8  .99 87.6  .98 93.5  .95 96.5  .9 97.9  .85 98.2
Nahon et al., ICCV 2023
LfF     .999 15.3  .997 63.7  .995 90.3  .99 95.1
SoftCon .999 65.0  .997 88.6  .995 93.1  .99 95.2
"""
IMAGENET9 = """
README of the public ReBias code
Vanilla ResNet-18  90.8 88.8 24.9
Biased BagNet-18   67.7 65.9 19.5
Stylised ImageNet  88.4 86.6 24.6
LearnedMixin       67.9 65.9 18.8
RUBi               90.5 88.6 27.7
ReBias             91.9 90.5 29.6
re-run by Hong & Yang, NeurIPS 2021
Vanilla ResNet-18  94.0 92.7 30.5
LearnedMixin       79.2 76.6 19.0
RUBi               93.9 92.5 31.0
ReBias             94.0 92.7 30.5
"""
METHODS = {
    "Vanilla": "vanilla",
    "Vanilla ResNet-18": "vanilla",
    "Biased": "biased",
    "Biased BagNet-18": "biased",
    "LearnedMixin": "learned_mixin",
    "RUBi": "rubi",
    "ReBias": "rebias",
}


def test_published_figures_are_those_of_the_tables():
    """A second copy of them, so that a slip in the file shows."""
    expected = []
    for dataset, text in (("biased_mnist", BIASED_MNIST), ("imagenet9", IMAGENET9)):
        source = ""
        for line in filter(None, text.splitlines()):
            found = re.fullmatch(r"(.+?)((?: +\d*\.\d+)+)", line)
            if not found:
                source = line
                continue
            label, numbers = found[1], list(map(float, found[2].split()))
            if dataset == "biased_mnist":
                pairs = zip(numbers[::2], numbers[1::2], strict=True)
                columns = [("unbiased", rho, percent) for rho, percent in pairs]
            else:
                measures = ("biased", "unbiased", "imagenet-a")
                columns = [(m, None, n) for m, n in zip(measures, numbers, strict=True)]
            expected += [(dataset, METHODS.get(label, ""), label, *c, source) for c in columns]
    found = published().astype(object).where(published().notna(), None)
    assert list(found.itertuples(index=False, name=None)) == expected


def test_published_figures_have_sources_and_agree_with_the_shipped_configurations():
    figures = list(published().itertuples())
    assert all(p.source and 0 < p.percent < 100 for p in figures)
    for name in SHIPPED:
        if not name.startswith("imagenet9/") or "_n" in name:
            continue
        label = {"biased": "Biased BagNet-18", "stylised": "Stylised ImageNet"}
        stem = name.partition("/")[2]
        comment = config_comment(name)
        told = re.search(r"([\d.]+) / ([\d.]+) / ([\d.]+) \(README", comment)
        assert told, name
        found = [
            p.percent
            for p in figures
            if "README" in p.source and (p.method == stem or p.label == label.get(stem))
        ]
        assert found == [float(part) for part in told.groups()], name


def test_rho_of_shards_that_were_made_elsewhere_is_theirs_or_unknown(tmp_path):
    data = {"root": str(tmp_path / "shards")}
    for known in (False, True):
        if known:
            (tmp_path / "shards/train").mkdir(parents=True)
            manifest = tmp_path / "shards/train/manifest.json"
            manifest.write_text(json.dumps({"options": {"rho": 0.997}}))
        run = tmp_path / f"run{known}"
        write_run(run, method("vanilla", data=data), {"unbiased": {"f": 500}})
        (runs,), _ = compared(run)
        assert [group.rho for group in runs.groups] == [0.997 if known else None]


# ---------------------------------------------------------------- commands


@pytest.mark.parametrize("name", SHIPPED)
def test_the_command_of_a_shipped_configuration_is_its_name(name):
    config = validate(read_config_file(name))
    words = shlex.split(command_of(config) or "")
    assert words[:2] == ["rebias-train", "--config"]
    assert parse_train(words[1:]).config == config


texts = st.text(min_size=1, max_size=12)  # of any characters
lines = texts.filter(str.isprintable)


@settings(deadline=None, max_examples=50)
@given(
    values=st.fixed_dictionaries(
        {},
        optional={
            "seed": st.integers(0, 2**31),
            "epochs": st.integers(1, 200),
            "max_steps": st.none() | st.integers(1, 9),
            "precision": st.sampled_from(["float32", "bf16", "float64"]),
            "deterministic": st.booleans(),
            "optimizer": st.fixed_dictionaries({"lr": st.floats(1e-9, 10)}),
            "radius": st.fixed_dictionaries({"f": st.just("median") | st.floats(1e-6, 1e6)}),
            "data": st.fixed_dictionaries(
                {"source": lines},
                optional={
                    "selection": st.just("none") | st.floats(0.01, 0.9),
                    "other_tests": st.dictionaries(texts, texts, max_size=2),
                },
            ),
            "g": st.lists(
                st.fixed_dictionaries({"kernel_size": st.integers(1, 9)}), min_size=1, max_size=3
            ),
            "f": st.fixed_dictionaries(
                {"kernel_size": st.integers(1, 9)},
                optional={"options": st.dictionaries(texts, texts)},
            ),
        },
    )
)
def test_the_command_of_any_configuration_gives_it_back(values):
    taken = {"train", "selection", "biased", "unbiased", "rho0"}
    if taken & values.get("data", {}).get("other_tests", {}).keys():
        return
    config = validate(values)
    command = command_of(config)
    assert command is not None
    assert parse_train(shlex.split(command)[1:]).config == config


def test_a_text_that_is_for_no_terminal_is_in_no_command():
    assert command_of(validate({"data": {"source": "a\x1b[2Jb"}})) is None
