import os
import random
import shutil
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
import torch

from rebias_dist.data import EvalLoader, ShardDataset, TrainTransform, epoch_order
from rebias_dist.errors import ConfigError, DataError
from tests.data.layouts import SEED, B, N, assert_equal, loader_of, merged


@pytest.fixture(scope="module")
def dataset(shards):
    return ShardDataset(shards / "train")


def test_steps_are_cut_from_the_epoch_order(dataset):
    steps = merged(dataset, 1, 0)
    loader = loader_of(dataset)
    assert len(steps) == loader.steps_per_epoch == 6
    assert loader.dropped == 30
    order = epoch_order(SEED, 0, dataset.manifest.shard_counts, 3)
    samples = torch.cat([b.samples for step in steps for b in step])
    assert samples.tolist() == order[: 6 * N].tolist()
    assert len(set(samples.tolist())) == 6 * N
    for batch in steps[2]:
        assert batch.images.shape == (B, 3, 28, 28)
        assert batch.images.dtype == torch.uint8
        assert batch.labels.dtype == batch.bias.dtype == batch.samples.dtype == torch.int64
        assert batch.labels.tolist() == dataset.labels[batch.samples].tolist()
        assert batch.bias.tolist() == dataset.bias[batch.samples].tolist()
        for image, i in zip(batch.images, batch.samples.tolist(), strict=True):
            assert torch.equal(image, dataset.image(i))


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world", [1, 2, 3, 4, 8])  # 3 ranks share 8 micro-batches unevenly
def test_any_ranks_and_workers_see_the_same_from_any_step_on(dataset, world, workers):
    transform = TrainTransform(16, seed=3)
    reference = merged(dataset, 1, 0, epoch=1, transform=transform)
    seen = [int(i) for step in reference for batch in step for i in batch.samples]
    assert len(set(seen)) == len(seen) == 6 * N
    # With worker processes at two places, for each start makes new ones.
    starts = range(7) if workers == 0 else (0, 1 + (world + workers) % 5)
    for start in starts:
        found = merged(dataset, world, workers, epoch=1, start=start, transform=transform)
        assert_equal(reference[start:], found)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_that_are_ahead_wait_until_their_memory_is_free(dataset, workers):
    steps = [0, 3, 1, 5] * 6
    draw = random.Random(workers)
    found = []
    for batches in loader_of(dataset, workers=workers).steps(0, steps):
        found.append(batches)
        if draw.random() < 0.3:
            time.sleep(0.03)  # each worker has all the micro-batches ready that it may have
    assert_equal(list(loader_of(dataset).steps(0, steps)), found)


def test_chosen_steps_are_those_of_the_epoch(dataset):
    transform = TrainTransform(16, seed=3)
    loader = loader_of(dataset, transform=transform)
    whole = list(loader.epoch(2))
    assert_equal([whole[4], whole[1]], list(loader.steps(2, [4, 1])))
    for bad in (-1, 6):
        with pytest.raises(ValueError, match=f"step {bad}"):
            loader.steps(2, [bad])


def test_epochs_differ_and_drop_others(dataset):
    seen = [
        {int(i) for step in merged(dataset, 1, 0, epoch=e) for b in step for i in b.samples}
        for e in range(3)
    ]
    assert all(len(samples) == 240 for samples in seen)
    assert seen[0] != seen[1] != seen[2]


def test_global_generator_is_left_alone(dataset):
    before = torch.get_rng_state()
    next(loader_of(dataset, workers=1).epoch(0))
    next(iter(EvalLoader(dataset, batch=7)))
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("world", "workers"), [(1, 0), (2, 1), (3, 0), (7, 0)])
@pytest.mark.parametrize("batch", [50, 270, 1000])
def test_evaluation_counts_each_sample_once(dataset, world, workers, batch):
    found = []
    for rank in range(world):
        loader = EvalLoader(dataset, batch=batch, rank=rank, world_size=world, workers=workers)
        batches = list(loader)
        assert len(batches) == len(loader)
        assert all(b.index % world == rank for b in batches)
        found += batches
    found.sort(key=lambda b: b.index)
    assert [b.index for b in found] == list(range(-(-270 // batch)))
    assert torch.cat([b.samples for b in found]).tolist() == list(range(270))
    assert torch.cat([b.labels for b in found]).tolist() == dataset.labels.tolist()
    assert all(len(b.samples) == batch for b in found[:-1])
    assert torch.equal(found[-1].images[-1], dataset.image(269))


def test_to_moves_every_tensor(dataset):
    batch = next(iter(EvalLoader(dataset, batch=4))).to("meta")
    for tensor in (batch.images, batch.labels, batch.bias, batch.samples):
        assert tensor.device.type == "meta"
    assert batch.index == 0


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"global_batch": 280}, "270 samples do not fill one global batch of 280"),
        ({"micro_batch": 7}, "40 is not a multiple of micro-batch 7"),
        ({"world_size": 9}, "9 ranks are more than the step's 8 micro-batches"),
    ],
)
def test_wrong_sizes_are_configuration_errors(dataset, changes, words):
    with pytest.raises(ConfigError, match=words):
        loader_of(dataset, **changes)


@pytest.mark.parametrize("workers", [0, 1])
def test_damage_found_while_training_is_one_line(shards, tmp_path, workers):
    folder = shutil.copytree(shards / "train", tmp_path / "train")
    dataset = ShardDataset(folder)
    (folder / "train-000002.tar").unlink()
    with pytest.raises(DataError, match=r"train-000002.tar: sample .*: cannot be read") as caught:
        list(loader_of(dataset, workers=workers).epoch(0))
    assert "\n" not in str(caught.value)


_SIGNALLED = """
    import multiprocessing, os, signal, sys, time
    from rebias_dist.data import ShardDataset, TrainLoader

    dataset = ShardDataset(sys.argv[1])
    loader = TrainLoader(dataset, global_batch=10, micro_batch=5, seed=0, workers=2)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        signal.signal(number, lambda *_: os._exit(9))  # a worker must not keep this one
    steps = loader.epoch(0)
    next(steps)
    workers = multiprocessing.active_children()
    assert len(workers) == 2
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2):
        # From a process that is not their parent, as a scheduler would.
        for worker in workers:
            os.spawnlp(os.P_WAIT, "kill", "kill", f"-{int(number)}", str(worker.pid))
    rest = len(list(steps))
    again = loader.epoch(1)
    next(again)
    print(rest, *(w.pid for w in multiprocessing.active_children()))
    # Ends with living workers, which must not keep the process from ending.
"""


def test_workers_outlive_signals_but_not_their_parent(shards):
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(_SIGNALLED), str(shards / "train")],
        capture_output=True,
        text=True,
        timeout=1000,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rest, *left = map(int, done.stdout.split())
    assert rest == 26
    assert len(left) == 2
    for pid in left:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_labels_match_the_split_they_come_from(shards):
    dataset = ShardDataset(shards / "unbiased")
    right = np.concatenate([(b.labels == b.bias).numpy() for b in EvalLoader(dataset, batch=64)])
    assert right.mean() == 0.1
