/* test_json.c - base/json_read.c: walking, whole numbers, limits, error lines, and texts of many
 * megabytes. What is JSON and which value it has is compared with Python's json by
 * tests/test_json_reader.py.
 */
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "base/json_read.h"

static Str str(const char *text)
{
    return (Str){text, strlen(text)};
}

static void test_walk(void)
{
    static const char text[] =
        " {\"a\": [1, [], {}], \"b\\n\": null, \"a\": {\"x\": \"\\u0041\\u0000\"}, \"\": false} ";
    JsonDoc d;
    Err e;
    CHECK(!json_parse(&d, str(text), &e), "%s", e.text);
    const JsonNode *top = d.nodes, *n = json_first(&d, top);
    CHECK(top->type == JSON_OBJECT && d.n == 9 && top->next == 9 && !top->key.len, "%zu", d.n);
    CHECK(top->raw.ptr == text + 1 && top->raw.len == strlen(text) - 2, "%zu", top->raw.len);
    CHECK(n->type == JSON_LIST && str_eq(n->key, "a") && str_eq(n->raw, "[1, [], {}]"), "a");
    const JsonNode *item = json_first(&d, n);
    CHECK(item->type == JSON_NUMBER && item->number == 1 && !item->key.len, "%g", item->number);
    item = json_next(&d, n, item);
    CHECK(item->type == JSON_LIST && !json_first(&d, item), "empty list");
    item = json_next(&d, n, item);
    CHECK(item->type == JSON_OBJECT && !json_first(&d, item), "empty object");
    CHECK(!json_next(&d, n, item), "past the last item");
    n = json_next(&d, top, n);
    CHECK(n->type == JSON_NULL && str_eq(n->key, "b\n") && str_eq(n->raw, "null"), "b");
    n = json_member(&d, top, "a");
    CHECK(n->type == JSON_OBJECT, "the last of two names");
    n = json_member(&d, n, "x");
    CHECK(n->string.len == 2 && !memcmp(n->string.ptr, "A", 2), "a zero byte");
    CHECK(json_member(&d, top, "")->type == JSON_FALSE, "an empty name");
    CHECK(!json_member(&d, top, "x") && !json_member(&d, n, "x"), "no such member");
    CHECK(!json_first(&d, n), "a string has no items");
    json_doc_free(&d);
    json_doc_free(&d);
}

static void test_integer(void)
{
    static const struct {
        const char *text;
        bool whole;
        int64_t lo, hi, v;
    } cases[] = {
        {"0", true, INT64_MIN, INT64_MAX, 0},
        {"-0", true, 0, 0, 0},
        {"-0.0e-7", true, 0, 0, 0},
        {"0e99999999999999999999", true, 0, 0, 0},
        {"7", true, 7, 7, 7},
        {"7.000", true, 7, 7, 7},
        {"70e-1", true, 7, 7, 7},
        {"0.00007E+5", true, 7, 7, 7},
        {"7", false, 8, 100, 0},
        {"7", false, -7, 6, 0},
        {"7.5", false, INT64_MIN, INT64_MAX, 0},
        {"1e-1", false, INT64_MIN, INT64_MAX, 0},
        {"9007199254740993", true, INT64_MIN, INT64_MAX, 9007199254740993},
        {"9223372036854775807", true, INT64_MIN, INT64_MAX, INT64_MAX},
        {"9223372036854775807.0", true, INT64_MIN, INT64_MAX, INT64_MAX},
        {"9223372036854775808", false, INT64_MIN, INT64_MAX, 0},
        {"9223372036854775807.0000000000000000000001", false, INT64_MIN, INT64_MAX, 0},
        {"-9223372036854775808", true, INT64_MIN, INT64_MAX, INT64_MIN},
        {"-9223372036854775809", false, INT64_MIN, INT64_MAX, 0},
        {"1e18", true, INT64_MIN, INT64_MAX, 1000000000000000000},
        {"1e19", false, INT64_MIN, INT64_MAX, 0},
        {"18446744073709551616", false, INT64_MIN, INT64_MAX, 0},
        {"1e400", false, INT64_MIN, INT64_MAX, 0},
        {"1e-99999999999999999999", false, INT64_MIN, INT64_MAX, 0},
        {"\"7\"", false, INT64_MIN, INT64_MAX, 0},
        {"true", false, INT64_MIN, INT64_MAX, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        JsonDoc d;
        Err e;
        int64_t v = 12345;
        CHECK(!json_parse(&d, str(cases[i].text), &e), "%s", e.text);
        bool whole = json_integer(d.nodes, cases[i].lo, cases[i].hi, &v);
        CHECK(whole == cases[i].whole && v == (whole ? cases[i].v : 12345), "%s: %d, %" PRId64,
              cases[i].text, whole, v);
        json_doc_free(&d);
    }
}

static void test_errors(void)
{
    static const struct {
        const char *text, *line;
    } cases[] = {
        {"", "JSON at byte 1: the text ends, want a value"},
        {" \n", "JSON at byte 3: the text ends, want a value"},
        {"NaN", "JSON at byte 1: got N, want a value"},
        {"nul", "JSON at byte 4: the text ends, want null"},
        {"tru ", "JSON at byte 4: got the byte 0x20, want true"},
        {"[1,]", "JSON at byte 4: got ], want a value"},
        {"[1 2]", "JSON at byte 4: got 2, want , or ]"},
        {"{\"a\":1,}", "JSON at byte 8: got }, want a name in quotes"},
        {"{\"a\" 1}", "JSON at byte 6: got 1, want : after a name"},
        {"{\"a\":1]", "JSON at byte 7: got ], want , or }"},
        {"1 1", "JSON at byte 3: got 1, want nothing after the value"},
        {"01", "JSON at byte 2: got 1, want nothing after the value"},
        {"-", "JSON at byte 2: the text ends, want a digit"},
        {"1.e3", "JSON at byte 3: got e, want a digit"},
        {"\"a", "JSON at byte 3: the text ends, want the quote that closes a string"},
        {"\"a\nb\"", "JSON at byte 3: got the byte 0x0a, want control characters escaped in a "
                     "string"},
        {"\"\\x\"", "JSON at byte 3: got x, want one of \" \\ / b f n r t u after a backslash"},
        {"\"\\u12g4\"", "JSON at byte 6: got g, want four hexadecimal digits after \\u"},
        {"\"x\\ud800\"", "JSON at byte 3: got half of a surrogate pair, want \\ud800 to \\udbff "
                         "before \\udc00 to \\udfff"},
        {"\"\xc3\"", "JSON at byte 2: got the byte 0xc3, want UTF-8"},
        {"\xef\xbb\xbf[]", "JSON at byte 1: got a byte order mark, want none"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        JsonDoc d;
        Err e = {0};
        CHECK(json_parse(&d, str(cases[i].text), &e) == -1 && e.code == EXIT_USAGE, "case %zu", i);
        CHECK(!strcmp(e.text, cases[i].line), "case %zu: %s", i, e.text);
        CHECK(!d.nodes && !d.n && !d.strings.ptr, "case %zu: something is left", i);
    }
}

static void test_depth(void)
{
    char text[4 * JSON_MAX_DEPTH];
    for (int depth = JSON_MAX_DEPTH - 1; depth <= JSON_MAX_DEPTH + 1; depth++) {
        JsonDoc d;
        Err e;
        memset(text, '[', (size_t)depth);
        memset(text + depth, ']', (size_t)depth);
        int rc = json_parse(&d, (Str){text, 2 * (size_t)depth}, &e);
        CHECK(rc == (depth > JSON_MAX_DEPTH ? -1 : 0), "%d within each other", depth);
        CHECK(!rc
                  || !strcmp(e.text, "JSON at byte 65: got more than 64 objects and lists within "
                                     "each other"),
              "%s", e.text);
        json_doc_free(&d);
    }
}

/* `n` times `unit` between `open` and `close`. */
static Buf repeat(const char *open, const char *unit, size_t n, const char *close)
{
    Buf b = {0};
    buf_text(&b, open);
    for (size_t i = 0; i < n; i++)
        buf_text(&b, unit);
    buf_text(&b, close);
    return b;
}

static void test_large(void)
{
    static const struct {
        const char *open, *unit, *close;
        size_t n, string, values; // what comes of it
    } cases[] = {
        {"\"", "abcdefghi\xc3\xa9", "\"", 10000000, 110000000, 1},
        {"\"", "\\u00e9", "\"", 4000000, 8000000, 1},
        {"[", "\"\\n\",", "0]", 300000, 0, 300002},
        {"[", "1,", "0]", 100000, 0, 100002},
        {"[", "1,", "0]", JSON_MAX_VALUES - 1, 0, 0},
        {"{", "\"k\":1,", "\"l\":0}", 300000, 0, 300002},
        {"", "9", "", 3000000, 0, 1},
        {"0.", "0", "1", 3000000, 0, 1},
        {"1e", "9", "", 3000000, 0, 1},
        {"", " ", "1", 3000000, 0, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        Buf b = repeat(cases[i].open, cases[i].unit, cases[i].n, cases[i].close);
        JsonDoc d;
        Err e = {0};
        int rc = json_parse(&d, (Str){b.ptr, b.len}, &e);
        CHECK(rc == (cases[i].values ? 0 : -1) && d.n == cases[i].values, "%zu: %s", i, e.text);
        CHECK(rc || d.nodes->string.len == cases[i].string, "%zu: %zu", i, d.nodes->string.len);
        json_doc_free(&d);
        buf_free(&b);
    }
}

static double number(const char *text)
{
    JsonDoc d;
    Err e;
    double v = json_parse(&d, str(text), &e) ? NAN : d.nodes->number;
    json_doc_free(&d);
    return v;
}

/* The smallest double in full, a tie, and a digit far behind it. */
static void test_numbers(void)
{
    char text[1200];
    int n = snprintf(text, sizeof text, "%.1074f", ldexp(1, -1074));
    CHECK(n == 1076 && number(text) == ldexp(1, -1074), "%d", n);
    /* 1 + 2^-53 lies between 1 and the next double. */
    n = snprintf(text, sizeof text, "1.%s",
                 "00000000000000011102230246251565404236316680908203125");
    CHECK(number(text) == 1, "the tie goes to even");
    memset(text + n, '0', 1000);
    memcpy(text + n + 1000, "1", 2);
    CHECK(number(text) == 1 + ldexp(1, -52), "the last of 1,053 digits decides");
    CHECK(number("1e400") == INFINITY && number("-1e400") == -INFINITY, "beyond the range");
    CHECK(signbit(number("-0")) && !signbit(number("0")), "-0");
}

int main(void)
{
    test_walk();
    test_integer();
    test_errors();
    test_depth();
    test_numbers();
    test_large();
    return check_done("test_json");
}
