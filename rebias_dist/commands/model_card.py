"""The model card of an exported f, with the settings and figures of its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rebias_dist.evaluation.groups import left_out, worst_mark
from rebias_dist.evaluation.text import choice_text
from rebias_dist.reporting.runs import plain

if TYPE_CHECKING:
    from rebias_dist.evaluation.loaded_run import LoadedRun

_MANY = 40  # with more classes, their names are only in config.json


def model_card(
    loaded: LoadedRun, description: Mapping[str, Any], choice: str, difference: float
) -> str:
    """Return the card as Markdown with a YAML head.

    Args:
        loaded: the run.
        description: the content of config.json.
        choice: ``last``, ``best`` or ``oracle``.
        difference: between the exported files and the run's network, relative to the largest logit.
    """
    parts = [
        "---\nlibrary_name: pytorch\npipeline_tag: image-classification\n"
        "tags: [rebias, debiasing, image-classification]\n---",
        _head(loaded, description, choice),
        "## Use\n\n" + _use(description),
        "## Figures\n\n" + _figures(loaded, choice, description["weights"]),
        "## Training\n\n" + _training(loaded, description),
        "## Limits\n\n" + _limits(loaded),
        "## Check\n\n"
        "`model.pt2` and `model.safetensors` were read back and compared with the run's own "
        f"network on random images: the largest difference was {difference:.1e} of the largest "
        "logit.",
    ]
    return "\n\n".join(parts) + "\n"


def _head(loaded: LoadedRun, description: Mapping[str, Any], choice: str) -> str:
    config, classes = loaded.config, description["classes"]
    names = "see `config.json`"
    if len(classes) <= _MANY:
        names = ", ".join(plain(name) for name in classes)
    average = ""
    if description["weights"] == "f_ema":
        average = f"moving average (decay {config.f.ema:g}), "
    return (
        f"# {plain(config.name)}: {plain(config.f.name)} on {plain(config.data.dataset)}\n\n"
        f"An image classifier of {len(classes)} classes ({names}). Method: "
        f"{config.facts.about or plain(config.method.name)}.\n\n"
        f"Weights: {average}step {loaded.step}, {choice_text(choice, config.evaluate.select)}."
    )


def _use(description: Mapping[str, Any]) -> str:
    seen = description["preprocessing"]
    height, width = description["shape"][1:]
    if seen["resize_short_side"]:
        lines = [
            f"image = F.resize(image, [{seen['resize_short_side']}])",
            f"image = F.center_crop(image, [{seen['center_crop']}])",
        ]
        words = f"Resize the short side to {seen['resize_short_side']} pixels (bilinear), crop "
        words += f"the central {height} × {width}."
    else:
        lines = []
        words = f"Images are {height} × {width} pixels."
    code = [
        "import json",
        "",
        "import torch",
        "from torchvision.io import ImageReadMode, decode_image",
        "from torchvision.transforms.v2 import functional as F",
        "",
        'network = torch.export.load("model.pt2").module()',
        'classes = json.load(open("config.json"))["classes"]',
        'image = decode_image("image.png", ImageReadMode.RGB)',
        *lines,
        "print(classes[int(network(image[None]).argmax())])",
    ]
    mean, std = seen["mean"], seen["std"]
    return (
        f"`model.pt2` takes uint8 RGB `[batch, 3, {height}, {width}]` and normalises it itself. "
        f"{words} With the weights of `model.safetensors` alone, scale pixels to 0..1, subtract "
        f"the mean {mean} and divide by {std}.\n\n```python\n" + "\n".join(code) + "\n```"
    )


def _figures(loaded: LoadedRun, choice: str, written: str) -> str:
    if loaded.metrics is None:
        return "None: the run was not finished when it was exported."
    found = loaded.metrics["checkpoints"]["last" if choice == "last" else "best"]
    if found["step"] != loaded.step:
        return f"None: the run's results are those of step {found['step']}, not of these weights."
    rows = [
        "| test split | images | network | accuracy | 95 % interval | unbiased | conflicting | "
        "worst group |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for split, figures in found["splits"].items():
        for network, of_network in figures["networks"].items():
            interval = of_network["intervals"]["accuracy"]
            cells = [
                plain(split),
                f"{figures['samples']:,}",
                network,
                _percent(of_network["accuracy"]),
                " – ".join(map(_percent, interval)),
                _percent(of_network["unbiased"]),
                _percent(of_network["conflicting"]),
                _worst(of_network),
            ]
            rows.append("| " + " | ".join(cells) + " |")
    notes = [
        "Percent, of one run with one seed; the interval is a bootstrap over the images "
        "(Wilson's if all or none are right). "
        "Unbiased: mean over cells of class and texture cluster. Conflicting: images with another "
        "bias than that which goes with their class. Worst group: of class and bias. Only "
        f"{written} is in these files."
    ]
    for split, figures in found["splits"].items():
        groups = next(iter(figures["networks"].values())).get("groups", [])
        notes += [rf"\{plain(note, 1_000)}" for note in [left_out(groups, split)] if note]
    if choice == "oracle":
        notes.append(
            "**These weights were chosen by the test data themselves, so the figures are those of "
            "an oracle and do not estimate the accuracy on new images.**"
        )
    return "\n".join(rows) + "\n\n" + "\n\n".join(notes)


def _worst(of_network: Mapping[str, Any]) -> str:
    group = of_network["worst_group"]
    shown = _percent(group and group["accuracy"]) + worst_mark(of_network.get("groups", []))
    if group is None or "class" not in group:  # of an earlier version
        return shown
    return f"{shown} ({plain(group['class'])}, {plain(group['value'])})"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}"


def _training(loaded: LoadedRun, description: Mapping[str, Any]) -> str:
    config = loaded.config
    digests = "\n".join(
        f"| {plain(split)} | `{plain(digest)}` |"
        for split, digest in description["data_digests"].items()
    )
    most = "" if config.max_steps is None else f" or {config.max_steps:,} steps at most"
    return (
        f"Global batch {config.global_batch} in micro-batches of {config.b}, {config.epochs} "
        f"epochs{most}, {config.optimizer.name} with learning rate {config.optimizer.lr:g}, seed "
        f"{config.seed}, {config.precision}. All settings are in `config.yaml`; with the same "
        "data `rebias-train --config config.yaml` trains it again, on any number of ranks.\n\n"
        f"rebias-dist {description['versions']['rebias_dist']}, torch "
        f"{description['versions']['torch']}.\n\n"
        f"| data | digest of the manifest |\n|---|---|\n{digests}"
    )


def _limits(loaded: LoadedRun) -> str:
    lines = [
        f"It was trained on {plain(loaded.config.data.dataset)} alone. It knows only the classes "
        "above and assigns one of them to any image.",
        "Its confidences are not calibrated.",
        "If f is less biased than g on these test splits, it may still be biased, in particular "
        "in ways that no g was built to have.",
    ]
    return "\n".join(f"- {line}" for line in lines)
