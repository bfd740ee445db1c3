/* constraint.h - the forms that texts must have, grammars and JSON schemas: compiled once for all
 * texts that share one. */
#ifndef CONSTRAINT_H
#define CONSTRAINT_H

#include <stdatomic.h>

#include "generate/matcher.h"
#include "modes/options.h"

typedef enum { CONSTRAINT_GRAMMAR, CONSTRAINT_SCHEMA } ConstraintKind;

typedef struct Constraint Constraint;
struct Constraint {
    Matcher *matcher; // for StreamParams
    Grammar grammar;
    ConstraintKind kind;
    Buf text;
    int n_users;
    Constraint *next;
};

/* All that are in use, and some that were. A zeroed one with a tokenizer, which must outlive it;
 * without one there are no masks. Not for two threads at once. */
typedef struct {
    const Tokenizer *tokenizer;
    TokenTree *tree;
    Constraint *first; // the one that was used last
} Constraints;

/* The compiled form of a text, to be let go once. NULL and an Err. */
Constraint *constraints_get(Constraints *list, ConstraintKind kind, Str text, Err *e);
void constraints_let_go(Constraints *list, Constraint *c); // NULL is fine

/* What the flags ask for -> *out, NULL for nothing. *stop other than 0 ends reading a file. */
int constraints_of_options(Constraints *list, const Options *o, const atomic_int *stop,
                           Constraint **out, Err *e);

void constraints_close(Constraints *list); // nothing may be in use

#endif
