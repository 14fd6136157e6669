// Residual addition and RMS norm, forward and backward: a row at a time, compiled once per ISA tier (LK_ISA). A row is read
// from memory once and stays in the cache for its second pass. Results do not depend on tier, thread or other rows.
#include "norm.h"

#include <algorithm>
#include <type_traits>

#include "../math/norm.h"
#include "elements.h"
#include "norm_columns.h"

namespace lk {
namespace LK_ISA {
namespace {

template <class X> using Wide = std::conditional_t<std::is_same_v<X, double>, double, float>; // of the arithmetic

template <class X> inline X* row_of(const NormRows& rows, int64_t i) {
    return rows.data ? reinterpret_cast<X*>(rows.data) + i * rows.stride : nullptr;
}

// X: of x and the stream; O: of normed.
template <class X, class O> struct Norm {
    using W = Wide<X>;
    const NormCall& call;
    NormScratch& scratch;
    const int64_t hidden = call.hidden, padded = norm_padded(hidden);
    W *const weight = static_cast<W*>(scratch.room), *const weight2 = weight + padded, *const row = weight2 + padded;
    W *const latest = row, *const latest2 = latest + padded; // backward: weight gradients of up to kFold rows

    void widen_weights() {
        const auto widened = [&](const char* from, W* out) {
            for (int64_t j = 0; from && j < padded; j += kTree) {
                const int n = int(hidden - j < kTree ? hidden - j : kTree);
                load(from, call.weight_type, {j, nullptr}, n, out + j);
                for (int i = n; i < kTree; ++i)
                    out[j + i] = 0;
            }
        };
        widened(call.weight, weight);
        widened(call.weight2, weight2);
        scratch.ready = true;
    }

    // Rows [begin, end): a row's sum and the norm of the row before it in one loop, so that memory is read and written evenly.
    template <int Addends> void forward_rows(int64_t begin, int64_t end) const {
        pass<Addends, true, false>(begin);
        for (int64_t i = begin + 1; i < end; ++i)
            pass<Addends, true, true>(i);
        pass<Addends, false, true>(end);
    }

    // Add: row i's sum, into `row` and the stream. Finish: the norm of row i - 1, which is in `row` until then.
    template <int Addends, bool Add, bool Finish> void pass(int64_t i) const {
        const bool round = call.round_sum, past = call.past_caches;
        const X *x = row_of<X>(call.x, i), *update = row_of<X>(call.update, i), *update2 = row_of<X>(call.update2, i);
        X* stream = row_of<X>(call.stream, i);
        O *normed = row_of<O>(call.normed, i - 1), *normed2 = row_of<O>(call.normed2, i - 1);
        const W rstd = Finish ? static_cast<const W*>(call.rstd)[i - 1] : W(0);
        RowSum<W> squares;
        for_columns(hidden, [&](int64_t j, auto n) {
            if constexpr (Finish) {
                Lanes<W> xhat = times(load_lanes<W>(row + j, Int<kTree>()), rstd);
                xhat = round ? rounded<X>(xhat) : xhat;
                store_lanes(times(xhat, load_lanes<W>(weight + j, Int<kTree>())), normed + j, n, past);
                if (normed2)
                    store_lanes(times(xhat, load_lanes<W>(weight2 + j, Int<kTree>())), normed2 + j, n, past);
            }
            if constexpr (Add) {
                prefetch(x + j);
                Lanes<W> s = load_lanes<W>(x + j, n);
                if constexpr (Addends > 0) {
                    prefetch(update + j);
                    s = plus(s, load_lanes<W>(update + j, n));
                    s = round ? rounded<X>(s) : s;
                }
                if constexpr (Addends > 1) {
                    prefetch(update2 + j);
                    s = plus(s, load_lanes<W>(update2 + j, n));
                    s = round ? rounded<X>(s) : s;
                }
                squares.add(times(s, s));
                store_lanes(s, row + j, Int<kTree>());
                if (stream && round)
                    store_exact(s, stream + j, n, past);
                else if (stream)
                    store_lanes(s, stream + j, n, past);
            }
        });
        if constexpr (Add)
            static_cast<W*>(call.rstd)[i] = reciprocal_rms<W>(squares.result(), hidden, call.eps);
    }

    void forward(int64_t begin, int64_t end) const {
        if (call.update2.data)
            forward_rows<2>(begin, end);
        else if (call.update.data)
            forward_rows<1>(begin, end);
        else
            forward_rows<0>(begin, end);
    }

    // What one row of the backward reads.
    template <bool Two> struct Row {
        const Norm& norm;
        const X* stream;
        const O *grad, *grad2;
        W rstd;
        Row(const Norm& n, int64_t i)
            : norm(n), stream(row_of<X>(n.call.x, i)), grad(row_of<O>(n.call.grad_normed, i)),
              grad2(row_of<O>(n.call.grad_normed2, i)), rstd(static_cast<const W*>(n.call.rstd)[i]) {}
        template <class N> Lanes<W> xhat(int64_t j, N n) const { return times(load_lanes<W>(stream + j, n), rstd); }
        void prefetch_columns(int64_t j) const {
            prefetch(stream + j);
            prefetch(grad + j);
            if constexpr (Two)
                prefetch(grad2 + j);
        }
        // The gradient of xhat.
        template <class N> Lanes<W> scaled(int64_t j, N n) const {
            Lanes<W> sum = times(load_lanes<W>(grad + j, n), load_lanes<W>(norm.weight + j, Int<kTree>()));
            if constexpr (Two)
                sum = plus(sum, times(load_lanes<W>(grad2 + j, n), load_lanes<W>(norm.weight2 + j, Int<kTree>())));
            return sum;
        }
    };

    // Collect: what row i adds to the gradients of the weights, and the mean of its scaled * xhat, which is returned.
    // Finish: the gradient of row i - 1, whose mean is given.
    template <bool Two, bool Collect, bool Finish> W backward_pass(int64_t i, W mean) const {
        const Row<Two> here(*this, Collect ? i : i - 1), before(*this, Finish ? i - 1 : i);
        const X* grad_stream = row_of<X>(call.grad_stream, i - 1);
        X* grad_x = row_of<X>(call.grad_x, i - 1);
        const bool past = call.past_caches;
        const W rstd = before.rstd;
        const auto collect = [](W* sums, const Lanes<W>& lanes) {
            store_lanes(plus(load_lanes<W>(sums, Int<kTree>()), lanes), sums, Int<kTree>());
        };
        RowSum<W> products;
        for_columns(hidden, [&](int64_t j, auto n) {
            if constexpr (Finish) {
                Lanes<W> gradient = each<W>([=](Pack<W> dy, Pack<W> xhat) { return norm_gradient(dy, xhat, mean, rstd); },
                                            before.scaled(j, n), before.xhat(j, n));
                if (grad_stream) {
                    prefetch(grad_stream + j);
                    gradient = plus(gradient, load_lanes<W>(grad_stream + j, n));
                }
                store_lanes(gradient, grad_x + j, n, past);
            }
            if constexpr (Collect) {
                here.prefetch_columns(j);
                const Lanes<W> xhat = here.xhat(j, n);
                products.add(times(here.scaled(j, n), xhat));
                collect(latest + j, times(load_lanes<W>(here.grad + j, n), xhat));
                if constexpr (Two)
                    collect(latest2 + j, times(load_lanes<W>(here.grad2 + j, n), xhat));
            }
        });
        return Collect ? W(products.result()) / W(hidden) : W(0);
    }

    // Rows of a block, and the sums of their weight gradients.
    template <bool Two> void backward(int64_t block) const {
        const int64_t begin = block * call.block_rows, left = call.rows - begin;
        const int64_t end = begin + (left < call.block_rows ? left : call.block_rows);
        double* const partials = call.weight_partials + block * hidden;
        double* const partials2 = call.weight_partials2 + block * hidden;
        std::fill(latest, latest + 2 * padded, W(0));
        std::fill(partials, partials + hidden, 0.0);
        if (Two)
            std::fill(partials2, partials2 + hidden, 0.0);
        W mean = backward_pass<Two, true, false>(begin, W(0));
        for (int64_t i = begin + 1; i < end; ++i) {
            if ((i - begin) % kFold == 0)
                fold<Two>(partials, partials2);
            mean = backward_pass<Two, true, true>(i, mean);
        }
        fold<Two>(partials, partials2);
        backward_pass<Two, false, true>(end, mean);
    }

    template <bool Two> void fold(double* partials, double* partials2) const {
        const auto add = [this](W* sums, double* out) {
            for (int64_t j = 0; j < hidden; ++j) {
                out[j] += double(sums[j]);
                sums[j] = 0;
            }
        };
        add(latest, partials);
        if (Two)
            add(latest2, partials2);
    }

    // Columns [begin, end) of the gradients of the weights: blocks in their order.
    void weight_gradient(int64_t begin, int64_t end) const {
        const int64_t blocks = (call.rows + call.block_rows - 1) / call.block_rows;
        const auto sum = [&](const double* partials, char* out) {
            for (int64_t j = begin; j < end; j += kColumns) {
                const int n = int(end - j < kColumns ? end - j : kColumns);
                double sums[kColumns] = {};
                W results[kColumns];
                for (int64_t b = 0; b < blocks; ++b)
                    for (int k = 0; k < n; ++k)
                        sums[k] += partials[b * hidden + j + k];
                for (int k = 0; k < n; ++k)
                    results[k] = W(sums[k]);
                store(results, out, call.weight_type, {j, nullptr}, n);
            }
        };
        sum(call.weight_partials, call.grad_weight);
        if (call.weight2)
            sum(call.weight_partials2, call.grad_weight2);
    }
    static constexpr int kColumns = 256;

    void run(NormStage stage, int64_t begin, int64_t end) {
        if (stage == NormStage::kWeightGradient)
            return weight_gradient(begin, end);
        if (!scratch.ready)
            widen_weights();
        if (stage == NormStage::kForward)
            forward(begin, end);
        else
            for (int64_t block = begin; block < end; ++block)
                if (call.weight2)
                    backward<true>(block);
                else
                    backward<false>(block);
        if (call.past_caches)
            stream_fence();
    }
};

} // namespace

void norm_run(const NormCall& call, NormStage stage, NormScratch& scratch, int64_t begin, int64_t end) {
    const bool narrow = call.normed_type == call.type;
    switch (call.type) {
    case DType::kFloat:
        return Norm<float, float>{call, scratch}.run(stage, begin, end);
    case DType::kBFloat16:
        return narrow ? Norm<bf16, bf16>{call, scratch}.run(stage, begin, end)
                      : Norm<bf16, float>{call, scratch}.run(stage, begin, end);
    case DType::kHalf:
        return narrow ? Norm<f16, f16>{call, scratch}.run(stage, begin, end)
                      : Norm<f16, float>{call, scratch}.run(stage, begin, end);
    case DType::kDouble:
        return Norm<double, double>{call, scratch}.run(stage, begin, end);
    }
}

} // namespace LK_ISA
} // namespace lk
