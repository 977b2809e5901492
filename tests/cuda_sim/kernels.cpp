// The kernels alone, without PyTorch, so that copies of them with seeded bugs are compiled in a moment:
// one full pair of float32 rows, or a frozen model's pairs, on TF32 tensor cores.
#define SIMULATED_GPU
#include "cuda/frozen.cuh"
#include "cuda/stream_backward.cuh"
#include "cuda/tile.cuh"

using namespace coalign::cuda;

namespace {

struct Pair {
  int m, n, h, d;
  float *f_a, *f_b, *a, *b, *dbeta, *dalpha;           // read
  float *beta, *alpha, *lse_a, *lse_b;                 // written, then read
  float *delta_a, *delta_b, *df_a, *df_b, *da, *db;  // written
};

struct Sentences {
  int pairs, words, h;
  int64_t *ids_a, *ids_b;
  int32_t *offsets_a, *offsets_b;
  float *table, *weight, *bias, *sums;
};

Matrix<float> matrix(const float* data, int width) {
  return {data, 0, 0, width, 1, width, width % 4 == 0 ? 16 : width % 2 == 0 ? 8 : 4};
}

Rows<float> rows(const float* data, int row, int width) { return {data, row, width, 16}; }

// What the simulator finds wrong, or "".
template <class F>
const char* tried(F f) {
  static std::string error;
  try {
    f();
    error.clear();
  } catch (const std::exception& found) {
    error = found.what();
  }
  return error.c_str();
}

template <class Kernel, class Operands>
void run(Kernel kernel, int tile, int row_tiles, int layers, int bytes, const Operands& operands) {
  launch(kernel, dim3(1, row_tiles, layers), 2 * tile, bytes, 0, operands);
}

}  // namespace

// Both passes on the tile or the stream route.
extern "C" __attribute__((visibility("default"))) const char* run_pair(const Pair* p, int stream) {
  using M = Tf32;
  const Extent all_a{nullptr, 0, false, p->m}, all_b{nullptr, 0, false, p->n};
  Call<float> call{};
  call.a = {all_a, matrix(p->f_a, p->h), matrix(p->a, p->d), p->beta, p->lse_a,
            matrix(p->beta, p->d), matrix(p->dbeta, p->d), nullptr, p->delta_a, p->df_a, p->da};
  call.b = {all_b, matrix(p->f_b, p->h), matrix(p->b, p->d), p->alpha, p->lse_b,
            matrix(p->alpha, p->d), matrix(p->dalpha, p->d), nullptr, p->delta_b, p->df_b, p->db};
  call.rule = {1, INFINITY, nullptr, {}, {}, false};
  return tried([&] {
    if (stream) {
      const Directions<float> both(call);
      const int row_tiles = (std::max(p->m, p->n) + kStreamTile - 1) / kStreamTile;
      run(stream_forward<M>, kStreamTile, row_tiles, 2, stream_forward_bytes<M>(), both);
      run(stream_deltas<M>, kStreamTile, row_tiles, 2, stream_deltas_bytes<M>(), both);
      run(stream_backward<M>, kStreamTile, row_tiles, 2, stream_backward_bytes<M>(), both);
    } else {
      run(tile_forward<M, 32>, 32, 1, 1, tile_forward_bytes<M, 32>(), call);
      run(tile_backward<M, 32>, 32, 1, 1, tile_backward_bytes<M, 32>(), call);
    }
  });
}

// All pairs in one block.
extern "C" __attribute__((visibility("default"))) const char* run_sentences(const Sentences* p) {
  using M = Tf32;
  auto part = [&](int k) { return rows(p->table + k * p->h, 3 * p->h, p->h); };
  const FrozenCall<float> call{
      {p->ids_a, p->offsets_a, true}, {p->ids_b, p->offsets_b, true}, part(0), part(1), part(2),
      rows(p->weight, p->h, p->h), p->bias, p->sums, p->words, p->pairs, hidden_pitch<float>(p->h), p->pairs, -1};
  return tried([&] {
    run(frozen_sums<M, 32>, 32, 1, 1, static_cast<int>(frozen_sums_bytes<M, 32>(p->h)), call);
  });
}
