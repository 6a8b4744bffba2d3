"""A network of the game, with everything that its updates need."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from rebias_dist import models
from rebias_dist.config.schema import NetworkConfig, OptimizerConfig
from rebias_dist.errors import NonFiniteError
from rebias_dist.methods.base import Output
from rebias_dist.models import load_state
from rebias_dist.models.timm_networks import PREFIX
from rebias_dist.phases import phase
from rebias_dist.ranks.device_wait import to_host
from rebias_dist.step.adamp import AdamP
from rebias_dist.step.batchnorm import RunningStatistics
from rebias_dist.step.compilation import compiled
from rebias_dist.step.precision import Precision
from rebias_dist.step.reduction import Reduction


class Player:
    """A network, its optimizer, gradient scaler, BatchNorm buffers and gradient all-reduce.

    Args:
        name: ``f``, ``g0``, ``g1`` …; used in messages and metrics.
        network: maps images to ``(logits, features)``; already on its device.
        heads: trained with the network (those of RUBi and LearnedMixin), or None.
        optimizer: settings of the optimizer, which the network does not share.
        precision: the types of the forward pass.
        unused: the method may leave parameters without a gradient, in some updates or in all. Of a
            network that is not ours or torchvision's this is assumed.
        skips: how many updates in a row may be skipped for a gradient that is not finite.
        compile: run the passes of the updates through torch.compile.
        own: settings of this network; of these ``head_lr``, ``head_weight_decay`` and ``ema``.
        last: the last layer, which those settings are for; needed if they are set.
    """

    def __init__(
        self,
        name: str,
        network: nn.Module,
        *,
        heads: nn.Module | None = None,
        optimizer: OptimizerConfig,
        precision: Precision,
        unused: bool = False,
        skips: int = 0,
        compile: bool = False,
        own: NetworkConfig | None = None,
        last: nn.Module | None = None,
    ) -> None:
        own = own or NetworkConfig()
        self.name = name
        self.network = network
        self.heads = heads
        self.precision = precision
        self.clip_norm = optimizer.clip_norm
        self.modules = [module for module in (network, heads) if module is not None]
        self.parameters = [
            parameter
            for module in self.modules
            for parameter in module.parameters()
            if parameter.requires_grad
        ]
        groups, self._rates = _groups(self.parameters, optimizer, own, last)
        self.optimizer = make_optimizer(groups, optimizer)
        self._optimizer_name = optimizer.name
        self.scaler = precision.scaler()
        self.statistics = RunningStatistics(network)
        self.average: AveragedModel | None = None
        """The moving average of the weights after each update, from the first on."""
        self._decay = own.ema
        if own.ema is not None:
            self.average = AveragedModel(network)
        self.fixed = False
        self.skipped = 0
        """Updates that were skipped in a row."""
        self._skips = skips
        self.judged_later = (
            precision.device.type == "cuda" and skips == 0 and not self.scaler.is_enabled()
        )
        """Whether ``take_step`` leaves it to the caller to see if the gradient was finite."""
        self._compiled = compile
        self._module = compiled(network) if compile else network
        known = own.name in models.names()
        self.of_the_user = not (known or own.name.startswith(PREFIX))
        """Whether the network is code of the user's."""
        self._reduction = Reduction(self._module, heads, precision.device, unused or not known)

    def fix(self) -> None:
        """Put the network into evaluation mode for good: it trains no more."""
        self.network.eval()
        self.fixed = True

    def forward(self, images: Tensor, *, gradient: bool) -> Output:
        """Run one micro-batch; only passes with ``gradient`` reach the BatchNorm buffers.

        Passes without gradients call the module itself: DDP would count them as the start of a
        reduction.
        """
        module = self._reduction if gradient else self._module
        with (
            # A compiled network rounds differently with gradients and without. Both passes of
            # gradient caching must agree, so both use the version with gradients.
            torch.set_grad_enabled(gradient or self._compiled),
            self.statistics.protected(collect=gradient),
            self.precision.autocast(),
        ):
            logits, features = module(images)
        return Output(logits, features) if gradient else Output(logits.detach(), features.detach())

    def without_reduction(self, without: bool) -> AbstractContextManager[None]:
        """Keep the gradients of a forward and backward local, if ``without`` says so."""
        return self._reduction.postponed(without)

    def backward(self, loss: Tensor) -> None:
        """Back-propagate a loss, scaled where the precision needs it."""
        with phase("backward"):
            self._reduction.backward(self.scaler.scale(loss))

    def take_step(self, micro_batches: int) -> Tensor:
        """Update the weights and then the BatchNorm buffers; return the gradients' norm.

        A parameter without a gradient stays as it is, without weight decay.

        All ranks hold the same reduced gradients, bit for bit, so all of them decide alike. A
        gradient that is not finite skips the update. In fp16 the next update has a smaller scale;
        otherwise at most ``skips`` updates in a row are skipped. A skipped update leaves the
        BatchNorm buffers as they were. With ``judged_later`` the update is made in any case, and
        the caller must end the run if the norm is not finite.

        Raises:
            NonFiniteError: alike on all ranks.
        """
        self._reduction.drop_absent()
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.get_total_norm(
            [p.grad for p in self.parameters if p.grad is not None]
        )
        if self.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, self.clip_norm, norm)
        finite = self.judged_later or bool(to_host(torch.isfinite(norm)))
        # With a scale of 1 or less, the scaling is not the cause of the overflow.
        scaling = self.scaler.is_enabled() and (finite or self.scaler.get_scale() > 1)
        self.skipped = 0 if finite else self.skipped + (not scaling)
        if self.skipped > self._skips:
            raise self.not_finite()
        if finite:
            # Not through the scaler, which would ask the device once more.
            self.optimizer.step()
        elif scaling:
            self.scaler.step(self.optimizer)  # it steps if only the norm overflows
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        # Only now: changing a buffer between forward and backward breaks the graph.
        if finite:
            self.statistics.commit(micro_batches)
            self._follow()
        else:
            self.statistics.discard()
        return norm

    def _follow(self) -> None:
        """Move the average of the weights and of BatchNorm's statistics; copy all other buffers.

        ``AveragedModel.update_parameters`` would average those too: rounding then changes a table
        of indices, and the -inf of a mask becomes NaN. It also waits for a GPU at each update.
        """
        if self.average is None:
            return
        assert self._decay is not None
        (moving, others), (weights, buffers) = map(_parts, (self.average.module, self.network))
        with torch.no_grad():
            if self.average.n_averaged == 0:
                torch._foreach_copy_(moving, weights)
            else:
                torch._foreach_lerp_(moving, weights, 1 - self._decay)
            if others:
                torch._foreach_copy_(others, buffers)
            self.average.n_averaged += 1

    def not_finite(self) -> NonFiniteError:
        """Return the error of a gradient that is not finite."""
        return NonFiniteError(
            f"the gradient of {self.name} is not finite; lower optimizer.lr "
            f"or set optimizer.clip_norm"
        )

    def set_learning_rate(self, rate: float) -> None:
        """Set the learning rate of the coming steps."""
        for group, factor in zip(self.optimizer.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def restart(self, weights: dict[str, Any]) -> None:
        """Begin to train anew from ``weights``, the state of the network."""
        self.network.load_state_dict(weights)
        self._average_anew()
        self.optimizer.state.clear()
        self.scaler.load_state_dict(self.precision.scaler().state_dict())
        self.skipped = 0

    def _average_anew(self) -> None:
        if self.average is not None:
            self.average.module.load_state_dict(self.network.state_dict())
            self.average.n_averaged.zero_()

    def state_dict(self) -> dict[str, Any]:
        """Return everything on which the further training of this network depends."""
        average = {} if self.average is None else {"average": self.average.state_dict()}
        return {
            **average,
            "network": self.network.state_dict(),
            "heads": None if self.heads is None else self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped": self.skipped,
        }

    def load_network(self, state: dict[str, Any]) -> None:
        """Restore the network and its average from what :meth:`state_dict` returned.

        Raises:
            ConfigError: it has other parameters.
        """
        load_state(self.network, state["network"], where=self.name)
        if self.average is not None and "average" in state:
            load_state(self.average, state["average"], where=f"{self.name}.ema")
        else:
            self._average_anew()

    def load_training_state(self, state: dict[str, Any], optimizer: str) -> list[str]:
        """Restore what :meth:`state_dict` returned, except for the network itself.

        Args:
            state: what was saved.
            optimizer: the name of the optimizer that it was saved with.

        Returns:
            A line for each part that does not fit what was saved, and so begins anew.
        """
        anew = []
        if self.heads is not None:
            if _shapes(self.heads.state_dict()) == _shapes(state["heads"] or {}):
                self.heads.load_state_dict(state["heads"])
            else:
                anew.append(f"{self.name}: its heads begin anew, because the run had other ones")
        saved, reason = state["optimizer"], ""
        if optimizer != self._optimizer_name:
            reason = f"the run had optimizer.name {optimizer}"
        elif not _fits(saved, self.optimizer):
            reason = "the run trained other parameters, or in other groups"
        if reason:
            anew.append(f"{self.name}: its optimizer begins with an empty state, because {reason}")
        else:
            self._load_optimizer(saved)
        if state["scaler"]:  # empty unless the run was in fp16
            self.scaler.load_state_dict(state["scaler"])
        self.skipped = state["skipped"]
        return anew

    def _load_optimizer(self, saved: dict[str, Any]) -> None:
        # load_state_dict brings the saved settings too. Those of the configuration count, which
        # --resume-override may have changed; the learning rate is set before each step.
        groups = [
            group | {name: value for name, value in chosen.items() if name not in ("params", "lr")}
            for group, chosen in zip(
                saved["param_groups"], self.optimizer.param_groups, strict=True
            )
        ]
        self.optimizer.load_state_dict({**saved, "param_groups": groups})
        # Fused kernels walk memory, so a state needs the layout that the weights have here.
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if isinstance(value, Tensor) and value.ndim > 1:
                    values[name] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def _shapes(state: dict[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items()}


def _fits(saved: dict[str, Any], optimizer: torch.optim.Optimizer) -> bool:
    """Return whether a saved state is of as many parameters, of the same shapes and groups."""
    groups = [group["params"] for group in optimizer.param_groups]
    if [len(group["params"]) for group in saved["param_groups"]] != list(map(len, groups)):
        return False
    parameters = [parameter for group in groups for parameter in group]
    return all(
        value.shape in (parameters[place].shape, torch.Size())  # the number of steps is a scalar
        for place, values in saved["state"].items()
        for value in values.values()
        if isinstance(value, Tensor)
    )


def _parts(network: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return the parameters with BatchNorm's means and variances, and all other buffers."""
    found: list[Tensor] = list(network.parameters())
    for layer in network.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None:
            assert layer.running_var is not None
            found += [layer.running_mean, layer.running_var]
    known = {id(tensor) for tensor in found}
    return found, [buffer for buffer in network.buffers() if id(buffer) not in known]


def _groups(
    parameters: list[nn.Parameter],
    config: OptimizerConfig,
    own: NetworkConfig,
    last: nn.Module | None,
) -> tuple[list[dict[str, Any]], list[float]]:
    """Return the parameters in groups of one rate, and each group's factor on the learning rate."""
    if not own.sets_head:
        return [{"params": parameters}], [1.0]
    assert last is not None
    of_last = {id(parameter) for parameter in last.parameters()}
    decay = config.weight_decay if own.head_weight_decay is None else own.head_weight_decay
    below = [p for p in parameters if id(p) not in of_last]
    head = [p for p in parameters if id(p) in of_last]
    groups: list[dict[str, Any]] = [{"params": below}] if below else []  # none below is trained
    groups.append({"params": head, "weight_decay": decay})
    return groups, [*[1.0] * len(groups[1:]), (own.head_lr or config.lr) / config.lr]


def make_optimizer(
    parameters: list[nn.Parameter] | list[dict[str, Any]], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """Return the configured optimizer over parameters, or over groups with their own settings."""
    if config.name == "sgd":
        # Not fused: that fails where a parameter gets its first gradient later than others, and
        # it starts from undefined momentum where fp16 skips the first update.
        return torch.optim.SGD(
            parameters,
            config.lr,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            foreach=True,
        )
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamp": AdamP,
        "adam": partial(torch.optim.Adam, fused=True),
        "adamw": partial(torch.optim.AdamW, fused=True),
    }
    return kinds[config.name](
        parameters,
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
