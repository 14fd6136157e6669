// Step scores of process reward models and all aggregates of each response in one launch: a warp a response, or a block where
// responses are long.
#pragma once

#include <cmath>
#include <cstdint>

#include "../cpu/prm.h"
#include "../math/prm.h"
#include "block_sum.cuh"

namespace lk {

constexpr int kPrmThreads = 256, kPrmWarps = kPrmThreads / kWarpSize;
constexpr int64_t kNowhere = int64_t(1) << 62; // a place after all steps

struct PrmForward : PrmCall {
    double bound;      // what the key of a right step reaches
    bool whole_blocks; // a block a response
};

// A sum, and what all its roundings lost: two-sum of Knuth. Infinities lose nothing.
template <class W> struct PrmSum {
    W sum, lost;
    LK_MEMBER void add(W x) {
        const W total = sum + x, part = total - sum;
        const W error = (sum - (total - part)) + (x - part);
        sum = total;
        lost += error == error ? error : W(0);
    }
    LK_MEMBER void add(const PrmSum& other) {
        add(other.sum);
        lost += other.lost;
    }
    // The sum to its last digit; lost is then what this rounding lost.
    LK_MEMBER void settle() {
        const W total = sum + lost, error = (sum - total) + lost;
        sum = total;
        lost = error == error ? error : W(0);
    }
};

template <class W> struct PrmExtreme {
    W key;
    int64_t at;
};

// What is known of some steps of a response. Keys are the probabilities where these are given, else the margins.
template <class W> struct PrmTally {
    int64_t count, nan_at, wrong_at;
    PrmExtreme<W> least, greatest, last; // NaN is passed over but by last; of greatest the key has its sign turned
    PrmSum<W> margin, prob, log_prob;

    LK_MEMBER void clear() {
        count = 0, nan_at = wrong_at = kNowhere;
        least = greatest = {W(INFINITY), kNowhere}, last = {W(NAN), -1};
        margin = prob = log_prob = {W(0), W(0)};
    }
    LK_MEMBER static void lower(PrmExtreme<W>& a, const PrmExtreme<W>& b) {
        if (b.key < a.key || (b.key == a.key && b.at < a.at))
            a = b;
    }
    LK_MEMBER void add(int64_t at, W key, bool right, const StepScore<W>& score, bool probabilities) {
        lower(least, {key, at});
        lower(greatest, {-key, at});
        last = {key, at};
        nan_at = key != key && at < nan_at ? at : nan_at;
        wrong_at = !right && at < wrong_at ? at : wrong_at;
        margin.add(score.margin), prob.add(score.prob);
        // Of a margin log p has two parts, whose own sum would be rounded at each step.
        log_prob.add(probabilities ? score.log_prob : key < W(0) ? key : W(0));
        if (!probabilities)
            log_prob.add(-log1p_unit(decay_of(key)));
    }
    // Together with other steps of the response, whose places are counted from the same step.
    LK_MEMBER void join(const PrmTally& b) {
        lower(least, b.least);
        lower(greatest, b.greatest);
        last = b.last.at > last.at ? b.last : last;
        nan_at = b.nan_at < nan_at ? b.nan_at : nan_at;
        wrong_at = b.wrong_at < wrong_at ? b.wrong_at : wrong_at;
        margin.add(b.margin), prob.add(b.prob), log_prob.add(b.log_prob);
    }
    // Counts places from `steps` steps before.
    LK_MEMBER void move(int64_t steps) {
        const auto moved = [=](int64_t at) { return at == kNowhere || at < 0 ? at : at + steps; };
        least.at = moved(least.at), greatest.at = moved(greatest.at), last.at = moved(last.at);
        nan_at = moved(nan_at), wrong_at = moved(wrong_at);
    }
};

template <class W> LK_DEVICE PrmTally<W> from_lane(const PrmTally<W>& t, int lanes) {
    const auto take = [=](auto x) { return __shfl_xor_sync(kAllLanes, x, lanes); };
    const auto take_extreme = [&](const PrmExtreme<W>& e) { return PrmExtreme<W>{take(e.key), take(e.at)}; };
    const auto take_sum = [&](const PrmSum<W>& s) { return PrmSum<W>{take(s.sum), take(s.lost)}; };
    PrmTally<W> other;
    other.count = t.count;
    other.nan_at = take(t.nan_at), other.wrong_at = take(t.wrong_at);
    other.least = take_extreme(t.least), other.greatest = take_extreme(t.greatest), other.last = take_extreme(t.last);
    other.margin = take_sum(t.margin), other.prob = take_sum(t.prob), other.log_prob = take_sum(t.log_prob);
    return other;
}

template <class W> LK_FN W score_at(const PrmForward& a, int64_t row, int64_t column) {
    W x;
    load_numbers<1>(a.scores, a.scores_type, row * a.row_stride + column * a.class_stride, &x);
    return x;
}

// log of the weight that a class has in right (or in wrong): what its logit gets added. -inf: it has no part in it.
template <class W> LK_FN W log_weight(const PrmForward& a, int64_t column, bool right) {
    const W weight = a.weights ? reinterpret_cast<const W*>(a.weights)[column] : W(column == a.positive);
    return log_finite(right ? weight : W(1) - weight);
}

// The classes of one side: their largest logit, and the sum of exponentials relative to it.
template <class W> LK_FN void side_of(const PrmForward& a, int64_t row, bool right, W& top, W& sum) {
    top = -W(INFINITY), sum = W(0);
    for (int64_t c = 0; c < a.classes; ++c)
        if (const W weight = log_weight<W>(a, c, right); weight != -W(INFINITY))
            top = larger(score_at<W>(a, row, c) + weight, top); // NaN is left to the sums
    for (int64_t c = 0; c < a.classes; ++c)
        if (const W weight = log_weight<W>(a, c, right); weight != -W(INFINITY))
            sum += softmax_term(score_at<W>(a, row, c) + weight, top);
}

template <class W> LK_FN W key_of(const PrmForward& a, int64_t row) {
    if (a.classes == 1)
        return score_at<W>(a, row, 0);
    if (a.classes == 2 && !a.weights)
        return score_at<W>(a, row, a.positive) - score_at<W>(a, row, 1 - a.positive);
    W right, right_sum, wrong, wrong_sum;
    side_of(a, row, true, right, right_sum);
    side_of(a, row, false, wrong, wrong_sum);
    return margin_of_sums(right, right_sum, wrong, wrong_sum);
}

template <class W> LK_FN StepScore<W> score_of(const PrmForward& a, W key) {
    return a.probabilities ? score_of_prob(key) : score_of_margin(key);
}

template <class W> LK_FN void store_step(const PrmForward& a, int64_t row, const StepScore<W>& score) {
    W* const steps = reinterpret_cast<W*>(a.steps) + row;
    steps[kMargin * a.rows] = score.margin, steps[kProb * a.rows] = score.prob, steps[kLogProb * a.rows] = score.log_prob;
}

// Whatever the offsets hold, rows lie in 0 .. S - 1.
LK_FN int64_t inside(const PrmForward& a, int64_t which) {
    const int64_t offset = a.offsets[which];
    return offset < 0 ? 0 : offset > a.rows ? a.rows : offset;
}

// Rows begin .. end - 1 of a response by one warp; places are counted from its first step. Every lane gets the whole tally.
template <class W> LK_DEVICE PrmTally<W> tally_of(const PrmForward& a, int64_t begin, int64_t end) {
    const int lane = int(threadIdx.x) % kWarpSize;
    const W bound = W(a.bound);
    PrmTally<W> tally;
    tally.clear();
    for (int64_t start = begin; start < end; start += kWarpSize) {
        const int64_t row = start + lane;
        const bool exists = row < end, is_step = exists && (!a.mask || a.mask[row]);
        const uint32_t steps = __ballot_sync(kAllLanes, is_step);
        if (is_step) {
            const W key = key_of<W>(a, row);
            const StepScore<W> score = score_of(a, key);
            store_step(a, row, score);
            tally.add(tally.count + bits_set(steps & ((1u << lane) - 1)), key, a.strict ? key > bound : key >= bound, score,
                      a.probabilities);
        } else if (exists) {
            store_step<W>(a, row, {W(NAN), W(NAN), W(NAN)});
        }
        tally.count += bits_set(steps);
    }
    for (int lanes = kWarpSize / 2; lanes; lanes /= 2)
        tally.join(from_lane(tally, lanes));
    return tally;
}

template <class W> LK_FN void finish(const PrmForward& a, int64_t response, PrmTally<W> t) {
    const bool some = t.count > 0, usual = some && t.nan_at == kNowhere;
    const W n = W(t.count);
    t.margin.settle(), t.prob.settle(), t.log_prob.settle();
    const StepScore<W> least = score_of(a, usual ? t.least.key : W(NAN)), last = score_of(a, t.last.key);
    const StepScore<W> greatest = score_of(a, usual ? -t.greatest.key : W(NAN));
    const W product = std::exp(t.log_prob.sum); // a subnormal one too, which exp_bounded takes for 0
    const auto index = [&](int64_t at) { return at == kNowhere ? int64_t(-1) : at; };
    const int64_t argmin = index(usual ? t.least.at : t.nan_at), argmax = index(usual ? t.greatest.at : t.nan_at);
    const auto put = [&](PrmAggregate which, W value) {
        reinterpret_cast<W*>(a.aggregates)[which * a.responses + response] = value;
    };
    put(kMin, least.prob), put(kMax, greatest.prob), put(kLast, last.prob);
    put(kMean, t.prob.sum / n), put(kProduct, product + product * t.log_prob.lost), put(kLogProduct, t.log_prob.sum);
    put(kGeometricMean, std::exp(t.log_prob.sum / n)), put(kMeanMargin, t.margin.sum / n);
    put(kMinMargin, least.margin), put(kMaxMargin, greatest.margin), put(kLastMargin, last.margin);
    const int64_t places[kIndices] = {t.count, argmin, argmax, index(t.wrong_at)};
    for (int i = 0; i < kIndices; ++i)
        a.indices[i * a.responses + response] = places[i];
    a.min_is_last[response] = some && argmin == t.count - 1;
}

// NaN into rows that lie before or after all responses: none, if the offsets are right.
template <class W> LK_DEVICE void fill_outside(const PrmForward& a) {
    const auto fill = [&](int64_t begin, int64_t end) {
        for (int64_t row = begin + threadIdx.x; row < end; row += blockDim.x)
            store_step<W>(a, row, {W(NAN), W(NAN), W(NAN)});
    };
    if (blockIdx.x == 0)
        fill(0, inside(a, 0));
    if (blockIdx.x == gridDim.x - 1)
        fill(inside(a, a.responses), a.rows);
}

// p = sigmoid(z), log p = -softplus(-z) of each step; minimum, maximum, last, sums and first error of each response.
// Reads the scores once (of more than two classes four times, from cache but for the first) and writes 3 numbers a step: with
// two bf16 logits 16 bytes a step, the least possible, and 85 a response. Sums are compensated. Of a block's response each
// warp takes a run of rows, and thread 0 joins what the warps know, in their order.
template <class W> __global__ void __launch_bounds__(kPrmThreads) prm_forward(const __grid_constant__ PrmForward a) {
    LK_SHARED(PrmTally<W>[kPrmWarps], tallies);
    fill_outside<W>(a);
    const int warp = int(threadIdx.x) / kWarpSize, warps = int(blockDim.x) / kWarpSize;
    const int64_t response = a.whole_blocks ? int64_t(blockIdx.x) : int64_t(blockIdx.x) * warps + warp;
    if (response >= a.responses)
        return; // whole warps, or the whole block
    int64_t begin = inside(a, response), end = inside(a, response + 1);
    if (!a.whole_blocks) {
        const PrmTally<W> tally = tally_of<W>(a, begin, end);
        if (threadIdx.x % kWarpSize == 0)
            finish(a, response, tally);
        return;
    }
    const int64_t run = ((end - begin + warps - 1) / warps + kWarpSize - 1) / kWarpSize * kWarpSize;
    begin += warp * run;
    end = begin + run < end ? begin + run : end;
    const PrmTally<W> tally = tally_of<W>(a, begin, end);
    if (threadIdx.x % kWarpSize == 0)
        tallies[warp] = tally;
    __syncthreads();
    if (threadIdx.x != 0)
        return;
    PrmTally<W> all = tallies[0];
    for (int i = 1; i < warps; ++i) {
        PrmTally<W> next = tallies[i];
        next.move(all.count);
        all.join(next);
        all.count += next.count;
    }
    finish(a, response, all);
}

// A block a response where responses are long and few, else a warp; returns the number of blocks. Rows outside all responses
// are written too, so there is always one.
inline int64_t prm_plan(PrmForward& a) {
    a.bound = a.probabilities ? a.threshold : logit(a.threshold);
    a.whole_blocks = a.responses < 4096 && a.rows > 512 * a.responses;
    const int64_t of_a_block = a.whole_blocks ? 1 : kPrmWarps, blocks = (a.responses + of_a_block - 1) / of_a_block;
    return blocks ? blocks : 1;
}

} // namespace lk
