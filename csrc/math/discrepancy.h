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
    S top = -S(INFINITY);
    double sum = 0;    // of exp(x - top)
    double cost = 0;   // of exp(x - top) D
    double logits = 0; // of x - top
    int64_t count = 0;
};

// What is taken off the logits: top, but 0 where all are -inf, so that exp(-inf - shift) = 0.
template <class S> LK_FN S shift_of(S top) { return top == -S(INFINITY) ? S(0) : top; }

// The same sums relative to a larger logit.
template <class S> LK_FN void raise_top(SoftmaxSums<S>& s, S top) {
    if (!(top > s.top))
        return;
    if (s.top != -S(INFINITY)) {
        const double change = double(s.top) - double(top), factor = exp_bounded(change);
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

template <class S> LK_FN S expected_distance(const SoftmaxSums<S>& s) { return S(s.cost / s.sum); }

// -(1 - smoothing) log p_y - smoothing mean_j log p_j for a label whose logit is x; of differences to the top alone, since a
// common offset of the logits would take the digits of anything else.
template <class S> LK_FN S cross_entropy(const SoftmaxSums<S>& s, S x, double smoothing) {
    const double loss = std::log(s.sum) - (1 - smoothing) * (double(x) - double(s.top));
    return S(smoothing == 0 ? loss : loss - smoothing * (s.logits / double(s.count)));
}

// What the gradient of a row is made of: those of its two losses over the sums of the exponentials, and the part of all logits.
template <class S> struct GradientTerms {
    S cross_entropy = 0, discrepancy = 0, constant = 0;
};

// The gradient of one logit, exponential = exp(x - shift). On image columns D is linear in the entry of the table, and so is
// cross_entropy + discrepancy (D - loss), which multiplies the exponential.
template <class S> struct LinearTerms {
    S slope, intercept, constant;
};
template <class S> LK_FN LinearTerms<S> image_terms(const GradientTerms<S>& g, S scale, S offset, S loss) {
    const double discrepancy = g.discrepancy;
    return {S(discrepancy * double(scale)), S(discrepancy * (double(offset) - double(loss)) + double(g.cross_entropy)),
            g.constant};
}
template <bool Joint, class V, class S> LK_FN V image_gradient(V exponential, V entry, const LinearTerms<S>& g) {
    if constexpr (Joint)
        return exponential * (entry * g.slope + g.intercept) + g.constant;
    else
        return exponential * (entry * g.slope + g.intercept);
}
template <class V, class S> LK_FN V text_gradient(V exponential, const LinearTerms<S>& g) {
    return exponential * g.intercept + g.constant;
}

} // namespace lk
