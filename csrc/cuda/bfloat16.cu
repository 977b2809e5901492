// The kernels for bfloat16, on tensor cores and without.
#include "route.cuh"

namespace coalign::cuda {

COMPILE_ROUTES(Mma16<BFloat16>);
COMPILE_ROUTES(Simt<BFloat16>);

}  // namespace coalign::cuda
