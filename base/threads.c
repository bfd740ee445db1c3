/* threads.c - ranges of work shared by a team of threads. The reasons are in threads.h. */
#include "base/threads.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef _OPENMP
#include <omp.h>
#endif

enum { RANGES_PER_THREAD = 8, RANGES_ALONE = 64, PAUSES = 1000, YIELDS = 10000 };

/* One step of waiting: first pauses, then the processor is offered to others, after some
 * milliseconds short sleeps. *steps starts at 0. */
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

/* Range number of the job's `turn`th turn where each of n_threads threads has a part of its own:
 * threads that take turns each get the next range of their part. The first parts have one more. */
static int range_of_part(int turn, int n_ranges, int n_threads)
{
    int part = turn % n_threads, longer = n_ranges % n_threads;
    return part * (n_ranges / n_threads) + (part < longer ? part : longer) + turn / n_threads;
}

/* Take one range of the present job and run it; false when none is left to take. A thread that has
 * read an old job's slot finds the ticket changed, because a slot is written again only two jobs
 * later; until then its job is the present one, whose slot nobody writes. */
static bool take_range(Threads *t, int thread)
{
    uint_fast64_t ticket = atomic_load_explicit(&t->ticket, memory_order_acquire);
    for (;;) {
        ThreadJob *job = &t->jobs[ticket >> 32 & 1];
        int range = (int)(ticket & 0xffffffffu);
        int n_ranges = atomic_load_explicit(&job->n_ranges, memory_order_relaxed);
        int64_t n = atomic_load_explicit(&job->n_items, memory_order_relaxed);
        RangeFn fn = atomic_load_explicit(&job->fn, memory_order_relaxed);
        void *context = atomic_load_explicit(&job->context, memory_order_relaxed);
        bool parts = atomic_load_explicit(&job->parts, memory_order_relaxed);
        if (range >= n_ranges)
            return false;
        if (!atomic_compare_exchange_weak_explicit(&t->ticket, &ticket, ticket + 1,
                                                   memory_order_acq_rel, memory_order_acquire))
            continue;
        if (parts)
            range = range_of_part(range, n_ranges, t->n_threads);
        if (!threads_stopped(t))
            fn(context, (int)(n * range / n_ranges), (int)(n * (range + 1) / n_ranges), thread);
        atomic_fetch_add_explicit(&t->done, 1, memory_order_release);
        return true;
    }
}

#ifdef _OPENMP

/* Bytes of the stack of a thread that OpenMP makes, 0 where it is the system's usual one. */
static size_t stack_size(void)
{
    static const char units[] = "BKMG";
    const char *text = getenv("OMP_STACKSIZE"), *found;
    unsigned long long n;
    char unit = 'K';
    if (!text || sscanf(text, "%llu %c", &n, &unit) < 1)
        return 0;
    found = strchr(units, toupper((unsigned char)unit));
    return found ? (size_t)n << 10 * (found - units) : 0;
}

static void *stand_by(void *unused)
{
    for (;;)
        pause();
    return unused;
}

/* Whether this process has a limit on memory, or a low one on its user's processes, that threads
 * may meet. */
static bool is_limited(void)
{
    enum { MANY_PROCESSES = 4096 };
    static const struct {
        int kind;
        rlim_t plenty; // a limit from here on is none
    } limits[] = {
        {RLIMIT_AS, RLIM_INFINITY}, {RLIMIT_DATA, RLIM_INFINITY}, {RLIMIT_NPROC, MANY_PROCESSES}};
    struct rlimit r;
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (!getrlimit(limits[i].kind, &r) && r.rlim_cur < limits[i].plenty)
            return true;
    return false;
}

/* Make up to n - 1 threads and end with how many there are of n, as an exit status; 0 for all. */
static void try_threads(int n)
{
    pthread_attr_t a;
    pthread_t id;
    int made = 1;
    pthread_attr_init(&a);
    if (stack_size())
        pthread_attr_setstacksize(&a, stack_size());
    while (made < n && !pthread_create(&id, &a, stand_by, NULL))
        made++;
    _exit(made == n ? 0 : made < 255 ? made : 255);
}

#endif

int threads_granted(int n)
{
#ifdef _OPENMP
    int status;
    if (n < 2 || !is_limited())
        return n;
    signal(SIGCHLD, SIG_DFL); // where it is ignored there is no status
    pid_t child = fork();
    if (child < 0)
        return errno == EAGAIN ? 1 : n;
    if (child == 0)
        try_threads(n);
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return 1;
    int made = WIFEXITED(status) ? WEXITSTATUS(status) : 1;
    return !made ? n : made > 1 ? made / 2 : 1; // the run has a use for what they take, too
#else
    (void)n;
    return 1;
#endif
}

void threads_init(Threads *t, int n, const atomic_int *stop)
{
    assert(n > 0);
    *t = (Threads){.n_threads = n, .stop = stop};
}

void threads_free(Threads *t)
{
    arena_free(&t->arena);
}

int threads_prepare(Threads *t, size_t floats, Err *e)
{
    floats = (floats + 15) & ~(size_t)15; // whole cache lines
    if (floats > t->scratch_floats) {
        arena_free(&t->arena);
        t->scratch_floats = 0;
        arena_reserve(&t->arena, (size_t)t->n_threads, floats * sizeof *t->scratch);
        if (arena_commit(&t->arena, e))
            return -1;
        t->scratch = arena_reserve(&t->arena, (size_t)t->n_threads, floats * sizeof *t->scratch);
        t->scratch_floats = floats;
    }
    t->n_threads = threads_granted(t->n_threads);
    return 0;
}

void threads_team(Threads *t, void (*body)(void *context), void *context)
{
    if (t->open || t->n_threads < 2) { // open: the caller keeps a team over several calls
        body(context);
        return;
    }
#ifdef _OPENMP
    t->open = true;
    atomic_store(&t->closing, false);
#pragma omp parallel num_threads(t->n_threads)
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
    t->open = false;
#else
    body(context);
#endif
}

static void run_job(Threads *t, int n, int grain, bool parts, RangeFn fn, void *context)
{
    assert(n >= 0 && grain > 0 && !t->busy);
    t->busy = true;
    int most = t->open ? t->n_threads * RANGES_PER_THREAD : RANGES_ALONE;
    int n_ranges = (n + grain - 1) / grain;
    n_ranges = n_ranges < most ? n_ranges : most;
    if (!t->open || n_ranges < 2) {
        int64_t all = n;
        for (int i = 0; i < n_ranges && !threads_stopped(t); i++)
            fn(context, (int)(all * i / n_ranges), (int)(all * (i + 1) / n_ranges), 0);
        t->busy = false;
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
    t->busy = false;
}

void threads_run(Threads *t, int n, int grain, RangeFn fn, void *context)
{
    run_job(t, n, grain, false, fn, context);
}

void threads_run_parts(Threads *t, int n, int grain, RangeFn fn, void *context)
{
    run_job(t, n, grain, true, fn, context);
}
