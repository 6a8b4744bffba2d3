"""The numbers of the authors' public codes, and the seeded inputs that they are of."""

import json
import math
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

FILE = json.loads(Path(__file__).with_name("authors_values.json").read_text())
CASES: dict[str, Any] = FILE["cases"]


def unit(rows):
    return rows / np.sqrt((rows * rows).sum(axis=1, keepdims=True))


@cache
def pool() -> dict[str, Tensor]:
    """The arrays of the file's recipe, in its order."""
    rng = np.random.Generator(np.random.Philox(FILE["common"]["seed"]))
    normal, integers = rng.standard_normal, rng.integers
    p: dict[str, Any] = {}
    y = p["y"] = integers(0, 5, size=24)
    ub = rng.random(24)
    b = p["b"] = np.where(ub < 0.6, y, integers(0, 5, size=24))
    p["Z1"] = normal((24, 7))
    p["Z2"] = p["Z1"] + 0.5 * normal((24, 7))
    centres = normal((5, 6))
    p["P"] = centres[b] + 0.5 * normal((24, 6))
    p["L"], p["Lb"] = 2.0 * normal((24, 5)), 2.0 * normal((24, 5))
    p["F1"], p["F2"] = normal((24, 7)), normal((24, 7))
    p["Wr"], p["cr"] = 0.5 * normal((5, 6)), 0.1 * normal(5)
    p["Wl"], p["cl"] = 0.5 * normal((1, 7)), 0.1 * normal(1)
    p["Wf"], p["cf"] = 0.5 * normal((5, 7)), 0.1 * normal(5)
    yt = p["yt"] = integers(0, 5, size=400)
    ut = rng.random(400)
    bt = p["bt"] = np.where(ut < 0.8, yt, integers(0, 5, size=400))
    bt[(yt == 3) & (bt == 1)] = 3
    p["ids"] = np.stack([rng.permutation(40)[:24] for _ in range(3)])
    p["ye"] = integers(0, 5, size=40)
    p["LB3"], p["LD3"] = 2.0 * normal((3, 24, 5)), 2.0 * normal((3, 24, 5))
    p["gy"] = integers(0, 2, size=(3, 24))
    g = p["g"] = 2 * p["gy"] + integers(0, 2, size=(3, 24))
    g[1][g[1] == 3] = 2
    p["GL"] = 1.5 * normal((3, 24, 2))
    p["yb"] = integers(0, 2, size=24)
    p["s"] = 2.0 * normal((24, 1))
    p["X1"], x2 = unit(p["Z1"]), unit(p["Z2"])
    p["U"] = np.stack([p["X1"], x2], axis=1)
    p["U1"] = p["X1"][:, None, :]
    p["Z"] = np.stack([p["Z1"], p["Z2"]], axis=1)
    p["Pu"] = unit(p["P"])
    p["Py"] = centres[y]
    p["y6"], p["b6"] = np.array([0, 0, 1, 1, 2, 3]), np.array([0, 0, 0, 1, 2, 2])
    p["U6"] = p["U"][:6]
    p["ng"] = np.array([3498.0, 184.0, 56.0, 1057.0])
    p["LJ"] = p["L"] + 2.5 * np.eye(5)[y]
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in p.items()}


def inputs(case: str, *names: str) -> list[Tensor]:
    """Fresh copies of arrays that a case names; the floating-point ones take gradients."""
    copies = []
    for name in names:
        array = pool()[name].clone()
        assert name in CASES[case]["sums"], f"{case} is not of {name}"
        copies.append(array.requires_grad_() if array.is_floating_point() else array)
    return copies


def cases_of(checked: set[str], start: str) -> list[str]:
    """Names of cases, which are noted as compared."""
    found = [name for name in CASES if name.startswith(start)]
    checked.update(found)
    return found


def sum_differences() -> dict[str, float]:
    """How far the sum of each input is from that in the file, integers exactly."""
    found = {}
    for case in CASES.values():
        for name, expected in case["sums"].items():
            array = pool()[name]
            total = math.fsum(array.flatten().tolist())
            found[name] = abs(total - expected)
    return found


def relative(found: Any, expected: Any) -> float:
    """The largest difference over the largest entry expected (1, if that is 0)."""
    found = found.detach() if isinstance(found, Tensor) else torch.tensor(found)
    expected = torch.as_tensor(expected, dtype=torch.float64).reshape(found.shape)
    scale = float(expected.abs().max())
    return float((found.double() - expected).abs().max()) / (scale or 1.0)


def check(case: str, value: Tensor, part: str | None = None, **gradients: Tensor) -> None:
    """Compare a value, and its gradients by the inputs, with those of the case."""
    expected = CASES[case]["value"] if part is None else CASES[case]["value"][part]
    assert relative(value, expected) < 1e-10, case
    for name, leaf in gradients.items():
        (gradient,) = torch.autograd.grad(
            value, leaf, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        assert relative(gradient, CASES[case]["gradient"][name]) < 1e-8, (case, name)
