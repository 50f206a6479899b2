#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make check-qemu: patches/qemu. Each patch applies with git am, compiles, and passes QEMU's
# checkpatch. QEMU's own tests of what the patches touch pass where they pass without the
# patches, and its test of lost memory passes on the patched kernel. EACH=1: everything is
# built after each patch, and not only what the patch touches.

. "${0%/*}/../lib.sh"
need_x86 "patches/qemu is tried on x86 only"

"$MFR/vm/prepare.sh" patched
for which in stock patched; do
	"$MFR/vm/qemu.sh" $which
done
mkdir -p "$O/runs"
cases=$O/runs/qemu
logs=$O/runs/qemu-logs
rm -rf "$logs"
mkdir -p "$logs"
cp "$O/qemu/cases" "$cases"

say "QEMU's checkpatch"
cd "$O/qemu/src"
for p in $(sed '/^#/d; /^$/d' "$TOP/patches/qemu/series"); do
	if scripts/checkpatch.pl --no-signoff --patch "$TOP/patches/qemu/$p" \
		>"$logs/$p.checkpatch" 2>&1 &&
	   grep -q 'total: 0 errors, 0 warnings' "$logs/$p.checkpatch"; then
		note pass qemu "checkpatch: $p" ""
	else
		note fail qemu "checkpatch: $p" "$logs/$p.checkpatch"
	fi
done

# results DIRECTORY LOG: what the tests there say, in lines as vm/results.awk has them
results() {
	local program t status
	mkdir -p "$2"
	# Some read files of the source.
	cd "$O/qemu/src"
	for program in "$1/tests"/*; do
		t=${program##*/}
		status=0
		echo "begin $t"
		QTEST_QEMU_BINARY=$1/qemu-system-x86_64 TMPDIR=$2 \
			timeout 1200 "$program" --tap -k 2>"$2/$t.err" || status=$?
		printf '\nend %d %s\n' $status "$t"
	done >"$2/results"
	awk -f "$MFR/vm/results.awk" "$2/results" >"$2/cases"
}
say "QEMU's tests, with and without patches/qemu: migration-test takes 20 minutes"
results "$O/qemu-stock" "$logs/stock" &
results "$O/qemu" "$logs/patched"
wait
# Tests that the patches bring are in the second file only.
awk -F '\t' -v OFS='\t' -v log_dir="$logs" '
	FNR == NR { stock[$2 ": " $3] = $1; next }
	{
		c = $2 ": " $3
		patched[c]
		why = $1 == "pass" ? "" : $1 == "skip" ? "it is skipped here" : log_dir
		if (stock[c] == "fail" && $1 == "fail") {
			$1 = "skip"
			why = "it fails without the patches, too"
		}
		print $1, "qemu", c, why
	}
	END {
		for (c in stock)
			if (!(c in patched))
				print "fail", "qemu", c, "not run with the patches, " log_dir
	}' "$logs/stock/cases" "$logs/patched/cases" >>"$cases"

# Lost memory needs the patched kernel.
dir=$O/$BASE$suffix
root=$dir/qemu-root
rm -rf "$root"
mkdir -p "$root/qemu" "$root/tests"
cp -RL "$O/qemu/qemu-system-x86_64" "$O/qemu/qemu-bundle" "$root/qemu"
cp "$O/qemu/tests/memory-failure-test" "$root/tests"
# shellcheck disable=SC2046
cp -L --parents $(ldd "$root/qemu/qemu-system-x86_64" "$root/tests/memory-failure-test" |
	grep -o '[	 ]/lib[^ ]*\|/usr/lib[^ ]*' | sort -u) "$root"
(cd "$root" && find . | cpio -o -H newc --quiet) |
	cat "$dir/initramfs.cpio" - >"$dir/qemu.cpio"
"$MFR/vm/machine.sh" patched qemu
run=$(run_dir qemu patched)
awk -F '\t' -v OFS='\t' -v log_dir="$run" \
	'{ print $1, "qemu in a machine", $2 ": " $3, $1 == "skip" ? "it is skipped here" : log_dir }' \
	"$run/cases" >>"$cases"

echo
verdict "$cases"
