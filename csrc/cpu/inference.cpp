// The operator behind kernels/native/inference.py, on LibTorch's stable ABI. Types are checked by model/inference.py;
// shapes, and ids and offsets, whose values nobody has seen, here.
#include "inference.h"

#include <tuple>

#include "../boxed.h"
#include "frozen.h"
#include "layers.h"

namespace coalign {
namespace {

constexpr int64_t kWordsAtOnce = 96;

// A linear layer as a tensor has it, (out, in), and its bias, if any.
struct Given {
  const Tensor& weight;
  const Tensor* bias;

  bool is(int64_t out, int64_t in) const {
    return weight.dim() == 2 && weight.size(0) == out && weight.size(1) == in &&
           (bias == nullptr || (bias->dim() == 1 && bias->size(0) == out));
  }
};

std::tuple<Tensor, int64_t> inference_scores(
    Tensor embedding, Maybe projection, Tensor ids_a, Tensor ids_b, Tensor offsets_a, Tensor offsets_b, Tensor f1,
    Tensor f1_bias, Tensor f2, Tensor f2_bias, Tensor g1, Tensor g1_bias, Tensor g2, Tensor g2_bias, Tensor h1,
    Tensor h1_bias, Tensor h2, Tensor h2_bias, Tensor output, Tensor output_bias) {
  const int64_t width = projection.has_value() ? projection->size(0) : embedding.size(1);
  const int64_t hidden = f1.size(0), h = g1.size(0), classes = output.size(0);
  if ((projection.has_value() && !Given{*projection, nullptr}.is(width, embedding.size(1))) ||
      !Given{f1, &f1_bias}.is(hidden, width) || !Given{f2, &f2_bias}.is(h, hidden) ||
      !Given{g1, &g1_bias}.is(h, 2 * width) || !Given{g2, &g2_bias}.is(h, h) || !Given{h1, &h1_bias}.is(h, 2 * h) ||
      !Given{h2, &h2_bias}.is(h, h) || !Given{output, &output_bias}.is(classes, h)) {
    return {floats({0}), kSizes};
  }
  auto in_order = [](const Tensor& offsets, const Tensor& ids) {
    return extent_fits(offsets, true, ids.numel(), ids.numel());
  };
  const bool alike = offsets_a.numel() == offsets_b.numel();
  if (!alike || !in_order(offsets_a, ids_a) || !in_order(offsets_b, ids_b)) return {floats({0}), kExtents};
  const int64_t tokens = ids_a.numel() + ids_b.numel(), vocabulary = embedding.size(0);
  BatchWords batch(tokens);
  auto add = [&](const Tensor& ids) {
    return ids.scalar_type() == ScalarType::Long ? batch.add(data<int64_t>(ids), ids.numel(), vocabulary)
                                                 : batch.add(data<int32_t>(ids), ids.numel(), vocabulary);
  };
  if (!add(ids_a) || !add(ids_b)) return {floats({0}), kIds};
  return with_network(embedding, [&](auto s) -> std::tuple<Tensor, int64_t> {
    using S = decltype(s);
    using E = Element<S>;
    const int64_t pairs = offsets_a.numel() - 1, words = static_cast<int64_t>(batch.words().size());
    const Columns own{0, static_cast<int>(width)}, other{own.count, own.count};
    Arena weights;
    std::optional<Layer<E>> projected;
    if (projection.has_value()) projected = layer_for<S>(words, *projection, {}, weights);
    const WordLayers<E> first{
        projected, layer_for<S>(words, f1, f1_bias, weights), layer_for<S>(words, f2, f2_bias, weights),
        layer_for<S>(words, g1, g1_bias, own, weights), layer_for<S>(words, g1, {}, other, weights)};
    const FrozenLayers<E> then{
        layer_for<S>(tokens, g2, g2_bias, weights), layer_for<S>(pairs, h1, h1_bias, weights),
        layer_for<S>(pairs, h2, h2_bias, weights), layer_for<S>(pairs, output, output_bias, weights)};
    const Tensor table = torch::stable::new_empty(embedding, {words, 3 * h});
    share_out((words + kWordsAtOnce - 1) / kWordsAtOnce, [&](int64_t block) {
      const int64_t from = block * kWordsAtOnce, count = std::min(kWordsAtOnce, words - from);
      word_rows<S>(
          data<S>(embedding), static_cast<int>(embedding.size(1)), batch.words().data() + from,
          static_cast<int>(count), first, data<S>(table) + from * 3 * h, Arena::of_this_thread());
    });
    auto part = [&](int64_t k) { return Rows<S>(data<S>(table) + k * h, static_cast<int>(h), 3 * h); };
    auto side = [&](const Tensor& ids, const Tensor& offsets, int64_t from) {
      return Words{Extent(offsets, torch::stable::unsqueeze(ids, -1)), batch.which() + from, false};
    };
    const Tensor found = floats({pairs, classes});
    const bool known = score_pairs<S>(
        {part(0), part(1), part(2), words}, side(ids_a, offsets_a, 0), side(ids_b, offsets_b, ids_a.numel()), tokens,
        then, data<float>(found));
    return {found, known ? kFine : kIds};
  });
}

}  // namespace
}  // namespace coalign

STABLE_TORCH_LIBRARY_FRAGMENT(coalign_native, m) {
  m.def(
      "inference_scores(Tensor embedding, Tensor? projection, Tensor ids_a, Tensor ids_b, Tensor offsets_a, Tensor "
      "offsets_b, Tensor f1, Tensor f1_bias, Tensor f2, Tensor f2_bias, Tensor g1, Tensor g1_bias, Tensor g2, Tensor "
      "g2_bias, Tensor h1, Tensor h1_bias, Tensor h2, Tensor h2_bias, Tensor output, Tensor output_bias) -> (Tensor, "
      "int)");
}

STABLE_TORCH_LIBRARY_IMPL(coalign_native, CPU, m) {
  m.impl("inference_scores", EXPLAINED(&coalign::inference_scores));
}
