/* pattern.c - a small regular expression matcher that cuts texts into pieces.
 *
 * It backtracks, since the patterns are written for engines that do, but over runs of one class
 * only through a frame that remembers where the run ends and from where on it is known to fail (see
 * Loop); so the patterns of real models take time linear in the text, and a text of spaces costs no
 * more than one of words. Whether a state (instruction, position) can lead to a match does not
 * depend on how it was reached, which is what makes remembering right. What is left is bounded by a
 * count of steps, which everything done for a text is charged to. The text is read where it is, as
 * UTF-8: no copy and no list of pieces is made.
 */
#include "text/pattern.h"
#include "base/utf8.h"
#include "text/unicode_tables.h"

#include <stdlib.h>
#include <string.h>

/* ---- characters ------------------------------------------------------------------------------ */

/* General categories, in the order of unicode_category. Cw: control characters that are white
 * space. Cs, which no valid text holds, stands for a byte that is no UTF-8. */
static const char categories[] =
    "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cw Cf Cs Co Cn ";
enum { CAT_BITS = 31, CAT_CS = 28, CAT_CN = 30 };
enum { CAT_WORD = 32, CAT_ALL = 63 }; // flag beside the number: \w matches it

/* Category number, with CAT_WORD. */
static uint8_t category(uint32_t cp)
{
    if (cp & UTF8_INVALID)
        return CAT_CS;
    if (cp > 0x10ffff)
        return CAT_CN;
    return unicode_category_data[unicode_category_index[cp / UNICODE_BLOCK] * UNICODE_BLOCK
                                 + cp % UNICODE_BLOCK]
         & CAT_ALL;
}

/* Superscripts and fractions of Latin-1. */
static bool is_latin_number(uint32_t cp)
{
    return cp == 0xb2 || cp == 0xb3 || cp == 0xb9 || (cp >= 0xbc && cp <= 0xbe);
}

/* Mask of the categories whose name starts with `name` ("L" or "Lu"); 0 if there is none. "C" has
 * Cw in it, "Cc" too. */
static uint32_t category_mask(const char *name, size_t len)
{
    uint32_t mask = 0;
    for (int i = 0; len > 0 && len < 3 && i < CAT_BITS; i++)
        if (memcmp(categories + 3 * i, name, len) == 0)
            mask |= 1u << i;
    return len == 2 && memcmp(name, "Cc", 2) == 0 ? mask | category_mask("Cw", 2) : mask;
}

/* ---- compiling ------------------------------------------------------------------------------- */

enum {
    INF = 0x7fffffff,
    MAX_REPEAT = 1000,
    MAX_CODE = 20000,
    MAX_NESTING = 32,
    MAX_PATTERN = 4000
};

/* A set of characters. */
typedef struct {
    uint32_t ascii[4]; // membership below 128, negation applied; made by class_store()
    uint32_t cats;     // mask of categories
    bool word, not_word, negate;
    int only1;       // 1 + a class, without one of its own, that members must be in, too; 0: none
    int cost;        // steps of a test, by the number of ranges
    size_t first, n; // ranges of Pretok.ranges, ascending and apart
} Class;

typedef struct {
    uint32_t lo, hi;
} Range;

/* Syntax tree. a and b are nodes. */
typedef enum {
    NODE_EMPTY,
    NODE_CLASS,
    NODE_CAT,
    NODE_ALT,
    NODE_REPEAT,
    NODE_LOOK,
    NODE_ATOMIC,
    NODE_ASSERT
} NodeKind;
typedef enum { GREEDY, LAZY, POSSESSIVE } Mode;

typedef struct {
    NodeKind kind;
    int a, b; // CLASS: a is the class; LOOK: b is whether it is negated; ASSERT: a is the letter
    int min, max; // REPEAT; max may be INF
    Mode mode;    // REPEAT
} Node;

typedef enum { OP_CLASS, OP_LOOP, OP_SPLIT, OP_JUMP, OP_LOOK, OP_ATOMIC, OP_ASSERT, OP_ACCEPT } Op;

typedef struct {
    Op op;
    bool flag;    // LOOP: possessive; LOOK: negated; SPLIT: lazy
    int a, b;     // CLASS, LOOP: a is the class. LOOP without a limit: b is its Loop. SPLIT: a is
                  // tried first, then b. JUMP, LOOK, ATOMIC: a is the target
    int min, max; // LOOP
} Inst;

struct Pretok {
    int *starts; // first instruction of each pattern
    size_t n;
    Inst *code;
    size_t n_code, cap_code;
    Class *classes;
    size_t n_classes, cap_classes;
    Range *ranges;
    size_t n_ranges, cap_ranges;
    size_t n_loops; // OP_LOOPs without a limit
};

typedef struct {
    Pretok *p;
    const char *start, *at, *end; // of the pattern
    Node *nodes;
    size_t n_nodes, cap_nodes;
    int nesting;
    bool fold;           // inside (?i:..)
    const char *problem; // what was wanted, or no_memory
} Parser;

static const char no_memory[] = "memory";

static int fail(Parser *s, const char *want)
{
    if (!s->problem)
        s->problem = want;
    return -1;
}

/* What a file with less than it asks for would have: the code of all its patterns is counted
 * together. */
static const char *too_much(const Parser *s)
{
    return s->p->n ? "fewer patterns, or a shorter pattern" : "a shorter pattern";
}

/* Make room for one more item of *items; returns its index, or -1 after noting the problem. */
static int grow(Parser *s, void *items, size_t *n, size_t *cap, size_t size)
{
    if (*n >= MAX_CODE * 4)
        return fail(s, too_much(s));
    return mem_room(items, *n + 1, cap, size) ? (int)(*n)++ : fail(s, no_memory);
}

static int node(Parser *s, NodeKind kind, int a, int b)
{
    int i = s->problem ? -1 : grow(s, &s->nodes, &s->n_nodes, &s->cap_nodes, sizeof *s->nodes);
    if (i >= 0)
        s->nodes[i] = (Node){.kind = kind, .a = a, .b = b};
    return i;
}

/* Membership of a character of category `cat` in a class, whatever narrows it; without the table
 * for ASCII. */
static inline bool class_alone_has(const Pretok *p, const Class *c, uint32_t cp, uint8_t cat)
{
    if ((c->cats >> (cat & 31) & 1) || (cat & CAT_WORD ? c->word : c->not_word))
        return !c->negate;
    if (c->n == 0)
        return c->negate;
    const Range *r = p->ranges + c->first; // r[0..n) has the last one that starts at cp or below
    for (size_t n = c->n; n > 1;) {
        size_t half = n / 2;
        r += r[half].lo <= cp ? half : 0;
        n -= half;
    }
    return (r->lo <= cp && cp <= r->hi) != c->negate;
}

/* The same, and in the class that narrows it. */
static inline bool class_has(const Pretok *p, const Class *c, uint32_t cp, uint8_t cat)
{
    if (c->only1 && !class_alone_has(p, &p->classes[c->only1 - 1], cp, cat))
        return c->negate;
    return class_alone_has(p, c, cp, cat);
}

static void class_add(Parser *s, Class *c, uint32_t lo, uint32_t hi)
{
    int i = grow(s, &s->p->ranges, &s->p->n_ranges, &s->p->cap_ranges, sizeof(Range));
    if (i < 0)
        return;
    s->p->ranges[i] = (Range){lo, hi};
    c->n++;
}

/* Add a literal range, with its other case inside (?i:..): ASCII letters and the two others that
 * fold to them. */
static void class_add_folded(Parser *s, Class *c, uint32_t lo, uint32_t hi)
{
    class_add(s, c, lo, hi);
    if (!s->fold)
        return;
    if (lo != hi && hi >= 128)
        fail(s, "no ranges beyond ASCII inside (?i:...)");
    for (uint32_t x = lo; x <= hi && !s->problem; x++) {
        uint32_t letter = x | 0x20;
        if (x >= 128 && (category(x) & 31) <= 2)
            fail(s, "no letters beyond ASCII inside (?i:...)");
        if (x >= 128 || letter < 'a' || letter > 'z')
            continue;
        class_add(s, c, x ^ 0x20, x ^ 0x20);
        if (letter == 's')
            class_add(s, c, 0x17f, 0x17f); // long s
        if (letter == 'k')
            class_add(s, c, 0x212a, 0x212a); // Kelvin sign
    }
}

static int compare_ranges(const void *a, const void *b)
{
    const Range *x = a, *y = b;
    return (x->lo > y->lo) - (x->lo < y->lo);
}

/* Sort and join the ranges of the class, which must be the last ones that were added. */
static void class_close(Parser *s, Class *c)
{
    Range *r = c->n ? s->p->ranges + c->first : NULL;
    size_t n = 0;
    if (c->n > 1)
        qsort(r, c->n, sizeof *r, compare_ranges);
    for (size_t i = 0; i < c->n; i++) { // join those that overlap or touch
        if (n && r[i].lo <= r[n - 1].hi + 1)
            r[n - 1].hi = r[i].hi > r[n - 1].hi ? r[i].hi : r[n - 1].hi;
        else
            r[n++] = r[i];
    }
    c->n = n;
    s->p->n_ranges = c->first + n;
}

/* Add the class, whose ranges are closed, to the list: its place there, or -1. */
static int class_store(Parser *s, Class *c)
{
    Pretok *p = s->p;
    if (s->problem)
        return -1;
    c->cost = c->only1 ? p->classes[c->only1 - 1].cost + 1 : 0;
    for (size_t n = c->n; n; n /= 2)
        c->cost++;
    memset(c->ascii, 0, sizeof c->ascii);
    for (uint32_t cp = 0; cp < 128; cp++)
        c->ascii[cp / 32] |= (uint32_t)class_has(p, c, cp, category(cp)) << (cp % 32);
    int i = grow(s, &p->classes, &p->n_classes, &p->cap_classes, sizeof *c);
    if (i >= 0)
        p->classes[i] = *c;
    return i;
}

/* Add the class as a node. The ranges added since c->first must be its own. */
static int class_finish(Parser *s, Class *c)
{
    if (!s->problem && !c->only1) // else its ranges are closed
        class_close(s, c);
    int i = class_store(s, c);
    return i < 0 ? -1 : node(s, NODE_CLASS, i, 0);
}

static bool eat(Parser *s, const char *text)
{
    size_t n = strlen(text);
    if ((size_t)(s->end - s->at) < n || memcmp(s->at, text, n) != 0)
        return false;
    s->at += n;
    return true;
}

static bool at(const Parser *s, char c)
{
    return s->at < s->end && *s->at == c;
}

/* Hexadecimal digits of \uHHHH or \x{H..}; false if there are none or too many. */
static bool parse_hex(Parser *s, int min, int max, uint32_t *cp)
{
    int n = 0;
    for (*cp = 0; s->at < s->end && n < max; n++, s->at++) {
        char c = *s->at;
        int v = c >= '0' && c <= '9'               ? c - '0'
              : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10
                                                   : -1;
        if (v < 0)
            break;
        *cp = *cp * 16 + (uint32_t)v;
    }
    return n >= min && *cp <= 0x10ffff;
}

/* Add the characters of the script Han, or all others. */
static void add_han(Parser *s, Class *c, bool negate)
{
    uint32_t from = 0;
    for (size_t i = 0; i < sizeof unicode_han / sizeof *unicode_han; i++) {
        uint32_t lo = unicode_han[i][0], hi = unicode_han[i][1];
        class_add(s, c, negate ? from : lo, negate ? lo - 1 : hi);
        from = hi + 1;
    }
    if (negate)
        class_add(s, c, from, 0x10ffff);
}

/* What follows a backslash: either adds a named set to `c` and returns 1, or gives one character in
 * *cp and returns 0; -1 on failure. */
static int parse_escape(Parser *s, Class *c, uint32_t *cp)
{
    static const char literals[] = "rntfav0e", values[] = "\r\n\t\f\a\v\0\033";
    const uint32_t all = 0x7fffffffu, space = category_mask("Z", 1) | category_mask("Cw", 2),
                   digit = category_mask("Nd", 2);
    if (s->at == s->end)
        return fail(s, "a character after the backslash");
    char letter = *s->at;
    s->at += utf8_decode(s->at, s->end, cp);
    const char *literal = letter ? strchr(literals, letter) : NULL;
    switch (letter) {
    case 's': c->cats |= space; return 1;
    case 'S': c->cats |= all & ~space; return 1;
    case 'd': c->cats |= digit; return 1;
    case 'D': c->cats |= all & ~digit; return 1;
    case 'w': c->word = true; return 1;
    case 'W': c->not_word = true; return 1;
    case 'u': return parse_hex(s, 4, 4, cp) ? 0 : fail(s, "four hexadecimal digits after \\u");
    case 'x': {
        bool brace = eat(s, "{");
        if (!parse_hex(s, 1, brace ? 8 : 2, cp) || (brace && !eat(s, "}")) || (!brace && *cp > 127))
            return fail(s, "a character number after \\x");
        return 0;
    }
    case 'p':
    case 'P': {
        if (!eat(s, "{"))
            return fail(s, "{ after \\p");
        bool negate = eat(s, "^") != (letter == 'P');
        const char *name = s->at;
        while (s->at < s->end && *s->at != '}')
            s->at++;
        size_t len = (size_t)(s->at - name);
        uint32_t mask = category_mask(name, len);
        bool han = len == 3 && memcmp(name, "Han", 3) == 0;
        if ((!mask && !han) || !eat(s, "}"))
            return fail(s, "a general category like L or Lu, or Han, in \\p{...}");
        if (han)
            add_han(s, c, negate);
        else
            c->cats |= negate ? all & ~mask : mask;
        return 1;
    }
    }
    if (literal)
        *cp = (uint32_t)(unsigned char)values[literal - literals];
    else if ((letter >= '1' && letter <= '9') || ((letter | 32) >= 'a' && (letter | 32) <= 'z'))
        return fail(s, "an escape that we know");
    return 0;
}

static void parse_bracket(Parser *s, Class *c, int depth);

/* After the && of [..&&[..]]: what has been added to `c` counts only where the inner class has it.
 * Eats the inner bracket. */
static void parse_only(Parser *s, Class *c)
{
    class_close(s, c);
    Class only = {.first = s->p->n_ranges};
    if (!eat(s, "[")) {
        fail(s, "[ after &&");
        return;
    }
    only.negate = eat(s, "^");
    parse_bracket(s, &only, 1);
    if (!s->problem)
        class_close(s, &only);
    c->only1 = class_store(s, &only) + 1;
    if (!at(s, ']'))
        fail(s, "a closing ] after &&[...]");
}

/* Inside [..], after the opening bracket; adds to `c` and eats the closing bracket. */
static void parse_bracket(Parser *s, Class *c, int depth)
{
    for (bool first = true; !s->problem; first = false) {
        uint32_t lo, hi;
        if (s->at == s->end || depth > MAX_NESTING)
            fail(s, "a closing ]");
        else if (at(s, ']') && !first) {
            s->at++;
            return;
        } else if (eat(s, "[")) { // a nested class is a union
            if (at(s, '^') || at(s, ':'))
                fail(s, "no [^...] and no [:...:] inside [...]");
            else
                parse_bracket(s, c, depth + 1);
        } else if (eat(s, "&&")) {
            if (depth || first)
                fail(s, "no && at the start of [...] or inside another one");
            else
                parse_only(s, c);
        } else {
            int named = 0;
            if (eat(s, "\\"))
                named = parse_escape(s, c, &lo);
            else
                s->at += utf8_decode(s->at, s->end, &lo);
            if (named || s->problem)
                continue;
            hi = lo;
            if (at(s, '-') && s->at + 1 < s->end && s->at[1] != ']') {
                s->at++;
                if (eat(s, "\\"))
                    named = parse_escape(s, c, &hi);
                else
                    s->at += utf8_decode(s->at, s->end, &hi);
                if (named || hi < lo)
                    fail(s, "a range from a lower to a higher character");
            }
            class_add_folded(s, c, lo, hi);
        }
    }
}

static int parse_alternatives(Parser *s);

/* After the opening parenthesis; eats the closing one. */
static int parse_group(Parser *s)
{
    bool fold = s->fold;
    int kind = 0, i;
    if (eat(s, "?")) {
        if (eat(s, "i:"))
            s->fold = true;
        else if (at(s, '=') || at(s, '!') || at(s, '>'))
            kind = *s->at++;
        else if (!eat(s, ":"))
            return fail(s, "(?:, (?i:, (?=, (?! or (?>");
    }
    i = ++s->nesting > MAX_NESTING ? fail(s, "fewer nested groups") : parse_alternatives(s);
    s->nesting--;
    s->fold = fold;
    if (!s->problem && !eat(s, ")"))
        fail(s, "a closing )");
    return kind == 0   ? i
         : kind == '>' ? node(s, NODE_ATOMIC, i, 0)
                       : node(s, NODE_LOOK, i, kind == '!');
}

/* One character, class, group or assertion. */
static int parse_atom(Parser *s)
{
    Class c = {.first = s->p->n_ranges};
    uint32_t cp = 0;
    if (eat(s, "("))
        return parse_group(s);
    if (eat(s, "[")) {
        c.negate = eat(s, "^");
        parse_bracket(s, &c, 0);
        return class_finish(s, &c);
    }
    if (eat(s, ".")) {
        c.negate = true;
        class_add(s, &c, '\n', '\n');
        return class_finish(s, &c);
    }
    if (at(s, '^') || at(s, '$'))
        return node(s, NODE_ASSERT, *s->at++, 0);
    if (at(s, '*') || at(s, '+') || at(s, '?') || at(s, '{'))
        return fail(s, "something to repeat before it");
    if (eat(s, "\\")) {
        if (at(s, 'b') || at(s, 'B') || at(s, 'A') || at(s, 'z'))
            return node(s, NODE_ASSERT, *s->at++, 0);
        bool word = at(s, 'w')
                 || at(s, 'W'); // outside brackets Oniguruma counts Latin-1's numbers as well
        c.negate = word && *s->at == 'W';
        int named = parse_escape(s, &c, &cp);
        for (uint32_t i = 0x80; word && i < 0x100; i++)
            if (is_latin_number(i))
                class_add(s, &c, i, i);
        if (word) {
            c.word = true;
            c.not_word = false;
        }
        if (named)
            return class_finish(s, &c);
    } else
        s->at += utf8_decode(s->at, s->end, &cp);
    class_add_folded(s, &c, cp, cp);
    return class_finish(s, &c);
}

static bool parse_number(Parser *s, int *n)
{
    const char *from = s->at;
    for (*n = 0; s->at < s->end && *s->at >= '0' && *s->at <= '9' && *n <= MAX_REPEAT; s->at++)
        *n = 10 * *n + (*s->at - '0');
    return s->at > from;
}

static bool can_be_empty(const Parser *s, int i)
{
    const Node *n = &s->nodes[i];
    switch (n->kind) {
    case NODE_CLASS: return false;
    case NODE_CAT: return can_be_empty(s, n->a) && can_be_empty(s, n->b);
    case NODE_ALT: return can_be_empty(s, n->a) || can_be_empty(s, n->b);
    case NODE_REPEAT: return n->min == 0 || can_be_empty(s, n->a);
    case NODE_ATOMIC: return can_be_empty(s, n->a);
    case NODE_EMPTY:
    case NODE_LOOK:
    case NODE_ASSERT: break;
    }
    return true;
}

/* An atom and what repeats it. */
static int parse_repeat(Parser *s)
{
    int i = parse_atom(s);
    while (!s->problem && (at(s, '?') || at(s, '*') || at(s, '+') || at(s, '{'))) {
        int min = at(s, '+'), max = at(s, '?') ? 1 : INF;
        Mode mode = GREEDY;
        if (*s->at++ == '{') {
            if (!parse_number(s, &min))
                return fail(s, "a number after {");
            max = min;
            if (eat(s, ",") && !parse_number(s, &max))
                max = INF;
            if (!eat(s, "}") || max < min || min > MAX_REPEAT || (max > MAX_REPEAT && max != INF))
                return fail(s, "{n}, {n,} or {n,m} of at most 1000");
            if (at(s, '?') || at(s, '+')) // what these mean differs between engines
                return fail(s, "no ? or + after {...}");
        } else
            mode = eat(s, "?") ? LAZY : eat(s, "+") ? POSSESSIVE : GREEDY;
        if (max > 1 && can_be_empty(s, i))
            return fail(s, "no repetition of something that can be empty");
        i = node(s, NODE_REPEAT, i, 0);
        if (i >= 0) {
            s->nodes[i].min = min;
            s->nodes[i].max = max;
            s->nodes[i].mode = mode;
        }
    }
    return i;
}

static int parse_alternatives(Parser *s)
{
    int alternatives = -1;
    do {
        int row = -1;
        while (!s->problem && s->at < s->end && *s->at != '|' && *s->at != ')') {
            int i = parse_repeat(s);
            row = row < 0 ? i : node(s, NODE_CAT, row, i);
        }
        row = row < 0 ? node(s, NODE_EMPTY, 0, 0) : row;
        alternatives = alternatives < 0 ? row : node(s, NODE_ALT, alternatives, row);
    } while (!s->problem && eat(s, "|"));
    return alternatives;
}

static int emit(Parser *s, Inst inst)
{
    if (s->p->n_code >= MAX_CODE)
        fail(s, too_much(s));
    int i = s->problem ? -1 : grow(s, &s->p->code, &s->p->n_code, &s->p->cap_code, sizeof inst);
    if (i >= 0)
        s->p->code[i] = inst;
    return i;
}

static int here(const Parser *s)
{
    return (int)s->p->n_code;
}

static void emit_node(Parser *s, int i);

/* A choice between what is emitted next and going on at a place that end_optional() sets; the one
 * preferred first. `outer` chains choices that end at the same place. */
static int begin_optional(Parser *s, bool lazy, int outer)
{
    int i = here(s);
    return emit(s, (Inst){.op = OP_SPLIT, .flag = lazy, .a = i + 1, .b = i + 1, .min = outer});
}

static void end_optional(Parser *s, int i)
{
    while (i >= 0 && !s->problem) {
        Inst *split = &s->p->code[i];
        *(split->flag ? &split->a : &split->b) = here(s);
        i = split->min;
    }
}

static void emit_repeat(Parser *s, const Node *n)
{
    const Node *body = &s->nodes[n->a];
    bool lazy = n->mode == LAZY, possessive = n->mode == POSSESSIVE;
    if (body->kind == NODE_CLASS && !lazy) {
        emit(s, (Inst){.op = OP_LOOP,
                       .flag = possessive,
                       .a = body->a,
                       .b = (int)s->p->n_loops,
                       .min = n->min,
                       .max = n->max});
        s->p->n_loops += n->max == INF;
        return;
    }
    int atomic = possessive ? emit(s, (Inst){.op = OP_ATOMIC}) : -1, split = -1;
    for (int k = 0; k < n->min && !s->problem; k++)
        emit_node(s, n->a);
    if (n->max == INF) {
        split = begin_optional(s, lazy, -1);
        emit_node(s, n->a);
        emit(s, (Inst){.op = OP_JUMP, .a = split});
    }
    for (int k = n->min; n->max != INF && k < n->max && !s->problem; k++) {
        split = begin_optional(s, lazy, split);
        emit_node(s, n->a);
    }
    end_optional(s, split);
    if (possessive) {
        emit(s, (Inst){.op = OP_ACCEPT});
        if (!s->problem)
            s->p->code[atomic].a = here(s);
    }
}

static void emit_node(Parser *s, int i)
{
    if (s->problem)
        return;
    const Node *n = &s->nodes[i];
    int split, jump;
    switch (n->kind) {
    case NODE_EMPTY: break;
    case NODE_CLASS: emit(s, (Inst){.op = OP_CLASS, .a = n->a}); break;
    case NODE_CAT:
        emit_node(s, n->a);
        emit_node(s, n->b);
        break;
    case NODE_ALT:
        split = begin_optional(s, false, -1);
        emit_node(s, n->a);
        jump = emit(s, (Inst){.op = OP_JUMP});
        end_optional(s, split);
        emit_node(s, n->b);
        if (!s->problem)
            s->p->code[jump].a = here(s);
        break;
    case NODE_REPEAT: emit_repeat(s, n); break;
    case NODE_LOOK:
    case NODE_ATOMIC:
        split = emit(s, (Inst){.op = n->kind == NODE_LOOK ? OP_LOOK : OP_ATOMIC, .flag = n->b});
        emit_node(s, n->a);
        emit(s, (Inst){.op = OP_ACCEPT});
        if (!s->problem)
            s->p->code[split].a = here(s);
        break;
    case NODE_ASSERT: emit(s, (Inst){.op = OP_ASSERT, .a = n->a}); break;
    }
}

/* One pattern, added to p->code. */
static int compile(Pretok *p, Str pattern, Err *e)
{
    Parser s = {.p = p, .start = pattern.ptr, .at = pattern.ptr, .end = pattern.ptr + pattern.len};
    int i = pattern.len > MAX_PATTERN ? fail(&s, "at most 4000 bytes")
                                      : parse_alternatives(&s); // it recurses
    if (!s.problem && s.at < s.end)
        fail(&s, "no ) without a (");
    emit_node(&s, i);
    emit(&s, (Inst){.op = OP_ACCEPT});
    free(s.nodes);
    if (!s.problem)
        return 0;
    if (s.problem == no_memory)
        return err_set(e, EXIT_MEMORY, "out of memory for the pre-tokenizer");
    char shown[200], where[40] = "";
    str_escape(pattern, shown, sizeof shown);
    if (s.at > s.start)
        snprintf(where, sizeof where, " (stopped at byte %zu)", (size_t)(s.at - s.start));
    return err_set(e, EXIT_MODEL, "pre-tokenizer pattern: got \"%s\"%s, want %s", shown, where,
                   s.problem);
}

Pretok *pretok_compile(const Str *patterns, size_t n, Err *e)
{
    Pretok *p = mem_zalloc(1, sizeof *p);
    if (p)
        p->starts = mem_zalloc(n, sizeof *p->starts);
    if (!p || !p->starts) {
        err_set(e, EXIT_MEMORY, "out of memory for the pre-tokenizer");
        pretok_free(p);
        return NULL;
    }
    for (p->n = 0; p->n < n; p->n++) {
        p->starts[p->n] = (int)p->n_code;
        if (compile(p, patterns[p->n], e)) {
            pretok_free(p);
            return NULL;
        }
    }
    return p;
}

void pretok_free(Pretok *p)
{
    if (!p)
        return;
    free(p->starts);
    free(p->code);
    free(p->classes);
    free(p->ranges);
    free(p);
}

/* ---- matching -------------------------------------------------------------------------------- */

/* What is known about an OP_LOOP without a limit in one piece. Places are byte offsets. */
typedef struct {
    uint64_t piece;            // which one; in any other nothing is known
    uint32_t run_lo, run_hi;   // a run of its class, unless lo > hi
    uint32_t fail_lo, fail_hi; // ends of the loop, up to the run's end, from which the rest of
                               // the pattern does not match, unless lo > hi
} Loop;

/* A place to come back to: the instruction `pc` at `pos`; or the other ends, from before pos down
 * to lo, of the OP_LOOP at `pc`. */
#define NO_LOOP UINT32_MAX // as `lo`
typedef struct {
    uint32_t pc, pos, lo;
} Frame;

/* A piece that one of the patterns is cutting. */
typedef struct {
    uint64_t piece; // its number
    uint32_t begin, end;
    uint32_t from;   // where the next one that is cut off begins
    uint32_t pos;    // where the next match is looked for
    uint32_t done;   // where the last match ended
    uint32_t second; // a cut after the one just made that is known already, or 0
} Level;

/* Steps that cutting a text may take: of the order of a second for a short text. The rules of
 * pretokenize.c take at most a quarter of STEPS_PER_BYTE, but for those that look ahead over all
 * digits. */
enum { STEPS = 50000000, STEPS_PER_BYTE = 400 };

/* Places to come back to; a group that repeats over the whole text needs one for each time. */
enum { FRAMES = 4000000, KEPT_FRAMES = 100000 };

struct Cutter {
    const Pretok *p;
    const char *text;
    uint32_t begin, end; // the present piece; nothing outside it is seen
    uint64_t piece;      // its number
    uint64_t n_pieces;
    uint32_t at, width; // the last character beyond ASCII that was decoded: place, bytes,
    uint32_t cp;        // code point
    uint8_t cat;        // and category
    Loop *loops;        // (p->n_loops)
    Frame *stack;
    size_t n_stack, cap_stack, max_stack;
    int64_t steps, steps_left; // allowed at first, now
    size_t text_len;           // of all texts
    bool no_memory;
    Level *levels;   // (p->n), of each pattern
    size_t n_levels; // those that have a piece
    uint32_t whole;  // without patterns: the end of the text, or 0
};

/* False, and no steps are left, where there is no room. Apart, so that push() stays small. */
__attribute__((noinline, cold)) static bool grow_stack(Cutter *c)
{
    bool full = c->n_stack >= c->max_stack;
    c->no_memory = !full && !mem_room(&c->stack, c->n_stack + 1, &c->cap_stack, sizeof *c->stack);
    if (full || c->no_memory)
        c->steps_left = -1;
    else if (c->cap_stack > c->max_stack)
        c->cap_stack = c->max_stack;
    return !full && !c->no_memory;
}

static bool push(Cutter *c, uint32_t pc, uint32_t pos, uint32_t lo)
{
    if (c->n_stack == c->cap_stack && !grow_stack(c))
        return false;
    c->stack[c->n_stack++] = (Frame){pc, pos, lo};
    return true;
}

/* Decode the character at `pos`, which is beyond ASCII. */
static void decode(Cutter *c, uint32_t pos)
{
    if (c->at == pos)
        return;
    c->at = pos;
    c->width = (uint32_t)utf8_decode(c->text + pos, c->text + c->end, &c->cp);
    c->cat = category(c->cp);
}

static bool is_ascii(const Cutter *c, uint32_t pos)
{
    return (unsigned char)c->text[pos] < 0x80;
}

/* Where the character at `pos` ends. */
static uint32_t after(Cutter *c, uint32_t pos)
{
    if (is_ascii(c, pos))
        return pos + 1;
    decode(c, pos);
    return pos + c->width;
}

/* Where the character that ends at `pos` begins: a lead byte never lies inside another character,
 * so the one whose character ends here is it, and where there is none the last byte is one that is
 * no UTF-8. */
static uint32_t before(Cutter *c, uint32_t pos)
{
    uint32_t cp, most = pos - c->begin < 4 ? pos - c->begin : 4;
    c->steps_left -= is_ascii(c, pos - 1) ? 0 : 2;
    for (uint32_t n = 2; n <= most && !is_ascii(c, pos - n + 1); n++)
        if (!is_ascii(c, pos - n) && utf8_decode(c->text + pos - n, c->text + pos, &cp) == n)
            return pos - n;
    return pos - 1;
}

/* Bytes of the character at `pos` if it is in the class, else 0. */
static uint32_t in_class(Cutter *c, const Class *class, uint32_t pos)
{
    unsigned char byte = (unsigned char)c->text[pos];
    if (byte < 0x80)
        return class->ascii[byte / 32] >> (byte % 32) & 1;
    decode(c, pos);
    c->steps_left -= class->cost;
    return class_has(c->p, class, c->cp, c->cat) ? c->width : 0;
}

static bool is_word(Cutter *c, uint32_t pos)
{
    if (is_ascii(c, pos))
        return category((unsigned char)c->text[pos]) & CAT_WORD;
    decode(c, pos);
    return c->cat & CAT_WORD || is_latin_number(c->cp);
}

static bool assertion(Cutter *c, int letter, uint32_t pos)
{
    if (letter == '^')
        return pos == c->begin || c->text[pos - 1] == '\n';
    if (letter == '$')
        return pos == c->end || c->text[pos] == '\n';
    if (letter == 'A' || letter == 'z')
        return pos == (letter == 'A' ? c->begin : c->end);
    bool left = pos > c->begin && is_word(c, before(c, pos));
    bool right = pos < c->end && is_word(c, pos);
    return (left != right) == (letter == 'b');
}

static Loop *loop_of(Cutter *c, const Inst *in)
{
    Loop *loop = &c->loops[in->b];
    if (loop->piece != c->piece)
        *loop = (Loop){.piece = c->piece, .run_lo = 1, .fail_lo = 1};
    return loop;
}

/* Where a run of at most `max` characters of a class that starts at `pos` ends. */
static uint32_t run_end(Cutter *c, const Class *class, uint32_t pos, uint32_t max)
{
    uint32_t n = 0;
    for (uint32_t width; n < max && pos < c->end && (width = in_class(c, class, pos)); n++)
        pos += width;
    c->steps_left -= n;
    return pos;
}

/* `n` characters after `pos`, or c->end + 1 where there are fewer up to `end`. */
static uint32_t skip(Cutter *c, uint32_t pos, uint32_t end, int n)
{
    for (; n && pos < end; n--, c->steps_left--)
        pos = after(c, pos);
    return n ? c->end + 1 : pos;
}

/* Enter the loop at `*pc`. True: go on at *pos; the other ends wait on the stack. */
static bool enter_loop(Cutter *c, uint32_t *pc, uint32_t *pos)
{
    const Inst *in = &c->p->code[*pc];
    Loop *loop = in->max == INF ? loop_of(c, in) : NULL;
    uint32_t hi, lo;
    if (loop && loop->run_lo <= *pos && *pos <= loop->run_hi) {
        hi = loop->run_hi;
    } else {
        hi = run_end(c, &c->p->classes[in->a], *pos, (uint32_t)in->max);
        if (loop)
            *loop = (Loop){loop->piece, *pos, hi, loop->fail_lo, loop->fail_hi};
    }
    lo = skip(c, *pos, hi, in->min);
    if (lo > hi)
        return false;
    if (loop && !in->flag && loop->fail_lo <= loop->fail_hi && loop->fail_hi == hi) {
        if (lo >= loop->fail_lo)
            return false;
        hi = before(c, loop->fail_lo); // from there on it is known to fail
    }
    if (!in->flag && hi > lo && !push(c, *pc, hi, lo))
        return false;
    ++*pc;
    *pos = hi;
    return true;
}

/* Take the last frame back: true with the place to go on, false when there is none above `base`. */
static bool backtrack(Cutter *c, size_t base, uint32_t *pc, uint32_t *pos)
{
    while (c->n_stack > base) {
        Frame *f = &c->stack[c->n_stack - 1];
        const Inst *in = &c->p->code[f->pc];
        if (f->lo == NO_LOOP) {
            *pc = f->pc;
            *pos = f->pos;
            c->n_stack--;
            return true;
        }
        if (f->pos > f->lo) {
            *pos = f->pos = before(c, f->pos);
            *pc = f->pc + 1;
            return true;
        }
        Loop *loop = in->max == INF ? loop_of(c, in) : NULL;
        if (loop && loop->run_lo <= f->lo && f->lo <= loop->run_hi) { // all ends have failed
            loop->fail_lo = f->lo;
            loop->fail_hi = loop->run_hi;
        }
        c->n_stack--;
        c->steps_left--;
    }
    return false;
}

/* Match from instruction `pc` at `pos` to its OP_ACCEPT; *out is where it ends. False, too, when
 * the steps are spent. */
static bool match(Cutter *c, uint32_t pc, uint32_t pos, uint32_t *out)
{
    const Pretok *p = c->p;
    size_t base = c->n_stack;
    uint32_t sub, width;
    for (;;) {
        const Inst *in = &p->code[pc];
        bool ok = true;
        if (--c->steps_left < 0)
            return false;
        switch ((Op)in->op) {
        case OP_CLASS:
            ok = pos < c->end && (width = in_class(c, &p->classes[in->a], pos));
            pos += ok ? width : 0;
            pc++;
            break;
        case OP_LOOP: ok = enter_loop(c, &pc, &pos); break;
        case OP_SPLIT:
            ok = push(c, (uint32_t)in->b, pos, NO_LOOP);
            pc = (uint32_t)in->a;
            break;
        case OP_JUMP: pc = (uint32_t)in->a; break;
        case OP_LOOK:
            ok = match(c, pc + 1, pos, &sub) != in->flag;
            pc = (uint32_t)in->a;
            break;
        case OP_ATOMIC:
            ok = match(c, pc + 1, pos, &pos);
            pc = (uint32_t)in->a;
            break;
        case OP_ASSERT:
            ok = assertion(c, in->a, pos);
            pc++;
            break;
        case OP_ACCEPT:
            c->n_stack = base;
            *out = pos;
            return true;
        }
        if (!ok && !backtrack(c, base, &pc, &pos)) {
            c->n_stack = base;
            return false;
        }
    }
}

/* ---- cutting --------------------------------------------------------------------------------- */

/* Give a piece to the next pattern. */
static void open_level(Cutter *c, uint32_t begin, uint32_t end)
{
    c->levels[c->n_levels++] = (Level){.piece = ++c->n_pieces,
                                       .begin = begin,
                                       .end = end,
                                       .from = begin,
                                       .pos = begin,
                                       .done = begin};
}

/* The end of the next piece that the innermost pattern with a piece cuts off that; 0 if nothing is
 * left. A match is a piece, and so is what lies between two. An empty match cuts where it is,
 * unless a match ends there. */
static uint32_t next_cut(Cutter *c)
{
    Level *l = &c->levels[c->n_levels - 1];
    uint32_t start = (uint32_t)c->p->starts[c->n_levels - 1], stop = l->second;
    l->second = 0;
    if (stop)
        return stop;
    c->begin = l->begin;
    c->end = l->end;
    c->piece = l->piece;
    while (c->steps_left-- >= 0 && l->pos < l->end) {
        uint32_t pos = l->pos;
        bool matched = match(c, start, pos, &stop);
        if (c->steps_left < 0)
            return 0;
        l->pos = matched && stop > pos ? stop : after(c, pos);
        if (!matched)
            continue;
        bool between = pos > l->done;
        l->done = stop;
        l->second = between && stop > pos ? stop : 0;
        if (between || stop > pos)
            return between ? pos : stop;
    }
    stop = l->done < l->end ? l->end : 0;
    l->done = l->end;
    return stop;
}

Cutter *cutter_open(const Pretok *p, size_t len, Err *e)
{
    Cutter *c = mem_zalloc(1, sizeof *c);
    if (c) {
        *c = (Cutter){.p = p,
                      .text_len = len,
                      .max_stack = FRAMES + len,
                      .steps = STEPS + STEPS_PER_BYTE * (int64_t)len};
        c->steps_left = c->steps;
        c->loops = mem_zalloc(p->n_loops, sizeof *c->loops);
        c->levels = mem_zalloc(p->n, sizeof *c->levels);
    }
    if (c && c->loops && c->levels)
        return c;
    cutter_close(c);
    err_set(e, EXIT_MEMORY, "out of memory while cutting the text into pieces");
    return NULL;
}

void cutter_close(Cutter *c)
{
    if (!c)
        return;
    free(c->loops);
    free(c->stack);
    free(c->levels);
    free(c);
}

void cutter_start(Cutter *c, const char *text, size_t len)
{
    c->text = text;
    c->at = UINT32_MAX;
    c->n_levels = 0;
    c->whole = c->p->n ? 0 : (uint32_t)len;
    if (c->p->n)
        open_level(c, 0, (uint32_t)len);
}

/* Between matches there are no places to come back to: a long piece needs its memory elsewhere. */
static void drop_frames(Cutter *c)
{
    if (c->cap_stack <= KEPT_FRAMES)
        return;
    free(c->stack);
    c->stack = NULL;
    c->cap_stack = 0;
}

int cutter_next(Cutter *c, size_t *end, Err *e)
{
    if (!c->p->n) {
        *end = c->whole;
        c->whole = 0;
        return *end > 0;
    }
    while (c->n_levels) {
        Level *l = &c->levels[c->n_levels - 1];
        uint32_t begin = l->from, stop = next_cut(c);
        if (c->steps_left < 0)
            break;
        l->from = stop;
        if (!stop)
            c->n_levels--;
        else if (c->n_levels < c->p->n)
            open_level(c, begin, stop);
        else {
            *end = stop;
            drop_frames(c);
            return 1;
        }
    }
    if (c->steps_left >= 0)
        return 0;
    if (c->no_memory)
        return err_set(e, EXIT_MEMORY, "out of memory while cutting the text into pieces");
    return err_set(e, EXIT_MODEL,
                   "pre-tokenizer pattern: takes more than %lld steps, or %zu "
                   "places to come back to, on a text of %zu bytes; want no nested repetitions",
                   (long long)c->steps, c->max_stack, c->text_len);
}
