#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Write the commits of $TREE back: hunks in existing files to patches/, new files
# to their place, if they were edited there. A new file is stored as its commit
# adds it. Another base than 7.3 gets patches of its own, in patches/BASE, only for
# commits to which the patch of that name in patches/ doesn't lead. They have the
# number of the latter, or 0000 if only that base needs them, and then a word why, if the
# message has one: [mfr: BASE: upstream: ...] of what later kernels have, stock: of a bug
# of that kernel alone, names: of what is only called otherwise there.

. "${0%/*}/../lib.sh"

[ -d "$TREE" ] || die "there is no $TREE; 'make tree' makes it"
cd "$TREE"
git diff --quiet HEAD || die "$TREE has changes that are not committed"

[ ! -s "$STATE/has" ] ||
	die "$TREE lacks patches that its source has; refresh wants a source without them"

was=$(cat "$STATE/tree-head")	# the tree as make tree has made it
as_added() {	# as_added REF FILE: that file in the commit that adds it
	local by
	by=$(git log --format=%H --diff-filter=A "base..$1" -- "$2")
	[ -z "$by" ] || git show "$by:$2"
}

leads_to() {	# leads_to COMMIT PATCH [PATHSPEC...]: from COMMIT^, there
	local c="$1" patch="$2"
	shift 2
	(
		export GIT_INDEX_FILE="$out/index"
		git read-tree "$c^"
		if grep -q '^diff --git' "$patch"; then
			git apply --cached "$patch" 2>/dev/null || exit 1
		fi
		git diff --cached --quiet "$c" -- "$@"
	)
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
		if cmp -s "$out/old" "$out/new" || cmp -s "$out/new" "$TOP/$f"; then
			continue
		fi
		if [ -f "$TOP/$f" ] && ! cmp -s "$out/old" "$TOP/$f"; then
			die "$f was edited both here and in $TREE; undo one of them"
		fi
		mkdir -p "$TOP/$(dirname "$f")"
		cp "$out/new" "$TOP/$f"
	done
	set -- .
	for f in $added; do
		set -- "$@" ":!$f"
	done
	p=$(git format-patch -1 --sparse -N --abbrev=12 --zero-commit --no-signature --always \
		--start-number $n -o "$out" "$c" -- "$@")
	p=${p##*/}
	if [ "$BASE" != 7.3 ]; then
		shared=$(cd "$TOP/patches"; ls [0-9][0-9][0-9][0-9]-"${p#*-}" 2>/dev/null) || :
		if [ -n "$shared" ] && leads_to "$c" "$TOP/patches/$shared" "$@"; then
			rm "$out/$p"
			p=$shared
		else
			git log -1 --format=%B "$c" | grep -q "^\[mfr: $BASE: " ||
				die "'$(git log -1 --format=%s "$c")' is not 7.3's;" \
				    "its message needs a line '[mfr: $BASE: why]'"
			name=${shared%%-*}
			[ -n "$name" ] || name=0000$(git log -1 --format=%B "$c" |
				sed -n "s/^\[mfr: $BASE: \([a-z]*\): .*/-\1/p")
			name=$name-${p#*-}
			[ "$name" = "$p" ] || mv "$out/$p" "$out/$name"
			p=$BASE/$name
		fi
	fi
	echo "$p" >>"$out/order"
done

cd "$TOP/patches"
# Keep the comments of the series file.
awk -f "$MFR/series/comments.awk" "$out/order" "$SERIES" >"$out/series"
for p in $(sed 's/#.*//' "$SERIES"); do
	case $BASE:$p in
	7.3:*|"$BASE:$BASE"/*)	rm -f "$p" ;;
	esac
done
dir=.
[ "$BASE" = 7.3 ] || dir=$BASE
mkdir -p "$dir"
mv "$out/series" "$SERIES"
for p in "$out"/*.patch; do
	[ ! -f "$p" ] || mv "$p" "$dir"
done
rmdir "$dir" 2>/dev/null || true
# The other bases take the patches of 7.3 by name.
[ "$BASE" != 7.3 ] || for s in series.*; do
	awk 'function slug(s) { sub(/^[0-9]*-/, "", s); return s }
	     FNR == NR { name[slug($1)] = $1; next }
	     !/\// && slug($1) in name { $0 = name[slug($1)] }
	     { print }' "$out/order" "$s" >"$out/series"
	cmp -s "$out/series" "$s" || cp "$out/series" "$s"
done
rm -f "$STATE/tree-inputs"
say "$n patches and $(echo "$new" | grep -c .) new files written"
