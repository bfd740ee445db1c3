/* ops.c - norms over rows, activations of FFNs, sigmoids, rotary positions. */
#include <math.h>

#include "model.h"

typedef struct {
    const Session *s;
    const Norm *norm;
    float *y;
    const float *x; // (n_rows, width)
    size_t width;
} NormJob;

static void norm_range(void *context, int from, int to, int thread)
{
    const NormJob *j = context;
    const Config *c = &j->s->stack->config;
    (void)thread;
    for (size_t t = (size_t)from; t < (size_t)to; t++)
        j->s->k->norm[c->norm](j->y + t * j->width, j->x + t * j->width, j->norm->w, j->norm->b,
                               j->width, c->norm_eps);
}

void norm_rows(Session *s, const Norm *n, float *y, const float *x, int n_rows, int width)
{
    threads_run(s->threads, n_rows, ROW_GRAIN, norm_range, &(NormJob){s, n, y, x, (size_t)width});
}

typedef struct {
    const Session *s;
    float *hidden, *gate; // (n_rows, width)
    size_t width;
} ActJob;

/* What is left to do is silu(gate) * hidden: x sigmoid(a x) is silu(a x) / a. */
static void clamp_swiglu(float *hidden, float *gate, size_t n, float limit)
{
    const float a = 1.702f;
    for (size_t i = 0; i < n; i++) { // a NaN stays one
        float g = gate[i] > limit ? limit : gate[i], u = hidden[i] > limit ? limit : hidden[i];
        gate[i] = a * g;
        hidden[i] = ((u < -limit ? -limit : u) + 1) / a;
    }
}

static void activate_range(void *context, int from, int to, int thread)
{
    const ActJob *j = context;
    const Config *c = &j->s->stack->config;
    const Kernels *k = j->s->k;
    (void)thread;
    for (size_t i = (size_t)from; i < (size_t)to; i++) {
        float *hidden = j->hidden + i * j->width, *gate = j->gate + i * j->width;
        if (c->swiglu_limit > 0)
            clamp_swiglu(hidden, gate, j->width, c->swiglu_limit);
        k->act[c->act](c->gated ? gate : hidden, j->width);
        if (c->gated)
            k->mul(hidden, gate, j->width);
    }
}

void activate_rows(Session *s, float *hidden, float *gate, int n_rows, int width)
{
    threads_run(s->threads, n_rows, ROW_GRAIN, activate_range,
                &(ActJob){s, hidden, gate, (size_t)width});
}

typedef struct {
    const Session *s;
    const Xielu *a;
    float *hidden; // (n_rows, width)
    size_t width;
} XieluJob;

static void xielu_range(void *context, int from, int to, int thread)
{
    const XieluJob *j = context;
    (void)thread;
    j->s->k->xielu(j->hidden + (size_t)from * j->width, (size_t)(to - from) * j->width, j->a);
}

void xielu_rows(Session *s, const Xielu *a, float *hidden, int n_rows, int width)
{
    threads_run(s->threads, n_rows, ROW_GRAIN, xielu_range,
                &(XieluJob){s, a, hidden, (size_t)width});
}

void sigmoid(const Kernels *k, float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = -x[i];
    k->exp_sum(x, n, 0);
    for (size_t i = 0; i < n; i++)
        x[i] = 1 / (1 + x[i]);
}

/* The pair index whose wavelength makes `turns` turns within the original context (Peng et al.
 * 2023, YaRN, eq. 18). */
static double yarn_pair(const Rope *r, double turns)
{
    return r->dim * log(r->orig_seq_len / (turns * 2 * 3.14159265358979323846))
         / (2 * log(r->base));
}

void rope_init(const Stack *stack, int index, bool is_long, float *inv_freq, float *scale)
{
    const Rope *r = &stack->config.ropes[index];
    const float *factors = r->use_factors
                             ? stack->rope_factors[is_long && r->scaling == ROPE_LONGROPE]
                             : NULL;
    double low = 0, high = 0;
    *scale = r->attn_factor;
    if (r->scaling == ROPE_YARN) {
        low = yarn_pair(r, r->beta_fast);
        high = yarn_pair(r, r->beta_slow);
        low = fmax(r->truncate ? floor(low) : low, 0);
        high = fmin(r->truncate ? ceil(high) : high, r->dim - 1);
        *scale = (float)(r->attn_factor * (1 + 0.1 * log(r->factor)));
    }
    for (int i = 0; i < r->dim / 2; i++) {
        double f = pow(r->base, -2.0 * i / r->dim);
        if (factors)
            f /= factors[i];
        if (r->scaling == ROPE_LINEAR) {
            f /= r->factor;
        } else if (r->scaling == ROPE_YARN) { // between the plain and the stretched frequency
            double ramp = fmin(fmax((i - low) / fmax(high - low, 0.001), 0), 1);
            f = f / r->factor * ramp + f * (1 - ramp);
        }
        inv_freq[i] = (float)f;
    }
}

void rope_rotate(float *x, const float *cos_sin, int n_heads, int head_dim, int rope_dim,
                 RopePairing pairing)
{
    int half = rope_dim / 2, step = pairing == ROPE_HALF ? 1 : 2,
        apart = pairing == ROPE_HALF ? half : 1;
    for (int h = 0; h < n_heads; h++, x += head_dim)
        for (int i = 0; i < half; i++) {
            float c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
            float a = x[i * step], b = x[i * step + apart];
            x[i * step] = a * c - b * s;
            x[i * step + apart] = b * c + a * s;
        }
}
