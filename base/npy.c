/* npy.c - writing NumPy files. Contracts are in npy.h.
 *
 * Formats: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html, and for .npz
 * PKWARE's APPNOTE 6.3 (stored members; a member or offset of 4 GiB or more has its zip64 field).
 */
#include "base/npy.h"

#include <string.h>
#include <sys/stat.h>

void npy_header(char h[NPY_HEADER], const char *descr, const size_t *shape, int n_dims)
{
    char dims[100] = "", dict[NPY_HEADER];
    int len = 0;
    for (int i = 0; i < n_dims; i++)
        len += snprintf(dims + len, sizeof dims - (size_t)len, "%zu%s", shape[i],
                        i + 1 < n_dims ? ", "
                        : n_dims == 1  ? ","
                                       : "");
    len = snprintf(dict, sizeof dict, "{'descr': '%s', 'fortran_order': False, 'shape': (%s), }",
                   descr, dims);
    memset(h, ' ', NPY_HEADER);
    memcpy(h, "\x93NUMPY\x01\x00", 8);
    h[8] = (char)(NPY_HEADER - 10);
    h[9] = 0;
    memcpy(h + 10, dict, (size_t)len);
    h[NPY_HEADER - 1] = '\n';
}

static int write_header(NpyFile *n)
{
    char h[NPY_HEADER];
    npy_header(h, "<f4", (size_t[]){n->rows, n->cols}, 2);
    return fwrite(h, 1, sizeof h, n->out.f) == sizeof h ? 0 : -1;
}

int npy_open(NpyFile *n, const char *path, size_t cols, Err *e)
{
    struct stat st;
    *n = (NpyFile){.cols = cols};
    bool folder = !stat(path, &st) && S_ISDIR(st.st_mode);
    if (folder || out_is_direct(path)) {
        err_set(e, EXIT_IO, "got a %s, want a regular file (its header is written last)",
                folder ? "folder" : "pipe or device");
        return err_prefix(e, path);
    }
    if (out_open(&n->out, path, e))
        return -1;
    return write_header(n) ? out_error(&n->out, e) : 0;
}

int npy_rows(NpyFile *n, const float *data, size_t rows, Err *e)
{
    n->rows += rows;
    return fwrite(data, n->cols * sizeof *data, rows, n->out.f) == rows ? 0 : out_error(&n->out, e);
}

int npy_finish(NpyFile *n, Err *e)
{
    bool failed = fseek(n->out.f, 0, SEEK_SET) || write_header(n);
    return failed ? out_error(&n->out, e) : out_finish(&n->out, e);
}

int npy_commit(NpyFile *n, Err *e)
{
    return out_commit(&n->out, e);
}

void npy_discard(NpyFile *n)
{
    out_discard(&n->out);
}

/* ---- CRC-32 ---------------------------------------------------------------------------------- */

#define CRC_POLYNOMIAL 0xedb88320u // bits reversed

void crc_init(Crc *c)
{
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t v = i;
        for (int bit = 0; bit < 8; bit++)
            v = v >> 1 ^ (v & 1 ? CRC_POLYNOMIAL : 0);
        c->table[0][i] = v;
    }
    for (int k = 1; k < 8; k++) // the same byte with k zeros after it
        for (int i = 0; i < 256; i++)
            c->table[k][i] = c->table[k - 1][i] >> 8 ^ c->table[0][c->table[k - 1][i] & 0xff];
}

uint32_t crc_update(const Crc *c, uint32_t crc, const void *data, size_t len)
{
    const unsigned char *p = data;
    crc = ~crc;
    for (; len >= 8; p += 8, len -= 8) { // eight bytes a step: slicing by 8
        uint32_t lo = crc
                    ^ (p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24);
        crc = c->table[7][lo & 0xff] ^ c->table[6][lo >> 8 & 0xff] ^ c->table[5][lo >> 16 & 0xff]
            ^ c->table[4][lo >> 24] ^ c->table[3][p[4]] ^ c->table[2][p[5]] ^ c->table[1][p[6]]
            ^ c->table[0][p[7]];
    }
    for (; len; p++, len--)
        crc = crc >> 8 ^ c->table[0][(crc ^ *p) & 0xff];
    return ~crc;
}

/* Product of two polynomials modulo the CRC's, highest bit first. */
static uint32_t multiply(uint32_t a, uint32_t b)
{
    uint32_t product = 0;
    for (uint32_t bit = 1u << 31; bit; bit >>= 1) {
        product ^= a & bit ? b : 0;
        b = b >> 1 ^ (b & 1 ? CRC_POLYNOMIAL : 0);
    }
    return product;
}

uint32_t crc_join(uint32_t a, uint32_t b, size_t len_b)
{
    uint32_t power = 1u << 23; // x^8, one byte
    for (; len_b; len_b >>= 1, power = multiply(power, power))
        if (len_b & 1)
            a = multiply(a, power);
    return a ^ b;
}

/* ---- .npz ------------------------------------------------------------------------------------ */

#define FIELD_FULL_32 0xffffffffu

/* Little-endian fields one after another. */
typedef struct {
    unsigned char bytes[160];
    size_t n;
} Fields;

static void put(Fields *f, uint64_t v, int size)
{
    for (int i = 0; i < size; i++, v >>= 8)
        f->bytes[f->n++] = (unsigned char)v;
}

static uint64_t cut(uint64_t v)
{
    return v < FIELD_FULL_32 ? v : FIELD_FULL_32;
}

static int write_all(Npz *z, const void *data, size_t len)
{
    z->at += len;
    return fwrite(data, 1, len, z->f) == len ? 0 : -1;
}

/* What local header and directory share: version needed, flags, method, time, date, crc, sizes,
 * name's length. */
static void put_member(Fields *f, const NpzMember *m)
{
    put(f, m->size >= FIELD_FULL_32 ? 45 : 20, 2);
    put(f, 0, 2);
    put(f, 0, 2);
    put(f, 0, 2);
    put(f, 0x21, 2); // 1 January 1980: the same bytes whenever it is written
    put(f, m->crc, 4);
    put(f, cut(m->size), 4);
    put(f, cut(m->size), 4);
    put(f, strlen(m->name), 2);
}

static int write_local(Npz *z, const NpzMember *m)
{
    Fields f = {.n = 0};
    bool large = m->size >= FIELD_FULL_32;
    put(&f, 0x04034b50, 4);
    put_member(&f, m);
    put(&f, large ? 20 : 0, 2);
    size_t head = f.n;
    if (large) {
        put(&f, 1, 2);
        put(&f, 16, 2);
        put(&f, m->size, 8);
        put(&f, m->size, 8);
    }
    return write_all(z, f.bytes, head) || write_all(z, m->name, strlen(m->name))
                || write_all(z, f.bytes + head, f.n - head)
             ? -1
             : 0;
}

int npz_begin(Npz *z, const char *name, const char *descr, const size_t *shape, int n_dims,
              size_t n_bytes)
{
    char h[NPY_HEADER];
    if (!z->n)
        crc_init(&z->crc);
    NpzMember *m = &z->members[z->n++];
    npy_header(h, descr, shape, n_dims);
    *m = (NpzMember){.name = name, .at = z->at, .size = NPY_HEADER + n_bytes};
    return write_local(z, m) ? -1 : npz_add(z, h, sizeof h, crc_update(&z->crc, 0, h, sizeof h));
}

int npz_add(Npz *z, const void *data, size_t len, uint32_t crc)
{
    NpzMember *m = &z->members[z->n - 1];
    m->crc = crc_join(m->crc, crc, len);
    return write_all(z, data, len);
}

int npz_end(Npz *z)
{
    NpzMember *m = &z->members[z->n - 1];
    uint64_t end = z->at;
    int rc = fseeko(z->f, (off_t)m->at, SEEK_SET) || write_local(z, m)
                  || fseeko(z->f, (off_t)end, SEEK_SET)
               ? -1
               : 0;
    z->at = end;
    return rc;
}

int npz_array(Npz *z, const char *name, const char *descr, const size_t *shape, int n_dims,
              const void *data, size_t len)
{
    return npz_begin(z, name, descr, shape, n_dims, len)
                || npz_add(z, data, len, crc_update(&z->crc, 0, data, len)) || npz_end(z)
             ? -1
             : 0;
}

static int write_directory_entry(Npz *z, const NpzMember *m)
{
    Fields f = {.n = 0}, extra = {.n = 0};
    if (m->size >= FIELD_FULL_32) {
        put(&extra, m->size, 8);
        put(&extra, m->size, 8);
    }
    if (m->at >= FIELD_FULL_32)
        put(&extra, m->at, 8);
    put(&f, 0x02014b50, 4);
    put(&f, 45, 2);
    put_member(&f, m);
    put(&f, extra.n ? extra.n + 4 : 0, 2);
    put(&f, 0, 2); // comment
    put(&f, 0, 2); // disk
    put(&f, 0, 2);
    put(&f, 0, 4);
    put(&f, cut(m->at), 4);
    size_t head = f.n;
    if (extra.n) {
        put(&f, 1, 2);
        put(&f, extra.n, 2);
    }
    return write_all(z, f.bytes, head) || write_all(z, m->name, strlen(m->name))
                || write_all(z, f.bytes + head, f.n - head) || write_all(z, extra.bytes, extra.n)
             ? -1
             : 0;
}

int npz_close(Npz *z)
{
    uint64_t start = z->at;
    for (int i = 0; i < z->n; i++)
        if (write_directory_entry(z, &z->members[i]))
            return -1;
    uint64_t size = z->at - start;
    Fields f = {.n = 0};
    if (start >= FIELD_FULL_32) {
        uint64_t at = z->at;
        put(&f, 0x06064b50, 4);
        put(&f, 44, 8);
        put(&f, 45, 2);
        put(&f, 45, 2);
        put(&f, 0, 4);
        put(&f, 0, 4);
        put(&f, (uint64_t)z->n, 8);
        put(&f, (uint64_t)z->n, 8);
        put(&f, size, 8);
        put(&f, start, 8);
        put(&f, 0x07064b50, 4);
        put(&f, 0, 4);
        put(&f, at, 8);
        put(&f, 1, 4);
    }
    put(&f, 0x06054b50, 4);
    put(&f, 0, 4);
    put(&f, (uint64_t)z->n, 2);
    put(&f, (uint64_t)z->n, 2);
    put(&f, size, 4);
    put(&f, cut(start), 4);
    put(&f, 0, 2);
    return write_all(z, f.bytes, f.n);
}
