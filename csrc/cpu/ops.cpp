// The operators that kernels/native/__init__.py calls, on LibTorch's stable ABI. Arguments are
// checked by kernels/api.py or, the short way, by kernels/quick.py, but for lengths and offsets: extents_fit.
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "../boxed.h"
#include "align_backward.h"
#include "call.h"
#include "pages.h"
#include "tasks.h"

namespace coalign {
namespace {

// Rows of adjacent numbers, as far apart as may be.
Tensor rows_of(const Tensor& t) {
  const int64_t last = t.dim() - 1;
  return t.stride(last) == 1 || t.size(last) == 1 ? t : torch::stable::contiguous(t);
}

// Everything that a call brings. Operands are (batch, rows, width), (batch, heads, rows, width) or, packed, (rows,
// width).
struct Call {
  Tensor f_a, f_b, a, b;
  Extent extent_a, extent_b;
  Maybe bias;
  const Rule<double>& rule;

  Call(const Tensor& f_a, const Tensor& f_b, const Tensor& a, const Tensor& b, const Maybe& extent_a,
       const Maybe& extent_b, const Maybe& bias, const Rule<double>& rule)
      : f_a(rows_of(f_a)),
        f_b(rows_of(f_b)),
        a(rows_of(a)),
        b(rows_of(b)),
        extent_a(extent_a, f_a),
        extent_b(extent_b, f_b),
        bias(bias),
        rule(rule) {}

  template <class T>
  Rule<T> rule_of(int64_t pair) const {
    return {static_cast<T>(rule.scale), static_cast<T>(rule.clamp), rule.p.of_pair(pair), rule.q.of_pair(pair)};
  }
};

Rule<double> make_rule(
    double scale, std::optional<double> clamp, double dropout_a, double dropout_b, const Maybe& seed) {
  Rule<double> rule{scale};
  if (clamp.has_value()) rule.clamp = *clamp;
  if (!seed.has_value()) return rule;
  const int64_t drawn = *data<const int64_t>(*seed);
  rule.p = Kept(drawn, 0, dropout_a);
  rule.q = Kept(drawn, 1, dropout_b);
  return rule;
}

// An uninitialised contiguous tensor with the leading dimensions of `like`, `width` wide (0: without that dimension),
// in its dtype or for sums.
Tensor empty(const Tensor& like, int64_t width, bool sums = false) {
  std::vector<int64_t> shape(like.sizes().begin(), like.sizes().end() - 1);
  if (width > 0) shape.push_back(width);
  int32_t dtype;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  if (sums && like.scalar_type() != ScalarType::Double) dtype = aoti_torch_dtype_float32();
  const Tensor t = uninitialised(shape.data(), shape.size(), dtype);
  want_large_pages(t.data_ptr(), t.numel() * like.element_size());
  return t;
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
  bool large;

  explicit Stored(const Tensor& t)
      : data(coalign::data<S>(t)),
        width(static_cast<int>(t.size(t.dim() - 1))),
        large(t.numel() * sizeof(S) > std::size_t{1} << 21) {}

  std::size_t bytes(int rows) const { return sizeof(S) * width * rows; }
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

  // What lies as the outputs do: read and written, of each side.
  using List = std::initializer_list<Stored<S>>;

  // What a pair will read and write, to be fetched in so many steps. Long pairs fetch for themselves.
  Ahead ahead(int64_t pair, int steps, List of_a, List of_b, List to_a, List to_b) const {
    Ahead ahead;
    auto side = [&](const Side<S>& side, int count, List read, List written) {
      const std::size_t first = side.extent.first(pair);
      for (const Rows<S>* rows : {&side.f, &side.x}) rows->want(pair, side.extent.start(pair), count, ahead);
      for (const Stored<S>& t : read) ahead.want(t.data + first * t.width, t.bytes(count));
      for (const Stored<S>& t : written) ahead.want_to_write(t.data + first * t.width, t.bytes(count));
    };
    const int count_a = a.extent.reach(pair), count_b = b.extent.reach(pair);
    if (is_whole(count_a, count_b)) {
      side(a, count_a, of_a, to_a);
      side(b, count_b, of_b, to_b);
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
    return Written<S>(t.data + first * t.width, t.width, index, count, t.large, arena_);
  }

  // Stored rows that belong to a range of tokens, the padding behind them included. Where there is nothing to align
  // with, nothing is done for tokens, and all rows are the first part's.
  Range stored_of(const Range& tokens, bool aligned, bool is_first) const {
    if (!aligned) return {0, is_first ? stored : 0};
    if (tokens.begin == tokens.end) return {0, 0};
    return {tokens.begin == 0 ? 0 : index[tokens.begin], tokens.end == count ? stored : index[tokens.end]};
  }

  // What came back for this side of the pair; centred: its gradient of e takes means, not <dout, out>.
  Arrived<E> arrived(const Stored<S>& out, const Stored<S>& dout, const T* lse, const T* dlse, bool centred) const {
    const int room = round_up(count, kBlock);
    T* delta = arena_.take<T>(room);
    T* lses = arena_.take<T>(room);
    const Operand<E> d = read_stored(dout, Use::both);
    std::fill_n(delta, room, T(0));
    if (!centred) dots_by_row(d.rows, read_stored(out, Use::contract).rows, count, d.elements(), delta);
    for (int i = 0; i < count; ++i) {
      const int64_t at = first + index[i];
      if (dlse != nullptr) delta[i] -= dlse[at];
      lses[i] = lse[at] == kNothing<T> ? -lse[at] : lse[at];
    }
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
void forward_pairs(
    const Call& call, const Tensor& beta, const Tensor& alpha, const Maybe& lse_a, const Maybe& lse_b) {
  using T = Compute<S>;
  const Sides<S> sides(call);
  const Stored<S> all_beta(beta), all_alpha(alpha);
  T *all_lse_a = maybe_data<T>(lse_a), *all_lse_b = maybe_data<T>(lse_b);
  for_each_pair(call.extent_a, call.extent_b, sides.a.f.width, [&](const Task& task) {
    Arena& arena = Arena::of_this_thread();
    const PairSide<S> a(sides.a, task.pair, arena), b(sides.b, task.pair, arena);
    const Written<S> to_beta = a.write(all_beta), to_alpha = b.write(all_alpha);
    T* found_a = arena.take<T>(round_up(a.count, kBlock));
    T* found_b = arena.take<T>(round_up(b.count, kBlock));
    const Share share = task.share(a.count, b.count);
    const bool aligned = a.count > 0 && b.count > 0;
    if (aligned) {
      const int steps = forward_steps<Element<S>>(a.count, b.count, sides.a.x.width, sides.b.x.width);
      Ahead ahead = task.crew != nullptr ? Ahead() : sides.ahead(task.next, steps, {}, {}, {all_beta}, {all_alpha});
      align_forward<Element<S>, B>(
          a.tokens(Use::contract, Use::sum), b.tokens(Use::contract, Use::sum), share, call.rule_of<T>(task.pair),
          part_of<const B>(call.bias, task.pair, a.index, b.index), to_beta.rows(), to_alpha.rows(), found_a, found_b,
          arena, ahead, task.crew);
    }
    auto finish = [aligned](
                      const PairSide<S>& side, const Written<S>& out, const Range& mine, bool is_first, T* lse,
                      const T* found) {
      const Range done = aligned ? mine : Range{0, 0}, rows = side.stored_of(mine, aligned, is_first);
      out.finish(done, rows.begin, rows.end);
      if (lse == nullptr) return;
      std::fill(lse + side.first + rows.begin, lse + side.first + rows.end, kNothing<T>);
      for (int i = done.begin; i < done.end; ++i) lse[side.first + side.index[i]] = found[i];
    };
    if (share.rows) finish(a, to_beta, share.a, task.first_of_rows(), all_lse_a, found_a);
    if (share.columns) finish(b, to_alpha, share.b, task.first_of_columns(), all_lse_b, found_b);
  });
}

std::tuple<Tensor, Tensor> forward(const Call& call, const Maybe& lse_a, const Maybe& lse_b) {
  const Tensor beta = empty(call.f_a, call.b.size(call.b.dim() - 1)), alpha = empty(call.f_b, call.a.size(call.a.dim() - 1));
  with_storage(call, [&](auto s, auto t) {
    forward_pairs<decltype(s), decltype(t)>(call, beta, alpha, lse_a, lse_b);
  });
  return {beta, alpha};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward_with_lse(
    Tensor f_a, Tensor f_b, Tensor a, Tensor b, Maybe extent_a, Maybe extent_b, Maybe bias, double scale,
    std::optional<double> clamp, double dropout_a, double dropout_b, Maybe seed) {
  const Rule<double> rule = make_rule(scale, clamp, dropout_a, dropout_b, seed);
  const Call call(f_a, f_b, a, b, extent_a, extent_b, bias, rule);
  const Tensor lse_a = empty(f_a, 0, true), lse_b = empty(f_b, 0, true);
  const auto [beta, alpha] = forward(call, lse_a, lse_b);
  return {beta, alpha, lse_a, lse_b};
}

bool extents_fit(
    Maybe extent_a, Maybe extent_b, bool packed, int64_t length_a, int64_t length_b, int64_t total_a, int64_t total_b) {
  return extent_fits(extent_a, packed, length_a, total_a) && extent_fits(extent_b, packed, length_b, total_b);
}

// For calls without options: a dozen arguments take longer to hand over than a pair to align. The last of what they
// return is false where extents don't fit, and nothing was done.
std::tuple<Tensor, Tensor, bool> plain_forward(
    Tensor f_a, Tensor f_b, Tensor a, Tensor b, Maybe extent_a, Maybe extent_b, int64_t length_a, int64_t length_b) {
  if (!extents_fit(extent_a, extent_b, f_a.dim() == 2, length_a, length_b, f_a.size(0), f_b.size(0))) {
    return {f_a, f_b, false};
  }
  const auto [beta, alpha] = forward(Call(f_a, f_b, a, b, extent_a, extent_b, {}, Rule<double>{1.0}), {}, {});
  return {beta, alpha, true};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, bool> plain_forward_with_lse(
    Tensor f_a, Tensor f_b, Tensor a, Tensor b, Maybe extent_a, Maybe extent_b, int64_t length_a, int64_t length_b) {
  if (!extents_fit(extent_a, extent_b, f_a.dim() == 2, length_a, length_b, f_a.size(0), f_b.size(0))) {
    return {f_a, f_b, a, b, false};
  }
  const auto [beta, alpha, lse_a, lse_b] = forward_with_lse(f_a, f_b, a, b, extent_a, extent_b, {}, 1.0, {}, 0, 0, {});
  return {beta, alpha, lse_a, lse_b, true};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    Tensor f_a, Tensor f_b, Tensor a, Tensor b, Maybe extent_a, Maybe extent_b, Maybe bias, double scale,
    std::optional<double> clamp, double dropout_a, double dropout_b, Maybe seed, Tensor beta,
    Tensor alpha, Tensor lse_a, Tensor lse_b, Tensor dbeta, Tensor dalpha, Maybe dlse_a, Maybe dlse_b, Maybe dbias) {
  // here and not by the caller, who may hold what has no memory before it arrives: PyTorch's zeros of no storage
  for (Tensor* t : {&beta, &alpha, &lse_a, &lse_b, &dbeta, &dalpha}) *t = torch::stable::contiguous(*t);
  for (Maybe* t : {&extent_a, &extent_b, &dlse_a, &dlse_b}) {
    if (t->has_value()) *t = torch::stable::contiguous(**t);
  }
  const int64_t rows_a = f_a.size(f_a.dim() - 2), rows_b = f_b.size(f_b.dim() - 2);
  STD_TORCH_CHECK(  // no version counter sees what others, NumPy for one, write into memory that they share
      extents_fit(extent_a, extent_b, f_a.dim() == 2, rows_a, rows_b, rows_a, rows_b),
      "lengths or offsets were changed after the forward pass, and no longer fit");
  const Rule<double> rule = make_rule(scale, clamp, dropout_a, dropout_b, seed);
  const Call call(f_a, f_b, a, b, extent_a, extent_b, bias, rule);
  auto alike = [](const Tensor& t) { return empty(t, t.size(t.dim() - 1)); };
  const Tensor df_a = alike(f_a), df_b = alike(f_b), da = alike(a), db = alike(b);
  with_storage(call, [&](auto s, auto t) {
    using S = decltype(s);
    using B = decltype(t);
    using T = Compute<S>;
    const Sides<S> sides(call);
    const Stored<S> of_beta(beta), of_alpha(alpha), of_dbeta(dbeta), of_dalpha(dalpha);
    const Stored<S> all_df_a(df_a), all_df_b(df_b), all_da(da), all_db(db);
    const T *of_lse_a = data<T>(lse_a), *of_lse_b = data<T>(lse_b);
    const T *of_dlse_a = maybe_data<T>(dlse_a), *of_dlse_b = maybe_data<T>(dlse_b);
    for_each_pair(call.extent_a, call.extent_b, sides.a.f.width, [&](const Task& task) {
      Arena& arena = Arena::of_this_thread();
      const PairSide<S> pa(sides.a, task.pair, arena), pb(sides.b, task.pair, arena);
      const Written<S> to_fa = pa.write(all_df_a), to_fb = pb.write(all_df_b);
      const Written<S> to_a = pa.write(all_da), to_b = pb.write(all_db);
      const Share share = task.share(pa.count, pb.count);
      const bool aligned = pa.count > 0 && pb.count > 0;
      if (aligned) {
        const int steps = backward_steps<Element<S>>(pa.count, pb.count, sides.a.f.width, sides.a.x.width, sides.b.x.width);
        Ahead ahead = task.crew != nullptr
            ? Ahead() : sides.ahead(task.next, steps, {of_dbeta}, {of_dalpha}, {all_df_a, all_da}, {all_df_b, all_db});
        const bool whole = is_whole(pa.count, pb.count);
        align_backward<Element<S>, B>(
            pa.tokens(Use::both, Use::contract), pb.tokens(Use::both, Use::contract), share, call.rule_of<T>(task.pair),
            part_of<const B>(bias, task.pair, pa.index, pb.index),
            pa.arrived(of_beta, of_dbeta, of_lse_a, of_dlse_a, whole || pb.count == 1),
            pb.arrived(of_alpha, of_dalpha, of_lse_b, of_dlse_b, whole || pa.count == 1), to_fa.rows(), to_fb.rows(),
            to_a.rows(), to_b.rows(),
            part_of<T>(dbias, task.pair, pa.index, pb.index), arena, ahead, task.crew);
      }
      auto finish = [aligned](
                        const PairSide<S>& side, const Range& mine, bool is_first,
                        std::initializer_list<const Written<S>*> all) {
        const Range done = aligned ? mine : Range{0, 0}, rows = side.stored_of(mine, aligned, is_first);
        for (const Written<S>* out : all) out->finish(done, rows.begin, rows.end);
      };
      if (share.rows) finish(pa, share.a, task.first_of_rows(), {&to_fa, &to_a});
      if (share.columns) finish(pb, share.b, task.first_of_columns(), {&to_fb, &to_b});
    });
  });
  return {df_a, df_b, da, db};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> plain_backward(
    Tensor f_a, Tensor f_b, Tensor a, Tensor b, Tensor beta, Tensor alpha, Tensor lse_a, Tensor lse_b, Tensor dbeta,
    Tensor dalpha, Maybe extent_a, Maybe extent_b) {
  return backward(
      f_a, f_b, a, b, extent_a, extent_b, {}, 1.0, {}, 0, 0, {}, beta, alpha, lse_a, lse_b, dbeta, dalpha, {}, {}, {});
}

}  // namespace
}  // namespace coalign

#define OPERANDS_SCHEMA \
  "Tensor f_a, Tensor f_b, Tensor a, Tensor b, Tensor? extent_a, Tensor? extent_b, Tensor? bias, float scale, " \
  "float? clamp, float dropout_a, float dropout_b, Tensor? seed"

#define PLAIN_SCHEMA \
  "Tensor f_a, Tensor f_b, Tensor a, Tensor b, Tensor? extent_a=None, Tensor? extent_b=None, int length_a=0, " \
  "int length_b=0"

STABLE_TORCH_LIBRARY(coalign_native, m) {
  m.def("forward(" OPERANDS_SCHEMA ") -> (Tensor, Tensor, Tensor, Tensor)");
  m.def(
      "extents_fit(Tensor? extent_a, Tensor? extent_b, bool packed, int length_a, int length_b, int total_a, "
      "int total_b) -> bool");
  m.def("plain_forward(" PLAIN_SCHEMA ") -> (Tensor, Tensor, bool)");
  m.def("plain_forward_with_lse(" PLAIN_SCHEMA ") -> (Tensor, Tensor, Tensor, Tensor, bool)");
  m.def(
      "plain_backward(Tensor f_a, Tensor f_b, Tensor a, Tensor b, Tensor beta, Tensor alpha, Tensor lse_a, Tensor lse_b, "
      "Tensor dbeta, Tensor dalpha, Tensor? extent_a=None, Tensor? extent_b=None) -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("backward(" OPERANDS_SCHEMA
        ", Tensor beta, Tensor alpha, Tensor lse_a, Tensor lse_b, Tensor dbeta, Tensor dalpha, Tensor? dlse_a, "
        "Tensor? dlse_b, Tensor(a!)? dbias) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(coalign_native, CPU, m) {
  m.impl("forward", EXPLAINED(&coalign::forward_with_lse));
  m.impl("extents_fit", EXPLAINED(&coalign::extents_fit));
  m.impl("plain_forward", EXPLAINED(&coalign::plain_forward));
  m.impl("plain_forward_with_lse", EXPLAINED(&coalign::plain_forward_with_lse));
  m.impl("plain_backward", EXPLAINED(&coalign::plain_backward));
  m.impl("backward", EXPLAINED(&coalign::backward));
}
