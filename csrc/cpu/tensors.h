// Tensors of the stable ABI, as the operators of the model use them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <limits>
#include <optional>
#include <stdexcept>
#include <vector>

namespace coalign {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

template <class S>
S* data(const Tensor& t) {
  return static_cast<S*>(t.data_ptr());
}

template <class S>
S* maybe_data(const Maybe& t) {
  return t.has_value() ? data<S>(*t) : nullptr;
}

// A size that kernels count in int.
inline int as_int(int64_t size) {
  if (size > std::numeric_limits<int>::max()) throw std::length_error("sides of 2^31 rows or numbers are too large");
  return static_cast<int>(size);
}

// A new contiguous tensor of a dtype's number. Straight from the allocator: the operators of the same purpose cost
// several times as much.
inline Tensor uninitialised(const int64_t* shape, std::size_t dimensions, int32_t dtype) {
  std::vector<int64_t> strides(dimensions, 1);
  for (std::size_t i = dimensions; i > 1; --i) strides[i - 2] = strides[i - 1] * shape[i - 1];
  AtenTensorHandle made;
  TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(dimensions), shape, strides.data(), dtype, aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

// A new tensor of float32.
inline Tensor floats(std::initializer_list<int64_t> shape) {
  return uninitialised(shape.begin(), shape.size(), aoti_torch_dtype_float32());
}

}  // namespace coalign
