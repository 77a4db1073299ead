#!/bin/sh
# cni: the CNI plugins in one file. This script starts Python; the rest of the file is a zip archive.
# A container runtime runs it for every plugin and verb, so the usual way forks nothing.
cni_build=@BUILD_ID@
cni_python=''  # `cni install` writes the interpreter here; the padding keeps the archive in place @PAD@

# Installed, and called through a link beside the installed file: the usual way.
cni_root=${0%/*}/.cni-$cni_build
if [ -x "$cni_python" ] && [ -f "$cni_root/run.py" ]; then
    exec "$cni_python" -I -S "$cni_root/run.py" "$0" "$@"
fi

# Names no interpreter that was not tried: answers on stdout when a runtime asks, else on stderr.
complain() {
    if [ -n "$CNI_COMMAND" ]; then
        printf '{\n    "code": 999,\n    "msg": "%s",\n    "details": "%s"\n}\n' "$1" "$2"
    else
        printf 'cni: %s: %s\n' "$1" "$2" >&2
    fi
    exit 1
}

# Sets cni_python to $1 if that is Python 3.11 or newer; usually seen without running it (12 ms). One
# too old is kept for the last resort: it can at least say which version it is.
try() {
    [ -x "$1" ] && [ ! -d "$1" ] || return 1
    for cni_name in "$1.14" "$1.13" "$1.12" "$1.11"; do
        [ "$1" -ef "$cni_name" ] && cni_python=$1 && return 0
    done 2>&-
    "$1" -I -S -c 'import sys; sys.exit(sys.version_info < (3, 11))' <&- >&- 2>&-
    case $? in
        0) cni_python=$1; return 0 ;;
        1) cni_old=${cni_old:-$1} ;;
    esac
    return 1
}

search() {
    [ -x "$cni_python" ] && return
    try /usr/bin/python3 && return
    try /usr/local/bin/python3 && return
    IFS=:
    for cni_version in '' .14 .13 .12 .11; do
        for cni_dir in $PATH /usr/bin /usr/local/bin; do
            try "${cni_dir:-.}/python3$cni_version" && return
        done
    done
    cni_python=$cni_old
    [ -n "$cni_python" ] || complain 'python3 (3.11 or newer) not found' \
        'looked in /usr/bin, /usr/local/bin and PATH; install the package python3, run cni install --python PATH, or start the server (cni serve)'
}

cni_old=''
search
unset IFS
# A link from elsewhere; the assignment stays in the subshell.
cni_real=$(PATH=${PATH:+$PATH:}/usr/bin:/bin; readlink -f -- "$0" 2>&-) || cni_real=$0
cni_root=${cni_real%/*}/.cni-$cni_build
if [ -f "$cni_root/run.py" ]; then
    exec "$cni_python" -I -S "$cni_root/run.py" "$0" "$@"
fi
# Not installed: straight from the archive. Not `python FILE`, which costs 8 ms more (runpy).
exec "$cni_python" -I -S -c 'import sys
del sys.argv[0]
sys.path.insert(0, sys.argv.pop(0))
import run
run.start()' "$cni_real" "$0" "$@"
