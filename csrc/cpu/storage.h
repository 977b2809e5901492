// How numbers lie in memory, and the type they are computed in: half precision is widened row by row.
#pragma once

#include <cstdint>
#include <cstring>

namespace coalign {

struct BFloat16 {
  uint16_t bits;
};

// Memory -> arithmetic.
inline float widen(BFloat16 x) {
  const uint32_t bits = (uint32_t)x.bits << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
inline float widen(_Float16 x) { return (float)x; }
inline float widen(float x) { return x; }
inline double widen(double x) { return x; }

// Arithmetic -> memory, rounded to nearest, ties to even.
inline void narrow(float x, BFloat16* y) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  y->bits = (uint16_t)(x != x ? 0x7fc0 : rounded);
}
inline void narrow(float x, _Float16* y) { *y = (_Float16)x; }
inline void narrow(float x, float* y) { *y = x; }
inline void narrow(double x, double* y) { *y = x; }

template <class S>
using Compute = decltype(widen(S{}));

}  // namespace coalign
