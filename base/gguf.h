/* gguf.h - reading GGUF files (version 2 and 3, little-endian, split or whole) through mmap, and
 * writing headers.
 *
 * The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Everything is checked
 * against the bytes that are there before it is used; names and values are views into the map and
 * live until gguf_close(). What the keys mean is config.c's business, what blocks hold is
 * base/blocks.h's.
 */
#ifndef GGUF_H
#define GGUF_H

#include "base/blocks.h"
#include "base/file.h"
#include "base/sha256.h"

/* Value types of metadata. */
typedef enum {
    GGUF_U8,
    GGUF_I8,
    GGUF_U16,
    GGUF_I16,
    GGUF_U32,
    GGUF_I32,
    GGUF_F32,
    GGUF_BOOL,
    GGUF_STRING,
    GGUF_ARRAY,
    GGUF_U64,
    GGUF_I64,
    GGUF_F64
} GgufType;

typedef struct {
    Str name;
    GgufType type; // of the items, when an array
    bool is_array;
    uint64_t n;          // items; 1 when not an array
    const uint8_t *data; // first item, unaligned; a string is u64 length + bytes
    size_t bytes;        // of all items
} GgufKey;

typedef struct {
    Str name;
    uint32_t type;   // of Type, or a number that we cannot read: see type_info()
    int n_dims;      // 1 to 4; what the file has beyond, outermost dimensions of 1, is dropped
    size_t shape[4]; // outermost first (the file's order reversed); unused ones are 1
    const void *data;
    size_t size; // bytes
} GgufTensor;

typedef struct {
    char *path;
    FileMap file;
    size_t header; // bytes before the tensors' data
} GgufMap;

typedef struct {
    GgufMap *maps; // one per split
    int n_maps;
    GgufKey *keys; // sorted by name, of the first split
    size_t n_keys;
    GgufTensor *tensors; // sorted by name, of all splits
    size_t n_tensors;
    size_t alignment; // of tensor data, as the first split has it
} Gguf;

/* Open `path`; for the first of several splits (NAME-00001-of-0000N.gguf) the others too. 0, or -1
 * with nothing left open. A file that is not usable GGUF sets EXIT_MODEL, one that cannot be read
 * EXIT_IO. */
int gguf_open(Gguf *g, const char *path, Err *e);
void gguf_close(Gguf *g); // a zeroed Gguf is fine

const GgufKey *gguf_key(const Gguf *g, const char *name);       // NULL if absent
const GgufTensor *gguf_tensor(const Gguf *g, const char *name); // NULL if absent

/* Scalars: 1 and *out set; 0 and *out untouched if the key is absent; -1 if it is of another kind
 * or out of range. Integers of any width are accepted for gguf_u32, f32 and f64 for gguf_f32. */
int gguf_u32(const Gguf *g, const char *name, uint32_t *out, Err *e);
int gguf_f32(const Gguf *g, const char *name, float *out, Err *e);
int gguf_bool(const Gguf *g, const char *name, bool *out, Err *e);
int gguf_str(const Gguf *g, const char *name, Str *out, Err *e);

/* Item i of an array (or i = 0 of a scalar) as a number; the caller has checked `i < key->n` and
 * the type. */
double gguf_number(const GgufKey *k, uint64_t i);

/* A name for the contents, made without reading all of them: the hash of each split's header, then
 * the size of all tensors' data (8 bytes, little-endian), then of every tensor, in the order of
 * names, 64 bytes from its start, its middle (at half of what is beyond 64) and its end; all bytes
 * three times of one that has no more. */
void gguf_fingerprint(const Gguf *g, char out[SHA256_HEX + 1]);

/* Views of all items of a string array, a new array of key->n items which the caller frees; NULL
 * when out of memory. The lengths were checked by gguf_open. */
Str *gguf_strings(const GgufKey *k);

/* ---- gguf_write.c ---------------------------------------------------------------------------- */

/* The tensors in the order of the file, a new array of g->n_tensors items which the caller frees;
 * NULL when out of memory. */
GgufTensor *gguf_file_order(const Gguf *g);

/* A key with the value *value, which it does not copy. */
GgufKey gguf_u32_key(const char *name, const uint32_t *value);

/* The header (version 3) of a whole file with these tensors, whose data follow one another in this
 * order, each padded to g->alignment; it is padded too, so that the data begin at its end. The keys
 * are those of `g` in the file's order and byte for byte, except that `set` replaces keys of its
 * names or comes after all, and that those of splits are left out. -1 when out of memory. */
int gguf_header(const Gguf *g, const GgufTensor *tensors, size_t n, const GgufKey *set,
                size_t n_set, Buf *out, Err *e);

#endif
