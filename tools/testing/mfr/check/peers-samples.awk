# SPDX-License-Identifier: GPL-2.0
# Turn the output of results.awk into samples for peers.awk. Cases of a test that have the
# same name are numbered.
{
	# pagemap_ioctl has what it counts in a name.
	sub(/ Extra pages .*/, "")
	# A program that prints no cases is one itself, however it exits.
	sub(/exits with [0-9]+$/, "exit status")
	k = $2 "\t" $3
	if (++n[k] > 1)
		k = k " (" n[k] ")"
	print suite "\t" k "\t" round "\t" kernel "\t" $1
}
