/* operators.h - arithmetic and indexing of values, as Python does them. */
#ifndef OPERATORS_H
#define OPERATORS_H

#include "text/value.h"

/* a op b: "+", "-", "*", "/", "//", "%" or "**". */
Value value_operate(Room *r, const char *op, Value a, Value b);
Value value_negative(Room *r, Value v, bool minus); // -v, or +v

/* v[start:stop:step]; each may be NONE. */
Value value_slice(Room *r, Value v, const Value parts[3]);

/* Item number `index` of n, counted from the end where it is negative; false if there is none. */
bool value_index(int64_t index, size_t n, size_t *out);

#endif
