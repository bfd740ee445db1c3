/* template_parse.c - a chat template's text to its tree: tokens first, then statements and
 * expressions by recursive descent. Contracts are in template_parse.h. */
#include "text/template_parse.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "text/filters.h"
#include "text/unicode.h"

enum { MAX_HEIGHT = 300, MAX_TREE_BYTES = 64 << 20 };

/* ---- tokens ---------------------------------------------------------------------------------- */

typedef enum {
    T_END,
    T_DATA,
    T_BLOCK_BEGIN,
    T_BLOCK_END,
    T_PRINT_BEGIN,
    T_PRINT_END,
    T_NAME,
    T_TEXT,
    T_NUMBER, // whole or not
    T_OPERATOR
} TokenKind;

typedef struct {
    TokenKind kind;
    int line;
    Str text;    // of names and operators, and as it was written
    Value value; // of data, strings and numbers
} Token;

typedef struct {
    Room *room;
    const char *at, *end;
    int line;
    bool line_starts; // the last thing ended with a newline
    Token *tokens;
    size_t n, cap;
    char open[MAX_HEIGHT]; // brackets that are open: what closes them
    int n_open;
} Lexer;

static void add_token(Lexer *x, TokenKind kind, const char *from, const char *to, Value v)
{
    x->tokens = room_grow(x->room, x->tokens, x->n + 1, &x->cap, sizeof *x->tokens);
    x->tokens[x->n++] = (Token){kind, x->line, {from, (size_t)(to - from)}, v};
    x->room->line = x->line;
}

static void advance(Lexer *x, const char *to)
{
    for (; x->at < to; x->at++)
        x->line += *x->at == '\n';
    x->room->line = x->line;
}

static bool at_text(const Lexer *x, const char *p, const char *what)
{
    size_t n = strlen(what);
    return (size_t)(x->end - p) >= n && !memcmp(p, what, n);
}

static const char *skip_space(const Lexer *x, const char *p)
{
    uint32_t cp;
    for (size_t n; p < x->end; p += n) {
        n = utf8_decode(p, x->end, &cp);
        if (!unicode_space(cp))
            break;
    }
    return p;
}

/* `to` without the white space before it, not before `from`. */
static const char *strip_end(const char *from, const char *to)
{
    while (to > from) {
        const char *p = to - 1;
        uint32_t cp;
        while (p > from && (*p & 0xc0) == 0x80 && to - p < 4)
            p--;
        if (utf8_decode(p, to, &cp) != (size_t)(to - p) || !unicode_space(cp))
            break;
        to = p;
    }
    return to;
}

/* The text before a tag that begins with `sign` (-, + or none). A print tag is not stripped of the
 * white space before it unless it says so. */
static void add_data(Lexer *x, const char *to, char sign, bool print)
{
    const char *from = x->at, *cut = to;
    if (sign == '-') {
        cut = strip_end(from, to);
    } else if (sign != '+' && !print) {
        const char *line = to;
        while (line > from && line[-1] != '\n')
            line--;
        if ((line > from || x->line_starts) && skip_space(x, line) >= to)
            cut = line;
    }
    if (cut > from) {
        Str s = {from, (size_t)(cut - from)};
        add_token(x, T_DATA, from, cut, value_text(x->room, text_of(x->room, s, MARK_TEMPLATE)));
    }
    advance(x, to);
}

/* Where a tag's closing text ends if it stands at p, or NULL: "%}" with a sign before it, and what
 * is dropped after it. */
static const char *closing(const Lexer *x, const char *p, const char *close)
{
    bool print = *close == '}', minus = p < x->end && *p == '-';
    if (minus || (!print && p < x->end && *p == '+'))
        p++;
    else if (at_text(x, p, close))
        return p + 2 + (!print && p + 2 < x->end && p[2] == '\n');
    if (!at_text(x, p, close))
        return NULL;
    return minus ? skip_space(x, p + 2) : p + 2;
}

static void set_line_starts(Lexer *x)
{
    x->line_starts = x->at[-1] == '\n';
}

static void lex_comment(Lexer *x)
{
    const char *p = x->at, *after = NULL;
    if (p == x->end) // nothing behind "{#": jinja2 does not mind
        return;
    for (; p < x->end && !(after = closing(x, p, "#}")); p++)
        ;
    if (!after)
        room_fail(x->room, "Missing end of comment tag");
    advance(x, after);
    set_line_starts(x);
}

/* Whether the tag at p (after "{%") is `word` alone: where it ends, or NULL. */
static const char *word_tag(const Lexer *x, const char *p, const char *word, bool trimmed)
{
    p = skip_space(x, p + (p < x->end && (*p == '-' || *p == '+')));
    if (!at_text(x, p, word))
        return NULL;
    p = skip_space(x, p + strlen(word));
    if (trimmed)
        return closing(x, p, "%}");
    bool minus = p < x->end && *p == '-';
    return !at_text(x, p + minus, "%}") ? NULL : minus ? skip_space(x, p + 3) : p + 2;
}

/* What stands between {% raw %}, which is read by now, and {% endraw %}. */
static void lex_raw(Lexer *x)
{
    for (const char *p = x->at; p + 2 < x->end; p++) {
        const char *after = at_text(x, p, "{%") ? word_tag(x, p + 2, "endraw", true) : NULL;
        if (after) {
            add_data(x, p, p[2], false);
            advance(x, after);
            set_line_starts(x);
            return;
        }
    }
    if (x->at < x->end)
        room_fail(x->room, "Missing end of raw directive");
}

static int hex_value(const char *p, const char *end, int n, uint32_t *out)
{
    static const char digits[] = "0123456789abcdefABCDEF";
    *out = 0;
    for (int i = 0; i < n; i++) {
        const char *d = p + i < end && p[i] ? strchr(digits, p[i]) : NULL;
        if (!d)
            return -1;
        *out = *out << 4 | (uint32_t)(d - digits < 16 ? d - digits : d - digits - 6);
    }
    return 0;
}

/* The escape after a backslash at p, as in Python; returns what is behind it. */
static const char *lex_escape(Lexer *x, Build *b, const char *p, const char *end)
{
    static const char letters[] = "abfnrtv\\'\"", bytes[] = "\a\b\f\n\r\t\v\\'\"";
    char c = *p;
    const char *plain = c ? strchr(letters, c) : NULL;
    int digits = c == 'x' ? 2 : c == 'u' ? 4 : c == 'U' ? 8 : 0;
    uint32_t cp = 0;
    if (plain) {
        build_bytes(b, &bytes[plain - letters], 1, MARK_TEMPLATE);
        return p + 1;
    }
    if (c == '\n')
        return p + 1;
    if (digits) {
        bool bad = hex_value(p + 1, end, digits, &cp) || cp > 0x10ffff || cp >> 11 == 0x1b;
        if (bad)
            room_fail(x->room, "\"\\%.*s\" in a string is not a character",
                      (int)(end - p < digits + 1 ? end - p : digits + 1), p);
        build_char(b, cp, MARK_TEMPLATE);
        return p + 1 + digits;
    }
    if (c >= '0' && c <= '7') {
        int n = 0;
        for (; n < 3 && p < end && *p >= '0' && *p <= '7'; n++)
            cp = 8 * cp + (uint32_t)(*p++ - '0');
        build_char(b, cp, MARK_TEMPLATE);
        return p;
    }
    if (c == 'N')
        room_fail(x->room, "\"\\N\" in a string is not supported");
    build_words(b, "\\"); // stays as it is
    return p;
}

static void lex_text(Lexer *x)
{
    const char *p = x->at + 1, quote = *x->at;
    Build b = build_begin(x->room);
    while (p < x->end && *p != quote) {
        if (*p == '\\' && p + 1 < x->end) {
            p = lex_escape(x, &b, p + 1, x->end);
        } else {
            const char *from = p;
            while (p < x->end && *p != quote && *p != '\\')
                p++;
            build_bytes(&b, from, (size_t)(p - from), MARK_TEMPLATE);
            if (p < x->end && *p == '\\' && p + 1 == x->end)
                break;
        }
    }
    if (p >= x->end || *p != quote)
        room_fail(x->room, "unexpected char '%c': a string without an end", quote);
    add_token(x, T_TEXT, x->at, p + 1, build_value(&b));
    advance(x, p + 1);
}

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* Digits of a base with _ between them; returns what is behind them. */
static const char *digits_end(const Lexer *x, const char *p, int base)
{
    const char *q = p;
    for (; q < x->end; q++) {
        char c = *q, lower = (char)(c | 32);
        int v = is_digit(c) ? c - '0' : lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : 99;
        bool joins = c == '_' && q + 1 < x->end && q[1] != '_';
        if (!(v < base || (joins && (q > p || base != 10))))
            break;
    }
    while (q > p && q[-1] == '_')
        q--;
    return q;
}

/* The fraction and exponent of a float behind its whole part, or `p` where there is neither. */
static const char *float_end(const Lexer *x, const char *p)
{
    const char *q = p, *fraction;
    if (q + 1 < x->end && *q == '.' && is_digit(q[1]))
        q = digits_end(x, q + 1, 10);
    fraction = q;
    if (q < x->end && (*q | 32) == 'e') {
        q++;
        q += q < x->end && (*q == '+' || *q == '-');
        if (q < x->end && is_digit(*q))
            return digits_end(x, q, 10);
    }
    return fraction;
}

static void lex_number(Lexer *x)
{
    const char *p = x->at, *end = digits_end(x, p, 10), *after = float_end(x, end);
    bool dotted = x->n && x->tokens[x->n - 1].kind == T_OPERATOR
               && x->tokens[x->n - 1].text.ptr[0] == '.' && x->tokens[x->n - 1].text.ptr + 1 == p;
    char text[400], *stop;
    size_t n = 0;
    int base = 10;
    bool whole = after == end || dotted;
    if (whole && *p == '0' && p + 2 < x->end) {
        base = (p[1] | 32) == 'x' ? 16 : (p[1] | 32) == 'o' ? 8 : (p[1] | 32) == 'b' ? 2 : 10;
        const char *q = base == 10 ? p : digits_end(x, p + 2, base);
        base = q > p + 2 || base == 10 ? base : 10;
        end = base == 10 ? end : q;
    }
    if (whole && base == 10 && *p == '0') // 0, 00, but not 01
        for (end = p + 1; end < x->end && (*end == '0' || (*end == '_' && end[1] == '0')); end++)
            ;
    after = whole ? end : after;
    for (const char *q = base == 10 ? p : p + 2; q < after; q++)
        if (*q != '_' && n + 1 < sizeof text)
            text[n++] = *q;
    text[n] = 0;
    errno = 0;
    Value v = whole ? value_int(strtoll(text, &stop, base)) : value_float(strtod(text, &stop));
    if (whole && errno)
        room_fail(x->room, "the number %.*s is too large", (int)(after - p < 60 ? after - p : 60),
                  p);
    add_token(x, T_NUMBER, p, after, v);
    advance(x, after);
}

static bool is_name_char(const char *p, const char *end, size_t *len)
{
    uint32_t cp;
    *len = utf8_decode(p, end, &cp);
    if (cp < 128)
        return is_digit((char)cp) || cp == '_' || ((cp | 32) >= 'a' && (cp | 32) <= 'z');
    return unicode_letter(cp) || unicode_decimal(cp);
}

static void lex_operator(Lexer *x)
{
    static const char *const operators[] = {"**", "//", "==", "!=", ">=", "<=", "+", "-", "/",
                                            "*",  "%",  "~",  "[",  "]",  "(",  ")", "{", "}",
                                            ">",  "<",  "=",  ".",  ":",  "|",  ",", ";"};
    static const char opening[] = "[({", closers[] = "])}";
    size_t i = 0, count = sizeof operators / sizeof *operators;
    while (i < count && !at_text(x, x->at, operators[i]))
        i++;
    char shown[40];
    if (i == count) {
        size_t left = (size_t)(x->end - x->at);
        room_fail(x->room, "unexpected char '%s'",
                  str_escape((Str){x->at, left < 8 ? left : 8}, shown, sizeof shown));
    }
    char c = *operators[i];
    const char *open = strchr(opening, c);
    if (open) {
        if (x->n_open == MAX_HEIGHT)
            room_fail(x->room, "more than %d brackets within each other", MAX_HEIGHT);
        x->open[x->n_open++] = closers[open - opening];
    } else if (strchr(closers, c) && (!x->n_open || x->open[--x->n_open] != c)) {
        room_fail(x->room, "unexpected '%c'", c);
    }
    add_token(x, T_OPERATOR, x->at, x->at + strlen(operators[i]), NONE);
    advance(x, x->at + strlen(operators[i]));
}

/* What stands within a tag, up to its end. */
static void lex_tag(Lexer *x, const char *close, TokenKind end_kind)
{
    for (;;) {
        const char *after = x->n_open ? NULL : closing(x, x->at, close);
        size_t n;
        if (after) {
            add_token(x, end_kind, x->at, after, NONE);
            advance(x, after);
            set_line_starts(x);
            return;
        }
        if (x->at >= x->end)
            room_fail(x->room, "a tag without its end \"%s\"", close);
        const char *p = skip_space(x, x->at);
        if (p > x->at) {
            advance(x, p);
        } else if (is_digit(*p)) {
            lex_number(x);
        } else if (is_name_char(p, x->end, &n)) {
            while (p < x->end && is_name_char(p, x->end, &n))
                p += n;
            add_token(x, T_NAME, x->at, p, NONE);
            advance(x, p);
        } else if (*p == '\'' || *p == '"') {
            lex_text(x);
        } else {
            lex_operator(x);
        }
    }
}

static void lex(Lexer *x)
{
    x->line_starts = true;
    while (x->at < x->end) {
        const char *p = x->at, *raw;
        while (p < x->end && !(p + 1 < x->end && *p == '{' && strchr("{%#", p[1]) && p[1]))
            p++;
        if (p == x->end) {
            add_data(x, p, '+', true);
            break;
        }
        char kind = p[1], sign = p + 2 < x->end ? p[2] : 0;
        raw = kind == '%' ? word_tag(x, p + 2, "raw", false) : NULL;
        add_data(x, p, sign, kind == '{');
        bool signed_tag = sign == '-' || sign == '+';
        if (raw) {
            advance(x, raw);
            set_line_starts(x);
            lex_raw(x);
            continue;
        }
        if (kind != '#')
            add_token(x, kind == '{' ? T_PRINT_BEGIN : T_BLOCK_BEGIN, p, p + 2, NONE);
        advance(x, p + 2 + signed_tag);
        if (kind == '#')
            lex_comment(x);
        else
            lex_tag(x, kind == '{' ? "}}" : "%}", kind == '{' ? T_PRINT_END : T_BLOCK_END);
    }
    add_token(x, T_END, x->end, x->end, NONE);
}

/* The source with newlines as \n, and without one at its end. */
static Str normal_lines(Room *r, Str source)
{
    char *p = room_alloc(r, source.len, 1);
    size_t n = 0;
    for (size_t i = 0; i < source.len; i++) {
        if (source.ptr[i] == '\r' && i + 1 < source.len && source.ptr[i + 1] == '\n')
            continue;
        p[n++] = source.ptr[i] == '\r' ? '\n' : source.ptr[i];
    }
    n -= n && p[n - 1] == '\n';
    return (Str){p, n};
}

/* ---- parser ---------------------------------------------------------------------------------- */

typedef struct {
    Tree *tree;
    Room *room;
    const Token *token;
    size_t names_cap;
    int depth; // calls of parsing functions within each other
    bool soft; // within {% if %} or a choice, where Jinja looks names up only when it gets there
    int loops; // {% for %} around
    unsigned uses; // USES_ of the names that were met
} Parser;

static _Noreturn void unexpected(Parser *p, const char *want)
{
    char seen[80];
    Str s = p->token->text;
    p->room->line = p->token->line;
    if (p->token->kind == T_END)
        room_fail(p->room, "Unexpected end of template, want %s", want);
    s.len = s.len < 60 ? s.len : 60;
    room_fail(p->room, "got \"%s\", want %s", str_escape(s, seen, sizeof seen), want);
}

static bool is_name(const Token *t, const char *name)
{
    return t->kind == T_NAME && str_eq(t->text, name);
}

static bool is_operator(const Token *t, const char *op)
{
    return t->kind == T_OPERATOR && str_eq(t->text, op);
}

static bool skip_name(Parser *p, const char *name)
{
    bool found = is_name(p->token, name);
    p->token += found;
    return found;
}

static bool skip_operator(Parser *p, const char *op)
{
    bool found = is_operator(p->token, op);
    p->token += found;
    return found;
}

static void expect_operator(Parser *p, const char *op)
{
    char want[8];
    snprintf(want, sizeof want, "\"%s\"", op);
    if (!skip_operator(p, op))
        unexpected(p, want);
}

static void expect_block_end(Parser *p)
{
    if (p->token->kind != T_BLOCK_END)
        unexpected(p, "the end of the tag");
    p->token++;
}

/* One pointer for each name, so that names are compared as pointers. */
static const char *intern(Parser *p, Str s)
{
    Tree *t = p->tree;
    for (size_t i = 0; i < t->n_names; i++)
        if (!str_cmp(t->names[i], s))
            return t->names[i].ptr;
    char *copy = room_alloc(p->room, s.len + 1, 1);
    memcpy(copy, s.ptr, s.len);
    copy[s.len] = 0;
    t->names = room_grow(p->room, t->names, t->n_names + 1, &p->names_cap, sizeof *t->names);
    t->names[t->n_names++] = (Str){copy, s.len};
    room_spend(p->room, t->n_names / 16);
    return copy;
}

static const char *expect_name(Parser *p)
{
    if (p->token->kind != T_NAME)
        unexpected(p, "a name");
    return intern(p, p->token++->text);
}

static void raise_height(Parser *p, Node *n, const Node *below)
{
    for (; below; below = below->next)
        if (n->height <= below->height)
            n->height = below->height + 1;
    p->room->line = n->line;
    if (n->height > MAX_HEIGHT)
        room_fail(p->room, "more than %d levels of expressions and tags", MAX_HEIGHT);
}

static Node *node(Parser *p, NodeKind kind, Node *a, Node *b, Node *c)
{
    Node *n = room_alloc(p->room, 1, sizeof *n);
    *n = (Node){.kind = kind, .line = p->token->line, .a = a, .b = b, .c = c};
    raise_height(p, n, a);
    raise_height(p, n, b);
    raise_height(p, n, c);
    return n;
}

/* Append to a list of nodes. */
typedef struct {
    Node *first, **tail;
} NodeList;

static void append(NodeList *l, Node *n)
{
    if (!l->tail)
        l->tail = &l->first;
    *l->tail = n;
    while (*l->tail)
        l->tail = &(*l->tail)->next;
}

static Node *with_list(Parser *p, NodeKind kind, Node *a, Node *list)
{
    Node *n = node(p, kind, a, NULL, NULL);
    n->list = list;
    raise_height(p, n, list);
    return n;
}

static Node *constant(Parser *p, Value v)
{
    Node *n = node(p, N_CONST, NULL, NULL, NULL);
    n->value = v;
    return n;
}

static void enter(Parser *p)
{
    p->room->line = p->token->line;
    if (++p->depth > MAX_HEIGHT)
        room_fail(p->room, "more than %d levels of expressions and tags", MAX_HEIGHT);
}

static Node *parse_expression(Parser *p);
static Node *parse_or(Parser *p);
static Node *parse_unary(Parser *p, bool filters);
static Node *parse_postfix(Parser *p, Node *n);
static Node *parse_tuple(Parser *p, bool choices, bool parentheses, const char *end);

/* ---- expressions ----------------------------------------------------------------------------- */

static Node *parse_strings(Parser *p)
{
    Build b = build_begin(p->room);
    while (p->token->kind == T_TEXT)
        build_add(&b, *p->token++->value.text);
    Text t = build_text(&b);
    t.rope = NULL; // nothing may grow in the tree
    return constant(p, value_text(p->room, t));
}

static Node *parse_list(Parser *p)
{
    NodeList items = {0};
    expect_operator(p, "[");
    while (!is_operator(p->token, "]")) {
        if (items.first)
            expect_operator(p, ",");
        if (!is_operator(p->token, "]"))
            append(&items, parse_expression(p));
    }
    p->token++;
    return with_list(p, N_LIST, NULL, items.first);
}

static Node *parse_dict(Parser *p)
{
    NodeList items = {0};
    expect_operator(p, "{");
    while (!is_operator(p->token, "}")) {
        if (items.first)
            expect_operator(p, ",");
        if (is_operator(p->token, "}"))
            break;
        append(&items, parse_expression(p));
        expect_operator(p, ":");
        append(&items, parse_expression(p));
    }
    p->token++;
    return with_list(p, N_DICT, NULL, items.first);
}

static Node *parse_name(Parser *p)
{
    static const struct {
        const char *names;
        Value value;
    } constants[] = {{"true True", {.type = V_BOOL, .truth = true}},
                     {"false False", {.type = V_BOOL, .truth = false}},
                     {"none None", {.type = V_NONE}}};
    Str s = p->token->text;
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (str_listed(s, constants[i].names)) {
            p->token++;
            return constant(p, constants[i].value);
        }
    Node *n = node(p, N_NAME, NULL, NULL, NULL);
    n->name = expect_name(p);
    p->uses |= n->name == p->tree->caller  ? USES_CALLER
             : n->name == p->tree->varargs ? USES_VARARGS
             : n->name == p->tree->kwargs  ? USES_KWARGS
                                           : 0;
    return n;
}

/* A name as the text that a value is asked for. */
static Value name_value(Parser *p)
{
    const char *name = expect_name(p);
    return value_text(p->room, text_of(p->room, (Str){name, strlen(name)}, MARK_TEMPLATE));
}

static Node *parse_primary(Parser *p)
{
    const Token *t = p->token;
    if (t->kind == T_NAME)
        return parse_name(p);
    if (t->kind == T_TEXT)
        return parse_strings(p);
    if (t->kind == T_NUMBER) {
        p->token++;
        return constant(p, t->value);
    }
    if (is_operator(t, "[") || is_operator(t, "{"))
        return is_operator(t, "[") ? parse_list(p) : parse_dict(p);
    if (!skip_operator(p, "("))
        unexpected(p, "an expression");
    Node *n = parse_tuple(p, true, true, NULL);
    expect_operator(p, ")");
    return n;
}

/* (a, b=c, *d, **e) into the call or filter n. */
static void parse_arguments(Parser *p, Node *n)
{
    NodeList args = {0};
    bool named = false;
    expect_operator(p, "(");
    while (!is_operator(p->token, ")")) {
        if (args.first || n->star || n->stars)
            expect_operator(p, ",");
        if (is_operator(p->token, ")"))
            break;
        bool name = p->token->kind == T_NAME && is_operator(p->token + 1, "=");
        Node **star = is_operator(p->token, "*")  ? &n->star
                    : is_operator(p->token, "**") ? &n->stars
                                                  : NULL;
        if (n->stars || (star && *star) || (n->star && !star && !name) || (named && !star && !name))
            unexpected(p, "arguments in their order");
        if (star) {
            p->token++;
            *star = parse_expression(p);
            raise_height(p, n, *star);
            continue;
        }
        const char *key = name ? expect_name(p) : NULL;
        p->token += name;
        Node *value = parse_expression(p);
        Node *arg = node(p, N_OPERAND, value, NULL, NULL);
        arg->name = key;
        named |= name;
        append(&args, arg);
    }
    p->token++;
    n->list = args.first;
    raise_height(p, n, n->list);
}

static Node *parse_call(Parser *p, Node *what)
{
    Node *n = node(p, N_CALL, what, NULL, NULL);
    parse_arguments(p, n);
    return n;
}

/* What stands in brackets: an expression or start:stop:step. */
static Node *parse_index(Parser *p)
{
    Node *parts[3] = {0};
    int n = 0;
    for (; n < 3; n++) {
        if (!is_operator(p->token, ":") && !is_operator(p->token, "]")
            && !is_operator(p->token, ","))
            parts[n] = parse_expression(p);
        if (!skip_operator(p, ":"))
            break;
    }
    if (n == 0 && parts[0])
        return parts[0];
    if (n == 0 || n == 3)
        unexpected(p, "an index");
    return node(p, N_SLICE, parts[0], parts[1], parts[2]);
}

static Node *parse_subscript(Parser *p, Node *of)
{
    if (skip_operator(p, ".")) {
        if (p->token->kind == T_NUMBER && p->token->value.type == V_INT)
            return node(p, N_ITEM, of, constant(p, p->token++->value), NULL);
        Node *n = node(p, N_ATTRIBUTE, of, NULL, NULL);
        n->value = name_value(p);
        return n;
    }
    expect_operator(p, "[");
    Node *index = parse_index(p);
    if (is_operator(p->token, ",")) {
        NodeList items = {0};
        append(&items, index);
        while (skip_operator(p, ","))
            append(&items, parse_index(p));
        index = with_list(p, N_TUPLE, NULL, items.first);
    }
    expect_operator(p, "]");
    return node(p, N_ITEM, of, index, NULL);
}

static Node *parse_postfix(Parser *p, Node *n)
{
    for (;;) {
        if (is_operator(p->token, ".") || is_operator(p->token, "["))
            n = parse_subscript(p, n);
        else if (is_operator(p->token, "("))
            n = parse_call(p, n);
        else
            return n;
    }
}

/* A name that may have dots in it. */
static const char *parse_dotted(Parser *p)
{
    const Token *first = p->token;
    expect_name(p);
    if (!is_operator(p->token, "."))
        return intern(p, first->text);
    Build b = build_begin(p->room);
    build_bytes(&b, first->text.ptr, first->text.len, MARK_TEMPLATE);
    while (skip_operator(p, ".")) {
        build_words(&b, ".");
        build_words(&b, expect_name(p));
    }
    return intern(p, text_str(build_text(&b)));
}

/* A filter or test that Jinja has not is an error at once, but in a branch. */
static void check_known(Parser *p, const Node *n, Known known, const char *kind)
{
    p->room->line = n->line;
    if (known == KNOWN_NOT && !p->soft)
        room_fail(p->room, "No %s named '%.60s'.", kind, n->name);
}

static Node *parse_filter(Parser *p, Node *of, bool first)
{
    while (first || skip_operator(p, "|")) {
        Node *n = node(p, N_FILTER, of, NULL, NULL);
        first = false;
        n->name = parse_dotted(p);
        if (is_operator(p->token, "("))
            parse_arguments(p, n);
        check_known(p, n, filter_known(n->name), "filter");
        of = n;
    }
    return of;
}

static Node *parse_test(Parser *p, Node *of)
{
    p->token++; // "is"
    bool negated = skip_name(p, "not");
    Node *n = node(p, N_TEST, of, NULL, NULL);
    n->name = parse_dotted(p);
    const Token *t = p->token;
    bool begins = t->kind == T_NAME || t->kind == T_TEXT || t->kind == T_NUMBER
               || is_operator(t, "[") || is_operator(t, "{");
    bool keyword = is_name(t, "else") || is_name(t, "or") || is_name(t, "and");
    if (is_operator(t, "(")) {
        parse_arguments(p, n);
    } else if (begins && !keyword) {
        if (is_name(t, "is"))
            room_fail(p->room, "You cannot chain multiple tests with is");
        Node *arg = node(p, N_OPERAND, parse_postfix(p, parse_primary(p)), NULL, NULL);
        n->list = arg;
        raise_height(p, n, arg);
    }
    check_known(p, n, test_known(n->name), "test");
    return negated ? node(p, N_NOT, n, NULL, NULL) : n;
}

static Node *parse_unary(Parser *p, bool filters)
{
    Node *n;
    enter(p);
    if (is_operator(p->token, "-") || is_operator(p->token, "+")) {
        NodeKind kind = is_operator(p->token++, "-") ? N_NEGATIVE : N_POSITIVE;
        n = node(p, kind, parse_unary(p, false), NULL, NULL);
    } else {
        n = parse_primary(p);
    }
    n = parse_postfix(p, n);
    while (filters) {
        if (is_operator(p->token, "|"))
            n = parse_filter(p, n, false);
        else if (is_name(p->token, "is"))
            n = parse_test(p, n);
        else if (is_operator(p->token, "("))
            n = parse_call(p, n);
        else
            break;
    }
    p->depth--;
    return n;
}

/* Operators that join to the left, a level each, from the one that binds most. */
static const struct {
    const char *op;
    NodeKind kind;
    int level;
} binary[] = {{"**", N_POWER, 0}, {"*", N_MULTIPLY, 1}, {"/", N_DIVIDE, 1},  {"//", N_FLOOR, 1},
              {"%", N_MODULO, 1}, {"+", N_ADD, 3},      {"-", N_SUBTRACT, 3}};

static Node *parse_binary(Parser *p, int level);

static Node *parse_concat(Parser *p)
{
    NodeList items = {0};
    append(&items, parse_binary(p, 1));
    if (!is_operator(p->token, "~"))
        return items.first;
    while (skip_operator(p, "~"))
        append(&items, parse_binary(p, 1));
    return with_list(p, N_CONCAT, NULL, items.first);
}

static Node *parse_operand(Parser *p, int level)
{
    return level == 0 ? parse_unary(p, true)
         : level == 3 ? parse_concat(p)
                      : parse_binary(p, level - 1);
}

static Node *parse_binary(Parser *p, int level)
{
    Node *left = parse_operand(p, level);
    for (size_t i = 0; i < sizeof binary / sizeof *binary; i++)
        if (binary[i].level == level && skip_operator(p, binary[i].op)) {
            left = node(p, binary[i].kind, left, parse_operand(p, level), NULL);
            i = SIZE_MAX; // from the first one again
        }
    return left;
}

static Node *parse_compare(Parser *p)
{
    Node *first = parse_binary(p, 3);
    NodeList items = {0};
    for (;;) {
        const char *op = NULL;
        const Token *t = p->token;
        if (t->kind == T_OPERATOR && str_listed(t->text, "== != < <= > >="))
            op = intern(p, p->token++->text);
        else if (skip_name(p, "in"))
            op = "in";
        else if (is_name(t, "not") && is_name(t + 1, "in")) {
            p->token += 2;
            op = "not in";
        }
        if (!op)
            break;
        Node *n = node(p, N_OPERAND, parse_binary(p, 3), NULL, NULL);
        n->name = op;
        append(&items, n);
    }
    return items.first ? with_list(p, N_COMPARE, first, items.first) : first;
}

static Node *parse_not(Parser *p)
{
    if (!skip_name(p, "not"))
        return parse_compare(p);
    enter(p);
    Node *n = node(p, N_NOT, parse_not(p), NULL, NULL);
    p->depth--;
    return n;
}

static Node *parse_and(Parser *p)
{
    Node *left = parse_not(p);
    while (skip_name(p, "and"))
        left = node(p, N_AND, left, parse_not(p), NULL);
    return left;
}

static Node *parse_or(Parser *p)
{
    Node *left = parse_and(p);
    while (skip_name(p, "or"))
        left = node(p, N_OR, left, parse_and(p), NULL);
    return left;
}

/* Whether the expression that begins here turns out to be a choice is known only behind its first
 * part, which is then within a branch too: its tokens are looked through for an "if". */
static bool has_choice(const Parser *p)
{
    int depth = 0;
    for (const Token *t = p->token; t->kind >= T_NAME; t++) {
        if (t->kind == T_OPERATOR && strchr("([{", *t->text.ptr))
            depth++;
        if (t->kind == T_OPERATOR && strchr(")]}", *t->text.ptr) && --depth < 0)
            break;
        if (!depth && (is_operator(t, ",") || is_operator(t, ":")))
            break;
        if (!depth && is_name(t, "if"))
            return true;
    }
    return false;
}

static Node *parse_expression(Parser *p)
{
    bool soft = p->soft;
    enter(p);
    p->soft |= has_choice(p);
    Node *n = parse_or(p);
    while (skip_name(p, "if")) {
        Node *test = parse_or(p), *other = NULL;
        if (skip_name(p, "else"))
            other = parse_expression(p);
        n = node(p, N_CHOICE, n, test, other);
    }
    p->soft = soft;
    p->depth--;
    return n;
}

/* Expressions with commas between them are a tuple; one alone is itself. It may end at the name
 * `end`. `choices`: "a if b" may be one of them. */
static Node *parse_tuple(Parser *p, bool choices, bool parentheses, const char *end)
{
    NodeList items = {0};
    bool tuple = false;
    for (;;) {
        const Token *t = p->token;
        if (t->kind == T_PRINT_END || t->kind == T_BLOCK_END || is_operator(t, ")")
            || (end && is_name(t, end)))
            break;
        append(&items, choices ? parse_expression(p) : parse_or(p));
        if (!skip_operator(p, ","))
            break;
        tuple = true;
    }
    if (!tuple && items.first)
        return items.first;
    if (!tuple && !parentheses)
        unexpected(p, "an expression");
    return with_list(p, N_TUPLE, NULL, items.first);
}

/* ---- statements ------------------------------------------------------------------------------ */

static Node *parse_body(Parser *p, const char *ends);

/* A name, names with commas or, if `members`, also namespace.name. Ends at the name `end`. */
static Node *parse_target(Parser *p, bool members, const char *end)
{
    NodeList items = {0};
    bool tuple = false;
    for (;;) {
        const Token *t = p->token;
        Node *n;
        if (t->kind == T_BLOCK_END || is_operator(t, ")") || (end && is_name(t, end)))
            break;
        if (skip_operator(p, "(")) {
            n = parse_target(p, members, NULL);
            expect_operator(p, ")");
        } else {
            if (t->kind != T_NAME || str_listed(t->text, "true false none True False None"))
                unexpected(p, "a name to assign to");
            n = node(p, N_NAME, NULL, NULL, NULL);
            n->name = expect_name(p);
            if (n->name == p->tree->loop && (end || p->loops))
                room_fail(p->room, "Can't assign to special loop variable in for-loop target");
            if (members && skip_operator(p, ".")) {
                n->kind = N_MEMBER;
                n->value = name_value(p);
            }
        }
        append(&items, n);
        if (!skip_operator(p, ","))
            break;
        tuple = true;
    }
    if (!items.first)
        unexpected(p, "a name to assign to");
    return tuple ? with_list(p, N_TUPLE, NULL, items.first) : items.first;
}

static void set_body(Parser *p, Node *n, Node *body)
{
    n->body = body;
    raise_height(p, n, body);
}

/* The body of a tag up to {% endX %}, which is passed over. */
static void parse_inner(Parser *p, Node *n, const char *end)
{
    bool soft = p->soft;
    p->soft = false;
    set_body(p, n, parse_body(p, end));
    p->token++;
    p->soft = soft;
}

static Node *parse_for(Parser *p)
{
    Node *n = node(p, N_FOR, parse_target(p, false, "in"), NULL, NULL);
    if (!skip_name(p, "in"))
        unexpected(p, "\"in\"");
    n->b = parse_tuple(p, false, false, "recursive");
    bool soft = p->soft;
    p->soft = false;
    if (skip_name(p, "if"))
        n->c = parse_expression(p);
    n->recursive = skip_name(p, "recursive");
    raise_height(p, n, n->b);
    raise_height(p, n, n->c);
    p->loops++;
    set_body(p, n, parse_body(p, "endfor else"));
    p->loops--;
    if (skip_name(p, "else")) {
        n->other = parse_body(p, "endfor");
        raise_height(p, n, n->other);
    }
    p->token++;
    p->soft = soft;
    return n;
}

static Node *parse_if(Parser *p)
{
    bool soft = p->soft;
    enter(p);
    p->soft = true;
    Node *n = node(p, N_IF, parse_tuple(p, false, false, NULL), NULL, NULL);
    set_body(p, n, parse_body(p, "elif else endif"));
    if (skip_name(p, "elif")) {
        n->other = parse_if(p);
    } else if (skip_name(p, "else")) {
        n->other = parse_body(p, "endif");
        p->token++;
    } else {
        p->token++;
    }
    raise_height(p, n, n->other);
    p->soft = soft;
    p->depth--;
    return n;
}

static Node *parse_set(Parser *p)
{
    Node *target = parse_target(p, true, NULL);
    if (skip_operator(p, "="))
        return node(p, N_SET, target, parse_tuple(p, true, false, NULL), NULL);
    Node *n = node(p, N_SET_BLOCK, target, NULL, parse_filter(p, NULL, false));
    parse_inner(p, n, "endset");
    return n;
}

/* (a, b=1) of a macro: names, with their defaults. */
static void parse_parameters(Parser *p, Node *n)
{
    NodeList items = {0};
    bool defaults = false;
    expect_operator(p, "(");
    while (!is_operator(p->token, ")")) {
        if (items.first)
            expect_operator(p, ",");
        Node *parameter = node(p, N_NAME, NULL, NULL, NULL);
        parameter->name = expect_name(p);
        for (const Node *other = items.first; other; other = other->next)
            if (other->name == parameter->name)
                room_fail(p->room, "duplicate argument '%.60s'", other->name);
        if (skip_operator(p, "=")) {
            defaults = true;
            parameter->a = parse_expression(p);
            raise_height(p, parameter, parameter->a);
        } else if (defaults) {
            room_fail(p->room, "non-default argument follows default argument");
        }
        append(&items, parameter);
    }
    p->token++;
    n->list = items.first;
    raise_height(p, n, n->list);
}

/* The body of what is a function of its own: no loop of the outside can be left from there. */
static void parse_function(Parser *p, Node *n, const char *end)
{
    int loops = p->loops;
    unsigned uses = p->uses;
    p->loops = 0;
    p->uses = 0;
    parse_inner(p, n, end);
    n->uses = p->uses;
    p->uses |= uses;
    p->loops = loops;
}

static Node *parse_macro(Parser *p)
{
    Node *n = node(p, N_MACRO, NULL, NULL, NULL);
    n->name = expect_name(p);
    parse_parameters(p, n);
    parse_function(p, n, "endmacro");
    return n;
}

static Node *parse_call_block(Parser *p)
{
    Node *n = node(p, N_CALL_BLOCK, NULL, NULL, NULL);
    if (is_operator(p->token, "("))
        parse_parameters(p, n);
    n->a = parse_expression(p);
    if (n->a->kind != N_CALL)
        room_fail(p->room, "expected call");
    raise_height(p, n, n->a);
    parse_function(p, n, "endcall");
    return n;
}

static Node *parse_filter_block(Parser *p)
{
    Node *n = node(p, N_FILTER_BLOCK, parse_filter(p, NULL, true), NULL, NULL);
    parse_inner(p, n, "endfilter");
    return n;
}

static Node *parse_with(Parser *p)
{
    NodeList items = {0};
    while (p->token->kind != T_BLOCK_END) {
        if (items.first)
            expect_operator(p, ",");
        append(&items, parse_target(p, false, NULL));
        expect_operator(p, "=");
        append(&items, parse_expression(p));
    }
    Node *n = with_list(p, N_WITH, NULL, items.first);
    parse_inner(p, n, "endwith");
    return n;
}

static Node *parse_generation(Parser *p)
{
    Node *n = node(p, N_SCOPE, NULL, NULL, NULL);
    parse_function(p, n, "endgeneration");
    return n;
}

static Node *parse_print(Parser *p)
{
    NodeList items = {0};
    while (p->token->kind != T_BLOCK_END) {
        if (items.first)
            expect_operator(p, ",");
        append(&items, node(p, N_OUTPUT, parse_expression(p), NULL, NULL));
    }
    return items.first;
}

static Node *parse_jump(Parser *p, NodeKind kind)
{
    if (!p->loops)
        room_fail(p->room, "'%s' outside loop", kind == N_BREAK ? "break" : "continue");
    return node(p, kind, NULL, NULL, NULL);
}

static Node *parse_break(Parser *p)
{
    return parse_jump(p, N_BREAK);
}

static Node *parse_continue(Parser *p)
{
    return parse_jump(p, N_CONTINUE);
}

static const struct {
    const char *name;
    Node *(*parse)(Parser *p);
} statements[] = {{"for", parse_for},          {"if", parse_if},
                  {"set", parse_set},          {"macro", parse_macro},
                  {"call", parse_call_block},  {"filter", parse_filter_block},
                  {"with", parse_with},        {"generation", parse_generation},
                  {"print", parse_print},      {"break", parse_break},
                  {"continue", parse_continue}};

static Node *parse_statement(Parser *p)
{
    char seen[80];
    Str name = p->token->text;
    if (p->token->kind != T_NAME)
        unexpected(p, "the name of a tag");
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++)
        if (skip_name(p, statements[i].name))
            return statements[i].parse(p);
    name.len = name.len < 60 ? name.len : 60;
    room_fail(p->room, "the tag {%% %s %%} is not supported", str_escape(name, seen, sizeof seen));
}

/* Statements up to a tag that is one of `ends`, at whose name the parser stands then, or up to the
 * end of the template where `ends` is NULL. A tag's end, if one is due, comes first. */
static Node *parse_body(Parser *p, const char *ends)
{
    NodeList body = {0};
    enter(p);
    if (ends) {
        skip_operator(p, ":");
        expect_block_end(p);
    }
    for (;;) {
        const Token *t = p->token++;
        Node *n;
        p->room->line = t->line;
        if (t->kind == T_DATA) {
            n = constant(p, t->value);
            n->kind = N_DATA;
        } else if (t->kind == T_PRINT_BEGIN) {
            n = node(p, N_OUTPUT, NULL, NULL, NULL);
            n->a = parse_tuple(p, true, false, NULL);
            raise_height(p, n, n->a);
            if (p->token->kind != T_PRINT_END)
                unexpected(p, "\"}}\"");
            p->token++;
        } else if (t->kind == T_BLOCK_BEGIN) {
            if (ends && p->token->kind == T_NAME && str_listed(p->token->text, ends))
                break;
            n = parse_statement(p);
            expect_block_end(p);
        } else {
            p->token--;
            if (t->kind != T_END || ends)
                unexpected(p, ends ? ends : "text or a tag");
            break;
        }
        if (n)
            append(&body, n);
    }
    p->depth--;
    return body.first;
}

int tree_parse(Tree *t, Str source, Err *e)
{
    *t = (Tree){.room = {.err = e, .max_bytes = MAX_TREE_BYTES, .max_steps = 1 << 28, .line = 1}};
    if (setjmp(t->room.escape))
        return -1;
    Str text = normal_lines(&t->room, source);
    Lexer x = {.room = &t->room, .at = text.ptr, .end = text.ptr + text.len, .line = 1};
    lex(&x);
    Parser p = {.tree = t, .room = &t->room, .token = x.tokens};
    t->loop = intern(&p, (Str){"loop", 4});
    t->caller = intern(&p, (Str){"caller", 6});
    t->varargs = intern(&p, (Str){"varargs", 7});
    t->kwargs = intern(&p, (Str){"kwargs", 6});
    t->body = parse_body(&p, NULL);
    return 0;
}

void tree_free(Tree *t)
{
    room_free(&t->room);
    *t = (Tree){0};
}
