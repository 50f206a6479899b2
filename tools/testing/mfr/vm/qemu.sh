#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# qemu.sh stock|patched: build QEMU from Debian's source package, as it is or with
# patches/qemu, and the tests of it that make check-qemu runs. They are in $O/qemu-stock and
# $O/qemu then. EACH=1: build all of it after each patch, not only what the patch touches.
# $O/qemu/cases tells what became of each patch, as note() writes it.
# shellcheck disable=SC2086

. "${0%/*}/../lib.sh"
. "$MFR/apt.sh"
need_x86 "patches/qemu is tried on x86 only"

which=$1
cache=$O/cache/qemu
src=$O/qemu/src
obj=$O/qemu/obj
case $which in
stock)	 dir=$O/qemu-stock ;;
patched) dir=$O/qemu ;;
*)	 die "qemu.sh stock|patched" ;;
esac
series=$TOP/patches/qemu
patches=$(sed '/^#/d; /^$/d' "$series/series")
# With TCG its own tests need no KVM.
options="--target-list=x86_64-softmmu --without-default-features --enable-kvm
	--enable-tcg --enable-fdt=system --enable-vhost-user --enable-vhost-net
	--enable-vhost-kernel --disable-docs --disable-tools --disable-guest-agent
	--disable-rust --disable-install-blobs --disable-download --disable-debug-info"
qtests="machine-none-test memory-failure-test migration-test numa-test qmp-cmd-test
	qmp-test readconfig-test"
unit_tests="check-qom-proplist test-mf-map test-qmp-event test-vmstate test-xbzrle"

"$MFR/vm/packages.sh" ninja-build pkg-config libglib2.0-dev libfdt-dev python3-venv bzip2 \
	seabios ipxe-qemu

fetch_source qemu bookworm-backports "$cache"
tar=$(ls "$cache"/qemu_*.orig.tar.*)
version=${tar##*_} version=${version%.orig.tar.*}
base=$(sed -n 's/^# base: qemu [0-9]*:\([^ ]*\)-.*/\1/p' "$series/series")
[ "$version" = "$base" ] ||
	say "QEMU is $version by now, and patches/qemu is for $base"
what="qemu $version sha256 $(sha256sum "$tar" | cut -d ' ' -f 1)"

stock_inputs=$(echo "$what $options $(gcc --version)" | sha256sum | cut -d ' ' -f 1)
inputs=$stock_inputs
if [ $which = patched ]; then
	inputs=$(cd "$series" && { echo $stock_inputs; cat $patches; } | sha256sum | cut -d ' ' -f 1)
fi
if [ "$(cat "$dir/built" 2>/dev/null)" = "$inputs" ] && { [ $which = stock ] || [ -z "$EACH" ]; }
then
	exit 0
fi
rm -f "$dir/built"
mkdir -p "$dir"
need_space "$O" 4

# Debian 12's meson is too old, and its package python3-pycotap is missing.
tools=$cache/root
if [ ! -f "$tools/unpacked" ]; then
	say "fetching meson"
	use_suite deb trixie "$cache/trixie" || die "no Debian mirror found in /etc/apt"
	(cd "$cache/trixie" && apt-get $apt_options download meson python3-pycotap) \
		>>"$cache/trixie/apt.log" 2>&1 ||
		die "downloading meson failed, see $cache/trixie/apt.log"
	mkdir -p "$tools"
	for deb in "$cache/trixie"/*.deb; do
		dpkg-deb -x "$deb" "$tools"
		rm "$deb"
	done
	touch "$tools/unpacked"
fi
export PYTHONPATH="$tools/usr/lib/python3/dist-packages" PATH="$tools/usr/bin:/usr/bin:$PATH"

if [ "$(git -C "$src" log -1 --format=%s base 2>/dev/null)" != "$what" ]; then
	say "unpacking qemu $version"
	rm -rf "$src" "$obj"
	mkdir -p "$src"
	tar -xf "$tar" -C "$src" --strip-components=1
	# Debian's source has no firmware. Only its installation would need it.
	sed -n "s/^    '\(edk2-.*\.fd\)',$/\1/p" "$src/pc-bios/meson.build" |
		(cd "$src/pc-bios" && sed 's/$/.bz2/' | xargs touch)
	cd "$src"
	git init -q
	git config user.name hugetlb-mfr
	git config user.email hugetlb-mfr@localhost
	git config gc.auto 0
	git config advice.detachedHead false
	git add -Af
	git commit -qm "$what"
	git tag base
fi
if [ ! -f "$obj/build.ninja" ]; then
	rm -rf "$obj"
	mkdir -p "$obj"
	git -C "$src" checkout -q base
	(cd "$obj" && "$src/configure" --python=/usr/bin/python3 $options) \
		>"$O/qemu/configure.log" 2>&1 ||
		die "configuring QEMU failed, see $O/qemu/configure.log"
fi
cd "$obj"

# targets: the programs that there are at this commit
targets() {
	local t
	echo qemu-system-x86_64
	{
		for t in $qtests; do
			echo "tests/qtest/$t"
		done
		for t in $unit_tests; do
			echo "tests/unit/$t"
		done
	} | while read -r t; do
		if ninja -t query "$t" >/dev/null 2>&1; then
			echo "$t"
		fi
	done
}

# touched: the objects made from C files that the last commit touches
touched() {
	local f
	for f in $(git -C "$src" diff --name-only HEAD~ HEAD -- '*.c'); do
		ninja -t query "../src/$f" 2>/dev/null | sed -n 's/^    \(.*\.o\)$/\1/p'
	done
}

# compile LOG FUNCTION: what that function prints, when build.ninja is up to date
compile() {
	local log="$1" wanted
	ninja build.ninja >"$log" 2>&1 || return 1
	wanted=$($2)
	[ -n "$wanted" ] || return 0
	ninja -j"$JOBS" $wanted >>"$log" 2>&1
}

# keep: copy the programs to $dir, with the firmware where QEMU looks for it
keep() {
	local t data="$dir/qemu-bundle/usr/local/share/qemu"
	rm -rf "$dir/tests" "$dir/qemu-bundle"
	mkdir -p "$dir/tests" "$data"
	for t in $(targets); do
		case $t in
		tests/*) strip -o "$dir/tests/${t##*/}" "$t" ;;
		*)	 strip -o "$dir/$t" "$t" ;;
		esac
	done
	ln -s /usr/share/seabios/*.bin /usr/share/qemu/kvmvapic.bin \
		/usr/share/qemu/linuxboot_dma.bin /usr/lib/ipxe/qemu/*.rom "$data"
}

case $which in
stock)
	say "building QEMU $version"
	git -C "$src" checkout -qf base
	compile "$dir/build.log" targets || die "building QEMU failed, see $dir/build.log" ;;
patched)
	say "building QEMU $version with patches/qemu"
	logs=$dir/each
	cases=$dir/cases
	rm -rf "$logs"
	mkdir -p "$logs"
	: >"$cases"
	git -C "$src" am --abort 2>/dev/null || true
	git -C "$src" checkout -qf base
	for p in $patches; do
		git -C "$src" am -q "$series/$p" >"$logs/$p.am" 2>&1 ||
			die "$p doesn't apply with git am, see $logs/$p.am"
		note pass qemu "git am: $p" ""
		if compile "$logs/$p.build" "$([ -n "$EACH" ] && echo targets || echo touched)"; then
			note pass qemu "compiles: $p" ""
		else
			note fail qemu "compiles: $p" "$logs/$p.build"
		fi
	done
	git -C "$src" tag -f series >/dev/null
	compile "$dir/build.log" targets || die "building QEMU failed, see $dir/build.log" ;;
esac
keep
echo "$what" >"$dir/what"
echo "$inputs" >"$dir/built"
say "$dir/qemu-system-x86_64"
