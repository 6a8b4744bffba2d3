"""Run a function on W real gloo ranks, each a process of its own, and bring the results back."""

import multiprocessing as mp
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

# The fork server imports torch and the program once, so a rank starts in milliseconds, not
# seconds. It runs nothing else before it forks. With OMP_NUM_THREADS=1, as the Makefile sets it,
# no thread exists that a child could miss.
_context = mp.get_context("forkserver")
_context.set_forkserver_preload(["torch.distributed", "torch.nn.parallel", "rebias_dist.train"])


def _rank_main(
    rank: int, world: int, store: str, seconds: float, results: Any, function: Any, arguments: Any
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            store=dist.FileStore(store, world),
            rank=rank,
            world_size=world,
            timeout=timedelta(seconds=seconds),
        )
        results.put((rank, True, function(*arguments)))
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        results.put((rank, False, traceback.format_exc()))
        raise SystemExit(1) from None


def run_ranks(world: int, function: Callable[..., Any], *arguments: Any, timeout: float = 1000):
    """Call ``function(*arguments)`` on ranks 0..world-1; return their results in rank order.

    ``function`` must be importable (defined at the top of a module) and its results must
    pickle; return numpy arrays or plain values rather than tensors.
    """
    with tempfile.TemporaryDirectory() as folder:
        results = _context.Queue()
        processes = [
            _context.Process(
                target=_rank_main,
                args=(r, world, str(Path(folder, "store")), timeout, results, function, arguments),
                daemon=True,
            )
            for r in range(world)
        ]
        for process in processes:
            process.start()
        try:
            collected: dict[int, Any] = {}
            for _ in range(world):
                rank, fine, value = results.get(timeout=timeout)
                if not fine:
                    raise AssertionError(f"rank {rank} of {world} failed:\n{value}")
                collected[rank] = value
            for process in processes:
                process.join(timeout)
        finally:
            for process in processes:
                process.kill()
        return [collected[rank] for rank in range(world)]
