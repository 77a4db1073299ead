/*
 * Starts the interpreter of the self-contained file (docs/self-contained.md).
 *
 *     client ELF │ image: the interpreter, an ELF for a fixed address │ snapshot │ zip
 *
 * What execve(2) does for a program, done in this process: the image's segments are mapped from our own
 * file, the auxiliary vector on the stack is made to name them, and we jump to the entry. The client
 * stays small, so that a request that a server answers never touches a page of the interpreter.
 *
 * A request begins with the snapshot: the memory of an interpreter that has started and imported what
 * requests need. It takes the place of the image's own data. If anything is against that, the request
 * begins without; CNI_DEBUG=start has that said on stderr, with the reason.
 *
 * Damage: the size is compared at every start, which costs a system call, and so is the checksum of the
 * headers, which say what is mapped where. The checksum of 15 MB would take longer than most requests. So
 * it is compared when it is needed: when the interpreter crashes or
 * cannot go on, which is what damage leads to. Then the operator is told which of the two it was.
 */

#define _GNU_SOURCE
#include "image.h"

#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000 /* Linux 4.17 */
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

/* A part of the snapshot: pages for `address`, whose first `filled` bytes are at `offset` of the file. */
struct part {
    uint64_t address, size, filled, offset;
};

enum { MAX_PARTS = 16 };

struct snapshot {
    uint64_t page;            /* of the system on which it was made; 0: there is none */
    uint32_t replaced, count; /* the image's own data are in the first parts; the others were allocated */
    struct part parts[MAX_PARTS];
};

/* Where the image is; tools/interpreter/image.py fills it in. */
struct image {
    char magic[16];
    uint64_t start, size; /* of the image, in bytes */
    uint64_t end;         /* of the file */
    uint32_t checksum;    /* CRC-32 of everything from `start` to `end` */
    uint32_t headers;     /* CRC-32 of the image's first bytes, as many as struct program has, then of: */
    struct snapshot snapshot;
};
static const volatile struct image image = {.magic = "cni-image"};

/* Which pages of the snapshot requests write to (tools/interpreter/touched.py). The first `always` runs
 * are for every request, the others for those that do more than tell a version. */
enum { MAX_RUNS = 512 };

struct touched {
    char magic[16];
    uint32_t always, count;
    struct {
        uint32_t page, count;
    } runs[MAX_RUNS];
};
static const volatile struct touched touched = {.magic = "cni-touched"};

enum { MAX_SEGMENTS = 8 };
static const int crashes[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGABRT};
static const char *program; /* the path that was executed */
static struct stat mapped;  /* the file that has the image: our own, or the one beside it */

/* --- what is wrong ------------------------------------------------------------------------------ */

static void complain(const char *msg, const char *details) __attribute__((noreturn));
static void complain(const char *msg, const char *details)
{
    char text[1024];
    const char *command = getenv("CNI_COMMAND");
    int for_runtime = command && *command;
    int n = snprintf(text, sizeof text,
                     for_runtime
                         ? "{\n    \"code\": 999,\n    \"msg\": \"%s\",\n    \"details\": \"%s\"\n}\n"
                         : "cni: %s: %s\n",
                     msg, details);
    if (n > 0 && write(for_runtime ? 1 : 2, text, (size_t)n) < 0)
        _exit(1);
    _exit(1);
}

static void complain_damaged(const char *what) __attribute__((noreturn));
static void complain_damaged(const char *what)
{
    char details[256];
    snprintf(details, sizeof details, "%s; copy or download the file again, then run its install", what);
    complain("cannot start: this program's file is damaged", details);
}

static uint32_t checksum(uint32_t crc, const unsigned char *data, size_t size)
{
    static uint32_t table[256];
    for (uint32_t i = 0; !table[255] && i < 256; i++) {
        table[i] = i;
        for (int bit = 0; bit < 8; bit++)
            table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320 : 0);
    }
    crc = ~crc;
    for (size_t i = 0; i < size; i++)
        crc = crc >> 8 ^ table[(crc ^ data[i]) & 0xff];
    return ~crc;
}

/* Whether the file is as it was built; also if it cannot be read, or is another one by now. */
static int is_intact(void)
{
    unsigned char data[16384];
    uint64_t at = image.start;
    uint32_t crc = 0;
    struct stat status;
    int fd = image_open(program);
    if (fd < 0)
        return 1;
    if (fstat(fd, &status) < 0 || status.st_dev != mapped.st_dev || status.st_ino != mapped.st_ino) {
        close(fd);
        return 1;
    }
    while (at < image.end) {
        size_t wanted = image.end - at < sizeof data ? (size_t)(image.end - at) : sizeof data;
        ssize_t n = pread(fd, data, wanted, (off_t)at);
        if (n < 0)
            return 1;
        if (n == 0)
            return 0;
        crc = checksum(crc, data, (size_t)n);
        at += (uint64_t)n;
    }
    close(fd);
    return crc == image.checksum;
}

/* The interpreter has crashed: by damage, or else in the way that the signal stands for. A fault comes
 * again when we return, one that was sent does not. One that this thread has sent to itself is a question
 * (tools/interpreter/src/native.c) or abort(3), and both go on by themselves. */
static void on_crash(int number, siginfo_t *info, void *context)
{
    (void)context;
    signal(number, SIG_DFL);
    if (!is_intact())
        complain_damaged("its checksum differs");
    if (info->si_code <= 0 && info->si_code != SI_TKILL)
        kill(getpid(), number);
}

static void watch_crashes(void)
{
    static char room[64 << 10]; /* the interpreter's own stack may be what is broken */
    const stack_t stack = {.ss_sp = room, .ss_size = sizeof room};
    struct sigaction action = {.sa_sigaction = on_crash,
                               .sa_flags = SA_NODEFER | SA_SIGINFO | SA_ONSTACK};
    sigaltstack(&stack, NULL);
    for (size_t i = 0; i < sizeof crashes / sizeof *crashes; i++)
        sigaction(crashes[i], &action, NULL);
}

/* --- mapping ------------------------------------------------------------------------------------ */

struct program {
    Elf64_Ehdr header;
    Elf64_Phdr segments[MAX_SEGMENTS];
};

/* Read the image's headers. Compare the file's size, and the checksum of them and the snapshot's. */
static void read_program(int fd, struct program *loaded, const struct snapshot *snapshot)
{
    char text[128];
    if (fstat(fd, &mapped) == 0 && (uint64_t)mapped.st_size < image.end) {
        snprintf(text, sizeof text, "it has %lld of %llu bytes", (long long)mapped.st_size,
                 (unsigned long long)image.end);
        complain_damaged(text);
    }
    ssize_t n = pread(fd, loaded, sizeof *loaded, (off_t)image.start);
    if (n < 0)
        complain("cannot start: this program's file cannot be read", strerror(errno));
    if (n != (ssize_t)sizeof *loaded
        || checksum(checksum(0, (const unsigned char *)loaded, sizeof *loaded),
                    (const unsigned char *)snapshot, sizeof *snapshot)
               != image.headers)
        complain_damaged("the checksum of the interpreter's headers differs");
    const Elf64_Ehdr *header = &loaded->header;
    if (memcmp(header->e_ident, ELFMAG, SELFMAG) != 0
        || header->e_type != ET_EXEC || header->e_phoff != sizeof *header
        || header->e_phentsize != sizeof(Elf64_Phdr) || header->e_phnum > MAX_SEGMENTS)
        complain_damaged("the interpreter in it cannot be found");
}

static void complain_unmapped(const char *why) __attribute__((noreturn));
static void complain_unmapped(const char *why)
{
    if (!is_intact()) /* then the addresses are nonsense */
        complain_damaged("its checksum differs");
    complain("cannot start: the interpreter cannot be mapped", why);
}

/* Map one range at its address; why that cannot be, or NULL. */
static const char *try_map(uintptr_t start, size_t size, int access, int flags, int fd, off_t offset)
{
    void *wanted = (void *)start;
    void *got = mmap(wanted, size, access, flags | MAP_PRIVATE, fd, offset);
    if (got == wanted)
        return NULL;
    if (got == MAP_FAILED && errno == ENOMEM)
        return "there is not enough memory, or its limit (ulimit -v) is too low";
    if (got == MAP_FAILED && (errno == EACCES || errno == EPERM))
        return "a security policy of this system forbids it";
    if (got == MAP_FAILED && errno != EEXIST)
        return strerror(errno);
    if (got != MAP_FAILED) /* before 4.17 the kernel chooses another address */
        munmap(got, size);
    return "its addresses are in use";
}

/* Never returns if it cannot be mapped. */
static void map_at(uintptr_t start, size_t size, int access, int flags, int fd, off_t offset)
{
    const char *problem = try_map(start, size, access, flags, fd, offset);
    if (problem)
        complain_unmapped(problem);
}

/* Map a segment: what the file has of it, zeros behind that. `flags` says what is with what is there. */
static void map_segment(int fd, const Elf64_Phdr *segment, int flags)
{
    uintptr_t page = (uintptr_t)getauxval(AT_PAGESZ), mask = page - 1;
    uintptr_t first = segment->p_vaddr & ~mask;
    uintptr_t filled = segment->p_vaddr + segment->p_filesz;
    uintptr_t end = (segment->p_vaddr + segment->p_memsz + mask) & ~mask;
    uintptr_t mapped = (filled + mask) & ~mask;
    int access = (segment->p_flags & PF_R ? PROT_READ : 0) | (segment->p_flags & PF_W ? PROT_WRITE : 0)
                 | (segment->p_flags & PF_X ? PROT_EXEC : 0);
    off_t offset = (off_t)(image.start + segment->p_offset - (segment->p_vaddr - first));
    map_at(first, mapped - first, access, flags, fd, offset);
    if (segment->p_memsz > segment->p_filesz && filled & mask)
        memset((void *)filled, 0, mapped - filled);
    if (end > mapped)
        map_at(mapped, end - mapped, access, flags | MAP_ANONYMOUS, -1, 0);
}

/* Map all of it; the address at which its headers are. */
static uintptr_t map_program(int fd, const struct program *loaded)
{
    uintptr_t headers = 0;
    for (int i = 0; i < loaded->header.e_phnum; i++) {
        const Elf64_Phdr *segment = &loaded->segments[i];
        if (segment->p_type != PT_LOAD)
            continue;
        map_segment(fd, segment, MAP_FIXED_NOREPLACE);
        if (segment->p_offset == 0)
            headers = segment->p_vaddr + loaded->header.e_phoff;
    }
    return headers;
}

/* --- the snapshot ------------------------------------------------------------------------------- */

static int is_off(const char *variable)
{
    const char *value = getenv(variable);
    return value && strcmp(value, "off") == 0;
}

/* Why this process does not begin with the snapshot; NULL if it does. */
static const char *why_not(const struct snapshot *snapshot, char **arguments)
{
    const char *command = getenv("CNI_COMMAND");
    if (!command || !*command || !arguments[0] || arguments[1])
        return "it is for requests";
    if (is_off("CNI_SNAPSHOT"))
        return "CNI_SNAPSHOT is off";
    if (is_off("CNI_STANDINS"))
        return "CNI_STANDINS is off";
    if (!snapshot->page)
        return "this file has none";
    if (snapshot->page != getauxval(AT_PAGESZ))
        return "it was made for another page size";
    return NULL;
}

static const char *map_part(int fd, const struct part *part, int flags)
{
    int access = PROT_READ | PROT_WRITE;
    const char *problem = NULL;
    if (part->filled)
        problem = try_map(part->address, part->filled, access, flags, fd, (off_t)part->offset);
    if (!problem && part->size > part->filled) {
        problem = try_map(part->address + part->filled, part->size - part->filled, access,
                          flags | MAP_ANONYMOUS, -1, 0);
        if (problem && part->filled && flags != MAP_FIXED)
            munmap((void *)part->address, part->filled);
    }
    return problem;
}

static void unmap_allocated(const struct snapshot *snapshot, uint32_t end)
{
    for (uint32_t i = snapshot->replaced; i < end; i++)
        munmap((void *)snapshot->parts[i].address, snapshot->parts[i].size);
}

/* Map what was allocated; what the problem is, or NULL. */
static const char *map_allocated(int fd, const struct snapshot *snapshot)
{
    for (uint32_t i = snapshot->replaced; i < snapshot->count; i++) {
        const char *problem = map_part(fd, &snapshot->parts[i], MAP_FIXED_NOREPLACE);
        if (problem) {
            unmap_allocated(snapshot, i);
            return problem;
        }
    }
    return NULL;
}

/* Put the snapshot's data in the place of the image's own, which comes back if that fails. */
static const char *map_data(int fd, const struct program *loaded, const struct snapshot *snapshot)
{
    const char *problem = NULL;
    for (uint32_t i = 0; !problem && i < snapshot->replaced; i++)
        problem = map_part(fd, &snapshot->parts[i], MAP_FIXED);
    if (!problem)
        return NULL;
    unmap_allocated(snapshot, snapshot->count);
    for (int i = 0; i < loaded->header.e_phnum; i++) {
        const Elf64_Phdr *segment = &loaded->segments[i];
        if (segment->p_type == PT_LOAD && segment->p_flags & PF_W)
            map_segment(fd, segment, MAP_FIXED);
    }
    return problem;
}

static int is_in(const struct snapshot *snapshot, uint64_t start, uint64_t size)
{
    for (uint32_t i = 0; i < snapshot->count; i++) {
        const struct part *part = &snapshot->parts[i];
        if (start >= part->address && start + size <= part->address + part->size)
            return 1;
    }
    return 0;
}

/* Copy the pages that the request writes to before it does. One at a time each would be a page fault,
 * which takes four times as long. Nothing depends on it: an older kernel says EINVAL. */
static void copy_touched(const struct snapshot *snapshot)
{
    const char *command = getenv("CNI_COMMAND");
    int is_short = command && strcmp(command, "VERSION") == 0;
    uint32_t count = is_short ? touched.always : touched.count;
    for (uint32_t i = 0; i < count && i < MAX_RUNS; i++) {
        uint64_t start = touched.runs[i].page * snapshot->page, size = touched.runs[i].count * snapshot->page;
        if (!is_in(snapshot, start, size)
            || madvise((void *)(uintptr_t)start, (size_t)size, MADV_POPULATE_WRITE) < 0)
            return;
    }
}

static void report(const char *problem)
{
    char text[256];
    const char *wanted = getenv("CNI_DEBUG");
    if (!wanted || strcmp(wanted, "start") != 0)
        return;
    int n = snprintf(text, sizeof text, "cni: starts %s the snapshot%s%s\n",
                     problem ? "without" : "with", problem ? ": " : "", problem ? problem : "");
    if (n > 0 && write(2, text, (size_t)n) < 0)
        return;
}

/* Map the image, with the snapshot if that is possible; the address at which its headers are. */
static uintptr_t map_all(int fd, const struct program *loaded, const struct snapshot *snapshot,
                         char **arguments)
{
    const char *problem = why_not(snapshot, arguments);
    uintptr_t headers = map_program(fd, loaded);
    if (!problem)
        problem = map_allocated(fd, snapshot);
    if (!problem)
        problem = map_data(fd, loaded, snapshot);
    if (!problem)
        copy_touched(snapshot);
    report(problem);
    return headers;
}

/* --- starting ----------------------------------------------------------------------------------- */

/* Have the auxiliary vector, which is behind the environment on the stack, describe the image. */
static void describe(const struct program *loaded, uintptr_t headers, char **arguments)
{
    char **at = arguments;
    for (int part = 0; part < 2; part++) /* the arguments, then the environment */
        while (*at++)
            ;
    for (Elf64_auxv_t *entry = (Elf64_auxv_t *)at; entry->a_type != AT_NULL; entry++) {
        if (entry->a_type == AT_PHDR)
            entry->a_un.a_val = headers;
        else if (entry->a_type == AT_PHNUM)
            entry->a_un.a_val = loaded->header.e_phnum;
        else if (entry->a_type == AT_ENTRY)
            entry->a_un.a_val = loaded->header.e_entry;
    }
}

/* Go to `entry` as the kernel would, with the number of arguments at the top of the stack. */
static void jump(uintptr_t entry, void *stack) __attribute__((noreturn));
static void jump(uintptr_t entry, void *stack)
{
#if defined(__x86_64__)
    __asm__ volatile("mov %0, %%rsp\n\txor %%edx, %%edx\n\txor %%ebp, %%ebp\n\tjmp *%1"
                     :
                     : "r"(stack), "r"(entry)
                     : "memory", "rdx");
#elif defined(__aarch64__)
    __asm__ volatile("mov sp, %0\n\tmov x0, #0\n\tmov x29, #0\n\tmov x30, #0\n\tbr %1"
                     :
                     : "r"(stack), "r"(entry)
                     : "memory", "x0", "x30");
#else
#error "this machine's jump is missing"
#endif
    __builtin_unreachable();
}

void image_run(const char *self, int fd, char **arguments)
{
    struct program loaded;
    const struct snapshot snapshot = image.snapshot;
    program = self;
    if (fd < 0)
        complain("cannot start: this program's file cannot be opened", strerror(errno));
    read_program(fd, &loaded, &snapshot);
    watch_crashes();
    describe(&loaded, map_all(fd, &loaded, &snapshot, arguments), arguments);
    close(fd);
    jump(loaded.header.e_entry, arguments - 1);
}
