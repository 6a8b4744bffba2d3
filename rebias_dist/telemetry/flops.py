"""Floating-point operations of a step, and how many a device can do in a second.

Counted are *model FLOPs* (Chowdhery et al. 2022, PaLM, appendix B): what the step of the game
needs, whoever computes it in whatever layout. What gradient caching computes a second time is
work of the layout and not counted. A multiplication and an addition are two operations.
Convolutions and matrix products of the networks count; normalisation, activations, losses, HSIC
and the optimizer do not.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from rebias_dist.config.plan import Epoch
from rebias_dist.methods.base import Method
from rebias_dist.step.precision import Precision
from rebias_dist.step.randomness import keyed

log = logging.getLogger("rebias_dist")

_IMAGES = 2  # of one, BatchNorm could see a single value


class NetworkFlops(NamedTuple):
    """Operations of one network on one image."""

    forward: float
    backward: float
    """With the gradients of the weights; none of the images."""

    @property
    def training(self) -> float:
        """Return the operations of a forward and its backward."""
        return self.forward + self.backward


def count_flops(network: nn.Module, shape: tuple[int, int, int]) -> NetworkFlops:
    """Count the operations of a network on one image, by one forward and one backward.

    They run on the meta device, with stand-ins for the weights and buffers: nothing is computed,
    and neither the network nor any random state changes.

    Args:
        network: returns ``(logits, features)``.
        shape: of an image: channels, height, width.
    """
    stand_ins: dict[str, Tensor] = {
        name: torch.empty_like(parameter, device="meta").requires_grad_(parameter.requires_grad)
        for name, parameter in network.named_parameters()
    }
    kind = next(network.parameters()).dtype
    for name, buffer in network.named_buffers():
        stand_ins[name] = torch.empty_like(buffer, device="meta")
    images = torch.empty((_IMAGES, *shape), dtype=kind, device="meta")
    with keyed(torch.device("cpu"), "flops"), torch.enable_grad():
        with FlopCounterMode(display=False) as forward:
            logits, features = functional_call(network, stand_ins, (images,))
        with FlopCounterMode(display=False) as backward:
            (logits.sum() + features.sum()).backward()
    return NetworkFlops(forward.get_total_flops() / _IMAGES, backward.get_total_flops() / _IMAGES)


class Work:
    """Model FLOPs of a run's steps; None where a network cannot be counted.

    Args:
        method: the objectives.
        networks: ``f``, ``g0``, ``g1`` … as far as the method has them.
        shape: of an image: channels, height, width.
        samples: N, of a step.
    """

    def __init__(
        self,
        method: Method,
        networks: Mapping[str, nn.Module],
        shape: tuple[int, int, int],
        samples: int,
    ) -> None:
        self._method = method
        self._samples = samples
        self.per_image: dict[str, NetworkFlops] | None = None
        """Operations by network."""
        try:
            self.per_image = {name: count_flops(net, shape) for name, net in networks.items()}
        # A network of the user's may need real numbers, or do whatever a counter cannot follow,
        # and no run should end for a figure that it does not depend on.
        except Exception as error:
            log.info("FLOPs are not counted: %s", str(error).partition("\n")[0])

    def of(self, epoch: Epoch) -> float | None:
        """Return the model FLOPs of a step of an epoch, in all."""
        if epoch.playing:
            return self.game()
        return self.pretraining(train_f=epoch.train_f, train_g=epoch.train_g)

    def game(self) -> float | None:
        """Return the model FLOPs of a step of the game, in all.

        f takes one forward and one backward, which serve the updates of every g as well. Each g
        takes one of both for each of its updates, and one forward more where f needs the updated
        g. A g that is fixed takes the forward alone.
        """
        if self.per_image is None:
            return None
        total, method = 0.0, self._method
        for name, cost in self.per_image.items():
            if name == "f":
                total += cost.training
                continue
            if not method.facts.fixed_g:
                total += method.config.n_g_update * cost.training
            if "f" in self.per_image and (method.f_coupling or method.f_needs_g):
                total += cost.forward
        return total * self._samples

    def pretraining(self, *, train_f: bool, train_g: bool) -> float | None:
        """Return the model FLOPs of a step that trains f, every g, or both by themselves."""
        if self.per_image is None:
            return None
        trained = (c for n, c in self.per_image.items() if (train_f if n == "f" else train_g))
        return self._samples * sum(cost.training for cost in trained)


# Dense operations per second, in 10¹², with float32 accumulation, as NVIDIA's data sheets of the
# V100, T4, A10, A100, L4, L40S, H100 and H200 are commonly quoted; they were not compared with the
# sheets themselves. Where these state the rate for sparse matrices, half of it. By the words of the
# name that torch reports, without maker and memory: part of a card (MIG) and cards not named here
# have no peak.
_PEAKS: dict[frozenset[str], dict[str, float]] = {
    frozenset({"V100", "SXM2"}): {"float32": 15.7, "fp16": 125},
    frozenset({"V100", "PCIE"}): {"float32": 14, "fp16": 112},
    frozenset({"T4"}): {"float32": 8.1, "fp16": 65},
    frozenset({"A10"}): {"float32": 31.2, "tf32": 62.5, "bf16": 125, "fp16": 125},
    frozenset({"A100", "SXM4"}): {"float32": 19.5, "tf32": 156, "bf16": 312, "fp16": 312},
    frozenset({"A100", "PCIE"}): {"float32": 19.5, "tf32": 156, "bf16": 312, "fp16": 312},
    frozenset({"L4"}): {"float32": 30.3, "tf32": 60, "bf16": 121, "fp16": 121},
    frozenset({"L40S"}): {"float32": 91.6, "tf32": 183, "bf16": 362, "fp16": 362},
    frozenset({"H100", "PCIE"}): {"float32": 51, "tf32": 378, "bf16": 756, "fp16": 756},
    frozenset({"H100", "HBM3"}): {"float32": 67, "tf32": 494, "bf16": 989, "fp16": 989},
    frozenset({"H200"}): {"float32": 67, "tf32": 494, "bf16": 989, "fp16": 989},
}


def peak_of(name: str, kind: str) -> float | None:
    """Return the operations per second that a GPU can do, or None if that is not known.

    Args:
        name: as ``torch.cuda.get_device_name`` has it.
        kind: ``float32``, ``tf32`` (where a card has none: its float32), ``bf16`` or ``fp16``.
    """
    words = frozenset(
        word
        for word in re.split(r"[\s-]+", name.upper())
        if word not in ("NVIDIA", "TESLA") and not re.fullmatch(r"\d+GB", word)
    )
    peaks = _PEAKS.get(words, {})
    found = peaks.get(kind, peaks.get("float32") if kind == "tf32" else None)
    return None if found is None else found * 1e12


def device_peak(precision: Precision) -> float | None:
    """Return the operations per second that this rank's device can do, or None if unknown.

    A CPU has no peak that could be looked up, and in float64 a GPU depends on what cuDNN picks.
    In float32 it is that of TF32 where convolutions may use it, which is torch's default.
    """
    if precision.device.type != "cuda":
        return None
    kind = precision.name
    convolutions = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    if kind == "float32" and convolutions.fp32_precision != "ieee":
        kind = "tf32"
    return peak_of(torch.cuda.get_device_name(precision.device), kind)
