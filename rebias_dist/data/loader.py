"""Loaders that cut a fixed order of samples into micro-batches and hand each rank its own.

What a micro-batch holds depends on its number alone, so any number of ranks and workers
sees the same steps; the state of a loader is one integer, the next step.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rebias_dist.data.order import epoch_order
from rebias_dist.data.shards import ShardDataset
from rebias_dist.data.transforms import Transform, identity
from rebias_dist.errors import ConfigError, DataError


@dataclass
class MicroBatch:
    """Samples of one forward pass.

    ``images`` uint8 [b, 3, H, W]; ``labels``, ``bias`` (-1: none) and ``samples`` (ids)
    int64 [b]; ``index`` is its number j within the step, or within the pass in evaluation.
    """

    images: Tensor
    labels: Tensor
    bias: Tensor
    samples: Tensor
    index: int

    def to(self, device: torch.device | str) -> "MicroBatch":
        """Return the micro-batch on ``device``; from pinned memory the copy is asynchronous."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "MicroBatch":
        """Return the micro-batch in pinned memory; DataLoader calls it."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> "MicroBatch":
        return MicroBatch(
            images=function(self.images),
            labels=function(self.labels),
            bias=function(self.bias),
            samples=function(self.samples),
            index=self.index,
        )


@dataclass(frozen=True)
class _Request:
    """One micro-batch to fetch: its number, the epoch that keys its augmentation, its samples."""

    index: int
    epoch: int
    samples: NDArray[np.int64]


class _Fetcher(Dataset[MicroBatch | DataError]):
    """Turns a request into a micro-batch, here or in a worker process."""

    def __init__(self, dataset: ShardDataset, transform: Transform) -> None:
        self.dataset = dataset
        self.transform = transform

    def __getitem__(self, request: _Request) -> MicroBatch | DataError:
        # DataLoader would wrap an exception of a worker in its traceback; as a value the one
        # line arrives as it is.
        try:
            images = [
                self.transform(self.dataset.image(i), request.epoch, i)
                for i in request.samples.tolist()
            ]
        except DataError as error:
            return error
        shapes = {tuple(image.shape) for image in images}
        if len(shapes) > 1:
            return DataError(
                f"{self.dataset.folder}: images of different sizes {sorted(shapes)} "
                "in one micro-batch; set data.augmentation to crop_flip"
            )
        return MicroBatch(
            images=torch.stack(images),
            labels=torch.from_numpy(self.dataset.labels[request.samples]),
            bias=torch.from_numpy(self.dataset.bias[request.samples]),
            samples=torch.from_numpy(request.samples),
            index=request.index,
        )


def _fetch(fetcher: _Fetcher, requests: list[_Request], workers: int) -> Iterator[MicroBatch]:
    """Yield the micro-batches of ``requests`` in their order."""
    loader = DataLoader(
        fetcher,
        batch_size=None,
        sampler=requests,
        num_workers=workers,
        worker_init_fn=_shield_worker if workers else None,
        # DataLoader draws a number from its generator; the global one is not ours to advance.
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
    )
    for fetched in loader:
        if isinstance(fetched, DataError):
            raise fetched
        yield fetched


def _shield_worker(worker_id: int) -> None:
    """Let only the parent end this worker.

    Schedulers and terminals signal a whole process group. The parent then finishes its step
    and saves, for which it still needs its workers. SIGTERM cannot just be ignored: it is how
    the parent ends its workers when it exits. A blocked signal can be waited for, and then
    tells who sent it.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_leave_with_parent, args=(os.getppid(),), daemon=True).start()


def _leave_with_parent(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


class TrainLoader:
    """Yields, step by step, the micro-batches that this rank computes.

    Micro-batch j of a step (positions step·N + j·b … of :func:`epoch_order`) belongs to rank
    j mod W. An epoch has ``steps_per_epoch`` = n // N steps; the ``dropped`` = n mod N samples
    left over are others in every epoch.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        *,
        global_batch: int,
        micro_batch: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        transform: Transform = identity,
        workers: int = 0,
        window: int = 8,
    ) -> None:
        """Prepare; ConfigError if N is not a multiple of b, W > N / b, or n < N."""
        if global_batch % micro_batch:
            raise ConfigError(
                f"global batch {global_batch} is not a multiple of micro-batch {micro_batch}"
            )
        self.micro_batches = global_batch // micro_batch
        if world_size > self.micro_batches:
            raise ConfigError(
                f"{world_size} ranks for the {self.micro_batches} micro-batches of a step; "
                f"at most {self.micro_batches} ranks have work"
            )
        if len(dataset) < global_batch:
            raise ConfigError(
                f"{dataset.folder}: its {len(dataset)} samples do not fill one "
                f"global batch of {global_batch}"
            )
        self.dataset = dataset
        self.steps_per_epoch = len(dataset) // global_batch
        self.dropped = len(dataset) % global_batch
        self._global_batch = global_batch
        self._micro_batch = micro_batch
        self._seed = seed
        self._window = window
        self._workers = workers
        self._mine = range(rank, self.micro_batches, world_size)
        self._fetcher = _Fetcher(dataset, transform)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[list[MicroBatch]]:
        """Yield this rank's micro-batches of each step from ``start_step`` to the epoch's end."""
        return self.steps(epoch, range(start_step, self.steps_per_epoch))

    def steps(self, epoch: int, steps: Sequence[int]) -> Iterator[list[MicroBatch]]:
        """Yield this rank's micro-batches of the chosen steps, as the epoch itself will have them.

        A step outside 0..steps_per_epoch-1 is a ValueError.
        """
        for step in steps:
            if not 0 <= step < self.steps_per_epoch:
                raise ValueError(f"step {step} is outside the {self.steps_per_epoch} of an epoch")
        order = epoch_order(self._seed, epoch, self.dataset.manifest.shard_counts, self._window)
        size = self._micro_batch
        requests = [
            _Request(j, epoch, order[begin : begin + size])
            for step in steps
            for j in self._mine
            for begin in [step * self._global_batch + j * size]
        ]
        return self._grouped(requests)

    def _grouped(self, requests: list[_Request]) -> Iterator[list[MicroBatch]]:
        fetched = _fetch(self._fetcher, requests, self._workers)
        for _ in range(len(requests) // len(self._mine)):
            yield [next(fetched) for _ in self._mine]


class EvalLoader:
    """Yields this rank's share of a split in index order, each sample exactly once overall.

    Batch j holds samples j·batch … (the last may be shorter) and belongs to rank j mod W, so
    the contents of a batch do not depend on the ranks; a rank may have none.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        *,
        batch: int,
        rank: int = 0,
        world_size: int = 1,
        transform: Transform = identity,
        workers: int = 0,
    ) -> None:
        """Prepare; nothing is read yet."""
        self.dataset = dataset
        self.batches = -(-len(dataset) // batch)
        self._batch = batch
        self._mine = range(rank, self.batches, world_size)
        self._workers = workers
        self._fetcher = _Fetcher(dataset, transform)

    def __len__(self) -> int:
        """Return the number of this rank's batches."""
        return len(self._mine)

    def __iter__(self) -> Iterator[MicroBatch]:
        """Yield this rank's batches."""
        requests = []
        for j in self._mine:
            end = min((j + 1) * self._batch, len(self.dataset))
            requests.append(_Request(j, 0, np.arange(j * self._batch, end, dtype=np.int64)))
        return _fetch(self._fetcher, requests, self._workers)
