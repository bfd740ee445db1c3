/* parallel.h - many texts at once: streams that decode together in one session, each entering as
 * another leaves (continuous batching). Texts that are given run through in the same way.
 *
 * A text's result does not depend on its neighbours, because forward() computes every row alone. A
 * text that begins like one whose keys and values are in the cache takes these over.
 *
 *     while (texts wait or p->n_running) {
 *         while (a text waits and parallel_add(p, text)) ...;
 *         parallel_step(p, e);     calls p->done(context, text) for each text that has ended
 *     }
 */
#ifndef PARALLEL_H
#define PARALLEL_H

#include "generate/stream.h"
#include "model.h"

/* A text under way. The caller fills in the stream (see stream_init()) and keeps it in place. */
typedef struct {
    Stream stream;
    void *owner;                   // the caller's
    Buf shown;                     // what was printed of it so far
    int seq;                       // its sequence
    int n_cached;                  // tokens whose keys and values were taken over
    double began, prompted, ended; // when it entered, had its prompt run, and left: seconds
    Err err;                       // err.code other than EXIT_OK: it has failed
} ParallelText;

/* A sequence of the session: what its part of the cache holds, and the text that it serves. */
typedef struct {
    TokenList held;     // the tokens whose keys and values are there
    ParallelText *text; // NULL: free, and `held` may be taken over or dropped
    int n_reserved;     // blocks that the text may come to need
    uint64_t last_used;
} ParallelSlot;

/* A row of a step whose logits are wanted, for the token of the text that follows. */
typedef struct {
    ParallelText *text;
    size_t next;
} ParallelRow;

typedef struct {
    Session *session;
    Sampler *samplers;   // (n_threads)
    ParallelSlot *slots; // (n_seqs)
    int *running;        // (n_seqs) slots with a text, in the order in which these came
    int n_running;
    Span *spans;       // (n_seqs) of a step
    bool *wanted;      // (max_batch) of its rows
    ParallelRow *rows; // (max_logits) those that are
    int n_spans, n_rows;
    int n_threads;
    uint64_t clock;
    void (*done)(void *context, ParallelText *text);
    void *context;
} Parallel;

/* `done` is called by the thread that steps. 0, or -1 (EXIT_MEMORY). */
int parallel_init(Parallel *p, Session *s, void (*done)(void *context, ParallelText *text),
                  void *context, Err *e);
void parallel_free(Parallel *p); // a zeroed one is fine

/* Take a text in. False when it has to wait: for a sequence, for blocks of the cache (once a text
 * is in, its blocks are sure), or for the beginning that it shares with a text whose prompt is
 * being run. A text alone in the pool never waits. */
bool parallel_add(Parallel *p, ParallelText *text);

/* One pass of the model: a token of every text that generates, and as much of the prompts and of
 * given texts as the pass has room for. -1 when the pass has failed (see forward()). Inside the
 * team of threads. */
int parallel_step(Parallel *p, Err *e);

#endif
