// d2l's feed-forward network of two layers, in training and inference: a block of rows passes all of it while it is
// in the caches.
//
//   h = dropout(relu(dropout([x, x2]) W1ᵀ + b1))      y = relu(h W2ᵀ + b2)
//
// x2 may be missing; [x, x2] is put together block by block. Backward finds the second dropout and both ReLUs in what
// is saved (y is positive where the ReLU was open; h where it was and the number stayed), and the first dropout from
// its seed. Gradients of weights are summed over a fixed number of shares of the rows, then over the shares in order:
// their bits depend on the sizes, not on the threads.
//
// Numbers lie in memory as S: float32, or bfloat16, multiplied in pairs where the processor can. Biases and the gradients
// of weights are float32 in either case, and so are the weights of a training pass, rounded as they are packed.
//
// With widths d, h, o: 2 (d h + h o) operations a row forward, twice that backward, or less by 2 d h where x needs no
// gradient.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "arena.h"
#include "dropout.h"
#include "rectified.h"

namespace coalign {

constexpr int kMlpRows = 96;  // of a block: a multiple of kBlockRows whose numbers stay in the second-level cache

struct MlpSizes {
  int x, x2, hidden, out;
  int in() const { return x + x2; }
};

// Where the rows' numbers are, each (rows, width) and contiguous.
template <class S>
struct MlpRows {
  const S *x, *x2, *hidden, *y;
};

// Where the gradients of a share's weights are added up: (hidden, in), (hidden), (out, hidden), (out).
struct MlpSums {
  float *w1, *b1, *w2, *b2;
};

// Rows that are computed together: kMlpRows at most.
struct MlpBlock {
  int64_t from, to;
  int count() const { return static_cast<int>(to - from); }
};

// Blocks of rows on one thread.
template <class S, class E = Element<S>>
class Mlp {
 public:
  Mlp(const MlpSizes& sizes, double p, int64_t seed)
      : sizes_(sizes), first_(p, seed, 1), second_(p, seed, 2) {}

  // hidden may be null where no backward pass will follow. next: rows that may follow on this thread.
  void forward(
      const S* x, const S* x2, MlpBlock at, MlpBlock next, const Layer<E>& one, const Layer<E>& two, S* hidden, S* y,
      Arena& arena) const {
    const int rows = at.count();
    const int ld = row_room<E>(sizes_.in()), ldh = row_room<E>(sizes_.hidden), ldo = row_room<E>(sizes_.out);
    float* in = block(ld, arena);
    float* inner = block(ldh, arena);
    float* outer = block(ldo, arena);
    gather(x, x2, at, in, ld);
    Ahead ahead_of_hidden;
    want_to_write_rows(hidden, at, sizes_.hidden, ahead_of_hidden);
    ahead_of_hidden.spread(linear_steps(rows, one));
    linear(as_elements<E>(in, rows, ld, arena), ld / kPer<E>, rows, one, ahead_of_hidden,
           [&](int r, int d, Vec<float> v) ALWAYS_INLINE { store(inner + r * ldh + d, relu(v)); });
    for (int r = 0; r < rows; ++r) {
      float* from = inner + r * ldh;
      const int64_t place = (at.from + r) * sizes_.hidden;
      if (second_.on()) second_.apply(from, place, sizes_.hidden, from);
      if (hidden != nullptr) narrow_row(from, sizes_.hidden, hidden + place);
      std::fill(from + sizes_.hidden, from + ldh, 0.0f);
    }
    Ahead ahead_of_next;
    want_to_write_rows(y, at, sizes_.out, ahead_of_next);
    want_rows(x, next, sizes_.x, ahead_of_next);
    want_rows(x2, next, sizes_.x2, ahead_of_next);
    ahead_of_next.spread(linear_steps(rows, two));
    rectified(as_elements<E>(inner, rows, ldh, arena), ldh / kPer<E>, rows, two, ahead_of_next, arena,
              [&](int r, int d, Vec<float> v) ALWAYS_INLINE { store(outer + r * ldo + d, relu(v)); });
    for (int r = 0; r < rows; ++r) narrow_row(outer + r * ldo, sizes_.out, y + (at.from + r) * sizes_.out);
  }

  // Adds to the sums of the block's share, or begins them. dx, dx2: null where nobody wants them. one, two: the layers
  // turned round.
  void backward(
      const S* dy, const MlpRows<S>& saved, MlpBlock at, MlpBlock next, const Layer<E>& one, const Layer<E>& two, bool add,
      const MlpSums& sums, S* dx, S* dx2, Arena& arena) const {
    const int rows = at.count(), in = sizes_.in(), hidden = sizes_.hidden, out = sizes_.out;
    const int ld = row_room<E>(in), ldh = row_room<E>(hidden), ldo = row_room<E>(out);
    float* outer = block(ldo, arena);
    float* inner = block(ldh, arena);
    float* x = block(ld, arena);
    for (int r = 0; r < rows; ++r) {
      const S *g = dy + (at.from + r) * out, *y = saved.y + (at.from + r) * out;
      float* to = outer + r * ldo;
      for (int d = 0; d < out; ++d) {
        const float grad = widen(g[d]), value = widen(y[d]);  // both, always: a branch would be guessed wrong
        to[d] = value <= 0 ? 0 : grad;
      }
      std::fill(to + out, to + ldo, 0.0f);
    }
    sum_rows(outer, ldo, rows, out, add, sums.b2);
    Ahead ahead_of_hidden;
    want_rows(saved.hidden, at, hidden, ahead_of_hidden);
    ahead_of_hidden.spread(linear_steps(rows, two));
    rectified(as_elements<E>(outer, rows, ldo, arena), ldo / kPer<E>, rows, two, ahead_of_hidden, arena,
              [&](int r, int d, Vec<float> v) ALWAYS_INLINE { store(inner + r * ldh + d, v); });
    const auto [open, ld_open] = as_floats(saved.hidden + at.from * hidden, rows, hidden, ldh, arena);
    Ahead ahead_of_x;
    want_rows(saved.x, at, sizes_.x, ahead_of_x);
    want_rows(saved.x2, at, sizes_.x2, ahead_of_x);
    ahead_of_x.spread(combine_steps<E>(out, hidden));
    outer_product(outer, ldo, out, open, ld_open, rows, hidden, add, sums.w2, ahead_of_x, arena);
    const float scale = static_cast<float>(second_.scale());
    for (int r = 0; r < rows; ++r) {
      const float* h = open + r * ld_open;
      float* g = inner + r * ldh;
      for (int d = 0; d < hidden; ++d) g[d] = h[d] <= 0 ? 0 : g[d] * scale;
      std::fill(g + hidden, g + ldh, 0.0f);  // infinity times the weights' padding is no 0
    }
    sum_rows(inner, ldh, rows, hidden, add, sums.b1);
    gather(saved.x, saved.x2, at, x, ld);
    Ahead ahead_of_next;
    want_rows(dy, next, out, ahead_of_next);
    want_rows(saved.y, next, out, ahead_of_next);
    ahead_of_next.spread(combine_steps<E>(hidden, in));
    outer_product(inner, ldh, hidden, x, ld, rows, in, add, sums.w1, ahead_of_next, arena);
    if (dx == nullptr && dx2 == nullptr) return;
    Ahead ahead_of_dx;
    want_to_write_rows(dx, at, sizes_.x, ahead_of_dx);
    want_to_write_rows(dx2, at, sizes_.x2, ahead_of_dx);
    ahead_of_dx.spread(linear_steps(rows, one));
    rectified(as_elements<E>(inner, rows, ldh, arena), ldh / kPer<E>, rows, one, ahead_of_dx, arena,
              [&](int r, int d, Vec<float> v) ALWAYS_INLINE { store(x + r * ld + d, v); });
    for (int r = 0; r < rows; ++r) {
      float* g = x + r * ld;
      const int64_t row = at.from + r;
      if (first_.on()) first_.apply(g, row * in, in, g);
      if (dx != nullptr) narrow_row(g, sizes_.x, dx + row * sizes_.x);
      if (dx2 != nullptr) narrow_row(g + sizes_.x, sizes_.x2, dx2 + row * sizes_.x2);
    }
  }

 private:
  static float* block(int ld, Arena& arena) { return arena.take<float>(static_cast<std::size_t>(kMlpRows) * ld); }

  // A block of an array's rows, to be fetched ahead; data may be null.
  static void want_rows(const S* data, MlpBlock at, int width, Ahead& ahead) {
    if (data != nullptr) ahead.want(data + at.from * width, sizeof(S) * at.count() * width);
  }
  static void want_to_write_rows(S* data, MlpBlock at, int width, Ahead& ahead) {
    if (data != nullptr) ahead.want_to_write(data + at.from * width, sizeof(S) * at.count() * width);
  }

  // Adjacent rows of whole vectors as they are, others with zeros behind them, ld numbers apart; and how far apart.
  static std::pair<const float*, int> as_floats(const S* from, int rows, int width, int ld, Arena& arena) {
    if constexpr (std::is_same_v<S, float>) {
      if (width == ld) return {from, width};
    }
    float* to = block(ld, arena);
    for (int r = 0; r < rows; ++r) widen_row(from + static_cast<std::size_t>(r) * width, width, to + r * ld);
    clear_padding(to, rows, width, ld);
    return {to, ld};
  }

  // dropout([x, x2]), padded with zeros.
  void gather(const S* x, const S* x2, MlpBlock at, float* to, int ld) const {
    for (int64_t row = at.from; row < at.to; ++row, to += ld) {
      widen_row(x + row * sizes_.x, sizes_.x, to);
      if (x2 != nullptr) widen_row(x2 + row * sizes_.x2, sizes_.x2, to + sizes_.x);
      if (first_.on()) first_.apply(to, row * sizes_.in(), sizes_.in(), to);
      std::fill(to + sizes_.in(), to + ld, 0.0f);
    }
  }

  static void sum_rows(const float* x, int ld, int rows, int width, bool add, float* sum) {
    if (!add) std::fill_n(sum, width, 0.0f);
    for (int r = 0; r < rows; ++r) {
      for (int d = 0; d < width; ++d) sum[d] += x[r * ld + d];
    }
  }

  // sum[o][i] (+)= Σ_r g[r][o] x[r][i].
  static void outer_product(
      const float* g, int ldg, int out, const float* x, int ldx, int rows, int width, bool add, float* sum,
      Ahead& ahead, Arena& arena) {
    if constexpr (kPer<E> == 1) {
      if (sum_of_few(g, ldg, out, x, ldx, rows, width, add, sum, ahead, arena)) return;
    }
    const Arena::Mark mark = arena.mark();
    const E* from = across_rows(g, ldg, rows, arena);
    const E* to = across_rows(x, ldx, rows, arena);
    const int terms = (rows + kPer<E> - 1) / kPer<E>;
    const E** weights = arena.take<const E*>(out);
    const E** values = arena.take<const E*>(terms);
    float** sums = arena.take<float*>(out);
    for (int o = 0; o < out; ++o) {
      weights[o] = from + o;
      sums[o] = sum + static_cast<std::size_t>(o) * width;
    }
    for (int r = 0; r < terms; ++r) values[r] = to + static_cast<std::size_t>(r) * ldx;
    combine(weights, ldg, values, terms, width, sums, out, Fold<float>{add}, ahead);
    arena.release(mark);
  }

  // Rows as elements that hold one number of each of kPer<E> rows.
  static const E* across_rows(const float* x, int ld, int rows, Arena& arena) {
    if constexpr (kPer<E> == 1) {
      return x;
    } else {
      E* out = arena.take<E>(static_cast<std::size_t>((rows + 1) / 2) * ld);
      for (int r = 0; r < rows; r += 2) {
        const Sum<E>* first = x + static_cast<std::size_t>(r) * ld;
        for (int d = 0; d < ld; d += lanes<float>) {
          const Vec<Sum<E>> second = r + 1 < rows ? load(first + ld + d) : Vec<Sum<E>>{};
          store(out + static_cast<std::size_t>(r / 2) * ld + d, pairs_across(load(first + d), second));
        }
      }
      return out;
    }
  }

  MlpSizes sizes_;
  Dropout first_, second_;
};

}  // namespace coalign
