/* sha256.h - the hash SHA-256 (FIPS 180-4), of bytes that come in pieces. */
#ifndef SHA256_H
#define SHA256_H

#include <stddef.h>
#include <stdint.h>

enum { SHA256_HEX = 64 }; // digits of a hash

typedef struct {
    uint32_t state[8];
    uint64_t n;                // bytes so far
    unsigned char pending[64]; // the n % 64 of them that fill no block
} Sha256;

void sha256_init(Sha256 *s);
void sha256_add(Sha256 *s, const void *bytes, size_t n);

/* The hash of what was added so far, in lower-case hexadecimal digits; more may be added. */
void sha256_hex(const Sha256 *s, char out[SHA256_HEX + 1]);

#endif
