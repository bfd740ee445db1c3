/* result.h - what a generated text is to a program that reads it: one JSON object, or a line of
 * log-probabilities a token. */
#ifndef RESULT_H
#define RESULT_H

#include "base/json.h"
#include "generate/stream.h"

typedef struct {
    const Stream *stream;
    const Buf *text; // what was printed of it
    uint64_t seed;
    double prompt_seconds, generate_seconds; // negative: not told
} Result;

/* Seeds that are chosen for the user are below this: programs that read JSON numbers as doubles
 * would round larger ones. */
#define SEED_LIMIT ((uint64_t)1 << 53)

/* The members of an object that is open in j: text, ids, why the text ended, seed, times and
 * log-probabilities. docs/pipelines.md describes them. */
void result_members(Json *j, const Result *r);

/* "end", "stop", "length", "context", or "signal" for a text that was cut off. */
const char *result_reason(const Stream *s);

/* Append a line for the token that was generated last: position, id, text, log-probability, then
 * id, text and log-probability of each of the likeliest, separated by tabs. */
void result_logprob_line(const Stream *s, Buf *out);

#endif
