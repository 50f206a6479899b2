#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Write the complete series, hunks and new files joined, to $O/series/$BASE, and as
# one mbox to $O/series/$BASE.mbox.

. "${0%/*}/lib.sh"
. "$MFR/tests"

"$MFR/tree.sh"
out=$O/series/$BASE
rm -rf "$out" "$out.mbox"
cd "$TREE"
total=$(git rev-list --count base..HEAD)
[ "$total" != 0 ] || {
	say "the source has all patches already: there is no series to write"
	exit 0
}

prefix=PATCH
[ "$BASE" = 7.3 ] || prefix="PATCH $BASE"
git format-patch -q -n --zero-commit --no-signature --subject-prefix="$prefix" \
	-o "$out" base..HEAD
# These lines are of use in patches/ only, as is the name of this harness.
sed -i "/^New-file: /d; s/^\[mfr: $BASE: /[$BASE: /" "$out"/*.patch

heading() { printf '\n%s\n%s\n\n' "$1" "$(echo "$1" | sed 's/./=/g')"; }
numbered() {	# numbered COMMAND...: a line for each commit for which it prints any
	n=0
	for c in $(git rev-list --reverse base..HEAD); do
		n=$((n + 1))
		line=$("$@" "$c")
		[ -z "$line" ] || printf '%4d  %s\n' $n "$line"
	done
}
subject() { git log -1 --format=%s "$1"; }
why() { git log -1 --format=%B "$1" | sed -n "s/^\[mfr: $BASE: \(.*\)\]$/\1/p"; }

{
	echo "From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001"
	git log -1 --format='From: %an <%ae>%nDate: %aD' HEAD
	printf 'Subject: [%s %0*d/%d] ' "$prefix" ${#total} 0 "$total"
	cat "$TOP/patches/cover-letter"

	[ "$BASE" = 7.3 ] || {
		heading "What is different on $BASE"
		printf 'These patches are not those for 7.3, because on %s\n\n' "$BASE"
		numbered why
		[ -z "$lacks" ] || {
			printf '\nand these tests are skipped for want of what they test:\n\n'
			printf '      %s\n' $lacks
		}
	}
	heading "Patches"
	numbered subject
	[ ! -s "$SOURCE/.git/mfr-has" ] || {
		printf '\nAlready in the tree they are for, and not among them:\n\n'
		tac "$SOURCE/.git/mfr-has" | sed 's/^/      /'
	}
	echo
	git diff --stat=74 base HEAD
	echo
	echo "base: $(cat "$SOURCE/.git/mfr-source")"
} >"$out/0000-cover-letter.patch"

# A mail in an mbox ends with an empty line.
for p in "$out"/*.patch; do
	cat "$p"
	echo
done >"$out.mbox"
say "$out, $out.mbox: $total patches and a cover letter"
