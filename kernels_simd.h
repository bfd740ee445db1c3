/* kernels_simd.h - the entries of a kernel table that are products or softmax, written once against a small vector vocabulary.
 *
 * The includer (kernels_avx2.c, kernels_avx512.c, kernels_neon.c) defines what kernels_gemm.h and kernels_add.h ask for and:
 *   v_add v_sub v_mul v_max(a, b) (NaN where b is)    v_maximum(v)
 *   v_exp2_add(p, t)          p with the low bits of t, a whole number of up to 9 bits, added to its exponent
 *   v_unless_below(y, x, f)   0 where x < f, y elsewhere
 */
#include "kernels_gemm.h"
#include "kernels_add.h"

static void gemm(size_t rows, size_t cols, size_t n, const float *w, size_t ldw, const float *x, size_t ldx, float *y,
                 size_t ldy)
{
    gemm_any(W_F32, rows, cols, n, (const char *)w, ldw * 4, (const char *)x, ldx * 4, y, ldy);
}

static void gemv_f32(size_t rows, size_t n, const void *w, size_t row_bytes, const float *x, float *y)
{
    gemm_column(W_F32, rows, n, w, row_bytes, (const char *)x, y);
}

static void gemv_f16(size_t rows, size_t n, const void *w, size_t row_bytes, const float *x, float *y)
{
    gemm_column(W_F16, rows, n, w, row_bytes, (const char *)x, y);
}

static void gemv_bf16(size_t rows, size_t n, const void *w, size_t row_bytes, const float *x, float *y)
{
    gemm_column(W_BF16, rows, n, w, row_bytes, (const char *)x, y);
}

#define GEMV_TABLE {[TYPE_F32] = gemv_f32, [TYPE_F16] = gemv_f16, [TYPE_BF16] = gemv_bf16}

static void gemm_add(size_t rows, size_t n, size_t width, const float *a, size_t lda, const float *b, size_t ldb,
                     float *y, size_t ldy)
{
    add_any(FLOATS, rows, n, width, a, lda, (const char *)b, ldb, y, ldy);
}

static void gemm_add_f16(size_t rows, size_t n, size_t width, const float *a, size_t lda, const uint16_t *b, size_t ldb,
                         float *y, size_t ldy)
{
    add_any(HALVES, rows, n, width, a, lda, (const char *)b, ldb, y, ldy);
}

static void gemm_add_i8(size_t rows, size_t n, size_t width, const float *a, size_t lda, const int8_t *b, size_t ldb,
                        float *y, size_t ldy)
{
    add_any(BYTES, rows, n, width, a, lda, (const char *)b, ldb, y, ldy);
}

static void simd_f16(const void *src, float *dst, size_t n)
{
    const uint16_t *p = src;
    size_t i = 0;
    for (; i + VL <= n; i += VL)
        v_store(dst + i, v_load_f16(p + i));
    dequantize_f16(p + i, dst + i, n - i);
}

/* exp(x) for x <= 0 as exp_f32 of kernels_body.h computes it, but with fma; 0 below -86. */
INLINE V v_exp(V x)
{
    V clamped = v_max(v_set1(-87.0f), x), t = v_fma(clamped, v_set1(1.44269504f), v_set1(12582912.0f));
    V n = v_sub(t, v_set1(12582912.0f));
    V r = v_fma(n, v_set1(2.12194440e-4f), v_fma(n, v_set1(-0.693359375f), clamped));
    V p = v_fma(v_set1(1.3950476e-3f), r, v_set1(8.368882e-3f));
    p = v_fma(p, r, v_set1(4.1666206e-2f));
    p = v_fma(p, r, v_set1(1.6666518e-1f));
    p = v_fma(p, r, v_set1(0.5f));
    p = v_fma(p, v_mul(r, r), v_add(r, v_set1(1)));
    return v_unless_below(v_exp2_add(p, t), x, -86.0f);
}

static float soft(float *x, size_t n, float scale, float *max)
{
    float rest[VL];
    size_t whole = n / VL * VL;
    V by = v_set1(scale), most = v_set1(*max), last = most, sum = v_zero();
    for (size_t i = 0; i < whole; i += VL)
        most = v_max(most, v_mul(v_load(x + i), by));
    if (whole < n) {
        for (size_t i = 0; i < VL; i++)
            rest[i] = whole + i < n ? x[whole + i] * scale : -INFINITY;
        last = v_load(rest);
        most = v_max(most, last);
    }
    *max = v_maximum(most);
    most = v_set1(*max);
    for (size_t i = 0; i < whole; i += VL) {
        V e = v_exp(v_sub(v_mul(v_load(x + i), by), most));
        v_store(x + i, e);
        sum = v_add(sum, e);
    }
    if (whole < n) {
        V e = v_exp(v_sub(last, most));
        v_store_n(x + whole, e, n - whole);
        sum = v_add(sum, e);
    }
    return v_sum(sum);
}
