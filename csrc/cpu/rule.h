// How scores are made of products, and which weights a dropout keeps: kernels/dropout.py says by which hash.
#pragma once

#include <limits>

#include "../mix.h"

namespace coalign {

// Dropout of one softmax's weights.
class Kept {
 public:
  Kept() = default;
  // side: 0 for P, 1 for Q. share: of the weights that are dropped.
  Kept(int64_t seed, uint32_t side, double share)
      : on_(share > 0), key_(dropout_key(seed, side)), least_(least_kept(share)), factor_(kept_factor(share)) {}

  bool on() const { return on_; }

  // The same for one pair.
  Kept of_pair(int64_t pair) const {
    Kept kept = *this;
    kept.key_ = mix(key_ ^ (uint32_t)pair);
    return kept;
  }

  // Weights of the pair's row i and its columns j[0], j[1], ...: dropped, or multiplied by the factor.
  template <class T>
  void apply(T* weights, int i, const int* j, int count) const {
    const uint32_t row = mix(key_ + (uint32_t)i);
    const T factor = (T)factor_;
    for (int k = 0; k < count; ++k) {
      const uint32_t hash = mix(mix(row ^ (uint32_t)j[k]) + key_) >> 1;
      weights[k] = hash >= least_ ? weights[k] * factor : T(0);
    }
  }

 private:
  bool on_ = false;
  uint32_t key_ = 0, least_ = 0;
  double factor_ = 1;
};

// e = clip(scale · product, ±clamp) + bias; P's and Q's weights are kept or dropped. more_a, more_b: null, or what e has
// besides, the sum of a number of its row's and one of its column's; with room for whole vectors.
template <class T>
struct Rule {
  T scale;
  T clamp = std::numeric_limits<T>::infinity();
  Kept p = {}, q = {};
  const T *more_a = nullptr, *more_b = nullptr;
};

}  // namespace coalign
