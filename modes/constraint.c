/* constraint.c - the contracts are in constraint.h. */
#include "modes/constraint.h"

#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "generate/gbnf.h"
#include "generate/schema.h"

enum { MAX_UNUSED = 4 };

static void constraint_free(Constraint *c)
{
    matcher_free(c->matcher);
    grammar_free(&c->grammar);
    buf_free(&c->text);
    free(c);
}

/* Free what is not in use, but for the first `keep`. */
static void drop_unused(Constraints *list, int keep)
{
    for (Constraint **at = &list->first; *at;) {
        Constraint *c = *at;
        if (c->n_users || keep-- > 0) {
            at = &c->next;
        } else {
            *at = c->next;
            constraint_free(c);
        }
    }
}

static Constraint *compile(Constraints *list, ConstraintKind kind, Str text, Err *e)
{
    Constraint *c = mem_zalloc(1, sizeof *c);
    if (list->tokenizer && !list->tree)
        list->tree = token_tree_new(list->tokenizer, e);
    if (c)
        buf_add(&c->text, text.ptr, text.len);
    if (!c || c->text.failed || (list->tokenizer && !list->tree)) {
        err_set(e, EXIT_MEMORY, "out of memory for the grammar");
    } else {
        c->kind = kind;
        if (!(kind == CONSTRAINT_SCHEMA ? schema_compile : gbnf_compile)(&c->grammar, text, e))
            c->matcher = matcher_new(&c->grammar, list->tree, e);
    }
    if (c && c->matcher)
        return c;
    if (c)
        constraint_free(c);
    return NULL;
}

Constraint *constraints_get(Constraints *list, ConstraintKind kind, Str text, Err *e)
{
    Constraint **at = &list->first, *c;
    while (*at && ((*at)->kind != kind || str_cmp((Str){(*at)->text.ptr, (*at)->text.len}, text)))
        at = &(*at)->next;
    if ((c = *at))
        *at = c->next;
    else
        c = compile(list, kind, text, e);
    if (!c)
        return NULL;
    c->n_users++;
    c->next = list->first;
    list->first = c;
    drop_unused(list, MAX_UNUSED);
    return c;
}

void constraints_let_go(Constraints *list, Constraint *c)
{
    if (c && !--c->n_users)
        drop_unused(list, MAX_UNUSED);
}

void constraints_close(Constraints *list)
{
    for (Constraint *c = list->first, *next; c; c = next) {
        next = c->next;
        constraint_free(c);
    }
    token_tree_free(list->tree);
    *list = (Constraints){0};
}

int constraints_of_options(Constraints *list, const Options *o, const atomic_int *stop,
                           Constraint **out, Err *e)
{
    const struct {
        const char *flag, *value;
        bool is_file;
        ConstraintKind kind;
    } flags[] = {{"--grammar", o->grammar, false, CONSTRAINT_GRAMMAR},
                 {"--grammar-file", o->grammar_file, true, CONSTRAINT_GRAMMAR},
                 {"--json-schema", o->json_schema, false, CONSTRAINT_SCHEMA},
                 {"--json-schema-file", o->json_schema_file, true, CONSTRAINT_SCHEMA}};
    Buf text = {0};
    int chosen = -1;
    *out = NULL;
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
    int rc = flags[chosen].is_file ? file_read(value, stop, &text, e) : 0;
    if (!rc && text.failed)
        rc = err_set(e, EXIT_MEMORY, "out of memory for the grammar");
    if (!rc)
        *out = constraints_get(list, flags[chosen].kind, (Str){text.ptr ? text.ptr : "", text.len},
                               e);
    if (!rc && !*out)
        rc = err_prefix(e, flags[chosen].is_file ? value : flags[chosen].flag);
    buf_free(&text);
    return rc;
}
