"""Building the extensions on first use, once, and loading them: here the C++ one; build_cuda.py has the other.

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
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import torch

SOURCES = ("cpu/ops.cpp", "cpu/frozen.cpp", "cpu/inference.cpp", "cpu/mlp.cpp")
# a product's loop of some hundred bytes takes up to 9 % longer where it begins in the middle of a line of the cache
_LOOPS = "-falign-loops=64"
FLAGS = ("-std=c++20", "-O3", _LOOPS, "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")
TARGET = "-DTORCH_TARGET_VERSION=0x020b000000000000"  # torch 2.11: later versions keep its ABI
_NINJA = """\
rule compile
  command = {compiler} {flags} -c $in -o $out
rule link
  command = {compiler} {flags} -shared $in -o $out -L{torch_lib} -ltorch_cpu -lc10
{objects}
build library.so: link {names}
"""


class BuildError(RuntimeError):
    """An extension could not be built; the message is the compiler's own, or says what is missing."""


class Toolchain(NamedTuple):
    """What a library is made with.

    language: as its users know it. compiler: the command's first words, a path among them. machine: whatever else the
    code depends on. headers: folders of headers besides csrc and PyTorch's.
    """

    language: str
    compiler: tuple[str, ...]
    flags: tuple[str, ...]
    machine: str
    headers: tuple[Path, ...] = ()


class Extension:
    """A library of operators that is built and loaded when it is first needed; a process tries once."""

    def __init__(self, name: str, build: Callable[[], Path]):
        self._name, self._build = name, build
        self._renew_lock()
        if hasattr(os, "register_at_fork"):  # in a child nobody would free what another thread held
            os.register_at_fork(after_in_child=self._renew_lock)
        self.library: Path | None = None  # once it is loaded
        self._failure: str | None = None

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()

    def reason(self) -> str | None:
        """Why the library can't be had, or None once it is loaded. The first failure is also a warning."""
        if self.library is not None or self._failure is not None:
            return self._failure
        with self._lock:
            if self.library is None and self._failure is None:
                try:
                    library = self._build()
                    torch.ops.load_library(str(library))
                    self.library = library
                except (OSError, RuntimeError, ValueError) as error:  # BuildError; nowhere to keep it; not to be loaded
                    told = not isinstance(error, BuildError) and error.__cause__  # of torch: why it can't be loaded
                    why = f"{error}: {told}" if told else str(error)
                    self._failure = (why or type(error).__name__).splitlines()[0]
                    warnings.warn(f"coalign runs without its {self._name}: {why}", RuntimeWarning, stacklevel=3)
        return self._failure


def build(sources: tuple[str, ...], folder: Path | None = None, tools: Toolchain | None = None) -> Path:
    """The library of these sources, from the cache or freshly built.

    sources: relative to folder, by default coalign's own csrc; every header below it counts as theirs.
    tools: by default this machine's C++ compiler, for this very processor.

    Raises:
        BuildError: no compiler, no ninja, a cache that can't be written, or an error in the sources.
    """
    own = resources.files("coalign.csrc") if folder is None else folder
    if not isinstance(own, Path) and sys.version_info < (3, 12):
        raise BuildError("the C++ sources lie in an archive, where Python before 3.12 can't take them from; unpack it")
    with resources.as_file(own) as root:
        tools = _cpp() if tools is None else tools
        cache = cache_folder()
        finished = cache / f"native-{_key(root, sources, tools)}.so"
        try:
            if _is_whole(finished):
                return finished
            cache.mkdir(parents=True, exist_ok=True)
            with _alone(cache):
                if not _is_whole(finished):
                    _build(root, sources, tools, finished)
        except OSError as error:
            raise BuildError(f"the cache {cache} can't be written ({error.strerror}); set COALIGN_CACHE") from error
        return finished


extension = Extension("C++ extension", lambda: build(SOURCES))


def cache_folder() -> Path:
    """Where built libraries are kept: COALIGN_CACHE, or coalign in the user's cache folder.

    Raises:
        BuildError: there is no such user, or this one has no home.
    """
    chosen = os.environ.get("COALIGN_CACHE")
    try:
        if chosen:
            return Path(chosen).expanduser()
        if sys.platform == "darwin":
            return Path.home() / "Library/Caches/coalign"
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "coalign"
    except RuntimeError as error:  # pathlib's
        named = f"COALIGN_CACHE={chosen}: {error}" if chosen else f"{error} Set COALIGN_CACHE to a folder"
        raise BuildError(f"there is nowhere to keep what is built. {named}") from None


def _build(root: Path, sources: tuple[str, ...], tools: Toolchain, finished: Path) -> None:
    """Compile in a folder beside the finished library, and move that into place."""
    for stale in finished.parent.glob("build-*"):  # of killed processes: nobody else builds while we hold the lock
        shutil.rmtree(stale, ignore_errors=True)
    print(f"coalign: building its {tools.language} extension, once; this takes a while", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix="build-", dir=finished.parent) as name:
        folder = Path(name)
        torch_home = Path(torch.__file__).parent
        includes = [f"-I{path}" for path in (torch_home / "include", root, *tools.headers)]
        objects = [f"{i}.o" for i in range(len(sources))]
        text = _NINJA.format(
            compiler=" ".join(map(_escaped, tools.compiler)),
            flags=" ".join(_escaped(flag) for flag in [*tools.flags, *includes]),
            torch_lib=_escaped(str(torch_home / "lib")),
            objects="\n".join(f"build {o}: compile {_path(root / s)}" for o, s in zip(objects, sources, strict=True)),
            names=" ".join(objects),
        )
        (folder / "build.ninja").write_bytes(os.fsencode(text))  # paths as they are, in whatever the locale can say
        status, lines = _run([_ninja(), "-C", name])
        if status != 0:
            told = (line for line in lines if re.search(r"\berror *:", line))  # not the command, which has its -Werror
            first = next(told, f"exit status {status}")
            raise BuildError("\n".join([f"{' '.join(tools.compiler)} failed: {first}", *lines[-40:]]))
        if not (folder / "library.so").exists():
            raise BuildError(f"{' '.join(tools.compiler)} ended without an error and without a library")
        _digest_file(finished).write_text(_digest(folder / "library.so"))
        os.replace(folder / "library.so", finished)


def _run(ninja: list[str]) -> tuple[int, list[str]]:
    """Its exit status and what it said. Where this process is interrupted the compilers end too."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(ninja, stdout=pipe, stderr=pipe, text=True, errors="replace")
    try:
        out, complaints = process.communicate()
    except BaseException:
        process.terminate()  # killed, as subprocess.run would have it, ninja leaves its compilers at work
        process.wait()
        raise
    return process.returncode, (out + complaints).splitlines()


def _is_whole(library: Path) -> bool:
    """Whether it is there, and as it was built: loading one that lacks its end kills the process."""
    try:
        return _digest_file(library).read_bytes() == _digest(library).encode()
    except FileNotFoundError:
        return False


def _digest(library: Path) -> str:
    return hashlib.sha256(library.read_bytes()).hexdigest()


def _digest_file(library: Path) -> Path:
    return library.with_suffix(".sha256")


def _key(root: Path, sources: tuple[str, ...], tools: Toolchain) -> str:
    found = hashlib.sha256()
    asked = [*tools.compiler, "--version"]
    version = subprocess.run(asked, capture_output=True, text=True, errors="replace", check=False).stdout
    for part in (
        torch.__version__,
        *tools.compiler,
        version,
        *tools.flags,
        *sources,
        platform.machine(),
        tools.machine,
    ):
        found.update(part.encode(errors="surrogateescape") + b"\0")  # a path may be in any encoding
    for folder in (root, *tools.headers):
        for path in sorted(p for p in folder.rglob("*") if p.suffix in (".h", ".cpp", ".cuh", ".cu")):
            found.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:20]


def _cpp() -> Toolchain:
    return Toolchain("C++", compiler(), (*FLAGS, *_processor_flags(), TARGET, *own_flags()), _processor())


def own_flags() -> list[str]:
    """The user's flags for the C++ compiler, which come last."""
    return _words("COALIGN_NATIVE_FLAGS")


def _words(variable: str) -> list[str]:
    """What a variable says, as a shell would take it apart."""
    value = os.environ.get(variable, "")
    try:
        return shlex.split(value)
    except ValueError as error:
        raise BuildError(f"{variable}={value} is no command line: {error}") from None


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


def compiler() -> tuple[str, ...]:
    """The C++ compiler: CXX, a path or a command, or the first that is found."""
    if sys.platform == "win32":
        raise BuildError("the C++ kernels need GCC's or Clang's vector extension, which Windows' compiler lacks")
    chosen = os.environ.get("CXX", "")
    if path := which(chosen):  # with any characters in it
        return (path,)
    for command in (_words("CXX"),) if chosen else (["c++"], ["g++"], ["clang++"]):
        if command and (path := which(command[0])):
            return path, *command[1:]
    if chosen:
        raise BuildError(f"the C++ compiler {chosen!r}, which CXX names, was not found")
    raise BuildError("no C++ compiler was found (c++, g++ or clang++; set CXX for another)")


def which(command: str) -> str | None:
    """Where a command is, from the root on: ninja runs it in another folder."""
    path = shutil.which(command)
    return None if path is None else os.path.abspath(path)


def _ninja() -> str:
    """ninja: its package's, in Python's folder of programs or, as pip's --target and .pth files have it, in its own."""
    found = importlib.util.find_spec("ninja")
    if found is not None and found.origin is not None:  # a folder of that name is no package
        import ninja

        site = Path(found.origin).parents[1]
        for folder in (Path(ninja.BIN_DIR), site / "bin", site / "../../../bin"):
            if path := shutil.which(str(folder / "ninja")):
                return path
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
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"coalign: waiting for another process that builds into {cache}", file=sys.stderr, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)  # not by closing it alone: children forked meanwhile hold it too
