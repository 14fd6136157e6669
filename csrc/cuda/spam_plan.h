// From a list of tensors to launches: the host's part of the SPAM step, without torch.
#pragma once

#include <vector>

#include "spam.cuh"

namespace lk {

inline bool spam_aligned(const SpamTensor& t, SpamMask mask) {
    const uintptr_t addresses = uintptr_t(t.p) | uintptr_t(t.g) | uintptr_t(t.m) | uintptr_t(t.v);
    return addresses % sizeof(uint4) == 0 && (mask != SpamMask::kRow || t.row_length % kSpamVector == 0);
}

template <class T> SpamRules<T> spam_rules(const SpamHyper& h, SpamNumber lr, SpamNumber grad_scale, SpamNumber found_inf) {
    return {spam_rates<T>(h), lr,
            grad_scale,       found_inf,
            h.reset_interval, h.unclipped_steps,
            h.seed,           stratum_draws(h.chosen),
            h.chosen,         h.freeze_zero_variance};
}

// launch(arguments, number of blocks) for as many tensors at a time as the arguments of a kernel can name.
template <class T, class F>
void spam_launches(const SpamRules<T>& rules, SpamMask mask, const std::vector<SpamTensor>& tensors, const F& launch) {
    SpamArguments<T> arguments;
    arguments.rules = rules;
    arguments.n_tensors = 0;
    uint32_t blocks = 0;
    const auto flush = [&] {
        if (blocks)
            launch(arguments, blocks);
        arguments.n_tensors = 0, blocks = 0;
    };
    for (const SpamTensor& tensor : tensors) {
        if (tensor.numel == 0)
            continue;
        arguments.first_block[arguments.n_tensors] = blocks;
        arguments.tensors[arguments.n_tensors] = tensor;
        arguments.tensors[arguments.n_tensors].aligned = spam_aligned(tensor, mask);
        blocks += uint32_t((tensor.numel + kSpamTile - 1) / kSpamTile);
        if (++arguments.n_tensors == kSpamTensors)
            flush();
    }
    flush();
}

template <class F> void spam_advances(const std::vector<float*>& steps, SpamNumber found_inf, const F& launch) {
    for (size_t first = 0; first < steps.size(); first += kSpamSteps) {
        SpamSteps arguments;
        arguments.found_inf = found_inf;
        arguments.n = int(steps.size() - first < size_t(kSpamSteps) ? steps.size() - first : size_t(kSpamSteps));
        for (int i = 0; i < arguments.n; ++i)
            arguments.steps[i] = steps[first + i];
        launch(arguments, uint32_t((arguments.n + kSpamThreads - 1) / kSpamThreads));
    }
}

} // namespace lk
