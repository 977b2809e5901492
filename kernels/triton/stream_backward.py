"""The stream kernels, backward: long sequences, e recomputed from the log-sum-exps and never stored.

A program owns some rows of one side and some columns of their gradients, and walks over the other side. Seen
from its own side (x, f: own; y, g: other; dx̂, dŷ: what arrived for the outputs; L, δ: log-sum-exp and delta)

    P = exp(e − L), Q = exp(e − L_otherᵀ)       softmax over the other side; over the own side
    de = P∘(dx̂ yᵀ − δ) + Q∘(x dŷᵀ − δ_otherᵀ)
    df = scale Σ de g,   dx = Σ Q dŷ

and the other direction is the same with the sides swapped. Owners write what is theirs alone: no atomics, so
the same bits every time, for 10 products where one sweep with atomics would need 7.

`stream_delta` first takes δ_i = ⟨dβ_i, β_i⟩ − dlse_a_i and its twin, (m + n) (d_a + d_b) elements read twice.
Operations of the sweep: 2 m n (5 h + 2.5 (d_a + d_b)) at least; chunks of gradient columns, which appear
when the widths exceed the blocks, each recompute e.
"""

import triton
import triton.language as tl

from .blocks import (
    dot,
    kept,
    load_block,
    load_closed_lse,
    locate,
    place,
    power_of_e,
    products_with,
    scores,
    store_block,
    through_clamp,
    tokens,
)


@triton.jit
def stream_delta(
    p_beta, p_alpha, p_dbeta, p_dalpha, p_dlse_a, p_dlse_b, p_delta_a, p_delta_b, total_a, total_b,
    D_A: tl.constexpr, D_B: tl.constexpr, HAS_DLSE_A: tl.constexpr, HAS_DLSE_B: tl.constexpr,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    programs_a = tl.cdiv(total_a, BLOCK_R)
    tile = tl.program_id(0)
    if tile < programs_a:
        _delta(tile, p_beta, p_dbeta, p_dlse_a, p_delta_a, total_a, D_B, HAS_DLSE_A, BLOCK_R, BLOCK_D)
    else:
        _delta(tile - programs_a, p_alpha, p_dalpha, p_dlse_b, p_delta_b, total_b, D_A, HAS_DLSE_B, BLOCK_R, BLOCK_D)


@triton.jit
def _delta(
    tile, p_out, p_dout, p_dlse, p_delta, total,
    D: tl.constexpr, HAS_DLSE: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    o_r = tile.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    keep = o_r < total
    delta = tl.zeros((BLOCK_R,), tl.float32)
    for d in range(0, D, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)
        b_out = load_block(p_out, o_r, o_d, keep, D, D).to(tl.float32)  # (R, BLOCK_D)
        b_dout = load_block(p_dout, o_r, o_d, keep, D, D).to(tl.float32)  # (R, BLOCK_D)
        delta += tl.sum(b_out * b_dout, 1)
    if HAS_DLSE:
        delta -= tl.load(p_dlse + o_r, mask=keep, other=0.0)
    tl.store(p_delta + o_r, delta, mask=keep)


@triton.jit
def stream_backward(
    p_fa, p_fb, p_a, p_b, p_extent_a, p_extent_b, p_bias,
    s_fa_outer, s_fa_inner, s_fb_outer, s_fb_inner, s_a_outer, s_a_inner, s_b_outer, s_b_inner,
    s_bias_outer, s_bias_inner, s_bias_m, s_bias_n,
    rows_a, rows_b, inner, scale, clamp, p_seed, least_p, least_q, factor_p, factor_q,
    p_lse_a, p_lse_b, p_dbeta, p_dalpha, p_delta_a, p_delta_b,
    p_dfa, p_dfb, p_da, p_db, p_dbias,
    ROW_FA: tl.constexpr, ROW_FB: tl.constexpr, ROW_A: tl.constexpr, ROW_B: tl.constexpr,
    UNIT_FA: tl.constexpr, UNIT_FB: tl.constexpr, UNIT_A: tl.constexpr, UNIT_B: tl.constexpr,
    H: tl.constexpr, D_A: tl.constexpr, D_B: tl.constexpr,
    KIND_A: tl.constexpr, KIND_B: tl.constexpr, HAS_BIAS: tl.constexpr,
    CLAMPED: tl.constexpr, DROPS: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr, HAS_DBIAS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    tiles_a = tl.cdiv(rows_a, BLOCK_M)
    tiles = tiles_a + tl.cdiv(rows_b, BLOCK_M)
    pair = tl.program_id(0) // tiles
    tile = tl.program_id(0) % tiles
    p_mask_a, count_a, stored_a, row_a, out_a = locate(p_extent_a, pair, rows_a, KIND_A, 0)
    p_mask_b, count_b, stored_b, row_b, out_b = locate(p_extent_b, pair, rows_b, KIND_B, 0)
    p_fa += place(pair, inner, s_fa_outer, s_fa_inner, UNIT_FA) + row_a * ROW_FA
    p_fb += place(pair, inner, s_fb_outer, s_fb_inner, UNIT_FB) + row_b * ROW_FB
    p_a += place(pair, inner, s_a_outer, s_a_inner, UNIT_A) + row_a * ROW_A
    p_b += place(pair, inner, s_b_outer, s_b_inner, UNIT_B) + row_b * ROW_B
    p_bias += place(pair, inner, s_bias_outer, s_bias_inner, 1)
    p_dbeta += out_a * D_B
    p_dalpha += out_b * D_A
    if HAS_DBIAS:
        p_dbias += pair.to(tl.int64) * rows_a * rows_b
    if tile < tiles_a:
        _differentiate(
            tile, p_fa, p_fb, p_a, p_b, p_dbeta, p_dalpha, p_lse_a + out_a, p_lse_b + out_b,
            p_delta_a + out_a, p_delta_b + out_b, p_mask_a, p_mask_b, p_bias, s_bias_m, s_bias_n, scale,
            clamp, pair, p_seed, least_p, least_q, factor_p, factor_q,
            count_a, count_b, stored_a, stored_b, p_dfa + out_a * H, p_da + out_a * D_A, p_dbias,
            ROW_FA, ROW_FB, ROW_A, ROW_B, H, D_A, D_B, KIND_A, KIND_B, HAS_BIAS, HAS_DBIAS, CLAMPED, DROPS, 0,
            PRECISION, UPCAST, BLOCK_M, BLOCK_N, BLOCK_H, BLOCK_D,
        )  # fmt: skip
    else:
        _differentiate(
            tile - tiles_a, p_fb, p_fa, p_b, p_a, p_dalpha, p_dbeta, p_lse_b + out_b, p_lse_a + out_a,
            p_delta_b + out_b, p_delta_a + out_a, p_mask_b, p_mask_a, p_bias, s_bias_n, s_bias_m, scale,
            clamp, pair, p_seed, least_q, least_p, factor_q, factor_p,
            count_b, count_a, stored_b, stored_a, p_dfb + out_b * H, p_db + out_b * D_B, p_dbias,
            ROW_FB, ROW_FA, ROW_B, ROW_A, H, D_B, D_A, KIND_B, KIND_A, HAS_BIAS, False, CLAMPED, DROPS, 1,
            PRECISION, UPCAST, BLOCK_M, BLOCK_N, BLOCK_H, BLOCK_D,
        )  # fmt: skip


@triton.jit
def _differentiate(
    tile, p_f, p_f_other, p_x, p_x_other, p_dout, p_dout_other, p_lse, p_lse_other,
    p_delta, p_delta_other, p_mask, p_mask_other, p_bias, s_bias_m, s_bias_n, scale,
    clamp, pair, p_seed, least, least_other, factor, factor_other,
    count, count_other, stored, stored_other, p_df, p_dx, p_dbias,
    ROW_F: tl.constexpr, ROW_F_OTHER: tl.constexpr, ROW_X: tl.constexpr, ROW_X_OTHER: tl.constexpr,
    H: tl.constexpr, D: tl.constexpr, D_OTHER: tl.constexpr,
    KIND: tl.constexpr, KIND_OTHER: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_DBIAS: tl.constexpr,
    CLAMPED: tl.constexpr, DROPS: tl.constexpr, SIDE: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradients of some rows of one side (own, M), from all rows of the other (N)."""
    chunk = tl.program_id(1)
    if (tile * BLOCK_M < stored) & ((chunk * BLOCK_H < H) | (chunk * BLOCK_D < D)):
        o_m = tile * BLOCK_M + tl.arange(0, BLOCK_M)
        o_h = chunk * BLOCK_H + tl.arange(0, BLOCK_H)
        o_d = chunk * BLOCK_D + tl.arange(0, BLOCK_D)
        keep_m = tokens(p_mask, o_m, count, KIND)
        lse = load_closed_lse(p_lse, o_m, keep_m)
        delta = tl.load(p_delta + o_m, mask=keep_m, other=0.0)
        b_f = load_block(p_f, o_m, tl.arange(0, BLOCK_H), keep_m, ROW_F, H)  # (M, BLOCK_H)
        b_x = load_block(p_x, o_m, tl.arange(0, BLOCK_D), keep_m, ROW_X, D)  # (M, BLOCK_D)
        b_dout = load_block(p_dout, o_m, tl.arange(0, BLOCK_D), keep_m, D_OTHER, D_OTHER)  # (M, BLOCK_D)
        df = tl.zeros((BLOCK_M, BLOCK_H), tl.float32)
        dx = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        if tile * BLOCK_M >= count:
            count_other = 0  # all padding: no gradient
        for start in range(0, count_other, BLOCK_N):
            o_n = start + tl.arange(0, BLOCK_N)
            keep_n = tokens(p_mask_other, o_n, count_other, KIND_OTHER)
            ff = products_with(
                b_f, p_f, p_f_other, o_m, o_n, keep_m, keep_n, ROW_F, ROW_F_OTHER, H, BLOCK_H, PRECISION, UPCAST
            )
            e = scores(ff, o_m, o_n, keep_m, keep_n, p_bias, s_bias_m, s_bias_n, scale, clamp, HAS_BIAS, CLAMPED)
            p = power_of_e(e - lse[:, None])
            dp = products_with(
                b_dout, p_dout, p_x_other, o_m, o_n, keep_m, keep_n,
                D_OTHER, ROW_X_OTHER, D_OTHER, BLOCK_D, PRECISION, UPCAST,
            )  # fmt: skip
            o_i = o_m[:, None] if SIDE == 0 else o_n[None, :]
            o_j = o_n[None, :] if SIDE == 0 else o_m[:, None]
            dp = kept(dp, p_seed, pair, o_i, o_j, least, factor, SIDE, DROPS)
            de = p * (dp - delta[:, None])
            q = power_of_e(e - load_closed_lse(p_lse_other, o_n, keep_n)[None, :])
            dq = products_with(
                b_x, p_x, p_dout_other, o_m, o_n, keep_m, keep_n, ROW_X, D, D, BLOCK_D, PRECISION, UPCAST
            )
            dq = kept(dq, p_seed, pair, o_i, o_j, least_other, factor_other, 1 - SIDE, DROPS)
            de += q * (dq - tl.load(p_delta_other + o_n, mask=keep_n, other=0.0)[None, :])
            if HAS_DBIAS:
                if chunk == 0:
                    o_bias = o_m.to(tl.int64)[:, None] * stored_other + o_n[None, :]
                    inside = (o_m < stored)[:, None] & (o_n < stored_other)[None, :]
                    of_bias = tl.where(keep_m[:, None] & keep_n[None, :], de, 0.0).to(p_dbias.dtype.element_ty)
                    tl.store(p_dbias + o_bias, of_bias, mask=inside)
            b_dout_other = load_block(p_dout_other, o_n, o_d, keep_n, D, D)  # (N, BLOCK_D)
            q = kept(q, p_seed, pair, o_i, o_j, least_other, factor_other, 1 - SIDE, DROPS)
            dx = dot(q.to(b_x.dtype), b_dout_other, dx, PRECISION, UPCAST)
            b_f_other = load_block(p_f_other, o_n, o_h, keep_n, ROW_F_OTHER, H)  # (N, BLOCK_H)
            de = through_clamp(de, ff, scale, clamp, CLAMPED)
            df = dot(de.to(b_x.dtype), b_f_other, df, PRECISION, UPCAST)
        store_block(p_df, df, o_m, o_h, keep_m, stored, H)
        store_block(p_dx, dx, o_m, o_d, keep_m, stored, D)
