#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Write the commits of $TREE back: hunks in existing files to patches/, new files
# to their place. A new file is stored as its commit adds it.

. "${0%/*}/lib.sh"

[ -d "$TREE" ] || die "there is no $TREE; 'make tree' makes it"
cd "$TREE"
git diff --quiet HEAD || die "$TREE has changes that are not committed"

new=$(git log --format= --name-only --diff-filter=A base..HEAD)
out=$(mktemp -d)
trap 'rm -rf "$out"' EXIT

n=0
for c in $(git rev-list --reverse base..HEAD); do
	n=$((n + 1))
	added=$(git show --format= --name-only --diff-filter=A "$c")
	for f in $added; do
		git log -1 --format=%B "$c" | grep -qx "New-file: $f" ||
			die "'$(git log -1 --format=%s "$c")' adds $f;" \
			    "its message needs a line 'New-file: $f'"
		mkdir -p "$TOP/$(dirname "$f")"
		git show "$c:$f" >"$TOP/$f"
	done
	set -- .
	for f in $added; do
		set -- "$@" ":!$f"
	done
	git format-patch -q -1 -N --zero-commit --no-signature --always \
		--start-number $n -o "$out" "$c" -- "$@"
done

cd "$TOP/patches"
# Keep the comments of the series file where their patches are, by subject.
awk -v out="$out" '
	BEGIN {
		while (("ls " out) | getline f) {
			slug = f; sub(/^[0-9]*-/, "", slug)
			name[slug] = f; order[++n] = f
		}
	}
	/^#/ || !NF { pending = pending $0 "\n"; next }
	{ slug = $1; sub(/^[0-9]*-/, "", slug); before[name[slug]] = pending; pending = "" }
	END {
		for (i = 1; i <= n; i++)
			printf "%s%s\n", before[order[i]], order[i]
	}' "$SERIES" >"$out/series"
for p in $(sed 's/#.*//' "$SERIES"); do
	rm -f "$p"
done
mv "$out/series" "$SERIES"
mv "$out"/*.patch .
rm -f "$SOURCE/.git/mfr-tree"
say "$n patches and $(echo "$new" | grep -c .) new files written"
