#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Write the commits of $TREE back: hunks in existing files to patches/, new files
# to their place, if they were edited there. A new file is stored as its commit
# adds it.

. "${0%/*}/lib.sh"

[ -d "$TREE" ] || die "there is no $TREE; 'make tree' makes it"
cd "$TREE"
git diff --quiet HEAD || die "$TREE has changes that are not committed"

stamp=$SOURCE/.git/mfr-tree
was=$(cat "$stamp.head")	# the tree as make tree has made it
as_added() {	# as_added REF FILE: that file in the commit that adds it
	by=$(git log --format=%H --diff-filter=A "base..$1" -- "$2")
	[ -z "$by" ] || git show "$by:$2"
}

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
		as_added "$was" "$f" >"$out/old"
		git show "$c:$f" >"$out/new"
		! cmp -s "$out/old" "$out/new" || continue
		! cmp -s "$out/new" "$TOP/$f" || continue
		[ ! -f "$TOP/$f" ] || cmp -s "$out/old" "$TOP/$f" ||
			die "$f was edited both here and in $TREE; undo one of them"
		mkdir -p "$TOP/$(dirname "$f")"
		cp "$out/new" "$TOP/$f"
	done
	set -- .
	for f in $added; do
		set -- "$@" ":!$f"
	done
	git format-patch -q -1 -N --abbrev=12 --zero-commit --no-signature --always \
		--start-number $n -o "$out" "$c" -- "$@"
done

cd "$TOP/patches"
# Keep the comments of the series file where their patches are, by subject.
awk -v out="$out" '
	BEGIN {
		while (("cd " out "; ls [0-9]*.patch") | getline f) {
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
rm -f "$out/old" "$out/new"
mv "$out"/*.patch .
rm -f "$stamp"
say "$n patches and $(echo "$new" | grep -c .) new files written"
