# SPDX-License-Identifier: GPL-2.0
# Print the names of the first file, one a line, the patches in their new order, with the
# comments of the second one, the series file, where their patches are, by subject. A patch
# with another subject than before follows the same one as before, or is gone.
function slug(s) {
	sub(/^([^\/]*\/)?(0000-(upstream|stock|names)-|[0-9]*-)/, "", s)
	return s
}
FNR == NR { order[++n] = $1; at[slug($1)] = n; next }
/^#/ || !NF { pending = pending $0 "\n"; next }
{ old[++m] = slug($1); known[slug($1)] = 1; before[m] = pending; pending = "" }
END {
	for (i = 1; i <= m; i++) {
		text = text before[i]
		if (old[i] in at)
			now = at[old[i]]
		else if (now < n && !(slug(order[now + 1]) in known))
			now++
		else
			continue
		comment[now] = comment[now] text
		text = ""
	}
	for (i = 1; i <= n; i++)
		printf "%s%s\n", comment[i], order[i]
}
