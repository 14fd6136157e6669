// Whether the driver of this machine can run what is compiled here, asked once, before any op is registered.
#include "library.h"

#include <cuda_runtime.h>

#include <cstdio>

namespace {

// Empty, or why not. Without a driver nothing runs on a GPU anyway: the ops are there, and say so when they are called.
const char* reason() {
    static char text[96] = "";
    static const bool asked = [] {
        int driver = 0;
        if (cudaDriverGetVersion(&driver) == cudaSuccess && driver && driver < CUDART_VERSION)
            snprintf(text, sizeof text, "the driver serves CUDA %d.%d, the library is built with %d.%d", driver / 1000,
                     driver / 10 % 100, CUDART_VERSION / 1000, CUDART_VERSION / 10 % 100);
        return true;
    }();
    return asked ? text : nullptr;
}

} // namespace

namespace lk {

bool driver_serves() { return !*reason(); }

} // namespace lk

extern "C" __attribute__((visibility("default"))) const char* ladderkern_cuda_reason() { return reason(); }
extern "C" __attribute__((visibility("default"))) int ladderkern_cuda_version() { return CUDART_VERSION; }
