// The SPAM step of a chunk of a parameter, compiled once per ISA tier (LK_ISA). One pass over p, g, m, v; operands that are
// not contiguous numbers of the arithmetic's type go through small buffers. Results do not depend on tier, chunk or thread.
#include "spam.h"

#include "../math/numbers.h"
#include "philox_lanes.h"

namespace lk {
namespace LK_ISA {
namespace {

constexpr int kBlock = 512; // elements of p at a time: the buffers stay in the first-level cache

// ---------------------------------------------------------------------------------------------------- loads and stores

// Which numbers of a tensor: element i of a block is the i-th from start, or the i-th of the chosen positions; behind
// offsets, where strides ask for them.
struct Where {
    int64_t start;
    const int64_t* offsets; // [block] where each element of the block lies in memory; null: start + its position
    const int* positions;   // [n] positions in the block; null: 0 .. n - 1
};

template <class F> void for_each_place(const Where& where, int n, const F& f) {
    if (where.offsets && where.positions)
        for (int i = 0; i < n; ++i)
            f(i, where.offsets[where.positions[i]]);
    else if (where.offsets)
        for (int i = 0; i < n; ++i)
            f(i, where.offsets[i]);
    else if (where.positions)
        for (int i = 0; i < n; ++i)
            f(i, where.start + where.positions[i]);
    else
        for (int i = 0; i < n; ++i)
            f(i, where.start + i);
}

template <class S, class T> void load_as(const char* base, const Where& where, int n, T* __restrict out) {
    const S* __restrict source = reinterpret_cast<const S*>(base);
    for_each_place(where, n, [=](int i, int64_t at) { out[i] = T(widen(source[at])); });
}

template <class S, class T> void store_as(const T* __restrict values, char* base, const Where& where, int n) {
    S* __restrict target = reinterpret_cast<S*>(base);
    for_each_place(where, n, [=](int i, int64_t at) {
        if constexpr (sizeof(S) == 8)
            target[at] = values[i];
        else
            narrow(float(values[i]), target[at]);
    });
}

// n elements, widened to T.
template <class T> void load(const char* base, DType dtype, const Where& where, int n, T* out) {
    switch (dtype) {
    case DType::kFloat:
        return load_as<float>(base, where, n, out);
    case DType::kBFloat16:
        return load_as<bf16>(base, where, n, out);
    case DType::kHalf:
        return load_as<f16>(base, where, n, out);
    case DType::kDouble:
        return load_as<double>(base, where, n, out);
    }
}

template <class T> void store(const T* values, char* base, DType dtype, const Where& where, int n) {
    switch (dtype) {
    case DType::kFloat:
        return store_as<float>(values, base, where, n);
    case DType::kBFloat16:
        return store_as<bf16>(values, base, where, n);
    case DType::kHalf:
        return store_as<f16>(values, base, where, n);
    case DType::kDouble:
        return store_as<double>(values, base, where, n);
    }
}

template <class T> constexpr DType dtype_of() { return sizeof(T) == 8 ? DType::kDouble : DType::kFloat; }

// Where n logical elements from start lie in memory, found by counting through the sizes; null if simply in a row.
const int64_t* strided_offsets(const SpamTask& task, const int64_t* strides, int64_t start, int n, int64_t* out) {
    if (!strides)
        return nullptr;
    int64_t index[64], offset = 0;
    for (int d = task.ndim - 1; d >= 0; --d) {
        index[d] = start % task.sizes[d];
        start /= task.sizes[d];
        offset += index[d] * strides[d];
    }
    for (int i = 0; i < n; ++i) {
        out[i] = offset;
        for (int d = task.ndim - 1; d >= 0; --d) {
            offset += strides[d];
            if (++index[d] < task.sizes[d])
                break;
            offset -= strides[d] * task.sizes[d];
            index[d] = 0;
        }
    }
    return out;
}

// ------------------------------------------------------------------------------------------------------ random numbers

// Words of n consecutive positions: word position % 4 of the Philox block position / 4.  out has room for n + 4 * (kPhiloxLanes
// + 1) words.
const uint32_t* random_words(uint64_t first, int n, uint32_t c2, uint32_t c3, uint64_t seed, uint32_t stream, uint32_t* out) {
    const int skip = int(first & 3);
    for (int done = 0; done < n + skip; done += 4 * kPhiloxLanes)
        philox_lanes(out + done, (first >> 2) + done / 4, c2, c3, seed, stream);
    return out + skip;
}

// Calls f(done, global position, length) for each run of n elements from start that is consecutive in the whole parameter.
template <class F> void for_global_runs(const SpamTask& task, int64_t start, int n, const F& f) {
    for (int done = 0; done < n;) {
        const int64_t e = start + done, inside = e % task.local_block;
        const int64_t left = task.local_block - inside;
        const int length = left < n - done ? int(left) : n - done;
        f(done, uint64_t(e / task.local_block * task.global_block + task.offset + inside), length);
        done += length;
    }
}

void rounding_words(const SpamTask& task, const SpamCall& call, int64_t start, int n, uint32_t* out) {
    uint32_t scratch[kBlock + 4 * (kPhiloxLanes + 1)];
    for_global_runs(task, start, n, [&](int done, uint64_t position, int length) {
        const uint32_t* words =
            random_words(position, length, uint32_t(task.phase.n), task.index, call.hyper.seed, kRoundingStream, scratch);
        for (int i = 0; i < length; ++i)
            out[done + i] = words[i];
    });
}

// Positions of the draws of `count` strata from position `first` of the block. Fixed counts let the compiler unroll.
template <int Fixed> int* expand_draws(const SpamCall& call, const uint32_t* words, int count, int first, int* next) {
    const int chosen = Fixed ? Fixed : call.hyper.chosen;
    for (int stratum = 0; stratum < count; ++stratum, next += chosen) {
        const uint32_t rank = uint32_t(uint64_t(words[stratum]) * call.n_combinations >> 32);
        const uint8_t* combination = call.combinations + int64_t(rank) * chosen;
        for (int j = 0; j < chosen; ++j)
            next[j] = first + stratum * kStratum + combination[j];
    }
    return next;
}

// Positions in the block (of n elements from start, whole strata) of the drawn elements, in order; returns their number.
int drawn_elements(const SpamTask& task, const SpamCall& call, int64_t start, int n, int* out) {
    uint32_t scratch[kBlock / kStratum + 4 * (kPhiloxLanes + 1)];
    int* next = out;
    for_global_runs(task, start, n, [&](int done, uint64_t position, int length) {
        const int strata = length / kStratum;
        const uint32_t* words = random_words(position / kStratum, strata, uint32_t(task.phase.cycle), task.index,
                                             call.hyper.seed, kMaskStream, scratch);
        switch (call.hyper.chosen) {
        case 4:
            next = expand_draws<4>(call, words, strata, done, next);
            break;
        case 8:
            next = expand_draws<8>(call, words, strata, done, next);
            break;
        default:
            next = expand_draws<0>(call, words, strata, done, next);
        }
    });
    return int(next - out);
}

// The rows that a stratum draws, as bits.
uint32_t drawn_rows(const SpamTask& task, const SpamCall& call, int64_t local_stratum) {
    const uint64_t stratum = uint64_t(task.row_offset / kStratum + local_stratum);
    uint32_t c[4] = {uint32_t(stratum >> 2), uint32_t(stratum >> 34), uint32_t(task.phase.cycle), task.index};
    philox(c, call.hyper.seed, kMaskStream);
    const uint32_t rank = uint32_t(uint64_t(c[stratum & 3]) * call.n_combinations >> 32);
    uint32_t bits = 0;
    for (int j = 0; j < call.hyper.chosen; ++j)
        bits |= 1u << call.combinations[int64_t(rank) * call.hyper.chosen + j];
    return bits;
}

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
    const Where p_where{start, strided_offsets(task, task.p.strides, start, n, p_offsets), nullptr};
    const Where g_where{start, strided_offsets(task, task.g.strides, start, n, g_offsets), nullptr};
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
        const Where p_all{start, strided_offsets(task, task.p.strides, start, length, p_offsets), nullptr};
        const Where g_all{start, strided_offsets(task, task.g.strides, start, length, g_offsets), nullptr};
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
                const Where p_where{start + done, strided_offsets(task, task.p.strides, start + done, n, p_offsets), nullptr};
                const Where g_where{start + done, strided_offsets(task, task.g.strides, start + done, n, g_offsets), nullptr};
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
