"""The command ``rebias-export``: a run's f as files that can be used without this package.

It writes ``model.pt2`` (of torch.export; takes uint8 images and normalises them itself),
``model.safetensors`` (the weights), ``config.json`` (network, classes, preprocessing), the run's
``config.yaml`` and ``results.json``, and a model card. Both models are compared with the run's own
network before the folder gets its name.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_shards.system.files import naming, staged_folder
from rebias_dist import version
from rebias_dist.commands.parser import OneLineParser, run_cli
from rebias_dist.errors import ConfigError, RebiasError

# torch is imported in the functions; --help and usage errors need not wait for it.
if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from data_shards.format.manifest import Normalize
    from rebias_dist.evaluation.loaded_run import LoadedRun

_EPILOG = """examples:
  rebias-export runs/demo --out exported/demo
  rebias-export runs/demo --out exported/demo-last --checkpoint last
  rebias-export runs/pets --out exported/pets --ema
"""
_BATCHES = (1, 2, 5)  # batch sizes with which the files are checked
_TOLERANCE = {"float32": 1e-4, "float64": 1e-9}  # relative to the largest logit


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = OneLineParser(
        prog="rebias-export",
        description="Write a run's f with its preprocessing and a model card, and check the files.",
        epilog=_EPILOG,
    )
    parser.add_argument("run", metavar="RUN", help="a run's folder")
    parser.add_argument("--out", metavar="DIR", required=True, help="folder to make")
    parser.add_argument(
        "--checkpoint",
        choices=("best", "last"),
        help="which weights; unset: best, but last if the test data chose best",
    )
    parser.add_argument(
        "--ema",
        action="store_true",
        help="f with the moving average of its weights, of a run with f.ema",
    )
    parser.add_argument("--version", action="version", version=f"rebias-dist {version()}")
    arguments: argparse.Namespace = parser.parse_args(argv)
    return arguments


def export_run(
    run: str | Path, out: str | Path, checkpoint: str | None = None, *, ema: bool = False
) -> float:
    """Write a run's f to a new folder.

    Args:
        run: the run's folder.
        out: the folder to make; it must not exist, or must be empty.
        checkpoint: ``best`` or ``last``; None: best, but last if the test data chose best.
        ema: write f with the moving average of its weights.

    Returns:
        The largest difference between the logits of the exported networks and of the run's own,
        relative to the largest logit.

    Raises:
        ConfigError: there is no such run or checkpoint, it has no f or no moving average of it, or
            the folder is not empty.
        DataError: the checkpoint is damaged.
        RebiasError: the network cannot be exported, or its logits differ from the original's.
    """
    from rebias_dist.commands.model_card import model_card
    from rebias_dist.config.files import to_yaml
    from rebias_dist.evaluation.loaded_run import load_run
    from rebias_dist.runs.run_folder import RunFolder

    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: exists already; give a new folder")
    config = RunFolder(run).read_config()
    if not config.has_f:
        raise ConfigError(f"{run}: the method {config.method.name} trains no f to export")
    oracle = config.data.selection == "none"
    choice = checkpoint or ("last" if oracle else "best")
    loaded = load_run(run, choice)
    if ema:
        if loaded.f_ema is None:
            raise ConfigError(
                f"--ema: {run} has no moving average; leave it out, or train with f.ema"
            )
        loaded = replace(loaded, f=loaded.f_ema)
    assert loaded.f is not None
    if loaded.shape is None or loaded.constants is None:
        raise ConfigError(
            f"{run}: its checkpoint was made by an earlier version and lacks the shape and "
            "normalisation of the networks' input; train again"
        )
    name = "oracle" if choice == "best" and oracle else choice
    description = describe(loaded, ema)
    out.parent.mkdir(parents=True, exist_ok=True)
    with naming(out), staged_folder(out) as folder:
        write_network(loaded, folder)
        (folder / "config.json").write_text(json.dumps(description, indent=1) + "\n")
        (folder / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
        if loaded.metrics is not None:
            shutil.copyfile(RunFolder(run).results_file, folder / "results.json")
        difference = check(loaded, folder)
        card = model_card(loaded, description, name, difference)
        (folder / "README.md").write_text(card, encoding="utf-8")
    return difference


def describe(loaded: LoadedRun, ema: bool = False) -> dict[str, Any]:
    """Return the content of config.json: network, classes, preprocessing, data, versions.

    Args:
        loaded: the run.
        ema: its f is the moving average.
    """
    import torch

    config, constants = loaded.config, loaded.constants
    assert constants is not None
    resized = config.data.augmentation == "crop_flip"
    preprocessing: dict[str, Any] = {
        "input": "RGB, uint8, [batch, 3, height, width]",
        "resize_short_side": config.data.resize if resized else None,
        "center_crop": config.data.crop if resized else None,
        "interpolation": "bilinear, antialiased" if resized else None,
        "mean": list(constants.mean),
        "std": list(constants.std),
    }
    return {
        "network": {"name": config.f.name, **config.f.build_options()},
        "weights": "f_ema" if ema else "f",
        "shape": list(loaded.shape or ()),
        "classes": list(loaded.classes),
        "preprocessing": preprocessing,
        "method": config.method.name,
        "dataset": config.data.dataset,
        "step": loaded.step,
        "data_digests": dict(loaded.digests),
        "versions": {"rebias_dist": version(), "torch": str(torch.__version__)},
    }


def deployed(network: nn.Module, constants: Normalize) -> nn.Module:
    """Return a module that maps uint8 images to logits: normalisation, then the network."""
    import torch
    from torch import nn

    kind = next(network.parameters()).dtype

    class Deployed(nn.Module):
        mean: Tensor
        scale: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.network = network
            mean, std = torch.tensor([constants.mean, constants.std], dtype=torch.float64)
            self.register_buffer("mean", (255 * mean).view(3, 1, 1).to(kind))
            self.register_buffer("scale", (1 / (255 * std)).view(3, 1, 1).to(kind))

        def forward(self, images: Tensor) -> Tensor:
            logits: Tensor = self.network((images.to(kind) - self.mean) * self.scale)[0]
            return logits

    return Deployed().eval()


def write_network(loaded: LoadedRun, folder: Path) -> None:
    """Write ``model.pt2`` and ``model.safetensors`` to ``folder``.

    Raises:
        RebiasError: torch.export cannot export the network, or a file cannot be written.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_model

    assert loaded.f is not None
    assert loaded.constants is not None
    f = loaded.f
    example = torch.zeros(2, *(loaded.shape or ()), dtype=torch.uint8)
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(
                deployed(f, loaded.constants),
                (example,),
                dynamic_shapes={"images": {0: torch.export.Dim("batch", min=1)}},
            )
            # Into memory first: a file that cannot be written ends torch's process.
            content = io.BytesIO()
            torch.export.save(program, content)
    except Exception as error:  # torch.export raises many kinds for networks it cannot trace
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise RebiasError(
            f"{loaded.config.f.name}: torch.export cannot export it: {reason}"
        ) from None
    (folder / "model.pt2").write_bytes(content.getbuffer())
    weights = folder / "model.safetensors"
    try:
        save_model(f, str(weights), metadata={"format": "pt"})
    except SafetensorError as error:
        raise RebiasError(f"{weights} cannot be written: {error}") from None
    # safetensors makes files that only their owner can read, whatever the umask.
    weights.chmod((folder / "model.pt2").stat().st_mode & 0o777)


def check(loaded: LoadedRun, folder: Path) -> float:
    """Compare both files with the run's own network on random images, in several batch sizes.

    Returns:
        The largest difference of a logit, relative to the largest logit.

    Raises:
        RebiasError: the difference is larger than rounding errors.
    """
    import torch
    from safetensors.torch import load_model

    from rebias_dist.data.normalisation import Normalise
    from rebias_dist.runs.networks import build_networks
    from rebias_dist.step.precision import Precision

    assert loaded.f is not None
    assert loaded.constants is not None
    precision = Precision(loaded.config.precision, torch.device("cpu"))
    normalise = Normalise(loaded.constants, precision.device, precision.parameters)
    fresh = build_networks(loaded.config, len(loaded.classes), precision)["f"].eval()
    load_model(fresh, str(folder / "model.safetensors"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.load(folder / "model.pt2").module()
    random = torch.Generator().manual_seed(0)
    worst = 0.0
    for batch in _BATCHES:
        shape = (batch, *(loaded.shape or ()))
        images = torch.randint(0, 256, shape, generator=random, dtype=torch.uint8)
        with torch.no_grad():
            expected = loaded.f(normalise(images))[0]
            for name, logits in (
                ("model.pt2", program(images)),
                ("model.safetensors", fresh(normalise(images))[0]),
            ):
                difference = _difference(logits, expected)
                if not difference <= _TOLERANCE[str(precision.parameters).removeprefix("torch.")]:
                    raise RebiasError(
                        f"{name}: its logits differ from those of the run's own network by "
                        f"{difference:.1e} of the largest; nothing was written"
                    )
                worst = max(worst, difference)
    return worst


def _difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    if logits.shape != expected.shape:
        return float("inf")
    return float((logits - expected).abs().max() / expected.abs().max())


def cli(argv: Sequence[str] | None = None) -> None:
    """Run ``rebias-export``."""

    def command() -> None:
        arguments = _parse(sys.argv[1:] if argv is None else argv)
        difference = export_run(
            arguments.run, arguments.out, arguments.checkpoint, ema=arguments.ema
        )
        print(
            f"{arguments.out}: model.pt2 and model.safetensors agree with the run's own network "
            f"(largest difference {difference:.1e} of the largest logit); README.md has the model "
            "card"
        )

    run_cli("rebias-export", command)


if __name__ == "__main__":
    cli()
