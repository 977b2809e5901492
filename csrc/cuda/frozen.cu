// The operators that kernels/native/cuda_frozen.py calls, on LibTorch's stable ABI. Arguments are checked by
// model/frozen.py, but for the ids' values.
#include "frozen.cuh"

#include <algorithm>

#include "../boxed.h"
#include "tensors.cuh"

namespace coalign::cuda {
namespace {

// f(M{}) for the arithmetic that serves a table of this type.
template <class F>
auto with_table(const Tensor& table, int64_t arithmetic, F&& f) {
  const bool tensor_cores = arithmetic == kTensorCores;
  if (table.scalar_type() == ScalarType::Float) return tensor_cores ? f(Tf32{}) : f(Simt<float>{});
  return tensor_cores ? f(Mma16<BFloat16>{}) : f(Simt<BFloat16>{});
}

// The rows of a tile that holds pairs together, and of one that holds those that are too long for it; 0: none fits.
// nvcc 13.0 for sm_90 and d2l's h = 200, registers and kilobytes: 64 rows 156, 64 (bfloat16), 137, 90 (TF32), 128, 82
// (IEEE), which is 3, 2 and 2 blocks a multiprocessor; 128 rows 236, 159, 240, 211 and 228, 195.
struct Tiles {
  int shared, alone;
};

template <class M>
Tiles tiles(int width, int64_t memory) {
  if (frozen_sums_bytes<M, 128>(width) <= memory) return {64, 128};
  if (frozen_sums_bytes<M, 64>(width) <= memory) return {64, 0};
  return {frozen_sums_bytes<M, 32>(width) <= memory ? 32 : 0, 0};
}

// The most tokens, of both sides together, that a pair may have.
int64_t frozen_holds(Tensor table, int64_t arithmetic, int64_t shared) {
  return with_table(table, arithmetic, [&](auto math) -> int64_t {
    const Tiles found = tiles<decltype(math)>(static_cast<int>(table.size(1) / 3), shared);
    return std::max(found.shared, found.alone);
  });
}

template <class M, int T>
void launch_tiles(FrozenCall<typename M::S> call, int64_t owned, int shorter, int64_t stream) {
  call.owned = static_cast<int>(owned);
  call.shorter = shorter;
  const dim3 blocks(static_cast<unsigned>((call.pairs + owned - 1) / owned));
  launch(
      frozen_sums<M, T>, blocks, kThreads<T>, static_cast<int>(frozen_sums_bytes<M, T>(call.weight.width)), stream, call);
}

WordIds words_of(const Tensor& ids, const Tensor& offsets) {
  return {ids.data_ptr(), data<const int32_t>(offsets), ids.scalar_type() == ScalarType::Long};
}

Tensor frozen_sums_of(
    Tensor table, Tensor ids_a, Tensor ids_b, Tensor offsets_a, Tensor offsets_b, Tensor weight, Tensor bias,
    int64_t most_tokens, int64_t owned, int64_t arithmetic, int64_t shared, int64_t stream) {
  const auto guard = on_device_of(table);
  const int64_t pairs = offsets_a.size(0) - 1;
  const int width = static_cast<int>(weight.size(0));
  const Tensor sums = new_empty(table, {pairs, 2 * static_cast<int64_t>(width)}, ScalarType::Float);
  if (pairs == 0) return sums;
  with_table(table, arithmetic, [&](auto math) {
    using M = decltype(math);
    using S = typename M::S;
    auto rows = [&](const Tensor& t, int64_t column) -> Rows<S> {
      const S* from = data<const S>(t) + column;
      return {from, t.size(1), width, step_of(reinterpret_cast<uint64_t>(from) | t.size(1) * sizeof(S))};
    };
    FrozenCall<S> call{};
    call.a = words_of(ids_a, offsets_a);
    call.b = words_of(ids_b, offsets_b);
    call.f = rows(table, 0);
    call.own = rows(table, width);
    call.other = rows(table, 2 * width);
    call.weight = rows(weight, 0);
    call.bias = data<const float>(bias);
    call.sums = data<float>(sums);
    call.words = table.size(0);
    call.pairs = pairs;
    call.pitch = hidden_pitch<S>(width);
    const Tiles found = tiles<M>(width, shared);
    if (found.shared == 32) return launch_tiles<M, 32>(call, owned, -1, stream);
    launch_tiles<M, 64>(call, owned, -1, stream);
    if (most_tokens > 64) launch_tiles<M, 128>(call, 1, 64, stream);
  });
  return sums;
}

}  // namespace
}  // namespace coalign::cuda

STABLE_TORCH_LIBRARY_FRAGMENT(coalign_cuda, m) {
  m.def("frozen_holds(Tensor table, int arithmetic, int shared) -> int");
  m.def(
      "frozen_sums(Tensor table, Tensor ids_a, Tensor ids_b, Tensor offsets_a, Tensor offsets_b, Tensor weight, "
      "Tensor bias, int most_tokens, int owned, int arithmetic, int shared, int stream) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(coalign_cuda, DISPATCH_KEY, m) {
  m.impl("frozen_holds", EXPLAINED(&coalign::cuda::frozen_holds));
  m.impl("frozen_sums", EXPLAINED(&coalign::cuda::frozen_sums_of));
}
