/*
 * Reading and writing kernel parameters of the network namespace that the process is in: for the native
 * client (client.c), and for a visit of the interpreter's (tools/interpreter/src/native.c).
 *
 *     job      's', or 'S' to stop after the first step that fails; then the steps, each
 *              'r' (read), 'w' (write) or 'e' (write unless equal), name NUL value NUL
 *     answer   's', then for each step: errno, size of the value that was read or NOTHING, value;
 *              or 'n': we cannot enter the namespace
 *
 * The other side is cni/netns/jobs.py. Whoever includes this has open_cloexec(path, flags).
 */

enum { MAX_VALUE = 4096 };

struct step_outcome {
    int32_t error;
    uint32_t size;
};
static const uint32_t NOTHING = UINT32_MAX;

static int read_parameter(const char *path, char *value, uint32_t *size)
{
    int fd = open_cloexec(path, O_RDONLY);
    ssize_t n = fd < 0 ? -1 : read(fd, value, MAX_VALUE);
    int error = n < 0 ? errno : 0;
    if (fd >= 0)
        close(fd);
    *size = n < 0 ? NOTHING : (uint32_t)n;
    return error;
}

static int write_parameter(const char *path, const char *value)
{
    int fd = open_cloexec(path, O_WRONLY);
    int error = fd < 0 || write(fd, value, strlen(value)) < 0 ? errno : 0;
    if (fd >= 0)
        close(fd);
    return error;
}

/* Whether it is a parameter below net/. No plugin needs another one. */
static int is_parameter(const char *name)
{
    size_t size = strlen(name);
    return strncmp(name, "net/", 4) == 0 && !strstr(name, "/../")
           && (size < 3 || strcmp(name + size - 3, "/..") != 0);
}

/* Do one step; `value` becomes the value that was read. */
static struct step_outcome perform_step(char kind, const char *name, const char *wanted, char *value)
{
    struct step_outcome done = {ENOENT, NOTHING};
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

/* Do a job of `size` bytes, in the container's namespace; returns the size of the answer. */
static size_t perform_job(const char *job, size_t size, char *answer, size_t room)
{
    const char *at = job + 1, *end = job + size;
    size_t have = 1;
    *answer = 's';
    while (at < end && have + sizeof(struct step_outcome) + MAX_VALUE <= room) {
        char kind = *at++;
        const char *name = at;
        const char *wanted = memchr(name, 0, (size_t)(end - name));
        if (!wanted || ++wanted == end || !memchr(wanted, 0, (size_t)(end - wanted)))
            break;
        struct step_outcome done =
            perform_step(kind, name, wanted, answer + have + sizeof done);
        memcpy(answer + have, &done, sizeof done);
        have += sizeof done + (done.size == NOTHING ? 0 : done.size);
        if (done.error && *job == 'S')
            break;
        at = wanted + strlen(wanted) + 1;
    }
    return have;
}
