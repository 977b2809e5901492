"""How far a result may be from the truth.

The error of a tensor is ‖found − truth‖ / ‖truth‖: relative, so that zeros never pass for small numbers. It
must stay within two bounds, both against the float64 oracle:

- a budget for the dtype: float64 1e-12, float32 1e-5, float16 2e-3, bfloat16 1e-2;
- twice the error that plain PyTorch makes in the same dtype on the same pairs.

Neither asks for more than the arithmetic can give. Let u be the unit roundoff of the dtype and v that of scores
and LSEs (float32's; float64's for float64). A correctly rounded result may be off by u; a rounded score or LSE is
off by v |e|, and exp(e) and exp(e − lse) then are by as much, relatively. So 2 v max|e| replaces a smaller budget
(only for scores beyond 80 in float32; 1.2e-3 at 1e4), and u + v max|e| replaces a smaller error of plain PyTorch,
which has no LSE to recompute weights from and may round well by luck.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cases import Operands
from .oracle import pair_by_pair

BUDGET = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def error(found: Tensor, truth: Tensor) -> float:
    """‖found − truth‖ / ‖truth‖ over what is finite in the truth.

    Infinite where the truth is 0 throughout and found is not, where infinities differ, and where found has a
    NaN or another shape.
    """
    found = found.detach().to("cpu", torch.float64)
    if found.shape != truth.shape:
        return torch.inf
    finite = truth.isfinite()
    if not torch.equal(found[~finite], truth[~finite]):
        return torch.inf
    found, truth = found[finite], truth[finite]
    if not found.isfinite().all():
        return torch.inf
    size = float(truth.norm())
    if size == 0.0:
        return torch.inf if found.any() else 0.0
    return float((found - truth).norm()) / size


def errors(found: dict[str, Tensor], truth: dict[str, Tensor]) -> dict[str, float]:
    """The error of every tensor of the truth."""
    return {name: error(found[name], t) for name, t in truth.items()}


def allowed(operands: Operands, truth: dict[str, Tensor]) -> dict[str, float]:
    """The error that each of the truth's tensors may have: the smaller of the two bounds."""
    dtype = operands.f_a.dtype
    lse = torch.cat([truth[name][truth[name].isfinite()].abs() for name in ("lse_a", "lse_b")])
    largest = float(lse.max()) if lse.numel() else 0.0  # of the scores that count: within log(length) of an LSE
    of_scores = largest * torch.finfo(torch.promote_types(dtype, torch.float32)).eps / 2
    of_rounding = torch.finfo(dtype).eps / 2 + of_scores
    plain = errors(pair_by_pair(operands, dtype), truth)
    budget = max(BUDGET[dtype], 2 * of_scores)
    return {name: min(budget, 2 * max(plain[name], of_rounding)) for name in truth}


def assert_accurate(found: dict[str, Tensor], operands: Operands, bound: float | None = None) -> None:
    """Raise AssertionError, with a table, unless every tensor is within its bound and 0 in padding.

    found: what `run` returned for the operands, or the same keys from another implementation.
    bound: one for all tensors in place of those of `allowed`, for operands nobody chose: among a few random
        numbers some cancel, and then rounding looks larger than it is.
    """
    truth = pair_by_pair(operands)
    bounds = allowed(operands, truth) if bound is None else dict.fromkeys(truth, bound)
    actual = errors(found, truth)
    missed = [name for name in truth if not actual[name] <= bounds[name]]
    if missed:
        lines = (f"  {name:<10} {actual[name]:10.2e} of {bounds[name]:8.2e}" for name in truth)
        raise AssertionError(f"{', '.join(missed)} beyond the error allowed ({operands.case}):\n" + "\n".join(lines))
    for letter, output in (("a", "beta"), ("b", "alpha")):
        padding = operands.padding(letter)
        for name in (output, f"grad_f_{letter}", f"grad_{letter}") if padding is not None else ():
            assert not found[name].cpu()[padding].any(), f"{name} is not 0 in the padding of side {letter}"
