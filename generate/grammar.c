/* grammar.c - builds and compiles grammars; the contracts are in grammar.h.
 *
 * Every rule becomes a graph of its own (Thompson's construction), in which only calls of rules
 * refer to others. A repetition {m,n} is written out. Two things are found out afterwards by
 * passing facts from node to node until none is new: whether a node can reach its rule's end, and
 * whether it can do so without a character.
 */
#include "generate/grammar.h"

#include <stdlib.h>
#include <string.h>

enum {
    MAX_EXPRS = 1 << 21,
    MAX_NODES = 1 << 20,
    MAX_STEPS = 1 << 22, // of writing expressions out
    MAX_EDGES = 1 << 20,
    MAX_DEPTH = 2000, // of expressions within each other
    BIG = 1 << 10,    // nodes: not counted beyond
    SMALL = 32,       // nodes of a rule that is written out where it is called
    N_TAILS = N_UTF8_STATES
};

/* The first states of every grammar: what follows the first byte of a character, where all
 * characters that begin so are in the set. 0 to 2 are one to three tail bytes; the others stand
 * behind E0, ED, F0 and F4, after which UTF-8 leaves some out. */
static const ByteEdge tails[N_TAILS] = {{0x80, 0xbf, CHAR_DONE}, {0x80, 0xbf, 0}, {0x80, 0xbf, 1},
                                        {0xa0, 0xbf, 0},         {0x80, 0x9f, 0}, {0x90, 0xbf, 1},
                                        {0x80, 0x8f, 1}};
static const ByteEdge leads[] = {{0xc2, 0xdf, 0}, {0xe0, 0xe0, 3}, {0xe1, 0xec, 1},
                                 {0xed, 0xed, 4}, {0xee, 0xef, 1}, {0xf0, 0xf0, 5},
                                 {0xf1, 0xf3, 2}, {0xf4, 0xf4, 6}};
enum { N_LEADS = sizeof leads / sizeof *leads };

typedef enum {
    EXPR_BYTES,
    EXPR_CHARS,
    EXPR_SEQUENCE,
    EXPR_CHOICE,
    EXPR_REPEAT,
    EXPR_RULE
} ExprKind;

/* BYTES: n bytes of the pool from `at`. CHARS: state `at`. SEQUENCE and CHOICE: n expressions of
 * the list from `at`. REPEAT: expression `at`, min to max times. RULE: its number in `at`. */
typedef struct {
    uint8_t kind;
    int at, n, min, max;
    int depth;     // of expressions within it
    int size;      // nodes, at most BIG
    bool has_rule; // calls one
} ExprNode;

typedef struct {
    char *name;
    Expr body; // -1: not defined
} BuildRule;

struct Builder {
    ExprNode *exprs;
    Expr *list;
    Buf bytes;
    BuildRule *rules;
    ByteEdge *edges;
    int *edge_start; // (n_states + 1)
    size_t n_exprs, cap_exprs, n_list, cap_list, n_rules, cap_rules, n_edges, cap_edges, n_states,
        cap_states;
    int byte_state[256]; // the state of a single byte, 0: none yet
    bool out_of_memory, too_large;
};

/* ---- expressions ----------------------------------------------------------------------------- */

static bool failed(const Builder *b)
{
    return b->out_of_memory || b->too_large;
}

/* Make room for one more; false, and the failure remembered, where there is none. */
static bool room(Builder *b, void *items, size_t n, size_t *cap, size_t size, size_t most)
{
    b->too_large = b->too_large || n > most;
    b->out_of_memory = b->out_of_memory || (!b->too_large && !mem_room(items, n, cap, size));
    return !failed(b);
}

static Expr add_expr(Builder *b, ExprNode x)
{
    if (!room(b, &b->exprs, b->n_exprs + 1, &b->cap_exprs, sizeof *b->exprs, MAX_EXPRS))
        return 0;
    b->too_large = b->too_large || x.depth > MAX_DEPTH;
    b->exprs[b->n_exprs] = x;
    return (Expr)b->n_exprs++;
}

/* Begin a state of characters; its edges follow. */
static int add_state(Builder *b, const ByteEdge *edges, size_t n)
{
    if (!room(b, &b->edges, b->n_edges + n, &b->cap_edges, sizeof *b->edges, MAX_EDGES)
        || !room(b, &b->edge_start, b->n_states + 2, &b->cap_states, sizeof *b->edge_start,
                 MAX_EDGES))
        return 0;
    if (n)
        memcpy(b->edges + b->n_edges, edges, n * sizeof *edges);
    b->n_edges += n;
    b->edge_start[0] = 0;
    b->edge_start[++b->n_states] = (int)b->n_edges;
    return (int)b->n_states - 1;
}

Builder *builder_new(void)
{
    Builder *b = mem_zalloc(1, sizeof *b);
    for (int i = 0; b && i < N_TAILS; i++)
        add_state(b, &tails[i], 1);
    return b;
}

void builder_free(Builder *b)
{
    if (!b)
        return;
    for (size_t i = 0; i < b->n_rules; i++)
        free(b->rules[i].name);
    free(b->exprs);
    free(b->list);
    buf_free(&b->bytes);
    free(b->rules);
    free(b->edges);
    free(b->edge_start);
    free(b);
}

void builder_no_memory(Builder *b)
{
    b->out_of_memory = true;
}

Expr expr_bytes(Builder *b, Str bytes)
{
    size_t at = b->bytes.len;
    b->too_large = b->too_large || bytes.len > MAX_NODES || at > INT32_MAX - MAX_NODES;
    if (failed(b))
        return 0;
    buf_add(&b->bytes, bytes.ptr, bytes.len);
    b->out_of_memory = b->out_of_memory || b->bytes.failed;
    int n = (int)bytes.len;
    return add_expr(b, (ExprNode){
                           .kind = EXPR_BYTES, .at = (int)at, .n = n, .size = n < BIG ? n : BIG});
}

/* Take a part's depth and size, `times` over, into those of the whole. */
static void add_part(const Builder *b, ExprNode *whole, Expr part, int times)
{
    const ExprNode *x = &b->exprs[part];
    int n = times < BIG ? times : BIG;
    whole->depth = whole->depth > x->depth ? whole->depth : x->depth + 1;
    whole->size += n * (x->size + 1);
    whole->size = whole->size < BIG ? whole->size : BIG;
    whole->has_rule = whole->has_rule || x->has_rule;
}

static Expr add_list(Builder *b, ExprKind kind, const Expr *items, size_t n)
{
    if (n == 1)
        return *items;
    ExprNode x = {.kind = (uint8_t)kind, .at = (int)b->n_list, .n = (int)n};
    if (failed(b) || !room(b, &b->list, b->n_list + n, &b->cap_list, sizeof *b->list, MAX_EXPRS))
        return 0;
    for (size_t i = 0; i < n; i++) {
        b->list[b->n_list++] = items[i];
        add_part(b, &x, items[i], 1);
    }
    return add_expr(b, x);
}

Expr expr_sequence(Builder *b, const Expr *items, size_t n)
{
    return add_list(b, EXPR_SEQUENCE, items, n);
}

Expr expr_choice(Builder *b, const Expr *items, size_t n)
{
    return add_list(b, EXPR_CHOICE, items, n);
}

Expr expr_repeat(Builder *b, Expr part, int min, int max)
{
    ExprNode x = {.kind = EXPR_REPEAT, .at = part, .min = min, .max = max};
    if (!failed(b))
        add_part(b, &x, part, max == REPEAT_ANY ? min + 1 : max);
    return add_expr(b, x);
}

Expr expr_optional(Builder *b, Expr x)
{
    return expr_repeat(b, x, 0, 1);
}

int builder_rule(Builder *b, Str name)
{
    if (!room(b, &b->rules, b->n_rules + 1, &b->cap_rules, sizeof *b->rules, MAX_EXPRS))
        return 0;
    char *copy = mem_alloc(name.len + 1, 1);
    b->out_of_memory = b->out_of_memory || !copy;
    if (!copy)
        return 0;
    if (name.len)
        memcpy(copy, name.ptr, name.len);
    copy[name.len] = 0;
    b->rules[b->n_rules] = (BuildRule){copy, -1};
    return (int)b->n_rules++;
}

void builder_define(Builder *b, int rule, Expr x)
{
    if (!failed(b))
        b->rules[rule].body = x;
}

Expr expr_rule(Builder *b, int rule)
{
    return add_expr(b, (ExprNode){.kind = EXPR_RULE, .at = rule, .size = 1, .has_rule = true});
}

/* ---- characters to bytes --------------------------------------------------------------------- */

enum { LAST_CHAR = 0x10ffff, FIRST_SURROGATE = 0xd800, LAST_SURROGATE = 0xdfff };

static int by_first(const void *a, const void *b)
{
    const CharRange *x = a, *y = b;
    return (x->first > y->first) - (x->first < y->first);
}

/* Append a range without the surrogates, which UTF-8 has not. */
static size_t add_range(CharRange *out, size_t n, uint32_t first, uint32_t last)
{
    uint32_t low = last < FIRST_SURROGATE ? last : FIRST_SURROGATE - 1;
    uint32_t high = first > LAST_SURROGATE ? first : LAST_SURROGATE + 1;
    if (first <= low)
        out[n++] = (CharRange){first, low};
    if (high <= last)
        out[n++] = (CharRange){high, last};
    return n;
}

/* Sort and join the ranges in place, and write them, or what is between them, to `out`, which has
 * room for 2 n + 3; how many there are. */
static size_t normalise(CharRange *r, size_t n, bool negated, CharRange *out)
{
    size_t m = 0, k = 0;
    qsort(r, n, sizeof *r, by_first);
    for (size_t i = 0; i < n; i++) {
        if (r[i].first > LAST_CHAR)
            continue;
        uint32_t last = r[i].last < LAST_CHAR ? r[i].last : LAST_CHAR;
        if (m && r[i].first <= r[m - 1].last + 1)
            r[m - 1].last = last > r[m - 1].last ? last : r[m - 1].last;
        else
            r[m++] = (CharRange){r[i].first, last};
    }
    if (!negated) {
        for (size_t i = 0; i < m; i++)
            k = add_range(out, k, r[i].first, r[i].last);
        return k;
    }
    uint32_t from = 0;
    for (size_t i = 0; i < m; i++) {
        if (r[i].first > from)
            k = add_range(out, k, from, r[i].first - 1);
        from = r[i].last + 1;
    }
    return from <= LAST_CHAR ? add_range(out, k, from, LAST_CHAR) : k;
}

/* The ranges of a set, ascending and apart. */
typedef struct {
    Builder *b;
    const CharRange *ranges;
    size_t n;
} CharSet;

/* Whether the set holds none (0), some (1) or all (2) of the characters first..last. */
static int covers(const CharSet *s, uint32_t first, uint32_t last)
{
    size_t from = 0, to = s->n; // the first range that ends at or after `first`
    while (from < to) {
        size_t middle = (from + to) / 2;
        if (s->ranges[middle].last < first)
            from = middle + 1;
        else
            to = middle;
    }
    if (from == s->n || s->ranges[from].first > last)
        return 0;
    return s->ranges[from].first <= first && s->ranges[from].last >= last ? 2 : 1;
}

/* Add an edge, as a part of the one before it where both lead to the same place. */
static size_t add_edge(ByteEdge *edges, size_t n, int byte, int next)
{
    if (n && edges[n - 1].next == next && edges[n - 1].last + 1 == byte)
        edges[n - 1].last = (uint8_t)byte;
    else
        edges[n++] = (ByteEdge){(uint8_t)byte, (uint8_t)byte, next};
    return n;
}

/* The state in which `more` bytes of a character follow, the lowest one being `base`. Those
 * below `lowest` would be overlong. */
static int tail_state(const CharSet *s, uint32_t base, int more, uint32_t lowest)
{
    ByteEdge edges[64];
    size_t n = 0;
    uint32_t size = 1u << 6 * (more - 1);
    for (int i = 0; i < 64; i++) {
        uint32_t first = base + (uint32_t)i * size, last = first + size - 1;
        if (last < lowest)
            continue;
        int some = covers(s, first < lowest ? lowest : first, last);
        if (some == 2 && first < lowest)
            some = 1;
        if (some)
            n = add_edge(edges, n, 0x80 + i,
                         more == 1   ? CHAR_DONE
                         : some == 2 ? more - 2
                                     : tail_state(s, first, more - 1, lowest));
    }
    return add_state(s->b, edges, n);
}

static int set_state(const CharSet *s)
{
    static const int n_tails[N_TAILS] = {1, 2, 3, 2, 2, 3, 3};
    static const uint32_t lowest[] = {0, 0x80, 0x800, 0x10000};
    ByteEdge edges[256];
    size_t n = 0;
    for (int i = 0; i < 0x80; i++)
        if (covers(s, (uint32_t)i, (uint32_t)i))
            n = add_edge(edges, n, i, CHAR_DONE);
    for (int k = 0; k < N_LEADS; k++)
        for (int lead = leads[k].first; lead <= leads[k].last; lead++) {
            int all = leads[k].next, more = n_tails[all];
            uint32_t base = (uint32_t)(lead & 0x3f >> more) << 6 * more,
                     size = 1u << 6 * (more - 1);
            uint32_t first = base + (tails[all].first & 0x3fu) * size;
            uint32_t last = base + (tails[all].last & 0x3fu) * size + size - 1;
            int some = covers(s, first, last);
            if (some)
                n = add_edge(edges, n, lead,
                             some == 2 ? all : tail_state(s, base, more, lowest[more]));
        }
    return add_state(s->b, edges, n);
}

Expr expr_chars(Builder *b, const CharRange *ranges, size_t n, bool negated)
{
    int state = 0;
    if (failed(b))
        return 0;
    CharRange *sorted = mem_alloc(3 * n + 3, sizeof *sorted);
    b->out_of_memory = b->out_of_memory || !sorted;
    if (sorted) {
        if (n)
            memcpy(sorted, ranges, n * sizeof *sorted);
        CharSet s = {b, sorted + n, 0};
        s.n = normalise(sorted, n, negated, sorted + n);
        state = set_state(&s);
    }
    free(sorted);
    return add_expr(b, (ExprNode){.kind = EXPR_CHARS, .at = state, .size = 1});
}

/* ---- expressions to nodes -------------------------------------------------------------------- */

typedef struct {
    Builder *b;
    Grammar *g;
    size_t cap;
    int n_steps;
} Writer;

static int add_node(Writer *w, NodeKind kind, int a, int b)
{
    Grammar *g = w->g;
    if (!room(w->b, &g->nodes, (size_t)g->n_nodes + 1, &w->cap, sizeof *g->nodes, MAX_NODES))
        return 0;
    g->nodes[g->n_nodes] = (GrammarNode){(uint8_t)kind, false, a, b, 0};
    return g->n_nodes++;
}

static int byte_state(Builder *b, uint8_t byte)
{
    if (!b->byte_state[byte])
        b->byte_state[byte] = add_state(b, &(ByteEdge){byte, byte, CHAR_DONE}, 1);
    return b->byte_state[byte];
}

static int write_expr(Writer *w, Expr expr, int next);

/* A rule's call; small ones that call nothing are written out instead. */
static int write_call(Writer *w, int rule, int next)
{
    Expr body = w->b->rules[rule].body;
    if (body >= 0 && w->b->exprs[body].size <= SMALL && !w->b->exprs[body].has_rule)
        return write_expr(w, body, next);
    return add_node(w, NODE_CALL, rule, next);
}

/* x, min to max times, then `next`. */
static int write_repeat(Writer *w, const ExprNode *x, int next)
{
    int node = next;
    if (x->max == REPEAT_ANY) {
        node = add_node(w, NODE_SPLIT, 0, next);
        int body = write_expr(w, x->at, node);
        if (!failed(w->b))
            w->g->nodes[node].a = body;
    } else {
        for (int i = x->min; i < x->max && !failed(w->b); i++)
            node = add_node(w, NODE_SPLIT, write_expr(w, x->at, node), next);
    }
    for (int i = 0; i < x->min && !failed(w->b); i++)
        node = write_expr(w, x->at, node);
    return node;
}

/* The first node of an expression after which the text goes on at `next`. */
static int write_expr(Writer *w, Expr expr, int next)
{
    Builder *b = w->b;
    b->too_large = b->too_large || ++w->n_steps > MAX_STEPS;
    if (failed(b))
        return 0;
    const ExprNode x = b->exprs[expr];
    int node = next;
    switch ((ExprKind)x.kind) {
    case EXPR_BYTES:
        for (int i = x.n; i-- > 0;)
            node = add_node(w, NODE_CHARS, byte_state(b, (uint8_t)b->bytes.ptr[x.at + i]), node);
        return node;
    case EXPR_CHARS: return add_node(w, NODE_CHARS, x.at, next);
    case EXPR_SEQUENCE:
        for (int i = x.n; i-- > 0;)
            node = write_expr(w, b->list[x.at + i], node);
        return node;
    case EXPR_CHOICE:
        node = -1;
        for (int i = x.n; i-- > 0;)
            node = add_node(w, NODE_SPLIT, write_expr(w, b->list[x.at + i], next), node);
        // a choice of nothing is a character of no set
        return node >= 0 ? node : add_node(w, NODE_CHARS, add_state(b, NULL, 0), next);
    case EXPR_REPEAT: return write_repeat(w, &x, next);
    case EXPR_RULE: return write_call(w, x.at, next);
    }
    return node;
}

/* ---- facts about nodes ----------------------------------------------------------------------- */

/* Which nodes lead to which: those of a node are users[start[node]] to users[start[node + 1]]. A
 * call counts among the users of the rule's first node. */
typedef struct {
    int *start, *users;
} Users;

/* The nodes that a fact about `node` follows from, at most two. */
static int sources(const Grammar *g, int node, int out[2])
{
    const GrammarNode *x = &g->nodes[node];
    switch ((NodeKind)x->kind) {
    case NODE_CHARS: out[0] = x->b; return 1;
    case NODE_CALL:
        out[0] = g->rules[x->a].start;
        out[1] = x->b;
        return 2;
    case NODE_SPLIT:
        out[0] = x->a;
        out[1] = x->b;
        return x->b < 0 ? 1 : 2;
    default: return 0;
    }
}

static int users_init(Users *u, const Grammar *g)
{
    size_t n = (size_t)g->n_nodes;
    u->start = mem_zalloc(n + 2, sizeof *u->start);
    u->users = mem_alloc(2 * n, sizeof *u->users);
    if (!u->start || !u->users)
        return -1;
    int from[2];
    for (int i = 0; i < g->n_nodes; i++)
        for (int k = sources(g, i, from); k-- > 0;)
            u->start[from[k] + 2]++;
    for (size_t i = 2; i < n + 2; i++)
        u->start[i] += u->start[i - 1];
    for (int i = 0; i < g->n_nodes; i++)
        for (int k = sources(g, i, from); k-- > 0;)
            u->users[u->start[from[k] + 1]++] = i;
    return 0;
}

/* Whether a fact holds of a node, given those that are known. `by_chars`: that a node can reach its
 * rule's end; else, that it can without a character. */
static bool holds(const Grammar *g, const bool *known, int node, bool by_chars)
{
    const GrammarNode *x = &g->nodes[node];
    switch ((NodeKind)x->kind) {
    case NODE_CHARS:
        return by_chars && known[x->b] && g->edge_start[x->a] < g->edge_start[x->a + 1];
    case NODE_CALL: return known[g->rules[x->a].start] && known[x->b];
    case NODE_SPLIT: return known[x->a] || (x->b >= 0 && known[x->b]);
    default: return true;
    }
}

/* All nodes of which the fact holds -> known (n_nodes). `stack` has room for as many. */
static void spread(const Grammar *g, const Users *u, bool by_chars, bool *known, int *stack)
{
    int n = 0;
    for (int i = 0; i < g->n_nodes; i++) {
        known[i] = g->nodes[i].kind == NODE_END || g->nodes[i].kind == NODE_ACCEPT;
        if (known[i])
            stack[n++] = i;
    }
    while (n) {
        int node = stack[--n];
        for (int i = u->start[node]; i < u->start[node + 1]; i++) {
            int user = u->users[i];
            if (!known[user] && holds(g, known, user, by_chars)) {
                known[user] = true;
                stack[n++] = user;
            }
        }
    }
}

/* The run of a CHARS node, those of nodes before it being known: repetitions are written backwards,
 * and only an endless one leads back to the node itself. */
static int run_of(const Grammar *g, int node)
{
    enum { STEPS = 8 };
    int stack[2 * STEPS], n = 0, longest = 0;
    stack[n++] = g->nodes[node].b;
    for (int steps = 0; n && steps < STEPS; steps++) {
        int to = stack[--n];
        const GrammarNode *x = &g->nodes[to];
        if (x->kind == NODE_SPLIT) {
            if (x->b >= 0)
                stack[n++] = x->b;
            stack[n++] = x->a;
        } else if (x->kind == NODE_CHARS && x->a == g->nodes[node].a) {
            int run = to == node ? RUN_ENDLESS : to < node && x->useful ? x->run + 1 : 1;
            longest = run > longest ? run : longest;
        }
    }
    return longest < RUN_ENDLESS ? longest : RUN_ENDLESS;
}

/* ---- the order of rules ---------------------------------------------------------------------- */

typedef struct {
    int from, to;
} RulePair;

static int by_from(const void *a, const void *b)
{
    const RulePair *x = a, *y = b;
    return x->from != y->from ? (x->from > y->from) - (x->from < y->from)
                              : (x->to > y->to) - (x->to < y->to);
}

/* Which rules each rule calls before it reads a character -> pairs, of which there are at most as
 * many as nodes. `stack` and `seen` (n_nodes) are scratch. */
static int find_pairs(const Grammar *g, const bool *nullable, RulePair *pairs, int *stack,
                      bool *seen)
{
    int n_pairs = 0;
    memset(seen, 0, (size_t)g->n_nodes);
    for (int rule = 0; rule < g->n_rules; rule++) {
        int n = 0;
        stack[n++] = g->rules[rule].start;
        while (n) {
            int node = stack[--n];
            const GrammarNode *x = &g->nodes[node];
            if (seen[node])
                continue;
            seen[node] = true;
            if (x->kind == NODE_SPLIT) {
                stack[n++] = x->a;
                if (x->b >= 0)
                    stack[n++] = x->b;
            } else if (x->kind == NODE_CALL) {
                pairs[n_pairs++] = (RulePair){rule, x->a};
                if (nullable[g->rules[x->a].start])
                    stack[n++] = x->b;
            }
        }
    }
    return n_pairs;
}

/* Number the rules so that each comes after those that call it at their beginning (Kahn). A rule
 * that is left calls itself, or is called by one that does: its number, or -1. */
static int order_rules(Grammar *g, RulePair *pairs, int n_pairs, int *n_callers, int *queue)
{
    int n = 0, order = 0;
    qsort(pairs, (size_t)n_pairs, sizeof *pairs, by_from);
    memset(n_callers, 0, (size_t)g->n_rules * sizeof *n_callers);
    for (int i = 0; i < n_pairs; i++)
        n_callers[pairs[i].to]++;
    for (int i = 0; i < g->n_rules; i++)
        if (!n_callers[i])
            queue[n++] = i;
    while (order < n) {
        int rule = queue[order], from = 0, to = n_pairs;
        g->rules[rule].order = order++;
        while (from < to) {
            int middle = (from + to) / 2;
            if (pairs[middle].from < rule)
                from = middle + 1;
            else
                to = middle;
        }
        for (; from < n_pairs && pairs[from].from == rule; from++)
            if (!--n_callers[pairs[from].to])
                queue[n++] = pairs[from].to;
    }
    for (int i = 0; i < g->n_rules && n < g->n_rules; i++)
        if (n_callers[i])
            return i;
    return -1;
}

/* A rule on a circle, from one that such a rule leads to: go back by callers that are left. */
static int rule_of_circle(const Grammar *g, const RulePair *pairs, int n_pairs,
                          const int *n_callers, int rule, int *caller)
{
    for (int i = 0; i < n_pairs; i++)
        if (n_callers[pairs[i].from])
            caller[pairs[i].to] = pairs[i].from;
    for (int i = 0; i < g->n_rules; i++)
        rule = caller[rule];
    return rule;
}

/* ---- compiling ------------------------------------------------------------------------------- */

/* Bytes between the ends of all edges are alike. */
static void find_byte_classes(Grammar *g, int n_edges)
{
    bool begins[257] = {true};
    int class = -1;
    for (int i = 0; i < n_edges; i++)
        begins[g->edges[i].first] = begins[g->edges[i].last + 1] = true;
    for (int i = 0; i < 256; i++)
        g->byte_class[i] = (uint8_t)(class += begins[i]);
    g->n_byte_classes = class + 1;
}

static int write_rules(Grammar *g, Builder *b, Err *e)
{
    Writer w = {.b = b, .g = g};
    char name[80];
    g->n_rules = (int)b->n_rules;
    g->rules = mem_zalloc(b->n_rules, sizeof *g->rules);
    b->out_of_memory = b->out_of_memory || !g->rules;
    if (!failed(b))
        add_node(&w, NODE_ACCEPT, 0, 0);
    for (int i = 0; i < (int)b->n_rules && !failed(b); i++) {
        if (b->rules[i].body < 0)
            return err_set(e, EXIT_USAGE, "rule %s is used and not defined",
                           str_escape((Str){b->rules[i].name, strlen(b->rules[i].name)}, name,
                                      sizeof name));
        g->rules[i].start = write_expr(&w, b->rules[i].body, add_node(&w, NODE_END, 0, 0));
    }
    if (b->too_large)
        return err_set(e, EXIT_USAGE,
                       "the grammar is too large: with its repetitions written out it may have %d "
                       "characters and calls, up to %d within each other",
                       MAX_NODES, MAX_DEPTH);
    if (b->out_of_memory)
        return err_set(e, EXIT_MEMORY, "out of memory for the grammar");
    g->edges = b->edges;
    g->edge_start = b->edge_start;
    g->n_states = (int)b->n_states;
    b->edges = NULL;
    b->edge_start = NULL;
    return 0;
}

/* Scratch of analyse(). */
typedef struct {
    Users users;
    bool *known, *seen;
    int *stack, *counts, *callers;
    RulePair *pairs;
} Scratch;

static int analyse(Grammar *g, const Builder *b, Scratch *s, Err *e)
{
    size_t n = (size_t)g->n_nodes;
    char name[80];
    s->known = mem_alloc(n, 1);
    s->seen = mem_alloc(n, 1);
    s->stack = mem_alloc(2 * n + 2, sizeof *s->stack);
    s->counts = mem_alloc(n, sizeof *s->counts);
    s->callers = mem_zalloc(n, sizeof *s->callers);
    s->pairs = mem_alloc(n, sizeof *s->pairs);
    if (users_init(&s->users, g) || !s->known || !s->seen || !s->stack || !s->counts || !s->callers
        || !s->pairs)
        return err_set(e, EXIT_MEMORY, "out of memory for the grammar");
    spread(g, &s->users, true, s->known, s->stack);
    for (size_t i = 0; i < n; i++)
        g->nodes[i].useful = s->known[i];
    if (!g->nodes[g->rules[g->root].start].useful)
        return err_set(e, EXIT_USAGE, "no text at all matches: the grammar never comes to an end");
    for (int i = 0; i < g->n_nodes; i++)
        if (g->nodes[i].kind == NODE_CHARS && g->nodes[i].useful)
            g->nodes[i].run = run_of(g, i);
    spread(g, &s->users, false, s->known, s->stack);
    for (int i = 0; i < g->n_rules; i++)
        g->rules[i].nullable = s->known[g->rules[i].start];
    int n_pairs = find_pairs(g, s->known, s->pairs, s->stack, s->seen);
    int left = order_rules(g, s->pairs, n_pairs, s->counts, s->stack);
    if (left < 0)
        return 0;
    left = rule_of_circle(g, s->pairs, n_pairs, s->counts, left, s->callers);
    const char *text = b->rules[left].name;
    return err_set(e, EXIT_USAGE,
                   "rule %s begins with itself (left recursion), want something before it",
                   str_escape((Str){text, strlen(text)}, name, sizeof name));
}

int grammar_compile(Grammar *g, Builder *b, int root, Err *e)
{
    Scratch s = {0};
    *g = (Grammar){.root = root};
    int n_edges = (int)b->n_edges;
    int rc = write_rules(g, b, e);
    n_edges = (int)b->n_edges > n_edges ? (int)b->n_edges : n_edges;
    rc = rc || analyse(g, b, &s, e);
    if (!rc)
        find_byte_classes(g, n_edges);
    else
        grammar_free(g);
    free(s.users.start);
    free(s.users.users);
    free(s.known);
    free(s.seen);
    free(s.stack);
    free(s.counts);
    free(s.callers);
    free(s.pairs);
    return rc ? -1 : 0;
}

void grammar_free(Grammar *g)
{
    free(g->nodes);
    free(g->edges);
    free(g->edge_start);
    free(g->rules);
    *g = (Grammar){0};
}

int grammar_char_next(const Grammar *g, int state, uint8_t byte)
{
    for (int i = g->edge_start[state]; i < g->edge_start[state + 1]; i++)
        if (byte <= g->edges[i].last)
            return byte >= g->edges[i].first ? g->edges[i].next : CHAR_NONE;
    return CHAR_NONE;
}

int grammar_utf8_next(int state, uint8_t byte)
{
    if (state == CHAR_DONE && byte < 0x80)
        return CHAR_DONE;
    for (int k = 0; k < N_LEADS && state == CHAR_DONE; k++)
        if (byte >= leads[k].first && byte <= leads[k].last)
            return leads[k].next;
    if (state != CHAR_DONE && byte >= tails[state].first && byte <= tails[state].last)
        return tails[state].next;
    return CHAR_NONE;
}

bool grammar_has_all_wide(const Grammar *g, int state)
{
    int n = g->edge_start[state + 1] - g->edge_start[state];
    const ByteEdge *x = g->edges + g->edge_start[state + 1] - N_LEADS;
    for (int k = 0; k < N_LEADS && n >= N_LEADS; k++)
        if (x[k].first != leads[k].first || x[k].last != leads[k].last
            || x[k].next != leads[k].next)
            return false;
    return n >= N_LEADS;
}
