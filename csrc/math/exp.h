// exp for softmax, where the largest logit has been taken off: for a number, or for a vector of them lane by lane.
#pragma once

#include <cstdint>
#include <cstring>

#include "macros.h"

// Inlined without being asked twice: a call in a loop over vectors costs as much as the exp.
#ifdef __CUDACC__
#define LK_INLINE LK_FN
#else
#define LK_INLINE LK_FN __attribute__((always_inline))
#endif

namespace lk {

// What a number, or a vector of numbers, consists of. Tiers with vectors add theirs.
template <class V> struct Lane;
template <> struct Lane<float> {
    using Number = float;
    using Bits = uint32_t;
};
template <> struct Lane<double> {
    using Number = double;
    using Bits = uint64_t;
};

// The larger of two; b where one is NaN.
template <class V> LK_INLINE V larger(V a, V b) {
    if constexpr (sizeof(V) == sizeof(typename Lane<V>::Number))
        return a > b ? a : b;
    else
        return Lane<V>::larger(a, b);
}

// kShifter: adding it rounds to an integer, which then stands in the lowest bits. kLn2High times that integer is exact.
// kLowest: from there down the power of two is 2^-(kBias), whose bits as built below are those of zero.
template <class Number> struct ExpConstants;
template <> struct ExpConstants<float> {
    static constexpr float kLowest = -88.0f, kLog2e = 1.44269504f, kShifter = 12582912.0f;
    static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
    static constexpr int kMantissa = 23;
    static constexpr uint32_t kBias = 127;
};
template <> struct ExpConstants<double> {
    static constexpr double kLowest = -709.3, kLog2e = 1.4426950408889634, kShifter = 6755399441055744.0;
    static constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
    static constexpr int kMantissa = 52;
    static constexpr uint64_t kBias = 1023;
};

// (exp(r) - 1 - r) / r^2 for |r| <= ln(2) / 2, by the type of the number: float to degree 4 with the coefficients that make
// the largest relative error of exp least (3e-9), double to degree 11 of the Taylor series (remainder 5e-18).
template <class V> LK_INLINE V exp_tail(V r, V square, float) {
    const V low = r * 0.166665211f + 0.49999994f, high = r * 0.00836874545f + 0.0416683890f;
    return low + (square * 0.00138145406f + high) * square;
}
template <class V> LK_INLINE V exp_tail(V r, V, double) {
    V q = r * (1 / 6227020800.0) + 1 / 479001600.0;
    q = q * r + 1 / 39916800.0;
    q = q * r + 1 / 3628800.0;
    q = q * r + 1 / 362880.0;
    q = q * r + 1 / 40320.0;
    q = q * r + 1 / 5040.0;
    q = q * r + 1 / 720.0;
    q = q * r + 1 / 120.0;
    q = q * r + 1 / 24.0;
    q = q * r + 1 / 6.0;
    return q * r + 0.5;
}

constexpr int kExpSlack =
    1; // how far above its shift softmax may find a logit: further, their difference would be rounded more

// exp(x) for x <= kExpSlack, and for what rounding leaves just above: 2^n exp(x - n ln 2). Within 2 roundings; 0 exactly for
// -inf and wherever the result would not be a normal number; NaN for NaN. No branch, no table, no contraction: the same bits
// anywhere.
template <class V> LK_INLINE V exp_bounded(V x) {
    using Number = typename Lane<V>::Number;
    using Bits = typename Lane<V>::Bits;
    using C = ExpConstants<Number>;
    x = larger(V{} + C::kLowest, x);
    const V shifted = x * C::kLog2e + C::kShifter;
    const V n = shifted - C::kShifter;
    const V r = (x - n * C::kLn2High) - n * C::kLn2Low;
    const V square = r * r;
    const V q = (exp_tail(r, square, Number()) * square + r) + Number(1);
    Bits bits;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits << C::kMantissa) + (C::kBias << C::kMantissa);
    V scale;
    memcpy(&scale, &bits, sizeof scale);
    return q * scale;
}

} // namespace lk
