"""Calls of sizes that were seen before: launched again without planning them again.

Planning a launch and Triton's own way from arguments to a compiled kernel take some hundred microseconds of Python,
several times what the kernels take on NLI's sizes. Both depend on sizes, strides and dtypes alone: so what was
launched for them is kept, with holes where addresses belong.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .launch import Launch

FAR = 2**31 - 1  # bytes of memory beyond which code for AMD GPUs has to count in 64 bits
MOST = 1024  # kinds of call; ragged batches that are padded to their longest have one for each pair of lengths

_kept: dict[Hashable, list[Prepared]] = {}


class Prepared(NamedTuple):
    """A compiled kernel, its grid, and its arguments; holes: which argument is the address of which tensor."""

    compiled: Any
    grid: tuple[int, int, int]
    arguments: list[Any]
    holes: list[tuple[int, str]]

    def run(self, addresses: dict[str, int]) -> None:
        arguments = self.arguments.copy()
        for place, name in self.holes:
            arguments[place] = addresses[name]
        self.compiled[self.grid](*arguments)


def launch(key: Hashable, tensors: dict[str, Tensor | None], plan: Callable[[], list[Launch]]) -> None:
    """Launch what `plan` plans on these tensors, or what it planned for an equal key, on these tensors.

    key: all that the plan depends on, but for where the tensors lie; of that, Triton compiles for which addresses are
    multiples of 16 and, on AMD GPUs, for which tensors lie in so little memory that 32 bits count it.
    tensors: by the kernels' names for them, the first of them there; where one is missing, anything may stand in.
    """
    addresses = {name: 0 if t is None else t.data_ptr() for name, t in tensors.items()}
    key = key, *[name for name, address in addresses.items() if address & 15]
    if torch.version.hip is not None:
        key = key, *[name for name, t in tensors.items() if t is not None and t.untyped_storage().nbytes() > FAR]
    if (prepared := _kept.get(key)) is not None:
        for one in prepared:
            one.run(addresses)
        return
    made = [_prepare(planned, planned.run(), tensors) for planned in plan()]
    if None not in made:
        if len(_kept) >= MOST:
            _kept.clear()
        _kept[key] = made  # type: ignore[assignment]


def forget() -> None:
    """Plan anew from now on: the table of choices has changed."""
    _kept.clear()


def layout(t: Tensor | None, packed: bool = False) -> Hashable:
    """What a plan depends on of a tensor; of packed ones not how many tokens there are."""
    return None if t is None else (t.shape[1:] if packed else t.shape, t.stride(), t.dtype)


def _prepare(planned: Launch, compiled: Any, tensors: dict[str, Tensor | None]) -> Prepared | None:
    """None where there is nothing to launch again: the interpreter compiles nothing, and copies that a plan made of
    its operands have to be made again."""
    if compiled is None:
        return None
    first = next(iter(tensors))
    arguments = [planned.arguments.get(name) for name in planned.kernel.arg_names]
    holes = []
    for place, name in enumerate(planned.kernel.arg_names):
        if isinstance(arguments[place], Tensor):
            of = first if tensors.get(name) is None else name
            if arguments[place] is not tensors[of]:
                return None
            holes.append((place, of))
            arguments[place] = 0
    x, y = (*planned.grid, 1)[:2]
    return Prepared(compiled, (x, y, 1), arguments, holes)
