// The kernel of the step scores, launched as csrc/cuda/prm.cu launches it.
#include "cuda/prm.cuh"
#include "module.h"

namespace {

namespace py = pybind11;
using emulation::Bytes;
using emulation::Memory;

// shape: rows, classes, responses; strides: of scores. whole_blocks: a block a response; -1: as the launcher decides.
void prm_forward(int type, const Bytes& scores, const std::array<int64_t, 3>& shape, const std::array<int64_t, 2>& strides,
                 const Bytes& offsets, const std::optional<Bytes>& mask, const std::optional<Bytes>& weights, int64_t positive,
                 double threshold, bool strict, bool probabilities, const std::array<Bytes, 4>& outputs, int whole_blocks) {
    Memory memory;
    lk::PrmForward a{};
    a.scores = memory.of<const char>(scores, "scores"), a.scores_type = lk::DType(type);
    a.rows = shape[0], a.classes = shape[1], a.responses = shape[2];
    a.row_stride = strides[0], a.class_stride = strides[1];
    a.offsets = memory.of<const int64_t>(offsets, "offsets"), a.mask = memory.of<const bool>(mask, "mask");
    a.weights = memory.of<const char>(weights, "class_weights");
    a.positive = positive, a.threshold = threshold, a.strict = strict, a.probabilities = probabilities;
    a.steps = memory.of<char>(outputs[0], "steps"), a.aggregates = memory.of<char>(outputs[1], "responses");
    a.indices = memory.of<int64_t>(outputs[2], "indices"), a.min_is_last = memory.of<bool>(outputs[3], "min_is_last");
    int64_t blocks = lk::prm_plan(a);
    if (whole_blocks >= 0) {
        a.whole_blocks = whole_blocks;
        const int64_t of_a_block = whole_blocks ? 1 : lk::kPrmWarps;
        blocks = std::max<int64_t>(1, (a.responses + of_a_block - 1) / of_a_block);
    }
    const char* const name = a.whole_blocks ? "prm_forward, a block a response" : "prm_forward, a warp a response";
    if (a.scores_type == lk::DType::kDouble)
        emulation::launch(name, blocks, lk::kPrmThreads, [&] { lk::prm_forward<double>(a); });
    else
        emulation::launch(name, blocks, lk::kPrmThreads, [&] { lk::prm_forward<float>(a); });
    memory.write_back();
}

} // namespace

void bind_prm(py::module_& m) { m.def("prm_forward", &prm_forward); }
