// SPDX-License-Identifier: GPL-2.0
/*
 * Attempts to move the hugepages of a memfd made with MFD_MF_KEEP_UE_MAPPED, or to get the
 * memory that they are in.
 *
 * Whatever would move a kept hugepage is refused if it has lost pages, and otherwise moves
 * it to a hugepage that is kept as well.
 *
 * The fixtures:
 *   kept	soft offlining and migration of one hugepage
 *   moved	system calls that move memory between nodes, and soft offlining
 *   moving	errors at the same time
 *   block, large_block, crowded_block
 *		memory blocks that are to go offline
 *   contig	2 MiB hugepages in the way of 1 GiB hugepages
 *   demoted	1 GiB hugepages that are to be made small ones
 *   leaked	hugepages that stay out of use, in the way of blocks and larger ones
 */

#define _GNU_SOURCE
#include "mfr_harness.h"

/* The file under test has three hugepages, the one in the middle loses pages. */
#define NR_MOVED	3

struct nodes {
	int from, to;
};

/* No more than preferably: it may have no memory left for anything but hugepages. */
static int use_node(int node)
{
	unsigned long nodes = 1UL << node;

	if (node < 0)
		return syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0);
	return syscall(SYS_set_mempolicy, MPOL_PREFERRED, &nodes, sizeof(nodes) * 8);
}

/* Open the file with all its hugepages on @node, and @nr more of them on each. */
static void open_on_node(struct __test_metadata *_metadata, struct subject *s,
			 struct nodes *n, int node, long nr)
{
	if (!node_pool_grow(n->from, s->size, nr + s->nr_huge) ||
	    !node_pool_grow(n->to, s->size, nr + s->nr_huge))
		SKIP(return, "can't get %ld hugepages on each node", nr + s->nr_huge);
	s->before = pool_read(s->size);
	ASSERT_EQ(0, use_node(node));
	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	ASSERT_EQ(0, use_node(-1));
}

/* Is there a hugepage of the test's size in @nr pages from @pfn on? */
static bool has_hugepage(struct subject *s, unsigned long pfn, unsigned long nr)
{
	uint64_t *flags = malloc(nr * sizeof(*flags));
	bool found = false;
	unsigned long i;

	if (flags && read_kpageflags(pfn, nr, flags))
		for (i = 0; i < nr; i += s->nr_raw)
			found |= !!(flags[i] & KPF_HUGE);
	free(flags);
	return found;
}

/*
 * Map a hugepage of @fd that is somewhere in @nr pages from @pfn on. The pool gives
 * first what it got last, and gets back what else was taken.
 */
static char *map_in_range(struct __test_metadata *_metadata, struct subject *s, int fd,
			  int node, unsigned long pfn, unsigned long nr)
{
	long nr_before = node_pool_get(node, s->size, "nr_hugepages") -
			 node_pool_get(node, s->size, "free_hugepages");
	unsigned long i, frame, max = 0;
	char *map = NULL;

	do {
		max += 64;
	} while (node_pool_grow(node, s->size, max) && !has_hugepage(s, pfn, nr));
	ASSERT_TRUE(has_hugepage(s, pfn, nr));

	ASSERT_EQ(0, ftruncate(fd, max * s->size));
	ASSERT_EQ(0, use_node(node));
	for (i = 0; i < max; i++) {
		map = mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			   i * s->size);
		ASSERT_NE(MAP_FAILED, map);
		ASSERT_TRUE(try_write(map));
		frame = mapped_pfn(map);
		if (frame >= pfn && frame < pfn + nr)
			break;
		munmap(map, s->size);
	}
	ASSERT_NE(i, max);
	ASSERT_EQ(0, use_node(-1));
	if (i)
		ASSERT_EQ(0, fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				       0, i * s->size));
	node_pool_set(node, s->size, "nr_hugepages", nr_before + 1);
	return map;
}

/* Let the file have its hugepage there. */
static void open_in_range(struct __test_metadata *_metadata, struct subject *s, int node,
			  unsigned long pfn, unsigned long nr)
{
	s->fd = create_memfd(s->size, MFD_MF_KEEP_UE_MAPPED);
	ASSERT_LE(0, s->fd);
	s->map = map_in_range(_metadata, s, s->fd, node, pfn, nr);
	s->head[0] = mapped_pfn(s->map);
	fill(s);
	s->before = pool_read(s->size);
	s->before.free++;
}

/*
 * One kept hugepage that is to move
 */

FIXTURE_SUBJECT(kept);

FIXTURE_VARIANTS(kept, all_2m_and_1g)
FIXTURE_VARIANT_ADD_SIZES(kept)

FIXTURE_SETUP_KEPT(kept, variant->size, variant->injector, 1, MFD_ALLOW_SEALING);

TEST_F_TIMEOUT(kept, soft_offlining_leaves_it_where_it_is, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	long enabled;

	if (!read_long(SOFT_OFFLINE, &enabled) || !enabled)
		SKIP(return, "soft offlining is off: vm.enable_soft_offline is 0");
	if (!need_more_hugepages(s, 1))
		SKIP(return, "can't get 2 hugepages of %lu kB", s->size >> 10);

	lose(_metadata, s, nr);
	EXPECT_ERRNO(EBUSY, madvise(raw_page(s, neighbour(nr)), psize(),
				    MADV_SOFT_OFFLINE));
	expect_intact(_metadata, s);
	expect_corrupted(_metadata, s);
	expect_pool(_metadata, s, 0, 1);

	expect_end(_metadata, s);
}

#define NR_MET		8

/* A migration isolates it, is refused, and gives it back, over and over. */
TEST_F_TIMEOUT(kept, errors_find_a_hugepage_that_is_isolated, SLOW)
{
	struct subject *s = &self->s;
	unsigned long i, before, last, *refused;
	int node, other, status;
	pid_t pid;

	node = move_page(s->map, -1);
	ASSERT_LE(0, node);
	other = other_node(node);
	if (other < 0)
		SKIP(return, "needs two nodes with memory");
	/* Migration interrupts all CPUs, so nobody can be a victim. */
	if (s->injector == &by_mce)
		s->injector = &by_pfn;
	refused = alloc_shared(psize());
	ASSERT_NE(NULL, refused);

	lose(_metadata, s, 0);
	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		read_byte(raw_page(s, s->nr_raw - 1));
		/* The status shows a failed isolation; other failures come later. */
		do {
			status = move_page(raw_page(s, s->nr_raw - 1), other);
			__atomic_add_fetch(refused, 1, __ATOMIC_RELAXED);
		} while (status == -1 || status == -ENOMEM);
		_exit(1);
	}
	EXPECT_TRUE(wait_until(__atomic_load_n(refused, __ATOMIC_RELAXED), 10000));
	before = *refused;
	for (i = 1; i < s->nr_raw - 1 && i <= (s->injector->is_hw ? 50 : 500); i++) {
		/* The first errors each meet an attempt of their own. */
		last = __atomic_load_n(refused, __ATOMIC_RELAXED);
		if (i <= NR_MET)
			EXPECT_TRUE(wait_until(__atomic_load_n(refused, __ATOMIC_RELAXED) != last,
					       1000));
		lose(_metadata, s, i);
	}
	EXPECT_LE(before + NR_MET, *refused);
	kill_child(_metadata, pid);
	expect_intact(_metadata, s);

	expect_end(_metadata, s);
}

/*
 * System calls that move a hugepage to another node
 */

FIXTURE(moved)
{
	struct subject s;
	struct nodes n;
};

FIXTURE_VARIANTS(moved, simulated_and_mce_2m)
FIXTURE_VARIANT_ADD_SIZES(moved)

FIXTURE_SETUP(moved)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	if (!find_nodes(&self->n.from, &self->n.to))
		SKIP(return, "needs two nodes with memory");
	setup_subject(_metadata, &self->s, variant->size, variant->injector, NR_MOVED);
	if (!_metadata->exit_code)
		open_on_node(_metadata, &self->s, &self->n, self->n.from, 2);
}

FIXTURE_TEARDOWN_SUBJECT(moved);

/* Hugepage @huge was moved, with all its contents. Where it is now is under test. */
static void expect_was_moved(struct __test_metadata *_metadata, struct subject *s,
			     unsigned long huge)
{
	unsigned long pfn = mapped_pfn(s->map + huge * s->size);

	EXPECT_NE(-1UL, pfn);
	EXPECT_NE(s->head[huge], pfn);
	s->head[huge] = pfn;
	EXPECT_TRUE(is_mapped_huge(s, s->map, huge));
}

/* Lose pages wherever there are none yet, and let the file go: it has kept them. */
static void expect_all_kept(struct __test_metadata *_metadata, struct subject *s)
{
	unsigned long i;

	EXPECT_EQ(0, nr_changed_pages(s));
	for (i = 0; i < s->nr_huge; i++) {
		if (!s->lost[i * s->nr_raw + 5])
			lose(_metadata, s, i * s->nr_raw + 5);
		lose(_metadata, s, (i + 1) * s->nr_raw - 1);
		EXPECT_TRUE(is_mapped_huge(s, s->map, i));
	}
	EXPECT_EQ(0, nr_changed_pages(s));
	expect_pool(_metadata, s, 0, s->nr_huge);

	let_go(_metadata, s);
	wait_for_pool(_metadata, s, s->nr_huge, 0);
	expect_corrupted(_metadata, s);
	for (i = 0; i < s->nr_huge; i++)
		expect_all_come_back(_metadata, s, i);
}

static void lose_middle(struct __test_metadata *_metadata, struct subject *s)
{
	lose(_metadata, s, s->nr_raw);
	lose(_metadata, s, s->nr_raw + 5);
	lose(_metadata, s, s->nr_raw + s->nr_raw / 2);
}

/* All but the hugepage in the middle have gone to the other node. */
static void expect_rest_was_moved(struct __test_metadata *_metadata, struct subject *s,
				  struct nodes *n)
{
	unsigned long i;

	EXPECT_EQ(n->from, move_page(raw_page(s, s->nr_raw + 1), -1));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 1));
	for (i = 0; i < NR_MOVED; i += 2) {
		expect_was_moved(_metadata, s, i);
		EXPECT_EQ(n->to, move_page(s->map + i * s->size, -1));
	}
	expect_corrupted(_metadata, s);
	expect_pool(_metadata, s, 0, NR_MOVED);
	expect_all_kept(_metadata, s);
}

TEST_F_TIMEOUT(moved, move_pages_leaves_those_with_lost_pages, SLOW)
{
	struct subject *s = &self->s;
	int nodes[NR_MOVED], status[NR_MOVED];
	void *pages[NR_MOVED];
	int i;

	lose_middle(_metadata, s);
	for (i = 0; i < NR_MOVED; i++) {
		pages[i] = raw_page(s, i * s->nr_raw + 1);
		nodes[i] = self->n.to;
	}
	/* The return value is the number of pages not moved. */
	EXPECT_EQ(1, syscall(SYS_move_pages, 0, (unsigned long)NR_MOVED, pages, nodes,
			     status, MPOL_MF_MOVE));
	expect_rest_was_moved(_metadata, s, &self->n);
}

TEST_F_TIMEOUT(moved, mbind_leaves_those_with_lost_pages, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nodes = 1UL << self->n.to;
	/* MPOL_MF_MOVE may take the page table of contiguous PTEs for a shared one. */
	int move = s->size < SZ_2M ? MPOL_MF_MOVE_ALL : MPOL_MF_MOVE;

	lose_middle(_metadata, s);
	EXPECT_ERRNO(EIO, syscall(SYS_mbind, s->map, NR_MOVED * s->size, MPOL_BIND,
				  &nodes, sizeof(nodes) * 8, move | MPOL_MF_STRICT));
	EXPECT_EQ(0, syscall(SYS_mbind, s->map, NR_MOVED * s->size, MPOL_BIND, &nodes,
			     sizeof(nodes) * 8, move));
	expect_rest_was_moved(_metadata, s, &self->n);
}

TEST_F_TIMEOUT(moved, migrate_pages_leaves_those_with_lost_pages, SLOW)
{
	struct subject *s = &self->s;
	unsigned long from = 1UL << self->n.from;
	unsigned long to = 1UL << self->n.to;

	lose_middle(_metadata, s);
	/* The return value is the number of pages not moved. */
	EXPECT_LT(0, syscall(SYS_migrate_pages, 0, sizeof(from) * 8, &from, &to));
	expect_rest_was_moved(_metadata, s, &self->n);
}

TEST_F_TIMEOUT(moved, hugepage_is_kept_after_moving_twice, SLOW)
{
	struct subject *s = &self->s;
	int i, j;

	for (i = 0; i < 6; i++) {
		int nodes[NR_MOVED], status[NR_MOVED];
		void *pages[NR_MOVED];

		for (j = 0; j < NR_MOVED; j++) {
			pages[j] = s->map + j * s->size;
			nodes[j] = i % 2 ? self->n.from : self->n.to;
		}
		EXPECT_EQ(0, syscall(SYS_move_pages, 0, (unsigned long)NR_MOVED, pages,
				     nodes, status, MPOL_MF_MOVE));
		for (j = 0; j < NR_MOVED; j++) {
			EXPECT_EQ(nodes[j], move_page(pages[j], -1));
			expect_was_moved(_metadata, s, j);
		}
		expect_pool(_metadata, s, 0, NR_MOVED);
	}
	expect_all_kept(_metadata, s);
}

/* Moved by one process, kept in all. */
TEST_F_TIMEOUT(moved, hugepage_is_kept_in_all_processes, SLOW)
{
	struct subject *s = &self->s;
	int nodes[NR_MOVED], status[NR_MOVED];
	void *pages[NR_MOVED];
	struct witness w;
	int i;

	start_witness(_metadata, s, &w, PR_MCE_KILL_EARLY);
	for (i = 0; i < NR_MOVED; i++) {
		pages[i] = s->map + i * s->size;
		nodes[i] = self->n.to;
	}
	EXPECT_EQ(0, syscall(SYS_move_pages, 0, (unsigned long)NR_MOVED, pages, nodes,
			     status, MPOL_MF_MOVE_ALL));
	for (i = 0; i < NR_MOVED; i++) {
		expect_was_moved(_metadata, s, i);
		lose(_metadata, s, i * s->nr_raw + 3);
		expect_witnessed(_metadata, &w, i * s->nr_raw + 3);
	}
	stop_witness(&w);
	expect_all_kept(_metadata, s);
}

TEST_F_TIMEOUT(moved, soft_offlined_hugepage_is_kept, SLOW)
{
	struct subject *s = &self->s;
	unsigned long pfn = raw_pfn(s, 7);

	if (!write_long(SOFT_OFFLINE, 1))
		SKIP(return, "needs vm.enable_soft_offline");
	lose_middle(_metadata, s);

	/* The hugepage it was in is dissolved for the sake of one page. */
	ASSERT_TRUE(note_poison(pfn, pfn));
	EXPECT_EQ(0, madvise(raw_page(s, 7), psize(), MADV_SOFT_OFFLINE));
	expect_was_moved(_metadata, s, 0);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 1));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 2));
	EXPECT_TRUE(is_poisoned(pfn));
	s->corrupted += psize() >> 10;
	s->before.nr--;
	s->before.free--;
	expect_corrupted(_metadata, s);
	expect_pool(_metadata, s, 0, NR_MOVED);
	expect_all_kept(_metadata, s);

	if (undo->mce_seen)
		return;
	EXPECT_EQ(0, unpoison(pfn));
	s->corrupted -= psize() >> 10;
	expect_corrupted(_metadata, s);
}

TEST_F_TIMEOUT(moved, disabled_soft_offlining_fails, SLOW)
{
	struct subject *s = &self->s;
	unsigned long i;

	if (!write_long(SOFT_OFFLINE, 0))
		SKIP(return, "needs vm.enable_soft_offline");
	lose_middle(_metadata, s);
	for (i = 0; i < NR_MOVED; i++) {
		EXPECT_ERRNO(EOPNOTSUPP, madvise(raw_page(s, i * s->nr_raw + 7), psize(),
						 MADV_SOFT_OFFLINE));
		EXPECT_TRUE(is_mapped_huge(s, s->map, i));
	}
	expect_corrupted(_metadata, s);
	expect_all_kept(_metadata, s);
}

static int soft_offline_pfn(unsigned long pfn)
{
	return write_pfn(SOFT_OFFLINE_PAGE, pfn * psize());
}

TEST_F_TIMEOUT(moved, pinned_page_is_not_soft_offlined, SLOW)
{
	struct subject *s = &self->s;
	int fd = open_pin();

	if (fd < 0)
		SKIP(return, "needs CONFIG_GUP_TEST");
	if (!write_long(SOFT_OFFLINE, 1) || access(SOFT_OFFLINE_PAGE, W_OK))
		SKIP(return, "needs vm.enable_soft_offline");
	ASSERT_EQ(0, pin_range(fd, raw_page(s, s->nr_raw + 9), s->size, 0));
	lose_middle(_metadata, s);
	let_go(_metadata, s);
	expect_pool(_metadata, s, 0, 2);

	/* The first page has lost pages beside it, the second one none. */
	EXPECT_EQ(-EBUSY, soft_offline_pfn(raw_pfn(s, s->nr_raw + 12)));
	EXPECT_EQ(-EBUSY, soft_offline_pfn(raw_pfn(s, 2 * s->nr_raw + 12)));
	expect_corrupted(_metadata, s);
	expect_pool(_metadata, s, 0, 2);
	expect_whole(_metadata, s, 1);
	expect_whole(_metadata, s, 2);

	EXPECT_EQ(0, unpin_range(fd));
	wait_for_pool(_metadata, s, 1, 0);
	expect_corrupted(_metadata, s);
	expect_all_come_back(_metadata, s, 1);
}

/*
 * Errors while a hugepage moves: they come before or afterwards. Those told by a
 * frame number would find the frame free, or in use for something else.
 */

FIXTURE(moving)
{
	struct subject s;
	struct nodes n;
};

FIXTURE_SETUP(moving)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	if (!find_nodes(&self->n.from, &self->n.to))
		SKIP(return, "needs two nodes with memory");
	setup_subject(_metadata, &self->s, SZ_2M, &by_madvise, 1);
}

FIXTURE_TEARDOWN_SUBJECT(moving);

/* A process that moves the hugepage to and fro. */
static pid_t start_moving(struct __test_metadata *_metadata, struct subject *s,
			  struct nodes *n, unsigned long *moved)
{
	pid_t pid = fork_helper();
	unsigned long i;

	ASSERT_LE(0, pid);
	for (i = 0; !pid; i++) {
		int node = i % 2 ? n->from : n->to;

		try_read(raw_page(s, 1));
		if (move_page(raw_page(s, 1), node) == node)
			__atomic_add_fetch(moved, 1, __ATOMIC_RELAXED);
	}
	return pid;
}

TEST_F_TIMEOUT(moving, does_not_suppress_signals, SLOW)
{
	unsigned long *moved = alloc_shared(psize());
	struct subject *s = &self->s;
	pid_t pid;
	int round;

	ASSERT_NE(NULL, moved);
	for (round = 0; round < 40; round++) {
		unsigned int i;

		open_on_node(_metadata, s, &self->n, self->n.from, 1);
		if (_metadata->exit_code)
			return;
		*moved = 0;
		pid = start_moving(_metadata, s, &self->n, moved);
		EXPECT_TRUE(wait_until(__atomic_load_n(moved, __ATOMIC_RELAXED) > 4, 500));

		for (i = 0; i < 4; i++) {
			sigbus.nr = 0;
			EXPECT_EQ(0, inject(s, sample(s, i)));
			expect_sigbus(_metadata, BUS_MCEERR_AR, raw_page(s, sample(s, i)),
				      pshift());
			/* From the first one on it stays where it is. */
			s->head[0] = mapped_pfn(raw_page(s, 2)) - 2;
			note_lost(_metadata, s, sample(s, i));
			expect_corrupted(_metadata, s);
		}
		expect_intact(_metadata, s);
		kill_child(_metadata, pid);
		expect_end(_metadata, s);
		undo->nr_poison = 0;
		if (_metadata->exit_code)
			break;
	}
}

/*
 * Memory blocks that go offline
 */

FIXTURE(block)
{
	struct subject s;
	struct nodes n;
	long block[2];		/* with the first and the last raw page */
};

static const struct named_variant block_variants[] = {
	{ "madvise_2m", { SZ_2M, &by_madvise } },
	{ "corrupt_pfn_2m", { SZ_2M, &by_pfn } },
	{ "mce_2m", { SZ_2M, &by_mce } },
	{ "madvise_1g", { SZ_1G, &by_madvise } },
};

FIXTURE_VARIANTS(block, block_variants)

/*
 * A block of @node from which the kernel keeps nothing that can't be moved, or -1.  It
 * goes online again as @state says.
 */
static long movable_block(int node, const char *state)
{
	long block, last = block_of(sysconf(_SC_PHYS_PAGES)) * 4;
	char path[PATH_MAX];
	int tries = 0;

	for (block = 0; block < last && tries < 8; block++) {
		snprintf(path, sizeof(path), "/sys/devices/system/node/node%d/memory%ld",
			 node, block);
		if (access(path, F_OK) || !block_is_online(block))
			continue;
		tries++;
		if (!change_block(block, "offline") && !change_block(block, state))
			return block;
	}
	return -1;
}

static void setup_block(struct __test_metadata *_metadata, struct subject *s,
			struct nodes *n, long *block, unsigned long size,
			const struct injector *injector, const char *state)
{
	block[0] = -1;
	block[1] = -1;
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	if (!find_nodes(&n->from, &n->to))
		SKIP(return, "needs two nodes with memory");
	if (access(MEMORY_BLOCKS "/block_size_bytes", R_OK))
		SKIP(return, "needs CONFIG_MEMORY_HOTPLUG");
	/* As on arm64, where what was there at boot stays online. */
	if (size != SZ_2M && movable_block(n->to, state) < 0)
		SKIP(return, "no memory block can go offline");
	setup_subject(_metadata, s, size, injector, 1);
	if (_metadata->exit_code)
		return;
	if (size == SZ_2M) {
		block[0] = movable_block(n->to, state);
		if (block[0] < 0)
			SKIP(return, "no memory block can go offline");
		/* In the second half, to leave room for others in front of it. */
		open_in_range(_metadata, s, n->to,
			      (2 * block[0] + 1) * pages_in_block() / 2,
			      pages_in_block() / 2);
	} else {
		/* A 1 GiB hugepage fills its blocks: nothing else is there. */
		open_on_node(_metadata, s, n, n->to, 0);
		if (_metadata->exit_code)
			return;
		block[0] = block_of(s->head[0]);
	}
	/* Another one, if the hugepage is large. */
	block[1] = block_of(s->head[0] + s->nr_raw - 1);
	/* The target node must have a free hugepage. */
	if (!node_pool_grow(n->from, s->size, 1))
		SKIP(return, "can't get hugepages on each node");
	s->before = pool_read(s->size);
	s->before.free++;
}

static void teardown_block(struct __test_metadata *_metadata, struct subject *s,
			   long *block)
{
	unsigned int i;

	for (i = 0; i < 2; i++)
		if (block[i] >= 0 && !block_is_online(block[i]))
			change_block(block[i], "online");
	teardown_subject(_metadata, s);
}

FIXTURE_SETUP(block)
{
	setup_block(_metadata, &self->s, &self->n, self->block, variant->size,
		    variant->injector, "online");
}

FIXTURE_TEARDOWN_PARENT(block)
{
	teardown_block(_metadata, &self->s, self->block);
}

/* The kept hugepage and its block are still there. */
static void expect_stays_online(struct __test_metadata *_metadata, struct subject *s,
				long block)
{
	struct pool before = pool_read(s->size), after;

	EXPECT_EQ(-EBUSY, change_block(block, "offline"));
	EXPECT_TRUE(block_is_online(block));
	expect_corrupted(_metadata, s);
	expect_whole(_metadata, s, 0);
	if (s->map && is_mapped(s->map))
		EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	after = pool_read(s->size);
	EXPECT_EQ(before.nr, after.nr);
	EXPECT_EQ(before.free, after.free);
}

TEST_F_TIMEOUT(block, with_lost_pages_in_use_stays_online, 2 * SLOW)
{
	unsigned long pages = SZ_2M / psize();
	struct subject *s = &self->s;
	int fd = open_pin();

	if (fd < 0)
		SKIP(return, "needs CONFIG_GUP_TEST");
	lose(_metadata, s, 0);
	lose(_metadata, s, pages / 2);

	expect_stays_online(_metadata, s, self->block[0]);
	expect_stays_online(_metadata, s, self->block[1]);
	expect_intact(_metadata, s);
	/* The hugepage is still kept. */
	lose(_metadata, s, 3);

	/* The same for a hugepage that is only in the file, and then only pinned. */
	ASSERT_EQ(0, pin_range(fd, raw_page(s, 5), psize(), 0));
	unmap_file(s);
	expect_stays_online(_metadata, s, self->block[0]);
	expect_stays_online(_metadata, s, self->block[1]);
	let_go(_metadata, s);
	expect_stays_online(_metadata, s, self->block[0]);
	expect_stays_online(_metadata, s, self->block[1]);

	EXPECT_EQ(0, unpin_range(fd));
	expect_released(_metadata, s);
	/* Nothing but the hugepage was in the way. */
	EXPECT_EQ(0, change_block(self->block[1], "offline"));
	EXPECT_FALSE(block_is_online(self->block[1]));
	/* A block with pages that are lost for good can't go online again. */
	EXPECT_EQ(undo->mce_seen ? -EHWPOISON : 0,
		  change_block(self->block[1], "online"));
	expect_corrupted(_metadata, s);
}

TEST_F_TIMEOUT(block, moves_healthy_hugepages_and_goes_offline, 2 * SLOW)
{
	struct subject *s = &self->s;

	ASSERT_EQ(0, change_block(self->block[0], "offline"));
	EXPECT_FALSE(block_is_online(self->block[0]));
	expect_was_moved(_metadata, s, 0);
	EXPECT_NE(self->block[0], block_of(s->head[0]));
	EXPECT_EQ(0, change_block(self->block[0], "online"));
	EXPECT_TRUE(block_is_online(self->block[0]));

	/* The free hugepages of the block have left the pool. */
	s->before = pool_read(s->size);
	s->before.free++;
	expect_all_kept(_metadata, s);
}

/* Blocks of 1 GiB hugepages, of which one has lost pages and others have not. */
FIXTURE(large_block)
{
	struct subject s;
	struct nodes n;
	long block[2];
};

FIXTURE_VARIANTS_HVO(large_block);

FIXTURE_SETUP(large_block)
{
	if (!write_long(HVO, variant->hvo) && variant->hvo)
		SKIP(return, "needs CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP");
	setup_block(_metadata, &self->s, &self->n, self->block, SZ_1G, &by_madvise,
		    "online");
	if (self->block[0] >= 0 && self->block[0] == self->block[1])
		SKIP(return, "memory blocks are as large as hugepages");
}

FIXTURE_TEARDOWN_PARENT(large_block)
{
	teardown_block(_metadata, &self->s, self->block);
}

/* Long enough to begin to go offline, and shorter than real-time tasks may run. */
#define HELD_NS		500000000ULL

/* A worker frees it, which takes longer if it has to restore struct pages first. */
TEST_F_TIMEOUT(large_block, goes_offline_during_release, 2 * SLOW)
{
	struct subject *s = &self->s;
	struct helper writer;
	char path[64], *page;
	uint64_t start;

	/* If no other is free it must not be taken for one that is reserved. */
	node_pool_set(self->n.from, s->size, "nr_hugepages", 0);
	s->before = pool_read(s->size);
	ASSERT_EQ(0, s->before.free++);

	lose(_metadata, s, 0);
	lose(_metadata, s, 7);
	page = mmap(NULL, psize(), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, page);
	/* The worker that frees the hugepage waits for this CPU, the writer has another. */
	ASSERT_TRUE(hold_cpu(true));
	snprintf(path, sizeof(path), MEMORY_BLOCKS "/memory%ld/online", self->block[1]);
	start_writer(_metadata, &writer, 1, path, 0);
	let_go(_metadata, s);
	ASSERT_TRUE(read_kpageflags(s->head[0], 1, s->flags));
	ASSERT_TRUE(s->flags[0] & KPF_HUGE);
	/* The kernel has nothing else to do here that the writer would wait for. */
	ASSERT_EQ(0, madvise(page, psize(), MADV_COLD));
	ASSERT_TRUE(tell(&writer));
	for (start = now_ns(); now_ns() - start < HELD_NS;)
		;
	/* Going offline waits for the worker. */
	EXPECT_EQ(0, waitpid(writer.pid, NULL, WNOHANG));
	ASSERT_TRUE(hold_cpu(false));
	wait_for_child(_metadata, writer.pid);
	EXPECT_FALSE(block_is_online(self->block[1]));
	EXPECT_EQ(0, change_block(self->block[1], "online"));
	EXPECT_TRUE(block_is_online(self->block[1]));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(large_block, without_lost_pages_goes_offline, 2 * SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 0);
	lose(_metadata, s, 7);
	let_go(_metadata, s);
	wait_for_release(s, 1);
	expect_pool(_metadata, s, 1, 0);
	expect_out_of_use(_metadata, s, 0);

	EXPECT_EQ(0, change_block(self->block[1], "offline"));
	EXPECT_FALSE(block_is_online(self->block[1]));
	EXPECT_EQ(0, change_block(self->block[1], "online"));
	EXPECT_TRUE(block_is_online(self->block[1]));
	expect_corrupted(_metadata, s);
	expect_all_come_back(_metadata, s, 0);
}

/* A block with something in front of the kept hugepage. */
FIXTURE(crowded_block)
{
	struct subject s;
	struct nodes n;
	long block[2];
};

FIXTURE_VARIANTS(crowded_block, simulated_and_mce_2m)

FIXTURE_SETUP(crowded_block)
{
	setup_block(_metadata, &self->s, &self->n, self->block, SZ_2M, variant->injector,
		    "online");
}

FIXTURE_TEARDOWN_PARENT(crowded_block)
{
	teardown_block(_metadata, &self->s, self->block);
}

TEST_F_TIMEOUT(crowded_block, moves_all_but_lost_pages, 2 * SLOW)
{
	unsigned long first = self->block[0] * pages_in_block();
	struct subject *s = &self->s;
	char *map;
	int fd;

	fd = create_memfd(s->size, 0);
	ASSERT_LE(0, fd);
	map = map_in_range(_metadata, s, fd, self->n.to, first, s->head[0] - first);
	lose(_metadata, s, 0);
	lose(_metadata, s, 3);
	s->before = pool_read(s->size);
	s->before.free += 2;

	EXPECT_EQ(-EBUSY, change_block(self->block[0], "offline"));
	EXPECT_TRUE(block_is_online(self->block[0]));
	EXPECT_NE(self->block[0], block_of(mapped_pfn(map)));
	expect_intact(_metadata, s);
	lose(_metadata, s, 5);
	expect_pool(_metadata, s, 0, 2);

	munmap(map, s->size);
	close(fd);
	expect_end(_metadata, s);
}

/*
 * Hugepages of another size, made of the memory of a kept one
 */

FIXTURE(contig)
{
	struct subject s;
	struct nodes n;
};

FIXTURE_VARIANTS(contig, simulated_2m)

/* Make 1 GiB hugepages of all the memory that will do. Returns how many there are. */
static long take_all_large(struct nodes *n)
{
	/* More than that would only be tried in vain, which takes its time. */
	const long nr = 8;

	node_pool_grow(n->to, SZ_1G, nr);
	return node_pool_get(n->to, SZ_1G, "nr_hugepages");
}

/* The first page of what can become a 1 GiB hugepage, or 0. */
static unsigned long movable_range(struct nodes *n)
{
	long nr = node_pool_get(n->to, SZ_1G, "nr_hugepages");
	unsigned long pfn, found = 0, step = SZ_1G / psize();
	uint64_t flags;

	take_all_large(n);
	for (pfn = step; read_kpageflags(pfn, 1, &flags); pfn += step)
		if (flags & KPF_HUGE)
			found = pfn;
	node_pool_set(n->to, SZ_1G, "nr_hugepages", nr);
	return found;
}

FIXTURE_SETUP(contig)
{
	unsigned long pfn;

	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	if (!find_nodes(&self->n.from, &self->n.to))
		SKIP(return, "needs two nodes with memory");
	if (!pool_exists(SZ_1G))
		SKIP(return, "no hugepages of 1 GiB here");
	setup_subject(_metadata, &self->s, SZ_2M, variant->injector, 1);
	if (_metadata->exit_code)
		return;
	pfn = movable_range(&self->n);
	if (!pfn)
		SKIP(return, "can't get a hugepage of 1 GiB");
	open_in_range(_metadata, &self->s, self->n.to, pfn, SZ_1G / psize());
}

FIXTURE_TEARDOWN_SUBJECT(contig);

/* Check whether the kernel moves a hugepage without the flag out of the way. */
static bool plain_hugepage_makes_room(struct __test_metadata *_metadata,
				      struct subject *s, struct nodes *n)
{
	const unsigned long nr = SZ_1G / psize();
	unsigned long pfn = s->head[0];
	int fd = create_memfd(SZ_2M, 0);
	bool moved;
	char *map;

	ASSERT_LE(0, fd);
	map = map_in_range(_metadata, s, fd, n->to, pfn / nr * nr, nr);
	pfn = mapped_pfn(map);
	take_all_large(n);
	moved = mapped_pfn(map) != pfn;
	munmap(map, SZ_2M);
	close(fd);
	return moved;
}

TEST_F_TIMEOUT(contig, large_hugepage_replaces_a_healthy_one, SLOW)
{
	struct subject *s = &self->s;
	bool moved;

	ASSERT_LT(0, take_all_large(&self->n));
	moved = mapped_pfn(s->map) != s->head[0];
	if (!moved) {
		/* A kept hugepage that stays would be in the way of the other one, too. */
		let_go(_metadata, s);
		if (!plain_hugepage_makes_room(_metadata, s, &self->n))
			SKIP_REST(return,
				  "this kernel lacks moving hugepages away for larger ones");
	}
	ASSERT_TRUE(moved);
	expect_was_moved(_metadata, s, 0);
	s->before = pool_read(s->size);
	s->before.free++;
	expect_all_kept(_metadata, s);
}

TEST_F_TIMEOUT(contig, large_hugepage_avoids_lost_pages, SLOW)
{
	struct subject *s = &self->s;
	long nr;

	lose(_metadata, s, s->nr_raw / 2);
	nr = take_all_large(&self->n);
	expect_intact(_metadata, s);
	lose(_metadata, s, 0);

	s->before = pool_read(s->size);
	s->before.free++;
	let_go(_metadata, s);
	wait_for_release(s, 1);
	expect_pool(_metadata, s, 1, 0);
	/* The lost pages are in the way as well, but nothing else is. */
	EXPECT_EQ(nr, take_all_large(&self->n));
	expect_all_come_back(_metadata, s, 0);
	EXPECT_EQ(nr + 1, take_all_large(&self->n));
}

FIXTURE_SUBJECT(demoted);

FIXTURE_SETUP_KEPT(demoted, SZ_1G, &by_madvise, 1, 0);

TEST_F_TIMEOUT(demoted, are_only_those_that_are_free, SLOW)
{
	struct subject *s = &self->s;
	long small;

	if (!need_more_hugepages(s, 1))
		SKIP(return, "can't get 2 hugepages of 1 GiB");
	if (!demote_to(s->size, SZ_2M))
		SKIP(return, "no small hugepages to demote to");
	small = pool_get(SZ_2M, "nr_hugepages");
	lose_samples(_metadata, s);

	pool_set(s->size, "demote", s->before.free - s->before.resv);
	EXPECT_EQ(small + (s->before.free - s->before.resv - 1) * (SZ_1G / SZ_2M),
		  pool_get(SZ_2M, "nr_hugepages"));
	expect_intact(_metadata, s);
	lose(_metadata, s, s->nr_raw / 3);

	s->before = pool_read(s->size);
	s->before.free++;
	expect_end(_metadata, s);
}

/*
 * Hugepages that stay out of use for ever, since there was no memory to record the first
 * error.  These tests come last: they leave less memory for others.
 */

FIXTURE(leaked)
{
	struct subject s;
	struct nodes n;
	long block[2];
};

FIXTURE_VARIANTS_HVO(leaked);

FIXTURE_SETUP(leaked)
{
	self->block[0] = -1;
	self->block[1] = -1;
	self->s.corrupted = hardware_corrupted();
	/* Stock hangs here: the series with the flag fixes it. */
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	if (!can_fail_allocations())
		SKIP(return, "needs CONFIG_FAILSLAB and CONFIG_FAIL_PAGE_ALLOC");
	if (!write_long(HVO, variant->hvo) && variant->hvo)
		SKIP(return, "needs CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP");
}

FIXTURE_TEARDOWN_PARENT(leaked)
{
	teardown_block(_metadata, &self->s, self->block);
}

/* Let the hugepage of the file be free, and lose a page of it. */
static void leak(struct __test_metadata *_metadata, struct subject *s)
{
	let_go(_metadata, s);
	expect_pool(_metadata, s, 0, 0);
	note_lost(_metadata, s, 3);
	/* memory_failure() must report that it couldn't handle the error. */
	EXPECT_EQ(-EBUSY, inject_unrecorded(raw_pfn(s, 3)));
	ASSERT_TRUE(has_failed());
	expect_corrupted(_metadata, s);
	expect_pool(_metadata, s, 1, 0);
	give_up(s, 0);

	ASSERT_TRUE(read_kpageflags(s->head[0], 1, s->flags));
	ASSERT_EQ(KPF_HUGE | KPF_HWPOISON, s->flags[0] & (KPF_HUGE | KPF_HWPOISON));
}

/* Signals don't end a process that waits in vain, so don't wait for it. */
static void wait_a_minute(struct __test_metadata *_metadata, pid_t pid)
{
	unsigned int tries;
	int status = -1;

	for (tries = 0; tries < 3000 && !waitpid(pid, &status, WNOHANG); tries++)
		usleep(20000);
	ASSERT_NE(3000, tries);
	ASSERT_TRUE(WIFEXITED(status));
	ASSERT_EQ(KSFT_PASS, WEXITSTATUS(status));
}

TEST_F_TIMEOUT(leaked, offlining_its_block_fails_in_time, SLOW)
{
	struct subject *s = &self->s;
	pid_t pid;

	/* Online as movable: no other unmovable memory comes into the block. */
	setup_block(_metadata, s, &self->n, self->block, SZ_2M, &by_pfn,
		    "online_movable");
	if (_metadata->exit_code)
		return;
	leak(_metadata, s);

	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(change_block(self->block[0], "offline") == -EBUSY ?
		      KSFT_PASS : KSFT_FAIL);
	wait_a_minute(_metadata, pid);
	EXPECT_TRUE(block_is_online(self->block[0]));
}

TEST_F_TIMEOUT(leaked, large_hugepage_is_made_elsewhere, SLOW)
{
	struct subject *s = &self->s;
	unsigned long pfn;
	pid_t pid;
	long nr;

	if (!find_nodes(&self->n.from, &self->n.to))
		SKIP(return, "needs two nodes with memory");
	if (!pool_exists(SZ_1G))
		SKIP(return, "no hugepages of 1 GiB here");
	setup_subject(_metadata, s, SZ_2M, &by_pfn, 1);
	if (_metadata->exit_code)
		return;
	nr = take_all_large(&self->n);
	node_pool_set(self->n.to, SZ_1G, "nr_hugepages", 0);
	pfn = movable_range(&self->n);
	if (!pfn)
		SKIP(return, "can't get a hugepage of 1 GiB");
	open_in_range(_metadata, s, self->n.to, pfn, SZ_1G / psize());
	leak(_metadata, s);

	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		take_all_large(&self->n);
		_exit(KSFT_PASS);
	}
	wait_a_minute(_metadata, pid);
	/* Nothing but that one was in the way. */
	EXPECT_EQ(nr - 1, node_pool_get(self->n.to, SZ_1G, "nr_hugepages"));
}

TEST_HARNESS_MAIN
