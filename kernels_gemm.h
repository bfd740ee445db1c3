/* kernels_gemm.h - products of a matrix of floats, halves or bfloat16s with columns, written once against a small vector
 * vocabulary.
 *
 * Lanes run along k and every output has one accumulator whatever the tile, so one column and many give the same bits. As
 * pairs, both factors are bfloat16 and a lane adds two products at once.
 *
 * The includer (kernels_v512.h for two, kernels_avx2.c, kernels_neon.c) defines:
 *   V, VL                     a vector of VL floats
 *   v_zero() v_load(p) v_store(p, v) v_load_n(p, n)    n < VL, zero beyond
 *   v_load_f16(p) v_load_bf16(p)
 *   v_fma(a, b, c) = a b + c    v_sum(v)    v_sums(VL of them), each lane the v_sum() of one
 *   v_fma_pairs(a, b, c)      c + products of bfloat16s; where it is missing there are no pairs
 *   ROWS x COLS, ROWS_1       tiles for several columns and for one
 *   STEP                      how many values of W and x are taken at a time
 */
#ifndef v_fma_pairs
#define v_fma_pairs(a, b, c) v_fma(a, b, c)
#endif

enum { AHEAD = 4096 }; // bytes from the rows behind those that are read to what is fetched: measured, 15 % over 0

/* What the factors are. W is in its own type and x in floats, or, W_PAIRS: both in bfloat16. */
typedef enum { W_F32, W_F16, W_BF16, W_PAIRS } Factors;

INLINE size_t w_size(const Factors f)
{
    return f == W_F32 ? 4 : 2;
}

INLINE size_t x_size(const Factors f)
{
    return f == W_PAIRS ? 2 : 4;
}

/* The vector that starts with value k of a row of W; of its last n values. */
INLINE V load_w(const Factors f, const char *w, size_t k)
{
    const void *p = w + k * w_size(f);
    return f == W_F16 ? v_load_f16(p) : f == W_BF16 ? v_load_bf16(p) : v_load((const float *)p);
}

INLINE V load_w_n(const Factors f, const char *w, size_t k, size_t n)
{
    float rest[VL] = {0};
    memcpy(rest, w + k * w_size(f), n * w_size(f));
    return load_w(f, (const char *)rest, 0);
}

INLINE V load_x_n(const Factors f, const char *x, size_t k, size_t n)
{
    float rest[VL] = {0};
    memcpy(rest, x + k * x_size(f), n * x_size(f));
    return v_load(rest);
}

INLINE V v_product(const Factors f, V a, V b, V c)
{
    return f == W_PAIRS ? v_fma_pairs(a, b, c) : v_fma(a, b, c);
}

/* sums (rows, COLS) += products over n values; rows are w_bytes and columns x_bytes apart. Meanwhile what is at `next` is
 * fetched, unless it is NULL: for many columns VL floats a step, for one as many bytes as are read. */
INLINE void gemm_tile(const Factors f, const int rows, const int cols, size_t n, const char *w, size_t w_bytes, const char *x,
                      size_t x_bytes, V sums[][COLS], const char *next)
{
    const size_t wide = f == W_PAIRS ? 2 * VL : VL, fetch = cols > 1 ? VL * 4 : (size_t)rows * wide * w_size(f);
    V acc[ROWS_1 > ROWS ? ROWS_1 : ROWS][COLS];
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < cols; c++)
            acc[r][c] = sums[r][c];
    size_t k = 0;
    for (; k + wide <= n; k += wide) {
        V b[COLS];
        for (size_t line = 0; next && line < fetch; line += 64)
            __builtin_prefetch(next + k / wide * fetch + line, 0, 2);
        UNROLL for (int c = 0; c < cols; c++)
            b[c] = v_load((const float *)(const void *)(x + (size_t)c * x_bytes + k * x_size(f)));
        UNROLL for (int r = 0; r < rows; r++) {
            V a = load_w(f, w + (size_t)r * w_bytes, k);
            UNROLL for (int c = 0; c < cols; c++)
                acc[r][c] = v_product(f, a, b[c], acc[r][c]);
        }
    }
    if (k < n) {
        V b[COLS];
        UNROLL for (int c = 0; c < cols; c++)
            b[c] = load_x_n(f, x + (size_t)c * x_bytes, k, n - k);
        UNROLL for (int r = 0; r < rows; r++) {
            V a = load_w_n(f, w + (size_t)r * w_bytes, k, n - k);
            UNROLL for (int c = 0; c < cols; c++)
                acc[r][c] = v_product(f, a, b[c], acc[r][c]);
        }
    }
    UNROLL for (int r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < cols; c++)
            sums[r][c] = acc[r][c];
}

/* COLS columns with at most GEMM_ROWS rows -> y, columns ldy apart. */
INLINE void gemm_columns(const Factors f, size_t rows, size_t n, const char *w, size_t w_bytes, const char *x, size_t x_bytes,
                         float *y, size_t ldy)
{
    V sums[GEMM_ROWS][COLS];
    for (size_t r = 0; r < rows; r++)
        UNROLL for (int c = 0; c < COLS; c++)
            sums[r][c] = v_zero();
    for (size_t k = 0; k < n; k += STEP) {
        size_t step = n - k < STEP ? n - k : STEP, r = 0;
        const char *wk = w + k * w_size(f), *xk = x + k * x_size(f);
        const char *next = k + STEP < n ? xk + STEP * x_size(f) : x + COLS * x_bytes; // each tile fetches one column of them
        for (; r + ROWS <= rows; r += ROWS)
            gemm_tile(f, ROWS, COLS, step, wk + r * w_bytes, w_bytes, xk, x_bytes, sums + r,
                      r / ROWS < COLS ? next + r / ROWS * x_bytes : NULL);
        for (; r < rows; r++)
            gemm_tile(f, 1, COLS, step, wk + r * w_bytes, w_bytes, xk, x_bytes, sums + r, NULL);
    }
    for (int c = 0; c < COLS; c++) {
        size_t r = 0;
        for (; r + VL <= rows; r += VL) { // the sums of VL rows at once
            V each[VL];
            UNROLL for (int i = 0; i < VL; i++)
                each[i] = sums[r + (size_t)i][c];
            v_store(y + (size_t)c * ldy + r, v_sums(each));
        }
        for (; r < rows; r++)
            y[(size_t)c * ldy + r] = v_sum(sums[r][c]);
    }
}

INLINE void gemm_column(const Factors f, size_t rows, size_t n, const char *w, size_t w_bytes, const char *x, float *y)
{
    size_t r = 0;
    for (; r < rows; r += rows - r < ROWS_1 ? 1 : ROWS_1) {
        V sums[ROWS_1][COLS];
        const char *from = w + r * w_bytes;
        UNROLL for (int i = 0; i < ROWS_1; i++)
            sums[i][0] = v_zero();
        if (rows - r < ROWS_1)
            gemm_tile(f, 1, 1, n, from, w_bytes, x, 0, sums, from + w_bytes);
        else
            gemm_tile(f, ROWS_1, 1, n, from, w_bytes, x, 0, sums, from + ROWS_1 * w_bytes + AHEAD);
        for (size_t i = 0; i < (rows - r < ROWS_1 ? 1 : ROWS_1); i++)
            y[r + i] = v_sum(sums[i][0]);
    }
}

/* Any number of columns. */
INLINE void gemm_any(const Factors f, size_t rows, size_t cols, size_t n, const char *w, size_t w_bytes, const char *x, size_t x_bytes,
                     float *y, size_t ldy)
{
    size_t c = 0;
    for (; c + COLS <= cols; c += COLS)
        for (size_t r = 0; r < rows; r += GEMM_ROWS)
            gemm_columns(f, rows - r < GEMM_ROWS ? rows - r : GEMM_ROWS, n, w + r * w_bytes, w_bytes, x + c * x_bytes, x_bytes,
                         y + c * ldy + r, ldy);
    for (; c < cols; c++)
        gemm_column(f, rows, n, w, w_bytes, x + c * x_bytes, y + c * ldy);
}
