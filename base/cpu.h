/* cpu.h - how many threads this process should start. */
#ifndef CPU_H
#define CPU_H

/* Physical cores in the affinity mask, at most the CPU quota of the control group (rounded up); at
 * least 1. */
int cpu_threads(void);

#endif
