# SPDX-License-Identifier: GPL-2.0
# Compare the results of a machine on stock, the first file, with those on the patched
# kernel: lines as for verdict in lib.sh. A test that fails on both is no failure.
FILENAME == ARGV[1] { stock[$2 ": " $3] = $1; next }
{ patched[$2 ": " $3] = $1 }

END {
	for (c in stock) {
		now = c in patched ? patched[c] : "missing"
		if (now != stock[c])
			why = stock[c] " on stock, " now " on patched, "
		else
			why = now == "pass" ? "" : "the same on stock, "
		result = now == "pass" ? "pass" : now == stock[c] ? "skip" : "fail"
		print result "\t" machine "\t" c "\t" why log_dir
	}
	for (c in patched)
		if (!(c in stock))
			print "fail\t" machine "\t" c "\tnot run on stock, " log_dir
}
