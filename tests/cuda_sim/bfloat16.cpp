// The kernels for bfloat16: see ops.cpp.
#define SIMULATED_GPU
#include "cuda/bfloat16.cu"
