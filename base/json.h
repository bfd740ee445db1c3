/* json.h - writing JSON.
 *
 * Values are appended to a Buf, which remembers a failed growth; commas and brackets are the
 * caller's.
 */
#ifndef JSON_H
#define JSON_H

#include "base/util.h"

/* A string in quotes. Control characters, quotes and backslashes are escaped, other characters
 * stand for themselves; a byte that is no UTF-8 becomes U+FFFD. */
void json_string(Buf *out, Str s);

/* Bytes of any kind as a string of two hexadecimal digits each: "e282ac". */
void json_hex(Buf *out, Str bytes);

void json_int(Buf *out, int64_t v);

/* A list of whole numbers: [1, 2]. */
void json_ints(Buf *out, const int *v, int n);

/* A number with as many digits as a float needs to be read back the same; null if it is not finite.
 */
void json_float(Buf *out, float v);

#endif
