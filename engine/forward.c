/* forward.c - the decoder graph.
 *
 *   x = embedding(token) * scale [+ position row] [norm]
 *   for each layer:
 *       h = norm(x)
 *       q, k, v = W h + b  [clamp] [norm of q and k] [rotate q and k]      k and v go to the cache
 *       a = Wo attention(q)  [norm]
 *       sequential:  x += a;  f = ffn(norm(x)) [norm];  x += f
 *       parallel:    f = ffn(norm(x) or h) [norm];  x += a + f
 *   logits = W norm(x)  [scale] [soft cap]                                 of the rows that want
 * them
 *
 *   ffn(h) = W_down act(W_up h)   or, gated,   W_down (act(W_gate h) * W_up h)
 *
 * What is in brackets is a field of Config; no family is named here.
 */
#include <limits.h>
#include <math.h>
#include <string.h>

#include "model.h"
#include "base/blocks.h"

/* Rows that go through a layer together, and what their threads need to know: n rows from row
 * `from` of the batch. What belongs to the whole batch (pos, x, q, cos_sin, soft) is found at from
 * + t, everything else at t. */
typedef struct {
    Session *s;
    const Batch *b;
    int layer, from, n;
} Rows;

static int seq_of(const Batch *b, int t)
{
    return b->seqs ? b->seqs[t] : 0;
}

static bool wants_logits(const Batch *b, int t)
{
    return b->wanted ? b->wanted[t]
                     : b->want == WANT_ALL || (b->want == WANT_LAST && t == b->n - 1);
}

/* Embeddings of the rows -> s->x (T, dim). */
static void embed_rows(void *context, int from, int to, int thread)
{
    Session *s = ((Rows *)context)->s;
    const Batch *b = ((Rows *)context)->b;
    const Model *m = s->model;
    const Config *c = &m->config;
    size_t dim = (size_t)c->dim;
    (void)thread;
    for (int i = from; i < to; i++) {
        int t = ((Rows *)context)->from + i;
        float *x = s->x + (size_t)t * dim, *row = s->xn + (size_t)i * dim;
        if (b->embd) {
            memcpy(x, b->embd + (size_t)t * dim, dim * sizeof *x);
        } else {
            const Tensor *w = &m->token_embd;
            s->k->dequantize[w->type]((const char *)w->data + (size_t)b->tokens[t] * w->row_bytes,
                                      x, dim);
            for (size_t j = 0; j < dim; j++)
                x[j] *= c->embd_scale;
        }
        if (m->pos_embd.data) {
            size_t at = (size_t)(s->pos[t] + c->pos_offset);
            s->k->dequantize[m->pos_embd.type]((const char *)m->pos_embd.data
                                                   + at * m->pos_embd.row_bytes,
                                               row, dim);
            for (size_t j = 0; j < dim; j++)
                x[j] += row[j];
        }
    }
}

/* cos and sin of each row's angles -> s->cos_sin. The angle is formed in float, as transformers
 * does. */
static void turn_rows(void *context, int from, int to, int thread)
{
    Session *s = ((Rows *)context)->s;
    const Batch *b = ((Rows *)context)->b;
    int half = s->model->config.rope_dim / 2;
    (void)thread;
    for (int t = from; t < to; t++)
        for (int r = 0; r < s->model->config.n_ropes; r++) {
            float *out = s->cos_sin
                       + ((size_t)r * (size_t)s->params.max_batch + (size_t)t) * (size_t)half * 2;
            const float *inv_freq = s->inv_freq
                                  + (2 * r + s->cache.seqs[seq_of(b, t)].is_long) * half;
            for (int i = 0; i < half; i++) {
                double angle = (float)s->pos[t] * inv_freq[i];
                out[2 * i] = (float)cos(angle) * s->rope_scale[r];
                out[2 * i + 1] = (float)sin(angle) * s->rope_scale[r];
            }
        }
}

/* Note that a row has met a number that is not finite; the first of all rows counts. */
static void note_bad(Session *s, int t)
{
    int first = atomic_load_explicit(&s->bad_row, memory_order_relaxed);
    while (t < first && !atomic_compare_exchange_weak(&s->bad_row, &first, t))
        ;
}

/* Look at what the residual stream of some rows has become. */
static void check_rows(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    size_t dim = (size_t)r->s->model->config.dim;
    (void)thread;
    for (int t = r->from + from; t < r->from + to; t++)
        if (largest_bits(r->s->x + (size_t)t * dim, dim) >= F32_INF_BITS)
            note_bad(r->s, t);
}

/* Look at a row's queries, keys and values before the latter are cached: with a number that is not
 * finite among them rows before this one would be spoilt too (0 * NaN is NaN). */
static void check_qkv(Session *s, int t, const float *q, size_t nq, const float *k, size_t nk,
                      const float *v, size_t nv)
{
    if (largest_bits(q, nq) >= F32_INF_BITS || largest_bits(k, nk) >= F32_INF_BITS
        || largest_bits(v, nv) >= F32_INF_BITS)
        note_bad(s, t);
}

static void clamp(float *x, size_t n, float limit)
{
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i];
}

/* Normalise the heads of one row, x (n_heads, key_dim), by the kind of norm that the model has. */
static void norm_heads(const Session *s, const Norm *n, float *x, int n_heads)
{
    const Config *c = &s->model->config;
    size_t width = (size_t)c->key_dim;
    if (c->qk_norm == QK_NORM_FULL) {
        s->k->norm[c->norm](x, x, n->w, n->b, (size_t)n_heads * width, c->norm_eps);
        return;
    }
    for (int h = 0; h < n_heads; h++, x += width) {
        size_t own = c->qk_norm == QK_NORM_HEADS ? (size_t)h * width : 0;
        s->k->norm[c->norm](x, x, n->w + own, n->b ? n->b + own : NULL, width, c->norm_eps);
    }
}

/* Fresh queries and keys: clamp, norm, rotate; keys and values go to the cache. */
static void place_rows(void *context, int from, int to, int thread)
{
    Session *s = ((Rows *)context)->s;
    const Batch *b = ((Rows *)context)->b;
    int layer = ((Rows *)context)->layer;
    const Config *c = &s->model->config;
    const Layer *l = &s->model->layers[layer];
    const LayerConfig *lc = &c->layers[layer];
    size_t nq = q_width(c, lc), nk = k_width(c, lc), nv = v_width(c, lc);
    (void)thread;
    for (int i = from; i < to; i++) {
        int t = ((Rows *)context)->from + i;
        float *q = s->q + (size_t)t * nq, *k = s->k_new + (size_t)i * nk,
              *v = s->v_new + (size_t)i * nv;
        if (c->clamp_qkv > 0) {
            clamp(q, nq, c->clamp_qkv);
            clamp(k, nk, c->clamp_qkv);
            clamp(v, nv, c->clamp_qkv);
        }
        if (l->q_norm.on)
            norm_heads(s, &l->q_norm, q, lc->n_heads);
        if (l->k_norm.on)
            norm_heads(s, &l->k_norm, k, lc->n_kv_heads);
        if (lc->rope >= 0) {
            const float *cs = s->cos_sin
                            + ((size_t)lc->rope * (size_t)s->params.max_batch + (size_t)t)
                                  * (size_t)c->rope_dim;
            rope_rotate(q, cs, lc->n_heads, c->key_dim, c->rope_dim, c->rope_pairing);
            rope_rotate(k, cs, lc->n_kv_heads, c->key_dim, c->rope_dim, c->rope_pairing);
        }
        check_qkv(s, t, q, nq, k, nk, v, nv);
        cache_store(&s->cache, layer, seq_of(b, t), s->pos[t], k, v);
    }
}

/* Attention of some rows over h (n, dim) -> s->attn_out (n, dim). */
static void attend(Rows *r, const float *h)
{
    Session *s = r->s;
    const Config *c = &s->model->config;
    const Layer *l = &s->model->layers[r->layer];
    const LayerConfig *lc = &c->layers[r->layer];
    size_t nq = q_width(c, lc), na = att_width(c, lc), from = (size_t)r->from;
    matmul(s, h, r->n,
           (MatmulOut[]){{&l->wq, s->q + from * nq}, {&l->wk, s->k_new}, {&l->wv, s->v_new}}, 3);
    threads_run(&s->threads, r->n, ROW_GRAIN, place_rows, r);
    for (int i = 0, n; i < r->n; i += n) { // one call for each sequence's rows
        int t = r->from + i, seq = seq_of(r->b, t);
        for (n = 1; i + n < r->n && seq_of(r->b, t + n) == seq; n++)
            ;
        float *soft = s->soft ? s->soft + (size_t)t * (size_t)s->max_heads * 2 : NULL;
        attention(s, r->layer, seq, s->pos[t], n, s->q + (size_t)t * nq, s->att + (size_t)i * na,
                  soft);
    }
    matmul(s, s->att, r->n, (MatmulOut[]){{&l->wo, s->attn_out}}, 1);
    if (l->attn_post_norm.on)
        norm_rows(s, &l->attn_post_norm, s->attn_out, s->attn_out, r->n, c->dim);
}

/* act(up), or act(gate) * up, in s->hidden. */
static void activate_rows(void *context, int from, int to, int thread)
{
    Session *s = ((Rows *)context)->s;
    const Config *c = &s->model->config;
    size_t hidden = (size_t)c->layers[((Rows *)context)->layer].hidden_dim;
    (void)thread;
    for (size_t t = (size_t)from; t < (size_t)to; t++) {
        float *up = s->hidden + t * hidden, *gate = s->gate + t * hidden;
        s->k->act[c->act](c->gated ? gate : up, hidden);
        if (c->gated)
            s->k->mul(up, gate, hidden);
    }
}

/* FFN of some rows over h (n, dim) -> out (n, dim), which may be h. */
static void ffn(Rows *r, const float *h, float *out)
{
    Session *s = r->s;
    const Layer *l = &s->model->layers[r->layer];
    MatmulOut in[] = {{&l->w_up, s->hidden}, {&l->w_gate, s->gate}};
    matmul(s, h, r->n, in, s->model->config.gated ? 2 : 1);
    threads_run(&s->threads, r->n, ROW_GRAIN, activate_rows, r);
    matmul(s, s->hidden, r->n, (MatmulOut[]){{&l->w_down, out}}, 1);
    if (l->ffn_post_norm.on)
        norm_rows(s, &l->ffn_post_norm, out, out, r->n, s->model->config.dim);
}

/* x += scale * y for some rows of x and y (n, dim). */
typedef struct {
    const Session *s;
    float *x;
    const float *y;
} Sum;

static void add_rows(void *context, int from, int to, int thread)
{
    const Sum *a = context;
    float scale = a->s->model->config.residual_scale;
    size_t dim = (size_t)a->s->model->config.dim;
    (void)thread;
    for (size_t i = (size_t)from * dim; i < (size_t)to * dim; i++)
        a->x[i] += scale * a->y[i];
}

static void add(Session *s, float *x, const float *y, int n)
{
    threads_run(&s->threads, n, ROW_GRAIN, add_rows, &(Sum){s, x, y});
}

/* The normalised input of a sublayer: a copy of x in s->xn, or x itself where there is no norm. */
static const float *normed(Session *s, const Norm *norm, const float *x, int n)
{
    if (!norm->on)
        return x;
    norm_rows(s, norm, s->xn, x, n, s->model->config.dim);
    return s->xn;
}

static void run_layer(Rows *r)
{
    Session *s = r->s;
    const Config *c = &s->model->config;
    const Layer *l = &s->model->layers[r->layer];
    float *x = s->x + (size_t)r->from * (size_t)c->dim;
    const float *h = normed(s, &l->attn_norm, x, r->n);
    attend(r, h);
    if (!c->parallel)
        add(s, x, s->attn_out, r->n);
    if (!c->parallel || l->ffn_norm.on)
        h = normed(s, &l->ffn_norm, x, r->n);
    ffn(r, h, s->xn);
    if (c->parallel)
        add(s, x, s->attn_out, r->n);
    add(s, x, s->xn, r->n);
    threads_run(&s->threads, r->n, ROW_GRAIN, check_rows, r);
}

/* Logits of the wanted rows -> s->logits; returns how many. */
static int head(Session *s, const Batch *b)
{
    const Model *m = s->model;
    const Config *c = &m->config;
    size_t dim = (size_t)c->dim, vocab = (size_t)c->vocab_size;
    int n = 0;
    for (int t = 0; t < b->n; t++)
        if (wants_logits(b, t))
            memmove(s->x + (size_t)n++ * dim, s->x + (size_t)t * dim, dim * sizeof *s->x);
    if (!n)
        return 0;
    const float *h = normed(s, &m->final_norm, s->x, n);
    matmul(s, h, n, (MatmulOut[]){{&m->output, s->logits}}, 1);
    if (c->logit_scale != 1)
        for (size_t i = 0; i < (size_t)n * vocab; i++)
            s->logits[i] *= c->logit_scale;
    if (c->logit_soft_cap > 0)
        s->k->soft_cap(s->logits, (size_t)n * vocab, c->logit_soft_cap);
    for (int t = b->n - 1, i = n; i > 0; t--)
        if (wants_logits(b, t)
            && largest_bits(s->logits + (size_t)--i * vocab, vocab) >= F32_INF_BITS)
            note_bad(s, t);
    return n;
}

/* Check the rows and give each its position, s->pos (T); nothing is changed on failure but blocks
 * in reserve. */
static int place(Session *s, const Batch *b, Err *e)
{
    int n_wanted = 0;
    if (b->n < 1 || b->n > s->params.max_batch)
        return err_set(e, EXIT_USAGE, "batch: got %d rows, want 1 to %d", b->n,
                       s->params.max_batch);
    for (int t = 0; t < b->n; t++) {
        int seq = seq_of(b, t);
        if (b->tokens && (b->tokens[t] < 0 || b->tokens[t] >= s->model->config.vocab_size))
            return err_set(e, EXIT_USAGE, "token: got %d, want 0 to %d", b->tokens[t],
                           s->model->config.vocab_size - 1);
        bool follows = t > 0 && seq == seq_of(b, t - 1);
        s->pos[t] = follows ? s->pos[t - 1] + 1 : s->cache.seqs[seq].n_pos;
        n_wanted += wants_logits(b, t);
        if (cache_grow(&s->cache, seq, s->pos[t] + 1, e))
            return -1;
    }
    if (n_wanted > s->params.max_logits)
        return err_set(e, EXIT_USAGE, "batch: got %d rows with logits, want at most %d", n_wanted,
                       s->params.max_logits);
    return 0;
}

typedef struct {
    Session *s;
    const Batch *b;
    int n_logits; // -1 when the watch, a signal or a row that is not finite has ended it
    Err *e;
} Graph;

/* -1 if a row has met a number that is not finite, by `where`. */
static int check_finite(const Graph *g, const char *where, int layer)
{
    const Session *s = g->s;
    int t = atomic_load(&s->bad_row);
    char token[40] = "", layers[32] = "";
    if (t == INT_MAX)
        return 0;
    if (g->b->tokens)
        snprintf(token, sizeof token, " (token %d)", g->b->tokens[t]);
    if (layer >= 0)
        snprintf(layers, sizeof layers, " of layer %d", layer);
    return err_set(g->e, EXIT_IO,
                   "position %d%s: the %s%s are not finite (NaN or infinity), as with damaged "
                   "weights",
                   s->pos[t], token, where, layers);
}

/* Take max_rows rows at a time through fn. */
static void in_parts(Session *s, const Batch *b, int layer, void (*fn)(Rows *r))
{
    int step = s->params.max_rows;
    for (int from = 0; from < b->n; from += step)
        fn(&(Rows){s, b, layer, from, b->n - from < step ? b->n - from : step});
}

static void embed(Rows *r)
{
    const Model *m = r->s->model;
    float *x = r->s->x + (size_t)r->from * (size_t)m->config.dim;
    threads_run(&r->s->threads, r->n, ROW_GRAIN, embed_rows, r);
    if (m->embd_norm.on)
        norm_rows(r->s, &m->embd_norm, x, x, r->n, m->config.dim);
    threads_run(&r->s->threads, r->n, ROW_GRAIN, check_rows, r);
}

static void run_graph(void *context)
{
    Graph *g = context;
    Session *s = g->s;
    const Config *c = &s->model->config;
    g->n_logits = -1;
    in_parts(s, g->b, 0, embed);
    if (check_finite(g, "embeddings", -1))
        return;
    if (c->pos == POS_ROPE)
        threads_run(&s->threads, g->b->n, ROW_GRAIN, turn_rows, &(Rows){.s = s, .b = g->b});
    for (int i = 0; i < c->n_layers; i++) {
        in_parts(s, g->b, i, run_layer);
        if (stop_wanted(&s->params) || check_finite(g, "results", i)
            || (s->watch && s->watch(s->watch_context, s, i)))
            return;
    }
    g->n_logits = head(s, g->b);
    if (check_finite(g, "logits", -1))
        g->n_logits = -1;
}

int forward(Session *s, const Batch *b, Err *e)
{
    Graph g = {s, b, 0, e};
    if (place(s, b, e))
        return -1;
    s->n_rows = b->n;
    atomic_store(&s->bad_row, INT_MAX);
    threads_team(&s->threads, run_graph, &g);
    if (stop_wanted(&s->params)) { // whatever was left out
        e->code = EXIT_OK;
        return -1;
    }
    if (g.n_logits < 0)
        return -1;
    for (int t = 0; t < b->n; t++)
        s->cache.seqs[seq_of(b, t)].n_pos = s->pos[t] + 1;
    return g.n_logits;
}
