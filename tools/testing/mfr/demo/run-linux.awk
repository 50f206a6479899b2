# SPDX-License-Identifier: GPL-2.0
# The table of make run GUEST=linux, from the results of play-host on the stock and on the
# patched kernel. Fails if it has not ended as it should.
function row(what, a, b) {
	printf "  %-25s %s%24s%s %s%24s%s\n", what, red, a, plain, green, b, plain
}
{ sub(/\r$/, "") }
FNR == 1 { k++ }
$1 == "error" { errors[k]++ }
$1 == "event" && / died / { killed[k]++ }
$1 == "event" && /anew/ { anew[k]++ }
$1 == "map" { map[++maps] = $2 }
$1 ~ /^(lost|survived|last|left|pool)$/ { v[k, $1] = $2 }
function wrong(k) {
	return match(v[k, "last"], /[0-9]+ were wrong/) ? \
	       substr(v[k, "last"], RSTART) + 0 : "-"
}
END {
	printf "\n%s  %-25s %24s %24s%s\n", bold, "a Linux guest of 1 GiB", \
	       "stock host", "patched host", plain
	row("memory errors", errors[1] + 0, errors[2] + 0)
	row("lost with each", v[1, "lost"], v[2, "lost"])
	row("workers killed", killed[1] ? killed[1] : "-", killed[2] + 0)
	row("workers that recovered", anew[1] ? anew[1] : "-", anew[2] + 0)
	row("numbers that were wrong", wrong(1), wrong(2))
	row("the guest", v[1, "survived"] ? "survived" : "died", \
	    v[2, "survived"] ? "survived" : "died")
	row("lost after healing", "-", v[2, "left"])
	row("1 GiB hugepages", "-", v[2, "pool"])
	for (i = 1; i <= maps; i++)
		printf "  %-50s %24s\n", i == 1 ? \
		       "lost, says fdinfo: offset and length" : "", map[i]
	print ""
	exit (v[1, "survived"] || !v[2, "survived"] || wrong(2) != 0 || \
	      v[2, "left"] != "nothing")
}
