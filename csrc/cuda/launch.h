// What every launcher needs: the device and the stream of the call, and an error where a launch fails.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/Exception.h>

namespace lk {

// Makes a device the current one while it lives; `stream` is torch's current stream there.
struct OnDevice {
    torch::stable::accelerator::DeviceGuard guard;
    cudaStream_t stream;
    explicit OnDevice(int32_t device) : guard(checked(device)) {
        void* current = nullptr;
        // torch's own macro for this came after 2.11.
        STD_TORCH_CHECK(aoti_torch_get_current_cuda_stream(device, &current) == AOTI_TORCH_SUCCESS,
                        "torch gave no CUDA stream");
        stream = static_cast<cudaStream_t>(current);
    }
    // Before torch asks the driver, whose answer to a CPU tensor would say nothing of it.
    static int32_t checked(int32_t device) {
        STD_TORCH_CHECK(device >= 0, "ladderkern's CUDA kernels take tensors on a CUDA device, got one on the CPU");
        return device;
    }
};

inline void check_launch(const char* op) {
    const cudaError_t error = cudaGetLastError();
    STD_TORCH_CHECK(error == cudaSuccess, op, " could not launch its CUDA kernel: ", cudaGetErrorString(error));
}

} // namespace lk
