/* regex.h - regular expressions of JSON schemas (`pattern`) as expressions of a grammar.
 *
 * The notation is ECMA-262's, without lookaround, back references and \b, with ^ and $ at the ends
 * of the whole or of its alternatives. Where dialects differ on what \d, \w and \s are, the set is
 * one that all of them have: ASCII digits and letters; what is negated leaves out the characters
 * that any of them has.
 */
#ifndef REGEX_H
#define REGEX_H

#include "generate/grammar.h"

/* How a set of characters is written in the text. */
typedef Expr (*RegexChars)(void *context, const CharRange *ranges, size_t n);

typedef struct {
    Expr expr;
    int64_t min, max; // characters; REGEX_ENDLESS: no most
} Regex;

enum { REGEX_ENDLESS = 1 << 30 };

/* All texts in which the pattern is found. -1 and an Err (EXIT_USAGE). */
int regex_read(Builder *b, Str pattern, RegexChars chars, void *context, Regex *out, Err *e);

#endif
