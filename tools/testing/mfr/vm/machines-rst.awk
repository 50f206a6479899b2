# SPDX-License-Identifier: GPL-2.0
# From the table of machines: a list in reStructuredText of those in which hugetlb-mfr* run

# Print the words of @text in lines of 80 columns.
function wrap(text,	i, n, word, line) {
	n = split(text, word, " ")
	line = "\t" word[1]
	for (i = 2; i <= n; i++)
		if (length(line) + 8 + length(word[i]) > 80) {
			print line
			line = "\t" word[i]
		} else
			line = line " " word[i]
	print line
}

# The parameters that @name has besides those that all have
function more(name,	i, n, word, text) {
	n = split(value[name, "append"], word, " ")
	for (i = 1; i <= n; i++)
		if (!index(" " value["shell", "append"] " ", " " word[i] " "))
			text = text (text ? " " : "") word[i]
	return text
}

$2 == "here" && $3 == "yes" { order[++nr] = $1 }
$2 == "run" { commands[$1] = commands[$1] (commands[$1] ? "``, then ``" : "") $3 }
{ value[$1, $2] = $3 }

END {
	for (i = 1; i <= nr; i++) {
		name = order[i]
		if (value[name, "check"] != "patched" || commands[name] !~ /^hugetlb-mfr/)
			continue
		text = "``" commands[name] "``"
		if (value[name, "mce"])
			text = text "; " (value[name, "mce"] == "exact" ? "mce-at" : "the monitor")
		if (value[name, "cpu"] != value["shell", "cpu"])
			text = text "; ``-cpu " value[name, "cpu"] "``"
		if (more(name))
			text = text "; ``" more(name) "``"
		print name
		wrap(text)
	}
}
