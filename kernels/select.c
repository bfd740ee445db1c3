/* select.c - which kernel tables this machine can run, and the choice between them. */
#include "kernels/kernels.h"

#include <string.h>
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

extern const Kernels kernels_scalar; // portable.c
#if defined(__x86_64__)
extern const Kernels kernels_avx2, kernels_avx512;
extern const Bf16Kernels kernels_bf16;

static bool has_avx2(void)
{
    // every AVX2 machine has F16C
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
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
            snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s", i ? ", " : "",
                     k->name);
        err_set(e, EXIT_USAGE, "RUN_CPU: got \"%s\", want one of: %s",
                str_escape((Str){cap, strlen(cap)}, shown, sizeof shown), names);
    }
    return best;
}
