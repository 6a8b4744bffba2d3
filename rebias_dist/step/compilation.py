"""torch.compile for the training passes, with the same exactness.

A compiled network is a second way to call the same module. Its weights, buffers and names stay
those of the module, and checkpoints, evaluation and export use the module itself.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import nn
from torch._dynamo import config
from torch._dynamo.exc import TorchDynamoException

from rebias_dist.errors import ConfigError
from rebias_dist.step.batchnorm import RunningStatistics
from rebias_dist.step.precision import Precision
from rebias_dist.step.randomness import keyed

# torch counts recompilations by class. This allows more networks, with gradients and without, than
# anyone trains.
_VARIANTS = 64


def compiled(network: nn.Module) -> nn.Module:
    """Return a compiled way to call a network, for inputs of one shape; nothing is compiled yet."""
    # Otherwise torch cuts a graph at DDP's buckets if it sees the graph inside DDP first. The
    # numbers would depend on the number of ranks and on the first pass after a restart.
    config.optimize_ddp = False
    # Beyond its limit torch stops compiling, which would change the numbers in mid-run.
    config.recompile_limit = _VARIANTS
    # fallback_random: dropout is drawn from torch's generators, which keyed() seeds.
    made = torch.compile(network, dynamic=False, options={"fallback_random": True})
    return cast(nn.Module, made)


def check_compilation(
    name: str, network: nn.Module, batch: tuple[int, int, int, int], precision: Precision
) -> None:
    """Compile a network in a trial pass, so that a missing compiler is found before training.

    Args:
        name: of the network, for the message.
        network: in training mode; it is left as it is.
        batch: shape of a micro-batch: samples, channels, height, width.
        precision: in which the network computes.

    Raises:
        ConfigError: it cannot be compiled.
    """
    images = torch.zeros(batch, dtype=precision.parameters, device=precision.device)
    images = images.contiguous(memory_format=torch.channels_last)
    try:
        with (
            RunningStatistics(network).protected(),
            keyed(precision.device, "trial"),
            precision.autocast(),
        ):
            compiled(network)(images)
    except TorchDynamoException as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next(filter(None, lines), type(error).__name__)
        raise ConfigError(
            f"compile: true fails for {name} ({reason}); install the compiler that torch needs "
            "(g++, or what CXX names) or set compile: false"
        ) from None
