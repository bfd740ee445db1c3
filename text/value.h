/* value.h - the values of chat templates: Python's, as far as a template sees them.
 *
 * Every byte of a string carries a mark: MARK_TEMPLATE for what the template wrote, MARK_CONTENT
 * for what came in from outside. Whatever is made of strings keeps the marks of its bytes.
 *
 * All memory belongs to a Room and is freed with it. What fails does not return: it fills room.err
 * and jumps to room.escape, which who makes the room sets by setjmp(). Values are small and passed
 * by value; what they point to stays as it is, but for namespaces, loops and iterators.
 */
#ifndef VALUE_H
#define VALUE_H

#include <setjmp.h>

#include "base/util.h"

/* ---- room ------------------------------------------------------------------------------------ */

typedef struct Chunk Chunk;

typedef struct {
    jmp_buf escape;
    Err *err;
    Chunk *chunks;
    char *at;
    size_t left;             // bytes at `at`
    size_t bytes, max_bytes; // given out
    uint64_t steps, max_steps;
    int depth, line; // calls within each other; line of the template that is being run
    double now;      // seconds since 1970: the time that a template sees
} Room;

enum { ROOM_MAX_DEPTH = 1000 };

void room_free(Room *r);
void *room_alloc(Room *r, size_t n, size_t size);                        // never NULL
void *room_grow(Room *r, void *old, size_t n, size_t *cap, size_t size); // see mem_room()
void room_spend(Room *r, size_t steps);
void room_enter(Room *r); // and leave: one level deeper
void room_leave(Room *r);

/* What a template itself complains about: the message alone, as EXIT_USAGE. */
_Noreturn void room_raise(Room *r, Str message);

/* "chat template, line N: ..." */
_Noreturn void room_fail(Room *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- values ---------------------------------------------------------------------------------- */

typedef enum {
    V_UNDEFINED,
    V_NONE,
    V_BOOL,
    V_INT,
    V_BIG, // a whole number of more than 64 bits: it can be printed and compared
    V_FLOAT,
    V_TEXT,
    V_LIST,
    V_TUPLE,
    V_DICT,
    V_NAMESPACE,
    V_RANGE,
    V_VIEW,     // items(), keys() or values() of a dict
    V_ITER,     // a generator: can be gone through once
    V_FUNCTION, // a global one
    V_METHOD,   // of a value
    V_MACRO,
    V_LOOP,
    V_SLICE, // only as an index
    N_TYPES
} Type;

enum { MARK_TEMPLATE = 0, MARK_CONTENT = 1 };

/* Bytes that grow at their end. Texts that view them stay as they are. */
typedef struct {
    char *bytes, *marks;
    size_t used, cap;
} Rope;

typedef struct {
    const char *bytes, *marks; // (len)
    size_t len;
    Rope *rope; // that the bytes are of, or NULL
    bool safe;  // markup: what is added to it is escaped for HTML
} Text;

typedef struct Value Value;
typedef struct Dict Dict;
typedef struct Iter Iter;
typedef struct Call Call;

typedef struct {
    Value *items;
    size_t n, cap;
} List;

typedef struct {
    int64_t start, stop, step;
    size_t n;
} Range;

typedef enum { VIEW_ITEMS, VIEW_KEYS, VIEW_VALUES } ViewKind;

typedef struct {
    const Dict *dict;
    ViewKind kind;
} View;

struct Value {
    Type type;
    union {
        const char *undefined; // why, for an error; NULL if nothing is known
        bool truth;
        int64_t whole;
        double number;
        const Text *text; // of V_BIG too: its digits
        List *list;       // of V_TUPLE too
        Dict *dict;       // of V_NAMESPACE too
        const Range *range;
        const View *view;
        Iter *iter;
        const struct Function *function;
        const struct Method *method;
        const struct Macro *macro;
        struct Loop *loop;
        const Value *slice; // (3) start, stop, step
    };
};

/* A dict keeps the order of its keys. `table` has the number + 1 of each key at its hash. */
struct Dict {
    Value *keys, *values; // (n)
    size_t n, cap;
    size_t values_cap;
    uint32_t *table; // (table_size), a power of two; NULL for few keys
    size_t table_size;
};

/* Something to go through. next() gives false at the end. */
struct Iter {
    bool (*next)(Room *r, Iter *it, Value *out);
    Value source;
    size_t at;
    Iter *inner;
    void *more; // what next() needs beyond that
};

/* The arguments of a call. */
struct Call {
    const Value *args; // (n)
    size_t n;
    const Str *names; // (n_named)
    const Value *named;
    size_t n_named;
};

#define NONE ((Value){.type = V_NONE})
#define UNDEFINED ((Value){.type = V_UNDEFINED})

static inline Value value_bool(bool b)
{
    return (Value){.type = V_BOOL, .truth = b};
}

static inline Value value_int(int64_t i)
{
    return (Value){.type = V_INT, .whole = i};
}

static inline Value value_float(double d)
{
    return (Value){.type = V_FLOAT, .number = d};
}

static inline Value value_undefined(const char *why)
{
    return (Value){.type = V_UNDEFINED, .undefined = why};
}

static inline bool is_number(Value v)
{
    return v.type == V_INT || v.type == V_FLOAT || v.type == V_BOOL;
}

const char *value_type_name(Value v); // Python's: "str"

/* An undefined value and a printf-like reason. */
Value value_missing(Room *r, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* ---- texts ----------------------------------------------------------------------------------- */

Value value_text(Room *r, Text t);
Value value_words(Room *r, const char *s);                // a literal of ours: a template's
Text text_of(Room *r, Str s, int mark);                   // a copy
Text text_cut(Text t, size_t from, size_t to);            // bytes from..to
Value value_cut(Room *r, Text t, size_t from, size_t to); // the same
Text text_need(Room *r, Value v, const char *what);       // of a string, or a failure
Str text_str(Text t);
bool text_is(Value v, const char *s);                       // whether it is this string
int text_cmp(Text a, Text b);                               // by code points
size_t text_chars(Room *r, Text t);                         // how many characters
size_t text_offset(Room *r, Text t, size_t from, size_t n); // n characters after byte `from`
size_t text_find(Room *r, Text t, Text what, size_t from);  // byte, SIZE_MAX for none

/* Building one. */
typedef struct {
    Room *room;
    Rope *rope;
} Build;

Build build_begin(Room *r);
void build_add(Build *b, Text t);
void build_bytes(Build *b, const char *s, size_t n, int mark);
void build_words(Build *b, const char *s); // the template's own
void build_char(Build *b, uint32_t cp, int mark);
Text build_text(const Build *b);
Value build_value(const Build *b);

Value text_join2(Room *r, Text a, Text b); // a + b; repeated at the end of one text it is cheap
Text text_escape(Room *r, Text t);         // &, <, >, ' and " for HTML

/* ---- lists and dicts ------------------------------------------------------------------------- */

List *list_new(Room *r);
void list_add(Room *r, List *l, Value v);
Value value_list(List *l);
Value value_tuple(List *l);
Value value_pair(Room *r, Value a, Value b);

Dict *dict_new(Room *r);
bool dict_get(Room *r, const Dict *d, Value key, Value *out);
void dict_set(Room *r, Dict *d, Value key, Value v);
Value dict_named(Room *r, const Dict *d, const char *key); // undefined if there is none
Value value_dict(Dict *d);

/* ---- what Python does with any value --------------------------------------------------------- */

bool value_truth(Value v);
bool value_equal(Room *r, Value a, Value b);
int value_order(Room *r, Value a, Value b, const char *op); // <0, 0, >0; 2 where none is (NaN)
bool value_in(Room *r, Value item, Value box);
bool value_length(Room *r, Value v, size_t *out); // false: it has none
Iter *value_iter(Room *r, Value v);               // fails where it cannot be gone through
bool value_iterable(Value v);
bool iter_next(Room *r, Iter *it, Value *out);
List *value_items(Room *r, Value v); // all that it goes through; a list of its own
double value_number(Room *r, Value v);
_Noreturn void fail_undefined(Room *r, Value v);

#endif
