// Stream route, backward: a block owns T rows of one side and makes their gradients, going over the other side.
//
// Owning rows of a: df_a = scale de f_b and da = Q dα, for which e, dβ bᵀ and a dαᵀ are made tile by tile. The
// direction that owns a also writes dbias. The deltas come from a kernel before it: every block needs those of the
// whole other side.
#pragma once

#include "stream.cuh"

namespace coalign::cuda {

template <class M>
constexpr int stream_deltas_bytes() {
  return kStreamTile * 4;
}

template <class M>
__global__ __launch_bounds__(kThreads<kStreamTile>, 1) void stream_deltas(
    const __grid_constant__ Directions<typename M::S> both) {
  if constexpr (!M::kRuns) return __trap();
  using S = typename M::S;
  SharedArena arena;
  const Shared<int> token = arena.take<int>(kStreamTile);
  const Share<M> own(both);
  const Side<S>& a = own.call.a;
  if (own.rows <= 0) return;
  mark_tokens<kStreamTile>(token, a.extent, own.pair, own.from);
  __syncthreads();
  deltas<kStreamTile>(
      a.delta + own.first_row(), a.saved.rows(a.extent, own.pair, own.from), a.dout.rows(a.extent, own.pair, own.from),
      a.dlse == nullptr ? nullptr : a.dlse + own.first_row(), token);
}

// What a row's weights and their gradient need, for T rows of a side from one of them on.
template <int T, class S>
GPU_INLINE void read_rows(
    Shared<int> token, Shared<float> lse, Shared<float> delta, const Side<S>& side, int64_t pair, int from) {
  const int64_t first = side.extent.first(pair) + from;
  for (int i = threadIdx.x; i < T; i += kThreads<T>) {
    const bool there = side.extent.token(pair, from + i);
    token[i] = there;
    lse[i] = there ? closed(side.lse[first + i]) : INFINITY;
    delta[i] = there ? side.delta[first + i] : 0;
  }
}

template <class M>
constexpr int stream_backward_bytes() {
  return shared_bytes<M, kStreamTile>(2, 6);
}

template <class M>
__global__ __launch_bounds__(kThreads<kStreamTile>, 1) void stream_backward(
    const __grid_constant__ Directions<typename M::S> both) {
  if constexpr (!M::kRuns) return __trap();
  using S = typename M::S;
  using Owned = Share<M>;
  constexpr int T = kStreamTile, kPitch = kTilePitch<T>;
  SharedArena arena;
  const Stages<M, T> stages(arena);
  const Shared<float> de = arena.take<float>(T * kPitch), q = arena.take<float>(T * kPitch);
  const Shared<float> lse_a = arena.take<float>(T), lse_b = arena.take<float>(T);
  const Shared<float> delta_a = arena.take<float>(T), delta_b = arena.take<float>(T);
  const Shared<int> token_a = arena.take<int>(T), token_b = arena.take<int>(T);
  const Owned own(both);
  const Side<S>&a = own.call.a, &b = own.call.b;
  const int chunks_df = chunks_of<M>(a.f.width);  // chunks of df come first, then those of dx
  const int chunks = least(Owned::kCount, chunks_df + chunks_of<M>(a.x.width) - own.first_chunk);
  if (own.rows <= 0 || chunks <= 0) return;
  read_rows<T>(token_a, lse_a, delta_a, a, own.pair, own.from);
  __syncthreads();  // where there is nothing to go over, no other barrier comes

  const Kept kept(own.call.rule, own.pair);
  float sums[Owned::kCount][M::kColumns / 8][4];
#pragma unroll
  for (int chunk = 0; chunk < Owned::kCount; ++chunk) clear(sums[chunk]);

  for (int j0 = 0; j0 < own.others(); j0 += T) {
    read_rows<T>(token_b, lse_b, delta_b, b, own.pair, j0);
    __syncthreads();
    const Rows<S> of_fb = b.f.rows(b.extent, own.pair, j0), of_dout = b.dout.rows(b.extent, own.pair, j0);
    Beyond beyond;
#pragma unroll 1
    for (int product = 0; product < 3; ++product) {  // e, dβ bᵀ and a dαᵀ, by the same code
      const Matrix<S>& x = product == 0 ? a.f : product == 1 ? a.dout : a.x;
      const Matrix<S>& y = product == 0 ? b.f : product == 1 ? b.x : b.dout;
      float c[T / 8][4];
      outer_product<M, T>(
          c, stages, x.rows(a.extent, own.pair, own.from), token_a, y.rows(b.extent, own.pair, j0), token_b);
      int k = 0;
      for_each(c, [&](float x, int i, int j) {
        float& of_de = de[i * kPitch + j];
        float& of_q = q[i * kPitch + j];
        if (product == 0) {
          const bool there = token_a[i] && token_b[j];
          float e = beyond.clip(own.call.rule.scale * x, own.call.rule.clamp, k);
          if (there && own.call.bias.data != nullptr) e += own.call.bias.template at<S>(own.pair, own.from + i, j0 + j);
          of_de = there ? expf(e - lse_a[i]) : 0;  // P for now
          of_q = there ? expf(e - lse_b[j]) : 0;
        } else if (product == 1) {
          of_de = fabsf(of_de) * (factor_of(of_de, kept.factor_p()) * x - delta_a[i]);
        } else {
          const float found = of_de + fabsf(of_q) * (factor_of(of_q, kept.factor_q()) * x - delta_b[j]);
          of_q = kept_only(of_q, kept.factor_q());
          const bool stored = i < own.rows && j0 + j < b.extent.stored(own.pair);
          if (own.call.dbias != nullptr && own.first_chunk == 0 && stored) {
            const int64_t row = own.pair * a.extent.length + own.from + i;
            own.call.dbias[row * b.extent.length + j0 + j] = token_a[i] && token_b[j] ? found : 0;
          }
          of_de = beyond.at(k) ? 0 : own.call.rule.scale * found;
        }
        ++k;
      });
      if (product > 0 || !kept.on()) continue;
      for_each_place<T>([&](int i, int j) {
        const int place = i * kPitch + j;
        de[place] = marked(de[place], kept.p(own.from + i, j0 + j));
        q[place] = marked(q[place], kept.q(own.from + i, j0 + j));
      });
    }
    accumulate<M, T>(sums, chunks, stages, token_b, [&](int c) {
      const int chunk = own.first_chunk + c;
      return chunk < chunks_df ? Term<S>{de, of_fb, chunk * M::kColumns}
                               : Term<S>{q, of_dout, (chunk - chunks_df) * M::kColumns};
    });
  }

#pragma unroll
  for (int c = 0; c < Owned::kCount; ++c) {
    const int chunk = own.first_chunk + c;
    if (c >= chunks) continue;
    const bool of_f = chunk < chunks_df;
    const int width = of_f ? a.f.width : a.x.width;
    S* out = (of_f ? a.df : a.dx) + own.first_row() * width;
    store(sums[c], out, token_a, own.rows, width, (of_f ? chunk : chunk - chunks_df) * M::kColumns);
  }
}

}  // namespace coalign::cuda
