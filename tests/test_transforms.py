"""torch.func and forward mode over the operator: vmap, grad, jacrev, jvp and what they make together."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx

from coalign import soft_align, soft_align_packed
from coalign.testing import BUDGET, Case, error

RAGGED = Case("ragged", 5, 4, batch=(3, 2), tokens_a=(5, 3, 1, 0, 2, 5), tokens_b=(1, 4, 2, 3, 4, 0))
CASES = [
    Case("one pair each", 5, 4, batch=(3,)),
    Case("batched pairs", 5, 4, batch=(3, 2), bias="full"),
    Case("batched heads", 5, 4, batch=(3, 2, 2)),
    RAGGED.but(name="lengths", extent_a="lengths", extent_b="lengths"),
    RAGGED.but(name="masks and one bias", extent_a="mask", extent_b="mask", bias="shared"),
    Case("no rows", 0, 4, batch=(3,)),
]
WITH_CASES = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def mapped(operands):
    """The operands of a case, which dimension of each vmap takes, and the call."""
    tensors = operands.differentiable() | {k: v for k, v in operands.options.items() if k != "scale"}
    in_dims = {name: None if name == "bias" and operands.case.bias == "shared" else 0 for name in tensors}
    return tensors, in_dims


@WITH_CASES
def test_vmap_is_a_batch_dimension(case, backend):
    """The same bits, forward and backward, from the same backend: no loop and no other formula."""
    operands = case.operands(backend.device)
    tensors, in_dims = mapped(operands)
    leaves = list(operands.differentiable())
    fixed = {"scale": case.scale, "return_lse": True, "backend": backend.name}

    def call(t):
        return tuple(soft_align(**t, **fixed))

    results = []
    for outputs in (vmap(call, (in_dims,))(tensors), call(tensors)):
        gradients = torch.autograd.grad(outputs, [tensors[n] for n in leaves], operands.upstream)
        results.append((*outputs, *gradients))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_vmap_of_the_plain_operator(backend):
    """Over any dimension, with operands that all calls share."""
    f_a, f_b, a, b = (torch.randn(s, device=backend.device) for s in ((2, 5, 3, 8), (2, 4, 8), (2, 5, 3, 6), (2, 4, 7)))
    op = torch.ops.coalign.soft_align.default

    def call(f_a, f_b, a, b):
        return op(f_a, f_b, a, b, None, None, None, None, 5, 4, 0.5, None, 0.0, 0.0, backend.name)

    found = vmap(call, (2, None, 2, None))(f_a, f_b, a, b)
    for i in range(3):
        for one, other in zip(found, call(f_a[:, :, i], f_b, a[:, :, i], b), strict=True):
            assert torch.equal(one[i], other)


def test_vmap_of_packed_pairs(backend):
    case = Case("packed", 5, 4, batch=(2,), tokens_a=(5, 2), tokens_b=(1, 4), extent_a="packed", extent_b="packed")
    many = [case.but(seed=seed).operands(backend.device) for seed in range(4)]  # not as many as there are offsets
    leaves = {n: torch.stack([getattr(o, n) for o in many]) for n in ("f_a", "f_b", "a", "b")}
    offsets = {n: many[0].options[n] for n in ("offsets_a", "offsets_b")}
    fixed = {"max_length_a": 5, "max_length_b": 4, "backend": backend.name}
    found = vmap(lambda t: tuple(soft_align_packed(**t, **offsets, **fixed)))(leaves)
    for i, operands in enumerate(many):
        alone = soft_align_packed(operands.f_a, operands.f_b, operands.a, operands.b, **offsets, **fixed)
        for one, other in zip(found, alone, strict=True):
            assert torch.equal(one[i], other)


@pytest.mark.parametrize(
    ("second", "found"), [([0, 1, 4], "start at 0 and end at 4"), ([1, 1, 6], "start at 1 and end at 6")]
)
def test_mapped_offsets_that_do_not_fit(second, found):
    """A call's rows never become another's."""
    operands = [torch.randn(2, 6, 4) for _ in range(4)]
    offsets_a, offsets_b = torch.tensor([[0, 2, 6], second]).int(), torch.tensor([0, 3, 6]).int()

    def mapped(*operands):
        return vmap(lambda *given: soft_align_packed(*given, offsets_b, 6, 6).beta)(*operands, offsets_a).sum()

    for call in (mapped, grad(mapped)):
        with pytest.raises(ValueError, match=f"offsets_a must start at 0 and end at 6.* mapped call 1 {found}"):
            call(*operands)


def pair(device="cpu", dtype=torch.float64):
    torch.manual_seed(0)
    tensors = [torch.randn(s, device=device, dtype=dtype) for s in ((3, 2), (4, 2), (3, 2), (4, 3))]
    return *tensors, torch.randn(3, 4, device=device, dtype=dtype)


def call_with(backend=None, **options):
    def call(f_a, f_b, a, b, bias):
        return tuple(soft_align(f_a, f_b, a, b, bias=bias, scale=0.7, return_lse=True, backend=backend, **options))

    return call


EXTENTS = [{}, {"lengths_a": torch.tensor(2)}, {"mask_b": torch.tensor([True, False, True, True])}]


@pytest.mark.parametrize("options", EXTENTS, ids=["full", "lengths", "mask"])
def test_jacobians_agree(options):
    """Reverse mode mapped, forward mode mapped, and rows taken one by one outside torch.func."""
    inputs, call = pair(), call_with(**options)
    finite = [t > -torch.inf for t in call(*inputs)]  # an LSE of -inf is no function of anything

    def outputs(*tensors):
        return tuple(t.where(k, 0) for t, k in zip(call(*tensors), finite, strict=True))

    every = tuple(range(5))
    by_rows = torch.autograd.functional.jacobian(outputs, inputs)
    for found in (jacrev(outputs, every)(*inputs), jacfwd(outputs, every)(*inputs)):
        for one, other in zip(found, by_rows, strict=True):
            for x, y in zip(one, other, strict=True):
                assert torch.allclose(x, y, rtol=1e-9, atol=1e-12)


def test_hessian_against_plain_pytorch():
    inputs = pair()

    def loss(call):
        return lambda f_a: sum(t.sin().sum() for t in call(f_a, *inputs[1:]))

    def plain(f_a, f_b, a, b, bias):
        e = 0.7 * f_a @ f_b.mT + bias
        return e.softmax(-1) @ b, e.softmax(-2).mT @ a, e.logsumexp(-1), e.logsumexp(-2)

    expected = hessian(loss(plain))(inputs[0])
    assert torch.allclose(hessian(loss(call_with()))(inputs[0]), expected, rtol=1e-9, atol=1e-12)
    assert torch.allclose(jacrev(jacrev(loss(call_with())))(inputs[0]), expected, rtol=1e-9, atol=1e-12)
    assert expected.abs().max() > 0.01


def test_gradient_of_each_sample(backend):
    """vmap over grad, as differentially private training and the like do it."""
    inputs = [torch.stack([t, -t, 2 * t]) for t in pair(backend.device, torch.float32)]

    def loss(*tensors):
        return sum(t.sin().sum() for t in call_with(backend.name)(*tensors))

    found = vmap(grad(loss, argnums=tuple(range(5))))(*inputs)
    for i in range(3):
        alone = [t[i].clone().requires_grad_() for t in inputs]
        for one, other in zip(found, torch.autograd.grad(loss(*alone), alone), strict=True):
            assert error(one[i], other.double().cpu()) <= BUDGET[torch.float32]


@pytest.mark.parametrize("way", ["func", "dual numbers"])
def test_forward_mode_against_finite_differences(way, backend):
    inputs = pair(backend.device, torch.float32)
    tangents = [torch.randn_like(t) for t in inputs]
    call = call_with(backend.name)
    if way == "func":
        outputs, found = jvp(call, inputs, tuple(tangents))
    else:
        with forward_ad.dual_level():
            duals = call(*(forward_ad.make_dual(t, g) for t, g in zip(inputs, tangents, strict=True)))
            outputs, found = zip(*(forward_ad.unpack_dual(t) for t in duals), strict=True)
    wide = [t.double() for t in inputs]
    step = 1e-6
    either_side = [call_with()(*(t + s * g for t, g in zip(wide, tangents, strict=True))) for s in (step, -step)]
    for one, up, down in zip(found, *either_side, strict=True):
        assert error(one, ((up - down) / (2 * step)).cpu()) <= 1e-5
    for one, other in zip(outputs, call_with()(*wide), strict=True):
        assert error(one, other.cpu()) <= BUDGET[torch.float32]


def test_a_wrong_backend_is_refused_in_forward_mode():
    inputs = pair()
    with pytest.raises(ValueError, match="is no backend"):
        jvp(call_with("cuda"), inputs, inputs)


def test_wrong_lengths_are_refused_in_forward_mode():
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(t, torch.ones_like(t)).unsqueeze(0) for t in pair()[:4]]
        with pytest.raises(ValueError, match="lengths_a must lie between 0 and 3"):
            soft_align(*duals, lengths_a=torch.tensor([4]))
    inputs = pair()
    with pytest.raises(ValueError, match="lengths_a must lie between 0 and 3"):
        jvp(call_with(lengths_a=torch.tensor(4)), inputs, inputs)


def arrived(beta, alpha):
    """A number to which padding's rows bring nothing, but NaN on their way back."""
    total = 0
    for found, count in ((beta, 2), (alpha, 3)):
        padding = (torch.arange(found.shape[-2]) >= count).unsqueeze(-1)
        total += torch.where(
            padding, 0.0, found * torch.ones_like(padding, dtype=found.dtype).masked_fill(padding, torch.nan)
        ).sum()
    return total


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("way", ["eager", "vmap", "grad of vmap", "grad of jvp", "vmap in forward mode"])
def test_nan_arriving_for_padding_stays_there(way, dropout):
    inputs = [torch.randn(3, 2, *s, requires_grad=True) for s in ((4, 3), (5, 3), (4, 2), (5, 2))]
    options = {"lengths_a": torch.tensor(2), "lengths_b": torch.tensor(3), "dropout": dropout, "seed": torch.tensor(1)}

    def call(*t):
        return tuple(soft_align(*t, **options))

    def mapped(*t):
        return arrived(*vmap(call)(*t))

    def along(*t):
        return jvp(lambda *u: arrived(*call(*u)), t, t)[1]

    if way in ("grad of vmap", "grad of jvp"):
        found = grad(mapped if way == "grad of vmap" else along, (0, 1, 2, 3))(*inputs)
    else:
        with forward_ad.dual_level() if way == "vmap in forward mode" else nullcontext():
            found = torch.autograd.grad(arrived(*call(*inputs)) if way == "eager" else mapped(*inputs), inputs)
    assert all(gradient.isfinite().all() for gradient in found)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_of_nothing(dropout):
    f, x = torch.randn(3, 2, 0, 4, requires_grad=True), torch.randn(3, 2, 5, 4, requires_grad=True)

    def call(f, x):
        return soft_align(f, x, f, x, dropout=dropout, seed=torch.tensor(1)).alpha

    outputs = [vmap(call)(f, x)]
    with forward_ad.dual_level():
        outputs.append(call(f, x))
    for alpha in outputs:
        assert not any(gradient.any() for gradient in torch.autograd.grad(alpha.sum(), (f, x)))


def test_forward_mode_of_nothing():
    f, x = torch.randn(2, 0, 3), torch.randn(2, 4, 3)
    outputs, tangents = jvp(lambda f, x: tuple(soft_align(f, x, f, x)), (f, x), (f, x))
    assert all(t.shape == o.shape and not t.any() for t, o in zip(tangents, outputs, strict=True))


COMPILED = {
    "grad": lambda f: grad(lambda t: f(t).sin().sum()),
    "jacrev": lambda f: jacrev(lambda t: f(t).sum((0, 1))),
    "jvp": lambda f: lambda t: jvp(f, (t,), (t.cos(),))[1],
    "jacfwd": lambda f: jacfwd(lambda t: f(t).sum((0, 1))),
    "grad of grad": lambda f: grad(lambda t: grad(lambda u: f(u).sin().sum())(t).cos().sum()),
    "grad of vmap": lambda f: grad(lambda t: vmap(f)(t.unsqueeze(0)).sin().sum()),
}


def test_functionalize_alone_and_among_others():
    inputs = tuple(t.unsqueeze(0).requires_grad_() for t in pair())

    def first(*t):
        return call_with()(*t)[0]

    def total(*t):
        return first(*t).sin().sum()

    truth, gradient = first(*inputs), torch.autograd.grad(total(*inputs), inputs[0])[0]
    assert torch.equal(functionalize(first)(*inputs), truth)
    assert torch.equal(torch.autograd.grad(functionalize(total)(*inputs), inputs[0])[0], gradient)
    program = make_fx(functionalize(first))(*inputs)
    assert "coalign.soft_align.default" in program.code
    assert torch.equal(program(*inputs), truth)
    for call, expected in (
        (functionalize(grad(total)), gradient),
        (grad(functionalize(total)), gradient),
        (functionalize(vmap(first)), truth),
        (vmap(functionalize(first)), truth),
    ):
        torch.testing.assert_close(call(*(t.detach() for t in inputs)), expected)


@pytest.mark.parametrize("name", COMPILED)
def test_transforms_inside_a_compiled_function(name):
    """What a tensor under a transform says of requires_grad while it is traced is not so: derivatives were 0."""
    f_a, f_b, a, b = pair()[:4]
    derived = COMPILED[name](lambda t: soft_align(t, f_b, a, b).beta)
    torch._dynamo.reset()
    found, expected = torch.compile(derived, fullgraph=True, backend="eager")(f_a), derived(f_a)
    assert expected.norm() > 0
    torch.testing.assert_close(found, expected)
