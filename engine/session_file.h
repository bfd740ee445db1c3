/* session_file.h - a text with its keys and values on disk, so that another run goes on with it.
 *
 * A file is a header, the text's ids, a hash of both, zeros up to a multiple of SESSION_PAGE, the
 * blocks of the cache as they lie in memory, which a loading session maps instead of reading them,
 * and the states of recurrent layers. Numbers are little-endian.
 *
 * Header and ids are checked by their hash and one by one, blocks and states by a sum that any
 * change of a single word changes. Both find damage, not forgery: a file that was made to deceive
 * can hold any text and any keys and values, as any prompt can hold any text. Keys and values are
 * only ever multiplied, so they can spoil the result (numbers that are not finite are an error of
 * forward()) but nothing else. A file that becomes shorter while it is in use ends the program with
 * EXIT_IO.
 */
#ifndef SESSION_FILE_H
#define SESSION_FILE_H

#include "base/sha256.h"
#include "model.h"

enum { SESSION_VERSION = 1, SESSION_PAGE = 1 << 12 };

typedef struct {
    char magic[8];
    uint32_t version, layout;
    char model[SHA256_HEX]; // its fingerprint
    char kv[8];             // the name of the cache's type, filled up with zeros
    uint32_t exact, is_long;
    uint64_t n_ids, n_pos; // tokens, and how many of them have keys and values
    uint64_t block_bytes;
    uint64_t sum;          // of the blocks and states
    char hash[SHA256_HEX]; // of all before it and the ids
} SessionHeader;

typedef struct {
    FileMap file; // as a copy of our own; zeroed: none is open
    SessionHeader header;
    int *ids; // (header.n_ids), a copy: the file may change
    char *blocks;
    const char *states;  // after the blocks:
    size_t states_bytes; // 0 where no layer is recurrent
} SessionFile;

/* Open and check a file for a session of `m` with `p`, of which kv_type and exact count. 0, or -1
 * with nothing left open: EXIT_MODEL for a file that is damaged or does not suit, EXIT_IO where it
 * cannot be read. */
int session_file_open(SessionFile *f, const char *path, const Model *m, const SessionParams *p,
                      Err *e);
void session_file_close(SessionFile *f); // after session_free(); a zeroed one is fine

/* Give an empty sequence 0 of a new session, whose context has room for it, the file's keys and
 * values. */
void session_file_attach(const SessionFile *f, Session *s);

/* Write a text whose first positions are what sequence 0 holds. -1 and an Err. */
int session_file_write(OutFile *o, const Session *s, const Model *m, const TokenList *text, Err *e);

#endif
