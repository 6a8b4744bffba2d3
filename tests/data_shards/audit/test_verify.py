import hashlib
import json
import os
import shutil
import tarfile

import numpy as np
import pytest
import webdataset

from data_shards.__main__ import cli
from data_shards.audit.verify import verify_split
from data_shards.format.manifest import load_split
from data_shards.format.tars import header
from data_shards.images.clusters import write_clusters
from rebias_dist.data import ShardDataset
from rebias_dist.errors import DataError
from tests.data_shards.converted import converted, listing

SHARDS = 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("split")
    converted(listing(folder / "source", 9), folder / "out", samples_per_shard=9 // SHARDS)
    return folder / "out" / "train"


@pytest.fixture
def split(made, tmp_path):
    return shutil.copytree(made, tmp_path / "train")


def _reasons(folder):
    """{(path below the folder, reason)} of all findings."""
    return {
        (os.path.relpath(finding.path, folder), reason)
        for finding in verify_split(folder)
        for reason in finding.reasons
    }


def _members(path):
    with tarfile.open(path) as tar:
        return [(m.name, tar.extractfile(m).read()) for m in tar]


def _write(path, members):
    """A tar as the writer makes it."""
    with path.open("wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
        for name, content in members:
            key, _, extension = name.partition(".")
            tar.write({"__key__": key, extension: content})


def _seal(folder):
    """Compute all hashes of the manifest anew, but for the digest of pixels and findings."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    for shard in content["shards"]:
        tar = (folder / shard["name"]).read_bytes()
        shard.update(bytes=len(tar), sha256=hashlib.sha256(tar).hexdigest())
    content["index_sha256"] = hashlib.sha256((folder / "index.npy").read_bytes()).hexdigest()
    del content["digest"]
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    content["digest"] = hashlib.sha256(canonical).hexdigest()
    path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def test_an_untouched_split_is_clean(made, capsys):
    assert list(verify_split(made)) == []
    assert list(verify_split(made, workers=2)) == []
    assert cli(["verify", str(made.parent), "--json"]) == 0
    assert capsys.readouterr().out == ""
    assert cli(["verify", str(made)]) == 0
    assert load_split(made)[0].digest in capsys.readouterr().out


@pytest.mark.parametrize("also", [[], ["index.npy"]])
def test_a_split_without_its_manifest_is_named(made, tmp_path, capsys, also):
    for name in ("train", "val"):
        shutil.copytree(made, tmp_path / name)
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "a.tar").touch()
    (tmp_path / "notes").mkdir()
    for name in ("manifest.json", *also):
        (tmp_path / "val" / name).unlink()
    for folder in (tmp_path, tmp_path / "val"):
        assert cli(["verify", str(folder), "--json"]) == 1
        (line,) = capsys.readouterr().out.splitlines()
        found = json.loads(line)
        assert (found["path"], found["reasons"]) == (
            str(tmp_path / "val" / "manifest.json"),
            ["missing"],
        )


def test_clusters_of_other_samples_are_noticed(split):
    _, index = load_split(split)
    keys = [key.decode() for key in index["key"]]
    write_clusters(split, {key: (n, 1) for n, key in enumerate(keys[2:])})
    assert _reasons(split) == set()
    path = split / "clusters.csv"
    content = path.read_text()
    for wrong in (
        content.replace(keys[3], "another"),
        content + content.splitlines()[-1] + "\n",
        content.replace(f"{keys[2]},0,1", f"{keys[2]},0"),
        content.partition("\n")[2],
    ):
        path.write_text(wrong)
        assert _reasons(split) == {("clusters.csv", "malformed")}
    path.unlink()
    os.mkfifo(path)
    assert _reasons(split) == {("clusters.csv", "not-a-file")}


def _flip(path, byte, bit=0):
    with path.open("r+b") as file:
        file.seek(byte)
        old = file.read(1)[0]
        file.seek(byte)
        file.write(bytes([old ^ (1 << bit)]))


def _image_at(folder, row):
    manifest, index = load_split(folder)
    place = index[row]
    return folder / manifest.shards[place["shard"]].name, place, place["key"].decode()


def test_a_flipped_bit_of_an_image_is_named(split):
    path, place, key = _image_at(split, 4)
    _flip(path, int(place["offset"]) + 100)
    assert _reasons(split) == {(path.name, "altered"), (f"{path.name}/{key}.jpg", "altered")}


def test_a_flipped_bit_of_a_header_is_named(split):
    path, place, key = _image_at(split, 4)
    header_at = int(place["offset"]) - 512
    _flip(path, header_at + 140)  # of the time: the checksum fails, and tar ends here
    found = _reasons(split)
    assert {(path.name, "altered"), (f"{path.name}/{key}", "damaged-header")} <= found
    # What the walk did not reach is missing, for whoever reads the tar.
    assert (f"{path.name}/{key}", "missing-image") in found


def test_flips_outside_of_members_are_noticed(split):
    path, place, key = _image_at(split, 0)
    _flip(path, int(place["offset"] + place["length"]))
    found = {(path.name, "altered"), (f"{path.name}/{key}.jpg", "damaged-padding")}
    assert _reasons(split) == found
    _flip(path, int(place["offset"] + place["length"]))
    assert _reasons(split) == set()
    _flip(path, path.stat().st_size - 1)
    assert _reasons(split) == {(path.name, "altered"), (path.name, "bytes-behind-the-end")}


def test_missing_short_long_and_foreign_shards(split):
    (split / "train-000000.tar").unlink()
    path = split / "train-000001.tar"
    path.write_bytes(path.read_bytes()[:-10240])
    shutil.copy(split / "train-000002.tar", split / "train-000003.tar")
    longer = split / "train-000002.tar"
    longer.write_bytes(longer.read_bytes() + bytes(10240))
    found = _reasons(split)
    assert {
        ("train-000000.tar", "missing"),
        ("train-000001.tar", "truncated"),
        ("train-000002.tar", "longer"),
        ("train-000003.tar", "foreign-shard"),
    } <= found


@pytest.mark.parametrize("kind", ["jpg", "cls", "json"])
def test_a_missing_member_is_named_even_if_all_hashes_fit(split, kind):
    path, _, key = _image_at(split, 3)
    _write(path, [m for m in _members(path) if m[0] != f"{key}.{kind}"])
    _seal(split)
    named = {"jpg": "image"}.get(kind, kind)
    assert (f"{path.name}/{key}", f"missing-{named}") in _reasons(split)


def test_repeated_foreign_and_exchanged_members_are_named_even_if_all_hashes_fit(split):
    path, _, key = _image_at(split, 0)
    members = _members(path)
    _write(path, [*members, members[1], ("new.jpg", b"x"), (f"{key}.pickle", b"x")])
    _seal(split)
    assert _reasons(split) == {
        (f"{path.name}/{key}.jpg", "duplicate-member"),
        (f"{path.name}/new.jpg", "foreign-member"),
        (f"{path.name}/{key}.pickle", "foreign-member"),
    }
    other = next(name for name, _ in members if name.endswith(".cls") and not name.startswith(key))
    content = dict(members)
    first = f"{key}.json"
    second = other.replace("cls", "json")
    content[first], content[second] = content[second], content[first]
    _write(path, list(content.items()))
    _seal(split)
    found = _reasons(split)
    assert (f"{path.name}/{key}", "facts-of-another-image") in found


def test_labels_that_differ_are_named_even_if_all_hashes_fit(split):
    _, _, key = _image_at(split, 0)
    index = np.load(split / "index.npy")
    first, second = 0, int(np.argmax(index["label"] != index["label"][0]))
    index["label"][[first, second]] = index["label"][[second, first]]
    np.save(split / "index.npy", index)
    assert ("index.npy", "altered") in _reasons(split)
    _seal(split)
    name = f"train-000000.tar/{key}.cls"
    assert (name, "wrong-label") in _reasons(split)


def test_a_link_a_fifo_and_hostile_members_are_refused_without_blocking(split):
    os.unlink(split / "train-000000.tar")
    os.mkfifo(split / "train-000000.tar")
    path, _, key = _image_at(split, 3)
    links = b""
    for name in ("a", f"{key}.cls", "k" * 200):
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        links += info.tobuf(tarfile.PAX_FORMAT)
    block = bytearray(header("k0.jpg", 0))
    block[124:136] = b"\x80" + b"\x7f" * 11  # a size of 10**26
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    path.write_bytes(links + bytes(block) + bytes(10240))
    found = _reasons(split)
    assert ("train-000000.tar", "not-a-file") in found
    assert (f"{path.name}/a", "foreign-member") in found
    assert (f"{path.name}/{key}.cls", "damaged-header") in found
    assert (f"{path.name}/k0.jpg", "damaged-header") in found
    os.unlink(split / "index.npy")
    os.mkfifo(split / "index.npy")
    os.unlink(split / "manifest.json")
    assert _reasons(split) == {("manifest.json", "missing")}
    os.mkfifo(split / "manifest.json")
    assert _reasons(split) == {("manifest.json", "not-a-file")}


def test_what_is_beside_index_and_shards_is_covered(split, capsys):
    (split / "findings.jsonl").write_text("{}\n")
    (split / "pixels.npy").unlink()
    assert _reasons(split) == {("findings.jsonl", "altered"), ("pixels.npy", "missing")}
    assert cli(["verify", str(split), "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {(line["path"], line["verdict"], *line["reasons"]) for line in lines} == {
        (str(split / "findings.jsonl"), "corrupt", "altered"),
        (str(split / "pixels.npy"), "corrupt", "missing"),
    }


def _mutate(folder, rng):
    """Change something at random; say what."""
    names = sorted(path.name for path in folder.iterdir() if path.stat().st_size)
    path = folder / names[rng.integers(len(names))]
    content = bytearray(path.read_bytes())
    place = int(rng.integers(len(content)))
    how = rng.choice(["flip", "byte", "cut", "insert", "remove", "zero", "append", "copy"])
    if how == "flip":
        content[place] ^= 1 << int(rng.integers(8))
    elif how == "byte":
        content[place] = (content[place] + int(rng.integers(1, 256))) % 256
    elif how == "cut":
        del content[place:]
    elif how == "insert":
        content[place:place] = rng.bytes(int(rng.integers(1, 600)))
    elif how == "remove":
        del content[place : place + int(rng.integers(1, 600))]
    elif how == "zero":
        end = place + int(rng.integers(1, 600))
        if not any(content[place:end]):
            content[place] = 1
        else:
            content[place:end] = bytes(len(content[place:end]))
    elif how == "append":
        content += rng.bytes(int(rng.integers(1, 600)))
    else:
        # Whole blocks of one shard over those of another: members that are whole but foreign.
        other = bytearray((folder / names[rng.integers(len(names))]).read_bytes())
        begin = int(rng.integers(max(len(other) // 512, 1))) * 512
        piece = other[begin : begin + 512 * int(rng.integers(1, 4))]
        target = place // 512 * 512
        if content[target : target + len(piece)] == piece:
            content += b"\0"
        else:
            content[target : target + len(piece)] = piece
    path.write_bytes(content)
    return f"{how} of {path.name} at {place}"


def _read_all(folder):
    """What training would read: by number (key, label, image), or the error."""
    try:
        dataset = ShardDataset(folder)
        dataset.check_files()
    except DataError as error:
        return error
    samples = []
    for number in range(len(dataset)):
        try:
            samples.append((dataset.key(number), dataset.labels[number], dataset.read(number)))
        except DataError as error:
            samples.append(error)
    return samples


@pytest.mark.parametrize("seed", range(4))
def test_every_random_mutation_is_noticed_and_training_reads_no_wrong_sample(made, tmp_path, seed):
    truth = _read_all(made)
    assert len(truth) == 9
    original = {path.name: path.read_bytes() for path in made.iterdir()}
    folder = tmp_path / "train"
    folder.mkdir()
    noticed_by_training = 0
    for number in range(250):
        for name, content in original.items():
            (folder / name).write_bytes(content)
        what = _mutate(folder, np.random.default_rng((seed, number)))
        assert list(verify_split(folder)), what
        samples = _read_all(folder)
        if isinstance(samples, DataError):
            noticed_by_training += 1
            continue
        for sample, right in zip(samples, truth, strict=True):
            if isinstance(sample, DataError):
                noticed_by_training += 1
            else:
                assert sample == right, what
    print(f"training stopped in {noticed_by_training} cases")
    assert noticed_by_training > 100
