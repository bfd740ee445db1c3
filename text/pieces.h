/* pieces.h - which token a text is, and what two tokens make: hash tables of a vocabulary. */
#ifndef PIECES_H
#define PIECES_H

#include "text/vocab.h"

#define HASH_MIX 0x9e3779b97f4a7c15u // 2^64 divided by the golden ratio, odd

/* A line of the merge list: two tokens that make a third. */
typedef struct {
    uint32_t left, right; // token ids
    uint32_t rank;
    uint32_t id1; // id of the joined token + 1; 0 for an empty slot
} Merge;

typedef struct {
    const Vocab *vocab;
    uint64_t *slots; // hash table of pieces: tag << 32 | id + 1
    size_t n_slots;  // a power of two, as n_merge_slots
    uint64_t seed;   // of the hashes: whoever made the file cannot know it and make keys collide
    size_t max_len;  // of a piece
    Merge *merges;   // none where pairs are worth their scores
    size_t n_merge_slots;
    int bytes[256]; // token of a single byte, -1 if there is none
    int ascii[128]; // pieces_find_text() of a single character
} Pieces;

/* Allocates two tables and nothing per token. Views `v`; to be freed in either case. */
int pieces_init(Pieces *x, const Vocab *v, Err *e);
void pieces_free(Pieces *x); // a zeroed one is fine

/* The id of a piece, -1 if there is none. Of equal pieces the last counts, as in a JSON
 * vocabulary. */
int pieces_find(const Pieces *x, const char *s, size_t len);

/* The same for pieces that ordinary text may become. */
int pieces_find_text(const Pieces *x, const char *s, size_t len);

/* What two tokens make by the merge list; NULL: nothing. */
const Merge *pieces_merge(const Pieces *x, uint32_t left, uint32_t right);

#endif
