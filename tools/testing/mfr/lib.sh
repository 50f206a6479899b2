# SPDX-License-Identifier: GPL-2.0
# Every script of the harness begins with . "${0%/*}/../lib.sh"
# (A value after local is quoted: some sh would split it.)
# shellcheck shell=sh disable=SC2034

set -eu

MFR=$(cd "${0%/*}/.." && pwd)
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
EACH=${EACH:-}
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
[ -z "$PAGES" ] || [ -f "$MFR/config/$SRCARCH-$PAGES.config" ] ||
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

# The scripts remember from one run to the next, in a file each:
#	source		what $SOURCE was made from, a line
#	ksrc		the KSRC= that it was made with
#	has		the patches that it had already, the last one first
#	tree-head	the commit of $TREE when it was made: what differs is an edit
#	tree-inputs	checksum of the patches and files that it was made from
# (Beside a kernel, "built" is the checksum of what it was built from.)
STATE=$O/$BASE/state

# kernel_dir stock|patched: where that kernel is built
kernel_dir() {
	case $1 in
	stock)   echo "$O/$BASE-stock$suffix" ;;
	patched) echo "$O/$BASE$suffix" ;;
	esac
}

# run_dir NAME stock|patched: where what has run in that machine is recorded
run_dir() {
	echo "$O/runs/$1-$BASE-$2$suffix"
}

# table: all machines of machines.cfg in this configuration, lines NAME<TAB>KEY<TAB>VALUE
table() {
	local words="$BASE $SRCARCH $PAGES ${debug:+debug} ${BENCH:+bench}"
	[ "$debug" != races ] || words="$words races"
	case $debug:$MACHINES in :*|*kvm*) words="$words guests" ;; esac
	awk -v words="$words" -f "$MFR/machines.awk" "$MFR/machines.cfg"
}

# of NAME KEY: what the table says of it
of() {
	table | awk -F '\t' -v name="$1" -v key="$2" '$1 == name && $2 == key { print $3 }'
}

# machines_for patched|stock|both: which machines make check runs there
machines_for() {
	table | awk -F '\t' -v kernel="$1" '
		$2 == "here" { here = $3 }
		$2 == "check" && $3 == kernel && here == "yes" { print $1 }'
}

# example: the program in the document of the policy
example() {
	sed -n '/^Example$/,/^See also$/s/^\t//p' \
		"$TOP/Documentation/userspace-api/mfd_mfr_policy.rst"
}

is_machine() {
	of "$1" here | grep -q .
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
	local t=$(($(date +%s) - MFR_BEGIN))
	printf '%s[%2d:%02d] %s%s\n' "$bold" $((t / 60)) $((t % 60)) "$*" "$plain"
}

# keep_edits: don't throw away what somebody has edited in $TREE
keep_edits() {
	local made=base
	[ -d "$TREE" ] || return 0
	[ ! -f "$STATE/tree-head" ] || made=$(cat "$STATE/tree-head")
	if [ "$(git -C "$TREE" rev-parse HEAD)" != "$(git -C "$TREE" rev-parse "$made")" ] ||
	   ! git -C "$TREE" diff --quiet HEAD; then
		die "$TREE has changes, and would be made anew;" \
		    "'make refresh' saves them, 'rm -r $TREE' drops them"
	fi
}

need_space() {	# need_space DIR GIB
	local free
	free=$(df -Pk "$1" | awk 'NR == 2 { print int($4 / 1048576) }')
	[ "$free" -ge "$2" ] ||
		die "$1 has $free GiB free, $2 are needed; make room or use O=DIR"
}

# Results are collected in a file, a line for each:
#	pass|fail|skip<TAB>GROUP<TAB>TEST<TAB>WHY OR WHERE THE LOG IS
# note RESULT GROUP TEST WHY: add one to the file $cases
cases=
note() {
	printf '%s\t%s\t%s\t%s\n' "$1" "$2" "$3" "$4" >>"$cases"
}

# output_of TEST LOG: what the failed test has printed, to that file or in the machine with
# that run directory; of a machine that died, its last words
output_of() {
	if [ -f "$2" ]; then
		tail -n 5 "$2" | sed 's/^/       /'
	elif [ -f "$2/results" ]; then
		case $1 in
		*"did not get to its end")
			tail -n 3 "$2/results" | sed 's/^/       /'
			sed 's/^/       /' "$2/boot.err" ;;
		*)	awk -v test="$1" -f "$MFR/vm/output-of.awk" "$2/results" ;;
		esac
	fi
}

# verdict CASES [failures]: print what has failed or was skipped, or only what has failed, and
# how many of each there are; write all of it to CASES.ktap; fail if something has failed
verdict() {
	local result group test why
	while IFS='	' read -r result group test why; do
		case $result${2:-} in
		fail*)	printf '%sFAILED%s %s: %s\n       %s\n' "$red" "$plain" "$group" \
				"$test" "$why"
			output_of "$test" "$why" ;;
		skip)	printf 'skipped %s: %s\n       %s\n' "$group" "$test" "$why" ;;
		esac
	done <"$1"
	awk -F '\t' -f "$MFR/vm/ktap.awk" "$1" >"$1.ktap"
	awk '	{ n[$1]++ }
		END {
			printf "%d passed, %d failed, %d skipped\n",
			       n["pass"], n["fail"], n["skip"]
			exit n["fail"] > 0
		}' "$1"
}
