"""Programs that leave PyTorch or Python: decompositions, ONNX under onnxruntime, AOTInductor packages."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn
from torch.export import Dim

import coalign
from coalign import DecomposableAttention, soft_align

BATCH, M, N = Dim("batch", min=1), Dim("m", min=1), Dim("n", min=1)


class Aligned(nn.Module):
    """The operator with lengths on one side and a mask on the other."""

    def forward(self, f_a, f_b, a, b, lengths_a, mask_b):
        return tuple(soft_align(f_a, f_b, a, b, lengths_a=lengths_a, mask_b=mask_b, scale=0.5, clamp=2.0))


def aligned_inputs(batch, m, n):
    torch.manual_seed(batch)
    sizes = (batch, m, 8), (batch, n, 8), (batch, m, 6), (batch, n, 4)
    lengths, mask = torch.randint(0, m + 1, (batch,)), torch.rand(batch, n) < 0.7
    return *(torch.randn(size) for size in sizes), lengths, mask


def ids(batch, m, n):
    torch.manual_seed(batch)
    return (torch.randint(1, 50, (batch, m)), torch.randint(1, 50, (batch, n)))


def exported(name):
    """A program with dynamic shapes, what it was made of, and inputs of three other shapes."""
    if name == "operator":
        rows_a, rows_b = {0: BATCH, 1: M}, {0: BATCH, 1: N}
        shapes = (rows_a, rows_b, rows_a, rows_b, {0: BATCH}, rows_b)
        module, make = Aligned(), aligned_inputs
    else:
        torch.manual_seed(0)
        module = DecomposableAttention.from_sizes(50, 6, 8, padding_idx=1).eval()
        shapes, make = (({0: BATCH, 1: M}, {0: BATCH, 1: N}),), lambda *size: (ids(*size),)
    program = torch.export.export(module, make(3, 7, 5), dynamic_shapes=shapes)
    return program, module, [make(*size) for size in ((3, 7, 5), (2, 4, 9), (1, 1, 1))]


def operators(program):
    return [str(node.target) for node in program.graph.nodes if "coalign" in str(node.target)]


def agree(call, module, inputs):
    with torch.no_grad():
        for given in inputs:
            torch.testing.assert_close(call(*given), module(*given), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["operator", "model"])
def test_decomposed_there_is_none_of_ours(name):
    program, module, inputs = exported(name)
    assert operators(program) == ["coalign.soft_align.default"]
    plain = program.run_decompositions(coalign.decompositions())
    assert operators(plain) == []
    agree(plain.module(), module, inputs)


@pytest.mark.parametrize("name", ["operator", "model"])
@pytest.mark.filterwarnings("ignore")
def test_onnx(name, tmp_path):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    import onnxruntime

    program, module, inputs = exported(name)
    file = tmp_path / "program.onnx"
    torch.onnx.export(program.run_decompositions(coalign.decompositions()), dynamo=True).save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]

    def call(*given):
        flat = given[0] if isinstance(given[0], tuple) else given
        found = session.run(None, {name: t.numpy() for name, t in zip(names, flat, strict=True)})
        tensors = tuple(map(torch.from_numpy, found))
        return tensors if len(tensors) > 1 else tensors[0]

    agree(call, module, inputs)


@pytest.mark.skipif(shutil.which("g++") is None, reason="AOTInductor needs a C++ compiler")
@pytest.mark.parametrize("ours", [True, False], ids=["with the operator", "decomposed"])
def test_aotinductor_package(ours, tmp_path):
    """With the operator in it a package runs our kernels, in a process that has imported coalign; without, anywhere."""
    program, module, inputs = exported("model")
    if not ours:
        program = program.run_decompositions(coalign.decompositions())
    file = torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "model.pt2"))
    agree(torch._inductor.aoti_load_package(file), module, inputs)
