// e^x and ln x of vectors: by polynomials for floats, and a lane at a time for doubles.
#pragma once

#include <cmath>

#include "simd.h"

namespace coalign {

// e^x, counted in 2^power, for results up to e^88; 0 for -inf and results below e^-88, NaN for NaN. The power changes
// no other bit. float: relative error below 2e-7, by Cody and Waite's reduction x = n ln 2 + r, |r| <= ln 2 / 2, and the
// polynomial of degree 6 with 1 for its constant that is closest to e^r there, 4e-9 off.
template <class T>
ALWAYS_INLINE inline Vec<T> exp(Vec<T> x, int power = 0) {
  if constexpr (std::is_same_v<T, float>) {
    typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
    const Vec<T> clamped = max<T>(fill((power - 127) * 0.693147181f), x);  // NaN stays; n = power - 127 makes 0
    const Vec<T> shifted = clamped * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: n in the low bits
    const Vec<T> n = shifted - 12582912.0f;
    const Vec<T> r = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;
    Vec<T> y = fill(1.38526114e-3f);
    y = y * r + 8.38043895e-3f;
    y = y * r + 4.16678487e-2f;
    y = y * r + 1.66663358e-1f;
    y = y * r + 4.99999948e-1f;
    y = y * r + 1.00000006f;
    y = y * r + 1.0f;
    const Ints factor = ((Ints)shifted << 23) + ((127 - power) << 23);
    return y * (Vec<T>)factor;
  } else {
    Vec<T> y;
    for (int i = 0; i < lanes<T>; ++i) y[i] = std::ldexp(std::exp(x[i]), -power);
    return y;
  }
}

// ln x for x >= 0; -inf for 0. float: x = 2^n (1 + f) with 1 + f between sqrt(1/2) and sqrt(2), and
// ln (1 + f) = 2 artanh(s), s = f / (2 + f), by its odd series to the 9th power: relative error below 2e-7.
template <class T>
ALWAYS_INLINE inline Vec<T> log(Vec<T> x) {
  if constexpr (std::is_same_v<T, float>) {
    typedef int32_t Ints __attribute__((vector_size(kVectorBytes)));
    const Ints bits = (Ints)x - 0x3f3504f3;  // sqrt(1/2)
    const Vec<T> n = __builtin_convertvector(bits >> 23, Vec<T>);
    const Vec<T> f = (Vec<T>)((bits & 0x7fffff) + 0x3f3504f3) - 1.0f;
    const Vec<T> s = f / (f + 2.0f), s2 = s * s;
    Vec<T> y = fill(0.22222222f);
    y = y * s2 + 0.28571429f;
    y = y * s2 + 0.4f;
    y = y * s2 + 0.66666667f;
    const Vec<T> tail = s * s2 * y + n * -2.12194440e-4f;
    y = n * 0.693359375f + (tail + s * 2.0f);
    y = x > 3.0e38f ? x : y;
    return x == 0.0f ? fill(-std::numeric_limits<T>::infinity()) : (x == x ? y : x);
  } else {
    Vec<T> y;
    for (int i = 0; i < lanes<T>; ++i) y[i] = std::log(x[i]);
    return y;
  }
}

}  // namespace coalign
