/* The memory limit of the SPAM benchmarks: a plain loop with AdamW's traffic and next to no arithmetic.
 *
 * Reads p, g, m, v and writes p, m, v: 28 bytes an element in float32. The list of tensors is one range of elements,
 * and each thread takes one even part of it. Nothing is unrolled, prefetched or aligned by hand.
 */
#include <pthread.h>
#include <stdint.h>

#define MAX_THREADS 256

typedef struct {
    float *const *p, *const *g, *const *m, *const *v;
    const int64_t *numel;
    int64_t tensors, begin, end;
} Part;

static void loop(float *restrict p, const float *restrict g, float *restrict m, float *restrict v, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        m[i] = 0.9f * m[i] + 0.1f * g[i];
        v[i] = 0.999f * v[i] + 0.001f * g[i];
        p[i] = p[i] - 1e-9f * m[i];
    }
}

static void *run(void *argument) {
    const Part *part = argument;
    int64_t first = 0; /* position of the tensor in the range of all elements */
    for (int64_t t = 0; t < part->tensors; first += part->numel[t++]) {
        int64_t begin = part->begin > first ? part->begin - first : 0;
        int64_t end = part->end - first < part->numel[t] ? part->end - first : part->numel[t];
        if (begin < end)
            loop(part->p[t] + begin, part->g[t] + begin, part->m[t] + begin, part->v[t] + begin, end - begin);
    }
    return 0;
}

/* One pass over all tensors on `threads` threads, the caller's among them. */
int stream(float *const *p, float *const *g, float *const *m, float *const *v, const int64_t *numel, int64_t tensors,
           int64_t threads) {
    Part parts[MAX_THREADS];
    pthread_t others[MAX_THREADS];
    int64_t total = 0;
    if (threads < 1 || threads > MAX_THREADS) return 1;
    for (int64_t t = 0; t < tensors; t++) total += numel[t];
    for (int64_t i = 0; i < threads; i++)
        parts[i] = (Part){p, g, m, v, numel, tensors, total * i / threads, total * (i + 1) / threads};
    for (int64_t i = 1; i < threads; i++)
        if (pthread_create(&others[i], 0, run, &parts[i])) return 2;
    run(&parts[0]);
    for (int64_t i = 1; i < threads; i++) pthread_join(others[i], 0);
    return 0;
}
