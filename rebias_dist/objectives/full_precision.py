"""A stretch of code in full precision, whatever the caller's mixed-precision settings."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Switch autocast and reduced-precision matrix products off; restore them after.

    Only ``fp32_precision`` is touched: mixing it with the older ``allow_tf32`` raises. On
    the CPU, ``torch.set_float32_matmul_precision("medium")`` would otherwise mean bfloat16.
    """
    backend = (torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn).matmul
    before = backend.fp32_precision
    backend.fp32_precision = "none"  # what it says now is inherited
    if backend.fp32_precision == before:
        before = "none"
    backend.fp32_precision = "ieee"
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        backend.fp32_precision = before
