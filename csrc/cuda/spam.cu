// spam_step_ on CUDA: checks, then one launch for each device, arithmetic and kind of mask, and one that counts the steps.
#include <torch/csrc/stable/library.h>

#include <map>
#include <optional>
#include <tuple>

#include "../bind/dtype.h"
#include "../bind/spam_tensors.h"
#include "launch.h"
#include "library.h"
#include "spam_plan.h"

namespace {

using lk::ScalarType, lk::Tensor, lk::Tensors, lk::View;
using MaybeTensor = std::optional<Tensor>;

// Numbers that the host holds are passed; those on a device are read there, when the kernel runs.
struct Numbers {
    double lr = 0;
    MaybeTensor device_lr, grad_scale, found_inf;
};

lk::SpamNumber number_on(int32_t device, MaybeTensor& t, const char* name) {
    if (!t)
        return {nullptr, false};
    const bool is_double = t->scalar_type() == ScalarType::Double;
    STD_TORCH_CHECK(t->numel() == 1 && (is_double || t->scalar_type() == ScalarType::Float), name,
                    " must hold one number, float32 or float64");
    const torch::stable::Device wanted(torch::headeronly::DeviceType::CUDA, device);
    if (t->device() != wanted)
        t = torch::stable::to(*t, wanted);
    return {t->const_data_ptr(), is_double};
}

double host_number(const Tensor& t, const char* name) {
    STD_TORCH_CHECK(t.numel() == 1, name, " must hold one number");
    if (t.scalar_type() == ScalarType::Double)
        return *static_cast<const double*>(t.const_data_ptr());
    STD_TORCH_CHECK(t.scalar_type() == ScalarType::Float, name, " must be float32 or float64");
    return *static_cast<const float*>(t.const_data_ptr());
}

template <class T, lk::SpamMask Mask> void launch(const lk::SpamArguments<T>& arguments, uint32_t blocks, cudaStream_t stream) {
    lk::spam_step<T, Mask><<<blocks, lk::kSpamThreads, 0, stream>>>(arguments);
    lk::check_launch("spam_step_");
}

template <class T>
void launch_all(const lk::SpamHyper& h, const lk::SpamNumber (&numbers)[3], lk::SpamMask mask,
                const std::vector<lk::SpamTensor>& tensors, cudaStream_t stream) {
    const lk::SpamRules<T> rules = lk::spam_rules<T>(h, numbers[0], numbers[1], numbers[2]);
    lk::spam_launches(rules, mask, tensors, [&](const lk::SpamArguments<T>& arguments, uint32_t blocks) {
        if (mask == lk::SpamMask::kDense)
            launch<T, lk::SpamMask::kDense>(arguments, blocks, stream);
        else if (mask == lk::SpamMask::kElement)
            launch<T, lk::SpamMask::kElement>(arguments, blocks, stream);
        else
            launch<T, lk::SpamMask::kRow>(arguments, blocks, stream);
    });
}

// All work of one device.
struct Work {
    std::map<std::tuple<bool, lk::SpamMask>, std::vector<lk::SpamTensor>> tensors; // by arithmetic (float64) and mask
    std::vector<float*> steps;
};

void run(int32_t device, const Work& work, const lk::SpamHyper& h, Numbers numbers) {
    const lk::OnDevice on(device);
    const lk::SpamNumber read[3] = {number_on(device, numbers.device_lr, "lr"),
                                    number_on(device, numbers.grad_scale, "grad_scale"),
                                    number_on(device, numbers.found_inf, "found_inf")};
    for (const auto& [kind, tensors] : work.tensors) {
        if (std::get<0>(kind))
            launch_all<double>(h, read, std::get<1>(kind), tensors, on.stream);
        else
            launch_all<float>(h, read, std::get<1>(kind), tensors, on.stream);
    }
    lk::spam_advances(work.steps, read[2], [&](const lk::SpamSteps& arguments, uint32_t blocks) {
        lk::spam_advance<<<blocks, lk::kSpamThreads, 0, on.stream>>>(arguments);
        lk::check_launch("spam_step_");
    });
}

// What the kernels walk: the tensors themselves, or contiguous stand-ins.
struct StandIns {
    lk::Copies copies;
    Tensors read_only; // kept until the launch
    void of(const Tensor& t, View& view, bool written) {
        if (view.contiguous)
            return;
        const Tensor fresh = written ? copies.of(t) : read_only.emplace_back(torch::stable::contiguous(t));
        view = View(fresh);
    }
};

lk::SpamTensor tensor_of(size_t i, const View& p, const View& g, const View& m, const View& v, const View& step) {
    lk::SpamTensor t{};
    t.p = p.data, t.g = g.data, t.m = m.data, t.v = v.data;
    t.step = reinterpret_cast<const float*>(step.data);
    t.numel = p.numel;
    t.row_length = p.ndim && p.sizes[0] ? p.numel / p.sizes[0] : p.numel;
    t.p_type = uint8_t(lk::dtype_of(p.type, "params[", i, "]")), t.g_type = uint8_t(lk::dtype_of(g.type, "grads[", i, "]"));
    t.m_type = uint8_t(lk::dtype_of(m.type, "exp_avgs[", i, "]"));
    return t;
}

void spam_step_(Tensors params, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors steps, Tensor lr, double beta1,
                double beta2, double eps, double weight_decay, double threshold, int64_t reset_interval, int64_t warmup_steps,
                int64_t unclipped_steps, bool cycle_correction, bool freeze_zero_variance, bool maximize, int64_t density_16ths,
                bool row_mask, int64_t seed, std::vector<int64_t> indices, std::vector<int64_t> placement,
                std::optional<Tensor> grad_scale, std::optional<Tensor> found_inf) {
    const size_t n = params.size();
    lk::check_lists(params, grads, exp_avgs, exp_avg_sqs, steps, indices, placement, density_16ths);
    Numbers numbers{0, std::nullopt, grad_scale, found_inf};
    if (lr.is_cpu())
        numbers.lr = host_number(lr, "lr");
    else
        numbers.device_lr = lr;
    const lk::SpamHyper h{numbers.lr,
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
    std::map<int32_t, Work> work;
    StandIns stand_ins;
    for (size_t i = 0; i < n; ++i) {
        const int32_t device = params[i].get_device_index();
        for (const Tensor* t : {&params[i], &grads[i], &exp_avgs[i], &exp_avg_sqs[i], &steps[i]})
            STD_TORCH_CHECK(t->is_cuda() && t->get_device_index() == device, "all tensors of parameter ", i,
                            " must be on one CUDA device");
        View p(params[i]), g(grads[i]), m(exp_avgs[i]), v(exp_avg_sqs[i]), step(steps[i]);
        lk::check_one(i, p, g, m, v, step, h, grad_scale.has_value());
        work[device].steps.push_back(reinterpret_cast<float*>(step.data));
        if (!lk::walks_in_memory_order(p, g, m, v)) {
            stand_ins.of(params[i], p, true);
            stand_ins.of(grads[i], g, grad_scale.has_value());
            stand_ins.of(exp_avgs[i], m, true);
            stand_ins.of(exp_avg_sqs[i], v, true);
        }
        lk::SpamTensor tensor = tensor_of(i, p, g, m, v, step);
        const bool placed = !placement.empty();
        tensor.local_block = std::max<int64_t>(placed ? placement[4 * i] : p.numel, 1);
        tensor.global_block = placed ? placement[4 * i + 1] : p.numel;
        tensor.offset = placed ? placement[4 * i + 2] : 0;
        tensor.row_offset = placed ? placement[4 * i + 3] : 0;
        tensor.index = uint32_t(indices[i]);
        const lk::SpamMask mask = m.same_shape(p) ? lk::SpamMask::kDense
                                  : row_mask      ? lk::SpamMask::kRow
                                                  : lk::SpamMask::kElement;
        work[device].tensors[{p.type == ScalarType::Double, mask}].push_back(tensor);
    }
    for (const auto& [device, of_device] : work)
        run(device, of_device, h, numbers);
    stand_ins.copies.write_back();
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(ladderkern, CUDA, m) {
    if (lk::driver_serves())
        m.impl("spam_step_", TORCH_BOX(&spam_step_));
}
