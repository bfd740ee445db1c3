/* matmul.c - y = W x for one column or many: tiling and threading, once for every weight format.
 *
 * A thread takes a panel of rows, unpacks them to float in its scratch (floats are used in place) and multiplies the
 * panel with all columns. Every output is one dot product in one fixed order, whatever the panel, the number of
 * columns and the thread. This is the exact path: float activations, float sums.
 */
#include "model.h"

static void multiply_panel(Session *s, const MatmulOut *out, size_t row, size_t n, const float *x, size_t n_rows,
                           float *scratch)
{
    const Tensor *w = &out->w->w;
    size_t cols = w->cols, rows = w->rows;
    const char *src = (const char *)w->data + row * w->row_bytes;
    const float *panel = (const float *)(const void *)src;
    if (w->type != TYPE_F32 || (uintptr_t)src % sizeof(float)) {
        for (size_t r = 0; r < n; r++)
            s->k->dequantize[w->type](src + r * w->row_bytes, scratch + r * cols, cols);
        panel = scratch;
    }
    float *y = out->y + row;
    s->k->gemm(n, n_rows, cols, panel, cols, x, cols, y, rows);
    if (out->w->b)
        for (size_t t = 0; t < n_rows; t++)
            for (size_t r = 0; r < n; r++)
                y[t * rows + r] += out->w->b[row + r];
}

void matmul(Session *s, const float *x, int n_rows, const MatmulOut *outs, int n_outs)
{
    /* One column: the unpacked rows are used once, so they should still be in the first-level cache. */
    size_t height = n_rows == 1 ? 8 : MATMUL_PANEL;
    int n_panels = 0;
    for (int o = 0; o < n_outs; o++)
        n_panels += (int)((outs[o].w->w.rows + height - 1) / height);

#pragma omp parallel for schedule(static) num_threads(s->params.n_threads)
    for (int p = 0; p < n_panels; p++) {
        size_t row = (size_t)p * height;
        int o = 0;
        for (size_t skip; row >= (skip = (outs[o].w->w.rows + height - 1) / height * height); o++)
            row -= skip;
        size_t left = outs[o].w->w.rows - row;
        multiply_panel(s, &outs[o], row, left < height ? left : height, x, (size_t)n_rows,
                       s->scratch + (size_t)thread_index() * s->scratch_floats);
    }
}
