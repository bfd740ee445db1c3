/* pretokenize.h - how a text is cut into pieces before byte-level BPE.
 *
 * Rules are data: a list of regular expressions, each applied to the pieces that the one before it
 * made. A match is a piece, and so is the text between two matches (Hugging Face's Split(Regex,
 * "isolated")).
 *
 * The patterns are pattern.h's.
 */
#ifndef PRETOKENIZE_H
#define PRETOKENIZE_H

#include "text/pattern.h"

enum { PRE_MAX_PATTERNS = 6 };
enum {
    PRE_BOS = 1,           // BOS is added unless the file says otherwise
    PRE_IGNORE_MERGES = 2, // a piece that is a whole token is taken as it is
    PRE_NFC = 4,           // the text is brought to normal form C first
    PRE_ESCAPE = 8         // not byte-level: UTF-8 with U+2581 for the space, bytes as <0xNN>
};

typedef struct {
    const char *names;                      // of tokenizer.ggml.pre, separated by single spaces
    unsigned flags;                         // of PRE_ above
    const char *patterns[PRE_MAX_PATTERNS]; // up to the first NULL
} PreRule;

const PreRule *pre_rule(Str name); // NULL if the name is not known

#endif
