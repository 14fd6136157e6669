// Eight consecutive Philox blocks at once, for the tiers: a lane is 64 bits wide, as the products are. Included within a tier.
#pragma once

#include <cstdint>

#include "../math/philox.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

namespace lk {
namespace LK_ISA {
namespace {

constexpr int kPhiloxLanes = 8;

#if defined(__AVX512F__)
using Lanes = __m512i;
inline Lanes lanes_load(const uint64_t* x) { return _mm512_loadu_si512(x); }
inline void lanes_store(uint64_t* x, Lanes a) { _mm512_storeu_si512(x, a); }
inline Lanes lanes_all(uint64_t x) { return _mm512_set1_epi64(int64_t(x)); }
inline Lanes lanes_add(Lanes a, Lanes b) { return _mm512_add_epi64(a, b); }
inline Lanes lanes_multiply(Lanes a, Lanes b) { return _mm512_mul_epu32(a, b); }
inline Lanes lanes_high(Lanes a) { return _mm512_srli_epi64(a, 32); }
inline Lanes lanes_xor(Lanes a, Lanes b) { return _mm512_xor_si512(a, b); }
inline Lanes lanes_pair(Lanes low, Lanes high) {
    return _mm512_or_si512(_mm512_and_si512(low, lanes_all(0xFFFFFFFFu)), _mm512_slli_epi64(high, 32));
}
#elif defined(__AVX2__)
using Lanes = __m256i;
inline Lanes lanes_load(const uint64_t* x) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)); }
inline void lanes_store(uint64_t* x, Lanes a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(x), a); }
inline Lanes lanes_all(uint64_t x) { return _mm256_set1_epi64x(int64_t(x)); }
inline Lanes lanes_add(Lanes a, Lanes b) { return _mm256_add_epi64(a, b); }
inline Lanes lanes_multiply(Lanes a, Lanes b) { return _mm256_mul_epu32(a, b); }
inline Lanes lanes_high(Lanes a) { return _mm256_srli_epi64(a, 32); }
inline Lanes lanes_xor(Lanes a, Lanes b) { return _mm256_xor_si256(a, b); }
inline Lanes lanes_pair(Lanes low, Lanes high) {
    return _mm256_or_si256(_mm256_and_si256(low, lanes_all(0xFFFFFFFFu)), _mm256_slli_epi64(high, 32));
}
#else
using Lanes = uint64_t;
inline Lanes lanes_load(const uint64_t* x) { return *x; }
inline void lanes_store(uint64_t* x, Lanes a) { *x = a; }
inline Lanes lanes_all(uint64_t x) { return x; }
inline Lanes lanes_add(Lanes a, Lanes b) { return a + b; }
inline Lanes lanes_multiply(Lanes a, Lanes b) { return uint64_t(uint32_t(a)) * uint32_t(b); }
inline Lanes lanes_high(Lanes a) { return a >> 32; }
inline Lanes lanes_xor(Lanes a, Lanes b) { return a ^ b; }
inline Lanes lanes_pair(Lanes low, Lanes high) { return uint32_t(low) | high << 32; }
#endif

alignas(64) constexpr uint64_t kLane[kPhiloxLanes] = {0, 1, 2, 3, 4, 5, 6, 7};

// Words of block first + i go to out[4 i .. 4 i + 3]. Only the low halves of the lanes are read, so they need no masking.
inline void philox_lanes(uint32_t* out, uint64_t first, uint32_t c2, uint32_t c3, uint64_t seed, uint32_t stream) {
    constexpr int kWidth = sizeof(Lanes) / 8;
    uint64_t pairs[2][kPhiloxLanes];
    for (int lane = 0; lane < kPhiloxLanes; lane += kWidth) {
        Lanes x0 = lanes_add(lanes_all(first), lanes_load(kLane + lane)), x1 = lanes_high(x0);
        Lanes x2 = lanes_all(c2), x3 = lanes_all(c3);
        uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32) ^ stream;
        for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
            const Lanes a = lanes_multiply(x0, lanes_all(0xD2511F53u)), b = lanes_multiply(x2, lanes_all(0xCD9E8D57u));
            x0 = lanes_xor(lanes_xor(lanes_high(b), x1), lanes_all(k0));
            x2 = lanes_xor(lanes_xor(lanes_high(a), x3), lanes_all(k1));
            x1 = b;
            x3 = a;
        }
        lanes_store(pairs[0] + lane, lanes_pair(x0, x1));
        lanes_store(pairs[1] + lane, lanes_pair(x2, x3));
    }
    for (int i = 0; i < kPhiloxLanes; ++i)
        for (int half = 0; half < 2; ++half)
            __builtin_memcpy(out + 4 * i + 2 * half, pairs[half] + i, 8);
}

} // namespace
} // namespace LK_ISA
} // namespace lk
