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
GPU_INLINE float widen(float x) { return x; }
GPU_INLINE float widen(Float16 x) { return widen_half(x.bits); }
GPU_INLINE float widen(BFloat16 x) {
  union {
    uint32_t bits;
    float value;
  } y{static_cast<uint32_t>(x.bits) << 16};
  return y.value;
}

// Arithmetic -> memory, rounded to nearest, ties to even.
template <class S>
GPU_INLINE S narrow(float x);
template <>
GPU_INLINE float narrow<float>(float x) {
  return x;
}
template <>
GPU_INLINE Float16 narrow<Float16>(float x) {
  return {narrow_half(x)};
}
template <>
GPU_INLINE BFloat16 narrow<BFloat16>(float x) {
  return {narrow_bfloat(x)};
}

// Two 16-bit numbers as a tensor core's operand holds them.
template <class S>
GPU_INLINE uint32_t pack(S low, S high) {
  return low.bits | static_cast<uint32_t>(high.bits) << 16;
}

GPU_INLINE int least(int x, int y) { return x < y ? x : y; }
GPU_INLINE int most(int x, int y) { return x > y ? x : y; }
// x, but not below 0 or above y: before it is narrowed.
GPU_INLINE int within(int64_t x, int y) { return x < 0 ? 0 : x < y ? static_cast<int>(x) : y; }

}  // namespace coalign::cuda
