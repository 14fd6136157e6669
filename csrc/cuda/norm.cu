// The residual-norm ops on CUDA: checks, then one launch forward, two backward.
#include <torch/csrc/stable/library.h>

#include "../bind/norm_ops.h"
#include "launch.h"
#include "library.h"
#include "norm_plan.h"

namespace {

using lk::NormTensors, lk::Tensor;

lk::NormMatrix matrix(const lk::NormRows& rows) { return {rows.data, rows.stride}; }
lk::NormVector vector(const char* data, lk::DType type) { return {const_cast<char*>(data), type}; }

// The kernel's arguments but those that the caller has filled in.
void forward(const NormTensors& t) {
    if (t.c.rows == 0)
        return;
    lk::NormForward a{};
    a.x = matrix(t.c.x), a.update = matrix(t.c.update), a.update2 = matrix(t.c.update2);
    a.normed = matrix(t.c.normed), a.normed2 = matrix(t.c.normed2), a.stream = matrix(t.c.stream);
    a.weight = vector(t.c.weight, t.c.weight_type), a.weight2 = vector(t.c.weight2, t.c.weight_type);
    a.rstd = t.c.rstd, a.hidden = t.c.hidden, a.eps = t.c.eps, a.round_sum = t.c.round_sum;
    const lk::OnDevice on(t.x.get_device_index());
    lk::with_norm_types(t.c.type, t.normed_type != t.x.scalar_type(), [&](auto x, auto o) {
        using X = decltype(x);
        a.aligned = lk::norm_aligned<X>(a);
        const int threads = lk::norm_threads(a.hidden, lk::kForwardThreads<X>);
        lk::norm_forward<X, decltype(o)><<<unsigned(t.c.rows), threads, 0, on.stream>>>(a);
        lk::check_launch("add_rms_norm");
    });
}

template <class X, class O> void backward_as(const NormTensors& t, lk::NormBackward a, lk::NormSum sum, cudaStream_t stream) {
    const int threads = lk::norm_threads(a.hidden, lk::kBackwardThreads);
    a.block_rows = lk::norm_block_rows(a.rows, a.hidden, lk::norm_columns_in_registers<lk::Wide<X>>(threads));
    sum.blocks = (a.rows + a.block_rows - 1) / a.block_rows;
    const int weights = a.weight2.data ? 2 : 1;
    const Tensor partials = torch::stable::new_empty(t.x, {weights, sum.blocks, a.hidden}, t.wide);
    a.partials = partials.mutable_data_ptr();
    a.partials2 = static_cast<lk::Wide<X>*>(a.partials) + sum.blocks * a.hidden * (weights - 1);
    a.aligned = lk::norm_aligned<X>(a);
    lk::norm_backward<X, O><<<unsigned(sum.blocks), threads, 0, stream>>>(a);
    lk::check_launch("add_rms_norm_backward");
    sum.partials[0] = a.partials, sum.partials[1] = a.partials2;
    const dim3 grid(unsigned((a.hidden + lk::kSumColumns - 1) / lk::kSumColumns), unsigned(weights));
    lk::norm_sum<lk::Wide<X>><<<grid, lk::kSumThreads, 0, stream>>>(sum);
    lk::check_launch("add_rms_norm_backward");
}

void backward(const NormTensors& t, Tensor& grad_weight, Tensor* grad_weight2) {
    if (t.c.rows == 0) {
        torch::stable::zero_(grad_weight);
        if (grad_weight2)
            torch::stable::zero_(*grad_weight2);
        return;
    }
    lk::NormBackward a{};
    a.grad_normed = matrix(t.c.grad_normed), a.grad_normed2 = matrix(t.c.grad_normed2);
    a.grad_stream = matrix(t.c.grad_stream), a.stream = matrix(t.c.x), a.grad_x = matrix(t.c.grad_x);
    a.weight = vector(t.c.weight, t.c.weight_type), a.weight2 = vector(t.c.weight2, t.c.weight_type);
    a.rstd = t.c.rstd, a.rows = t.c.rows, a.hidden = t.c.hidden;
    lk::NormSum sum{};
    sum.hidden = a.hidden;
    sum.grad_weight[0] = vector(static_cast<const char*>(grad_weight.const_data_ptr()), t.c.weight_type);
    if (grad_weight2)
        sum.grad_weight[1] = vector(static_cast<const char*>(grad_weight2->const_data_ptr()), t.c.weight_type);
    const lk::OnDevice on(t.x.get_device_index());
    lk::with_norm_types(t.c.type, t.normed_type != t.x.scalar_type(),
                        [&](auto x, auto o) { backward_as<decltype(x), decltype(o)>(t, a, sum, on.stream); });
}

struct Call : NormTensors {
    using NormTensors::NormTensors;
    void forward() const { ::forward(*this); }
    void backward(Tensor& grad_weight, Tensor* grad_weight2) const { ::backward(*this, grad_weight, grad_weight2); }
};

} // namespace

STABLE_TORCH_LIBRARY_IMPL(ladderkern, CUDA, m) {
    if (lk::driver_serves())
        lk::register_norm_ops<Call>(m);
}
