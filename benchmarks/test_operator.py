"""The same cases for pytest-benchmark: python -m pytest benchmarks --benchmark-only -p no:xdist"""

from __future__ import annotations

import pytest

from .cases import cpu_cases, make
from .contenders import contenders
from .measure import calls_of, check, directions, settle_allocator

CONTENDERS = ("coalign", "eager", "torch.compile", "2 x SDPA")


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("direction", directions())
@pytest.mark.parametrize("case", cpu_cases(), ids=lambda case: case.name)
def test_operator(benchmark, case, direction, contender):
    benchmark.group = f"{case.name}, {direction}"
    settle_allocator()
    inputs = make(case)
    align = contenders(case, inputs)[contender]
    check(case, contender, align, inputs)
    benchmark(calls_of(align, contender, [inputs], direction)[0])
