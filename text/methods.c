/* methods.c - calling functions, and the attributes and methods of values. Contracts are in
 * methods.h. */
#include "text/methods.h"

#include <string.h>

#include "base/utf8.h"
#include "text/operators.h"
#include "text/unicode.h"
#include "text/value_print.h"

/* ---- calling --------------------------------------------------------------------------------- */

static const char absent[] = "an argument is missing";

bool is_absent(Value v)
{
    return v.type == V_UNDEFINED && v.undefined == absent;
}

const Function *function_find(const Function *table, size_t n, Str name)
{
    for (size_t i = 0; i < n; i++)
        if (str_eq(name, table[i].name))
            return &table[i];
    return NULL;
}

/* The parameter of that name, -1 for none. */
static int parameter(const char *params, Str name)
{
    int i = 0;
    for (const char *p = params; *p; i++) {
        size_t len = strcspn(p, " ");
        bool optional = *p == '?';
        if (!str_cmp((Str){p + optional, len - optional}, name))
            return i;
        p += len + (p[len] == ' ');
    }
    return -1;
}

Value function_call(Room *r, const Function *f, Value self, const Call *call)
{
    Value args[MAX_PARAMETERS];
    const char *params = f->params;
    size_t n = 0;
    if (!f->run)
        room_fail(r, "\"%s\" is not supported", f->name);
    if (!f->params)
        return f->run(r, self, NULL, call);
    for (int i = 0; i < MAX_PARAMETERS; i++)
        args[i] = value_undefined(absent);
    bool unnamed = *params == '/';
    params += unnamed + (params[unnamed] == ' ');
    for (const char *p = params; *p; p += strcspn(p, " ") + (p[strcspn(p, " ")] == ' '), n++)
        if (n < call->n)
            args[n] = call->args[n];
    if (call->n > n)
        room_fail(r, "%s() takes at most %zu arguments (%zu given)", f->name, n, call->n);
    for (size_t i = 0; i < call->n_named; i++) {
        int at = unnamed ? -1 : parameter(params, call->names[i]);
        if (at < 0 || !is_absent(args[at]))
            room_fail(r, "%s() got an unexpected argument '%.*s'", f->name,
                      (int)(call->names[i].len < 60 ? call->names[i].len : 60), call->names[i].ptr);
        args[at] = call->named[i];
    }
    const char *p = params;
    for (size_t i = 0; i < n; i++, p += strcspn(p, " ") + 1)
        if (*p != '?' && is_absent(args[i]))
            room_fail(r, "%s() is missing its argument '%.*s'", f->name, (int)strcspn(p, " "), p);
    return f->run(r, self, args, call);
}

int64_t need_int(Room *r, Value v, const char *what)
{
    if (v.type == V_UNDEFINED)
        fail_undefined(r, v);
    if (v.type != V_INT && v.type != V_BOOL)
        room_fail(r, "%s: got a %s, want a whole number", what, value_type_name(v));
    return v.type == V_BOOL ? v.truth : v.whole;
}

/* ---- strings --------------------------------------------------------------------------------- */

static Value safe_like(Room *r, Text t, bool safe)
{
    t.safe = safe;
    return value_text(r, t);
}

static bool has_char(Text chars, uint32_t cp)
{
    uint32_t c;
    for (size_t i = 0; i < chars.len;
         i += utf8_decode(chars.bytes + i, chars.bytes + chars.len, &c))
        if (utf8_decode(chars.bytes + i, chars.bytes + chars.len, &c) && c == cp)
            return true;
    return false;
}

static bool strips(Room *r, Text t, size_t at, const Text *chars)
{
    uint32_t cp;
    utf8_decode(t.bytes + at, t.bytes + t.len, &cp);
    room_spend(r, chars ? chars->len / 16 : 0);
    return chars ? has_char(*chars, cp) : unicode_space(cp);
}

/* Where the character before byte `at` begins. */
static size_t char_before(Text t, size_t at)
{
    uint32_t cp;
    for (size_t back = 1; back <= 4 && back <= at; back++)
        if (utf8_decode(t.bytes + at - back, t.bytes + at, &cp) == back && !(cp & UTF8_INVALID))
            return at - back;
    return at - 1;
}

Value text_strip(Room *r, Text t, const Text *chars, bool left, bool right)
{
    size_t from = 0, to = t.len;
    while (left && from < to && strips(r, t, from, chars))
        from = text_offset(r, t, from, 1);
    while (right && from < to && strips(r, t, char_before(t, to), chars))
        to = char_before(t, to);
    room_spend(r, (from + t.len - to) / 64);
    return value_cut(r, t, from, to);
}

static void add_case(Build *b, uint32_t cp, LetterCase to, int mark)
{
    uint32_t out[3];
    if (cp & UTF8_INVALID) {
        build_char(b, cp, mark);
        return;
    }
    int n = unicode_case(cp, to, out);
    for (int i = 0; i < n; i++)
        build_char(b, out[i], mark);
}

/* Whether a final sigma belongs at byte i: a letter before it and none after it. */
static bool ends_word(Text t, size_t i)
{
    uint32_t before = 0, after = 0;
    if (i)
        utf8_decode(t.bytes + char_before(t, i), t.bytes + t.len, &before);
    if (i + 2 < t.len)
        utf8_decode(t.bytes + i + 2, t.bytes + t.len, &after);
    return unicode_letter(before) && !unicode_letter(after);
}

/* t with each character in the case that choose() gives from whether a letter is before it. */
static Value change_case(Room *r, Text t, LetterCase (*choose)(bool first, bool after, uint32_t cp))
{
    Build b = build_begin(r);
    bool after = false;
    room_spend(r, t.len / 8);
    for (size_t i = 0, len; i < t.len; i += len) {
        uint32_t cp;
        len = utf8_decode(t.bytes + i, t.bytes + t.len, &cp);
        LetterCase to = choose(i == 0, after, cp);
        bool sigma = to == CASE_LOWER && cp == 0x3a3 && ends_word(t, i);
        add_case(&b, sigma ? 0x3c2 : cp, sigma ? CASE_LOWER : to, t.marks[i]);
        after = unicode_letter(cp);
    }
    return safe_like(r, build_text(&b), t.safe);
}

static LetterCase to_upper(bool first, bool after, uint32_t cp)
{
    (void)first, (void)after, (void)cp;
    return CASE_UPPER;
}

static LetterCase to_lower(bool first, bool after, uint32_t cp)
{
    (void)first, (void)after, (void)cp;
    return CASE_LOWER;
}

static LetterCase to_capital(bool first, bool after, uint32_t cp)
{
    (void)after, (void)cp;
    return first ? CASE_TITLE : CASE_LOWER;
}

static LetterCase to_title(bool first, bool after, uint32_t cp)
{
    (void)first, (void)cp;
    return after ? CASE_LOWER : CASE_TITLE;
}

static LetterCase to_other(bool first, bool after, uint32_t cp)
{
    (void)first, (void)after;
    return unicode_upper_is(cp) ? CASE_LOWER : CASE_UPPER;
}

Value text_case(Room *r, Text t, bool upper)
{
    return change_case(r, t, upper ? to_upper : to_lower);
}

Value text_capitalize(Room *r, Text t)
{
    return change_case(r, t, to_capital);
}

Value text_replace(Room *r, Text t, Text old, Text with, int64_t count)
{
    Build b = build_begin(r);
    size_t from = 0;
    for (; count; count--) {
        size_t at = old.len ? text_find(r, t, old, from) : from;
        if (at == SIZE_MAX)
            break;
        build_add(&b, text_cut(t, from, at));
        build_add(&b, with);
        from = at + old.len;
        if (!old.len) { // between all characters
            if (from >= t.len)
                break;
            size_t next = text_offset(r, t, from, 1);
            build_add(&b, text_cut(t, from, next));
            from = next;
        }
        room_spend(r, 1);
    }
    build_add(&b, text_cut(t, from, t.len));
    return build_value(&b);
}

static Text filled(Room *r, Text t, size_t before, size_t after, Text fill)
{
    Build b = build_begin(r);
    for (size_t i = 0; i < before; i++)
        build_add(&b, fill);
    build_add(&b, t);
    for (size_t i = 0; i < after; i++)
        build_add(&b, fill);
    Text out = build_text(&b);
    out.safe = t.safe;
    return out;
}

/* How many characters lack to `width`. */
static size_t lacking(Room *r, Text t, int64_t width)
{
    size_t n = text_chars(r, t);
    if (width > 1 << 24)
        room_fail(r, "a width of %lld is not supported", (long long)width);
    return width > 0 && (size_t)width > n ? (size_t)width - n : 0;
}

Value text_center(Room *r, Text t, int64_t width, Text fill)
{
    size_t lack = lacking(r, t, width);
    size_t left = lack / 2 + (lack & (size_t)width & 1);
    return value_text(r, filled(r, t, left, lack - left, fill));
}

/* The length of the line's end at byte i, 0 if there is none. */
static size_t newline_len(Text t, size_t i)
{
    uint32_t cp;
    size_t len = utf8_decode(t.bytes + i, t.bytes + t.len, &cp);
    if (cp == '\r' && i + 1 < t.len && t.bytes[i + 1] == '\n')
        return 2;
    bool ends = (cp >= '\n' && cp <= '\r') || (cp >= 0x1c && cp <= 0x1e) || cp == 0x85
             || cp == 0x2028 || cp == 0x2029;
    return ends ? len : 0;
}

static List *split_lines(Room *r, Text t, bool keep)
{
    List *l = list_new(r);
    size_t from = 0;
    room_spend(r, t.len / 16);
    for (size_t i = 0; i < t.len;) {
        size_t end = newline_len(t, i);
        if (end) {
            list_add(r, l, value_cut(r, t, from, keep ? i + end : i));
            from = i + end;
        }
        i = end ? i + end : text_offset(r, t, i, 1);
    }
    if (from < t.len)
        list_add(r, l, value_cut(r, t, from, t.len));
    return l;
}

List *text_lines(Room *r, Text t)
{
    return split_lines(r, t, false);
}

Value text_concat(Room *r, Text between, Value items, bool convert)
{
    Build b = build_begin(r);
    Value v;
    bool first = true;
    for (Iter *it = value_iter(r, items); iter_next(r, it, &v); first = false) {
        bool is_text = v.type == V_TEXT || !(convert || between.safe);
        Text t = is_text ? text_need(r, v, "join") : print_str(r, v);
        if (!first)
            build_add(&b, between);
        build_add(&b, between.safe && !t.safe ? text_escape(r, t) : t);
    }
    return safe_like(r, build_text(&b), between.safe);
}

/* ---- methods of str -------------------------------------------------------------------------- */

#define METHOD(name) static Value name(Room *r, Value self, const Value *args, const Call *call)
#define UNUSED (void)r, (void)self, (void)args, (void)call

/* An argument that is a string, or a default. */
static Text text_or(Room *r, Value v, Text otherwise, const char *what)
{
    return is_absent(v) || v.type == V_NONE ? otherwise : text_need(r, v, what);
}

static Value strip_method(Room *r, Value self, Value chars, bool left, bool right)
{
    Text t = text_or(r, chars, (Text){0}, "strip");
    bool all = is_absent(chars) || chars.type == V_NONE;
    return text_strip(r, *self.text, all ? NULL : &t, left, right);
}

METHOD(str_strip)
{
    UNUSED;
    return strip_method(r, self, args[0], true, true);
}

METHOD(str_lstrip)
{
    UNUSED;
    return strip_method(r, self, args[0], true, false);
}

METHOD(str_rstrip)
{
    UNUSED;
    return strip_method(r, self, args[0], false, true);
}

METHOD(str_upper)
{
    UNUSED;
    return text_case(r, *self.text, true);
}

METHOD(str_lower)
{
    UNUSED;
    return text_case(r, *self.text, false);
}

METHOD(str_title)
{
    UNUSED;
    return change_case(r, *self.text, to_title);
}

METHOD(str_capitalize)
{
    UNUSED;
    return text_capitalize(r, *self.text);
}

METHOD(str_swapcase)
{
    UNUSED;
    return change_case(r, *self.text, to_other);
}

/* The part of a string that [start:end] of a search means, in bytes; false: it is none. */
static bool search_range(Room *r, Text t, Value start, Value end, size_t *from, size_t *to)
{
    int64_t n = (int64_t)text_chars(r, t);
    int64_t a = is_absent(start) || start.type == V_NONE ? 0 : need_int(r, start, "a start");
    int64_t b = is_absent(end) || end.type == V_NONE ? n : need_int(r, end, "an end");
    a = a < 0 ? (a + n < 0 ? 0 : a + n) : a;
    b = b < 0 ? (b + n < 0 ? 0 : b + n) : b > n ? n : b;
    if (a > b || a > n)
        return false;
    *from = text_offset(r, t, 0, (size_t)a);
    *to = text_offset(r, t, *from, (size_t)(b - a));
    return true;
}

static bool affix(Text t, Text what, bool start)
{
    return what.len <= t.len
        && !memcmp(start ? t.bytes : t.bytes + t.len - what.len, what.bytes, what.len);
}

static Value has_affix(Room *r, Value self, const Value *args, bool start)
{
    size_t from, to;
    bool found = false, tuple = args[0].type == V_TUPLE;
    if (!search_range(r, *self.text, args[1], args[2], &from, &to))
        return value_bool(false);
    Text t = text_cut(*self.text, from, to);
    for (size_t i = 0; i < (tuple ? args[0].list->n : 1); i++) {
        Value v = tuple ? args[0].list->items[i] : args[0];
        found |= affix(t, text_need(r, v, start ? "startswith" : "endswith"), start);
    }
    return value_bool(found);
}

METHOD(str_startswith)
{
    UNUSED;
    return has_affix(r, self, args, true);
}

METHOD(str_endswith)
{
    UNUSED;
    return has_affix(r, self, args, false);
}

METHOD(str_removeprefix)
{
    UNUSED;
    Text t = *self.text, what = text_need(r, args[0], "removeprefix");
    return affix(t, what, true) ? value_cut(r, t, what.len, t.len) : self;
}

METHOD(str_removesuffix)
{
    UNUSED;
    Text t = *self.text, what = text_need(r, args[0], "removesuffix");
    return affix(t, what, false) ? value_cut(r, t, 0, t.len - what.len) : self;
}

/* The last place of `what` that ends by byte `to`. */
static size_t find_last(Room *r, Text t, Text what, size_t from, size_t to)
{
    room_spend(r, 1 + (to - from) / 16);
    for (size_t at = to - from >= what.len ? to - what.len + 1 : from; at-- > from;)
        if (!memcmp(t.bytes + at, what.bytes, what.len))
            return at;
    return SIZE_MAX;
}

static Value find_method(Room *r, Value self, const Value *args, bool last, bool must)
{
    Text t = *self.text, what = text_need(r, args[0], "find");
    size_t from, to, at = SIZE_MAX;
    if (search_range(r, t, args[1], args[2], &from, &to))
        at = last ? find_last(r, t, what, from, to) : text_find(r, text_cut(t, 0, to), what, from);
    if (at == SIZE_MAX && must)
        room_fail(r, "substring not found");
    return value_int(at == SIZE_MAX ? -1 : (int64_t)text_chars(r, text_cut(t, 0, at)));
}

METHOD(str_find)
{
    UNUSED;
    return find_method(r, self, args, false, false);
}

METHOD(str_rfind)
{
    UNUSED;
    return find_method(r, self, args, true, false);
}

METHOD(str_index)
{
    UNUSED;
    return find_method(r, self, args, false, true);
}

METHOD(str_rindex)
{
    UNUSED;
    return find_method(r, self, args, true, true);
}

METHOD(str_count)
{
    UNUSED;
    Text what = text_need(r, args[0], "count");
    size_t from, to, at = 0;
    int64_t n = 0;
    if (!search_range(r, *self.text, args[1], args[2], &from, &to))
        return value_int(0);
    Text t = text_cut(*self.text, from, to);
    if (!what.len)
        return value_int((int64_t)text_chars(r, t) + 1);
    for (; (at = text_find(r, t, what, at)) != SIZE_MAX; at += what.len)
        n++;
    return value_int(n);
}

METHOD(str_replace)
{
    UNUSED;
    Text t = *self.text, old = text_need(r, args[0], "replace"),
         with = text_need(r, args[1], "replace");
    int64_t count = is_absent(args[2]) ? -1 : need_int(r, args[2], "replace");
    if (t.safe && !with.safe)
        with = text_escape(r, with);
    return safe_like(r, *text_replace(r, t, old, with, count).text, t.safe);
}

/* Split at white space. */
static void split_space(Room *r, List *l, Text t, int64_t most)
{
    size_t i = 0;
    for (;;) {
        while (i < t.len && strips(r, t, i, NULL))
            i = text_offset(r, t, i, 1);
        if (i == t.len)
            return;
        size_t from = i;
        if (most-- == 0) {
            Value rest = text_strip(r, text_cut(t, from, t.len), NULL, false, true);
            list_add(r, l, rest);
            return;
        }
        while (i < t.len && !strips(r, t, i, NULL))
            i = text_offset(r, t, i, 1);
        list_add(r, l, value_cut(r, t, from, i));
    }
}

/* The same from the end; the list is in reverse. */
static void rsplit_space(Room *r, List *l, Text t, int64_t most)
{
    size_t i = t.len;
    for (;;) {
        while (i && strips(r, t, char_before(t, i), NULL))
            i = char_before(t, i);
        if (!i)
            return;
        if (most-- == 0) {
            list_add(r, l, text_strip(r, text_cut(t, 0, i), NULL, true, false));
            return;
        }
        size_t to = i;
        while (i && !strips(r, t, char_before(t, i), NULL))
            i = char_before(t, i);
        list_add(r, l, value_cut(r, t, i, to));
    }
}

static void reverse(List *l)
{
    for (size_t i = 0; i < l->n / 2; i++) {
        Value v = l->items[i];
        l->items[i] = l->items[l->n - 1 - i];
        l->items[l->n - 1 - i] = v;
    }
}

static Value split_method(Room *r, Value self, const Value *args, bool last)
{
    Text t = *self.text, sep = text_or(r, args[0], (Text){0}, "split");
    bool space = is_absent(args[0]) || args[0].type == V_NONE;
    int64_t most = is_absent(args[1]) ? -1 : need_int(r, args[1], "maxsplit");
    List *l = list_new(r);
    if (!space && !sep.len)
        room_fail(r, "empty separator");
    room_spend(r, t.len / 16);
    if (space) {
        (last ? rsplit_space : split_space)(r, l, t, most < 0 ? INT64_MAX : most);
    } else {
        size_t from = 0, to = t.len, at;
        for (; most; most--) {
            at = last ? find_last(r, t, sep, 0, to) : text_find(r, t, sep, from);
            if (at == SIZE_MAX)
                break;
            list_add(r, l, last ? value_cut(r, t, at + sep.len, to) : value_cut(r, t, from, at));
            from = last ? from : at + sep.len;
            to = last ? at : to;
        }
        list_add(r, l, value_cut(r, t, from, to));
    }
    if (last)
        reverse(l);
    return value_list(l);
}

METHOD(str_split)
{
    UNUSED;
    return split_method(r, self, args, false);
}

METHOD(str_rsplit)
{
    UNUSED;
    return split_method(r, self, args, true);
}

METHOD(str_splitlines)
{
    UNUSED;
    return value_list(split_lines(r, *self.text, !is_absent(args[0]) && value_truth(args[0])));
}

static Value partition(Room *r, Value self, Value by, bool last)
{
    Text t = *self.text, sep = text_need(r, by, "partition");
    if (!sep.len)
        room_fail(r, "empty separator");
    size_t at = last ? find_last(r, t, sep, 0, t.len) : text_find(r, t, sep, 0);
    bool found = at != SIZE_MAX;
    size_t a = found ? at : last ? 0 : t.len, b = found ? at + sep.len : a;
    List *l = list_new(r);
    list_add(r, l, value_cut(r, t, 0, a));
    list_add(r, l, value_cut(r, t, a, b));
    list_add(r, l, value_cut(r, t, b, t.len));
    return value_tuple(l);
}

METHOD(str_partition)
{
    UNUSED;
    return partition(r, self, args[0], false);
}

METHOD(str_rpartition)
{
    UNUSED;
    return partition(r, self, args[0], true);
}

METHOD(str_join)
{
    UNUSED;
    return text_concat(r, *self.text, args[0], false);
}

METHOD(str_center)
{
    UNUSED;
    Text space = *value_words(r, " ").text;
    return text_center(r, *self.text, need_int(r, args[0], "center"),
                       text_or(r, args[1], space, "center"));
}

static Value justify(Room *r, Value self, const Value *args, bool left)
{
    Text space = *value_words(r, " ").text;
    size_t lack = lacking(r, *self.text, need_int(r, args[0], "a width"));
    Text fill = text_or(r, args[1], space, "a fill");
    if (text_chars(r, fill) != 1)
        room_fail(r, "The fill character must be exactly one character long");
    return value_text(r, filled(r, *self.text, left ? 0 : lack, left ? lack : 0, fill));
}

METHOD(str_ljust)
{
    UNUSED;
    return justify(r, self, args, true);
}

METHOD(str_rjust)
{
    UNUSED;
    return justify(r, self, args, false);
}

METHOD(str_zfill)
{
    UNUSED;
    Text t = *self.text;
    bool sign = t.len && (t.bytes[0] == '+' || t.bytes[0] == '-');
    size_t lack = lacking(r, t, need_int(r, args[0], "zfill"));
    Build b = build_begin(r);
    build_add(&b, text_cut(t, 0, sign));
    build_add(&b, filled(r, text_cut(t, sign, t.len), lack, 0, *value_words(r, "0").text));
    return safe_like(r, build_text(&b), t.safe);
}

static Value format_item(Room *r, Value v, Text name, bool attribute)
{
    if (attribute)
        return value_attribute(r, v, name);
    int64_t index = 0;
    bool digits = name.len > 0 && name.len < 10;
    for (size_t i = 0; i < name.len && digits; i++) {
        digits = name.bytes[i] >= '0' && name.bytes[i] <= '9';
        index = 10 * index + name.bytes[i] - '0';
    }
    return value_item(r, v, digits ? value_int(index) : value_text(r, name));
}

METHOD(str_format)
{
    UNUSED;
    return print_format(r, *self.text, call, format_item);
}

/* ---- str.isX() ------------------------------------------------------------------------------- */

static bool all_chars(Room *r, Text t, bool (*is)(uint32_t cp))
{
    room_spend(r, t.len / 16);
    for (size_t i = 0, len; i < t.len; i += len) {
        uint32_t cp;
        len = utf8_decode(t.bytes + i, t.bytes + t.len, &cp);
        if (!is(cp))
            return false;
    }
    return t.len > 0;
}

/* Whether a letter is there that has a case, and all that have one have this one. */
static bool all_case(Room *r, Text t, bool upper)
{
    bool any = false;
    room_spend(r, t.len / 16);
    for (size_t i = 0, len; i < t.len; i += len) {
        uint32_t cp;
        len = utf8_decode(t.bytes + i, t.bytes + t.len, &cp);
        if (upper ? unicode_lower_is(cp) : unicode_upper_is(cp))
            return false;
        any |= upper ? unicode_upper_is(cp) : unicode_lower_is(cp);
    }
    return any;
}

static bool is_alnum(uint32_t cp)
{
    return unicode_letter(cp) || unicode_decimal(cp);
}

METHOD(str_isalpha)
{
    UNUSED;
    return value_bool(all_chars(r, *self.text, unicode_letter));
}

METHOD(str_isdigit)
{
    UNUSED;
    return value_bool(all_chars(r, *self.text, unicode_decimal));
}

METHOD(str_isalnum)
{
    UNUSED;
    return value_bool(all_chars(r, *self.text, is_alnum));
}

METHOD(str_isspace)
{
    UNUSED;
    return value_bool(all_chars(r, *self.text, unicode_space));
}

METHOD(str_isupper)
{
    UNUSED;
    return value_bool(all_case(r, *self.text, true));
}

METHOD(str_islower)
{
    UNUSED;
    return value_bool(all_case(r, *self.text, false));
}

/* ---- methods of dicts, lists and loops ------------------------------------------------------- */

METHOD(dict_get_method)
{
    UNUSED;
    Value v;
    return dict_get(r, self.dict, args[0], &v) ? v : is_absent(args[1]) ? NONE : args[1];
}

static Value view_of(Room *r, Value self, ViewKind kind)
{
    View *v = room_alloc(r, 1, sizeof *v);
    *v = (View){self.dict, kind};
    return (Value){.type = V_VIEW, .view = v};
}

METHOD(dict_items_method)
{
    UNUSED;
    return view_of(r, self, VIEW_ITEMS);
}

METHOD(dict_keys_method)
{
    UNUSED;
    return view_of(r, self, VIEW_KEYS);
}

METHOD(dict_values_method)
{
    UNUSED;
    return view_of(r, self, VIEW_VALUES);
}

METHOD(self_method) // a copy: nothing changes either
{
    UNUSED;
    return self;
}

METHOD(list_count)
{
    UNUSED;
    int64_t n = 0;
    for (size_t i = 0; i < self.list->n; i++)
        n += value_equal(r, self.list->items[i], args[0]);
    return value_int(n);
}

METHOD(list_index)
{
    UNUSED;
    for (size_t i = 0; i < self.list->n; i++)
        if (value_equal(r, self.list->items[i], args[0]))
            return value_int((int64_t)i);
    room_fail(r, "the list has no such item");
}

bool loop_next(Room *r, Loop *l, Value *out)
{
    bool more = l->peeked ? !l->ended : iter_next(r, l->items, out);
    if (l->peeked && more)
        *out = l->next;
    l->peeked = l->peeked && l->ended;
    if (!more)
        return false;
    l->index0++;
    l->before = l->current;
    l->current = *out;
    return true;
}

/* Read the next item ahead; false: there is none. */
static bool loop_peek(Room *r, Loop *l)
{
    if (!l->peeked)
        l->ended = !iter_next(r, l->items, &l->next);
    l->peeked = true;
    return !l->ended;
}

/* How many items there are in all. Those of a generator are read. */
static int64_t loop_length(Room *r, Loop *l)
{
    size_t n;
    if (l->length >= 0)
        return l->length;
    if (value_length(r, l->source, &n)) {
        l->length = (int64_t)n;
    } else {
        List *rest = value_items(r, (Value){.type = V_ITER, .iter = l->items});
        l->items = value_iter(r, value_list(rest));
        l->length = (int64_t)rest->n + l->index0 + 1 + (l->peeked && !l->ended);
    }
    return l->length;
}

METHOD(loop_cycle)
{
    UNUSED;
    if (!call->n)
        room_fail(r, "no items for cycling given");
    return call->args[(size_t)self.loop->index0 % call->n];
}

METHOD(loop_changed)
{
    UNUSED;
    Loop *l = self.loop;
    List *now = list_new(r);
    for (size_t i = 0; i < call->n; i++)
        list_add(r, now, call->args[i]);
    bool changed = !l->has_changed || !value_equal(r, l->changed, value_tuple(now));
    l->has_changed = true;
    l->changed = value_tuple(now);
    return value_bool(changed);
}

static Value loop_attribute(Room *r, Value v, Text name)
{
    static const char *const names[] = {"index0",   "index",    "first",     "last",
                                        "length",   "revindex", "revindex0", "previtem",
                                        "nextitem", "depth",    "depth0"};
    Loop *l = v.loop;
    size_t i = 0;
    while (i < sizeof names / sizeof *names && !str_eq(text_str(name), names[i]))
        i++;
    switch (i) {
    case 0: return value_int(l->index0);
    case 1: return value_int(l->index0 + 1);
    case 2: return value_bool(l->index0 == 0);
    case 3: return value_bool(!loop_peek(r, l));
    case 4: return value_int(loop_length(r, l));
    case 5: return value_int(loop_length(r, l) - l->index0);
    case 6: return value_int(loop_length(r, l) - l->index0 - 1);
    case 7: return l->index0 ? l->before : value_undefined("there is no previous item");
    case 8: return loop_peek(r, l) ? l->next : value_undefined("there is no next item");
    case 9: return value_int(l->depth0 + 1);
    case 10: return value_int(l->depth0);
    default: return value_undefined(absent);
    }
}

/* ---- attributes ------------------------------------------------------------------------------ */

static const Function str_methods[] = {
    {"strip", "/ ?chars", str_strip},
    {"lstrip", "/ ?chars", str_lstrip},
    {"rstrip", "/ ?chars", str_rstrip},
    {"upper", "", str_upper},
    {"lower", "", str_lower},
    {"title", "", str_title},
    {"capitalize", "", str_capitalize},
    {"swapcase", "", str_swapcase},
    {"startswith", "/ prefix ?start ?end", str_startswith},
    {"endswith", "/ suffix ?start ?end", str_endswith},
    {"removeprefix", "/ prefix", str_removeprefix},
    {"removesuffix", "/ suffix", str_removesuffix},
    {"find", "/ sub ?start ?end", str_find},
    {"rfind", "/ sub ?start ?end", str_rfind},
    {"index", "/ sub ?start ?end", str_index},
    {"rindex", "/ sub ?start ?end", str_rindex},
    {"count", "/ sub ?start ?end", str_count},
    {"replace", "/ old new ?count", str_replace},
    {"split", "?sep ?maxsplit", str_split},
    {"rsplit", "?sep ?maxsplit", str_rsplit},
    {"splitlines", "?keepends", str_splitlines},
    {"partition", "/ sep", str_partition},
    {"rpartition", "/ sep", str_rpartition},
    {"join", "/ iterable", str_join},
    {"center", "/ width ?fillchar", str_center},
    {"ljust", "/ width ?fillchar", str_ljust},
    {"rjust", "/ width ?fillchar", str_rjust},
    {"zfill", "/ width", str_zfill},
    {"format", NULL, str_format},
    {"isalpha", "", str_isalpha},
    {"isdigit", "", str_isdigit},
    {"isdecimal", "", str_isdigit},
    {"isnumeric", "", str_isdigit},
    {"isalnum", "", str_isalnum},
    {"isspace", "", str_isspace},
    {"isupper", "", str_isupper},
    {"islower", "", str_islower},
    {"casefold", NULL, NULL},
    {"encode", NULL, NULL},
    {"expandtabs", NULL, NULL},
    {"format_map", NULL, NULL},
    {"isascii", NULL, NULL},
    {"isidentifier", NULL, NULL},
    {"isprintable", NULL, NULL},
    {"istitle", NULL, NULL},
    {"maketrans", NULL, NULL},
    {"translate", NULL, NULL},
};
static const Function dict_methods[] = {
    {"get", "/ key ?default", dict_get_method},
    {"items", "", dict_items_method},
    {"keys", "", dict_keys_method},
    {"values", "", dict_values_method},
    {"copy", "", self_method},
    {"fromkeys", NULL, NULL},
};
static const Function list_methods[] = {
    {"count", "/ value", list_count}, {"index", "/ value", list_index}, {"copy", "", self_method}};
static const Function range_methods[] = {{"count", NULL, NULL},
                                         {"index", NULL, NULL},
                                         {"start", NULL, NULL},
                                         {"stop", NULL, NULL},
                                         {"step", NULL, NULL}};
static const Function loop_methods[] = {{"cycle", NULL, loop_cycle},
                                        {"changed", NULL, loop_changed}};
static const Function number_methods[] = {
    {"as_integer_ratio", NULL, NULL}, {"bit_count", NULL, NULL},   {"bit_length", NULL, NULL},
    {"conjugate", NULL, NULL},        {"denominator", NULL, NULL}, {"from_bytes", NULL, NULL},
    {"fromhex", NULL, NULL},          {"hex", NULL, NULL},         {"imag", NULL, NULL},
    {"is_integer", NULL, NULL},       {"numerator", NULL, NULL},   {"real", NULL, NULL},
    {"to_bytes", NULL, NULL}};

#define TABLE(t) t, sizeof t / sizeof *t

/* Methods of a type, and those that would change a value of it. */
static const struct {
    const Function *table;
    size_t n;
    const char *changing;
} types[N_TYPES] = {
    [V_TEXT] = {TABLE(str_methods), ""},
    [V_DICT] = {TABLE(dict_methods), "clear pop popitem setdefault update"},
    [V_LIST] = {TABLE(list_methods), "append clear pop reverse insert sort extend remove"},
    [V_TUPLE] = {list_methods, 2, ""},
    [V_LOOP] = {TABLE(loop_methods), ""},
    [V_RANGE] = {TABLE(range_methods), ""},
    [V_INT] = {TABLE(number_methods), ""},
    [V_BIG] = {TABLE(number_methods), ""},
    [V_BOOL] = {TABLE(number_methods), ""},
    [V_FLOAT] = {TABLE(number_methods), ""},
};

static Value no_attribute(Room *r, Value v, Text name)
{
    return value_missing(r, "'%s object' has no attribute '%.*s'", value_type_name(v),
                         (int)(name.len < 80 ? name.len : 80), name.bytes);
}

/* What getattr() of Python gives, or an absent value. */
static Value own_attribute(Room *r, Value v, Text name)
{
    Str s = text_str(name);
    Value found, key = {.type = V_TEXT, .text = &name};
    if (v.type == V_NAMESPACE)
        return dict_get(r, v.dict, key, &found) ? found : value_undefined(absent);
    if (v.type == V_LOOP && !is_absent(found = loop_attribute(r, v, name)))
        return found;
    const Function *f = function_find(types[v.type].table, types[v.type].n, s);
    if (f) {
        Method *m = room_alloc(r, 1, sizeof *m);
        *m = (Method){v, f};
        return (Value){.type = V_METHOD, .method = m};
    }
    bool dunder = s.len > 4 && !memcmp(s.ptr, "__", 2) && !memcmp(s.ptr + s.len - 2, "__", 2);
    if (dunder || (types[v.type].changing && s.len && str_listed(s, types[v.type].changing)))
        return value_missing(r, "access to attribute '%.*s' of '%s' object is unsafe.",
                             (int)(s.len < 60 ? s.len : 60), s.ptr, value_type_name(v));
    return value_undefined(absent);
}

/* v[index] of Python, or an absent value. */
static Value own_item(Room *r, Value v, Value index)
{
    size_t i, n;
    Value found;
    if (v.type == V_DICT) // a list as the key is an error of Python's, and undefined for Jinja
        return index.type != V_LIST && index.type != V_DICT && index.type != V_SLICE
                    && dict_get(r, v.dict, index, &found)
                 ? found
                 : value_undefined(absent);
    bool whole = index.type == V_INT || index.type == V_BOOL;
    if (!whole || !value_length(r, v, &n)
        || !value_index(index.type == V_BOOL ? index.truth : index.whole, n, &i))
        return value_undefined(absent);
    switch (v.type) {
    case V_TEXT: {
        size_t from = text_offset(r, *v.text, 0, i);
        return value_cut(r, *v.text, from, text_offset(r, *v.text, from, 1));
    }
    case V_LIST:
    case V_TUPLE: return v.list->items[i];
    case V_RANGE: return value_int(v.range->start + (int64_t)i * v.range->step);
    default: return value_undefined(absent);
    }
}

Value value_attribute(Room *r, Value v, Text name)
{
    if (v.type == V_UNDEFINED)
        fail_undefined(r, v);
    Value found = own_attribute(r, v, name), key = {.type = V_TEXT, .text = &name};
    if (is_absent(found))
        found = own_item(r, v, key);
    return is_absent(found) ? no_attribute(r, v, name) : found;
}

Value value_item(Room *r, Value v, Value index)
{
    if (v.type == V_UNDEFINED)
        fail_undefined(r, v);
    if (index.type == V_SLICE)
        return value_slice(r, v, index.slice);
    Value found = own_item(r, v, index);
    if (is_absent(found) && index.type == V_TEXT)
        found = own_attribute(r, v, *index.text);
    if (!is_absent(found))
        return found;
    Build b = build_begin(r);
    print_repr(&b, index);
    Text shown = build_text(&b);
    return value_missing(r, "%s object has no element %.*s", value_type_name(v),
                         (int)(shown.len < 80 ? shown.len : 80), shown.bytes);
}
