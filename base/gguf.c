/* gguf.c - GGUF files: map, bounds-checked cursor, metadata and tensor table.
 *
 * The parser walks the header once with a cursor that never moves past the end of the map. Counts
 * are compared with the bytes left before anything is allocated, offsets and sizes are checked for
 * overflow and against the file, and names must be unique. After gguf_open every view in the Gguf
 * is safe to read.
 */
#include "base/gguf.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- cursor ---------------------------------------------------------------------------------- */

typedef struct {
    const uint8_t *p, *end;
    const uint8_t *base;
} Cursor;

/* n bytes at the cursor, or NULL (and the cursor stays) if there are fewer. */
static const uint8_t *take(Cursor *c, size_t n)
{
    if ((size_t)(c->end - c->p) < n)
        return NULL;
    const uint8_t *p = c->p;
    c->p += n;
    return p;
}

static int cut_short(Cursor *c, const char *what, Err *e)
{
    return err_set(e, EXIT_MODEL,
                   "%s: got the end of the file at byte %zu, want more (a truncated file?)", what,
                   (size_t)(c->end - c->base));
}

static int take_u32(Cursor *c, uint32_t *out, const char *what, Err *e)
{
    const uint8_t *p = take(c, 4);
    if (!p)
        return cut_short(c, what, e);
    memcpy(out, p, 4);
    return 0;
}

static int take_u64(Cursor *c, uint64_t *out, const char *what, Err *e)
{
    const uint8_t *p = take(c, 8);
    if (!p)
        return cut_short(c, what, e);
    memcpy(out, p, 8);
    return 0;
}

static int take_str(Cursor *c, Str *out, const char *what, Err *e)
{
    uint64_t len = 0;
    if (take_u64(c, &len, what, e))
        return -1;
    if (len > (uint64_t)(c->end - c->p))
        return err_set(e, EXIT_MODEL,
                       "%s: got a text of %" PRIu64
                       " bytes, want at most the %zu that are left (a truncated or "
                       "damaged file?)",
                       what, len, (size_t)(c->end - c->p));
    *out = (Str){(const char *)take(c, (size_t)len), (size_t)len};
    return 0;
}

/* Bytes of one item; 0 for strings, arrays and numbers that name no type. */
static size_t item_size(uint32_t type)
{
    static const uint8_t sizes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
    return type < sizeof sizes ? sizes[type] : 0;
}

static int take_key(Cursor *c, GgufKey *k, Err *e)
{
    uint32_t type = 0;
    char what[128], name[96];
    if (take_str(c, &k->name, "metadata key", e) || take_u32(c, &type, "metadata type", e))
        return -1;
    snprintf(what, sizeof what, "key %s", str_escape(k->name, name, sizeof name));
    k->n = 1;
    k->is_array = type == GGUF_ARRAY;
    if (k->is_array && (take_u32(c, &type, what, e) || take_u64(c, &k->n, what, e)))
        return -1;
    if (type > GGUF_F64 || type == GGUF_ARRAY)
        return err_set(e, EXIT_MODEL, "%s: got value type %u%s, want 0 to 12", what, type,
                       type == GGUF_ARRAY ? " (an array of arrays)" : "");
    k->type = (GgufType)type;
    k->data = c->p;
    size_t size = item_size(type), left = (size_t)(c->end - c->p);
    if (k->n > left / (size ? size : 8)) // a string takes 8 bytes at least
        return err_set(e, EXIT_MODEL,
                       "%s: got %" PRIu64
                       " items, want no more than fit into the %zu bytes that are left",
                       what, k->n, left);
    if (size) {
        take(c, (size_t)k->n * size);
    } else {
        Str s;
        for (uint64_t i = 0; i < k->n; i++)
            if (take_str(c, &s, what, e))
                return -1;
    }
    k->bytes = (size_t)(c->p - k->data);
    return 0;
}

/* One entry of the tensor table; `offset` is relative to the data section, whose start is not known
 * yet. */
static int take_tensor(Cursor *c, GgufTensor *t, uint64_t *offset, Err *e)
{
    uint32_t n_dims = 0;
    char what[128], name[96];
    if (take_str(c, &t->name, "tensor name", e))
        return -1;
    snprintf(what, sizeof what, "tensor %s", str_escape(t->name, name, sizeof name));
    if (take_u32(c, &n_dims, what, e))
        return -1;
    if (n_dims < 1 || n_dims > 4)
        return err_set(e, EXIT_MODEL, "%s: got %u dimensions, want 1 to 4", what, n_dims);
    size_t count = 1, innermost_first[4] = {1, 1, 1, 1};
    for (uint32_t i = 0; i < n_dims; i++) {
        uint64_t d = 0;
        if (take_u64(c, &d, what, e))
            return -1;
        if (d < 1 || d > INT32_MAX || !size_mul(count, (size_t)d, &count))
            return err_set(e, EXIT_MODEL, "%s: got a dimension of %" PRIu64 ", want 1 to %d", what,
                           d, INT32_MAX);
        innermost_first[i] = (size_t)d;
    }
    while (n_dims > 1
           && innermost_first[n_dims - 1] == 1) // a matrix may be written as (32, 32, 1, 1)
        n_dims--;
    t->n_dims = (int)n_dims;
    for (uint32_t i = 0; i < 4; i++)
        t->shape[i] = i < n_dims ? innermost_first[n_dims - 1 - i] : 1;
    if (take_u32(c, &t->type, what, e) || take_u64(c, offset, what, e))
        return -1;
    const TypeInfo *ti = type_info(t->type);
    size_t width = t->shape[n_dims - 1];
    if (!ti->block)
        return err_set(e, EXIT_MODEL, "%s: got type number %u, which is none that we know", what,
                       t->type);
    if (width % ti->block)
        return err_set(e, EXIT_MODEL, "%s: got a width of %zu, want a multiple of %u for type %s",
                       what, width, ti->block, ti->name);
    if (!size_mul(count / ti->block, ti->bytes, &t->size))
        return err_set(e, EXIT_MODEL, "%s: its size does not fit this machine", what);
    return 0;
}

/* ---- one file -------------------------------------------------------------------------------- */

static void unmap_file(GgufMap *m)
{
    file_unmap(&m->file);
    free(m->path);
    *m = (GgufMap){0};
}

static int map_file(GgufMap *m, const char *path, Err *e)
{
    if (file_map(&m->file, path, "a model file", false, e))
        return -1;
    if (!m->file.size)
        return err_set(e, EXIT_MODEL, "got an empty file, want a GGUF model");
    m->path = strdup(path);
    if (!m->path) {
        unmap_file(m);
        return err_set(e, EXIT_MEMORY, "out of memory");
    }
#ifdef MADV_HUGEPAGE // pages of 2 MB where the file system has them: a third more bandwidth, a
                     // tenth of the faults
    madvise(m->file.base, m->file.size, MADV_HUGEPAGE);
#endif
    return 0;
}

static int check_magic(Cursor *c, uint32_t *version, Err *e)
{
    const uint8_t *p = take(c, 4);
    if (!p || memcmp(p, "GGUF", 4)) {
        char seen[40];
        Str s = {(const char *)c->base,
                 (size_t)(c->end - c->base) < 4 ? (size_t)(c->end - c->base) : 4};
        return err_set(e, EXIT_MODEL,
                       "magic: got \"%s\", want \"GGUF\" (export.py converts PyTorch checkpoints)",
                       str_escape(s, seen, sizeof seen));
    }
    if (take_u32(c, version, "version", e))
        return -1;
    if (*version == 0x02000000u || *version == 0x03000000u)
        return err_set(e, EXIT_MODEL,
                       "byte order: got a big-endian file, want a little-endian one");
    if (*version < 2 || *version > 3)
        return err_set(e, EXIT_MODEL, "version: got %u, want 2 or 3", *version);
    return 0;
}

static int cmp_key(const void *a, const void *b)
{
    return str_cmp(((const GgufKey *)a)->name, ((const GgufKey *)b)->name);
}

static int cmp_tensor(const void *a, const void *b)
{
    return str_cmp(((const GgufTensor *)a)->name, ((const GgufTensor *)b)->name);
}

/* Parse map number `index`: its keys if it is the first, its tensors always (appended). */
static int parse_map(Gguf *g, int index, Err *e)
{
    GgufMap *m = &g->maps[index];
    Cursor c = {m->file.base, (const uint8_t *)m->file.base + m->file.size, m->file.base};
    uint32_t version = 0;
    uint64_t n_tensors = 0, n_keys = 0;
    if (check_magic(&c, &version, e) || take_u64(&c, &n_tensors, "tensor count", e)
        || take_u64(&c, &n_keys, "metadata count", e))
        return -1;
    size_t left = (size_t)(c.end - c.p);
    if (n_keys > left / 13) // the shortest key: empty name (8), type (4), one byte
        return err_set(e, EXIT_MODEL,
                       "metadata count: got %" PRIu64
                       " keys, want at most the %zu that %zu bytes can hold (a "
                       "truncated or damaged file?)",
                       n_keys, left / 13, left);
    if (n_tensors > left / 32) // the shortest tensor: empty name (8), dims (4), one dim (8), type
                               // (4), offset (8)
        return err_set(e, EXIT_MODEL,
                       "tensor count: got %" PRIu64
                       ", want at most the %zu that %zu bytes can hold (a truncated or "
                       "damaged file?)",
                       n_tensors, left / 32, left);

    GgufKey *keys = mem_zalloc((size_t)n_keys, sizeof *keys);
    uint64_t *offsets = mem_alloc((size_t)n_tensors, sizeof *offsets);
    GgufTensor *tensors = mem_grow(g->tensors, g->n_tensors + (size_t)n_tensors, sizeof *tensors);
    int rc = keys && offsets && tensors ? 0
                                        : err_set(e, EXIT_MEMORY, "out of memory for the header");
    if (tensors)
        g->tensors = tensors;

    for (uint64_t i = 0; !rc && i < n_keys; i++)
        rc = take_key(&c, &keys[i], e);
    uint64_t alignment = 32;
    for (uint64_t i = 0; !rc && i < n_keys; i++)
        if (str_eq(keys[i].name, "general.alignment")) {
            double v = keys[i].type == GGUF_STRING || keys[i].is_array ? 0
                                                                       : gguf_number(&keys[i], 0);
            if (!(v >= 1 && v <= 1 << 20) || v != (uint32_t)v || ((uint32_t)v & ((uint32_t)v - 1)))
                rc = err_set(e, EXIT_MODEL,
                             "key general.alignment: got %g, want a power of two up to 1048576", v);
            else
                alignment = (uint64_t)v;
        }
    for (uint64_t i = 0; !rc && i < n_tensors; i++)
        rc = take_tensor(&c, &tensors[g->n_tensors + i], &offsets[i], e);

    size_t data = 0;
    if (!rc && !size_align((size_t)(c.p - c.base), (size_t)alignment, &data))
        rc = err_set(e, EXIT_MODEL, "header: its size does not fit this machine");
    m->header = data < m->file.size ? data : m->file.size; // a file without tensors may end before
    for (uint64_t i = 0; !rc && i < n_tensors; i++) {
        GgufTensor *t = &tensors[g->n_tensors + i];
        char name[96];
        size_t begin, end;
        str_escape(t->name, name, sizeof name);
        if (offsets[i] % alignment)
            rc = err_set(e, EXIT_MODEL,
                         "tensor %s: got offset %" PRIu64 ", want a multiple of %" PRIu64, name,
                         offsets[i], alignment);
        else if (!size_add(data, (size_t)offsets[i], &begin) || !size_add(begin, t->size, &end)
                 || end > m->file.size)
            rc = err_set(e, EXIT_MODEL,
                         "tensor %s: got %zu bytes at offset %" PRIu64
                         " of the data, want them inside "
                         "the file of %zu bytes (a truncated file?)",
                         name, t->size, offsets[i], m->file.size);
        else
            t->data = c.base + begin;
    }
    if (!rc) {
        g->n_tensors += (size_t)n_tensors;
        if (index == 0) {
            g->alignment = (size_t)alignment;
            g->keys = keys;
            g->n_keys = (size_t)n_keys;
            keys = NULL;
        }
    }
    free(keys);
    free(offsets);
    return rc;
}

/* Sort both tables for bsearch and refuse names that stand twice. */
static int index_names(Gguf *g, bool keys, Err *e)
{
    char name[96];
    if (keys) {
        qsort(g->keys, g->n_keys, sizeof *g->keys, cmp_key);
        for (size_t i = 1; i < g->n_keys; i++)
            if (!cmp_key(&g->keys[i - 1], &g->keys[i]))
                return err_set(e, EXIT_MODEL, "key %s: appears twice",
                               str_escape(g->keys[i].name, name, sizeof name));
        return 0;
    }
    qsort(g->tensors, g->n_tensors, sizeof *g->tensors, cmp_tensor);
    for (size_t i = 1; i < g->n_tensors; i++)
        if (!cmp_tensor(&g->tensors[i - 1], &g->tensors[i]))
            return err_set(e, EXIT_MODEL, "tensor %s: appears twice",
                           str_escape(g->tensors[i].name, name, sizeof name));
    return 0;
}

/* "NAME-00001-of-00003.gguf" -> the path of split `i` (from 0) of `n`; NULL if the name is not of
 * that form, or without memory. */
static char *split_path(const char *path, uint32_t i, uint32_t n, Err *e)
{
    char suffix[32];
    int len = snprintf(suffix, sizeof suffix, "-00001-of-%05u.gguf", n);
    size_t stem = strlen(path);
    if (stem <= (size_t)len || strcmp(path + stem - (size_t)len, suffix)) {
        err_set(e, EXIT_MODEL,
                "split: got this name for a model in %u parts, want "
                "NAME-00001-of-%05u.gguf",
                n, n);
        return NULL;
    }
    stem -= (size_t)len;
    char *out = mem_alloc(stem + sizeof suffix, 1);
    if (!out) {
        err_set(e, EXIT_MEMORY, "out of memory");
        return NULL;
    }
    memcpy(out, path, stem);
    snprintf(out + stem, sizeof suffix, "-%05u-of-%05u.gguf", i + 1, n);
    return out;
}

static int open_splits(Gguf *g, uint32_t n, Err *e)
{
    uint32_t no = 0, want = 0;
    if (gguf_u32(g, "split.no", &no, e) < 0 || gguf_u32(g, "split.tensors.count", &want, e) < 0)
        return err_prefix(e, g->maps[0].path);
    if (n > 99999 || no != 0) {
        err_set(e, EXIT_MODEL,
                "split: got part %u of %u, want the first part (…-00001-of-%05u.gguf)", no + 1, n,
                n);
        return err_prefix(e, g->maps[0].path);
    }
    GgufMap *maps = mem_grow(g->maps, n, sizeof *maps);
    if (!maps)
        return err_set(e, EXIT_MEMORY, "out of memory");
    memset(maps + 1, 0, (n - 1) * sizeof *maps);
    g->maps = maps;
    for (uint32_t i = 1; i < n; i++) {
        char *path = split_path(maps[0].path, i, n, e);
        if (!path)
            return err_prefix(e, maps[0].path);
        int rc = map_file(&maps[i], path, e);
        if (!rc) {
            g->n_maps++;
            rc = parse_map(g, (int)i, e);
        }
        if (rc)
            err_prefix(e, path);
        free(path);
        if (rc)
            return -1;
    }
    if (want && want != g->n_tensors) {
        err_set(e, EXIT_MODEL, "split.tensors.count: got %zu tensors in %u parts, want %u",
                g->n_tensors, n, want);
        return err_prefix(e, maps[0].path);
    }
    return 0;
}

int gguf_open(Gguf *g, const char *path, Err *e)
{
    *g = (Gguf){0};
    g->maps = mem_zalloc(1, sizeof *g->maps);
    if (!g->maps)
        return err_set(e, EXIT_MEMORY, "out of memory");
    uint32_t n_splits = 1;
    int rc = map_file(&g->maps[0], path, e);
    if (!rc) {
        g->n_maps = 1;
        rc = parse_map(g, 0, e) || index_names(g, true, e)
          || gguf_u32(g, "split.count", &n_splits, e) < 0;
    }
    if (rc)
        err_prefix(e, path);
    else if (n_splits > 1)
        rc = open_splits(g, n_splits, e);
    if (!rc && index_names(g, false, e))
        rc = err_prefix(e, path);
    if (rc)
        gguf_close(g);
    return rc ? -1 : 0;
}

void gguf_close(Gguf *g)
{
    for (int i = 0; i < g->n_maps; i++)
        unmap_file(&g->maps[i]);
    free(g->maps);
    free(g->keys);
    free(g->tensors);
    *g = (Gguf){0};
}

/* ---- look-ups -------------------------------------------------------------------------------- */

const GgufKey *gguf_key(const Gguf *g, const char *name)
{
    GgufKey want = {.name = {name, strlen(name)}};
    return g->n_keys ? bsearch(&want, g->keys, g->n_keys, sizeof *g->keys, cmp_key) : NULL;
}

const GgufTensor *gguf_tensor(const Gguf *g, const char *name)
{
    GgufTensor want = {.name = {name, strlen(name)}};
    return g->n_tensors ? bsearch(&want, g->tensors, g->n_tensors, sizeof *g->tensors, cmp_tensor)
                        : NULL;
}

#define NUMBER(T)                                                                                  \
    {                                                                                              \
        T v;                                                                                       \
        memcpy(&v, k->data + i * sizeof v, sizeof v);                                              \
        return (double)v;                                                                          \
    }

double gguf_number(const GgufKey *k, uint64_t i)
{
    switch (k->type) {
    case GGUF_U8:
    case GGUF_BOOL: return k->data[i];
    case GGUF_I8: NUMBER(int8_t)
    case GGUF_U16: NUMBER(uint16_t)
    case GGUF_I16: NUMBER(int16_t)
    case GGUF_U32: NUMBER(uint32_t)
    case GGUF_I32: NUMBER(int32_t)
    case GGUF_F32: NUMBER(float)
    case GGUF_U64: NUMBER(uint64_t)
    case GGUF_I64: NUMBER(int64_t)
    case GGUF_F64: NUMBER(double)
    default: return 0;
    }
}

/* The key as a scalar of a numeric kind that `ok` admits: 1, 0 if absent, -1 if something else. */
static int scalar(const Gguf *g, const char *name, unsigned ok, const char *want, const GgufKey **k,
                  Err *e)
{
    *k = gguf_key(g, name);
    if (!*k)
        return 0;
    if ((*k)->is_array || !(ok >> (*k)->type & 1))
        return err_set(e, EXIT_MODEL, "key %s: got %s of type %d, want %s", name,
                       (*k)->is_array ? "an array" : "a value", (*k)->type, want);
    return 1;
}

int gguf_u32(const Gguf *g, const char *name, uint32_t *out, Err *e)
{
    const GgufKey *k;
    unsigned ints = 1u << GGUF_U8 | 1u << GGUF_I8 | 1u << GGUF_U16 | 1u << GGUF_I16 | 1u << GGUF_U32
                  | 1u << GGUF_I32 | 1u << GGUF_U64 | 1u << GGUF_I64;
    int rc = scalar(g, name, ints, "an integer", &k, e);
    if (rc <= 0)
        return rc;
    double v = gguf_number(k, 0);
    if (v < 0 || v > UINT32_MAX)
        return err_set(e, EXIT_MODEL, "key %s: got %.0f, want 0 to %u", name, v, UINT32_MAX);
    *out = (uint32_t)v;
    return 1;
}

int gguf_f32(const Gguf *g, const char *name, float *out, Err *e)
{
    const GgufKey *k;
    int rc = scalar(g, name, 1u << GGUF_F32 | 1u << GGUF_F64, "a float", &k, e);
    if (rc <= 0)
        return rc;
    double v = gguf_number(k, 0);
    if (!(v >= -3e38 && v <= 3e38)) // also refuses NaN
        return err_set(e, EXIT_MODEL, "key %s: got %g, want a finite number", name, v);
    *out = (float)v;
    return 1;
}

int gguf_bool(const Gguf *g, const char *name, bool *out, Err *e)
{
    const GgufKey *k;
    int rc = scalar(g, name, 1u << GGUF_BOOL | 1u << GGUF_U8, "true or false", &k, e);
    if (rc > 0)
        *out = k->data[0] != 0;
    return rc;
}

int gguf_str(const Gguf *g, const char *name, Str *out, Err *e)
{
    const GgufKey *k;
    int rc = scalar(g, name, 1u << GGUF_STRING, "a text", &k, e);
    if (rc > 0)
        *out = (Str){(const char *)k->data + 8, k->bytes - 8};
    return rc;
}

Str *gguf_strings(const GgufKey *k)
{
    Str *out = mem_alloc((size_t)k->n, sizeof *out);
    const uint8_t *p = k->data;
    for (uint64_t i = 0; out && i < k->n; i++) {
        uint64_t len;
        memcpy(&len, p, 8);
        out[i] = (Str){(const char *)p + 8, (size_t)len};
        p += 8 + len;
    }
    return out;
}

void gguf_fingerprint(const Gguf *g, char out[SHA256_HEX + 1])
{
    enum { SAMPLE = 64 };
    Sha256 hash;
    uint64_t size = 0;
    unsigned char bytes[8];
    sha256_init(&hash);
    for (int i = 0; i < g->n_maps; i++)
        sha256_add(&hash, g->maps[i].file.base, g->maps[i].header);
    for (size_t i = 0; i < g->n_tensors; i++)
        size += g->tensors[i].size;
    for (int i = 0; i < 8; i++)
        bytes[i] = (unsigned char)(size >> 8 * i);
    sha256_add(&hash, bytes, sizeof bytes);
    for (size_t i = 0; i < g->n_tensors; i++) {
        const GgufTensor *t = &g->tensors[i];
        size_t n = t->size < SAMPLE ? t->size : SAMPLE, rest = t->size - n;
        for (size_t part = 0; part < 3; part++)
            sha256_add(&hash, (const char *)t->data + rest * part / 2, n);
    }
    sha256_hex(&hash, out);
}
