/* kernels_avx512.c - the kernel table for AVX-512 (F, BW, VL, DQ). Compiled with those flags; run only after a check. */
#include "kernels_body.h"

#include <immintrin.h>

#define VL 16
#define ROWS 4
#define COLS 6
#define ROWS_1 8
#define ADD_ROWS 6
#define ADD_VECS 4

typedef __m512 V;

#define v_zero() _mm512_setzero_ps()
#define v_set1(f) _mm512_set1_ps(f)
#define v_load(p) _mm512_loadu_ps(p)
#define v_store(p, v) _mm512_storeu_ps(p, v)
#define v_mask(n) ((__mmask16)((1u << (n)) - 1))
#define v_load_n(p, n) _mm512_maskz_loadu_ps(v_mask(n), p)
#define v_store_n(p, v, n) _mm512_mask_storeu_ps(p, v_mask(n), v)
#define v_fma(a, b, c) _mm512_fmadd_ps(a, b, c)
#define v_sum(v) _mm512_reduce_add_ps(v)
#define v_load_f16(p) _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(p)))
#define v_load_f16_n(p, n) _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(v_mask(n), p))

static inline void put16(float *dst, __m128i q, float d)
{
    v_store(dst, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)), v_set1(d)));
}

static inline void put16_min(float *dst, __m128i q, float d, float m)
{
    v_store(dst, _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)), v_set1(d)), v_set1(m)));
}

#include "kernels_simd.h"
#include "kernels_x86.h"

const Kernels kernels_avx512 = {
    .name = "avx512", PORTABLE_KERNELS, .dequantize = X86_DEQUANTIZE,
    .gemm = gemm, .gemm_add = gemm_add, .gemm_add_f16 = gemm_add_f16,
};
