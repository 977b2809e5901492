// A model's linear layers, from their tensors.
#pragma once

#include "linear.h"
#include "tensors.h"

namespace coalign {

// f(S{}) for the types in which a network's numbers may lie in memory.
template <class F>
auto with_network(const Tensor& t, F&& f) {
  return t.scalar_type() == ScalarType::Float ? f(float{}) : f(BFloat16{});
}

// Some columns of a layer's weight.
struct Columns {
  int from, count;
};

// The layer that so many rows will pass: weight (out, in), contiguous, float32 or like the network's rows, and bias (out,)
// float32 or none. Where many will, it is packed into the arena; else it stays where it is.
template <class S, class E = Element<S>>
Layer<E> layer_for(int64_t rows, const Tensor& weight, const Maybe& bias, Columns columns, Arena& arena) {
  const int out = static_cast<int>(weight.size(0)), numbers = columns.count;
  const int in = (numbers + kPer<E> - 1) / kPer<E>;
  const int64_t ld = weight.size(1);
  const float* b = maybe_data<float>(bias);
  auto as_it_lies = [&](const auto* from, int64_t apart) -> Layer<E> {
    return {nullptr, in, out, reinterpret_cast<const E*>(from), apart / kPer<E>, b};
  };
  auto room = [&] { return arena.take<E>(Layer<E>::size(in, out)); };
  if (weight.scalar_type() == ScalarType::Float) {
    const float* from = data<float>(weight) + columns.from;
    if (kPer<E> == 1 && rows <= kFewRows) return as_it_lies(from, ld);
    E* packed = room();
    pack_float_layer<E>(from, ld, b, out, numbers, packed, arena);
    return {packed, in, out};
  }
  const BFloat16* from = data<BFloat16>(weight) + columns.from;
  if constexpr (kPer<E> == 1) {
    float* wide = arena.take<float>(static_cast<std::size_t>(out) * numbers);
    for (int r = 0; r < out; ++r) widen_row(from + r * ld, numbers, wide + static_cast<std::size_t>(r) * numbers);
    if (rows <= kFewRows) return as_it_lies(wide, numbers);
    E* packed = room();
    pack_layer<E>(wide, numbers, b, out, numbers, packed);
    return {packed, in, out};
  } else {
    if (rows <= kFewRows && numbers % 2 == 0 && ld % 2 == 0) return as_it_lies(from, ld);
    E* packed = room();
    pack_layer(from, ld, b, out, numbers, packed);
    return {packed, in, out};
  }
}

template <class S, class E = Element<S>>
Layer<E> layer_for(int64_t rows, const Tensor& weight, const Maybe& bias, Arena& arena) {
  return layer_for<S>(rows, weight, bias, {0, static_cast<int>(weight.size(1))}, arena);
}

}  // namespace coalign
