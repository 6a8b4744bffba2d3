"""A contrastive loss in your own DDP loop: exact over all ranks, in a few lines.

torchrun --nproc_per_node=2 examples/own_loop.py

Its losses are the same on any number of ranks, where DDP alone would contrast each rank's own rows.
"""

import torch
import torch.distributed as dist
from torch.nn.functional import cross_entropy, normalize
from torch.nn.parallel import DistributedDataParallel

from rebias_dist import models
from rebias_dist.objectives import Rows, coupled_by_rows

STEPS, BATCH, CLASSES, TEMPERATURE = 30, 64, 4, 0.1


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return this rank's part of a batch of random images whose colour depends on their class."""
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    images = torch.randn(BATCH, 3, 16, 16, generator=generator)
    images[:, 0] += labels.view(-1, 1, 1) / CLASSES
    own = slice(dist.get_rank(), None, dist.get_world_size())
    return images[own], labels[own]


def contrast(own: Rows, everyone: Rows) -> torch.Tensor:
    """Return the terms of this rank's rows: each is drawn to all rows of its class."""
    scores = own.features[0] @ everyone.features[0].T / TEMPERATURE
    itself = own.index[:, None] == everyone.index
    positive = (own.samples["labels"][:, None] == everyone.samples["labels"]) & ~itself
    log_shares = scores - scores.masked_fill(itself, -torch.inf).logsumexp(1, keepdim=True)
    return -((log_shares * positive).sum(1) / positive.sum(1).clamp(min=1)).sum() / BATCH


def main() -> None:
    """Train a network on cross-entropy and the contrast of its features."""
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    plain = models.build("simple_convnet", kernel_size=3, num_classes=CLASSES, norm="group")
    network = DistributedDataParallel(plain)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for step in range(STEPS):
        images, labels = batch(step)
        logits, features = network(images)
        contrastive = coupled_by_rows(contrast, normalize(features), labels=labels)
        loss = cross_entropy(logits, labels, reduction="sum") / BATCH + contrastive
        optimizer.zero_grad()
        (dist.get_world_size() * loss).backward()  # DDP averages over the ranks; this is a sum
        optimizer.step()
        if dist.get_rank() == 0 and step % 10 == 9:
            print(f"step {step + 1}: contrastive loss {contrastive.item():.6f}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
