// Running softmaxes of a block of e, along its rows and along its columns.
//
// A row (or column) that continues over several blocks keeps a reference that its numbers are exponentiated against
// (peak: the highest so far, or a little more) and the sum of exp(e - peak) (total). When a block raises the reference,
// what was summed before is worth less, by the factor `fade`. What is summed with a block's weights is worth `gain`;
// with `whole` the block is all there is, and the gain divides by the sum at once.
//
// Where the maxima of all rows and columns are close, one exponential serves both softmaxes: exp(e), with 0 for
// everyone's reference. Counted in a power of two that lies in their middle, which is exact: so a row's bits do not depend
// on what other rows hold.
#pragma once

#include <algorithm>

#include "exponentials.h"

namespace coalign {

template <class T>
constexpr T kNothing = -std::numeric_limits<T>::infinity();

// How far maxima, or log-sum-exps, that share exponentials may be from their middle, and that from 0: exp(24) times
// values of 1e25, or exp(-24) times those of 1e-25, are numbers still, and what is lost below exp(-87) is less than
// exp(-63) of its row.
constexpr float kClose = 24, kFar = 40;

// Whether exponentials may be shared, and what they are counted in then.
struct Shared {
  bool serves;
  int power;

  explicit operator bool() const { return serves; }
};

// For maxima from `least` to `most`, not where they are NaN. Where rows go on, what is summed is worth exp(0) a unit, and
// so are they to be close to 0.
template <class T>
Shared shared_for(T least, T most, bool whole) {
  const T middle = whole ? (least + most) / 2 : T(0);
  const bool serves = middle - least <= kClose && most - middle <= kClose && -kFar <= middle && middle <= kFar;
  return {serves, serves ? static_cast<int>(std::lrint(middle * T(1.44269504))) : 0};
}

// State of so many rows or columns as a side has tokens; each array has room for whole vectors.
template <class T>
struct Running {
  T *peak, *total, *fade, *gain;

  Running from(int first) const { return {peak + first, total + first, fade + first, gain + first}; }

  // The lanes at i with new maxima; returns what to subtract: the maximum, but 0 while there is nothing.
  ALWAYS_INLINE Vec<T> raise(int i, Vec<T> found) const {
    const Vec<T> before = load(peak + i), now = max<T>(before, found);
    const Vec<T> shift = now == kNothing<T> ? Vec<T>{} : now;
    store(peak + i, now);
    store(fade + i, exp<T>(before - shift));
    return shift;
  }

  // The lanes at i with sums of weights, each worth so much.
  ALWAYS_INLINE void add(int i, Vec<T> sum, Vec<T> worth, bool whole) const {
    const Vec<T> now = load(total + i) * load(fade + i) + sum * worth;
    store(total + i, now);
    store(gain + i, whole ? (now == T(0) ? Vec<T>{} : worth / now) : worth);
  }

  // The same for weights that were exponentiated as they are, and counted in `unit`. most: the block's maxima.
  ALWAYS_INLINE void add_shared(int i, Vec<T> sum, T unit, Vec<T> most, bool whole) const {
    if (whole) {
      store(peak + i, Vec<T>{});
      store(total + i, sum * unit);
      store(gain + i, sum == T(0) ? Vec<T>{} : T(1) / sum);
    } else {  // the unit is 1
      const Vec<T> shift = raise(i, most == kNothing<T> ? most : Vec<T>{}), beyond = -shift;
      add(i, sum, exp<T>(beyond > T(0) ? Vec<T>{} : beyond), false);  // beyond it where there is nothing in the row
    }
  }
};

// p = exp(e - maximum of its row). `columns` are whole vectors, ld apart.
template <class T>
void row_weights(const T* e, int rows, int columns, int ld, T* p, const Running<T>& state, bool whole) {
  constexpr int W = lanes<T>;
  for (int i = 0; i < rows; i += W, e += W * ld, p += W * ld) {
    const int n = std::min(W, rows - i);
    Vec<T> found[W];
    T shift[W];
    for (int r = 0; r < n; ++r) {
      found[r] = load(e + r * ld);
      for (int j = W; j < columns; j += W) found[r] = max<T>(found[r], load(e + r * ld + j));
    }
    for (int r = n; r < W; ++r) found[r] = Vec<T>{};
    store(shift, state.raise(i, maxima<T>(found)));
    for (int r = 0; r < n; ++r) {
      found[r] = Vec<T>{};
      for (int j = 0; j < columns; j += W) {
        const Vec<T> weights = exp<T>(load(e + r * ld + j) - shift[r]);
        found[r] += weights;
        store(p + r * ld + j, weights);
      }
    }
    for (int r = n; r < W; ++r) found[r] = Vec<T>{};
    state.add(i, sums<T>(found), fill(T(1)), whole);
  }
}

// p = exp(e - maximum of its column).
template <class T>
void column_weights(const T* e, int rows, int columns, int ld, T* p, const Running<T>& state, bool whole) {
  constexpr int W = lanes<T>;
  for (int j = 0; j < columns; j += W) {
    Vec<T> found = load(e + j);
    for (int i = 1; i < rows; ++i) found = max<T>(found, load(e + i * ld + j));
    const Vec<T> shift = state.raise(j, found);
    found = Vec<T>{};
    for (int i = 0; i < rows; ++i) {
      const Vec<T> weights = exp<T>(load(e + i * ld + j) - shift);
      found += weights;
      store(p + i * ld + j, weights);
    }
    state.add(j, found, fill(T(1)), whole);
  }
}

// Weights of both softmaxes of a block, ROOM x ROOM at most, as one: e becomes exp(e). False, and nothing done, where
// the maxima are not close. e has room for whole vectors of rows. in_rows, in_columns: whose state to keep;
// the weights do not depend on it.
template <int ROOM, class T>
bool shared_weights(
    T* e, int rows, int columns, int ld, const Running<T>& in_rows, const Running<T>& in_columns, bool keep_rows,
    bool keep_columns, bool whole) {
  constexpr int W = lanes<T>, STEP = std::min(4, W);
  Vec<T> along[W], across[ROOM / W], most[ROOM / W];  // of W rows; of columns; the maxima of rows
  for (int i = rows; i < round_up(rows, STEP); ++i) {
    for (int j = 0; j < columns; j += W) store(e + i * ld + j, fill(kNothing<T>));
  }
  // f(where STEP rows go on, what they have made, what the columns have), and then reduced(W rows from i, in `along`)
  auto sweep = [&](T start, auto&& f, auto&& reduced) ALWAYS_INLINE {
    for (int j = 0; j < columns; j += W) across[j / W] = fill(start);
    for (int i = 0; i < rows; i += W) {
      for (int r = 0; r < W; r += STEP) {
        unroll<STEP>([&](auto k) ALWAYS_INLINE { along[r + k] = fill(start); });
        if (i + r >= rows) continue;
        Vec<T> mine[STEP];
        unroll<STEP>([&](auto k) ALWAYS_INLINE { mine[k] = fill(start); });
        T* const from = e + (i + r) * ld;
        for (int j = 0; j < columns; j += W) f(from + j, mine, across[j / W]);
        unroll<STEP>([&](auto k) ALWAYS_INLINE { along[r + k] = mine[k]; });
      }
      reduced(i);
    }
  };

  Vec<T> high = fill(kNothing<T>), depth = high;  // of maxima, the highest, and the lowest with its sign turned
  auto consider = [&](Vec<T> found) ALWAYS_INLINE {
    high = max<T>(high, found);
    depth = max<T>(depth, found == kNothing<T> ? found : -found);
  };
  sweep(
      kNothing<T>,
      [&](const T* at, Vec<T>* mine, Vec<T>& column) ALWAYS_INLINE {
        unroll<STEP>([&](auto k) ALWAYS_INLINE {
          const Vec<T> v = load(at + k * ld);
          mine[k] = max<T>(mine[k], v);
          column = max<T>(column, v);
        });
      },
      [&](int i) ALWAYS_INLINE { consider(most[i / W] = maxima<T>(along)); });
  for (int j = 0; j < columns; j += W) consider(across[j / W]);
  const Shared shared = shared_for(-highest<T>(depth), highest<T>(high), whole);
  if (!shared) return false;
  const int power = shared.power;
  const T unit = std::ldexp(T(1), power);
  Vec<T> most_across[ROOM / W];
  for (int j = 0; j < columns / W; ++j) most_across[j] = across[j];

  sweep(
      T(0),
      [&](T* at, Vec<T>* mine, Vec<T>& column) ALWAYS_INLINE {
        unroll<STEP>([&](auto k) ALWAYS_INLINE {
          const Vec<T> v = exp<T>(load(at + k * ld), power);
          store(at + k * ld, v);
          mine[k] += v;
          column += v;
        });
      },
      [&](int i) ALWAYS_INLINE {
        if (keep_rows) in_rows.add_shared(i, sums<T>(along), unit, most[i / W], whole);
      });
  for (int j = 0; keep_columns && j < columns; j += W) {
    in_columns.add_shared(j, across[j / W], unit, most_across[j / W], whole);
  }
  return true;
}

}  // namespace coalign
