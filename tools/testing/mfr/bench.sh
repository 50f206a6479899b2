#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make bench: what the series costs and saves, counted in instructions on a stock and on
# a patched kernel, which are built without what finds mistakes. Leaves in $O/bench/BASE
#	figures		NAME<TAB>X<TAB>STOCK<TAB>PATCHED, as hugetlb-mfr-bench names them
#	table		what they say about the goals
#	report.html	the same, with pictures

export BENCH=1
. "${0%/*}/lib.sh"
need_x86 "make bench counts the instructions of x86's CPUs"

"$MFR/packages.sh" gnuplot-nox
"$MFR/tree.sh"
"$MFR/kernel.sh" stock
"$MFR/kernel.sh" patched
"$MFR/initramfs.sh"

out=$O/bench/$BASE
mkdir -p "$out"

# measure KERNEL MACHINE COMMAND: leaves what it says in $results
measure() {
	results=$O/runs/$2-$BASE-$1$suffix/results
	say "$3 on the $1 kernel"
	"$MFR/boot.sh" "$1" "$2" 1200 "$3"
	! awk -f "$MFR/results.awk" "$results" | grep '^fail' >&2 ||
		die "not all could be measured, see $results"
}
elsewhere="-F repeated -F guest -F lossy_guest -F reached -F healed"
measure stock bench "hugetlb-mfr-bench $elsewhere"
stock=$results
measure patched bench "hugetlb-mfr-bench $elsewhere"
patched=$results
# For guests other CPUs are needed.
guests="-f guest -f lossy_guest -f reached -f healed"
measure stock bench-kvm "hugetlb-mfr-bench $guests"
stock_kvm=$results
measure patched bench-kvm "hugetlb-mfr-bench $guests"
patched_kvm=$results
# What has machine checks needs more than one CPU, and stock has nothing to show.
measure patched bench-real "hugetlb-mfr-bench -f repeated"

# The same kernels and program as the last time should have the same figures.
cd "$out"
what=$(sha256sum "$(kernel_dir stock)/$image" "$(kernel_dir patched)/$image" \
	"$O/$BASE$suffix/root/tests/hugetlb-mfr-bench")
rm -f figures.before
[ "$(cat made-from 2>/dev/null)" != "$what" ] || mv figures figures.before
awk -v OFS='\t' '
	{ sub(/\r$/, "") }
	/^# figure / {
		f = $3 OFS $4
		if (!(f in stock)) {
			stock[f] = patched[f] = "-"
			name[++n] = f
		}
		if (is_stock)
			stock[f] = $5
		else
			patched[f] = $5
	}
	END {
		for (i = 1; i <= n; i++)
			print name[i], stock[name[i]], patched[name[i]]
	}' is_stock=1 "$stock" "$stock_kvm" \
	is_stock=0 "$patched" "$patched_kvm" "$results" >figures
echo "$what" >made-from

{
	awk -f "$MFR/bench.awk" figures | fold -s -w 104
	[ ! -f figures.before ] ||
		echo "$(diff figures.before figures | grep -c '^>') of" \
		     "$(wc -l <figures) figures differ from the last run's"
} >table

for f in signal lossy_read_4K lossy_fault release repeat 1G_shared_error \
	guest_2M_shared_error guest_1G_shared_error; do
	awk -v name=$f '$1 == name { print $2, $3, $4 }' figures >$f.data
done
gnuplot "$MFR/bench.gnuplot" >gnuplot.log 2>&1 || die "gnuplot failed, see $out/gnuplot.log"
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
	awk -v html=1 -f "$MFR/bench.awk" figures
	tr '\n' ' ' <"$SOURCE/.git/mfr-source"
} >report.html
rm -f ./*.data gnuplot.log
cat table
say "with pictures: $out/report.html"
