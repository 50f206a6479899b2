#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# Put the unpatched kernel source into $SOURCE, as a git repository with one
# commit, tagged "base". It comes from Debian's package, or from KSRC.

. "${0%/*}/lib.sh"

pkg=linux-source-$BASE
cache=$O/cache
id=$SOURCE/.git/mfr-source	# what the repository was made from

if [ -f "$id" ] && [ "$(cat "$id.ksrc")" = "$KSRC" ]; then
	exit 0
fi
mkdir -p "$cache" "$O/$BASE"
need_space "$O" 8

# The suite that has the package, where it is not one of the machine's own.
case $BASE in
7.3) suite=trixie-backports ;;
*)   suite= ;;
esac

# Print an apt source line for $suite: the mirror is the machine's own.
private_list() {
	. /etc/os-release
	for f in /etc/apt/sources.list.d/*.sources; do
		[ -f "$f" ] || continue
		awk -v RS= -v own="$VERSION_CODENAME" -v suite="$suite" '
		{
			uri = key = ""; ours = 0
			n = split($0, line, "\n")
			for (i = 1; i <= n; i++) {
				split(line[i], w, " ")
				if (w[1] == "URIs:") uri = w[2]
				if (w[1] == "Signed-By:") key = w[2]
				if (w[1] == "Suites:" && w[2] == own) ours = 1
			}
			if (ours && uri)
				print "deb " (key ? "[signed-by=" key "] " : "") \
				      uri " " suite " main"
		}' "$f"
	done
	for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
		[ -f "$f" ] || continue
		sed -n "s/^deb  *\(\[[^]]*\]  *\)\{0,1\}\([^ ]*\)  *$VERSION_CODENAME  *.*/deb \1\2 $suite main/p" "$f"
	done
}

fetch() {
	apt=apt-get
	if [ -n "$suite" ]; then
		private_list | head -n 1 >"$cache/apt.list"
		[ -s "$cache/apt.list" ] ||
			die "no Debian mirror found in /etc/apt; use KSRC=DIR"
		mkdir -p "$cache/lists/partial" "$cache/archives/partial"
		apt="apt-get -o Dir::Etc::sourcelist=$cache/apt.list
			-o Dir::Etc::sourceparts=- -o Dir::State::lists=$cache/lists
			-o Dir::Cache=$cache -o APT::Sandbox::User=$(id -un)"
		$apt update >"$cache/apt.log" 2>&1 ||
			die "apt can't read suite $suite, see $cache/apt.log"
	fi
	say "fetching $pkg"
	rm -f "$cache/${pkg}_"*.deb
	(cd "$cache" && $apt download "$pkg") >>"$cache/apt.log" 2>&1 ||
		die "apt has no package $pkg, see $cache/apt.log; or use KSRC=DIR"
	deb=$(ls "$cache/${pkg}_"*.deb)
}

rm -rf "$SOURCE" "$TREE"
if [ -n "$KSRC" ]; then
	[ -f "$KSRC/Kbuild" ] || die "KSRC=$KSRC is not a kernel tree"
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
echo "$KSRC" >"$id.ksrc"
echo "$what" >"$id"
