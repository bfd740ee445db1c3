/* utf8.h - reading and writing UTF-8; the only decoder there is. */
#ifndef UTF8_H
#define UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Read one character at p (p < end): its length in bytes, 1 to 4, with the code point in *cp. For
 * an invalid or cut sequence it returns 1 and *cp = UTF8_INVALID | the byte. Overlong forms,
 * surrogates and values above U+10FFFF are invalid. */
#define UTF8_INVALID 0x80000000u
size_t utf8_decode(const char *p, const char *end, uint32_t *cp);

/* Write a code point (at most U+10FFFF); returns its length in bytes. */
size_t utf8_encode(uint32_t cp, char out[4]);

/* Whether all of (p, len) is UTF-8. */
bool utf8_valid(const char *p, size_t len);

/* Length of the longest prefix of (p, len) that does not end inside a character which more bytes
 * could complete. */
size_t utf8_complete(const char *p, size_t len);

#endif
