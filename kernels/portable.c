/* portable.c - the portable kernel table, which is complete and the reference for all others.
 *
 * Most of it is portable.inc, which the other tables share; here are the plain loops for what they
 * replace.
 */
#include "kernels/portable.inc"

static void gemm(size_t rows, size_t cols, size_t n, const float *w, size_t ldw, const float *x,
                 size_t ldx, float *y, size_t ldy)
{
    for (size_t c = 0; c < cols; c++)
        for (size_t r = 0; r < rows; r++) {
            const float *a = w + r * ldw, *b = x + c * ldx;
            float s[LANES] = {0};
            size_t k = 0;
            for (; k + LANES <= n; k += LANES)
                for (int j = 0; j < LANES; j++)
                    s[j] += a[k + (size_t)j] * b[k + (size_t)j];
            for (; k < n; k++)
                s[k % LANES] += a[k] * b[k];
            y[c * ldy + r] = fold(s);
        }
}

static void gemm_add(size_t rows, size_t n, size_t width, const float *a, size_t lda,
                     const float *b, size_t ldb, float *y, size_t ldy)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < n; k++)
            for (size_t i = 0; i < width; i++)
                y[r * ldy + i] += a[r * lda + k] * b[k * ldb + i];
}

static void gemm_add_f16(size_t rows, size_t n, size_t width, const float *a, size_t lda,
                         const uint16_t *b, size_t ldb, float *y, size_t ldy)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < n; k++)
            for (size_t i = 0; i < width; i++)
                y[r * ldy + i] += a[r * lda + k] * f16_f32(b[k * ldb + i]);
}

static void gemm_add_i8(size_t rows, size_t n, size_t width, const float *a, size_t lda,
                        const int8_t *b, size_t ldb, float *y, size_t ldy)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < n; k++)
            for (size_t i = 0; i < width; i++)
                y[r * ldy + i] += a[r * lda + k] * (float)b[k * ldb + i];
}

static float soft(float *x, size_t n, float scale, float *max)
{
    for (size_t i = 0; i < n; i++) {
        x[i] *= scale;
        *max = x[i] > *max ? x[i] : *max;
    }
    return exp_sum(x, n, *max);
}

const Kernels kernels_scalar = {
    .name = "scalar",
    PORTABLE_KERNELS,
    .dequantize = PORTABLE_DEQUANTIZE(dequantize_f16),
    .quantize = quantize,
    .soft = soft,
    .gemm = gemm,
    .gemm_add = gemm_add,
    .gemm_add_f16 = gemm_add_f16,
    .gemm_add_i8 = gemm_add_i8,
};
