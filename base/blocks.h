/* base/blocks.h - block formats: layout and dequantisation.
 *
 * Every function here is inline so that each kernels_*.c compiles it for its own instruction set; with contraction
 * off they all give the same bits, which are those of the gguf package. One function a format:
 *
 *     dequantize_X(src, dst, n): n values (a multiple of the block) of format X at src -> dst (n,) float
 *
 * Sources: the layouts of ggml-common.h and gguf-py's quants.py. `src` needs no alignment.
 */
#ifndef QUANTS_H
#define QUANTS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

static inline float bits_f32(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline uint32_t f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

/* IEEE half to float, without branches so that loops over it vectorise. Normal numbers are shifted into place and
 * rescaled by 2^-112; subnormal ones are read off the low bits of 0.5 + h * 2^-24. */
static inline float f16_f32(uint16_t h)
{
    uint32_t w = (uint32_t)h << 16, twice = w + w;
    float normal = bits_f32((twice >> 4) + (0xe0u << 23)) * 0x1p-112f;
    float subnormal = bits_f32((twice >> 17) | (126u << 23)) - 0.5f;
    return bits_f32((w & 0x80000000u) | f32_bits(twice < (1u << 27) ? subnormal : normal));
}

/* Float to half, round to nearest even, saturating at +-65504; NaN becomes a NaN. */
#define F16_CUT_BITS 0x477ff000u // the bits of 65520, from where on f32_f16() cuts magnitudes off at 65504
static inline uint16_t f32_f16(float f)
{
    uint32_t x = f32_bits(f), sign = x >> 16 & 0x8000u, a = x & 0x7fffffffu;
    uint32_t normal = (a + 0xfffu + (a >> 13 & 1u) - 0x38000000u) >> 13;
    uint32_t subnormal = f32_bits(bits_f32(a) + 0.5f) - 0x3f000000u;
    uint32_t h = a < 0x38800000u ? subnormal : a >= F16_CUT_BITS ? 0x7bffu : normal;
    h = a > 0x7f800000u ? 0x7e00u : h;
    return (uint16_t)(sign | h);
}

/* Numbers as signed bytes: x = scale q, |q| <= 127, the largest magnitude, `max`, becomes 127. Returns the scale, NaN
 * where max is NaN or infinite; *inverse is for to_byte. */
static inline float scale_of(float max, float *inverse)
{
    *inverse = max > 1e-30f && max < __builtin_inff() ? 127.0f / max : 0.0f;
    return max < __builtin_inff() ? max / 127.0f : __builtin_nanf("");
}

/* The largest magnitude of n numbers as the bits of a float, which sort as magnitudes do: from F32_INF_BITS on one of
 * them is infinite or NaN. */
#define F32_INF_BITS 0x7f800000u
static inline uint32_t largest_bits(const float *x, size_t n)
{
    uint32_t largest = 0;
    for (size_t i = 0; i < n; i++) {
        uint32_t a = f32_bits(x[i]) & 0x7fffffffu;
        largest = a > largest ? a : largest;
    }
    return largest;
}

/* The scale for n numbers. */
static inline float byte_scale(const float *x, size_t n, float *inverse)
{
    return scale_of(bits_f32(largest_bits(x, n)), inverse);
}

static inline int32_t to_byte(float x, float inverse)
{
    /* 1.5 * 2^23: the sum's low bits are the integer nearest to the product */
    return (int32_t)(f32_bits((inverse > 0 ? x : 0.0f) * inverse + 12582912.0f) - 0x4b400000u);
}

static inline uint16_t load_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

static inline uint32_t load_u32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static inline float load_f16(const uint8_t *p)
{
    return f16_f32(load_u16(p));
}

/* ---- plain types ------------------------------------------------------------------------------------------- */

static inline void dequantize_f32(const void *restrict src, float *restrict dst, size_t n)
{
    memcpy(dst, src, n * sizeof *dst);
}

static inline void dequantize_f16(const void *restrict src, float *restrict dst, size_t n)
{
    const uint8_t *restrict p = src;
    for (size_t i = 0; i < n; i++)
        dst[i] = load_f16(p + 2 * i);
}

static inline void dequantize_bf16(const void *restrict src, float *restrict dst, size_t n)
{
    const uint8_t *restrict p = src;
    for (size_t i = 0; i < n; i++)
        dst[i] = bits_f32((uint32_t)load_u16(p + 2 * i) << 16);
}

/* ---- 32 values a block ------------------------------------------------------------------------------------- */

/* {f16 d; i8 q[32]}: w = d q */
static inline void dequantize_q8_0(const void *restrict src, float *restrict dst, size_t n)
{
    const uint8_t *restrict p = src;
    for (size_t b = 0; b < n; b += 32, p += 34, dst += 32) {
        float d = load_f16(p);
        const int8_t *q = (const int8_t *)(p + 2);
        for (int i = 0; i < 32; i++)
            dst[i] = (float)q[i] * d;
    }
}

/* {f16 d; u8 q[16]}: w = d (q - 8); low nibbles are values 0..15, high ones 16..31, as in all 4-bit blocks of 32 */
static inline void dequantize_q4_0(const void *restrict src, float *restrict dst, size_t n)
{
    const uint8_t *restrict p = src;
    for (size_t b = 0; b < n; b += 32, p += 18, dst += 32) {
        float d = load_f16(p);
        for (int i = 0; i < 16; i++) {
            dst[i] = (float)((p[2 + i] & 15) - 8) * d;
            dst[i + 16] = (float)((p[2 + i] >> 4) - 8) * d;
        }
    }
}

/* {f16 d, m; u8 q[16]}: w = d q + m */
static inline void dequantize_q4_1(const void *restrict src, float *restrict dst, size_t n)
{
    const uint8_t *restrict p = src;
    for (size_t b = 0; b < n; b += 32, p += 20, dst += 32) {
        float d = load_f16(p), m = load_f16(p + 2);
        for (int i = 0; i < 16; i++) {
            dst[i] = (float)(p[4 + i] & 15) * d + m;
            dst[i + 16] = (float)(p[4 + i] >> 4) * d + m;
        }
    }
}

/* {f16 d; u32 h; u8 q[16]}: bit i of h is the fifth bit of value i; w = d (q - 16) */
static inline void dequantize_q5_0(const void *restrict src, float *restrict dst, size_t n)
{
    const uint8_t *restrict p = src;
    for (size_t b = 0; b < n; b += 32, p += 22, dst += 32) {
        float d = load_f16(p);
        uint32_t h = load_u32(p + 2);
        for (int i = 0; i < 16; i++) {
            dst[i] = (float)((int)((p[6 + i] & 15) | (h >> i & 1) << 4) - 16) * d;
            dst[i + 16] = (float)((int)((p[6 + i] >> 4) | (h >> (i + 16) & 1) << 4) - 16) * d;
        }
    }
}

/* {f16 d, m; u32 h; u8 q[16]}: w = d q + m */
static inline void dequantize_q5_1(const void *restrict src, float *restrict dst, size_t n)
{
    const uint8_t *restrict p = src;
    for (size_t b = 0; b < n; b += 32, p += 24, dst += 32) {
        float d = load_f16(p), m = load_f16(p + 2);
        uint32_t h = load_u32(p + 4);
        for (int i = 0; i < 16; i++) {
            dst[i] = (float)(int)((p[8 + i] & 15) | (h >> i & 1) << 4) * d + m;
            dst[i + 16] = (float)(int)((p[8 + i] >> 4) | (h >> (i + 16) & 1) << 4) * d + m;
        }
    }
}

static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* {f16 d; u8 q[16]}: w = d iq4_values[q] */
static inline void dequantize_iq4_nl(const void *restrict src, float *restrict dst, size_t n)
{
    const uint8_t *restrict p = src;
    for (size_t b = 0; b < n; b += 32, p += 18, dst += 32) {
        float d = load_f16(p);
        for (int i = 0; i < 16; i++) {
            dst[i] = d * (float)iq4_values[p[2 + i] & 15];
            dst[i + 16] = d * (float)iq4_values[p[2 + i] >> 4];
        }
    }
}

/* ---- 256 values a block ------------------------------------------------------------------------------------ */

/* {u8 scales[16]; u8 q[64]; f16 d, dmin}: groups of 16 with a 4-bit scale and min; w = d sc q - dmin m */
static inline void dequantize_q2_k(const void *restrict src, float *restrict dst, size_t n)
{
    const uint8_t *restrict p = src;
    for (size_t b = 0; b < n; b += 256, p += 84) {
        float d = load_f16(p + 80), dmin = load_f16(p + 82);
        for (int g = 0; g < 16; g++, dst += 16) { // group g: half g/8, bit pair (g%8)/2, bytes 16*(g%2)
            const uint8_t *q = p + 16 + 32 * (g / 8) + 16 * (g % 2);
            int shift = 2 * (g % 8 / 2);
            float dl = d * (float)(p[g] & 15), ml = dmin * (float)(p[g] >> 4);
            for (int i = 0; i < 16; i++)
                dst[i] = dl * (float)(q[i] >> shift & 3) - ml;
        }
    }
}

/* {u8 high[32]; u8 q[64]; u8 scales[12]; f16 d}: groups of 16 with a 6-bit scale; w = d (sc - 32) (q - 4 unless high) */
static inline void dequantize_q3_k(const void *restrict src, float *restrict dst, size_t n)
{
    const uint8_t *restrict p = src;
    for (size_t b = 0; b < n; b += 256, p += 110) {
        float d = load_f16(p + 108);
        const uint8_t *s = p + 96;
        for (int g = 0; g < 16; g++, dst += 16) {
            const uint8_t *q = p + 32 + 32 * (g / 8) + 16 * (g % 2), *high = p + 16 * (g % 2);
            int shift = 2 * (g % 8 / 2), bit = g / 2; // one high bit a group pair
            int low = g < 8 ? s[g] & 15 : s[g - 8] >> 4, sc = low | (s[8 + g % 4] >> (2 * (g / 4)) & 3) << 4;
            float dl = d * (float)(sc - 32);
            for (int i = 0; i < 16; i++)
                dst[i] = dl * (float)((q[i] >> shift & 3) - 4 + 4 * (high[i] >> bit & 1));
        }
    }
}

/* The eight 6-bit scales and mins that Q4_K and Q5_K pack into 12 bytes. */
static inline void unpack_k4(const uint8_t *s, int j, int *scale, int *min)
{
    *scale = j < 4 ? s[j] & 63 : (s[j + 4] & 15) | (s[j - 4] >> 6) << 4;
    *min = j < 4 ? s[j + 4] & 63 : (s[j + 4] >> 4) | (s[j] >> 6) << 4;
}

/* {f16 d, dmin; u8 scales[12]; u8 q[128]}: groups of 32; w = d sc q - dmin m */
static inline void dequantize_q4_k(const void *restrict src, float *restrict dst, size_t n)
{
    const uint8_t *restrict p = src;
    for (size_t b = 0; b < n; b += 256, p += 144) {
        float d = load_f16(p), dmin = load_f16(p + 2);
        for (int g = 0; g < 8; g++, dst += 32) {
            const uint8_t *q = p + 16 + 32 * (g / 2);
            int sc, m, shift = 4 * (g % 2);
            unpack_k4(p + 4, g, &sc, &m);
            float dl = d * (float)sc, ml = dmin * (float)m;
            for (int i = 0; i < 32; i++)
                dst[i] = dl * (float)(q[i] >> shift & 15) - ml;
        }
    }
}

/* {f16 d, dmin; u8 scales[12]; u8 high[32]; u8 q[128]} */
static inline void dequantize_q5_k(const void *restrict src, float *restrict dst, size_t n)
{
    const uint8_t *restrict p = src;
    for (size_t b = 0; b < n; b += 256, p += 176) {
        float d = load_f16(p), dmin = load_f16(p + 2);
        for (int g = 0; g < 8; g++, dst += 32) {
            const uint8_t *q = p + 48 + 32 * (g / 2), *high = p + 16;
            int sc, m, shift = 4 * (g % 2);
            unpack_k4(p + 4, g, &sc, &m);
            float dl = d * (float)sc, ml = dmin * (float)m;
            for (int i = 0; i < 32; i++)
                dst[i] = dl * (float)((q[i] >> shift & 15) | (high[i] >> g & 1) << 4) - ml;
        }
    }
}

/* {u8 low[128]; u8 high[64]; i8 scales[16]; f16 d}: groups of 16; w = d sc (q - 32) */
static inline void dequantize_q6_k(const void *restrict src, float *restrict dst, size_t n)
{
    const uint8_t *restrict p = src;
    for (size_t b = 0; b < n; b += 256, p += 210) {
        float d = load_f16(p + 208);
        for (int g = 0; g < 16; g++, dst += 16) { // group g: half g/8, 32 values each for (g%8)/2 = 0..3
            int part = g % 8 / 2;
            const uint8_t *low = p + 64 * (g / 8) + 32 * (part % 2) + 16 * (g % 2);
            const uint8_t *high = p + 128 + 32 * (g / 8) + 16 * (g % 2);
            int low_shift = 4 * (part / 2), high_shift = 2 * part;
            float dl = d * (float)(int8_t)p[192 + g];
            for (int i = 0; i < 16; i++)
                dst[i] = dl * (float)((int)((low[i] >> low_shift & 15) | (high[i] >> high_shift & 3) << 4) - 32);
        }
    }
}

/* {f16 d; u16 scales_h; u8 scales_l[4]; u8 q[128]}: groups of 32 with a 6-bit scale; w = d (sc - 32) iq4_values[q] */
static inline void dequantize_iq4_xs(const void *restrict src, float *restrict dst, size_t n)
{
    const uint8_t *restrict p = src;
    for (size_t b = 0; b < n; b += 256, p += 136) {
        float d = load_f16(p);
        uint16_t scales_h = load_u16(p + 2);
        for (int g = 0; g < 8; g++, dst += 32) {
            const uint8_t *q = p + 8 + 16 * g;
            int sc = (p[4 + g / 2] >> 4 * (g % 2) & 15) | (scales_h >> 2 * g & 3) << 4;
            float dl = d * (float)(sc - 32);
            for (int i = 0; i < 16; i++) {
                dst[i] = dl * (float)iq4_values[q[i] & 15];
                dst[i + 16] = dl * (float)iq4_values[q[i] >> 4];
            }
        }
    }
}

#endif
