import hashlib
import json
import shutil

import numpy as np
import pytest

from data_shards.errors import DataShardsError, UsageError
from data_shards.format.manifest import Normalize, load_manifest, load_split
from data_shards.format.writer import Plan, present, split_writer
from data_shards.sources.biased_mnist import Options, convert
from tests.data_shards.tiny import write_idx

PNG = b"\x89PNG\r\n\x1a\n" + bytes(100)
JPEG = b"\xff\xd8\xff" + bytes(700)
NORMALIZE = Normalize(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    source = tmp_path_factory.mktemp("mnist")
    write_idx(source, train=5, test=2)
    output = tmp_path_factory.mktemp("shards")
    convert(output, Options(samples_per_shard=20), source=source, splits=["train"])
    return output / "train"


@pytest.fixture
def split(made, tmp_path):
    return shutil.copytree(made, tmp_path / "train")


def _plan(**changes):
    values = {
        "dataset": "toy", "split": "val", "classes": ("cat", "dog"), "options": {"a": 1},
        "normalize": NORMALIZE, "samples_per_shard": 2,
    }  # fmt: skip
    return Plan(**{**values, **changes})


def _edit_manifest(folder, **changes):
    """Change fields, as somebody would who computes the digest anew."""
    path = folder / "manifest.json"
    content = {**json.loads(path.read_text()), **changes}
    del content["digest"]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    content["digest"] = hashlib.sha256(canonical).hexdigest()
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def _replace(folder, old, new):
    path = folder / "manifest.json"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new, 1))


def _edit_index(folder, field, row, value):
    index = np.load(folder / "index.npy", allow_pickle=False)
    index[field][row] = value
    np.save(folder / "index.npy", index, allow_pickle=False)


def test_manifest_round_trip_and_digest(split):
    manifest = load_manifest(split)
    assert (split / "manifest.json").read_bytes() == manifest.to_json()
    assert json.loads(manifest.to_json())["digest"] == manifest.digest
    _edit_manifest(split, dataset="other")
    assert load_manifest(split).digest != manifest.digest


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda f: (f / "manifest.json").unlink(), "cannot be read"),
        (lambda f: (f / "manifest.json").write_text("{"), "malformed"),
        (lambda f: (f / "manifest.json").write_text("[]"), "malformed"),
        (lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"), "malformed"),
        (lambda f: (f / "manifest.json").write_text("[" * 100_000), "malformed"),
        (lambda f: _replace(f, '"rho": 0.99', '"rho": 0.98'), "altered since it was written"),
        (lambda f: _replace(f, "\n ", "\n  "), "altered since it was written"),
        (lambda f: _edit_manifest(f, samples="50"), "malformed at samples"),
        (lambda f: _edit_manifest(f, format=1), "format 1 is not"),
        (lambda f: _edit_manifest(f, surprise=1), "malformed at surprise"),
        (lambda f: _edit_manifest(f, dataset="\x1b[2J"), r"malformed at dataset: .*'\\x1b\[2J'"),
        (lambda f: _edit_manifest(f, classes=["\x07", *"012345678"]), "malformed at classes.0"),
        (lambda f: _edit_manifest(f, samples=51), "add up"),
        (lambda f: _edit_manifest(f, shards=[]), "add up"),
        (
            lambda f: _edit_manifest(
                f,
                shards=[{"name": "../x.tar", "bytes": 1, "sha256": "0" * 64, "count": 50}],
            ),
            "malformed at shards.0.name",
        ),
        (
            lambda f: _edit_manifest(
                f,
                shards=[{"name": "pipe:touch x", "bytes": 1, "sha256": "0" * 64, "count": 50}],
            ),
            "malformed at shards.0.name",
        ),
        (lambda f: (f / "index.npy").unlink(), "cannot be read"),
        (lambda f: (f / "index.npy").write_bytes(b"no"), "malformed"),
        (lambda f: (f / "index.npy").write_bytes(b""), "malformed"),
        (lambda f: np.save(f / "index.npy", np.array([{}]), allow_pickle=True), "malformed"),
        (lambda f: np.save(f / "index.npy", np.zeros(50)), "not an index"),
        (
            lambda f: np.save(f / "index.npy", np.load(f / "index.npy")[:-1]),
            "has 49 samples, its manifest says 50",
        ),
        (lambda f: _edit_index(f, "shard", 0, 1), "shards are not those"),
        (lambda f: _edit_index(f, "shard", 49, 99), "shards are not those"),
        (lambda f: _edit_index(f, "offset", 3, -1), "sample 3 lies outside"),
        (lambda f: _edit_index(f, "offset", 3, 2**62), "sample 3 lies outside"),
        (lambda f: _edit_index(f, "length", 3, 2**62), "sample 3 lies outside"),
        (lambda f: _edit_index(f, "label", 3, 10), "label 10, outside the 10 classes"),
        (lambda f: _edit_index(f, "label", 3, -1), "label -1, outside the 10 classes"),
    ],
)
def test_malformed_split_gives_one_line(split, break_it, words):
    load_split(split)
    break_it(split)
    with pytest.raises(DataShardsError, match=words) as caught:
        load_split(split)
    assert "\n" not in str(caught.value)
    assert str(split) in str(caught.value)


def test_changed_label_is_noticed_by_the_class_counts(split):
    label = load_split(split)[1]["label"][0]
    _edit_index(split, "label", 0, (label + 1) % 10)
    with pytest.raises(DataShardsError, match="counts per class"):
        load_split(split)


def test_writer_names_the_member_by_content_and_keeps_bytes(tmp_path):
    with split_writer(tmp_path, _plan()) as writer:
        writer.write("a/1", PNG, 0, source="x", size=(1, 1))
        writer.write("a/2", JPEG, 1, source="y", size=(2, 1), flags=("cmyk",))
        writer.write("b", PNG, 1, source="z", size=(1, 1), bias=4)
        writer.exclude("broken.jpg", "truncated")
    manifest, index = load_split(tmp_path / "val")
    assert manifest.shard_counts == [2, 1]
    assert manifest.class_counts == (1, 2)
    assert manifest.excluded[0].reasons == ("truncated",)
    assert index["bias"].tolist() == [-1, -1, 4]
    for row, image in zip(index, [PNG, JPEG, PNG], strict=True):
        shard = manifest.shards[row["shard"]]
        content = (tmp_path / "val" / shard.name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == shard.sha256
        assert len(content) == shard.bytes
        assert content[row["offset"] : row["offset"] + row["length"]] == image
        assert row["hash"].tobytes() == hashlib.sha256(image).digest()[:16]
    assert present(tmp_path, _plan()) == manifest
    with pytest.raises(UsageError, match="different data set"):
        present(tmp_path, _plan(options={"a": 2}))


@pytest.mark.parametrize(
    ("key", "image", "label", "words"),
    [
        ("a", b"GIF89a", 0, "neither a JPEG nor a PNG"),
        ("a", PNG, 2, "label 2 is outside the 2 classes"),
        ("a.b", PNG, 0, "without a dot"),
        ("", PNG, 0, "without a dot"),
        ("k" * 91, PNG, 0, "90 bytes"),
        ("taken", PNG, 0, "already taken"),
    ],
)
def test_writer_refuses_and_leaves_nothing(tmp_path, key, image, label, words):
    def attempt():
        with split_writer(tmp_path, _plan()) as writer:
            writer.write("taken", PNG, 0, source="first.png", size=(1, 1))
            writer.write(key, image, label, source="source.png", size=(1, 1))

    with pytest.raises(DataShardsError, match=f"source.png: .*{words}"):
        attempt()
    assert list(tmp_path.iterdir()) == []


def test_faster_process_wins_only_with_the_same_content(tmp_path):
    with split_writer(tmp_path, _plan()) as slow:
        slow.write("a", PNG, 0, source="x", size=(1, 1))
        with split_writer(tmp_path, _plan()) as fast:
            fast.write("a", PNG, 0, source="x", size=(1, 1))
    with pytest.raises(UsageError, match="different"), split_writer(tmp_path, _plan()) as late:
        late.write("a", JPEG, 0, source="x", size=(1, 1))
    assert [path.name for path in tmp_path.iterdir()] == ["val"]
    assert load_split(tmp_path / "val")[0].samples == 1


def test_damaged_shards_are_not_taken_for_present(tmp_path):
    with split_writer(tmp_path, _plan()) as writer:
        writer.write("a", PNG, 0, source="x", size=(1, 1))
    with (tmp_path / "val" / "val-000000.tar").open("ab") as file:
        file.truncate(100)
    with pytest.raises(UsageError, match="damaged or missing"):
        present(tmp_path, _plan())
