#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# machine.sh stock|patched NAME: boot that kernel, and run in it what the file tests has
# under that name. Leaves $O/runs/NAME-BASE-KERNEL/cases: lines of
#	pass|fail|skip<TAB>command<TAB>case
# or, of a machine that must die, whether it did, of the right thing.

. "${0%/*}/lib.sh"
. "$MFR/tests"

kernel=$1 name=$2
variable=$(echo "${name#mfr-}" | tr - _)
eval "commands=\${$variable:-} dies_of=\${${variable}_dies_of:-}"
[ -n "$commands" ] || die "$name is none of the machines in $MFR/tests"
commands=$(echo "$commands" | tr '\n' ';')
run=$O/runs/$name-$BASE-$kernel$suffix
cases=$run/cases
limit=1500
[ -z "$DEBUG" ] || limit=9000
begin=$(date +%s)
mkdir -p "$O/runs"

say "$name on the $kernel kernel"
died=
for try in 1 2 3; do
	rm -f "$cases"
	! "$MFR/boot.sh" "$kernel" "$name" "$limit" "$commands" 2>"$run.err" || break
	# Not even isolated CPUs are always in user mode. Emulated hardware raises
	# no machine check by itself, so this one says nothing of the kernel. (But those
	# that mce-at.c injects are meant to hit just that.)
	if [ $try != 3 ] && [ "${name#*copy}" = "$name" ] &&
	   grep -Eqs 'unrecoverable (area of kernel|error in kernel context)' \
		"$run/console.log"; then
		say "$name: an injected machine check has hit an interrupt; once more"
		continue
	fi
	# The same goes for one that has come during another: QEMU resets the machine,
	# with or without the time to say so.
	if [ $try != 3 ] &&
	   grep -Eqs "MCE still in progress|ended during 'mce" "$run/mce-at.log"; then
		say "$name: an injected machine check has hit another one; once more"
		continue
	fi
	died=1
	break
done
mkdir -p "$run"
mv "$run.err" "$run/boot.err"

if [ -n "$dies_of" ]; then
	verdict=fail
	[ -z "$died" ] || ! grep -Eqs "$dies_of" "$run/console.log" || verdict=pass
	printf '%s\t%s\tdies of: %s\n' $verdict "$name" "$dies_of" >"$cases"
else
	[ -z "$died" ] || cat "$run/boot.err" >&2
	{
		awk -f "$MFR/results.awk" "$run/results"
		# It is a result of this kernel alone, even if the other one dies, too.
		[ -z "$died" ] ||
			printf 'fail\t%s\tthe %s machine did not get to its end\n' \
				"$name" "$kernel"
	} >"$cases"
fi
count() { grep -c "^$1" "$cases" || true; }
t=$(($(date +%s) - begin))
say "$name on the $kernel kernel: $(count pass) passed, $(count fail) failed," \
    "$(count skip) skipped, after $((t / 60)) min $((t % 60)) s"
