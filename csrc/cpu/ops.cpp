// The operators that kernels/native/__init__.py calls, on LibTorch's stable ABI. Arguments are checked there.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "call.h"

namespace coalign {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::new_empty;
using Maybe = std::optional<Tensor>;

// Everything that a call brings: see kernels/native/__init__.py for the meaning of a kind.
struct Call {
  const Tensor &f_a, &f_b, &a, &b;
  Extent extent_a, extent_b;
  const Maybe& bias;
  int64_t pairs;
  double scale;
};

template <class S>
S* data(const Tensor& t) {
  return static_cast<S*>(t.data_ptr());
}

// f(S{}, B{}) for the types in which memory holds the operands and the bias.
template <class F>
void with_storage(const Call& call, F&& f) {
  const bool plain = !call.bias.has_value() || call.bias->scalar_type() == call.f_a.scalar_type();
  auto and_bias = [&](auto s) { plain ? f(s, s) : f(s, float{}); };
  switch (call.f_a.scalar_type()) {
    case ScalarType::Float: return and_bias(float{});
    case ScalarType::Double: return and_bias(double{});
    case ScalarType::BFloat16: return and_bias(BFloat16{});
    default: return and_bias(_Float16{});
  }
}

// f(pair) for every pair, on torch's threads; each takes enough of them at once to pay for waking it.
template <class F>
void for_each_pair(const Call& call, F&& f) {
  const int64_t m = call.extent_a.length(), n = call.extent_b.length();
  const int64_t work = (m * n / 4 + m + n) * call.f_a.size(call.f_a.dim() - 1) + 1;
  torch::stable::parallel_for(0, call.pairs, std::max<int64_t>(1, 200000 / work), [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) f(pair);
  });
}

// A pair's part of a tensor (*batch, m, n).
template <class B>
Bias<B> part_of(const Maybe& bias, int64_t pair, const int* index_a, const int* index_b) {
  if (!bias.has_value()) return {nullptr, 0, 0, index_a, index_b};
  const Rows<B> rows(*bias);
  return {rows.at(pair, 0), rows.row, bias->stride(bias->dim() - 1), index_a, index_b};
}

// One side of one pair: where its tokens are, and their rows.
template <class S, class T = Compute<S>>
struct PairSide {
  int stored, count;
  int64_t first, start;
  int* index;

  PairSide(const Extent& extent, int64_t pair, Arena& arena)
      : stored(extent.stored(pair)),
        first(extent.first(pair)),
        start(extent.start(pair)),
        index(arena.take<int>(stored + 1)) {
    count = extent.tokens(pair, index);
  }

  const T* const* read(const Tensor& t, int64_t pair, Arena& arena) const {
    return read_rows(Rows<S>(t), pair, start, index, count, arena);
  }

  // Rows of a contiguous tensor that lies as the outputs do.
  const T* const* read_output(const Tensor& t, Arena& arena) const {
    Rows<S> rows(t);
    rows.outer = rows.inner = 0;
    return read_rows(rows, 0, first, index, count, arena);
  }

  Tokens<T> tokens(const Tensor& f, const Tensor& x, int64_t pair, Arena& arena) const {
    return {count, read(f, pair, arena), read(x, pair, arena), static_cast<int>(x.size(x.dim() - 1))};
  }

  Written<S> write(const Tensor& t, Arena& arena) const {
    const int width = static_cast<int>(t.size(t.dim() - 1));
    return Written<S>(data<S>(t) + first * width, width, stored, index, count, arena);
  }
};

template <class S, class B>
void forward_pair(const Call& call, int64_t pair, const Tensor& beta, const Tensor& alpha, const Tensor& lse_a, const Tensor& lse_b) {
  using T = Compute<S>;
  Arena& arena = Arena::of_this_thread();
  const PairSide<S> a(call.extent_a, pair, arena), b(call.extent_b, pair, arena);
  const Written<S> to_beta = a.write(beta, arena), to_alpha = b.write(alpha, arena);
  T* found_a = arena.take<T>(a.count);
  T* found_b = arena.take<T>(b.count);
  const bool aligned = a.count > 0 && b.count > 0;
  if (aligned) {
    align_forward<T, B>(
        a.tokens(call.f_a, call.a, pair, arena), b.tokens(call.f_b, call.b, pair, arena),
        static_cast<int>(call.f_a.size(call.f_a.dim() - 1)), static_cast<T>(call.scale),
        part_of<const B>(call.bias, pair, a.index, b.index), to_beta.rows(), to_alpha.rows(), found_a, found_b, arena);
  }
  to_beta.finish(aligned);
  to_alpha.finish(aligned);
  auto put = [aligned](const PairSide<S>& side, T* lse, const T* found) {
    std::fill_n(lse + side.first, side.stored, detail::kNothing<T>);
    for (int i = 0; aligned && i < side.count; ++i) lse[side.first + side.index[i]] = found[i];
  };
  put(a, data<T>(lse_a), found_a);
  put(b, data<T>(lse_b), found_b);
}

// What came back for one side of a pair, tokens only.
template <class S, class T = Compute<S>>
Arrived<T> arrived(const PairSide<S>& side, const Tensor& out, const Tensor& dout, const Tensor& lse, const Maybe& dlse, Arena& arena) {
  const T* const* rows = side.read_output(out, arena);
  const T* const* drows = side.read_output(dout, arena);
  T* delta = arena.take<T>(side.count);
  T* lses = arena.take<T>(side.count);
  for (int i = 0; i < side.count; ++i) {
    dots(drows + i, 1, rows + i, 1, static_cast<int>(out.size(out.dim() - 1)), T(1), delta + i, 1);
    const int64_t at = side.first + side.index[i];
    if (dlse.has_value()) delta[i] -= data<T>(*dlse)[at];
    lses[i] = data<T>(lse)[at];
  }
  return {drows, delta, lses};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    Tensor f_a, Tensor f_b, Tensor a, Tensor b, Maybe extent_a, Maybe extent_b, int64_t kind_a, int64_t kind_b,
    int64_t length_a, int64_t length_b, int64_t pairs, Maybe bias, double scale) {
  const Call call{f_a, f_b, a, b, {extent_a, kind_a, length_a}, {extent_b, kind_b, length_b}, bias, pairs, scale};
  const ScalarType lse_type = f_a.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  auto like = [](const Tensor& f, const Tensor& other) {
    std::vector<int64_t> shape(f.sizes().begin(), f.sizes().end());
    shape.back() = other.size(other.dim() - 1);
    return new_empty(f, shape);
  };
  auto lse = [&](const Tensor& f) {
    return new_empty(f, std::vector<int64_t>(f.sizes().begin(), f.sizes().end() - 1), lse_type);
  };
  const Tensor beta = like(f_a, b), alpha = like(f_b, a), lse_a = lse(f_a), lse_b = lse(f_b);
  with_storage(call, [&](auto s, auto t) {
    for_each_pair(call, [&](int64_t pair) { forward_pair<decltype(s), decltype(t)>(call, pair, beta, alpha, lse_a, lse_b); });
  });
  return {beta, alpha, lse_a, lse_b};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    Tensor f_a, Tensor f_b, Tensor a, Tensor b, Maybe extent_a, Maybe extent_b, int64_t kind_a, int64_t kind_b,
    int64_t length_a, int64_t length_b, int64_t pairs, Maybe bias, double scale, Tensor beta, Tensor alpha,
    Tensor lse_a, Tensor lse_b, Tensor dbeta, Tensor dalpha, Maybe dlse_a, Maybe dlse_b, Maybe dbias) {
  const Call call{f_a, f_b, a, b, {extent_a, kind_a, length_a}, {extent_b, kind_b, length_b}, bias, pairs, scale};
  const Tensor df_a = new_empty(f_a, f_a.sizes()), df_b = new_empty(f_b, f_b.sizes());
  const Tensor da = new_empty(a, a.sizes()), db = new_empty(b, b.sizes());
  with_storage(call, [&](auto s, auto t) {
    using S = decltype(s);
    using B = decltype(t);
    using T = Compute<S>;
    for_each_pair(call, [&](int64_t pair) {
      Arena& arena = Arena::of_this_thread();
      const PairSide<S> pa(call.extent_a, pair, arena), pb(call.extent_b, pair, arena);
      const Written<S> to_fa = pa.write(df_a, arena), to_fb = pb.write(df_b, arena);
      const Written<S> to_a = pa.write(da, arena), to_b = pb.write(db, arena);
      const bool aligned = pa.count > 0 && pb.count > 0;
      if (aligned) {
        align_backward<T, B>(
            pa.tokens(f_a, a, pair, arena), pb.tokens(f_b, b, pair, arena), static_cast<int>(f_a.size(f_a.dim() - 1)),
            static_cast<T>(scale), part_of<const B>(bias, pair, pa.index, pb.index),
            arrived(pa, beta, dbeta, lse_a, dlse_a, arena), arrived(pb, alpha, dalpha, lse_b, dlse_b, arena),
            to_fa.rows(), to_fb.rows(), to_a.rows(), to_b.rows(), part_of<T>(dbias, pair, pa.index, pb.index), arena);
      }
      for (const Written<S>* out : {&to_fa, &to_fb, &to_a, &to_b}) out->finish(aligned);
    });
  });
  return {df_a, df_b, da, db};
}

}  // namespace
}  // namespace coalign

#define OPERANDS_SCHEMA                                                                                     \
  "Tensor f_a, Tensor f_b, Tensor a, Tensor b, Tensor? extent_a, Tensor? extent_b, int kind_a, int kind_b, " \
  "int length_a, int length_b, int pairs, Tensor? bias, float scale"

STABLE_TORCH_LIBRARY(coalign_native, m) {
  m.def("forward(" OPERANDS_SCHEMA ") -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("backward(" OPERANDS_SCHEMA
        ", Tensor beta, Tensor alpha, Tensor lse_a, Tensor lse_b, Tensor dbeta, Tensor dalpha, Tensor? dlse_a, "
        "Tensor? dlse_b, Tensor(a!)? dbias) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(coalign_native, CPU, m) {
  m.impl("forward", TORCH_BOX(&coalign::forward));
  m.impl("backward", TORCH_BOX(&coalign::backward));
}
