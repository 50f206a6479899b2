#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# boot.sh stock|patched NAME SECONDS [COMMAND;COMMAND...]
#
# Boot a kernel under QEMU's TCG and run the commands in it. Leaves in
# $O/runs/NAME-KERNEL: what was run (command, config, versions), console.log, and
# results: what the machine has written to its second serial line. Fails if the
# machine hangs, panics, warns or doesn't get to its end. Without commands: a
# shell on this terminal.

. "${0%/*}/lib.sh"

which=$1 name=$2 limit=$3 commands=${4:-}
dir=$(kernel_dir "$which")
run=$O/runs/$name-$BASE-$which$suffix
rm -rf "$run"
mkdir -p "$run"
echo "verdict missing" >"$run/results"

# oops, WARN and hang all end the machine: what comes after proves nothing.
# Memory: pools of 1 GiB hugepages, and as much again to look for lost pages in.
append="console=ttyS0 panic=-1 oops=panic panic_on_warn=1 loglevel=6
	hung_task_panic=1 softlockup_panic=1"
qemu="qemu-system-x86_64 -accel tcg,thread=multi -cpu Skylake-Server -smp 2 -m 8G
	-display none -monitor none -no-reboot -nic none
	-kernel $dir/bzImage -initrd $O/$BASE$suffix/initramfs.cpio"

if [ -z "$commands" ]; then
	exec $qemu -append "$(echo $append mfr_shell)" -serial mon:stdio
fi

cp "$dir/config" "$run/config"
{
	cat "$SOURCE/.git/mfr-source"
	qemu-system-x86_64 --version | head -n 1
	gcc --version | head -n 1
	sha256sum "$dir/bzImage" "$O/$BASE$suffix/initramfs.cpio"
	echo "$qemu -append '$(echo $append) mfr=\"$commands\"'"
} >"$run/what"

status=0
timeout --foreground -k 10 "$limit" $qemu \
	-append "$(echo $append) mfr=\"$commands\"" \
	-serial "file:$run/console.log" -serial "file:$run/results" \
	>"$run/qemu.log" 2>&1 </dev/null || status=$?

fail() {
	tail -n 25 "$run/console.log" | sed 's/^/    /' >&2
	echo "mfr: $which kernel: $1; see $run" >&2
	exit 1
}
[ $status != 124 ] || fail "hung: no end after $limit s"
[ $status = 0 ] || fail "QEMU failed: $(tail -n 1 "$run/qemu.log")"
grep -qx 'verdict complete' "$run/results" ||
	fail "the machine died: $(grep -aE 'Kernel panic|BUG:|WARNING:' "$run/console.log" | head -n 1)"
# 16: a machine check happened, which some tests want.
taint=$(sed -n 's/^tainted //p' "$run/results")
[ $((taint & ~16)) = 0 ] || fail "the kernel got tainted ($taint)"
! grep -q '^kmemleak: unreferenced' "$run/results" || fail "kmemleak found leaks"
