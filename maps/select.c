/* select.c - what of the attention maps is wanted: lists of layers and heads, ranges of queries,
 * and the text that they are of. Contracts are in maps.h. Nothing here computes a weight.
 */
#include "maps/maps.h"

#include <stdlib.h>
#include <string.h>

static int bad_list(const char *flag, const char *list, const char *want, Err *e)
{
    char seen[80];
    return err_set(e, EXIT_USAGE, "%s: got \"%s\", want %s", flag,
                   str_escape((Str){list, strlen(list)}, seen, sizeof seen), want);
}

/* A number of the list, negative ones counted from n. -1 if there is none or it is out of range. */
static long read_index(const char **p, long n)
{
    char *end;
    if (**p != '-' && (**p < '0' || **p > '9'))
        return -1;
    long v = strtol(*p, &end, 10);
    if (end == *p || v >= n || v < -n)
        return -1;
    *p = end;
    return v < 0 ? v + n : v;
}

/* "0,3-5,-1" out of n things -> ascending numbers without repeats, freed by the caller. */
static int *read_list(const char *flag, const char *list, int n, int *count, Err *e)
{
    int *out = mem_alloc((size_t)n, sizeof *out);
    bool *chosen = mem_zalloc((size_t)n, sizeof *chosen);
    char want[80];
    snprintf(want, sizeof want, "numbers and ranges from 0 to %d, such as 0,3-5,-1", n - 1);
    int rc = out && chosen ? 0 : err_set(e, EXIT_MEMORY, "out of memory");
    for (const char *p = list; !rc && p;) {
        long from = read_index(&p, n), to = from;
        if (from >= 0 && *p == '-') {
            p++;
            to = read_index(&p, n);
        }
        if (from < 0 || to < from || (*p && *p != ','))
            rc = bad_list(flag, list, want, e);
        for (long i = from; !rc && i <= to; i++)
            chosen[i] = true;
        p = *p == ',' ? p + 1 : NULL;
    }
    *count = 0;
    for (int i = 0; !rc && i < n; i++)
        if (!list || chosen[i])
            out[(*count)++] = i;
    free(chosen);
    if (rc) {
        free(out);
        out = NULL;
    }
    return out;
}

/* The rows of a text of n tokens; with n = 0 only the spelling is checked. */
static int choose_queries(Maps *m, int n, Err *e)
{
    const char *q = m->o.queries;
    char *end;
    m->first = 0;
    m->n_queries = n;
    if (!q || !strcmp(q, "all"))
        return 0;
    if (!strcmp(q, "prompt")) {
        m->n_queries = n < m->n_prompt ? n : m->n_prompt;
        return 0;
    }
    if (!strcmp(q, "generated")) {
        m->first = n < m->n_prompt ? n : m->n_prompt;
        m->n_queries = n - m->first;
        return 0;
    }
    long from = *q >= '0' && *q <= '9' ? strtol(q, &end, 10) : -1, to = from;
    if (from >= 0 && *end == '-' && end[1] >= '0' && end[1] <= '9')
        to = strtol(end + 1, &end, 10);
    if (from < 0 || to < from || *end)
        return bad_list("--attn-queries", q, "all, prompt, generated or positions A-B", e);
    m->first = from < n ? (int)from : n;
    m->n_queries = (to < n ? (int)to + 1 : n) - m->first;
    return 0;
}

/* Recurrent layers have no maps: those that were named are an error, the others are left out. */
static int leave_out_recurrent(Maps *m, const Config *c, Err *e)
{
    int n = 0;
    for (int i = 0; i < m->n_layers; i++) {
        int layer = m->layers[i];
        if (c->layers[layer].mixer == MIX_ATTENTION)
            m->layers[n++] = layer;
        else if (m->o.layers)
            return err_set(e, EXIT_USAGE,
                           "--attn-layers: layer %d is a %s, which has no map; "
                           "without the flag all layers that have one are taken",
                           layer, mixer_names[c->layers[layer].mixer]);
    }
    m->n_layers = n;
    return n ? 0 : err_set(e, EXIT_USAGE, "attention maps: no layer of the model has any");
}

int maps_select(Maps *m, Err *e)
{
    const Config *c = map_config(m);
    m->layers = read_list("--attn-layers", m->o.layers, c->n_layers, &m->n_layers, e);
    if (!m->layers || leave_out_recurrent(m, c, e))
        return -1;
    int n_heads = c->layers[m->layers[0]].n_heads;
    for (int i = 1; i < m->n_layers; i++)
        if (c->layers[m->layers[i]].n_heads != n_heads)
            return err_set(e, EXIT_USAGE,
                           "--attn-layers: got layers with %d and %d heads, "
                           "want layers with as many heads each",
                           n_heads, c->layers[m->layers[i]].n_heads);
    m->heads = read_list("--attn-heads", m->o.heads, n_heads, &m->n_heads, e);
    return m->heads ? choose_queries(m, 0, e) : -1;
}

const char *map_model_name(const Maps *m)
{
    const char *slash = strrchr(m->model_path, '/');
    return slash ? slash + 1 : m->model_path;
}

void maps_set_text(Maps *m, const int *ids, int n)
{
    Err none;
    m->ids = ids;
    m->n = n;
    choose_queries(m, n, &none); // maps_select() has checked it
}

double map_n_weights(const Maps *m)
{
    return (double)map_layers(m) * map_heads(m) * m->n_queries * m->n;
}

int map_keys(const Maps *m, int pos)
{
    int end = map_config(m)->encoder ? m->n : 0;
    for (int i = 0; i < m->n_layers; i++) {
        KeyRange keys = visible(&map_config(m)->layers[m->layers[i]], pos, m->n);
        end = keys.to > end ? keys.to : end;
    }
    return end;
}

double map_n_visible(const Maps *m)
{
    double sum = 0;
    for (int i = 0; i < m->n_queries; i++)
        sum += map_keys(m, m->first + i);
    return (double)map_layers(m) * map_heads(m) * sum;
}

void map_token_text(const Maps *m, int id, Buf *out)
{
    tokenizer_text(m->model->tokenizer, id, out);
}

void map_token_bytes(const Maps *m, int id, Buf *out)
{
    tokenizer_bytes(m->model->tokenizer, id, false, out);
}

typedef struct {
    float w;
    int key;
} Weight;

static int heavier(const void *a, const void *b)
{
    const Weight *x = a, *y = b;
    return x->w != y->w ? (x->w < y->w) - (x->w > y->w) : (x->key > y->key) - (x->key < y->key);
}

int map_top(const float *w, int n, int k, int *keys)
{
    Weight *all = mem_alloc((size_t)n, sizeof *all);
    if (!all)
        return -1;
    for (int i = 0; i < n; i++)
        all[i] = (Weight){w[i], i};
    qsort(all, (size_t)n, sizeof *all, heavier);
    k = k < n ? k : n;
    for (int i = 0; i < k; i++)
        keys[i] = all[i].key;
    free(all);
    return k;
}

void map_label(const Maps *m, int map, char *out, size_t size)
{
    static const char *const words[] = {
        [REDUCE_NONE] = "",     [REDUCE_MEAN_HEADS] = "mean", [REDUCE_MAX_HEADS] = "max",
        [REDUCE_MEAN] = "mean", [REDUCE_ROLLOUT] = "rollout",
    };
    const char *word = words[m->o.reduce];
    if (m->o.reduce == REDUCE_NONE)
        snprintf(out, size, "%d,%d,", m->layers[map / m->n_heads], m->heads[map % m->n_heads]);
    else if (m->o.reduce >= REDUCE_MEAN)
        snprintf(out, size, "%s,%s,", word, word);
    else
        snprintf(out, size, "%d,%s,", m->layers[map], word);
}
