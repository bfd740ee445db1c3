/* template_parse.h - the text of a chat template to a tree: the syntax of Jinja, with blocks
 * trimmed and stripped as transformers asks for it. What would reach other templates (include,
 * import, extends, block) and autoescape are refused by name. */
#ifndef TEMPLATE_PARSE_H
#define TEMPLATE_PARSE_H

#include "text/value.h"

typedef enum {
    // expressions: what a, b, c and list are
    N_CONST, // value
    N_NAME,  // name
    N_LIST,  // list
    N_TUPLE,
    N_DICT,      // list: a key and a value each
    N_ATTRIBUTE, // a.value
    N_ITEM,      // a[b]
    N_SLICE,     // a:b:c, each may be NULL
    N_CALL,      // a(arguments)
    N_FILTER,    // a|name(arguments); a is NULL in front of a block
    N_TEST,      // a is name(arguments)
    N_NOT,
    N_NEGATIVE,
    N_POSITIVE,
    N_ADD, // a + b and so on
    N_SUBTRACT,
    N_MULTIPLY,
    N_DIVIDE,
    N_FLOOR,
    N_MODULO,
    N_POWER,
    N_CONCAT,  // list
    N_COMPARE, // a, then list: each an N_OPERAND
    N_OPERAND, // name: the operator; a
    N_AND,
    N_OR,
    N_CHOICE, // a if b else c; c may be NULL
    // statements
    N_DATA,         // value
    N_OUTPUT,       // a
    N_FOR,          // for a in b if c: body, else: other
    N_IF,           // if a: body, else: other
    N_SET,          // a = b
    N_SET_BLOCK,    // a = c(body), c filters or NULL
    N_MACRO,        // name(parameters): body
    N_CALL_BLOCK,   // a is called with a macro of the parameters and the body
    N_FILTER_BLOCK, // a(body)
    N_WITH,         // list: a name and a value each; body
    N_SCOPE,        // body
    N_BREAK,
    N_CONTINUE,
    N_MEMBER, // as a target: name.value of a namespace
} NodeKind;

typedef struct Node Node;
struct Node {
    NodeKind kind;
    int line, height; // levels of nodes below
    const char *name; // one pointer for one name
    Value value;
    Node *a, *b, *c;
    Node *list; // linked by next; of calls the arguments: those by name have one
    Node *body, *other;
    Node *star, *stars; // *a and **b of a call
    Node *next;
    bool recursive;
    unsigned uses; // of a macro: USES_ of the names that its body speaks of
};

enum { USES_CALLER = 1, USES_VARARGS = 2, USES_KWARGS = 4 };

typedef struct {
    Room room; // of the tree
    Node *body;
    Str *names;
    size_t n_names;
    const char *loop, *caller, *varargs, *kwargs; // pointers of these names
} Tree;

/* Parse a template, of which nothing is kept. 0, or -1 and an Err ("chat template, line N: ...");
 * tree_free() in either case. */
int tree_parse(Tree *t, Str source, Err *e);
void tree_free(Tree *t);

#endif
