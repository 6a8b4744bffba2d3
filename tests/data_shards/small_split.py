"""A split of images that a test makes, written as shards."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_shards.format.manifest import Normalize
from data_shards.format.writer import Plan, split_writer

HALF = Normalize(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def noise(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return small.resize(size, Image.Resampling.BICUBIC)


def write_split(
    output: Path,
    split: str,
    classes: Sequence[str],
    samples: Sequence[tuple[str, int, Image.Image]],
    *,
    excluded: Sequence[tuple[str, str]] = (),
    flags: tuple[str, ...] = (),
    kind: str = "JPEG",
) -> Path:
    """Write (source, label, image) with the keys ``k0`` …; flags go to the first sample."""
    plan = Plan("test", split, tuple(classes), {}, HALF, samples_per_shard=7)
    with split_writer(output, plan) as writer:
        for number, (source, label, image) in enumerate(samples):
            writer.write(
                f"k{number}",
                encoded(image, kind),
                label,
                source=source,
                size=image.size,
                flags=() if number else flags,
            )
        for source, reason in excluded:
            writer.exclude(source, reason)
    return output / split
