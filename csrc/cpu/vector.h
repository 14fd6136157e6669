// A vector of floats as a number: the formulas of csrc/math work on it, lane by lane and bit by bit as on a float.
// Included within a tier, before the formulas. Tiers without gathers of their own have none (LK_VECTOR undefined).
#pragma once

#include <cstdint>

#if defined(__AVX2__)
#define LK_VECTOR
#include <immintrin.h>

namespace lk {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#else
constexpr int kLanes = 8;
#endif
typedef float Vector __attribute__((vector_size(4 * kLanes)));
typedef int32_t VectorMask __attribute__((vector_size(4 * kLanes)));

static inline Vector vector_load(const float* x) {
    Vector v;
    __builtin_memcpy(&v, x, sizeof v);
    return v;
}
static inline void vector_store(float* x, Vector v) { __builtin_memcpy(x, &v, sizeof v); }
static inline Vector with_sign(Vector x, Vector sign) {
    return Vector((VectorMask(x) & 0x7fffffff) | (VectorMask(sign) & int32_t(0x80000000)));
}
#if defined(__AVX512F__)
static inline Vector root(Vector x) { return Vector(_mm512_sqrt_ps(__m512(x))); }
static inline bool any(VectorMask mask) { return _mm512_movepi32_mask(__m512i(mask)) != 0; }
#else
static inline Vector root(Vector x) { return Vector(_mm256_sqrt_ps(__m256(x))); }
static inline bool any(VectorMask mask) { return _mm256_movemask_ps(__m256(mask)) != 0; }
#endif

} // namespace lk
#endif
