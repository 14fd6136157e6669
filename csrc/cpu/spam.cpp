// The SPAM step of a chunk of a parameter, compiled once per ISA tier (LK_ISA). One pass over p, g, m, v; operands that are
// not contiguous numbers of the arithmetic's type go through small buffers. Results do not depend on tier, chunk or thread.
#include "vector.h" // before the formulas, which it gives another kind of number

#include "compress.h"
#include "elements.h"
#include "spam.h"
#include "spam_draws.h"

namespace lk {
namespace LK_ISA {
namespace {

// --------------------------------------------------------------------------------------------------------- the update

// E is the type of p and g in memory: the arithmetic's, T, or one that registers widen to it.
template <class T, SpamClip Clip, bool Restart, class E>
inline void update_as(E* __restrict p, const E* __restrict g, T* __restrict m, T* __restrict v, int n,
                      const SpamScalars<T>& scalars) {
    const SpamScalars<T> s = scalars;
    for (int i = 0; i < n; ++i) {
        T pi = widen(p[i]), mi = Restart ? T(0) : m[i], vi = Restart ? T(0) : v[i];
        spam_element<Clip>(pi, T(widen(g[i])), mi, vi, s);
        narrow(pi, p[i]);
        m[i] = mi;
        v[i] = vi;
    }
}

// Spikes are rare, and cutting them costs a second square root an element: only the runs that hold one pay for it.
template <class T, SpamClip Clip, bool Restart, class E>
inline void update_run(E* p, const E* g, T* m, T* v, int n, const SpamScalars<T>& s) {
    uint32_t spikes = 0;
    for (int i = 0; i < n; ++i)
        spikes |= uint32_t(is_spike<Clip>(T(widen(g[i])), Restart ? T(0) : v[i], s));
    if (__builtin_expect(spikes != 0, 0))
        update_as<T, Clip, Restart>(p, g, m, v, n, s);
    else
        update_as<T, SpamClip::kNone, Restart>(p, g, m, v, n, s);
}

template <class T, SpamClip Clip, bool Restart, class E>
void update_watching(E* p, const E* g, T* m, T* v, int n, const SpamScalars<T>& scalars) {
    constexpr int kRun = 64;
    const SpamScalars<T> s = scalars;
    int start = 0;
    for (; start + kRun <= n; start += kRun) // a constant length: no loop over a remainder
        update_run<T, Clip, Restart>(p + start, g + start, m + start, v + start, kRun, s);
    update_run<T, Clip, Restart>(p + start, g + start, m + start, v + start, n - start, s);
}

template <class T, bool Restart, class E>
void update_clipped(SpamClip clip, E* p, const E* g, T* m, T* v, int n, const SpamScalars<T>& s) {
    switch (clip) {
    case SpamClip::kNone:
        return update_as<T, SpamClip::kNone, Restart>(p, g, m, v, n, s);
    case SpamClip::kPass:
        return update_watching<T, SpamClip::kPass, Restart>(p, g, m, v, n, s);
    case SpamClip::kFreeze:
        return update_watching<T, SpamClip::kFreeze, Restart>(p, g, m, v, n, s);
    }
}

template <class T> const SpamScalars<T>& scalars_of(const SpamTask& task) {
    if constexpr (sizeof(T) == 8)
        return task.d;
    else
        return task.f;
}

template <class T, class E> void update_direct(const SpamTask& task, E* p, const E* g, T* m, T* v, int n) {
    if (task.restart)
        update_clipped<T, true>(task.clip, p, g, m, v, n, scalars_of<T>(task));
    else
        update_clipped<T, false>(task.clip, p, g, m, v, n, scalars_of<T>(task));
}

// n elements whose p and g are given, with the moments from m_start; noise (bfloat16 moments) has a word an element.
template <class T> void update(const SpamTask& task, T* p, const T* g, int64_t m_start, int n, const uint32_t* noise) {
    T m_buffer[kBlock], v_buffer[kBlock];
    const bool direct = task.moments == dtype_of<T>();
    T* m = direct ? reinterpret_cast<T*>(task.m) + m_start : m_buffer;
    T* v = direct ? reinterpret_cast<T*>(task.v) + m_start : v_buffer;
    if (!direct && !task.restart) {
        load<T>(task.m, task.moments, {m_start, nullptr}, n, m);
        load<T>(task.v, task.moments, {m_start, nullptr}, n, v);
    }
    update_direct<T>(task, p, g, m, v, n);
    if (direct)
        return;
    if (!noise) {
        store<T>(m, task.m, task.moments, {m_start, nullptr}, n);
        store<T>(v, task.v, task.moments, {m_start, nullptr}, n);
        return;
    }
    bf16* m_out = reinterpret_cast<bf16*>(task.m) + m_start;
    bf16* v_out = reinterpret_cast<bf16*>(task.v) + m_start;
    for (int i = 0; i < n; ++i)
        m_out[i] = round_stochastically(float(m[i]), noise[i] & 0xffffu);
    for (int i = 0; i < n; ++i)
        v_out[i] = round_stochastically(float(v[i]), noise[i] >> 16);
}

// n elements of p or g from start as numbers of the arithmetic: in place where they are such in a row, else in a buffer.
template <class T> struct Block {
    const SpamTensor& tensor;
    int64_t offsets[kBlock];
    Where where;
    int n;
    bool direct;
    T* data;

    Block(const SpamTask& task, const SpamTensor& of, int64_t start, int count, T* buffer)
        : tensor(of), where{start, strided_offsets(task.sizes, task.ndim, of.strides, start, count, offsets)}, n(count),
          direct(!of.strides && of.dtype == dtype_of<T>()), data(direct ? reinterpret_cast<T*>(of.data) + start : buffer) {
        if (!direct)
            load<T>(tensor.data, tensor.dtype, where, n, data);
    }
    void write_back() {
        if (!direct)
            store<T>(data, tensor.data, tensor.dtype, where, n);
    }
    void scale(T factor) {
        for (int i = 0; i < n; ++i)
            data[i] *= factor;
    }
    // Divides gradients by the scale of AMP, in memory too.
    void unscale(const SpamCall& call) {
        for (int i = 0; i < n; ++i)
            data[i] /= T(call.grad_scale);
        write_back();
    }
};

// n elements of p from start in the order of the walk, with moments from m_start.
template <class T> void dense_block(const SpamTask& task, const SpamCall& call, int64_t start, int64_t m_start, int n) {
    T p_buffer[kBlock], g_buffer[kBlock];
    uint32_t noise[kBlock];
    Block<T> p(task, task.p, start, n, p_buffer), g(task, task.g, start, n, g_buffer);
    if (call.unscale)
        g.unscale(call);
    const bool stochastic = task.moments == DType::kBFloat16;
    if (stochastic)
        rounding_words(task, call, start, n, noise);
    update<T>(task, p.data, g.data, m_start, n, stochastic ? noise : nullptr);
    p.write_back();
}

// Any number of them whose p and g are of type E, from memory to memory in one go. Returns whether it could: nothing may need
// a buffer.
template <class T, class E>
bool straight_run(const SpamTask& task, const SpamCall& call, DType type, int64_t start, int64_t m_start, int64_t n) {
    const auto fits = [&](const SpamTensor& t) { return !t.strides && t.dtype == type; };
    if (!fits(task.p) || !fits(task.g) || task.moments != dtype_of<T>() || call.unscale)
        return false;
    update_direct<T>(task, reinterpret_cast<E*>(task.p.data) + start, reinterpret_cast<const E*>(task.g.data) + start,
                     reinterpret_cast<T*>(task.m) + m_start, reinterpret_cast<T*>(task.v) + m_start, int(n));
    return true;
}

template <class T> void dense_run(const SpamTask& task, const SpamCall& call, int64_t start, int64_t m_start, int64_t n) {
    if (straight_run<T, T>(task, call, dtype_of<T>(), start, m_start, n))
        return;
    if constexpr (sizeof(T) == sizeof(float))
        if (straight_run<T, bf16>(task, call, DType::kBFloat16, start, m_start, n))
            return;
    for (int64_t done = 0; done < n; done += kBlock)
        dense_block<T>(task, call, start + done, m_start + done, int(n - done < kBlock ? n - done : kBlock));
}

// n elements that no moment belongs to: decay, and the unscaling of their gradients.
template <class T> void undrawn_block(const SpamTask& task, const SpamCall& call, int64_t start, int n) {
    T buffer[kBlock];
    if (scalars_of<T>(task).decay != T(1)) {
        Block<T> p(task, task.p, start, n, buffer);
        p.scale(scalars_of<T>(task).decay);
        p.write_back();
    }
    if (call.unscale)
        Block<T>(task, task.g, start, n, buffer).unscale(call);
}

// ----------------------------------------------------------------------------------------------------- walks of a chunk

template <class T> void walk_dense(const SpamTask& task, const SpamCall& call, int64_t begin, int64_t end) {
    dense_run<T>(task, call, begin, begin, end - begin);
}

#ifdef LK_VECTOR

// A few vectors at a time: the latency of a root and quotient hides behind the others', and reading soon goes on.
template <SpamClip Clip, bool Restart>
void update_quarters(float* p, const float* g, float* m, float* v, const uint16_t* bits, int strata,
                     const SpamScalars<float>& scalars) {
    constexpr int kGroup = 4, kStrata = kLanes / 4; // vectors at a time, strata a vector
    const SpamScalars<float> s = scalars;
    for (int start = 0; start < strata; start += kGroup * kStrata) {
        const int left = (strata - start) / kStrata, count = left < kGroup ? left : kGroup;
        const auto element = [&](int j) { return 16 * (start + j * kStrata); };
        Vector ps[kGroup], gs[kGroup];
        for (int j = 0; j < count; ++j) {
            ps[j] = take_quarters(p + element(j), bits + start + j * kStrata);
            gs[j] = take_quarters(g + element(j), bits + start + j * kStrata);
        }
        for (int j = 0; j < count; ++j) {
            float *mj = m + element(j) / 4, *vj = v + element(j) / 4;
            Vector mi = Restart ? Vector{} : vector_load(mj), vi = Restart ? Vector{} : vector_load(vj);
            if (Clip != SpamClip::kNone && any(is_spike<Clip>(gs[j], vi, s)))
                spam_element<Clip>(ps[j], gs[j], mi, vi, s);
            else
                spam_element<SpamClip::kNone>(ps[j], gs[j], mi, vi, s);
            vector_store(mj, mi);
            vector_store(vj, vi);
        }
        for (int j = 0; j < count; ++j)
            put_quarters(ps[j], bits + start + j * kStrata, p + element(j));
    }
}

// Density 1/4 in float32 without decay goes from memory through registers to memory: reading, computing and writing then
// overlap as in the dense step. Returns whether it did the n elements from start.
bool walk_quarters(const SpamTask& task, const SpamCall& call, int64_t start, int n, const uint16_t* bits) {
    const auto plain = [](const SpamTensor& t) { return t.dtype == DType::kFloat && !t.strides; };
    if (call.hyper.chosen != 4 || n % (4 * kLanes) || call.unscale || task.f.decay != 1.0f || !plain(task.p) ||
        !plain(task.g) || task.moments != DType::kFloat)
        return false;
    using Update = void (*)(float*, const float*, float*, float*, const uint16_t*, int, const SpamScalars<float>&);
    constexpr Update updates[2][3] = {
        {update_quarters<SpamClip::kNone, false>, update_quarters<SpamClip::kPass, false>,
         update_quarters<SpamClip::kFreeze, false>},
        {update_quarters<SpamClip::kNone, true>, update_quarters<SpamClip::kPass, true>,
         update_quarters<SpamClip::kFreeze, true>},
    };
    const auto at = [](char* data, int64_t i) { return reinterpret_cast<float*>(data) + i; };
    updates[task.restart][int(task.clip)](at(task.p.data, start), at(task.g.data, start), at(task.m, start / 4),
                                          at(task.v, start / 4), bits, n / kStratum, task.f);
    return true;
}

#else

bool walk_quarters(const SpamTask&, const SpamCall&, int64_t, int, const uint16_t*) { return false; }

#endif

template <class T> void walk_elements(const SpamTask& task, const SpamCall& call, int64_t begin, int64_t end) {
    T p[kBlock + kSlack], g[kBlock + kSlack], p_buffer[kBlock], g_buffer[kBlock];
    uint16_t bits[kBlock / kStratum];
    uint32_t words[kBlock], noise[kBlock + kSlack];
    const int chosen = call.hyper.chosen;
    const bool stochastic = task.moments == DType::kBFloat16;
    for (int64_t start = begin; start < end; start += kBlock) {
        const int length = int(end - start < kBlock ? end - start : kBlock), strata = length / kStratum;
        drawn_elements(task, call, start, length, bits);
        if (sizeof(T) == sizeof(float) && walk_quarters(task, call, start, length, bits))
            continue;
        Block<T> p_all(task, task.p, start, length, p_buffer), g_all(task, task.g, start, length, g_buffer);
        if (call.unscale)
            g_all.unscale(call);
        compress<T>(p_all.data, bits, strata, chosen, p);
        compress<T>(g_all.data, bits, strata, chosen, g);
        if (scalars_of<T>(task).decay != T(1))
            p_all.scale(scalars_of<T>(task).decay); // the drawn ones too: they are overwritten below
        if (stochastic) {
            rounding_words(task, call, start, length, words);
            compress<uint32_t>(words, bits, strata, chosen, noise);
        }
        update<T>(task, p, g, start / kStratum * chosen, strata * chosen, stochastic ? noise : nullptr);
        expand<T>(p, bits, strata, chosen, p_all.data);
        p_all.write_back();
    }
}

template <class T> void walk_rows(const SpamTask& task, const SpamCall& call, int64_t begin, int64_t end) {
    int64_t stratum = -1;
    uint32_t bits = 0;
    for (int64_t start = begin; start < end;) {
        const int64_t row = start / task.row_length, column = start % task.row_length;
        if (row / kStratum != stratum)
            bits = drawn_rows(task, call, stratum = row / kStratum);
        const int64_t left = task.row_length - column < end - start ? task.row_length - column : end - start;
        const int in_stratum = int(row % kStratum);
        const bool drawn = bits >> in_stratum & 1u;
        const int64_t slot = stratum * call.hyper.chosen + __builtin_popcount(bits & ((1u << in_stratum) - 1));
        const bool idle = !drawn && !call.unscale && scalars_of<T>(task).decay == T(1);
        if (drawn)
            dense_run<T>(task, call, start, slot * task.row_length + column, left);
        for (int64_t done = 0; done < left && !drawn && !idle; done += kBlock)
            undrawn_block<T>(task, call, start + done, int(left - done < kBlock ? left - done : kBlock));
        start += left;
    }
}

template <class T> void walk(const SpamTask& task, const SpamCall& call, int64_t begin, int64_t end) {
    switch (task.kind) {
    case SpamKind::kDense:
        return walk_dense<T>(task, call, begin, end);
    case SpamKind::kElement:
        return walk_elements<T>(task, call, begin, end);
    case SpamKind::kRow:
        return walk_rows<T>(task, call, begin, end);
    }
}

} // namespace

void spam_run(const SpamCall& call, int64_t begin_chunk, int64_t end_chunk) {
    int64_t low = 0, high = call.n_tasks - 1; // the last task that starts at or before begin_chunk
    while (low < high) {
        const int64_t middle = (low + high + 1) / 2;
        if (call.first_chunk[middle] <= begin_chunk)
            low = middle;
        else
            high = middle - 1;
    }
    for (int64_t i = low; i < call.n_tasks && call.first_chunk[i] < end_chunk; ++i) {
        const SpamTask& task = call.tasks[i];
        int64_t begin = (begin_chunk - call.first_chunk[i]) * kSpamChunk, end = (end_chunk - call.first_chunk[i]) * kSpamChunk;
        if (begin < 0)
            begin = 0;
        if (end > task.numel)
            end = task.numel;
        if (begin >= end)
            continue;
        if (task.p.dtype == DType::kDouble)
            walk<double>(task, call, begin, end);
        else
            walk<float>(task, call, begin, end);
    }
}

} // namespace LK_ISA
} // namespace lk
