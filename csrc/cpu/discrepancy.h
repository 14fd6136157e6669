// What the binding hands to the tiers: one call of one of the four token-discrepancy ops, whose rows threads share.
#pragma once

#include <cstdint>

#include "../math/discrepancy.h"
#include "dtype.h"

namespace lk {

// One number a row, of the arithmetic's type: float64 for float64 logits, else float32.
struct PerRow {
    char* data;
    int64_t stride; // in elements
};

struct DiscrepancyCall {
    bool backward, joint; // joint: with cross-entropy over all columns
    const char* logits;
    DType logits_type;
    int64_t row_stride, rows, columns;
    const int64_t* labels;
    int64_t label_stride;
    // The image columns are image_start .. image_start + codes - 1. distances: [codes, codes], else null and
    // codebook: [dimension, codes], a column a code.
    int64_t image_start, codes, dimension;
    DistanceMetric metric;
    const char* distances;
    DType distances_type;
    const float* codebook;
    double offset, scale;
    int64_t ignore_index;
    double label_smoothing;
    PerRow cross_entropy, discrepancy, top, total, image_top,
        image_total; // written forward; read backward, all but cross_entropy
    PerRow grad_cross_entropy, grad_discrepancy;
    char* grad; // [rows, columns], contiguous, of the logits' type
};

// A thread's own: the distances of the last code that it met, where they come from the codebook.
struct DiscrepancyScratch {
    void* distances; // [codes] of the arithmetic's type
    int64_t code;    // -1: none yet
};

using DiscrepancyRun = void (*)(const DiscrepancyCall&, DiscrepancyScratch&, int64_t begin_row, int64_t end_row);

// The tier chosen at load; throws std::runtime_error where LADDERKERN_CPU_ISA asks for one that this CPU lacks.
DiscrepancyRun discrepancy_run();

} // namespace lk
