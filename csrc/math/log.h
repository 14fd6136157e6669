// log and log(1 + x) for probabilities and for sums of exponentials, in the arithmetic of exp.h: the same bits anywhere.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "exp.h"

namespace lk {

// kRootHalf: the bits of sqrt(1/2). kLeast: the least normal number.
template <class S> struct LogConstants;
template <> struct LogConstants<float> {
    static constexpr uint32_t kRootHalf = 0x3f3504f3u;
    static constexpr float kLeast = 0x1p-126f;
};
template <> struct LogConstants<double> {
    static constexpr uint64_t kRootHalf = 0x3fe6a09e667f3bcdu;
    static constexpr double kLeast = 0x1p-1022;
};

// (atanh(s) / s - 1) 2 / s^2 as a function of t = s^2 <= 0.0295: 2/3 + 2/5 t + 2/7 t^2 .., with the coefficients that make its
// largest error least (1.9e-7 in float, 3.1e-16 in double; the logarithm feels 0.015 of it).
LK_INLINE float atanh_tail(float t) { return (t * 0.29580054f + 0.39988777f) * t + 0.66666687f; }
LK_INLINE double atanh_tail(double t) {
    double q = t * 0.14616585424888623 + 0.15331710618210773;
    q = q * t + 0.18182889455674947;
    q = q * t + 0.22222211130259878;
    q = q * t + 0.2857142862600327;
    q = q * t + 0.39999999999899444;
    return q * t + 0.666666666666667;
}

// n ln 2 + log(1 + r) for 1 + r in [sqrt(1/2), sqrt(2)] and an integer n: with s = r / (2 + r), log(1 + r) = 2 atanh(s).
template <class S> LK_INLINE S log_parts(S n, S r) {
    using C = ExpConstants<S>;
    const S s = r / (S(2) + r), t = s * s;
    const S log1p = r - s * (r - t * atanh_tail(t));
    return n * C::kLn2High + (n * C::kLn2Low + log1p);
}

// log(1 + x) for x in [0, 1], within 3 roundings; NaN for NaN.
template <class S> LK_INLINE S log1p_unit(S x) {
    const bool far = x > S(0.41421356);
    return log_parts(far ? S(1) : S(0), far ? (x - S(1)) * S(0.5) : x);
}

// log(x) for finite x within 2 roundings; -inf for 0, NaN for NaN and below 0.
template <class S> LK_INLINE S log_finite(S x) {
    using Bits = typename Lane<S>::Bits;
    using E = ExpConstants<S>;
    using C = LogConstants<S>;
    constexpr Bits kOne = E::kBias << E::kMantissa;
    const bool tiny = x < C::kLeast;
    const S scaled = tiny ? x * S(Bits(1) << E::kMantissa) : x;
    Bits bits;
    memcpy(&bits, &scaled, sizeof bits);
    const Bits biased = (bits + (kOne - C::kRootHalf)) >> E::kMantissa; // exponent of x / sqrt(1/2)
    // kShifter holds an integer in its lowest bits, as in exp_bounded.
    const S shifter = E::kShifter;
    Bits counted;
    memcpy(&counted, &shifter, sizeof counted);
    counted += biased - E::kBias;
    S n, fraction;
    memcpy(&n, &counted, sizeof n);
    bits -= (biased << E::kMantissa) - kOne;
    memcpy(&fraction, &bits, sizeof fraction);
    const S result = log_parts((n - shifter) - (tiny ? S(E::kMantissa) : S(0)), fraction - S(1));
    return x > S(0) ? result : x == S(0) ? -S(INFINITY) : S(NAN);
}

} // namespace lk
