"""Writing a file so that a crash at any moment leaves the previous one whole."""

from __future__ import annotations

import errno
import glob
import os
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

_ABANDONED = 3600.0  # seconds after which an unfinished file is a dead process's
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside path, which takes path's place when the block ends without an error.

    Where path is a link, it takes the place of what that leads to. A device or a pipe is written to as it is. The file
    gets the permissions of the one that it replaces.

    The data reaches the disk before the name does. A killed process leaves its unfinished file behind,
    `.<name>.<random>.unfinished`; the next writer of the same path removes those older than an hour.

    Raises:
        OSError: the folder can't be written to or has no room left, or path is a folder itself.
    """
    if _is_written_as_it_is(path):
        yield path
        return
    path = path.resolve()
    for old in path.parent.glob(f".{glob.escape(path.name)}.*.unfinished"):
        try:
            if time.time() - old.stat().st_mtime > _ABANDONED:
                old.unlink()
        except FileNotFoundError:  # another process was faster
            continue
    unfinished = _unfinished(path)
    try:
        yield unfinished
        unfinished.chmod(_mode(path))  # mkstemp's files are for their owner alone
        _flush(unfinished)
        os.replace(unfinished, path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _NO_ROOM and error.filename is None:  # of a write
            raise OSError(error.errno, error.strerror, str(path)) from None
        raise
    _flush(path.parent)


def check_writable(path: Path) -> None:
    """Raise the OSError that `replacing` would raise of path, before there is anything to write. Nothing is left."""
    if not _is_written_as_it_is(path):
        _unfinished(path.resolve()).unlink()
    elif not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def save_tensors(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> None:
    """A safetensors file that takes path's place once it is whole.

    Raises:
        OSError: it can't be written.
    """
    with replacing(path) as unfinished:
        try:
            save_file(tensors, unfinished, metadata)
        except SafetensorError as error:  # what it makes of the system's errors
            raise OSError(f"{path} can't be written: {error}") from None


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """The folder is this block's alone, as far as its file system knows locks; freed with the process, however it ends.

    Raises:
        BlockingIOError: another one has it.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(errno.EAGAIN, "another run is at work in this folder", str(folder)) from None
        except OSError:  # no locks there
            pass
        yield
    finally:
        os.close(handle)


def _is_written_as_it_is(path: Path) -> bool:
    """Whether path is a device or a pipe. Raises IsADirectoryError where it is a folder."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    return path.exists() and not path.is_file()


def _unfinished(path: Path) -> Path:
    """A new file beside path. Raises OSError naming path itself."""
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".unfinished", dir=path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    os.close(handle)
    return Path(name)


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's names, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _mode(path: Path) -> int:
    """The permissions for what takes path's place: those of what is there, unless that is kept from this user."""
    return stat.S_IMODE(path.stat().st_mode) if os.access(path, os.R_OK) else 0o666 & ~_umask()


def _umask() -> int:
    """The process's mask of permissions, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
