// The kernels for float32, on tensor cores and without.
#include "route.cuh"

namespace coalign::cuda {

COMPILE_ROUTES(Tf32);
COMPILE_ROUTES(Simt<float>);

}  // namespace coalign::cuda
