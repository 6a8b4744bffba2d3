"""What code of the user's does wrong on one rank ends all ranks, with its line.

A method or a network of the user's may fail on one micro-batch alone. The rank that has it must not
leave by itself: the others would wait for it in their next collective, and could not say why.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rebias_dist.errors import ConfigError, RebiasError
from rebias_dist.objectives.coupled import ElsewhereError
from rebias_dist.ranks.consensus import Consensus


class Agreement:
    """Lets the ranks agree, before a collective, whether all of them come to it.

    Args:
        consensus: the ranks; None where all code is ours: nothing is exchanged then.
    """

    def __init__(self, consensus: Consensus | None) -> None:
        self._consensus = consensus
        self._known: dict[str, set[str]] = {}

    @contextmanager
    def together(self, where: str = "", *, alike: bool = False) -> Iterator[set[str]]:
        """Run a block on every rank; what it raises on one, it raises on all. A collective.

        Args:
            where: what the block calls, for the message; it tells the names of one from another's.
            alike: the names must be the same on all ranks.

        Yields:
            A set for the names that the block finds. After the block it has those of all ranks.

        Raises:
            RebiasError: alike on all ranks; with an agreement.
        """
        names: set[str] = set()
        if self._consensus is None:
            yield names
            return
        caught: RebiasError | None = None
        try:
            yield names
        except RebiasError as error:
            caught = error
        # The rank that has the reason tells it.
        elsewhere = caught is not None and isinstance(caught.__cause__, ElsewhereError)
        # Names are seldom new, so that they are not exchanged each time.
        new = names != self._known.get(where, set())
        differ = self._consensus.agree(None if elsewhere else caught, int(new))
        if caught is not None:
            raise caught
        if not differ:
            return
        found = self._consensus.gather(sorted(names))
        different = next((other for other in found if other != found[0]), None)
        if alike and different is not None:
            raise ConfigError(
                f"method.name: {where} returned {found[0]} on one rank and {different} on another; "
                "it must return the same names for each micro-batch"
            )
        names.update(*found)
        self._known[where] = set(names)
