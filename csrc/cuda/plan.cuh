// What a pass is called with besides its operands, and who runs it: route.cuh, compiled once for each kind of numbers
// (float32.cu, bfloat16.cu, float16.cu), for these templates take minutes, and compilers work side by side.
#pragma once

#include <algorithm>
#include <cstdint>

#include "call.cuh"
#include "products.cuh"

namespace coalign::cuda {

struct Plan {
  int64_t pairs, length_a, length_b, arithmetic, shared, stream;

  int64_t longest() const { return std::max(length_a, length_b); }
};

template <class M>
void forward_on(const Plan& plan, const Call<typename M::S>& call);

// Whether the backward pass takes the stream route, for which the deltas need room in memory.
template <class M>
bool needs_deltas(const Plan& plan);

template <class M>
void backward_on(const Plan& plan, const Call<typename M::S>& call);

}  // namespace coalign::cuda
