"""Tars that other programs wrote become a split without being rewritten; hostile ones are named."""

import io
import json
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds
from PIL import Image

from data_shards.__main__ import cli
from data_shards.audit.verify import verify_split
from data_shards.format.attributes import load_attributes
from data_shards.format.manifest import load_split
from rebias_dist.data import ShardDataset
from tests.data_shards.small_split import encoded, noise
from tests.data_shards.tiny import tree
from tests.distributed.ranks import run_ranks

CLASSES = ("cat", "dog", "owl")


def write_tar(path: Path, members, **options) -> Path:
    """Write (name or TarInfo, content) into a tar."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def sample(key: str, number: object, seed: int, kind: str = "JPEG", **facts):
    """Return the members of a sample; facts make a .json."""
    extension = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}[kind]
    members = [(f"{key}.{extension}", encoded(noise(seed, (32, 32)), kind))]
    members += [(f"{key}.cls", str(number).encode())]
    return members + ([(f"{key}.json", json.dumps(facts).encode())] if facts else [])


@pytest.fixture
def classes(tmp_path):
    path = tmp_path / "classes.csv"
    path.write_text("wnid,class\nn0,cat\nn1,dog\nn2,owl\n")
    return str(path)


def index(*arguments, classes, workers=1):
    command = ["index", *map(str, arguments), "--dataset", "pets", "--classes", classes]
    return cli([*command, "--workers", str(workers)])


def findings_of(folder):
    lines = (folder / "findings.jsonl").read_text().splitlines()
    return {told["path"]: told["reasons"][0] for told in map(json.loads, lines)}


def rows_by_stock_webdataset(folder, split):
    """Return (key, image, label) as stock webdataset reads them."""
    urls = sorted(map(str, folder.glob("*.tar")))
    found = []
    for one in wds.WebDataset(urls, shardshuffle=False):
        (image,) = (one[e] for e in ("jpg", "png", "webp") if e in one)
        found.append((one["__key__"], image, int(one["cls"])))
    return found


def _train(root: str, runs_dir: str) -> dict:
    """Train two steps."""
    from rebias_dist.config.files import validate
    from rebias_dist.train import main

    small = {"name": "simple_convnet", "width": 0.25}
    config = {
        "name": "foreign",
        "runs_dir": runs_dir,
        "global_batch": 16,
        "micro_batch": 8,
        "max_steps": 2,
        "epochs": 1,
        "f": {**small, "kernel_size": 3},
        "g": [{**small, "kernel_size": 1}],
        "data": {"dataset": "pets", "root": root, "selection": "none", "test_splits": ["train"]},
        "evaluate": {"monitor": "train"},
    }
    main(validate(config))
    lines = Path(runs_dir, "foreign", "metrics.jsonl").read_text().splitlines()
    return [told["f/loss"] for told in map(json.loads, lines) if "f/loss" in told]


def test_shards_of_stock_webdataset_are_indexed_and_trained_from(tmp_path, classes, capsys):
    folder = tmp_path / "train"
    folder.mkdir()
    kinds = [("jpg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")]
    with wds.ShardWriter(str(folder / "train-%06d.tar"), maxcount=30, verbose=0) as sink:
        for number in range(80):
            extension, kind = kinds[number % 3]
            content = encoded(noise(number, (32, 32)), kind)
            facts = {"place": ("sea", "land")[number % 2], "number": number}
            sink.write(
                {
                    "__key__": f"a/{number:04d}",
                    extension: content,
                    "cls": number % 3,
                    **({"json": facts} if number != 5 else {}),
                }
            )
    before = tree(folder)
    pattern = str(folder / "train-{000000..000002}.tar")
    assert index(pattern, "--attributes", "place", classes=classes, workers=2) == 0
    said = capsys.readouterr().out
    assert "indexed, 80 images in 3 shards" in said
    assert f"train on it: rebias-train --data.root {tmp_path}" in said
    assert {name: content for name, content in tree(folder).items() if name in before} == before
    manifest, rows = load_split(folder)
    dataset = ShardDataset(folder)
    stock = rows_by_stock_webdataset(folder, "train")
    ours = [(dataset.key(i), dataset.read(i), int(dataset.labels[i])) for i in range(80)]
    assert ours == stock
    for number in range(80):
        expected = Image.open(io.BytesIO(stock[number][1])).convert("RGB")
        assert np.array_equal(dataset.image(number).permute(1, 2, 0).numpy(), np.array(expected))
    (place,) = manifest.attributes
    assert (place.name, place.values) == ("place", ("land", "sea"))
    assert sum(map(sum, place.counts)) == 79
    table = load_attributes(folder, manifest, rows)
    assert table["place"].tolist() == [-1 if n == 5 else (1, 0)[n % 2] for n in range(80)]
    assert not list(verify_split(folder))
    assert cli(["inspect", str(folder), "--json", "--contact-sheet", str(tmp_path / "a.png")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["formats"] == {"jpg": 27, "png": 27, "webp": 26}
    assert told["width"] == {"min": 32, "median": 32, "max": 32}
    state = tree(folder)
    assert index(pattern, "--attributes", "place", classes=classes) == 0
    assert "present" in capsys.readouterr().out
    assert index(pattern, classes=classes) == 2  # other options: nothing is overwritten
    assert tree(folder) == state
    losses = run_ranks(2, _train, str(tmp_path), str(tmp_path / "runs"))
    assert losses[0] == losses[1]
    assert len(losses[0]) == 2


def test_the_layout_of_imagenet_1k_wds_with_hard_links(tmp_path, capsys):
    """timm/imagenet-1k-wds: splits in one folder, members .cls, .jpg and .json, keys with wnids."""
    wnids = ["n01440764", "n01443537", "n01484850"]
    given = tmp_path / "given"
    for part, tars in (("train", 4), ("validation", 2)):
        for number in range(tars):
            members = []
            for i in range(60):
                seed = 1000 * (part == "train") + 60 * number + i
                wnid = wnids[seed % 3]
                key = f"{wnid}_{seed}"
                facts = {"label": seed % 3, "width": 32, "filename": f"{wnid}/{key}.JPEG"}
                image, label, text = sample(key, seed % 3, seed, **facts)
                members += [label, image, text]
            write_tar(given / f"imagenet1k-{part}-{number:04d}.tar", members)
    before = tree(given)
    shards = tmp_path / "shards"
    for part, last, split in (("train", 3, "train"), ("validation", 1, None)):
        command = ["index", f"{given}/imagenet1k-{part}-{{0000..{last:04d}}}.tar"]
        command += ["--dataset", "imagenet1k", "--classes", "imagenet1k", "--workers", "2"]
        assert cli(command) == 2  # the folder also has the tars of the other split
        assert (
            f"imagenet1k-{'validation' if split else 'train'}-0000.tar" in capsys.readouterr().err
        )
        more = ["--split", split] if split else ["--label-field", "label"]
        assert cli([*command, "--output", str(shards), *more]) == 0
    assert tree(given) == before
    assert sorted(path.name for path in shards.iterdir() if path.is_dir()) == [
        "imagenet1k-validation",
        "train",
    ]
    manifest, _ = load_split(shards / "train")
    assert (manifest.samples, manifest.class_counts[:4]) == (240, (80, 80, 80, 0))
    one = manifest.shards[0].name
    assert (shards / "train" / one).samefile(given / one)
    assert cli(["verify", str(shards)]) == 0


def test_every_odd_sample_is_named_and_the_others_are_kept(tmp_path, classes, capsys):
    folder = tmp_path / "train"
    whole = encoded(noise(1, (32, 32)))
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
    long = "x" * 150
    members = [
        *sample("a", 0, 2),
        ("cut.jpg", whole[:-40]), ("cut.cls", b"0"),
        ("grey.webp", encoded(noise(3, (32, 32)), "WEBP")[:-30]), ("grey.cls", b"0"),
        ("no.cls", b"1"),
        ("label.jpg", encoded(noise(4))),
        ("n2/folder.jpg", encoded(noise(5))),  # the folder is the class
        ("other.jpg", encoded(noise(6))), ("other.cls", b"3"),
        ("img.001.jpg", encoded(noise(7))), ("img.cls", b"0"),
        ("seg.jpg", encoded(noise(8))), ("seg.mask.png", b"any"), ("seg.cls", b"dog"),
        ("two.jpg", encoded(noise(9))), ("two.png", encoded(noise(9), "PNG")), ("two.cls", b"0"),
        ("twice.jpg", encoded(noise(10))), ("twice.cls", b"0"), ("twice.cls", b"1"),
        (f"{long}.jpg", encoded(noise(11))), (f"{long}.cls", b"n1"),  # a long name
        ("é ü.JPEG", encoded(noise(12))), ("é ü.cls", b" 2\n"),
        (link, b""), ("link.cls", b"0"),
        ("late.jpg", encoded(noise(13))), ("b.jpg", encoded(noise(14))),
        ("b.cls", b"1"), ("late.cls", b"2"),  # members of two samples mixed
        ("README", b"hello"), ("._a.jpg", b"hidden"), ("__meta__/x.jpg", b"skipped"),
        ("w" * 600 + ".jpg", encoded(noise(15))), ("w" * 600 + ".cls", b"0"),
        ("bomb.jpg", b"\xff\xd8\xff" + bytes(100)), ("bomb.cls", b"0"),
        ("gif.jpg", b"GIF89a" + bytes(100)), ("gif.cls", b"0"),
    ]  # fmt: skip
    write_tar(folder / "odd-0.tar", members, format=tarfile.PAX_FORMAT)
    write_tar(folder / "odd-1.tar", members[:2], format=tarfile.GNU_FORMAT)  # the key a again
    assert index(folder / "odd-{0,1}.tar", classes=classes) == 1
    manifest, rows = load_split(folder)
    kept = {row["key"].decode(): int(row["label"]) for row in rows}
    assert kept == {
        "odd-0/a": 0, "odd-0/n2/folder": 2, "odd-0/seg": 1, f"odd-0/{long}": 1,
        "odd-0/é ü": 2, "odd-0/late": 2, "odd-0/b": 1, "odd-1/a": 0,
    }  # fmt: skip
    found = findings_of(folder)
    assert found == {
        "odd-0.tar/cut.jpg": "truncated",
        "odd-0.tar/grey.webp": "truncated",
        "odd-0.tar/no": "no-image",
        "odd-0.tar/label.jpg": "no-label",
        "odd-0.tar/other.jpg": "unknown-class",
        "odd-0.tar/img": "dot-in-name",
        "odd-0.tar/two.jpg": "several-images",
        "odd-0.tar/twice.jpg": "duplicate-member",
        "odd-0.tar/link.jpg": "not-a-file",
        f"odd-0.tar/{'w' * 600}.jpg": "key",
        "odd-0.tar/bomb.jpg": found["odd-0.tar/bomb.jpg"],
        "odd-0.tar/gif.jpg": "unsupported-format",
        "odd-1.tar/odd-1/a": "same-bytes",
    }
    assert {left_out.source for left_out in manifest.excluded} == set(found) - {"odd-1.tar/odd-1/a"}
    assert not list(verify_split(folder))
    dataset = ShardDataset(folder)
    assert all(dataset.image(i).shape[0] == 3 for i in range(len(dataset)))
    capsys.readouterr()
    # The limit is that of convert.
    for name in ("manifest.json", "index.npy", "findings.jsonl", "pixels.npy"):
        (folder / name).unlink()
    assert index(folder / "*.tar", "--max-corrupt", "3", classes=classes) == 1
    assert "more than --max-corrupt 3 allows; nothing is written" in capsys.readouterr().err
    assert sorted(path.name for path in folder.iterdir()) == ["odd-0.tar", "odd-1.tar"]


def test_tars_that_cannot_be_used_are_all_named_with_the_cure(tmp_path, classes, capsys):
    folder = tmp_path / "train"
    good = write_tar(folder / "good.tar", sample("a", 0, 1)).read_bytes()
    more = write_tar(tmp_path / "more.tar", sample("b", 0, 2)).read_bytes()
    end = len(good.rstrip(b"\0")) // 512 * 512 + 512
    whole = write_tar(tmp_path / "w.tar", [*sample("a", 0, 1), *sample("b", 1, 2)]).read_bytes()
    bad = {
        "cut-payload": (whole[:900], "is truncated"),
        "cut-header": (whole[: end + 200], "is truncated"),
        "cut-between": (whole[:end], "is truncated"),
        "empty": (b"", "is truncated"),
        "text": (b"hello " * 500, "is no tar"),
        "two-in-one": (good + more, "is damaged, or is several tars in one"),
        "flipped": (whole[: end + 100] + b"\xff" * 60 + whole[end + 160 :], "is damaged"),
        "gz": (
            b"\x1f\x8b\x08" + bytes(600),
            "is compressed, so no image could be read by its place; unpack it ('gzip -d')",
        ),
        "zst": (b"\x28\xb5\x2f\xfd" + bytes(600), "is compressed"),
    }
    for name, (content, _) in bad.items():
        (folder / f"{name}.tar").write_bytes(content)
    before = tree(folder)
    names = sorted(bad)
    for some in (names[:5], names[5:]):
        given = [folder / f"{name}.tar" for name in ["good", *some]]
        split = tmp_path / "out"
        assert index(*given, "--output", split, "--split", "x", classes=classes) == 1
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "good.tar" not in said
        for name in some:
            assert f"{folder / name}.tar {bad[name][1]}" in said
        assert not split.exists() or not list(split.iterdir())
    assert tree(folder) == before


def test_wrong_use_is_refused_with_the_cure(tmp_path, classes, capsys):
    one = write_tar(tmp_path / "a/x-0.tar", sample("a", 0, 1, place="sea"))
    two = write_tar(tmp_path / "b/x-1.tar", sample("b", 9, 2))
    bare = write_tar(tmp_path / "c/x.tar", sample("a", 0, 1)[:1])
    (tmp_path / "a/x.tar.gz").write_bytes(b"\x1f\x8b")
    for arguments, said in (
        ([one, two], "several folders; give --output"),
        ([one, one], "two tars have this name"),
        ([tmp_path / "a/x-{0..1}.tar"], "x-1.tar: there is no such tar"),
        ([tmp_path / "none-*.tar"], "there are no such tars"),
        ([tmp_path / "a/x-{0.tar"], "a brace has no partner"),
        ([tmp_path / "a/x.tar.gz"], "must be named NAME.tar"),
        ([one, "--split", "train"], "becomes the split; rename it, or give --output"),
        ([one, "--attributes", "a b"], "must be a name"),
        ([one, "--attributes", "colour"], "no sample has this field"),
        ([two], "none of 1 samples can be used, so nothing is written; x-1.tar/b.jpg: unknown"),
        ([two], "unknown-class; the classes are cat, dog, owl\n"),
        ([one, "--label-field", "kind"], "no-label; its .json has no field 'kind', which"),
        ([bare], "no-label; it has no .cls and no folder; --label-field names a field of"),
    ):
        assert index(*arguments, classes=classes) in (1, 2)
        assert said in capsys.readouterr().err
    assert [path.name for path in two.parent.iterdir()] == ["x-1.tar"]
    assert sorted(path.name for path in one.parent.iterdir()) == ["x-0.tar", "x.tar.gz"]


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("train/0000.tar",), "train"),
        (("train/0000.tar", "train/0001.tar"), "train"),
        (("all/pets-val-000.tar", "all/pets-val-001.tar"), "pets-val"),
    ],
)
def test_the_split_below_output_is_named_by_the_tars_or_their_folder(
    tmp_path, classes, names, split
):
    tars = [write_tar(tmp_path / name, sample(name[-5], 0, 1)) for name in names]
    assert index(*tars, "--output", tmp_path / "out", classes=classes) == 0
    assert load_split(tmp_path / "out" / split)[0].split == split


def test_verify_names_what_changed_in_tars_of_others(tmp_path, classes):
    folder = tmp_path / "train"
    path = write_tar(folder / "x-0.tar", [*sample("a", 0, 1), *sample("b", 1, 2)])
    write_tar(folder / "x-1.tar", sample("c", 2, 3))
    assert index(folder / "*.tar", classes=classes) == 0
    _, rows = load_split(folder)
    content = bytearray(path.read_bytes())
    content[int(rows["offset"][1]) + 50] ^= 1
    path.write_bytes(content)
    write_tar(folder / "x-2.tar", sample("d", 2, 4))
    found = {(Path(f.path).relative_to(folder).as_posix(), f.reasons) for f in verify_split(folder)}
    assert found == {
        ("x-0.tar", ("altered",)),
        ("x-0.tar/b", ("altered",)),
        ("x-2.tar", ("foreign-shard",)),
    }


def test_an_interrupted_index_leaves_nothing(tmp_path, classes):
    folder = tmp_path / "train"
    for number in range(3):
        members = [m for i in range(40) for m in sample(f"{number}-{i}", 0, 100 * number + i)]
        write_tar(folder / f"x-{number}.tar", members)
    before = tree(tmp_path)
    command = [sys.executable, "-u", "-m", "data_shards", "index", str(folder / "*.tar")]
    command += ["--dataset", "pets", "--classes", classes, "--workers", "1"]
    code = (
        "import sys, data_shards.convert.index as i\n"
        "from data_shards.__main__ import cli\n"
        "def stop(*_): print('now', flush=True); sys.stdin.read()\n"
        "i.write_records = lambda *a, **k: (write(*a, **k), stop())\n"
        "from data_shards.format.writer import write_records as write\n"
        "sys.exit(cli(sys.argv[1:]))"
    )
    command[1:4] = ["-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"now\n"  # everything is written
        assert (folder / "manifest.json").exists()
        process.send_signal(signal.SIGINT)
        assert process.wait(100) == 130
    assert tree(tmp_path) == before


def test_the_manifest_does_not_depend_on_workers(tmp_path, classes):
    for name in ("one", "two"):
        for number in range(3):
            members = [m for i in range(5) for m in sample(f"{number}{i}", 0, 10 * number + i)]
            write_tar(tmp_path / name / f"x/x-{number}.tar", members)
    manifests = set()
    for workers, name in ((1, "one"), (2, "two")):
        assert index(tmp_path / name / "x/*.tar", classes=classes, workers=workers) == 0
        manifests.add((tmp_path / name / "x/manifest.json").read_bytes())
    assert len(manifests) == 1
