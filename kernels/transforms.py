"""The operator under torch.func and in forward mode: right whatever PyTorch differentiates it by.

- vmap is a batch dimension more: `fold` moves it into the operands and the same backend serves, so the gradient of
  what a vmap gave comes from the backends' kernels too.
- Reverse mode inside torch.func (grad, vjp, jacrev, hessian) may be differentiated or mapped again, which no one
  knows in advance: its gradient is the reference's formula, which stores e and can be.
- torch.func.functionalize knows operators: alone it gets the operator, among others the reference.
- Forward mode (jvp, jacfwd, torch.autograd.forward_ad) goes through the reference altogether, and so does dropout
  under torch.func: what is dropped follows from the seed, which vmap's `randomness` makes the same or different.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Absent from some future PyTorch, they take every call to be a transformed one, which is always right.
_functorch: Any = getattr(torch._C, "_functorch", None)
_stack = getattr(_functorch, "get_interpreter_stack", lambda: None)
_interpreter = getattr(_functorch, "peek_interpreter_stack", lambda: True)


def transforming() -> bool:
    """Whether a torch.func transform is at work."""
    return not isinstance(_interpreter(), type(None))  # compilers take what comes to be an object, and no `is None`


def functionalizing() -> bool:
    """Whether torch.func.functionalize is among the transforms: it knows operators but no autograd.Function."""
    return any(interpreter.key().name == "Functionalize" for interpreter in _stack() or ())


def alone() -> bool:
    """Whether one transform is at work, not several."""
    return len(_stack() or ()) == 1


def batched(tensors: Iterable[Tensor | None]) -> bool:
    """Whether some are several at once, as of torch.autograd.grad(is_grads_batched=True): plain by their type, but
    no backend's."""
    return transforming() or any(t is not None and _is_batched(t) for t in tensors)


_is_batched = getattr(_functorch, "is_legacy_batchedtensor", lambda t: False)


def values(t: Tensor) -> Any:
    """A tensor on the CPU as an array to look at, or, where torch.func has wrapped it for a gradient, as what it has
    wrapped; None where vmap has it stand for several, or a subclass (a fake tensor) for what need not be there."""
    if type(t).__torch_dispatch__ is not Tensor.__torch_dispatch__:
        return None
    if not transforming():
        return t.numpy()
    if _functorch is None:
        return None
    while _functorch.is_gradtrackingtensor(t):
        t = _functorch.get_unwrapped(t)
    return None if _functorch.is_functorch_wrapped_tensor(t) else t


def forward_mode() -> bool:
    """Whether somebody computes tangents."""
    return getattr(forward_ad, "_current_level", 0) >= 0


def overriding() -> bool:
    """Whether a mode of torch.overrides may put other functions in the place of PyTorch's; one that only says on which
    device tensors are made does not."""
    count = _function_modes()  # usually 0, and asked for in every call
    return count > 0 and any(type(torch._C._get_function_stack_at(i)).__name__ != "DeviceContext" for i in range(count))


# Absent from some future PyTorch, it leaves out such modes, which few have.
_function_modes = getattr(torch._C, "_len_torch_function_stack", lambda: 0)


# fmt: off
def fold(
    call: Callable[..., tuple[Tensor, ...]], info: Any, in_dims: tuple[int | None, ...], *operands: Any
) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    # fmt: on
    """The vmap rule of a call with coalign::soft_align's operands: the mapped dimension becomes a batch dimension."""
    size = info.batch_size
    tensors: tuple[Any, ...] = tuple(
        t if t is None else t.unsqueeze(0).expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
        for t, dim in zip(operands[:7], in_dims[:7], strict=True)
    )
    f_a, f_b, a, b, extent_a, extent_b, bias = tensors
    rows_a, rows_b = f_a.shape[:-1], f_b.shape[:-1]
    if bias is not None:
        whole = (*rows_a, f_b.shape[-2])
        bias = bias.reshape(size, *(1,) * (len(whole) - bias.ndim), *bias.shape[1:]).expand(whole)
    tensors = (f_a, f_b, a, b, extent_a, extent_b, bias)
    if f_a.ndim == 3:  # packed: the mapped calls' rows lie one after another
        joined = (_joined_offsets("a", extent_a, rows_a[1]), _joined_offsets("b", extent_b, rows_b[1]))
        tensors = (*(t.flatten(0, 1) for t in tensors[:4]), *joined, None)
    elif f_a.ndim == 5:  # pairs and heads: the mapped calls' pairs lie one after another
        tensors = tuple(t if t is None else t.flatten(0, 1) for t in tensors)
    if in_dims[7] is not None:
        raise ValueError("the plain operator can't be mapped over seeds; call coalign.soft_align")
    beta, alpha, lse_a, lse_b = call(*tensors, *operands[7:])
    found = (
        beta.reshape(*rows_a, b.shape[-1]),
        alpha.reshape(*rows_b, a.shape[-1]),
        lse_a.reshape(rows_a),
        lse_b.reshape(rows_b),
    )
    return found, (0, 0, 0, 0)


def _joined_offsets(letter: str, offsets: Tensor, total: int) -> Tensor:
    """Offsets (calls, pairs + 1) into total rows each, as one list into all of them.

    Raises ValueError where a call's rows would be another's, if looking costs no synchronisation.
    """
    found = values(offsets) if offsets.device.type == "cpu" and type(offsets) is Tensor else None
    if found is not None:
        for call, (start, end) in enumerate(found[:, [0, -1]].tolist()):
            if start != 0 or end != total:
                raise ValueError(
                    f"offsets_{letter} must start at 0 and end at {total}, the rows of f_{letter}; "
                    f"those of mapped call {call} start at {start} and end at {end}"
                )
    starts = torch.arange(offsets.shape[0], device=offsets.device, dtype=offsets.dtype) * total
    return torch.cat([offsets.new_zeros(1), (offsets[:, 1:] + starts.unsqueeze(1)).flatten()])
