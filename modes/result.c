/* result.c - a generated text as JSON or as lines of log-probabilities. Contracts are in result.h.
 */
#include "modes/result.h"

#include <inttypes.h>

#include "base/utf8.h"

const char *result_reason(const Stream *s)
{
    static const char *const reasons[] = {[NOT_ENDED] = "signal",    [END_TOKEN] = "end",
                                          [END_STOP] = "stop",       [END_LIMIT] = "length",
                                          [END_CONTEXT] = "context", [END_GRAMMAR] = "end"};
    return reasons[s->end];
}

/* The id or the text that ended it. */
static void add_stop(Json *j, const Stream *s)
{
    if (s->end == END_TOKEN)
        json_int(j, s->end_token);
    else if (s->end == END_STOP)
        json_string(j, s->params->stops[s->stop]);
    else
        json_null(j);
}

/* A text, and where it is not UTF-8 its bytes too. */
static void add_text(Json *j, const Buf *text)
{
    json_buf(json_key(j, "text"), text);
    if (!utf8_valid(text->ptr, text->len))
        json_bytes(json_key(j, "bytes"), text);
}

/* The members of one token of "logprobs". */
static void add_logprob(Json *j, const Tokenizer *t, const Logprob *l, bool bytes, Buf *scratch)
{
    json_int(json_key(j, "id"), l->id);
    scratch->len = 0;
    tokenizer_bytes(t, l->id, true, scratch);
    json_buf(json_key(j, "text"), scratch);
    if (bytes)
        json_bytes(json_key(j, "bytes"), scratch);
    json_number(json_key(j, "logprob"), l->logprob);
}

static void add_logprobs(Json *j, const Stream *s)
{
    const Tokenizer *t = s->params->tokenizer;
    const Logprob *l = s->logprobs;
    int k = s->params->logprobs;
    Buf scratch = {0};
    json_list(json_key(j, "logprobs"));
    for (size_t i = s->n_prompt; i < s->text.n; i++, l += 1 + k) {
        json_object(j);
        add_logprob(j, t, l, true, &scratch);
        json_list(json_key(j, "top"));
        for (int c = 1; c <= k; c++) {
            json_object(j);
            add_logprob(j, t, l + c, false, &scratch);
            json_end(j);
        }
        json_end(j);
        json_end(j);
    }
    json_end(j);
    buf_free(&scratch);
}

void result_members(Json *j, const Result *r)
{
    const Stream *s = r->stream;
    int n = (int)(s->text.n - s->n_prompt);
    add_text(j, r->text);
    json_ints(json_key(j, "ids"), s->text.ids + s->n_prompt, n);
    json_ints(json_key(j, "prompt_ids"), s->text.ids, (int)s->n_prompt);
    json_int(json_key(j, "n_prompt"), (int64_t)s->n_prompt);
    json_int(json_key(j, "n_generated"), n);
    json_text(json_key(j, "finish_reason"), result_reason(s));
    add_stop(json_key(j, "stop"), s);
    char seed[24];
    int len = snprintf(seed, sizeof seed, "%" PRIu64, r->seed);
    json_raw(json_key(j, "seed"), (Str){seed, (size_t)len});
    if (r->prompt_seconds >= 0) {
        json_number(json_key(j, "prompt_seconds"), r->prompt_seconds);
        json_number(json_key(j, "generate_seconds"), r->generate_seconds);
    }
    if (s->params->logprobs >= 0)
        add_logprobs(j, s);
}

/* "\tID\tTEXT\tLOGPROB" without the first tab. */
static void add_columns(const Tokenizer *t, const Logprob *l, Buf *out)
{
    char text[1024], line[1100];
    Buf bytes = {0};
    tokenizer_bytes(t, l->id, true, &bytes);
    str_escape((Str){bytes.ptr ? bytes.ptr : "", bytes.len}, text, sizeof text);
    buf_add(out, line,
            (size_t)snprintf(line, sizeof line, "\t%d\t%s\t%.9g", l->id, text, l->logprob));
    out->failed |= bytes.failed;
    buf_free(&bytes);
}

void result_logprob_line(const Stream *s, Buf *out)
{
    int k = s->params->logprobs;
    const Logprob *l = s->logprobs + (s->text.n - s->n_prompt - 1) * (size_t)(1 + k);
    char position[24];
    buf_add(out, position, (size_t)snprintf(position, sizeof position, "%zu", s->text.n - 1));
    for (int i = 0; i <= k; i++)
        add_columns(s->params->tokenizer, l + i, out);
    buf_text(out, "\n");
}
