/* Preloaded into a process, it makes the disk slow and the clock wrong, as files say: FAULTS_DIR/fsync_ms holds how many
   milliseconds each fsync takes longer, FAULTS_DIR/clock_s by how many seconds the clock of the day is off. They are read
   at every call, so a test changes them while the process runs. While an fsync is held up there is FAULTS_DIR/syncing. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static void place(char *path, size_t size, const char *name) {
    snprintf(path, size, "%s/%s", getenv("FAULTS_DIR"), name);
}

static long setting(const char *name) {
    char path[4096], text[32];
    if (getenv("FAULTS_DIR") == NULL) return 0;
    place(path, sizeof path, name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    if (length <= 0) return 0;
    text[length] = 0;
    return atol(text);
}

static void hold_up(void) {
    long ms = setting("fsync_ms");
    if (ms <= 0) return;
    char path[4096];
    place(path, sizeof path, "syncing");
    close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    usleep(ms * 1000);
    unlink(path);
}

int fsync(int file) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fsync");
    hold_up();
    return real(file);
}

int fdatasync(int file) {
    static int (*real)(int);
    if (!real) real = dlsym(RTLD_NEXT, "fdatasync");
    hold_up();
    return real(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += setting("clock_s");
    return result;
}

int gettimeofday(struct timeval *now, void *zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int result = real(now, zone);
    now->tv_sec += setting("clock_s");
    return result;
}
