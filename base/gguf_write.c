/* gguf_write.c - headers of GGUF files. Contracts are in gguf.h. */
#include "base/gguf.h"

#include <stdlib.h>
#include <string.h>

static void add_u32(Buf *b, uint32_t v)
{
    buf_add(b, &v, sizeof v);
}

static void add_u64(Buf *b, uint64_t v)
{
    buf_add(b, &v, sizeof v);
}

static void add_str(Buf *b, const char *ptr, size_t len)
{
    add_u64(b, len);
    buf_add(b, ptr, len);
}

static void pad(Buf *b, size_t alignment)
{
    while (b->len % alignment && !b->failed)
        buf_add(b, "", 1);
}

/* ---- the file's order: that of the names in the map ------------------------------------------ */

static int cmp_ptr(const char *a, const char *b)
{
    return ((uintptr_t)a > (uintptr_t)b) - ((uintptr_t)a < (uintptr_t)b);
}

static int cmp_key(const void *a, const void *b)
{
    return cmp_ptr(((const GgufKey *)a)->name.ptr, ((const GgufKey *)b)->name.ptr);
}

static int cmp_tensor(const void *a, const void *b)
{
    return cmp_ptr(((const GgufTensor *)a)->name.ptr, ((const GgufTensor *)b)->name.ptr);
}

GgufTensor *gguf_file_order(const Gguf *g)
{
    GgufTensor *out = mem_alloc(g->n_tensors, sizeof *out);
    size_t n = 0;
    for (int i = 0; out && i < g->n_maps; i++) { // split after split, wherever they are mapped
        const char *base = g->maps[i].file.base;
        size_t first = n;
        for (size_t k = 0; k < g->n_tensors; k++) {
            const char *p = g->tensors[k].name.ptr;
            if ((uintptr_t)p >= (uintptr_t)base
                && (uintptr_t)p < (uintptr_t)base + g->maps[i].file.size)
                out[n++] = g->tensors[k];
        }
        qsort(out + first, n - first, sizeof *out, cmp_tensor);
    }
    return out;
}

/* ---- the header ------------------------------------------------------------------------------ */

static bool same_name(const GgufKey *a, const GgufKey *b)
{
    return a->name.len == b->name.len && !memcmp(a->name.ptr, b->name.ptr, a->name.len);
}

/* The key of this name; NULL if none. */
static const GgufKey *find_key(const GgufKey *keys, size_t n, const GgufKey *like)
{
    for (size_t i = 0; i < n; i++)
        if (same_name(&keys[i], like))
            return &keys[i];
    return NULL;
}

static void add_key(Buf *b, const GgufKey *k)
{
    add_str(b, k->name.ptr, k->name.len);
    if (k->is_array)
        add_u32(b, GGUF_ARRAY);
    add_u32(b, k->type);
    if (k->is_array)
        add_u64(b, k->n);
    buf_add(b, k->data, k->bytes);
}

/* Returns how many. */
static uint64_t add_keys(const Gguf *g, const GgufKey *keys, const GgufKey *set, size_t n_set,
                         Buf *b)
{
    uint64_t n = 0;
    for (size_t i = 0; i < g->n_keys; i++) {
        const GgufKey *k = &keys[i], *other = find_key(set, n_set, k);
        bool of_split = g->n_maps > 1 && k->name.len > 6 && !memcmp(k->name.ptr, "split.", 6);
        if (other || !of_split) {
            add_key(b, other ? other : k);
            n++;
        }
    }
    for (size_t i = 0; i < n_set; i++)
        if (!find_key(keys, g->n_keys, &set[i])) {
            add_key(b, &set[i]);
            n++;
        }
    return n;
}

static void add_tensors(const Gguf *g, const GgufTensor *tensors, size_t n, Buf *b)
{
    uint64_t offset = 0;
    for (size_t i = 0; i < n; i++) {
        const GgufTensor *t = &tensors[i];
        add_str(b, t->name.ptr, t->name.len);
        add_u32(b, (uint32_t)t->n_dims);
        for (int d = t->n_dims - 1; d >= 0; d--) // the file stores the innermost first
            add_u64(b, t->shape[d]);
        add_u32(b, t->type);
        add_u64(b, offset);
        offset += (t->size + g->alignment - 1) / g->alignment * g->alignment;
    }
}

GgufKey gguf_u32_key(const char *name, const uint32_t *value)
{
    return (GgufKey){.name = {name, strlen(name)},
                     .type = GGUF_U32,
                     .n = 1,
                     .data = (const uint8_t *)value,
                     .bytes = sizeof *value};
}

int gguf_header(const Gguf *g, const GgufTensor *tensors, size_t n, const GgufKey *set,
                size_t n_set, Buf *out, Err *e)
{
    GgufKey *keys = mem_alloc(g->n_keys, sizeof *keys);
    if (keys) {
        memcpy(keys, g->keys, g->n_keys * sizeof *keys);
        qsort(keys, g->n_keys, sizeof *keys, cmp_key);
        buf_text(out, "GGUF");
        add_u32(out, 3);
        add_u64(out, n);
        size_t at = out->len;
        add_u64(out, 0);
        uint64_t n_keys = add_keys(g, keys, set, n_set, out);
        if (!out->failed)
            memcpy(out->ptr + at, &n_keys, sizeof n_keys);
        add_tensors(g, tensors, n, out);
        pad(out, g->alignment);
    }
    free(keys);
    return keys && !out->failed ? 0 : err_set(e, EXIT_MEMORY, "out of memory for the header");
}
