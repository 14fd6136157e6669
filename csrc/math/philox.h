// Philox4x32-10 (Salmon et al. 2011): counter-based random words, keyed by the halves of a seed.
#pragma once

#include <cstdint>

#include "macros.h"

namespace lk {

constexpr uint32_t kMaskStream = 0, kRoundingStream = 0x5F3759DFu; // keep the draws of masks and of roundings apart

// One block of four words in place: c[0..3] is the counter, then the words.
LK_FN void philox(uint32_t* c, uint64_t seed, uint32_t stream) {
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32) ^ stream;
    for (int round = 0; round < 10; ++round) {
        const uint64_t a = uint64_t(0xD2511F53u) * c[0], b = uint64_t(0xCD9E8D57u) * c[2];
        c[0] = uint32_t(b >> 32) ^ c[1] ^ k0;
        c[1] = uint32_t(b);
        c[2] = uint32_t(a >> 32) ^ c[3] ^ k1;
        c[3] = uint32_t(a);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

} // namespace lk
