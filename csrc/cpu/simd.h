// One vector of whatever width the machine has: the only file that knows instruction sets.
//
// Arithmetic is GCC's and Clang's vector extension; what it can't say (loading part of a vector) has a few
// lines for each instruction set and a loop for the others.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__AVX512F__) || defined(__AVX2__) || defined(__FMA__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// Inlined before the compiler decides which arrays of vectors can live in registers.
#define ALWAYS_INLINE __attribute__((always_inline))

namespace coalign {

// EMULATED_WIDE_VECTORS, with the processor's own wide instructions switched off: vectors of 64 bytes and pairs of bfloat16 put
// together from narrower ones, to test elsewhere what AVX-512 machines do.
#if defined(__AVX512F__) || defined(EMULATED_WIDE_VECTORS)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

// Vectors side by side in a block of accumulators with kBlockRows rows, and accumulators side by side in one with
// kDotsRows: what 32 registers hold, or 16 beside what is multiplied and a mask.
constexpr int kBlockRows = 6;
#if defined(__AVX512F__) || defined(EMULATED_WIDE_VECTORS) || defined(__aarch64__)
constexpr int kBlockColumns = 4, kDotsRows = 4, kDotsColumns = 4;
#else
constexpr int kBlockColumns = 2, kDotsRows = 6, kDotsColumns = 2;
#endif

template <class T>
constexpr int lanes = kVectorBytes / sizeof(T);

template <class T>
struct VectorOf {
  typedef T type __attribute__((vector_size(kVectorBytes), may_alias, aligned(alignof(T))));
};
template <class T>
using Vec = typename VectorOf<T>::type;  // unaligned when read from memory

constexpr int round_up(int n, int step) { return (n + step - 1) / step * step; }

template <class F, int... I>
ALWAYS_INLINE inline void unroll(F&& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}

// f(0), f(1), ... f(N - 1), each index a constant: arrays of vectors so indexed are registers, not memory.
template <int N, class F>
ALWAYS_INLINE inline void unroll(F&& f) {
  unroll(f, std::make_integer_sequence<int, N>{});
}

// All lanes alike. Not 0 + value: that would be an addition, which -0 tells from doing nothing.
template <class T>
ALWAYS_INLINE inline Vec<T> fill(T value) {
  return value - Vec<T>{};
}

template <class T>
ALWAYS_INLINE inline Vec<T> load(const T* p) {
  return *reinterpret_cast<const Vec<T>*>(p);
}

template <class T>
ALWAYS_INLINE inline void store(T* p, Vec<T> v) {
  *reinterpret_cast<Vec<T>*>(p) = v;
}

// Zeroes past the caches, which takes a fifth of the time where they would not stay in a cache anyway: an ordinary
// store reads the line that it is going to overwrite.
inline void clear_streaming(void* from, std::size_t bytes) {
#if defined(__AVX512F__) || defined(__AVX2__)
  char* p = static_cast<char*>(from);
  const std::size_t head = std::min<std::size_t>(bytes, -reinterpret_cast<std::uintptr_t>(p) % kVectorBytes);
  std::memset(p, 0, head);
  p += head;
  bytes -= head;
  for (; bytes >= kVectorBytes; bytes -= kVectorBytes, p += kVectorBytes) {
#if defined(__AVX512F__)
    _mm512_stream_ps(reinterpret_cast<float*>(p), _mm512_setzero_ps());
#else
    _mm256_stream_ps(reinterpret_cast<float*>(p), _mm256_setzero_ps());
#endif
  }
  std::memset(p, 0, bytes);
  _mm_sfence();
#else
  std::memset(from, 0, bytes);
#endif
}

// v, read now and kept in a register: compilers like to read an operand again at each of its uses, and here a
// load costs as much as the multiplication it feeds.
template <class T>
ALWAYS_INLINE inline Vec<T> in_register(Vec<T> v) {
#if defined(__x86_64__) && !defined(EMULATED_WIDE_VECTORS)
  asm("" : "+v"(v));
#endif
  return v;
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// All bits of the first n lanes.
template <class T>
ALWAYS_INLINE inline __m256i first_lanes(int n) {
  if constexpr (sizeof(T) == 4) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  } else {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
}
#endif

// The first n lanes; the others are 0. 0 < n <= lanes.
template <class T>
ALWAYS_INLINE inline Vec<T> load_part(const T* p, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p);
  if constexpr (sizeof(T) == 8) return (Vec<T>)_mm512_maskz_loadu_pd((__mmask8)((1u << n) - 1), p);
#elif defined(__AVX2__)
  if (n == lanes<T>) return load(p);
  if constexpr (sizeof(T) == 4) return (Vec<T>)_mm256_maskload_ps(reinterpret_cast<const float*>(p), first_lanes<T>(n));
  if constexpr (sizeof(T) == 8) return (Vec<T>)_mm256_maskload_pd(p, first_lanes<T>(n));
#else
  if (n == lanes<T>) return load(p);
  Vec<T> v{};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
#endif
}

// What a row of `width` numbers has behind its whole vectors, and 0 in the other lanes; which those are follows from
// the width. Masked loads take so long on some processors that the row's last whole vector is read instead.
template <class T>
ALWAYS_INLINE inline Vec<T> load_rest(const T* row, int width) {
  const int n = width % lanes<T>;
#if defined(__AVX2__) && !defined(__AVX512F__)
  if (width > lanes<T>) {
    typedef int32_t Ints __attribute__((vector_size(kVectorBytes), may_alias, aligned(4)));
    static constexpr int32_t bits[16] = {0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, -1, -1, -1, -1};
    const Ints last = *reinterpret_cast<const Ints*>(bits + n * (sizeof(T) / sizeof(int32_t)));
    return (Vec<T>)((Ints)load(row + width - lanes<T>) & last);
  }
#endif
  return load_part(row + width - n, n);
}

// The first n numbers of v, n < 2 HALF, by halves of halves: masked stores are slow without registers for masks.
template <int HALF, class T, class V>
ALWAYS_INLINE inline void store_halves(T* p, V v, int n) {
  typedef T Half __attribute__((vector_size(sizeof(T) * HALF)));
  Half part[2];
  std::memcpy(part, &v, sizeof(part));
  if (n >= HALF) {
    std::memcpy(p, part, sizeof(Half));
    part[0] = part[1];
    p += HALF, n -= HALF;
  }
  if constexpr (HALF > 1) store_halves<HALF / 2>(p, part[0], n);
}

template <class T>
ALWAYS_INLINE inline void store_part(T* p, Vec<T> v, int n) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), (__m512)v);
  if constexpr (sizeof(T) == 8) _mm512_mask_storeu_pd(p, (__mmask8)((1u << n) - 1), (__m512d)v);
#else
  if (n == lanes<T>) return store(p, v);
  store_halves<lanes<T> / 2>(p, v, n);
#endif
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// For each set of eight lanes, by the bits of their numbers: these numbers, lowest first, a byte each.
struct LaneSets {
  uint64_t lanes[256] = {};
  constexpr LaneSets() {
    for (int set = 0; set < 256; ++set) {
      for (int lane = 0, count = 0; lane < 8; ++lane) {
        if (set >> lane & 1) lanes[set] |= static_cast<uint64_t>(lane) << 8 * count++;
      }
    }
  }
};
inline constexpr LaneSets kLaneSets;
#endif

// Writes the lanes that are not 0 to numbers, in their order, and first + lane to places, and says how many they are.
// What stands behind them there, up to a whole vector, is overwritten.
ALWAYS_INLINE inline int keep_nonzero(Vec<float> v, uint32_t first, float* numbers, uint32_t* places) {
#if defined(__AVX512F__)
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __mmask16 kept = _mm512_cmp_ps_mask((__m512)v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
  _mm512_storeu_ps(numbers, _mm512_maskz_compress_ps(kept, (__m512)v));
  _mm512_storeu_si512(places, _mm512_maskz_compress_epi32(kept, _mm512_add_epi32(lane, _mm512_set1_epi32(first))));
  return __builtin_popcount(kept);
#elif defined(__AVX2__)
  const int kept = _mm256_movemask_ps(_mm256_cmp_ps((__m256)v, _mm256_setzero_ps(), _CMP_NEQ_UQ));
  const __m256i order = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kLaneSets.lanes + kept)));
  _mm256_storeu_ps(numbers, _mm256_permutevar8x32_ps((__m256)v, order));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(places), _mm256_add_epi32(order, _mm256_set1_epi32(first)));
  return __builtin_popcount(kept);
#else
  int count = 0;
  for (int lane = 0; lane < lanes<float>; ++lane) {
    numbers[count] = v[lane];
    places[count] = first + lane;
    count += !(v[lane] == 0);
  }
  return count;
#endif
}

template <class T>
ALWAYS_INLINE inline Vec<T> max(Vec<T> a, Vec<T> b) {
  return a > b ? a : b;
}

// Whether a comparison of T's vectors holds in any lane.
template <class T, class C>
ALWAYS_INLINE inline bool any(C holds) {
  bool found = false;
  for (int l = 0; l < lanes<T>; ++l) found |= holds[l] != 0;
  return found;
}

// Lanes of a and b, folded onto one another in blocks: of 2 HALF lanes, the first HALF from a and the others from b;
// for HALF = 1 of 4 lanes, from a and from b by turns, which in-lane shuffles can do.
template <class T, int HALF, class OP, std::size_t... I>
ALWAYS_INLINE inline Vec<T> fold(Vec<T> a, Vec<T> b, OP op, std::index_sequence<I...>) {
  constexpr int W = lanes<T>;
  constexpr auto from = [](int lane, int upper) {
    if (HALF == 1 && W == 2) return upper + lane * W;
    if (HALF == 1) return lane / 4 * 4 + lane % 4 / 2 + upper * 2 + lane % 2 * W;
    const int block = lane / (2 * HALF) * (2 * HALF), within = lane % (2 * HALF);
    return block + within % HALF + upper * HALF + (within >= HALF ? W : 0);
  };
  return op(__builtin_shufflevector(a, b, from(I, 0)...), __builtin_shufflevector(a, b, from(I, 1)...));
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// The lanes of each of four vectors as one number. The first stage folds halves, and the others work with these: where
// the processor makes vectors of halves, a shuffle across them takes as long as eight others.
template <class OP>
ALWAYS_INLINE inline __m128 reduce_four(const Vec<float>* v, OP op) {
  __m128 half[4];
  unroll<4>([&](auto i) ALWAYS_INLINE {
    half[i] = op(_mm256_castps256_ps128((__m256)v[i]), _mm256_extractf128_ps((__m256)v[i], 1));
  });
  const __m128 a = op(_mm_unpacklo_ps(half[0], half[1]), _mm_unpackhi_ps(half[0], half[1]));
  const __m128 b = op(_mm_unpacklo_ps(half[2], half[3]), _mm_unpackhi_ps(half[2], half[3]));
  return op(_mm_movelh_ps(a, b), _mm_movehl_ps(b, a));
}
#endif

// Lane l of the result is all lanes of v[l] added up, or their maximum: a transpose and a reduction in one tree, with
// the widest shuffles last, for they are the slowest. v is spoilt.
template <class T, class OP, int HALF = 1>
ALWAYS_INLINE inline Vec<T> reduce(Vec<T>* v, OP op) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (sizeof(T) == 4) {
    return (Vec<T>)_mm256_insertf128_ps(_mm256_castps128_ps256(reduce_four(v, op)), reduce_four(v + 4, op), 1);
  }
#endif
  constexpr int COUNT = lanes<T> / 2 / HALF;
  unroll<COUNT>([&](auto i) ALWAYS_INLINE {
    v[i] = fold<T, HALF>(v[2 * i], v[2 * i + 1], op, std::make_index_sequence<lanes<T>>{});
  });
  if constexpr (COUNT == 1) {
    return v[0];
  } else {
    return reduce<T, OP, 2 * HALF>(v, op);
  }
}

template <class T>
ALWAYS_INLINE inline Vec<T> sums(Vec<T>* v) {
  return reduce<T>(v, [](auto a, auto b) ALWAYS_INLINE { return a + b; });
}

// out[i * ld + j] = scale times all lanes of v[i * COLUMNS + j] added up, j < COLUMNS. v has whole vectors of vectors, and
// is spoilt.
template <int ROWS, int COLUMNS, class T>
ALWAYS_INLINE inline void store_sums(Vec<T>* v, T scale, T* out, int ld) {
  constexpr int W = lanes<T>, COUNT = ROWS * COLUMNS;
#if defined(__AVX2__) && !defined(__AVX512F__)
  if constexpr (sizeof(T) == 4 && COLUMNS == 2) {
    unroll<(ROWS + 1) / 2>([&](auto i) ALWAYS_INLINE {
      const __m128 two = reduce_four(v + 4 * i, [](auto a, auto b) ALWAYS_INLINE { return a + b; }) * scale;
      _mm_storel_pi(reinterpret_cast<__m64*>(out + 2 * i * ld), two);
      if constexpr (2 * i + 1 < ROWS) _mm_storeh_pi(reinterpret_cast<__m64*>(out + (2 * i + 1) * ld), two);
    });
    return;
  }
#endif
  T total[round_up(COUNT, W)];
  unroll<round_up(COUNT, W) / W>([&](auto c) ALWAYS_INLINE { store(total + c * W, sums<T>(v + c * W) * scale); });
  unroll<ROWS>([&](auto i) ALWAYS_INLINE { std::memcpy(out + i * ld, total + i * COLUMNS, sizeof(T) * COLUMNS); });
}

template <class T>
ALWAYS_INLINE inline Vec<T> maxima(Vec<T>* v) {
  return reduce<T>(v, [](auto a, auto b) ALWAYS_INLINE { return a > b ? a : b; });
}

// The highest lane.
template <class T, int HALF = lanes<T> / 2, int... I>
ALWAYS_INLINE inline T highest(Vec<T> v, std::integer_sequence<int, I...> lane) {
  v = max<T>(v, __builtin_shufflevector(v, v, (I ^ HALF)...));
  if constexpr (HALF > 1) {
    return highest<T, HALF / 2>(v, lane);
  } else {
    return v[0];
  }
}

template <class T>
ALWAYS_INLINE inline T highest(Vec<T> v) {
  return highest<T>(v, std::make_integer_sequence<int, lanes<T>>{});
}

// v[i][k] and v[k][i] change places, in so many stages as halves can be halved.
template <class T, int HALF, int... I>
ALWAYS_INLINE inline void transpose(Vec<T>* v, std::integer_sequence<int, I...> lane) {
  constexpr int W = lanes<T>;
  unroll<W>([&](auto i) ALWAYS_INLINE {
    if constexpr ((i & HALF) == 0) {
      const Vec<T> a = v[i], b = v[i + HALF];
      v[i] = __builtin_shufflevector(a, b, ((I & HALF) == 0 ? I : W + I - HALF)...);
      v[i + HALF] = __builtin_shufflevector(a, b, ((I & HALF) == 0 ? I + HALF : W + I)...);
    }
  });
  if constexpr (HALF > 1) transpose<T, HALF / 2>(v, lane);
}

template <class T>
ALWAYS_INLINE inline void transpose(Vec<T>* v) {
  transpose<T, lanes<T> / 2>(v, std::make_integer_sequence<int, lanes<T>>{});
}

}  // namespace coalign
