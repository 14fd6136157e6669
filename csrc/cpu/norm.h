// What the binding hands to the tiers: one call of one of the four residual-norm ops, whose rows threads share.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace lk {

// Rows of hidden elements in a row each; no data: absent.
struct NormRows {
    char* data;
    int64_t stride; // between rows, in elements
};

// What a range given to NormRun counts.
enum class NormStage {
    kForward,       // rows
    kBackward,      // blocks of rows
    kWeightGradient // columns: after all of kBackward, sums the blocks
};

struct NormCall {
    DType type, normed_type, weight_type; // of x and its like; of normed; of weights
    int64_t rows, hidden;
    const char *weight, *weight2; // [hidden]; weight2 may be null
    void* rstd;                   // [rows], of the arithmetic's type; written forward
    double eps;
    bool round_sum;
    bool past_caches;                           // the outputs are larger than the caches, and their rows whole cache lines
    NormRows x, update, update2;                // forward; backward x is the stream
    NormRows stream, normed, normed2;           // written; stream and normed2 may be absent
    NormRows grad_normed, grad_normed2;         // backward
    NormRows grad_stream;                       // may be absent
    NormRows grad_x;                            // written
    int64_t block_rows;                         // backward: how many rows one block has
    double *weight_partials, *weight_partials2; // [blocks, hidden]: sums of each block
    char *grad_weight, *grad_weight2;           // written
};

// A thread's own room, of norm_scratch_numbers() numbers of the arithmetic's type, aligned to 64 bytes.
struct NormScratch {
    void* room;
    bool ready; // the weights are in it
};

using NormRun = void (*)(const NormCall&, NormStage, NormScratch&, int64_t begin, int64_t end);

// The tier chosen at load; throws std::runtime_error where LADDERKERN_CPU_ISA asks for one that this CPU lacks.
NormRun norm_run();

// hidden, filled up to whole vectors of any tier.
inline int64_t norm_padded(int64_t hidden) { return (hidden + 15) / 16 * 16; }

// Two weights, and forward a row, backward the weight gradients of a few rows.
inline int64_t norm_scratch_numbers(int64_t hidden) { return 4 * norm_padded(hidden); }

} // namespace lk
