/* json_expr.c - pieces of JSON texts; the contracts are in json_expr.h. */
#include "generate/json_expr.h"

#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

#define SEQUENCE(b, ...)                                                                           \
    expr_sequence(b, (Expr[]){__VA_ARGS__}, sizeof((Expr[]){__VA_ARGS__}) / sizeof(Expr))
#define CHOICE(b, ...)                                                                             \
    expr_choice(b, (Expr[]){__VA_ARGS__}, sizeof((Expr[]){__VA_ARGS__}) / sizeof(Expr))

Expr json_expr_text(JsonExprs *j, const char *bytes)
{
    return expr_bytes(j->b, (Str){bytes, strlen(bytes)});
}

static Expr range(JsonExprs *j, char first, char last)
{
    return expr_chars(j->b, &(CharRange){(uint8_t)first, (uint8_t)last}, 1, false);
}

static Expr shared_rule(JsonExprs *j, int *rule, const char *name, Expr (*make)(JsonExprs *j))
{
    if (!*rule) {
        *rule = 1 + builder_rule(j->b, (Str){name, strlen(name)});
        builder_define(j->b, *rule - 1, make(j));
    }
    return expr_rule(j->b, *rule - 1);
}

static Expr make_space(JsonExprs *j)
{
    static const CharRange blanks[] = {{'\t', '\t'}, {' ', ' '}};
    Expr indent = expr_repeat(j->b, expr_chars(j->b, blanks, 2, false), 0, 20);
    return CHOICE(j->b, json_expr_text(j, ""), json_expr_text(j, " "),
                  SEQUENCE(j->b, json_expr_text(j, "\n"), indent));
}

Expr json_expr_space(JsonExprs *j)
{
    return shared_rule(j, &j->space, "space", make_space);
}

Expr json_expr_boolean(JsonExprs *j)
{
    return CHOICE(j->b, json_expr_text(j, "true"), json_expr_text(j, "false"));
}

/* ---- strings --------------------------------------------------------------------------------- */

static bool is_escaped(uint32_t c)
{
    return c < 0x20 || c == '"' || c == '\\' || c == 0x7f;
}

/* All ways to write one escaped character; how many, at most 2. */
static size_t escapes_of(JsonExprs *j, uint32_t c, Expr out[2])
{
    static const char letters[] = "btnfr"; // 8, 9, 10, 12, 13
    char text[8] = "\\u0000";
    size_t n = 0;
    if (c == '"' || c == '\\') {
        out[n++] = expr_bytes(j->b, (Str){(char[]){'\\', (char)c}, 2});
        return n;
    }
    if (c >= 8 && c <= 13 && c != 11)
        out[n++] = expr_bytes(j->b, (Str){(char[]){'\\', letters[c - 8 - (c > 11)]}, 2});
    text[4] = (char)('0' + c / 16);
    int low = (int)(c % 16);
    if (low < 10) {
        text[5] = (char)('0' + low);
        out[n++] = json_expr_text(j, text);
    } else {
        char upper = (char)('A' + low - 10), lower = (char)('a' + low - 10);
        const CharRange both[] = {{(uint8_t)upper, (uint8_t)upper},
                                  {(uint8_t)lower, (uint8_t)lower}};
        text[5] = 0;
        out[n++] = SEQUENCE(j->b, json_expr_text(j, text), expr_chars(j->b, both, 2, false));
    }
    return n;
}

/* The rule of all escapes of a set of characters. */
static Expr escapes(JsonExprs *j, const uint64_t bits[2])
{
    Expr ways[2 * 128];
    size_t n = 0;
    for (int i = 0; i < j->n_escapes; i++)
        if (!memcmp(j->escapes[i].bits, bits, sizeof j->escapes[i].bits))
            return expr_rule(j->b, j->escapes[i].rule);
    for (uint32_t c = 0; c < 128; c++)
        if (bits[c / 64] >> c % 64 & 1)
            n += escapes_of(j, c, ways + n);
    Expr all = expr_choice(j->b, ways, n);
    if (j->n_escapes == MAX_ESCAPE_SETS || n < 8)
        return all;
    int rule = builder_rule(j->b, (Str){"escape", 6});
    builder_define(j->b, rule, all);
    memcpy(j->escapes[j->n_escapes].bits, bits, sizeof j->escapes->bits);
    j->escapes[j->n_escapes++].rule = rule;
    return expr_rule(j->b, rule);
}

Expr json_expr_chars(void *context, const CharRange *ranges, size_t n)
{
    static const CharRange gaps[] = {{' ', '!'}, {'#', '['}, {']', '~'}, {0x80, 0x10ffff}};
    JsonExprs *j = context;
    uint64_t bits[2] = {0, 0};
    size_t m = 0;
    CharRange *plain = mem_alloc(4 * n, sizeof *plain);
    if (!plain) {
        builder_no_memory(j->b);
        return 0;
    }
    for (size_t i = 0; i < n; i++) {
        for (uint32_t c = ranges[i].first; c <= ranges[i].last && c < 0x80; c++)
            if (is_escaped(c))
                bits[c / 64] |= (uint64_t)1 << c % 64;
        for (int k = 0; k < 4; k++) {
            uint32_t first = ranges[i].first > gaps[k].first ? ranges[i].first : gaps[k].first;
            uint32_t last = ranges[i].last < gaps[k].last ? ranges[i].last : gaps[k].last;
            if (first <= last)
                plain[m++] = (CharRange){first, last};
        }
    }
    Expr x = expr_chars(j->b, plain, m, false);
    free(plain);
    if (!(bits[0] | bits[1]))
        return x;
    return m ? CHOICE(j->b, x, escapes(j, bits)) : escapes(j, bits);
}

Expr json_expr_any_char(JsonExprs *j)
{
    return json_expr_chars(j, &(CharRange){0, 0x10ffff}, 1);
}

Expr json_expr_quoted(JsonExprs *j, Expr inner)
{
    return SEQUENCE(j->b, json_expr_text(j, "\""), inner, json_expr_text(j, "\""));
}

static Expr make_string(JsonExprs *j)
{
    return json_expr_quoted(j, expr_repeat(j->b, json_expr_any_char(j), 0, REPEAT_ANY));
}

Expr json_expr_string(JsonExprs *j)
{
    return shared_rule(j, &j->string, "string", make_string);
}

/* The rest of a string, with its quote, after `depth` bytes that n sorted strings have in common;
 * it must become none of them. */
static Expr other_rest(JsonExprs *j, Str *strings, size_t n, size_t depth)
{
    Builder *b = j->b;
    Expr *ways = mem_alloc(n + 2, sizeof *ways), x = 0;
    CharRange *others = mem_alloc(n + 1, sizeof *others);
    size_t n_ways = 0, n_others = 0, i = strings[0].len == depth; // that one has ended
    uint32_t from = 0;
    if (!ways || !others) {
        builder_no_memory(b);
        goto end;
    }
    if (!i)
        ways[n_ways++] = json_expr_text(j, "\"");
    while (i < n) {
        uint32_t c, same;
        const char *p = strings[i].ptr + depth;
        size_t begin = i, len = utf8_decode(p, strings[i].ptr + strings[i].len, &c);
        for (i++; i < n; i++) {
            utf8_decode(strings[i].ptr + depth, strings[i].ptr + strings[i].len, &same);
            if (same != c)
                break;
        }
        Expr rest = other_rest(j, strings + begin, i - begin, depth + len);
        ways[n_ways++] = SEQUENCE(b, json_expr_chars(j, &(CharRange){c, c}, 1), rest);
        if (c > from)
            others[n_others++] = (CharRange){from, c - 1};
        from = c + 1;
    }
    others[n_others++] = (CharRange){from, 0x10ffff};
    Expr any = expr_repeat(b, json_expr_any_char(j), 0, REPEAT_ANY);
    ways[n_ways++] = SEQUENCE(b, json_expr_chars(j, others, n_others), any,
                              json_expr_text(j, "\""));
    x = expr_choice(b, ways, n_ways);
end:
    free(ways);
    free(others);
    return x;
}

Expr json_expr_other_string(JsonExprs *j, Str *strings, size_t n)
{
    if (!n)
        return json_expr_string(j);
    return SEQUENCE(j->b, json_expr_text(j, "\""), other_rest(j, strings, n, 0));
}

Expr json_expr_literal_string(JsonExprs *j, Str decoded)
{
    static const char digits[] = "0123456789abcdef", letters[] = "btn?fr";
    Buf out = {0};
    buf_text(&out, "\"");
    for (size_t i = 0; i < decoded.len; i++) {
        char c = decoded.ptr[i], more[] = {'\\', 'u', '0', '0', '0', '0'};
        if ((uint8_t)c >= 0x80 || !is_escaped((uint8_t)c)) {
            buf_add(&out, &c, 1);
        } else if (c == '"' || c == '\\' || (c >= 8 && c <= 13 && c != 11)) {
            more[1] = c == '"' || c == '\\' ? c : letters[c - 8];
            buf_add(&out, more, 2);
        } else {
            more[4] = digits[c / 16];
            more[5] = digits[c % 16];
            buf_add(&out, more, 6);
        }
    }
    buf_text(&out, "\"");
    if (out.failed)
        builder_no_memory(j->b);
    Expr x = expr_bytes(j->b, (Str){out.failed ? "" : out.ptr, out.failed ? 0 : out.len});
    buf_free(&out);
    return x;
}

/* ---- values ---------------------------------------------------------------------------------- */

/* `open`, items between commas or none, `close`. */
static Expr list_of(JsonExprs *j, const char *open, Expr item, const char *close)
{
    Builder *b = j->b;
    Expr s = json_expr_space(j);
    Expr more = SEQUENCE(b, json_expr_text(j, ","), s, item, s);
    Expr items = SEQUENCE(b, item, s, expr_repeat(b, more, 0, REPEAT_ANY));
    return SEQUENCE(b, json_expr_text(j, open), s, expr_optional(b, items),
                    json_expr_text(j, close));
}

Expr json_expr_object(JsonExprs *j)
{
    Expr s = json_expr_space(j);
    return list_of(j, "{",
                   SEQUENCE(j->b, json_expr_string(j), s, json_expr_text(j, ":"), s,
                            json_expr_value(j)),
                   "}");
}

Expr json_expr_array(JsonExprs *j)
{
    return list_of(j, "[", json_expr_value(j), "]");
}

Expr json_expr_value(JsonExprs *j)
{
    Expr number = 0;
    Err e;
    if (!j->value) { // it calls itself
        j->value = 1 + builder_rule(j->b, (Str){"value", 5});
        json_expr_number(j, &(NumberRange){0}, false, &number, &e);
        Expr x = CHOICE(j->b, json_expr_object(j), json_expr_array(j), json_expr_string(j), number,
                        json_expr_boolean(j), json_expr_text(j, "null"));
        builder_define(j->b, j->value - 1, x);
    }
    return expr_rule(j->b, j->value - 1);
}

Expr json_expr_literal(JsonExprs *j, const JsonDoc *d, const JsonNode *value)
{
    Builder *b = j->b;
    if (value->type == JSON_STRING)
        return json_expr_literal_string(j, value->string);
    if (value->type != JSON_LIST && value->type != JSON_OBJECT)
        return expr_bytes(b, value->raw);
    bool is_object = value->type == JSON_OBJECT;
    Expr s = json_expr_space(j), x = SEQUENCE(b, json_expr_text(j, is_object ? "{" : "["), s);
    for (const JsonNode *n = json_first(d, value); n; n = json_next(d, value, n)) {
        Expr item = json_expr_literal(j, d, n);
        if (is_object)
            item = SEQUENCE(b, json_expr_literal_string(j, n->key), s, json_expr_text(j, ":"), s,
                            item);
        bool more = json_next(d, value, n) != NULL;
        x = SEQUENCE(b, x, item, s, json_expr_text(j, more ? "," : ""),
                     more ? s : json_expr_text(j, ""));
    }
    return SEQUENCE(b, x, json_expr_text(j, is_object ? "}" : "]"));
}

/* ---- numbers --------------------------------------------------------------------------------- */

enum { SURE_DIGITS = 15, USUAL_DIGITS = 16 }; // that a double tells apart; of one without a bound

bool decimal_read(const JsonNode *number, Decimal *out)
{
    char digits[400];
    const char *p = number->raw.ptr, *end = p + number->raw.len;
    int n = 0, point = -1, from = 0, exponent = 0, sign = 1;
    *out = (Decimal){.negative = *p == '-'};
    for (p += out->negative; p < end && *p != 'e' && *p != 'E'; p++) {
        if (*p == '.')
            point = n;
        else if (n == (int)sizeof digits)
            return false;
        else
            digits[n++] = *p;
    }
    point = point < 0 ? n : point;
    if (p < end) {
        p++;
        sign = *p == '-' ? -1 : 1;
        for (p += *p == '-' || *p == '+'; p < end; p++)
            exponent = exponent < 1000 ? 10 * exponent + (*p - '0') : exponent;
    }
    while (from < n && digits[from] == '0')
        from++;
    while (n > from && digits[n - 1] == '0')
        n--;
    if (from == n) {
        *out = (Decimal){.n = 1, .n_whole = 1, .digits = "0"};
        return true;
    }
    point += sign * exponent - from; // behind so many of the digits that are left
    int zeros = point < 1 ? 1 - point : 0, whole = point < 1 ? 1 : point;
    int total = zeros + n - from > whole ? zeros + n - from : whole;
    if (total > MAX_DIGITS)
        return false;
    memset(out->digits, '0', (size_t)total);
    memcpy(out->digits + zeros, digits + from, (size_t)(n - from));
    out->n = total;
    out->n_whole = whole;
    return true;
}

/* Without signs. */
static int compare_sizes(const Decimal *a, const Decimal *b)
{
    if (a->n_whole != b->n_whole)
        return a->n_whole > b->n_whole ? 1 : -1;
    int c = strcmp(a->digits, b->digits); // a longer one has more behind the point
    return (c > 0) - (c < 0);
}

int decimal_compare(const Decimal *a, const Decimal *b)
{
    if (a->negative != b->negative)
        return a->negative ? -1 : 1;
    int c = compare_sizes(a, b);
    return a->negative ? -c : c;
}

/* Numbers without a sign between two bounds, with n_whole digits before the point and at most
 * n_fraction behind it. A bound is NULL where it does not matter. */
typedef struct {
    JsonExprs *j;
    const Decimal *low, *high;
    bool over_low, under_high, whole;
    int n_whole, n_fraction;
} Digits;

static char digit_at(const Decimal *d, int i)
{
    return i < d->n ? d->digits[i] : '0';
}

/* Whether a bound has only zeros from digit i on. */
static bool only_zeros(const Decimal *d, int i)
{
    return i >= d->n; // it has none at its end
}

/* Whether the number may end before digit i, being equal to the bounds so far where they are
 * `tight`. */
static bool may_end(const Digits *d, int i, bool low, bool high)
{
    bool above = !low || (only_zeros(d->low, i) && !d->over_low);
    bool below = !high || !only_zeros(d->high, i) || !d->under_high;
    return above && below;
}

static Expr digits_from(const Digits *d, int i, bool low, bool high);

/* Digit i and all after it. */
static Expr one_digit(const Digits *d, int i, bool low, bool high)
{
    Builder *b = d->j->b;
    Expr ways[3];
    int n = 0;
    char first = low ? digit_at(d->low, i) : i == 0 && d->n_whole > 1 ? '1' : '0';
    char last = high ? digit_at(d->high, i) : '9';
    for (char c = first; c <= last; c++) {
        bool next_low = low && c == first, next_high = high && c == last;
        char to = next_low || next_high ? c : high ? (char)(last - 1) : last;
        ways[n++] = SEQUENCE(b, range(d->j, c, to), digits_from(d, i + 1, next_low, next_high));
        c = to;
    }
    return expr_choice(b, ways, (size_t)n);
}

static Expr digits_from(const Digits *d, int i, bool low, bool high)
{
    Builder *b = d->j->b;
    low = low && !(only_zeros(d->low, i) && !d->over_low && i >= d->n_whole);
    if (i < d->n_whole)
        return one_digit(d, i, low, high);
    int left = d->n_whole + d->n_fraction - i;
    Expr end = may_end(d, i, low, high) ? json_expr_text(d->j, "") : expr_choice(b, NULL, 0);
    if (left <= 0 || d->whole)
        return end;
    Expr more = !low && !high ? expr_repeat(b, range(d->j, '0', '9'), 1, left)
                              : one_digit(d, i, low, high);
    if (i == d->n_whole)
        more = SEQUENCE(b, json_expr_text(d->j, "."), more);
    return CHOICE(b, end, more);
}

/* Numbers without a sign from low to high, each of which may be NULL. */
static Expr sized_range(JsonExprs *j, const Decimal *low, bool over_low, const Decimal *high,
                        bool under_high, bool whole)
{
    Expr ways[MAX_DIGITS + 1];
    int n = 0, most = whole ? USUAL_DIGITS : SURE_DIGITS;
    int finite = low ? low->n_whole : 1;
    if (low && low->n_whole > most)
        most = low->n_whole;
    if (high)
        finite = most = high->n_whole;
    for (int i = low ? low->n_whole : 1; i <= most; i++) {
        Digits d = {.j = j,
                    .low = low,
                    .high = high,
                    .over_low = over_low,
                    .under_high = under_high,
                    .whole = whole,
                    .n_whole = i,
                    .n_fraction = SURE_DIGITS - finite};
        ways[n++] = digits_from(&d, 0, low && i == low->n_whole, high && i == high->n_whole);
    }
    return expr_choice(j->b, ways, (size_t)n);
}

/* -?(0|[1-9][0-9]*) with a fraction and an exponent, both optional, unless `whole`. */
static Expr any_number(JsonExprs *j, bool whole)
{
    Builder *b = j->b;
    Expr digit = range(j, '0', '9');
    Expr number = SEQUENCE(b, expr_optional(b, json_expr_text(j, "-")),
                           CHOICE(b, json_expr_text(j, "0"),
                                  SEQUENCE(b, range(j, '1', '9'),
                                           expr_repeat(b, digit, 0, USUAL_DIGITS - 1))));
    if (whole)
        return number;
    static const CharRange e[] = {{'E', 'E'}, {'e', 'e'}}, signs[] = {{'+', '+'}, {'-', '-'}};
    Expr fraction = SEQUENCE(b, json_expr_text(j, "."), expr_repeat(b, digit, 1, USUAL_DIGITS));
    Expr exponent = SEQUENCE(b, expr_chars(b, e, 2, false),
                             expr_optional(b, expr_chars(b, signs, 2, false)),
                             expr_repeat(b, digit, 1, 2));
    return SEQUENCE(b, number, expr_optional(b, fraction), expr_optional(b, exponent));
}

static bool is_sure(const Decimal *d, bool whole)
{
    return whole || (d->n <= SURE_DIGITS && d->n_whole <= SURE_DIGITS);
}

int json_expr_number(JsonExprs *j, const NumberRange *r, bool whole, Expr *out, Err *e)
{
    static const Decimal zero = {.n = 1, .n_whole = 1, .digits = "0"};
    Builder *b = j->b;
    int order = r->has_low && r->has_high ? decimal_compare(&r->low, &r->high) : -1;
    if (order > 0 || (!order && (r->over_low || r->under_high)))
        return err_set(e, EXIT_USAGE, "no number is in the range");
    if ((r->has_low && !is_sure(&r->low, whole)) || (r->has_high && !is_sure(&r->high, whole)))
        return err_set(e, EXIT_USAGE, "a bound has more than %d digits", SURE_DIGITS);
    *out = any_number(j, whole);
    if (!r->has_low && !r->has_high)
        return 0;
    Expr ways[2];
    int n = 0;
    if (!r->has_high || !r->high.negative) { // some are not negative
        bool low = r->has_low && !r->low.negative;
        ways[n++] = sized_range(j, low ? &r->low : NULL, low && r->over_low,
                                r->has_high ? &r->high : NULL, r->under_high, whole);
    }
    if (!r->has_low || r->low.negative) { // some are
        bool high = r->has_high && r->high.negative;
        Expr sizes = sized_range(j, high ? &r->high : &zero, high ? r->under_high : true,
                                 r->has_low ? &r->low : NULL, r->over_low, whole);
        ways[n++] = SEQUENCE(b, json_expr_text(j, "-"), sizes);
    }
    *out = expr_choice(b, ways, (size_t)n);
    return 0;
}
