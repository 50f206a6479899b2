#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# boot.sh stock|patched NAME SECONDS [COMMAND;COMMAND...]
#
# Boot a kernel under QEMU's TCG and run the commands in it, on Arm's CPUs, Intel's, or
# AMD's if NAME ends in -amd, or in -kvm: those that can have guests; check-peers.sh's
# machine if NAME begins with peers, run-guest.sh's if it begins with guest, one whose
# clock counts instructions if it begins with bench.  One whose NAME has copy in it can
# have machine checks at exact instructions of its kernel: see mce-at.c.
# Leaves in $O/runs/NAME-KERNEL: what was run (command, config, versions), console.log,
# and results: what the machine has written to its second serial line. Fails if the
# machine hangs, panics, warns or doesn't get to its end. Without commands: a shell on
# this terminal.

. "${0%/*}/lib.sh"

which=$1 name=$2 limit=$3 commands=${4:-}
dir=$(kernel_dir "$which")
run=$O/runs/$name-$BASE-$which$suffix
rm -rf "$run"
mkdir -p "$run"
echo "verdict missing" >"$run/results"

# oops, WARN and hang all end the machine: what comes after proves nothing.
# Memory: pools of 1 GiB hugepages, and as much again to look for lost pages in. Two
# nodes, for what moves pages.
append="panic=-1 oops=panic panic_on_warn=1 loglevel=6"
append="$append hung_task_panic=1 softlockup_panic=1"
initramfs=initramfs memory=8G first_node=4G second_node=4G
accel=tcg,thread=multi cpus=4 console=ttyS0 mce_at='' khz=
case $name in
# A nanosecond for each instruction, and nothing that differs between two runs: no
# random numbers, no other clocks, no messages on the console. Machine checks have those
# all the same, and need more CPUs.
bench*)	accel="tcg -icount shift=0,sleep=off -rtc base=2026-01-01,clock=vm -seed 1"
	append="$append loglevel=3 nokaslr norandmaps hpet=disable pmtmr=0"
	khz=1000000
	case $name in *-real) console=none ;; *) cpus=1 ;; esac ;;
peers*)	initramfs=peers ;;
# A guest's memory is one 1 GiB hugepage, and another is to replace it: the second node
# has room for both.
guest*)	initramfs=guest memory=6G first_node=3G second_node=3G
	append="$append nokaslr hugepagesz=1G hugepages=1:2" ;;
# (From CMA that is half of a node others would take what they don't give back.)
*-cma)	append="$append hugetlb_cma=0:1G,1:1G" ;;
*-boot)	append="$append hugepagesz=1G hugepages=2" ;;
*-hvo)	append="$append hugepagesz=1G hugepages=2 hugetlb_free_vmemmap=on" ;;
*-kunit) append="$append kunit.enable=1" ;;
esac
# Memory that goes online was never allocated, nor were hugepages made at boot, which
# MEM_ALLOC_PROFILING_DEBUG minds.
case $debug-$name in
debug-*-life*|debug-*-boot|debug-*-hvo|debug-*-stress*) append="$append sysctl.vm.mem_profiling=never" ;;
esac
# KCSAN reports races all over the kernel: only those in this series' code fail a machine,
# see below.
[ "$debug" != races ] || append="$append panic_on_warn=0"
line=$(mktemp -d)
trap 'rm -rf "$line"' EXIT

case $SRCARCH in
arm64)
	append="$append console=ttyAMA0"
	machine="qemu-system-aarch64 -M virt,gic-version=3 -cpu cortex-a76"
	case $name in
	*mte-kvm) machine="$machine -M virtualization=on,mte=on -cpu max" ;;
	*-kvm)	machine="$machine -M virtualization=on" ;;
	esac
	# This board has only one serial line of its own.
	results="-chardev file,id=results,path=$run/results
		-device pci-serial,chardev=results" ;;
x86)
	append="$append console=$console tsc=reliable mce=ignore_ce"
	# Left to itself the guest gets this wrong on a busy machine, and its clock
	# with it.
	[ -n "$khz" ] || [ ! -x "$O/tsc-khz" ] || khz=$("$O/tsc-khz")
	append="$append ${khz:+tsc_early_khz=$khz}"
	# Two CPUs without ticks, for the victims of machine checks. The machine
	# injects those itself: it has a line to its own monitor. (Which speaks when it
	# likes: not where two runs are to be the same.)
	[ $initramfs = peers ] || [ $cpus = 1 ] ||
		append="$append nohz_full=2-3 isolcpus=domain,managed_irq,2-3 irqaffinity=0-1"
	# (With ERMS the kernel clears and copies memory by the byte, which is slow
	# here. But without it a copy doesn't survive that its source is lost
	# meanwhile.)
	# (Where there are 1 GiB hugepages the mm selftests use them, which takes long.)
	cpu=Skylake-Server,-erms
	case $name in
	peers-mm*) cpu=$cpu,-pdpe1gb ;;
	*-erms)	cpu=Skylake-Server ;;
	*-amd)	cpu=EPYC append="$append setcpuid=succor,overflow_recov" ;;
	*-kvm)	cpu=EPYC,+svm,+npt append="$append setcpuid=succor,overflow_recov" ;;
	esac
	case $name in
	*npt0-kvm)	append="$append kvm_amd.npt=0" ;;
	*shadow-kvm)	append="$append kvm.tdp_mmu=0" ;;
	esac
	# What finds mistakes makes ACPI so slow that it gives up on the loops in the
	# tables of QEMU's usual board, and then there are no interrupts. The other
	# board leaves less memory below 4 GiB, and KASAN takes an eighth: there must be
	# as many 1 GiB hugepages on the first node.
	board=pc
	[ -z "$DEBUG" ] || board=q35 memory=12G first_node=7G second_node=5G
	machine="qemu-system-x86_64 -M $board -cpu $cpu"
	[ $cpus = 1 ] || machine="$machine
		-chardev socket,id=monitor,path=$line/monitor,server=on,wait=off
		-mon chardev=monitor,mode=readline
		-chardev socket,id=line,path=$line/monitor
		-device virtio-serial-pci -device virtserialport,chardev=line"
	case $name in
	*copy*)	machine="$machine
		-chardev socket,id=gdb,path=$line/gdb,server=on,wait=off -gdb chardev:gdb
		-chardev socket,id=at,path=$line/at,server=on,wait=off
		-device virtserialport,chardev=at"
		mce_at=$O/mce-at
		# A CPU may be held for long if the machine below is busy.
		append="$append sysctl.kernel.watchdog_thresh=60"
		append="$append rcupdate.rcu_cpu_stall_timeout=150" ;;
	esac
	results="-serial file:$run/results" ;;
esac
qemu="$machine -accel $accel -smp $cpus -m $memory
	-object memory-backend-ram,id=m0,size=$first_node -numa node,memdev=m0,cpus=0-$((cpus - 1))
	-object memory-backend-ram,id=m1,size=$second_node -numa node,memdev=m1
	-display none -no-reboot -nic none
	-kernel $dir/$image -initrd $O/$BASE$suffix/$initramfs.cpio"

if [ -z "$commands" ]; then
	[ -z "$mce_at" ] || "$mce_at" "$line/gdb" "$line/at" &
	$qemu -append "$append mfr_shell" -serial stdio -serial null
	exit
fi

cp "$dir/config" "$run/config"
{
	cat "$SOURCE/.git/mfr-source"
	${qemu%% *} --version | head -n 1
	${cross}gcc --version | head -n 1
	sha256sum "$dir/$image" "$O/$BASE$suffix/$initramfs.cpio"
	echo "$qemu -append '$append mfr=\"$commands\"'"
} >"$run/what"

# It ends when QEMU does, and gives up if that doesn't start.
[ -z "$mce_at" ] || "$mce_at" "$line/gdb" "$line/at" >"$run/mce-at.log" 2>&1 &

status=0
timeout --foreground -k 10 "$limit" $qemu \
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
	echo "mfr: $which kernel: $1; see $run" >&2
	exit 1
}
[ $status != 124 ] || fail "hung: no end after $limit s"
[ $status = 0 ] || fail "QEMU failed: $(tail -n 1 "$run/qemu.log")"
grep -qx 'verdict complete' "$run/results" ||
	fail "the machine died: $(grep -aE -m 1 "$complaint" "$run/console.log")"
# 16: a machine check happened, which some tests want; 4: because of setcpuid; 262144: a
# unit test ran, which only the machine does that is for them.
taint=$(sed -n 's/^tainted //p' "$run/results")
allowed=20
[ "${name%-kunit}" = "$name" ] || allowed=262144
[ $((taint & ~allowed)) = 0 ] || fail "the kernel got tainted ($taint)"
[ "$debug" != races ] || {
	complaint="data-race in .*(hwpoison|raw_hwp|memory_failure|_kept|_lost|replace_folio)"
	complaint="$complaint|WARNING:|BUG: [^K]"
	! grep -aqE "$complaint" "$run/console.log" || fail "it complains"
}
! grep -q '^kmemleak: unreferenced' "$run/results" || fail "kmemleak found leaks"
