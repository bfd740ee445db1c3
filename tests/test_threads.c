/* test_threads.c - the team of base/threads.c: every item once, whatever the sizes and however the
 * threads interleave. `make tsan` runs it under the thread sanitizer, which sees missing ordering;
 * for this all results are plain memory. Built without OpenMP it tests the one thread that is left.
 */
#include <string.h>

#include "base/threads.h"
#include "base/util.h"
#include "tests/check.h"

enum { MAX_ITEMS = 5000, MAX_TEAM = 8 };

/* A job's context. */
typedef struct {
    int n, n_threads, number;
    int runs[MAX_ITEMS];      // (n) how often each item was run
    int number_of[MAX_ITEMS]; // (n) `number` as the item's thread saw it
    int scratch[MAX_TEAM];    // (n_threads) each thread's own: two on one would be a race
    atomic_int faults;        // ranges or threads that cannot be
} Items;

static void mark(Items *x, int from, int to, int thread)
{
    if (from < 0 || from >= to || to > x->n || thread < 0 || thread >= x->n_threads) {
        atomic_fetch_add(&x->faults, 1);
        return;
    }
    for (int i = from; i < to; i++) {
        x->runs[i]++;
        x->number_of[i] = x->number;
    }
    x->scratch[thread]++;
}

/* Two functions, for jobs of odd and of even numbers. */
static void run_odd(void *context, int from, int to, int thread)
{
    Items *x = context;
    atomic_fetch_add(&x->faults, x->number % 2 != 1);
    mark(x, from, to, thread);
}

static void run_even(void *context, int from, int to, int thread)
{
    Items *x = context;
    atomic_fetch_add(&x->faults, x->number % 2 != 0);
    mark(x, from, to, thread);
}

/* Run job `number` on *x and look at what it left. */
static void run_job(Threads *t, Items *x, int number, int n, int grain, bool parts)
{
    int wrong = 0;
    memset(x->runs, 0, sizeof *x->runs * (size_t)n);
    x->n = n;
    x->n_threads = t->n_threads;
    x->number = number;
    (parts ? threads_run_parts : threads_run)(t, n, grain, number % 2 ? run_odd : run_even, x);
    for (int i = 0; i < n; i++)
        wrong += x->runs[i] != 1 || x->number_of[i] != number;
    CHECK(!wrong && !x->faults, "%d of %d items, grain %d, %d threads, parts %d, %d faults", wrong,
          n, grain, t->n_threads, parts, x->faults);
}

/* ---- every item once ------------------------------------------------------------------------- */

static void all_sizes(void *context)
{
    static const int sizes[] = {0, 1, 2, 3, 7, 8, 9, 63, 64, 65, 1000, 4099, MAX_ITEMS};
    static const int grains[] = {1, 2, 7, 64, MAX_ITEMS + 1};
    static Items x;
    int number = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (size_t g = 0; g < sizeof grains / sizeof *grains; g++)
            for (int parts = 0; parts < 2; parts++)
                run_job(context, &x, number++, sizes[i], grains[g], parts);
}

/* Small and large jobs in turn, one right after the other, each with a context that the job before
 * the last had too: a thread that was late would run a job's range with another's function, size or
 * context. More threads than cores, so that some are suspended at every point of the code. */
static void in_a_row(void *context)
{
    static Items x[3];
    for (int i = 0; i < 20000; i++)
        run_job(context, &x[i % 3], i, 2 + i * 7 % 11 * (i % 2 ? 1 : 40), 1 + i % 3, i % 5 == 0);
}

static void test_once(void)
{
    for (int n = 1; n <= MAX_TEAM; n++) {
        Threads t = {.n_threads = n};
        all_sizes(&t); // without a team
        threads_team(&t, all_sizes, &t);
        CHECK(!t.open, "%d threads", n);
    }
    for (int n = 2; n <= MAX_TEAM; n += 3) {
        Threads t = {.n_threads = n};
        threads_team(&t, in_a_row, &t);
    }
}

/* ---- the order of ranges --------------------------------------------------------------------- */

typedef struct {
    int from[64], n;
} Order;

static void note_order(void *context, int from, int to, int thread)
{
    Order *o = context;
    CHECK(thread == 0 && to == from + 1 && o->n < 64, "%d to %d", from, to);
    o->from[o->n++] = from;
}

/* The caller of a team whose other threads never come takes every range, in the order in which they
 * are handed out. */
static void test_order(void)
{
    for (int n = 2; n <= 24; n++) {
        Threads t = {.n_threads = 3, .open = true};
        Order ascending = {0}, parts = {0};
        threads_run(&t, n, 1, note_order, &ascending);
        threads_run_parts(&t, n, 1, note_order, &parts);
        CHECK(ascending.n == n && parts.n == n, "%d and %d of %d", ascending.n, parts.n, n);
        int first[4] = {0, (n + 2) / 3, (n + 2) / 3 + (n + 1) / 3, n};
        for (int i = 0; i < n; i++) {
            CHECK(ascending.from[i] == i, "%d: %d", i, ascending.from[i]);
            CHECK(parts.from[i] == first[i % 3] + i / 3, "%d of %d: %d", i, n, parts.from[i]);
        }
    }
}

/* ---- stop ------------------------------------------------------------------------------------ */

typedef struct {
    Items x;
    Threads t;
    atomic_int stop, ranges;
} Stopped;

/* The first range asks to stop, the others wait for that: so no thread can begin a second one. */
static void stop_at_first(void *context, int from, int to, int thread)
{
    Stopped *s = context;
    atomic_fetch_add(&s->ranges, 1);
    if (from == 0)
        atomic_store(&s->stop, 1);
    while (!atomic_load(&s->stop))
        ;
    mark(&s->x, from, to, thread);
}

static void stop_and_go_on(void *context)
{
    Stopped *s = context;
    for (int i = 0; i < 50; i++) {
        int most = s->t.open ? s->t.n_threads : 1, wrong = 0;
        s->x.n = 1000;
        memset(s->x.runs, 0, sizeof s->x.runs);
        atomic_store(&s->ranges, 0);
        (i % 2 ? threads_run_parts : threads_run)(&s->t, s->x.n, 1, stop_at_first, s);
        for (int k = 0; k < s->x.n; k++)
            wrong += s->x.runs[k] > 1;
        CHECK(!wrong && !s->x.faults && s->ranges >= 1 && s->ranges <= most, "%d, %d of %d ranges",
              wrong, s->ranges, most);
        threads_run(&s->t, 100, 1, run_odd, &s->x); // stopped before it begins
        atomic_store(&s->stop, 0);
        run_job(&s->t, &s->x, i, 1000, 1, i % 2);
    }
}

static void test_stop(void)
{
    for (int n = 1; n <= MAX_TEAM; n += 2) {
        static Stopped s;
        s.x.n_threads = n;
        s.t = (Threads){.n_threads = n, .stop = &s.stop};
        threads_team(&s.t, stop_and_go_on, &s);
    }
}

/* ---- teams ----------------------------------------------------------------------------------- */

typedef struct {
    Threads t;
    Items x;
    int bodies; // that were run
} Nested;

static void inner(void *context)
{
    Nested *n = context;
    n->bodies++;
    run_job(&n->t, &n->x, n->bodies, 500, 1, false);
}

static void outer(void *context)
{
    Nested *n = context;
    bool open = n->t.open;
    for (int i = 0; i < 3; i++) {
        threads_team(&n->t, inner, n);
        CHECK(n->t.open == open, "%d threads", n->t.n_threads);
    }
    inner(n);
}

/* A team within a team is a plain call, and one team after the other works. */
static void test_teams(void)
{
    static Nested n;
    for (int i = 0; i < 100; i++) {
        n.t.n_threads = 1 + i % MAX_TEAM;
        n.bodies = 0;
        threads_team(&n.t, outer, &n);
        CHECK(n.bodies == 4 && !n.t.open, "%d", n.bodies);
    }
}

#ifdef _OPENMP
enum { TOGETHER = 3 };

/* Each range waits for the others, at most ten seconds. */
static void meet(void *context, int from, int to, int thread)
{
    atomic_int *here = context;
    double begin = clock_seconds();
    (void)from, (void)to, (void)thread;
    atomic_fetch_add(here, 1);
    while (atomic_load(here) < TOGETHER && clock_seconds() < begin + 10)
        ;
}

static void meet_once(void *context)
{
    atomic_int here = 0;
    double begin = clock_seconds();
    threads_run(context, TOGETHER, 1, meet, &here);
    CHECK(clock_seconds() < begin + 10, "%d threads are there", here);
}
#endif

/* The threads of a team work at the same time. */
static void test_together(void)
{
#ifdef _OPENMP
    Threads t = {.n_threads = TOGETHER};
    threads_team(&t, meet_once, &t);
#endif
}

static void test_granted(void)
{
    CHECK(threads_granted(1) == 1, "%d", threads_granted(1));
    CHECK(threads_granted(3) >= 1 && threads_granted(3) <= 3, "%d", threads_granted(3));
}

int main(void)
{
    test_order();
    test_once();
    test_stop();
    test_teams();
    test_together();
    test_granted();
    return check_done("test_threads");
}
