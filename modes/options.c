/* options.c - the command line: one table behind parsing, --help, the man page and completion.
 *
 * A row says how an option's argument is read, where the value goes, what it is by default and
 * which modes take it; a flag that the mode does not take is refused by name. Names follow
 * llama.cpp where it has the option. What llama.cpp, ollama, llama2.c and others spell differently,
 * or have and we have not, gets a hint from a second table.
 */
#include "modes/options.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "modes/score.h"
#include "modes/timing.h"

typedef enum {
    OPT_FLAG, // bool
    OPT_INT,
    OPT_FLOAT,
    OPT_CHOICE, // one of `choices`; an int or an enum by their order
    OPT_TEXT,   // const char *
    OPT_PATH,   // const char *, the name of a file, given once
    OPT_MODE,   // chooses the mode of `modes`; const char * where it has an argument, given once
    OPT_PROMPT,
    OPT_FILE,
    OPT_STOP,
    OPT_SEED,
    OPT_BIAS,
    OPT_DUMP,
    OPT_STATS,
    OPT_QUANTIZE_TYPE
} OptKind;

typedef struct {
    const char *names; // separated by spaces, the one to show last; NULL for a heading
    const char *arg;   // name of its argument, NULL for none
    unsigned modes;    // those that take it, bits 1 << Mode
    OptKind kind;
    size_t offset;            // in Options
    double min, max, initial; // of a number; a default outside of min..max is replaced later
    const char *help;
    const char *const *choices; // of OPT_CHOICE, the first is the default; or endings of a name
    const char *needs;          // names of other options: one of them must be there too
} Option;

enum {
    G = 1 << MODE_GENERATE,
    T = 1 << MODE_TOKENIZE,
    P = 1 << MODE_PERPLEXITY,
    B = 1 << MODE_BENCH,
    Q = 1 << MODE_QUANTIZE,
    MANY = 1 << 28
};

static const char *const dtype_names[] = {"f32", "f16", NULL}; // by MapOptions.half
static const char *const logits_endings[] = {".npy", NULL};
static const char *const stats_endings[] = {".csv", ".json", NULL};

_Static_assert(sizeof(KvType) == sizeof(int) && sizeof(MapReduce) == sizeof(int),
               "OPT_CHOICE writes an int");

#define AT(field) offsetof(Options, field)
#define DIGITS_(number) #number
#define DIGITS(number) DIGITS_(number)
#define ANY_MAP "--dump-attn --attn-stats"

static const Option table[] = {
    {.help = "Prompt"},
    {"-i -p --prompt", "TEXT", G | T, OPT_PROMPT,
     .help = "prompt; several -i and -f are joined in order"},
    {"-f --file", "FILE", G | T, OPT_FILE,
     .help = "prompt from a file or - (standard input), but for a newline at the prompt's end"},
    {"--keep-newline", NULL, G | T, OPT_FLAG, AT(keep_newline), .help = "keep that newline"},
    {"-e --escape", NULL, G | T, OPT_FLAG, AT(escape),
     .help = "read \\n, \\t, \\\\, \\xHH and \\uHHHH in -i and --stop"},
    {"--special", NULL, G | T, OPT_FLAG, AT(special),
     .help = "read control tokens such as <|im_end|> in -i, and print them"},
    {"--special-files", NULL, G | T | P, OPT_FLAG, AT(special_files),
     .help = "read control tokens in files and standard input"},
    {"--no-bos", NULL, G | T | P, OPT_FLAG, AT(no_bos),
     .help = "do not put the begin-of-text token in front"},

    {.help = "Generation"},
    {"-n --n-predict --predict", "N", G, OPT_INT, AT(n_predict), .min = -1, .max = MANY,
     .initial = -1, .help = "tokens to generate; 0 only runs the prompt, -1 has no limit"},
    {"--stop", "TEXT", G, OPT_STOP,
     .help = "end before this text or control token; may be repeated"},
    {"--ignore-eos", NULL, G, OPT_FLAG, AT(ignore_eos), .help = "go on after an end token"},
    {"--echo", NULL, G, OPT_FLAG, AT(echo), .help = "print the prompt too, as it was given"},

    {.help = "Sampling"},
    {"--temperature --temp", "T", G, OPT_FLOAT, AT(sampler.temp), .max = 1e6, .initial = 0.8,
     .help = "temperature, 0 takes the likeliest token"},
    {"--top-k", "K", G, OPT_INT, AT(sampler.top_k), .max = MANY, .initial = 40,
     .help = "keep the K likeliest, 0 keeps all"},
    {"--top-p", "P", G, OPT_FLOAT, AT(sampler.top_p), .max = 1, .initial = 0.95,
     .help = "keep the likeliest that sum to P, 1 keeps all"},
    {"--min-p", "P", G, OPT_FLOAT, AT(sampler.min_p), .max = 1, .initial = 0.05,
     .help = "keep those at least P times as likely as the best"},
    {"--repeat-penalty", "X", G, OPT_FLOAT, AT(sampler.repeat_penalty), .min = 1e-6, .max = 1e6,
     .initial = 1, .help = "divide the logits of recent tokens by X"},
    {"--presence-penalty", "X", G, OPT_FLOAT, AT(sampler.presence_penalty), .min = -1e6, .max = 1e6,
     .help = "subtract X from those of recent tokens"},
    {"--frequency-penalty", "X", G, OPT_FLOAT, AT(sampler.frequency_penalty), .min = -1e6,
     .max = 1e6, .help = "subtract X for each recent occurrence"},
    {"--repeat-last-n", "N", G, OPT_INT, AT(sampler.repeat_last_n), .min = -1, .max = MANY,
     .initial = 64, .help = "how many tokens are recent, -1 is all"},
    {"-l --logit-bias", "ID+BIAS", G, OPT_BIAS,
     .help = "add to the logit of a token: 15043+1.5 or 2-inf; may be repeated"},
    {"-s --seed", "SEED", G, OPT_SEED,
     .help = "seed of the sampler; without, or with -1, a random one that -v shows"},

    {.help = "Engine"},
    {"-c --ctx-size", "N", G | P, OPT_INT, AT(seq_len), .min = 1, .max = MANY,
     .help = "context; by default the model's, at most " DIGITS(USUAL_CONTEXT) ", grown to the "
                                                                               "prompt and -n"},
    {"-b --batch-size", "N", G | P | B, OPT_INT, AT(batch), .min = 1, .max = 1 << 16,
     .initial = 512, .help = "prompt tokens of one pass"},
    {"-t --threads", "N", G | P | B | Q, OPT_INT, AT(n_threads), .min = 1, .max = 1024,
     .help = "threads; by default OMP_NUM_THREADS, else the physical cores we may use"},
    {"--kv", "TYPE", G | P | B, OPT_CHOICE, AT(kv_type), .choices = kv_names,
     .help = "type of the cached keys and values, q8 half the size of f16: "},
    {"--exact", NULL, G | P | B, OPT_FLAG, AT(exact),
     .help = "multiply with float activations, not with bytes or BF16"},

    {.help = "Attention"},
    {"--dump-attn", "FILE", G, OPT_DUMP,
     .help = "write the attention maps: .npz .npy .jsonl .csv .svg .html; may be repeated"},
    {"--attn-stats", "FILE", G, OPT_STATS, .choices = stats_endings,
     .help = "write statistics of every head: .csv, .json, or - for a table; may be repeated"},
    {"--attn-layers", "LIST", G, OPT_TEXT, AT(maps.layers), .needs = ANY_MAP,
     .help = "only these layers: 0,3-5,-1"},
    {"--attn-heads", "LIST", G, OPT_TEXT, AT(maps.heads), .needs = ANY_MAP,
     .help = "only these heads"},
    {"--attn-queries", "WHICH", G, OPT_TEXT, AT(maps.queries), .needs = ANY_MAP,
     .help = "only these rows: all, prompt, generated or positions A-B"},
    {"--attn-reduce", "HOW", G, OPT_CHOICE, AT(maps.reduce), .choices = map_reduce_names,
     .needs = "--dump-attn", .help = "join the maps: "},
    {"--attn-dtype", "TYPE", G, OPT_CHOICE, AT(maps.half), .choices = dtype_names,
     .needs = "--dump-attn", .help = "numbers in .npz and .npy: "},
    {"--attn-top", "K", G, OPT_INT, AT(maps.top), .max = MANY, .needs = "--dump-attn",
     .help = "only the K largest weights of a row in .csv and .jsonl, 0 is all"},

    {.help = "Instead of generating"},
    {"--tokenize", NULL, T, OPT_MODE,
     .help = "print the prompt's token ids and their texts; needs no weights"},
    {"--perplexity", "FILE", P, OPT_MODE, AT(perplexity),
     .help =
         "how well the model predicts a text, in windows of -c tokens (" DIGITS(SCORE_WINDOW) ")"},
    {"--bench", NULL, B, OPT_MODE, .help = "how fast this model runs here: prefill and generation"},
    {"--pp", "N", B, OPT_INT, AT(bench_prompt), .max = 1 << 24, .initial = 512,
     .help = "tokens of the bench's prefill"},
    {"--tg", "N", B, OPT_INT, AT(bench_generate), .max = 1 << 24, .initial = 64,
     .help = "tokens of its generation"},
    {"--depth", "N", B, OPT_INT, AT(bench_depth), .max = 1 << 24,
     .help = "tokens in the cache before either"},
    {"--runs", "N", B, OPT_INT, AT(bench_runs), .min = 1, .max = BENCH_MAX_RUNS, .initial = 5,
     .help = "timed runs of each"},
    {"--quantize", "TYPE", Q, OPT_MODE, AT(quantize), .needs = "-o",
     .help = "write the model with smaller weights: q8_0, q4_k_m, f16 and so on; needs -o"},
    {"--quantize-type", "NAME=TYPE", Q, OPT_QUANTIZE_TYPE,
     .help = "another type for some of them: attn_v=q8_0 or blk.3=f16; may be repeated"},
    {"-o --output", "FILE", Q, OPT_PATH, AT(output),
     .help = "file that --quantize writes, - is standard output"},

    {.help = "Output"},
    {"--json", NULL, T | P | B, OPT_FLAG, AT(json),
     .help = "print --tokenize, --perplexity or --bench as JSON"},
    {"--logits", "FILE.npy", G, OPT_PATH, AT(logits), .choices = logits_endings,
     .help = "write the logits of every position that was run: (T, vocab) float32"},
    {"-v --verbose", NULL, G | P | B | Q, OPT_FLAG, AT(verbose),
     .help = "model, seed, speed and why the text ended, on standard error"},

    {.help = "Help"},
    {"-h --usage --help", NULL, 1 << MODE_HELP, OPT_MODE, .help = "this text"},
    {"--version", NULL, 1 << MODE_VERSION, OPT_MODE, .help = "print the version"},
    {"--man", NULL, 1 << MODE_MAN, OPT_MODE, .help = "print the man page (./run --man | man -l -)"},
    {"--completion", NULL, 1 << MODE_COMPLETION, OPT_MODE,
     .help = "print completion for bash (source <(./run --completion))"},
};

enum { N_OPTIONS = sizeof table / sizeof *table };

/* Flags of other programs that are spelled differently here, mean something else or do not exist:
 * llama.cpp's (common/arg.cpp), ollama's, those of the Hugging Face and OpenAI interfaces and
 * llama2.c's. */
static const struct {
    const char *flags, *hint;
} elsewhere[] = {
    {"-m --model --checkpoint", "the model is the first argument"},
    {"-hf -hfr --hf-repo -hff --hf-file -mu --model-url",
     "download the file and give it as the first argument"},
    {"-z --tokenizer", "the tokenizer is in the model file"},
    {"--lora --control-vector -mm --mmproj", "only what is in the model file is run"},
    {"--rope-scaling --rope-scale --rope-freq-base --rope-freq-scale --override-kv",
     "the model file says it"},
    {"-r --reverse-prompt", "it is --stop"},
    {"--max-tokens --max-new-tokens --num-predict --steps", "it is -n"},
    {"--num-ctx --context-size --context-length --n-ctx", "it is -c"},
    {"--num-thread --num-threads --n-threads -tb --threads-batch", "it is -t"},
    {"--num-batch -ub --ubatch-size", "it is -b"},
    {"--repetition-penalty", "it is --repeat-penalty"},
    {"-sp --parse-special", "it is --special for -i, --special-files for files"},
    {"--display-prompt", "it is --echo"},
    {"--no-display-prompt", "leave it out, the prompt is printed only with --echo"},
    {"--verbose-prompt -ptc --print-token-count --ids --show-count", "it is --tokenize"},
    {"--in-file --prompt-file", "it is -f"},
    {"-bf --binary-file", "it is -f with --keep-newline"},
    {"--no-escape", "leave it out, -i is literal without -e"},
    {"-ctk --cache-type-k -ctv --cache-type-v", "it is --kv, for keys and values"},
    {"--ppl", "it is --perplexity FILE"},
    {"-npp", "it is --pp"},
    {"-ntg", "it is --tg"},
    {"--show --info --parameters --modelfile", "-n 0 -i \"\" -v shows what the model is"},
    {"-cnv --conversation -st --single-turn --interactive -if --interactive-first -y -sys --system"
     " --system-prompt -sysf --system-prompt-file --chat-template --jinja",
     "there is no chat mode; write the model's chat format in -i, with --special -e"},
    {"--in-prefix --in-suffix --template --no-jinja", "the prompt is what -i and -f say"},
    {"-no-cnv --no-conversation --no-warmup --log-disable --no-perf --simple-io --nowordwrap",
     "leave it out, that is how it is here"},
    {"-co --color --log-colors", "leave it out, the text is plain"},
    {"-fa --flash-attn --mlock --no-mmap --numa --prio --poll --repack --keepalive --insecure",
     "leave it out, there is no such choice here"},
    {"-ngl --gpu-layers --n-gpu-layers -sm --split-mode -mg --main-gpu -ts --tensor-split -dev"
     " --device",
     "leave it out, everything runs on the processor"},
    {"--grammar --grammar-file -j --json-schema -jf --json-schema-file --format",
     "the form of the text cannot be prescribed"},
    {"--mirostat --typical --typical-p --dry-multiplier --xtc-probability --dynatemp-range"
     " --samplers --top-nsigma",
     "the sampler has --temp, --top-k, --top-p, --min-p and penalties"},
    {"--context-shift --no-context-shift --keep",
     "a text ends when its context is full, -c N makes that larger"},
    {"--host --port --api-key", "there is no server"},
};

/* ---- names ----------------------------------------------------------------------------------- */

/* Name number i of a list of names between spaces: its length, 0 past the last. */
static size_t name_at(const char *names, int i, const char **name)
{
    const char *p = names;
    for (; p && i > 0; i--)
        p = strchr(p, ' ') ? strchr(p, ' ') + 1 : NULL;
    *name = p;
    return p ? strcspn(p, " ") : 0;
}

static bool has_name(const char *names, const char *arg, size_t len)
{
    const char *name;
    size_t n;
    for (int i = 0; (n = name_at(names, i, &name)); i++)
        if (n == len && !memcmp(name, arg, len))
            return true;
    return false;
}

/* The row of this name (len bytes of it), -1 for none. */
static int find(const char *arg, size_t len)
{
    for (int i = 0; i < N_OPTIONS; i++)
        if (has_name(table[i].names, arg, len))
            return i;
    return -1;
}

/* The name to show. */
static Str main_name(const Option *o)
{
    const char *last = strrchr(o->names, ' ');
    last = last ? last + 1 : o->names;
    return (Str){last, strlen(last)};
}

/* Append item i of n to `out`, so that it reads "a, b or c". */
static void add_choice(char *out, size_t size, Str item, int i, int n)
{
    size_t used = strlen(out);
    snprintf(out + used, size - used, "%s%.*s",
             !i          ? ""
             : i + 1 < n ? ", "
                         : " or ",
             (int)item.len, item.ptr);
}

static char *list_choices(const char *const *choices, char *out, size_t size)
{
    int n = 0;
    while (choices[n])
        n++;
    *out = 0;
    for (int i = 0; i < n; i++)
        add_choice(out, size, (Str){choices[i], strlen(choices[i])}, i, n);
    return out;
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

/* An unknown flag: what it is called here, or the nearest name. */
static int unknown(const char *arg, size_t len, Err *e)
{
    char seen[80];
    const char *name, *nearest = NULL;
    size_t n;
    int best = 99;
    str_escape((Str){arg, len}, seen, sizeof seen);
    char dashed[64]; // --max_tokens is --max-tokens
    for (size_t i = 0; i < len && len < sizeof dashed; i++)
        dashed[i] = arg[i] == '_' ? '-' : arg[i];
    for (size_t i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++)
        if (has_name(elsewhere[i].flags, arg, len)
            || (len < sizeof dashed && has_name(elsewhere[i].flags, dashed, len)))
            return err_set(e, EXIT_USAGE, "%s: no such flag here: %s", seen, elsewhere[i].hint);
    for (int i = 0; i < N_OPTIONS; i++)
        for (int j = 0; (n = name_at(table[i].names, j, &name)); j++) {
            size_t shorter = n < len ? n : len;
            bool begins = shorter > 4 && !memcmp(arg, name, shorter); // --repeat-pen
            int d = begins ? 1 : distance(arg, len, name, n);
            if (d < best) {
                best = d;
                nearest = name;
            }
        }
    if (nearest && best <= 1 + (int)len / 3 && len > 2)
        return err_set(e, EXIT_USAGE, "%s: no such flag, did you mean %.*s?", seen,
                       (int)strcspn(nearest, " "), nearest);
    return err_set(e, EXIT_USAGE, "%s: no such flag; --help lists them", seen);
}

/* ---- values ---------------------------------------------------------------------------------- */

static int no_memory(Err *e)
{
    return err_set(e, EXIT_MEMORY, "out of memory");
}

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
    snprintf(want, sizeof want, "%s from %.10g to %.10g", whole ? "a whole number" : "a number",
             o->min, o->max);
    bool llama2c = o->offset == AT(n_threads) && strchr(value, '.'); // -t 1.0 was a temperature
    if (end == value || *end || !(*out >= o->min && *out <= o->max)
        || (whole && *out != floor(*out)) || llama2c)
        return bad(o, flag, value, want, e);
    return 0;
}

static int read_choice(const Option *o, const char *flag, const char *value, int *out, Err *e)
{
    char want[200];
    for (*out = 0; o->choices[*out]; (*out)++)
        if (!strcmp(value, o->choices[*out]))
            return 0;
    *out = 0;
    return bad(o, flag, value, list_choices(o->choices, want, sizeof want), e);
}

/* A seed; -1 asks for a random one. */
static int read_seed(Options *p, const Option *o, const char *flag, const char *value, Err *e)
{
    char *end;
    p->has_seed = strcmp(value, "-1") != 0;
    errno = 0;
    p->sampler.seed = p->has_seed ? strtoull(value, &end, 10) : 0;
    if (p->has_seed && (*value < '0' || *value > '9' || *end || errno))
        return bad(o, flag, value, "a whole number of up to 64 bits, or -1 for a random one", e);
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
    if (end == value || errno || id < 0 || id > MANY || (*number != '+' && *number != '-')
        || tail == number || *tail || isnan(bias))
        return bad(o, flag, value, "ID+BIAS or ID-BIAS, for example 15043+1.5", e);
    LogitBias *biases = mem_grow(p->biases, (size_t)p->sampler.n_biases + 1, sizeof *biases);
    if (!biases)
        return no_memory(e);
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

static int add_arg(TextArg **list, int *n, const char *arg, bool is_file, Err *e)
{
    TextArg *grown = mem_grow(*list, (size_t)*n + 1, sizeof *grown);
    if (!grown)
        return no_memory(e);
    *list = grown;
    grown[(*n)++] = (TextArg){.arg = arg, .is_file = is_file};
    return 0;
}

static int add_name(const char ***list, int *n, const char *name, Err *e)
{
    const char **grown = mem_grow(*list, (size_t)*n + 1, sizeof *grown);
    if (!grown)
        return no_memory(e);
    *list = grown;
    grown[(*n)++] = name;
    return 0;
}

/* Whether a file's name ends as its format is called, with something before. */
static int check_ending(const Option *o, const char *flag, const char *value, const char *other,
                        Err *e)
{
    char want[120] = "a name ending in ";
    size_t n = strlen(value), used = strlen(want);
    for (int i = 0; o->choices && o->choices[i]; i++) {
        size_t len = strlen(o->choices[i]);
        if (n > len && !strcmp(value + n - len, o->choices[i]))
            return 0;
    }
    list_choices(o->choices, want + used, sizeof want - used);
    used = strlen(want);
    snprintf(want + used, sizeof want - used, "%s", other);
    return bad(o, flag, value, want, e);
}

/* A format whose header is written last cannot go to standard output. */
static int check_path(const Option *o, const char *flag, const char *value, Err *e)
{
    if (o->choices && !strcmp(value, "-"))
        return err_set(e, EXIT_USAGE,
                       "%s: got \"-\", want a file: its header is written last, and "
                       "standard output cannot be wound back",
                       flag);
    return o->choices ? check_ending(o, flag, value, "", e) : 0;
}

static int apply(Options *p, const Option *o, const char *flag, const char *value, Err *e)
{
    char *field = (char *)p + o->offset;
    double number;
    switch (o->kind) {
    case OPT_FLAG: *(bool *)field = true; return 0;
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
    case OPT_CHOICE: return read_choice(o, flag, value, (int *)field, e);
    case OPT_MODE:
        if (!o->arg)
            return 0;
        // fall through
    case OPT_PATH:
    case OPT_TEXT:
        *(const char **)field = value;
        return o->kind == OPT_PATH ? check_path(o, flag, value, e) : 0;
    case OPT_PROMPT:
        if (is_top_p(flag, value))
            return bad(o, flag, value,
                       "a prompt (llama2.c's -p is --top-p here; -i takes any text)", e);
        return add_arg(&p->parts, &p->n_parts, value, false, e);
    case OPT_FILE: return add_arg(&p->parts, &p->n_parts, value, true, e);
    case OPT_STOP:
        if (!*value)
            return err_set(e, EXIT_USAGE, "%s: got an empty text, want at least one character",
                           flag);
        return add_arg(&p->stops, &p->n_stops, value, false, e);
    case OPT_SEED: return read_seed(p, o, flag, value, e);
    case OPT_BIAS: return read_bias(p, o, flag, value, e);
    case OPT_DUMP: return add_name(&p->maps.files, &p->maps.n_files, value, e);
    case OPT_STATS:
        if (strcmp(value, "-") && check_ending(o, flag, value, ", or - for a table", e))
            return -1;
        return add_name(&p->maps.stats, &p->maps.n_stats, value, e);
    case OPT_QUANTIZE_TYPE: return add_name(&p->quantize_types, &p->n_quantize_types, value, e);
    }
    return 0;
}

/* ---- escapes --------------------------------------------------------------------------------- */

static int hex_digits(const char *p, int n, uint32_t *out)
{
    *out = 0;
    for (int i = 0; i < n; i++) {
        static const char digits[] = "0123456789abcdefABCDEF";
        const char *at = p[i] ? strchr(digits, p[i]) : NULL;
        if (!at)
            return -1;
        *out = *out << 4 | (uint32_t)(at - digits < 16 ? at - digits : at - digits - 6);
    }
    return 0;
}

/* The code point of "\uHHHH" at p, or of two that are a surrogate pair: how many characters were
 * read, 0 if it is no such thing. */
static int read_unicode(const char *p, uint32_t *code)
{
    uint32_t low;
    if (p[0] != '\\' || p[1] != 'u' || hex_digits(p + 2, 4, code))
        return 0;
    if (*code >> 11 != 0xd800 >> 11)
        return 6;
    if (*code >> 10 != 0xd800 >> 10 || p[6] != '\\' || p[7] != 'u' || hex_digits(p + 8, 4, &low)
        || low >> 10 != 0xdc00 >> 10)
        return 0;
    *code = 0x10000 + ((*code & 0x3ff) << 10) + (low & 0x3ff);
    return 12;
}

/* Append `text` with \n \t \r \\ \" \' \xHH \uHHHH read; any other backslash stays. */
static void add_escaped(Buf *out, const char *text)
{
    static const char from[] = "ntr\\\"'", to[] = "\n\t\r\\\"'";
    for (int n; *text; text += n) {
        const char *plain = text[0] == '\\' && text[1] ? strchr(from, text[1]) : NULL;
        uint32_t code;
        char utf8[4];
        if (plain) {
            buf_add(out, &to[plain - from], 1);
            n = 2;
        } else if (text[0] == '\\' && text[1] == 'x' && !hex_digits(text + 2, 2, &code)) {
            buf_add(out, &(char){(char)code}, 1); // a byte, not a code point
            n = 4;
        } else if ((n = read_unicode(text, &code))) {
            buf_add(out, utf8, utf8_encode(code, utf8));
        } else {
            buf_add(out, text, 1);
            n = 1;
        }
    }
}

/* The bytes of texts, now that -e is known. */
static int read_texts(TextArg *list, int n, bool escape, Err *e)
{
    for (int i = 0; i < n; i++) {
        if (list[i].is_file)
            continue;
        if (escape)
            add_escaped(&list[i].text, list[i].arg);
        else
            buf_text(&list[i].text, list[i].arg);
        if (list[i].text.failed)
            return no_memory(e);
    }
    return 0;
}

/* ---- parsing --------------------------------------------------------------------------------- */

/* What was typed so far. */
typedef struct {
    Options *o;
    Str given[N_OPTIONS]; // each flag as it was typed, empty if it was not
    bool only_names;      // "--" was there
} Parser;

static Mode mode_of(const Option *o)
{
    int m = 0;
    while (o->modes >> m > 1)
        m++;
    return (Mode)m;
}

static void set_defaults(Options *o)
{
    *o = (Options){0};
    for (int i = 0; i < N_OPTIONS; i++) {
        char *field = (char *)o + table[i].offset;
        if (table[i].kind == OPT_INT)
            *(int *)field = (int)table[i].initial;
        else if (table[i].kind == OPT_FLOAT)
            *(float *)field = (float)table[i].initial;
    }
}

/* Flag number i was typed as `flag`. A mode that needs no model wins over one that does, otherwise
 * the first one counts. */
static int note(Parser *p, int i, Str flag, Err *e)
{
    const Option *o = &table[i];
    bool once = o->kind == OPT_PATH || (o->kind == OPT_MODE && o->arg);
    if (once && p->given[i].len)
        return err_set(e, EXIT_USAGE, "%.*s: given twice, want one %s", (int)flag.len, flag.ptr,
                       o->arg);
    p->given[i] = flag;
    Mode mode = o->kind == OPT_MODE ? mode_of(o) : MODE_GENERATE;
    if (p->o->mode == MODE_GENERATE || (mode >= MODE_HELP && p->o->mode < MODE_HELP))
        p->o->mode = mode;
    return 0;
}

static int parse_name(Parser *p, const char *arg, Err *e)
{
    char seen[80];
    if (p->o->model)
        return err_set(e, EXIT_USAGE,
                       "\"%s\": got a second model or a text without -i, want one "
                       "model file",
                       str_escape((Str){arg, strlen(arg)}, seen, sizeof seen));
    p->o->model = arg;
    return 0;
}

/* Argument *i, and the one behind it where that is its value. */
static int parse_arg(Parser *p, int *i, int argc, char **argv, Err *e)
{
    const char *arg = argv[*i], *value = NULL;
    if (p->only_names || arg[0] != '-' || !arg[1])
        return parse_name(p, arg, e);
    if (!strcmp(arg, "--")) {
        p->only_names = true;
        return 0;
    }
    size_t len = !strncmp(arg, "--", 2) ? strcspn(arg, "=") : strlen(arg);
    int found = find(arg, len);
    if (found < 0)
        return unknown(arg, len, e);
    const Option *o = &table[found];
    char flag[40];
    snprintf(flag, sizeof flag, "%.*s", (int)len, arg);
    if (arg[len] == '=')
        value = arg + len + 1;
    if (!o->arg && value)
        return bad(o, flag, value, "no value", e);
    if (o->arg && !value) {
        if (*i + 1 >= argc)
            return err_set(e, EXIT_USAGE, "%s needs an argument: %s", flag, o->arg);
        value = argv[++*i];
    }
    return note(p, found, (Str){arg, len}, e) || apply(p->o, o, flag, value, e) ? -1 : 0;
}

/* "FLAG needs A, B or C": the flags that choose one of `modes`. */
static int needs_mode(Str flag, unsigned modes, Err *e)
{
    char list[200] = "";
    int n = 0, at = 0;
    for (int i = 0; i < N_OPTIONS; i++)
        n += table[i].kind == OPT_MODE && table[i].modes & modes;
    for (int i = 0; i < N_OPTIONS; i++)
        if (table[i].kind == OPT_MODE && table[i].modes & modes)
            add_choice(list, sizeof list, main_name(&table[i]), at++, n);
    return err_set(e, EXIT_USAGE, "%.*s needs %s", (int)flag.len, flag.ptr, list);
}

/* The same for flags of which one must be there. */
static int needs_other(const Parser *p, Str flag, const char *names, Err *e)
{
    char list[200] = "";
    const char *name;
    size_t len;
    int n = 0;
    for (; (len = name_at(names, n, &name)); n++)
        if (p->given[find(name, len)].len)
            return 0;
    for (int i = 0; i < n; i++) {
        len = name_at(names, i, &name);
        add_choice(list, sizeof list, (Str){name, len}, i, n);
    }
    return err_set(e, EXIT_USAGE, "%.*s needs %s", (int)flag.len, flag.ptr, list);
}

/* Every flag is one that the mode takes and has what it needs. */
static int check_flags(const Parser *p, Err *e)
{
    Str mode = {NULL, 0};
    for (int i = 0; i < N_OPTIONS; i++)
        if (table[i].kind == OPT_MODE && mode_of(&table[i]) == p->o->mode)
            mode = p->given[i];
    for (int i = 0; i < N_OPTIONS; i++) {
        const Option *o = &table[i];
        Str flag = p->given[i];
        bool taken = o->modes >> p->o->mode & 1;
        if (!flag.len)
            continue;
        if (!taken && o->kind == OPT_MODE)
            return err_set(e, EXIT_USAGE, "%.*s and %.*s are two modes, choose one", (int)mode.len,
                           mode.ptr, (int)flag.len, flag.ptr);
        if (!taken && mode.len)
            return err_set(e, EXIT_USAGE, "%.*s does not take %.*s", (int)mode.len, mode.ptr,
                           (int)flag.len, flag.ptr);
        if (!taken)
            return needs_mode(flag, o->modes, e);
        if (o->needs && needs_other(p, flag, o->needs, e))
            return -1;
    }
    return 0;
}

int options_parse(Options *o, int argc, char **argv, Err *e)
{
    Parser p = {.o = o};
    int rc = 0;
    set_defaults(o);
    for (int i = 1; i < argc; i++) { // beyond an error: --help may follow
        Err own = {0};
        if (parse_arg(&p, &i, argc, argv, &own) && !rc) {
            *e = own;
            rc = -1;
        }
    }
    if (o->mode >= MODE_HELP)
        return 0;
    if (rc)
        return rc;
    if (!o->model)
        return err_set(e, EXIT_USAGE,
                       "no model given; usage: "
                       "./run MODEL -i \"Once upon a time\" (--help lists the flags)");
    if (!strcmp(o->model, "-"))
        return err_set(e, EXIT_USAGE,
                       "\"-\": the model cannot be standard input, want a file "
                       "(it is mapped into memory)");
    if (check_flags(&p, e))
        return -1;
    if (o->mode == MODE_BENCH && !o->bench_prompt && !o->bench_generate)
        return err_set(e, EXIT_USAGE, "--bench: --pp 0 and --tg 0 leave nothing to run");
    bool failed = read_texts(o->parts, o->n_parts, o->escape, e)
               || read_texts(o->stops, o->n_stops, o->escape, e);
    return failed ? -1 : 0;
}

static void free_args(TextArg *list, int n)
{
    for (int i = 0; i < n; i++)
        buf_free(&list[i].text);
    free(list);
}

void options_free(Options *o)
{
    free_args(o->parts, o->n_parts);
    free_args(o->stops, o->n_stops);
    free(o->biases);
    free(o->maps.files);
    free(o->maps.stats);
    free(o->quantize_types);
    *o = (Options){0};
}

/* ---- texts ----------------------------------------------------------------------------------- */

static const char usage[] = "run MODEL -i TEXT [flags]";

/* "-n, --predict N" */
static void flag_names(const Option *o, char *out, size_t size)
{
    const char *name;
    size_t len, used = 0;
    for (int j = 0; (len = name_at(o->names, j, &name)); j++)
        used += (size_t)snprintf(out + used, size - used, "%s%.*s", j ? ", " : "", (int)len, name);
    if (o->arg)
        snprintf(out + used, size - used, " %s", o->arg);
}

/* What a flag does, its choices and its default. */
static void flag_text(const Option *o, char *out, size_t size)
{
    char list[200] = "", usual[40] = "";
    if (o->kind == OPT_CHOICE)
        snprintf(usual, sizeof usual, " (%s)", o->choices[0]);
    if (o->kind == OPT_CHOICE)
        list_choices(o->choices, list, sizeof list);
    bool number = o->kind == OPT_INT || o->kind == OPT_FLOAT;
    if (number && o->initial >= o->min && o->initial <= o->max)
        snprintf(usual, sizeof usual, " (%g)", o->initial);
    snprintf(out, size, "%s%s%s", o->help, list, usual);
}

void options_help(FILE *f)
{
    fprintf(f,
            "usage: %s\n\nRun a GPT-style model from a GGUF file. "
            "Without -i or -f the prompt is standard input.\n",
            usage);
    for (int i = 0; i < N_OPTIONS; i++) {
        char names[80], text[200];
        if (!table[i].names) {
            fprintf(f, "\n%s\n", table[i].help);
            continue;
        }
        flag_names(&table[i], names, sizeof names);
        flag_text(&table[i], text, sizeof text);
        fprintf(f, "  %-28s %s\n", names, text);
    }
    fprintf(f, "\nExit status: 0 done, 1 I/O error, 2 usage, 3 bad model file, 4 out of memory.\n"
               "RUN_CPU=scalar|avx2|avx512|neon|dotprod chooses the kernels.\n");
}

void options_version(FILE *f)
{
    fprintf(f, "attn.c %s\n", RUN_VERSION);
}

/* Text for roff: backslashes are escaped, minus signs stay minus signs. */
static void roff(FILE *f, const char *text)
{
    for (; *text; text++)
        fprintf(f, *text == '\\' ? "\\e" : *text == '-' ? "\\-" : "%c", *text);
}

void options_man(FILE *f)
{
    fprintf(f,
            ".TH RUN 1 \"\" \"attn.c %s\"\n.SH NAME\nrun \\- run a GPT\\-style model and show what "
            "it attends to\n"
            ".SH SYNOPSIS\n.B ",
            RUN_VERSION);
    roff(f, usage);
    fprintf(f, "\n.SH DESCRIPTION\nGenerates text from a model in a GGUF file. Results go to "
               "standard output, which carries "
               "nothing else; standard error is empty on success. Without \\fB\\-i\\fR or "
               "\\fB\\-f\\fR the prompt is "
               "standard input.\n");
    for (int i = 0; i < N_OPTIONS; i++) {
        char names[80], text[200];
        if (!table[i].names) {
            fprintf(f, ".SS %s\n", table[i].help);
            continue;
        }
        flag_names(&table[i], names, sizeof names);
        flag_text(&table[i], text, sizeof text);
        fprintf(f, ".TP\n.B ");
        roff(f, names);
        fprintf(f, "\n");
        roff(f, text);
        fprintf(f, "\n");
    }
    fprintf(f, ".SH EXIT STATUS\n0 done; 1 run\\-time or I/O error; 2 usage, including a prompt "
               "longer than the context; "
               "3 bad or unsupported model file; 4 out of memory.\n"
               ".SH ENVIRONMENT\n.TP\n.B RUN_CPU\nkernels to use: scalar; avx2 or avx512; on "
               "AArch64 neon or dotprod\n"
               ".TP\n.B OMP_NUM_THREADS\nthreads, where \\fB\\-t\\fR is not given\n"
               ".SH EXAMPLES\n.nf\nrun model.bin \\-i \"Once upon a time\" \\-n 100\n"
               "run model.bin \\-i \"Summarise: \" \\-f \\- < doc.txt\n.fi\n");
}

void options_completion(FILE *f)
{
    fprintf(f, "_run() {\n    local cur=${COMP_WORDS[COMP_CWORD]}\n    case $cur in\n    -*) "
               "COMPREPLY=($(compgen -W '");
    for (int i = 0; i < N_OPTIONS; i++)
        if (table[i].names)
            fprintf(f, "%s ", table[i].names);
    fprintf(f, "' -- \"$cur\")) ;;\n    *) COMPREPLY=($(compgen -f -- \"$cur\")) ;;\n    esac\n}\n"
               "complete -o filenames -F _run run ./run\n");
}
