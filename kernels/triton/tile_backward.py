"""The tile kernel, backward: one program differentiates one pair in one sweep over e.

    P = exp(e − lse_a), Q = exp(e − lse_b)                          e recomputed, on chip
    dP = dβ bᵀ, dQ = a dαᵀ
    de = P∘(dP − rowsum(P∘dP) + dlse_a) + Q∘(dQ − columnsum(Q∘dQ) + dlse_b)
    df_a = scale de f_b, df_b = scale deᵀ f_a, db = Pᵀ dβ, da = Q dα

Operations: seven products, 2 m n (3 h + 2 d_a + 2 d_b). Least bytes: the operands, dβ and dα read once, the
four gradients written once, (m + n) (2 h + 1.5 (d_a + d_b)) elements; f_a and f_b are read twice, the second
time from cache. The two one-directional backward passes of an attention kernel need ten products.
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
    products,
    scores,
    store_block,
    through_clamp,
    tokens,
    zero_rows,
)


@triton.jit
def tile_backward(
    p_fa, p_fb, p_a, p_b, p_extent_a, p_extent_b, p_bias,
    s_fa_outer, s_fa_inner, s_fb_outer, s_fb_inner, s_a_outer, s_a_inner, s_b_outer, s_b_inner,
    s_bias_outer, s_bias_inner, s_bias_m, s_bias_n,
    rows_a, rows_b, inner, scale, clamp, p_seed, least_p, least_q, factor_p, factor_q,
    p_lse_a, p_lse_b, p_dbeta, p_dalpha, p_dlse_a, p_dlse_b,
    p_dfa, p_dfb, p_da, p_db, p_dbias,
    ROW_FA: tl.constexpr, ROW_FB: tl.constexpr, ROW_A: tl.constexpr, ROW_B: tl.constexpr,
    UNIT_FA: tl.constexpr, UNIT_FB: tl.constexpr, UNIT_A: tl.constexpr, UNIT_B: tl.constexpr,
    H: tl.constexpr, D_A: tl.constexpr, D_B: tl.constexpr,
    KIND_A: tl.constexpr, KIND_B: tl.constexpr, HAS_BIAS: tl.constexpr,
    CLAMPED: tl.constexpr, DROPS: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    HAS_DLSE_A: tl.constexpr, HAS_DLSE_B: tl.constexpr, HAS_DBIAS: tl.constexpr,
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
    p_dfa += out_a * H
    p_dfb += out_b * H
    p_da += out_a * D_A
    p_db += out_b * D_B
    if HAS_DBIAS:
        p_dbias += pair.to(tl.int64) * rows_a * rows_b

    longest = tl.maximum(count_a, count_b)
    for size in tl.static_range(4):  # the tile that holds the pair; 16 << size has no name: a name is no constant
        if 16 << size >= SMALLEST and 16 << size <= LARGEST:
            if (longest <= 16 << size) & ((longest > 8 << size) | (16 << size == SMALLEST)):
                _differentiate(
                    p_fa, p_fb, p_a, p_b, p_mask_a, p_mask_b, p_bias, s_bias_m, s_bias_n, scale, clamp,
                    pair, p_seed, least_p, least_q, factor_p, factor_q,
                    count_a, count_b, stored_a, stored_b,
                    p_lse_a + out_a, p_lse_b + out_b, p_dbeta + out_a * D_B, p_dalpha + out_b * D_A,
                    p_dlse_a + out_a, p_dlse_b + out_b, p_dfa, p_dfb, p_da, p_db, p_dbias,
                    ROW_FA, ROW_FB, ROW_A, ROW_B, H, D_A, D_B, KIND_A, KIND_B, HAS_BIAS,
                    CLAMPED, DROPS, PRECISION, UPCAST, HAS_DLSE_A, HAS_DLSE_B, HAS_DBIAS, 16 << size, BLOCK_H, BLOCK_D,
                )  # fmt: skip
                if 16 << size < LARGEST:
                    zero_rows(p_dfa, 16 << size, stored_a, H, BLOCK_H)
                    zero_rows(p_dfb, 16 << size, stored_b, H, BLOCK_H)
                    zero_rows(p_da, 16 << size, stored_a, D_A, BLOCK_D)
                    zero_rows(p_db, 16 << size, stored_b, D_B, BLOCK_D)


@triton.jit
def _differentiate(
    p_fa, p_fb, p_a, p_b, p_mask_a, p_mask_b, p_bias, s_bias_m, s_bias_n, scale, clamp,
    pair, p_seed, least_p, least_q, factor_p, factor_q,
    count_a, count_b, stored_a, stored_b,
    p_lse_a, p_lse_b, p_dbeta, p_dalpha, p_dlse_a, p_dlse_b, p_dfa, p_dfb, p_da, p_db, p_dbias,
    ROW_FA: tl.constexpr, ROW_FB: tl.constexpr, ROW_A: tl.constexpr, ROW_B: tl.constexpr,
    H: tl.constexpr, D_A: tl.constexpr, D_B: tl.constexpr,
    KIND_A: tl.constexpr, KIND_B: tl.constexpr, HAS_BIAS: tl.constexpr,
    CLAMPED: tl.constexpr, DROPS: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
    HAS_DLSE_A: tl.constexpr, HAS_DLSE_B: tl.constexpr, HAS_DBIAS: tl.constexpr,
    TILE: tl.constexpr, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One pair within TILE x TILE; every pointer is at the pair's first row."""
    o_m = tl.arange(0, TILE)
    o_n = tl.arange(0, TILE)
    keep_m = tokens(p_mask_a, o_m, count_a, KIND_A)
    keep_n = tokens(p_mask_b, o_n, count_b, KIND_B)
    ff = tl.zeros((TILE, TILE), tl.float32)
    ff = products(ff, p_fa, p_fb, o_m, o_n, keep_m, keep_n, 0, ROW_FA, ROW_FB, H, BLOCK_H, PRECISION, UPCAST)
    e = scores(ff, o_m, o_n, keep_m, keep_n, p_bias, s_bias_m, s_bias_n, scale, clamp, HAS_BIAS, CLAMPED)
    dtype = p_a.dtype.element_ty

    p = power_of_e(e - load_closed_lse(p_lse_a, o_m, keep_m)[:, None])
    dp = tl.zeros((TILE, TILE), tl.float32)
    o_i, o_j = o_m[:, None], o_n[None, :]
    p_t = tl.trans(kept(p, p_seed, pair, o_i, o_j, least_p, factor_p, 0, DROPS).to(dtype))
    for d in range(0, D_B, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)
        b_dbeta = load_block(p_dbeta, o_m, o_d, keep_m, D_B, D_B)  # (M, BLOCK_D)
        b_b = load_block(p_b, o_n, o_d, keep_n, ROW_B, D_B)  # (N, BLOCK_D)
        dp = dot(b_dbeta, tl.trans(b_b), dp, PRECISION, UPCAST)
        db = dot(p_t, b_dbeta, tl.zeros((TILE, BLOCK_D), tl.float32), PRECISION, UPCAST)
        store_block(p_db, db, o_n, o_d, keep_n, stored_b, D_B)
    dp = kept(dp, p_seed, pair, o_i, o_j, least_p, factor_p, 0, DROPS)
    delta = tl.sum(p * dp, 1)
    if HAS_DLSE_A:
        delta -= tl.load(p_dlse_a + o_m, mask=keep_m, other=0.0)
    de = p * (dp - delta[:, None])

    q = power_of_e(e - load_closed_lse(p_lse_b, o_n, keep_n)[None, :])
    dq = tl.zeros((TILE, TILE), tl.float32)
    q_16 = kept(q, p_seed, pair, o_i, o_j, least_q, factor_q, 1, DROPS).to(dtype)
    for d in range(0, D_A, BLOCK_D):
        o_d = d + tl.arange(0, BLOCK_D)
        b_dalpha = load_block(p_dalpha, o_n, o_d, keep_n, D_A, D_A)  # (N, BLOCK_D)
        b_a = load_block(p_a, o_m, o_d, keep_m, ROW_A, D_A)  # (M, BLOCK_D)
        dq = dot(b_a, tl.trans(b_dalpha), dq, PRECISION, UPCAST)
        da = dot(q_16, b_dalpha, tl.zeros((TILE, BLOCK_D), tl.float32), PRECISION, UPCAST)
        store_block(p_da, da, o_m, o_d, keep_m, stored_a, D_A)
    dq = kept(dq, p_seed, pair, o_i, o_j, least_q, factor_q, 1, DROPS)
    gamma = tl.sum(q * dq, 0)
    if HAS_DLSE_B:
        gamma -= tl.load(p_dlse_b + o_n, mask=keep_n, other=0.0)
    de += q * (dq - gamma[None, :])

    if HAS_DBIAS:  # the launcher zeroes what lies beyond the tile
        o_bias = o_m[:, None] * stored_b + o_n[None, :]
        inside = (o_m < stored_a)[:, None] & (o_n < stored_b)[None, :]
        of_bias = tl.where(keep_m[:, None] & keep_n[None, :], de, 0.0).to(p_dbias.dtype.element_ty)
        tl.store(p_dbias + o_bias, of_bias, mask=inside)
    de_16 = through_clamp(de, ff, scale, clamp, CLAMPED).to(dtype)
    de_t = tl.trans(de_16)
    for h in range(0, H, BLOCK_H):
        o_h = h + tl.arange(0, BLOCK_H)
        b_fb = load_block(p_fb, o_n, o_h, keep_n, ROW_FB, H)  # (N, BLOCK_H)
        dfa = dot(de_16, b_fb, tl.zeros((TILE, BLOCK_H), tl.float32), PRECISION, UPCAST)
        store_block(p_dfa, dfa, o_m, o_h, keep_m, stored_a, H)
        b_fa = load_block(p_fa, o_m, o_h, keep_m, ROW_FA, H)  # (M, BLOCK_H)
        dfb = dot(de_t, b_fa, tl.zeros((TILE, BLOCK_H), tl.float32), PRECISION, UPCAST)
        store_block(p_dfb, dfb, o_n, o_h, keep_n, stored_b, H)
