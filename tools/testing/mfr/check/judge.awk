# SPDX-License-Identifier: GPL-2.0
# Judge the results of a machine, lines pass|fail|skip<TAB>COMMAND<TAB>CASE, and print them
# as lines for verdict in lib.sh. lacks and fails are from machines.cfg. Adds to the file
# "matched" which patterns of lacks are the name of a case.

# Is this the name of a case? In a pattern, * stands for any text.
function is_name(pattern, name) {
	gsub(/[^a-zA-Z0-9_*]/, "[&]", pattern)
	gsub(/\*/, ".*", pattern)
	return name ~ ("^" pattern "$")
}

function any_is_name(patterns, name,	i, n, pattern, found) {
	n = split(patterns, pattern, " ")
	for (i = 1; i <= n; i++)
		if (is_name(pattern[i], name)) {
			found = 1
			if (patterns == lacks)
				print pattern[i] >>matched
		}
	return found
}

function tell(result, text) {
	print result "\t" machine "\t" text $2 ": " $3 "\t" log_dir
}

{ lacking = any_is_name(lacks, $3) }

# On the kernel that has the feature only what that kernel lacks may be skipped.
kernel == "patched" {
	if ($1 == "skip" && !lacking)
		tell("fail", "skipped: ")
	else
		tell($1, "")
	next
}

# A kernel that gets the fix of a bug is to be noticed.
$3 ~ /^dies of: / || any_is_name(fails, $3) {
	if ($1 == ($3 ~ /^dies of: / ? "pass" : "fail"))
		tell("pass", "stock still has the bug: ")
	else
		tell("fail", "stock has not the bug, it may have the fix: ")
	next
}

$1 == "skip" && lacking { next }
{ tell($1 == "pass" ? "pass" : "fail", "on stock: ") }
