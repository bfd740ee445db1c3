/* html.c - the .html attention file: viewer.html with the maps put in at its line <!-- data -->.
 *
 * Weights become bytes on a square-root scale, zeros are written as runs, and base64 makes text of
 * them. A map that would take more than its share of PAGE_BYTES loses its smallest weights.
 * docs/attention.md describes the form.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/json.h"
#include "maps/format.h"

/* The page in pieces of C text, made from viewer.html by the Makefile. */
static const char *const page[] = {
#include "viewer.inc"
};

enum { N_LINES = sizeof page / sizeof *page, PAGE_BYTES = 43000000, THUMB = 40 };

typedef struct {
    Buf codes; // of the present map: rows one after another, keys 0 .. q each
    Buf packed;
    Buf thumbs; // (maps, thumb_rows, thumb_cols)
    Buf floors; // (maps)
    int thumb_rows, thumb_cols;
    int line; // of the page, next to be written
} Page;

static double html_size(const Maps *m)
{
    double n = map_n_visible(m) * 4 / 3, maps = (double)map_layers(m) * map_heads(m);
    return (n < PAGE_BYTES * 4.0 / 3 ? n : PAGE_BYTES * 4.0 / 3) + 200000
         + maps * (THUMB * THUMB * 4 / 3 + 300) + 30.0 * m->n;
}

/* Lines of the page up to the one that stands for the data, or from there to the end. */
static int write_lines(MapFile *f, Err *e)
{
    Page *p = f->state;
    while (p->line < N_LINES) {
        const char *text = page[p->line++];
        if (!strcmp(text, "<!-- data -->\n"))
            return 0;
        if (mapfile_write(f, text, strlen(text), e))
            return -1;
    }
    return 0;
}

static int html_begin(MapFile *f, Err *e)
{
    const Maps *m = f->maps;
    Page *p = f->state = mem_zalloc(1, sizeof *p);
    if (!p)
        return err_set(e, EXIT_MEMORY, "out of memory for the page");
    p->thumb_rows = m->n_queries < THUMB ? m->n_queries : THUMB;
    p->thumb_cols = m->n < THUMB ? m->n : THUMB;
    if (m->n_queries)
        return write_lines(f, e);
    static const char none[] =
        "<!doctype html>\n<meta charset=\"utf-8\">\n<title>No attention maps</title>\n"
        "<p>No rows were chosen (--attn-queries), so there is nothing to see.</p>\n";
    p->line = N_LINES; // no viewer
    return mapfile_write(f, none, sizeof none - 1, e);
}

static void html_tile(const MapFile *f, int map, int row, int n_rows, const float *w, Buf *out)
{
    unsigned char codes[256];
    (void)map;
    for (int r = 0; r < n_rows; r++, w += f->maps->n)
        for (int k = 0, end = map_keys(f->maps, row + r), n; k < end; k += n) {
            n = end - k < 256 ? end - k : 256;
            for (int i = 0; i < n; i++)
                codes[i] = (unsigned char)(sqrtf(w[k + i] < 1 ? w[k + i] : 1) * 255 + 0.5f);
            buf_add(out, codes, (size_t)n);
        }
}

/* Rows of codes -> literals and runs; codes below `floor` count as 0. Without `out` only the length
 * is found. */
static size_t pack(const Maps *m, const unsigned char *codes, int floor, Buf *out)
{
    size_t len = 0;
    for (int q = m->first, end; q < m->first + m->n_queries; codes += end, q++) {
        end = map_keys(m, q);
        for (int k = 0, run; k < end; k += run) {
            unsigned char bytes[8] = {codes[k]};
            size_t n = 1;
            for (run = 0; k + run < end && codes[k + run] < floor; run++)
                ;
            if (run) {
                bytes[0] = 0;
                unsigned v = (unsigned)run;
                for (; v > 127; v >>= 7)
                    bytes[n++] = (unsigned char)(v | 128);
                bytes[n++] = (unsigned char)v;
            } else {
                run = 1;
            }
            len += n;
            if (out)
                buf_add(out, bytes, n);
        }
    }
    return len;
}

static void base64(const unsigned char *p, size_t len, Buf *out)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    char text[4096];
    size_t n = 0;
    for (size_t i = 0; i < len; i += 3) {
        uint32_t v = (uint32_t)p[i] << 16 | (i + 1 < len ? (uint32_t)p[i + 1] << 8 : 0)
                   | (i + 2 < len ? p[i + 2] : 0);
        for (int k = 0; k < 4; k++)
            text[n++] = i + (size_t)k > len ? '=' : digits[v >> (18 - 6 * k) & 63];
        if (n == sizeof text) {
            buf_add(out, text, n);
            n = 0;
        }
    }
    buf_add(out, text, n);
}

/* The largest code of each cell's share of the map. */
static void add_thumb(Page *p, const Maps *m)
{
    unsigned char cells[THUMB * THUMB] = {0};
    const unsigned char *codes = (const unsigned char *)p->codes.ptr;
    for (int i = 0; i < m->n_queries; i++) {
        unsigned char *line = cells
                            + (size_t)i * (size_t)p->thumb_rows / (size_t)m->n_queries
                                  * (size_t)p->thumb_cols;
        for (int k = 0, end = map_keys(m, m->first + i); k < end; k++, codes++) {
            unsigned char *cell = line + (size_t)k * (size_t)p->thumb_cols / (size_t)m->n;
            *cell = *codes > *cell ? *codes : *cell;
        }
    }
    buf_add(&p->thumbs, cells, (size_t)p->thumb_rows * (size_t)p->thumb_cols);
}

static int html_rows(MapFile *f, int map, int row, int n_rows, const float *w, const Buf *tile,
                     Err *e)
{
    const Maps *m = f->maps;
    Page *p = f->state;
    (void)map, (void)w;
    buf_add(&p->codes, tile->ptr, tile->len);
    if (row + n_rows < m->first + m->n_queries)
        return 0;
    if (p->codes.failed)
        return err_set(e, EXIT_MEMORY, "out of memory for the page");
    const unsigned char *codes = (const unsigned char *)p->codes.ptr;
    size_t share = PAGE_BYTES / ((size_t)map_layers(m) * (size_t)map_heads(m));
    int low = 1, high = 1;
    if (pack(m, codes, 1, NULL) > share)
        for (high = 255; low < high;) { // the smallest floor that fits
            int mid = (low + high) / 2;
            if (pack(m, codes, mid, NULL) > share)
                low = mid + 1;
            else
                high = mid;
        }
    pack(m, codes, high, &p->packed);
    buf_add(&p->floors, &(unsigned char){(unsigned char)high}, 1);
    add_thumb(p, m);
    static const char begin[] = "<script type=\"text/plain\" class=\"attn\">",
                      end[] = "</script>\n";
    p->codes.len = 0;
    base64((const unsigned char *)p->packed.ptr, p->packed.len,
           &p->codes); // as a buffer for the text
    int rc = p->codes.failed || p->packed.failed || p->thumbs.failed || p->floors.failed
               ? err_set(e, EXIT_MEMORY, "out of memory for the page")
           : mapfile_write(f, begin, sizeof begin - 1, e)
                     || mapfile_write(f, p->codes.ptr, p->codes.len, e)
                     || mapfile_write(f, end, sizeof end - 1, e)
               ? -1
               : 0;
    p->codes.len = p->packed.len = 0;
    return rc;
}

static void add_stats(Json *j, const Stats *s)
{
    json_object(j);
    json_list(json_key(j, "columns"));
    for (int c = 0; stats_column(c); c++)
        json_text(j, stats_column(c));
    json_end(j);
    json_list(json_key(j, "rows"));
    for (int i = 0; i < s->maps->n_layers * s->maps->n_heads; i++) {
        json_list(json_break(j));
        for (int c = 0; stats_column(c); c++)
            json_number(j, (double)(float)stats_value(&s->heads[i], c));
        json_end(j);
    }
    json_end(j);
    json_end(j);
}

/* A key on a line of its own. */
static Json *line_key(Json *j, const char *name)
{
    return json_key(json_break(j), name);
}

/* Chosen layers or heads; the word for what was made of them where they were reduced. */
static void add_choice(Json *j, const Maps *m, bool reduced, const int *chosen, int n)
{
    if (!reduced) {
        json_ints(j, chosen, n);
        return;
    }
    json_list(j);
    json_text(j, m->o.reduce == REDUCE_ROLLOUT     ? "rollout"
                 : m->o.reduce == REDUCE_MAX_HEADS ? "max"
                                                   : "mean");
    json_end(j);
}

static void add_meta(const MapFile *f, Buf *out)
{
    const Maps *m = f->maps;
    const Page *p = f->state;
    Buf text = {0};
    Json j = {.out = out, .compact = true};
    json_object(&j);
    json_int(json_key(&j, "v"), 1);
    json_text(line_key(&j, "model"), map_model_name(m));
    json_text(line_key(&j, "arch"), map_config(m)->arch);
    json_list(line_key(&j, "tokens"));
    for (int i = 0; i < m->n; i++) {
        text.len = 0;
        map_token_text(m, m->ids[i], &text);
        json_buf(&j, &text);
    }
    json_end(&j);
    json_ints(line_key(&j, "ids"), m->ids, m->n);
    json_int(line_key(&j, "n_prompt"), m->n_prompt);
    json_int(line_key(&j, "first_query"), m->first);
    json_int(line_key(&j, "n_queries"), m->n_queries);
    add_choice(line_key(&j, "layers"), m, m->o.reduce >= REDUCE_MEAN, m->layers, m->n_layers);
    add_choice(line_key(&j, "heads"), m, m->o.reduce != REDUCE_NONE, m->heads, m->n_heads);
    if (map_kind(m))
        json_text(line_key(&j, "kind"), map_kind(m));
    json_text(line_key(&j, "reduce"), map_reduce_names[m->o.reduce]);
    json_list(line_key(&j, "floors"));
    for (size_t i = 0; i < p->floors.len; i++)
        json_int(&j, (unsigned char)p->floors.ptr[i]);
    json_end(&j);
    json_object(line_key(&j, "thumbs"));
    json_int(json_key(&j, "rows"), p->thumb_rows);
    json_int(line_key(&j, "cols"), p->thumb_cols);
    text.len = 0;
    base64((const unsigned char *)p->thumbs.ptr, p->thumbs.len, &text);
    json_buf(line_key(&j, "data"), &text);
    json_end(&j);
    add_stats(line_key(&j, "stats"), f->stats);
    json_end(&j);
    buf_text(out, "\n");
    buf_free(&text);
}

static int html_end(MapFile *f, Err *e)
{
    static const char begin[] = "<script type=\"application/json\" id=\"meta\">\n",
                      end[] = "</script>\n";
    Buf out = {0}, safe = {0};
    add_meta(f, &out);
    for (size_t i = 0, n; i < out.len; i += n) { // a text must not end the script
        n = strcspn(out.ptr + i, "<");
        buf_add(&safe, out.ptr + i, n);
        if (i + n < out.len) {
            buf_text(&safe, "\\u003c");
            n++;
        }
    }
    int rc = out.failed || safe.failed ? err_set(e, EXIT_MEMORY, "out of memory for the page")
           : mapfile_write(f, begin, sizeof begin - 1, e) || mapfile_write(f, safe.ptr, safe.len, e)
                     || mapfile_write(f, end, sizeof end - 1, e) || write_lines(f, e)
               ? -1
               : 0;
    buf_free(&out);
    buf_free(&safe);
    return rc;
}

static void html_release(MapFile *f)
{
    Page *p = f->state;
    if (!p)
        return;
    buf_free(&p->codes);
    buf_free(&p->packed);
    buf_free(&p->thumbs);
    buf_free(&p->floors);
}

const MapFormat format_html = {
    .ending = ".html",
    .wants_stats = true,
    .size = html_size,
    .begin = html_begin,
    .tile = html_tile,
    .rows = html_rows,
    .end = html_end,
    .release = html_release,
};
