"""convert, merge and verify as commands: exit codes and what they print."""

import dataclasses
import io
import json

import pytest
from PIL import Image

from data_shards.__main__ import cli
from data_shards.commands.shared import parse_limit, parse_part
from data_shards.convert.estimate import estimate
from data_shards.convert.plan import Conversion, Options
from data_shards.errors import UsageError
from tests.data_shards.converted import listing
from tests.data_shards.tiny import tree
from tests.data_shards.trees import (
    WNIDS,
    jpeg,
    train_images,
    val_images,
    write_devkit,
    write_folder,
    write_val_tar,
)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    images = {wnid: dict(files) for wnid, files in train_images(each=4).items()}
    first = next(iter(images.values()))
    name = next(iter(first))
    first[name] = first[name][:-50]
    return write_folder(tmp_path_factory.mktemp("source"), images)


def _command(source, output, *more):
    command = ["convert", "imagenet9", "--source", str(source), "--output", str(output)]
    command += ["--split", "train", "--selection-fraction", "0", "--samples-per-shard", "7"]
    return [*command, "--workers", "1", *more]


def _lines(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_from_damaged_images_to_verified_shards(source, tmp_path, capsys):
    assert cli(_command(source, tmp_path)) == 1  # published, but somebody should look
    shown = capsys.readouterr().out
    assert "written, 19 images in 3 shards" in shown
    assert "left out: 1" in shown
    assert "n02085620_1.JPEG: truncated" in shown
    before = tree(tmp_path)
    assert cli(_command(source, tmp_path, "--json")) == 1
    finding, summary = _lines(capsys)
    assert (finding["verdict"], finding["reasons"]) == ("corrupt", ["truncated"])
    assert summary["state"] == "present"
    counts = [summary[name] for name in ("samples", "excluded", "corrupt", "refused", "suspect")]
    assert counts == [19, 1, 1, 0, 0]
    assert cli(_command(source, tmp_path, "--max-corrupt", "1")) == 0
    capsys.readouterr()
    assert tree(tmp_path) == before
    assert cli(["verify", str(tmp_path)]) == 0
    (tmp_path / "train" / "train-000001.tar").unlink()
    assert cli(["verify", str(tmp_path)]) == 1
    assert "train-000001.tar: missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (["--max-corrupt", "0"], "1 of 20 images are left out, more than --max-corrupt 0 allows"),
        (["--on-corrupt", "fail"], "more than --on-corrupt fail allows"),
    ],
)
def test_too_much_damage_publishes_nothing(source, tmp_path, capsys, limit, words):
    assert cli(_command(source, tmp_path, *limit)) == 1
    shown = capsys.readouterr().err.splitlines()
    errors = [line for line in shown if not line.startswith("warning: ")]
    assert len(errors) == 1
    assert "n02085620_1.JPEG: corrupt (truncated)" in errors[0]
    assert words in errors[0]
    assert not (tmp_path / "train").exists()


def test_parts_and_merge(source, tmp_path, capsys):
    assert cli(_command(source, tmp_path / "whole", "--max-corrupt", "0.1")) == 0
    output = tmp_path / "parts"
    assert cli(_command(source, output, "--part", "2/2")) == 0
    merge = ["merge", str(output), "--split", "train", "--workers", "1"]
    assert cli(merge) == 1
    assert "2 of 3 shards are not written yet: 0, 2;" in capsys.readouterr().err
    assert cli(_command(source, output, "--part", "1/2", "--json")) == 0
    assert _lines(capsys)[0]["state"] == "part"
    assert cli([*merge, "--max-corrupt", "0"]) == 1
    assert cli([*merge, "--max-corrupt", "1"]) == 0
    assert tree(output) == tree(tmp_path / "whole")


def test_machines_hear_of_warnings_and_of_another_archive(tmp_path, capsys):
    images = val_images(each=1)
    archive = write_val_tar(tmp_path / "in" / "ILSVRC2012_img_val.tar", images)
    write_devkit(tmp_path / "in" / "ILSVRC2012_devkit_t12.tar.gz", images)
    command = ["convert", "imagenet9", "--source", str(archive), "--workers", "1", "--json"]
    command += ["--output", str(tmp_path / "out")]
    for more in (["--dry-run"], ["--part", "1/1"]):
        code = cli([*command, *more])
        *found, summary = _lines(capsys)
        assert any("50,000 are published" in line or "md5" in line for line in summary["warnings"])
        assert any("class folders have no images" in line for line in summary["warnings"])
    # All of its images are whole: only the md5 says that they may not be the published ones.
    assert (code, [f["reasons"] for f in found]) == (1, [["md5-mismatch"]])
    command[-1] = str(tmp_path / "as it is")
    assert cli([*command, "--no-md5"]) == 0


def test_dry_run_estimates_and_writes_nothing(source, tmp_path, capsys):
    output = tmp_path / "out"
    assert cli(_command(source, output, "--dry-run", "--json")) == 0
    (report,) = _lines(capsys)
    assert not output.exists()
    assert (report["state"], report["images"], report["shards"]) == ("planned", 20, 3)
    assert (report["sampled"], report["damaged_in_sample"]) == (20, 1)
    assert report["seconds"] > 0
    cli(_command(source, output, "--json"))
    written = _lines(capsys)[-1]["bytes"]
    print(f"expected {report['bytes']} bytes, written {written}")
    # The rest is the end of each tar, up to 10 KB, which counts when shards are this small.
    assert written / 2 < report["bytes"] < written


@pytest.mark.slow
def test_an_estimate_has_a_workers_memory_alone(tmp_path):
    """An image that would take this process past 512 MB is counted, and named by no crash."""
    given = listing(tmp_path / "in", 5)
    stream = io.BytesIO()
    Image.new("RGBA", (8000, 8000), (1, 2, 3, 4)).save(stream, "PNG", compress_level=1)
    path = tmp_path / "in" / "huge.png"
    path.write_bytes(stream.getvalue())
    huge = dataclasses.replace(
        given.items[0], key="huge", source="huge", path=str(path), length=len(stream.getvalue())
    )
    conversion = Conversion(
        dataclasses.replace(given, items=(*given.items, huge)), Options(resize=16)
    )
    found = estimate(conversion, 2, range(conversion.shards))
    assert (found.images, found.sampled, found.damaged) == (6, 6, 1)
    assert found.seconds > 0


def test_estimate_of_resized_images_is_measured(tmp_path, capsys):
    images = {WNIDS[0]: {f"{WNIDS[0]}_{n}.JPEG": jpeg(n, (640, 480)) for n in range(5)}}
    source = write_folder(tmp_path / "in", images)
    cli(_command(source, tmp_path / "out", "--dry-run", "--json"))
    cli(_command(source, tmp_path / "out", "--dry-run", "--json", "--resize", "64"))
    large, small = _lines(capsys)
    cli(_command(source, tmp_path / "out", "--json", "--resize", "64"))
    written = _lines(capsys)[-1]["bytes"]
    assert written - 20480 < small["bytes"] <= written < large["bytes"]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--workers", "0"], "--workers is 0"),
        (["--samples-per-shard", "0"], "--samples-per-shard is 0"),
        (["--bytes-per-shard", "0"], "--bytes-per-shard is 0"),
        (["--resize", "0"], "--resize is 0"),
        (["--resize", "8", "--quality", "101"], "--quality is 101"),
        (["--part", "0/2"], "--part 0/2: must be i/n"),
        (["--part", "3/2"], "--part 3/2: must be i/n"),
        (["--part", "1"], "--part 1: must be i/n"),
        (["--max-corrupt", "-1"], "--max-corrupt -1: must be"),
        (["--max-corrupt", "1.5"], "--max-corrupt 1.5: must be"),
        (["--max-corrupt", "many"], "--max-corrupt many: must be"),
        (["--max-corrupt", "1", "--on-corrupt", "fail"], "give one"),
    ],
)
def test_wrong_use_is_one_line(source, tmp_path, capsys, more, words):
    assert cli(_command(source, tmp_path / "out", *more)) == 2
    shown = capsys.readouterr().err
    assert shown.count("\n") == 1
    assert words in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("address", ["pipe:touch {}", "file:{}", "http://127.0.0.1:9/{}"])
def test_a_source_is_a_path_and_no_address_that_is_opened(tmp_path, monkeypatch, capsys, address):
    monkeypatch.chdir(tmp_path)
    sentinel = tmp_path / "sentinel"
    assert cli(_command(address.format(sentinel), tmp_path / "out")) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_limits_and_parts_are_parsed():
    assert parse_limit(None) is None
    assert parse_limit("0") == 0
    assert isinstance(parse_limit("1"), int)
    assert isinstance(parse_limit("1.0"), float)
    assert parse_limit("0.001") == 0.001
    assert parse_part("3/8") == (3, 8)
    with pytest.raises(UsageError):
        parse_limit("nan")


@pytest.mark.parametrize(
    "command", [["merge", "{}", "--split", "train"], ["verify", "{}"], ["verify", "{}/none"]]
)
def test_nothing_there_is_wrong_use(tmp_path, capsys, command):
    assert cli([word.replace("{}", str(tmp_path)) for word in command]) == 2
    assert capsys.readouterr().err.count("\n") == 1
