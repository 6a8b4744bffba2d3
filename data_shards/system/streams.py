"""Standard streams as they are: closed, of another encoding, on a full disk, without a reader."""

from __future__ import annotations

import errno
import io
import os
import select
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Output(io.FileIO):
    """A descriptor that can always be written to; what cannot be delivered is dropped."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "wb", closefd=False)
        self.failure: OSError | None = None

    def write(self, content: ReadableBuffer, /) -> int:
        while self.failure is None:
            try:
                written: int | None = super().write(content)
            except OSError as error:
                self.failure = error
                break
            if written is not None:
                return written
            select.select([], [self], [])  # another program has made it non-blocking
        return memoryview(content).nbytes


def run_command(program: str, command: Callable[[], int]) -> int:
    """Run a command that may print, however it was started; every entry point calls this.

    A closed stream swallows what is printed, a reader that leaves early ends nothing, and a sign
    that the encoding lacks is printed as an escape. If stdout cannot be written for another reason,
    such as a full disk, the command goes on, and a line says so at its end. Streams that something
    else has put in place of the process's own are left alone.

    Args:
        program: name in that line.
        command: returns its exit code.

    Returns:
        The exit code; 1 in place of 0 if the output was lost.
    """
    _fill_closed_descriptors()
    if sys.stdout is sys.__stdout__:
        sys.stdout = _steady(sys.stdout, 1)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _steady(sys.stderr, 2)
    try:
        code = command()
    except SystemExit as leaving:
        if not leaving.code and _output_is_lost(program):  # after --help
            raise SystemExit(1) from None
        raise
    return code or int(_output_is_lost(program))


def reader_left() -> bool:
    """Return whether nobody reads stdout any more, so that a command without end may end."""
    failure = _failure_of(sys.stdout)
    return failure is not None and failure.errno == errno.EPIPE


def _fill_closed_descriptors() -> None:
    # Otherwise the next file that is opened gets the number, and what is printed goes there.
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)


def _steady(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is None:  # it was closed when Python started
        return open(os.devnull, "w", encoding="utf-8")
    stream.flush()
    by_line = isinstance(stream, io.TextIOWrapper) and (
        stream.line_buffering or stream.write_through
    )
    return io.TextIOWrapper(
        io.BufferedWriter(_Output(descriptor)),
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=by_line,
    )


def _failure_of(stream: TextIO) -> OSError | None:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return raw.failure if isinstance(raw, _Output) else None


def _output_is_lost(program: str) -> bool:
    """Return whether output is lost that somebody waits for, and say so."""
    sys.stdout.flush()
    failure = _failure_of(sys.stdout)
    if failure is None or failure.errno == errno.EPIPE:
        return False
    text = f"the output could not be written ({failure.strerror})"
    print(f"{program}: error: {text}", file=sys.stderr)
    return True
