/* experts.c - mixtures of experts: each row goes through a few of many FFNs, which its router
 * chooses.
 *
 *   p = softmax([scale] W_router h [+ b]), or of each the sigmoid
 *   chosen: the n_used experts of the largest p [+ bias] [in the best groups of experts]; of equal
 *           ones those of lower numbers
 *   weights = p of the chosen  [divided by their sum]  [times a scale]  [and one of each expert]
 *   y = [shared expert(h) [* sigmoid(w h)] +] sum of weights * expert(h), experts ascending
 *
 * Rows are copied so that those of one expert lie together, and are multiplied as in any product.
 * Nothing of a row depends on the rows beside it.
 */
#include <math.h>
#include <string.h>

#include "model.h"

/* The sum of weights is at least this before they are divided by it, as in transformers' Ernie 4.5;
 * it can be small only where a bias decides the choice. */
static const float MIN_SUM = 1e-12f;

/* Some rows of one layer. */
typedef struct {
    Session *s;
    const Config *c;
    const Layer *l;
    const float *h; // (n, dim)
    float *y;       // (n, dim)
} Rows;

/* ---- the choice ------------------------------------------------------------------------------ */

/* The n_used largest of ranks (n) -> chosen, ascending; of equal ones the first. The ranks are
 * finite, and changed. */
static void choose(float *ranks, int n, int *chosen, int n_used)
{
    for (int k = 0; k < n_used; k++) {
        int best = 0, at = k;
        for (int e = 1; e < n; e++)
            best = ranks[e] > ranks[best] ? e : best;
        ranks[best] = -INFINITY;
        for (; at > 0 && chosen[at - 1] > best; at--)
            chosen[at] = chosen[at - 1];
        chosen[at] = best;
    }
}

/* What a group of n experts is worth: its largest rank, or with GATE_SIGMOID the sum of the two
 * largest. So do transformers' DeepSeek-V2 and V3, and the files' keys tell no more than the gate.
 */
static float group_worth(const float *ranks, int n, Gate gate)
{
    float best = -INFINITY, second = -INFINITY;
    for (int e = 0; e < n; e++)
        if (ranks[e] > best) {
            second = best;
            best = ranks[e];
        } else if (ranks[e] > second) {
            second = ranks[e];
        }
    return gate == GATE_SIGMOID ? best + second : best;
}

/* Leave only the experts of the best groups to be chosen from; of equal groups the first. */
static void limit_groups(const Experts *x, float *ranks /* (n) */)
{
    int size = x->n / x->n_groups, left = x->n_groups - x->n_groups_used;
    for (; left > 0; left--) {
        int worst = -1;
        float least = INFINITY;
        for (int g = 0; g < x->n_groups; g++) {
            float worth = group_worth(ranks + g * size, size, x->gate);
            if (worth > -INFINITY && worth <= least) {
                least = worth;
                worst = g;
            }
        }
        for (int e = 0; e < size && worst >= 0; e++)
            ranks[worst * size + e] = -INFINITY;
    }
}

static void softmax(const Kernels *k, float *p, size_t n)
{
    float max = p[0];
    for (size_t e = 1; e < n; e++)
        max = p[e] > max ? p[e] : max;
    float total = k->exp_sum(p, n, max);
    for (size_t e = 0; e < n; e++)
        p[e] /= total;
}

/* A row's logits p (n) -> its experts and their weights; p becomes the probabilities. A row with a
 * number that is not finite gets experts all the same, and weights that are NaN. */
static void choose_for_row(const Rows *r, float *p, float *ranks, int *chosen, float *weights)
{
    const Experts *x = &r->c->experts;
    size_t n = (size_t)x->n;
    float sum = 0;
    for (size_t e = 0; e < n; e++)
        p[e] *= x->logit_scale;
    bool finite = largest_bits(p, n) < F32_INF_BITS;
    if (x->gate == GATE_SOFTMAX)
        softmax(r->s->k, p, n);
    else
        sigmoid(r->s->k, p, n);
    for (size_t e = 0; e < n; e++)
        ranks[e] = r->l->choice_bias ? p[e] + r->l->choice_bias[e] : p[e];
    finite = finite && largest_bits(ranks, n) < F32_INF_BITS;
    if (!finite)
        memset(ranks, 0, n * sizeof *ranks);
    if (x->n_groups > 1)
        limit_groups(x, ranks);
    choose(ranks, x->n, chosen, x->n_used);
    for (int k = 0; k < x->n_used; k++)
        sum += weights[k] = finite ? p[chosen[k]] : NAN;
    sum = (sum < MIN_SUM ? MIN_SUM : sum) + x->sum_extra;
    for (int k = 0; k < x->n_used && x->renormalise; k++)
        weights[k] /= sum;
    for (int k = 0; k < x->n_used && x->weight_scale != 1; k++)
        weights[k] *= x->weight_scale;
    for (int k = 0; k < x->n_used && r->l->expert_scale; k++)
        weights[k] *= r->l->expert_scale[chosen[k]];
}

static void choose_for_rows(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    const Routing *g = &r->s->routing;
    size_t n = (size_t)r->c->experts.n, used = (size_t)r->c->experts.n_used;
    (void)thread;
    for (size_t i = (size_t)from; i < (size_t)to; i++) {
        choose_for_row(r, g->probs + i * n, g->ranks + i * n, g->chosen + i * used,
                       g->weights + i * used);
        if (r->l->shared_gate.w.data)
            sigmoid(r->s->k, &g->shared[i], 1);
    }
}

/* Give every chosen expert's copy of a row its place: experts ascending, and rows within them. load
 * (n_experts) counts the rows. */
static void assign_slots(Routing *g, const Experts *x, int n, uint64_t *load)
{
    memset(g->first, 0, ((size_t)x->n + 1) * sizeof *g->first);
    for (int i = 0; i < n * x->n_used; i++)
        g->first[g->chosen[i] + 1]++;
    for (int e = 0; e < x->n; e++) {
        load[e] += (uint64_t)g->first[e + 1];
        g->first[e + 1] += g->first[e];
    }
    for (int i = 0; i < n * x->n_used; i++)
        g->slots[i] = g->first[g->chosen[i]]++;
    for (int e = x->n; e > 0; e--) // each has moved on to where the next one begins
        g->first[e] = g->first[e - 1];
    g->first[0] = 0;
}

static void copy_rows(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    const Routing *g = &r->s->routing;
    size_t dim = (size_t)r->c->dim, used = (size_t)r->c->experts.n_used;
    (void)thread;
    for (size_t i = (size_t)from; i < (size_t)to; i++)
        for (size_t k = 0; k < used; k++)
            memcpy(g->x + (size_t)g->slots[i * used + k] * dim, r->h + i * dim, dim * sizeof *g->x);
}

void experts_choose(Session *s, int layer, const float *h, int n)
{
    const Stack *m = s->stack;
    Routing *g = &s->routing;
    Rows r = {.s = s, .c = &m->config, .l = &m->layers[layer], .h = h};
    matmul(s,
           (Product[]){{&r.l->router, h, n, g->probs, 0}, {&r.l->shared_gate, h, n, g->shared, 0}},
           r.l->shared_gate.w.data ? 2 : 1);
    threads_run(s->threads, n, ROW_GRAIN, choose_for_rows, &r);
    assign_slots(g, &r.c->experts, n, g->load + (size_t)layer * (size_t)r.c->experts.n);
}

void experts_gather(Session *s, const float *h, int n)
{
    Rows r = {.s = s, .c = &s->stack->config, .h = h};
    threads_run(s->threads, n, ROW_GRAIN, copy_rows, &r);
}

/* ---- the experts ----------------------------------------------------------------------------- */

/* A product with the matrices of the experts that have rows: part `which` of `n_parts` of the rows
 * of each, x (copies, columns of w) -> y (copies, rows of the part). `shared_x`: there is one row,
 * the same for all experts. */
typedef struct {
    const Tensor *w; // (n_experts, d, n)
    const float *b;  // (n_experts, d) or NULL
    size_t which, n_parts;
    const float *x;
    float *y;
    bool shared_x;
} ExpertProduct;

/* Run one or two of them as one job, so that the pair of an expert packs its rows once. */
static void multiply(Session *s, const ExpertProduct *p, int n_products)
{
    Routing *g = &s->routing;
    int n = 0;
    for (int e = 0; e < s->stack->config.experts.n; e++) {
        size_t first = (size_t)g->first[e], rows = (size_t)g->first[e + 1] - first;
        for (int i = 0; rows && i < n_products; i++, n++) {
            Tensor all = tensor_view(p[i].w, (size_t)e);
            size_t d = all.rows / p[i].n_parts;
            g->matrices[n] = (Linear){.w = tensor_rows(&all, p[i].which * d, d),
                                      .b = p[i].b ? p[i].b + (size_t)e * all.rows + p[i].which * d
                                                  : NULL};
            g->products[n] = (Product){.w = &g->matrices[n],
                                       .x = p[i].x + (p[i].shared_x ? 0 : first * all.cols),
                                       .n_rows = (int)rows,
                                       .y = p[i].y + first * d};
        }
    }
    matmul(s, g->products, n);
}

/* y = [shared expert's y, times its gate +] sum of weights * results, for each row. */
static void sum_rows(void *context, int from, int to, int thread)
{
    const Rows *r = context;
    const Routing *g = &r->s->routing;
    size_t dim = (size_t)r->c->dim, used = (size_t)r->c->experts.n_used;
    bool has_shared = r->l->w_down.w.data && !r->c->experts.beside;
    (void)thread;
    for (size_t i = (size_t)from; i < (size_t)to; i++) {
        float *y = r->y + i * dim;
        float shared = r->l->shared_gate.w.data ? g->shared[i] : 1;
        for (size_t j = 0; j < dim; j++)
            y[j] = has_shared ? shared * y[j] : 0;
        for (size_t k = i * used; k < (i + 1) * used; k++) {
            const float *part = g->y + (size_t)g->slots[k] * dim, weight = g->weights[k];
            for (size_t j = 0; j < dim; j++)
                y[j] += weight * part[j];
        }
    }
}

void experts_sum(Session *s, int layer, float *y, int n)
{
    const Stack *m = s->stack;
    const Layer *l = &m->layers[layer];
    Routing *g = &s->routing;
    int copies = n * m->config.experts.n_used;
    bool fused = m->config.gated && !l->up_exps.data;
    ExpertProduct gate = {.w = &l->gate_exps,
                          .b = l->gate_exps_b,
                          .n_parts = 1 + (size_t)fused,
                          .x = g->x,
                          .y = g->gate,
                          .shared_x = n == 1};
    ExpertProduct up = gate, down = {.w = &l->down_exps,
                                     .b = l->down_exps_b,
                                     .n_parts = 1,
                                     .x = g->hidden,
                                     .y = g->y};
    up.y = g->hidden;
    up.which = fused;
    if (!fused) {
        up.w = &l->up_exps;
        up.b = l->up_exps_b;
    }
    multiply(s, (ExpertProduct[]){up, gate}, m->config.gated ? 2 : 1);
    activate_rows(s, g->hidden, g->gate, copies, m->config.layers[layer].expert_dim);
    multiply(s, &down, 1);
    threads_run(s->threads, n, ROW_GRAIN, sum_rows,
                &(Rows){.s = s, .c = &m->config, .l = l, .y = y});
}
