"""What only a GPU can show of Triton's kernels and the native ones: streams, graphs, synchronisation, TF32's switch."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from coalign import DecomposableAttention, FrozenDecomposableAttention, PairBatch, soft_align
from coalign.testing import Case, assert_accurate, run
from coalign.testing.accuracy import errors
from coalign.testing.oracle import pair_by_pair

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.parametrize("name", ["triton", pytest.param("native", marks=pytest.mark.nvcc)]),
]

CASES = [Case("tile", 33, 50, h=200, d_a=100, d_b=100), Case("stream", 300, 200, h=64, d_a=64, d_b=64)]
WITH_CASES = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def step(leaves: list[Tensor], name: str, **options: Tensor) -> tuple[Tensor, ...]:
    """Outputs and gradients of a call."""
    outputs = soft_align(*leaves, return_lse=True, backend=name, **options)
    grads = torch.autograd.grad(outputs[:2], leaves, [t.detach().cos() for t in outputs[:2]])
    return *(t.detach() for t in outputs), *grads


@WITH_CASES
def test_cuda_graph(case, name):
    """Both passes, captured once and replayed on other numbers."""
    first, second = (case.but(seed=seed).operands("cuda") for seed in (0, 1))
    static = [t.clone().requires_grad_() for t in (first.f_a, first.f_b, first.a, first.b)]
    warm_up = torch.cuda.Stream()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        step(static, name)
    torch.cuda.current_stream().wait_stream(warm_up)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(static, name)
    with torch.no_grad():
        for t, value in zip(static, (second.f_a, second.f_b, second.a, second.b), strict=True):
            t.copy_(value)
    graph.replay()
    for found, expected in zip(captured, step(static, name), strict=True):
        assert torch.equal(found, expected)


@WITH_CASES
def test_waits_for_nothing(case, name):
    """Neither pass makes the processor wait for the GPU, not even to look at lengths."""
    operands = case.operands("cuda")
    leaves = list(operands.differentiable().values())
    lengths = torch.tensor([case.m, 3], device="cuda")
    step(leaves, name, lengths_a=lengths)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(leaves, name, lengths_a=lengths)
    finally:
        torch.cuda.set_sync_debug_mode(before)


def test_operands_of_another_device(name):
    """The kernels run on the operands' GPU, which need not be the current one."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    operands = CASES[0].operands("cuda:1")
    assert_accurate(run(operands, name), operands)


@WITH_CASES
def test_current_stream(case, name):
    """On a stream whose earlier work is slow, the call must wait for that work."""
    operands = case.operands("cuda")
    expected = run(operands, name)
    late = [torch.zeros_like(t) for t in (operands.f_a, operands.f_b, operands.a, operands.b)]
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        for t, value in zip(late, (operands.f_a, operands.f_b, operands.a, operands.b), strict=True):
            t.copy_(value)
        found = soft_align(*late, backend=name)
    stream.synchronize()
    assert torch.equal(found.beta, expected["beta"])
    assert torch.equal(found.alpha, expected["alpha"])


@WITH_CASES
def test_tf32_only_where_allowed(case, name):
    operands = case.operands("cuda")
    assert_accurate(run(operands, name), operands)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        found = errors(run(operands, name), pair_by_pair(operands))
    finally:
        torch.set_float32_matmul_precision(before)
    assert all(e < 2e-3 for e in found.values()), str(found)
    if torch.cuda.get_device_capability() >= (8, 0):
        assert found["beta"] > 1e-5  # tensor cores did round


class Frozen(NamedTuple):
    """A frozen model that a backend is asked for, and two batches of the same lengths."""

    model: FrozenDecomposableAttention
    first: PairBatch
    second: PairBatch

    @classmethod
    def make(cls, name: str) -> Frozen:
        torch.manual_seed(0)
        made = DecomposableAttention.from_sizes(60, 100, 200).eval().freeze(torch.bfloat16).cuda()
        made.backend = name
        lengths = [(n % 23, n % 17) for n in range(600)]
        sides = ([torch.randint(60, (pair[side],)).tolist() for pair in lengths] for side in (0, 1, 0, 1))
        a, b, other_a, other_b = sides
        return cls(made, PairBatch.from_lists(a, b).to("cuda"), PairBatch.from_lists(other_a, other_b).to("cuda"))


def test_a_frozen_model_in_a_cuda_graph(name):
    """Captured once, replayed on other words, and the bits those of a call."""
    model, first, second = Frozen.make(name)
    expected = model(second)
    model(first)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = model(first)
    first.ids_a.copy_(second.ids_a)
    first.ids_b.copy_(second.ids_b)
    graph.replay()
    assert torch.equal(captured, expected)


def test_a_frozen_model_waits_for_nothing(name):
    model, batch, _ = Frozen.make(name)
    expected = model(batch)
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = model(batch)
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert torch.equal(found, expected)
