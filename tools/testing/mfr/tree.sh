#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Make $TREE: a git tree of the kernel with one commit for each patch, and the
# new files that its New-file: lines name in the commit that brings them.

. "${0%/*}/lib.sh"

"$MFR/source.sh"

# The tree is up to date if it was made from these patches and files.
inputs() {
	cd "$TOP"
	{
		cat "$SOURCE/.git/mfr-source" "$SERIES"
		for p in $(patches); do
			cat "patches/$p" $(new_files "patches/$p")
		done
	} | sha256sum | cut -d ' ' -f 1
}
patches() { sed 's/#.*//' "$SERIES"; }
new_files() { sed -n 's/^New-file: //p' "$1"; }

stamp=$SOURCE/.git/mfr-tree
if [ -d "$TREE" ] && [ -f "$stamp" ]; then
	[ "$(cat "$stamp")" != "$(inputs)" ] || exit 0
	keep_edits
fi

[ -d "$TREE" ] || {
	git -C "$SOURCE" worktree prune
	git -C "$SOURCE" worktree add -qfB mfr "$TREE" base
}

# The commits are made in an index of their own, and checked out at the end: so
# only the files that change are written, and only they are compiled again.
cd "$TREE"
export GIT_INDEX_FILE="$SOURCE/.git/mfr-index"
git read-tree base
commit=base

# apply PATCH [OPTION...]: to the index
apply() {
	diff=$TOP/patches/$1
	shift
	! grep -q '^diff --git' "$diff" || git apply --cached "$@" "$diff"
}
in_index() { git rev-parse -q --verify ":$1"; }
blob() { git hash-object -w --no-filters "$TOP/$1"; }

# The source may have some of the patches already: those that can be taken off it,
# the last one first.
has=$SOURCE/.git/mfr-has
for p in $(patches | tac); do
	f=$TOP/patches/$p
	[ -f "$f" ] || die "$SERIES names $p, which is not in patches/"
	for n in $(new_files "$f"); do
		[ -f "$TOP/$n" ] || die "$p brings $n, which doesn't exist"
		[ "$(in_index "$n")" = "$(blob "$n")" ] || continue 2
	done
	apply "$p" -R 2>/dev/null || continue
	for n in $(new_files "$f"); do
		git update-index --force-remove "$n"
	done
	echo "$p"
done >"$has"
git read-tree base

for p in $(patches); do
	f=$TOP/patches/$p
	if grep -qxF "$p" "$has"; then
		say "left out, the source has it already: $p"
		continue
	fi
	apply "$p" 2>"$SOURCE/.git/mfr-error" || {
		part=$(for n in $(sed -n 's,^+++ b/,,p' "$f"); do
			! apply "$p" -R --check --include="$n" 2>/dev/null || echo "$n"
		done)
		[ -z "$part" ] || die "the source has $p in part; undo there what it does to" $part
		cat "$SOURCE/.git/mfr-error" >&2
		die "$p doesn't apply to $(cat "$SOURCE/.git/mfr-source")"
	}
	for n in $(new_files "$f"); do
		! in_index "$n" >/dev/null ||
			die "$p brings $n, which the source has already; remove it there"
		mode=100644
		[ ! -x "$TOP/$n" ] || mode=100755
		git update-index --add --cacheinfo "$mode,$(blob "$n"),$n"
	done
	# The message as mail has it; git am would want a diff.
	git mailinfo -b "$SOURCE/.git/mfr-msg" /dev/null \
		<"$f" >"$SOURCE/.git/mfr-info" ||
		die "$p has no mail header"
	subject=$(sed -n 's/^Subject: \(\[PATCH[^]]*\] \)*//p' "$SOURCE/.git/mfr-info")
	date=$(sed -n 's/^Date: //p' "$SOURCE/.git/mfr-info")
	commit=$({
		echo "$subject"
		echo
		sed '/^---$/,$d' "$SOURCE/.git/mfr-msg"
	} | git stripspace | GIT_AUTHOR_DATE=$date GIT_COMMITTER_DATE=$date \
		git commit-tree "$(git write-tree)" -p "$commit")
done
unset GIT_INDEX_FILE
# (A tree that was copied has other inodes, which is no reason to write all files.)
git update-index -q --refresh || :
git reset -q --hard "$commit"
git rev-parse HEAD >"$stamp.head"
inputs >"$stamp"
say "$BASE: $(git -C "$TREE" rev-list --count base..HEAD) patches applied in $TREE"
