/* options.h - the command line: one table behind parsing, --help, the man page and shell
 * completion. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include "maps/maps.h"
#include "generate/sampler.h"

#define RUN_VERSION "0.1.0"
#define USUAL_CONTEXT 4096 // at most, without -c

/* What the program does, one at a time. A flag chooses each but the first; the table in options.c
 * says which other flags it takes. */
typedef enum {
    MODE_GENERATE,
    MODE_TOKENIZE,
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
    int n_predict; // -1: until an end token or a full context
    int seq_len;   // 0: chosen from the model and the prompt
    int n_threads; // 0: chosen from the machine
    int batch;     // rows of one forward() while the prompt is run
    bool has_seed;
    bool exact;
    KvType kv_type;
    const char *logits;     // file to write, or NULL
    const char *perplexity; // file to read, with MODE_PERPLEXITY
    int bench_prompt, bench_generate, bench_depth,
        bench_runs;                // tokens, and timed runs, with MODE_BENCH
    const char *quantize, *output; // type and file to write, with MODE_QUANTIZE
    const char **quantize_types;   // of --quantize-type
    int n_quantize_types;
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

void options_help(FILE *f);       // --help
void options_version(FILE *f);    // --version
void options_man(FILE *f);        // the man page, in roff
void options_completion(FILE *f); // completion for bash

#endif
