"""From uint8 images to the normalised input of the networks."""

from __future__ import annotations

import torch
from torch import Tensor

from data_shards.format.manifest import Normalize


class Normalise:
    """Maps uint8 images ``[b, 3, H, W]`` to normalised ones of the same shape, channels last."""

    def __init__(
        self, constants: Normalize, device: torch.device, dtype: torch.dtype = torch.float32
    ) -> None:
        """Move the constants (mean and deviation of each channel, in [0, 1]) to ``device``.

        ``dtype`` is that of the result.
        """
        self._device, self._dtype = device, dtype
        self.use(constants)

    def use(self, constants: Normalize) -> None:
        """Normalise by other constants from now on."""
        self.constants = constants
        device, dtype = self._device, self._dtype
        mean, std = torch.tensor([constants.mean, constants.std], dtype=torch.float64)
        self._mean = _per_channel(255 * mean, device, dtype)
        self._scale = _per_channel(1 / (255 * std), device, dtype)

    def __call__(self, images: Tensor) -> Tensor:
        """Return ``(images / 255 - mean) / std`` in the dtype chosen."""
        images = images.contiguous(memory_format=torch.channels_last)
        return (images.to(self._mean.dtype) - self._mean) * self._scale


def _per_channel(values: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return values.view(3, 1, 1).to(device, dtype)
