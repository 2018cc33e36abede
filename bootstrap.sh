#!/usr/bin/env bash
# Make .venv with the locked packages and this project in it. Does nothing where that is already done.
#
# Needs bash and a Python 3.11 to 3.13 on a Debian or Ubuntu; PYTHON=/path/to/python chooses one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

stamp=.venv/.set-up
wanted=$(cat requirements.lock pyproject.toml bootstrap.sh <(pwd) | sha256sum)
if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
  exit 0
fi

fail() {
  echo "set-up: $*" >&2
  exit 2
}

# Install Debian packages where that needs no password; elsewhere end in one line that names them.
# $1 says why, the rest are the packages.
debian_packages() {
  local why=$1 as_root=""
  shift
  local remedy="$why; run: sudo apt-get install -y $*"
  command -v apt-get >/dev/null || fail "$why; install what Debian calls: $*"
  if [ "$(id -u)" != 0 ]; then
    command -v sudo >/dev/null && sudo -n true 2>/dev/null || fail "$remedy"
    as_root="sudo -n"
  fi
  echo "set-up: $why; installing $*" >&2
  local log
  log=$(mktemp)
  local install="$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends $*"
  if ! { $install || { $as_root apt-get update -q && $install; }; } >"$log" 2>&1; then
    fail "$remedy (the attempt's log: $log)"
  fi
  rm -f "$log"
}

# 1. A Python of the right age.
suitable() {
  command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null
}
python=""
for candidate in ${PYTHON:-python3 python3.12 python3.11 python3.13}; do
  if suitable "$candidate"; then
    python=$candidate
    break
  fi
done
if [ -z "$python" ]; then
  [ -z "${PYTHON:-}" ] || fail "PYTHON=$PYTHON is no Python 3.11, 3.12 or 3.13; name one that is, or leave PYTHON unset"
  debian_packages "no Python 3.11, 3.12 or 3.13 found" python3 python3-venv
  suitable python3 || fail "this system's python3 is not 3.11, 3.12 or 3.13; install one of these and run: make PYTHON=/path/to/python"
  python=python3
fi

# 2. Its venv module, which Debian keeps in a package of its own.
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  debian_packages "Python $version has no venv module" "python$version-venv"
fi

# 3. System libraries that Open3D and PyMeshLab load. Looked for before the long download.
missing=$("$python" - <<'EOF'
import ctypes

packages = {
    "libGL.so.1": "libgl1",
    "libgomp.so.1": "libgomp1",
    "libX11.so.6": "libx11-6",
    "libusb-1.0.so.0": "libusb-1.0-0",
    "libEGL.so.1": "libegl1",
}
for soname, package in packages.items():
    try:
        ctypes.CDLL(soname)
    except OSError:
        print(package)
EOF
)
if [ -n "$missing" ]; then
  # shellcheck disable=SC2086
  debian_packages "Open3D and PyMeshLab need system libraries" $missing
fi

# 4. The packages, as locked, and the project itself.
if [ ! -x .venv/bin/python ] || ! suitable .venv/bin/python; then
  rm -rf .venv
  "$python" -m venv .venv || fail "could not make .venv with $python; see the lines above"
fi
rm -f "$stamp"
echo "set-up: $(grep -c == requirements.lock) locked packages into .venv (some minutes the first time)" >&2
pip=".venv/bin/python -m pip --disable-pip-version-check"
log=.venv/set-up.log
# One line a package, so that a long download is seen to move.
$pip install --progress-bar off -r requirements.lock 2>&1 | tee "$log" |
  sed -u -n -e 's/^Collecting \([^ ]*\).*/  \1/p' -e 's/^\(Installing collected packages\):.*/\1/p' -e '/^ERROR/p' >&2 ||
  fail "pip could not install the locked packages; check the network or the package index, then run again (log: $log)"
$pip install --no-deps --no-build-isolation --quiet -e . >>"$log" 2>&1 ||
  fail "pip could not install the project itself; see $log"

# 5. Proof that the two libraries that lean on the system most do load.
if ! why=$(.venv/bin/python -c 'import open3d, pymeshlab' 2>&1 | tail -n 1); then
  fail "Open3D or PyMeshLab does not load ($why); find the Debian package of the library it names (packages.debian.org), install it and run again"
fi
echo "$wanted" >"$stamp"
