/* matmul.c - y = W x for one column or many: tiling and threading, once for every weight format.
 *
 * A thread takes panels of rows, unpacks each to float in its scratch (floats are used in place) and multiplies it with
 * all columns. Every output is one dot product in one fixed order, whatever the panel, the number of columns and the
 * thread. This is the exact path: float activations, float sums.
 */
#include "model.h"

typedef struct {
    Session *s;
    const float *x; // (n_rows, cols)
    size_t n_rows, height; // of a panel
    const MatmulOut *outs;
} Job;

static size_t panels(const Job *j, const MatmulOut *out)
{
    return (out->w->w.rows + j->height - 1) / j->height;
}

/* One panel: rows row .. row + n - 1 of a product. */
static void multiply(const Job *j, const MatmulOut *out, size_t row, size_t n, float *scratch)
{
    const Tensor *w = &out->w->w;
    const Kernels *k = j->s->k;
    size_t cols = w->cols, rows = w->rows;
    const char *src = (const char *)w->data + row * w->row_bytes;
    const float *panel = (const float *)(const void *)src;
    if (w->type != TYPE_F32 || (uintptr_t)src % sizeof(float)) {
        for (size_t r = 0; r < n; r++)
            k->dequantize[w->type](src + r * w->row_bytes, scratch + r * cols, cols);
        panel = scratch;
    }
    float *y = out->y + row;
    k->gemm(n, j->n_rows, cols, panel, cols, j->x, cols, y, rows);
    if (out->w->b)
        for (size_t t = 0; t < j->n_rows; t++)
            for (size_t r = 0; r < n; r++)
                y[t * rows + r] += out->w->b[row + r];
}

static void multiply_panels(void *context, int from, int to, int thread)
{
    const Job *j = context;
    const MatmulOut *out = j->outs;
    size_t panel = (size_t)from;
    for (; panel >= panels(j, out); out++) // panels are numbered through all outputs
        panel -= panels(j, out);
    for (int i = from; i < to; i++, panel++) {
        if (panel == panels(j, out)) {
            panel = 0;
            out++;
        }
        size_t row = panel * j->height, left = out->w->w.rows - row;
        multiply(j, out, row, left < j->height ? left : j->height, session_scratch(j->s, thread));
    }
}

void matmul(Session *s, const float *x, int n_rows, const MatmulOut *outs, int n_outs)
{
    /* One column: the unpacked rows are used once, so they should still be in the first-level cache. */
    Job job = {s, x, (size_t)n_rows, n_rows == 1 ? 8 : MATMUL_PANEL, outs};
    size_t n = 0;
    for (int o = 0; o < n_outs; o++)
        n += panels(&job, &outs[o]);
    threads_run(&s->threads, (int)n, 1, multiply_panels, &job);
}
