/* added.h - tokens that are matched in the text itself, before it is cut and joined: CONTROL,
 * UNKNOWN and USER_DEFINED ones ("added tokens" in Hugging Face's words). */
#ifndef ADDED_H
#define ADDED_H

#include "text/vocab.h"

typedef struct {
    Str text;
    int id;
} AddedToken;

typedef struct {
    AddedToken *items; // sorted by text, then id
    size_t n, cap;
    bool first[256]; // whether one starts with this byte
    size_t longest;
} AddedList;

/* What is searched for at one time: the raw text is searched first, and what is left of it later,
 * in the form that Vocab.marking says. */
typedef struct {
    AddedList user, special; // USER_DEFINED; CONTROL and UNKNOWN
} Pass;

typedef struct {
    Pass raw, later;
    Buf texts; // of later ones with the space marked
} Added;

int added_init(Added *a, const Vocab *v, Err *e); // to be freed in either case
void added_free(Added *a);                        // a zeroed one is fine

/* The parts of a text whose CONTROL tokens are parsed, read from front to back. */
typedef struct {
    const TextPart *parts;
    size_t n, next;  // the first part that was not read
    size_t from, to; // the last stretch of special parts that was
} Special;

/* A search for the tokens of one pass. It reads `text`, which is the whole text, or a stretch of
 * `source` with its spaces marked; then `raw` is the place in `source` that byte `at` was made of.
 */
typedef struct {
    const Pass *pass;
    Special *special;
    const char *text;
    size_t at, len;
    const char *source; // NULL: `text` is the text itself, and `raw` is `at`
    size_t raw, front;  // bytes of a mark before the text, not passed yet
    bool squeeze;       // a run of spaces in `source` became one mark
    int64_t *steps;     // left for matching
} Search;

/* Where the next token stands; the search goes on after it. s->len and *found = NULL if there is
 * none, or once *s->steps is below 0. */
size_t search_next(Search *s, const AddedToken **found);

#endif
