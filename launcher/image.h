/* The interpreter's image behind the native client: launcher/image.c. */

#ifndef IMAGE_H
#define IMAGE_H

/* Map the image and go on as its program. Never returns: if that is not possible, or the file is
 * damaged, it says so, on stdout for a runtime and on stderr for a person, and ends the process.
 *
 * `self` is the path that was executed; `arguments` is what main was given, in its place on the stack.
 * `fd` is the file with the image, or -1 with errno.
 */
void image_run(const char *self, int fd, char **arguments) __attribute__((noreturn));

/* Open the file with the image: our own, or the one beside it (beside.h). -1 with errno if that cannot be
 * done; client.c has it. */
int image_open(const char *self);

#endif
