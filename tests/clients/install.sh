#!/bin/sh
# Installs the clients that package.json names, exactly those, unless they are there already.
# Of the install scripts only two run, by name: they put a client's program where it is called.
set -eu
cd "$(dirname "$0")"
command -v npm > /dev/null || { echo "test-clients needs node (20 or later) and npm" >&2; exit 1; }
[ node_modules/installed -nt package-lock.json ] && exit 0
npm ci
node node_modules/@anthropic-ai/claude-code/install.cjs
node node_modules/opencode-ai/postinstall.mjs
touch node_modules/installed
