/*
 * The snapshot (docs/self-contained.md): at build time the interpreter starts, imports what requests
 * need, and writes its memory to a file. The native client maps that instead of what the image has, and
 * the process goes on from there.
 *
 * Only the interpreter's memory is in it. The C library's own is apart (snapshot.ld): it is initialised
 * in every process as usual, so that thread pointer, stack protector, auxiliary vector, vDSO, malloc and
 * stdio are those of the process. What links the two is memory that the interpreter got from malloc.
 * So while the snapshot is recorded, memory comes from an area with a fixed address; afterwards malloc is
 * the C library's again, and what is in the area stays there for good when it is freed.
 *
 * A process that goes on from the snapshot is mostly short. What it writes to shall lie together, on pages that
 * can be had at once (launcher/image.c), and not here and there in the snapshot: so behind both areas there is
 * room, from which it gets memory first, by malloc as well as for small objects.
 *
 * A pointer in the snapshot to memory that is not in it (the stack, the C library's heap) would be a
 * defect that shows anywhere, any time. snapshot_write looks at every word, and refuses to write one.
 */

#define PY_SSIZE_T_CLEAN
#define _GNU_SOURCE
#include "Python.h"
#include "snapshot.h"
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

enum { PAGE = CNI_PAGE, ALIGNMENT = 16, MAPPINGS = 64 };
enum { BLOCKS = CNI_AREA, BLOCKS_SIZE = 32 << 20, ARENAS = BLOCKS + BLOCKS_SIZE, ARENAS_SIZE = 64 << 20 };
enum { ROOM = 512 << 10, ARENA = 1 << 20 };

extern char __executable_start[], _end[];           /* the image, */
extern char cni_snapshot_start[], cni_snapshot_end[]; /* and what is the interpreter's of it */

extern void *__real_malloc(size_t), *__real_calloc(size_t, size_t), *__real_realloc(void *, size_t);
extern void __real_free(void *);

struct block {
    size_t size; /* of what is behind this; a multiple of ALIGNMENT */
    struct block *next;
};

static int recording, resumed;
static char *blocks_end = (char *)(uintptr_t)BLOCKS, *arenas_end = (char *)(uintptr_t)ARENAS;
static char *room;           /* what a later process has for malloc: ROOM bytes */
static char *arena;          /* and its first arena */
static char in_use;          /* the room is, by a thread */
static struct block *unused; /* by address; in a later process those of the room */

int snapshot_is_resumed(void)
{
    return resumed;
}

/* --- memory ------------------------------------------------------------------------------------- */

static int is_recorded(const void *address)
{
    return (uintptr_t)address - BLOCKS < BLOCKS_SIZE + ARENAS_SIZE;
}

static size_t rounded(size_t size)
{
    return size ? (size + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1) : ALIGNMENT;
}

/* The first unused block in which there is room for `size` bytes, a multiple of ALIGNMENT; NULL if none. */
static struct block *take_unused(size_t size)
{
    struct block **link = &unused, *found;
    while ((found = *link) && found->size < size)
        link = &found->next;
    if (!found)
        return NULL;
    if (found->size < size + sizeof *found + ALIGNMENT) {
        *link = found->next;
    } else {
        struct block *rest = (struct block *)((char *)(found + 1) + size);
        *rest = (struct block){found->size - size - sizeof *rest, found->next};
        *link = rest;
        found->size = size;
    }
    return found;
}

/* `size` bytes of zeros. */
static void *take(size_t size)
{
    if (size > BLOCKS_SIZE)
        return NULL;
    size = rounded(size);
    struct block *found = take_unused(size);
    if (!found) {
        if (size > (uintptr_t)BLOCKS + BLOCKS_SIZE - (uintptr_t)blocks_end - sizeof *found)
            return NULL;
        found = (struct block *)blocks_end;
        blocks_end += sizeof *found + size;
        found->size = size;
    }
    found->next = NULL;
    return found + 1;
}

/* Make one block of two, if the second is unused and follows the first. */
static void join(struct block *first)
{
    struct block *second = first->next;
    if (!second || (char *)(first + 1) + first->size != (char *)second)
        return;
    first->size += sizeof *second + second->size;
    first->next = second->next;
    memset(second, 0, sizeof *second);
}

/* Have it for later. */
static void put_back(void *start)
{
    struct block *block = (struct block *)start - 1, **link = &unused, *before = NULL;
    while (*link && *link < block) {
        before = *link;
        link = &before->next;
    }
    block->next = *link;
    *link = block;
    join(block);
    if (before)
        join(before);
}

/* --- the room of a process that goes on ---------------------------------------------------------- */

/* A thread that finds it in use does without: it takes memory from the C library, and what it frees stays.
 * So nobody waits, and a child after fork(2) neither. */
static int enter_room(void)
{
    return !__atomic_test_and_set(&in_use, __ATOMIC_ACQUIRE);
}

static void leave_room(void)
{
    __atomic_clear(&in_use, __ATOMIC_RELEASE);
}

static int is_in_room(const void *start)
{
    return resumed && (uintptr_t)start - (uintptr_t)room < ROOM;
}

static void *take_from_room(size_t size)
{
    if (!resumed || !unused || size > ROOM || !enter_room())
        return NULL;
    struct block *found = take_unused(rounded(size));
    leave_room();
    return found ? found + 1 : NULL;
}

/* --- the allocator ------------------------------------------------------------------------------- */

void *__wrap_malloc(size_t size)
{
    if (recording)
        return take(size);
    void *got = take_from_room(size);
    return got ? got : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    int is_too_much = size && count > SIZE_MAX / 2 / size;
    if (recording)
        return is_too_much ? NULL : take(count * size);
    void *got = is_too_much ? NULL : take_from_room(count * size);
    return got ? memset(got, 0, count * size) : __real_calloc(count, size);
}

void __wrap_free(void *start)
{
    if (!is_recorded(start)) {
        __real_free(start);
    } else if (recording) {
        memset(start, 0, ((struct block *)start - 1)->size); /* zeros do not point anywhere */
        put_back(start);
    } else if (is_in_room(start) && enter_room()) {
        put_back(start);
        leave_room();
    }
}

void *__wrap_realloc(void *start, size_t size)
{
    if (!start)
        return __wrap_malloc(size);
    if (!is_recorded(start))
        return __real_realloc(start, size);
    size_t have = ((struct block *)start - 1)->size;
    if ((recording || is_in_room(start)) && size <= have && size > have / 2)
        return start;
    void *moved = __wrap_malloc(size);
    if (moved) {
        memcpy(moved, start, size < have ? size : have);
        __wrap_free(start);
    }
    return moved;
}

/* Where pymalloc has its arenas, and the interpreter its frames. */
static void *arena_alloc(void *context, size_t size)
{
    (void)context;
    if (!recording) {
        void *got = arena;
        if (got && size == ARENA) {
            arena = NULL;
            return got;
        }
        got = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return got == MAP_FAILED ? NULL : got;
    }
    if (size > (uintptr_t)ARENAS + ARENAS_SIZE - (uintptr_t)arenas_end)
        return NULL;
    void *got = arenas_end;
    arenas_end += (size + PAGE - 1) & ~(size_t)(PAGE - 1);
    return got;
}

static void arena_free(void *context, void *start, size_t size)
{
    (void)context;
    if (!is_recorded(start))
        munmap(start, size);
    else if (recording)
        memset(start, 0, size);
}

int snapshot_has(const void *address)
{
    const char *at = address;
    return is_recorded(at) || (at >= cni_snapshot_start && at < cni_snapshot_end);
}

void snapshot_begin(void)
{
    void *wanted = (void *)(uintptr_t)BLOCKS;
    void *got = mmap(wanted, BLOCKS_SIZE + ARENAS_SIZE, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (got != wanted) {
        fprintf(stderr, "snapshot: address %p is in use\n", wanted);
        exit(1);
    }
    PyObjectArenaAllocator allocator = {NULL, arena_alloc, arena_free};
    PyObject_SetArenaAllocator(&allocator);
    recording = 1;
}

void snapshot_make_room(void)
{
    room = (char *)(((uintptr_t)blocks_end + PAGE - 1) & -(uintptr_t)PAGE);
    blocks_end = room + ROOM;
    arena = arenas_end;
    arenas_end += ARENA;
}

/* --- writing ------------------------------------------------------------------------------------ */

struct range {
    uint64_t start, size; /* whole pages */
    uint64_t filled;      /* behind that there are zeros only */
};

/* What tools/interpreter/snapshot.py reads; behind it the ranges, as much as is filled. */
struct head {
    char magic[8];
    uint64_t page; /* of the system on which it was recorded, in bytes */
    struct range ranges[3];
};

struct mapping {
    uintptr_t start, end;
};

/* The mappings of this process that are not in the snapshot; how many, -1 if that is not known. */
static int find_foreign(struct mapping *found)
{
    char line[512];
    unsigned long start, end;
    int count = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps && count < MAPPINGS && fgets(line, sizeof line, maps)) {
        if (sscanf(line, "%lx-%lx", &start, &end) != 2 || strstr(line, "[vsyscall]"))
            continue;
        int in_image = start >= (uintptr_t)__executable_start && end <= (((uintptr_t)_end + PAGE - 1) & -(uintptr_t)PAGE);
        if (!in_image && !is_recorded((void *)start))
            found[count++] = (struct mapping){start, end};
    }
    int complete = maps && count && count < MAPPINGS && feof(maps);
    if (maps)
        fclose(maps);
    return complete ? count : -1;
}

/* How many words in a range point into one of the mappings; says where. */
static int count_foreign(const struct range *range, const struct mapping *foreign, int count)
{
    int problems = 0;
    const uintptr_t *word = (const uintptr_t *)range->start;
    const uintptr_t *end = (const uintptr_t *)(range->start + range->filled);
    for (; word < end; word++)
        for (int i = 0; *word > PAGE && i < count; i++)
            if (*word >= foreign[i].start && *word < foreign[i].end) {
                fprintf(stderr, "snapshot: %p has %#lx, which is not in it\n", (void *)word, (long)*word);
                problems++;
            }
    return problems;
}

static struct range range_of(const char *start, const char *end)
{
    struct range range = {(uintptr_t)start, ((size_t)(end - start) + PAGE - 1) & -(size_t)PAGE, 0};
    const char *last = start + range.size;
    while (last > start && !last[-1])
        last--;
    range.filled = ((size_t)(last - start) + PAGE - 1) & -(size_t)PAGE;
    return range;
}

static int write_all(int fd, const void *data, size_t size)
{
    for (const char *at = data; size; ) {
        ssize_t n = write(fd, at, size);
        if (n <= 0)
            return -1;
        at += n;
        size -= (size_t)n;
    }
    return 0;
}

int snapshot_write(const char *path)
{
    struct mapping foreign[MAPPINGS];
    int problems = 0, fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    recording = 0;
    int count = find_foreign(foreign); /* what it reads must not get into the room */
    resumed = 1;
    unused = (struct block *)room;
    if (unused)
        *unused = (struct block){ROOM - sizeof *unused, NULL};
    struct head head = {"snapsht", (uint64_t)sysconf(_SC_PAGESIZE), {
        range_of(cni_snapshot_start, cni_snapshot_end),
        range_of((char *)(uintptr_t)BLOCKS, blocks_end),
        range_of((char *)(uintptr_t)ARENAS, arenas_end),
    }};
    for (int i = 0; i < 3; i++)
        problems += count < 0 || count_foreign(&head.ranges[i], foreign, count);
    if (fd < 0 || problems || write_all(fd, &head, sizeof head) < 0)
        problems = 1;
    for (int i = 0; !problems && i < 3; i++)
        problems = write_all(fd, (void *)head.ranges[i].start, head.ranges[i].filled) < 0;
    if (problems)
        fprintf(stderr, "snapshot: %s is not written\n", path);
    return problems ? -1 : 0;
}
