# SPDX-License-Identifier: GPL-2.0
# Packages from a suite that may not be one of the machine's own, from the machine's
# own mirror. After lib.sh: . "$MFR/apt.sh"
# shellcheck shell=sh disable=SC2086

# Print an apt source line of type $1 for the suite $2, from where the machine has the
# suite $3.
private_list() {
	local f
	for f in /etc/apt/sources.list.d/*.sources; do
		[ -f "$f" ] || continue
		awk -v RS= -v own="$3" -v type="$1" -v suite="$2" '
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
				print type " " (key ? "[signed-by=" key "] " : "") \
				      uri " " suite " main"
		}' "$f"
	done
	for f in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
		[ -f "$f" ] || continue
		sed -n "s/^deb  *\(\[[^]]*\]  *\)\{0,1\}\([^ ]*\)  *$3  *.*/$1 \1\2 $2 main/p" "$f"
	done
}

# use_suite TYPE SUITE DIR [ARCHITECTURE]: from now on $apt_options make apt use that
# suite alone, and keep what it needs for that in DIR
use_suite() {
	. /etc/os-release
	mkdir -p "$3/lists/partial" "$3/archives/partial"
	{
		private_list "$1" "$2" "$2"
		private_list "$1" "$2" "$VERSION_CODENAME"
	} | head -n 1 >"$3/apt.list"
	[ -s "$3/apt.list" ] || return 1
	apt_options="-o Dir::Etc::sourcelist=$3/apt.list -o Dir::Etc::sourceparts=-
		-o Dir::State::lists=$3/lists -o Dir::Cache=$3
		-o APT::Sandbox::User=$(id -un)
		${4:+-o APT::Architecture=$4 -o APT::Architectures=$4}"
	apt-get $apt_options update >"$3/apt.log" 2>&1 ||
		die "apt can't read suite $2, see $3/apt.log"
}

# fetch_source PACKAGE SUITE DIR: its upstream source, to DIR/PACKAGE_*.orig.tar.*. (A
# mirror may lack the .dsc, which is not needed: the suite's index has the checksums,
# and is signed.)
fetch_source() {
	if ls "$3/$1_"*.orig.tar.* >/dev/null 2>&1; then
		return 0
	fi
	say "fetching $1"
	use_suite deb-src "$2" "$3" || die "no Debian mirror found in /etc/apt"
	(cd "$3" && apt-get $apt_options source --download-only --tar-only "$1") \
		>>"$3/apt.log" 2>&1 || die "apt has no source of $1, see $3/apt.log"
}
