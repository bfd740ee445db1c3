/* regex.c - regular expressions to a grammar; the contract is in regex.h. */
#include "generate/regex.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

enum { MAX_GROUPS = 200, MAX_TIMES = 100000, LAST_CHAR = 0x10ffff };

typedef struct {
    const char *begin, *p, *end;
    Builder *b;
    RegexChars chars;
    void *context;
    int depth; // of groups
    Err *e;
} Reader;

/* A growing set of characters: those that are in it for certain, and those that may be. */
typedef struct {
    CharRange *in, *maybe;
    size_t n_in, cap_in, n_maybe, cap_maybe;
    bool failed;
} Set;

static int wrong(const Reader *r, const char *what)
{
    char seen[200];
    return err_set(r->e, EXIT_USAGE, "the pattern \"%s\" at byte %zu: %s",
                   str_escape((Str){r->begin, (size_t)(r->end - r->begin)}, seen, sizeof seen),
                   (size_t)(r->p - r->begin) + 1, what);
}

static bool at(const Reader *r, char c)
{
    return r->p < r->end && *r->p == c;
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* ---- sets ------------------------------------------------------------------------------------ */

static void add_in(Set *s, uint32_t first, uint32_t last)
{
    s->failed = s->failed || !mem_room(&s->in, s->n_in + 1, &s->cap_in, sizeof *s->in);
    if (!s->failed)
        s->in[s->n_in++] = (CharRange){first, last};
}

static void add_maybe(Set *s, uint32_t first, uint32_t last)
{
    s->failed = s->failed || !mem_room(&s->maybe, s->n_maybe + 1, &s->cap_maybe, sizeof *s->maybe);
    if (!s->failed)
        s->maybe[s->n_maybe++] = (CharRange){first, last};
}

static void add_both(Set *s, uint32_t first, uint32_t last)
{
    add_in(s, first, last);
    add_maybe(s, first, last);
}

static int by_first(const void *a, const void *b)
{
    const CharRange *x = a, *y = b;
    return (x->first > y->first) - (x->first < y->first);
}

/* Add to `out`'s `in` what is not in a list, which is sorted. */
static void add_rest(Set *out, CharRange *list, size_t n, bool to_maybe)
{
    uint32_t from = 0;
    if (n > 1)
        qsort(list, n, sizeof *list, by_first);
    for (size_t i = 0; i <= n; i++) {
        uint32_t first = i < n ? list[i].first : LAST_CHAR + 1;
        if (first > from)
            (to_maybe ? add_maybe : add_in)(out, from, first - 1);
        if (i < n && list[i].last + 1 > from)
            from = list[i].last + 1;
    }
}

/* Turn a set into what is not in it. */
static void negate(Set *s)
{
    Set out = {.failed = s->failed};
    add_rest(&out, s->maybe, s->n_maybe, false);
    add_rest(&out, s->in, s->n_in, true);
    free(s->in);
    free(s->maybe);
    *s = out;
}

/* \d, \w, \s and, in capitals, what is not in them. */
static void add_class(Set *s, char c)
{
    static const CharRange digits[] = {{'0', '9'}};
    static const CharRange words[] = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
    static const CharRange spaces[] = {{'\t', '\r'},     {' ', ' '},       {0xa0, 0xa0},
                                       {0x1680, 0x1680}, {0x2000, 0x200a}, {0x2028, 0x2029},
                                       {0x202f, 0x202f}, {0x205f, 0x205f}, {0x3000, 0x3000}};
    char kind = (char)(c | 0x20);
    const CharRange *list = kind == 'd' ? digits : kind == 'w' ? words : spaces;
    size_t n = kind == 'd' ? 1 : kind == 'w' ? 4 : sizeof spaces / sizeof *spaces;
    Set own = {0};
    for (size_t i = 0; i < n; i++)
        add_both(&own, list[i].first, list[i].last);
    if (kind == 's') { // in Python's or in ECMA's sense only
        add_maybe(&own, 0x1c, 0x1f);
        add_maybe(&own, 0x85, 0x85);
        add_maybe(&own, 0x180e, 0x180e);
        add_maybe(&own, 0xfeff, 0xfeff);
    } else {
        add_maybe(&own, 0x80, LAST_CHAR);
    }
    if (c != kind)
        negate(&own);
    for (size_t i = 0; i < own.n_in; i++)
        add_in(s, own.in[i].first, own.in[i].last);
    for (size_t i = 0; i < own.n_maybe; i++)
        add_maybe(s, own.maybe[i].first, own.maybe[i].last);
    s->failed = s->failed || own.failed;
    free(own.in);
    free(own.maybe);
}

static int read_hex(Reader *r, int n, uint32_t *out)
{
    static const char digits[] = "0123456789abcdefABCDEF";
    *out = 0;
    for (; n > 0; n--, r->p++) {
        const char *d = r->p < r->end && *r->p ? strchr(digits, *r->p) : NULL;
        if (!d)
            return wrong(r, "want a hexadecimal digit");
        *out = *out << 4 | (uint32_t)(d - digits < 16 ? d - digits : d - digits - 6);
    }
    return 0;
}

/* \uHHHH, two of them for a character beyond U+FFFF, or \u{H...}. r->p is behind the u. */
static int read_unicode(Reader *r, uint32_t *out)
{
    uint32_t low;
    if (at(r, '{')) {
        int n = 0;
        r->p++;
        while (n < 6 && r->p + n < r->end && r->p[n] != '}')
            n++;
        if (!n || read_hex(r, n, out))
            return n ? -1 : wrong(r, "want a hexadecimal digit");
        if (!at(r, '}') || *out > LAST_CHAR)
            return wrong(r, "want a number up to 10FFFF in braces");
        r->p++;
        return 0;
    }
    if (read_hex(r, 4, out))
        return -1;
    if (*out >> 10 == 0xd800 >> 10 && r->end - r->p >= 6 && r->p[0] == '\\' && r->p[1] == 'u') {
        r->p += 2;
        if (read_hex(r, 4, &low))
            return -1;
        if (low >> 10 != 0xdc00 >> 10)
            return wrong(r, "half a surrogate is no character");
        *out = 0x10000 + ((*out & 0x3ff) << 10) + (low & 0x3ff);
    }
    return *out >> 11 == 0xd800 >> 11 ? wrong(r, "half a surrogate is no character") : 0;
}

/* An escape, r->p being at the backslash: a class goes into the set and *is_class is set, a
 * character to *out. */
static int read_escape(Reader *r, bool in_set, Set *s, bool *is_class, uint32_t *out)
{
    static const char from[] = "nrtfv0", to[] = "\n\r\t\f\v\0";
    char c = r->p + 1 < r->end ? r->p[1] : 0;
    *is_class = c && strchr("dDwWsS", c);
    if (*is_class) {
        add_class(s, c);
        r->p += 2;
        return 0;
    }
    if (c == 'p' || c == 'P')
        return wrong(r, "\\p is not supported");
    if (c == 'b' && in_set) {
        *out = '\b';
        r->p += 2;
        return 0;
    }
    if (c == 'b' || c == 'B')
        return wrong(r, "\\b is not supported");
    if ((c >= '1' && c <= '9') || c == 'k' || (c == '0' && r->p + 2 < r->end && is_digit(r->p[2])))
        return wrong(r, "references to groups are not supported");
    if (c == 'c')
        return wrong(r, "\\c is not supported");
    const char *plain = c ? strchr(from, c) : NULL;
    if (plain) {
        *out = (uint8_t)to[plain - from];
        r->p += 2;
        return 0;
    }
    if (c == 'x' || c == 'u') {
        r->p += 2;
        return c == 'x' ? read_hex(r, 2, out) : read_unicode(r, out);
    }
    if (!c || ((c | 0x20) >= 'a' && (c | 0x20) <= 'z'))
        return wrong(r, c ? "no such escape" : "a backslash needs something after it");
    r->p++;
    r->p += utf8_decode(r->p, r->end, out);
    return 0;
}

/* A character or a class in brackets. */
static int read_member(Reader *r, Set *s, bool *is_class, uint32_t *out)
{
    *is_class = false;
    if (at(r, '\\'))
        return read_escape(r, true, s, is_class, out);
    r->p += utf8_decode(r->p, r->end, out);
    return 0;
}

static int read_brackets(Reader *r, Set *s)
{
    const char *begin = r->p++;
    bool negated = at(r, '^'), is_class;
    r->p += negated;
    while (r->p < r->end && *r->p != ']') {
        uint32_t first, last;
        if (read_member(r, s, &is_class, &first))
            return -1;
        if (is_class)
            continue;
        last = first;
        if (at(r, '-') && r->p + 1 < r->end && r->p[1] != ']') {
            r->p++;
            if (read_member(r, s, &is_class, &last))
                return -1;
            if (is_class || last < first)
                return wrong(r, "the range ends before it begins, or in a class");
        }
        add_both(s, first, last);
    }
    if (r->p == r->end) {
        r->p = begin;
        return wrong(r, "there is no closing bracket");
    }
    r->p++;
    if (negated)
        negate(s);
    return 0;
}

static int read_set(Reader *r, Regex *out)
{
    Set s = {0};
    uint32_t c = 0;
    bool is_class = true;
    int rc = 0;
    if (at(r, '[')) {
        rc = read_brackets(r, &s);
    } else if (at(r, '.')) {
        add_both(&s, '\n', '\n');
        add_both(&s, '\r', '\r');
        add_both(&s, 0x2028, 0x2029);
        negate(&s);
        r->p++;
    } else if (at(r, '\\')) {
        rc = read_escape(r, false, &s, &is_class, &c);
    } else {
        is_class = false;
        r->p += utf8_decode(r->p, r->end, &c);
    }
    if (!rc && !is_class)
        add_in(&s, c, c);
    if (!rc && s.failed)
        rc = err_set(r->e, EXIT_MEMORY, "out of memory for the grammar");
    if (!rc)
        *out = (Regex){r->chars(r->context, s.in, s.n_in), 1, 1};
    free(s.in);
    free(s.maybe);
    return rc;
}

/* ---- structure ------------------------------------------------------------------------------- */

static int64_t at_most(int64_t n)
{
    return n < REGEX_ENDLESS ? n : REGEX_ENDLESS;
}

/* A growing list of parts. */
typedef struct {
    Expr *items;
    size_t n, cap;
} List;

static int add(Reader *r, List *list, Expr x)
{
    if (!mem_room(&list->items, list->n + 1, &list->cap, sizeof *list->items))
        return err_set(r->e, EXIT_MEMORY, "out of memory for the grammar");
    list->items[list->n++] = x;
    return 0;
}

static int read_times(Reader *r, int *out)
{
    long n = 0;
    if (r->p == r->end || !is_digit(*r->p))
        return wrong(r, "want a number of repetitions: {2}, {2,} or {2,5}");
    for (; r->p < r->end && is_digit(*r->p); r->p++)
        if ((n = 10 * n + (*r->p - '0')) > MAX_TIMES)
            return wrong(r, "so many repetitions are too many");
    *out = (int)n;
    return 0;
}

static int read_repetition(Reader *r, Regex *x)
{
    int min = *r->p == '+', max = *r->p == '?' ? 1 : REPEAT_ANY;
    if (*r->p++ == '{') {
        if (read_times(r, &min))
            return -1;
        max = min;
        if (at(r, ',')) {
            r->p++;
            max = REPEAT_ANY;
            if (!at(r, '}') && read_times(r, &max))
                return -1;
        }
        if (!at(r, '}') || (max != REPEAT_ANY && max < min))
            return wrong(r, "want a closing brace, and most after fewest repetitions");
        r->p++;
    }
    if (at(r, '?')) // prefers fewer: the same texts
        r->p++;
    if (r->p < r->end && (*r->p == '*' || *r->p == '+' || *r->p == '{'))
        return wrong(r, "a repetition of a repetition needs parentheses");
    x->expr = expr_repeat(r->b, x->expr, min, max);
    x->min = at_most(x->min * min);
    x->max = max == REPEAT_ANY ? (x->max ? REGEX_ENDLESS : 0) : at_most(x->max * max);
    return 0;
}

static int read_choice(Reader *r, Regex *out);

static int read_group(Reader *r, Regex *out)
{
    const char *begin = r->p++;
    if (++r->depth > MAX_GROUPS)
        return wrong(r, "too many groups within each other");
    if (at(r, '?')) {
        const char *name = r->p + 2;
        if (r->end - r->p >= 2 && r->p[1] == ':') {
            r->p += 2;
        } else if (r->end - r->p >= 3 && r->p[1] == '<' && *name != '=' && *name != '!') {
            while (r->p < r->end && *r->p != '>')
                r->p++;
            r->p += r->p < r->end;
        } else {
            return wrong(r, "lookaround is not supported");
        }
    }
    if (read_choice(r, out))
        return -1;
    if (!at(r, ')')) {
        r->p = begin;
        return wrong(r, "there is no closing parenthesis");
    }
    r->p++;
    r->depth--;
    return 0;
}

static int read_item(Reader *r, Regex *out)
{
    switch (*r->p) {
    case '(': return read_group(r, out);
    case '^':
    case '$':
        return wrong(r, "an anchor is supported only at the ends of the pattern or of one of its "
                        "alternatives");
    case '*':
    case '+':
    case '?':
    case '{': return wrong(r, "there is nothing to repeat");
    case ')': return wrong(r, "there is no opening parenthesis");
    }
    return read_set(r, out);
}

/* Whether the alternative ends here. */
static bool is_over(const Reader *r)
{
    return r->p == r->end || *r->p == '|' || (*r->p == ')' && r->depth);
}

/* A `$` with nothing of the alternative after it, outside of groups. */
static bool is_end_anchor(const Reader *r)
{
    return at(r, '$') && !r->depth && (r->p + 1 == r->end || r->p[1] == '|');
}

static int read_sequence(Reader *r, List *list, Regex *out)
{
    Expr anything = 0;
    bool whole = !r->depth, anchored = whole && at(r, '^');
    *out = (Regex){0};
    if (whole)
        anything = expr_repeat(r->b, r->chars(r->context, &(CharRange){0, LAST_CHAR}, 1), 0,
                               REPEAT_ANY);
    r->p += anchored;
    if (whole && !anchored && add(r, list, anything))
        return -1;
    out->max = whole && !anchored ? REGEX_ENDLESS : 0;
    while (!is_over(r) && !(whole && is_end_anchor(r))) {
        Regex x;
        if (read_item(r, &x)
            || (r->p < r->end && *r->p && strchr("*+?{", *r->p) && read_repetition(r, &x))
            || add(r, list, x.expr))
            return -1;
        out->min = at_most(out->min + x.min);
        out->max = at_most(out->max + x.max);
    }
    if (whole && is_end_anchor(r)) {
        r->p++;
    } else if (whole) {
        out->max = REGEX_ENDLESS;
        if (add(r, list, anything))
            return -1;
    }
    out->expr = expr_sequence(r->b, list->items, list->n);
    return 0;
}

static int read_choice(Reader *r, Regex *out)
{
    List choices = {0};
    int rc = 0;
    *out = (Regex){.min = REGEX_ENDLESS};
    for (bool more = true; more && !rc;) {
        List list = {0};
        Regex x;
        rc = read_sequence(r, &list, &x) || add(r, &choices, x.expr);
        free(list.items);
        if (!rc) {
            out->min = x.min < out->min ? x.min : out->min;
            out->max = x.max > out->max ? x.max : out->max;
        }
        more = !rc && at(r, '|');
        r->p += more;
    }
    if (!rc)
        out->expr = expr_choice(r->b, choices.items, choices.n);
    free(choices.items);
    return rc ? -1 : 0;
}

int regex_read(Builder *b, Str pattern, RegexChars chars, void *context, Regex *out, Err *e)
{
    Reader r = {.begin = pattern.ptr,
                .p = pattern.ptr,
                .end = pattern.ptr + pattern.len,
                .b = b,
                .chars = chars,
                .context = context,
                .e = e};
    return read_choice(&r, out);
}
