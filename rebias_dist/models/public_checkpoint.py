"""Checkpoints of the public ReBias code, for evaluation.

Its trainer writes one ``torch.save`` file with the keys ``f_net g_nets f_optimizer g_optimizer
f_lr_scheduler g_lr_scheduler options metadata``. The networks were wrapped in DataParallel
(``module.`` before each name), the options are nested ``munch.Munch``, and scores are NumPy
scalars.

Such a file is a pickle from the internet, so it is read without unpickling
(:mod:`rebias_dist.models.untrusted`). Functions of this module stand in for the few other names in
it, so neither munch nor NumPy's unpickling is ever called.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy
from torch import Tensor, nn

from rebias_dist.errors import ConfigError
from rebias_dist.models.untrusted import load_untrusted, refusal


@dataclass(frozen=True)
class PublicCheckpoint:
    """The parts of a public checkpoint that evaluation needs, without the ``module.`` prefixes."""

    f: dict[str, Tensor]
    g_nets: list[dict[str, Tensor]]
    options: dict[str, Any]
    metadata: dict[str, Any]


class _Dtype:
    """Stands in for ``numpy.dtype`` of a plain number while a pickle is read."""

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not re.fullmatch(r"b1|[iu][1248]|f[248]", code):
            raise ValueError(f"a NumPy scalar of type {code!r}")
        self.code = code
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = {"<": "<", ">": ">"}.get(state[1], "=")  # '|': one byte has no order


def _scalar(dtype: _Dtype, data: bytes) -> bool | int | float:
    """Stands in for ``numpy.core.multiarray.scalar``; returns the number as Python's own type."""
    (number,) = numpy.frombuffer(data, dtype=dtype.order + dtype.code).tolist()
    return number  # type: ignore[no-any-return]  # tolist returns Any


# The unpickler fills no mapping but dict and OrderedDict. Munch also stores its items as its
# state, which the unpickler sets as attributes of the OrderedDict; these are not used.
_SAFE_GLOBALS: list[Any] = [
    (OrderedDict, "munch.Munch"),
    (_Dtype, "numpy.dtype"),
    (_scalar, "numpy.core.multiarray.scalar"),  # written by NumPy 1
    (_scalar, "numpy._core.multiarray.scalar"),  # written by NumPy 2
]


def load_public_checkpoint(path: str | PathLike[str]) -> PublicCheckpoint:
    """Read a checkpoint that the public ReBias code wrote, onto the CPU.

    Runs no code from the file.

    Raises:
        ConfigError: the file is missing or damaged, holds more than tensors, numbers and options,
            or is a checkpoint of another program.
    """
    where = f"public checkpoint {str(path)!r}"
    try:
        file = open(path, "rb")  # noqa: SIM115 - reading has errors of its own
    except OSError as error:
        raise ConfigError(f"{where} cannot be read: {error.strerror}; check the path") from error
    try:
        with file:
            content = _plain(load_untrusted(file, _SAFE_GLOBALS))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where} is refused: {refusal(error)}") from error
    if not isinstance(content, dict) or not {"f_net", "g_nets"} <= content.keys():
        raise ConfigError(
            f"{where} has no f_net and g_nets; give a checkpoint that the public ReBias "
            "trainer saved"
        )
    g_nets, options, metadata = (content.get(key) for key in ("g_nets", "options", "metadata"))
    if not isinstance(g_nets, list):
        raise ConfigError(f"{where}: g_nets is a {type(g_nets).__name__}, not a list of networks")
    return PublicCheckpoint(
        f=_state(content["f_net"], f"{where}, f_net"),
        g_nets=[_state(g, f"{where}, g_nets[{i}]") for i, g in enumerate(g_nets)],
        options=options if isinstance(options, dict) else {},
        metadata=metadata if isinstance(metadata, dict) else {},
    )


def _plain(value: Any) -> Any:
    """Return the same tree with plain dicts and lists in place of their subclasses."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return value


def _state(value: Any, where: str) -> dict[str, Tensor]:
    if not isinstance(value, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()
    ):
        raise ConfigError(f"{where} is not a state dict of named tensors")
    return {name.removeprefix("module."): tensor for name, tensor in value.items()}


def load_state(network: nn.Module, state: Mapping[str, Tensor], *, where: str) -> None:
    """Load ``state`` into ``network``; on an error the network is unchanged.

    Args:
        network: changed in place; keeps its own dtype and device.
        state: tensors by name.
        where: the file and the network in it, for the message.

    Raises:
        ConfigError: a name or a shape differs.
    """
    own = network.state_dict()
    differences = {
        "lacks": [name for name in own if name not in state],
        "also has": [name for name in state if name not in own],
        "has another shape of": [
            f"{name} {list(state[name].shape)} for {list(own[name].shape)}"
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    found = [f"it {what} {_first(names)}" for what, names in differences.items() if names]
    if found:
        raise ConfigError(
            f"{where} does not fit the network: {'; '.join(found)}; it was saved from another "
            "network, so configure that one"
        )
    network.load_state_dict(dict(state))


def _first(names: list[str], shown: int = 3) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
