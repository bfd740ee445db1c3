/* npy.h - writing NumPy files: .npy (format version 1.0) and .npz (a zip archive of them, stored,
 * zip64 where needed). */
#ifndef NPY_H
#define NPY_H

#include "base/file.h"

/* A float32 matrix whose number of rows is known at the end; it must be a regular file. */
typedef struct {
    OutFile out;
    size_t rows, cols;
} NpyFile;

int npy_open(NpyFile *n, const char *path, size_t cols, Err *e);
int npy_rows(NpyFile *n, const float *data, size_t rows, Err *e); // data (rows, cols)
int npy_finish(NpyFile *n, Err *e); // the header gets its shape: the file is complete
int npy_commit(NpyFile *n, Err *e); // then its name
void npy_discard(NpyFile *n);       // removes what was not committed; a zeroed one is fine

enum { NPY_HEADER = 192 };

/* The header of an array of type `descr` ("<f4", "<U12") and up to 4 dimensions; no dimension is a
 * scalar. */
void npy_header(char out[NPY_HEADER], const char *descr, const size_t *shape, int n_dims);

/* CRC-32 as zip has it. Begin with 0; a state is a few kilobytes of tables, so that there is no
 * global one. */
typedef struct {
    uint32_t table[8][256];
} Crc;

void crc_init(Crc *c);
uint32_t crc_update(const Crc *c, uint32_t crc, const void *data, size_t len);
uint32_t crc_join(uint32_t a, uint32_t b, size_t len_b); // of A then B, from both and B's length

enum { NPZ_ARRAYS = 12 };

typedef struct {
    const char *name;
    uint64_t at, size; // of the local header; of the member
    uint32_t crc;
} NpzMember;

typedef struct {
    FILE *f; // not owned, can seek
    Crc crc;
    NpzMember members[NPZ_ARRAYS];
    int n;
    uint64_t at;
} Npz;

/* An array: begin (n_bytes of data follow), add until they are complete, end. 0, or -1 with errno.
 * `name` must live. */
int npz_begin(Npz *z, const char *name, const char *descr, const size_t *shape, int n_dims,
              size_t n_bytes);
int npz_add(Npz *z, const void *data, size_t len,
            uint32_t crc); // crc of data: crc_update(&z->crc, 0, data, len)
int npz_end(Npz *z);
int npz_array(Npz *z, const char *name, const char *descr, const size_t *shape, int n_dims,
              const void *data, size_t len);
int npz_close(Npz *z); // writes the directory

#endif
