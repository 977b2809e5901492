// Kernels as the dispatcher calls them. Where one of PyTorch's own functions fails inside of one, as for want of memory,
// the stable ABI of PyTorch 2.11 says which call it was; versions from 2.13 on can be asked for the reason.
#pragma once

#include <dlfcn.h>
#include <torch/csrc/stable/library.h>

#include <cstring>
#include <stdexcept>

namespace coalign {

template <void (*Kernel)(StableIValue*, uint64_t, uint64_t)>
void explained(StableIValue* stack, uint64_t arguments, uint64_t outputs) {
  try {
    Kernel(stack, arguments, outputs);
  } catch (const std::runtime_error& error) {
    if (std::strstr(error.what(), "API call failed") == nullptr) throw;
    using Reason = const char* (*)();
    const auto reason = reinterpret_cast<Reason>(dlsym(RTLD_DEFAULT, "torch_exception_get_what_without_backtrace"));
    if (reason == nullptr) throw;
    throw std::runtime_error(reason());
  }
}

}  // namespace coalign

#define EXPLAINED(function) &coalign::explained<TORCH_BOX(function)>
