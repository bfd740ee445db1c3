/* forward.c - the decoder graph.
 *
 *   x = embedding(token) * scale [+ position row] [norm]
 *   for each layer:
 *       h = norm(x)
 *       q, k, v = W h + b  [clamp] [norm of q and k] [rotate q and k]      k and v go to the cache
 *       a = Wo attention(q)  [norm]
 *       sequential:  x += a;  f = ffn(norm(x)) [norm];  x += f
 *       parallel:    f = ffn(norm(x) or h) [norm];  x += a + f
 *   logits = W norm(x)  [scale] [soft cap]                                 of the rows that want them
 *
 *   ffn(h) = W_down act(W_up h)   or, gated,   W_down (act(W_gate h) * W_up h)
 *
 * What is in brackets is a field of Config; no family is named here.
 */
#include <math.h>
#include <string.h>

#include "model.h"

/* What a range of rows needs to know. */
typedef struct {
    Session *s;
    const Batch *b;
    int layer;
} Rows;

static int seq_of(const Batch *b, int t)
{
    return b->seqs ? b->seqs[t] : 0;
}

static bool wants_logits(const Batch *b, int t)
{
    return b->wanted ? b->wanted[t] : b->want_all || t == b->n - 1;
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
    for (int t = from; t < to; t++) {
        float *x = s->x + (size_t)t * dim, *row = s->xn + (size_t)t * dim;
        if (b->embd) {
            memcpy(x, b->embd + (size_t)t * dim, dim * sizeof *x);
        } else {
            const Tensor *w = &m->token_embd;
            s->k->dequantize[w->type]((const char *)w->data + (size_t)b->tokens[t] * w->row_bytes, x, dim);
            for (size_t i = 0; i < dim; i++)
                x[i] *= c->embd_scale;
        }
        if (m->pos_embd.data) {
            size_t at = (size_t)(s->pos[t] + c->pos_offset);
            s->k->dequantize[m->pos_embd.type]((const char *)m->pos_embd.data + at * m->pos_embd.row_bytes, row, dim);
            for (size_t i = 0; i < dim; i++)
                x[i] += row[i];
        }
    }
}

/* cos and sin of each row's angles -> s->cos_sin. The angle is formed in float, as transformers does. */
static void turn_rows(void *context, int from, int to, int thread)
{
    Session *s = ((Rows *)context)->s;
    int half = s->model->config.rope_dim / 2;
    (void)thread;
    for (int t = from; t < to; t++)
        for (int r = 0; r < s->model->config.n_ropes; r++) {
            float *out = s->cos_sin + ((size_t)r * (size_t)s->params.max_batch + (size_t)t) * (size_t)half * 2;
            for (int i = 0; i < half; i++) {
                double angle = (float)s->pos[t] * s->inv_freq[r * half + i];
                out[2 * i] = (float)cos(angle) * s->rope_scale[r];
                out[2 * i + 1] = (float)sin(angle) * s->rope_scale[r];
            }
        }
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
    for (int t = from; t < to; t++) {
        float *q = s->q + (size_t)t * nq, *k = s->k_new + (size_t)t * nk, *v = s->v_new + (size_t)t * nv;
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
                            + ((size_t)lc->rope * (size_t)s->params.max_batch + (size_t)t) * (size_t)c->rope_dim;
            rope_rotate(q, cs, lc->n_heads, c->key_dim, c->rope_dim, c->rope_pairing);
            rope_rotate(k, cs, lc->n_kv_heads, c->key_dim, c->rope_dim, c->rope_pairing);
        }
        session_store(s, layer, seq_of(b, t), s->pos[t], k, v);
    }
}

/* Attention of layer i over h (T, dim) -> s->attn_out (T, dim). */
static void attend(Session *s, int i, const float *h, const Batch *b)
{
    const Config *c = &s->model->config;
    const Layer *l = &s->model->layers[i];
    const LayerConfig *lc = &c->layers[i];
    size_t nq = q_width(c, lc), na = att_width(c, lc);
    matmul(s, h, b->n, (MatmulOut[]){{&l->wq, s->q}, {&l->wk, s->k_new}, {&l->wv, s->v_new}}, 3);
    threads_run(&s->threads, b->n, ROW_GRAIN, place_rows, &(Rows){s, b, i});
    for (int t = 0, n; t < b->n; t += n) { // one call for each sequence's rows
        for (n = 1; t + n < b->n && seq_of(b, t + n) == seq_of(b, t); n++)
            ;
        attention(s, i, seq_of(b, t), s->pos[t], n, s->q + (size_t)t * nq, s->att + (size_t)t * na);
    }
    matmul(s, s->att, b->n, (MatmulOut[]){{&l->wo, s->attn_out}}, 1);
    if (l->attn_post_norm.on)
        norm_rows(s, &l->attn_post_norm, s->attn_out, s->attn_out, b->n, c->dim);
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

/* FFN of layer i over h (n, dim) -> out (n, dim), which may be h. */
static void ffn(Session *s, int i, const float *h, float *out, int n)
{
    const Layer *l = &s->model->layers[i];
    MatmulOut in[] = {{&l->w_up, s->hidden}, {&l->w_gate, s->gate}};
    matmul(s, h, n, in, s->model->config.gated ? 2 : 1);
    threads_run(&s->threads, n, ROW_GRAIN, activate_rows, &(Rows){s, NULL, i});
    matmul(s, s->hidden, n, (MatmulOut[]){{&l->w_down, out}}, 1);
    if (l->ffn_post_norm.on)
        norm_rows(s, &l->ffn_post_norm, out, out, n, s->model->config.dim);
}

static void add(Session *s, const float *y, int n)
{
    float scale = s->model->config.residual_scale;
    size_t count = (size_t)n * (size_t)s->model->config.dim;
    for (size_t i = 0; i < count; i++)
        s->x[i] += scale * y[i];
}

/* The normalised input of a sublayer: a copy in s->xn, or x itself where there is no norm. */
static const float *normed(Session *s, const Norm *norm, int n)
{
    if (!norm->on)
        return s->x;
    norm_rows(s, norm, s->xn, s->x, n, s->model->config.dim);
    return s->xn;
}

static void run_layer(Session *s, int i, const Batch *b)
{
    const Config *c = &s->model->config;
    const Layer *l = &s->model->layers[i];
    const float *h = normed(s, &l->attn_norm, b->n);
    attend(s, i, h, b);
    if (!c->parallel)
        add(s, s->attn_out, b->n);
    if (!c->parallel || l->ffn_norm.on)
        h = normed(s, &l->ffn_norm, b->n);
    ffn(s, i, h, s->xn, b->n);
    if (c->parallel)
        add(s, s->attn_out, b->n);
    add(s, s->xn, b->n);
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
    const float *h = normed(s, &m->final_norm, n);
    matmul(s, h, n, (MatmulOut[]){{&m->output, s->logits}}, 1);
    if (c->logit_scale != 1)
        for (size_t i = 0; i < (size_t)n * vocab; i++)
            s->logits[i] *= c->logit_scale;
    if (c->logit_soft_cap > 0)
        s->k->soft_cap(s->logits, (size_t)n * vocab, c->logit_soft_cap);
    return n;
}

/* Check the rows and give each its position, s->pos (T); nothing is changed on failure but blocks in reserve. */
static int place(Session *s, const Batch *b, Err *e)
{
    int n_wanted = 0;
    if (b->n < 1 || b->n > s->params.max_batch)
        return err_set(e, EXIT_USAGE, "batch: got %d rows, want 1 to %d", b->n, s->params.max_batch);
    for (int t = 0; t < b->n; t++) {
        int seq = seq_of(b, t);
        if (b->tokens && (b->tokens[t] < 0 || b->tokens[t] >= s->model->config.vocab_size))
            return err_set(e, EXIT_USAGE, "token: got %d, want 0 to %d", b->tokens[t], s->model->config.vocab_size - 1);
        bool follows = t > 0 && seq == seq_of(b, t - 1);
        s->pos[t] = follows ? s->pos[t - 1] + 1 : s->seqs[seq].n_pos;
        n_wanted += wants_logits(b, t);
        if (session_grow(s, seq, s->pos[t] + 1, e))
            return -1;
    }
    if (n_wanted > s->params.max_logits)
        return err_set(e, EXIT_USAGE, "batch: got %d rows with logits, want at most %d", n_wanted, s->params.max_logits);
    return 0;
}

typedef struct {
    Session *s;
    const Batch *b;
    int n_logits;
} Graph;

static void run_graph(void *context)
{
    Graph *g = context;
    Session *s = g->s;
    const Model *m = s->model;
    Rows rows = {s, g->b, 0};
    threads_run(&s->threads, g->b->n, ROW_GRAIN, embed_rows, &rows);
    if (m->embd_norm.on)
        norm_rows(s, &m->embd_norm, s->x, s->x, g->b->n, m->config.dim);
    if (m->config.pos == POS_ROPE)
        threads_run(&s->threads, g->b->n, ROW_GRAIN, turn_rows, &rows);
    for (int i = 0; i < m->config.n_layers; i++)
        run_layer(s, i, g->b);
    g->n_logits = head(s, g->b);
}

int forward(Session *s, const Batch *b, Err *e)
{
    Graph g = {s, b, 0};
    if (place(s, b, e))
        return -1;
    threads_team(&s->threads, run_graph, &g);
    for (int t = 0; t < b->n; t++)
        s->seqs[seq_of(b, t)].n_pos = s->pos[t] + 1;
    return g.n_logits;
}
