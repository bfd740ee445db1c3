/* fuzz_json.c - an input is a JSON text. Of what is read: nodes lie within each other as their
 * bytes do, each value's own bytes are that value, whole numbers agree with doubles, and strings
 * come back through the writer.
 */
#include "fuzz.h"
#include "base/json.h"
#include "base/json_read.h"

#include <string.h>

static void check_string(Str s)
{
    Buf out = {0};
    JsonDoc d;
    Err e;
    json_string(&(Json){.out = &out}, s);
    MUST(!json_parse(&d, (Str){out.ptr, out.len}, &e) && d.n == 1 && !str_cmp(d.nodes->string, s));
    json_doc_free(&d);
    buf_free(&out);
}

static void check_alone(const JsonNode *n)
{
    JsonDoc d;
    Err e;
    MUST(!json_parse(&d, n->raw, &e) && d.nodes->type == n->type);
    MUST(!str_cmp(d.nodes->string, n->string) && d.nodes->number == n->number);
    json_doc_free(&d);
}

static void check(const JsonDoc *d, const JsonNode *n)
{
    const char *at = n->raw.ptr + 1;
    const JsonNode *item = json_first(d, n);
    int64_t v;
    MUST(n->raw.len && (n->type >= JSON_LIST || !item));
    if (n->type == JSON_STRING)
        check_string(n->string);
    if (n->type == JSON_NUMBER && json_integer(n, INT64_MIN, INT64_MAX, &v))
        MUST((double)v == n->number);
    if (n->type < JSON_LIST)
        check_alone(n);
    for (; item; item = json_next(d, n, item)) {
        MUST(item->raw.ptr >= at && item > n && item < d->nodes + n->next);
        MUST(n->type == JSON_OBJECT || !item->key.len);
        at = item->raw.ptr + item->raw.len;
        check(d, item);
    }
    MUST(at <= n->raw.ptr + n->raw.len);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    JsonDoc d;
    Err e = {0};
    if (!json_parse(&d, (Str){(const char *)data, size}, &e)) {
        MUST(d.n == d.nodes->next);
        check(&d, d.nodes);
    } else {
        MUST(e.code == EXIT_USAGE && !strncmp(e.text, "JSON at byte ", 13) && !d.nodes);
    }
    json_doc_free(&d);
    return 0;
}
