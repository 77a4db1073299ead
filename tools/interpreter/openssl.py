"""OpenSSL as two static libraries, for the interpreter's `ssl`: a client of TLS 1.2 and 1.3.

Debian's source package with Debian's patches, without what no connection to a store needs: other
protocols, ciphers that nobody negotiates, engines, modules that would be loaded at run time, and
openssl.cnf, which is written for the node's own OpenSSL. With the machine's assembly: there AES and
elliptic curves take the same time whatever the key is.
A finished build stays in .cache/interpreter, apart from CPython's, which is built more often.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

from tools.interpreter import cpython
from tools.interpreter.cpython import Build, Target, environment
from tools.interpreter.sources import CACHE, HERE, PINS, fetch, run, unpack

_WITHOUT = """
    afalgeng aria async autoload-config bf blake2 camellia capieng cast cmp cms comp ct des
    dgram dsa dso dtls dynamic-engine ec2m engine filenames gost idea ktls legacy md4 mdc2
    module multiblock nextprotoneg ocb ocsp pic psk rc2 rc4 rfc3779 rmd160 scrypt seed shared
    siphash siv sm2 sm3 sm4 srp srtp ssl-trace static-engine tests tls1 tls1_1 tls1-method
    tls1_1-method ts ui-console whirlpool
"""
_WITH = ("enable-ec_nistp_64_gcc_128",)  # patches/openssl/small-p256.diff
_PATCHES = "patches/openssl/*.diff"
# Small: it is compressed in the file, and no key is exchanged more than a few times a second.
_OPTIMIZED = "-Os"
# Sections, because the annex takes what it calls.
_FLAGS = (
    *("-g0", "-fno-pie", "-fno-asynchronous-unwind-tables"),
    *("-ffunction-sections", "-fdata-sections"),
)
# Where certificates of authorities are looked for: /etc/ssl/cert.pem, /etc/ssl/certs.
_DIRECTORIES = ("--openssldir=/etc/ssl", "--prefix=/usr")
_JOBS = f"-j{os.cpu_count() or 1}"


def build(built: Build) -> Path:
    """The tree with libssl.a, libcrypto.a and their headers, compiled by `built`'s compiler.

    Raises BuildError.
    """
    folder = CACHE / f"openssl-{built.target.arch}-{_key(built.target)}"
    tree, log = folder / "openssl", folder / "log"
    if (folder / "finished").exists():
        return tree
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    upstream, debian = fetch("openssl")
    unpack(upstream, tree)
    unpack(debian, tree / "debian")
    cpython.apply_series(tree, log)
    for path in sorted(HERE.glob(_PATCHES)):
        cpython.patch(tree, path, log)
    env = environment() | built.target.tools | {"CC": "cc", "CFLAGS": _OPTIMIZED}
    env["PATH"] = f"{_compiler(built, folder)}:{env['PATH']}"
    options = [*_DIRECTORIES, *_WITH, *(f"no-{each}" for each in _WITHOUT.split())]
    run(["perl", "Configure", f"linux-{built.target.arch}", *options], log, cwd=tree, env=env)
    run(["make", _JOBS, "build_libs"], log, cwd=tree, env=env)
    (folder / "finished").touch()
    return tree


def _compiler(built: Build, folder: Path) -> Path:
    """Make a directory with a `cc` that has the flags with paths: OpenSSL keeps others as text."""
    headers = [word for path in built.target.headers for word in ("-idirafter", path)]
    flags = " ".join([*_FLAGS, f"-ffile-prefix-map={folder}=.", *headers])
    script = folder / "bin/cc"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {built.compiler} "$@" {flags}\n')
    script.chmod(0o755)
    return script.parent


def _key(target: Target) -> str:
    """Stands for everything that the build depends on."""
    pins, machine = (PINS["openssl"], PINS["musl"]), (target.arch, target.headers)
    options = (_WITH, _WITHOUT.split(), _DIRECTORIES, _OPTIMIZED, _FLAGS, cpython.EPOCH)
    digest = hashlib.sha256(repr((pins, machine, options)).encode())
    for path in sorted(HERE.glob(_PATCHES)):
        digest.update(path.read_bytes())
    digest.update(cpython.compiler_version(target))
    return digest.hexdigest()[:12]
