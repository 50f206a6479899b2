#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# boot.sh stock|patched MACHINE [COMMAND...]: boot a kernel under QEMU in a machine of
# machines.cfg, and run the commands that it has there, or these. If there are none, or
# COMMAND is empty: a shell on this terminal.
#
# Leaves in the run directory of MACHINE, or RUN_NAME, what was run (what, config),
# console.log, and results: what the machine has written to its second serial line. Fails
# if the machine hangs, panics, warns or doesn't get to its end.
# shellcheck disable=SC2086

. "${0%/*}/../lib.sh"

kernel=$1 machine=$2
shift 2
is_machine "$machine" || die "$machine is none of the machines in $MFR/machines.cfg"
machine_table=$(table | grep "^$machine	")
has() {		# has KEY: what this machine has of it
	printf '%s\n' "$machine_table" | awk -F '\t' -v key="$1" '$2 == key { print $3 }'
}
if [ $# = 0 ]; then
	commands=$(has run | tr '\n' ';')
elif [ -n "$*" ]; then
	commands=$(printf '%s;' "$@")
else
	commands=
fi
dir=$(kernel_dir "$kernel")
run=$(run_dir "${RUN_NAME:-$machine}" "$kernel")
rm -rf "$run"
mkdir -p "$run"
echo "verdict missing" >"$run/results"
sockets=$(mktemp -d)
trap 'rm -rf "$sockets"' EXIT

append="$(has append) console=$(has console)"
pool=$(has pool) mce=$(has mce) cpus=$(has cpus)
append="$append${pool:+ mfr_pool=$pool}"
isolate=$(has isolate)
if [ -n "$isolate" ]; then
	append="$append nohz_full=$isolate isolcpus=domain,managed_irq,$isolate irqaffinity=0-1"
fi

case $SRCARCH in
arm64)
	qemu="qemu-system-aarch64"
	# This board has only one serial line of its own.
	results="-chardev file,id=results,path=$run/results
		-device pci-serial,chardev=results" ;;
x86)
	qemu="qemu-system-x86_64"
	results="-serial file:$run/results"
	# Left to itself the guest gets this wrong on a busy machine, and its clock
	# with it.
	khz=$(has khz)
	if [ -z "$khz" ] && [ -x "$O/tsc-khz" ]; then
		khz=$("$O/tsc-khz")
	fi
	append="$append${khz:+ tsc_early_khz=$khz}" ;;
esac
qemu="$qemu -M $(has board) -cpu $(has cpu)"
# Programs in the machine inject machine checks: it has a line to its own monitor.
[ -z "$(has monitor)" ] || qemu="$qemu
	-chardev socket,id=monitor,path=$sockets/monitor,server=on,wait=off
	-mon chardev=monitor,mode=readline
	-chardev socket,id=line,path=$sockets/monitor
	-device virtio-serial-pci -device virtserialport,chardev=line"
# Those at exact instructions come from mce-at, which has QEMU's gdb stub, and is told
# where on another line.
mce_at=
if [ "$mce" = exact ]; then
	mce_at=$O/mce-at
	qemu="$qemu
	-chardev socket,id=gdb,path=$sockets/gdb,server=on,wait=off -gdb chardev:gdb
	-chardev socket,id=at,path=$sockets/at,server=on,wait=off
	-device virtserialport,chardev=at"
fi
nodes=$(has nodes)
initramfs=$O/$BASE$suffix/$(has initramfs).cpio
qemu="$qemu -accel $(has accel) -smp $cpus -m $(has memory)
	-object memory-backend-ram,id=m0,size=${nodes% *} -numa node,memdev=m0,cpus=0-$((cpus - 1))
	-object memory-backend-ram,id=m1,size=${nodes#* } -numa node,memdev=m1
	-display none -no-reboot -nic none
	-kernel $dir/$image -initrd $initramfs"

# start_mce_at LOG: it ends when QEMU does, and gives up if that doesn't start.
start_mce_at() {
	if [ -n "$mce_at" ]; then
		"$mce_at" "$sockets/gdb" "$sockets/at" >"$1" 2>&1 &
	fi
}

if [ -z "$commands" ]; then
	start_mce_at /dev/stderr
	$qemu -append "$append mfr_shell" -serial stdio -serial null
	exit
fi

cp "$dir/config" "$run/config"
{
	cat "$STATE/source"
	${qemu%% *} --version | head -n 1
	${cross}gcc --version | head -n 1
	sha256sum "$dir/$image" "$initramfs"
	echo "$qemu -append '$append mfr=\"$commands\"'"
} >"$run/what"

start_mce_at "$run/mce-at.log"
status=0
timeout --foreground -k 10 "$(has timeout)" $qemu \
	-append "$append mfr=\"$commands\"" \
	-serial "file:$run/console.log" $results \
	>"$run/qemu.log" 2>&1 </dev/null || status=$?

# Its first complaint says more than its last line. The page it is about comes before it.
complaint='BUG:|WARNING:|Oops|INFO: (task|rcu)|Kernel panic'
fail() {
	{
		grep -aE -B 14 -A 40 -m 1 "$complaint" "$run/console.log" ||
			tail -n 25 "$run/console.log"
	} | sed 's/^/    /' >&2
	echo "mfr: $kernel kernel: $1; see $run" >&2
	exit 1
}
case $status in
0)	;;
124)	fail "hung: no end after $(has timeout) s" ;;
*)	fail "QEMU failed: $(tail -n 1 "$run/qemu.log")" ;;
esac
grep -qx 'verdict complete' "$run/results" ||
	fail "the machine died: $(grep -aE -m 1 "$complaint" "$run/console.log")"
taint=$(sed -n 's/^tainted //p' "$run/results")
[ $((taint & ~$(has taints))) = 0 ] || fail "the kernel got tainted ($taint)"
if [ "$debug" = races ]; then
	complaint="data-race in .*(hwpoison|raw_hwp|memory_failure|_kept|_lost|replace_folio)"
	complaint="$complaint|WARNING:|BUG: [^K]"
	if grep -aqE "$complaint" "$run/console.log"; then
		fail "it complains"
	fi
fi
if grep -q '^kmemleak: unreferenced' "$run/results"; then
	fail "kmemleak found leaks"
fi
