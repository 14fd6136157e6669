// From torch's dtypes to those of the CPU loops.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include "../cpu/dtype.h"

namespace lk {

// `name` (of what it is, in parts) is for the message.
template <class... Name> DType dtype_of(torch::headeronly::ScalarType type, const Name&... name) {
    using torch::headeronly::ScalarType;
    switch (type) {
    case ScalarType::Float:
        return DType::kFloat;
    case ScalarType::BFloat16:
        return DType::kBFloat16;
    case ScalarType::Half:
        return DType::kHalf;
    case ScalarType::Double:
        return DType::kDouble;
    default:
        STD_TORCH_CHECK(false, name..., " must be float32, bfloat16, float16 or float64");
    }
}

} // namespace lk
