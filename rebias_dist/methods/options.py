"""The options of the methods: their meaning, their defaults and their limits.

This module imports no torch, so that ``--help`` answers at once.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from rebias_dist.methods.registry import METHODS, Facts

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
CountOrZero = Annotated[int, Field(ge=0)]


STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True)
"""Refuses unknown fields and loose types; the docstring below a field is its help."""


class MethodConfig(BaseModel):
    """Which game is played, and its weights."""

    model_config = STRICT

    name: Literal[*METHODS] = "rebias"  # type: ignore[valid-type]
    """rebias: f independent of g (HSIC). vanilla: f alone. biased: g alone. rubi: f's logits
    masked by g's. learned_mixin: f joined with a fixed, pretrained g."""
    lambda_f: NonNegative = 1.0
    """Weight of HSIC in f's objective; for rubi and learned_mixin of their whole objective."""
    lambda_g: NonNegative = 1.0
    """rebias: weight of HSIC in g's objective (which g maximises)."""
    n_g_update: Count = 1
    """Updates of each g before the update of f, on the same global batch."""
    update_g_cls: bool = True
    """Keep the cross-entropy in g's objective; false leaves only its HSIC term."""
    swap_inner_bandwidth: bool = False
    """In g's update, exchange the kernel radii of f and g, as the public code does."""
    hsic: Literal["unbiased", "biased"] = "unbiased"
    """Estimator: unbiased (Song et al. 2012) or biased (Gretton et al. 2005)."""
    f_pretrain_epochs: CountOrZero = 0
    """Epochs in which f trains on cross-entropy alone before the game starts."""
    g_pretrain_epochs: CountOrZero = 0
    """Epochs in which every g trains on cross-entropy alone; learned_mixin needs at least 1."""

    @property
    def facts(self) -> Facts:
        """Return what is known of the method before it is built."""
        return METHODS[self.name]

    @model_validator(mode="after")
    def _consistent(self) -> MethodConfig:
        if self.facts.fixed_g and self.g_pretrain_epochs == 0:
            raise ValueError(
                f"method.g_pretrain_epochs: {self.name} keeps g fixed after pretraining, "
                "so 0 would leave g at chance; use 1 or more"
            )
        if not self.facts.has_g and self.g_pretrain_epochs:
            raise ValueError(f"method.g_pretrain_epochs: {self.name} has no g; set it to 0")
        if not self.facts.has_f and self.f_pretrain_epochs:
            raise ValueError(f"method.f_pretrain_epochs: {self.name} has no f; set it to 0")
        if not self.update_g_cls and not self.facts.couples:
            raise ValueError(
                f"method.update_g_cls: false leaves g without an objective in {self.name}; "
                "it is for methods with HSIC"
            )
        if not self.update_g_cls and self.lambda_g == 0:
            raise ValueError("method.lambda_g: 0 without update_g_cls leaves g no objective")
        return self
