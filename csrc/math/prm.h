// Step scores of process reward models (Zhang et al. 2025, arXiv 2501.07301): the formulas of one step and of one response.
// ladderkern/prm/reference.py is the law: p = sigmoid(z), log p = -softplus(-z), and no gradient of a logit divides by p.
#pragma once

#include <cmath>

#include "exp.h"
#include "log.h"
#include "macros.h"

namespace lk {

template <class S> struct StepScore {
    S margin, prob, log_prob;
};

// exp(-|z|), from which everything about a margin follows on both sides. 0 for |z| > 88 (in double 709).
template <class S> LK_INLINE S decay_of(S z) { return exp_bounded(z > S(0) ? -z : z); }

template <class S> LK_INLINE StepScore<S> score_of_margin(S z) {
    const S e = decay_of(z), larger_side = S(1) / (S(1) + e);
    const bool negative = z < S(0);
    return {z, negative ? e * larger_side : larger_side, (negative ? z : S(0)) - log1p_unit(e)};
}

template <class S> LK_INLINE StepScore<S> score_of_prob(S p) {
    const S log_prob = log_finite(p);
    return {log_prob - log_finite(S(1) - p), p, log_prob};
}

// 1 - p of a margin, without cancellation.
template <class S> LK_INLINE S wrong_prob(S z) {
    const S e = decay_of(z), larger_side = S(1) / (S(1) + e);
    return z > S(0) ? e * larger_side : larger_side;
}

// The margin that a probability of right has: what a margin is compared with.
LK_FN double logit(double p) { return std::log(p) - std::log1p(-p); }

// One logit's term in the softmax relative to the largest, also where that is infinite.
template <class S> LK_INLINE S softmax_term(S x, S top) {
    const S e = exp_bounded(x == top ? S(0) : x - top);
    return x == -S(INFINITY) ? S(0) : e;
}

// log-sum-exp of the classes of right less that of the classes of wrong.
template <class S> LK_INLINE S margin_of_sums(S right_top, S right_sum, S wrong_top, S wrong_sum) {
    return (right_top - wrong_top) + (log_finite(right_sum) - log_finite(wrong_sum));
}

// A term's share of its sum; 0 where all terms are 0.
template <class S> LK_INLINE S softmax_share(S term, S sum) { return term == S(0) ? S(0) : term / sum; }

// gradient * derivative, 0 wherever the gradient is, also where the derivative is infinite or NaN.
template <class S> LK_INLINE S scaled(S gradient, S derivative) { return gradient == S(0) ? S(0) : gradient * derivative; }

// What reaches a step's three scores, turned into the gradient of its margin or of its given probability.
template <class S> LK_INLINE S margin_gradient(const StepScore<S>& upstream, S z, S prob) {
    const S wrong = wrong_prob(z);
    return upstream.margin + scaled(upstream.prob, prob * wrong) + scaled(upstream.log_prob, wrong);
}
template <class S> LK_INLINE S prob_gradient(const StepScore<S>& upstream, S p) {
    return upstream.prob + scaled(upstream.log_prob, S(1) / p) + scaled(upstream.margin, S(1) / (p * (S(1) - p)));
}

// d (p_1 .. p_n)^(1/n) / dp: at p = 0 it is 0 beside another 0, 1 for a lone step, else infinite.
template <class S> LK_INLINE S geometric_mean_slope(S p, S geometric_mean, bool beside_zero, S n) {
    const S at_zero = beside_zero ? S(0) : n == S(1) ? S(1) : S(INFINITY);
    return p == S(0) ? at_zero : geometric_mean / (n * p);
}

} // namespace lk
