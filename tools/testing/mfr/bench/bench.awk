# SPDX-License-Identifier: GPL-2.0
# Compare bench.sh's figures with the goals, in tables: as text or, with -v html=1, as HTML.

function heading(text, a, b, ratio) {
	because("")
	if (html)
		printf "%s<h3>%s</h3>\n<table>\n<tr><th><th>%s<th>%s<th>more<th>%s<th>goal<th>\n",
		       headings++ ? "</table>\n" : "", text, a, b, ratio
	else
		printf "%s%-44s %11s %11s %9s %8s %9s\n", headings++ ? "\n" : "", text,
		       a, b, "more", ratio, "goal"
}

# One line; @met is about the goal, if there is one.
function row(what, a, b, more, ratio, goal, met,	verdict) {
	verdict = goal == "" ? "" : met ? "met" : "missed"
	missed += verdict == "missed"
	if (html)
		printf "<tr class=\"%s\"><td>%s<td>%s<td>%s<td>%s<td>%s<td>%s<td>%s\n",
		       verdict, what, a, b, more, ratio, goal, verdict
	else
		printf "  %-42s %11s %11s %9s %8s %9s %s\n", what, a, b, more, ratio,
		       goal, verdict
}

# Two figures, of which the second should be no more than @goal times the first.
function compare(what, a, b, goal) {
	if (a > 0 && b > 0)
		row(what, a, b, b - a, sprintf("%.4f", b / a), goal, b / a <= goal)
	else
		row(what, a, b, "", "", goal, 0)
	# A row that begins with blanks is about the same as the one above.
	if (what !~ /^ /)
		about = what
	else
		what = about "," substr(what, 2)
	if (goal != "" && !(a > 0 && b > 0 && b / a <= goal))
		misses = misses (misses ? "; " : "") what ": " b - a " more, goal " \
			 int(a * (goal - 1))
}

# Stock and patched, and with the flag, if @f is about a file.
function path(f, x, what, goal) {
	compare(what, stock[f, x], patched[f, x], goal)
	if (("kept_" f, x) in patched)
		compare("  with the flag", stock[f, x], patched["kept_" f, x], goal)
}

function growth(f, x, y, what, goal) {	# patched, at two places
	compare(what, patched[f, x], patched[f, y], goal)
}

function lost(f, x, what) {
	row(what, stock[f, x], patched[f, x], "", "", 4096, patched[f, x] == 4096)
}

function reached(size, what,	i) {	# patched, without and with a guest
	what = what ", "
	compare(what "1 GiB mapped", patched[size "_error", 1],
		patched["guest_" size "_error", 1])
	compare("  beside 63 GiB", patched[size "_error", 64],
		patched["guest_" size "_error", 64])
	for (i = 4; i <= 64; i *= 4)
		compare("  " i " times", patched[size "_shared_error", i],
			patched["guest_" size "_shared_error", i])
}

# By hand, for which all users stop, and by the call, for which they wait when they use
# the hugepage. Included is the time until the next use.
function healed(size, what,	by_hand) {
	by_hand = patched[size "_heal_by_hand", 1]
	compare(what, by_hand, patched[size "_heal", 1], 0.5)
	compare("  with a guest on it", by_hand, patched["guest_" size "_heal", 1], 0.5)
	compare("  longest wait of a user", by_hand, patched[size "_heal_gap", 1], 0.5)
	compare("  of a guest", by_hand, patched["guest_" size "_heal_gap", 1], 0.5)
}

# Patched, by a user and by the call. In 1 GiB some ticks come in between, each of which may
# take a few instructions more.
function zeroed(kept, size, what) {
	compare(what ", there but not mapped", patched[kept "memset_file", size],
		patched[kept "zero_range_file", size], size < 1e9 ? 1 : 1.00001)
	compare("  a hole", patched[kept "memset_hole", size],
		patched[kept "zero_range_hole", size], 1)
}

function each(f, from, to, what,	a, b) {	# patched, for each lost page
	a = patched[f, from]
	b = patched[f, to]
	row(what, a, b, sprintf("%.0f", (b - a) / (to - from)))
}

function blocks(k,	order, returned, possible, same) {
	same = 1
	for (order = 0; ("possible_blocks_" k, order) in patched; order++) {
		possible += patched["possible_blocks_" k, order]
		returned += patched["blocks_" k, order]
		same = same && patched["blocks_" k, order] == patched["possible_blocks_" k, order]
	}
	row(k " lost", possible, returned, "", "", "same sizes", possible && same)
}

# Why the rows since the last call have missed, if some of them have: by how much comes from
# the figures, what costs that is said here.
function because(text) {
	if (misses)
		reasons[++nr_reasons] = misses ". " text
	misses = ""
}

{ stock[$1, $2] = $3; patched[$1, $2] = $4 }

END {
	heading("Bytes that one error takes away", "stock", "patched", "")
	lost("lost_running_bytes", 2097152, "of 2 MiB, running")
	lost("lost_released_bytes", 2097152, "of 2 MiB, released")
	lost("lost_running_bytes", 1073741824, "of 1 GiB, running")
	lost("lost_released_bytes", 1073741824, "of 1 GiB, released")

	heading("Instructions without any error", "stock", "patched", "ratio")
	path("memfd_create", 1, "memfd_create()", 1.001)
	because("memfd_create() looks for one more flag, and sets the policy of the file, " \
		"which every new inode has.")
	path("hugetlb_fault_new", 1, "fault of a new hugepage, 2 MiB", 1.001)
	path("hugetlb_fault_again", 1, "fault of one that the file has", 1.001)
	because("A fault of what the file has does nothing more without lost pages, but " \
		"gcc may load early what only they need.")
	path("truncate", 1, "truncate 1 hugepage, 2 MiB", 1.001)
	path("truncate", 4, "truncate 4", 1.001)
	path("truncate", 16, "truncate 16", 1.001)
	because("When the last reference of a hugepage is dropped, one flag of it is " \
		"tested, and whether it leaves its pool; with the policy, also whether it " \
		"has lost pages, and the flag is cleared.")
	path("hugetlb_alloc_2M", 16, "pool: 16 more, 2 MiB", 1.001)
	path("hugetlb_free_2M", 16, "pool: 16 less, 2 MiB", 1.001)
	path("hugetlb_alloc_1G", 1, "pool: 1 more, 1 GiB", 1.001)
	path("hugetlb_free_1G", 1, "pool: 1 less, 1 GiB", 1.001)
	because("Hugepages that leave their pool are looked at once more for errors that " \
		"have hit them on their way.")
	path("page_alloc", 1, "fault of an order-0 page", 1)
	path("page_free", 1, "unmap an order-0 page", 1)
	path("page_alloc", 256, "fault of 256 order-0 pages", 1)
	path("page_free", 256, "unmap 256 order-0 pages", 1)
	path("page_alloc", 512, "fault of an order-9 page", 1)
	path("page_free", 512, "unmap an order-9 page", 1)
	path("gup_fast_small", 256, "get_user_pages_fast(), 256 small pages", 1.001)
	path("gup_small", 256, "get_user_pages(), 256 small pages", 1.001)
	path("gup_fast_hugetlb", 256, "get_user_pages_fast(), 256 of a hugepage", 1.001)
	path("gup_hugetlb", 256, "get_user_pages(), 256 of a hugepage", 1.001)
	because("get_user_pages() tests one flag of a hugepage where it is found and where " \
		"more of its pages are taken. For small pages nothing is done, but " \
		"gcc may keep the loop in other registers.")
	path("read", 8, "read 8 bytes of a hugepage", 1.001)
	path("read", 4096, "read 4 KiB of a hugepage", 1.001)
	path("read", 1048576, "read 1 MiB of a hugepage", 1.001)

	heading("Instructions of a guest's faults", "stock", "patched", "ratio")
	path("guest_fault_2M", 16, "16 of hugepages, 2 MiB", 1.001)
	path("guest_fault_4K", 16, "16 of small pages", 1.001)
	because("Before KVM maps more than a small page, it looks for the folio and tests " \
		"one flag of it. The way out of the guest and back isn't counted.")

	heading("Instructions over lost pages of 1 GiB", "at first", "at last", "ratio")
	growth("signal", 2, 10000, "error to handler, the 2nd and the 10 000th", 1.1)
	growth("1G_error", 1, 64, "error to handler, 1 and 64 GiB mapped", 1.05)
	growth("guest_1G_error", 1, 64, "  mapped for a guest as well", 1.05)
	growth("lossy_fault", 1, 10000, "fault, 1 and 10 000 lost", 1.1)
	growth("lossy_guest_fault", 1, 10000, "fault of a guest, 1 and 10 000 lost", 1.1)
	because("KVM goes down the tree of lost pages for the block of 1 GiB around the page, " \
		"for that of 2 MiB and for the page.")
	growth("lossy_read_4K", 0, 1000, "read 4 KiB beside 0 and 1000 lost", 1.05)
	growth("lossy_read_1M", 0, 1000, "read 1 MiB beside 0 and 1000 lost", 1.05)
	because("A read goes down the tree of lost pages once in each hugepage that it " \
		"reads from. A table that is looked up faster takes more memory: an xarray for 1000 pages here and there in " \
		"1 GiB more than 500 bytes for each, a bitmap 32 KiB for the first.")
	growth("release", 0, 1, "release, 0 and 1 lost", 1.05)
	growth("repeat", 1, 64, "consumed again, 1 and 64 GiB mapped", 1.05)
	because("A machine check needs a second CPU, whose instructions count as well: " \
		"how many those are differs from run to run.")

	heading("From an error to the signal handler", "no guest", "a guest", "ratio")
	reached("2M", "hugepages of 2 MiB")
	reached("1G", "of 1 GiB")

	heading("Instructions of a heal, 1 page lost", "by hand", "the call", "ratio")
	healed("2M", "2 MiB")
	healed("1G", "1 GiB")

	heading("Instructions of zeroing", "memset()", "the call", "ratio")
	zeroed("", 2097152, "2 MiB")
	zeroed("kept_", 2097152, "2 MiB with the flag")
	zeroed("kept_", 1073741824, "1 GiB with the flag")

	heading("For each lost page", "at first", "at last", "")
	block = int(patched["kept_guest_fault_2M", 16] / 16)
	pages = patched["kept_guest_fault_damaged", 1]
	row("2 MiB of a guest, 1 fault and 511", block, pages, pages - block)
	each("lossy_read_through", 0, 1000, "read all of 1 GiB, 0 and 1000 lost")
	each("release", 1, 1000, "release, 1 and 1000 lost")
	each("release", 1, 10000, "release, 1 and 10 000 lost")
	each("map", 1, 1000, "read the map, 1 and 1000 lost")
	each("map", 1, 10000, "read the map, 1 and 10 000 lost")
	nr = 512
	row("  of " nr " hugepages, for each", 0, patched["2M_map_of_hugepages", nr],
	    int(patched["2M_map_of_hugepages", nr] / nr))
	row("record, bytes, 10 000 lost", 0, patched["record_bytes", 10000],
	    patched["record_bytes", 10000] / 10000, "", 64,
	    patched["record_bytes", 10000] <= 640000)
	if (patched["record_bytes", 10000] > 640000)
		misses = "record: " patched["record_bytes", 10000] " bytes for 10 000 lost pages"
	because("An entry has 64 bytes. The rest is unused space of the last slab, which other " \
		"entries will use.")

	heading("Free blocks of a released 1 GiB", "possible", "returned", "")
	blocks(1)
	blocks(10)
	blocks(100)
	blocks(1000)
	blocks(10000)

	printf "%s%d goals missed\n", html ? "</table>\n<p>" : "\n", missed
	if (html)
		print "<ul>"
	for (i = 1; i <= nr_reasons; i++)
		print (html ? "<li>" : "  - ") reasons[i]
	if (html)
		print "</ul>"
}
