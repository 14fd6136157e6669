// What the SPAM bindings of every device ask of the tensors of a step, and how the tensors lie in memory.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <vector>

#include "../math/spam.h"

namespace lk {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// What is read of a tensor, once: each question to torch is a call across its C interface.
struct View {
    char* data;
    ScalarType type;
    int64_t numel, ndim;
    const int64_t *sizes, *strides;
    bool contiguous;

    explicit View(const Tensor& t)
        : data(static_cast<char*>(t.data_ptr())), type(t.scalar_type()), ndim(t.dim()), sizes(t.sizes().data()),
          strides(t.strides().data()) {
        STD_TORCH_CHECK(ndim <= 64, "tensors must have at most 64 dimensions, got ", ndim);
        numel = 1;
        contiguous = true;
        for (int64_t d = ndim - 1; d >= 0; --d) {
            contiguous = contiguous && (sizes[d] == 1 || strides[d] == numel);
            numel *= sizes[d];
        }
        contiguous = contiguous || numel == 0;
    }
    bool same_shape(const View& other) const { return ndim == other.ndim && std::equal(sizes, sizes + ndim, other.sizes); }
    // One place in memory stands for several elements, as expand() makes it.
    bool expanded() const {
        bool repeats = false;
        for (int64_t d = 0; d < ndim; ++d)
            repeats = repeats || (strides[d] == 0 && sizes[d] > 1);
        return repeats && numel > 0;
    }
    bool same_strides(const View& other) const { return std::equal(strides, strides + ndim, other.strides); }
};

// All elements of a dense tensor lie in one run of memory, in some order of the dimensions.
inline bool non_overlapping_and_dense(const View& t) {
    std::array<int64_t, 64> order{};
    int64_t n = 0;
    for (int64_t d = 0; d < t.ndim; ++d)
        if (t.sizes[d] != 1)
            order[n++] = d;
    std::sort(order.begin(), order.begin() + n, [&](int64_t a, int64_t b) { return t.strides[a] < t.strides[b]; });
    int64_t expected = 1;
    for (int64_t i = 0; i < n; ++i) {
        if (t.strides[order[i]] != expected)
            return false;
        expected *= t.sizes[order[i]];
    }
    return true;
}

// Whether the four tensors can be walked together in the order of memory: elementwise work that does not ask where an element
// is.
inline bool walks_in_memory_order(const View& p, const View& g, const View& m, const View& v) {
    return m.same_shape(p) && m.type != ScalarType::BFloat16 && p.same_strides(g) && p.same_strides(m) && p.same_strides(v) &&
           non_overlapping_and_dense(p);
}

// Moments that the kernels cannot walk are stepped as contiguous copies, and copied back.
struct Copies {
    Tensors targets, copies;
    Tensor of(const Tensor& moment) {
        targets.push_back(moment);
        copies.push_back(torch::stable::clone(torch::stable::contiguous(moment)));
        return copies.back();
    }
    void write_back() {
        for (size_t i = 0; i < targets.size(); ++i)
            torch::stable::copy_(targets[i], copies[i]);
    }
};

inline void check_lists(const Tensors& params, const Tensors& grads, const Tensors& exp_avgs, const Tensors& exp_avg_sqs,
                        const Tensors& steps, const std::vector<int64_t>& indices, const std::vector<int64_t>& placement,
                        int64_t density_16ths) {
    const size_t n = params.size();
    STD_TORCH_CHECK(grads.size() == n && exp_avgs.size() == n && exp_avg_sqs.size() == n && steps.size() == n &&
                        indices.size() == n,
                    "grads, exp_avgs, exp_avg_sqs, steps and indices must have one entry for each of the params");
    STD_TORCH_CHECK(placement.empty() || placement.size() == 4 * n, "placement must be empty or hold 4 integers a parameter");
    STD_TORCH_CHECK(density_16ths >= 1 && density_16ths <= kStratum, "density_16ths must be in [1, 16]");
}

inline void check_one(size_t i, const View& p, const View& g, const View& m, const View& v, const View& step,
                      const SpamHyper& h, bool unscales) {
    STD_TORCH_CHECK(g.same_shape(p), "grads[", i, "] must have its parameter's shape");
    STD_TORCH_CHECK(m.same_shape(v) && m.type == v.type, "exp_avg_sqs[", i, "] must be like exp_avgs[", i, "]");
    STD_TORCH_CHECK(m.type != ScalarType::Half, "exp_avgs[", i, "] must be float32, bfloat16 or float64");
    STD_TORCH_CHECK(!p.expanded() && !m.expanded() && !v.expanded() && !(unscales && g.expanded()), "params[", i,
                    "], exp_avgs[", i, "] and exp_avg_sqs[", i, "], and grads[", i,
                    "] with a grad_scale, are written and must not be expanded");
    STD_TORCH_CHECK(step.numel == 1 && step.type == ScalarType::Float, "steps[", i, "] must hold one float32 number");
    if (m.same_shape(p))
        return;
    const int64_t drawn = h.row_mask ? 0 : p.ndim - 1;
    bool fits = h.chosen < kStratum && p.ndim >= 2 && m.ndim == p.ndim && p.sizes[drawn] % kStratum == 0;
    for (int64_t d = 0; fits && d < p.ndim; ++d)
        fits = m.sizes[d] == (d == drawn ? p.sizes[d] / kStratum * h.chosen : p.sizes[d]);
    STD_TORCH_CHECK(fits, "exp_avgs[", i, "] must have its parameter's shape, or the drawn part of it");
}

} // namespace lk
