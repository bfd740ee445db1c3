/* gbnf.c - GBNF to a grammar; the contract is in gbnf.h.
 *
 * Read as llama.cpp reads it: a newline ends a rule outside of parentheses and not after ::= or |,
 * the last definition of a name counts, a repetition after another repeats the whole. Where
 * llama.cpp takes what can match nothing (an empty set, a descending range, half a surrogate) this
 * is an error here.
 */
#include "generate/gbnf.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

enum { MAX_TEXT = 1 << 22, MAX_PARENTHESES = 500, MAX_TIMES = 1 << 20 };

typedef struct {
    Str name;
    int rule;
} Name;

typedef struct {
    const char *begin, *p, *end;
    Builder *b;
    Name *names; // (n_table, a power of two) by hash; an empty name is a free place
    size_t n_names, n_table;
    int depth; // of parentheses
    Err *e;
} Reader;

/* ---- characters ------------------------------------------------------------------------------ */

static int wrong_at(const Reader *r, const char *at, const char *what)
{
    size_t line = 1, column = 1;
    char seen[40];
    for (const char *p = r->begin; p < at; p++) {
        column = *p == '\n' ? 1 : column + 1;
        line += *p == '\n';
    }
    size_t len = (size_t)(r->end - at);
    str_escape((Str){at, len < 12 ? len : utf8_complete(at, 12)}, seen, sizeof seen);
    return len ? err_set(r->e, EXIT_USAGE, "line %zu, column %zu, at \"%s\": %s", line, column,
                         seen, what)
               : err_set(r->e, EXIT_USAGE, "line %zu, at the end: %s", line, what);
}

static int wrong(const Reader *r, const char *what)
{
    return wrong_at(r, r->p, what);
}

static bool at(const Reader *r, char c)
{
    return r->p < r->end && *r->p == c;
}

static bool is_one_of(char c, const char *list)
{
    return c && strchr(list, c);
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

static bool is_word(char c)
{
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || is_digit(c) || c == '-';
}

/* Skip spaces and comments, and newlines too where they end no rule. */
static void skip_space(Reader *r, bool newlines)
{
    while (r->p < r->end && is_one_of(*r->p, newlines ? " \t#\r\n" : " \t#")) {
        if (*r->p == '#')
            while (r->p < r->end && *r->p != '\n' && *r->p != '\r')
                r->p++;
        else
            r->p++;
    }
}

static int read_hex(Reader *r, int n, uint32_t *out)
{
    static const char digits[] = "0123456789abcdefABCDEF";
    const char *begin = r->p;
    *out = 0;
    for (r->p += 2; n > 0; n--, r->p++) {
        const char *d = r->p < r->end && *r->p ? strchr(digits, *r->p) : NULL;
        if (!d)
            return wrong_at(r, begin,
                            "want 2 hexadecimal digits after \\x, 4 after \\u, 8 after \\U");
        *out = *out << 4 | (uint32_t)(d - digits < 16 ? d - digits : d - digits - 6);
    }
    return 0;
}

/* One character of a text or a set, with its escape read. */
static int read_char(Reader *r, uint32_t *out)
{
    static const char from[] = "trn\\\"[]-", to[] = "\t\r\n\\\"[]-";
    char next = r->p + 1 < r->end ? r->p[1] : 0;
    if (*r->p != '\\') {
        size_t len = utf8_decode(r->p, r->end, out);
        if (*out & UTF8_INVALID)
            return wrong(r, "this is no UTF-8");
        r->p += len;
        return 0;
    }
    switch (next) {
    case 'x': return read_hex(r, 2, out);
    case 'u': return read_hex(r, 4, out);
    case 'U': return read_hex(r, 8, out);
    }
    const char *plain = next ? strchr(from, next) : NULL;
    if (!plain)
        return wrong(r, "no such escape; there are \\t \\r \\n \\\\ \\\" \\[ \\] \\- \\xHH \\uHHHH "
                        "\\UHHHHHHHH");
    *out = (uint8_t)to[plain - from];
    r->p += 2;
    return 0;
}

/* ---- items ----------------------------------------------------------------------------------- */

static int read_text(Reader *r, Expr *out)
{
    Buf text = {0};
    const char *begin = r->p++;
    int rc = 0;
    while (!rc && r->p < r->end && *r->p != '"') {
        uint32_t c;
        char utf8[4];
        const char *here = r->p;
        rc = read_char(r, &c);
        if (!rc && (c > 0x10ffff || c >> 11 == 0xd800 >> 11))
            rc = wrong_at(r, here, "no character has this number");
        if (!rc)
            buf_add(&text, utf8, utf8_encode(c, utf8));
    }
    if (!rc && r->p == r->end)
        rc = wrong_at(r, begin, "the text has no closing quote");
    r->p++;
    if (!rc && text.failed)
        rc = err_set(r->e, EXIT_MEMORY, "out of memory for the grammar");
    if (!rc)
        *out = expr_bytes(r->b, (Str){text.ptr, text.len});
    buf_free(&text);
    return rc;
}

/* The ranges up to the closing bracket. */
static int read_ranges(Reader *r, CharRange **ranges, size_t *n)
{
    size_t cap = 0;
    const char *begin = r->p;
    while (r->p < r->end && *r->p != ']') {
        const char *here = r->p;
        CharRange x;
        if (!mem_room(ranges, *n + 1, &cap, sizeof **ranges))
            return err_set(r->e, EXIT_MEMORY, "out of memory for the grammar");
        if (read_char(r, &x.first))
            return -1;
        x.last = x.first;
        if (at(r, '-') && r->p + 1 < r->end && r->p[1] != ']') {
            r->p++;
            if (read_char(r, &x.last))
                return -1;
        }
        if (x.last < x.first)
            return wrong_at(r, here, "the range ends before it begins");
        (*ranges)[(*n)++] = x;
    }
    if (r->p == r->end)
        return wrong_at(r, begin, "the set of characters has no closing bracket");
    r->p++;
    return *n ? 0 : wrong_at(r, begin, "the set of characters is empty");
}

static int read_set(Reader *r, Expr *out)
{
    CharRange *ranges = NULL;
    size_t n = 0;
    r->p++;
    bool negated = at(r, '^');
    r->p += negated;
    int rc = read_ranges(r, &ranges, &n);
    if (!rc)
        *out = expr_chars(r->b, ranges, n, negated);
    free(ranges);
    return rc;
}

static size_t find_name(const Reader *r, Str name)
{
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < name.len; i++)
        hash = (hash ^ (uint8_t)name.ptr[i]) * 0x100000001b3u;
    size_t place = (hash ^ hash >> 32) & (r->n_table - 1);
    while (r->names[place].name.len && str_cmp(r->names[place].name, name))
        place = (place + 1) & (r->n_table - 1);
    return place;
}

static bool grow_names(Reader *r)
{
    Reader old = *r;
    r->n_table = old.n_table ? 4 * old.n_table : 64;
    r->names = mem_zalloc(r->n_table, sizeof *r->names);
    for (size_t i = 0; i < old.n_table && r->names; i++)
        if (old.names[i].name.len)
            r->names[find_name(r, old.names[i].name)] = old.names[i];
    free(old.names);
    return r->names != NULL;
}

/* The rule of the name at hand. */
static int read_name(Reader *r, int *rule)
{
    Str name = {r->p, 0};
    for (; r->p < r->end && is_word(*r->p); r->p++)
        name.len++;
    if (!name.len)
        return wrong(r, "want the name of a rule: letters, digits and -");
    if (2 * (r->n_names + 1) > r->n_table && !grow_names(r)) {
        r->n_table = 0;
        return err_set(r->e, EXIT_MEMORY, "out of memory for the grammar");
    }
    Name *x = &r->names[find_name(r, name)];
    if (!x->name.len) {
        *x = (Name){name, builder_rule(r->b, name)};
        r->n_names++;
    }
    *rule = x->rule;
    return 0;
}

static int read_choice(Reader *r, Expr *out);

static int read_parentheses(Reader *r, Expr *out)
{
    const char *begin = r->p++;
    if (++r->depth > MAX_PARENTHESES)
        return wrong_at(r, begin, "too many parentheses within each other");
    skip_space(r, true);
    if (read_choice(r, out))
        return -1;
    if (!at(r, ')'))
        return wrong(r, "want a closing parenthesis or more of what is in it");
    r->p++;
    r->depth--;
    return 0;
}

/* An item without its repetition. */
static int read_item(Reader *r, Expr *out)
{
    int rule;
    switch (*r->p) {
    case '"': return read_text(r, out);
    case '[': return read_set(r, out);
    case '(': return read_parentheses(r, out);
    case '.':
        r->p++;
        *out = expr_chars(r->b, NULL, 0, true);
        return 0;
    case '<':
    case '!': return wrong(r, "tokens in a grammar are not supported here, only characters");
    }
    if (read_name(r, &rule))
        return -1;
    *out = expr_rule(r->b, rule);
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
    skip_space(r, r->depth > 0);
    *out = (int)n;
    return 0;
}

/* What follows an item: *, +, ? or a number in braces. */
static int read_repetition(Reader *r, Expr *x)
{
    const char *begin = r->p;
    int min = *r->p == '+', max = *r->p == '?' ? 1 : REPEAT_ANY;
    if (*r->p++ == '{') {
        skip_space(r, r->depth > 0);
        if (read_times(r, &min))
            return -1;
        max = min;
        if (at(r, ',')) {
            r->p++;
            skip_space(r, r->depth > 0);
            max = REPEAT_ANY;
            if (r->p < r->end && is_digit(*r->p) && read_times(r, &max))
                return -1;
        }
        if (!at(r, '}'))
            return wrong(r, "want a closing brace");
        r->p++;
        if (max != REPEAT_ANY && max < min)
            return wrong_at(r, begin, "the most repetitions are fewer than the fewest");
    }
    skip_space(r, r->depth > 0);
    *x = expr_repeat(r->b, *x, min, max);
    return 0;
}

/* Append to a growing list of expressions. */
static int add(Reader *r, Expr **list, size_t *n, size_t *cap, Expr x)
{
    if (!mem_room(list, *n + 1, cap, sizeof **list))
        return err_set(r->e, EXIT_MEMORY, "out of memory for the grammar");
    (*list)[(*n)++] = x;
    return 0;
}

static int read_sequence(Reader *r, Expr *out)
{
    Expr *items = NULL, x = 0;
    size_t n = 0, cap = 0;
    int rc = 0;
    while (!rc && r->p < r->end && !is_one_of(*r->p, "|)\r\n")) {
        if (is_one_of(*r->p, "*+?{")) {
            rc = n ? read_repetition(r, &items[n - 1]) : wrong(r, "there is nothing to repeat");
            continue;
        }
        rc = read_item(r, &x) || add(r, &items, &n, &cap, x);
        skip_space(r, r->depth > 0);
    }
    if (!rc)
        *out = expr_sequence(r->b, items, n);
    free(items);
    return rc ? -1 : 0;
}

static int read_choice(Reader *r, Expr *out)
{
    Expr *choices = NULL, x = 0;
    size_t n = 0, cap = 0;
    int rc = read_sequence(r, &x) || add(r, &choices, &n, &cap, x);
    while (!rc && at(r, '|')) {
        r->p++;
        skip_space(r, true);
        rc = read_sequence(r, &x) || add(r, &choices, &n, &cap, x);
    }
    if (!rc)
        *out = expr_choice(r->b, choices, n);
    free(choices);
    return rc ? -1 : 0;
}

/* ---- rules ----------------------------------------------------------------------------------- */

static int read_rule(Reader *r)
{
    int rule;
    Expr body;
    if (read_name(r, &rule))
        return -1;
    skip_space(r, false);
    if (r->end - r->p < 3 || memcmp(r->p, "::=", 3))
        return wrong(r, "want ::= after the name of the rule");
    r->p += 3;
    skip_space(r, true);
    if (read_choice(r, &body))
        return -1;
    if (r->p < r->end && !is_one_of(*r->p, "\r\n"))
        return wrong(r, "want a newline or the end after a rule");
    builder_define(r->b, rule, body);
    skip_space(r, true);
    return 0;
}

static int read_rules(Reader *r, int *root)
{
    skip_space(r, true);
    while (r->p < r->end)
        if (read_rule(r))
            return -1;
    size_t place = r->n_table ? find_name(r, (Str){"root", 4}) : 0;
    if (!r->n_table || !r->names[place].name.len)
        return err_set(r->e, EXIT_USAGE, "there is no rule root, which says what the text is");
    *root = r->names[place].rule;
    return 0;
}

int gbnf_compile(Grammar *g, Str text, Err *e)
{
    int root = 0;
    *g = (Grammar){0};
    if (text.len > MAX_TEXT)
        return err_set(e, EXIT_USAGE, "the grammar has %zu bytes, want at most %d", text.len,
                       MAX_TEXT);
    Reader r = {
        .begin = text.ptr, .p = text.ptr, .end = text.ptr + text.len, .b = builder_new(), .e = e};
    int rc = r.b ? read_rules(&r, &root) || grammar_compile(g, r.b, root, e)
                 : err_set(e, EXIT_MEMORY, "out of memory for the grammar");
    builder_free(r.b);
    free(r.names);
    return rc ? -1 : 0;
}
