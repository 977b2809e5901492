// Soft alignment of one pair on one thread; its gradient is align_backward.h's.
//
//   e = clip(scale f_a f_bᵀ) + bias        P, Q: softmax of its rows, of its columns, with dropout where asked for
//   β = P b, α = Qᵀ a                      lse_a, lse_b
//
// e is made block by block, 64 x 64 at most, and each block serves both directions: three products forward, seven
// backward, where two one-directional passes need four and ten. A pair of up to 64 x 64 tokens is a single block.
// Longer ones keep a running softmax for the rows *and* for the columns, whose weighted sums are rescaled when
// their maximum rises. Both softmaxes share their exponentials where that loses nothing (softmax.h). The rows are lists
// of pointers to tokens, so padding, wherever it lies, costs nothing.
//
// One thread does a whole pair. Where there are fewer pairs than threads, a long pair is shared out: some do blocks
// of rows and what is summed along them, the others columns, and both make e. A single block's steps are taken by a
// crew: portions of its rows, or of its columns. A row or column is summed in the same order each way, so that the
// bits do not depend on how many threads there are.
//
// 2 m n (h + d_a + d_b) operations and m n exponentials, or 2 m n.
#pragma once

#include "arena.h"
#include "crew.h"
#include "products.h"
#include "rule.h"
#include "softmax.h"

namespace coalign {

// One side's rows of an operand, tokens only. rows: one a token, `elements` long, to contract. terms: one for every
// kPer<E> tokens, `width` long, to weigh and sum. Either is null where a pass has no use for it.
template <class E>
struct Operand {
  const E* const* rows;
  const E* const* terms;
  int width;

  int elements() const { return (width + kPer<E> - 1) / kPer<E>; }
};

template <class E>
struct Tokens {
  int count;
  Operand<E> f, x;
};

// bias[i * row + j * column] for the i-th and j-th row of the pair (padding counted); null where there is none. The
// indices say at which rows a side's tokens stand: needed for the bias and for dropout.
template <class B>
struct Bias {
  B* data;
  int64_t row, column;
  const int* index_a;
  const int* index_b;
};

constexpr int kBlock = 64;

// Some tokens of a side: from a block's first to a block's last.
struct Range {
  int begin, end;
};

// What of a pair to do: rows of e and what is summed along them, columns, or both.
struct Share {
  bool rows, columns;
  Range a, b;
};

// A rectangle of e: rows from i, columns from j; `padded` columns are stored. turned: whether its products are made with
// one operand turned.
struct Block {
  int i, rows, j, columns, padded;
  bool turned;
};

// Whether a pair is a single block.
inline bool is_whole(int count_a, int count_b) { return count_a <= kBlock && count_b <= kBlock; }

// How often the passes call ahead.step() for a pair that is a single block.
template <class E>
int forward_steps(int m, int n, int width_a, int width_b) {
  return dots_steps<E>(m, n) + combine_steps<E>(m, width_b) + combine_steps<E>(n, width_a);
}
template <class E>
int backward_steps(int m, int n, int width_f, int width_a, int width_b) {
  return 3 * dots_steps<E>(m, n) + combine_steps<E>(m, width_f) + combine_steps<E>(n, width_f) +
         combine_steps<E>(m, width_a) + combine_steps<E>(n, width_b);
}

namespace detail {

template <class T>
void scale_row(T* row, int width, T factor) {
  for (int d = 0; d < width; ++d) row[d] *= factor;
}

// x within ±clamp, NaN left alone.
template <class T>
void clip(T* x, int count, T clamp, T* passes) {
  for (int k = 0; passes != nullptr && k < count; ++k) passes[k] = x[k] < -clamp || x[k] > clamp ? T(0) : T(1);
  for (int k = 0; k < count; ++k) x[k] = x[k] < -clamp ? -clamp : x[k] > clamp ? clamp : x[k];
}

// Drops weights of a block, or what is summed with them.
template <class T>
void drop(T* weights, int ld, const Block& at, const Kept& kept, const int* index_a, const int* index_b) {
  for (int i = 0; kept.on() && i < at.rows; ++i) {
    kept.apply(weights + i * ld, index_a[at.i + i], index_b + at.j, at.columns);
  }
}

// f(part of the block, worker): for portions of its rows, or the block at once where there is no crew.
template <class F>
void by_rows(Crew* crew, const Block& at, F&& f) {
  if (crew == nullptr) return f(at, 0);
  const int parts = (at.rows + kDotsRows - 1) / kDotsRows;
  crew->each(parts, [&](int k, int worker) {
    const int from = at.rows * k / parts, to = at.rows * (k + 1) / parts;
    f(Block{at.i + from, to - from, at.j, at.columns, at.padded, at.turned}, worker);
  });
}

// The same for portions of its columns; where these are paired, of whole vectors.
template <class E, class F>
void by_columns(Crew* crew, const Block& at, F&& f) {
  if (crew == nullptr) return f(at, 0);
  constexpr int LEAST = kPer<E> == 1 ? kBlockRows : lanes<Sum<E>> * kPer<E>;
  const int parts = (at.columns + LEAST - 1) / LEAST;
  auto edge = [&](int k) { return kPer<E> == 1 ? at.columns * k / parts : std::min(LEAST * k, at.columns); };
  crew->each(parts, [&](int k, int worker) {
    const int from = edge(k), columns = edge(k + 1) - from;
    f(Block{at.i, at.rows, at.j + from, columns, round_up(columns, LEAST), at.turned}, worker);
  });
}

// A block of an operand's rows, turned: kept for as long as blocks of e have the same columns.
template <class E>
struct Turned {
  const Operand<E>* of;
  E* room;
  const E** rows;
  int at = -1;  // where the block starts that is in it
};

// Room for products of a block of e, and its numbers as weights of `combine`.
template <class E>
class Workshop {
 public:
  using T = Sum<E>;

  Workshop(int count_a, int count_b, Arena& arena, Ahead& ahead)
      : ld_(round_up(std::min(count_b, kBlock), lanes<T> * kPer<E>)),
        transposes_(count_a >= kBlock / 2 && count_b >= kBlock),
        made_rows_(arena.take<T*>(kBlock)),
        gains_(arena.take<T>(kBlock)),
        weights_(kPer<E> == 1 ? nullptr : arena.take<E>(kBlock / kPer<E> * ld_)),
        rows_(arena.take<const E*>(kBlock)),
        arena_(arena),
        ahead_(ahead) {}

  int ld() const { return ld_; }
  T* room() const { return arena_.take<T>(kBlock * ld_); }

  Turned<E> turned(const Operand<E>& y) const {
    if (!transposes_) return {&y, nullptr, nullptr};
    const int width = y.elements();
    const Turned<E> made{&y, arena_.take<E>(std::size_t{kBlock} * width), arena_.take<const E*>(width)};
    for (int k = 0; k < width; ++k) made.rows[k] = made.room + std::size_t{kBlock} * k;
    return made;
  }

  Block block(int i, int count_a, int j, int count_b) const {
    const int rows = std::min(kBlock, count_a - i), columns = std::min(kBlock, count_b - j);
    const bool turned = transposes_ && columns == kBlock && rows >= kBlock / 2;
    return {i, rows, j, columns, round_up(columns, lanes<T> * kPer<E>), turned};
  }

  // out = scale x yᵀ. The sums along rows that `dots` needs cost more than turning y where y fills whole vectors.
  void product(const Operand<E>& x, Turned<E>& y, const Block& at, T scale, T* out) const {
    const int width = x.elements();
    if (!at.turned) {
      return dots(x.rows + at.i, at.rows, y.of->rows + at.j, at.columns, width, scale, out, ld_, ahead_);
    }
    if (y.at != at.j) transpose(y.of->rows + at.j, kBlock, width, y.room, kBlock);
    y.at = at.j;
    for (int i = 0; i < at.rows; ++i) made_rows_[i] = out + i * ld_;
    std::fill_n(gains_, at.rows, scale);
    for (int k = 0; k < width; k += kChain) {
      for (int i = 0; i < at.rows; ++i) rows_[i] = x.rows[at.i + i] + k;
      const Fold<T> scaled{k > 0, nullptr, gains_};
      combine(rows_, 1, y.rows + k, std::min(kChain, width - k), kBlock, made_rows_, at.rows, scaled, ahead_);
    }
  }

  // out[i] (+)= sum over j of p[i][j] y[j], the rows of the block.
  void along(const T* p, const Operand<E>& y, const Block& at, T* const* out, const Fold<T>& fold) const {
    const E* weights = along_rows(p, at);
    for (int i = 0; i < at.rows; ++i) rows_[i] = weights + i * ld_ / kPer<E>;
    const int terms = (at.columns + kPer<E> - 1) / kPer<E>;
    combine(rows_, 1, y.terms + at.j / kPer<E>, terms, y.width, out + at.i, at.rows, fold, ahead_);
  }

  // out[j] (+)= sum over i of p[i][j] y[i], the columns of the block.
  void across(const T* p, const Operand<E>& y, const Block& at, T* const* out, const Fold<T>& fold) const {
    const E* weights = across_rows(p, at);
    for (int j = 0; j < at.columns; ++j) rows_[j] = weights + j;
    const int terms = (at.rows + kPer<E> - 1) / kPer<E>;
    combine(rows_, ld_, y.terms + at.i / kPer<E>, terms, y.width, out + at.j, at.columns, fold, ahead_);
  }

 private:
  const E* along_rows(const T* p, const Block& at) const {
    if constexpr (kPer<E> == 1) {
      return p;
    } else {
      for (int k = 0; k < at.rows * ld_; k += 2 * lanes<T>) store(weights_ + k / 2, pairs_along(p + k));
      return weights_;
    }
  }

  const E* across_rows(const T* p, const Block& at) const {
    if constexpr (kPer<E> == 1) {
      return p;
    } else {
      for (int i = 0; i < at.rows; i += 2) {
        for (int j = 0; j < at.padded; j += lanes<T>) {
          const T* first = p + i * ld_ + j;
          const Vec<T> second = i + 1 < at.rows ? load(first + ld_) : Vec<T>{};
          store(weights_ + i / 2 * ld_ + j, pairs_across(load(first), second));
        }
      }
      return weights_;
    }
  }

  int ld_;
  bool transposes_;
  T** made_rows_;
  T* gains_;
  E* weights_;
  const E** rows_;
  Arena& arena_;
  Ahead& ahead_;
};

// A block of e, its columns padded to whole vectors with -inf. f_b: of side b. passes: null, or room for 1 where the
// clamp lets a gradient through and 0 where not.
template <class E, class T, class B>
void scores(
    const Workshop<E>& shop, const Tokens<E>& a, Turned<E>& f_b, const Block& at, const Rule<T>& rule,
    const Bias<const B>& bias, T* e, T* passes = nullptr) {
  shop.product(a.f, f_b, at, rule.scale, e);
  if (rule.clamp < -kNothing<T>) clip(e, at.rows * shop.ld(), rule.clamp, passes);
  for (int i = 0; i < at.rows; ++i, e += shop.ld()) {
    if (bias.data != nullptr) {
      const B* p = bias.data + bias.index_a[at.i + i] * bias.row;
      for (int j = 0; j < at.columns; ++j) e[j] += widen(p[bias.index_b[at.j + j] * bias.column]);
    }
    for (int j = 0; rule.more_a != nullptr && j < at.padded; j += lanes<T>) {
      store(e + j, load(e + j) + (load(rule.more_b + at.j + j) + rule.more_a[at.i + i]));
    }
    for (int j = at.columns; j < at.padded; ++j) e[j] = kNothing<T>;
  }
}

// What each worker has for itself: make(where) puts it there. One, where there is no crew.
template <class T, class F>
T* for_workers(const Crew* crew, Arena& arena, F&& make) {
  const int count = crew == nullptr ? 1 : crew->workers();
  T* made = arena.take<T>(count);
  for (int k = 0; k < count; ++k) make(made + k);
  return made;
}

template <class T>
Running<T> start_running(int count, Arena& arena) {
  const int room = round_up(count, kBlock);
  const Running<T> state{arena.take<T>(room), arena.take<T>(room), arena.take<T>(room), arena.take<T>(room)};
  std::fill_n(state.peak, room, kNothing<T>);
  std::fill_n(state.total, room, T(0));
  return state;
}

}  // namespace detail

// beta, alpha: rows to write, one a token; lse_a, lse_b: one number a token, with room for whole vectors. crew: null, or
// threads to take the steps with.
template <class E, class B, class T = Sum<E>>
void align_forward(
    const Tokens<E>& a, const Tokens<E>& b, const Share& share, const Rule<T>& rule, const Bias<const B>& bias, T* const* beta,
    T* const* alpha, T* lse_a, T* lse_b, Arena& arena, Ahead& ahead, Crew* crew = nullptr) {
  using namespace detail;
  struct Place {
    Workshop<E> shop;
    Turned<E> f_b;
  };
  Place* const places = for_workers<Place>(crew, arena, [&](Place* at) {
    const Workshop<E> shop(a.count, b.count, arena, ahead);
    new (at) Place{shop, shop.turned(b.f)};
  });
  const Workshop<E>& shop = places->shop;
  const int ld = shop.ld();
  const Running<T> state_a = start_running<T>(a.count, arena), state_b = start_running<T>(b.count, arena);
  const bool whole = is_whole(a.count, b.count);
  T* e = shop.room();
  T* p = shop.room();
  const bool drops = rule.p.on() || rule.q.on();

  for (int j = share.b.begin; j < share.b.end; j += kBlock) {
    for (int i = share.a.begin; i < share.a.end; i += kBlock) {
      const Block at = shop.block(i, a.count, j, b.count);
      by_rows(crew, at, [&](const Block& part, int worker) {
        scores(places[worker].shop, a, places[worker].f_b, part, rule, bias, e + (part.i - i) * ld);
      });
      const Running<T> in_rows = state_a.from(i), in_columns = state_b.from(j);
      // one token alone has the score itself for its log-sum-exp, to the bit
      const bool shared = !drops && a.count > 1 && b.count > 1 && shared_weights<kBlock>(
          e, at.rows, at.padded, ld, in_rows, in_columns, share.rows, share.columns, whole);
      const T* weights = shared ? e : p;
      if (share.rows) {
        if (!shared) row_weights(e, at.rows, at.padded, ld, p, in_rows, whole);
        drop(p, ld, at, rule.p, bias.index_a, bias.index_b);
        by_rows(crew, at, [&](const Block& part, int worker) {
          const Running<T> mine = state_a.from(part.i);
          places[worker].shop.along(weights + (part.i - i) * ld, b.x, part, beta, Fold<T>{j > 0, mine.fade, mine.gain});
        });
      }
      if (share.columns) {
        if (!shared) column_weights(e, at.rows, at.padded, ld, p, in_columns, whole);
        drop(p, ld, at, rule.q, bias.index_a, bias.index_b);
        by_columns<E>(crew, at, [&](const Block& part, int worker) {
          const Running<T> mine = state_b.from(part.j);
          places[worker].shop.across(weights + (part.j - j), a.x, part, alpha, Fold<T>{i > 0, mine.fade, mine.gain});
        });
      }
    }
  }
  auto finish = [whole](const Range& range, const Running<T>& state, T* const* out, int width, T* lse) {
    for (int i = range.begin; i < range.end; i += lanes<T>) {
      store(lse + i, load(state.peak + i) + log<T>(load(state.total + i)));
    }
    for (int i = range.begin; !whole && i < range.end; ++i) {
      if (state.total[i] != T(0)) scale_row(out[i], width, T(1) / state.total[i]);
    }
  };
  if (share.rows) finish(share.a, state_a, beta, b.x.width, lse_a);
  if (share.columns) finish(share.b, state_b, alpha, a.x.width, lse_b);
}

}  // namespace coalign
