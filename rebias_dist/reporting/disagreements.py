"""Images that f gets right and g wrong, and the reverse, where the run's data are at hand."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import Any

from data_shards.errors import DataShardsError
from rebias_dist.errors import ConfigError, RebiasError
from rebias_dist.reporting.runs import Group, Run, plain

LOOKED_AT = 2_048
"""Images of a split that are looked at, from its beginning: a report takes seconds, not hours."""
SHOWN = 12
_LARGE = 64  # pixels; larger images are kept as JPEG


@dataclass(frozen=True)
class Sample:
    """An image as the networks see it, and what they say."""

    uri: str
    label: str
    f: str
    g: str
    small: bool


@dataclass
class Disagreements:
    """What a run's f and g disagree on."""

    run: str
    split: str
    looked_at: int = 0
    f_alone: int = 0
    """Images that f gets right and g wrong, of those looked at."""
    g_alone: int = 0
    f_samples: list[Sample] = field(default_factory=list)
    g_samples: list[Sample] = field(default_factory=list)


def disagreements(group: Group, split: str) -> Disagreements | str:
    """Look at the first run of a group; what keeps its images from being shown is returned as text.

    The networks are those of the checkpoint that counts; g is the first of them.
    """
    if not (group.config.has_f and group.config.has_g):
        return "the method has but one network"
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
        # A report reads folders that others have written: it runs no code that they name.
        raise ConfigError(f"a report does not import {own[0]!r}; see rebias-evaluate")
    if not (run.folder / "checkpoints").is_dir():  # told before torch is imported, which takes long
        raise ConfigError(f"{run.name} has no checkpoints any more")

    import torch

    from rebias_dist.assemble import build_normalise, data_root, open_data
    from rebias_dist.data import EvalLoader
    from rebias_dist.data.transforms import eval_transform
    from rebias_dist.evaluation.loaded_run import load_run
    from rebias_dist.step.precision import Precision

    loaded = load_run(run.folder, checkpoint)
    config = loaded.config
    data = open_data(config, data_root(config))
    data.check_digests(loaded.digests)
    if split not in data.tests:
        raise ConfigError(f"the run has no test split {split}")
    data.tests[split].check_files()
    precision = Precision(config.precision, torch.device("cpu"))
    normalise = build_normalise(data, precision)
    assert loaded.f is not None
    f, g = loaded.f, loaded.g_nets[0]
    loader = EvalLoader(
        data.tests[split], batch=config.evaluate.batch, transform=eval_transform(config.data)
    )
    found = Disagreements(run.name, split)
    with torch.no_grad():
        for batch in loader:
            images = normalise(batch.images)
            with precision.autocast():
                said = [network(images)[0].argmax(1).tolist() for network in (f, g)]
            labels = batch.labels.tolist()
            for image, label, by_f, by_g in zip(batch.images, labels, *said, strict=True):
                found.looked_at += 1
                _keep(found, image.numpy(), data.classes, label, by_f, by_g)
            if found.looked_at >= LOOKED_AT:
                break
    return found


def _keep(
    found: Disagreements, image: Any, classes: tuple[str, ...], label: int, by_f: int, by_g: int
) -> None:
    if (by_f == label) == (by_g == label):
        return
    samples = found.f_samples if by_f == label else found.g_samples
    if by_f == label:
        found.f_alone += 1
    else:
        found.g_alone += 1
    if len(samples) < SHOWN:
        said, f, g = (plain(classes[i], 24) for i in (label, by_f, by_g))
        samples.append(Sample(_uri(image), said, f, g, max(image.shape) <= _LARGE))


def _uri(image: Any) -> str:
    from PIL import Image

    stream = io.BytesIO()
    kind = "png" if max(image.shape) <= _LARGE else "jpeg"
    Image.fromarray(image.transpose(1, 2, 0)).save(stream, kind.upper())
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"
