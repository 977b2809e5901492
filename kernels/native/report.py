"""What nvcc makes of the CUDA kernels, for any GPU, on a machine that needs none.

The extension is built as a first call on such a GPU would build it, and its machine code is read: registers, spills
to local memory, tensor-core instructions, traps. How much shared memory a kernel takes is the same
for every operand and known when it is compiled; the library itself says.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .. import machine_code
from . import build, build_cuda


class Architecture(NamedTuple):
    """A GPU to compile for. code: as nvcc names it; shared, shared_total: bytes of shared memory, of a block at most
    and of a multiprocessor; warps: how many that holds."""

    name: str
    code: str
    shared: int
    shared_total: int
    warps: int


ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture("sm_75", "75", 64 * 1024, 64 * 1024, 32),
        Architecture("sm_80", "80", 163 * 1024, 164 * 1024, 64),
        Architecture("sm_86", "86", 99 * 1024, 100 * 1024, 48),
        Architecture("sm_90", "90a", 227 * 1024, 228 * 1024, 64),
        Architecture("sm_100", "100", 227 * 1024, 228 * 1024, 64),
        Architecture("sm_120", "120", 99 * 1024, 100 * 1024, 48),
    )
}

_STORAGE = {"f": "float", "BFloat16": "BFloat16", "Float16": "Float16"}
SharedMemory = dict[tuple[str, str, str, int], int]
_ARITHMETICS = {
    ("Simt", "float"): "ieee",
    ("Simt", "BFloat16"): "ieee bf16",
    ("Simt", "Float16"): "ieee fp16",
    ("Tf32", "float"): "tf32",
    ("Mma16", "BFloat16"): "bf16",
    ("Mma16", "Float16"): "fp16",
}
_SYMBOL = re.compile(r"\d+((?:tile|stream)_[a-z]+)INS0_\d+(Simt|Tf32|Mma16)(?:I(?:NS0_\d+)?(f|BFloat16|Float16)E)?")


class Compiled(NamedTuple):
    """A kernel's machine code in numbers. spilled: bytes a thread; shared: bytes a block."""

    kernel: str
    arithmetic: str
    tile: int
    architecture: Architecture
    registers: int
    spilled: int
    shared: int
    counts: machine_code.Counts

    @property
    def name(self) -> str:
        return f"cuda {self.kernel}" + (f" {self.tile}" if self.kernel.startswith("tile") else "")

    @property
    def on_tensor_cores(self) -> bool:
        return not self.arithmetic.startswith("ieee")

    @property
    def serves(self) -> bool:
        """Whether calls on this GPU come to this kernel; for those that don't, nvcc was given a bare trap."""
        if self.architecture.name == "sm_75":
            return not self.on_tensor_cores
        return self.arithmetic == "ieee" or self.on_tensor_cores

    @property
    def fits(self) -> bool:
        """Whether a block may take so much shared memory; a tile kernel that doesn't fit leaves its calls to stream."""
        return self.shared <= self.architecture.shared

    @property
    def warps(self) -> int:
        return self.tile // 16

    @property
    def occupancy(self) -> float:
        """An estimate of the share of a multiprocessor's warps that fit at once."""
        by_registers = 65536 // (-(-self.registers // 8) * 8 * 32 * self.warps)
        by_shared = self.architecture.shared_total // (self.shared + 1024)
        blocks = min(by_registers, by_shared, self.architecture.warps // self.warps, 16)
        return blocks * self.warps / self.architecture.warps

    def faults(self) -> list[str]:
        """What is wrong with the code; spills are listed apart, see `spilled`."""
        found = []
        if self.kernel.startswith("stream") and not self.fits:
            most = f"{self.architecture.name}'s {self.architecture.shared}"
            found.append(f"{self.shared} bytes of shared memory, over {most}")
        if self.counts.instructions < 100 or self.counts.traps:
            found.append(f"compiled to {self.counts.instructions} instructions with {self.counts.traps} traps")
        products = self.kernel != "stream_deltas"
        if products and self.on_tensor_cores != (self.counts.matrix > 0):
            found.append(f"{self.counts.matrix} tensor-core instructions")
        return found


def compiles(only: str) -> bool:
    """Whether some kernel's name and arithmetic contain that text."""
    kernels = [f"cuda tile_{which} {tile}" for which in ("forward", "backward") for tile in (16, 32, 64)]
    kernels += [f"cuda stream_{which}" for which in ("forward", "deltas", "backward")]
    return any(only in f"{kernel} {arithmetic}" for kernel in kernels for arithmetic in _ARITHMETICS.values())


def reason() -> str | None:
    """Why nothing can be compiled and read here, or None."""
    try:
        build_cuda.nvcc()
        build.compiler()
        _cuobjdump()
    except build.BuildError as error:
        return str(error)
    return None


def compile_all(architectures: Sequence[Architecture]) -> Iterator[Compiled]:
    """Build the extension for these GPUs, or take it from the cache, and read every kernel that serves there.

    Raises:
        BuildError: nvcc or cuobjdump is missing, or compiling failed.
    """
    tools = build_cuda.tools([a.code for a in architectures])
    library = build.build(build_cuda.SOURCES, tools=tools)
    shared = _shared_memory(library)
    for architecture in architectures:
        yield from (c for c in _read(library, architecture, shared) if c.serves)


def _read(
    library: Path, architecture: Architecture, shared: dict[tuple[str, str, str, int], int]
) -> Iterator[Compiled]:
    for symbol, (registers, stack, counts) in disassembled(library, f"sm_{architecture.code}").items():
        kernel, arithmetic, storage, tile = _named(symbol)
        yield Compiled(
            kernel,
            _ARITHMETICS[arithmetic, storage],
            tile,
            architecture,
            registers,
            spilled=max(stack, counts.local),
            shared=shared[kernel, arithmetic, storage, tile],
            counts=counts,
        )


def disassembled(library: Path, code: str) -> dict[str, tuple[int, int, machine_code.Counts]]:
    """Of each kernel in a library for an architecture, by mangled name: registers and bytes of stack a thread, and its
    instructions."""
    cuobjdump = (_cuobjdump(), "-arch", code)
    usage = _sections(_run(*cuobjdump, "--dump-resource-usage", str(library)), r"^ Function (\w+):")
    listing = _sections(_run(*cuobjdump, "-sass", str(library)), r"^\s*Function : (\w+)")
    return {s: (*machine_code.resources(usage[s]), machine_code.count(text)) for s, text in listing.items()}


def _shared_memory(library: Path) -> SharedMemory:
    """Bytes by kernel, arithmetic, storage and tile (ops.cu: coalign_cuda_shared_memory). Asked in a process of its
    own: a library that is loaded registers its operators, and this process may have those of another."""
    ask = f"import ctypes, torch; say = ctypes.CDLL({str(library)!r}).coalign_cuda_shared_memory; "
    ask += "say.restype = ctypes.c_char_p; print(say().decode())"
    lines = (line.split() for line in _run(sys.executable, "-c", ask).splitlines() if line)
    return {(kernel, math, storage, int(tile)): int(count) for kernel, math, storage, tile, count in lines}


def _named(symbol: str) -> tuple[str, str, str, int]:
    """A kernel's name, arithmetic, storage and tile from its mangled name; a stream kernel's tile has 64 rows."""
    found = _SYMBOL.search(symbol)
    assert found is not None, symbol
    tile = re.search(r"Li(\d+)E", symbol)
    return found[1], found[2], _STORAGE[found[3] or "f"], int(tile[1]) if tile else 64


def _sections(text: str, heading: str) -> dict[str, str]:
    """What stands below each heading, by the name in it."""
    _, *pieces = re.split(heading, text, flags=re.MULTILINE)
    return dict(zip(pieces[::2], pieces[1::2], strict=True))


def _cuobjdump() -> str:
    """NVIDIA's disassembler: the toolkit's, on the path, or the one that Triton brings along."""
    beside = Path(build_cuda.nvcc()).resolve().parent / "cuobjdump"
    found = shutil.which(str(beside)) or shutil.which("cuobjdump")
    if found is None and (triton := importlib.util.find_spec("triton")) is not None:
        for folder in triton.submodule_search_locations or ():
            found = found or shutil.which(str(Path(folder) / "backends/nvidia/bin/cuobjdump"))
    if found is None:
        raise build.BuildError("cuobjdump was not found (it comes with NVIDIA's CUDA toolkit and with Triton)")
    return found


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
