"""The tile kernel, forward: one program aligns one pair, both lengths within one tile.

    e = clip(scale f_a f_bᵀ) + bias    (M, N), on chip, once
    P, lse_a = softmax of e's rows     β = P b
    Q, lse_b = softmax of e's columns  α = Qᵀ a

Operations: 2 m n (h + d_a + d_b), three products. Least bytes: each operand read once and each output written
once, (m + n) (h + d_a + d_b) elements. At NLI sizes (15 x 8 tokens, h 200, d 100) that is 2 operations a byte
or 96 kflop a pair: memory and latency decide, not arithmetic.

Ragged pairs take the smallest tile of 16, 32, 64, 128 that holds them, chosen by the program from the pair's
own lengths, since a launch can't know them without waiting for the device.
"""

import triton
import triton.language as tl

from .blocks import (
    dot,
    fill_rows,
    kept,
    load_block,
    locate,
    place,
    products,
    scores,
    softmax,
    store_block,
    tokens,
    zero_rows,
)


@triton.jit
def tile_forward(
    p_fa, p_fb, p_a, p_b, p_extent_a, p_extent_b, p_bias,
    s_fa_outer, s_fa_inner, s_fb_outer, s_fb_inner, s_a_outer, s_a_inner, s_b_outer, s_b_inner,
    s_bias_outer, s_bias_inner, s_bias_m, s_bias_n,
    rows_a, rows_b, inner, scale, clamp, p_seed, least_p, least_q, factor_p, factor_q,
    p_beta, p_alpha, p_lse_a, p_lse_b,
    ROW_FA: tl.constexpr, ROW_FB: tl.constexpr, ROW_A: tl.constexpr, ROW_B: tl.constexpr,
    UNIT_FA: tl.constexpr, UNIT_FB: tl.constexpr, UNIT_A: tl.constexpr, UNIT_B: tl.constexpr,
    H: tl.constexpr, D_A: tl.constexpr, D_B: tl.constexpr,
    KIND_A: tl.constexpr, KIND_B: tl.constexpr, HAS_BIAS: tl.constexpr,
    CLAMPED: tl.constexpr, DROPS: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    SMALLEST: tl.constexpr, LARGEST: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(0)
    p_mask_a, count_a, stored_a, row_a, out_a = locate(p_extent_a, pair, rows_a, KIND_A, LARGEST)
    p_mask_b, count_b, stored_b, row_b, out_b = locate(p_extent_b, pair, rows_b, KIND_B, LARGEST)
    p_fa += place(pair, inner, s_fa_outer, s_fa_inner, UNIT_FA) + row_a * ROW_FA
    p_fb += place(pair, inner, s_fb_outer, s_fb_inner, UNIT_FB) + row_b * ROW_FB
    p_a += place(pair, inner, s_a_outer, s_a_inner, UNIT_A) + row_a * ROW_A
    p_b += place(pair, inner, s_b_outer, s_b_inner, UNIT_B) + row_b * ROW_B
    p_bias += place(pair, inner, s_bias_outer, s_bias_inner, 1)
    p_beta += out_a * D_B
    p_alpha += out_b * D_A
    p_lse_a += out_a
    p_lse_b += out_b

    longest = tl.maximum(count_a, count_b)
    for size in tl.static_range(4):  # the tile that holds the pair; 16 << size has no name: a name is no constant
        if 16 << size >= SMALLEST and 16 << size <= LARGEST:
            if (longest <= 16 << size) & ((longest > 8 << size) | (16 << size == SMALLEST)):
                _align(
                    p_fa, p_fb, p_a, p_b, p_mask_a, p_mask_b, p_bias, s_bias_m, s_bias_n, scale, clamp,
                    pair, p_seed, least_p, least_q, factor_p, factor_q,
                    count_a, count_b, stored_a, stored_b, p_beta, p_alpha, p_lse_a, p_lse_b,
                    ROW_FA, ROW_FB, ROW_A, ROW_B, H, D_A, D_B, KIND_A, KIND_B, HAS_BIAS,
                    CLAMPED, DROPS, PRECISION, UPCAST, 16 << size, BLOCK_H, BLOCK_D,
                )  # fmt: skip
                if 16 << size < LARGEST:
                    zero_rows(p_beta, 16 << size, stored_a, D_B, BLOCK_D)
                    zero_rows(p_alpha, 16 << size, stored_b, D_A, BLOCK_D)
                    fill_rows(p_lse_a, 16 << size, stored_a, float("-inf"))
                    fill_rows(p_lse_b, 16 << size, stored_b, float("-inf"))


@triton.jit
def _align(
    p_fa, p_fb, p_a, p_b, p_mask_a, p_mask_b, p_bias, s_bias_m, s_bias_n, scale, clamp,
    pair, p_seed, least_p, least_q, factor_p, factor_q,
    count_a, count_b, stored_a, stored_b, p_beta, p_alpha, p_lse_a, p_lse_b,
    ROW_FA: tl.constexpr, ROW_FB: tl.constexpr, ROW_A: tl.constexpr, ROW_B: tl.constexpr,
    H: tl.constexpr, D_A: tl.constexpr, D_B: tl.constexpr,
    KIND_A: tl.constexpr, KIND_B: tl.constexpr, HAS_BIAS: tl.constexpr,
    CLAMPED: tl.constexpr, DROPS: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    TILE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One pair within TILE x TILE; every pointer is at the pair's first row."""
    o_m = tl.arange(0, TILE)
    o_n = tl.arange(0, TILE)
    keep_m = tokens(p_mask_a, o_m, count_a, KIND_A)
    keep_n = tokens(p_mask_b, o_n, count_b, KIND_B)
    e = tl.zeros((TILE, TILE), tl.float32)
    e = products(e, p_fa, p_fb, o_m, o_n, keep_m, keep_n, 0, ROW_FA, ROW_FB, H, BLOCK_H, PRECISION, UPCAST)
    e = scores(e, o_m, o_n, keep_m, keep_n, p_bias, s_bias_m, s_bias_n, scale, clamp, HAS_BIAS, CLAMPED)
    dtype = p_a.dtype.element_ty

    p, lse_a = softmax(e, 1)
    tl.store(p_lse_a + o_m, lse_a, mask=o_m < stored_a)
    p = kept(p, p_seed, pair, o_m[:, None], o_n[None, :], least_p, factor_p, 0, DROPS).to(dtype)
    for d in range(0, D_B, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)
        b_b = load_block(p_b, o_n, o_d, keep_n, ROW_B, D_B)  # (N, BLOCK_D)
        beta = dot(p, b_b, tl.zeros((TILE, BLOCK_D), tl.float32), PRECISION, UPCAST)
        store_block(p_beta, beta, o_m, o_d, keep_m, stored_a, D_B)

    q, lse_b = softmax(e, 0)
    tl.store(p_lse_b + o_n, lse_b, mask=o_n < stored_b)
    q = tl.trans(kept(q, p_seed, pair, o_m[:, None], o_n[None, :], least_q, factor_q, 1, DROPS).to(dtype))
    for d in range(0, D_A, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)
        b_a = load_block(p_a, o_m, o_d, keep_m, ROW_A, D_A)  # (M, BLOCK_D)
        alpha = dot(q, b_a, tl.zeros((TILE, BLOCK_D), tl.float32), PRECISION, UPCAST)
        store_block(p_alpha, alpha, o_n, o_d, keep_n, stored_b, D_A)
