"""CUDA tensors: the kernels of csrc/cuda, built by nvcc for the GPU that is here when they are first needed.

A pair of up to 64 x 64 tokens takes the tile route (csrc/cuda/tile.cuh), a longer one the stream route
(csrc/cuda/stream.cuh). Both run on tensor cores from compute capability 8.0 on, float32 only where torch allows
TF32, and otherwise on the ordinary cores.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import gpu
from ..problem import Alignment, AlignmentGrads, OperandGrads, Problem, Rule, Side
from . import build_cuda

MOST_ROWS = 65535 * 64  # as many tiles as a grid may have blocks in its second dimension
# of a row's features and values together: in its third one it has two blocks for every 128 of their columns
MOST_NUMBERS = 32766 * 128
NO_FLOAT64 = "float64 is for the reference and, on the CPU, for this backend; use float32 or lower"
_KINDS = {"full": 0, "mask": 1, "lengths": 2, "offsets": 3}  # csrc/cuda/call.cuh


class Machine(NamedTuple):
    """What the kernels run on: tensor cores or not, bytes of shared memory that a block may take, and the stream."""

    tensor_cores: bool
    shared: int
    stream: int


def unsupported(problem: Problem) -> list[str]:
    """Why the CUDA kernels can't serve the problem; the first one that they could serve builds them."""
    return beyond(problem) or unavailable(problem.device)


def beyond(problem: Problem) -> list[str]:
    """Why no GPU's CUDA kernels can serve the problem."""
    if problem.dtype == torch.float64:
        return [NO_FLOAT64]
    if max(problem.length_a, problem.length_b) > MOST_ROWS:
        return [f"the CUDA kernels take up to {MOST_ROWS} rows a side"]
    if problem.width + max(problem.width_a, problem.width_b) > MOST_NUMBERS:
        return [f"the CUDA kernels take rows of up to {MOST_NUMBERS} numbers, features and values together"]
    return []


def unavailable(device: torch.device) -> list[str]:
    """Why the CUDA kernels can't run on this GPU; the first call for one on which they can builds them."""
    if torch.version.hip is not None:
        return ["the CUDA kernels are for NVIDIA's GPUs"]
    if (capability := gpu.capability(device)) < (7, 0):
        return [f"the GPU's compute capability is {capability[0]}.{capability[1]}; the CUDA kernels need 7.0 or more"]
    reason = build_cuda.extension.reason()
    return [] if reason is None else [reason]


def forward(a: Side, b: Side, bias: Tensor | None, rule: Rule) -> Alignment:
    return forward_on(machine(a.f), a, b, bias, rule)


def backward(
    a: Side, b: Side, bias: Tensor | None, rule: Rule, saved: Alignment, grads: AlignmentGrads, bias_grad: bool
) -> OperandGrads:
    return backward_on(machine(a.f), a, b, bias, rule, saved, grads, bias_grad)


def forward_on(machine: Machine, a: Side, b: Side, bias: Tensor | None, rule: Rule) -> Alignment:
    return Alignment(*torch.ops.coalign_cuda.forward.default(*_operands(machine, a, b, bias, rule)))


def backward_on(
    machine: Machine,
    a: Side,
    b: Side,
    bias: Tensor | None,
    rule: Rule,
    saved: Alignment,
    grads: AlignmentGrads,
    bias_grad: bool,
) -> OperandGrads:
    dbias = bias.new_zeros(bias.shape, dtype=torch.float32) if bias is not None and bias_grad else None
    saved = Alignment(*(t.contiguous() for t in saved))
    arrived = (t if t is None else gpu.in_memory(t).contiguous() for t in grads)
    df_a, df_b, da, db = torch.ops.coalign_cuda.backward.default(
        *_operands(machine, a, b, bias, rule), *saved, *arrived, dbias
    )
    return OperandGrads(df_a, df_b, da, db, dbias)


def _operands(machine: Machine, a: Side, b: Side, bias: Tensor | None, rule: Rule) -> tuple[Any, ...]:
    tensors = (_rows(t) for t in (a.f, b.f, a.x, b.x))
    extents = (t if t is None else t.contiguous() for t in (a.extent, b.extent))
    bias = bias if bias is None else gpu.in_memory(bias)
    return (
        *(*tensors, *extents, _KINDS[a.kind], _KINDS[b.kind], a.length, b.length, a.pairs, bias, *rule),
        *(int(machine.tensor_cores), machine.shared, machine.stream),
    )


def _rows(t: Tensor) -> Tensor:
    """The kernels read rows of adjacent numbers, as far apart as may be."""
    t = gpu.in_memory(t)
    return t if t.stride(-1) == 1 or t.shape[-1] == 1 else t.contiguous()


def machine(f: Tensor) -> Machine:
    """What serves operands like this one."""
    tensor_cores = gpu.capability(f.device) >= (8, 0) and (f.dtype != torch.float32 or gpu.tf32_allowed())
    return Machine(tensor_cores, gpu.shared_memory(f.device), torch.cuda.current_stream(f.device).cuda_stream)
