"""Weights that others have trained: from files, from torchvision's cache, never unpickled."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor, nn

from data_shards.sources.listing import IMAGENET_NORMALIZE
from rebias_dist.errors import ConfigError
from rebias_dist.models import build, load_weights, published_weights, weights_of_file

OFFLINE = "http://127.0.0.1:9"  # nothing listens on the port 'discard'


class Hostile:
    """Unpickled, it makes a folder."""

    def __init__(self, made: Path) -> None:
        self.made = str(made)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.made,)


def other_weights(classes: int) -> dict[str, Tensor]:
    torch.manual_seed(7)
    return build("simple_convnet", num_classes=classes, kernel_size=3).state_dict()


def message(function: Any, *arguments: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    print(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("form", ["safetensors", "plain", "wrapped"])
def test_a_file_gives_all_weights_but_a_last_layer_of_other_classes(
    form: str, tmp_path: Path
) -> None:
    state = other_weights(5)
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pt")
    if form == "safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    elif form == "plain":
        torch.save(state, path)
    else:
        wrapped = {f"module.{name}": value for name, value in state.items()}
        torch.save({"state_dict": wrapped, "epoch": 3}, path)
    found = weights_of_file(str(path), "f.pretrained")
    assert found.normalize is None
    for classes in (5, 4):
        network = build("simple_convnet", num_classes=classes, kernel_size=3)
        own = {name: value.clone() for name, value in network.state_dict().items()}
        note = load_weights(network, found.state, classes, "f.pretrained")
        for name, value in network.state_dict().items():
            kept = classes == 4 and name.startswith("fc.")
            assert torch.equal(value, own[name] if kept else state[name]), name
        assert bool(note) == (classes == 4)
    assert "fc" in note
    assert "4 classes" in note
    assert "[5, 128]" in note


def test_other_parameters_must_all_fit_and_nothing_is_changed_otherwise() -> None:
    network = build("simple_convnet", num_classes=4, kernel_size=7)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    text = message(load_weights, network, other_weights(5), 4, "f.pretrained w.pt")
    assert re.match(r"f\.pretrained w\.pt does not fit the network: .*extracter\.0\.weight", text)
    assert "configure that one" in text
    less = {k: v for k, v in before.items() if "extracter.3" not in k} | {"more": torch.ones(1)}
    text = message(load_weights, network, less, 4, "f.pretrained")
    assert "lacks extracter.3.weight" in text
    assert "also has more" in text
    assert all(torch.equal(before[name], x) for name, x in network.state_dict().items())


def test_a_file_of_something_else_is_one_line_and_runs_no_code(tmp_path: Path) -> None:
    path, made = tmp_path / "w.pt", tmp_path / "made"
    assert "check the path" in message(weights_of_file, str(path), "f.pretrained")
    torch.save({"state_dict": Hostile(made)}, path)
    assert "never loaded from a file" in message(weights_of_file, str(path), "f.pretrained")
    assert not made.exists()
    torch.save({"a": 3}, path)
    assert "no state dict" in message(weights_of_file, str(path), "f.pretrained")
    broken = tmp_path / "w.safetensors"
    broken.write_bytes(b"no safetensors")
    assert "is refused" in message(weights_of_file, str(broken), "f.pretrained")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which torchvision looks for resnet18's weights before it downloads them."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for name in ("https_proxy", "HTTPS_PROXY"):
        monkeypatch.setenv(name, OFFLINE)
    folder = tmp_path / "hub/checkpoints"
    folder.mkdir(parents=True)
    url = torchvision.models.get_model_weights("resnet18").DEFAULT.url
    return folder / Path(url).name


def test_torchvisions_weights_come_from_its_cache_with_their_normalisation(cache: Path) -> None:
    torch.manual_seed(7)
    published = torchvision.models.resnet18().state_dict()
    torch.save(published, cache)
    found = published_weights("resnet18", {}, "f.pretrained")
    assert found.normalize == IMAGENET_NORMALIZE
    network = build("resnet18", num_classes=9)
    assert "[1000, 512]" in load_weights(network, found.state, 9, "f.pretrained")
    for name, value in network.state_dict().items():
        assert name.startswith("fc.") or torch.equal(value, published[name]), name


def test_without_internet_or_weights_it_is_one_line(cache: Path) -> None:
    text = message(published_weights, "resnet18", {}, "f.pretrained")
    assert "resnet18 cannot be loaded" in text
    assert str(cache.parent) in text
    assert "not for simple_convnet" in message(published_weights, "simple_convnet", {}, "f")


def test_a_hostile_pickle_in_torchvisions_cache_runs_no_code(cache: Path, tmp_path: Path) -> None:
    torch.save(Hostile(tmp_path / "made"), cache)
    assert "cannot be loaded" in message(published_weights, "resnet18", {}, "f.pretrained")
    assert not (tmp_path / "made").exists()


# --- timm ------------------------------------------------------------------------

SMALL = {"img_size": 28, "patch_size": 14, "depth": 1, "embed_dim": 24, "num_heads": 2}
VIT = "timm:vit_tiny_patch16_224"


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_the_features_of_a_timm_network_are_what_enters_its_classifier(pool: str) -> None:
    network = build(VIT, num_classes=4, global_pool=pool, **SMALL)
    images = torch.randn(3, 3, 28, 28)
    logits, features = network(images)
    bare: Any = network
    expected = bare.forward_head(bare.forward_features(images), pre_logits=True)
    assert features.shape == (3, 24)
    assert torch.equal(features, expected)
    assert torch.equal(logits, bare.head(expected))


def test_tokens_of_a_named_layer_are_the_class_token_if_there_is_one() -> None:
    network: Any = build(VIT, num_classes=4, feature="norm", **SMALL)
    images = torch.randn(3, 3, 28, 28)
    assert torch.equal(network(images)[1], network.forward_features(images)[:, 0])
    plain = {**SMALL, "class_token": False, "global_pool": "avg"}
    network = build(VIT, num_classes=4, feature="norm", **plain)
    assert torch.equal(network(images)[1], network.forward_features(images).mean(dim=1))


def test_a_convolutional_network_of_timm() -> None:
    network = build("timm:resnet10t", num_classes=4)
    logits, features = network(torch.randn(2, 3, 32, 32))
    assert (logits.shape, features.shape) == ((2, 4), (2, 512))


def test_what_timm_does_not_offer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def built(name: str, **options: Any) -> nn.Module:
        return build(name, num_classes=2, **options)

    assert "near names: vit_tiny" in message(built, "timm:vit_tiny_patch16_22")
    assert "cannot be built" in message(lambda: built(VIT, nonsense=3))
    assert "options.pretrained" in message(lambda: built(VIT, pretrained=True))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "cannot be loaded" in message(published_weights, VIT, SMALL, "f.pretrained")
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    assert "pip install 'rebias-dist[timm]'" in message(built, VIT)
