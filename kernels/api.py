"""The operator as users call it. Reads top to bottom as the specification."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from . import autocast, dispatch, ops, quick
from .checks import DTYPES, OPERANDS, check_kind, check_operands, check_tensor, expand
from .nested import is_nested, jagged, packed
from .problem import MOST_ROWS, Alignment, Problem, Side
from .rules import check_scale, make_rule
from .scale import scaled


class SoftAlignment(NamedTuple):
    """beta (*batch, m, d_b): b aligned to each a_i. alpha (*batch, n, d_a): a aligned to each b_j."""

    beta: Tensor
    alpha: Tensor


class SoftAlignmentWithLse(NamedTuple):
    """A SoftAlignment with its log-sum-exps: lse_a (*batch, m) over j, lse_b (*batch, n) over i."""

    beta: Tensor
    alpha: Tensor
    lse_a: Tensor
    lse_b: Tensor


# fmt: off
@overload
def soft_align(
    f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor, *,
    mask_a: Tensor | None = None, mask_b: Tensor | None = None,
    lengths_a: Tensor | None = None, lengths_b: Tensor | None = None,
    scale: float | Tensor = 1.0, bias: Tensor | None = None, clamp: float | None = None,
    dropout: float | tuple[float, float] = 0.0, seed: Tensor | None = None,
    return_lse: Literal[False] = False, backend: str | None = None,
) -> SoftAlignment: ...
@overload
def soft_align(
    f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor, *,
    mask_a: Tensor | None = None, mask_b: Tensor | None = None,
    lengths_a: Tensor | None = None, lengths_b: Tensor | None = None,
    scale: float | Tensor = 1.0, bias: Tensor | None = None, clamp: float | None = None,
    dropout: float | tuple[float, float] = 0.0, seed: Tensor | None = None,
    return_lse: Literal[True], backend: str | None = None,
) -> SoftAlignmentWithLse: ...
def soft_align(
    f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor, *,
    mask_a: Tensor | None = None, mask_b: Tensor | None = None,
    lengths_a: Tensor | None = None, lengths_b: Tensor | None = None,
    scale: float | Tensor = 1.0, bias: Tensor | None = None, clamp: float | None = None,
    dropout: float | tuple[float, float] = 0.0, seed: Tensor | None = None,
    return_lse: bool = False, backend: str | None = None,
) -> SoftAlignment | SoftAlignmentWithLse:
    # fmt: on
    """Align two sequences softly, both ways, from one score matrix.

        e_ij  = clip(scale * f_a_i · f_b_j, ±clamp) + bias_ij
        β_i   = Σ_j softmax_j(e_i·)_j b_j         lse_a_i = log Σ_j exp e_ij
        α_j   = Σ_i softmax_i(e_·j)_i a_i         lse_b_j = log Σ_i exp e_ij

    Parikh et al. 2016, "A Decomposable Attention Model for Natural Language Inference", section 3.1,
    equations 1 and 2.

    Args:
        f_a: (*batch, m, h), f_b: (*batch, n, h): what the scores are made of. Any leading batch dimensions
            (attention heads are one of them), the same for all four tensors; m or n may be 0; any strides.
        a: (*batch, m, d_a), b: (*batch, n, d_b): the values. h, d_a and d_b are independent, at least 1.
            All four are alike in device and dtype: float32, bfloat16, float16 (both with scores, softmax and
            sums in float32) or float64. Under autocast they are cast as torch's own attention casts them.
        mask_a: (*batch, m) bool, mask_b: (*batch, n) bool; True is a token. Batch dimensions broadcast.
        lengths_a, lengths_b: (*batch,) int32 or int64, which broadcast too: the first so many rows are tokens. A side
            takes a mask or lengths, not both; lengths let kernels skip work. Values are checked on the CPU; on a
            GPU, where looking would stall the stream, they are clamped to 0..m.
        scale: a factor on the scores: a finite number, or a floating-point tensor that broadcasts to (*batch), one
            for each pair or head, with a gradient: a temperature to be learned. Its values are not looked at.
        bias: broadcastable to (*batch, m, n), in the operands' dtype or float32: added to the scores, with a
            gradient. -inf forbids a pairing.
        clamp: hold f_a · f_b, times the scale, between -clamp and clamp, as torch.clamp does: beyond them the scores
            pass no gradient. A number above 0.
        dropout: the share of weights that are dropped, at random, and by whose complement the others are divided:
            softmax(e) in β and in α, each by itself, or (p, q), p of β's weights and q of α's. 0 to 1. LSEs are of
            all weights. It is applied whenever it is given: pass 0 where a model is not training.
        seed: a tensor () of int64 on the operands' device, from which follows what is dropped: the same again in the
            backward pass, in every backend, padded or packed. None draws one from torch's generator in each call.
        return_lse: also return the two log-sum-exps (natural logarithm; float32, or float64 for float64).
        backend: "triton", "native" or "reference": that one or an error. None takes the first that can (`explain`).

    The four may also be nested tensors (batch, ragged, width) in the layout torch.jagged, f_a and a of one set of
    lengths, f_b and b of another. They go to `soft_align_packed` without padding, and take no mask, lengths or bias.
    Where a nested tensor has not been told its longest length, a GPU is asked once.

    Returns:
        SoftAlignment(beta, alpha), or SoftAlignmentWithLse(beta, alpha, lse_a, lse_b). The rows of padding are
        0, and so are rows to which nothing can be aligned; their LSE is -inf. Whatever padding holds, NaN
        included, reaches neither outputs nor gradients, and padding's gradients are 0. The same inputs give the
        same bits. Gradients flow from all outputs; a second derivative goes through the reference.

    Raises:
        TypeError: an argument is no tensor, or its dtype or device is not what it must be.
        ValueError: a shape, a length or a name does not fit; both mask and lengths were given.
        BackendUnavailable: the backend named can't serve this call; the message says why.
    """
    if (f_a.__class__ is not Tensor or f_a.is_nested) and any(map(is_nested, (f_a, f_b, a, b))):
        given = {"mask_a": mask_a, "mask_b": mask_b, "lengths_a": lengths_a, "lengths_b": lengths_b, "bias": bias}
        for name, t in given.items():
            if t is not None:
                raise ValueError(f"nested tensors know their lengths and take no {name}")
        options: Any = {"scale": scale, "clamp": clamp, "dropout": dropout, "seed": seed, "backend": backend}
        return _nested(f_a, f_b, a, b, return_lse, options)
    plain = (
        mask_a is mask_b is bias is clamp is seed is backend is None
        and (scale.__class__ is float and scale == 1.0 and dropout.__class__ is float and dropout == 0.0)
        and not return_lse
    )
    if plain and (quickly := quick.serve(f_a, f_b, a, b, lengths_a, lengths_b)) is not None:
        return SoftAlignment(*quickly)
    a_side, b_side, bias, factor = _padded(f_a, f_b, a, b, mask_a, mask_b, lengths_a, lengths_b, scale, bias)
    rule = make_rule(factor, clamp, dropout, seed, f_a)
    if f_a.ndim in (3, 4):
        found = ops.align(a_side, b_side, bias, rule, backend)
        if plain:
            quick.remember(a_side, b_side)
    else:
        found = ops.align(_fold(a_side), _fold(b_side), _fold_bias(bias, f_a), rule, backend)
        batch = f_a.shape[:-2]
        found = Alignment(*(t.reshape(*batch, *t.shape[k:]) for t, k in zip(found, (-2, -2, -1, -1), strict=True)))
    return SoftAlignmentWithLse(*found) if return_lse else SoftAlignment(found.beta, found.alpha)


def _nested(f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor, return_lse: bool, options: Any) -> Any:
    """`soft_align` of nested tensors: outputs are nested as f_a and f_b are."""
    side_a, side_b = packed("a", f_a, a), packed("b", f_b, b)
    if len(f_a) != len(f_b):
        raise ValueError(f"f_a and f_b must have as many sequences; they have {len(f_a)} and {len(f_b)}")
    options |= {"return_lse": return_lse}
    found = soft_align_packed(
        side_a.f, side_b.f, side_a.x, side_b.x, side_a.offsets, side_b.offsets, side_a.length, side_b.length, **options
    )
    return type(found)(*(jagged(t, like) for t, like in zip(found, (f_a, f_b) * 2, strict=False)))


# fmt: off
@overload
def soft_align_packed(
    f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor,
    offsets_a: Tensor, offsets_b: Tensor, max_length_a: int, max_length_b: int, *,
    scale: float | Tensor = 1.0, clamp: float | None = None,
    dropout: float | tuple[float, float] = 0.0, seed: Tensor | None = None,
    return_lse: Literal[False] = False, backend: str | None = None,
) -> SoftAlignment: ...
@overload
def soft_align_packed(
    f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor,
    offsets_a: Tensor, offsets_b: Tensor, max_length_a: int, max_length_b: int, *,
    scale: float | Tensor = 1.0, clamp: float | None = None,
    dropout: float | tuple[float, float] = 0.0, seed: Tensor | None = None,
    return_lse: Literal[True], backend: str | None = None,
) -> SoftAlignmentWithLse: ...
def soft_align_packed(
    f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor,
    offsets_a: Tensor, offsets_b: Tensor, max_length_a: int, max_length_b: int, *,
    scale: float | Tensor = 1.0, clamp: float | None = None,
    dropout: float | tuple[float, float] = 0.0, seed: Tensor | None = None,
    return_lse: bool = False, backend: str | None = None,
) -> SoftAlignment | SoftAlignmentWithLse:
    # fmt: on
    """`soft_align` of many pairs whose tokens lie one after another, with no padding.

    Pair p aligns rows offsets_a[p] to offsets_a[p + 1] of side a with rows offsets_b[p] to offsets_b[p + 1] of
    side b: the layout of torch.nested's jagged tensors and of FlashAttention's cu_seqlens.

    Args:
        f_a: (total_a, h), f_b: (total_b, h), a: (total_a, d_a), b: (total_b, d_b), as in `soft_align`.
        offsets_a, offsets_b: (pairs + 1,) int32, on the operands' device: from 0, never falling, up to the
            total. Pairs may be empty on either side.
        max_length_a, max_length_b: the rows of the longest pair, or more. A kernel picks its tiles by them.
            Offsets and lengths are held against each other on the CPU only; a GPU is not asked, and there a
            max_length that is too small leaves rows unwritten.
        scale: a finite number, or a tensor () with a gradient.
        clamp, dropout, seed, return_lse, backend: as in `soft_align`.

    Returns:
        beta (total_a, d_b) and alpha (total_b, d_a), and with return_lse lse_a (total_a,) and lse_b (total_b,).

    Raises:
        TypeError, ValueError, BackendUnavailable: as in `soft_align`.
    """
    plain = (
        clamp is seed is backend is None
        and (scale.__class__ is float and scale == 1.0 and dropout.__class__ is float and dropout == 0.0)
        and not return_lse
    )
    if plain:
        quickly = quick.serve_packed(f_a, f_b, a, b, offsets_a, offsets_b, max_length_a, max_length_b)
        if quickly is not None:
            return SoftAlignment(*quickly)
    f_a, f_b, a, b = _operands(f_a, f_b, a, b, packed=True)
    check_scale(scale)
    for letter, offsets, length in (("a", offsets_a, max_length_a), ("b", offsets_b, max_length_b)):
        check_tensor(f"offsets_{letter}", offsets, f_a)
        if offsets.dtype != torch.int32:
            raise TypeError(f"offsets_{letter} must be int32, not {offsets.dtype}; use offsets.int()")
        if offsets.ndim != 1 or offsets.shape[0] < 1:
            raise ValueError(f"offsets_{letter} must be (pairs + 1,), not {tuple(offsets.shape)}")
        if not isinstance(length, (int, torch.SymInt)) or isinstance(length, bool):
            raise TypeError(f"max_length_{letter} must be an int, not {type(length).__name__}")
        if length < 0:
            raise ValueError(f"max_length_{letter} must be 0 or more, not {length}")
        if length > MOST_ROWS:
            raise ValueError(f"max_length_{letter} must be below 2**63, not {length}")
    if offsets_a.shape != offsets_b.shape:
        raise ValueError(
            "offsets_a and offsets_b must describe the same number of pairs; they have "
            f"{offsets_a.shape[0]} and {offsets_b.shape[0]} entries"
        )
    a_side, factor = _scaled(Side(f_a, a, offsets_a, max_length_a), scale, packed=True)
    rule = make_rule(factor, clamp, dropout, seed, f_a)
    b_side = Side(f_b, b, offsets_b, max_length_b)
    found = ops.align(a_side, b_side, None, rule, backend)
    if plain:
        quick.remember(a_side, b_side)
    return SoftAlignmentWithLse(*found) if return_lse else SoftAlignment(found.beta, found.alpha)


# fmt: off
def explain(
    f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor, *,
    mask_a: Tensor | None = None, mask_b: Tensor | None = None,
    lengths_a: Tensor | None = None, lengths_b: Tensor | None = None,
    scale: float | Tensor = 1.0, bias: Tensor | None = None, clamp: float | None = None,
    dropout: float | tuple[float, float] = 0.0, seed: Tensor | None = None,
    return_lse: bool = False, backend: str | None = None,
) -> str:
    # fmt: on
    """Say which backend would serve `soft_align` with these arguments, and why the others would not.

    Operands are padded ones; nested tensors raise a TypeError.

    Returns:
        A table as text, a line a backend; where an operand requires grad, a second one for the backward pass.
    """
    if any(map(is_nested, (f_a, f_b, a, b))):
        raise TypeError("explain takes padded operands, not nested ones, which are served as packed pairs are")
    a_side, b_side, bias, factor = _padded(f_a, f_b, a, b, mask_a, mask_b, lengths_a, lengths_b, scale, bias)
    ops.check_extents(a_side, b_side)
    # checked with some seed: drawing one would change what the caller draws next
    make_rule(factor, clamp, dropout, f_a.new_zeros((), dtype=torch.int64) if seed is None else seed, f_a)
    a_side, b_side, bias = _fold(a_side), _fold(b_side), _fold_bias(bias, f_a)
    learned = (a_side.f, b_side.f, a_side.x, b_side.x, bias)
    passes = (False, True) if any(t is not None and t.requires_grad for t in learned) else (False,)
    return "\n".join(dispatch.explain(Problem.of(a_side, b_side, bias, backward), backend) for backward in passes)


# fmt: off
def _padded(
    f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor,
    mask_a: Tensor | None, mask_b: Tensor | None,
    lengths_a: Tensor | None, lengths_b: Tensor | None,
    scale: float | Tensor, bias: Tensor | None,
) -> tuple[Side, Side, Tensor | None, float]:
    # fmt: on
    """Check every argument of `soft_align`, and expand what broadcasts."""
    f_a, f_b, a, b = _operands(f_a, f_b, a, b, packed=False)
    check_scale(scale)
    extent_a = _extent("a", f_a, mask_a, lengths_a)
    extent_b = _extent("b", f_b, mask_b, lengths_b)
    if bias is not None:
        check_tensor("bias", bias, f_a)
        if bias.dtype not in (f_a.dtype, torch.float32):
            like = f"{f_a.dtype}, like f_a" + ("" if f_a.dtype == torch.float32 else ", or torch.float32")
            raise TypeError(f"bias must be {like}, not {bias.dtype}")
        whole = expand("bias", bias, (*f_a.shape[:-1], f_b.shape[-2]), "(*batch, m, n)")
        bias = bias if f_a.ndim in (3, 4) else whole
    a_side, factor = _scaled(Side(f_a, a, extent_a, f_a.shape[-2]), scale, packed=False)
    return a_side, Side(f_b, b, extent_b, f_b.shape[-2]), bias, factor


# fmt: off
def padded_features(
    f_a: Tensor, f_b: Tensor,
    mask_a: Tensor | None, mask_b: Tensor | None,
    lengths_a: Tensor | None, lengths_b: Tensor | None,
    scale: float | Tensor, bias: Tensor | None,
) -> tuple[Side, Side, Tensor | None, float]:
    # fmt: on
    """The arguments of a call without values, checked as `soft_align` checks them."""
    found = _padded(f_a, f_b, f_a, f_b, mask_a, mask_b, lengths_a, lengths_b, scale, bias)
    ops.check_extents(*found[:2])
    return found


def _scaled(side: Side, scale: float | Tensor, packed: bool) -> tuple[Side, float]:
    """The side and the factor that is left to the kernel: a tensor scale goes into f."""
    if not isinstance(scale, Tensor):
        return side, float(scale)
    check_tensor("scale", scale, side.f)
    if scale.dtype not in DTYPES:
        raise TypeError(f"scale must be a number or a tensor of a dtype that f_a may have, not of {scale.dtype}")
    return scaled(side, expand("scale", scale, side.f.shape[:-2], "f_a's batch dimensions"), packed), 1.0


def _operands(f_a: Tensor, f_b: Tensor, a: Tensor, b: Tensor, packed: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four operands checked, and cast where autocast says so."""
    operands: tuple[Tensor, ...] = (f_a, f_b, a, b)
    plain = Tensor is type(f_a) is type(f_b) is type(a) is type(b)
    if not plain or f_a.is_nested or f_b.is_nested or a.is_nested or b.is_nested:
        for name, t in zip(OPERANDS, operands, strict=True):
            check_kind(name, t)
    device = f_a.device
    if autocast.enabled(device.type):
        operands = autocast.cast(operands)
    f_a, f_b, a, b = operands
    shapes, dtype = (f_a.shape, f_b.shape, a.shape, b.shape), f_a.dtype
    alike = (
        plain
        and dtype is f_b.dtype is a.dtype is b.dtype
        and torch.strided is f_a.layout is f_b.layout is a.layout is b.layout
        and f_b.device == device == a.device == b.device
        and not torch.compiler.is_compiling()  # tracers have symbols for sizes, and nothing to be remembered by
    )
    if not alike or (*shapes, dtype, packed) not in _good:
        check_operands(
            packed,
            *shapes,
            *(dtype, f_b.dtype, a.dtype, b.dtype),
            *(device, f_b.device, a.device, b.device),
            *(f_a.layout, f_b.layout, a.layout, b.layout),
        )
        if alike:
            if len(_good) >= 4096:
                _good.clear()
            _good.add((*shapes, dtype, packed))
    return f_a, f_b, a, b


_good: set[tuple[Any, ...]] = set()  # shapes and dtypes of operands that were found to fit


def _extent(letter: str, f: Tensor, mask: Tensor | None, lengths: Tensor | None) -> Tensor | None:
    """What says which rows of a padded side are tokens, checked and expanded."""
    if mask is not None and lengths is not None:
        raise ValueError(f"give mask_{letter} or lengths_{letter}, not both")
    if mask is not None:
        check_tensor(f"mask_{letter}", mask, f)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask_{letter} must be bool, True for a token, not {mask.dtype}; try mask != 0")
        return expand(f"mask_{letter}", mask, f.shape[:-1], f"f_{letter}'s shape but the last dimension")
    if lengths is not None:
        check_tensor(f"lengths_{letter}", lengths, f)
        if lengths.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"lengths_{letter} must be int32 or int64, not {lengths.dtype}")
        return expand(f"lengths_{letter}", lengths, f.shape[:-2], f"f_{letter}'s batch dimensions")
    return None


def _fold(side: Side) -> Side:
    """The side with one or two batch dimensions: what operators and backends take."""
    if side.f.ndim in (3, 4):
        return side
    extent = side.extent
    if extent is not None:
        extent = _fold_batch(extent, 1 if extent.dtype == torch.bool else 0)
    return Side(_fold_batch(side.f, 2), _fold_batch(side.x, 2), extent, side.length)


def _fold_bias(bias: Tensor | None, f_a: Tensor) -> Tensor | None:
    return bias if bias is None or f_a.ndim in (3, 4) else _fold_batch(bias, 2)


def _fold_batch(t: Tensor, kept: int) -> Tensor:
    """No batch dimension becomes one; more than two become two, the last one (heads) kept apart."""
    batch = t.ndim - kept
    if batch == 0:
        return t.unsqueeze(0)
    return t.flatten(0, batch - 2)
