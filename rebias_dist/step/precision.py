"""Precision: the type of the parameters, autocast, and the gradient scaler of fp16."""

from __future__ import annotations

import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Precision:
    """One of float32, tf32, bf16, fp16 (the last two by autocast over float32) and float64."""

    name: str
    device: torch.device

    @property
    def parameters(self) -> torch.dtype:
        """Return the type of the parameters and of normalised inputs."""
        return torch.float64 if self.name == "float64" else torch.float32

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context of one forward pass.

        It is entered per forward: kept open over an optimizer step, its cache of cast
        weights would hide the update.
        """
        if self.name in _AUTOCAST:
            return torch.autocast(self.device.type, dtype=_AUTOCAST[self.name])
        return nullcontext()

    def scaler(self) -> torch.amp.GradScaler:
        """Return a gradient scaler for one network; it does nothing except in fp16."""
        return torch.amp.GradScaler(self.device.type, enabled=self.name == "fp16")


def set_products(precision: str) -> None:
    """Set for this process how float32 products and convolutions are computed.

    Only in ``tf32`` may a device round their operands to 10 bits; by default torch lets CUDA do so
    in convolutions. In all other precisions they are IEEE float32.
    """
    tf32 = precision == "tf32"
    # The two older settings keep the newer ones in step with them. The reverse is not true, and
    # torch.compile raises where they differ.
    with warnings.catch_warnings():
        # torch 2.9 advises against them.
        warnings.filterwarnings("ignore", "Please use the new API settings", UserWarning)
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = tf32
    # Otherwise it inherits torch.backends.fp32_precision, which a notebook may have set.
    torch.backends.cudnn.fp32_precision = "tf32" if tf32 else "ieee"


def choose_algorithms(deterministic: bool) -> None:
    """Restrict torch, cuDNN and cuBLAS to deterministic algorithms, or let cuDNN time its own.

    Call it before there is a process group: in the first case the constructor of ProcessGroupNCCL
    forbids NCCL to use NVLS.
    """
    # All batches of a run have one shape, so cuDNN times its algorithms once.
    torch.backends.cudnn.benchmark = not deterministic
    if not deterministic:
        return
    # cuBLAS reads this variable when it creates its handle, which happens later.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    # It would fill every new tensor on the device. No program here reads what it did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
