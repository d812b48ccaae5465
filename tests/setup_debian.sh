#!/bin/sh
# Puts programs of Debian that the tests use into a directory: tests/setup_debian.sh .venv/bin
# They are unpacked, not installed: the package would start a service that listens everywhere.
set -eu
bin=$(cd "$1" && pwd)
if PATH="$bin:$PATH" command -v prometheus >/dev/null && PATH="$bin:$PATH" command -v promtool >/dev/null; then
    exit 0
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
# Root may bring the lists up to date; others use those that are there.
download() { apt-get -q -o APT::Sandbox::User=root download prometheus >/dev/null 2>&1; }
if download || { apt-get -q -o Acquire::Retries=0 -o Acquire::http::Timeout=20 update >/dev/null 2>&1 && download; }; then
    dpkg -x prometheus_*.deb .
    install usr/bin/prometheus usr/bin/promtool "$bin"
else
    echo "no Prometheus: tests/test_run_dashboards.py will be skipped. To have it run:" >&2
    echo "    sudo apt-get install --no-install-recommends prometheus" >&2
fi
