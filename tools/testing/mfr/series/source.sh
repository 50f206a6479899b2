#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Put the unpatched kernel source into $SOURCE, as a git repository with one
# commit, tagged "base". It comes from Debian's package, or from KSRC.
# shellcheck disable=SC2086

. "${0%/*}/../lib.sh"
. "$MFR/apt.sh"

pkg=linux-source-$BASE
cache=$O/cache

if [ -f "$STATE/source" ] && [ "$(cat "$STATE/ksrc")" = "$KSRC" ]; then
	exit 0
fi
mkdir -p "$cache" "$O/$BASE"

# The suite that has the package, where it is not one of the machine's own.
case $BASE in
7.3) suite=trixie-backports ;;
*)   suite= ;;
esac

fetch() {
	apt_options=
	if [ -n "$suite" ]; then
		use_suite deb "$suite" "$cache" ||
			die "no Debian mirror found in /etc/apt; use KSRC=DIR"
	fi
	need_space "$O" 8
	say "fetching $pkg"
	rm -f "$cache/${pkg}_"*.deb
	(cd "$cache" && apt-get $apt_options download "$pkg") >>"$cache/apt.log" 2>&1 ||
		die "apt has no package $pkg, see $cache/apt.log; or use KSRC=DIR"
	deb=$(ls "$cache/${pkg}_"*.deb)
}

if [ -n "$KSRC" ] && [ ! -f "$KSRC/Kbuild" ]; then
	die "KSRC=$KSRC is not a kernel tree"
fi
keep_edits
rm -rf "$STATE" "$SOURCE" "$TREE"
mkdir "$STATE"
if [ -n "$KSRC" ]; then
	# Itself, git's objects, and the patched tree.
	need_space "$O" $(($(du -sk --exclude=.git "$KSRC" | cut -f 1) * 3 / 1048576 + 1))
	say "copying $KSRC"
	mkdir -p "$SOURCE"
	if [ -e "$KSRC/.git" ]; then
		git -C "$KSRC" archive HEAD | tar -x -C "$SOURCE"
		what="$KSRC $(git -C "$KSRC" rev-parse HEAD)"
	else
		tar -C "$KSRC" --exclude='*.o' --exclude='.*.cmd' -c . |
			tar -x -C "$SOURCE"
		what="$KSRC"
	fi
else
	fetch
	what="$pkg $(dpkg-deb -f "$deb" Version)"
	sum=$(sha256sum "$deb" | cut -d ' ' -f 1)
	say "unpacking $what"
	mkdir "$SOURCE"
	dpkg-deb --fsys-tarfile "$deb" | tar -xO "./usr/src/$pkg.tar.xz" |
		tar -xJ -C "$SOURCE" --strip-components=1 ||
		die "$deb can't be unpacked"
	rm -f "$deb"
	what="$what sha256 $sum"
fi

cd "$SOURCE"
# Debian's .gitignore hides the source from git.
rm -f .gitignore
git init -q
git config user.name hugetlb-mfr
git config user.email hugetlb-mfr@localhost
git config gc.auto 0
git config core.looseCompression 0
git config advice.detachedHead false
printf '%s\n' '*.o' '.*.cmd' 'local_config*' '.checkpatch-camelcase*' \
	>.git/info/exclude
git add -Af
git commit -qm "$what"
git tag base
echo "$KSRC" >"$STATE/ksrc"
echo "$what" >"$STATE/source"
