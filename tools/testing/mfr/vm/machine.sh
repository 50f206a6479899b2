#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# machine.sh stock|patched MACHINE [COMMAND...]: boot a machine of machines.cfg, and run in
# it what it has there, or these commands. Leaves in its run directory "cases": lines of
#	pass|fail|skip<TAB>COMMAND<TAB>CASE
# or, of a machine that must die, whether it did, of the right thing.

. "${0%/*}/../lib.sh"

kernel=$1 machine=$2
shift 2
is_machine "$machine" || die "$machine is none of the machines in $MFR/machines.cfg"
run=$(run_dir "$machine" "$kernel")
cases=$run/cases
dies=$(of "$machine" dies)
[ $# = 0 ] || dies=
begin=$(date +%s)
mkdir -p "$O/runs"

# spoilt: has the run ended for no fault of the kernel's?
spoilt() {
	# Not even isolated CPUs are always in user mode, and emulated hardware raises no
	# machine check by itself. (Those of mce-at are meant to hit just that.)
	if [ "$(of "$machine" mce)" != exact ] &&
	   grep -Eqs 'unrecoverable (area of kernel|error in kernel context)' "$run/console.log"
	then
		say "$machine: an injected machine check has hit an interrupt; once more"
	# QEMU resets a machine that gets one during another, with or without a word.
	elif grep -Eqs "MCE still in progress|ended during 'mce" "$run/mce-at.log"; then
		say "$machine: an injected machine check has hit another one; once more"
	# Emulated hardware may take too long on a busy machine.
	elif grep -qs "IO-APIC + timer doesn't work" "$run/console.log"; then
		say "$machine: the emulated timer was too slow to boot; once more"
	else
		return 1
	fi
}

say "$machine on the $kernel kernel"
died=
for try in 1 2 3; do
	rm -f "$cases"
	if "$MFR/vm/boot.sh" "$kernel" "$machine" "$@" 2>"$run.err"; then
		break
	elif [ $try = 3 ] || ! spoilt; then
		died=1
		break
	fi
done
mkdir -p "$run"
mv "$run.err" "$run/boot.err"

if [ -n "$dies" ]; then
	verdict=fail
	if [ -n "$died" ] && grep -Eqs "$dies" "$run/console.log"; then
		verdict=pass
	fi
	printf '%s\t%s\tdies of: %s\n' $verdict "$machine" "$dies" >"$cases"
else
	[ -z "$died" ] || cat "$run/boot.err" >&2
	{
		awk -f "$MFR/vm/results.awk" "$run/results"
		# It is a result of this kernel alone, even if the other one dies, too.
		[ -z "$died" ] ||
			printf 'fail\t%s\tthe %s machine did not get to its end\n' \
				"$machine" "$kernel"
	} >"$cases"
fi
count() { grep -c "^$1" "$cases" || true; }
t=$(($(date +%s) - begin))
say "$machine on the $kernel kernel: $(count pass) passed, $(count fail) failed," \
    "$(count skip) skipped, after $((t / 60)) min $((t % 60)) s"
