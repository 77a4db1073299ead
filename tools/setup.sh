#!/bin/sh
# Installs the Debian packages named as arguments, as far as they are missing.
#
# Nothing that it installs runs afterwards: services are not started (policy-rc.d), and their units
# are not enabled. What ran or was enabled before stays so.
#
# Asks the package manager for nothing when all packages are there, so that it costs 20 ms then.
set -eu
export LC_ALL=C # comm wants what sort writes

policy=/usr/sbin/policy-rc.d
mark='# Written by tools/setup.sh while it installs packages; may be removed.'

missing=''
for package in "$@"; do
    status=$(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null) || status=''
    case $status in
        ii*) ;;
        *) missing="$missing $package" ;;
    esac
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "setup: these packages are missing, and installing them needs root:$missing" >&2
    exit 1
fi

# Maintainer scripts ask policy-rc.d before they start a service; 101 forbids it.
forbid_starts() {
    allow_starts # what a killed run has left
    if [ -e "$policy" ] || [ -L "$policy" ]; then
        mv "$policy" "$policy.before-setup"
    fi
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" >"$policy.new"
    chmod 755 "$policy.new"
    mv "$policy.new" "$policy"
}

# Puts back the policy that was there, if ours is in its place.
allow_starts() {
    if grep -qxF "$mark" "$policy" 2>/dev/null; then
        rm "$policy"
    fi
    if [ ! -e "$policy" ] && [ -e "$policy.before-setup" ]; then
        mv "$policy.before-setup" "$policy"
    fi
}

installed() {
    dpkg-query -W -f '${db:Status-Abbrev} ${Package}\n' | sed -n 's/^ii *//p' | sort
}

# The links that make a unit or an init script start with the machine, on demand or for a user.
enabled() {
    find /etc/systemd/system /etc/systemd/user /etc/rc[0-6S].d -type l \
        ! -path '/etc/rc*/K*' 2>/dev/null | sort
}

# Whether a package that was there before has the unit or script that the link $1 names.
was_there() {
    file=$(basename "$(readlink "$1")")
    owners=$(dpkg-query -S "*/systemd/*/$file" "/etc/init.d/$file" 2>/dev/null |
        sed 's/: .*//; s/,/\n/g; s/:[a-z0-9]*$//' | tr -d ' ' | sort -u) || owners=''
    [ -n "$(printf '%s\n' "$owners" | comm -12 - "$before/packages")" ]
}

# Undoes what the installation has enabled, as `systemctl disable` and `update-rc.d disable` do it:
# a later upgrade of the package does not enable the unit again.
disable_new() {
    enabled >"$before/after"
    comm -13 "$before/enabled" "$before/after" | while IFS= read -r link; do
        ! was_there "$link" || continue
        case $link in
            /etc/rc*) mv "$link" "${link%/*}/K01${link##*/S[0-9][0-9]}" ;;
            *) rm "$link" && echo "setup: ${link##*/} is not enabled" ;;
        esac
    done
}

finish() {
    status=$?
    trap - EXIT
    disable_new
    allow_starts
    rm -rf "$before"
    exit "$status"
}

echo "setup: installing$missing"
export DEBIAN_FRONTEND=noninteractive
before=$(mktemp -d)
enabled >"$before/enabled"
installed >"$before/packages"
trap finish EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
forbid_starts
apt-get -qq update || echo "setup: apt-get update failed; going on with the old lists" >&2
# shellcheck disable=SC2086 # words on purpose
apt-get -qq -y --no-install-recommends install $missing >/dev/null
