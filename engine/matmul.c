/* matmul.c - y = W x for one column or many: threading and packing of the activations, once for
 * every weight format.
 *
 * Quantised weights are multiplied with activations packed as signed bytes, a block of 32 with one
 * scale, and bf16 weights, where the machine can, with activations rounded to bf16; an x is packed
 * once for all products of it. A thread takes panels of rows and the kernel of the format does the
 * rest. With Session.params.exact, and for other float weights, each panel is unpacked to f32 in
 * the thread's scratch (f32 is used in place) and multiplied as f32: the exact path. Every output
 * is one sum in one fixed order, whatever the panel, the number of columns and the thread.
 */
#include <assert.h>

#include "model.h"

typedef struct {
    Session *s;
    const Product *products;
    size_t height;             // rows of a panel
    size_t x_stride, y_stride; // floats from one row to the next, 0: as wide as the rows are
} Job;

static size_t panels(const Job *j, const Product *p)
{
    return (p->w->w.rows + j->height - 1) / j->height;
}

static bool as_bytes(const Session *s, const Tensor *w)
{
    return !s->params.exact && s->k->gemm_q8[w->type];
}

static bool as_bf16(const Session *s, const Tensor *w)
{
    return !s->params.exact && w->type == TYPE_BF16 && s->k->bf16;
}

/* One panel: rows row .. row + n - 1 of a product. */
static void multiply(const Job *j, const Product *p, size_t row, size_t n, float *scratch)
{
    const Session *s = j->s;
    const Tensor *w = &p->w->w;
    size_t cols = w->cols, n_rows = (size_t)p->n_rows, ld = cols;
    size_t ldx = j->x_stride ? j->x_stride : cols, ldy = j->y_stride ? j->y_stride : w->rows;
    const char *src = (const char *)w->data + row * w->row_bytes;
    const float *panel = (const float *)(const void *)src;
    bool aligned = (uintptr_t)src % sizeof(float) == 0;
    float *y = p->y + row;
    if (as_bytes(s, w)) {
        const PackedBlock *x8 = s->x8 + p->packed_at / 32;
        s->k->gemm_q8[w->type](n, n_rows, cols, src, w->row_bytes, x8, y, ldy, scratch);
    } else if (as_bf16(s, w)) {
        const uint16_t *x16 = s->x16 + p->packed_at;
        s->k->bf16->gemm(n, n_rows, cols, src, w->row_bytes, x16, y, ldy, scratch);
    } else if (n_rows == 1 && s->k->gemv[w->type] && aligned) {
        s->k->gemv[w->type](n, cols, src, w->row_bytes, p->x, y);
    } else {
        if (w->type != TYPE_F32 || !aligned) {
            ld = cols + PANEL_PAD;
            for (size_t r = 0; r < n; r++)
                s->k->dequantize[w->type](src + r * w->row_bytes, scratch + r * ld, cols);
            panel = scratch;
        }
        s->k->gemm(n, n_rows, cols, panel, ld, p->x, ldx, y, ldy);
    }
    for (size_t t = 0; p->w->b && t < n_rows; t++)
        for (size_t r = 0; r < n; r++)
            y[t * ldy + r] += p->w->b[row + r];
}

static void multiply_panels(void *context, int from, int to, int thread)
{
    const Job *j = context;
    const Product *p = j->products;
    size_t panel = (size_t)from;
    for (; panel >= panels(j, p); p++) // panels are numbered through all products
        panel -= panels(j, p);
    for (int i = from; i < to; i++, panel++) {
        if (panel == panels(j, p)) {
            panel = 0;
            p++;
        }
        size_t row = panel * j->height, left = p->w->w.rows - row;
        multiply(j, p, row, left < j->height ? left : j->height,
                 threads_scratch(j->s->threads, thread));
    }
}

/* An input of one or more products, and the packed forms in which they read it. */
typedef struct {
    const Session *s;
    const Product *first;
    size_t x_stride; // as of a Job
    bool bytes, bf16;
} Pack;

static void pack_rows(void *context, int from, int to, int thread)
{
    const Pack *p = context;
    const Session *s = p->s;
    size_t cols = p->first->w->w.cols, stride = p->x_stride ? p->x_stride : cols;
    (void)thread;
    for (size_t i = (size_t)from; i < (size_t)to; i++) {
        const float *x = p->first->x + i * stride;
        size_t at = p->first->packed_at + i * cols;
        if (p->bytes)
            s->k->pack_activations(x, s->x8 + at / 32, cols);
        if (p->bf16)
            s->k->bf16->round(x, s->x16 + at, cols);
    }
}

void matmul(Session *s, Product *products, int n_products)
{
    matmul_strided(s, products, n_products, 0, 0);
}

void matmul_strided(Session *s, Product *products, int n_products, size_t x_stride, size_t y_stride)
{
    Job j = {s, products, GEMM_ROWS, x_stride, y_stride};
    size_t n_panels = 0, packed = 0;
    bool packs = false;
    int most_rows = 0;
    for (int i = 0; i < n_products;) { // products of one x, which is packed once
        Pack p = {.s = s, .first = &products[i], .x_stride = x_stride};
        size_t at = packed;
        for (; i < n_products && products[i].x == p.first->x; i++) {
            assert(products[i].w->w.n_matrices == 1);
            p.bytes |= as_bytes(s, &products[i].w->w);
            p.bf16 |= as_bf16(s, &products[i].w->w);
            products[i].packed_at = at;
        }
        packs |= p.bytes || p.bf16;
        most_rows = p.first->n_rows > most_rows ? p.first->n_rows : most_rows;
        packed += (size_t)p.first->n_rows * p.first->w->w.cols;
        assert(packed <= s->packed_size);
        if (p.bytes || p.bf16)
            threads_run(s->threads, p.first->n_rows, ROW_GRAIN, pack_rows, &p);
    }
    if (most_rows == 1 && !packs)
        j.height = 8; // unpacked rows are used once: they should still be in the first-level cache
    for (int i = 0; i < n_products; i++)
        n_panels += panels(&j, &products[i]);
    threads_run_parts(s->threads, (int)n_panels, 1, multiply_panels, &j);
}

size_t matmul_scratch(size_t widest_input)
{
    return GEMM_ROWS * (widest_input + PANEL_PAD);
}
