#!/bin/sh
# Unpacks programs of Debian that the tests use beside their Python: tests/setup_debian.sh .venv/bin
# They are unpacked, not installed: the packages would start services that listen everywhere.
set -eu
bin=$(cd "$1" && pwd)
tree=$(dirname "$bin")/debian
mkdir -p "$tree"
PATH="$bin:$tree/usr/bin:$tree/usr/sbin:$PATH:/usr/sbin"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"

# Root may bring the lists up to date; others use those that are there.
download() { apt-get -q -o APT::Sandbox::User=root download "$@" >/dev/null 2>&1; }

update() { apt-get -q -o Acquire::Retries=0 -o Acquire::http::Timeout=20 update >/dev/null 2>&1; }

# with_libraries PATH : of an unpacked program; others find theirs where Debian has them.
with_libraries() {
    if ! ldd "$1" | grep -q "not found"; then
        return
    fi
    mv "$1" "$1.unpacked"
    printf '#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s "$@"\n' \
        "$tree/usr/lib/$(uname -m)-linux-gnu" "$1.unpacked" >"$1"
    chmod +x "$1"
}

# unpack PROGRAM PACKAGE... : unless the program is there already.
unpack() {
    program=$1
    shift
    if found=$(command -v "$program") && ! ldd "$found" 2>/dev/null | grep -q "not found"; then
        return
    fi
    if download "$@" || { update && download "$@"; }; then
        for package in "$@"; do
            dpkg -x "$package"_*.deb "$tree"
        done
        with_libraries "$(command -v "$program")"
    else
        echo "no $program: tests that need it will be skipped. To have them run:" >&2
        echo "    sudo apt-get install --no-install-recommends $*" >&2
    fi
}

unpack prometheus prometheus
unpack sshd openssh-server libwrap0
unpack ssh openssh-client
unpack rsync rsync libpopt0
unpack ip iproute2
