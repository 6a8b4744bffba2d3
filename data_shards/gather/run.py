"""Fetch a list of images into class folders, politely, and continue a stopped run."""

import asyncio
import csv
import io
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path

from data_shards.findings import Finding
from data_shards.gather.fetch import Failure, Fetcher, Limits, Outcome, Redirect
from data_shards.gather.log import Journal, Record, open_journal
from data_shards.gather.schedule import Schedule
from data_shards.gather.urls import Task, host_of
from data_shards.images.examine import Examination, examine
from data_shards.system.file_system import sync_folder
from data_shards.system.files import naming, write_synced
from data_shards.system.processes import end_with_parent

FAILURES_NAME = "failures.csv"

_PARTIAL = ".partial"  # files being written; the class folders hold only whole ones
_MOST_REDIRECTS = 5
_LONGEST_BACK_OFF = 60.0  # seconds
_LONGEST_RETRY_AFTER = 300.0  # seconds; a server that asks for more is left to the next run
_LONGEST_EXAMINATION = 60  # seconds
_DEAD_HOST = 10  # failures to connect, one after another, before a host is left to the next run


@dataclass(frozen=True)
class Options:
    """How to gather.

    ``attempts`` are the requests for one address, ``backoff`` the seconds before the second.
    """

    split: str
    val_fraction: float
    limits: Limits
    concurrency: int
    per_host: int
    delay: float
    attempts: int
    backoff: float
    workers: int
    allow_private: bool


@dataclass(frozen=True, slots=True)
class _Job:
    task: Task
    url: str  # what to ask next: a redirect changes it
    attempt: int = 1
    redirects: int = 0


def gather(
    tasks: Iterable[Task],
    output: Path,
    options: Options,
    on_start: Callable[[int], object] = lambda remaining: None,
    on_end: Callable[[Record], object] = lambda record: None,
) -> list[Record]:
    """Fetch what ``output`` lacks; return a record for each task, in order.

    Writes ``output/<split>/<class>/<name>.jpg`` or ``.png`` (extension by content), where
    split is ``options.split`` or ``val``, the journal ``gather.jsonl`` and ``failures.csv``.
    An image has passed :func:`data_shards.images.examine.examine` as ok or suspect. ``on_start``
    gets the number of addresses to request, ``on_end`` the record of each that is done.
    """
    tasks = list(tasks)
    with open_journal(output, split=options.split, val_fraction=options.val_fraction) as journal:
        shutil.rmtree(output / _PARTIAL, ignore_errors=True)
        (output / _PARTIAL).mkdir()
        remaining = [task for task in tasks if not _is_done(journal.records.get(task))]
        on_start(len(remaining))
        asyncio.run(_Run(output, options, journal, on_end).all(remaining))
        (output / _PARTIAL).rmdir()
        records = [journal.records[task] for task in tasks]
        write_synced(output / FAILURES_NAME, _failures(records))
        sync_folder(output)
    return records


def findings(records: Iterable[Record]) -> list[Finding]:
    """Return the findings about gathered images, in order. Images that are ok have none.

    Images with the same bytes from several addresses are ``duplicate``. Often they are the
    picture that a photo service shows in place of a deleted one.
    """
    records = list(records)
    copies = Counter(record.sha256 for record in records if record.state == "kept")
    found = []
    for record in records:
        if record.state != "kept":
            found.append(Finding(record.url, "refused", record.reasons))
        elif copies[record.sha256] > 1:
            found.append(Finding(record.path, "duplicate", ("same-bytes", *record.reasons)))
        elif record.reasons:
            found.append(Finding(record.path, "suspect", record.reasons))
    return found


def _is_done(record: Record | None) -> bool:
    return record is not None and record.state != "unreachable"


def _failures(records: list[Record]) -> bytes:
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["wnid", "url", "state", "reasons"])
    for record in records:
        if record.state != "kept":
            table.writerow([record.wnid, record.url, record.state, " ".join(record.reasons)])
    return stream.getvalue().encode()


class _Run:
    def __init__(
        self,
        output: Path,
        options: Options,
        journal: Journal,
        on_end: Callable[[Record], object],
    ) -> None:
        self._output = output
        self._options = options
        self._journal = journal
        self._on_end = on_end
        self._schedule: Schedule[_Job] = Schedule(options.per_host, options.delay)
        self._unreached: Counter[str] = Counter()  # host -> failures since its last answer
        self._checker = _Checker(options.workers)

    async def all(self, tasks: list[Task]) -> None:
        for task in tasks:
            self._schedule.add(host_of(task.url), _Job(task, task.url))
        loop = asyncio.get_running_loop()
        # Names are resolved in threads, and a dead name server blocks a thread for long.
        loop.set_default_executor(ThreadPoolExecutor(self._options.concurrency + 4))
        running: set[asyncio.Task[None]] = set()
        try:
            async with aclosing(
                Fetcher(self._options.limits, allow_private=self._options.allow_private)
            ) as fetcher:
                while True:
                    while len(running) < self._options.concurrency:
                        taken = self._schedule.take(loop.time())
                        if taken is None:
                            break
                        running.add(asyncio.create_task(self._one(fetcher, *taken)))
                    wait = self._schedule.next_time() - loop.time()
                    if not running and wait == float("inf"):
                        return
                    if not running:
                        await asyncio.sleep(max(wait, 0))
                        continue
                    full = len(running) == self._options.concurrency
                    ended, running = await asyncio.wait(
                        running,
                        timeout=None if full or wait == float("inf") else max(wait, 0),
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    # An unexpected error (a full disk, a bug) ends the run.
                    errors = [error for request in ended if (error := request.exception())]
                    if errors:
                        raise errors[0]
        finally:
            for request in running:
                request.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            self._checker.close()

    async def _one(self, fetcher: Fetcher, host: str, job: _Job) -> None:
        try:
            outcome: Outcome | None = await fetcher.get(job.url)
        finally:
            self._schedule.done(host)
        if isinstance(outcome, bytes):
            outcome = await self._keep(job, outcome)
        down = isinstance(outcome, Failure) and outcome.host
        self._unreached[host] = self._unreached[host] + 1 if down else 0
        if isinstance(outcome, Redirect):
            if job.redirects == _MOST_REDIRECTS:
                self._end(job, "failed", "redirects")
            else:
                follow = replace(job, url=outcome.url, redirects=job.redirects + 1)
                self._schedule.add(host_of(outcome.url), follow)
        elif isinstance(outcome, Failure):
            self._failed(host, job, outcome)

    def _failed(self, host: str, job: _Job, failure: Failure) -> None:
        if not failure.again:
            self._end(job, "failed", failure.reason)
            return
        now = asyncio.get_running_loop().time()
        backoff = min(self._options.backoff * 2 ** (job.attempt - 1), _LONGEST_BACK_OFF)
        wait = backoff if failure.retry_after is None else failure.retry_after
        if job.attempt == self._options.attempts or wait > _LONGEST_RETRY_AFTER:
            self._end(job, "unreachable", failure.reason)
        else:
            again = _Job(job.task, job.task.url, job.attempt + 1)
            self._schedule.add(host_of(again.url), again, now + wait)
        if failure.reason == "http-429" or failure.retry_after is not None:
            self._schedule.pause(host, now + min(wait, _LONGEST_RETRY_AFTER))
        if self._unreached[host] >= _DEAD_HOST or wait > _LONGEST_RETRY_AFTER:
            for waiting in self._schedule.drop(host):
                self._end(waiting, "unreachable", f"host-{failure.reason}")

    async def _keep(self, job: _Job, content: bytes) -> Failure | None:
        """Check and keep an image; return why another attempt may be needed, None if it is done."""
        task = job.task
        found = await self._checker.examine(content, task.name)
        if found is None:
            return Failure("decoder-crash", again=True)
        if found.verdict not in ("ok", "suspect"):
            # Without a Content-Length, a body that was cut short is noticed only here. It may
            # be whole the next time; a web page in place of an image stays one.
            again = found.verdict == "corrupt" and found.reasons != ("not-an-image",)
            if again and job.attempt < self._options.attempts:
                return Failure(found.reasons[0], again=True)
            self._end(job, "failed", *found.reasons)
            return None
        split = task.split(self._options.split, self._options.val_fraction)
        path = f"{split}/{task.wnid}/{task.name}.{found.extension}"
        partial = f"{task.wnid}-{task.name}"
        await asyncio.to_thread(
            _write, self._output / _PARTIAL / partial, self._output / path, content
        )
        record = Record(
            wnid=task.wnid,
            url=task.url,
            state="kept",
            reasons=found.reasons,
            path=path,
            bytes=len(content),
            sha256=found.sha256,
        )
        self._journal.append(record)
        self._on_end(record)
        return None

    def _end(self, job: _Job, state: str, *reasons: str) -> None:
        record = Record.model_validate(
            {"wnid": job.task.wnid, "url": job.task.url, "state": state, "reasons": reasons}
        )
        self._journal.append(record)
        self._on_end(record)


def _write(partial: Path, final: Path, content: bytes) -> None:
    final.parent.mkdir(parents=True, exist_ok=True)
    with naming(final), partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(final)


def _examine(content: bytes, name: str) -> Examination:
    signal.alarm(_LONGEST_EXAMINATION)  # ends the process, even inside the decoder
    try:
        return examine(content, name)
    finally:
        signal.alarm(0)


class _Checker:
    """Examines images in other processes, so that a crashing decoder does not end the run."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._pool = self._fresh()

    def _fresh(self) -> ProcessPoolExecutor:
        spawn = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self._workers, spawn, initializer=end_with_parent)

    async def examine(self, content: bytes, name: str) -> Examination | None:
        """Return the examination, None if the process died (because of this image or another)."""
        pool = self._pool
        try:
            future: Future[Examination] = pool.submit(_examine, content, name)
            return await asyncio.wrap_future(future)
        except BrokenProcessPool:
            if self._pool is pool:
                self._pool = self._fresh()
            return None

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
