#!/usr/bin/env bash
# The unit tests on a machine as containers and clusters give it: no git, no HOME, a user without a name, no UTF-8, umask 077,
# 256 open files, and the sources on a file system that cannot be written. What this machine cannot take away it says.
#
#   bash tests/poor.sh [argument of pytest ...]
set -euo pipefail
cd "$(dirname "$0")/.."
if [ "${1-}" != inside ]; then
    try='mount --bind "$PWD" "$PWD" && mount -o remount,bind,ro "$PWD" && mount --bind /dev/null /etc/passwd'
    [ "$(id -u)" = 0 ] && unshare -m sh -c "$try" 2>/dev/null && exec unshare -m bash "$0" inside "$@"
    echo "note: the sources stay writable and the user has a name: to change that takes root and a mount namespace"
else
    shift
    mount --bind "$PWD" "$PWD" && mount -o remount,bind,ro "$PWD" && cd "$PWD"
    mount --bind /dev/null /etc/passwd # no name or home there either
    names=$(mktemp) && echo "hosts: files dns" >"$names" && mount --bind "$names" /etc/nsswitch.conf && rm "$names"
    ! touch tests/written 2>/dev/null || { echo "error: the sources can be written" >&2; exit 1; }
fi

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/bin" "$scratch/tmp"
IFS=:
for folder in $PATH; do
    ln -s "$folder"/* "$scratch/bin" 2>/dev/null || true # of two of a name the first, as in PATH
done
rm -f "$scratch"/bin/git "$scratch"/bin/git-*
unset IFS
python=$(command -v python)
bare=(env -i PATH="$(dirname "$python"):$scratch/bin" LANG=C TMPDIR="$scratch/tmp" OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1
    PYTHONPATH="$PWD" PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY="$scratch/tmp/hypothesis")
umask 077
ulimit -n 256
"${bare[@]}" python -m pytest -n 2 --dist loadfile -p no:cacheprovider "${@:-tests/unit}"
