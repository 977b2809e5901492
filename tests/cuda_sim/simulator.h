// A GPU for g++: what csrc/cuda/device.cuh gives kernels under nvcc, on the CPU, one block at a time.
//
// A block's threads are fibers that run until they must wait: for the block, or for their warp (shuffles, products). Which goes on next is the order under test. Shared memory starts as NaN and its accesses are checked.
// An asynchronous copy turns its destination into NaN until its thread waits for it. So a missing barrier, a wrong
// wait or a bad index shows as NaN, as an error, or as results that differ between orders.
#pragma once

#include <cstdint>
#include <cstring>
#include <cmath>
#include <deque>
#include <functional>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"

#define GPU_INLINE inline
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace simulator {

enum class Order { forward, reverse, random, run_ahead, run_ahead_reverse };
enum class Waits { no, block, warp, done };

struct Copy {
  void* to;
  std::vector<unsigned char> bytes;
};

struct Thread {
  Fiber fiber;
  Waits waits;
  const char* reason;  // which collective it waits in
  unsigned collectives;
  std::deque<std::vector<Copy>> groups;  // the last one is open
};

struct Block {
  dim3 index, grid;
  std::vector<Thread> threads;
  std::vector<unsigned char> shared;
  std::vector<uint32_t> mail;  // 6 words a thread, twice
  std::string error;
  int running = 0;
  std::mt19937_64 dice;
  std::function<void()> body;
};

inline Block* block = nullptr;
inline std::mutex one_launch_at_a_time;
inline Order order = Order::forward;
inline uint64_t seed = 0;

inline void fail(const std::string& error) {
  if (block->error.empty()) block->error = error + ", thread " + std::to_string(block->running);
}

inline Thread& me() { return block->threads[block->running]; }

inline void wait(Waits what, const char* reason) {
  me().waits = what;
  me().reason = reason;
  me().fiber.pause();
}

// A collective of the warp: all 32 lanes must come to the same one.
inline void meet_warp(const char* reason) { wait(Waits::warp, reason); }

// Words that the lanes of a warp show one another; a lane finds the others' after meet_warp.
inline uint32_t* mail(int thread, unsigned turn) { return &block->mail[(thread * 2 + turn % 2) * 6]; }

// Let all go on that have come together.
inline void release() {
  auto& threads = block->threads;
  const int count = static_cast<int>(threads.size());
  bool all = true;
  for (const Thread& t : threads) all = all && t.waits == Waits::block;
  if (all) {
    for (Thread& t : threads) t.waits = Waits::no;
    return;
  }
  for (int w = 0; w < count; w += 32) {
    bool together = true;
    for (int i = w; i < w + 32; ++i) together = together && threads[i].waits == Waits::warp;
    if (!together) continue;
    for (int i = w; i < w + 32; ++i) {
      if (threads[i].reason != threads[w].reason) fail("lanes of a warp are in different collectives");
      threads[i].waits = Waits::no;
    }
  }
}

// The thread that goes on, or -1 when none can.
inline int next() {
  const auto& threads = block->threads;
  const int count = static_cast<int>(threads.size()), last = block->running;
  auto can = [&](int i) { return threads[i].waits == Waits::no; };
  if (order == Order::random) {
    std::vector<int> able;
    for (int i = 0; i < count; ++i) {
      if (can(i)) able.push_back(i);
    }
    return able.empty() ? -1 : able[block->dice() % able.size()];
  }
  if (order == Order::run_ahead || order == Order::run_ahead_reverse) {  // stay with a warp as long as it can go on
    for (int i = last / 32 * 32; i < last / 32 * 32 + 32; ++i) {
      if (can(i)) return i;
    }
  }
  const bool backwards = order == Order::reverse || order == Order::run_ahead_reverse;
  for (int i = 0; i < count; ++i) {
    const int at = backwards ? (last - 1 - i + 2 * count) % count : (last + 1 + i) % count;
    if (can(at)) return at;
  }
  return -1;
}

inline void run_block(Block& b) {
  std::memset(b.shared.data(), 0xff, b.shared.size());
  for (Thread& t : b.threads) {
    t.waits = Waits::no;
    t.collectives = 0;
    t.groups.assign(1, {});
    t.fiber.start([] {
      block->body();
      me().waits = Waits::done;
      me().fiber.pause();
    });
  }
  b.running = order == Order::reverse || order == Order::run_ahead_reverse ? 0 : static_cast<int>(b.threads.size()) - 1;
  for (;;) {
    const int chosen = next();
    if (chosen < 0) break;
    b.running = chosen;
    b.threads[chosen].fiber.resume();
    if (b.threads[chosen].waits != Waits::no) release();
    if (!b.error.empty()) return;
  }
  for (const Thread& t : b.threads) {
    if (t.waits != Waits::done) return fail(std::string("deadlock: a thread waits for ever in ") + t.reason);
  }
}

}  // namespace simulator

// The names that CUDA gives every kernel.
struct ThreadIndex {
  operator int() const { return simulator::block->running; }
};
struct ThreadIndices {
  ThreadIndex x;
};
inline constexpr ThreadIndices threadIdx{};
#define blockIdx (simulator::block->index)

inline void __trap() { simulator::fail("a trap"); }
inline void __syncthreads() { simulator::wait(simulator::Waits::block, "__syncthreads"); }

inline float __shfl_xor_sync(uint32_t, float x, int other) {
  using namespace simulator;
  const unsigned turn = me().collectives++;
  std::memcpy(mail(block->running, turn), &x, 4);
  meet_warp("a shuffle");
  std::memcpy(&x, mail(block->running ^ other, turn), 4);
  return x;
}

namespace coalign::cuda {

template <bool TENSOR_CORES, class S>
constexpr bool kRunsHere = true;

// An integer in shared memory. Not written yet, a float is NaN and shows in the results; an integer must be asked.
struct Integer {
  int* at;
  operator int() const {
    if (*at == -1) simulator::fail("shared memory: an integer is read before it is written");
    return *at;
  }
  void operator=(int x) const { *at = x; }
};

// A pointer into shared memory that stays within the piece it was taken from.
template <class T>
class Shared {
 public:
  Shared() = default;
  Shared(T* begin, int count) : at_(begin), begin_(begin), end_(begin + count) {}
  Shared operator+(int i) const {
    Shared moved = *this;
    moved.at_ += i;
    return moved;
  }
  decltype(auto) operator[](int i) const {
    if constexpr (std::is_same_v<T, int>) {
      return Integer{checked(i, 1)};
    } else {
      return static_cast<T&>(*checked(i, 1));
    }
  }
  // `count` numbers from here on; when they are not all inside, the error is noted and another place given.
  T* checked(int i, int count) const {
    T* p = at_ + i;
    if (p >= begin_ && p + count <= end_) return p;
    simulator::fail("shared memory: index " + std::to_string(p - begin_) + " of " + std::to_string(end_ - begin_));
    static T elsewhere[64];
    return elsewhere;
  }

 private:
  T *at_ = nullptr, *begin_ = nullptr, *end_ = nullptr;
};

class SharedArena {
 public:
  template <class T>
  Shared<T> take(int count) {
    auto& memory = simulator::block->shared;
    const size_t bytes = (count * sizeof(T) + 15) / 16 * 16;
    if (used_ + bytes > memory.size()) {
      simulator::fail("a block takes more shared memory than it was launched with");
      return {};
    }
    T* piece = reinterpret_cast<T*>(memory.data() + used_);
    used_ += bytes;
    return {piece, count};
  }

 private:
  size_t used_ = 0;
};

template <class S>
uint32_t load_pair(Shared<S> p) {
  uint32_t pair;
  const S* from = p.checked(0, 2);
  if (reinterpret_cast<uintptr_t>(from) % 4 != 0) simulator::fail("a pair is not aligned");
  std::memcpy(&pair, from, 4);
  return pair;
}

template <int BYTES, class S>
void copy_async(Shared<S> to, const S* from, int bytes) {
  unsigned char* place = reinterpret_cast<unsigned char*>(to.checked(0, BYTES / sizeof(S)));
  if (reinterpret_cast<uintptr_t>(place) % BYTES != 0 || (bytes > 0 && reinterpret_cast<uintptr_t>(from) % BYTES != 0)) {
    simulator::fail("an asynchronous copy is not aligned");
  }
  simulator::Copy copy{place, std::vector<unsigned char>(BYTES, 0)};
  if (bytes > 0) std::memcpy(copy.bytes.data(), from, bytes);
  std::memset(place, 0xff, BYTES);
  simulator::me().groups.back().push_back(std::move(copy));
}

inline void commit_copies() { simulator::me().groups.emplace_back(); }

template <int GROUPS>
void wait_for_copies() {
  auto& groups = simulator::me().groups;
  while (groups.size() > GROUPS + 1) {
    for (const simulator::Copy& copy : groups.front()) std::memcpy(copy.to, copy.bytes.data(), copy.bytes.size());
    groups.pop_front();
  }
}

inline uint32_t to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return std::isfinite(x) ? (bits + 0x1000) & ~0x1fffu : bits;
}

inline float widen_half(uint16_t bits) {
  _Float16 half;
  std::memcpy(&half, &bits, 2);
  return static_cast<float>(half);
}
inline uint16_t narrow_half(float x) {
  const _Float16 half = static_cast<_Float16>(x);
  uint16_t bits;
  std::memcpy(&bits, &half, 2);
  return bits;
}
inline uint16_t narrow_bfloat(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return static_cast<uint16_t>(x != x ? 0x7fff : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

struct BFloat16;
struct Float16;

// mma.sync, each lane its four sums from all lanes' operands. element(word, part) widens part `part` of a word.
template <int PARTS, class F>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], F element) {
  using namespace simulator;
  const unsigned turn = me().collectives++;
  uint32_t* mine = mail(block->running, turn);
  std::memcpy(mine, a, 16);
  std::memcpy(mine + 4, b, 8);
  meet_warp("mma");
  const int first = block->running / 32 * 32, row = block->running % 32 / 4, column = block->running % 4 * 2;
  for (int r = 0; r < 4; ++r) {
    for (int half = 0; half < 2; ++half) {  // the two registers of a row of a, of a column of b
      for (int lane = 0; lane < 4; ++lane) {
        const uint32_t of_a = mail(first + row * 4 + lane, turn)[r / 2 + 2 * half];
        const uint32_t of_b = mail(first + (column + r % 2) * 4 + lane, turn)[4 + half];
        for (int part = 0; part < PARTS; ++part) c[r] += element(of_a, part) * element(of_b, part);
      }
    }
  }
}

inline void mma_tf32(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma<1>(c, a, b, [](uint32_t word, int) {
    word &= ~0x1fffu;  // what a tensor core does not read
    float x;
    std::memcpy(&x, &word, 4);
    return x;
  });
}

template <class S>
void mma_16bit(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  mma<2>(c, a, b, [](uint32_t word, int part) {
    const uint16_t bits = static_cast<uint16_t>(word >> 16 * part);
    if constexpr (std::is_same_v<S, Float16>) {
      return widen_half(bits);
    } else {
      const uint32_t wide = static_cast<uint32_t>(bits) << 16;
      float x;
      std::memcpy(&x, &wide, 4);
      return x;
    }
  });
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, int threads, int shared, int64_t, Arguments... arguments) {
  using namespace simulator;
  if (grid.y > 65535 || grid.z > 65535) throw std::runtime_error("simulated GPU: the grid is larger than a GPU takes");
  const std::lock_guard<std::mutex> alone(one_launch_at_a_time);
  Block b;
  b.threads = std::vector<Thread>(threads);
  b.shared.resize(shared);
  b.mail.resize(12 * threads);
  b.grid = grid;
  b.dice.seed(seed);
  b.body = [&] { kernel(arguments...); };
  block = &b;
  for (unsigned z = 0; z < grid.z; ++z) {
    for (unsigned y = 0; y < grid.y; ++y) {
      for (unsigned x = 0; x < grid.x; ++x) {
        b.index = dim3(x, y, z);
        run_block(b);
        if (!b.error.empty()) {
          block = nullptr;
          throw std::runtime_error("simulated GPU: " + b.error);
        }
      }
    }
  }
  block = nullptr;
}

}  // namespace coalign::cuda

// The tests choose the order by these.
extern "C" inline __attribute__((used, visibility("default"))) void coalign_simulate(int order, uint64_t seed) {
  simulator::order = static_cast<simulator::Order>(order);
  simulator::seed = seed;
}
