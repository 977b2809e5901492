// The frozen model's operators as CPU operators: see ops.cpp.
#define SIMULATED_GPU
#define DISPATCH_KEY CPU
#include "cuda/frozen.cu"
