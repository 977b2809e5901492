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

// f(pair, the next one) for every pair, on torch's threads; each takes enough of them at once to pay for waking it.
template <class F>
void for_each_pair(const Call& call, F&& f) {
  const int64_t m = call.extent_a.length(), n = call.extent_b.length();
  const int64_t work = (m * n / 4 + m + n) * call.f_a.size(call.f_a.dim() - 1) + 1;
  torch::stable::parallel_for(0, call.pairs, std::max<int64_t>(1, 200000 / work), [&](int64_t begin, int64_t end) {
    for (int64_t pair = begin; pair < end; ++pair) f(pair, std::min(pair + 1, end - 1));
  });
}

// A pair's part of a tensor (*batch, m, n).
template <class B>
Bias<B> part_of(const Maybe& bias, int64_t pair, const int* index_a, const int* index_b) {
  if (!bias.has_value()) return {nullptr, 0, 0, index_a, index_b};
  const Rows<B> rows(*bias);
  return {rows.at(pair, 0), rows.row, bias->stride(bias->dim() - 1), index_a, index_b};
}

// A tensor that lies as the outputs do: contiguous, a row a stored token.
template <class S>
struct Stored {
  S* data;
  int width;

  explicit Stored(const Tensor& t) : data(coalign::data<S>(t)), width(static_cast<int>(t.size(t.dim() - 1))) {}
};

// One side of the call: its operands.
template <class S>
struct Side {
  Extent extent;
  Rows<S> f, x;
};

// The operands and the part that one pair has in them.
template <class S>
struct Sides {
  Side<S> a, b;

  explicit Sides(const Call& call)
      : a{call.extent_a, Rows<S>(call.f_a), Rows<S>(call.a)}, b{call.extent_b, Rows<S>(call.f_b), Rows<S>(call.b)} {}

  // What a pair will read, to be fetched in so many steps; long pairs fetch for themselves.
  Ahead ahead(int64_t pair, std::size_t steps) const {
    Ahead ahead;
    const int count_a = a.extent.reach(pair), count_b = b.extent.reach(pair);
    if (count_a <= kBlock && count_b <= kBlock) {
      for (const Rows<S>* rows : {&a.f, &a.x}) rows->want(pair, a.extent.start(pair), count_a, ahead);
      for (const Rows<S>* rows : {&b.f, &b.x}) rows->want(pair, b.extent.start(pair), count_b, ahead);
    }
    ahead.spread(steps);
    return ahead;
  }
};

// One side of one pair: where its tokens are, and their rows.
template <class S, class E = Element<S>, class T = Sum<E>>
class PairSide {
 public:
  PairSide(const Side<S>& side, int64_t pair, Arena& arena)
      : stored(side.extent.stored(pair)),
        first(side.extent.first(pair)),
        index(arena.take<int>(stored + 1)),
        count(side.extent.tokens(pair, index)),
        side_(side),
        pair_(pair),
        arena_(arena) {}

  Tokens<E> tokens(Use use_f, Use use_x) const { return {count, read(side_.f, use_f), read(side_.x, use_x)}; }

  Operand<E> read_stored(const Stored<S>& t, Use use) const {
    return read_operand(Rows<S>(t.data, t.width), 0, first, index, count, use, arena_);
  }

  Written<S> write(const Stored<S>& t) const {
    return Written<S>(t.data + first * t.width, t.width, stored, index, count, arena_);
  }

  // What came back for this side of the pair.
  Arrived<E> arrived(
      const Stored<S>& out, const Stored<S>& dout, const T* lse, const T* dlse) const {
    const int room = round_up(count, kBlock);
    T* delta = arena_.take<T>(room);
    T* lses = arena_.take<T>(room);
    const Operand<E> d = read_stored(dout, Use::both);
    dots_by_row(d.rows, read_stored(out, Use::contract).rows, count, d.elements(), delta);
    for (int i = 0; i < count; ++i) {
      const int64_t at = first + index[i];
      if (dlse != nullptr) delta[i] -= dlse[at];
      lses[i] = lse[at] == kNothing<T> ? -lse[at] : lse[at];
    }
    std::fill(delta + count, delta + room, T(0));
    std::fill(lses + count, lses + room, -kNothing<T>);
    return {d, delta, lses};
  }

  const int stored;     // rows in the outputs, padding included
  const int64_t first;  // the first of them
  int* const index;     // the tokens among them
  const int count;

 private:
  Operand<E> read(const Rows<S>& t, Use use) const {
    return read_operand(t, pair_, side_.extent.start(pair_), index, count, use, arena_);
  }

  const Side<S>& side_;
  int64_t pair_;
  Arena& arena_;
};

template <class S, class B>
void forward_pairs(const Call& call, const Tensor& beta, const Tensor& alpha, const Tensor& lse_a, const Tensor& lse_b) {
  using T = Compute<S>;
  const Sides<S> sides(call);
  const Stored<S> all_beta(beta), all_alpha(alpha);
  T *all_lse_a = data<T>(lse_a), *all_lse_b = data<T>(lse_b);
  for_each_pair(call, [&](int64_t pair, int64_t next) {
    Arena& arena = Arena::of_this_thread();
    const PairSide<S> a(sides.a, pair, arena), b(sides.b, pair, arena);
    const Written<S> to_beta = a.write(all_beta), to_alpha = b.write(all_alpha);
    T* found_a = arena.take<T>(round_up(a.count, kBlock));
    T* found_b = arena.take<T>(round_up(b.count, kBlock));
    const bool aligned = a.count > 0 && b.count > 0;
    if (aligned) {
      Ahead ahead = sides.ahead(next, a.count * b.count / 20 + (a.count + b.count) / 3);
      align_forward<Element<S>, B>(
          a.tokens(Use::contract, Use::sum), b.tokens(Use::contract, Use::sum), static_cast<T>(call.scale),
          part_of<const B>(call.bias, pair, a.index, b.index), to_beta.rows(), to_alpha.rows(), found_a, found_b,
          arena, ahead);
    }
    to_beta.finish(aligned);
    to_alpha.finish(aligned);
    auto put = [aligned](const PairSide<S>& side, T* lse, const T* found) {
      std::fill_n(lse + side.first, side.stored, kNothing<T>);
      for (int i = 0; aligned && i < side.count; ++i) lse[side.first + side.index[i]] = found[i];
    };
    put(a, all_lse_a, found_a);
    put(b, all_lse_b, found_b);
  });
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
    forward_pairs<decltype(s), decltype(t)>(call, beta, alpha, lse_a, lse_b);
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
    const Sides<S> sides(call);
    const Stored<S> of_beta(beta), of_alpha(alpha), of_dbeta(dbeta), of_dalpha(dalpha);
    const Stored<S> all_df_a(df_a), all_df_b(df_b), all_da(da), all_db(db);
    auto optional = [](const Maybe& t) { return t.has_value() ? data<T>(*t) : nullptr; };
    const T *of_lse_a = data<T>(lse_a), *of_lse_b = data<T>(lse_b), *of_dlse_a = optional(dlse_a), *of_dlse_b = optional(dlse_b);
    for_each_pair(call, [&](int64_t pair, int64_t next) {
      Arena& arena = Arena::of_this_thread();
      const PairSide<S> pa(sides.a, pair, arena), pb(sides.b, pair, arena);
      const Written<S> to_fa = pa.write(all_df_a), to_fb = pb.write(all_df_b);
      const Written<S> to_a = pa.write(all_da), to_b = pb.write(all_db);
      const bool aligned = pa.count > 0 && pb.count > 0;
      if (aligned) {
        Ahead ahead = sides.ahead(next, pa.count * pb.count / 7 + (pa.count + pb.count));
        align_backward<Element<S>, B>(
            pa.tokens(Use::both, Use::contract), pb.tokens(Use::both, Use::contract), static_cast<T>(scale),
            part_of<const B>(bias, pair, pa.index, pb.index), pa.arrived(of_beta, of_dbeta, of_lse_a, of_dlse_a),
            pb.arrived(of_alpha, of_dalpha, of_lse_b, of_dlse_b), to_fa.rows(), to_fb.rows(), to_a.rows(),
            to_b.rows(), part_of<T>(dbias, pair, pa.index, pb.index), arena, ahead);
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
