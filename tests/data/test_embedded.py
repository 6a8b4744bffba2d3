import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from rebias_dist.data import open_split, prepare_biased_mnist
from rebias_dist.errors import ConfigError, DataError
from tests.data_shards.tiny import tree, write_idx

VALUES = {
    "rho": 0.9,
    "confusing_colours": 9,
    "seed": 0,
    "image_size": 8,
    "selection_fraction": 0.1,
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    folder = tmp_path / "cache"
    monkeypatch.setenv("REBIAS_CACHE", str(folder))
    return folder


def test_made_once_and_named_by_what_made_it(cache, mnist_folder, tmp_path):
    folder = prepare_biased_mnist(**VALUES, source=mnist_folder)
    assert folder.parent == cache
    for split, count in zip(
        ["train", "selection", "biased", "unbiased", "rho0"], [270, 30, 200, 200, 200], strict=True
    ):
        dataset = open_split(folder, split, dataset="biased_mnist")
        dataset.check_files()
        assert len(dataset) == count
        assert dataset.image(0).shape == (3, 8, 8)
    stamp = (folder / "train" / "manifest.json").stat()
    assert prepare_biased_mnist(**VALUES, source=mnist_folder) == folder
    assert (folder / "train" / "manifest.json").stat() == stamp

    write_idx(tmp_path / "other", seed=5)
    different = [
        prepare_biased_mnist(**VALUES, source=tmp_path / "other"),
        prepare_biased_mnist(**{**VALUES, "rho": 0.95}, source=mnist_folder),
        prepare_biased_mnist(**{**VALUES, "seed": 1}, source=mnist_folder),
        prepare_biased_mnist(**{**VALUES, "selection_fraction": 0}, source=mnist_folder),
    ]
    assert len({folder, *different}) == 5
    assert sorted(cache.iterdir()) == sorted([folder, *different])


def test_a_tilde_in_the_cache_is_the_home_folder(mnist_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("REBIAS_CACHE", "~/mine")
    assert prepare_biased_mnist(**VALUES, source=mnist_folder).parent == tmp_path / "mine"


def test_no_selection_split_without_a_fraction(mnist_folder):
    folder = prepare_biased_mnist(**{**VALUES, "selection_fraction": 0}, source=mnist_folder)
    assert not (folder / "selection").exists()
    assert len(open_split(folder, "train", dataset="biased_mnist")) == 300


def test_wrong_values_and_sources(mnist_folder, tmp_path):
    with pytest.raises(ConfigError, match="rho is 3"):
        prepare_biased_mnist(**{**VALUES, "rho": 3}, source=mnist_folder)
    with pytest.raises(ConfigError, match="no such folder"):
        prepare_biased_mnist(**VALUES, source=tmp_path / "nowhere")
    arrays = write_idx(tmp_path / "bad", train=2, test=2)
    path = tmp_path / "bad" / next(iter(arrays))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="fewer than"):
        prepare_biased_mnist(**VALUES, source=tmp_path / "bad")


def test_unusable_cache_names_the_cure(mnist_folder, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REBIAS_CACHE", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="set REBIAS_CACHE"):
        prepare_biased_mnist(**VALUES, source=mnist_folder)


_PREPARE = textwrap.dedent(
    f"""
    import sys
    import webdataset
    from rebias_dist.data import prepare_biased_mnist
    print("ready", flush=True)
    sys.stdin.readline()
    print(prepare_biased_mnist(**{VALUES!r}, source=sys.argv[1]), flush=True)
    """
)


def _start(source):
    return subprocess.Popen(
        [sys.executable, "-c", _PREPARE, str(source)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_two_processes_at_once(cache, mnist_folder):
    processes = [_start(mnist_folder) for _ in range(2)]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = {process.communicate(timeout=1000)[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert answers == {str(path) for path in cache.iterdir()}
    (answer,) = answers
    open_split(answer, "train", dataset="biased_mnist").check_files()


def test_a_kill_leaves_nothing_that_counts(cache, mnist_folder):
    process = _start(mnist_folder)
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("\n")
    process.stdin.flush()
    while not (cache.is_dir() and any(cache.rglob("*.tar*"))):
        assert process.poll() is None
        time.sleep(0.001)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert any(path.name.startswith(".") for path in cache.iterdir())
    folder = prepare_biased_mnist(**VALUES, source=mnist_folder)
    assert {path.name for path in cache.iterdir()} == {folder.name}
    for split in ("train", "selection", "biased", "unbiased", "rho0"):
        open_split(folder, split, dataset="biased_mnist").check_files()
    assert len(tree(folder)) == 5 * 3
