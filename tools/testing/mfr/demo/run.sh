#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make run: the same memory errors on a stock and on a patched kernel, and a
# table of what they have cost.

. "${0%/*}/../lib.sh"
need_x86 "make run is about machine checks, which QEMU has for x86 only"

"$MFR/vm/prepare.sh" both

results() { echo "$(run_dir demo "$1")/results"; }	# results KERNEL
for kernel in stock patched; do
	say "memory errors in a 1 GiB hugepage, on the $kernel kernel"
	"$MFR/vm/boot.sh" $kernel demo
	if ! grep -q '^done=yes' "$(results $kernel)"; then
		grep '^error=' "$(results $kernel)" >&2
		die "the program did not get to its end, see $(results $kernel)"
	fi
	sed -n 's/^signal=/        /p' "$(results $kernel)"
done

say "done; what has run is in $O/runs/demo-*"
awk -F = -v bold="$bold" -v red="$red" -v green="$green" -v plain="$plain" \
	-f "$MFR/demo/run.awk" "$(results stock)" "$(results patched)"
