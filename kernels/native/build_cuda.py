"""Building the CUDA extension on first use: nvcc, for the GPUs that are here; cache, lock and ninja are build.py's.

Environment: COALIGN_CACHE (folder), CUDA_HOME (the toolkit, where nvcc is not on the path).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from . import build

SOURCES = tuple(f"cuda/{name}.cu" for name in ("float32", "bfloat16", "float16", "frozen", "ops"))


def tools(architectures: Sequence[str]) -> build.Toolchain:
    """nvcc for these architectures ("80", "90a").

    Raises:
        BuildError: there is no nvcc.
    """
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures]
    flags = ("-std=c++20", "-O3", "-Xcompiler=-fPIC", build.TARGET, *codes)
    return build.Toolchain("CUDA", (nvcc(),), flags, machine="any GPU of these architectures")


def nvcc() -> str:
    """CUDA's compiler: below CUDA_HOME, on the path, or where it is installed by default."""
    if sys.platform == "win32":
        raise build.BuildError("the CUDA kernels have not been built on Windows yet")
    home = os.environ.get("CUDA_HOME")
    found = build.which(str(Path(home) / "bin/nvcc") if home else "nvcc") or build.which("/usr/local/cuda/bin/nvcc")
    if found is None:
        raise build.BuildError("nvcc was not found (install NVIDIA's CUDA toolkit, or set CUDA_HOME)")
    return found


def _here() -> list[str]:
    """The architectures of this machine's GPUs."""
    found = {torch.cuda.get_device_capability(i) for i in range(torch.cuda.device_count())}
    return [f"{major}{minor}" for major, minor in sorted(found) if (major, minor) >= (7, 0)]


extension = build.Extension("CUDA extension", lambda: build.build(SOURCES, tools=tools(_here())))
