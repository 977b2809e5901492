"""The stream kernel, forward: long sequences, e never stored.

One launch holds the programs of both directions. A program owns some rows of one side, walks over the other
side, and keeps a running softmax (peak, total) and the weighted sum; its own side's rows decide its share of
the output alone, so the result does not depend on the order in which programs run.

Operations: 2 m n (2 h + d_a + d_b), four products, because the two directions can't share e: column statistics
need every row's tile. Least bytes: (m + n) (h + d_a + d_b) elements; every program reads the other side once
more, from L2.
"""

import triton
import triton.language as tl

from .blocks import close, dot, kept, load_block, locate, place, power_of_e, products_with, scores, store_block, tokens


@triton.jit
def stream_forward(
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
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tiles_a = tl.cdiv(rows_a, BLOCK_M)
    tiles = tiles_a + tl.cdiv(rows_b, BLOCK_M)
    pair = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    o_d = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    p_mask_a, count_a, stored_a, row_a, out_a = locate(p_extent_a, pair, rows_a, KIND_A, 0)
    p_mask_b, count_b, stored_b, row_b, out_b = locate(p_extent_b, pair, rows_b, KIND_B, 0)
    p_fa += place(pair, inner, s_fa_outer, s_fa_inner, UNIT_FA) + row_a * ROW_FA
    p_fb += place(pair, inner, s_fb_outer, s_fb_inner, UNIT_FB) + row_b * ROW_FB
    p_bias += place(pair, inner, s_bias_outer, s_bias_inner, 1)
    if tile < tiles_a:
        _attend(
            tile, o_d, p_fa, p_fb, p_b + place(pair, inner, s_b_outer, s_b_inner, UNIT_B) + row_b * ROW_B,
            p_mask_a, p_mask_b, p_bias, s_bias_m, s_bias_n, scale, clamp, pair, p_seed, least_p, factor_p,
            count_a, count_b, stored_a,
            p_beta + out_a * D_B, p_lse_a + out_a,
            ROW_FA, ROW_FB, ROW_B, H, D_B, KIND_A, KIND_B, HAS_BIAS, CLAMPED, DROPS, 0, PRECISION, UPCAST,
            BLOCK_M, BLOCK_N, BLOCK_H, BLOCK_D,
        )  # fmt: skip
    else:
        _attend(
            tile - tiles_a, o_d, p_fb, p_fa, p_a + place(pair, inner, s_a_outer, s_a_inner, UNIT_A) + row_a * ROW_A,
            p_mask_b, p_mask_a, p_bias, s_bias_n, s_bias_m, scale, clamp, pair, p_seed, least_q, factor_q,
            count_b, count_a, stored_b,
            p_alpha + out_b * D_A, p_lse_b + out_b,
            ROW_FB, ROW_FA, ROW_A, H, D_A, KIND_B, KIND_A, HAS_BIAS, CLAMPED, DROPS, 1, PRECISION, UPCAST,
            BLOCK_M, BLOCK_N, BLOCK_H, BLOCK_D,
        )  # fmt: skip


@triton.jit
def _attend(
    tile, o_d, p_f, p_f_other, p_x_other,
    p_mask, p_mask_other, p_bias, s_bias_m, s_bias_n, scale, clamp, pair, p_seed, least, factor,
    count, count_other, stored,
    p_out, p_lse,
    ROW_F: tl.constexpr, ROW_F_OTHER: tl.constexpr, ROW_X_OTHER: tl.constexpr,
    H: tl.constexpr, D: tl.constexpr, KIND: tl.constexpr, KIND_OTHER: tl.constexpr, HAS_BIAS: tl.constexpr,
    CLAMPED: tl.constexpr, DROPS: tl.constexpr, SIDE: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Some rows of one side (own, M) attend to all of the other (N), for the columns o_d of its values."""
    if (tile * BLOCK_M < stored) & (tl.program_id(1) * BLOCK_D < D):
        o_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        keep_m = tokens(p_mask, o_m, count, KIND)
        b_f = load_block(p_f, o_m, tl.arange(0, BLOCK_H), keep_m, ROW_F, H)  # (M, BLOCK_H)
        peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        total = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        if tile * BLOCK_M >= count:
            count_other = 0  # all padding: nothing to align
        for start in range(0, count_other, BLOCK_N):
            o_n = start + tl.arange(0, BLOCK_N)
            keep_n = tokens(p_mask_other, o_n, count_other, KIND_OTHER)
            e = products_with(
                b_f, p_f, p_f_other, o_m, o_n, keep_m, keep_n, ROW_F, ROW_F_OTHER, H, BLOCK_H, PRECISION, UPCAST
            )
            e = scores(e, o_m, o_n, keep_m, keep_n, p_bias, s_bias_m, s_bias_n, scale, clamp, HAS_BIAS, CLAMPED)
            b_x = load_block(p_x_other, o_n, o_d, keep_n, ROW_X_OTHER, D)  # (N, BLOCK_D)
            new_peak = tl.maximum(peak, tl.max(e, 1))
            shift = tl.where(new_peak == float("-inf"), 0.0, new_peak)
            weights = power_of_e(e - shift[:, None])
            fade = power_of_e(peak - shift)
            total = total * fade + tl.sum(weights, 1)
            o_i = o_m[:, None] if SIDE == 0 else o_n[None, :]
            o_j = o_n[None, :] if SIDE == 0 else o_m[:, None]
            weights = kept(weights, p_seed, pair, o_i, o_j, least, factor, SIDE, DROPS)
            acc = dot(weights.to(b_x.dtype), b_x, acc * fade[:, None], PRECISION, UPCAST)
            peak = new_peak
        lse, total = close(peak, total)
        store_block(p_out, acc / total[:, None], o_m, o_d, keep_m, stored, D)
        if tl.program_id(1) == 0:
            tl.store(p_lse + o_m, lse, mask=o_m < stored)
