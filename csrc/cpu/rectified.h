// Linear layers of rows of which many numbers are 0, as ReLU and dropout leave them.
//
// A number that is 0 adds nothing: the others of a row are listed, with their places, and only their weights are read and
// multiplied. Each costs a broadcast and its place besides, and weights are no longer in registers for six rows: half
// of the numbers take 0.8 of the time of all of them, a quarter 0.47 (measured, AVX2). Where most numbers are not
// 0, linear.h multiplies all. They are added up in the same order: a row's bits are the same either way. Infinity
// times 0 is no 0: what is not finite is multiplied by all, too.
#pragma once

#include "linear.h"

namespace coalign {

// The numbers of some rows that are not 0, in their order, and their places in the row; ends: how many come before the
// end of each of a row's chains (products.h).
struct Terms {
  const float* numbers;
  const uint32_t* places;
  const int* ends;
  int ld, chains;
  int64_t total;
};

// x: rows of `width` numbers, ld apart, and zeros behind them up to whole vectors. Within a large function its loop would
// keep its pointers in memory.
__attribute__((noinline)) inline Terms terms_of(const float* x, int ld, int rows, int width, Arena& arena) {
  constexpr int W = lanes<float>;
  const int room = round_up(width, W) + W, chains = std::max(1, (width + kChain - 1) / kChain);
  float* numbers = arena.take<float>(static_cast<std::size_t>(rows) * room);
  uint32_t* places = arena.take<uint32_t>(static_cast<std::size_t>(rows) * room);
  int* ends = arena.take<int>(static_cast<std::size_t>(rows) * chains);
  int64_t total = 0;
  for (int r = 0; r < rows; ++r) {
    const float* row = x + static_cast<std::size_t>(r) * ld;
    const std::size_t at = static_cast<std::size_t>(r) * room;
    int count = 0;
    for (int chain = 0, k = 0; chain < chains; ++chain) {
      for (const int end = std::min(width, (chain + 1) * kChain); k < end; k += W) {
        count += keep_nonzero(load(row + k), k, numbers + at + count, places + at + count);
      }
      ends[r * chains + chain] = count;
    }
    total += count;
  }
  return {numbers, places, ends, room, chains, total};
}

// Whether `total` of all numbers are so few that lists pay.
inline bool few(int64_t total, int rows, int width) { return 16 * total <= int64_t{9} * rows * width; }

// How many of the same rows' numbers are not 0.
inline int64_t count_nonzero(const float* x, int ld, int rows, int width) {
  constexpr int W = lanes<float>;
  auto counts = Vec<float>{} != 0.0f;
  for (int r = 0; r < rows; ++r) {
    for (int k = 0; k < width; k += W) counts -= load(x + static_cast<std::size_t>(r) * ld + k) != 0.0f;
  }
  int64_t total = 0;
  for (int l = 0; l < W; ++l) total += counts[l];
  return total;
}

namespace detail {

// Vectors of panels that are side by side, and of a panel of these where there are NV.
constexpr int kMostTogether = kBlockColumns == 2 ? 5 : kBlockColumns;
template <int NV>
constexpr int kPanel = std::min(NV, kBlockColumns);

// sums[r][column] = first + Σ number W[place][column], of MR rows and V vectors of columns, which are in panels of P, and
// the last of fewer. W's rows are `row` numbers apart, and in the narrower panel as its vectors are; panels `panel`.
template <int MR, int V, int P>
__attribute__((noinline)) void tile_of_terms(
    const Terms& terms, int i, const float* weights, std::ptrdiff_t row, std::ptrdiff_t panel, const float* first,
    float* sums) {
  constexpr int W = lanes<float>, PANELS = (V + P - 1) / P;
  Vec<float> acc[MR][V];
  const float *numbers[MR], *panels[PANELS];
  const uint32_t* places[MR];
  const int* ends[MR];
  unroll<PANELS>([&](auto k) ALWAYS_INLINE { panels[k] = weights + k * panel; });
  unroll<MR>([&](auto r) ALWAYS_INLINE {
    numbers[r] = terms.numbers + static_cast<std::size_t>(i + r) * terms.ld;
    places[r] = terms.places + static_cast<std::size_t>(i + r) * terms.ld;
    ends[r] = terms.ends + static_cast<std::size_t>(i + r) * terms.chains;
    unroll<V>([&](auto v) ALWAYS_INLINE { acc[r][v] = load(first + v * W); });
  });
  // A place is read a number ahead, for weights can't be asked for before it is there; of the last, what stands behind it.
  std::ptrdiff_t next[MR];
  unroll<MR>([&](auto r) ALWAYS_INLINE { next[r] = places[r][0]; });
  auto add = [&](auto r, std::ptrdiff_t k) ALWAYS_INLINE {
    const Vec<float> number = fill(numbers[r][k]);
    const std::ptrdiff_t place = next[r] * row, narrow = next[r] * (V % P * W);
    std::ptrdiff_t ahead = places[r][k + 1];
    asm("" : "+r"(ahead));  // now, not where it is used
    next[r] = ahead;
    unroll<V>([&](auto v) ALWAYS_INLINE {
      const float* weight = panels[v / P] + (v < V / P * P ? place : narrow) + v % P * W;
      acc[r][v] = multiply_add<float>(acc[r][v], load(weight), number);
    });
  };
  for (int chain = 0, begin[MR] = {}; chain < terms.chains; ++chain) {
    int together = 0;  // rows side by side, for a row's sums alone wait for one another
    if constexpr (MR == 2) {
      together = std::min(ends[0][chain] - begin[0], ends[1][chain] - begin[1]);
      for (int k = 0; k < together; ++k) {
        unroll<MR>([&](auto r) ALWAYS_INLINE { add(r, begin[r] + k); });
      }
    }
    unroll<MR>([&](auto r) ALWAYS_INLINE {
      for (int k = begin[r] + together; k < ends[r][chain]; ++k) add(r, k);
      begin[r] = ends[r][chain];
      unroll<V>([&](auto v) ALWAYS_INLINE {
        float* to = sums + (r * V + v) * W;
        store(to, chain == 0 ? acc[r][v] : load(to) + acc[r][v]);
        acc[r][v] = Vec<float>{};
      });
    });
  }
}

// f(first column, vectors) for some panels side by side, which share a number's broadcast and stay in the first-level
// cache: of four vectors, or five, for the last panel alone would be slow.
template <class F>
void for_panels_together(int padded_out, F&& f) {
  if constexpr (kPanel<kMostTogether> == kMostTogether) {
    for_each_panel<float>(padded_out, f);
  } else {
    constexpr int W = lanes<float>;
    for (int d = 0, vectors; d < padded_out; d += vectors * W) {
      const int left = (padded_out - d) / W;
      vectors = left <= kMostTogether ? left : kMostTogether - 1;
      f(d, vectors);
    }
  }
}

}  // namespace detail

// `linear_tiles` of rows of floats with zeros behind them; others go the way of all.
template <class E, class A, class F>
void rectified_tiles(const E* x, int ld, int rows, const Layer<E>& layer, A& ahead, Arena& arena, F&& take) {
  if constexpr (std::is_same_v<E, float>) {
    const Arena::Mark mark = arena.mark();
    if (layer.panels != nullptr && layer.finite()) {
      const Terms terms = terms_of(x, ld, rows, layer.in, arena);
      if (few(terms.total, rows, layer.in)) {
        detail::for_panels_together(layer.padded_out(), [&](int d, int vectors) {
          detail::with_constant<detail::kMostTogether>(vectors, [&](auto nv) {
            constexpr int W = lanes<float>, P = detail::kPanel<nv>, PANELS = (nv + P - 1) / P;
            const float* weights = layer.panels + static_cast<std::size_t>(d) * layer.in;
            for (int i = 0; i < rows; i += 2) {
              if (i % kBlockRows == 0) unroll<PANELS>([&](auto) { ahead.step(); });
              detail::with_constant<2>(rows - i, [&](auto mr) {
                alignas(64) float sums[mr * nv * W];
                detail::tile_of_terms<mr, nv, P>(
                    terms, i, weights, P * W, static_cast<std::ptrdiff_t>(P * W) * layer.in, layer.bias() + d, sums);
                take(i, mr, d, nv, sums);
              });
            }
          });
        });
        return arena.release(mark);
      }
    }
    arena.release(mark);
  }
  linear_tiles(x, ld, rows, layer, ahead, take);
}

// sums[o][column] = Σ_r g[r][o] x[r][column], and what is there already where it adds, for g of which many numbers are 0.
// Rows of g and of x have zeros behind them up to whole vectors. False, and nothing done, where that does not pay.
inline bool sum_of_few(
    const float* g, int ldg, int out, const float* x, int ldx, int rows, int width, bool add, float* sums, Ahead& ahead,
    Arena& arena) {
  constexpr int W = lanes<float>, MOST = 5;  // vectors whose rows stay in the first-level cache
  if (!few(count_nonzero(g, ldg, rows, out), rows, out)) return false;
  for (int r = 0; r < rows; ++r) {
    if (!all_finite(x + static_cast<std::size_t>(r) * ldx, round_up(width, W))) return false;
  }
  const Arena::Mark mark = arena.mark();
  const int ld = round_up(rows, W), most = std::max(round_up(out, W), MOST * W);
  float* zeros = arena.take<float>(most);  // a row behind the last, and what sums begin with
  std::fill_n(zeros, most, 0.0f);
  const float** lines = arena.take<const float*>(ld);
  for (int r = 0; r < ld; ++r) lines[r] = r < rows ? g + static_cast<std::size_t>(r) * ldg : zeros;
  float* turned = arena.take<float>(static_cast<std::size_t>(out) * ld);
  transpose(lines, ld, out, turned, ld);
  const Terms terms = terms_of(turned, ld, out, rows, arena);
  for_each_panel<float, MOST>(round_up(width, W), [&](int d, int vectors) {
    detail::with_constant<MOST>(vectors, [&](auto nv) {
      for (int o = 0; o < out; o += 2) {
        detail::with_constant<2>(out - o, [&](auto mr) {
          alignas(64) float found[mr * nv * W];
          detail::tile_of_terms<mr, nv, nv>(terms, o, x + d, ldx, 0, zeros, found);
          unroll<mr>([&](auto r) ALWAYS_INLINE {
            unroll<nv>([&](auto v) ALWAYS_INLINE {
              float* to = sums + static_cast<std::size_t>(o + r) * width + d + v * W;
              const int n = std::min(W, width - d - v * W);
              const Vec<float> sum = load(found + (r * nv + v) * W);
              store_part(to, add ? sum + load_part(to, n) : sum, n);
            });
          });
        });
        ahead.step();
      }
    });
  });
  arena.release(mark);
  return true;
}

// `linear` of such rows.
template <class E, class F>
void rectified(const E* x, int ld, int rows, const Layer<E>& layer, Ahead& ahead, Arena& arena, F&& take) {
  rectified_tiles(x, ld, rows, layer, ahead, arena, by_vectors(take));
}

}  // namespace coalign
