// The kernels of the residual norms, launched as csrc/cuda/norm.cu launches them.
#include "cuda/norm_plan.h"
#include "module.h"

namespace {

namespace py = pybind11;
using emulation::Bytes;
using emulation::Memory;
using Rows = std::optional<std::pair<Bytes, int64_t>>; // memory, and the distance between rows
using Weight = std::optional<Bytes>;

lk::NormMatrix matrix(Memory& memory, const Rows& rows, const char* name) {
    return rows ? lk::NormMatrix{memory.of<char>(rows->first, name), rows->second} : lk::NormMatrix{};
}

// Rows: x, update, update2, normed, normed2, stream. threads: of a block; 0: as the launcher takes them.
void norm_forward(int type, int weight_type, bool wide_normed, int64_t rows, int64_t hidden, double eps, bool round_sum,
                  const std::array<Rows, 6>& given, const std::array<Weight, 2>& weights, const Bytes& rstd, int threads) {
    Memory memory;
    lk::NormForward a{};
    a.x = matrix(memory, given[0], "x"), a.update = matrix(memory, given[1], "update");
    a.update2 = matrix(memory, given[2], "update2"), a.normed = matrix(memory, given[3], "normed");
    a.normed2 = matrix(memory, given[4], "normed2"), a.stream = matrix(memory, given[5], "stream");
    a.weight = {memory.of<char>(weights[0], "weight"), lk::DType(weight_type)};
    a.weight2 = {memory.of<char>(weights[1], "weight2"), lk::DType(weight_type)};
    a.rstd = memory.of<void>(rstd, "rstd");
    a.hidden = hidden, a.eps = eps, a.round_sum = round_sum;
    lk::with_norm_types(lk::DType(type), wide_normed, [&](auto x, auto o) {
        using X = decltype(x);
        a.aligned = lk::norm_aligned<X>(a);
        emulation::launch("norm_forward", rows, threads ? threads : lk::norm_threads(hidden, lk::kForwardThreads<X>),
                          [&] { lk::norm_forward<X, decltype(o)>(a); });
    });
    memory.write_back();
}

// Rows: grad_normed, grad_normed2, grad_stream, stream, grad_x. block_rows: of a block of threads; 0: as the launcher takes
// them.
void norm_backward(int type, int weight_type, bool wide_normed, int64_t rows, int64_t hidden, const std::array<Rows, 5>& given,
                   const std::array<Weight, 2>& weights, const std::array<Weight, 2>& grad_weights, const Bytes& rstd,
                   int threads, int64_t block_rows) {
    Memory memory;
    lk::NormBackward a{};
    a.grad_normed = matrix(memory, given[0], "grad_normed"), a.grad_normed2 = matrix(memory, given[1], "grad_normed2");
    a.grad_stream = matrix(memory, given[2], "grad_stream"), a.stream = matrix(memory, given[3], "stream");
    a.grad_x = matrix(memory, given[4], "grad_x");
    a.weight = {memory.of<char>(weights[0], "weight"), lk::DType(weight_type)};
    a.weight2 = {memory.of<char>(weights[1], "weight2"), lk::DType(weight_type)};
    a.rstd = memory.of<void>(rstd, "rstd");
    a.rows = rows, a.hidden = hidden;
    lk::NormSum sum{};
    sum.hidden = hidden;
    sum.grad_weight[0] = {memory.of<char>(grad_weights[0], "grad_weight"), lk::DType(weight_type)};
    sum.grad_weight[1] = {memory.of<char>(grad_weights[1], "grad_weight2"), lk::DType(weight_type)};
    lk::with_norm_types(lk::DType(type), wide_normed, [&](auto x, auto o) {
        using X = decltype(x);
        using S = lk::Wide<X>;
        const int of_block = threads ? threads : lk::norm_threads(hidden, lk::kBackwardThreads);
        a.block_rows = block_rows ? block_rows : lk::norm_block_rows(rows, hidden, lk::norm_columns_in_registers<S>(of_block));
        sum.blocks = (rows + a.block_rows - 1) / a.block_rows;
        const Bytes partials(sum.blocks * hidden * int64_t(sizeof(S))), partials2(partials.size());
        a.partials = memory.of<void>(partials, "partials"), a.partials2 = memory.of<void>(partials2, "partials2");
        a.aligned = lk::norm_aligned<X>(a);
        emulation::launch("norm_backward", sum.blocks, of_block, [&] { lk::norm_backward<X, decltype(o)>(a); });
        sum.partials[0] = a.partials, sum.partials[1] = a.partials2;
        emulation::launch("norm_sum", {(hidden + lk::kSumColumns - 1) / lk::kSumColumns, weights[1] ? 2 : 1}, lk::kSumThreads,
                          [&] { lk::norm_sum<S>(sum); });
    });
    memory.write_back();
}

} // namespace

void bind_norm(py::module_& m) {
    m.def("norm_forward", &norm_forward);
    m.def("norm_backward", &norm_backward);
}
