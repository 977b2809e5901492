"""What nvcc makes of the CUDA kernels, for GPUs that need not be here: ptxas' report and the PTX it was given.

Each kernel is instantiated alone, without PyTorch. Shared memory is asked for at launch, so ptxas does not know it:
a constant in the PTX holds what the kernel's own function says.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import NamedTuple

from . import build_cuda


class Architecture(NamedTuple):
    """A GPU to compile for: nvcc's name; bytes of shared memory a block, a multiprocessor; its warps."""

    name: str
    code: str
    shared: int
    shared_total: int
    warps: int

    @property
    def tensor_cores(self) -> bool:
        """Whether it has those that the kernels use."""
        return self.name != "sm_75"


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
_ARITHMETICS = {"half": "Mma16<BFloat16>", "tf32": "Tf32", "ieee": "Simt<float>"}  # csrc/cuda/products.cuh
_TILES = {
    **{f"tile_{way}": (16, 32, 64) for way in ("forward", "backward")},
    **{f"stream_{way}": (64,) for way in ("forward", "backward")},
    "frozen_sums": (32, 64, 128),
}
_HIDDEN = 200  # d2l's num_hiddens, on which a frozen model's shared memory depends: kilobytes of a tile's
_FROZEN_KILOBYTES = {
    "half": {32: 28, 64: 64, 128: 159},
    "tf32": {32: 41, 64: 90, 128: 211},
    "ieee": {32: 37, 64: 82, 128: 195},
}


class Case(NamedTuple):
    """A kernel worth compiling."""

    kernel: str
    tile: int
    arithmetic: str

    @property
    def name(self) -> str:
        return f"native {self.kernel} {self.tile}"

    def source(self, tensor_cores: bool) -> str:
        """The kernel's instantiation."""
        route = self.kernel.split("_")[0]
        half = "Simt<BFloat16>" if route == "frozen" else "Simt<Float16>"
        math = _ARITHMETICS[self.arithmetic] if tensor_cores or self.arithmetic == "ieee" else half
        parameters = math if route == "stream" else f"{math}, {self.tile}"
        operands = {"tile": "Call", "stream": "Directions", "frozen": "FrozenCall"}[route]
        width = _HIDDEN if route == "frozen" else ""
        headers = "".join(f'#include "cuda/{name}.cuh"\n' for name in ("frozen", "stream_backward", "tile"))
        return (
            f"{headers}namespace coalign::cuda {{\n"
            f"template __global__ void {self.kernel}<{parameters}>(const __grid_constant__ {operands}<{math}::S>);\n"
            f"__device__ extern const int shared_bytes_of_kernel = {self.kernel}_bytes<{parameters}>({width});\n}}\n"
        )


class Compiled(NamedTuple):
    """A kernel's machine code in numbers. matrix and instructions: of its PTX."""

    case: Case
    architecture: Architecture
    registers: int
    spilled: int
    shared: int
    matrix: int
    instructions: int

    @property
    def warps(self) -> int:
        return self.case.tile // 16

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
        if self.instructions < 100:
            found.append(f"compiled to {self.instructions} instructions")
        if self.architecture.tensor_cores and self.case.arithmetic != "ieee" and self.matrix == 0:
            found.append("no matrix instructions")
        return found


def cases(architecture: Architecture) -> Iterator[Case]:
    """Every kernel that the GPU can be given: where a tile does not fit its memory, something else serves."""
    for arithmetic in _ARITHMETICS if architecture.tensor_cores else ("half", "ieee"):
        for kernel, tiles in _TILES.items():
            for tile in tiles:
                case = Case(kernel, tile, arithmetic)
                if _fits(case, architecture):
                    yield case


def _fits(case: Case, architecture: Architecture) -> bool:
    """Whether the kernel's shared memory is there; tests hold this against what the kernels say."""
    if case.kernel != "frozen_sums":
        return architecture.tensor_cores or (case.kernel, case.tile) != ("tile_backward", 64)
    return _FROZEN_KILOBYTES[case.arithmetic][case.tile] * 1024 <= architecture.shared


def compile_case(case: Case, architecture: Architecture) -> Compiled:
    """Compile a case and read what became of it.

    Raises:
        build.BuildError: there is no nvcc.
        subprocess.CalledProcessError: it does not compile.
    """
    with tempfile.TemporaryDirectory() as folder, resources.as_file(resources.files("coalign.csrc")) as root:
        source = Path(folder) / "kernel.cu"
        source.write_text(case.source(architecture.tensor_cores))
        tools = build_cuda.tools([architecture.code])
        command = [*tools.compiler, *tools.flags, f"-I{root}", "-cubin", "-keep", f"-keep-dir={folder}", "-Xptxas=-v"]
        ran = subprocess.run([*command, str(source), "-o", f"{folder}/kernel.cubin"], capture_output=True, text=True)
        if ran.returncode != 0:
            raise subprocess.CalledProcessError(ran.returncode, command, ran.stdout, ran.stderr)
        ptx = next(Path(folder).glob("*.ptx")).read_text()
    body = ptx[ptx.index(".entry") :]
    names = re.findall(r"^\s+(?:@!?%p\d+\s+)?([a-z][a-z0-9_]*)[.\w:]*\s[^;]*;", body, re.MULTILINE)
    spilled = [int(n) for n in re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", ran.stderr)]
    return Compiled(
        case,
        architecture,
        registers=int(_only(r"Used (\d+) registers", ran.stderr)),
        spilled=max(spilled),
        shared=int(_only(r"shared_bytes_of_kernel\w* = (\d+)", ptx)),
        matrix=names.count("mma"),
        instructions=len(names),
    )


def _only(pattern: str, text: str) -> str:
    (found,) = re.findall(pattern, text)
    return found
