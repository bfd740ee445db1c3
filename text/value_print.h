/* value_print.h - values as text: str() and repr() of Python, JSON, %-formats and str.format(). */
#ifndef VALUE_PRINT_H
#define VALUE_PRINT_H

#include "text/value.h"

Text print_str(Room *r, Value v);      // what {{ v }} gives
void print_value(Build *out, Value v); // append it
void print_repr(Build *out, Value v);

typedef struct {
    bool ascii, sort_keys;
    bool indented; // a line for each item, after `indent` for each level
    Text indent;
    Text comma, colon; // what separates
} JsonStyle;

/* Append json.dumps(v); fails for what is no JSON. */
void print_json(Build *out, Value v, const JsonStyle *style);

/* format % v. */
Value print_percent(Room *r, Text format, Value v);

/* format.format(*args, **named); get() looks up "name.attribute" and "name[item]". */
typedef Value FieldGet(Room *r, Value v, Text name, bool attribute);
Value print_format(Room *r, Text format, const Call *call, FieldGet *get);

#endif
