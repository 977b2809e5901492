// The operators behind kernels/native/frozen.py, on LibTorch's stable ABI. Types and shapes are checked by
// model/frozen.py; ids, lengths and offsets, whose values nobody has seen, here.
#include "frozen.h"

#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "../boxed.h"
#include "layers.h"

namespace coalign {

template bool score_pairs<float>(
    const WordTable<float>&, const Words&, const Words&, int64_t, const FrozenLayers<Element<float>>&, float*);
template bool score_pairs<BFloat16>(
    const WordTable<BFloat16>&, const Words&, const Words&, int64_t, const FrozenLayers<Element<BFloat16>>&, float*);

namespace {

Tensor pack(Tensor weight, Maybe bias) {
  const int out = static_cast<int>(weight.size(0)), numbers = static_cast<int>(weight.size(1));
  return with_network(weight, [&](auto s) {
    using E = Element<decltype(s)>;
    const Tensor made = floats({static_cast<int64_t>(Layer<E>::size((numbers + kPer<E> - 1) / kPer<E>, out))});
    pack_layer(data<decltype(s)>(weight), numbers, maybe_data<float>(bias), out, numbers, data<E>(made));
    return made;
  });
}

template <class E>
Layer<E> layer(const Tensor& packed, int numbers, int out) {
  return {data<E>(packed), (numbers + kPer<E> - 1) / kPer<E>, out};
}

Words words(const Tensor& ids, const Maybe& extent) {
  return {Extent(extent, torch::stable::unsqueeze(ids, -1)), ids.data_ptr(), ids.scalar_type() == ScalarType::Long};
}

bool fits(const Tensor& ids, const Maybe& extent) {
  const bool packed = ids.dim() == 1;
  return extent_fits(extent, packed, packed ? ids.numel() : ids.size(1), ids.numel());
}

std::tuple<Tensor, int64_t> scores(
    Tensor table, Tensor ids_a, Tensor ids_b, Maybe extent_a, Maybe extent_b, Tensor compare, Tensor first,
    Tensor second, Tensor output, int64_t classes) {
  if (!fits(ids_a, extent_a) || !fits(ids_b, extent_b)) return {floats({0}), kExtents};
  const Words a = words(ids_a, extent_a), b = words(ids_b, extent_b);
  if (a.extent.pairs() != b.extent.pairs()) return {floats({0}), kExtents};
  return with_network(table, [&](auto s) -> std::tuple<Tensor, int64_t> {
    using S = decltype(s);
    using E = Element<S>;
    const int64_t width = table.size(1) / 3;
    const int h = static_cast<int>(width);
    const Tensor found = floats({a.extent.pairs(), classes});
    auto part = [&](int64_t k) { return Rows<S>(data<S>(table) + k * width, h, 3 * width); };
    const FrozenLayers<E> layers{
        layer<E>(compare, h, h), layer<E>(first, 2 * h, h), layer<E>(second, h, h),
        layer<E>(output, h, static_cast<int>(classes))};
    const bool known = score_pairs<S>(
        {part(0), part(1), part(2), table.size(0)}, a, b, ids_a.numel() + ids_b.numel(), layers, data<float>(found));
    return {found, known ? kFine : kIds};
  });
}

}  // namespace
}  // namespace coalign

STABLE_TORCH_LIBRARY_FRAGMENT(coalign_native, m) {
  m.def("frozen_pack(Tensor weight, Tensor? bias) -> Tensor");
  m.def(
      "frozen_scores(Tensor table, Tensor ids_a, Tensor ids_b, Tensor? extent_a, Tensor? extent_b, Tensor compare, "
      "Tensor first, Tensor second, Tensor output, int classes) -> (Tensor, int)");
}

STABLE_TORCH_LIBRARY_IMPL(coalign_native, CPU, m) {
  m.impl("frozen_pack", EXPLAINED(&coalign::pack));
  m.impl("frozen_scores", EXPLAINED(&coalign::scores));
}
