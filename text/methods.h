/* methods.h - functions of this program that a template calls, and what values have: attributes,
 * items and methods. Methods that would change a list or a dict are undefined, as in the sandbox
 * that transformers uses; the rest of Python's are refused by name when they are called. */
#ifndef METHODS_H
#define METHODS_H

#include "text/value.h"

enum { MAX_PARAMETERS = 6 };

/* `params`: names between spaces, those that may be left out behind "?"; "/" before all of them:
 * they cannot be given by name. NULL: run() reads the call itself. args: in the order of the names;
 * a missing one is is_absent(). */
typedef struct Function {
    const char *name, *params;
    Value (*run)(Room *r, Value self, const Value *args, const Call *call);
} Function;

typedef struct Method {
    Value self;
    const Function *function;
} Method;

/* One pass through {% for %}, as the template's `loop`. */
typedef struct Loop {
    Iter *items;
    Value source;           // what is gone through
    int64_t index0, length; // length -1: not known yet
    int depth0;
    bool peeked, ended; // `next` is read, or there is none
    Value before, current, next;
    bool has_changed;
    Value changed;     // what changed() was called with last
    const void *again; // the {% for %} that may be called again, NULL: it may not
    void *scope;
} Loop;

bool loop_next(Room *r, Loop *l, Value *out); // go on to the next item

bool is_absent(Value v);
Value function_call(Room *r, const Function *f, Value self, const Call *call);
const Function *function_find(const Function *table, size_t n, Str name); // NULL: none

Value value_attribute(Room *r, Value v, Text name); // v.name
Value value_item(Room *r, Value v, Value index);    // v[index]

/* `v` as a whole number, of the argument `what`. */
int64_t need_int(Room *r, Value v, const char *what);

/* What str methods do, for filters. */
Value text_strip(Room *r, Text t, const Text *chars, bool left, bool right);
Value text_case(Room *r, Text t, bool upper); // or lower
Value text_capitalize(Room *r, Text t);
Value text_replace(Room *r, Text t, Text old, Text with, int64_t count); // -1: all
Value text_center(Room *r, Text t, int64_t width, Text fill);
List *text_lines(Room *r, Text t);
Value text_concat(Room *r, Text between, Value items, bool convert); // str.join()

#endif
