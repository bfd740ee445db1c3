/* kernels_avx2.c - the kernel table for AVX2 with FMA and F16C. Compiled with those flags; run only after a check. */
#include "kernels_body.h"

#include <immintrin.h>

#define VL 8
#define ROWS 3
#define COLS 4
#define ROWS_1 8
#define ADD_ROWS 3
#define ADD_VECS 4

typedef __m256 V;

#define v_zero() _mm256_setzero_ps()
#define v_set1(f) _mm256_set1_ps(f)
#define v_load(p) _mm256_loadu_ps(p)
#define v_store(p, v) _mm256_storeu_ps(p, v)
#define v_fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define v_load_f16(p) _mm256_cvtph_ps(_mm_loadu_si128((const void *)(p)))
#define v_load_n(p, n) _mm256_maskload_ps(p, v_mask(n))
#define v_store_n(p, v, n) _mm256_maskstore_ps(p, v_mask(n), v)

static inline __m256i v_mask(size_t n)
{
    static const int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const void *)(ones + 8 - n));
}

static inline V v_load_f16_n(const uint16_t *p, size_t n)
{
    uint16_t full[8] = {0};
    memcpy(full, p, n * 2);
    return v_load_f16(full);
}

static inline float v_sum(V v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

static inline V widen8(__m128i q) // the low 8 bytes as floats
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q));
}

static inline void put16(float *dst, __m128i q, float d)
{
    v_store(dst, _mm256_mul_ps(widen8(q), v_set1(d)));
    v_store(dst + 8, _mm256_mul_ps(widen8(_mm_srli_si128(q, 8)), v_set1(d)));
}

static inline void put16_min(float *dst, __m128i q, float d, float m)
{
    v_store(dst, _mm256_add_ps(_mm256_mul_ps(widen8(q), v_set1(d)), v_set1(m)));
    v_store(dst + 8, _mm256_add_ps(_mm256_mul_ps(widen8(_mm_srli_si128(q, 8)), v_set1(d)), v_set1(m)));
}

#include "kernels_simd.h"
#include "kernels_x86.h"

const Kernels kernels_avx2 = {
    .name = "avx2", PORTABLE_KERNELS, .dequantize = X86_DEQUANTIZE,
    .gemm = gemm, .gemm_add = gemm_add, .gemm_add_f16 = gemm_add_f16,
};
