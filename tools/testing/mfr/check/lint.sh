#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# lint.sh [CASES]: the static tests. Adds a line for each to the file CASES.
# shellcheck disable=SC2046,SC2086

. "${0%/*}/../lib.sh"
. "$MFR/apt.sh"
need_x86 "make lint looks at sources, which are the same for x86"

own=
if [ $# = 1 ]; then
	cases=$1
else
	own=1
	cases=$O/runs/lint-$BASE.cases
	mkdir -p "$O/runs"
	: >"$cases"
	"$MFR/vm/packages.sh"
fi
# result pass|fail|skip TEST WHY
result() {
	note "$1" lint "$2" "$3"
	[ "$1" != fail ] || printf '%sFAILED%s %s\n' "$red" "$plain" "$2" >&2
}

say "shellcheck"
logs=$O/runs/lint-$BASE
rm -rf "$logs"
mkdir -p "$logs"
scripts=$(cd "$TOP" && grep -rlE '^#!.*[ /](ba)?sh$|^# shellcheck shell=' .ci tools/testing/mfr)
if (cd "$TOP" && shellcheck -x $scripts) >"$logs/shellcheck" 2>&1; then
	result pass "shellcheck has nothing to say" ""
else
	result fail "shellcheck has nothing to say" "$logs/shellcheck"
fi
# The document for those who run the tests elsewhere has the list of machines, too.
document=tools/testing/selftests/mm/hugetlb-mfr.rst
if BASE=7.3 DEBUG='' "$MFR/vm/machines.sh" rst >"$logs/machines.rst" &&
   awk -f "$MFR/check/contains.awk" "$logs/machines.rst" "$TOP/$document"; then
	result pass "$document has the machines of machines.cfg" ""
else
	result fail "$document has the machines of machines.cfg" "$logs/machines.rst"
fi

# The header for programs, and with it the example, which the tests build as C.
example >"$logs/example.c"
for standard in c++11 c++20; do
	if g++ -x c++ -std=$standard -pedantic -Wall -Wextra -Werror -fsyntax-only \
		-I "$TOP/tools/mm" "$logs/example.c" >"$logs/$standard" 2>&1; then
		result pass "kept_memory.h and the example are $standard" ""
	else
		result fail "kept_memory.h and the example are $standard" "$logs/$standard"
	fi
done

"$MFR/series/series.sh"
series=$O/series/$BASE
if [ ! -d "$series" ]; then	# the source has all of it
	[ -z "$own" ] || verdict "$cases"
	exit
fi

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
	local f
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
	if maintained "$p"; then
		also=,FILE_PATH_CHANGES
	fi
	# spdxcheck wants Debian's python, which has the modules; checkpatch
	# leaves a cache where it runs.
	if (cd "$logs" && PATH=/usr/bin:$PATH "$TREE/scripts/checkpatch.pl" --strict --no-signoff \
		--root="$TREE" --ignore "$ignore$also" \
		"$p" >"$logs/$n.checkpatch" 2>&1 </dev/null) &&
	   grep -q 'total: 0 errors, 0 warnings, 0 checks' "$logs/$n.checkpatch"; then
		result pass "checkpatch: $n" ""
	else
		result fail "checkpatch: $n" "$logs/$n.checkpatch"
	fi
done

# The ways to take the series, on the files it touches, and those that tree.sh looks at.
say "the series applies"
scratch=$(mktemp -d "$logs/scratch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT
touched=$(git -C "$TREE" diff --name-only --diff-filter=M base HEAD
	sed -n 's/^# Wants \([^ ]*\).*/\1/p' "$SERIES")
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
		result pass "the series applies with $2" ""
	else
		result fail "the series applies with $2" "$logs/$1.log"
	fi
}
take_patch() {
	cat "$series"/*.patch | patch -p1 --fuzz=0 --no-backup-if-mismatch
}
take_quilt() {
	cp -r "$series" patches
	(cd patches && printf '%s\n' ./*.patch | sed 's,^\./,,; /^0000-/d' >series)
	QUILT_PATCHES=patches quilt push -a --fuzz=0
}
take_am() {
	repository
	git am --empty=drop "$series"/*.patch
}
take_mbox() {	# an old git am stops at the cover letter
	repository
	if git am "$series.mbox"; then
		return 1
	fi
	git am --skip
}
repository() {
	git init -q .
	git config user.name x
	git config user.email x@localhost
	git add -Af
	git commit -qm base
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
take_set() {	# take_set NAME
	SET=$1 "$MFR/series/series.sh" || return 1
	[ -z "$fixes" ] || (alone "$1")
}
fixes=1
sets=
[ -n "$KSRC" ] || sets=$(sed -n 's/^# Set \([a-z0-9-]*\).*/\1/p' "$SERIES")
for set in $sets; do
	[ "$set" != record ] || fixes=
	log=$logs/set-$set.log does=${fixes:+applies alone}
	does=${does:-can be written}
	if take_set "$set" >"$log" 2>&1; then
		result pass "the set $set $does" ""
	else
		result fail "the set $set $does" "$log"
	fi
done

# A source that has patches already: one, all, and all but what they do to one file.
source_with() {
	fresh
	: >Kbuild
	for p in $1; do
		patch -p1 -s --fuzz=0 --no-backup-if-mismatch <"$p" || return 1
	done
	if [ -n "${2:-}" ]; then
		git -C "$TREE" show "base:$2" >"$2"
	fi
	rm -rf "$scratch/out"
	KSRC=$scratch/tree O=$scratch/out "$MFR/series/tree.sh" || return 1
	cd "$scratch/out/$BASE/linux" && same
}
has() {
	local log="$logs/has-$1" what="the series on a source with $1 of its patches"
	shift
	if "$@" >"$log" 2>&1; then
		result pass "$what" ""
	else
		result fail "$what" "$log"
	fi
}
has_half() {
	if source_with "$all" fs/hugetlbfs/inode.c 2>"$logs/half"; then
		return 1
	fi
	grep '^mfr: the source has .*\.patch in part' "$logs/half"
}
all=$(printf '%s\n' "$series"/*.patch | sed '/\/0000-/d')
if [ -z "$KSRC" ]; then
	has one source_with "$(ls "$series"/*-futex-*)"
	has all source_with "$all"
	has parts has_half
fi

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
# rb_link_node_rcu() gives the first one wherever it is used. On 6.12 sparse counts locks, and
# doesn't see where a guard() ends: ghes.c of stock has the second one for that.
noise='^rbtree.h: error: incompatible types in comparison expression
^mm/hugetlb_hwpoison.c: warning: context imbalance'
sparse() {	# sparse stock|patched SOURCE OBJECTS
	local log="$logs/sparse-$1" obj
	obj=$(kernel_dir "$1")/obj
	# C=2: also what needs no compiling.
	make -C "$2" O="$obj" C=2 CHECK="$sparse/sparse" -j"$JOBS" -Otarget $3 >"$log" 2>&1 ||
		return 1
	[ "$(grep -c '^  CHECK ' "$log")" -ge "$(echo $3 | wc -w)" ] || return 1
	# Line numbers differ between the two; the messages must not.
	grep -E ': (warning|error):' "$log" |
		sed 's,.*/\(linux\|[^/]*-source\)/,,; s/:[0-9]*:[0-9]*:/:/' |
		grep -v "$noise" | sort >"$log.warnings" || true
}
# Their configuration is enough.
configured() {
	local w
	for w in stock patched; do
		[ -f "$(kernel_dir $w)/obj/.config" ] || "$MFR/vm/kernel.sh" $w config || return 1
	done
}
in_stock=
for o in $objects; do
	[ ! -f "$SOURCE/${o%o}c" ] || in_stock="$in_stock $o"
done
if [ "$STOCK" = no ]; then
	: # nothing to compare with
elif say "sparse on the touched objects, stock and patched"; ! (build_sparse); then
	result skip "sparse has no new warnings" "there is no sparse that understands $BASE"
elif configured && sparse stock "$SOURCE" "$in_stock" && sparse patched "$TREE" "$objects"; then
	comm -13 "$logs/sparse-stock.warnings" "$logs/sparse-patched.warnings" \
		>"$logs/sparse-new"
	if [ -s "$logs/sparse-new" ]; then
		result fail "sparse has no new warnings" "$(head -n 1 "$logs/sparse-new"), $logs/sparse-new"
	else
		result pass "sparse has no new warnings" ""
	fi
else
	result fail "sparse has no new warnings" "did not run, $logs/sparse-stock, $logs/sparse-patched"
fi

[ -z "$own" ] || verdict "$cases"
