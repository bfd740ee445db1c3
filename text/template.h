/* template.h - chat templates: Jinja as transformers runs it, without any access to what is
 * outside.
 *
 * A conversation and a template give one text with marked parts: what the template wrote itself is
 * special, so that control tokens are read there; what came in with the conversation is not. The
 * parts go to tokenizer_encode_parts() with the text. A message's role counts as the template's
 * where it is a plain word, since templates make tokens of it ('<|' + role + '|>').
 */
#ifndef TEMPLATE_H
#define TEMPLATE_H

#include "base/json_read.h"
#include "text/token.h"

typedef struct Template Template; // parsed; any number of threads may render it

/* Parse a template, which is not kept. NULL and an Err with EXIT_MODEL ("chat template, line N:
 * ...") or EXIT_MEMORY. */
Template *template_open(Str source, Err *e);
void template_close(Template *t); // NULL is fine

/* A string that the template finds under that name. */
typedef struct {
    const char *name; // "bos_token"
    Str value;
} TemplateText;

typedef struct {
    const JsonDoc *messages;   // a list of objects, at least one
    const JsonDoc *tools;      // a list of objects, or NULL
    const JsonDoc *variables;  // an object: more names and their values, or NULL
    const TemplateText *texts; // (n_texts) the tokenizer's
    size_t n_texts;
    bool add_generation_prompt;
    double now;         // seconds since 1970, for strftime_now
    uint64_t max_steps; // how long it may take, 0: as long as usual, some seconds
} TemplateInput;

typedef struct {
    Buf text;
    TextPart *parts; // (n_parts) that make up the text
    size_t n_parts, cap;
} Rendered;

/* Append nothing, or the whole text and its parts, to the zeroed *out; rendered_free() in either
 * case. -1 and an Err: EXIT_USAGE with the message alone where the template itself complains
 * (raise_exception) or the input is not as described, EXIT_MODEL where it cannot be run,
 * EXIT_MEMORY. Time and memory are bounded. */
int template_render(const Template *t, const TemplateInput *in, Rendered *out, Err *e);
void rendered_free(Rendered *r);

#endif
