/* stream.h - one text that is being generated: its tokens, its random numbers, and its bytes on
 * their way out, which wait while a UTF-8 character is incomplete or while they may begin a stop
 * text.
 *
 * A stream knows no session. Whoever runs the model gives it the logits of its last token:
 *
 *     stream_init(s, params, seed, prompt);
 *     run s->text through the model
 *     while (!s->end) {
 *         stream_next(s, sampler, logits, out, e);   one more token in s->text
 *         print out; unless s->end, run that token
 *     }
 *     stream_finish(s, out, e); print out
 *     stream_free(s);
 *
 * A stream may also be given whole, to learn how likely its tokens are: see stream_init_given().
 *
 * Any number of streams may be under way at once, each with a sequence of the session's cache, and
 * share StreamParams and a Sampler; what a stream keeps grows with its text, not with the
 * vocabulary. Streams of different threads need a Sampler for each thread.
 */
#ifndef STREAM_H
#define STREAM_H

#include "generate/matcher.h"
#include "generate/sampler.h"
#include "tokenizer.h"

/* What streams have in common. */
typedef struct {
    const Tokenizer *tokenizer;
    SamplerParams sampling; // its seed is not used
    const Str *stops;       // (n_stops) texts that end a stream, none of them empty
    int n_stops;
    int n_predict;    // most tokens to generate; -1: as many as the context holds
    int seq_len;      // the context, tokens
    bool ignore_eos;  // end tokens end nothing
    bool special;     // print the names of control tokens
    int logprobs;     // likeliest tokens whose log-probabilities are kept beside the chosen one's;
                      // -1: none are kept
    Matcher *matcher; // the form that the text has, NULL: any
} StreamParams;

/* Why a text ended; NOT_ENDED is 0. */
typedef enum {
    NOT_ENDED,
    END_TOKEN,
    END_STOP,
    END_LIMIT,
    END_CONTEXT,
    END_GRAMMAR // the grammar allows nothing after it
} StreamEnd;

typedef struct {
    const StreamParams *params; // not owned
    TokenList text;             // the prompt and what was generated or given
    size_t n_prompt;
    bool given;      // nothing is generated, the tokens after the prompt are given
    uint64_t random; // state of the random numbers
    StreamEnd end;
    int end_token;     // with END_TOKEN; it is not in the text
    int stop;          // with END_STOP: the number of the stop text, which is not printed
    Logprob *logprobs; // (tokens after the prompt, 1 + params->logprobs) see sampler_logprobs()
    size_t logprobs_cap;
    MatchState place; // in the grammar, where there is one
    Decoder decoder;
    Buf waiting; // decoded, not printed yet, with the names of control tokens
    Buf marks;   // of each of its bytes: printed, or of a name that is not
} Stream;

/* Begin a text after `prompt`, which becomes the stream's. What is printed begins in mid-text; see
 * stream_follow(). `params` must live as long as the stream. */
void stream_init(Stream *s, const StreamParams *params, uint64_t seed, TokenList prompt);
void stream_free(Stream *s); // a zeroed one is fine

/* Begin a text that is whole already: `text`, which becomes the stream's, with n_prompt tokens to
 * begin with, at least one, and others that get log-probabilities; params->logprobs is at least 0.
 * Such a stream ends when stream_judge() was called for each of them. -1 when out of memory: `text`
 * is freed with the stream in either case. */
int stream_init_given(Stream *s, const StreamParams *params, TokenList text, size_t n_prompt,
                      Err *e);

/* Keep the log-probabilities of token `i` of a given text by the logits (vocab_size) of the token
 * before it. Different tokens of a text may be judged at the same time. */
void stream_judge(Stream *s, Sampler *sampler, size_t i, const float *logits);

/* Say that what is printed follows the prompt's own text, or begins with nothing before it where
 * that is empty. Returns how many bytes of it are to be printed first: all but an incomplete
 * character at its end, which waits for the rest of it. */
size_t stream_follow(Stream *s, const char *text, size_t len);

/* Choose the next token from the logits (vocab_size) of the text's last one, which are changed, and
 * append to *out what is ready to be printed. s->end is set where the text ends. -1 when out of
 * memory, when no logit is finite, or when no token goes on as the grammar says. */
int stream_next(Stream *s, Sampler *sampler, float *logits, Buf *out, Err *e);

/* The text is over, wherever it stands: append to *out what still waits. A stop text that shows
 * only now sets s->end. -1 when out of memory. */
int stream_finish(Stream *s, Buf *out, Err *e);

#endif
