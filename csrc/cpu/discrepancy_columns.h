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
constexpr int kBlock = 1024; // columns at a time

// An address only: what is a block ahead need not exist.
template <class T> inline const void* block_ahead(const T* p) {
    return reinterpret_cast<const void*>(reinterpret_cast<uintptr_t>(p) + kBlock * sizeof(T));
}

// A row of the table, whatever it is stored in: D[y, j] is linear in entry j.
template <class E, class W> struct Distances {
    static constexpr bool kPresent = true;
    const E* entries;
    W scale, offset;
    Pack<W> pack(int64_t j) const { return load_pack<W>(entries + j); }
    W one(int64_t j) const { return W(widen(entries[j])); }
    // D[y, j] of n columns from `start`.
    void write(int64_t start, int n, W* out) const {
        const int full = n / kTree * kTree;
        for (int i = 0; i < full; i += kWidth<W>)
            store_pack<W>(table_distance(pack(start + i), scale, offset), out + i);
        for (int i = full; i < n; ++i)
            out[i] = table_distance(one(start + i), scale, offset);
    }
    void prefetch_block_ahead(int64_t j) const { __builtin_prefetch(block_ahead(entries + j)); }
    Distances from(int64_t j) const { return {entries + j, scale, offset}; }
    double sum(double of_entries, double weights) const { return of_entries * double(scale) + weights * double(offset); }
    LinearTerms<W> terms(const GradientTerms<W>& g, W loss) const { return image_terms(g, scale, offset, loss); }
    Distances<W, W> in(const W* numbers) const { return {numbers, scale, offset}; } // the same with other entries
};
template <class W> Distances<W, W> distances_in(const W* numbers) { return {numbers, W(1), W(0)}; }

// Text columns have none.
struct NoDistances {
    static constexpr bool kPresent = false;
    void prefetch_block_ahead(int64_t) const {}
    NoDistances from(int64_t) const { return {}; }
    template <class W> LinearTerms<W> terms(const GradientTerms<W>& g, W) const { return {W(0), g.cross_entropy, g.constant}; }
};

// The columns past the last 16 of a run, filled up so that they add nothing.
template <class W> struct Tail {
    W x[kTree], entries[kTree];
    template <class X, class D> Tail(const X* from, const D& d, int n) {
        for (int i = 0; i < kTree; ++i) {
            x[i] = i < n ? W(widen(from[i])) : -W(INFINITY);
            if constexpr (D::kPresent)
                entries[i] = i < n ? d.one(i) : W(0);
        }
    }
    template <class D> auto as(const D& d) const {
        if constexpr (D::kPresent)
            return d.in(entries);
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

// The sums over n columns, a multiple of 16, relative to `shift`, and their largest logit (NaN aside).
template <bool Smooth, class X, class D, class W> SoftmaxSums<W> exponential_sums(const X* x, const D& d, int n, W shift) {
    LaneSum<W> sum, cost;
    Lanes<W> logits = lanes_of(W(0)), top = lanes_of(-W(INFINITY));
    for (int i = 0; i < n; i += kTree) {
        __builtin_prefetch(block_ahead(x + i));
        d.prefetch_block_ahead(i);
#pragma GCC unroll 8
        for (int k = 0; k < kPacks<W>; ++k) {
            const int at = i + k * kWidth<W>;
            const Pack<W> logit = load_pack<W>(x + at), below = logit - shift, exponential = exp_bounded(below);
            top.packs[k] = larger(logit, top.packs[k]); // NaN is left to the sums
            sum.add(k, exponential);
            if constexpr (D::kPresent)
                cost.add(k, exponential * d.pack(at));
            if constexpr (Smooth)
                logits.packs[k] += below;
        }
    }
    SoftmaxSums<W> s{largest_of(top), sum.total(), 0, Smooth ? sum_of(logits) : 0, n};
    if constexpr (D::kPresent)
        s.cost = d.sum(cost.total(), s.sum);
    return s;
}

template <class W> void add(SoftmaxSums<W>& s, const SoftmaxSums<W>& more) {
    s.sum += more.sum;
    s.cost += more.cost;
    s.logits += more.logits;
    s.count += more.count;
}

// Adds a block. It is summed relative to the largest logit before it: one that rises far above that is read twice.
template <bool Smooth, class X, class D, class W> void add_block(SoftmaxSums<W>& s, const X* x, const D& d, int n) {
    const int full = n / kTree * kTree, rest = n - full;
    if (s.count == 0)
        raise_top(s, largest<W>(x, full));
    SoftmaxSums<W> block = exponential_sums<Smooth>(x, d, full, shift_of(s.top));
    if (block.top > s.top + W(kExpSlack)) {
        raise_top(s, block.top);
        block = exponential_sums<Smooth>(x, d, full, shift_of(s.top));
    }
    add(s, block);
    raise_top(s, block.top);
    if (rest) {
        const Tail<W> tail(x + full, d.from(full), rest);
        raise_top(s, largest<W>(tail.x, kTree));
        SoftmaxSums<W> last = exponential_sums<false>(tail.x, tail.as(d), kTree, shift_of(s.top));
        for (int i = 0; Smooth && i < rest; ++i)
            last.logits += double(tail.x[i] - shift_of(s.top));
        last.count = rest;
        add(s, last);
    }
}

// Adds n columns in one pass. own: the label's column among them (else -1), whose distance is 0 whatever the table holds.
template <bool Smooth, class X, class D, class W>
void add_columns(SoftmaxSums<W>& s, const X* x, const D& d, int64_t n, int64_t own) {
    for (int64_t start = 0; start < n; start += kBlock) {
        const int length = int(n - start < kBlock ? n - start : kBlock);
        if constexpr (D::kPresent)
            if (own >= start && own < start + length) {
                W distances[kBlock];
                d.write(start, length, distances);
                distances[own - start] = W(0);
                add_block<Smooth>(s, x + start, distances_in<W>(distances), length);
                continue;
            }
        add_block<Smooth>(s, x + start, d.from(start), length);
    }
}

// ------------------------------------------------------------------------------------------------------------ backward

template <bool Joint, class D, class W> Pack<W> gradient(Pack<W> exponential, const D& d, int64_t j, const LinearTerms<W>& g) {
    if constexpr (D::kPresent)
        return image_gradient<Joint>(exponential, d.pack(j), g);
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

// out = the gradient of n columns. Stream: past the caches, where the tensor is larger than they are and out + j is aligned.
template <bool Joint, bool Stream, class X, class D, class W>
void write_packs(const X* x, const D& d, int64_t n, W shift, const LinearTerms<W>& terms, X* out) {
    const LinearTerms<W> g = terms;
    for (int64_t i = 0; i < n; i += kTree) {
        __builtin_prefetch(block_ahead(x + i));
        d.prefetch_block_ahead(i);
        if constexpr (!Stream)
            __builtin_prefetch(block_ahead(out + i), 1);
#pragma GCC unroll 8
        for (int64_t j = i; j < i + kTree; j += kWidth<W>) {
            const Pack<W> exponential = exp_bounded(load_pack<W>(x + j) - shift);
            if constexpr (Stream)
                stream_pack<W>(gradient<Joint>(exponential, d, j, g), out + j);
            else
                store_pack<W>(gradient<Joint>(exponential, d, j, g), out + j);
        }
    }
}

// The same for fewer than 16.
template <bool Joint, class X, class D, class W>
void write_few(const X* x, const D& d, int n, W shift, const LinearTerms<W>& terms, X* out) {
    const Tail<W> few(x, d, n);
    W gradients[kTree];
    write_packs<Joint, false>(few.x, few.as(d), kTree, shift, terms, gradients);
    for (int j = 0; j < n; ++j)
        narrow(gradients[j], out[j]);
}

template <bool Joint, class X, class D, class W>
void write_gradient(const X* x, const D& d, int64_t n, W shift, const LinearTerms<W>& terms, X* out, bool past_caches) {
    const int64_t over = int64_t(reinterpret_cast<uintptr_t>(out) % kStreamAlignment<X>);
    const int64_t to_aligned = past_caches && over ? (kStreamAlignment<X> - over) / int64_t(sizeof(X)) : 0;
    const int64_t head = to_aligned < n ? to_aligned : n, full = (n - head) / kTree * kTree;
    if (head)
        write_few<Joint>(x, d, int(head), shift, terms, out);
    if (past_caches)
        write_packs<Joint, true>(x + head, d.from(head), full, shift, terms, out + head);
    else
        write_packs<Joint, false>(x + head, d.from(head), full, shift, terms, out + head);
    if (const int64_t done = head + full; done < n)
        write_few<Joint>(x + done, d.from(done), int(n - done), shift, terms, out + done);
}

} // namespace
} // namespace LK_ISA
} // namespace lk
