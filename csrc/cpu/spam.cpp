// The SPAM step of a chunk of a parameter, compiled once per ISA tier (LK_ISA). One pass over p, g, m, v; operands that are
// not contiguous numbers of the arithmetic's type go through small buffers. Results do not depend on tier, chunk or thread.
#include "spam.h"

#include "elements.h"
#include "spam_draws.h"

namespace lk {
namespace LK_ISA {
namespace {

// --------------------------------------------------------------------------------------------------------- the update

template <class T, SpamClip Clip, bool Restart>
void update_as(T* __restrict p, const T* __restrict g, T* __restrict m, T* __restrict v, int n, const SpamScalars<T>& scalars) {
    const SpamScalars<T> s = scalars;
    for (int i = 0; i < n; ++i) {
        T mi = Restart ? T(0) : m[i], vi = Restart ? T(0) : v[i];
        spam_element<T, Clip>(p[i], g[i], mi, vi, s);
        m[i] = mi;
        v[i] = vi;
    }
}

template <class T, bool Restart>
void update_clipped(const SpamTask& task, T* p, const T* g, T* m, T* v, int n, const SpamScalars<T>& s) {
    switch (task.clip) {
    case SpamClip::kNone:
        return update_as<T, SpamClip::kNone, Restart>(p, g, m, v, n, s);
    case SpamClip::kPass:
        return update_as<T, SpamClip::kPass, Restart>(p, g, m, v, n, s);
    case SpamClip::kFreeze:
        return update_as<T, SpamClip::kFreeze, Restart>(p, g, m, v, n, s);
    }
}

template <class T> const SpamScalars<T>& scalars_of(const SpamTask& task) {
    if constexpr (sizeof(T) == 8)
        return task.d;
    else
        return task.f;
}

// n elements whose p and g are given, with the moments from m_start; noise (bfloat16 moments) has a word an element.
template <class T> void update(const SpamTask& task, T* p, const T* g, int64_t m_start, int n, const uint32_t* noise) {
    T m_buffer[kBlock], v_buffer[kBlock];
    const bool direct = task.moments == dtype_of<T>();
    T* m = direct ? reinterpret_cast<T*>(task.m) + m_start : m_buffer;
    T* v = direct ? reinterpret_cast<T*>(task.v) + m_start : v_buffer;
    if (!direct && !task.restart) {
        load<T>(task.m, task.moments, {m_start, nullptr, nullptr}, n, m);
        load<T>(task.v, task.moments, {m_start, nullptr, nullptr}, n, v);
    }
    if (task.restart)
        update_clipped<T, true>(task, p, g, m, v, n, scalars_of<T>(task));
    else
        update_clipped<T, false>(task, p, g, m, v, n, scalars_of<T>(task));
    if (direct)
        return;
    if (!noise) {
        store<T>(m, task.m, task.moments, {m_start, nullptr, nullptr}, n);
        store<T>(v, task.v, task.moments, {m_start, nullptr, nullptr}, n);
        return;
    }
    bf16* m_out = reinterpret_cast<bf16*>(task.m) + m_start;
    bf16* v_out = reinterpret_cast<bf16*>(task.v) + m_start;
    for (int i = 0; i < n; ++i)
        m_out[i] = round_stochastically(float(m[i]), noise[i] & 0xffffu);
    for (int i = 0; i < n; ++i)
        v_out[i] = round_stochastically(float(v[i]), noise[i] >> 16);
}

// Where n elements of p (or g) from start lie; offsets has room for them.
Where place(const SpamTask& task, const SpamTensor& tensor, int64_t start, int n, int64_t* offsets) {
    return {start, strided_offsets(task.sizes, task.ndim, tensor.strides, start, n, offsets), nullptr};
}

// Divides gradients by the scale of AMP and writes them back.
template <class T> void unscale(const SpamTask& task, const SpamCall& call, const Where& where, int n, T* g) {
    for (int i = 0; i < n; ++i)
        g[i] /= T(call.grad_scale);
    store<T>(g, task.g.data, task.g.dtype, where, n);
}

// n elements of p from start in the order of the walk, with moments from m_start.
template <class T> void dense_block(const SpamTask& task, const SpamCall& call, int64_t start, int64_t m_start, int n) {
    T p_buffer[kBlock], g_buffer[kBlock];
    int64_t p_offsets[kBlock], g_offsets[kBlock];
    uint32_t noise[kBlock];
    const Where p_where = place(task, task.p, start, n, p_offsets);
    const Where g_where = place(task, task.g, start, n, g_offsets);
    const bool p_direct = !task.p.strides && task.p.dtype == dtype_of<T>();
    const bool g_direct = !task.g.strides && task.g.dtype == dtype_of<T>() && !call.unscale;
    T* p = p_direct ? reinterpret_cast<T*>(task.p.data) + start : p_buffer;
    const T* g = g_direct ? reinterpret_cast<const T*>(task.g.data) + start : g_buffer;
    if (!p_direct)
        load<T>(task.p.data, task.p.dtype, p_where, n, p_buffer);
    if (!g_direct)
        load<T>(task.g.data, task.g.dtype, g_where, n, g_buffer);
    if (call.unscale)
        unscale<T>(task, call, g_where, n, g_buffer);
    const bool stochastic = task.moments == DType::kBFloat16;
    if (stochastic)
        rounding_words(task, call, start, n, noise);
    update<T>(task, p, g, m_start, n, stochastic ? noise : nullptr);
    if (!p_direct)
        store<T>(p_buffer, task.p.data, task.p.dtype, p_where, n);
}

// What befalls every element, drawn or not: decay, and the unscaling of its gradient.
template <class T>
void undrawn_block(const SpamTask& task, const SpamCall& call, const Where& p_where, const Where& g_where, int n) {
    T buffer[kBlock];
    const T decay = scalars_of<T>(task).decay;
    if (decay != T(1)) {
        load<T>(task.p.data, task.p.dtype, p_where, n, buffer);
        for (int i = 0; i < n; ++i)
            buffer[i] *= decay;
        store<T>(buffer, task.p.data, task.p.dtype, p_where, n);
    }
    if (call.unscale) {
        load<T>(task.g.data, task.g.dtype, g_where, n, buffer);
        unscale<T>(task, call, g_where, n, buffer);
    }
}

// ----------------------------------------------------------------------------------------------------- walks of a chunk

template <class T> void walk_dense(const SpamTask& task, const SpamCall& call, int64_t begin, int64_t end) {
    for (int64_t start = begin; start < end; start += kBlock)
        dense_block<T>(task, call, start, start, int(end - start < kBlock ? end - start : kBlock));
}

// Asks for the lines of n elements of p and g ahead of a gather, whose loads the hardware does not foresee.
void prefetch(const SpamTensor& tensor, int64_t start, int n) {
    if (tensor.strides)
        return;
    const int64_t size = tensor.dtype == DType::kDouble ? 8 : tensor.dtype == DType::kFloat ? 4 : 2;
    for (int64_t byte = start * size; byte < (start + n) * size; byte += 64)
        __builtin_prefetch(tensor.data + byte);
}

template <class T> void walk_elements(const SpamTask& task, const SpamCall& call, int64_t begin, int64_t end) {
    T p[kBlock], g[kBlock];
    int positions[kBlock];
    int64_t p_offsets[kBlock], g_offsets[kBlock];
    uint32_t words[kBlock], noise[kBlock];
    const bool stochastic = task.moments == DType::kBFloat16;
    for (int64_t start = begin; start < end; start += kBlock) {
        const int length = int(end - start < kBlock ? end - start : kBlock);
        const int ahead = int(end - start - length < kBlock ? end - start - length : kBlock);
        prefetch(task.p, start + length, ahead);
        prefetch(task.g, start + length, ahead);
        const int n = drawn_elements(task, call, start, length, positions);
        const Where p_all = place(task, task.p, start, length, p_offsets);
        const Where g_all = place(task, task.g, start, length, g_offsets);
        const Where p_drawn{start, p_all.offsets, positions}, g_drawn{start, g_all.offsets, positions};
        load<T>(task.p.data, task.p.dtype, p_drawn, n, p);
        load<T>(task.g.data, task.g.dtype, g_drawn, n, g);
        if (call.unscale)
            for (int i = 0; i < n; ++i)
                g[i] /= T(call.grad_scale);
        undrawn_block<T>(task, call, p_all, g_all, length); // the drawn ones too: they are overwritten below
        if (stochastic) {
            rounding_words(task, call, start, length, words);
            for (int i = 0; i < n; ++i)
                noise[i] = words[positions[i]];
        }
        update<T>(task, p, g, start / kStratum * call.hyper.chosen, n, stochastic ? noise : nullptr);
        store<T>(p, task.p.data, task.p.dtype, p_drawn, n);
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
        for (int64_t done = 0; done < left && !idle; done += kBlock) {
            const int n = int(left - done < kBlock ? left - done : kBlock);
            if (drawn) {
                dense_block<T>(task, call, start + done, slot * task.row_length + column + done, n);
            } else {
                int64_t p_offsets[kBlock], g_offsets[kBlock];
                const Where p_where = place(task, task.p, start + done, n, p_offsets);
                const Where g_where = place(task, task.g, start + done, n, g_offsets);
                undrawn_block<T>(task, call, p_where, g_where, n);
            }
        }
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
