/* vocab.h - what a file says of its tokenizer, checked: the pieces and the choices of how texts
 * become pieces. tokenizer.h lists the keys. */
#ifndef VOCAB_H
#define VOCAB_H

#include <string.h>

#include "base/gguf.h"
#include "text/pattern.h"
#include "text/token.h"

/* How spaces become SPACE_MARKs where pieces are not byte-level, and where one more is put before
 * the text: tokenizer.h. */
typedef enum {
    MARK_SENTENCEPIECE,
    MARK_PREPEND,
    MARK_REPLACE,
    MARK_FIRST,
    MARK_ALWAYS,
    MARK_NEVER
} Marking;

typedef struct {
    int n;
    Str *pieces;                              // (n) views into the file
    const GgufKey *types, *scores, *merges;   // NULL if absent
    bool byte_level;                          // else pieces are UTF-8 with SPACE_MARK for the space
    bool by_score;                            // else by merge list, unless they are
    bool wordpiece, lowercase, strip_accents; // found by WordPiece: see wordpiece.h
    bool nfc, ignore_merges, space_prefix, remove_extra_spaces, adds_bos, adds_eos;
    Marking marking;
    bool marks_early; // a normalizer marks spaces, before the later pass of added.h; else after it
    int bos, eos, unknown; // -1 if there is none
    uint8_t *is_end;       // (n)
    uint8_t *later;        // (n) tokenizer.attnc.normalized_tokens; NULL if absent
    Pretok *pretok;        // how byte-level texts are cut; NULL for others
} Vocab;

/* 0; or -1, EXIT_MODEL or EXIT_MEMORY. Keeps views into `g`. Close it in either case. */
int vocab_open(Vocab *v, const Gguf *g, const TokenizerDefaults *defaults, Err *e);
void vocab_close(Vocab *v); // a zeroed one is fine

float vocab_score(const Vocab *v, int id); // where there are scores, of a token in range

/* TOKEN_UNDEFINED if out of range. */
static inline TokenType vocab_type(const Vocab *v, int id)
{
    int32_t type;
    if (id < 0 || id >= v->n)
        return TOKEN_UNDEFINED;
    if (v->types) {
        memcpy(&type, v->types->data + 4 * (size_t)id, 4);
        return type >= TOKEN_UNDEFINED && type <= TOKEN_BYTE ? (TokenType)type : TOKEN_UNDEFINED;
    }
    if (id == v->bos || id == v->eos)
        return TOKEN_CONTROL;
    if (id == v->unknown)
        return TOKEN_UNKNOWN;
    return !v->byte_level && piece_named_byte(v->pieces[id]) >= 0 ? TOKEN_BYTE : TOKEN_NORMAL;
}

#endif
