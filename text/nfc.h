/* nfc.h - Unicode normal forms C and D, as Hugging Face's NFC and NFD bring texts to them (Unicode
 * 9.0). */
#ifndef NFC_H
#define NFC_H

#include "base/util.h"

/* Append the normal form of a text to *out. 1: *out was filled; 0: the text is in that form already
 * and *out is untouched; -1: out of memory. Bytes that are no UTF-8 stay as they are. */
int nfc(const char *text, size_t len, Buf *out, Err *e);

/* Append normal form D of a text to *out. 0, or -1: out of memory. */
int nfd(const char *text, size_t len, Buf *out, Err *e);

#endif
