/* The memory limit of the norm benchmarks: plain loops with the traffic of add_rms_norm, and next to no arithmetic.
 *
 * Forward reads x and update and writes stream and normed; backward reads both gradients and the stream and writes a gradient:
 * 32 bytes an element in float32. Each thread takes one even part. Nothing is unrolled, prefetched or stored by hand, so each
 * line that is written is read first: what stores past the caches can be faster than this.
 */
#include <pthread.h>
#include <stdint.h>

#define MAX_THREADS 256

typedef struct {
    const float *x, *update, *grad_normed, *grad_stream;
    float *stream, *normed, *grad_x;
    int64_t begin, end;
    int backward;
} Part;

static void forward(const float *restrict x, const float *restrict update, float *restrict stream, float *restrict normed,
                    int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        stream[i] = x[i] + update[i];
        normed[i] = 0.5f * stream[i];
    }
}

static void backward(const float *restrict grad_normed, const float *restrict grad_stream, const float *restrict stream,
                     float *restrict grad_x, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        grad_x[i] = grad_stream[i] + 0.5f * grad_normed[i] - 0.1f * stream[i];
}

static void *run(void *argument) {
    const Part *p = argument;
    int64_t b = p->begin, n = p->end - p->begin;
    if (p->backward)
        backward(p->grad_normed + b, p->grad_stream + b, p->stream + b, p->grad_x + b, n);
    else
        forward(p->x + b, p->update + b, p->stream + b, p->normed + b, n);
    return 0;
}

/* One forward and one backward of n elements on `threads` threads, the caller's among them. */
int norm_stream(const float *x, const float *update, float *stream, float *normed, const float *grad_normed,
                const float *grad_stream, float *grad_x, int64_t n, int64_t threads) {
    Part parts[MAX_THREADS];
    pthread_t others[MAX_THREADS];
    if (threads < 1 || threads > MAX_THREADS) return 1;
    for (int pass = 0; pass < 2; pass++) {
        for (int64_t i = 0; i < threads; i++)
            parts[i] = (Part){x, update, grad_normed, grad_stream, stream, normed, grad_x, n * i / threads,
                              n * (i + 1) / threads, pass};
        for (int64_t i = 1; i < threads; i++)
            if (pthread_create(&others[i], 0, run, &parts[i])) return 2;
        run(&parts[0]);
        for (int64_t i = 1; i < threads; i++) pthread_join(others[i], 0);
    }
    return 0;
}
