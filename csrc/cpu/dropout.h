// Dropout without state: whether a number stays follows from the seed and the number's place alone, so that the
// backward pass finds the same ones without a mask.
//
// Places lie in runs of 4096. A run's key is its number, mixed twice, with a key of the seed before each; a place is mixed
// once, with the run's key: two multiplications for a number, on every vector width. Places of a run never share a hash, for
// `mix` is a bijection.
#pragma once

#include <cstdint>

#include "../mix.h"
#include "storage.h"

namespace coalign {

class Dropout {
 public:
  // p in [0, 1]; `layer` tells apart several of one seed. p = 0: nothing is dropped.
  Dropout(double p, int64_t seed, uint32_t layer = 0)
      : on_(p > 0),
        first_(mix((uint32_t)seed + 0x9e3779b9u * layer)),
        second_(mix((uint32_t)((uint64_t)seed >> 32) ^ mix(~layer))),
        least_(p >= 1 ? ~uint32_t{0} : (uint32_t)(p * 4294967296.0)),
        scale_(p >= 1 ? 0.0 : 1.0 / (1.0 - p)) {}

  bool on() const { return on_; }
  double scale() const { return on_ ? scale_ : 1.0; }

  // out[i] = x[i] / (1 - p), or 0 where the number at place from + i is dropped; out may be x.
  template <class S>
  void apply(const S* x, int64_t from, int64_t count, S* out) const {
    using T = Compute<S>;
    const T scale = (T)scale_;
    while (count > 0) {
      const uint64_t run = (uint64_t)from / kRun;
      const uint32_t key = mix(mix((uint32_t)run ^ first_) + second_ + mix((uint32_t)(run >> 32)));
      const uint32_t first = (uint32_t)((uint64_t)from % kRun);
      const int64_t n = count < kRun - first ? count : kRun - first;
      // one number depends on no other, even if out is x: left to themselves, some compilers take them one by one then
#if defined(__clang__)
#pragma clang loop vectorize(assume_safety)
#else
#pragma GCC ivdep
#endif
      for (int64_t i = 0; i < n; ++i) {
        const T value = widen(x[i]) * scale;
        narrow(mix((first + (uint32_t)i) ^ key) >= least_ ? value : T(0), out + i);
      }
      from += n, x += n, out += n, count -= n;
    }
  }

 private:
  static constexpr int64_t kRun = 4096;

  bool on_;
  uint32_t first_, second_, least_;
  double scale_;
};

}  // namespace coalign
