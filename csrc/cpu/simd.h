// One vector of whatever width the machine has: the only file that knows instruction sets.
//
// Arithmetic is GCC's and Clang's vector extension; what it can't say (loading part of a vector) has a few
// lines for each instruction set and a loop for the others.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace coalign {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Columns of a block of accumulators with 4 rows: what 32 registers hold, or 16.
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kBlockColumns = 4;
#else
constexpr int kBlockColumns = 2;
#endif

template <class T>
constexpr int lanes = kVectorBytes / sizeof(T);

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes), may_alias, aligned(alignof(T))));
};
template <class T>
using Vec = typename VectorOf<T>::type;  // unaligned when read from memory

constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }

template <class T>
inline Vec<T> fill(T value) {
  return Vec<T>{} + value;
}

template <class T>
inline Vec<T> load(const T* p) {
  return *reinterpret_cast<const Vec<T>*>(p);
}

template <class T>
inline void store(T* p, Vec<T> v) {
  *reinterpret_cast<Vec<T>*>(p) = v;
}

// The first n lanes; the others are 0. 0 < n <= lanes.
template <class T>
inline Vec<T> load_part(const T* p, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
  if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
#else
  if (n == lanes<T>) return load(p);
  Vec<T> v{};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}

template <class T>
inline void store_part(T* p, Vec<T> v, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
  if constexpr (sizeof(T) == 8) _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
#else
  if (n == lanes<T>) return store(p, v);
  for (int i = 0; i < n; ++i) p[i] = v[i];
#endif
}

template <class T>
inline Vec<T> max(Vec<T> a, Vec<T> b) {
  return a > b ? a : b;
}

// Half of each 2 * HALF lanes from a, the other half from b, folded onto one another: see `sums`.
template <class T, int HALF, std::size_t... I>
inline Vec<T> fold(Vec<T> a, Vec<T> b, std::index_sequence<I...>) {
  constexpr int W = lanes<T>;
  constexpr auto from = [](int lane, int upper) {
    const int block = lane / (2 * HALF) * (2 * HALF), within = lane % (2 * HALF);
    return block + within % HALF + upper * HALF + (within >= HALF ? W : 0);
  };
  return __builtin_shufflevector(a, b, from(I, 0)...) + __builtin_shufflevector(a, b, from(I, 1)...);
}

// Lane l of the result is the sum of all lanes of v[l]: a transpose and an addition in one tree. v is spoilt.
template <class T, int HALF = lanes<T> / 2>
inline Vec<T> sums(Vec<T>* v) {
  for (int i = 0; i < HALF; ++i) v[i] = fold<T, HALF>(v[i], v[i + HALF], std::make_index_sequence<lanes<T>>{});
  if constexpr (HALF == 1) {
    return v[0];
  } else {
    return sums<T, HALF / 2>(v);
  }
}

template <class T>
inline T sum(Vec<T> v) {
  T total = 0;
  for (int i = 0; i < lanes<T>; ++i) total += v[i];
  return total;
}

template <class T>
inline T maximum(Vec<T> v) {
  T most = v[0];
  for (int i = 1; i < lanes<T>; ++i) most = v[i] > most ? v[i] : most;
  return most;
}

// e^x for x <= 0 or so; 0 for -inf and far below, NaN for NaN. float: relative error below 2e-7, by Cody and
// Waite's reduction x = n ln 2 + r and the Taylor polynomial of e^r, |r| <= ln 2 / 2, to the 7th power.
template <class T>
inline Vec<T> exp(Vec<T> x) {
  if constexpr (std::is_same_v<T, float>) {
    typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
    const Vec<T> clamped = x < -87.0f ? fill(-87.0f) : (x > 88.0f ? fill(88.0f) : x);
    const Vec<T> shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: n in the low bits
    const Vec<T> n = shifted - 12582912.0f;
    const Vec<T> r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec<T> y = fill(1.9841270e-4f);
    y = y * r + 1.3888889e-3f;
    y = y * r + 8.3333333e-3f;
    y = y * r + 4.1666667e-2f;
    y = y * r + 1.6666667e-1f;
    y = y * r + 0.5f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
    const Ints power = ((Ints)shifted - (Ints)fill(12582912.0f) + 127) << 23;
    y = y * (Vec<T>)power;
    y = x < -87.0f ? fill(0.0f) : y;
    return x == x ? y : x;
  } else {
    Vec<T> y;
    for (int i = 0; i < lanes<T>; ++i) y[i] = std::exp(x[i]);
    return y;
  }
}

}  // namespace coalign
