/* pattern.c - a small regular expression matcher that cuts texts into pieces.
 *
 * It backtracks, since the patterns are written for engines that do, but over runs of one class only through
 * a frame that remembers where the run ends and from where on it is known to fail (see Loop); so the patterns of
 * real models take time linear in the text, and a text of spaces costs no more than one of words. Whether a state
 * (instruction, position) can lead to a match does not depend on how it was reached, which is what makes
 * remembering right. What is left is bounded by a count of steps.
 */
#include "pattern.h"
#include "unicode_tables.h"

#include <stdlib.h>
#include <string.h>

/* ---- characters ----------------------------------------------------------------------------------------------- */

/* General categories, in the order of unicode_category. Cw: control characters that are white space. Cs, which no
 * valid text holds, stands for a byte that is no UTF-8. */
static const char categories[] = "Lu Ll Lt Lm Lo Mn Mc Me Nd Nl No Pc Pd Ps Pe Pi Pf Po Sm Sc Sk So Zs Zl Zp Cc Cw Cf Cs Co Cn ";
enum { CAT_BITS = 31, CAT_CS = 28, CAT_CN = 30 };
enum { CAT_WORD = 32 }; // flag beside the number: \w matches it

/* Category number, with CAT_WORD. */
static uint8_t category(uint32_t cp)
{
    if (cp & UTF8_INVALID)
        return CAT_CS;
    if (cp > 0x10ffff)
        return CAT_CN;
    return unicode_category_data[unicode_category_index[cp / UNICODE_BLOCK] * UNICODE_BLOCK + cp % UNICODE_BLOCK];
}

/* Superscripts and fractions of Latin-1. */
static bool is_latin_number(uint32_t cp)
{
    return cp == 0xb2 || cp == 0xb3 || cp == 0xb9 || (cp >= 0xbc && cp <= 0xbe);
}

/* Mask of the categories whose name starts with `name` ("L" or "Lu"); 0 if there is none. "C" has Cw in it, "Cc" too. */
static uint32_t category_mask(const char *name, size_t len)
{
    uint32_t mask = 0;
    for (int i = 0; len > 0 && len < 3 && i < CAT_BITS; i++)
        if (memcmp(categories + 3 * i, name, len) == 0)
            mask |= 1u << i;
    return len == 2 && memcmp(name, "Cc", 2) == 0 ? mask | category_mask("Cw", 2) : mask;
}

/* ---- compiling --------------------------------------------------------------------------------------- */

enum { INF = 0x7fffffff, MAX_REPEAT = 1000, MAX_CODE = 20000, MAX_NESTING = 32, MAX_PATTERN = 4000 };

/* A set of characters. */
typedef struct {
    uint32_t ascii[4]; // membership below 128, negation applied; made by class_finish()
    uint32_t cats;     // mask of categories
    bool word, not_word, negate;
    size_t first, n;   // ranges of Pretok.ranges
} Class;

typedef struct {
    uint32_t lo, hi;
} Range;

/* Syntax tree. a and b are nodes. */
typedef enum { NODE_EMPTY, NODE_CLASS, NODE_CAT, NODE_ALT, NODE_REPEAT, NODE_LOOK, NODE_ATOMIC, NODE_ASSERT } NodeKind;
typedef enum { GREEDY, LAZY, POSSESSIVE } Mode;

typedef struct {
    NodeKind kind;
    int a, b;     // CLASS: a is the class; LOOK: b is whether it is negated; ASSERT: a is the letter
    int min, max; // REPEAT; max may be INF
    Mode mode;    // REPEAT
} Node;

typedef enum { OP_CLASS, OP_LOOP, OP_SPLIT, OP_JUMP, OP_LOOK, OP_ATOMIC, OP_ASSERT, OP_ACCEPT } Op;

typedef struct {
    Op op;
    bool flag;    // LOOP: possessive; LOOK: negated; SPLIT: lazy
    int a, b;     // CLASS, LOOP: a is the class. SPLIT: tried first, then. JUMP, LOOK, ATOMIC: a is the target
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
};

typedef struct {
    Pretok *p;
    const char *start, *at, *end; // of the pattern
    Node *nodes;
    size_t n_nodes, cap_nodes;
    int nesting;
    bool fold; // inside (?i:..)
    const char *problem;
} Parser;

/* Make room for one more item of *items; returns its index, or -1 after noting the problem. */
static int grow(Parser *s, void *items, size_t *n, size_t *cap, size_t size)
{
    void **p = items;
    if (*n == *cap) {
        size_t want = *cap ? 2 * *cap : 64;
        void *grown = *n < MAX_CODE * 4 ? mem_grow(*p, want, size) : NULL;
        if (!grown) {
            s->problem = "a shorter pattern";
            return -1;
        }
        *p = grown;
        *cap = want;
    }
    return (int)(*n)++;
}

static int node(Parser *s, NodeKind kind, int a, int b)
{
    int i = s->problem ? -1 : grow(s, &s->nodes, &s->n_nodes, &s->cap_nodes, sizeof *s->nodes);
    if (i >= 0)
        s->nodes[i] = (Node){.kind = kind, .a = a, .b = b};
    return i;
}

static int fail(Parser *s, const char *want)
{
    if (!s->problem)
        s->problem = want;
    return -1;
}

static bool class_has(const Pretok *p, const Class *c, uint32_t cp, uint8_t cat)
{
    if (cp < 128)
        return c->ascii[cp / 32] >> (cp % 32) & 1;
    bool in = (c->cats >> (cat & 31) & 1) || (cat & CAT_WORD ? c->word : c->not_word);
    for (size_t i = 0; i < c->n && !in; i++)
        in = cp - p->ranges[c->first + i].lo <= p->ranges[c->first + i].hi - p->ranges[c->first + i].lo;
    return in != c->negate;
}

static void class_add(Parser *s, Class *c, uint32_t lo, uint32_t hi)
{
    int i = grow(s, &s->p->ranges, &s->p->n_ranges, &s->p->cap_ranges, sizeof(Range));
    if (i < 0)
        return;
    s->p->ranges[i] = (Range){lo, hi};
    c->n++;
}

/* Add a literal range, with its other case inside (?i:..): ASCII letters and the two others that fold to them. */
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

/* Add the class as a node. The ranges added since c->first must be its own. */
static int class_finish(Parser *s, Class *c)
{
    bool negate = c->negate;
    memset(c->ascii, 0, sizeof c->ascii);
    for (uint32_t cp = 0; cp < 128; cp++) { // ask as for any other character, then keep the answer
        uint8_t cat = category(cp);
        bool in = (c->cats >> (cat & 31) & 1) || (cat & CAT_WORD ? c->word : c->not_word);
        for (size_t i = 0; i < c->n && !in; i++)
            in = cp >= s->p->ranges[c->first + i].lo && cp <= s->p->ranges[c->first + i].hi;
        if (in != negate)
            c->ascii[cp / 32] |= 1u << (cp % 32);
    }
    int i = s->problem ? -1 : grow(s, &s->p->classes, &s->p->n_classes, &s->p->cap_classes, sizeof *c);
    if (i < 0)
        return -1;
    s->p->classes[i] = *c;
    return node(s, NODE_CLASS, i, 0);
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
        int v = c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
        if (v < 0)
            break;
        *cp = *cp * 16 + (uint32_t)v;
    }
    return n >= min && *cp <= 0x10ffff;
}

/* What follows a backslash: either adds a named set to `c` and returns 1, or gives one character in *cp and returns
 * 0; -1 on failure. */
static int parse_escape(Parser *s, Class *c, uint32_t *cp)
{
    static const char literals[] = "rntfav0e", values[] = "\r\n\t\f\a\v\0\033";
    const uint32_t all = 0x7fffffffu, space = category_mask("Z", 1) | category_mask("Cw", 2), digit = category_mask("Nd", 2);
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
    case 'p': case 'P': {
        if (!eat(s, "{"))
            return fail(s, "{ after \\p");
        bool negate = eat(s, "^") != (letter == 'P');
        const char *name = s->at;
        while (s->at < s->end && *s->at != '}')
            s->at++;
        uint32_t mask = category_mask(name, (size_t)(s->at - name));
        if (!mask || !eat(s, "}"))
            return fail(s, "a general category like L or Lu in \\p{...}");
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
        } else if (at(s, '&') && s->at + 1 < s->end && s->at[1] == '&')
            fail(s, "no && inside [...]");
        else {
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
    return kind == 0 ? i : kind == '>' ? node(s, NODE_ATOMIC, i, 0) : node(s, NODE_LOOK, i, kind == '!');
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
        bool word = at(s, 'w') || at(s, 'W'); // outside brackets Oniguruma counts Latin-1's numbers as well
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
    case NODE_EMPTY: case NODE_LOOK: case NODE_ASSERT: break;
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
        fail(s, "a shorter pattern");
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

/* A choice between what is emitted next and going on at a place that end_optional() sets; the one preferred first.
 * `outer` chains choices that end at the same place. */
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
        emit(s, (Inst){.op = OP_LOOP, .flag = possessive, .a = body->a, .min = n->min, .max = n->max});
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
    case NODE_EMPTY:
        break;
    case NODE_CLASS:
        emit(s, (Inst){.op = OP_CLASS, .a = n->a});
        break;
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
    case NODE_REPEAT:
        emit_repeat(s, n);
        break;
    case NODE_LOOK:
    case NODE_ATOMIC:
        split = emit(s, (Inst){.op = n->kind == NODE_LOOK ? OP_LOOK : OP_ATOMIC, .flag = n->b});
        emit_node(s, n->a);
        emit(s, (Inst){.op = OP_ACCEPT});
        if (!s->problem)
            s->p->code[split].a = here(s);
        break;
    case NODE_ASSERT:
        emit(s, (Inst){.op = OP_ASSERT, .a = n->a});
        break;
    }
}

/* One pattern, added to p->code. */
static int compile(Pretok *p, Str pattern, Err *e)
{
    Parser s = {.p = p, .start = pattern.ptr, .at = pattern.ptr, .end = pattern.ptr + pattern.len};
    int i = pattern.len > MAX_PATTERN ? fail(&s, "at most 4000 bytes") : parse_alternatives(&s); // it recurses
    if (!s.problem && s.at < s.end)
        fail(&s, "no ) without a (");
    emit_node(&s, i);
    emit(&s, (Inst){.op = OP_ACCEPT});
    free(s.nodes);
    if (!s.problem)
        return 0;
    char shown[200];
    return err_set(e, EXIT_MODEL, "pre-tokenizer pattern: got \"%s\" (stopped at byte %zu), want %s",
                   str_escape(pattern, shown, sizeof shown), (size_t)(s.at - s.start), s.problem);
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

/* ---- matching --------------------------------------------------------------------------------------- */

/* What is known about an unlimited OP_LOOP in the present piece. */
typedef struct {
    size_t run_lo, run_hi;   // a run of its class
    size_t fail_lo, fail_hi; // ends of the loop from which the rest of the pattern does not match
} Loop;

/* A place to come back to: the instruction `pc` at `pos`; or the other ends, from pos - 1 down to lo, of the OP_LOOP
 * at `pc`. */
#define NO_LOOP SIZE_MAX // as `lo`
typedef struct {
    int pc;
    size_t pos, lo;
} Frame;

typedef struct {
    const Pretok *p;
    const uint32_t *cps;
    const uint8_t *cats;
    size_t begin, end; // the present piece; nothing outside it is seen
    Loop *loops;       // one per instruction
    Frame *stack;
    size_t n_stack, cap_stack;
    size_t steps_left;
    bool no_memory;
} Matcher;

static bool push(Matcher *m, int pc, size_t pos, size_t lo)
{
    if (m->n_stack == m->cap_stack) {
        size_t cap = m->cap_stack ? 2 * m->cap_stack : 256;
        Frame *grown = mem_grow(m->stack, cap, sizeof *grown);
        if (!grown) {
            m->no_memory = true;
            return false;
        }
        m->stack = grown;
        m->cap_stack = cap;
    }
    m->stack[m->n_stack++] = (Frame){pc, pos, lo};
    return true;
}

static bool is_word(const Matcher *m, size_t pos)
{
    return pos < m->end && (m->cats[pos] & CAT_WORD || is_latin_number(m->cps[pos]));
}

static bool assertion(const Matcher *m, int letter, size_t pos)
{
    bool boundary = (pos > m->begin && is_word(m, pos - 1)) != is_word(m, pos);
    switch (letter) {
    case '^': return pos == m->begin || m->cps[pos - 1] == '\n';
    case '$': return pos == m->end || m->cps[pos] == '\n';
    case 'b': return boundary;
    case 'B': return !boundary;
    case 'A': return pos == m->begin;
    default: return pos == m->end;
    }
}

/* Where the run of a loop's class that starts at `pos` ends, at most `limit`. */
static size_t run_end(Matcher *m, const Inst *in, Loop *loop, size_t pos, size_t limit)
{
    bool unlimited = in->max == INF;
    if (unlimited && loop->run_lo <= pos && pos <= loop->run_hi)
        return loop->run_hi;
    const Class *c = &m->p->classes[in->a];
    size_t hi = pos;
    while (hi < limit && class_has(m->p, c, m->cps[hi], m->cats[hi]))
        hi++;
    m->steps_left -= hi - pos < m->steps_left ? hi - pos : m->steps_left;
    if (unlimited) {
        loop->run_lo = pos;
        loop->run_hi = hi;
    }
    return hi;
}

/* Enter the loop at `*pc`. True: go on at *pos; the other ends wait on the stack. */
static bool enter_loop(Matcher *m, int *pc, size_t *pos)
{
    const Inst *in = &m->p->code[*pc];
    Loop *loop = &m->loops[*pc];
    size_t limit = m->end - *pos > (size_t)in->max ? *pos + (size_t)in->max : m->end;
    size_t hi = run_end(m, in, loop, *pos, limit), lo = *pos + (size_t)in->min;
    if (hi < lo)
        return false;
    if (!in->flag && in->max == INF && loop->fail_lo < loop->fail_hi && loop->fail_hi == hi + 1 && hi >= loop->fail_lo) {
        if (lo >= loop->fail_lo)
            return false;
        hi = loop->fail_lo - 1; // from there on it is known to fail
    }
    if (!in->flag && hi > lo && !push(m, *pc, hi, lo))
        return false;
    ++*pc;
    *pos = hi;
    return true;
}

/* Take the last frame back: true with the place to go on, false when there is none above `base`. */
static bool backtrack(Matcher *m, size_t base, int *pc, size_t *pos)
{
    while (m->n_stack > base) {
        Frame *f = &m->stack[m->n_stack - 1];
        const Inst *in = &m->p->code[f->pc];
        if (f->lo == NO_LOOP) {
            *pc = f->pc;
            *pos = f->pos;
            m->n_stack--;
            return true;
        }
        if (f->pos > f->lo) {
            *pos = --f->pos;
            *pc = f->pc + 1;
            return true;
        }
        Loop *loop = &m->loops[f->pc];
        if (in->max == INF && loop->run_lo <= f->lo && f->lo <= loop->run_hi) { // all ends from lo on have failed
            loop->fail_lo = f->lo;
            loop->fail_hi = loop->run_hi + 1;
        }
        m->n_stack--;
    }
    return false;
}

/* Match from instruction `pc` at `pos` to its OP_ACCEPT; *out is where it ends. */
static bool match(Matcher *m, int pc, size_t pos, size_t *out)
{
    const Pretok *p = m->p;
    size_t base = m->n_stack, sub;
    for (;;) {
        const Inst *in = &p->code[pc];
        bool ok = true;
        if (m->steps_left == 0 || m->no_memory)
            return false;
        m->steps_left--;
        switch ((Op)in->op) {
        case OP_CLASS:
            ok = pos < m->end && class_has(p, &p->classes[in->a], m->cps[pos], m->cats[pos]);
            pos++;
            pc++;
            break;
        case OP_LOOP:
            ok = enter_loop(m, &pc, &pos);
            break;
        case OP_SPLIT:
            ok = push(m, in->b, pos, NO_LOOP);
            pc = in->a;
            break;
        case OP_JUMP:
            pc = in->a;
            break;
        case OP_LOOK:
            ok = match(m, pc + 1, pos, &sub) != in->flag;
            pc = in->a;
            break;
        case OP_ATOMIC:
            ok = match(m, pc + 1, pos, &pos);
            pc = in->a;
            break;
        case OP_ASSERT:
            ok = assertion(m, in->a, pos);
            pc++;
            break;
        case OP_ACCEPT:
            m->n_stack = base;
            *out = pos;
            return true;
        }
        if (!ok && !backtrack(m, base, &pc, &pos)) {
            m->n_stack = base;
            return false;
        }
    }
}

static bool cut(Cuts *c, size_t end)
{
    if (c->n == c->cap) {
        size_t cap = c->cap ? 2 * c->cap : 256;
        size_t *grown = mem_grow(c->ends, cap, sizeof *grown);
        if (!grown)
            return false;
        c->ends = grown;
        c->cap = cap;
    }
    c->ends[c->n++] = end;
    return true;
}

void cuts_free(Cuts *c)
{
    free(c->ends);
    *c = (Cuts){0};
}

/* Cut one piece by one pattern. An empty match cuts where it is, unless a match ends there. */
static bool cut_piece(Matcher *m, int start, size_t begin, size_t end, Cuts *out)
{
    size_t done = begin, stop = 0;
    m->begin = begin;
    m->end = end;
    memset(m->loops, 0xff, m->p->n_code * sizeof *m->loops); // run_lo = SIZE_MAX, fail_lo = fail_hi: nothing known
    for (size_t pos = begin; pos < end; pos = stop > pos ? stop : pos + 1) {
        if (!match(m, start, pos, &stop)) {
            if (m->steps_left == 0 || m->no_memory)
                return false;
            stop = pos;
            continue;
        }
        if (pos > done && !cut(out, pos))
            return false;
        if (stop > pos && !cut(out, stop))
            return false;
        done = stop;
    }
    return done == end || cut(out, end);
}

/* Cut the whole text by every pattern in turn; the cuts count characters. */
static bool cut_all(Matcher *m, size_t n, Cuts *out)
{
    Cuts next = {0};
    bool ok = n == 0 || cut(out, n);
    for (size_t i = 0; i < m->p->n && ok; i++) {
        next.n = 0;
        for (size_t k = 0, begin = 0; k < out->n && ok; begin = out->ends[k++])
            ok = cut_piece(m, m->p->starts[i], begin, out->ends[k], &next);
        Cuts t = *out;
        *out = next;
        next = t;
    }
    cuts_free(&next);
    return ok;
}

int pretok_split(const Pretok *p, const char *text, size_t len, Cuts *out, Err *e)
{
    Matcher m = {.p = p, .steps_left = len < SIZE_MAX / 4096 ? 100000000 + 1000 * len : SIZE_MAX};
    uint32_t *cps = mem_alloc(len, sizeof *cps);
    uint8_t *cats = mem_alloc(len, 1);
    m.loops = mem_alloc(p->n_code, sizeof *m.loops);
    m.cps = cps;
    m.cats = cats;
    out->n = 0;
    bool ok = cps && cats && m.loops;
    size_t n = 0;
    for (size_t i = 0; i < len && ok; n++) {
        i += utf8_decode(text + i, text + len, &cps[n]);
        cats[n] = category(cps[n]);
    }
    ok = ok && cut_all(&m, n, out);
    for (size_t k = 0, i = 0, byte = 0; k < out->n && ok; k++) { // characters to bytes
        for (; i < out->ends[k]; i++)
            byte += cps[i] < 0x80 || cps[i] & UTF8_INVALID ? 1 : cps[i] < 0x800 ? 2 : cps[i] < 0x10000 ? 3 : 4;
        out->ends[k] = byte;
    }
    free(cps);
    free(cats);
    free(m.loops);
    free(m.stack);
    if (ok)
        return 0;
    if (m.steps_left == 0)
        return err_set(e, EXIT_MODEL, "pre-tokenizer pattern: got one that takes more than %zu steps on a text of %zu bytes, "
                       "want one without nested repetitions", 100000000 + 1000 * len, len);
    return err_set(e, EXIT_MEMORY, "out of memory while cutting the text into pieces");
}
