#!/usr/bin/env bash
# Installs what tests need besides packages, where it may: PostgreSQL and Redis for those on real
# servers, a C++ compiler for those of kernels. Without them those are skipped, and pytest says so.
set -u
have_postgres() { command -v postgres >/dev/null || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1; }
have_redis() { command -v redis-server >/dev/null || command -v valkey-server >/dev/null; }
have_compiler() { command -v c++ >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null; }

missing=()
have_postgres || missing+=(postgresql)
have_redis || missing+=(redis-server)
have_compiler || missing+=(g++ libc6-dev)
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "Installing ${missing[*]} for the tests ..."
    # The packages must not start servers of their own: the tests start theirs, on free ports.
    if [ -d /usr/sbin ] && [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    (apt-get -qq update && apt-get -qq install -y --no-install-recommends "${missing[@]}") >/dev/null 2>&1
fi
have_postgres && have_redis && have_compiler && exit 0
echo "Left out: tests that need one of ${missing[*]}."
echo "Install them and run 'make test' again to include these tests."
