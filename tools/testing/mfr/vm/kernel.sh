#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# kernel.sh stock|patched [config]: build that kernel, and its headers for userspace; with
# "config" only make its configuration
# shellcheck disable=SC2086

. "${0%/*}/../lib.sh"

which=$1
case $which in
stock)	 src=$SOURCE; "$MFR/series/source.sh" ;;
patched) src=$TREE; "$MFR/series/tree.sh" ;;
*)	 die "kernel.sh stock|patched" ;;
esac
dir=$(kernel_dir "$which")
obj=$dir/obj
mkdir -p "$dir"
need_space "$O" 3

# The kernel has KVM whether or not there are programs for it.
net=$(of programs net)
fragments=
for f in kernel $SRCARCH "$SRCARCH-$which" $SRCARCH-kvm ${net:+net} ${PAGES:+$SRCARCH-$PAGES} \
	$debug ${debug:+$debug-$BASE} ${BENCH:+bench}; do
	if [ -f "$MFR/config/$f.config" ]; then
		fragments="$fragments $MFR/config/$f.config"
	fi
done

# Nothing to do if the same source was built with the same configuration.
# (Edits that are not committed count: make finds out what they need.)
inputs=$(cd "$src" && { git rev-parse 'HEAD^{tree}'; git diff HEAD; cat $fragments
	${cross}gcc --version; } | sha256sum | cut -d ' ' -f 1)
if [ -f "$dir/$image" ] && [ "$(cat "$dir/built" 2>/dev/null)" = "$inputs" ]; then
	exit 0
fi
rm -f "$dir/built" "$dir/$image"

# The patched kernel begins as a copy of the stock one, so all that they have in common is
# built once. (A comment is no reason to build anything.)
stock=$(kernel_dir stock)
if [ "$which" = patched ] && [ ! -d "$obj" ] && [ -f "$stock/built" ]; then
	rm -rf "$obj.new"
	cp -a "$stock/obj" "$obj.new"
	find "$obj.new" -name '*.cmd' \
		-exec sed -i "s,$SOURCE/,$src/,g; s,$stock/obj,$obj,g" {} +
	(cd "$src" && git diff --numstat -I'^ \* ' base | cut -f 3 | xargs -r touch -c)
	mv "$obj.new" "$obj"
fi
mkdir -p "$obj"

make="make -C $src O=$obj"
built=$obj/arch/$SRCARCH/boot/$image
log=$dir/build.log
{
	$make tinyconfig
	(cd "$src" && KCONFIG_CONFIG=$obj/.config scripts/kconfig/merge_config.sh \
		-m -O "$obj" "$obj/.config" $fragments)
	$make olddefconfig
} >"$log" 2>&1 || die "configuring failed, see $log"

# The configuration must have all that the fragments ask for; the last one counts.
lost=$(cat $fragments | awk -F = '/^CONFIG_/ { want[$1] = $0 } END { for (w in want) print want[w] }' |
	while read -r want; do
	case $want in
	*=n) grep "^${want%=n}=" "$obj/.config" || true ;;
	*)   grep -qxF "$want" "$obj/.config" || echo "$want" ;;
	esac
done)
[ -z "$lost" ] || die "the configuration doesn't keep:" $lost
cp "$obj/.config" "$dir/config"
if [ "${2-}" = config ]; then
	exit 0
fi

# progress: show how many lines of make's output there were so far
progress() {
	local tty=
	[ ! -t 1 ] || tty=1
	awk -v what="$which kernel" -v total="$objects" -v log_file="$log" -v tty="$tty" \
		-f "$MFR/vm/progress.awk"
}

say "building the $which $BASE kernel${suffix:+ ($suffix)}"
begin=$(date +%s)
objects=$(cat "$O/objects$suffix" 2>/dev/null || echo 2000)
if [ -n "$V" ]; then
	$make -j"$JOBS" $image 2>&1 | tee -a "$log"
else
	{ $make -j"$JOBS" $image 2>&1 || echo "mfr: failed"; } |
		progress
fi
if [ ! -f "$built" ] || grep -q '^mfr: failed' "$log"; then
	grep -n 'error:\|Error \|\*\*\*' "$log" | head -5 >&2
	die "building the $which kernel failed, see $log"
fi
n=$(grep -cE '^  (CC|AS|LD|AR|HOSTCC) ' "$log" || true)
if [ "$n" -ge 1000 ]; then
	echo "$n" >"$O/objects$suffix"
fi
$make headers >>"$log" 2>&1 || die "making headers failed, see $log"
cp "$built" "$dir/$image"
echo "$inputs" >"$dir/built"
secs=$(($(date +%s) - begin))
say "$dir/$image ($((secs / 60)) min $((secs % 60)) s)"
