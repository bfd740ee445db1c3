/* bf16.c - products of two bf16 factors, with sums in f32, on processors that multiply pairs of
 * them (AVX-512 BF16). Compiled with that flag; run only after a check. */
#include "kernels/kernels.h"
#include "kernels/vec_avx512.h"

#include "kernels/gemm.inc"
#include "kernels/gemm_add.inc"

/* 32 floats as bf16, those of low first. */
INLINE __m512i round32(V low, V high)
{
    return (__m512i)_mm512_cvtne2ps_pbh(high, low);
}

static void round_bf16(const float *x, uint16_t *y, size_t n)
{
    size_t i = 0;
    for (; i + 32 <= n; i += 32)
        _mm512_storeu_si512(y + i, round32(v_load(x + i), v_load(x + i + 16)));
    if (i < n) {
        float rest[32] = {0};
        memcpy(rest, x + i, (n - i) * sizeof *x);
        _mm512_mask_storeu_epi16(y + i, (1u << (n - i)) - 1,
                                 round32(v_load(rest), v_load(rest + 16)));
    }
}

/* Rows 2k and 2k + 1 of src (n, width) -> row k of dst (n / 2 rounded up, width, 2); zeros pair
 * with an odd last row. */
INLINE void pairs(const BType type, const char *src, uint16_t *dst, size_t n, size_t width)
{
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9,
                                           24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1,
                                           16, 0);
    for (size_t k = 0; k < n; k += 2)
        for (size_t i = 0; i < width; i += VL) {
            const char *even = src + (k * width + i) * b_size(type),
                       *odd = even + width * b_size(type);
            size_t wide = width - i < VL ? width - i : VL;
            __builtin_prefetch(even + PREFETCH_BYTES, 0, 2); // in the cache values follow keys
            __builtin_prefetch(odd + PREFETCH_BYTES, 0, 2);
            V a = wide == VL ? load_b(type, even) : load_b_n(type, even, wide), b = {0};
            if (k + 1 < n)
                b = wide == VL ? load_b(type, odd) : load_b_n(type, odd, wide);
            _mm512_mask_storeu_epi32(dst + k * width + 2 * i, first_lanes(wide),
                                     _mm512_permutexvar_epi16(order, round32(a, b)));
        }
}

static void pairs_f16(const uint16_t *src, uint16_t *dst, size_t n, size_t width)
{
    pairs(B_F16, (const char *)src, dst, n, width);
}

static void pairs_i8(const int8_t *src, uint16_t *dst, size_t n, size_t width)
{
    pairs(B_I8, (const char *)src, dst, n, width);
}

/* Rows that many columns use are copied to 64 bytes more than a row apart, so that they do not
 * share cache sets. */
static void gemm_bf16(size_t rows, size_t cols, size_t n, const void *w, size_t row_bytes,
                      const uint16_t *x, float *y, size_t ldy, void *scratch)
{
    const char *from = w;
    if (cols >= GEMM_TILE_COLS) {
        from = scratch;
        for (size_t r = 0; r < rows; r++)
            memcpy((char *)scratch + r * (row_bytes + 64), (const char *)w + r * row_bytes,
                   row_bytes);
        row_bytes += 64;
    }
    gemm_any(W_PAIRS, rows, cols, n, from, row_bytes, (const char *)x, n * 2, y, ldy);
}

static void gemm_add_bf16(size_t rows, size_t n, size_t width, const uint16_t *a, size_t lda,
                          const uint16_t *b, size_t ldb, float *y, size_t ldy)
{
    add_any(B_PAIRS, rows, (n + 1) / 2, width, (const float *)(const void *)a, lda / 2,
            (const char *)b, ldb, y, ldy);
}

const Bf16Kernels kernels_bf16 = {
    .round = round_bf16,
    .gemm = gemm_bf16,
    .pairs_f16 = pairs_f16,
    .pairs_i8 = pairs_i8,
    .gemm_add = gemm_add_bf16,
};
