// The operators behind kernels/native/mlp.py, on LibTorch's stable ABI. Types and shapes are checked by
// model/mlp.py and model/dropout.py.
#include "mlp.h"

#include <torch/csrc/stable/ops.h>

#include <tuple>
#include <vector>

#include "../boxed.h"
#include "layers.h"
#include "threads.h"

namespace coalign {
namespace {

// Rows are divided into shares, whose gradients of weights are added up: of so many rows, fewer where there are only
// some blocks of them, more where shares would be too many.
constexpr int64_t kShareRows = 4 * kMlpRows, kFewShares = 4, kMostShares = 64;

// The layer turned round: of weight (in, out) float32, without bias.
template <class S, class E = Element<S>>
Layer<E> turned(const Tensor& weight, Arena& arena) {
  const int numbers = static_cast<int>(weight.size(0)), out = static_cast<int>(weight.size(1));
  const int in = (numbers + kPer<E> - 1) / kPer<E>;
  E* room = arena.take<E>(Layer<E>::size(in, out));
  pack_turned<E>(data<float>(weight), out, numbers, room);
  return {room, in, out};
}

MlpSizes sizes_of(const Tensor& x, const Maybe& x2, const Tensor& w1, const Tensor& w2) {
  auto width = [](const Tensor& t) { return static_cast<int>(t.size(1)); };
  return {width(x), x2.has_value() ? width(*x2) : 0, static_cast<int>(w1.size(0)), static_cast<int>(w2.size(0))};
}

// Blocks of at most kMlpRows rows, and of half as many where all threads would otherwise not have one.
int64_t blocks_of(int64_t rows) {
  const int64_t whole = (rows + kMlpRows - 1) / kMlpRows, halves = (2 * rows + kMlpRows - 1) / kMlpRows;
  return whole >= 4 * static_cast<int64_t>(torch::stable::get_num_threads()) ? whole : halves;
}

std::tuple<Tensor, Tensor> mlp(
    Tensor x, Maybe x2, Tensor w1, Tensor b1, Tensor w2, Tensor b2, double p, int64_t seed, bool save) {
  const MlpSizes sizes = sizes_of(x, x2, w1, w2);
  const int64_t rows = x.size(0);
  const Tensor y = torch::stable::new_empty(x, {rows, sizes.out});
  const Tensor hidden = torch::stable::new_empty(x, {save ? rows : 0, sizes.hidden});
  with_network(x, [&](auto s) {
    using S = decltype(s);
    const Mlp<S> network(sizes, p, seed);
    Arena weights;
    const auto one = layer_for<S>(rows, w1, b1, weights), two = layer_for<S>(rows, w2, b2, weights);
    const int64_t blocks = blocks_of(rows);
    auto block = [&](int64_t k) { return MlpBlock{rows * k / blocks, rows * (k + 1) / blocks}; };
    share_out(blocks, [&](int64_t k, int64_t next) {
      network.forward(
          data<S>(x), maybe_data<S>(x2), block(k), block(next), one, two, save ? data<S>(hidden) : nullptr, data<S>(y),
          Arena::of_this_thread());
    });
  });
  return {y, hidden};
}

// (dx, dx2, dw1, db1, dw2, db2); dx and dx2 are empty where they are not wanted.
std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> mlp_backward(
    Tensor dy, Tensor y, Tensor hidden, Tensor x, Maybe x2, Tensor w1, Tensor w2, double p, int64_t seed, bool want_x,
    bool want_x2) {
  dy = torch::stable::contiguous(dy);
  const MlpSizes sizes = sizes_of(x, x2, w1, w2);
  const int64_t rows = x.size(0), in = sizes.in(), h = sizes.hidden, out = sizes.out;
  const Tensor dx = torch::stable::new_empty(x, {want_x ? rows : 0, sizes.x});
  const Tensor dx2 = torch::stable::new_empty(x, {want_x2 ? rows : 0, sizes.x2});
  const int64_t shares =
      std::clamp((rows + kShareRows - 1) / kShareRows, std::min(kFewShares, 1 + rows / kMlpRows), kMostShares);
  const int64_t at_b1 = h * in, at_w2 = at_b1 + h, at_b2 = at_w2 + out * h, each = at_b2 + out;
  const Tensor parts = floats({shares, each});
  with_network(x, [&](auto s) {
    using S = decltype(s);
    const Mlp<S> network(sizes, p, seed);
    Arena weights;
    const auto one = turned<S>(w1, weights), two = turned<S>(w2, weights);
    const MlpRows<S> saved{data<S>(x), maybe_data<S>(x2), data<S>(hidden), data<S>(y)};
    share_out(shares, [&](int64_t share) {
      float* sums = data<float>(parts) + share * each;
      const int64_t begin = rows * share / shares, end = rows * (share + 1) / shares;
      if (begin == end) std::fill_n(sums, each, 0.0f);
      auto block = [&](int64_t from) { return MlpBlock{std::min(from, end), std::min(from + kMlpRows, end)}; };
      for (int64_t row = begin; row < end; row += kMlpRows) {
        network.backward(
            data<S>(dy), saved, block(row), block(row + kMlpRows), one, two, row > begin,
            {sums, sums + at_b1, sums + at_w2, sums + at_b2}, want_x ? data<S>(dx) : nullptr,
            want_x2 ? data<S>(dx2) : nullptr, Arena::of_this_thread());
      }
    });
  });
  const Tensor dw1 = floats({h, in}), db1 = floats({h}), dw2 = floats({out, h}), db2 = floats({out});
  auto add_up = [&](const Tensor& to, int64_t at) {
    const int64_t count = to.numel();
    torch::stable::parallel_for(0, count, 16384, [&](int64_t begin, int64_t end) {
      float* sum = data<float>(to);
      std::copy(data<float>(parts) + at + begin, data<float>(parts) + at + end, sum + begin);
      for (int64_t share = 1; share < shares; ++share) {
        const float* part = data<float>(parts) + share * each + at;
        for (int64_t i = begin; i < end; ++i) sum[i] += part[i];
      }
    });
  };
  add_up(dw1, 0), add_up(db1, at_b1), add_up(dw2, at_w2), add_up(db2, at_b2);
  return {dx, dx2, dw1, db1, dw2, db2};
}

template <class F>
auto with_numbers(const Tensor& t, F&& f) {
  switch (t.scalar_type()) {
    case ScalarType::Float: return f(float{});
    case ScalarType::Double: return f(double{});
    case ScalarType::BFloat16: return f(BFloat16{});
    default: return f(_Float16{});
  }
}

Tensor dropout(Tensor x, double p, int64_t seed, int64_t layer) {
  x = torch::stable::contiguous(x);
  const Tensor out = torch::stable::empty_like(x);
  const Dropout drop(p, seed, static_cast<uint32_t>(layer));
  with_numbers(x, [&](auto s) {
    using S = decltype(s);
    torch::stable::parallel_for(0, x.numel(), 32768, [&](int64_t begin, int64_t end) {
      drop.apply(data<S>(x) + begin, begin, end - begin, data<S>(out) + begin);
    });
  });
  return out;
}

}  // namespace
}  // namespace coalign

STABLE_TORCH_LIBRARY_FRAGMENT(coalign_native, m) {
  m.def("dropout(Tensor x, float p, int seed, int layer) -> Tensor");
  m.def(
      "mlp(Tensor x, Tensor? x2, Tensor w1, Tensor b1, Tensor w2, Tensor b2, float p, int seed, bool save) -> (Tensor, "
      "Tensor)");
  m.def(
      "mlp_backward(Tensor dy, Tensor y, Tensor hidden, Tensor x, Tensor? x2, Tensor w1, Tensor w2, float p, int seed, "
      "bool want_x, bool want_x2) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(coalign_native, CPU, m) {
  m.impl("dropout", EXPLAINED(&coalign::dropout));
  m.impl("mlp", EXPLAINED(&coalign::mlp));
  m.impl("mlp_backward", EXPLAINED(&coalign::mlp_backward));
}
