// Sixteen numbers at a time, in vectors of the tier's width, read from and written to elements of any of the four dtypes.
// Sums run over the 16 lanes in every tier and then up one tree, so that they have the same bits. Included within a tier.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "../math/exp.h"
#include "../math/numbers.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace lk {
namespace LK_ISA {
namespace {

constexpr int kTree = 16; // lanes of every sum

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
constexpr int kVectorBytes = 32;
#else
constexpr int kVectorBytes = 16;
#endif

template <class W> struct Vectors;
template <> struct Vectors<float> {
    typedef float Type __attribute__((vector_size(kVectorBytes)));
};
template <> struct Vectors<double> {
    typedef double Type __attribute__((vector_size(kVectorBytes)));
};
typedef uint32_t Bits32 __attribute__((vector_size(kVectorBytes)));
typedef uint64_t Bits64 __attribute__((vector_size(kVectorBytes)));

// One vector of W, and how many make the 16 lanes.
template <class W> using Pack = typename Vectors<W>::Type;
template <class W> constexpr int kWidth = kVectorBytes / int(sizeof(W));
template <class W> constexpr int kPacks = kTree / kWidth<W>;

template <class W> inline Pack<W> all(W x) { return Pack<W>{} + x; }

// kWidth<W> elements from p, as W.
template <class W, class S> inline Pack<W> load_pack(const S* p) {
    W numbers[kWidth<W>];
    for (int i = 0; i < kWidth<W>; ++i)
        numbers[i] = W(widen(p[i]));
    Pack<W> pack;
    memcpy(&pack, numbers, sizeof pack);
    return pack;
}
template <> inline Pack<float> load_pack<float, float>(const float* p) {
    Pack<float> pack;
    memcpy(&pack, p, sizeof pack);
    return pack;
}
template <> inline Pack<double> load_pack<double, double>(const double* p) {
    Pack<double> pack;
    memcpy(&pack, p, sizeof pack);
    return pack;
}

// The inverse, rounded to S.
template <class W, class S> inline void store_pack(Pack<W> pack, S* p) {
    W numbers[kWidth<W>];
    memcpy(numbers, &pack, sizeof pack);
    for (int i = 0; i < kWidth<W>; ++i)
        narrow(numbers[i], p[i]);
}
template <> inline void store_pack<float, float>(Pack<float> pack, float* p) { memcpy(p, &pack, sizeof pack); }
template <> inline void store_pack<double, double>(Pack<double> pack, double* p) { memcpy(p, &pack, sizeof pack); }

#if defined(__AVX512F__)

template <> inline Pack<float> load_pack<float, bf16>(const bf16* p) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return Pack<float>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
template <> inline Pack<float> load_pack<float, f16>(const f16* p) {
    return Pack<float>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
}
template <> inline void store_pack<float, f16>(Pack<float> pack, f16* p) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph(__m512(pack), _MM_FROUND_TO_NEAREST_INT));
}

#elif defined(__AVX2__)

template <> inline Pack<float> load_pack<float, bf16>(const bf16* p) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return Pack<float>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
template <> inline Pack<float> load_pack<float, f16>(const f16* p) {
    return Pack<float>(_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
template <> inline void store_pack<float, f16>(Pack<float> pack, f16* p) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(__m256(pack), _MM_FROUND_TO_NEAREST_INT));
}

#endif

#if defined(__AVX2__)

// narrow() of numbers.h, lane by lane.
template <> inline void store_pack<float, bf16>(Pack<float> pack, bf16* p) {
    Bits32 bits;
    memcpy(&bits, &pack, sizeof bits);
    const Bits32 rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    const Bits32 result = pack == pack ? rounded : Bits32{} + 0x7fc0u;
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(__m512i(result)));
#else
    const __m128i low = _mm256_castsi256_si128(__m256i(result)), high = _mm256_extracti128_si256(__m256i(result), 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(low, high));
#endif
}

#endif

// One vector's bytes past the caches, both places aligned to their number. Fewer than 16 are stored as always.
template <int kBytes> inline void stream_bytes(const void* from, void* to) {
#if defined(__AVX512F__)
    if constexpr (kBytes == 64)
        return _mm512_stream_si512(static_cast<__m512i*>(to), _mm512_load_si512(from));
#endif
#if defined(__AVX2__)
    if constexpr (kBytes == 32)
        return _mm256_stream_si256(static_cast<__m256i*>(to), _mm256_load_si256(static_cast<const __m256i*>(from)));
#endif
#if defined(__SSE2__)
    if constexpr (kBytes == 16)
        return _mm_stream_si128(static_cast<__m128i*>(to), _mm_load_si128(static_cast<const __m128i*>(from)));
#endif
    memcpy(to, from, kBytes);
}

// store_pack past the caches, to memory aligned to kStreamAlignment<S>. The writer fences before others may read.
template <class S> constexpr int kStreamAlignment = kWidth<float> * int(sizeof(S)) < 16 ? 16 : kWidth<float> * int(sizeof(S));
template <class W, class S> inline void stream_pack(Pack<W> pack, S* p) {
    alignas(64) S numbers[kWidth<W>];
    store_pack<W>(pack, numbers);
    stream_bytes<int(sizeof numbers)>(numbers, p);
}
inline void stream_fence() {
#if defined(__SSE2__)
    _mm_sfence();
#endif
}

// Sixteen running sums (or maxima).
template <class W> struct Lanes {
    Pack<W> packs[kPacks<W>];
};
template <class W> inline Lanes<W> lanes_of(W x) {
    Lanes<W> lanes;
    for (int k = 0; k < kPacks<W>; ++k)
        lanes.packs[k] = all(x);
    return lanes;
}
// In double: up the tree of a short row more digits would be lost than along the lanes.
template <class W> inline double sum_of(const Lanes<W>& lanes) {
    W numbers[kTree];
    memcpy(numbers, &lanes, sizeof numbers);
    double x[kTree];
    for (int i = 0; i < kTree; ++i)
        x[i] = double(numbers[i]);
    // Written out: a loop over the width is compiled as one.
    const auto fold = [&x](auto width) {
        for (int i = 0; i < width(); ++i)
            x[i] += x[i + width()];
    };
    fold(std::integral_constant<int, 8>());
    fold(std::integral_constant<int, 4>());
    fold(std::integral_constant<int, 2>());
    return x[0] + x[1];
}

// A sum that grows by a pack at a time.
template <class W> struct LaneSum {
    Lanes<W> lanes = lanes_of(W(0));
    void add(int k, Pack<W> x) { lanes.packs[k] += x; }
    double total() const { return sum_of(lanes); }
};
// Of doubles, which no wider type can sum, with what each addition rounds off (Knuth's two-sum).
template <> struct LaneSum<double> {
    Lanes<double> lanes = lanes_of(0.0), lost = lanes;
    static void add(Pack<double>& sum, Pack<double>& lost, Pack<double> x) {
        const Pack<double> next = sum + x, added = next - sum;
        lost += (sum - (next - added)) + (x - added);
        sum = next;
    }
    void add(int k, Pack<double> x) { add(lanes.packs[k], lost.packs[k], x); }
    double total() const {
        double x[kTree], sum = 0, rest = sum_of(lost);
        memcpy(x, &lanes, sizeof x);
        for (int i = 0; i < kTree; ++i) {
            const double next = sum + x[i], added = next - sum;
            rest += (sum - (next - added)) + (x[i] - added);
            sum = next;
        }
        return sum + rest;
    }
};
template <class W> inline W largest_of(const Lanes<W>& lanes) {
    W x[kTree];
    memcpy(x, &lanes, sizeof x);
    for (int i = 0; i < kTree / 2; ++i)
        x[i] = x[i + kTree / 2] > x[i] ? x[i + kTree / 2] : x[i];
    for (int i = 1; i < kTree / 2; ++i)
        x[0] = x[i] > x[0] ? x[i] : x[0];
    return x[0];
}

} // namespace
} // namespace LK_ISA

// The maxima by name, where there is one instruction that compilers do not find for vectors.
template <> struct Lane<LK_ISA::Pack<float>> {
    using Number = float;
    using Bits = LK_ISA::Bits32;
    using V = LK_ISA::Pack<float>;
    static inline __attribute__((always_inline)) V larger(V a, V b) {
#if defined(__AVX512F__)
        return V(_mm512_maskz_max_ps(__mmask16(0xffff), __m512(a), __m512(b)));
#elif defined(__AVX2__)
        return V(_mm256_max_ps(__m256(a), __m256(b)));
#elif defined(__SSE2__)
        return V(_mm_max_ps(__m128(a), __m128(b)));
#else
        return a > b ? a : b;
#endif
    }
};
template <> struct Lane<LK_ISA::Pack<double>> {
    using Number = double;
    using Bits = LK_ISA::Bits64;
    using V = LK_ISA::Pack<double>;
    static inline __attribute__((always_inline)) V larger(V a, V b) { return a > b ? a : b; }
};

} // namespace lk
