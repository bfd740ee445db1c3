/* fuzz_grammar.c - an input is a grammar in GBNF, 0xFF, and steps of a walk through it. */
#include "fuzz_walk.h"
#include "generate/gbnf.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    Grammar g;
    Err e = {0};
    Str steps, text = cut(data, size, &steps);
    if (!gbnf_compile(&g, text, &e))
        walk(&g, steps, NULL);
    else
        MUST(e.code == EXIT_USAGE && *e.text && !g.nodes);
    grammar_free(&g);
    return 0;
}
