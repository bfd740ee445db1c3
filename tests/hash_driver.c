/* hash_driver.c - hashes, for tests/test_hash.py.
 *
 * - PIECE: the SHA-256 of standard input, added in pieces of PIECE bytes.
 * - --model FILE: the fingerprint of a model file.
 * - --time: seconds that 64 MB take.
 */
#include <stdlib.h>
#include <string.h>

#include "base/gguf.h"

static void time_it(void)
{
    enum { SIZE = 1 << 20, TIMES = 64 };
    char *zeros = mem_zalloc(SIZE, 1), hex[SHA256_HEX + 1];
    Sha256 s;
    sha256_init(&s);
    double begin = clock_seconds();
    for (int i = 0; zeros && i < TIMES; i++)
        sha256_add(&s, zeros, SIZE);
    sha256_hex(&s, hex);
    printf("%.4f %s\n", clock_seconds() - begin, hex);
    free(zeros);
}

int main(int argc, char **argv)
{
    char hex[SHA256_HEX + 1], bytes[4096];
    Err e;
    if (argc == 2 && !strcmp(argv[1], "--time")) {
        time_it();
        return EXIT_OK;
    }
    if (argc == 3) {
        Gguf g;
        if (gguf_open(&g, argv[2], &e)) {
            fprintf(stderr, "hash_driver: %s\n", e.text);
            return e.code;
        }
        gguf_fingerprint(&g, hex);
        gguf_close(&g);
    } else {
        size_t piece = argc == 2 ? (size_t)atoi(argv[1]) : 0, n;
        Sha256 s;
        sha256_init(&s);
        if (piece < 1 || piece > sizeof bytes)
            return EXIT_USAGE;
        while ((n = fread(bytes, 1, piece, stdin)) > 0)
            sha256_add(&s, bytes, n);
        sha256_hex(&s, hex);
    }
    printf("%s\n", hex);
    return EXIT_OK;
}
