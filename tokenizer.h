/* tokenizer.h - text to token ids and back, from the tokenizer.* keys of a GGUF file.
 *
 * Byte-level BPE (tokenizer.ggml.model "gpt2"), SentencePiece BPE ("llama"), SentencePiece-like BPE
 * with a merge list ("gemma4") and WordPiece ("bert"). Unigram, RWKV and others are refused by
 * name. How a text is cut before byte-level BPE (tokenizer.ggml.pre) is pretokenize.h's business.
 */
#ifndef TOKENIZER_H
#define TOKENIZER_H

#include "base/gguf.h"
#include "text/token.h"

typedef struct Tokenizer Tokenizer;

/* The keys are llama.cpp's. Our own exports add some (tokenizer.attnc.NAME) where no name of
 * llama.cpp's says what the tokenizer does; where one of them is present it wins over what
 * `tokenizer.ggml.pre` implies:
 *
 * - pre_patterns, string array: regular expressions applied one after the other as Hugging Face's
 *   Split(Regex, "isolated") does (a ByteLevel with use_regex=True counts as the GPT-2 pattern,
 *   Digits(individual_digits=True) as \p{N}); an empty array cuts nothing.
 * - normalizer: "none" or "nfc".
 * - ignore_merges, bool: a piece that is a whole token needs no merges (BPE.ignore_merges).
 * - space_prefix: how models with U+2581 for the space mark spaces, and where one more is put
 *   before a text. "first", "always" and "never" are Hugging Face's Metaspace: at the start of the
 *   whole text, also after every added token, or nowhere; never before a space. "prepend" is the
 *   normalizers Prepend and Replace: at the start and after every token that is found before them,
 *   even before a space. "replace" is Replace alone.
 * - normalized_tokens, int array: the CONTROL, UNKNOWN and USER_DEFINED tokens that are looked for
 *   after the normalizers (AddedToken.normalized); with "prepend" only after a space, which is
 *   theirs.
 *
 * Without space_prefix a text is marked as SentencePiece marks it, USER_DEFINED tokens being its
 * user-defined symbols; where tokenizer.ggml.add_space_prefix says so (the default for "llama") a
 * space is put at the start and after each parsed CONTROL token, as Llama 2's tokenizer and
 * llama.cpp do.
 */

/* Open the tokenizer of `g` from its tokenizer.* keys and what its architecture leaves to code
 * (model_tokenizer() knows that); tensors are not needed. Keeps views into `g`, which must outlive
 * it. NULL and EXIT_MODEL or EXIT_MEMORY on failure. Cheap: the tables for encoding are built by
 * the first tokenizer_encode() or tokenizer_find(), which must therefore not be called by two
 * threads at once; after that, and for all other calls, any number of threads may share it. */
Tokenizer *tokenizer_open(const Gguf *g, const TokenizerDefaults *defaults, Err *e);
void tokenizer_close(Tokenizer *t); // NULL is fine

int tokenizer_vocab_size(const Tokenizer *t);
int tokenizer_bos(const Tokenizer *t);             // -1 if there is none
int tokenizer_eos(const Tokenizer *t);             // -1 if there is none
bool tokenizer_adds_bos(const Tokenizer *t);       // whether ENCODE_BOS puts BOS first
bool tokenizer_is_end(const Tokenizer *t, int id); // eos, eot, eom and the well-known end markers;
                                                   // false if out of range
TokenType tokenizer_type(const Tokenizer *t, int id);
Str tokenizer_piece(const Tokenizer *t, int id); // as stored in the file; empty if out of range

/* The id of a stored piece; -1 if absent, -2 when out of memory. */
int tokenizer_find(const Tokenizer *t, Str piece, Err *e);

enum {
    ENCODE_BOS = 1,     // BOS first where the file says so and the text does not begin with one
    ENCODE_SPECIAL = 2, // tokenizer_encode() only: CONTROL tokens written in the text are parsed
    ENCODE_EOS = 4,     // EOS last where the file says so: never for a text to be continued
    ENCODE_CONTINUE = 8 // the text goes on with another: no space is put at its very start
};

/* Append the ids of a text of any bytes (it may hold zeros and invalid UTF-8), tokenized as one
 * text whatever its parts. A CONTROL or UNKNOWN token is parsed where its whole spelling lies in
 * special parts that follow each other; USER_DEFINED tokens match everywhere. What lies after the
 * last part is not special. 0, or -1 with *out as before. */
int tokenizer_encode_parts(const Tokenizer *t, const char *text, size_t len, const TextPart *parts,
                           size_t n_parts, unsigned flags, TokenList *out, Err *e);

/* tokenizer_encode_parts() of one part, special by ENCODE_SPECIAL. */
int tokenizer_encode(const Tokenizer *t, const char *text, size_t len, unsigned flags,
                     TokenList *out, Err *e);

/* Append the exact bytes of a token as it is emitted in mid-text; CONTROL and UNKNOWN tokens add
 * their name if `special`, else nothing. Ids out of range add nothing, nor do UNUSED tokens:
 * converters fill rows beyond the tokenizer with [PAD...] of that type, and llama.cpp prints none.
 * A failed growth shows in out->failed. */
void tokenizer_bytes(const Tokenizer *t, int id, bool special, Buf *out);

/* Append the text of a token for people: UTF-8 as it is, other bytes and NUL as \xE4, CONTROL and
 * UNKNOWN tokens by their names. A failed growth shows in out->failed. */
void tokenizer_text(const Tokenizer *t, int id, Buf *out);

/* Streaming: feed ids, receive bytes that never end inside a UTF-8 character. No memory of its own,
 * nothing to free. */
typedef struct {
    const Tokenizer *t;
    bool special;  // print CONTROL tokens by name
    bool at_start; // nothing of the text yet: where the tokenizer prefixed a space, one is taken
                   // off again
    char held[4];  // the beginning of an incomplete character
    size_t n_held;
} Decoder;

/* `at_start`: the ids begin the text (nothing, or only BOS, before them); false when they continue
 * a prompt. */
void decoder_init(Decoder *d, const Tokenizer *t, bool at_start, bool special);
void decoder_feed(Decoder *d, int id, Buf *out); // appends what is ready to print
void decoder_flush(Decoder *d, Buf *out);        // appends what was held back, at the end

#endif
