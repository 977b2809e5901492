// The kernels for float16, on tensor cores and without.
#include "route.cuh"

namespace coalign::cuda {

COMPILE_ROUTES(Mma16<Float16>);
COMPILE_ROUTES(Simt<Float16>);

}  // namespace coalign::cuda
