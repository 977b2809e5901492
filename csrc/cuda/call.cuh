// A call's operands as the kernels see them. Padded and packed calls differ in where a pair's rows start, no more.
#pragma once

#include "rule.cuh"
#include "storage.cuh"

namespace coalign::cuda {

constexpr int kPackedKind = 3;  // kernels/native/__init__.py: 0 full, 1 mask, 2 lengths, 3 offsets

// Which rows of a pair are tokens.
struct Extent {
  const void* data;
  int kind;
  bool wide;  // int64 where true, int32 where not
  int length;

  GPU_INLINE int64_t number(int64_t i) const {
    return wide ? static_cast<const int64_t*>(data)[i] : static_cast<const int32_t*>(data)[i];
  }
  // The rows that a pair has in the outputs, padding included, and the first of them.
  GPU_INLINE int stored(int64_t pair) const {
    return kind == kPackedKind ? least(static_cast<int>(number(pair + 1) - number(pair)), length) : length;
  }
  GPU_INLINE int64_t first(int64_t pair) const { return kind == kPackedKind ? number(pair) : pair * length; }
  // The first row in the operands.
  GPU_INLINE int64_t start(int64_t pair) const { return kind == kPackedKind ? number(pair) : 0; }
  // No token stands at this row or later.
  GPU_INLINE int end(int64_t pair) const {
    return kind == 2 ? within(number(pair), length) : stored(pair);
  }
  GPU_INLINE bool token(int64_t pair, int row) const {
    return row < end(pair) && (kind != 1 || static_cast<const uint8_t*>(data)[pair * length + row] != 0);
  }
};

// Rows of adjacent numbers, `row` apart; `step`: how many bytes at once may be copied of them (16, 8, 4, or 0: none).
template <class S>
struct Rows {
  const S* data;
  int64_t row;
  int width, step;

  GPU_INLINE const S* at(int64_t i) const { return data + i * row; }
};

// (pairs, rows, width) with one or two batch dimensions, or packed rows (total, width).
template <class S>
struct Matrix {
  const S* data;
  int64_t outer, inner, row;
  int heads, width, step;

  // A pair's rows from one of them on.
  GPU_INLINE Rows<S> rows(const Extent& extent, int64_t pair, int from) const {
    const S* of_pair = data + pair / heads * outer + pair % heads * inner;
    return {of_pair + (extent.start(pair) + from) * row, row, width, step};
  }
};

// One of the two sequences. Outputs and the saved LSEs are contiguous.
template <class S>
struct Side {
  Extent extent;
  Matrix<S> f, x;
  S* out;      // forward: β for a, α for b
  float* lse;  // forward: written; backward: read
  // The rest is for the backward pass.
  Matrix<S> saved, dout;  // what came out, and the gradient that arrived for it
  const float* dlse;      // may be null
  float* delta;           // stream route: <dout, out> - dlse, a number a row
  S *df, *dx;
};

// bias[pair, i, j], in S or in float32; null where there is none.
struct Bias {
  const void* data;
  int64_t outer, inner, row, column;
  int heads;
  bool wide;  // float32 where true, S where not

  template <class S>
  GPU_INLINE float at(int64_t pair, int64_t i, int64_t j) const {
    const int64_t place = pair / heads * outer + pair % heads * inner + i * row + j * column;
    return wide ? static_cast<const float*>(data)[place] : widen(static_cast<const S*>(data)[place]);
  }
};

template <class S>
struct Call {
  Side<S> a, b;
  Bias bias;
  float* dbias;  // contiguous; null where not wanted
  Rule rule;
};

// A call, and the same with its sides swapped: β becomes α.
template <class S>
struct Directions {
  Call<S> of[2];

  explicit Directions(const Call<S>& call) : of{call, {call.b, call.a, call.bias, nullptr, call.rule}} {
    of[1].rule.swapped = true;
    of[1].bias.row = call.bias.column;
    of[1].bias.column = call.bias.row;
  }
};

}  // namespace coalign::cuda
