// Fetching the next pair's rows while this one's are multiplied: at these sizes a pair takes hardly longer to
// compute than to read, and the processor's own prefetching starts anew with each of its four operands. The lines that
// will be written are fetched too, for a store waits for the rest of its line.
#pragma once

#include <algorithm>
#include <cstddef>

namespace coalign {

class Ahead {
 public:
  // Adjacent bytes that will be read.
  void want(const void* from, std::size_t bytes) { add(from, bytes, false); }

  // Adjacent bytes that will be written.
  void want_to_write(void* to, std::size_t bytes) { add(to, bytes, true); }

  // How often `step` will be called: each call fetches its share, as evenly as the work goes on, for memory answers so
  // many requests at a time and others wait.
  void spread(std::size_t steps) { share_ = steps == 0 ? lines_ : (lines_ + steps - 1) / steps; }

  void step() {
    for (std::size_t left = share_; left > 0 && at_ < count_;) {
      Range& range = ranges_[at_];
      const std::size_t n = std::min(left, range.lines);
      const char* to = range.from + n * kLine;
      if (range.written) {
        for (; range.from < to; range.from += kLine) __builtin_prefetch(range.from, 1, 1);
      } else {
        for (; range.from < to; range.from += kLine) __builtin_prefetch(range.from, 0, 1);
      }
      left -= n;
      range.lines -= n;
      if (range.lines == 0) ++at_;
    }
  }

 private:
  static constexpr std::size_t kLine = 64, kMost = 10;
  struct Range {
    const char* from;
    std::size_t lines;
    bool written;
  };

  void add(const void* from, std::size_t bytes, bool written) {
    if (bytes == 0 || count_ == kMost) return;
    ranges_[count_++] = {static_cast<const char*>(from), (bytes + kLine - 1) / kLine, written};
    lines_ += ranges_[count_ - 1].lines;
  }

  Range ranges_[kMost];
  std::size_t count_ = 0, at_ = 0, lines_ = 0, share_ = 0;
};

}  // namespace coalign
