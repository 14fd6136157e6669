// The four residual-norm ops on CPU: checks, then one parallel region over the rows. No formula here.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <tuple>

#include "norm_tensors.h"

namespace {

using lk::MaybeTensor, lk::ScalarType, lk::Tensor;

struct Call : lk::NormTensors {
    Call(const Tensor& x_, const Tensor& weight, const MaybeTensor& weight2) : NormTensors(x_, weight, weight2) {
        c.past_caches = c.hidden % 16 == 0 && c.rows * c.hidden * int64_t(x.element_size()) >= int64_t(16) << 20;
    }

    // Rows to write.
    Tensor output(lk::NormRows& place, ScalarType type) {
        Tensor t = NormTensors::output(place, type);
        c.past_caches = c.past_caches && reinterpret_cast<uintptr_t>(place.data) % 64 == 0;
        return t;
    }

    // Threads take `taken` of the `count` things that a stage counts, again and again.
    void run(lk::NormStage stage, int64_t count, int64_t taken, int64_t threads) const {
        const lk::NormRun part = lk::norm_run();
        threads = std::max<int64_t>(1, std::min<int64_t>(threads, (count + taken - 1) / taken));
        const int64_t numbers = lk::norm_scratch_numbers(c.hidden), bytes = numbers * (wide == ScalarType::Double ? 8 : 4);
        const Tensor scratch = torch::stable::new_empty(x, {threads * numbers}, wide);
        char* const room = static_cast<char*>(scratch.mutable_data_ptr());
        std::atomic<int64_t> next{0}, started{0};
        torch::stable::parallel_for(0, threads, 1, [&](int64_t first, int64_t last) {
            for (int64_t i = first; i < last; ++i) {
                lk::NormScratch own{room + bytes * started.fetch_add(1), false};
                for (int64_t begin; (begin = next.fetch_add(taken)) < count;)
                    part(c, stage, own, begin, std::min(begin + taken, count));
            }
        });
    }

    // How many threads are worth their while.
    int64_t threads() const {
        constexpr int64_t kElements = 1 << 15;
        return std::min<int64_t>(torch::stable::get_num_threads(), 1 + c.rows * c.hidden / kElements);
    }

    void forward() const {
        const int64_t share = c.rows / (4 * threads()); // many rows in a row, where there are many
        run(lk::NormStage::kForward, c.rows, std::clamp<int64_t>(share, 1, 32), threads());
    }

    // The blocks of rows whose weight gradients are summed apart depend on the number of rows alone.
    void backward(const Tensor& grad_weight, const Tensor* grad_weight2) {
        constexpr int64_t kBlocks = 64, kRows = 16;
        c.block_rows = std::max(kRows, (c.rows + kBlocks * kRows - 1) / (kBlocks * kRows) * kRows);
        const int64_t blocks = (c.rows + c.block_rows - 1) / c.block_rows, numbers = blocks * c.hidden;
        const Tensor partials = torch::stable::new_empty(x, {grad_weight2 ? 2 * numbers : numbers}, ScalarType::Double);
        c.weight_partials = static_cast<double*>(partials.mutable_data_ptr());
        c.weight_partials2 = c.weight_partials + (grad_weight2 ? numbers : 0);
        c.grad_weight = static_cast<char*>(grad_weight.mutable_data_ptr());
        if (grad_weight2)
            c.grad_weight2 = static_cast<char*>(grad_weight2->mutable_data_ptr());
        run(lk::NormStage::kBackward, blocks, 1, threads());
        run(lk::NormStage::kWeightGradient, c.hidden, 1024, threads());
    }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> add_rms_norm(Tensor x, MaybeTensor update, MaybeTensor update2, Tensor weight,
                                                        MaybeTensor weight2, double eps, bool round_sum) {
    STD_TORCH_CHECK(update || !update2, "update2 must be None where update is");
    Call call(x, weight, weight2);
    call.c.eps = eps, call.c.round_sum = round_sum;
    call.c.update = call.rows(update, x.scalar_type(), "update");
    call.c.update2 = call.rows(update2, x.scalar_type(), "update2");
    Tensor normed = call.output(call.c.normed, call.normed_type);
    Tensor normed2 = weight2 ? call.output(call.c.normed2, call.normed_type) : call.absent(call.normed_type);
    Tensor stream = call.output(call.c.stream, x.scalar_type());
    Tensor rstd = call.rstd_output();
    call.forward();
    return {normed, normed2, stream, rstd};
}

std::tuple<Tensor, Tensor, Tensor> add_rms_norm_backward(Tensor grad_normed, Tensor grad_normed2, Tensor grad_stream,
                                                         Tensor stream, Tensor weight, MaybeTensor weight2, Tensor rstd) {
    Call call(stream, weight, weight2);
    call.c.grad_normed = call.rows(grad_normed, call.normed_type, "grad_normed");
    if (weight2)
        call.c.grad_normed2 = call.rows(grad_normed2, call.normed_type, "grad_normed2");
    call.c.grad_stream = call.rows(grad_stream, stream.scalar_type(), "grad_stream");
    call.rstd_input(rstd);
    Tensor grad_x = call.output(call.c.grad_x, stream.scalar_type());
    Tensor grad_weight = torch::stable::empty_like(weight);
    Tensor grad_weight2 = weight2 ? torch::stable::empty_like(*weight2) : call.absent(call.weight_type);
    call.backward(grad_weight, weight2 ? &grad_weight2 : nullptr);
    return {grad_x, grad_weight, grad_weight2};
}

std::tuple<Tensor, Tensor> rms_norm(Tensor x, Tensor weight, double eps, bool round_sum) {
    Call call(x, weight, std::nullopt);
    call.c.eps = eps, call.c.round_sum = round_sum;
    Tensor normed = call.output(call.c.normed, call.normed_type);
    Tensor rstd = call.rstd_output();
    call.forward();
    return {normed, rstd};
}

std::tuple<Tensor, Tensor> rms_norm_backward(Tensor grad_normed, Tensor x, Tensor weight, Tensor rstd) {
    Call call(x, weight, std::nullopt);
    call.c.grad_normed = call.rows(grad_normed, call.normed_type, "grad_normed");
    call.rstd_input(rstd);
    Tensor grad_x = call.output(call.c.grad_x, x.scalar_type());
    Tensor grad_weight = torch::stable::empty_like(weight);
    call.backward(grad_weight, nullptr);
    return {grad_x, grad_weight};
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(ladderkern, CPU, m) {
    m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm));
    m.impl("add_rms_norm_backward", TORCH_BOX(&add_rms_norm_backward));
    m.impl("rms_norm", TORCH_BOX(&rms_norm));
    m.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward));
}
