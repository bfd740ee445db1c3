/* stats.c - statistics of attention maps. Contracts are in stats.h, formulas and sources in
 * docs/attention.md. */
#include "maps/stats.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"

typedef struct {
    const char *name;
    size_t offset;
    bool whole; // an int
} Column;

#define OF(field) offsetof(HeadStats, field), false
#define INT_OF(field) offsetof(HeadStats, field), true

static const Column columns[] = {
    {"layer", INT_OF(layer)},
    {"head", INT_OF(head)},
    {"rows", OF(rows)},
    {"entropy", OF(entropy)},
    {"entropy_rel", OF(entropy_rel)},
    {"distance", OF(distance)},
    {"sink", OF(sink)},
    {"self", OF(self)},
    {"previous", OF(previous)},
    {"max_weight", OF(max_weight)},
    {"sink_rows", OF(sink_rows)},
    {"induction", OF(induction)},
    {"q_massive", OF(massive[0])},
    {"q_dim", INT_OF(dim[0])},
    {"k_massive", OF(massive[1])},
    {"k_dim", INT_OF(dim[1])},
    {"v_massive", OF(massive[2])},
    {"v_dim", INT_OF(dim[2])},
};

enum { N_COLUMNS = sizeof columns / sizeof *columns };

/* The means are the doubles from entropy to sink_rows. */
static const size_t first_mean = offsetof(HeadStats, entropy),
                    last_mean = offsetof(HeadStats, sink_rows);

int stats_init(Stats *s, const Maps *m, Err *e)
{
    size_t n = (size_t)m->n_layers * (size_t)m->n_heads;
    *s = (Stats){.maps = m, .heads = mem_zalloc(n, sizeof *s->heads), .on = true};
    if (!s->heads)
        return err_set(e, EXIT_MEMORY, "out of memory for the statistics");
    for (size_t i = 0; i < n; i++) {
        s->heads[i].layer = m->layers[i / (size_t)m->n_heads];
        s->heads[i].head = m->heads[i % (size_t)m->n_heads];
    }
    return 0;
}

void stats_free(Stats *s)
{
    free(s->heads);
    *s = (Stats){0};
}

void stats_row(const Maps *m, int layer, int pos, const float *w, HeadStats *out)
{
    KeyRange keys = visible(&map_config(m)->layers[layer], pos, m->n);
    int n = keys.to - keys.from, largest = keys.from;
    double entropy = 0, distance = 0, hits = 0, weight = 0;
    for (int k = keys.from; k < keys.to; k++) {
        double x = w[k];
        entropy -= x != 0 ? x * log(x) : 0; // a NaN stays one
        distance += x * abs(pos - k);
        weight += x;
        largest = w[k] > w[largest] ? k : largest;
        if (k > 0 && k <= pos
            && m->ids[k - 1] == m->ids[pos]) // k - 1 < pos, so it is an earlier occurrence
            hits += x;
    }
    *out = (HeadStats){.hits = hits, .weight = weight};
    if (n < 2)
        return;
    out->rows = 1;
    out->entropy = entropy;
    out->entropy_rel = entropy / log(n);
    out->distance = distance;
    out->sink = w[0];
    out->self = w[pos];
    out->previous = pos > 0 ? w[pos - 1] : 0;
    out->max_weight = w[largest];
    out->sink_rows = isnan(weight) ? NAN : largest == 0;
}

static double *field(HeadStats *h, size_t offset)
{
    return (double *)((char *)h + offset);
}

void stats_add(HeadStats *sum, const HeadStats *row)
{
    HeadStats r = *row;
    for (size_t at = first_mean; at <= last_mean; at += sizeof(double))
        *field(sum, at) += *field(&r, at);
    sum->rows += r.rows;
    sum->hits += r.hits;
    sum->weight += r.weight;
}

void stats_end(Stats *s)
{
    for (int i = 0; i < s->maps->n_layers * s->maps->n_heads; i++) {
        HeadStats *h = &s->heads[i];
        for (size_t at = first_mean; at <= last_mean; at += sizeof(double))
            *field(h, at) = h->rows > 0 ? *field(h, at) / h->rows : NAN;
        h->induction = h->weight > 0 ? h->hits / h->weight : NAN;
    }
}

/* ---- massive values -------------------------------------------------------------------------- */

typedef struct {
    double largest, sum, n;
    int dim;
} Extreme;

static void see(Extreme *x, float v, int dim)
{
    double a = fabs((double)v);
    if (a > x->largest) {
        x->largest = a;
        x->dim = dim;
    }
    x->sum += a;
    x->n++;
}

static void store(HeadStats *h, int which, const Extreme *x)
{
    h->massive[which] = x->sum > 0 ? x->largest / (x->sum / x->n) : NAN;
    h->dim[which] = x->dim;
}

typedef struct {
    Stats *stats;
    Session *session;
    int layer_index, n;
} Massive;

/* One item is one selected head. */
static void massive_heads(void *context, int from, int to, int thread)
{
    const Massive *m = context;
    const Session *s = m->session;
    const Maps *maps = m->stats->maps;
    int layer = maps->layers[m->layer_index];
    const LayerConfig *l = &s->stack->config.layers[layer];
    int group = l->n_heads / l->n_kv_heads;
    size_t width = q_width(l);
    float *keys = threads_scratch(s->threads, thread);
    float *values = keys + l->key_dim * KV_BLOCK; // attention's scratch has room for these
    for (int i = from; i < to; i++) {
        int head = maps->heads[i];
        HeadStats *h = &m->stats->heads[m->layer_index * maps->n_heads + i];
        Extreme q = {0}, k = {0}, v = {0};
        for (int t = 0; t < m->n; t++)
            for (int d = 0; d < l->key_dim; d++)
                see(&q, s->q[(size_t)t * width + (size_t)(head * l->key_dim + d)], d);
        for (int b = 0; b * KV_BLOCK < m->n; b++) {
            int n = m->n - b * KV_BLOCK < KV_BLOCK ? m->n - b * KV_BLOCK : KV_BLOCK;
            cache_read(&s->cache, layer, head / group, 0, b, keys, values);
            for (int d = 0; d < l->key_dim; d++)
                for (int t = 0; t < n; t++)
                    see(&k, keys[d * KV_BLOCK + t], d);
            for (int t = 0; t < n; t++)
                for (int d = 0; d < l->value_dim; d++)
                    see(&v, values[t * l->value_dim + d], d);
        }
        store(h, 0, &q);
        store(h, 1, &k);
        store(h, 2, &v);
    }
}

void stats_massive(Stats *s, int layer_index, Session *session, int n)
{
    threads_run(session->threads, s->maps->n_heads, 1, massive_heads,
                &(Massive){s, session, layer_index, n});
}

/* ---- output ---------------------------------------------------------------------------------- */

const char *stats_column(int i)
{
    return i < N_COLUMNS ? columns[i].name : NULL;
}

double stats_value(const HeadStats *h, int i)
{
    const char *p = (const char *)h + columns[i].offset;
    return columns[i].whole ? *(const int *)p : *(const double *)p;
}

static int count(const Stats *s)
{
    return s->maps->n_layers * s->maps->n_heads;
}

void stats_csv(const Stats *s, Buf *out)
{
    for (int c = 0; c < N_COLUMNS; c++) {
        buf_text(out, columns[c].name);
        buf_text(out, c + 1 < N_COLUMNS ? "," : "\n");
    }
    for (int i = 0; i < count(s); i++)
        for (int c = 0; c < N_COLUMNS; c++) {
            char text[32];
            double v = stats_value(&s->heads[i], c);
            snprintf(text, sizeof text, "%.9g", v);
            buf_text(out, isnan(v) ? "" : text);
            buf_text(out, c + 1 < N_COLUMNS ? "," : "\n");
        }
}

void stats_json(const Stats *s, Buf *out)
{
    Json j = {.out = out};
    json_object(&j);
    json_int(json_key(&j, "v"), 1);
    json_text(json_key(&j, "model"), map_model_name(s->maps));
    json_int(json_key(&j, "n_tokens"), s->maps->n);
    json_int(json_key(&j, "n_prompt"), s->maps->n_prompt);
    json_list(json_key(&j, "heads"));
    for (int i = 0; i < count(s); i++) {
        json_object(json_break(&j));
        for (int c = 0; c < N_COLUMNS; c++)
            json_number(json_key(&j, columns[c].name), stats_value(&s->heads[i], c));
        json_end(&j);
    }
    json_end(json_break(&j));
    json_end(&j);
    buf_text(out, "\n");
}

void stats_table(const Stats *s, Buf *out)
{
    char cell[40];
    for (int i = -1; i < count(s); i++)
        for (int c = 0; c < N_COLUMNS; c++) {
            double v = i < 0 ? 0 : stats_value(&s->heads[i], c);
            int width = (int)strlen(columns[c].name) > 6 ? (int)strlen(columns[c].name) : 6, n;
            width -= c == 0 ? 1 : 0; // "layer" is the first word of the line
            if (i < 0)
                n = snprintf(cell, sizeof cell, "%*s", width, columns[c].name);
            else if (isnan(v))
                n = snprintf(cell, sizeof cell, "%*s", width, "-");
            else
                n = snprintf(cell, sizeof cell,
                             columns[c].whole || c == 2 ? "%*.0f"
                             : fabs(v) >= 10            ? "%*.1f"
                                                        : "%*.3f",
                             width, v);
            buf_add(out, cell, (size_t)n);
            buf_text(out, c + 1 < N_COLUMNS ? " " : "\n");
        }
}
