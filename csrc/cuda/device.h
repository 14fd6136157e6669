// What kernels need besides CUDA itself. They include no torch header: the host compiler compiles them too, in
// tests/emulation, over a shim that runs each thread as a fiber.
#pragma once

#include <cstdint>
#include <cstring>

#ifndef __CUDACC__
#include "shim.h"
#endif

#include "../cpu/dtype.h"
#include "../math/numbers.h"

namespace lk {

#ifdef __CUDACC__
#define LK_MEMBER __host__ __device__ __forceinline__
#define LK_DEVICE __device__ __forceinline__
#define LK_UNROLL _Pragma("unroll")
#else
#define LK_MEMBER
#define LK_DEVICE inline
#define LK_UNROLL
#endif

template <class T> struct Same {
    using Type = T;
};

// LK_SHARED(float[32], sums): a variable that the threads of a block share.
#ifdef __CUDACC__
#define LK_SHARED(type, name) __shared__ typename lk::Same<type>::Type name
#else
#define LK_SHARED(type, name) auto& name = emulation::shared<type>(__FILE__, __LINE__)
#endif

LK_FN int bits_set(uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __popc(bits);
#else
    return __builtin_popcount(bits);
#endif
}

template <class T> LK_FN T converted(float x) { return T(x); }
template <class T> LK_FN T converted(double x) { return T(x); }

// N elements from p + i: 16 bytes at a time if N > 1, for which p + i must be aligned to 16 bytes.
template <int N, class E> LK_FN void load_elements(const E* p, int64_t i, E* out) {
    if constexpr (N == 1) {
        out[0] = p[i];
    } else {
        constexpr int kPieces = int(N * sizeof(E) / sizeof(uint4));
        static_assert(kPieces * sizeof(uint4) == N * sizeof(E));
        uint4 pieces[kPieces];
        for (int k = 0; k < kPieces; ++k)
            pieces[k] = reinterpret_cast<const uint4*>(p + i)[k];
        memcpy(out, pieces, sizeof pieces);
    }
}
// Written as one instruction: nvcc takes a plain assignment to pieces, and may leave them apart.
LK_FN void store_piece(const uint4& piece, uint4* p) {
#ifdef __CUDA_ARCH__
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};"
                 :
                 : "l"(__cvta_generic_to_global(p)), "r"(piece.x), "r"(piece.y), "r"(piece.z), "r"(piece.w)
                 : "memory");
#else
    *p = piece;
#endif
}
template <int N, class E> LK_FN void store_elements(const E* numbers, E* p, int64_t i) {
    if constexpr (N == 1) {
        p[i] = numbers[0];
    } else {
        constexpr int kPieces = int(N * sizeof(E) / sizeof(uint4));
        static_assert(kPieces * sizeof(uint4) == N * sizeof(E));
        uint4 pieces[kPieces];
        memcpy(pieces, numbers, sizeof pieces);
        for (int k = 0; k < kPieces; ++k)
            store_piece(pieces[k], reinterpret_cast<uint4*>(p + i) + k);
    }
}

// The same for numbers of the arithmetic's type, S, and elements of any: widened, and rounded to nearest.
template <int N, class E, class S> LK_FN void load_numbers(const E* p, int64_t i, S* out) {
    E elements[N];
    load_elements<N>(p, i, elements);
    for (int j = 0; j < N; ++j)
        out[j] = converted<S>(widen(elements[j]));
}
template <class S> LK_FN void narrow_to(S x, bf16& out) { narrow(float(x), out); }
template <class S> LK_FN void narrow_to(S x, f16& out) { narrow(float(x), out); }
template <class S> LK_FN void narrow_to(S x, float& out) { out = float(x); }
template <class S> LK_FN void narrow_to(S x, double& out) { out = double(x); }
template <int N, class E, class S> LK_FN void store_numbers(const S* numbers, E* p, int64_t i) {
    E elements[N];
    for (int j = 0; j < N; ++j)
        narrow_to(numbers[j], elements[j]);
    store_elements<N>(elements, p, i);
}

// The same for a type that is known at run time alone, and is one for all threads of a block.
template <int N, class S> LK_FN void load_numbers(const void* p, DType type, int64_t i, S* out) {
    switch (type) {
    case DType::kFloat:
        return load_numbers<N>(static_cast<const float*>(p), i, out);
    case DType::kBFloat16:
        return load_numbers<N>(static_cast<const bf16*>(p), i, out);
    case DType::kHalf:
        return load_numbers<N>(static_cast<const f16*>(p), i, out);
    case DType::kDouble:
    default:
        return load_numbers<N>(static_cast<const double*>(p), i, out);
    }
}
template <int N, class S> LK_FN void store_numbers(const S* numbers, void* p, DType type, int64_t i) {
    switch (type) {
    case DType::kFloat:
        return store_numbers<N>(numbers, static_cast<float*>(p), i);
    case DType::kBFloat16:
        return store_numbers<N>(numbers, static_cast<bf16*>(p), i);
    case DType::kHalf:
        return store_numbers<N>(numbers, static_cast<f16*>(p), i);
    case DType::kDouble:
        return store_numbers<N>(numbers, static_cast<double*>(p), i);
    }
}

} // namespace lk
