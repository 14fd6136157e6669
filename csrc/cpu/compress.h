// Taking the drawn elements of strata of 16 together, and putting them back. Included within a tier (compiled per LK_ISA).
#pragma once

#include <cstdint>

#include "vector.h"

namespace lk {
namespace LK_ISA {
namespace {

constexpr int kSlack = 16; // what compress may write, and expand read, past the drawn elements

// out = the elements of 16 whose bits are set, in order; at most kSlack numbers are written.
template <class T> inline void compress16(const T* from, uint32_t bits, T* out) {
    for (int i = 0; i < 16; ++i) {
        *out = from[i];
        out += bits >> i & 1u;
    }
}

// The inverse: the set bits' elements of `to` become the next of `from`; the others stay.
template <class T> inline void expand16(const T* from, uint32_t bits, T* to) {
    for (int i = 0; i < 16; ++i) {
        to[i] = bits >> i & 1u ? *from : to[i];
        from += bits >> i & 1u;
    }
}

#if defined(__AVX512F__)

template <> inline void compress16<float>(const float* from, uint32_t bits, float* out) {
    _mm512_storeu_ps(out, _mm512_maskz_compress_ps(__mmask16(bits), _mm512_loadu_ps(from)));
}
template <> inline void expand16<float>(const float* from, uint32_t bits, float* to) {
    _mm512_storeu_ps(to, _mm512_mask_expand_ps(_mm512_loadu_ps(to), __mmask16(bits), _mm512_loadu_ps(from)));
}

// The four drawn of each of four strata, as one vector, and back.
inline Vector take_quarters(const float* from, const uint16_t* bits) {
    __m512 out = _mm512_setzero_ps();
    const auto drawn = [&](int i) {
        return _mm512_castps512_ps128(_mm512_maskz_compress_ps(__mmask16(bits[i]), _mm512_loadu_ps(from + 16 * i)));
    };
    out = _mm512_insertf32x4(out, drawn(0), 0);
    out = _mm512_insertf32x4(out, drawn(1), 1);
    out = _mm512_insertf32x4(out, drawn(2), 2);
    return Vector(_mm512_insertf32x4(out, drawn(3), 3));
}
inline void put_quarters(Vector values, const uint16_t* bits, float* to) {
    const auto put = [&](int i, __m128 four) {
        const __m512 spread =
            _mm512_mask_expand_ps(_mm512_loadu_ps(to + 16 * i), __mmask16(bits[i]), _mm512_castps128_ps512(four));
        _mm512_storeu_ps(to + 16 * i, spread);
    };
    put(0, _mm512_extractf32x4_ps(__m512(values), 0));
    put(1, _mm512_extractf32x4_ps(__m512(values), 1));
    put(2, _mm512_extractf32x4_ps(__m512(values), 2));
    put(3, _mm512_extractf32x4_ps(__m512(values), 3));
}

#elif defined(__AVX2__)

// For each pattern of 8 bits: where a compressed element comes from, and where an expanded one does.
struct Permutations {
    uint8_t compress[256][8], expand[256][8];
    constexpr Permutations() : compress(), expand() {
        for (int bits = 0; bits < 256; ++bits)
            for (int i = 0, count = 0; i < 8; ++i) {
                expand[bits][i] = uint8_t(count);
                if (bits >> i & 1)
                    compress[bits][count++] = uint8_t(i);
            }
    }
};
constexpr Permutations kPermutations;

inline __m256i indices(const uint8_t* bytes) {
    return _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(bytes)));
}
inline void compress8(const float* from, uint32_t bits, float* out) {
    _mm256_storeu_ps(out, _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), indices(kPermutations.compress[bits])));
}
inline void expand8(const float* from, uint32_t bits, float* to) {
    const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i set = _mm256_cmpeq_epi32(_mm256_and_si256(_mm256_set1_epi32(int(bits)), bit), bit);
    const __m256 spread = _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), indices(kPermutations.expand[bits]));
    _mm256_storeu_ps(to, _mm256_blendv_ps(_mm256_loadu_ps(to), spread, _mm256_castsi256_ps(set)));
}
template <> inline void compress16<float>(const float* from, uint32_t bits, float* out) {
    compress8(from, bits & 255u, out);
    compress8(from + 8, bits >> 8, out + __builtin_popcount(bits & 255u));
}
template <> inline void expand16<float>(const float* from, uint32_t bits, float* to) {
    expand8(from, bits & 255u, to);
    expand8(from + __builtin_popcount(bits & 255u), bits >> 8, to + 8);
}

// The four drawn of each of two strata, as one vector, and back. One by one: on the machine measured (Zen 3) loads and
// inserts pass where permutations across a register would queue.
struct Positions {
    uint32_t of[kLanes];
    explicit Positions(const uint16_t* bits) {
        for (int stratum = 0; stratum < 2; ++stratum) {
            uint32_t rest = bits[stratum];
            for (int j = 0; j < 4; ++j, rest &= rest - 1)
                of[4 * stratum + j] = uint32_t(__builtin_ctz(rest)) + 16 * uint32_t(stratum);
        }
    }
};
inline Vector take_quarters(const float* from, const uint16_t* bits) {
    const Positions at(bits);
    return Vector{from[at.of[0]], from[at.of[1]], from[at.of[2]], from[at.of[3]],
                  from[at.of[4]], from[at.of[5]], from[at.of[6]], from[at.of[7]]};
}
inline void put_quarters(Vector values, const uint16_t* bits, float* to) {
    const Positions at(bits);
    for (int j = 0; j < kLanes; ++j)
        to[at.of[j]] = values[j];
}

#endif

// The same for whole strata of which each has `chosen` bits set.
template <class T> void compress(const T* from, const uint16_t* bits, int strata, int chosen, T* out) {
    for (int i = 0; i < strata; ++i)
        compress16<T>(from + 16 * i, bits[i], out + chosen * i);
}
template <class T> void expand(const T* from, const uint16_t* bits, int strata, int chosen, T* to) {
    for (int i = 0; i < strata; ++i)
        expand16<T>(from + chosen * i, bits[i], to + 16 * i);
}

} // namespace
} // namespace LK_ISA
} // namespace lk
