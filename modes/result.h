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

/* The members of an object that is open in j: text, ids, why the text ended, seed, times and
 * log-probabilities. docs/batches.md describes them. */
void result_members(Json *j, const Result *r);

/* Print the object, with these members only, as a line of standard output. 0, or -1 and an Err. */
int result_print(const Result *r, Err *e);

/* "end", "stop", "length", "context", or "signal" for a text that was cut off. */
const char *result_reason(const Stream *s);

/* Append a line for the token that was generated last: position, id, text, log-probability, then
 * id, text and log-probability of each of the likeliest, separated by tabs. */
void result_logprob_line(const Stream *s, Buf *out);

#endif
