// What the products multiply: a float, a double, or two bfloat16 at once where the processor has an instruction.
#pragma once

#include "simd.h"
#include "storage.h"

namespace coalign {

// Two bfloat16 of a row, or of two rows: the first in the low half.
using Pair = uint32_t;

#if defined(__AVX512BF16__) || defined(EMULATED_WIDE_VECTORS)
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

template <class E>
using Sum = std::conditional_t<std::is_same_v<E, Pair>, float, E>;  // products are added up in it

template <class E>
constexpr int kPer = std::is_same_v<E, Pair> ? 2 : 1;  // numbers in an element

// The element that numbers are multiplied as which lie in memory as S: half precision is widened, or paired.
template <class S>
using Element = std::conditional_t<std::is_same_v<S, BFloat16> && kHasPairs, Pair, Compute<S>>;

// sum + a b, lane by lane; of pairs, both products.
template <class E>
ALWAYS_INLINE inline Vec<Sum<E>> multiply_add(Vec<Sum<E>> sum, Vec<E> a, Vec<E> b) {
  if constexpr (!std::is_same_v<E, Pair>) {
    // Said outright where there is a word for it: tuned for some processors, GCC makes two instructions of a lone chain of
    // these, and a row's bits would depend on how many rows are multiplied beside it.
#if defined(__AVX512F__)
    if constexpr (std::is_same_v<E, float>) return (Vec<E>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)sum);
    if constexpr (std::is_same_v<E, double>) return (Vec<E>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)sum);
#elif defined(__AVX2__) && defined(__FMA__)
    if constexpr (std::is_same_v<E, float>) return (Vec<E>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)sum);
    if constexpr (std::is_same_v<E, double>) return (Vec<E>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)sum);
#elif defined(__FMA__) && !defined(EMULATED_WIDE_VECTORS)
    if constexpr (std::is_same_v<E, float>) return (Vec<E>)_mm_fmadd_ps((__m128)a, (__m128)b, (__m128)sum);
    if constexpr (std::is_same_v<E, double>) return (Vec<E>)_mm_fmadd_pd((__m128d)a, (__m128d)b, (__m128d)sum);
#elif defined(__aarch64__)
    if constexpr (std::is_same_v<E, float>) return (Vec<E>)vfmaq_f32((float32x4_t)sum, (float32x4_t)a, (float32x4_t)b);
    if constexpr (std::is_same_v<E, double>) return (Vec<E>)vfmaq_f64((float64x2_t)sum, (float64x2_t)a, (float64x2_t)b);
#endif
    return sum + a * b;
  } else {
#if defined(__AVX512BF16__)
    return (Vec<float>)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
#else
    sum += (Vec<float>)(a & 0xffff0000u) * (Vec<float>)(b & 0xffff0000u);
    return sum + (Vec<float>)(a << 16) * (Vec<float>)(b << 16);
#endif
  }
}

// Rounded to bfloat16: pairs of neighbours in 2 * lanes numbers; pairs of one number each from two rows.
#if defined(__AVX512BF16__)
inline Vec<Pair> pairs_along(const float* row) {
  return (Vec<Pair>)_mm512_cvtne2ps_pbh((__m512)load(row + lanes<float>), (__m512)load(row));
}

inline Vec<Pair> pairs_across(Vec<float> first, Vec<float> second) {
  const auto widened = [](Vec<float> v) {
    return (Vec<Pair>)_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)v));
  };
  return widened(first) | widened(second) << 16;
}
#elif defined(EMULATED_WIDE_VECTORS)
inline Pair rounded(float x) {
  BFloat16 y;
  narrow(x, &y);
  return y.bits;
}

inline Vec<Pair> pairs_along(const float* row) {
  Vec<Pair> pairs;
  for (int i = 0; i < lanes<Pair>; ++i) pairs[i] = rounded(row[2 * i]) | rounded(row[2 * i + 1]) << 16;
  return pairs;
}

inline Vec<Pair> pairs_across(Vec<float> first, Vec<float> second) {
  Vec<Pair> pairs;
  for (int i = 0; i < lanes<Pair>; ++i) pairs[i] = rounded(first[i]) | rounded(second[i]) << 16;
  return pairs;
}
#endif

// A row as it lies in memory, in the type that is computed in.
template <class S>
void widen_row(const S* __restrict row, int width, Compute<S>* __restrict out) {
  for (int d = 0; d < width; ++d) out[d] = widen(row[d]);
}

// A row rounded to how it lies in memory.
template <class S>
void narrow_row(const float* __restrict row, int width, S* __restrict out) {
  int d = 0;
#if defined(__AVX512BF16__)
  if constexpr (std::is_same_v<S, BFloat16>) {
    for (; d + 2 * lanes<float> <= width; d += 2 * lanes<float>) {
      const Vec<Pair> pairs = pairs_along(row + d);
      std::memcpy(out + d, &pairs, sizeof(pairs));  // a row may begin at any even address
    }
  }
#endif
  for (; d < width; ++d) narrow(row[d], out + d);
}

}  // namespace coalign
