/* fuzz_walk.h - for fuzz_grammar.c and fuzz_schema.c: walks through a grammar. */
#ifndef FUZZ_WALK_H
#define FUZZ_WALK_H

#include "fuzz.h"
#include "generate/matcher.h"

#include <string.h>

/* Whether bytes may follow a state; -1 where the matcher refuses to say. */
static int may_follow(Matcher *m, MatchState state, Str bytes)
{
    Err e = {0};
    matcher_hold(m, state);
    int rc = matcher_bytes(m, &state, bytes, &e);
    matcher_let_go(m, state);
    MUST(rc >= 0 || e.code == EXIT_USAGE);
    return rc;
}

/* Follow a text: each byte of `steps` chooses among those that may come next. No state is a dead
 * end, and the whole text is followed like its bytes one after the other. What the grammar allows
 * is given to `allowed`. */
static void walk(const Grammar *g, Str steps, void (*allowed)(Str text))
{
    Err e = {0};
    Buf text = {0};
    Matcher *m = matcher_new(g, NULL, &e);
    MUST(m || e.code == EXIT_USAGE);
    if (!m)
        return;
    MatchState state = matcher_begin(m), start = matcher_begin(m);
    for (size_t i = 0; i <= steps.len && i < 120; i++) {
        char list[256];
        int n = 0, rc = 0;
        for (int c = 0; c < 256 && rc >= 0; c++)
            if ((rc = may_follow(m, state, (Str){&(char){(char)c}, 1})) > 0)
                list[n++] = (char)c;
        if (rc < 0)
            break;
        MUST(n || matcher_accepts(m, state));
        MUST(matcher_is_over(m, state) == (!n && matcher_accepts(m, state)));
        if (matcher_accepts(m, state) && allowed)
            allowed((Str){text.ptr ? text.ptr : "", text.len});
        if (!n || i == steps.len)
            break;
        char c = list[(uint8_t)steps.ptr[i] % n];
        MUST(matcher_bytes(m, &state, (Str){&c, 1}, &e) == 1);
        buf_add(&text, &c, 1);
    }
    Str whole = {text.ptr ? text.ptr : "", text.len};
    MUST(matcher_bytes(m, &start, whole, &e) != 0 && (start == state || e.code));
    matcher_let_go(m, state);
    matcher_let_go(m, start);
    matcher_free(m);
    buf_free(&text);
}

/* The parts of an input before and after the first byte 0xFF. */
static Str cut(const uint8_t *data, size_t size, Str *rest)
{
    const uint8_t *end = size ? memchr(data, 0xff, size) : NULL;
    size_t n = end ? (size_t)(end - data) : size;
    *rest = end ? (Str){(const char *)end + 1, size - n - 1} : (Str){"", 0};
    return (Str){(const char *)data, n};
}

#endif
