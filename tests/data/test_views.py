"""Two views of each sample: the same on any layout, and the first as in a run with one."""

import shutil

import pytest
import torch

from rebias_dist.config.data import AugmentConfig
from rebias_dist.data import ShardDataset, TrainTransform
from tests.data.layouts import B, assert_equal, merged
from tests.data.test_damage import damage

TRANSFORM = TrainTransform(16, 3, AugmentConfig(rotation=20.0, hue=0.3, rand_augment=1))
OPTIONS = {"epoch": 1, "transform": TRANSFORM, "views": 2}


@pytest.fixture(scope="module")
def dataset(shards):
    return ShardDataset(shards / "train")


def test_views_come_one_after_the_other(dataset):
    one = merged(dataset, 1, 0, epoch=1, transform=TRANSFORM)
    two = merged(dataset, 1, 0, **OPTIONS)
    for step_of_one, step_of_two in zip(one, two, strict=True):
        for single, double in zip(step_of_one, step_of_two, strict=True):
            assert (single.views, double.views) == (1, 2)
            assert double.images.shape == (2 * B, 3, 16, 16)
            for name in ("labels", "bias", "samples"):
                assert torch.equal(getattr(single, name), getattr(double, name))
                assert len(getattr(double, name)) == B
            first, second = double.images.chunk(2)
            assert torch.equal(first, single.images)
            for image, sample in zip(second, double.samples.tolist(), strict=True):
                assert torch.equal(image, TRANSFORM(dataset.image(sample), 1, sample, 1))
            assert double.to("meta").views == 2


@pytest.mark.parametrize(("world", "workers"), [(1, 1), (2, 0), (3, 2), (4, 0)])
def test_any_ranks_and_workers_see_the_same_views(dataset, world, workers):
    reference = merged(dataset, 1, 0, **OPTIONS)
    for start in (0, 4):
        found = merged(dataset, world, workers, start=start, **OPTIONS)
        assert_equal(reference[start:], found)
        assert {batch.views for step in found for batch in step} == {2}


def test_both_views_of_a_damaged_sample_are_replaced(shards, tmp_path):
    split = shutil.copytree(shards / "train", tmp_path / "train")
    dataset = ShardDataset(split)
    bad = merged(dataset, 1, 0, **OPTIONS)[2][1].samples[3].item()
    damage(split, [bad])
    batch = merged(ShardDataset(split), 1, 0, on_damaged="skip", **OPTIONS)[2][1]
    other = batch.samples[3].item()
    assert other != bad
    for view, place in enumerate((3, B + 3)):
        key = (1, other, 1) if view else (1, other)
        assert torch.equal(batch.images[place], TRANSFORM(dataset.image(other), *key))
