/*
 * The native client: what a container runtime executes when it runs a plugin.
 *
 * It hands the request to the server (cni/server/) over a Unix socket and waits for the exit code and
 * what belongs on stdout. The server's worker writes to stderr itself: that descriptor travels with
 * the request. If no server answers in time, or it is of another build or declines, the plugin runs by
 * exec, as if there were no server: the shell script that is embedded here (launcher/prefix.sh), or a
 * shortcut through it, starts Python. In the self-contained file (CNI_IMAGE, docs/self-contained.md)
 * there is no script; the interpreter lies behind the client, which maps it and jumps to it.
 *
 *     request   header; path we were called by, and the variables of the protocol (CNI_…), name and
 *               value each; the other variables likewise; then stdin. All texts are NUL-terminated
 *     hello     from a worker that is free: magic, its build id
 *     go        one byte, which says which optional descriptors come with it; the descriptors stderr,
 *               working directory and root directory, and if there are such CNI_NETNS, a routing
 *               socket of that namespace, and one to send us jobs there; credentials that name the
 *               server, which only CAP_SYS_ADMIN may send (cni/server/peer.py)
 *     reply     'X', exit code, size of the output, output; or 'N': the worker declines; or 'W', the
 *               same as 'X' for an ADD: we report whether stdout has the output, which else is undone
 *
 * Descriptors are sent after the hello only: in the queue of a server that hangs they would keep the
 * runtime's pipe open. Before the go nothing can have happened, and after it a worker is at work, so
 * no request is ever done twice. The output is written when all of it is here.
 *
 * POSIX and Linux only, static. Stdin, environment and reply lie in one buffer unless they are large:
 * each page that is touched costs a microsecond of a process that lives for 300.
 * The server's side is cni/server/wire.py and cni/netns/jobs.py.
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
#include <sys/resource.h>
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
#define CNI_PATIENCE_MS 2000 /* how long a request may wait for a worker */
#endif
#define CNI_ADVICE "take the file cni-linux-" CNI_MACHINE ", which carries its interpreter"
#if defined __x86_64__
#define CNI_MACHINE "x86_64"
#elif defined __aarch64__
#define CNI_MACHINE "aarch64"
#else
#define CNI_MACHINE "ARCH"
#endif
#define CNI_PATIENCE_ALONE 10 /* times longer where no Python is installed to fall back on */
#define CNI_PAUSE_MS 200 /* between attempts there, while all workers are busy for long */

/* From linux/netlink.h and linux/sockios.h, which musl does not have. */
enum { ROUTE = 0, NETLINK_OPTIONS = 270, CAP_ACK = 10, EXT_ACK = 11, GET_STRICT_CHK = 12 };
#ifndef SIOCGSKNS
#define SIOCGSKNS 0x894C
#endif

#ifdef CNI_IMAGE
#include "image.h"
#endif

extern const char cni_prefix[]; /* the shell script, with build id and interpreter */
extern char **environ;

enum { MAGIC = 0x32494e43, BUILD = 12, MAX_FDS = 6 };
enum { MAX_PATH = 4096, MAX_STRINGS = 4 << 20, MAX_STDIN = 16 << 20,
       ARENA = 256 << 10, MAX_OUTPUT = 64 << 20, MAX_JOB = 1 << 16 };

struct hello {
    uint32_t magic;
    char build[BUILD];
};

struct header {
    uint32_t magic;
    uint32_t strings; /* bytes of the path and the protocol's variables */
    uint32_t inherited; /* bytes of the other variables, which are the same for all of a runtime's requests */
    uint32_t stdin_size;
    uint32_t umask;
};

static const char *self; /* the path that was executed; for a script the kernel makes it $0 */
static const char *file; /* the same, also where that is a descriptor and argv[0] has the name */
static char **arguments;
static const int interrupting[] = {SIGTERM, SIGINT, SIGHUP};
static volatile sig_atomic_t pending_signal; /* has come, and the worker does not know yet */
static int signal_forwarded;                 /* the worker knows of a signal */
static int watching;                         /* the handlers are there */
static sigset_t initial_mask;                /* the signal mask we were started with */
static int own_netns = -1; /* our network namespace, while we are in the container's */

/* --- memory and files ------------------------------------------------------------------------- */

static char arena[ARENA] __attribute__((aligned(16)));
static size_t arena_used;

/* `size` bytes that are never freed; NULL if there is no memory. */
static void *allocate(size_t size)
{
    size_t end = arena_used + ((size + 15) & ~(size_t)15);
    if (size > ARENA || end > ARENA)
        return malloc(size);
    char *start = arena + arena_used;
    arena_used = end;
    return start;
}

/* As open(2), which in musl asks the kernel for O_CLOEXEC twice. */
static int open_cloexec(const char *path, int flags)
{
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0);
}

#include "beside.h"
#include "steps.h"

/* Whether the kernel names a file like this that was executed by its descriptor (fexecve(3), a memfd,
 * a copy of ourselves through /proc): then the name says nothing of the plugin. */
static int is_descriptor(const char *path)
{
    const char *name = strrchr(path, '/');
    if (!name || (strncmp(path, "/dev/fd/", 8) != 0 && strncmp(path, "/proc/", 6) != 0))
        return 0;
    size_t size = strlen(++name);
    return strcmp(name, "exe") == 0 || (size && strspn(name, "0123456789") == size);
}

/* The path that was executed becomes `file`, what we were called by `self`. By argv[0] we go only
 * where nothing else has a name: a runtime may write there what it likes. */
static void find_ourselves(void)
{
    file = (const char *)getauxval(AT_EXECFN);
    if (!file)
        file = arguments[0] ? arguments[0] : "cni";
    self = is_descriptor(file) && arguments[0] && *arguments[0] ? arguments[0] : file;
}

/* --- by exec ---------------------------------------------------------------------------------- */

/* The script's text after `key`; NULL if it does not have the key. */
static const char *script_after(const char *key)
{
    const char *start = strstr(cni_prefix, key);
    return start ? start + strlen(key) : NULL;
}

/* Copy the script's text between `key` and the next `end`; false if it is not there or too long. */
static int script_setting(const char *key, char end, char *out, size_t size)
{
    const char *start = script_after(key);
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
    signal(SIGPIPE, SIG_IGN); /* the exit code is 1, also if nobody reads */
    if (n > 0 && write(1, text, (size_t)n) < 0)
        _exit(1);
    _exit(1);
}

/* Enter the container's network namespace and stay there; false if that fails. `server` is a socket
 * that was made in our own namespace. */
static int enter_container(int container, int server)
{
    int here = own_netns < 0 ? ioctl(server, SIOCGSKNS) : -1;
    if (own_netns < 0 && here >= 0 && setns(container, CLONE_NEWNET) == 0)
        own_netns = here;
    else if (here >= 0)
        close(here);
    return own_netns >= 0;
}

/* Return to our own network namespace; does nothing if we are there. Ends the process if it fails. */
static void leave_container(void)
{
    if (own_netns >= 0 && setns(own_netns, CLONE_NEWNET) < 0)
        fail("cannot return to the node's network namespace", strerror(errno), 999);
    if (own_netns >= 0)
        close(own_netns);
    own_netns = -1;
}

/* Block SIGTERM, SIGINT and SIGHUP; returns 0 if one of them was caught before. */
static int block_signals(sigset_t *before)
{
    sigset_t blocked;
    sigemptyset(&blocked);
    for (size_t i = 0; i < sizeof interrupting / sizeof *interrupting; i++)
        sigaddset(&blocked, interrupting[i]);
    sigprocmask(SIG_BLOCK, &blocked, before);
    return !pending_signal;
}

/* Have 0, 1 and 2 be open. The next files that are opened would get the numbers of those that are not,
 * and a result would be written into a socket or somebody's file. What we open can be neither read nor
 * written; Python takes it, but a directory as stdin would end its start. */
static void hold_streams(const char *command)
{
    struct pollfd streams[] = {{.fd = 0}, {.fd = 1}, {.fd = 2}};
    struct stat status;
    int is_directory = fstat(0, &status) == 0 && S_ISDIR(status.st_mode);
    if (is_directory && command && *command && strcmp(command, "VERSION") != 0)
        fail("error reading from stdin: Is a directory", "the configuration is expected there", 5);
    poll(streams, 3, 0);
    for (int i = 0; i < 3; i++) {
        if (!(streams[i].revents & POLLNVAL) && !(i == 0 && is_directory))
            continue;
        int fd = open("/proc/self/exe", O_PATH);
        if (fd < 0)
            fd = open(file, O_PATH);
        if (fd >= 0 && fd != i) {
            dup2(fd, i);
            close(fd);
        }
    }
}

/* End with an error if a limit is so low that an interpreter may not even come as far as to say so. */
static void check_limits(const char *command)
{
    static const struct {
        int kind;
        rlim_t least;
        const char *msg, *advice;
    } limits[] = {
        {RLIMIT_AS, 32 << 20, "cannot start: too little memory", "raise the limit (ulimit -v, LimitAS=): 32 MB"},
        {RLIMIT_DATA, 16 << 20, "cannot start: too little memory", "raise the limit (ulimit -d, LimitDATA=): 16 MB"},
        {RLIMIT_STACK, 128 << 10, "cannot start: too small a stack", "raise the limit (ulimit -s, LimitSTACK=): 128 KB"},
        {RLIMIT_NOFILE, 8, "cannot start: too few open files", "raise the limit (ulimit -n, LimitNOFILE=): 16"},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        struct rlimit limit;
        if (getrlimit(limits[i].kind, &limit) < 0 || limit.rlim_cur >= limits[i].least)
            continue;
        if (command && *command)
            fail(limits[i].msg, limits[i].advice, 5);
        dprintf(2, "cni: %s: %s\n", limits[i].msg, limits[i].advice);
        _exit(1);
    }
}

/* What comes before Python.
 *
 * A caller that ignores SIGCHLD hands that on, and then nobody learns how a program ended that we run.
 *
 * A plugin starts with the three signals blocked, until its handlers are there (cni/interrupts.py):
 * before that one would end Python in its own way, with a traceback instead of the answer. */
static void prepare_exec(void)
{
    const char *command = getenv("CNI_COMMAND");
    leave_container();
    signal(SIGCHLD, SIG_DFL);
    check_limits(command);
    hold_streams(arguments[0] && !arguments[1] ? command : NULL);
    if (command && *command && arguments[0] && !arguments[1] && !block_signals(NULL))
        fail("interrupted by a signal", "nothing was done; try again", 999);
}

/* Go on as the file `cni` beside us. Never returns. */
static void run_beside(int fd) __attribute__((noreturn));
static void run_beside(int fd)
{
    char details[256];
    if (fd >= 0) {
        setenv("CNI_SERVER", "off", 1); /* it has been asked, if there is one */
        become(fd, self, arguments, environ);
    }
    snprintf(details, sizeof details, "%s; or install the release again", beside_problem(errno));
    if (getenv("CNI_COMMAND"))
        fail("cannot start: the file cni, to which this plugin belongs, cannot be used", details, 5);
    dprintf(2, "cni: the file cni, to which this plugin belongs, cannot be used: %s\n", details);
    _exit(1);
}

#ifndef CNI_IMAGE

/* Whether `path` is of this kind, and only we and root may change it. In /tmp, for example, another
 * user may put a directory of that name beside our file. */
static int is_safe(const char *path, mode_t kind)
{
    struct stat status;
    return lstat(path, &status) == 0 && (status.st_mode & S_IFMT) == kind
           && (status.st_uid == 0 || status.st_uid == getauxval(AT_EUID))
           && !(status.st_mode & (S_IWGRP | S_IWOTH));
}

/* The path of run.py in the unpacked tree beside us; false if there is none that is safe. */
static int find_tree(char *run, size_t size)
{
    char build[32];
    const char *slash = strrchr(self, '/');
    if (!slash || !script_setting("\ncni_build=", '\n', build, sizeof build))
        return 0;
    int n = snprintf(run, size, "%.*s/.cni-%s", (int)(slash - self), self, build);
    if (n <= 0 || (size_t)n + sizeof "/run.py" > size || !is_safe(run, S_IFDIR))
        return 0;
    strcpy(run + n, "/run.py");
    return is_safe(run, S_IFREG);
}

/* Replace this process by `program`, with our own arguments after those of `head`. */
static void execute(const char *program, char *const *head, size_t count)
{
    size_t argc = 0;
    while (arguments[argc])
        argc++;
    size_t rest = argc ? argc - 1 : 0;
    char **argv = calloc(count + rest + 1, sizeof *argv);
    if (!argv)
        fail("cannot start: out of memory", "", 5);
    memcpy(argv, head, count * sizeof *argv);
    memcpy(argv + count, arguments + (argc > 0), rest * sizeof *argv);
    execve(program, argv, environ);
    free(argv);
}

/* Where the path that was executed may lead nowhere by now, since a memfd or a descriptor is closed on
 * exec, hand the file on as a descriptor of ours: the script gives Python that path. */
static void hand_on_file(void)
{
    char path[64];
    if (strncmp(file, "/dev/fd/", 8) != 0 && strncmp(file, "/proc/", 6) != 0)
        return;
    int fd = open("/proc/self/exe", O_RDONLY);
    if (fd < 0)
        return;
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    setenv("cni_self", path, 1);
}

/* Start Python on the installed tree, or else the script, which looks for both. Never returns. */
static void run_by_exec(void)
{
    static char python[MAX_PATH], run[MAX_PATH]; /* the stack may be small: check_limits */
    prepare_exec();
    if (script_setting("\ncni_python='", '\'', python, sizeof python) && *python
        && find_tree(run, sizeof run)) {
        char *const head[] = {python, "-I", "-S", run, (char *)self};
        execute(python, head, sizeof head / sizeof *head);
    }
    if (is_stub())
        run_beside(open_beside(file));
    hand_on_file();
    setenv("cni_client", "1", 1); /* the script need not look for what we have not found */
    char *const head[] = {"sh", "-c", (char *)cni_prefix, (char *)self};
    execute("/bin/sh", head, sizeof head / sizeof *head);
    if (!getenv("CNI_COMMAND")) {
        static const char text[] = "cni: cannot start: neither the installed tree nor /bin/sh is there; "
                                   CNI_ADVICE "\n";
        if (write(2, text, sizeof text - 1) < 0)
            _exit(1);
        _exit(1);
    }
    fail(errno == ENOENT ? "cannot start: no server answers, and there is no Python"
                         : "cannot start: no server answers, and Python does not start",
         "start the server (cni serve), or " CNI_ADVICE, 5);
}

#else

/* Whether the file `fd` is of our build. It has the build id where we have it: the linker lays our file
 * out as our memory, from __ehdr_start on. */
static int is_same_build(int fd)
{
    extern const char __ehdr_start[];
    char found[BUILD + 1];
    const char *build = script_after("\ncni_build=");
    return build && pread(fd, found, sizeof found, build - __ehdr_start) == (ssize_t)sizeof found
           && memcmp(found, build, sizeof found) == 0;
}

/* Have the auxiliary vector, which is behind the environment on the stack, name what we were called
 * by: the interpreter looks there. */
static void tell_name(void)
{
    char **at = arguments;
    for (int part = 0; part < 2; part++) /* the arguments, then the environment */
        while (*at++)
            ;
    for (unsigned long *entry = (unsigned long *)at; *entry != AT_NULL; entry += 2)
        if (*entry == AT_EXECFN)
            entry[1] = (unsigned long)self;
}

int image_open(const char *path)
{
    if (is_stub())
        return open_beside(path);
    /* The path may lead to another file since we were started: then /proc has the old one. */
    int fd = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    return fd >= 0 ? fd : open(path, O_RDONLY | O_CLOEXEC);
}

/* Go on as the interpreter that lies behind us in the file. Never returns. */
static void run_by_exec(void)
{
    prepare_exec();
    int fd = image_open(file);
    if (is_stub() && (fd < 0 || !is_same_build(fd)))
        run_beside(fd);
    if (self != file)
        tell_name();
    for (size_t i = 0; watching && i < sizeof interrupting / sizeof *interrupting; i++)
        signal(interrupting[i], SIG_DFL); /* as execve(2) would leave them */
    image_run(file, fd, arguments);
}

#endif

/* As run_by_exec, with `data` as stdin if it was read. Never returns. */
static void run_by_exec_with(const char *data, size_t size, int have_stdin)
{
    if (have_stdin) {
        int fd = memfd_create("stdin", 0);
        size_t done = 0;
        signal(SIGXFSZ, SIG_IGN); /* a limit of files' sizes holds there, too */
        while (fd >= 0 && done < size) {
            ssize_t n = write(fd, data + done, size - done);
            if (n <= 0)
                break;
            done += (size_t)n;
        }
        signal(SIGXFSZ, SIG_DFL);
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
    pending_signal = number;
}

/* Have SIGTERM, SIGINT and SIGHUP delivered in ppoll(2) only. */
static void watch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    watching = 1;
    block_signals(&initial_mask);
    for (size_t i = 0; i < sizeof interrupting / sizeof *interrupting; i++) {
        sigaction(interrupting[i], &action, NULL);
        sigdelset(&initial_mask, interrupting[i]);
    }
}

/* Wait until `fd` is ready, if that is why the last call failed: the caller may have made it
 * non-blocking. False if it failed for another reason. */
static int await_ready(int fd, short events)
{
    struct pollfd ready = {.fd = fd, .events = events};
    if (errno != EAGAIN)
        return errno == EINTR;
    poll(&ready, 1, -1);
    return 1;
}

/* All of stdin, or its beginning if that is longer than MAX_STDIN, which Python refuses. NULL if the
 * first read fails: then Python can try, too. */
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
        if (n < 0 && await_ready(0, POLLIN))
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
    arena_used = data == arena ? have : 0;
    arena_used = (arena_used + 15) & ~(size_t)15;
    return data;
}

/* Whether there is no Python that could run the plugin: only a server can. */
static int is_alone(void)
{
#ifndef CNI_IMAGE
    const char *python = script_after("\ncni_python='");
    return python && *python == '\'';
#else
    return 0;
#endif
}

/* How long to wait until a worker says hello. */
static struct timespec worker_timeout(void)
{
    long ms = CNI_PATIENCE_MS * (is_alone() ? CNI_PATIENCE_ALONE : 1);
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
    struct timespec wait = worker_timeout();
    struct timeval limit = {wait.tv_sec, wait.tv_nsec / 1000};
    if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) < 0
        || connect(fd, (struct sockaddr *)&address, sizeof address) < 0) {
        close(fd);
        return -1;
    }
    return fd;
}

/* What travels beside the bytes of a message. */
struct ancillary {
    int fds[MAX_FDS], nfds;
    struct ucred credentials;
};

/* Put one control message at `head`, which is NULL if there is no room; where the next begins. */
static struct cmsghdr *add_control(struct msghdr *message, struct cmsghdr *head, int type,
                                   const void *data, size_t size)
{
    if (!head)
        return NULL;
    head->cmsg_level = SOL_SOCKET;
    head->cmsg_type = type;
    head->cmsg_len = CMSG_LEN(size);
    memcpy(CMSG_DATA(head), data, size);
    return CMSG_NXTHDR(message, head);
}

/* Send all parts, with the first byte what `extra` has, if it is given; false if that fails. */
static int send_all(int fd, struct iovec *parts, int count, const struct ancillary *extra)
{
    union {
        char room[CMSG_SPACE(MAX_FDS * sizeof(int)) + CMSG_SPACE(sizeof(struct ucred))];
        struct cmsghdr align;
    } control;
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = (size_t)count};
    if (extra) {
        size_t size = (size_t)extra->nfds * sizeof(int);
        memset(&control, 0, sizeof control);
        message.msg_control = control.room;
        message.msg_controllen = CMSG_SPACE(size) + CMSG_SPACE(sizeof extra->credentials);
        struct cmsghdr *next =
            add_control(&message, CMSG_FIRSTHDR(&message), SCM_RIGHTS, extra->fds, size);
        add_control(&message, next, SCM_CREDENTIALS, &extra->credentials,
                    sizeof extra->credentials);
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

/* Put a variable at `at`, with a NUL in place of the first '='; where the next begins. Python takes
 * no variable without a name or without '=' into account either. */
static char *append_variable(char *at, const char *variable)
{
    const char *equals = strchr(variable, '=');
    if (!equals || equals == variable)
        return at;
    size_t size = strlen(variable) + 1;
    memcpy(at, variable, size);
    at[equals - variable] = 0;
    return at + size;
}

static int is_of_protocol(const char *variable)
{
    return strncmp(variable, "CNI_", 4) == 0;
}

/* The request's strings, whose sizes go into the header; NULL if they are too long. */
static char *make_strings(struct header *header)
{
    size_t size = strlen(self) + 1, room = size;
    for (char **each = environ; *each; each++)
        room += strlen(*each) + 1;
    char *start = room <= MAX_STRINGS ? allocate(room) : NULL;
    if (!start)
        return NULL;
    memcpy(start, self, size);
    char *at = start + size;
    for (char **each = environ; *each; each++)
        if (is_of_protocol(*each))
            at = append_variable(at, *each);
    header->strings = (uint32_t)(at - start);
    for (char **each = environ; *each; each++)
        if (!is_of_protocol(*each))
            at = append_variable(at, *each);
    header->inherited = (uint32_t)(at - start) - header->strings;
    return start;
}

/* Send the request, without descriptors. It waits in the queue until a worker is free. */
static int send_request(int server, const char *data, size_t size)
{
    struct header header = {.magic = MAGIC, .stdin_size = (uint32_t)size};
    char *strings = make_strings(&header);
    header.umask = (uint32_t)umask(0);
    umask((mode_t)header.umask);
    struct iovec parts[] = {
        {&header, sizeof header}, {strings, header.strings + header.inherited}, {(char *)data, size}};
    return strings && send_all(server, parts, 3, NULL);
}

/* The descriptors that go with the request; -1 stands for none. */
struct descriptors {
    int here, root, container, routing;
    int jobs, worker; /* two ends of a connection: ours, and the worker's */
};

/* A routing socket of the container's namespace, which saves the worker from sending another process
 * there to make one; -1 if that fails. */
static int routing_socket(int container, int server)
{
    int sock = -1;
    if (enter_container(container, server))
        sock = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, ROUTE);
    const int options[] = {CAP_ACK, EXT_ACK, GET_STRICT_CHK}, on = 1;
    for (size_t i = 0; sock >= 0 && i < sizeof options / sizeof *options; i++)
        setsockopt(sock, NETLINK_OPTIONS, options[i], &on, sizeof on); /* not in older kernels */
    return sock;
}

/* Whether the plugin that we were called as does anything in the container: those of IPAM do not. */
static int works_inside(void)
{
    static const char *const ipam[] = {"host-local", "static", "dhcp"};
    const char *slash = strrchr(self, '/'), *name = slash ? slash + 1 : self;
    for (size_t i = 0; i < sizeof ipam / sizeof *ipam; i++)
        if (strcmp(name, ipam[i]) == 0)
            return 0;
    return 1;
}

/* Descriptors of what the worker needs of us. */
static struct descriptors collect_descriptors(int server)
{
    const char *path = getenv("CNI_NETNS");
    struct descriptors mine = {-1, -1, -1, -1, -1, -1};
    int ends[2];
    mine.here = open_cloexec(".", O_PATH | O_DIRECTORY);
    mine.root = open_cloexec("/", O_PATH | O_DIRECTORY);
    if (path && *path)
        mine.container = open_cloexec(path, O_RDONLY | O_NONBLOCK);
    if (mine.container >= 0 && works_inside())
        mine.routing = routing_socket(mine.container, server);
    if (mine.routing < 0)
        return mine;
    /* A descriptor of the path would keep the mount there busy as long as a process of the server has
     * it; one from the kernel's own mount does not. */
    int unmounted = ioctl(mine.routing, SIOCGSKNS);
    if (unmounted >= 0) {
        close(mine.container);
        mine.container = unmounted;
    }
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0) {
        mine.jobs = ends[0];
        mine.worker = ends[1];
    }
    return mine;
}

/* Close what the request needed: what runs by exec in this very process gets none of it. */
static void close_all(int server, const struct descriptors *mine)
{
    const int all[] = {server,          mine->here, mine->root,  mine->container,
                       mine->routing,   mine->jobs, mine->worker};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i] >= 0)
            close(all[i]);
}

/* Wait for what a worker, or else the supervisor, says first; its size, or -1 for nothing. */
static ssize_t receive_first(int server, struct hello *hello)
{
    struct pollfd ready = {.fd = server, .events = POLLIN};
    struct timespec limit = worker_timeout();
    int n = ppoll(&ready, 1, &limit, &initial_mask);
    return n == 1 ? recv(server, hello, sizeof *hello, MSG_DONTWAIT) : -1;
}

/* Whether these bytes are the supervisor's: no worker is to be had for long. */
static int is_turned_away(const struct hello *hello, ssize_t size)
{
    return size == 1 && *(const char *)hello == 'B';
}

/* Whether this is the hello of a worker that may work for us; `peer` becomes its credentials. */
static int is_hello(int server, const struct hello *hello, ssize_t received, const char *build,
                    struct ucred *peer)
{
    socklen_t size = sizeof *peer;
    return received == (ssize_t)sizeof *hello
           && hello->magic == MAGIC && strlen(build) == BUILD
           && memcmp(hello->build, build, BUILD) == 0
           && getsockopt(server, SOL_SOCKET, SO_PEERCRED, peer, &size) == 0
           && peer->uid == getauxval(AT_EUID);
}

/* Have the worker begin; false if it will not. To name another process in credentials the kernel
 * wants CAP_SYS_ADMIN of us: so the worker sees that it lends us nothing. */
static int send_go(int server, const struct descriptors *mine, const struct ucred *peer)
{
    unsigned char which = 0;
    struct ancillary extra = {
        .fds = {2, mine->here, mine->root},
        .nfds = 3,
        .credentials = {peer->pid, (uid_t)getauxval(AT_EUID), (gid_t)getauxval(AT_EGID)}};
    const int optional[] = {mine->container, mine->routing, mine->worker};
    for (size_t i = 0; i < sizeof optional / sizeof *optional; i++)
        if (optional[i] >= 0) {
            which |= (unsigned char)(1 << i);
            extra.fds[extra.nfds++] = optional[i];
        }
    struct iovec part = {&which, 1};
    return mine->here >= 0 && mine->root >= 0 && send_all(server, &part, 1, &extra);
}

/* --- jobs in the container ---------------------------------------------------------------------- */

/* The worker's process may not enter a namespace; it would have to send another process there, which
 * takes long to wake up. We are there already, so we read and write kernel parameters for it (steps.h). */

/* Do the job that has come; false if there will be no more. */
static int serve_job(int server, const struct descriptors *mine)
{
    static char *job;
    size_t have = 1;
    if (!job && !(job = allocate(2 * MAX_JOB)))
        return 0;
    ssize_t size = recv(mine->jobs, job, MAX_JOB, MSG_DONTWAIT);
    if (size <= 0)
        return size < 0 && (errno == EAGAIN || errno == EINTR);
    char *answer = job + size; /* in the same page, mostly */
    *answer = 'n';
    if (enter_container(mine->container, server))
        have = perform_job(job, (size_t)size, answer, MAX_JOB);
    send(mine->jobs, answer, have, MSG_NOSIGNAL);
    return 1;
}

/* --- the reply ------------------------------------------------------------------------------- */

struct reply {
    unsigned char kind, code;
    uint32_t size; /* of the output */
} __attribute__((packed));

/* Write the output to stdout; 0, or why that failed. `written` becomes how much of it was written. */
static int write_output(const char *data, size_t size, size_t *written)
{
    signal(SIGPIPE, SIG_IGN);
    for (*written = 0; *written < size;) {
        ssize_t n = write(1, data + *written, size - *written);
        if (n < 0 && !await_ready(1, POLLOUT))
            return errno;
        *written += n < 0 ? 0 : (size_t)n;
    }
    return 0;
}

/* Write the output; returns the exit code. The verb is over, so that signals may end us. */
static int print_output(const char *data, size_t size, int code)
{
    size_t written;
    for (size_t i = 0; size && i < sizeof interrupting / sizeof *interrupting; i++)
        signal(interrupting[i], SIG_DFL);
    sigprocmask(SIG_SETMASK, &initial_mask, NULL);
    int error = write_output(data, size, &written);
    if (error)
        dprintf(2, "cni: cannot write to stdout: %s\n", strerror(error));
    return error ? 1 : code;
}

/* Write an ADD's result, and report to the worker; 0, or how much was written before it failed + 1.
 * As without a server, the three signals do nothing now: the result is decided. */
static size_t print_result(int server, const char *data, size_t size)
{
    size_t written;
    int error = write_output(data, size, &written);
    const unsigned char report[] = {error ? 'f' : 'w', (unsigned char)error};
    send(server, report, sizeof report, MSG_NOSIGNAL);
    if (error && written)
        dprintf(2, "cni: cannot write to stdout: %s\n", strerror(error));
    return error ? written + 1 : 0;
}

enum outcome { NOT_BEGUN, TURNED_AWAY, LOST, DONE };

/* Wait for bytes of the reply, and do jobs meanwhile; how many, or 0 if the worker is gone. */
static size_t receive(int server, struct descriptors *mine, char *data, size_t room)
{
    for (;;) {
        struct pollfd ready[] = {{.fd = server, .events = POLLIN}, {.fd = mine->jobs, .events = POLLIN}};
        int n = ppoll(ready, 2, NULL, &initial_mask);
        if (pending_signal) {
            unsigned char number = (unsigned char)pending_signal;
            pending_signal = 0;
            signal_forwarded = 1;
            send(server, &number, 1, MSG_NOSIGNAL | MSG_DONTWAIT); /* if the worker is gone, recv tells */
        }
        if (n > 0 && ready[1].revents && !serve_job(server, mine)) {
            close(mine->jobs);
            mine->jobs = -1;
        }
        if (n <= 0 || !ready[0].revents)
            continue;
        ssize_t got = recv(server, data, room, 0);
        if (got >= 0 || errno != EINTR)
            return got > 0 ? (size_t)got : 0;
    }
}

/* Wait for the reply and write its output; `code` becomes the exit code if it is DONE. */
static enum outcome await_reply(int server, struct descriptors *mine, int *code)
{
    struct reply reply = {0, 0, 0};
    size_t have = 0, room = 4096, failed = 0;
    char *data = allocate(room);
    while (data && (have < sizeof reply || have - sizeof reply < reply.size)) {
        size_t got = receive(server, mine, data + have, room - have);
        have += got;
        if (got && *data == 'N')
            return NOT_BEGUN;
        if (!got || (*data != 'X' && (*data != 'W' || failed)))
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
        if (data && *data == 'W' && have - sizeof reply >= reply.size) {
            failed = print_result(server, data + sizeof reply, reply.size);
            *code = reply.code;
            if (!failed)
                return DONE;
            have = 0; /* the worker undoes the ADD, and replies with the error */
        }
    }
    if (!data)
        return LOST;
    *code = reply.code;
    if (failed > 1)
        return DONE; /* an error behind half a result is no JSON */
    *code = print_output(data + sizeof reply, reply.size, reply.code);
    return DONE;
}

/* Have the server at `path` run the plugin. If the outcome is DONE, `code` is the exit code. */
static enum outcome ask(const char *path, const char *build, const char *data, size_t size, int *code)
{
    int server = connect_to(path);
    if (server < 0)
        return NOT_BEGUN;
    struct descriptors mine = {-1, -1, -1, -1, -1, -1};
    struct hello hello;
    struct ucred peer;
    enum outcome outcome = NOT_BEGUN;
    int sent = send_request(server, data, size);
    if (sent)
        mine = collect_descriptors(server);
    /* a long request is not read by who turns us away */
    ssize_t first = sent || errno == EPIPE ? receive_first(server, &hello) : -1;
    if (is_turned_away(&hello, first))
        outcome = TURNED_AWAY;
    else if (sent && is_hello(server, &hello, first, build, &peer) && send_go(server, &mine, &peer))
        outcome = await_reply(server, &mine, code);
    if (outcome != DONE)
        close_all(server, &mine);
    return outcome;
}

/* The same again and again, as long as the server turns us away and nothing else can help. */
static enum outcome ask_again(const char *path, const char *build, const char *data, size_t size,
                              int *code)
{
    enum outcome outcome = TURNED_AWAY;
    int left = CNI_PATIENCE_MS * CNI_PATIENCE_ALONE / CNI_PAUSE_MS;
    while (outcome == TURNED_AWAY && left-- && !pending_signal) {
        struct timespec pause = {0, CNI_PAUSE_MS * 1000000L};
        ppoll(NULL, 0, &pause, &initial_mask);
        outcome = ask(path, build, data, size, code);
    }
    return outcome;
}

static int is_for_server(const char *name, const char *command)
{
    if (!command || !*command || arguments[0] == NULL || arguments[1] != NULL || !name)
        return 0;
    const char *choice = getenv("CNI_SERVER");
    return strcmp(name, "cni") != 0 && !(choice && strcmp(choice, "off") == 0);
}

/* Whether 0, 1 and 2 are open. Otherwise the socket would get one of these numbers. */
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
    find_ourselves();
    const char *slash = strrchr(self, '/');
    const char *command = getenv("CNI_COMMAND");
    char build[32];
    if (!is_for_server(slash ? slash + 1 : self, command)
        || !script_setting("\ncni_build=", '\n', build, sizeof build))
        run_by_exec();
    const char *path = getenv("CNI_SERVER_SOCKET");
    if (!path || !*path)
        path = CNI_SOCKET;
    if (access(path, F_OK) < 0 || !has_standard_streams())
        run_by_exec();

    /* before connecting, so that no worker waits for a runtime that is slow to write */
    size_t size = 0;
    int have_stdin = strcmp(command, "VERSION") != 0;
    char *data = have_stdin ? read_stdin(&size) : NULL;
    if (have_stdin && !data)
        run_by_exec(); /* unreadable: Python says why */
    if (size > MAX_STDIN)
        run_by_exec_with(data, size, have_stdin);
    watch_signals();

    int code = 1;
    enum outcome outcome = ask(path, build, data, size, &code);
    if (outcome == TURNED_AWAY && is_alone())
        outcome = ask_again(path, build, data, size, &code);
    if (outcome == DONE)
        _exit(code);
    sigprocmask(SIG_SETMASK, &initial_mask, NULL); /* signals that came meanwhile are delivered now */
    /* Verbs that may be repeated are repeated. An ADD is not: a DEL has to undo it first. */
    if (outcome == LOST && strcmp(command, "ADD") == 0)
        fail("the cni server ended in the middle of the request",
             "the runtime takes back what was done by DEL; then try again", 11);
    if (pending_signal || signal_forwarded)
        fail("interrupted by a signal", "nothing more was done; try again", 999);
    run_by_exec_with(data, size, have_stdin);
}
