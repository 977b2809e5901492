"""Writing a file so that a crash at any moment leaves the previous one whole."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_ABANDONED = 3600.0  # seconds after which an unfinished file is a dead process's


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside path, which takes path's place when the block ends without an error.

    The data reaches the disk before the name does. A killed process leaves its unfinished file behind,
    `.<name>.<random>.unfinished`; the next writer of the same path removes those older than an hour.

    Raises:
        OSError: the folder can't be written to.
    """
    for old in path.parent.glob(f".{path.name}.*.unfinished"):
        try:
            if time.time() - old.stat().st_mtime > _ABANDONED:
                old.unlink()
        except FileNotFoundError:  # another process was faster
            continue
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent)
    os.close(handle)
    unfinished = Path(name)
    try:
        yield unfinished
        unfinished.chmod(0o666 & ~_umask())  # mkstemp's files are for their owner alone
        _flush(unfinished)
        os.replace(unfinished, path)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _umask() -> int:
    """The process's mask of permissions, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
