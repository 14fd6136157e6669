// Reading and writing blocks of elements of any of the four dtypes, in a row or behind strides.
// Included within a tier: what it defines is compiled once per LK_ISA.
#pragma once

#include <cstdint>

#include "../math/numbers.h"
#include "dtype.h"

namespace lk {
namespace LK_ISA {
namespace {

// Which numbers of a tensor: those in a row from start, or those at offsets, where strides ask for them.
struct Where {
    int64_t start;
    const int64_t* offsets;
};

template <class F> void for_each_place(const Where& where, int n, const F& f) {
    if (where.offsets)
        for (int i = 0; i < n; ++i)
            f(i, where.offsets[i]);
    else
        for (int i = 0; i < n; ++i)
            f(i, where.start + i);
}

template <class S, class T> void load_as(const char* base, const Where& where, int n, T* __restrict out) {
    const S* __restrict source = reinterpret_cast<const S*>(base);
    for_each_place(where, n, [=](int i, int64_t at) { out[i] = T(widen(source[at])); });
}

template <class S, class T> void store_as(const T* __restrict values, char* base, const Where& where, int n) {
    S* __restrict target = reinterpret_cast<S*>(base);
    for_each_place(where, n, [=](int i, int64_t at) {
        if constexpr (sizeof(S) == 8)
            target[at] = values[i];
        else
            narrow(float(values[i]), target[at]);
    });
}

// n elements, widened to T.
template <class T> void load(const char* base, DType dtype, const Where& where, int n, T* out) {
    switch (dtype) {
    case DType::kFloat:
        return load_as<float>(base, where, n, out);
    case DType::kBFloat16:
        return load_as<bf16>(base, where, n, out);
    case DType::kHalf:
        return load_as<f16>(base, where, n, out);
    case DType::kDouble:
        return load_as<double>(base, where, n, out);
    }
}

template <class T> void store(const T* values, char* base, DType dtype, const Where& where, int n) {
    switch (dtype) {
    case DType::kFloat:
        return store_as<float>(values, base, where, n);
    case DType::kBFloat16:
        return store_as<bf16>(values, base, where, n);
    case DType::kHalf:
        return store_as<f16>(values, base, where, n);
    case DType::kDouble:
        return store_as<double>(values, base, where, n);
    }
}

template <class T> constexpr DType dtype_of() { return sizeof(T) == 8 ? DType::kDouble : DType::kFloat; }

// Where n logical elements from start lie in memory, found by counting through the sizes; null if simply in a row.
inline const int64_t* strided_offsets(const int64_t* sizes, int ndim, const int64_t* strides, int64_t start, int n,
                                      int64_t* out) {
    if (!strides)
        return nullptr;
    int64_t index[64], offset = 0;
    for (int d = ndim - 1; d >= 0; --d) {
        index[d] = start % sizes[d];
        start /= sizes[d];
        offset += index[d] * strides[d];
    }
    for (int i = 0; i < n; ++i) {
        out[i] = offset;
        for (int d = ndim - 1; d >= 0; --d) {
            offset += strides[d];
            if (++index[d] < sizes[d])
                break;
            offset -= strides[d] * sizes[d];
            index[d] = 0;
        }
    }
    return out;
}

} // namespace
} // namespace LK_ISA
} // namespace lk
