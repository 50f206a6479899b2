# SPDX-License-Identifier: GPL-2.0
# From the table of machines: what can run on hardware, NAME<TAB>POOL<TAB>NEEDS<TAB>COMMAND
$2 == "here" { order[++nr] = $1; here[$1] = $3 == "yes" }
$2 == "run" { command[$1, ++commands[$1]] = $3 }
$2 == "needs" { needs[$1] = $3 }
$2 == "pool" { pool[$1] = $3 }

END {
	for (i = 1; i <= nr; i++)
		for (j = 1; here[order[i]] && needs[order[i]] && j <= commands[order[i]]; j++)
			print order[i] "\t" (pool[order[i]] ? pool[order[i]] : 0) "\t" \
			      needs[order[i]] "\t" command[order[i], j]
}
