/* vec_neon.h - vectors of AArch64, with the dot product instructions where it is compiled for them:
 * the vocabulary of vec.h. Both give the same bits. */
#include <arm_neon.h>

#include "kernels/vec.h"

enum {
    VL = 4,
    GEMM_TILE_ROWS = 4, // gemm.inc: rows and columns of a tile, rows where there is one column,
    GEMM_TILE_COLS = 5, // and values of a step
    GEMV_TILE_ROWS = 8,
    GEMM_STEP = 512,
    ADD_TILE_ROWS = 5, // gemm_add.inc
    ADD_TILE_VECS = 4,
#ifdef __ARM_FEATURE_DOTPROD
    INT8_TILE_COLS = 4, // int8.inc
#else
    INT8_TILE_COLS = 2,
#endif
    UNSIGNED_WEIGHTS = 0 // whether dot_add() wants weights of 8 bits unsigned, with 128 added
};

typedef float32x4_t V;
typedef uint32x4_t I;
typedef int32x4_t Signed;

/* ---- floats ---------------------------------------------------------------------------------- */

// clang-format off: a line each
INLINE uint8x8_t load8(const void *p) { return vld1_u8(p); }
INLINE V v_load_f16(const void *p) { return vcvt_f32_f16(vreinterpret_f16_u8(load8(p))); }
INLINE V v_load_bf16(const void *p) { return (V)vshll_n_u16(vreinterpret_u16_u8(load8(p)), 16); }
INLINE V v_set1(float f) { return vdupq_n_f32(f); }
INLINE V v_load(const float *p) { return vld1q_f32(p); }
INLINE void v_store(float *p, V v) { vst1q_f32(p, v); }
INLINE V v_fma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
INLINE V v_max(V a, V b) { return vmaxq_f32(a, b); }
INLINE float v_sum(V v) { return vaddvq_f32(v); }
INLINE float v_largest(V v) { return vmaxvq_f32(v); }
INLINE V v_from_int(I x) { return vcvtq_f32_s32((Signed)x); }
INLINE V v_zero_below(V v, V x, float f) { return (V)vbicq_u32((I)v, vcltq_f32(x, v_set1(f))); }
// clang-format on

INLINE V v_from_f16(I x) // the low half of each lane
{
    return vcvt_f32_f16(vreinterpret_f16_u16(vmovn_u32(x)));
}

INLINE V v_load_i8(const void *p)
{
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(load_u32(p))))));
}

INLINE V v_load_n(const float *p, size_t n)
{
    float full[VL] = {0};
    memcpy(full, p, n * sizeof *p);
    return v_load(full);
}

INLINE void v_store_n(float *p, V v, size_t n)
{
    float full[VL];
    v_store(full, v);
    memcpy(p, full, n * sizeof *p);
}

INLINE V v_load_f16_n(const void *p, size_t n)
{
    uint16_t full[VL] = {0};
    memcpy(full, p, n * sizeof *full);
    return v_load_f16(full);
}

INLINE V v_sums(const V x[VL])
{
    return vpaddq_f32(vpaddq_f32(x[0], x[1]), vpaddq_f32(x[2], x[3]));
}

/* ---- integers -------------------------------------------------------------------------------- */

// clang-format off: a line each
INLINE I i_set1(uint32_t x) { return vdupq_n_u32(x); }
INLINE I i_load(const void *p) { return (I)vld1q_u8(p); }
INLINE void i_store(void *p, I x) { vst1q_u8(p, (uint8x16_t)x); }
// clang-format on

INLINE I i_opaque(I x)
{
    __asm__("" : "+w"(x));
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
    return (I)vqtbl1q_s8(vld1q_s8(table), (uint8x16_t)index);
}

/* ---- products of bytes ----------------------------------------------------------------------- */

#ifdef __ARM_FEATURE_DOTPROD
/* sdot adds to 32-bit sums, so the parts are the sums. It takes one of four fours from a vector. */
typedef I Part;
typedef struct {
    int8x16_t x;
    int lane;
} Four;

// clang-format off: a line each
INLINE int dot_steps(int bits) { (void)bits; return 8; }
INLINE Four dot_four(const int8_t *x, int j) { return (Four){vld1q_s8(x + j / 4 * 16), j % 4}; }
INLINE Part dot_begin(I sum) { return sum; }
INLINE I dot_end(I sum, Part part) { (void)sum; return part; }
// clang-format on

INLINE Part dot_add(Part part, I weights, Four f, int bits)
{
    int8x16_t w = (int8x16_t)weights;
    Signed sum = (Signed)part;
    (void)bits;
    return (I)(f.lane == 0   ? vdotq_laneq_s32(sum, w, f.x, 0)
               : f.lane == 1 ? vdotq_laneq_s32(sum, w, f.x, 1)
               : f.lane == 2 ? vdotq_laneq_s32(sum, w, f.x, 2)
                             : vdotq_laneq_s32(sum, w, f.x, 3));
}

#else
/* Products are added up in 16 bits, those of two rows in each vector, and in pairs at the end: as
 * many of them as fit. */
typedef struct {
    int16x8_t low, high;
} Part;
typedef I Four;

// clang-format off: a line each
INLINE int dot_steps(int bits) { return bits <= 4 ? 8 : bits == 5 ? 4 : bits == 6 ? 2 : 1; }
INLINE Four dot_four(const int8_t *x, int j) { return i_set1(load_u32(x + 4 * j)); }
INLINE Part dot_begin(I sum) { (void)sum; return (Part){vdupq_n_s16(0), vdupq_n_s16(0)}; }
// clang-format on

INLINE Part dot_add(Part part, I weights, Four four, int bits)
{
    int8x16_t w = (int8x16_t)weights, x = (int8x16_t)four;
    if (bits == 8)
        return (Part){vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x)};
    return (Part){vmlal_s8(part.low, vget_low_s8(w), vget_low_s8(x)),
                  vmlal_high_s8(part.high, w, x)};
}

INLINE I dot_end(I sum, Part part)
{
    return (I)vpadalq_s16((Signed)sum, vpaddq_s16(part.low, part.high));
}
#endif

/* ---- rows ------------------------------------------------------------------------------------ */

#include "kernels/rows.inc"

INLINE V rows_f16(const Rows *r, size_t at)
{
    return vcvt_f32_f16(vcreate_f16(four_u16(r, 0, at)));
}

INLINE I rows_u16(const Rows *r, size_t at)
{
    return vmovl_u16(vcreate_u16(four_u16(r, 0, at)));
}

INLINE I rows_u32(const Rows *r, size_t at)
{
    uint64_t two[2];
    UNROLL for (int i = 0; i < 2; i++)
        two[i] = (uint64_t)load_u32(row_at(r, 0, 2 * i + 1, at)) << 32
               | load_u32(row_at(r, 0, 2 * i, at));
    return vcombine_u32(vcreate_u32(two[0]), vcreate_u32(two[1]));
}

INLINE void rows_16(const Rows *r, size_t at, I out[4])
{
    I x[4];
    UNROLL for (int i = 0; i < 4; i++)
        x[i] = i_load(row_at(r, 0, i, at));
    uint64x2_t ab = (uint64x2_t)vzip1q_u32(x[0], x[1]), cd = (uint64x2_t)vzip1q_u32(x[2], x[3]);
    uint64x2_t ab2 = (uint64x2_t)vzip2q_u32(x[0], x[1]), cd2 = (uint64x2_t)vzip2q_u32(x[2], x[3]);
    out[0] = (I)vzip1q_u64(ab, cd);
    out[1] = (I)vzip2q_u64(ab, cd);
    out[2] = (I)vzip1q_u64(ab2, cd2);
    out[3] = (I)vzip2q_u64(ab2, cd2);
}

INLINE void rows_32(const Rows *r, size_t at, I out[8])
{
    rows_16(r, at, out);
    rows_16(r, at + 16, out + 4);
}

/* ---- dequantisation -------------------------------------------------------------------------- */

INLINE float f16_value(uint16_t h)
{
    return vgetq_lane_f32(vcvt_f32_f16(vreinterpret_f16_u16(vdup_n_u16(h))), 0);
}

INLINE Bytes bytes_lookup(const int8_t table[16], Bytes index)
{
    return (Bytes)vqtbl1q_s8(vld1q_s8(table), (uint8x16_t)index);
}

/* Values 4i to 4i + 3 as floats. */
INLINE V v_from_bytes(Bytes q, int i)
{
    int16x8_t x = i < 2 ? vmovl_s8(vget_low_s8((int8x16_t)q)) : vmovl_high_s8((int8x16_t)q);
    return vcvtq_f32_s32(i % 2 ? vmovl_high_s16(x) : vmovl_s16(vget_low_s16(x)));
}

INLINE void put16(float *dst, Bytes q, float scale)
{
    UNROLL for (int i = 0; i < 4; i++)
        v_store(dst + 4 * i, v_from_bytes(q, i) * v_set1(scale));
}

INLINE void put16_min(float *dst, Bytes q, float scale, float min)
{
    UNROLL for (int i = 0; i < 4; i++)
        v_store(dst + 4 * i, v_from_bytes(q, i) * v_set1(scale) + v_set1(min));
}
