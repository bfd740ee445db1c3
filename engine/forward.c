/* forward.c - the decoder graph: token ids in, logits out.
 *
 *   x = embedding(token) * scale [+ position row] [+ row of token type 0] [norm]
 *   for each layer:
 *       h = norm(x)
 *       q, k, v = W h + b  [clamp] [norm of q and k] [rotate q and k] [norm of them here]
 *           k and v go to the cache, queries far from the start are multiplied by [a factor]
 *           or of latents, see project_latent()
 *       a = Wo attention(q) [* sigmoid(W_gate h)]  [norm]
 *       or, in a recurrent layer,  a = Wo recurrence(h)  [norm]          (recurrent.c)
 *       sequential:  x += a [norm of x];  f = ffn(norm(x)) [norm];  x += f [norm of x]
 *       parallel:    f = ffn(norm(x)) [norm];  x += a + f
 *       [x += norm(W act(W_gate x) * p)]    p is the layer's own part of the token's embedding
 *       [x *= a scale of the layer]
 *   logits = W norm(x)  [scale] [soft cap]                               of rows that want them
 *
 *   ffn(h) = W_down act(W_up h)   or, gated,   W_down (act(W_gate h) * W_up h)
 *            or the weighted sum of some of many such networks, the experts (experts.c), or both
 *
 * What is in brackets is a field of Config; no family is named here.
 */
#include <math.h>
#include <string.h>

#include "model.h"
#include "base/blocks.h"

/* One forward(). */
typedef struct {
    Session *s;
    const Batch *b;
    int n_logits;
    bool failed; // a hook, a signal or a row that is not finite has ended it
    Err *e;
} Graph;

/* Rows that go through a step together: n rows from row `from` of the batch, and what their threads
 * need to know. What belongs to the whole batch (pos, x, q, cos_sin, softmax) is found at row
 * from + i, everything else (xn, k_new, v_new, heads, attn_out, hidden, gate) at row i. */
typedef struct {
    Graph *g;
    Session *s;
    const Config *c;
    const Layer *l; // NULL outside of layers
    const LayerConfig *lc;
    int layer, from, n;
} Rows;

/* The residual stream of the first row, (n, dim). */
static float *residual(const Rows *r)
{
    return r->s->x + (size_t)r->from * (size_t)r->c->dim;
}

/* ---- steps that every layer uses ------------------------------------------------------------- */

static bool has_hook(const Session *s, HookPoint point)
{
    for (int i = 0; i < s->n_hooks; i++)
        if (s->hooks[i].point == point)
            return true;
    return false;
}

/* Show rows x (n, width) to the hooks of a point. */
static void call_hooks(Rows *r, HookPoint point, float *x, size_t width)
{
    Session *s = r->s;
    HookRows rows = {s, point, r->l ? r->layer : -1, r->from, r->n, width, x};
    for (int i = 0; i < s->n_hooks && !r->g->failed; i++)
        if (s->hooks[i].point == point && s->hooks[i].fn(s->hooks[i].context, &rows))
            r->g->failed = true;
}

/* Note that a row has met a number that is not finite; the first of all rows counts. */
static void note_bad(Session *s, int row)
{
    int first = atomic_load_explicit(&s->bad_row, memory_order_relaxed);
    while (row < first && !atomic_compare_exchange_weak(&s->bad_row, &first, row))
        ;
}

static bool is_finite(const float *x, size_t n)
{
    return largest_bits(x, n) < F32_INF_BITS;
}

/* Note the rows whose residual stream is not finite. */
static void check_rows(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    size_t dim = (size_t)r->c->dim;
    (void)thread;
    for (int i = from; i < to; i++)
        if (!is_finite(residual(r) + (size_t)i * dim, dim))
            note_bad(r->s, r->from + i);
}

/* The normalised input of a sublayer: a copy of x (n, dim) in s->xn, or x itself without a norm. */
static const float *normed(Session *s, const Norm *norm, const float *x, int n)
{
    if (!norm->on)
        return x;
    norm_rows(s, norm, s->xn, x, n, s->stack->config.dim);
    return s->xn;
}

/* x += scale * y for rows of x and y (n, dim). */
typedef struct {
    float *x;
    const float *y;
    float scale;
    size_t dim;
} Sum;

static void add_rows(void *context, int from, int to, int thread)
{
    const Sum *a = context;
    (void)thread;
    for (size_t i = (size_t)from * a->dim; i < (size_t)to * a->dim; i++)
        a->x[i] += a->scale * a->y[i];
}

/* x += scale * y for n rows (n, dim). */
static void add_scaled(const Rows *r, float *x, const float *y, float scale)
{
    Sum sum = {x, y, scale, (size_t)r->c->dim};
    threads_run(r->s->threads, r->n, ROW_GRAIN, add_rows, &sum);
}

/* A sublayer's result y (n, dim) joins the residual stream, which may be normalised then. */
static void add(const Rows *r, const float *y, const Norm *after)
{
    float *x = residual(r);
    add_scaled(r, x, y, r->c->residual_scale);
    if (after->on && r->c->norm_residual)
        norm_rows(r->s, after, x, x, r->n, r->c->dim);
}

/* ---- embeddings and positions ---------------------------------------------------------------- */

/* Add row `index` of a table (rows, dim) in its own type; `row` (dim) is scratch. */
static void add_table_row(const Session *s, const Tensor *table, size_t index, float *x, float *row)
{
    const char *src = (const char *)table->data + index * table->row_bytes;
    s->k->dequantize[table->type](src, row, table->cols);
    for (size_t j = 0; j < table->cols; j++)
        x[j] += row[j];
}

/* Each token's row of the embedding table, or the vector that the caller gave -> s->x (T, dim). A
 * model with learned positions adds a row for each position, one with token types that of type 0.
 */
static void embed_rows(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    Session *s = r->s;
    const Tensor *embd = &s->stack->token_embd, *learned = &s->stack->pos_embd;
    size_t dim = (size_t)r->c->dim;
    (void)thread;
    for (int i = from; i < to; i++) {
        int t = r->from + i;
        const SpanRows *at = &s->spans[s->span_of[t]];
        const Span *span = &r->g->b->spans[s->span_of[t]];
        float *x = residual(r) + (size_t)i * dim;
        if (span->tokens) {
            size_t id = (size_t)span->tokens[t - at->row];
            s->k->dequantize[embd->type]((const char *)embd->data + id * embd->row_bytes, x, dim);
            for (size_t j = 0; j < dim; j++)
                x[j] *= r->c->embd_scale;
        } else {
            memcpy(x, span->embd + (size_t)(t - at->row) * dim, dim * sizeof *x);
        }
        if (learned->data)
            add_table_row(s, learned, (size_t)(s->pos[t] + r->c->pos_offset), x,
                          s->xn + (size_t)i * dim);
        for (size_t j = 0; j < dim && s->stack->token_type; j++)
            x[j] += s->stack->token_type[j];
    }
}

/* What the layers get of row t of the batch, (n_layers, per_layer_dim). */
static float *per_layer_at(const Session *s, int t)
{
    const Config *c = &s->stack->config;
    return s->per_layer + (size_t)t * (size_t)c->n_layers * (size_t)c->per_layer_dim;
}

/* (norm(projection / sqrt(dim)) + the token's row of the table * sqrt(per_layer_dim)) / sqrt(2), in
 * place of the projection; the norm is over each layer's part. The row is taken in pieces, which
 * begin where a block of any type does. */
static void mix_per_layer_rows(void *context, int from, int to, int thread)
{
    enum { PIECE = 256 };
    const Rows *r = context;
    Session *s = r->s;
    const Stack *m = s->stack;
    const Tensor *table = &m->per_layer_embd;
    const TypeInfo *type = type_info(table->type);
    size_t width = (size_t)r->c->per_layer_dim, all = table->cols;
    float down = 1 / sqrtf((float)r->c->dim), up = sqrtf((float)width), piece[PIECE];
    (void)thread;
    for (int t = r->from + from; t < r->from + to; t++) {
        const Span *span = &r->g->b->spans[s->span_of[t]];
        size_t id = (size_t)span->tokens[t - s->spans[s->span_of[t]].row];
        const char *row = (const char *)table->data + id * table->row_bytes;
        float *x = per_layer_at(s, t);
        for (size_t i = 0; i < all; i++)
            x[i] *= down;
        for (size_t i = 0; i < all; i += width)
            s->k->norm[r->c->norm](x + i, x + i, m->per_layer_norm.w, m->per_layer_norm.b, width,
                                   r->c->norm_eps);
        for (size_t i = 0; i < all; i += PIECE) {
            size_t n = all - i < PIECE ? all - i : PIECE;
            s->k->dequantize[table->type](row + i / type->block * type->bytes, piece, n);
            for (size_t j = 0; j < n; j++)
                x[i + j] = (x[i + j] + piece[j] * up) * 0.70710678f;
        }
    }
}

/* What each layer gets of the rows' tokens beside the residual stream. */
static void embed_per_layer(Rows *r)
{
    const Stack *m = r->s->stack;
    matmul(r->s, &(Product){&m->per_layer_proj, residual(r), r->n, per_layer_at(r->s, r->from), 0},
           1);
    threads_run(r->s->threads, r->n, ROW_GRAIN, mix_per_layer_rows, r);
}

static void embed(Rows *r)
{
    const Norm *norm = &r->s->stack->embd_norm;
    float *x = residual(r);
    threads_run(r->s->threads, r->n, ROW_GRAIN, embed_rows, r);
    if (norm->on)
        norm_rows(r->s, norm, x, x, r->n, r->c->dim);
    call_hooks(r, HOOK_EMBEDDED, x, (size_t)r->c->dim);
    if (r->c->per_layer_dim)
        embed_per_layer(r);
    threads_run(r->s->threads, r->n, ROW_GRAIN, check_rows, r);
}

/* cos and sin of a row's angles, (rope dim / 2, 2), for one set of frequencies. */
static float *angles_at(const Session *s, int rope, int t)
{
    size_t row = (size_t)rope * (size_t)s->params.max_batch + (size_t)t;
    return s->cos_sin + row * (size_t)s->max_rope_dim;
}

/* Rotary positions: pair i of a head turns by the angle position * inv_freq[i], so that q.k depends
 * on the distance of query and key alone (Su et al. 2021, RoFormer). The angles are the same in all
 * layers; they are formed in f32, as transformers does. */
static void rope_angles(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    const Session *s = r->s;
    (void)thread;
    for (int t = from; t < to; t++)
        for (int rope = 0; rope < r->c->n_ropes; rope++) {
            bool is_long = s->cache.seqs[s->spans[s->span_of[t]].seq].is_long;
            const float *inv_freq = s->inv_freq + (2 * rope + is_long) * (s->max_rope_dim / 2);
            float *out = angles_at(s, rope, t);
            for (int i = 0; i < r->c->ropes[rope].dim / 2; i++) {
                double angle = (float)s->pos[t] * inv_freq[i];
                out[2 * i] = (float)cos(angle) * s->rope_scale[rope];
                out[2 * i + 1] = (float)sin(angle) * s->rope_scale[rope];
            }
        }
}

/* ---- attention ------------------------------------------------------------------------------- */

static void clamp(float *x, size_t n, float limit)
{
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] > limit ? limit : x[i] < -limit ? -limit : x[i];
}

/* Normalise the heads of one row, x (n_heads, key_dim): each by one weight (key_dim), each by its
 * own (n_heads, key_dim), or the row as a whole (n_heads * key_dim). */
static void norm_heads(const Rows *r, const Norm *n, float *x, int n_heads)
{
    const Config *c = r->c;
    size_t width = (size_t)r->lc->key_dim;
    if (c->qk_norm == QK_NORM_FULL) {
        r->s->k->norm[c->norm](x, x, n->w, n->b, (size_t)n_heads * width, c->norm_eps);
        return;
    }
    for (int h = 0; h < n_heads; h++, x += width) {
        size_t own = c->qk_norm == QK_NORM_HEADS ? (size_t)h * width : 0;
        r->s->k->norm[c->norm](x, x, n->w + own, n->b ? n->b + own : NULL, width, c->norm_eps);
    }
}

/* Clamp, normalise and rotate (or rotate and normalise) the heads of one row t of the batch, x
 * (n_heads, key_dim). */
static void prepare_heads(const Rows *r, const Norm *norm, float *x, int n_heads, int t)
{
    const LayerConfig *lc = r->lc;
    if (r->c->clamp_qkv > 0)
        clamp(x, (size_t)n_heads * (size_t)lc->key_dim, r->c->clamp_qkv);
    if (norm->on && !r->c->qk_norm_after_rope)
        norm_heads(r, norm, x, n_heads);
    if (lc->rope >= 0)
        rope_rotate(x, angles_at(r->s, lc->rope, t), n_heads, lc->key_dim,
                    r->c->ropes[lc->rope].dim, r->c->rope_pairing);
    if (norm->on && r->c->qk_norm_after_rope)
        norm_heads(r, norm, x, n_heads);
}

/* Queries at positions beyond the original context are made longer, which keeps the softmax from
 * spreading out over the more keys (Config.temperature). */
static void heat_queries(const Rows *r, float *q /* (n_heads, key_dim) */, int pos)
{
    int times = pos / r->c->ropes[0].orig_seq_len;
    float factor = (float)(1 + r->c->temperature * log(1.0 + times));
    for (size_t j = 0; times && j < q_width(r->lc); j++)
        q[j] *= factor;
}

/* The norms of latents have an epsilon of their own in transformers, whatever the configuration's.
 */
static const float LATENT_EPS = 1e-6f;

/* Finish the query and the key of row i: the rotated part of each query head goes behind what its
 * key matrix has made of the rest, and the latent is normalised. */
static void prepare_latent(const Rows *r, int i)
{
    const LayerConfig *lc = r->lc;
    Session *s = r->s;
    int t = r->from + i, rank = lc->latent.rank, turning = lc->key_dim - rank;
    size_t key_dim = (size_t)lc->key_dim, width = head_key_width(lc), heads = (size_t)lc->n_heads;
    float *q = s->q + (size_t)t * q_width(lc) + rank, *k = s->k_new + (size_t)i * key_dim;
    const float *from = s->expanded + (size_t)i * heads * width + lc->latent.key_dim;
    for (size_t h = 0; h < heads; h++)
        memcpy(q + h * key_dim, from + h * width, (size_t)turning * sizeof *q);
    s->k->norm[NORM_RMS](k, k, r->l->kv_latent_norm.w, r->l->kv_latent_norm.b, (size_t)rank,
                         LATENT_EPS);
    if (lc->rope < 0)
        return;
    const float *angles = angles_at(s, lc->rope, t);
    rope_rotate(q, angles, lc->n_heads, lc->key_dim, turning, r->c->rope_pairing);
    rope_rotate(k + rank, angles, 1, turning, turning, r->c->rope_pairing);
}

/* Row i's queries and gates, from where Wq has put them, a head after another. */
static void split_gates(const Rows *r, int i)
{
    Session *s = r->s;
    size_t nq = q_width(r->lc), width = (size_t)r->lc->key_dim;
    const float *both = s->q_and_gate + 2 * (size_t)i * nq;
    float *q = s->q + (size_t)(r->from + i) * nq, *gate = s->attn_gate + (size_t)(r->from + i) * nq;
    for (size_t j = 0; j < nq; j += width) {
        memcpy(q + j, both + 2 * j, width * sizeof *q);
        memcpy(gate + j, both + 2 * j + width, width * sizeof *q);
    }
    sigmoid(s->k, gate, nq);
}

static void prepare_rows(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    Session *s = r->s;
    size_t nq = q_width(r->lc), nk = k_width(r->lc), nv = v_width(r->lc);
    (void)thread;
    for (int i = from; i < to; i++) {
        int t = r->from + i;
        if (r->c->attn_gate)
            split_gates(r, i);
        if (r->lc->latent.rank)
            prepare_latent(r, i);
        else
            prepare_heads(r, &r->l->q_norm, s->q + (size_t)t * nq, r->lc->n_heads, t);
        if (r->c->temperature != 0)
            heat_queries(r, s->q + (size_t)t * nq, s->pos[t]);
        if (!has_own_kv(r->c, r->layer) || r->lc->latent.rank)
            continue;
        float *k = s->k_new + (size_t)i * nk, *v = s->v_new + (size_t)i * nv;
        if (r->lc->values_are_keys)
            memcpy(v, k, nv * sizeof *v);
        prepare_heads(r, &r->l->k_norm, k, r->lc->n_kv_heads, t);
        if (r->c->clamp_qkv > 0)
            clamp(v, nv, r->c->clamp_qkv);
        for (size_t j = 0; r->c->value_norm && j < nv; j += (size_t)r->lc->value_dim)
            s->k->norm[r->c->norm](v + j, v + j, NULL, NULL, (size_t)r->lc->value_dim,
                                   r->c->norm_eps);
    }
}

/* New keys and values enter the cache, from where attention reads them in the cache's type, those
 * of this batch too. A row with a number that is not finite is noted first: in the cache it would
 * spoil rows before it as well (0 * NaN is NaN). */
static void store_rows(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    Session *s = r->s;
    size_t nq = q_width(r->lc), nk = k_width(r->lc), nv = v_width(r->lc);
    (void)thread;
    for (int i = from; i < to; i++) {
        int t = r->from + i;
        const float *k = s->k_new + (size_t)i * nk, *v = s->v_new + (size_t)i * nv;
        bool finite = is_finite(s->q + (size_t)t * nq, nq);
        if (has_own_kv(r->c, r->layer)) {
            finite = finite && is_finite(k, nk) && is_finite(v, nv);
            cache_store(&s->cache, r->layer, s->spans[s->span_of[t]].seq, s->pos[t], k, v);
        }
        if (!finite)
            note_bad(s, t);
    }
}

static void prepare_and_store(void *context, int from, int to, int thread)
{
    prepare_rows(context, from, to, thread);
    store_rows(context, from, to, thread);
}

static void norm_q_latents(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    const Norm *norm = &r->l->q_latent_norm;
    size_t width = q_latent_width(r->lc);
    (void)thread;
    for (int i = from; i < to; i++) {
        float *x = r->s->q_latent + (size_t)i * width;
        r->s->k->norm[NORM_RMS](x, x, norm->w, norm->b, width, LATENT_EPS);
    }
}

/* Each head's part of rows x (n, n_heads, x_width), the beginning of it, times the head's matrix ->
 * the beginning of its part of y (n, n_heads, y_width). */
static void multiply_heads(Rows *r, const Tensor *matrices, const float *x, size_t x_width,
                           float *y, size_t y_width)
{
    Session *s = r->s;
    size_t heads = (size_t)r->lc->n_heads;
    for (size_t h = 0; h < heads; h++) {
        s->head_matrices[h] = (Linear){.w = tensor_view(matrices, h)};
        s->head_products[h] = (Product){&s->head_matrices[h], x + h * x_width, r->n,
                                        y + h * y_width, 0};
    }
    matmul_strided(s, s->head_products, (int)heads, heads * x_width, heads * y_width);
}

/* The queries and the one key of latent attention, but for what prepare_latent() does:
 *
 *   q = Wq h, or Wq norm(q_down h)       (n, n_heads, latent.key_dim + rotated part) in s->expanded
 *   q = key_up q, for each head          (n, n_heads, rank + rotated part)
 *   k = kv_down h                        (n, rank + rotated part) */
static void project_latent(Rows *r, const float *h, float *q)
{
    Session *s = r->s;
    const Layer *l = r->l;
    Product queries = {&l->wq, h, r->n, s->expanded, 0}, key = {&l->kv_down, h, r->n, s->k_new, 0};
    if (r->lc->latent.q_rank) {
        matmul(s, (Product[]){{&l->q_down, h, r->n, s->q_latent, 0}, key}, 2);
        threads_run(s->threads, r->n, ROW_GRAIN, norm_q_latents, r);
        queries.x = s->q_latent;
        matmul(s, &queries, 1);
    } else {
        matmul(s, (Product[]){queries, key}, 2);
    }
    multiply_heads(r, &l->key_up, s->expanded, head_key_width(r->lc), q, (size_t)r->lc->key_dim);
}

/* The first half of a layer, for all rows of the batch before any attends:
 *
 *   h = norm(x)                          (n, dim)
 *   q = Wq h                             (n, n_heads, key_dim)
 *   k = Wk h, v = Wv h                   (n, n_kv_heads, key_dim), (n, n_kv_heads, value_dim)
 *   normalise and rotate q and k         q waits in s->q; k and v go to the cache
 *                                        (v may be normalised too, and may be what Wk gives)
 *
 *   or project_latent()
 *
 * Several query heads may share a key/value head (grouped heads), and a layer may have no keys and
 * values of its own but attend to those of an earlier one, or of another text. */
static void project(Rows *r)
{
    Session *s = r->s;
    const Layer *l = r->l;
    size_t nq = q_width(r->lc);
    bool has_own = has_own_kv(r->c, r->layer);
    float *q = s->q + (size_t)r->from * nq;
    const float *h = normed(s, &l->attn_norm, residual(r), r->n);
    if (r->lc->latent.rank)
        project_latent(r, h, q);
    else
        matmul(s,
               (Product[]){{&l->wq, h, r->n, r->c->attn_gate ? s->q_and_gate : q, 0},
                           {&l->wk, h, r->n, s->k_new, 0},
                           {&l->wv, h, r->n, s->v_new, 0}},
               !has_own                                          ? 1
               : r->lc->values_in_keys || r->lc->values_are_keys ? 2
                                                                 : 3);
    if (!has_hook(s, HOOK_QUERIES) && !has_hook(s, HOOK_KEYS) && !has_hook(s, HOOK_VALUES)) {
        threads_run(s->threads, r->n, ROW_GRAIN, prepare_and_store, r);
        return;
    }
    threads_run(s->threads, r->n, ROW_GRAIN, prepare_rows, r);
    call_hooks(r, HOOK_QUERIES, q, nq);
    if (has_own) {
        call_hooks(r, HOOK_KEYS, s->k_new, k_width(r->lc));
        if (!r->lc->values_in_keys)
            call_hooks(r, HOOK_VALUES, s->v_new, v_width(r->lc));
    }
    threads_run(s->threads, r->n, ROW_GRAIN, store_rows, r);
}

static void gate_rows(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    const Session *s = r->s;
    size_t n = heads_width(r->lc);
    (void)thread;
    for (size_t i = (size_t)from; i < (size_t)to; i++)
        s->k->mul(s->heads + i * n, s->attn_gate + ((size_t)r->from + i) * n, n);
}

/* What attention, or a recurrent layer in its place, adds to the residual stream -> s->attn_out
 * (n, dim):
 *
 *   softmax(scale q.K^T + mask) V        (n, n_heads, value_dim), over every visible key
 *   of latents: value_up times that      (n, n_heads, latent.value_dim), for each head
 *   times the sigmoid of the gates       with Config.attn_gate
 *   Wo mixes the heads' results          (n, dim)
 */
static void attend(Rows *r)
{
    Session *s = r->s;
    const Layer *l = r->l;
    float *results = s->heads;
    if (r->lc->mixer == MIX_ATTENTION) {
        attention(s, r->layer, r->from, r->n);
        if (r->c->attn_gate)
            threads_run(s->threads, r->n, ROW_GRAIN, gate_rows, r);
        if (r->lc->latent.rank) {
            multiply_heads(r, &l->value_up, s->heads, (size_t)r->lc->latent.rank, s->expanded,
                           (size_t)r->lc->latent.value_dim);
            results = s->expanded;
        }
        call_hooks(r, HOOK_HEADS, results, wo_width(r->lc));
    } else {
        recurrent(s, r->layer, normed(s, &l->attn_norm, residual(r), r->n), r->from, r->n);
    }
    matmul(s, &(Product){&l->wo, results, r->n, s->attn_out, 0}, 1);
    if (l->attn_post_norm.on && !r->c->norm_residual)
        norm_rows(s, &l->attn_post_norm, s->attn_out, s->attn_out, r->n, r->c->dim);
    call_hooks(r, HOOK_ATTENTION, s->attn_out, (size_t)r->c->dim);
}

/* ---- feed-forward network -------------------------------------------------------------------- */

/* Experts beside a dense FFN read the residual stream through norms of their own; their result
 * joins the FFN's, y (n, dim). What attention added, s->attn_out, is no longer needed. */
static void add_experts(Rows *r, float *y)
{
    Session *s = r->s;
    const Layer *l = r->l;
    float *h = s->attn_out;
    norm_rows(s, &l->dense_post_norm, y, y, r->n, r->c->dim);
    norm_rows(s, &l->router_norm, h, residual(r), r->n, r->c->dim);
    experts_choose(s, r->layer, h, r->n);
    norm_rows(s, &l->experts_norm, h, residual(r), r->n, r->c->dim);
    experts_gather(s, h, r->n);
    experts_sum(s, r->layer, h, r->n);
    norm_rows(s, &l->experts_post_norm, h, h, r->n, r->c->dim);
    add_scaled(r, y, h, 1);
}

/* What the FFN adds to the residual stream, each row by itself: h (n, dim) -> s->xn (n, dim), which
 * may be h. With experts this is what the shared one says, if there is one, and what those say that
 * the router has chosen for the row. */
static void ffn(Rows *r, const float *h)
{
    Session *s = r->s;
    const Layer *l = r->l;
    const LayerConfig *lc = r->lc;
    bool beside = r->c->experts.beside;
    if (lc->expert_dim && !beside) {
        experts_choose(s, r->layer, h, r->n);
        experts_gather(s, h, r->n);
    }
    if (lc->hidden_dim) {
        matmul(s, (Product[]){{&l->w_up, h, r->n, s->hidden, 0}, {&l->w_gate, h, r->n, s->gate, 0}},
               r->c->gated ? 2 : 1);
        if (r->c->act == ACT_XIELU)
            xielu_rows(s, &lc->xielu, s->hidden, r->n, lc->hidden_dim);
        else
            activate_rows(s, s->hidden, s->gate, r->n, lc->hidden_dim);
        matmul(s, &(Product){&l->w_down, s->hidden, r->n, s->xn, 0}, 1);
    }
    if (lc->expert_dim && beside)
        add_experts(r, s->xn);
    else if (lc->expert_dim)
        experts_sum(s, r->layer, s->xn, r->n);
    if (l->ffn_post_norm.on && !r->c->norm_residual)
        norm_rows(s, &l->ffn_post_norm, s->xn, s->xn, r->n, r->c->dim);
    call_hooks(r, HOOK_FFN, s->xn, (size_t)r->c->dim);
}

/* act(gate) times the layer's part of each row's token, in place of the gate (n, per_layer_dim). */
static void gate_per_layer_rows(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    size_t width = (size_t)r->c->per_layer_dim;
    (void)thread;
    for (int i = from; i < to; i++) {
        float *gate = r->s->gate + (size_t)i * width;
        r->s->k->act[r->c->act](gate, width);
        r->s->k->mul(gate, per_layer_at(r->s, r->from + i) + (size_t)r->layer * width, width);
    }
}

/* The residual stream takes in the layer's own part of the tokens' embeddings. */
static void add_per_layer(Rows *r)
{
    Session *s = r->s;
    const Layer *l = r->l;
    matmul(s, &(Product){&l->per_layer_gate, residual(r), r->n, s->gate, 0}, 1);
    threads_run(s->threads, r->n, ROW_GRAIN, gate_per_layer_rows, r);
    matmul(s, &(Product){&l->per_layer_proj, s->gate, r->n, s->xn, 0}, 1);
    norm_rows(s, &l->per_layer_post_norm, s->xn, s->xn, r->n, r->c->dim);
    add_scaled(r, residual(r), s->xn, 1);
}

static void scale_rows(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    size_t dim = (size_t)r->c->dim;
    (void)thread;
    for (size_t i = (size_t)from * dim; i < (size_t)to * dim; i++)
        residual(r)[i] *= *r->l->out_scale;
}

/* The second half of a layer: the rows attend, and the residual stream takes in what attention and
 * the FFN have to add. In a parallel layer both read the stream as it was. */
static void mix(Rows *r)
{
    const Layer *l = r->l;
    bool shares_norm = r->c->parallel && !l->ffn_norm.on;
    const Norm *ffn_norm = shares_norm ? &l->attn_norm : &l->ffn_norm;
    attend(r);
    if (!r->c->parallel)
        add(r, r->s->attn_out, &l->attn_post_norm);
    ffn(r, normed(r->s, ffn_norm, residual(r), r->n));
    if (r->c->parallel)
        add(r, r->s->attn_out, &l->attn_post_norm);
    add(r, r->s->xn, &l->ffn_post_norm);
    if (r->c->per_layer_dim)
        add_per_layer(r);
    if (l->out_scale)
        threads_run(r->s->threads, r->n, ROW_GRAIN, scale_rows, r);
    threads_run(r->s->threads, r->n, ROW_GRAIN, check_rows, r);
}

/* ---- output ---------------------------------------------------------------------------------- */

void output_logits(Session *s, const float *x, int n)
{
    const Stack *m = s->stack;
    const Config *c = &m->config;
    size_t size = (size_t)n * (size_t)c->vocab_size;
    const float *h = normed(s, &m->final_norm, x, n);
    matmul(s, &(Product){&m->output, h, n, s->logits, 0}, 1);
    if (c->logit_scale != 1)
        for (size_t i = 0; i < size; i++)
            s->logits[i] *= c->logit_scale;
    if (c->logit_soft_cap > 0)
        s->k->soft_cap(s->logits, size, c->logit_soft_cap);
}

static void norm_hidden(void *context)
{
    Session *s = context;
    const Norm *norm = &s->stack->final_norm;
    if (norm->on)
        norm_rows(s, norm, s->x, s->x, s->n_rows, s->stack->config.dim);
}

float *output_hidden(Session *s)
{
    threads_team(s->threads, norm_hidden, s);
    return s->x;
}

static bool wants_logits(const Span *span, int i)
{
    if (span->wanted)
        return span->wanted[i];
    return span->want == WANT_ALL || (span->want == WANT_LAST && i == span->n - 1);
}

/* Logits of the rows that want them; how many these are. */
static int wanted_logits(const Graph *g)
{
    Session *s = g->s;
    size_t dim = (size_t)s->stack->config.dim, vocab = (size_t)s->stack->config.vocab_size;
    int n = 0;
    for (int i = 0; i < g->b->n_spans; i++)
        for (int t = 0; t < g->b->spans[i].n; t++)
            if (wants_logits(&g->b->spans[i], t))
                memcpy(s->xn + (size_t)n++ * dim, s->x + (size_t)(s->spans[i].row + t) * dim,
                       dim * sizeof *s->x);
    if (n)
        output_logits(s, s->xn, n);
    const float *logits = s->logits;
    for (int i = 0; i < g->b->n_spans; i++)
        for (int t = 0; t < g->b->spans[i].n; t++)
            if (wants_logits(&g->b->spans[i], t)) {
                if (!is_finite(logits, vocab))
                    note_bad(s, s->spans[i].row + t);
                logits += vocab;
            }
    return n;
}

/* ---- forward --------------------------------------------------------------------------------- */

/* Check the spans and give each row its position; nothing is changed on failure but blocks in
 * reserve. */
static int check_batch(Session *s, const Batch *b, Err *e)
{
    int n_rows = 0, n_wanted = 0, vocab = s->stack->config.vocab_size;
    if (b->n_spans < 1 || b->n_spans > s->params.n_seqs)
        return err_set(e, EXIT_USAGE, "batch: got %d spans, want 1 to %d", b->n_spans,
                       s->params.n_seqs);
    for (int i = 0; i < b->n_spans; i++) {
        const Span *span = &b->spans[i];
        if (span->seq < 0 || span->seq >= s->params.n_seqs)
            return err_set(e, EXIT_USAGE, "batch: got sequence %d, want 0 to %d", span->seq,
                           s->params.n_seqs - 1);
        if (span->n < 1 || span->n > s->params.max_batch - n_rows)
            return err_set(e, EXIT_USAGE, "batch: got %d rows after %d, want 1 to %d in all",
                           span->n, n_rows, s->params.max_batch);
        if (!span->tokens && s->stack->config.per_layer_dim)
            return err_set(e, EXIT_USAGE,
                           "batch: got vectors, want tokens: each layer reads a "
                           "table of them");
        for (int k = 0; k < i; k++)
            if (s->spans[k].seq == span->seq)
                return err_set(e, EXIT_USAGE, "batch: sequence %d is in two spans", span->seq);
        if (s->stack->config.encoder && s->cache.seqs[span->seq].n_pos)
            return err_set(e, EXIT_USAGE,
                           "batch: sequence %d goes on, want all of it in one pass: "
                           "its rows see later ones",
                           span->seq);
        s->spans[i] = (SpanRows){
            .seq = span->seq, .pos = s->cache.seqs[span->seq].n_pos, .row = n_rows, .n = span->n};
        for (int t = 0; t < span->n; t++, n_rows++) {
            if (span->tokens && (span->tokens[t] < 0 || span->tokens[t] >= vocab))
                return err_set(e, EXIT_USAGE, "token: got %d, want 0 to %d", span->tokens[t],
                               vocab - 1);
            n_wanted += wants_logits(span, t);
            s->pos[n_rows] = s->spans[i].pos + t;
            s->span_of[n_rows] = i;
        }
        if (cache_grow(&s->cache, span->seq, s->spans[i].pos + span->n, e))
            return -1;
    }
    if (n_wanted > s->params.max_logits)
        return err_set(e, EXIT_USAGE, "batch: got %d rows with logits, want at most %d", n_wanted,
                       s->params.max_logits);
    s->n_rows = n_rows;
    s->n_spans = b->n_spans;
    return 0;
}

/* End the forward() if a row has met a number that is not finite, among `what` of a layer (or of
 * none, -1), or when a signal has come. */
static void check_finite(Graph *g, const char *what, int layer)
{
    const Session *s = g->s;
    int t = atomic_load(&s->bad_row);
    char token[40] = "", layers[32] = "";
    if (threads_stopped(s->threads))
        g->failed = true;
    if (t == INT_MAX || g->failed)
        return;
    const Span *span = &g->b->spans[s->span_of[t]];
    if (span->tokens)
        snprintf(token, sizeof token, " (token %d)", span->tokens[t - s->spans[s->span_of[t]].row]);
    if (layer >= 0)
        snprintf(layers, sizeof layers, " of layer %d", layer);
    g->failed = true;
    err_set(g->e, EXIT_IO,
            "position %d%s: the %s%s are not finite (NaN or infinity), as with damaged weights",
            s->pos[t], token, what, layers);
}

/* All rows of the batch through one step, max_rows at a time. */
static void all_rows(Graph *g, int layer, void (*step)(Rows *r))
{
    Session *s = g->s;
    const Config *c = &s->stack->config;
    Rows r = {.g = g, .s = s, .c = c, .layer = layer};
    if (layer >= 0) {
        r.l = &s->stack->layers[layer];
        r.lc = &c->layers[layer];
    }
    for (; r.from < s->n_rows && !g->failed; r.from += r.n) {
        int left = s->n_rows - r.from;
        r.n = left < s->params.max_rows ? left : s->params.max_rows;
        step(&r);
    }
}

/* Hooks at a layer's end see the whole batch, however its rows went through. */
static void show_layer(Rows *r)
{
    r->n = r->s->n_rows;
    call_hooks(r, HOOK_LAYER, r->s->x, (size_t)r->c->dim);
}

static void run_graph(void *context)
{
    Graph *g = context;
    Session *s = g->s;
    const Config *c = &s->stack->config;
    all_rows(g, -1, embed);
    check_finite(g, "embeddings", -1);
    if (c->pos == POS_ROPE && !g->failed)
        threads_run(s->threads, s->n_rows, ROW_GRAIN, rope_angles, &(Rows){.s = s, .c = c});
    for (int i = 0; i < c->n_layers && !g->failed; i++) {
        if (c->layers[i].mixer == MIX_ATTENTION)
            all_rows(g, i, project);
        all_rows(g, i, mix);
        check_finite(g, "results", i);
        all_rows(g, i, show_layer);
    }
    if (g->failed)
        return;
    g->n_logits = wanted_logits(g);
    check_finite(g, "logits", -1);
}

int forward(Session *s, const Batch *b, Err *e)
{
    Graph g = {.s = s, .b = b, .e = e};
    if (check_batch(s, b, e))
        return -1;
    atomic_store(&s->bad_row, INT_MAX);
    threads_team(s->threads, run_graph, &g);
    if (threads_stopped(s->threads)) // whatever was left out
        e->code = EXIT_OK;
    if (g.failed || threads_stopped(s->threads))
        return -1;
    for (int i = 0; i < s->n_spans; i++)
        cache_advance(&s->cache, s->spans[i].seq, s->spans[i].pos + s->spans[i].n);
    return g.n_logits;
}
