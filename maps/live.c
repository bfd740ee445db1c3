/* live.c - the rows of each forward() of the running session, for files that take a line per token.
 * Contracts are in job.h.
 *
 * After each layer the weights of the batch's rows are computed from the queries and the cache,
 * head by head, and copied or reduced into the matrix of the rows' lines, which is complete after
 * the last one.
 */
#include "maps/job.h"

#include <stdlib.h>

#include "maps/reduce.h"

enum { LIVE_FLOATS = 1 << 24 };

static bool live_maps_wanted(const MapJob *j)
{
    for (int i = 0; i < j->maps.o.n_files; i++)
        if (j->files[i].live)
            return true;
    return false;
}

bool maps_live(const MapJob *j)
{
    return j->maps.o.n_routing || live_maps_wanted(j);
}

static size_t live_maps(const Maps *m)
{
    return (size_t)map_layers(m) * (size_t)map_heads(m);
}

void maps_live_params(const MapJob *j, SessionParams *p)
{
    if (!live_maps_wanted(j))
        return;
    size_t row = live_maps(&j->maps) * (size_t)p->seq_len, n = LIVE_FLOATS / row;
    n = n < 1 ? 1 : n > MAP_ROWS ? MAP_ROWS : n;
    p->max_batch = (size_t)p->max_batch < n ? p->max_batch : (int)n;
    p->max_logits = p->max_logits < p->max_batch ? p->max_logits : p->max_batch;
    p->keep_softmax = true;
}

/* The rows of one layer. */
typedef struct {
    MapJob *job;
    int layer, pos, n_rows; // positions pos .. pos + n_rows - 1
} LiveLayer;

static void live_heads(void *context, int from, int to, int thread)
{
    const LiveLayer *l = context;
    MapJob *j = l->job;
    Session *s = j->session;
    int n_keys = l->pos + l->n_rows;
    size_t size = (size_t)l->n_rows * (size_t)n_keys;
    for (int h = from; h < to; h++)
        for (int row = 0, n; row < l->n_rows; row += n) {
            n = l->n_rows - row < MAP_ROWS ? l->n_rows - row : MAP_ROWS;
            attention_weights(s, l->layer, j->maps.heads[h], row, n,
                              j->heads + (size_t)h * size + (size_t)row * (size_t)n_keys, n_keys,
                              thread);
        }
}

static int live_layer(void *context, const HookRows *rows)
{
    Session *s = rows->s;
    MapJob *j = context;
    const Maps *m = &j->maps;
    int index = 0;
    while (index < m->n_layers && m->layers[index] != rows->layer)
        index++;
    if (index == m->n_layers)
        return 0;
    LiveLayer l = {j, rows->layer, s->cache.seqs[0].n_pos, s->n_rows};
    size_t n_keys = (size_t)(l.pos + l.n_rows), seq_len = (size_t)s->params.seq_len;
    size_t n_maps = live_maps(m);
    bool one = m->o.reduce >= REDUCE_MEAN, none = m->o.reduce == REDUCE_NONE;
    threads_run(s->threads, m->n_heads, 1, live_heads, &l);
    for (int h = 0; h < m->n_heads; h++)
        for (int r = 0; r < l.n_rows; r++) {
            int all = index * m->n_heads + h;
            const float *w = j->heads + ((size_t)h * (size_t)l.n_rows + (size_t)r) * n_keys;
            size_t map = one ? 0 : none ? (size_t)all : (size_t)index;
            float *to = j->live + ((size_t)r * n_maps + map) * seq_len;
            int i = none ? 0 : one ? all : h;
            int n = none ? 1 : one ? m->n_layers * m->n_heads : m->n_heads;
            map_reduce(m->o.reduce, to, w, n_keys, i, n);
        }
    return 0;
}

int maps_live_watch(MapJob *j, Session *s, Err *e)
{
    size_t seq_len = (size_t)s->params.seq_len, rows = (size_t)s->params.max_batch;
    j->session = s;
    if (j->maps.o.n_routing && routes_watch(&j->routes, s, e))
        return -1;
    if (!live_maps_wanted(j))
        return 0;
    j->heads = mem_alloc((size_t)j->maps.n_heads * rows * seq_len, sizeof *j->heads);
    j->live = mem_alloc(live_maps(&j->maps) * rows * seq_len, sizeof *j->live);
    if (!j->heads || !j->live)
        return err_set(e, EXIT_MEMORY, "out of memory for attention maps");
    session_hook(s, HOOK_LAYER, live_layer, j);
    return 0;
}

int maps_live_rows(MapJob *j, const int *ids, int n, Err *e)
{
    const Session *s = j->session;
    size_t seq_len = (size_t)s->params.seq_len, n_maps = live_maps(&j->maps);
    int pos = s->cache.seqs[0].n_pos - n;
    const float *live = j->live ? j->live + (size_t)(s->n_rows - n) * n_maps * seq_len : NULL;
    if (threads_stopped(s->threads) && pos + n < j->maps.n_prompt)
        return 0; // the prompt will not be complete, and then no file is made
    maps_set_text(&j->maps, NULL, pos + n);
    for (int i = j->maps.o.n_files; i < j->n_files; i++)
        if (j->files[i].live && mapfile_routes(&j->files[i], ids, pos, n, e))
            return -1;
    for (int r = 0; j->live && r < n; r++)
        for (int i = 0; i < j->maps.o.n_files; i++)
            if (map_has_row(&j->maps, pos + r)
                && mapfile_line(&j->files[i], pos + r, ids[r], live + (size_t)r * n_maps * seq_len,
                                seq_len, e))
                return -1;
    return 0;
}
