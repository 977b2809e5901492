"""What this installation has, which backends can serve, and why the others can't."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
from typing import Any

import torch

from . import __version__, kernels
from .kernels.dispatch import backend, requested
from .kernels.native import build, build_cuda
from .kernels.problem import Problem, Side

_PACKAGES = ("triton", "numpy", "ninja", "matplotlib")
_COMPILERS = ("c++", "g++", "clang++", "nvcc", "ninja")
_EXTENSIONS = {"C++": build.extension, "CUDA": build_cuda.extension}
_VARIABLES = (
    "COALIGN_BACKEND",
    "COALIGN_CACHE",
    "COALIGN_NATIVE_FLAGS",
    "CUDA_HOME",
    "CUDA_VISIBLE_DEVICES",
    "CXX",
    "TRITON_INTERPRET",
)


def examine() -> dict[str, Any]:
    """Versions, devices, backends, their libraries, compilers and environment, as plain data."""
    return {
        "versions": {
            "coalign": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: _version(name) for name in _PACKAGES},
            "cuda (of torch)": torch.version.cuda,
            "driver": _driver(),
        },
        "platform": platform.platform(),
        "devices": _devices(),
        "backends": {name: _backend(name) for name in kernels.BACKENDS},
        "extensions": {
            "cache": _cache(),
            **{name: _library(extension) for name, extension in _EXTENSIONS.items()},
        },
        "compilers": {name: shutil.which(name) for name in _COMPILERS},
        "environment": {name: os.environ.get(name) for name in _VARIABLES} | _unknown_backend(),
    }


def _unknown_backend() -> dict[str, str]:
    """COALIGN_BACKEND with what is wrong with it, where something is."""
    try:
        requested(None)
    except ValueError as error:
        return {"COALIGN_BACKEND": f"every call fails: {error}"}
    return {}


def _cache() -> str:
    try:
        return str(build.cache_folder())
    except RuntimeError as error:  # no home
        return f"none: {error}"


def _library(extension: build.Extension) -> str | None:
    """The library that the backends have loaded by now."""
    return None if extension.library is None else str(extension.library)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _driver() -> str | None:
    """The NVIDIA driver's version, where its tool is installed and works."""
    if (tool := shutil.which("nvidia-smi")) is None:
        return None
    query = [tool, "--query-gpu=driver_version", "--format=csv,noheader"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return answer.stdout.split("\n")[0].strip() or None if answer.returncode == 0 else None


def _devices() -> dict[str, str]:
    found = {"cpu": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"}
    for i in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(i)
        found[f"cuda:{i}"] = f"{p.name}, compute capability {p.major}.{p.minor}, {p.total_memory >> 20} MiB"
    return found


def _backend(name: str) -> dict[str, str]:
    """What the backend says of a small float32 call on each kind of device that is here."""
    states = {}
    for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        side = Side(torch.zeros(1, 2, 2, device=kind), torch.zeros(1, 2, 2, device=kind), None, 2)
        reasons = backend(name).unsupported(Problem.of(side, side, None))
        states[kind] = "ready" if not reasons else "off: " + "; ".join(reasons)
    return states
