// bfloat16 and float16 as bits, converted branch-free so that every compiler vectorises it alike.
#pragma once

#include <cstdint>
#include <cstring>

#include "macros.h"

namespace lk {

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

LK_FN uint32_t bits_of(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return bits;
}
LK_FN float float_of(uint32_t bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

LK_FN float widen(float x) { return x; }
LK_FN double widen(double x) { return x; }
LK_FN float widen(bf16 x) { return float_of(uint32_t(x.bits) << 16); }
LK_FN float widen(f16 x) {
    uint32_t bits = uint32_t(x.bits & 0x7fffu) << 13;
    const uint32_t exponent = bits & 0x0f800000u;
    bits += 112u << 23;
    const uint32_t special = bits + (112u << 23);                          // inf and NaN
    const float tiny = float_of(bits + (1u << 23)) - float_of(113u << 23); // subnormal
    const float magnitude = exponent == 0x0f800000u ? float_of(special) : exponent == 0 ? tiny : float_of(bits);
    return float_of(bits_of(magnitude) | uint32_t(x.bits & 0x8000u) << 16);
}

// Round to nearest, ties to even; NaN stays NaN.
LK_FN void narrow(float x, float& out) { out = x; }
LK_FN void narrow(double x, double& out) { out = x; }
LK_FN void narrow(float x, bf16& out) {
    const uint32_t bits = bits_of(x);
    const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    out = {uint16_t(x == x ? rounded : 0x7fc0u)};
}
LK_FN void narrow(float x, f16& out) {
    const uint32_t sign = bits_of(x) & 0x80000000u, bits = bits_of(x) ^ sign;
    const uint32_t large = bits > 0x7f800000u ? 0x7e00u : 0x7c00u; // NaN, else inf
    const float tiny = float_of(bits) + float_of(126u << 23);      // the addition rounds to the subnormal grid
    const uint32_t normal = (bits - (112u << 23) + 0xfffu + (bits >> 13 & 1u)) >> 13;
    const uint32_t magnitude = bits >= (143u << 23) ? large : bits < (113u << 23) ? bits_of(tiny) - (126u << 23) : normal;
    out = {uint16_t(magnitude | sign >> 16)};
}

// float32 -> bfloat16, up or down with probability by distance; noise is uniform in [0, 2^16).
LK_FN bf16 round_stochastically(float x, uint32_t noise) {
    const uint32_t bits = bits_of(x);
    const bool finite = (bits & 0x7f800000u) != 0x7f800000u;
    return {uint16_t((finite ? bits + noise : x == x ? bits : bits | 0x400000u) >> 16)};
}

} // namespace lk
