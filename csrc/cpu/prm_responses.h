// Responses: what is known of one while its steps come, and those that are finished, which are written many at a time.
// Included within a tier: what it defines is compiled once per LK_ISA.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "../math/prm.h"
#include "prm.h"

namespace lk {
namespace LK_ISA {
namespace {

template <class W> struct Pair;
template <> struct Pair<float> {
    using Place = int32_t;
    typedef float Keys __attribute__((vector_size(16)));
    typedef Place Places __attribute__((vector_size(16)));
    static constexpr Keys kSigns = {1, -1, 1, -1};
};
template <> struct Pair<double> {
    using Place = int64_t;
    typedef double Keys __attribute__((vector_size(16)));
    typedef Place Places __attribute__((vector_size(16)));
    static constexpr Keys kSigns = {1, -1};
};

// The least key and the least negated key, and the first places of both; NaN is passed over. In vectors, since GCC makes of the
// same choices between numbers now branches, now chains of slow moves.
template <class W> struct Extremes {
    using P = Pair<W>;
    typename P::Keys least;
    typename P::Places places;

    Extremes(W low, W high, int place)
        : least(typename P::Keys{low, -high}), places(typename P::Places{} + typename P::Place(place)) {}
    void add(W key, int place) {
        const typename P::Keys keys = key * P::kSigns;
        const typename P::Places less = keys < least;
        least = less ? keys : least;
        places = less ? typename P::Places{} + typename P::Place(place) : places;
    }
};

// Rows are those of the call, indices those of the response. Sums run in double in the order of the steps.
template <class W> struct Tally {
    int64_t count = 0, argmin = -1, argmax = -1, first_error = -1;
    int64_t min_row = 0, max_row = 0, last_row = 0;
    W low = W(INFINITY), high = -W(INFINITY);
    double margin = 0, prob = 0, log_prob = 0;
    bool nan = false;

    // Steps begin .. end - 1 of a block. key: what they are ordered by; right(key): whether such a step is right.
    template <class Rows, class Right>
    void add(const Rows& rows, int begin, int end, const W* margins, const W* probs, const W* log_probs, const W* keys,
             const Right& right) {
        if (begin == end)
            return;
        Extremes<W> extremes(low, high, count == 0 ? begin : -1);
        int right_at_first = 0;
        bool all_right = true;
        double margin_sum = margin, prob_sum = prob, log_prob_sum = log_prob;
        for (int i = begin; i < end; ++i) {
            extremes.add(keys[i], i);
            all_right &= right(keys[i]);
            right_at_first += all_right;
            margin_sum += double(margins[i]);
            prob_sum += double(probs[i]);
            log_prob_sum += double(log_probs[i]);
        }
        low = extremes.least[0], high = -extremes.least[1];
        int lowest = int(extremes.places[0]), highest = int(extremes.places[1]);
        margin = margin_sum, prob = prob_sum, log_prob = log_prob_sum;
        if (prob_sum != prob_sum && !nan) { // the first NaN is the least and the greatest, and stays so
            for (lowest = begin; probs[lowest] == probs[lowest];)
                ++lowest;
            highest = lowest;
            nan = true, low = -W(INFINITY), high = W(INFINITY);
        }
        const int64_t local = count - begin; // from a step of this block to its index in the response
        if (lowest >= 0)
            argmin = local + lowest, min_row = rows[lowest];
        if (highest >= 0)
            argmax = local + highest, max_row = rows[highest];
        if (!all_right && first_error < 0)
            first_error = count + right_at_first;
        last_row = rows[end - 1];
        count += end - begin;
    }
};

// Writing an output row by row keeps few streams of memory open, and what sums become is computed in vectors.
template <class W> struct Finished {
    static constexpr int kMost = 64;
    int n = 0;
    double count[kMost], margin[kMost], prob[kMost], log_prob[kMost]; // sums
    W aggregates[kAggregates][kMost];
    int64_t indices[kIndices][kMost];
    bool min_is_last[kMost];

    // margins, probs: of all rows of the call.
    void take(const Tally<W>& t, const W* margins, const W* probs) {
        const bool some = t.count > 0;
        const auto at = [some](const W* scores, int64_t row) { return some ? scores[row] : W(NAN); };
        aggregates[kMin][n] = at(probs, t.min_row);
        aggregates[kMax][n] = at(probs, t.max_row);
        aggregates[kLast][n] = at(probs, t.last_row);
        aggregates[kMinMargin][n] = at(margins, t.min_row);
        aggregates[kMaxMargin][n] = at(margins, t.max_row);
        aggregates[kLastMargin][n] = at(margins, t.last_row);
        indices[kCount][n] = t.count;
        indices[kArgmin][n] = t.argmin;
        indices[kArgmax][n] = t.argmax;
        indices[kFirstError][n] = t.first_error;
        min_is_last[n] = some && t.argmin == t.count - 1;
        count[n] = double(t.count), margin[n] = t.margin, prob[n] = t.prob, log_prob[n] = t.log_prob;
        ++n;
    }

    // Writes all of them, the last of which comes before response `next`. An empty one's quotients are 0 / 0.
    void write(const PrmCall& call, int64_t next) {
        double mean[kMost], mean_margin[kMost], product[kMost], geometric_mean[kMost];
        for (int i = 0; i < n; ++i) {
            mean[i] = prob[i] / count[i];
            mean_margin[i] = margin[i] / count[i];
            product[i] = exp_bounded(log_prob[i]);
            geometric_mean[i] = exp_bounded(log_prob[i] / count[i]);
        }
        for (int i = 0; i < n; ++i) {
            aggregates[kMean][i] = W(mean[i]);
            aggregates[kMeanMargin][i] = W(mean_margin[i]);
            aggregates[kProduct][i] = W(product[i]);
            aggregates[kLogProduct][i] = W(log_prob[i]);
            aggregates[kGeometricMean][i] = W(geometric_mean[i]);
        }
        const auto put = [&](auto* out, const auto* rows, int count_of_rows) {
            for (int row = 0; row < count_of_rows; ++row)
                std::copy_n(rows + row * kMost, n, out + row * call.responses + next - n);
        };
        put(reinterpret_cast<W*>(call.aggregates), aggregates[0], kAggregates);
        put(call.indices, indices[0], kIndices);
        put(call.min_is_last, min_is_last, 1);
        n = 0;
    }
};

} // namespace
} // namespace LK_ISA
} // namespace lk
