/* json_read.c - see json_read.h. */
#include "base/json_read.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

typedef struct {
    const char *start, *p, *end; // p: the next byte
    JsonDoc *doc;
    size_t room; // nodes that there is memory for
    int depth;
    Err *e;
} Reader;

/* ---- errors ---------------------------------------------------------------------------------- */

__attribute__((format(printf, 2, 3))) static int fail(Reader *r, const char *fmt, ...)
{
    char what[200];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    return err_set(r->e, EXIT_USAGE, "JSON at byte %zu: %s", (size_t)(r->p - r->start) + 1, what);
}

static int no_memory(Reader *r)
{
    return err_set(r->e, EXIT_MEMORY, "memory: cannot read %zu bytes of JSON",
                   (size_t)(r->end - r->start));
}

/* The next byte cannot follow what came before. */
static int unexpected(Reader *r, const char *want)
{
    if (r->p == r->end)
        return fail(r, "the text ends, want %s", want);
    if (*r->p > 0x20 && *r->p < 0x7f)
        return fail(r, "got %c, want %s", *r->p, want);
    return fail(r, "got the byte 0x%02x, want %s", (unsigned char)*r->p, want);
}

/* ---- numbers --------------------------------------------------------------------------------- */

/* More digits than this decide nothing but on which side of a midpoint between two doubles a number
 * lies, and a midpoint has at most 767. */
enum { MAX_DIGITS = 780 };

/* digits * 10^exponent without zeros at either end; no digits are zero. */
typedef struct {
    bool negative;
    int n;
    int64_t exponent;
    char digits[MAX_DIGITS];
} Decimal;

/* Of a number that follows the grammar. Any length of it takes linear time. */
static void read_decimal(Str raw, Decimal *d)
{
    const char *p = raw.ptr, *end = p + raw.len;
    bool fraction = false;
    int64_t zeros = 0; // digits read that are not, or not yet, in d->digits
    d->negative = *p == '-';
    p += d->negative;
    d->n = 0;
    d->exponent = 0;
    for (; p < end && *p != 'e' && *p != 'E'; p++) {
        if (*p == '.') {
            fraction = true;
            continue;
        }
        d->exponent -= fraction;
        if (*p == '0' || d->n == MAX_DIGITS) {
            zeros += d->n > 0;
            continue;
        }
        for (; zeros && d->n < MAX_DIGITS; zeros--)
            d->digits[d->n++] = '0';
        if (d->n < MAX_DIGITS) {
            d->digits[d->n++] = *p;
        } else { // too far behind: the last zero becomes 1, which is on the same side
            d->digits[MAX_DIGITS - 1] = '1';
            zeros++;
        }
    }
    d->exponent += zeros;
    if (p == end)
        return;
    bool below = *++p == '-';
    int64_t written = 0;
    for (p += below || *p == '+'; p < end; p++)
        if (written < INT64_MAX / 100) // no text is so long that it could make up for more
            written = written * 10 + (*p - '0');
    d->exponent += below ? -written : written;
}

/* Whether it is a whole number, but for the sign, that 64 bits surely hold; then *out is it. */
static bool whole(const Decimal *d, uint64_t *out)
{
    enum { WHOLE_DIGITS = 19 };
    *out = 0;
    if (d->n && (d->exponent < 0 || d->exponent > WHOLE_DIGITS - d->n))
        return false;
    for (int i = 0; d->n && i < d->n + d->exponent; i++)
        *out = *out * 10 + (uint64_t)(i < d->n ? d->digits[i] - '0' : 0);
    return true;
}

/* Rounded as strtod does. It is given no decimal point, which would depend on the locale. */
static double nearest(Str raw)
{
    Decimal d;
    char text[sizeof d.digits + 16];
    uint64_t size;
    read_decimal(raw, &d);
    double v;
    if (whole(&d, &size)) {
        v = (double)size;
    } else {
        int64_t limit = 2 * MAX_DIGITS; // numbers beyond are 0 or infinite
        int64_t exponent = d.exponent < -limit ? -limit : d.exponent > limit ? limit : d.exponent;
        memcpy(text, d.digits, (size_t)d.n);
        snprintf(text + d.n, sizeof text - (size_t)d.n, "e%d", (int)exponent);
        v = strtod(text, NULL);
    }
    return d.negative ? -v : v;
}

bool json_integer(const JsonNode *n, int64_t lo, int64_t hi, int64_t *out)
{
    Decimal d;
    uint64_t size;
    if (n->type != JSON_NUMBER)
        return false;
    read_decimal(n->raw, &d);
    if (!whole(&d, &size) || size > (uint64_t)INT64_MAX + d.negative)
        return false;
    int64_t v = d.negative && size ? -(int64_t)(size - 1) - 1 : (int64_t)size;
    if (v < lo || v > hi)
        return false;
    *out = v;
    return true;
}

static bool at_digit(const Reader *r)
{
    return r->p < r->end && *r->p >= '0' && *r->p <= '9';
}

static bool at(const Reader *r, char c)
{
    return r->p < r->end && *r->p == c;
}

static int skip_digits(Reader *r)
{
    if (!at_digit(r))
        return unexpected(r, "a digit");
    while (at_digit(r))
        r->p++;
    return 0;
}

static int read_number(Reader *r)
{
    r->p += at(r, '-');
    if (at(r, '0'))
        r->p++;
    else if (skip_digits(r))
        return -1;
    if (at(r, '.')) {
        r->p++;
        if (skip_digits(r))
            return -1;
    }
    if (at(r, 'e') || at(r, 'E')) {
        r->p++;
        r->p += at(r, '-') || at(r, '+');
        return skip_digits(r);
    }
    return 0;
}

/* ---- strings --------------------------------------------------------------------------------- */

/* The four digits after "\u", whose backslash comes next. */
static int read_unit(Reader *r, uint32_t *unit)
{
    static const char digits[] = "0123456789abcdef0123456789ABCDEF";
    *unit = 0;
    r->p += 2;
    for (int i = 0; i < 4; i++, r->p++) {
        const char *found = r->p < r->end && *r->p ? strchr(digits, *r->p) : NULL;
        if (!found)
            return unexpected(r, "four hexadecimal digits after \\u");
        *unit = *unit << 4 | ((uint32_t)(found - digits) & 15);
    }
    return 0;
}

/* An escape, whose backslash comes next. */
static int read_escape(Reader *r)
{
    static const char letters[] = "\"\\/bfnrt", meant[] = "\"\\/\b\f\n\r\t";
    Buf *out = &r->doc->strings;
    const char *start = r->p;
    char c = r->p + 1 < r->end ? r->p[1] : 0;
    const char *found = c ? strchr(letters, c) : NULL;
    if (found) {
        r->p += 2;
        buf_add(out, meant + (found - letters), 1);
        return 0;
    }
    if (c != 'u') {
        r->p++;
        return unexpected(r, "one of \" \\ / b f n r t u after a backslash");
    }
    uint32_t cp, low = 0;
    char bytes[4];
    if (read_unit(r, &cp))
        return -1;
    if (cp >= 0xd800 && cp < 0xdc00 && r->end - r->p >= 2 && r->p[0] == '\\' && r->p[1] == 'u'
        && read_unit(r, &low))
        return -1;
    if (low >= 0xdc00 && low < 0xe000)
        cp = 0x10000 + ((cp - 0xd800) << 10) + (low - 0xdc00);
    else if (cp >= 0xd800 && cp < 0xe000) {
        r->p = start;
        return fail(r, "got half of a surrogate pair, want \\ud800 to \\udbff before \\udc00 to "
                       "\\udfff");
    }
    buf_add(out, bytes, utf8_encode(cp, bytes));
    return 0;
}

/* A string, whose quote comes next. */
static int read_string(Reader *r, Str *string)
{
    Buf *out = &r->doc->strings;
    size_t from = out->len;
    const char *run = ++r->p; // the first byte that is not in `out`, where the string has escapes
    while (!at(r, '"')) {
        unsigned char c = r->p < r->end ? (unsigned char)*r->p : 0;
        if (r->p == r->end)
            return unexpected(r, "the quote that closes a string");
        if (c < 0x20)
            return unexpected(r, "control characters escaped in a string");
        if (c == '\\') {
            /* Room at once for all that comes: views of earlier strings must stay. */
            if (!mem_room(&out->ptr, out->len + (size_t)(r->end - run) + 1, &out->cap, 1))
                return no_memory(r);
            buf_add(out, run, (size_t)(r->p - run));
            if (read_escape(r))
                return -1;
            run = r->p;
        } else if (c < 0x80) {
            r->p++;
        } else {
            uint32_t cp;
            size_t len = utf8_decode(r->p, r->end, &cp);
            if (cp & UTF8_INVALID)
                return unexpected(r, "UTF-8");
            r->p += len;
        }
    }
    *string = (Str){run, (size_t)(r->p++ - run)};
    if (out->len > from) {
        buf_add(out, string->ptr, string->len);
        *string = (Str){out->ptr + from, out->len - from};
    }
    return 0;
}

/* ---- values ---------------------------------------------------------------------------------- */

static void skip_space(Reader *r)
{
    while (at(r, ' ') || at(r, '\n') || at(r, '\r') || at(r, '\t'))
        r->p++;
}

static bool take(Reader *r, char c)
{
    skip_space(r);
    bool found = at(r, c);
    r->p += found;
    return found;
}

static int read_key(Reader *r, Str *key)
{
    skip_space(r);
    if (!at(r, '"'))
        return unexpected(r, "a name in quotes");
    if (read_string(r, key))
        return -1;
    return take(r, ':') ? 0 : unexpected(r, ": after a name");
}

static int read_value(Reader *r, Str key);

/* An object or a list, whose bracket comes next. */
static int read_items(Reader *r, bool object)
{
    char closing = object ? '}' : ']';
    if (r->depth == JSON_MAX_DEPTH)
        return fail(r, "got more than %d objects and lists within each other", JSON_MAX_DEPTH);
    r->depth++;
    r->p++;
    for (bool more = !take(r, closing); more;) {
        Str key = {0};
        if ((object && read_key(r, &key)) || read_value(r, key))
            return -1;
        more = take(r, ',');
        if (!more && !take(r, closing))
            return unexpected(r, object ? ", or }" : ", or ]");
    }
    r->depth--;
    return 0;
}

static int read_word(Reader *r, const char *word)
{
    for (const char *w = word; *w; w++, r->p++)
        if (!at(r, *w))
            return unexpected(r, word);
    return 0;
}

/* The contents of `v`, whose first byte comes next. */
static int read_contents(Reader *r, JsonNode *v)
{
    static const char *const words[] = {
        [JSON_NULL] = "null", [JSON_FALSE] = "false", [JSON_TRUE] = "true"};
    if (at(r, '{') || at(r, '[')) {
        v->type = at(r, '{') ? JSON_OBJECT : JSON_LIST;
        return read_items(r, v->type == JSON_OBJECT);
    }
    if (at(r, '"')) {
        v->type = JSON_STRING;
        return read_string(r, &v->string);
    }
    if (at(r, '-') || at_digit(r)) {
        const char *start = r->p;
        v->type = JSON_NUMBER;
        if (read_number(r))
            return -1;
        v->number = nearest((Str){start, (size_t)(r->p - start)});
        return 0;
    }
    for (v->type = JSON_NULL; v->type <= JSON_TRUE; v->type++)
        if (at(r, *words[v->type]))
            return read_word(r, words[v->type]);
    return unexpected(r, "a value");
}

static int read_value(Reader *r, Str key)
{
    JsonDoc *d = r->doc;
    size_t self = d->n;
    skip_space(r);
    if (self == JSON_MAX_VALUES)
        return fail(r, "got more than %d values", JSON_MAX_VALUES);
    if (!mem_room(&d->nodes, self + 1, &r->room, sizeof *d->nodes))
        return no_memory(r);
    d->n++;
    JsonNode v = {.key = key}; // not in place: the nodes move when they grow
    const char *start = r->p;
    if (read_contents(r, &v))
        return -1;
    v.raw = (Str){start, (size_t)(r->p - start)};
    v.next = d->n;
    d->nodes[self] = v;
    return 0;
}

static int read_text(Reader *r)
{
    if (r->end - r->p >= 3 && !memcmp(r->p, "\xef\xbb\xbf", 3))
        return fail(r, "got a byte order mark, want none");
    if (read_value(r, (Str){0}))
        return -1;
    skip_space(r);
    return r->p == r->end ? 0 : unexpected(r, "nothing after the value");
}

int json_parse(JsonDoc *d, Str text, Err *e)
{
    const char *start = text.len ? text.ptr : "";
    Reader r = {.start = start, .p = start, .end = start + text.len, .doc = d, .e = e};
    *d = (JsonDoc){0};
    int rc = read_text(&r);
    if (rc)
        json_doc_free(d);
    return rc;
}

void json_doc_free(JsonDoc *d)
{
    free(d->nodes);
    buf_free(&d->strings);
    *d = (JsonDoc){0};
}

/* ---- walking --------------------------------------------------------------------------------- */

static const JsonNode *node_before(const JsonDoc *d, size_t i, size_t end)
{
    return i < end ? d->nodes + i : NULL;
}

const JsonNode *json_first(const JsonDoc *d, const JsonNode *list_or_object)
{
    return node_before(d, (size_t)(list_or_object - d->nodes) + 1, list_or_object->next);
}

const JsonNode *json_next(const JsonDoc *d, const JsonNode *container, const JsonNode *item)
{
    return node_before(d, item->next, container->next);
}

const JsonNode *json_member(const JsonDoc *d, const JsonNode *object, const char *key)
{
    const JsonNode *found = NULL;
    if (object->type == JSON_OBJECT)
        for (const JsonNode *m = json_first(d, object); m; m = json_next(d, object, m))
            if (str_eq(m->key, key))
                found = m;
    return found;
}

const JsonNode *json_field(const JsonDoc *d, const char *key)
{
    return d ? json_member(d, d->nodes, key) : NULL;
}
