// A call's work as tasks for torch's threads: pairs, or parts of pairs where there are fewer pairs than threads.
#pragma once

#include "call.h"
#include "crew.h"
#include "threads.h"

namespace coalign {

// A part of a pair's work: the one-and-only, or one of several that make rows of e or columns of it.
struct Task {
  int64_t pair, next;  // the pair that the thread will turn to afterwards
  int part, parts;
  Crew* crew = nullptr;  // to take the pair's steps with

  // This part's tokens of a side: an even portion of its blocks. Sides that it does not divide it takes whole.
  Range portion(int count, int at, int of) const {
    const int64_t blocks = (count + kBlock - 1) / kBlock;
    auto edge = [&](int64_t k) { return static_cast<int>(std::min<int64_t>(blocks * k / of * kBlock, count)); };
    return {edge(at), edge(at + 1)};
  }

  Share share(int count_a, int count_b) const {
    const Range a{0, count_a}, b{0, count_b};
    if (parts == 1) return {true, true, a, b};
    const int half = parts / 2;
    if (part < half) return {true, false, portion(count_a, part, half), b};
    return {false, true, a, portion(count_b, part - half, half)};
  }

  bool first_of_rows() const { return part == 0; }
  bool first_of_columns() const { return part == (parts == 1 ? 0 : parts / 2); }
};

// What a pair takes that is worth a crew, some 45 µs on one thread; and how many are in one: portions of a block's rows
// are 11 or 16.
constexpr int64_t kWorthCrew = 300000, kMostOfCrew = 8;

// f(task) for every pair, on torch's threads. Enough pairs pay for waking a thread. Where there are too few of them for
// the threads, and enough work in one, a pair of one block is done by a crew, and a longer one in parts: its rows and its
// columns, and these by blocks. width: of what is contracted.
template <class F>
void for_each_pair(const Extent& a, const Extent& b, int64_t width, F&& f) {
  const int64_t pairs = a.pairs(), m = a.length(), n = b.length();
  const int64_t threads = torch::stable::get_num_threads(), blocks = (std::min(m, n) + kBlock - 1) / kBlock;
  const int64_t in_crew = std::min(threads, kMostOfCrew);  // which does one pair after another
  if (0 < pairs && 2 * pairs <= in_crew && std::max(m, n) <= kBlock && m * n * width > kWorthCrew) {
    return Crew::led(static_cast<int>(in_crew), [&](Crew& crew) {
      for (int64_t i = 0; i < pairs; ++i) f(Task{i, i, 0, 1, &crew});
    });
  }
  const int64_t half = pairs < threads ? std::min((threads + pairs - 1) / std::max<int64_t>(pairs, 1), blocks) : 1;
  const bool shared = half > 1 || (2 * pairs <= threads && m * n * width > 600000);  // some 40 µs: both make e
  const int64_t parts = shared ? 2 * half : 1, tasks = pairs * parts;
  const int64_t work = (m * n / 4 + m + n) * width + 1, least = shared ? 1 : std::max<int64_t>(1, 200000 / work);
  const int64_t workers = std::min(threads, (tasks + least - 1) / least);
  share_out(tasks, workers, [&](int64_t i, int64_t next) {
    f(Task{i / parts, next / parts, static_cast<int>(i % parts), static_cast<int>(parts)});
  });
}

}  // namespace coalign
