// A call's tensors as the kernels see them: pairs of row lists, in the type that is computed in.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <optional>

#include "align.h"

namespace coalign {

using torch::stable::Tensor;

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
        width(static_cast<int>(t.size(t.dim() - 1))) {}

  S* at(int64_t pair, int64_t index) const { return data + pair / heads * outer + pair % heads * inner + index * row; }
};

// Which rows of a pair are tokens: `kind` as in kernels/problem.py, the extent tensor contiguous.
class Extent {
 public:
  Extent(const std::optional<Tensor>& extent, int64_t kind, int64_t length)
      : kind_(kind),
        wide_(kind != 0 && extent->scalar_type() == torch::headeronly::ScalarType::Long),
        data_(kind == 0 ? nullptr : extent->data_ptr()),
        length_(static_cast<int>(length)) {}

  bool packed() const { return kind_ == 3; }
  int length() const { return length_; }

  // Rows that a pair has in the outputs, padding included, and the first of them.
  int stored(int64_t pair) const { return packed() ? static_cast<int>(number(pair + 1) - number(pair)) : length_; }
  int64_t first(int64_t pair) const { return packed() ? number(pair) : pair * length_; }
  // The first row in the operands.
  int64_t start(int64_t pair) const { return packed() ? number(pair) : 0; }

  // The tokens' places among the stored rows; index has room for all of those.
  int tokens(int64_t pair, int* index) const {
    int count = 0;
    if (kind_ == 1) {
      const bool* mask = static_cast<const bool*>(data_) + pair * length_;
      for (int i = 0; i < length_; ++i) {
        index[count] = i;
        count += mask[i];
      }
      return count;
    }
    count = kind_ == 2 ? static_cast<int>(number(pair)) : stored(pair);
    for (int i = 0; i < count; ++i) index[i] = i;
    return count;
  }

 private:
  int64_t number(int64_t i) const {
    return wide_ ? static_cast<const int64_t*>(data_)[i] : static_cast<const int32_t*>(data_)[i];
  }

  int64_t kind_;
  bool wide_;
  const void* data_;
  int length_;
};

// The tokens' rows of an operand, widened where memory holds half precision.
template <class S, class T = Compute<S>>
const T* const* read_rows(const Rows<S>& rows, int64_t pair, int64_t start, const int* index, int count, Arena& arena) {
  const T** out = arena.take<const T*>(count);
  T* room = nullptr;
  if constexpr (!std::is_same_v<S, T>) room = arena.take<T>(static_cast<std::size_t>(count) * rows.width);
  for (int i = 0; i < count; ++i) {
    const S* from = rows.at(pair, start + index[i]);
    if constexpr (std::is_same_v<S, T>) {
      out[i] = from;
    } else {
      T* to = room + static_cast<std::size_t>(i) * rows.width;
      for (int d = 0; d < rows.width; ++d) to[d] = widen(from[d]);
      out[i] = to;
    }
  }
  return out;
}

// Rows of a contiguous output, to be written in the type that is computed in; `finish` brings them home and zeroes
// the padding between them.
template <class S>
class Written {
 public:
  using T = Compute<S>;

  Written(S* data, int width, int stored, const int* index, int count, Arena& arena)
      : data_(data), width_(width), stored_(stored), count_(count), index_(index), rows_(arena.take<T*>(count)) {
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

  // aligned: whether the rows were written at all; if not, tokens have nothing to align with and get 0.
  void finish(bool aligned) const {
    const int kept = aligned ? count_ : 0;
    for (int i = 0, at = 0; at < stored_; ++at) {
      if (i < kept && index_[i] == at) {
        if constexpr (!std::is_same_v<S, T>) {
          for (int d = 0; d < width_; ++d) narrow(rows_[i][d], home(at) + d);
        }
        ++i;
      } else {
        std::memset(static_cast<void*>(home(at)), 0, sizeof(S) * width_);
      }
    }
  }

 private:
  S* home(int at) const { return data_ + static_cast<std::size_t>(at) * width_; }

  S* data_;
  int width_, stored_, count_;
  const int* index_;
  T** rows_;
};

}  // namespace coalign
