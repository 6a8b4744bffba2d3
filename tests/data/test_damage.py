"""Damaged samples: found, named, and skipped by all layouts alike."""

import logging
import shutil

import numpy as np
import pytest
import torch

from rebias_dist.data import EvalLoader, ShardDataset, TrainLoader, epoch_order
from rebias_dist.data.shards import DamagedSample
from rebias_dist.errors import DataError
from tests.data.layouts import assert_equal, merged

N, SEED = 40, 11
STEPS = 6  # of 270 samples, of which an epoch drops 30


def damage(folder, samples):
    """Flip a bit in the image of each of ``samples``."""
    dataset = ShardDataset(folder)
    for i in samples:
        row = dataset._index[i]
        path = folder / dataset.manifest.shards[int(row["shard"])].name
        with path.open("r+b") as shard:
            shard.seek(int(row["offset"]) + 60)
            byte = shard.read(1)[0]
            shard.seek(-1, 1)
            shard.write(bytes([byte ^ 4]))


@pytest.fixture
def split(shards, tmp_path):
    return shutil.copytree(shards / "train", tmp_path / "train")


def _samples(steps):
    return torch.cat([batch.samples for step in steps for batch in step]).tolist()


def test_skipped_alike_on_any_layout(split, caplog):
    order = epoch_order(SEED, 0, ShardDataset(split).manifest.shard_counts, 3).tolist()
    # Two in one micro-batch, the first, the last, one that is dropped, and a spare.
    bad = [order[p] for p in (0, 101, 102, STEPS * N - 1, STEPS * N, STEPS * N + 7)]
    damage(split, bad)
    dataset = ShardDataset(split)
    with caplog.at_level(logging.WARNING):
        reference = merged(dataset, 1, 0, on_damaged="skip")
    named = [record.getMessage() for record in caplog.records]
    for i in bad[:4]:
        assert sum(f"sample {dataset.key(i)}: altered" in line for line in named) == 1
    assert len(named) <= len(bad)

    found = _samples(reference)
    replaced = [p for p in range(STEPS * N) if found[p] != order[p]]
    assert replaced == [0, 101, 102, STEPS * N - 1]
    assert not set(found) & set(bad)
    assert len(set(found)) == len(found)
    assert {found[p] for p in replaced} <= set(order[STEPS * N :])
    batch = reference[2][4]  # positions 100 to 104: right labels and pixels
    assert len(batch.skipped) >= 2
    assert batch.labels.tolist() == dataset.labels[batch.samples].tolist()
    for image, i in zip(batch.images, batch.samples.tolist(), strict=True):
        assert torch.equal(image, dataset.image(i))

    for world, workers in ((2, 0), (3, 1), (8, 0), (1, 3)):
        assert_equal(reference, merged(dataset, world, workers, on_damaged="skip"))
    for start in range(STEPS + 1):
        assert_equal(reference[start:], merged(dataset, 2, 0, start=start, on_damaged="skip"))


def test_without_a_dropped_tail_another_sample_stands_in(split):
    dataset = ShardDataset(split)
    damage(split, [17])
    options = {"global_batch": 30, "micro_batch": 5, "on_damaged": "skip"}
    reference = merged(dataset, 1, 0, **options)
    found = _samples(reference)
    assert len(found) == 270
    assert 17 not in found
    assert len(set(found)) == 269
    assert all(len(set(b.samples.tolist())) == 5 for step in reference for b in step)
    assert_equal(reference, merged(dataset, 3, 0, **options))


def test_no_sample_is_twice_in_a_global_batch(split):
    dataset = ShardDataset(split)
    order = epoch_order(SEED, 0, dataset.manifest.shard_counts, 3).tolist()
    # One of each micro-batch of the first step, and nothing is dropped that could stand in.
    damage(split, order[2:90:5])
    reference = merged(dataset, 1, 0, global_batch=90, micro_batch=5, on_damaged="skip")
    for number, step in enumerate(reference):
        found = _samples([step])
        assert len(set(found)) == 90
        assert (found != order[90 * number : 90 * (number + 1)]) == (number == 0)
    assert_equal(
        reference, merged(dataset, 3, 0, global_batch=90, micro_batch=5, on_damaged="skip")
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_stop_names_shard_and_key(split, workers):
    dataset = ShardDataset(split)
    damage(split, [100])
    with pytest.raises(
        DamagedSample, match=rf"train-000002.tar: sample {dataset.key(100)}: altered"
    ) as caught:
        merged(dataset, 1, workers, global_batch=270, micro_batch=27)
    assert "\n" not in str(caught.value)


def test_more_than_a_few_damaged_samples_are_not_skipped(split):
    damage(split, range(270))
    with pytest.raises(DataError, match="no undamaged sample is left to replace it") as caught:
        merged(ShardDataset(split), 1, 0, on_damaged="skip")
    assert not isinstance(caught.value, DamagedSample)


def test_a_missing_shard_is_not_skipped(split):
    dataset = ShardDataset(split)
    (split / "train-000002.tar").unlink()
    with pytest.raises(DataError, match=r"train-000002.tar: sample .*: cannot be read"):
        merged(dataset, 1, 0, on_damaged="skip")


def test_evaluation_never_skips(split):
    damage(split, [100])
    with pytest.raises(DamagedSample):
        list(EvalLoader(ShardDataset(split), batch=64))


def test_a_part_of_the_samples_is_checked_another_in_each_epoch(split):
    # Whole images whose hash in the index is another: only the check can tell.
    index = np.load(split / "index.npy")
    index["hash"] = np.void(bytes(16))
    np.save(split / "index.npy", index)
    dataset = ShardDataset(split)
    assert len(_samples(merged(dataset, 1, 0, verify=0.0))) == STEPS * N

    def checked(epoch, world=1, rate=0.2):
        options = {"verify": rate, "on_damaged": "skip"}
        steps = merged(dataset, world, 0, epoch=epoch, **options)
        order = epoch_order(SEED, epoch, dataset.manifest.shard_counts, 3)[: STEPS * N]
        found = np.array(_samples(steps))
        return {int(i) for i in order[order != found]}

    epochs = [checked(epoch) for epoch in range(4)]
    share = np.mean([len(found) for found in epochs]) / (STEPS * N)
    print(f"checked {share:.3f} of the samples")
    assert abs(share - 0.2) < 0.05  # four standard deviations of 960 draws
    assert len({frozenset(found) for found in epochs}) == 4
    assert checked(1, world=3) == epochs[1]


def test_sound_images_leave_out_the_damaged(split):
    damage(split, [0, 3])
    dataset = ShardDataset(split)
    images = dataset.sound_images()
    for i in (1, 2, 4):
        assert torch.equal(next(images), dataset.image(i))


def test_damage_does_not_stop_a_loader_that_reads_on(split):
    damage(split, [9])
    loader = TrainLoader(
        ShardDataset(split), global_batch=N, micro_batch=5, seed=1, workers=2, on_damaged="skip"
    )
    assert len(list(loader.epoch(0))) == len(list(loader.epoch(1))) == STEPS
