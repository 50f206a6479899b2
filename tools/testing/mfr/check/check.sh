#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make check: the static tests, and the selftests on the patched kernel, with the stock
# kernel as the yardstick. STOCK=no: without that. MACHINES="NAME...": only these of the
# machines with the patched kernel, and no static tests.

. "${0%/*}/../lib.sh"

if [ "$STOCK" = no ]; then
	"$MFR/vm/prepare.sh" patched
	stock_machines='' machines_of_both=''
else
	"$MFR/vm/prepare.sh" both
	stock_machines=$(machines_for stock)
	machines_of_both=$(machines_for both)
fi
machines=${MACHINES:-$(machines_for patched)}
mkdir -p "$O/runs"
cases=${CASES:-$O/runs/check-$BASE$suffix}
: >"$cases"

# One CPU of a machine's four is busy most of the time: run as many at once as there are
# CPUs and memory for. The longest come first.
at_once=$(awk -v each="$([ "$debug" = debug ] && echo 14 || echo 10)" \
	'/^MemAvailable/ { print int($2 / 1048576 / each) }' /proc/meminfo)
[ "$at_once" -le "$JOBS" ] || at_once=$JOBS
[ "$at_once" -ge 1 ] || at_once=1
jobs=$O/runs/jobs-$BASE$suffix
{
	for m in $machines; do
		echo "vm/machine.sh patched $m"
	done
	for m in $machines_of_both; do
		echo "vm/machine.sh stock $m"
		echo "vm/machine.sh patched $m"
	done
	for m in $stock_machines; do
		echo "vm/machine.sh stock $m"
	done
	# The static tests say the same for each architecture.
	if [ -z "$MACHINES" ] && [ $SRCARCH = x86 ]; then
		echo "check/lint.sh $cases"
	fi
} >"$jobs"
while read -r script kernel machine; do
	[ "$script" != vm/machine.sh ] || rm -rf "$(run_dir "$machine" "$kernel")"
done <"$jobs"
(cd "$MFR" && xargs -P "$at_once" -I '{}' sh -c './{}') <"$jobs" ||
	note fail check "everything has run" "$jobs"

# results_of MACHINE KERNEL: the file with its results, which is empty if there are none
results_of() {
	local log
	log=$(run_dir "$1" "$2")
	if [ ! -s "$log/cases" ]; then
		note fail "$1 on $2" "something has run in this machine" "$log"
		mkdir -p "$log"
		: >"$log/cases"
	fi
	echo "$log/cases"
}

# judge patched|stock MACHINE...: add what their results mean to $cases
judge() {
	local kernel="$1" m log says
	shift
	for m in "$@"; do
		log=$(run_dir "$m" "$kernel")
		awk -F '\t' -v kernel="$kernel" -v machine="$m" -v log_dir="$log" \
			-v lacks="$(of "$m" lacks)" -v fails="$(of "$m" fails)" \
			-v matched="$jobs.matched" -f "$MFR/check/judge.awk" \
			"$(results_of "$m" "$kernel")" >>"$cases"
		says=$(of "$m" says)
		if [ -n "$says" ] && ! grep -qE "$says" "$log/results"; then
			note fail "$m" "the results on $kernel have a line '$says'" "$log"
		fi
	done
}
: >"$jobs.matched"
# shellcheck disable=SC2086
judge patched $machines
# A pattern that matches no test is a mistake, or the test has another name by now.
if [ -z "$MACHINES" ]; then
	sort -u "$jobs.matched" >"$jobs.used"
	for m in $machines; do
		of "$m" lacks | tr ' ' '\n'
	done | sort -u | comm -23 - "$jobs.used" | while read -r pattern; do
		note fail machines.cfg "$pattern is the name of a test" "$MFR/machines.cfg"
	done
fi

for m in $machines_of_both; do
	awk -F '\t' -v machine="$m" -v log_dir="$(run_dir "$m" patched)" \
		-f "$MFR/check/compare.awk" "$(results_of "$m" stock)" \
		"$(results_of "$m" patched)" | sort >>"$cases"
done
# Today's behaviour holds on stock, tests of the flag are skipped for want of it, and the
# bugs are there still.
# shellcheck disable=SC2086
judge stock $stock_machines

echo
verdict "$cases"
