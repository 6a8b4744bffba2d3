"""Checkpoints in the public code's format: read whole, refused in one line, never run."""

import os
import pickle
import random
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import munch
import numpy as np
import pytest
import torch
from torch import nn

from rebias_dist.errors import ConfigError
from rebias_dist.models import build, load_public_checkpoint, load_state

SCORE, SIGMA = 0.8765432109876543, 1.25


def content() -> dict[str, Any]:
    """What the public trainer saves, with its classes and its wrapping."""
    torch.manual_seed(0)
    f = nn.DataParallel(build("simple_convnet", num_classes=10, kernel_size=7, width=0.25))
    g_nets = [
        nn.DataParallel(build("simple_convnet", num_classes=10, kernel_size=1, width=0.25))
        for _ in range(2)
    ]
    f_optimizer = torch.optim.Adam(f.parameters(), lr=1e-3)
    for loss in (net(torch.randn(4, 3, 8, 8))[0].square().sum() for net in (f, *g_nets)):
        loss.backward()
    f_optimizer.step()
    g_optimizer = torch.optim.Adam([p for g in g_nets for p in g.parameters()])
    options = munch.munchify(
        {
            "f_config": {"num_classes": 10, "kernel_size": 7, "feature_pos": "post"},
            "outer_criterion_config": {"sigma_x": np.float64(SIGMA), "sigma_y": np.float32(SIGMA)},
            "nested": [{"deep": {"deeper": [1, "two", None, True]}}],
        }
    )
    scores = {"unbiased": {"f_acc": np.float64(SCORE), "g_0_acc": 0.1}}
    return {
        "f_net": f.state_dict(),
        "g_nets": [g.state_dict() for g in g_nets],
        "f_optimizer": f_optimizer.state_dict(),
        "g_optimizer": g_optimizer.state_dict(),
        "f_lr_scheduler": torch.optim.lr_scheduler.StepLR(f_optimizer, 20).state_dict(),
        "g_lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(g_optimizer, 9).state_dict(),
        "options": dict(options),
        "metadata": {
            "cur_epoch": np.int64(-3),
            "best_acc": np.float16(0.5),
            "flag": np.bool_(True),
            "byte": np.uint8(200),
            "scores": scores,
        },
    }


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_public_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


def assert_plain(tree: object) -> None:
    assert type(tree) in (dict, list, str, int, float, bool, type(None)), type(tree)
    for item in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        assert_plain(item)


@pytest.mark.parametrize(("zipped", "numpy_1"), [(True, False), (False, False), (False, True)])
def test_everything_is_read(tmp_path: Path, zipped: bool, numpy_1: bool) -> None:
    saved = content()
    path = tmp_path / "last.pth"
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    if numpy_1:  # by its old name, written over the new one: this format has no checksums
        data = path.read_bytes()
        assert b"numpy._core.multiarray" in data or np.__version__ < "2"
        path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))

    checkpoint = load_public_checkpoint(path)
    for got, wrapped in zip(
        (checkpoint.f, *checkpoint.g_nets), (saved["f_net"], *saved["g_nets"]), strict=True
    ):
        assert [f"module.{name}" for name in got] == list(wrapped)
        assert all(torch.equal(got[name], wrapped[f"module.{name}"]) for name in got)
    assert_plain(checkpoint.options)
    assert checkpoint.options == saved["options"]
    assert_plain(checkpoint.metadata)
    assert checkpoint.metadata == {
        "cur_epoch": -3,
        "best_acc": 0.5,
        "flag": True,
        "byte": 200,
        "scores": {"unbiased": {"f_acc": SCORE, "g_0_acc": 0.1}},
    }

    network = build("simple_convnet", num_classes=10, kernel_size=7, width=0.25)
    load_state(network, checkpoint.f, where="last.pth, f_net")
    assert all(torch.equal(v, checkpoint.f[name]) for name, v in network.state_dict().items())


def test_numbers_in_the_byte_order_of_another_machine(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    saved = {"f_net": {}, "g_nets": [], "metadata": {"count": np.int32(0x01020304)}}
    torch.save(saved, path, _use_new_zipfile_serialization=False)
    data, little = path.read_bytes(), b"X\x01\x00\x00\x00<"
    assert data.count(little) == 1
    path.write_bytes(data.replace(little, little[:-1] + b">"))
    assert load_public_checkpoint(path).metadata["count"] == 0x04030201


def test_munch_is_not_needed_to_read(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    torch.save(content(), path)
    code = (
        "import sys; sys.modules['munch'] = None\n"
        "from rebias_dist.models import load_public_checkpoint\n"
        "print(load_public_checkpoint(sys.argv[1]).options['f_config']['kernel_size'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout == "7\n"


def test_the_safe_names_do_not_outlive_the_call(tmp_path: Path) -> None:
    torch.save(content(), tmp_path / "last.pth")
    before = set(torch.serialization.get_safe_globals())
    load_public_checkpoint(tmp_path / "last.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError, match=r"munch\.Munch"):
        torch.load(tmp_path / "last.pth", weights_only=True)


def test_metadata_and_options_may_be_missing(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    torch.save({"f_net": {}, "g_nets": [], "metadata": None}, path)
    checkpoint = load_public_checkpoint(path)
    assert (checkpoint.g_nets, checkpoint.options, checkpoint.metadata) == ([], {}, {})


# --- hostile and damaged files -------------------------------------------------


class Payload:
    """Runs a command when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.sentinel}",)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("place", ["f_net", "g_nets", "f_optimizer", "options", "metadata"])
def test_no_code_in_a_file_is_run(tmp_path: Path, place: str, zipped: bool) -> None:
    sentinel, path = tmp_path / "sentinel", tmp_path / "evil.pth"
    saved = content()
    saved[place] = munch.munchify({"x": [Payload(sentinel)]})
    torch.save(saved, path, _use_new_zipfile_serialization=zipped)
    assert "posix.system" in refusal(path)
    assert not sentinel.exists()
    torch.load(path, weights_only=False)  # the payload does work where it is let in
    assert sentinel.exists()


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (np.zeros(3), "core.multiarray._reconstruct"),  # numpy 1 has no underscore
        (Path("x"), "pathlib.PosixPath"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
        (munch.DefaultMunch(1), "munch.DefaultMunch"),
    ],
)
def test_other_objects_are_refused_by_name(tmp_path: Path, value: object, named: str) -> None:
    path = tmp_path / "last.pth"
    torch.save(content() | {"metadata": {"x": value}}, path)
    assert named in refusal(path)


@pytest.mark.parametrize("value", [np.str_("text"), np.complex64(1), np.datetime64("2020-01-01")])
def test_numpy_scalars_that_are_no_plain_numbers_are_refused(tmp_path: Path, value: object) -> None:
    path = tmp_path / "last.pth"
    torch.save(content() | {"metadata": {"x": value}}, path)
    refusal(path)


def test_a_file_that_contains_itself(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    loop: dict[str, Any] = {"f_net": {}, "g_nets": []}
    loop["options"] = loop
    torch.save(loop, path)
    refusal(path)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_bare_pickle_is_refused(tmp_path: Path) -> None:
    sentinel, path = tmp_path / "sentinel", tmp_path / "evil.pth"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps({"f_net": Payload(sentinel)}, protocol=protocol))
        refusal(path)
        assert not sentinel.exists()


@pytest.mark.parametrize("zipped", [False, True])
def test_truncated_files(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "last.pth"
    torch.save(content(), path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for part in (0.0, 1e-4, 0.01, 0.2, 0.5, 0.9, 0.99):
        path.write_bytes(data[: int(len(data) * part)])
        assert "damaged" in refusal(path)


def test_bytes_of_the_pickle_overwritten(tmp_path: Path) -> None:
    """Whatever stands in the file: it is read, or refused in one line."""
    path = tmp_path / "last.pth"
    torch.save(content(), path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    chooser = random.Random(0)
    lines: list[str] = []
    for _ in range(60):
        mutant = bytearray(data)
        for _ in range(4):
            mutant[chooser.randrange(min(len(data), 20_000))] = chooser.randrange(256)
        path.write_bytes(mutant)
        try:
            load_public_checkpoint(path)
        except ConfigError as error:
            lines.append(str(error))
    print(f"{len(lines)} of 60 refused")
    assert lines
    assert not any("\n" in line for line in lines)


def test_a_number_that_claims_more_bytes_than_it_has(tmp_path: Path) -> None:
    path = tmp_path / "last.pth"
    torch.save({"metadata": np.float64(SCORE)}, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    packed = struct.pack("<d", SCORE).decode("latin1").encode()
    assert data.count(b"f8") == data.count(packed) == 1
    path.write_bytes(data.replace(b"f8", b"f4"))
    assert "damaged" in refusal(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "absent.pth")
    assert "cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize(
    ("saved", "words"),
    [
        ([1, 2], "no f_net"),
        ({"model": {}}, "no f_net"),
        ({"f_net": {}, "g_nets": {}}, "g_nets is a dict"),
        ({"f_net": {"a": 1}, "g_nets": []}, "f_net is not a state dict"),
        ({"f_net": {}, "g_nets": [{}, {3: torch.zeros(1)}]}, "g_nets[1] is not a state dict"),
    ],
)
def test_checkpoints_of_other_programs(tmp_path: Path, saved: object, words: str) -> None:
    path = tmp_path / "last.pth"
    torch.save(saved, path)
    assert words in refusal(path)


# --- load_state ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"kernel_size": 3}, "has another shape of extracter.0.weight [16, 3, 7, 7] for [16, 3, 3"),
        ({"num_classes": 9}, "has another shape of fc.weight [10, 128] for [9, 128]"),
        ({"norm": "none"}, "also has extracter.1.weight, extracter.1.bias"),
    ],
)
def test_a_state_of_another_network_is_refused_whole(options: dict[str, Any], words: str) -> None:
    state = build("simple_convnet", num_classes=10).state_dict()
    network = build("simple_convnet", **({"num_classes": 10} | options))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ConfigError) as caught:
        load_state(network, state, where="last.pth, f_net")
    assert words in str(caught.value)
    assert str(caught.value).startswith("last.pth, f_net")
    assert "another network" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
    assert all(torch.equal(before[name], v) for name, v in network.state_dict().items())


def test_a_state_that_lacks_parameters_is_refused() -> None:
    network = build("simple_convnet", num_classes=10)
    state = network.state_dict()
    del state["fc.bias"]
    with pytest.raises(ConfigError, match=r"lacks fc\.bias; it was"):
        load_state(network, state, where="f")
