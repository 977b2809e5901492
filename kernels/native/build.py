"""Building the C++ extension on first use, once, and loading it.

ninja is called directly: torch.utils.cpp_extension would import setuptools, and its lock is a file that a killed
process leaves behind for ever. Here one flock guards the cache, which the kernel drops with its process; the
library is built in a folder of its own and moved into place whole. Its name holds a hash of all that it depends
on: sources, flags, compiler, torch, and the processor, for it uses whatever instructions that has.

Environment: COALIGN_CACHE (folder), COALIGN_NATIVE_FLAGS (more compiler flags), CXX (compiler).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path

import torch

SOURCES = ("cpu/ops.cpp",)
_FLAGS = ("-std=c++20", "-O3", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
_TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # torch 2.11: later versions keep its ABI
_NINJA = """\
rule cxx
  command = {cxx} {flags} -MD -MF $out.d -c $in -o $out
  depfile = $out.d
  deps = gcc
rule link
  command = {cxx} {flags} -shared $in -o $out -L{torch_lib} -ltorch_cpu -lc10
{objects}
build library.so: link {names}
"""

_lock = threading.Lock()
_loaded = False
_failure: BuildError | None = None


class BuildError(RuntimeError):
    """The extension could not be built; the message is the compiler's own, or says what is missing."""


def library() -> None:
    """Load the extension, building it first where the cache has none. Later calls do nothing.

    Raises:
        BuildError: it can't be had; a process tries once.
    """
    global _loaded, _failure
    if _loaded:
        return
    with _lock:
        if _failure is not None:
            raise _failure
        if not _loaded:
            try:
                torch.ops.load_library(str(build(SOURCES)))
            except BuildError as error:
                _failure = error
                warnings.warn(f"coalign runs without its C++ extension: {error}", RuntimeWarning, stacklevel=2)
                raise
            _loaded = True


def reason() -> str | None:
    """Why the extension can't be had, or None once it is loaded."""
    try:
        library()
    except BuildError as error:
        return str(error).splitlines()[0]
    return None


def build(sources: tuple[str, ...], folder: Path | None = None) -> Path:
    """The library of these sources, from the cache or freshly built.

    sources: relative to folder, by default coalign's own csrc; every header below it counts as theirs.

    Raises:
        BuildError: no compiler, no ninja, a cache that can't be written, or an error in the sources.
    """
    with resources.as_file(resources.files("coalign.csrc") if folder is None else folder) as root:
        compiler = _compiler()
        flags = [*_FLAGS, *_processor_flags(), _TARGET, *shlex.split(os.environ.get("COALIGN_NATIVE_FLAGS", ""))]
        cache = cache_folder()
        finished = cache / f"native-{_key(root, sources, compiler, flags)}.so"
        if finished.exists():
            return finished
        try:
            cache.mkdir(parents=True, exist_ok=True)
            with _alone(cache):
                if not finished.exists():
                    _build(root, sources, compiler, flags, finished)
        except OSError as error:
            raise BuildError(f"the cache {cache} can't be written ({error.strerror}); set COALIGN_CACHE") from error
        return finished


def cache_folder() -> Path:
    """Where built libraries are kept: COALIGN_CACHE, or coalign in the user's cache folder."""
    if chosen := os.environ.get("COALIGN_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library/Caches/coalign"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coalign"


def _build(root: Path, sources: tuple[str, ...], compiler: str, flags: list[str], finished: Path) -> None:
    """Compile in a folder beside the finished library, and move that into place."""
    for stale in finished.parent.glob("build-*"):  # of killed processes: nobody else builds while we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    print("coalign: building its C++ extension, once; this takes some seconds", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=finished.parent) as name:
        folder = Path(name)
        torch_home = Path(torch.__file__).parent
        includes = [f"-I{torch_home / 'include'}", f"-I{root}"]
        objects = [f"{i}.o" for i in range(len(sources))]
        text = _NINJA.format(
            cxx=_escaped(compiler),
            flags=" ".join(_escaped(flag) for flag in [*flags, *includes]),
            torch_lib=_escaped(str(torch_home / "lib")),
            objects="\n".join(f"build {o}: cxx {_path(root / s)}" for o, s in zip(objects, sources, strict=True)),
            names=" ".join(objects),
        )
        (folder / "build.ninja").write_text(text)
        made = subprocess.run([_ninja(), "-C", name], capture_output=True, text=True, check=False)
        if made.returncode != 0:
            lines = (made.stdout + made.stderr).splitlines()
            first = next((line for line in lines if "error" in line), f"exit status {made.returncode}")
            raise BuildError("\n".join([f"{compiler} failed: {first}", *lines[-40:]]))
        os.replace(folder / "library.so", finished)


def _key(root: Path, sources: tuple[str, ...], compiler: str, flags: list[str]) -> str:
    found = hashlib.sha256()
    version = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False).stdout
    parts = [torch.__version__, compiler, version, *flags, *sources, platform.machine(), _processor()]
    for part in parts:
        found.update(part.encode() + b"\0")
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".h", ".cpp")):
        found.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:20]


def _processor() -> str:
    """What tells processors apart whose instructions differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    told = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(told)}))


def _processor_flags() -> list[str]:
    """All the instructions of this machine, in the words of its compilers."""
    machine = platform.machine().lower()
    return ["-march=native"] if machine in ("x86_64", "amd64") else ["-mcpu=native"] if machine == "aarch64" else []


def _compiler() -> str:
    if sys.platform == "win32":
        raise BuildError("the C++ kernels need GCC's or Clang's vector extension, which Windows' compiler lacks")
    for name in filter(None, (os.environ.get("CXX"), "c++", "g++", "clang++")):
        if path := shutil.which(name):
            return path
    raise BuildError("no C++ compiler was found (c++, g++ or clang++; set CXX for another)")


def _ninja() -> str:
    if importlib.util.find_spec("ninja") is not None:
        import ninja

        return str(Path(ninja.BIN_DIR) / "ninja")
    if path := shutil.which("ninja"):
        return path
    raise BuildError("ninja was not found (pip install ninja)")


def _escaped(word: str) -> str:
    """A word for the shell, in a ninja variable."""
    return shlex.quote(word).replace("$", "$$")


def _path(path: Path) -> str:
    """A path in a ninja build line."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    """Hold the cache's lock; it is freed with the process, however that ends."""
    import fcntl

    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
