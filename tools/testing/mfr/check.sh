#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make check: the static tests, and the selftests on the patched kernel, with the stock
# kernel as the yardstick. STOCK=no: without that. MACHINES="NAME...": only these of the
# series' machines (see the file tests), and no static tests.

. "${0%/*}/lib.sh"

"$MFR/packages.sh"
"$MFR/tree.sh"
[ "$STOCK" = no ] || "$MFR/kernel.sh" stock
"$MFR/kernel.sh" patched
"$MFR/initramfs.sh"

. "$MFR/tests"
machines=${MACHINES:-$machines fatal}
mkdir -p "$O/runs"
cases=${CASES:-$O/runs/cases-$BASE$suffix}	# pass|fail|skip<TAB>what<TAB>why or log
: >"$cases"
note() { printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$cases"; }

# One CPU of a machine's four is busy most of the time: run as many at once as there are
# CPUs and memory for. The longest come first.
at_once=$(awk '/^MemAvailable/ { print int($2 / 10485760) }' /proc/meminfo)
[ "$at_once" -le "$JOBS" ] || at_once=$JOBS
[ "$at_once" -ge 1 ] || at_once=1
jobs=$O/runs/jobs-$BASE$suffix
{
	for m in $machines; do
		echo "machine.sh patched mfr-$m"
	done
	[ "$STOCK" = no ] || {
		echo "machine.sh stock neighbours"
		echo "machine.sh patched neighbours"
		for m in $stock_machines; do
			echo "machine.sh stock mfr-$m"
		done
	}
	# What it says of the sources is the same for each architecture.
	[ -n "$MACHINES" ] || [ $SRCARCH != x86 ] || echo "lint.sh $cases"
} >"$jobs"
sed -n 's/^machine.sh \(.*\) \(.*\)/\2-'"$BASE-\\1$suffix/p" "$jobs" |
	(cd "$O/runs" && xargs rm -rf)
(cd "$MFR" && xargs -P "$at_once" -I '{}' sh -c './{}') <"$jobs" ||
	note fail "everything has run" "$jobs"

# results NAME KERNEL: sets $log, where its log is, and $results, a file
results() {
	log=$O/runs/$1-$BASE-$2$suffix
	results=$log/cases
	[ -s "$results" ] || {
		note fail "nothing has run in the machine $1 on $2" "$log"
		results=/dev/null
	}
}

# On the kernel that has the feature only what that kernel lacks may be skipped.
for m in $machines; do
	results "mfr-$m" patched
	awk -F '\t' -v l="$log" -v lacks="$(echo $lacks)" '
		BEGIN { n = split(lacks, lack, " ") }
		$1 == "skip" {
			for (i = 1; i <= n && !index($3, lack[i]); i++) ;
			if (i > n) { $1 = "fail"; $3 = $3 " (skipped)" }
		}
		{ print $1 "\t" $2 ": " $3 "\t" l }' "$results" >>"$cases"
done

[ "$STOCK" != no ] || {
	echo
	verdict "$cases"
	exit
}

results neighbours stock
yardstick=$results
results neighbours patched
awk -F '\t' -v log_dir="$log" '
	FILENAME == ARGV[1] { stock[$2 ": " $3] = $1; next }
	{ patched[$2 ": " $3] = $1 }
	END {
		for (c in stock) {
			now = c in patched ? patched[c] : "missing"
			if (now == stock[c])
				why = now == "pass" ? "" : "the same on stock"
			else
				why = stock[c] " on stock, " now " on patched"
			what = now == "pass" ? "pass" : \
			       now == stock[c] ? "skip" : "fail"
			print what "\t" c "\t" (why ? why ", " : "") log_dir
		}
		for (c in patched)
			if (!(c in stock))
				print "fail\t" c "\tnot run on stock, " log_dir
	}' "$yardstick" "$results" | sort >>"$cases"

# Today's behaviour holds on stock, what needs the flag says so, and mainline's bugs are
# there still.
for m in $stock_machines; do
	results "mfr-$m" stock
	awk -F '\t' -v l="$log" -v m="$m" -v bugs="$(echo $fails_on_stock)" '
		BEGIN { n = split(bugs, bug, " ") }
		m == "stock" && $1 == "skip" { next }
		{
			dies = $3 ~ /^dies of: /
			for (i = 1; i <= n && index($3, bug[i]) != 1; i++) ;
			if (!dies && i > n)
				what = ($1 == "pass" ? "pass" : "fail") "\ton stock: "
			else if ($1 == (dies ? "pass" : "fail"))
				what = "pass\tstock still has the bug: "
			else
				what = "fail\tstock has not the bug, it may have the fix: "
			print what $2 ": " $3 "\t" l
		}' "$results" >>"$cases"
	case $m in
	stock)	grep -q '^skip' "$results" ||
			note fail "nothing is skipped on stock, which lacks the flag" "$log" ;;
	stock-kvm)
		grep -q '^# .*the guest is dead' "$log/results" ||
			note fail "no guest dies on stock" "$log" ;;
	esac
done

echo
verdict "$cases"
