/* csv.c - the attention file .csv: a line per weight, or per one of the largest weights of a row;
 * and the experts of tokens, a line each. docs/attention.md describes the columns. */
#include <stdlib.h>
#include <string.h>

#include "maps/format.h"

/* Display texts of all tokens, quoted, one after another. */
typedef struct {
    Buf text;
    size_t *at; // (n + 1)
} CsvTokens;

static double csv_size(const Maps *m)
{
    double all = map_n_visible(m);
    double top = (double)map_layers(m) * map_heads(m) * m->n_queries * m->o.top;
    return (m->o.top && top < all ? top : all) * 48 + 64;
}

/* The texts of all tokens, and the first line. */
static int csv_start(MapFile *f, const char *columns, Err *e)
{
    const Maps *m = f->maps;
    CsvTokens *t = f->state = mem_zalloc(1, sizeof *t);
    Buf text = {0};
    if (t)
        t->at = mem_alloc((size_t)m->n + 1, sizeof *t->at);
    if (!t || !t->at)
        return err_set(e, EXIT_MEMORY, "out of memory for attention maps");
    for (int i = 0; i < m->n; i++) {
        t->at[i] = t->text.len;
        text.len = 0;
        map_token_text(m, m->ids[i], &text);
        buf_add(&t->text, "\"", 1);
        for (size_t k = 0; k < text.len; k++) // a quote is doubled
            if (text.ptr[k] == '"')
                buf_add(&t->text, "\"\"", 2);
            else
                buf_add(&t->text, text.ptr + k, 1);
        buf_add(&t->text, "\"", 1);
    }
    t->at[m->n] = t->text.len;
    bool failed = text.failed || t->text.failed;
    buf_free(&text);
    return failed ? err_set(e, EXIT_MEMORY, "out of memory for attention maps")
                  : mapfile_write(f, columns, strlen(columns), e);
}

static int csv_begin(MapFile *f, Err *e)
{
    return csv_start(f,
                     map_kind(f->maps) ? "layer,head,query,key,query_token,key_token,weight,kind\n"
                                       : "layer,head,query,key,query_token,key_token,weight\n",
                     e);
}

static void csv_tile(const MapFile *f, int map, int row, int n_rows, const float *w, Buf *out)
{
    const Maps *m = f->maps;
    const CsvTokens *t = f->state;
    char label[64], line[96];
    int *keys = m->o.top ? mem_alloc((size_t)m->n, sizeof *keys) : NULL;
    map_label(m, map, label, sizeof label);
    for (int r = 0; r < n_rows; r++, w += m->n) {
        int q = row + r, n = map_keys(m, q);
        n = keys ? map_top(w, n, m->o.top, keys) : n;
        if (n < 0 || (m->o.top && !keys))
            out->failed = true;
        for (int i = 0; i < n; i++) {
            int k = keys ? keys[i] : i;
            buf_add(out, line, (size_t)snprintf(line, sizeof line, "%s%d,%d,", label, q, k));
            buf_add(out, t->text.ptr + t->at[q], t->at[q + 1] - t->at[q]);
            buf_add(out, ",", 1);
            buf_add(out, t->text.ptr + t->at[k], t->at[k + 1] - t->at[k]);
            buf_add(out, line,
                    (size_t)snprintf(line, sizeof line, ",%.9g%s%s\n", (double)w[k],
                                     map_kind(m) ? "," : "", map_kind(m) ? map_kind(m) : ""));
        }
    }
    free(keys);
}

static int csv_rows(MapFile *f, int map, int row, int n_rows, const float *w, const Buf *tile,
                    Err *e)
{
    (void)map, (void)row, (void)n_rows, (void)w;
    return tile->len ? mapfile_write(f, tile->ptr, tile->len, e) : 0;
}

/* A line for an expert, in order of layer, token and weight. */
static int csv_routes(MapFile *f, const int *ids, int first, int n, Err *e)
{
    const Routes *r = f->routes;
    Buf out = {0};
    (void)ids;
    int rc = csv_start(f, "layer,pos,token,expert,weight\n", e);
    for (int64_t i = 0; !rc && i < (int64_t)r->n_layers * n; i++) {
        const CsvTokens *t = f->state;
        int layer = (int)(i / n), pos = first + (int)(i % n);
        size_t at = routes_at(r, layer, pos);
        for (size_t k = at; k < at + (size_t)r->n_used; k++) {
            char line[64];
            buf_add(&out, line,
                    (size_t)snprintf(line, sizeof line, "%d,%d,", r->layers[layer], pos));
            buf_add(&out, t->text.ptr + t->at[pos], t->at[pos + 1] - t->at[pos]);
            buf_add(&out, line,
                    (size_t)snprintf(line, sizeof line, ",%d,%.9g\n", r->experts[k],
                                     (double)r->weights[k]));
        }
        rc = mapfile_write_buf(f, &out, e);
    }
    buf_free(&out);
    return rc;
}

static void csv_release(MapFile *f)
{
    CsvTokens *t = f->state;
    if (t) {
        buf_free(&t->text);
        free(t->at);
    }
}

const MapFormat format_csv = {
    .ending = ".csv",
    .takes_top = true,
    .size = csv_size,
    .begin = csv_begin,
    .tile = csv_tile,
    .rows = csv_rows,
    .routes = csv_routes,
    .release = csv_release,
};
