#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# lint.sh [CASES]: the static tests. Adds a line for each to the file CASES.

. "${0%/*}/lib.sh"
. "$MFR/apt.sh"
need_x86 "make lint looks at sources, which are the same for x86"

own=
[ $# = 1 ] || {
	own=1
	set -- "$O/runs/cases-lint-$BASE"
	mkdir -p "$O/runs"
	: >"$1"
	"$MFR/packages.sh"
}
cases=$1
note() {
	printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$cases"
	[ "$1" != fail ] || printf '%sFAILED%s %s\n' "$red" "$plain" "$2" >&2
}

"$MFR/series.sh"
series=$O/series/$BASE
[ -d "$series" ] || exit 0	# the source has all of it
logs=$O/runs/lint-$BASE
rm -rf "$logs"
mkdir -p "$logs"

say "checkpatch"
# CAMELCASE: page flags have such names by convention.
# UNKNOWN_COMMIT_ID: the source comes without its history.
ignore=CAMELCASE,UNKNOWN_COMMIT_ID
# BAD_SIGN_OFF: checkpatch of 6.12 wants something else of Assisted-by.
[ "$BASE" != 6.12 ] || ignore=$ignore,BAD_SIGN_OFF
# FILE_PATH_CHANGES asks whether new files have maintainers: not if they are where stock's
# MAINTAINERS has somebody for what lies there.
git -C "$TREE" show base:MAINTAINERS >"$logs/MAINTAINERS"
maintained() {
	for f in $(sed -n '/^--- \/dev\/null$/{n; s,^+++ b/,,p}' "$1"); do
		(cd "$TREE" && scripts/get_maintainer.pl --mpath="$logs/MAINTAINERS" --no-git \
			--no-git-fallback --sections -f "$f") |
			sed '/^THE REST/,$d' | grep -q '^M:' || return 1
	done
}
for p in "$series"/*.patch; do
	n=${p##*/}
	case $n in 0000-*) continue ;; esac
	also=
	! maintained "$p" || also=,FILE_PATH_CHANGES
	# spdxcheck wants Debian's python, which has the modules; checkpatch
	# leaves a cache where it runs.
	if (cd "$logs" && PATH=/usr/bin:$PATH "$TREE/scripts/checkpatch.pl" --strict --no-signoff \
		--root="$TREE" --ignore "$ignore$also" \
		"$p" >"$logs/$n.checkpatch" 2>&1 </dev/null) &&
	   grep -q 'total: 0 errors, 0 warnings, 0 checks' "$logs/$n.checkpatch"; then
		note pass "checkpatch: $n" ""
	else
		note fail "checkpatch: $n" "$logs/$n.checkpatch"
	fi
done

# The ways to take the series, on the files it touches.
say "the series applies"
scratch=$(mktemp -d "$logs/scratch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
touched=$(git -C "$TREE" diff --name-only --diff-filter=M base HEAD)
fresh() {
	rm -rf "$scratch/tree"
	mkdir "$scratch/tree"
	git -C "$TREE" archive base $touched | tar -x -C "$scratch/tree"
	cd "$scratch/tree"
}
same() {	# the tree is what make tree makes
	for f in $(git -C "$TREE" diff --name-only base HEAD); do
		git -C "$TREE" show "HEAD:$f" | cmp -s - "$f" || return 1
	done
}
take() {
	fresh
	if "take_$1" >"$logs/$1.log" 2>&1 && same; then
		note pass "the series applies with $2" ""
	else
		note fail "the series applies with $2" "$logs/$1.log"
	fi
}
take_patch() {
	cat "$series"/*.patch | patch -p1 --fuzz=0 --no-backup-if-mismatch
}
take_quilt() {
	cp -r "$series" patches
	(cd patches && ls *.patch | grep -v '^0000-' >series)
	QUILT_PATCHES=patches quilt push -a --fuzz=0
}
take_am() {
	repository
	git am --empty=drop "$series"/*.patch
}
take_mbox() {	# an old git am stops at the cover letter
	repository
	! git am "$series.mbox" && git am --skip
}
repository() {
	git init -q . && git config user.name x && git config user.email x@localhost
	git add -Af && git commit -qm base
}
take patch "patch --fuzz=0"
take quilt "quilt push -a --fuzz=0"
take am "git am --empty=drop"
take mbox "git am and git am --skip, as an mbox"

# So does each set of fixes, by itself. The others have a cover letter, at least.
cd "$TOP"
alone() {
	fresh
	repository
	git am --empty=drop $(ls "$O/series/$BASE-$1"/*.patch)
}
fixes=1
[ -n "$KSRC" ] ||
for set in $(sed -n 's/^# Set \([a-z0-9-]*\).*/\1/p' "$SERIES"); do
	[ "$set" != record ] || fixes=
	log=$logs/set-$set.log does=${fixes:+applies alone}
	does=${does:-can be written}
	if SET=$set "$MFR/series.sh" >"$log" 2>&1 &&
	   { [ -z "$fixes" ] || (alone "$set") >>"$log" 2>&1; }; then
		note pass "the set $set $does" ""
	else
		note fail "the set $set $does" "$log"
	fi
done

# A source that has patches already: one, all, and all but what they do to one file.
source_with() {
	fresh
	: >Kbuild
	for p in $1; do
		patch -p1 -s --fuzz=0 --no-backup-if-mismatch <"$p" || return 1
	done
	[ -z "${2:-}" ] || git -C "$TREE" show "base:$2" >"$2"
	rm -rf "$scratch/out"
	KSRC=$scratch/tree O=$scratch/out "$MFR/tree.sh" || return 1
	cd "$scratch/out/$BASE/linux" && same
}
has() {
	has=has-$1 what="the series on a source with $1 of its patches"
	shift
	if "$@" >"$logs/$has" 2>&1; then
		note pass "$what" ""
	else
		note fail "$what" "$logs/$has"
	fi
}
has_half() {
	! source_with "$all" fs/hugetlbfs/inode.c 2>"$logs/half" &&
		grep '^mfr: the source has .*\.patch in part' "$logs/half"
}
all=$(ls "$series"/*.patch | grep -v '/0000-')
[ -n "$KSRC" ] || {
	has one source_with "$(ls "$series"/*-futex-*)"
	has all source_with "$all"
	has parts has_half
}

# Debian 12's sparse is too old for 7.3, and kbuild leaves it out with a word only.
sparse=$O/cache/sparse
build_sparse() {
	[ ! -x "$sparse/sparse" ] || return 0
	fetch_source sparse forky "$sparse"
	tar -xf "$sparse"/sparse_*.orig.tar.* -C "$sparse" --strip-components=1
	make -C "$sparse" -j"$JOBS" sparse >"$sparse/build.log" 2>&1 ||
		die "building sparse failed, see $sparse/build.log"
}
objects=$(git -C "$TREE" diff --name-only base HEAD -- '*.c' ':!tools' ':!*_kunit.c' |
	grep -v "^arch/" | sed 's/c$/o/'
	git -C "$TREE" diff --name-only base HEAD -- "arch/$SRCARCH/*.c" | sed 's/c$/o/')
# What rb_link_node_rcu() gives wherever it is used
noise='^rbtree.h: error: incompatible types in comparison expression'
sparse() {	# sparse stock|patched SOURCE OBJECTS
	dir=$(kernel_dir "$1")/obj
	# C=2: also what needs no compiling.
	make -C "$2" O="$dir" C=2 CHECK="$sparse/sparse" -j"$JOBS" -Otarget $3 \
		>"$logs/sparse-$1" 2>&1 &&
		[ "$(grep -c '^  CHECK ' "$logs/sparse-$1")" -ge "$(echo $3 | wc -w)" ] ||
		return 1
	# Line numbers differ between the two; the messages must not.
	grep -E ': (warning|error):' "$logs/sparse-$1" |
		sed 's,.*/\(linux\|[^/]*-source\)/,,; s/:[0-9]*:[0-9]*:/:/' |
		grep -v "$noise" | sort >"$logs/sparse-$1.warnings" || true
}
in_stock=
for o in $objects; do
	[ ! -f "$SOURCE/${o%o}c" ] || in_stock="$in_stock $o"
done
if [ "$STOCK" = no ]; then
	: # nothing to compare with
elif say "sparse on the touched objects, stock and patched"; ! (build_sparse); then
	note skip "sparse has no new warnings" "there is no sparse that understands $BASE"
elif sparse stock "$SOURCE" "$in_stock" && sparse patched "$TREE" "$objects"; then
	comm -13 "$logs/sparse-stock.warnings" "$logs/sparse-patched.warnings" \
		>"$logs/sparse-new"
	if [ -s "$logs/sparse-new" ]; then
		note fail "sparse has no new warnings" "$(head -n 1 "$logs/sparse-new"), $logs/sparse-new"
	else
		note pass "sparse has no new warnings" ""
	fi
else
	note fail "sparse has no new warnings" "did not run, $logs/sparse-stock, $logs/sparse-patched"
fi

[ -z "$own" ] || verdict "$cases"
