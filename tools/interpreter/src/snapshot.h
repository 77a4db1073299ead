/* The interpreter's memory, written once at build time, with which later processes begin: snapshot.c. */

#ifndef SNAPSHOT_H
#define SNAPSHOT_H

/* Begin to record: from now on everything is allocated at addresses that a later process can have, too.
 * Called before anything is allocated. Ends the process if that is not possible. */
void snapshot_begin(void);

/* Whether the address is in what is recorded, or in what a process begins with. */
int snapshot_has(const void *address);

/* Have the objects that exist live for ever, without counting who uses them: immortal.c. */
void immortal_begin(void);

/* Have later objects lie in pools of their own: pools.c. The last one of each size is begun here. */
void pools_use_up(void);

/* Leave room for what later processes allocate. Called last, before the writing. */
void snapshot_make_room(void);

/* Write what was recorded to the file `path`. Returns 0, or -1 after it has said why on stderr. */
int snapshot_write(const char *path);

/* Whether this process has begun with a snapshot. */
int snapshot_is_resumed(void);

#endif
