"""The operator as PyTorch sees it: two torch.library operators and the gradient that joins them.

`coalign::soft_align` and `coalign::soft_align_backward` hide everything a backend does from tracers: a
compiled or exported graph holds one node a pass, and the backend is chosen when that node runs. An operand's
`extent` says which rows are tokens (see `Side`).

The gradient of an eager call is an autograd.Function around the plain operators, because a call through
torch.library's register_autograd costs the caller a quarter of the time: see CONTRIBUTING.md. The operator has that
one too, for programs that hold it without `soft_align` around it: exported and traced ones.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import autocast, dispatch, reference, transforms
from .checks import check_sides
from .names import NAMESPACE
from .problem import PLAIN, Alignment, AlignmentGrads, OperandGrads, Problem, Rule, Side, sum_dtype

TENSORS, OPERANDS = 8, 15  # of what `flat` gives, so many may be tensors
_OPERANDS = (
    "Tensor f_a, Tensor f_b, Tensor a, Tensor b, Tensor? extent_a, Tensor? extent_b, Tensor? bias, "
    "Tensor? seed, SymInt length_a, SymInt length_b, float scale, float? clamp, float dropout_a, float dropout_b, "
    "str? backend"
)
_library = torch.library.Library(NAMESPACE, "DEF")
_library.define(
    f"soft_align({_OPERANDS}) -> (Tensor beta, Tensor alpha, Tensor lse_a, Tensor lse_b)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    f"soft_align_backward({_OPERANDS}, Tensor beta, Tensor alpha, Tensor lse_a, Tensor lse_b, "
    "Tensor grad_beta, Tensor grad_alpha, Tensor? grad_lse_a, Tensor? grad_lse_b, bool bias_grad) "
    "-> (Tensor grad_f_a, Tensor grad_f_b, Tensor grad_a, Tensor grad_b, Tensor grad_bias)",
    tags=(torch.Tag.pt2_compliant_tag,),
)

soft_align_operator = getattr(torch.ops, NAMESPACE).soft_align.default
_backward_operator = getattr(torch.ops, NAMESPACE).soft_align_backward.default


# fmt: off
def align(
    a: Side, b: Side, bias: Tensor | None = None, rule: Rule = PLAIN, backend: str | None = None
) -> Alignment:
    # fmt: on
    """Align two checked sides; with a gradient where one is needed.

    Sides are 3-d or 4-d when padded and 2-d when packed; bias is None or broadcasts to (*batch, m, n).
    """
    transforming, call = transforms.transforming(), (a, b, bias, rule, backend)
    if torch.compiler.is_compiling():
        if transforming or transforms.forward_mode():
            return _by_reference(*call)
        # Not asking requires_grad, for what a tensor says of it while it is traced may be no longer, or not yet, so.
        # An exported program would hold what is inside a Function under no_grad: it takes the operator's own gradient.
        recorded = torch.is_grad_enabled() and not torch.compiler.is_exporting()
        return Alignment(*_SoftAlign.apply(*_apart(flat(*call)))) if recorded else _forward(*call)
    if traced():
        return _forward(*call)  # a trace would hold a Function as a call of Python
    if transforms.forward_mode() or (transforming and rule.seed is not None):
        return _by_reference(*call)
    if transforming and transforms.functionalizing():
        return (_forward if transforms.alone() else _by_reference)(*call)
    if transforming:
        return Alignment(*_Transformed.apply(*flat(*call)))
    if records() and any(t is not None and t.requires_grad for t in (a.f, b.f, a.x, b.x, bias)):
        return Alignment(*_SoftAlign.apply(*flat(*call)))
    return _forward(*call)


def records() -> bool:
    """Whether an eager call is recorded, to be taken back."""
    return torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


def _apart(operands: tuple[Any, ...]) -> tuple[Any, ...]:
    """The operands, with views of those that come twice: compilers take no tensor twice."""
    apart: list[Any] = []
    for t in operands:
        apart.append(t.view_as(t) if isinstance(t, Tensor) and any(t is other for other in apart) else t)
    return tuple(apart)


def _forward(a: Side, b: Side, bias: Tensor | None, rule: Rule, backend: str | None) -> Alignment:
    bias = _expanded(bias, a, b)
    if unobserved((*a, *b, bias, rule.seed)):
        return _soft_align(a, b, bias, rule, backend)
    return Alignment(*soft_align_operator(*flat(a, b, bias, rule, backend)))


# fmt: off
def _backward(
    a: Side, b: Side, bias: Tensor | None, rule: Rule, backend: str | None,
    saved: Alignment, grads: AlignmentGrads, bias_grad: bool,
) -> OperandGrads:
    # fmt: on
    bias = _expanded(bias, a, b)
    if unobserved((*a, *b, bias, rule.seed, *saved, *grads)):
        return _soft_align_backward(a, b, bias, rule, backend, saved, grads, bias_grad)
    return OperandGrads(
        *_backward_operator(
            *flat(a, b, bias, rule, backend), *saved, *grads, bias_grad
        )
    )


# Absent from some future PyTorch, it leaves every call to the operator, which is always right.
_modes = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)
traced = getattr(torch._C, "_get_tracing_state", torch.jit.is_tracing)  # the latter takes six times as long


def unobserved(arguments: tuple[Any, ...]) -> bool:
    """Whether nothing looks at operators (a tracer, a dispatch mode, a function transform, a tensor subclass), so
    that what the operator would do can be done without the operator: a fifth of a small call's time on the CPU."""
    return not torch.compiler.is_compiling() and no_modes() and _PLAIN.issuperset(map(type, arguments))


def no_modes() -> bool:
    """Whether no dispatch mode, no function transform and no torch.jit.trace is at work."""
    return _modes() == 0 and not traced() and not transforms.transforming()


_PLAIN = frozenset({Tensor, torch.nn.Parameter, type(None), int})


class _SoftAlign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *operands: Any) -> Alignment:
        outputs = _forward(*sides(*operands))
        ctx.save_for_backward(*operands[:TENSORS], *outputs)
        ctx.rest = operands[TENSORS:]
        ctx.set_materialize_grads(False)
        return outputs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        outputs = Alignment(*saved[TENSORS:])
        return gradient((*saved[:TENSORS], *ctx.rest), outputs, grads, ctx.needs_input_grad)


def gradient(
    operands: tuple[Any, ...], outputs: Alignment, grads: tuple[Tensor | None, ...], needed: tuple[bool, ...]
) -> tuple[Tensor | None, ...]:
    """What arrives for the outputs, None where nothing does, taken back to the operands of `flat`."""
    if all(g is None for g in grads):
        return (None,) * len(operands)
    dbeta, dalpha, dlse_a, dlse_b = grads
    dbeta = torch.zeros_like(outputs.beta) if dbeta is None else dbeta
    dalpha = torch.zeros_like(outputs.alpha) if dalpha is None else dalpha
    arrived = _of_aligned(AlignmentGrads(dbeta, dalpha, dlse_a, dlse_b), outputs)
    if torch.is_grad_enabled():  # create_graph=True: the gradient needs a gradient of its own
        return _differentiable_backward(operands, arrived, needed)
    bias = operands[6]
    bias_grad = bias is not None and needed[6]
    if not torch.compiler.is_compiling() and (transforms.batched(arrived) or transforms.forward_mode()):
        a, b, _, rule, _ = sides(*operands)
        found = reference.backward(a, b, bias, rule, outputs, arrived, bias_grad)
    else:
        found = _backward(*sides(*operands), outputs, arrived, bias_grad)
    dbias = _summed(found.bias, bias) if bias_grad and found.bias is not None else None
    return found.f_a, found.f_b, found.a, found.b, None, None, dbias, *(None,) * 8


def _of_aligned(grads: AlignmentGrads, outputs: Alignment) -> AlignmentGrads:
    """What arrives, but 0 for LSEs where there was nothing to align with: NaN there is no other's."""
    dlse_a, dlse_b = (
        None if grad is None else grad.masked_fill(lse == -torch.inf, 0)
        for grad, lse in ((grads.lse_a, outputs.lse_a), (grads.lse_b, outputs.lse_b))
    )
    return AlignmentGrads(grads.beta, grads.alpha, dlse_a, dlse_b)


def _summed(whole: Tensor, bias: Tensor) -> Tensor:
    """The gradient of a bias from that of what it was broadcast to: summed before it is rounded to the bias' own dtype,
    over the first dimension last, as torch.func does where that dimension is mapped: the same bits."""
    kept = (1,) * (whole.ndim - bias.ndim) + tuple(bias.shape)
    return whole.sum_to_size(whole.shape[0], *kept[1:]).sum_to_size(bias.shape).to(bias.dtype)


class _Transformed(torch.autograd.Function):
    """The same for torch.func, which asks for another signature; see `transforms`."""

    @staticmethod
    def forward(*operands: Any) -> tuple[Tensor, ...]:
        return tuple(_forward(*sides(*operands)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _keep_for_backward(ctx, inputs, output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        saved = ctx.saved_tensors
        a, b, bias, rule, _ = sides(*saved[:TENSORS], *ctx.rest)
        outputs = Alignment(*saved[TENSORS:])
        arrived = _of_aligned(AlignmentGrads(*grads), outputs)
        found = reference.backward(a, b, bias, rule, outputs, arrived, bias is not None)
        dbias = None if bias is None or found.bias is None else found.bias.sum_to_size(bias.shape).to(bias.dtype)
        return found.f_a, found.f_b, found.a, found.b, None, None, dbias, *(None,) * 8

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *operands: Any) -> Any:
        return transforms.fold(lambda *folded: align(*sides(*folded)), info, in_dims, *operands)


def _by_reference(a: Side, b: Side, bias: Tensor | None, rule: Rule, backend: str | None) -> Alignment:
    """What PyTorch itself can transform in any way."""
    dispatch.requested(backend)
    check_extents(a, b)
    return reference.forward(a, b, bias, rule)


def _expanded(bias: Tensor | None, a: Side, b: Side) -> Tensor | None:
    """The bias broadcast to (*batch, m, n), as a view."""
    if bias is None or (bias.ndim == a.f.ndim and bias.shape == (*a.f.shape[:-1], b.f.shape[-2])):
        return bias
    return bias.expand(*a.f.shape[:-1], b.f.shape[-2])


def _differentiable_backward(
    operands: tuple[Any, ...], grads: tuple[Tensor | None, ...], needed: tuple[bool, ...]
) -> tuple[Any, ...]:
    """The same gradient through the reference, which PyTorch can differentiate again.

    Of aliases: where one operand was made of another, the way back to that would go through the caller's graph too.
    """
    operands = tuple(t.view_as(t) if n else t for t, n in zip(operands, needed, strict=True))
    a, b, bias, rule, _ = sides(*operands)
    outputs = reference.forward(a, b, bias, rule)
    inputs = [t for t, n in zip(operands, needed, strict=True) if n]
    pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
    if not pairs:
        return (None,) * len(operands)
    found = iter(
        torch.autograd.grad([o for o, _ in pairs], inputs, [g for _, g in pairs], create_graph=True, allow_unused=True)
    )
    return tuple(next(found) if n else None for n in needed)


# fmt: off
def flat(a: Side, b: Side, bias: Tensor | None, rule: Rule, backend: str | None) -> tuple[Any, ...]:
    """The operators' operands in their order, which only this function and the next one know."""
    return (
        a.f, b.f, a.x, b.x, a.extent, b.extent, bias, rule.seed, a.length, b.length,
        rule.scale, rule.clamp, rule.dropout_a, rule.dropout_b, backend,
    )


def sides(
    f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor, extent_a: Tensor | None, extent_b: Tensor | None,
    bias: Tensor | None, seed: Tensor | None, length_a: int, length_b: int,
    scale: float, clamp: float | None, dropout_a: float, dropout_b: float, backend: str | None,
) -> tuple[Side, Side, Tensor | None, Rule, str | None]:
    """What the operators' operands are. Padded sides' lengths are their shapes', of which a traced program holds those
    that it was traced with."""
    rule = Rule(scale, clamp, dropout_a, dropout_b, seed)
    if f_a.ndim != 2:
        length_a, length_b = f_a.shape[-2], f_b.shape[-2]
    return Side(f_a, a, extent_a, length_a), Side(f_b, b, extent_b, length_b), bias, rule, backend
# fmt: on


def _soft_align(a: Side, b: Side, bias: Tensor | None, rule: Rule, name: str | None) -> Alignment:
    backend = dispatch.choose(Problem.of(a, b, bias), name)
    if (a.extent is not None or b.extent is not None) and not dispatch.extents_fit(backend, a, b):
        check_extents(a, b)
    if _nothing_to_align(a, b):
        beta, alpha, lse_a, lse_b = _empty_alignment(a, b)
        return Alignment(beta.zero_(), alpha.zero_(), lse_a.fill_(-torch.inf), lse_b.fill_(-torch.inf))
    return backend.forward(a, b, bias, rule)


# fmt: off
def _soft_align_backward(
    a: Side, b: Side, bias: Tensor | None, rule: Rule, name: str | None,
    saved: Alignment, grads: AlignmentGrads, bias_grad: bool,
) -> OperandGrads:
    # fmt: on
    backend = dispatch.choose(Problem.of(a, b, bias, backward=True), name)
    if _nothing_to_align(a, b):
        return OperandGrads(*(t.zero_() for t in _empty_operand_grads(a, b, bias, bias_grad)))
    return backend.backward(a, b, bias, rule, saved, grads, bias_grad)


def _registered(*operands: Any) -> tuple[Tensor, ...]:
    check_sides(*sides(*operands)[:3])
    return tuple(_soft_align(*sides(*operands)))


def _autocast(kind: str, *operands: Any) -> tuple[Tensor, ...]:
    """The operator under autocast, in programs that hold it without `soft_align`, which casts what it is given."""
    operands = (*autocast.cast(operands[:4]), *operands[4:])
    with autocast.off(kind):
        found: tuple[Tensor, ...] = soft_align_operator(*operands)
    return found


def _registered_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *given, bias_grad = arguments
    operands, saved, grads = given[:OPERANDS], given[OPERANDS:-4], given[-4:]
    check_sides(*sides(*operands)[:3])
    *found, dbias = _soft_align_backward(*sides(*operands), Alignment(*saved), AlignmentGrads(*grads), bias_grad)
    return *found, operands[0].new_empty(0) if dbias is None else dbias


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:TENSORS], *output)
    ctx.rest = inputs[TENSORS:]


def _fake_soft_align(*operands: Any) -> tuple[Tensor, ...]:
    a, b, *_ = sides(*operands)
    return _empty_alignment(a, b)


def _fake_soft_align_backward(*arguments: Any) -> tuple[Tensor, ...]:
    a, b, bias, *_ = sides(*arguments[:OPERANDS])
    return _empty_operand_grads(a, b, bias, arguments[-1])


def _empty_alignment(a: Side, b: Side) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        a.x.new_empty(*a.f.shape[:-1], b.x.shape[-1]),
        b.x.new_empty(*b.f.shape[:-1], a.x.shape[-1]),
        a.f.new_empty(a.f.shape[:-1], dtype=sum_dtype(a.f)),
        b.f.new_empty(b.f.shape[:-1], dtype=sum_dtype(a.f)),
    )


def _empty_operand_grads(a: Side, b: Side, bias: Tensor | None, bias_grad: bool) -> tuple[Tensor, ...]:
    dbias = a.f.new_empty(0) if bias is None or not bias_grad else bias.new_empty(bias.shape, dtype=sum_dtype(a.f))
    return *(t.new_empty(t.shape) for t in (a.f, b.f, a.x, b.x)), dbias


def _nothing_to_align(a: Side, b: Side) -> bool:
    return a.f.numel() == 0 or b.f.numel() == 0


def check_extents(a: Side, b: Side) -> None:
    """Hold the values of lengths and offsets against the shapes, where there are any and looking costs no
    synchronisation."""
    if torch.compiler.is_compiling():
        return
    for letter, side in (("a", a), ("b", b)):
        extent = side.extent
        if extent is None or side.kind == "mask" or extent.device.type != "cpu" or extent.numel() == 0:
            continue
        values = transforms.values(extent)
        if values is None:
            continue
        if side.kind == "lengths":
            least, most = int(values.min()), int(values.max())
            if least < 0 or most > side.length:
                raise ValueError(
                    f"lengths_{letter} must lie between 0 and {side.length}, the rows of f_{letter}; "
                    f"found {least if least < 0 else most}"
                )
            continue
        steps, total = values[1:] - values[:-1], side.f.shape[0]
        least, most = (int(steps.min()), int(steps.max())) if len(steps) else (0, 0)
        first, last = int(values[0]), int(values[-1])
        if first != 0 or last != total or least < 0:
            raise ValueError(
                f"offsets_{letter} must start at 0, never fall, and end at {total}, the rows of f_{letter}; "
                f"found a start of {first}, an end of {last} and a smallest step of {least}"
            )
        if most > side.length:
            raise ValueError(
                f"max_length_{letter} is {side.length}, but the longest pair has {most} rows; "
                "give the longest length or more"
            )


_library.impl("soft_align", _registered, "CompositeExplicitAutograd")
_library.impl("soft_align_backward", _registered_backward, "CompositeExplicitAutograd")
for _key, _kind in (("AutocastCPU", "cpu"), ("AutocastCUDA", "cuda")):
    _library.impl("soft_align", partial(_autocast, _kind), _key)
torch.library.register_vmap(
    f"{NAMESPACE}::soft_align", partial(transforms.fold, soft_align_operator), lib=_library
)
torch.library.register_autograd(
    f"{NAMESPACE}::soft_align", _SoftAlign.backward, setup_context=_keep_for_backward, lib=_library
)
torch.library.register_fake(f"{NAMESPACE}::soft_align", _fake_soft_align, lib=_library)
torch.library.register_fake(f"{NAMESPACE}::soft_align_backward", _fake_soft_align_backward, lib=_library)
