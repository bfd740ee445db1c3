/* fuzz_schema.c - an input is a JSON schema, 0xFF, and steps of a walk through its grammar. What it
 * allows is JSON. */
#include "fuzz_walk.h"
#include "base/json_read.h"
#include "generate/schema.h"

static void is_json(Str text)
{
    JsonDoc d;
    Err e;
    int depth = 0;
    for (size_t i = 0; i < text.len; i++)
        depth += text.ptr[i] == '[' || text.ptr[i] == '{';
    MUST(depth >= JSON_MAX_DEPTH || !json_parse(&d, text, &e));
    if (depth < JSON_MAX_DEPTH)
        json_doc_free(&d);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Grammar g;
    Err e = {0};
    Str steps, text = cut(data, size, &steps);
    if (!schema_compile(&g, text, &e))
        walk(&g, steps, is_json);
    else
        MUST(e.code == EXIT_USAGE && *e.text && !g.nodes);
    grammar_free(&g);
    return 0;
}
