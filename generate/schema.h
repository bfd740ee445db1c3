/* schema.h - JSON schemas (drafts 4 to 2020-12, the part that docs/constrained.md lists) as
 * grammars of the JSON texts that they allow. */
#ifndef SCHEMA_H
#define SCHEMA_H

#include "generate/grammar.h"

/* Compile a schema. What is not supported is an error that names it, never ignored. Every text of
 * the grammar is valid; not every valid text is in it: objects have the required properties first,
 * then the others, both in the schema's order, and where the schema names properties only these,
 * unless additionalProperties allows more. -1 and an Err (EXIT_USAGE or EXIT_MEMORY). */
int schema_compile(Grammar *g, Str text, Err *e);

#endif
