/* blocks.h - the numbers that tensors are stored as: conversions between f32, f16 and bytes with a
 * scale, and unaligned loads.
 *
 * Everything is inline so that each file of kernels/ compiles it for its own instruction set; with
 * contraction off they all give the same bits.
 */
#ifndef BLOCKS_H
#define BLOCKS_H

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

/* f16 to f32, without branches so that loops over it vectorise. Normal numbers are shifted into
 * place and rescaled by 2^-112; subnormal ones are read off the low bits of 0.5 + h * 2^-24. */
static inline float f16_f32(uint16_t h)
{
    uint32_t w = (uint32_t)h << 16, twice = w + w;
    float normal = bits_f32((twice >> 4) + (0xe0u << 23)) * 0x1p-112f;
    float subnormal = bits_f32((twice >> 17) | (126u << 23)) - 0.5f;
    return bits_f32((w & 0x80000000u) | f32_bits(twice < (1u << 27) ? subnormal : normal));
}

/* f32 to f16, round to nearest even, saturating at +-65504; NaN becomes a NaN. */
#define F16_CUT_BITS 0x477ff000u // of 65520, from where on f32_f16() cuts magnitudes off at 65504
static inline uint16_t f32_f16(float f)
{
    uint32_t x = f32_bits(f), sign = x >> 16 & 0x8000u, a = x & 0x7fffffffu;
    uint32_t normal = (a + 0xfffu + (a >> 13 & 1u) - 0x38000000u) >> 13;
    uint32_t subnormal = f32_bits(bits_f32(a) + 0.5f) - 0x3f000000u;
    uint32_t h = a < 0x38800000u ? subnormal : a >= F16_CUT_BITS ? 0x7bffu : normal;
    h = a > 0x7f800000u ? 0x7e00u : h;
    return (uint16_t)(sign | h);
}

/* Numbers as signed bytes: x = scale q, |q| <= 127, the largest magnitude, `max`, becomes 127.
 * Returns the scale, NaN where max is NaN or infinite; *inverse is for to_byte. */
static inline float scale_of(float max, float *inverse)
{
    *inverse = max > 1e-30f && max < __builtin_inff() ? 127.0f / max : 0.0f;
    return max < __builtin_inff() ? max / 127.0f : __builtin_nanf("");
}

/* The largest magnitude of n numbers as the bits of a float, which sort as magnitudes do: from
 * F32_INF_BITS on one of them is infinite or NaN. */
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

#endif
