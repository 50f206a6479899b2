#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make run GUEST=qemu: a Linux guest on the patched kernel, under QEMU as it is and under
# QEMU with patches/qemu. Both take it through memory errors, a heal, a migration, a restart
# and a reset, side by side.

. "${0%/*}/../lib.sh"
. "$MFR/demo/two-columns.sh"
need_x86 "make run is about machine checks, which QEMU has for x86 only"
[ -z "$DEBUG" ] || die "DEBUG=1 makes a guest's life too slow"

"$MFR/vm/prepare.sh" patched seabios
for which in stock patched; do
	"$MFR/vm/qemu.sh" $which
done

grep -qx CONFIG_KVM_AMD=y "$(kernel_dir patched)/config" ||
	die "BASE=$BASE: there is no KVM in this kernel"

build_guest patched
cp "$MFR/in-vm/play-qemu" "$root/tests"
mkdir "$root/stock" "$root/patched"
cp "$O/qemu-stock/qemu-system-x86_64" "$root/stock"
cp "$O/qemu/qemu-system-x86_64" "$root/patched"
copy_libraries "$root/stock/qemu-system-x86_64" "$root/patched/qemu-system-x86_64"
pack

say "the guest boots, under both QEMUs"
{
	run 1 guest-qemu-stock patched guest-qemu "play-qemu stock" &
	[ "$at_once" = 1 ] || wait
	run 2 guest-qemu-patched patched guest-qemu "play-qemu patched" &
	wait
} | show "QEMU as it is" "QEMU with patches/qemu"

say "done; what has run is in $O/runs/guest-qemu-*"
results() { echo "$(run_dir "guest-qemu-$1" patched)/results"; }	# results QEMU
awk -v bold="$bold" -v red="$red" -v green="$green" -v plain="$plain" \
	-f "$MFR/demo/run-qemu.awk" "$(results stock)" "$(results patched)" ||
	die "that is not how it should have ended"
