"""HSIC in your own DDP loop: exact over all ranks, in a few lines.

torchrun --nproc_per_node=2 examples/hsic_loop.py
"""

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

from rebias_dist import models
from rebias_dist.objectives import gather_features, hsic, median_distance

STEPS, PER_RANK, CLASSES = 30, 32, 4


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return random images whose colour depends on their class."""
    generator = torch.Generator().manual_seed(1000 * step + dist.get_rank())
    labels = torch.randint(CLASSES, (PER_RANK,), generator=generator)
    images = torch.randn(PER_RANK, 3, 16, 16, generator=generator)
    images[:, 0] += labels.view(-1, 1, 1) / CLASSES
    return images, labels


def main() -> None:
    """Train f to be independent of g, and g to depend on f."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    networks = {k: models.build("simple_convnet", kernel_size=k, num_classes=4) for k in (3, 1)}
    f, g = (DistributedDataParallel(network) for network in networks.values())
    f_step, g_step = (torch.optim.Adam(network.parameters(), 1e-3) for network in (f, g))
    with torch.no_grad():
        images, _ = batch(0)
        sigma_f, sigma_g = (median_distance([network.module(images)[1]]) for network in (f, g))

    for step in range(STEPS):
        images, labels = batch(step)
        f_logits, f_features = f(images)
        g_logits, g_features = g(images)
        # Gather once for both updates; detach() keeps an update from changing the other network.
        f_all, g_all = gather_features(f_features), gather_features(g_features)
        g_loss = cross_entropy(g_logits, labels)
        g_loss = g_loss - dist.get_world_size() * hsic(g_all, f_all.detach(), sigma_g, sigma_f)
        f_loss = cross_entropy(f_logits, labels)
        # Multiply by W, because DDP averages gradients and hsic returns parts of one gradient.
        f_loss = f_loss + dist.get_world_size() * hsic(f_all, g_all.detach(), sigma_f, sigma_g)
        for optimizer, loss in ((g_step, g_loss), (f_step, f_loss)):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if dist.get_rank() == 0 and step % 10 == 9:
            print(f"step {step + 1}: f loss {f_loss.item():.4f}, g loss {g_loss.item():.4f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
