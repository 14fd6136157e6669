// spam_step_ on CPU: checks, then one parallel region over the chunks of all parameters. No formula here.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "../cpu/spam.h"
#include "dtype.h"
#include "spam_tensors.h"

namespace {

using lk::ScalarType, lk::Tensor, lk::Tensors, lk::View;

double number(const Tensor& t, const char* name) {
    STD_TORCH_CHECK(t.numel() == 1 && t.is_cpu(), name, " must hold one number on the CPU");
    const void* data = t.const_data_ptr();
    switch (t.scalar_type()) {
    case ScalarType::Double:
        return *static_cast<const double*>(data);
    case ScalarType::Float:
        return *static_cast<const float*>(data);
    default:
        STD_TORCH_CHECK(false, name, " must be float32 or float64");
    }
}

// The bits of every draw of `chosen` of 16, in lexicographic order of the drawn positions: reference.stratum_mask, unranked.
const std::vector<uint16_t>& combinations(int chosen) {
    static const auto tables = [] {
        std::array<std::vector<uint16_t>, lk::kStratum + 1> result;
        for (uint32_t bits = 0; bits < 1u << lk::kStratum; ++bits)
            result[__builtin_popcount(bits)].push_back(uint16_t(bits));
        // The lowest position that two draws do not share decides, and the draw that has it comes first.
        const auto first = [](uint16_t a, uint16_t b) { return (a & (a ^ b) & -(a ^ b)) != 0; };
        for (auto& draws : result)
            std::sort(draws.begin(), draws.end(), first);
        return result;
    }();
    return tables[chosen];
}

lk::SpamTask make_task(const View& p, const View& g, const View& m, const View& v, const lk::SpamHyper& h, float step,
                       size_t i) {
    lk::SpamTask task{};
    task.p = {p.data, lk::dtype_of(p.type, "params[", i, "]"), p.contiguous ? nullptr : p.strides};
    task.g = {g.data, lk::dtype_of(g.type, "grads[", i, "]"), g.contiguous ? nullptr : g.strides};
    task.m = m.data, task.v = v.data;
    task.moments = lk::dtype_of(m.type, "exp_avgs[", i, "]");
    task.kind = m.same_shape(p) ? lk::SpamKind::kDense : h.row_mask ? lk::SpamKind::kRow : lk::SpamKind::kElement;
    task.numel = p.numel;
    task.row_length = p.ndim && p.sizes[0] ? p.numel / p.sizes[0] : p.numel;
    task.ndim = int(p.ndim), task.sizes = p.sizes;
    task.phase = lk::spam_phase(int64_t(step) + 1, h.reset_interval);
    task.restart = task.phase.k == 0 && task.phase.cycle > 0;
    const bool clips = h.threshold > 0 && task.phase.k >= h.unclipped_steps;
    task.clip = !clips ? lk::SpamClip::kNone : h.freeze_zero_variance ? lk::SpamClip::kFreeze : lk::SpamClip::kPass;
    return task;
}

// The scalars of a step: most parameters of a group are at the same one, so the last answer is kept.
struct ScalarCache {
    int64_t n_float = -1, n_double = -1;
    lk::SpamScalars<float> f;
    lk::SpamScalars<double> d;
    void give(lk::SpamTask& task, const lk::SpamHyper& h) {
        if (task.p.dtype == lk::DType::kDouble) {
            if (n_double != task.phase.n)
                d = lk::spam_scalars<double>(h, task.phase);
            n_double = task.phase.n;
            task.d = d;
        } else {
            if (n_float != task.phase.n)
                f = lk::spam_scalars<float>(h, task.phase);
            n_float = task.phase.n;
            task.f = f;
        }
    }
};

void spam_step_(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors steps, Tensor lr, double beta1,
                double beta2, double eps, double weight_decay, double threshold, int64_t reset_interval, int64_t warmup_steps,
                int64_t unclipped_steps, bool cycle_correction, bool freeze_zero_variance, bool maximize, int64_t density_16ths,
                bool row_mask, int64_t seed, std::vector<int64_t> indices, std::vector<int64_t> placement,
                std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
    const size_t n = params.size();
    lk::check_lists(params, grads, exp_avgs, exp_avg_sqs, steps, indices, placement, density_16ths);
    const lk::SpamRun run = lk::spam_run();
    lk::SpamCall call{};
    call.hyper = {number(lr, "lr"),
                  beta1,
                  beta2,
                  eps,
                  weight_decay,
                  threshold,
                  reset_interval,
                  warmup_steps,
                  unclipped_steps,
                  cycle_correction,
                  freeze_zero_variance,
                  maximize,
                  row_mask,
                  int(density_16ths),
                  uint64_t(seed)};
    call.unscale = grad_scale.has_value();
    call.grad_scale = call.unscale ? number(*grad_scale, "grad_scale") : 1.0;
    const bool skip = found_inf && number(*found_inf, "found_inf") != 0.0;

    lk::Copies copies;
    ScalarCache scalars;
    std::vector<lk::SpamTask> tasks;
    std::vector<int64_t> first_chunk{0};
    std::vector<float*> counters;
    tasks.reserve(n), first_chunk.reserve(n + 1), counters.reserve(n);
    for (size_t i = 0; i < n; ++i) {
        View p(params[i]), g(grads[i]), m(exp_avgs[i]), v(exp_avg_sqs[i]), step(steps[i]);
        lk::check_one(i, p, g, m, v, step, call.hyper, call.unscale);
        const bool in_memory_order =
            !(p.contiguous && g.contiguous && m.contiguous && v.contiguous) && lk::walks_in_memory_order(p, g, m, v);
        if (in_memory_order)
            p.contiguous = g.contiguous = true;
        else if (!skip && !m.contiguous)
            m = View(copies.of(exp_avgs[i]));
        if (!in_memory_order && !skip && !v.contiguous)
            v = View(copies.of(exp_avg_sqs[i]));
        counters.push_back(reinterpret_cast<float*>(step.data));
        tasks.push_back(make_task(p, g, m, v, call.hyper, *counters.back(), i));
        lk::SpamTask& task = tasks.back();
        scalars.give(task, call.hyper);
        task.index = uint32_t(indices[i]);
        const bool placed = !placement.empty();
        task.local_block = std::max<int64_t>(placed ? placement[4 * i] : p.numel, 1);
        task.global_block = placed ? placement[4 * i + 1] : p.numel;
        task.offset = placed ? placement[4 * i + 2] : 0;
        task.row_offset = placed ? placement[4 * i + 3] : 0;
        first_chunk.push_back(first_chunk.back() + (task.numel + lk::kSpamChunk - 1) / lk::kSpamChunk);
    }
    if (skip)
        return;
    if (density_16ths < lk::kStratum) {
        const std::vector<uint16_t>& table = combinations(int(density_16ths));
        call.combinations = table.data();
        call.n_combinations = uint32_t(table.size());
    }
    call.tasks = tasks.data(), call.first_chunk = first_chunk.data(), call.n_tasks = int64_t(n);
    int64_t elements = 0;
    for (const lk::SpamTask& task : tasks)
        elements += task.numel;
    const int64_t chunks = first_chunk.back();
    // A thread should have a full chunk's worth of elements to do, however small the tensors.
    const int64_t grain = elements ? std::max<int64_t>(1, chunks * lk::kSpamChunk / elements) : 1;
    torch::stable::parallel_for(0, chunks, grain, [&](int64_t begin, int64_t end) { run(call, begin, end); });
    copies.write_back();
    for (float* counter : counters)
        *counter += 1.0f;
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(ladderkern, CPU, m) { m.impl("spam_step_", TORCH_BOX(&spam_step_)); }
