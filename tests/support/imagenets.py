"""Small shards of the ImageNets: images of noise, labelled and normalised as the real ones."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from data_shards.format.writer import Plan, split_writer
from data_shards.sources.datasets import dataset
from data_shards.sources.listing import IMAGENET_NORMALIZE


def write_imagenet(root: Path, name: str, *, stylised: bool = False, **splits: int) -> Path:
    """Write splits with so many images each and return ``root``.

    With ``stylised`` every second training image is a copy, as ``convert --stylised`` writes them.
    """
    rng = np.random.default_rng(0)
    classes = dataset(name).class_map.classes
    for split, count in splits.items():
        plan = Plan(name, split, classes, {}, IMAGENET_NORMALIZE, samples_per_shard=40)
        with split_writer(root, plan) as writer:
            for i in range(count):
                label = i % len(classes)
                image, size = _jpeg(rng, label)
                key, flags = f"{split}-{i:05}", ()
                if stylised and split == "train" and i % 2:
                    key, flags = f"stylised_{key}", ("stylised",)
                writer.write(key, image, label, source=f"{i}.JPEG", size=size, flags=flags)
    return root


def _jpeg(rng: np.random.Generator, label: int) -> tuple[bytes, tuple[int, int]]:
    width, height = (int(side) for side in rng.integers(60, 120, 2))
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8) // 2
    pixels[..., label % 3] += np.uint8(10 * (label % 9))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue(), (width, height)
