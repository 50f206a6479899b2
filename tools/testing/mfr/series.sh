#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Write the complete series to $O/series/$BASE: hunks and new files joined.

. "${0%/*}/lib.sh"

"$MFR/tree.sh"
out=$O/series/$BASE
rm -rf "$out"
cd "$TREE"
# New-file: lines are of use in patches/ only.
git format-patch -q -n --zero-commit --no-signature -o "$out" base..HEAD
sed -i '/^New-file: /d' "$out"/*.patch
total=$(ls "$out" | wc -l)
{
	echo "From 0000000000000000000000000000000000000000 Mon Sep 17 00:00:00 2001"
	git log -1 --format='From: %an <%ae>%nDate: %aD' HEAD
	printf 'Subject: [PATCH 00/%02d] ' "$total"
	cat "$TOP/patches/cover-letter"
	echo
	git log --reverse --format='  %s' base..HEAD
	echo
	git diff --stat=74 base HEAD
	echo
	echo "base: $(cat "$SOURCE/.git/mfr-source")"
} >"$out/0000-cover-letter.patch"
say "$out: $total patches"
