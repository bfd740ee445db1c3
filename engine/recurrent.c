/* recurrent.c - layers that hand a state from row to row instead of attending to all rows before.
 *
 *   in = W_in h                                                              (n, conv_dim)
 *   x_t = sum over j of w_j * in_(t - taps + 1 + j)  [+ b]                   (n, conv_dim)
 *   short convolution (LFM2):  b, c, z = W_in h;  in = b * z;  Wo gets  c * x
 *   others:                    a matrix for each head takes in x row by row, see recurrent.h
 *   the state:                 `in` of the last taps - 1 rows, oldest first, and the matrices;
 *                              zeros before the text
 *
 * The cache holds the states. Each row is computed as if it was alone, so its bytes depend neither
 * on the other rows of a batch nor on how a text is cut into batches.
 */
#include "engine/recurrent.h"

#include <math.h>
#include <string.h>

/* Some rows of one layer. */
typedef struct {
    Session *s;
    const LayerConfig *lc;
    const Layer *l;
    const StateKind *kind; // NULL: a short convolution
    int layer, first, n;   // rows first .. first + n - 1 of the batch
} Rows;

/* Those of them that belong to one span: rows from .. to - 1 of the batch, and the state before
 * them. An earlier call may have had the span's first rows. */
typedef struct {
    const SpanRows *span;
    int from, to;
    const float *before;
} Part;

static Part part_of(const Rows *r, int span)
{
    const SpanRows *sp = &r->s->spans[span];
    const Cache *c = &r->s->cache;
    int end = sp->row + sp->n, last = r->first + r->n;
    Part p = {sp, sp->row > r->first ? sp->row : r->first, end < last ? end : last, NULL};
    p.before = p.from == sp->row ? cache_state(c, r->layer, sp->seq)
                                 : cache_next_state(c, r->layer, sp->seq);
    return p;
}

/* The state to keep after a row of a part, or NULL. */
static float *kept_state(const Rows *r, const Part *p, int row)
{
    return cache_kept_state(&r->s->cache, r->layer, p->span->seq,
                            p->span->pos + row + 1 - p->span->row);
}

/* ---- products -------------------------------------------------------------------------------- */

/* Row i's part of s->mix_in: after `at` of the widths of all rows, its own `width`. */
static float *product_at(const Rows *r, int row, size_t at, size_t width)
{
    return r->s->mix_in + at * (size_t)r->s->params.max_rows + (size_t)(row - r->first) * width;
}

/* What the convolution reads of a row: its first conv_dim values. */
static float *conv_in(const Rows *r, int row)
{
    return product_at(r, row, 0, conv_in_width(r->lc));
}

static StateRow state_row(const Rows *r, int row)
{
    const Recurrence *rec = &r->lc->rec;
    size_t i = (size_t)(row - r->first), n = (size_t)rec->n_heads, in = conv_in_width(r->lc),
           out = heads_width(r->lc);
    return (StateRow){.s = r->s,
                      .l = r->l,
                      .rec = rec,
                      .x = r->s->conv_out + i * (size_t)rec->conv_dim,
                      .gate = product_at(r, row, in, out),
                      .rate = product_at(r, row, in + out, n),
                      .decay = product_at(r, row, in + out + n, n),
                      .out = r->s->heads + i * out};
}

static void multiply(const Rows *r, const float *h)
{
    const Layer *l = r->l;
    StateRow to = state_row(r, r->first);
    Product all[4] = {{&l->conv_in, h, r->n, conv_in(r, r->first), 0}};
    int n = 1;
    if (r->kind) {
        all[n++] = (Product){&l->mix_gate, h, r->n, to.gate, 0};
        all[n++] = (Product){&l->mix_dt, h, r->n, to.decay, 0};
    }
    if (l->mix_beta.w.data)
        all[n++] = (Product){&l->mix_beta, h, r->n, to.rate, 0};
    matmul(r->s, all, n);
}

/* b * z in the place of b. */
static void multiply_inputs(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    size_t dim = (size_t)r->lc->rec.conv_dim;
    (void)thread;
    for (int t = r->first + from; t < r->first + to; t++)
        r->s->k->mul(conv_in(r, t), conv_in(r, t) + 2 * dim, dim);
}

/* ---- convolution ----------------------------------------------------------------------------- */

/* The input of a row, which may lie before the part, in its state. */
static const float *input(const Rows *r, const Part *p, int row)
{
    const Recurrence *rec = &r->lc->rec;
    return row < p->from
             ? p->before + (size_t)(rec->taps - 1 - (p->from - row)) * (size_t)rec->conv_dim
             : conv_in(r, row);
}

static void convolve_row(const Rows *r, const Part *p, int t, float *y /* (conv_dim) */)
{
    size_t dim = (size_t)r->lc->rec.conv_dim;
    for (int j = 0; j < r->lc->rec.taps; j++) {
        const float *w = r->l->conv + (size_t)j * dim;
        const float *in = input(r, p, t - r->lc->rec.taps + 1 + j);
        for (size_t i = 0; i < dim; i++)
            y[i] = (j ? y[i] : 0) + w[i] * in[i];
    }
    for (size_t i = 0; r->l->conv_bias && i < dim; i++)
        y[i] += r->l->conv_bias[i];
}

static void convolve(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    size_t dim = (size_t)r->lc->rec.conv_dim;
    (void)thread;
    for (int t = r->first + from; t < r->first + to; t++) {
        Part p = part_of(r, r->s->span_of[t]);
        StateRow row = state_row(r, t);
        convolve_row(r, &p, t, r->kind ? row.x : row.out);
        if (r->kind) {
            r->s->k->act[ACT_SILU](row.x, dim);
            r->kind->prepare(&row);
        } else {
            r->s->k->mul(row.out, conv_in(r, t) + dim, dim);
        }
    }
}

/* The inputs up to row end - 1 of a part. `out` may be the state before the part: what is still
 * needed of that lies further back. */
static void put_inputs(const Rows *r, const Part *p, int end, float *out)
{
    size_t dim = (size_t)r->lc->rec.conv_dim;
    for (int row = end - r->lc->rec.taps + 1; row < end; row++, out += dim)
        memmove(out, input(r, p, row), dim * sizeof *out);
}

/* The inputs that spans leave, and those that are kept on the way. */
static void move_inputs(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    int first = r->s->span_of[r->first];
    (void)thread;
    for (int i = first + from; i < first + to; i++) {
        Part p = part_of(r, i);
        for (int row = p.from; row < p.to; row++) {
            float *kept = kept_state(r, &p, row);
            if (kept)
                put_inputs(r, &p, row + 1, kept);
        }
        put_inputs(r, &p, p.to, cache_next_state(&r->s->cache, r->layer, p.span->seq));
    }
}

/* ---- matrices -------------------------------------------------------------------------------- */

float softplus(float x)
{
    return x > 20 ? x : (float)log1p(exp(x));
}

/* Rows lie too far apart for the processor to see that the next one will be wanted. */
static void prefetch(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i += 16)
        __builtin_prefetch(x + i);
}

/* One strip of columns of one head's matrix through all rows of a part: it stays in the cache that
 * is next to the processor. */
static void move_strip(const Rows *r, const Part *p, size_t head, size_t strip)
{
    const Recurrence *rec = &r->lc->rec;
    size_t size = (size_t)rec->key_dim * STATE_COLS, col = strip * STATE_COLS;
    size_t at = state_matrices(r->lc) + (head * state_strips(r->lc) + strip) * size;
    size_t left = (size_t)rec->value_dim - col, cols = left < STATE_COLS ? left : STATE_COLS;
    HeadParts part = r->kind->at(rec, head);
    float *S = cache_next_state(&r->s->cache, r->layer, p->span->seq) + at;
    const float *before = p->before + at;
    for (int t = p->from; t < p->to; t++, before = S) {
        StateRow row = state_row(r, t);
        float v[STATE_COLS], out[STATE_COLS];
        if (t + 1 < p->to) {
            prefetch(row.x + rec->conv_dim + part.q, (size_t)rec->key_dim);
            prefetch(row.x + rec->conv_dim + part.k, (size_t)rec->key_dim);
            prefetch(row.x + rec->conv_dim + part.v + col, cols);
        }
        for (size_t i = 0; i < STATE_COLS; i++)
            v[i] = i < cols ? row.x[part.v + col + i] : 0;
        r->s->k->state_step(S, before, (size_t)rec->key_dim, row.x + part.q, row.x + part.k, v,
                            row.decay[head], row.rate[head], r->kind->corrects, out);
        memcpy(row.out + head * (size_t)rec->value_dim + col, out, cols * sizeof *out);
        float *kept = kept_state(r, p, t);
        if (kept)
            memcpy(kept + at, S, size * sizeof *S);
    }
}

static void move_strips(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    size_t strips = state_strips(r->lc), of_span = strips * (size_t)r->lc->rec.n_heads;
    (void)thread;
    for (size_t i = (size_t)from; i < (size_t)to; i++) {
        Part p = part_of(r, r->s->span_of[r->first] + (int)(i / of_span));
        move_strip(r, &p, i % of_span / strips, i % strips);
    }
}

static void finish_rows(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    (void)thread;
    for (int t = r->first + from; t < r->first + to; t++) {
        StateRow row = state_row(r, t);
        r->kind->finish(&row);
    }
}

/* ---- recurrent ------------------------------------------------------------------------------- */

void recurrent(Session *s, int layer, const float *h, int first, int n)
{
    static const StateKind *const kinds[MIX_COUNT] = {[MIX_DELTA_NET] = &delta_net,
                                                      [MIX_MAMBA] = &mamba};
    const LayerConfig *lc = &s->stack->config.layers[layer];
    Rows r = {s, lc, &s->stack->layers[layer], kinds[lc->mixer], layer, first, n};
    int n_spans = s->span_of[first + n - 1] - s->span_of[first] + 1;
    multiply(&r, h);
    if (!r.kind)
        threads_run(s->threads, n, ROW_GRAIN, multiply_inputs, &r);
    threads_run(s->threads, n, ROW_GRAIN, convolve, &r);
    threads_run(s->threads, n_spans, ROW_GRAIN, move_inputs, &r);
    if (!r.kind)
        return;
    int strips = lc->rec.n_heads * (int)state_strips(lc);
    threads_run(s->threads, n_spans * strips, 1, move_strips, &r);
    threads_run(s->threads, n, ROW_GRAIN, finish_rows, &r);
}
