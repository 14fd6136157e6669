// The token discrepancy loss (Li et al. 2025, arXiv 2501.07542) of one row, joined with cross-entropy: the formulas.
// ladderkern/discrepancy/reference.py is the law: p = softmax over the image columns, loss = sum_j p_j D[y, j].
#pragma once

#include <cmath>
#include <cstdint>

#include "exp.h"
#include "macros.h"

namespace lk {

// What the table holds: the distances themselves, or the codebook, of which they are this function.
enum class DistanceMetric { kTable, kMse, kSqEuclidean, kEuclidean };

// D[y, j], j != y, of an entry of the centred table.
template <class V, class S> LK_FN V table_distance(V entry, S scale, S offset) { return entry * scale + offset; }

// D[y, j] of the sum of d squared differences.
template <DistanceMetric Metric, class S> LK_FN S metric_distance(double squares, int64_t d) {
    if constexpr (Metric == DistanceMetric::kMse)
        return S(squares / double(d));
    else if constexpr (Metric == DistanceMetric::kEuclidean)
        return std::sqrt(S(squares));
    else
        return S(squares);
}

// Sums over some columns of a row, relative to the largest of their logits.
template <class S> struct SoftmaxSums {
    S top = -S(INFINITY); // the largest logit
    double sum = 0;       // of exp(x - top)
    double cost = 0;      // of exp(x - top) D
    double logits = 0;    // of x - top
    int64_t count = 0;
};

// What is taken off the logits: top, but 0 where all are -inf, so that exp(-inf - shift) = 0.
template <class S> LK_FN S shift_of(S top) { return top == -S(INFINITY) ? S(0) : top; }

// The same sums relative to a larger logit.
template <class S> LK_FN void raise_top(SoftmaxSums<S>& s, S top) {
    if (!(top > s.top))
        return;
    if (s.top != -S(INFINITY)) {
        const double change = double(s.top) - double(top), factor = exp_nonpositive(change);
        s.sum *= factor;
        s.cost *= factor;
        s.logits += double(s.count) * change;
    }
    s.top = top;
}

// The sums over two sets of columns together.
template <class S> LK_FN SoftmaxSums<S> joined(SoftmaxSums<S> a, SoftmaxSums<S> b) {
    raise_top(a, b.top);
    raise_top(b, a.top);
    return {a.top, a.sum + b.sum, a.cost + b.cost, a.logits + b.logits, a.count + b.count};
}

template <class S> LK_FN S log_sum_exp(const SoftmaxSums<S>& s) { return S(double(s.top) + std::log(s.sum)); }
template <class S> LK_FN S expected_distance(const SoftmaxSums<S>& s) { return S(s.cost / s.sum); }

// -(1 - smoothing) log p_y - smoothing mean_j log p_j for a label whose logit is x; of differences to the top alone, since a
// common offset of the logits would take the digits of anything else.
template <class S> LK_FN S cross_entropy(const SoftmaxSums<S>& s, S x, double smoothing) {
    const double loss = std::log(s.sum) - (1 - smoothing) * (double(x) - double(s.top));
    return S(smoothing == 0 ? loss : loss - smoothing * (s.logits / double(s.count)));
}

// The gradient of one logit, exponential = exp(x - shift): exponential * factor + constant. On image columns the factor is
// cross_entropy + discrepancy * excess with excess = D - loss. Each holds the gradient of its loss over the sum of the
// exponentials.
template <class S> struct GradientTerms {
    S cross_entropy = 0, discrepancy = 0, constant = 0;
};
template <bool Joint, class V, class S> LK_FN V image_gradient(V exponential, V excess, const GradientTerms<S>& g) {
    if constexpr (Joint)
        return exponential * (excess * g.discrepancy + g.cross_entropy) + g.constant;
    else
        return exponential * (excess * g.discrepancy);
}
template <class V, class S> LK_FN V text_gradient(V exponential, const GradientTerms<S>& g) {
    return exponential * g.cross_entropy + g.constant;
}

} // namespace lk
