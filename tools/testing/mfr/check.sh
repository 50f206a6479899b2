#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make check: the static tests, then the selftests on the patched kernel, with the
# stock kernel as the yardstick.

. "${0%/*}/lib.sh"

"$MFR/packages.sh"
"$MFR/tree.sh"
"$MFR/kernel.sh" stock
"$MFR/kernel.sh" patched
"$MFR/initramfs.sh"

. "$MFR/tests"
mkdir -p "$O/runs"
cases=$O/runs/cases-$BASE$suffix	# pass|fail|skip<TAB>what<TAB>why or log
: >"$cases"
note() { printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$cases"; }

"$MFR/lint.sh" "$cases"

# boot KERNEL NAME SECONDS COMMANDS: leaves the results in $results
boot() {
	say "$2 on the $1 kernel"
	set -- "$1" "$2" "$(($3 * slow))" "$(echo "$4" | tr '\n' ';')"
	log=$O/runs/$2-$BASE-$1$suffix
	results=$log/cases
	for try in 1 2 3; do
		! "$MFR/boot.sh" "$@" || break
		# Not even isolated CPUs are always in user mode. Emulated
		# hardware raises no machine check by itself, so this one says
		# nothing of the kernel.
		if [ $try != 3 ] && grep -q 'unrecoverable area of kernel' "$log/console.log"
		then
			say "an injected machine check has hit an interrupt: once more"
			continue
		fi
		note fail "$2 on $1: the machine did not get to its end" "$log"
		break
	done
	awk -f "$MFR/results.awk" "$log/results" >"$results"
}

slow=$((DEBUG ? 6 : 1))

boot stock neighbours 900 "$neighbours"
yardstick=$results
boot patched neighbours 900 "$neighbours"
awk -F '\t' -v log_dir="$log" '
	NR == FNR { stock[$2 ": " $3] = $1; next }
	{ patched[$2 ": " $3] = $1 }
	END {
		for (c in stock) {
			now = c in patched ? patched[c] : "missing"
			if (now == stock[c])
				why = now == "pass" ? "" : "the same on stock"
			else
				why = stock[c] " on stock, " now " on patched"
			what = now == "pass" ? "pass" : \
			       now == stock[c] ? "skip" : "fail"
			print what "\t" c "\t" (why ? why ", " : "") log_dir
		}
		for (c in patched)
			if (!(c in stock))
				print "fail\t" c "\tnot run on stock, " log_dir
	}' "$yardstick" "$results" | sort >>"$cases"
[ -s "$yardstick" ] || note fail "neighbours: nothing has run on stock" "$log"

# On the kernel that has the feature only what that kernel lacks may be skipped.
for m in $machines; do
	eval "boot patched mfr-$m 1500 \"\$$(echo $m | tr - _)\""
	awk -F '\t' -v l="$log" -v lacks="$(echo $lacks)" '
		BEGIN { n = split(lacks, lack, " ") }
		$1 == "skip" {
			for (i = 1; i <= n && !index($3, lack[i]); i++) ;
			if (i > n) { $1 = "fail"; $3 = $3 " (skipped)" }
		}
		{ print $1 "\t" $2 ": " $3 "\t" l }' "$results" >>"$cases"
	[ -s "$results" ] || note fail "nothing has run in the machine mfr-$m" "$log"
done

# Who wants errors to be fatal gets that, whether or not a file keeps its hugepages.
fatal="an error panics with vm.memory_failure_recovery=0"
log=$O/runs/mfr-fatal-$BASE-patched$suffix
say "mfr-fatal on the patched kernel"
if "$MFR/boot.sh" patched mfr-fatal $((300 * slow)) \
	"sysctl -w vm.memory_failure_recovery=0;mini-vmm 2048" 2>"$O/runs/fatal.log"; then
	note fail "$fatal: it goes on" "$log"
elif grep -q 'Kernel panic - not syncing: Memory failure on page' "$log/console.log"; then
	note pass "$fatal" "$log"
else
	note fail "$fatal: $(tail -n 1 "$O/runs/fatal.log")" "$log"
fi

# Today's behaviour holds on stock, and what needs the flag says so.
boot stock mfr 1500 "$stock"
awk -F '\t' -v l="$log" '$1 != "skip" { print $1 "\t" $2 " on stock: " $3 "\t" l }' \
	"$results" >>"$cases"
grep -q '^skip' "$results" ||
	note fail "nothing is skipped on stock, which lacks the flag" "$log"

echo
grep '^fail' "$cases" | while IFS='	' read -r what name why; do
	printf '%sFAILED%s %s\n       %s\n' "$red" "$plain" "$name" "$why"
done
grep '^skip' "$cases" | while IFS='	' read -r what name why; do
	printf 'skipped %s\n       %s\n' "$name" "$why"
done
count() { grep -c "^$1" "$cases" || true; }
failed=$(count fail)
echo "$(count pass) passed, $failed failed, $(count skip) skipped"
[ "$failed" = 0 ]
