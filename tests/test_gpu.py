"""What only a GPU can show: streams, graphs, synchronisation, and that the fused backends agree with one another.

Values and gradients on a GPU are the business of tests/test_operator*.py, which run there too.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from coalign import soft_align
from coalign.testing import BUDGET, Case, error, run

pytestmark = pytest.mark.gpu

FUSED = pytest.mark.parametrize("name", ["triton", "native"])
SIZES = pytest.mark.parametrize("case", [
    Case("tile", 50, 40, h=200, d_a=100, d_b=100, batch=(8,), tokens_a=(50, 3, 0, 17, 20, 50, 9, 1), extent_a="lengths"),
    Case("stream", 300, 200, h=200, d_a=100, d_b=100, tokens_b=(200, 77), extent_b="lengths"),
], ids=lambda case: case.name)  # fmt: skip


@SIZES
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fused_backends_agree(case, dtype):
    operands = case.but(dtype=dtype).operands("cuda")
    native, triton = run(operands, "native"), run(operands, "triton")
    for tensor, found in native.items():
        assert error(found, triton[tensor].double().cpu()) <= 2 * BUDGET[dtype], tensor


def call(case: Case, name: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Leaves on the GPU, and the options of a call without padding that holds NaN."""
    operands = case.operands("cuda")
    leaves = {letter: t.nan_to_num(0, 0, 0).requires_grad_() for letter, t in operands.differentiable().items()}
    return leaves, {**operands.options, "backend": name}


def step(leaves: dict[str, Tensor], options: dict) -> tuple[Tensor, ...]:
    beta, alpha = soft_align(**leaves, **options)
    grads = torch.autograd.grad(beta.square().sum() + alpha.square().sum(), list(leaves.values()))
    return beta.detach(), alpha.detach(), *grads


@FUSED
@SIZES
def test_cuda_graph(case, name):
    """Captured once, both passes are replayed for other inputs."""
    leaves, options = call(case, name)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # builds, loads and compiles whatever the capture must not
        step(leaves, options)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(leaves, options)
    with torch.no_grad():
        for t in leaves.values():
            t.mul_(0.5)
    graph.replay()
    for found, expected in zip(captured, step(leaves, options), strict=True):
        assert torch.equal(found, expected)


@FUSED
@SIZES
def test_waits_for_nothing(case, name):
    """No call makes the processor wait for the GPU."""
    leaves, options = call(case, name)
    step(leaves, options)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(leaves, options)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@FUSED
@SIZES
def test_current_stream(case, name):
    """The kernels run after what was put on the stream before them, and before what comes after."""
    leaves, options = call(case, name)
    expected = step(leaves, options)
    inputs = [t.detach().clone() for t in leaves.values()]
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side), torch.no_grad():
        for t in leaves.values():
            t.zero_()
        torch.cuda._sleep(50_000_000)  # clock ticks: longer than the launches take
        for t, value in zip(leaves.values(), inputs, strict=True):
            t.copy_(value)
    with torch.cuda.stream(side):
        found = [t.clone() for t in step(leaves, options)]
    side.synchronize()
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


@FUSED
def test_operands_of_another_device(name):
    """The kernels run on the operands' GPU, which need not be the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    operands = Case("second", 7, 5).operands("cuda:1")
    with torch.cuda.device(0):
        found = run(operands, name)
    assert all(t.device == torch.device("cuda:1") and t.isfinite().all() for t in found.values())
