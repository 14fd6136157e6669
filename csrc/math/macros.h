// Functions of csrc/math have internal linkage: each ISA tier compiles its own copy, and the linker must never merge two of
// them.
#pragma once

#ifdef __CUDACC__
#define LK_FN static __host__ __device__ __forceinline__
#else
#define LK_FN static inline
#endif
