/* wordpiece.h - BERT's tokenizer: the tokens of a text without special tokens, as Hugging Face's
 * BertNormalizer, BertPreTokenizer and WordPiece find them. */
#ifndef WORDPIECE_H
#define WORDPIECE_H

#include "text/pieces.h"

/* Append the tokens of a text: cleaned, with lower case and without accents where the vocabulary
 * says so, cut at white space, punctuation and CJK ideographs; then of each word the longest piece
 * that it begins with, and so on. A word for which that fails, or of more than 100 characters, is
 * one unknown token. Bytes that are no UTF-8 are left out. -1 when out of memory. */
int wordpiece_encode(const Pieces *pieces, const char *text, size_t len, TokenList *out, Err *e);

#endif
