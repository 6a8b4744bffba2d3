"""Decisions that the ranks take together, on real ranks."""

from pathlib import Path

import pytest
import torch

from rebias_dist.errors import ConfigError, DataError, RebiasError
from rebias_dist.ranks.consensus import Consensus
from tests.distributed.ranks import run_ranks


def _decide() -> list:
    consensus = Consensus()
    rank = consensus.rank
    found: list = [consensus.broadcast({"from": rank, "text": "σ" * 3})]
    found.append(consensus.gather(["x" * (5 * rank), rank]))
    found.append(consensus.gather(None if rank else "only zero"))
    found.append([consensus.agree(), consensus.agree(wish=rank % 2), consensus.agree(wish=rank)])
    for faulty, error in (([1], DataError("a bad sample")), ([0, 1, 2], ConfigError("no data"))):
        try:
            consensus.agree(error if rank in faulty else None)
        except RebiasError as raised:
            found.append([type(raised).__name__, str(raised), raised.exit_code])
    try:
        with consensus.on_rank_zero() as leader:
            if leader:
                raise RebiasError("disk full")
    except RebiasError as raised:
        found.append(str(raised))
    for path in ("/dev/full", "/nowhere/a"):
        try:
            with consensus.on_rank_zero() as leader:
                if leader:
                    Path(path).write_text("x")
        except RebiasError as raised:
            found.append(str(raised))
    found.append(consensus.gather(rank))
    return found


def test_all_ranks_hear_and_raise_the_same():
    ranks = run_ranks(3, _decide)
    assert ranks[0] == ranks[1] == ranks[2]
    assert ranks[0] == [
        {"from": 0, "text": "σσσ"},
        [["", 0], ["xxxxx", 1], ["xxxxxxxxxx", 2]],
        ["only zero", None, None],
        [0, 1, 2],
        ["DataError", "rank 1: a bad sample", 3],
        ["ConfigError", "no data", 2],
        "rank 0: disk full",
        "rank 0: No space left on device",
        "rank 0: /nowhere/a: No such file or directory",
        [0, 1, 2],
    ]


KINDS = (torch.float64, torch.bfloat16, torch.int16, torch.uint16, torch.bool, torch.complex64)


def _copies() -> list[bool]:
    consensus = Consensus()
    ones = [torch.ones(2, 3).to(kind) for kind in KINDS]
    views = [torch.zeros(3, 2).t().clone(memory_format=torch.preserve_format), torch.zeros(())]
    tensors = [x if consensus.rank == 0 else torch.zeros_like(x) for x in ones]
    for x in views:
        x.fill_(1.0 + consensus.rank)
    consensus.copy_from_zero([*tensors, *views, torch.empty(0)])
    return [torch.equal(x, torch.ones_like(x)) for x in (*tensors, *views)]


def test_tensors_of_any_kind_and_layout_are_those_of_rank_zero():
    assert run_ranks(2, _copies) == [[True] * (len(KINDS) + 2)] * 2


def test_alone_it_decides_for_itself():
    consensus = Consensus()
    assert consensus.broadcast([1, None]) == [1, None]
    assert consensus.gather("a") == ["a"]
    assert consensus.agree(wish=2) == 2
    with pytest.raises(DataError, match=r"^mine$"), consensus.together():
        raise DataError("mine")
