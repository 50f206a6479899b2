# SPDX-License-Identifier: GPL-2.0
# Turn the results of a machine into lines "pass|fail|skip<TAB>command<TAB>case".
# A program that prints TAP has the cases it prints; any other one is a case
# itself, by its exit status. The kselftest harness counts a skip as passed in
# its summary, so only the result lines are believed, and their number must be
# the plan's.

function result(what, name) { print what "\t" command "\t" name; n++; seen[what]++ }

{ sub(/\r$/, "") }
/^begin / {
	command = substr($0, 7); n = 0; plan = -1; split("", seen); running = 1
	next
}
/^end / {
	status = $2; running = 0
	if (plan == 0)
		result("fail", "has no such test")
	else if (plan > 0 && n != plan)
		result("fail", "has printed " n " of " plan " results")
	else if (!n)
		result(status == 0 ? "pass" : status == 4 ? "skip" : "fail",
		       "exits with " status)
	else if (status != 0 && status != 4 && !seen["fail"])
		result("fail", "exits with " status)
	next
}
!running { next }
/^1\.\.0 # SKIP/ { next }
/^1\.\.[0-9]+/ { plan = substr($1, 4) + 0; next }
/^(not )?ok [0-9]+/ {
	what = /^not/ ? "fail" : /# *SKIP/ ? "skip" : "pass"
	if (/# *XFAIL/)
		what = "skip"
	name = $0
	sub(/^(not )?ok [0-9]+ *(- )?/, "", name)
	# Some give their name as the reason.
	if (name !~ /^# *(SKIP|XFAIL)/)
		sub(/ *# *(SKIP|XFAIL|exit=).*/, "", name)
	sub(/^# *(SKIP|XFAIL) */, "", name)
	result(what, name)
}
END { if (running) result("fail", "did not end") }
