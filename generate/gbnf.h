/* gbnf.h - grammars in GBNF, llama.cpp's notation (its grammars/README.md). */
#ifndef GBNF_H
#define GBNF_H

#include "generate/grammar.h"

/* Compile a text, whose rule `root` is the whole of what it allows. Tokens (<[1000]>, <think>) are
 * refused. -1 and an Err (EXIT_USAGE with line and column, or EXIT_MEMORY). */
int gbnf_compile(Grammar *g, Str text, Err *e);

#endif
