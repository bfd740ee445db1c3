/* quants_write.h - block formats: quantisation, the other direction of quants.h.
 *
 * Inline for the reason given there, and with the same promise: the same bytes from every instruction set. One function
 * a format, for finite values of at most 65504 (what a block's scale can hold):
 *
 *     quantize_X(src, dst, n): n floats (a multiple of the block) at src -> format X at dst
 *
 * A group of values is rounded to d q + m, q = 0 .. top. The smallest error is found among PAIRS pairs (d, m): grids from
 * the values' extremes, narrower and wider, each moved once to the weighted least squares fit of what it rounds to, and
 * judged by the error that remains. The innermost loops run over the pairs, so they vectorise without sums across lanes.
 * An error counts with the weight rms + |x|: that of a large value costs more than that of a small one.
 */
#ifndef QUANTS_WRITE_H
#define QUANTS_WRITE_H

#include <math.h>
#include <stdbool.h>

#include "quants.h"

/* d and m of a format's grid: m is tied to d so that 0 is in the middle; or free; or at most 0 (and d at least 0). */
typedef enum { MIN_TIED, MIN_FREE, MIN_BELOW } MinKind;

typedef struct {
    int n;     // values of a group, 16 or 32
    float top; // largest q
    MinKind min;
} Grid;

enum { PAIRS = 16, GROUP = 32 };

typedef struct {
    float d[PAIRS], m[PAIRS];
} Pairs;

static inline void store_u16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

/* The float that is stored for v in a half. */
static inline float as_f16(float v)
{
    return f16_f32(f32_f16(v));
}

/* 1 / d, 0 where that is out of reach. The division is not conditional: compilers would not vectorise it. */
static inline float reciprocal(float d)
{
    return 1.0f / (fabsf(d) > 1e-37f ? d : INFINITY);
}

/* Nearest of 0 .. top; adding 1.5 * 2^23 leaves no bits for a fraction. (With a choice in place of the sum of v and |v|, or
 * with the other choice earlier, GCC makes branches and does not vectorise the loops around; nor does it where refine() and
 * pick() are inlined.) */
static inline float round_to(float v, float top)
{
    v = (v + 12582912.0f) - 12582912.0f;
    v = 0.5f * (v + fabsf(v));
    return v < top ? v : top;
}

static inline void weigh(const float *x, int n, float *w)
{
    float squares = 0;
    for (int i = 0; i < n; i++)
        squares += x[i] * x[i];
    float rms = sqrtf(squares / (float)n);
    for (int i = 0; i < n; i++)
        w[i] = rms + fabsf(x[i]);
}

/* Grids over the values' span: top steps in the first, top - 1.5 to top + 0.6 in the others. A tied grid has one step more on
 * the negative side of d, which the largest value gets. */
static inline void seed(const Grid *g, const float *x, Pairs *p)
{
    float low = x[0], high = x[0], half = (g->top + 1) / 2;
    for (int i = 1; i < g->n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    if (g->min == MIN_BELOW && low > 0)
        low = 0;
    for (int c = 0; c < PAIRS; c++) {
        float more = c ? -1.5f + 0.15f * (float)(c - 1) : 0.0f;
        bool tied = g->min == MIN_TIED;
        p->d[c] = tied ? (-low > high ? low : high) / -(half + more) : (high - low) / (g->top + more);
        p->m[c] = tied ? -half * p->d[c] : low;
    }
}

/* Move every pair to the least squares fit of d q + m to x, q being what the pair rounds x to. */
static __attribute__((noinline)) void refine(const Grid *g, const float *x, const float *w, Pairs *p)
{
    float inv[PAIRS], q1[PAIRS] = {0}, q2[PAIRS] = {0}, xq[PAIRS] = {0}, w1 = 0, x1 = 0;
    float half = g->min == MIN_TIED ? (g->top + 1) / 2 : 0.0f;
    for (int c = 0; c < PAIRS; c++)
        inv[c] = reciprocal(p->d[c]);
    for (int i = 0; i < g->n; i++) {
        w1 += w[i];
        x1 += w[i] * x[i];
        for (int c = 0; c < PAIRS; c++) {
            float q = round_to((x[i] - p->m[c]) * inv[c], g->top) - half, wq = w[i] * q;
            q1[c] += wq;
            q2[c] += wq * q;
            xq[c] += wq * x[i];
        }
    }
    for (int c = 0; c < PAIRS; c++) {
        float slope = xq[c] * reciprocal(q2[c]), det = w1 * q2[c] - q1[c] * q1[c]; // slope: d of the line through m = 0
        float d = (w1 * xq[c] - x1 * q1[c]) * reciprocal(det), m = (x1 - d * q1[c]) * reciprocal(w1);
        bool through = g->min == MIN_TIED || (g->min == MIN_BELOW && (m > 0 || d < 0));
        slope = g->min == MIN_BELOW ? 0.5f * (slope + fabsf(slope)) : slope;
        p->d[c] = through ? slope : d;
        p->m[c] = through ? -half * slope : m;
    }
}

/* The pair with the smallest weighted squared error. */
static __attribute__((noinline)) int pick(const Grid *g, const float *x, const float *w, const Pairs *p)
{
    float inv[PAIRS], error[PAIRS] = {0};
    for (int c = 0; c < PAIRS; c++)
        inv[c] = reciprocal(p->d[c]);
    for (int i = 0; i < g->n; i++)
        for (int c = 0; c < PAIRS; c++) {
            float r = round_to((x[i] - p->m[c]) * inv[c], g->top) * p->d[c] + p->m[c] - x[i];
            error[c] += w[i] * (r * r);
        }
    int best = 0;
    for (int c = 1; c < PAIRS; c++)
        best = error[c] < error[best] ? c : best;
    return best;
}

static inline void round_group(const Grid *g, const float *x, float d, float m, uint8_t *q)
{
    float inv = reciprocal(d);
    for (int i = 0; i < g->n; i++)
        q[i] = (uint8_t)(int)round_to((x[i] - m) * inv, g->top);
}

/* ---- plain types ------------------------------------------------------------------------------------------- */

static inline void quantize_f32(const float *restrict src, void *restrict dst, size_t n)
{
    memcpy(dst, src, n * sizeof *src);
}

static inline void quantize_f16(const float *restrict src, void *restrict dst, size_t n)
{
    uint8_t *restrict p = dst;
    for (size_t i = 0; i < n; i++)
        store_u16(p + 2 * i, f32_f16(src[i]));
}

/* Round to nearest even. */
static inline void quantize_bf16(const float *restrict src, void *restrict dst, size_t n)
{
    uint8_t *restrict p = dst;
    for (size_t i = 0; i < n; i++) {
        uint32_t u = f32_bits(src[i]);
        store_u16(p + 2 * i, (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16));
    }
}

/* ---- 32 values a block ------------------------------------------------------------------------------------- */

/* At eight bits a search gains nothing. Rounded to nearest, ties away from 0, by the scale before it becomes a half: the
 * bytes that every writer of the format makes. */
static inline void quantize_q8_0(const float *restrict src, void *restrict dst, size_t n)
{
    uint8_t *restrict p = dst;
    for (size_t b = 0; b < n; b += 32, p += 34, src += 32) {
        float most = 0;
        for (int i = 0; i < 32; i++)
            most = fabsf(src[i]) > most ? fabsf(src[i]) : most;
        float d = most / 127.0f, inv = reciprocal(d);
        store_u16(p, f32_f16(d));
        for (int i = 0; i < 32; i++) {
            float a = fabsf(src[i] * inv), whole = (float)(int)a;
            int q = (int)whole + (a - whole >= 0.5f);
            p[2 + i] = (uint8_t)(src[i] * inv < 0 ? -q : q);
        }
    }
}

/* {f16 d; [f16 m;] [u32 h;] u8 q[16]}: the formats of 4 and 5 bits, see quants.h. */
static inline void quantize_32(const float *src, uint8_t *p, size_t n, int bits, MinKind min)
{
    Grid g = {32, (float)((1 << bits) - 1), min};
    for (size_t b = 0; b < n; b += 32, src += 32) {
        float w[GROUP], half = (g.top + 1) / 2;
        uint8_t q[GROUP];
        Pairs pairs;
        weigh(src, 32, w);
        seed(&g, src, &pairs);
        refine(&g, src, w, &pairs);
        for (int c = 0; c < PAIRS; c++) { // judged as they are stored
            pairs.d[c] = as_f16(pairs.d[c]);
            pairs.m[c] = min == MIN_TIED ? -half * pairs.d[c] : as_f16(pairs.m[c]);
        }
        int best = pick(&g, src, w, &pairs);
        round_group(&g, src, pairs.d[best], pairs.m[best], q);
        store_u16(p, f32_f16(pairs.d[best]));
        p += 2;
        if (min == MIN_FREE) {
            store_u16(p, f32_f16(pairs.m[best]));
            p += 2;
        }
        if (bits == 5) {
            uint32_t high = 0;
            for (int i = 0; i < 32; i++)
                high |= (uint32_t)(q[i] >> 4) << i;
            store_u16(p, (uint16_t)high);
            store_u16(p + 2, (uint16_t)(high >> 16));
            p += 4;
        }
        for (int i = 0; i < 16; i++)
            *p++ = (uint8_t)((q[i] & 15) | (q[i + 16] & 15) << 4);
    }
}

static inline void quantize_q4_0(const float *src, void *dst, size_t n)
{
    quantize_32(src, dst, n, 4, MIN_TIED);
}

static inline void quantize_q4_1(const float *src, void *dst, size_t n)
{
    quantize_32(src, dst, n, 4, MIN_FREE);
}

static inline void quantize_q5_0(const float *src, void *dst, size_t n)
{
    quantize_32(src, dst, n, 5, MIN_TIED);
}

static inline void quantize_q5_1(const float *src, void *dst, size_t n)
{
    quantize_32(src, dst, n, 5, MIN_FREE);
}

/* ---- 256 values a block ------------------------------------------------------------------------------------ */

/* The best d and m of one group, with its weights. */
static inline void fit_group(const Grid *g, const float *x, float *w, float *d, float *m)
{
    Pairs pairs;
    weigh(x, g->n, w);
    seed(g, x, &pairs);
    refine(g, x, w, &pairs);
    int best = pick(g, x, w, &pairs);
    *d = pairs.d[best];
    *m = pairs.m[best];
}

static inline int clamp(int v, int low, int high)
{
    return v < low ? low : v > high ? high : v;
}

/* {f16 d, dmin; u8 scales[12]; [u8 high[32];] u8 q[128]}: groups of 32. The scales and mins of the groups are integers
 * times d and dmin; of the integers around those of the best fit the 4 x 4 are tried. */
static inline void quantize_k4(const float *src, uint8_t *p, size_t n, int bits)
{
    Grid g = {32, (float)((1 << bits) - 1), MIN_BELOW};
    for (size_t b = 0; b < n; b += 256, src += 256) {
        float w[8][GROUP], d[8], m[8], most_d = 0, most_m = 0;
        int sc[8], mn[8];
        uint8_t q[8][GROUP];
        for (int j = 0; j < 8; j++) {
            fit_group(&g, src + 32 * j, w[j], &d[j], &m[j]);
            most_d = d[j] > most_d ? d[j] : most_d;
            most_m = -m[j] > most_m ? -m[j] : most_m;
        }
        float dd = as_f16(most_d / 63), dm = as_f16(most_m / 63);
        for (int j = 0; j < 8; j++) {
            Pairs pairs;
            int s = (int)(d[j] * reciprocal(dd)) - 1, k = (int)(-m[j] * reciprocal(dm)) - 1;
            for (int c = 0; c < PAIRS; c++) {
                pairs.d[c] = dd * (float)clamp(s + c % 4, 0, 63);
                pairs.m[c] = -(dm * (float)clamp(k + c / 4, 0, 63));
            }
            int best = pick(&g, src + 32 * j, w[j], &pairs);
            round_group(&g, src + 32 * j, pairs.d[best], pairs.m[best], q[j]);
            sc[j] = clamp(s + best % 4, 0, 63);
            mn[j] = clamp(k + best / 4, 0, 63);
        }
        store_u16(p, f32_f16(dd));
        store_u16(p + 2, f32_f16(dm));
        for (int j = 0; j < 4; j++) {
            p[4 + j] = (uint8_t)(sc[j] | sc[j + 4] >> 4 << 6);
            p[8 + j] = (uint8_t)(mn[j] | mn[j + 4] >> 4 << 6);
            p[12 + j] = (uint8_t)((sc[j + 4] & 15) | (mn[j + 4] & 15) << 4);
        }
        p += 16;
        for (int i = 0; bits == 5 && i < 32; i++) {
            int high = 0;
            for (int j = 0; j < 8; j++)
                high |= q[j][i] >> 4 << j;
            *p++ = (uint8_t)high;
        }
        for (int j = 0; j < 8; j += 2)
            for (int i = 0; i < 32; i++)
                *p++ = (uint8_t)((q[j][i] & 15) | (q[j + 1][i] & 15) << 4);
    }
}

static inline void quantize_q4_k(const float *src, void *dst, size_t n)
{
    quantize_k4(src, dst, n, 4);
}

static inline void quantize_q5_k(const float *src, void *dst, size_t n)
{
    quantize_k4(src, dst, n, 5);
}

/* {u8 low[128]; u8 high[64]; i8 scales[16]; f16 d}: groups of 16, whose scales are integers times d; the 16 around that of
 * the best fit are tried. */
static inline void quantize_q6_k(const float *src, void *dst, size_t n)
{
    uint8_t *p = dst;
    Grid g = {16, 63, MIN_TIED};
    for (size_t b = 0; b < n; b += 256, p += 210, src += 256) {
        float w[16][GROUP], d[16], m, most = 0;
        uint8_t q[256];
        for (int j = 0; j < 16; j++) {
            fit_group(&g, src + 16 * j, w[j], &d[j], &m);
            most = fabsf(d[j]) > fabsf(most) ? d[j] : most;
        }
        float dd = as_f16(most / -128);
        for (int j = 0; j < 16; j++) {
            Pairs pairs;
            int s = (int)(d[j] * reciprocal(dd)) - PAIRS / 2;
            for (int c = 0; c < PAIRS; c++) {
                pairs.d[c] = dd * (float)clamp(s + c, -128, 127);
                pairs.m[c] = -32 * pairs.d[c];
            }
            int best = pick(&g, src + 16 * j, w[j], &pairs);
            round_group(&g, src + 16 * j, pairs.d[best], pairs.m[best], q + 16 * j);
            p[192 + j] = (uint8_t)clamp(s + best, -128, 127);
        }
        store_u16(p + 208, f32_f16(dd));
        for (int i = 0; i < 128; i++) {
            const uint8_t *a = q + 128 * (i / 64) + i % 64;
            p[i] = (uint8_t)((a[0] & 15) | (a[64] & 15) << 4);
        }
        for (int i = 0; i < 64; i++) {
            const uint8_t *a = q + 128 * (i / 32) + i % 32;
            p[128 + i] = (uint8_t)(a[0] >> 4 | a[32] >> 4 << 2 | a[64] >> 4 << 4 | a[96] >> 4 << 6);
        }
    }
}

#endif
