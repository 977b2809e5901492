"""The Triton backend: to come."""

from __future__ import annotations

from ..problem import Problem

name = "triton"


def unsupported(problem: Problem) -> list[str]:
    return ["the Triton kernels are not written yet"]
