/* kernels_x86.h - dequantisation for AVX2 and AVX-512: sixteen values at a time, the bits of quants.h.
 *
 * Bytes are unpacked with 128-bit operations, then put16() or put16_min() widens them, converts and scales. The
 * includer defines put16(dst, q, d): dst = q d, and put16_min(dst, q, d, m): dst = q d + m, for 16 signed bytes q, with
 * a multiplication and an addition as in quants.h, not an fma. Formats that are not here keep the portable form.
 */
#include <immintrin.h>

#define LOAD16(p) _mm_loadu_si128((const void *)(p))

/* Four bytes of four rows. 16 are loaded: from there, or, at the end of a block, up to there. */
INLINE __m128i four_dwords(const Rows *r, int four, size_t at)
{
    size_t from = at < 12 ? at : at - 12;
    __m128i x[4];
    UNROLL for (int i = 0; i < 4; i++)
        x[i] = LOAD16(row_of(r, r->p[four], i) + from);
    if (at < 12)
        return _mm_unpacklo_epi64(_mm_unpacklo_epi32(x[0], x[1]), _mm_unpacklo_epi32(x[2], x[3]));
    return _mm_unpackhi_epi64(_mm_unpackhi_epi32(x[0], x[1]), _mm_unpackhi_epi32(x[2], x[3]));
}

static inline float half_at(const uint8_t *p)
{
    return _cvtsh_ss(load_u16(p));
}

static inline __m128i low_nibbles(__m128i x)
{
    return _mm_and_si128(x, _mm_set1_epi8(15));
}

static inline __m128i high_nibbles(__m128i x)
{
    return _mm_and_si128(_mm_srli_epi16(x, 4), _mm_set1_epi8(15));
}

/* (x >> n) & mask for bytes, mask small enough that no bit of the neighbour byte stays. */
static inline __m128i shift_bytes(__m128i x, int n, int mask)
{
    return _mm_and_si128(_mm_srl_epi16(x, _mm_cvtsi32_si128(n)), _mm_set1_epi8((char)mask));
}

/* Bit i of h -> byte i: 16 where it is set, 0 where not. */
static inline __m128i fifth_bits(uint32_t h)
{
    __m128i spread = _mm_shuffle_epi8(_mm_cvtsi32_si128((int)h), _mm_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1));
    __m128i bit = _mm_set1_epi64x((long long)0x8040201008040201u);
    return _mm_and_si128(_mm_cmpeq_epi8(_mm_and_si128(spread, bit), bit), _mm_set1_epi8(16));
}

static void x86_q8_0(const void *src, float *dst, size_t n)
{
    const uint8_t *p = src;
    for (size_t b = 0; b < n; b += 32, p += 34, dst += 32) {
        float d = half_at(p);
        put16(dst, LOAD16(p + 2), d);
        put16(dst + 16, LOAD16(p + 18), d);
    }
}

static void x86_q4_0(const void *src, float *dst, size_t n)
{
    const uint8_t *p = src;
    for (size_t b = 0; b < n; b += 32, p += 18, dst += 32) {
        float d = half_at(p);
        __m128i q = LOAD16(p + 2), eight = _mm_set1_epi8(8);
        put16(dst, _mm_sub_epi8(low_nibbles(q), eight), d);
        put16(dst + 16, _mm_sub_epi8(high_nibbles(q), eight), d);
    }
}

static void x86_q4_1(const void *src, float *dst, size_t n)
{
    const uint8_t *p = src;
    for (size_t b = 0; b < n; b += 32, p += 20, dst += 32) {
        float d = half_at(p), m = half_at(p + 2);
        __m128i q = LOAD16(p + 4);
        put16_min(dst, low_nibbles(q), d, m);
        put16_min(dst + 16, high_nibbles(q), d, m);
    }
}

static void x86_q5_0(const void *src, float *dst, size_t n)
{
    const uint8_t *p = src;
    for (size_t b = 0; b < n; b += 32, p += 22, dst += 32) {
        float d = half_at(p);
        uint32_t h = load_u32(p + 2);
        __m128i q = LOAD16(p + 6), sixteen = _mm_set1_epi8(16);
        put16(dst, _mm_sub_epi8(_mm_or_si128(low_nibbles(q), fifth_bits(h)), sixteen), d);
        put16(dst + 16, _mm_sub_epi8(_mm_or_si128(high_nibbles(q), fifth_bits(h >> 16)), sixteen), d);
    }
}

static void x86_q5_1(const void *src, float *dst, size_t n)
{
    const uint8_t *p = src;
    for (size_t b = 0; b < n; b += 32, p += 24, dst += 32) {
        float d = half_at(p), m = half_at(p + 2);
        uint32_t h = load_u32(p + 4);
        __m128i q = LOAD16(p + 8);
        put16_min(dst, _mm_or_si128(low_nibbles(q), fifth_bits(h)), d, m);
        put16_min(dst + 16, _mm_or_si128(high_nibbles(q), fifth_bits(h >> 16)), d, m);
    }
}

static void x86_iq4_nl(const void *src, float *dst, size_t n)
{
    const uint8_t *p = src;
    __m128i values = LOAD16(iq4_values);
    for (size_t b = 0; b < n; b += 32, p += 18, dst += 32) {
        float d = half_at(p);
        __m128i q = LOAD16(p + 2);
        put16(dst, _mm_shuffle_epi8(values, low_nibbles(q)), d);
        put16(dst + 16, _mm_shuffle_epi8(values, high_nibbles(q)), d);
    }
}

static void x86_q4_k(const void *src, float *dst, size_t n)
{
    const uint8_t *p = src;
    for (size_t b = 0; b < n; b += 256, p += 144) {
        float d = half_at(p), dmin = half_at(p + 2);
        for (int g = 0; g < 8; g++, dst += 32) {
            const uint8_t *q = p + 16 + 32 * (g / 2);
            int sc, m;
            unpack_k4(p + 4, g, &sc, &m);
            float dl = d * (float)sc, ml = -(dmin * (float)m); // a - b and a + -b are the same number
            put16_min(dst, shift_bytes(LOAD16(q), 4 * (g % 2), 15), dl, ml);
            put16_min(dst + 16, shift_bytes(LOAD16(q + 16), 4 * (g % 2), 15), dl, ml);
        }
    }
}

static void x86_q5_k(const void *src, float *dst, size_t n)
{
    const uint8_t *p = src;
    for (size_t b = 0; b < n; b += 256, p += 176) {
        float d = half_at(p), dmin = half_at(p + 2);
        for (int g = 0; g < 8; g++, dst += 32) {
            const uint8_t *q = p + 48 + 32 * (g / 2), *high = p + 16;
            int sc, m;
            unpack_k4(p + 4, g, &sc, &m);
            float dl = d * (float)sc, ml = -(dmin * (float)m);
            for (int i = 0; i < 32; i += 16) {
                __m128i fifth = _mm_slli_epi16(shift_bytes(LOAD16(high + i), g, 1), 4);
                put16_min(dst + i, _mm_or_si128(shift_bytes(LOAD16(q + i), 4 * (g % 2), 15), fifth), dl, ml);
            }
        }
    }
}

static void x86_q6_k(const void *src, float *dst, size_t n)
{
    const uint8_t *p = src;
    for (size_t b = 0; b < n; b += 256, p += 210) {
        float d = half_at(p + 208);
        for (int g = 0; g < 16; g++, dst += 16) {
            int part = g % 8 / 2;
            __m128i low = LOAD16(p + 64 * (g / 8) + 32 * (part % 2) + 16 * (g % 2));
            __m128i high = LOAD16(p + 128 + 32 * (g / 8) + 16 * (g % 2));
            __m128i q = _mm_or_si128(shift_bytes(low, 4 * (part / 2), 15), _mm_slli_epi16(shift_bytes(high, 2 * part, 3), 4));
            put16(dst, _mm_sub_epi8(q, _mm_set1_epi8(32)), d * (float)(int8_t)p[192 + g]);
        }
    }
}

static void x86_iq4_xs(const void *src, float *dst, size_t n)
{
    const uint8_t *p = src;
    __m128i values = LOAD16(iq4_values);
    for (size_t b = 0; b < n; b += 256, p += 136) {
        float d = half_at(p);
        uint16_t scales_h = load_u16(p + 2);
        for (int g = 0; g < 8; g++, dst += 32) {
            __m128i q = LOAD16(p + 8 + 16 * g);
            int sc = (p[4 + g / 2] >> 4 * (g % 2) & 15) | (scales_h >> 2 * g & 3) << 4;
            float dl = d * (float)(sc - 32);
            put16(dst, _mm_shuffle_epi8(values, low_nibbles(q)), dl);
            put16(dst + 16, _mm_shuffle_epi8(values, high_nibbles(q)), dl);
        }
    }
}

/* quantize() of kernels_body.h, to the bit: conversion to integers rounds as adding 1.5 * 2^23 does. */
static void x86_quantize(const float *x, Block8 *q, size_t n)
{
    __m256i magnitude = _mm256_set1_epi32(0x7fffffff), order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    for (; n; n -= 32, x += 32, q++) {
        __m256 v[4];
        __m256i largest = _mm256_setzero_si256(), whole[4];
        UNROLL for (int i = 0; i < 4; i++) {
            v[i] = _mm256_loadu_ps(x + 8 * i);
            largest = _mm256_max_epu32(largest, _mm256_and_si256(_mm256_castps_si256(v[i]), magnitude));
        }
        __m128i m = _mm_max_epu32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256(largest, 1));
        m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0x4e));
        m = _mm_max_epu32(m, _mm_shuffle_epi32(m, 0xb1));
        float inverse;
        q->scale = scale_of(_mm_cvtss_f32(_mm_castsi128_ps(m)), &inverse);
        __m256 by = _mm256_set1_ps(inverse), keep = _mm256_cmp_ps(by, _mm256_setzero_ps(), _CMP_GT_OQ);
        UNROLL for (int i = 0; i < 4; i++)
            whole[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_and_ps(v[i], keep), by));
        __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
        bytes = _mm256_permutevar8x32_epi32(bytes, order);
        _mm256_storeu_si256((void *)q->q, bytes);
        __m256i sum = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes), _mm256_set1_epi16(1));
        sum = _mm256_add_epi32(sum, _mm256_shuffle_epi32(sum, 0x4e));
        sum = _mm256_add_epi32(sum, _mm256_shuffle_epi32(sum, 0xb1));
        block_sums(q, _mm256_extract_epi32(sum, 0), _mm256_extract_epi32(sum, 4));
    }
}

#define X86_DEQUANTIZE \
    {[TYPE_F32] = dequantize_f32, [TYPE_F16] = simd_f16, [TYPE_BF16] = dequantize_bf16, [TYPE_Q8_0] = x86_q8_0, \
     [TYPE_Q4_0] = x86_q4_0, [TYPE_Q4_1] = x86_q4_1, [TYPE_Q5_0] = x86_q5_0, [TYPE_Q5_1] = x86_q5_1, \
     [TYPE_Q2_K] = dequantize_q2_k, [TYPE_Q3_K] = dequantize_q3_k, [TYPE_Q4_K] = x86_q4_k, [TYPE_Q5_K] = x86_q5_k, \
     [TYPE_Q6_K] = x86_q6_k, [TYPE_IQ4_NL] = x86_iq4_nl, [TYPE_IQ4_XS] = x86_iq4_xs}
