#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make check-all: make check, the tests of the series on the other kernel versions that
# there is one for, and, every other day, the stress test on a kernel that finds
# mistakes: building that takes a quarter of the time.

. "${0%/*}/lib.sh"

[ -z "$KSRC" ] || die "KSRC= is one kernel version: use make check"
all=$O/runs/cases-all
mkdir -p "$O/runs"
: >"$all"

# check WHAT [VARIABLE=VALUE...]
check() {
	what=$1 of=$O/runs/cases-this
	shift
	say "$what"
	rm -f "$of"
	env CASES="$of" "$@" "$MFR/check.sh" ||
		[ -s "$of" ] || printf 'fail\t%s does not run\t\n' "$what" >"$of"
	cat "$of" >>"$all"
	echo
}

# One process unpacks a source and makes it a tree, for more than a minute: all at once.
# (What goes wrong with one is told when its turn comes.)
"$MFR/packages.sh"
for series in "$TOP"/patches/series.*; do
	BASE=${series##*/series.} "$MFR/tree.sh" 2>/dev/null &
done
wait

check "Linux $BASE"
for series in "$TOP"/patches/series.*; do
	other=${series##*/series.}
	[ "$other" = "$BASE" ] ||
		check "Linux $other, without its stock kernel" BASE="$other" STOCK=no
done
what="Linux $BASE with DEBUG=1, the stress test"
if [ -n "$DEBUG" ]; then
	: # that is what it was all about
elif [ $(($(date +%s) / 86400 % 2)) = 1 ]; then
	check "$what" DEBUG=1 STOCK=no MACHINES=stress-2m
else
	say "$what: not today, make check DEBUG=1 MACHINES=stress-2m does it"
fi
verdict "$all"
