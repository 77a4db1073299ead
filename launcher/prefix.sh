#!/bin/sh
# cni: the CNI plugins in one file. This script starts Python; the rest of the file is a zip archive.
# A container runtime runs it for every plugin and verb, so the usual way forks nothing.
cni_build=@BUILD_ID@
cni_python=''  # `cni install` writes the interpreter here; the padding keeps the archive in place @PAD@

# As the native client does: files that are opened must not become stdout, and Python refuses a directory
# as stdin.
if [ -z "$cni_client" ]; then
    { : <&0; } 2>&- && [ ! -d /proc/self/fd/0 ] || exec 0>>/dev/null
    { : >&1; } 2>&- || exec 1</dev/null
    { : >&2; } 2>/dev/null || exec 2</dev/null
fi

# The usual way: installed, and called through a link beside the installed file. The tree has to be
# this user's: where the file was copied to, another user may have made a directory of that name. The
# native client (cni_client=1) has looked already, and found no tree that it may use.
cni_root=${0%/*}/.cni-$cni_build
if [ -z "$cni_client" ] && [ -x "$cni_python" ] && [ -O "$cni_root" ] && [ ! -h "$cni_root" ] &&
    [ -f "$cni_root/run.py" ] && [ -O "$cni_root/run.py" ]; then
    exec "$cni_python" -I -S "$cni_root/run.py" "$0" "$@"
fi

# Ends with an error: as JSON on stdout for a runtime, as text on stderr for a person.
complain() {
    if [ -n "$CNI_COMMAND" ]; then
        printf '{\n    "code": 999,\n    "msg": "%s",\n    "details": "%s"\n}\n' "$1" "$2"
    else
        printf 'cni: %s: %s\n' "$1" "$2" >&2
    fi
    exit 1
}

# Sets cni_python to $1 if that is Python 3.11 or newer, which its name mostly tells without running
# it (12 ms). An older one becomes cni_old: it is run if there is no other, and says its version.
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
    [ -n "$cni_python" ] && return
    unset IFS
    advise
    complain 'python3 (3.11 or newer) not found' \
        "looked in /usr/bin, /usr/local/bin and PATH; $cni_advice; or run the server (cni serve) in a container"
}

# Sets cni_advice to what helps on this system, as cni/startup_error.py does, which has the cases.
advise() {
    cni_id='' cni_release='' cni_variant='' cni_file=/etc/os-release
    [ -r $cni_file ] || cni_file=/usr/lib/os-release
    [ ! -r $cni_file ] || while IFS='=' read -r cni_key cni_value || [ -n "$cni_key" ]; do
        cni_value=${cni_value#[\"\']}
        cni_value=${cni_value%[\"\']}
        case $cni_key in
            ID) cni_id=$cni_value ;;
            VERSION_ID) cni_release=$cni_value ;;
            VARIANT_ID) cni_variant=$cni_value ;;
        esac
        cni_key=''
    done <$cni_file
    cni_machine=$(PATH=${PATH:+$PATH:}/usr/bin:/bin; uname -m 2>&-) || cni_machine=ARCH
    cni_advice="take the file cni-linux-$cni_machine, which carries its interpreter"
    cni_command=-
    case "$cni_id $cni_release $cni_variant" in
        # @REMEDIES@
    esac
    case $cni_command in
        -) cni_advice="install Python 3.11 or newer, or $cni_advice" ;;
        '') cni_advice="this system has no package that would do: $cni_advice" ;;
        *) cni_advice="install it ($cni_command), or $cni_advice" ;;
    esac
}

# Whether $1 is a directory in which only this user and root may write. Anything unexpected is a no.
trusted() {
    [ -d "$1" ] && [ ! -h "$1" ] || return 1
    cni_user=$(id -u 2>&-) || return 1
    cni_bad=$(find "$1" '(' ! -user 0 ! -user "$cni_user" ')' -o \
        ! -type l '(' -perm -020 -o -perm -002 ')' 2>&1) && [ -z "$cni_bad" ]
}

cni_old=''
search
# $0 may be a link in another directory. PATH changes in the subshell only. The native client was perhaps
# executed by its descriptor, and hands us another one (cni_self).
cni_real=
[ -z "$cni_client" ] || cni_real=$cni_self
unset IFS cni_client cni_self
[ -n "$cni_real" ] || cni_real=$(PATH=${PATH:+$PATH:}/usr/bin:/bin; readlink -f -- "$0" 2>&-) || cni_real=$0
cni_root=${cni_real%/*}/.cni-$cni_build
if [ -f "$cni_root/run.py" ] && trusted "$cni_root"; then
    exec "$cni_python" -I -S "$cni_root/run.py" "$0" "$@"
fi
# Not installed: run from the archive. `python FILE` would do so, too, but takes 8 ms longer (runpy).
exec "$cni_python" -I -S -c 'import sys
del sys.argv[0]
sys.path.insert(0, sys.argv.pop(0))
import run
run.start()' "$cni_real" "$0" "$@"
