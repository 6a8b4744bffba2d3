import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from data_shards.__main__ import cli
from data_shards.audit.check import Check
from data_shards.images.examine import examine_item
from data_shards.sources.listing import Item
from tests.data_shards.images.zoo import photographs, whole, zoo
from tests.data_shards.small_split import encoded, noise

PHOTO, OTHER, THIRD = photographs()[:3]


def _check(capsys, *arguments):
    """Run the command in this process; return its exit code and the findings as JSON."""
    code = cli(["check", *map(str, arguments), "--workers", "1", "--json"])
    return code, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def _verdicts(findings):
    return {(found["path"], found["verdict"], *found["reasons"]) for found in findings}


def _fill(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def _tar(path, files):
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def _expected(prefix):
    return {
        (f"{prefix}/{exhibit.name}", exhibit.verdict, *exhibit.reasons)
        for exhibit in zoo()
        if exhibit.verdict != "ok" or exhibit.flags
    }


def _without_duplicates(findings):
    return _verdicts(found for found in findings if found["verdict"] != "duplicate")


def test_the_zoo_in_a_folder(tmp_path, capsys):
    folder = _fill(tmp_path / "zoo", {exhibit.name: exhibit.content for exhibit in zoo()})
    code, findings = _check(capsys, folder)
    assert code == 1
    assert _without_duplicates(findings) == _expected(folder)
    flags = {Path(found["path"]).name: tuple(found.get("flags", ())) for found in findings}
    assert flags["cmyk.jpg"] == ("cmyk",)
    # Byte for byte the same, but one has another name.
    assert any(found["verdict"] == "duplicate" for found in findings)


def test_the_zoo_in_a_tar_of_tars(tmp_path, capsys):
    inner = _tar(tmp_path / "inner.tar", {exhibit.name: exhibit.content for exhibit in zoo()})
    outer = _tar(tmp_path / "outer.tar", {"n01440764.tar": inner.read_bytes()})
    code, findings = _check(capsys, outer)
    assert code == 1
    assert _without_duplicates(findings) == _expected(f"{outer}/n01440764.tar")


def test_clean_is_silent(tmp_path, capsys):
    folder = _fill(tmp_path / "in", {"a/1.JPEG": PHOTO, "b/2.jpg": OTHER, "readme.txt": b"hello"})
    assert _check(capsys, folder) == (0, [])
    assert _check(capsys, folder / "a" / "1.JPEG") == (0, [])
    assert cli(["check", str(folder), "--workers", "2"]) == 0
    assert "2 images checked" in capsys.readouterr().out


def test_suspects_are_findings_only_if_strict(tmp_path, capsys):
    odd = next(e for e in zoo() if e.verdict == "suspect")
    folder = _fill(tmp_path / "in", {odd.name: odd.content})
    assert _check(capsys, folder)[0] == 0
    code, findings = _check(capsys, folder, "--strict")
    assert code == 1
    assert _verdicts(findings) == {(f"{folder}/{odd.name}", "suspect", *odd.reasons)}


def test_duplicates_within_and_across_paths(tmp_path, capsys):
    repacked = _repacked(PHOTO)
    train = _fill(tmp_path / "train", {"n01/a.jpg": PHOTO, "n02/b.jpg": OTHER, "n03/c.jpg": PHOTO})
    val = _fill(tmp_path / "val", {"n01/d.jpg": repacked, "n02/e.jpg": THIRD})
    shards = _tar(tmp_path / "train-000000.tar", {"x.jpg": THIRD, "x.cls": b"1", "x.json": b"{}"})
    code, findings = _check(capsys, train, val, shards)
    assert code == 1
    assert [(f["path"], f["verdict"], f["reasons"], f["of"]) for f in findings] == [
        (f"{train}/n03/c.jpg", "duplicate", ["same-bytes"], f"{train}/n01/a.jpg"),
        (f"{shards}/x.jpg", "duplicate", ["same-bytes"], f"{val}/n02/e.jpg"),
        (f"{val}/n01/d.jpg", "duplicate", ["same-pixels"], f"{train}/n01/a.jpg"),
    ]


def _repacked(content):
    """The same coded pixels behind another header."""
    start = content.index(b"\xff\xdb")
    return content[:start] + b"\xff\xfe\x00\x08remark" + content[start:]


def test_images_that_are_the_same_only_when_small_are_no_duplicates(tmp_path, capsys):
    """The first look sees an eighth of the size; the second sees every pixel."""
    files = {}
    for phase in range(2):
        # Stripes of one pixel: every block of 8 has the same mean.
        stripes = Image.new("L", (64, 64))
        stripes.putdata(
            [120 + 16 * ((x + phase) % 2) + 4 * (x // 8) for _ in range(64) for x in range(64)]
        )
        stream = io.BytesIO()
        stripes.save(stream, "JPEG", quality=100)
        files[f"{phase}.jpg"] = stream.getvalue()
    folder = _fill(tmp_path / "in", files)
    results = {examine_item(_item(folder / name))[0].pixels for name in files}
    assert len(results) == 1
    assert _check(capsys, folder) == (0, [])


def _item(path):
    return Item(path.name, "", 0, "", str(path), 0, path.stat().st_size)


def test_a_folder_of_shards(tmp_path, capsys):
    for number, content in enumerate((PHOTO, OTHER[:-500])):
        _tar(
            tmp_path / f"val-{number:06d}.tar",
            {"k.jpg": content, "k.cls": b"7", "k.json": b"{}"},
        )
    (tmp_path / "manifest.json").write_text("{}")
    code, findings = _check(capsys, tmp_path)
    assert code == 1
    assert _verdicts(findings) == {(f"{tmp_path}/val-000001.tar/k.jpg", "corrupt", "truncated")}


def _webp(seed):
    return encoded(noise(seed, (32, 32)), "WEBP")


def _index(root, split, files):
    """Make ``w/<split>`` of a tar that another program wrote."""
    (root / "c.csv").write_text("wnid,class\nn0,cat\nn1,dog\n")
    (root / "w" / split).mkdir(parents=True)
    tar = _tar(root / "w" / split / "000.tar", files)
    words = ["index", str(tar), "--dataset", "pets", "--classes", str(root / "c.csv")]
    cli([*words, "--workers", "1"])
    return tar


@pytest.fixture
def indexed(tmp_path, capsys):
    """Two splits of indexed shards with WebP images, two of them in both; one has no end."""
    for split, seeds in (("train", range(6)), ("test", range(4, 9))):
        files = {"9.webp": _webp(9)[:-30], "9.cls": b"1"}
        for seed in seeds:
            name = f"{seed}.{'WebP' if seed % 2 else 'jpg'}"  # the content is WebP in each
            files |= {name: _webp(seed), f"{seed}.cls": b"0"}
        _index(tmp_path, split, files)
    capsys.readouterr()
    return tmp_path / "w"


def test_indexed_shards_may_hold_webp(indexed, capsys):
    train, test = indexed / "train" / "000.tar", indexed / "test" / "000.tar"
    cut = {(f"{tar}/9.webp", "corrupt", "truncated") for tar in (train, test)}
    twice = {
        (f"{train}/4.jpg", "duplicate", "same-bytes"),
        (f"{train}/5.WebP", "duplicate", "same-bytes"),
    }
    code, findings = _check(capsys, indexed)
    assert code == 1
    assert {found for found in _verdicts(findings) if found[1] != "ok"} == cut | twice
    assert cli(["check", str(train), str(test.parent), "--workers", "1"]) == 1
    assert "13 images checked" in capsys.readouterr().out


def test_webps_of_the_same_pixels_are_found_in_indexed_shards(tmp_path, capsys):
    first = _index(tmp_path, "train", {"a.webp": _webp(3), "a.cls": b"0"})
    second = _index(tmp_path, "val", {"b.webp": _webp(3) + b"more", "b.cls": b"0"})
    capsys.readouterr()
    code, findings = _check(capsys, tmp_path / "w")
    assert code == 1
    assert [(f["path"], f["reasons"], f["of"]) for f in findings if "of" in f] == [
        (f"{second}/b.webp", ["same-pixels"], f"{first}/a.webp")
    ]


@pytest.mark.parametrize("lost", ["manifest", "name", "mark"])
def test_webp_of_tars_that_are_not_indexed_is_refused(indexed, capsys, lost):
    tar, manifest = indexed / "train" / "000.tar", indexed / "train" / "manifest.json"
    if lost == "manifest":
        manifest.write_text("{}")
    elif lost == "name":
        tar = tar.rename(tar.with_name("001.tar"))
    else:
        manifest.write_text(manifest.read_text().replace('"indexed": true', '"indexed": false'))
    code, findings = _check(capsys, tar)
    assert code == 1
    expected = {(f"{tar}/{seed}.jpg", "refused", "unsupported-format") for seed in (0, 2, 4)}
    expected |= {(f"{tar}/{seed}.WebP", "refused", "extension") for seed in (1, 3, 5)}
    assert _verdicts(findings) == expected | {(f"{tar}/9.webp", "refused", "extension")}


def test_what_is_no_file_is_refused_without_blocking(tmp_path):
    folder = _fill(tmp_path / "in", {"good.jpg": PHOTO})
    outside = _fill(tmp_path / "out", {"secret.jpg": OTHER})
    os.mkfifo(folder / "fifo.jpg")
    (folder / "link.jpg").symlink_to(outside / "secret.jpg")
    (folder / "device.jpg").symlink_to("/dev/zero")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "folder").symlink_to(outside)
    os.mkfifo(folder / "fifo.tar")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(folder / "socket.jpg"))
        command = [sys.executable, "-m", "data_shards", "check", folder, folder.parent / "out"]
        done = subprocess.run(
            [*command, "--json"], capture_output=True, text=True, timeout=1000, check=False
        )
    assert done.returncode == 1, done.stderr
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert {found["verdict"] for found in findings} == {"refused"}
    names = {Path(found["path"]).name for found in findings}
    assert names == {
        *("fifo.jpg", "link.jpg", "device.jpg", "loop.jpg"),
        *("folder", "fifo.tar", "socket.jpg"),
    }


@pytest.mark.parametrize("kind", ["fifo", "tar-fifo", "device"])
def test_a_path_that_is_no_file_is_refused(tmp_path, capsys, kind):
    path = {"fifo": tmp_path / "a.jpg", "tar-fifo": tmp_path / "a.tar"}.get(kind, "/dev/zero")
    if kind != "device":
        os.mkfifo(path)
    code, findings = _check(capsys, path)
    assert code == 1
    assert _verdicts(findings) == {(str(path), "refused", "not-a-file")}


def test_a_damaged_archive_does_not_end_the_check(tmp_path, capsys):
    whole_tar = _tar(tmp_path / "b.tar", {"1.jpg": PHOTO})
    (tmp_path / "a.tar").write_bytes(whole_tar.read_bytes()[:2000])
    packed = tmp_path / "c.tar"
    packed.write_bytes(b"\x1f\x8b" + bytes(600))
    _fill(tmp_path, {"d.jpg": OTHER[:5000]})
    code, findings = _check(capsys, tmp_path)
    assert code == 1
    assert _verdicts(findings) == {
        (f"{tmp_path}/a.tar", "corrupt", "damaged-archive"),
        (f"{tmp_path}/c.tar", "refused", "compressed-archive"),
        (f"{tmp_path}/d.jpg", "corrupt", "truncated"),
    }


class _Fragile(Check):
    """A check whose decoder dies, hangs or eats all memory on some images."""

    def _map(self, function, items, total, title):
        return super()._map(_fragile if title == "checking" else function, items, total, title)


def _fragile(image):
    if "deadly" in image.item.source:
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hungry" in image.item.source:
        bytearray(2**30)
    return examine_item(image.item)[0]


def test_an_image_that_kills_the_decoder_is_named_and_the_rest_goes_on(tmp_path):
    files = {f"{number}.jpg": content for number, content in enumerate(photographs())}
    files |= {"3-deadly.jpg": PHOTO, "7-deadly.jpg": OTHER, "9-hungry.jpg": THIRD, "z.jpg": b"no"}
    folder = _fill(tmp_path / "in", files)
    check = _Fragile([folder], workers=1, progress=False)
    assert {(Path(f.path).name, f.verdict, *f.reasons) for f in check.run()} == {
        ("3-deadly.jpg", "corrupt", "crashed-decoder"),
        ("7-deadly.jpg", "corrupt", "crashed-decoder"),
        ("9-hungry.jpg", "refused", "too-large"),
        ("z.jpg", "corrupt", "not-an-image"),
    }
    assert check.images == 24


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["/nonexistent"], "cannot be read"),
        (["{in}", "{in}"], "give it once"),
        (["{in}", "{in}/sub"], "lies inside"),
        (["{in}", "--workers", "0"], "--workers is 0"),
    ],
)
def test_wrong_use_is_one_line(tmp_path, capsys, arguments, words):
    folder = _fill(tmp_path / "in", {"sub/1.jpg": PHOTO})
    assert cli(["check", *(word.replace("{in}", str(folder)) for word in arguments)]) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert words in shown


def test_the_report_does_not_depend_on_workers(tmp_path, capsys):
    files = {f"{n}/{name}": content for n in range(2) for name, content in whole().items()}
    folder = _fill(tmp_path / "in", {**files, "1/cut.jpg": PHOTO[:9000]})
    reports = set()
    for workers in ("1", "2"):
        assert cli(["check", str(folder), "--workers", workers, "--json"]) == 1
        reports.add(capsys.readouterr().out)
    assert len(reports) == 1
    assert reports.pop().count("same-bytes") == len(whole())
