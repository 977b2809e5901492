// Running softmaxes of a block of e, along its rows and along its columns.
//
// A row (or column) that continues over several blocks keeps its maximum so far (peak) and the sum of exp(e - peak)
// (total). When a block raises the maximum, what was summed before is worth less, by the factor `fade`. With
// `whole`, the block is all there is, and the weights are divided by their sum at once.
#pragma once

#include <algorithm>

#include "simd.h"

namespace coalign {

template <class T>
constexpr T kNothing = -std::numeric_limits<T>::infinity();

// State of so many rows or columns as a side has tokens; each array has room for whole vectors.
template <class T>
struct Running {
  T *peak, *total, *fade;

  Running from(int first) const { return {peak + first, total + first, fade + first}; }

  // The lanes at i with new maxima; returns what to subtract: the maximum, but 0 while there is nothing.
  ALWAYS_INLINE Vec<T> raise(int i, Vec<T> found) const {
    const Vec<T> before = load(peak + i), now = max<T>(before, found);
    const Vec<T> shift = now == kNothing<T> ? Vec<T>{} : now;
    store(peak + i, now);
    store(fade + i, exp<T>(before - shift));
    return shift;
  }

  // Adds to the totals at i; returns the factor that makes weights add up to 1.
  ALWAYS_INLINE Vec<T> add(int i, Vec<T> found) const {
    const Vec<T> now = load(total + i) * load(fade + i) + found;
    store(total + i, now);
    return now == T(0) ? Vec<T>{} : T(1) / now;
  }
};

// p = exp(e - maximum of its row). `columns` are whole vectors, ld apart.
template <class T>
void row_weights(const T* e, int rows, int columns, int ld, T* p, const Running<T>& state, bool whole) {
  constexpr int W = lanes<T>;
  for (int i = 0; i < rows; i += W, e += W * ld, p += W * ld) {
    const int n = std::min(W, rows - i);
    Vec<T> found[W];
    T factor[W];
    for (int r = 0; r < n; ++r) {
      found[r] = load(e + r * ld);
      for (int j = W; j < columns; j += W) found[r] = max<T>(found[r], load(e + r * ld + j));
    }
    for (int r = n; r < W; ++r) found[r] = Vec<T>{};
    store(factor, state.raise(i, maxima<T>(found)));
    for (int r = 0; r < n; ++r) {
      found[r] = Vec<T>{};
      for (int j = 0; j < columns; j += W) {
        const Vec<T> weights = exp<T>(load(e + r * ld + j) - factor[r]);
        found[r] += weights;
        store(p + r * ld + j, weights);
      }
    }
    for (int r = n; r < W; ++r) found[r] = Vec<T>{};
    store(factor, state.add(i, sums<T>(found)));
    for (int r = 0; whole && r < n; ++r) {
      for (int j = 0; j < columns; j += W) store(p + r * ld + j, load(p + r * ld + j) * factor[r]);
    }
  }
}

// p = exp(e - maximum of its column).
template <class T>
void column_weights(const T* e, int rows, int columns, int ld, T* p, const Running<T>& state, bool whole) {
  constexpr int W = lanes<T>;
  for (int j = 0; j < columns; j += W) {
    Vec<T> found = load(e + j);
    for (int i = 1; i < rows; ++i) found = max<T>(found, load(e + i * ld + j));
    const Vec<T> shift = state.raise(j, found);
    found = Vec<T>{};
    for (int i = 0; i < rows; ++i) {
      const Vec<T> weights = exp<T>(load(e + i * ld + j) - shift);
      found += weights;
      store(p + i * ld + j, weights);
    }
    const Vec<T> factor = state.add(j, found);
    for (int i = 0; whole && i < rows; ++i) store(p + i * ld + j, load(p + i * ld + j) * factor);
  }
}

}  // namespace coalign
