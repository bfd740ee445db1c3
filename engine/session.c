/* session.c - one use of a stack: its parameters, scratch memory and cache, in one allocation.
 *
 * Pages of the arena are touched when they are first used, so a long context costs memory only as
 * it fills.
 */
#include <assert.h>
#include <math.h>
#include <string.h>

#include "model.h"

static size_t ffn_width(const LayerConfig *l)
{
    return (size_t)l->hidden_dim;
}

static size_t expert_width(const LayerConfig *l)
{
    return (size_t)l->expert_dim;
}

static size_t head_count(const LayerConfig *l)
{
    return (size_t)l->n_heads;
}

static size_t conv_width(const LayerConfig *l)
{
    return (size_t)l->rec.conv_dim;
}

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Values of the widest input of a product. */
static size_t widest_input(const Config *c)
{
    return max_size(max_size((size_t)c->dim, max_size(layers_max(c, heads_width),
                                                      max_size(layers_max(c, q_latent_width),
                                                               layers_max(c, expanded_width)))),
                    max_size(max_size(layers_max(c, ffn_width), layers_max(c, expert_width)),
                             (size_t)c->per_layer_dim));
}

static void plan_routing(Routing *x, const Config *c, size_t R, Arena *a)
{
    size_t n = (size_t)c->experts.n, used = (size_t)c->experts.n_used, f = sizeof(float);
    size_t dim = (size_t)c->dim, hidden = layers_max(c, expert_width), copies = 0;
    if (!n)
        return;
    if (!size_mul(R, used, &copies))
        a->overflow = true;
    x->probs = arena_reserve(a, R * n, f);
    x->ranks = arena_reserve(a, R * n, f);
    x->chosen = arena_reserve(a, copies, sizeof *x->chosen);
    x->weights = arena_reserve(a, copies, f);
    x->shared = arena_reserve(a, R, f);
    x->first = arena_reserve(a, n + 1, sizeof *x->first);
    x->slots = arena_reserve(a, copies, sizeof *x->slots);
    x->load = arena_reserve(a, (size_t)c->n_layers * n, sizeof *x->load);
    x->x = arena_reserve(a, copies * dim, f);
    x->y = arena_reserve(a, copies * dim, f);
    x->hidden = arena_reserve(a, copies * hidden, f);
    x->gate = arena_reserve(a, copies * hidden, f);
    x->matrices = arena_reserve(a, 2 * n, sizeof *x->matrices);
    x->products = arena_reserve(a, 2 * n, sizeof *x->products);
}

/* Reserve everything; run once to add up the sizes and once to receive the pieces. */
static void plan(Session *s)
{
    const Config *c = &s->stack->config;
    const SessionParams *p = &s->params;
    Arena *a = &s->arena;
    size_t T = (size_t)p->max_batch, R = (size_t)p->max_rows, n_logits = (size_t)p->max_logits;
    size_t dim = (size_t)c->dim, half = (size_t)s->max_rope_dim / 2, f = sizeof(float);
    size_t heads = layers_max(c, head_count), per_layer = (size_t)c->per_layer_dim;
    size_t hidden = max_size(layers_max(c, ffn_width), per_layer);

    cache_plan(&s->cache, a);
    s->pos = arena_reserve(a, T, sizeof *s->pos);
    s->span_of = arena_reserve(a, T, sizeof *s->span_of);
    s->spans = arena_reserve(a, (size_t)p->n_seqs, sizeof *s->spans);
    s->x = arena_reserve(a, T * dim, f);
    s->xn = arena_reserve(a, max_size(R, n_logits) * dim, f);
    s->q = arena_reserve(a, T * layers_max(c, q_width), f);
    s->k_new = arena_reserve(a, R * layers_max(c, k_width), f);
    s->v_new = arena_reserve(a, R * layers_max(c, v_width), f);
    s->q_and_gate = arena_reserve(a, c->attn_gate * R * 2 * layers_max(c, q_width), f);
    s->attn_gate = arena_reserve(a, c->attn_gate * T * layers_max(c, q_width), f);
    s->mix_in = arena_reserve(a, R * layers_max(c, mix_in_width), f);
    s->conv_out = arena_reserve(a, R * layers_max(c, conv_width), f);
    s->heads = arena_reserve(a, R * layers_max(c, heads_width), f);
    s->q_latent = arena_reserve(a, R * layers_max(c, q_latent_width), f);
    s->expanded = arena_reserve(a, R * layers_max(c, expanded_width), f);
    if (layers_max(c, expanded_width)) {
        s->head_matrices = arena_reserve(a, heads, sizeof *s->head_matrices);
        s->head_products = arena_reserve(a, heads, sizeof *s->head_products);
    }
    s->attn_out = arena_reserve(a, R * dim, f);
    s->hidden = arena_reserve(a, R * hidden, f);
    s->gate = arena_reserve(a, R * hidden, f);
    s->per_layer = arena_reserve(a, T * (size_t)c->n_layers * per_layer, f);
    plan_routing(&s->routing, c, R, a);
    s->logits = arena_reserve(a, n_logits * (size_t)c->vocab_size, f);
    if (p->keep_softmax)
        s->softmax = arena_reserve(a, T * heads * 2, f);
    s->inv_freq = arena_reserve(a, MAX_ROPES * 2 * half, f);
    s->cos_sin = arena_reserve(a, MAX_ROPES * T * half * 2, f);
    s->rope_scale = arena_reserve(a, MAX_ROPES, f);
    s->alibi_slopes = arena_reserve(a, (size_t)c->n_layers * heads, f);
    s->partial = arena_reserve(a, s->partial_floats, f);
    s->x8 = arena_reserve(a, s->packed_size / 32, sizeof *s->x8);
    s->x16 = arena_reserve(a, s->packed_size, sizeof *s->x16);
}

static void set_sizes(Session *s, const Stack *stack, const SessionParams *p)
{
    const Config *c = &stack->config;
    *s = (Session){.stack = stack, .params = *p, .k = p->kernels, .threads = p->threads};
    if (!p->max_rows || p->max_rows > p->max_batch)
        s->params.max_rows = p->max_batch;
    for (int i = 0; i < c->n_ropes; i++)
        s->max_rope_dim = c->ropes[i].dim > s->max_rope_dim ? c->ropes[i].dim : s->max_rope_dim;
    size_t rows = max_size((size_t)s->params.max_rows, (size_t)p->max_logits);
    size_t copies = (size_t)s->params.max_rows * (size_t)c->experts.n_used, packed = 0;
    if (!size_mul(rows, widest_input(c), &s->packed_size)
        || !size_mul(copies, max_size((size_t)c->dim, layers_max(c, expert_width)), &packed))
        s->arena.overflow = true;
    s->packed_size = max_size(s->packed_size, packed);
    s->partial_floats = attention_partial(c, p->seq_len);
    s->max_heads = (int)layers_max(c, head_count);
    cache_size(&s->cache, c, p);
}

size_t session_bytes(const Stack *stack, const SessionParams *p)
{
    Session s;
    set_sizes(&s, stack, p);
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

int session_init(Session *s, const Stack *stack, const SessionParams *p, Err *e)
{
    const Config *c = &stack->config;
    set_sizes(s, stack, p);
    if (c->pos == POS_LEARNED && p->seq_len > c->seq_len)
        return err_set(e, EXIT_USAGE,
                       "context: got %d positions, want at most the %d that the model has learned",
                       p->seq_len, c->seq_len);
    if (c->seq_limit && p->seq_len > c->seq_len)
        return err_set(e, EXIT_USAGE,
                       "context: got %d positions, want at most %d: in longer texts this model's "
                       "rope changes with the length, which is not supported",
                       p->seq_len, c->seq_len);
    plan(s);
    if (arena_commit(&s->arena, e))
        return -1;
    plan(s);
    size_t scratch = max_size(matmul_scratch(widest_input(c)), attention_scratch(c));
    if (threads_prepare(s->threads, scratch, e)) {
        session_free(s);
        return -1;
    }
    for (int i = 0; i < c->n_layers; i++) {
        const LayerConfig *l = &c->layers[i];
        for (int h = 0; c->bias == BIAS_ALIBI && h < l->n_heads; h++)
            s->alibi_slopes[i * s->max_heads + h] = alibi_slope(h, l->n_heads, c->alibi_max);
    }
    for (int i = 0; c->pos == POS_ROPE && i < 2 * c->n_ropes; i++)
        rope_init(stack, i / 2, i % 2, s->inv_freq + (size_t)(i * (s->max_rope_dim / 2)),
                  &s->rope_scale[i / 2]);
    return 0;
}

void session_free(Session *s)
{
    arena_free(&s->arena);
    *s = (Session){0};
}

void session_hook(Session *s, HookPoint point, int (*fn)(void *context, const HookRows *rows),
                  void *context)
{
    assert(s->n_hooks < MAX_HOOKS);
    s->hooks[s->n_hooks++] = (Hook){point, fn, context};
}
