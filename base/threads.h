/* threads.h - ranges of work shared by a team of threads.
 *
 * OpenMP makes the threads; how they share is ours. threads_team() runs a body on the calling
 * thread with the others standing by, and inside it threads_run() hands out ranges of work. A
 * thread that the system has suspended delays nothing but the range it is in: the others take all
 * that is left. (An OpenMP loop ends in a barrier, where all wait for such a thread.) Only the end
 * of a team waits for every thread, so a caller that runs many tokens keeps one team over all of
 * them.
 */
#ifndef THREADS_H
#define THREADS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/util.h"

/* Work on items from .. to - 1, as thread number `thread` of the team (0 is the caller). */
typedef void (*RangeFn)(void *context, int from, int to, int thread);

typedef struct {
    _Atomic(RangeFn) fn;
    _Atomic(void *) context;
    atomic_int n_items, n_ranges;
    atomic_bool parts;
} ThreadJob;

typedef struct {
    int n_threads;
    const atomic_int *stop; // other than 0 ends the work: see threads_run(). NULL: never
    bool open;              // inside threads_team()
    bool busy;              // inside threads_run()
    Arena arena;
    float *scratch; // (n_threads, scratch_floats), see threads_prepare()
    size_t scratch_floats;
    _Alignas(64) ThreadJob jobs[2];           // which waiting threads read again and again
    _Alignas(64) atomic_uint_fast64_t ticket; // number of the present job << 32 | its next range
    _Alignas(64) atomic_int done;             // ranges of the present job that are finished
    _Alignas(64) atomic_bool closing;
} Threads;

/* A team of n threads, which a signal may stop (stop NULL: nothing does). Nothing is allocated. */
void threads_init(Threads *t, int n, const atomic_int *stop);
void threads_free(Threads *t);

/* Make the team ready for work that needs `floats` floats of scratch a thread: the scratch grows,
 * and n_threads falls to what the system grants after what is allocated by now. -1 and an Err
 * (EXIT_MEMORY) when there is no memory. */
int threads_prepare(Threads *t, size_t floats, Err *e);

/* The scratch of one thread, zero at first; other threads of the team do not touch it. */
static inline float *threads_scratch(const Threads *t, int thread)
{
    return t->scratch + (size_t)thread * t->scratch_floats;
}

/* Whether *stop has been set: the results of the work are not complete. */
static inline bool threads_stopped(const Threads *t)
{
    return t->stop && *t->stop;
}

/* How many threads of n the system grants at present, where limits on memory or processes
 * (`ulimit`) allow no more. A child process tries it, because the OpenMP library ends the program
 * when it cannot make those that a team asks for. */
int threads_granted(int n);

/* Run body(context) with up to t->n_threads threads at hand; within a team it is a plain call.
 * Waiting threads go to sleep after some milliseconds. */
void threads_team(Threads *t, void (*body)(void *context), void *context);

/* Cut n items into ranges of about `grain` items or more and run fn on each; returns when all are
 * done, and what they wrote can be read. Results must not depend on the cut, and fn must not call
 * threads_run() of its own team. Once *stop is not 0, ranges that nobody has begun are left out:
 * look at it before a result is used. */
void threads_run(Threads *t, int n, int grain, RangeFn fn, void *context);

/* The same for work that reads memory in order and profits from prefetching: threads_run() hands
 * out ranges in ascending order; here each thread walks through a part of its own, as long as all
 * are about as fast. */
void threads_run_parts(Threads *t, int n, int grain, RangeFn fn, void *context);

#endif
