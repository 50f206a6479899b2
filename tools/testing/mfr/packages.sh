#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# packages.sh [PACKAGE...]: install the Debian packages that are missing, and those,
# if we may.

. "${0%/*}/lib.sh"

wanted="gcc make bc bison flex libelf-dev libssl-dev git patch quilt xz-utils
	cpio gzip rsync qemu-system-x86 busybox-static bash-static sparse perl
	python3-ply python3-git libc6-dev procps libcap-dev libnuma-dev $*"

missing=
for p in $wanted; do
	dpkg-query -W -f '${Status}' "$p" 2>/dev/null |
		grep -q 'ok installed' || missing="$missing $p"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" = 0 ]; then
	sudo=
elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
	sudo="sudo -n"
else
	die "missing packages; run: sudo apt-get install$missing"
fi

say "installing Debian packages:$missing"
log=$O/packages.log
mkdir -p "$O"
{
	$sudo apt-get update &&
	$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y \
		--no-install-recommends $missing
} >"$log" 2>&1 || die "installing packages failed, see $log"
