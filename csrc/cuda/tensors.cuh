// Tensors of the stable ABI, as the operators use them.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
#include <type_traits>

#include "storage.cuh"

#ifndef DISPATCH_KEY
#define DISPATCH_KEY CUDA
#endif

namespace coalign::cuda {

using torch::headeronly::ScalarType;
using torch::stable::new_empty;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

// kernels/native/cuda.py
constexpr int64_t kTensorCores = 1;

template <class S>
constexpr ScalarType kTypeOf = ScalarType::Undefined;
template <>
inline constexpr ScalarType kTypeOf<float> = ScalarType::Float;
template <>
inline constexpr ScalarType kTypeOf<BFloat16> = ScalarType::BFloat16;
template <>
inline constexpr ScalarType kTypeOf<Float16> = ScalarType::Half;
template <>
inline constexpr ScalarType kTypeOf<int32_t> = ScalarType::Int;
template <>
inline constexpr ScalarType kTypeOf<int64_t> = ScalarType::Long;

// A kernel would take any bytes for numbers of its own type.
template <class S>
S* data(const Tensor& t) {
  STD_TORCH_CHECK(t.scalar_type() == kTypeOf<std::remove_const_t<S>>, "a tensor of another type than the kernel reads");
  return static_cast<S*>(t.data_ptr());
}

// How many bytes may be copied at once from addresses that are all multiples of what `common` is one of.
inline int step_of(uint64_t common) { return common % 16 == 0 ? 16 : common % 8 == 0 ? 8 : common % 4 == 0 ? 4 : 0; }

// Kernels launch on the current device, which need not be the operands'.
inline std::optional<torch::stable::accelerator::DeviceGuard> on_device_of(const Tensor& t) {
  if (t.is_cpu()) return std::nullopt;  // the simulator's tensors
  return std::optional<torch::stable::accelerator::DeviceGuard>(std::in_place, t.get_device());
}

}  // namespace coalign::cuda
