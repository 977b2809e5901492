"""csrc/cpu/crew.h by itself, under the thread sanitizer: tasks are done once, and nobody reads too early."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from coalign.kernels.native.build import BuildError, compiler

CREW = (Path(__file__).parents[1] / "csrc/cpu/crew.h").read_text()

# torch's parallel_for in threads of its own, of which some come late, and one that throws ends no other
THREADS = """
#pragma once
#include <unistd.h>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace torch::stable {
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t, F f) {
  std::exception_ptr thrown;
  std::mutex lock;
  auto each = [&](int64_t i) {
    if (i % 3 == 2) usleep(50);
    try {
      f(i, i + 1);
    } catch (...) {
      std::lock_guard guard(lock);
      thrown = std::current_exception();
    }
  };
  std::vector<std::thread> others;
  for (int64_t i = begin + 1; i < end; ++i) others.emplace_back(each, i);
  each(begin);
  for (std::thread& other : others) other.join();
  if (thrown) std::rethrow_exception(thrown);
}
}  // namespace torch::stable
"""

PROGRAM = """
#include "crew.h"
#include <cstdio>

int main() {
  using coalign::Crew;
  int wrong = 0, caught = 0;
  for (int round = 0; round < 100; ++round) {
    Crew::led(1 + round % 5, [&](Crew& crew) {
      std::vector<int> numbers(64), of_worker(crew.workers());  // neither atomic nor guarded
      int all = 0;
      for (int step = 1; step <= 40; ++step) {
        const int tasks = 1 + (step * 7 + round) % 17;
        crew.each(tasks, [&](int task, int worker) {
          for (int i = task; i < 64; i += tasks) numbers[i] += step;
          ++of_worker[worker];
        });
        all += tasks;
        for (int number : numbers) wrong += number != step * (step + 1) / 2;
      }
      for (int done : of_worker) all -= done;
      wrong += all != 0;
    });
  }
  for (int threads = 1; threads < 5; ++threads) {
    try {
      Crew::led(threads, [](Crew&) { throw 1; });
    } catch (int) {
      ++caught;
    }
  }
  std::printf("%d wrong, %d caught", wrong, caught);
}
"""


# every worker has a task of every step, and waits in it for the others': no thread is too late to do anything wrong
TOGETHER = """
#include "crew.h"
#include <cstdio>

int main() {
  using coalign::Crew;
  int wrong = 0;
  for (int workers = 2; workers < 5; ++workers) {
    Crew::led(workers, [&](Crew& crew) {
      std::vector<int> numbers(workers);  // neither atomic nor guarded
      for (int step = 1; step <= 20; ++step) {
        std::atomic<int> here = 0;
        crew.each(workers, [&](int task, int) {
          ++numbers[task];
          here.fetch_add(1, std::memory_order_relaxed);
          while (here.load(std::memory_order_relaxed) < workers) std::this_thread::yield();
          numbers[task] += step;
        });
        for (int number : numbers) wrong += number != step + step * (step + 1) / 2;
      }
    });
  }
  std::printf("%d wrong", wrong);
}
"""


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """Compile a program under the thread sanitizer, and run it: its output, and what the sanitizer says."""
    folder = tmp_path_factory.mktemp("crew")
    (folder / "torch/csrc/stable").mkdir(parents=True)
    (folder / "torch/csrc/stable/ops.h").write_text(THREADS)
    try:
        tools = compiler()
    except BuildError as reason:
        pytest.skip(str(reason))
    # the sanitizer's own memory has its place, which addresses that are drawn at random may take
    fixed = ["setarch", "-R"] if shutil.which("setarch") else []
    first = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}  # what goes on after a race may never end

    def run(program, crew=CREW):
        (folder / "program.cpp").write_text(program)
        (folder / "crew.h").write_text(crew)
        flags = ["-std=c++20", "-O1", "-g", "-fsanitize=thread", "-pthread", f"-I{folder}"]
        command = [*tools, *flags, folder / "program.cpp", "-o", folder / "program"]
        built = subprocess.run(command, capture_output=True, text=True, check=False)
        if built.returncode:
            return None, built.stderr
        command = [*fixed, folder / "program"]
        done = subprocess.run(command, env=first, capture_output=True, text=True, check=False, timeout=120)
        return done.stdout, done.stderr

    found, said = run("int main() {}")
    if found is None or said:
        pytest.skip(f"no thread sanitizer runs here: {said}")
    return run


def test_every_task_is_done_once_and_seen_by_the_leader(sanitized):
    assert sanitized(PROGRAM) == ("0 wrong, 4 caught", "")
    assert sanitized(TOGETHER) == ("0 wrong", "")


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("now + 1, std::memory_order_acquire", "now + 1, std::memory_order_relaxed"),
        ("done_.fetch_add(1, std::memory_order_release)", "done_.fetch_add(1, std::memory_order_relaxed)"),
        ("wait([&] { return done_.load(std::memory_order_acquire) == tasks; });", ""),
        ("std::memory_order_release);\n    work(leader_)", "std::memory_order_relaxed);\n    work(leader_)"),
    ],
    ids=[
        "a task's step is not acquired",
        "a task is not released",
        "the leader waits for nobody",
        "a step is not released",
    ],
)
def test_what_is_wrong_is_noticed(sanitized, right, wrong):
    assert CREW.count(right) == 1
    _, said = sanitized(TOGETHER, CREW.replace(right, wrong))
    assert "data race" in said
