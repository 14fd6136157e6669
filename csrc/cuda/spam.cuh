// The SPAM step of many tensors in one launch. Their addresses travel in the kernel's arguments: nothing is uploaded, and a
// captured graph replays without its host. What the kernel reads on the device: the steps' numbers, grad_scale, found_inf, and
// lr where a tensor of the device holds it.
#pragma once

#include <cmath>
#include <cstdint>

#include "../math/philox.h"
#include "../math/spam.h"
#include "device.h"

namespace lk {

enum class SpamMask { kDense, kElement, kRow };

constexpr int kSpamThreads = 256, kSpamVector = 8;                 // elements of a thread: 16 bytes or more of each tensor
constexpr int64_t kSpamTile = kSpamThreads * int64_t(kSpamVector); // elements of a block
constexpr int kSpamTensors = 320;                                  // arguments may have 32764 bytes
constexpr int kSpamSteps = 1024;

struct SpamTensor {
    char *p, *g, *m, *v;
    const float* step;
    int64_t numel, row_length;                 // row_length: elements of one index of the first dimension
    int64_t local_block, global_block, offset; // reference.global_position
    int64_t row_offset;
    uint32_t index;
    uint8_t p_type, g_type, m_type; // DType
    bool aligned;                   // eight elements from any multiple of eight lie in whole 16 bytes, and in one row
};

// A number on the device; no data: not given.
struct SpamNumber {
    const void* data;
    bool is_double;
};
template <class T> LK_FN T number(const SpamNumber& n) {
    return n.is_double ? T(*static_cast<const double*>(n.data)) : T(*static_cast<const float*>(n.data));
}

// What all tensors of a call share.
template <class T> struct SpamRules {
    SpamRates<T> rates;
    SpamNumber lr, grad_scale, found_inf;
    int64_t reset_interval, unclipped_steps;
    uint64_t seed;
    uint32_t draws;
    int chosen; // 16 * density
    bool freeze_zero_variance;
};

template <class T> struct SpamArguments {
    SpamRules<T> rules;
    int n_tensors;
    uint32_t first_block[kSpamTensors];
    SpamTensor tensors[kSpamTensors];
};
static_assert(sizeof(SpamArguments<double>) <= 32764);

struct SpamSteps {
    SpamNumber found_inf;
    int n;
    float* steps[kSpamSteps];
};

// What all elements of a tensor share in a step.
template <class T> struct SpamStep {
    SpamScalars<T> scalars;
    SpamPhase phase;
    bool restart;
    SpamClip clip;
};

template <class T> LK_FN SpamStep<T> spam_step_of(const SpamRules<T>& rules, float step) {
    SpamStep<T> s;
    s.phase = spam_phase(int64_t(step) + 1, rules.reset_interval);
    SpamRates<T> rates = rules.rates;
    if (rules.lr.data) {
        rates.lr = number<T>(rules.lr);
        rates.decay = std::fma(-rates.lr, rates.weight_decay, T(1));
    }
    s.scalars = spam_scalars(rates, s.phase);
    s.restart = s.phase.k == 0 && s.phase.cycle > 0;
    const bool clips = rates.threshold > T(0) && s.phase.k >= rules.unclipped_steps;
    s.clip = !clips ? SpamClip::kNone : rules.freeze_zero_variance ? SpamClip::kFreeze : SpamClip::kPass;
    return s;
}

// Random words by position in the whole parameter; a Philox block of four serves positions that follow one another.
struct SpamWords {
    uint64_t seed;
    uint32_t stream, last, index, words[4];
    uint64_t block = ~uint64_t(0);
    LK_MEMBER uint32_t at(uint64_t position) {
        if (position >> 2 != block) {
            block = position >> 2;
            words[0] = uint32_t(block), words[1] = uint32_t(block >> 32), words[2] = last, words[3] = index;
            philox(words, seed, stream);
        }
        const uint32_t low = position & 1 ? words[1] : words[0], high = position & 1 ? words[3] : words[2];
        return position & 2 ? high : low;
    }
};

template <class T, SpamMask Mask> struct SpamThread {
    const SpamRules<T>& rules;
    const SpamTensor& tensor;
    const SpamStep<T>& step;

    LK_MEMBER uint64_t position(int64_t element) const {
        return uint64_t(element / tensor.local_block * tensor.global_block + tensor.offset + element % tensor.local_block);
    }
    LK_MEMBER uint32_t drawn_of(uint64_t stratum) const {
        SpamWords words{rules.seed, kMaskStream, uint32_t(step.phase.cycle), tensor.index, {}};
        return stratum_bits(uint32_t(uint64_t(words.at(stratum)) * rules.draws >> 32), rules.chosen, rules.draws);
    }

    // Which of N elements from start are drawn, as bits; moment: where the moments of the first drawn one are.
    template <int N> LK_MEMBER uint32_t drawn(int64_t start, int64_t& moment) const {
        constexpr uint32_t kAll = (1u << N) - 1;
        if constexpr (Mask == SpamMask::kDense) {
            moment = start;
            return kAll;
        } else if constexpr (Mask == SpamMask::kElement) {
            const int inside = int(start % kStratum);
            const uint32_t bits = drawn_of(position(start - inside) / kStratum);
            moment = start / kStratum * rules.chosen + bits_set(bits & ((1u << inside) - 1));
            return bits >> inside & kAll;
        } else {
            const int64_t row = start / tensor.row_length, stratum = row / kStratum;
            const int inside = int(row % kStratum);
            const uint32_t bits = drawn_of(uint64_t(tensor.row_offset / kStratum + stratum));
            const int64_t slot = stratum * rules.chosen + bits_set(bits & ((1u << inside) - 1));
            moment = slot * tensor.row_length + start % tensor.row_length;
            return bits >> inside & 1u ? kAll : 0;
        }
    }

    // Moments of the drawn elements lie in a row, so that only those of an element mask are read one by one.
    template <int N> LK_MEMBER void load_moments(const char* data, int64_t moment, uint32_t drawn, T* out) const {
        for (int j = 0; j < N; ++j)
            out[j] = T(0);
        if (step.restart || !drawn)
            return;
        if constexpr (Mask != SpamMask::kElement) {
            load_numbers<N>(data, DType(tensor.m_type), moment, out);
        } else {
            for (int j = 0; j < N; ++j)
                if (drawn >> j & 1u)
                    load_numbers<1>(data, DType(tensor.m_type), moment++, out + j);
        }
    }
    template <int N, class E>
    LK_MEMBER void store_elements_of(const E* numbers, char* data, int64_t moment, uint32_t drawn) const {
        if constexpr (Mask != SpamMask::kElement) {
            store_elements<N>(numbers, reinterpret_cast<E*>(data), moment);
        } else {
            for (int j = 0; j < N; ++j)
                if (drawn >> j & 1u)
                    reinterpret_cast<E*>(data)[moment++] = numbers[j];
        }
    }
    template <int N> LK_MEMBER void store_moments(const T* m, const T* v, int64_t start, int64_t moment, uint32_t drawn) const {
        if (!drawn)
            return;
        if (DType(tensor.m_type) == DType::kBFloat16) {
            SpamWords words{rules.seed, kRoundingStream, uint32_t(step.phase.n), tensor.index, {}};
            bf16 rounded_m[N], rounded_v[N];
            for (int j = 0; j < N; ++j) {
                const uint32_t noise = words.at(position(start + j));
                rounded_m[j] = round_stochastically(float(m[j]), noise & 0xffffu);
                rounded_v[j] = round_stochastically(float(v[j]), noise >> 16);
            }
            store_elements_of<N>(rounded_m, tensor.m, moment, drawn);
            store_elements_of<N>(rounded_v, tensor.v, moment, drawn);
        } else if (DType(tensor.m_type) == DType::kFloat) {
            float narrow_m[N], narrow_v[N];
            for (int j = 0; j < N; ++j)
                narrow_m[j] = float(m[j]), narrow_v[j] = float(v[j]);
            store_elements_of<N>(narrow_m, tensor.m, moment, drawn);
            store_elements_of<N>(narrow_v, tensor.v, moment, drawn);
        } else {
            double wide_m[N], wide_v[N];
            for (int j = 0; j < N; ++j)
                wide_m[j] = m[j], wide_v[j] = v[j];
            store_elements_of<N>(wide_m, tensor.m, moment, drawn);
            store_elements_of<N>(wide_v, tensor.v, moment, drawn);
        }
    }

    template <SpamClip Clip, int N> LK_MEMBER void update(T* p, const T* g, T* m, T* v, uint32_t drawn) const {
        const SpamScalars<T> s = step.scalars;
        for (int j = 0; j < N; ++j)
            if (drawn >> j & 1u)
                spam_element<Clip>(p[j], g[j], m[j], v[j], s);
            else
                p[j] *= s.decay;
    }

    // N elements from start: all of them exist, and for N > 1 they are aligned.
    template <int N> LK_MEMBER void run(int64_t start) const {
        int64_t moment;
        const uint32_t bits = drawn<N>(start, moment);
        const bool unscale = rules.grad_scale.data != nullptr;
        if (!bits && !unscale && step.scalars.decay == T(1))
            return;
        T p[N], g[N], m[N], v[N];
        load_numbers<N>(tensor.p, DType(tensor.p_type), start, p);
        load_numbers<N>(tensor.g, DType(tensor.g_type), start, g);
        load_moments<N>(tensor.m, moment, bits, m);
        load_moments<N>(tensor.v, moment, bits, v);
        if (unscale) {
            const T scale = number<T>(rules.grad_scale);
            for (int j = 0; j < N; ++j)
                g[j] /= scale;
            store_numbers<N>(g, tensor.g, DType(tensor.g_type), start);
        }
        if (step.clip == SpamClip::kNone)
            update<SpamClip::kNone, N>(p, g, m, v, bits);
        else if (step.clip == SpamClip::kPass)
            update<SpamClip::kPass, N>(p, g, m, v, bits);
        else
            update<SpamClip::kFreeze, N>(p, g, m, v, bits);
        store_numbers<N>(p, tensor.p, DType(tensor.p_type), start);
        store_moments<N>(m, v, start, moment, bits);
    }
};

// Blocks that one multiprocessor holds: as many as the registers allow on every architecture without spilling.
template <class T> constexpr int kSpamBlocks = sizeof(T) == 8 ? 2 : 3;

// p *= 1 - lr wd; where drawn: g clipped to +-sqrt(threshold v); m, v = EMAs of g, g^2; p -= size m / (sqrt(v) + eps).
// A tile of one tensor a block, eight elements a thread. Reads p, g, m, v and writes p, m, v: 28 bytes an element in float32,
// 20 on a restart, the least possible; m and v only where drawn; an undrawn row only for its weight decay.
template <class T, SpamMask Mask>
__global__ void __launch_bounds__(kSpamThreads, kSpamBlocks<T>) spam_step(const __grid_constant__ SpamArguments<T> arguments) {
    const SpamRules<T>& rules = arguments.rules;
    if (rules.found_inf.data && number<T>(rules.found_inf) != T(0))
        return;
    int low = 0, high = arguments.n_tensors - 1; // the last tensor whose first block is not after this one
    while (low < high) {
        const int middle = (low + high + 1) / 2;
        if (arguments.first_block[middle] <= blockIdx.x)
            low = middle;
        else
            high = middle - 1;
    }
    const SpamTensor& tensor = arguments.tensors[low];
    LK_SHARED(SpamStep<T>, step);
    if (threadIdx.x == 0)
        step = spam_step_of(rules, *tensor.step);
    __syncthreads();
    const int64_t start = int64_t(blockIdx.x - arguments.first_block[low]) * kSpamTile + int64_t(threadIdx.x) * kSpamVector;
    const SpamThread<T, Mask> thread{rules, tensor, step};
    if (tensor.aligned && start + kSpamVector <= tensor.numel)
        return thread.template run<kSpamVector>(start);
    for (int64_t i = start; i < start + kSpamVector && i < tensor.numel; ++i)
        thread.template run<1>(i);
}

// step += 1, in a launch of its own because blocks of the update read it; nothing where an infinity was found.
__global__ void __launch_bounds__(kSpamThreads) spam_advance(const __grid_constant__ SpamSteps arguments) {
    const int i = int(blockIdx.x * blockDim.x + threadIdx.x);
    const bool skip = arguments.found_inf.data && number<float>(arguments.found_inf) != 0.0f;
    if (i < arguments.n && !skip)
        *arguments.steps[i] += 1.0f;
}

} // namespace lk
