#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Put the tests into $O/$BASE/initramfs.cpio together with busybox, bash and our init, and
# build what boot.sh needs beside QEMU.

. "${0%/*}/../lib.sh"

root=$O/$BASE$suffix/root
log=$O/$BASE$suffix/initramfs.log
rm -rf "$root"
mkdir -p "$root/bin" "$root/proc" "$root/sys" "$root/dev" "$root/tmp"
"$MFR/vm/build-tests.sh" "$root/tests" "$(kernel_dir patched)/obj/usr/include"

: >"$log"
if [ "$(uname -m)" = x86_64 ]; then
	for p in tsc-khz mce-at; do
		gcc -O2 -Wall -Wextra -o "$O/$p" "$MFR/vm/$p.c" >>"$log" 2>&1 ||
			die "building $p failed, see $log"
	done
fi

cp "$foreign/bin/busybox" "$root/bin/"
cp "$foreign/bin/bash-static" "$root/bin/bash"
ln -s busybox "$root/bin/sh"
cp "$MFR/in-vm/init" "$root/init"
# (Small ones are all zeros but for a few kilobytes.)
if [ $SRCARCH = x86 ]; then
	truncate -s 32M "$O/btrfs"
	PATH=$PATH:/sbin mkfs.btrfs -qfM -m single -d single "$O/btrfs" >>"$log" 2>&1 ||
		die "making a file system failed, see $log"
	gzip -9nc "$O/btrfs" >"$root/btrfs.gz"
	rm "$O/btrfs"
fi
(cd "$root" && find . | cpio -o -H newc --quiet) >"$O/$BASE$suffix/initramfs.cpio"
