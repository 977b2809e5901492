"""What earlier calls left in cache files."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError

T = TypeVar("T")


def kept(path: Path, load: Callable[[Path], T]) -> T | None:
    """What load makes of a cache file; None where there is none, and where it is of no use, which a warning says."""
    if not os.path.exists(path):  # Path.exists fails where the name is too long
        return None
    try:
        return load(path)
    except (SafetensorError, KeyError, ValueError):
        warnings.warn(f"{path} is damaged and made anew", stacklevel=3)
    except OSError:  # the library calls every such file a missing one
        warnings.warn(f"{path} can't be read and is made anew", stacklevel=3)
    return None
