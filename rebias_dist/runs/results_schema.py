"""The schema of results.json: its fields, and where they have to agree.

Readers use it for results that somebody else may have written or damaged.
"""

from __future__ import annotations

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from rebias_dist.config.bias import BiasRule

# The upper bound keeps sums over a matrix within 64 bits.
_Count = Annotated[int, Field(ge=0, le=10**9)]
_Unit = Annotated[float, Field(ge=0, le=1)]


class _Read(BaseModel):
    """A part of ``results.json``; fields that no report uses are ignored."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Calibration(_Read):
    """How far confidence is from accuracy."""

    ece: _Unit | None = None


class Score(_Read):
    """The figures of one network on one split."""

    accuracy: _Unit
    correct: _Count
    confusion: list[list[_Count]] = []
    """Label × prediction."""
    bias_correct: list[list[_Count]] = []
    bias_count: list[list[_Count]] = []
    """Label × bias, of the samples that have one."""
    unbiased: _Unit | None = None
    """Mean over cells of class and texture cluster, where the split has clusters."""
    follows_bias: _Unit | None = None
    """Part of the conflicting samples that are taken for a class that goes with their bias."""
    calibration: Calibration | None = None

    @model_validator(mode="after")
    def _matrices(self) -> Score:
        confusion, right, count = map(_matrix, (self.confusion, self.bias_correct, self.bias_count))
        if len(set(confusion.shape)) > 1:
            raise ValueError("the confusion matrix is not square")
        if right.shape != count.shape or (right > count).any():
            raise ValueError("bias_correct does not fit bias_count")
        return self

    def on(self, cells: NDArray[np.bool_]) -> float | None:
        """Return the accuracy on some groups, label × bias; None where they have no sample."""
        right, count = _matrix(self.bias_correct), _matrix(self.bias_count)
        total = int(count[cells].sum())
        return int(right[cells].sum()) / total if total else None

    @property
    def biases(self) -> int:
        """Return the number of values of the bias that the groups have."""
        return len(self.bias_count[0]) if self.bias_count else 0

    @property
    def worst_class(self) -> float | None:
        """Return the accuracy of the worst class; None without a confusion matrix."""
        return float(np.nanmin(self.by_class)) if self.confusion else None

    @property
    def ece(self) -> float | None:
        """Return the expected calibration error; None where it is not told."""
        return self.calibration.ece if self.calibration else None

    @property
    def by_class(self) -> NDArray[np.float64]:
        """Return the accuracy of each class ``[classes]``, NaN for a class without samples."""
        confusion = _matrix(self.confusion)
        samples = confusion.sum(axis=1)
        shares = np.full(len(samples), np.nan)
        np.divide(confusion.diagonal(), samples, out=shares, where=samples > 0)
        return shares


def _matrix(rows: list[list[int]]) -> NDArray[np.int64]:
    """Return rows as a matrix; ValueError if they differ in length."""
    return np.array(rows or [[]], dtype=np.int64)[: len(rows)]


class Split(_Read):
    """One split of the test data."""

    samples: Annotated[int, Field(ge=1, le=10**9)]
    hsic: list[float | None] = []
    """HSIC of the features of f and of each g."""
    networks: dict[str, Score]

    @model_validator(mode="after")
    def _consistent(self) -> Split:
        for name, score in self.networks.items():
            if abs(score.accuracy - score.correct / self.samples) > 1e-6:
                raise ValueError(
                    f"{name}: accuracy {score.accuracy} is not {score.correct} of {self.samples}"
                )
            confusion = _matrix(score.confusion)
            counted = (int(confusion.trace()), int(confusion.sum()))
            if score.confusion and counted != (score.correct, self.samples):
                raise ValueError(f"{name}: the confusion matrix is of other counts")
        return self


class Checkpoint(_Read):
    """The weights of one step, on every split."""

    step: Annotated[int, Field(ge=0)]
    splits: dict[str, Split]


class Results(_Read):
    """The ``results.json`` that a run writes at its end."""

    format: Literal[1]
    method: str
    dataset: str
    classes: Annotated[list[str], Field(min_length=1)]
    chosen_on: Literal["selection", "oracle"]
    select: str = "accuracy"
    """Which figure chose the best checkpoint."""
    steps: Annotated[int, Field(ge=0)]
    bias: BiasRule | None = None
    """Which value of the bias goes with each class; None in results of earlier versions."""
    checkpoints: dict[Literal["last", "best"], Checkpoint]

    @property
    def rule(self) -> BiasRule:
        """Return the rule of the run; of earlier versions it is that of equal numbers."""
        return BiasRule.by_number(self.classes) if self.bias is None else self.bias

    def sides(self, score: Score) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which groups of a score are aligned and which conflicting, label × bias."""
        own = self.rule.ids(self.classes, self.values(score))[: len(score.bias_count), None]
        aligned = own == np.arange(score.biases)
        return aligned, (own >= 0) & ~aligned

    def values(self, score: Score) -> list[str]:
        """Return the names of the biases of a score; a bias that the rule lacks has its number."""
        return self.rule.names(score.biases)

    @model_validator(mode="after")
    def _same_classes(self) -> Results:
        for checkpoint in self.checkpoints.values():
            for name, split in checkpoint.splits.items():
                for network, score in split.networks.items():
                    if len(score.confusion) not in (0, len(self.classes)):
                        raise ValueError(
                            f"{name}/{network}: a confusion matrix of {len(score.confusion)} "
                            f"classes, there are {len(self.classes)}"
                        )
                    if len(score.bias_count) not in (0, len(self.classes)):
                        raise ValueError(
                            f"{name}/{network}: groups of {len(score.bias_count)} classes, there "
                            f"are {len(self.classes)}"
                        )
        return self
