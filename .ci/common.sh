# shellcheck shell=bash
# What .ci/run and the steps share. .ci/run exports the variables:
#
#     root       the tree that it was called in
#     work       the temporary folder; $work/tree is the checkout
#     python     the interpreter
#     started    when the run began
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

# Run a program that listens and connects: the tests find ports that are free, and want them to stay so.
on_a_network() {
    if [[ -n ${beside:-} ]]; then "${own_network[@]}" "$@"; else "$@"; fi
}

# Run a program with PATH and HOME and what tells pip and pytest what to do: a setting of this machine is not one that
# users have.
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
    else # built without it: another Python's pip installs one
        "$interpreter" -m venv --without-pip "$work/venv-$1"
        python3 -m pip --python "$work/venv-$1/bin/python" install pip ||
            die "$interpreter has no ensurepip, and python3 no pip to install one"
    fi
}

use_venv() { # NAME: for the rest of the script or subshell that calls it
    export VIRTUAL_ENV="$work/venv-$1" PATH="$work/venv-$1/bin:$PATH"
    hash -r
}

pinned() { grep "^$1==" "$work/tree/.ci/requirements.txt"; } # TOOL: with its version

use_tools() { # the tools of lint, build and ids; whichever step asks first installs them
    if [[ ! -e $work/venv-tools/ready ]]; then
        new_venv tools
        "$work/venv-tools/bin/pip" install -r "$work/tree/.ci/requirements.txt"
        touch "$work/venv-tools/ready"
    fi
    use_venv tools
}

dist() { # sdist, and the wheel from it, into $work/dist: once, whichever step asks first
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

# The package's sdist installed as VARIANT in an environment of its own, and the current folder holding the tests
# without the sources: a child started there imports what is installed. Not installed from the archive itself: pip
# would cache the wheel under its name, and give one variant for another.
install_from_sdist() { # NAME VARIANT EXTRAS PYTHON
    dist
    mkdir "$work/$1"
    tar -xzf "$work"/dist/rioecho-*.tar.gz --strip-components=1 -C "$work/$1"
    new_venv "$1" "$4"
    use_venv "$1"
    RIOECHO_BUILD=$2 pip install "$work/$1[$3]"
    cd "$work/$1"
    rm -rf rioecho setup.py build
}

# ---- What the machine has --------------------------------------------------------------------------------------------

further_pythons() { # every other CPython from 3.11 on that pyenv has
    local own version
    command -v pyenv >/dev/null || return 0
    own=$("$python" -c 'import sys; print("%d.%d." % sys.version_info[:2])')
    for version in $(pyenv versions --bare | grep -E '^3\.1[1-9]\.[0-9]+$' || true); do
        [[ $version == "$own"* ]] || echo "$(pyenv root)/versions/$version/bin/python"
    done
}

python_of_debug() { # another CPython where there is one, so that each runs the suite once
    # shellcheck disable=SC2046
    set -- $(further_pythons)
    echo "${1:-$python}"
}

is_python_311() { "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; }

is_free_threaded() { "$1" -c 'import sys, sysconfig; sys.exit(not sysconfig.get_config_var("Py_GIL_DISABLED"))'; }

# The GIL stays off, also where a module asks for it: one that a tool or a test brings.
! is_free_threaded "$python" || export PYTHON_GIL=0

outside_programs() { # the tests talk to these where they are there, and skip where not
    local missing=()
    command -v nc >/dev/null || missing+=(netcat-openbsd)
    command -v socat >/dev/null || missing+=(socat)
    command -v telnet >/dev/null || missing+=(telnet)
    command -v curl >/dev/null || missing+=(curl)
    command -v ncat >/dev/null || missing+=(ncat)
    command -v valgrind >/dev/null || missing+=(valgrind)
    [[ ${#missing[@]} -gt 0 && $(id -u) == 0 ]] && command -v apt-get >/dev/null || return 0
    export DEBIAN_FRONTEND=noninteractive
    { apt-get update -qq && apt-get install -y -qq "${missing[@]}"; } >"$work/apt.log" 2>&1 ||
        echo "note: apt-get could not install ${missing[*]}: some tests will skip"
}

# ---- Sanitizers ------------------------------------------------------------------------------------------------------

must_be_instrumented() { # SYMBOL: in each extension module of the environment in use
    local modules module
    modules=$(find "$VIRTUAL_ENV" -path '*/rioecho/*' -name '*.so')
    [[ -n $modules ]] || die "no extension module is installed"
    for module in $modules; do
        grep -q "$1" "$module" || die "$module is built without $1"
    done
}

show_reports() { # FOLDER STATUS: print those about our code, of a failed run all; status 1 if there is one
    local log found=0
    for log in "$1"/*; do
        [[ -e $log ]] || continue
        # What another program did is not our finding.
        if [[ $2 != 0 ]] || grep -q rioecho "$log"; then
            cat "$log"
            found=1
        fi
    done
    return $found
}
