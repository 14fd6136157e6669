// The four residual-norm ops, the same on every device. Call: a device's NormTensors, with forward() and backward().
#pragma once

#include <tuple>

#include "norm_tensors.h"

namespace lk {

template <class Call>
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

template <class Call>
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

template <class Call> std::tuple<Tensor, Tensor> rms_norm(Tensor x, Tensor weight, double eps, bool round_sum) {
    Call call(x, weight, std::nullopt);
    call.c.eps = eps, call.c.round_sum = round_sum;
    Tensor normed = call.output(call.c.normed, call.normed_type);
    Tensor rstd = call.rstd_output();
    call.forward();
    return {normed, rstd};
}

template <class Call> std::tuple<Tensor, Tensor> rms_norm_backward(Tensor grad_normed, Tensor x, Tensor weight, Tensor rstd) {
    Call call(x, weight, std::nullopt);
    call.c.grad_normed = call.rows(grad_normed, call.normed_type, "grad_normed");
    call.rstd_input(rstd);
    Tensor grad_x = call.output(call.c.grad_x, x.scalar_type());
    Tensor grad_weight = torch::stable::empty_like(weight);
    call.backward(grad_weight, nullptr);
    return {grad_x, grad_weight};
}

template <class Call, class Library> void register_norm_ops(Library& m) {
    m.impl("add_rms_norm", TORCH_BOX(&add_rms_norm<Call>));
    m.impl("add_rms_norm_backward", TORCH_BOX(&add_rms_norm_backward<Call>));
    m.impl("rms_norm", TORCH_BOX(&rms_norm<Call>));
    m.impl("rms_norm_backward", TORCH_BOX(&rms_norm_backward<Call>));
}

} // namespace lk
