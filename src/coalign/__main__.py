"""The command `coalign`, and python -m coalign."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import Any, TextIO, cast

from .cli import app


class _Heedless:
    """Standard error that loses what can't be written: no complaint and no progress bar is worth the work."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError:
            return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def main() -> None:
    """Run the command; an output that can't be written to is a line of complaint, not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # what its encoding lacks
    if sys.stderr is not None:
        sys.stderr = cast(TextIO, _Heedless(sys.stderr))
    try:
        try:
            app(prog_name="coalign")
        finally:
            if sys.stdout is not None:  # as it is where the process began without one
                sys.stdout.flush()
    except OSError as error:
        if error.filename is not None:
            raise
        if not isinstance(error, BrokenPipeError):  # who reads has enough of it
            print(f"error: the output can't be written: {error.strerror}", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what is left is not tried again at the end of the process
        sys.exit(1)


if __name__ == "__main__":
    main()
