/* token.h - what a token is: its type, lists of ids, parts of texts, how pieces are spelt; and what
 * a caller knows of a tokenizer. */
#ifndef TOKEN_H
#define TOKEN_H

#include "base/util.h"

#define SPACE_MARK "\xe2\x96\x81" // U+2581, SentencePiece's space

/* Token types by their number in tokenizer.ggml.token_type. */
typedef enum {
    TOKEN_UNDEFINED = 0,
    TOKEN_NORMAL = 1,
    TOKEN_UNKNOWN = 2,
    TOKEN_CONTROL = 3,
    TOKEN_USER_DEFINED = 4,
    TOKEN_UNUSED = 5,
    TOKEN_BYTE = 6
} TokenType;

/* A growing list of token ids; a zeroed one is empty. */
typedef struct {
    int *ids;
    size_t n, cap;
} TokenList;

void tokens_free(TokenList *list);

/* 0, or -1 when out of memory. */
static inline int tokens_add(TokenList *list, int id, Err *e)
{
    if (!mem_room(&list->ids, list->n + 1, &list->cap, sizeof *list->ids))
        return err_set(e, EXIT_MEMORY, "out of memory for the tokens of the text");
    list->ids[list->n++] = id;
    return 0;
}

/* How many ids two lists have in common at their beginning. */
static inline size_t tokens_common(const int *a, size_t na, const int *b, size_t nb)
{
    size_t n = 0;
    while (n < na && n < nb && a[n] == b[n])
        n++;
    return n;
}

/* A part of a text, from the end of the part before it (0 for the first) to byte `end`. `special`:
 * CONTROL and UNKNOWN tokens written in it are parsed; otherwise they are text. */
typedef struct {
    size_t end; // not before the part before it, at most the text's length
    bool special;
} TextPart;

/* What the files of an architecture do not say of their tokenizer, or say wrongly. */
typedef struct {
    const char *pre; // tokenizer.ggml.pre where it is absent; NULL: files must have it
    bool adds_bos;   // whatever tokenizer.ggml.add_bos_token says
} TokenizerDefaults;

/* The byte that a piece like <0x0A> stands for, or -1. */
int piece_named_byte(Str piece);

/* Byte-level BPE writes every byte as one visible character: itself where Latin-1 has a visible
 * one, else the next free one from U+0100 on (GPT-2, bytes_to_unicode). The inverse gives -1 for a
 * character that stands for no byte. */
static inline uint32_t piece_byte_to_char(int b)
{
    if (b < 33)
        return 256 + (uint32_t)b;
    if (b >= 127 && b <= 160)
        return 256 + 33 + (uint32_t)(b - 127);
    return b == 173 ? 256 + 67 : (uint32_t)b;
}
int piece_char_to_byte(uint32_t cp);

#endif
