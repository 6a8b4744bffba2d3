"""What became of each address, in a file that survives a kill at any moment."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from data_shards.errors import DataShardsError, UsageError
from data_shards.files import lock, sync_folder
from data_shards.gather.urls import Task

JOURNAL_NAME = "gather.jsonl"


class Record(BaseModel):
    """One line: an address and what became of it.

    ``kept``: the file ``path`` (below the output folder) of ``bytes`` bytes; ``failed``: not
    asked again; ``unreachable``: the attempts of one run were in vain, the next run tries
    again. ``reasons`` are short codes; of a kept image those of a suspect one.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    wnid: str
    url: str
    state: Literal["kept", "failed", "unreachable"]
    reasons: tuple[str, ...] = ()
    path: str = ""
    bytes: int = 0
    sha256: str = ""

    @property
    def task(self) -> Task:
        """What the line is about."""
        return Task(self.wnid, self.url)


class Journal:
    """The records of a folder, last one first served; made by :func:`open_journal`."""

    def __init__(self, descriptor: int, records: dict[Task, Record]) -> None:
        self._descriptor = descriptor
        self.records = records

    def append(self, record: Record) -> None:
        """Add a line and remember it."""
        _write(self._descriptor, record.model_dump_json().encode() + b"\n")
        self.records[record.task] = record


@contextmanager
def open_journal(folder: Path, *, split: str, val_fraction: float) -> Iterator[Journal]:
    """Yield the journal of ``folder``, which is made if needed, locked against a second process.

    An incomplete last line, which a kill leaves, is cut off. A kept image whose file is gone
    or has another length has no record. UsageError if another process has the lock, or the
    folder was begun with another ``split`` or ``val_fraction``: images would lie in both.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JOURNAL_NAME
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    try:
        if not lock(descriptor, wait=False):
            raise UsageError(f"{folder}: another process is gathering into it")
        with open(descriptor, "rb", closefd=False) as file:
            content = file.read()
        whole = content.rfind(b"\n") + 1
        os.truncate(descriptor, whole)
        lines = content[:whole].splitlines()
        header = json.dumps({"format": 1, "split": split, "val_fraction": val_fraction}).encode()
        if not lines:
            _write(descriptor, header + b"\n")
            sync_folder(folder)
        elif lines[0] != header:
            raise UsageError(
                f"{path}: was begun as {lines[0].decode(errors='replace')[:200]}; give the same "
                "--split and --val-fraction, or another --output"
            )
        yield Journal(descriptor, _valid(folder, _records(path, lines[1:])))
    finally:
        os.close(descriptor)


def _write(descriptor: int, line: bytes) -> None:
    # A full disk may take a part: what is missing then ends in an error, and the next run
    # cuts the incomplete line off.
    while line:
        line = line[os.write(descriptor, line) :]


def _records(path: Path, lines: list[bytes]) -> dict[Task, Record]:
    records = {}
    for number, line in enumerate(lines, 2):
        try:
            record = Record.model_validate_json(line)
        except ValidationError:
            raise DataShardsError(f"{path}:{number}: malformed; delete this line") from None
        records[record.task] = record
    return records


def _valid(folder: Path, records: dict[Task, Record]) -> dict[Task, Record]:
    return {
        task: record
        for task, record in records.items()
        if record.state != "kept" or _has_length(folder / record.path, record.bytes)
    }


def _has_length(path: Path, length: int) -> bool:
    try:
        return path.stat().st_size == length
    except OSError:
        return False
