#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make rangediff BASE=OTHER: what the series of that base changes in the 7.3 one

. "${0%/*}/../lib.sh"

other=$BASE
[ "$other" != 7.3 ] ||
	die "rangediff compares another base with 7.3: give BASE=, one of:" \
	    "$(cd "$TOP/patches" && echo series.* | sed 's/series\.7\.3//; s/series\.//g')"
BASE=7.3 "$MFR/series/tree.sh"
BASE=$other "$MFR/series/tree.sh"
cd "$TREE"
git fetch -q "$O/7.3-source" +mfr:refs/mfr/7.3 +refs/tags/base:refs/mfr/7.3-base
git range-diff --creation-factor=95 refs/mfr/7.3-base..refs/mfr/7.3 base..HEAD
