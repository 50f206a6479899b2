#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make check-rasdaemon: rasdaemon, as Debian has it and with patches/rasdaemon, on the
# patched kernel. Its database must hold the memory errors that hit a kept file.
# shellcheck disable=SC2046,SC2086

. "${0%/*}/../lib.sh"
. "$MFR/apt.sh"
need_x86 "make check-rasdaemon is about machine checks, which QEMU has for x86 only"

"$MFR/vm/prepare.sh" patched libtraceevent-dev libsqlite3-dev pkg-config sqlite3
mkdir -p "$O/runs"
cases=$O/runs/rasdaemon-$BASE
: >"$cases"
dir=$O/$BASE$suffix
build=$O/rasdaemon
cache=$O/cache/rasdaemon
mkdir -p "$build"

# Debian 12's own version was built without memory_failure_event.
if ! ls "$cache"/rasdaemon_*.deb >/dev/null 2>&1; then
	say "fetching rasdaemon"
	use_suite deb bookworm-backports "$cache" || die "no Debian mirror found in /etc/apt"
	(cd "$cache" && apt-get $apt_options download rasdaemon) >>"$cache/apt.log" 2>&1 ||
		die "apt has no package rasdaemon, see $cache/apt.log"
fi
deb=$(ls "$cache"/rasdaemon_*.deb)
fetch_source rasdaemon forky "$cache/source"
tar=$(ls "$cache/source"/rasdaemon_*.orig.tar.*)
what="rasdaemon $(basename "$tar") sha256 $(sha256sum "$tar" | cut -d ' ' -f 1)"

series=$TOP/patches/rasdaemon
patches=$(sed '/^#/d; /^$/d' "$series/series")
say "building rasdaemon with patches/rasdaemon"
src=$build/src
log=$build/build.log
rm -rf "$src"
mkdir "$src"
tar -xf "$tar" -C "$src" --strip-components=1 --no-same-owner
cd "$src"
git init -q
git config user.name hugetlb-mfr
git config user.email hugetlb-mfr@localhost
git add -Af
git commit -qm "$what"
./configure --localstatedir=/var --enable-sqlite3 --enable-memory-failure >"$log" 2>&1 ||
	die "configuring rasdaemon failed, see $log"
for p in $patches; do
	if ! git am -q "$series/$p" >>"$log" 2>&1; then
		note fail rasdaemon "git am: $p" "$log"
		break
	fi
	note pass rasdaemon "git am: $p" ""
	# (Makefile.am differs for the installation only: automake isn't needed.)
	if make rasdaemon AUTOMAKE=: ACLOCAL=: AUTOCONF=: AUTOHEADER=: \
		CFLAGS="-O2 -Wall" >"$build/$p.log" 2>&1 &&
	   ! grep -q 'warning:' "$build/$p.log"; then
		note pass rasdaemon "compiles without warnings: $p" ""
	else
		note fail rasdaemon "compiles without warnings: $p" "$build/$p.log"
	fi
done
cd "$TOP"

root=$dir/rasdaemon-root
rm -rf "$root"
mkdir -p "$root/tests" "$root/rasdaemon/triggers"
for p in "$TOP/tools/mm/with-kept-memory" "$MFR/in-vm/hit-memory"; do
	gcc -static -s -O2 -Wall -Wextra -isystem "$dir/obj/usr/include" \
		-I "$TREE/tools/testing/selftests/mm" -o "$root/tests/${p##*/}" "$p.c" \
		>>"$log" 2>&1 || die "building $p failed, see $log"
done
cp "$MFR/in-vm/run-rasdaemon" "$root/tests"
dpkg-deb --fsys-tarfile "$deb" | tar -xO ./usr/sbin/rasdaemon >"$root/rasdaemon/debian"
strip -o "$root/rasdaemon/patched" "$src/rasdaemon"
chmod +x "$root/rasdaemon/debian"
# The trigger that comes with the patches, with its output where the test finds it
sed '2i exec >>/tmp/triggered 2>&1' "$src/contrib/mem_fail_kept_trigger" \
	>"$root/rasdaemon/triggers/kept"
chmod +x "$root/rasdaemon/triggers/kept"
cp -L --parents /usr/bin/sqlite3 $(ldd "$root/rasdaemon/debian" "$root/rasdaemon/patched" \
	/usr/bin/sqlite3 | grep -o '[	 ]/lib[^ ]*\|/usr/lib[^ ]*' | sort -u) "$root"
(cd "$root" && find . | cpio -o -H newc --quiet) |
	cat "$dir/initramfs.cpio" - >"$dir/rasdaemon.cpio"

"$MFR/vm/machine.sh" patched rasdaemon
run=$(run_dir rasdaemon patched)
{
	dpkg-deb -f "$deb" Package Version
	echo "$what"
} >>"$run/what"
awk -F '\t' -v OFS='\t' -v log_dir="$run" \
	'{ why = $1 == "skip" ? $3 : log_dir; print $1, "rasdaemon", $2 ": " $3, why }' \
	"$run/cases" >>"$cases"
echo
verdict "$cases"
