"""Writes the frozen modules as C source; run by the interpreter that was just built.

    python freeze.py SCRIPTS MODULES OUTPUT

SCRIPTS is Tools/scripts of CPython, whose deepfreeze.py writes one code object as C. MODULES is a
directory: `list` has a line for each module (its name, the name in tracebacks, then what it is: `p`
a package, `r` used by requests, `d` deep-frozen, else `z`, compressed), in the order in which the
interpreter looks; each source is a file of the module's name. OUTPUT is a directory, in which
frozen.c, marshalled.bin and marshalled.s are written.

Only the standard library's modules that are in the source tree can be imported here.
"""

from __future__ import annotations

import ast
import marshal
import sys
import types
import zlib
from pathlib import Path
from typing import Any, NamedTuple, TextIO

_HEAD = """
#include "marshal.h"
#include <zlib.h>
struct entry_names;
extern const unsigned char cni_frozen_code[];

/* Interns the strings of a module, which CPython does for all of its own at the start. */
static int intern_all(PyCodeObject *const *codes, size_t count)
{
    for (size_t i = 0; i < count; i++)
        if (_PyStaticCode_InternStrings(codes[i]) < 0)
            return -1;
    return 0;
}

/* The code object that is marshalled and compressed in `packed` bytes. */
static PyObject *cni_inflate(const unsigned char *from, unsigned long packed, unsigned long size)
{
    unsigned long got = size;
    char *data = PyMem_RawMalloc(size);
    if (!data)
        return PyErr_NoMemory();
    PyObject *code = NULL;
    if (uncompress((unsigned char *)data, &got, from, packed) == Z_OK && got == size)
        code = PyMarshal_ReadObjectFromString(data, (Py_ssize_t)size);
    else
        PyErr_SetString(PyExc_ImportError, "a frozen module is damaged");
    PyMem_RawFree(data);
    return code;
}

int _Py_Deepfreeze_Init(void) { return 0; }
void _Py_Deepfreeze_Fini(void) {}
"""

_GETTER = """
static PyObject *get_{symbol}(void)
{{
    static PyCodeObject *const codes[] = {{{codes}}};
    static int interned;
    if (!interned && intern_all(codes, sizeof codes / sizeof *codes) < 0)
        return NULL;
    interned = 1;
    {symbol}_patch();
    return Py_NewRef((PyObject *)&{symbol}_toplevel);
}}
"""

_COMPRESSED = """
static PyObject *get_{symbol}(void)
{{
    return cni_inflate(cni_frozen_code + {start}, {packed}, {size});
}}
"""

_TAIL = """
static const struct _frozen none[] = {{{{0}}}};
static const struct _frozen modules[] = {{
{entries}    {{0}},
}};
static const struct _module_alias aliases[] = {{
    {{"_frozen_importlib", "importlib._bootstrap"}},
    {{"_frozen_importlib_external", "importlib._bootstrap_external"}},
    {{"os.path", "posixpath"}},
    {{0, 0}},
}};
const struct _frozen *_PyImport_FrozenBootstrap = modules;
const struct _frozen *_PyImport_FrozenStdlib = none;
const struct _frozen *_PyImport_FrozenTest = none;
const struct _frozen *PyImport_FrozenModules = NULL;
const struct _module_alias *_PyImport_FrozenAliases = aliases;
"""

# The linker copies the marshalled code in; as C text it would take the compiler a minute.
_ASSEMBLY = """
.section .rodata
.global cni_frozen_code
.balign 16
cni_frozen_code:
.incbin "{path}"
.section .note.GNU-stack,"",%progbits
"""


_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Entry(NamedTuple):
    """A line of the list."""

    name: str
    shown_as: str
    kinds: str


def main(scripts: str, modules: str, output: str) -> None:
    """See the module's text."""
    sys.path.insert(0, scripts)
    lines = Path(modules, "list").read_text().splitlines()
    blob = bytearray()
    rows = []
    with Path(output, "frozen.c").open("w") as file:
        printer = _printer(file)
        file.write(_HEAD)
        for entry in (Entry(*line.split(" ")) for line in lines):
            source = Path(modules, entry.name).read_bytes()
            code = _compile(entry, source)
            is_package = int("p" in entry.kinds)
            if "d" in entry.kinds:
                getter = _write_deep(printer, file, entry.name, code)
            else:
                getter, data = _write_compressed(file, entry.name, code, len(blob))
                blob += data
            rows.append(f'    {{"{entry.name}", NULL, 0, {is_package}, {getter}}},\n')
        file.write('#include "internal/pycore_import.h"\n')
        file.write(_TAIL.format(entries="".join(rows)))
    blob_path = Path(output, "marshalled.bin")
    blob_path.write_bytes(blob)
    Path(output, "marshalled.s").write_text(_ASSEMBLY.format(path=blob_path.name))


def _compile(entry: Entry, source: bytes) -> types.CodeType:
    """The code of a module. `cni --help` is made of docstrings; those of all others go."""
    ours = entry.name.partition(".")[0] == "cni"
    tree = ast.parse(source)
    if "r" in entry.kinds:
        for node in ast.walk(tree):
            _drop_docstring(node)
            _drop_annotations(node)
    path = f"<frozen {entry.shown_as}>"
    return compile(tree, path, "exec", dont_inherit=True, optimize=0 if ours else 2)


def _drop_docstring(node: ast.AST) -> None:
    if isinstance(node, _DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
        first = node.body.pop(0)
        node.body = node.body or [ast.copy_location(ast.Pass(), first)]


def _drop_annotations(node: ast.AST) -> None:
    """Those of functions, which nothing reads; those of classes are what msgspec reads."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        node.returns = None
    elif isinstance(node, ast.arg):
        node.annotation = None


def _write_compressed(
    file: TextIO, name: str, code: types.CodeType, start: int
) -> tuple[str, bytes]:
    """Write the getter of a module whose code will be at `start`; its name, and the code."""
    symbol, data = name.replace(".", "_dot_"), marshal.dumps(code)
    packed = zlib.compress(data, 9)
    numbers = {"start": start, "packed": len(packed), "size": len(data)}
    file.write(_COMPRESSED.format(symbol=symbol, **numbers))
    return f"get_{symbol}", packed


def _printer(file: TextIO) -> Any:
    from deepfreeze import Printer

    return Printer(file)


def _write_deep(printer: Any, file: TextIO, name: str, code: object) -> str:
    """Write the code object of a module; the name of the function that returns it."""
    symbol = name.replace(".", "_dot_")
    before = len(printer.interns)
    printer.generate(f"{symbol}_toplevel", code)
    # each is `_PyStaticCode_InternStrings(OBJECT)`
    codes = ", ".join(call.partition("(")[2][:-1] for call in printer.interns[before:])
    file.write(f"static void {symbol}_patch(void)\n{{\n{''.join(printer.patchups)}\n}}\n")
    printer.patchups.clear()
    file.write(_GETTER.format(symbol=symbol, codes=codes))
    return f"get_{symbol}"


if __name__ == "__main__":
    main(*sys.argv[1:])
