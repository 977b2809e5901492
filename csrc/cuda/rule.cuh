// How scores are made of products, and which weights a dropout keeps: kernels/dropout.py says by which hash.
#pragma once

#include "../mix.h"
#include "device.cuh"

namespace coalign::cuda {

// e = clip(scale · product, ±clamp) + bias. least, factor: of P's dropout and of Q's; seed: null without any.
struct Rule {
  float scale, clamp;
  const int64_t* seed;
  uint32_t least[2];
  float factor[2];
  bool swapped;  // the sides are: what the kernel calls P is Q
};

// A pair's dropout.
class Kept {
 public:
  GPU_INLINE Kept(const Rule& rule, int64_t pair) : rule_(rule) {
    for (int side = 0; on() && side < 2; ++side) {
      key_[side] = mix(dropout_key(*rule.seed, side) ^ static_cast<uint32_t>(pair));
    }
  }

  GPU_INLINE bool on() const { return rule_.seed != nullptr; }
  // What the weights that are kept are multiplied by.
  GPU_INLINE float factor_p() const { return on() ? rule_.factor[rule_.swapped] : 1; }
  GPU_INLINE float factor_q() const { return on() ? rule_.factor[!rule_.swapped] : 1; }
  // Whether the weights at row i of the first side and row j of the second one are kept.
  GPU_INLINE bool p(int i, int j) const { return rule_.swapped ? of(1, j, i) : of(0, i, j); }
  GPU_INLINE bool q(int i, int j) const { return rule_.swapped ? of(0, j, i) : of(1, i, j); }

 private:
  GPU_INLINE bool of(int side, int i, int j) const {
    const uint32_t row = mix(key_[side] + static_cast<uint32_t>(i));
    return mix(mix(row ^ static_cast<uint32_t>(j)) + key_[side]) >> 1 >= rule_.least[side];
  }

  const Rule& rule_;
  uint32_t key_[2] = {0, 0};
};

// A weight in shared memory, its sign saying whether it is kept; so that hashes, in a loop of their own, are not
// unrolled into the products' loops, which then spill.
GPU_INLINE float marked(float weight, bool kept) { return kept ? weight : -weight; }
GPU_INLINE float kept_only(float marked, float factor) { return marked < 0 ? 0 : marked * factor; }
GPU_INLINE float factor_of(float marked, float factor) { return marked < 0 ? 0 : factor; }

// The places where a clamp stopped a lane's numbers of a tile, in the order in which for_each visits them.
class Beyond {
 public:
  GPU_INLINE float clip(float e, float clamp, int k) {
    if (fabsf(e) > clamp) bits_ |= 1u << k;
    return e > clamp ? clamp : e < -clamp ? -clamp : e;
  }
  GPU_INLINE bool at(int k) const { return bits_ >> k & 1; }

 private:
  uint32_t bits_ = 0;
};

}  // namespace coalign::cuda
