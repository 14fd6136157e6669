// SPAM's formulas (Huang et al. 2025, arXiv 2501.06842): the scalars of a step, and the update of one element.
// ladderkern/spam/reference.py is the law; each formula here is the one of the same name there.
#pragma once

#include <cmath>
#include <cstdint>

#include "macros.h"

namespace lk {

constexpr int kStratum = 16; // a draw takes 16 * density elements (or rows) of every 16 consecutive ones

struct SpamHyper {
    double lr, beta1, beta2, eps, weight_decay, threshold;
    int64_t reset_interval, warmup_steps, unclipped_steps;
    bool cycle_correction, freeze_zero_variance, maximize, row_mask;
    int chosen; // 16 * density
    uint64_t seed;
};

struct InverseFactorials {
    double of[22]; // 1 / n!, n < 22; the factorials themselves are exact
    constexpr InverseFactorials() : of() {
        double factorial = 1;
        for (int n = 0; n < 22; ++n) {
            factorial *= n ? n : 1;
            of[n] = 1 / factorial;
        }
    }
};
constexpr InverseFactorials kInverse;

// exp(x) - 1 for x <= 0: 2^n (q + 1) - 1 with q = expm1(x - n ln 2).
template <class T> LK_FN T expm1_negative(T x) {
    x = x < T(-80) ? T(-80) : x;
    const T n = std::nearbyint(x * T(1.4426950408889634));
    const T r = (x - n * T(0.693359375)) - n * T(-2.12194440054690583e-4);
    T q = T(kInverse.of[14]);
    for (int i = 13; i >= 1; --i)
        q = q * r + T(kInverse.of[i]);
    const T scale = std::ldexp(T(1), int(n));
    return scale * (q * r) + (scale - T(1));
}

// sin(x) on [0, pi/2].
template <class T> LK_FN T sine(T x) {
    const T square = x * x;
    T q = T(kInverse.of[21]);
    for (int i = 19; i >= 1; i -= 2)
        q = T(kInverse.of[i]) - q * square;
    return q * x;
}

struct SpamPhase {
    int64_t n, cycle, k;
};
LK_FN SpamPhase spam_phase(int64_t n, int64_t reset_interval) {
    if (reset_interval == 0)
        return {n, 0, n};
    return {n, n / reset_interval, n % reset_interval};
}

// s(k) = 0.01 + 0.99 sin^2(pi k / (2 (W + 1))) for k < W after a reset, else 1.
template <class T> LK_FN T warmup(const SpamPhase& phase, int64_t warmup_steps) {
    if (phase.cycle == 0 || phase.k >= warmup_steps)
        return T(1);
    const T s = sine<T>(T(phase.k) * T(0.5 * 3.14159265358979323846 / double(warmup_steps + 1)));
    return T(0.01) + T(0.99) * (s * s);
}

// What the update of an element needs, all computed once a parameter.
template <class T> struct SpamScalars {
    T beta1, one_minus_beta1, beta2, one_minus_beta2, eps, threshold, step_size, decay, sign;
};

template <class T> LK_FN SpamScalars<T> spam_scalars(const SpamHyper& h, const SpamPhase& phase) {
    const T t = T(h.cycle_correction && phase.cycle > 0 ? phase.k + 1 : phase.n);
    const T log1 = T(h.beta1 > 0 ? std::log(h.beta1) : -1e4), log2 = T(h.beta2 > 0 ? std::log(h.beta2) : -1e4);
    const T correction1 = -expm1_negative<T>(t * log1), correction2 = -expm1_negative<T>(t * log2);
    SpamScalars<T> s;
    s.beta1 = T(h.beta1), s.one_minus_beta1 = T(1 - h.beta1);
    s.beta2 = T(h.beta2), s.one_minus_beta2 = T(1 - h.beta2);
    s.eps = T(h.eps), s.threshold = T(h.threshold);
    s.step_size = T(h.lr) * warmup<T>(phase, h.warmup_steps) * std::sqrt(correction2) / correction1;
    s.decay = T(1 - h.lr * h.weight_decay);
    s.sign = T(h.maximize ? -1 : 1);
    return s;
}

// How the elements of a parameter are treated at this step.
enum class SpamClip { kNone, kPass, kFreeze };

LK_FN float root(float x) { return std::sqrt(x); }
LK_FN double root(double x) { return std::sqrt(x); }
LK_FN float with_sign(float x, float sign) { return std::copysign(x, sign); }
LK_FN double with_sign(double x, double sign) { return std::copysign(x, sign); }

// Whether a gradient exceeds its bound, g^2 > threshold v; v == 0 passes or freezes. T: S, or a vector of S.
template <SpamClip Clip, class T, class S> LK_FN auto is_spike(T g, T v, const SpamScalars<S>& s) {
    if constexpr (Clip == SpamClip::kFreeze)
        return g * g > s.threshold * v;
    else
        return (g * g > s.threshold * v) & (v > S(0));
}

// m, v, p of one element. v is the old second moment while clipping: a spike is cut to sign(g) sqrt(threshold v).
template <SpamClip Clip, class T, class S> LK_FN void spam_element(T& p, T g, T& m, T& v, const SpamScalars<S>& s) {
    g *= s.sign;
    if constexpr (Clip != SpamClip::kNone) {
        const T limited = with_sign(root(s.threshold * v), g);
        g = is_spike<Clip>(g, v, s) ? limited : g;
    }
    m = s.beta1 * m + s.one_minus_beta1 * g;
    v = s.beta2 * v + s.one_minus_beta2 * (g * g);
    p = p * s.decay - s.step_size * (m / (root(v) + s.eps));
}

} // namespace lk
