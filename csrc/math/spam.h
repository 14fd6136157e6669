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

// exp(x) - 1 for x <= 0: 2^n (q + 1) - 1 with q = expm1(x - n ln 2).
template <class T> LK_FN T expm1_negative(T x) {
    constexpr InverseFactorials kInverse;
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
    constexpr InverseFactorials kInverse;
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

// s(k) = 0.01 + 0.99 sin^2(pi k / (2 (W + 1))) for k < W after a reset, else 1; angle = pi / (2 (W + 1)).
template <class T> LK_FN T warmup(const SpamPhase& phase, int64_t warmup_steps, T angle) {
    if (phase.cycle == 0 || phase.k >= warmup_steps)
        return T(1);
    const T s = sine<T>(T(phase.k) * angle);
    return T(0.01) + T(0.99) * (s * s);
}
template <class T> T warmup_angle(int64_t warmup_steps) { return T(0.5 * 3.14159265358979323846 / double(warmup_steps + 1)); }
template <class T> T warmup(const SpamPhase& phase, int64_t warmup_steps) {
    return warmup(phase, warmup_steps, warmup_angle<T>(warmup_steps));
}

// The hyper-parameters in the type of the arithmetic, and what float64 alone can make of them: computed once a call.
template <class T> struct SpamRates {
    T lr, weight_decay, decay, beta1, one_minus_beta1, log_beta1, beta2, one_minus_beta2, log_beta2, eps, threshold, angle,
        sign;
    int64_t warmup_steps;
    bool cycle_correction;
};

template <class T> SpamRates<T> spam_rates(const SpamHyper& h) {
    SpamRates<T> r;
    r.lr = T(h.lr), r.weight_decay = T(h.weight_decay), r.decay = T(1 - h.lr * h.weight_decay);
    r.beta1 = T(h.beta1), r.one_minus_beta1 = T(1 - h.beta1), r.log_beta1 = T(h.beta1 > 0 ? std::log(h.beta1) : -1e4);
    r.beta2 = T(h.beta2), r.one_minus_beta2 = T(1 - h.beta2), r.log_beta2 = T(h.beta2 > 0 ? std::log(h.beta2) : -1e4);
    r.eps = T(h.eps), r.threshold = T(h.threshold), r.angle = warmup_angle<T>(h.warmup_steps);
    r.sign = T(h.maximize ? -1 : 1);
    r.warmup_steps = h.warmup_steps, r.cycle_correction = h.cycle_correction;
    return r;
}

// What the update of an element needs, all computed once a parameter.
template <class T> struct SpamScalars {
    T beta1, one_minus_beta1, beta2, one_minus_beta2, eps, threshold, step_size, decay, sign;
};

template <class T> LK_FN SpamScalars<T> spam_scalars(const SpamRates<T>& r, const SpamPhase& phase) {
    const T t = T(r.cycle_correction && phase.cycle > 0 ? phase.k + 1 : phase.n);
    const T correction1 = -expm1_negative<T>(t * r.log_beta1), correction2 = -expm1_negative<T>(t * r.log_beta2);
    SpamScalars<T> s;
    s.beta1 = r.beta1, s.one_minus_beta1 = r.one_minus_beta1;
    s.beta2 = r.beta2, s.one_minus_beta2 = r.one_minus_beta2;
    s.eps = r.eps, s.threshold = r.threshold;
    s.step_size = r.lr * warmup<T>(phase, r.warmup_steps, r.angle) * std::sqrt(correction2) / correction1;
    s.decay = r.decay;
    s.sign = r.sign;
    return s;
}
template <class T> SpamScalars<T> spam_scalars(const SpamHyper& h, const SpamPhase& phase) {
    return spam_scalars(spam_rates<T>(h), phase);
}

// Draw number `rank` of the `draws` = C(16, chosen) of a stratum, in lexicographic order of the drawn positions, as bits:
// reference.stratum_mask. On the way `below` is how many of the draws that are left contain the position.
LK_FN uint32_t stratum_bits(uint32_t rank, int chosen, uint32_t draws) {
    uint32_t below = draws * uint32_t(chosen) / kStratum, bits = 0;
    int left = chosen - 1;
    for (int i = 0; i < kStratum; ++i) {
        const bool taken = rank < below;
        const uint32_t n = uint32_t(kStratum - 1 - i);
        bits |= uint32_t(taken) << i;
        rank -= taken ? 0 : below;
        if (n)
            below = below * uint32_t(taken ? left : int(n) - left) / n; // C(n, left) to C(n - 1, left - taken)
        left -= taken;
    }
    return bits;
}
inline uint32_t stratum_draws(int chosen) {
    uint32_t draws = 1;
    for (int j = 0; j < chosen; ++j)
        draws = draws * uint32_t(kStratum - j) / uint32_t(j + 1);
    return draws;
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
