/* npy.h - writing NumPy .npy files (format version 1.0) row by row. */
#ifndef NPY_H
#define NPY_H

#include "util.h"

/* A float32 matrix whose number of rows is known at the end; it must be a regular file. */
typedef struct {
    FILE *f;
    const char *path; // not owned
    size_t rows, cols;
} NpyFile;

int npy_open(NpyFile *n, const char *path, size_t cols, Err *e);
int npy_rows(NpyFile *n, const float *data, size_t rows, Err *e); // data (rows, cols)
int npy_close(NpyFile *n, Err *e);                                // writes the header with the shape; a closed one is fine

#endif
