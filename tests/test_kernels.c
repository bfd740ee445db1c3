/* test_kernels.c - every kernel of every table that this machine can run, against the portable
 * table or libm.
 *
 * Tolerances: what is compiled from kernels/portable.inc must give the same bits everywhere. Matrix
 * products differ from a double-precision sum by rounding only: at most n * 2^-24 of the sum of
 * absolute products (the textbook bound for any order of n additions). exp, tanh and erf: the
 * errors that kernels/portable.inc documents.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "kernels/kernels.h"

static uint64_t state = 1;

static uint32_t random_u32(void)
{
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(state >> 32);
}

static float random_float(void) // about -2 .. 2
{
    return (float)random_u32() * 0x1p-30f - 2.0f;
}

static float *floats(size_t n)
{
    float *x = malloc((n ? n : 1) * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = random_float();
    return x;
}

/* Change random blocks so that no scale is inf or NaN, wherever a f16 may be in them: IQ1_M has
 * four bits of it here and there. Of the powers of two that MXFP4 has, those of other types stay.
 */
static void tame_scales(uint32_t type, uint8_t *w, size_t bytes)
{
    size_t block = type_info(type)->bytes;
    for (size_t i = 1; i < bytes; i++)
        if ((w[i] & 0x7c) == 0x7c)
            w[i] &= 0xbf;
    for (size_t b = 0; b < bytes; b += block)
        if (type == TYPE_IQ1_M)
            w[b + block - 1] &= 0xbf;
        else if (type == TYPE_MXFP4)
            w[b] = (uint8_t)(112 + w[b] % 32);
}

/* Random blocks dequantise to the same bits as in the portable table. Scales that are inf or NaN
 * are avoided: only their sign and payload may differ. */
static void test_dequantize(const Kernels *k)
{
    const Kernels *ref = kernels_at(0);
    for (uint32_t type = 0; type < TYPE_COUNT; type++) {
        if (!ref->dequantize[type])
            continue;
        const TypeInfo *ti = type_info(type);
        size_t blocks = 64, n = blocks * ti->block, bytes = blocks * ti->bytes;
        uint8_t *src = malloc(bytes + 1);
        float *a = malloc(n * sizeof *a), *b = malloc(n * sizeof *b);
        for (int round = 0; round < 50; round++) {
            for (size_t i = 0; i < bytes + 1; i++)
                src[i] = (uint8_t)random_u32();
            int shift = round % 2; // unaligned too
            tame_scales(type, src + shift, bytes);
            ref->dequantize[type](src + shift, a, n);
            k->dequantize[type](src + shift, b, n);
            CHECK(!memcmp(a, b, n * sizeof *a), "%s %s", k->name, ti->name);
        }
        free(src);
        free(a);
        free(b);
    }
}

/* Quantisation gives the bytes of the portable table, for plain values, groups of zeros, outliers
 * and tiny numbers. */
static void test_quantize(const Kernels *k)
{
    enum { N = 64 * 256 };
    float *x = floats(N);
    uint8_t *a = malloc(N * sizeof *x), *b = malloc(N * sizeof *x);
    for (size_t i = 0; i < N; i++) {
        size_t block = i / 256;
        x[i] *= block % 8 == 1 ? 1e-6f
              : block % 8 == 2 ? 30000.0f
              : block % 8 == 3 ? x[i] * x[i]
                               : 1;
        x[i] = block % 8 == 4 && i % 64 < 32 ? 0
             : block % 8 == 5                ? fabsf(x[i])
             : block % 8 == 6                ? 1e-30f * x[i]
                                             : x[i];
    }
    for (uint32_t type = 0; type < TYPE_COUNT; type++) {
        if (!k->quantize[type])
            continue;
        size_t bytes = N / type_info(type)->block * type_info(type)->bytes;
        kernels_at(0)->quantize[type](x, a, N);
        k->quantize[type](x, b, N);
        CHECK(!memcmp(a, b, bytes), "%s %s", k->name, type_info(type)->name);
    }
    free(x);
    free(a);
    free(b);
}

static void test_gemm(const Kernels *k)
{
    static const size_t sizes[][3] = {{1, 1, 1},    {8, 1, 64},  {9, 2, 33},   {32, 7, 576},
                                      {5, 13, 100}, {31, 6, 17}, {3, 4, 1000}, {33, 25, 15}};
    for (size_t c = 0; c < sizeof sizes / sizeof *sizes; c++) {
        size_t rows = sizes[c][0], cols = sizes[c][1], n = sizes[c][2], ldw = n + 3, ldx = n + 1,
               ldy = rows + 2;
        float *w = floats(rows * ldw), *x = floats(cols * ldx), *y = floats(cols * ldy),
              *one = floats(ldy);
        k->gemm(rows, cols, n, w, ldw, x, ldx, y, ldy);
        for (size_t t = 0; t < cols; t++) {
            k->gemm(rows, 1, n, w, ldw, x + t * ldx, ldx, one, ldy);
            CHECK(!memcmp(one, y + t * ldy, rows * sizeof *y),
                  "%s gemm: one column and many differ, n %zu", k->name, n);
            for (size_t r = 0; r < rows; r++) {
                double sum = 0, size = 0;
                for (size_t i = 0; i < n; i++) {
                    sum += (double)w[r * ldw + i] * x[t * ldx + i];
                    size += fabs((double)w[r * ldw + i] * x[t * ldx + i]);
                }
                CHECK(fabs(sum - y[t * ldy + r]) <= size * (double)n * 0x1p-24 + 1e-30,
                      "%s gemm (%zu, %zu, %zu): %g, want %g", k->name, rows, cols, n,
                      y[t * ldy + r], sum);
                float alone;
                k->gemm(1, 1, n, w + r * ldw, ldw, x + t * ldx, ldx, &alone, 1);
                CHECK(alone == y[t * ldy + r], "%s gemm: one row and many differ, n %zu", k->name,
                      n);
            }
        }
        free(w);
        free(x);
        free(y);
        free(one);
    }
}

/* Blocks of 32 activations: bytes within half a step, sums as stated, NaN and infinity kept as NaN.
 */
static void test_pack_activations(const Kernels *k)
{
    enum { N = 32 * 40 };
    static float x[N];
    static PackedBlock q[N / 32], ref[N / 32];
    for (int i = 0; i < N; i++)
        x[i] = random_float() * ldexpf(1, (i / 32 - 20) * 5); // 2^-100 to 2^95
    memset(x, 0, 32 * sizeof *x);
    x[40] = INFINITY;
    x[70] = NAN;
    k->pack_activations(x, q, N);
    kernels_at(0)->pack_activations(x, ref, N);
    CHECK(!memcmp(q, ref, sizeof q), "%s pack_activations: other bits than the portable one",
          k->name);
    CHECK(isnan(q[1].scale) && isnan(q[2].scale), "%s pack_activations: %g, %g, want NaN", k->name,
          q[1].scale, q[2].scale);
    for (int b = 0; b < N / 32; b++) {
        int sum = 0, low = 0;
        for (int i = 0; i < 32; i++) {
            sum += q[b].q[i];
            low += i < 16 ? q[b].q[i] : 0;
            CHECK(b == 1 || b == 2
                      || fabsf(x[b * 32 + i] - q[b].scale * (float)q[b].q[i])
                             <= q[b].scale * 0.50001f + 1e-30f,
                  "%s pack_activations: %g became %d times %g", k->name, x[b * 32 + i], q[b].q[i],
                  q[b].scale);
        }
        CHECK(q[b].minus_sum == -sum && q[b].minus_low == -low,
              "%s pack_activations: sums of block %d", k->name, b);
        CHECK(isnan(q[b].scale) || q[b].scaled_sum == q[b].scale * (float)sum,
              "%s pack_activations: scaled sum of block %d", k->name, b);
    }
}

/* Rows of every quantised type times activations in bytes. The reference is the sum in double of
 * dequantised weights and activations; what remains is float rounding: some steps a block, each of
 * at most the block's largest products. Fills of one byte drive the integer sums to their limits.
 */
static void test_gemm_q8(const Kernels *k)
{
    static const size_t sizes[][3] = {{32, 1, 2}, {1, 1, 1},  {32, 13, 3}, {17, 7, 2}, {31, 6, 1},
                                      {5, 4, 2},  {16, 3, 1}, {24, 2, 3},  {9, 5, 1}};
    static const int fills[] = {-1, -1, 0xff, 0x80, 0x7f, 0x00, 0x08};
    for (uint32_t type = 0; type < TYPE_COUNT; type++)
        for (size_t round = 0; k->gemm_q8[type] && round < sizeof fills / sizeof *fills * 9;
             round++) {
            const TypeInfo *ti = type_info(type);
            const size_t *size = sizes[round % 9];
            size_t rows = size[0], cols = size[1], n = size[2] * (ti->block < 64 ? 96 : ti->block),
                   ldy = rows + 3;
            size_t row_bytes = n / ti->block * ti->bytes;
            int fill = fills[round / 9];
            uint8_t *w = malloc(rows * row_bytes);
            for (size_t i = 0; i < rows * row_bytes; i++)
                w[i] = (uint8_t)(fill < 0 ? random_u32() : (uint32_t)fill);
            if (fill < 0)
                tame_scales(type, w, rows * row_bytes);
            for (size_t b = 0; b < rows * row_bytes && fill > 0x70;
                 b += ti->bytes) // of a fill too: they are at either end
                w[b + 1] = w[b + 3] = w[b + ti->bytes - 1] = w[b + ti->bytes - 3] = 0x3c;
            for (size_t b = 0; b < rows * row_bytes && fill >= 0 && type == TYPE_MXFP4;
                 b += ti->bytes)
                w[b] = 127;
            float *x = floats(cols * n), *row = malloc(n * sizeof *row),
                  *y = malloc(cols * ldy * sizeof *y);
            for (size_t i = 0; i < cols * n && fill >= 0; i++)
                x[i] = round % 2 ? -1 : 1;
            PackedBlock *q = malloc(cols * n / 32 * sizeof *q);
            float *scratch = malloc(GEMM_ROWS * n * sizeof *scratch), one;
            k->pack_activations(x, q, cols * n);
            for (size_t i = 0; i < cols * ldy; i++)
                y[i] = 0.5f;
            k->gemm_q8[type](rows, cols, n, w, row_bytes, q, y, ldy, scratch);
            for (size_t i = 0; i < cols * ldy; i++)
                CHECK(i % ldy < rows || y[i] == 0.5f, "%s gemm_q8 %s: wrote beyond the rows",
                      k->name, ti->name);
            for (size_t r = 0; r < rows; r++) {
                kernels_at(0)->dequantize[type](w + r * row_bytes, row, n);
                for (size_t c = 0; c < cols; c++) {
                    double sum = 0, bound = 0;
                    for (size_t b = 0; b < n / 32; b++) {
                        const PackedBlock *a = q + c * (n / 32) + b;
                        double largest = 0;
                        for (int i = 0; i < 32; i++) {
                            sum += (double)row[b * 32 + (size_t)i] * a->scale * a->q[i];
                            largest = fmax(largest, fabs(row[b * 32 + (size_t)i]));
                        }
                        bound += 32 * 127 * largest * a->scale;
                    }
                    double got = y[c * ldy + r];
                    CHECK(fabs(sum - got) <= bound * (double)(n / 32 + 8) * 0x1p-24,
                          "%s gemm_q8 %s (%zu, %zu, %zu), fill %d: row %zu: %g, want %g", k->name,
                          ti->name, rows, cols, n, fill, r, got, sum);
                    k->gemm_q8[type](1, 1, n, w + r * row_bytes, row_bytes, q + c * (n / 32), &one,
                                     1, scratch);
                    CHECK(!memcmp(&one, &y[c * ldy + r], sizeof one),
                          "%s gemm_q8 %s: one row and column and many differ", k->name, ti->name);
                }
            }
            free(w);
            free(x);
            free(row);
            free(y);
            free(q);
            free(scratch);
        }
}

/* Every power of two that MXFP4 has, with activations of about its inverse. */
static void test_mxfp4_scales(const Kernels *k)
{
    static float scratch[GEMM_ROWS * 32];
    for (int e = 0; k->gemm_q8[TYPE_MXFP4] && e < 256; e++) {
        BlockMXFP4 w = {.scale = (uint8_t)e};
        memset(w.quants, 0x72, sizeof w.quants); // 2 and 12
        float x[32], y, largest = ldexpf(1, e < 28 ? 100 : e > 228 ? -100 : 128 - e);
        for (int i = 0; i < 32; i++)
            x[i] = i % 2 ? largest : -largest / 2;
        PackedBlock q;
        k->pack_activations(x, &q, 32);
        k->gemm_q8[TYPE_MXFP4](1, 1, 32, &w, sizeof w, &q, &y, 1, scratch);
        double want = ldexp((2 + 12) * (double)-q.minus_low * q.scale, e - 128);
        CHECK(q.minus_sum == 2 * q.minus_low && fabs(y - want) <= 1e-6 * fabs(want),
              "%s gemm_q8 MXFP4, scale %d: %g, want %g", k->name, e, y, want);
    }
}

/* Rows and columns of bfloat16s against the sum in double. Sums are floats: a step's error is at
 * most half a unit of the largest sum on the way, and each value makes a step. */
static void test_gemm_bf16(const Kernels *k)
{
    static const size_t sizes[][3] = {{32, 1, 96},  {1, 1, 1},     {32, 13, 64},  {17, 7, 33},
                                      {31, 6, 100}, {5, 12, 4100}, {8, 20, 2050}, {9, 5, 31}};
    for (size_t i = 0; k->bf16 && i < sizeof sizes / sizeof *sizes; i++) {
        size_t rows = sizes[i][0], cols = sizes[i][1], n = sizes[i][2], ldy = rows + 3;
        float *w = floats(rows * n), *x = floats(cols * n), *y = floats(cols * ldy), one;
        uint16_t *wh = malloc(rows * n * 2), *xh = malloc(cols * n * 2),
                 *scratch = malloc(GEMM_ROWS * (n + 32) * 2);
        k->quantize[TYPE_BF16](w, wh, rows * n);
        k->quantize[TYPE_BF16](x, xh, cols * n);
        k->dequantize[TYPE_BF16](wh, w, rows * n);
        k->dequantize[TYPE_BF16](xh, x, cols * n);
        for (size_t j = 0; j < cols * ldy; j++)
            y[j] = 0.5f;
        k->bf16->gemm(rows, cols, n, wh, n * 2, xh, y, ldy, scratch);
        for (size_t j = 0; j < cols * ldy; j++)
            CHECK(j % ldy < rows || y[j] == 0.5f, "%s gemm_bf16: wrote beyond the rows", k->name);
        for (size_t c = 0; c < cols; c++)
            for (size_t r = 0; r < rows; r++) {
                double sum = 0, size = 0;
                for (size_t j = 0; j < n; j++) {
                    sum += (double)w[r * n + j] * x[c * n + j];
                    size += fabs((double)w[r * n + j] * x[c * n + j]);
                }
                double got = y[c * ldy + r];
                CHECK(fabs(sum - got) <= size * (double)(n / 16 + 6) * 0x1p-24,
                      "%s gemm_bf16 (%zu, %zu, %zu): row %zu, column %zu: %g, want %g", k->name,
                      rows, cols, n, r, c, got, sum);
                k->bf16->gemm(1, 1, n, wh + r * n, n * 2, xh + c * n, &one, 1, scratch);
                CHECK(!memcmp(&one, &y[c * ldy + r], sizeof one),
                      "%s gemm_bf16: one row and column and many differ", k->name);
            }
        free(w);
        free(x);
        free(y);
        free(wh);
        free(xh);
        free(scratch);
    }
}

/* What attention does with bf16: rounding as quantize() of the portable table, rows in pairs, and
 * the product of these against the sum in double, one row and many with the same bits. */
static void test_pairs(const Kernels *k)
{
    static const size_t sizes[][3] = {{1, 1, 1},    {9, 64, 64},   {3, 64, 48}, {7, 5, 100},
                                      {65, 33, 17}, {2, 256, 256}, {6, 13, 70}, {48, 63, 64}};
    for (size_t i = 0; k->bf16 && i < sizeof sizes / sizeof *sizes; i++) {
        size_t rows = sizes[i][0], n = sizes[i][1], width = sizes[i][2], even = n + n % 2,
               lda = even + 2, ldy = width + 3;
        float *a = floats(rows * lda), *b = floats(n * width), *y = floats(rows * ldy),
              *start = malloc(rows * ldy * sizeof *start), one[512];
        uint16_t *ah = malloc(rows * lda * 2), *want = malloc(rows * lda * 2),
                 *half = malloc(n * width * 2), *bh = malloc(even * width * 2 + 2);
        int8_t *bytes = malloc(n * width);
        a[0] = 0x1.01p0f; // a tie, to even
        a[1] = 0x1.03p0f;
        k->bf16->round(a, ah, rows * lda);
        k->quantize[TYPE_BF16](a, want, rows * lda);
        CHECK(!memcmp(ah, want, rows * lda * 2), "%s bf16 round: other bits than quantize",
              k->name);
        k->dequantize[TYPE_BF16](ah, a, rows * lda);
        for (size_t r = 0; r < rows && n % 2; r++)
            ah[r * lda + n] = 0;
        for (int kind = 0; kind < 2; kind++) {
            k->f32_to_f16(b, half, n * width);
            for (size_t j = 0; j < n * width; j++)
                bytes[j] = (int8_t)random_u32();
            bh[even * width] = 0x1234;
            if (kind)
                k->bf16->pairs_i8(bytes, bh, n, width);
            else
                k->bf16->pairs_f16(half, bh, n, width);
            CHECK(bh[even * width] == 0x1234, "%s pairs (%zu, %zu): wrote beyond", k->name, n,
                  width);
            for (size_t j = 0; j < even; j++)
                for (size_t c = 0; c < width; c++) {
                    float f = kind ? bytes[(j < n ? j : 0) * width + c] : 0;
                    uint16_t h = 0;
                    if (!kind)
                        k->dequantize[TYPE_F16](half + (j < n ? j : 0) * width + c, &f, 1);
                    k->quantize[TYPE_BF16](&f, &h, 1);
                    CHECK(bh[(j / 2 * width + c) * 2 + j % 2] == (j < n ? h : 0),
                          "%s pairs (%zu, %zu): row %zu, column %zu", k->name, n, width, j, c);
                }
            memcpy(start, y, rows * ldy * sizeof *y);
            k->bf16->gemm_add(rows, n, width, ah, lda, bh, width, y, ldy);
            for (size_t r = 0; r < rows; r++) {
                memcpy(one, start + r * ldy, ldy * sizeof *one);
                k->bf16->gemm_add(1, n, width, ah + r * lda, lda, bh, width, one, ldy);
                CHECK(!memcmp(one, y + r * ldy, ldy * sizeof *one),
                      "%s bf16 gemm_add: one row and many differ", k->name);
                CHECK(!memcmp(one + width, start + r * ldy + width, (ldy - width) * sizeof *one),
                      "%s bf16 gemm_add: wrote beyond the width", k->name);
                for (size_t c = 0; c < width; c++) {
                    double sum = start[r * ldy + c], size = fabs(sum);
                    for (size_t j = 0; j < n; j++) {
                        float f;
                        k->dequantize[TYPE_BF16](bh + (j / 2 * width + c) * 2 + j % 2, &f, 1);
                        sum += (double)a[r * lda + j] * f;
                        size += fabs((double)a[r * lda + j] * f);
                    }
                    CHECK(fabs(sum - y[r * ldy + c]) <= size * (double)(n + 2) * 0x1p-24,
                          "%s bf16 gemm_add (%zu, %zu, %zu): %g, want %g", k->name, rows, n, width,
                          y[r * ldy + c], sum);
                }
            }
        }
        free(a);
        free(b);
        free(y);
        free(start);
        free(ah);
        free(want);
        free(half);
        free(bh);
        free(bytes);
    }
}

static void test_gemm_add(const Kernels *k)
{
    static const size_t sizes[][3] = {{1, 1, 1},    {9, 64, 64},   {3, 64, 48}, {7, 5, 100},
                                      {65, 33, 17}, {2, 256, 256}, {6, 13, 70}};
    for (size_t c = 0; c < sizeof sizes / sizeof *sizes; c++) {
        size_t rows = sizes[c][0], n = sizes[c][1], width = sizes[c][2], lda = n + 1,
               ldb = width + 5, ldy = width + 3;
        float *a = floats(rows * lda), *b = floats(n * ldb), *y = floats(rows * ldy),
              *h = floats(rows * ldy);
        float *start = malloc(rows * ldy * sizeof *start), *alone = malloc(ldy * sizeof *alone);
        uint16_t *half = malloc(n * ldb * sizeof *half);
        k->f32_to_f16(b, half, n * ldb);
        k->dequantize[TYPE_F16](half, b, n * ldb); // so that both forms multiply the same numbers
        memcpy(start, y, rows * ldy * sizeof *y);
        memcpy(h, y, rows * ldy * sizeof *y);
        k->gemm_add(rows, n, width, a, lda, b, ldb, y, ldy);
        k->gemm_add_f16(rows, n, width, a, lda, half, ldb, h, ldy);
        CHECK(!memcmp(y, h, rows * ldy * sizeof *y), "%s gemm_add: f16 and f32 differ", k->name);
        for (size_t r = 0; r < rows; r++) {
            memcpy(alone, start + r * ldy, ldy * sizeof *alone);
            k->gemm_add(1, n, width, a + r * lda, lda, b, ldb, alone, ldy);
            CHECK(!memcmp(alone, y + r * ldy, ldy * sizeof *alone),
                  "%s gemm_add: one row and many differ", k->name);
            CHECK(!memcmp(alone + width, start + r * ldy + width, (ldy - width) * sizeof *alone),
                  "%s gemm_add: wrote beyond the width", k->name);
            for (size_t i = 0; i < width; i++) {
                double sum = start[r * ldy + i], size = fabs(sum);
                for (size_t j = 0; j < n; j++) {
                    sum += (double)a[r * lda + j] * b[j * ldb + i];
                    size += fabs((double)a[r * lda + j] * b[j * ldb + i]);
                }
                CHECK(fabs(sum - y[r * ldy + i]) <= size * (double)(n + 1) * 0x1p-24,
                      "%s gemm_add: %g, want %g", k->name, y[r * ldy + i], sum);
            }
        }
        int8_t *bytes = malloc(n * ldb);
        for (size_t i = 0; i < n * ldb; i++)
            bytes[i] = (int8_t)random_u32();
        k->i8_to_f32(bytes, b, n * ldb);
        for (size_t i = 0; i < n * ldb; i++)
            CHECK(b[i] == (float)bytes[i], "%s i8_to_f32: %d became %g", k->name, bytes[i], b[i]);
        memcpy(y, start, rows * ldy * sizeof *y);
        memcpy(h, start, rows * ldy * sizeof *y);
        k->gemm_add(rows, n, width, a, lda, b, ldb, y, ldy);
        k->gemm_add_i8(rows, n, width, a, lda, bytes, ldb, h, ldy);
        CHECK(!memcmp(y, h, rows * ldy * sizeof *y), "%s gemm_add: bytes and floats differ",
              k->name);
        free(a);
        free(b);
        free(y);
        free(h);
        free(start);
        free(alone);
        free(half);
        free(bytes);
    }
}

static const Xielu xielu = {0.8f, 0.7f, 0.5f, -0.25f};

/* A step of a state: what the portable table gives, in place too, and the formula. */
static void test_state_step(const Kernels *k, size_t key_dim)
{
    size_t size = key_dim * STATE_COLS;
    float *before = floats(size), *q = floats(key_dim), *key = floats(key_dim),
          *v = floats(STATE_COLS), *S = malloc(size * sizeof *S), out[STATE_COLS],
          again[STATE_COLS];
    for (int corrects = 0; corrects < 2; corrects++) {
        k->state_step(S, before, key_dim, q, key, v, 0.75f, 0.5f, corrects, out);
        for (size_t j = 0; j < STATE_COLS; j++) {
            double had = 0, want = 0, sizes = 1;
            for (size_t i = 0; i < key_dim; i++)
                had += corrects * 0.75 * (double)before[i * STATE_COLS + j] * (double)key[i];
            for (size_t i = 0; i < key_dim; i++) {
                double s = 0.75 * (double)before[i * STATE_COLS + j]
                         + (double)key[i] * 0.5 * ((double)v[j] - had);
                want += s * (double)q[i];
                sizes += fabs(s * (double)q[i]);
                CHECK(fabs(s - (double)S[i * STATE_COLS + j]) < 1e-5 * (1 + fabs(s) + fabs(had)),
                      "%s state_step: a state", k->name);
            }
            CHECK(fabs(want - (double)out[j]) < 1e-5 * (sizes + fabs(had) * (double)key_dim),
                  "%s state_step of %zu: got %g, want %g", k->name, key_dim, out[j], want);
        }
        float *in_place = malloc(size * sizeof *S);
        memcpy(in_place, before, size * sizeof *S);
        k->state_step(in_place, in_place, key_dim, q, key, v, 0.75f, 0.5f, corrects, again);
        CHECK(!memcmp(in_place, S, size * sizeof *S) && !memcmp(out, again, sizeof out),
              "%s state_step in place", k->name);
        free(in_place);
    }
    free(before);
    free(q);
    free(key);
    free(v);
    free(S);
}

/* The kernels that every table compiles from the same source: same bits as the portable ones. */
static void test_same_bits(const Kernels *k)
{
    const Kernels *ref = kernels_at(0);
    for (size_t n = 1; n < 200; n += 7) {
        test_state_step(k, n);
        float *x = floats(n), *w = floats(n), *b = floats(n), *y = malloc(n * sizeof *y),
              *z = malloc(n * sizeof *z);
        uint16_t *hy = malloc(n * 2), *hz = malloc(n * 2);
        for (int norm = 0; norm < NORM_COUNT; norm++)
            for (int with = 0; with < 3; with++) {
                ref->norm[norm](y, x, with ? w : NULL, with > 1 ? b : NULL, n, 1e-5f);
                k->norm[norm](z, x, with ? w : NULL, with > 1 ? b : NULL, n, 1e-5f);
                CHECK(!memcmp(y, z, n * sizeof *y), "%s norm %d of %zu", k->name, norm, n);
            }
        for (int act = 0; act < ACT_COUNT; act++) {
            memcpy(y, x, n * sizeof *x);
            memcpy(z, x, n * sizeof *x);
            ref->act[act](y, n);
            k->act[act](z, n);
            CHECK(!memcmp(y, z, n * sizeof *y), "%s act %d", k->name, act);
        }
        memcpy(y, x, n * sizeof *x);
        memcpy(z, x, n * sizeof *x);
        ref->xielu(y, n, &xielu);
        k->xielu(z, n, &xielu);
        CHECK(!memcmp(y, z, n * sizeof *y), "%s xielu", k->name);
        memcpy(y, x, n * sizeof *x);
        memcpy(z, x, n * sizeof *x);
        ref->add_scaled(y, w, b, n);
        k->add_scaled(z, w, b, n);
        CHECK(!memcmp(y, z, n * sizeof *y) && y[n - 1] == x[n - 1] + w[n - 1] * b[n - 1],
              "%s add_scaled", k->name);
        y[0] = z[0] = -INFINITY;
        float sy = ref->exp_sum(y, n, 2), sz = k->exp_sum(z, n, 2);
        CHECK(sy == sz && y[0] == 0 && !memcmp(y, z, n * sizeof *y), "%s exp_sum", k->name);
        ref->f32_to_f16(x, hy, n);
        k->f32_to_f16(x, hz, n);
        CHECK(!memcmp(hy, hz, n * 2), "%s f32_to_f16", k->name);
        free(x);
        free(w);
        free(b);
        free(y);
        free(z);
        free(hy);
        free(hz);
    }
}

static void test_xielu(const Kernels *k)
{
    for (int i = -2000; i <= 2000; i++) {
        float x = (float)i * 0.01f, y = x;
        double p = (double)xielu.positive, n = (double)xielu.negative, v = (double)x,
               beta = (double)xielu.beta, low = fmin(v, (double)xielu.eps),
               want = (v > 0 ? p * v * v : n * (expm1(low) - v)) + beta * v;
        k->xielu(&y, 1, &xielu);
        CHECK(fabs(y - want) < 5e-7 * fmax(1, fabs(want)), "%s xielu(%g): got %g, want %g", k->name,
              v, (double)y, want); // 1e-7 of exp and as much for each sum
    }
}

/* Norms and activations against double arithmetic, on ordinary and extreme values. */
static void test_meaning(const Kernels *k)
{
    enum { N = 4001 };
    static float x[N], y[N];
    double worst[ACT_COUNT] = {0};
    for (int act = 0; act < ACT_COUNT; act++) {
        for (int i = 0; i < N; i++)
            y[i] = x[i] = (float)(i - N / 2) * 0.01f;
        y[0] = x[0] = -1e4f;
        y[1] = x[1] = 1e4f;
        k->act[act](y, N);
        for (int i = 0; i < N; i++) {
            double v = x[i],
                   want = act == ACT_SILU ? v / (1 + exp(-v))
                        : act == ACT_GELU ? v / 2 * erfc(-v / sqrt(2))
                        : act == ACT_GELU_TANH
                            ? v / 2 * (1 + tanh(sqrt(2 / acos(-1)) * (v + 0.044715 * v * v * v)))
                        : v > 0 ? (act == ACT_RELU ? v : v * v)
                                : 0;
            double error = fabs(want - y[i]) / fmax(1, fabs(want));
            worst[act] = fmax(worst[act], error);
        }
        CHECK(worst[act] < 5e-7, "%s act %d: error %g", k->name, act,
              worst[act]); // x/2 times the 2e-7 of erf and tanh, relative
    }
    double worst_exp = 0, worst_cap = 0;
    for (int i = -8700; i <= 0; i++) {
        float v = (float)i * 0.01f, e = v;
        k->exp_sum(&e, 1, 0);
        worst_exp = fmax(worst_exp, fabs(e / exp((double)v) - 1));
    }
    for (int i = -1000; i <= 1000; i++) {
        float v = (float)i * 0.1f, e = v;
        k->soft_cap(&e, 1, 30);
        worst_cap = fmax(worst_cap, fabs(e - 30 * tanh((double)v / 30)));
    }
    CHECK(worst_exp < 2.5e-7, "%s exp: %g", k->name, worst_exp); // 2 ulp
    CHECK(worst_cap < 30 * 2e-7, "%s soft cap: %g", k->name, worst_cap);
    float zero = 3;
    CHECK(k->exp_sum(&zero, 1, 3) == 1, "exp(0) is 1");
}

/* A row's softmax before it is divided: every length, masked scores, one NaN. 2 ulp of exp, and of
 * a sum of n. */
static void test_online_softmax(const Kernels *k)
{
    float x[100], w[100];
    for (size_t n = 1; n <= 100; n++) {
        double max = 1.5, sum = 0;
        float scale = 0.3f, most = 1.5f;
        for (size_t i = 0; i < n; i++) {
            x[i] = w[i] = n % 3 ? 20 * random_float() : random_float();
            if (i % 7 == 3)
                x[i] = w[i] = -INFINITY;
            max = fmax(max, x[i] * scale);
        }
        float got = k->online_softmax(w, n, scale, &most);
        CHECK(most == (float)max, "%s online_softmax of %zu: maximum %g, want %g", k->name, n, most,
              max);
        for (size_t i = 0; i < n; i++) {
            double want = exp((double)(x[i] * scale - most));
            sum += want;
            CHECK(fabs(w[i] - want) <= want * 2.5e-7, "%s online_softmax of %zu: %g, want %g",
                  k->name, n, w[i], want);
        }
        CHECK(fabs(got - sum) <= sum * 5e-7, "%s online_softmax of %zu: sum %g, want %g", k->name,
              n, got, sum);
        x[n / 2] = NAN;
        most = 0;
        CHECK(isnan(k->online_softmax(x, n, scale, &most)),
              "%s online_softmax of %zu: a NaN is lost", k->name, n);
    }
}

/* One column in the file's own type gives the bits of the float product. */
static void test_gemv(const Kernels *k)
{
    static const size_t sizes[][2] = {{8, 64}, {1, 1}, {9, 100}, {31, 17}, {3, 600}};
    for (uint32_t type = 0; type < TYPE_COUNT; type++)
        for (size_t c = 0; k->gemv[type] && c < sizeof sizes / sizeof *sizes; c++) {
            size_t rows = sizes[c][0], n = sizes[c][1], bytes = type_info(type)->bytes;
            float *f = floats(rows * n), *x = floats(n), *y = floats(rows), *z = floats(rows);
            uint16_t *h = malloc(rows * n * 4);
            memcpy(h, f, rows * n * 4);
            if (type == TYPE_F16)
                k->f32_to_f16(f, h, rows * n);
            for (size_t i = 0; type == TYPE_BF16 && i < rows * n; i++)
                h[i] = (uint16_t)(0x3f00 + random_u32() % 256 + (random_u32() & 0x8000));
            k->dequantize[type](h, f, rows * n);
            k->gemm(rows, 1, n, f, n, x, n, y, rows);
            k->gemv[type](rows, n, h, n * bytes, x, z);
            CHECK(!memcmp(y, z, rows * sizeof *y), "%s gemv %s (%zu, %zu): other bits than gemm",
                  k->name, type_info(type)->name, rows, n);
            free(f);
            free(x);
            free(y);
            free(z);
            free(h);
        }
}

/* All 65,536 numbers of f16 come back from float, and floats between and beyond round as they
 * should. */
static void test_f16(const Kernels *k)
{
    for (uint32_t h = 0; h < 65536; h++) {
        uint16_t in = (uint16_t)h, out;
        float f;
        k->dequantize[TYPE_F16](&in, &f, 1);
        if ((h & 0x7c00) == 0x7c00)
            continue;
        double want = ldexp((h & 0x3ff) + ((h >> 10 & 31) ? 1024 : 0),
                            ((h >> 10 & 31) ? (int)(h >> 10 & 31) : 1) - 25);
        CHECK(f == (float)(h >> 15 ? -want : want), "f16 %04x is %g", h, f);
        k->f32_to_f16(&f, &out, 1);
        CHECK(out == in, "f16 %04x became %04x", h, out);
    }
    static const float in[] = {1e9f,     -1e9f,      INFINITY,       65519,         65520,
                               0x1p-25f, 0x1.8p-24f, 1.00048828125f, 1.00146484375f};
    static const uint16_t want[] = {0x7bff, 0xfbff, 0x7bff, 0x7bff, 0x7bff,
                                    0,      2,      0x3c00, 0x3c02}; // saturates; ties to even
    for (int i = 0; i < 9; i++) {
        uint16_t out;
        k->f32_to_f16(&in[i], &out, 1);
        CHECK(out == want[i], "%s: %g became %04x, want %04x", k->name, in[i], out, want[i]);
    }
}

/* Kernel tables, and the words of /proc/cpuinfo with which a machine says that it runs them. They
 * are read here because kernels_at() leaves out in silence what it thinks that the machine lacks.
 */
static const struct {
    const char *table, *flags[8];
} wanted[] = {
    {"scalar", {NULL}},
#if defined(__x86_64__)
    {"avx2", {"avx2", "fma"}},
    {"avx512", {"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni"}},
#if defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10 // others cannot compile it
    {"bf16",
     {"avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512_vnni", "avx512_bf16"}},
#endif
#elif defined(__aarch64__)
    {"neon", {NULL}},
    {"dotprod", {"asimddp"}},
#endif
};

/* The flags of the first processor between spaces; "" where the file names none (qemu shows that of
 * the machine it runs on). */
static void read_cpu_flags(char *line, size_t size)
{
    FILE *f = fopen("/proc/cpuinfo", "r");
    CHECK(f, "/proc/cpuinfo cannot be read");
    while (f && fgets(line, (int)size, f))
        if (!strncmp(line, "flags", 5) || !strncmp(line, "Features", 8)) {
            line[strcspn(line, "\n")] = ' ';
            fclose(f);
            return;
        }
    if (f)
        fclose(f);
    *line = 0;
}

static bool has_flag(const char *line, const char *flag)
{
    char word[32];
    snprintf(word, sizeof word, " %s ", flag);
    return strstr(line, word) != NULL;
}

/* Tables that the flags allow, and those that the command line names, must be among the tested. */
static void check_tested(const char *tested, int n_named, char **named)
{
    char line[1 << 14];
    read_cpu_flags(line, sizeof line);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        bool runs = true;
        for (int j = 0; j < 8 && wanted[i].flags[j]; j++)
            runs = runs && has_flag(line, wanted[i].flags[j]);
        CHECK(!runs || has_flag(tested, wanted[i].table),
              "/proc/cpuinfo allows %s, tested were only%s", wanted[i].table, tested);
    }
    for (int i = 0; i < n_named; i++)
        CHECK(has_flag(tested, named[i]), "%s was to be tested, tested were only%s", named[i],
              tested);
}

/* test_kernels [TABLE ...]: the tables that must be among the tested, beside those that
 * /proc/cpuinfo shows. */
int main(int argc, char **argv)
{
    const Kernels *k;
    char tested[64] = " ";
    for (int i = 0; (k = kernels_at(i)); i++) {
        test_dequantize(k);
        test_quantize(k);
        test_gemm(k);
        test_pack_activations(k);
        test_gemm_q8(k);
        test_mxfp4_scales(k);
        test_gemv(k);
        test_gemm_bf16(k);
        test_pairs(k);
        test_online_softmax(k);
        test_gemm_add(k);
        test_same_bits(k);
        test_meaning(k);
        test_xielu(k);
        test_f16(k);
        snprintf(tested + strlen(tested), sizeof tested - strlen(tested), "%s %s", k->name,
                 k->bf16 ? "bf16 " : "");
    }
    check_tested(tested, argc - 1, argv + 1);
    printf("test_kernels: tested%s\n", tested);
    return check_done("test_kernels");
}
