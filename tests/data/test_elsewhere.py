"""Shards behind an address: the same batches as from disk, and every way a server can fail."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from data_shards.format.manifest import load_manifest
from rebias_dist.config.data import DataConfig
from rebias_dist.data import EvalLoader, ShardDataset, open_split, remote
from rebias_dist.data import cache as cache_module
from rebias_dist.data.cache import Cache
from rebias_dist.data.remote import Store
from rebias_dist.data.workers import end_workers
from rebias_dist.errors import ConfigError, DataError, RebiasError
from tests.data.layouts import assert_equal, merged
from tests.data.misbehaving_server import serving
from tests.distributed.ranks import run_ranks

TINY = 1e-9  # gigabytes: no shard fits


@pytest.fixture
def server(shards):
    with serving(shards) as found:
        yield found


@pytest.fixture(autouse=True)
def cache_of_this_test(tmp_path, monkeypatch):
    monkeypatch.setenv("REBIAS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_PAUSE", 0.01)
    return tmp_path / "cache" / "fetched"


def fetched(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_from_disk_and_each_shard_is_fetched_once(
    shards, server, workers, cache_of_this_test
):
    here, there = ShardDataset(shards / "train"), ShardDataset(f"{server.url}/train")
    assert there.place == f"{server.url}/train"
    assert_equal(merged(there, 2, workers), merged(here, 2, 0))
    assert_equal(merged(there, 3, workers, epoch=1, start=2), merged(here, 3, 0, epoch=1, start=2))
    again = ShardDataset(f"{server.url}/train")
    assert_equal(merged(again, 1, workers), merged(here, 1, 0))
    names = [shard.name for shard in here.manifest.shards]
    assert server.requests == {"manifest.json": 2, "index.npy": 1, **dict.fromkeys(names, 1)}
    digests = {
        hashlib.sha256(path.read_bytes()).hexdigest() for path in fetched(cache_of_this_test)
    }
    assert digests == {shard.sha256 for shard in here.manifest.shards}
    end_workers()


def test_a_cache_smaller_than_a_window_fetches_uses_and_drops(shards, server, cache_of_this_test):
    here = ShardDataset(shards / "train")
    there = ShardDataset(f"{server.url}/train", cache_gb=TINY)
    changes = {"global_batch": 8, "micro_batch": 1, "window": 3}
    assert_equal(merged(there, 1, 0, **changes), merged(here, 1, 0, **changes))
    assert len(fetched(cache_of_this_test)) == 1  # one micro-batch of one sample
    assert max(server.requests.values()) > 1
    assert not list(cache_of_this_test.glob("*.part"))
    one = max(shard.bytes for shard in here.manifest.shards)
    there = ShardDataset(f"{server.url}/train", cache_gb=2.5 * one / 1e9)
    assert_equal(merged(there, 2, 2, epoch=1), merged(here, 2, 0, epoch=1))
    end_workers()


def test_evaluation_and_single_reads(shards, server, cache_of_this_test):
    here, there = ShardDataset(shards / "unbiased"), ShardDataset(f"{server.url}/unbiased")
    there.check_files()
    assert there.read(123) == here.read(123)
    for one, other in zip(EvalLoader(here, batch=9), EvalLoader(there, batch=9), strict=True):
        assert (one.images == other.images).all()
        assert one.samples.tolist() == other.samples.tolist()
    opened = open_split(server.url, "unbiased", dataset="biased_mnist")
    assert len(opened) == len(here)
    with pytest.raises(ConfigError, match="holds the data set"):
        open_split(server.url, "unbiased", dataset="other")


def test_what_is_in_use_is_never_removed_and_the_oldest_goes_first(
    shards, server, cache_of_this_test
):
    manifest = load_manifest(shards / "train")
    some = manifest.shards[:4]
    cache = Cache(sum(shard.bytes for shard in some[:3]))
    store, running = Store(f"{server.url}/train"), threading.Event()
    first = cache.get(some[0], store, running)
    for shard in some[1:3]:
        cache.let_go(cache.get(shard, store, running))
    cache.let_go(cache.hold(some[1]))  # used again, so shard 2 is the oldest that is free
    cache.let_go(cache.get(some[3], store, running))
    names = {path.stem for path in fetched(cache_of_this_test)}
    assert names == {some[n].sha256 for n in (0, 1, 3)}
    # A worker that was forked while the shard was in use does not keep it from going.
    child = os.fork()
    if not child:
        signal.pause()
    try:
        cache.let_go(first)
        cache.let_go(cache.get(some[2], store, running))
        names = {path.stem for path in fetched(cache_of_this_test)}
        assert names == {some[n].sha256 for n in (1, 2, 3)}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_shard_that_is_cut_in_the_cache_is_fetched_again(shards, server, cache_of_this_test):
    dataset = ShardDataset(f"{server.url}/train")
    expected = dataset.read(0)
    (path,) = fetched(cache_of_this_test)
    path.write_bytes(path.read_bytes()[:-512])
    assert dataset.read(0) == expected
    # So is one whose fetch was killed.
    path.rename(path.with_suffix(".part"))
    assert dataset.read(0) == expected
    assert len(fetched(cache_of_this_test)) == 1


SHARD = "train-000000.tar"


@pytest.mark.parametrize(
    ("fault", "kind", "said", "requests"),
    [
        ("404", remote.MissingFileError, r"there is no such file \(404\); check the address$", 1),
        ("403", ConfigError, r"access is denied \(403.*must give the files to everyone$", 1),
        ("500", RebiasError, r"500.*, 4 times; the run can be continued", 4),
        ("ends early", RebiasError, r"ends .*, 4 times; the run can be continued", 4),
        ("no length, short", RebiasError, r"ends after [\d,]+ of [\d,]+ bytes, 4 times", 4),
        # The bytes too many may be taken for the next answer.
        ("says less", RebiasError, r"(ends after [\d,]+ of [\d,]+ bytes|400, .*), 4 times", 4),
        ("says more", RebiasError, r"ends early, 4 times", 4),
        ("longer", DataError, r"has more than the [\d,]+ bytes it may have$", 1),
        ("changed", DataError, r"its sha256 is [0-9a-f]{64}, not [0-9a-f]{64}; restore it", 1),
        ("hangs", RebiasError, r"no answer for 0.2 s, 4 times", 4),
    ],
)
def test_every_fault_of_a_server_is_one_line_with_the_cure(
    server, fault, kind, said, requests, cache_of_this_test, monkeypatch
):
    monkeypatch.setattr(remote, "_READ", 0.2)
    server.faults[SHARD] = fault
    dataset = ShardDataset(f"{server.url}/train")
    with pytest.raises(RebiasError) as caught:
        merged(dataset, 1, 0)
    assert type(caught.value) is kind
    assert re.search(said, str(caught.value))
    assert "\n" not in str(caught.value)
    if kind is not ConfigError:
        assert f"{server.url}/train/{SHARD}: " in str(caught.value)
    assert server.requests[SHARD] == requests
    while list(cache_of_this_test.glob("*.part")):  # threads that nobody waits for end soon
        time.sleep(0.01)


@pytest.mark.parametrize("fault", ["500", "ends early", "hangs"])
def test_a_fault_that_passes_does_no_harm(shards, server, fault, monkeypatch):
    monkeypatch.setattr(remote, "_READ", 0.2)
    server.faults[SHARD] = fault
    server.times[SHARD] = remote.ATTEMPTS - 1
    there = ShardDataset(f"{server.url}/train")
    assert_equal(merged(there, 1, 0), merged(ShardDataset(shards / "train"), 1, 0))


def test_a_wrong_address_or_manifest(server, shards, tmp_path):
    for split, name, fault, said in (
        ("train", "manifest.json", "404", "manifest.json: there is no such file (404)"),
        ("train", "manifest.json", "changed", "manifest.json: "),
        ("train", "index.npy", "changed", "index.npy: is not the file that its manifest describes"),
    ):
        server.faults = {name: fault}
        with pytest.raises(DataError, match=re.escape(said)):
            ShardDataset(f"{server.url}/{split}")
    for root, said in (
        ("ftp://host/x", "must be a folder or begin with one of s3://"),
        ("https://user:secret@host/x", "without a user"),
        ("https://host/x?token=1", "without a user, a '?'"),
        ("s3://", "must be SCHEME://HOST/FOLDER"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            DataConfig(root=root)
        with pytest.raises(ValueError, match=re.escape(said)):
            DataConfig(other_tests={"x": root})
    assert DataConfig(root="s3://bucket/folder/").root == "s3://bucket/folder"


def test_a_cache_without_locks_or_without_space_is_refused(server, monkeypatch):
    monkeypatch.setattr(cache_module, "lock", lambda *_, **__: None)
    with pytest.raises(ConfigError, match=r"has no locks.*set REBIAS_CACHE"):
        ShardDataset(f"{server.url}/train")
    monkeypatch.undo()
    monkeypatch.setenv("REBIAS_CACHE", "/proc/nothing")
    with pytest.raises(ConfigError, match=r"cannot be written.*set REBIAS_CACHE"):
        ShardDataset(f"{server.url}/train")


def _read_some(address: str, cache: str) -> int:
    os.environ["REBIAS_CACHE"] = cache
    dataset = ShardDataset(address)
    return sum(len(dataset.read(i)) for i in range(0, len(dataset), 20))


def test_processes_of_a_host_fetch_a_shard_once(shards, server, tmp_path, cache_of_this_test):
    found = run_ranks(3, _read_some, f"{server.url}/train", str(tmp_path / "cache"))
    assert len(set(found)) == 1
    count = len(load_manifest(shards / "train").shards)
    assert {name: n for name, n in server.requests.items() if n > 1} == {"manifest.json": 3}
    assert len(fetched(cache_of_this_test)) == count


def test_a_stop_signal_is_heard_while_the_server_hangs(server, tmp_path):
    server.faults["train-000003.tar"] = "hangs"
    command = [sys.executable, "-m", "rebias_dist.train", "--data.root", server.url]
    command += [
        "--config",
        "biased_mnist/demo",
        "--name",
        "stopped",
        "--runs_dir",
        str(tmp_path),
        "--device",
        "cpu",
    ]
    command += ["--data.test_splits", "[unbiased]", "--global_batch", "40", "--data.workers", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert server.asked.wait(100)
        time.sleep(1)  # any moment will do
        process.send_signal(signal.SIGTERM)
        assert process.wait(100) == 75, process.stderr.read()
