#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Write the complete series, hunks and new files joined, to $O/series/$BASE, and as
# one mbox to $O/series/$BASE.mbox. SET=NAME: only that set, to $O/series/$BASE-NAME.
# shellcheck disable=SC2046

. "${0%/*}/../lib.sh"

"$MFR/series/tree.sh"
out=$O/series/$BASE${SET:+-$SET}
rm -rf "$out" "$out.mbox"
cd "$TREE"

# A set is the patches after its heading in the series file.
from=base to=HEAD cover=$TOP/patches/cover-letter
if [ -n "$SET" ]; then
	grep -q "^# Set $SET\>" "$SERIES" ||
		die "SET=$SET: there is no such set in patches/series.$BASE; use one of:" \
		    $(sed -n 's/^# Set \([a-z0-9-]*\).*/\1/p' "$SERIES")
	cover=$cover.$SET
	# The number of the last patch before it, and of its own last one
	set -- $(awk -v set="$SET" -v has="$STATE/has" '
		BEGIN { while ((getline line <has) > 0) skip[line] = 1 }
		/^# Set / { in_set = $3 == set || $3 == set ":"; next }
		/^#/ || !NF || $1 in skip { next }
		{ n++ }
		in_set && !first { first = n }
		in_set { last = n }
		END { print first - 1, last }' "$SERIES")
	[ "$1" -le 0 ] || from=$(git rev-list --reverse base..HEAD | sed -n "$1p")
	to=$from
	[ $# = 1 ] || to=$(git rev-list --reverse base..HEAD | sed -n "$2p")
fi
total=$(git rev-list --count "$from..$to")
if [ "$total" = 0 ]; then
	say "the source has all patches already: there is no series to write"
	exit 0
fi

prefix=PATCH
[ "$BASE" = 7.3 ] || prefix="PATCH $BASE"
git format-patch -q -n --zero-commit --no-signature --subject-prefix="$prefix" \
	-o "$out" "$from..$to"
# These lines are of use in patches/ only, as is the name of this harness.
sed -i "/^New-file: /d; /^Unless: /d; s/^\[mfr: $BASE: /[$BASE: /" "$out"/*.patch

heading() { printf '\n%s\n%s\n\n' "$1" "$(echo "$1" | sed 's/./=/g')"; }
numbered() {	# numbered COMMAND...: a line for each commit for which it prints any
	local c line n=0
	for c in $(git rev-list --reverse "$from..$to"); do
		n=$((n + 1))
		line=$("$@" "$c")
		[ -z "$line" ] || printf '%4d  %s\n' $n "$line"
	done
}
subject() { git log -1 --format=%s "$1"; }
why() { git log -1 --format=%B "$1" | sed -n "s/^\[mfr: $BASE: \(.*\)\]$/\1/p"; }

cover_letter() {
	echo "From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001"
	git log -1 --format='From: %an <%ae>%nDate: %aD' HEAD
	printf 'Subject: [%s %0*d/%d] ' "$prefix" ${#total} 0 "$total"
	cat "$cover"

	if [ "$BASE" != 7.3 ] && [ -z "$SET" ]; then
		heading "What is different on $BASE"
		printf 'These patches are not those for 7.3, because on %s\n\n' "$BASE"
		numbered why
		lacks=$(for m in $(machines_for patched); do of "$m" lacks; done |
			tr ' ' '\n' | sort -u)
		if [ -n "$lacks" ]; then
			printf '\nand these tests are skipped for want of what they test:\n\n'
			echo "$lacks" | sed 's/^/      /'
		fi
	fi
	heading "Patches"
	numbered subject
	if [ -s "$STATE/has" ] && [ -z "$SET" ]; then
		printf '\nAlready in the tree they are for, and not among them:\n\n'
		tac "$STATE/has" | sed 's/^/      /'
	fi
	echo
	git diff --stat=74 "$from" "$to"
	echo
	# For bots, what git format-patch --base says: the commit, if the source came with
	# its history, and the patches that a set needs.
	base=$(cat "$STATE/source")
	case $base in
	*" sha256 "*)	echo "base: $base" ;;
	*" "*)		echo "base-commit: ${base##* }" ;;
	esac
	git log -p --reverse "base..$from" | git patch-id --stable |
		sed 's/ .*//; s/^/prerequisite-patch-id: /'
}
# (A single patch speaks for itself.)
[ "$total" = 1 ] || cover_letter >"$out/0000-cover-letter.patch"

# A mail in an mbox ends with an empty line.
for p in "$out"/*.patch; do
	cat "$p"
	echo
done >"$out.mbox"
say "$out, $out.mbox: $total patches"
