"""The options of the methods: their meaning, their defaults and their limits.

This module imports no torch, so that ``--help`` answers at once.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
    model_validator,
)

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
    """Which method trains f, and its options."""

    model_config = STRICT
    common: ClassVar[frozenset[str]] = frozenset()
    """The fields below that a method uses, for a method with options of its own. It refuses the
    others, unless they have their defaults."""

    name: Annotated[str, Field(json_schema_extra={"choices": [*METHODS]})] = "rebias"
    """rebias: f independent of g (HSIC). vanilla: f alone. biased: g alone. rubi: f's logits
    masked by g's. learned_mixin: f joined with a fixed, pretrained g. The others are in the docs
    under 'Methods'. A method of yours is 'package.module:Class'."""
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
    """Epochs in which f trains on cross-entropy alone before the game starts; jtt finds its error
    set after them."""
    g_pretrain_epochs: CountOrZero = 0
    """Epochs in which every g trains on cross-entropy alone. A method with a fixed g needs at
    least 1, or a 'checkpoint' for each g."""

    @model_serializer(mode="wrap")
    def _without_unused(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {k: v for k, v in values.items() if k not in self.unused()}

    @classmethod
    def unused(cls) -> frozenset[str]:
        """Return the common fields that the method does not use."""
        return frozenset() if cls is MethodConfig else _COMMON - cls.common

    @property
    def without_effect(self) -> dict[str, Any]:
        """Return the options that change nothing for this method but differ from their defaults.

        They are not refused, for configurations and runs of earlier versions have them.
        """
        given = {name: getattr(self, name) for name in sorted(_IDLE.get(self.name, ()))}
        fields = type(self).model_fields
        return {name: value for name, value in given.items() if value != fields[name].default}

    @property
    def facts(self) -> Facts:
        """Return what is known of the method before it is built."""
        return METHODS[self.name] if self.name in METHODS else own_method(self.name).facts

    @model_validator(mode="after")
    def _consistent(self) -> MethodConfig:
        if isinstance(self, UnknownOptions):
            return self
        expected = options_class(self.name)
        if type(self) is not expected:
            raise ValueError(f"method.name: the options of {self.name} are {expected.__name__}")
        for name in sorted(self.unused()):
            value, default = getattr(self, name), type(self).model_fields[name].default
            if value != default:
                raise ValueError(
                    f"method.{name}: {self.name} does not use it, so {value} would change "
                    "nothing; remove it"
                )
        if not self.facts.has_g and self.g_pretrain_epochs:
            raise ValueError(f"method.g_pretrain_epochs: {self.name} has no g; set it to 0")
        if not self.facts.has_f and self.f_pretrain_epochs:
            raise ValueError(f"method.f_pretrain_epochs: {self.name} has no f; set it to 0")
        if not self.update_g_cls and not self.facts.hsic:
            raise ValueError(
                f"method.update_g_cls: false leaves g without an objective in {self.name}; "
                "it is for methods with HSIC"
            )
        if not self.update_g_cls and self.lambda_g == 0:
            raise ValueError("method.lambda_g: 0 without update_g_cls leaves g no objective")
        return self


def of_another_method(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return the options in ``values``, written for another method, that method ``name`` uses."""
    options = options_class(name)
    facts = METHODS[name] if name in METHODS else own_method(name).facts
    used = options.model_fields.keys() - options.unused()
    if not facts.has_f:
        used -= {"f_pretrain_epochs"}
    if not facts.has_g:
        used -= {"g_pretrain_epochs"}
    return {key: value for key, value in values.items() if key in used}


_OF_HSIC = frozenset({"lambda_g", "swap_inner_bandwidth", "hsic"})
_IDLE = {
    "vanilla": _OF_HSIC | {"lambda_f", "n_g_update"},
    "biased": _OF_HSIC | {"lambda_f"},
    "rubi": _OF_HSIC,
    "learned_mixin": _OF_HSIC | {"n_g_update"},
}
"""The common fields that have no effect on a method, though it takes them."""

_COMMON = frozenset(MethodConfig.model_fields) - {"name"}
_PRETRAIN_F = frozenset({"f_pretrain_epochs"})
_PRETRAIN = frozenset({"f_pretrain_epochs", "g_pretrain_epochs"})


class LearnedMixinOptions(MethodConfig):
    """LearnedMixin+H (Clark et al., EMNLP 2019)."""

    common = _COMMON
    name: str = "learned_mixin"
    entropy_weight: NonNegative = 0.36
    """Weight of the entropy of the gated g. 0.36 is that of the ReBias paper's comparison."""


class LfFOptions(MethodConfig):
    """LfF (Nam et al., NeurIPS 2020)."""

    common = _PRETRAIN
    name: str = "lff"
    q: Probability = 0.7
    """Exponent of the generalised cross-entropy of g."""
    smoothing: Probability = 0.7
    """Weight of a sample's old loss in the tables of both networks."""


class JTTOptions(MethodConfig):
    """JTT (Liu et al., ICML 2021)."""

    common = _PRETRAIN_F
    name: str = "jtt"
    f_pretrain_epochs: Count = 1
    """Epochs of the first training of f, after which its error set is found."""
    up_weight: Annotated[int, Field(ge=-1)] = 50
    """Extra weight of a misclassified sample, which then counts 1 + up_weight times; -1 gives the
    error set as much weight as the other samples."""


class SpectralDecouplingOptions(MethodConfig):
    """Spectral decoupling (Pezeshki et al., NeurIPS 2021)."""

    common = _PRETRAIN_F
    name: str = "spectral_decoupling"
    coefficient: Positive = 2e-5
    """Weight of the mean squared logits."""
    anneal_step: CountOrZero | None = 450
    """The step of the game, if any, from which the cross-entropy is multiplied by the coefficient,
    too."""
    form: Literal["plain", "urw", "spw1", "spw2", "spw3"] = "plain"
    """The penalty: plain for any number of classes; for two classes also those of the authors'
    CelebA table, of which spw3 gave their result (with coefficient 0.1, anneal_step null)."""
    ratio: Positive = 1.0
    """form spw1, spw2: factor on the logit of class 1 or of class 0 in the penalty."""


class SoftConOptions(MethodConfig):
    """SoftCon (Hong and Yang, NeurIPS 2021)."""

    common = _PRETRAIN
    name: str = "softcon"
    temperature: Positive = 0.07
    """Temperature T of the cosines."""
    ce_weight: NonNegative = 0.01
    """Weight of the cross-entropy beside the contrastive loss."""


class FLACOptions(MethodConfig):
    """FLAC (Sarridis et al., 2023)."""

    common = _PRETRAIN
    name: str = "flac"
    flac_weight: NonNegative = 110.0
    """Weight of FLAC; the authors' on Biased-MNIST are 110, 1500, 2000 and 10000 for ρ = 0.99,
    0.995, 0.997 and 0.999."""
    distance_exponent: Positive = 0.5
    """Exponent of the distances in the similarities."""
    ce_weight: NonNegative = 1.0
    """Weight of the cross-entropy."""


class BAddOptions(MethodConfig):
    """BAdd (Sarridis et al., 2024)."""

    common = _PRETRAIN
    name: str = "badd"
    added_weight: NonNegative = 1.0
    """Weight of the features of each g that are added to f's."""


class BiasBalanceOptions(MethodConfig):
    """BiasBal (Hong and Yang, NeurIPS 2021)."""

    common = _PRETRAIN_F
    name: str = "bias_balance"


class GroupDROOptions(MethodConfig):
    """Group DRO (Sagawa et al., ICLR 2020); a group is a class with a bias label."""

    common = _PRETRAIN_F
    name: str = "group_dro"
    weight_step: Positive = 0.01
    """Step size of the weights of the groups."""
    adjustment: NonNegative = 0.0
    """C: the loss of a group with n training samples counts as C / sqrt(n) more."""
    normalise_losses: bool = False
    """Divide the losses by their sum over the groups before they change the weights."""


class BiasConOptions(MethodConfig):
    """BiasCon (Hong and Yang, NeurIPS 2021)."""

    common = _PRETRAIN_F
    name: str = "biascon"
    temperature: Positive = 0.07
    """Temperature T of the cosines."""
    ce_weight: NonNegative = 0.01
    """Weight of the cross-entropy beside the contrastive loss."""
    bias_balance: bool = False
    """Take BiasBal's cross-entropy (BiasCon+BiasBal) instead of the plain one."""


class FairKLOptions(MethodConfig):
    """FairKL with eps-SupInfoNCE (Barbano et al., ICLR 2023)."""

    common = _PRETRAIN_F
    name: str = "fairkl"
    contrast: Literal["out", "in", "supcon"] = "out"
    """eps-SupInfoNCE with the mean over positives outside or inside the logarithm, or
    eps-SupCon."""
    contrast_weight: Positive = 1.0
    """α: weight of the contrastive loss; in the authors' form it is squared."""
    regulariser_weight: NonNegative = 1.0
    """λ: weight of the FairKL regulariser; 0 leaves the contrastive loss alone."""
    deviation_weight: NonNegative = 1.0
    """form authors: weight of the standard deviations in the regulariser."""
    epsilon: NonNegative = 0.0
    """ε: margin of the contrastive loss."""
    temperature: Positive = 0.1
    """Temperature T of the cosines."""
    form: Literal["authors", "paper"] = "authors"
    """The regulariser and weights of the authors' code, from which the published figures come, or
    of the paper's text."""


class EnDOptions(MethodConfig):
    """EnD (Tartaglione, Barbano and Grangetto, CVPR 2021)."""

    common = _PRETRAIN_F
    name: str = "end"
    disentangle_weight: NonNegative = 0.1
    """α: weight of the similarity of samples with the same bias."""
    entangle_weight: NonNegative = 0.1
    """β: weight of the distance of samples of a class with different biases."""


class UnknownOptions(MethodConfig):
    """The options of a user's method in a recorded run, as they are: its class is not imported."""

    model_config = ConfigDict(extra="allow")

    @property
    def facts(self) -> Facts:
        """Return that nothing is known of the method."""
        return Facts()

    @model_serializer(mode="wrap")
    def _as_recorded(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        return {name: values[name] for name in values if name in self.model_fields_set}


OPTIONS: dict[str, type[MethodConfig]] = {
    options.model_fields["name"].default: options
    for options in (
        LearnedMixinOptions,
        LfFOptions,
        JTTOptions,
        SpectralDecouplingOptions,
        SoftConOptions,
        FLACOptions,
        BAddOptions,
        BiasBalanceOptions,
        GroupDROOptions,
        BiasConOptions,
        FairKLOptions,
        EnDOptions,
    )
}
"""The options of each method that has more than the common ones, by the method's name."""


def options_class(name: Any) -> type[MethodConfig]:
    """Return the class of a method's options.

    Args:
        name: of one of :data:`~rebias_dist.methods.registry.METHODS`, or ``package.module:Class``.

    Raises:
        ValueError: there is no such method.
    """
    if not isinstance(name, str):  # refused as a value of the field
        return MethodConfig
    if name in METHODS:
        return OPTIONS.get(name, MethodConfig)
    if ":" in name:
        found: type[MethodConfig] = own_method(name).Options
        return found
    near = get_close_matches(name, METHODS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(METHODS)}"
    raise ValueError(f"method.name: {name!r} is no method and no package.module:Class; {hint}")


def validate_options(
    values: Any, handler: Callable[[Any], MethodConfig], info: ValidationInfo
) -> MethodConfig:
    """Return the options of the method that ``values`` name; a pydantic wrap validator.

    With ``{"import": False}`` as context, the class of a user's method is not imported.
    """
    if not isinstance(values, Mapping):
        return handler(values)
    name = values.get("name", MethodConfig.model_fields["name"].default)
    if isinstance(name, str) and ":" in name and info.context == {"import": False}:
        return UnknownOptions.model_validate(values)
    chosen = options_class(name)
    return handler(values) if chosen is MethodConfig else chosen.model_validate(values)


def own_method(path: str) -> Any:
    """Return a user's class, a subclass of :class:`rebias_dist.methods.base.Method`.

    Raises:
        ValueError: it cannot be imported, or lacks ``facts`` or ``Options``.
    """
    try:
        found = pkgutil.resolve_name(path)
    except Exception as error:  # the module may fail in any way
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"method.name: {path!r} cannot be imported ({reason}); write it as "
            "package.module:Class, importable where the run starts"
        ) from error
    options = getattr(found, "Options", None)
    right = isinstance(found, type) and isinstance(getattr(found, "facts", None), Facts)
    if not right or not (isinstance(options, type) and issubclass(options, MethodConfig)):
        raise ValueError(
            f"method.name: {path!r} is no method; it must be a subclass of "
            "rebias_dist.methods.base.Method with facts = Facts(...) and a MethodConfig as Options"
        )
    return found
