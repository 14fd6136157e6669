// Columns of a row in blocks: their softmax sums forward, their gradient backward. Included within a tier: what it defines is
// compiled once per LK_ISA.
#pragma once

#include <cmath>
#include <cstdint>

#include "../math/discrepancy.h"
#include "lanes.h"

namespace lk {
namespace LK_ISA {
namespace {

// Memory is asked for a block ahead: processors do not look beyond a page by themselves, nor while a block is computed.
constexpr int kBlock = 1024; // columns at a time: read for their maximum, and again from the first-level cache

// D[y, j] at columns j of a row of the table, whatever it is stored in.
template <class E, class W> struct Distances {
    static constexpr bool kPresent = true;
    const E* entries;
    W scale, offset;
    Pack<W> pack(int64_t j) const { return table_distance(load_pack<W>(entries + j), scale, offset); }
    W one(int64_t j) const { return table_distance(W(widen(entries[j])), scale, offset); }
    void prefetch(int64_t j) const { __builtin_prefetch(entries + j); }
    Distances from(int64_t j) const { return {entries + j, scale, offset}; }
    Distances less(W loss) const { return {entries, scale, offset - loss}; } // D - loss with one rounding less
};
template <class W> Distances<W, W> distances_in(const W* numbers) { return {numbers, W(1), W(0)}; }

// Text columns have none.
struct NoDistances {
    static constexpr bool kPresent = false;
    void prefetch(int64_t) const {}
    NoDistances from(int64_t) const { return {}; }
};

// The columns past the last 16 of a run, filled up so that they add nothing.
template <class W> struct Tail {
    W x[kTree], distances[kTree];
    template <class X, class D> Tail(const X* from, const D& d, int n) {
        for (int i = 0; i < kTree; ++i) {
            x[i] = i < n ? W(widen(from[i])) : -W(INFINITY);
            if constexpr (D::kPresent)
                distances[i] = i < n ? d.one(i) : W(0);
        }
    }
    template <class D> auto as(const D&) const {
        if constexpr (D::kPresent)
            return distances_in<W>(distances);
        else
            return NoDistances();
    }
};

// ------------------------------------------------------------------------------------------------------------- forward

template <class W, class X> W largest(const X* x, int n) {
    Lanes<W> top = lanes_of(-W(INFINITY));
    for (int i = 0; i < n; i += kTree)
#pragma GCC unroll 8
        for (int k = 0; k < kPacks<W>; ++k) {
            const Pack<W> next = load_pack<W>(x + i + k * kWidth<W>);
            top.packs[k] = larger(next, top.packs[k]); // NaN is left to the sums
        }
    return largest_of(top);
}

// Adds n columns, a multiple of 16, whose shift is known.
template <bool Smooth, class X, class D, class W> void add_exponentials(SoftmaxSums<W>& s, const X* x, const D& d, int n) {
    const W shift = shift_of(s.top);
    Lanes<W> sum = lanes_of(W(0)), cost = sum, logits = sum;
    for (int i = 0; i < n; i += kTree) {
        __builtin_prefetch(x + i + kBlock);
        d.prefetch(i + kBlock);
#pragma GCC unroll 8
        for (int k = 0; k < kPacks<W>; ++k) {
            const int at = i + k * kWidth<W>;
            const Pack<W> below = load_pack<W>(x + at) - shift, exponential = exp_nonpositive(below);
            sum.packs[k] += exponential;
            if constexpr (D::kPresent)
                cost.packs[k] += exponential * d.pack(at);
            if constexpr (Smooth)
                logits.packs[k] += below;
        }
    }
    s.sum += double(sum_of(sum));
    if constexpr (D::kPresent)
        s.cost += double(sum_of(cost));
    if constexpr (Smooth)
        s.logits += double(sum_of(logits));
}

template <bool Smooth, class X, class D, class W> void add_block(SoftmaxSums<W>& s, const X* x, const D& d, int n) {
    const int full = n / kTree * kTree, rest = n - full;
    raise_top(s, largest<W>(x, full));
    if (rest) {
        const Tail<W> tail(x + full, d.from(full), rest);
        raise_top(s, largest<W>(tail.x, kTree));
        add_exponentials<false>(s, tail.x, tail.as(d), kTree);
        for (int i = 0; Smooth && i < rest; ++i)
            s.logits += double(tail.x[i] - shift_of(s.top));
    }
    add_exponentials<Smooth>(s, x, d, full);
    s.count += n;
}

// Adds n columns in one pass. own: the label's column among them (else -1), whose distance is 0 whatever the table holds.
template <bool Smooth, class X, class D, class W>
void add_columns(SoftmaxSums<W>& s, const X* x, const D& d, int64_t n, int64_t own) {
    for (int64_t start = 0; start < n; start += kBlock) {
        const int length = int(n - start < kBlock ? n - start : kBlock);
        if constexpr (D::kPresent)
            if (own >= start && own < start + length) {
                W distances[kBlock];
                for (int i = 0; i < length; ++i)
                    distances[i] = d.one(start + i);
                distances[own - start] = W(0);
                add_block<Smooth>(s, x + start, distances_in<W>(distances), length);
                continue;
            }
        add_block<Smooth>(s, x + start, d.from(start), length);
    }
}

// ------------------------------------------------------------------------------------------------------------ backward

template <bool Joint, class D, class W>
Pack<W> gradient(Pack<W> exponential, const D& d, int64_t j, const GradientTerms<W>& g) {
    if constexpr (D::kPresent)
        return image_gradient<Joint>(exponential, d.pack(j), g); // distances less the loss
    else
        return text_gradient(exponential, g);
}

// Zeros past the caches, where the tensor is larger than they are: three times as fast as memset, which reads what it is about
// to overwrite (measured on Zen 3).
inline void write_zeros(char* out, size_t n, bool past_caches) {
#if defined(__SSE2__)
    if (past_caches && n >= 4096) {
        const size_t head = -reinterpret_cast<uintptr_t>(out) % 64;
        memset(out, 0, head);
        out += head, n -= head;
        for (; n >= 64; out += 64, n -= 64)
            for (int i = 0; i < 64; i += 16)
                _mm_stream_si128(reinterpret_cast<__m128i*>(out + i), _mm_setzero_si128());
        _mm_sfence();
    }
#else
    (void)past_caches;
#endif
    memset(out, 0, n);
}

// out = exp(x - shift), and its sum. A float lse of logits near 10^4 is wrong by 5e-4, and so is each exp(x - lse), but their
// quotients by their own sum are right. The gradient's memory holds them meanwhile.
template <class W> double exponentials(const W* x, int64_t n, W shift, W* out) {
    double total = 0;
    for (int64_t start = 0; start < n; start += kBlock) {
        const int length = int(n - start < kBlock ? n - start : kBlock), full = length / kTree * kTree;
        Lanes<W> sum = lanes_of(W(0));
        const auto step = [&](const W* from, W* to) {
#pragma GCC unroll 8
            for (int k = 0; k < kPacks<W>; ++k) {
                const Pack<W> exponential = exp_nonpositive(load_pack<W>(from + k * kWidth<W>) - shift);
                sum.packs[k] += exponential;
                store_pack<W>(exponential, to + k * kWidth<W>);
            }
        };
        for (int i = 0; i < full; i += kTree) {
            __builtin_prefetch(x + start + i + kBlock);
            __builtin_prefetch(out + start + i + kBlock, 1);
            step(x + start + i, out + start + i);
        }
        if (full < length) {
            const Tail<W> tail(x + start + full, NoDistances(), length - full);
            W last[kTree];
            step(tail.x, last);
            memcpy(out + start + full, last, size_t(length - full) * sizeof(W));
        }
        total += double(sum_of(sum));
    }
    return total;
}

// out = the gradient of n columns; x holds logits, or (Ready) the exponentials of them.
template <bool Ready, bool Joint, class X, class D, class W>
void write_gradient(const X* x, D d, int64_t n, W shift, const GradientTerms<W>& terms, X* out) {
    const GradientTerms<W> g = terms;
    const auto step = [&](const auto* from, const auto& distances, int64_t j, auto* to) {
#pragma GCC unroll 8
        for (int k = 0; k < kPacks<W>; ++k, j += kWidth<W>) {
            Pack<W> exponential = load_pack<W>(from + j);
            if constexpr (!Ready)
                exponential = exp_nonpositive(exponential - shift);
            store_pack<W>(gradient<Joint>(exponential, distances, j, g), to + j);
        }
    };
    const int64_t full = n / kTree * kTree;
    for (int64_t j = 0; j < full; j += kTree) {
        d.prefetch(j + kBlock);
        if constexpr (!Ready) {
            __builtin_prefetch(x + j + kBlock);
            __builtin_prefetch(out + j + kBlock, 1);
        }
        step(x, d, j, out);
    }
    if (full == n)
        return;
    const Tail<W> tail(x + full, d.from(full), int(n - full));
    X last[kTree];
    step(tail.x, tail.as(d), 0, last);
    memcpy(out + full, last, size_t(n - full) * sizeof(X));
}

} // namespace
} // namespace LK_ISA
} // namespace lk
