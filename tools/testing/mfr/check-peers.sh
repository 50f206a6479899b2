#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make check-peers: the tests of others, on a stock and on a patched kernel, in two
# columns: libhugetlbfs's own, and the kernel's selftests of mm and memfd as they are
# without the series. No result may differ.
# shellcheck disable=SC1091,SC2086

. "${0%/*}/lib.sh"
need_x86 "make check-peers compares kernels for x86 only"
. "$MFR/apt.sh"

# What is not run, and why: NAME<TAB>REASON
left_out="\
fallocate_stress.sh	takes 4 minutes, and dies on stock too
folio_split_race_test	takes more than 10 minutes
run_fuse_test.sh	the kernel has no FUSE
"

"$MFR/packages.sh" liburing-dev psmisc python3
"$MFR/tree.sh"
"$MFR/kernel.sh" stock
"$MFR/kernel.sh" patched
"$MFR/initramfs.sh"

suites="memfd libhugetlbfs mm"
slow=1
[ -z "$DEBUG" ] || slow=6
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
cp "$MFR/peers" "$root/tests"
printf '%s' "$left_out" >"$root/peers/left-out"
for s in mm memfd; do
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

# run ROUND: boot both kernels for each of $suites, and write to $table.ROUND:
# suite<TAB>test<TAB>case<TAB>result on stock<TAB>on patched
run() {
	(cd "$root" && find . | cpio -o -H newc --quiet) |
		cat "$dir/initramfs.cpio" - >"$dir/peers.cpio"
	: >"$table.$1"
	for s in $suites; do
		for kernel in stock patched; do
			say "$s on the $kernel kernel, round $1"
			log=$O/runs/peers-$s-$1-$BASE-$kernel$suffix
			died=
			"$MFR/boot.sh" $kernel "peers-$s-$1" $((3600 * slow)) "peers $s" ||
				died=1
			echo "$what" >>"$log/what"
			awk -f "$MFR/results.awk" "$log/results" >"$log/cases"
			# In one column only: even if both do, that's no result.
			[ -z "$died" ] || printf 'fail\t%s\t%s\n' "$s" \
				"the $kernel machine did not get to its end" >>"$log/cases"
			cp "$log/cases" "$table.$kernel"
		done
		awk -F '\t' -v suite="$s" '
			{
				# pagemap_ioctl has what it counts in a name.
				sub(/ Extra pages .*/, "")
				k = suite "\t" $2 "\t" $3
				if (++n[FILENAME, k] > 1)
					k = k " (" n[FILENAME, k] ")"
				if (!known[k]++)
					order[++cases] = k
				result[k, NR == FNR] = $1
			}
			function of(k, stock) {
				return (k, stock) in result ? result[k, stock] : "missing"
			}
			END {
				for (i = 1; i <= cases; i++)
					print order[i] "\t" of(order[i], 1) "\t" of(order[i], 0)
			}' "$table.stock" "$table.patched" >>"$table.$1"
	done
}
differing() { awk -F '\t' -v column="$2" '$4 != $5 { print $column }' "$table.$1" | sort -u; }

run 1
for s in $suites; do
	grep -q "^$s	.*	pass	" "$table.1" ||
		die "nothing of $s has passed on stock, see $O/runs/peers-$s-1-*"
done
: >"$table.2"
: >"$table.3"
differing 1 2 >"$root/peers/only"
if [ -s "$root/peers/only" ]; then
	suites=$(differing 1 1)
	say "there are differences: those tests twice more"
	run 2
	run 3
fi

awk -F '\t' -v red="$red" -v plain="$plain" '
	{ k = $2 ": " $3 }
	FILENAME ~ /1$/ { order[++cases] = k; stock[k] = $4; patched[k] = $5 }
	$4 != $5 { differs[k]++; how[k] = how[k] " " $4 "/" $5 }
	END {
		printf "%-8s%-8s\n", "stock", "patched"
		for (i = 1; i <= cases; i++) {
			k = order[i]
			what = differs[k] > 1 ? "FAILED" : stock[k] == "skip" ? "skipped" : "passed"
			count[what]++
			printf "%-8s%-8s%s%s\n", stock[k], patched[k], k, \
			       !differs[k] ? "" : differs[k] == 1 ? \
			       "  (differs in one of three rounds)" : \
			       "  " red "DIFFERS" plain " in " differs[k] " of three rounds:" how[k]
		}
		printf "%d passed, %d failed, %d skipped\n", \
		       count["passed"], count["FAILED"], count["skipped"]
	}' "$table.1" "$table.2" "$table.3" >"$table"
sed '$d' "$table"
echo
echo "$what"
printf '%s' "$left_out" | while IFS='	' read -r name why; do
	echo "left out: $name: $why"
done
grep DIFFERS "$table" || true
tail -n 1 "$table"
grep -q '^[1-9].* 0 failed' "$table"
