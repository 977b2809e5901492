// A fiber: a function on a stack of its own, which pauses and is resumed. On x86-64 by hand, since ucontext makes a
// system call at every switch and a simulated product switches 32 times.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#if defined(__x86_64__)

// Save the callee's registers on this stack, its place in *from, and go on where another stack left off.
asm(R"(
.text
.type coalign_switch_stacks,@function
coalign_switch_stacks:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size coalign_switch_stacks,.-coalign_switch_stacks
)");
extern "C" __attribute__((visibility("hidden"))) void coalign_switch_stacks(void** from, void* to);

class Fiber {
 public:
  void start(void (*entry)()) {
    if (stack_ == nullptr) stack_ = std::make_unique<unsigned char[]>(kStack);
    auto* top = reinterpret_cast<uint64_t*>(reinterpret_cast<uintptr_t>(stack_.get() + kStack - 64) & ~uintptr_t{15});
    top[0] = reinterpret_cast<uint64_t>(entry);  // where `ret` goes, after the six registers below it
    own_ = top - 6;
  }
  void resume() { coalign_switch_stacks(&outside_, own_); }
  void pause() { coalign_switch_stacks(&own_, outside_); }

 private:
  static constexpr size_t kStack = 128 * 1024;
  std::unique_ptr<unsigned char[]> stack_;
  void *own_ = nullptr, *outside_ = nullptr;
};

#else
#include <ucontext.h>

class Fiber {
 public:
  void start(void (*entry)()) {
    if (stack_ == nullptr) stack_ = std::make_unique<unsigned char[]>(kStack);
    getcontext(&own_);
    own_.uc_stack.ss_sp = stack_.get();
    own_.uc_stack.ss_size = kStack;
    own_.uc_link = nullptr;
    makecontext(&own_, entry, 0);
  }
  void resume() { swapcontext(&outside_, &own_); }
  void pause() { swapcontext(&own_, &outside_); }

 private:
  static constexpr size_t kStack = 256 * 1024;
  std::unique_ptr<unsigned char[]> stack_;
  ucontext_t own_, outside_;
};

#endif
