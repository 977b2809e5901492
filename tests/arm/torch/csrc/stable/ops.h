// PyTorch's parallel_for where there is one thread.
#pragma once

#include <cstdint>

namespace torch::stable {

template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t, F f) {
  for (; begin < end; ++begin) f(begin, begin + 1);
}

}  // namespace torch::stable
