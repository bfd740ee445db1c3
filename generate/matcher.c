/* matcher.c - states of a grammar and masks; the contracts are in matcher.h.
 *
 * What follows a rule's end is a frame: a set of (node, frame) pairs, the places from which the
 * rule was called while the text stood there. Calls of a rule at one place of the text share its
 * frame, so that ambiguous grammars do not multiply (a graph-structured stack, Tomita 1985), and a
 * call at the end of a rule passes on its own frame, so that lists do not grow it. Frames and
 * states that are equal are one (interned): a text that comes back to a place finds its mask there.
 */
#include "generate/matcher.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAX_WORK = 3 * 1000 * 1000, // places looked at for one mask
    MAX_BYTES = 64 << 20,       // kept, beyond what is in use
    NO_STATE = 0,               // no text goes on here
    UNKNOWN = -1                // where a byte leads is not worked out
};

/* ---- the vocabulary -------------------------------------------------------------------------- */

/* A node of the tree, in the order of a walk that visits a node before those below it. */
typedef struct {
    int skip;          // the first node that is not below this one
    int token_end;     // tokens up to here begin like this node or come before it
    uint16_t depth;    // bytes, from 1
    uint8_t byte;      // the last of them
    uint16_t height;   // bytes that follow at most
    bool wide;         // some of these are not ASCII
    uint8_t utf8;      // bits of the UTF-8 states in which all that is below is valid, bit 7 being
                       // between two characters
    uint64_t below[2]; // bits of those that are
} TreeNode;

struct TokenTree {
    const Tokenizer *tokenizer;
    TreeNode *nodes;
    int *tokens; // in the order of their bytes
    int n_nodes, n_tokens, vocab_size, max_depth;
    uint64_t *ends; // bits of the tokens that end a text
};

typedef struct {
    uint64_t key; // the first bytes, to compare
    const char *ptr;
    size_t len;
    int id;
} TokenBytes;

static int by_bytes(const void *a, const void *b)
{
    const TokenBytes *x = a, *y = b;
    if (x->key != y->key)
        return x->key > y->key ? 1 : -1;
    int c = str_cmp((Str){x->ptr, x->len}, (Str){y->ptr, y->len});
    return c ? c : (x->id > y->id) - (x->id < y->id);
}

/* The bytes of all tokens that can continue a text -> list, sorted, as views of *bytes; how many.
 */
static int read_tokens(TokenTree *t, TokenBytes *list, Buf *bytes)
{
    int n = 0;
    for (int id = 0; id < t->vocab_size; id++) {
        size_t at = bytes->len;
        if (tokenizer_is_end(t->tokenizer, id)) {
            t->ends[id / 64] |= (uint64_t)1 << id % 64;
            continue;
        }
        tokenizer_bytes(t->tokenizer, id, false, bytes);
        if (bytes->len > at && bytes->len - at < UINT16_MAX)
            list[n++] = (TokenBytes){.len = bytes->len - at, .id = id};
        else
            bytes->len = at;
    }
    const char *p = bytes->ptr;
    for (int i = 0; i < n; p += list[i++].len) {
        list[i].ptr = p;
        for (size_t k = 0; k < 8; k++)
            list[i].key = list[i].key << 8 | (k < list[i].len ? (uint8_t)p[k] : 0);
    }
    qsort(list, (size_t)n, sizeof *list, by_bytes);
    return n;
}

/* Close the node at `number`, which has no more nodes below it, and tell the one above it. */
static void close_node(TokenTree *t, int number, int above)
{
    TreeNode *x = &t->nodes[number], *y = &t->nodes[above];
    x->skip = t->n_nodes;
    if (above == number)
        return;
    y->height = y->height > x->height ? y->height : x->height + 1;
    for (int i = 0; i <= N_UTF8_STATES; i++) {
        int next = grammar_utf8_next(i < N_UTF8_STATES ? i : CHAR_DONE, x->byte);
        int bit = next == CHAR_DONE ? N_UTF8_STATES : next;
        if (next == CHAR_NONE || !(x->utf8 >> bit & 1))
            y->utf8 &= (uint8_t)~(1 << i);
    }
    y->wide = y->wide || x->wide || x->byte >= 0x80;
    y->below[0] |= x->below[0];
    y->below[1] |= x->below[1];
    if (x->byte < 0x80)
        y->below[x->byte / 64] |= (uint64_t)1 << x->byte % 64;
}

/* The tree of a sorted list. `open` (max_depth) holds the nodes above the present one. */
static void plant(TokenTree *t, const TokenBytes *list, int *open)
{
    size_t depth = 0;
    for (int i = 0; i < t->n_tokens; i++) {
        const TokenBytes *token = &list[i];
        size_t common = 0;
        while (common < depth && common < token->len
               && t->nodes[open[common]].byte == (uint8_t)token->ptr[common])
            common++;
        for (; depth > common; depth--)
            close_node(t, open[depth - 1], open[depth > 1 ? depth - 2 : 0]);
        for (; depth < token->len; depth++) {
            open[depth] = t->n_nodes;
            t->nodes[t->n_nodes++] = (TreeNode){.token_end = i,
                                                .depth = (uint16_t)(depth + 1),
                                                .byte = (uint8_t)token->ptr[depth],
                                                .utf8 = 0xff};
        }
        t->nodes[open[depth - 1]].token_end = i + 1;
        t->tokens[i] = token->id;
    }
    for (; depth; depth--)
        close_node(t, open[depth - 1], open[depth > 1 ? depth - 2 : 0]);
}

TokenTree *token_tree_new(const Tokenizer *tokenizer, Err *e)
{
    TokenTree *t = mem_zalloc(1, sizeof *t);
    size_t n = (size_t)tokenizer_vocab_size(tokenizer), longest = 0;
    Buf bytes = {0};
    TokenBytes *list = mem_alloc(n, sizeof *list);
    int *open = NULL;
    bool fine = t && list;
    if (fine) {
        t->tokenizer = tokenizer;
        t->vocab_size = (int)n;
        t->ends = mem_zalloc(n / 64 + 1, sizeof *t->ends);
        fine = t->ends != NULL;
    }
    if (fine) {
        t->n_tokens = read_tokens(t, list, &bytes);
        for (int i = 0; i < t->n_tokens; i++)
            longest = list[i].len > longest ? list[i].len : longest;
        t->max_depth = (int)longest;
        t->nodes = mem_alloc(bytes.len, sizeof *t->nodes);
        t->tokens = mem_alloc((size_t)t->n_tokens, sizeof *t->tokens);
        open = mem_alloc(longest, sizeof *open);
        fine = t->nodes && t->tokens && open && !bytes.failed;
    }
    if (fine) {
        plant(t, list, open);
        TreeNode *less = mem_grow(t->nodes, (size_t)t->n_nodes, sizeof *less);
        t->nodes = less ? less : t->nodes;
    } else {
        token_tree_free(t);
        t = NULL;
        err_set(e, EXIT_MEMORY, "out of memory for the grammar");
    }
    free(open);
    free(list);
    buf_free(&bytes);
    return t;
}

void token_tree_free(TokenTree *t)
{
    if (!t)
        return;
    free(t->nodes);
    free(t->tokens);
    free(t->ends);
    free(t);
}

/* ---- interning ------------------------------------------------------------------------------- */

/* Equal byte strings get one number. Numbers of entries that were freed are used again. */
typedef struct {
    void *bytes;
    uint32_t len, hash;
    bool used, marked;
} Entry;

typedef struct {
    Entry *entries;
    int *table; // (n_table, a power of two) numbers by hash, -1: none
    size_t n, cap, n_used, n_table;
    int first_free; // the search for a free entry begins here
} Pool;

static uint32_t hash_bytes(const void *bytes, size_t len)
{
    uint64_t h = 0xcbf29ce484222325u ^ len;
    const char *p = bytes;
    for (size_t i = 0; i + 4 <= len; i += 4) { // entries are made of ints
        uint32_t word;
        memcpy(&word, p + i, 4);
        h = (h ^ word) * 0x9e3779b97f4a7c15u;
        h ^= h >> 29;
    }
    return (uint32_t)(h ^ h >> 32);
}

static void pool_enter(Pool *p, int number)
{
    size_t at = p->entries[number].hash & (p->n_table - 1);
    while (p->table[at] >= 0)
        at = (at + 1) & (p->n_table - 1);
    p->table[at] = number;
}

/* Fill the table anew, a larger one where it is more than half full. */
static bool pool_rehash(Pool *p)
{
    size_t n = p->n_table;
    if (2 * (p->n_used + 1) > n) {
        n = n ? 4 * n : 64;
        int *table = mem_grow(p->table, n, sizeof *table);
        if (!table)
            return false;
        p->table = table;
        p->n_table = n;
    }
    memset(p->table, 0xff, n * sizeof *p->table); // -1
    for (size_t i = 0; i < p->n; i++)
        if (p->entries[i].used)
            pool_enter(p, (int)i);
    return true;
}

/* The number of these bytes; *is_new where they had none. -1 when out of memory. */
static int pool_intern(Pool *p, const void *bytes, size_t len, bool *is_new)
{
    uint32_t hash = hash_bytes(bytes, len);
    *is_new = false;
    if (2 * (p->n_used + 1) > p->n_table && !pool_rehash(p))
        return -1;
    for (size_t at = hash & (p->n_table - 1); p->table[at] >= 0; at = (at + 1) & (p->n_table - 1)) {
        const Entry *x = &p->entries[p->table[at]];
        if (x->hash == hash && x->len == len && !memcmp(x->bytes, bytes, len))
            return p->table[at];
    }
    while ((size_t)p->first_free < p->n && p->entries[p->first_free].used)
        p->first_free++;
    void *copy = mem_alloc(len, 1);
    if (!copy || !mem_room(&p->entries, (size_t)p->first_free + 1, &p->cap, sizeof *p->entries)) {
        free(copy);
        return -1;
    }
    if (len)
        memcpy(copy, bytes, len);
    int number = p->first_free++;
    p->n = (size_t)number < p->n ? p->n : (size_t)number + 1;
    p->entries[number] = (Entry){copy, (uint32_t)len, hash, true, false};
    p->n_used++;
    pool_enter(p, number);
    *is_new = true;
    return number;
}

/* Free what is not marked, and unmark the rest. */
static void pool_sweep(Pool *p)
{
    for (size_t i = 0; i < p->n; i++) {
        Entry *x = &p->entries[i];
        if (x->used && !x->marked) {
            free(x->bytes);
            *x = (Entry){0};
            p->n_used--;
            p->first_free = (int)i < p->first_free ? (int)i : p->first_free;
        }
        x->marked = false;
    }
    pool_rehash(p);
}

static void pool_free(Pool *p)
{
    for (size_t i = 0; i < p->n; i++)
        free(p->entries[i].bytes);
    free(p->entries);
    free(p->table);
}

/* ---- the matcher ----------------------------------------------------------------------------- */

/* An entry of a frame: where the text goes on after a rule, and the frame there. */
typedef struct {
    int node, frame;
} Return;

/* An entry of a state: a node, its frame, and the state in its set of characters. The place
 * {0, 0, 0} says that the text may end. */
typedef struct {
    int node, frame, at;
} Place;

/* What is kept of a state beside its places. */
typedef struct {
    int *next;         // (n_byte_classes) states, NULL: none is known
    uint64_t *mask;    // (vocabulary) bits of the tokens that may follow, NULL: not known
    int n_tokens;      // that many
    int run;           // so many characters of one set may follow each other
    bool all_wide;     // it has all that are not ASCII
    uint64_t chars[2]; // its ASCII characters
    int users;         // that hold it
} State;

/* A call that waits until all calls of its rule are known. */
typedef struct {
    int order, rule;
    Return back;
} Call;

struct Matcher {
    const Grammar *g;
    const TokenTree *tree;
    Pool frames, states;
    State *info; // of the states
    size_t cap_info, bytes_kept, max_kept, n_work;
    bool out_of_memory;
    int begin;
    atomic_flag busy;
    int *walk; // (max_depth + 1) states on the way to a node of the tree
    /* scratch of one step */
    Return *stack, *seen, *backs;
    Place *places;
    Call *calls; // a heap, the lowest order first
    int *stamps; // of `seen`
    size_t n_stack, cap_stack, n_seen, cap_seen, cap_backs, n_places, cap_places, n_calls,
        cap_calls;
    int stamp;
};

static void lock(Matcher *m)
{
    while (atomic_flag_test_and_set_explicit(&m->busy, memory_order_acquire))
        ;
}

static void unlock(Matcher *m)
{
    atomic_flag_clear_explicit(&m->busy, memory_order_release);
}

static bool is_ruined(const Matcher *m)
{
    return m->out_of_memory || m->n_work > MAX_WORK;
}

static int report(const Matcher *m, Err *e)
{
    return m->out_of_memory
             ? err_set(e, EXIT_MEMORY, "out of memory for the grammar")
             : err_set(e, EXIT_USAGE,
                       "the grammar is too ambiguous or too wide: more than %d places are looked "
                       "at for one token",
                       MAX_WORK);
}

/* ---- one step -------------------------------------------------------------------------------- */

static void push(Matcher *m, int node, int frame)
{
    if (!m->g->nodes[node].useful)
        return;
    m->n_work++;
    m->out_of_memory = m->out_of_memory
                    || !mem_room(&m->stack, m->n_stack + 1, &m->cap_stack, sizeof *m->stack);
    if (!m->out_of_memory)
        m->stack[m->n_stack++] = (Return){node, frame};
}

static void add_place(Matcher *m, Place x)
{
    m->n_work++;
    m->out_of_memory = m->out_of_memory
                    || !mem_room(&m->places, m->n_places + 1, &m->cap_places, sizeof *m->places);
    if (!m->out_of_memory)
        m->places[m->n_places++] = x;
}

/* Where a pair is in `seen`, or the free place for it. */
static size_t find_seen(const Matcher *m, Return x)
{
    uint32_t hash = (uint32_t)x.node * 0x9e3779b9u ^ (uint32_t)x.frame * 0x85ebca6bu;
    size_t at = (hash ^ hash >> 15) & (m->cap_seen - 1);
    while (m->stamps[at] == m->stamp
           && (m->seen[at].node != x.node || m->seen[at].frame != x.frame))
        at = (at + 1) & (m->cap_seen - 1);
    return at;
}

static bool grow_seen(Matcher *m)
{
    size_t old = m->cap_seen, n = old ? 4 * old : 64;
    Return *seen = m->seen;
    int *stamps = m->stamps;
    m->seen = mem_alloc(n, sizeof *seen);
    m->stamps = mem_zalloc(n, sizeof *stamps);
    m->cap_seen = m->seen && m->stamps ? n : 0;
    for (size_t i = 0; i < old && m->cap_seen; i++)
        if (stamps[i] == m->stamp) {
            size_t at = find_seen(m, seen[i]);
            m->seen[at] = seen[i];
            m->stamps[at] = m->stamp;
        }
    free(seen);
    free(stamps);
    return m->cap_seen != 0;
}

/* Whether this was seen in the present step; it is now. */
static bool see(Matcher *m, Return x)
{
    if (2 * (m->n_seen + 1) > m->cap_seen && !grow_seen(m)) {
        m->out_of_memory = true;
        return true;
    }
    size_t at = find_seen(m, x);
    if (m->stamps[at] == m->stamp)
        return true;
    m->seen[at] = x;
    m->stamps[at] = m->stamp;
    m->n_seen++;
    return false;
}

static void add_call(Matcher *m, Call x)
{
    m->n_work++;
    m->out_of_memory = m->out_of_memory
                    || !mem_room(&m->calls, m->n_calls + 1, &m->cap_calls, sizeof *m->calls);
    if (m->out_of_memory)
        return;
    size_t i = m->n_calls++;
    for (; i && m->calls[(i - 1) / 2].order > x.order; i = (i - 1) / 2)
        m->calls[i] = m->calls[(i - 1) / 2];
    m->calls[i] = x;
}

static Call take_call(Matcher *m)
{
    Call first = m->calls[0], last = m->calls[--m->n_calls];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < m->n_calls; i = child) {
        if (child + 1 < m->n_calls && m->calls[child + 1].order < m->calls[child].order)
            child++;
        if (m->calls[child].order >= last.order)
            break;
        m->calls[i] = m->calls[child];
    }
    m->calls[i] = last;
    return first;
}

static const Return *frame_returns(const Matcher *m, int frame, size_t *n)
{
    *n = m->frames.entries[frame].len / sizeof(Return);
    return m->frames.entries[frame].bytes;
}

/* Wait for the rule of a call, which is returned from to `back`. */
static void call_rule(Matcher *m, int rule, Return back)
{
    const GrammarRule *r = &m->g->rules[rule];
    if (m->g->nodes[back.node].kind == NODE_END) { // nothing is left to do there
        size_t n;
        const Return *returns = frame_returns(m, back.frame, &n);
        for (size_t i = 0; i < n; i++)
            add_call(m, (Call){r->order, rule, returns[i]});
    } else {
        add_call(m, (Call){r->order, rule, back});
    }
    if (r->nullable)
        push(m, back.node, back.frame);
}

/* Follow all that needs no character from the pairs on the stack. */
static void follow(Matcher *m)
{
    const Grammar *g = m->g;
    while (m->n_stack && !is_ruined(m)) {
        Return x = m->stack[--m->n_stack];
        const GrammarNode *node = &g->nodes[x.node];
        size_t n;
        if (see(m, x))
            continue;
        switch ((NodeKind)node->kind) {
        case NODE_CHARS: add_place(m, (Place){x.node, x.frame, node->a}); break;
        case NODE_CALL: call_rule(m, node->a, (Return){node->b, x.frame}); break;
        case NODE_SPLIT:
            push(m, node->a, x.frame);
            if (node->b >= 0)
                push(m, node->b, x.frame);
            break;
        case NODE_END:
            for (const Return *r = frame_returns(m, x.frame, &n); n-- > 0; r++)
                push(m, r->node, r->frame);
            break;
        case NODE_ACCEPT: add_place(m, (Place){0, 0, 0}); break;
        }
    }
}

static int by_return(const void *a, const void *b)
{
    const Return *x = a, *y = b;
    return x->node != y->node ? (x->node > y->node) - (x->node < y->node)
                              : (x->frame > y->frame) - (x->frame < y->frame);
}

static int by_place(const void *a, const void *b)
{
    const Place *x = a, *y = b;
    int c = by_return(&(Return){x->node, x->frame}, &(Return){y->node, y->frame});
    return c ? c : (x->at > y->at) - (x->at < y->at);
}

/* Sort and drop what is there twice; how many are left. */
static size_t sort_unique(void *items, size_t n, size_t size,
                          int (*compare)(const void *, const void *))
{
    char *p = items;
    size_t kept = 0, sorted = 1;
    while (sorted < n && compare(p + (sorted - 1) * size, p + sorted * size) < 0)
        sorted++;
    if (sorted >= n) // often
        return n;
    qsort(items, n, size, compare);
    for (size_t i = 0; i < n; i++)
        if (!kept || compare(p + (kept - 1) * size, p + i * size))
            memmove(p + kept++ * size, p + i * size, size);
    return kept;
}

/* Enter the rule of the lowest order that is called, with all its calls at once. */
static void enter_rule(Matcher *m)
{
    size_t n = 0;
    bool is_new;
    int rule = m->calls[0].rule, order = m->calls[0].order;
    while (m->n_calls && m->calls[0].order == order) {
        Call x = take_call(m);
        m->out_of_memory = m->out_of_memory
                        || !mem_room(&m->backs, n + 1, &m->cap_backs, sizeof *m->backs);
        if (m->out_of_memory)
            return;
        m->backs[n++] = x.back;
    }
    n = sort_unique(m->backs, n, sizeof *m->backs, by_return);
    int frame = pool_intern(&m->frames, m->backs, n * sizeof *m->backs, &is_new);
    m->out_of_memory = m->out_of_memory || frame < 0;
    if (m->out_of_memory)
        return;
    if (is_new)
        m->bytes_kept += n * sizeof *m->backs + sizeof(Entry);
    push(m, m->g->rules[rule].start, frame);
}

static void begin_step(Matcher *m)
{
    m->n_stack = m->n_places = m->n_calls = m->n_seen = 0;
    if (++m->stamp == INT32_MAX) {
        if (m->cap_seen)
            memset(m->stamps, 0, m->cap_seen * sizeof *m->stamps);
        m->stamp = 1;
    }
}

/* The longest run that a state has, and its characters. */
static void find_run(const Matcher *m, int state, State *s)
{
    const Grammar *g = m->g;
    const Place *x = m->states.entries[state].bytes, *best = NULL;
    for (size_t n = m->states.entries[state].len / sizeof *x; n-- > 0; x++)
        if (x->node && x->at == g->nodes[x->node].a
            && (!best || g->nodes[x->node].run > g->nodes[best->node].run))
            best = x;
    if (!best)
        return;
    s->run = g->nodes[best->node].run + 1;
    s->all_wide = grammar_has_all_wide(g, best->at);
    for (int i = g->edge_start[best->at]; i < g->edge_start[best->at + 1]; i++)
        for (int byte = g->edges[i].first; byte <= g->edges[i].last && byte < 0x80; byte++)
            s->chars[byte / 64] |= (uint64_t)1 << byte % 64;
}

/* The state of what was pushed; NO_STATE also where the matcher is ruined. */
static int end_step(Matcher *m)
{
    bool is_new;
    follow(m);
    while (m->n_calls && !is_ruined(m)) {
        enter_rule(m);
        follow(m);
    }
    if (is_ruined(m))
        return NO_STATE;
    m->n_places = sort_unique(m->places, m->n_places, sizeof *m->places, by_place);
    size_t len = m->n_places * sizeof *m->places;
    bool fine = mem_room(&m->info, m->states.n + 1, &m->cap_info, sizeof *m->info);
    int state = fine ? pool_intern(&m->states, m->places, len, &is_new) : -1;
    if (state < 0) {
        m->out_of_memory = true;
        return NO_STATE;
    }
    if (is_new) {
        m->info[state] = (State){0};
        find_run(m, state, &m->info[state]);
        m->bytes_kept += len + sizeof(Entry) + sizeof(State);
    }
    return state;
}

static int work_out_step(Matcher *m, int state, uint8_t byte)
{
    const Place *x = m->states.entries[state].bytes;
    size_t n = m->states.entries[state].len / sizeof *x;
    begin_step(m);
    for (m->n_work += n; n-- > 0; x++) {
        if (!x->node)
            continue;
        int at = grammar_char_next(m->g, x->at, byte);
        if (at >= 0)
            add_place(m, (Place){x->node, x->frame, at});
        else if (at == CHAR_DONE)
            push(m, m->g->nodes[x->node].b, x->frame);
    }
    return end_step(m);
}

/* Where a byte leads. */
static inline int step(Matcher *m, int state, uint8_t byte)
{
    int class = m->g->byte_class[byte];
    size_t n = (size_t)m->g->n_byte_classes;
    int *next = m->info[state].next;
    if (next && next[class] != UNKNOWN)
        return next[class];
    if (!next) {
        next = m->info[state].next = mem_alloc(n, sizeof *next);
        m->out_of_memory = m->out_of_memory || !next;
        if (!next)
            return NO_STATE;
        memset(next, 0xff, n * sizeof *next); // UNKNOWN
        m->bytes_kept += n * sizeof *next;
    }
    int to = work_out_step(m, state, byte);
    if (!is_ruined(m))
        m->info[state].next[class] = to;
    return to;
}

/* ---- keeping within bounds ------------------------------------------------------------------- */

static void forget(State *s)
{
    free(s->next);
    free(s->mask);
    s->next = NULL;
    s->mask = NULL;
}

/* Mark a frame and all below it. */
static void mark_frame(Matcher *m, int frame)
{
    m->n_stack = 0;
    for (push(m, 0, frame); m->n_stack;) {
        int x = m->stack[--m->n_stack].frame;
        size_t n;
        if (m->frames.entries[x].marked)
            continue;
        m->frames.entries[x].marked = true;
        for (const Return *r = frame_returns(m, x, &n); n-- > 0; r++)
            if (!m->frames.entries[r->frame].marked)
                push(m, 0, r->frame);
    }
}

/* Where too much is kept: forget all but the states that are held and n more. */
static void collect(Matcher *m, const int *more, size_t n)
{
    if (m->bytes_kept <= m->max_kept)
        return;
    size_t work = m->n_work;
    for (size_t i = 0; i < n; i++)
        m->states.entries[more[i]].marked = true;
    m->states.entries[NO_STATE].marked = m->states.entries[m->begin].marked = true;
    mark_frame(m, 0);
    m->bytes_kept = 0;
    for (size_t i = 0; i < m->states.n; i++) {
        Entry *s = &m->states.entries[i];
        if (!s->used)
            continue;
        forget(&m->info[i]);
        s->marked = s->marked || m->info[i].users;
        const Place *x = s->bytes;
        for (size_t k = s->marked ? s->len / sizeof *x : 0; k-- > 0; x++)
            mark_frame(m, x->frame);
        m->bytes_kept += s->marked ? s->len + sizeof(Entry) + sizeof(State) : 0;
    }
    if (m->out_of_memory) // marks may be missing: keep all
        return;
    pool_sweep(&m->states);
    pool_sweep(&m->frames);
    for (size_t i = 0; i < m->frames.n; i++)
        m->bytes_kept += m->frames.entries[i].len + sizeof(Entry);
    m->max_kept = m->bytes_kept + MAX_BYTES;
    m->n_work = work;
}

/* ---- masks ----------------------------------------------------------------------------------- */

/* Whether a state allows all tokens below a node of the tree. */
static bool allows_all(const State *s, const TreeNode *x)
{
    bool wide = !x->wide || (s->all_wide && x->utf8 >> N_UTF8_STATES);
    return s->run >= x->height && wide && !(x->below[0] & ~s->chars[0])
        && !(x->below[1] & ~s->chars[1]);
}

/* The bits of the tokens that may follow a state -> its mask. */
static void work_out_mask(Matcher *m, int state)
{
    const TokenTree *t = m->tree;
    size_t n_words = (size_t)t->vocab_size / 64 + 1;
    uint64_t *mask = mem_zalloc(n_words, sizeof *mask);
    int n = 0;
    m->out_of_memory = m->out_of_memory || !mask;
    m->walk[0] = state;
    for (int i = 0; i < t->n_nodes && !is_ruined(m);) {
        const TreeNode *x = &t->nodes[i];
        if (m->bytes_kept > m->max_kept)
            collect(m, m->walk, x->depth);
        int to = step(m, m->walk[x->depth - 1], x->byte);
        m->walk[x->depth] = to;
        if (to == NO_STATE) {
            i = x->skip;
            continue;
        }
        int after = allows_all(&m->info[to], x) ? x->skip : i + 1;
        int k = i ? t->nodes[i - 1].token_end : 0, end = t->nodes[after - 1].token_end;
        for (n += end - k; k < end; k++)
            mask[t->tokens[k] / 64] |= (uint64_t)1 << t->tokens[k] % 64;
        i = after;
    }
    if (is_ruined(m)) {
        free(mask);
        return;
    }
    m->info[state].mask = mask;
    m->info[state].n_tokens = n;
    m->bytes_kept += n_words * sizeof *mask;
}

static bool accepts(const Matcher *m, int state)
{
    const Place *x = m->states.entries[state].bytes;
    return m->states.entries[state].len && !x->node; // the places are sorted
}

/* Leave the logits of the tokens in `mask`, and in `ends` if that is not NULL; the vocabulary has
 * n_vocab tokens, the model n of them, or some more that are none. */
static void apply(const uint64_t *mask, const uint64_t *ends, int n_vocab, float *logits, int n)
{
    for (int i = 0; i < n; i += 64) {
        uint64_t bits = i <= n_vocab ? mask[i / 64] | (ends ? ends[i / 64] : 0) : 0;
        if (!~bits && i + 64 <= n)
            continue;
        if (!bits && i + 64 <= n) {
            for (int k = 0; k < 64; k++)
                logits[i + k] = -INFINITY;
            continue;
        }
        for (int k = 0; k < 64 && i + k < n; k++)
            logits[i + k] = bits >> k & 1 ? logits[i + k] : -INFINITY;
    }
}

int matcher_mask(Matcher *m, MatchState state, bool may_end, float *logits, int n, Err *e)
{
    lock(m);
    m->n_work = 0;
    if (!m->info[state].mask)
        work_out_mask(m, state);
    const State *s = &m->info[state];
    int rc = s->mask ? s->n_tokens : report(m, e);
    if (s->mask)
        apply(s->mask, may_end && accepts(m, state) ? m->tree->ends : NULL, m->tree->vocab_size,
              logits, n);
    unlock(m);
    return rc;
}

/* ---- states of texts ------------------------------------------------------------------------- */

void matcher_hold(Matcher *m, MatchState state)
{
    lock(m);
    m->info[state].users++;
    unlock(m);
}

MatchState matcher_begin(Matcher *m)
{
    matcher_hold(m, m->begin);
    return m->begin;
}

void matcher_let_go(Matcher *m, MatchState state)
{
    lock(m);
    m->info[state].users--;
    unlock(m);
}

bool matcher_accepts(Matcher *m, MatchState state)
{
    lock(m);
    bool yes = accepts(m, state);
    unlock(m);
    return yes;
}

bool matcher_is_over(Matcher *m, MatchState state)
{
    lock(m);
    bool yes = accepts(m, state) && m->states.entries[state].len == sizeof(Place);
    unlock(m);
    return yes;
}

int matcher_bytes(Matcher *m, MatchState *state, Str bytes, Err *e)
{
    int at = *state, rc = 1;
    lock(m);
    m->n_work = 0;
    for (size_t i = 0; i < bytes.len && at != NO_STATE; i++) {
        collect(m, &at, 1);
        at = step(m, at, (uint8_t)bytes.ptr[i]);
    }
    if (is_ruined(m)) {
        rc = report(m, e);
    } else if (at == NO_STATE) {
        rc = 0;
    } else {
        m->info[at].users++;
        m->info[*state].users--;
        *state = at;
    }
    unlock(m);
    return rc;
}

int matcher_token(Matcher *m, MatchState *state, int id, Err *e)
{
    Buf bytes = {0};
    tokenizer_bytes(m->tree->tokenizer, id, false, &bytes);
    int rc = bytes.failed ? err_set(e, EXIT_MEMORY, "out of memory for the grammar")
                          : matcher_bytes(m, state, (Str){bytes.ptr, bytes.len}, e);
    buf_free(&bytes);
    return rc;
}

Matcher *matcher_new(const Grammar *g, const TokenTree *t, Err *e)
{
    Matcher *m = mem_zalloc(1, sizeof *m);
    bool is_new;
    if (m) {
        atomic_flag_clear(&m->busy);
        m->g = g;
        m->tree = t;
        m->max_kept = MAX_BYTES;
        m->walk = mem_alloc(t ? (size_t)t->max_depth + 1 : 1, sizeof *m->walk);
        m->out_of_memory = !m->walk;
        begin_step(m);
        end_step(m); // NO_STATE
        int bottom = pool_intern(&m->frames, &(Return){0, 0}, sizeof(Return), &is_new);
        m->out_of_memory = m->out_of_memory || bottom < 0;
        begin_step(m);
        if (!m->out_of_memory)
            push(m, g->rules[g->root].start, bottom);
        m->begin = end_step(m);
    }
    if (m && !is_ruined(m))
        return m;
    if (m)
        report(m, e);
    else
        err_set(e, EXIT_MEMORY, "out of memory for the grammar");
    matcher_free(m);
    return NULL;
}

void matcher_free(Matcher *m)
{
    if (!m)
        return;
    for (size_t i = 0; i < m->states.n; i++)
        forget(&m->info[i]);
    pool_free(&m->frames);
    pool_free(&m->states);
    free(m->info);
    free(m->walk);
    free(m->stack);
    free(m->seen);
    free(m->backs);
    free(m->places);
    free(m->calls);
    free(m->stamps);
    free(m);
}
