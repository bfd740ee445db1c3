/* constraint.h - the form that a text must have: a grammar or a JSON schema, and what streams need
 * of it. */
#ifndef CONSTRAINT_H
#define CONSTRAINT_H

#include "generate/matcher.h"
#include "modes/options.h"

typedef enum { CONSTRAINT_GRAMMAR, CONSTRAINT_SCHEMA } ConstraintKind;

typedef struct {
    Grammar grammar;
    TokenTree *tree;  // NULL where somebody else has it
    Matcher *matcher; // for StreamParams; NULL: any text will do
} Constraint;

/* Compile a text; `tree` must outlive the constraint. 0; or -1 and an Err. */
int constraint_open(Constraint *c, ConstraintKind kind, Str text, const TokenTree *tree, Err *e);

/* The one that the flags ask for, or one without a matcher. The tokenizer must outlive it. */
int constraint_of_options(Constraint *c, const Options *o, const Tokenizer *t, Err *e);

void constraint_close(Constraint *c); // a zeroed one is fine

#endif
