/* options.h - the command line: one table of flags behind parsing, --help, the man page and the
 * completions. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include "maps/maps.h"
#include "generate/sampler.h"

#define RUN_VERSION "0.1.0"
#define USUAL_CONTEXT 4096 // at most, without -c
#define SCORE_WINDOW 512   // the same, with --perplexity
#define BENCH_MAX_RUNS 100

/* What the program does, one at a time. A flag chooses each but the first two: a form of input
 * (--jsonl, --lines) chooses MODE_BATCH where no flag chooses another, or --chat goes with it. The
 * table in options.c says which other flags a mode takes. */
typedef enum {
    MODE_GENERATE,
    MODE_BATCH,
    MODE_SCORE,
    MODE_EMBED,
    MODE_TOKENIZE,
    MODE_INFO,
    MODE_RENDER,
    MODE_CHAT,
    MODE_PERPLEXITY,
    MODE_BENCH,
    MODE_QUANTIZE, // these need a model
    MODE_HELP,
    MODE_VERSION,
    MODE_MAN,
    MODE_COMPLETION,
    N_MODES
} Mode;

/* A text or a file that a flag names. */
typedef struct {
    const char *arg; // as typed
    bool is_file;    // `arg` is its name
    Buf text;        // of a text: its bytes, with the escapes of -e read; owned
} TextArg;

typedef struct {
    Mode mode;
    const char *model;
    TextArg *parts; // -i and -f in the order given
    int n_parts;
    bool escape, echo, special, special_files, keep_newline, no_bos, ignore_eos, json, verbose;
    int logprobs;              // likeliest tokens to tell the log-probabilities of; -1: of none
    int samples;               // texts of one prompt
    bool chat;                 // prompts are what a user says, also with MODE_BATCH
    const char *system;        // text, with MODE_CHAT and MODE_BATCH
    const char *jsonl, *lines; // file of texts, with MODE_BATCH, MODE_SCORE and MODE_EMBED
    int first_line;            // number of their first line
    int parallel;              // texts at once; 0: chosen from the machine
    bool unordered, timings, resume;
    int pooling; // with MODE_EMBED: 0 for the model's own, else 1 + a Pooling
    bool no_normalize, truncate;
    int n_predict; // -1: until an end token or a full context
    int seq_len;   // 0: chosen from the model and the prompt
    int n_threads; // 0: chosen from the machine
    int batch;     // rows of one forward() while the prompt is run
    bool has_seed;
    bool exact;
    KvType kv_type;
    int shell;                                    // with MODE_COMPLETION
    const char *logits;                           // file to write, or NULL
    const char *load_session, *save_session;      // files, or NULL
    const char *perplexity;                       // file to read, with MODE_PERPLEXITY
    const char *messages, *tools, *chat_template; // files to read, with MODE_RENDER
    const char *chat_variables;                   // of --chat-template-kwargs
    bool no_generation_prompt;
    int bench_prompt, bench_generate, bench_depth,
        bench_runs;                // tokens, and timed runs, with MODE_BENCH
    const char *quantize, *output; // type and file to write, with MODE_QUANTIZE
    const char **quantize_types;   // of --quantize-type
    int n_quantize_types;
    const char *grammar, *grammar_file, *json_schema, *json_schema_file; // the text's form, or NULL
    TextArg *stops;
    int n_stops;
    LogitBias *biases;
    MapOptions maps; // --dump-attn and --attn-*; its lists of files are freed with the Options
    SamplerParams sampler;
} Options;

/* 0; or -1 and an Err (EXIT_USAGE or EXIT_MEMORY). options_free() in either case. --help and the
 * other modes without a model win over every error of the rest. */
int options_parse(Options *o, int argc, char **argv, Err *e);
void options_free(Options *o);

/* ---- the table ------------------------------------------------------------------------------- */

typedef enum {
    OPT_FLAG, // bool
    OPT_INT,
    OPT_FLOAT,
    OPT_CHOICE, // one of `choices`; an int or an enum by their order
    OPT_TEXT,   // const char *
    OPT_PATH,   // const char *, the name of a file, given once
    OPT_NAMES,  // a list of const char *
    OPT_TEXTS,  // a list of TextArg: texts
    OPT_FILES,  // files
    OPT_MODE,   // chooses the last of `modes`; an argument is given once: a choice or const char *
    OPT_INPUT,  // OPT_PATH, a form of input: without an OPT_MODE it chooses the first of `modes`
    OPT_SEED,
    OPT_BIAS
} OptKind;

typedef struct {
    const char *names; // separated by spaces, the one to show last; NULL for a heading
    const char *arg;   // name of its argument, NULL for none
    unsigned modes;    // those that take it, bits 1 << Mode
    OptKind kind;
    size_t offset, count;     // in Options: where the value goes; of a list, how many there are
    double min, max, initial; // of a number; a default outside of min..max is replaced later
    const char *help;
    const char *const *choices; // the first is the default; of a file: endings of its name
    const char *needs;          // names of other flags: one of them must be there too
    bool writes;                // of a file: it is a result
} Option;

extern const Option option_table[]; // (n_options)
extern const int n_options;

/* Whether the flag's argument is the name of a file. */
bool options_takes_file(const Option *o);

/* The row of a flag, by one of its names, which there must be. */
const Option *options_find(const char *name);

/* The name of a flag to show; it ends with a zero. */
Str options_main_name(const Option *o);

/* Name number i of a list of names between spaces, empty past the last. */
Str options_name(const char *names, int i);

/* "a, b or c", of a list that ends in NULL, in `out`; returns `out`. */
char *options_choices(const char *const *choices, char *out, size_t size);

#endif
