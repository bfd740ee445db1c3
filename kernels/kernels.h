/* kernels.h - the table of inner loops, one table for each instruction set.
 *
 * portable.c holds the portable table, which is complete and the reference; avx2.c, avx512.c (with
 * bf16.c), neon.c and dotprod.c hold faster ones. kernels_select() picks at run time. Kernels work
 * on one thread, allocate nothing and give, for every output, the same bits however the work around
 * it is split into rows and columns.
 */
#ifndef KERNELS_H
#define KERNELS_H

#include "base/blocks.h"
#include "base/util.h"

/* ACT_XIELU has numbers of its own for each layer, and so no place in Kernels.act. */
typedef enum {
    ACT_SILU,
    ACT_GELU,
    ACT_GELU_TANH,
    ACT_RELU,
    ACT_RELU2,
    ACT_COUNT,
    ACT_XIELU = ACT_COUNT
} Act;

/* x > 0: positive x^2 + beta x; else negative (exp(min(x, eps)) - 1 - x) + beta x (Huang and
 * Schlag 2025). */
typedef struct {
    float positive, negative, beta, eps;
} Xielu;
enum { GEMM_ROWS = 32, STATE_COLS = 32 };
typedef enum { NORM_RMS, NORM_LAYER, NORM_COUNT } NormType;

/* 32 activations as signed bytes: x = scale q, |q| <= 127. A NaN or infinity makes scale NaN. */
typedef struct {
    int8_t q[32];
    float scale, scaled_sum;      // scale times the sum of q
    int32_t minus_sum, minus_low; // minus the sum of q, and of its first 16
} PackedBlock;

/* Products of which both factors are bf16. */
typedef struct {
    /* n floats to bf16, to nearest even; those below 2^-126 become 0. */
    void (*round)(const float *x, uint16_t *y, size_t n);

    /* y[c][r] = sum over k of w[r][k] x[c][k]: w (rows, n) with rows row_bytes apart, x (cols, n),
     * y (cols, rows). At most GEMM_ROWS rows; scratch (GEMM_ROWS, n + 32) of bf16. */
    void (*gemm)(size_t rows, size_t cols, size_t n, const void *w, size_t row_bytes,
                 const uint16_t *x, float *y, size_t ldy, void *scratch);

    /* src (n, width) in f16 or signed bytes -> dst (n / 2 rounded up, width, 2) in bf16, rounded:
     * rows 2k and 2k + 1 as pairs. Zeros pair with an odd last row. */
    void (*pairs_f16)(const uint16_t *src, uint16_t *dst, size_t n, size_t width);
    void (*pairs_i8)(const int8_t *src, uint16_t *dst, size_t n, size_t width);

    /* y[r][i] += sum over k, ascending, of a[r][k] b[k][i]: a (rows, n), lda even and a[r][n] = 0
     * where n is odd, b as pairs (n / 2 rounded up, ldb, 2). */
    void (*gemm_add)(size_t rows, size_t n, size_t width, const uint16_t *a, size_t lda,
                     const uint16_t *b, size_t ldb, float *y, size_t ldy);
} Bf16Kernels;

typedef struct {
    const char *name; // as in RUN_CPU

    /* n values of a tensor row, at any address -> dst (n,). NULL for types that we do not read. */
    void (*dequantize[TYPE_COUNT])(const void *src, float *dst, size_t n);

    /* n weights, a multiple of the block, finite and at most 65504 -> blocks. NULL for types that
     * we do not write. */
    void (*quantize[TYPE_COUNT])(const float *src, void *dst, size_t n);

    /* y[c][r] = sum over k of w[r][k] x[c][k]: w (rows, n), x (cols, n), y (cols, rows), leading
     * dimensions in floats. */
    void (*gemm)(size_t rows, size_t cols, size_t n, const float *w, size_t ldw, const float *x,
                 size_t ldx, float *y, size_t ldy);

    /* The same product for one column and rows of W in their own type, row_bytes apart. NULL for
     * most types. */
    void (*gemv[TYPE_COUNT])(size_t rows, size_t n, const void *w, size_t row_bytes, const float *x,
                             float *y);

    /* n activations, a multiple of 32 -> q (n / 32). */
    void (*pack_activations)(const float *x, PackedBlock *q, size_t n);

    /* The same product for rows of a quantised type, row_bytes apart, with packed activations x
     * (cols, n / 32). At most GEMM_ROWS rows; scratch of GEMM_ROWS * n floats. NULL for types that
     * are not quantised, and in the portable table, where floats are faster. */
    void (*gemm_q8[TYPE_COUNT])(size_t rows, size_t cols, size_t n, const void *w, size_t row_bytes,
                                const PackedBlock *x, float *y, size_t ldy, void *scratch);

    const Bf16Kernels *bf16; // NULL where the processor has no instructions for it

    /* y[r][i] += sum over k, ascending, of a[r][k] b[k][i]: a (rows, n), b (n, width), y (rows,
     * width). The other forms read b as f16 and as signed bytes. */
    void (*gemm_add)(size_t rows, size_t n, size_t width, const float *a, size_t lda,
                     const float *b, size_t ldb, float *y, size_t ldy);
    void (*gemm_add_f16)(size_t rows, size_t n, size_t width, const float *a, size_t lda,
                         const uint16_t *b, size_t ldb, float *y, size_t ldy);
    void (*gemm_add_i8)(size_t rows, size_t n, size_t width, const float *a, size_t lda,
                        const int8_t *b, size_t ldb, float *y, size_t ldy);

    /* y = x normalised over n, times w, plus b; w and b (n,) may be NULL; y may be x. */
    void (*norm[NORM_COUNT])(float *y, const float *x, const float *w, const float *b, size_t n,
                             float eps);

    void (*act[ACT_COUNT])(float *x, size_t n);                                 // in place
    void (*xielu)(float *x, size_t n, const Xielu *a);                          // in place
    void (*mul)(float *x, const float *y, size_t n);                            // x *= y
    void (*add_scaled)(float *y, const float *x, const float *scale, size_t n); // y += scale x
    void (*soft_cap)(float *x, size_t n, float cap); // x = cap tanh(x / cap)
    /* A row of products of queries and keys: x = exp(scale x - m), where m, the largest of *max and
     * every scale x, becomes *max; returns the sum. Weights below 1e-37 are 0. */
    float (*online_softmax)(float *x, size_t n, float scale, float *max);
    /* x = exp(x - max), and exp(-inf) is 0; returns the sum. */
    float (*exp_sum)(float *x, size_t n, float max);
    /* A recurrent layer's matrix S (key_dim, STATE_COLS) takes in a key (key_dim) and a value, and
     * answers a query (key_dim): d = rate * v or, where it corrects, rate * (v - decay S^T k);
     * S = decay S + k d^T; out = S^T q. v and out (STATE_COLS); `before` may be S. */
    void (*state_step)(float *S, const float *before, size_t key_dim, const float *q,
                       const float *k, const float *v, float decay, float rate, bool corrects,
                       float *out);
    void (*f32_to_f16)(const float *src, uint16_t *dst, size_t n); // saturating
    void (*i8_to_f32)(const int8_t *src, float *dst, size_t n);
} Kernels;

/* The best table that this machine can run, or, when `cap` is not NULL or empty, the one of that
 * name ("scalar", "avx2", "avx512", "neon", "dotprod"). NULL and an Err (EXIT_USAGE) when the name
 * is unknown or the machine lacks it. */
const Kernels *kernels_select(const char *cap, Err *e);

/* Tables by index for tests and benchmarks, NULL past the end; ones this machine cannot run are
 * left out. */
const Kernels *kernels_at(int index);

#endif
