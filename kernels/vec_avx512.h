/* vec_avx512.h - vectors of AVX-512 (F, BW, VL, DQ, VNNI and, where it is compiled for it, BF16):
 * the vocabulary of vec.h. */
#include <immintrin.h>

#include "kernels/vec.h"

enum {
    VL = 16,
    GEMM_TILE_ROWS = 4, // gemm.inc: rows and columns of a tile, rows where there is one column,
    GEMM_TILE_COLS = 6, // and values of a step
    GEMV_TILE_ROWS = 8,
    GEMM_STEP = 2048,
    ADD_TILE_ROWS = 6, // gemm_add.inc
    ADD_TILE_VECS = 4,
    INT8_TILE_COLS = 5,  // int8.inc
    UNSIGNED_WEIGHTS = 1 // whether dot_add() wants weights of 8 bits unsigned, with 128 added
};

typedef __m512 V;
typedef uint32_t I __attribute__((vector_size(64)));
typedef int32_t Signed __attribute__((vector_size(64)));

/* ---- floats ---------------------------------------------------------------------------------- */

// clang-format off: a line each
INLINE __mmask16 first_lanes(size_t n) { return (__mmask16)((1u << n) - 1); }
INLINE V v_set1(float f) { return _mm512_set1_ps(f); }
INLINE V v_load(const float *p) { return _mm512_loadu_ps(p); }
INLINE V v_load_n(const float *p, size_t n) { return _mm512_maskz_loadu_ps(first_lanes(n), p); }
INLINE void v_store(float *p, V v) { _mm512_storeu_ps(p, v); }
INLINE void v_store_n(float *p, V v, size_t n) { _mm512_mask_storeu_ps(p, first_lanes(n), v); }
INLINE V v_fma(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
INLINE V v_max(V a, V b) { return _mm512_max_ps(a, b); }
INLINE float v_sum(V v) { return _mm512_reduce_add_ps(v); }
INLINE float v_largest(V v) { return _mm512_reduce_max_ps(v); }
INLINE V v_load_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }
INLINE V v_from_int(I x) { return _mm512_cvtepi32_ps((__m512i)x); }
INLINE V v_from_bytes(__m128i q) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)); } // signed
INLINE V v_load_i8(const void *p) { return v_from_bytes(_mm_loadu_si128(p)); }
// clang-format on

INLINE V v_load_f16_n(const void *p, size_t n)
{
    return _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(first_lanes(n), p));
}

INLINE V v_load_bf16(const void *p)
{
    return (V)((I)_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)) << 16);
}

INLINE V v_zero_below(V v, V x, float f)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, v_set1(f), _CMP_NLT_UQ), v);
}

INLINE V v_from_f16(I x) // the low half of each lane
{
    return _mm512_cvtph_ps(_mm512_cvtepi32_epi16((__m512i)x));
}

#ifdef __AVX512BF16__
#define HAVE_PAIRS // c + products of pairs of bfloat16s, for gemm.inc
// clang-format off: a line each
INLINE V v_fma_pairs(V a, V b, V c) { return _mm512_dpbf16_ps(c, (__m512bh)a, (__m512bh)b); }
// clang-format on
#endif

INLINE V v_sums(const V x[VL])
{
    V eights[8], fours[4], twos[2];
    UNROLL for (int i = 0; i < 8; i++) // row i in the low half, row i + 8 in the high one
        eights[i] = _mm512_shuffle_f32x4(x[i], x[i + 8], 0x44)
                  + _mm512_shuffle_f32x4(x[i], x[i + 8], 0xee);
    UNROLL for (int i = 0; i < 4; i++) // rows i, i + 8, i + 4, i + 12 in quarters
        fours[i] = _mm512_shuffle_f32x4(eights[i], eights[i + 4], 0x88)
                 + _mm512_shuffle_f32x4(eights[i], eights[i + 4], 0xdd);
    UNROLL for (int i = 0; i < 2; i++) // and i + 2 in eighths
        twos[i] = _mm512_shuffle_ps(fours[i], fours[i + 2], 0x44)
                + _mm512_shuffle_ps(fours[i], fours[i + 2], 0xee);
    V sums = _mm512_shuffle_ps(twos[0], twos[1], 0x88) + _mm512_shuffle_ps(twos[0], twos[1], 0xdd);
    __m512i order = _mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13, 15);
    return _mm512_permutexvar_ps(order, sums);
}

/* ---- integers -------------------------------------------------------------------------------- */

// clang-format off: a line each
INLINE I i_set1(uint32_t x) { return (I)_mm512_set1_epi32((int)x); }
INLINE I i_load(const void *p) { return (I)_mm512_loadu_si512(p); }
INLINE void i_store(void *p, I x) { _mm512_storeu_si512(p, (__m512i)x); }
// clang-format on

INLINE I i_opaque(I x)
{
    __asm__("" : "+v"(x));
    return x;
}

/* A table of all sixteen: the permutation reads four bits of each lane. */
INLINE I i_spread(I x)
{
#define SPREAD(i) ((i & 1u) << 4 | (i & 2u) << 11 | (i & 4u) << 18 | (i & 8u) << 25)
    const I table = {SPREAD(0),  SPREAD(1),  SPREAD(2),  SPREAD(3), SPREAD(4),  SPREAD(5),
                     SPREAD(6),  SPREAD(7),  SPREAD(8),  SPREAD(9), SPREAD(10), SPREAD(11),
                     SPREAD(12), SPREAD(13), SPREAD(14), SPREAD(15)};
#undef SPREAD
    return (I)_mm512_permutexvar_epi32((__m512i)x, (__m512i)table);
}

INLINE I i_lookup(const int8_t table[16], I index) // bytes
{
    __m512i t = _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)table));
    return (I)_mm512_shuffle_epi8(t, (__m512i)index);
}

/* ---- products of bytes ----------------------------------------------------------------------- */

/* vpdpbusd adds to 32-bit sums, so the parts are the sums. */
typedef I Part, Four;

// clang-format off: a line each
INLINE int dot_steps(int bits) { (void)bits; return 8; }
INLINE Four dot_four(const int8_t *x, int j) { return i_set1(load_u32(x + 4 * j)); }
INLINE Part dot_begin(I sum) { return sum; }
INLINE I dot_end(I sum, Part part) { (void)sum; return part; }
// clang-format on

INLINE Part dot_add(Part part, I w, Four x, int bits)
{
    (void)bits;
    return (I)_mm512_dpbusd_epi32((__m512i)part, (__m512i)w, (__m512i)x);
}

/* ---- rows ------------------------------------------------------------------------------------ */

#include "kernels/rows.inc"
#include "kernels/vec_x86.inc"

INLINE __m256i packed_u16(const Rows *r, size_t at)
{
    return _mm256_set_epi64x((int64_t)four_u16(r, 3, at), (int64_t)four_u16(r, 2, at),
                             (int64_t)four_u16(r, 1, at), (int64_t)four_u16(r, 0, at));
}

INLINE V rows_f16(const Rows *r, size_t at)
{
    return _mm512_cvtph_ps(packed_u16(r, at));
}

INLINE I rows_u16(const Rows *r, size_t at)
{
    return (I)_mm512_cvtepu16_epi32(packed_u16(r, at));
}

INLINE __m512i two_halves(__m256i low, __m256i high)
{
    return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

INLINE I rows_u32(const Rows *r, size_t at)
{
    return (I)two_halves(_mm256_set_m128i(four_u32(r, 1, at), four_u32(r, 0, at)),
                         _mm256_set_m128i(four_u32(r, 3, at), four_u32(r, 2, at)));
}

/* Fours of rows, transposed within 128 bits. */
INLINE void transpose(const __m512i x[4], I out[4])
{
    __m512i ab = _mm512_unpacklo_epi32(x[0], x[1]), cd = _mm512_unpacklo_epi32(x[2], x[3]);
    __m512i ab2 = _mm512_unpackhi_epi32(x[0], x[1]), cd2 = _mm512_unpackhi_epi32(x[2], x[3]);
    out[0] = (I)_mm512_unpacklo_epi64(ab, cd);
    out[1] = (I)_mm512_unpackhi_epi64(ab, cd);
    out[2] = (I)_mm512_unpacklo_epi64(ab2, cd2);
    out[3] = (I)_mm512_unpackhi_epi64(ab2, cd2);
}

/* Rows i, 4 + i, 8 + i and 12 + i. */
INLINE __m512i fours_of_rows(const Rows *r, int i, size_t at)
{
    __m512i v = _mm512_castsi128_si512(load16(row_at(r, 0, i, at)));
    v = _mm512_inserti32x4(v, load16(row_at(r, 1, i, at)), 1);
    v = _mm512_inserti32x4(v, load16(row_at(r, 2, i, at)), 2);
    return _mm512_inserti32x4(v, load16(row_at(r, 3, i, at)), 3);
}

INLINE void rows_16(const Rows *r, size_t at, I out[4])
{
    __m512i x[4] = {fours_of_rows(r, 0, at), fours_of_rows(r, 1, at), fours_of_rows(r, 2, at),
                    fours_of_rows(r, 3, at)};
    transpose(x, out);
}

/* Row i of one four and of the next. */
INLINE __m512i two_rows(const Rows *r, int four, int i, size_t at)
{
    return two_halves(load32(row_at(r, four, i, at)), load32(row_at(r, four + 1, i, at)));
}

INLINE void rows_32(const Rows *r, size_t at, I out[8])
{
    __m512i x[4] = {two_rows(r, 0, 0, at), two_rows(r, 0, 1, at), two_rows(r, 0, 2, at),
                    two_rows(r, 0, 3, at)};
    __m512i y[4] = {two_rows(r, 2, 0, at), two_rows(r, 2, 1, at), two_rows(r, 2, 2, at),
                    two_rows(r, 2, 3, at)};
    I low[4], high[4];
    transpose(x, low);
    transpose(y, high);
    UNROLL for (int j = 0; j < 4; j++) {
        out[j] = (I)_mm512_shuffle_i32x4((__m512i)low[j], (__m512i)high[j], 0x88);
        out[j + 4] = (I)_mm512_shuffle_i32x4((__m512i)low[j], (__m512i)high[j], 0xdd);
    }
}

/* ---- dequantisation -------------------------------------------------------------------------- */

INLINE void put16(float *dst, Bytes q, float scale)
{
    v_store(dst, v_from_bytes((__m128i)q) * v_set1(scale));
}

INLINE void put16_min(float *dst, Bytes q, float scale, float min)
{
    v_store(dst, v_from_bytes((__m128i)q) * v_set1(scale) + v_set1(min));
}
