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

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;

// What is read of a tensor, once: each question to torch is a call across its C interface.
struct View {
    char* data;
    ScalarType type;
    int64_t numel, ndim;
    const int64_t *sizes, *strides;
    bool contiguous;

    explicit View(const Tensor& t)
        : data(static_cast<char*>(t.data_ptr())), type(t.scalar_type()), ndim(t.dim()), sizes(t.sizes().data()),
          strides(t.strides().data()) {
        STD_TORCH_CHECK(ndim <= 64, "tensors must have at most 64 dimensions, got ", ndim);
        numel = 1;
        contiguous = true;
        for (int64_t d = ndim - 1; d >= 0; --d) {
            contiguous = contiguous && (sizes[d] == 1 || strides[d] == numel);
            numel *= sizes[d];
        }
        contiguous = contiguous || numel == 0;
    }
    bool same_shape(const View& other) const { return ndim == other.ndim && std::equal(sizes, sizes + ndim, other.sizes); }
    bool same_strides(const View& other) const { return std::equal(strides, strides + ndim, other.strides); }
};

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

// All elements of a dense tensor lie in one run of memory, in some order of the dimensions.
bool non_overlapping_and_dense(const View& t) {
    std::array<int64_t, 64> order{};
    int64_t n = 0;
    for (int64_t d = 0; d < t.ndim; ++d)
        if (t.sizes[d] != 1)
            order[n++] = d;
    std::sort(order.begin(), order.begin() + n, [&](int64_t a, int64_t b) { return t.strides[a] < t.strides[b]; });
    int64_t expected = 1;
    for (int64_t i = 0; i < n; ++i) {
        if (t.strides[order[i]] != expected)
            return false;
        expected *= t.sizes[order[i]];
    }
    return true;
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

// Moments that the kernels cannot walk are stepped as contiguous copies, and copied back.
struct Copies {
    Tensors targets, copies;
    Tensor of(const Tensor& moment) {
        targets.push_back(moment);
        copies.push_back(torch::stable::clone(torch::stable::contiguous(moment)));
        return copies.back();
    }
    void write_back() {
        for (size_t i = 0; i < targets.size(); ++i)
            torch::stable::copy_(targets[i], copies[i]);
    }
};

void check_one(size_t i, const View& p, const View& g, const View& m, const View& v, const View& step, const lk::SpamHyper& h) {
    STD_TORCH_CHECK(g.same_shape(p), "grads[", i, "] must have its parameter's shape");
    STD_TORCH_CHECK(m.same_shape(v) && m.type == v.type, "exp_avg_sqs[", i, "] must be like exp_avgs[", i, "]");
    STD_TORCH_CHECK(m.type != ScalarType::Half, "exp_avgs[", i, "] must be float32, bfloat16 or float64");
    STD_TORCH_CHECK(step.numel == 1 && step.type == ScalarType::Float, "steps[", i, "] must hold one float32 number");
    if (m.same_shape(p))
        return;
    const int64_t drawn = h.row_mask ? 0 : p.ndim - 1;
    bool fits = h.chosen < lk::kStratum && p.ndim >= 2 && m.ndim == p.ndim && p.sizes[drawn] % lk::kStratum == 0;
    for (int64_t d = 0; fits && d < p.ndim; ++d)
        fits = m.sizes[d] == (d == drawn ? p.sizes[d] / lk::kStratum * h.chosen : p.sizes[d]);
    STD_TORCH_CHECK(fits, "exp_avgs[", i, "] must have its parameter's shape, or the drawn part of it");
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

// Whether the four tensors can be walked together in the order of memory: elementwise work that does not ask where an element
// is.
bool walks_in_memory_order(const View& p, const View& g, const View& m, const View& v) {
    return m.same_shape(p) && m.type != ScalarType::BFloat16 && p.same_strides(g) && p.same_strides(m) && p.same_strides(v) &&
           non_overlapping_and_dense(p);
}

void spam_step_(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors steps, Tensor lr, double beta1,
                double beta2, double eps, double weight_decay, double threshold, int64_t reset_interval, int64_t warmup_steps,
                int64_t unclipped_steps, bool cycle_correction, bool freeze_zero_variance, bool maximize, int64_t density_16ths,
                bool row_mask, int64_t seed, std::vector<int64_t> indices, std::vector<int64_t> placement,
                std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
    const size_t n = params.size();
    STD_TORCH_CHECK(grads.size() == n && exp_avgs.size() == n && exp_avg_sqs.size() == n && steps.size() == n &&
                        indices.size() == n,
                    "grads, exp_avgs, exp_avg_sqs, steps and indices must have one entry for each of the params");
    STD_TORCH_CHECK(placement.empty() || placement.size() == 4 * n, "placement must be empty or hold 4 integers a parameter");
    STD_TORCH_CHECK(density_16ths >= 1 && density_16ths <= lk::kStratum, "density_16ths must be in [1, 16]");
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

    Copies copies;
    ScalarCache scalars;
    std::vector<lk::SpamTask> tasks;
    std::vector<int64_t> first_chunk{0};
    std::vector<float*> counters;
    tasks.reserve(n), first_chunk.reserve(n + 1), counters.reserve(n);
    for (size_t i = 0; i < n; ++i) {
        View p(params[i]), g(grads[i]), m(exp_avgs[i]), v(exp_avg_sqs[i]), step(steps[i]);
        check_one(i, p, g, m, v, step, call.hyper);
        const bool in_memory_order =
            !(p.contiguous && g.contiguous && m.contiguous && v.contiguous) && walks_in_memory_order(p, g, m, v);
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
