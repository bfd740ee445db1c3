/* dump.c - attention files: .npz .npy .jsonl .csv .svg (.html is viewer.c). docs/attention.md describes the formats.
 *
 * A file is written under a temporary name and renamed when it is complete; pipes and devices are written directly.
 */
#include "maps/dump.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "base/npy.h"
#include "base/blocks.h"
#include "base/utf8.h"

static int write_bytes(MapFile *f, const void *bytes, size_t len, Err *e)
{
    return fwrite(bytes, 1, len, f->out.f) == len ? 0 : out_error(&f->out, e);
}

static int write_buf(MapFile *f, Buf *b, Err *e)
{
    if (b->failed)
        return err_set(e, EXIT_MEMORY, "out of memory for attention maps");
    int rc = b->len ? write_bytes(f, b->ptr, b->len, e) : 0;
    b->len = 0;
    return rc;
}

static double n_weights(const Maps *m)
{
    return (double)map_layers(m) * map_heads(m) * m->n_queries * m->n;
}

/* Weights with key <= query: about half of them where all rows are chosen. */
static double n_visible(const Maps *m)
{
    double first = m->first + 1, last = m->first + m->n_queries;
    return (double)map_layers(m) * map_heads(m) * (first + last) / 2 * m->n_queries;
}

/* ---- .npy and .npz ------------------------------------------------------------------------------------------ */

static size_t item_size(const Maps *m)
{
    return m->o.half ? 2 : 4;
}

static void shape_of(const Maps *m, size_t shape[4])
{
    shape[0] = (size_t)map_layers(m);
    shape[1] = (size_t)map_heads(m);
    shape[2] = (size_t)m->n_queries;
    shape[3] = (size_t)m->n;
}

static double npy_size(const Maps *m)
{
    return n_weights(m) * (double)item_size(m) + NPY_HEADER;
}

static double npz_size(const Maps *m)
{
    return npy_size(m) + 4096 + 200.0 * m->n;
}

/* The bytes to be written: the floats themselves, or halves in `out`. */
static const void *convert(const Maps *m, const float *w, size_t count, Buf *out, size_t *len)
{
    *len = count * item_size(m);
    if (!m->o.half)
        return w;
    uint16_t half[1024];
    for (size_t i = 0; i < count; i += 1024) {
        size_t n = count - i < 1024 ? count - i : 1024;
        for (size_t k = 0; k < n; k++)
            half[k] = f32_f16(w[i + k]);
        buf_add(out, half, n * sizeof *half);
    }
    return out->ptr;
}

static int npy_begin(MapFile *f, Err *e)
{
    char h[NPY_HEADER];
    size_t shape[4];
    shape_of(f->maps, shape);
    npy_header(h, f->maps->o.half ? "<f2" : "<f4", shape, 4);
    return write_bytes(f, h, sizeof h, e);
}

static void npy_tile(const MapFile *f, int map, int row, int n_rows, const float *w, Buf *out)
{
    size_t len;
    (void)map, (void)row;
    convert(f->maps, w, (size_t)n_rows * (size_t)f->maps->n, out, &len);
}

static int npy_rows_in(MapFile *f, int map, int row, int n_rows, const float *w, const Buf *tile, Err *e)
{
    (void)map, (void)row;
    size_t len = (size_t)n_rows * (size_t)f->maps->n * item_size(f->maps);
    return write_bytes(f, f->maps->o.half ? (const void *)tile->ptr : w, len, e);
}

static int npz_start(MapFile *f, Err *e)
{
    const Maps *m = f->maps;
    size_t shape[4];
    Npz *z = f->state = mem_zalloc(1, sizeof *z);
    if (!z)
        return err_set(e, EXIT_MEMORY, "out of memory for attention maps");
    z->f = f->out.f;
    shape_of(m, shape);
    size_t n_bytes = shape[0] * shape[1] * shape[2] * shape[3] * item_size(m);
    return npz_begin(z, "attn.npy", m->o.half ? "<f2" : "<f4", shape, 4, n_bytes) ? out_error(&f->out, e) : 0;
}

/* Halves where they are wanted, and behind them the CRC. */
static void npz_tile(const MapFile *f, int map, int row, int n_rows, const float *w, Buf *out)
{
    const Npz *z = f->state;
    size_t len;
    (void)map, (void)row;
    const void *data = convert(f->maps, w, (size_t)n_rows * (size_t)f->maps->n, out, &len);
    uint32_t crc = out->failed ? 0 : crc_update(&z->crc, 0, data, len);
    buf_add(out, &crc, sizeof crc);
}

static int npz_rows(MapFile *f, int map, int row, int n_rows, const float *w, const Buf *tile, Err *e)
{
    uint32_t crc;
    size_t len = (size_t)n_rows * (size_t)f->maps->n * item_size(f->maps);
    (void)map, (void)row;
    memcpy(&crc, tile->ptr + tile->len - sizeof crc, sizeof crc);
    return npz_add(f->state, f->maps->o.half ? (const void *)tile->ptr : w, len, crc) ? out_error(&f->out, e) : 0;
}

/* Unicode text as numpy has it: each string in four bytes a character, filled up with zeros to the longest. */
static int npz_strings(Npz *z, const char *name, const Buf *text, const size_t *at, size_t n, const size_t *shape, int n_dims)
{
    size_t longest = 1;
    for (int pass = 0;; pass++) {
        uint32_t *out = pass ? mem_zalloc(n * longest, sizeof *out) : NULL;
        if (pass && !out)
            return -1;
        for (size_t i = 0; i < n; i++) {
            size_t chars = 0;
            for (size_t k = at[i]; k < at[i + 1]; chars++) {
                uint32_t cp;
                k += utf8_decode(text->ptr + k, text->ptr + at[i + 1], &cp);
                if (pass)
                    out[i * longest + chars] = cp;
            }
            longest = chars > longest ? chars : longest;
        }
        if (pass) {
            char descr[32];
            snprintf(descr, sizeof descr, "<U%zu", longest);
            int rc = npz_array(z, name, descr, shape, n_dims, out, n * longest * sizeof *out);
            free(out);
            return rc;
        }
    }
}

static int npz_finish(MapFile *f, Err *e)
{
    const Maps *m = f->maps;
    Npz *z = f->state;
    size_t n = (size_t)m->n, n_queries = (size_t)m->n_queries;
    Buf text = {0}, bytes = {0};
    size_t *text_at = mem_alloc(n + 1, sizeof *text_at);
    int64_t *bytes_at = mem_alloc(n + 1, sizeof *bytes_at), n_prompt = m->n_prompt;
    int32_t *queries = mem_alloc(n_queries, sizeof *queries);
    int rc = -1;
    errno = ENOMEM;
    if (!text_at || !bytes_at || !queries)
        goto done;
    text_at[0] = 0;
    bytes_at[0] = 0;
    for (size_t i = 0; i < n; i++) {
        tokenizer_text(m->model->tokenizer, m->ids[i], &text);
        tokenizer_bytes(m->model->tokenizer, m->ids[i], false, &bytes);
        text_at[i + 1] = text.len;
        bytes_at[i + 1] = (int64_t)bytes.len;
    }
    for (size_t i = 0; i < n_queries; i++)
        queries[i] = m->first + (int32_t)i;
    const char *reduce = map_reduce_names[m->o.reduce];
    Buf word = {.ptr = (char *)reduce, .len = strlen(reduce)};
    size_t n_layers = (size_t)m->n_layers, n_heads = (size_t)m->n_heads;
    if (text.failed || bytes.failed)
        goto done;
    rc = npz_end(z) || npz_array(z, "token_ids.npy", "<i4", &n, 1, m->ids, n * 4)
      || npz_strings(z, "tokens.npy", &text, text_at, n, &n, 1)
      || npz_array(z, "token_bytes.npy", "|u1", &bytes.len, 1, bytes.len ? bytes.ptr : "", bytes.len)
      || npz_array(z, "token_offsets.npy", "<i8", (size_t[]){n + 1}, 1, bytes_at, (n + 1) * 8)
      || npz_array(z, "n_prompt.npy", "<i8", NULL, 0, &n_prompt, 8)
      || npz_array(z, "layers.npy", "<i4", &n_layers, 1, m->layers, n_layers * 4)
      || npz_array(z, "heads.npy", "<i4", &n_heads, 1, m->heads, n_heads * 4)
      || npz_array(z, "queries.npy", "<i4", &n_queries, 1, queries, n_queries * 4)
      || npz_strings(z, "reduce.npy", &word, (size_t[]){0, word.len}, 1, NULL, 0) || npz_close(z) ? -1 : 0;
done:
    if (rc)
        out_error(&f->out, e);
    free(text_at);
    free(bytes_at);
    free(queries);
    buf_free(&text);
    buf_free(&bytes);
    return rc;
}

/* ---- .csv --------------------------------------------------------------------------------------------------- */

/* Display texts of all tokens, quoted, one after another. */
typedef struct {
    Buf text;
    size_t *at; // (n + 1)
} CsvTokens;

static double csv_size(const Maps *m)
{
    double all = n_visible(m), top = (double)map_layers(m) * map_heads(m) * m->n_queries * m->o.top;
    return (m->o.top && top < all ? top : all) * 48 + 64;
}

static int csv_begin(MapFile *f, Err *e)
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
        tokenizer_text(m->model->tokenizer, m->ids[i], &text);
        buf_add(&t->text, "\"", 1);
        for (size_t k = 0; k < text.len; k++) // a quote is doubled
            buf_add(&t->text, text.ptr[k] == '"' ? "\"\"" : text.ptr + k, text.ptr[k] == '"' ? 2 : 1);
        buf_add(&t->text, "\"", 1);
    }
    t->at[m->n] = t->text.len;
    bool failed = text.failed || t->text.failed;
    buf_free(&text);
    static const char header[] = "layer,head,query,key,query_token,key_token,weight\n";
    return failed ? err_set(e, EXIT_MEMORY, "out of memory for attention maps") : write_bytes(f, header, sizeof header - 1, e);
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

/* The K largest of n weights, largest first, earlier keys first where equal -> keys; returns how many, or -1. */
static int map_top(const float *w, int n, int k, int *keys)
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

/* "3,5,": the first two columns of a map's lines. */
static void map_label(const Maps *m, int map, char *out, size_t size)
{
    static const char *const words[] = {"", "mean", "max", "mean", "rollout"};
    const char *word = words[m->o.reduce];
    if (m->o.reduce == REDUCE_NONE)
        snprintf(out, size, "%d,%d,", m->layers[map / m->n_heads], m->heads[map % m->n_heads]);
    else if (m->o.reduce >= REDUCE_MEAN)
        snprintf(out, size, "%s,%s,", word, word);
    else
        snprintf(out, size, "%d,%s,", m->layers[map], word);
}

static void csv_tile(const MapFile *f, int map, int row, int n_rows, const float *w, Buf *out)
{
    const Maps *m = f->maps;
    const CsvTokens *t = f->state;
    char label[64], line[96];
    int *keys = m->o.top ? mem_alloc((size_t)m->n, sizeof *keys) : NULL;
    map_label(m, map, label, sizeof label);
    for (int r = 0; r < n_rows; r++, w += m->n) {
        int q = row + r, n = keys ? map_top(w, q + 1, m->o.top, keys) : q + 1;
        if (n < 0 || (m->o.top && !keys))
            out->failed = true;
        for (int i = 0; i < n; i++) {
            int k = keys ? keys[i] : i;
            buf_add(out, line, (size_t)snprintf(line, sizeof line, "%s%d,%d,", label, q, k));
            buf_add(out, t->text.ptr + t->at[q], t->at[q + 1] - t->at[q]);
            buf_add(out, ",", 1);
            buf_add(out, t->text.ptr + t->at[k], t->at[k + 1] - t->at[k]);
            buf_add(out, line, (size_t)snprintf(line, sizeof line, ",%.9g\n", (double)w[k]));
        }
    }
    free(keys);
}

static int text_rows(MapFile *f, int map, int row, int n_rows, const float *w, const Buf *tile, Err *e)
{
    (void)map, (void)row, (void)n_rows, (void)w;
    return tile->len ? write_bytes(f, tile->ptr, tile->len, e) : 0;
}

static void csv_release(MapFile *f)
{
    CsvTokens *t = f->state;
    if (t) {
        buf_free(&t->text);
        free(t->at);
    }
}

/* ---- .jsonl ------------------------------------------------------------------------------------------------- */

static double jsonl_size(const Maps *m)
{
    return m->o.top && m->o.top < m->n / 2 ? n_weights(m) / m->n * m->o.top * 24 : n_visible(m) * 16;
}

/* The nested lists of a line: of each map the weights or, for `which` 1, the keys of the largest. */
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

int mapfile_line(MapFile *f, int pos, int id, const float *w, size_t stride, Err *e)
{
    const Maps *m = f->maps;
    Buf out = {0}, bytes = {0}, text = {0};
    tokenizer_bytes(m->model->tokenizer, id, false, &bytes);
    tokenizer_text(m->model->tokenizer, id, &text);
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
    int rc = write_buf(f, &out, e);
    if (!rc && fflush(f->out.f))
        rc = out_error(&f->out, e);
    buf_free(&out);
    buf_free(&bytes);
    buf_free(&text);
    return rc;
}

static int jsonl_begin(MapFile *f, Err *e)
{
    (void)f, (void)e;
    return 0;
}

/* Only rollout comes this way: one map. */
static int jsonl_rows(MapFile *f, int map, int row, int n_rows, const float *w, const Buf *tile, Err *e)
{
    (void)map, (void)tile;
    for (int r = 0; r < n_rows; r++)
        if (mapfile_line(f, row + r, f->maps->ids[row + r], w + (size_t)r * (size_t)f->maps->n, 0, e))
            return -1;
    return 0;
}

/* ---- .svg --------------------------------------------------------------------------------------------------- */

enum { LEVELS = 256, FONT = 9 };

/* One map in the making: for each level the path of its cells. */
typedef struct {
    Buf paths[LEVELS];
    Buf out;
    int cell, label, step; // pixels of a cell, pixels for labels, cells from one label to the next
} Svg;

static double svg_size(const Maps *m)
{
    return n_visible(m) * 12 + (double)map_layers(m) * map_heads(m) * (m->n + m->n_queries) * 60 + 4096;
}

/* Viridis (van der Walt and Smith 2015) through nine of its colours. */
static void viridis(int level, char out[8])
{
    static const unsigned char points[9][3] = {{68, 1, 84}, {71, 45, 123}, {59, 82, 139}, {44, 114, 142}, {33, 145, 140},
                                               {40, 174, 128}, {94, 201, 98}, {173, 220, 48}, {253, 231, 37}};
    float at = (float)level / (LEVELS - 1) * 8;
    int i = at < 8 ? (int)at : 7, rgb[3];
    for (int k = 0; k < 3; k++)
        rgb[k] = (int)((float)points[i][k] + (at - (float)i) * (float)(points[i + 1][k] - points[i][k]) + 0.5f);
    snprintf(out, 8, "#%02x%02x%02x", rgb[0] & 255, rgb[1] & 255, rgb[2] & 255);
}

/* Text for XML; spaces and newlines are shown, what a label has no room for is cut. */
static void add_label(Buf *out, const Buf *text, int max)
{
    int n = 0;
    for (size_t i = 0; i < text->len; n++) {
        uint32_t cp;
        const char *p = text->ptr + i;
        size_t len = utf8_decode(p, text->ptr + text->len, &cp);
        i += len;
        if (n == max) {
            buf_text(out, "\u2026");
            return;
        }
        if (cp == ' ')
            buf_text(out, "\u00b7");
        else if (cp == '\n' || cp == '\t' || cp == '\r')
            buf_text(out, cp == '\n' ? "\u21b5" : cp == '\t' ? "\u21e5" : "\u240d");
        else if (cp == '<' || cp == '>' || cp == '&' || cp == '"')
            buf_text(out, cp == '<' ? "&lt;" : cp == '>' ? "&gt;" : cp == '&' ? "&amp;" : "&quot;");
        else if (cp < 0x20 || (cp >= 0x7f && cp < 0xa0) || (cp & ~1u) == 0xfffe || cp & UTF8_INVALID)
            buf_text(out, "\ufffd"); // not allowed in XML, or invisible
        else
            buf_add(out, p, len);
    }
}

static void add_format(Buf *out, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

static void add_format(Buf *out, const char *fmt, ...)
{
    char text[400];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    buf_add(out, text, (size_t)n < sizeof text ? (size_t)n : sizeof text - 1);
}

static int svg_begin(MapFile *f, Err *e)
{
    const Maps *m = f->maps;
    Svg *s = f->state = mem_zalloc(1, sizeof *s);
    if (!s)
        return err_set(e, EXIT_MEMORY, "out of memory for attention maps");
    s->cell = m->n <= 48 ? 12 : m->n <= 120 ? 8 : m->n <= 400 ? 3 : 1;
    s->step = (FONT + 1 + s->cell - 1) / s->cell;
    s->label = 84;
    Buf *out = &s->out, name = {0};
    int panel_w = s->label + m->n * s->cell + 24, panel_h = 26 + m->n_queries * s->cell + s->label;
    int width = map_heads(m) * panel_w + 24, height = map_layers(m) * panel_h + 64;
    width = width < 480 ? 480 : width; // room for the title and the scale
    buf_add(&name, map_model_name(m), strlen(map_model_name(m)));
    add_format(out, "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"%d\" height=\"%d\" viewBox=\"0 0 %d %d\" "
               "font-family=\"sans-serif\" font-size=\"%d\" fill=\"#222\">\n<rect width=\"100%%\" height=\"100%%\" fill=\"#fff\"/>\n",
               width, height, width, height, FONT);
    buf_text(out, "<text x=\"12\" y=\"20\" font-size=\"13\">");
    add_label(out, &name, 60);
    buf_text(out, "</text>\n<text x=\"12\" y=\"34\" fill=\"#666\">rows: queries, columns: keys</text>\n");
    int bar = width - 252;
    buf_text(out, "<linearGradient id=\"scale\">\n");
    for (int i = 0; i < 9; i++) {
        char colour[8];
        viridis(i * (LEVELS - 1) / 8, colour);
        add_format(out, "<stop offset=\"%g\" stop-color=\"%s\"/>\n", i / 8.0, colour);
    }
    add_format(out, "</linearGradient>\n<rect x=\"%d\" y=\"12\" width=\"230\" height=\"10\" fill=\"url(#scale)\"/>\n", bar);
    for (int i = 0; i < 3; i++)
        add_format(out, "<text x=\"%g\" y=\"34\" text-anchor=\"middle\">%s</text>\n", bar + i * 115.0, (const char *[]){"0", "0.5", "1"}[i]);
    out->failed |= name.failed;
    buf_free(&name);
    return write_buf(f, out, e);
}

static void svg_begin_map(Svg *s, const Maps *m, int map)
{
    Buf *out = &s->out, text = {0};
    int layer = map / map_heads(m), head = map % map_heads(m), cell = s->cell;
    int x = 12 + head * (s->label + m->n * cell + 24) + s->label, y = 70 + layer * (26 + m->n_queries * cell + s->label);
    char label[64], *comma;
    map_label(m, map, label, sizeof label);
    comma = strchr(label, ',');
    *comma = 0;
    comma[strlen(comma + 1)] = 0; // the last comma
    add_format(out, "<g class=\"map\" data-layer=\"%s\" data-head=\"%s\" transform=\"translate(%d %d)\">\n"
               "<text y=\"-8\" font-size=\"11\">layer %s, head %s</text>\n", label, comma + 1, x, y, label, comma + 1);
    for (int axis = 0; axis < 2; axis++) // keys below, queries on the left
        for (int i = 0; i < (axis ? m->n_queries : m->n); i += s->step) {
            double at = (i + 0.5) * cell + FONT * 0.35;
            if (axis)
                add_format(out, "<text x=\"-4\" y=\"%g\" text-anchor=\"end\">", at);
            else
                add_format(out, "<text transform=\"translate(%g %d) rotate(-90)\" text-anchor=\"end\">", at, m->n_queries * cell + 4);
            text.len = 0;
            tokenizer_text(m->model->tokenizer, m->ids[axis ? m->first + i : i], &text);
            add_label(out, &text, 14);
            buf_text(out, "</text>\n");
        }
    add_format(out, "<g transform=\"scale(%d)\" shape-rendering=\"crispEdges\">\n<rect width=\"%d\" height=\"%d\" fill=\"#f2f2f2\"/>\n",
               cell, m->n, m->n_queries);
    out->failed |= text.failed;
    buf_free(&text);
}

static void svg_row(Svg *s, int y, const float *w, int n)
{
    for (int k = 0, run; k < n; k += run) {
        int level = (int)lrintf(w[k] * (LEVELS - 1));
        level = level < 0 ? 0 : level > LEVELS - 1 ? LEVELS - 1 : level;
        for (run = 1; k + run < n && (int)lrintf(w[k + run] * (LEVELS - 1)) == level; run++)
            ;
        add_format(&s->paths[level], "M%d %dh%dv1h-%dz", k, y, run, run);
    }
}

static int svg_rows(MapFile *f, int map, int row, int n_rows, const float *w, const Buf *tile, Err *e)
{
    const Maps *m = f->maps;
    Svg *s = f->state;
    (void)tile;
    if (row == m->first)
        svg_begin_map(s, m, map);
    for (int r = 0; r < n_rows; r++)
        svg_row(s, row - m->first + r, w + (size_t)r * (size_t)m->n, row + r + 1);
    if (row + n_rows < m->first + m->n_queries)
        return 0;
    for (int level = 0; level < LEVELS; level++) {
        char colour[8];
        viridis(level, colour);
        s->out.failed |= s->paths[level].failed;
        if (!s->paths[level].len)
            continue;
        add_format(&s->out, "<path data-level=\"%d\" fill=\"%s\" d=\"", level, colour);
        buf_add(&s->out, s->paths[level].ptr, s->paths[level].len);
        s->paths[level].len = 0;
        buf_text(&s->out, "\"/>\n");
    }
    buf_text(&s->out, "</g></g>\n");
    return write_buf(f, &s->out, e);
}

static int svg_end(MapFile *f, Err *e)
{
    return write_bytes(f, "</svg>\n", 7, e);
}

static void svg_release(MapFile *f)
{
    Svg *s = f->state;
    for (int i = 0; s && i < LEVELS; i++)
        buf_free(&s->paths[i]);
    if (s)
        buf_free(&s->out);
}

/* ---- files -------------------------------------------------------------------------------------------------- */

static const MapFormat formats[] = {
    {".jsonl", false, jsonl_size, jsonl_begin, NULL, jsonl_rows, NULL, NULL},
    {".npz", true, npz_size, npz_start, npz_tile, npz_rows, npz_finish, NULL},
    {".npy", false, npy_size, npy_begin, npy_tile, npy_rows_in, NULL, NULL},
    {".csv", false, csv_size, csv_begin, csv_tile, text_rows, NULL, csv_release},
    {".svg", false, svg_size, svg_begin, NULL, svg_rows, svg_end, svg_release},
};
static const MapFormat *const format_jsonl = &formats[0];

static const MapFormat *find_format(const char *path)
{
    size_t n = strlen(path), ending = strlen(format_html.ending);
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        size_t len = strlen(formats[i].ending);
        if (n > len && !strcmp(path + n - len, formats[i].ending))
            return &formats[i];
    }
    return n > ending && !strcmp(path + n - ending, format_html.ending) ? &format_html : NULL;
}

int mapfile_open(MapFile *f, const char *path, const Maps *m, const Stats *s, Err *e)
{
    char seen[200];
    bool direct = out_is_direct(path);
    *f = (MapFile){.format = find_format(path), .maps = m, .stats = s};
    if (!f->format && direct)
        f->format = format_jsonl;
    if (!f->format)
        return err_set(e, EXIT_USAGE, "--dump-attn: got \"%s\", want a name ending in .npz, .npy, .jsonl, .csv, .svg or .html",
                       str_escape((Str){path, strlen(path)}, seen, sizeof seen));
    if (f->format->seeks && direct) { // not opened: that could wait for a reader
        err_set(e, EXIT_IO, "got a pipe or device, want a regular file for %s", f->format->ending);
        return err_prefix(e, path);
    }
    return out_open(&f->out, path, e);
}

bool mapfile_live(const MapFile *f)
{
    return f->format == format_jsonl && f->maps->o.reduce != REDUCE_ROLLOUT;
}

int mapfile_finish(MapFile *f, Err *e)
{
    return (f->format->end && f->format->end(f, e)) || out_finish(&f->out, e) ? -1 : 0;
}

int mapfile_commit(MapFile *f, Err *e)
{
    return out_commit(&f->out, e);
}

void mapfile_close(MapFile *f)
{
    out_discard(&f->out);
    if (f->format && f->format->release)
        f->format->release(f);
    free(f->state);
    *f = (MapFile){0};
}
