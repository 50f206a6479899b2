#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Make $TREE: a git tree of the kernel with one commit for each patch, and the
# new files that its New-file: lines name in the commit that brings them.
# shellcheck disable=SC2046,SC2086

. "${0%/*}/../lib.sh"

"$MFR/series/source.sh"

# The tree is up to date if it was made from these patches and files.
inputs() {
	cd "$TOP"
	{
		cat "$STATE/source" "$SERIES"
		for p in $(patches); do
			cat "patches/$p" $(new_files "patches/$p")
		done
	} | sha256sum | cut -d ' ' -f 1
}
patches() { sed 's/#.*//' "$SERIES"; }
new_files() { sed -n 's/^New-file: //p' "$1"; }

if [ -d "$TREE" ] && [ -f "$STATE/tree-inputs" ]; then
	if [ "$(cat "$STATE/tree-inputs")" = "$(inputs)" ]; then
		exit 0
	fi
	keep_edits
fi

if [ ! -d "$TREE" ]; then
	git -C "$SOURCE" worktree prune
	git -C "$SOURCE" worktree add -qfB mfr "$TREE" base
fi
scratch=$(mktemp -d "$STATE/tree.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# The commits are made in an index of their own, and checked out at the end: so
# only the files that change are written, and only they are compiled again.
cd "$TREE"
export GIT_INDEX_FILE="$scratch/index"
git read-tree base
commit=base

# apply PATCH [OPTION...]: to the index
apply() {
	local diff="$TOP/patches/$1"
	shift
	if grep -q '^diff --git' "$diff"; then
		git apply --cached "$@" "$diff"
	fi
}
in_index() { git rev-parse -q --verify ":$1"; }
blob() { git hash-object -w --no-filters "$TOP/$1"; }

# The series builds on commits that a source may lack: lines "# Wants FILE | TEXT | WHAT".
missing=$(sed -n 's/^# Wants //; t split; d; :split; s/ | /\t/gp' "$SERIES" |
	while IFS='	' read -r file text what; do
		grep -qsF -- "$text" "$SOURCE/$file" ||
			printf '  %s, for %s\n' "$what" "$file"
	done)
[ -z "$missing" ] || die "$(cat "$STATE/source") lacks what the series builds on:
$missing"

# other_form PATCH: the source has in another form what that does. Its message tells how
# to know: "Unless: FILE: TEXT".
other_form() {
	local unless
	unless=$(sed -n 's/^Unless: //p' "$1")
	[ -n "$unless" ] && [ -f "$SOURCE/${unless%%: *}" ] &&
		grep -qF -- "${unless#*: }" "$SOURCE/${unless%%: *}"
}

# The source may have some of the patches already: those that can be taken off it,
# the last one first.
for p in $(patches | tac); do
	f=$TOP/patches/$p
	[ -f "$f" ] || die "$SERIES names $p, which is not in patches/"
	for n in $(new_files "$f"); do
		[ -f "$TOP/$n" ] || die "$p brings $n, which doesn't exist"
		[ "$(in_index "$n")" = "$(blob "$n")" ] || continue 2
	done
	apply "$p" -R 2>/dev/null || other_form "$f" || continue
	for n in $(new_files "$f"); do
		git update-index --force-remove "$n"
	done
	echo "$p"
done >"$STATE/has"
git read-tree base

for p in $(patches); do
	f=$TOP/patches/$p
	if grep -qxF "$p" "$STATE/has"; then
		say "left out, the source has it already: $p"
		continue
	fi
	# A source that has more of a later kernel may want the later form.
	later=$TOP/patches/${p##*/}
	if ! apply "$p" 2>"$scratch/error" &&
	   ! { [ "$later" != "$f" ] && [ -f "$later" ] && apply "${p##*/}" 2>/dev/null; }; then
		part=$(for n in $(sed -n 's,^+++ b/,,p' "$f"); do
			if apply "$p" -R --check --include="$n" 2>/dev/null; then
				echo "$n"
			fi
		done)
		[ -z "$part" ] || die "the source has $p in part; undo there what it does to" $part
		cat "$scratch/error" >&2
		die "$p doesn't apply to $(cat "$STATE/source")"
	fi
	for n in $(new_files "$f"); do
		if in_index "$n" >/dev/null; then
			die "$p brings $n, which the source has already; remove it there"
		fi
		mode=100644
		[ ! -x "$TOP/$n" ] || mode=100755
		git update-index --add --cacheinfo "$mode,$(blob "$n"),$n"
	done
	# The message as mail has it; git am would want a diff.
	git mailinfo -b "$scratch/message" /dev/null <"$f" >"$scratch/header" ||
		die "$p has no mail header"
	subject=$(sed -n 's/^Subject: \(\[PATCH[^]]*\] \)*//p' "$scratch/header")
	date=$(sed -n 's/^Date: //p' "$scratch/header")
	commit=$({
		echo "$subject"
		echo
		sed '/^---$/,$d' "$scratch/message"
	} | git stripspace | GIT_AUTHOR_DATE=$date GIT_COMMITTER_DATE=$date \
		git commit-tree "$(git write-tree)" -p "$commit")
done
unset GIT_INDEX_FILE
# (A tree that was copied has other inodes, which is no reason to write all files.)
git update-index -q --refresh || :
git reset -q --hard "$commit"
git rev-parse HEAD >"$STATE/tree-head"
inputs >"$STATE/tree-inputs"
say "$BASE: $(git -C "$TREE" rev-list --count base..HEAD) patches applied in $TREE"
