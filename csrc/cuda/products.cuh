// Products of a warp: 16 x 8N numbers, c += a bᵀ, operands in shared memory.
//
// All arithmetics keep c as mma.sync's accumulators do: lane l holds rows l / 4 and l / 4 + 8, and of every 8 columns
// the two from 2 (l % 4) on. So the kernels around them are the same for each.
#pragma once

#include "storage.cuh"

namespace coalign::cuda {

GPU_INLINE int warp() { return threadIdx.x / 32; }
GPU_INLINE int lane_row() { return threadIdx.x % 32 / 4; }
GPU_INLINE int lane_column() { return threadIdx.x % 4; }

// f(number, row, column) for each number that this lane holds of its warp's 16 rows.
template <int N, class F>
GPU_INLINE void for_each(float (&c)[N][4], F f) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int r = 0; r < 4; ++r) f(c[n][r], 16 * warp() + lane_row() + r / 2 * 8, 8 * n + 2 * lane_column() + r % 2);
  }
}

// The same places, not unrolled, for what a lane does to its numbers in shared memory.
template <int T, class F>
GPU_INLINE void for_each_place(F f) {
#pragma unroll 1
  for (int k = 0; k < T / 2; ++k) {
    const int n = k / 4, r = k % 4;
    f(16 * warp() + lane_row() + r / 2 * 8, 8 * n + 2 * lane_column() + r % 2);
  }
}

template <int N>
GPU_INLINE void clear(float (&c)[N][4]) {
  for_each(c, [](float& x, int, int) { x = 0; });
}

// An operand of E's: at(i, k) is its k-th number in row i, adjacent to the (k+1)-th if BY_ROWS.
template <class E, bool BY_ROWS>
struct Operand {
  Shared<E> data;
  int pitch;

  GPU_INLINE E at(int i, int k) const { return BY_ROWS ? data[i * pitch + k] : data[k * pitch + i]; }
};

// IEEE float32 on the ordinary cores, for any storage and any GPU.
template <class Storage>
struct Simt {
  using S = Storage;
  static constexpr bool kRuns = kRunsHere<false, S>;
  static constexpr int kColumns = 16;  // of an operand in a stage of shared memory
  static constexpr int kDepth = 1;     // the depth of a product is a multiple of this

  template <int N, class A, class B>
  GPU_INLINE static void product(float (&c)[N][4], A a, B b, int depth) {
    const int row = lane_row(), column = 2 * lane_column();
#pragma unroll 2
    for (int k = 0; k < depth; ++k) {
      const float a0 = widen(a.at(row, k)), a1 = widen(a.at(row + 8, k));
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float b0 = widen(b.at(8 * n + column, k)), b1 = widen(b.at(8 * n + column + 1, k));
        c[n][0] = fmaf(a0, b0, c[n][0]);
        c[n][1] = fmaf(a0, b1, c[n][1]);
        c[n][2] = fmaf(a1, b0, c[n][2]);
        c[n][3] = fmaf(a1, b1, c[n][3]);
      }
    }
  }
};

// float32 rounded to TF32 on tensor cores.
struct Tf32 {
  using S = float;
  static constexpr bool kRuns = kRunsHere<true, S>;
  static constexpr int kColumns = 32;
  static constexpr int kDepth = 8;

  template <int N, class A, class B>
  GPU_INLINE static void product(float (&c)[N][4], A a, B b, int depth) {
    const int row = lane_row(), column = lane_column();
#pragma unroll 2
    for (int k = 0; k < depth; k += kDepth) {
      const uint32_t of_a[4] = {
          to_tf32(a.at(row, k + column)), to_tf32(a.at(row + 8, k + column)),
          to_tf32(a.at(row, k + column + 4)), to_tf32(a.at(row + 8, k + column + 4))};
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const uint32_t of_b[2] = {to_tf32(b.at(8 * n + row, k + column)), to_tf32(b.at(8 * n + row, k + column + 4))};
        mma_tf32(c[n], of_a, of_b);
      }
    }
  }
};

// bfloat16 or float16 on tensor cores, accumulated in float32. float32 operands are rounded as they are read.
template <class Storage>
struct Mma16 {
  using S = Storage;
  static constexpr bool kRuns = kRunsHere<true, S>;
  static constexpr int kColumns = 64;
  static constexpr int kDepth = 16;

  template <bool BY_ROWS>
  GPU_INLINE static uint32_t pair(const Operand<S, BY_ROWS>& x, int i, int k) {
    if constexpr (BY_ROWS) {
      return load_pair<S>(x.data + (i * x.pitch + k));
    } else {
      return pack<S>(x.at(i, k), x.at(i, k + 1));
    }
  }
  template <bool BY_ROWS>
  GPU_INLINE static uint32_t pair(const Operand<float, BY_ROWS>& x, int i, int k) {
    return pack<S>(narrow<S>(x.at(i, k)), narrow<S>(x.at(i, k + 1)));
  }

  template <int N, class A, class B>
  GPU_INLINE static void product(float (&c)[N][4], A a, B b, int depth) {
    const int row = lane_row(), column = 2 * lane_column();
#pragma unroll 2
    for (int k = 0; k < depth; k += kDepth) {
      const uint32_t of_a[4] = {
          pair(a, row, k + column), pair(a, row + 8, k + column), pair(a, row, k + column + 8),
          pair(a, row + 8, k + column + 8)};
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const uint32_t of_b[2] = {pair(b, 8 * n + row, k + column), pair(b, 8 * n + row, k + column + 8)};
        mma_16bit<S>(c[n], of_a, of_b);
      }
    }
  }
};

}  // namespace coalign::cuda
