/* jsonl.c - the attention file .jsonl: one line of JSON for each chosen row of the text, as soon as
 * the row has been run; and the experts of tokens, a line for each token. docs/attention.md
 * describes the keys. */
#include <stdlib.h>

#include "base/json.h"
#include "maps/format.h"

static double jsonl_size(const Maps *m)
{
    return m->o.top && m->o.top < m->n / 2 ? map_n_weights(m) / m->n * m->o.top * 24
                                           : map_n_visible(m) * 16;
}

/* The nested lists of a line: of each map the weights or, with `wants_keys`, the keys of the
 * largest. */
static void add_maps(const Maps *m, Json *j, const float *w, size_t stride, int n, bool wants_keys)
{
    int *keys = mem_alloc((size_t)n, sizeof *keys);
    j->out->failed |= !keys;
    json_list(j);
    for (int layer = 0; keys && layer < map_layers(m); layer++) {
        json_list(j);
        for (int head = 0; head < map_heads(m); head++) {
            const float *row = w + (size_t)(layer * map_heads(m) + head) * stride;
            int count = m->o.top ? map_top(row, n, m->o.top, keys) : n;
            j->out->failed |= count < 0;
            json_list(j);
            for (int i = 0; i < count; i++) {
                int k = m->o.top ? keys[i] : i;
                if (wants_keys)
                    json_int(j, k);
                else
                    json_number(j, (double)row[k]);
            }
            json_end(j);
        }
        json_end(j);
    }
    json_end(j);
    free(keys);
}

/* A line's beginning, which says what the token is. */
static void begin_line(Json *j, const Maps *m, int pos, int id)
{
    Buf bytes = {0}, text = {0};
    map_token_bytes(m, id, &bytes);
    map_token_text(m, id, &text);
    json_object(j);
    json_int(json_key(j, "v"), 1);
    json_int(json_key(j, "pos"), pos);
    json_int(json_key(j, "id"), id);
    json_buf(json_key(j, "token"), &text);
    json_hex(json_key(j, "bytes"), &bytes);
    json_bool(json_key(j, "prompt"), pos < m->n_prompt);
    buf_free(&bytes);
    buf_free(&text);
}

/* Write the line that j is, and free its text. */
static int end_line(MapFile *f, Json *j, Err *e)
{
    json_end(j);
    buf_text(j->out, "\n");
    int rc = mapfile_write_buf(f, j->out, e);
    if (!rc && fflush(f->out.f))
        rc = out_error(&f->out, e);
    buf_free(j->out);
    return rc;
}

static int jsonl_line(MapFile *f, int pos, int id, const float *w, size_t stride, Err *e)
{
    const Maps *m = f->maps;
    Buf out = {0};
    Json j = {.out = &out};
    begin_line(&j, m, pos, id);
    if (map_kind(m))
        json_text(json_key(&j, "kind"), map_kind(m));
    json_text(json_key(&j, "reduce"), map_reduce_names[m->o.reduce]);
    json_ints(json_key(&j, "layers"), m->layers, m->n_layers);
    json_ints(json_key(&j, "heads"), m->heads, m->n_heads);
    if (m->o.top)
        add_maps(m, json_key(&j, "keys"), w, stride, map_keys(m, pos), true);
    add_maps(m, json_key(&j, "attn"), w, stride, map_keys(m, pos), false);
    return end_line(f, &j, e);
}

/* A token's experts, or their weights, (n_layers, n_used). */
static void add_routes(Json *j, const Routes *r, int pos, bool wants_weights)
{
    json_list(j);
    for (int layer = 0; layer < r->n_layers; layer++) {
        size_t at = routes_at(r, layer, pos);
        json_list(j);
        for (size_t k = at; k < at + (size_t)r->n_used; k++)
            if (wants_weights)
                json_number(j, (double)r->weights[k]);
            else
                json_int(j, r->experts[k]);
        json_end(j);
    }
    json_end(j);
}

static int jsonl_routes(MapFile *f, const int *ids, int first, int n, Err *e)
{
    const Routes *r = f->routes;
    for (int i = 0; i < n; i++) {
        Buf out = {0};
        Json j = {.out = &out};
        begin_line(&j, f->maps, first + i, ids[i]);
        json_ints(json_key(&j, "layers"), r->layers, r->n_layers);
        add_routes(json_key(&j, "experts"), r, first + i, false);
        add_routes(json_key(&j, "weights"), r, first + i, true);
        if (end_line(f, &j, e))
            return -1;
    }
    return 0;
}

/* Only rollout comes this way: one map. */
static int jsonl_rows(MapFile *f, int map, int row, int n_rows, const float *w, const Buf *tile,
                      Err *e)
{
    (void)map, (void)tile;
    for (int r = 0; r < n_rows; r++)
        if (jsonl_line(f, row + r, f->maps->ids[row + r], w + (size_t)r * (size_t)f->maps->n, 0, e))
            return -1;
    return 0;
}

const MapFormat format_jsonl = {
    .ending = ".jsonl",
    .live = true,
    .takes_top = true,
    .size = jsonl_size,
    .rows = jsonl_rows,
    .line = jsonl_line,
    .routes = jsonl_routes,
};
