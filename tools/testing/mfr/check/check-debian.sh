#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make check-debian: the series on Debian's kernel, applied as its source package does
# that, and built with its configurations, stock and patched. No warning may be new.
# shellcheck disable=SC2046,SC2086

. "${0%/*}/../lib.sh"
. "$MFR/apt.sh"

[ -z "$KSRC" ] || die "check-debian is about Debian's kernel: don't give it KSRC="
"$MFR/vm/packages.sh" gcc-aarch64-linux-gnu
"$MFR/series/series.sh"
. "$MFR/check/objects.sh"
logs=$O/runs/debian-$BASE
cases=$logs/cases group=debian
mkdir -p "$logs"

case $BASE in
7.3) suite=trixie-backports ;;
*)   suite=bookworm-security ;;
esac

table_head

# Do as the source package's debian/bin/test-patches, with the touched files. Its
# tree is that of the package linux-source, all of Debian's patches applied.
tree=$logs/tree
rm -rf "$tree"
mkdir -p "$tree/debian/patches"
git -C "$TREE" archive base $(git -C "$TREE" diff --name-only --diff-filter=M base HEAD) |
	tar -x -C "$tree"
push() {
	local p
	cd "$tree"
	export QUILT_PATCHES=debian/patches
	for p in "$O/series/$BASE"/*.patch; do
		case $p in */0000-*) continue ;; esac
		quilt --quiltrc - import -P "test/${p##*/}" "$p" || return 1
		quilt --quiltrc - push --fuzz=0 || return 1
	done
}
if (push) >"$logs/quilt" 2>&1; then
	row pass quilt "$(wc -l <"$tree/debian/patches/series") patches" - - - ""
else
	row fail quilt "" - - - "a patch doesn't apply, see $logs/quilt"
fi

for arch in amd64 arm64; do
	case $arch in
	amd64) variables="ARCH=x86_64" ;;
	arm64) variables="ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu-" ;;
	esac
	cache=$O/cache/$arch-$suite
	use_suite deb $suite "$cache" $arch || die "no Debian mirror found in /etc/apt"
	package=linux-config-$BASE
	rm -f "$cache/$package"_*
	(cd "$cache" && apt-get $apt_options download $package) >>"$cache/apt.log" 2>&1 ||
		die "apt has no package $package for $arch, see $cache/apt.log"
	deb=$(ls "$cache/$package"_*.deb)
	obj=$O/$BASE/debian/$arch
	mkdir -p "$obj"
	dpkg-deb --fsys-tarfile "$deb" |
		tar -xO "./usr/src/$package/config.${arch}_none_$arch.xz" |
		xz -d >"$obj/.config" || die "$deb has no configuration for $arch"
	switch_to patched
	make -C "$BOTH" O="$obj" $variables olddefconfig >"$logs/$arch.config" 2>&1 ||
		die "the configuration of $arch does not work, see $logs/$arch.config"
	build_both "$arch" "$obj" $variables
	echo "      $package $(dpkg-deb -f "$deb" Version)"
done
table_end
