"""The rule that says which value of the bias goes with each class; a run keeps it.

No torch here, because reports read it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict


class BiasRule(BaseModel):
    """The attribute that is the bias, its values, and the value that each class is aligned with.

    A sample is *aligned* if it has the value of its class, and *conflicting* if it has another one.
    A sample without a value, or of a class without one, is neither.
    """

    model_config = ConfigDict(frozen=True)

    attribute: str | None = None
    """Its name in the manifests; None for the numbers of a data set such as Biased-MNIST."""
    values: list[str] = []
    """Names of the values, by id: first those of the training data."""
    aligned: dict[str, str] = {}
    """The name of the value that goes with a class, by the name of the class."""
    source: str = "the training images"
    """Where ``aligned`` is from: the majority of the training images, or a table."""
    doubt: str = ""
    """Why the rule may mean little; empty if there is no doubt."""

    @classmethod
    def by_number(cls, classes: Sequence[str]) -> BiasRule:
        """Return the rule of runs that keep none, of earlier versions: bias k goes with class k."""
        numbers = [str(number) for number in range(len(classes))]
        aligned = dict(zip(classes, numbers, strict=True))
        return cls(values=numbers, aligned=aligned, source="equal numbers")

    def ids(self, classes: Sequence[str], values: Sequence[str]) -> NDArray[np.int64]:
        """Return the id of the aligned value of each class, ``[classes]``; -1: the class has none.

        A value that is not among ``values`` has the id ``len(values)``, which no sample has.
        """
        place = {value: number for number, value in enumerate(values)}
        found = (self.aligned.get(name) for name in classes)
        ids = [-1 if value is None else place.get(value, len(values)) for value in found]
        return np.array(ids, dtype=np.int64)

    def names(self, count: int) -> list[str]:
        """Return the names of ``count`` values or more; a value that the rule lacks has its number.

        Args:
            count: the largest id plus 1.
        """
        return [*self.values, *map(str, range(len(self.values), count))]

    def text(self) -> str:
        """Return the rule in a line: the attribute and the value of each class."""
        pairs = [f"{name}: {value}" for name, value in self.aligned.items()]
        shown = ", ".join(pairs[:10]) + (f" and {len(pairs) - 10} more" if pairs[10:] else "")
        return f"{self.attribute or 'by number'}; aligned, from {self.source}: {shown}"
