/* npy.c - writing NumPy .npy files. Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html */
#include "npy.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

enum { HEADER = 128 }; // a multiple of 64 with room for any shape

static int io_error(NpyFile *n, Err *e)
{
    err_set(e, EXIT_IO, "cannot write: %s", strerror(errno));
    return err_prefix(e, n->path);
}

static int write_header(NpyFile *n)
{
    char h[HEADER];
    memset(h, ' ', sizeof h);
    memcpy(h, "\x93NUMPY\x01\x00", 8);
    h[8] = HEADER - 10;
    h[9] = 0;
    char dict[HEADER - 10];
    int len = snprintf(dict, sizeof dict, "{'descr': '<f4', 'fortran_order': False, 'shape': (%zu, %zu), }", n->rows, n->cols);
    memcpy(h + 10, dict, (size_t)len);
    h[HEADER - 1] = '\n';
    return fwrite(h, 1, sizeof h, n->f) == sizeof h ? 0 : -1;
}

int npy_open(NpyFile *n, const char *path, size_t cols, Err *e)
{
    struct stat st;
    *n = (NpyFile){.path = path, .cols = cols};
    if (!stat(path, &st) && !S_ISREG(st.st_mode)) {
        err_set(e, EXIT_IO, "got a %s, want a regular file (its header is written last)",
                S_ISDIR(st.st_mode) ? "folder" : "pipe or device");
        return err_prefix(e, path);
    }
    n->f = fopen(path, "wb");
    if (!n->f)
        return io_error(n, e);
    if (write_header(n)) {
        io_error(n, e);
        fclose(n->f);
        n->f = NULL;
        return -1;
    }
    return 0;
}

int npy_rows(NpyFile *n, const float *data, size_t rows, Err *e)
{
    n->rows += rows;
    return fwrite(data, n->cols * sizeof *data, rows, n->f) == rows ? 0 : io_error(n, e);
}

int npy_close(NpyFile *n, Err *e)
{
    if (!n->f)
        return 0;
    int rc = fseek(n->f, 0, SEEK_SET) || write_header(n) ? io_error(n, e) : 0;
    if (fclose(n->f) && !rc)
        rc = io_error(n, e);
    n->f = NULL;
    return rc;
}
