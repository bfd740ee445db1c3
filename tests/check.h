/* check.h - the smallest test harness: CHECK counts failures, check_done() reports and gives the
 * exit status. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>

static int checks_made, checks_failed;

#define CHECK(condition, ...)                                                                      \
    do {                                                                                           \
        checks_made++;                                                                             \
        if (!(condition)) {                                                                        \
            checks_failed++;                                                                       \
            if (checks_failed <= 20) {                                                             \
                fprintf(stderr, "%s:%d: %s: ", __FILE__, __LINE__, #condition);                    \
                fprintf(stderr, __VA_ARGS__);                                                      \
                fprintf(stderr, "\n");                                                             \
            }                                                                                      \
        }                                                                                          \
    } while (0)

static inline int check_done(const char *name)
{
    printf("%s: %d checks, %d failed\n", name, checks_made, checks_failed);
    return checks_failed || !checks_made;
}

#endif
