"""Wrong use of the registry: one line that names the thing, the value and the cure."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rebias_dist.errors import ConfigError
from rebias_dist.models import build, receptive_field

NETS = "tests.models.networks"


def message(name: str, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        build(name, **options)
    assert isinstance(caught.value, ValueError)  # as Python's own functions raise
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet81", "resnet18"), ("simpleconvnet", "simple_convnet"), ("bagnet", "bagnet18")],
)
def test_unknown_network_names_the_nearest(name: str, near: str) -> None:
    text = message(name, num_classes=2)
    assert repr(name) in text
    assert near in text


@pytest.mark.parametrize(
    ("name", "option", "taken"),
    [
        ("simple_convnet", "kernel", "kernel_size"),
        ("bagnet18", "kernel_size", "num_classes, feature"),
        ("resnet18", "width", "num_classes, feature"),
        (f"{NETS}:tiny", "width", "num_classes, channels, feature"),
    ],
)
def test_an_option_that_does_not_apply_is_never_ignored(name: str, option: str, taken: str) -> None:
    text = message(name, num_classes=2, **{option: 3})
    assert repr(option) in text
    assert taken in text


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("num_classes", 0),
        ("num_classes", "10"),
        ("num_classes", None),
        ("kernel_size", 0),
        ("kernel_size", 3.0),
        ("width", 0),
        ("width", float("inf")),
        ("width", float("nan")),
        ("norm", "layer"),
        ("norm", ["batch"]),
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("feature", "pool"),
        ("feature", 3),
        ("in_channels", True),
    ],
)
def test_a_value_out_of_range(option: str, value: object) -> None:
    text = message("simple_convnet", **{"num_classes": 10, option: value})
    assert f"{option} is {value!r}" in text


def test_num_classes_is_required_of_every_network() -> None:
    for name in ("simple_convnet", "bagnet18", "resnet18", f"{NETS}:tiny"):
        assert "num_classes" in message(name)


def test_features_by_layer() -> None:
    assert "layer4" in message("resnet18", num_classes=2, feature="layr4")
    assert "avgpool" in message("resnet18", num_classes=2, feature="zzzzzzzzz")
    assert "avgpool" in message("convnext_tiny", num_classes=2)
    assert "'pool'" in message("bagnet18", num_classes=2, feature="layer4")
    assert "no layer ''" in message("resnet18", num_classes=2, feature="")


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("no_such_package.nets:tiny", "no_such_package"),
        (f"{NETS}:huge", "huge"),
        (f"{NETS}:", "of type module; name the function"),
        (f"{NETS}:NOT_A_FACTORY", "not callable but of type int"),
        (f"{NETS}:no_classes", "takes no num_classes"),
        (f"{NETS}:not_a_module", "of type Tensor"),
        ("json:dumps", "cannot be built"),
    ],
)
def test_user_factories_that_do_not_fit(path: str, words: str) -> None:
    assert words in message(path, num_classes=2)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("def net(num_classes", "cannot be imported (SyntaxError: "),
        ("raise RuntimeError('two\\nlines')", "cannot be imported (RuntimeError: two lines)"),
        ("1 / 0", "cannot be imported (ZeroDivisionError: "),
        ("def net(num_classes): raise ValueError('a\\nb')", "cannot be built (ValueError: a b)"),
        ("def net(num_classes): return {}[num_classes]", "cannot be built (KeyError: 2)"),
        ("def net(num_classes, width): pass", "cannot be built (TypeError: "),
    ],
)
def test_whatever_a_users_module_or_factory_raises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, words: str
) -> None:
    module = f"net_{tmp_path.name}"  # each module is imported once
    (tmp_path / f"{module}.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    text = message(f"{module}:net", num_classes=2)
    assert f"network '{module}:net' {words}" in text
    assert "; " in text


@pytest.mark.parametrize(
    ("path", "feature", "words"),
    [
        ("tiny", None, "not (logits, features)"),
        ("Pair", "conv", "must return only logits"),
        ("Windows", "window", "do not have one row for each of 3 images"),
        ("Windows", "unused", "never calls layer 'unused'"),
        ("Windows", "several", "returns list"),
        ("deaf", "0", "num_classes=2 needs [N, 2]"),
    ],
)
def test_user_networks_whose_output_does_not_fit(
    path: str, feature: str | None, words: str
) -> None:
    network = build(f"{NETS}:{path}", num_classes=2, feature=feature)
    with pytest.raises(ConfigError) as caught:
        network(torch.randn(3, 3, *((4, 4) if path != "tiny" else (8, 8))))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("layer", "words"),
    [("layer9", "no layer"), ("fc", "map"), ("layer4", "reaches the edge")],
)
def test_receptive_field_that_cannot_be_measured(layer: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        receptive_field(build("resnet18", num_classes=2), layer)
