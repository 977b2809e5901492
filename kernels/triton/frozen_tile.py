"""The frozen model's kernel: from word tables to each pair's two sums, everything between them on chip.

A tile's rows are tokens: all of the premises of some pairs that follow one another, then all of their hypotheses.
With F, own and other the tokens' rows of the table (see model/frozen.py), and only partners (tokens of the same pair
on the other side) in the softmax,

    R = softmax of F Fᵀ's rows                       both softmaxes at once: F Fᵀ is symmetric
    y = relu(W relu(own + R other) + bias)
    V_a, V_b = sums of y over each pair's tokens

Operations for m + n tokens of width h: 2 (m + n) h² of the second layer, and 4 T h for each row of a tile of T rows,
most of it in vain, on matrix cores that hardly notice. Bytes: a table row of 3 h numbers a token, and W once a tile
from the second-level cache, which is why several pairs share one.

A word outside the vocabulary makes its pair's sums NaN: a GPU can't raise an error without waiting. The table must be
finite: pairs share products, and 0 times NaN would reach the others.
"""

import triton
import triton.language as tl

from .blocks import dot, load_block, softmax


@triton.jit
def frozen_sums(
    p_table, p_ids_a, p_ids_b, p_offsets_a, p_offsets_b, p_weight, p_bias, p_sums,
    pairs, owned, words,
    H: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    SHORTER: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr, BLOCK_H: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """A program has `owned` pairs: as many at a time as fill a tile, up to GROUP; or, with SHORTER > 0, one at a time
    and only those of more than SHORTER tokens, which a launch with smaller tiles has left out."""
    pair = tl.program_id(0) * owned
    last = tl.minimum(pair + owned, pairs)
    o_pair = tl.arange(0, GROUP)
    while pair < last:
        start_a = tl.load(p_offsets_a + pair)
        start_b = tl.load(p_offsets_b + pair)
        ends_a = tl.load(p_offsets_a + tl.minimum(pair + 1 + o_pair, last))
        ends_b = tl.load(p_offsets_b + tl.minimum(pair + 1 + o_pair, last))
        tokens = ends_a - start_a + ends_b - start_b  # never falls
        fits = (tokens <= TILE) & (pair + o_pair < last)
        if SHORTER > 0:
            fits = fits & (o_pair == 0) & (tokens > SHORTER)
        count = tl.sum(fits.to(tl.int32), 0)
        if count > 0:
            tokens_a = tl.max(tl.where(fits, ends_a, start_a), 0) - start_a
            tokens_b = tl.max(tl.where(fits, ends_b, start_b), 0) - start_b
            _sum_group(
                p_table, p_ids_a, p_ids_b, p_weight, p_bias, p_sums, words,
                pair, count, start_a, start_b, ends_a, ends_b, tokens_a, tokens_b,
                H, PRECISION, UPCAST, GROUP, TILE, BLOCK_H, WIDTH,
            )  # fmt: skip
        pair += tl.maximum(count, 1)


@triton.jit
def _sum_group(
    p_table, p_ids_a, p_ids_b, p_weight, p_bias, p_sums, words,
    pair, count, start_a, start_b, ends_a, ends_b, tokens_a, tokens_b,
    H: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    GROUP: tl.constexpr, TILE: tl.constexpr, BLOCK_H: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """The sums of `count` pairs whose tokens fit a tile."""
    dtype = p_table.dtype.element_ty
    o_row = tl.arange(0, TILE)
    in_b = o_row >= tokens_a
    keep = o_row < tokens_a + tokens_b
    place = tl.where(in_b, start_b + o_row - tokens_a, start_a + o_row)
    ids = tl.load(p_ids_a + place, mask=keep & (o_row < tokens_a), other=0).to(tl.int64)
    ids += tl.load(p_ids_b + place, mask=keep & in_b, other=0).to(tl.int64)
    known = (ids >= 0) & (ids < words)
    ids = tl.where(known, ids, 0)
    past = tl.where(in_b[:, None], ends_b[None, :], ends_a[None, :]) <= place[:, None]
    of_pair = tl.sum(past.to(tl.int32), 1)

    e = tl.zeros((TILE, TILE), tl.float32)
    for k in range(0, H, BLOCK_H):
        f = load_block(p_table, ids, k + tl.arange(0, BLOCK_H), keep, 3 * H, H)
        e = dot(f, tl.trans(f), e, PRECISION, UPCAST)
    partners = (in_b[:, None] != in_b[None, :]) & (of_pair[:, None] == of_pair[None, :])
    partners = partners & keep[:, None] & keep[None, :]
    weights, _ = softmax(tl.where(partners, e, float("-inf")), 1)
    weights = weights.to(dtype)

    o_out = tl.arange(0, WIDTH)
    y = tl.zeros((TILE, WIDTH), tl.float32)
    for k in range(0, H, BLOCK_H):
        o_k = k + tl.arange(0, BLOCK_H)
        other = load_block(p_table + 2 * H, ids, o_k, keep, 3 * H, H)
        own = load_block(p_table + H, ids, o_k, keep, 3 * H, H)
        x = dot(weights, other, own.to(tl.float32), PRECISION, UPCAST)
        weight = load_block(p_weight, o_out, o_k, o_out < H, H, H)  # (WIDTH, BLOCK_H)
        y = dot(tl.maximum(x, 0.0).to(dtype), tl.trans(weight), y, PRECISION, UPCAST)
    y += tl.load(p_bias + o_out, mask=o_out < H, other=0.0)[None, :]
    y = tl.where((y > 0) & keep[:, None], y, 0.0).to(dtype)

    o_sum = tl.arange(0, 2 * GROUP)  # the pairs' first sums, then their second ones
    o_own = o_sum % GROUP
    of_group = (o_own[:, None] == of_pair[None, :]) & keep[None, :]
    mine = of_group & ((o_sum >= GROUP)[:, None] == in_b[None, :])
    sums = tl.zeros((2 * GROUP, WIDTH), tl.float32)
    sums = dot(tl.where(mine, 1.0, 0.0).to(dtype), y, sums, PRECISION, UPCAST)
    bad = tl.max((of_group & (known == 0)[None, :]).to(tl.int32), 1)
    sums = tl.where((bad > 0)[:, None], float("nan"), sums)
    of = (pair + o_own).to(tl.int64) * 2 + o_sum // GROUP
    store = (o_own < count)[:, None] & (o_out < H)[None, :]
    tl.store(p_sums + of[:, None] * H + o_out[None, :], sums, mask=store)
