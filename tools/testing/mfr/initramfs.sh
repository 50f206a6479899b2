#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Build the tests, statically, with the patched kernel's headers, and put them
# into $O/$BASE/initramfs.cpio together with busybox, bash and our init.

. "${0%/*}/lib.sh"

obj=$(kernel_dir patched)/obj
out=$O/$BASE$suffix/selftests
root=$O/$BASE$suffix/root
log=$O/$BASE$suffix/selftests.log
libs=${foreign:+-L$foreign/usr/lib/aarch64-linux-gnu}
mkdir -p "$out/mm" "$out/memfd" "$out/net" "$out/kvm"
rm -rf "$root"
mkdir -p "$root/bin" "$root/proc" "$root/sys" "$root/dev" "$root/tmp" "$root/tests"

say "building the tests"
. "$MFR/tests"
: >"$log"
# (LIBVFIO_O: what the tests of KVM are linked with for the sake of a few that are about
# VFIO, and which wants libuuid.)
for suite in mm memfd net kvm; do
	eval "progs=\$${suite}_programs"
	[ -n "$progs" ] || continue
	targets=
	for p in $progs; do
		# After some of the patches only, some tests are not there yet.
		[ -z "$PREFIX" ] ||
			grep -qw -- "$p" "$TREE/tools/testing/selftests/$suite/Makefile" || continue
		targets="$targets $out/$suite/$p"
	done
	[ -n "$targets" ] || continue
	make -C "$TREE/tools/testing/selftests/$suite" OUTPUT="$out/$suite" \
		KHDR_INCLUDES="-isystem $obj/usr/include ${foreign:+-isystem $foreign/usr/include}" \
		LDLIBS="-static $libs -lrt -lpthread -lm -lcap -lnuma" LIBVFIO_O= \
		$targets >>"$log" 2>&1 || {
		grep -m 3 'error' "$log" >&2 || true
		die "building the selftests failed, see $log"
	}
	cp $targets "$root/tests/"
done
# Tools that some tests run
${cross}gcc -static -O2 -I "$TREE/tools/include" -I "$TREE/tools/lib" -I "$TREE/tools/lib/api" \
	-o "$root/tests/page-types" "$TREE/tools/mm/page-types.c" \
	"$TREE/tools/lib/api/fs/fs.c" >>"$log" 2>&1 &&
${cross}gcc -static -O2 -Wall -Wextra -o "$root/tests/heal-kept-memory" \
	"$TOP/tools/mm/heal-kept-memory.c" >>"$log" 2>&1 ||
	die "building the tools failed, see $log"
# Machine checks are x86's, and it is about the flag.
[ $SRCARCH != x86 ] || [ -n "$PREFIX" ] || gcc -static -O2 -Wall -Wextra -isystem "$obj/usr/include" \
	-I "$TREE/tools/testing/selftests/mm" \
	-o "$root/tests/mini-vmm" "$MFR/mini-vmm.c" >>"$log" 2>&1 ||
	die "building mini-vmm failed, see $log"

# For boot.sh, on the machine that it is built for.
for p in tsc-khz mce-at; do
	[ "$(uname -m)" != x86_64 ] ||
		gcc -O2 -Wall -Wextra -o "$O/$p" "$MFR/$p.c" >>"$log" 2>&1 ||
		die "building $p failed, see $log"
done

cp "$foreign/bin/busybox" "$root/bin/"
cp "$foreign/bin/bash-static" "$root/bin/bash"
ln -s busybox "$root/bin/sh"
cp "$MFR/init" "$root/init"
# (Small ones are all zeros but for a few kilobytes.)
[ $SRCARCH != x86 ] || {
	truncate -s 32M "$O/btrfs"
	PATH=$PATH:/sbin mkfs.btrfs -qfM -m single -d single "$O/btrfs" >>"$log" 2>&1 ||
		die "making a file system failed, see $log"
	gzip -9nc "$O/btrfs" >"$root/btrfs.gz"
	rm "$O/btrfs"
}
(cd "$root" && find . | cpio -o -H newc --quiet) >"$O/$BASE$suffix/initramfs.cpio"
