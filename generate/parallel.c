/* parallel.c - see parallel.h. */
#include "generate/parallel.h"

#include <stdlib.h>
#include <string.h>

/* A text waits for a neighbour that is running the beginning they share when this saves so many
 * tokens. */
enum { WORTH_WAITING = 16 };

static int n_seqs(const Parallel *p)
{
    return p->session->params.n_seqs;
}

int parallel_init(Parallel *p, Session *s, void (*done)(void *context, ParallelText *text),
                  void *context, Err *e)
{
    size_t n = (size_t)s->params.n_seqs;
    *p = (Parallel){
        .session = s, .n_threads = s->threads->n_threads, .done = done, .context = context};
    p->slots = mem_zalloc(n, sizeof *p->slots);
    p->running = mem_zalloc(n, sizeof *p->running);
    p->spans = mem_zalloc(n, sizeof *p->spans);
    p->wanted = mem_zalloc((size_t)s->params.max_batch, sizeof *p->wanted);
    p->rows = mem_zalloc((size_t)s->params.max_logits, sizeof *p->rows);
    p->samplers = mem_zalloc((size_t)p->n_threads, sizeof *p->samplers);
    bool failed = !p->slots || !p->running || !p->spans || !p->wanted || !p->rows || !p->samplers;
    for (int i = 0; !failed && i < p->n_threads; i++)
        failed = sampler_init(&p->samplers[i], s->stack->config.vocab_size, s->k, e) != 0;
    if (!failed)
        return 0;
    parallel_free(p);
    return err_set(e, EXIT_MEMORY, "out of memory for %zu texts at once", n);
}

void parallel_free(Parallel *p)
{
    for (int i = 0; p->slots && i < n_seqs(p); i++)
        tokens_free(&p->slots[i].held);
    for (int i = 0; p->samplers && i < p->n_threads; i++)
        sampler_free(&p->samplers[i]);
    free(p->slots);
    free(p->running);
    free(p->spans);
    free(p->wanted);
    free(p->rows);
    free(p->samplers);
    *p = (Parallel){0};
}

/* ---- entering -------------------------------------------------------------------------------- */

/* Tokens of a text that are to be run: of a given one all but the last. */
static size_t n_to_run(const Stream *s)
{
    return s->text.n - s->given;
}

/* Blocks that a text may come to need. */
static int blocks_needed(const Stream *s)
{
    size_t most = (size_t)s->params->seq_len;
    if (s->given)
        return kv_blocks_of((int)n_to_run(s));
    if (s->params->n_predict >= 0 && s->n_prompt + (size_t)s->params->n_predict < most)
        most = s->n_prompt + (size_t)s->params->n_predict;
    return kv_blocks_of((int)most);
}

/* Keep the first n positions of a slot, or as many as the cache can. */
static void slot_keep(Parallel *p, int slot, size_t n)
{
    p->slots[slot].held.n = (size_t)cache_truncate(&p->session->cache, slot, (int)n);
}

/* Drop what free slots hold, the longest unused first, but for slot `keep`, until there are `need`
 * blocks for a text in slot `own` beside those that others hold or may come to need. Shared blocks
 * count for each that holds them, which is on the safe side. */
static bool make_room(Parallel *p, int need, int own, int keep)
{
    int used = need;
    for (int i = 0; i < n_seqs(p); i++)
        if (i != own)
            used += p->slots[i].text ? p->slots[i].n_reserved
                                     : kv_blocks_of((int)p->slots[i].held.n);
    while (used > p->session->cache.n_blocks) {
        int oldest = -1;
        for (int i = 0; i < n_seqs(p); i++)
            if (!p->slots[i].text && i != own && i != keep && p->slots[i].held.n
                && (oldest < 0 || p->slots[i].last_used < p->slots[oldest].last_used))
                oldest = i;
        if (oldest < 0)
            return false;
        used -= kv_blocks_of((int)p->slots[oldest].held.n);
        slot_keep(p, oldest, 0);
    }
    return true;
}

/* What a text can take over: the slot whose held tokens have the longest common beginning with its
 * prompt, and how much of it would come from a prompt that is still being run. The prompt's last
 * token is always run, for its logits. */
typedef struct {
    int slot;
    size_t n, n_coming;
} Shared;

static Shared find_shared(const Parallel *p, const Stream *s)
{
    Shared best = {-1, 0, 0};
    for (int i = 0; i < n_seqs(p); i++) {
        const ParallelSlot *slot = &p->slots[i];
        size_t n = tokens_common(s->text.ids, s->n_prompt - 1, slot->held.ids, slot->held.n);
        if (n > best.n) {
            best.slot = i;
            best.n = n;
        }
        const Stream *other = slot->text ? &slot->text->stream : NULL;
        n = other ? tokens_common(s->text.ids, s->n_prompt - 1, other->text.ids, other->n_prompt)
                  : 0;
        best.n_coming = n > best.n_coming ? n : best.n_coming;
    }
    return best;
}

/* The slot for a new text: the free one that it shares most with, where no running text shares
 * more; else the longest unused. -1: none is free. */
static int choose_slot(const Parallel *p, const Shared *shared)
{
    int slot = -1;
    if (shared->slot >= 0 && !p->slots[shared->slot].text
        && shared->n * 2 > p->slots[shared->slot].held.n)
        return shared->slot;
    for (int i = 0; i < n_seqs(p); i++)
        if (!p->slots[i].text && i != shared->slot
            && (slot < 0 || p->slots[i].last_used < p->slots[slot].last_used))
            slot = i;
    if (slot < 0 && shared->slot >= 0 && !p->slots[shared->slot].text)
        slot = shared->slot;
    return slot;
}

static void end_text(Parallel *p, ParallelText *text)
{
    Err *e = &text->err;
    text->ended = clock_seconds();
    if (!e->code && stream_finish(&text->stream, &text->shown, e) && !e->code)
        e->code = EXIT_MEMORY;
    p->done(p->context, text);
}

/* Let a slot begin with what it shares with another; how many tokens these are. */
static size_t take_over(Parallel *p, int slot, const Shared *shared)
{
    TokenList *held = &p->slots[slot].held;
    slot_keep(p, slot, 0);
    if (!shared->n || !mem_room(&held->ids, shared->n, &held->cap, sizeof *held->ids)
        || cache_fork(&p->session->cache, slot, shared->slot, (int)shared->n))
        return 0;
    held->n = (size_t)p->session->cache.seqs[slot].n_pos;
    memcpy(held->ids, p->slots[shared->slot].held.ids, held->n * sizeof *held->ids);
    return held->n;
}

bool parallel_add(Parallel *p, ParallelText *text)
{
    Stream *s = &text->stream;
    if (s->end) { // nothing to generate
        end_text(p, text);
        return true;
    }
    Shared shared = find_shared(p, s);
    int slot = choose_slot(p, &shared), need = blocks_needed(s);
    if (slot < 0 || shared.n_coming >= shared.n + WORTH_WAITING)
        return false;
    if (!make_room(p, need, slot, shared.slot)) {
        if (slot != shared.slot)
            shared.n = 0;
        if (!make_room(p, need, slot, -1))
            return false;
    }
    if (slot == shared.slot)
        slot_keep(p, slot, shared.n);
    else
        shared.n = take_over(p, slot, &shared);
    p->slots[slot].text = text;
    p->slots[slot].n_reserved = need;
    p->running[p->n_running++] = slot;
    text->began = text->prompted = clock_seconds();
    return true;
}

/* ---- stepping -------------------------------------------------------------------------------- */

/* A span of the next rows of a slot's text, at most `room` and as many as have room for their
 * logits: those of a given text from the prompt's last row on, else of the last row. Returns how
 * many rows these are. */
static int plan_span(Parallel *p, int slot, int room, bool *wanted)
{
    Session *s = p->session;
    ParallelText *text = p->slots[slot].text;
    Stream *stream = &text->stream;
    int begin = (int)p->slots[slot].held.n, n = (int)n_to_run(stream) - begin;
    int first = (int)(stream->given ? stream->n_prompt : stream->text.n) - 1 - begin;
    first = first > 0 ? first : 0;
    int most = first + s->params.max_logits - p->n_rows;
    n = n < room ? n : room;
    n = n < most ? n : most;
    if (n == 0)
        return 0;
    for (int i = 0; i < n; i++) {
        wanted[i] = i >= first;
        if (wanted[i])
            p->rows[p->n_rows++] = (ParallelRow){text, (size_t)(begin + i + 1)};
    }
    p->spans[p->n_spans++] = (Span){
        .seq = slot, .n = n, .tokens = stream->text.ids + begin, .wanted = wanted};
    return n;
}

/* The spans of a pass: texts that lack one row first, then the others, in the order in which they
 * came. */
static void plan_step(Parallel *p)
{
    Session *s = p->session;
    int used = 0;
    p->n_spans = p->n_rows = 0;
    for (int i = 0; i < p->n_running; i++) {
        int slot = p->running[i], n = (int)n_to_run(&p->slots[slot].text->stream);
        slot_keep(p, slot, (size_t)cache_expect(&s->cache, slot, n));
    }
    for (int longer = 0; longer < 2; longer++)
        for (int i = 0; i < p->n_running && used < s->params.max_batch; i++) {
            int slot = p->running[i];
            int n = (int)n_to_run(&p->slots[slot].text->stream);
            if ((n - (int)p->slots[slot].held.n > 1) == longer)
                used += plan_span(p, slot, s->params.max_batch - used, p->wanted + used);
        }
}

/* Use the logits of the step's rows: the next token of a text is chosen, or judged where it is
 * given. */
static void use_rows(void *context, int from, int to, int thread)
{
    Parallel *p = context;
    size_t vocab = (size_t)p->session->stack->config.vocab_size;
    for (int i = from; i < to; i++) {
        ParallelText *text = p->rows[i].text;
        float *logits = p->session->logits + (size_t)i * vocab;
        if (text->stream.given)
            stream_judge(&text->stream, &p->samplers[thread], p->rows[i].next, logits);
        else if (stream_next(&text->stream, &p->samplers[thread], logits, &text->shown, &text->err)
                 && !text->err.code)
            text->err.code = EXIT_IO;
    }
}

/* Let those texts go that have ended. */
static void end_texts(Parallel *p)
{
    int n = 0;
    for (int i = 0; i < p->n_running; i++) {
        ParallelSlot *slot = &p->slots[p->running[i]];
        ParallelText *text = slot->text;
        if (text->stream.given && slot->held.n == n_to_run(&text->stream))
            text->stream.end = END_LIMIT;
        if (!text->err.code && !text->stream.end) {
            p->running[n++] = p->running[i];
            continue;
        }
        slot->text = NULL;
        slot->last_used = ++p->clock;
        end_text(p, text);
    }
    p->n_running = n;
}

int parallel_step(Parallel *p, Err *e)
{
    plan_step(p);
    if (!p->n_spans)
        return 0;
    if (forward(p->session, &(Batch){p->spans, p->n_spans}, e) < 0)
        return -1;
    for (int i = 0; i < p->n_spans; i++) {
        TokenList *held = &p->slots[p->spans[i].seq].held;
        size_t n = (size_t)p->spans[i].n;
        if (!mem_room(&held->ids, held->n + n, &held->cap, sizeof *held->ids))
            return err_set(e, EXIT_MEMORY, "out of memory for the texts");
        memcpy(held->ids + held->n, p->spans[i].tokens, n * sizeof *held->ids);
        held->n += n;
    }
    for (int i = 0; i < p->n_rows; i++) {
        ParallelText *text = p->rows[i].text;
        if (p->rows[i].next == text->stream.n_prompt)
            text->prompted = clock_seconds();
    }
    threads_run(p->session->threads, p->n_rows, 1, use_rows, p);
    end_texts(p);
    return 0;
}
