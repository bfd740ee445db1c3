/* product_driver.c - products with the matrices of a file's tensor, for tests/test_products.py.
 *
 * Standard input: x, f32, rows of as many values as the tensor's, for one product after the other.
 * Standard output: y, f32, in the same order. Products are one job of the engine.
 *
 *     product_driver TABLE exact|fast FILE TENSOR MATRIX:ROWS ...
 */
#include <stdlib.h>
#include <string.h>

#include "model.h"

enum { MAX_PRODUCTS = 16 };

/* Scratch that matmul() has in a session: for `rows` rows of `cols` values. */
static int open_session(Session *s, Threads *threads, size_t rows, size_t cols, Err *e)
{
    threads_init(threads, 2, NULL);
    s->threads = threads;
    s->packed_size = rows * cols;
    s->x8 = mem_alloc(s->packed_size / 32 + 1, sizeof *s->x8);
    s->x16 = mem_alloc(s->packed_size, sizeof *s->x16);
    return s->x8 && s->x16 ? threads_prepare(threads, matmul_scratch(cols), e)
                           : err_set(e, EXIT_MEMORY, "out of memory");
}

static int multiply(Session *s, const Tensor *t, int n, char **which, Err *e)
{
    Linear w[MAX_PRODUCTS];
    Product products[MAX_PRODUCTS];
    Threads threads;
    size_t rows = 0;
    for (int i = 0; i < n; i++) {
        char *end;
        w[i] = (Linear){.w = tensor_view(t, strtoul(which[i], &end, 10))};
        products[i] = (Product){.w = &w[i], .n_rows = atoi(end + 1)};
        rows += (size_t)products[i].n_rows;
    }
    float *x = mem_alloc(rows * t->cols, sizeof *x), *y = mem_alloc(rows * t->rows, sizeof *y);
    int rc = open_session(s, &threads, rows, t->cols, e);
    if (!rc && (!x || !y || fread(x, t->cols * sizeof *x, rows, stdin) != rows))
        rc = err_set(e, EXIT_IO, "standard input: too short");
    for (size_t i = 0, row = 0; i < (size_t)n; row += (size_t)products[i++].n_rows) {
        products[i].x = x + row * t->cols;
        products[i].y = y + row * t->rows;
    }
    if (!rc) {
        matmul(s, products, n);
        fwrite(y, t->rows * sizeof *y, rows, stdout);
    }
    free(x);
    free(y);
    free(s->x8);
    free(s->x16);
    threads_free(&threads);
    return rc;
}

int main(int argc, char **argv)
{
    Session s = {0};
    Gguf g = {0};
    Err e = {0};
    int rc = argc > 5 && argc - 5 <= MAX_PRODUCTS
               ? gguf_open(&g, argv[3], &e)
               : err_set(&e, EXIT_USAGE, "see the head of its source");
    if (!rc && !(s.k = kernels_select(argv[1], &e)))
        rc = -1;
    const GgufTensor *found = rc ? NULL : gguf_tensor(&g, argv[4]);
    if (!rc && !found)
        rc = err_set(&e, EXIT_MODEL, "tensor %s: missing", argv[4]);
    if (!rc) {
        Tensor t = tensor_of(found);
        s.params.exact = !strcmp(argv[2], "exact");
        rc = multiply(&s, &t, argc - 5, argv + 5, &e);
    }
    gguf_close(&g);
    if (rc)
        fprintf(stderr, "product_driver: %s\n", e.text);
    return rc ? e.code : EXIT_OK;
}
