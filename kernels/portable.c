/* portable.c - the portable kernel table, which is complete and the reference for all others.
 *
 * Most of it is kernels/portable.inc, which the other tables share; here are the plain loops for
 * what they replace.
 */
#include "kernels/vec.h"

static inline float f16_value(uint16_t h)
{
    return f16_f32(h);
}

static inline Bytes bytes_lookup(const int8_t table[16], Bytes index)
{
    uint8_t b[16];
    memcpy(b, &index, sizeof b);
    for (int i = 0; i < 16; i++)
        b[i] = (uint8_t)table[b[i]];
    return bytes_load(b);
}

static inline void put16(float *dst, Bytes q, float scale)
{
    for (int i = 0; i < 16; i++)
        dst[i] = (float)(int8_t)q[i] * scale;
}

static inline void put16_min(float *dst, Bytes q, float scale, float min)
{
    for (int i = 0; i < 16; i++)
        dst[i] = (float)(int8_t)q[i] * scale + min;
}

#include "kernels/portable.inc"

static void dequantize_f16(const void *restrict src, float *restrict dst, size_t n)
{
    const uint8_t *p = src;
    for (size_t i = 0; i < n; i++)
        dst[i] = f16_f32(load_u16(p + 2 * i));
}

/* A NaN or infinity makes the scale of its block NaN, and so all products. */
static void pack_activations(const float *x, PackedBlock *q, size_t n)
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
        set_sums(q, low, high);
    }
}

static void gemm(size_t rows, size_t cols, size_t n, const float *w, size_t ldw, const float *x,
                 size_t ldx, float *y, size_t ldy)
{
    for (size_t c = 0; c < cols; c++)
        for (size_t r = 0; r < rows; r++) {
            const float *a = w + r * ldw, *b = x + c * ldx;
            float s[LANES] = {0};
            size_t k = 0;
            for (; k + LANES <= n; k += LANES)
                for (int j = 0; j < LANES; j++)
                    s[j] += a[k + (size_t)j] * b[k + (size_t)j];
            for (; k < n; k++)
                s[k % LANES] += a[k] * b[k];
            y[c * ldy + r] = fold(s);
        }
}

static void state_step(float *S, const float *before, size_t key_dim, const float *q,
                       const float *k, const float *v, float decay, float rate, bool corrects,
                       float *out)
{
    float d[STATE_COLS] = {0}, sum[STATE_COLS] = {0};
    for (size_t i = 0; corrects && i < key_dim; i++)
        for (int j = 0; j < STATE_COLS; j++)
            d[j] += before[i * STATE_COLS + (size_t)j] * k[i];
    for (int j = 0; j < STATE_COLS; j++)
        d[j] = rate * (v[j] - decay * d[j]);
    for (size_t i = 0; i < key_dim; i++)
        for (int j = 0; j < STATE_COLS; j++) {
            float s = decay * before[i * STATE_COLS + (size_t)j] + k[i] * d[j];
            S[i * STATE_COLS + (size_t)j] = s;
            sum[j] += s * q[i];
        }
    for (int j = 0; j < STATE_COLS; j++)
        out[j] = sum[j];
}

#define GEMM_ADD(name, type, value)                                                                \
    static void name(size_t rows, size_t n, size_t width, const float *a, size_t lda,              \
                     const type *b, size_t ldb, float *y, size_t ldy)                              \
    {                                                                                              \
        for (size_t r = 0; r < rows; r++)                                                          \
            for (size_t k = 0; k < n; k++)                                                         \
                for (size_t i = 0; i < width; i++)                                                 \
                    y[r * ldy + i] += a[r * lda + k] * value(b[k * ldb + i]);                      \
    }

GEMM_ADD(gemm_add, float, )
GEMM_ADD(gemm_add_f16, uint16_t, f16_f32)
GEMM_ADD(gemm_add_i8, int8_t, (float))

static float online_softmax(float *x, size_t n, float scale, float *max)
{
    for (size_t i = 0; i < n; i++) {
        x[i] *= scale;
        *max = x[i] > *max ? x[i] : *max;
    }
    return exp_sum(x, n, *max);
}

const Kernels kernels_scalar = {.name = "scalar", PORTABLE_KERNELS};
