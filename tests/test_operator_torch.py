"""The operator inside PyTorch: opcheck, torch.compile, torch.export, autocast; for every backend."""

from __future__ import annotations

import io
import random
from typing import Any

import pytest
import torch
from conftest import Backend
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from coalign import alignment_weights, dual_softmax, dual_softmax_matches, explain, soft_align, soft_align_packed
from coalign.testing import BUDGET, Case, Operands, error

RAGGED = Case("ragged", 5, 4, tokens_a=(5, 3), tokens_b=(1, 4), extent_a="lengths", extent_b="lengths")
CASES = [
    Case("full", 5, 4),
    Case("heads", 5, 4, batch=(2, 2), strides="heads"),
    RAGGED.but(bias="full"),
    RAGGED.but(name="masks", extent_a="mask", extent_b="mask", bias="shared"),
    RAGGED.but(name="packed", extent_a="packed", extent_b="packed"),
    Case("empty", 0, 4),
    Case("clamp and dropout", 5, 4, clamp=0.5, dropout=(0.2, 0.4)),
]
WITH_CASES = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


class Aligned(nn.Module):
    """A small module with the operator in its middle."""

    def __init__(self, backend: str | None):
        super().__init__()
        self.backend = backend
        self.f = nn.Linear(6, 8)

    def forward(self, a: Tensor, b: Tensor, lengths_a: Tensor, mask_b: Tensor) -> tuple[Tensor, Tensor]:
        beta, alpha = soft_align(
            self.f(a), self.f(b), a, b, lengths_a=lengths_a, mask_b=mask_b, scale=0.5, backend=self.backend
        )
        return torch.cat([a, beta], -1), alpha


def module_and_inputs(backend, batch: int = 2, m: int = 5, n: int = 4):
    torch.manual_seed(0)
    module = Aligned(backend.name).to(backend.device)
    a, b = torch.randn(batch, m, 6), torch.randn(batch, n, 6)
    lengths_a, mask_b = torch.randint(1, m + 1, (batch,)), torch.rand(batch, n) < 0.7
    return module, [t.to(backend.device) for t in (a, b, lengths_a, mask_b)]


def flat_arguments(operands: Operands, backend: str) -> tuple[Any, ...]:
    """The forward operator's arguments, in its schema's order."""
    case = operands.case
    extents = {name[-1]: t for name, t in operands.options.items() if name.startswith(("lengths", "mask", "offsets"))}
    bias = None if operands.bias is None else operands.bias.expand(*case.batch, case.m, case.n)
    tensors = (operands.f_a, operands.f_b, operands.a, operands.b, extents.get("a"), extents.get("b"), bias)
    shares = case.dropout if isinstance(case.dropout, tuple) else (case.dropout, case.dropout)
    return *tensors, operands.options.get("seed"), case.m, case.n, case.scale, case.clamp, *shares, backend


@WITH_CASES
def test_opcheck(case, backend):
    forward = torch.ops.coalign.soft_align.default
    operands = case.operands(backend.device)
    arguments = flat_arguments(operands, backend.name)
    torch.library.opcheck(forward, arguments)
    outputs = forward(*arguments)
    for lse_grads in (operands.upstream[2:], (None, None)):
        torch.library.opcheck(
            torch.ops.coalign.soft_align_backward.default,
            (*arguments, *outputs, *operands.upstream[:2], *lse_grads, arguments[6] is not None),
        )


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_compile(backend, dynamic):
    """One graph, forward and backward; with dynamic shapes no recompilation either."""
    torch._dynamo.reset()
    module, inputs = module_and_inputs(backend)
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic or None, backend="aot_eager")
    check_same(module, compiled, inputs)
    if dynamic:
        with torch.compiler.set_stance("fail_on_recompile"):
            check_same(module, compiled, module_and_inputs(backend, batch=3, m=7, n=6)[1])


def test_fifty_shapes_compile_twice():
    """Once for the first shape and once for all others, forward and backward."""
    torch._dynamo.reset()
    module, inputs = module_and_inputs(Backend("native", "cpu"))
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(module, fullgraph=True, backend=counter)
    draw = random.Random(0)
    for _ in range(50):
        batch, m, n = (draw.randint(2, 40) for _ in range(3))
        inputs = module_and_inputs(Backend("native", "cpu"), batch, m, n)[1]
        beta, alpha = compiled(*inputs)
        (beta.sum() + alpha.sum()).backward()
        assert beta.shape == (batch, m, 12)
    assert 1 <= counter.frame_count <= 2


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_recomputes_the_same_bits(backend, reentrant):
    module, inputs = module_and_inputs(backend)
    results = []
    for call in (module, lambda *x: checkpoint(module, *x, use_reentrant=reentrant)):
        leaves = [t.clone().requires_grad_() if t.is_floating_point() else t for t in inputs]
        outputs = call(*leaves)
        sum(o.square().sum() for o in outputs).backward()
        results.append((*outputs, *(t.grad for t in leaves[:2]), *(p.grad.clone() for p in module.parameters())))
        module.zero_grad()
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_compile_with_tensors_that_come_twice():
    torch._dynamo.reset()
    x, y = (torch.randn(2, n, 8).requires_grad_() for n in (4, 5))
    lengths, graphs = torch.tensor([3, 2]), []

    def kept(module, inputs):
        graphs.append(module.graph)
        return make_boxed_func(module.forward)

    def call(x, y, lengths):
        return soft_align(x, y, x, y, lengths_a=lengths, lengths_b=lengths)

    results = []
    for run in (call, torch.compile(call, fullgraph=True, backend=aot_autograd(fw_compiler=kept, bw_compiler=kept))):
        outputs = run(x, y, lengths)
        results.append((*outputs, *torch.autograd.grad(sum(o.sin().sum() for o in outputs), (x, y))))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other)
    targets = [[str(node.target) for node in graph.nodes if "coalign" in str(node.target)] for graph in graphs]
    assert targets == [["coalign.soft_align.default"], ["coalign.soft_align_backward.default"]]


def test_compile_packed(backend):
    torch._dynamo.reset()
    operands = RAGGED.but(extent_a="packed", extent_b="packed").operands(backend.device)

    def call(f_a, f_b, a, b):
        return soft_align_packed(f_a, f_b, a, b, **operands.options, backend=backend.name)

    arguments = list(operands.differentiable().values())
    expected = call(*arguments)
    found = torch.compile(call, fullgraph=True, backend="aot_eager")(*arguments)
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(
        torch.autograd.grad(found, arguments, operands.upstream[:2]),
        torch.autograd.grad(expected, arguments, operands.upstream[:2]),
        strict=True,
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_export(backend, strict):
    """One node of the graph, whose batch stays dynamic."""
    module, inputs = module_and_inputs(backend)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(module, tuple(inputs), dynamic_shapes=[{0: batch}] * 4, strict=strict)
    graphs = [m.graph for m in exported.graph_module.modules() if isinstance(m, torch.fx.GraphModule)]
    nodes = [n for graph in graphs for n in graph.nodes if n.target is torch.ops.coalign.soft_align.default]
    assert len(nodes) == 1
    larger = module_and_inputs(backend, batch=5)[1]
    for found, expected in zip(exported.module()(*larger), module(*larger), strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(backend, dtype):
    """float32 operands are cast as torch's own attention casts them, and their gradients come back as float32."""
    operands = RAGGED.operands(backend.device)
    leaves = operands.differentiable()
    with torch.autocast(backend.device, dtype):
        found = soft_align(**leaves, **operands.options, return_lse=True, backend=backend.name)
        attention = nn.functional.scaled_dot_product_attention(*torch.randn(3, 1, 1, 4, 8, device=backend.device))
        wide = soft_align(*(t.double() for t in leaves.values()), backend="reference")
    assert wide.beta.dtype == wide.alpha.dtype == torch.float64, "which stays as it is"
    assert found.beta.dtype == found.alpha.dtype == attention.dtype == dtype
    assert found.lse_a.dtype == torch.float32
    by_hand = {name: t.detach().to(dtype).requires_grad_() for name, t in leaves.items()}
    expected = soft_align(**by_hand, **operands.options, return_lse=True, backend=backend.name)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    upstream = [g.to(o) for g, o in zip(operands.upstream, found, strict=True)]
    gradients = torch.autograd.grad(found, list(leaves.values()), upstream)
    assert all(g.dtype == torch.float32 for g in gradients)
    for one, other in zip(gradients, torch.autograd.grad(expected, list(by_hand.values()), upstream), strict=True):
        assert torch.equal(one, other.float())


def test_compiled_autocast(backend):
    """Linear layers give half precision there while other values stay float32: cast alike, as elsewhere."""
    module, inputs = module_and_inputs(backend)
    with torch.no_grad(), torch.autocast(backend.device, torch.bfloat16):
        found, expected = (call(*inputs) for call in (torch.compile(module, backend="eager", fullgraph=True), module))
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def check_same(module: nn.Module, other, inputs: list[Tensor]) -> None:
    """Both give the same outputs, and the same gradients of the module's parameters."""
    results = []
    for call in (module, other):
        outputs = call(*inputs)
        loss = sum((o * o.detach().cos()).sum() for o in outputs)
        results.append((*outputs, *torch.autograd.grad(loss, list(module.parameters()))))
    for one, two in zip(*results, strict=True):
        assert error(two, one.detach().double().cpu()) <= BUDGET[torch.float32]


def test_dispatch_modes_see_the_operator(backend):
    """A plain call does without the operator; whoever watches operators, forward and backward, must not notice."""
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    made = [torch.randn(2, rows, w, device=backend.device) for rows, w in ((5, 8), (4, 8), (5, 3), (4, 6))]
    inputs = [t.requires_grad_() for t in made]
    plain = soft_align(*inputs, backend=backend.name)
    with Watch():
        watched = soft_align(*inputs, backend=backend.name)
        torch.autograd.grad(watched, inputs, [torch.ones_like(t) for t in watched])
    assert torch.ops.coalign.soft_align.default in seen
    assert torch.ops.coalign.soft_align_backward.default in seen
    for a, b in zip(plain, watched, strict=True):
        assert torch.equal(a, b)


def test_lengths_that_are_fake_have_no_values_to_check():
    with FakeTensorMode():
        f_a, f_b, lengths = torch.randn(2, 5, 8), torch.randn(2, 4, 8), torch.tensor([3, 4])
        given = {"lengths_a": lengths, "lengths_b": lengths}
        assert alignment_weights(f_a, f_b, **given).p.shape == (2, 5, 4)
        assert dual_softmax(f_a, f_b, **given).shape == (2, 5, 4)
        assert dual_softmax_matches(f_a, f_b, **given).partner.shape == (2, 5)
        assert "reference" in explain(f_a, f_b, f_a, f_b, **given)


@pytest.mark.parametrize("option", ["scale", "clamp"])
def test_compile_with_numbers_that_change(option):
    torch._dynamo.reset()
    inputs = [torch.randn(2, rows, w) for rows, w in ((5, 8), (4, 8), (5, 3), (4, 6))]
    compiled = torch.compile(lambda value: soft_align(*inputs, **{option: value}).beta, fullgraph=True, backend="eager")
    for value in (0.5, 0.75, 1.0, 2.0):
        assert torch.equal(compiled(value), soft_align(*inputs, **{option: value}).beta)


def test_compile_a_view_of_what_is_written_later():
    """It requires no gradient where the view is made, and does where it is aligned."""
    torch._dynamo.reset()
    x, f_b, a, b = [torch.randn(2, rows, w) for rows, w in ((5, 8), (4, 8), (5, 3), (4, 6))]
    weight = torch.randn(8, 8, requires_grad=True)

    def call():
        room = torch.zeros(2, 5, 8)
        view = room.view(2, 5, 8)
        room.copy_(x @ weight)
        return soft_align(view, f_b, a, b).beta.square().sum()

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    (found,), (expected,) = (torch.autograd.grad(c(), weight) for c in (compiled, call))
    assert expected.norm() > 0
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("made", ["exported", "exported strictly", "traced", "traced without gradients"])
def test_programs_train(made, backend):
    """They hold the operator with no soft_align around it."""
    module, inputs = module_and_inputs(backend)
    if made.startswith("exported"):
        program = torch.export.export(module, tuple(inputs), strict=made == "exported strictly").module()
    else:
        with torch.set_grad_enabled(made == "traced"):
            traced = torch.jit.trace(module, tuple(inputs))
        torch.jit.save(traced, file := io.BytesIO())
        file.seek(0)
        program = torch.jit.load(file)
    results = []
    for call in (program, module):
        loss = sum(o.square().sum() for o in call(*inputs)[:2])
        named = dict(call.named_parameters())
        results.append(torch.autograd.grad(loss, [named[name] for name in sorted(named)]))
    for found, expected in zip(*results, strict=True):
        assert expected.norm() > 0
        torch.testing.assert_close(found, expected)


def test_the_plain_operator_has_a_gradient():
    inputs = [torch.randn(2, rows, w, requires_grad=True) for rows, w in ((5, 8), (4, 8), (5, 3), (4, 6))]
    rest = (None, None, None, None, 5, 4, 1.0, None, 0.0, 0.0, None)
    results = []
    for outputs in (torch.ops.coalign.soft_align(*inputs, *rest), soft_align(*inputs)):
        loss = outputs[0].sin().sum() + outputs[1].cos().sum()
        results.append(torch.autograd.grad(loss, inputs))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("extents", [False, True], ids=["full", "lengths"])
def test_traced_programs_serve_other_sizes(extents, backend):
    """A trace holds the lengths that it saw as numbers."""

    def call(f_a, f_b, a, b, *lengths):
        options = dict(zip(("lengths_a", "lengths_b"), lengths, strict=bool(lengths)))
        found = soft_align(f_a, f_b, a, b, **options, backend=backend.name)
        return found.beta, found.alpha

    def given(m, n):
        case = RAGGED.but(m=m, n=n, tokens_a=(m, 2), tokens_b=(3, n)) if extents else Case("full", m, n)
        operands = case.operands(backend.device)
        lengths = [torch.tensor(counts, device=backend.device) for counts in ((m, 2), (3, n))]
        return (*operands.differentiable().values(), *(lengths if extents else ()))

    traced = torch.jit.trace(call, given(10, 8), check_trace=False)
    for m, n in ((10, 8), (4, 4), (20, 15)):
        inputs = given(m, n)
        outputs, expected = traced(*inputs), call(*inputs)
        for found, right in zip(outputs, expected, strict=True):
            assert torch.equal(found, right)
        upstream = [torch.randn_like(t) for t in expected]
        for found, right in zip(
            *(torch.autograd.grad(o, inputs[:4], upstream) for o in (outputs, expected)), strict=True
        ):
            assert torch.equal(found, right)


@pytest.mark.parametrize("biased", [False, True], ids=["four operands", "a bias"])
def test_lazily_negated_tensors(biased, backend):
    """z.conj().imag is one: what its memory holds has the other sign."""
    results = []
    for view in (torch._neg_view, torch.neg):
        torch.manual_seed(0)
        sizes = (5, 8), (4, 8), (5, 3), (4, 6)
        leaves = [torch.randn(2, *size, device=backend.device, requires_grad=True) for size in sizes]
        bias = view(torch.randn(2, 5, 4, device=backend.device)) if biased else None
        outputs = soft_align(*map(view, leaves), bias=bias, backend=backend.name)
        upstream = [view(torch.randn_like(o)) for o in (outputs.beta, outputs.alpha)]
        assert all(t.is_neg() == (view is torch._neg_view) for t in upstream)
        results.append((*outputs[:2], *torch.autograd.grad((outputs.beta, outputs.alpha), leaves, upstream)))
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("arrive", [False, True], ids=["operands", "gradients"])
@pytest.mark.parametrize("options", [{}, {"scale": 0.5}, {"bias": True}], ids=str)
def test_zeros_that_have_no_memory(options, arrive, backend):
    """PyTorch lays them out, with strides of 0, when an operator of its own reads them; kernels are given addresses."""
    leaves = [torch.randn(2, n, 3, device=backend.device, requires_grad=True) for n in (40, 50, 40, 50)]
    zeros = [torch._efficientzerotensor(t.shape, device=backend.device) for t in leaves]
    if "bias" in options:
        options = {"bias": torch._efficientzerotensor((2, 40, 50), device=backend.device)}
    given = leaves if arrive else [leaves[0], zeros[1], *leaves[2:]]
    beta, alpha = soft_align(*given, **options, backend=backend.name)
    if arrive:
        for t in torch.autograd.grad((beta, alpha), leaves, zeros[2:]):
            assert torch.equal(t, torch.zeros_like(t))
    else:
        for found, values in ((beta, leaves[3]), (alpha, leaves[2])):
            assert torch.allclose(found, values.mean(1, keepdim=True).expand_as(found), atol=1e-6)


@pytest.mark.parametrize(
    ("offsets_a", "offsets_b", "said"),
    [
        ([0, 3, 6, 9], [0, 9], r"extent_b must be \(4,\)"),
        ([0, 9], [0, 3, 9], r"extent_b must be \(2,\)"),
        ([], [], "extent_a and extent_b must be the offsets"),
        (None, [0, 9], "extent_a and extent_b must be the offsets"),
        ([True] * 9, [True] * 9, "extent_a and extent_b must be the offsets"),
        ([[0, 9]], [[0, 9]], "extent_a and extent_b must be the offsets"),
    ],
)
def test_the_plain_operator_refuses_offsets_that_are_none(offsets_a, offsets_b, said, backend):
    """Kernels would read behind them; programs that were traced hold none of soft_align_packed's checks."""
    operands = [torch.randn(9, w, device=backend.device) for w in (4, 4, 3, 5)]
    extents = [
        None if o is None else torch.tensor(o, device=backend.device, dtype=torch.bool if True in o else torch.int32)
        for o in (offsets_a, offsets_b)
    ]
    with pytest.raises(TypeError, match=said):
        torch.ops.coalign.soft_align(*operands, *extents, None, None, 9, 9, 1.0, None, 0.0, 0.0, backend.name)
