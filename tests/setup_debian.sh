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

# unpack PROGRAM PACKAGE... : unless the program is there already.
unpack() {
    program=$1
    shift
    if command -v "$program" >/dev/null; then
        return
    fi
    if download "$@" || { apt-get -q update >/dev/null 2>&1 && download "$@"; }; then
        for package in "$@"; do
            dpkg -x "$package"_*.deb "$tree"
        done
    else
        echo "no $program: tests that need it will be skipped. To have them run:" >&2
        echo "    sudo apt-get install --no-install-recommends $*" >&2
    fi
}

unpack prometheus prometheus
unpack sshd openssh-server libwrap0
unpack ssh openssh-client
unpack rsync rsync
unpack ip iproute2
