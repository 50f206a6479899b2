#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Write the commits of $TREE back: hunks in existing files to patches/, new files
# to their place, if they were edited there. A new file is stored as its commit
# adds it. Another base than 7.3 gets patches of its own, in patches/BASE, only for
# commits to which the patch of that name in patches/ doesn't lead. They have the
# number of the latter, or 0000 if only that base needs them.

. "${0%/*}/lib.sh"

[ -d "$TREE" ] || die "there is no $TREE; 'make tree' makes it"
cd "$TREE"
git diff --quiet HEAD || die "$TREE has changes that are not committed"

[ ! -s "$SOURCE/.git/mfr-has" ] ||
	die "$TREE lacks patches that its source has; refresh wants a source without them"

stamp=$SOURCE/.git/mfr-tree
was=$(cat "$stamp.head")	# the tree as make tree has made it
as_added() {	# as_added REF FILE: that file in the commit that adds it
	by=$(git log --format=%H --diff-filter=A "base..$1" -- "$2")
	[ -z "$by" ] || git show "$by:$2"
}

leads_to() {	# leads_to COMMIT PATCH [PATHSPEC...]: from COMMIT^, there
	c=$1 patch=$2
	shift 2
	export GIT_INDEX_FILE="$out/index"
	git read-tree "$c^"
	! grep -q '^diff --git' "$patch" || git apply --cached "$patch" 2>/dev/null &&
		git diff --cached --quiet "$c" -- "$@" && ret=0 || ret=1
	unset GIT_INDEX_FILE
	return $ret
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
	p=$(git format-patch -1 --sparse -N --abbrev=12 --zero-commit --no-signature --always \
		--start-number $n -o "$out" "$c" -- "$@")
	p=${p##*/}
	if [ "$BASE" != 7.3 ]; then
		shared=$(cd "$TOP/patches" &&
			ls [0-9][0-9][0-9][0-9]-"${p#*-}" 2>/dev/null || true)
		if [ -n "$shared" ] && leads_to "$c" "$TOP/patches/$shared" "$@"; then
			rm "$out/$p"
			p=$shared
		else
			git log -1 --format=%B "$c" | grep -q "^\[mfr: $BASE: " ||
				die "'$(git log -1 --format=%s "$c")' is not 7.3's;" \
				    "its message needs a line '[mfr: $BASE: why]'"
			name=${shared%%-*}
			name=${name:-0000}-${p#*-}
			[ "$name" = "$p" ] || mv "$out/$p" "$out/$name"
			p=$BASE/$name
		fi
	fi
	echo "$p" >>"$out/order"
done

cd "$TOP/patches"
# Keep the comments of the series file where their patches are, by subject. A patch with
# another subject than before follows the same one as before, or is gone.
awk '
	function slug(s) { sub(/^([^\/]*\/)?[0-9]*-/, "", s); return s }
	FNR == NR { order[++n] = $1; at[slug($1)] = n; next }
	/^#/ || !NF { pending = pending $0 "\n"; next }
	{ old[++m] = slug($1); known[slug($1)] = 1; before[m] = pending; pending = "" }
	END {
		for (i = 1; i <= m; i++) {
			text = text before[i]
			if (old[i] in at)
				now = at[old[i]]
			else if (now < n && !(slug(order[now + 1]) in known))
				now++
			else
				continue
			comment[now] = comment[now] text
			text = ""
		}
		for (i = 1; i <= n; i++)
			printf "%s%s\n", comment[i], order[i]
	}' "$out/order" "$SERIES" >"$out/series"
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
rm -f "$stamp"
say "$n patches and $(echo "$new" | grep -c .) new files written"
