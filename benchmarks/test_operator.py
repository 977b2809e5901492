"""The same cases for pytest-benchmark: python -m pytest benchmarks --benchmark-only -p no:xdist"""

from __future__ import annotations

import pytest
import torch

from .cases import make
from .contenders import absent, contenders
from .measure import calls_of, check, directions, settle_allocator
from .suites import cpu, gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CONTENDERS = (
    "coalign",
    "eager",
    "torch.compile",
    "2 x SDPA",
    "2 x SDPA, widened",
    "2 x FlexAttention",
    "2 x varlen_attn",
)


@pytest.mark.parametrize("contender", CONTENDERS)
@pytest.mark.parametrize("direction", directions())
@pytest.mark.parametrize("case", (gpu if DEVICE == "cuda" else cpu)(), ids=lambda case: case.name)
def test_operator(benchmark, case, direction, contender):
    benchmark.group = f"{case.name}, {direction}"
    if reason := absent(contender, case, graph=False, device=DEVICE):
        pytest.skip(reason)
    settle_allocator()
    inputs = make(case, device=DEVICE)
    align = contenders(case, inputs)[contender]
    check(case, contender, align, inputs)
    call = calls_of(align, contender, [inputs], direction)[0]

    def finished():
        call()
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    benchmark(finished)
