"""The check that all ranks hold the same weights, bit for bit.

Each rank applies the same reduced gradients to its own copy. The copies stay equal as long as equal
operations give equal bits. Devices or libraries of another kind, and faulty memory, break that, and
nothing else would show it.
"""

from __future__ import annotations

import hashlib
import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rebias_dist.errors import UnequalWeightsError
from rebias_dist.ranks.consensus import Consensus
from rebias_dist.ranks.roll_call import device_name


def check_equal_weights(
    networks: Mapping[str, Iterable[nn.Module]],
    consensus: Consensus,
    device: torch.device,
    step: int,
) -> None:
    """Refuse to go on if a rank's weights differ from those of the others; a collective.

    The weights are the parameters and the buffers of BatchNorm. Other buffers are those of the last
    local forward pass, and differ by design.

    Args:
        networks: by name; one may have several modules.
        consensus: the ranks.
        device: of this rank, for the message.
        step: optimizer steps taken, for the message.

    Raises:
        UnequalWeightsError: the same on all ranks; it names the ranks that differ from most.
    """
    if consensus.world_size == 1:
        return
    mine = {name: _hash_of(modules) for name, modules in networks.items()}
    ranks = consensus.gather([mine, f"{platform.node()}, {device_name(device)}"])
    for name in networks:
        hashes = [found[name] for found, _ in ranks]
        # Between two equally common ones, that of the lower rank.
        common = Counter(hashes).most_common(1)[0][0]
        differing = [rank for rank, value in enumerate(hashes) if value != common]
        if differing:
            rank, other = differing[0], hashes.index(common)
            more = f" (and {len(differing) - 1} more ranks differ)" if len(differing) > 1 else ""
            raise UnequalWeightsError(
                f"step {step}: rank {rank} ({ranks[rank][1]}) has other weights of {name} than "
                f"rank {other} ({ranks[other][1]}){more}; checkpoints since the last evaluation "
                "may be affected; use equal machines, or leave out one that computes wrongly"
            )


def _hash_of(modules: Iterable[nn.Module]) -> str:
    digest = hashlib.sha256()
    for module in modules:
        for tensor in _weights(module):
            digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _weights(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters()
    for layer in module.modules():
        if isinstance(layer, _BatchNorm):
            yield from layer.buffers(recurse=False)
