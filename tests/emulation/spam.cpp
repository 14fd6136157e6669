// The kernels of the SPAM step, launched as csrc/cuda/spam.cu launches them.
#include "cuda/spam_plan.h"
#include "module.h"

namespace {

using emulation::Bytes;
using emulation::Memory;
namespace py = pybind11;
using Number = std::optional<Bytes>; // 4 or 8 bytes of float32 or float64

lk::SpamNumber number_in(Memory& memory, const Number& bytes, const char* name) {
    return {memory.of<void>(bytes, name), bytes && bytes->size() == sizeof(double)};
}

// p, g, m, v, step; their dtypes (of p, g, moments); numel, row_length; placement; index
using Tensor =
    std::tuple<Bytes, Bytes, Bytes, Bytes, Bytes, std::array<int, 3>, std::array<int64_t, 2>, std::array<int64_t, 4>, uint32_t>;

lk::SpamTensor tensor_of(Memory& memory, const Tensor& t, const std::string& at) {
    const auto& [p, g, m, v, step, types, sizes, place, index] = t;
    lk::SpamTensor tensor{};
    tensor.p = memory.of<char>(p, "params" + at), tensor.g = memory.of<char>(g, "grads" + at);
    tensor.m = memory.of<char>(m, "exp_avgs" + at), tensor.v = memory.of<char>(v, "exp_avg_sqs" + at);
    tensor.step = memory.of<float>(step, "steps" + at);
    tensor.p_type = uint8_t(types[0]), tensor.g_type = uint8_t(types[1]), tensor.m_type = uint8_t(types[2]);
    tensor.numel = sizes[0], tensor.row_length = sizes[1];
    tensor.local_block = place[0], tensor.global_block = place[1], tensor.offset = place[2], tensor.row_offset = place[3];
    tensor.index = index;
    return tensor;
}

template <class T>
void step(lk::SpamMask mask, const lk::SpamRules<T>& rules, const std::vector<lk::SpamTensor>& tensors, int64_t& launches) {
    lk::spam_launches(rules, mask, tensors, [&](const lk::SpamArguments<T>& arguments, uint32_t blocks) {
        ++launches;
        switch (mask) {
        case lk::SpamMask::kDense:
            return emulation::launch("spam_step, dense", blocks, lk::kSpamThreads,
                                     [&] { lk::spam_step<T, lk::SpamMask::kDense>(arguments); });
        case lk::SpamMask::kElement:
            return emulation::launch("spam_step, element mask", blocks, lk::kSpamThreads,
                                     [&] { lk::spam_step<T, lk::SpamMask::kElement>(arguments); });
        case lk::SpamMask::kRow:
            return emulation::launch("spam_step, row mask", blocks, lk::kSpamThreads,
                                     [&] { lk::spam_step<T, lk::SpamMask::kRow>(arguments); });
        }
    });
}

// Tensors of one kind of mask and of one arithmetic; then, for each of `counters`, step += 1. Returns the number of launches.
int64_t spam_step(int mask, bool wide, const std::vector<Tensor>& tensors, const std::vector<Bytes>& counters, double lr,
                  const Number& device_lr, const Number& grad_scale, const Number& found_inf, const py::dict& hyper) {
    const auto number = [&](const char* name) { return hyper[name].cast<double>(); };
    const auto integer = [&](const char* name) { return hyper[name].cast<int64_t>(); };
    const auto flag = [&](const char* name) { return hyper[name].cast<bool>(); };
    const lk::SpamHyper h{lr,
                          number("beta1"),
                          number("beta2"),
                          number("eps"),
                          number("weight_decay"),
                          number("threshold"),
                          integer("reset_interval"),
                          integer("warmup_steps"),
                          integer("unclipped_steps"),
                          flag("cycle_correction"),
                          flag("freeze_zero_variance"),
                          flag("maximize"),
                          flag("row_mask"),
                          int(integer("density_16ths")),
                          uint64_t(integer("seed"))};
    Memory memory;
    std::vector<lk::SpamTensor> all;
    for (size_t i = 0; i < tensors.size(); ++i)
        all.push_back(tensor_of(memory, tensors[i], "[" + std::to_string(i) + "]"));
    const lk::SpamNumber read[] = {number_in(memory, device_lr, "lr"), number_in(memory, grad_scale, "grad_scale"),
                                   number_in(memory, found_inf, "found_inf")};
    int64_t launches = 0;
    if (wide)
        step(lk::SpamMask(mask), lk::spam_rules<double>(h, read[0], read[1], read[2]), all, launches);
    else
        step(lk::SpamMask(mask), lk::spam_rules<float>(h, read[0], read[1], read[2]), all, launches);
    std::vector<float*> steps;
    for (const Bytes& counter : counters)
        steps.push_back(memory.of<float>(counter, "steps"));
    lk::spam_advances(steps, read[2], [&](const lk::SpamSteps& arguments, uint32_t blocks) {
        ++launches;
        emulation::launch("spam_advance", blocks, lk::kSpamThreads, [&] { lk::spam_advance(arguments); });
    });
    memory.write_back();
    return launches;
}

} // namespace

void bind_spam(py::module_& m) { m.def("spam_step", &spam_step); }
