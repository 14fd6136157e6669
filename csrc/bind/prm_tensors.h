// What the step-score bindings of every device ask of the tensors of a call.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <initializer_list>
#include <optional>

#include "../cpu/prm.h"
#include "dtype.h"

namespace lk {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Asking first saves a call across the C interface.
inline Tensor made_contiguous(const Tensor& t) { return t.is_contiguous() ? t : torch::stable::contiguous(t); }

// One call on any device: what both ops read, and what keeps it alive.
struct PrmTensors {
    PrmCall c{};
    ScalarType wide; // of the arithmetic and of all outputs but indices
    Tensor scores, offsets;
    std::optional<Tensor> mask, weights;

    PrmTensors(const Tensor& scores_, const Tensor& offsets_, const std::optional<Tensor>& mask_,
               const std::optional<Tensor>& weights_, int64_t positive, double threshold, bool strict, bool probabilities)
        : scores(scores_), offsets(made_contiguous(offsets_)) {
        STD_TORCH_CHECK(scores.dim() == 2 && scores.size(1) > 0, "scores must have shape [S, C] with C > 0");
        c.rows = scores.size(0), c.classes = scores.size(1);
        c.row_stride = scores.stride(0), c.class_stride = scores.stride(1);
        c.scores_type = dtype_of(scores.scalar_type(), "scores");
        wide = c.scores_type == DType::kDouble ? ScalarType::Double : ScalarType::Float;
        c.scores = static_cast<const char*>(scores.const_data_ptr());
        STD_TORCH_CHECK(offsets.dim() == 1 && offsets.size(0) > 0 && offsets.scalar_type() == ScalarType::Long &&
                            offsets.device() == scores.device(),
                        "offsets must be int64 of shape [R + 1] on the device of scores");
        c.responses = offsets.size(0) - 1;
        c.offsets = static_cast<const int64_t*>(offsets.const_data_ptr());
        if (mask_) {
            check(*mask_, "mask", ScalarType::Bool, {c.rows});
            mask = made_contiguous(*mask_);
            c.mask = static_cast<const bool*>(mask->const_data_ptr());
        }
        if (weights_) {
            check(*weights_, "class_weights", wide, {c.classes});
            weights = made_contiguous(*weights_);
            c.weights = static_cast<const char*>(weights->const_data_ptr());
        }
        STD_TORCH_CHECK(weights_ || c.classes == 1 || (positive >= 0 && positive < c.classes),
                        "positive must be a column of scores, 0 to ", c.classes - 1, ", got ", positive);
        STD_TORCH_CHECK(!probabilities || (c.classes == 1 && !weights_),
                        "scores must have one column where they are probabilities, without class_weights");
        STD_TORCH_CHECK(threshold >= 0 && threshold <= 1, "threshold must be in [0, 1], got ", threshold);
        c.positive = positive, c.threshold = threshold, c.strict = strict, c.probabilities = probabilities;
    }

    void check(const Tensor& t, const char* name, ScalarType type, std::initializer_list<int64_t> shape) const {
        const auto sizes = t.sizes();
        STD_TORCH_CHECK(t.scalar_type() == type && t.device() == scores.device() &&
                            std::equal(sizes.begin(), sizes.end(), shape.begin(), shape.end()),
                        name, " must have the dtype, shape and device that belong to scores and offsets");
    }

    Tensor output(std::initializer_list<int64_t> shape, ScalarType type) const {
        return torch::stable::new_empty(scores, torch::headeronly::IntHeaderOnlyArrayRef(shape.begin(), shape.size()), type);
    }
};

} // namespace lk
