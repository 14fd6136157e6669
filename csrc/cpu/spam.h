// What the binding hands to the tiers: one task a parameter, cut into chunks that threads share.
#pragma once

#include <cstdint>

#include "../math/spam.h"
#include "dtype.h"

namespace lk {

struct SpamTensor {
    char* data;
    DType dtype;
    const int64_t* strides; // in elements; null where elements lie in the order of the walk
};

enum class SpamKind { kDense, kElement, kRow };

struct SpamTask {
    SpamTensor p, g;
    char *m, *v; // contiguous, in the order of the walk
    DType moments;
    SpamKind kind;
    int64_t numel, row_length; // of p; row_length = elements of one index of the first dimension
    int ndim;
    const int64_t* sizes;
    int64_t local_block, global_block, offset, row_offset; // reference.global_position
    uint32_t index;
    SpamPhase phase;
    bool restart;
    SpamClip clip;
    SpamScalars<float> f;
    SpamScalars<double> d;
};

struct SpamCall {
    const SpamTask* tasks;
    const int64_t* first_chunk; // [n_tasks + 1]
    int64_t n_tasks;
    SpamHyper hyper;
    const uint16_t* combinations; // [C(16, chosen)] the bits of each draw; null where nothing is masked
    uint32_t n_combinations;
    double grad_scale; // gradients are divided by it and written back
    bool unscale;
};

constexpr int64_t kSpamChunk = 16384; // elements of p; a multiple of the block and of the stratum

using SpamRun = void (*)(const SpamCall&, int64_t begin_chunk, int64_t end_chunk);

// The tier chosen at load; throws std::runtime_error where LADDERKERN_CPU_ISA asks for one that this CPU lacks.
SpamRun spam_run();

} // namespace lk
