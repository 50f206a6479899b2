# SPDX-License-Identifier: GPL-2.0
# Turn lines pass|fail|skip<TAB>GROUP<TAB>TEST<TAB>WHY into KTAP, which has a test for each
# group, and its tests as subtests. (See Documentation/dev-tools/ktap.rst.)

# A description ends at "#".
function name(text) {
	gsub(/#/, "", text)
	return text
}

{
	if (!($2 in nr))
		group[++groups] = $2
	i = ++nr[$2]
	bad[$2] += $1 == "fail"
	skipped[$2] += $1 == "skip"
	line[$2, i] = ($1 == "fail" ? "not ok " : "ok ") i " " name($3)
	if ($1 == "skip")
		line[$2, i] = line[$2, i] " # SKIP " name($4)
	if ($1 == "fail" && $4 != "")
		line[$2, i] = "# " $4 "\n    " line[$2, i]
}

END {
	print "KTAP version 1"
	print "1.." groups
	for (g = 1; g <= groups; g++) {
		k = group[g]
		print "    KTAP version 1"
		print "    # Subtest: " name(k)
		print "    1.." nr[k]
		for (i = 1; i <= nr[k]; i++)
			print "    " line[k, i]
		print (bad[k] ? "not ok " : "ok ") g " " name(k) \
		      (skipped[k] == nr[k] ? " # SKIP all of it" : "")
	}
}
