/* constraint.c - the contracts are in constraint.h. */
#include "modes/constraint.h"

#include <string.h>

#include "base/file.h"
#include "generate/gbnf.h"
#include "generate/schema.h"
#include "modes/modes.h"

int constraint_open(Constraint *c, ConstraintKind kind, Str text, const TokenTree *tree, Err *e)
{
    *c = (Constraint){0};
    if ((kind == CONSTRAINT_SCHEMA ? schema_compile : gbnf_compile)(&c->grammar, text, e))
        return -1;
    c->matcher = matcher_new(&c->grammar, tree, e);
    if (c->matcher)
        return 0;
    constraint_close(c);
    return -1;
}

int constraint_of_options(Constraint *c, const Options *o, const Tokenizer *t, Err *e)
{
    const struct {
        const char *flag, *value;
        bool is_file;
    } flags[] = {{"--grammar", o->grammar, false},
                 {"--grammar-file", o->grammar_file, true},
                 {"--json-schema", o->json_schema, false},
                 {"--json-schema-file", o->json_schema_file, true}};
    Buf text = {0};
    int chosen = -1;
    *c = (Constraint){0};
    for (int i = 0; i < 4; i++) {
        if (!flags[i].value)
            continue;
        if (chosen >= 0)
            return err_set(e, EXIT_USAGE, "%s and %s: choose one, a text has one form",
                           flags[chosen].flag, flags[i].flag);
        chosen = i;
    }
    if (chosen < 0)
        return 0;
    const char *value = flags[chosen].value;
    if (!flags[chosen].is_file)
        buf_text(&text, value);
    int rc = flags[chosen].is_file ? file_read(value, &stop_signal, &text, e) : 0;
    TokenTree *tree = rc ? NULL : token_tree_new(t, e);
    if (!rc && (text.failed || !tree))
        rc = err_set(e, EXIT_MEMORY, "out of memory for the grammar");
    if (!rc
        && constraint_open(c, chosen < 2 ? CONSTRAINT_GRAMMAR : CONSTRAINT_SCHEMA,
                           (Str){text.ptr ? text.ptr : "", text.len}, tree, e))
        rc = err_prefix(e, flags[chosen].is_file ? value : flags[chosen].flag);
    if (rc)
        token_tree_free(tree);
    else
        c->tree = tree;
    buf_free(&text);
    return rc;
}

void constraint_close(Constraint *c)
{
    matcher_free(c->matcher);
    grammar_free(&c->grammar);
    token_tree_free(c->tree);
    *c = (Constraint){0};
}
