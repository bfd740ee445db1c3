/* matcher.h - where texts stand in a grammar, and which tokens may follow: a mask over the
 * vocabulary, exact over bytes.
 *
 * A state is a set of places in the grammar's graph, each with what follows once its rule is over.
 * States, where bytes lead from them and masks are worked out when they are first needed and kept,
 * within a bound on memory; a mask does not depend on what was kept.
 */
#ifndef MATCHER_H
#define MATCHER_H

#include "generate/grammar.h"
#include "tokenizer.h"

/* The bytes of a vocabulary's tokens as a tree. Control, unknown and unused tokens and those that
 * end a text are not in it. Immutable; keeps a view of the tokenizer. */
typedef struct TokenTree TokenTree;

TokenTree *token_tree_new(const Tokenizer *t, Err *e); // NULL: EXIT_MEMORY
void token_tree_free(TokenTree *t);                    // NULL is fine

/* What texts under one grammar share. Any number of threads may use it; they wait for each
 * other. */
typedef struct Matcher Matcher;

/* Both must outlive the matcher. NULL: EXIT_MEMORY. */
Matcher *matcher_new(const Grammar *g, const TokenTree *t, Err *e);
void matcher_free(Matcher *m); // NULL is fine

/* Where a text stands: a number that the matcher keeps until it is let go. */
typedef int MatchState;

MatchState matcher_begin(Matcher *m);            // the empty text
void matcher_hold(Matcher *m, MatchState state); // once more: it has to be let go once more too
void matcher_let_go(Matcher *m, MatchState state);

bool matcher_accepts(Matcher *m, MatchState state); // the text may end here
bool matcher_is_over(Matcher *m, MatchState state); // and nothing can follow

/* Set the logits (n) of tokens that may not follow to -inf; those of end tokens too unless
 * the text may end here and `may_end`. How many tokens are left, of those that end nothing; -1 and
 * an Err (EXIT_USAGE: the grammar is too ambiguous; EXIT_MEMORY). */
int matcher_mask(Matcher *m, MatchState state, bool may_end, float *logits, int n, Err *e);

/* Go on by a token, or by some bytes, and let the old state go. 1; 0, and *state as before, where
 * the grammar does not allow it; -1 and an Err as above. */
int matcher_token(Matcher *m, MatchState *state, int id, Err *e);
int matcher_bytes(Matcher *m, MatchState *state, Str bytes, Err *e);

#endif
