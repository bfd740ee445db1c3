/* operators.c - arithmetic and indexing of values. Contracts are in operators.h. */
#include "text/operators.h"

#include <math.h>
#include <string.h>

#include "text/value_print.h"

static _Noreturn void too_large(Room *r)
{
    room_fail(r, "whole numbers of more than 64 bits are not supported");
}

static _Noreturn void unsupported(Room *r, const char *op, Value a, Value b)
{
    if (a.type == V_UNDEFINED || b.type == V_UNDEFINED)
        fail_undefined(r, a.type == V_UNDEFINED ? a : b);
    if (a.type == V_BIG || b.type == V_BIG)
        too_large(r);
    room_fail(r, "unsupported operand type(s) for %s: '%s' and '%s'", op, value_type_name(a),
              value_type_name(b));
}

static int64_t whole_of(Value v)
{
    return v.type == V_BOOL ? v.truth : v.whole;
}

/* floor(a / b), or the rest that goes with it, which has the sign of b. */
static int64_t floor_divide(Room *r, int64_t a, int64_t b, bool rest)
{
    if (!b)
        room_fail(r, "integer division or modulo by zero");
    if (b == -1) { // INT64_MIN / -1 has no place
        if (a == INT64_MIN && !rest)
            too_large(r);
        return rest ? 0 : -a;
    }
    int64_t q = a / b, m = a % b;
    bool down = m && (m < 0) != (b < 0);
    return rest ? m + (down ? b : 0) : q - down;
}

static Value power(Room *r, int64_t a, int64_t n)
{
    int64_t out = 1;
    if (n < 0) {
        if (!a)
            room_fail(r, "0.0 cannot be raised to a negative power");
        return value_float(pow((double)a, (double)n));
    }
    while (n) {
        if (n & 1 && __builtin_mul_overflow(out, a, &out))
            too_large(r);
        n >>= 1;
        if (n && __builtin_mul_overflow(a, a, &a))
            too_large(r);
    }
    return value_int(out);
}

static Value operate_ints(Room *r, char op, bool twice, int64_t a, int64_t b)
{
    int64_t out = 0;
    bool over = false;
    switch (op) {
    case '+': over = __builtin_add_overflow(a, b, &out); break;
    case '-': over = __builtin_sub_overflow(a, b, &out); break;
    case '*':
        if (twice)
            return power(r, a, b);
        over = __builtin_mul_overflow(a, b, &out);
        break;
    case '/':
        if (!b)
            room_fail(r, "division by zero");
        if (!twice)
            return value_float((double)a / (double)b);
        out = floor_divide(r, a, b, false);
        break;
    default: out = floor_divide(r, a, b, true);
    }
    if (over)
        too_large(r);
    return value_int(out);
}

static double float_rest(double a, double b)
{
    double m = fmod(a, b);
    if (m == 0)
        return copysign(0, b);
    return (m < 0) != (b < 0) ? m + b : m;
}

static double float_floor(double a, double b)
{
    double m = fmod(a, b), q = (a - m) / b;
    if (m != 0 && (m < 0) != (b < 0))
        q -= 1;
    if (q == 0)
        return copysign(0, a / b);
    double down = floor(q);
    return q - down > 0.5 ? down + 1 : down;
}

static Value operate_floats(Room *r, char op, bool twice, double a, double b)
{
    if ((op == '/' || op == '%') && b == 0)
        room_fail(r, "float division by zero");
    switch (op) {
    case '+': return value_float(a + b);
    case '-': return value_float(a - b);
    case '/': return value_float(twice ? float_floor(a, b) : a / b);
    case '%': return value_float(float_rest(a, b));
    default: break;
    }
    if (!twice)
        return value_float(a * b);
    double p = pow(a, b);
    if ((a == 0 && b < 0) || (isinf(p) && isfinite(a) && isfinite(b)))
        room_fail(r, "** of floats has no result");
    if (isnan(p) && !isnan(a) && !isnan(b))
        room_fail(r, "complex numbers are not supported");
    return value_float(p);
}

static Value repeat(Room *r, Value v, int64_t n)
{
    bool text = v.type == V_TEXT;
    size_t len = text ? v.text->len : v.list->n;
    Build b = build_begin(r);
    List *l = list_new(r);
    for (int64_t i = 0; i < n && len; i++) {
        if (text)
            build_add(&b, *v.text);
        for (size_t k = 0; k < len && !text; k++)
            list_add(r, l, v.list->items[k]);
        room_spend(r, 1);
    }
    if (!text)
        return (Value){.type = v.type, .list = l};
    Text t = build_text(&b);
    t.safe = v.text->safe;
    return value_text(r, t);
}

static Value add_texts(Room *r, Text a, Text b)
{
    if (a.safe == b.safe && !a.safe)
        return text_join2(r, a, b);
    Text out = *text_join2(r, a.safe ? a : text_escape(r, a), b.safe ? b : text_escape(r, b)).text;
    out.safe = true;
    return value_text(r, out);
}

static Value add_lists(Room *r, Value a, Value b)
{
    List *l = list_new(r);
    for (size_t i = 0; i < a.list->n; i++)
        list_add(r, l, a.list->items[i]);
    for (size_t i = 0; i < b.list->n; i++)
        list_add(r, l, b.list->items[i]);
    return (Value){.type = a.type, .list = l};
}

static bool is_sequence(Value v)
{
    return v.type == V_TEXT || v.type == V_LIST || v.type == V_TUPLE;
}

Value value_operate(Room *r, const char *op, Value a, Value b)
{
    bool whole_a = a.type == V_INT || a.type == V_BOOL,
         whole_b = b.type == V_INT || b.type == V_BOOL;
    bool twice = op[1] != 0;
    if (whole_a && whole_b)
        return operate_ints(r, *op, twice, whole_of(a), whole_of(b));
    if (is_number(a) && is_number(b))
        return operate_floats(r, *op, twice, value_number(r, a), value_number(r, b));
    if (*op == '+' && a.type == V_TEXT && b.type == V_TEXT)
        return add_texts(r, *a.text, *b.text);
    if (*op == '+' && a.type == b.type && (a.type == V_LIST || a.type == V_TUPLE))
        return add_lists(r, a, b);
    if (*op == '*' && !twice && is_sequence(a) && whole_b)
        return repeat(r, a, whole_of(b));
    if (*op == '*' && !twice && is_sequence(b) && whole_a)
        return repeat(r, b, whole_of(a));
    if (*op == '%' && a.type == V_TEXT)
        return print_percent(r, *a.text, b);
    unsupported(r, op, a, b);
}

Value value_negative(Room *r, Value v, bool minus)
{
    if (v.type == V_FLOAT)
        return value_float(minus ? -v.number : v.number);
    if (v.type == V_UNDEFINED)
        fail_undefined(r, v);
    if (v.type == V_BIG && minus)
        too_large(r);
    if (v.type == V_BIG)
        return v;
    if (v.type != V_INT && v.type != V_BOOL)
        room_fail(r, "bad operand type for unary %c: '%s'", minus ? '-' : '+', value_type_name(v));
    int64_t whole = whole_of(v);
    if (minus && whole == INT64_MIN)
        too_large(r);
    return value_int(minus ? -whole : whole);
}

/* ---- indexing -------------------------------------------------------------------------------- */

bool value_index(int64_t index, size_t n, size_t *out)
{
    if (index < 0)
        index += (int64_t)n;
    *out = (size_t)index;
    return index >= 0 && (size_t)index < n;
}

/* A bound of a slice, moved into low..high. */
static int64_t bound(Room *r, Value v, int64_t n, int64_t low, int64_t high, int64_t otherwise)
{
    if (v.type == V_NONE)
        return otherwise;
    if (v.type != V_INT && v.type != V_BOOL)
        room_fail(r, "slice indices must be integers or None or have an __index__ method");
    int64_t i = whole_of(v);
    i = i < 0 ? i + n : i;
    return i < low ? low : i > high ? high : i;
}

/* Where each character begins. */
static size_t *offsets(Room *r, Text t, size_t n)
{
    size_t *at = room_alloc(r, n + 1, sizeof *at);
    at[0] = 0;
    for (size_t i = 0; i < n; i++)
        at[i + 1] = text_offset(r, t, at[i], 1);
    return at;
}

static Value slice_text(Room *r, Text t, int64_t start, int64_t step, int64_t count)
{
    if (step == 1) {
        size_t from = text_offset(r, t, 0, (size_t)start);
        return value_cut(r, t, from, text_offset(r, t, from, (size_t)count));
    }
    Build b = build_begin(r);
    size_t *at = offsets(r, t, text_chars(r, t));
    for (int64_t i = 0; i < count; i++)
        build_add(&b, text_cut(t, at[start + i * step], at[start + i * step + 1]));
    Text out = build_text(&b);
    out.safe = t.safe;
    return value_text(r, out);
}

Value value_slice(Room *r, Value v, const Value parts[3])
{
    size_t length;
    if (v.type == V_UNDEFINED)
        fail_undefined(r, v);
    if (!is_sequence(v) && v.type != V_RANGE)
        room_fail(r, "'%s' object is not subscriptable with a slice", value_type_name(v));
    value_length(r, v, &length);
    int64_t n = (int64_t)length, step = 1;
    if (parts[2].type != V_NONE)
        step = bound(r, parts[2], 0, -INT64_MAX, INT64_MAX, 1);
    if (!step)
        room_fail(r, "slice step cannot be zero");
    int64_t low = step < 0 ? -1 : 0, high = step < 0 ? n - 1 : n;
    int64_t start = bound(r, parts[0], n, low, high, step < 0 ? n - 1 : 0);
    int64_t stop = bound(r, parts[1], n, low, high, step < 0 ? -1 : n);
    int64_t span = step < 0 ? start - stop : stop - start, size = step < 0 ? -step : step;
    int64_t count = span > 0 ? (span - 1) / size + 1 : 0;
    if (v.type == V_TEXT)
        return slice_text(r, *v.text, count ? start : 0, step, count);
    if (v.type == V_RANGE)
        room_fail(r, "a slice of a range is not supported");
    List *l = list_new(r);
    for (int64_t i = 0; i < count; i++)
        list_add(r, l, v.list->items[start + i * step]);
    return (Value){.type = v.type, .list = l};
}
