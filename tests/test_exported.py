"""Programs that leave PyTorch or Python: decompositions, ONNX under onnxruntime, AOTInductor packages."""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn
from torch.export import Dim

import coalign
from coalign import Compare, DecomposableAttention, soft_align

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


@pytest.mark.parametrize("program", ["exported", "traced"])
@pytest.mark.filterwarnings("ignore")
def test_autocast_casts_what_a_program_hands_to_the_operator(program):
    """Linear layers give half precision there while other values stay float32: cast alike, as `soft_align` casts."""
    torch.manual_seed(0)

    class Through(nn.Linear):
        def forward(self, a, b):
            return tuple(soft_align(super().forward(a), super().forward(b), a, b))

    module, given = Through(6, 8), (torch.randn(2, 5, 6), torch.randn(2, 4, 6))
    held = torch.export.export(module, given).module() if program == "exported" else torch.jit.trace(module, given)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found, expected = held(*given), module(*given)
    for f, e in zip(found, expected, strict=True):
        assert f.dtype == e.dtype == torch.bfloat16
        assert torch.equal(f, e)


def test_the_operator_alone_checks_what_it_is_given():
    f_a, f_b, a, b, lengths, mask = aligned_inputs(2, 5, 4)

    def call(f_a=f_a, f_b=f_b, a=a, b=b, lengths=lengths, mask=mask, bias=None):
        operands = (f_a, f_b, a, b, lengths, mask, bias, None, 5, 4, 1.0, None, 0.0, 0.0, None)
        return torch.ops.coalign.soft_align.default(*operands)

    assert torch.equal(call()[0], soft_align(f_a, f_b, a, b, lengths_a=lengths, mask_b=mask).beta)
    for wrong, error, words in (
        ({"a": a.bfloat16()}, TypeError, "a must be torch.float32, like f_a"),
        ({"b": b.double()}, TypeError, "b must be torch.float32, like f_a"),
        ({"f_b": f_b[..., 1:]}, ValueError, "equally wide"),
        ({"a": a[:, 1:]}, ValueError, "a must have f_a's shape"),
        ({"lengths": lengths.float()}, TypeError, "extent_a must be"),
        ({"lengths": lengths[:1]}, TypeError, "extent_a must be"),
        ({"mask": mask[:, 1:]}, TypeError, "extent_b must be"),
        ({"bias": torch.zeros(2, 5, 4, dtype=torch.float64)}, TypeError, "bias must be"),
    ):
        with pytest.raises(error, match=words):
            call(**wrong)


@pytest.mark.parametrize("strict", [True, False])
def test_packed_sums_of_any_number_of_pairs_keep_their_gradients(strict):
    torch.manual_seed(0)
    module = Compare(6, 8).eval()

    def given(*lengths):
        offsets = torch.tensor([0, *lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        rows = [torch.randn(sum(lengths), 3, generator=torch.Generator().manual_seed(k)) for k in range(4)]
        return (*rows, offsets, offsets)

    class Sums(nn.Module):
        def __init__(self):
            super().__init__()
            self.compare = module

        def forward(self, a, b, beta, alpha, offsets_a, offsets_b):
            return self.compare(a, b, beta, alpha, offsets_a=offsets_a, offsets_b=offsets_b)

    total, pairs = Dim("total", min=2), Dim("offsets", min=3)
    shapes = (*({0: total},) * 4, {0: pairs}, {0: pairs})
    program = torch.export.export(Sums(), given(2, 3, 1), dynamic_shapes=shapes, strict=strict).module()
    for lengths in ((2, 3, 1), (4, 1, 2, 2, 1)):
        grads = []
        for call in (program, Sums()):
            rows = [t.requires_grad_() for t in given(*lengths)[:4]]
            V_a, V_b = call(*rows, *given(*lengths)[4:])
            grads.append((V_a, V_b, *torch.autograd.grad(V_a.sin().sum() + V_b.cos().sum(), rows)))
        for found, expected in zip(*grads, strict=True):
            torch.testing.assert_close(found, expected)
