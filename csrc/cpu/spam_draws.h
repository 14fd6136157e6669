// What SPAM draws at random, by position in the whole parameter: the masks of a cycle and the roundings of a step.
// Included within a tier: what it defines is compiled once per LK_ISA.
#pragma once

#include <cstdint>

#include "philox_lanes.h"
#include "spam.h"

namespace lk {
namespace LK_ISA {
namespace {

constexpr int kBlock = 512; // elements of p at a time: a block's buffers stay in the first-level cache

// Words of n consecutive positions: word position % 4 of the Philox block position / 4.
// out has room for n + 4 * (kPhiloxLanes + 1) words.
inline const uint32_t* random_words(uint64_t first, int n, uint32_t c2, uint32_t c3, uint64_t seed, uint32_t stream,
                                    uint32_t* out) {
    const int skip = int(first & 3);
    for (int done = 0; done < n + skip; done += 4 * kPhiloxLanes)
        philox_lanes(out + done, (first >> 2) + done / 4, c2, c3, seed, stream);
    return out + skip;
}

// Calls f(done, global position, length) for each run of n elements from start that is consecutive in the whole parameter.
template <class F> void for_global_runs(const SpamTask& task, int64_t start, int n, const F& f) {
    for (int done = 0; done < n;) {
        const int64_t e = start + done, inside = e % task.local_block;
        const int64_t left = task.local_block - inside;
        const int length = left < n - done ? int(left) : n - done;
        f(done, uint64_t(e / task.local_block * task.global_block + task.offset + inside), length);
        done += length;
    }
}

// The words that round the moments of n elements of p from start: the low half exp_avg's, the high half exp_avg_sq's.
inline void rounding_words(const SpamTask& task, const SpamCall& call, int64_t start, int n, uint32_t* out) {
    uint32_t scratch[kBlock + 4 * (kPhiloxLanes + 1)];
    for_global_runs(task, start, n, [&](int done, uint64_t position, int length) {
        const uint32_t* words =
            random_words(position, length, uint32_t(task.phase.n), task.index, call.hyper.seed, kRoundingStream, scratch);
        for (int i = 0; i < length; ++i)
            out[done + i] = words[i];
    });
}

inline uint32_t unrank(const SpamCall& call, uint32_t word) {
    return call.combinations[uint64_t(word) * call.n_combinations >> 32];
}

// Which of 16 each stratum of n elements from start draws, as bits.
inline void drawn_elements(const SpamTask& task, const SpamCall& call, int64_t start, int n, uint16_t* bits) {
    uint32_t scratch[kBlock / kStratum + 4 * (kPhiloxLanes + 1)];
    for_global_runs(task, start, n, [&](int done, uint64_t position, int length) {
        const int strata = length / kStratum;
        const uint32_t* words = random_words(position / kStratum, strata, uint32_t(task.phase.cycle), task.index,
                                             call.hyper.seed, kMaskStream, scratch);
        for (int i = 0; i < strata; ++i)
            bits[done / kStratum + i] = uint16_t(unrank(call, words[i]));
    });
}

// Which of its 16 rows a stratum of the shard draws, as bits.
inline uint32_t drawn_rows(const SpamTask& task, const SpamCall& call, int64_t local_stratum) {
    const uint64_t stratum = uint64_t(task.row_offset / kStratum + local_stratum);
    uint32_t c[4] = {uint32_t(stratum >> 2), uint32_t(stratum >> 34), uint32_t(task.phase.cycle), task.index};
    philox(c, call.hyper.seed, kMaskStream);
    return unrank(call, c[stratum & 3]);
}

} // namespace
} // namespace LK_ISA
} // namespace lk
