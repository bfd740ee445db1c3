/* json.h - writing JSON.
 *
 * Values are appended to a Buf, which remembers a failed growth. Commas, colons and closing
 * brackets are the writer's own; what the caller says is the order of things:
 *
 *     Json j = {.out = &buf};
 *     json_object(&j);
 *     json_ints(json_key(&j, "ids"), ids, 3);
 *     json_end(&j);                             {"ids": [1, 2, 3]}
 */
#ifndef JSON_H
#define JSON_H

#include "base/util.h"

typedef struct {
    Buf *out;
    bool compact;       // no space after commas and colons
    bool begun;         // the present object or list has an item, and the next one needs a comma
    bool keyed;         // a value is due for a key
    bool broken;        // a new line is due
    uint64_t is_object; // of the open objects and lists, the innermost one last
} Json;

/* Open an object or a list, at most 64 within each other, and close the innermost one. */
void json_object(Json *j);
void json_list(Json *j);
void json_end(Json *j);

/* A key of the present object, whose value comes next. Returns j. */
Json *json_key(Json *j, const char *name);
Json *json_key_str(Json *j, Str name);

/* A new line before the next item, key or closing bracket. Returns j. */
Json *json_break(Json *j);

/* A string in quotes. Control characters, quotes and backslashes are escaped, other characters
 * stand for themselves; a byte that is no UTF-8 becomes U+FFFD. */
void json_string(Json *j, Str s);
void json_text(Json *j, const char *s);
void json_buf(Json *j, const Buf *b); // fails where b did

/* Bytes of any kind as a string of two hexadecimal digits each: "e282ac". */
void json_hex(Json *j, const Buf *bytes);

/* Bytes of any kind as a list of numbers from 0 to 255. */
void json_bytes(Json *j, const Buf *bytes);

void json_int(Json *j, int64_t v);
void json_bool(Json *j, bool v);
void json_null(Json *j);

/* A value that is JSON already. */
void json_raw(Json *j, Str json);

/* As many digits as a float needs to be read back the same; null if it is not finite. */
void json_number(Json *j, double v);

/* A list of whole numbers, with spaces: [1, 2]. */
void json_ints(Json *j, const int *v, int n);

#endif
