// Wellons' 32-bit "lowbias32": a bijection whose every output bit depends on every input bit.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define MIX_INLINE __host__ __device__ inline
#else
#define MIX_INLINE inline
#endif

namespace coalign {

MIX_INLINE uint32_t mix(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

// The key by which side 0 (P) or 1 (Q) drops weights: kernels/dropout.py.
MIX_INLINE uint32_t dropout_key(int64_t seed, uint32_t side) {
  const uint64_t bits = static_cast<uint64_t>(seed);
  return mix(static_cast<uint32_t>(bits >> 32) ^ mix(static_cast<uint32_t>(bits) + 0x9e3779b9u * (side + 1)));
}

// A weight is kept if its hash is this or more; and what is kept is multiplied by the factor.
inline uint32_t least_kept(double share) {
  return share >= 1 ? 0x7fffffffu : static_cast<uint32_t>(share * 2147483648.0);
}
inline double kept_factor(double share) { return share >= 1 ? 0 : 1 / (1 - share); }

}  // namespace coalign
