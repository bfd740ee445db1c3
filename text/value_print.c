/* value_print.c - values as text. Contracts are in value_print.h. */
#include "text/value_print.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "text/unicode.h"

/* ---- numbers --------------------------------------------------------------------------------- */

/* repr() of a float: the fewest digits that are read back the same. */
static void print_float(Build *out, double d)
{
    char digits[40], text[64];
    if (!isfinite(d)) {
        build_words(out, isnan(d) ? "nan" : d < 0 ? "-inf" : "inf");
        return;
    }
    for (int p = 0; p < 17; p++) {
        snprintf(digits, sizeof digits, "%.*e", p, d);
        if (strtod(digits, NULL) == d)
            break;
    }
    int exponent = atoi(strchr(digits, 'e') + 1);
    int n = (int)strcspn(digits + (*digits == '-'), "e"); // with the point
    n = n > 1 ? n - 1 : n;
    if (exponent < -4 || exponent >= 16) {
        char *e = strchr(digits, 'e');
        snprintf(text, sizeof text, "%.*se%c%02d", (int)(e - digits), digits,
                 exponent < 0 ? '-' : '+', abs(exponent));
    } else {
        int decimals = n - 1 - exponent;
        snprintf(text, sizeof text, "%.*f", decimals > 1 ? decimals : 1, d);
    }
    build_words(out, text);
}

static void print_int(Build *out, int64_t i)
{
    char text[32];
    snprintf(text, sizeof text, "%" PRId64, i);
    build_words(out, text);
}

/* ---- str() and repr() ------------------------------------------------------------------------ */

static void repr_text(Build *out, Text t)
{
    static const char plain[] = "\\\n\r\t", letters[] = "\\nrt";
    bool single = memchr(t.bytes, '\'', t.len), twice = memchr(t.bytes, '"', t.len);
    char quote = single && !twice ? '"' : '\'', text[16];
    build_bytes(out, &quote, 1, MARK_TEMPLATE);
    for (size_t i = 0, len; i < t.len; i += len) {
        uint32_t cp;
        int mark = t.marks[i];
        len = utf8_decode(t.bytes + i, t.bytes + t.len, &cp);
        const char *found = cp && cp < 128 ? strchr(plain, (int)cp) : NULL;
        if (found)
            build_bytes(out, (char[]){'\\', letters[found - plain]}, 2, mark);
        else if (cp == (uint32_t)quote)
            build_bytes(out, (char[]){'\\', quote}, 2, mark);
        else if (unicode_printable(cp))
            build_add(out, text_cut(t, i, i + len));
        else
            build_bytes(out, text,
                        (size_t)snprintf(text, sizeof text,
                                         cp < 256       ? "\\x%02x"
                                         : cp < 0x10000 ? "\\u%04x"
                                                        : "\\U%08x",
                                         (unsigned)(cp & ~UTF8_INVALID)),
                        mark);
    }
    build_bytes(out, &quote, 1, MARK_TEMPLATE);
}

static void repr_list(Build *out, Value v, const char *open, const char *close)
{
    build_words(out, open);
    for (size_t i = 0; i < v.list->n; i++) {
        build_words(out, i ? ", " : "");
        print_repr(out, v.list->items[i]);
    }
    build_words(out, v.type == V_TUPLE && v.list->n == 1 ? "," : "");
    build_words(out, close);
}

static void repr_dict(Build *out, const Dict *d)
{
    build_words(out, "{");
    for (size_t i = 0; i < d->n; i++) {
        build_words(out, i ? ", " : "");
        print_repr(out, d->keys[i]);
        build_words(out, ": ");
        print_repr(out, d->values[i]);
    }
    build_words(out, "}");
}

static void repr_view(Build *out, Value v)
{
    static const char *const names[] = {"dict_items(", "dict_keys(", "dict_values("};
    build_words(out, names[v.view->kind]);
    print_repr(out, value_list(value_items(out->room, v)));
    build_words(out, ")");
}

static void repr_range(Build *out, const Range *range)
{
    build_words(out, "range(");
    print_int(out, range->start);
    build_words(out, ", ");
    print_int(out, range->stop);
    if (range->step != 1) {
        build_words(out, ", ");
        print_int(out, range->step);
    }
    build_words(out, ")");
}

void print_repr(Build *out, Value v)
{
    room_enter(out->room);
    switch (v.type) {
    case V_UNDEFINED: build_words(out, "Undefined"); break;
    case V_NONE: build_words(out, "None"); break;
    case V_BOOL: build_words(out, v.truth ? "True" : "False"); break;
    case V_INT: print_int(out, v.whole); break;
    case V_BIG: build_add(out, *v.text); break;
    case V_FLOAT: print_float(out, v.number); break;
    case V_TEXT:
        build_words(out, v.text->safe ? "Markup(" : "");
        repr_text(out, *v.text);
        build_words(out, v.text->safe ? ")" : "");
        break;
    case V_LIST: repr_list(out, v, "[", "]"); break;
    case V_TUPLE: repr_list(out, v, "(", ")"); break;
    case V_DICT: repr_dict(out, v.dict); break;
    case V_NAMESPACE:
        build_words(out, "<Namespace ");
        repr_dict(out, v.dict);
        build_words(out, ">");
        break;
    case V_RANGE: repr_range(out, v.range); break;
    case V_VIEW: repr_view(out, v); break;
    default: // Python's have an address
        build_words(out, "<");
        build_words(out, value_type_name(v));
        build_words(out, ">");
    }
    room_leave(out->room);
}

void print_value(Build *out, Value v)
{
    if (v.type == V_TEXT)
        build_add(out, *v.text);
    else if (v.type != V_UNDEFINED)
        print_repr(out, v);
}

Text print_str(Room *r, Value v)
{
    if (v.type == V_TEXT) {
        Text t = *v.text;
        t.safe = false;
        return t;
    }
    Build b = build_begin(r);
    print_value(&b, v);
    return build_text(&b);
}

/* ---- JSON ------------------------------------------------------------------------------------ */

static void json_escape(Build *out, uint32_t unit, int mark)
{
    char text[16];
    build_bytes(out, text, (size_t)snprintf(text, sizeof text, "\\u%04x", (unsigned)unit), mark);
}

static void json_text_of(Build *out, Text t, bool ascii)
{
    static const char escaped[] = "\"\\\b\f\n\r\t", letters[] = "\"\\bfnrt";
    build_words(out, "\"");
    for (size_t i = 0, len; i < t.len; i += len) {
        uint32_t cp;
        int mark = t.marks[i];
        len = utf8_decode(t.bytes + i, t.bytes + t.len, &cp);
        const char *found = cp && cp < 128 ? strchr(escaped, (int)cp) : NULL;
        if (found) {
            build_bytes(out, (char[]){'\\', letters[found - escaped]}, 2, mark);
        } else if (cp < 0x20 || (ascii && cp > 0x7e && cp < 0x10000)) {
            json_escape(out, cp, mark);
        } else if (ascii && cp > 0xffff && !(cp & UTF8_INVALID)) {
            json_escape(out, 0xd800 + ((cp - 0x10000) >> 10), mark);
            json_escape(out, 0xdc00 + ((cp - 0x10000) & 0x3ff), mark);
        } else {
            build_add(out, text_cut(t, i, i + len));
        }
    }
    build_words(out, "\"");
}

static void json_number_of(Build *out, Value v)
{
    if (v.type == V_FLOAT && !isfinite(v.number))
        build_words(out, isnan(v.number) ? "NaN" : v.number < 0 ? "-Infinity" : "Infinity");
    else
        print_repr(out, v);
}

static void json_line(Build *out, const JsonStyle *style, int level)
{
    if (!style->indented)
        return;
    build_words(out, "\n");
    for (int i = 0; i < level; i++)
        build_add(out, style->indent);
}

static void json_value(Build *out, Value v, const JsonStyle *style, int level);

static void json_key_of(Build *out, Value key, const JsonStyle *style)
{
    Room *r = out->room;
    if (key.type == V_TEXT) {
        json_text_of(out, *key.text, style->ascii);
    } else if (key.type <= V_FLOAT && key.type != V_UNDEFINED) {
        build_words(out, "\"");
        json_value(out, key, style, 0);
        build_words(out, "\"");
    } else {
        room_fail(r, "keys must be str, int, float, bool or None, not %s", value_type_name(key));
    }
}

/* The numbers of the keys in their order. Insertion into runs that are merged: no more than
 * n log n comparisons. */
static void sort_keys(Room *r, const Dict *d, size_t *order, size_t *other, size_t n)
{
    if (n < 2)
        return;
    size_t half = n / 2, i = 0, j = half, k = 0;
    sort_keys(r, d, order, other, half);
    sort_keys(r, d, order + half, other, n - half);
    while (i < half && j < n)
        other[k++] = value_order(r, d->keys[order[j]], d->keys[order[i]], "<") < 0 ? order[j++]
                                                                                   : order[i++];
    while (i < half)
        other[k++] = order[i++];
    memcpy(order, other, k * sizeof *order);
}

static void json_dict(Build *out, const Dict *d, const JsonStyle *style, int level)
{
    Room *r = out->room;
    size_t *order = room_alloc(r, d->n, sizeof *order), *other = NULL;
    for (size_t i = 0; i < d->n; i++)
        order[i] = i;
    if (style->sort_keys) {
        other = room_alloc(r, d->n, sizeof *other);
        sort_keys(r, d, order, other, d->n);
    }
    build_words(out, "{");
    for (size_t i = 0; i < d->n; i++) {
        if (i)
            build_add(out, style->comma);
        json_line(out, style, level + 1);
        json_key_of(out, d->keys[order[i]], style);
        build_add(out, style->colon);
        json_value(out, d->values[order[i]], style, level + 1);
    }
    if (d->n)
        json_line(out, style, level);
    build_words(out, "}");
}

static void json_value(Build *out, Value v, const JsonStyle *style, int level)
{
    Room *r = out->room;
    room_enter(r);
    switch (v.type) {
    case V_NONE: build_words(out, "null"); break;
    case V_BOOL: build_words(out, v.truth ? "true" : "false"); break;
    case V_INT:
    case V_BIG:
    case V_FLOAT: json_number_of(out, v); break;
    case V_TEXT: json_text_of(out, *v.text, style->ascii); break;
    case V_LIST:
    case V_TUPLE:
        build_words(out, "[");
        for (size_t i = 0; i < v.list->n; i++) {
            if (i)
                build_add(out, style->comma);
            json_line(out, style, level + 1);
            json_value(out, v.list->items[i], style, level + 1);
        }
        if (v.list->n)
            json_line(out, style, level);
        build_words(out, "]");
        break;
    case V_DICT: json_dict(out, v.dict, style, level); break;
    default: room_fail(r, "Object of type %s is not JSON serializable", value_type_name(v));
    }
    room_leave(r);
}

void print_json(Build *out, Value v, const JsonStyle *style)
{
    json_value(out, v, style, 0);
}

/* ---- formats --------------------------------------------------------------------------------- */

enum { MAX_WIDTH = 10000 };

typedef struct {
    Text fill; // one character
    char align, sign, group, type;
    bool alternate, zero, has_precision;
    int width, precision;
} Spec;

/* `body` with `head` (sign and prefix) before it, filled up to the width. */
static void print_filled(Build *out, const Spec *s, Text head, Text body, char align)
{
    size_t used = text_chars(out->room, head) + text_chars(out->room, body);
    size_t fill = (size_t)s->width > used ? (size_t)s->width - used : 0;
    size_t before = align == '>' || align == '=' ? fill : align == '^' ? fill / 2 : 0;
    if (align == '=')
        build_add(out, head);
    for (size_t i = 0; i < before; i++)
        build_add(out, s->fill);
    if (align != '=')
        build_add(out, head);
    build_add(out, body);
    for (size_t i = before; i < fill; i++)
        build_add(out, s->fill);
}

static Text words(Room *r, const char *s)
{
    return text_of(r, (Str){s, strlen(s)}, MARK_TEMPLATE);
}

/* Put `group` between each `every` digits of the whole part of a number. */
static Text group_digits(Room *r, const char *digits, char group, size_t every)
{
    Build b = build_begin(r);
    size_t whole = strspn(digits, "0123456789abcdefABCDEF");
    if (every == 3)
        whole = strspn(digits, "0123456789");
    for (size_t i = 0; i < whole; i++) {
        if (i && (whole - i) % every == 0)
            build_bytes(&b, &group, 1, MARK_TEMPLATE);
        build_bytes(&b, digits + i, 1, MARK_TEMPLATE);
    }
    build_words(&b, digits + whole);
    return build_text(&b);
}

/* A number of any kind by a spec, shared by both languages of formats. */
static void print_number(Build *out, const Spec *s, Value v, char align)
{
    Room *r = out->room;
    char digits[400], head[8] = "";
    bool whole = strchr("bcdoxX", s->type) && s->type;
    double d = whole ? 0 : value_number(r, v);
    int64_t i = v.type == V_BOOL ? v.truth : v.type == V_INT ? v.whole : 0;
    bool minus = whole ? i < 0 : signbit(d) && !isnan(d);
    uint64_t u = i < 0 ? 0 - (uint64_t)i : (uint64_t)i;
    size_t h = 0;
    if (minus || (s->sign && s->sign != '-'))
        head[h++] = minus ? '-' : s->sign;
    if (s->alternate && whole && s->type != 'd') {
        head[h++] = '0';
        head[h++] = s->type;
    }
    head[h] = 0;
    if (s->type == 'b') {
        size_t n = 0;
        char reversed[65];
        do
            reversed[n++] = (char)('0' + (u & 1));
        while (u >>= 1);
        for (size_t k = 0; k < n; k++)
            digits[k] = reversed[n - 1 - k];
        digits[n] = 0;
    } else if (whole) {
        const char *format = s->type == 'o' ? "%" PRIo64
                           : s->type == 'x' ? "%" PRIx64
                           : s->type == 'X' ? "%" PRIX64
                                            : "%" PRIu64;
        snprintf(digits, sizeof digits, format, u);
    } else {
        char format[] = "%.*f";
        int precision = s->has_precision ? s->precision : 6;
        format[3] = s->type == '%' ? 'f' : s->type;
        if (s->type == '%')
            d *= 100;
        if (precision > 50)
            room_fail(r, "a precision of %d is not supported", precision);
        if (s->alternate)
            room_fail(r, "\"#\" in a number's format is not supported");
        snprintf(digits, sizeof digits, format, precision, fabs(d));
        strcat(digits, s->type == '%' ? "%" : "");
    }
    Text body = s->group ? group_digits(r, digits, s->group, strchr("boxX", s->type) ? 4 : 3)
                         : words(r, digits);
    print_filled(out, s, words(r, head), body, align);
}

/* ---- % --------------------------------------------------------------------------------------- */

/* What a %-format takes its values from. */
typedef struct {
    Value all;
    size_t at;
    bool named; // %(name)s was there
} Percent;

static Value percent_next(Room *r, Percent *p)
{
    bool tuple = p->all.type == V_TUPLE;
    if (p->at >= (tuple ? p->all.list->n : 1))
        room_fail(r, "not enough arguments for format string");
    return tuple ? p->all.list->items[p->at++] : (p->at++, p->all);
}

static int percent_number(Room *r, Text f, size_t *i, Percent *p)
{
    int n = 0;
    if (*i < f.len && f.bytes[*i] == '*') {
        Value v = percent_next(r, p);
        ++*i;
        if (v.type != V_INT || v.whole < 0 || v.whole > MAX_WIDTH)
            room_fail(r, "* wants int");
        return (int)v.whole;
    }
    for (; *i < f.len && f.bytes[*i] >= '0' && f.bytes[*i] <= '9'; ++*i)
        if ((n = 10 * n + f.bytes[*i] - '0') > MAX_WIDTH)
            room_fail(r, "a width of more than %d is not supported", MAX_WIDTH);
    return n;
}

/* A whole number of what %d gets. */
static Value percent_int(Room *r, Value v, char type)
{
    if (v.type == V_FLOAT && type == 'd' && fabs(v.number) < 9e18)
        return value_int((int64_t)v.number);
    if (v.type != V_INT && v.type != V_BOOL)
        room_fail(r, "%%%c format: a number is required, not %s", type, value_type_name(v));
    return v;
}

static Text percent_text(Room *r, Value v, char type, bool safe)
{
    Build b = build_begin(r);
    if (type == 'r')
        print_repr(&b, v);
    else if (type == 'c' && v.type == V_INT && v.whole >= 0 && v.whole < 0x110000)
        build_char(&b, (uint32_t)v.whole, MARK_TEMPLATE);
    else if (type == 'c' && (v.type != V_TEXT || text_chars(r, *v.text) != 1))
        room_fail(r, "%%c requires int or char");
    else
        print_value(&b, v);
    bool escape = safe && !(v.type == V_TEXT && v.text->safe);
    return escape ? text_escape(r, build_text(&b)) : build_text(&b);
}

static void percent_value(Build *out, Text f, size_t *i, Percent *p)
{
    Room *r = out->room;
    Spec s = {.fill = words(r, " ")};
    Value v = UNDEFINED;
    bool named = false, left = false;
    if (f.bytes[*i] == '(') {
        size_t end = *i;
        while (end < f.len && f.bytes[end] != ')')
            end++;
        if (end == f.len || p->all.type != V_DICT)
            room_fail(r, end == f.len ? "incomplete format key" : "format requires a mapping");
        if (!dict_get(r, p->all.dict, value_cut(r, f, *i + 1, end), &v))
            room_fail(r, "a %%-format names a key that is not there");
        named = p->named = true;
        *i = end + 1;
    }
    for (; *i < f.len && strchr("#0- +", f.bytes[*i]) && f.bytes[*i]; ++*i) {
        char c = f.bytes[*i];
        left |= c == '-';
        s.zero |= c == '0';
        s.alternate |= c == '#';
        if (c == '+' || (c == ' ' && s.sign != '+'))
            s.sign = c;
    }
    s.width = percent_number(r, f, i, p);
    if (*i < f.len && f.bytes[*i] == '.') {
        ++*i;
        s.has_precision = true;
        s.precision = percent_number(r, f, i, p);
    }
    while (*i < f.len && strchr("hlL", f.bytes[*i]) && f.bytes[*i])
        ++*i;
    if (*i >= f.len)
        room_fail(r, "incomplete format");
    s.type = f.bytes[(*i)++];
    if (s.type == '%') {
        build_words(out, "%");
        return;
    }
    if (!s.type || !strchr("srcdiuoxXeEfFgG", s.type))
        room_fail(r, "unsupported format character '%c' in a %%-format", s.type);
    v = named ? v : percent_next(r, p);
    if (strchr("src", s.type)) {
        Text t = percent_text(r, v, s.type, f.safe);
        if (s.has_precision)
            t = text_cut(t, 0, text_offset(r, t, 0, (size_t)s.precision));
        print_filled(out, &s, words(r, ""), t, left ? '<' : '>');
        return;
    }
    if (strchr("diuoxX", s.type)) {
        s.type = strchr("iu", s.type) ? 'd' : s.type;
        v = percent_int(r, v, s.type);
        if (s.has_precision)
            room_fail(r, "a precision of whole numbers is not supported");
    }
    if (s.zero && !left)
        s.fill = words(r, "0");
    print_number(out, &s, v, left ? '<' : s.zero ? '=' : '>');
}

Value print_percent(Room *r, Text f, Value v)
{
    Build out = build_begin(r);
    Percent p = {.all = v};
    for (size_t i = 0, end; i < f.len; i = end) {
        for (end = i; end < f.len && f.bytes[end] != '%'; end++)
            ;
        build_add(&out, text_cut(f, i, end));
        if (end == f.len)
            break;
        if (++end == f.len)
            room_fail(r, "incomplete format");
        percent_value(&out, f, &end, &p);
    }
    bool mapping = v.type == V_DICT || v.type == V_LIST || v.type == V_RANGE
                || v.type == V_UNDEFINED; // of what has [], nothing need be used
    if (!p.named && !mapping && p.at < (v.type == V_TUPLE ? v.list->n : 1))
        room_fail(r, "not all arguments converted during string formatting");
    Text t = build_text(&out);
    t.safe = f.safe;
    return value_text(r, t);
}

/* ---- str.format() ---------------------------------------------------------------------------- */

/* What a format takes its values from. */
typedef struct {
    const Call *call;
    FieldGet *get;
    size_t next;   // of {} without a number
    bool numbered; // {0} was there
    int level;
} Fields;

static Text format_text(Room *r, Text f, Fields *fields);

static bool all_digits(Text t)
{
    for (size_t i = 0; i < t.len; i++)
        if (t.bytes[i] < '0' || t.bytes[i] > '9')
            return false;
    return t.len > 0 && t.len < 10;
}

static size_t digits_of(Text t)
{
    size_t n = 0;
    for (size_t i = 0; i < t.len; i++)
        n = 10 * n + (size_t)(t.bytes[i] - '0');
    return n;
}

static Value format_first(Room *r, Fields *fields, Text name)
{
    const Call *call = fields->call;
    if (!name.len || all_digits(name)) {
        size_t i = name.len ? digits_of(name) : fields->next++;
        if (name.len ? fields->next > 0 : fields->numbered)
            room_fail(r, "cannot switch between manual and automatic field numbers");
        fields->numbered = name.len > 0;
        if (i >= call->n)
            room_fail(r, "Replacement index %zu out of range for positional args tuple", i);
        return call->args[i];
    }
    for (size_t i = 0; i < call->n_named; i++)
        if (!str_cmp(call->names[i], text_str(name)))
            return call->named[i];
    room_fail(r, "format: there is no \"%.*s\"", (int)(name.len < 60 ? name.len : 60), name.bytes);
}

/* "name.attribute[item]" */
static Value format_field(Room *r, Fields *fields, Text t)
{
    size_t i = 0;
    while (i < t.len && t.bytes[i] != '.' && t.bytes[i] != '[')
        i++;
    Value v = format_first(r, fields, text_cut(t, 0, i));
    while (i < t.len) {
        bool attribute = t.bytes[i] == '.';
        size_t from = ++i;
        while (i < t.len
               && (attribute ? t.bytes[i] != '.' && t.bytes[i] != '[' : t.bytes[i] != ']'))
            i++;
        if (i == from || (!attribute && i == t.len))
            room_fail(r, "format: a field's name is not complete");
        Text name = text_cut(t, from, i);
        v = fields->get(r, v, name, attribute);
        i += !attribute;
    }
    return v;
}

static Spec read_spec(Room *r, Text t)
{
    Spec s = {.fill = words(r, " ")};
    size_t i = 0, first = t.len ? text_offset(r, t, 0, 1) : 0;
    if (first < t.len && strchr("<>=^", t.bytes[first]) && t.bytes[first]) {
        s.fill = text_cut(t, 0, first);
        s.align = t.bytes[first];
        i = first + 1;
    } else if (t.len && strchr("<>=^", t.bytes[0]) && t.bytes[0]) {
        s.align = t.bytes[0];
        i = 1;
    }
    if (i < t.len && strchr("+- ", t.bytes[i]) && t.bytes[i])
        s.sign = t.bytes[i++];
    if (i < t.len && t.bytes[i] == '#') {
        s.alternate = true;
        i++;
    }
    if (i < t.len && t.bytes[i] == '0') {
        s.zero = true;
        i++;
    }
    Percent none = {.all = value_tuple(list_new(r))};
    bool digit = i < t.len && t.bytes[i] >= '0' && t.bytes[i] <= '9';
    s.width = digit ? percent_number(r, t, &i, &none) : 0;
    if (i < t.len && (t.bytes[i] == ',' || t.bytes[i] == '_'))
        s.group = t.bytes[i++];
    if (i < t.len && t.bytes[i] == '.') {
        size_t from = ++i;
        s.has_precision = true;
        s.precision = percent_number(r, t, &i, &none);
        if (i == from)
            room_fail(r, "Format specifier missing precision");
    }
    if (i < t.len)
        s.type = t.bytes[i++];
    if (i < t.len || (s.type && !strchr("sdbcoxXeEfFgGn%", s.type)))
        room_fail(r, "the format \"%.*s\" is not supported", (int)(t.len < 60 ? t.len : 60),
                  t.bytes);
    return s;
}

static void format_value(Build *out, Value v, Text spec)
{
    Room *r = out->room;
    if (!spec.len) {
        print_value(out, v);
        return;
    }
    Spec s = read_spec(r, spec);
    bool number = v.type == V_INT || v.type == V_FLOAT || v.type == V_BOOL;
    if (v.type == V_TEXT && (!s.type || s.type == 's') && s.align != '=' && !s.sign && !s.group
        && !s.alternate) {
        Text t = *v.text;
        if (s.has_precision)
            t = text_cut(t, 0, text_offset(r, t, 0, (size_t)s.precision));
        if (s.zero && !s.align)
            s.fill = words(r, "0");
        print_filled(out, &s, words(r, ""), t, s.align ? s.align : '<');
        return;
    }
    bool whole_type = s.type && strchr("dboxX", s.type);
    if (!number || s.type == 's' || s.type == 'n' || s.type == 'c'
        || (v.type == V_FLOAT && (whole_type || !s.type)) || (whole_type && s.has_precision)
        || (v.type == V_BOOL && !s.type))
        room_fail(r, "the format \"%.*s\" of a %s is not supported",
                  (int)(spec.len < 60 ? spec.len : 60), spec.bytes, value_type_name(v));
    s.type = s.type ? s.type : 'd';
    if (s.zero && !s.align)
        s.fill = words(r, "0");
    if (s.zero && s.group)
        room_fail(r, "zeros and separators in one format are not supported");
    print_number(out, &s, v, s.align ? s.align : s.zero ? '=' : '>');
}

/* The replacement field that begins after the brace at i; *i is then behind its closing brace. */
static void format_one(Build *out, Text f, size_t *i, Fields *fields)
{
    Room *r = out->room;
    size_t from = *i, open = 0, name_end = SIZE_MAX, end = from;
    char conversion = 0;
    bool bracket = false;
    for (; end < f.len && (f.bytes[end] != '}' || open || bracket); end++) {
        char c = f.bytes[end];
        if (name_end == SIZE_MAX && !bracket && (c == ':' || c == '!'))
            name_end = end;
        bracket = name_end == SIZE_MAX && (c == '[' || (bracket && c != ']'));
        open += c == '{';
        open -= c == '}' && open;
    }
    if (end == f.len)
        room_fail(r, "expected '}' before end of string");
    name_end = name_end == SIZE_MAX ? end : name_end;
    size_t spec = name_end;
    if (f.bytes[spec] == '!') {
        conversion = spec + 1 < end ? f.bytes[spec + 1] : 0;
        spec += 2;
        if ((conversion != 's' && conversion != 'r') || spec > end
            || (spec < end && f.bytes[spec] != ':'))
            room_fail(r, "format: only !s and !r are supported");
    }
    Value v = format_field(r, fields, text_cut(f, from, name_end));
    if (conversion) {
        Build b = build_begin(r);
        (conversion == 'r' ? print_repr : print_value)(&b, v);
        v = build_value(&b);
    }
    Text rest = spec < end ? format_text(r, text_cut(f, spec + 1, end), fields) : words(r, "");
    Build b = build_begin(r);
    format_value(&b, v, rest);
    bool escape = f.safe && !(v.type == V_TEXT && v.text->safe);
    build_add(out, escape ? text_escape(r, build_text(&b)) : build_text(&b));
    *i = end + 1;
}

static Text format_text(Room *r, Text f, Fields *fields)
{
    Build out = build_begin(r);
    if (fields->level++ > 2)
        room_fail(r, "Max string recursion exceeded");
    for (size_t i = 0; i < f.len;) {
        size_t end = i;
        while (end < f.len && f.bytes[end] != '{' && f.bytes[end] != '}')
            end++;
        build_add(&out, text_cut(f, i, end));
        i = end;
        if (i == f.len)
            break;
        char c = f.bytes[i++];
        if (i < f.len && f.bytes[i] == c)
            build_add(&out, text_cut(f, i, i + 1)), i++;
        else if (c == '}')
            room_fail(r, "Single '}' encountered in format string");
        else
            format_one(&out, f, &i, fields);
    }
    fields->level--;
    return build_text(&out);
}

Value print_format(Room *r, Text f, const Call *call, FieldGet *get)
{
    Fields fields = {.call = call, .get = get};
    Text t = format_text(r, f, &fields);
    t.safe = f.safe;
    return value_text(r, t);
}
