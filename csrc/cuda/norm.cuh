// Residual addition and RMS norm: one launch forward, a row a block; backward one, and one that adds up the weight gradients.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../math/norm.h"
#include "block_sum.cuh"

namespace lk {

constexpr int kNormVector = 8, kBackwardThreads = 256; // most threads of a block
template <class X> constexpr int kForwardThreads = sizeof(X) == 8 ? 256 : 512;
constexpr int kNormMeans = 64; // rows of a block whose means are kept, where rows are longer than its registers
constexpr int kSumColumns = 32, kSumThreads = 256;

// Vectors of eight columns that a thread holds in registers.
template <class S> constexpr int kForwardVectors = sizeof(S) == 4 ? 2 : 1;
template <class S> constexpr int kBackwardVectors = sizeof(S) == 4 ? 2 : 1;

// Rows of hidden elements in a row each; no data: absent.
struct NormMatrix {
    char* data;
    int64_t stride; // between rows, in elements
};
struct NormVector {
    char* data;
    DType type;
};

struct NormForward {
    NormMatrix x, update, update2, normed, normed2, stream;
    NormVector weight, weight2;
    void* rstd; // of the arithmetic's type
    int64_t hidden;
    double eps;
    bool round_sum, aligned; // aligned: eight columns from any multiple of eight lie in whole 16 bytes, and in the row
};

struct NormBackward {
    NormMatrix grad_normed, grad_normed2, grad_stream, stream, grad_x;
    NormVector weight, weight2;
    const void* rstd;
    void *partials, *partials2; // [blocks, hidden] of the arithmetic's type: weight gradients of a block's rows
    int64_t rows, hidden, block_rows;
    bool aligned;
};

struct NormSum {
    const void* partials[2];
    NormVector grad_weight[2];
    int64_t blocks, hidden;
};

template <class E> LK_FN E* row_of(const NormMatrix& m, int64_t row) { return reinterpret_cast<E*>(m.data) + row * m.stride; }

// Columns from `column`; 0 beyond the end of the row.
template <class E, class S> LK_FN void load_columns(const E* p, int64_t column, int64_t hidden, bool aligned, S* out) {
    if (aligned && column < hidden)
        return load_numbers<kNormVector>(p, column, out);
    LK_UNROLL
    for (int j = 0; j < kNormVector; ++j) {
        out[j] = S(0);
        if (column + j < hidden)
            load_numbers<1>(p, column + j, out + j);
    }
}
template <class E, class S> LK_FN void store_columns(const S* numbers, E* p, int64_t column, int64_t hidden, bool aligned) {
    if (aligned && column < hidden)
        return store_numbers<kNormVector>(numbers, p, column);
    LK_UNROLL
    for (int j = 0; j < kNormVector; ++j)
        if (column + j < hidden)
            store_numbers<1>(numbers + j, p, column + j);
}
template <class S> LK_FN void load_weights(const NormVector& w, int64_t column, int64_t hidden, bool aligned, S* out) {
    switch (w.type) {
    case DType::kFloat:
        return load_columns(reinterpret_cast<const float*>(w.data), column, hidden, aligned, out);
    case DType::kBFloat16:
        return load_columns(reinterpret_cast<const bf16*>(w.data), column, hidden, aligned, out);
    case DType::kHalf:
        return load_columns(reinterpret_cast<const f16*>(w.data), column, hidden, aligned, out);
    case DType::kDouble:
        return load_columns(reinterpret_cast<const double*>(w.data), column, hidden, aligned, out);
    }
}

template <class X, class S> LK_FN S rounded_to(S x) {
    X near;
    narrow_to(x, near);
    return S(widen(near));
}

// The type of the arithmetic for elements of type X.
template <class X> using Wide = std::conditional_t<sizeof(X) == 8, double, float>;

// x + update + update2, each sum rounded to the type of x if round_sum.
template <class X, class S> LK_FN void load_stream(const NormForward& a, int64_t row, int64_t column, S* s) {
    load_columns(row_of<X>(a.x, row), column, a.hidden, a.aligned, s);
    const auto add = [&](const NormMatrix& addend) {
        if (!addend.data)
            return;
        S more[kNormVector];
        load_columns(row_of<X>(addend, row), column, a.hidden, a.aligned, more);
        LK_UNROLL
        for (int j = 0; j < kNormVector; ++j) {
            s[j] += more[j];
            if (a.round_sum)
                s[j] = rounded_to<X>(s[j]);
        }
    };
    add(a.update);
    add(a.update2);
}

// weight * s * rstd, with s * rstd rounded to the type of x first if round_sum.
template <class X, class O, class S>
LK_FN void store_normed(const NormForward& a, const NormMatrix& normed, const NormVector& weight, int64_t row, int64_t column,
                        const S* s, S rstd) {
    S numbers[kNormVector];
    load_weights(weight, column, a.hidden, a.aligned, numbers);
    LK_UNROLL
    for (int j = 0; j < kNormVector; ++j) {
        const S xhat = s[j] * rstd;
        numbers[j] *= a.round_sum ? rounded_to<X>(xhat) : xhat;
    }
    store_columns(numbers, row_of<O>(normed, row), column, a.hidden, a.aligned);
}

// stream = x + update + update2; normed = weight * stream * rstd, rstd = 1 / sqrt(mean(stream^2) + eps).
// Reads x and each addend, writes stream and each normed: in bf16 8 bytes an element with one addend and one weight, 4 of the
// norm alone, the least possible. What of a row does not fit into registers is read again, from cache.
// X: the type of x and of the stream; O: of normed.
template <class X, class O>
__global__ void __launch_bounds__(kForwardThreads<X>) norm_forward(const __grid_constant__ NormForward a) {
    using S = Wide<X>;
    LK_SHARED(S[2][kWarpSize], rooms);
    const int64_t row = blockIdx.x, step = int64_t(blockDim.x) * kNormVector, first = int64_t(threadIdx.x) * kNormVector;
    S held[kForwardVectors<S>][kNormVector], squares = 0;
    const auto collect = [&](int64_t column, S* s) {
        load_stream<X>(a, row, column, s);
        LK_UNROLL
        for (int j = 0; j < kNormVector; ++j)
            squares += s[j] * s[j];
        if (a.stream.data)
            store_columns(s, row_of<X>(a.stream, row), column, a.hidden, a.aligned);
    };
    LK_UNROLL
    for (int k = 0; k < kForwardVectors<S>; ++k)
        collect(first + k * step, held[k]);
    for (int64_t column = first + kForwardVectors<S> * step; column < a.hidden; column += step) {
        S s[kNormVector];
        collect(column, s);
    }
    const S rstd = reciprocal_rms<S>(double(BlockSum<S>{rooms}.of(squares)), a.hidden, a.eps);
    if (threadIdx.x == 0)
        static_cast<S*>(a.rstd)[row] = rstd;
    const auto finish = [&](int64_t column, const S* s) {
        store_normed<X, O>(a, a.normed, a.weight, row, column, s, rstd);
        if (a.weight2.data)
            store_normed<X, O>(a, a.normed2, a.weight2, row, column, s, rstd);
    };
    LK_UNROLL
    for (int k = 0; k < kForwardVectors<S>; ++k)
        finish(first + k * step, held[k]);
    for (int64_t column = first + kForwardVectors<S> * step; column < a.hidden; column += step) {
        S s[kNormVector];
        load_stream<X>(a, row, column, s);
        finish(column, s);
    }
}

// Eight columns of a row on the way back.
template <class X, class O> struct NormGradients {
    using S = Wide<X>;
    S grad[kNormVector], grad2[kNormVector], xhat[kNormVector], scaled[kNormVector]; // scaled: the gradient of xhat
    LK_MEMBER void load(const NormBackward& a, int64_t row, int64_t column, S rstd) {
        load_columns(row_of<X>(a.stream, row), column, a.hidden, a.aligned, xhat);
        load_columns(row_of<O>(a.grad_normed, row), column, a.hidden, a.aligned, grad);
        load_weights(a.weight, column, a.hidden, a.aligned, scaled);
        LK_UNROLL
        for (int j = 0; j < kNormVector; ++j) {
            xhat[j] *= rstd;
            scaled[j] *= grad[j];
        }
        if (a.weight2.data) {
            S weight2[kNormVector];
            load_columns(row_of<O>(a.grad_normed2, row), column, a.hidden, a.aligned, grad2);
            load_weights(a.weight2, column, a.hidden, a.aligned, weight2);
            LK_UNROLL
            for (int j = 0; j < kNormVector; ++j)
                scaled[j] += grad2[j] * weight2[j];
        }
    }
    LK_MEMBER S product() const {
        S sum = 0;
        LK_UNROLL
        for (int j = 0; j < kNormVector; ++j)
            sum += scaled[j] * xhat[j];
        return sum;
    }
    LK_MEMBER void finish(const NormBackward& a, int64_t row, int64_t column, S mean, S rstd, S* partial, S* partial2) const {
        S out[kNormVector];
        LK_UNROLL
        for (int j = 0; j < kNormVector; ++j) {
            out[j] = norm_gradient(scaled[j], xhat[j], mean, rstd);
            partial[j] += grad[j] * xhat[j];
        }
        if (a.weight2.data)
            LK_UNROLL
        for (int j = 0; j < kNormVector; ++j)
            partial2[j] += grad2[j] * xhat[j];
        if (a.grad_stream.data) {
            S more[kNormVector];
            load_columns(row_of<X>(a.grad_stream, row), column, a.hidden, a.aligned, more);
            LK_UNROLL
            for (int j = 0; j < kNormVector; ++j)
                out[j] += more[j];
        }
        store_columns(out, row_of<X>(a.grad_x, row), column, a.hidden, a.aligned);
    }
};

// grad_x = grad_stream + rstd (w g - xhat mean(w g xhat)), and the weight gradients sum g xhat of the block's rows.
// Reads stream and the gradients, writes grad_x: in bf16 8 bytes an element with one weight, 6 of the norm alone, the least
// possible, and 4 / block_rows of partial sums. Rows that do not fit into registers are read twice, the second time from cache.
// One block a multiprocessor is enough: for two ptxas would spill on sm_100.
template <class X, class O>
__global__ void __launch_bounds__(kBackwardThreads, 1) norm_backward(const __grid_constant__ NormBackward a) {
    using S = Wide<X>;
    constexpr int kVectors = kBackwardVectors<S>;
    LK_SHARED(S[2][kWarpSize], rooms);
    LK_SHARED(S[kNormMeans], means);
    BlockSum<S> sum{rooms};
    const int64_t first_row = int64_t(blockIdx.x) * a.block_rows;
    const int64_t end = first_row + a.block_rows < a.rows ? first_row + a.block_rows : a.rows;
    const int64_t step = int64_t(blockDim.x) * kNormVector, first = int64_t(threadIdx.x) * kNormVector, chunk = kVectors * step;
    const S* const rstds = static_cast<const S*>(a.rstd);
    const bool wide_rows = a.hidden > chunk;
    NormGradients<X, O> held[kVectors];
    if (wide_rows)
        for (int64_t row = first_row; row < end; ++row) {
            S product = 0;
            for (int64_t column = first; column < a.hidden; column += step) {
                held[0].load(a, row, column, rstds[row]);
                product += held[0].product();
            }
            product = sum.of(product);
            if (threadIdx.x == 0)
                means[row - first_row] = product / S(a.hidden);
        }
    __syncthreads();
    for (int64_t start = 0; start < a.hidden; start += chunk) {
        S partial[kVectors][kNormVector] = {}, partial2[kVectors][kNormVector] = {};
        for (int64_t row = first_row; row < end; ++row) {
            const S rstd = rstds[row];
            S product = 0;
            LK_UNROLL
            for (int k = 0; k < kVectors; ++k) {
                held[k].load(a, row, start + first + k * step, rstd);
                product += held[k].product();
            }
            const S mean = wide_rows ? means[row - first_row] : sum.of(product) / S(a.hidden);
            LK_UNROLL
            for (int k = 0; k < kVectors; ++k)
                held[k].finish(a, row, start + first + k * step, mean, rstd, partial[k], partial2[k]);
        }
        LK_UNROLL
        for (int k = 0; k < kVectors; ++k) {
            const int64_t column = start + first + k * step, place = blockIdx.x * a.hidden;
            store_columns(partial[k], static_cast<S*>(a.partials) + place, column, a.hidden, a.aligned);
            if (a.weight2.data)
                store_columns(partial2[k], static_cast<S*>(a.partials2) + place, column, a.hidden, a.aligned);
        }
    }
}

// The sums over blocks of partials [2, blocks, hidden]: 32 columns a block of threads, of one weight (blockIdx.y).
template <class S> __global__ void __launch_bounds__(kSumThreads) norm_sum(const __grid_constant__ NormSum a) {
    constexpr int kParts = kSumThreads / kSumColumns;
    LK_SHARED(S[kParts][kSumColumns], parts);
    const int inside = int(threadIdx.x) % kSumColumns, part = int(threadIdx.x) / kSumColumns;
    const int64_t column = int64_t(blockIdx.x) * kSumColumns + inside;
    const S* const partials = static_cast<const S*>(a.partials[blockIdx.y]);
    S sum = 0;
    if (column < a.hidden)
        for (int64_t block = part; block < a.blocks; block += kParts)
            sum += partials[block * a.hidden + column];
    parts[part][inside] = sum;
    __syncthreads();
    if (part || column >= a.hidden)
        return;
    for (int i = 1; i < kParts; ++i)
        sum += parts[i][inside];
    store_numbers<1>(&sum, a.grad_weight[blockIdx.y].data, a.grad_weight[blockIdx.y].type, column);
}

} // namespace lk
