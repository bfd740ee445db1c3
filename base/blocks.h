/* blocks.h - what tensors are stored as: the types and their blocks, and conversions between f32,
 * f16 and signed bytes with a scale.
 *
 * A type is a struct with its size and a row of type_infos; kernels/dequantize.inc turns it into
 * floats. Everything is inline so that each file of kernels/ compiles it for its own instruction
 * set; with contraction off they all give the same bits.
 */
#ifndef BLOCKS_H
#define BLOCKS_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* Tensor types by their number in the file. */
typedef enum {
    TYPE_F32 = 0,
    TYPE_F16 = 1,
    TYPE_Q4_0 = 2,
    TYPE_Q4_1 = 3,
    TYPE_Q5_0 = 6,
    TYPE_Q5_1 = 7,
    TYPE_Q8_0 = 8,
    TYPE_Q2_K = 10,
    TYPE_Q3_K = 11,
    TYPE_Q4_K = 12,
    TYPE_Q5_K = 13,
    TYPE_Q6_K = 14,
    TYPE_IQ2_XXS = 16,
    TYPE_IQ2_XS = 17,
    TYPE_IQ3_XXS = 18,
    TYPE_IQ1_S = 19,
    TYPE_IQ4_NL = 20,
    TYPE_IQ3_S = 21,
    TYPE_IQ2_S = 22,
    TYPE_IQ4_XS = 23,
    TYPE_IQ1_M = 29,
    TYPE_BF16 = 30,
    TYPE_TQ1_0 = 34,
    TYPE_TQ2_0 = 35,
    TYPE_MXFP4 = 39,
    TYPE_COUNT = 64
} Type;

/* ---- blocks ---------------------------------------------------------------------------------- */

/* A quantised row is a sequence of blocks at any address, so the structs are packed. Numbers are
 * little-endian; a block's scale and min are f16. w is a value and q its integer. Sources:
 * ggml-common.h and gguf-py's quants.py. */
enum { BLOCK_VALUES = 32, SUPERBLOCK_VALUES = 256 }; // values of a block
#define PACKED __attribute__((packed))

/* w = scale q */
typedef struct PACKED {
    uint16_t scale;
    int8_t quants[32];
} BlockQ8_0;
_Static_assert(sizeof(BlockQ8_0) == 34, "Q8_0");

/* w = scale (q - 8). Low nibbles are values 0 to 15, high ones 16 to 31, as in all 4-bit quants of
 * blocks of 32. */
typedef struct PACKED {
    uint16_t scale;
    uint8_t quants[16];
} BlockQ4_0;
_Static_assert(sizeof(BlockQ4_0) == 18, "Q4_0");

/* w = scale q + min */
typedef struct PACKED {
    uint16_t scale, min;
    uint8_t quants[16];
} BlockQ4_1;
_Static_assert(sizeof(BlockQ4_1) == 20, "Q4_1");

/* w = scale (q - 16). Bit i of high, as one number, is the fifth bit of value i. */
typedef struct PACKED {
    uint16_t scale;
    uint8_t high[4];
    uint8_t quants[16];
} BlockQ5_0;
_Static_assert(sizeof(BlockQ5_0) == 22, "Q5_0");

/* w = scale q + min */
typedef struct PACKED {
    uint16_t scale, min;
    uint8_t high[4];
    uint8_t quants[16];
} BlockQ5_1;
_Static_assert(sizeof(BlockQ5_1) == 24, "Q5_1");

/* w = scale iq4_values[q] */
typedef struct PACKED {
    uint16_t scale;
    uint8_t quants[16];
} BlockIQ4_NL;
_Static_assert(sizeof(BlockIQ4_NL) == 18, "IQ4_NL");

/* w = e8m0_half(scale) (mxfp4_values[q] - 16), q in nibbles as in Q4_0. Source: Open Compute
 * Project, Microscaling Formats 1.0. */
typedef struct PACKED {
    uint8_t scale, quants[16];
} BlockMXFP4;
_Static_assert(sizeof(BlockMXFP4) == 17, "MXFP4");

/* Sixteen groups of 16 values: w = scale (scales[g] & 15) q - min (scales[g] >> 4). Two bits a
 * value: group g has those from bit 2 (g % 8 / 2) of the 16 bytes at 32 (g / 8) + 16 (g % 2). */
typedef struct PACKED {
    uint8_t scales[16], quants[64];
    uint16_t scale, min;
} BlockQ2_K;
_Static_assert(sizeof(BlockQ2_K) == 84, "Q2_K");

/* Sixteen groups of 16 values: w = scale (s - 32) (q - 4), s of six bits. The low two bits of q are
 * as in Q2_K, the third is bit g / 2 of the 16 bytes of high at 16 (g % 2). */
typedef struct PACKED {
    uint8_t high[32], quants[64], scales[12];
    uint16_t scale;
} BlockQ3_K;
_Static_assert(sizeof(BlockQ3_K) == 110, "Q3_K");

/* Eight groups of 32 values: w = scale s q - min m. The s and m of groups, six bits each, are in
 * groups[]: those of the first four in the low bits of bytes 0 to 3 and 4 to 7; of the others low
 * bits in the nibbles of 8 to 11, high bits on top of 0 to 7. Two groups share 32 bytes of quants,
 * the low nibbles and the high ones. */
typedef struct PACKED {
    uint16_t scale, min;
    uint8_t groups[12];
} ScalesK4;

typedef struct PACKED {
    ScalesK4 scales;
    uint8_t quants[128];
} BlockQ4_K;
_Static_assert(sizeof(BlockQ4_K) == 144, "Q4_K");

/* As Q4_K; bit g of high[i] is the fifth bit of value i of group g. */
typedef struct PACKED {
    ScalesK4 scales;
    uint8_t high[32], quants[128];
} BlockQ5_K;
_Static_assert(sizeof(BlockQ5_K) == 176, "Q5_K");

/* Sixteen groups of 16 values: w = scale scales[g] (q - 32). Of each half of the block, the 64 low
 * nibbles of low, then the high ones, are the low bits of 128 values; 32 bytes of high have the
 * other two of values i, 32 + i, 64 + i, 96 + i. */
typedef struct PACKED {
    uint8_t low[128], high[64];
    int8_t scales[16];
    uint16_t scale;
} BlockQ6_K;
_Static_assert(sizeof(BlockQ6_K) == 210, "Q6_K");

/* Eight groups of 32 values: w = scale (s - 32) iq4_values[q]. s has four bits in scales_low and
 * two in scales_high. */
typedef struct PACKED {
    uint16_t scale, scales_high;
    uint8_t scales_low[4], quants[128];
} BlockIQ4_XS;
_Static_assert(sizeof(BlockIQ4_XS) == 136, "IQ4_XS");

/* Seven types with grids: w = s times an entry of a grid, which is four or eight values, with
 * signs; the tables are in kernels/grids.h, their use in kernels/expand.inc. Where "even" signs are
 * seven bits of eight values, the eighth makes the number of minuses even. */

/* Eight groups of 32 values, eight bytes each: four indices; 28 bits of even signs and four of s,
 * which stands for scale (s + 1/2) / 4. */
typedef struct PACKED {
    uint16_t scale;
    uint8_t quants[64];
} BlockIQ2_XXS;
_Static_assert(sizeof(BlockIQ2_XXS) == 66, "IQ2_XXS");

/* Two bytes of quants have nine bits of index and seven of even signs; 16 values have four bits of
 * scales, as s above. */
typedef struct PACKED {
    uint16_t scale;
    uint8_t quants[64], scales[8];
} BlockIQ2_XS;
_Static_assert(sizeof(BlockIQ2_XS) == 74, "IQ2_XS");

/* Ten bits of index, two of them in high; a bit of signs for each value; scales as in IQ2_XS. */
typedef struct PACKED {
    uint16_t scale;
    uint8_t quants[32], signs[32], high[8], scales[8];
} BlockIQ2_S;
_Static_assert(sizeof(BlockIQ2_S) == 82, "IQ2_S");

/* 64 indices of four values each; for 32 values 28 bits of even signs and four of s, which stands
 * for scale (s + 1/2) / 2. */
typedef struct PACKED {
    uint16_t scale;
    uint8_t quants[64], groups[32];
} BlockIQ3_XXS;
_Static_assert(sizeof(BlockIQ3_XXS) == 98, "IQ3_XXS");

/* Nine bits of index, one of them in high; a bit of signs for each value; for 32 values four bits
 * of scales, which stand for scale (2 s + 1). */
typedef struct PACKED {
    uint16_t scale;
    uint8_t quants[64], high[8], signs[32], scales[4];
} BlockIQ3_S;
_Static_assert(sizeof(BlockIQ3_S) == 110, "IQ3_S");

/* Without signs: w = scale (2 s + 1) (entry + 1/8), or - 1/8. Two bytes of high for 32 values: four
 * times three bits of index, three of s, one for - 1/8. */
typedef struct PACKED {
    uint16_t scale;
    uint8_t quants[32], high[16];
} BlockIQ1_S;
_Static_assert(sizeof(BlockIQ1_S) == 50, "IQ1_S");

/* As IQ1_S, but high has four bits for eight values, three of index and one for - 1/8, and scales
 * three bits of s for 16 values: four in each two bytes, whose top four bits are a part of scale.
 */
typedef struct PACKED {
    uint8_t quants[32], high[16], scales[8];
} BlockIQ1_M;
_Static_assert(sizeof(BlockIQ1_M) == 56, "IQ1_M");

/* w = scale (q - 1), q a digit in base 3. A byte of quants has five, one of high four. Bytes i < 32
 * of quants have values i, 32 + i, ... , 128 + i; the others of 160 + i on, every 16th; high every
 * fourth of the last 16. */
typedef struct PACKED {
    uint8_t quants[48], high[4];
    uint16_t scale;
} BlockTQ1_0;
_Static_assert(sizeof(BlockTQ1_0) == 54, "TQ1_0");

/* w = scale (q - 1), q of two bits that lie as in Q2_K. */
typedef struct PACKED {
    uint8_t quants[64];
    uint16_t scale;
} BlockTQ2_0;
_Static_assert(sizeof(BlockTQ2_0) == 66, "TQ2_0");

/* A block of `block` values takes `bytes` bytes; both are 0 for numbers that name no type. */
typedef struct {
    const char *name;
    uint16_t block, bytes;
} TypeInfo;

/* Every number that ggml has given out, so that an error names a type that we do not read. Source:
 * gguf-py's GGMLQuantizationType and GGML_QUANT_SIZES. */
static const TypeInfo type_infos[TYPE_COUNT] = {
    [TYPE_F32] = {"F32", 1, sizeof(float)},
    [TYPE_F16] = {"F16", 1, sizeof(uint16_t)},
    [TYPE_BF16] = {"BF16", 1, sizeof(uint16_t)},
    [TYPE_Q4_0] = {"Q4_0", BLOCK_VALUES, sizeof(BlockQ4_0)},
    [TYPE_Q4_1] = {"Q4_1", BLOCK_VALUES, sizeof(BlockQ4_1)},
    [TYPE_Q5_0] = {"Q5_0", BLOCK_VALUES, sizeof(BlockQ5_0)},
    [TYPE_Q5_1] = {"Q5_1", BLOCK_VALUES, sizeof(BlockQ5_1)},
    [TYPE_Q8_0] = {"Q8_0", BLOCK_VALUES, sizeof(BlockQ8_0)},
    [TYPE_IQ4_NL] = {"IQ4_NL", BLOCK_VALUES, sizeof(BlockIQ4_NL)},
    [TYPE_MXFP4] = {"MXFP4", BLOCK_VALUES, sizeof(BlockMXFP4)},
    [TYPE_Q2_K] = {"Q2_K", SUPERBLOCK_VALUES, sizeof(BlockQ2_K)},
    [TYPE_Q3_K] = {"Q3_K", SUPERBLOCK_VALUES, sizeof(BlockQ3_K)},
    [TYPE_Q4_K] = {"Q4_K", SUPERBLOCK_VALUES, sizeof(BlockQ4_K)},
    [TYPE_Q5_K] = {"Q5_K", SUPERBLOCK_VALUES, sizeof(BlockQ5_K)},
    [TYPE_Q6_K] = {"Q6_K", SUPERBLOCK_VALUES, sizeof(BlockQ6_K)},
    [TYPE_IQ4_XS] = {"IQ4_XS", SUPERBLOCK_VALUES, sizeof(BlockIQ4_XS)},
    [TYPE_IQ1_S] = {"IQ1_S", SUPERBLOCK_VALUES, sizeof(BlockIQ1_S)},
    [TYPE_IQ1_M] = {"IQ1_M", SUPERBLOCK_VALUES, sizeof(BlockIQ1_M)},
    [TYPE_IQ2_XXS] = {"IQ2_XXS", SUPERBLOCK_VALUES, sizeof(BlockIQ2_XXS)},
    [TYPE_IQ2_XS] = {"IQ2_XS", SUPERBLOCK_VALUES, sizeof(BlockIQ2_XS)},
    [TYPE_IQ2_S] = {"IQ2_S", SUPERBLOCK_VALUES, sizeof(BlockIQ2_S)},
    [TYPE_IQ3_XXS] = {"IQ3_XXS", SUPERBLOCK_VALUES, sizeof(BlockIQ3_XXS)},
    [TYPE_IQ3_S] = {"IQ3_S", SUPERBLOCK_VALUES, sizeof(BlockIQ3_S)},
    [TYPE_TQ1_0] = {"TQ1_0", SUPERBLOCK_VALUES, sizeof(BlockTQ1_0)},
    [TYPE_TQ2_0] = {"TQ2_0", SUPERBLOCK_VALUES, sizeof(BlockTQ2_0)},
    [9] = {"Q8_1", 32, 40},
    [15] = {"Q8_K", 256, 292},
    [24] = {"I8", 1, 1},
    [25] = {"I16", 1, 2},
    [26] = {"I32", 1, 4},
    [27] = {"I64", 1, 8},
    [28] = {"F64", 1, 8},
    [40] = {"NVFP4", 64, 36},
    [41] = {"Q1_0", 128, 18},
    [42] = {"Q2_0", 64, 18},
};

static inline const TypeInfo *type_info(uint32_t type) // never NULL
{
    static const TypeInfo unknown = {"unknown", 0, 0};
    return type < TYPE_COUNT && type_infos[type].name ? &type_infos[type] : &unknown;
}

/* ---- numbers --------------------------------------------------------------------------------- */

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

/* Half of the power of two that a byte of the format E8M0 stands for: 2^(e - 128), of which the
 * first two are subnormal. 255, which the format's text calls NaN, is one more power, as in the
 * gguf package. */
static inline float e8m0_half(uint8_t e)
{
    return bits_f32(e < 2 ? 1u << (21 + e) : (uint32_t)(e - 1) << 23);
}

/* Numbers as signed bytes: x = scale q, |q| <= 127; the largest magnitude, `max`, becomes 127.
 * Returns the scale, NaN where max is NaN or infinite; *inverse is for to_byte(). */
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

static inline uint16_t load_u16(const void *p)
{
    const uint8_t *b = p;
    return (uint16_t)(b[0] | b[1] << 8);
}

static inline uint32_t load_u32(const void *p)
{
    const uint8_t *b = p;
    return (uint32_t)b[0] | (uint32_t)b[1] << 8 | (uint32_t)b[2] << 16 | (uint32_t)b[3] << 24;
}

#endif
