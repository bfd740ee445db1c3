/* cpu.h - how many threads this process should start, and the memory that is free. */
#ifndef CPU_H
#define CPU_H

#include <stddef.h>

/* Physical cores in the affinity mask, at most the CPU quota of the control group (rounded up); at
 * least 1. */
int cpu_threads(void);

/* Bytes of memory that can be used without others being paged out, at most what the control group's
 * limit leaves; files that are only cached count as free. 0 where the system does not say. */
size_t cpu_free_memory(void);

#endif
