"""Show a method the values of all samples of a step, before any network is updated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from rebias_dist.errors import ConfigError
from rebias_dist.methods.base import Batch, Method, Output, per_sample
from rebias_dist.objectives import gather_rows
from rebias_dist.ranks.device_wait import to_host
from rebias_dist.step.agreement import Agreement


def observe(
    method: Method,
    batches: list[Batch],
    outputs: list[list[Output]],
    whole: Batch,
    counts: Sequence[int],
    agreement: Agreement,
) -> Tensor:
    """Return the weights of this rank's samples, as the method gives them; a collective.

    Args:
        method: it observes.
        batches: of this rank.
        outputs: of f, if there is one, and of every g, by micro-batch.
        whole: the global batch.
        counts: samples of each rank.
        agreement: of the ranks.

    Raises:
        ConfigError: the method returns something else than it must.
    """
    cls = type(method).__name__
    where = f"{cls}.values()"
    found: list[dict[str, Tensor]] = []
    with agreement.together(where, alike=True) as names:
        for place, batch in enumerate(batches):
            by_player = [Output(*(x.detach() for x in mine[place])) for mine in outputs]
            f = by_player.pop(0) if method.facts.has_f else None
            values = per_sample(method.values(f, by_player, batch), len(batch.labels), where)
            found.append(values)
            if values.keys() != found[0].keys():
                raise ConfigError(
                    f"method.name: {where} returned {sorted(found[0])} on one micro-batch and "
                    f"{sorted(values)} on another; it must return the same names for each "
                    "micro-batch"
                )
            names.update(values)
    rows: dict[str, Tensor] = {}
    finite = True
    if ordered := sorted(names):
        local = torch.cat([torch.stack([v[n].double() for n in ordered], 1) for v in found])
        gathered = gather_rows(local, counts)
        rows = dict(zip(ordered, gathered.unbind(1), strict=True))
        # Such a step's updates are skipped or end the run: the state must not learn from it.
        finite = bool(to_host(gathered.isfinite().all()))
    total = sum(counts)
    weights = method.observe(rows, whole) if finite else None
    if weights is None:
        weights = torch.ones(total, dtype=torch.float64, device=whole.labels.device)
    per_sample({"weights": weights}, total, f"{cls}.observe()")
    rank = dist.get_rank() if dist.is_initialized() else 0
    begin = sum(counts[:rank])
    return weights[begin : begin + counts[rank]]
