/* threads.c - ranges of work shared by a team of threads. The reasons are in threads.h. */
#include "threads.h"

#include <sched.h>
#include <time.h>

#ifdef _OPENMP
#include <omp.h>
#endif

enum { RANGES_PER_THREAD = 8, PAUSES = 1000, YIELDS = 10000 };

/* One step of waiting: first pauses, then the processor is offered to others, after some milliseconds short sleeps. */
static void wait_step(int *steps)
{
    if (++*steps > PAUSES + YIELDS) {
        *steps = PAUSES + YIELDS;
        nanosleep(&(struct timespec){.tv_nsec = 100000}, NULL);
    } else if (*steps > PAUSES) {
        sched_yield();
    } else {
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
    }
}

/* Take one range of the present job and run it; false when none is left to take. A thread that read an old job finds the
 * ticket changed: a job's slot is written again only two jobs later. */
static bool take_range(Threads *t, int thread)
{
    uint_fast64_t ticket = atomic_load_explicit(&t->ticket, memory_order_acquire);
    for (;;) {
        ThreadJob *job = &t->jobs[ticket >> 32 & 1];
        int range = (int)(ticket & 0xffffffffu), n_ranges = atomic_load_explicit(&job->n_ranges, memory_order_relaxed);
        int64_t n = atomic_load_explicit(&job->n_items, memory_order_relaxed);
        RangeFn fn = atomic_load_explicit(&job->fn, memory_order_relaxed);
        void *context = atomic_load_explicit(&job->context, memory_order_relaxed);
        if (range >= n_ranges)
            return false;
        if (!atomic_compare_exchange_weak_explicit(&t->ticket, &ticket, ticket + 1, memory_order_acq_rel, memory_order_acquire))
            continue;
        if (atomic_load_explicit(&job->parts, memory_order_relaxed)) { // threads that take turns each get the next of their part
            int part = range % t->n_threads, longer = n_ranges % t->n_threads; // the first parts have a range more
            range = part * (n_ranges / t->n_threads) + (part < longer ? part : longer) + range / t->n_threads;
        }
        fn(context, (int)(n * range / n_ranges), (int)(n * (range + 1) / n_ranges), thread);
        atomic_fetch_add_explicit(&t->done, 1, memory_order_release);
        return true;
    }
}

void threads_team(Threads *t, void (*body)(void *context), void *context)
{
    if (t->open) { // the caller keeps a team over several calls
        body(context);
        return;
    }
    t->open = t->n_threads > 1;
    atomic_store(&t->closing, false);
#ifdef _OPENMP
#pragma omp parallel num_threads(t->n_threads) if (t->n_threads > 1)
    {
        int thread = omp_get_thread_num(), steps = 0;
        if (thread == 0) {
            body(context);
            atomic_store_explicit(&t->closing, true, memory_order_release);
        } else {
            while (!atomic_load_explicit(&t->closing, memory_order_acquire))
                if (take_range(t, thread))
                    steps = 0;
                else
                    wait_step(&steps);
        }
    }
#else
    body(context);
#endif
    t->open = false;
}

static void run_job(Threads *t, int n, int grain, bool parts, RangeFn fn, void *context)
{
    int most = t->n_threads * RANGES_PER_THREAD, n_ranges = (n + grain - 1) / grain;
    n_ranges = n_ranges < most ? n_ranges : most;
    if (!t->open || n_ranges < 2) {
        if (n > 0)
            fn(context, 0, n, 0);
        return;
    }
    uint_fast64_t number = (atomic_load_explicit(&t->ticket, memory_order_relaxed) >> 32) + 1;
    ThreadJob *job = &t->jobs[number & 1];
    atomic_store_explicit(&job->fn, fn, memory_order_relaxed);
    atomic_store_explicit(&job->context, context, memory_order_relaxed);
    atomic_store_explicit(&job->n_items, n, memory_order_relaxed);
    atomic_store_explicit(&job->n_ranges, n_ranges, memory_order_relaxed);
    atomic_store_explicit(&job->parts, parts, memory_order_relaxed);
    atomic_store_explicit(&t->done, 0, memory_order_relaxed);
    atomic_store_explicit(&t->ticket, number << 32, memory_order_release);
    while (take_range(t, 0))
        ;
    for (int steps = 0; atomic_load_explicit(&t->done, memory_order_acquire) < n_ranges;)
        wait_step(&steps);
}

void threads_run(Threads *t, int n, int grain, RangeFn fn, void *context)
{
    run_job(t, n, grain, false, fn, context);
}

void threads_run_parts(Threads *t, int n, int grain, RangeFn fn, void *context)
{
    run_job(t, n, grain, true, fn, context);
}
