# shellcheck shell=bash
# Functions of .ci/run and the steps. .ci/run exports the variables:
#
#     root       the working tree
#     work       the temporary directory; $work/tree is the checkout
#     python     the interpreter
#     started    start time of the run, in seconds since the epoch
#     beside     "yes" in the second of two lanes
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

# ---- Environments ----------------------------------------------------------------------------------------------------

own_network=(unshare --net sh -c 'ip link set lo up && exec "$@"' sh)

# Run a program that uses the network. In the second lane it gets a network of its own: tests choose free ports, and no
# test of the other lane may bind them.
on_a_network() {
    if [[ -n ${beside:-} ]]; then "${own_network[@]}" "$@"; else "$@"; fi
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

use_tools() { # the tools of lint, build and ids; the first step that needs them installs them
    if [[ ! -e $work/venv-tools/ready ]]; then
        new_venv tools
        "$work/venv-tools/bin/pip" install -r "$work/tree/.ci/requirements.txt"
        touch "$work/venv-tools/ready"
    fi
    use_venv tools
}

dist() { # build the sdist, and the wheel from it, in $work/dist; only the first call does it
    [[ ! -e $work/dist/ready ]] || return 0
    (
        new_venv dist
        use_venv dist
        pip install "$(pinned build)"
        cp -R "$work/tree" "$work/tree-dist"
        python -m build --outdir "$work/dist" "$work/tree-dist" >"$work/build.log" 2>&1 || {
            cat "$work/build.log"
            exit 1
        }
    )
    touch "$work/dist/ready"
}

# Install the sdist as VARIANT in an environment of its own, and change to a directory with the tests but without the
# sources, so that a child started there imports the installed package. The archive is unpacked first: pip would cache
# the wheel under the archive's name and use one variant in place of another.
install_from_sdist() { # NAME VARIANT EXTRAS PYTHON
    dist
    mkdir "$work/$1"
    tar -xzf "$work"/dist/rioecho-*.tar.gz --strip-components=1 -C "$work/$1"
    new_venv "$1" "$4"
    use_venv "$1"
    RIOECHO_BUILD=$2 pip install "$work/$1[$3]"
    cd "$work/$1"
    rm -rf rioecho setup.py
    [[ $2 == coverage ]] || rm -rf build # which gcov reads
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
