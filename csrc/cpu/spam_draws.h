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

// Positions of the draws of `count` strata from position `first` of the block. Fixed counts let the compiler unroll.
template <int Fixed> int* expand_draws(const SpamCall& call, const uint32_t* words, int count, int first, int* next) {
    const int chosen = Fixed ? Fixed : call.hyper.chosen;
    for (int stratum = 0; stratum < count; ++stratum, next += chosen) {
        const uint32_t rank = uint32_t(uint64_t(words[stratum]) * call.n_combinations >> 32);
        const uint8_t* combination = call.combinations + int64_t(rank) * chosen;
        for (int j = 0; j < chosen; ++j)
            next[j] = first + stratum * kStratum + combination[j];
    }
    return next;
}

// Positions in the block (of n elements from start, whole strata) of the drawn elements, in order; returns their number.
inline int drawn_elements(const SpamTask& task, const SpamCall& call, int64_t start, int n, int* out) {
    uint32_t scratch[kBlock / kStratum + 4 * (kPhiloxLanes + 1)];
    int* next = out;
    for_global_runs(task, start, n, [&](int done, uint64_t position, int length) {
        const int strata = length / kStratum;
        const uint32_t* words = random_words(position / kStratum, strata, uint32_t(task.phase.cycle), task.index,
                                             call.hyper.seed, kMaskStream, scratch);
        switch (call.hyper.chosen) {
        case 4:
            next = expand_draws<4>(call, words, strata, done, next);
            break;
        case 8:
            next = expand_draws<8>(call, words, strata, done, next);
            break;
        default:
            next = expand_draws<0>(call, words, strata, done, next);
        }
    });
    return int(next - out);
}

// The rows that a stratum draws, as bits.
inline uint32_t drawn_rows(const SpamTask& task, const SpamCall& call, int64_t local_stratum) {
    const uint64_t stratum = uint64_t(task.row_offset / kStratum + local_stratum);
    uint32_t c[4] = {uint32_t(stratum >> 2), uint32_t(stratum >> 34), uint32_t(task.phase.cycle), task.index};
    philox(c, call.hyper.seed, kMaskStream);
    const uint32_t rank = uint32_t(uint64_t(c[stratum & 3]) * call.n_combinations >> 32);
    uint32_t bits = 0;
    for (int j = 0; j < call.hyper.chosen; ++j)
        bits |= 1u << call.combinations[int64_t(rank) * call.hyper.chosen + j];
    return bits;
}

} // namespace
} // namespace LK_ISA
} // namespace lk
