// Stream route, for longer pairs: a block owns T rows of one side and goes over the other side, tile by tile.
//
// No m x n matrix is stored, and no two blocks write one number, so there are no atomics and the bits never change.
// Both directions are one launch: for the second the sides are swapped. The price is that e is made once for each
// direction, and again where a side's outputs are wider than the columns that a block keeps in registers.
// Forward: 2 m n (2 h + d_a + d_b) operations. Backward: 2 m n (6 h + 4 d_a + 4 d_b) up to that width.
#pragma once

#include "block.cuh"

namespace coalign::cuda {

constexpr int kStreamTile = 64;
constexpr int kKeptColumns = 128;  // of output that a block keeps in registers

// Which rows of which side a block owns, and which chunks of their outputs. For every second of the grid's layers the
// sides are swapped, so that `a` is always the side owned.
template <class M>
struct Share {
  using S = typename M::S;
  static constexpr int kCount = kKeptColumns / M::kColumns;

  const Call<S>& call;
  int64_t pair;
  int from, rows;     // the first row owned, and how many there are from it on
  int end_a, end_b;   // no tokens from these rows on
  int first_chunk;

  GPU_INLINE explicit Share(const Directions<S>& both)
      : call(both.of[blockIdx.z % 2]),
        pair(blockIdx.x),
        from(static_cast<int>(blockIdx.y) * kStreamTile),
        rows(call.a.extent.stored(pair) - from),
        end_a(call.a.extent.end(pair)),
        end_b(call.b.extent.end(pair)),
        first_chunk(static_cast<int>(blockIdx.z) / 2 * kCount) {}

  // Rows of the other side that the block must go over: none if it owns no token.
  GPU_INLINE int others() const { return from < end_a ? end_b : 0; }
  GPU_INLINE int64_t first_row() const { return call.a.extent.first(pair) + from; }
};

// One summand of the outputs: a chunk of columns of the other side's x, and the weights of its rows.
template <class S>
struct Term {
  Shared<float> weights;
  Rows<S> x;
  int column;
};

// kept[c] += weights x for each of the block's chunks; term(c) says which.
template <class M, int T, int KEPT, class F>
GPU_INLINE void accumulate(
    float (&kept)[KEPT][M::kColumns / 8][4], int chunks, const Stages<M, T>& stages, Shared<int> token, F term) {
  if constexpr (!M::kRuns) return __trap();
  using S = typename M::S;
  pipeline(
      chunks,
      [&](int c, int stage) {
        const Term<S> found = term(c);
        fetch<M, T>(stages.at(stage, 0), found.x, token, found.column);
      },
      [&](int c, int stage) {
        const Operand<float, true> weights = own_rows<float>(term(c).weights, kTilePitch<T>);
        const Operand<S, false> x{stages.at(stage, 0), kStagePitch<M>};
#pragma unroll
        for (int k = 0; k < KEPT; ++k) {  // registers have no run-time index
          if (k == c) M::product(kept[k], weights, x, T);
        }
      });
}

template <class M>
constexpr int stream_forward_bytes() {
  return shared_bytes<M, kStreamTile>(1, 2);
}

template <class M>
__global__ __launch_bounds__(kThreads<kStreamTile>, 1) void stream_forward(
    const __grid_constant__ Directions<typename M::S> both) {
  if constexpr (!M::kRuns) return __trap();
  using S = typename M::S;
  using Owned = Share<M>;
  constexpr int T = kStreamTile, kPitch = kTilePitch<T>;
  SharedArena arena;
  const Stages<M, T> stages(arena);
  const Shared<float> p = arena.take<float>(T * kPitch);
  const Shared<int> token_a = arena.take<int>(T), token_b = arena.take<int>(T);
  const Owned own(both);
  const Side<S>&a = own.call.a, &b = own.call.b;
  const int chunks = least(Owned::kCount, chunks_of<M>(b.x.width) - own.first_chunk);
  if (own.rows <= 0 || chunks <= 0) return;
  mark_tokens<T>(token_a, a.extent, own.pair, own.from);
  __syncthreads();  // where there is nothing to go over, no other barrier comes

  const Kept kept(own.call.rule, own.pair);
  float sums[Owned::kCount][M::kColumns / 8][4];
#pragma unroll
  for (int chunk = 0; chunk < Owned::kCount; ++chunk) clear(sums[chunk]);
  // Of this lane's two rows: the running peak and the sum of weights; four lanes hold the same.
  float peak[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};

  for (int j0 = 0; j0 < own.others(); j0 += T) {
    mark_tokens<T>(token_b, b.extent, own.pair, j0);
    __syncthreads();
    float e[T / 8][4];
    outer_product<M, T>(
        e, stages, a.f.rows(a.extent, own.pair, own.from), token_a, b.f.rows(b.extent, own.pair, j0), token_b);
    float highest[2] = {peak[0], peak[1]};
    for_each(e, [&](float& x, int i, int j) {
      if (!token_a[i] || !token_b[j]) {
        x = -INFINITY;
        return;
      }
      x = Beyond().clip(own.call.rule.scale * x, own.call.rule.clamp, 0);
      if (own.call.bias.data != nullptr) x += own.call.bias.template at<S>(own.pair, own.from + i, j0 + j);
    });
#pragma unroll
    for (int n = 0; n < T / 8; ++n) {
#pragma unroll
      for (int r = 0; r < 4; ++r) highest[r / 2] = fmaxf(highest[r / 2], e[n][r]);
    }
    float shift[2], fade[2], sum[2] = {0, 0};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      highest[half] = over_columns(highest[half], [](float x, float y) { return fmaxf(x, y); });
      shift[half] = highest[half] == -INFINITY ? 0 : highest[half];
      fade[half] = expf(peak[half] - shift[half]);
      peak[half] = highest[half];
    }
#pragma unroll
    for (int n = 0; n < T / 8; ++n) {
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        e[n][r] = expf(e[n][r] - shift[r / 2]);
        sum[r / 2] += e[n][r];
      }
    }
    for_each(e, [&](float weight, int i, int j) { p[i * kPitch + j] = weight; });
    if (kept.on()) {
      for_each_place<T>([&](int i, int j) {
        p[i * kPitch + j] *= kept.p(own.from + i, j0 + j) ? kept.factor_p() : 0;
      });
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      total[half] = total[half] * fade[half] + over_columns(sum[half], [](float x, float y) { return x + y; });
    }
#pragma unroll
    for (int chunk = 0; chunk < Owned::kCount; ++chunk) {
#pragma unroll
      for (int n = 0; n < M::kColumns / 8; ++n) {
#pragma unroll
        for (int r = 0; r < 4; ++r) sums[chunk][n][r] *= fade[r / 2];
      }
    }
    const Rows<S> of_b = b.x.rows(b.extent, own.pair, j0);
    accumulate<M, T>(sums, chunks, stages, token_b, [&](int c) {
      return Term<S>{p, of_b, (own.first_chunk + c) * M::kColumns};
    });
  }

  const int row = 16 * warp() + lane_row();
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (own.first_chunk == 0 && lane_column() == 0 && row + 8 * half < own.rows) {
      a.lse[own.first_row() + row + 8 * half] = total[half] == 0 ? -INFINITY : peak[half] + logf(total[half]);
    }
    total[half] = total[half] == 0 ? 0 : 1 / total[half];
  }
  S* out = a.out + own.first_row() * b.x.width;
#pragma unroll
  for (int chunk = 0; chunk < Owned::kCount; ++chunk) {
#pragma unroll
    for (int n = 0; n < M::kColumns / 8; ++n) {
#pragma unroll
      for (int r = 0; r < 4; ++r) sums[chunk][n][r] *= total[r / 2];
    }
    if (chunk < chunks) store(sums[chunk], out, token_a, own.rows, b.x.width, (own.first_chunk + chunk) * M::kColumns);
  }
}

}  // namespace coalign::cuda
