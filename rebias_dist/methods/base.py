"""The interface of a method: the objective of each network, and what the method remembers.

An objective is a sum over samples (``f_terms``, ``g_terms``), which any accumulation may cut into
micro-batches, plus coupled terms (``f_coupled``, ``g_coupled``): functions of the features of the
whole global batch, which nothing may cut. :mod:`rebias_dist.step.minimax` computes both.

A method may also see values of every sample of the global batch before any network is updated
(``values``, ``observe``), and change its state and the samples' weights by them. All that it sees
there is alike on all ranks, so its state stays alike as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rebias_dist.errors import ConfigError, RebiasError
from rebias_dist.methods.options import MethodConfig
from rebias_dist.methods.radii import Radii
from rebias_dist.methods.registry import Facts
from rebias_dist.objectives import Features


class Output(NamedTuple):
    """The output of a network for a micro-batch of b samples with V views each."""

    logits: Tensor
    """``[V·b, classes]``, all first views before all second ones."""
    features: Tensor
    """``[V·b, d]``, in the same order."""


class Term(NamedTuple):
    """A coupled term of an objective."""

    name: str
    """The name of the value in the metrics of the network."""
    weight: float
    value: Tensor
    """0-d float64: of the whole global batch, the same on all ranks."""


@dataclass(frozen=True)
class Batch:
    """What is known of the samples of a micro-batch, or of the whole global batch."""

    labels: Tensor
    """int64 ``[b]``; of a micro-batch with V views ``[V·b]``, in the order of the outputs."""
    bias: Tensor
    """The bias labels, int64, as ``labels``; -1: none."""
    samples: Tensor
    """The places of the samples in the training set, int64, as ``labels``."""
    step: int = 0
    """Steps of the game so far; pretraining is not counted."""
    views: int = 1
    """V, the views of each sample."""
    weights: Tensor | None = None
    """What ``observe`` returned for these samples, as ``labels``."""
    radii: Radii | None = None
    """The kernel radii; None without HSIC."""


@dataclass(frozen=True)
class TrainingSet:
    """The labels of the n training samples, in the order of the index; alike on all ranks."""

    labels: Tensor
    """int64 ``[n]``"""
    bias: Tensor
    """int64 ``[n]``; -1: none"""
    classes: int
    shape: tuple[int, int, int]
    """Of the networks' input: channels, height, width."""


class Engine(Protocol):
    """What the engine does for a method between two steps; each call is a collective."""

    def predict(self, name: str) -> Tensor:
        """Return a network's predictions in evaluation mode, int64 ``[n]``, of the training set.

        The images are not augmented.
        """

    def restart(self, name: str) -> None:
        """Give a network its initial weights again, and a new optimizer; its heads stay."""

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of a tensor over the ranks."""


class Method:
    """Plain cross-entropy for f and for every g. A method overrides parts of it.

    Args:
        config: its options.
    """

    facts: Facts
    """What it needs. A class of the user's sets it; ours are in the registry."""
    Options: type[MethodConfig] = MethodConfig
    """The class of its options; a class of the user's sets it."""
    f_needs_g: ClassVar[bool] = False
    """``f_terms`` uses the outputs of every g."""
    observes: bool = False
    """``values`` and ``observe`` are called in each step."""
    needs_whole_batch: ClassVar[bool] = True
    """The coupled terms use the labels, bias labels or places of the samples."""

    def __init__(self, config: MethodConfig) -> None:
        self.config = config
        self.facts = config.facts

    # ---------------------------------------------------------------- the run

    def prepare(self, training: TrainingSet, networks: dict[str, nn.Module]) -> None:
        """Look at the training labels and the networks, once, before the first step.

        Args:
            training: on the device of the networks.
            networks: ``f``, ``g0``, ``g1`` … those that the method has.

        Raises:
            ConfigError: the method cannot train on them; alike on all ranks.
        """

    def state(self) -> dict[str, Tensor]:
        """Return what the method remembers, by name; it is saved with the run.

        The tensors are the method's own: :meth:`load_state` writes into them.
        """
        return {}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`state` returned, on any device.

        Raises:
            ConfigError: it has other names or shapes than now.
        """
        here = checked_state(self)
        shapes = [{name: tuple(x.shape) for name, x in found.items()} for found in (state, here)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"method.name: the checkpoint has a state of {type(self).__name__} of the shapes "
                f"{shapes[0]}, but here it has {shapes[1]}; start another run"
            )
        for name, values in here.items():
            values.copy_(state[name])

    def before_epoch(self, epoch: int, engine: Engine) -> None:
        """Do what is due before an epoch of the game, counted from 0; may use the engine."""

    def after_step(self, step: int, engine: Engine) -> None:
        """Do what is due after a step of the game, counted from 0; may use the engine."""

    # ---------------------------------------------------------------- a step

    def values(self, f: Output | None, gs: list[Output], batch: Batch) -> dict[str, Tensor]:
        """Return per-sample values ``[b]`` by name, for :meth:`observe`; without gradients.

        Args:
            f: its output on a micro-batch, before any update.
            gs: those of every g.
            batch: the micro-batch.
        """
        raise ConfigError(f"method.name: {type(self).__name__} observes, but has no values()")

    def observe(self, values: dict[str, Tensor], batch: Batch) -> Tensor | None:
        """Change the state by the values of the global batch; no network is updated yet.

        Args:
            values: ``[N]`` float64 by name, as :meth:`values` returned them on all ranks.
            batch: the global batch.

        Returns:
            ``[N]`` weights of the samples, which the networks' terms find in ``batch.weights``;
            or None.
        """
        raise ConfigError(f"method.name: {type(self).__name__} observes, but has no observe()")

    @property
    def f_is_coupled(self) -> bool:
        """Return whether f's objective has coupled terms."""
        return type(self).f_coupled is not Method.f_coupled

    @property
    def g_is_coupled(self) -> bool:
        """Return whether the objective of each g has coupled terms."""
        return type(self).g_coupled is not Method.g_coupled

    @property
    def is_coupled(self) -> bool:
        """Return whether any objective has coupled terms."""
        return self.f_is_coupled or self.g_is_coupled

    @property
    def needs_radii(self) -> bool:
        """Return whether kernel radii are measured."""
        return self.facts.hsic and self.is_coupled

    @property
    def shares_samples(self) -> bool:
        """Return whether the ranks tell each other the labels and places of their samples."""
        return self.needs_whole_batch and (self.is_coupled or self.observes)

    def f_coupled(self, f: Features, gs: Sequence[Features], batch: Batch) -> list[Term]:
        """Return the coupled terms of f's objective; a collective.

        With V views, a row has the features of all views of a sample side by side, ``V·d``.

        Args:
            f: f's features on the global batch, with their graph.
            gs: the features of each g, detached.
            batch: the global batch, in the order of the rows.
        """
        return []

    def g_coupled(self, index: int, g: Features, f: Features, batch: Batch) -> list[Term]:
        """Return the coupled terms of the objective of g number ``index``; a collective.

        Args:
            index: of the g.
            g: its features on the global batch, with their graph.
            f: f's features, detached.
            batch: the global batch, in the order of the rows.
        """
        return []

    def heads(self, f_width: int, g_widths: list[int], classes: int) -> nn.Module | None:
        """Return layers that train with f, called as ``heads(f, gs)``, or None."""
        return None

    def f_terms(
        self, f: Output, gs: list[Output], batch: Batch, heads: nn.Module | None
    ) -> dict[str, Tensor]:
        """Return the per-sample terms ``[V·b]`` of f's objective, by name, weights included."""
        return {"ce": cross_entropies(f, batch)}

    def g_terms(self, g: Output, batch: Batch) -> dict[str, Tensor]:
        """Return the per-sample terms ``[V·b]`` of the objective of a g, by name."""
        if not self.config.update_g_cls:
            return {}
        return {"ce": cross_entropies(g, batch)}


def cross_entropies(output: Output, batch: Batch) -> Tensor:
    """Return the cross-entropy of each row, ``[V·b]``, in at least float32."""
    return cross_entropy(wide(output.logits), batch.labels, reduction="none")


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in at least float32: losses are never computed in half precision."""
    return x if x.dtype == torch.float64 else x.float()


@contextmanager
def one_line(where: str) -> Iterator[None]:
    """Turn what a method's function raises, or returns wrongly, into a ``ConfigError``."""
    try:
        yield
    except RebiasError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        raise ConfigError(f"method.name: {where}: {error}") from error


def per_sample(found: object, rows: int, where: str) -> dict[str, Tensor]:
    """Return what a method returned, if it is a dict of tensors with a value for each row.

    Args:
        found: returned by the method.
        rows: number of rows.
        where: the method's function, for the message.

    Raises:
        ConfigError: it is something else, perhaps on this rank alone.
    """
    if not isinstance(found, dict):
        raise ConfigError(
            f"method.name: {where} must return a dict of tensors by name, not "
            f"{type(found).__name__}"
        )
    for name, values in found.items():
        if name in ("accuracy", "loss", "grad_norm"):
            raise ConfigError(f"method.name: {where} returned {name!r}, a name that is taken")
        if not isinstance(values, Tensor) or values.shape != (rows,) or values.dtype == torch.bool:
            kind = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
            raise ConfigError(
                f"method.name: {where} returned {name!r} as {kind}; it must be a tensor with one "
                f"value for each of the {rows} rows"
            )
    return found


def checked_state(method: Method) -> dict[str, Tensor]:
    """Return the state of a method, if it is a dict of tensors.

    Raises:
        ConfigError: it is something else; alike on all ranks.
    """
    found: object = method.state()
    if not isinstance(found, dict) or not all(isinstance(x, Tensor) for x in found.values()):
        raise ConfigError(
            f"method.name: {type(method).__name__}.state() must return a dict of tensors by name"
        )
    return found


def restore_state(method: Method, state: dict[str, Tensor]) -> None:
    """Restore a saved state, and check that the method has it now.

    Raises:
        ConfigError: it does not fit, or the method does not keep it; alike on all ranks.
    """
    method.load_state(state)
    for name, values in checked_state(method).items():
        saved = state[name].to(values)
        if not bool(((values == saved) | ((values != values) & (saved != saved))).all()):
            raise ConfigError(
                f"method.name: {type(method).__name__} did not keep its state {name!r}; state() "
                "must return the method's own tensors, into which load_state() writes"
            )
