// A sentence's words, each once. Nothing of a frozen model depends on where a word stands: one that comes again has the
// same scores, takes the same part in what is aligned and adds the same to the sum. Every tenth of SNLI's tokens does; of a
// sentence that is padded and not masked, most do.
#pragma once

#include <algorithm>
#include <bitset>

#include "arena.h"
#include "exponentials.h"

namespace coalign {

// times: how often each word comes. logs: their logarithms, which its scores are more by for the softmaxes; with room for
// whole vectors.
struct Sentence {
  const int* words;
  const float *times, *logs;
  int count;
};

// Takes equal words together, in place, in the order in which they first come.
inline Sentence sentence_of(int* words, int count, Arena& arena) {
  const int room = round_up(count, 2 * lanes<float>);  // of pairs, too
  float *times = arena.take<float>(room), *logs = arena.take<float>(room);
  std::fill_n(times, room, 1.0f);
  std::bitset<1024> seen;  // words that are looked for among those before: few others are
  int found = 0;
  for (int i = 0; i < count; ++i) {
    const int word = words[i];
    const std::size_t bit = static_cast<std::size_t>(word) % seen.size();
    if (seen[bit]) {
      const int* known = std::find(words, words + found, word);
      if (known != words + found) {
        times[known - words] += 1;
        continue;
      }
    }
    seen[bit] = true;
    words[found++] = word;
  }
  for (int k = 0; k < room; k += lanes<float>) store(logs + k, log<float>(load(times + k)));
  return {words, times, logs, found};
}

}  // namespace coalign
