// Memory for one pair's work, taken in order and given back all at once; each thread keeps its own.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace coalign {

class Arena {
 public:
  // Empty again; what the last pair needed beyond the main block is part of it from now on.
  static Arena& of_this_thread() {
    thread_local Arena arena;
    arena.extra_.clear();
    const std::size_t wanted = std::exchange(arena.wanted_, 0);  // once: where there is too little, less may do next time
    arena.used_ = arena.taken_ = 0;
    if (wanted > arena.size_) {
      arena.main_ = allocate(wanted);
      arena.size_ = wanted;
    }
    return arena;
  }

  // What is taken from now on, until `release` gives it back.
  struct Mark {
    std::size_t used, taken;
  };
  Mark mark() const { return {used_, taken_}; }
  void release(const Mark& mark) {
    used_ = mark.used;
    taken_ = mark.taken;
  }

  // Uninitialised room for so many values, aligned to a cache line.
  template <class T>
  T* take(std::size_t count) {
    const std::size_t bytes = (count * sizeof(T) + 64) / 64 * 64;
    if (used_ + bytes > size_) {
      extra_.push_back(allocate(bytes));
      want(bytes);
      return reinterpret_cast<T*>(extra_.back().get());
    }
    want(bytes);
    used_ += bytes;
    return reinterpret_cast<T*>(main_.get() + used_ - bytes);
  }

 private:
  struct Free {
    void operator()(std::byte* p) const { std::free(p); }
  };
  using Block = std::unique_ptr<std::byte, Free>;

  void want(std::size_t bytes) {
    taken_ += bytes;
    wanted_ = std::max(wanted_, taken_);
  }

  static Block allocate(std::size_t bytes) {
    auto* p = static_cast<std::byte*>(std::aligned_alloc(64, bytes));
    if (p == nullptr) throw std::runtime_error("not enough memory: tried to allocate " + std::to_string(bytes) + " bytes");
    return Block(p);
  }

  Block main_;
  std::vector<Block> extra_;
  std::size_t size_ = 0, used_ = 0, taken_ = 0, wanted_ = 0;
};

}  // namespace coalign
