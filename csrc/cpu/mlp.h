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
// With widths d, h, o: 2 (d h + h o) operations a row forward, twice that backward, or less by 2 d h where x needs no
// gradient.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include "arena.h"
#include "dropout.h"
#include "linear.h"

namespace coalign {

constexpr int kMlpRows = 96;  // of a block: a multiple of kTileRows whose numbers stay in the second-level cache

struct MlpSizes {
  int x, x2, hidden, out;
  int in() const { return x + x2; }
};

// Where the rows' numbers are, each (rows, width) and contiguous.
struct MlpRows {
  const float *x, *x2, *hidden, *y;
};

// Blocks of rows on one thread; S is how the numbers lie in memory. Only float32 is trained here.
template <class S, class E = Element<S>>
class Mlp {
 public:
  Mlp(const MlpSizes& sizes, double p, int64_t seed)
      : sizes_(sizes), first_(p, seed, 1), second_(p, seed, 2) {}

  // hidden may be null where no backward pass will follow.
  void forward(
      const S* x, const S* x2, int64_t row, int rows, const Layer<E>& one, const Layer<E>& two, S* hidden, S* y,
      Arena& arena) const {
    const int ld = row_room<E>(sizes_.in()), ldh = row_room<E>(sizes_.hidden), ldo = row_room<E>(sizes_.out);
    float* in = arena.take<float>(static_cast<std::size_t>(kMlpRows) * ld);
    float* inner = arena.take<float>(static_cast<std::size_t>(kMlpRows) * ldh);
    float* outer = arena.take<float>(static_cast<std::size_t>(kMlpRows) * ldo);
    Ahead nothing;
    gather(x, x2, row, rows, in, ld);
    linear(as_elements<E>(in, rows, ld, arena), ld / kPer<E>, rows, one, nothing,
           [&](int r, int d, Vec<float> v) ALWAYS_INLINE { store(inner + r * ldh + d, relu(v)); });
    for (int r = 0; r < rows; ++r) {
      float* from = inner + r * ldh;
      if (second_.on()) second_.apply(from, (row + r) * sizes_.hidden, sizes_.hidden, from);
      if (hidden != nullptr) narrow_row(from, sizes_.hidden, hidden + (row + r) * sizes_.hidden);
      std::fill(from + sizes_.hidden, from + ldh, 0.0f);
    }
    linear(as_elements<E>(inner, rows, ldh, arena), ldh / kPer<E>, rows, two, nothing,
           [&](int r, int d, Vec<float> v) ALWAYS_INLINE { store(outer + r * ldo + d, relu(v)); });
    for (int r = 0; r < rows; ++r) narrow_row(outer + r * ldo, sizes_.out, y + (row + r) * sizes_.out);
  }

  // Sums of one share of the rows: dw1 (hidden, in), db1, dw2 (out, hidden), db2. Adds to them unless it is the first
  // block. dx, dx2: null where nobody wants them. one, two: the layers turned round.
  void backward(
      const float* dy, const MlpRows& saved, int64_t row, int rows, const Layer<float>& one, const Layer<float>& two,
      bool add, float* dw1, float* db1, float* dw2, float* db2, float* dx, float* dx2, Arena& arena) const {
    const int in = sizes_.in(), hidden = sizes_.hidden, out = sizes_.out;
    const int ld = row_room<E>(in), ldh = row_room<E>(hidden), ldo = row_room<E>(out);
    float* outer = arena.take<float>(static_cast<std::size_t>(kMlpRows) * ldo);
    float* inner = arena.take<float>(static_cast<std::size_t>(kMlpRows) * ldh);
    float* x = arena.take<float>(static_cast<std::size_t>(kMlpRows) * ld);
    Ahead nothing;
    const float* h = saved.hidden + row * hidden;
    for (int r = 0; r < rows; ++r) {
      const float *g = dy + (row + r) * out, *y = saved.y + (row + r) * out;
      float* to = outer + r * ldo;
      for (int d = 0; d < out; ++d) to[d] = y[d] <= 0 ? 0 : g[d];
    }
    sum_rows(outer, ldo, rows, out, add, db2);
    outer_product(outer, ldo, out, h, hidden, rows, hidden, add, dw2, arena);
    linear(outer, ldo, rows, two, nothing,
           [&](int r, int d, Vec<float> v) ALWAYS_INLINE { store(inner + r * ldh + d, v); });
    const float scale = static_cast<float>(second_.scale());
    for (int r = 0; r < rows; ++r) {
      const float* open = h + static_cast<std::size_t>(r) * hidden;
      float* g = inner + r * ldh;
      for (int d = 0; d < hidden; ++d) g[d] = open[d] <= 0 ? 0 : g[d] * scale;
    }
    sum_rows(inner, ldh, rows, hidden, add, db1);
    gather(saved.x, saved.x2, row, rows, x, ld);
    outer_product(inner, ldh, hidden, x, ld, rows, in, add, dw1, arena);
    if (dx == nullptr && dx2 == nullptr) return;
    linear(inner, ldh, rows, one, nothing,
           [&](int r, int d, Vec<float> v) ALWAYS_INLINE { store(x + r * ld + d, v); });
    for (int r = 0; r < rows; ++r) {
      float* g = x + r * ld;
      if (first_.on()) first_.apply(g, (row + r) * in, in, g);
      if (dx != nullptr) std::copy_n(g, sizes_.x, dx + (row + r) * sizes_.x);
      if (dx2 != nullptr) std::copy_n(g + sizes_.x, sizes_.x2, dx2 + (row + r) * sizes_.x2);
    }
  }

 private:
  // dropout([x, x2]), padded with zeros.
  void gather(const S* x, const S* x2, int64_t row, int rows, float* to, int ld) const {
    auto copy = [](const S* from, int width, float* to) {
      for (int d = 0; d < width; ++d) to[d] = widen(from[d]);
    };
    for (int r = 0; r < rows; ++r, to += ld) {
      copy(x + (row + r) * sizes_.x, sizes_.x, to);
      if (x2 != nullptr) copy(x2 + (row + r) * sizes_.x2, sizes_.x2, to + sizes_.x);
      if (first_.on()) first_.apply(to, (row + r) * sizes_.in(), sizes_.in(), to);
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
      Arena& arena) {
    const Arena::Mark mark = arena.mark();
    const float** weights = arena.take<const float*>(out);
    const float** terms = arena.take<const float*>(rows);
    float** sums = arena.take<float*>(out);
    Ahead nothing;
    for (int o = 0; o < out; ++o) {
      weights[o] = g + o;
      sums[o] = sum + static_cast<std::size_t>(o) * width;
    }
    for (int r = 0; r < rows; ++r) terms[r] = x + static_cast<std::size_t>(r) * ldx;
    combine(weights, ldg, terms, rows, width, sums, out, add, nothing);
    arena.release(mark);
  }

  MlpSizes sizes_;
  Dropout first_, second_;
};

}  // namespace coalign
