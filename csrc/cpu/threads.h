// Work that torch's threads share.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <cstdint>

namespace coalign {

// f(task, next) for every task, on so many threads at most. Each takes `step` tasks at a time until none is left: tasks
// differ in size, and on a busy machine threads in speed. next: the task that the thread will turn to afterwards, as far
// as it is known. early: threads take their next ones before they need them, and keep them from one another.
template <class F>
void share_out(int64_t tasks, int64_t threads, int64_t step, bool early, F&& f) {
  std::atomic<int64_t> taken = 0;
  auto take = [&] { return std::min(taken.fetch_add(step, std::memory_order_relaxed), tasks); };
  torch::stable::parallel_for(0, std::min(threads, tasks), 1, [&](int64_t, int64_t) {
    for (int64_t at = take(), next = tasks; at < tasks; at = early ? next : take()) {
      const int64_t end = std::min(at + step, tasks);
      if (early) next = take();
      for (int64_t i = at; i < end; ++i) f(i, i + 1 < end ? i + 1 : next < tasks ? next : i);
    }
  });
}

// f(task), each taken when a thread is free.
template <class F>
void share_out(int64_t tasks, F&& f) {
  share_out(tasks, torch::stable::get_num_threads(), 1, false, [&](int64_t task, int64_t) { f(task); });
}

}  // namespace coalign
