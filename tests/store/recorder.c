/* Preloaded into a process: writes down, in order, what it does to the files under RECORD_ROOT.
 *
 * Each record of RECORD_LOG: act (u8), path length (u32), offset (i64), data length (u64), path, data.
 * Acts: 1 made, 2 written, 3 synced, 4 cut to offset, 5 removed, 6 renamed (data: new path), 7 directory made.
 * Memory-mapped writes are not seen: SQLite uses them for its -shm files only, which no crash relies on.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#undef open
#undef open64
#undef openat
#undef openat64
#undef pwrite64
#undef ftruncate64

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *root;
static size_t root_length;
static int log_fd = -1;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int (*real_open)(const char *, int, ...);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);

__attribute__((constructor)) static void begin(void) {
    real_open = dlsym(RTLD_NEXT, "open64");
    real_write = dlsym(RTLD_NEXT, "write");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    const char *path = getenv("RECORD_LOG");
    root = getenv("RECORD_ROOT");
    if (path && root) {
        root_length = strlen(root);
        log_fd = real_open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    }
}

static int is_ours(const char *path) {
    return log_fd >= 0 && path && strncmp(path, root, root_length) == 0;
}

/* Path of a descriptor, or NULL when it is not under the root, or removed. */
static const char *path_of(int fd, char *buffer) {
    char link[64];
    if (log_fd < 0) return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, buffer, PATH_MAX - 1);
    if (size < 0) return NULL;
    buffer[size] = 0;
    if (size > 10 && strcmp(buffer + size - 10, " (deleted)") == 0) return NULL;
    return is_ours(buffer) ? buffer : NULL;
}

static void record(uint8_t act, const char *path, int64_t offset, const void *data, uint64_t length) {
    uint32_t path_length = strlen(path);
    struct iovec parts[] = {{&act, 1}, {&path_length, 4}, {&offset, 8}, {&length, 8},
                            {(void *)path, path_length}, {(void *)data, length}};
    size_t total = 21 + path_length + length;
    if (writev(log_fd, parts, 6) != (ssize_t)total) abort();
}

static int opened(const char *path, int flags, mode_t mode) {
    if (!is_ours(path)) return real_open(path, flags, mode);
    pthread_mutex_lock(&lock);
    struct stat found;
    int is_new = (flags & O_CREAT) && stat(path, &found) != 0;
    int fd = real_open(path, flags, mode);
    int error = errno;
    if (fd >= 0 && is_new) record(1, path, 0, NULL, 0);
    else if (fd >= 0 && (flags & O_TRUNC)) record(4, path, 0, NULL, 0);
    pthread_mutex_unlock(&lock);
    errno = error;
    return fd;
}

#define MODE(flags)                                   \
    mode_t mode = 0;                                  \
    if ((flags) & (O_CREAT | __O_TMPFILE)) {          \
        va_list rest;                                 \
        va_start(rest, flags);                        \
        mode = va_arg(rest, mode_t);                  \
        va_end(rest);                                 \
    }

int open(const char *path, int flags, ...) { MODE(flags) return opened(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) return opened(path, flags, mode); }
int openat(int dir, const char *path, int flags, ...) {
    MODE(flags)
    if (path[0] == '/') return opened(path, flags, mode);
    return ((int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, "openat64"))(dir, path, flags, mode);
}
int openat64(int dir, const char *path, int flags, ...) {
    MODE(flags)
    if (path[0] == '/') return opened(path, flags, mode);
    return ((int (*)(int, const char *, int, ...))dlsym(RTLD_NEXT, "openat64"))(dir, path, flags, mode);
}

ssize_t write(int fd, const void *data, size_t size) {
    char buffer[PATH_MAX];
    const char *path = path_of(fd, buffer);
    if (!path) return real_write(fd, data, size);
    pthread_mutex_lock(&lock);
    ssize_t done = real_write(fd, data, size);
    int error = errno;
    if (done > 0) record(2, path, lseek(fd, 0, SEEK_CUR) - done, data, done);
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

static ssize_t written(int fd, const void *data, size_t size, off_t offset) {
    char buffer[PATH_MAX];
    const char *path = path_of(fd, buffer);
    if (!path) return real_pwrite(fd, data, size, offset);
    pthread_mutex_lock(&lock);
    ssize_t done = real_pwrite(fd, data, size, offset);
    int error = errno;
    if (done > 0) record(2, path, offset, data, done);
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return written(fd, data, size, offset); }
ssize_t pwrite64(int fd, const void *data, size_t size, off_t offset) { return written(fd, data, size, offset); }

/* A call on a descriptor, then its record. */
#define AFTER(act, offset, call)                      \
    char buffer[PATH_MAX];                            \
    const char *path = path_of(fd, buffer);           \
    if (!path) return call;                           \
    pthread_mutex_lock(&lock);                        \
    int done = call;                                  \
    int error = errno;                                \
    if (done == 0) record(act, path, offset, NULL, 0);\
    pthread_mutex_unlock(&lock);                      \
    errno = error;                                    \
    return done;

int fsync(int fd) { AFTER(3, 0, REAL(fsync)(fd)) }
int fdatasync(int fd) { AFTER(3, 0, REAL(fdatasync)(fd)) }
int ftruncate(int fd, off_t length) { AFTER(4, length, REAL(ftruncate)(fd, length)) }
int ftruncate64(int fd, off_t length) { AFTER(4, length, REAL(ftruncate)(fd, length)) }

#define AFTER_PATH(act, path, data, size, call)       \
    if (!is_ours(path)) return call;                  \
    pthread_mutex_lock(&lock);                        \
    int done = call;                                  \
    int error = errno;                                \
    if (done == 0) record(act, path, 0, data, size);  \
    pthread_mutex_unlock(&lock);                      \
    errno = error;                                    \
    return done;

int unlink(const char *path) { AFTER_PATH(5, path, NULL, 0, REAL(unlink)(path)) }
int mkdir(const char *path, mode_t mode) { AFTER_PATH(7, path, NULL, 0, REAL(mkdir)(path, mode)) }
int rename(const char *path, const char *to) { AFTER_PATH(6, path, to, strlen(to), REAL(rename)(path, to)) }
