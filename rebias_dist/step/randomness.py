"""Randomness that depends on what is computed, never on which rank computes it or when."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def key(*parts: int | str) -> int:
    """Return a 63-bit seed that is a pure function of ``parts``."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "little") >> 1


@contextmanager
def keyed(device: torch.device, *parts: int | str) -> Iterator[None]:
    """Seed torch's generators (CPU and ``device``) by ``parts`` and restore them afterwards."""
    # torch.manual_seed is avoided: without CUDA it records a stack trace at each call.
    generators = [torch.default_generator]
    if device.type == "cuda":
        generators.append(torch.cuda.default_generators[device.index])
    states = [generator.get_state() for generator in generators]
    seed = key(*parts)
    for generator in generators:
        generator.manual_seed(seed)
    try:
        yield
    finally:
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
