"""A row-parallel objective in one process."""

from collections.abc import Callable

import torch
from torch import Tensor

from rebias_dist.objectives import Rows


def of_whole_batch(
    function: Callable[[Rows, Rows], Tensor], *views: Tensor, **samples: Tensor
) -> Tensor:
    """Return the value on a batch that lies in this process, ``(N, d)`` for each view."""
    rows = Rows(views, samples, torch.arange(len(views[0])))
    return function(rows, rows)
