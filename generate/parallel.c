/* parallel.c - see parallel.h. */
#include "generate/parallel.h"

#include <assert.h>
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
    p->spans = mem_zalloc(n, sizeof *p->spans);
    p->logits = mem_zalloc(n, sizeof *p->logits);
    p->samplers = mem_zalloc((size_t)p->n_threads, sizeof *p->samplers);
    bool failed = !p->slots || !p->spans || !p->logits || !p->samplers;
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
    free(p->spans);
    free(p->logits);
    free(p->samplers);
    *p = (Parallel){0};
}

int parallel_n_running(const Parallel *p)
{
    int n = 0;
    for (int i = 0; i < n_seqs(p); i++)
        n += p->slots[i].text != NULL;
    return n;
}

/* ---- entering -------------------------------------------------------------------------------- */

static int blocks_of(size_t n_tokens)
{
    return (int)((n_tokens + KV_BLOCK - 1) / KV_BLOCK);
}

/* Blocks that a text may come to need. */
static int blocks_needed(const Stream *s)
{
    size_t most = (size_t)s->params->seq_len;
    if (s->params->n_predict >= 0 && s->n_prompt + (size_t)s->params->n_predict < most)
        most = s->n_prompt + (size_t)s->params->n_predict;
    return blocks_of(most);
}

static size_t common_prefix(const int *a, size_t na, const int *b, size_t nb)
{
    size_t n = 0;
    while (n < na && n < nb && a[n] == b[n])
        n++;
    return n;
}

/* Keep the first n positions of a slot. */
static void slot_keep(Parallel *p, int slot, size_t n)
{
    cache_truncate(&p->session->cache, slot, (int)n);
    p->slots[slot].held.n = n < p->slots[slot].held.n ? n : p->slots[slot].held.n;
}

/* Drop what free slots hold, the longest unused first, but for slot `keep`, until there are `need`
 * blocks for a text in slot `own` beside those that others hold or may come to need. Shared blocks
 * count for each that holds them, which is on the safe side. */
static bool make_room(Parallel *p, int need, int own, int keep)
{
    int used = need;
    for (int i = 0; i < n_seqs(p); i++)
        if (i != own)
            used += p->slots[i].text ? p->slots[i].n_reserved : blocks_of(p->slots[i].held.n);
    while (used > p->session->cache.n_blocks) {
        int oldest = -1;
        for (int i = 0; i < n_seqs(p); i++)
            if (!p->slots[i].text && i != own && i != keep && p->slots[i].held.n
                && (oldest < 0 || p->slots[i].last_used < p->slots[oldest].last_used))
                oldest = i;
        if (oldest < 0)
            return false;
        used -= blocks_of(p->slots[oldest].held.n);
        slot_keep(p, oldest, 0);
    }
    return true;
}

/* What a text can take over: the slot whose held tokens have the longest common beginning with its
 * prompt, and how much of it would come from a prompt that is still being run. The last token is
 * always run, for its logits. */
typedef struct {
    int slot;
    size_t n, n_coming;
} Shared;

static Shared find_shared(const Parallel *p, const Stream *s)
{
    Shared best = {-1, 0, 0};
    for (int i = 0; i < n_seqs(p); i++) {
        const ParallelSlot *slot = &p->slots[i];
        size_t n = common_prefix(s->text.ids, s->text.n - 1, slot->held.ids, slot->held.n);
        if (n > best.n) {
            best.slot = i;
            best.n = n;
        }
        const Stream *other = slot->text ? &slot->text->stream : NULL;
        n = other ? common_prefix(s->text.ids, s->text.n - 1, other->text.ids, other->n_prompt) : 0;
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
    memcpy(held->ids, p->slots[shared->slot].held.ids, shared->n * sizeof *held->ids);
    return held->n = shared->n;
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
    text->seq = slot;
    text->n_cached = (int)shared.n;
    text->began = text->prompted = clock_seconds();
    return true;
}

/* ---- stepping -------------------------------------------------------------------------------- */

/* The spans of a pass: texts that generate first, then prompts, in the order of the slots. */
static void plan_step(Parallel *p)
{
    Session *s = p->session;
    int room = s->params.max_batch, n_logits = 0;
    p->n_spans = 0;
    for (int prompts = 0; prompts < 2; prompts++)
        for (int i = 0; i < n_seqs(p) && room > 0; i++) {
            ParallelSlot *slot = &p->slots[i];
            if (!slot->text)
                continue;
            const TokenList *text = &slot->text->stream.text;
            slot_keep(p, i, (size_t)cache_expect(&s->cache, i, (int)text->n));
            int left = (int)(text->n - slot->held.n), n = left < room ? left : room;
            bool last = n == left;
            if ((left > 1) != prompts || (last && n_logits == s->params.max_logits))
                continue;
            p->spans[p->n_spans++] = (Span){.seq = i,
                                            .n = n,
                                            .tokens = text->ids + slot->held.n,
                                            .want = last ? WANT_LAST : WANT_NONE};
            n_logits += last;
            room -= n;
        }
}

/* Choose the next token of each text whose logits are there. */
static void choose_tokens(void *context, int from, int to, int thread)
{
    Parallel *p = context;
    for (int i = from; i < to; i++) {
        ParallelText *text = p->slots[p->spans[i].seq].text;
        if (p->logits[i]
            && stream_next(&text->stream, &p->samplers[thread], p->logits[i], &text->shown,
                           &text->err)
            && !text->err.code)
            text->err.code = EXIT_IO;
    }
}

int parallel_step(Parallel *p, Err *e)
{
    Session *s = p->session;
    size_t vocab = (size_t)s->stack->config.vocab_size;
    plan_step(p);
    if (!p->n_spans)
        return 0;
    if (forward(s, &(Batch){p->spans, p->n_spans}, e) < 0)
        return -1;
    float *logits = s->logits;
    for (int i = 0; i < p->n_spans; i++) {
        ParallelSlot *slot = &p->slots[p->spans[i].seq];
        size_t n = (size_t)p->spans[i].n, held = slot->held.n;
        if (!mem_room(&slot->held.ids, held + n, &slot->held.cap, sizeof *slot->held.ids))
            return err_set(e, EXIT_MEMORY, "out of memory for the texts");
        memcpy(slot->held.ids + held, p->spans[i].tokens, n * sizeof *slot->held.ids);
        slot->held.n += n;
        p->logits[i] = p->spans[i].want == WANT_LAST ? logits : NULL;
        logits += p->logits[i] ? vocab : 0;
        if (p->logits[i] && slot->text->stream.text.n == slot->text->stream.n_prompt)
            slot->text->prompted = clock_seconds();
    }
    threads_run(s->threads, p->n_spans, 1, choose_tokens, p);
    for (int i = 0; i < p->n_spans; i++) {
        ParallelSlot *slot = &p->slots[p->spans[i].seq];
        ParallelText *text = slot->text;
        if (!text->err.code && !text->stream.end)
            continue;
        slot->text = NULL;
        slot->last_used = ++p->clock;
        end_text(p, text);
    }
    return 0;
}
