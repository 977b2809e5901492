// Work that torch's threads share.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <type_traits>

namespace coalign {

// f(task), or f(task, next), for every task, on so many threads at most. Each takes some adjacent tasks at a time until
// none is left, fewer and fewer: tasks differ in size, and on a busy machine threads in speed, but where neighbours are
// done by different threads, these fetch each other's memory. next: the task that the thread will turn to afterwards, as
// far as it is known. Where f wants to know it, and there are tasks for all, threads take their next ones early.
template <class F>
void share_out(int64_t tasks, int64_t threads, F&& f) {
  constexpr bool wants_next = std::is_invocable_v<F&, int64_t, int64_t>;
  const bool early = wants_next && tasks >= 8 * threads;
  struct Portion {
    int64_t begin, end;
  };
  std::atomic<int64_t> taken = 0;
  auto take = [&] {
    Portion mine{taken.load(std::memory_order_relaxed), 0};
    do {
      const int64_t left = tasks - mine.begin;
      mine.end = mine.begin + std::min(left, 1 + left / (4 * threads));
    } while (!taken.compare_exchange_weak(mine.begin, mine.end, std::memory_order_relaxed));
    return mine;
  };
  torch::stable::parallel_for(0, std::min(threads, tasks), 1, [&](int64_t, int64_t) {
    for (Portion mine = take(), next{tasks, tasks}; mine.begin < tasks; mine = early ? next : take()) {
      if (early) next = take();
      for (int64_t i = mine.begin; i < mine.end; ++i) {
        if constexpr (wants_next) {
          f(i, i + 1 < mine.end ? i + 1 : next.begin < tasks ? next.begin : i);
        } else {
          f(i);
        }
      }
    }
  });
}

// The same on all of torch's threads.
template <class F>
void share_out(int64_t tasks, F&& f) {
  share_out(tasks, torch::stable::get_num_threads(), f);
}

}  // namespace coalign
