/* kernels/neon.c - the kernel table for AArch64, whose every machine has NEON. kernels/dotprod.c
 * compiles it again with DOTPROD, for machines with the dot product instructions. Both tables give
 * the same bits. */
#include "kernels/portable.inc"

#include <arm_neon.h>

#define VL 4
#define ROWS 4
#define COLS 5
#define STEP 512
#define ROWS_1 8
#define ADD_ROWS 5
#define ADD_VECS 4

#define WIDE 0

typedef float32x4_t V;
typedef int32x4_t VI;

#define LOAD8(p) vld1_u8((const uint8_t *)(p)) // needs no alignment
#define LOAD16(p) vld1q_u8((const uint8_t *)(p))

#define v_zero() vdupq_n_f32(0)
#define v_set1(f) vdupq_n_f32(f)
#define v_load(p) vld1q_f32(p)
#define v_store(p, v) vst1q_f32(p, v)
#define v_fma(a, b, c) vfmaq_f32(c, a, b)
#define v_mul(a, b) vmulq_f32(a, b)
#define v_add(a, b) vaddq_f32(a, b)
#define v_sub(a, b) vsubq_f32(a, b)
#define v_max(a, b) vmaxq_f32(a, b)
#define v_sum(v) vaddvq_f32(v)
#define v_maximum(v) vmaxvq_f32(v)
#define v_exp2_add(p, t)                                                                           \
    vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(p),                                      \
                                    vshlq_n_s32(vreinterpretq_s32_f32(t), 23)))
#define v_unless_below(y, x, f)                                                                    \
    vreinterpretq_f32_u32(vbicq_u32(vreinterpretq_u32_f32(y), vcltq_f32(x, vdupq_n_f32(f))))
#define v_load_bf16(p) vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(LOAD8(p)), 16))
#define v_load_i8(p)                                                                               \
    vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(load_u32((const uint8_t *)(p)))))))
#define v_load_f16(p) vcvt_f32_f16(vreinterpret_f16_u8(LOAD8(p)))

/* Pairs of lanes are added, twice, as in v_sum(). */
INLINE V v_sums(const V x[4])
{
    return vpaddq_f32(vpaddq_f32(x[0], x[1]), vpaddq_f32(x[2], x[3]));
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

INLINE V v_load_f16_n(const uint16_t *p, size_t n)
{
    uint16_t full[VL] = {0};
    memcpy(full, p, n * sizeof *p);
    return v_load_f16(full);
}

#define i_set1(x) vdupq_n_s32(x)
#define i_load(p) vld1q_s32((const int32_t *)(p))
#define i_store(p, v) vst1q_s32((int32_t *)(p), v)
#define i_and(a, b) vandq_s32(a, b)
#define i_or(a, b) vorrq_s32(a, b)
#define i_xor(a, b) veorq_s32(a, b)
#define i_add(a, b) vaddq_s32(a, b)
#define i_sub(a, b) vsubq_s32(a, b)
#define i_shl(v, n) ((v) << (n)) // operators: the intrinsics want literal numbers
#define i_shr(v, n) vreinterpretq_s32_u32(vreinterpretq_u32_s32(v) >> (unsigned)(n))
#define i_sar(v, n) ((v) >> (n))
#define i_float(v) vcvtq_f32_s32(v)
#define i_halves(v) vcvt_f32_f16(vreinterpret_f16_s16(vmovn_s32(v)))
#define i_lookup(table, v) vreinterpretq_s32_u8(vqtbl1q_u8(LOAD16(table), vreinterpretq_u8_s32(v)))

INLINE VI i_mul(VI a, VI b)
{
    __asm__("" : "+w"(b)); // or a constant is multiplied with shifts
    return vmulq_s32(a, b);
}

#ifdef DOTPROD
/* sdot adds to 32-bit sums, so the parts are the sums. */
#define Q_COLS 4
#define DOT_STEPS(bits) 8
typedef VI Part;
#define dot_start(sum) (sum)
#define flush(sum, part) (part)

/* sdot takes one of four fours from a vector. */
typedef struct {
    int8x16_t x;
    int lane;
} Fours;
#define fours(p, j) ((Fours){vld1q_s8((p) + (j) / 4 * 16), (j) % 4})

INLINE Part dot(Part part, VI weights, Fours f, int bits)
{
    int8x16_t w = vreinterpretq_s8_s32(weights);
    (void)bits;
    return f.lane == 0 ? vdotq_laneq_s32(part, w, f.x, 0)
         : f.lane == 1 ? vdotq_laneq_s32(part, w, f.x, 1)
         : f.lane == 2 ? vdotq_laneq_s32(part, w, f.x, 2)
                       : vdotq_laneq_s32(part, w, f.x, 3);
}
#else
/* Products are added up in 16 bits, those of two rows in each vector, and in pairs at the end: as
 * many of them as fit. */
#define Q_COLS 2
#define DOT_STEPS(bits) ((bits) <= 4 ? 8 : (bits) == 5 ? 4 : (bits) == 6 ? 2 : 1)
typedef struct {
    int16x8_t low, high;
} Part;
typedef VI Fours;
#define fours(p, j) i_set1(load_i32((p) + 4 * (j)))
#define dot_start(sum) ((Part){vdupq_n_s16(0), vdupq_n_s16(0)})
#define flush(sum, part) vpadalq_s16(sum, vpaddq_s16((part).low, (part).high))

INLINE Part dot(Part part, VI weights, Fours activations, int bits)
{
    int8x16_t w = vreinterpretq_s8_s32(weights), x = vreinterpretq_s8_s32(activations);
    if (bits == 8)
        return (Part){vmull_s8(vget_low_s8(w), vget_low_s8(x)), vmull_high_s8(w, x)};
    return (Part){vmlal_s8(part.low, vget_low_s8(w), vget_low_s8(x)),
                  vmlal_high_s8(part.high, w, x)};
}
#endif

#include "kernels/rows.inc"

INLINE V v_words(const Rows *r, size_t at)
{
    return vcvt_f32_f16(vcreate_f16((uint64_t)four_words(r, 0, at)));
}

INLINE VI i_dwords(const Rows *r, size_t at)
{
    uint64_t two[2];
    UNROLL for (int i = 0; i < 2; i++)
        two[i] = (uint64_t)load_u32(row_of(r, r->p[0], 2 * i + 1) + at) << 32
               | load_u32(row_of(r, r->p[0], 2 * i) + at);
    return vcombine_s32(vcreate_s32(two[0]), vcreate_s32(two[1]));
}

INLINE void i_columns(const Rows *r, size_t at, VI t[4])
{
    VI row[4];
    UNROLL for (int i = 0; i < 4; i++)
        row[i] = vreinterpretq_s32_u8(LOAD16(row_of(r, r->p[0], i) + at));
    int64x2_t ab = vreinterpretq_s64_s32(vzip1q_s32(row[0], row[1])),
              cd = vreinterpretq_s64_s32(vzip1q_s32(row[2], row[3]));
    int64x2_t ab2 = vreinterpretq_s64_s32(vzip2q_s32(row[0], row[1])),
              cd2 = vreinterpretq_s64_s32(vzip2q_s32(row[2], row[3]));
    t[0] = vreinterpretq_s32_s64(vzip1q_s64(ab, cd));
    t[1] = vreinterpretq_s32_s64(vzip2q_s64(ab, cd));
    t[2] = vreinterpretq_s32_s64(vzip1q_s64(ab2, cd2));
    t[3] = vreinterpretq_s32_s64(vzip2q_s64(ab2, cd2));
}

INLINE void i_columns2(const Rows *r, size_t at, VI t[8])
{
    i_columns(r, at, t);
    i_columns(r, at + 16, t + 4);
}

/* Eight of v times a factor, to the nearest integers; NaN, which infinity times 0 is too, becomes
 * 0. */
INLINE int16x8_t whole_numbers(const V v[2], float factor)
{
    int32x4_t a = vcvtnq_s32_f32(vmulq_n_f32(v[0], factor)),
              b = vcvtnq_s32_f32(vmulq_n_f32(v[1], factor));
    return vcombine_s16(vmovn_s32(a), vmovn_s32(b));
}

/* quantize() of kernels/portable.inc, to the bit. */
static void neon_quantize(const float *x, Block8 *q, size_t n)
{
    for (; n; n -= 32, x += 32, q++) {
        V v[8];
        uint32x4_t largest = vdupq_n_u32(0);
        int32_t sums[2];
        UNROLL for (int i = 0; i < 8; i++) {
            v[i] = v_load(x + 4 * i);
            largest = vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(v[i])));
        }
        float inverse;
        q->scale = scale_of(bits_f32(vmaxvq_u32(largest)), &inverse);
        UNROLL for (int h = 0; h < 2; h++) {
            int16x8_t a = whole_numbers(v + 4 * h, inverse),
                      b = whole_numbers(v + 4 * h + 2, inverse);
            vst1q_s8(q->q + 16 * h, vcombine_s8(vmovn_s16(a), vmovn_s16(b)));
            sums[h] = vaddvq_s16(vaddq_s16(a, b));
        }
        block_sums(q, sums[0], sums[1]);
    }
}

#include "kernels/products.inc"
#include "kernels/int8.inc"

#ifdef DOTPROD
const Kernels kernels_dotprod = {
    .name = "dotprod",
#else
const Kernels kernels_neon = {
    .name = "neon",
#endif
    PORTABLE_KERNELS,
    .dequantize = PORTABLE_DEQUANTIZE(simd_f16),
    .quantize = neon_quantize,
    .gemm_q8 = GEMM_Q8_TABLE,
    .soft = soft,
    .gemv = GEMV_TABLE,
    .gemm = gemm,
    .gemm_add = gemm_add,
    .gemm_add_f16 = gemm_add_f16,
    .gemm_add_i8 = gemm_add_i8,
};
