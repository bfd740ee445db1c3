/* help.c - the modes that print texts about the command line, all made from its table: --help,
 * --version, --man and --completion. The program's name in them is the one it was called by.
 */
#include <assert.h>
#include <ctype.h>
#include <string.h>

#include "modes/modes.h"

static int printed(Err *e)
{
    return fflush(stdout) || ferror(stdout) ? modes_print_failed(e) : 0;
}

/* "-n, --predict N" */
static void flag_names(const Option *o, char *out, size_t size)
{
    Str name;
    size_t used = 0;
    for (int j = 0; (name = options_name(o->names, j)).len; j++)
        used += (size_t)snprintf(out + used, size - used, "%s%.*s", j ? ", " : "", (int)name.len,
                                 name.ptr);
    assert(used < size);
    if (o->arg)
        snprintf(out + used, size - used, " %s", o->arg);
}

/* Whether the argument is one of `choices`. */
static bool has_choices(const Option *o)
{
    return o->kind == OPT_CHOICE || (o->kind == OPT_MODE && o->choices);
}

/* What a flag does, its choices and its default. */
static void flag_text(const Option *o, char *out, size_t size)
{
    char list[200] = "", usual[40] = "";
    bool number = o->kind == OPT_INT || o->kind == OPT_FLOAT;
    if (has_choices(o))
        options_choices(o->choices, list, sizeof list);
    if (o->kind == OPT_CHOICE)
        snprintf(usual, sizeof usual, " (%s)", o->choices[0]);
    else if (number && o->initial >= o->min && o->initial <= o->max)
        snprintf(usual, sizeof usual, " (%g)", o->initial);
    snprintf(out, size, "%s%s%s", o->help, list, usual);
}

int help_mode(const Options *unused, Err *e)
{
    (void)unused;
    printf("usage: %s MODEL -i TEXT [flags]\n\nRun a GPT-style model from a GGUF file. "
           "Without -i or -f the prompt is standard input.\n",
           program_name());
    for (const Option *o = option_table; o < option_table + n_options; o++) {
        char names[80], text[200];
        if (!o->names) {
            printf("\n%s\n", o->help);
            continue;
        }
        flag_names(o, names, sizeof names);
        flag_text(o, text, sizeof text);
        printf("  %-28s %s\n", names, text);
    }
    printf("\nExit status: 0 done, 1 I/O error, 2 usage, 3 bad model file, 4 out of memory.\n"
           "RUN_CPU=scalar|avx2|avx512|neon|dotprod chooses the kernels.\n");
    return printed(e);
}

int version_mode(const Options *unused, Err *e)
{
    (void)unused;
    printf("attn.c %s\n", RUN_VERSION);
    return printed(e);
}

/* ---- man page -------------------------------------------------------------------------------- */

/* Text for roff: backslashes are escaped, minus signs stay minus signs. */
static void roff(const char *text)
{
    for (; *text; text++)
        printf(*text == '\\' ? "\\e" : *text == '-' ? "\\-" : "%c", *text);
}

int man_mode(const Options *unused, Err *e)
{
    const char *name = program_name();
    (void)unused;
    printf(".TH ");
    for (const char *p = name; *p; p++)
        putchar(toupper((unsigned char)*p));
    printf(" 1 \"\" \"attn.c %s\"\n.SH NAME\n", RUN_VERSION);
    roff(name);
    printf(" \\- run a GPT\\-style model and show what it attends to\n.SH SYNOPSIS\n.B ");
    roff(name);
    printf(" MODEL \\-i TEXT [flags]\n"
           ".SH DESCRIPTION\nGenerates text from a model in a GGUF file. Results go to standard "
           "output, which carries nothing else; standard error is empty on success. Without "
           "\\fB\\-i\\fR or \\fB\\-f\\fR the prompt is standard input.\n");
    for (const Option *o = option_table; o < option_table + n_options; o++) {
        char names[80], text[200];
        if (!o->names) {
            printf(".SS %s\n", o->help);
            continue;
        }
        flag_names(o, names, sizeof names);
        flag_text(o, text, sizeof text);
        printf(".TP\n.B ");
        roff(names);
        printf("\n");
        roff(text);
        printf("\n");
    }
    printf(".SH EXIT STATUS\n0 done; 1 run\\-time or I/O error; 2 usage, including a prompt longer "
           "than the context; 3 bad or unsupported model file; 4 out of memory.\n"
           ".SH ENVIRONMENT\n.TP\n.B RUN_CPU\nkernels to use: scalar; avx2 or avx512; on AArch64 "
           "neon or dotprod\n"
           ".TP\n.B OMP_NUM_THREADS\nthreads, where \\fB\\-t\\fR is not given\n"
           ".SH EXAMPLES\n.nf\n");
    roff(name);
    printf(" model.bin \\-i \"Once upon a time\" \\-n 100\n");
    roff(name);
    printf(" model.bin \\-i \"Summarise: \" \\-f \\- < doc.txt\n.fi\n");
    return printed(e);
}

/* ---- completion ------------------------------------------------------------------------------ */

/* Text for a shell, inside single quotes: `special` characters get a backslash, and a quote is
 * `quote`. */
static void quoted(const char *text, const char *special, const char *quote)
{
    for (; *text; text++)
        if (*text == '\'')
            printf("%s", quote);
        else
            printf(strchr(special, *text) ? "\\%c" : "%c", *text);
}

static void words(const char *const *choices)
{
    for (int i = 0; choices[i]; i++)
        printf("%s%s", i ? " " : "", choices[i]);
}

/* Words that bash may put; where there are none it completes names of files. */
static void bash(const char *name)
{
    printf("_%s() {\n    local words=\n    case $3 in\n", name);
    for (const Option *o = option_table; o < option_table + n_options; o++)
        if (has_choices(o)) {
            printf("    ");
            for (const char *p = o->names; *p; p++) // a pattern of all names
                putchar(*p == ' ' ? '|' : *p);
            printf(") words='");
            words(o->choices);
            printf("' ;;\n");
        }
    printf("    esac\n    [[ $2 = -* ]] && words='");
    for (const Option *o = option_table; o < option_table + n_options; o++)
        if (o->names)
            printf("%s ", o->names);
    printf("'\n    COMPREPLY=($(compgen -W \"$words\" -- \"$2\"))\n}\n"
           "complete -o default -F _%s %s\n",
           name, name);
}

/* One specification a name. The last lines make it work as a file of $fpath and when it is read by
 * `source`. */
static void zsh(const char *name)
{
    printf("#compdef %s\n_%s() {\n    _arguments '1:model:_files'", name, name);
    for (const Option *o = option_table; o < option_table + n_options; o++) {
        char text[200];
        Str flag;
        if (o->names)
            flag_text(o, text, sizeof text);
        for (int j = 0; (flag = options_name(o->names, j)).len; j++) {
            printf(" \\\n        '*%.*s%s[", (int)flag.len, flag.ptr,
                   !o->arg                       ? ""
                   : !strncmp(flag.ptr, "--", 2) ? "="
                                                 : "");
            quoted(text, "\\[]:", "'\\''");
            printf("]");
            if (o->arg)
                printf(":%s:%s", o->arg,
                       options_takes_file(o) ? "_files"
                       : has_choices(o)      ? "("
                                             : " ");
            if (has_choices(o)) {
                words(o->choices);
                printf(")");
            }
            printf("'");
        }
    }
    printf("\n}\nif [ \"$funcstack[1]\" = _%s ]; then _%s \"$@\"; else compdef _%s %s; fi\n", name,
           name, name, name);
}

static void fish(const char *name)
{
    for (const Option *o = option_table; o < option_table + n_options; o++) {
        char text[200];
        Str flag;
        if (!o->names)
            continue;
        flag_text(o, text, sizeof text);
        printf("complete -c %s", name);
        for (int j = 0; (flag = options_name(o->names, j)).len; j++) {
            bool is_long = flag.len > 2;
            printf(" -%c %.*s", is_long ? 'l' : 's', (int)flag.len - (is_long ? 2 : 1),
                   flag.ptr + (is_long ? 2 : 1));
        }
        printf("%s", options_takes_file(o) ? " -rF" : o->arg ? " -x" : "");
        if (has_choices(o)) {
            printf(" -a '");
            words(o->choices);
            printf("'");
        }
        printf(" -d '");
        quoted(text, "\\", "\\'");
        printf("'\n");
    }
}

int completion_mode(const Options *o, Err *e)
{
    static void (*const shells[])(const char *name) = {bash, zsh, fish}; // by Options.shell
    shells[o->shell](program_name());
    return printed(e);
}
