#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make bench: what the series costs and saves, counted in instructions on a stock and on
# a patched kernel, which are built without what finds mistakes. Leaves in $O/bench/BASE
#	figures		NAME<TAB>X<TAB>STOCK<TAB>PATCHED, as hugetlb-mfr-bench names them
#	table		what they say about the goals
#	report.html	the same, with pictures

export BENCH=1
. "${0%/*}/lib.sh"
need_x86 "make bench counts instructions of x86's"

"$MFR/packages.sh" gnuplot-nox
"$MFR/tree.sh"
"$MFR/kernel.sh" stock
"$MFR/kernel.sh" patched
"$MFR/initramfs.sh"

out=$O/bench/$BASE
mkdir -p "$out"

# measure KERNEL NAME COMMAND: what it says goes to $log/results
measure() {
	log=$O/runs/$2-$BASE-$1$suffix
	say "$3 on the $1 kernel"
	"$MFR/boot.sh" "$1" "$2" 1200 "$3"
	! awk -f "$MFR/results.awk" "$log/results" | grep '^fail' >&2 ||
		die "not all could be measured, see $log/results"
}
measure stock bench "hugetlb-mfr-bench -F repeated"
stock=$log/results
measure patched bench "hugetlb-mfr-bench -F repeated"
patched=$log/results
# Only what has machine checks needs more than one CPU.
measure patched bench-real "hugetlb-mfr-bench -f repeated"

what="$(sha256sum <"$(kernel_dir stock)/$image") $(sha256sum <"$(kernel_dir patched)/$image")"
[ "$(cat "$out/what" 2>/dev/null)" != "$what" ] || mv "$out/figures" "$out/figures.before"
awk -v OFS='\t' '
	FNR == 1 { k++ }
	{ sub(/\r$/, "") }
	/^# figure / {
		f = $3 OFS $4
		if (!(f in seen)) {
			seen[f] = 1
			name[++n] = f
		}
		value[f, k > 1] = $5
	}
	END {
		for (i = 1; i <= n; i++) {
			s = (name[i], 0) in value ? value[name[i], 0] : "-"
			p = (name[i], 1) in value ? value[name[i], 1] : "-"
			print name[i], s, p
		}
	}' "$stock" "$patched" "$log/results" >"$out/figures"
echo "$what" >"$out/what"

awk -f "$MFR/bench.awk" "$out/figures" >"$out/table"

# The pictures. column NAME: its figures as lines of x, stock, patched
cd "$out"
column() { awk -v name="$1" '$1 == name { print $2, $3, $4 }' figures; }
for f in signal kept_read_4K kept_fault release repeat record_bytes; do
	column $f >"$f.data"
done
gnuplot "$MFR/bench.gnuplot" >gnuplot.log 2>&1 || die "gnuplot failed, see $out/gnuplot.log"
rm -f ./*.data
{
	cat <<-EOT
		<!DOCTYPE html>
		<meta charset="utf-8">
		<title>Hugepages that survive memory errors: cost and use</title>
		<style>
		body { font-family: sans-serif; max-width: 75em; margin: 1em auto }
		table { border-collapse: collapse }
		td, th { padding: .1em .8em; text-align: right; border-bottom: 1px solid #ddd }
		td:first-child, th:first-child { text-align: left }
		.missed { color: #b00; font-weight: bold }
		</style>
	EOT
	awk -v html=1 -f "$MFR/bench.awk" figures
	sed '/^<?xml/d; /^<!DOCTYPE/d; /^ "http/d' ./*.svg
	echo "<p>Linux $(cat "$SOURCE/.git/mfr-source" | cut -d ' ' -f 2)"
} >report.html
