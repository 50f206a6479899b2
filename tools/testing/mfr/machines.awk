# SPDX-License-Identifier: GPL-2.0
# Read machines.cfg, whose head explains it, for the configuration that -v words="WORD..."
# tells, and print
#	NAME<TAB>KEY<TAB>VALUE
# for each machine: "here" with yes or no, as where says, and then its keys. Each command
# has a line of its own.

function mistake(text) {
	print FILENAME ":" FNR ": " text >"/dev/stderr"
	failed = 1
	exit 1
}

# Do all these WORDs hold? Each may begin with @, !, or both.
function all_hold(conditions,	all, i, n, w, word) {
	n = split(conditions, word, " ")
	all = 1
	for (i = 1; i <= n; i++) {
		w = word[i]
		gsub(/[@!]/, "", w)
		if (!(w in known))
			mistake("there is no configuration " w)
		if ((w in holds) == (word[i] ~ /!/))
			all = 0
	}
	return all
}

BEGIN {
	n = split("7.3 6.12 x86 arm64 64k debug races bench guests " words, list, " ")
	for (i = 1; i <= n; i++)
		known[list[i]] = 1
	n = split(words, list, " ")
	for (i = 1; i <= n; i++)
		holds[list[i]] = 1
	n = split("like where check run lacks fails dies says cpu board cpus memory accel " \
		  "nodes append console isolate monitor mce khz initramfs pool taints " \
		  "timeout needs", list, " ")
	for (i = 1; i <= n; i++)
		is_key[list[i]] = 1
	n = split("run append lacks fails", list, " ")
	for (i = 1; i <= n; i++)
		adds_up[list[i]] = 1
	n = split("check run needs fails dies says", list, " ")
	for (i = 1; i <= n; i++)
		is_own[list[i]] = 1
}

/^#/ || /^[ \t]*$/ { next }

/^\[.*\]$/ {
	name = substr($0, 2, length($0) - 2)
	if (name in nr_lines)
		mistake("there are two machines " name)
	nr_lines[name] = 0
	if (name != "default")
		order[++nr_names] = name
	next
}

# The rest of a value, which counts if its beginning does
/^[ \t]/ {
	if (!nr_lines[name])
		mistake("nothing is continued here")
	sub(/^[ \t]+/, "")
	if (counts)
		value[name, nr_lines[name]] = value[name, nr_lines[name]] " " $0
	next
}

{
	at = index($0, "=")
	if (!at || name == "")
		mistake("neither [NAME] nor KEY = VALUE")
	left = substr($0, 1, at - 1)
	right = substr($0, at + 1)
	sub(/^[ \t]+/, "", right)
	k = left
	sub(/[ \t].*/, "", k)
	if (!(k in is_key) && name != "programs")
		mistake("there is no key " k)
	conditions = substr(left, length(k) + 1)
	counts = all_hold(conditions)
	if (counts || !nr_lines[name]) {
		key[name, ++nr_lines[name]] = counts ? k : ""
		value[name, nr_lines[name]] = counts ? right : ""
	}
}

function set(k, v) {
	if (!(k in now))
		key_order[++nr_keys] = k
	if (!(k in now) || !(k in adds_up) && name != "programs")
		now[k] = v
	else if (v != "")
		now[k] = now[k] (k == "run" ? "\n" : " ") v
}

# The lines of a machine, after those of the one that it is like
function take(name, its_own,	i, k, v) {
	if (!(name in nr_lines) || ++depth > 9)
		mistake("a machine is like " name ", which is none")
	for (i = 1; i <= nr_lines[name]; i++)
		if (key[name, i] == "like")
			take(value[name, i], 0)
	for (i = 1; i <= nr_lines[name]; i++) {
		k = key[name, i]
		v = value[name, i]
		if (k == "" || k == "like" || !its_own && k in is_own)
			continue
		if (k == "run" && v ~ /^\[.*\]$/)
			take_commands(substr(v, 2, length(v) - 2))
		else
			set(k, v)
	}
	depth--
}

function take_commands(name,	i) {
	if (!(name in nr_lines))
		mistake("run = [" name "], which is no machine")
	for (i = 1; i <= nr_lines[name]; i++)
		if (key[name, i] == "run")
			set("run", value[name, i])
}

END {
	if (failed)
		exit 1
	for (i = 1; i <= nr_names; i++) {
		name = order[i]
		split("", now)
		nr_keys = 0
		if (name != "programs") {
			take("default", 1)
			take(name, 1)
			print name "\there\t" (all_hold(now["where"]) ? "yes" : "no")
		} else
			take(name, 1)
		for (j = 1; j <= nr_keys; j++) {
			n = split(now[key_order[j]], list, "\n")
			for (l = 1; l <= n; l++)
				if (list[l] != "")
					print name "\t" key_order[j] "\t" list[l]
		}
	}
}
