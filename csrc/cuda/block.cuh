// What every kernel is made of. A block has T / 16 warps and works on T x T tiles of e: warp w owns 16 rows of each
// product. Operands pass through two stages of shared memory, so that one is filled while the other is used.
#pragma once

#include "call.cuh"
#include "products.cuh"

namespace coalign::cuda {

template <int T>
constexpr int kThreads = 2 * T;

// Numbers from one row of a T x T tile of float32 to the next: 4 more than T keep a fragment's rows in separate banks.
template <int T>
constexpr int kTilePitch = T + 4;

// The same for a staged operand, whose rows stay aligned for 16-byte copies.
template <class M>
constexpr int kStagePitch = M::kColumns + 16 / static_cast<int>(sizeof(typename M::S));

// PLACES: how many operands a stage has room for.
template <class M, int T, int PLACES = 2>
class Stages {
 public:
  using S = typename M::S;
  static constexpr int kSize = T * kStagePitch<M>;

  GPU_INLINE explicit Stages(SharedArena& arena) : data_(arena.take<S>(2 * PLACES * kSize)) {}
  // The first or second operand (place 0 or 1) of a stage.
  GPU_INLINE Shared<S> at(int stage, int place) const { return data_ + (PLACES * stage + place) * kSize; }

 private:
  Shared<S> data_;
};

// Bytes of shared memory: the stages, `tiles` tiles of float32, and `rows` numbers for each row.
template <class M, int T, int PLACES = 2>
constexpr int shared_bytes(int tiles, int rows) {
  constexpr int kStages = 2 * PLACES * T * kStagePitch<M> * static_cast<int>(sizeof(typename M::S));
  return kStages + tiles * T * kTilePitch<T> * 4 + rows * T * 4;
}

template <int T>
GPU_INLINE void mark_tokens(Shared<int> token, const Extent& extent, int64_t pair, int from) {
  for (int i = threadIdx.x; i < T; i += kThreads<T>) token[i] = extent.token(pair, from + i);
}

// Start bringing `columns` of T rows to shared memory, BYTES at a time; rows that are not there arrive as zeros, unread.
template <int T, int BYTES, class S, class From, class There>
GPU_INLINE void fetch_by(Shared<S> to, int pitch, int columns, const From& from, const There& there, int column) {
  constexpr int kPiece = BYTES / static_cast<int>(sizeof(S));
  const int pieces = columns / kPiece;
  for (int p = threadIdx.x; p < T * pieces; p += kThreads<T>) {
    const int i = p / pieces, k = p % pieces * kPiece;
    const int count = there[i] ? most(0, least(from.width - column - k, kPiece)) : 0;
    const S* source = count ? from.at(i) + column + k : from.data;
    copy_async<BYTES>(to + (i * pitch + k), source, count * static_cast<int>(sizeof(S)));
  }
}

// from: Rows, or what has at(i) instead. there[i]: whether row i is. columns: a multiple of 16 bytes' numbers.
template <int T, class S, class From, class There>
GPU_INLINE void fetch_columns(Shared<S> to, int pitch, int columns, const From& from, const There& there, int column) {
  if (from.step == 16) return fetch_by<T, 16>(to, pitch, columns, from, there, column);
  if (from.step == 8) return fetch_by<T, 8>(to, pitch, columns, from, there, column);
  if (from.step == 4) return fetch_by<T, 4>(to, pitch, columns, from, there, column);
  for (int p = threadIdx.x; p < T * columns; p += kThreads<T>) {
    const int i = p / columns, k = p % columns;
    to[i * pitch + k] = there[i] && column + k < from.width ? from.at(i)[column + k] : S{};
  }
}

// A chunk of columns into a stage.
template <class M, int T, class S, class From, class There>
GPU_INLINE void fetch(Shared<S> to, const From& from, const There& there, int column) {
  fetch_columns<T>(to, kStagePitch<M>, M::kColumns, from, there, column);
}

// For each chunk c: use(c, stage), while fetch_chunk(c + 1, other stage) is under way. All threads call it together.
// `use` sees what any thread wrote to shared memory before the call, and when the call returns none reads a stage any
// more, so it needs no barrier before it or after it. Only what fetch_chunk itself reads must be there. A loop with one fetch in it: inlined more often than that, the
// kernels take minutes to compile.
template <class Fetch, class Use>
GPU_INLINE void pipeline(int chunks, Fetch fetch_chunk, Use use) {
#pragma unroll 1
  for (int c = -1; c < chunks; ++c) {
    if (c + 1 < chunks) fetch_chunk(c + 1, (c + 1) % 2);
    commit_copies();
    if (c < 0) continue;
    wait_for_copies<1>();
    __syncthreads();
    use(c, c % 2);
    __syncthreads();
  }
}

template <class M>
GPU_INLINE int chunks_of(int width) {
  return (width + M::kColumns - 1) / M::kColumns;
}
// The depth of a product over that chunk of so wide operands.
template <class M>
GPU_INLINE int depth_of(int width, int chunk) {
  const int left = least(M::kColumns, width - chunk * M::kColumns);
  return (left + M::kDepth - 1) / M::kDepth * M::kDepth;
}

// The warp's 16 rows of a staged operand or tile.
template <class E>
GPU_INLINE Operand<E, true> own_rows(Shared<E> data, int pitch) {
  return {data + 16 * warp() * pitch, pitch};
}
template <class E>
GPU_INLINE Operand<E, false> own_columns(Shared<E> data, int pitch) {
  return {data + 16 * warp(), pitch};
}

// c = x yᵀ: a tile of scores, or of their gradients.
template <class M, int T, class S>
GPU_INLINE void outer_product(
    float (&c)[T / 8][4], const Stages<M, T>& stages, const Rows<S>& x, Shared<int> token_x, const Rows<S>& y,
    Shared<int> token_y) {
  clear(c);
  pipeline(
      chunks_of<M>(x.width),
      [&](int chunk, int stage) {
        fetch<M, T>(stages.at(stage, 0), x, token_x, chunk * M::kColumns);
        fetch<M, T>(stages.at(stage, 1), y, token_y, chunk * M::kColumns);
      },
      [&](int chunk, int stage) {
        const Operand<S, true> of_y{stages.at(stage, 1), kStagePitch<M>};
        M::product(c, own_rows<S>(stages.at(stage, 0), kStagePitch<M>), of_y, depth_of<M>(x.width, chunk));
      });
}

// One number of the four lanes that share a fragment's rows.
template <class F>
GPU_INLINE float over_columns(float x, F f) {
  x = f(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return f(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// Write a chunk of the warp's rows, from `column` on; out: the block's first row, of which `rows` exist. 0 where a row is
// no token: the other side's NaN or infinity has met a weight of 0 there.
template <int N, class S>
GPU_INLINE void store(float (&c)[N][4], S* out, Shared<int> token, int rows, int width, int column) {
  for_each(c, [&](float x, int i, int j) {
    if (i < rows && column + j < width) out[static_cast<int64_t>(i) * width + column + j] = narrow<S>(token[i] ? x : 0);
  });
}

// out = w x: weighted sums of the rows of x, the weights a tile in shared memory; 0 where a row of out is no token.
template <class M, int T, class W, class S>
GPU_INLINE void combine(
    const Stages<M, T>& stages, W own_weights, const Rows<S>& x, Shared<int> token_x, S* out, Shared<int> token_out,
    int rows) {
  pipeline(
      chunks_of<M>(x.width),
      [&](int chunk, int stage) { fetch<M, T>(stages.at(stage, 0), x, token_x, chunk * M::kColumns); },
      [&](int chunk, int stage) {
        float c[M::kColumns / 8][4];
        clear(c);
        M::product(c, own_weights, Operand<S, false>{stages.at(stage, 0), kStagePitch<M>}, T);
        store(c, out, token_out, rows, x.width, chunk * M::kColumns);
      });
}

// delta[i] = <dout_i, out_i> - dlse_i of T tokens, a warp to a row. dlse: the first row's, or null.
template <int T, class S, class D>
GPU_INLINE void deltas(D delta, const Rows<S>& out, const Rows<S>& dout, const float* dlse, Shared<int> token) {
  for (int i = warp(); i < T; i += T / 16) {
    if (!token[i]) continue;
    float sum = 0;
    for (int d = threadIdx.x % 32; d < out.width; d += 32) {
      sum = fmaf(widen(out.data[i * out.row + d]), widen(dout.data[i * dout.row + d]), sum);
    }
    for (int other = 16; other > 0; other /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, other);
    if (threadIdx.x % 32 == 0) delta[i] = sum - (dlse == nullptr ? 0.0f : dlse[i]);
  }
}

// An LSE as a gradient needs it: where nothing was summed, +inf makes every weight exp(e - lse) 0.
GPU_INLINE float closed(float lse) { return lse == -INFINITY ? INFINITY : lse; }

}  // namespace coalign::cuda
