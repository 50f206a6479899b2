#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make prefixes: compile what the series touches after each of its patches, in the
# configuration of make kernel. Each must do without those that come after it: no error,
# and no warning that stock doesn't have. At the end of each set of patches boot that
# kernel, and run the tests that are in the tree by then: those of the series must pass,
# and others may fail only if they fail on stock.
# shellcheck disable=SC2086

. "${0%/*}/../lib.sh"
need_x86 "make prefixes boots the kernels of x86 only"

"$MFR/vm/packages.sh"
"$MFR/vm/kernel.sh" patched config
. "$MFR/check/objects.sh"
logs=$O/runs/prefixes-$BASE
cases=$logs/cases
obj=$O/$BASE/prefixes
rm -rf "$logs"
mkdir -p "$logs" "$obj"
cp "$(kernel_dir patched)/config" "$obj/.config"

# A build directory for initramfs.sh and boot.sh, with the tree as it is after a patch
at=$O/$BASE/at-prefix
rm -rf "$at"
mkdir -p "$at/$BASE"
ln -s "$BOTH" "$at/$BASE/linux"
ln -s "$obj" "$at/$BASE/obj"
ln -s "$STATE" "$at/$BASE/state"
ln -s "$SOURCE" "$at/$BASE-source"
ln -s "$logs" "$at/runs"

# compile REF LOG: what of it has changed since the last time
compile() {
	git -C "$BOTH" checkout -q --detach "$1"
	set -- "$2" make -C "$BOTH" O="$obj" W=1 -j"$JOBS"
	log=$1
	shift
	"$@" olddefconfig prepare >"$log" 2>&1 || return 1
	objects=$(objects_of "$obj")
	"$@" -k $objects >>"$log" 2>&1
}

# run NAME: boot the kernel after that patch, and leave in $logs/NAME.cases the results of
# the tests that the tree has by then
run() {
	local machine there command
	make -C "$BOTH" O="$obj" W=1 -j"$JOBS" $image headers >"$logs/$1.kernel" 2>&1 || return 1
	cp "$obj/arch/$SRCARCH/boot/$image" "$at/$BASE/"
	cp "$obj/.config" "$at/$BASE/config"
	O=$at PREFIX=1 "$MFR/vm/initramfs.sh" >"$logs/$1.tests" 2>&1 || return 1
	: >"$logs/$1.cases"
	for machine in mainline neighbours simulated; do
		there=$(of $machine run | while read -r command; do
			if [ -f "$at/$BASE/root/tests/${command%% *}" ]; then
				printf '%s;' "$command"
			fi
		done)
		[ -n "$there" ] || continue
		O=$at RUN_NAME=at-$1-$machine "$MFR/vm/boot.sh" patched $machine "$there" \
			2>"$logs/$1.boot" || return 1
		awk -f "$MFR/vm/results.awk" "$logs/at-$1-$machine-$BASE-patched/results" \
			>>"$logs/$1.cases"
	done
}

# new_failures NAME: tests that fail after that patch, but not on stock, and those of the
# series that are skipped, but not for want of what that kernel lacks
new_failures() {
	awk -F '\t' '
		FILENAME == ARGV[1] { if ($1 == "fail") known[$2 FS $3] = 1; next }
		$1 == "fail" && ($2 FS $3 in known) { next }
		$1 == "skip" && $2 !~ /^(hugetlb-(mfr|punch-private|zero-range)|vhost_net)/ { next }
		{ print }' "$logs/0000.cases" "$logs/$1.cases" |
		awk -F '\t' -v kernel=patched -v machine="$1" -v log_dir="$logs" \
			-v lacks="$(of simulated lacks)" -v matched=/dev/null \
			-f "$MFR/check/judge.awk" |
		grep ^fail || true
}

tree=$(git -C "$TREE" rev-parse HEAD)
total=$(git -C "$TREE" rev-list --count "base..$tree")
switch_to stock
: >"$cases"
say "the files that the series touches, and the tests, stock"
compile base "$logs/0000" || die "stock doesn't compile, see $logs/0000"
warnings "$logs/0000" >"$logs/stock"
run 0000 || die "the tests don't run on stock, see $logs/0000.*"

# The last patches of sets, by their numbers
ends=$(awk -v has="$STATE/has" '
	BEGIN { while ((getline line <has) > 0) skip[line] = 1 }
	/^# Set / && n { print n }
	!/^#/ && NF && !($1 in skip) { n++ }
	END { print n }' "$SERIES" | uniq)

n=0
for c in $(git -C "$TREE" rev-list --reverse "base..$tree"); do
	n=$((n + 1))
	number=$(printf %04d $n)
	subject=$(git -C "$TREE" log -1 --format=%s "$c")
	log=$logs/$number
	# Documents and tests are none of the compiler's business.
	if [ -n "$(git -C "$TREE" diff --name-only "$c^" "$c" -- ':!tools' ':!Documentation' \
		':!MAINTAINERS')" ]; then
		result=pass
		compile "$c" "$log" || result=fail
		warnings "$log" | comm -13 "$logs/stock" - >"$log.new"
		[ ! -s "$log.new" ] || result=fail
		say "$n of $total: $subject$([ $result = pass ] || echo ": $result, see $log")"
		note $result prefixes "patch $n compiles: $subject" "$log"
	fi
	echo "$ends" | grep -qx $n || continue
	git -C "$BOTH" checkout -q --detach "$c"
	result=pass
	if run "$number"; then
		new_failures "$number" >"$log.failures"
		[ ! -s "$log.failures" ] || result=fail
		passed=$(grep -c ^pass "$logs/$number.cases")
	else
		result=fail passed=no
	fi
	say "$n of $total: $passed tests pass$([ $result = pass ] || echo ": $result, see $log.*")"
	note $result prefixes "the tests pass after patch $n" "$log.failures"
done
verdict "$cases"
