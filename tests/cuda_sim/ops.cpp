// The operators of csrc/cuda as CPU operators: the very same source, and simulator.h for a GPU.
#define SIMULATED_GPU
#define DISPATCH_KEY CPU
#include "cuda/ops.cu"
