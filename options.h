/* options.h - the command line: one table behind parsing, --help, the man page and shell completion. */
#ifndef OPTIONS_H
#define OPTIONS_H

#include "maps.h"
#include "sampler.h"

#define RUN_VERSION "0.1.0"

typedef struct {
    const char *text; // the argument; a file's name if `is_file`
    bool is_file;
} PromptPart;

typedef enum { MODE_GENERATE, MODE_TOKENIZE, MODE_PERPLEXITY, MODE_BENCH, MODE_QUANTIZE, MODE_HELP, MODE_VERSION,
               MODE_MAN, MODE_COMPLETION } Mode;

typedef struct {
    Mode mode;
    const char *model;
    PromptPart *parts; // -i and -f in the order given
    int n_parts;
    bool escape, echo, special, no_bos, ignore_eos, json, verbose;
    int n_predict;   // -1: until an end token or a full context
    int seq_len;     // 0: chosen from the model and the prompt
    int n_threads;   // 0: chosen from the machine
    int batch;       // rows of one forward() while the prompt is run
    bool has_seed;
    bool exact;
    KvType kv_type;
    const char *logits; // file to write, or NULL
    const char *perplexity; // file to read, with MODE_PERPLEXITY
    int bench_prompt, bench_generate, bench_depth, bench_runs; // tokens, and timed runs, with MODE_BENCH
    const char *quantize, *output; // type and file to write, with MODE_QUANTIZE
    const char **quantize_types;   // of --quantize-type
    int n_quantize_types;
    const char **stops;
    int n_stops;
    LogitBias *biases;
    MapOptions maps; // --dump-attn and --attn-*; its list of files is freed with the Options
    SamplerParams sampler;
} Options;

/* 0; or -1 and an Err (EXIT_USAGE or EXIT_MEMORY). options_free() in either case. */
int options_parse(Options *o, int argc, char **argv, Err *e);
void options_free(Options *o);

void options_help(FILE *f);       // --help
void options_man(FILE *f);        // the man page, in roff
void options_completion(FILE *f); // completion for bash

#endif
