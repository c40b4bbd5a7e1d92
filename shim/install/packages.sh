#!/bin/sh
# Install the distribution packages of some groups that are not there yet (list: packages.txt beside this file).
# Usage: packages.sh GROUP...     It runs before Python is there, so it is a shell script; it never touches apt's sources.
set -eu

here=$(dirname "$0")
. /etc/os-release
case "${ID:-} ${ID_LIKE:-}" in
*debian*) ;;
*) echo "hako: this is ${PRETTY_NAME:-not Debian}; install by hand what $here/packages.txt lists" >&2; exit 1 ;;
esac

wanted=$(for group in "$@"; do
    awk -v group="$group" -v release="${VERSION_ID:-13}" \
        '$1 == group && ($2 == "any" || $2 == release) { print $3 }' "$here/packages.txt"
done)
there=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' $wanted 2>/dev/null | awk '$2 == "installed" { print $1 }')
missing=$(for package in $wanted; do
    echo "$there" | grep -qxF "$package" || echo "$package"
done)
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "hako: missing packages, which only root can install: $(echo $missing)" >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
echo "installing $(echo $missing)"
apt-get update -qq || echo "hako: apt-get update failed for some sources; going on with the rest" >&2
apt-get install -y -qq --no-install-recommends -o Dpkg::Use-Pty=0 $missing >/dev/null
