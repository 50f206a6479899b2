#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make prefixes: compile what the series touches after each of its patches, in the
# configuration of make kernel. Each must do without those that come after it: no error,
# and no warning that stock doesn't have.
# shellcheck disable=SC2086

. "${0%/*}/lib.sh"

"$MFR/packages.sh"
"$MFR/tree.sh"
config=$(kernel_dir patched)/config
[ -f "$config" ] || die "there is no $config; 'make kernel BASE=$BASE' makes it"
. "$MFR/objects.sh"
# Other architectures don't compile here.
c_files=$(for c in $c_files; do
	case $c in arch/$SRCARCH/*|[!a]*|a[!r]*) echo "$c" ;; esac
done)
logs=$O/runs/prefixes-$BASE
cases=$logs/cases
obj=$O/$BASE/prefixes
mkdir -p "$logs" "$obj"
cp "$config" "$obj/.config"

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

tree=$(git -C "$TREE" rev-parse HEAD)
total=$(git -C "$TREE" rev-list --count "base..$tree")
switch_to stock
: >"$cases"
say "the files that the series touches, stock"
compile base "$logs/0000" || die "stock doesn't compile, see $logs/0000"
warnings "$logs/0000" >"$logs/stock"

n=0
for c in $(git -C "$TREE" rev-list --reverse "base..$tree"); do
	n=$((n + 1))
	subject=$(git -C "$TREE" log -1 --format=%s "$c")
	log=$logs/$(printf %04d $n)
	# Documents and tests are none of the compiler's business.
	[ -n "$(git -C "$TREE" diff --name-only "$c^" "$c" -- ':!tools' ':!Documentation' \
		':!MAINTAINERS')" ] || continue
	result=pass
	compile "$c" "$log" || result=fail
	warnings "$log" | comm -13 "$logs/stock" - >"$log.new"
	[ ! -s "$log.new" ] || result=fail
	say "$n of $total: $subject$([ $result = pass ] || echo ": $result, see $log")"
	printf '%s\t%s\t%s\n' $result "patch $n compiles" "$subject" >>"$cases"
done
verdict "$cases"
