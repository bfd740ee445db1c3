/* kernels/avx512.c - the kernel table for AVX-512 (F, BW, VL, DQ, VNNI). Compiled with those flags;
 * run only after a check. */
#include "kernels/portable.inc"
#include "kernels/vec_avx512.h"

#define Q_COLS 5
#define WIDE 128

typedef __m512i VI;

INLINE void put16(float *dst, __m128i q, float d)
{
    v_store(dst, _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)), v_set1(d)));
}

INLINE void put16_min(float *dst, __m128i q, float d, float m)
{
    v_store(dst,
            _mm512_add_ps(_mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)), v_set1(d)),
                          v_set1(m)));
}

#define i_set1(x) _mm512_set1_epi32(x)
#define i_load(p) _mm512_loadu_si512(p)
#define i_store(p, v) _mm512_storeu_si512(p, v)
#define i_and(a, b) _mm512_and_si512(a, b)
#define i_or(a, b) _mm512_or_si512(a, b)
#define i_xor(a, b) _mm512_xor_si512(a, b)
#define i_add(a, b) _mm512_add_epi32(a, b)
#define i_sub(a, b) _mm512_sub_epi32(a, b)
#define i_shl(v, n) _mm512_slli_epi32(v, (unsigned)(n))
#define i_shr(v, n) _mm512_srli_epi32(v, (unsigned)(n))
#define i_sar(v, n) _mm512_srai_epi32(v, (unsigned)(n))
#define i_float(v) _mm512_cvtepi32_ps(v)
#define i_halves(v) _mm512_cvtph_ps(_mm512_cvtepi32_epi16(v))
#define i_lookup(table, v)                                                                         \
    _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128((const void *)(table))), v)

INLINE VI i_mul(VI a, VI b)
{
    __asm__("" : "+v"(b)); // or a constant is multiplied with shifts
    return _mm512_mullo_epi32(a, b);
}

/* vpdpbusd adds to 32-bit sums, so the parts are the sums. */
#define DOT_STEPS(bits) 8
typedef VI Fours, Part;
#define fours(p, j) i_set1(load_i32((p) + 4 * (j)))
#define dot_start(sum) (sum)
#define dot(part, w, x, bits) ((void)(bits), _mm512_dpbusd_epi32(part, w, x))
#define flush(sum, part) (part)

#include "kernels/rows.inc"
#include "kernels/dequantize_x86.inc"

INLINE V v_words(const Rows *r, size_t at)
{
    return _mm512_cvtph_ps(_mm256_set_epi64x(four_words(r, 3, at), four_words(r, 2, at),
                                             four_words(r, 1, at), four_words(r, 0, at)));
}

INLINE VI i_dwords(const Rows *r, size_t at)
{
    __m256i low = _mm256_inserti128_si256(_mm256_castsi128_si256(four_dwords(r, 0, at)),
                                          four_dwords(r, 1, at), 1);
    __m256i high = _mm256_inserti128_si256(_mm256_castsi128_si256(four_dwords(r, 2, at)),
                                           four_dwords(r, 3, at), 1);
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* Rows i, 4 + i, 8 + i and 12 + i. */
INLINE VI every_fourth(const Rows *r, int i, size_t at)
{
    VI v = _mm512_castsi128_si512(LOAD16(row_of(r, r->p[0], i) + at));
    v = _mm512_inserti32x4(v, LOAD16(row_of(r, r->p[1], i) + at), 1);
    v = _mm512_inserti32x4(v, LOAD16(row_of(r, r->p[2], i) + at), 2);
    return _mm512_inserti32x4(v, LOAD16(row_of(r, r->p[3], i) + at), 3);
}

/* Fours of rows are transposed within 128 bits. */
INLINE void transpose4(VI a, VI b, VI c, VI d, VI t[4])
{
    VI ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
    VI ab2 = _mm512_unpackhi_epi32(a, b), cd2 = _mm512_unpackhi_epi32(c, d);
    t[0] = _mm512_unpacklo_epi64(ab, cd);
    t[1] = _mm512_unpackhi_epi64(ab, cd);
    t[2] = _mm512_unpacklo_epi64(ab2, cd2);
    t[3] = _mm512_unpackhi_epi64(ab2, cd2);
}

INLINE void i_columns(const Rows *r, size_t at, VI t[4])
{
    transpose4(every_fourth(r, 0, at), every_fourth(r, 1, at), every_fourth(r, 2, at),
               every_fourth(r, 3, at), t);
}

/* 32 bytes of row i of one four and of the next. */
INLINE VI two_rows(const Rows *r, int four, int i, size_t at)
{
    __m256i low = _mm256_loadu_si256((const void *)(row_of(r, r->p[four], i) + at));
    return _mm512_inserti64x4(_mm512_castsi256_si512(low),
                              _mm256_loadu_si256((const void *)(row_of(r, r->p[four + 1], i) + at)),
                              1);
}

INLINE void i_columns2(const Rows *r, size_t at, VI t[8])
{
    VI low[4], high[4];
    transpose4(two_rows(r, 0, 0, at), two_rows(r, 0, 1, at), two_rows(r, 0, 2, at),
               two_rows(r, 0, 3, at), low);
    transpose4(two_rows(r, 2, 0, at), two_rows(r, 2, 1, at), two_rows(r, 2, 2, at),
               two_rows(r, 2, 3, at), high);
    UNROLL for (int j = 0; j < 4; j++) {
        t[j] = _mm512_shuffle_i32x4(low[j], high[j], 0x88);
        t[j + 4] = _mm512_shuffle_i32x4(low[j], high[j], 0xdd);
    }
}

#include "kernels/products.inc"
#include "kernels/int8.inc"

const Kernels kernels_avx512 = {
    .name = "avx512",
    PORTABLE_KERNELS,
    .dequantize = X86_DEQUANTIZE,
    .quantize = x86_quantize,
    .gemm_q8 = GEMM_Q8_TABLE,
    .soft = soft,
    .gemv = GEMV_TABLE,
    .gemm = gemm,
    .gemm_add = gemm_add,
    .gemm_add_f16 = gemm_add_f16,
    .gemm_add_i8 = gemm_add_i8,
};
