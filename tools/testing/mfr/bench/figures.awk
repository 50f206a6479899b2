# SPDX-License-Identifier: GPL-2.0
# Collect the figures that hugetlb-mfr-bench has printed: lines NAME<TAB>X<TAB>STOCK<TAB>PATCHED.
# Before the files of each kernel, is_stock= says which they are from. Use with -v OFS='\t'.
{ sub(/\r$/, "") }
/^# figure / {
	f = $3 OFS $4
	if (!(f in stock)) {
		stock[f] = patched[f] = "-"
		name[++n] = f
	}
	if (is_stock)
		stock[f] = $5
	else
		patched[f] = $5
}
END {
	for (i = 1; i <= n; i++)
		print name[i], stock[name[i]], patched[name[i]]
}
