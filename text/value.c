/* value.c - memory, strings, lists and dicts of chat templates. Contracts are in value.h. */
#define _GNU_SOURCE // memmem
#include "text/value.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

/* ---- room ------------------------------------------------------------------------------------ */

struct Chunk {
    Chunk *next;
    _Alignas(16) char bytes[];
};

enum { CHUNK = 1 << 16, ALIGNMENT = 16, FEW_KEYS = 8 };

void room_free(Room *r)
{
    while (r->chunks) {
        Chunk *next = r->chunks->next;
        free(r->chunks);
        r->chunks = next;
    }
    r->at = NULL;
    r->left = r->bytes = 0;
}

void room_fail(Room *r, const char *fmt, ...)
{
    char text[500];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    err_set(r->err, EXIT_MODEL, "chat template, line %d: %s", r->line, text);
    longjmp(r->escape, 1);
}

void room_raise(Room *r, Str message)
{
    size_t n = 0;
    r->err->code = EXIT_USAGE;
    for (size_t i = 0; i < message.len && n + 5 < sizeof r->err->text; i++) {
        unsigned char c = (unsigned char)message.ptr[i];
        bool plain = c >= 0x20 && c != 0x7f; // it goes to a terminal, as one line
        n += plain ? (r->err->text[n] = (char)c, 1)
                   : (size_t)snprintf(r->err->text + n, 5, "\\x%02x", c);
    }
    r->err->text[utf8_complete(r->err->text, n)] = 0;
    longjmp(r->escape, 1);
}

void fail_undefined(Room *r, Value v)
{
    room_fail(r, "%s", v.undefined ? v.undefined : "a value is undefined");
}

static _Noreturn void out_of_memory(Room *r)
{
    err_set(r->err, EXIT_MEMORY, "out of memory for the chat template");
    longjmp(r->escape, 1);
}

void *room_alloc(Room *r, size_t n, size_t size)
{
    size_t bytes;
    if (!size_mul(n, size, &bytes) || !size_align(bytes ? bytes : 1, ALIGNMENT, &bytes))
        out_of_memory(r);
    if (bytes > r->max_bytes - r->bytes)
        room_fail(r, "it needs more than %zu MB", r->max_bytes >> 20);
    r->bytes += bytes;
    room_spend(r, 1 + bytes / 256);
    if (bytes > r->left) {
        size_t own = bytes > CHUNK / 4 ? bytes : CHUNK; // a large one leaves the present one
        Chunk *c = malloc(sizeof *c + own);
        if (!c)
            out_of_memory(r);
        c->next = r->chunks;
        r->chunks = c;
        if (own == bytes)
            return c->bytes;
        r->at = c->bytes;
        r->left = own;
    }
    void *p = r->at;
    r->at += bytes;
    r->left -= bytes;
    return p;
}

void *room_grow(Room *r, void *old, size_t n, size_t *cap, size_t size)
{
    if (n <= *cap)
        return old;
    size_t want = 2 * *cap > n ? 2 * *cap : n < 4 ? 4 : n;
    void *grown = room_alloc(r, want, size);
    if (*cap)
        memcpy(grown, old, *cap * size);
    *cap = want;
    return grown;
}

void room_spend(Room *r, size_t steps)
{
    r->steps += steps;
    if (r->steps > r->max_steps)
        room_fail(r, "it takes more than %llu steps", (unsigned long long)r->max_steps);
}

void room_enter(Room *r)
{
    room_spend(r, 1);
    if (++r->depth > ROOM_MAX_DEPTH)
        room_fail(r, "it goes more than %d levels deep", ROOM_MAX_DEPTH);
}

void room_leave(Room *r)
{
    r->depth--;
}

/* ---- texts ----------------------------------------------------------------------------------- */

static const char *const type_names[N_TYPES] = {[V_UNDEFINED] = "Undefined",
                                                [V_NONE] = "NoneType",
                                                [V_BOOL] = "bool",
                                                [V_INT] = "int",
                                                [V_BIG] = "int",
                                                [V_FLOAT] = "float",
                                                [V_TEXT] = "str",
                                                [V_LIST] = "list",
                                                [V_TUPLE] = "tuple",
                                                [V_DICT] = "dict",
                                                [V_NAMESPACE] = "namespace",
                                                [V_RANGE] = "range",
                                                [V_VIEW] = "dict view",
                                                [V_ITER] = "generator",
                                                [V_FUNCTION] = "function",
                                                [V_METHOD] = "method",
                                                [V_MACRO] = "macro",
                                                [V_LOOP] = "loop",
                                                [V_SLICE] = "slice"};

const char *value_type_name(Value v)
{
    return type_names[v.type];
}

Value value_missing(Room *r, const char *fmt, ...)
{
    char text[200];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    size_t n = strlen(text) + 1;
    return value_undefined(memcpy(room_alloc(r, n, 1), text, n));
}

Value value_text(Room *r, Text t)
{
    Text *own = room_alloc(r, 1, sizeof *own);
    *own = t;
    return (Value){.type = V_TEXT, .text = own};
}

Text text_of(Room *r, Str s, int mark)
{
    char *p = room_alloc(r, s.len, 2);
    if (s.len)
        memcpy(p, s.ptr, s.len);
    memset(p + s.len, mark, s.len);
    return (Text){.bytes = p, .marks = p + s.len, .len = s.len};
}

Value value_words(Room *r, const char *s)
{
    return value_text(r, text_of(r, (Str){s, strlen(s)}, MARK_TEMPLATE));
}

Text text_cut(Text t, size_t from, size_t to)
{
    t.bytes += from;
    t.marks += from;
    t.len = to - from;
    return t;
}

Value value_cut(Room *r, Text t, size_t from, size_t to)
{
    return value_text(r, text_cut(t, from, to));
}

Text text_need(Room *r, Value v, const char *what)
{
    if (v.type == V_UNDEFINED)
        fail_undefined(r, v);
    if (v.type != V_TEXT)
        room_fail(r, "%s: got a %s, want a string", what, value_type_name(v));
    return *v.text;
}

Str text_str(Text t)
{
    return (Str){t.bytes, t.len};
}

bool text_is(Value v, const char *s)
{
    return v.type == V_TEXT && str_eq(text_str(*v.text), s);
}

int text_cmp(Text a, Text b)
{
    int c = str_cmp(text_str(a), text_str(b)); // the order of UTF-8 is that of code points
    return (c > 0) - (c < 0);
}

static size_t char_len(Text t, size_t at)
{
    uint32_t cp;
    return utf8_decode(t.bytes + at, t.bytes + t.len, &cp);
}

size_t text_chars(Room *r, Text t)
{
    size_t n = 0;
    room_spend(r, t.len / 64);
    for (size_t i = 0; i < t.len; i += char_len(t, i))
        n++;
    return n;
}

size_t text_offset(Room *r, Text t, size_t from, size_t n)
{
    room_spend(r, n / 64);
    for (; n && from < t.len; n--)
        from += char_len(t, from);
    return from;
}

size_t text_find(Room *r, Text t, Text what, size_t from)
{
    room_spend(r, 1 + (t.len - from) / 64);
    if (!what.len)
        return from;
    const char *p = memmem(t.bytes + from, t.len - from, what.bytes, what.len);
    return p ? (size_t)(p - t.bytes) : SIZE_MAX;
}

Build build_begin(Room *r)
{
    Rope *rope = room_alloc(r, 1, sizeof *rope);
    *rope = (Rope){0};
    return (Build){r, rope};
}

/* Room for n more bytes at the end; the texts made so far keep the bytes that they view. */
static void rope_reserve(Room *r, Rope *rope, size_t n)
{
    size_t need, want;
    if (n <= rope->cap - rope->used)
        return;
    if (!size_add(rope->used, n, &need) || need > SIZE_MAX / 8)
        out_of_memory(r);
    want = rope->cap ? 2 * need : need < 64 ? 64 : need;
    char *p = room_alloc(r, want, 2);
    if (rope->used) {
        memcpy(p, rope->bytes, rope->used);
        memcpy(p + want, rope->marks, rope->used);
    }
    *rope = (Rope){p, p + want, rope->used, want};
}

void build_add(Build *b, Text t)
{
    rope_reserve(b->room, b->rope, t.len);
    if (!t.len)
        return;
    memcpy(b->rope->bytes + b->rope->used, t.bytes, t.len);
    memcpy(b->rope->marks + b->rope->used, t.marks, t.len);
    b->rope->used += t.len;
    room_spend(b->room, t.len / 64);
}

void build_bytes(Build *b, const char *s, size_t n, int mark)
{
    rope_reserve(b->room, b->rope, n);
    if (!n)
        return;
    memcpy(b->rope->bytes + b->rope->used, s, n);
    memset(b->rope->marks + b->rope->used, mark, n);
    b->rope->used += n;
}

void build_words(Build *b, const char *s)
{
    build_bytes(b, s, strlen(s), MARK_TEMPLATE);
}

void build_char(Build *b, uint32_t cp, int mark)
{
    char utf8[4] = {(char)cp};
    build_bytes(b, utf8, cp & UTF8_INVALID ? 1 : utf8_encode(cp, utf8), mark);
}

Text build_text(const Build *b)
{
    const Rope *p = b->rope;
    return (Text){p->bytes ? p->bytes : "", p->marks ? p->marks : "", p->used, b->rope, false};
}

Value build_value(const Build *b)
{
    return value_text(b->room, build_text(b));
}

Value text_join2(Room *r, Text a, Text b)
{
    Build out = {r, a.rope};
    bool at_end = a.rope && a.len && a.bytes + a.len == a.rope->bytes + a.rope->used;
    size_t before = a.len;
    if (at_end) { // nothing lies behind it yet: what is added does not change it
        size_t offset = (size_t)(a.bytes - a.rope->bytes);
        build_add(&out, b);
        return value_cut(r, build_text(&out), offset, offset + before + b.len);
    }
    out = build_begin(r);
    build_add(&out, a);
    build_add(&out, b);
    return build_value(&out);
}

Text text_escape(Room *r, Text t)
{
    static const char *const names[128] = {
        ['&'] = "&amp;", ['<'] = "&lt;", ['>'] = "&gt;", ['\''] = "&#39;", ['"'] = "&#34;"};
    Build b = build_begin(r);
    for (size_t i = 0; i < t.len; i++) {
        unsigned char c = (unsigned char)t.bytes[i];
        if (c < 128 && names[c])
            build_bytes(&b, names[c], strlen(names[c]), t.marks[i]);
        else
            build_add(&b, text_cut(t, i, i + 1));
    }
    Text out = build_text(&b);
    out.safe = true;
    return out;
}

/* ---- lists and dicts ------------------------------------------------------------------------- */

List *list_new(Room *r)
{
    List *l = room_alloc(r, 1, sizeof *l);
    *l = (List){0};
    return l;
}

void list_add(Room *r, List *l, Value v)
{
    l->items = room_grow(r, l->items, l->n + 1, &l->cap, sizeof *l->items);
    l->items[l->n++] = v;
}

Value value_list(List *l)
{
    return (Value){.type = V_LIST, .list = l};
}

Value value_tuple(List *l)
{
    return (Value){.type = V_TUPLE, .list = l};
}

Value value_pair(Room *r, Value a, Value b)
{
    List *l = list_new(r);
    list_add(r, l, a);
    list_add(r, l, b);
    return value_tuple(l);
}

Dict *dict_new(Room *r)
{
    Dict *d = room_alloc(r, 1, sizeof *d);
    *d = (Dict){0};
    return d;
}

Value value_dict(Dict *d)
{
    return (Value){.type = V_DICT, .dict = d};
}

/* FNV-1a. What is equal has one hash; fails for what Python calls unhashable. */
static uint32_t hash(Room *r, Value v)
{
    uint32_t h = 2166136261u;
    const char *p = NULL;
    size_t n = 0;
    double d = 0;
    room_enter(r);
    if (v.type == V_TEXT || v.type == V_BIG) {
        p = v.text->bytes;
        n = v.text->len;
        room_spend(r, n / 64);
    } else if (is_number(v)) {
        d = value_number(r, v) + 0.0; // -0 is 0
        p = (const char *)&d;
        n = sizeof d;
    } else if (v.type == V_TUPLE) {
        for (size_t i = 0; i < v.list->n; i++)
            h = (h ^ hash(r, v.list->items[i])) * 16777619u;
    } else if (v.type == V_LIST || v.type == V_DICT || v.type == V_SLICE) {
        room_fail(r, "unhashable type: '%s'", value_type_name(v));
    }
    for (size_t i = 0; i < n; i++)
        h = (h ^ (unsigned char)p[i]) * 16777619u;
    room_leave(r);
    return h ^ h >> 15;
}

/* The key's number, d->n for none; *slot is where the table has it, or has room for it. */
static size_t dict_find(Room *r, const Dict *d, Value key, size_t *slot)
{
    uint32_t h = hash(r, key);
    *slot = 0;
    if (!d->table) {
        for (size_t i = 0; i < d->n; i++)
            if (value_equal(r, d->keys[i], key))
                return i;
        return d->n;
    }
    for (*slot = h & (d->table_size - 1); d->table[*slot];
         *slot = (*slot + 1) & (d->table_size - 1)) {
        room_spend(r, 1);
        if (value_equal(r, d->keys[d->table[*slot] - 1], key))
            return d->table[*slot] - 1;
    }
    return d->n;
}

bool dict_get(Room *r, const Dict *d, Value key, Value *out)
{
    size_t slot, i = dict_find(r, d, key, &slot);
    if (i == d->n)
        return false;
    *out = d->values[i];
    return true;
}

static void dict_index(Room *r, Dict *d)
{
    size_t slot, n = d->n;
    d->table_size = d->table_size ? 2 * d->table_size : 4 * FEW_KEYS;
    d->table = room_alloc(r, d->table_size, sizeof *d->table);
    memset(d->table, 0, d->table_size * sizeof *d->table);
    for (d->n = 0; d->n < n; d->n++) {
        dict_find(r, d, d->keys[d->n], &slot);
        d->table[slot] = (uint32_t)d->n + 1;
    }
}

void dict_set(Room *r, Dict *d, Value key, Value v)
{
    size_t slot, i = dict_find(r, d, key, &slot);
    if (i < d->n) {
        d->values[i] = v;
        return;
    }
    d->keys = room_grow(r, d->keys, d->n + 1, &d->cap, sizeof *d->keys);
    d->values = room_grow(r, d->values, d->n + 1, &d->values_cap, sizeof *d->values);
    d->keys[d->n] = key;
    d->values[d->n] = v;
    if (d->table)
        d->table[slot] = (uint32_t)d->n + 1;
    d->n++;
    if (d->n > FEW_KEYS && 2 * d->n > d->table_size)
        dict_index(r, d);
}

Value dict_named(Room *r, const Dict *d, const char *key)
{
    Text t = {.bytes = key, .marks = key, .len = strlen(key)};
    Value v;
    return dict_get(r, d, (Value){.type = V_TEXT, .text = &t}, &v) ? v : UNDEFINED;
}

/* ---- any value ------------------------------------------------------------------------------- */

bool value_truth(Value v)
{
    switch (v.type) {
    case V_UNDEFINED:
    case V_NONE: return false;
    case V_BOOL: return v.truth;
    case V_INT: return v.whole != 0;
    case V_FLOAT: return v.number != 0;
    case V_TEXT: return v.text->len > 0;
    case V_LIST:
    case V_TUPLE: return v.list->n > 0;
    case V_DICT: return v.dict->n > 0;
    case V_RANGE: return v.range->n > 0;
    case V_VIEW: return v.view->dict->n > 0;
    default: return true;
    }
}

double value_number(Room *r, Value v)
{
    switch (v.type) {
    case V_BOOL: return v.truth;
    case V_INT: return (double)v.whole;
    case V_FLOAT: return v.number;
    case V_UNDEFINED: fail_undefined(r, v);
    default: room_fail(r, "got a %s, want a number", value_type_name(v));
    }
}

/* Of a whole number and a float, exactly. */
static int int_order(int64_t a, double b)
{
    if (isnan(b))
        return 2;
    if (b >= 9223372036854775808.0)
        return -1;
    if (b < -9223372036854775808.0)
        return 1;
    int64_t whole = (int64_t)b;
    if (a != whole)
        return a < whole ? -1 : 1;
    double rest = b - (double)whole;
    return rest > 0 ? -1 : rest < 0;
}

/* Of numbers that do not fit 64 bits: all others are between the negative and the positive ones. */
static int big_order(Room *r, Value a, Value b)
{
    bool minus = *a.text->bytes == '-';
    if (b.type == V_FLOAT) {
        Build digits = build_begin(r);
        build_add(&digits, *a.text);
        build_bytes(&digits, "", 1, 0);
        double d = strtod(digits.rope->bytes, NULL);
        return isnan(b.number) ? 2 : (d > b.number) - (d < b.number);
    }
    if (b.type != V_BIG || minus != (*b.text->bytes == '-'))
        return minus ? -1 : 1;
    int c = a.text->len != b.text->len ? (a.text->len > b.text->len) * 2 - 1
                                       : text_cmp(*a.text, *b.text);
    return minus ? -c : c;
}

static int number_order(Value a, Value b)
{
    int64_t ia = a.type == V_BOOL ? a.truth : a.whole, ib = b.type == V_BOOL ? b.truth : b.whole;
    if (a.type == V_FLOAT && b.type == V_FLOAT)
        return isnan(a.number) || isnan(b.number) ? 2
                                                  : (a.number > b.number) - (a.number < b.number);
    if (a.type == V_FLOAT) {
        int c = int_order(ib, a.number);
        return c == 2 ? 2 : -c;
    }
    return b.type == V_FLOAT ? int_order(ia, b.number) : (ia > ib) - (ia < ib);
}

static bool same_dicts(Room *r, const Dict *a, const Dict *b)
{
    Value v;
    if (a->n != b->n)
        return false;
    for (size_t i = 0; i < a->n; i++)
        if (!dict_get(r, b, a->keys[i], &v) || !value_equal(r, a->values[i], v))
            return false;
    return true;
}

static bool same(Room *r, Value a, Value b)
{
    if (is_number(a) && is_number(b))
        return number_order(a, b) == 0;
    if (a.type == V_BIG && b.type == V_FLOAT)
        return big_order(r, a, b) == 0;
    if (a.type == V_FLOAT && b.type == V_BIG)
        return big_order(r, b, a) == 0;
    if (a.type != b.type)
        return false;
    switch (a.type) {
    case V_UNDEFINED:
    case V_NONE: return true;
    case V_BIG:
    case V_TEXT: room_spend(r, a.text->len / 64); return !text_cmp(*a.text, *b.text);
    case V_LIST:
    case V_TUPLE:
        for (size_t i = 0; i < a.list->n && a.list->n == b.list->n; i++)
            if (!value_equal(r, a.list->items[i], b.list->items[i]))
                return false;
        return a.list->n == b.list->n;
    case V_DICT: return same_dicts(r, a.dict, b.dict);
    case V_RANGE:
        return a.range->n == b.range->n
            && (!a.range->n
                || (a.range->start == b.range->start
                    && (a.range->n == 1 || a.range->step == b.range->step)));
    default: return a.dict == b.dict; // the same thing
    }
}

bool value_equal(Room *r, Value a, Value b)
{
    room_enter(r);
    bool equal = same(r, a, b);
    room_leave(r);
    return equal;
}

/* Lists are ordered by their first items that differ. */
static int list_order(Room *r, const List *a, const List *b, const char *op)
{
    size_t n = a->n < b->n ? a->n : b->n;
    for (size_t i = 0; i < n; i++)
        if (!value_equal(r, a->items[i], b->items[i]))
            return value_order(r, a->items[i], b->items[i], op);
    return (a->n > b->n) - (a->n < b->n);
}

int value_order(Room *r, Value a, Value b, const char *op)
{
    int c;
    room_enter(r);
    if (a.type == V_UNDEFINED || b.type == V_UNDEFINED) {
        fail_undefined(r, a.type == V_UNDEFINED ? a : b);
    } else if (is_number(a) && is_number(b)) {
        c = number_order(a, b);
    } else if (a.type == V_BIG && (is_number(b) || b.type == V_BIG)) {
        c = big_order(r, a, b);
    } else if (b.type == V_BIG && is_number(a)) {
        c = big_order(r, b, a);
        c = c == 2 ? 2 : -c;
    } else if (a.type == b.type && a.type == V_TEXT) {
        room_spend(r, a.text->len / 64);
        c = text_cmp(*a.text, *b.text);
    } else if (a.type == b.type && (a.type == V_LIST || a.type == V_TUPLE)) {
        c = list_order(r, a.list, b.list, op);
    } else {
        room_fail(r, "'%s' not supported between instances of '%s' and '%s'", op,
                  value_type_name(a), value_type_name(b));
    }
    room_leave(r);
    return c;
}

bool value_length(Room *r, Value v, size_t *out)
{
    switch (v.type) {
    case V_UNDEFINED: *out = 0; return true;
    case V_TEXT: *out = text_chars(r, *v.text); return true;
    case V_LIST:
    case V_TUPLE: *out = v.list->n; return true;
    case V_DICT: *out = v.dict->n; return true;
    case V_RANGE: *out = v.range->n; return true;
    case V_VIEW: *out = v.view->dict->n; return true;
    default: return false;
    }
}

bool value_in(Room *r, Value item, Value box)
{
    Value v;
    if (box.type == V_TEXT)
        return text_find(r, *box.text, text_need(r, item, "in a string"), 0) != SIZE_MAX;
    if (box.type == V_DICT)
        return dict_get(r, box.dict, item, &v);
    if (box.type == V_VIEW && box.view->kind == VIEW_KEYS)
        return dict_get(r, box.view->dict, item, &v);
    for (Iter *it = value_iter(r, box); iter_next(r, it, &v);)
        if (value_equal(r, v, item))
            return true;
    return false;
}

/* ---- iterating ------------------------------------------------------------------------------- */

static bool next_of_list(Room *r, Iter *it, Value *out)
{
    (void)r;
    if (it->at >= it->source.list->n)
        return false;
    *out = it->source.list->items[it->at++];
    return true;
}

static bool next_of_text(Room *r, Iter *it, Value *out)
{
    Text t = *it->source.text;
    if (it->at >= t.len)
        return false;
    size_t end = it->at + char_len(t, it->at);
    t.safe = false;
    *out = value_cut(r, t, it->at, end);
    it->at = end;
    return true;
}

static bool next_of_range(Room *r, Iter *it, Value *out)
{
    const Range *range = it->source.range;
    (void)r;
    if (it->at >= range->n)
        return false;
    *out = value_int(range->start + (int64_t)it->at++ * range->step);
    return true;
}

static bool next_of_dict(Room *r, Iter *it, Value *out)
{
    bool view = it->source.type == V_VIEW;
    const Dict *d = view ? it->source.view->dict : it->source.dict;
    ViewKind kind = view ? it->source.view->kind : VIEW_KEYS;
    if (it->at >= d->n)
        return false;
    size_t i = it->at++;
    *out = kind == VIEW_KEYS   ? d->keys[i]
         : kind == VIEW_VALUES ? d->values[i]
                               : value_pair(r, d->keys[i], d->values[i]);
    return true;
}

static bool next_of_nothing(Room *r, Iter *it, Value *out)
{
    (void)r, (void)it, (void)out;
    return false;
}

bool value_iterable(Value v)
{
    switch (v.type) {
    case V_UNDEFINED:
    case V_TEXT:
    case V_LIST:
    case V_TUPLE:
    case V_DICT:
    case V_RANGE:
    case V_VIEW:
    case V_ITER:
    case V_LOOP: return true;
    default: return false;
    }
}

Iter *value_iter(Room *r, Value v)
{
    Iter *it = v.type == V_ITER ? v.iter : room_alloc(r, 1, sizeof *it);
    if (v.type == V_ITER)
        return it;
    *it = (Iter){.source = v};
    switch (v.type) {
    case V_UNDEFINED: it->next = next_of_nothing; break;
    case V_TEXT: it->next = next_of_text; break;
    case V_LIST:
    case V_TUPLE: it->next = next_of_list; break;
    case V_DICT:
    case V_VIEW: it->next = next_of_dict; break;
    case V_RANGE: it->next = next_of_range; break;
    default: room_fail(r, "'%s' object is not iterable", value_type_name(v));
    }
    return it;
}

bool iter_next(Room *r, Iter *it, Value *out)
{
    room_spend(r, 1);
    return it->next(r, it, out);
}

List *value_items(Room *r, Value v)
{
    List *l = list_new(r);
    Value item;
    for (Iter *it = value_iter(r, v); iter_next(r, it, &item);)
        list_add(r, l, item);
    return l;
}
