// Threads that take one pair's steps together. One leads: it runs what is to be done, and shares a step's tasks out
// between all. The others wait for the next step by trying, which a pair of sentences is short enough for. Whoever comes
// late finds less to do, or nothing: a leader alone does everything, so that nobody has to come.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cstdint>
#include <thread>

namespace coalign {

class Crew {
 public:
  // f(crew), by the first thread that comes, with the help of others.
  template <class F>
  static void led(int threads, F&& f) {
    Crew crew(threads);
    std::atomic<bool> has_leader = false;
    torch::stable::parallel_for(0, threads, 1, [&](int64_t worker, int64_t) {
      if (has_leader.exchange(true)) return crew.help(static_cast<int>(worker));
      crew.leader_ = static_cast<int>(worker);
      const End end{crew};
      f(crew);
    });
  }

  // Tasks of a step have their worker's number, below this, and nobody else has it at that time.
  int workers() const { return workers_; }

  // f(task, worker) for every task; back when all are done. f must not throw: nobody would end the others' waiting.
  template <class F>
  void each(int tasks, const F& f) {
    run_ = [](const void* what, int task, int worker) noexcept { (*static_cast<const F*>(what))(task, worker); };
    what_ = &f;
    done_.store(0, std::memory_order_relaxed);
    const Step before = step_.load(std::memory_order_relaxed);
    step_.store((before | 0xffffffff) + 1 + (static_cast<Step>(tasks) << 16), std::memory_order_release);
    work(leader_);
    wait([&] { return done_.load(std::memory_order_acquire) == tasks; });
  }

 private:
  using Step = uint64_t;  // its number, how many tasks it has, how many of them are taken: 32, 16 and 16 bits

  struct End {
    Crew& crew;
    ~End() { crew.over_.store(true, std::memory_order_release); }
  };

  explicit Crew(int workers) : workers_(workers) {}

  static int tasks(Step step) { return step >> 16 & 0xffff; }
  static int taken(Step step) { return step & 0xffff; }
  bool has_task() const {
    const Step now = step_.load(std::memory_order_relaxed);
    return taken(now) < tasks(now);
  }

  // The tasks of the step that is on, until none is left. Who has taken one finds what the leader said of its step:
  // that stays until it is done.
  void work(int worker) {
    Step now = step_.load(std::memory_order_relaxed);
    while (taken(now) < tasks(now)) {
      if (!step_.compare_exchange_weak(now, now + 1, std::memory_order_acquire, std::memory_order_relaxed)) continue;
      run_(what_, taken(now), worker);
      done_.fetch_add(1, std::memory_order_release);
      now = step_.load(std::memory_order_relaxed);
    }
  }

  void help(int worker) {
    auto over = [&] { return over_.load(std::memory_order_acquire); };
    while (!over()) {
      work(worker);
      wait([&] { return has_task() || over(); });
    }
  }

  template <class F>
  static void wait(F&& until) {
    for (int tries = 1; !until(); ++tries) {
      if (tries % 1024 == 0) {
        std::this_thread::yield();  // to who may be what is waited for
      } else {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
    }
  }

  const int workers_;
  int leader_ = 0;
  void (*run_)(const void*, int, int) noexcept = nullptr;
  const void* what_ = nullptr;
  alignas(64) std::atomic<Step> step_ = 0;
  alignas(64) std::atomic<int> done_ = 0;
  std::atomic<bool> over_ = false;
};

}  // namespace coalign
