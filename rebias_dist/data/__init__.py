"""Samples: indexed shards, keyed order and augmentation, and loaders that any layout can share."""

from rebias_dist.data.batch import MicroBatch
from rebias_dist.data.embedded import plan_biased_mnist, prepare_biased_mnist
from rebias_dist.data.loader import EvalLoader, TrainLoader
from rebias_dist.data.order import epoch_order
from rebias_dist.data.shards import ShardDataset, open_split, root_and_split
from rebias_dist.data.transforms import EvalTransform, TrainTransform, Transform, identity

__all__ = [
    "EvalLoader",
    "EvalTransform",
    "MicroBatch",
    "ShardDataset",
    "TrainLoader",
    "TrainTransform",
    "Transform",
    "epoch_order",
    "identity",
    "open_split",
    "plan_biased_mnist",
    "prepare_biased_mnist",
    "root_and_split",
]
