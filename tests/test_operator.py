"""Values and gradients of every backend against the oracle: sizes, layouts, dtypes, masks, bias, big scores."""

from __future__ import annotations

import pytest
import torch
from conftest import INTERPRETING

from coalign.testing import Case, assert_accurate, run

pytestmark = pytest.mark.usefixtures("poisoned_memory")

HALF = (torch.bfloat16, torch.float16)

SIZES = [
    # one program holds a pair: up to 16, 32, 64 and 128 rows a side
    Case("one token each", 1, 1, batch=(6,)),
    Case("one token against many", 1, 9),
    Case("many tokens against one", 16, 1),
    Case("equal lengths", 16, 16, h=16, d_a=16, d_b=16),
    Case("tile of 32", 17, 23),
    Case("tile of 64", 33, 64, batch=(1,)),
    Case("tile of 128", 65, 40, batch=(1,)),
    Case("tile of 128, full", 128, 128, batch=(1,)),
    # longer ones are streamed
    Case("both long", 150, 130, batch=(1,)),
    Case("long a", 300, 7, batch=(1,)),
    Case("long b", 3, 129),
    # widths
    Case("width 1", 4, 5, h=1, d_a=1, d_b=1),
    Case("widths 3 and 17", 5, 4, h=3, d_a=17, d_b=3),
    Case("widths of the d2l book", 11, 7, h=200, d_a=100, d_b=100),
    Case("widths of the d2l book, longer", 70, 40, h=200, d_a=100, d_b=100, batch=(1,)),
    Case("wide", 9, 5, h=300, d_a=300, d_b=270),
    Case("wide values, narrow scores", 20, 18, h=4, d_a=140, d_b=20),
    Case("wide scores, narrow values, long", 131, 20, h=300, d_a=3, d_b=5, batch=(1,)),
    Case("wide values, long", 131, 20, h=5, d_a=150, d_b=260, batch=(1,)),
    # batch dimensions
    Case("no batch dimension", 5, 6, batch=()),
    Case("two batch dimensions", 5, 6, batch=(2, 3)),
    Case("three batch dimensions", 3, 4, batch=(2, 1, 2)),
    Case("three batch dimensions and lengths", 3, 4, batch=(2, 1, 2), tokens_a=(0, 1, 2, 3), extent_a="lengths"),
    Case("two batch dimensions, long", 140, 6, batch=(2, 2)),
    # nothing there
    Case("no rows in a", 0, 5),
    Case("no rows in b", 5, 0),
    Case("no rows at all", 0, 0),
    Case("no pairs", 4, 5, batch=(0,)),
    Case("no rows in a, bias", 0, 5, bias="full"),
    # scale
    Case("scaled down", 6, 7, scale=0.25),
    Case("negative scale", 6, 7, scale=-1.5),
    Case("scale 0", 6, 7, scale=0.0),
    Case("scaled, long", 6, 140, scale=0.25),
]

LAYOUTS = [
    Case(
        f"{strides}, {len(batch)} batch dimensions, {'long' if m > 128 else 'short'}",
        m,
        n,
        strides=strides,
        batch=batch,
    )
    for strides, batch in (
        ("heads", (2, 3)),
        ("heads", (2, 2, 2)),
        ("sliced", (2,)),
        ("sliced", (2, 2)),
        ("columns", (2,)),
        ("expanded", (3,)),
        ("expanded", (2, 2)),
    )
    for m, n in ((6, 7),) + (((135, 7),) if len(batch) == 2 else ())
]

MASKS = [
    Case("ragged", 16, 12, tokens_a=(16, 3, 0), tokens_b=(5, 12, 2), extent_a="lengths", extent_b="lengths"),
    Case("ragged, tiles differ", 64, 40, tokens_a=(3, 20, 64), tokens_b=(5, 31, 33)).but(
        extent_a="lengths", extent_b="lengths"
    ),
    Case("ragged, tile of 128", 100, 90, tokens_a=(3, 100), tokens_b=(70, 90), extent_a="lengths", extent_b="lengths"),
    Case("ragged, long", 140, 150, tokens_a=(3, 131, 0), tokens_b=(150, 2, 70)).but(
        extent_a="lengths", extent_b="lengths"
    ),
    Case("lengths on a alone", 7, 6, tokens_a=(2, 5), extent_a="lengths"),
    Case("lengths on b alone", 7, 6, tokens_b=(0, 5), extent_b="lengths"),
    Case("lengths on b alone, long", 7, 150, tokens_b=(141, 1), extent_b="lengths"),
    Case("holes", 13, 20, tokens_a=(6, 1), tokens_b=(11, 20), extent_a="mask", extent_b="mask"),
    Case("holes, long", 140, 40, tokens_a=(70, 5), tokens_b=(11, 40), extent_a="mask", extent_b="mask"),
    Case("holes in a, lengths of b", 30, 12, tokens_a=(14, 2), tokens_b=(12, 3), extent_a="mask", extent_b="lengths"),
    Case("holes in b alone", 12, 33, tokens_b=(14, 2), extent_b="mask"),
    Case("all padding", 9, 8, tokens_a=(0, 0), tokens_b=(0, 0), extent_a="lengths", extent_b="mask"),
    Case("all padding, long", 130, 8, tokens_a=(0, 0), tokens_b=(8, 0), extent_a="mask", extent_b="mask"),
    Case("one side empty", 9, 8, tokens_a=(0, 4), tokens_b=(5, 0), extent_a="lengths", extent_b="lengths"),
    Case("heads with lengths", 9, 7, batch=(2, 2), strides="heads", tokens_a=(9, 2, 3, 4), extent_a="lengths"),
    Case("heads with a mask", 9, 7, batch=(2, 2), strides="heads", tokens_b=(7, 2, 3, 4), extent_b="mask"),
]

PACKED = [
    Case("packed", 16, 12, tokens_a=(16, 3, 7), tokens_b=(5, 12, 2)),
    Case("packed, tiles differ", 60, 64, tokens_a=(3, 60, 20), tokens_b=(2, 31, 64)),
    Case("packed, long", 140, 135, tokens_a=(3, 140), tokens_b=(135, 2)),
    Case("packed, empty pairs", 9, 8, tokens_a=(0, 9, 0, 4, 0), tokens_b=(0, 0, 5, 8, 0)),
    Case("packed, empty pairs, long", 150, 8, tokens_a=(0, 150, 0, 4, 0), tokens_b=(0, 0, 5, 8, 0)),
    Case("packed, one side empty", 9, 0, tokens_a=(3, 9), tokens_b=(0, 0)),
    Case("packed, no pairs", 0, 0, batch=(0,), tokens_a=(), tokens_b=()),
    Case("packed, d2l widths", 20, 11, h=200, d_a=100, d_b=100, tokens_a=(20, 12), tokens_b=(9, 11)),
    Case("packed, sliced", 9, 8, tokens_a=(3, 9), tokens_b=(8, 2), strides="sliced"),
]
PACKED = [c.but(batch=(len(c.tokens_a or ()),), extent_a="packed", extent_b="packed") for c in PACKED]
MASKS = [c if len(c.batch) > 1 else c.but(batch=(len(c.tokens_a or c.tokens_b or ()),)) for c in MASKS]

BIAS = [
    Case("bias", 7, 6, bias="full"),
    Case("bias, scaled", 7, 6, bias="full", scale=0.5),
    Case("bias, tile of 128", 70, 60, batch=(1,), bias="full"),
    Case("bias, long", 140, 20, batch=(2,), bias="full"),
    Case("one bias for all pairs", 7, 6, batch=(3,), bias="shared"),
    Case("one bias for all pairs, long", 7, 140, bias="shared"),
    Case("a bias for each row", 7, 6, bias="rows"),
    Case("bias over heads", 7, 6, batch=(2, 3), bias="shared"),
    Case("bias over three batch dimensions", 5, 4, batch=(2, 1, 2), bias="full"),
    Case("forbidden pairings", 9, 8, bias="full", forbid=0.5),
    Case("forbidden pairings, long", 9, 150, bias="full", forbid=0.5),
    Case("nothing but forbidden pairings", 5, 4, bias="full", forbid=1.0),
    Case("bias and lengths", 40, 33, tokens_a=(13, 40), tokens_b=(33, 0), bias="full").but(
        extent_a="lengths", extent_b="lengths"
    ),
    Case("bias and lengths, long", 140, 20, tokens_a=(7, 135), tokens_b=(20, 1), bias="full").but(
        extent_a="lengths", extent_b="lengths"
    ),
    Case("bias and holes", 20, 10, tokens_a=(9, 2), tokens_b=(4, 5), bias="full", forbid=0.2).but(
        extent_a="mask", extent_b="mask"
    ),
    Case("float32 bias, bfloat16 operands", 7, 6, dtype=torch.bfloat16, bias="full", bias_dtype=torch.float32),
    Case("float32 bias, float16 operands, long", 140, 6, dtype=torch.float16, bias="full", bias_dtype=torch.float32),
    Case("bfloat16 bias", 7, 6, dtype=torch.bfloat16, bias="full"),
]

RULES = [
    Case("clamped", 12, 9, clamp=0.7),
    Case("clamped and scaled, tile of 64", 40, 33, scale=-0.5, clamp=1.1, bias="full", forbid=0.2),
    Case("clamped, long", 140, 20, clamp=0.5, bias="shared"),
    Case("clamped beyond all scores", 7, 6, clamp=1e6),
    Case("dropout", 12, 9, dropout=0.3),
    Case("dropout of β's weights", 17, 12, dropout=(0.5, 0.0)),
    Case("dropout of α's weights, long", 20, 140, dropout=(0.0, 0.5)),
    Case("different dropouts, long", 150, 130, batch=(1,), dropout=(0.1, 0.4)),
    Case("everything dropped", 6, 5, dropout=1.0),
    Case("dropout over heads", 6, 5, batch=(2, 3), strides="heads", dropout=0.2),
    Case("dropout over heads, long", 135, 5, batch=(2, 2), dropout=0.2),
    Case("dropout over three batch dimensions", 5, 4, batch=(2, 1, 2), dropout=0.2),
    Case("dropout and holes", 20, 33, tokens_a=(9, 2), tokens_b=(4, 30), dropout=0.25).but(
        extent_a="mask", extent_b="mask"
    ),
    Case("dropout and lengths, long", 140, 20, tokens_a=(7, 135), tokens_b=(20, 1), dropout=0.25).but(
        extent_a="lengths", extent_b="lengths"
    ),
    Case("dropout, packed", 16, 12, batch=(3,), tokens_a=(16, 3, 7), tokens_b=(5, 12, 2), dropout=0.3).but(
        extent_a="packed", extent_b="packed"
    ),
    Case("dropout and clamp, packed and long", 140, 12, tokens_a=(130, 3), tokens_b=(5, 12), dropout=0.3).but(
        extent_a="packed", extent_b="packed", clamp=0.8
    ),
    Case("dropout, clamp and bias, tile of 128", 70, 90, batch=(1,), dropout=0.3, clamp=0.8, bias="full"),
    Case("dropout, bfloat16", 16, 9, h=32, d_a=20, d_b=24, dtype=torch.bfloat16, dropout=0.1),
    Case("dropout and clamp, float16, long", 140, 9, dtype=torch.float16, dropout=0.1, clamp=1.0),
]

LOW_PRECISION = [
    case.but(name=f"{case.name}, {str(dtype).removeprefix('torch.')}", dtype=dtype)
    for dtype in HALF
    for case in (
        Case("short", 16, 9, h=32, d_a=20, d_b=24),
        Case("d2l widths", 15, 8, h=200, d_a=100, d_b=100),
        Case("tile of 64", 50, 40, batch=(1,)),
        Case("tile of 128", 100, 30, batch=(1,)),
        Case("long", 140, 130, batch=(1,)),
        Case("ragged", 40, 20, tokens_a=(3, 40), tokens_b=(20, 0), extent_a="lengths", extent_b="lengths"),
        Case("holes, long", 140, 20, tokens_a=(70, 4), tokens_b=(2, 11), extent_a="mask", extent_b="mask"),
        Case("packed", 20, 17, tokens_a=(20, 3), tokens_b=(2, 17), extent_a="packed", extent_b="packed"),
        Case("heads", 7, 9, batch=(2, 2), strides="heads"),
    )
]

BIG_SCORES = [
    case.but(name=f"scores of {magnitude:g}, {case.name}", magnitude=magnitude)
    for magnitude in (100.0, 1e4)
    for case in (
        Case("short", 12, 9),
        Case("long", 140, 9),
        Case("ragged", 12, 9, tokens_a=(12, 2), tokens_b=(1, 9), extent_a="lengths", extent_b="lengths"),
        Case("bfloat16", 12, 9, dtype=torch.bfloat16),
        Case("float16, long", 9, 140, dtype=torch.float16),
        Case("scaled", 15, 8, h=200, d_a=100, d_b=100, scale=0.3, seed=2),
        Case("scaled, with a bias, long", 140, 9, scale=0.3, bias="full"),
    )
]


@pytest.mark.parametrize(
    "case", SIZES + LAYOUTS + MASKS + PACKED + BIAS + RULES + LOW_PRECISION + BIG_SCORES, ids=lambda case: case.name
)
def test_against_oracle(case, backend):
    operands = case.operands(backend.device)
    assert_accurate(run(operands, backend.name), operands)


@pytest.mark.parametrize("name", ["triton"] if INTERPRETING else ["native", "reference"])
@pytest.mark.parametrize(
    "case", [PACKED[0], PACKED[3], PACKED[0].but(name="dropout", dropout=0.3)], ids=lambda case: case.name
)
def test_longest_lengths_may_be_any_larger_numbers(case, name):
    """They cost no memory: 2^31 rows a pair are more than there is."""
    operands = case.operands()
    operands.options.update(max_length_a=2**31 - 1, max_length_b=2**31 - 1)
    assert_accurate(run(operands, name), operands)
