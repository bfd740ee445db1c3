/* grammar.h - the texts that are allowed: rules over characters, which are built as expressions and
 * compiled to a graph of nodes. gbnf.c and schema.c build them, matcher.c walks the graph.
 *
 * Characters are Unicode code points; the graph is over the bytes of their UTF-8, so a text may
 * stand anywhere inside a character. Invalid UTF-8 is never matched.
 */
#ifndef GRAMMAR_H
#define GRAMMAR_H

#include "base/util.h"

/* ---- building -------------------------------------------------------------------------------- */

/* An expression of a Builder. Any number of others may hold it. */
typedef int Expr;

typedef struct {
    uint32_t first, last; // code points, both included
} CharRange;

typedef struct Builder Builder;

/* A failure (out of memory, too many expressions) is remembered and shows in grammar_compile();
 * after it expressions are meaningless but harmless. NULL when out of memory. */
Builder *builder_new(void);
void builder_free(Builder *b);      // NULL is fine
void builder_no_memory(Builder *b); // remember that its user had none

Expr expr_bytes(Builder *b, Str bytes); // exactly these; none match the empty text

/* One character of n ranges in any order, or one of no range. */
Expr expr_chars(Builder *b, const CharRange *ranges, size_t n, bool negated);

Expr expr_sequence(Builder *b, const Expr *items, size_t n);
Expr expr_choice(Builder *b, const Expr *items, size_t n); // of none: matches nothing

enum { REPEAT_ANY = -1 };
Expr expr_repeat(Builder *b, Expr x, int min, int max); // max may be REPEAT_ANY
Expr expr_optional(Builder *b, Expr x);

/* A new rule without a meaning; its number. The name (for messages) is copied. */
int builder_rule(Builder *b, Str name);
void builder_define(Builder *b, int rule, Expr x); // the last definition counts
Expr expr_rule(Builder *b, int rule);

/* ---- compiled -------------------------------------------------------------------------------- */

typedef enum {
    NODE_CHARS, // a character of the set `a`, then node b
    NODE_CALL,  // the rule a, then node b
    NODE_SPLIT, // node a, or node b where that is not -1
    NODE_END,   // the end of the rule
    NODE_ACCEPT // the end of the text: node 0
} NodeKind;

typedef struct {
    uint8_t kind;
    bool useful; // whether the end of its rule can be reached from here
    int a, b;
    int run; // of CHARS: at least so many more characters of the set may follow each other here
} GrammarNode;

/* A set of characters is a small automaton over bytes: state s has the edges edge_start[s] to
 * edge_start[s + 1], in ascending order. */
enum { CHAR_DONE = -1, CHAR_NONE = -2, RUN_ENDLESS = 1 << 30 };
typedef struct {
    uint8_t first, last;
    int next; // state, or CHAR_DONE: the character is complete
} ByteEdge;

typedef struct {
    int start; // node
    int order; // a rule is called, before any byte of it is read, only by rules of lower order
    bool nullable;
} GrammarRule;

/* Immutable; any number of threads may share it. */
typedef struct {
    GrammarNode *nodes;
    ByteEdge *edges;
    int *edge_start;
    GrammarRule *rules;
    int n_nodes, n_states, n_rules;
    int root;                // rule
    uint8_t byte_class[256]; // bytes of one class lead to the same state everywhere
    int n_byte_classes;
} Grammar;

/* Compile what was built, with `root` as the whole text. -1 and an Err (EXIT_USAGE or EXIT_MEMORY):
 * the grammar is too large, a rule has no definition or begins with itself, or no text matches.
 * *g is then zeroed. */
int grammar_compile(Grammar *g, Builder *b, int root, Err *e);
void grammar_free(Grammar *g); // a zeroed one is fine

/* Where a byte leads in a character: a state, CHAR_DONE or CHAR_NONE. */
int grammar_char_next(const Grammar *g, int state, uint8_t byte);

/* The same in the set of all characters, whose states are 0 to N_UTF8_STATES - 1 in every grammar;
 * CHAR_DONE stands between two characters. */
enum { N_UTF8_STATES = 7 };
int grammar_utf8_next(int state, uint8_t byte);

/* Whether a set of characters, by its first state, has all that are not ASCII. */
bool grammar_has_all_wide(const Grammar *g, int state);

#endif
