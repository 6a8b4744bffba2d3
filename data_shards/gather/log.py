"""A journal of the outcome of each address, which survives a kill at any moment."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from data_shards.errors import DataShardsError, UsageError
from data_shards.gather.urls import Task
from data_shards.system.file_system import lock, sync_folder
from data_shards.system.files import naming

JOURNAL_NAME = "gather.jsonl"


class Record(BaseModel):
    """One line: an address and its outcome.

    ``kept``: the file ``path`` (below the output folder) of ``bytes`` bytes; ``failed``: not
    requested again; ``unreachable``: all attempts of one run failed, and the next run tries
    again. ``reasons`` are short codes; a kept image has some if it is suspect.
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
        """The task that the line is about."""
        return Task(self.wnid, self.url)


class Journal:
    """The last record of each task of a folder; made by :func:`open_journal`."""

    def __init__(self, file: BinaryIO, records: dict[Task, Record]) -> None:
        self._file = file
        self.records = records

    def append(self, record: Record) -> None:
        """Add a line and remember it."""
        with naming(Path(self._file.name)):
            self._file.write(record.model_dump_json().encode() + b"\n")
            self._file.flush()
        self.records[record.task] = record


@contextmanager
def open_journal(folder: Path, *, split: str, val_fraction: float) -> Iterator[Journal]:
    """Yield the journal of ``folder``, locked against a second process.

    Creates the folder if needed. Cuts off an incomplete last line, which a kill leaves. Drops
    the record of a kept image whose file is gone or has another length. UsageError if another
    process has the lock, or if the folder was begun with another ``split`` or
    ``val_fraction``, because an image could then lie in two splits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / JOURNAL_NAME
    with open(path, "a+b", opener=_open_no_link) as file:
        unprotected = "two processes that gather into this folder may disturb each other"
        if lock(file.fileno(), wait=False, unprotected=unprotected) is False:
            raise UsageError(f"{folder}: another process is gathering into it")
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        file.truncate(whole)
        lines = content[:whole].splitlines()
        header = json.dumps({"format": 1, "split": split, "val_fraction": val_fraction}).encode()
        if not lines:
            file.write(header + b"\n")
            file.flush()
            sync_folder(folder)
        elif lines[0] != header:
            raise UsageError(
                f"{path}: was begun as {lines[0].decode(errors='replace')[:200]}; give the same "
                "--split and --val-fraction, or another --output"
            )
        yield Journal(file, _valid(folder, _records(path, lines[1:])))


def _open_no_link(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


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
