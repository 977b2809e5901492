// Tensors of the stable ABI, as the operators of the model use them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <initializer_list>
#include <optional>

namespace coalign {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Maybe = std::optional<Tensor>;

template <class S>
S* data(const Tensor& t) {
  return static_cast<S*>(t.data_ptr());
}

// A new vector, or matrix, of float32.
inline Tensor floats(std::initializer_list<int64_t> shape) {
  const int64_t strides[] = {shape.size() == 2 ? shape.begin()[1] : 1, 1};
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      static_cast<int64_t>(shape.size()), shape.begin(), strides, aoti_torch_dtype_float32(),
      aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

}  // namespace coalign
