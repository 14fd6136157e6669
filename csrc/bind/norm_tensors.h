// What the residual-norm bindings of every device ask of the tensors of a call.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>

#include "../cpu/norm.h"
#include "dtype.h"

namespace lk {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;

// torch's common dtype of rows and weights.
inline ScalarType common(ScalarType x, ScalarType weight) {
    if (x == ScalarType::Double || x == weight)
        return x;
    return ScalarType::Float;
}

// One call on any device: what all ops read, and what keeps it alive.
struct NormTensors {
    NormCall c{};
    Tensor x;
    ScalarType wide, normed_type, weight_type;

    NormTensors(const Tensor& x_, const Tensor& weight, const MaybeTensor& weight2) : x(x_) {
        STD_TORCH_CHECK(x.dim() == 2 && x.size(1) > 0, "x must have shape [rows, hidden] with hidden of at least 1");
        c.rows = x.size(0), c.hidden = x.size(1);
        c.type = dtype_of(x.scalar_type(), "x");
        weight_type = weight.scalar_type();
        c.weight_type = dtype_of(weight_type, "weight");
        wide = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
        STD_TORCH_CHECK(weight_type != ScalarType::Double || wide == ScalarType::Double,
                        "weight may be float64 only where x is");
        normed_type = common(x.scalar_type(), weight_type);
        c.normed_type = dtype_of(normed_type, "normed");
        c.x = rows(x, x.scalar_type(), "x");
        c.weight = vector(weight, "weight");
        if (weight2)
            c.weight2 = vector(*weight2, "weight2");
    }

    NormRows rows(const Tensor& t, ScalarType type, const char* name) const {
        STD_TORCH_CHECK(t.dim() == 2 && t.size(0) == c.rows && t.size(1) == c.hidden, name, " must have shape [", c.rows, ", ",
                        c.hidden, "]");
        STD_TORCH_CHECK(t.scalar_type() == type, name, " has a dtype that does not fit that of x and weight");
        STD_TORCH_CHECK(t.device() == x.device() && (c.hidden == 1 || c.rows == 0 || t.stride(1) == 1), name,
                        " must be on the device of x with stride 1 along hidden");
        return {static_cast<char*>(const_cast<void*>(t.const_data_ptr())), t.stride(0)};
    }
    NormRows rows(const MaybeTensor& t, ScalarType type, const char* name) const {
        return t ? rows(*t, type, name) : NormRows{nullptr, 0};
    }

    const char* vector(const Tensor& t, const char* name) const {
        STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == c.hidden && t.is_contiguous() && t.device() == x.device() &&
                            t.scalar_type() == weight_type,
                        name, " must be contiguous of shape [", c.hidden,
                        "] on the device of x, and both weights of one dtype");
        return static_cast<const char*>(t.const_data_ptr());
    }

    // Rows to write.
    Tensor output(NormRows& place, ScalarType type) {
        Tensor t = torch::stable::new_empty(x, {c.rows, c.hidden}, type);
        place = {static_cast<char*>(t.mutable_data_ptr()), c.hidden};
        return t;
    }
    Tensor absent(ScalarType type) const { return torch::stable::new_empty(x, {0}, type); }

    Tensor rstd_output() {
        Tensor t = torch::stable::new_empty(x, {c.rows}, wide);
        c.rstd = t.mutable_data_ptr();
        return t;
    }
    void rstd_input(const Tensor& t) {
        STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == c.rows && t.scalar_type() == wide && t.is_contiguous() &&
                            t.device() == x.device(),
                        "rstd must be what the forward returned for these rows");
        c.rstd = const_cast<void*>(t.const_data_ptr());
    }
};

} // namespace lk
