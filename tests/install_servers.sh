#!/usr/bin/env bash
# Installs PostgreSQL and Redis for the tests that run against real servers, where it may.
# Without them those tests are skipped, and pytest says so.
set -u
have_postgres() { command -v postgres >/dev/null || ls /usr/lib/postgresql/*/bin/postgres >/dev/null 2>&1; }
have_redis() { command -v redis-server >/dev/null || command -v valkey-server >/dev/null; }

missing=()
have_postgres || missing+=(postgresql)
have_redis || missing+=(redis-server)
[ ${#missing[@]} -eq 0 ] && exit 0

if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
    echo "Installing ${missing[*]} for the tests on real servers ..."
    # The packages must not start servers of their own: the tests start theirs, on free ports.
    if [ -d /usr/sbin ] && [ ! -e /usr/sbin/policy-rc.d ]; then
        printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d
        chmod +x /usr/sbin/policy-rc.d
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    export DEBIAN_FRONTEND=noninteractive
    (apt-get -qq update && apt-get -qq install -y --no-install-recommends "${missing[@]}") >/dev/null 2>&1
fi
have_postgres && have_redis && exit 0
echo "Left out: the tests marked 'production', for want of ${missing[*]}."
echo "Install them and run 'make test' again to include these tests."
