// How many threads, and how many rows a block, the norms take: the host's part, without torch.
#pragma once

#include <algorithm>
#include <initializer_list>

#include "norm.cuh"

namespace lk {

// Of a block for rows of so many columns: two vectors a thread, where a warp and the most that a block has allow it.
inline int norm_threads(int64_t hidden, int most) {
    const int64_t warps = (hidden + 2 * kNormVector * kWarpSize - 1) / (2 * kNormVector * kWarpSize);
    return int(std::clamp<int64_t>(warps, 1, most / kWarpSize)) * kWarpSize;
}

// Rows of a block on the way back: enough blocks to fill any device twice, and each keeps the means of few rows where these
// do not fit into registers.
inline int64_t norm_block_rows(int64_t rows, int64_t hidden, int64_t columns_in_registers) {
    constexpr int64_t kBlocks = 528;
    const int64_t share = std::max<int64_t>(1, (rows + kBlocks - 1) / kBlocks);
    return hidden > columns_in_registers ? std::min<int64_t>(share, kNormMeans) : share;
}
template <class S> int64_t norm_columns_in_registers(int threads) {
    return int64_t(threads) * kNormVector * kBackwardVectors<S>;
}

// Whether every address and every distance of rows, and hidden with them, is a multiple of eight elements or of 16 bytes.
inline bool norm_aligned(int64_t hidden, int64_t element_size, std::initializer_list<NormMatrix> matrices,
                         std::initializer_list<const void*> vectors) {
    bool aligned = hidden % kNormVector == 0;
    for (const NormMatrix& m : matrices)
        aligned = aligned && !((uintptr_t(m.data) | uintptr_t(m.data ? m.stride * element_size : 0)) % sizeof(uint4));
    for (const void* v : vectors)
        aligned = aligned && uintptr_t(v) % sizeof(uint4) == 0;
    return aligned;
}
template <class X> bool norm_aligned(const NormForward& a) {
    return norm_aligned(a.hidden, sizeof(X), {a.x, a.update, a.update2, a.normed, a.normed2, a.stream},
                        {a.weight.data, a.weight2.data});
}
template <class X> bool norm_aligned(const NormBackward& a) {
    return norm_aligned(a.hidden, sizeof(X), {a.grad_normed, a.grad_normed2, a.grad_stream, a.stream, a.grad_x},
                        {a.weight.data, a.weight2.data, a.partials, a.partials2});
}

// run(X(), O()) with the types of x and of normed: the wider of x's and the arithmetic's where the weight asks for it.
template <class F> void with_norm_types(DType x, bool wide_normed, const F& run) {
    switch (x) {
    case DType::kFloat:
        return run(float(), float());
    case DType::kBFloat16:
        return wide_normed ? run(bf16(), float()) : run(bf16(), bf16());
    case DType::kHalf:
        return wide_normed ? run(f16(), float()) : run(f16(), f16());
    case DType::kDouble:
        return run(double(), double());
    }
}

} // namespace lk
