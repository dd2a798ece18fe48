# shellcheck shell=bash
# Functions of .ci/run and the steps. .ci/run exports the variables:
#
#     root       the working tree
#     work       the temporary directory; $work/tree is the checkout
#     python     the interpreter
#     started    start time of the run, in seconds since the epoch
#     in_lanes   "yes" while steps run at the same time
set -euo pipefail

: "${root:?.ci/run calls the steps}" "${work:?}" "${python:?}" "${started:?}"

heading() {
    local seconds=$(($(date +%s) - started))
    printf '\n== %s [%d:%02d]\n' "$*" $((seconds / 60)) $((seconds % 60))
}

die() {
    printf '.ci/run: %s\n' "$*" >&2
    exit 1
}

# Call the function once in a run of .ci/run. Steps that call it later, or at the same time, wait for its end.
once() { # FUNCTION
    if mkdir "$work/once-$1" 2>/dev/null; then
        (
            trap 'touch "$work/once-'"$1"'/ended"' EXIT # in the trap, $1 is not the function's
            "$1"
            touch "$work/once-$1/succeeded"
        )
    fi
    while [[ ! -e $work/once-$1/ended ]]; do sleep 1; done
    [[ -e $work/once-$1/succeeded ]] || die "$1 failed, in the step that was the first to need it"
}

# ---- Environments ----------------------------------------------------------------------------------------------------

# With a loopback interface and, where the kernel has veth(4), one with a broadcast address, link-local addresses and the
# default route, as most machines have.
own_network=(unshare --net sh -c '
    ip link set lo up || exit
    if ip link add inside type veth peer name outside 2>/dev/null; then
        echo 0 >/proc/sys/net/ipv6/conf/inside/accept_dad # the link-local address can be used at once
        ip addr add 10.64.0.1/24 broadcast + dev inside
        ip link set outside up
        ip link set inside up
        ip route add default dev inside
    fi
    exec "$@"' sh)

# Run a program that uses the network. Beside other steps it gets a network of its own: tests choose free ports, and no
# test of another step may bind them.
on_a_network() {
    if [[ -n ${in_lanes:-} ]]; then "${own_network[@]}" "$@"; else "$@"; fi
}

# Run a program with only PATH, HOME and the settings of pip, pytest and the build in its environment, because users do
# not have the other settings of this machine.
clean_environment() {
    local name kept=()
    # shellcheck disable=SC2086
    for name in PATH HOME TMPDIR CC PYTEST_ADDOPTS PYTHON_GIL RIOECHO_BUILD SSL_CERT_FILE SSL_CERT_DIR \
        http_proxy https_proxy no_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY ${!PIP_*}; do
        [[ -z ${!name+set} ]] || kept+=("$name=${!name}")
    done
    env -i "${kept[@]}" "$@"
}

new_venv() { # NAME [PYTHON]
    local interpreter=${2:-$python}
    if "$interpreter" -c 'import ensurepip' 2>/dev/null; then
        "$interpreter" -m venv "$work/venv-$1"
    else # built without ensurepip: the pip of python3 installs one
        "$interpreter" -m venv --without-pip "$work/venv-$1"
        python3 -m pip --python "$work/venv-$1/bin/python" install pip ||
            die "$interpreter has no ensurepip, and python3 has no pip to install one"
    fi
}

use_venv() { # NAME: for the rest of the calling script or subshell
    export VIRTUAL_ENV="$work/venv-$1" PATH="$work/venv-$1/bin:$PATH"
    hash -r
}

pinned() { grep "^$1==" "$work/tree/.ci/requirements.txt"; } # TOOL: print its pinned requirement

use_tools() { # the tools of lint, ids and build
    once install_tools
    use_venv tools
}

install_tools() {
    new_venv tools
    "$work/venv-tools/bin/pip" install -r "$work/tree/.ci/requirements.txt"
}

sdist() { once build_sdist; } # build it in $work/dist, and unpack it in $work/sdist

build_sdist() {
    new_venv build
    use_venv build
    pip install "$(pinned build)"
    cp -R "$work/tree" "$work/tree-sdist"
    say_if_failed python -m build --sdist --outdir "$work/dist" "$work/tree-sdist"
    mkdir "$work/sdist"
    tar -xzf "$work"/dist/*.tar.gz --strip-components=1 -C "$work/sdist"
}

wheel() { once build_wheel; } # build it from the sdist, in $work/dist

build_wheel() {
    sdist
    use_venv build
    cp -R "$work/sdist" "$work/sdist-wheel"
    say_if_failed python -m build --wheel --outdir "$work/dist" "$work/sdist-wheel"
}

say_if_failed() { # PROGRAM: run it, and print its output only if it fails
    "$@" >"$work/said" 2>&1 || {
        cat "$work/said"
        return 1
    }
}

# Install the sdist as VARIANT in an environment of its own, and change to a folder with the tests. A copy is installed,
# not the archive: pip would cache the wheel under the archive's name and use one variant in place of another.
install_from_sdist() { # NAME VARIANT EXTRAS PYTHON
    sdist
    cp -R "$work/sdist" "$work/source-$1"
    new_venv "$1" "$4"
    use_venv "$1"
    RIOECHO_BUILD=$2 pip install "$work/source-$1[$3]"
    among_tests "$1"
}

# Install the release in an environment of its own: for the Python of this run its wheel, which need not be built again.
install_release() { # NAME EXTRAS PYTHON
    if [[ $3 != "$python" ]]; then
        install_from_sdist "$1" release "$2" "$3"
        return
    fi
    wheel
    new_venv "$1"
    use_venv "$1"
    pip install "$(echo "$work"/dist/*.whl)[$2]"
    among_tests "$1"
}

# Change to a folder with the tests but without the sources, so that a child started there imports the installed package.
among_tests() { # NAME
    cp -R "$work/sdist" "$work/$1"
    cd "$work/$1"
    rm -rf rioecho setup.py
}

# Check that the installed server answers the installed client, and drains on SIGTERM.
echo_once() {
    local listening port answer
    mkfifo "$work/ready"
    rioecho-server 0 >"$work/ready" &
    server=$!
    trap 'kill -KILL "$server" 2>/dev/null || true' EXIT
    exec 3<"$work/ready"
    read -r -t 60 listening <&3 || die "rioecho-server printed nothing"
    echo "$listening"
    port=${listening#*127.0.0.1:}
    port=${port%%,*}
    answer=$(echo "hello, rio" | rioecho-client 127.0.0.1 "$port")
    [[ $answer == "hello, rio" ]] || die "rioecho-client printed: $answer"
    kill -TERM "$server"
    wait "$server" || die "rioecho-server exited with status $? after SIGTERM"
    trap - EXIT
    echo "$answer"
}

# ---- Pythons and programs of the machine -----------------------------------------------------------------------------

further_pythons() { # print every other CPython, 3.11 or newer, that pyenv has
    local own version
    command -v pyenv >/dev/null || return 0
    own=$("$python" -c 'import sys; print("%d.%d." % sys.version_info[:2])')
    for version in $(pyenv versions --bare | grep -E '^3\.1[1-9]\.[0-9]+$' || true); do
        [[ $version == "$own"* ]] || echo "$(pyenv root)/versions/$version/bin/python"
    done
}

python_of_debug() { # print another CPython if there is one, so that each runs the tests once
    # shellcheck disable=SC2046
    set -- $(further_pythons)
    echo "${1:-$python}"
}

python_of_tests() { # print one that the debug step does not use, if there is one: all tests run on it
    # shellcheck disable=SC2046
    set -- $(further_pythons)
    echo "${2:-$python}"
}

use_tested() { # TESTS: the release with all that tests use, for the steps test and slow; change to a directory TESTS
    once install_tested
    use_venv tested
    among_tests "$1"
}

install_tested() {
    local tested extras
    tested=$(python_of_tests)
    extras=$(tested_on "$tested"),bench,metrics
    is_free_threaded "$tested" || extras+=,peers # gevent and others have no wheels for it
    install_release tested "$extras" "$tested"
}

is_python_311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; }

is_free_threaded() { "$1" -c 'import sys, sysconfig; sys.exit(not sysconfig.get_config_var("Py_GIL_DISABLED"))'; }

# Keep the GIL off even if an imported module needs it: a dependency of a tool or a test.
! is_free_threaded "$python" || export PYTHON_GIL=0

tested_on() { # PYTHON: print the extras of the tests, with uvloop where it has wheels
    if is_free_threaded "$1"; then echo test; else echo test,loops; fi
}

outside_programs() { # as root, install the programs that tests use; without them these tests are skipped
    local missing=()
    command -v nc >/dev/null || missing+=(netcat-openbsd)
    command -v socat >/dev/null || missing+=(socat)
    command -v telnet >/dev/null || missing+=(telnet)
    command -v curl >/dev/null || missing+=(curl)
    command -v ncat >/dev/null || missing+=(ncat)
    command -v valgrind >/dev/null || missing+=(valgrind)
    command -v haproxy >/dev/null || missing+=(haproxy)
    command -v redis-benchmark >/dev/null || missing+=(redis-tools)
    command -v systemd-socket-activate >/dev/null || missing+=(systemd)
    command -v sshd >/dev/null || [[ -x /usr/sbin/sshd ]] || missing+=(openssh-server)
    [[ ${#missing[@]} -gt 0 && $(id -u) == 0 ]] && command -v apt-get >/dev/null || return 0
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq "${missing[@]}"; } >"$work/apt.log" 2>&1 ||
        echo "note: apt-get could not install ${missing[*]}: some tests will be skipped"
}

# ---- kqueue ----------------------------------------------------------------------------------------------------------

has_libkqueue() { pkg-config --exists libkqueue 2>/dev/null; } # Debian has no package of it: no step installs it

use_libkqueue() { # for the builds of the rest of the calling script or subshell
    CFLAGS="-DRIOECHO_KQUEUE $(pkg-config --cflags libkqueue)"
    # LD_RUN_PATH would have no effect: a Python of pyenv links with an -rpath of its own.
    LDFLAGS="-Wl,--no-as-needed $(pkg-config --libs libkqueue) -Wl,-rpath,$(pkg-config --variable=libdir libkqueue)"
    export CFLAGS LDFLAGS
}

tests_of_kqueue() { # PYTEST...: run the tests of all that waits with kqueue(2), by a command that takes pytest's arguments
    local left_out=()
    if [[ $(uname) == Linux ]]; then
        # libkqueue reads and so clears the error of a socket (SO_ERROR), which kqueue(2) does not: a reset is then an EOF.
        left_out=(
            --deselect "tests/server/test_event_loop.py::test_a_reset_is_reported_with_its_errno[kqueue]"
            --deselect "tests/server/test_event_loop.py::test_the_counts_are_exact[kqueue-tcp]"
            --deselect "tests/server/test_memory.py::test_the_reset_of_a_waiting_connection_is_noticed[kqueue]"
        )
    fi
    "$@" -m "not slow" ${left_out[@]+"${left_out[@]}"} -k kqueue tests/core/test_poller.py \
        tests/server/test_{event_loop,memory,workers}.py tests/load
    # test_workers.py creates a first kqueue when it is imported: libkqueue keeps two descriptors of the last one.
    RIOECHO_POLLER=kqueue "$@" -m "not slow" ${left_out[@]+"${left_out[@]}"} -k event \
        tests/server/test_{workers,echo,stopping,limits}.py
}

# ---- Sanitizers ------------------------------------------------------------------------------------------------------

must_be_instrumented() { # SYMBOL: require it in each extension module of the current environment
    local modules module
    modules=$(find "$VIRTUAL_ENV" -path '*/rioecho/*' -name '*.so')
    [[ -n $modules ]] || die "no extension module is installed"
    for module in $modules; do
        grep -q "$1" "$module" || die "$module is built without $1"
    done
}

show_reports() { # FOLDER STATUS: print reports that name rioecho, or all if STATUS is not 0; status 1 if there are any
    local log found=0
    for log in "$1"/*; do
        [[ -e $log ]] || continue
        # Ignore reports about other programs.
        if [[ $2 != 0 ]] || grep -q rioecho "$log"; then
            cat "$log"
            found=1
        fi
    done
    return $found
}
