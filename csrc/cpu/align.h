// Soft alignment of one pair on one thread, forward and backward.
//
//   e = scale f_a f_bᵀ + bias        P, Q: softmax of its rows, of its columns
//   β = P b, α = Qᵀ a                lse_a, lse_b
//
// e is made block by block, 64 x 64 at most, and each block serves both directions: three products forward, seven
// backward, where two one-directional passes need four and ten. A pair of up to 64 x 64 tokens is a single block.
// Longer ones keep a running softmax for the rows *and* for the columns, whose weighted sums are rescaled when
// their maximum rises. The rows are lists of pointers to tokens, so padding, wherever it lies, costs nothing.
// One thread owns a pair: the result does not depend on how many there are.
//
// Forward: 2 m n (h + d_a + d_b) operations and 2 m n exponentials. Backward: 2 m n (3 h + 2 d_a + 2 d_b).
#pragma once

#include <cmath>

#include "arena.h"
#include "products.h"
#include "storage.h"

namespace coalign {

// One side of a pair: so many tokens, their rows of f (h wide) and of x (d wide).
template <class T>
struct Tokens {
  int count;
  const T* const* f;
  const T* const* x;
  int d;
};

// bias[i * row + j * column] for the i-th and j-th row of the pair (padding counted); null where there is none.
template <class B>
struct Bias {
  B* data;
  int64_t row, column;
  const int* index_a;
  const int* index_b;
};

constexpr int kBlock = 64;

namespace detail {

template <class T>
constexpr T kNothing = -std::numeric_limits<T>::infinity();

template <class T>
void scale_row(T* row, int width, T factor) {
  for (int d = 0; d < width; ++d) row[d] *= factor;
}

// A block of e, its columns padded to whole vectors with -inf.
template <class T, class B>
void scores(
    const Tokens<T>& a, const Tokens<T>& b, int i0, int rows, int j0, int columns, int h, T scale,
    const Bias<const B>& bias, T* e, int ld) {
  dots(a.f + i0, rows, b.f + j0, columns, h, scale, e, ld);
  for (int i = 0; i < rows; ++i) {
    T* row = e + i * ld;
    if (bias.data != nullptr) {
      const B* p = bias.data + bias.index_a[i0 + i] * bias.row;
      for (int j = 0; j < columns; ++j) row[j] += widen(p[bias.index_b[j0 + j] * bias.column]);
    }
    for (int j = columns; j < ld; ++j) row[j] = kNothing<T>;
  }
}

// What a running softmax must subtract: its maximum, but 0 while there is nothing.
template <class T>
T shift_of(T peak) {
  return peak == kNothing<T> ? T(0) : peak;
}

}  // namespace detail

// beta, alpha: rows to write, one a token; lse_a, lse_b: one number a token.
template <class T, class B>
void align_forward(
    const Tokens<T>& a, const Tokens<T>& b, int h, T scale, const Bias<const B>& bias, T* const* beta,
    T* const* alpha, T* lse_a, T* lse_b, Arena& arena) {
  using namespace detail;
  constexpr int W = lanes<T>;
  const int ld = round_up(std::min(b.count, kBlock), W);
  T* e = arena.take<T>(kBlock * ld);
  T* p = arena.take<T>(kBlock * ld);
  T* total_a = arena.take<T>(a.count);
  T* peak_b = arena.take<T>(round_up(b.count, kBlock));
  T* total_b = arena.take<T>(round_up(b.count, kBlock));
  T* fade_b = arena.take<T>(kBlock);
  T* peak_a = lse_a;
  for (int i = 0; i < a.count; ++i) peak_a[i] = kNothing<T>, total_a[i] = 0;
  for (int j = 0; j < round_up(b.count, W); ++j) peak_b[j] = kNothing<T>, total_b[j] = 0;

  for (int i0 = 0; i0 < a.count; i0 += kBlock) {
    const int rows = std::min(kBlock, a.count - i0);
    for (int j0 = 0; j0 < b.count; j0 += kBlock) {
      const int columns = std::min(kBlock, b.count - j0), padded = round_up(columns, W);
      scores(a, b, i0, rows, j0, columns, h, scale, bias, e, ld);

      for (int i = 0; i < rows; ++i) {  // rows: β
        const T* from = e + i * ld;
        T* to = p + i * ld;
        Vec<T> most = load(from);
        for (int j = W; j < padded; j += W) most = max<T>(most, load(from + j));
        const T before = peak_a[i0 + i], peak = std::max(before, maximum<T>(most)), shift = shift_of(peak);
        Vec<T> totals{};
        for (int j = 0; j < padded; j += W) {
          const Vec<T> weights = exp<T>(load(from + j) - shift);
          totals += weights;
          store(to + j, weights);
        }
        const T fade = before == peak ? T(1) : std::exp(before - shift);
        total_a[i0 + i] = total_a[i0 + i] * fade + sum<T>(totals);
        peak_a[i0 + i] = peak;
        if (j0 > 0 && fade != T(1)) scale_row(beta[i0 + i], b.d, fade);
      }
      combine(p, ld, 1, b.x + j0, columns, b.d, beta + i0, rows, j0 > 0);

      for (int j = 0; j < padded; j += W) {  // columns: α
        const Vec<T> before = load(peak_b + j0 + j);
        Vec<T> peak = before;
        for (int i = 0; i < rows; ++i) peak = max<T>(peak, load(e + i * ld + j));
        const Vec<T> shift = peak == kNothing<T> ? Vec<T>{} : peak;
        Vec<T> totals{};
        for (int i = 0; i < rows; ++i) {
          const Vec<T> weights = exp<T>(load(e + i * ld + j) - shift);
          totals += weights;
          store(p + i * ld + j, weights);
        }
        const Vec<T> fade = exp<T>(before - shift);
        store(fade_b + j, fade);
        store(total_b + j0 + j, load(total_b + j0 + j) * fade + totals);
        store(peak_b + j0 + j, peak);
      }
      for (int j = 0; i0 > 0 && j < columns; ++j) {
        if (fade_b[j] != T(1)) scale_row(alpha[j0 + j], a.d, fade_b[j]);
      }
      combine(p, 1, ld, a.x + i0, rows, a.d, alpha + j0, columns, i0 > 0);
    }
  }
  auto finish = [](int count, const T* peak, const T* total, T* const* out, int width, T* lse) {
    for (int i = 0; i < count; ++i) {
      if (total[i] != T(0)) scale_row(out[i], width, T(1) / total[i]);
      lse[i] = total[i] == T(0) ? kNothing<T> : peak[i] + std::log(total[i]);
    }
  };
  finish(a.count, peak_a, total_a, beta, b.d, lse_a);
  finish(b.count, peak_b, total_b, alpha, a.d, lse_b);
}

// What arrived for a side's outputs: dout, rows d_other wide; delta_i = <dout_i, out_i> - dlse_i; the side's LSEs.
template <class T>
struct Arrived {
  const T* const* dout;
  const T* delta;
  const T* lse;
};

// df, dx: rows to write on either side, one a token. dbias: null, or the pair's, of which only tokens are written.
template <class T, class B>
void align_backward(
    const Tokens<T>& a, const Tokens<T>& b, int h, T scale, const Bias<const B>& bias, const Arrived<T>& to_a,
    const Arrived<T>& to_b, T* const* df_a, T* const* df_b, T* const* dx_a, T* const* dx_b, const Bias<T>& dbias,
    Arena& arena) {
  using namespace detail;
  constexpr int W = lanes<T>;
  const int ld = round_up(std::min(b.count, kBlock), W);
  T* p = arena.take<T>(kBlock * ld);
  T* q = arena.take<T>(kBlock * ld);
  T* dp = arena.take<T>(kBlock * ld);
  T* dq = arena.take<T>(kBlock * ld);
  T* lse_b = arena.take<T>(kBlock);
  T* delta_b = arena.take<T>(kBlock);
  auto closed = [](T lse) { return lse == kNothing<T> ? -lse : lse; };  // +inf: e - lse is -inf and its weight 0

  for (int i0 = 0; i0 < a.count; i0 += kBlock) {
    const int rows = std::min(kBlock, a.count - i0);
    for (int j0 = 0; j0 < b.count; j0 += kBlock) {
      const int columns = std::min(kBlock, b.count - j0), padded = round_up(columns, W);
      for (int j = 0; j < padded; ++j) {
        lse_b[j] = j < columns ? closed(to_b.lse[j0 + j]) : T(0);
        delta_b[j] = j < columns ? to_b.delta[j0 + j] : T(0);
      }
      scores(a, b, i0, rows, j0, columns, h, scale, bias, p, ld);
      dots(to_a.dout + i0, rows, b.x + j0, columns, b.d, T(1), dp, ld);
      dots(a.x + i0, rows, to_b.dout + j0, columns, a.d, T(1), dq, ld);
      for (int i = 0; i < rows; ++i) {
        const T lse = closed(to_a.lse[i0 + i]), delta = to_a.delta[i0 + i];
        for (int at = i * ld, j = 0; j < padded; j += W, at += W) {
          const Vec<T> e = load(p + at);
          const Vec<T> row = exp<T>(e - lse), column = exp<T>(e - load(lse_b + j));
          store(p + at, row);
          store(q + at, column);
          store(dp + at, row * (load(dp + at) - delta) + column * (load(dq + at) - load(delta_b + j)));
        }
        if (dbias.data != nullptr) {
          T* out = dbias.data + dbias.index_a[i0 + i] * dbias.row;
          for (int j = 0; j < columns; ++j) out[dbias.index_b[j0 + j] * dbias.column] = dp[i * ld + j];
        }
        scale_row(dp + i * ld, columns, scale);
      }
      combine(dp, ld, 1, b.f + j0, columns, h, df_a + i0, rows, j0 > 0);
      combine(dp, 1, ld, a.f + i0, rows, h, df_b + j0, columns, i0 > 0);
      combine(p, 1, ld, to_a.dout + i0, rows, b.d, dx_b + j0, columns, i0 > 0);
      combine(q, ld, 1, to_b.dout + j0, columns, a.d, dx_a + i0, rows, j0 > 0);
    }
  }
}

}  // namespace coalign
