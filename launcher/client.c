/*
 * The native client: what a container runtime executes when it runs a plugin.
 *
 * It hands the request to the server (cni/server/) over a Unix socket and waits for the exit code and
 * what belongs on stdout; to stderr, whose descriptor travels with the request, the server's worker
 * writes itself. Whenever the server is not there, is of another build, is in another network
 * namespace or too slow to begin, the plugin runs by exec, as if there were no server: then the
 * shell script below (launcher/prefix.sh, embedded) or a shortcut through it starts Python.
 *
 *     request   header, then NUL-terminated: path we were called by, environment; then stdin
 *     hello     from a worker that is free: magic, its build id, its network namespace, its root
 *     go        which descriptors come with it: stderr, working directory, and if there are such
 *               CNI_NETNS, a routing socket of that namespace, and one to send us jobs there
 *     reply     'X', exit code, size of the output, output; or 'N': no such plugin here
 *
 * Descriptors are sent after the hello only: in the queue of a server that hangs they would keep the
 * runtime's pipe open. Before them nothing can have happened, after them somebody is at work, so no
 * request is ever done twice. Output is written when all of it is here.
 *
 * POSIX and Linux only, static. What is kept of stdin, environment and reply comes out of one buffer,
 * unless it is large: each page that is touched costs a microsecond of a process that lives for 300.
 * Its twins are cni/server/wire.py and cni/netns/jobs.py.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sched.h>
#include <sys/auxv.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#ifndef CNI_SOCKET
#define CNI_SOCKET "/run/cni/cni.sock"
#endif
#ifndef CNI_PATIENCE_MS
#define CNI_PATIENCE_MS 2000 /* how long a request may wait for a worker … */
#endif
#define CNI_PATIENCE_ALONE 10 /* … times this where nobody has installed a Python to fall back on */

/* linux/netlink.h, linux/sockios.h: musl has neither */
enum { ROUTE = 0, NETLINK_OPTIONS = 270, CAP_ACK = 10, EXT_ACK = 11, GET_STRICT_CHK = 12 };
#ifndef SIOCGSKNS
#define SIOCGSKNS 0x894C
#endif
#ifndef SO_NETNS_COOKIE
#define SO_NETNS_COOKIE 71 /* Linux 5.14 */
#endif

extern const char cni_prefix[]; /* the shell script, with build id and interpreter */
extern char **environ;

enum { MAGIC = 0x31494e43, BUILD = 12, MAX_FDS = 5 };
enum { MAX_PATH = 4096, MAX_STRINGS = 4 << 20, MAX_STDIN = 16 << 20,
       ARENA = 256 << 10, MAX_OUTPUT = 64 << 20, MAX_JOB = 1 << 16, MAX_VALUE = 4096 };

/* Where the worker is. What the kernel does not tell is 0. */
struct hello {
    uint32_t magic;
    char build[BUILD];
    uint64_t netns_dev, netns_ino; /* of its network namespace, for clients without cookies */
    uint64_t netns_cookie;
    uint64_t mounts; /* inode of its mount namespace; 0: it serves clients of any */
    uint64_t root_mount, root_ino; /* of its root directory */
};

struct header {
    uint32_t magic;
    uint32_t strings; /* bytes of the strings */
    uint32_t stdin_size;
    uint32_t umask;
};

static const char *self; /* the path that was executed; for a script the kernel makes it $0 */
static char **arguments;
static volatile sig_atomic_t caught; /* a signal that nobody has been told of */
static int told;                     /* the worker was told of one */
static sigset_t ordinary; /* the signal mask we were started with */
static int home = -1;     /* our network namespace, while we are in the container's */

/* --- memory and files ------------------------------------------------------------------------- */

static char arena[ARENA] __attribute__((aligned(16)));
static size_t used;

/* Memory that is never given back; NULL if there is none. */
static void *take(size_t size)
{
    size_t end = used + ((size + 15) & ~(size_t)15);
    if (size > ARENA || end > ARENA)
        return malloc(size);
    char *found = arena + used;
    used = end;
    return found;
}

/* As open(2), which in musl asks the kernel for O_CLOEXEC twice. */
static int open_quietly(const char *path, int flags)
{
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0);
}

/* --- by exec ---------------------------------------------------------------------------------- */

/* What stands behind `key` in the script. */
static const char *after(const char *key)
{
    const char *start = strstr(cni_prefix, key);
    return start ? start + strlen(key) : NULL;
}

/* Copy what stands between `key` and `end` in the script. */
static int setting(const char *key, char end, char *out, size_t size)
{
    const char *start = after(key);
    if (!start)
        return 0;
    const char *stop = strchr(start, end);
    if (!stop || (size_t)(stop - start) >= size)
        return 0;
    memcpy(out, start, (size_t)(stop - start));
    out[stop - start] = 0;
    return 1;
}

static void fail(const char *msg, const char *details, int code) __attribute__((noreturn));
static void fail(const char *msg, const char *details, int code)
{
    char text[512];
    int n = snprintf(text, sizeof text,
                     "{\n    \"code\": %d,\n    \"msg\": \"%s\",\n    \"details\": \"%s\"\n}", code,
                     msg, details);
    if (n > 0 && write(1, text, (size_t)n) < 0)
        _exit(1);
    _exit(1);
}

/* Into the container's network namespace, where we stay as long as it does not matter; false if that
 * cannot be. `server` is a socket of our own. */
static int enter(int container, int server)
{
    int here = home < 0 ? ioctl(server, SIOCGSKNS) : -1;
    if (home < 0 && here >= 0 && setns(container, CLONE_NEWNET) == 0)
        home = here;
    else if (here >= 0)
        close(here);
    return home >= 0;
}

/* Back into our own; harmless when we are there. */
static void go_home(void)
{
    if (home >= 0 && setns(home, CLONE_NEWNET) < 0)
        fail("cannot return to the node's network namespace", strerror(errno), 999);
    if (home >= 0)
        close(home);
    home = -1;
}

/* Start Python on the installed tree, or have the shell find out what to start. Never returns. */
static void run_by_exec(void)
{
    char python[MAX_PATH], build[32], run[MAX_PATH];
    int argc = 0;
    go_home();
    while (arguments[argc])
        argc++;
    char **argv = calloc((size_t)argc + 8, sizeof *argv);
    if (!argv)
        fail("cannot start: out of memory", "", 5);
    const char *slash = strrchr(self, '/');
    if (slash && setting("\ncni_python='", '\'', python, sizeof python) && *python
        && setting("\ncni_build=", '\n', build, sizeof build)) {
        int n = snprintf(run, sizeof run, "%.*s/.cni-%s/run.py", (int)(slash - self), self, build);
        if (n > 0 && n < (int)sizeof run && access(run, F_OK) == 0) {
            char *head[] = {python, "-I", "-S", run, (char *)self};
            memcpy(argv, head, sizeof head);
            memcpy(argv + 5, arguments + (argc > 0), (size_t)(argc > 0 ? argc - 1 : 0) * sizeof *argv);
            execve(python, argv, environ);
            memset(argv, 0, ((size_t)argc + 8) * sizeof *argv);
        }
    }
    char *head[] = {"sh", "-c", (char *)cni_prefix, (char *)self};
    memcpy(argv, head, sizeof head);
    memcpy(argv + 4, arguments + (argc > 0), (size_t)(argc > 0 ? argc - 1 : 0) * sizeof *argv);
    execve("/bin/sh", argv, environ);
    if (!getenv("CNI_COMMAND")) {
        static const char text[] = "cni: cannot start: neither the installed tree nor /bin/sh is there\n";
        if (write(2, text, sizeof text - 1) < 0)
            _exit(1);
        _exit(1);
    }
    fail(errno == ENOENT ? "cannot start: no server answers, and there is no Python"
                         : "cannot start: no server answers, and Python does not start",
         "start the server (cni serve), or install the package python3 and run cni install", 5);
}

/* The same with what was read of stdin put back. Never returns. */
static void run_by_exec_with(const char *data, size_t size, int have_stdin)
{
    if (have_stdin) {
        int fd = memfd_create("stdin", 0);
        size_t done = 0;
        while (fd >= 0 && done < size) {
            ssize_t n = write(fd, data + done, size - done);
            if (n <= 0)
                break;
            done += (size_t)n;
        }
        if (fd < 0 || done < size || lseek(fd, 0, SEEK_SET) < 0 || dup2(fd, 0) < 0)
            fail("cannot start: the configuration cannot be handed on", strerror(errno), 5);
        if (fd != 0)
            close(fd);
    }
    run_by_exec();
}

/* --- the request ------------------------------------------------------------------------------ */

static void on_signal(int number)
{
    caught = number;
}

/* From here on the interrupts are heard in ppoll(2) only. */
static void watch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
    sigset_t blocked;
    sigemptyset(&blocked);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        sigaction(numbers[i], &action, NULL);
        sigaddset(&blocked, numbers[i]);
    }
    sigprocmask(SIG_BLOCK, &blocked, &ordinary);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigdelset(&ordinary, numbers[i]);
}

/* All of stdin, or its beginning if that is too long already (then Python says so); NULL if it
 * cannot be read and nothing has been lost by trying. */
static char *read_stdin(size_t *size)
{
    size_t room = ARENA / 8, have = 0;
    char *data = arena;
    while (have <= MAX_STDIN) {
        if (have == room) {
            char *more = malloc(room *= 2);
            if (!more)
                fail("cannot start: out of memory", "the configuration does not fit", 5);
            memcpy(more, data, have);
            if (data != arena)
                free(data);
            data = more;
        }
        ssize_t n = read(0, data + have, room - have);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && have)
            fail("cannot read the configuration from stdin", strerror(errno), 5);
        if (n < 0)
            return NULL;
        if (n == 0)
            break;
        have += (size_t)n;
    }
    *size = have;
    used = data == arena ? have : 0;
    used = (used + 15) & ~(size_t)15;
    return data;
}

/* How long to wait for a worker. */
static struct timespec patience(void)
{
    const char *python = after("\ncni_python='");
    long ms = CNI_PATIENCE_MS;
    if (python && *python == '\'')
        ms *= CNI_PATIENCE_ALONE;
    return (struct timespec){ms / 1000, ms % 1000 * 1000000};
}

static int connect_to(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return -1;
    memcpy(address.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    /* also bounds connect(2) when the queue is full */
    struct timespec wait = patience();
    struct timeval limit = {wait.tv_sec, wait.tv_nsec / 1000};
    if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) < 0
        || connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

static int send_all(int fd, struct iovec *parts, int count, const int *fds, int nfds)
{
    union {
        char room[CMSG_SPACE(MAX_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    memset(&control, 0, sizeof control);
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
    if (nfds) {
        message.msg_control = control.room;
        message.msg_controllen = CMSG_SPACE((size_t)nfds * sizeof(int));
        struct cmsghdr *head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN((size_t)nfds * sizeof(int));
        memcpy(CMSG_DATA(head), fds, (size_t)nfds * sizeof(int));
    }
    for (;;) {
        ssize_t n = sendmsg(fd, &message, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return 0;
        message.msg_control = NULL;
        message.msg_controllen = 0;
        while (message.msg_iovlen && (size_t)n >= message.msg_iov->iov_len) {
            n -= (ssize_t)message.msg_iov->iov_len;
            message.msg_iov++;
            message.msg_iovlen--;
        }
        if (!message.msg_iovlen)
            return 1;
        message.msg_iov->iov_base = (char *)message.msg_iov->iov_base + n;
        message.msg_iov->iov_len -= (size_t)n;
    }
}

static char *append(char *at, const char *end, const char *text)
{
    size_t size = strlen(text) + 1;
    if (!at || (size_t)(end - at) < size)
        return NULL;
    memcpy(at, text, size);
    return at + size;
}

/* Path and environment; NULL if there is no room. */
static char *make_strings(uint32_t *size)
{
    size_t room = strlen(self) + 1;
    for (char **each = environ; *each; each++)
        room += strlen(*each) + 1;
    char *start = room <= MAX_STRINGS ? take(room) : NULL;
    if (!start)
        return NULL;
    char *at = start, *end = start + room;
    at = append(at, end, self);
    for (char **each = environ; at && *each; each++)
        at = append(at, end, *each);
    if (!at)
        return NULL;
    *size = (uint32_t)(at - start);
    return start;
}

/* Send all but descriptors; it waits in the queue until a worker is free. */
static int send_request(int server, const char *data, size_t size)
{
    struct header header = {.magic = MAGIC, .stdin_size = (uint32_t)size};
    char *strings = make_strings(&header.strings);
    header.umask = (uint32_t)umask(0);
    umask((mode_t)header.umask);
    struct iovec parts[] = {
        {&header, sizeof header}, {strings, header.strings}, {(char *)data, size}};
    return strings && send_all(server, parts, 3, NULL, 0);
}

/* What goes with the request. -1: there is none. */
struct belongings {
    int here, container, routing;
    int jobs, worker; /* two ends: ours, and the worker's */
};

/* A routing socket of the container's namespace, so that the worker need not send somebody there for
 * it; -1 if there cannot be one. */
static int routing_socket(int container, int server)
{
    int sock = -1;
    if (enter(container, server))
        sock = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, ROUTE);
    const int options[] = {CAP_ACK, EXT_ACK, GET_STRICT_CHK}, on = 1;
    for (size_t i = 0; sock >= 0 && i < sizeof options / sizeof *options; i++)
        setsockopt(sock, NETLINK_OPTIONS, options[i], &on, sizeof on); /* not in older kernels */
    return sock;
}

static struct belongings gather(int server)
{
    const char *path = getenv("CNI_NETNS");
    struct belongings mine = {-1, -1, -1, -1, -1};
    int ends[2];
    mine.here = open_quietly(".", O_PATH | O_DIRECTORY);
    if (path && *path)
        mine.container = open_quietly(path, O_RDONLY | O_NONBLOCK);
    if (mine.container >= 0)
        mine.routing = routing_socket(mine.container, server);
    if (mine.routing >= 0 && socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0) {
        mine.jobs = ends[0];
        mine.worker = ends[1];
    }
    return mine;
}

/* In the worker's network namespace? /proc is asked only if need be: for a process as young as this
 * one it has to make all that it shows. */
static int is_same_netns(int server, const struct hello *hello)
{
    uint64_t cookie;
    socklen_t size = sizeof cookie;
    if (hello->netns_cookie && getsockopt(server, SOL_SOCKET, SO_NETNS_COOKIE, &cookie, &size) == 0)
        return cookie == hello->netns_cookie;
    struct stat netns;
    go_home();
    return stat("/proc/self/ns/net", &netns) == 0 && hello->netns_dev == netns.st_dev
           && hello->netns_ino == netns.st_ino;
}

/* Do paths mean the same files as for the worker? A mount is in one mount namespace only; the same
 * directory as root also tells a changed root. */
static int is_same_root(const struct hello *hello)
{
    union {
        uint32_t mask;
        uint64_t words[32]; /* struct statx (linux/stat.h): stx_ino, stx_mnt_id */
    } root;
    enum { STATX_INO_ = 0x100, STATX_MNT_ID_ = 0x1000, INO = 4, MNT_ID = 18 };
    if (!hello->mounts)
        return 1;
    if (hello->root_mount
        && syscall(SYS_statx, AT_FDCWD, "/", 0, STATX_INO_ | STATX_MNT_ID_, &root) == 0
        && root.mask & STATX_MNT_ID_)
        return root.words[MNT_ID] == hello->root_mount && root.words[INO] == hello->root_ino;
    struct stat mounts;
    return stat("/proc/self/ns/mnt", &mounts) == 0 && hello->mounts == mounts.st_ino;
}

/* Is the server our own user's? */
static int is_ours(int server)
{
    struct ucred peer;
    socklen_t size = sizeof peer;
    return getsockopt(server, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0
           && peer.uid == getauxval(AT_EUID);
}

/* Wait for the worker's hello; is it one that may work for us? */
static int is_welcome(int server, const char *build)
{
    struct hello hello;
    struct pollfd ready = {.fd = server, .events = POLLIN};
    struct timespec limit = patience();
    int n = ppoll(&ready, 1, &limit, &ordinary);
    return n == 1 && recv(server, &hello, sizeof hello, MSG_DONTWAIT) == (ssize_t)sizeof hello
           && hello.magic == MAGIC && strlen(build) == BUILD
           && memcmp(hello.build, build, BUILD) == 0 && is_ours(server)
           && is_same_netns(server, &hello) && is_same_root(&hello);
}

/* Have the worker begin; false if it cannot. */
static int go(int server, const struct belongings *mine)
{
    unsigned char which = 0;
    int fds[MAX_FDS] = {2, mine->here}, nfds = 2;
    const int optional[] = {mine->container, mine->routing, mine->worker};
    for (size_t i = 0; i < sizeof optional / sizeof *optional; i++)
        if (optional[i] >= 0) {
            which |= (unsigned char)(1 << i);
            fds[nfds++] = optional[i];
        }
    struct iovec part = {&which, 1};
    return mine->here >= 0 && send_all(server, &part, 1, fds, nfds);
}

/* --- jobs in the container ---------------------------------------------------------------------- */

/* The worker's process may not enter a namespace, so it would have to send another one there, which
 * takes long to wake up. We are here anyway, and do what is small: kernel parameters.
 *
 *     job      's', or 'S' to stop after the first that fails; then what is to be done, each
 *              'r' (read), 'w' (write) or 'e' (write unless it is so), name NUL value NUL
 *     answer   's', then for each that was done: errno, size of what was read or NOTHING, that;
 *              or 'n': we cannot get there
 */
struct outcome_of {
    int32_t error;
    uint32_t size;
};
static const uint32_t NOTHING = UINT32_MAX;

static int read_parameter(const char *path, char *value, uint32_t *size)
{
    int fd = open_quietly(path, O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, value, MAX_VALUE);
    int error = n < 0 ? errno : 0;
    if (fd >= 0)
        close(fd);
    *size = n < 0 ? NOTHING : (uint32_t)n;
    return error;
}

static int write_parameter(const char *path, const char *value)
{
    int fd = open_quietly(path, O_WRONLY);
    int error = fd < 0 || write(fd, value, strlen(value)) < 0 ? errno : 0;
    if (fd >= 0)
        close(fd);
    return error;
}

/* Below net/? Nothing else is anybody's business here. */
static int is_parameter(const char *name)
{
    size_t size = strlen(name);
    return strncmp(name, "net/", 4) == 0 && !strstr(name, "/../")
           && (size < 3 || strcmp(name + size - 3, "/..") != 0);
}

/* Do one; `value` is what was there. */
static struct outcome_of do_parameter(char kind, const char *name, const char *wanted, char *value)
{
    struct outcome_of done = {ENOENT, NOTHING};
    char path[256] = "/proc/sys/"; /* snprintf(3) would be a dozen more cache lines */
    size_t start = strlen(path), size = strlen(name) + 1;
    if (!is_parameter(name) || size > sizeof path - start)
        return done;
    memcpy(path + start, name, size);
    done.error = kind == 'w' ? 0 : read_parameter(path, value, &done.size);
    if (kind == 'r' || done.error)
        return done;
    uint32_t shown = kind == 'w' ? 0 : done.size;
    while (shown && value[shown - 1] == '\n')
        shown--;
    if (kind == 'w' || shown != strlen(wanted) || memcmp(value, wanted, shown) != 0)
        done.error = write_parameter(path, wanted);
    return done;
}

/* Do a job of `size` bytes, in the container's namespace; the size of the answer. */
static size_t do_job(const char *job, size_t size, char *answer, size_t room)
{
    const char *at = job + 1, *end = job + size;
    size_t have = 1;
    *answer = 's';
    while (at < end && have + sizeof(struct outcome_of) + MAX_VALUE <= room) {
        char kind = *at++;
        const char *name = at;
        const char *wanted = memchr(name, 0, (size_t)(end - name));
        if (!wanted || ++wanted == end || !memchr(wanted, 0, (size_t)(end - wanted)))
            break;
        struct outcome_of done =
            do_parameter(kind, name, wanted, answer + have + sizeof done);
        memcpy(answer + have, &done, sizeof done);
        have += sizeof done + (done.size == NOTHING ? 0 : done.size);
        if (done.error && *job == 'S')
            break;
        at = wanted + strlen(wanted) + 1;
    }
    return have;
}

/* Do the job that waits; false if there will be no more. */
static int serve(int server, const struct belongings *mine)
{
    static char *job;
    size_t have = 1;
    if (!job && !(job = take(2 * MAX_JOB)))
        return 0;
    ssize_t size = recv(mine->jobs, job, MAX_JOB, MSG_DONTWAIT);
    if (size <= 0)
        return size < 0 && (errno == EAGAIN || errno == EINTR);
    char *answer = job + size; /* in the same page, mostly */
    *answer = 'n';
    if (enter(mine->container, server))
        have = do_job(job, (size_t)size, answer, MAX_JOB);
    send(mine->jobs, answer, have, MSG_NOSIGNAL);
    return 1;
}

/* --- the reply ------------------------------------------------------------------------------- */

struct reply {
    unsigned char kind, code;
    uint32_t size; /* of the output */
} __attribute__((packed));

/* Write the output; the exit code. Nobody undoes anything any more: signals end us. */
static int print(const char *data, size_t size, int code)
{
    const int numbers[] = {SIGTERM, SIGINT, SIGHUP};
    for (size_t i = 0; size && i < sizeof numbers / sizeof *numbers; i++)
        signal(numbers[i], SIG_DFL);
    sigprocmask(SIG_SETMASK, &ordinary, NULL);
    signal(SIGPIPE, SIG_IGN);
    while (size) {
        ssize_t n = write(1, data, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            dprintf(2, "cni: cannot write to stdout: %s\n", strerror(errno));
            return 1;
        }
        data += n;
        size -= (size_t)n;
    }
    return code;
}

enum outcome { NOT_BEGUN, LOST, DONE };

/* Wait for some bytes, as long as it takes; how many, or 0 if the worker is gone. */
static size_t receive(int server, struct belongings *mine, char *data, size_t room)
{
    for (;;) {
        struct pollfd ready[] = {{.fd = server, .events = POLLIN}, {.fd = mine->jobs, .events = POLLIN}};
        int n = ppoll(ready, 2, NULL, &ordinary);
        if (caught) {
            unsigned char number = (unsigned char)caught;
            caught = 0;
            told = 1;
            send(server, &number, 1, MSG_NOSIGNAL | MSG_DONTWAIT); /* if it is gone, we hear it */
        }
        if (n > 0 && ready[1].revents && !serve(server, mine))
            mine->jobs = -1;
        if (n <= 0 || !ready[0].revents)
            continue;
        ssize_t got = recv(server, data, room, 0);
        if (got >= 0 || errno != EINTR)
            return got > 0 ? (size_t)got : 0;
    }
}

/* Wait for the reply, and print it; `code` is the exit code when it is DONE. */
static enum outcome wait_for(int server, struct belongings *mine, int *code)
{
    struct reply reply = {0, 0, 0};
    size_t have = 0, room = 4096;
    char *data = take(room);
    while (data && (have < sizeof reply || have - sizeof reply < reply.size)) {
        size_t got = receive(server, mine, data + have, room - have);
        have += got;
        if (got && *data == 'N')
            return NOT_BEGUN;
        if (!got || *data != 'X')
            return LOST;
        if (have < sizeof reply)
            continue;
        memcpy(&reply, data, sizeof reply);
        if (reply.size > MAX_OUTPUT)
            return LOST;
        if (room < sizeof reply + reply.size) {
            char *more = malloc(room = sizeof reply + reply.size);
            if (more)
                memcpy(more, data, have);
            data = more;
        }
    }
    if (!data)
        return LOST;
    *code = print(data + sizeof reply, reply.size, reply.code);
    return DONE;
}

static int is_for_server(const char *name, const char *command)
{
    if (!command || !*command || arguments[0] == NULL || arguments[1] != NULL || !name)
        return 0;
    const char *choice = getenv("CNI_SERVER");
    return strcmp(name, "cni") != 0 && !(choice && strcmp(choice, "off") == 0);
}

/* Otherwise the socket would become one of them, and the worker would write to itself. */
static int has_standard_streams(void)
{
    struct pollfd streams[] = {{.fd = 0}, {.fd = 1}, {.fd = 2}};
    poll(streams, 3, 0);
    return !((streams[0].revents | streams[1].revents | streams[2].revents) & POLLNVAL);
}

int main(int argc, char **argv)
{
    (void)argc;
    arguments = argv;
    self = (const char *)getauxval(AT_EXECFN);
    if (!self)
        self = argv[0] ? argv[0] : "cni";
    const char *slash = strrchr(self, '/');
    const char *command = getenv("CNI_COMMAND");
    char build[32];
    if (!is_for_server(slash ? slash + 1 : self, command)
        || !setting("\ncni_build=", '\n', build, sizeof build))
        run_by_exec();
    const char *path = getenv("CNI_SERVER_SOCKET");
    if (!path || !*path)
        path = CNI_SOCKET;
    if (access(path, F_OK) < 0 || !has_standard_streams())
        run_by_exec();

    /* first, so that no worker waits for a runtime that is slow to write */
    size_t size = 0;
    int have_stdin = strcmp(command, "VERSION") != 0;
    char *data = have_stdin ? read_stdin(&size) : NULL;
    if (have_stdin && !data)
        run_by_exec(); /* unreadable: Python will see the same */
    if (size > MAX_STDIN)
        run_by_exec_with(data, size, have_stdin);
    watch_signals();

    int code = 1;
    int server = connect_to(path);
    enum outcome outcome = NOT_BEGUN;
    if (server >= 0 && send_request(server, data, size)) {
        struct belongings mine = gather(server);
        if (is_welcome(server, build) && go(server, &mine))
            outcome = wait_for(server, &mine, &code);
    }
    if (outcome == DONE)
        _exit(code);
    if (server >= 0)
        close(server);
    sigprocmask(SIG_SETMASK, &ordinary, NULL); /* now those are caught that came meanwhile */
    /* A verb that may be repeated is; an ADD has to be taken back first, which DEL does. */
    if (outcome == LOST && strcmp(command, "ADD") == 0)
        fail("the cni server ended in the middle of the request",
             "the runtime takes back what was done by DEL; then try again", 11);
    if (caught || told)
        fail("interrupted by a signal", "nothing more was done; try again", 999);
    run_by_exec_with(data, size, have_stdin);
}
