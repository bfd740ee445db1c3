/* kernels/vec_avx512.h - the vector vocabulary of AVX-512 for floats, and the tiles of its
 * products: see kernels/gemm.inc and kernels/gemm_add.inc. */
#include <immintrin.h>

#define VL 16
#define ROWS 4
#define COLS 6
#define STEP 2048
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
#define v_mul(a, b) _mm512_mul_ps(a, b)
#define v_add(a, b) _mm512_add_ps(a, b)
#define v_max(a, b) _mm512_max_ps(a, b)
#define v_maximum(v) _mm512_reduce_max_ps(v)
#define v_exp2_add(p, t)                                                                           \
    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p),                                   \
                                         _mm512_slli_epi32(_mm512_castps_si512(t), 23)))
#define v_unless_below(y, x, f)                                                                    \
    _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(f), _CMP_NLT_UQ), y)
#define v_sub(a, b) _mm512_sub_ps(a, b)
#define v_sum(v) _mm512_reduce_add_ps(v)
#define v_load_bf16(p)                                                                             \
    _mm512_castsi512_ps(                                                                           \
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const void *)(p))), 16))
#define v_load_i8(p) _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)(p))))
#define v_load_f16(p) _mm512_cvtph_ps(_mm256_loadu_si256((const void *)(p)))
#define v_load_f16_n(p, n) _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(v_mask(n), p))

/* Lanes 8, 4, 2 and 1 apart are added, as in v_sum(), of more and more vectors at once. */
INLINE V v_sums(const V x[16])
{
    V eights[8], fours[4], twos[2];
    UNROLL for (int i = 0; i < 8; i++) // row i of the low half, row i + 8 of the high one
        eights[i] = _mm512_add_ps(_mm512_shuffle_f32x4(x[i], x[i + 8], 0x44),
                                  _mm512_shuffle_f32x4(x[i], x[i + 8], 0xee));
    UNROLL for (int i = 0; i < 4; i++) // rows i, i + 8, i + 4, i + 12 by quarters
        fours[i] = _mm512_add_ps(_mm512_shuffle_f32x4(eights[i], eights[i + 4], 0x88),
                                 _mm512_shuffle_f32x4(eights[i], eights[i + 4], 0xdd));
    UNROLL for (int i = 0; i < 2; i++) // and i + 2 by eighths
        twos[i] = _mm512_add_ps(_mm512_shuffle_ps(fours[i], fours[i + 2], 0x44),
                                _mm512_shuffle_ps(fours[i], fours[i + 2], 0xee));
    V sums = _mm512_add_ps(_mm512_shuffle_ps(twos[0], twos[1], 0x88),
                           _mm512_shuffle_ps(twos[0], twos[1], 0xdd));
    return _mm512_permutexvar_ps(_mm512_setr_epi32(0, 2, 1, 3, 8, 10, 9, 11, 4, 6, 5, 7, 12, 14, 13,
                                                   15),
                                 sums);
}
