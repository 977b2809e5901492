// Fetching the next pair's rows while this one's are multiplied: at these sizes a pair takes hardly longer to
// compute than to read, and the processor's own prefetching starts anew with each of its four operands.
#pragma once

#include <algorithm>
#include <cstddef>

namespace coalign {

class Ahead {
 public:
  // Adjacent bytes that will be read.
  void want(const void* from, std::size_t bytes) {
    if (bytes == 0 || count_ == kMost) return;
    ranges_[count_++] = {static_cast<const char*>(from), (bytes + kLine - 1) / kLine};
    lines_ += ranges_[count_ - 1].lines;
  }

  // How often `step` will be called: each call fetches its share.
  void spread(std::size_t steps) { share_ = steps == 0 ? lines_ : (lines_ + steps - 1) / steps; }

  void step() {
    for (std::size_t left = share_; left > 0 && at_ < count_;) {
      Range& range = ranges_[at_];
      const std::size_t n = std::min(left, range.lines);
      for (std::size_t i = 0; i < n; ++i, range.from += kLine) __builtin_prefetch(range.from, 0, 1);
      left -= n;
      range.lines -= n;
      if (range.lines == 0) ++at_;
    }
  }

 private:
  static constexpr std::size_t kLine = 64, kMost = 8;
  struct Range {
    const char* from;
    std::size_t lines;
  };

  Range ranges_[kMost];
  std::size_t count_ = 0, at_ = 0, lines_ = 0, share_ = 0;
};

}  // namespace coalign
