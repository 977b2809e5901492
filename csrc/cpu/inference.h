// What a model knows of some words before it sees their sentences: rows of the frozen model's table (model/frozen.py),
// computed for the words of one batch.
//
//   F = f(x)      G_a = W_a x + bias      G_b = W_b x      x: a word's vector, projected where the model does that
//
// A batch has far fewer words than tokens, and a pair of sentences as many: for u words, t tokens and d2l's sizes this
// and what follows (frozen.h) are 2 (100,000 u + 40,000 t) operations, against 560,000 t token by token.
#pragma once

#include <cstdint>
#include <optional>
#include <random>
#include <vector>

#include "arena.h"
#include "rectified.h"

namespace coalign {

// A batch's words, each once, as they first come, and of every token which of them it is.
class BatchWords {
 public:
  explicit BatchWords(int64_t tokens) {
    while (slots() < 2 * tokens) ++bits_;
    taken_.assign(slots(), -1);
    which_.reserve(tokens);
  }

  // Some more tokens; false where one is not in the vocabulary.
  template <class ID>
  bool add(const ID* ids, int64_t count, int64_t vocabulary) {
    for (int64_t i = 0; i < count; ++i) {
      const int64_t id = ids[i];
      if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(vocabulary)) return false;
      std::size_t slot = static_cast<uint64_t>(id) * factor() >> (64 - bits_);
      while (taken_[slot] >= 0 && words_[taken_[slot]] != id) slot = (slot + 1) % slots();
      if (taken_[slot] < 0) {
        taken_[slot] = static_cast<int32_t>(words_.size());
        words_.push_back(id);
      }
      which_.push_back(taken_[slot]);
    }
    return true;
  }

  const std::vector<int64_t>& words() const { return words_; }
  const int32_t* which() const { return which_.data(); }

 private:
  std::size_t slots() const { return std::size_t{1} << bits_; }

  // Another in every process: nobody can choose ids that all want the same slots.
  static uint64_t factor() {
    static const uint64_t drawn = [] {
      std::random_device random;
      return static_cast<uint64_t>(random()) << 32 | random() | 1;
    }();
    return drawn;
  }

  int bits_ = 4;
  std::vector<int32_t> taken_, which_;
  std::vector<int64_t> words_;
};

template <class E>
struct WordLayers {
  std::optional<Layer<E>> projection;
  Layer<E> f_first, f_second, own, other;
};

// The rows F, G_a, G_b of the so many words, side by side. embedding: (vocabulary, width), contiguous.
template <class S, class E = Element<S>>
void word_rows(
    const S* embedding, int width, const int64_t* words, int count, const WordLayers<E>& layers, S* table,
    Arena& arena) {
  Ahead nothing;
  auto room = [&](int numbers) { return arena.take<float>(static_cast<std::size_t>(count) * row_room<E>(numbers)); };
  auto elements = [&](const float* rows, int numbers) {
    return as_elements<E>(rows, count, row_room<E>(numbers), arena);
  };
  auto pass = [&](const E* x, int numbers, const Layer<E>& layer, bool of_rectified, bool rectifies) {
    const int ld = row_room<E>(layer.out), ldx = row_room<E>(numbers) / kPer<E>;
    float* out = room(layer.out);
    auto take = [&](int r, int d, Vec<float> v) ALWAYS_INLINE {
      store(out + static_cast<std::size_t>(r) * ld + d, rectifies ? relu(v) : v);
    };
    if (of_rectified) {
      rectified(x, ldx, count, layer, nothing, arena, take);
    } else {
      linear(x, ldx, count, layer, nothing, take);
    }
    clear_padding(out, count, layer.out, ld);
    return out;
  };
  float* vectors = room(width);
  for (int i = 0; i < count; ++i) {
    widen_row(embedding + words[i] * width, width, vectors + static_cast<std::size_t>(i) * row_room<E>(width));
  }
  clear_padding(vectors, count, width, row_room<E>(width));
  if (layers.projection.has_value()) {
    vectors = pass(elements(vectors, width), width, *layers.projection, false, false);
    width = layers.projection->out;
  }
  const E* x = elements(vectors, width);
  const int h = layers.own.out, hidden = layers.f_first.out;
  const float* inner = pass(x, width, layers.f_first, false, true);
  const float* parts[] = {
      pass(elements(inner, hidden), hidden, layers.f_second, true, true),
      pass(x, width, layers.own, false, false), pass(x, width, layers.other, false, false)};
  for (int i = 0; i < count; ++i) {
    for (const float* part : parts) {
      narrow_row(part + static_cast<std::size_t>(i) * row_room<E>(h), h, table);
      table += h;
    }
  }
}

}  // namespace coalign
