/* Preloaded: keeps, of each change of a file below UNSYNCED_UNDER, what was there before and what
 * came, in the log UNSYNCED_LOG, so that what was not synced can be taken back after a kill.
 *
 * With UNSYNCED_LIES a sync says that it is done and does nothing.
 *
 * A record: kind, length of the path, offset, bytes before, bytes after, size before; the path; both
 * contents. It is written before the change is made; the record of a sync after the sync.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { WRITE = 1, CUT = 2, SYNC = 3, GONE = 4 };
enum { FILES_MAX = 1024, PATH_BYTES_MAX = 512 };

struct record {
    uint32_t kind, path_bytes;
    int64_t offset, before, after, size;
};

static char paths[FILES_MAX][PATH_BYTES_MAX];
static int log_fd = -2;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static void all(const void *data, size_t bytes) {
    const char *at = data;
    while (bytes > 0) {
        ssize_t done = syscall(SYS_write, log_fd, at, bytes);
        if (done <= 0) abort();
        at += done, bytes -= (size_t)done;
    }
}

static int is_ours(const char *path) {
    const char *under = getenv("UNSYNCED_UNDER");
    return under && path && strncmp(path, under, strlen(under)) == 0;
}

static void note(uint32_t kind, const char *path, int64_t offset, const void *before,
                 int64_t before_bytes, const void *after, int64_t after_bytes, int64_t size) {
    pthread_mutex_lock(&mutex);
    if (log_fd == -2) {
        const char *name = getenv("UNSYNCED_LOG");
        const int flags = O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC;
        log_fd = name ? (int)syscall(SYS_openat, AT_FDCWD, name, flags, 0600) : -1;
        if (log_fd < 0) abort();
    }
    struct record head = {kind, (uint32_t)strlen(path), offset, before_bytes, after_bytes, size};
    all(&head, sizeof head);
    all(path, head.path_bytes);
    if (before_bytes) all(before, (size_t)before_bytes);
    if (after_bytes) all(after, (size_t)after_bytes);
    pthread_mutex_unlock(&mutex);
}

static const char *path_of(int fd) {
    return fd >= 0 && fd < FILES_MAX && paths[fd][0] ? paths[fd] : NULL;
}

static int opened(int fd, const char *path) {
    if (fd >= 0 && fd < FILES_MAX) {
        paths[fd][0] = 0;
        if (is_ours(path) && strlen(path) < PATH_BYTES_MAX) strcpy(paths[fd], path);
    }
    return fd;
}

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open64");
    return opened(real(path, flags, mode), path);
}

int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = va_arg(more, mode_t);
    va_end(more);
    int (*real)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    return opened(real(path, flags, mode), path);
}

int close(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "close");
    if (fd >= 0 && fd < FILES_MAX) paths[fd][0] = 0;
    return real(fd);
}

static void note_write(int fd, const char *path, const void *data, size_t bytes, off64_t offset) {
    struct stat stat;
    if (fstat(fd, &stat) != 0) abort();
    char *before = malloc(bytes);
    ssize_t had = (ssize_t)syscall(SYS_pread64, fd, before, bytes, offset);
    if (had < 0) abort();
    note(WRITE, path, offset, before, had, data, (int64_t)bytes, stat.st_size);
    free(before);
}

ssize_t pwrite64(int fd, const void *data, size_t bytes, off64_t offset) {
    ssize_t (*real)(int, const void *, size_t, off64_t) = dlsym(RTLD_NEXT, "pwrite64");
    const char *path = path_of(fd);
    if (path) note_write(fd, path, data, bytes, offset);
    return real(fd, data, bytes, offset);
}

ssize_t pwrite(int fd, const void *data, size_t bytes, off_t offset) {
    return pwrite64(fd, data, bytes, offset);
}

int ftruncate64(int fd, off64_t size) {
    int (*real)(int, off64_t) = dlsym(RTLD_NEXT, "ftruncate64");
    const char *path = path_of(fd);
    struct stat stat;
    if (path && fstat(fd, &stat) == 0) {
        int64_t cut = stat.st_size > size ? stat.st_size - size : 0;
        char *before = malloc((size_t)cut + 1);
        if (cut && syscall(SYS_pread64, fd, before, cut, size) != cut) abort();
        note(CUT, path, size, before, cut, NULL, 0, stat.st_size);
        free(before);
    }
    return real(fd, size);
}

int ftruncate(int fd, off_t size) { return ftruncate64(fd, size); }

static int synced(int fd, const char *name) {
    int (*real)(int) = dlsym(RTLD_NEXT, name);
    const char *path = path_of(fd);
    if (path && getenv("UNSYNCED_LIES")) return 0;
    int code = real(fd);
    if (path && code == 0) note(SYNC, path, 0, NULL, 0, NULL, 0, 0);
    return code;
}

int fdatasync(int fd) { return synced(fd, "fdatasync"); }

int fsync(int fd) { return synced(fd, "fsync"); }

int unlink(const char *path) {
    int (*real)(const char *) = dlsym(RTLD_NEXT, "unlink");
    int code = real(path);
    if (code == 0 && is_ours(path)) note(GONE, path, 0, NULL, 0, NULL, 0, 0);
    return code;
}
