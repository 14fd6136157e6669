// prm_scores on CUDA: checks, then one launch. Offsets are not read here: whatever they hold, the kernel stays in its rows.
#include <torch/csrc/stable/library.h>

#include <tuple>

#include "../bind/prm_tensors.h"
#include "launch.h"
#include "library.h"
#include "prm.cuh"

namespace {

using lk::ScalarType, lk::Tensor;

std::tuple<Tensor, Tensor, Tensor, Tensor> prm_scores(Tensor scores, Tensor offsets, std::optional<Tensor> mask,
                                                      std::optional<Tensor> class_weights, int64_t positive, double threshold,
                                                      bool strict, bool probabilities) {
    lk::PrmTensors t(scores, offsets, mask, class_weights, positive, threshold, strict, probabilities);
    const int64_t S = t.c.rows, R = t.c.responses;
    Tensor steps = t.output({lk::kScores, S}, t.wide), responses = t.output({lk::kAggregates, R}, t.wide);
    Tensor indices = t.output({lk::kIndices, R}, ScalarType::Long), min_is_last = t.output({R}, ScalarType::Bool);
    t.c.steps = static_cast<char*>(steps.mutable_data_ptr());
    t.c.aggregates = static_cast<char*>(responses.mutable_data_ptr());
    t.c.indices = static_cast<int64_t*>(indices.mutable_data_ptr());
    t.c.min_is_last = static_cast<bool*>(min_is_last.mutable_data_ptr());
    if (S || R) {
        const lk::OnDevice on(scores.get_device_index());
        lk::PrmForward a{t.c, 0, false};
        const unsigned blocks = unsigned(lk::prm_plan(a));
        if (t.wide == ScalarType::Double)
            lk::prm_forward<double><<<blocks, lk::kPrmThreads, 0, on.stream>>>(a);
        else
            lk::prm_forward<float><<<blocks, lk::kPrmThreads, 0, on.stream>>>(a);
        lk::check_launch("prm_scores");
    }
    return {steps, responses, indices, min_is_last};
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(ladderkern, CUDA, m) {
    if (lk::driver_serves())
        m.impl("prm_scores", TORCH_BOX(&prm_scores));
}
