#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# packages.sh [PACKAGE...]: install the Debian packages that are missing, and those,
# if we may.
# shellcheck disable=SC2086

. "${0%/*}/../lib.sh"
. "$MFR/apt.sh"

wanted="gcc g++ make bc bison flex libelf-dev libssl-dev git patch quilt xz-utils
	cpio gzip rsync perl python3-ply python3-git libc6-dev procps shellcheck $*"
# These are part of the initramfs, or of programs there.
inside="busybox-static bash-static libcap-dev libnuma-dev"
case $SRCARCH in
x86)	wanted="$wanted qemu-system-x86 btrfs-progs $inside" ;;
arm64)	wanted="$wanted qemu-system-arm gcc-aarch64-linux-gnu libc6-dev-arm64-cross" ;;
esac

missing=
for p in $wanted; do
	if ! dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed'; then
		missing="$missing $p"
	fi
done
install() {
	local sudo log="$O/packages.log"
	if [ "$(id -u)" = 0 ]; then
		sudo=
	elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
		sudo="sudo -n"
	else
		die "missing packages; run: sudo apt-get install$missing"
	fi

	say "installing Debian packages:$missing"
	mkdir -p "$O"
	{
		$sudo apt-get update &&
		$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y \
			--no-install-recommends $missing
	} >"$log" 2>&1 || die "installing packages failed, see $log"
}
[ -z "$missing" ] || install

# Packages of another architecture are unpacked beside the machine's own.
if [ -z "$foreign" ] || [ -f "$foreign/unpacked" ]; then
	exit 0
fi
say "unpacking Debian packages for $ARCH: $inside"
cache=${foreign%/root}
mkdir -p "$foreign"
use_suite deb "$(. /etc/os-release && echo "$VERSION_CODENAME")" "$cache" $ARCH ||
	die "no Debian mirror found in /etc/apt"
(cd "$cache" && apt-get $apt_options download $inside) >>"$cache/apt.log" 2>&1 ||
	die "downloading packages failed, see $cache/apt.log"
for deb in "$cache"/*.deb; do
	dpkg-deb -x "$deb" "$foreign"
	rm "$deb"
done
touch "$foreign/unpacked"
