/* util.h - what every file may use: errors, checked sizes, memory, text and the clock.
 *
 * Nothing here knows about models. Functions that can fail return -1 (or NULL) and fill an Err;
 * only run.c turns an Err into a message and an exit status.
 */
#ifndef UTIL_H
#define UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* Exit statuses; an Err carries the one that fits. */
enum { EXIT_OK = 0, EXIT_IO = 1, EXIT_USAGE = 2, EXIT_MODEL = 3, EXIT_MEMORY = 4 };

typedef struct {
    int code;       // one of the EXIT_ values above
    char text[600]; // one line without a final newline: "FILE: THING: got X, want Y"
} Err;

/* Fill `e` (printf style, cut to its size); it returns -1, so that `return err_set(...)` reads
 * well. */
int err_set(Err *e, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* The same from errno, "WHAT: reason": EXIT_MEMORY where memory is what lacked, else EXIT_IO. */
int err_errno(Err *e, const char *what);

/* Put "prefix: " before the text of `e`; returns -1. */
int err_prefix(Err *e, const char *prefix);

/* What the program was called as, without its folder, for messages; "run" where it has characters
 * that a message or a shell would have to quote. */
const char *program_name(void);

/* A view of bytes that somebody else owns; not terminated by a zero. */
typedef struct {
    const char *ptr;
    size_t len;
} Str;

bool str_eq(Str a, const char *b);
bool str_listed(Str s, const char *list); // one of the words of a list that spaces separate
int str_cmp(Str a, Str b);                // bytewise order, shorter first on a tie

/* Copy `s` into `out` (at most `size` bytes with the final zero) for an error line or a label:
 * control and direction characters, quotes, backslashes and invalid UTF-8 become \xNN, and what
 * does not fit ends in "...". Returns `out`. */
char *str_escape(Str s, char *out, size_t size);

/* Checked size arithmetic: false, and *out untouched, when the result does not fit. */
bool size_add(size_t a, size_t b, size_t *out);
bool size_mul(size_t a, size_t b, size_t *out);
bool size_align(size_t a, size_t alignment,
                size_t *out); // up to a multiple of `alignment`, a power of two

/* malloc/calloc/realloc of n items of `size` bytes with the product checked; NULL when out of
 * memory. n = 0 gives a pointer that may be freed. */
void *mem_alloc(size_t n, size_t size);
void *mem_zalloc(size_t n, size_t size);
void *mem_grow(void *p, size_t n, size_t size);

bool mem_double(void *items, size_t n, size_t *cap, size_t size); // mem_room() calls it

/* Make room for n items of `size` bytes in a growing array: `items` is the address of its pointer,
 * *cap the number of items it has room for. Room at least doubles when it grows. False, and the
 * array as it was, when out of memory. */
static inline bool mem_room(void *items, size_t n, size_t *cap, size_t size)
{
    return n <= *cap || mem_double(items, n, cap, size);
}

/* One zero-filled allocation cut into pieces of 64-byte alignment. Plan with arena_reserve() while
 * `base` is NULL (it only adds up), call arena_commit(), then make the same calls again to receive
 * the pieces. Pages are touched only when used, so a large plan costs address space first and
 * memory as it fills. */
typedef struct {
    char *base;
    size_t used, size;
    bool overflow;
} Arena;

void *arena_reserve(Arena *a, size_t n, size_t size); // NULL while planning
int arena_commit(Arena *a, Err *e); // allocate what was planned and start over at its beginning
void arena_free(Arena *a);

/* A growing byte buffer. On a failed growth `failed` is set and later appends do nothing. */
typedef struct {
    char *ptr; // kept zero-terminated once anything was added
    size_t len, cap;
    bool failed;
} Buf;

void buf_add(Buf *b, const void *bytes, size_t len);
void buf_text(Buf *b, const char *text); // without its zero
void buf_free(Buf *b);

double clock_seconds(void); // monotonic

#endif
