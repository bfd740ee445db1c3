/* vec_avx2.h - vectors of AVX2 with FMA and F16C: the vocabulary of vec.h. */
#include <immintrin.h>

#include "kernels/vec.h"

enum {
    VL = 8,
    GEMM_TILE_ROWS = 3, // gemm.inc: rows and columns of a tile, rows where there is one column,
    GEMM_TILE_COLS = 4, // and values of a step
    GEMV_TILE_ROWS = 8,
    GEMM_STEP = 512,
    ADD_TILE_ROWS = 3, // gemm_add.inc
    ADD_TILE_VECS = 4,
    INT8_TILE_COLS = 3,  // int8.inc
    UNSIGNED_WEIGHTS = 0 // whether dot_add() wants weights of 8 bits unsigned, with 128 added
};

typedef __m256 V;
typedef uint32_t I __attribute__((vector_size(32)));
typedef int32_t Signed __attribute__((vector_size(32)));

/* ---- floats ---------------------------------------------------------------------------------- */

// clang-format off: a line each
INLINE V v_set1(float f) { return _mm256_set1_ps(f); }
INLINE V v_load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void v_store(float *p, V v) { _mm256_storeu_ps(p, v); }
INLINE V v_fma(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
INLINE V v_max(V a, V b) { return _mm256_max_ps(a, b); }
INLINE V v_load_f16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
INLINE V v_from_int(I x) { return _mm256_cvtepi32_ps((__m256i)x); }
// clang-format on

INLINE V v_zero_below(V v, V x, float f)
{
    return _mm256_and_ps(_mm256_cmp_ps(x, v_set1(f), _CMP_NLT_UQ), v);
}

INLINE V v_from_bytes(__m128i q) // the first VL, signed
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q));
}

INLINE V v_load_bf16(const void *p)
{
    return (V)((I)_mm256_cvtepu16_epi32(_mm_loadu_si128(p)) << 16);
}

INLINE __m256i first_lanes(size_t n)
{
    static const int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const void *)(ones + 8 - n));
}

INLINE V v_load_f16_n(const void *p, size_t n)
{
    uint16_t full[VL] = {0};
    memcpy(full, p, n * sizeof *full);
    return v_load_f16(full);
}

INLINE float v_sum(V v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

INLINE float v_largest(V v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

INLINE V v_sums(const V x[VL])
{
    V fours[4], twos[2];
    UNROLL for (int i = 0; i < 4; i++) // row i in the low half, row i + 4 in the high one
        fours[i] = _mm256_permute2f128_ps(x[i], x[i + 4], 0x20)
                 + _mm256_permute2f128_ps(x[i], x[i + 4], 0x31);
    UNROLL for (int i = 0; i < 2; i++) // rows i, i + 2, i + 4, i + 6 in quarters
        twos[i] = _mm256_shuffle_ps(fours[i], fours[i + 2], 0x44)
                + _mm256_shuffle_ps(fours[i], fours[i + 2], 0xee);
    V sums = _mm256_shuffle_ps(twos[0], twos[1], 0x88) + _mm256_shuffle_ps(twos[0], twos[1], 0xdd);
    return _mm256_permutevar8x32_ps(sums, _mm256_setr_epi32(0, 2, 1, 3, 4, 6, 5, 7));
}

// clang-format off: a line each
INLINE V v_load_i8(const void *p) { return v_from_bytes(_mm_loadl_epi64(p)); }
INLINE V v_load_n(const float *p, size_t n) { return _mm256_maskload_ps(p, first_lanes(n)); }
INLINE void v_store_n(float *p, V v, size_t n) { _mm256_maskstore_ps(p, first_lanes(n), v); }
// clang-format on

/* ---- integers -------------------------------------------------------------------------------- */

// clang-format off: a line each
INLINE I i_set1(uint32_t x) { return (I)_mm256_set1_epi32((int)x); }
INLINE I i_load(const void *p) { return (I)_mm256_loadu_si256(p); }
INLINE void i_store(void *p, I x) { _mm256_storeu_si256(p, (__m256i)x); }
// clang-format on

INLINE I i_opaque(I x)
{
    __asm__("" : "+x"(x));
    return x;
}

/* The product copies four bits to places 7 bits apart, of which every eighth stays. */
INLINE I i_spread(I x)
{
    I factor = i_opaque(i_set1(0x02040810)); // or it would multiply by shifts and additions
    return (x & 15) * factor & 0x10101010;
}

INLINE I i_lookup(const int8_t table[16], I index) // bytes
{
    __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)table));
    return (I)_mm256_shuffle_epi8(t, (__m256i)index);
}

INLINE V v_from_f16(I x) // the low half of each lane
{
    __m256i packed = _mm256_packus_epi32((__m256i)(x & 0xffff), (__m256i)x);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 8)));
}

/* ---- products of bytes ----------------------------------------------------------------------- */

/* Products of pairs are 16-bit sums: as many of them as fit are added up before they are widened.
 * 8-bit weights are multiplied as magnitudes, with their signs on the activations. */
typedef I Part, Four;

// clang-format off: a line each
INLINE int dot_steps(int bits) { return bits <= 4 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1; }
INLINE Four dot_four(const int8_t *x, int j) { return i_set1(load_u32(x + 4 * j)); }
INLINE Part dot_begin(I sum) { (void)sum; return (Part){0}; }
// clang-format on

INLINE Part dot_add(Part part, I w, Four x, int bits)
{
    if (bits < 8)
        return (I)_mm256_add_epi16((__m256i)part, _mm256_maddubs_epi16((__m256i)w, (__m256i)x));
    return (I)_mm256_maddubs_epi16(_mm256_abs_epi8((__m256i)w),
                                   _mm256_sign_epi8((__m256i)x, (__m256i)w));
}

INLINE I dot_end(I sum, Part part)
{
    return sum + (I)_mm256_madd_epi16((__m256i)part, _mm256_set1_epi16(1));
}

/* ---- rows ------------------------------------------------------------------------------------ */

#include "kernels/rows.inc"
#include "kernels/vec_x86.inc"

INLINE __m128i packed_u16(const Rows *r, size_t at)
{
    return _mm_set_epi64x((int64_t)four_u16(r, 1, at), (int64_t)four_u16(r, 0, at));
}

INLINE V rows_f16(const Rows *r, size_t at)
{
    return _mm256_cvtph_ps(packed_u16(r, at));
}

INLINE I rows_u16(const Rows *r, size_t at)
{
    return (I)_mm256_cvtepu16_epi32(packed_u16(r, at));
}

INLINE I rows_u32(const Rows *r, size_t at)
{
    return (I)_mm256_set_m128i(four_u32(r, 1, at), four_u32(r, 0, at));
}

/* Fours of rows, transposed within 128 bits. */
INLINE void transpose(const __m256i x[4], I out[4])
{
    __m256i ab = _mm256_unpacklo_epi32(x[0], x[1]), cd = _mm256_unpacklo_epi32(x[2], x[3]);
    __m256i ab2 = _mm256_unpackhi_epi32(x[0], x[1]), cd2 = _mm256_unpackhi_epi32(x[2], x[3]);
    out[0] = (I)_mm256_unpacklo_epi64(ab, cd);
    out[1] = (I)_mm256_unpackhi_epi64(ab, cd);
    out[2] = (I)_mm256_unpacklo_epi64(ab2, cd2);
    out[3] = (I)_mm256_unpackhi_epi64(ab2, cd2);
}

/* Rows i and 4 + i. */
INLINE __m256i two_rows(const Rows *r, int i, size_t at)
{
    return _mm256_set_m128i(load16(row_at(r, 1, i, at)), load16(row_at(r, 0, i, at)));
}

INLINE void rows_16(const Rows *r, size_t at, I out[4])
{
    __m256i x[4] = {two_rows(r, 0, at), two_rows(r, 1, at), two_rows(r, 2, at), two_rows(r, 3, at)};
    transpose(x, out);
}

INLINE void rows_32(const Rows *r, size_t at, I out[8])
{
    __m256i x[4] = {load32(row_at(r, 0, 0, at)), load32(row_at(r, 0, 1, at)),
                    load32(row_at(r, 0, 2, at)), load32(row_at(r, 0, 3, at))};
    __m256i y[4] = {load32(row_at(r, 1, 0, at)), load32(row_at(r, 1, 1, at)),
                    load32(row_at(r, 1, 2, at)), load32(row_at(r, 1, 3, at))};
    I low[4], high[4];
    transpose(x, low);
    transpose(y, high);
    UNROLL for (int j = 0; j < 4; j++) {
        out[j] = (I)_mm256_permute2x128_si256((__m256i)low[j], (__m256i)high[j], 0x20);
        out[j + 4] = (I)_mm256_permute2x128_si256((__m256i)low[j], (__m256i)high[j], 0x31);
    }
}

/* ---- dequantisation -------------------------------------------------------------------------- */

INLINE void put16(float *dst, Bytes q, float scale)
{
    v_store(dst, v_from_bytes((__m128i)q) * v_set1(scale));
    v_store(dst + 8, v_from_bytes(_mm_srli_si128((__m128i)q, 8)) * v_set1(scale));
}

INLINE void put16_min(float *dst, Bytes q, float scale, float min)
{
    v_store(dst, v_from_bytes((__m128i)q) * v_set1(scale) + v_set1(min));
    v_store(dst + 8, v_from_bytes(_mm_srli_si128((__m128i)q, 8)) * v_set1(scale) + v_set1(min));
}
