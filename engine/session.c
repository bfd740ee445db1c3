/* session.c - one use of a model: its parameters, scratch memory and cache, in one allocation.
 *
 * Pages of the arena are touched when they are first used, so a long context costs memory only as
 * it fills.
 */
#include <math.h>
#include <string.h>

#include "model.h"

static size_t max_of(const Model *m, size_t (*get)(const Config *, const LayerConfig *))
{
    size_t max = 0;
    for (int i = 0; i < m->config.n_layers; i++) {
        size_t v = get(&m->config, &m->config.layers[i]);
        max = v > max ? v : max;
    }
    return max;
}

static size_t ffn_width(const Config *c, const LayerConfig *l)
{
    (void)c;
    return (size_t)l->hidden_dim;
}
static size_t head_count(const Config *c, const LayerConfig *l)
{
    (void)c;
    return (size_t)l->n_heads;
}

/* Reserve everything; run once to add up the sizes and once to receive the pieces. */
static void plan(Session *s)
{
    const Model *m = s->model;
    const Config *c = &m->config;
    const SessionParams *p = &s->params;
    Arena *a = &s->arena;
    size_t T = (size_t)p->max_batch, R = (size_t)p->max_rows, n_logits = (size_t)p->max_logits,
           dim = (size_t)c->dim, half = (size_t)c->rope_dim / 2;
    size_t n_layers = (size_t)c->n_layers, f = sizeof(float);

    cache_plan(&s->cache, a);
    size_t hidden = max_of(m, ffn_width), cols = hidden > dim ? hidden : dim,
           att = max_of(m, att_width);
    s->pos = arena_reserve(a, T, sizeof *s->pos);
    s->x = arena_reserve(a, T * dim, f);
    s->xn = arena_reserve(a, (R > n_logits ? R : n_logits) * dim, f);
    s->q = arena_reserve(a, T * max_of(m, q_width), f);
    s->k_new = arena_reserve(a, R * max_of(m, k_width), f);
    s->v_new = arena_reserve(a, R * max_of(m, v_width), f);
    s->att = arena_reserve(a, R * att, f);
    s->attn_out = arena_reserve(a, R * dim, f);
    s->hidden = arena_reserve(a, R * hidden, f);
    s->gate = arena_reserve(a, R * hidden, f);
    s->logits = arena_reserve(a, n_logits * (size_t)c->vocab_size, f);
    if (p->keep_soft)
        s->soft = arena_reserve(a, T * max_of(m, head_count) * 2, f);
    s->inv_freq = arena_reserve(a, 2 * 2 * half, f);
    s->cos_sin = arena_reserve(a, 2 * T * half * 2, f);
    s->rope_scale = arena_reserve(a, 2, f);
    s->alibi_slopes = arena_reserve(a, n_layers * max_of(m, head_count), f);
    s->partial = arena_reserve(a, attention_partial(c, p->seq_len), f);

    cols = att > cols ? att : cols;
    s->x8 = arena_reserve(a, (R > n_logits ? R : n_logits) * (cols / 32), sizeof *s->x8);
    s->x16 = arena_reserve(a, (R > n_logits ? R : n_logits) * cols, sizeof *s->x16);
    size_t for_matmul = GEMM_ROWS * (cols + PANEL_PAD), for_attention = attention_scratch(c);
    s->scratch_floats = (for_matmul > for_attention ? for_matmul : for_attention) + 16;
    s->scratch = arena_reserve(a, (size_t)p->n_threads * s->scratch_floats, f);
}

static void set_sizes(Session *s, const Model *m, const SessionParams *p)
{
    *s = (Session){.model = m, .params = *p, .k = p->kernels};
    if (!p->max_rows || p->max_rows > p->max_batch)
        s->params.max_rows = p->max_batch;
    cache_size(&s->cache, &m->config, p);
}

size_t session_bytes(const Model *m, const SessionParams *p)
{
    Session s;
    set_sizes(&s, m, p);
    plan(&s);
    return s.arena.overflow ? SIZE_MAX : s.arena.used;
}

/* Head h's bias falls by slope(h) per position of distance: powers of 2^(-max/n) for the n heads
 * that are a power of two, and the odd powers of its square root for the rest (Press et al. 2022,
 * as BLOOM and MPT implement it). */
static float alibi_slope(int h, int n_heads, float max)
{
    int n = 1;
    while (n * 2 <= n_heads)
        n *= 2;
    float exponent = h < n ? -max / (float)n * (float)(h + 1)
                           : -max / 2 / (float)n * (float)(2 * (h - n) + 1);
    return exp2f(exponent);
}

int session_init(Session *s, const Model *m, const SessionParams *p, Err *e)
{
    const Config *c = &m->config;
    set_sizes(s, m, p);
    if (c->pos == POS_LEARNED && p->seq_len > c->seq_len)
        return err_set(e, EXIT_USAGE,
                       "context: got %d positions, want at most the %d that the model has learned",
                       p->seq_len, c->seq_len);
    plan(s);
    if (arena_commit(&s->arena, e))
        return -1;
    plan(s);
    s->threads.n_threads = threads_granted(p->n_threads);
    s->threads.stop = p->stop;

    s->max_heads = (int)max_of(m, head_count);
    for (int i = 0; i < c->n_layers; i++) {
        const LayerConfig *l = &c->layers[i];
        for (int h = 0; c->pos == POS_ALIBI && h < l->n_heads; h++)
            s->alibi_slopes[i * s->max_heads + h] = alibi_slope(h, l->n_heads, c->alibi_max);
    }
    if (c->pos == POS_ROPE)
        for (int i = 0; i < 2 * c->n_ropes; i++)
            rope_init(m, i / 2, i % 2, s->inv_freq + (size_t)i * (size_t)(c->rope_dim / 2),
                      &s->rope_scale[i / 2]);
    return 0;
}

void session_free(Session *s)
{
    arena_free(&s->arena);
    *s = (Session){0};
}

float *session_scratch(const Session *s, int thread)
{
    return s->scratch + (size_t)thread * s->scratch_floats;
}
