#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make check-fresh: what is committed, in a Debian that has just been installed by
# debootstrap: make run, and make check. SUITE=bookworm|trixie: which Debian, QEMU=backports:
# with the QEMU of its backports, TARGETS="run check": which commands. The other variables
# (BASE, STOCK, MACHINES, ...) are passed on.

. "${0%/*}/../lib.sh"
. "$MFR/apt.sh"
SUITE=${SUITE:-trixie}
QEMU=${QEMU:-}
TARGETS=${TARGETS:-run check}
case $QEMU in ''|backports) ;; *) die "QEMU=$QEMU: use backports" ;; esac

[ "$(id -u)" = 0 ] || die "check-fresh makes a root directory of its own: run it as root"
need_space "$(dirname "$O")" 14
"$MFR/vm/packages.sh" debootstrap
root=$O/fresh/$SUITE${QEMU:+-$QEMU}
logs=$O/runs/fresh-$SUITE${QEMU:+-$QEMU}
cases=$logs/cases
rm -rf --one-file-system "$root" "$logs"
mkdir -p "$root" "$logs"
: >"$cases"

# The machine's own mirrors, with the suite changed
own=$(. /etc/os-release && echo "$VERSION_CODENAME")
lists=$(for s in '' -updates -security; do
	private_list deb "$SUITE$s" "$own$s" | head -n 1
done)
[ -n "$lists" ] || die "no Debian mirror found in /etc/apt"
mirror=$(echo "$lists" | head -n 1 | grep -o '[a-z]*://[^ ]*')
say "installing $SUITE in $root"
debootstrap --variant=minbase --include=ca-certificates,git,make "$SUITE" "$root" "$mirror" \
	>"$logs/debootstrap" 2>&1 || die "debootstrap failed, see $logs/debootstrap"
{
	echo "$lists"
	[ -z "$QEMU" ] || private_list deb "$SUITE-$QEMU" "$own" | head -n 1
} >"$root/etc/apt/sources.list"
for f in /etc/resolv.conf /etc/hosts; do
	[ ! -f $f ] || cp -L $f "$root$f"
done
git clone -q "$TOP" "$root/mfr"

# fresh COMMAND: run it there, with mounts of its own
fresh() {
	# shellcheck disable=SC2016
	unshare --mount --pid --fork --propagation private sh -c '
		mount -t proc proc "$0/proc"
		mount --rbind /sys "$0/sys"
		mount --rbind /dev "$0/dev"
		exec chroot "$0" env HOME=/root sh -c "cd /mfr && $1"' "$root" "$1"
}
if [ -n "$QEMU" ]; then
	fresh "apt-get update && apt-get install -y --no-install-recommends \
		-t $SUITE-$QEMU qemu-system-x86" >"$logs/qemu" 2>&1 ||
		die "installing the QEMU of $QEMU failed, see $logs/qemu"
fi
unset O TOP
for t in $TARGETS; do
	say "make $t"
	result=fail
	if fresh "make $t" >"$logs/$t" 2>&1; then
		result=pass
	fi
	version=$(fresh "qemu-system-x86_64 --version" 2>/dev/null | head -n 1)
	say "$(tail -n 1 "$logs/$t")"
	note $result "$SUITE" "make $t, with ${version:-no QEMU}" "$logs/$t"
done
verdict "$cases"
