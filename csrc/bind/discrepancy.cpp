// The four token-discrepancy ops on CPU: checks, then one parallel region over the rows. No formula here.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <tuple>
#include <vector>

#include "../cpu/discrepancy.h"
#include "dtype.h"

namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// The keywords that all four ops share.
struct Common {
    int64_t metric;
    double offset, scale;
    int64_t image_start;
};

// One call: what all ops read, and what keeps it alive.
struct Call {
    lk::DiscrepancyCall c{};
    ScalarType row_type;
    Tensor logits, codebook; // codebook: turned so that a component of all codes lies in a row

    Call(const Tensor& logits_, const Tensor& labels, const Tensor& table, const Common& options) : logits(logits_) {
        STD_TORCH_CHECK(logits.dim() == 2, "logits must have shape [T, V], got ", logits.dim(), " dimensions");
        c.rows = logits.size(0), c.columns = logits.size(1);
        STD_TORCH_CHECK(c.columns <= 1 || logits.numel() == 0 || logits.stride(1) == 1,
                        "logits must have stride 1 along the vocabulary, got ", logits.stride(1));
        c.logits_type = lk::dtype_of(logits.scalar_type(), "logits");
        row_type = c.logits_type == lk::DType::kDouble ? ScalarType::Double : ScalarType::Float;
        c.logits = static_cast<const char*>(logits.const_data_ptr());
        c.row_stride = logits.stride(0);
        STD_TORCH_CHECK(labels.dim() == 1 && labels.size(0) == c.rows && labels.scalar_type() == ScalarType::Long,
                        "labels must be int64 of shape [", c.rows, "], one for each row of logits");
        c.labels = static_cast<const int64_t*>(labels.const_data_ptr());
        c.label_stride = labels.stride(0);
        give_table(table, options);
    }

    void give_table(const Tensor& table, const Common& options) {
        STD_TORCH_CHECK(options.metric >= 0 && options.metric <= 3, "metric must be 0, 1, 2 or 3, got ", options.metric);
        STD_TORCH_CHECK(table.dim() == 2 && table.numel() > 0 && table.is_contiguous(),
                        "table must be a contiguous matrix with rows");
        c.codes = table.size(0), c.dimension = table.size(1);
        c.image_start = options.image_start;
        STD_TORCH_CHECK(c.image_start >= 0 && c.image_start <= c.columns - c.codes, "image_start must put the ", c.codes,
                        " image columns inside the ", c.columns, " columns of logits, got ", c.image_start);
        c.metric = lk::DistanceMetric(options.metric);
        c.offset = options.offset, c.scale = options.scale;
        if (c.metric == lk::DistanceMetric::kTable) {
            STD_TORCH_CHECK(c.codes == c.dimension, "table must be square for metric 0, got [", c.codes, ", ", c.dimension,
                            "]");
            c.distances_type = lk::dtype_of(table.scalar_type(), "table");
            c.distances = static_cast<const char*>(table.const_data_ptr());
        } else {
            STD_TORCH_CHECK(table.scalar_type() == ScalarType::Float, "table must be a float32 codebook for metric ",
                            options.metric);
            codebook = torch::stable::contiguous(torch::stable::transpose(table, 0, 1));
            c.codebook = static_cast<const float*>(codebook.const_data_ptr());
        }
    }

    // One number a row to write.
    Tensor output(lk::PerRow& place) const {
        Tensor t = torch::stable::new_empty(logits, {c.rows}, row_type);
        place = {static_cast<char*>(t.mutable_data_ptr()), 1};
        return t;
    }

    // One number a row to read.
    lk::PerRow input(const Tensor& t, const char* name) const {
        STD_TORCH_CHECK(t.dim() == 1 && t.size(0) == c.rows && t.scalar_type() == row_type, name, " must be ",
                        row_type == ScalarType::Double ? "float64" : "float32", " of shape [", c.rows, "]");
        return {static_cast<char*>(const_cast<void*>(t.const_data_ptr())), t.stride(0)};
    }

    Tensor gradient() {
        c.backward = true;
        Tensor t = torch::stable::new_empty(logits, {c.rows, c.columns}, logits.scalar_type());
        c.grad = static_cast<char*>(t.mutable_data_ptr());
        return t;
    }

    // Threads take a few rows at a time, as many as make it worth their while: rows of text cost less than those of images.
    void run() const {
        constexpr int64_t kColumns = 1 << 15;
        const lk::DiscrepancyRun rows = lk::discrepancy_run();
        const int64_t taken = std::max<int64_t>(1, kColumns / (c.joint || c.backward ? c.columns : c.codes));
        const int64_t threads = std::min<int64_t>(torch::stable::get_num_threads(), (c.rows + taken - 1) / taken);
        std::atomic<int64_t> next{0};
        torch::stable::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
            std::vector<char> room(c.distances ? 0 : size_t(c.codes) * sizeof(double));
            lk::DiscrepancyScratch scratch{room.data(), -1};
            for (int64_t begin; (begin = next.fetch_add(taken)) < c.rows;)
                rows(c, scratch, begin, std::min(begin + taken, c.rows));
        });
    }
};

std::tuple<Tensor, Tensor, Tensor> token_discrepancy(Tensor logits, Tensor labels, Tensor table, int64_t metric, double offset,
                                                     double scale, int64_t image_start) {
    Call call(logits, labels, table, {metric, offset, scale, image_start});
    Tensor loss = call.output(call.c.discrepancy);
    Tensor top = call.output(call.c.image_top), total = call.output(call.c.image_total);
    call.run();
    return {loss, top, total};
}

Tensor token_discrepancy_backward(Tensor grad_output, Tensor logits, Tensor labels, Tensor table, Tensor loss, Tensor top,
                                  Tensor total, int64_t metric, double offset, double scale, int64_t image_start) {
    Call call(logits, labels, table, {metric, offset, scale, image_start});
    call.c.grad_discrepancy = call.input(grad_output, "grad_output");
    call.c.discrepancy = call.input(loss, "loss");
    call.c.image_top = call.input(top, "top");
    call.c.image_total = call.input(total, "total");
    Tensor grad = call.gradient();
    call.run();
    return grad;
}

void join(lk::DiscrepancyCall& c, int64_t ignore_index, double label_smoothing) {
    STD_TORCH_CHECK(label_smoothing >= 0 && label_smoothing <= 1, "label_smoothing must be in [0, 1], got ", label_smoothing);
    c.joint = true;
    c.ignore_index = ignore_index;
    c.label_smoothing = label_smoothing;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>
cross_entropy_discrepancy(Tensor logits, Tensor labels, Tensor table, int64_t metric, double offset, double scale,
                          int64_t image_start, int64_t ignore_index, double label_smoothing) {
    Call call(logits, labels, table, {metric, offset, scale, image_start});
    join(call.c, ignore_index, label_smoothing);
    Tensor cross_entropy = call.output(call.c.cross_entropy), discrepancy = call.output(call.c.discrepancy);
    Tensor top = call.output(call.c.top), total = call.output(call.c.total);
    Tensor image_top = call.output(call.c.image_top), image_total = call.output(call.c.image_total);
    call.run();
    return {cross_entropy, discrepancy, top, total, image_top, image_total};
}

Tensor cross_entropy_discrepancy_backward(Tensor grad_cross_entropy, Tensor grad_discrepancy, Tensor logits, Tensor labels,
                                          Tensor table, Tensor discrepancy, Tensor top, Tensor total, Tensor image_top,
                                          Tensor image_total, int64_t metric, double offset, double scale, int64_t image_start,
                                          int64_t ignore_index, double label_smoothing) {
    Call call(logits, labels, table, {metric, offset, scale, image_start});
    join(call.c, ignore_index, label_smoothing);
    call.c.grad_cross_entropy = call.input(grad_cross_entropy, "grad_cross_entropy");
    call.c.grad_discrepancy = call.input(grad_discrepancy, "grad_discrepancy");
    call.c.discrepancy = call.input(discrepancy, "discrepancy");
    call.c.top = call.input(top, "top");
    call.c.total = call.input(total, "total");
    call.c.image_top = call.input(image_top, "image_top");
    call.c.image_total = call.input(image_total, "image_total");
    Tensor grad = call.gradient();
    call.run();
    return grad;
}

} // namespace

STABLE_TORCH_LIBRARY_IMPL(ladderkern, CPU, m) {
    m.impl("token_discrepancy", TORCH_BOX(&token_discrepancy));
    m.impl("token_discrepancy_backward", TORCH_BOX(&token_discrepancy_backward));
    m.impl("cross_entropy_discrepancy", TORCH_BOX(&cross_entropy_discrepancy));
    m.impl("cross_entropy_discrepancy_backward", TORCH_BOX(&cross_entropy_discrepancy_backward));
}
