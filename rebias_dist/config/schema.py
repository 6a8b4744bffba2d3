"""The fields of a run's configuration: their meaning, defaults and limits.

This module imports no torch, so that ``--help`` and ``--print-config`` answer at once. The
docstring below each field is the text that ``--help`` prints for it.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    Field,
    SerializeAsAny,
    WrapValidator,
    field_validator,
    model_validator,
)

from rebias_dist.config.data import DataConfig, with_home
from rebias_dist.methods.options import (
    STRICT,
    Count,
    CountOrZero,
    Fraction,
    MethodConfig,
    NonNegative,
    Positive,
    validate_options,
)
from rebias_dist.methods.registry import Facts

Radius = Literal["median", "dimension"] | Positive
Beta = Annotated[float, Field(ge=0, lt=1)]

# Names become file names, arguments and lines of batch scripts, so they hold no character that
# a shell interprets.
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+=-]{0,199}")


OF_CONVNET: Final = frozenset({"kernel_size", "width", "norm", "dropout"})
"""The fields of a network that simple_convnet alone has."""


class Section(BaseModel):
    """A group of fields; unknown fields and loose types are refused."""

    model_config = STRICT


class NetworkConfig(Section):
    """One network: f, or one of the g."""

    name: str = "simple_convnet"
    """simple_convnet, bagnet18, resnet18/34/50…, any torchvision network by its name, any of timm's
    as 'timm:NAME', or a network of yours as 'package.module:factory'."""
    kernel_size: Count | None = None
    """simple_convnet only: kernel size of its four convolutions; 7 sees shapes, 1 sees colours."""
    width: Positive | None = None
    """simple_convnet only: factor on the channels 16, 32, 64, 128."""
    norm: Literal["batch", "group", "none"] | None = None
    """simple_convnet only: normalisation after each convolution."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    """simple_convnet only: dropout before the last layer."""
    feature: str | None = None
    """Which features HSIC sees: simple_convnet 'post' pooling (default), 'pre' pooling or
    'logits'; elsewhere the name of a layer. Unset: the features before the last layer. A map
    [n, c, h, w] is averaged over its positions; of tokens [n, t, d] the class token is taken if the
    network has one, else their mean. At most 4,096 wide."""
    options: dict[str, Any] = {}
    """Further keyword arguments of the network's factory."""
    checkpoint: str | None = None
    """A run whose last checkpoint has the initial weights, as in 'runs/biased': those of its
    network of the same name if it has one, else those of its only network. All images are then
    normalised as that run's, in place of the data's mean and deviation."""
    pretrained: bool | str = False
    """Initial weights. true: those that torchvision or timm publishes for the network, from its
    cache or downloaded. Or a file with a state dict (safetensors, or torch.save without pickled
    code). Or a run as 'runs/a:best' or 'runs/a:last'. A last layer of another number of classes
    stays new. All images are then normalised as for these weights, if that is known (of a file it
    is not), in place of the data's mean and deviation. A resumed run does not load them again."""
    freeze: Literal["none", "backbone"] = "none"
    """backbone: only the last layer is trained; BatchNorm below it stays in evaluation mode."""
    head_lr: Positive | None = None
    """Learning rate of the last layer, scheduled as optimizer.lr. Unset: the same."""
    head_weight_decay: NonNegative | None = None
    """Weight decay of the last layer. Unset: optimizer.weight_decay."""
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    """f only: decay of an exponential moving average of the weights, as 0.999. It is evaluated
    beside f as f_ema."""

    _home = field_validator("checkpoint")(with_home)

    @field_validator("pretrained")
    @classmethod
    def _home_of_weights(cls, pretrained: bool | str) -> bool | str:
        return with_home(pretrained) or False if isinstance(pretrained, str) else pretrained

    @model_validator(mode="after")
    def _one_origin(self) -> NetworkConfig:
        if self.checkpoint is not None and self.pretrained:
            raise ValueError("checkpoint: pretrained is set too; remove one of them")
        return self

    @property
    def begins_elsewhere(self) -> bool:
        """Return whether the initial weights are read rather than drawn."""
        return self.checkpoint is not None or bool(self.pretrained)

    @property
    def sets_head(self) -> bool:
        """Return whether the last layer has settings of its own."""
        return self.head_lr is not None or self.head_weight_decay is not None

    def build_options(self) -> dict[str, Any]:
        """Return the options that were set, as ``models.build`` takes them."""
        ours = {*OF_CONVNET, "feature"}
        return {**self.model_dump(include=ours, exclude_none=True), **self.options}


class OptimizerConfig(Section):
    """The optimizer; each network has one of its own with these settings."""

    name: Literal["adamp", "adam", "adamw", "sgd"] = "adamp"
    """adamp (the authors of ReBias recommend it; the figures of their paper are with adam), adam,
    adamw or sgd."""
    lr: Positive = 1e-3
    """Learning rate at the first epoch, or after the warm-up."""
    weight_decay: NonNegative = 1e-4
    """Weight decay (decoupled for adamp and adamw)."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """sgd only: momentum."""
    betas: Annotated[list[Beta], Field(min_length=2, max_length=2)] = [0.9, 0.999]
    """adamp, adam and adamw only: decay of the means of gradients and of their squares."""
    eps: Positive = 1e-8
    """adamp, adam and adamw only: added to the denominator of a step."""
    clip_norm: Positive | None = None
    """Largest gradient norm of a network; larger gradients are scaled down to it."""


class SchedulerConfig(Section):
    """The learning rate over the epochs after pretraining."""

    name: Literal["step", "cosine", "constant"] = "step"
    """step: multiply by gamma every step_size units. cosine: decay to 0. constant: keep it."""
    unit: Literal["epoch", "step"] = "epoch"
    """epoch: the rate changes between epochs. step: with each optimizer step. step_size and warmup
    count in this unit."""
    step_size: Count = 20
    """step only: units between two reductions."""
    milestones: list[Count] = []
    """step only: units before the first reduction, before the second, and so on, as in '[26, 53]';
    empty: every step_size."""
    gamma: Fraction = 0.1
    """step only: factor of a reduction."""
    warmup: CountOrZero = 0
    """Units in which the rate rises in equal parts to optimizer.lr; the schedule begins after
    them."""


class RadiusConfig(Section):
    """The kernel radii σ of HSIC, one for f's features and one for those of each g."""

    f: Radius = "median"
    """'median' (of the distances inside global batches), 'dimension' (square root of the feature
    width) or a number."""
    g: Radius = "median"
    """The same for g."""
    scale_f: Positive = 1.0
    """Factor on f's radius."""
    scale_g: Positive = 1.0
    """Factor on the radius of each g."""
    update: Literal["epoch", "once"] = "epoch"
    """Measure the median before each epoch, or once after pretraining."""
    fraction: Fraction = 0.25
    """Part of the coming epoch's global batches from which the median is taken."""


class EvaluateConfig(Section):
    """Evaluation during and after training."""

    every_epochs: Count = 1
    """Epochs between two evaluations on the selection data; the last epoch always has one."""
    batch: Count = 256
    """Samples of a forward pass."""
    monitor: str = "unbiased"
    """The test split that chooses the oracle 'best' where data.selection is none."""
    select: Literal["accuracy", "worst_group", "conflicting", "unbiased"] = "accuracy"
    """The figure of the selection data that chooses the best checkpoint: the accuracy over all
    images, in the worst group of class and bias, on the images that conflict with the bias, or the
    mean over cells of class and texture cluster."""
    final: Literal["test", "none"] = "test"
    """At the end of the run evaluate the last and the best checkpoint on the test splits, or not,
    as for a first try. The same command without 'none', or rebias-evaluate, does it later."""
    hsic_samples: Annotated[int, Field(ge=4)] = 2048
    """Largest number of samples of a split on whose features HSIC is reported."""


class LogConfig(Section):
    """What is written while the run goes on."""

    every_steps: Count | None = None
    """Steps between two entries of metrics.jsonl and the trackers. Unset: 1 on the CPU, 10 on
    CUDA."""
    to: list[Literal["tensorboard", "wandb", "mlflow"]] = ["tensorboard"]
    """Trackers that get the records besides metrics.jsonl: tensorboard, wandb (Weights & Biases),
    mlflow; '[]': none."""
    project: Annotated[str, Field(min_length=1)] | None = None
    """Name of the project at W&B and of the experiment at MLflow. Unset: that of WANDB_PROJECT and
    MLFLOW_EXPERIMENT_NAME, or 'rebias-dist'."""
    profile: CountOrZero = 0
    """Steps, after the first three, of which each rank writes a trace to profile/ in the run's
    folder, for ui.perfetto.dev; 0: none."""


class CheckpointConfig(Section):
    """When the state of the run is saved."""

    every_minutes: Positive = 10.0
    """Longest time between two checkpoints; evaluations that set a new best and the end of the
    run save too."""
    every_steps: Count | None = None
    """Steps between two checkpoints, besides every_minutes."""
    keep: Annotated[int, Field(ge=2)] = 2
    """Newest checkpoints that are kept, besides the best."""


class FaultsConfig(Section):
    """What happens when something goes wrong."""

    non_finite: Literal["stop", "skip", "rollback"] = "stop"
    """A gradient that is NaN or infinite: stop, skip that network's update, or roll back to the
    newest checkpoint and repeat; a step that fails again is then left out, data and all."""
    non_finite_limit: Count = 10
    """The run gives up after this many skipped updates of a network in a row (skip), or after this
    many rollbacks in all (rollback)."""
    restarts: CountOrZero = 3
    """Restarts in a row that bring no newer checkpoint, after which the run gives up."""
    start_minutes: Positive = 10.0
    """How long the ranks wait for each other until the first step."""
    step_minutes: Positive = 10.0
    """How long they wait afterwards, before a rank that does not answer is given up. A rank waits
    three quarters of that for its data."""


class Config(Section):
    """A whole run."""

    name: str | None = None
    """Name of the run and of its folder. Unset: a fresh one from the method and the time."""
    runs_dir: str = "runs"
    """Folder in which runs have their folders."""
    seed: CountOrZero = 0
    """Decides initial weights, order of samples, augmentation and dropout."""
    epochs: Count = 80
    """Epochs after pretraining."""
    max_steps: Count | None = None
    """Stop after this many optimizer steps, pretraining included."""
    precision: Literal["float32", "tf32", "bf16", "fp16", "float64"] = "float32"
    """float32: IEEE on every device. tf32: products and convolutions round their operands to TF32
    where the device can. bf16, fp16: by autocast (fp16 with a gradient scaler). float64: for exact
    tests."""
    global_batch: Annotated[int, Field(ge=2)] = 256
    """N: samples of an optimizer step, over all ranks."""
    micro_batch: Count | None = None
    """b: samples of one forward on one rank, the unit of BatchNorm. Unset: min(N, 32). It is a
    hyperparameter; the ranks share the N / b micro-batches."""
    deterministic: bool = False
    """Use only deterministic algorithms (CUDA; on the CPU they are already)."""
    compile: bool = False
    """Train through torch.compile, each network on its own; needs a C++ compiler (on CUDA Triton
    too) and seconds to minutes at the start. Evaluation and export do not compile. It changes
    rounding, so a resumed run must keep it."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: cuda where there is one."""
    method: Annotated[SerializeAsAny[MethodConfig], WrapValidator(validate_options)] = (
        MethodConfig()
    )
    """The training method."""
    f: NetworkConfig = NetworkConfig(kernel_size=7)
    """The target network."""
    g: Annotated[list[NetworkConfig], Field(min_length=1)] = [NetworkConfig(kernel_size=1)]
    """The biased networks, one entry each; not built for a method without g."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer."""
    scheduler: SchedulerConfig = SchedulerConfig()
    """The learning rate over time."""
    radius: RadiusConfig = RadiusConfig()
    """The kernel radii."""
    data: DataConfig = DataConfig()
    """The data."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Evaluation."""
    log: LogConfig = LogConfig()
    """Logging."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    faults: FaultsConfig = FaultsConfig()
    """Faults."""

    _home = field_validator("runs_dir")(with_home)

    @field_validator("name")
    @classmethod
    def _name_is_safe(cls, name: str | None) -> str | None:
        if name is not None and not RUN_NAME.fullmatch(name):
            raise ValueError(
                f"name: {name!r} cannot name a folder; use letters, digits and . _ + = -"
            )
        return name

    @model_validator(mode="before")
    @classmethod
    def _default_micro_batch(cls, values: Any) -> Any:
        # Stored when the run is created, so that a later default does not change an old run.
        if isinstance(values, dict) and values.get("micro_batch") is None:
            n = values.get("global_batch", cls.model_fields["global_batch"].default)
            if isinstance(n, int) and not isinstance(n, bool) and n > 0:
                return {**values, "micro_batch": min(n, 32)}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        method, n, b = self.method, self.global_batch, self.b
        if n % b:
            divisors = [d for d in range(1, n + 1) if n % d == 0]
            near = sorted(sorted(divisors, key=lambda d: abs(d - b))[:3])
            raise ValueError(
                f"micro_batch: {b} does not divide global_batch {n}; "
                f"use one of {', '.join(map(str, near))}"
            )
        if self.data.views > 1 and not self.facts.views:
            raise ValueError(f"data.views: {method.name} uses one view of a sample; set it to 1")
        if method.name == "jtt" and self.data.on_damaged == "skip":
            raise ValueError(
                "data.on_damaged: skip is not offered with jtt, which predicts every training "
                "sample; use stop"
            )
        unready = [f"g.{i}" for i, g in enumerate(self.g) if not g.begins_elsewhere]
        if self.facts.fixed_g and method.g_pretrain_epochs == 0 and unready:
            raise ValueError(
                f"method.g_pretrain_epochs: {method.name} keeps g fixed after pretraining, so 0 "
                f"would leave {unready[0]} at chance; use 1 or more, or set {unready[0]}.checkpoint"
            )
        averaged = [f"g.{i}" for i, g in enumerate(self.g) if g.ema is not None]
        if averaged:
            raise ValueError(f"{averaged[0]}.ema: only f can have an average; remove it")
        couples = self.facts.hsic and (method.lambda_f > 0 or method.lambda_g > 0)
        if couples and n < 4 and method.hsic == "unbiased":
            raise ValueError(
                f"global_batch: {n} is too small for HSIC, which needs at least 4 samples"
            )
        if self.data.selection == "none" and self.evaluate.monitor not in self.data.test_splits:
            raise ValueError(
                f"evaluate.monitor: {self.evaluate.monitor!r} is not among data.test_splits "
                f"({', '.join(self.data.test_splits)})"
            )
        return self

    @property
    def b(self) -> int:
        """Return the micro-batch, which the validation above has filled in."""
        assert self.micro_batch is not None
        return self.micro_batch

    @property
    def has_f(self) -> bool:
        """Return whether the method trains f."""
        return self.facts.has_f

    @property
    def has_g(self) -> bool:
        """Return whether the method has any g."""
        return self.facts.has_g

    @property
    def facts(self) -> Facts:
        """Return what is known of the method before it is built."""
        return self.method.facts

    @property
    def pretrain_epochs(self) -> int:
        """Return the epochs before the game starts; f and g pretrain side by side."""
        return max(self.method.f_pretrain_epochs, self.method.g_pretrain_epochs)

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide the weights: what a resumed run must agree on."""
        where_and_when = {"name", "runs_dir", "max_steps", "device", "log", "checkpoint", "faults"}
        identity = self.model_dump(exclude=where_and_when)
        # The data themselves are compared, by their digest: they may have been moved.
        apart = ("root", "cache_gb", "source", "aligned", "other_tests", "workers", "decoder")
        for key in apart:
            del identity["data"][key]
        del identity["evaluate"]["final"]
        if self.data.on_damaged == "stop":  # then it decides only whether the run goes on
            del identity["data"]["verify"]
        return identity
