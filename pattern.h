/* pattern.h - regular expressions that cut a text into pieces.
 *
 * Patterns: literals, . [..] [^..] \p{..} \P{..} \s \S \d \D \w \W \r \n \t \uHHHH, groups (..) (?:..) (?i:..) (?>..),
 * look-ahead (?=..) (?!..), | ? * + {n} {n,} {n,m}, lazy and possessive forms of ? * +, ^ $ \b \B \A \z, with the
 * meaning they have in Oniguruma's Ruby syntax, which Hugging Face uses. Anything else is refused.
 */
#ifndef PATTERN_H
#define PATTERN_H

#include "util.h"

typedef struct Pretok Pretok; // compiled patterns, immutable

/* Compile n patterns. NULL and EXIT_MODEL with a line that shows the pattern and the place. */
Pretok *pretok_compile(const Str *patterns, size_t n, Err *e);
void pretok_free(Pretok *p); // NULL is fine

/* Byte offsets at which the pieces of a text end, ascending, the last one at its end; a zeroed one is empty. */
typedef struct {
    size_t *ends;
    size_t n, cap;
} Cuts;

void cuts_free(Cuts *c);

/* Cut a text of any bytes; bytes that are no UTF-8 count as characters of no class. *out is overwritten.
 * 0; -1 when out of memory, or when a pattern backtracks beyond all measure (EXIT_MODEL). */
int pretok_split(const Pretok *p, const char *text, size_t len, Cuts *out, Err *e);

#endif
