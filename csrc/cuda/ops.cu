// The operators that kernels/native/cuda.py calls, on LibTorch's stable ABI. Arguments are checked by
// kernels/api.py.
//
// The caller passes the stream, so that no shim is needed that only a CUDA build of torch has, and what the device
// can do (`arithmetic`, `shared`), so that the simulator can be any device.

#include <tuple>
#include <vector>

#include "../boxed.h"
#include "plan.cuh"
#include "tensors.cuh"

namespace coalign::cuda {
namespace {

// How many bytes of a row may be copied at once: what its address and every stride are a multiple of.
template <class S>
int copy_step(const Tensor& t) {
  uint64_t common = reinterpret_cast<uint64_t>(t.data_ptr());
  for (int64_t dim = 0; dim + 1 < t.dim(); ++dim) common |= static_cast<uint64_t>(t.stride(dim)) * sizeof(S);
  return step_of(common);
}

template <class S>
Matrix<S> matrix(const Tensor& t) {
  const int64_t dims = t.dim();
  return {
      data<const S>(t), dims > 2 ? t.stride(0) : 0, dims > 3 ? t.stride(1) : 0, t.stride(dims - 2),
      dims > 3 ? static_cast<int>(t.size(1)) : 1, static_cast<int>(t.size(dims - 1)), copy_step<S>(t)};
}

Extent extent_of(const Maybe& extent, int64_t kind, int64_t length) {
  const bool wide = extent.has_value() && extent->scalar_type() == ScalarType::Long;
  return {extent.has_value() ? extent->data_ptr() : nullptr, static_cast<int>(kind), wide, static_cast<int>(length)};
}

Bias bias_of(const Maybe& bias) {
  if (!bias.has_value()) return {nullptr, 0, 0, 0, 0, 1, false};
  const int64_t dims = bias->dim();
  return {
      bias->data_ptr(), dims > 2 ? bias->stride(0) : 0, dims > 3 ? bias->stride(1) : 0, bias->stride(dims - 2),
      bias->stride(dims - 1), dims > 3 ? static_cast<int>(bias->size(1)) : 1,
      bias->scalar_type() == ScalarType::Float};
}

Rule rule_of(
    double scale, std::optional<double> clamp, double dropout_a, double dropout_b, const Maybe& seed) {
  return {
      static_cast<float>(scale), clamp.has_value() ? static_cast<float>(*clamp) : INFINITY,
      seed.has_value() ? data<const int64_t>(*seed) : nullptr, {least_kept(dropout_a), least_kept(dropout_b)},
      {static_cast<float>(kept_factor(dropout_a)), static_cast<float>(kept_factor(dropout_b))}, false};
}

// f(M{}) for the arithmetic that serves operands of this type.
template <class F>
void with_arithmetic(ScalarType type, int64_t arithmetic, F&& f) {
  const bool tensor_cores = arithmetic == kTensorCores;
  if (type == ScalarType::Float) return tensor_cores ? f(Tf32{}) : f(Simt<float>{});
  if (type == ScalarType::BFloat16) return tensor_cores ? f(Mma16<BFloat16>{}) : f(Simt<BFloat16>{});
  return tensor_cores ? f(Mma16<Float16>{}) : f(Simt<Float16>{});
}

std::tuple<Tensor, Tensor, Tensor, Tensor> forward(
    Tensor f_a, Tensor f_b, Tensor a, Tensor b, Maybe extent_a, Maybe extent_b, int64_t kind_a, int64_t kind_b,
    int64_t length_a, int64_t length_b, int64_t pairs, Maybe bias, double scale,
    std::optional<double> clamp, double dropout_a, double dropout_b, Maybe seed, int64_t arithmetic, int64_t shared,
    int64_t stream) {
  auto like = [](const Tensor& f, const Tensor& other) {
    std::vector<int64_t> shape(f.sizes().begin(), f.sizes().end());
    shape.back() = other.size(other.dim() - 1);
    return new_empty(f, shape);
  };
  auto lse = [](const Tensor& f) {
    return new_empty(f, std::vector<int64_t>(f.sizes().begin(), f.sizes().end() - 1), ScalarType::Float);
  };
  const auto guard = on_device_of(f_a);
  const Tensor beta = like(f_a, b), alpha = like(f_b, a), lse_a = lse(f_a), lse_b = lse(f_b);
  if (pairs == 0) return {beta, alpha, lse_a, lse_b};
  const Plan plan{pairs, length_a, length_b, arithmetic, shared, stream};
  with_arithmetic(f_a.scalar_type(), arithmetic, [&](auto math) {
    using M = decltype(math);
    using S = typename M::S;
    Call<S> call{};
    call.a = {extent_of(extent_a, kind_a, length_a), matrix<S>(f_a), matrix<S>(a), data<S>(beta), data<float>(lse_a)};
    call.b = {extent_of(extent_b, kind_b, length_b), matrix<S>(f_b), matrix<S>(b), data<S>(alpha), data<float>(lse_b)};
    call.bias = bias_of(bias);
    call.rule = rule_of(scale, clamp, dropout_a, dropout_b, seed);
    forward_on<M>(plan, call);
  });
  return {beta, alpha, lse_a, lse_b};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> backward(
    Tensor f_a, Tensor f_b, Tensor a, Tensor b, Maybe extent_a, Maybe extent_b, int64_t kind_a, int64_t kind_b,
    int64_t length_a, int64_t length_b, int64_t pairs, Maybe bias, double scale,
    std::optional<double> clamp, double dropout_a, double dropout_b, Maybe seed, int64_t arithmetic, int64_t shared,
    int64_t stream, Tensor beta, Tensor alpha, Tensor lse_a, Tensor lse_b, Tensor dbeta, Tensor dalpha, Maybe dlse_a,
    Maybe dlse_b, Maybe dbias) {
  const auto guard = on_device_of(f_a);
  const Tensor df_a = new_empty(f_a, f_a.sizes()), df_b = new_empty(f_b, f_b.sizes());
  const Tensor da = new_empty(a, a.sizes()), db = new_empty(b, b.sizes());
  if (pairs == 0) return {df_a, df_b, da, db};
  const Plan plan{pairs, length_a, length_b, arithmetic, shared, stream};
  with_arithmetic(f_a.scalar_type(), arithmetic, [&](auto math) {
    using M = decltype(math);
    using S = typename M::S;
    std::optional<Tensor> delta_a, delta_b;
    if (needs_deltas<M>(plan)) {
      delta_a = new_empty(lse_a, lse_a.sizes());
      delta_b = new_empty(lse_b, lse_b.sizes());
    }
    auto maybe = [](const Maybe& t) { return t.has_value() ? data<float>(*t) : nullptr; };
    Call<S> call{};
    call.a = {extent_of(extent_a, kind_a, length_a), matrix<S>(f_a), matrix<S>(a), nullptr, data<float>(lse_a),
              matrix<S>(beta), matrix<S>(dbeta), maybe(dlse_a), maybe(delta_a), data<S>(df_a), data<S>(da)};
    call.b = {extent_of(extent_b, kind_b, length_b), matrix<S>(f_b), matrix<S>(b), nullptr, data<float>(lse_b),
              matrix<S>(alpha), matrix<S>(dalpha), maybe(dlse_b), maybe(delta_b), data<S>(df_b), data<S>(db)};
    call.bias = bias_of(bias);
    call.dbias = maybe(dbias);
    call.rule = rule_of(scale, clamp, dropout_a, dropout_b, seed);
    backward_on<M>(plan, call);
  });
  return {df_a, df_b, da, db};
}

}  // namespace
}  // namespace coalign::cuda

#define OPERANDS_SCHEMA                                                                                      \
  "Tensor f_a, Tensor f_b, Tensor a, Tensor b, Tensor? extent_a, Tensor? extent_b, int kind_a, int kind_b, " \
  "int length_a, int length_b, int pairs, Tensor? bias, float scale, float? clamp, float dropout_a, "        \
  "float dropout_b, Tensor? seed, int arithmetic, int shared, int stream"

STABLE_TORCH_LIBRARY(coalign_cuda, m) {
  m.def("forward(" OPERANDS_SCHEMA ") -> (Tensor, Tensor, Tensor, Tensor)");
  m.def("backward(" OPERANDS_SCHEMA
        ", Tensor beta, Tensor alpha, Tensor lse_a, Tensor lse_b, Tensor dbeta, Tensor dalpha, Tensor? dlse_a, "
        "Tensor? dlse_b, Tensor(a!)? dbias) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(coalign_cuda, DISPATCH_KEY, m) {
  m.impl("forward", EXPLAINED(&coalign::cuda::forward));
  m.impl("backward", EXPLAINED(&coalign::cuda::backward));
}
