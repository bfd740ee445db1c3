/* kernels.c - what this machine can do, how much of it each kernel reaches, and how fast whole
 * models run.
 *
 * - `make bench` builds it and runs it on models/tales.bin.
 * - `build/kernels_bench [--json] [--quick] [-t N] [MODEL ...]` is the same for other models.
 * - `build/kernels_bench --bandwidth [--quick] [-t N]` says what memory gives at this moment, as
 *   JSON.
 *
 * Every figure is the median of several passes after untimed ones, on one thread unless a number of
 * threads stands beside it. Kernels work on data that stays in the caches, as the program calls
 * them; peaks are loops of nothing but the instruction. Nothing here judges a speed. --quick
 * shrinks everything: it shows that the tools work, not how fast.
 */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/cpu.h"
#include "base/json.h"
#include "model.h"
#include "modes/timing.h"

enum { MAX_TABLES = 4, MAX_PASSES = 15, SPACE = 1 << 20 }; // SPACE: floats of each buffer, 4 MB

typedef enum { F32, INT8, BF16, KINDS } Kind; // of arithmetic

typedef struct {
    bool json, quick;
    int n_threads, n_passes;
    size_t size; // bytes that bandwidth is measured on
    double peak[MAX_TABLES]
               [KINDS]; // 10^9 operations a second of each table's instruction set; 0: unknown
    double read[2];     // GB/s of memory with one and with all threads
} Settings;

static const char *unit_of(Kind kind)
{
    return kind == INT8 ? "GOP/s" : "GFLOP/s";
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *x, int n)
{
    qsort(x, (size_t)n, sizeof *x, compare_doubles);
    return n % 2 ? x[n / 2] : (x[n / 2 - 1] + x[n / 2]) / 2;
}

/* ---- memory ---------------------------------------------------------------------------------- */

enum { PIECE = 1 << 20 }; // bytes that a thread reads at a time

typedef struct {
    Threads threads;
    const uint64_t *data;
    size_t size;
    _Atomic uint64_t sum; // so that the reads cannot be left out
    int n_passes;
    double *seconds; // (n_passes)
} Reading;

static void read_pieces(void *context, int from, int to, int thread)
{
    Reading *r = context;
    uint64_t s[16] = {0};
    (void)thread;
    for (size_t i = (size_t)from * PIECE / 8; i < (size_t)to * PIECE / 8; i += 16)
        for (int j = 0; j < 16; j++)
            s[j] += r->data[i + (size_t)j];
    for (int j = 1; j < 16; j++)
        s[0] += s[j];
    r->sum += s[0];
}

static void read_passes(void *context)
{
    Reading *r = context;
    for (int pass = -1; pass < r->n_passes; pass++) {
        double begin = clock_seconds();
        threads_run(&r->threads, (int)(r->size / PIECE), 1, read_pieces, r);
        if (pass >= 0)
            r->seconds[pass] = clock_seconds() - begin;
    }
}

/* GB/s of reading memory with n_threads, -1 when out of memory. *low and *high: the slowest and the
 * fastest pass. */
static double read_bandwidth(const Settings *s, int n_threads, double *low, double *high)
{
    double seconds[MAX_PASSES], gb = (double)s->size * 1e-9;
    Reading r = {.threads = {.n_threads = n_threads},
                 .size = s->size,
                 .n_passes = s->n_passes,
                 .seconds = seconds};
    uint64_t *data = mem_alloc(s->size, 1);
    if (!data)
        return -1;
    memset(data, 1, s->size);
    r.data = data;
    threads_team(&r.threads, read_passes, &r);
    free(data);
    double middle = median(seconds, s->n_passes);
    *low = gb / seconds[s->n_passes - 1];
    *high = gb / seconds[0];
    return gb / middle;
}

/* ---- peaks ----------------------------------------------------------------------------------- */

/* Twelve independent sums, more than any machine has in flight; HIDE makes the compiler think that
 * `a` has changed. */
#if defined(__x86_64__)
#include <immintrin.h>
#define HIDE(a) __asm__ volatile("" : "+v"(a))
#elif defined(__aarch64__)
#include <arm_neon.h>
#define HIDE(a) __asm__ volatile("" : "+w"(a))
#endif
#define SUMS 12
#define PEAK(name, attributes, V, A, zero, step)                                                   \
    attributes static void name(size_t n)                                                          \
    {                                                                                              \
        A a = {0};                                                                                 \
        V s[SUMS];                                                                                 \
        _Pragma("GCC unroll 16") for (int i = 0; i < SUMS; i++) s[i] = zero;                       \
        for (size_t k = 0; k < n; k++) {                                                           \
            _Pragma("GCC unroll 16") for (int i = 0; i < SUMS; i++)                                \
            {                                                                                      \
                HIDE(a);                                                                           \
                s[i] = step;                                                                       \
            }                                                                                      \
        }                                                                                          \
        _Pragma("GCC unroll 16") for (int i = 0; i < SUMS; i++) HIDE(s[i]);                        \
    }

#ifdef HIDE
typedef float Float4 __attribute__((vector_size(16)));
PEAK(peak_base, , Float4, Float4, (Float4){0}, s[i] + a * a)
static bool always(void)
{
    return true;
}
#endif

#if defined(__x86_64__)
PEAK(peak_avx2, __attribute__((target("avx2,fma"))), __m256, __m256, _mm256_setzero_ps(),
     _mm256_fmadd_ps(a, a, s[i]))
PEAK(peak_avx2_int8, __attribute__((target("avx2"))), __m256i, __m256i, _mm256_setzero_si256(),
     _mm256_add_epi32(s[i], _mm256_madd_epi16(_mm256_maddubs_epi16(a, a), a)))
PEAK(peak_avx512, __attribute__((target("avx512f"))), __m512, __m512, _mm512_setzero_ps(),
     _mm512_fmadd_ps(a, a, s[i]))
static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
static bool has_avx512(void)
{
    return __builtin_cpu_supports("avx512f");
}
#if defined(__clang__) ? __clang_major__ >= 9 : __GNUC__ >= 10
#define NEW_X86
PEAK(peak_vnni, __attribute__((target("avx512f,avx512vnni"))), __m512i, __m512i,
     _mm512_setzero_si512(), _mm512_dpbusd_epi32(s[i], a, a))
PEAK(peak_bf16, __attribute__((target("avx512f,avx512bf16"))), __m512, __m512i, _mm512_setzero_ps(),
     _mm512_dpbf16_ps(s[i], (__m512bh)a, (__m512bh)a))
static bool has_vnni(void)
{
    return __builtin_cpu_supports("avx512vnni");
}
static bool has_bf16(void)
{
    return __builtin_cpu_supports("avx512bf16");
}
#endif
#elif defined(__aarch64__)
PEAK(peak_neon, , float32x4_t, float32x4_t, vdupq_n_f32(0), vfmaq_f32(s[i], a, a))
PEAK(peak_neon_int8, , int16x8_t, int8x8_t, vdupq_n_s16(0), vmlal_s8(s[i], a, a))
static bool has_dotprod(void)
{
    return kernels_select("dotprod", &(Err){0}) != NULL;
}
#ifndef __clang__ // which knows no attribute for it
PEAK(peak_dotprod, __attribute__((target("arch=armv8.2-a+dotprod"))), int32x4_t, int8x16_t,
     vdupq_n_s32(0), vdotq_s32(s[i], a, a))
#endif
#endif

typedef struct {
    const char *isa, *name; // isa: the kernel table it belongs to
    bool (*here)(void);
    void (*run)(size_t steps);
    int ops; // of one instruction
    Kind kind;
} Peak;

static const Peak peaks[] = {
#ifdef HIDE
    {"scalar", "f32 multiply, add", always, peak_base, 8, F32},
#endif
#if defined(__x86_64__)
    {"avx2", "f32 vfmadd", has_avx2, peak_avx2, 16, F32},
    {"avx2", "int8 vpmaddubsw", has_avx2, peak_avx2_int8, 64, INT8},
    {"avx512", "f32 vfmadd", has_avx512, peak_avx512, 32, F32},
#ifdef NEW_X86
    {"avx512", "int8 vpdpbusd", has_vnni, peak_vnni, 128, INT8},
    {"avx512", "bf16 vdpbf16ps", has_bf16, peak_bf16, 64, BF16},
#endif
#elif defined(__aarch64__)
    {"neon", "f32 fmla", always, peak_neon, 8, F32},
    {"neon", "int8 smlal", always, peak_neon_int8, 16, INT8},
    {"dotprod", "f32 fmla", has_dotprod, peak_neon, 8, F32},
#ifndef __clang__
    {"dotprod", "int8 sdot", has_dotprod, peak_dotprod, 32, INT8},
#endif
#endif
    {0}};

static double peak_rate(const Settings *s, const Peak *p)
{
    double seconds[MAX_PASSES];
    size_t steps = s->quick ? 1 << 14 : 1 << 20;
    for (int pass = -2; pass < s->n_passes; pass++) {
        double begin = clock_seconds();
        p->run(steps);
        if (pass >= 0)
            seconds[pass] = clock_seconds() - begin;
    }
    return (double)steps * SUMS * p->ops / median(seconds, s->n_passes) * 1e-9;
}

static void print_peak(const Settings *s, const char *isa, const char *name, double rate,
                       const char *unit)
{
    if (s->json)
        printf("%s{\"table\": \"%s\", \"peak\": \"%s\", \"rate\": %.6g, \"unit\": \"%s\"}",
               strcmp(name, "reads, 1 thread") ? ", " : "", isa, name, rate, unit);
    else
        printf("%-8s %-22s %10.1f %s\n", isa, name, rate, unit);
}

static void print_peaks(Settings *s)
{
    const Kernels *k;
    double low, high;
    char name[40];
    fputs(s->json ? "\"peaks\": [" : "Peaks\n", stdout);
    s->read[0] = s->read[1] = read_bandwidth(s, 1, &low, &high);
    print_peak(s, "memory", "reads, 1 thread", s->read[0], "GB/s");
    if (s->n_threads > 1) {
        s->read[1] = read_bandwidth(s, s->n_threads, &low, &high);
        snprintf(name, sizeof name, "reads, %d threads", s->n_threads);
        print_peak(s, "memory", name, s->read[1], "GB/s");
    }
    for (const Peak *p = peaks; p->isa; p++) {
        if (!p->here())
            continue;
        double rate = peak_rate(s, p);
        for (int t = 0; t < MAX_TABLES && (k = kernels_at(t)); t++)
            if (!strcmp(k->name, p->isa))
                s->peak[t][p->kind] = rate;
        print_peak(s, p->isa, p->name, rate, unit_of(p->kind));
    }
    fputs(s->json ? "]" : "\n", stdout);
}

/* ---- kernels --------------------------------------------------------------------------------- */

/* Buffers of SPACE floats, random in -2 .. 2; `f16`, `bf16` and `blocks` hold numbers of these
 * types and bytes of 64 to 127. */
typedef struct {
    float *src, *x, *y; // x is filled from src before each pass
    uint16_t *f16, *bf16;
    char *blocks;
    PackedBlock *bytes; // (SPACE / 32) src as signed bytes
    float *scratch;     // (GEMM_ROWS * 2048) of gemm_q8 and gemm_bf16
} Buffers;

/* n items of zeros on a cache line, as a session has them; n * size is a multiple of 64. */
static void *aligned(size_t n, size_t size)
{
    void *p = aligned_alloc(64, n * size);
    return p ? memset(p, 0, n * size) : NULL;
}

/* One row of the table. A product is (rows, n) times (n, cols); anything else works on n values. */
typedef struct Case Case;
struct Case {
    const char *name;
    void (*run)(const Kernels *k, const Case *c, const Buffers *b, size_t call);
    bool (*has)(const Kernels *k, int type); // given: one row for each type for which it is true
    int which;                               // Type, NormType or Act
    size_t rows, cols, n;
    size_t calls; // of one pass; together at most SPACE values
    Kind kind;    // of a product's arithmetic
    double bytes; // that a call reads of weights, keys or values, or reads and writes of anything
                  // else; 0: `rows` (or one) times the blocks of n values
};

static void run_dequantize(const Kernels *k, const Case *c, const Buffers *b, size_t call)
{
    const TypeInfo *t = type_info((uint32_t)c->which);
    k->dequantize[c->which](b->blocks + call * (c->n / t->block) * t->bytes, b->y, c->n);
}

static bool has_dequantize(const Kernels *k, int type)
{
    return k->dequantize[type] != NULL;
}

static void run_gemm(const Kernels *k, const Case *c, const Buffers *b, size_t call)
{
    size_t stride = c->n + PANEL_PAD;
    k->gemm(c->rows, c->cols, c->n, b->src + call * c->rows * stride, stride, b->x, c->n, b->y,
            c->rows);
}

static void run_gemv(const Kernels *k, const Case *c, const Buffers *b, size_t call)
{
    size_t row_bytes = c->n * type_info((uint32_t)c->which)->bytes;
    k->gemv[c->which](c->rows, c->n, b->blocks + call * c->rows * row_bytes, row_bytes, b->x, b->y);
}

static bool has_gemv(const Kernels *k, int type)
{
    return k->gemv[type] != NULL;
}

static void run_gemm_q8(const Kernels *k, const Case *c, const Buffers *b, size_t call)
{
    const TypeInfo *t = type_info((uint32_t)c->which);
    size_t row_bytes = c->n / t->block * t->bytes;
    k->gemm_q8[c->which](c->rows, c->cols, c->n, b->blocks + call * c->rows * row_bytes, row_bytes,
                         b->bytes, b->y, c->rows, b->scratch);
}

static bool has_gemm_q8(const Kernels *k, int type)
{
    return k->gemm_q8[type] != NULL;
}

static void run_gemm_bf16(const Kernels *k, const Case *c, const Buffers *b, size_t call)
{
    k->bf16->gemm(c->rows, c->cols, c->n, b->bf16 + call * c->rows * c->n, c->n * 2, b->bf16, b->y,
                  c->rows, b->scratch);
}

static bool has_bf16_products(const Kernels *k, int type)
{
    return type == TYPE_BF16 && k->bf16;
}

static void run_gemm_add_bf16(const Kernels *k, const Case *c, const Buffers *b, size_t call)
{
    k->bf16->gemm_add(c->rows, c->n, c->cols, b->bf16, c->n, b->bf16 + call * c->n * c->cols,
                      c->cols, b->y, c->cols);
}

static void run_pairs(const Kernels *k, const Case *c, const Buffers *b, size_t call)
{
    k->bf16->pairs_f16(b->f16 + call * c->n, (uint16_t *)b->y, c->n / 64, 64);
}

static void run_pack_activations(const Kernels *k, const Case *c, const Buffers *b, size_t call)
{
    k->pack_activations(b->src + call * c->n, b->bytes + call * c->n / 32, c->n);
}

static void run_gemm_add(const Kernels *k, const Case *c, const Buffers *b, size_t call)
{
    k->gemm_add(c->rows, c->n, c->cols, b->x, c->n, b->src + call * c->n * c->cols, c->cols, b->y,
                c->cols);
}

static void run_gemm_add_f16(const Kernels *k, const Case *c, const Buffers *b, size_t call)
{
    k->gemm_add_f16(c->rows, c->n, c->cols, b->x, c->n, b->f16 + call * c->n * c->cols, c->cols,
                    b->y, c->cols);
}

static void run_norm(const Kernels *k, const Case *c, const Buffers *b, size_t call)
{
    k->norm[c->which](b->y + call * c->n, b->x + call * c->n, b->src, NULL, c->n, 1e-5f);
}

static void run_act(const Kernels *k, const Case *c, const Buffers *b, size_t call)
{
    k->act[c->which](b->x + call * c->n, c->n);
}

static void run_mul(const Kernels *k, const Case *c, const Buffers *b, size_t call)
{
    k->mul(b->x + call * c->n, b->src + call * c->n, c->n);
}

static void run_soft_cap(const Kernels *k, const Case *c, const Buffers *b, size_t call)
{
    k->soft_cap(b->x + call * c->n, c->n, 50);
}

static void run_online_softmax(const Kernels *k, const Case *c, const Buffers *b, size_t call)
{
    b->y[call] = -INFINITY;
    b->y[call] += k->online_softmax(b->x + call * c->n, c->n, 0.125f, &b->y[call]);
}

static void run_exp_sum(const Kernels *k, const Case *c, const Buffers *b, size_t call)
{
    b->y[call] = k->exp_sum(b->x + call * c->n, c->n, 2);
}

static void run_f32_to_f16(const Kernels *k, const Case *c, const Buffers *b, size_t call)
{
    k->f32_to_f16(b->src + call * c->n, b->f16 + call * c->n, c->n);
}

/* The shapes are those of a model 2048 wide: a panel of weights for one column and for a prompt;
 * one block of keys for the queries of a token and for those of a prompt; rows.
 *
 * A new kernel is a row here with a run_ function above; one with `has` gets a row for each type.
 */
static const Case cases[] = {
    {"dequantize", run_dequantize, has_dequantize, 0, 0, 0, 2048, 64, F32, 0},
    {"gemv", run_gemv, has_gemv, 0, 8, 1, 2048, 32, F32, 0},
    {"gemm", run_gemm, NULL, 0, 32, 512, 2048, 1, F32, 32 * 2048 * 4},
    {"gemm_q8", run_gemm_q8, has_gemm_q8, 0, GEMM_ROWS, 1, 2048, 16, INT8, 0},
    {"gemm_q8", run_gemm_q8, has_gemm_q8, 0, GEMM_ROWS, 512, 2048, 1, INT8, 0},
    {"gemm_bf16", run_gemm_bf16, has_bf16_products, 0, GEMM_ROWS, 1, 2048, 16, BF16, 0},
    {"gemm_bf16", run_gemm_bf16, has_bf16_products, 0, GEMM_ROWS, 512, 2048, 1, BF16, 0},
    {"pack_activations", run_pack_activations, NULL, 0, 0, 0, 2048, 64, INT8,
     2048 * 4 + 64 * sizeof(PackedBlock)},
    {"gemm_add", run_gemm_add, NULL, 0, 8, 64, 64, 64, F32, 64 * 64 * 4},
    {"gemm_add", run_gemm_add, NULL, 0, 64, 64, 64, 16, F32, 64 * 64 * 4},
    {"gemm_add_f16", run_gemm_add_f16, NULL, 0, 8, 64, 64, 64, F32, 64 * 64 * 2},
    {"gemm_add_f16", run_gemm_add_f16, NULL, 0, 64, 64, 64, 16, F32, 64 * 64 * 2},
    {"gemm_add_bf16", run_gemm_add_bf16, has_bf16_products, 0, 8, 64, 64, 64, BF16, 64 * 64 * 2},
    {"gemm_add_bf16", run_gemm_add_bf16, has_bf16_products, 0, 64, 64, 64, 16, BF16, 64 * 64 * 2},
    {"pairs_f16", run_pairs, has_bf16_products, 0, 0, 0, 4096, 64, BF16, 4096 * 4},
    {"norm rms", run_norm, NULL, NORM_RMS, 0, 0, 2048, 64, F32, 2048 * 8},
    {"norm layer", run_norm, NULL, NORM_LAYER, 0, 0, 2048, 64, F32, 2048 * 8},
    {"act silu", run_act, NULL, ACT_SILU, 0, 0, 5632, 16, F32, 5632 * 8},
    {"act gelu", run_act, NULL, ACT_GELU, 0, 0, 5632, 16, F32, 5632 * 8},
    {"act gelu_tanh", run_act, NULL, ACT_GELU_TANH, 0, 0, 5632, 16, F32, 5632 * 8},
    {"act relu", run_act, NULL, ACT_RELU, 0, 0, 5632, 16, F32, 5632 * 8},
    {"act relu2", run_act, NULL, ACT_RELU2, 0, 0, 5632, 16, F32, 5632 * 8},
    {"mul", run_mul, NULL, 0, 0, 0, 5632, 16, F32, 5632 * 12},
    {"soft_cap", run_soft_cap, NULL, 0, 0, 0, 64, 256, F32, 64 * 8},
    {"online_softmax", run_online_softmax, NULL, 0, 0, 0, 64, 256, F32, 64 * 8},
    {"exp_sum", run_exp_sum, NULL, 0, 0, 0, 64, 256, F32, 64 * 8},
    {"f32_to_f16", run_f32_to_f16, NULL, 0, 0, 0, 2048, 64, F32, 2048 * 6},
    {0}};

/* Seconds of one call. */
static double time_case(const Settings *s, const Kernels *k, const Case *c, const Buffers *b)
{
    double seconds[MAX_PASSES];
    size_t calls = s->quick ? 1 : c->calls;
    for (int pass = -2; pass < s->n_passes; pass++) {
        memcpy(b->x, b->src, SPACE * sizeof *b->x);
        double begin = clock_seconds();
        for (size_t i = 0; i < calls; i++)
            c->run(k, c, b, i);
        double took = clock_seconds() - begin;
        if (pass >= 0)
            seconds[pass] = took > 1e-9 ? took : 1e-9; // a coarse clock
    }
    return median(seconds, s->n_passes) / (double)calls;
}

/* One kernel on every table: a line of the table, or as many objects. */
static void print_case(const Settings *s, const Case *c, const Buffers *b, bool first)
{
    char name[40], shape[40];
    const TypeInfo *type = c->has ? type_info((uint32_t)c->which) : NULL;
    double ops = c->rows ? 2.0 * (double)c->rows * (double)c->cols * (double)c->n : (double)c->n,
           rate = 0, peak = 0;
    double bytes = c->bytes > 0
                     ? c->bytes
                     : (double)((c->rows ? c->rows : 1) * c->n / type->block * type->bytes);
    const char *unit = c->rows ? unit_of(c->kind) : "Gvalues/s";
    const Kernels *k;
    snprintf(name, sizeof name, "%s%s%s", c->name, type ? " " : "", type ? type->name : "");
    snprintf(shape, sizeof shape, c->rows ? "%zu x %zu x %zu" : "%zu", c->rows ? c->rows : c->n,
             c->n, c->cols);
    if (!s->json)
        printf("%-18s %-15s %-9s", name, shape, unit);
    for (int t = 0; t < MAX_TABLES && (k = kernels_at(t)); t++) {
        if (c->has && !c->has(k, c->which)) {
            fputs(s->json ? "" : "        -       -", stdout);
            continue;
        }
        double seconds = time_case(s, k, c, b), gb = bytes / seconds * 1e-9;
        rate = ops / seconds * 1e-9;
        peak = s->peak[t][c->kind];
        if (s->json)
            printf("%s{\"table\": \"%s\", \"kernel\": \"%s\", \"shape\": \"%s\", \"rate\": %.6g, "
                   "\"unit\": \"%s\", \"gb_s\": %.6g}",
                   first && !t ? "" : ", ", k->name, name, shape, rate, unit, gb);
        else
            printf(" %8.2f %7.2f", rate, gb);
    }
    if (!s->json && c->rows && peak > 0)
        printf(" %7.0f %%", 100 * rate / peak);
    fputs(s->json ? "" : "\n", stdout);
    fflush(stdout);
}

static void print_kernels(const Settings *s, const Buffers *b)
{
    const Kernels *k, *best = NULL; // the last table has what any has
    for (int t = 0; t < MAX_TABLES && (k = kernels_at(t)); t++)
        best = k;
    if (s->json) {
        fputs(", \"kernels\": [", stdout);
    } else {
        printf("%-44s", "Kernels, one thread, data in the caches");
        for (int t = 0; t < MAX_TABLES && (k = kernels_at(t)); t++)
            printf(" %16s", k->name);
        printf("\n%-18s %-15s %-9s", "kernel", "shape", "rate is");
        for (int t = 0; t < MAX_TABLES && kernels_at(t); t++)
            printf(" %8s %7s", "rate", "GB/s");
        printf(" %9s\n", "of peak");
    }
    for (const Case *c = cases; c->name; c++)
        for (int type = 0; type < (c->has ? TYPE_COUNT : 1); type++) {
            Case one = *c;
            if (c->has)
                one.which = type;
            if (!c->has || c->has(best, type))
                print_case(s, &one, b, c == cases && type == 0);
        }
    fputs(s->json ? "]" : "\n", stdout);
}

static int buffers_init(Buffers *b, Err *e)
{
    uint32_t state = 1;
    *b = (Buffers){aligned(SPACE, sizeof(float)),
                   aligned(SPACE, sizeof(float)),
                   aligned(SPACE, sizeof(float)),
                   aligned(SPACE, sizeof(uint16_t)),
                   aligned(SPACE, sizeof(uint16_t)),
                   aligned(SPACE, sizeof(float)),
                   aligned(SPACE / 32, sizeof(PackedBlock)),
                   aligned(GEMM_ROWS * 2048, sizeof(float))};
    if (!b->src || !b->x || !b->y || !b->f16 || !b->bf16 || !b->blocks || !b->bytes || !b->scratch)
        return err_set(e, EXIT_MEMORY, "out of memory");
    for (size_t i = 0; i < SPACE; i++) {
        state = state * 1664525u + 1013904223u;
        uint32_t bytes = (state & 0x3f3f3f3f) | 0x40404040; // no power of two that is subnormal
        memcpy(b->blocks + 4 * i, &bytes, 4);
        b->src[i] = (float)(state >> 8) * 0x1p-22f - 2.0f;
    }
    kernels_at(0)->pack_activations(b->src, b->bytes, SPACE);
    kernels_at(0)->f32_to_f16(b->src, b->f16, SPACE);
    kernels_at(0)->quantize[TYPE_BF16](b->src, b->bf16, SPACE);
    return 0;
}

static void buffers_free(Buffers *b)
{
    free(b->src);
    free(b->x);
    free(b->y);
    free(b->f16);
    free(b->bf16);
    free(b->blocks);
    free(b->bytes);
    free(b->scratch);
}

/* ---- the whole program ----------------------------------------------------------------------- */

/* What a token costs: numbers in the layers' matrices, and bytes of these and of the head. */
typedef struct {
    double layer_weights, weight_bytes;
} Cost;

static Cost model_cost(const Model *m)
{
    const Tensor *head = &m->decoder.output.w;
    Cost c = {.weight_bytes = (double)(head->rows * head->row_bytes)};
    for (size_t i = 0; i < m->file.n_tensors; i++) {
        const GgufTensor *t = &m->file.tensors[i];
        if (t->n_dims < 2 || t->name.len < 4 || memcmp(t->name.ptr, "blk.", 4))
            continue;
        c.layer_weights += (double)t->shape[0] * (double)t->shape[1] * (double)t->shape[2]
                         * (double)t->shape[3];
        c.weight_bytes += (double)t->size;
    }
    return c;
}

/* Bytes of the keys and values that a token at position n reads. */
static double cache_bytes(const Config *c, int n)
{
    double bytes = 0;
    for (int i = 0; i < c->n_layers; i++) {
        const LayerConfig *l = &c->layers[i];
        int keys = l->mask == MASK_WINDOW && l->window < n ? l->window : n;
        bytes += (double)keys * (double)(k_width(l) + v_width(l)) * 2;
    }
    return bytes;
}

/* One line: tokens a second; a prefill's arithmetic beside the f32 peak (int8 products pass it), a
 * decode's bytes beside what memory gives. */
static void print_timing(const Settings *s, const Model *m, const Bench *b, const Kernels *k,
                         int n_threads, bool first)
{
    const Timing *t = b->n_prompt ? &b->prefill : &b->decode;
    int n = b->n_prompt + b->n_generate;
    Cost cost = model_cost(m);
    double middle = n / timing_median(t), low = n / t->seconds[t->n - 1], high = n / t->seconds[0],
           peak = 0;
    double rate = middle
                * (b->n_prompt
                       ? 2 * cost.layer_weights
                       : cost.weight_bytes + cache_bytes(&m->decoder.config, b->depth + n / 2))
                * 1e-9;
    const char *name = b->n_prompt ? "prefill" : "decode", *unit = b->n_prompt ? "GFLOP/s" : "GB/s";
    for (int i = 0; i < MAX_TABLES && kernels_at(i); i++)
        if (kernels_at(i) == k)
            peak = s->peak[i][F32] * n_threads;
    if (!b->n_prompt)
        peak = s->read[n_threads > 1];
    if (s->json)
        printf("%s{\"threads\": %d, \"work\": \"%s\", \"tokens\": %d, \"depth\": %d, \"tps\": "
               "%.6g, \"tps_min\": %.6g, \"tps_max\": %.6g, "
               "\"rate\": %.6g, \"unit\": \"%s\"}",
               first ? "" : ", ", n_threads, name, n, b->depth, middle, low, high, rate, unit);
    else
        printf("%7d  %-8s %6d %6d %10.1f %10.1f %10.1f %9.1f %-8s", n_threads, name, n, b->depth,
               middle, low, high, rate, unit);
    if (!s->json && peak > 0)
        printf(" %5.0f %%", 100 * rate / peak);
    fputs(s->json ? "" : "\n", stdout);
    fflush(stdout);
}

static int print_model(const Settings *s, const char *path, bool first, Err *e)
{
    static const int full[][3] = {{512, 0, 0},  {512, 0, 2048}, {0, 64, 0},
                                  {0, 64, 512}, {0, 64, 2048},  {0}};
    static const int quick[][3] = {
        {8, 0, 0}, {0, 2, 0}, {0, 2, 64}, {0}}; // prompt, generated, depth
    Model m;
    const Kernels *k = kernels_select(getenv("RUN_CPU"), e);
    if (!k || model_open(&m, path, true, e))
        return -1;
    char shown[200];
    Buf name = {0};
    json_text(&(Json){.out = &name}, path);
    if (s->json)
        printf("%s{\"model\": %s, \"parameters\": %zu, \"table\": \"%s\", \"runs\": [",
               first ? "" : ", ", name.failed ? "null" : name.ptr, m.n_params, k->name);
    else
        printf("%s, %.1f M parameters, %.1f MB read a token, %s\n%7s  %-8s %6s %6s %10s %10s %10s "
               "%18s %7s\n",
               str_escape((Str){path, strlen(path)}, shown, sizeof shown), (double)m.n_params / 1e6,
               model_cost(&m).weight_bytes / 1e6, k->name, "threads", "work", "tokens", "depth",
               "tokens/s", "slowest", "fastest", "rate", "of peak");
    buf_free(&name);
    const int (*work)[3] = s->quick ? quick : full;
    int rc = 0;
    for (int n = 1; !rc && n <= s->n_threads; n = n < s->n_threads ? s->n_threads : n + 1) {
        Threads threads;
        threads_init(&threads, n, NULL);
        for (int i = 0; !rc && work[i][0] + work[i][1]; i++) {
            Bench b = {.n_prompt = work[i][0],
                       .n_generate = work[i][1],
                       .depth = work[i][2],
                       .n_runs = s->quick ? 1 : 3};
            rc = timing_run(&m,
                            (SessionParams){.max_batch = 512,
                                            .threads = &threads,
                                            .kv_type = KV_F16,
                                            .kernels = k},
                            &b, e);
            if (!rc)
                print_timing(s, &m, &b, k, n, n == 1 && i == 0);
        }
        threads_free(&threads);
    }
    fputs(s->json ? "]}" : "\n", stdout);
    model_close(&m);
    return rc;
}

/* ---- main ------------------------------------------------------------------------------------ */

static int all(Settings *s, char **models, int n_models, Err *e)
{
    Buffers b;
    int rc = buffers_init(&b, e);
    if (!rc) {
        if (s->json)
            printf("{\"threads\": %d, ", s->n_threads);
        print_peaks(s);
        print_kernels(s, &b);
        fputs(s->json ? ", \"models\": [" : "", stdout);
        for (int i = 0; !rc && i < n_models; i++)
            rc = print_model(s, models[i], i == 0, e);
        fputs(s->json ? "]}\n" : "", stdout);
    }
    buffers_free(&b);
    return rc;
}

static int bandwidth(const Settings *s, Err *e)
{
    double low, high, rate = read_bandwidth(s, s->n_threads, &low, &high);
    if (rate < 0)
        return err_set(e, EXIT_MEMORY, "out of memory");
    printf("{\"threads\": %d, \"gb_s\": %.6g, \"gb_s_min\": %.6g, \"gb_s_max\": %.6g}\n",
           s->n_threads, rate, low, high);
    return 0;
}

int main(int argc, char **argv)
{
    Settings s = {.n_threads = cpu_threads()};
    bool only_bandwidth = false;
    int n_models = 0, rc;
    Err e = {0};
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "--json")) {
            s.json = true;
        } else if (!strcmp(argv[i], "--quick")) {
            s.quick = true;
        } else if (!strcmp(argv[i], "--bandwidth")) {
            only_bandwidth = true;
        } else if (!strcmp(argv[i], "-t") && i + 1 < argc && atoi(argv[i + 1]) > 0) {
            s.n_threads = atoi(argv[++i]);
        } else if (argv[i][0] != '-') {
            argv[1 + n_models++] = argv[i];
        } else {
            fprintf(stderr,
                    "usage: kernels_bench [--json] [--quick] [--bandwidth] [-t N] [MODEL ...]\n");
            return EXIT_USAGE;
        }
#ifndef _OPENMP
    s.n_threads = 1;
#endif
    s.n_passes = s.quick ? 2 : only_bandwidth ? 5 : MAX_PASSES;
    s.size = s.quick ? 16 * PIECE : (size_t)512 * PIECE;
    rc = only_bandwidth ? bandwidth(&s, &e) : all(&s, argv + 1, n_models, &e);
    if (rc)
        fprintf(stderr, "kernels_bench: %s\n", e.text);
    return rc ? e.code : EXIT_OK;
}
