// Residual addition and RMS norm (Zhang and Sennrich 2019, arXiv 1910.07467) of one row: the formulas.
// ladderkern/ladder/reference.py is the law: y = w * xhat with xhat = s * rstd.
#pragma once

#include <cmath>
#include <cstdint>

#include "macros.h"

namespace lk {

// In the order and precision of eager PyTorch: mean, eps and root each round.
template <class S> LK_FN S reciprocal_rms(double sum_of_squares, int64_t hidden, double eps) {
    return S(1) / std::sqrt(S(sum_of_squares) / S(hidden) + S(eps));
}

// The gradient of an element of the stream through the norm; scaled = w * dy, mean that of scaled * xhat over the row.
template <class V, class S> LK_FN V norm_gradient(V scaled, V xhat, S mean, S rstd) { return rstd * (scaled - xhat * mean); }

} // namespace lk
