#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make check-peers: the tests of others, on a stock and on a patched kernel, in two
# columns: libhugetlbfs's own, and the kernel's selftests of mm and memfd as they are
# without the series. No result may differ. SUITES="NAME...": only these of them.
#
# A test may fail now and then on any kernel. So what differs runs again and again, until
# the two kernels are told apart, or each has shown what the other one has shown.
# shellcheck disable=SC2086

. "${0%/*}/../lib.sh"
need_x86 "make check-peers compares kernels for x86 only"
. "$MFR/apt.sh"

# Tests that are left out: NAME<TAB>REASON
left_out="\
fallocate_stress.sh	takes 4 minutes, and dies on stock too
folio_split_race_test	takes more than 10 minutes
run_fuse_test.sh	the kernel has no FUSE
"

# How often what differs runs again: rounds, and times in each.
rounds=5 times=5

"$MFR/vm/prepare.sh" both liburing-dev psmisc python3

suites=${SUITES:-memfd libhugetlbfs mm}
dir=$O/$BASE$suffix
build=$dir/peers
root=$dir/peers-root
table=$O/runs/peers-$BASE$suffix
mkdir -p "$build/mm" "$build/memfd" "$O/runs"
log=$build/build.log
: >"$log"

# libhugetlbfs, without Debian's packaging
cache=$O/cache/trixie
fetch_source libhugetlbfs trixie "$cache"
tar=$(ls "$cache/libhugetlbfs_"*.orig.tar.gz)
version=${tar##*_} version=${version%.orig.tar.gz}
what="libhugetlbfs $version sha256 $(sha256sum "$tar" | cut -d ' ' -f 1)"
lib=$build/libhugetlbfs
if [ "$(cat "$lib/built" 2>/dev/null)" != "$what" ]; then
	say "building libhugetlbfs $version"
	rm -rf "$lib"
	mkdir "$lib"
	tar -xf "$tar" -C "$lib" --strip-components=1
	# All that configure would find out, and autoconf isn't needed.
	sed 's/@CFLAGS@/-O2 -g/' "$lib/Makefile.in" >"$lib/Makefile"
	cp "$lib/tests/Makefile.in" "$lib/tests/Makefile"
	echo "$version" >"$lib/version"
	make -C "$lib" -j"$JOBS" BUILDTYPE=NATIVEONLY >>"$log" 2>&1 ||
		die "building libhugetlbfs failed, see $log"
	echo "$what" >"$lib/built"
fi

say "building the selftests"
for s in mm memfd; do
	case " $suites " in *" $s "*) ;; *) continue ;; esac
	what_of=all
	# The other programs are for FUSE.
	[ $s = mm ] || what_of=$build/memfd/memfd_test
	make -C "$SOURCE/tools/testing/selftests/$s" -j"$JOBS" OUTPUT="$build/$s" \
		KHDR_INCLUDES="-isystem $(kernel_dir stock)/obj/usr/include" \
		LDLIBS="-static -luring -lrt -lpthread -lm -lcap -lnuma" \
		$what_of >>"$log" 2>&1 || die "building the selftests failed, see $log"
done

# The selftests are static. libhugetlbfs's tests preload it and replace its functions,
# and python runs them: what all of that is linked with comes along.
rm -rf "$root"
mkdir -p "$root/tests" "$root/bin" "$root/etc" "$root/peers/libhugetlbfs/tests"
cp "$MFR/in-vm/run-peers" "$root/tests"
printf '%s' "$left_out" >"$root/peers/left-out"
for s in mm memfd; do
	case " $suites " in *" $s "*) ;; *) continue ;; esac
	cp -r "$build/$s" "$root/peers"
	cp "$SOURCE/tools/testing/selftests/$s/"*.sh "$root/peers/$s"
done
(cd "$lib" && cp -r --parents obj/hugeadm obj64/*.so tests/obj64 tests/*.py \
	"$root/peers/libhugetlbfs" && cp tests/wrapper-utils.sh "$root/peers/libhugetlbfs/tests/obj64")
find "$root/peers" -name '*.o' -delete
find "$root/peers" -type f -exec strip {} + 2>/dev/null || true
python=$(/usr/bin/python3 -I -S -c '
import __future__, sys, subprocess, types, os, getopt, resource, errno
print(*{m.__file__ for m in sys.modules.values() if getattr(m, "__file__", None)})')
tools="/usr/bin/python3 /usr/bin/pgrep /usr/bin/killall"
libraries=$(find "$root/peers/libhugetlbfs" -type f -perm -1 -exec ldd $tools {} + 2>/dev/null |
	grep -o '[^ ]*/ld-linux[^ ]*\|/lib/[^ ]*\|/usr/lib/[^ ]*' | sort -u)
cp -L --parents $python $tools $libraries "$root"
# As little as on-fault-limit's sudo -u nobody needs.
cat >"$root/bin/sudo" <<-'EOF'
	#!/bin/sh
	shift 2
	exec su -s /bin/sh nobody -c "$*"
EOF
chmod +x "$root/bin/sudo"
printf '%s\n' root:x:0:0::/:/bin/sh nobody:x:65534:65534::/:/bin/sh >"$root/etc/passwd"

# run ROUND TIMES: boot both kernels for each of $suites, and add to $samples all results, in
# lines SUITE<TAB>TEST<TAB>CASE<TAB>ROUND<TAB>KERNEL<TAB>RESULT
run() {
	local s kernel log ends part times
	(cd "$root" && find . | cpio -o -H newc --quiet) |
		cat "$dir/initramfs.cpio" - >"$dir/peers.cpio"
	for s in $suites; do
		for kernel in stock patched; do
			say "$s on the $kernel kernel, round $1"
			log=$(run_dir "peers-$s-$1" $kernel)
			ends=pass
			# (libhugetlbfs takes long, and runs once.)
			times=$2
			[ $s != libhugetlbfs ] || times=1
			RUN_NAME=peers-$s-$1 "$MFR/vm/boot.sh" $kernel "peers-$s" \
				"$(yes "run-peers $s" | head -n "$times" | tr '\n' ';')" || ends=fail
			echo "$what" >>"$log/what"
			# A machine that dies is a result of its own, even if both do.
			printf '%s\tmachine\tgets to its end\t%s\t%s\t%s\n' \
				"$s" "$1" $kernel $ends >>"$samples"
			# The results of each time
			awk -v prefix="$log/time" '
				/^begin run-peers/ { n++; next }
				/^end [0-9]+ run-peers/ { next }
				n { print >(prefix n) }' "$log/results"
			for part in "$log"/time[0-9]*; do
				[ -f "$part" ] || continue
				awk -f "$MFR/vm/results.awk" "$part" |
					awk -F '\t' -v suite="$s" -v round="$1" -v kernel=$kernel \
						-f "$MFR/check/peers-samples.awk"
			done >>"$samples"
		done
	done
}

samples=$table.samples
judged=$table.judged
: >"$samples"
run 0 1
for s in $suites; do
	grep -q "^$s	.*	stock	pass$" "$samples" ||
		die "nothing of $s has passed on stock, see $(run_dir "peers-$s-0" stock)"
done
round=0
judge() { awk -F '\t' -f "$MFR/check/peers.awk" "$samples" >"$judged"; }
undecided() { awk -F '\t' -v column="$1" '$1 == "open" { print $column }' "$judged" | sort -u; }
judge
while [ -n "$(undecided 3)" ] && [ $round -lt $rounds ]; do
	round=$((round + 1))
	suites=$(undecided 2)
	undecided 3 >"$root/peers/only"
	say "these are not decided, and run again:"
	sed 's/^/        /' "$root/peers/only"
	# A machine dies of all that runs there.
	if grep -qx machine "$root/peers/only"; then
		rm "$root/peers/only"
		run $round 1
	else
		run $round $times
	fi
	judge
done

{
	printf '%-8s%-8s\n' stock patched
	awk -F '\t' '{ printf "%-8s%-8s%s: %s%s\n", $5, $6, $3, $4, $7 ? "  (" $7 ")" : "" }' \
		"$judged"
} >"$table"
cat "$table"
echo
echo "$what"
printf '%s' "$left_out" | while IFS='	' read -r name why; do
	echo "left out: $name: $why"
done
# A case that is not decided counts as skipped.
cases=$table.cases
awk -F '\t' -v OFS='\t' '
	{
		result = $1 == "apart" ? "fail" : \
			 $1 == "open" || $5 $6 == "skipskip" ? "skip" : "pass"
		why = $7 ? $7 : $5 " on stock, " $6 " on patched"
		print result, $2, $3 ": " $4, why
	}' "$judged" >"$cases"
awk -F '\t' '$1 == "open" { print $3 ": " $4 ": " $7 }' "$judged"
verdict "$cases" failures
