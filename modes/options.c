/* options.c - the command line: the table of its flags, and parsing.
 *
 * A row says how a flag's argument is read, where the value goes, what it is by default and which
 * modes take it; a flag that the mode does not take is refused by name. help.c prints the same
 * table. Names follow llama.cpp where it has the flag. What llama.cpp, ollama, llama2.c and others
 * spell differently, or have and we have not, gets a hint from a second table.
 */
#include "modes/options.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"

enum {
    G = 1 << MODE_GENERATE,
    L = 1 << MODE_BATCH,
    S = 1 << MODE_SCORE,
    E = 1 << MODE_EMBED,
    T = 1 << MODE_TOKENIZE,
    I = 1 << MODE_INFO,
    R = 1 << MODE_RENDER,
    C = 1 << MODE_CHAT,
    P = 1 << MODE_PERPLEXITY,
    B = 1 << MODE_BENCH,
    Q = 1 << MODE_QUANTIZE,
    MANY = 1 << 28
};

static const char *const shells[] = {"bash", "zsh", "fish", NULL}; // by Options.shell
static const char *const pooling_names[] = {"model", "none", "mean", "cls", "last", NULL};
static const char *const dtype_names[] = {"f32", "f16", NULL}; // by MapOptions.half
static const char *const logits_endings[] = {".npy", NULL};
static const char *const stats_endings[] = {".csv", ".json", NULL};

_Static_assert(sizeof(KvType) == sizeof(int) && sizeof(MapReduce) == sizeof(int),
               "OPT_CHOICE writes an int");

#define AT(field) offsetof(Options, field)
#define DIGITS_(number) #number
#define DIGITS(number) DIGITS_(number)
#define ANY_MAP "--dump-attn --attn-stats"

const Option option_table[] = {
    {.help = "Prompt"},
    {"-i -p --prompt", "TEXT", G | E | C | T, OPT_TEXTS, AT(parts), .count = AT(n_parts),
     .help = "prompt; several -i and -f are joined in order"},
    {"-f --file", "FILE", G | E | C | T, OPT_FILES, AT(parts), .count = AT(n_parts),
     .help = "prompt from a file or - (standard input), but for a newline at the prompt's end"},
    {"--keep-newline", NULL, G | E | C | T, OPT_FLAG, AT(keep_newline),
     .help = "keep that newline"},
    {"-e --escape", NULL, G | L | E | C | T, OPT_FLAG, AT(escape),
     .help = "read \\n, \\t, \\\\, \\xHH and \\uHHHH in -i and --stop"},
    {"--special", NULL, G | L | E | C | T, OPT_FLAG, AT(special),
     .help = "read control tokens such as <|im_end|> in -i, and print them"},
    {"--special-files", NULL, G | L | S | E | T | P, OPT_FLAG, AT(special_files),
     .help = "read control tokens in files and standard input"},
    {"--no-bos", NULL, G | L | S | E | T | P, OPT_FLAG, AT(no_bos),
     .help = "do not begin with the begin-of-text token"},

    {.help = "Generation"},
    {"-n --n-predict --predict", "N", G | L | C, OPT_INT, AT(n_predict), .min = -1, .max = MANY,
     .initial = -1, .help = "tokens to generate; 0 only runs the prompt, -1 has no limit"},
    {"--stop", "TEXT", G | L | C, OPT_TEXTS, AT(stops), .count = AT(n_stops),
     .help = "end before this text or control token; may be repeated"},
    {"--grammar", "TEXT", G | L | C, OPT_TEXT, AT(grammar),
     .help = "generate only what this grammar allows, in llama.cpp's GBNF"},
    {"--grammar-file", "FILE", G | L | C, OPT_PATH, AT(grammar_file),
     .help = "the same from a file"},
    {"-j --json-schema", "SCHEMA", G | L | C, OPT_TEXT, AT(json_schema),
     .help = "generate only JSON that this JSON schema allows"},
    {"--json-schema-file", "FILE", G | L | C, OPT_PATH, AT(json_schema_file),
     .help = "the same from a file"},
    {"--samples", "N", G, OPT_INT, AT(samples), .min = 1, .max = 1 << 16, .initial = 1,
     .help = "texts of one prompt, a JSON object each; more than one need --json"},
    {"--ignore-eos", NULL, G | L | C, OPT_FLAG, AT(ignore_eos), .help = "go on after an end token"},
    {"--echo", NULL, G | L, OPT_FLAG, AT(echo), .help = "print the prompt too, as it was given"},
    {"--save-session", "FILE", G, OPT_PATH, AT(save_session), .writes = true,
     .help = "write the text's tokens, keys and values, for --load-session"},
    {"--load-session", "FILE", G, OPT_PATH, AT(load_session),
     .help = "begin with the text of a session, which the prompt goes on with"},

    {.help = "Sampling"},
    {"--temperature --temp", "T", G | L | C, OPT_FLOAT, AT(sampler.temp), .max = 1e6,
     .initial = 0.8, .help = "temperature, 0 takes the likeliest token"},
    {"--top-k", "K", G | L | C, OPT_INT, AT(sampler.top_k), .max = MANY, .initial = 40,
     .help = "keep the K likeliest, 0 keeps all"},
    {"--top-p", "P", G | L | C, OPT_FLOAT, AT(sampler.top_p), .max = 1, .initial = 0.95,
     .help = "keep the likeliest that sum to P, 1 keeps all"},
    {"--min-p", "P", G | L | C, OPT_FLOAT, AT(sampler.min_p), .max = 1, .initial = 0.05,
     .help = "keep those at least P times as likely as the best"},
    {"--repeat-penalty", "X", G | L | C, OPT_FLOAT, AT(sampler.repeat_penalty), .min = 1e-6,
     .max = 1e6, .initial = 1, .help = "divide the logits of recent tokens by X"},
    {"--presence-penalty", "X", G | L | C, OPT_FLOAT, AT(sampler.presence_penalty), .min = -1e6,
     .max = 1e6, .help = "subtract X from those of recent tokens"},
    {"--frequency-penalty", "X", G | L | C, OPT_FLOAT, AT(sampler.frequency_penalty), .min = -1e6,
     .max = 1e6, .help = "subtract X for each recent occurrence"},
    {"--repeat-last-n", "N", G | L | C, OPT_INT, AT(sampler.repeat_last_n), .min = -1, .max = MANY,
     .initial = 64, .help = "how many tokens are recent, -1 is all"},
    {"-l --logit-bias", "ID+BIAS", G | L | C, OPT_BIAS,
     .help = "add to the logit of a token: 15043+1.5 or 2-inf; may be repeated"},
    {"-s --seed", "SEED", G | L | C, OPT_SEED,
     .help = "seed of the sampler; without, or with -1, a random one that -v shows"},

    {.help = "Engine"},
    {"-c --ctx-size", "N", G | L | S | E | C | P, OPT_INT, AT(seq_len), .min = 1, .max = MANY,
     .help = "context; by default the model's, at most " DIGITS(USUAL_CONTEXT) ", grown to the "
                                                                               "prompt and -n"},
    {"-b --batch-size", "N", G | L | S | E | C | P | B, OPT_INT, AT(batch), .min = 1,
     .max = 1 << 16, .initial = 512, .help = "prompt tokens of one pass"},
    {"-t --threads", "N", G | L | S | E | C | P | B | Q, OPT_INT, AT(n_threads), .min = 1,
     .max = 1024,
     .help = "threads; by default OMP_NUM_THREADS, else the physical cores we may use"},
    {"--kv", "TYPE", G | L | S | E | C | P | B, OPT_CHOICE, AT(kv_type), .choices = kv_names,
     .help = "type of the cached keys and values, q8 half the size of f16: "},
    {"--exact", NULL, G | L | S | E | C | P | B, OPT_FLAG, AT(exact),
     .help = "multiply with float activations, not with bytes or BF16"},

    {.help = "Attention"},
    {"--dump-attn", "FILE", G | E, OPT_NAMES, AT(maps.files), .count = AT(maps.n_files),
     .writes = true,
     .help = "write the attention maps: .npz .npy .jsonl .csv .svg .html; may be repeated"},
    {"--attn-stats", "FILE", G | E, OPT_NAMES, AT(maps.stats), .count = AT(maps.n_stats),
     .choices = stats_endings, .writes = true,
     .help = "write statistics of every head: .csv, .json, or - for a table; may be repeated"},
    {"--dump-routing", "FILE", G, OPT_NAMES, AT(maps.routing), .count = AT(maps.n_routing),
     .writes = true,
     .help = "write each token's experts and their weights: .npz .jsonl .csv; may be repeated"},
    {"--attn-layers", "LIST", G | E, OPT_TEXT, AT(maps.layers), .needs = ANY_MAP,
     .help = "only these layers: 0,3-5,-1"},
    {"--attn-heads", "LIST", G | E, OPT_TEXT, AT(maps.heads), .needs = ANY_MAP,
     .help = "only these heads"},
    {"--attn-queries", "WHICH", G | E, OPT_TEXT, AT(maps.queries), .needs = ANY_MAP,
     .help = "only these rows: all, prompt, generated or positions A-B"},
    {"--attn-reduce", "HOW", G | E, OPT_CHOICE, AT(maps.reduce), .choices = map_reduce_names,
     .needs = "--dump-attn", .help = "join the maps: "},
    {"--attn-dtype", "TYPE", G | E, OPT_CHOICE, AT(maps.half), .choices = dtype_names,
     .needs = "--dump-attn", .help = "numbers in .npz and .npy: "},
    {"--attn-top", "K", G | E, OPT_INT, AT(maps.top), .max = MANY, .needs = "--dump-attn",
     .help = "only the K largest weights of a row in .csv and .jsonl, 0 is all"},

    {.help = "Many prompts"},
    {"--jsonl", "FILE", L | S | E, OPT_INPUT, AT(jsonl),
     .help = "a prompt a line, as JSON, - is standard input; a JSON object a line comes out"},
    {"--lines", "FILE", L | S | E, OPT_INPUT, AT(lines),
     .help = "the same for lines of plain text"},
    {"--first-line", "N", L | S | E, OPT_INT, AT(first_line), .min = 1, .max = 1 << 30,
     .initial = 1, .help = "number of the first line, of an input that is a part of another"},
    {"--score", NULL, S, OPT_MODE, .needs = "--jsonl --lines",
     .help = "generate nothing: log-probabilities of a line's completions, or of its text"},
    {"--parallel", "N", L | S, OPT_INT, AT(parallel), .min = 1, .max = 4096,
     .help = "texts at once; by default what the processor and half of the free memory allow"},
    {"--unordered", NULL, L | S | E, OPT_FLAG, AT(unordered), .help = "write lines as they finish"},
    {"--resume", NULL, L | S | E, OPT_FLAG, AT(resume), .needs = "-o",
     .help = "go on with the file of -o where a run was broken off; FILE.run says how it was made"},
    {"--timings", NULL, L, OPT_FLAG, AT(timings), .help = "add the times to every line"},

    {.help = "Embeddings"},
    {"--embed", NULL, E, OPT_MODE,
     .help = "print a vector for each text of -i, --lines or --jsonl; -o FILE.npy writes them"},
    {"--pooling", "HOW", E, OPT_CHOICE, AT(pooling), .choices = pooling_names,
     .help = "what is made of the last hidden states: "},
    {"--no-normalize", NULL, E, OPT_FLAG, AT(no_normalize),
     .help = "leave vectors as long as they are"},
    {"--truncate", NULL, E, OPT_FLAG, AT(truncate),
     .help = "cut texts that are longer than the context, which are an error otherwise"},

    {.help = "Chat"},
    {"--conversation --chat", NULL, L | C, OPT_MODE,
     .help = "answer -i or lines by the model's chat template; on a terminal, a conversation"},
    {"--system-prompt --system", "TEXT", L | S | C, OPT_TEXT, AT(system),
     .help = "what the model is told first"},
    {"--render", NULL, R, OPT_MODE, .needs = "--messages",
     .help = "print a conversation as the model's chat template writes it; needs no weights"},
    {"--messages", "FILE", R | C, OPT_PATH, AT(messages),
     .help =
         "the conversation, a JSON list of messages: [{\"role\": \"user\", \"content\": \"...\"}]"},
    {"--tools", "FILE", L | S | R | C, OPT_PATH, AT(tools),
     .help = "JSON list of the functions that the model may call"},
    {"--chat-template", "FILE", L | S | R | C, OPT_PATH, AT(chat_template),
     .help = "another template than the model's own"},
    {"--chat-template-kwargs", "JSON", L | S | R | C, OPT_TEXT, AT(chat_variables),
     .help = "more variables for it: {\"enable_thinking\": false}"},
    {"--no-generation-prompt", NULL, R, OPT_FLAG, AT(no_generation_prompt),
     .help = "end after the last message, without the beginning of an answer"},

    {.help = "Instead of generating"},
    {"--tokenize", NULL, T, OPT_MODE,
     .help = "print the prompt's token ids and their texts; needs no weights"},
    {"--info", NULL, I, OPT_MODE,
     .help = "what the file is: sizes, types, tokenizer; with --json its metadata too"},
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
    {"--quantize-type", "NAME=TYPE", Q, OPT_NAMES, AT(quantize_types),
     .count = AT(n_quantize_types),
     .help = "another type for some of them: attn_v=q8_0 or blk.3=f16; may be repeated"},
    {"-o --output", "FILE", L | S | E | Q, OPT_PATH, AT(output), .writes = true,
     .help = "file to write, of --quantize, --jsonl and --lines; - is standard output"},

    {.help = "Output"},
    {"--json", NULL, G | E | C | T | I | R | P | B, OPT_FLAG, AT(json),
     .help = "print one JSON object: text, ids, why it ended, seed, times; or what the mode finds"},
    {"--logprobs", "K", G | L, OPT_INT, AT(logprobs), .max = 1000, .initial = -1,
     .help = "log-probabilities of every token and the K likeliest: in --json, or a line a token"},
    {"--logits", "FILE.npy", G, OPT_PATH, AT(logits), .choices = logits_endings, .writes = true,
     .help = "write the logits of every position that was run: (T, vocab) float32"},
    {"-v --verbose", NULL, G | L | S | E | C | P | B | Q, OPT_FLAG, AT(verbose),
     .help = "model, seed, speed and why the text ended, on standard error"},

    {.help = "Help"},
    {"-h --usage --help", NULL, 1 << MODE_HELP, OPT_MODE, .help = "this text"},
    {"--version", NULL, 1 << MODE_VERSION, OPT_MODE, .help = "print the version"},
    {"--man", NULL, 1 << MODE_MAN, OPT_MODE, .help = "print the man page, for man -l -"},
    {"--completion", "SHELL", 1 << MODE_COMPLETION, OPT_MODE, AT(shell), .choices = shells,
     .help = "print the completion of flags for "},
};

enum { N_OPTIONS = sizeof option_table / sizeof *option_table };

const int n_options = N_OPTIONS;

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
    {"--show --parameters --modelfile", "it is --info"},
    {"-cnv -st --single-turn --interactive -if --interactive-first -y --jinja", "it is --chat"},
    {"-sys", "it is --system"},
    {"-jf", "it is --json-schema-file"},
    {"-sysf --system-prompt-file", "it is --system TEXT, or --messages FILE"},
    {"--in-prefix --in-suffix --template --no-jinja", "the prompt is what -i and -f say"},
    {"-no-cnv --no-conversation --no-warmup --log-disable --no-perf --simple-io --nowordwrap",
     "leave it out, that is how it is here"},
    {"-co --color --log-colors", "leave it out, the text is plain"},
    {"-fa --flash-attn --mlock --no-mmap --numa --prio --poll --repack --keepalive --insecure",
     "leave it out, there is no such choice here"},
    {"-ngl --gpu-layers --n-gpu-layers -sm --split-mode -mg --main-gpu -ts --tensor-split -dev"
     " --device",
     "leave it out, everything runs on the processor"},
    {"--format", "it is --json-schema SCHEMA, or --grammar"},
    {"--mirostat --typical --typical-p --dry-multiplier --xtc-probability --dynatemp-range"
     " --samplers --top-nsigma",
     "the sampler has --temp, --top-k, --top-p, --min-p and penalties"},
    {"--context-shift --no-context-shift --keep",
     "a text ends when its context is full, -c N makes that larger"},
    {"--host --port --api-key", "there is no server"},
};

/* ---- names ----------------------------------------------------------------------------------- */

Str options_name(const char *names, int i)
{
    for (; names && i > 0; i--)
        names = strchr(names, ' ') ? strchr(names, ' ') + 1 : NULL;
    return (Str){names, names ? strcspn(names, " ") : 0};
}

static bool has_name(const char *names, Str name)
{
    Str own;
    for (int i = 0; (own = options_name(names, i)).len; i++)
        if (!str_cmp(own, name))
            return true;
    return false;
}

/* The row of this name, -1 for none. */
static int find(Str name)
{
    for (int i = 0; i < N_OPTIONS; i++)
        if (has_name(option_table[i].names, name))
            return i;
    return -1;
}

bool options_takes_file(const Option *o)
{
    return o->arg && !strncmp(o->arg, "FILE", 4);
}

const Option *options_find(const char *name)
{
    int i = find((Str){name, strlen(name)});
    assert(i >= 0);
    return &option_table[i];
}

Str options_main_name(const Option *o)
{
    const char *last = strrchr(o->names, ' ');
    last = last ? last + 1 : o->names;
    return (Str){last, strlen(last)};
}

/* "a, b or c" of n items in `out`. */
static void join(const Str *items, int n, char *out, size_t size)
{
    *out = 0;
    for (int i = 0; i < n; i++) {
        const char *between = !i ? "" : i + 1 < n ? ", " : " or ";
        size_t used = strlen(out);
        snprintf(out + used, size - used, "%s%.*s", between, (int)items[i].len, items[i].ptr);
    }
}

char *options_choices(const char *const *choices, char *out, size_t size)
{
    Str items[16];
    int n = 0;
    for (; choices[n]; n++) {
        assert(n < 16);
        items[n] = (Str){choices[n], strlen(choices[n])};
    }
    join(items, n, out, size);
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
static int unknown(Str arg, Err *e)
{
    char seen[80], dashed[64]; // --max_tokens is --max-tokens
    Str name, nearest = {0}, other = {dashed, arg.len < sizeof dashed ? arg.len : 0};
    int best = 99;
    str_escape(arg, seen, sizeof seen);
    for (size_t i = 0; i < other.len; i++)
        dashed[i] = arg.ptr[i] == '_' ? '-' : arg.ptr[i];
    for (size_t i = 0; i < sizeof elsewhere / sizeof *elsewhere; i++)
        if (has_name(elsewhere[i].flags, arg) || has_name(elsewhere[i].flags, other))
            return err_set(e, EXIT_USAGE, "%s: no such flag here: %s", seen, elsewhere[i].hint);
    for (int i = 0; i < N_OPTIONS; i++)
        for (int j = 0; (name = options_name(option_table[i].names, j)).len; j++) {
            size_t shorter = name.len < arg.len ? name.len : arg.len;
            bool begins = shorter > 4 && !memcmp(arg.ptr, name.ptr, shorter); // --repeat-pen
            int d = begins ? 1 : distance(arg.ptr, arg.len, name.ptr, name.len);
            if (d < best) {
                best = d;
                nearest = name;
            }
        }
    if (best <= 1 + (int)arg.len / 3 && arg.len > 2)
        return err_set(e, EXIT_USAGE, "%s: no such flag, did you mean %.*s?", seen,
                       (int)nearest.len, nearest.ptr);
    return err_set(e, EXIT_USAGE, "%s: no such flag; --help lists them", seen);
}

/* ---- values ---------------------------------------------------------------------------------- */

/* A flag that was typed, on its way into the options. */
typedef struct {
    Options *p;
    const Option *o;
    const char *flag, *value; // as typed; value NULL for none
    Err *e;
} Arg;

static int no_memory(Err *e)
{
    return err_set(e, EXIT_MEMORY, "out of memory");
}

static int bad(const Arg *a, const char *want)
{
    char seen[80];
    str_escape((Str){a->value, strlen(a->value)}, seen, sizeof seen);
    return err_set(a->e, EXIT_USAGE, "%s: got \"%s\", want %s", a->flag, seen, want);
}

static int read_number(const Arg *a, double *out)
{
    const Option *o = a->o;
    char want[160], *end;
    bool whole = o->kind == OPT_INT;
    bool llama2c = o->offset == AT(n_threads) && strchr(a->value, '.'); // its temperature
    *out = strtod(a->value, &end);
    snprintf(want, sizeof want, "%s from %.10g to %.10g%s", whole ? "a whole number" : "a number",
             o->min, o->max, llama2c ? " (-t is threads here; the temperature is --temp)" : "");
    if (end == a->value || *end || !(*out >= o->min && *out <= o->max)
        || (whole && *out != floor(*out)) || llama2c)
        return bad(a, want);
    return 0;
}

static int read_choice(const Arg *a, int *out)
{
    char want[200];
    for (*out = 0; a->o->choices[*out]; (*out)++)
        if (!strcmp(a->value, a->o->choices[*out]))
            return 0;
    *out = 0;
    return bad(a, options_choices(a->o->choices, want, sizeof want));
}

/* A seed; -1 asks for a random one. */
static int read_seed(const Arg *a)
{
    char *end;
    Options *p = a->p;
    p->has_seed = strcmp(a->value, "-1") != 0;
    errno = 0;
    p->sampler.seed = p->has_seed ? strtoull(a->value, &end, 10) : 0;
    if (p->has_seed && (*a->value < '0' || *a->value > '9' || *end || errno))
        return bad(a, "a whole number of up to 64 bits, or -1 for a random one");
    return 0;
}

/* "ID+BIAS" or "ID-BIAS", BIAS a number or inf. */
static int read_bias(const Arg *a)
{
    char *number, *tail;
    Options *p = a->p;
    errno = 0;
    long id = strtol(a->value, &number, 10);
    double bias = strtod(number, &tail);
    if (number == a->value || errno || id < 0 || id > MANY || (*number != '+' && *number != '-')
        || tail == number || *tail || isnan(bias))
        return bad(a, "ID+BIAS or ID-BIAS, for example 15043+1.5");
    LogitBias *biases = mem_grow(p->biases, (size_t)p->sampler.n_biases + 1, sizeof *biases);
    if (!biases)
        return no_memory(a->e);
    biases[p->sampler.n_biases++] = (LogitBias){(int)id, (float)bias};
    p->sampler.biases = p->biases = biases;
    return 0;
}

/* llama2.c's `-p 0.9`, which would be a prompt here. */
static bool is_top_p(const Arg *a)
{
    char *end;
    double v = strtod(a->value, &end);
    return !strcmp(a->flag, "-p") && strchr(a->value, '.') && !*end && v >= 0 && v <= 1;
}

/* A text or a file that is read later, at the end of the row's list. */
static int add_text(const Arg *a)
{
    TextArg **list = (TextArg **)((char *)a->p + a->o->offset);
    int *n = (int *)((char *)a->p + a->o->count);
    if (a->o->offset == AT(stops) && !*a->value)
        return err_set(a->e, EXIT_USAGE, "%s: got an empty text, want at least one character",
                       a->flag);
    if (is_top_p(a))
        return bad(a, "a prompt (llama2.c's -p is --top-p here; -i takes any text)");
    TextArg *grown = mem_grow(*list, (size_t)*n + 1, sizeof *grown);
    if (!grown)
        return no_memory(a->e);
    *list = grown;
    grown[(*n)++] = (TextArg){.arg = a->value, .is_file = a->o->kind == OPT_FILES};
    return 0;
}

/* The same for a name or another word. */
static int add_name(const Arg *a)
{
    const char ***list = (const char ***)((char *)a->p + a->o->offset);
    int *n = (int *)((char *)a->p + a->o->count);
    const char **grown = mem_grow(*list, (size_t)*n + 1, sizeof *grown);
    if (!grown)
        return no_memory(a->e);
    *list = grown;
    grown[(*n)++] = a->value;
    return 0;
}

/* Whether a file's name ends as one of its formats is called, with something before that. "-" may
 * stand for it in a list; otherwise its header is written last. */
static int check_ending(const Arg *a)
{
    char want[160], endings[100];
    const char *const *choices = a->o->choices;
    bool list = a->o->kind == OPT_NAMES, dash = !strcmp(a->value, "-");
    if (!choices || (dash && list))
        return 0;
    if (dash)
        return err_set(a->e, EXIT_USAGE,
                       "%s: got \"-\", want a file: its header is written last, and "
                       "standard output cannot be wound back",
                       a->flag);
    for (int i = 0; choices[i]; i++) {
        size_t n = strlen(a->value), len = strlen(choices[i]);
        if (n > len && !strcmp(a->value + n - len, choices[i]))
            return 0;
    }
    snprintf(want, sizeof want, "a name ending in %s%s",
             options_choices(choices, endings, sizeof endings), list ? ", or - for a table" : "");
    return bad(a, want);
}

static int apply(const Arg *a)
{
    void *field = (char *)a->p + a->o->offset;
    double number = 0;
    int rc = 0;
    switch (a->o->kind) {
    case OPT_FLAG: *(bool *)field = true; return 0;
    case OPT_INT:
        rc = read_number(a, &number);
        *(int *)field = (int)number;
        return rc;
    case OPT_FLOAT:
        rc = read_number(a, &number);
        *(float *)field = (float)number;
        return rc;
    case OPT_CHOICE: return read_choice(a, field);
    case OPT_MODE:
        if (a->o->choices)
            return read_choice(a, field);
        // fall through
    case OPT_TEXT:
    case OPT_PATH:
    case OPT_INPUT:
        if (a->value)
            *(const char **)field = a->value;
        return a->value ? check_ending(a) : 0;
    case OPT_NAMES: return check_ending(a) || add_name(a) ? -1 : 0;
    case OPT_TEXTS:
    case OPT_FILES: return add_text(a);
    case OPT_SEED: return read_seed(a);
    case OPT_BIAS: return read_bias(a);
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
        (escape ? add_escaped : buf_text)(&list[i].text, list[i].arg);
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

/* The mode that it chooses: the first of those that take it, of OPT_MODE the last. */
static Mode own_mode(const Option *o)
{
    int m = 0;
    while (o->kind == OPT_MODE ? o->modes >> (m + 1) : !(o->modes >> m & 1))
        m++;
    return (Mode)m;
}

static bool chooses_mode(const Option *o)
{
    return o->kind == OPT_MODE || o->kind == OPT_INPUT;
}

static void set_defaults(Options *o)
{
    *o = (Options){0};
    for (int i = 0; i < N_OPTIONS; i++) {
        void *field = (char *)o + option_table[i].offset;
        if (option_table[i].kind == OPT_INT)
            *(int *)field = (int)option_table[i].initial;
        else if (option_table[i].kind == OPT_FLOAT)
            *(float *)field = (float)option_table[i].initial;
    }
}

static int parse_name(Parser *p, const char *arg, Err *e)
{
    char seen[80];
    if (p->o->model)
        return err_set(e, EXIT_USAGE,
                       "\"%s\": got a second model or a text without -i, want one model file",
                       str_escape((Str){arg, strlen(arg)}, seen, sizeof seen));
    p->o->model = arg;
    return 0;
}

/* Argument *i, and the one after it where that is its value. A mode that needs no model wins over
 * one that does, otherwise the first one counts. */
static int parse_arg(Parser *p, int *i, int argc, char **argv, Err *e)
{
    const char *arg = argv[*i];
    char flag[40];
    if (p->only_names || arg[0] != '-' || !arg[1])
        return parse_name(p, arg, e);
    if (!strcmp(arg, "--")) {
        p->only_names = true;
        return 0;
    }
    Str name = {arg, strncmp(arg, "--", 2) ? strlen(arg) : strcspn(arg, "=")};
    int found = find(name);
    if (found < 0)
        return unknown(name, e);
    const Option *o = &option_table[found];
    snprintf(flag, sizeof flag, "%.*s", (int)name.len, arg);
    Arg a = {p->o, o, flag, arg[name.len] ? arg + name.len + 1 : NULL, e};
    if (!o->arg && a.value)
        return bad(&a, "no value");
    if (o->arg && !a.value && *i + 1 >= argc)
        return err_set(e, EXIT_USAGE, "%s needs an argument: %s", flag, o->arg);
    if (o->arg && !a.value)
        a.value = argv[++*i];
    bool once = o->kind == OPT_PATH || o->kind == OPT_INPUT || (o->kind == OPT_MODE && o->arg);
    if (once && p->given[found].len)
        return err_set(e, EXIT_USAGE, "%s: given twice, want one %s", flag, o->arg);
    if (apply(&a))
        return -1;
    p->given[found] = name;
    Mode mode = o->kind == OPT_MODE ? own_mode(o) : MODE_GENERATE;
    if (p->o->mode == MODE_GENERATE || (mode >= MODE_HELP && p->o->mode < MODE_HELP))
        p->o->mode = mode;
    return 0;
}

/* "FLAG needs A, B or C", of n names. */
static int needs(Str flag, const Str *names, int n, Err *e)
{
    char list[200];
    join(names, n, list, sizeof list);
    return err_set(e, EXIT_USAGE, "%.*s needs %s", (int)flag.len, flag.ptr, list);
}

/* The flags that choose one of `modes`: a form of input where it does by itself, without the other
 * modes that take one. */
static int needs_mode(Str flag, unsigned modes, Err *e)
{
    Str names[N_MODES];
    unsigned taken = 0; // modes that take an input which is listed
    int n = 0;
    for (int i = 0; i < N_OPTIONS; i++) {
        const Option *o = &option_table[i];
        bool listed = chooses_mode(o) && modes & ~taken & 1u << own_mode(o);
        if (listed)
            names[n++] = options_main_name(o);
        if (listed && o->kind == OPT_INPUT)
            taken |= o->modes & ~(1u << own_mode(o)); // the other form is listed too
    }
    return needs(flag, names, n, e);
}

/* One of the flags `others` must be there. */
static int needs_other(const Parser *p, Str flag, const char *others, Err *e)
{
    Str names[8];
    int n = 0;
    for (; (names[n] = options_name(others, n)).len; n++) {
        assert(n < 7 && find(names[n]) >= 0);
        if (p->given[find(names[n])].len)
            return 0;
    }
    return n ? needs(flag, names, n, e) : 0;
}

/* The flag that chose the mode, empty for none. */
static Str mode_flag(const Parser *p)
{
    Str flag = {NULL, 0};
    for (int i = 0; i < N_OPTIONS; i++)
        if (chooses_mode(&option_table[i]) && own_mode(&option_table[i]) == p->o->mode
            && p->given[i].len)
            flag = p->given[i];
    return flag;
}

/* One mode is chosen; --chat and a form of input are a batch. */
static int settle_mode(Parser *p, Err *e)
{
    Options *o = p->o;
    Str mode = mode_flag(p);
    for (int i = 0; i < N_OPTIONS; i++)
        if (option_table[i].kind == OPT_MODE && p->given[i].len
            && own_mode(&option_table[i]) != o->mode)
            return err_set(e, EXIT_USAGE, "%.*s and %.*s are two modes, choose one", (int)mode.len,
                           mode.ptr, (int)p->given[i].len, p->given[i].ptr);
    o->chat = o->mode == MODE_CHAT;
    if ((o->mode == MODE_GENERATE || o->chat) && (o->jsonl || o->lines))
        o->mode = MODE_BATCH;
    return 0;
}

/* Every flag is one that the mode takes and has what it needs. */
static int check_flags(const Parser *p, Err *e)
{
    Str mode = mode_flag(p);
    for (int i = 0; i < N_OPTIONS; i++) {
        const Option *o = &option_table[i];
        Str flag = p->given[i];
        bool taken = o->modes >> p->o->mode & 1;
        if (!flag.len)
            continue;
        if (!taken && !mode.len)
            return needs_mode(flag, o->modes, e);
        if (!taken)
            return err_set(e, EXIT_USAGE, "%.*s does not take %.*s", (int)mode.len, mode.ptr,
                           (int)flag.len, flag.ptr);
        if (needs_other(p, flag, o->needs, e))
            return -1;
    }
    return 0;
}

int options_parse(Options *o, int argc, char **argv, Err *e)
{
    Parser p = {.o = o};
    int rc = 0;
    set_defaults(o);
    for (int i = 1; i < argc; i++) { // past an error too: --help may follow
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
                       "no model given; usage: %s MODEL -i \"Once upon a time\" "
                       "(--help lists the flags)",
                       program_name());
    if (!strcmp(o->model, "-"))
        return err_set(e, EXIT_USAGE,
                       "\"-\": the model cannot be standard input, want a file "
                       "(it is mapped into memory)");
    if (settle_mode(&p, e) || check_flags(&p, e) || read_texts(o->parts, o->n_parts, o->escape, e))
        return -1;
    return read_texts(o->stops, o->n_stops, o->escape, e);
}

static void free_texts(TextArg *list, int n)
{
    for (int i = 0; i < n; i++)
        buf_free(&list[i].text);
    free(list);
}

void options_free(Options *o)
{
    free_texts(o->parts, o->n_parts);
    free_texts(o->stops, o->n_stops);
    free(o->biases);
    free(o->maps.files);
    free(o->maps.stats);
    free(o->maps.routing);
    free(o->quantize_types);
    *o = (Options){0};
}
