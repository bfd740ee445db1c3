/* fixed_clock.c - for LD_PRELOAD: the date is always FIXED_CLOCK seconds after 1970. */
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *t)
{
    const char *fixed = getenv("FIXED_CLOCK");
    if (clock != CLOCK_REALTIME || !fixed)
        return (int)syscall(SYS_clock_gettime, clock, t);
    double seconds = atof(fixed);
    t->tv_sec = (time_t)seconds;
    t->tv_nsec = (long)(1e9 * (seconds - (double)t->tv_sec));
    return 0;
}
