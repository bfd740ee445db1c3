/* timing.h - measures how fast a model runs here. */
#ifndef TIMING_H
#define TIMING_H

#include "modes/options.h"

/* Seconds of each run, ascending; how many were made before a signal. */
typedef struct {
    double seconds[BENCH_MAX_RUNS];
    int n;
} Timing;

typedef struct {
    int n_prompt, n_generate; // tokens of a prefill, of a generation
    int depth;                // tokens in the cache before either
    int n_runs;               // timed ones of each, 1 to BENCH_MAX_RUNS
    int n_threads;            // that took part
    Timing prefill, decode;
} Bench;

/* Time n_runs prefills and generations, after one untimed warm-up of each. A prefill is n_prompt
 * tokens with the last one's logits; a generation is n_generate times one token with its logits.
 * Tokens are random, so that nothing depends on a text. `p` has all but the sizes, and max_batch as
 * the rows of one pass at most. 0; or -1 and an Err, which is empty after a signal. */
int timing_run(const Model *m, SessionParams p, Bench *b, Err *e);

double timing_median(const Timing *t); // NAN for none

#endif
