#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make run GUEST=linux: a Linux guest under QEMU as it is, which loses the same pages on
# a stock and on a patched host, where the memory is healed in the end. Both are
# shown as they run, side by side. (The guest's kernel is the stock one on both:
# it needs nothing new.)

. "${0%/*}/../lib.sh"
. "$MFR/demo/two-columns.sh"
need_x86 "make run is about machine checks, which QEMU has for x86 only"
[ -z "$DEBUG" ] || die "DEBUG=1 makes a guest's life too slow"

"$MFR/vm/prepare.sh" both seabios

grep -qx CONFIG_KVM_AMD=y "$(kernel_dir stock)/config" ||
	die "BASE=$BASE: there is no KVM in these kernels"

build_guest stock
cp "$MFR/in-vm/play-host" "$root/tests"
qemu=/usr/bin/qemu-system-x86_64
cp -L --parents $qemu "$root"
copy_libraries $qemu
pack

say "the guest boots, on both kernels"
{
	run 1 guest stock guest &
	[ "$at_once" = 1 ] || wait
	run 2 guest patched guest &
	wait
} | show "on the stock kernel" "on the patched kernel"

say "done; what has run is in $O/runs/guest-*"
results() { echo "$(run_dir guest "$1")/results"; }	# results KERNEL
awk -F = -v bold="$bold" -v red="$red" -v green="$green" -v plain="$plain" \
	-f "$MFR/demo/run-linux.awk" "$(results stock)" "$(results patched)" ||
	die "that is not how it should have ended"
