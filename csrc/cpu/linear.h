// Linear layers of some rows at a time: out = x Wᵀ + bias.
//
// W is packed once: panels of at most kBlockColumns vectors of its outputs side by side for every input, so that a
// product reads it as one stream, and the bias behind them. A tile of kBlockRows rows by a panel stays in registers.
// Where few rows pass, W stays as it lies and the rows are turned round instead: they are the panels then, and W's rows
// go by them. At d2l's sizes that is faster up to 96 rows on one thread (400 on two, for nobody waits for the packing).
// Elements of a row are added up in their order, kChain at a time, either way and whatever rows are beside it: its bits
// do not depend on its company.
//
// 2 rows in out operations; W is read once for every kBlockRows rows, from the second-level cache, or as it lies once
// for every kBlockColumns vectors of rows.
#pragma once

#include "arena.h"
#include "products.h"

namespace coalign {

constexpr int kFewRows = 96;  // that a layer is not packed for

// A layer, packed; or as it lies, its rows ld elements apart, and panels are null. in counts elements, out numbers.
template <class E>
struct Layer {
  const E* panels;
  int in, out;
  const E* weight = nullptr;
  int64_t ld = 0;
  const float* given_bias = nullptr;  // or none

  int padded_out() const { return round_up(out, lanes<E>); }
  const float* bias() const {
    return reinterpret_cast<const float*>(panels + static_cast<std::size_t>(in) * padded_out());
  }
  // Whether all of its weights are; known of packed ones.
  bool finite() const { return bias()[padded_out()] != 0; }
  static std::size_t size(int in, int out) {
    return (static_cast<std::size_t>(in) + 1) * round_up(out, lanes<E>) + lanes<E>;
  }
};

// f(first column, vectors) for every panel of at most MOST vectors, the wider ones first; they differ in width by one
// vector at most, for narrow ones are slow.
template <class E, int MOST = kBlockColumns, class F>
inline void for_each_panel(int padded_out, F&& f) {
  constexpr int W = lanes<E>;
  const int vectors = padded_out / W, panels = (vectors + MOST - 1) / MOST;
  const int wide = panels == 0 ? 0 : vectors % panels, width = panels == 0 ? 0 : vectors / panels;
  for (int k = 0, at = 0; k < panels; ++k) {
    const int count = width + (k < wide);
    f(at * W, count);
    at += count;
  }
}

inline bool all_finite(const float* numbers, std::size_t count) {  // of whole vectors
  Vec<float> sum{};
  for (std::size_t k = 0; k < count; k += lanes<float>) sum += load(numbers + k) * 0.0f;
  return !any<float>(sum != 0.0f);
}

// Behind a packed layer's panels: its bias, and whether they are finite.
template <class E>
void pack_behind(const float* bias, int out, std::size_t panels, E* room) {
  const int padded = round_up(out, lanes<E>);
  float* behind = reinterpret_cast<float*>(room + panels);
  std::fill_n(behind, padded + lanes<E>, 0.0f);
  if (bias != nullptr) std::copy_n(bias, out, behind);
  if constexpr (std::is_same_v<E, float>) behind[padded] = all_finite(room, panels);
}

// weight (out, numbers), rows ld apart, bias (out) or null -> room for Layer<E>::size elements.
template <class E, class S>
void pack_layer(const S* weight, int64_t ld, const float* bias, int out, int numbers, E* room) {
  constexpr int W = lanes<E>;
  constexpr bool same = std::is_same_v<E, S> || kPer<E> == 2;
  const int in = (numbers + kPer<E> - 1) / kPer<E>, padded = round_up(out, W);
  E* const panels = room;
  auto row = [&](int c) { return weight + c * ld; };
  for_each_panel<E>(padded, [&](int d, int vectors) {
    const int width = vectors * W;
    for (int c = 0; c < width; c += W) {
      if (same && numbers % kPer<E> == 0 && ld % kPer<E> == 0 && d + c + W <= out) {
        const E* rows[W];
        for (int l = 0; l < W; ++l) rows[l] = reinterpret_cast<const E*>(row(d + c + l));
        transpose(rows, W, in, room + c, width);
        continue;
      }
      for (int k = 0; k < in; ++k) {
        for (int l = 0; l < W; ++l) {
          E* to = room + k * width + c + l;
          if (d + c + l >= out) {
            *to = 0;
          } else if constexpr (kPer<E> == 1) {
            *to = widen(row(d + c + l)[k]);
          } else {
            const S* from = row(d + c + l) + 2 * k;
            *to = from[0].bits | (2 * k + 1 < numbers ? (Pair)from[1].bits << 16 : 0);
          }
        }
      }
    }
    room += static_cast<std::size_t>(width) * in;
  });
  pack_behind(bias, out, room - panels, panels);
}

// The same of weight in float, rounded where elements are pairs.
template <class E>
void pack_float_layer(
    const float* weight, int64_t ld, const float* bias, int out, int numbers, E* room, Arena& arena) {
  if constexpr (kPer<E> == 1) {
    pack_layer<E>(weight, ld, bias, out, numbers, room);
  } else {
    const Arena::Mark mark = arena.mark();
    BFloat16* rounded = arena.take<BFloat16>(static_cast<std::size_t>(out) * numbers);
    for (int r = 0; r < out; ++r) narrow_row(weight + r * ld, numbers, rounded + static_cast<std::size_t>(r) * numbers);
    pack_layer<E>(rounded, numbers, bias, out, numbers, room);
    arena.release(mark);
  }
}

// The layer without bias whose weight is turned round: weight (in, out), float.
template <class E>
void pack_turned(const float* weight, int out, int numbers, E* room) {
  constexpr int W = lanes<E>;
  E* const panels = room;
  for_each_panel<E>(round_up(out, W), [&](int d, int vectors) {
    for (int k = 0; k < numbers; k += kPer<E>) {
      for (int c = d; c < d + vectors * W; c += W, room += W) {
        const Sum<E>* at = weight + static_cast<std::size_t>(k) * out + c;
        const int n = std::min(W, out - c);
        if constexpr (kPer<E> == 1) {
          store(room, load_part(at, n));
        } else {
          store(room, pairs_across(load_part(at, n), k + 1 < numbers ? load_part(at + out, n) : Vec<Sum<E>>{}));
        }
      }
    }
  });
  pack_behind<E>(nullptr, out, room - panels, panels);
}

namespace detail {

// sums[r][column] = bias + <x[r], the panel's column>, MR rows of NV vectors, with the bias of the column, or of the
// row. A function of its own: what a caller does with the sums would take registers from the loop, and one too few
// halves its speed.
template <class E, int MR, int NV, bool BIAS_OF_ROW = false>
__attribute__((noinline)) void linear_tile(
    const E* x, int64_t ld, int in, const E* panel, const float* bias, float* sums) {
  constexpr int W = lanes<E>;
  Vec<float> acc[MR][NV];
  const E* xs[MR];
  unroll<MR>([&](auto r) ALWAYS_INLINE {
    xs[r] = x + r * ld;
    unroll<NV>([&](auto v) ALWAYS_INLINE { acc[r][v] = BIAS_OF_ROW ? fill(bias[r]) : load(bias + v * W); });
  });
  for (int begin = 0, k = 0; begin == 0 || begin < in; begin += kChain) {
    for (const int end = std::min(in, begin + kChain); k < end; ++k, panel += NV * W) {
      Vec<E> u[NV];
      unroll<NV>([&](auto v) ALWAYS_INLINE { u[v] = in_register<E>(load(panel + v * W)); });
      unroll<MR>([&](auto r) ALWAYS_INLINE {
        const Vec<E> number = fill(xs[r][k]);
        unroll<NV>([&](auto v) ALWAYS_INLINE { acc[r][v] = multiply_add<E>(acc[r][v], u[v], number); });
      });
    }
    unroll<MR>([&](auto r) ALWAYS_INLINE {
      unroll<NV>([&](auto v) ALWAYS_INLINE {
        float* at = sums + (r * NV + v) * W;
        store(at, begin == 0 ? acc[r][v] : load(at) + acc[r][v]);
        acc[r][v] = Vec<float>{};
      });
    });
  }
}

// `linear_tiles` of a layer as it lies.
template <class E, class A, class F>
void tiles_of_few(const E* x, int ld, int rows, const Layer<E>& layer, A& ahead, F&& take) {
  constexpr int W = lanes<E>, MOST = kBlockColumns * W;
  const int padded = layer.padded_out();
  Arena room;  // not the thread's, whose users have not done with it
  E* turned = room.take<E>(static_cast<std::size_t>(layer.in) * MOST);
  float* found = room.take<float>(static_cast<std::size_t>(padded) * MOST);
  float* bias = room.take<float>(padded);
  std::fill_n(bias, padded, 0.0f);
  if (layer.given_bias != nullptr) std::copy_n(layer.given_bias, layer.out, bias);
  for (int begin = 0; begin < rows; begin += MOST) {
    const int count = std::min(rows - begin, MOST), width = round_up(count, W);
    const E* xs[MOST];
    for (int j = 0; j < width; ++j) xs[j] = x + static_cast<std::size_t>(begin + std::min(j, count - 1)) * ld;
    transpose(xs, width, layer.in, turned, width);
    with_constant<kBlockColumns>(width / W, [&](auto nv) {
      for (int o = 0; o < layer.out; o += kBlockRows) {
        with_constant<kBlockRows>(layer.out - o, [&](auto mr) {
          linear_tile<E, mr, nv, true>(
              layer.weight + o * layer.ld, layer.ld, layer.in, turned, bias + o, found + o * width);
        });
        ahead.step();
      }
    });
    std::fill(found + layer.out * width, found + padded * width, 0.0f);
    for (int d = 0; d < padded; d += W) {
      for (int j = 0; j < count; j += W) {
        Vec<float> v[W];
        unroll<W>([&](auto l) ALWAYS_INLINE { v[l] = load(found + (d + l) * width + j); });
        transpose<float>(v);
        alignas(64) float sums[W * W];
        unroll<W>([&](auto r) ALWAYS_INLINE { store(sums + r * W, v[r]); });
        for (int r = 0; r < std::min(W, count - j); r += kBlockRows) {
          with_constant<kBlockRows>(std::min(W, count - j) - r, [&](auto mr) {
            take(begin + j + r, mr, d, std::integral_constant<int, 1>{}, sums + r * W);
          });
        }
      }
    }
  }
}

}  // namespace detail

// take(first row, rows, first column, vectors, sums) for every tile, tiles of a column in their order; rows and vectors
// are constants, and sums[(row * vectors + vector) * lanes]. x: rows of layer.in elements, ld apart. ahead.step() is
// called for every tile: `linear_steps` times.
template <class E, class A, class F>
void linear_tiles(const E* x, int ld, int rows, const Layer<E>& layer, A& ahead, F&& take) {
  if (layer.panels == nullptr) return detail::tiles_of_few(x, ld, rows, layer, ahead, take);
  for_each_panel<E>(layer.padded_out(), [&](int d, int vectors) {
    const E* panel = layer.panels + static_cast<std::size_t>(d) * layer.in;
    for (int i = 0; i < rows; i += kBlockRows) {
      detail::with_constant<kBlockRows>(rows - i, [&](auto mr) {
        detail::with_constant<kBlockColumns>(vectors, [&](auto nv) {
          alignas(64) float sums[mr * nv * lanes<E>];
          detail::linear_tile<E, mr, nv>(
              x + static_cast<std::size_t>(i) * ld, ld, layer.in, panel, layer.bias() + d, sums);
          take(i, mr, d, nv, sums);
        });
      });
      ahead.step();
    }
  });
}

// take(row, column, vector) for every whole vector of a tile's outputs.
template <class F>
auto by_vectors(F& take) {
  return [&take](int i, auto mr, int d, auto nv, const float* sums) ALWAYS_INLINE {
    constexpr int W = lanes<float>;
    unroll<mr>([&](auto r) ALWAYS_INLINE {
      unroll<nv>([&](auto v) ALWAYS_INLINE { take(i + r, d + v * W, load(sums + (r * nv + v) * W)); });
    });
  };
}

// The same for every one of a layer's outputs.
template <class E, class F>
void linear(const E* x, int ld, int rows, const Layer<E>& layer, Ahead& ahead, F&& take) {
  linear_tiles(x, ld, rows, layer, ahead, by_vectors(take));
}

template <class E>
int linear_steps(int rows, const Layer<E>& layer) {
  const int vectors = layer.padded_out() / lanes<E>;
  return (rows + kBlockRows - 1) / kBlockRows * ((vectors + kBlockColumns - 1) / kBlockColumns);
}

// Room for a row that is padded to whole vectors of elements, in numbers.
template <class E>
constexpr int row_room(int width) {
  return round_up(width, lanes<float> * kPer<E>);
}

// What a layer leaves behind its outputs is no zero where a row holds what is not finite.
inline void clear_padding(float* rows, int count, int width, int ld) {
  for (int r = 0; r < count; ++r) {
    std::fill(rows + static_cast<std::size_t>(r) * ld + width, rows + static_cast<std::size_t>(r + 1) * ld, 0.0f);
  }
}

// Rows of numbers, padded to whole vectors of elements, as elements to multiply: themselves, or rounded to pairs.
template <class E>
const E* as_elements(const Sum<E>* rows, int count, int ld, Arena& arena) {
  if constexpr (kPer<E> == 1) {
    return rows;
  } else {
    const std::size_t numbers = static_cast<std::size_t>(count) * ld;
    E* out = arena.take<E>(numbers / 2);
    for (std::size_t k = 0; k < numbers; k += 2 * lanes<float>) store(out + k / 2, pairs_along(rows + k));
    return out;
  }
}

ALWAYS_INLINE inline Vec<float> relu(Vec<float> x) { return x < 0.0f ? Vec<float>{} : x; }  // NaN stays

}  // namespace coalign
