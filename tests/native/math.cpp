// The scalar formulas of csrc/math, callable from Python: tests/spam/test_math.py, tests/discrepancy/test_native_exp.py and
// tests/prm/test_native_log.py hold them against reference.py, torch and NumPy.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "math/exp.h"
#include "math/log.h"
#include "math/numbers.h"
#include "math/philox.h"
#include "math/prm.h"
#include "math/spam.h"

namespace py = pybind11;

namespace {

template <class T> T warmup_of(int64_t n, int64_t reset_interval, int64_t warmup_steps) {
    return lk::warmup<T>(lk::spam_phase(n, reset_interval), warmup_steps);
}

template <class Number> float widen_bits(uint16_t bits) { return lk::widen(Number{bits}); }

template <class Number> uint16_t narrow_bits(float x) {
    Number out;
    lk::narrow(x, out);
    return out.bits;
}

py::tuple philox(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint64_t seed, uint32_t stream) {
    uint32_t c[4] = {c0, c1, c2, c3};
    lk::philox(c, seed, stream);
    return py::make_tuple(c[0], c[1], c[2], c[3]);
}

} // namespace

PYBIND11_MODULE(ladderkern_math_test, m) {
    m.def("expm1_float", py::vectorize(lk::expm1_negative<float>));
    m.def("expm1_double", py::vectorize(lk::expm1_negative<double>));
    m.def("sine_float", py::vectorize(lk::sine<float>));
    m.def("sine_double", py::vectorize(lk::sine<double>));
    m.def("warmup_float", py::vectorize(warmup_of<float>));
    m.def("warmup_double", py::vectorize(warmup_of<double>));
    m.def("widen_bfloat16", py::vectorize(widen_bits<lk::bf16>));
    m.def("widen_float16", py::vectorize(widen_bits<lk::f16>));
    m.def("narrow_bfloat16", py::vectorize(narrow_bits<lk::bf16>));
    m.def("narrow_float16", py::vectorize(narrow_bits<lk::f16>));
    m.def("round_stochastically",
          py::vectorize([](float x, uint32_t noise) { return lk::round_stochastically(x, noise).bits; }));
    m.def("philox", &philox);
    m.def("exp_float", py::vectorize(lk::exp_bounded<float>));
    m.def("exp_double", py::vectorize(lk::exp_bounded<double>));
    m.def("log1p_float", py::vectorize(lk::log1p_unit<float>));
    m.def("log1p_double", py::vectorize(lk::log1p_unit<double>));
    m.def("log_float", py::vectorize(lk::log_finite<float>));
    m.def("log_double", py::vectorize(lk::log_finite<double>));
    m.def("prob_float", py::vectorize([](float z) { return lk::score_of_margin(z).prob; }));
    m.def("prob_double", py::vectorize([](double z) { return lk::score_of_margin(z).prob; }));
    m.def("log_prob_float", py::vectorize([](float z) { return lk::score_of_margin(z).log_prob; }));
    m.def("log_prob_double", py::vectorize([](double z) { return lk::score_of_margin(z).log_prob; }));
    m.def("wrong_prob_float", py::vectorize(lk::wrong_prob<float>));
    m.def("wrong_prob_double", py::vectorize(lk::wrong_prob<double>));
}
