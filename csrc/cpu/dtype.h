// The dtypes that the CPU loops read and write.
#pragma once

namespace lk {

enum class DType { kFloat, kBFloat16, kHalf, kDouble };

} // namespace lk
