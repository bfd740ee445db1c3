/* kernels_body.h - the portable kernels, compiled once for each instruction set that includes it.
 *
 * Plain C in loops that compilers vectorise. Sums are kept in LANES partial sums that are folded in halves, so every
 * compilation of this file gives the same bits (contraction is off; no fma here).
 *
 * exp, tanh and erf are our own: polynomials fitted to the exact functions with weighted least squares (Lawson's
 * iteration) and rounded to float. Largest errors, measured over all floats of the range by tests/test_kernels.c:
 * exp 2 ulp; tanh and erf 2e-7 absolute.
 */
#include "kernels.h"

#include <math.h>

#include "quants.h"
#include "quants_write.h"

enum { LANES = 16 };

static inline float fold(float s[LANES])
{
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++)
            s[i] += s[i + half];
    return s[0];
}

/* exp(x) = 2^n exp(r), n the integer nearest to x / ln 2, ln 2 split in two so that r keeps its low bits. */
static inline float exp_f32(float x)
{
    float clamped = x < -87.3f ? -87.3f : x > 88.7f ? 88.7f : x;
    float shifted = clamped * 1.44269504f + 12582912.0f; // 1.5 * 2^23: the sum's low bits are n
    float n = shifted - 12582912.0f;
    float r = clamped - n * 0.693359375f + n * 2.12194440e-4f;
    float p = 1.3950476e-3f;
    p = p * r + 8.368882e-3f;
    p = p * r + 4.1666206e-2f;
    p = p * r + 1.6666518e-1f;
    p = p * r + 0.5f;
    p = p * (r * r) + r + 1.0f;
    /* 2^n in two steps: n reaches 128, where one step would overflow the exponent. */
    uint32_t half = (f32_bits(shifted) - 0x4b400000u + 1024u) / 2 - 512u;
    uint32_t rest = f32_bits(shifted) - 0x4b400000u - half;
    float y = p * bits_f32((half + 127u) << 23) * bits_f32((rest + 127u) << 23);
    return x < -87.3f ? 0.0f : y;
}

/* tanh(x): an odd polynomial near 0, 1 - 2 / (exp(2|x|) + 1) elsewhere. */
static inline float tanh_f32(float x)
{
    float a = x < 0 ? -x : x, s = x * x;
    float p = -5.717037e-3f;
    p = p * s + 2.0650579e-2f;
    p = p * s - 5.3743497e-2f;
    p = p * s + 1.3331491e-1f;
    p = p * s - 3.3333284e-1f;
    float small = x + x * s * p;
    float big = 1.0f - 2.0f / (exp_f32(2.0f * (a < 20.0f ? a : 20.0f)) + 1.0f);
    return !(a >= 0.625f) ? small : x < 0 ? -big : big; // NaN passes through
}

/* erf(x): an odd polynomial up to 1, 1 - exp(-q(|x|)) beyond, q fitted to -log(erfc). */
static inline float erf_f32(float x)
{
    float a = x < 0 ? -x : x, s = a < 1.0f ? x * x : 1.0f, t = a < 4.1f ? a : 4.1f;
    float p = 7.889119e-5f;
    p = p * s - 8.020841e-4f;
    p = p * s + 5.189535e-3f;
    p = p * s - 2.6854444e-2f;
    p = p * s + 1.12836e-1f;
    p = p * s - 3.7612626e-1f;
    p = p * s + 1.1283791f;
    float q = 2.1686841e-5f;
    q = q * t - 4.4133628e-4f;
    q = q * t + 4.2045615e-3f;
    q = q * t - 2.5208255e-2f;
    q = q * t + 1.0841858e-1f;
    q = q * t + 6.332199e-1f;
    q = q * t + 1.1295785f;
    q = q * t - 1.8803969e-4f;
    float big = 1.0f - exp_f32(-q);
    return !(a >= 1.0f) ? x * p : x < 0 ? -big : big;
}

static void act_silu(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] / (1.0f + exp_f32(-x[i]));
}

static void act_gelu(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = 0.5f * x[i] * (1.0f + erf_f32(x[i] * 0.70710678f));
}

static void act_gelu_tanh(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++) // sqrt(2/pi) (x + 0.044715 x^3), Hendrycks and Gimpel 2016
        x[i] = 0.5f * x[i] * (1.0f + tanh_f32(0.79788456f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
}

static void act_relu(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] < 0 ? 0 : x[i]; // NaN stays
}

static void act_relu2(float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] = x[i] < 0 ? 0 : x[i] * x[i];
}

static void mul_f32(float *x, const float *y, size_t n)
{
    for (size_t i = 0; i < n; i++)
        x[i] *= y[i];
}

static void add_scaled(float *y, const float *x, const float *scale, size_t n)
{
    for (size_t i = 0; i < n; i++)
        y[i] += scale[i] * x[i];
}

static void soft_cap(float *x, size_t n, float cap)
{
    for (size_t i = 0; i < n; i++)
        x[i] = cap * tanh_f32(x[i] / cap);
}

static float exp_sum(float *x, size_t n, float max)
{
    float s[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++)
            s[j] += x[i + (size_t)j] = exp_f32(x[i + (size_t)j] - max);
    for (; i < n; i++)
        s[i % LANES] += x[i] = exp_f32(x[i] - max);
    return fold(s);
}

static inline void scale_shift(float *y, const float *x, const float *w, const float *b, size_t n, float mean, float scale)
{
    if (w && b)
        for (size_t i = 0; i < n; i++)
            y[i] = (x[i] - mean) * scale * w[i] + b[i];
    else if (w)
        for (size_t i = 0; i < n; i++)
            y[i] = (x[i] - mean) * scale * w[i];
    else
        for (size_t i = 0; i < n; i++)
            y[i] = (x[i] - mean) * scale + (b ? b[i] : 0.0f);
}

/* Sum of (x - mean)^power for power 1 or 2. */
static inline float moment(const float *x, size_t n, float mean, int power)
{
    float s[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int j = 0; j < LANES; j++) {
            float d = x[i + (size_t)j] - mean;
            s[j] += power == 1 ? d : d * d;
        }
    for (; i < n; i++) {
        float d = x[i] - mean;
        s[i % LANES] += power == 1 ? d : d * d;
    }
    return fold(s);
}

static void norm_rms(float *y, const float *x, const float *w, const float *b, size_t n, float eps)
{
    scale_shift(y, x, w, b, n, 0.0f, 1.0f / sqrtf(moment(x, n, 0.0f, 2) / (float)n + eps));
}

static void norm_layer(float *y, const float *x, const float *w, const float *b, size_t n, float eps)
{
    float mean = moment(x, n, 0.0f, 1) / (float)n;
    scale_shift(y, x, w, b, n, mean, 1.0f / sqrtf(moment(x, n, mean, 2) / (float)n + eps));
}

static void f32_to_f16(const float *src, uint16_t *dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = f32_f16(src[i]);
}

static void i8_to_f32(const int8_t *src, float *dst, size_t n)
{
    for (size_t i = 0; i < n; i++)
        dst[i] = (float)src[i];
}

/* What a block holds beside its scale and its bytes, given their sums in either half. */
static inline void block_sums(Block8 *q, int32_t low, int32_t high)
{
    q->scaled_sum = q->scale * (float)(low + high);
    q->minus_sum = -(low + high);
    q->minus_low = -low;
}

/* Blocks of 32; a NaN or infinity makes all products of its block NaN. */
static inline void quantize(const float *x, Block8 *q, size_t n)
{
    for (; n; n -= 32, x += 32, q++) {
        float inverse;
        int32_t low = 0, high = 0, whole[32];
        q->scale = byte_scale(x, 32, &inverse);
        for (int i = 0; i < 32; i++)
            whole[i] = to_byte(x[i], inverse);
        for (int i = 0; i < 16; i++) {
            low += whole[i];
            high += whole[i + 16];
        }
        for (int i = 0; i < 32; i++)
            q->q[i] = (int8_t)whole[i];
        block_sums(q, low, high);
    }
}

#define PORTABLE_DEQUANTIZE(f16) \
    {[TYPE_F32] = dequantize_f32, [TYPE_F16] = f16, [TYPE_BF16] = dequantize_bf16, \
     [TYPE_Q8_0] = dequantize_q8_0, [TYPE_Q4_0] = dequantize_q4_0, [TYPE_Q4_1] = dequantize_q4_1, \
     [TYPE_Q5_0] = dequantize_q5_0, [TYPE_Q5_1] = dequantize_q5_1, [TYPE_Q2_K] = dequantize_q2_k, \
     [TYPE_Q3_K] = dequantize_q3_k, [TYPE_Q4_K] = dequantize_q4_k, [TYPE_Q5_K] = dequantize_q5_k, \
     [TYPE_Q6_K] = dequantize_q6_k, [TYPE_IQ4_NL] = dequantize_iq4_nl, [TYPE_IQ4_XS] = dequantize_iq4_xs}

#define PORTABLE_ENCODE \
    {[TYPE_F32] = quantize_f32, [TYPE_F16] = quantize_f16, [TYPE_BF16] = quantize_bf16, [TYPE_Q8_0] = quantize_q8_0, \
     [TYPE_Q4_0] = quantize_q4_0, [TYPE_Q4_1] = quantize_q4_1, [TYPE_Q5_0] = quantize_q5_0, [TYPE_Q5_1] = quantize_q5_1, \
     [TYPE_Q4_K] = quantize_q4_k, [TYPE_Q5_K] = quantize_q5_k, [TYPE_Q6_K] = quantize_q6_k}

/* What every table takes from here; dequantisation and the matrix products it may bring itself. */
#define PORTABLE_KERNELS \
    .encode = PORTABLE_ENCODE, .norm = {[NORM_RMS] = norm_rms, [NORM_LAYER] = norm_layer}, \
    .act = {[ACT_SILU] = act_silu, [ACT_GELU] = act_gelu, [ACT_GELU_TANH] = act_gelu_tanh, [ACT_RELU] = act_relu, \
            [ACT_RELU2] = act_relu2}, \
    .mul = mul_f32, .add_scaled = add_scaled, .soft_cap = soft_cap, .exp_sum = exp_sum, .f32_to_f16 = f32_to_f16, .i8_to_f32 = i8_to_f32
