/* outputs.c - see outputs.h. The table of flags says which of them read and write files. */
#include "modes/outputs.h"

#include <string.h>

#include "base/file.h"

/* File number i of a flag, NULL past its last; "-" where it has another value there. */
static const char *file_of(const Options *o, const Option *row, int i)
{
    const void *field = (const char *)o + row->offset;
    if (!options_takes_file(row))
        return NULL;
    if (row->kind != OPT_NAMES && row->kind != OPT_FILES)
        return i ? NULL : *(const char *const *)field;
    if (i >= *(const int *)(const void *)((const char *)o + row->count))
        return NULL;
    if (row->kind == OPT_NAMES)
        return (*(const char *const *const *)field)[i];
    const TextArg *text = *(const TextArg *const *)field + i;
    return text->is_file ? text->arg : "-";
}

static bool is_model_file(const Gguf *g, const char *path)
{
    for (int i = 0; i < g->n_maps; i++)
        if (out_same(g->maps[i].path, path))
            return true;
    return false;
}

const char *outputs_read_as(const Options *o, const Gguf *model, const char *path, char out[80])
{
    const char *file;
    if (is_model_file(model, path))
        return "the model's own file";
    for (const Option *row = option_table; row < option_table + n_options; row++)
        for (int i = 0; !row->writes && (file = file_of(o, row, i)); i++)
            if (strcmp(file, "-") && out_same(file, path)
                && !(path == o->save_session && file == o->load_session)) {
                snprintf(out, 80, "the file of %s", options_main_name(row).ptr);
                return out;
            }
    return NULL;
}

/* The flags before `row`, and its own files before number i, write to others than `path`. */
static int check_others(const Options *o, const Option *row, int i, const char *path, Err *e)
{
    const char *file;
    for (const Option *r = option_table; r <= row; r++)
        for (int k = 0; r->writes && (r < row || k < i) && (file = file_of(o, r, k)); k++)
            if (out_same(file, path) || (r == row && !strcmp(file, path)))
                return err_set(e, EXIT_USAGE, "%s and %s: got one file for two results, want two",
                               options_main_name(r).ptr, options_main_name(row).ptr);
    return 0;
}

int outputs_check(const Options *o, const Gguf *model, Err *e)
{
    const char *file, *what;
    char out[80];
    for (const Option *row = option_table; row < option_table + n_options; row++)
        for (int i = 0; row->writes && (file = file_of(o, row, i)); i++) {
            what = strcmp(file, "-") ? outputs_read_as(o, model, file, out) : NULL;
            if (what)
                return err_set(e, EXIT_USAGE, "%s: got %s, want another",
                               options_main_name(row).ptr, what);
            if (check_others(o, row, i, file, e))
                return -1;
        }
    return 0;
}
