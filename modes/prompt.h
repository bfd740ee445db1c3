/* prompt.h - the prompt: the texts of -i and -f, or standard input, as one. */
#ifndef PROMPT_H
#define PROMPT_H

#include "modes/options.h"

typedef struct {
    Buf text;
    TextPart *parts; // (n) whether control tokens written there are read
    size_t n;
} Prompt;

/* Read the texts of the prompt into *p, which is zeroed. 0, or -1 and an Err; prompt_free() in
 * either case. */
int prompt_read(const Options *o, Prompt *p, Err *e);

/* Read the prompt into *p, which is zeroed, and append its ids to *ids; with --load-session they
 * go on with those that are there. 0, or -1 and an Err; *p is freed with prompt_free() in either
 * case. stop_signal ends the reading. */
int prompt_encode(const Options *o, const Tokenizer *t, Prompt *p, TokenList *ids, Err *e);
void prompt_free(Prompt *p); // and empty it

/* prompt_encode() for generating: the ids are at least one, and *seq_len is the context, tokens:
 * -c, else the model's, at most USUAL_CONTEXT, grown to what the prompt and -n need. */
int prompt_start(const Options *o, const Model *m, Prompt *p, TokenList *ids, int *seq_len, Err *e);

#endif
