/* reduce.c - reductions: several attention maps as one. Contracts are in reduce.h. */
#include "maps/reduce.h"

#include <stdlib.h>
#include <string.h>

const char *const map_reduce_names[] = {
    [REDUCE_NONE] = "none", [REDUCE_MEAN_HEADS] = "mean-heads", [REDUCE_MAX_HEADS] = "max-heads",
    [REDUCE_MEAN] = "mean", [REDUCE_ROLLOUT] = "rollout",       [REDUCE_ROLLOUT + 1] = NULL,
};

void map_reduce(MapReduce how, float *dst, const float *w, size_t count, int i, int n)
{
    if (how == REDUCE_MAX_HEADS) {
        for (size_t k = 0; k < count; k++)
            dst[k] = i && dst[k] > w[k] ? dst[k] : w[k];
        return;
    }
    float scale = 1 / (float)n;
    for (size_t k = 0; k < count; k++)
        dst[k] = (i ? dst[k] : 0) + w[k] * scale;
}

int all_layers_init(AllLayers *a, const Maps *m)
{
    size_t T = (size_t)m->n;
    bool rollout = m->o.reduce == REDUCE_ROLLOUT;
    *a = (AllLayers){.maps = m, .rows = mem_zalloc(T * T, sizeof *a->rows)};
    a->next = rollout ? mem_alloc(T * T, sizeof *a->next) : NULL;
    if (!a->rows || (rollout && !a->next))
        return -1;
    for (size_t i = 0; rollout && i < T; i++)
        a->rows[i * T + i] = 1;
    return 0;
}

void all_layers_free(AllLayers *a)
{
    free(a->rows);
    free(a->next);
    *a = (AllLayers){0};
}

float *all_layers_rows(const AllLayers *a, int pos)
{
    int base = a->maps->o.reduce == REDUCE_MEAN ? a->maps->first : 0; // position of the first row
    return a->rows + (size_t)(pos - base) * (size_t)a->maps->n;
}

/* Some rows of a layer's reduced map. */
typedef struct {
    AllLayers *all;
    Session *s;
    int pos, n_rows;
    const float *w; // (n_rows, T)
} LayerRows;

/* R' = (A R + R) / 2 for tiles of MAP_ROWS rows; rows of R that no row of A looks at are not read.
 */
static void roll_tiles(void *context, int from, int to, int thread)
{
    const LayerRows *l = context;
    const AllLayers *all = l->all;
    size_t T = (size_t)all->maps->n;
    (void)thread;
    for (int tile = from; tile < to; tile++) {
        int left = l->n_rows - tile * MAP_ROWS, n = left < MAP_ROWS ? left : MAP_ROWS;
        int row = l->pos + tile * MAP_ROWS;
        const float *a = l->w + (size_t)tile * MAP_ROWS * T;
        float *out = all->next + (size_t)row * T;
        memcpy(out, all->rows + (size_t)row * T, (size_t)n * T * sizeof *out);
        size_t n_keys = (size_t)map_keys(all->maps, row + n - 1);
        l->s->k->gemm_add((size_t)n, n_keys, T, a, T, all->rows, T, out, T);
        for (size_t i = 0; i < (size_t)n * T; i++)
            out[i] *= 0.5f;
    }
}

void all_layers_add(AllLayers *a, Session *s, int layer_index, int pos, int n_rows, const float *w)
{
    const Maps *m = a->maps;
    if (m->o.reduce == REDUCE_MEAN)
        map_reduce(REDUCE_MEAN, all_layers_rows(a, pos), w, (size_t)n_rows * (size_t)m->n,
                   layer_index, m->n_layers);
    else
        threads_run(s->threads, (n_rows + MAP_ROWS - 1) / MAP_ROWS, 1, roll_tiles,
                    &(LayerRows){a, s, pos, n_rows, w});
}

void all_layers_end_layer(AllLayers *a)
{
    if (!a->next)
        return;
    float *swap = a->rows;
    a->rows = a->next;
    a->next = swap;
}
