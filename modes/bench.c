/* bench.c - the mode --bench: has timing.c measure the model and prints the result. */
#include "modes/modes.h"
#include "modes/timing.h"

static void print_timing(const Options *o, const char *name, int n, const Timing *t)
{
    double median = n / timing_median(t), low = n / t->seconds[t->n - 1], high = n / t->seconds[0];
    if (o->json)
        printf(", \"%s_tps\": %.6g, \"%s_tps_min\": %.6g, \"%s_tps_max\": %.6g", name, median, name,
               low, name, high);
    else
        printf("%-7s %5d tokens: %8.1f tokens/s (%.1f to %.1f in %d runs)\n", name, n, median, low,
               high, t->n);
}

int bench_mode(const Options *o, Err *e)
{
    Engine x;
    Bench b = {.n_prompt = o->bench_prompt,
               .n_generate = o->bench_generate,
               .depth = o->bench_depth,
               .n_runs = o->bench_runs};
    if (!b.n_prompt && !b.n_generate)
        return err_set(e, EXIT_USAGE, "--bench: --pp 0 and --tg 0 leave nothing to run");
    if (modes_open(&x, o, false, e))
        return -1;
    int rc = timing_run(&x.model, x.params, &b, e);
    const char *arch = x.model.decoder.config.arch, *kernels = x.params.kernels->name;
    const char *kv = kv_names[o->kv_type];
    if (!rc && (b.prefill.n || b.decode.n)) {
        if (o->json)
            printf("{\"arch\": \"%s\", \"parameters\": %zu, \"kernels\": \"%s\", "
                   "\"threads\": %d, \"kv\": \"%s\", \"pp\": %d, \"tg\": %d, \"depth\": %d",
                   arch, x.model.n_params, kernels, b.n_threads, kv, b.n_prompt, b.n_generate,
                   b.depth);
        else
            printf("%s, %.1f M parameters, kernels %s, %d threads, KV cache %s, depth %d\n", arch,
                   (double)x.model.n_params / 1e6, kernels, b.n_threads, kv, b.depth);
        if (b.prefill.n)
            print_timing(o, "prefill", b.n_prompt, &b.prefill);
        if (b.decode.n)
            print_timing(o, "decode", b.n_generate, &b.decode);
        fputs(o->json ? "}\n" : "", stdout);
        rc = fflush(stdout) || ferror(stdout) ? modes_print_failed(e) : 0;
    }
    return modes_close(&x, rc);
}
