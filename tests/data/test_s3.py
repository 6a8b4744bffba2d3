"""Shards in a bucket of moto's S3 server, by the protocol that a real one speaks."""

import re
import sys
import threading

import pytest

from rebias_dist.commands.train import parse_train
from rebias_dist.data import ShardDataset, remote
from rebias_dist.data.workers import end_workers
from rebias_dist.errors import ConfigError, DataError, RebiasError
from tests.data.layouts import assert_equal, merged
from tests.evaluation.photographs import write
from tests.support.s3 import s3_server, use_s3

pytest.importorskip("moto.server")
s3fs = pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def endpoint():
    with s3_server() as found:
        yield found


@pytest.fixture
def bucket(endpoint, shards, tmp_path, monkeypatch):
    use_s3(endpoint, monkeypatch)
    monkeypatch.setenv("REBIAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_PAUSE", 0.01)
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    if not files.exists("photos"):
        files.mkdir("photos")
        files.put(str(shards / "train"), "photos/pets/train", recursive=True)
    return "s3://photos/pets"


def test_batches_from_a_bucket_are_those_from_disk(bucket, shards):
    there, here = ShardDataset(f"{bucket}/train"), ShardDataset(shards / "train")
    assert_equal(merged(there, 2, 1), merged(here, 2, 0))
    end_workers()


def test_a_bucket_says_what_its_shards_are(bucket, tmp_path):
    files = s3fs.S3FileSystem(skip_instance_cache=True)
    for split in ("train", "val"):
        write(tmp_path / "own", split, [0, 1, 2] * 4)
    files.put(str(tmp_path / "own"), "photos/insects", recursive=True)
    request = parse_train(["--data.root", "s3://photos/insects/"])
    config = request.config
    assert (config.data.root, config.data.dataset) == ("s3://photos/insects", "insects")
    assert (config.data.test_splits, config.data.selection) == (["val"], "none")
    assert "images of 12 × 12 pixels" in " ".join(request.notes)
    assert not request.default


def test_faults_of_a_bucket_are_one_line_with_the_cure(bucket, tmp_path, monkeypatch):
    for place in (f"{bucket}/test", "s3://nothing/train"):
        with pytest.raises(DataError, match=r"manifest.json: there is no such file \(404\)"):
            ShardDataset(place)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")  # nobody listens there
    with pytest.raises(RebiasError, match=r"train/manifest.json: .*, 2 times; the run can be"):
        ShardDataset(f"{bucket}/train")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    with pytest.raises(ConfigError) as caught:
        ShardDataset(f"{bucket}/train")
    assert re.search("access is denied .*set AWS_ACCESS_KEY_ID.*FSSPEC_S3_ANON", str(caught.value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["s3", "gs", "https"])
def test_a_missing_package_is_named_with_its_extra(scheme, tmp_path, monkeypatch):
    for name in ("s3fs", "gcsfs", "aiohttp"):
        monkeypatch.setitem(sys.modules, name, None)
    known = sys.modules["fsspec.registry"]._registry  # those that were imported
    for name in ("s3", "gs", "https"):
        monkeypatch.delitem(known, name, raising=False)
    store = remote.Store(f"{scheme}://photos/train")
    extra = {"s3": "s3", "gs": "gcs", "https": "http"}[scheme]
    with pytest.raises(ConfigError, match=rf"pip install 'rebias-dist\[{extra}\]'"):
        store.fetch("manifest.json", tmp_path / "manifest.json", threading.Event(), most=1)
