#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make tests-tar: the tests as $O/tests-BASE.tar.gz, static, with a runner and a README, for
# a patched kernel on any machine

. "${0%/*}/../lib.sh"

"$MFR/vm/packages.sh"
"$MFR/series/tree.sh"

headers=$O/$BASE$suffix/headers
mkdir -p "$headers"
make -C "$TREE" O="$headers" headers >"$headers/make.log" 2>&1 ||
	die "making headers failed, see $headers/make.log"
name=hugetlb-mfr-tests
dir=$O/$BASE$suffix/$name
rm -rf "$dir"
"$MFR/vm/build-tests.sh" "$dir/bin" "$headers/usr/include"

cp "$MFR/hardware/run-tests" "$MFR/hardware/README" "$dir"
cp "$TREE/tools/testing/selftests/mm/hugetlb-mfr.rst" "$TREE/COPYING" "$dir"
# The commands come from the table of machines: NAME<TAB>POOL<TAB>NEEDS<TAB>COMMAND
table | awk -F '\t' -f "$MFR/hardware/commands.awk" >"$dir/commands"
cut -f 4 "$dir/commands" | tr ' ' '\n' >"$headers/words"
for p in "$dir"/bin/*; do
	case ${p##*/} in
	page-types|heal-kept-memory) ;;
	*) grep -qx "${p##*/}" "$headers/words" || rm "$p" ;;
	esac
done
{
	cat "$STATE/source"
	git -C "$TREE" log -1 --format='with the series up to: %s'
	${cross}gcc --version | head -n 1
} >"$dir/made-from"

tar=$O/tests-$BASE$suffix.tar.gz
tar -C "${dir%/*}" --owner=0 --group=0 -czf "$tar" $name
say "$tar: unpack it on the machine, and run $name/run-tests as root"
