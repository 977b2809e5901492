"""What every kernel shares: finding a pair's rows, loading a block of them, multiplying blocks.

A block of a matrix is addressed as base + row * ROW + column. ROW, a row's stride, is a constant of the
compiled kernel: widths such as 100 or 200 are no multiples of 16, and only a constant tells the compiler which
alignment they do have (with run-time strides it falls back to loads of single elements).
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def place(pair, inner, s_outer, s_inner, UNIT: tl.constexpr):
    """Elements before a pair's first row. Strides come in units, so that their alignment stays known."""
    return ((pair // inner).to(tl.int64) * s_outer + (pair % inner).to(tl.int64) * s_inner) * UNIT


@triton.jit
def locate(p_extent, pair, rows, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """Where a pair's rows on one side are.

    Returns the pair's own mask; the number of rows among which its tokens are (all but padding at the end; a
    mask is searched for it when it fits a BLOCK, BLOCK = 0 leaves it alone); how many rows its outputs have;
    its first row in the operands; and its first row in the outputs, which are contiguous.
    """
    if KIND == "offsets":  # packed: rows follow one another, and there is no padding to write
        start = tl.load(p_extent + pair)
        count = tl.minimum(tl.maximum(tl.load(p_extent + pair + 1) - start, 0), rows)
        return p_extent, count, count, start.to(tl.int64), start.to(tl.int64)
    else:
        p_mask = p_extent
        count = rows
        if KIND == "lengths":
            count = tl.minimum(tl.maximum(tl.load(p_extent + pair), 0), rows).to(tl.int32)
        if KIND == "mask":
            p_mask = p_extent + pair.to(tl.int64) * rows
            if BLOCK > 0:
                o = tl.arange(0, BLOCK)
                token = tl.load(p_mask + o, mask=o < rows, other=0) != 0
                count = tl.max(tl.where(token, o + 1, 0), 0)
        return p_mask, count, rows, tl.zeros((), tl.int64), pair.to(tl.int64) * rows


@triton.jit
def tokens(p_mask, o_row, count, KIND: tl.constexpr):
    """Which of the rows o_row are tokens; p_mask is the pair's own."""
    keep = o_row < count
    if KIND == "mask":
        keep = keep & (tl.load(p_mask + o_row, mask=keep, other=0) != 0)
    return keep


@triton.jit
def load_block(p, o_row, o_col, keep, ROW: tl.constexpr, WIDTH: tl.constexpr):
    """(rows, columns) of a matrix; 0 in rows not kept (whatever they hold) and beyond its width."""
    mask = keep[:, None] & (o_col < WIDTH)[None, :]
    return tl.load(p + o_row.to(tl.int64)[:, None] * ROW + o_col[None, :], mask=mask, other=0.0)


@triton.jit
def store_block(p, block, o_row, o_col, keep, rows, WIDTH: tl.constexpr):
    """Write (rows, columns) of a contiguous matrix of so many rows; 0 in rows not kept, where the other side's NaN or
    infinity has met a weight of 0."""
    mask = (o_row < rows)[:, None] & (o_col < WIDTH)[None, :]
    block = tl.where(keep[:, None], block, 0.0)
    tl.store(p + o_row.to(tl.int64)[:, None] * WIDTH + o_col[None, :], block.to(p.dtype.element_ty), mask=mask)


@triton.jit
def zero_rows(p, first, rows, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Zero the rows from first up to rows of a contiguous matrix."""
    for start in range(first, rows, 16):
        o_row = start + tl.arange(0, 16)
        for d in range(0, WIDTH, BLOCK_D):
            zeros = tl.zeros((16, BLOCK_D), tl.float32)
            store_block(p, zeros, o_row, d + tl.arange(0, BLOCK_D), o_row < rows, rows, WIDTH)


@triton.jit
def fill_rows(p, first, rows, value):
    """Set a vector's entries from first up to rows."""
    for start in range(first, rows, 64):
        o_row = start + tl.arange(0, 64)
        tl.store(p + o_row, tl.zeros((64,), tl.float32) + value, mask=o_row < rows)


@triton.jit
def dot(x, y, acc, PRECISION: tl.constexpr, UPCAST: tl.constexpr):
    """acc + x @ y in float32. The interpreter multiplies bfloat16's raw bits, so there (UPCAST) both widen."""
    if UPCAST:
        x = x.to(tl.float32)
        y = y.to(tl.float32)
    return tl.dot(x, y, acc, input_precision=PRECISION)


@triton.jit
def products(
    acc, p_x, p_y, o_m, o_n, keep_m, keep_n, FIRST: tl.constexpr,
    ROW_X: tl.constexpr, ROW_Y: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """acc + a (M, N) block of x yᵀ, BLOCK columns at a time from the column FIRST up to their width."""
    for k in range(FIRST, WIDTH, BLOCK):
        o_k = k + tl.arange(0, BLOCK)
        b_x = load_block(p_x, o_m, o_k, keep_m, ROW_X, WIDTH)  # (M, BLOCK)
        b_y = load_block(p_y, o_n, o_k, keep_n, ROW_Y, WIDTH)  # (N, BLOCK)
        acc = dot(b_x, tl.trans(b_y), acc, PRECISION, UPCAST)
    return acc


@triton.jit
def products_with(
    b_x, p_x, p_y, o_m, o_n, keep_m, keep_n,
    ROW_X: tl.constexpr, ROW_Y: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """A (M, N) block of x yᵀ, where x's first BLOCK columns are already loaded: b_x."""
    b_y = load_block(p_y, o_n, tl.arange(0, BLOCK), keep_n, ROW_Y, WIDTH)  # (N, BLOCK)
    acc = dot(b_x, tl.trans(b_y), tl.zeros((o_m.shape[0], o_n.shape[0]), tl.float32), PRECISION, UPCAST)
    if WIDTH > BLOCK:
        acc = products(acc, p_x, p_y, o_m, o_n, keep_m, keep_n, BLOCK, ROW_X, ROW_Y, WIDTH, BLOCK, PRECISION, UPCAST)
    return acc


@triton.jit
def power_of_e(x):
    """e to the x. Of differences: a score or log-sum-exp scaled to units of log 2 before would be rounded by as much
    as a large one's last place, and weights no longer sum to 1."""
    return tl.exp2(x * LOG2E)


@triton.jit
def scores(
    products, o_m, o_n, keep_m, keep_n, p_bias, s_bias_m, s_bias_n, scale, clamp,
    HAS_BIAS: tl.constexpr, CLAMPED: tl.constexpr,
):  # fmt: skip
    """A (M, N) block of e from f_a f_bᵀ, -inf where either side has no token."""
    e = products * scale
    if CLAMPED:
        e = tl.where(e > clamp, clamp, tl.where(e < -clamp, -clamp, e))
    keep = keep_m[:, None] & keep_n[None, :]
    if HAS_BIAS:
        o_bias = o_m.to(tl.int64)[:, None] * s_bias_m + o_n.to(tl.int64)[None, :] * s_bias_n
        e += tl.load(p_bias + o_bias, mask=keep, other=0.0).to(tl.float32)
    return tl.where(keep, e, float("-inf"))


@triton.jit
def through_clamp(de, products, scale, clamp, CLAMPED: tl.constexpr):
    """The gradient of scale * products, where de is that of the scores; the clamp stops what is beyond it."""
    de *= scale
    if CLAMPED:
        de = tl.where(tl.abs(products * scale) > clamp, 0.0, de)
    return de


@triton.jit
def mix(x):
    """Wellons' lowbias32, of uint32."""
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16)


@triton.jit
def kept(weights, p_seed, pair, o_i, o_j, least, factor, SIDE: tl.constexpr, DROPS: tl.constexpr):
    """Weights with dropout: P's (SIDE 0) or Q's (1), at rows o_i of side a and o_j of side b, shaped to broadcast."""
    if DROPS:
        seed = tl.load(p_seed)
        low = (seed & 0xFFFFFFFF).to(tl.uint32) + tl.full((), 0x9E3779B9, tl.uint32) * (SIDE + 1)
        key = mix(mix((seed >> 32).to(tl.uint32) ^ mix(low)) ^ pair.to(tl.uint32))
        place = mix(mix(key + o_i.to(tl.uint32)) ^ o_j.to(tl.uint32))
        weights = tl.where((mix(place + key) >> 1).to(tl.int32) >= least, weights * factor, 0.0)
    return weights


@triton.jit
def softmax(e, AXIS: tl.constexpr):
    """Softmax of e along an axis, and its log-sum-exp; 0 and -inf where all is -inf."""
    peak = tl.max(e, AXIS, keep_dims=True)
    peak = tl.where(peak == float("-inf"), 0.0, peak)
    weights = power_of_e(e - peak)
    total = tl.sum(weights, AXIS, keep_dims=True)
    lse, total = close(peak, total)
    return weights / total, tl.reshape(lse, (e.shape[1 - AXIS],))


@triton.jit
def close(peak, total):
    """The log-sum-exp of a softmax with this peak and total, and a total to divide by.

    Where nothing was summed: -inf, and 1, so that the weights there stay 0.
    """
    empty = total == 0.0
    total = tl.where(empty, 1.0, total)
    return tl.where(empty, float("-inf"), peak + tl.log2(total) * LN2), total


@triton.jit
def load_closed_lse(p_lse, o_row, keep):
    """The LSE; +inf where nothing was summed, so that exp(e - lse) is 0 there."""
    lse = tl.load(p_lse + o_row, mask=keep, other=float("-inf"))
    return tl.where(lse == float("-inf"), float("inf"), lse)
