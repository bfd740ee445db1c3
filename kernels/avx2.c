/* kernels/avx2.c - the kernel table for AVX2 with FMA and F16C. Compiled with those flags; run only
 * after a check. */
#include "kernels/portable.inc"

#include <immintrin.h>

#define VL 8
#define ROWS 3
#define COLS 4
#define STEP 512
#define ROWS_1 8
#define ADD_ROWS 3
#define ADD_VECS 4

#define Q_COLS 3
#define WIDE 0

typedef __m256 V;
typedef __m256i VI;

#define v_zero() _mm256_setzero_ps()
#define v_set1(f) _mm256_set1_ps(f)
#define v_load(p) _mm256_loadu_ps(p)
#define v_store(p, v) _mm256_storeu_ps(p, v)
#define v_fma(a, b, c) _mm256_fmadd_ps(a, b, c)
#define v_mul(a, b) _mm256_mul_ps(a, b)
#define v_add(a, b) _mm256_add_ps(a, b)
#define v_max(a, b) _mm256_max_ps(a, b)
#define v_exp2_add(p, t)                                                                           \
    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p),                                   \
                                         _mm256_slli_epi32(_mm256_castps_si256(t), 23)))
#define v_unless_below(y, x, f) _mm256_and_ps(_mm256_cmp_ps(x, _mm256_set1_ps(f), _CMP_NLT_UQ), y)
#define v_sub(a, b) _mm256_sub_ps(a, b)
#define v_load_bf16(p)                                                                             \
    _mm256_castsi256_ps(                                                                           \
        _mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)(p))), 16))
#define v_load_i8(p) _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(p))))
#define v_load_f16(p) _mm256_cvtph_ps(_mm_loadu_si128((const void *)(p)))
#define v_load_n(p, n) _mm256_maskload_ps(p, v_mask(n))
#define v_store_n(p, v, n) _mm256_maskstore_ps(p, v_mask(n), v)

INLINE __m256i v_mask(size_t n)
{
    static const int32_t ones[16] = {-1, -1, -1, -1, -1, -1, -1, -1};
    return _mm256_loadu_si256((const void *)(ones + 8 - n));
}

INLINE V v_load_f16_n(const uint16_t *p, size_t n)
{
    uint16_t full[8] = {0};
    memcpy(full, p, n * 2);
    return v_load_f16(full);
}

INLINE float v_sum(V v)
{
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

INLINE float v_maximum(V v)
{
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

INLINE V widen8(__m128i q) // the low 8 bytes as floats
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(q));
}

INLINE void put16(float *dst, __m128i q, float d)
{
    v_store(dst, _mm256_mul_ps(widen8(q), v_set1(d)));
    v_store(dst + 8, _mm256_mul_ps(widen8(_mm_srli_si128(q, 8)), v_set1(d)));
}

INLINE void put16_min(float *dst, __m128i q, float d, float m)
{
    v_store(dst, _mm256_add_ps(_mm256_mul_ps(widen8(q), v_set1(d)), v_set1(m)));
    v_store(dst + 8,
            _mm256_add_ps(_mm256_mul_ps(widen8(_mm_srli_si128(q, 8)), v_set1(d)), v_set1(m)));
}

#define i_set1(x) _mm256_set1_epi32(x)
#define i_load(p) _mm256_loadu_si256((const void *)(p))
#define i_store(p, v) _mm256_storeu_si256((void *)(p), v)
#define i_and(a, b) _mm256_and_si256(a, b)
#define i_or(a, b) _mm256_or_si256(a, b)
#define i_xor(a, b) _mm256_xor_si256(a, b)
#define i_add(a, b) _mm256_add_epi32(a, b)
#define i_sub(a, b) _mm256_sub_epi32(a, b)
#define i_shl(v, n) _mm256_slli_epi32(v, n)
#define i_shr(v, n) _mm256_srli_epi32(v, n)
#define i_sar(v, n) _mm256_srai_epi32(v, n)
#define i_float(v) _mm256_cvtepi32_ps(v)
#define i_lookup(table, v)                                                                         \
    _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)(table))), v)

INLINE VI i_mul(VI a, VI b)
{
    __asm__("" : "+x"(b)); // or a constant is multiplied with shifts
    return _mm256_mullo_epi32(a, b);
}

/* Products of pairs are 16-bit sums: as many of them as fit are added up before they are widened.
 * 8-bit weights are multiplied as magnitudes, with their signs on the activations. */
#define DOT_STEPS(bits) ((bits) <= 4 ? 8 : (bits) == 5 ? 4 : (bits) == 6 ? 2 : 1)
typedef VI Fours, Part;
#define fours(p, j) i_set1(load_i32((p) + 4 * (j)))
#define dot_start(sum) _mm256_setzero_si256()
#define flush(sum, part) _mm256_add_epi32(sum, _mm256_madd_epi16(part, _mm256_set1_epi16(1)))

INLINE VI dot(VI part, VI w, VI x, int bits)
{
    if (bits < 8)
        return _mm256_add_epi16(part, _mm256_maddubs_epi16(w, x));
    return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
}

INLINE V i_halves(VI v)
{
    VI packed = _mm256_packus_epi32(_mm256_and_si256(v, _mm256_set1_epi32(0xffff)), v);
    return _mm256_cvtph_ps(_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 8)));
}

/* Lanes 4, 2 and 1 apart are added, as in v_sum(), of more and more vectors at once. */
INLINE V v_sums(const V x[8])
{
    V fours[4], twos[2];
    UNROLL for (int i = 0; i < 4; i++) // row i of the low half, row i + 4 of the high one
        fours[i] = _mm256_add_ps(_mm256_permute2f128_ps(x[i], x[i + 4], 0x20),
                                 _mm256_permute2f128_ps(x[i], x[i + 4], 0x31));
    UNROLL for (int i = 0; i < 2; i++) // and i + 2 by quarters
        twos[i] = _mm256_add_ps(_mm256_shuffle_ps(fours[i], fours[i + 2], 0x44),
                                _mm256_shuffle_ps(fours[i], fours[i + 2], 0xee));
    V sums = _mm256_add_ps(_mm256_shuffle_ps(twos[0], twos[1], 0x88),
                           _mm256_shuffle_ps(twos[0], twos[1], 0xdd));
    return _mm256_permutevar8x32_ps(sums, _mm256_setr_epi32(0, 2, 1, 3, 4, 6, 5, 7));
}

#include "kernels/rows.inc"
#include "kernels/dequantize_x86.inc"

INLINE V v_words(const Rows *r, size_t at)
{
    return _mm256_cvtph_ps(_mm_set_epi64x(four_words(r, 1, at), four_words(r, 0, at)));
}

INLINE VI i_dwords(const Rows *r, size_t at)
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(four_dwords(r, 0, at)),
                                   four_dwords(r, 1, at), 1);
}

/* Rows i and 4 + i. */
INLINE VI every_fourth(const Rows *r, int i, size_t at)
{
    return _mm256_inserti128_si256(_mm256_castsi128_si256(LOAD16(row_of(r, r->p[0], i) + at)),
                                   LOAD16(row_of(r, r->p[1], i) + at), 1);
}

/* Fours of rows are transposed within 128 bits. */
INLINE void transpose4(VI a, VI b, VI c, VI d, VI t[4])
{
    VI ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
    VI ab2 = _mm256_unpackhi_epi32(a, b), cd2 = _mm256_unpackhi_epi32(c, d);
    t[0] = _mm256_unpacklo_epi64(ab, cd);
    t[1] = _mm256_unpackhi_epi64(ab, cd);
    t[2] = _mm256_unpacklo_epi64(ab2, cd2);
    t[3] = _mm256_unpackhi_epi64(ab2, cd2);
}

INLINE void i_columns(const Rows *r, size_t at, VI t[4])
{
    transpose4(every_fourth(r, 0, at), every_fourth(r, 1, at), every_fourth(r, 2, at),
               every_fourth(r, 3, at), t);
}

#define ROW32(p, i) _mm256_loadu_si256((const void *)(row_of(r, p, i) + at))

INLINE void i_columns2(const Rows *r, size_t at, VI t[8])
{
    VI low[4], high[4];
    transpose4(ROW32(r->p[0], 0), ROW32(r->p[0], 1), ROW32(r->p[0], 2), ROW32(r->p[0], 3), low);
    transpose4(ROW32(r->p[1], 0), ROW32(r->p[1], 1), ROW32(r->p[1], 2), ROW32(r->p[1], 3), high);
    UNROLL for (int j = 0; j < 4; j++) {
        t[j] = _mm256_permute2x128_si256(low[j], high[j], 0x20);
        t[j + 4] = _mm256_permute2x128_si256(low[j], high[j], 0x31);
    }
}

#include "kernels/products.inc"
#include "kernels/int8.inc"

const Kernels kernels_avx2 = {
    .name = "avx2",
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
