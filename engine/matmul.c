/* matmul.c - y = W x for one column or many: threading and packing of activations, once for every
 * weight format.
 *
 * Quantised weights are multiplied with activations in signed bytes, a block of 32 with one scale,
 * and bfloat16 weights, where the machine can, with bfloat16 activations, rounded once for all
 * products of the same x; a thread takes panels of rows and the kernel of the format does the rest.
 * With Session.params.exact, and for other float weights, each panel is unpacked to float in the
 * thread's scratch (floats are used in place) and multiplied as floats: the exact path. Every
 * output is one sum in one fixed order, whatever the panel, the number of columns and the thread.
 */
#include "model.h"

typedef struct {
    Session *s;
    const float *x;        // (n_rows, cols)
    size_t n_rows, height; // of a panel
    bool packed, bf16;     // whether x is wanted in signed bytes, in bf16
    const MatmulOut *outs;
} Job;

static size_t panels(const Job *j, const MatmulOut *out)
{
    return (out->w->w.rows + j->height - 1) / j->height;
}

static bool as_packed(const Session *s, const Tensor *w)
{
    return !s->params.exact && s->k->gemm_q8[w->type];
}

static bool as_bf16(const Session *s, const Tensor *w)
{
    return !s->params.exact && w->type == TYPE_BF16 && s->k->bf16;
}

/* One panel: rows row .. row + n - 1 of a product. */
static void multiply(const Job *j, const MatmulOut *out, size_t row, size_t n, float *scratch)
{
    const Tensor *w = &out->w->w;
    const Kernels *k = j->s->k;
    size_t cols = w->cols, rows = w->rows, ld = cols;
    const char *src = (const char *)w->data + row * w->row_bytes;
    const float *panel = (const float *)(const void *)src;
    float *y = out->y + row;
    if (as_packed(j->s, w)) {
        k->gemm_q8[w->type](n, j->n_rows, cols, src, w->row_bytes, j->s->x8, y, rows, scratch);
    } else if (as_bf16(j->s, w)) {
        k->bf16->gemm(n, j->n_rows, cols, src, w->row_bytes, j->s->x16, y, rows, scratch);
    } else if (j->n_rows == 1 && k->gemv[w->type] && (uintptr_t)src % sizeof(float) == 0) {
        k->gemv[w->type](n, cols, src, w->row_bytes, j->x, y);
    } else {
        if (w->type != TYPE_F32 || (uintptr_t)src % sizeof(float)) {
            ld = cols + PANEL_PAD;
            for (size_t r = 0; r < n; r++)
                k->dequantize[w->type](src + r * w->row_bytes, scratch + r * ld, cols);
            panel = scratch;
        }
        k->gemm(n, j->n_rows, cols, panel, ld, j->x, cols, y, rows);
    }
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

static void round_rows(void *context, int from, int to, int thread)
{
    const Job *j = context;
    const Session *s = j->s;
    size_t cols = j->outs->w->w.cols, at = (size_t)from * cols, n = (size_t)(to - from) * cols;
    (void)thread;
    if (j->packed)
        s->k->pack_activations(j->x + at, s->x8 + at / 32, n);
    if (j->bf16)
        s->k->bf16->round(j->x + at, s->x16 + at, n);
}

void matmul(Session *s, const float *x, int n_rows, const MatmulOut *outs, int n_outs)
{
    Job job = {s, x, (size_t)n_rows, GEMM_ROWS, false, false, outs};
    size_t n = 0;
    for (int o = 0; o < n_outs; o++) {
        job.packed = job.packed || as_packed(s, &outs[o].w->w);
        job.bf16 = job.bf16 || as_bf16(s, &outs[o].w->w);
    }
    if (n_rows == 1 && !job.packed && !job.bf16)
        job.height =
            8; // unpacked rows are used once, so they should still be in the first-level cache
    for (int o = 0; o < n_outs; o++)
        n += panels(&job, &outs[o]);
    if (job.packed || job.bf16)
        threads_run(&s->threads, n_rows, ROW_GRAIN, round_rows, &job);
    threads_run_parts(&s->threads, (int)n, 1, multiply_panels, &job);
}
