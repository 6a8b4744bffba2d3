"""Loaders that cut a fixed order of samples into micro-batches and give each rank its own.

The content of a micro-batch depends only on its number, so training sees the same steps with any
number of ranks and workers, and the state of a loader is one integer, the next step. The
replacements of damaged samples are fixed in the same way, so ranks need not agree on them.
"""

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from copy import copy
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from data_shards.ordering import derive
from rebias_dist.data.batch import Carrier, MicroBatch, Parcel, Receiver, Sender, memory_files
from rebias_dist.data.order import epoch_order
from rebias_dist.data.sampling import Draws
from rebias_dist.data.shards import DamagedSample, ShardDataset
from rebias_dist.data.transforms import Transform, identity
from rebias_dist.data.workers import SLOTS, fetched_by_workers
from rebias_dist.errors import ConfigError, DataError, InterruptedRun, RebiasError
from rebias_dist.phases import phase

# Replacements for damaged samples in a micro-batch. More damage than this means that the shards
# themselves are broken.
_SPARES = 16
_EVALUATED_AHEAD = 3  # shards that an evaluation fetches early, if they lie elsewhere

_log = logging.getLogger("rebias_dist")


@dataclass(frozen=True)
class _Request:
    """One micro-batch to fetch."""

    index: int
    epoch: int
    """Keys the augmentation."""
    samples: NDArray[np.int64]
    spares: NDArray[np.int64] | None = None
    """Replacements for damaged samples; None: damage is an error."""
    begin: int | None = None
    """Position of the first sample in an epoch that draws with replacement; it keys the
    augmentation too, because a sample may occur more than once."""


class _Fetcher(Dataset[MicroBatch | Parcel | RebiasError]):
    """Turns a request into a micro-batch, in this process or in a worker.

    ``verify`` is the fraction of the samples whose hash is checked. Which ones is keyed by
    ``seed`` and the epoch, so it does not depend on the rank or worker that reads them. Of each
    sample there are ``views`` images.
    """

    def __init__(
        self,
        dataset: ShardDataset,
        transform: Transform,
        verify: float = 1.0,
        seed: int = 0,
        views: int = 1,
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.verify = verify
        self.seed = seed
        self.views = views
        self.files: list[int] = []  # for the images that workers send
        self._sender: Sender | None = None  # each worker makes its own

    def __getitem__(self, request: _Request) -> MicroBatch | Parcel | RebiasError:
        worker = get_worker_info()
        if worker is None:
            return self._fetch(request, lambda shape, dtype: torch.empty(shape, dtype=dtype))
        # An error is returned, not raised: DataLoader would wrap it in the worker's traceback.
        try:
            if self._sender is None:
                self._sender = Sender(self.files, worker.id, SLOTS)
            return self._sender.parcel(self._fetch(request, self._sender.take))
        except RebiasError as error:
            return error
        except Exception as error:
            said = next(iter(str(error).strip().splitlines()), "")
            fault = RebiasError(f"data worker {worker.id}: {type(error).__name__}: {said}")
            vars(fault)["__notes__"] = [traceback.format_exc()]  # as add_note() of Python 3.11
            return fault

    def _fetch(
        self, request: _Request, place_for: Callable[[Sequence[int], torch.dtype], Tensor]
    ) -> MicroBatch:
        samples = request.samples.copy()
        skipped: list[str] = []
        images: Tensor | None = None
        for place, image in self._images(request, samples, skipped):
            if images is None:
                images = place_for((self.views * len(samples), *image.shape), image.dtype)
            elif image.shape != images.shape[1:]:
                sizes = sorted({tuple(images.shape[1:]), tuple(image.shape)})
                raise DataError(
                    f"{self.dataset.place}: images of different sizes {sizes} "
                    "in one micro-batch; set data.augmentation to crop_flip"
                )
            images[place] = image
        assert images is not None
        return MicroBatch(
            images=images,
            labels=torch.from_numpy(self.dataset.labels[samples].astype(np.int64)),
            bias=torch.from_numpy(self.dataset.bias[samples].astype(np.int64)),
            samples=torch.from_numpy(samples),
            index=request.index,
            skipped=tuple(skipped),
            views=self.views,
        )

    def _images(
        self, request: _Request, samples: NDArray[np.int64], skipped: list[str]
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield (position, image); record replacements in ``samples`` and ``skipped``.

        The positions of the second view follow those of the first.
        """
        spares = [] if request.spares is None else request.spares.tolist()
        for place in range(len(samples)):
            while True:
                try:
                    image = self._image(int(samples[place]), request.epoch)
                    break
                except DamagedSample as damage:
                    if request.spares is None:
                        raise
                    skipped.append(str(damage))
                    if not spares:
                        raise DataError(
                            f"{damage}; no undamaged sample is left to replace it; "
                            "make the shards again"
                        ) from None
                    samples[place] = spares.pop(0)
            copy = () if request.begin is None else (request.begin + place,)
            for view in range(self.views):
                # No part for the first view: it is what a run with one view sees.
                which = (view, *copy) if view or copy else ()
                seen = self.transform(image, request.epoch, int(samples[place]), *which)
                yield view * len(samples) + place, seen

    def _image(self, i: int, epoch: int) -> Tensor:
        verify = self.verify >= 1 or (
            self.verify > 0 and derive("verify", self.seed, epoch, i) < self.verify * 2.0**64
        )
        return self.dataset.image(i, verify=verify)


def _fetch(
    fetcher: _Fetcher, requests: Iterable[_Request], workers: int, pinned: bool, ahead: int
) -> Iterator[MicroBatch]:
    """Yield the micro-batches of ``requests`` in their order.

    ``ahead`` is the number of shards that are fetched early if they lie elsewhere.
    """
    coming = fetcher.dataset.ahead(requests, lambda request: request.samples, ahead)
    with memory_files(workers * SLOTS) as files, ExitStack() as held:
        if coming is not None:
            held.callback(coming.close)
        receiver = Receiver(files)
        fetcher = copy(fetcher)  # another iteration over the same samples has other files
        fetcher.files = files
        for fetched in fetched_by_workers(fetcher, requests if coming is None else coming, workers):
            is_sent = isinstance(fetched, Parcel)
            batch = receiver.open(fetched, pinned=pinned) if is_sent else fetched
            if coming is not None:
                coming.answered()
            yield batch.pin_memory() if pinned else batch


class TrainLoader:
    """Yields, step by step, the micro-batches that this rank computes.

    With n samples, global batch N, micro-batch b and W ranks: micro-batch j of a step holds the
    b positions from step·N + j·b of :func:`epoch_order` and belongs to rank j mod W. An epoch has
    ``steps_per_epoch`` = n // N steps; the ``dropped`` = n mod N samples at the end of the order
    are left out, and differ from epoch to epoch. With ``draws`` the order is theirs instead.
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
        verify: float = 1.0,
        on_damaged: Literal["stop", "skip"] = "stop",
        views: int = 1,
        draws: Draws | None = None,
        pinned: bool = False,
    ) -> None:
        """Prepare; ConfigError if N is not a multiple of b, W > N / b, or n < N.

        ``verify`` is the fraction of the samples whose hash is checked when they are read. A
        damaged sample ends the iteration with a DataError. With ``skip`` another sample replaces
        it, without a word to the other ranks, and each is logged once as a warning. ``pinned`` puts
        the micro-batches into pinned memory, for a run on a GPU.
        """
        if global_batch % micro_batch:
            raise ConfigError(
                f"global batch {global_batch} is not a multiple of micro-batch {micro_batch}"
            )
        self.micro_batches = global_batch // micro_batch
        if world_size > self.micro_batches:
            raise ConfigError(
                f"{world_size} ranks are more than the step's {self.micro_batches} micro-batches; "
                f"start at most {self.micro_batches} ranks or use a smaller micro_batch"
            )
        if len(dataset) < global_batch:
            raise ConfigError(
                f"{dataset.place}: its {len(dataset)} samples do not fill one "
                f"global batch of {global_batch}"
            )
        self.dataset = dataset
        self.steps_per_epoch = len(dataset) // global_batch
        self.dropped = len(dataset) % global_batch
        self._global_batch = global_batch
        self._micro_batch = micro_batch
        self._seed = seed
        self._window = window
        self._draws = draws
        self._pinned = pinned
        self._workers = workers
        self._mine = range(rank, self.micro_batches, world_size)
        self._skip = on_damaged == "skip"
        self._known_damage: set[str] = set()
        self._fetcher = _Fetcher(dataset, transform, verify, seed, views)

    def epoch(self, epoch: int, start_step: int = 0) -> Iterator[list[MicroBatch]]:
        """Yield this rank's micro-batches of each step from ``start_step`` to the epoch's end."""
        return self.steps(epoch, range(start_step, self.steps_per_epoch))

    def steps(self, epoch: int, steps: Sequence[int]) -> Iterator[list[MicroBatch]]:
        """Yield this rank's micro-batches of the chosen steps, the same as in :meth:`epoch`.

        ValueError for a step outside 0..steps_per_epoch-1.
        """
        for step in steps:
            if not 0 <= step < self.steps_per_epoch:
                raise ValueError(f"step {step} is outside 0..{self.steps_per_epoch - 1}")
        return self._fetched(epoch, steps)

    def on_device(
        self, device: torch.device, epoch: int, start_step: int
    ) -> Iterator[tuple[list[MicroBatch], RebiasError | None]]:
        """Yield :meth:`epoch` on a device, with None or the error of a sample or a worker.

        The error is not raised here: a rank that stopped alone would leave the others waiting, so
        the caller has to tell them first. So it does when this rank was asked to stop while it
        waited for data: then there are no micro-batches, and no error.
        """
        batches, carrier = self.epoch(epoch, start_step), Carrier(device)
        while True:
            with phase("data_wait"):
                try:
                    found, fault = carrier.bring(next(batches)), None
                except InterruptedRun:
                    found, fault = [], None
                except RebiasError as error:
                    found, fault = [], error
                except StopIteration:
                    return
            yield found, fault

    def _fetched(self, epoch: int, steps: Sequence[int]) -> Iterator[list[MicroBatch]]:
        requests = self._requests(epoch, steps)
        fetched = _fetch(self._fetcher, requests, self._workers, self._pinned, self._window)
        for _ in steps:
            batches = [next(fetched) for _ in self._mine]
            for line in (line for batch in batches for line in batch.skipped):
                if line not in self._known_damage:
                    self._known_damage.add(line)
                    _log.warning("skipped a damaged sample: %s", line)
            yield batches

    def _requests(self, epoch: int, steps: Sequence[int]) -> Iterator[_Request]:
        order = self._order(epoch)
        size = self._micro_batch
        for step in steps:
            for j in self._mine:
                begin = step * self._global_batch + j * size
                spares = self._spares(order, epoch, step, j) if self._skip else None
                keyed = None if self._draws is None else begin
                yield _Request(j, epoch, order[begin : begin + size], spares, keyed)

    def _order(self, epoch: int) -> NDArray[np.int64]:
        if self._draws is not None:
            return self._draws.order(self._seed, epoch)
        return epoch_order(self._seed, epoch, self.dataset.manifest.shard_counts, self._window)

    def _spares(
        self, order: NDArray[np.int64], epoch: int, step: int, micro_batch: int
    ) -> NDArray[np.int64]:
        """Return the replacements for damaged samples of a micro-batch.

        First come samples that the epoch drops, then samples of other steps. They are dealt to
        the micro-batches of the step, so that without replacement no sample occurs twice in a
        global batch. Each step starts from a place of its own, so that steps use different
        replacements.
        """
        parts = self._global_batch // self._micro_batch
        draw = derive("spares", self._seed, epoch, step)
        used = len(order) - self.dropped
        tail = np.roll(order[used:], draw % max(self.dropped, 1))
        elsewhere = used - self._global_batch
        count = min(parts * _SPARES, elsewhere)
        places = (draw % max(elsewhere, 1) + np.arange(count)) % max(elsewhere, 1)
        after = (step + 1) * self._global_batch
        others = order[(after + places) % used]
        return np.concatenate([tail, others])[micro_batch::parts][:_SPARES]


class EvalLoader:
    """Yields this rank's share of a split in index order, each sample exactly once overall.

    Batch j holds the samples from j·batch on (the last may be shorter) and belongs to rank
    j mod W, so its content does not depend on the number of ranks. A rank may have none. Every
    hash is checked, and a damaged sample is always an error (DataError): figures without it could
    not be compared with others.
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
        pinned: bool = False,
    ) -> None:
        """Prepare; nothing is read yet. ``pinned``: as in :class:`TrainLoader`."""
        self.dataset = dataset
        self.batches = -(-len(dataset) // batch)
        self._batch = batch
        self._mine = range(rank, self.batches, world_size)
        self._workers = workers
        self._pinned = pinned
        self._fetcher = _Fetcher(dataset, transform)

    def __len__(self) -> int:
        """Return the number of this rank's batches."""
        return len(self._mine)

    def __iter__(self) -> Iterator[MicroBatch]:
        """Yield this rank's batches."""
        ends = ((j, min((j + 1) * self._batch, len(self.dataset))) for j in self._mine)
        requests = (
            _Request(j, 0, np.arange(j * self._batch, end, dtype=np.int64)) for j, end in ends
        )
        return _fetch(self._fetcher, requests, self._workers, self._pinned, _EVALUATED_AHEAD)
