"""HSIC written the obvious way, in float64, to compare the sharded one with."""

import itertools

import torch
from torch import Tensor


def kernel_excess(x: Tensor, sigma: float) -> Tensor:
    """RBF kernel matrix minus 1 by plain differences; keeps the digits of wide kernels."""
    squared = (x[:, None] - x[None]).square().sum(-1)
    return torch.expm1(-squared / (2 * sigma**2))


def unbiased(x: Tensor, y: Tensor, sigma_x: float, sigma_y: float) -> Tensor:
    """HSIC₁ as the product of the two U-centred matrices, O(N²), differentiable."""
    n = len(x)
    off_diagonal = 1 - torch.eye(n, dtype=x.dtype)

    def u_centred(K: Tensor) -> Tensor:
        K = K * off_diagonal
        rows = K.sum(1)
        centred = K - (rows[:, None] + rows[None]) / (n - 2) + K.sum() / ((n - 1) * (n - 2))
        return centred * off_diagonal

    K, L = kernel_excess(x, sigma_x), kernel_excess(y, sigma_y)
    return (u_centred(K) * u_centred(L)).sum() / (n * (n - 3))


def biased(x: Tensor, y: Tensor, sigma_x: float, sigma_y: float) -> Tensor:
    """trace(KHLH) / N² literally, O(N³)."""
    n = len(x)
    H = torch.eye(n, dtype=x.dtype) - 1 / n
    K, L = 1 + kernel_excess(x, sigma_x), 1 + kernel_excess(y, sigma_y)
    return torch.trace(K @ H @ L @ H) / n**2


def over_quadruples(x: Tensor, y: Tensor, sigma_x: float, sigma_y: float) -> Tensor:
    """HSIC₁ by its definition: a mean over all ordered quadruples of distinct rows.

    Song et al. (JMLR 2012): E[k l] + E[k] E[l] − 2 E[k l'] with each product of
    expectations estimated from rows that have none in common.
    """
    K, L = 1 + kernel_excess(x, sigma_x), 1 + kernel_excess(y, sigma_y)
    i, j, q, r = torch.tensor(list(itertools.permutations(range(len(x)), 4))).T
    return (K[i, j] * L[i, j] + K[i, j] * L[q, r] - 2 * K[i, j] * L[i, q]).mean()


def linear(x: Tensor, y: Tensor) -> Tensor:
    """HSIC₁ of linear kernels, over quadruples."""
    K, L = x @ x.T, y @ y.T
    i, j, q, r = torch.tensor(list(itertools.permutations(range(len(x)), 4))).T
    return (K[i, j] * L[i, j] + K[i, j] * L[q, r] - 2 * K[i, j] * L[i, q]).mean()


def value_scale(x: Tensor, y: Tensor, sigma_x: float, sigma_y: float) -> float:
    """ΣK̃L̃ / (N(N−3)): the terms of which an HSIC near zero is the difference."""
    n = len(x)
    KL = (1 + kernel_excess(x, sigma_x)) * (1 + kernel_excess(y, sigma_y))
    return float((KL.sum() - n) / (n * (n - 3)))


def dependent(n: int, d_x: int, d_y: int, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two float64 variables that share part of their randomness."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d_x, generator=generator, dtype=torch.float64)
    y = torch.randn(n, d_y, generator=generator, dtype=torch.float64)
    shared = min(d_x, d_y)
    y[:, :shared] += x[:, :shared]
    return x, y


def assert_equal_to(
    tolerance: float, actual: Tensor, expected: Tensor, scale: float, label: str
) -> None:
    """max|a−b| ≤ tolerance · max(|b|, scale); prints the largest difference seen."""
    difference = float((actual - expected).detach().abs().max()) if expected.numel() else 0.0
    largest = max(float(expected.detach().abs().max()) if expected.numel() else 0.0, scale)
    print(f"{label}: largest difference {difference:.3g}, relative {difference / largest:.3g}")
    assert difference <= tolerance * largest, (label, difference, largest)
