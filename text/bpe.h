/* bpe.h - byte-pair encoding: the tokens of a text without special tokens. */
#ifndef BPE_H
#define BPE_H

#include "text/pieces.h"

/* One use of it, for a text of `len` bytes in parts. */
typedef struct Bpe Bpe;

/* Tokens are appended to *out. NULL when out of memory. Views `pieces`. */
Bpe *bpe_open(const Pieces *pieces, size_t len, TokenList *out, Err *e);
void bpe_close(Bpe *b); // NULL is fine

/* Tokens of text[0, len), one pre-token, or a text whose spaces are marked. -1 when out of
 * memory. */
int bpe_encode(Bpe *b, const char *text, size_t len);

#endif
