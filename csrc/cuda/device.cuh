// What the kernels ask of a GPU beyond C++: shared memory, warp collectives, asynchronous copies, tensor cores.
//
// The tests run these same kernels on the CPU: with SIMULATED_GPU defined, the names below come from
// tests/cuda_sim/simulator.h instead. So no kernel uses PTX or a pointer into shared memory directly.
#pragma once

#ifdef SIMULATED_GPU
#include "simulator.h"
#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#define GPU_INLINE __device__ __forceinline__


namespace coalign::cuda {

// Asynchronous copies and these tensor-core products came with compute capability 8.0. What a kernel for tensor cores
// becomes for older GPUs, and one without them for newer ones that have no use for it, is a trap.
#if !defined(__CUDA_ARCH__)
template <bool TENSOR_CORES, class S>
constexpr bool kRunsHere = true;
#elif __CUDA_ARCH__ >= 800
#define HAS_AMPERE
template <bool TENSOR_CORES, class S>
constexpr bool kRunsHere = TENSOR_CORES || sizeof(S) == sizeof(float);
#else
template <bool TENSOR_CORES, class S>
constexpr bool kRunsHere = !TENSOR_CORES;
#endif

// A pointer into shared memory; the simulator's checks its bounds.
template <class T>
using Shared = T*;

// Hands out a block's dynamic shared memory, in pieces aligned for the widest copies.
class SharedArena {
 public:
  template <class T>
  GPU_INLINE Shared<T> take(int count) {
    extern __shared__ __align__(16) unsigned char shared_memory[];
    T* piece = reinterpret_cast<T*>(shared_memory + used_);
    used_ += (count * sizeof(T) + 15) / 16 * 16;
    return piece;
  }

 private:
  unsigned used_ = 0;
};

// Two adjacent 16-bit numbers, the first of them at an even index.
template <class S>
GPU_INLINE uint32_t load_pair(Shared<S> p) {
  return *reinterpret_cast<const uint32_t*>(p);
}

// Start copying `bytes` of BYTES from global to shared memory; the rest becomes 0. Nothing is read where bytes is 0.
template <int BYTES, class S>
GPU_INLINE void copy_async(Shared<S> to, const S* from, int bytes) {
#ifdef HAS_AMPERE
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(from), "n"(BYTES), "r"(bytes) : "memory");
#else
  for (int i = 0; i < BYTES / static_cast<int>(sizeof(S)); ++i) {
    to[i] = i * static_cast<int>(sizeof(S)) < bytes ? from[i] : S{};
  }
#endif
}

// Close a group of this thread's copies.
GPU_INLINE void commit_copies() {
#ifdef HAS_AMPERE
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Wait for this thread's groups, but for the youngest GROUPS of them.
template <int GROUPS>
GPU_INLINE void wait_for_copies() {
#ifdef HAS_AMPERE
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
#endif
}

// float32 as tensor cores take it: 10 bits of mantissa, rounded to nearest.
GPU_INLINE uint32_t to_tf32(float x) {
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return y;
}

// c += a bᵀ for 16 x 8 numbers of depth 8; fragments as in the PTX manual's mma.m16n8k8.
GPU_INLINE void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

struct BFloat16;
struct Float16;

// c += a bᵀ for 16 x 8 numbers of depth 16; fragments as in the PTX manual's mma.m16n8k16.
template <class S>
GPU_INLINE void mma_16bit(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);

template <>
GPU_INLINE void mma_16bit<BFloat16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

template <>
GPU_INLINE void mma_16bit<Float16>(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

GPU_INLINE float widen_half(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
GPU_INLINE uint16_t narrow_half(float x) { return __half_as_ushort(__float2half_rn(x)); }
GPU_INLINE uint16_t narrow_bfloat(float x) { return __bfloat16_as_ushort(__float2bfloat16_rn(x)); }

// Launch on a stream, and report what the launch itself gets wrong; nothing waits for the kernel.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, int shared, int64_t stream, Arguments... arguments) {
  auto check = [](cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("coalign's CUDA launch failed: ") + cudaGetErrorString(error));
  };
  if (shared > 48 * 1024) check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  kernel<<<grid, threads, shared, reinterpret_cast<cudaStream_t>(stream)>>>(arguments...);
  check(cudaGetLastError());
}

}  // namespace coalign::cuda
#endif
