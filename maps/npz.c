/* npz.c - attention files .npy (the weights) and .npz (the text and the selection as well), and the
 * experts of tokens as .npz. The bytes of NumPy's headers and of the archive are base/npy.c's.
 * docs/attention.md describes the arrays.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/blocks.h"
#include "base/npy.h"
#include "base/utf8.h"
#include "maps/format.h"

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
    return map_n_weights(m) * (double)item_size(m) + NPY_HEADER;
}

static double npz_size(const Maps *m)
{
    double sinks = map_config(m)->sinks ? 4.0 * m->n_layers * m->n_heads * m->n_queries : 0;
    return npy_size(m) + 4096 + 200.0 * m->n + sinks;
}

/* The bytes to be written: the floats themselves, or f16 in `out`. */
static const void *convert(const Maps *m, const float *w, size_t count, Buf *out, size_t *len)
{
    *len = count * item_size(m);
    if (!m->o.half)
        return w;
    uint16_t f16[1024];
    for (size_t i = 0; i < count; i += 1024) {
        size_t n = count - i < 1024 ? count - i : 1024;
        for (size_t k = 0; k < n; k++)
            f16[k] = f32_f16(w[i + k]);
        buf_add(out, f16, n * sizeof *f16);
    }
    return out->ptr;
}

static int npy_begin(MapFile *f, Err *e)
{
    char h[NPY_HEADER];
    size_t shape[4];
    shape_of(f->maps, shape);
    npy_header(h, f->maps->o.half ? "<f2" : "<f4", shape, 4);
    return mapfile_write(f, h, sizeof h, e);
}

static void npy_tile(const MapFile *f, int map, int row, int n_rows, const float *w, Buf *out)
{
    size_t len;
    (void)map, (void)row;
    convert(f->maps, w, (size_t)n_rows * (size_t)f->maps->n, out, &len);
}

static int npy_rows_in(MapFile *f, int map, int row, int n_rows, const float *w, const Buf *tile,
                       Err *e)
{
    (void)map, (void)row;
    size_t len = (size_t)n_rows * (size_t)f->maps->n * item_size(f->maps);
    return mapfile_write(f, f->maps->o.half ? (const void *)tile->ptr : w, len, e);
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
    if (npz_begin(z, "attn.npy", m->o.half ? "<f2" : "<f4", shape, 4, n_bytes))
        return out_error(&f->out, e);
    return 0;
}

/* f16 where it is wanted, and after it the CRC. */
static void npz_tile(const MapFile *f, int map, int row, int n_rows, const float *w, Buf *out)
{
    const Npz *z = f->state;
    size_t len;
    (void)map, (void)row;
    const void *data = convert(f->maps, w, (size_t)n_rows * (size_t)f->maps->n, out, &len);
    uint32_t crc = out->failed ? 0 : crc_update(&z->crc, 0, data, len);
    buf_add(out, &crc, sizeof crc);
}

static int npz_rows(MapFile *f, int map, int row, int n_rows, const float *w, const Buf *tile,
                    Err *e)
{
    uint32_t crc;
    size_t len = (size_t)n_rows * (size_t)f->maps->n * item_size(f->maps);
    (void)map, (void)row;
    memcpy(&crc, tile->ptr + tile->len - sizeof crc, sizeof crc);
    const void *data = f->maps->o.half ? (const void *)tile->ptr : w;
    return npz_add(f->state, data, len, crc) ? out_error(&f->out, e) : 0;
}

/* Unicode text as numpy has it: each string in four bytes a character, filled up with zeros to the
 * longest. */
static int npz_strings(Npz *z, const char *name, const Buf *text, const size_t *at, size_t n,
                       const size_t *shape, int n_dims)
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

/* The arrays of the text. 0, or -1 with errno. */
static int npz_text(Npz *z, const Maps *m)
{
    size_t n = (size_t)m->n;
    Buf text = {0}, bytes = {0};
    size_t *text_at = mem_alloc(n + 1, sizeof *text_at);
    int64_t *bytes_at = mem_alloc(n + 1, sizeof *bytes_at), n_prompt = m->n_prompt;
    int rc = -1;
    errno = ENOMEM;
    if (!text_at || !bytes_at)
        goto done;
    text_at[0] = 0;
    bytes_at[0] = 0;
    for (size_t i = 0; i < n; i++) {
        map_token_text(m, m->ids[i], &text);
        map_token_bytes(m, m->ids[i], &bytes);
        text_at[i + 1] = text.len;
        bytes_at[i + 1] = (int64_t)bytes.len;
    }
    if (text.failed || bytes.failed)
        goto done;
    rc = npz_array(z, "token_ids.npy", "<i4", &n, 1, m->ids, n * 4)
              || npz_strings(z, "tokens.npy", &text, text_at, n, &n, 1)
              || npz_array(z, "token_bytes.npy", "|u1", &bytes.len, 1, bytes.len ? bytes.ptr : "",
                           bytes.len)
              || npz_array(z, "token_offsets.npy", "<i8", (size_t[]){n + 1}, 1, bytes_at,
                           (n + 1) * 8)
              || npz_array(z, "n_prompt.npy", "<i8", NULL, 0, &n_prompt, 8)
           ? -1
           : 0;
done:
    free(text_at);
    free(bytes_at);
    buf_free(&text);
    buf_free(&bytes);
    return rc;
}

/* What each row gave to its head's sink: rows of attn sum to 1 with it. */
static int npz_sinks(Npz *z, const Maps *m)
{
    size_t shape[3] = {(size_t)m->n_layers, (size_t)m->n_heads, (size_t)m->n_queries};
    return m->sink_mass ? npz_array(z, "sink_mass.npy", "<f4", shape, 3, m->sink_mass,
                                    shape[0] * shape[1] * shape[2] * sizeof *m->sink_mass)
                        : 0;
}

static int npz_finish(MapFile *f, Err *e)
{
    const Maps *m = f->maps;
    Npz *z = f->state;
    if (f->routes) // complete
        return 0;
    size_t n_queries = (size_t)m->n_queries;
    int32_t *queries = mem_alloc(n_queries, sizeof *queries);
    const char *reduce = map_reduce_names[m->o.reduce];
    Buf word = {.ptr = (char *)reduce, .len = strlen(reduce)};
    const char *kind = map_kind(m);
    Buf kind_word = {.ptr = (char *)kind, .len = kind ? strlen(kind) : 0};
    size_t n_layers = (size_t)m->n_layers, n_heads = (size_t)m->n_heads;
    errno = ENOMEM;
    for (size_t i = 0; queries && i < n_queries; i++)
        queries[i] = m->first + (int32_t)i;
    int rc = !queries || npz_end(z) || npz_text(z, m)
                  || npz_array(z, "layers.npy", "<i4", &n_layers, 1, m->layers, n_layers * 4)
                  || npz_array(z, "heads.npy", "<i4", &n_heads, 1, m->heads, n_heads * 4)
                  || npz_array(z, "queries.npy", "<i4", &n_queries, 1, queries, n_queries * 4)
                  || npz_strings(z, "reduce.npy", &word, (size_t[]){0, word.len}, 1, NULL, 0)
                  || (kind
                      && npz_strings(z, "kind.npy", &kind_word, (size_t[]){0, kind_word.len}, 1,
                                     NULL, 0))
                  || npz_sinks(z, m) || npz_close(z)
               ? out_error(&f->out, e)
               : 0;
    free(queries);
    return rc;
}

/* experts or weights (n_layers, m->n, n_used), of 4 bytes each. */
static int npz_route(Npz *z, const char *name, const char *descr, const Routes *r, size_t n,
                     const void *values)
{
    size_t shape[3] = {(size_t)r->n_layers, n, (size_t)r->n_used};
    size_t row = n * shape[2] * 4;
    if (npz_begin(z, name, descr, shape, 3, shape[0] * row))
        return -1;
    for (int i = 0; i < r->n_layers; i++) {
        const char *data = (const char *)values + routes_at(r, i, 0) * 4;
        if (npz_add(z, data, row, crc_update(&z->crc, 0, data, row)))
            return -1;
    }
    return npz_end(z);
}

static int npz_routes(MapFile *f, const int *ids, int first, int n, Err *e)
{
    const Routes *r = f->routes;
    size_t n_layers = (size_t)r->n_layers;
    int64_t n_experts = r->config->experts.n;
    Npz *z = f->state = mem_zalloc(1, sizeof *z);
    (void)ids, (void)first;
    if (!z)
        return err_set(e, EXIT_MEMORY, "out of memory for the experts of the tokens");
    z->f = f->out.f;
    return npz_route(z, "experts.npy", "<i4", r, (size_t)n, r->experts)
                || npz_route(z, "weights.npy", "<f4", r, (size_t)n, r->weights)
                || npz_text(z, f->maps)
                || npz_array(z, "layers.npy", "<i4", &n_layers, 1, r->layers, n_layers * 4)
                || npz_array(z, "n_experts.npy", "<i8", NULL, 0, &n_experts, 8) || npz_close(z)
             ? out_error(&f->out, e)
             : 0;
}

const MapFormat format_npy = {
    .ending = ".npy",
    .takes_f16 = true,
    .size = npy_size,
    .begin = npy_begin,
    .tile = npy_tile,
    .rows = npy_rows_in,
};

const MapFormat format_npz = {
    .ending = ".npz",
    .needs_seek = true,
    .takes_f16 = true,
    .size = npz_size,
    .begin = npz_start,
    .tile = npz_tile,
    .rows = npz_rows,
    .routes = npz_routes,
    .end = npz_finish,
};
