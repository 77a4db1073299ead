"""Which build this is. The build writes this module anew; in the source tree it says "source"."""

ID = "source"
# The interpreters whose extension modules the file carries, such as "cpython-311-x86_64-linux-gnu".
ABIS: tuple[str, ...] = ()
