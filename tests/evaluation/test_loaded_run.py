"""A loaded run predicts from pixels what the evaluation of the run predicted."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml

import rebias_dist
from rebias_dist.assemble import data_root
from rebias_dist.config.files import validate
from rebias_dist.data import open_split
from rebias_dist.errors import ConfigError
from rebias_dist.evaluation.loaded_run import LoadedRun
from rebias_dist.train import main
from tests import ROOT
from tests.support.imagenets import write_imagenet


def trained(settings: dict, **changes: object) -> LoadedRun:
    config = validate({**settings, "name": "a", "max_steps": 6, **changes})
    main(config)
    return rebias_dist.load(f"{config.runs_dir}/a", "last")


def check_figures(run: LoadedRun, images: list, labels: np.ndarray, split: str) -> None:
    """Compare the predictions of each network with the run's confusion matrices."""
    assert run.metrics is not None
    networks = run.metrics["checkpoints"]["last"]["splits"][split]["networks"]
    assert len(networks) == len(run.g_nets) + (run.f is not None)
    for name, figures in networks.items():
        logits = run.predict(images, name)
        assert (logits.shape, logits.dtype) == ((len(labels), len(run.classes)), torch.float64)
        found = np.zeros((len(run.classes),) * 2, dtype=int)
        np.add.at(found, (labels, logits.argmax(1).numpy()), 1)
        assert found.tolist() == figures["confusion"]


@pytest.mark.parametrize("method", ["rebias", "biased"])
def test_digits(small_run, method):
    run = trained(small_run, method={"name": method}, evaluate={"batch": 50, "every_epochs": 3})
    test = open_split(data_root(run.config), "unbiased")
    images = torch.stack([test.image(i) for i in range(len(test))])
    check_figures(run, images, test.labels, "unbiased")
    network = "f" if method == "rebias" else "g0"
    expected = run.predict(images, network)
    assert torch.equal(run.predict((test.image(i) for i in range(len(test))), network), expected)
    assert torch.equal(run.predict(images.numpy(), network), expected)
    # The network itself takes what is normalised.
    assert run.constants is not None
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (run.constants.mean, run.constants.std))
    given = run.f if run.f is not None else run.g_nets[0]
    by_hand = given((images.double() / 255 - mean) / std)[0]
    assert torch.allclose(by_hand, expected, atol=1e-9)


def test_images_in_memory_have_the_figures_of_their_split(small_run):
    run = trained(small_run, evaluate={"batch": 50, "every_epochs": 3, "hsic_samples": 70})
    assert run.metrics is not None
    for split in ("unbiased", "biased"):
        test = open_split(data_root(run.config), split)
        images = torch.stack([test.image(i) for i in range(len(test))])
        found = run.evaluate(images.numpy(), test.labels, bias=torch.tensor(test.bias.copy()))
        assert json.loads(json.dumps(found)) == run.metrics["checkpoints"]["last"]["splits"][split]
    without = run.evaluate(images, test.labels.tolist())
    f = without["networks"]["f"]
    assert f["accuracy"] == found["networks"]["f"]["accuracy"]
    assert (f["aligned"], f["conflicting"], f["groups"]) == (None, None, [])
    for labels, bias, named in (
        (test.labels[1:], None, "there are 120 images, 119 labels and 119 biases"),
        (test.labels, test.bias[1:], "there are 120 images, 120 labels and 119 biases"),
        (test.labels + 1, None, "labels must be from 0 to 9, not 1 to 10"),
        (test.labels / 2, None, "labels must be whole numbers [n], not float64 [120]"),
        (["cat"] * 120, None, "not <U3 [120]; write 0 for 0, 1 for 1, 2 for 2 …"),
        (test.labels, test.bias - 2, "bias must be from -1 to 10000, not -2 to 7"),
    ):
        with pytest.raises(ValueError, match=re.escape(named)):
            run.evaluate(images, labels, bias)
    with pytest.raises(ConfigError, match="no checkpoint 'bst'; name 'best' or 'last'"):
        rebias_dist.load(f"{run.config.runs_dir}/{run.config.name}", "bst")
    with pytest.raises(ValueError, match="there are no images"):
        run.evaluate([], test.labels[:0])


def test_photographs_of_any_size_are_cropped_as_in_evaluation(small_run, tmp_path):
    root = write_imagenet(tmp_path, "imagenet9", train=60, selection=18, val=27)
    data = {"dataset": "imagenet9", "root": str(root), "test_splits": ["val"]}
    data |= {"augmentation": "crop_flip", "resize": 20, "crop": 16}
    run = trained(small_run, data=data, evaluate={"monitor": "val"})
    val = open_split(root, "val")
    images = [val.image(i) for i in range(len(val))]
    assert len({image.shape for image in images}) > 9
    check_figures(run, images, val.labels, "val")


def test_images_that_the_networks_cannot_be_asked_for(small_run):
    run = trained(small_run, max_steps=1)
    right = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert run.predict(right).shape == (2, 10)
    for images, named in (
        (right / 255, "uint8 RGB pixels [3, height, width], not float32 [3, 8, 8]"),
        (right[0], "not uint8 [8, 8]"),
        (right.permute(0, 2, 3, 1), "not uint8 [8, 8, 3]"),
        (
            torch.zeros(2, 3, 28, 28, dtype=torch.uint8),
            "trained on images [3, 8, 8], not [3, 28, 28]",
        ),
        (right[:0], "there are no images"),
    ):
        with pytest.raises(ValueError, match=re.escape(named)) as refused:
            run.predict(images)
        assert isinstance(refused.value, ConfigError)
    with pytest.raises(ValueError, match="network is 'g1', but the run has f, g0"):
        run.predict(right, "g1")
    with pytest.raises(ConfigError, match="earlier version"):
        replace(run, constants=None).predict(right)


def example(page: str) -> str:
    text = (ROOT / page).read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    return code


def test_the_example_of_the_readme_runs(small_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(validate({**small_run, "runs_dir": "runs", "name": "first", "max_steps": 6}))
    values: dict = {}
    exec(example("README.md"), values)
    assert values["logits"].shape == (100, 10)
    assert set(values["table"].run) == {"first"}


@pytest.mark.parametrize(
    "config", ["small.yaml", pytest.param("biased_mnist/demo", marks=pytest.mark.slow)]
)
def test_the_example_on_the_page_runs(config, small_run, tmp_path, monkeypatch):
    code = example("docs/start.md")
    assert '"biased_mnist/demo"' in code  # a size that trains in seconds
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump({**small_run, "runs_dir": "runs"}))
    values: dict = {}
    exec(code.replace("biased_mnist/demo", config), values)
    assert values["logits"].shape == (100, 10)
    assert 0 <= values["accuracy"] <= 1
    assert set(values["table"].run) == {"mine"}
