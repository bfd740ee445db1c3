/* filters.c - filters, tests and global functions. Contracts are in filters.h. */
#include "text/filters.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/utf8.h"
#include "text/operators.h"
#include "text/unicode.h"
#include "text/value_print.h"

#define FILTER(name) static Value name(Room *r, Value self, const Value *args, const Call *call)
#define UNUSED (void)r, (void)self, (void)args, (void)call

static bool truth_or(Value v, bool otherwise)
{
    return is_absent(v) ? otherwise : value_truth(v);
}

static int64_t int_or(Room *r, Value v, int64_t otherwise, const char *what)
{
    return is_absent(v) || v.type == V_NONE ? otherwise : need_int(r, v, what);
}

/* A string as it is, anything else as str() has it. */
static Text soft_text(Room *r, Value v)
{
    return v.type == V_TEXT ? *v.text : print_str(r, v);
}

static Text words(Room *r, const char *s)
{
    return *value_words(r, s).text;
}

static Text text_or(Room *r, Value v, const char *otherwise, const char *what)
{
    return is_absent(v) ? words(r, otherwise) : text_need(r, v, what);
}

/* ---- of strings ------------------------------------------------------------------------------ */

FILTER(f_upper)
{
    UNUSED;
    return text_case(r, soft_text(r, self), true);
}

FILTER(f_lower)
{
    UNUSED;
    return text_case(r, soft_text(r, self), false);
}

FILTER(f_capitalize)
{
    UNUSED;
    return text_capitalize(r, soft_text(r, self));
}

static bool begins_words(uint32_t cp)
{
    return unicode_space(cp) || (cp < 128 && cp && strchr("-({[<", (int)cp));
}

/* Words begin at the start and after white space, - and opening brackets. */
FILTER(f_title)
{
    UNUSED;
    Text t = soft_text(r, self);
    Build b = build_begin(r);
    for (size_t i = 0, end; i < t.len; i = end) {
        uint32_t cp;
        size_t first = text_offset(r, t, i, 1);
        for (end = i; end < t.len; end = text_offset(r, t, end, 1)) {
            utf8_decode(t.bytes + end, t.bytes + t.len, &cp);
            if (begins_words(cp))
                break;
        }
        if (end == i) {
            build_add(&b, text_cut(t, i, end = first));
            continue;
        }
        build_add(&b, *text_case(r, text_cut(t, i, first), true).text);
        build_add(&b, *text_case(r, text_cut(t, first, end), false).text);
    }
    return build_value(&b);
}

FILTER(f_trim)
{
    UNUSED;
    Text t = soft_text(r, self);
    if (is_absent(args[0]) || args[0].type == V_NONE)
        return text_strip(r, t, NULL, true, true);
    Text chars = text_need(r, args[0], "trim");
    return text_strip(r, t, &chars, true, true);
}

FILTER(f_replace)
{
    UNUSED;
    return text_replace(r, print_str(r, self), print_str(r, args[0]), print_str(r, args[1]),
                        int_or(r, args[2], -1, "replace"));
}

FILTER(f_string)
{
    UNUSED;
    return value_text(r, soft_text(r, self));
}

FILTER(f_safe)
{
    UNUSED;
    Text t = print_str(r, self);
    t.safe = true;
    return value_text(r, t);
}

FILTER(f_escape)
{
    UNUSED;
    return self.type == V_TEXT && self.text->safe
             ? self
             : value_text(r, text_escape(r, print_str(r, self)));
}

FILTER(f_forceescape)
{
    UNUSED;
    return value_text(r, text_escape(r, print_str(r, self)));
}

FILTER(f_center)
{
    UNUSED;
    return text_center(r, soft_text(r, self), int_or(r, args[0], 80, "center"), words(r, " "));
}

FILTER(f_wordcount)
{
    UNUSED;
    Text t = soft_text(r, self);
    int64_t n = 0;
    bool inside = false;
    for (size_t i = 0, len; i < t.len; i += len) {
        uint32_t cp;
        len = utf8_decode(t.bytes + i, t.bytes + t.len, &cp);
        bool word = unicode_letter(cp) || unicode_decimal(cp) || cp == '_';
        n += word && !inside;
        inside = word;
    }
    return value_int(n);
}

FILTER(f_indent)
{
    UNUSED;
    Text s = text_need(r, self, "indent"), by;
    if (!is_absent(args[0]) && args[0].type == V_TEXT) {
        by = *args[0].text;
    } else {
        int64_t width = is_absent(args[0]) ? 4 : need_int(r, args[0], "indent");
        by = *value_operate(r, "*", value_words(r, " "), value_int(width)).text;
    }
    bool first = truth_or(args[1], false), blank = truth_or(args[2], false);
    List *lines = text_lines(r, *text_join2(r, s, words(r, "\n")).text);
    Build b = build_begin(r);
    for (size_t i = 0; i < lines->n; i++) {
        Text line = *lines->items[i].text;
        build_words(&b, i ? "\n" : "");
        if (i ? blank || line.len : first)
            build_add(&b, by);
        build_add(&b, line);
    }
    Text out = build_text(&b);
    out.safe = s.safe;
    return value_text(r, out);
}

FILTER(f_truncate)
{
    UNUSED;
    Text t, end = text_or(r, args[2], "...", "truncate");
    size_t n;
    int64_t length = int_or(r, args[0], 255, "truncate"),
            leeway = int_or(r, args[3], 5, "truncate");
    int64_t end_chars = (int64_t)text_chars(r, end);
    if (length < end_chars || leeway < 0)
        room_fail(r, "truncate: the length is less than that of its ending");
    if (value_length(r, self, &n) && (int64_t)n <= length + leeway)
        return self;
    t = text_need(r, self, "truncate");
    Text cut = text_cut(t, 0, text_offset(r, t, 0, (size_t)(length - end_chars)));
    for (size_t i = cut.len; i-- > 0 && !truth_or(args[1], false);)
        if (cut.bytes[i] == ' ') {
            cut = text_cut(cut, 0, i);
            break;
        }
    return text_join2(r, cut, end);
}

FILTER(f_urlencode)
{
    UNUSED;
    static const char plain[] = "_.-~/";
    if (self.type != V_TEXT && value_iterable(self))
        room_fail(r, "\"urlencode\" of a %s is not supported", value_type_name(self));
    Text t = print_str(r, self);
    Build b = build_begin(r);
    for (size_t i = 0; i < t.len; i++) {
        unsigned char c = (unsigned char)t.bytes[i];
        char text[8];
        bool keeps = (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z')
                  || (c && strchr(plain, c));
        if (keeps)
            build_add(&b, text_cut(t, i, i + 1));
        else
            build_bytes(&b, text, (size_t)snprintf(text, sizeof text, "%%%02X", c), t.marks[i]);
    }
    return build_value(&b);
}

FILTER(f_format)
{
    UNUSED;
    Text t = soft_text(r, self);
    if (call->n && call->n_named)
        room_fail(r, "can't handle positional and keyword arguments at the same time");
    if (call->n_named) {
        Dict *d = dict_new(r);
        for (size_t i = 0; i < call->n_named; i++)
            dict_set(r, d, value_text(r, text_of(r, call->names[i], MARK_TEMPLATE)),
                     call->named[i]);
        return print_percent(r, t, value_dict(d));
    }
    List *l = list_new(r);
    for (size_t i = 0; i < call->n; i++)
        list_add(r, l, call->args[i]);
    return print_percent(r, t, value_tuple(l));
}

FILTER(f_tojson)
{
    UNUSED;
    JsonStyle s = {.ascii = truth_or(args[0], false), .sort_keys = truth_or(args[3], false)};
    s.indented = !is_absent(args[1]) && args[1].type != V_NONE;
    if (s.indented)
        s.indent = args[1].type == V_TEXT
                     ? *args[1].text
                     : *value_operate(r, "*", value_words(r, " "),
                                      value_int(need_int(r, args[1], "tojson")))
                            .text;
    s.comma = words(r, s.indented ? "," : ", ");
    s.colon = words(r, ": ");
    if (!is_absent(args[2]) && args[2].type != V_NONE) {
        List *l = value_items(r, args[2]);
        if (l->n != 2)
            room_fail(r, "tojson: got %zu separators, want 2", l->n);
        s.comma = text_need(r, l->items[0], "tojson");
        s.colon = text_need(r, l->items[1], "tojson");
    }
    Build b = build_begin(r);
    print_json(&b, self, &s);
    return build_value(&b);
}

/* ---- of numbers ------------------------------------------------------------------------------ */

/* What strtod() or strtoll() would read of a string as Python's float() and int() do: without
 * white space around it and _ between digits. False: it is no number's text. */
static bool number_text(Room *r, Text t, char *out, size_t size)
{
    size_t n = 0;
    t = *text_strip(r, t, NULL, true, true).text;
    for (size_t i = 0; i < t.len; i++) {
        char c = t.bytes[i];
        bool between = i && i + 1 < t.len && t.bytes[i - 1] != '_' && t.bytes[i + 1] != '_';
        if (c == '_' && between)
            continue;
        if (n + 1 >= size || c == '_' || !c)
            return false;
        out[n++] = c;
    }
    out[n] = 0;
    return n > 0;
}

static bool float_of_text(Room *r, Text t, double *out)
{
    char text[400], *end;
    if (!number_text(r, t, text, sizeof text))
        return false;
    if (strpbrk(text, "xXpP(")) // C's, not Python's
        return false;
    *out = strtod(text, &end);
    return !*end;
}

static bool int_of_float(Room *r, double d, int64_t *out)
{
    if (!isfinite(d))
        return false;
    if (fabs(d) >= 9.2e18)
        room_fail(r, "whole numbers of more than 64 bits are not supported");
    *out = (int64_t)d;
    return true;
}

FILTER(f_int)
{
    UNUSED;
    Value otherwise = is_absent(args[0]) ? value_int(0) : args[0];
    int64_t base = int_or(r, args[1], 10, "int"), out;
    double d;
    char text[400], *end;
    if (self.type == V_UNDEFINED)
        fail_undefined(r, self);
    if (self.type == V_INT || self.type == V_BIG)
        return self;
    if (self.type == V_BOOL)
        return value_int(self.truth);
    if (self.type == V_FLOAT) {
        if (isinf(self.number))
            room_fail(r, "cannot convert float infinity to integer");
        return int_of_float(r, self.number, &out) ? value_int(out) : otherwise;
    }
    if (self.type != V_TEXT)
        return otherwise;
    if (base != 10)
        room_fail(r, "\"int\" with another base than 10 is not supported");
    if (number_text(r, *self.text, text, sizeof text)) {
        errno = 0;
        out = strtoll(text, &end, 10);
        if (!*end && errno)
            room_fail(r, "whole numbers of more than 64 bits are not supported");
        if (!*end)
            return value_int(out);
    }
    return float_of_text(r, *self.text, &d) && int_of_float(r, d, &out) ? value_int(out)
                                                                        : otherwise;
}

FILTER(f_float)
{
    UNUSED;
    double d;
    Value otherwise = is_absent(args[0]) ? value_float(0) : args[0];
    if (is_number(self) || self.type == V_UNDEFINED)
        return value_float(value_number(r, self));
    return (self.type == V_TEXT || self.type == V_BIG) && float_of_text(r, *self.text, &d)
             ? value_float(d)
             : otherwise;
}

FILTER(f_abs)
{
    UNUSED;
    if (self.type == V_FLOAT)
        return value_float(fabs(self.number));
    return need_int(r, self, "abs") < 0 ? value_negative(r, self, true)
                                        : value_negative(r, self, false);
}

FILTER(f_round)
{
    UNUSED;
    int64_t precision = int_or(r, args[0], 0, "round");
    Text method = text_or(r, args[1], "common", "round");
    char text[400];
    double d = value_number(r, self);
    if (precision < -300 || precision > 300)
        room_fail(r, "\"round\" to %lld digits is not supported", (long long)precision);
    if (str_eq(text_str(method), "common")) {
        if (self.type != V_FLOAT && precision >= 0)
            return value_int(need_int(r, self, "round"));
        if (self.type != V_FLOAT || precision < 0)
            room_fail(r, "\"round\" to less than a digit is not supported");
        if (!isfinite(d))
            return self;
        snprintf(text, sizeof text, "%.*f", (int)precision, d);
        return value_float(strtod(text, NULL));
    }
    bool up = str_eq(text_str(method), "ceil");
    if (!up && !str_eq(text_str(method), "floor"))
        room_fail(r, "method must be common, ceil or floor");
    double scale = pow(10, (double)precision);
    if (precision < 0 || fabs(d * scale) > 9e15)
        room_fail(r, "\"round\" of such a number is not supported");
    return value_float((up ? ceil : floor)(d * scale) / scale);
}

/* ---- of sequences ---------------------------------------------------------------------------- */

/* v.a.b.0 by the path "a.b.0". `otherwise`, unless it is absent or none, stands for each part that
 * is not there. */
static Value follow(Room *r, Value v, Value path, Value otherwise)
{
    bool replaces = !is_absent(otherwise) && otherwise.type != V_NONE;
    if (is_absent(path) || path.type == V_NONE)
        return v;
    if (path.type != V_TEXT)
        return value_item(r, v, path);
    Text t = *path.text;
    for (size_t from = 0, to; from <= t.len; from = to + 1) {
        int64_t index = 0;
        for (to = from; to < t.len && t.bytes[to] != '.'; to++)
            ;
        bool digits = to > from && to - from < 10;
        for (size_t i = from; i < to && digits; i++) {
            digits = t.bytes[i] >= '0' && t.bytes[i] <= '9';
            index = 10 * index + t.bytes[i] - '0';
        }
        v = value_item(r, v, digits ? value_int(index) : value_cut(r, t, from, to));
        if (replaces && v.type == V_UNDEFINED)
            v = otherwise;
    }
    return v;
}

static Value ignore_case(Room *r, Value v, bool sensitive)
{
    return v.type == V_TEXT && !sensitive ? text_case(r, *v.text, false) : v;
}

FILTER(f_length)
{
    UNUSED;
    size_t n;
    if (!value_length(r, self, &n))
        room_fail(r, "object of type '%s' has no len()", value_type_name(self));
    return value_int((int64_t)n);
}

FILTER(f_list)
{
    UNUSED;
    return value_list(value_items(r, self));
}

FILTER(f_first)
{
    UNUSED;
    Value v;
    return iter_next(r, value_iter(r, self), &v)
             ? v
             : value_undefined("No first item, sequence was empty.");
}

FILTER(f_last)
{
    UNUSED;
    size_t n;
    if (!value_length(r, self, &n))
        room_fail(r, "'%s' object is not reversible", value_type_name(self));
    if (!n)
        return value_undefined("No last item, sequence was empty.");
    if (self.type == V_DICT || self.type == V_VIEW)
        return value_items(r, self)->items[n - 1];
    return value_item(r, self, value_int(-1));
}

FILTER(f_reverse)
{
    UNUSED;
    static const Value backwards[3] = {
        {.type = V_NONE}, {.type = V_NONE}, {.type = V_INT, .whole = -1}};
    if (self.type == V_TEXT)
        return value_slice(r, self, backwards);
    List *all = value_items(r, self), *l = list_new(r);
    for (size_t i = all->n; i-- > 0;)
        list_add(r, l, all->items[i]);
    return self.type == V_ITER ? value_list(l)
                               : (Value){.type = V_ITER, .iter = value_iter(r, value_list(l))};
}

FILTER(f_join)
{
    UNUSED;
    Value items = self;
    if (!is_absent(args[1]) && args[1].type != V_NONE) {
        List *l = list_new(r);
        Value v;
        for (Iter *it = value_iter(r, self); iter_next(r, it, &v);)
            list_add(r, l, follow(r, v, args[1], NONE));
        items = value_list(l);
    }
    return text_concat(r, is_absent(args[0]) ? words(r, "") : print_str(r, args[0]), items, true);
}

FILTER(f_default)
{
    UNUSED;
    bool missing = self.type == V_UNDEFINED || (truth_or(args[1], false) && !value_truth(self));
    return !missing ? self : is_absent(args[0]) ? value_words(r, "") : args[0];
}

FILTER(f_items)
{
    UNUSED;
    Call none = {0};
    if (self.type == V_UNDEFINED)
        return (Value){.type = V_ITER, .iter = value_iter(r, self)};
    if (self.type != V_DICT)
        room_fail(r, "Can only get item pairs from a mapping.");
    Value method = value_attribute(r, self, words(r, "items"));
    Value view = function_call(r, method.method->function, self, &none);
    return (Value){.type = V_ITER, .iter = value_iter(r, view)};
}

/* Items with what they are sorted by. */
typedef struct {
    Value *keys, *items;
} Sorting;

/* Sort n items so that equal ones keep their order; `other` has room for n. */
static void sort(Room *r, Sorting s, Sorting other, size_t n, bool reverse)
{
    if (n < 2)
        return;
    size_t half = n / 2, i = 0, j = half, k = 0;
    room_enter(r);
    sort(r, s, other, half, reverse);
    sort(r, (Sorting){s.keys + half, s.items + half}, other, n - half, reverse);
    for (; k < n; k++) {
        bool right = i == half;
        if (!right && j < n) {
            int c = value_order(r, s.keys[j], s.keys[i], "<");
            right = reverse ? c == 1 : c < 0;
        }
        size_t from = right ? j++ : i++;
        other.keys[k] = s.keys[from];
        other.items[k] = s.items[from];
    }
    memcpy(s.keys, other.keys, n * sizeof *s.keys);
    memcpy(s.items, other.items, n * sizeof *s.items);
    room_leave(r);
}

static Value sorted(Room *r, List *items, List *keys, bool reverse)
{
    Sorting s = {keys->items, items->items}, other = {room_alloc(r, items->n, sizeof(Value)),
                                                      room_alloc(r, items->n, sizeof(Value))};
    sort(r, s, other, items->n, reverse);
    return value_list(items);
}

FILTER(f_dictsort)
{
    UNUSED;
    Text by = text_or(r, args[1], "key", "dictsort");
    bool value = str_eq(text_str(by), "value");
    if (self.type != V_DICT || (!value && !str_eq(text_str(by), "key")))
        room_fail(r, "dictsort: got a %s, want a dict, by \"key\" or \"value\"",
                  value_type_name(self));
    List *items = list_new(r), *keys = list_new(r);
    for (size_t i = 0; i < self.dict->n; i++) {
        Value k = self.dict->keys[i], v = self.dict->values[i];
        list_add(r, items, value_pair(r, k, v));
        list_add(r, keys, ignore_case(r, value ? v : k, truth_or(args[0], false)));
    }
    return sorted(r, items, keys, truth_or(args[2], false));
}

/* The values of "a,b" as a list. */
static Value sort_key(Room *r, Value v, Value path, bool sensitive)
{
    List *l = list_new(r);
    if (is_absent(path) || path.type != V_TEXT) {
        list_add(r, l, ignore_case(r, follow(r, v, path, NONE), sensitive));
        return value_list(l);
    }
    Text t = *path.text;
    for (size_t from = 0, to; from <= t.len; from = to + 1) {
        for (to = from; to < t.len && t.bytes[to] != ','; to++)
            ;
        Value found = follow(r, v, value_cut(r, t, from, to), NONE);
        list_add(r, l, ignore_case(r, found, sensitive));
    }
    return value_list(l);
}

FILTER(f_sort)
{
    UNUSED;
    List *items = value_items(r, self), *keys = list_new(r);
    for (size_t i = 0; i < items->n; i++)
        list_add(r, keys, sort_key(r, items->items[i], args[2], truth_or(args[1], false)));
    return sorted(r, items, keys, truth_or(args[0], false));
}

static Value extreme(Room *r, Value self, const Value *args, bool most)
{
    Value v, key, best = value_undefined("No aggregated item, sequence was empty."),
                  best_key = NONE;
    bool first = true, sensitive = truth_or(args[0], false);
    for (Iter *it = value_iter(r, self); iter_next(r, it, &v); first = false) {
        key = ignore_case(r, follow(r, v, args[1], NONE), sensitive);
        int c = first ? 0 : value_order(r, key, best_key, most ? ">" : "<");
        if (first || (most ? c == 1 : c < 0)) {
            best = v;
            best_key = key;
        }
    }
    return best;
}

FILTER(f_min)
{
    UNUSED;
    return extreme(r, self, args, false);
}

FILTER(f_max)
{
    UNUSED;
    return extreme(r, self, args, true);
}

FILTER(f_sum)
{
    UNUSED;
    Value v, sum = is_absent(args[1]) ? value_int(0) : args[1];
    if (sum.type == V_TEXT)
        room_fail(r, "sum() can't sum strings");
    for (Iter *it = value_iter(r, self); iter_next(r, it, &v);)
        sum = value_operate(r, "+", sum, follow(r, v, args[0], NONE));
    return sum;
}

FILTER(f_unique)
{
    UNUSED;
    Value v;
    List *l = list_new(r);
    Dict *seen = dict_new(r);
    for (Iter *it = value_iter(r, self); iter_next(r, it, &v);) {
        Value key = ignore_case(r, follow(r, v, args[1], NONE), truth_or(args[0], false)), old;
        if (dict_get(r, seen, key, &old))
            continue;
        dict_set(r, seen, key, NONE);
        list_add(r, l, v);
    }
    return (Value){.type = V_ITER, .iter = value_iter(r, value_list(l))};
}

FILTER(f_batch)
{
    UNUSED;
    Value v;
    int64_t size = need_int(r, args[0], "batch");
    bool fills = !is_absent(args[1]) && args[1].type != V_NONE;
    List *rows = list_new(r), *row = list_new(r);
    for (Iter *it = value_iter(r, self); iter_next(r, it, &v);) {
        if ((int64_t)row->n == size) {
            list_add(r, rows, value_list(row));
            row = list_new(r);
        }
        list_add(r, row, v);
    }
    while (row->n && fills && (int64_t)row->n < size)
        list_add(r, row, args[1]);
    if (row->n)
        list_add(r, rows, value_list(row));
    return (Value){.type = V_ITER, .iter = value_iter(r, value_list(rows))};
}

FILTER(f_slice)
{
    UNUSED;
    int64_t n = need_int(r, args[0], "slice");
    bool fills = !is_absent(args[1]) && args[1].type != V_NONE;
    List *all = value_items(r, self), *rows = list_new(r);
    if (!n)
        room_fail(r, "integer division or modulo by zero");
    for (int64_t k = 0, from = 0; k < n; k++) {
        int64_t size = (int64_t)all->n / n, extra = (int64_t)all->n % n;
        List *row = list_new(r);
        for (int64_t i = 0; i < size + (k < extra); i++)
            list_add(r, row, all->items[from++]);
        if (fills && k >= extra)
            list_add(r, row, args[1]);
        list_add(r, rows, value_list(row));
    }
    return (Value){.type = V_ITER, .iter = value_iter(r, value_list(rows))};
}

/* ---- map, select and reject ------------------------------------------------------------------ */

/* What such a generator does with each item. */
typedef struct {
    Value attribute, otherwise; // looked up first; absent: the item itself
    const char *name;           // of the filter or test, NULL: none
    bool maps, rejects, begun;
    Call call;
} Picking;

static bool next_picked(Room *r, Iter *it, Value *out)
{
    Picking *p = it->more;
    Value item;
    if (!p->begun) { // what Python does when the first item is asked for
        p->begun = true;
        it->inner = value_truth(it->source) ? value_iter(r, it->source)
                                            : value_iter(r, value_list(list_new(r)));
    }
    while (iter_next(r, it->inner, &item)) {
        Value v = follow(r, item, p->attribute, p->otherwise);
        if (p->maps) {
            *out = p->name ? filter_run(r, p->name, v, &p->call) : v;
            return true;
        }
        bool passes = p->name ? test_run(r, p->name, v, &p->call) : value_truth(v);
        if (passes != p->rejects) {
            *out = item;
            return true;
        }
    }
    return false;
}

/* A name in an argument, with a zero at its end. */
static const char *name_of(Room *r, Value v, const char *what)
{
    Text t = text_need(r, v, what);
    char *p = room_alloc(r, t.len + 1, 1);
    memcpy(p, t.bytes, t.len);
    p[t.len] = 0;
    return p;
}

static Value picking(Room *r, Value self, const Call *call, Picking how, size_t used)
{
    Picking *p = room_alloc(r, 1, sizeof *p);
    Iter *it = room_alloc(r, 1, sizeof *it);
    *p = how;
    p->call = *call;
    if (used)
        p->call.args += used;
    p->call.n -= used;
    *it = (Iter){.next = next_picked, .source = self, .more = p};
    return (Value){.type = V_ITER, .iter = it};
}

FILTER(f_map)
{
    UNUSED;
    Picking how = {.maps = true, .attribute = NONE, .otherwise = NONE};
    static const Call none;
    bool by_attribute = false;
    for (size_t i = 0; i < call->n_named && !call->n; i++) {
        bool attribute = str_eq(call->names[i], "attribute");
        if (!attribute && !str_eq(call->names[i], "default"))
            room_fail(r, "map: got an unexpected argument '%.*s'", (int)call->names[i].len,
                      call->names[i].ptr);
        *(attribute ? &how.attribute : &how.otherwise) = call->named[i];
        by_attribute |= attribute;
    }
    if (by_attribute)
        return picking(r, self, &none, how, 0);
    if (!call->n)
        room_fail(r, "map requires a filter argument");
    how.name = name_of(r, call->args[0], "map");
    if (!filter_known(how.name))
        room_fail(r, "No filter named '%.60s'.", how.name);
    return picking(r, self, call, how, 1);
}

static Value select_or_reject(Room *r, Value self, const Call *call, bool attribute, bool rejects)
{
    Picking how = {.rejects = rejects, .attribute = NONE, .otherwise = NONE};
    size_t used = attribute;
    if (attribute && !call->n)
        room_fail(r, "Missing parameter for attribute name");
    if (attribute)
        how.attribute = call->args[0];
    if (call->n > used) {
        how.name = name_of(r, call->args[used++], "select");
        if (!test_known(how.name))
            room_fail(r, "No test named '%.60s'.", how.name);
    }
    return picking(r, self, call, how, used);
}

FILTER(f_select)
{
    UNUSED;
    return select_or_reject(r, self, call, false, false);
}

FILTER(f_reject)
{
    UNUSED;
    return select_or_reject(r, self, call, false, true);
}

FILTER(f_selectattr)
{
    UNUSED;
    return select_or_reject(r, self, call, true, false);
}

FILTER(f_rejectattr)
{
    UNUSED;
    return select_or_reject(r, self, call, true, true);
}

/* ---- tests ----------------------------------------------------------------------------------- */

#define TEST(name, expression)                                                                     \
    FILTER(name)                                                                                   \
    {                                                                                              \
        UNUSED;                                                                                    \
        return value_bool(expression);                                                             \
    }

static bool is_odd(Room *r, Value v, Value by, int64_t want)
{
    Value rest = value_operate(r, "%", v, by);
    return is_number(rest) && value_number(r, rest) == (double)want;
}

static bool ordered(Room *r, Value a, Value b, const char *op)
{
    int c = value_order(r, a, b, op);
    return c != 2 && (*op == '<' ? c < 0 || (op[1] && !c) : c > 0 || (op[1] && !c));
}

static bool is_case(Room *r, Value v, const char *method)
{
    Value text = value_text(r, print_str(r, v));
    Value m = value_attribute(r, text, words(r, method));
    Call none = {0};
    return value_truth(function_call(r, m.method->function, text, &none));
}

static bool callable(Value v)
{
    return v.type == V_FUNCTION || v.type == V_METHOD || v.type == V_MACRO || v.type == V_LOOP
        || v.type == V_UNDEFINED;
}

static bool sequence(Value v)
{
    return v.type == V_TEXT || v.type == V_LIST || v.type == V_TUPLE || v.type == V_DICT
        || v.type == V_RANGE || v.type == V_UNDEFINED;
}

static bool same_thing(Room *r, Value a, Value b)
{
    if (a.type != b.type)
        return false;
    if (a.type == V_TEXT || a.type == V_FLOAT || a.type == V_BIG || a.type == V_UNDEFINED)
        room_fail(r, "\"sameas\" of a %s is not supported", value_type_name(a));
    return a.type == V_NONE
        || (a.type == V_BOOL || a.type == V_INT ? value_equal(r, a, b) : a.list == b.list);
}

TEST(t_defined, self.type != V_UNDEFINED)
TEST(t_undefined, self.type == V_UNDEFINED)
TEST(t_none, self.type == V_NONE)
TEST(t_boolean, self.type == V_BOOL)
TEST(t_true, self.type == V_BOOL && self.truth)
TEST(t_false, self.type == V_BOOL && !self.truth)
TEST(t_integer, self.type == V_INT || self.type == V_BIG)
TEST(t_float, self.type == V_FLOAT)
TEST(t_number, is_number(self) || self.type == V_BIG)
TEST(t_string, self.type == V_TEXT)
TEST(t_mapping, self.type == V_DICT)
TEST(t_sequence, sequence(self))
TEST(t_iterable, value_iterable(self))
TEST(t_callable, callable(self))
TEST(t_escaped, self.type == V_TEXT && self.text->safe)
TEST(t_lower, is_case(r, self, "islower"))
TEST(t_upper, is_case(r, self, "isupper"))
TEST(t_odd, is_odd(r, self, value_int(2), 1))
TEST(t_even, is_odd(r, self, value_int(2), 0))
TEST(t_divisibleby, is_odd(r, self, args[0], 0))
TEST(t_sameas, same_thing(r, self, args[0]))
TEST(t_in, value_in(r, self, args[0]))
TEST(t_filter, self.type == V_TEXT && filter_known(name_of(r, self, "filter")))
TEST(t_test, self.type == V_TEXT && test_known(name_of(r, self, "test")))
TEST(t_eq, value_equal(r, self, args[0]))
TEST(t_ne, !value_equal(r, self, args[0]))
TEST(t_lt, ordered(r, self, args[0], "<"))
TEST(t_le, ordered(r, self, args[0], "<="))
TEST(t_gt, ordered(r, self, args[0], ">"))
TEST(t_ge, ordered(r, self, args[0], ">="))

/* ---- global functions ------------------------------------------------------------------------ */

FILTER(g_range)
{
    UNUSED;
    enum { MAX_RANGE = 100000 };
    Range *range = room_alloc(r, 1, sizeof *range);
    int64_t part[3] = {0, 0, 1};
    if (!call->n || call->n > 3 || call->n_named)
        room_fail(r, "range expected 1 to 3 arguments, got %zu", call->n);
    for (size_t i = 0; i < call->n; i++) {
        int64_t v = need_int(r, call->args[i], "range");
        if (v > INT64_MAX / 4 || v < -INT64_MAX / 4)
            room_fail(r, "\"range\" of such numbers is not supported");
        part[call->n == 1 ? 1 : i] = v;
    }
    if (!part[2])
        room_fail(r, "range() arg 3 must not be zero");
    int64_t span = part[2] < 0 ? part[0] - part[1] : part[1] - part[0];
    int64_t step = part[2] < 0 ? -part[2] : part[2], n = span > 0 ? (span - 1) / step + 1 : 0;
    if (n > MAX_RANGE)
        room_fail(r, "Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000).");
    *range = (Range){part[0], part[1], part[2], (size_t)n};
    return (Value){.type = V_RANGE, .range = range};
}

/* dict(pairs or a dict, a=1) */
static Dict *make_dict(Room *r, const Call *call, const char *what)
{
    Dict *d = dict_new(r);
    Value item;
    if (call->n > 1)
        room_fail(r, "%s expected at most 1 argument, got %zu", what, call->n);
    if (call->n && call->args[0].type == V_DICT) {
        for (size_t i = 0; i < call->args[0].dict->n; i++)
            dict_set(r, d, call->args[0].dict->keys[i], call->args[0].dict->values[i]);
    } else if (call->n) {
        for (Iter *it = value_iter(r, call->args[0]); iter_next(r, it, &item);) {
            List *pair = value_items(r, item);
            if (pair->n != 2)
                room_fail(r, "%s: got an item of %zu values, want 2", what, pair->n);
            dict_set(r, d, pair->items[0], pair->items[1]);
        }
    }
    for (size_t i = 0; i < call->n_named; i++)
        dict_set(r, d, value_text(r, text_of(r, call->names[i], MARK_TEMPLATE)), call->named[i]);
    return d;
}

FILTER(g_dict)
{
    UNUSED;
    return value_dict(make_dict(r, call, "dict"));
}

FILTER(g_namespace)
{
    UNUSED;
    Dict *d = make_dict(r, call, "namespace");
    for (size_t i = 0; i < d->n; i++)
        if (d->keys[i].type == V_TEXT && d->keys[i].text->len && *d->keys[i].text->bytes == '_')
            room_fail(r, "Chat templates cannot store underscore-prefixed attributes on a "
                         "namespace");
    return (Value){.type = V_NAMESPACE, .dict = d};
}

FILTER(g_raise_exception)
{
    UNUSED;
    room_raise(r, text_str(print_str(r, args[0])));
}

/* strftime() of the present time without a zone, as Python's datetime.now() has none. */
FILTER(g_strftime_now)
{
    UNUSED;
    Text format = text_need(r, args[0], "strftime_now");
    double whole = floor(r->now);
    time_t seconds = (time_t)whole;
    struct tm local;
    if (!localtime_r(&seconds, &local))
        room_fail(r, "strftime_now: the clock has no date");
    Build b = build_begin(r);
    for (size_t i = 0; i < format.len; i++) {
        char text[200], part[4] = "%";
        size_t n = 1;
        if (format.bytes[i] != '%') {
            build_add(&b, text_cut(format, i, i + 1));
            continue;
        }
        while (i + 1 < format.len && n < 3 && (n == 1 || strchr("-_0^#", part[n - 1])))
            part[n++] = format.bytes[++i];
        char kind = part[n - 1];
        if (n == 1 || !kind || !strchr("aAbBcCdDeFgGhHIjklmMnpPrRsStTuUVwWxXyYzZf%", kind))
            room_fail(r, "strftime_now: \"%s\" is not supported", part);
        if (kind == 'f')
            snprintf(text, sizeof text, "%06d", (int)((r->now - whole) * 1e6));
        else if (kind == 'z' || kind == 'Z')
            *text = 0;
        else
            text[strftime(text, sizeof text, part, &local)] = 0;
        build_words(&b, text);
    }
    return build_value(&b);
}

/* ---- tables ---------------------------------------------------------------------------------- */

static const Function filters[] = {
    {"abs", "", f_abs},
    {"batch", "linecount ?fill_with", f_batch},
    {"capitalize", "", f_capitalize},
    {"center", "?width", f_center},
    {"count", "", f_length},
    {"d", "?default_value ?boolean", f_default},
    {"default", "?default_value ?boolean", f_default},
    {"dictsort", "?case_sensitive ?by ?reverse", f_dictsort},
    {"e", "", f_escape},
    {"escape", "", f_escape},
    {"first", "", f_first},
    {"float", "?default", f_float},
    {"forceescape", "", f_forceescape},
    {"format", NULL, f_format},
    {"indent", "?width ?first ?blank", f_indent},
    {"int", "?default ?base", f_int},
    {"items", "", f_items},
    {"join", "?d ?attribute", f_join},
    {"last", "", f_last},
    {"length", "", f_length},
    {"list", "", f_list},
    {"lower", "", f_lower},
    {"map", NULL, f_map},
    {"max", "?case_sensitive ?attribute", f_max},
    {"min", "?case_sensitive ?attribute", f_min},
    {"reject", NULL, f_reject},
    {"rejectattr", NULL, f_rejectattr},
    {"replace", "old new ?count", f_replace},
    {"reverse", "", f_reverse},
    {"round", "?precision ?method", f_round},
    {"safe", "", f_safe},
    {"select", NULL, f_select},
    {"selectattr", NULL, f_selectattr},
    {"slice", "slices ?fill_with", f_slice},
    {"sort", "?reverse ?case_sensitive ?attribute", f_sort},
    {"string", "", f_string},
    {"sum", "?attribute ?start", f_sum},
    {"title", "", f_title},
    {"tojson", "?ensure_ascii ?indent ?separators ?sort_keys", f_tojson},
    {"trim", "?chars", f_trim},
    {"truncate", "?length ?killwords ?end ?leeway", f_truncate},
    {"unique", "?case_sensitive ?attribute", f_unique},
    {"upper", "", f_upper},
    {"urlencode", "", f_urlencode},
    {"wordcount", "", f_wordcount},
    {"attr", NULL, NULL},
    {"filesizeformat", NULL, NULL},
    {"groupby", NULL, NULL},
    {"pprint", NULL, NULL},
    {"random", NULL, NULL},
    {"striptags", NULL, NULL},
    {"urlize", NULL, NULL},
    {"wordwrap", NULL, NULL},
    {"xmlattr", NULL, NULL},
};

static const Function tests[] = {
    {"!=", "other", t_ne},
    {"<", "other", t_lt},
    {"<=", "other", t_le},
    {"==", "other", t_eq},
    {">", "other", t_gt},
    {">=", "other", t_ge},
    {"boolean", "", t_boolean},
    {"callable", "", t_callable},
    {"defined", "", t_defined},
    {"divisibleby", "num", t_divisibleby},
    {"eq", "other", t_eq},
    {"equalto", "other", t_eq},
    {"escaped", "", t_escaped},
    {"even", "", t_even},
    {"false", "", t_false},
    {"filter", "", t_filter},
    {"float", "", t_float},
    {"ge", "other", t_ge},
    {"greaterthan", "other", t_gt},
    {"gt", "other", t_gt},
    {"in", "seq", t_in},
    {"integer", "", t_integer},
    {"iterable", "", t_iterable},
    {"le", "other", t_le},
    {"lessthan", "other", t_lt},
    {"lower", "", t_lower},
    {"lt", "other", t_lt},
    {"mapping", "", t_mapping},
    {"ne", "other", t_ne},
    {"none", "", t_none},
    {"number", "", t_number},
    {"odd", "", t_odd},
    {"sameas", "other", t_sameas},
    {"sequence", "", t_sequence},
    {"string", "", t_string},
    {"test", "", t_test},
    {"true", "", t_true},
    {"undefined", "", t_undefined},
    {"upper", "", t_upper},
};

static const Function globals[] = {
    {"dict", NULL, g_dict},
    {"namespace", NULL, g_namespace},
    {"raise_exception", "message", g_raise_exception},
    {"range", NULL, g_range},
    {"strftime_now", "format", g_strftime_now},
    {"cycler", NULL, NULL},
    {"joiner", NULL, NULL},
    {"lipsum", NULL, NULL},
};

#define FIND(table, name)                                                                          \
    function_find(table, sizeof table / sizeof *table, (Str){name, strlen(name)})

static Known known(const Function *f)
{
    return !f ? KNOWN_NOT : f->run ? KNOWN : KNOWN_ELSEWHERE;
}

Known filter_known(const char *name)
{
    return known(FIND(filters, name));
}

Known test_known(const char *name)
{
    return known(FIND(tests, name));
}

Value filter_run(Room *r, const char *name, Value v, const Call *call)
{
    const Function *f = FIND(filters, name);
    if (!f)
        room_fail(r, "No filter named '%.60s' found.", name);
    room_enter(r); // map('map', ...) calls it again
    Value out = function_call(r, f, v, call);
    room_leave(r);
    return out;
}

bool test_run(Room *r, const char *name, Value v, const Call *call)
{
    const Function *f = FIND(tests, name);
    if (!f)
        room_fail(r, "No test named '%.60s' found.", name);
    return value_truth(function_call(r, f, v, call));
}

Value global_find(const char *name)
{
    const Function *f = FIND(globals, name);
    return f ? (Value){.type = V_FUNCTION, .function = f} : UNDEFINED;
}
