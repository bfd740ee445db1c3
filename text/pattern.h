/* pattern.h - regular expressions that cut a text into pieces.
 *
 * Patterns: literals, . [..] [^..] [..&&[..]] \p{..} \P{..} \s \S \d \D \w \W \r \n \t \uHHHH,
 * groups (..) (?:..) (?i:..) (?>..), look-ahead (?=..) (?!..), | ? * + {n} {n,} {n,m}, lazy and
 * possessive forms of ? * +, ^ $ \b \B \A \z, with the meaning they have in Oniguruma's Ruby
 * syntax, which Hugging Face uses. \p{..} takes general categories and the script Han. Anything
 * else is refused.
 */
#ifndef PATTERN_H
#define PATTERN_H

#include "base/util.h"

typedef struct Pretok Pretok; // compiled patterns, immutable

/* Compile n patterns. NULL and EXIT_MODEL with a line that shows the pattern and the place. */
Pretok *pretok_compile(const Str *patterns, size_t n, Err *e);
void pretok_free(Pretok *p); // NULL is fine

/* Cuts texts one after the other, a piece at a time. All of them together, `len` bytes, may take a
 * number of steps that grows with `len`: of the order of a second for a short text. */
typedef struct Cutter Cutter;

Cutter *cutter_open(const Pretok *p, size_t len, Err *e); // NULL when out of memory; views `p`
void cutter_close(Cutter *c);                             // NULL is fine

/* Begin a text of any bytes, less than 2 GB, which must stay where it is; bytes that are no UTF-8
 * count as characters of no class. */
void cutter_start(Cutter *c, const char *text, size_t len);

/* 1 and where the next piece ends, from the start of the text, the last piece at its end; 0 when
 * there is no more. -1 when out of memory, or when a pattern backtracks beyond all measure
 * (EXIT_MODEL). */
int cutter_next(Cutter *c, size_t *end, Err *e);

#endif
