// The two matrix products that soft alignment is made of, on rows given by pointers.
//
//   dots     out = scale x yᵀ       contracts along rows: no operand needs transposing
//   combine  out (+)= w y           weighted sums of rows
//
// Both hold a block of at most 4 x kBlockColumns accumulators in registers.
#pragma once

#include <algorithm>

#include "simd.h"

namespace coalign {

namespace detail {

template <class T, int MR, int NR>
inline void dots_block(const T* const* x, const T* const* y, int width, T scale, T* out, int ld) {
  constexpr int W = lanes<T>, COUNT = MR * NR;
  Vec<T> acc[round_up(COUNT, W)] = {};
  int k = 0;
  auto step = [&](auto&& read) {
    Vec<T> v[NR];
    for (int j = 0; j < NR; ++j) v[j] = read(y[j]);
    for (int i = 0; i < MR; ++i) {
      const Vec<T> u = read(x[i]);
      for (int j = 0; j < NR; ++j) acc[i * NR + j] += u * v[j];
    }
  };
  for (; k + W <= width; k += W) step([k](const T* p) { return load(p + k); });
  if (k < width) step([k, n = width - k](const T* p) { return load_part(p + k, n); });
  T total[round_up(COUNT, W)];
  for (int c = 0; c < COUNT; c += W) store(total + c, sums<T>(acc + c) * scale);
  for (int i = 0; i < MR; ++i) {
    for (int j = 0; j < NR; ++j) out[i * ld + j] = total[i * NR + j];
  }
}

template <class T, int MR, int NV>
inline void combine_block(
    const T* w, int w_row, int w_term, const T* const* y, int terms, int last, T* const* out, int at, bool add) {
  constexpr int W = lanes<T>;
  Vec<T> acc[MR][NV] = {};
  auto place = [at](int v) { return at + v * W; };
  if (add) {
    for (int r = 0; r < MR; ++r) {
      for (int v = 0; v < NV - 1; ++v) acc[r][v] = load(out[r] + place(v));
      acc[r][NV - 1] = load_part(out[r] + place(NV - 1), last);
    }
  }
  for (int j = 0; j < terms; ++j) {
    Vec<T> u[NV];
    for (int v = 0; v < NV - 1; ++v) u[v] = load(y[j] + place(v));
    u[NV - 1] = load_part(y[j] + place(NV - 1), last);
    for (int r = 0; r < MR; ++r) {
      const T weight = w[r * w_row + j * w_term];
      for (int v = 0; v < NV; ++v) acc[r][v] += u[v] * weight;
    }
  }
  for (int r = 0; r < MR; ++r) {
    for (int v = 0; v < NV - 1; ++v) store(out[r] + place(v), acc[r][v]);
    store_part(out[r] + place(NV - 1), acc[r][NV - 1], last);
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

// out[i * ld + j] = scale * <x[i], y[j]>, i < rows, j < columns, over so wide rows.
template <class T>
void dots(const T* const* x, int rows, const T* const* y, int columns, int width, T scale, T* out, int ld) {
  for (int i = 0; i < rows; i += 4) {
    for (int j = 0; j < columns; j += kBlockColumns) {
      detail::with_constant<4>(rows - i, [&](auto mr) {
        detail::with_constant<kBlockColumns>(columns - j, [&](auto nr) {
          detail::dots_block<T, mr, nr>(x + i, y + j, width, scale, out + i * ld + j, ld);
        });
      });
    }
  }
}

// out[r][d] (+)= sum over j < terms of w[r * w_row + j * w_term] * y[j][d], r < rows, d < width.
template <class T>
void combine(
    const T* w, int w_row, int w_term, const T* const* y, int terms, int width, T* const* out, int rows, bool add) {
  constexpr int W = lanes<T>, STEP = kBlockColumns * W;
  for (int r = 0; r < rows; r += 4) {
    for (int d = 0; d < width; d += STEP) {
      const int left = std::min(width - d, STEP), vectors = (left + W - 1) / W, last = left - (vectors - 1) * W;
      detail::with_constant<4>(rows - r, [&](auto mr) {
        detail::with_constant<kBlockColumns>(vectors, [&](auto nv) {
          detail::combine_block<T, mr, nv>(w + r * w_row, w_row, w_term, y, terms, last, out + r, d, add);
        });
      });
    }
  }
}

}  // namespace coalign
