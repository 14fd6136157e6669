// What the binding hands to the tiers: one call of prm_scores or of its backward, whose responses threads share.
#pragma once

#include <cstdint>

#include "dtype.h"

namespace lk {

// The rows of the tensors `steps`, `responses` and `indices`.
enum PrmScore { kMargin, kProb, kLogProb, kScores };
enum PrmAggregate {
    kMin,
    kMax,
    kLast,
    kMean,
    kProduct,
    kLogProduct,
    kGeometricMean,
    kMeanMargin,
    kMinMargin,
    kMaxMargin,
    kLastMargin,
    kAggregates
};
enum PrmIndex { kCount, kArgmin, kArgmax, kFirstError, kIndices };

// S rows of scores, R responses. W is the arithmetic's type: float64 for float64 scores, else float32.
struct PrmCall {
    bool backward, probabilities, strict;
    const char* scores; // [S, classes]
    DType scores_type;
    int64_t row_stride, class_stride; // in elements
    int64_t rows, classes, responses, positive;
    double threshold;
    const int64_t* offsets;      // [R + 1], never falling, from 0 to S
    const bool* mask;            // [S], or null where every row is a step
    const char* weights;         // [classes] W, or null
    char* steps;                 // [3, S] W: written forward, read backward
    char* aggregates;            // [kAggregates, R] W
    int64_t* indices;            // [kIndices, R]
    bool* min_is_last;           // [R], forward alone
    const char* grad_steps;      // [3, S] W
    const char* grad_aggregates; // [kAggregates, R] W
    char* grad;                  // [S, classes], of the scores' type
};

using PrmRun = void (*)(const PrmCall&, int64_t begin_response, int64_t end_response);

// The tier chosen at load; throws std::runtime_error where LADDERKERN_CPU_ISA asks for one that this CPU lacks.
PrmRun prm_run();

} // namespace lk
