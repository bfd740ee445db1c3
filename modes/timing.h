/* timing.h - measures how fast a model runs here. */
#ifndef TIMING_H
#define TIMING_H

#include <stdatomic.h>

#include "model.h"

enum { BENCH_MAX_RUNS = 100 };

/* Seconds of each run, ascending; how many were made before *stop. */
typedef struct {
    double seconds[BENCH_MAX_RUNS];
    int n;
} Timing;

typedef struct {
    int n_prompt, n_generate,
        depth;     // tokens of a prefill, of a generation; tokens in the cache before either
    int n_runs;    // timed ones of each, 1 to BENCH_MAX_RUNS
    int n_threads; // that took part
    Timing prefill, decode;
} Bench;

/* Time n_runs prefills and generations, after one untimed warm-up of each. A prefill is n_prompt
 * tokens with the last one's logits; a generation is n_generate times one token with its logits.
 * Tokens are random, so that nothing depends on a text. `p` has n_threads, kv_type, kernels, and
 * max_batch as the rows of one pass. */
int timing_run(const Model *m, SessionParams p, Bench *b, const atomic_int *stop, Err *e);

double timing_median(const Timing *t); // NAN for none

#endif
