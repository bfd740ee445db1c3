/* timing.c - measures how fast a model runs here. Contracts are in timing.h. */
#include "modes/timing.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "modes/modes.h"

typedef struct {
    Session *s;
    Bench *b;
    int *ids; // (depth + n_prompt or n_generate, whichever is more)
    Err *e;
    int rc;
} Work;

/* n tokens from position `from` on, at most `rows` in a pass; logits of each pass or of the last.
 */
static int run_tokens(Work *w, int from, int n, int rows, bool each)
{
    for (int i = 0, step; i < n && !threads_stopped(w->s->threads); i += step) {
        step = n - i < rows ? n - i : rows;
        bool last = each || i + step == n;
        Span span = {.n = step, .tokens = w->ids + from + i, .want = last ? WANT_LAST : WANT_NONE};
        if (forward_span(w->s, &span, w->e) < 0)
            return -1;
    }
    return 0;
}

/* One run from `depth` on, timed; the first of all is not kept. */
static int time_run(Work *w, int n, int rows, bool keep, Timing *t)
{
    int depth = w->b->depth, held = cache_truncate(&w->s->cache, 0, depth);
    if (run_tokens(w, held, depth - held, w->s->params.max_batch, false)) // see cache_truncate()
        return -1;
    double begin = clock_seconds();
    if (run_tokens(w, depth, n, rows, t == &w->b->decode))
        return -1;
    double seconds = clock_seconds() - begin;
    if (!keep || threads_stopped(w->s->threads))
        return 0;
    assert(t->n < BENCH_MAX_RUNS);
    int i = t->n++;
    for (; i > 0 && t->seconds[i - 1] > seconds; i--)
        t->seconds[i] = t->seconds[i - 1];
    t->seconds[i] = seconds;
    return 0;
}

static void run_all(void *context)
{
    Work *w = context;
    int rows = w->s->params.max_batch;
    bool progress = isatty(STDERR_FILENO);
    cache_expect(&w->s->cache, 0, w->s->params.seq_len); // all runs alike
    w->rc = run_tokens(w, 0, w->b->depth, rows, false);
    for (int i = 0; !w->rc && !threads_stopped(w->s->threads) && i <= w->b->n_runs; i++) {
        if (progress)
            fprintf(stderr, "\rbench: run %d of %d", i, w->b->n_runs);
        if (w->b->n_prompt)
            w->rc = time_run(w, w->b->n_prompt, rows, i > 0, &w->b->prefill);
        if (!w->rc && w->b->n_generate)
            w->rc = time_run(w, w->b->n_generate, 1, i > 0, &w->b->decode);
    }
    if (progress)
        fprintf(stderr, "\r\033[K");
}

int timing_run(const Model *m, SessionParams p, Bench *b, Err *e)
{
    Session s;
    int n = b->depth + (b->n_prompt > b->n_generate ? b->n_prompt : b->n_generate);
    uint32_t state = 1;
    int *ids = mem_alloc((size_t)n, sizeof *ids);
    if (!ids)
        return err_set(e, EXIT_MEMORY, "out of memory");
    for (int i = 0; i < n; i++) {
        state = state * 1664525u + 1013904223u;
        ids[i] = (int)((uint64_t)state * (uint64_t)m->decoder.config.vocab_size >> 32);
    }
    modes_sizes(&p, n, n, 1);
    b->prefill.n = b->decode.n = 0;
    int rc = session_init(&s, &m->decoder, &p, e);
    if (!rc) {
        b->n_threads = s.threads->n_threads;
        Work w = {&s, b, ids, e, 0};
        threads_team(s.threads, run_all, &w);
        rc = w.rc;
        session_free(&s);
    }
    free(ids);
    return rc;
}

double timing_median(const Timing *t)
{
    return !t->n    ? NAN
         : t->n % 2 ? t->seconds[t->n / 2]
                    : (t->seconds[t->n / 2 - 1] + t->seconds[t->n / 2]) / 2;
}
