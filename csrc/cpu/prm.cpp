// Step scores of process reward models, forward and backward: blocks of steps in vectors, then response by response, compiled
// once per ISA tier (LK_ISA). Results depend neither on tier or threads nor on where a response lies.
#include "prm.h"

#include <cmath>
#include <cstring>

#include "prm_responses.h"
#include "prm_steps.h"

namespace lk {
namespace LK_ISA {
namespace {

// Calls of `work` for the rows of some responses: open(start, n) and close(start, n) around each block, segment(response, from,
// to) for the rows that a response has in it, finish(response) after its last.
template <class Work> void for_blocks(const PrmCall& call, int64_t begin, int64_t end, Work& work) {
    const int64_t* offsets = call.offsets;
    int64_t r = begin;
    for (int64_t start = offsets[begin]; start < offsets[end]; start += kBlock) {
        const int n = int(offsets[end] - start < kBlock ? offsets[end] - start : kBlock);
        work.open(start, n);
        int from = 0;
        while (r < end) {
            const int64_t stop = offsets[r + 1] - start;
            const int to = int(stop < n ? stop : n);
            work.segment(r, from, to);
            if (stop > n)
                break; // goes on in the next block
            work.finish(r++);
            from = to;
        }
        work.close(start, n);
    }
    while (r < end) // without rows
        work.finish(r++);
}

// -------------------------------------------------------------------------------------------------------------- forward

template <class X, class Rows> struct Forward {
    using W = Wide<X>;
    const PrmCall& call;
    Rows rows;
    W bound; // what a right step's key reaches
    W* scores[kScores];
    W room[kScores][Rows::kAll ? 1 : kBlock];
    Tally<W> tally;
    Finished<W> finished;

    explicit Forward(const PrmCall& c) : call(c), bound(W(c.probabilities ? c.threshold : logit(c.threshold))) {}

    W* steps(int kind) const { return reinterpret_cast<W*>(call.steps) + kind * call.rows; }

    void open(int64_t start, int n) {
        const int count = rows.open(call, start, n);
        for (int kind = 0; kind < kScores; ++kind)
            scores[kind] = Rows::kAll ? steps(kind) + start : room[kind];
        W* __restrict margin = scores[kMargin], * __restrict prob = scores[kProb], * __restrict log_prob = scores[kLogProb];
        const Scores<X, Rows> source{call, rows};
        if (call.probabilities) {
            source.margins(count, prob);
            for (int i = 0; i < count; ++i) {
                const StepScore<W> s = score_of_prob(prob[i]);
                margin[i] = s.margin, log_prob[i] = s.log_prob;
            }
        } else {
            source.margins(count, margin);
            for (int i = 0; i < count; ++i) {
                const StepScore<W> s = score_of_margin(margin[i]);
                prob[i] = s.prob, log_prob[i] = s.log_prob;
            }
        }
        if constexpr (!Rows::kAll)
            for (int kind = 0; kind < kScores; ++kind) {
                for (int i = 0; i < n; ++i)
                    steps(kind)[start + i] = W(NAN);
                for (int i = 0; i < count; ++i)
                    steps(kind)[rows[i]] = room[kind][i];
            }
    }

    void segment(int64_t, int from, int to) {
        const auto add = [&](const auto& right) {
            tally.add(rows, rows.steps_before(from), rows.steps_before(to), scores[kMargin], scores[kProb], scores[kLogProb],
                      scores[call.probabilities ? kProb : kMargin], right);
        };
        if (call.strict)
            add([this](W key) { return key > bound; });
        else
            add([this](W key) { return key >= bound; });
    }

    void finish(int64_t r) {
        if (finished.n == Finished<W>::kMost)
            finished.write(call, r);
        finished.take(tally, steps(kMargin), steps(kProb));
        tally = {};
    }

    void close(int64_t, int) {}
};

// ------------------------------------------------------------------------------------------------------------- backward

template <class X, class Rows> struct Backward {
    using W = Wide<X>;
    const PrmCall& call;
    Rows rows;
    W steps[2][kBlock], upstream[3][kBlock], extra[kBlock]; // extra: the products' gradient of given probabilities
    int64_t seen = 0;                                       // steps of the response in blocks before
    double log_rest = 0;                                    // of given probabilities: sum of the log p that are not log 0
    int64_t zeros = 0;                                      // and how many are 0

    explicit Backward(const PrmCall& c) : call(c) {}

    const W* stored(const char* of, int kind) const { return reinterpret_cast<const W*>(of) + kind * call.rows; }

    void take(const W* __restrict from, int count, W* __restrict out) const {
        if constexpr (Rows::kAll)
            memcpy(out, from + rows[0], size_t(count) * sizeof(W));
        else
            for (int i = 0; i < count; ++i)
                out[i] = from[rows[i]];
    }

    void open(int64_t start, int n) {
        const int count = rows.open(call, start, n);
        for (int kind = kMargin; kind <= kProb; ++kind)
            take(stored(call.steps, kind), count, steps[kind]);
        for (int kind = kMargin; kind <= kLogProb; ++kind)
            take(stored(call.grad_steps, kind), count, upstream[kind]);
        if (call.probabilities)
            for (int i = 0; i < count; ++i)
                extra[i] = W(0);
    }

    W grad(int which, int64_t r) const { return reinterpret_cast<const W*>(call.grad_aggregates)[which * call.responses + r]; }
    W aggregate(int which, int64_t r) const { return reinterpret_cast<const W*>(call.aggregates)[which * call.responses + r]; }
    int64_t index(int which, int64_t r) const { return call.indices[which * call.responses + r]; }

    // What reaches the steps of a block through the aggregates of their response.
    void segment(int64_t r, int from, int to) {
        const int begin = rows.steps_before(from), end = rows.steps_before(to);
        const W count = W(index(kCount, r)), product = aggregate(kProduct, r), geometric_mean = aggregate(kGeometricMean, r);
        W log_prob = grad(kLogProduct, r);
        if (!call.probabilities)
            log_prob += scaled(grad(kProduct, r), product) + scaled(grad(kGeometricMean, r), geometric_mean / count);
        const W margin = grad(kMeanMargin, r) / count, prob = grad(kMean, r) / count;
        for (int i = begin; i < end; ++i) {
            upstream[kMargin][i] += margin;
            upstream[kProb][i] += prob;
            upstream[kLogProb][i] += log_prob;
        }
        const auto add_at = [&](int64_t position, int prob_of, int margin_of) {
            if (position < seen || position - seen >= end - begin)
                return;
            upstream[kProb][begin + position - seen] += grad(prob_of, r);
            upstream[kMargin][begin + position - seen] += grad(margin_of, r);
        };
        add_at(index(kArgmin, r), kMin, kMinMargin);
        add_at(index(kArgmax, r), kMax, kMaxMargin);
        add_at(index(kCount, r) - 1, kLast, kLastMargin);
        if (call.probabilities && (grad(kProduct, r) != W(0) || grad(kGeometricMean, r) != W(0)))
            add_products(r, begin, end, count, geometric_mean);
        seen += end - begin;
    }

    void add_products(int64_t r, int begin, int end, W count, W geometric_mean) {
        if (seen == 0)
            sum_logs(r);
        const W* log_probs = stored(call.steps, kLogProb);
        for (int i = begin; i < end; ++i) {
            const W p = steps[kProb][i];
            const bool zero = p == W(0);
            const double rest = exp_bounded(log_rest - (zero ? 0.0 : double(log_probs[rows[i]])));
            const W others = zeros > zero ? W(0) : W(rest);
            extra[i] = scaled(grad(kProduct, r), others) +
                       scaled(grad(kGeometricMean, r), geometric_mean_slope(p, geometric_mean, zeros > zero, count));
        }
    }

    void sum_logs(int64_t r) {
        log_rest = 0, zeros = 0;
        for (int64_t row = call.offsets[r]; row < call.offsets[r + 1]; ++row) {
            if (!Rows::kAll && !call.mask[row])
                continue;
            const bool zero = stored(call.steps, kProb)[row] == W(0);
            zeros += zero;
            log_rest += zero ? 0.0 : double(stored(call.steps, kLogProb)[row]);
        }
    }

    void finish(int64_t) { seen = 0; }

    void close(int64_t start, int n) {
        const int count = rows.steps_before(n);
        W g[kBlock];
        const auto upstream_of = [this](int i) -> StepScore<W> {
            return {upstream[kMargin][i], upstream[kProb][i], upstream[kLogProb][i]};
        };
        if (call.probabilities)
            for (int i = 0; i < count; ++i)
                g[i] = prob_gradient(upstream_of(i), steps[kProb][i]) + extra[i];
        else
            for (int i = 0; i < count; ++i)
                g[i] = margin_gradient(upstream_of(i), steps[kMargin][i], steps[kProb][i]);
        if (!Rows::kAll)
            memset(call.grad + start * call.classes * int64_t(sizeof(X)), 0, size_t(n * call.classes) * sizeof(X));
        Scores<X, Rows>{call, rows}.write_gradient(count, g);
    }
};

template <class X, class Rows> void run(const PrmCall& call, int64_t begin, int64_t end) {
    if (call.backward) {
        Backward<X, Rows> work(call);
        for_blocks(call, begin, end, work);
    } else {
        Forward<X, Rows> work(call);
        for_blocks(call, begin, end, work);
        work.finished.write(call, end);
    }
}

template <class X> void run_rows(const PrmCall& call, int64_t begin, int64_t end) {
    if (call.mask)
        run<X, MaskedRows>(call, begin, end);
    else
        run<X, AllRows>(call, begin, end);
}

} // namespace

void prm_run(const PrmCall& call, int64_t begin_response, int64_t end_response) {
    switch (call.scores_type) {
    case DType::kFloat:
        return run_rows<float>(call, begin_response, end_response);
    case DType::kBFloat16:
        return run_rows<bf16>(call, begin_response, end_response);
    case DType::kHalf:
        return run_rows<f16>(call, begin_response, end_response);
    case DType::kDouble:
        return run_rows<double>(call, begin_response, end_response);
    }
}

} // namespace LK_ISA
} // namespace lk
