# SPDX-License-Identifier: GPL-2.0
# The table of make run, from the results of mini-vmm on the stock and on the patched kernel
function human(n) {
	return n >= 1073741824 ? sprintf("%.4g GiB", n / 1073741824) : \
	       n >= 1048576 ? sprintf("%.6g MiB", n / 1048576) : \
	       sprintf("%d KiB", n / 1024)
}
function row(what, a, b, bad_a) {
	printf "  %-30s %s%16s%s %s%20s%s\n", what, \
	       bad_a ? red : "", a, plain, bad_a ? green : "", b, plain
}
{ sub(/\r$/, "") }
FNR == 1 { k++ }
$1 == "signal" {
	errors[k]++
	if (/code=AR address=exact lsb=12/) exact[k]++
	if (match($0, /lsb=[0-9]+/))
		lsb[k] = lsb[k] (index(lsb[k] " ", substr($0, RSTART + 4, RLENGTH - 4) " ") ? "" : \
			(lsb[k] ? ", " : "") substr($0, RSTART + 4, RLENGTH - 4))
	if (/code=/) signals[k]++
	next
}
{ v[k, $1] = $2 }
END {
	printf "\n%s  %d memory errors in 1 GiB     %16s %20s%s\n", bold, \
	       errors[1], "stock kernel", \
	       v[2, "flag"] == "yes" ? "KEEP_UE_MAPPED" : "FLAG REFUSED", plain
	row("lost while running", human(v[1, "running_lost_bytes"]), \
	    human(v[2, "running_lost_bytes"]), 1)
	row("healthy bytes verified", human(v[1, "running_good_bytes"]), \
	    human(v[2, "running_good_bytes"]), 1)
	row("wrong bytes", v[1, "running_wrong_bytes"], v[2, "running_wrong_bytes"])
	row("signals: BUS_MCEERR_AR", signals[1] + 0 " of " errors[1], \
	    signals[2] + 0 " of " errors[2], 1)
	row("  with si_addr_lsb", lsb[1], lsb[2], 1)
	row("  for exactly the page", exact[1] + 0, exact[2] + 0, 1)
	row("lost after release", human(v[1, "released_lost_bytes"]), \
	    human(v[2, "released_lost_bytes"]), 1)
	row("pool, total (free) of " v[1, "pool_before"], \
	    v[1, "pool_after"] " (" v[1, "pool_free_after"] ")", \
	    v[2, "pool_after"] " (" v[2, "pool_free_after"] ")")
	row("HardwareCorrupted", v[1, "corrupted_released"] " kB", \
	    v[2, "corrupted_released"] " kB")
	print ""
}
