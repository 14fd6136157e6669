// Blocks of steps: which rows they are, their margins, and the way of a margin's gradient back to the scores.
// Included within a tier: what it defines is compiled once per LK_ISA.
#pragma once

#include <cmath>
#include <cstdint>

#include "../math/numbers.h"
#include "../math/prm.h"
#include "prm.h"

namespace lk {
namespace LK_ISA {
namespace {

constexpr int kBlock = 512; // rows at a time: a block's buffers stay in the first-level cache

template <class X> using Wide = decltype(widen(X())); // of the arithmetic

// Which rows of a block are steps, counted from 0: all of them, or those that the mask names.
struct AllRows {
    static constexpr bool kAll = true;
    int64_t start;
    int open(const PrmCall&, int64_t from, int n) {
        start = from;
        return n;
    }
    int steps_before(int i) const { return i; }
    int64_t operator[](int step) const { return start + step; }
};
struct MaskedRows {
    static constexpr bool kAll = false;
    int64_t rows[kBlock];
    int before[kBlock + 1];
    int open(const PrmCall& call, int64_t from, int n) {
        int count = 0;
        for (int i = 0; i < n; ++i) {
            before[i] = count;
            rows[count] = from + i;
            count += call.mask[from + i];
        }
        return before[n] = count;
    }
    int steps_before(int i) const { return before[i]; }
    int64_t operator[](int step) const { return rows[step]; }
};

// One of the two sums of exponentials that a margin consists of, relative to the largest of their logits.
template <class W> struct SoftmaxSide {
    W top[kBlock], sum[kBlock];
};

// The scores as n steps of `rows` see them.
template <class X, class Rows> struct Scores {
    using W = Wide<X>;
    const PrmCall& call;
    const Rows& rows;

    bool weighted() const { return call.weights || call.classes > 2; }
    const X* column(int64_t c) const { return reinterpret_cast<const X*>(call.scores) + c * call.class_stride; }

    void load(int64_t c, int n, W* __restrict out) const {
        const X* __restrict from = column(c);
        if (Rows::kAll && call.row_stride == 1) {
            from += rows[0];
            for (int i = 0; i < n; ++i)
                out[i] = widen(from[i]);
        } else {
            for (int i = 0; i < n; ++i)
                out[i] = widen(from[rows[i] * call.row_stride]);
        }
    }

    // out = the logit of class First - that of the other one, in pairs.
    template <int First> void subtract_pairs(int n, W* __restrict out) const {
        const X* __restrict from = column(0) + 2 * rows[0];
        for (int i = 0; i < n; ++i)
            out[i] = widen(from[2 * i + First]) - widen(from[2 * i + 1 - First]);
    }

    // The margins of n logits, or the n probabilities themselves.
    void margins(int n, W* __restrict out) const {
        if (weighted())
            return sum_margins(n, out);
        if (call.classes == 1)
            return load(0, n, out);
        if (Rows::kAll && call.row_stride == 2 && call.class_stride == 1)
            return call.positive ? subtract_pairs<1>(n, out) : subtract_pairs<0>(n, out);
        const X* __restrict right = column(call.positive), * __restrict wrong = column(1 - call.positive);
        for (int i = 0; i < n; ++i)
            out[i] = widen(right[rows[i] * call.row_stride]) - widen(wrong[rows[i] * call.row_stride]);
    }

    // log of the weight that class c has in right (or in wrong): what its logit gets added. -inf: it has no part in it.
    W log_weight(int64_t c, bool right) const {
        const W weight = call.weights ? reinterpret_cast<const W*>(call.weights)[c] : W(c == call.positive);
        return log_finite(right ? weight : W(1) - weight);
    }

    void add_side(int n, bool right, SoftmaxSide<W>& side) const {
        W x[kBlock];
        for (int i = 0; i < n; ++i)
            side.top[i] = -W(INFINITY), side.sum[i] = W(0);
        for (int64_t c = 0; c < call.classes; ++c) {
            const W weight = log_weight(c, right);
            if (weight == -W(INFINITY))
                continue;
            load(c, n, x);
            for (int i = 0; i < n; ++i)
                side.top[i] = larger(x[i] + weight, side.top[i]); // NaN is left to the sums
        }
        for (int64_t c = 0; c < call.classes; ++c) {
            const W weight = log_weight(c, right);
            if (weight == -W(INFINITY))
                continue;
            load(c, n, x);
            for (int i = 0; i < n; ++i)
                side.sum[i] += softmax_term(x[i] + weight, side.top[i]);
        }
    }

    void sum_margins(int n, W* __restrict out) const {
        SoftmaxSide<W> right, wrong;
        add_side(n, true, right);
        add_side(n, false, wrong);
        for (int i = 0; i < n; ++i)
            out[i] = margin_of_sums(right.top[i], right.sum[i], wrong.top[i], wrong.sum[i]);
    }

    // The gradients of the scores, from those of the margins (or of given probabilities).
    void write_gradient(int n, const W* __restrict g) const {
        if (weighted())
            return write_sums_gradient(n, g);
        X* __restrict out = reinterpret_cast<X*>(call.grad);
        const Rows& __restrict at = rows;
        if (call.classes == 1)
            for (int i = 0; i < n; ++i)
                narrow(g[i], out[at[i]]);
        else
            for (int i = 0; i < n; ++i) {
                const W right = g[i], wrong = -right;
                narrow(call.positive ? wrong : right, out[2 * at[i]]);
                narrow(call.positive ? right : wrong, out[2 * at[i] + 1]);
            }
    }

    void write_sums_gradient(int n, const W* __restrict g) const {
        SoftmaxSide<W> right, wrong;
        add_side(n, true, right);
        add_side(n, false, wrong);
        W x[kBlock], slope[kBlock];
        for (int64_t c = 0; c < call.classes; ++c) {
            load(c, n, x);
            for (int i = 0; i < n; ++i)
                slope[i] = W(0);
            const auto add = [&](const SoftmaxSide<W>& side, W weight, W sign) {
                for (int i = 0; i < n && weight != -W(INFINITY); ++i)
                    slope[i] += sign * softmax_share(softmax_term(x[i] + weight, side.top[i]), side.sum[i]);
            };
            add(right, log_weight(c, true), W(1));
            add(wrong, log_weight(c, false), W(-1));
            for (int i = 0; i < n; ++i)
                narrow(scaled(g[i], slope[i]), reinterpret_cast<X*>(call.grad)[rows[i] * call.classes + c]);
        }
    }
};

} // namespace
} // namespace LK_ISA
} // namespace lk
