/* run.c - the program: reads the command line, runs one mode, turns an Err into one line and an
 * exit status. What the modes do is in modes/. Only this file exits.
 */
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "modes/modes.h"

/* Whether main() is at its end; before that only a library calls exit(). */
static volatile sig_atomic_t main_ended;

/* End as the signal does by default, but leave nothing half-written. */
static void on_end(int number)
{
    sigset_t own;
    file_abandon();
    signal(number, SIG_DFL);
    raise(number);
    sigemptyset(&own);
    sigaddset(&own, number);
    sigprocmask(SIG_UNBLOCK, &own, NULL);
}

static void on_stop(int number)
{
    if (stop_signal == number) // asked for the second time
        on_end(number);
    stop_signal = number;
}

/* A page of a mapped file could not be read. */
static void on_bus(int number, siginfo_t *info, void *context)
{
    (void)context;
    file_abandon();
    const char *line = file_lost(info->si_addr);
    if (!line)
        on_end(number);
    ssize_t written = write(STDERR_FILENO, line, strlen(line));
    (void)written;
    _exit(EXIT_IO);
}

/* OpenMP's library ends the program by exit() where memory or threads lack; what it has to say it
 * has said. */
static void on_exit_of_library(void)
{
    if (main_ended)
        return;
    file_abandon();
    _exit(EXIT_MEMORY);
}

static void catch_signals(void)
{
    static const int stops[] = {SIGINT, SIGTERM, SIGHUP, SIGPIPE};
    static const int ends[] = {SIGQUIT, SIGALRM, SIGUSR1, SIGUSR2, SIGXCPU, SIGVTALRM,
                               SIGPROF, SIGABRT, SIGSEGV, SIGILL,  SIGFPE};
    enum { N_STOPS = sizeof stops / sizeof *stops, N_ENDS = sizeof ends / sizeof *ends };
    struct sigaction a = {.sa_flags = 0}, old;
    sigemptyset(&a.sa_mask);
    for (int i = 0; i < N_STOPS + N_ENDS; i++) {
        int number = i < N_STOPS ? stops[i] : ends[i - N_STOPS];
        a.sa_handler = i < N_STOPS ? on_stop : on_end;
        if (!sigaction(number, NULL, &old) && old.sa_handler == SIG_DFL)
            sigaction(number, &a, NULL); // nohup and `run &` in a script ignore some
    }
    struct sigaction bus = {.sa_sigaction = on_bus, .sa_flags = SA_SIGINFO};
    sigemptyset(&bus.sa_mask);
    sigaction(SIGBUS, &bus, NULL);
    signal(SIGXFSZ, SIG_IGN); // a write beyond the limit of file sizes then fails like any other
    atexit(on_exit_of_library);
}

/* A file opened while descriptor 1 is closed would receive our standard output. Closed ones are
 * held by a file that can do neither what they are for nor harm. */
static void hold_standard_files(void)
{
    for (int fd = 0; fd <= 2; fd++)
        if (fcntl(fd, F_GETFD) < 0)
            open("/dev/null", fd ? O_RDONLY : O_WRONLY);
}

static int (*const modes[N_MODES])(const Options *o, Err *e) = {
    [MODE_GENERATE] = complete_mode,     [MODE_BATCH] = batch_mode,
    [MODE_SCORE] = score_mode,           [MODE_EMBED] = embed_mode,
    [MODE_TOKENIZE] = tokenize_mode,     [MODE_INFO] = info_mode,
    [MODE_RENDER] = render_mode,         [MODE_CHAT] = chat_mode,
    [MODE_PERPLEXITY] = perplexity_mode, [MODE_BENCH] = bench_mode,
    [MODE_QUANTIZE] = quantize_mode,     [MODE_HELP] = help_mode,
    [MODE_VERSION] = version_mode,       [MODE_MAN] = man_mode,
    [MODE_COMPLETION] = completion_mode,
};

int main(int argc, char **argv)
{
    Options o;
    Err e = {0};
    hold_standard_files();
    catch_signals();
    int rc = options_parse(&o, argc, argv, &e);
    if (!rc)
        rc = modes[o.mode](&o, &e);
    options_free(&o);
    main_ended = true;
    if (stop_signal) { // end as the signal would have ended us, so that a shell loop stops
        fflush(stdout);
        on_end(stop_signal);
    }
    if (rc)
        fprintf(stderr, "%s: %s\n", program_name(), e.text);
    return rc ? e.code : EXIT_OK;
}
