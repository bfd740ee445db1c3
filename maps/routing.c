/* routing.c - which experts the tokens of a text went to. Contracts are in routing.h. */
#include "maps/routing.h"

#include <math.h>
#include <stdlib.h>

int routes_init(Routes *r, const Config *c, Err *e)
{
    *r = (Routes){.config = c, .n_used = c->experts.n_used};
    r->layers = mem_alloc((size_t)c->n_layers, sizeof *r->layers);
    if (!r->layers)
        return err_set(e, EXIT_MEMORY, "out of memory for the experts of the tokens");
    for (int i = 0; i < c->n_layers; i++)
        if (c->layers[i].expert_dim)
            r->layers[r->n_layers++] = i;
    return r->n_layers ? 0
                       : err_set(e, EXIT_USAGE,
                                 "--dump-routing: got a model without experts, "
                                 "want a mixture of experts");
}

/* The experts of rows that a layer's FFN has just run, sorted by their weights; of equal ones the
 * first comes first. */
static int note_rows(void *context, const HookRows *rows)
{
    Routes *r = context;
    const Session *s = rows->s;
    int index = 0, used = r->n_used;
    while (index < r->n_layers && r->layers[index] != rows->layer)
        index++;
    if (index == r->n_layers)
        return 0;
    for (int i = 0; i < rows->n; i++) {
        const int *chosen = s->routing.chosen + (size_t)i * (size_t)used;
        const float *weights = s->routing.weights + (size_t)i * (size_t)used;
        size_t to = routes_at(r, index, s->pos[rows->first + i]);
        for (int k = 0; k < used; k++) {
            size_t at = to + (size_t)k;
            for (; at > to && r->weights[at - 1] < weights[k]; at--) {
                r->experts[at] = r->experts[at - 1];
                r->weights[at] = r->weights[at - 1];
            }
            r->experts[at] = chosen[k];
            r->weights[at] = weights[k];
        }
    }
    return 0;
}

int routes_watch(Routes *r, Session *s, Err *e)
{
    size_t n = 0;
    r->n_rows = s->params.seq_len;
    bool fits = size_mul(routes_at(r, 1, 0), (size_t)r->n_layers, &n);
    r->experts = fits ? mem_alloc(n, sizeof *r->experts) : NULL;
    r->weights = fits ? mem_alloc(n, sizeof *r->weights) : NULL;
    if (!r->experts || !r->weights)
        return err_set(e, EXIT_MEMORY, "out of memory for the experts of the tokens");
    session_hook(s, HOOK_FFN, note_rows, r);
    return 0;
}

void routes_free(Routes *r)
{
    free(r->layers);
    free(r->experts);
    free(r->weights);
    *r = (Routes){0};
}

void routes_describe(const Session *s, char *out, size_t size)
{
    const Config *c = &s->stack->config;
    int n_layers = 0, n_seen = 0, n = c->experts.n, layer = 0, expert = 0;
    double spread = 0,
           most = 0; // sum over layers of e^entropy; the largest share of a layer's rows
    *out = 0;
    for (int i = 0; i < c->n_layers; i++) {
        const uint64_t *load = s->routing.load + (size_t)i * (size_t)n;
        double total = 0, entropy = 0;
        if (!c->layers[i].expert_dim)
            continue;
        n_layers++;
        for (int x = 0; x < n; x++)
            total += (double)load[x];
        for (int x = 0; x < n; x++) {
            double share = total > 0 ? (double)load[x] / total : 0;
            n_seen += load[x] > 0;
            entropy -= share > 0 ? share * log(share) : 0;
            if (share > most) {
                most = share;
                layer = i;
                expert = x;
            }
        }
        spread += exp(entropy);
    }
    if (n_layers)
        snprintf(out, size,
                 "experts: %d of %d a token in %d layers; %.1f %% were used, as evenly as %.1f of "
                 "%d would be; most: layer %d, expert %d, %.1f %% of the tokens",
                 c->experts.n_used, n, n_layers, 100.0 * n_seen / n / n_layers, spread / n_layers,
                 n, layer, expert, 100 * most * c->experts.n_used);
}
