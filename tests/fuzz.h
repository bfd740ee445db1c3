/* fuzz.h - for fuzz_*.c: what libFuzzer calls, a check that stops it, and bytes as a file. */
#ifndef FUZZ_H
#define FUZZ_H

#define _GNU_SOURCE // memfd_create
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* One input; 0. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define MUST(condition)                                                                            \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition);                \
            abort();                                                                               \
        }                                                                                          \
    } while (0)

/* The name of a file that has these bytes until the next call. */
static inline const char *fuzz_file(const void *bytes, size_t size)
{
    static int fd = -1;
    static char path[40];
    if (fd < 0) {
        fd = memfd_create("fuzz", MFD_CLOEXEC);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    MUST(!ftruncate(fd, 0) && pwrite(fd, bytes, size, 0) == (ssize_t)size);
    return path;
}

#endif
