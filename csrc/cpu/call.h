// A call's tensors as the kernels see them: pairs of row lists, in the type that is computed in.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "align.h"
#include "tensors.h"

namespace coalign {

// (pairs, rows, width) of some tensor: one or two batch dimensions, or packed rows (total, width).
template <class S>
struct Rows {
  S* data;
  int64_t outer, inner, heads, row;
  int width;

  explicit Rows(const Tensor& t)
      : data(static_cast<S*>(t.data_ptr())),
        outer(t.dim() > 2 ? t.stride(0) : 0),
        inner(t.dim() > 3 ? t.stride(1) : 0),
        heads(t.dim() > 3 ? t.size(1) : 1),
        row(t.stride(t.dim() - 2)),
        width(as_int(t.size(t.dim() - 1))) {}

  // Rows from data on, adjacent or so far apart.
  Rows(S* data, int width) : Rows(data, width, width) {}
  Rows(S* data, int width, int64_t row) : data(data), outer(0), inner(0), heads(1), row(row), width(width) {}

  // Wants the so many rows from index on, if they are adjacent.
  void want(int64_t pair, int64_t index, int count, Ahead& ahead) const {
    if (row == width) ahead.want(at(pair, index), sizeof(S) * width * count);
  }

  S* at(int64_t pair, int64_t index) const { return data + pair / heads * outer + pair % heads * inner + index * row; }
};

// Which rows of a pair are tokens: all of them, or what `extent` says, a contiguous tensor of a mask (*batch, rows),
// of lengths (*batch), or of offsets (pairs + 1) where the rows f of the operands are packed.
class Extent {
 public:
  Extent(const Maybe& extent, const Tensor& f)
      : kind_(kind_of(extent, f)),
        wide_(kind_ != Kind::full && extent->scalar_type() == ScalarType::Long),
        data_(kind_ == Kind::full ? nullptr : extent->data_ptr()),
        length_(as_int(f.size(f.dim() - 2))),
        pairs_(packed() ? extent->size(0) - 1 : 1) {
    for (int64_t i = 0; !packed() && i < f.dim() - 2; ++i) pairs_ *= f.size(i);
  }

  int64_t pairs() const { return pairs_; }
  // Rows of the longest pair, or more; on average, where they are packed.
  int64_t length() const { return packed() ? length_ / std::max<int64_t>(pairs_, 1) : length_; }
  bool packed() const { return kind_ == Kind::offsets; }

  // Rows that a pair has in the outputs, padding included, and the first of them.
  int stored(int64_t pair) const { return packed() ? static_cast<int>(number(pair + 1) - number(pair)) : length_; }
  int64_t first(int64_t pair) const { return packed() ? number(pair) : pair * length_; }
  // The first row in the operands.
  int64_t start(int64_t pair) const { return packed() ? number(pair) : 0; }

  // So many of the stored rows hold all tokens; the cheap answer.
  int reach(int64_t pair) const { return kind_ == Kind::lengths ? static_cast<int>(number(pair)) : stored(pair); }

  // The tokens' places among the stored rows; index has room for all of those.
  int tokens(int64_t pair, int* index) const {
    int count = 0;
    if (kind_ == Kind::mask) {
      const uint8_t* mask = static_cast<const uint8_t*>(data_) + pair * length_;  // any byte but 0 is true
      for (int i = 0; i < length_; ++i) {
        index[count] = i;
        count += mask[i] != 0;
      }
      return count;
    }
    count = reach(pair);
    for (int i = 0; i < count; ++i) index[i] = i;
    return count;
  }

 private:
  enum class Kind { full, mask, lengths, offsets };

  static Kind kind_of(const Maybe& extent, const Tensor& f) {
    if (!extent.has_value()) return Kind::full;
    if (extent->scalar_type() == ScalarType::Bool) return Kind::mask;
    return f.dim() == 2 ? Kind::offsets : Kind::lengths;
  }

  int64_t number(int64_t i) const {
    return wide_ ? static_cast<const int64_t*>(data_)[i] : static_cast<const int32_t*>(data_)[i];
  }

  Kind kind_;
  bool wide_;
  const void* data_;
  int length_;
  int64_t pairs_;
};

// Whether a side's lengths lie between 0 and `length`; or its offsets start at 0, never fall, end at `total` and span
// `length` rows at most. Masks always fit.
inline bool extent_fits(const Maybe& extent, bool packed, int64_t length, int64_t total) {
  if (!extent.has_value() || extent->scalar_type() == ScalarType::Bool) return true;
  if (extent->numel() == 0) return !packed;  // lengths of no pairs; offsets are one at least
  const int64_t count = extent->numel();
  auto fits = [&](const auto* at) {
    bool good = !packed || (at[0] == 0 && at[count - 1] == total);
    for (int64_t i = packed; i < count; ++i) {
      const int64_t rows = packed ? static_cast<int64_t>(at[i]) - at[i - 1] : at[i];
      good &= 0 <= rows && rows <= length;
    }
    return good;
  };
  return extent->scalar_type() == ScalarType::Long ? fits(data<int64_t>(*extent)) : fits(data<int32_t>(*extent));
}

// What a pass does with an operand: contracts its rows, or weighs and sums them, or both.
enum class Use { contract, sum, both };

// Two rows of bfloat16 (the second one may be missing) as one of pairs.
inline void interleave(
    const BFloat16* __restrict first, const BFloat16* __restrict second, int width, Pair* __restrict out) {
  if (second == nullptr) {
    for (int d = 0; d < width; ++d) out[d] = first[d].bits;
  } else {
    for (int d = 0; d < width; ++d) out[d] = first[d].bits | (Pair)second[d].bits << 16;
  }
}

// One operand's tokens in some pair, as elements to compute with: where they lie if they can be used as they are.
template <class S, class E = Element<S>>
Operand<E> read_operand(
    const Rows<S>& from, int64_t pair, int64_t start, const int* index, int count, Use use, Arena& arena) {
  auto at = [&](int i) { return from.at(pair, start + index[i]); };
  Operand<E> out{nullptr, nullptr, from.width};
  if (kPer<E> == 1 || use != Use::sum) {
    const E** rows = arena.take<const E*>(count);
    const int length = out.elements();
    const bool fits = std::is_same_v<S, E> || (kPer<E> == 2 && from.width % 2 == 0);
    E* room = fits ? nullptr : arena.take<E>(static_cast<std::size_t>(count) * length);
    for (int i = 0; i < count; ++i, room += length) {
      rows[i] = fits ? reinterpret_cast<const E*>(at(i)) : room;
      if constexpr (kPer<E> == 2) {
        if (!fits) std::memcpy(room, at(i), sizeof(S) * from.width);
        if (!fits) room[length - 1] &= 0xffff;
      } else if constexpr (!std::is_same_v<S, E>) {
        widen_row(at(i), length, room);
      }
    }
    out.rows = rows;
  }
  if constexpr (kPer<E> == 1) {
    out.terms = out.rows;
  } else if (use != Use::contract) {
    const int terms = (count + 1) / 2;
    const E** rows = arena.take<const E*>(terms);
    E* room = arena.take<E>(static_cast<std::size_t>(terms) * from.width);
    for (int i = 0; i < terms; ++i, room += from.width) {
      interleave(at(2 * i), 2 * i + 1 < count ? at(2 * i + 1) : nullptr, from.width, room);
      rows[i] = room;
    }
    out.terms = rows;
  }
  return out;
}

// Rows of a contiguous output, to be written in the type that is computed in; `finish` brings them home and zeroes
// the padding between them.
template <class S>
class Written {
 public:
  using T = Compute<S>;

  // large: the whole output outgrows the caches.
  Written(S* data, int width, const int* index, int count, bool large, Arena& arena)
      : data_(data),
        width_(width),
        large_(large),
        index_(index),
        rows_(arena.take<T*>(count)) {
    T* room = nullptr;
    if constexpr (!std::is_same_v<S, T>) room = arena.take<T>(static_cast<std::size_t>(count) * width);
    for (int i = 0; i < count; ++i) {
      if constexpr (std::is_same_v<S, T>) {
        rows_[i] = home(index[i]);
      } else {
        rows_[i] = room + static_cast<std::size_t>(i) * width;
      }
    }
  }

  T* const* rows() const { return rows_; }

  // The tokens `done` were written; stored rows from `from` to `to` that are not among them become 0.
  void finish(const Range& done, int from, int to) const {
    for (int i = done.begin; i < done.end; ++i) {
      clear(from, index_[i]);
      if constexpr (!std::is_same_v<S, T>) narrow_row(rows_[i], width_, home(index_[i]));
      from = index_[i] + 1;
    }
    clear(from, to);
  }

 private:
  void clear(int from, int to) const {
    if (from >= to) return;
    const std::size_t bytes = sizeof(S) * width_ * (to - from);
    if (large_) {
      clear_streaming(home(from), bytes);
    } else {
      std::memset(static_cast<void*>(home(from)), 0, bytes);
    }
  }

  S* home(int at) const { return data_ + static_cast<std::size_t>(at) * width_; }

  S* data_;
  int width_;
  bool large_;
  const int* index_;
  T** rows_;
};

}  // namespace coalign
