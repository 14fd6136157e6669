// The SPAM step of a chunk of a parameter, compiled once per ISA tier (LK_ISA). One pass over p, g, m, v; operands that are
// not contiguous numbers of the arithmetic's type go through small buffers. Results do not depend on tier, chunk or thread.
#include "spam.h"

#include "../math/numbers.h"
#include "../math/philox.h"

namespace lk {
namespace LK_ISA {
namespace {

constexpr int kBlock = 512;  // elements of p at a time: the buffers stay in the first-level cache

// ---------------------------------------------------------------------------------------------------- loads and stores

template <class S, class T>
void load_as(const char* base, const int64_t* at, int64_t start, int n, T* out) {
  const S* source = reinterpret_cast<const S*>(base);
  if (at)
    for (int i = 0; i < n; ++i) out[i] = T(widen(source[at[i]]));
  else
    for (int i = 0; i < n; ++i) out[i] = T(widen(source[start + i]));
}

template <class S, class T>
void store_as(const T* values, char* base, const int64_t* at, int64_t start, int n) {
  S* target = reinterpret_cast<S*>(base);
  const auto narrow_one = [](T value, S& out) {
    if constexpr (sizeof(S) == 8)
      out = value;
    else
      narrow(float(value), out);
  };
  if (at)
    for (int i = 0; i < n; ++i) narrow_one(values[i], target[at[i]]);
  else
    for (int i = 0; i < n; ++i) narrow_one(values[i], target[start + i]);
}

// n elements from start, or at the given offsets, widened to T.
template <class T>
void load(const char* base, DType dtype, const int64_t* at, int64_t start, int n, T* out) {
  switch (dtype) {
    case DType::kFloat: return load_as<float>(base, at, start, n, out);
    case DType::kBFloat16: return load_as<bf16>(base, at, start, n, out);
    case DType::kHalf: return load_as<f16>(base, at, start, n, out);
    case DType::kDouble: return load_as<double>(base, at, start, n, out);
  }
}

template <class T>
void store(const T* values, char* base, DType dtype, const int64_t* at, int64_t start, int n) {
  switch (dtype) {
    case DType::kFloat: return store_as<float>(values, base, at, start, n);
    case DType::kBFloat16: return store_as<bf16>(values, base, at, start, n);
    case DType::kHalf: return store_as<f16>(values, base, at, start, n);
    case DType::kDouble: return store_as<double>(values, base, at, start, n);
  }
}

template <class T>
constexpr DType dtype_of() {
  return sizeof(T) == 8 ? DType::kDouble : DType::kFloat;
}

// Offsets in memory of n logical elements from start, by counting through the sizes.
void strided_offsets(const SpamTask& task, const int64_t* strides, int64_t start, int n, int64_t* out) {
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
      if (++index[d] < task.sizes[d]) break;
      offset -= strides[d] * task.sizes[d];
      index[d] = 0;
    }
  }
}

// ------------------------------------------------------------------------------------------------------ random numbers

// Words of n consecutive positions: word position % 4 of the Philox block position / 4.  out has room for n + 66 words.
const uint32_t* random_words(uint64_t first, int n, uint32_t c2, uint32_t c3, uint64_t seed, uint32_t stream, uint32_t* out) {
  const int skip = int(first & 3);
  for (int done = 0; done < n + skip; done += 4 * kPhiloxLanes)
    philox_lanes(out + done, (first >> 2) + done / 4, c2, c3, seed, stream);
  return out + skip;
}

// Calls f(done, global position, length) for each run of n elements from start that is consecutive in the whole parameter.
template <class F>
void for_global_runs(const SpamTask& task, int64_t start, int n, const F& f) {
  for (int done = 0; done < n;) {
    const int64_t e = start + done, inside = e % task.local_block;
    const int64_t left = task.local_block - inside;
    const int length = left < n - done ? int(left) : n - done;
    f(done, uint64_t(e / task.local_block * task.global_block + task.offset + inside), length);
    done += length;
  }
}

void rounding_words(const SpamTask& task, const SpamCall& call, int64_t start, int n, uint32_t* out) {
  uint32_t scratch[kBlock + 4 * kPhiloxLanes + 4];
  for_global_runs(task, start, n, [&](int done, uint64_t position, int length) {
    const uint32_t* words = random_words(position, length, uint32_t(task.phase.n), task.index, call.hyper.seed, kRoundingStream, scratch);
    for (int i = 0; i < length; ++i) out[done + i] = words[i];
  });
}

// Positions in the block (of n elements from start, whole strata) of the drawn elements, in order; returns their number.
int drawn_elements(const SpamTask& task, const SpamCall& call, int64_t start, int n, int* out) {
  uint32_t scratch[kBlock / kStratum + 4 * kPhiloxLanes + 4];
  const int chosen = call.hyper.chosen;
  int* next = out;
  for_global_runs(task, start, n, [&](int done, uint64_t position, int length) {
    const uint32_t* words =
        random_words(position / kStratum, length / kStratum, uint32_t(task.phase.cycle), task.index, call.hyper.seed, kMaskStream, scratch);
    for (int stratum = 0; stratum < length / kStratum; ++stratum) {
      const uint32_t rank = uint32_t(uint64_t(words[stratum]) * call.n_combinations >> 32);
      const uint8_t* combination = call.combinations + int64_t(rank) * chosen;
      for (int j = 0; j < chosen; ++j) next[j] = done + stratum * kStratum + combination[j];
      next += chosen;
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
  for (int j = 0; j < call.hyper.chosen; ++j) bits |= 1u << call.combinations[int64_t(rank) * call.hyper.chosen + j];
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
    case SpamClip::kNone: return update_as<T, SpamClip::kNone, Restart>(p, g, m, v, n, s);
    case SpamClip::kPass: return update_as<T, SpamClip::kPass, Restart>(p, g, m, v, n, s);
    case SpamClip::kFreeze: return update_as<T, SpamClip::kFreeze, Restart>(p, g, m, v, n, s);
  }
}

template <class T>
const SpamScalars<T>& scalars_of(const SpamTask& task) {
  if constexpr (sizeof(T) == 8)
    return task.d;
  else
    return task.f;
}

// n elements whose p and g are given, with the moments from m_start; noise (bfloat16 moments) has a word an element.
template <class T>
void update(const SpamTask& task, T* p, const T* g, int64_t m_start, int n, const uint32_t* noise) {
  T m_buffer[kBlock], v_buffer[kBlock];
  const bool direct = task.moments == dtype_of<T>();
  T* m = direct ? reinterpret_cast<T*>(task.m) + m_start : m_buffer;
  T* v = direct ? reinterpret_cast<T*>(task.v) + m_start : v_buffer;
  if (!direct && !task.restart) {
    load<T>(task.m, task.moments, nullptr, m_start, n, m);
    load<T>(task.v, task.moments, nullptr, m_start, n, v);
  }
  if (task.restart)
    update_clipped<T, true>(task, p, g, m, v, n, scalars_of<T>(task));
  else
    update_clipped<T, false>(task, p, g, m, v, n, scalars_of<T>(task));
  if (direct) return;
  if (!noise) {
    store<T>(m, task.m, task.moments, nullptr, m_start, n);
    store<T>(v, task.v, task.moments, nullptr, m_start, n);
    return;
  }
  bf16* m_out = reinterpret_cast<bf16*>(task.m) + m_start;
  bf16* v_out = reinterpret_cast<bf16*>(task.v) + m_start;
  for (int i = 0; i < n; ++i) m_out[i] = round_stochastically(float(m[i]), noise[i] & 0xffffu);
  for (int i = 0; i < n; ++i) v_out[i] = round_stochastically(float(v[i]), noise[i] >> 16);
}

// n elements of p from start in the order of the walk, with moments from m_start.
template <class T>
void dense_block(const SpamTask& task, const SpamCall& call, int64_t start, int64_t m_start, int n) {
  T p_buffer[kBlock], g_buffer[kBlock];
  int64_t p_at[kBlock], g_at[kBlock];
  uint32_t noise[kBlock];
  if (task.p.strides) strided_offsets(task, task.p.strides, start, n, p_at);
  if (task.g.strides) strided_offsets(task, task.g.strides, start, n, g_at);
  const int64_t* p_offsets = task.p.strides ? p_at : nullptr;
  const int64_t* g_offsets = task.g.strides ? g_at : nullptr;
  const bool p_direct = !p_offsets && task.p.dtype == dtype_of<T>();
  const bool g_direct = !g_offsets && task.g.dtype == dtype_of<T>() && !call.unscale;
  T* p = p_direct ? reinterpret_cast<T*>(task.p.data) + start : p_buffer;
  const T* g = g_direct ? reinterpret_cast<const T*>(task.g.data) + start : g_buffer;
  if (!p_direct) load<T>(task.p.data, task.p.dtype, p_offsets, start, n, p_buffer);
  if (!g_direct) load<T>(task.g.data, task.g.dtype, g_offsets, start, n, g_buffer);
  if (call.unscale) {
    for (int i = 0; i < n; ++i) g_buffer[i] /= T(call.grad_scale);
    store<T>(g_buffer, task.g.data, task.g.dtype, g_offsets, start, n);
  }
  if (task.moments == DType::kBFloat16) rounding_words(task, call, start, n, noise);
  update<T>(task, p, g, m_start, n, task.moments == DType::kBFloat16 ? noise : nullptr);
  if (!p_direct) store<T>(p_buffer, task.p.data, task.p.dtype, p_offsets, start, n);
}

// What befalls elements that no moment belongs to: decay, and the unscaling of their gradients.
template <class T>
void undrawn_block(const SpamTask& task, const SpamCall& call, int64_t start, int n) {
  T buffer[kBlock];
  int64_t at[kBlock];
  const T decay = scalars_of<T>(task).decay;
  if (decay != T(1)) {
    if (task.p.strides) strided_offsets(task, task.p.strides, start, n, at);
    load<T>(task.p.data, task.p.dtype, task.p.strides ? at : nullptr, start, n, buffer);
    for (int i = 0; i < n; ++i) buffer[i] *= decay;
    store<T>(buffer, task.p.data, task.p.dtype, task.p.strides ? at : nullptr, start, n);
  }
  if (call.unscale) {
    if (task.g.strides) strided_offsets(task, task.g.strides, start, n, at);
    load<T>(task.g.data, task.g.dtype, task.g.strides ? at : nullptr, start, n, buffer);
    for (int i = 0; i < n; ++i) buffer[i] /= T(call.grad_scale);
    store<T>(buffer, task.g.data, task.g.dtype, task.g.strides ? at : nullptr, start, n);
  }
}

// ----------------------------------------------------------------------------------------------------- walks of a chunk

template <class T>
void walk_dense(const SpamTask& task, const SpamCall& call, int64_t begin, int64_t end) {
  for (int64_t start = begin; start < end; start += kBlock)
    dense_block<T>(task, call, start, start, int(end - start < kBlock ? end - start : kBlock));
}

template <class T>
void walk_elements(const SpamTask& task, const SpamCall& call, int64_t begin, int64_t end) {
  T p[kBlock], g[kBlock];
  int position[kBlock];
  int64_t p_all[kBlock], g_all[kBlock], p_at[kBlock], g_at[kBlock];
  uint32_t words[kBlock], noise[kBlock];
  for (int64_t start = begin; start < end; start += kBlock) {
    const int length = int(end - start < kBlock ? end - start : kBlock);
    const int n = drawn_elements(task, call, start, length, position);
    if (task.p.strides) strided_offsets(task, task.p.strides, start, length, p_all);
    if (task.g.strides) strided_offsets(task, task.g.strides, start, length, g_all);
    for (int i = 0; i < n; ++i) p_at[i] = task.p.strides ? p_all[position[i]] : start + position[i];
    for (int i = 0; i < n; ++i) g_at[i] = task.g.strides ? g_all[position[i]] : start + position[i];
    load<T>(task.p.data, task.p.dtype, p_at, 0, n, p);
    load<T>(task.g.data, task.g.dtype, g_at, 0, n, g);
    if (call.unscale)
      for (int i = 0; i < n; ++i) g[i] /= T(call.grad_scale);
    undrawn_block<T>(task, call, start, length);  // also touches the drawn ones, which are written last
    if (task.moments == DType::kBFloat16) {
      rounding_words(task, call, start, length, words);
      for (int i = 0; i < n; ++i) noise[i] = words[position[i]];
    }
    update<T>(task, p, g, start / kStratum * call.hyper.chosen, n, task.moments == DType::kBFloat16 ? noise : nullptr);
    store<T>(p, task.p.data, task.p.dtype, p_at, 0, n);
  }
}

template <class T>
void walk_rows(const SpamTask& task, const SpamCall& call, int64_t begin, int64_t end) {
  int64_t stratum = -1;
  uint32_t bits = 0;
  for (int64_t start = begin; start < end;) {
    const int64_t row = start / task.row_length, column = start % task.row_length;
    if (row / kStratum != stratum) bits = drawn_rows(task, call, stratum = row / kStratum);
    const int64_t left = task.row_length - column < end - start ? task.row_length - column : end - start;
    const int in_stratum = int(row % kStratum);
    const bool drawn = bits >> in_stratum & 1u;
    const int64_t slot = stratum * call.hyper.chosen + __builtin_popcount(bits & ((1u << in_stratum) - 1));
    const bool idle = !drawn && !call.unscale && scalars_of<T>(task).decay == T(1);
    for (int64_t done = 0; done < left && !idle; done += kBlock) {
      const int n = int(left - done < kBlock ? left - done : kBlock);
      if (drawn)
        dense_block<T>(task, call, start + done, slot * task.row_length + column + done, n);
      else
        undrawn_block<T>(task, call, start + done, n);
    }
    start += left;
  }
}

template <class T>
void walk(const SpamTask& task, const SpamCall& call, int64_t begin, int64_t end) {
  switch (task.kind) {
    case SpamKind::kDense: return walk_dense<T>(task, call, begin, end);
    case SpamKind::kElement: return walk_elements<T>(task, call, begin, end);
    case SpamKind::kRow: return walk_rows<T>(task, call, begin, end);
  }
}

}  // namespace

void spam_run(const SpamCall& call, int64_t begin_chunk, int64_t end_chunk) {
  int64_t low = 0, high = call.n_tasks - 1;  // the last task that starts at or before begin_chunk
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
    if (begin < 0) begin = 0;
    if (end > task.numel) end = task.numel;
    if (begin >= end) continue;
    if (task.p.dtype == DType::kDouble)
      walk<double>(task, call, begin, end);
    else
      walk<float>(task, call, begin, end);
  }
}

}  // namespace LK_ISA
}  // namespace lk
