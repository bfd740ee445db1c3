/* json_read.h - reading one JSON text (RFC 8259) into a list of nodes.
 *
 * Nothing beyond the RFC is taken: no NaN, comments, trailing commas or byte order mark. Strings
 * must be UTF-8 that utf8.h takes, and an escaped surrogate must have its other half: what Python's
 * json reads and UTF-8 can hold. "\u0000" is a zero byte; names may repeat.
 *
 *     for (const JsonNode *n = json_first(&d, list); n; n = json_next(&d, list, n))
 */
#ifndef JSON_READ_H
#define JSON_READ_H

#include "base/util.h"

enum {
    JSON_MAX_DEPTH = 64,       // objects and lists within each other
    JSON_MAX_VALUES = 1 << 24, // of a text, the objects and lists among them: 1.2 GB of nodes
};

typedef enum {
    JSON_NULL,
    JSON_FALSE,
    JSON_TRUE,
    JSON_NUMBER,
    JSON_STRING,
    JSON_LIST,
    JSON_OBJECT
} JsonType;

/* A value. Its texts are views into the text or into the document's `strings`, not terminated by a
 * zero. */
typedef struct {
    JsonType type;
    Str raw;       // the value's own bytes in the text
    Str key;       // decoded name, of a member of an object
    Str string;    // decoded, of a string
    double number; // the nearest one, of a number; infinite beyond the range of a double
    size_t next;   // index of the node after this one and all inside it
} JsonNode;

typedef struct {
    JsonNode *nodes; // in the order of the text, the whole value first
    size_t n;
    Buf strings; // those that have escapes in the text
} JsonDoc;

/* Read `text`, which must outlive the document. 0; or -1 with nothing to free and an Err of
 * EXIT_USAGE, "JSON at byte N: what is wrong", the first byte being 1, or of EXIT_MEMORY. Time is
 * linear in the text; memory is at most 144
 * bytes a value and the text's size for strings. */
int json_parse(JsonDoc *d, Str text, Err *e);
void json_doc_free(JsonDoc *d); // a zeroed document is fine

/* The items of a list, or members of an object, in their order; NULL past the last. */
const JsonNode *json_first(const JsonDoc *d, const JsonNode *list_or_object);
const JsonNode *json_next(const JsonDoc *d, const JsonNode *container, const JsonNode *item);

/* The member of an object that has this name, the last of several; NULL for none and for what is no
 * object. */
const JsonNode *json_member(const JsonDoc *d, const JsonNode *object, const char *key);

/* That of the whole text; NULL too without a document. */
const JsonNode *json_field(const JsonDoc *d, const char *key);

/* Whether the node is a whole number, however written (7, 7.0, 70e-1), from lo to hi; then *out is
 * exactly it, also where a double could not hold it. */
bool json_integer(const JsonNode *n, int64_t lo, int64_t hi, int64_t *out);

#endif
