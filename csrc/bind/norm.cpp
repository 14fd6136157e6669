// The four residual-norm ops on CPU: checks, then one parallel region over the rows. No formula here.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>

#include "norm_ops.h"

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

} // namespace

STABLE_TORCH_LIBRARY_IMPL(ladderkern, CPU, m) { lk::register_norm_ops<Call>(m); }
