/* kernels/select.c - the portable kernel table, the reference for all others, and the choice between them. */
#include "kernels/portable.inc"

#include <string.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

static void gemm(size_t rows, size_t cols, size_t n, const float *w, size_t ldw, const float *x, size_t ldx, float *y,
                 size_t ldy)
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

static void gemm_add(size_t rows, size_t n, size_t width, const float *a, size_t lda, const float *b, size_t ldb,
                     float *y, size_t ldy)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < n; k++)
            for (size_t i = 0; i < width; i++)
                y[r * ldy + i] += a[r * lda + k] * b[k * ldb + i];
}

static void gemm_add_f16(size_t rows, size_t n, size_t width, const float *a, size_t lda, const uint16_t *b, size_t ldb,
                         float *y, size_t ldy)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < n; k++)
            for (size_t i = 0; i < width; i++)
                y[r * ldy + i] += a[r * lda + k] * f16_f32(b[k * ldb + i]);
}

static void gemm_add_i8(size_t rows, size_t n, size_t width, const float *a, size_t lda, const int8_t *b, size_t ldb,
                        float *y, size_t ldy)
{
    for (size_t r = 0; r < rows; r++)
        for (size_t k = 0; k < n; k++)
            for (size_t i = 0; i < width; i++)
                y[r * ldy + i] += a[r * lda + k] * (float)b[k * ldb + i];
}

static float soft(float *x, size_t n, float scale, float *max)
{
    for (size_t i = 0; i < n; i++) {
        x[i] *= scale;
        *max = x[i] > *max ? x[i] : *max;
    }
    return exp_sum(x, n, *max);
}

static const Kernels kernels_scalar = {
    .name = "scalar", PORTABLE_KERNELS, .dequantize = PORTABLE_DEQUANTIZE(dequantize_f16),
    .quantize = quantize, .soft = soft, .gemm = gemm, .gemm_add = gemm_add, .gemm_add_f16 = gemm_add_f16,
    .gemm_add_i8 = gemm_add_i8,
};

#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512;
extern const Bf16Kernels kernels_bf16;

static bool has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); // every AVX2 machine has F16C
}

static bool has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
        && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512vnni");
}

/* kernels_avx512, with kernels/bf16.c where the compiler and the machine have its instructions. */
static const Kernels *avx512(void)
{
#ifdef HAVE_BF16
    static Kernels with_bf16;
    if (__builtin_cpu_supports("avx512bf16")) {
        with_bf16 = kernels_avx512;
        with_bf16.bf16 = &kernels_bf16;
        return &with_bf16;
    }
#endif
    return &kernels_avx512;
}
#elif defined(__aarch64__)
extern const Kernels kernels_neon, kernels_dotprod;
#endif

const Kernels *kernels_at(int index)
{
    const Kernels *found[4] = {&kernels_scalar};
    int n = 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (has_avx2())
        found[n++] = &kernels_avx2;
    if (has_avx512())
        found[n++] = avx512();
#elif defined(__aarch64__)
    found[n++] = &kernels_neon;
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP)
        found[n++] = &kernels_dotprod;
#endif
    return index >= 0 && index < n ? found[index] : NULL;
}

const Kernels *kernels_select(const char *cap, Err *e)
{
    const Kernels *best = NULL, *k;
    for (int i = 0; (k = kernels_at(i)); i++)
        if (!cap || !*cap || !strcmp(cap, k->name))
            best = k;
    if (!best) {
        char names[64] = "", shown[64];
        for (int i = 0; (k = kernels_at(i)); i++)
            snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? ", " : "", k->name);
        err_set(e, EXIT_USAGE, "RUN_CPU: got \"%s\", want one of: %s", str_escape((Str){cap, strlen(cap)}, shown, sizeof shown),
                names);
    }
    return best;
}
