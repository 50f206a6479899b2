# SPDX-License-Identifier: GPL-2.0
# Fail if the lines of the first file are not in the second one, in a row.
FILENAME == ARGV[1] { part = part $0 "\n"; next }
{ whole = whole $0 "\n" }
END { exit part == "" || !index("\n" whole, "\n" part) }
