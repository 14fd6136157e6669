// prm_scores and its backward on CPU: checks, then one parallel region over the responses. No formula here.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "prm_tensors.h"

namespace {

using lk::ScalarType, lk::Tensor;

struct Call : lk::PrmTensors {
    template <class... Arguments> explicit Call(const Arguments&... arguments) : PrmTensors(arguments...) {
        bool falls = false; // else no thread leaves the scores
        for (int64_t r = 0; r < c.responses; ++r)
            falls |= c.offsets[r + 1] < c.offsets[r];
        STD_TORCH_CHECK(!falls && c.offsets[0] == 0 && c.offsets[c.responses] == c.rows,
                        "offsets must run from 0 to the number of steps, ", c.rows, ", without falling");
    }

    // Threads take runs of responses that cost the same.
    void run() const {
        constexpr int64_t kResponse = 8; // steps that cost as much as the rest of a response
        constexpr int64_t kWorth = 4096; // steps that are worth a thread
        const lk::PrmRun responses = lk::prm_run();
        const int64_t cost = c.rows + kResponse * c.responses;
        const int64_t threads = std::clamp<int64_t>(cost / kWorth, 1, torch::stable::get_num_threads());
        const auto first = [&](int64_t thread) { // the first response behind a thread's share of the cost
            const double share = double(cost) * double(thread) / double(threads);
            int64_t low = 0, high = c.responses;
            while (low < high) {
                const int64_t middle = (low + high) / 2;
                if (double(c.offsets[middle] + kResponse * middle) < share)
                    low = middle + 1;
                else
                    high = middle;
            }
            return low;
        };
        torch::stable::parallel_for(0, threads, 1, [&](int64_t begin, int64_t end) {
            responses(c, first(begin), end == threads ? c.responses : first(end));
        });
    }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> prm_scores(Tensor scores, Tensor offsets, std::optional<Tensor> mask,
                                                      std::optional<Tensor> class_weights, int64_t positive, double threshold,
                                                      bool strict, bool probabilities) {
    Call call(scores, offsets, mask, class_weights, positive, threshold, strict, probabilities);
    const int64_t S = call.c.rows, R = call.c.responses;
    Tensor steps = call.output({lk::kScores, S}, call.wide), responses = call.output({lk::kAggregates, R}, call.wide);
    Tensor indices = call.output({lk::kIndices, R}, ScalarType::Long), min_is_last = call.output({R}, ScalarType::Bool);
    call.c.steps = static_cast<char*>(steps.mutable_data_ptr());
    call.c.aggregates = static_cast<char*>(responses.mutable_data_ptr());
    call.c.indices = static_cast<int64_t*>(indices.mutable_data_ptr());
    call.c.min_is_last = static_cast<bool*>(min_is_last.mutable_data_ptr());
    call.run();
    return {steps, responses, indices, min_is_last};
}

Tensor prm_scores_backward(Tensor grad_steps, Tensor grad_responses, Tensor scores, Tensor offsets, std::optional<Tensor> mask,
                           std::optional<Tensor> class_weights, Tensor steps, Tensor responses, Tensor indices,
                           int64_t positive, double threshold, bool strict, bool probabilities) {
    Call call(scores, offsets, mask, class_weights, positive, threshold, strict, probabilities);
    const int64_t S = call.c.rows, R = call.c.responses;
    call.check(grad_steps, "grad_steps", call.wide, {lk::kScores, S});
    call.check(grad_responses, "grad_responses", call.wide, {lk::kAggregates, R});
    call.check(steps, "steps", call.wide, {lk::kScores, S});
    call.check(responses, "responses", call.wide, {lk::kAggregates, R});
    call.check(indices, "indices", ScalarType::Long, {lk::kIndices, R});
    Tensor kept[] = {grad_steps, grad_responses, steps, responses, indices};
    for (Tensor& t : kept)
        t = lk::made_contiguous(t);
    Tensor grad = call.output({S, call.c.classes}, scores.scalar_type());
    call.c.backward = true;
    call.c.grad_steps = static_cast<const char*>(kept[0].const_data_ptr());
    call.c.grad_aggregates = static_cast<const char*>(kept[1].const_data_ptr());
    call.c.steps = static_cast<char*>(const_cast<void*>(kept[2].const_data_ptr()));
    call.c.aggregates = static_cast<char*>(const_cast<void*>(kept[3].const_data_ptr()));
    call.c.indices = static_cast<int64_t*>(const_cast<void*>(kept[4].const_data_ptr()));
    call.c.grad = static_cast<char*>(grad.mutable_data_ptr());
    call.run();
    return grad;
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(ladderkern, CPU, m) {
    m.impl("prm_scores", TORCH_BOX(&prm_scores));
    m.impl("prm_scores_backward", TORCH_BOX(&prm_scores_backward));
}
