#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# build-tests.sh DIR HEADERS: build the tests and the tools that they run into DIR,
# statically, with the headers of the patched kernel
# shellcheck disable=SC2086

. "${0%/*}/../lib.sh"

dir=$1 headers=$2
out=$O/$BASE$suffix/selftests
log=$O/$BASE$suffix/selftests.log
libs=${foreign:+-L$foreign/usr/lib/aarch64-linux-gnu}
mkdir -p "$dir"

say "building the tests"
: >"$log"
# (LIBVFIO_O: what the tests of KVM are linked with for the sake of a few that are about
# VFIO, and which wants libuuid.)
for suite in mm memfd net kvm; do
	programs=$(of programs $suite)
	[ -n "$programs" ] || continue
	mkdir -p "$out/$suite"
	targets=
	for p in $programs; do
		# After some of the patches only, some tests are not there yet.
		if [ -z "$PREFIX" ] ||
		   grep -qw -- "$p" "$TREE/tools/testing/selftests/$suite/Makefile"; then
			targets="$targets $out/$suite/$p"
		fi
	done
	[ -n "$targets" ] || continue
	if ! make -C "$TREE/tools/testing/selftests/$suite" OUTPUT="$out/$suite" \
		KHDR_INCLUDES="-isystem $headers ${foreign:+-isystem $foreign/usr/include}" \
		LDLIBS="-static $libs -lrt -lpthread -lm -lcap -lnuma" LIBVFIO_O= \
		$targets >>"$log" 2>&1
	then
		grep -m 3 'error' "$log" >&2 || true
		die "building the selftests failed, see $log"
	fi
	cp $targets "$dir/"
done

# compile PROGRAM ARGUMENT...
compile() {
	local program="$1"
	shift
	${cross}gcc -static -O2 -o "$program" "$@" >>"$log" 2>&1 ||
		die "building ${program##*/} failed, see $log"
}
compile "$dir/page-types" -I "$TREE/tools/include" -I "$TREE/tools/lib" \
	-I "$TREE/tools/lib/api" "$TREE/tools/mm/page-types.c" "$TREE/tools/lib/api/fs/fs.c"
# The example in the document, with this machine's headers, and a test of it
example >"$out/kept-memory-example.c"
compile "$dir/kept-memory-example" -Wall -Wextra -Werror -I "$TOP/tools/mm" \
	"$out/kept-memory-example.c"
compile "$dir/kept-memory" -Wall -Wextra -Werror -I "$TOP/tools/mm" -I "$out" \
	"$MFR/in-vm/kept-memory.c"
compile "$dir/heal-kept-memory" -Wall -Wextra "$TOP/tools/mm/heal-kept-memory.c"
# Machine checks are x86's, and it is about the flag.
if [ $SRCARCH = x86 ] && [ -z "$PREFIX" ]; then
	compile "$dir/mini-vmm" -Wall -Wextra -isystem "$headers" \
		-I "$TREE/tools/testing/selftests/mm" -I "$TOP/tools/mm" "$MFR/in-vm/mini-vmm.c"
fi
