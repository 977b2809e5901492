// A frozen model's pairs: from rows of its table of words to the sums that its classifier takes, and the classifier.
//
//   e = F_a F_bᵀ      P, Q: softmax of its rows, of its columns
//   V_a = Σ_i relu(W relu(G_a[i] + Σ_j P_ij G_b[j]) + bias)      and V_b alike, with Qᵀ
//
// Every word's F, G_a and G_b were computed when the model was frozen (model/frozen.py). What is left is, for m + n
// tokens of width h, 2 (m + n) h² operations of the second layer, 6 m n h of the alignment, 2 m n exponentials and a
// row of 3 h numbers to fetch for each token; for d2l's sizes and real sentences the second layer is five sixths.
// A word that comes again in its sentence costs nothing of that (sentence.h). Rows of several pairs pass the second layer
// together, so that its weights are read seldom.
#pragma once

#include <atomic>
#include <vector>

#include "call.h"
#include "rectified.h"
#include "sentence.h"
#include "threads.h"

namespace coalign {

constexpr int64_t kGroupTokens = 108;  // whose rows pass the second layer together, if pairs fill them
constexpr int64_t kPairsAtOnce = 6 * kBlockRows;  // that pass the classifier
constexpr int64_t kFewPairs = 2 * kBlockRows;     // and the fewest that pay for waking a thread

enum Status : int64_t { kFine, kExtents, kIds, kSizes };  // which operands are not what they should be

template <class E>
struct FrozenLayers {
  Layer<E> compare, first, second, scores;
};

// The table's three parts, (words, h) each.
template <class S>
struct WordTable {
  Rows<S> f, own, other;
  int64_t words;
};

// One side's ids, (pairs, rows) or packed, and which of them are tokens.
struct Words {
  Extent extent;
  const void* ids;
  bool wide;

  int64_t id(int64_t at) const {
    return wide ? static_cast<const int64_t*>(ids)[at] : static_cast<const int32_t*>(ids)[at];
  }

  // The pair's sentence; so many words are in the vocabulary, and of others, padding or not, the count is negative.
  Sentence read(int64_t pair, int64_t words, Arena& arena) const {
    const int64_t first = extent.first(pair);
    const int stored = extent.stored(pair);
    for (int i = 0; i < stored; ++i) {
      if (static_cast<uint64_t>(id(first + i)) >= static_cast<uint64_t>(words)) return {nullptr, nullptr, nullptr, -1};
    }
    int* into = arena.take<int>(stored);
    const int count = extent.tokens(pair, into);
    for (int i = 0; i < count; ++i) into[i] = static_cast<int>(id(first + into[i]));
    return sentence_of(into, count, arena);
  }
};

// Fetches the table's rows of the next group's words while this group is multiplied: their addresses are random, and
// nothing else knows them early.
template <class S>
class WordsAhead {
 public:
  WordsAhead(const WordTable<S>& table, const Words& a, const Words& b, int64_t from, int64_t to, int steps)
      : table_(table),
        sides_{{a, a.extent.first(from), a.extent.first(to)}, {b, b.extent.first(from), b.extent.first(to)}} {
    int64_t words = 0;
    for (const Part& part : sides_) words += part.end - part.at;
    share_ = (words + steps - 1) / std::max(steps, 1);
  }

  void step() {
    for (int64_t left = share_; left > 0; --left) {
      Part& part = sides_[sides_[0].at == sides_[0].end];
      if (part.at == part.end) return;
      const int64_t id = part.words.id(part.at++);
      if (id < 0 || id >= table_.words || id == last_) continue;  // the last one again: padding
      last_ = id;
      const char* row = reinterpret_cast<const char*>(table_.f.at(0, id));
      for (std::size_t k = 0; k < sizeof(S) * table_.f.row; k += 64) __builtin_prefetch(row + k, 0, 2);
    }
  }

 private:
  struct Part {
    const Words& words;
    int64_t at, end;
  };
  const WordTable<S>& table_;
  Part sides_[2];
  int64_t share_, last_ = -1;
};

template <class S, class E = Element<S>>
class Frozen {
 public:
  Frozen(const WordTable<S>& table, const Words& a, const Words& b, const FrozenLayers<E>& layers, float* sums)
      : table_(table), a_(a), b_(b), layers_(layers), sums_(sums) {}

  // Numbers that one of a pair's two sums takes: padded, for what stands behind its numbers is anything.
  static int sum_room(int width) { return round_up(width, lanes<float>); }

  // Pairs in groups of some tokens, or of a pair that has more: the first pair of each, and the end. Groups are smaller
  // where threads would go without or wait for the last one, though a few tokens do not pay for waking one.
  std::vector<int64_t> groups(int64_t pairs, int64_t tokens, int64_t threads) const {
    std::vector<int64_t> first{0};
    auto most = [&] { return std::clamp(tokens / (4 * threads), kGroupTokens / 2, kGroupTokens); };
    int64_t rows = 0, limit = most();
    for (int64_t pair = 0; pair < pairs; ++pair) {
      if (pair > first.back() && rows + reach(pair) > limit) {
        first.push_back(pair);
        tokens -= rows;
        rows = 0;
        limit = most();
      }
      rows += reach(pair);
    }
    if (pairs > 0) first.push_back(pairs);
    return first;
  }

  // V_a and V_b of a group, the pairs from `from` to `to`; false where a word is not in the vocabulary. The pairs from
  // `then` to `then_to` will follow on this thread.
  bool sum(int64_t from, int64_t to, int64_t then, int64_t then_to) const {
    Arena& arena = Arena::of_this_thread();
    int most = 0;
    for (int64_t pair = from; pair < to; ++pair) most += reach(pair);
    const int ld = row_room<E>(width()), room = sum_room(width());
    float* hidden = arena.take<float>(static_cast<std::size_t>(most) * ld);
    float** sums = arena.take<float*>(most);  // that a row is added to
    float* times = arena.take<float>(most);   // and how often
    std::fill_n(sums_ + from * 2 * room, (to - from) * 2 * room, 0.0f);
    int rows = 0;
    for (int64_t pair = from; pair < to; ++pair) {
      const Arena::Mark mark = arena.mark();
      const Sentence a = a_.read(pair, table_.words, arena), b = b_.read(pair, table_.words, arena);
      if (a.count < 0 || b.count < 0) return false;
      compare_first(a, b, hidden + static_cast<std::size_t>(rows) * ld, ld, arena);
      float* sum = sums_ + 2 * pair * room;
      for (const Sentence* side : {&a, &b}) {
        std::fill_n(sums + rows, side->count, sum);
        std::copy_n(side->times, side->count, times + rows);
        rows += side->count;
        sum += room;
      }
      arena.release(mark);
    }
    WordsAhead<S> ahead(table_, a_, b_, then, then_to, linear_steps(rows, layers_.compare));
    // row by row, in registers for as long as rows are one sentence's
    auto add = [&](int i, auto mr, int d, auto nv, const float* found) ALWAYS_INLINE {
      constexpr int W = lanes<float>;
      Vec<float> total[nv];
      unroll<mr>([&](auto r) ALWAYS_INLINE {
        float* to = sums[i + r] + d;
        const Vec<float> often = fill(times[i + r]);
        const bool first = r == 0 || to != sums[i + r - 1] + d, last = r == mr - 1 || to != sums[i + r + 1] + d;
        unroll<nv>([&](auto v) ALWAYS_INLINE {
          if (first) total[v] = load(to + v * W);
          total[v] = multiply_add<float>(total[v], relu(load(found + (r * nv + v) * W)), often);
          if (last) store(to + v * W, total[v]);
        });
      });
    };
    rectified_tiles(as_elements<E>(hidden, rows, ld, arena), ld / kPer<E>, rows, layers_.compare, ahead, arena, add);
    return true;
  }

  // Scores of pairs from begin to end, from their sums: (pairs, classes).
  void classify(int64_t begin, int64_t end, float* scores) const {
    const int room = sum_room(width()), ld = row_room<E>(2 * width()), classes = layers_.scores.out;
    const int count = static_cast<int>(end - begin);
    Arena& arena = Arena::of_this_thread();
    float* rows = arena.take<float>(static_cast<std::size_t>(count) * ld);
    for (int i = 0; i < count; ++i) {
      const float* from = sums_ + (begin + i) * 2 * room;
      float* to = std::copy_n(from + room, width(), std::copy_n(from, width(), rows + i * ld));
      std::fill(to, rows + (i + 1) * ld, 0.0f);
    }
    Ahead nothing;
    const float* hidden = rows;
    int hidden_ld = ld;
    for (const Layer<E>* layer : {&layers_.first, &layers_.second}) {
      const int next_ld = row_room<E>(layer->out);
      float* next = arena.take<float>(static_cast<std::size_t>(count) * next_ld);
      linear(as_elements<E>(hidden, count, hidden_ld, arena), hidden_ld / kPer<E>, count, *layer, nothing,
             [&](int r, int d, Vec<float> v) ALWAYS_INLINE { store(next + r * next_ld + d, relu(v)); });
      clear_padding(next, count, layer->out, next_ld);
      hidden = next;
      hidden_ld = next_ld;
    }
    linear(as_elements<E>(hidden, count, hidden_ld, arena), hidden_ld / kPer<E>, count, layers_.scores, nothing,
           [&](int r, int d, Vec<float> v) {
             float* out = scores + (begin + r) * classes + d;
             for (int c = 0; c < std::min(lanes<float>, classes - d); ++c) out[c] = v[c];
           });
  }

 private:
  int width() const { return table_.f.width; }
  int reach(int64_t pair) const { return a_.extent.reach(pair) + b_.extent.reach(pair); }

  // The pair's hidden rows, side a's first: relu(own + aligned).
  void compare_first(const Sentence& first, const Sentence& second, float* hidden, int ld, Arena& arena) const {
    const int m = first.count, n = second.count;
    float** rows = arena.take<float*>(m + n);
    for (int i = 0; i < m + n; ++i) rows[i] = hidden + static_cast<std::size_t>(i) * ld;
    auto read = [&](const Rows<S>& part, const Sentence& side, Use use) {
      return read_operand<S, E>(part, 0, 0, side.words, side.count, use, arena);
    };
    if (m > 0 && n > 0) {
      const Tokens<E> a{m, read(table_.f, first, Use::contract), read(table_.other, first, Use::sum)};
      const Tokens<E> b{n, read(table_.f, second, Use::contract), read(table_.other, second, Use::sum)};
      const Rule<float> rule{.scale = 1, .more_a = first.logs, .more_b = second.logs};
      Ahead ahead;
      align_forward<E, float>(
          a, b, {true, true, {0, m}, {0, n}}, rule, Bias<const float>{}, rows, rows + m,
          arena.take<float>(round_up(m, kBlock)), arena.take<float>(round_up(n, kBlock)), arena, ahead);
    } else {
      std::fill_n(hidden, static_cast<std::size_t>(m + n) * ld, 0.0f);
    }
    for (int i = 0; i < m + n; ++i) {
      const S* own = table_.own.at(0, i < m ? first.words[i] : second.words[i - m]);
      float* row = rows[i];
      for (int d = 0; d < width(); ++d) {
        const float x = row[d] + widen(own[d]);
        row[d] = x < 0 ? 0 : x;
      }
      std::fill(row + width(), row + ld, 0.0f);
    }
  }

  WordTable<S> table_;
  Words a_, b_;
  FrozenLayers<E> layers_;
  float* sums_;
};

// All pairs' scores, (pairs, classes), on torch's threads; false where a word is not in the vocabulary. tokens: of all
// pairs, padding included.
template <class S, class E = Element<S>>
bool score_pairs(
    const WordTable<S>& table, const Words& a, const Words& b, int64_t tokens, const FrozenLayers<E>& layers,
    float* scores) {
  const int64_t pairs = a.extent.pairs(), threads = torch::stable::get_num_threads();
  const Tensor sums = floats({pairs, 2, Frozen<S>::sum_room(table.f.width)});
  const Frozen<S> model(table, a, b, layers, data<float>(sums));
  std::atomic<bool> known = true;
  const std::vector<int64_t> starts = model.groups(pairs, tokens, threads);
  const int64_t groups = static_cast<int64_t>(starts.size()) - 1;
  share_out(groups, [&](int64_t group, int64_t next) {
    const int64_t then = next == group ? groups : next;
    if (!model.sum(starts[group], starts[group + 1], starts[then], starts[std::min(then + 1, groups)])) known = false;
  });
  if (known) {
    auto parts_of = [&](int64_t most) { return (pairs + most - 1) / most; };
    const int64_t turns = (parts_of(kPairsAtOnce) + threads - 1) / threads;
    const int64_t parts = std::min(turns * threads, parts_of(kFewPairs));
    share_out(parts, [&](int64_t part) {
      model.classify(pairs * part / parts, pairs * (part + 1) / parts, scores);
    });
  }
  return known;
}

// Compiled once, with the operator in frozen.cpp.
extern template bool score_pairs<float>(
    const WordTable<float>&, const Words&, const Words&, int64_t, const FrozenLayers<Element<float>>&, float*);
extern template bool score_pairs<BFloat16>(
    const WordTable<BFloat16>&, const Words&, const Words&, int64_t, const FrozenLayers<Element<BFloat16>>&, float*);

}  // namespace coalign
