"""What the compiler makes of the kernels: compiled for any GPU, on a machine that needs none.

A launch that dispatch would make is planned on tensors without data, compiled ahead of time, and its machine
code is read: registers, spills to local memory, shared and tensor memory, matrix instructions, traps. Ahead-of-time
compilation enforces no limit by itself; on one version a kernel "compiled" to a bare trap with no spills at all.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from ..problem import PLAIN, AlignmentGrads, Rule, Side
from . import choices
from .launch import Launch, Target, plan_backward, plan_forward, plan_frozen, room_backward, room_forward, room_frozen

_POINTERS = {
    torch.float32: "*fp32",
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.bool: "*i1",
}


class Architecture(NamedTuple):
    """A GPU to compile for, and its limits: bytes of shared memory a program, a multiprocessor; its warps."""

    name: str
    target: GPUTarget
    shared: int
    shared_total: int
    warps: int


ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture("sm_80", GPUTarget("cuda", 80, 32), 163 * 1024, 164 * 1024, 64),
        Architecture("sm_90", GPUTarget("cuda", 90, 32), 227 * 1024, 228 * 1024, 64),
        Architecture("sm_100", GPUTarget("cuda", 100, 32), 227 * 1024, 228 * 1024, 64),
        Architecture("sm_120", GPUTarget("cuda", 120, 32), 99 * 1024, 100 * 1024, 48),
        Architecture("gfx942", GPUTarget("hip", "gfx942", 64), 64 * 1024, 64 * 1024, 32),
    )
}


class Case(NamedTuple):
    """A launch worth compiling, and the name it has in reports."""

    name: str
    arithmetic: choices.Arithmetic
    launch: Launch

    @property
    def at_d2l_size(self) -> bool:
        """A tile kernel for at most 64 tokens: what the d2l model runs, and what must not spill."""
        blocks = self.launch.choice.blocks
        return blocks.get("LARGEST", blocks.get("TILE", 128)) <= 64


class Compiled(NamedTuple):
    """A kernel's machine code in numbers."""

    case: Case
    architecture: Architecture
    registers: int
    spilled: int
    shared: int
    tensor_memory: int
    matrix: int
    instructions: int
    traps: int

    @property
    def warps(self) -> int:
        return self.case.launch.choice.num_warps

    @property
    def occupancy(self) -> float:
        """An estimate of the share of a multiprocessor's warps that fit at once."""
        warps = self.warps
        lanes = self.architecture.target.warp_size
        file = 65536 if lanes == 32 else 4 * 512 * 64
        by_registers = file // max(1, -(-self.registers // 8) * 8 * lanes * warps)
        by_shared = self.architecture.shared_total // (self.shared + 1024)
        programs = min(by_registers, by_shared, self.architecture.warps // warps, 32)
        return programs * warps / self.architecture.warps

    def faults(self) -> list[str]:
        """What is wrong with the code, whatever its sizes; spills are listed apart, see `spilled`."""
        found = []
        if self.shared > self.architecture.shared:
            found.append(
                f"{self.shared} bytes of shared memory, over {self.architecture.name}'s {self.architecture.shared}"
            )
        if self.tensor_memory > 512:
            found.append(f"{self.tensor_memory} columns of tensor memory, over 512")
        if self.instructions < 100 or (self.traps and not self.tensor_memory):  # allocating tensor memory may trap
            found.append(f"compiled to {self.instructions} instructions with {self.traps} traps")
        tensor_cores = self.case.arithmetic != "ieee" and self.case.launch.kernel.__name__ != "stream_delta"
        if tensor_cores and self.matrix == 0:
            found.append("no matrix instructions")
        return found


def cases(architecture: Architecture) -> Iterator[Case]:
    """Every kernel and tile choice that a launch can have there: tiles at d2l's widths, streams at others too."""
    for arithmetic in ("half", "tf32", "ieee"):
        for length in (16, 32, 64, 128):
            for extent in ("lengths", "full") if length > 16 else ("lengths",):
                for launch in of_lengths(length, 200, 100, arithmetic, extent, architecture):
                    if launch.kernel.__name__.startswith("tile"):
                        name = f"{launch.kernel.__name__} {'<=' if extent == 'lengths' else ''}{length}"
                        yield Case(name, arithmetic, launch)
        for h, d in ((64, 64), (128, 128), (200, 100), (256, 256)):
            for launch in of_lengths(1024, h, d, arithmetic, "lengths", architecture):
                if launch.kernel.__name__ != "stream_delta" or h == 200:
                    yield Case(f"{launch.kernel.__name__} {h}/{d}", arithmetic, launch)
        for launch in _frozen(200, arithmetic, architecture):
            yield Case(f"{launch.kernel.__name__} {launch.choice.blocks['TILE']}", arithmetic, launch)


def of_lengths(
    length: int,
    h: int,
    d: int,
    arithmetic: choices.Arithmetic,
    extent: str,
    architecture: Architecture,
    rule: Rule = PLAIN,
) -> list[Launch]:
    """The launches of a forward and a backward pass over pairs of these sizes."""
    dtype = torch.bfloat16 if arithmetic == "half" else torch.float32

    def side() -> Side:
        lengths = torch.empty(8, dtype=torch.int32, device="meta") if extent == "lengths" else None
        f, x = (torch.empty(8, length, width, dtype=dtype, device="meta") for width in (h, d))
        return Side(f, x, lengths, length)

    forward, backward = plan(side(), side(), arithmetic, architecture, rule)
    return forward + backward


def _frozen(h: int, arithmetic: choices.Arithmetic, architecture: Architecture) -> list[Launch]:
    """The launches of a frozen model on pairs of all lengths."""

    def empty(*shape: int, dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    dtype = torch.bfloat16 if arithmetic == "half" else torch.float32
    ids, offsets = empty(4096, dtype=torch.int64), empty(257, dtype=torch.int32)
    table, weight, bias = empty(1000, 3 * h, dtype=dtype), empty(h, h, dtype=dtype), empty(h, dtype=torch.float32)
    target = Target(arithmetic == "tf32", architecture.shared, architecture.name)
    sums = room_frozen(weight, bias, (offsets, offsets))
    return plan_frozen(table, (ids, ids), (offsets, offsets), weight, bias, 128, sums, target)


# fmt: off
def plan(
    a: Side, b: Side, arithmetic: str, architecture: Architecture, rule: Rule = PLAIN
) -> tuple[list[Launch], list[Launch]]:
    # fmt: on
    """The launches of a forward and of a backward pass over sides that need no data."""
    target = Target(arithmetic == "tf32", architecture.shared, architecture.name)
    found = room_forward(a, b)
    grads = AlignmentGrads(found.beta, found.alpha, None, None)
    room, deltas = room_backward(a, b, None, found, False)
    return (
        plan_forward(a, b, None, rule, found, target),
        plan_backward(a, b, None, rule, found, grads, room, deltas, target),
    )


def compile_case(case: Case, architecture: Architecture) -> Compiled:
    """Compile a case and read its machine code."""
    choice = case.launch.choice
    compiled = triton.compile(
        _source(case.launch),
        target=architecture.target,
        options={"num_warps": choice.num_warps, "num_stages": choice.num_stages, "enable_fp_fusion": True},
    )
    read = _read_amdgcn if architecture.target.backend == "hip" else _read_cubin
    registers, spilled, matrix, instructions, traps = read(compiled.asm)
    return Compiled(
        case,
        architecture,
        registers,
        spilled,
        shared=compiled.metadata.shared,
        tensor_memory=getattr(compiled.metadata, "tmem_size", None) or 0,
        matrix=matrix,
        instructions=instructions,
        traps=traps,
    )


def _source(launch: Launch) -> ASTSource:
    """The launch as the compiler takes it, with what a real launch would find out about its arguments."""
    constants = launch.constants | launch.choice.blocks
    signature, known, attributes = {}, {}, {}
    for place, name in enumerate(launch.kernel.arg_names):
        value = constants.get(name, launch.arguments.get(name))
        if name in constants or (isinstance(value, int) and value == 1):
            signature[name] = "constexpr"
            known[(place,)] = value
        elif isinstance(value, torch.Tensor):
            signature[name] = _POINTERS[value.dtype]
            attributes[(place,)] = [["tt.divisibility", 16]]
        elif isinstance(value, float):
            signature[name] = "fp32"
        elif isinstance(value, int):
            signature[name] = "i32"
            if value % 16 == 0:
                attributes[(place,)] = [["tt.divisibility", 16]]
    return ASTSource(launch.kernel, signature, known, attributes)


def _read_cubin(asm: dict) -> tuple[int, int, int, int, int]:
    """Registers, bytes on the stack, matrix instructions, instructions and traps of NVIDIA machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(asm["cubin"])
        file.flush()
        usage = _run(triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name)
        code = _run(triton.knobs.nvidia.nvdisasm.path, file.name)
    registers, stack = (int(re.search(rf"{key}:(\d+)", usage).group(1)) for key in ("REG", "STACK"))  # type: ignore[union-attr]
    names = re.findall(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]+)", code, re.MULTILINE)
    matrix = sum(bool(re.match(r"HMMA|HGMMA|UTC\w*MMA|UTCHMMA|OMMA|QMMA", name)) for name in names)
    local = sum(bool(re.match(r"LDL|STL", name)) for name in names)
    return registers, max(stack, local), matrix, len(names), sum("TRAP" in name for name in names)


def _read_amdgcn(asm: dict) -> tuple[int, int, int, int, int]:
    """Registers, spilled registers' bytes, matrix instructions, instructions and traps of AMD assembly."""
    text = asm["amdgcn"]
    count = {
        k: int(v) for k, v in re.findall(r"\.(vgpr_count|vgpr_spill_count|private_segment_fixed_size):\s+(\d+)", text)
    }
    names = re.findall(r"^\t([a-z][a-z0-9_]+)", text, re.MULTILINE)
    return (
        count["vgpr_count"],
        max(4 * count["vgpr_spill_count"], count["private_segment_fixed_size"]),
        sum(name.startswith(("v_mfma", "v_smfma")) for name in names),
        len(names),
        names.count("s_trap"),
    )


def _run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
