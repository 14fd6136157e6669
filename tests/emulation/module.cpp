// The CUDA kernels of csrc/cuda as functions on NumPy buffers, and a few faulty kernels, on which the shim itself is tested.
#include "module.h"

#include "cuda/device.h"

namespace {

using emulation::Bytes;
using emulation::Memory;
namespace py = pybind11;

// out[i] = in[n - 1 - i] through shared memory.
template <bool Wait> __global__ void reverse(const float* in, float* out) {
    LK_SHARED(float[256], numbers);
    const int i = int(threadIdx.x), n = int(blockDim.x);
    numbers[i] = in[i];
    if (Wait)
        __syncthreads();
    out[i] = numbers[n - 1 - i];
}

// The sum over a warp to every lane, by way of shared memory that is used again in each round.
template <bool Wait> __global__ void sum_in_rounds(const float* in, float* out) {
    LK_SHARED(float[256], numbers);
    const int i = int(threadIdx.x), n = int(blockDim.x);
    float sum = in[i];
    for (int half = 1; half < n; half *= 2) {
        numbers[i] = sum;
        __syncthreads();
        sum += numbers[i ^ half];
        if (Wait)
            __syncthreads(); // before the next round overwrites what a neighbour has not read
    }
    out[i] = sum;
}

__global__ void sum_by_shuffles(const float* in, float* out) {
    float sum = in[threadIdx.x];
    for (int lanes = 16; lanes; lanes /= 2)
        sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    out[threadIdx.x] = sum;
}

__global__ void sum_by_atomics(const float* in, float* out) { atomicAdd(out, in[blockIdx.x * blockDim.x + threadIdx.x]); }

__global__ void write_at(float* out, int64_t place) {
    if (threadIdx.x == 0)
        out[place] = 1.0f;
}
__global__ void read_at(const float* in, float* out, int64_t place) {
    if (threadIdx.x == 0)
        out[0] = in[place];
}
__global__ void write_shared(int place) {
    LK_SHARED(float[256], numbers);
    numbers[place] = 1.0f;
}
__global__ void load_vector(const float* in, float* out, int64_t place) {
    if (threadIdx.x == 0)
        lk::load_elements<4>(in, place, out);
}

__global__ void leave_early() {
    if (threadIdx.x == 5)
        return;
    __syncthreads();
}
__global__ void two_barriers() {
    if (threadIdx.x < 7)
        __syncthreads();
    else
        __syncthreads();
}
__global__ void shuffle_without_a_lane() {
    if (threadIdx.x != 3)
        __shfl_xor_sync(0xffffffffu, 1.0f, 1);
}
__global__ void shuffle_at_two_places() {
    if (threadIdx.x < 16)
        __shfl_sync(0xffffffffu, 1.0f, 0);
    else
        __shfl_sync(0xffffffffu, 1.0f, 0);
}
__global__ void shuffle_from_outside() { __shfl_sync(0x3u, 1.0f, 2); }
__global__ void shuffle_instead_of_a_barrier() {
    if (threadIdx.x < 32)
        __shfl_sync(0xffffffffu, 1.0f, 0);
    else
        __syncthreads();
    __syncthreads();
}

void one_block(const std::string& name, int threads, const Bytes& in, const Bytes& out, int64_t place) {
    Memory memory;
    const float* p_in = memory.of<const float>(in, "in");
    float* p_out = memory.of<float>(out, "out");
    const auto run = [&](const char* kernel, const auto& body) {
        if (name == kernel)
            emulation::launch(kernel, 1, threads, body);
    };
    run("reverse", [&] { reverse<true>(p_in, p_out); });
    run("reverse, no barrier", [&] { reverse<false>(p_in, p_out); });
    run("sum in rounds", [&] { sum_in_rounds<true>(p_in, p_out); });
    run("sum in rounds, one barrier", [&] { sum_in_rounds<false>(p_in, p_out); });
    run("sum by shuffles", [&] { sum_by_shuffles(p_in, p_out); });
    run("write at", [&] { write_at(p_out, place); });
    run("read at", [&] { read_at(p_in, p_out, place); });
    run("write shared", [&] { write_shared(int(place)); });
    run("load vector", [&] { load_vector(p_in, p_out, place); });
    run("leave early", leave_early);
    run("two barriers", two_barriers);
    run("shuffle without a lane", shuffle_without_a_lane);
    run("shuffle at two places", shuffle_at_two_places);
    run("shuffle from outside", shuffle_from_outside);
    run("shuffle instead of a barrier", shuffle_instead_of_a_barrier);
    memory.write_back();
}

void sum_of_blocks(const Bytes& in, const Bytes& out, int64_t blocks, int threads) {
    Memory memory;
    const float* p_in = memory.of<const float>(in, "in");
    float* p_out = memory.of<float>(out, "out");
    emulation::launch("sum by atomics", blocks, threads, [&] { sum_by_atomics(p_in, p_out); });
    memory.write_back();
}

} // namespace

PYBIND11_MODULE(LK_EMULATION_MODULE, m) {
    m.def("seed", &emulation::seed);
    m.def("one_block", &one_block);
    m.def("sum_of_blocks", &sum_of_blocks);
    m.def("accounts", [] {
        py::dict all;
        for (const auto& [name, a] : emulation::machine.accounts)
            all[name.c_str()] = py::make_tuple(a.launches, a.blocks, a.threads, a.barriers, a.warp_operations);
        return all;
    });
    bind_spam(m);
    bind_norm(m);
    bind_prm(m);
}
