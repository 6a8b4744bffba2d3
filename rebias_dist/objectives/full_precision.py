"""A context with full precision, whatever the caller's mixed-precision settings."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch autocast and reduced-precision matrix products off inside the block.

    Without it, ``torch.set_float32_matmul_precision("medium")`` means bfloat16 on the CPU. Only
    ``fp32_precision`` is set, because torch raises where it is mixed with the older
    ``allow_tf32``.
    """
    backend = (torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn).matmul
    before = backend.fp32_precision
    backend.fp32_precision = "none"  # now it reads as the setting that it inherits
    if backend.fp32_precision == before:
        before = "none"  # so that it inherits again afterwards
    backend.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        backend.fp32_precision = before
