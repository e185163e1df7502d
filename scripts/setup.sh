#!/usr/bin/env bash
# The one set-up, used by make demo, make test, .ci/run and the image. From the environment:
#   VENV=PATH    the virtual environment (default: .venv in the repository)
#   PYTHON=PATH  the interpreter a new environment is made from (default: the first 3.11 or newer)
#   EXTRA=train  leave out the developers' tools (default: dev); extras are those of pyproject.toml
#   SPCONV=NAME  the spconv build (default: spconv-cu126 with an NVIDIA GPU, else spconv)
# A step is stamped when it has succeeded, with the hash of what decides it: a second run costs
# milliseconds, a run that was cut short goes on where it was cut.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
VENV=${VENV:-$root/.venv}
[[ $VENV == /* ]] || VENV=$PWD/$VENV
EXTRA=${EXTRA:-dev} SPCONV=${SPCONV:-}
state=$VENV/.setup
stamps=$state/stamps
log=$VENV/setup.log
pins=$(cat "$root/constraints.txt" "$root/pyproject.toml" "$root/scripts/setup.sh" \
    - <<<"$EXTRA $SPCONV" | sha256sum | cut -d' ' -f1)

# All of it goes to stderr: stdout belongs to the command that the set-up is for.
exec 3>&2
say() { printf 'set-up  %s\n' "$*" >&3; }
die() { say "$*"; exit 1; }

stamped() { [[ -e $stamps/$1 && $(<"$stamps/$1") == "$2" ]]; }
stamp() { echo "$2" >"$state/new" && sync "$state/new" && mv "$state/new" "$stamps/$1"; }
complete() { [[ -x $VENV/bin/python ]] && stamped project "$pins $root"; }

count=0 # of 8
running=
step() { # NAME KEY LABEL COMMAND...: a line, the command into the log, the duration, the stamp
    local name=$1 key=$2 label=$3 start=$SECONDS
    shift 3
    count=$((count + 1))
    if stamped "$name" "$key"; then return; fi
    running=$label
    printf 'set-up  %d/8  %-36s' "$count" "$label" >&3
    printf '\n=== %s\n' "$label" >>"$log"
    "$@" </dev/null >>"$log" 2>&1
    stamp "$name" "$key"
    printf '%6d s\n' "$((SECONDS - start))" >&3
    running=
}

report_failure() {
    [[ $1 != 0 && -n $running ]] || return 0
    printf 'stopped\n' >&3
    if [[ $1 != 130 ]]; then grep -v '^Requirement already' "$log" | tail -n 15 | sed 's/^/    /' >&3; fi
    say "\"$running\" did not finish. The whole log: $log. The next run goes on from here."
}

find_python() {
    local candidates=(python3.11 python3 python3.12 python3.13 python3.14) candidate
    if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        # Its base: the one found may belong to an environment, even to the one to be made again.
        if python=$("$candidate" -c 'import sys
print(sys._base_executable) if sys.version_info >= (3, 11) else sys.exit(1)' 2>/dev/null); then
            return
        fi
    done
    die "no Python 3.11 or newer (tried: ${candidates[*]}); install python3.11 or set PYTHON=PATH"
}

missing_packages() {
    local version headers
    version=$("$python" -c 'import sys; print("python%d.%d" % sys.version_info[:2])')
    headers=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
    command -v g++ >/dev/null || echo g++
    command -v git >/dev/null || echo git
    command -v pkg-config >/dev/null || echo pkg-config
    pkg-config --exists libturbojpeg 2>/dev/null || echo libturbojpeg0-dev
    pkg-config --exists libjpeg 2>/dev/null || echo libjpeg-dev
    pkg-config --exists opencv4 2>/dev/null || echo libopencv-dev
    [[ -e $headers/Python.h ]] || echo "$version-dev"
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo "$version-venv"
}

# The lock is closed for apt (8>&-): a service that a package starts must not inherit it.
install_packages() {
    local as_root=()
    [[ $(id -u) == 0 ]] || as_root=(sudo -n)
    "${as_root[@]}" dpkg --configure -a # an apt that was killed refuses everything until this
    "${as_root[@]}" apt-get update || echo "apt-get update failed; trying with the lists at hand"
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install --yes \
        --no-install-recommends -o DPkg::Lock::Timeout=600 "$@"
    [[ -z $(missing_packages) ]] || {
        echo "installed, yet still not found:" && missing_packages
        return 1
    }
} 8>&-

system_packages() {
    local missing
    mapfile -t missing < <(missing_packages)
    if ((${#missing[@]} == 0)); then
        count=$((count + 1))
    elif [[ $(id -u) == 0 ]] || sudo -n true 2>/dev/null; then
        rm -f "$stamps/system" # whatever was installed once, now it is missing
        step system "$pins" "system packages" install_packages "${missing[@]}"
    else
        die "system packages are missing; run: sudo apt-get install ${missing[*]}"
    fi
}

new_environment() {
    rm -f "$stamps"/*
    rm -rf "${VENV:?}"/{bin,include,lib,lib64,share,pyvenv.cfg}
    "$python" -m venv "$VENV"
}

# A pip that was killed while it unpacked leaves a package that counts as installed. Without its
# description it does not, and pip installs it again.
forget_torn_packages() {
    "$VENV/bin/python" - <<'PY'
import csv, pathlib, shutil, sysconfig

site = pathlib.Path(sysconfig.get_path("purelib"))
for leftover in site.glob("~*"):
    shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
for description in site.glob("*.dist-info"):
    record = description / "RECORD"
    rows = list(csv.reader(record.open(newline=""))) if record.exists() else []
    whole = (description / "INSTALLER").exists() and all(
        (site / name).is_file() and (site / name).stat().st_size == int(size)
        for name, _, size in rows
        if size
    )
    if not (rows and whole):
        print("torn:", description.name)
        shutil.rmtree(description)
PY
}

pin() { sed -n "s/^$1==//p" "$root/constraints.txt"; }

pip_install() {
    "$VENV/bin/python" -m pip install --no-input --disable-pip-version-check --progress-bar off \
        --constraint "$root/constraints.txt" "$@"
}

# What an extra asks for, one requirement a line, but the packages installed by name.
requirements() {
    "$VENV/bin/python" - "$root/pyproject.toml" "$1" <<'PY'
import re, sys, tomllib

project = tomllib.load(open(sys.argv[1], "rb"))["project"]
apart = {"torch", "torchvision", "deepspeed", "ffcv", "spconv"}


def print_all(requirements):
    for line in requirements:
        name, extras = re.match(r"([\w.-]+)(?:\[([\w,]+)\])?", line).groups()
        if name == project["name"]:
            for extra in extras.split(","):
                print_all(project["optional-dependencies"][extra])
        elif name not in apart:
            print(line)


print_all([*project["dependencies"], f"{project['name']}[{sys.argv[2]}]"])
PY
}

# What needs no place of its own in the order, and spconv in the build for this machine.
other_packages() {
    local build=${SPCONV:-spconv} rivals
    if [[ -z $SPCONV ]] && nvidia-smi -L >/dev/null 2>&1; then build=spconv-cu126; fi
    rivals=$("$VENV/bin/python" -m pip list --format freeze | cut -d= -f1 |
        grep -E '^(spconv|cumm)' | grep -vxE "$build|${build/spconv/cumm}" || true)
    # shellcheck disable=SC2086  # all builds unpack into the same two folders
    [[ -z $rivals ]] || "$VENV/bin/python" -m pip uninstall --yes $rivals
    requirements "$EXTRA" >"$state/others.txt"
    pip_install -r "$state/others.txt" "$build==$(pin spconv)" "${build/spconv/cumm}==$(pin cumm)"
}

project() { pip_install --no-deps --no-build-isolation --editable "$root"; }

if complete; then exit 0; fi
trap 'report_failure $?' EXIT
trap 'exit 130' INT

[[ $EXTRA == dev || $EXTRA == train ]] || die "EXTRA=$EXTRA is neither dev nor train"
if [[ -n $(ls -A "$VENV" 2>/dev/null) && ! -e $state && ! -e $VENV/pyvenv.cfg ]]; then
    die "VENV=$VENV is a folder with other things in it; name a new or empty one"
fi
adopted=
if [[ -e $VENV/pyvenv.cfg && ! -e $state ]]; then adopted=yes; fi
mkdir -p "$stamps"
# pip inherits the lock: should it outlive a killed set-up, the next one waits for it.
exec 8>"$state/lock"
if ! flock --nonblock 8; then
    say "waiting for another set-up of $VENV"
    flock 8
    if complete; then exit 0; fi
fi
: >"$log"
if [[ $adopted ]]; then stamp environment made; fi
if ! "$VENV/bin/python" -m pip --version >>"$log" 2>&1; then rm -f "$stamps/environment"; fi

python=$VENV/bin/python
stamped environment made || find_python
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
[[ $version == 3.11 ]] || say "note: this is Python $version; the versions were tested with 3.11"
system_packages
step environment made "virtual environment" new_environment
export PATH=$VENV/bin:$PATH # DeepSpeed and PyTorch look for ninja there
if [[ -e $state/unfinished ]]; then forget_torn_packages >>"$log"; fi
touch "$state/unfinished"
step tools "$pins" "build tools" pip_install setuptools wheel ninja numpy py-cpuinfo
step torch "$pins" "PyTorch $(pin torch)" pip_install torch torchvision
step others "$pins" "Ray $(pin ray), MLflow $(pin mlflow), tools" other_packages
step deepspeed "$pins" "DeepSpeed $(pin deepspeed)" pip_install --no-build-isolation deepspeed
step ffcv "$pins" "FFCV $(pin ffcv)" pip_install --no-build-isolation ffcv
step project "$pins $root" "convnextv2 ($EXTRA)" project
rm "$state/unfinished"
