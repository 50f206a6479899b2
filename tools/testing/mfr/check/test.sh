#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
# make test TEST=COMMAND [MACHINE=NAME]: run only that, in the hardware of that machine

. "${0%/*}/../lib.sh"

[ -n "${TEST:-}" ] ||
	die "give TEST=, for example TEST='hugetlb-mfr-heal -r FIXTURE.VARIANT.TEST'," \
	    "and MACHINE= if it needs one of those that 'make machines' prints"
kernel=patched
if [ -n "$STOCK" ] && [ "$STOCK" != no ]; then
	kernel=stock
fi
machine=${MACHINE:-shell}
"$MFR/vm/prepare.sh" $kernel
"$MFR/vm/machine.sh" $kernel "$machine" "$TEST"

run=$(run_dir "$machine" $kernel)
sed -n '/^begin /,/^end /p' "$run/results"
echo "all of it is in $run"
cases=$O/runs/test-$BASE$suffix
awk -F '\t' -v OFS='\t' -v machine="$machine" -v log_dir="$run" \
	'{ print $1, machine, $2 ": " $3, log_dir }' "$run/cases" >"$cases"
verdict "$cases"
