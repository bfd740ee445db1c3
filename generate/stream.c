/* stream.c - see stream.h. */
#include "generate/stream.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

/* What a byte of the generated text is: printed, or of a control token's name, which is not. Stop
 * texts may hold such names, as a whole or not at all. */
enum { BYTE_SHOWN, BYTE_HIDDEN, BYTE_HIDDEN_ON }; // HIDDEN begins a name, HIDDEN_ON goes on with it

/* Mark what was appended to the waiting text. */
static void add_marks(Stream *s, char first, char others)
{
    for (char mark = first; s->marks.len < s->waiting.len && !s->marks.failed; mark = others)
        buf_add(&s->marks, &mark, 1);
}

/* Append a token's bytes to the waiting text. */
static void decode(Stream *s, int id)
{
    const StreamParams *p = s->params;
    TokenType type = tokenizer_type(p->tokenizer, id);
    if ((type == TOKEN_CONTROL || type == TOKEN_UNKNOWN) && !p->special) {
        Str name = tokenizer_piece(p->tokenizer, id);
        buf_add(&s->waiting, name.ptr, name.len);
        add_marks(s, BYTE_HIDDEN, BYTE_HIDDEN_ON);
    } else {
        decoder_feed(&s->decoder, id, &s->waiting);
        add_marks(s, BYTE_SHOWN, BYTE_SHOWN);
    }
}

/* Whether a stop text may begin or end before byte `at`. */
static bool is_boundary(const Stream *s, size_t at)
{
    return at == s->waiting.len || s->marks.ptr[at] != BYTE_HIDDEN_ON;
}

/* The first stop text: where it begins, or waiting.len if there is none. */
static size_t find_stop(Stream *s)
{
    size_t first = s->waiting.len;
    for (int i = 0; i < s->params->n_stops; i++) {
        const Str *stop = &s->params->stops[i];
        for (size_t at = 0; at + stop->len <= s->waiting.len && at < first; at++)
            if (!memcmp(s->waiting.ptr + at, stop->ptr, stop->len) && is_boundary(s, at)
                && is_boundary(s, at + stop->len)) {
                first = at;
                s->stop = i;
            }
    }
    return first;
}

/* How many bytes at the end could be the beginning of a stop text. */
static size_t held_back(const Stream *s)
{
    size_t most = 0, len = s->waiting.len;
    for (int i = 0; i < s->params->n_stops; i++) {
        const Str *stop = &s->params->stops[i];
        for (size_t n = stop->len - 1; n > most; n--)
            if (n <= len && !memcmp(s->waiting.ptr + len - n, stop->ptr, n)
                && is_boundary(s, len - n))
                most = n;
    }
    return most;
}

/* Move what is ready from the waiting text to *out; with `all` it is the whole of it, up to a stop
 * text, which ends the stream. */
static int take(Stream *s, bool all, Buf *out, Err *e)
{
    Buf *text = &s->waiting, *marks = &s->marks;
    if (text->failed || marks->failed)
        return err_set(e, EXIT_MEMORY, "out of memory for the text");
    if (!text->len)
        return 0;
    size_t n = find_stop(s);
    if (n < text->len)
        s->end = END_STOP;
    else if (!all)
        n -= held_back(s);
    for (size_t i = 0; i < n; i++)
        if (marks->ptr[i] == BYTE_SHOWN)
            buf_add(out, text->ptr + i, 1);
    if (out->failed)
        return err_set(e, EXIT_MEMORY, "out of memory for the text");
    memmove(text->ptr, text->ptr + n, text->len - n);
    memmove(marks->ptr, marks->ptr + n, marks->len - n);
    text->len -= n;
    marks->len -= n;
    return 0;
}

void stream_init(Stream *s, const StreamParams *params, uint64_t seed, TokenList prompt)
{
    *s = (Stream){.params = params, .text = prompt, .n_prompt = prompt.n, .random = seed};
    s->end = params->n_predict ? NOT_ENDED : END_LIMIT;
    decoder_init(&s->decoder, params->tokenizer, false, params->special);
    if (params->matcher)
        s->place = matcher_begin(params->matcher);
}

int stream_init_given(Stream *s, const StreamParams *params, TokenList text, size_t n_prompt,
                      Err *e)
{
    size_t n = text.n - n_prompt;
    *s = (Stream){.params = params, .text = text, .n_prompt = n_prompt, .given = true};
    s->end = n ? NOT_ENDED : END_LIMIT;
    if (!mem_room(&s->logprobs, n * (1 + (size_t)params->logprobs), &s->logprobs_cap,
                  sizeof *s->logprobs))
        return err_set(e, EXIT_MEMORY, "out of memory for the log-probabilities");
    return 0;
}

void stream_judge(Stream *s, Sampler *sampler, size_t i, const float *logits)
{
    size_t k = (size_t)s->params->logprobs;
    sampler_logprobs(sampler, logits, s->text.ids[i], (int)k,
                     s->logprobs + (i - s->n_prompt) * (1 + k));
}

void stream_free(Stream *s)
{
    if (s->params && s->params->matcher)
        matcher_let_go(s->params->matcher, s->place);
    tokens_free(&s->text);
    free(s->logprobs);
    buf_free(&s->waiting);
    buf_free(&s->marks);
}

size_t stream_follow(Stream *s, const char *text, size_t len)
{
    Decoder *d = &s->decoder;
    size_t ready = utf8_complete(text, len);
    bool at_start = !len && !s->params->matcher; // the grammar knows each byte
    decoder_init(d, s->params->tokenizer, at_start, s->params->special);
    d->n_held = len - ready;
    if (d->n_held)
        memcpy(d->held, text + ready, d->n_held);
    return ready;
}

/* Leave the logits of tokens that may follow in the grammar; the text may be over instead. */
static int constrain(Stream *s, float *logits, int n, Err *e)
{
    Matcher *m = s->params->matcher;
    bool may_end = !s->params->ignore_eos;
    int n_left = matcher_is_over(m, s->place) ? 0
                                              : matcher_mask(m, s->place, may_end, logits, n, e);
    if (n_left < 0)
        return -1;
    if (!n_left && !matcher_accepts(m, s->place))
        return err_set(e, EXIT_USAGE,
                       "the grammar goes on with what no token of this model begins with");
    s->end = n_left ? NOT_ENDED : END_GRAMMAR;
    return 0;
}

/* Why the text ends after its last token. */
static StreamEnd check_end(const Stream *s)
{
    const StreamParams *p = s->params;
    size_t generated = s->text.n - s->n_prompt;
    if (p->matcher && matcher_is_over(p->matcher, s->place))
        return END_GRAMMAR;
    return p->n_predict >= 0 && generated >= (size_t)p->n_predict ? END_LIMIT
         : s->text.n > (size_t)p->seq_len                         ? END_CONTEXT
                                                                  : NOT_ENDED;
}

/* Keep the log-probabilities of the token that was chosen last, by the logits in sampler->raw. */
static int keep_logprobs(Stream *s, Sampler *sampler, Err *e)
{
    size_t k = (size_t)s->params->logprobs, n = s->text.n - s->n_prompt;
    if (!mem_room(&s->logprobs, n * (1 + k), &s->logprobs_cap, sizeof *s->logprobs))
        return err_set(e, EXIT_MEMORY, "out of memory for the log-probabilities");
    stream_judge(s, sampler, s->text.n - 1, sampler->raw);
    return 0;
}

int stream_next(Stream *s, Sampler *sampler, float *logits, Buf *out, Err *e)
{
    const StreamParams *p = s->params;
    if (p->logprobs >= 0)
        memcpy(sampler->raw, logits, (size_t)sampler->vocab_size * sizeof *logits);
    if (p->matcher && (constrain(s, logits, sampler->vocab_size, e) || s->end))
        return s->end ? 0 : -1;
    int id = sampler_pick(sampler, &p->sampling, &s->random, s->text.ids, s->text.n, logits);
    if (id < 0)
        return err_set(e, EXIT_IO,
                       "sampling: no token has a finite logit (a damaged model, or "
                       "--logit-bias left none)");
    if (!p->ignore_eos && tokenizer_is_end(p->tokenizer, id)) {
        s->end = END_TOKEN;
        s->end_token = id;
        return 0;
    }
    if (tokens_add(&s->text, id, e)
        || (p->matcher && matcher_token(p->matcher, &s->place, id, e) < 0)
        || (p->logprobs >= 0 && keep_logprobs(s, sampler, e)))
        return -1;
    decode(s, id);
    s->end = check_end(s);
    return take(s, false, out, e);
}

int stream_finish(Stream *s, Buf *out, Err *e)
{
    if (s->end == END_STOP)
        return 0;
    decoder_flush(&s->decoder, &s->waiting);
    add_marks(s, BYTE_SHOWN, BYTE_SHOWN);
    return take(s, true, out, e);
}
