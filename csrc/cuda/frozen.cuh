// A frozen model's pairs: from rows of its table of words to the sums that its classifier takes (model/frozen.py).
//
//   e = F Fᵀ      R: softmax of its rows, over each token's partners: those of the same pair on the other side
//   V_a, V_b = Σ relu(W relu(G_a + R G_b) + bias) over a pair's tokens of either side
//
// A tile's T rows are the tokens of pairs that follow one another, each pair's premise and then its hypothesis, so F Fᵀ,
// being symmetric, holds both softmaxes, and W is read once for all of them. Operations for m + n tokens of width h:
// 2 (m + n) h² of the second layer, and 4 T h for each row of the tile, most of it in vain. Bytes: a table row of 3 h
// numbers a token, and W once a tile, from the second-level cache. Shared memory: a tile of T x (T + 4) float32 for R and
// then for chunks of y, two stages of one operand, and the hidden rows, T x h. F, G_b and W pass the stages; G_a is
// brought to the hidden rows' place at once, and what R G_b adds is added there.
//
// A word outside the vocabulary makes its pair's sums NaN. The table must be finite: pairs share products, and 0 times
// NaN would reach the others.
#pragma once

#include "block.cuh"

namespace coalign::cuda {

// One side's packed ids, and where each pair's start.
struct WordIds {
  const void* ids;
  const int32_t* offsets;
  bool wide;  // int64 where true, int32 where not

  GPU_INLINE int64_t at(int64_t i) const {
    return wide ? static_cast<const int64_t*>(ids)[i] : static_cast<const int32_t*>(ids)[i];
  }
};

// The hidden rows' columns are a multiple of every product's depth and of 16 bytes, the rest zeros; 16 bytes more from
// row to row keep a fragment's rows in separate banks.
template <class S>
constexpr int kApart = 16 / static_cast<int>(sizeof(S));
template <class S>
constexpr int hidden_pitch(int width) {
  return (width + 15) / 16 * 16 + kApart<S>;
}

// Contiguous. The table's parts are (words, width) each; sums: (pairs, 2 width).
template <class S>
struct FrozenCall {
  WordIds a, b;
  Rows<S> f, own, other, weight;
  const float* bias;
  float* sums;
  int64_t words, pairs;
  int pitch;    // hidden_pitch
  int owned;    // pairs of a block
  int shorter;  // pairs of so many tokens or fewer were an earlier launch's, of smaller tiles

  // Tokens of `count` pairs from one of them on.
  GPU_INLINE int tokens(int64_t pair, int count) const {
    return a.offsets[pair + count] - a.offsets[pair] + b.offsets[pair + count] - b.offsets[pair];
  }
  // How many pairs from this one on fill a tile of T rows; 0: it is too long for that, or an earlier launch's.
  template <int T>
  GPU_INLINE int group(int64_t pair, int64_t end) const {
    if (tokens(pair, 1) <= shorter) return 0;
    int count = 0;
    while (pair + count < end && count < T / 2 && tokens(pair, count + 1) <= T) ++count;
    return count;
  }
};

// Rows of a table, in the order of ids.
template <class S>
struct Gathered : Rows<S> {
  Shared<int> id;

  GPU_INLINE const S* at(int i) const { return Rows<S>::at(id[i]); }
};

// The first `count` rows of a chunk are there.
struct Before {
  int count;

  GPU_INLINE bool operator[](int i) const { return i < count; }
};

template <class M, int T>
constexpr int64_t frozen_sums_bytes(int width) {
  using S = typename M::S;
  return shared_bytes<M, T, 1>(1, 5) + static_cast<int64_t>(sizeof(S)) * T * hidden_pitch<S>(width);
}

// A block's shared memory. A segment is one side of one pair: segment 2 k is the k-th pair's premise.
template <class M, int T>
struct FrozenRoom {
  using S = typename M::S;

  Stages<M, T, 1> stages;
  Shared<float> tile;
  Shared<S> hidden;
  Shared<int> id, token, segment;  // of each row; token: whether it is one, and in the vocabulary
  Shared<int> first;               // row of each segment, and of the end
  Shared<int> known;               // whether all of a pair's words are

  GPU_INLINE FrozenRoom(SharedArena& arena, int pitch)
      : stages(arena),
        tile(arena.take<float>(T * kTilePitch<T>)),
        hidden(arena.take<S>(T * pitch)),
        id(arena.take<int>(T)),
        token(arena.take<int>(T)),
        segment(arena.take<int>(T)),
        first(arena.take<int>(T + 1)),
        known(arena.take<int>(T / 2)) {}
};

constexpr int kNoSegment = -2;  // of a row without a word: no segment's neighbour, nor its own

// Who the rows are.
template <class M, int T>
GPU_INLINE void read_words(const FrozenCall<typename M::S>& call, const FrozenRoom<M, T>& room, int64_t pair, int count) {
  const int thread = threadIdx.x;
  if (thread <= 2 * count) {
    const int k = thread / 2, premise = thread % 2;  // pairs before the segment, and whether a premise is between
    room.first[thread] = call.a.offsets[pair + k + premise] - call.a.offsets[pair] + call.b.offsets[pair + k] -
                         call.b.offsets[pair];
  }
  __syncthreads();
  if (thread < T) {
    int segment = 0;
    int64_t id = -1;
    if (thread < room.first[2 * count]) {
      while (room.first[segment + 1] <= thread) ++segment;
      const WordIds& side = segment % 2 ? call.b : call.a;
      id = side.at(side.offsets[pair + segment / 2] + static_cast<int64_t>(thread - room.first[segment]));
    }
    const bool known = 0 <= id && id < call.words;
    room.id[thread] = known ? static_cast<int>(id) : 0;
    room.token[thread] = known;
    room.segment[thread] = known ? segment : kNoSegment;
  }
  __syncthreads();
  if (thread < count) {
    bool all = true;
    for (int i = room.first[2 * thread]; i < room.first[2 * thread + 2]; ++i) all = all && room.token[i];
    room.known[thread] = all;
  }
}

// e's rows become their softmax; a row without a partner becomes 0.
template <int N>
GPU_INLINE void normalise(float (&e)[N][4]) {
  float peak[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};  // of this lane's two rows
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int r = 0; r < 4; ++r) peak[r / 2] = fmaxf(peak[r / 2], e[n][r]);
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    peak[half] = over_columns(peak[half], [](float x, float y) { return fmaxf(x, y); });
    if (peak[half] == -INFINITY) peak[half] = 0;
  }
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      e[n][r] = expf(e[n][r] - peak[r / 2]);
      sum[r / 2] += e[n][r];
    }
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    sum[half] = over_columns(sum[half], [](float x, float y) { return x + y; });
    sum[half] = sum[half] == 0 ? 0 : 1 / sum[half];
  }
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int r = 0; r < 4; ++r) e[n][r] *= sum[r / 2];
  }
}

// NaN stays NaN.
GPU_INLINE float relu(float x) { return x < 0 ? 0 : x; }

// R, into the tile.
template <class M, int T>
GPU_INLINE void align_rows(const FrozenCall<typename M::S>& call, const FrozenRoom<M, T>& room) {
  using S = typename M::S;
  const Gathered<S> f{call.f, room.id};
  float e[T / 8][4];
  clear(e);
  pipeline(
      chunks_of<M>(f.width),
      [&](int chunk, int stage) { fetch<M, T>(room.stages.at(stage, 0), f, room.token, chunk * M::kColumns); },
      [&](int chunk, int stage) {
        const Shared<S> rows = room.stages.at(stage, 0);
        const Operand<S, true> all{rows, kStagePitch<M>};
        M::product(e, own_rows<S>(rows, kStagePitch<M>), all, depth_of<M>(f.width, chunk));
      });
  for_each(e, [&](float& x, int i, int j) {
    if (room.segment[i] != (room.segment[j] ^ 1)) x = -INFINITY;
  });
  normalise(e);
  for_each(e, [&](float weight, int i, int j) { room.tile[i * kTilePitch<T> + j] = weight; });
}

// hidden = relu(hidden + R G_b), G_a being there already.
template <class M, int T>
GPU_INLINE void add_aligned(const FrozenCall<typename M::S>& call, const FrozenRoom<M, T>& room) {
  using S = typename M::S;
  const Gathered<S> other{call.other, room.id};
  pipeline(
      chunks_of<M>(other.width),
      [&](int chunk, int stage) { fetch<M, T>(room.stages.at(stage, 0), other, room.token, chunk * M::kColumns); },
      [&](int chunk, int stage) {
        float c[M::kColumns / 8][4];
        clear(c);
        const Operand<S, false> values{room.stages.at(stage, 0), kStagePitch<M>};
        M::product(c, own_rows<float>(room.tile, kTilePitch<T>), values, T);
        for_each(c, [&](float aligned, int i, int j) {
          const int column = chunk * M::kColumns + j;
          if (column >= call.pitch - kApart<S>) return;
          S& place = room.hidden[i * call.pitch + column];
          place = narrow<S>(relu(widen(place) + aligned));
        });
      });
}

// The second layer, T of its outputs at a time, and each segment's sum of them, its rows in order.
template <class M, int T>
GPU_INLINE void sum_outputs(
    const FrozenCall<typename M::S>& call, const FrozenRoom<M, T>& room, int64_t pair, int count) {
  using S = typename M::S;
  const int width = call.weight.width, chunks = chunks_of<M>(width);
  float y[T / 8][4];
  pipeline(
      (width + T - 1) / T * chunks,
      [&](int c, int stage) {
        const int from = c / chunks * T;
        Rows<S> weight = call.weight;
        weight.data = call.weight.at(from);
        fetch<M, T>(room.stages.at(stage, 0), weight, Before{width - from}, c % chunks * M::kColumns);
      },
      [&](int c, int stage) {
        const int chunk = c % chunks, from = c / chunks * T;
        if (chunk == 0) clear(y);
        const Operand<S, true> weight{room.stages.at(stage, 0), kStagePitch<M>};
        M::product(y, own_rows<S>(room.hidden + chunk * M::kColumns, call.pitch), weight, depth_of<M>(width, chunk));
        if (chunk + 1 < chunks) return;
        for_each(y, [&](float x, int i, int j) {
          room.tile[i * kTilePitch<T> + j] = relu(x + (from + j < width ? call.bias[from + j] : 0.0f));
        });
        __syncthreads();
        for (int place = threadIdx.x; place < 2 * count * T; place += kThreads<T>) {
          const int segment = place / T, j = place % T;
          if (from + j >= width) continue;
          float sum = 0;
          for (int i = room.first[segment]; i < room.first[segment + 1]; ++i) sum += room.tile[i * kTilePitch<T> + j];
          call.sums[(2 * pair + segment) * width + from + j] = room.known[segment / 2] ? sum : NAN;
        }
      });
}

template <class M, int T>
__global__ __launch_bounds__(kThreads<T>, 1) void frozen_sums(const __grid_constant__ FrozenCall<typename M::S> call) {
  if constexpr (!M::kRuns) return __trap();
  using S = typename M::S;
  SharedArena arena;
  const FrozenRoom<M, T> room(arena, call.pitch);
  int64_t pair = static_cast<int64_t>(blockIdx.x) * call.owned;
  const int64_t end = pair + call.owned < call.pairs ? pair + call.owned : call.pairs;
  while (pair < end) {
    const int count = call.template group<T>(pair, end);
    if (count > 0) {
      read_words<M, T>(call, room, pair, count);
      const Gathered<S> own{call.own, room.id};  // its copies end with the pipeline's first
      fetch_columns<T>(room.hidden, call.pitch, call.pitch - kApart<S>, own, room.token, 0);
      align_rows<M, T>(call, room);
      add_aligned<M, T>(call, room);
      sum_outputs<M, T>(call, room, pair, count);
    }
    pair += most(count, 1);
  }
}

}  // namespace coalign::cuda
