// Tile route: one block owns a pair of up to T x T tokens, both directions, in one launch.
//
//   e = clip(scale f_a f_bᵀ) + bias        P, Q: softmax of its rows, of its columns        β = P b, α = Qᵀ a
//
// e never leaves the chip. Forward: three products and 2 m n exponentials a pair; each operand is read once, each
// output written once. Backward: e again from f_a and f_b, P and Q from the saved LSEs; seven products in one sweep.
// Shared memory: P and Q (and, backward, de) as T x (T + 4) float32 each, and 4 T (columns + padding) staged numbers.
#pragma once

#include "block.cuh"

namespace coalign::cuda {

// A row's or column's peak and the factor 1 / sum of its weights; 0 and 0 where there is nothing to sum.
struct Softmax {
  float peak, factor, lse;
};

template <int T>
GPU_INLINE Softmax softmax_of(Shared<float> e, int stride) {
  float peak = -INFINITY, sum = 0;
  for (int i = 0; i < T; ++i) peak = fmaxf(peak, e[i * stride]);
  if (peak == -INFINITY) peak = 0;  // nothing to sum, or NaN, which fmaxf passes over and the sum does not
  for (int i = 0; i < T; ++i) sum += expf(e[i * stride] - peak);
  if (sum == 0) return {0, 0, -INFINITY};
  return {peak, 1 / sum, peak + logf(sum)};
}

template <class M, int T>
constexpr int tile_forward_bytes() {
  return shared_bytes<M, T>(2, 6);
}

template <class M, int T>
__global__ __launch_bounds__(kThreads<T>, 1) void tile_forward(const __grid_constant__ Call<typename M::S> call) {
  if constexpr (!M::kRuns) return __trap();
  using S = typename M::S;
  constexpr int kPitch = kTilePitch<T>;
  SharedArena arena;
  const Stages<M, T> stages(arena);
  const Shared<float> p = arena.take<float>(T * kPitch), q = arena.take<float>(T * kPitch);
  const Shared<float> peak = arena.take<float>(2 * T), factor = arena.take<float>(2 * T);  // of rows, then of columns
  const Shared<int> token_a = arena.take<int>(T), token_b = arena.take<int>(T);
  const Side<S>&a = call.a, &b = call.b;
  const int64_t pair = blockIdx.x;
  const int rows_a = a.extent.stored(pair), rows_b = b.extent.stored(pair);
  const int64_t first_a = a.extent.first(pair), first_b = b.extent.first(pair);
  mark_tokens<T>(token_a, a.extent, pair, 0);
  mark_tokens<T>(token_b, b.extent, pair, 0);
  __syncthreads();

  float c[T / 8][4];
  outer_product<M, T>(
      c, stages, a.f.rows(a.extent, pair, 0), token_a, b.f.rows(b.extent, pair, 0), token_b);
  for_each(c, [&](float x, int i, int j) {
    float e = -INFINITY;
    if (token_a[i] && token_b[j]) {
      e = Beyond().clip(call.rule.scale * x, call.rule.clamp, 0);
      if (call.bias.data != nullptr) e += call.bias.template at<S>(pair, i, j);
    }
    p[i * kPitch + j] = e;
  });
  __syncthreads();

  {  // as many threads as rows and columns
    const int thread = threadIdx.x;
    const bool of_row = thread < T;
    const int i = of_row ? thread : thread - T;
    const Softmax found = of_row ? softmax_of<T>(p + i * kPitch, 1) : softmax_of<T>(p + i, kPitch);
    peak[thread] = found.peak;
    factor[thread] = found.factor;
    if (i < (of_row ? rows_a : rows_b)) (of_row ? a.lse + first_a : b.lse + first_b)[i] = found.lse;
  }
  __syncthreads();
  const Kept kept(call.rule, pair);
  for (int place = threadIdx.x; place < T * T; place += kThreads<T>) {
    const int i = place / T, j = place % T;
    const float e = p[i * kPitch + j];
    q[i * kPitch + j] = expf(e - peak[T + j]) * factor[T + j];
    p[i * kPitch + j] = expf(e - peak[i]) * factor[i];
    if (!kept.on()) continue;
    q[i * kPitch + j] *= kept.q(i, j) ? kept.factor_q() : 0;
    p[i * kPitch + j] *= kept.p(i, j) ? kept.factor_p() : 0;
  }

  combine<M, T>(
      stages, own_rows<float>(p, kPitch), b.x.rows(b.extent, pair, 0), token_b, a.out + first_a * b.x.width,
      token_a, rows_a);
  combine<M, T>(
      stages, own_columns<float>(q, kPitch), a.x.rows(a.extent, pair, 0), token_a, b.out + first_b * a.x.width,
      token_b, rows_b);
}

template <class M, int T>
constexpr int tile_backward_bytes() {
  return shared_bytes<M, T>(3, 6);
}

template <class M, int T>
__global__ __launch_bounds__(kThreads<T>, 1) void tile_backward(const __grid_constant__ Call<typename M::S> call) {
  if constexpr (!M::kRuns) return __trap();
  using S = typename M::S;
  constexpr int kPitch = kTilePitch<T>;
  SharedArena arena;
  const Stages<M, T> stages(arena);
  const Shared<float> p = arena.take<float>(T * kPitch), q = arena.take<float>(T * kPitch);
  const Shared<float> de = arena.take<float>(T * kPitch);
  const Shared<float> delta_a = arena.take<float>(T), delta_b = arena.take<float>(T);
  const Shared<float> lse_a = arena.take<float>(T), lse_b = arena.take<float>(T);
  const Shared<int> token_a = arena.take<int>(T), token_b = arena.take<int>(T);
  const Side<S>&a = call.a, &b = call.b;
  const int64_t pair = blockIdx.x;
  const int rows_a = a.extent.stored(pair), rows_b = b.extent.stored(pair);
  const int64_t first_a = a.extent.first(pair), first_b = b.extent.first(pair);
  mark_tokens<T>(token_a, a.extent, pair, 0);
  mark_tokens<T>(token_b, b.extent, pair, 0);
  __syncthreads();
  deltas<T>(
      delta_a, a.saved.rows(a.extent, pair, 0), a.dout.rows(a.extent, pair, 0),
      a.dlse == nullptr ? nullptr : a.dlse + first_a, token_a);
  deltas<T>(
      delta_b, b.saved.rows(b.extent, pair, 0), b.dout.rows(b.extent, pair, 0),
      b.dlse == nullptr ? nullptr : b.dlse + first_b, token_b);
  for (int i = threadIdx.x; i < T; i += kThreads<T>) {
    lse_a[i] = token_a[i] ? closed(a.lse[first_a + i]) : INFINITY;
    lse_b[i] = token_b[i] ? closed(b.lse[first_b + i]) : INFINITY;
    if (!token_a[i]) delta_a[i] = 0;
    if (!token_b[i]) delta_b[i] = 0;
  }

  // A lane meets the same places of the tile in all three products, so it needs no barrier between them.
  const Kept kept(call.rule, pair);
  Beyond beyond;
#pragma unroll 1
  for (int product = 0; product < 3; ++product) {  // e, dβ bᵀ and a dαᵀ, by the same code
    const Matrix<S>& x = product == 0 ? a.f : product == 1 ? a.dout : a.x;
    const Matrix<S>& y = product == 0 ? b.f : product == 1 ? b.x : b.dout;
    float c[T / 8][4];
    outer_product<M, T>(c, stages, x.rows(a.extent, pair, 0), token_a, y.rows(b.extent, pair, 0), token_b);
    int k = 0;
    for_each(c, [&](float x, int i, int j) {
      const int place = i * kPitch + j;
      if (product == 0) {
        const bool there = token_a[i] && token_b[j];
        float e = beyond.clip(call.rule.scale * x, call.rule.clamp, k);
        if (there && call.bias.data != nullptr) e += call.bias.template at<S>(pair, i, j);
        p[place] = there ? expf(e - lse_a[i]) : 0;
        q[place] = there ? expf(e - lse_b[j]) : 0;
      } else if (product == 1) {
        const float weight = p[place];
        de[place] = fabsf(weight) * (factor_of(weight, kept.factor_p()) * x - delta_a[i]);
        p[place] = kept_only(weight, kept.factor_p());
      } else {
        const float weight = q[place];
        const float found = de[place] + fabsf(weight) * (factor_of(weight, kept.factor_q()) * x - delta_b[j]);
        q[place] = kept_only(weight, kept.factor_q());
        if (call.dbias != nullptr && i < rows_a && j < rows_b) {
          call.dbias[(pair * a.extent.length + i) * b.extent.length + j] = token_a[i] && token_b[j] ? found : 0;
        }
        de[place] = beyond.at(k) ? 0 : call.rule.scale * found;
      }
      ++k;
    });
    if (product > 0 || !kept.on()) continue;
    for_each_place<T>([&](int i, int j) {
      const int place = i * kPitch + j;
      p[place] = marked(p[place], kept.p(i, j));
      q[place] = marked(q[place], kept.q(i, j));
    });
  }

#pragma unroll 1
  for (int of_f = 1; of_f >= 0; --of_f) {  // df_a = de f_b and df_b = deᵀ f_a; then da = Q dα and db = Pᵀ dβ
    const Matrix<S>&x_b = of_f ? b.f : b.dout, &x_a = of_f ? a.f : a.dout;
    combine<M, T>(
        stages, own_rows<float>(of_f ? de : q, kPitch), x_b.rows(b.extent, pair, 0), token_b,
        (of_f ? a.df : a.dx) + first_a * x_b.width, token_a, rows_a);
    combine<M, T>(
        stages, own_columns<float>(of_f ? de : p, kPitch), x_a.rows(a.extent, pair, 0), token_a,
        (of_f ? b.df : b.dx) + first_b * x_a.width, token_b, rows_b);
  }
}

}  // namespace coalign::cuda
