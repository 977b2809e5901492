// The two matrix products that soft alignment is made of, on rows given by pointers.
//
//   dots     out = scale x yᵀ       contracts along rows: no operand needs transposing
//   combine  out (+)= w y           weighted sums of rows, with factors where they are added up
//
// `dots` holds a block of at most kDotsRows x kDotsColumns accumulators in registers, `combine` of kBlockRows x
// kBlockColumns, each in a function of its own, for a compiler that inlines it finds other uses for the registers.
// Widths and terms count elements: of pairs, `dots` takes half as many as there are numbers, and `combine` half as many
// rows.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstring>

#include "ahead.h"
#include "element.h"

namespace coalign {

// Elements that are added up one after another where a product contracts along rows: errors grow with a chain's length.
constexpr int kChain = 256;

// What `combine` does with a row of sums: out = gain sum, and where it adds, + keep out. keep, gain: a number a row, 1
// where they are null.
template <class T>
struct Fold {
  bool add;
  const T* keep = nullptr;
  const T* gain = nullptr;
};

namespace detail {

template <class E, int MR, int NR>
__attribute__((noinline)) void dots_block(
    const E* const* x, const E* const* y, int width, Sum<E> scale, Sum<E>* out, int ld) {
  using T = Sum<E>;
  constexpr int W = lanes<E>, COUNT = MR * NR;
  Vec<T> acc[round_up(COUNT, W)] = {};
  const E *xs[MR], *ys[NR];
  unroll<MR>([&](auto i) ALWAYS_INLINE { xs[i] = x[i]; });
  unroll<NR>([&](auto j) ALWAYS_INLINE { ys[j] = y[j]; });
  auto step = [&](auto&& read) ALWAYS_INLINE {
    Vec<E> v[NR];
    unroll<NR>([&](auto j) ALWAYS_INLINE { v[j] = in_register<E>(read(ys[j])); });
    unroll<MR>([&](auto i) ALWAYS_INLINE {
      const Vec<E> u = in_register<E>(read(xs[i]));
      unroll<NR>([&](auto j) ALWAYS_INLINE { acc[i * NR + j] = multiply_add<E>(acc[i * NR + j], u, v[j]); });
    });
  };
  int k = 0;
  for (; k + W <= width; k += W) step([k](const E* p) ALWAYS_INLINE { return load(p + k); });
  if (k < width) step([width](const E* p) ALWAYS_INLINE { return load_rest(p, width); });
  store_sums<MR, NR>(acc, scale, out, ld);
}

// Columns from `from` to `to`, NV vectors at a time; of PART, the last of them may lack some lanes: a load of a part
// costs more than a whole one even where it lacks none.
template <class E, int MR, int NV, bool PART>
__attribute__((noinline)) void combine_block(
    const E* const* w, int w_term, const E* const* y, int terms, int from, int to, Sum<E>* const* out, int row,
    const Fold<Sum<E>>& fold, Ahead& ahead) {
  using T = Sum<E>;
  constexpr int W = lanes<E>;
  for (std::ptrdiff_t at = from; at < to; at += NV * W) {
    const int last = PART ? std::min(W, to - static_cast<int>(at) - (NV - 1) * W) : W;
    auto read = [&](const auto* p, auto v) ALWAYS_INLINE {
      if constexpr (!PART || v < NV - 1) {
        return load(p + at + v * W);
      } else {
        return load_part(p + at + v * W, last);
      }
    };
    Vec<T> acc[MR][NV] = {};
    const E* ws[MR];
    unroll<MR>([&](auto r) ALWAYS_INLINE { ws[r] = w[r]; });
    std::ptrdiff_t k = 0;
    for (int j = 0; j < terms; ++j, k += w_term) {
      asm("" : "+r"(k));  // one index for all rows; a compiler that sees it moves MR pointers
      Vec<E> u[NV];
      unroll<NV>([&](auto v) ALWAYS_INLINE { u[v] = in_register<E>(read(y[j], v)); });
      unroll<MR>([&](auto r) ALWAYS_INLINE {
        const Vec<E> weight = fill(ws[r][k]);
        unroll<NV>([&](auto v) ALWAYS_INLINE { acc[r][v] = multiply_add<E>(acc[r][v], u[v], weight); });
      });
    }
    auto each = [&](auto&& f) ALWAYS_INLINE {
      unroll<MR>([&](auto r) ALWAYS_INLINE { unroll<NV>([&](auto v) ALWAYS_INLINE { f(r, v); }); });
    };
    if (fold.gain != nullptr) each([&](auto r, auto v) ALWAYS_INLINE { acc[r][v] *= fill(fold.gain[row + r]); });
    if (fold.add && fold.keep != nullptr) {
      each([&](auto r, auto v) ALWAYS_INLINE {
        acc[r][v] = multiply_add<T>(acc[r][v], read(out[r], v), fill(fold.keep[row + r]));
      });
    } else if (fold.add) {
      each([&](auto r, auto v) ALWAYS_INLINE { acc[r][v] += read(out[r], v); });
    }
    if (last == W) {
      each([&](auto r, auto v) ALWAYS_INLINE { store(out[r] + at + v * W, acc[r][v]); });
    } else {
      unroll<MR>([&](auto r) ALWAYS_INLINE {
        unroll<NV - 1>([&](auto v) ALWAYS_INLINE { store(out[r] + at + v * W, acc[r][v]); });
        store_part(out[r] + at + (NV - 1) * W, acc[r][NV - 1], last);
      });
    }
    ahead.step();
  }
}

// f(constant) for the constant min(n, MOST), n >= 1.
template <int MOST, class F>
inline void with_constant(int n, F&& f) {
  if constexpr (MOST > 1) {
    if (n < MOST) return with_constant<MOST - 1>(n, f);
  }
  f(std::integral_constant<int, MOST>{});
}

}  // namespace detail

// How often `dots` and `combine` call ahead.step().
template <class E>
int dots_steps(int rows, int columns) {
  return (rows + kDotsRows - 1) / kDotsRows * ((columns + kDotsColumns - 1) / kDotsColumns);
}
template <class E>
int combine_steps(int rows, int width) {
  constexpr int STEP = kBlockColumns * lanes<E>;
  return (rows + kBlockRows - 1) / kBlockRows * ((width + STEP - 1) / STEP);
}

// out[i * ld + j] = scale * <x[i], y[j]>, i < rows, j < columns, over so wide rows.
template <class E>
void dots(
    const E* const* x, int rows, const E* const* y, int columns, int width, Sum<E> scale, Sum<E>* out, int ld,
    Ahead& ahead) {
  for (int i = 0; i < rows; i += kDotsRows) {
    for (int j = 0; j < columns; j += kDotsColumns) {
      detail::with_constant<kDotsRows>(rows - i, [&](auto mr) {
        detail::with_constant<kDotsColumns>(columns - j, [&](auto nr) {
          detail::dots_block<E, mr, nr>(x + i, y + j, width, scale, out + i * ld + j, ld);
        });
      });
      ahead.step();
    }
  }
}

// out[i] = <x[i], y[i]>, i < count; out has room for whole vectors.
template <class E>
void dots_by_row(const E* const* x, const E* const* y, int count, int width, Sum<E>* out) {
  constexpr int W = lanes<E>;
  for (int i = 0; i < count; i += W) {
    Vec<Sum<E>> acc[W] = {};
    for (int r = 0; r < std::min(W, count - i); ++r) {
      const E *u = x[i + r], *v = y[i + r];
      Vec<Sum<E>> total{};
      int k = 0;
      for (; k + W <= width; k += W) total = multiply_add<E>(total, load(u + k), load(v + k));
      if (k < width) total = multiply_add<E>(total, load_rest(u, width), load_rest(v, width));
      acc[r] = total;
    }
    store(out + i, sums<Sum<E>>(acc));
  }
}

// sum[r][d] = sum over j < terms of w[r][j * w_term] * y[j][d], r < rows, d < width; folded into out.
template <class E>
void combine(
    const E* const* w, int w_term, const E* const* y, int terms, int width, Sum<E>* const* out, int rows,
    const Fold<Sum<E>>& fold, Ahead& ahead) {
  constexpr int W = lanes<E>, STEP = kBlockColumns * W;
  const int whole = width / STEP * STEP;
  for (int blocks = (rows + kBlockRows - 1) / kBlockRows, r = 0; blocks > 0; --blocks) {
    const int count = (rows - r + blocks - 1) / blocks;  // blocks of nearly one size: a row alone costs as much as four
    detail::with_constant<kBlockRows>(count, [&](auto mr) {
      if (whole > 0) {
        detail::combine_block<E, mr, kBlockColumns, false>(w + r, w_term, y, terms, 0, whole, out + r, r, fold, ahead);
      }
      if (whole == width) return;
      detail::with_constant<kBlockColumns>((width - whole + W - 1) / W, [&](auto nv) {
        const int from = width - nv * W;  // columns that are there already are made again, for masks cost more
        if (from >= 0 && (!fold.add || from == whole)) {
          detail::combine_block<E, mr, nv, false>(w + r, w_term, y, terms, from, width, out + r, r, fold, ahead);
        } else {
          detail::combine_block<E, mr, nv, true>(w + r, w_term, y, terms, whole, width, out + r, r, fold, ahead);
        }
      });
    });
    r += count;
  }
}

// out[k * ld + j] = rows[j][k], j < count (whole vectors of rows), k < width.
template <class E>
void transpose(const E* const* rows, int count, int width, E* out, int ld) {
  constexpr int W = lanes<E>;
  for (int j = 0; j < count; j += W) {
    for (int k = 0; k < width; k += W) {
      const int n = std::min(W, width - k);
      Vec<E> v[W];
      if (n == W) {
        unroll<W>([&](auto r) ALWAYS_INLINE { v[r] = load(rows[j + r] + k); });
      } else {
        unroll<W>([&](auto r) ALWAYS_INLINE { v[r] = load_part(rows[j + r] + k, n); });
      }
      transpose<E>(v);
      unroll<W>([&](auto r) ALWAYS_INLINE {
        if (r < n) store(out + (k + r) * ld + j, v[r]);
      });
    }
  }
}

}  // namespace coalign
