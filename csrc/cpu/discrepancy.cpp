// Token discrepancy, alone and joined with cross-entropy, forward and backward: a row at a time, compiled once per ISA tier
// (LK_ISA). Nothing is as large as the logits but their gradient. Results do not depend on tier, thread or other rows.
#include "discrepancy.h"

#include <type_traits>

#include "discrepancy_columns.h"

namespace lk {
namespace LK_ISA {
namespace {

template <class X> using Wide = std::conditional_t<std::is_same_v<X, double>, double, float>; // of the arithmetic

constexpr int kSpan = 64; // codes at a time

// Sums of squared differences between a code and n codes from start: of 4 components added as W, then in double.
template <class W, class Count>
void squared_differences(const DiscrepancyCall& call, int64_t code, int64_t start, Count n, double* squares) {
    const float* from = call.codebook;
    int64_t left = call.dimension;
    for (; left >= 4; left -= 4, from += 4 * call.codes) {
        const float *f0 = from, *f1 = f0 + call.codes, *f2 = f1 + call.codes, *f3 = f2 + call.codes;
        const W own0 = W(f0[code]), own1 = W(f1[code]), own2 = W(f2[code]), own3 = W(f3[code]);
        for (int i = 0; i < n; ++i) {
            const W a = W(f0[start + i]) - own0, b = W(f1[start + i]) - own1;
            const W c = W(f2[start + i]) - own2, d = W(f3[start + i]) - own3;
            squares[i] += double((a * a + b * b) + (c * c + d * d));
        }
    }
    for (; left > 0; --left, from += call.codes) {
        const W own = W(from[code]);
        for (int i = 0; i < n; ++i) {
            const W a = W(from[start + i]) - own;
            squares[i] += double(a * a);
        }
    }
}

// D[code, j] for all j.
template <DistanceMetric Metric, class W> void codebook_distances(const DiscrepancyCall& call, int64_t code, W* out) {
    const int64_t dimension = call.dimension;
    for (int64_t start = 0; start < call.codes; start += kSpan) {
        const int n = int(call.codes - start < kSpan ? call.codes - start : kSpan);
        double squares[kSpan] = {};
        if (n == kSpan)
            squared_differences<W>(call, code, start, std::integral_constant<int, kSpan>(), squares);
        else
            squared_differences<W>(call, code, start, n, squares);
        W distances[kSpan];
        for (int i = 0; i < kSpan; ++i)
            distances[i] = metric_distance<Metric, W>(squares[i], dimension);
        memcpy(out + start, distances, size_t(n) * sizeof(W));
    }
}

template <class W> void codebook_row(const DiscrepancyCall& call, int64_t code, W* out) {
    switch (call.metric) {
    case DistanceMetric::kTable:
        return;
    case DistanceMetric::kMse:
        return codebook_distances<DistanceMetric::kMse>(call, code, out);
    case DistanceMetric::kSqEuclidean:
        return codebook_distances<DistanceMetric::kSqEuclidean>(call, code, out);
    case DistanceMetric::kEuclidean:
        return codebook_distances<DistanceMetric::kEuclidean>(call, code, out);
    }
}

// Calls f with the distances of a code. Those from the codebook are kept for the next row, which may have the same label.
template <class W, class F> void with_distances(const DiscrepancyCall& call, DiscrepancyScratch& scratch, int64_t code, F f) {
    if (!call.distances) {
        W* distances = static_cast<W*>(scratch.distances);
        if (scratch.code != code)
            codebook_row(call, code, distances);
        scratch.code = code;
        return f(distances_in<W>(distances));
    }
    const auto row = [&](auto entry) {
        using E = decltype(entry);
        const E* entries = reinterpret_cast<const E*>(call.distances) + code * call.codes;
        f(Distances<E, W>{entries, W(call.scale), W(call.offset)});
    };
    switch (call.distances_type) {
    case DType::kFloat:
        return row(float());
    case DType::kBFloat16:
        return row(bf16());
    case DType::kHalf:
        return row(f16());
    case DType::kDouble:
        return row(double());
    }
}

template <class W> W& entry(const PerRow& values, int64_t row) {
    return reinterpret_cast<W*>(values.data)[row * values.stride];
}

template <class X> struct Row {
    using W = Wide<X>;
    const DiscrepancyCall& call;
    DiscrepancyScratch& scratch;
    int64_t index, label, code, after; // after: the first column behind the image columns
    bool image, active, known;         // has a code; has a cross-entropy; has a label of the vocabulary
    const X* x;

    Row(const DiscrepancyCall& c, DiscrepancyScratch& s, int64_t i)
        : call(c), scratch(s), index(i), label(c.labels[i * c.label_stride]), code(label - c.image_start),
          after(c.image_start + c.codes), image(code >= 0 && code < c.codes), active(c.joint && label != c.ignore_index),
          known(label >= 0 && label < c.columns), x(reinterpret_cast<const X*>(c.logits) + i * c.row_stride) {}

    template <class D> void add(SoftmaxSums<W>& s, const D& d, int64_t first, int64_t end, int64_t own = -1) const {
        if (call.label_smoothing != 0)
            add_columns<true>(s, x + first, d, end - first, own);
        else
            add_columns<false>(s, x + first, d, end - first, own);
    }

    void forward() const {
        SoftmaxSums<W> inside, all;
        if (image)
            with_distances<W>(call, scratch, code, [&](const auto& d) { add(inside, d, call.image_start, after, code); });
        entry<W>(call.discrepancy, index) = image ? expected_distance(inside) : W(0);
        keep(call.image_top, call.image_total, image, inside);
        if (!call.joint)
            return;
        if (active && known) {
            add(all, NoDistances(), 0, image ? call.image_start : call.columns);
            if (image)
                add(all, NoDistances(), after, call.columns);
            all = joined(all, inside);
        }
        const W other = active ? W(NAN) : W(0);
        keep(call.top, call.total, active && known, all);
        if (active && !known)
            entry<W>(call.total, index) = other;
        entry<W>(call.cross_entropy, index) =
            active && known ? cross_entropy(all, W(widen(x[label])), call.label_smoothing) : other;
    }

    void keep(const PerRow& top, const PerRow& total, bool has, const SoftmaxSums<W>& s) const {
        entry<W>(top, index) = has ? s.top : W(0);
        entry<W>(total, index) = has ? W(s.sum) : W(0);
    }

    bool past_caches() const { return call.rows * call.columns >= int64_t(16 << 20) / int64_t(sizeof(X)); }

    // Text columns [first, end): of a row without cross-entropy their gradient is 0.
    void write_text(int64_t first, int64_t end, W shift, const GradientTerms<W>& g, X* out) const {
        const NoDistances none;
        if (active)
            write_gradient<true>(x + first, none, end - first, shift, none.terms(g, W(0)), out + first, past_caches());
        else
            write_zeros(reinterpret_cast<char*>(out + first), size_t(end - first) * sizeof(X), past_caches());
    }

    void write_image(W shift, W loss, const GradientTerms<W>& g, X* out) const {
        const int64_t start = call.image_start;
        with_distances<W>(call, scratch, code, [&](const auto& d) {
            const LinearTerms<W> terms = d.terms(g, loss);
            if (active)
                write_gradient<true>(x + start, d, call.codes, shift, terms, out + start, past_caches());
            else
                write_gradient<false>(x + start, d, call.codes, shift, terms, out + start, past_caches());
        });
    }

    void backward() const {
        X* out = reinterpret_cast<X*>(call.grad) + index * call.columns;
        W shift = 0, image_shift = 0, loss = 0;
        GradientTerms<W> text, inside;
        if (active) {
            const double grad = double(entry<W>(call.grad_cross_entropy, index));
            shift = shift_of(entry<W>(call.top, index));
            text.cross_entropy = W(grad / double(entry<W>(call.total, index)));
            text.constant = inside.constant = W(-grad * call.label_smoothing / double(call.columns));
        }
        if (image) {
            const W image_top = entry<W>(call.image_top, index);
            image_shift = shift_of(image_top), loss = entry<W>(call.discrepancy, index);
            inside.discrepancy = W(double(entry<W>(call.grad_discrepancy, index)) / double(entry<W>(call.image_total, index)));
            // The exponentials of the image columns are relative to their own top.
            if (active && image_top != -W(INFINITY))
                inside.cross_entropy = W(exp_bounded(double(image_shift) - double(shift)) * double(text.cross_entropy));
        }
        write_text(0, image ? call.image_start : call.columns, shift, text, out);
        if (image) {
            write_image(image_shift, loss, inside, out);
            write_text(call.image_start + call.codes, call.columns, shift, text, out);
        }
        if (past_caches())
            stream_fence();
        if (known && (image || active))
            write_label(shift, image_shift, loss, text, inside, out);
    }

    // The label's own column: its distance is 0, and the cross-entropy's target is taken off.
    void write_label(W shift, W image_shift, W loss, const GradientTerms<W>& text, const GradientTerms<W>& inside,
                     X* out) const {
        const W own = W(widen(x[label]));
        const W target = active ? W((1 - call.label_smoothing) * double(entry<W>(call.grad_cross_entropy, index))) : W(0);
        const LinearTerms<W> terms = image ? image_terms(inside, W(0), W(0), loss) : NoDistances().terms(text, W(0));
        const W value = text_gradient(exp_bounded(own - (image ? image_shift : shift)), terms);
        narrow(value - target, out[label]);
    }
};

// The first block of the table's row that the next row of logits will want: processors foresee steps within a row, not jumps.
inline void prefetch_distances(const DiscrepancyCall& call, int64_t row) {
    const int64_t code = row < call.rows ? call.labels[row * call.label_stride] - call.image_start : -1;
    if (!call.distances || code < 0 || code >= call.codes)
        return;
    const int64_t size = call.distances_type == DType::kDouble ? 8 : call.distances_type == DType::kFloat ? 4 : 2;
    for (int64_t i = 0; i < size * (call.codes < kBlock ? call.codes : kBlock); i += 64)
        __builtin_prefetch(call.distances + code * call.codes * size + i);
}

template <class X> void run_rows(const DiscrepancyCall& call, DiscrepancyScratch& scratch, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        prefetch_distances(call, row + 1);
        if (call.backward)
            Row<X>(call, scratch, row).backward();
        else
            Row<X>(call, scratch, row).forward();
    }
}

} // namespace

void discrepancy_run(const DiscrepancyCall& call, DiscrepancyScratch& scratch, int64_t begin_row, int64_t end_row) {
    switch (call.logits_type) {
    case DType::kFloat:
        return run_rows<float>(call, scratch, begin_row, end_row);
    case DType::kBFloat16:
        return run_rows<bf16>(call, scratch, begin_row, end_row);
    case DType::kHalf:
        return run_rows<f16>(call, scratch, begin_row, end_row);
    case DType::kDouble:
        return run_rows<double>(call, scratch, begin_row, end_row);
    }
}

} // namespace LK_ISA
} // namespace lk
