"""What TensorBoard shows of a real run, read with its own readers; and a trace of its steps."""

import gzip
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.projector.projector_config_pb2 import ProjectorConfig

from rebias_dist.config.files import validate
from rebias_dist.telemetry.board import TensorBoard
from rebias_dist.telemetry.dashboard import HISTOGRAMS, layout, show_weights
from rebias_dist.telemetry.writers import Telemetry
from rebias_dist.train import main


@pytest.fixture(scope="module")
def run(few_digits, tmp_path_factory) -> Path:
    runs = tmp_path_factory.mktemp("runs")
    data = {"source": str(few_digits), "image_size": 8, "rho": 0.8}
    main(
        validate(
            {
                "name": "a",
                "runs_dir": str(runs),
                "global_batch": 48,
                "micro_batch": 12,
                "epochs": 2,
                "f": {"name": "simple_convnet", "kernel_size": 3, "width": 0.25},
                "g": [{"name": "simple_convnet", "kernel_size": 1, "width": 0.25}],
                # As narrow as this, a kernel sees nothing.
                "radius": {"f": 1e-6, "g": "median"},
                "data": data,
                "log": {"profile": 2},
            }
        )
    )
    return runs / "a"


@pytest.fixture(scope="module")
def events(run) -> EventAccumulator:
    found = EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "histograms": 0})
    found.Reload()
    return found


def test_every_chart_of_the_layout_has_its_scalars(run, events):
    tag = "custom_scalars__config__"
    content = Layout()
    tensor = events.Tensors(tag)[0].tensor_proto
    content.ParseFromString(tensor.string_val[0])
    scalars = events.Tags()["scalars"]
    titles, shown = {}, {}
    for category in content.category:
        for chart in category.chart:
            titles.setdefault(category.title, []).append(chart.title)
            found = [[s for s in scalars if re.match(t, s)] for t in chart.multiline.tag]
            shown[category.title, chart.title] = sorted(t for tags in found for t in tags)
    assert titles == {
        "f against g": [
            *("losses", "HSIC", "kernel radii", "accuracies in training", "gradient norms"),
        ],
        "selection": ["accuracies", "HSIC", "kernel entries (median)"],
        "speed": ["time by phase (%)", "images/s"],
    }
    assert all(shown.values())
    assert shown["f against g", "losses"] == ["f/loss", "g0/loss"]
    assert shown["f against g", "HSIC"] == ["f/hsic_g0", "g0/hsic"]
    accuracies = ["f_accuracy", "f_conflicting_accuracy", "g0_accuracy", "g0_conflicting_accuracy"]
    assert shown["selection", "accuracies"] == [f"selection/{name}" for name in accuracies]


def test_a_layout_has_no_chart_of_networks_that_are_not_there():
    for networks in (["f"], ["g0", "g1"]):
        charts = layout(networks, ["selection"])
        assert "HSIC" not in charts["f against g"]
        assert "HSIC" not in charts["selection"]
    assert "HSIC" in layout(["f", "g0"], [])["f against g"]


def test_runs_of_several_methods_in_one_folder_share_their_charts(tmp_path):
    """As TensorBoard's plugin merges the layouts of runs with other networks."""
    runs = {"vanilla": "f", "biased": "g0", "rebias": "f g0", "two": "f g0 g1"}
    for name, networks in runs.items():
        board = TensorBoard(tmp_path / name, 0)
        board.layout(layout(networks.split(), ["selection", "unbiased"]))
        board.close(None)
    events = EventMultiplexer().AddRunsFromDirectory(str(tmp_path)).Reload()
    provider = MultiplexerDataProvider(events, str(tmp_path))
    plugin = CustomScalarsPlugin(TBContext(data_provider=provider, logdir=str(tmp_path)))
    merged = json.loads(plugin.layout_impl(RequestContext(), ""))
    titles = [c["title"] for c in merged["category"]]
    assert titles == ["f against g", "selection", "unbiased", "speed"]
    for category in merged["category"]:
        charts = [chart["title"] for chart in category["chart"]]
        assert len(set(charts)) == len(charts)
        assert len(charts) >= 2


def test_texts_say_what_was_run_on_what(events):
    def text(tag: str) -> str:
        return events.Tensors(f"{tag}/text_summary")[0].tensor_proto.string_val[0].decode()

    assert "global_batch: 48" in text("config")
    assert "| torch |" in text("environment")
    assert "simplejpeg" in text("environment")
    rows = [line for line in text("data").splitlines() if line.startswith("| ")]
    assert [row.split(" | ")[0] for row in rows[1:]] == [
        *("| train", "| selection", "| biased", "| unbiased", "| rho0")
    ]
    assert "100.00 % aligned" in rows[3]


def test_a_kernel_that_sees_nothing_is_told_in_the_log_and_in_tensorboard(run, events):
    (event,) = events.Tensors("warnings/kernel_f/text_summary")
    said = event.tensor_proto.string_val[0].decode()
    assert said.startswith("the kernel of f sees nothing: its entries are near 0")
    assert (run / "logs/rank0.log").read_text().count(said) == 1


def test_histograms_of_the_weights_are_few(run, events):
    tags = events.Tags()["histograms"]
    assert "f/fc.weight" in tags
    assert "g0/extracter.0.weight" in tags
    last = json.loads((run / "state.json").read_text())["step"]
    assert [event.step for event in events.Histograms("f/fc.weight")] == [last // 2, last]


def test_a_long_run_has_as_few_histograms(tmp_path):
    telemetry = Telemetry(tmp_path, rank=0, total_steps=120, global_batch=2, identity={})
    broken = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(broken.weight, math.nan)
    for epoch in range(1, 118):
        show_weights(telemetry, epoch, {"f": torch.nn.Linear(2, 2), "g0": broken}, epoch, 117)
    telemetry.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"), {"histograms": 0})
    events.Reload()
    steps = [event.step for event in events.Histograms("f/weight")]
    assert steps == [*range(12, 117, 12), 117]
    assert len(steps) <= HISTOGRAMS
    assert "g0/weight" not in events.Tags()["histograms"]


def test_the_projector_has_both_networks_with_labels_and_images(run):
    folder = run / "tensorboard"
    config = text_format.Parse((folder / "projector_config.pbtxt").read_text(), ProjectorConfig())
    names = [e.tensor_name.split(":")[0] for e in config.embeddings]
    assert names == ["unbiased_f", "unbiased_g0"]
    for embedding in config.embeddings:
        points = np.loadtxt(folder / embedding.tensor_path)
        about = (folder / embedding.metadata_path).read_text().splitlines()
        assert len(points) == len(about) - 1 == 120
        assert about[0] == "label\tbias\tprediction"
        assert {line.split("\t")[0] for line in about[1:]} == {str(digit) for digit in range(10)}
        assert (folder / embedding.sprite.image_path).stat().st_size > 0
    f, g = (np.loadtxt(folder / e.tensor_path) for e in config.embeddings)
    assert f.shape == (120, 32)
    assert not np.array_equal(f, g)


def test_the_trace_holds_the_steps_that_were_asked_for(run):
    trace = json.loads(gzip.decompress((run / "profile/rank0.json.gz").read_bytes()))
    names = [event.get("name", "") for event in trace["traceEvents"]]
    steps = {name for name in names if name.startswith("ProfilerStep")}
    assert len(steps) == 2
    assert any("conv2d" in name for name in names)
