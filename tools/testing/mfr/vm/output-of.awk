# SPDX-License-Identifier: GPL-2.0
# The last ten lines that the failed test -v test="COMMAND: CASE" has printed, from the
# results of a machine
/^# +RUN / { n = 0; next }
/^# / { line[n++ % 10] = $0; next }
/^not ok / {
	sub(/^not ok [0-9]+ *(- )?/, "")
	if (substr(test, length(test) - length($0) + 1) == $0)
		for (i = n > 10 ? n - 10 : 0; i < n; i++)
			print "       " line[i % 10]
}
/^(not )?ok / { n = 0 }
