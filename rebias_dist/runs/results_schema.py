"""What results.json must be to be believed: its fields, and what they have to agree in.

Checked by whatever reads results that somebody else may have written or damaged.
"""

from __future__ import annotations

from itertools import chain
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_Count = Annotated[int, Field(ge=0)]
_Unit = Annotated[float, Field(ge=0, le=1)]


class _Read(BaseModel):
    """A part of ``results.json``; fields that this report does not use are passed over."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Calibration(_Read):
    """How far confidence is from accuracy."""

    ece: _Unit | None = None


class Score(_Read):
    """How one network did on one split."""

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
    """Part of the samples against their bias that are taken for the class of the bias."""
    calibration: Calibration | None = None

    def conflicting(self) -> float | None:
        """Return the accuracy on samples whose bias is not their class's; None without any.

        For biases that are numbered like the classes which they go with.
        """
        cells = [
            (right, count)
            for label, row in enumerate(zip(self.bias_correct, self.bias_count, strict=True))
            for bias, (right, count) in enumerate(zip(*row, strict=True))
            if bias != label
        ]
        total = sum(count for _, count in cells)
        return sum(right for right, _ in cells) / total if total else None

    def by_class(self) -> list[float | None]:
        """Return the accuracy of each class, None for one without samples."""
        rows = enumerate(self.confusion)
        return [row[label] / sum(row) if sum(row) else None for label, row in rows]


class Split(_Read):
    """One split of the test data."""

    samples: Annotated[int, Field(ge=1)]
    hsic: list[float | None] = []
    """Of the features of f and each g."""
    networks: dict[str, Score]

    @model_validator(mode="after")
    def _consistent(self) -> Split:
        for name, score in self.networks.items():
            if abs(score.accuracy - score.correct / self.samples) > 1e-6:
                raise ValueError(
                    f"{name}: accuracy {score.accuracy} is not {score.correct} of {self.samples}"
                )
            if [len(row) for row in score.bias_correct] != [len(row) for row in score.bias_count]:
                raise ValueError(f"{name}: bias_correct and bias_count differ in shape")
            right, count = (list(chain(*m)) for m in (score.bias_correct, score.bias_count))
            if any(c > n for c, n in zip(right, count, strict=True)):
                raise ValueError(f"{name}: bias_correct is larger than bias_count")
            confusion = score.confusion
            if not confusion:
                continue
            if any(len(row) != len(confusion) for row in confusion):
                raise ValueError(f"{name}: the confusion matrix is not square")
            diagonal = sum(row[label] for label, row in enumerate(confusion))
            if (diagonal, sum(map(sum, confusion))) != (score.correct, self.samples):
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
    steps: Annotated[int, Field(ge=0)]
    checkpoints: dict[str, Checkpoint]
    """By 'best' and 'last'."""

    @model_validator(mode="after")
    def _same_classes(self) -> Results:
        for checkpoint in self.checkpoints.values():
            for name, split in checkpoint.splits.items():
                for network, score in split.networks.items():
                    if score.confusion and len(score.confusion) != len(self.classes):
                        raise ValueError(
                            f"{name}/{network}: a confusion matrix of {len(score.confusion)} "
                            f"classes, there are {len(self.classes)}"
                        )
        return self
