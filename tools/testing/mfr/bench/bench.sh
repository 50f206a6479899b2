#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make bench: what the series costs and saves, counted in instructions on a stock and on
# a patched kernel, which are built without debug options. Leaves in $O/bench/BASE
#	figures		NAME<TAB>X<TAB>STOCK<TAB>PATCHED, as hugetlb-mfr-bench names them
#	table		what they say about the goals
#	report.html	the same, with pictures

export BENCH=1
. "${0%/*}/../lib.sh"
need_x86 "make bench counts the instructions of x86's CPUs"

"$MFR/vm/prepare.sh" both gnuplot-nox

out=$O/bench/$BASE
mkdir -p "$out"

results() { echo "$(run_dir "$2" "$1")/results"; }	# results KERNEL MACHINE
measure() {	# measure KERNEL MACHINE
	say "$2 on the $1 kernel"
	"$MFR/vm/boot.sh" "$1" "$2"
	if awk -f "$MFR/vm/results.awk" "$(results "$1" "$2")" | grep '^fail' >&2; then
		die "not all could be measured, see $(results "$1" "$2")"
	fi
}
for machine in bench bench-kvm; do
	measure stock $machine
	measure patched $machine
done
# Stock has nothing to show with machine checks.
measure patched bench-real

# The same kernels and program as the last time should have the same figures.
cd "$out"
what=$(sha256sum "$(kernel_dir stock)/$image" "$(kernel_dir patched)/$image" \
	"$O/$BASE$suffix/root/tests/hugetlb-mfr-bench")
rm -f figures.before
if [ "$(cat made-from 2>/dev/null)" = "$what" ]; then
	mv figures figures.before
fi
awk -v OFS='\t' -f "$MFR/bench/figures.awk" \
	is_stock=1 "$(results stock bench)" "$(results stock bench-kvm)" \
	is_stock=0 "$(results patched bench)" "$(results patched bench-kvm)" \
	"$(results patched bench-real)" >figures
echo "$what" >made-from

{
	awk -f "$MFR/bench/bench.awk" figures | fold -s -w 104
	[ ! -f figures.before ] ||
		echo "$(diff figures.before figures | grep -c '^>') of" \
		     "$(wc -l <figures) figures differ from the last run's"
} >table

for f in signal lossy_read_4K lossy_fault release repeat 1G_shared_error \
	guest_2M_shared_error guest_1G_shared_error; do
	awk -v name=$f '$1 == name { print $2, $3, $4 }' figures >$f.data
done
gnuplot "$MFR/bench/bench.gnuplot" >gnuplot.log 2>&1 || die "gnuplot failed, see $out/gnuplot.log"
{
	cat <<-EOT
		<!DOCTYPE html>
		<meta charset="utf-8">
		<title>Hugepages that survive memory errors: what they cost</title>
		<style>
		body { font-family: sans-serif; max-width: 72em; margin: 1em auto }
		td, th { padding: .1em .7em; text-align: right }
		td:first-child { text-align: left }
		.missed td:last-child { color: #b00; font-weight: bold }
		</style>
		<h2>Hugepages that survive memory errors: what they cost</h2>
		<p>Linux $BASE as it is (stock) and with the series (patched), under QEMU with a
		clock that counts instructions. There are no caches and no TLB then, and a string
		instruction counts as often as it repeats: what fills or copies memory looks dearer
		than it is. For times, run hugetlb-mfr-bench on hardware, on both kernels;
		hugetlb-mfr.rst tells how.
	EOT
	sed '/^<?xml/d' ./*.svg
	awk -v html=1 -f "$MFR/bench/bench.awk" figures
	tr '\n' ' ' <"$STATE/source"
} >report.html
rm -f ./*.data gnuplot.log
cat table
say "with pictures: $out/report.html"
