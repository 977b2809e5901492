"""The operators in PyTorch's own terms, for programs that leave PyTorch or Python: ONNX, AOTInductor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from . import ops, reference


def decompositions() -> dict[Any, Callable[..., Any]]:
    """What to put in place of coalign's operators in an exported program, so that it runs where coalign is not.

        program = torch.export.export(model, inputs).run_decompositions(coalign.decompositions())

    The operators become the reference's plain operations, which store e: no kernel of ours runs in what is made of
    the program.

    Returns:
        A table for torch.export.ExportedProgram.run_decompositions: operators to functions.
    """
    return {ops.soft_align_operator: _plain}


def _plain(*operands: Any) -> tuple[Tensor, ...]:
    a, b, bias, rule, _ = ops.sides(*operands)
    return tuple(reference.forward(a, b, bias, rule))
