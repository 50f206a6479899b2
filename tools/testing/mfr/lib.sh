# SPDX-License-Identifier: GPL-2.0
# What every script of the harness begins with: . "${0%/*}/lib.sh"
# shellcheck shell=sh disable=SC2034

set -eu

MFR=$(cd "${0%/*}" && pwd)
TOP=$(cd "$MFR/../../.." && pwd)
BASE=${BASE:-7.3}
O=${O:-$TOP/build}
case $O in /*) ;; *) O=$TOP/$O ;; esac
KSRC=${KSRC:-}
DEBUG=${DEBUG:-}
BENCH=${BENCH:-}
V=${V:-}
STOCK=${STOCK:-}
SET=${SET:-}
MACHINES=${MACHINES:-}
PREFIX=${PREFIX:-}
JOBS=$(nproc)
# The kernel's make must not see ours.
unset MAKEFLAGS MFLAGS MAKELEVEL
SERIES=$TOP/patches/series.$BASE

die() {
	echo "mfr: $*" >&2
	exit 1
}

# SRCARCH is its directory in arch/, image what its make builds there in boot/.
PAGES=${PAGES:-}
case ${ARCH:-x86} in
x86|x86_64)
	SRCARCH=x86 image=bzImage suffix='' cross=''
	# With x86_64 the kernel's tinyconfig would be another one.
	unset ARCH ;;
arm64)	SRCARCH=arm64 image=Image suffix=-arm64 cross=aarch64-linux-gnu-
	export ARCH CROSS_COMPILE=$cross ;;
*)	die "ARCH=$ARCH: use x86 or arm64" ;;
esac
# Where its binary packages are unpacked, if they are not the machine's own.
foreign=
[ $SRCARCH = x86 ] || foreign=$O/cache/$SRCARCH/root
[ -z "$PAGES" ] || [ -f "$MFR/$SRCARCH-$PAGES.config" ] ||
	die "PAGES=$PAGES: there is no $SRCARCH-$PAGES.config"

need_x86() {	# need_x86 WHY
	[ $SRCARCH = x86 ] || die "ARCH=$ARCH: $1"
}

# $debug is the name of a configuration. KCSAN reports races all over the stock kernel, so
# there is nothing to compare with.
case $DEBUG in
'')	debug='' ;;
1)	debug=debug ;;
races)	debug=races STOCK=no ;;
*)	die "DEBUG=$DEBUG: use 1 or races" ;;
esac

[ -f "$SERIES" ] ||
	die "BASE=$BASE: there is no patches/series.$BASE; use one of:" \
	    "$(cd "$TOP/patches" && echo series.* | sed 's/series\.//g')"

# A kernel version lives in two directories, stock and patched.
SOURCE=$O/$BASE-source		# the package's source, a git repository
TREE=$O/$BASE/linux		# the patched tree, a worktree of it
suffix=$suffix${PAGES:+-$PAGES}${debug:+-$debug}${BENCH:+-bench}

# kernel_dir stock|patched: where that kernel is built
kernel_dir() {
	case $1 in
	stock)   echo "$O/$BASE-stock$suffix" ;;
	patched) echo "$O/$BASE$suffix" ;;
	esac
}

if [ -t 1 ]; then
	bold=$(printf '\033[1m') red=$(printf '\033[31m') plain=$(printf '\033[m')
	green=$(printf '\033[32m')
else
	bold='' red='' green='' plain=''
fi

# The scripts that call each other have one clock.
export MFR_BEGIN="${MFR_BEGIN:-$(date +%s)}"
# say TEXT: one line of progress
say() {
	t=$(($(date +%s) - MFR_BEGIN))
	printf '%s[%2d:%02d] %s%s\n' "$bold" $((t / 60)) $((t % 60)) "$*" "$plain"
}

# progress WHAT TOTAL LOG: show how many lines of stdin there were so far
progress() {
	awk -v what="$1" -v total="$2" -v log_file="$3" -v tty="$(test -t 1 && echo 1)" '
	{
		print > log_file; fflush(log_file)
		if (!/^  (CC|AS|LD|AR|HOSTCC) /)
			next
		n++
		step = tty ? 10 : 250
		if (n % step == 0) {
			printf "%s        %s: %d of about %d objects%s",
			       tty ? "\r" : "", what, n, total, tty ? "" : "\n"
			fflush()
		}
	}
	END { if (tty && n >= 10) printf "\r%60s\r", "" }'
}

# keep_edits: don't throw away what somebody has edited in $TREE
keep_edits() {
	head=$SOURCE/.git/mfr-tree.head	# as tree.sh has made it
	[ ! -d "$TREE" ] || [ ! -f "$head" ] || {
		[ "$(git -C "$TREE" rev-parse HEAD)" = "$(cat "$head")" ] &&
			git -C "$TREE" diff --quiet HEAD
	} || die "$TREE has changes, and would be made anew;" \
		 "'make refresh' saves them, 'rm -r $TREE' drops them"
}

need_space() {	# need_space DIR GIB
	free=$(df -Pk "$1" | awk 'NR == 2 { print int($4 / 1048576) }')
	[ "$free" -ge "$2" ] ||
		die "$1 has $free GiB free, $2 are needed; make room or use O=DIR"
}

# words WHAT RUN: what the failed test WHAT has printed in that machine, or to that log;
# of a machine that died, its last words
words() {
	[ ! -f "$2" ] || tail -n 5 "$2" | sed 's/^/       /'
	[ -f "$2/results" ] || return 0
	case $1 in
	*"did not get to its end")
		tail -n 3 "$2/results" | sed 's/^/       /'
		sed 's/^/       /' "$2/boot.err"
		return ;;
	esac
	awk -v what="$1" '
		/^# +RUN / { n = 0; next }
		/^# / { said[n++ % 10] = $0; next }
		/^not ok / {
			sub(/^not ok [0-9]+ *(- )?/, "")
			if (substr(what, length(what) - length($0) + 1) == $0)
				for (i = n > 10 ? n - 10 : 0; i < n; i++)
					print "       " said[i % 10]
		}
		/^(not )?ok / { n = 0 }' "$2/results"
}

# verdict CASES: tell what is in that file, in lines pass|fail|skip<TAB>what<TAB>why, and
# fail if something has failed
verdict() {
	while IFS='	' read -r result what why; do
		case $result in
		fail)	printf '%sFAILED%s %s\n       %s\n' "$red" "$plain" "$what" "$why"
			words "$what" "$why" ;;
		skip) printf 'skipped %s\n       %s\n' "$what" "$why" ;;
		esac
	done <"$1"
	awk '	{ n[$1]++ }
		END {
			printf "%d passed, %d failed, %d skipped\n",
			       n["pass"], n["fail"], n["skip"]
			exit n["fail"] > 0
		}' "$1"
}
