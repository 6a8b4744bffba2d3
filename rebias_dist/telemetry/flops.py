"""Floating-point operations of a step, and how many a device can do in a second.

*Model FLOPs* are counted (Chowdhery et al. 2022, PaLM, appendix B): the operations that the step
needs in any layout. The second forward pass of gradient caching depends on the layout and is not
counted. A multiplication and an addition are two operations. Only convolutions and matrix
products of the networks count, not normalisation, activations, losses, HSIC or the optimizer.
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

_IMAGES = 2  # with one image, BatchNorm could see a single value and refuse it


class NetworkFlops(NamedTuple):
    """Operations of one network for one image."""

    forward: float
    backward: float
    """Includes the gradients of the weights, but not that of the image."""

    @property
    def training(self) -> float:
        """Return the operations of a forward and a backward pass."""
        return self.forward + self.backward


def count_flops(network: nn.Module, shape: tuple[int, int, int]) -> NetworkFlops:
    """Count the operations of a network for one image, by one forward and one backward pass.

    The passes run on the meta device, with stand-ins for the weights and buffers. So nothing is
    computed, and neither the network nor any random state changes.

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
    """Model FLOPs of a run's steps; None if the operations of a network cannot be counted.

    Args:
        method: the objectives.
        networks: ``f``, ``g0``, ``g1`` … those that the method has.
        shape: of an image: channels, height, width.
        samples: number of samples of a step, N.
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
        # The user's network may need real numbers, or do something that the counter cannot follow.
        # The run does not need this figure, so it goes on without it.
        except Exception as error:
            log.info("FLOPs are not counted: %s", str(error).partition("\n")[0])

    def of(self, epoch: Epoch) -> float | None:
        """Return the model FLOPs of a step of an epoch, over all ranks."""
        if epoch.playing:
            return self.game()
        return self.pretraining(train_f=epoch.train_f, train_g=epoch.train_g)

    def game(self) -> float | None:
        """Return the model FLOPs of a step of the game, over all ranks.

        f has one forward and one backward pass, also used by the updates of every g. Each g has
        one of both for each of its updates, and one more forward pass if f needs the updated g. A
        fixed g has only that forward pass.
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
            if "f" in self.per_image and (method.f_is_coupled or method.f_needs_g):
                total += cost.forward
        return total * self._samples

    def pretraining(self, *, train_f: bool, train_g: bool) -> float | None:
        """Return the model FLOPs of a pretraining step, over all ranks.

        Args:
            train_f: f is trained.
            train_g: every g is trained.
        """
        if self.per_image is None:
            return None
        trained = (c for n, c in self.per_image.items() if (train_f if n == "f" else train_g))
        return self._samples * sum(cost.training for cost in trained)


# Dense operations per second, in 10¹², with float32 accumulation, as NVIDIA's data sheets of the
# V100, T4, A10, A100, L4, L40S, H100 and H200 are commonly quoted; they were not compared with the
# sheets themselves. Where a sheet has the rate for sparse matrices, this is half of it. The keys
# are the words of the name that torch reports, without the maker and the memory. Other cards, and
# parts of a card (MIG), have no known peak.
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
    """Return the operations per second that a GPU can do, or None if unknown.

    Args:
        name: as ``torch.cuda.get_device_name`` returns it.
        kind: ``float32``, ``tf32`` (float32 on a card without TF32), ``bf16`` or ``fp16``.
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

    It is unknown for a CPU, and in float64 on a GPU, where it depends on cuDNN's choices.
    """
    if precision.device.type != "cuda":
        return None
    return peak_of(torch.cuda.get_device_name(precision.device), precision.name)
