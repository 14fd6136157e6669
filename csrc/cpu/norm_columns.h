// Sixteen columns of a row at a time, of any number of columns: arithmetic, rounding, loads, and stores past the caches.
// Included within a tier: what it defines is compiled once per LK_ISA.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "lanes.h"

namespace lk {
namespace LK_ISA {
namespace {

template <int N> using Int = std::integral_constant<int, N>;

template <class W, class F, class... L> inline Lanes<W> each(const F& f, const L&... lanes) {
    Lanes<W> out;
#pragma GCC unroll 8
    for (int k = 0; k < kPacks<W>; ++k)
        out.packs[k] = f(lanes.packs[k]...);
    return out;
}
template <class W> inline Lanes<W> plus(const Lanes<W>& a, const Lanes<W>& b) {
    return each<W>([](Pack<W> x, Pack<W> y) { return x + y; }, a, b);
}
template <class W> inline Lanes<W> times(const Lanes<W>& a, const Lanes<W>& b) {
    return each<W>([](Pack<W> x, Pack<W> y) { return x * y; }, a, b);
}
template <class W> inline Lanes<W> times(const Lanes<W>& a, W b) {
    return each<W>([=](Pack<W> x) { return x * b; }, a);
}

#if defined(__AVX2__)
inline void store_high_halves(Pack<float> numbers, bf16* p) {
    Bits32 bits;
    memcpy(&bits, &numbers, sizeof bits);
    bits >>= 16;
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(__m512i(bits)));
#else
    const __m128i low = _mm256_castsi256_si128(__m256i(bits)), high = _mm256_extracti128_si256(__m256i(bits), 1);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm_packus_epi32(low, high));
#endif
}
#endif

// The first n elements from p; 0 beyond. n is Int<16> but for the last columns of a row.
template <class W, class X, class N> inline Lanes<W> load_lanes(const X* p, N n) {
    X rest[kTree] = {};
    if constexpr (!std::is_same_v<N, Int<kTree>>) {
        memcpy(rest, p, size_t(n) * sizeof(X));
        p = rest;
    }
    Lanes<W> lanes;
#pragma GCC unroll 8
    for (int k = 0; k < kPacks<W>; ++k)
        lanes.packs[k] = load_pack<W>(p + k * kWidth<W>);
    return lanes;
}

// The first n of sixteen numbers to p, or all of them past the caches, so that no line is read just to be overwritten.
// pack(numbers, out) writes one vector of them.
template <class W, class X, class N, class F>
inline void store_packs(const Lanes<W>& lanes, X* p, N n, bool past_caches, const F& pack) {
    if constexpr (!std::is_same_v<N, Int<kTree>>) {
        X numbers[kTree];
        for (int k = 0; k < kPacks<W>; ++k)
            pack(lanes.packs[k], numbers + k * kWidth<W>);
        memcpy(p, numbers, size_t(n) * sizeof(X));
    } else if (past_caches) {
#pragma GCC unroll 8
        for (int k = 0; k < kPacks<W>; ++k) {
            alignas(64) X numbers[kWidth<W>];
            pack(lanes.packs[k], numbers);
            stream_bytes<int(sizeof numbers)>(numbers, p + k * kWidth<W>);
        }
    } else {
#pragma GCC unroll 8
        for (int k = 0; k < kPacks<W>; ++k)
            pack(lanes.packs[k], p + k * kWidth<W>);
    }
}
template <class W, class X, class N> inline void store_lanes(const Lanes<W>& lanes, X* p, N n, bool past_caches = false) {
    store_packs(lanes, p, n, past_caches, [](Pack<W> numbers, X* out) { store_pack<W>(numbers, out); });
}

// Of numbers that X holds exactly.
template <class W, class X, class N> inline void store_exact(const Lanes<W>& lanes, X* p, N n, bool past_caches) {
#if defined(__AVX2__)
    if constexpr (std::is_same_v<X, bf16>)
        return store_packs(lanes, p, n, past_caches, [](Pack<W> numbers, X* out) { store_high_halves(numbers, out); });
#endif
    store_lanes(lanes, p, n, past_caches);
}

// The numbers that X can hold next to these.
template <class X, class W> inline Lanes<W> rounded(const Lanes<W>& lanes) {
    if constexpr (std::is_same_v<X, W>) {
        return lanes;
    } else if constexpr (std::is_same_v<X, bf16>) { // narrow() and widen() of numbers.h in one
        return each<W>(
            [](Pack<W> x) {
                Bits32 bits;
                memcpy(&bits, &x, sizeof bits);
                const Bits32 near = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
                const Bits32 kept = x == x ? near : Bits32{} + 0x7fc00000u;
                memcpy(&x, &kept, sizeof x);
                return x;
            },
            lanes);
    } else {
        return each<W>(
            [](Pack<W> x) {
                X numbers[kWidth<W>];
                store_pack<W>(x, numbers);
                return load_pack<W>(numbers);
            },
            lanes);
    }
}

// Memory is asked for some columns ahead, which may be those of the next row: the processor's own look-ahead, spread over so
// many streams, comes late.
template <class X> inline void prefetch(const X* p) {
    constexpr int kAhead = 1024;
    __builtin_prefetch(p + kAhead);
}

// f(first column, how many) for 16 columns after the other.
template <class F> inline void for_columns(int64_t hidden, const F& f) {
    int64_t j = 0;
    for (; j + kTree <= hidden; j += kTree)
        f(j, Int<kTree>());
    if (j < hidden)
        f(j, int(hidden - j));
}

constexpr int kFold = 16; // so many numbers add up in a lane before they join a longer sum: no sum is long

// A sum over the columns of a row.
template <class W> struct RowSum {
    Lanes<W> total = lanes_of(W(0)), latest = lanes_of(W(0));
    int left = kFold;
    inline void add(const Lanes<W>& lanes) {
        latest = plus(latest, lanes);
        if (--left == 0)
            fold();
    }
    inline void fold() {
        total = plus(total, latest);
        latest = lanes_of(W(0));
        left = kFold;
    }
    double result() {
        fold();
        W x[kTree];
        memcpy(x, &total, sizeof x);
        double sums[kTree / 2];
        for (int i = 0; i < kTree / 2; ++i)
            sums[i] = double(x[i]) + double(x[i + kTree / 2]);
        return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
    }
};

} // namespace
} // namespace LK_ISA
} // namespace lk
