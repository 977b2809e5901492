"""Random shapes, layouts and masks against the oracle, for every backend."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coalign.testing import Case, assert_accurate, run

EXAMPLES = 12 if os.environ.get("TRITON_INTERPRET") == "1" else 60


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any call at all, small, now and then longer than a tile."""
    size = st.integers(0, 12) | st.integers(13, 40)
    m, n = draw(size), draw(size)
    if draw(st.integers(0, 9)) == 0:
        m = 129 + m
    packed = draw(st.booleans()) and draw(st.booleans())
    batch = tuple(draw(st.lists(st.integers(1, 3), min_size=1, max_size=1 if packed else 3)))
    pairs = int(torch.tensor(batch).prod())
    changes: dict[str, Any] = {}
    for side, rows in (("a", m), ("b", n)):
        extent = "packed" if packed else draw(st.sampled_from(["full", "lengths", "mask"]))
        changes[f"extent_{side}"] = extent
        if extent != "full":
            changes[f"tokens_{side}"] = tuple(draw(st.lists(st.integers(0, rows), min_size=pairs, max_size=pairs)))
    if not packed:
        changes["bias"] = draw(st.sampled_from(["none", "none", "full", "shared", "rows"]))
        changes["bias_dtype"] = torch.float32  # rounded gradients, summed over a row, may cancel to nothing
        changes["forbid"] = draw(st.sampled_from([0.0, 0.3]))
    layouts = ["contiguous", "sliced"] if packed else ["contiguous", "sliced", "columns"]
    if len(batch) > 1:
        layouts.append("heads")
    if changes["extent_a"] == changes["extent_b"] == "full":
        layouts.append("expanded")
    width = st.integers(3, 40)  # less, and one cancellation decides the error
    return Case(
        "random",
        m,
        n,
        h=draw(width),
        d_a=draw(width),
        d_b=draw(width),
        batch=batch,
        dtype=draw(st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float16])),
        scale=draw(st.sampled_from([1.0, 0.3, -2.0])),
        magnitude=draw(st.sampled_from([1.0, 0.01, 10.0])),
        strides=draw(st.sampled_from(layouts)),
        seed=draw(st.integers(0, 2**32)),
        **changes,
    )


@pytest.mark.usefixtures("poisoned_memory")
@settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(case=cases())
def test_random_calls(case, backend):
    """What is looked for here is structure gone wrong, an error near 1; rounding is measured in test_operator.py."""
    operands = case.operands(backend.device)
    assert_accurate(run(operands, backend.name), operands, bound=1e-3 if case.dtype == torch.float32 else 0.2)
