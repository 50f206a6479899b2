#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make check-all: make check without the stock kernel, and the static tests of the other
# series. In addition one of these, each in its turn, on every third day: the stock kernel
# as the yardstick, the tests on the other kernel versions, and the stress test on a
# kernel with debug options. Building the kernels for all of that takes too long.

. "${0%/*}/../lib.sh"

[ -z "$KSRC" ] || die "KSRC= is one kernel version: use make check"
all=$O/runs/check-all
mkdir -p "$O/runs"
: >"$all"

# check WHAT SCRIPT [VARIABLE=VALUE...]
check() {
	local what="$1" script="$2" cases="$O/runs/check-part"
	shift 2
	say "$what"
	rm -f "$cases"
	if ! env CASES="$cases" "$@" "$MFR/check/$script" "$cases" && [ ! -s "$cases" ]; then
		note fail check-all "$what runs" ""
	fi
	# The groups of several checks are told apart by their configuration.
	awk -F '\t' -v OFS='\t' -v what="$what" '{ $2 = what ", " $2; print }' "$cases" >>"$all"
	echo
}

# One process unpacks a source and makes it a tree, for more than a minute: all at once.
# (Errors of one are told when its turn comes.)
"$MFR/vm/packages.sh"
for series in "$TOP"/patches/series.*; do
	BASE=${series##*/series.} "$MFR/series/tree.sh" 2>/dev/null &
done
wait

today=$(($(date +%s) / 86400 % 3))
if [ $today = 0 ]; then
	check "Linux $BASE" check.sh
else
	check "Linux $BASE, not its stock kernel today" check.sh STOCK=no
fi
for series in "$TOP"/patches/series.*; do
	other=${series##*/series.}
	if [ "$other" = "$BASE" ]; then
		continue
	elif [ $today = 2 ]; then
		check "Linux $other, not its stock kernel" check.sh BASE="$other" STOCK=no
	else
		check "Linux $other, only its static tests today" lint.sh BASE="$other" STOCK=no
	fi
done
if [ $today = 1 ] && [ -z "$DEBUG" ]; then
	check "Linux $BASE with DEBUG=1, the stress test" check.sh \
		DEBUG=1 STOCK=no MACHINES=stress-2m
fi
verdict "$all"
