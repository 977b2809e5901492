// The operators behind kernels/native/frozen.py, on LibTorch's stable ABI. Types and shapes are checked there; ids,
// lengths and offsets, whose values nobody has seen, here.
#include "frozen.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <tuple>

#include "tensors.h"
#include "threads.h"

namespace coalign {
namespace {

// f(S{}) for the type in which memory holds the words.
template <class F>
auto with_words(const Tensor& t, F&& f) {
  return t.scalar_type() == ScalarType::Float ? f(float{}) : f(BFloat16{});
}

Tensor pack(Tensor weight, Maybe bias) {
  const int out = static_cast<int>(weight.size(0)), numbers = static_cast<int>(weight.size(1));
  return with_words(weight, [&](auto s) {
    using E = Element<decltype(s)>;
    const Tensor made = floats({static_cast<int64_t>(Layer<E>::size((numbers + kPer<E> - 1) / kPer<E>, out))});
    pack_layer(data<decltype(s)>(weight), bias.has_value() ? data<float>(*bias) : nullptr, out, numbers, data<E>(made));
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

// Whether no pair reaches beyond the ids that there are.
bool within(const Words& side, const Tensor& ids, const Maybe& extent) {
  if (!extent.has_value() || extent->scalar_type() == ScalarType::Bool) return true;
  const bool wide = extent->scalar_type() == ScalarType::Long;
  auto number = [&](int64_t i) { return wide ? data<int64_t>(*extent)[i] : data<int32_t>(*extent)[i]; };
  const int64_t pairs = side.extent.pairs();
  for (int64_t i = 0; i < pairs; ++i) {
    const int64_t length = side.extent.packed() ? number(i + 1) - number(i) : number(i);
    if (length < 0 || (!side.extent.packed() && length > ids.size(1))) return false;
  }
  return !side.extent.packed() || (number(0) == 0 && number(pairs) == ids.size(0));
}

enum Status : int64_t { kFine, kExtents, kIds };

std::tuple<Tensor, int64_t> scores(
    Tensor table, Tensor ids_a, Tensor ids_b, Maybe extent_a, Maybe extent_b, Tensor compare, Tensor first,
    Tensor second, Tensor output, int64_t classes) {
  const Words a = words(ids_a, extent_a), b = words(ids_b, extent_b);
  if (!within(a, ids_a, extent_a) || !within(b, ids_b, extent_b)) return {floats({0}), kExtents};
  return with_words(table, [&](auto s) -> std::tuple<Tensor, int64_t> {
    using S = decltype(s);
    using E = Element<S>;
    const int64_t pairs = a.extent.pairs(), width = table.size(1) / 3;
    const int h = static_cast<int>(width);
    const Tensor sums = floats({pairs, Frozen<S>::sums_room(h)}), found = floats({pairs, classes});
    auto part = [&](int64_t k) { return Rows<S>(data<S>(table) + k * width, h, 3 * width); };
    const FrozenLayers<E> layers{
        layer<E>(compare, h, h), layer<E>(first, 2 * h, h), layer<E>(second, h, h),
        layer<E>(output, h, static_cast<int>(classes))};
    const Frozen<S> model({part(0), part(1), part(2), table.size(0)}, a, b, layers, data<float>(sums));
    std::atomic<bool> known = true;
    // smaller groups where threads would go without, though a few tokens do not pay for waking one
    const int64_t tokens = ids_a.numel() + ids_b.numel(), threads = torch::stable::get_num_threads();
    const std::vector<int64_t> starts = model.groups(pairs, std::clamp(tokens / (4 * threads), kGroupRows / 2, kGroupRows));
    const int64_t groups = static_cast<int64_t>(starts.size()) - 1;
    share_out(groups, [&](int64_t group, int64_t next) {
      const int64_t then = next == group ? groups : next;
      if (!model.sum(starts[group], starts[group + 1], starts[then], starts[std::min(then + 1, groups)])) known = false;
    });
    if (known) {
      share_out((pairs + kPairsAtOnce - 1) / kPairsAtOnce, [&](int64_t part) {
        model.classify(part * kPairsAtOnce, std::min((part + 1) * kPairsAtOnce, pairs), data<float>(found));
      });
    }
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
  m.impl("frozen_pack", TORCH_BOX(&coalign::pack));
  m.impl("frozen_scores", TORCH_BOX(&coalign::scores));
}
