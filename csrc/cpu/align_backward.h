// The gradient of a pair's alignment, on one thread: with P, Q recomputed from e, block by block, as in align.h,
//
//   de_ij = P_ij (<dβ_i, b_j> - δ_i) + Q_ij (<dα_j, a_i> - γ_j)     δ_i = <dβ_i, β_i> - dlse_i     γ_j alike
//   df_a = de f_b, df_b = deᵀ f_a, da = Q dα, db = Pᵀ dβ            (scale, clip, bias and dropout beside it)
//
// Backward: 2 m n (3 h + 2 d_a + 2 d_b) operations, m n exponentials, or 2 m n.
#pragma once

#include "align.h"

namespace coalign {

// What arrived for a side's outputs: dout, as wide as the other side's x; delta_i = <dout_i, out_i> - dlse_i, but
// -dlse_i alone where the pair is a single block, for <dout_i, out_i> is the sum over j of P_ij <dout_i, x_j> too; the
// side's LSEs, +inf where there was nothing to align with (e - lse is -inf then, and the weight 0). Both have room for
// whole blocks.
template <class E>
struct Arrived {
  Operand<E> dout;
  const Sum<E>* delta;
  const Sum<E>* lse;
};

namespace detail {

// Whether exponentials of a block of e need nothing subtracted, for its rows' and columns' log-sum-exps.
template <class T>
Shared shared_for(const T* lse_a, int rows, const T* lse_b, int columns, bool whole) {
  T least = lse_a[0], most = least;
  auto consider = [&](const T* lse, int count) {
    for (int i = 0; i < count; ++i) {
      if (!(std::abs(lse[i]) <= kFar + kClose)) return false;  // NaN too
      least = std::min(least, lse[i]), most = std::max(most, lse[i]);
    }
    return true;
  };
  return consider(lse_a, rows) && consider(lse_b, columns) ? coalign::shared_for(least, most, whole) : Shared{};
}

// Weights of both softmaxes. Not a std::pair: that takes references, and vectors on the stack may lie unaligned.
template <class T>
struct Weights {
  Vec<T> along, across;
};

// Weights of a block that is the whole pair, in place of e: P's in p up to a factor a row, gain_a, and Q's up to one a
// column, gain_b, in q, or in p too if they are shared. To the deltas comes <dout, out>, a mean of what stands in a row of
// dp or a column of dq: taken from its first number on, and under these very weights, so that the differences from it,
// which add up to 0 where they are weighed, are not lost in its rounding. Where there is one token they are 0. A first
// number beside which the mean is small may itself be what it is lost in: then the mean is the next start.
template <class T>
void weigh_whole(
    T* p, T* q, T* dp, T* dq, const Block& at, int ld, Shared shared, const T* lse_a, const T* lse_b, T* delta_a,
    T* delta_b, T* gain_a, T* gain_b) {
  constexpr int W = lanes<T>;
  T found_b[kBlock] = {}, total_b[kBlock] = {};
  // from(mean): the weighed differences from it, where they have to be taken again
  auto finish = [](Vec<T> first, Vec<T> found, Vec<T> total, T* gain, T* delta, auto&& from) ALWAYS_INLINE {
    const Vec<T> one = total == T(0) ? Vec<T>{} : T(1) / total;
    Vec<T> mean = first + found * one;
    const auto lost = max<T>(first, -first) > max<T>(mean, -mean) * T(64);
    if (any<T>(lost)) mean += lost ? from(mean) * one : Vec<T>{};
    store(gain, one);
    store(delta, load(delta) + mean);
  };
  for (int i = 0; i < at.rows; i += W) {
    Vec<T> first = {}, found[W] = {}, total[W] = {};
    for (int r = 0; r < std::min(W, at.rows - i); ++r) {
      const int row = (i + r) * ld;
      for (int j = at.columns; j < at.padded; ++j) dp[row + j] = dq[row + j] = 0;
      const T start = first[r] = dp[row];
      auto each = [&](auto&& weights) ALWAYS_INLINE {
        for (int k = row, j = 0; j < at.padded; j += W, k += W) {
          const auto [along, across] = weights(load(p + k), k, j);
          found[r] += along * (load(dp + k) - start);
          total[r] += along;
          store(found_b + j, load(found_b + j) + across * (load(dq + k) - load(dq + j)));
          store(total_b + j, load(total_b + j) + across);
        }
      };
      if (shared) {
        each([&](Vec<T> e, int k, int) ALWAYS_INLINE {
          const Vec<T> weight = exp<T>(e, shared.power);
          store(p + k, weight);
          return Weights<T>{weight, weight};
        });
      } else {
        each([&](Vec<T> e, int k, int j) ALWAYS_INLINE {
          const Vec<T> along = exp<T>(e - lse_a[i + r]), across = exp<T>(e - load(lse_b + j));
          store(p + k, along);
          store(q + k, across);
          return Weights<T>{along, across};
        });
      }
    }
    finish(first, sums<T>(found), sums<T>(total), gain_a + i, delta_a + i, [&](Vec<T> mean) {
      Vec<T> again[W] = {};
      for (int r = 0; r < std::min(W, at.rows - i); ++r) {
        const int row = (i + r) * ld;
        for (int j = 0; j < at.padded; j += W) again[r] += load(p + row + j) * (load(dp + row + j) - mean[r]);
      }
      return sums<T>(again);
    });
  }
  for (int j = 0; j < at.padded; j += W) {
    finish(load(dq + j), load(found_b + j), load(total_b + j), gain_b + j, delta_b + j, [&](Vec<T> mean) {
      Vec<T> again = {};
      for (int i = 0; i < at.rows; ++i) again += load((shared ? p : q) + i * ld + j) * (load(dq + i * ld + j) - mean);
      return again;
    });
  }
}

}  // namespace detail

// df, dx: rows to write on either side, one a token. dbias: null, or the pair's, of which only tokens are written. crew:
// null, or threads to take the steps with.
template <class E, class B, class T = Sum<E>>
void align_backward(
    const Tokens<E>& a, const Tokens<E>& b, const Share& share, const Rule<T>& rule, const Bias<const B>& bias,
    const Arrived<E>& to_a, const Arrived<E>& to_b, T* const* df_a, T* const* df_b, T* const* dx_a, T* const* dx_b,
    const Bias<T>& dbias, Arena& arena, Ahead& ahead, Crew* crew) {
  using namespace detail;
  constexpr int W = lanes<T>;
  struct Place {
    Workshop<E> shop;
    Turned<E> f_b, x_b, dout_b;
  };
  Place* const places = for_workers<Place>(crew, arena, [&](Place* at) {
    const Workshop<E> shop(a.count, b.count, arena, ahead);
    new (at) Place{shop, shop.turned(b.f), shop.turned(b.x), shop.turned(to_b.dout)};
  });
  const Workshop<E>& shop = places->shop;
  T* p = shop.room();
  T* q = shop.room();
  T* dp = shop.room();
  T* dq = shop.room();
  T* passes = rule.clamp < -kNothing<T> ? shop.room() : nullptr;
  const bool whole = is_whole(a.count, b.count);
  const int ld = shop.ld();
  T gain_a[kBlock], gain_b[kBlock], delta_a[kBlock], delta_b[kBlock];  // of a block

  for (int j0 = share.b.begin; j0 < share.b.end; j0 += kBlock) {
    for (int i0 = share.a.begin; i0 < share.a.end; i0 += kBlock) {
      const Block at = shop.block(i0, a.count, j0, b.count);
      by_rows(crew, at, [&](const Block& part, int worker) {
        Place& mine = places[worker];
        const int from = (part.i - i0) * ld;
        scores(mine.shop, a, mine.f_b, part, rule, bias, p + from, passes == nullptr ? nullptr : passes + from);
        mine.shop.product(to_a.dout, mine.x_b, part, T(1), dp + from);
        mine.shop.product(a.x, mine.dout_b, part, T(1), dq + from);
        drop(dp + from, ld, part, rule.p, bias.index_a, bias.index_b);
        drop(dq + from, ld, part, rule.q, bias.index_a, bias.index_b);
      });
      const T *lse_a = to_a.lse + i0, *lse_b = to_b.lse + j0;
      const Shared shared = shared_for(lse_a, at.rows, lse_b, at.columns, whole);
      std::copy_n(to_a.delta + i0, kBlock, delta_a);
      std::copy_n(to_b.delta + j0, kBlock, delta_b);
      if (whole) {
        weigh_whole(p, q, dp, dq, at, ld, shared, lse_a, lse_b, delta_a, delta_b, gain_a, gain_b);
      } else {
        // one token alone has all the weight: what stands in dp or dq is its own mean, to the bit
        for (int i = 0; b.count == 1 && i < at.rows; ++i) delta_a[i] += dp[i * ld];
        for (int j = 0; a.count == 1 && j < at.columns; ++j) delta_b[j] += dq[j];
        for (int j = 0; shared && j < at.padded; j += W) store(gain_b + j, exp<T>(-load(lse_b + j)));
      }
      // row i of P and Q, in place of e or of the weights; use(k, j, lanes of P, of Q): those at k, of columns from j
      auto weigh = [&](int i, auto&& use) ALWAYS_INLINE {
        auto each = [&](auto&& weights) ALWAYS_INLINE {
          for (int k = i * ld, j = 0; j < at.padded; j += W, k += W) {
            const auto [row, column] = weights(k, j);
            store(p + k, row);
            store(q + k, column);
            use(k, j, row, column);
          }
        };
        if (whole) {
          const T* columns = shared ? p : q;
          each([&](int k, int j) ALWAYS_INLINE {
            return Weights<T>{load(p + k) * gain_a[i], load(columns + k) * load(gain_b + j)};
          });
        } else if (shared) {
          const T gain = exp<T>(fill(-lse_a[i]))[0];
          each([&](int k, int j) ALWAYS_INLINE {
            const Vec<T> weight = exp<T>(load(p + k));
            return Weights<T>{weight * gain, weight * load(gain_b + j)};
          });
        } else {
          each([&](int k, int j) ALWAYS_INLINE {
            return Weights<T>{exp<T>(load(p + k) - lse_a[i]), exp<T>(load(p + k) - load(lse_b + j))};
          });
        }
      };
      for (int i = 0; i < at.rows; ++i) {
        T* de = dp + i * ld;
        weigh(i, [&](int k, int j, Vec<T> row, Vec<T> column) ALWAYS_INLINE {
          store(dp + k, row * (load(dp + k) - delta_a[i]) + column * (load(dq + k) - load(delta_b + j)));
        });
        for (int j = at.columns; j < at.padded; ++j) de[j] = 0;
        if (share.rows && dbias.data != nullptr) {
          T* out = dbias.data + dbias.index_a[i0 + i] * dbias.row;
          for (int j = 0; j < at.columns; ++j) out[dbias.index_b[j0 + j] * dbias.column] = de[j];
        }
        if (rule.scale != T(1)) scale_row(de, at.columns, rule.scale);
        for (int j = 0; passes != nullptr && j < at.columns; ++j) de[j] *= passes[i * ld + j];
      }
      drop(p, ld, at, rule.p, bias.index_a, bias.index_b);
      drop(q, ld, at, rule.q, bias.index_a, bias.index_b);
      if (share.rows) {
        by_rows(crew, at, [&](const Block& part, int worker) {
          const int from = (part.i - i0) * ld;
          places[worker].shop.along(dp + from, b.f, part, df_a, Fold<T>{j0 > 0});
          places[worker].shop.along(q + from, to_b.dout, part, dx_a, Fold<T>{j0 > 0});
        });
      }
      if (share.columns) {
        by_columns<E>(crew, at, [&](const Block& part, int worker) {
          const int from = part.j - j0;
          places[worker].shop.across(dp + from, a.f, part, df_b, Fold<T>{i0 > 0});
          places[worker].shop.across(p + from, to_a.dout, part, dx_b, Fold<T>{i0 > 0});
        });
      }
    }
  }
}

}  // namespace coalign
