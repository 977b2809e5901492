// The kernels for float32: see ops.cpp.
#define SIMULATED_GPU
#include "cuda/float32.cu"
