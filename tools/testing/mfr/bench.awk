# SPDX-License-Identifier: GPL-2.0
# What bench.sh's figures say about the goals: tables, as text or, with -v html=1, as HTML.

function heading(text, a, b, c) {
	if (html)
		printf "%s<h3>%s</h3>\n<table>\n<tr><th><th>%s<th>%s<th>%s<th>goal<th>\n",
		       headings++ ? "</table>\n" : "", text, a, b, c
	else
		printf "%s%-46s %12s %12s %10s %10s\n", headings++ ? "\n" : "", text,
		       a, b, c, "goal"
}

# One line; @met is about the goal, if there is one.
function row(what, a, b, c, goal, met,	verdict) {
	verdict = goal == "" ? "" : met ? "met" : "missed"
	missed += verdict == "missed"
	if (html)
		printf "<tr><td>%s<td>%s<td>%s<td>%s<td>%s<td class=%s>%s\n",
		       what, a, b, c, goal, verdict, verdict
	else
		printf "  %-44s %12s %12s %10s %10s %s\n", what, a, b, c, goal, verdict
}

# Memory that one error takes away.
function lost(f, at, what) {
	row(what, stock[f, at], patched[f, at], "", 4096, patched[f, at] <= 4096)
}

# A path that healthy memory takes; what it does beside @same instructions, which fill
# or copy memory, must not take more than a thousandth longer.
function path(f, at, what, goal,	s, p) {
	s = stock[f, at]
	p = patched[f, at]
	row(what, s, p, sprintf("%+d %.4f", p - s, p / s), "<= " goal, p / s <= goal)
}

# What becomes of a figure of the patched kernel.
function growth(f, from, to, what, goal,	a, b) {
	a = patched[f, from]
	b = patched[f, to]
	row(what, a, b, sprintf("%.4f", b / a), goal ? "<= " goal : "", b / a <= goal)
}

function blocks(k,	order, returned, possible, same) {
	same = 1
	for (order = 0; ("possible_blocks_" k, order) in patched; order++) {
		possible += patched["possible_blocks_" k, order]
		returned += patched["blocks_" k, order]
		same = same && patched["blocks_" k, order] == patched["possible_blocks_" k, order]
	}
	row(k " lost", possible, returned, "", "the same", same)
}

{ stock[$1, $2] = $3; patched[$1, $2] = $4 }

END {
	heading("Bytes that one error takes away", "stock", "patched")
	lost("lost_running_bytes", 2097152, "of 2 MiB, running")
	lost("lost_released_bytes", 2097152, "of 2 MiB, released")
	lost("lost_running_bytes", 1073741824, "of 1 GiB, running")
	lost("lost_released_bytes", 1073741824, "of 1 GiB, released")

	heading("Instructions that healthy memory takes", "stock", "patched", "ratio")
	path("memfd_create", 1, "memfd_create()", 1.001)
	path("hugetlb_fault_new", 1, "fault, 2 MiB cleared", 1.001)
	path("hugetlb_fault_again", 1, "fault of what is in the file", 1.001)
	path("truncate", 1, "truncate 1 hugepage", 1.001)
	path("truncate", 4, "truncate 4", 1.001)
	path("truncate", 16, "truncate 16", 1.001)
	path("hugetlb_alloc_2M", 16, "16 hugepages of 2 MiB to the pool", 1.001)
	path("hugetlb_free_2M", 16, "16 hugepages of 2 MiB out of it", 1.001)
	path("hugetlb_alloc_1G", 1, "one of 1 GiB to the pool", 1.001)
	path("hugetlb_free_1G", 1, "one of 1 GiB out of it", 1.001)
	path("page_alloc", 1, "order-0 page: fault", 1)
	path("page_free", 1, "order-0 page: unmap", 1)
	path("page_alloc", 256, "256 order-0 pages: fault", 1)
	path("page_free", 256, "256 order-0 pages: unmap", 1)
	path("page_alloc", 512, "order-9 page: fault", 1)
	path("page_free", 512, "order-9 page: unmap", 1)
	path("gup_fast_small", 256, "get_user_pages_fast(), 256 pages", 1.001)
	path("gup_small", 256, "get_user_pages(), 256 pages", 1.001)
	path("gup_fast_hugetlb", 256, "get_user_pages_fast(), 256 of a hugepage", 1.001)
	path("gup_hugetlb", 256, "get_user_pages(), 256 of a hugepage", 1.001)
	path("read", 8, "read 8 bytes of a hugepage", 1.001)
	path("read", 4096, "read 4 KiB of a hugepage", 1.001)
	path("read", 1048576, "read 1 MiB of a hugepage", 1.001)

	heading("Instructions, patched, over lost pages", "few", "many", "ratio")
	growth("signal", 2, 10000, "error to handler: the 2nd, the 10 000th", 1.1)
	growth("kept_fault", 0, 10000, "fault in another process: 0, 10 000 lost", 1.1)
	growth("kept_read_4K", 0, 1000, "read healthy 4 KiB: 0, 1000 lost", 1.05)
	growth("kept_read_1M", 0, 1000, "read healthy 1 MiB: 0, 1000 lost", 1.05)
	growth("kept_read_through", 0, 1000, "read all of 1 GiB: 0, 1000 lost", "")
	growth("release", 0, 1, "release 1 GiB: 0, 1 lost", 1.05)
	growth("release", 0, 1000, "release 1 GiB: 0, 1000 lost", "")
	growth("repeat", 1, 64, "repeated, with 1 GiB, 64 GiB mapped", 1.01)

	heading("For each lost page, patched", "", "", "")
	row("record, bytes, of 10 000", "", patched["record_bytes", 10000] / 10000, "", "<= 64",
	    patched["record_bytes", 10000] / 10000 <= 64)
	row("release, instructions, of 1000", "",
	    int((patched["release", 1000] - patched["release", 1]) / 999))
	row("release, instructions, of 10 000", "",
	    int((patched["release", 10000] - patched["release", 1]) / 9999))
	row("read all, instructions, of 1000", "",
	    int((patched["kept_read_through", 1000] - patched["kept_read_through", 0]) / 1000))

	heading("Free blocks of a released 1 GiB", "possible", "returned")
	blocks(1)
	blocks(10)
	blocks(100)
	blocks(1000)
	blocks(10000)

	if (html)
		print "</table>"
	printf "%s%d goals missed\n", html ? "<p>" : "\n", missed
}
