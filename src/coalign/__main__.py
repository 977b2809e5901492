"""The command `coalign`, and python -m coalign."""

from __future__ import annotations

import os
import sys

from .cli import app


def main() -> None:
    """Run the command; an output that can't be written to is a line of complaint, not a traceback."""
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
