/* kernels_bf16.c - the product for bfloat16 weights on processors that multiply pairs of them (AVX-512 BF16): both factors
 * are bfloat16, sums are floats. Compiled with that flag; run only after a check. */
#include <string.h>

#include "kernels.h"
#include "kernels_v512.h"

#define v_fma_pairs(a, b, c) _mm512_dpbf16_ps(c, (__m512bh)(a), (__m512bh)(b))
#include "kernels_gemm.h"

/* Rows that many columns use are copied, so that they do not share cache sets. */
void avx512_gemm_bf16(size_t rows, size_t cols, size_t n, const void *w, size_t row_bytes, const uint16_t *x, float *y, size_t ldy,
                      void *scratch)
{
    const char *from = w;
    if (cols >= COLS) {
        from = scratch;
        for (size_t r = 0; r < rows; r++)
            memcpy((char *)scratch + r * (row_bytes + 64), (const char *)w + r * row_bytes, row_bytes);
        row_bytes += 64;
    }
    gemm_any(W_PAIRS, rows, cols, n, from, row_bytes, (const char *)x, n * 2, y, ldy);
}
