/* recurrent.c - layers that hand a state from row to row instead of attending to all rows before.
 *
 *   short convolution (LFM2):  b, c, x = W_in h              (n, conv_dim) each
 *                              z = b * x
 *                              y_t = c_t * sum over j of w_j * z_(t - taps + 1 + j)
 *   the state:                 z of the last taps - 1 rows, oldest first; zeros before the text
 *
 * forward.c multiplies by W_in before and by W_o after. The cache holds the states. Each row is
 * computed as if it was alone, so its bytes depend neither on the other rows of a batch nor on how
 * a text is cut into batches.
 */
#include "model.h"

/* Some rows of one layer. */
typedef struct {
    Session *s;
    const LayerConfig *lc;
    const Layer *l;
    int layer, first, n; // rows first .. first + n - 1 of the batch
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

/* ---- short convolution ----------------------------------------------------------------------- */

/* b, c and x of a row, (3, conv_dim). */
static const float *inputs(const Rows *r, int row)
{
    return r->s->mix_in + (size_t)(row - r->first) * mix_in_width(r->lc);
}

/* The z (conv_dim) of an earlier row, as it lies in the state before the part. */
static const float *earlier(const Rows *r, const Part *p, int row)
{
    return p->before + (size_t)(r->lc->conv_taps - 1 - (p->from - row)) * (size_t)r->lc->conv_dim;
}

static void convolve(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    size_t dim = (size_t)r->lc->conv_dim;
    int taps = r->lc->conv_taps;
    (void)thread;
    for (int t = r->first + from; t < r->first + to; t++) {
        Part p = part_of(r, r->s->span_of[t]);
        float *y = r->s->heads + (size_t)(t - r->first) * dim;
        for (int j = 0; j < taps; j++) {
            int row = t - taps + 1 + j;
            const float *w = r->l->conv + (size_t)j * dim;
            const float *z = row < p.from ? earlier(r, &p, row) : NULL;
            const float *b = z ? NULL : inputs(r, row), *x = z ? NULL : b + 2 * dim;
            for (size_t i = 0; i < dim; i++)
                y[i] = (j ? y[i] : 0) + w[i] * (z ? z[i] : b[i] * x[i]);
        }
        const float *c = inputs(r, t) + dim;
        for (size_t i = 0; i < dim; i++)
            y[i] *= c[i];
    }
}

/* The state after the rows of a part before row `end`. `out` may be the state before the part:
 * what is still needed of that lies further back. */
static void put_state(const Rows *r, const Part *p, int end, float *out)
{
    size_t dim = (size_t)r->lc->conv_dim;
    for (int row = end - r->lc->conv_taps + 1; row < end; row++, out += dim) {
        const float *z = row < p->from ? earlier(r, p, row) : NULL;
        const float *b = z ? NULL : inputs(r, row), *x = z ? NULL : b + 2 * dim;
        for (size_t i = 0; i < dim; i++)
            out[i] = z ? z[i] : b[i] * x[i];
    }
}

/* The states that spans leave, and those that are kept on the way. */
static void move_states(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    const Cache *c = &r->s->cache;
    int first = r->s->span_of[r->first];
    (void)thread;
    for (int i = first + from; i < first + to; i++) {
        Part p = part_of(r, i);
        for (int row = p.from; row < p.to; row++) {
            int n = p.span->pos + row + 1 - p.span->row;
            float *kept = cache_kept_state(c, r->layer, p.span->seq, n);
            if (kept)
                put_state(r, &p, row + 1, kept);
        }
        put_state(r, &p, p.to, cache_next_state(c, r->layer, p.span->seq));
    }
}

void recurrent(Session *s, int layer, int first, int n)
{
    const Stack *m = s->stack;
    Rows r = {s, &m->config.layers[layer], &m->layers[layer], layer, first, n};
    int n_spans = s->span_of[first + n - 1] - s->span_of[first] + 1;
    threads_run(s->threads, n, ROW_GRAIN, convolve, &r);
    threads_run(s->threads, n_spans, ROW_GRAIN, move_states, &r);
}
