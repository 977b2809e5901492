// How numbers lie in memory; arithmetic is in float32 throughout.
#pragma once

#include "device.cuh"

namespace coalign::cuda {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

// Memory -> arithmetic.
COALIGN_DEVICE float widen(float x) { return x; }
COALIGN_DEVICE float widen(Float16 x) { return widen_half(x.bits); }
COALIGN_DEVICE float widen(BFloat16 x) {
  union {
    uint32_t bits;
    float value;
  } y{static_cast<uint32_t>(x.bits) << 16};
  return y.value;
}

// Arithmetic -> memory, rounded to nearest, ties to even.
template <class S>
COALIGN_DEVICE S narrow(float x);
template <>
COALIGN_DEVICE float narrow<float>(float x) {
  return x;
}
template <>
COALIGN_DEVICE Float16 narrow<Float16>(float x) {
  return {narrow_half(x)};
}
template <>
COALIGN_DEVICE BFloat16 narrow<BFloat16>(float x) {
  return {narrow_bfloat(x)};
}

// Two 16-bit numbers as a tensor core's operand holds them.
template <class S>
COALIGN_DEVICE uint32_t pack(S low, S high) {
  return low.bits | static_cast<uint32_t>(high.bits) << 16;
}

COALIGN_DEVICE int least(int x, int y) { return x < y ? x : y; }
COALIGN_DEVICE int most(int x, int y) { return x > y ? x : y; }

}  // namespace coalign::cuda
