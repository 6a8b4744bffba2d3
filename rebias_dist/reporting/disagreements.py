"""Images that f gets right and g wrong, and the reverse, where the run's data are at hand."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_shards.errors import DataShardsError
from rebias_dist.errors import ConfigError, RebiasError
from rebias_dist.reporting.comparison import Group
from rebias_dist.reporting.runs import Run, plain

if TYPE_CHECKING:  # they import torch
    from rebias_dist.data.splits import Data
    from rebias_dist.data.transforms import Transform

LOOKED_AT = 2_048
"""The number of images of a split that are looked at, so that a report takes seconds."""
SHOWN = 8
_MOST_PIXELS = 128  # of a side, in a picture of several images
_LARGE = 64  # pixels; larger images are kept as JPEG


EXAMPLES = 4
"""Images of each test split that show what it is."""


class Example(NamedTuple):
    """An image of a split as the networks see it, and its class."""

    uri: str
    label: str


class Sample(NamedTuple):
    """An image as the networks see it, and the classes that they say."""

    image: NDArray[np.uint8]
    """``[height, width, 3]``"""
    label: str
    f: str
    g: str


@dataclass
class Kind:
    """The images that one network gets right and the other wrong."""

    title: str
    count: int = 0
    samples: list[Sample] = field(default_factory=list)
    """The first ones."""


@dataclass
class Disagreements:
    """The images of a split on which f and g of a run disagree."""

    run: str
    split: str
    looked_at: int = 0
    examples: dict[str, list[Example]] = field(default_factory=dict)
    """For each test split a few of its images."""
    f_alone: Kind = field(default_factory=lambda: Kind("f right, g wrong"))
    g_alone: Kind = field(default_factory=lambda: Kind("g right, f wrong"))

    @property
    def kinds(self) -> list[Kind]:
        """Return the kinds that have images."""
        return [kind for kind in (self.f_alone, self.g_alone) if kind.samples]


def disagreements(group: Group, split: str) -> Disagreements | str:
    """Look at the images of the first run of a group; return a reason as text if that fails.

    The networks are those of the checkpoint that counts, f and the first g.
    """
    if not (group.config.has_f and group.config.has_g):
        return "the method has only one network"
    if not group.runs:
        return "no run has results"
    run = group.runs[0]
    try:
        return _look(run, group.counting, split)
    except (RebiasError, DataShardsError) as error:
        return plain(error, 300)
    except OSError as error:
        return plain(f"{error.filename}: {error.strerror}", 300)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        return plain(f"its checkpoint does not fit ({type(error).__name__}: {error})", 300)


def _look(run: Run, checkpoint: str, split: str) -> Disagreements:
    assert run.config is not None
    assert run.results is not None
    networks = [run.config.f.name, *(g.name for g in run.config.g)]
    if own := [name for name in networks if not name.isidentifier()]:
        # Others may have written the folder: a report runs no code that it names.
        raise ConfigError(f"a report does not import {own[0]!r}; see rebias-evaluate")
    if not (run.folder / "checkpoints").is_dir():  # checked first: importing torch takes long
        raise ConfigError(f"{run.name} has no checkpoints any more")

    import torch

    from rebias_dist.assemble import data_root
    from rebias_dist.data import EvalLoader
    from rebias_dist.data.normalisation import Normalise
    from rebias_dist.data.splits import open_data
    from rebias_dist.data.transforms import eval_transform
    from rebias_dist.evaluation.loaded_run import load_run
    from rebias_dist.step.precision import Precision

    loaded = load_run(run.folder, checkpoint)
    config = loaded.config
    data = open_data(config, data_root(config), loaded.rule)
    data.check_digests(loaded.digests)
    if split not in data.tests:
        raise ConfigError(f"the run has no test split {split}")
    data.tests[split].check_files()
    precision = Precision(config.precision, torch.device("cpu"))
    constants = loaded.constants or data.train.manifest.normalize
    normalise = Normalise(constants, precision.device, precision.parameters)
    assert loaded.f is not None
    f, g = loaded.f, loaded.g_nets[0]
    transform = eval_transform(config.data)
    loader = EvalLoader(data.tests[split], batch=config.evaluate.batch, transform=transform)
    found = Disagreements(plain(run.name), split, examples=_examples(data, transform))
    with torch.no_grad():
        for batch in loader:
            images = normalise(batch.images)
            with precision.autocast():
                said = [network(images)[0].argmax(1) for network in (f, g)]
            right = [by == batch.labels for by in said]
            found.looked_at += len(batch.labels)
            for i in (right[0] != right[1]).nonzero().flatten().tolist():
                kind = found.f_alone if right[0][i] else found.g_alone
                kind.count += 1
                if len(kind.samples) < SHOWN:
                    names = [plain(data.classes[by[i]], 24) for by in (batch.labels, *said)]
                    kind.samples.append(Sample(_small(batch.images[i].numpy()), *names))
            if found.looked_at >= LOOKED_AT:
                break
    return found


def _examples(data: Data, transform: Transform) -> dict[str, list[Example]]:
    """Return images of each test split, from places that are spread over it."""
    found = {}
    for split, dataset in data.tests.items():
        places = sorted({place * len(dataset) // EXAMPLES for place in range(EXAMPLES)})
        images = [_uri(transform(dataset.image(i)).numpy()) for i in places]
        labels = [plain(data.classes[dataset.labels[i]], 24) for i in places]
        found[plain(split, 30)] = list(map(Example, images, labels))
    return found


def _small(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return an image, uint8 [3, height, width], with sides of 128 pixels at most, as [h, w, 3]."""
    from PIL import Image

    picture = Image.fromarray(image.transpose(1, 2, 0))
    picture.thumbnail((_MOST_PIXELS, _MOST_PIXELS))
    return np.asarray(picture)


def _uri(image: Any) -> str:
    """Return an image, uint8 [3, height, width], as an address that holds it."""
    from PIL import Image

    stream, kind = io.BytesIO(), "png" if max(image.shape) <= _LARGE else "jpeg"
    Image.fromarray(image.transpose(1, 2, 0)).save(stream, kind.upper())
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
