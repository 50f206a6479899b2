# SPDX-License-Identifier: GPL-2.0
# The table of make run GUEST=qemu, from the results of play-qemu without and with
# patches/qemu. Fails unless each step ends as this says.
function row(what, a, b) {
	printf "  %-25s %s%24s%s %s%24s%s\n", what, red, a, plain, green, b, plain
}
function step(name, what, a) {
	row(what, text[1, name], text[2, name])
	if (text[1, name] !~ a || done[2, name] != "yes")
		failed = failed " " name
}
function wrong(line) {
	return match(line, /[0-9]+ (wrong|were wrong)/) ? substr(line, RSTART) + 0 : "-"
}
{ sub(/\r$/, "") }
FNR == 1 { k++ }
/^step=/ {
	split(substr($0, 6), part, "/")
	done[k, part[1]] = part[2]
	text[k, part[1]] = part[3]
}
/^before=/ { before[k] = wrong($0) }
/^end=/ { end[k] = wrong($0) }
/^hits=/ { hits[k] = substr($0, 6) }
END {
	printf "\n%s  %-25s %24s %24s%s\n", bold, "a Linux guest of 1 GiB", \
	       "QEMU as it is", "with patches/qemu", plain
	row("memory errors", hits[1], hits[2])
	step("start", "asks for kept memory", "^no mf-keep")
	step("errors", "two of its programs hit", "^1 killed, 1 recovered$")
	step("burst", "four errors at once", "^told of [123] of 4$")
	step("query", "lists what is lost", "^no such command$")
	step("heal", "heals it", "^no such command$")
	step("migration", "migrates the guest", "^refused$")
	step("restart", "hands the memory over", "^refused$")
	row("numbers that were wrong", before[1], before[2])
	step("reset", "resets the guest", "^never up again$|^QEMU died")
	row("wrong after that", end[1] == "" ? "-" : end[1], end[2])
	print ""
	if (before[1] != 0 || before[2] != 0 || end[2] != 0)
		failed = failed " numbers"
	if (failed)
		print "not as it should be:" failed
	exit failed != ""
}
