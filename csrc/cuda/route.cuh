// Which kernels serve a pass: the smallest tile that holds every pair and fits the device, or the stream.
#pragma once

#include "plan.cuh"
#include "stream_backward.cuh"
#include "tile.cuh"

namespace coalign::cuda {

template <class Operands>
void run(void (*kernel)(Operands), const Plan& plan, dim3 grid, int tile, int bytes, const Operands& operands) {
  launch(kernel, grid, 2 * tile, bytes, plan.stream, operands);
}

// Whether a tile of T holds every pair and its kernel fits the device.
template <int T>
bool tile_serves(const Plan& plan, int bytes) {
  return plan.longest() <= T && bytes <= plan.shared;
}

// Blocks of the stream route: pairs, row tiles, and both directions of as many passes as the widest output takes.
template <class M>
dim3 stream_grid(const Plan& plan, int chunks) {
  const int kept = Share<M>::kCount;
  return dim3(
      static_cast<unsigned>(plan.pairs), static_cast<unsigned>((plan.longest() + kStreamTile - 1) / kStreamTile),
      2 * static_cast<unsigned>((chunks + kept - 1) / kept));
}

template <class M>
int host_chunks(int width) {
  return (width + M::kColumns - 1) / M::kColumns;
}

template <class M>
void forward_on(const Plan& plan, const Call<typename M::S>& call) {
  const dim3 pairs(static_cast<unsigned>(plan.pairs));
  if (tile_serves<16>(plan, tile_forward_bytes<M, 16>())) {
    run(tile_forward<M, 16>, plan, pairs, 16, tile_forward_bytes<M, 16>(), call);
  } else if (tile_serves<32>(plan, tile_forward_bytes<M, 32>())) {
    run(tile_forward<M, 32>, plan, pairs, 32, tile_forward_bytes<M, 32>(), call);
  } else if (tile_serves<64>(plan, tile_forward_bytes<M, 64>())) {
    run(tile_forward<M, 64>, plan, pairs, 64, tile_forward_bytes<M, 64>(), call);
  } else {
    const int chunks = host_chunks<M>(std::max(call.a.x.width, call.b.x.width));
    run(stream_forward<M>, plan, stream_grid<M>(plan, chunks), kStreamTile, stream_forward_bytes<M>(),
        Directions<typename M::S>(call));
  }
}

template <class M>
bool needs_deltas(const Plan& plan) {
  return !tile_serves<16>(plan, tile_backward_bytes<M, 16>()) && !tile_serves<32>(plan, tile_backward_bytes<M, 32>()) &&
         !tile_serves<64>(plan, tile_backward_bytes<M, 64>());
}

template <class M>
void backward_on(const Plan& plan, const Call<typename M::S>& call) {
  const dim3 pairs(static_cast<unsigned>(plan.pairs));
  if (tile_serves<16>(plan, tile_backward_bytes<M, 16>())) {
    run(tile_backward<M, 16>, plan, pairs, 16, tile_backward_bytes<M, 16>(), call);
  } else if (tile_serves<32>(plan, tile_backward_bytes<M, 32>())) {
    run(tile_backward<M, 32>, plan, pairs, 32, tile_backward_bytes<M, 32>(), call);
  } else if (tile_serves<64>(plan, tile_backward_bytes<M, 64>())) {
    run(tile_backward<M, 64>, plan, pairs, 64, tile_backward_bytes<M, 64>(), call);
  } else {
    const int chunks = host_chunks<M>(call.a.f.width) + host_chunks<M>(std::max(call.a.x.width, call.b.x.width));
    const Directions<typename M::S> both(call);
    run(stream_deltas<M>, plan, stream_grid<M>(plan, 1), kStreamTile, stream_deltas_bytes<M>(), both);
    run(stream_backward<M>, plan, stream_grid<M>(plan, chunks), kStreamTile, stream_backward_bytes<M>(), both);
  }
}

}  // namespace coalign::cuda

// The routes of one arithmetic, in the file that has them.
#define COMPILE_ROUTES(M)                                                    \
  template void forward_on<M>(const Plan&, const Call<typename M::S>&);      \
  template bool needs_deltas<M>(const Plan&);                                \
  template void backward_on<M>(const Plan&, const Call<typename M::S>&)
