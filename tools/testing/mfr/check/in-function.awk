# SPDX-License-Identifier: GPL-2.0
# Turn a complaint about a line of a file into one about the function there, for line numbers
# differ between two trees. Use with -F :
/^[^ :]*\.[ch]:[0-9]+:/ {
	name = "?"
	for (n = 1; n <= $2 && (getline line <$1) > 0; n++)
		if (line ~ /^[a-zA-Z_].*\(/ && match(line, /[a-zA-Z0-9_]+\(/))
			name = substr(line, RSTART, RLENGTH) ")"
	close($1)
	file = $1
	sub(/^[^ ]* */, "")
	gsub(/ (on|at) line [0-9]+/, "")
	print file ": warning: " name ": " $0
}
