/* jsonl.c - the attention file .jsonl: one line of JSON for each chosen row of the text, as soon as
 * the row has been run. docs/attention.md describes the keys. */
#include <stdlib.h>

#include "base/json.h"
#include "maps/format.h"

static double jsonl_size(const Maps *m)
{
    return m->o.top && m->o.top < m->n / 2 ? map_n_weights(m) / m->n * m->o.top * 24
                                           : map_n_visible(m) * 16;
}

/* The nested lists of a line: of each map the weights or, for `which` 1, the keys of the largest.
 */
static void json_maps(const Maps *m, Buf *out, const float *w, size_t stride, int n, int which)
{
    int *keys = mem_alloc((size_t)n, sizeof *keys);
    out->failed |= !keys;
    for (int layer = 0; keys && layer < map_layers(m); layer++)
        for (int head = 0; head < map_heads(m); head++) {
            const float *row = w + (size_t)(layer * map_heads(m) + head) * stride;
            int count = m->o.top ? map_top(row, n, m->o.top, keys) : n;
            out->failed |= count < 0;
            buf_text(out, head ? ", [" : layer ? "], [[" : "[[[");
            for (int i = 0; i < count; i++) {
                int k = m->o.top ? keys[i] : i;
                buf_add(out, ", ", i ? 2 : 0);
                if (which)
                    json_int(out, k);
                else
                    json_float(out, row[k]);
            }
            buf_add(out, "]", 1);
        }
    buf_text(out, "]]");
    free(keys);
}

static int jsonl_line(MapFile *f, int pos, int id, const float *w, size_t stride, Err *e)
{
    const Maps *m = f->maps;
    Buf out = {0}, bytes = {0}, text = {0};
    map_token_bytes(m, id, &bytes);
    map_token_text(m, id, &text);
    buf_text(&out, "{\"v\": 1, \"pos\": ");
    json_int(&out, pos);
    buf_text(&out, ", \"id\": ");
    json_int(&out, id);
    buf_text(&out, ", \"token\": ");
    json_string(&out, (Str){text.len ? text.ptr : "", text.len});
    buf_text(&out, ", \"bytes\": ");
    json_hex(&out, (Str){bytes.ptr, bytes.len});
    buf_text(&out, pos < m->n_prompt ? ", \"prompt\": true" : ", \"prompt\": false");
    buf_text(&out, ", \"reduce\": \"");
    buf_text(&out, map_reduce_names[m->o.reduce]);
    buf_text(&out, "\", \"layers\": ");
    json_ints(&out, m->layers, m->n_layers);
    buf_text(&out, ", \"heads\": ");
    json_ints(&out, m->heads, m->n_heads);
    if (m->o.top) {
        buf_text(&out, ", \"keys\": ");
        json_maps(m, &out, w, stride, pos + 1, 1);
    }
    buf_text(&out, ", \"attn\": ");
    json_maps(m, &out, w, stride, pos + 1, 0);
    buf_text(&out, "}\n");
    out.failed |= bytes.failed || text.failed;
    int rc = mapfile_write_buf(f, &out, e);
    if (!rc && fflush(f->out.f))
        rc = out_error(&f->out, e);
    buf_free(&out);
    buf_free(&bytes);
    buf_free(&text);
    return rc;
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
};
