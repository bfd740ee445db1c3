/* options.c - the command line: one table behind parsing, --help, the man page and shell completion.
 *
 * An option's kind says how its argument is read and its offset where the value goes. Names follow llama.cpp where it
 * has the option. What llama2.c spelled differently gets a hint.
 */
#include "options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

typedef enum {
    OPT_FLAG, OPT_INT, OPT_FLOAT, OPT_TEXT, OPT_SEED, OPT_PROMPT, OPT_FILE, OPT_STOP, OPT_BIAS, OPT_KV, OPT_DUMP, OPT_STATS,
    OPT_REDUCE, OPT_DTYPE, OPT_MODE_TEXT, OPT_QUANTIZE_TYPE, OPT_MODE
} OptKind;

typedef struct {
    const char *names; // separated by spaces, the one to show last
    const char *arg;   // name of its argument, NULL for none
    OptKind kind;
    size_t offset;     // in Options
    double min, max;   // of a number; the mode of OPT_MODE and OPT_MODE_TEXT
    const char *help;
} Option;

#define AT(field) offsetof(Options, field)

static const Option table[] = {
    {NULL, NULL, OPT_FLAG, 0, 0, 0, "Prompt"},
    {"-i -p --prompt", "TEXT", OPT_PROMPT, 0, 0, 0, "prompt; several -i and -f are joined in order"},
    {"-f --file", "FILE", OPT_FILE, 0, 0, 0, "prompt from a file, byte for byte; - is standard input"},
    {"-e --escape", NULL, OPT_FLAG, AT(escape), 0, 0, "read \\n, \\t, \\\\, \\xHH and \\uHHHH in -i"},
    {"--special", NULL, OPT_FLAG, AT(special), 0, 0, "read control tokens such as <|im_end|> in the prompt"},
    {"--no-bos", NULL, OPT_FLAG, AT(no_bos), 0, 0, "do not put the begin-of-text token in front"},

    {NULL, NULL, OPT_FLAG, 0, 0, 0, "Generation"},
    {"-n --predict", "N", OPT_INT, AT(n_predict), -1, 1 << 28, "tokens to generate; 0 only runs the prompt, -1 (default) has no limit"},
    {"--stop", "TEXT", OPT_STOP, 0, 0, 0, "end before this text; may be repeated"},
    {"--ignore-eos", NULL, OPT_FLAG, AT(ignore_eos), 0, 0, "go on after an end token"},
    {"--echo", NULL, OPT_FLAG, AT(echo), 0, 0, "print the prompt too"},

    {NULL, NULL, OPT_FLAG, 0, 0, 0, "Sampling"},
    {"--temp", "T", OPT_FLOAT, AT(sampler.temp), 0, 1e6, "temperature, 0 takes the likeliest token (0.8)"},
    {"--top-k", "K", OPT_INT, AT(sampler.top_k), 0, 1 << 28, "keep the K likeliest, 0 keeps all (40)"},
    {"--top-p", "P", OPT_FLOAT, AT(sampler.top_p), 0, 1, "keep the likeliest that sum to P, 1 keeps all (0.95)"},
    {"--min-p", "P", OPT_FLOAT, AT(sampler.min_p), 0, 1, "keep those at least P times as likely as the best (0.05)"},
    {"--repeat-penalty", "X", OPT_FLOAT, AT(sampler.repeat_penalty), 1e-6, 1e6, "divide the logits of recent tokens by X (1)"},
    {"--presence-penalty", "X", OPT_FLOAT, AT(sampler.presence_penalty), -1e6, 1e6, "subtract X from those of recent tokens (0)"},
    {"--frequency-penalty", "X", OPT_FLOAT, AT(sampler.frequency_penalty), -1e6, 1e6, "subtract X for each recent occurrence (0)"},
    {"--repeat-last-n", "N", OPT_INT, AT(sampler.repeat_last_n), -1, 1 << 28, "how many tokens are recent, -1 is all (64)"},
    {"--logit-bias", "ID+BIAS", OPT_BIAS, 0, 0, 0, "add to the logit of a token: 15043+1.5 or 2-inf; may be repeated"},
    {"-s --seed", "SEED", OPT_SEED, 0, 0, 0, "seed of the sampler; random without, shown by -v"},

    {NULL, NULL, OPT_FLAG, 0, 0, 0, "Engine"},
    {"-c --ctx-size", "N", OPT_INT, AT(seq_len), 1, 1 << 28, "context; by default the model's, at most 4096, grown to the prompt and -n"},
    {"-b --batch-size", "N", OPT_INT, AT(batch), 1, 1 << 16, "prompt tokens of one pass (512)"},
    {"-t --threads", "N", OPT_INT, AT(n_threads), 1, 1024, "threads; default OMP_NUM_THREADS, else the physical cores we may use"},
    {"--kv", "TYPE", OPT_KV, 0, 0, 0, "keys and values are cached as f16 (default), f32 or q8, half of f16"},
    {"--exact", NULL, OPT_FLAG, AT(exact), 0, 0, "multiply with float activations, not with bytes or BF16"},

    {NULL, NULL, OPT_FLAG, 0, 0, 0, "Attention"},
    {"--dump-attn", "FILE", OPT_DUMP, 0, 0, 0, "write the attention maps: .npz .npy .jsonl .csv .svg .html; may be repeated"},
    {"--attn-stats", "FILE", OPT_STATS, 0, 0, 0, "write statistics of every head: .csv, .json, or - for a table"},
    {"--attn-layers", "LIST", OPT_TEXT, AT(maps.layers), 0, 0, "only these layers: 0,3-5,-1"},
    {"--attn-heads", "LIST", OPT_TEXT, AT(maps.heads), 0, 0, "only these heads"},
    {"--attn-queries", "WHICH", OPT_TEXT, AT(maps.queries), 0, 0, "only these rows: all, prompt, generated or positions A-B"},
    {"--attn-reduce", "HOW", OPT_REDUCE, 0, 0, 0, "none, mean-heads, max-heads, mean or rollout"},
    {"--attn-dtype", "TYPE", OPT_DTYPE, 0, 0, 0, "f32 (default) or f16 in .npz and .npy"},
    {"--attn-top", "K", OPT_INT, AT(maps.top), 0, 1 << 28, "only the K largest weights of a row in .csv and .jsonl, 0 is all (0)"},

    {NULL, NULL, OPT_FLAG, 0, 0, 0, "Output"},
    {"--tokenize", NULL, OPT_MODE, 0, 0, MODE_TOKENIZE, "print the prompt's token ids and pieces; needs no weights"},
    {"--perplexity", "FILE", OPT_MODE_TEXT, AT(perplexity), 0, MODE_PERPLEXITY, "how well the model predicts a text, in windows of -c tokens (512)"},
    {"--bench", NULL, OPT_MODE, 0, 0, MODE_BENCH, "how fast this model runs here: prefill and generation"},
    {"--pp", "N", OPT_INT, AT(bench_prompt), 0, 1 << 24, "tokens of the bench's prefill (512)"},
    {"--tg", "N", OPT_INT, AT(bench_generate), 0, 1 << 24, "tokens of its generation (64)"},
    {"--depth", "N", OPT_INT, AT(bench_depth), 0, 1 << 24, "tokens in the cache before either (0)"},
    {"--runs", "N", OPT_INT, AT(bench_runs), 1, BENCH_MAX_RUNS, "timed runs of each (5)"},
    {"--quantize", "TYPE", OPT_MODE_TEXT, AT(quantize), 0, MODE_QUANTIZE, "write the model with smaller weights: q8_0, q4_k_m, f16 and so on; needs -o"},
    {"--quantize-type", "NAME=TYPE", OPT_QUANTIZE_TYPE, 0, 0, 0, "another type for some of them: attn_v=q8_0 or blk.3=f16; may be repeated"},
    {"-o --output", "FILE", OPT_TEXT, AT(output), 0, 0, "file that --quantize writes"},
    {"--json", NULL, OPT_FLAG, AT(json), 0, 0, "print --tokenize, --perplexity or --bench as JSON"},
    {"--logits", "FILE.npy", OPT_TEXT, AT(logits), 0, 0, "write the logits of every position that was run: (T, vocab) float32"},
    {"-v --verbose", NULL, OPT_FLAG, AT(verbose), 0, 0, "model, seed and speed on standard error"},
    {"-h --help", NULL, OPT_MODE, 0, 0, MODE_HELP, "this text"},
    {"--version", NULL, OPT_MODE, 0, 0, MODE_VERSION, "print the version"},
    {"--man", NULL, OPT_MODE, 0, 0, MODE_MAN, "print the man page (./run --man | man -l -)"},
    {"--completion", NULL, OPT_MODE, 0, 0, MODE_COMPLETION, "print completion for bash (source <(./run --completion))"},
};

enum { N_OPTIONS = sizeof table / sizeof *table };

/* Flags of llama2.c's run that mean something else here, or nothing. */
static const char *const llama2c_hints[][2] = {
    {"-z", "the tokenizer is in the model file"},
    {"-y", "system prompts come with chat mode"},
    {"-m", "the model is the first argument"},
};

/* ---- names ------------------------------------------------------------------------------------------------- */

/* Name number i of an option: its length, 0 past the last. */
static size_t name_at(const Option *o, int i, const char **name)
{
    const char *p = o->names;
    for (; p && i > 0; i--)
        p = strchr(p, ' ') ? strchr(p, ' ') + 1 : NULL;
    *name = p;
    return p ? strcspn(p, " ") : 0;
}

/* The option of this name (len bytes of it). */
static const Option *find(const char *arg, size_t len)
{
    const char *name;
    for (int i = 0; i < N_OPTIONS; i++)
        for (int j = 0; table[i].names && name_at(&table[i], j, &name); j++)
            if (name_at(&table[i], j, &name) == len && !memcmp(name, arg, len))
                return &table[i];
    return NULL;
}

/* Levenshtein distance, of names up to 31 bytes. */
static int distance(const char *a, size_t na, const char *b, size_t nb)
{
    int row[33];
    if (na > 31 || nb > 31)
        return 99;
    for (size_t j = 0; j <= nb; j++)
        row[j] = (int)j;
    for (size_t i = 1; i <= na; i++) {
        int corner = row[0];
        row[0] = (int)i;
        for (size_t j = 1; j <= nb; j++) {
            int best = corner + (a[i - 1] != b[j - 1]);
            if (row[j] + 1 < best)
                best = row[j] + 1;
            if (row[j - 1] + 1 < best)
                best = row[j - 1] + 1;
            corner = row[j];
            row[j] = best;
        }
    }
    return row[nb];
}

static int unknown(const char *arg, size_t len, Err *e)
{
    char seen[80];
    const char *name, *nearest = NULL;
    int best = 99;
    str_escape((Str){arg, len}, seen, sizeof seen);
    for (size_t i = 0; i < sizeof llama2c_hints / sizeof *llama2c_hints; i++)
        if (strlen(llama2c_hints[i][0]) == len && !memcmp(llama2c_hints[i][0], arg, len))
            return err_set(e, EXIT_USAGE, "%s: no such flag here: %s", seen, llama2c_hints[i][1]);
    for (int i = 0; i < N_OPTIONS; i++)
        for (int j = 0; table[i].names && name_at(&table[i], j, &name); j++) {
            size_t n = name_at(&table[i], j, &name), shorter = n < len ? n : len;
            int d = shorter > 4 && !memcmp(arg, name, shorter) ? 1 : distance(arg, len, name, n); // --temperature
            if (d < best) {
                best = d;
                nearest = name;
            }
        }
    if (nearest && best <= 1 + (int)len / 3 && len > 2)
        return err_set(e, EXIT_USAGE, "%s: no such flag, did you mean %.*s?", seen, (int)strcspn(nearest, " "), nearest);
    return err_set(e, EXIT_USAGE, "%s: no such flag; --help lists them", seen);
}

/* ---- values ------------------------------------------------------------------------------------------------ */

static int bad(const Option *o, const char *flag, const char *value, const char *want, Err *e)
{
    char seen[80];
    const char *hint = "";
    str_escape((Str){value, strlen(value)}, seen, sizeof seen);
    if (o->offset == AT(n_threads) && strchr(value, '.'))
        hint = " (-t is threads here; the temperature is --temp)";
    return err_set(e, EXIT_USAGE, "%s: got \"%s\", want %s%s", flag, seen, want, hint);
}

static int read_number(const Option *o, const char *flag, const char *value, double *out, Err *e)
{
    char want[80], *end;
    bool whole = o->kind == OPT_INT;
    *out = strtod(value, &end);
    snprintf(want, sizeof want, "%s from %.10g to %.10g", whole ? "a whole number" : "a number", o->min, o->max);
    bool llama2c = o->offset == AT(n_threads) && strchr(value, '.'); // -t 1.0 was a temperature
    if (end == value || *end || !(*out >= o->min && *out <= o->max) || (whole && *out != floor(*out)) || llama2c)
        return bad(o, flag, value, want, e);
    return 0;
}

/* "ID+BIAS" or "ID-BIAS", BIAS a number or inf. */
static int read_bias(Options *p, const Option *o, const char *flag, const char *value, Err *e)
{
    char *end, *tail;
    errno = 0;
    long id = strtol(value, &end, 10);
    const char *number = end;
    double bias = strtod(number, &tail);
    if (end == value || errno || id < 0 || id > 1 << 28 || (*number != '+' && *number != '-') || tail == number || *tail
        || isnan(bias))
        return bad(o, flag, value, "ID+BIAS or ID-BIAS, for example 15043+1.5", e);
    LogitBias *biases = mem_grow(p->biases, (size_t)p->sampler.n_biases + 1, sizeof *biases);
    if (!biases)
        return err_set(e, EXIT_MEMORY, "out of memory");
    p->biases = biases;
    biases[p->sampler.n_biases++] = (LogitBias){(int)id, (float)bias};
    p->sampler.biases = biases;
    return 0;
}

/* llama2.c's `-p 0.9`, which would be a prompt here. */
static bool is_top_p(const char *flag, const char *value)
{
    char *end;
    double v = strtod(value, &end);
    return !strcmp(flag, "-p") && strchr(value, '.') && !*end && v >= 0 && v <= 1;
}

static int add_part(Options *p, const char *text, bool is_file, Err *e)
{
    PromptPart *parts = mem_grow(p->parts, (size_t)p->n_parts + 1, sizeof *parts);
    if (!parts)
        return err_set(e, EXIT_MEMORY, "out of memory");
    p->parts = parts;
    parts[p->n_parts++] = (PromptPart){text, is_file};
    return 0;
}

static int add_text(const char ***list, int *n, const char *text, Err *e)
{
    const char **grown = mem_grow(*list, (size_t)*n + 1, sizeof *grown);
    if (!grown)
        return err_set(e, EXIT_MEMORY, "out of memory");
    *list = grown;
    grown[(*n)++] = text;
    return 0;
}

static bool ends_in(const char *text, const char *ending)
{
    size_t n = strlen(text), len = strlen(ending);
    return n > len && !strcmp(text + n - len, ending);
}

static int read_reduce(Options *p, const Option *o, const char *flag, const char *value, Err *e)
{
    for (int i = 0; map_reduce_names[i]; i++)
        if (!strcmp(value, map_reduce_names[i])) {
            p->maps.reduce = (MapReduce)i;
            return 0;
        }
    return bad(o, flag, value, "none, mean-heads, max-heads, mean or rollout", e);
}

static int apply(Options *p, const Option *o, const char *flag, const char *value, Err *e)
{
    char *field = (char *)p + o->offset, *end;
    double number;
    switch (o->kind) {
    case OPT_FLAG:
        *(bool *)field = true;
        return 0;
    case OPT_MODE:
        p->mode = (Mode)o->max;
        return 0;
    case OPT_INT:
        if (read_number(o, flag, value, &number, e))
            return -1;
        *(int *)field = (int)number;
        return 0;
    case OPT_FLOAT:
        if (read_number(o, flag, value, &number, e))
            return -1;
        *(float *)field = (float)number;
        return 0;
    case OPT_MODE_TEXT:
        p->mode = (Mode)o->max;
        *(const char **)field = value;
        return 0;
    case OPT_TEXT:
        *(const char **)field = value;
        return 0;
    case OPT_SEED:
        errno = 0;
        p->sampler.seed = strtoull(value, &end, 10);
        p->has_seed = true;
        return *value >= '0' && *value <= '9' && !*end && !errno ? 0 : bad(o, flag, value, "a whole number of up to 64 bits", e);
    case OPT_KV:
        for (int i = 0; kv_names[i]; i++)
            if (!strcmp(value, kv_names[i])) {
                p->kv_type = (KvType)i;
                return 0;
            }
        return bad(o, flag, value, "f16, f32 or q8", e);
    case OPT_PROMPT:
        if (is_top_p(flag, value))
            return bad(o, flag, value, "a prompt (llama2.c's -p is --top-p here; -i takes any text)", e);
        return add_part(p, value, false, e);
    case OPT_DUMP: return add_text(&p->maps.files, &p->maps.n_files, value, e);
    case OPT_QUANTIZE_TYPE: return add_text(&p->quantize_types, &p->n_quantize_types, value, e);
    case OPT_STATS:
        p->maps.stats = value;
        if (strcmp(value, "-") && !ends_in(value, ".csv") && !ends_in(value, ".json"))
            return bad(o, flag, value, "a name ending in .csv or .json, or -", e);
        return 0;
    case OPT_REDUCE: return read_reduce(p, o, flag, value, e);
    case OPT_DTYPE:
        p->maps.half = strcmp(value, "f32") != 0;
        return strcmp(value, "f32") && strcmp(value, "f16") ? bad(o, flag, value, "f32 or f16", e) : 0;
    case OPT_FILE: return add_part(p, value, true, e);
    case OPT_STOP:
        if (!*value)
            return err_set(e, EXIT_USAGE, "--stop: got an empty text, want at least one character");
        return add_text(&p->stops, &p->n_stops, value, e);
    case OPT_BIAS: return read_bias(p, o, flag, value, e);
    }
    return 0;
}

int options_parse(Options *o, int argc, char **argv, Err *e)
{
    *o = (Options){.n_predict = -1, .batch = 512, .bench_prompt = 512, .bench_generate = 64, .bench_runs = BENCH_RUNS};
    o->sampler = (SamplerParams){.temp = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .repeat_penalty = 1,
                                 .repeat_last_n = 64};
    bool only_names = false;
    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i], *value = NULL;
        if (only_names || arg[0] != '-' || !arg[1]) {
            char seen[80];
            if (o->model)
                return err_set(e, EXIT_USAGE, "\"%s\": got a second model or a text without -i, want one model file",
                               str_escape((Str){arg, strlen(arg)}, seen, sizeof seen));
            o->model = arg;
            continue;
        }
        if (!strcmp(arg, "--")) {
            only_names = true;
            continue;
        }
        size_t len = !strncmp(arg, "--", 2) ? strcspn(arg, "=") : strlen(arg);
        const Option *found = find(arg, len);
        if (!found)
            return unknown(arg, len, e);
        char flag[40];
        snprintf(flag, sizeof flag, "%.*s", (int)len, arg);
        if (arg[len] == '=')
            value = arg + len + 1;
        if (!found->arg && value)
            return err_set(e, EXIT_USAGE, "%s: got a value, want none", flag);
        if (found->arg && !value) {
            if (i + 1 >= argc)
                return err_set(e, EXIT_USAGE, "%s: got nothing, want %s", flag, found->arg);
            value = argv[++i];
        }
        if (apply(o, found, flag, value, e))
            return -1;
    }
    if (o->mode <= MODE_QUANTIZE && !o->model)
        return err_set(e, EXIT_USAGE, "got no model, want: ./run MODEL -i \"Once upon a time\" (--help lists the flags)");
    bool measures = o->mode == MODE_PERPLEXITY || o->mode == MODE_BENCH;
    if (o->json && o->mode != MODE_TOKENIZE && !measures)
        return err_set(e, EXIT_USAGE, "--json: got it without --tokenize, --perplexity or --bench, want one of them too");
    bool quantizes = o->mode == MODE_QUANTIZE;
    if ((measures || quantizes) && (o->n_parts || o->maps.n_files || o->maps.stats || o->logits))
        return err_set(e, EXIT_USAGE, "%s: got a prompt, --logits or attention files too, want none of them",
                       o->mode == MODE_BENCH ? "--bench" : quantizes ? "--quantize" : "--perplexity");
    if (quantizes && !o->output)
        return err_set(e, EXIT_USAGE, "--quantize: got no file to write, want -o FILE");
    if (!quantizes && o->mode <= MODE_QUANTIZE && (o->output || o->n_quantize_types))
        return err_set(e, EXIT_USAGE, "%s: got it without --quantize, want that too", o->output ? "-o" : "--quantize-type");
    if (o->mode == MODE_BENCH && !o->bench_prompt && !o->bench_generate)
        return err_set(e, EXIT_USAGE, "--bench: got --pp 0 and --tg 0, want something to run");
    const MapOptions *m = &o->maps;
    if ((m->layers || m->heads || m->queries || m->reduce || m->half || m->top) && !m->n_files && !m->stats)
        return err_set(e, EXIT_USAGE, "--attn-layers and the like: got them without --dump-attn or --attn-stats, want one of these too");
    return 0;
}

void options_free(Options *o)
{
    free(o->parts);
    free(o->stops);
    free(o->biases);
    free(o->maps.files);
    free(o->quantize_types);
    *o = (Options){0};
}

/* ---- texts ------------------------------------------------------------------------------------------------- */

static const char usage[] = "run MODEL -i TEXT [flags]";

/* "-n, --predict N" */
static void flag_names(const Option *o, char *out, size_t size)
{
    const char *name;
    size_t len, used = 0;
    for (int j = 0; (len = name_at(o, j, &name)); j++)
        used += (size_t)snprintf(out + used, size - used, "%s%.*s", j ? ", " : "", (int)len, name);
    if (o->arg)
        snprintf(out + used, size - used, " %s", o->arg);
}

void options_help(FILE *f)
{
    fprintf(f, "usage: %s\n\nRun a GPT-style model from a GGUF file. Without -i or -f the prompt is standard input.\n", usage);
    for (int i = 0; i < N_OPTIONS; i++) {
        char names[80];
        if (!table[i].names) {
            fprintf(f, "\n%s\n", table[i].help);
            continue;
        }
        flag_names(&table[i], names, sizeof names);
        fprintf(f, "  %-25s %s\n", names, table[i].help);
    }
    fprintf(f, "\nExit status: 0 done, 1 I/O error, 2 usage, 3 bad model file, 4 out of memory.\n"
               "RUN_CPU=scalar|avx2|avx512|neon|dotprod chooses the kernels.\n");
}

/* Text for roff: backslashes are escaped, minus signs stay minus signs. */
static void roff(FILE *f, const char *text)
{
    for (; *text; text++)
        fprintf(f, *text == '\\' ? "\\e" : *text == '-' ? "\\-" : "%c", *text);
}

void options_man(FILE *f)
{
    fprintf(f, ".TH RUN 1 \"\" \"attn.c %s\"\n.SH NAME\nrun \\- run a GPT\\-style model and show what it attends to\n"
               ".SH SYNOPSIS\n.B ", RUN_VERSION);
    roff(f, usage);
    fprintf(f, "\n.SH DESCRIPTION\nGenerates text from a model in a GGUF file. Results go to standard output, which carries "
               "nothing else; standard error is empty on success. Without \\fB\\-i\\fR or \\fB\\-f\\fR the prompt is "
               "standard input.\n");
    for (int i = 0; i < N_OPTIONS; i++) {
        char names[80];
        if (!table[i].names) {
            fprintf(f, ".SS %s\n", table[i].help);
            continue;
        }
        flag_names(&table[i], names, sizeof names);
        fprintf(f, ".TP\n.B ");
        roff(f, names);
        fprintf(f, "\n");
        roff(f, table[i].help);
        fprintf(f, "\n");
    }
    fprintf(f, ".SH EXIT STATUS\n0 done; 1 run\\-time or I/O error; 2 usage, including a prompt longer than the context; "
               "3 bad or unsupported model file; 4 out of memory.\n"
               ".SH ENVIRONMENT\n.TP\n.B RUN_CPU\nkernels to use: scalar; avx2 or avx512; on AArch64 neon or dotprod\n"
               ".TP\n.B OMP_NUM_THREADS\nthreads, where \\fB\\-t\\fR is not given\n"
               ".SH EXAMPLES\n.nf\nrun model.bin \\-i \"Once upon a time\" \\-n 100\n"
               "run model.bin \\-i \"Summarise: \" \\-f \\- < doc.txt\n.fi\n");
}

void options_completion(FILE *f)
{
    fprintf(f, "_run() {\n    local cur=${COMP_WORDS[COMP_CWORD]}\n    case $cur in\n    -*) COMPREPLY=($(compgen -W '");
    for (int i = 0; i < N_OPTIONS; i++)
        if (table[i].names)
            fprintf(f, "%s ", table[i].names);
    fprintf(f, "' -- \"$cur\")) ;;\n    *) COMPREPLY=($(compgen -f -- \"$cur\")) ;;\n    esac\n}\n"
               "complete -o filenames -F _run run ./run\n");
}
