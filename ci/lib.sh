# What the scripts of this directory share. Sourced, never run. Bash only.
# It owns: headings and elapsed time, the tally of checks, and running something as root.
# It must never change the host: what installs or builds belongs to the scripts themselves.

set -uo pipefail

TOP=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Written in full, for reading afterwards; the console shows the gist.
LOGS=$TOP/target/ci
PASSED=0
FAILED=0
SKIPS=()
FAILURES=()

say() { printf '%s\n' "$*"; }

heading() { printf '\n== %s\n' "$*"; }

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

# A command as root: directly, or by sudo where it needs no password.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif sudo -n true 2>/dev/null; then
        sudo -n --preserve-env=PATH,HOME,CARGO_HOME,RUSTUP_HOME,CI "$@"
    else
        printf 'this needs root, and sudo asks for a password: %s\n' "$*" >&2
        return 1
    fi
}

pass() { PASSED=$((PASSED + 1)); }

fail() {
    FAILED=$((FAILED + 1))
    FAILURES+=("$1")
}

skip() { SKIPS+=("$1"); }

# check NAME COMMAND...: one check of its own, with heading, elapsed time and its place in the tally.
check() {
    local name=$1 start=$SECONDS
    shift
    heading "$name"
    if "$@"; then
        pass
        say "   $name: ok, $((SECONDS - start)) s"
    else
        fail "$name"
        say "   $name: FAILED, $((SECONDS - start)) s"
        return 1
    fi
}

# Ends a script with the one line that counts, after the names that need a look.
verdict() {
    heading "verdict after $SECONDS s"
    local line
    for line in ${SKIPS[@]+"${SKIPS[@]}"}; do
        say "SKIPPED $line"
    done
    for line in ${FAILURES[@]+"${FAILURES[@]}"}; do
        say "FAILED $line"
    done
    say "$PASSED passed, $FAILED failed, ${#SKIPS[@]} skipped"
    [ "$FAILED" -eq 0 ]
}
