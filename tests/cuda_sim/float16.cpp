// The kernels for float16: see ops.cpp.
#define SIMULATED_GPU
#include "cuda/float16.cu"
