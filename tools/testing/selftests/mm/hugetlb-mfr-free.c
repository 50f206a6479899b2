// SPDX-License-Identifier: GPL-2.0
/*
 * Memory errors in hugepages that are free, or on their way out of their pool, and
 * unpoisoning.
 *
 * The fixtures:
 *   pool_shrinks	errors in free hugepages that are reserved
 *   shrunk	hugepages that leave their pool together
 *   filtered	errors in free hugepages that the filter turns away
 *   stuck	a hugepage that could not be unmapped
 *   deferred	hugepages that have left the file and are not free yet
 *   shrunk_early, demoted_early	free hugepages that leave their pool while they are
 *		unpoisoned, or an error is handled
 *   demoted, demoted_free	hugepages of 1 GiB that are to become smaller ones
 *   demoted_late	hugepages of 1 GiB that wait to become smaller ones
 *   cycle	corrupt, release, unpoison, and all over again
 *   page_types	the same by page-types of tools/mm, which PATH must lead to
 *
 * Tests that hold CPUs need mce-at, which HUGETLB_MFR_AT names, like hugetlb-mfr-kernel.
 */

#define _GNU_SOURCE
#include "mfr_harness.h"
#include <pthread.h>

#define HARD_OFFLINE_PAGE	"/sys/devices/system/memory/hard_offline_page"

/* The raw page of a hugepage whose struct page leads to the record of its lost pages */
#define RECORD		3

/*
 * Errors in free hugepages.  They have nothing to do with the flag, but it is the
 * same way on which they leave the pool.
 */

FIXTURE_SUBJECT(pool_shrinks);

FIXTURE_VARIANTS_HVO(pool_shrinks);

FIXTURE_SETUP(pool_shrinks)
{
	/* Stock has this bug: the series with the flag fixes it. */
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, SZ_2M, &by_pfn, 1);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, variant->hvo);
}

TEST_F_TIMEOUT(pool_shrinks, lost_pages_stay_out_of_use, SLOW)
{
	struct subject *s = &self->s;

	poison_free_hugepage(_metadata, s, 0, NR_SAMPLES);
	pool_set(s->size, "nr_hugepages", s->before.nr - 1);
	expect_change(_metadata, s, -1, -1, 0, 0);
	expect_corrupted(_metadata, s);
	expect_all_come_back(_metadata, s, 0);
}

TEST_F_TIMEOUT(pool_shrinks, soft_offlining_does_not_count_twice, SLOW)
{
	struct subject *s = &self->s;

	if (access(SOFT_OFFLINE_PAGE, W_OK) || !write_long(SOFT_OFFLINE, 1))
		SKIP(return, "needs vm.enable_soft_offline");
	poison_free_hugepage(_metadata, s, 0, NR_SAMPLES);
	EXPECT_EQ(0, write_pfn(SOFT_OFFLINE_PAGE, raw_pfn(s, sample(s, 1)) * psize()));
	expect_change(_metadata, s, -1, -1, 0, 0);
	expect_corrupted(_metadata, s);
	expect_all_come_back(_metadata, s, 0);
}

TEST_F_TIMEOUT(pool_shrinks, unknown_loss_keeps_it_out_of_use, SLOW)
{
	struct subject *s = &self->s;

	if (!can_fail_allocations())
		SKIP(return, "needs CONFIG_FAILSLAB and CONFIG_FAIL_PAGE_ALLOC");
	poison_free_hugepage(_metadata, s, 0, 1);
	note_lost(_metadata, s, 5);
	inject_unrecorded(raw_pfn(s, 5));
	ASSERT_TRUE(has_failed());
	expect_corrupted(_metadata, s);

	pool_set(s->size, "nr_hugepages", s->before.nr - 1);
	expect_change(_metadata, s, -1, -1, 0, 0);
	expect_out_for_good(_metadata, s, 0, NOT_ALL_KNOWN);
	expect_change(_metadata, s, -1, -1, 0, 0);
}

/*
 * A free hugepage that leaves its pool together with others, and is the last one to be
 * freed.  Those that are optimized need their struct pages back before any is freed.
 */

FIXTURE_SUBJECT(shrunk);

FIXTURE_VARIANT(shrunk)
{
	bool hvo;
	bool others_hvo;
};

FIXTURE_VARIANT_ADD(shrunk, beside_optimized) { .others_hvo = true };
FIXTURE_VARIANT_ADD(shrunk, optimized) { .hvo = true, .others_hvo = true };
FIXTURE_VARIANT_ADD(shrunk, not_optimized) { };

FIXTURE_SETUP(shrunk)
{
	setup_subject(_metadata, &self->s, SZ_2M, &by_pfn, 1);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, variant->hvo);
}

/*
 * Empty the pool of all hugepages, and lose a page when the last of them has left it.
 * The task that frees them runs only while this thread sleeps.
 */
static void lose_while_shrinking(struct __test_metadata *_metadata, struct subject *s,
				 const FIXTURE_VARIANT(shrunk) * variant, long nr,
				 unsigned long lost, int err)
{
	struct helper shrinker;
	long kb;

	if (variant->others_hvo)
		grow_optimized(_metadata, s->size, s->before.nr, 1024);
	else
		ASSERT_TRUE(pool_set(s->size, "nr_hugepages", s->before.nr + 1024));
	if (_metadata->exit_code)
		return;
	ASSERT_TRUE(hold_cpu(true));
	start_writer(_metadata, &shrinker, 0, pool_path(s->size, "nr_hugepages"), nr);
	let_write(_metadata, &shrinker, s->size, nr);
	/* All have their struct pages back when the first ones are free. */
	kb = meminfo_kb("MemFree") + (16 << 10);
	if (variant->hvo)
		wait_until(meminfo_kb("MemFree") > kb, 50);

	note_lost(_metadata, s, lost);
	EXPECT_EQ(err, inject(s, lost));
	/* The writer must still be running: otherwise the error came too late. */
	EXPECT_EQ(0, waitpid(shrinker.pid, NULL, WNOHANG));
	ASSERT_TRUE(hold_cpu(false));
	wait_for_child(_metadata, shrinker.pid);
}

TEST_F_TIMEOUT(shrunk, first_page_can_be_lost_after_another, SLOW)
{
	struct subject *s = &self->s;

	poison_free_hugepage(_metadata, s, 1, 2);
	lose_while_shrinking(_metadata, s, variant, s->before.nr - 1, 0, -EHWPOISON);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(shrunk, healthy_one_loses_a_page_before_its_end, SLOW)
{
	struct subject *s = &self->s;

	find_free_hugepage(_metadata, s);
	/* The order in which they are freed is the kernel's affair. */
	ASSERT_EQ(1, s->before.nr);
	lose_while_shrinking(_metadata, s, variant, 0, sample(s, 2), -EBUSY);
	expect_released(_metadata, s);
}

/*
 * Errors in free hugepages that the filter turns away.  corrupt-pfn asks it before it
 * tells of the error, and so would try nothing.
 */

FIXTURE_SUBJECT(filtered);

FIXTURE_VARIANTS_HVO(filtered);

FIXTURE_SETUP(filtered)
{
	setup_subject(_metadata, &self->s, SZ_2M, &by_pfn, 1);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, variant->hvo);
}

TEST_F_TIMEOUT(filtered, free_hugepage_can_be_used_again, SLOW)
{
	struct subject *s = &self->s;
	unsigned long i, nr_poisoned = 0, nr_unusable = 0;

	find_free_hugepage(_metadata, s);
	ASSERT_TRUE(note_poison(raw_pfn(s, s->nr_raw - 1), s->head[0]));
	ASSERT_TRUE(filter_all_errors());
	EXPECT_EQ(0, write_pfn(HARD_OFFLINE_PAGE, raw_pfn(s, s->nr_raw - 1) * psize()));
	restore_filter();
	expect_corrupted(_metadata, s);
	expect_change(_metadata, s, 0, 0, 0, 0);

	/* This hugepage is the next one that is allocated. */
	s->map = map_others(s, 1);
	ASSERT_NE(NULL, s->map);
	for (i = 0; i < s->nr_raw; i++)
		nr_unusable += !try_write(raw_page(s, i));
	EXPECT_EQ(0, nr_unusable);
	EXPECT_EQ(s->head[0], mapped_pfn(s->map));
	unmap_file(s);

	leave_available(_metadata, s, 0);
	expect_rest_is_free(_metadata, s, 0);
	ASSERT_TRUE(read_kpageflags(s->head[0], s->nr_raw, s->flags));
	for (i = 0; i < s->nr_raw; i++)
		nr_poisoned += !!(s->flags[i] & KPF_HWPOISON);
	EXPECT_EQ(0, nr_poisoned);
}

/*
 * A hugepage that memory_failure() can't unmap, as a fault in the same mapping is being
 * handled: clearing another hugepage takes long.
 */

FIXTURE_SUBJECT(stuck);

FIXTURE_SETUP(stuck)
{
	setup_subject(_metadata, &self->s, SZ_1G, &by_pfn, 2);
}

static void *touch(void *addr)
{
	__atomic_store_n((char *)addr, 'x', __ATOMIC_RELAXED);
	return NULL;
}

TEST_F_TIMEOUT(stuck, is_unpoisoned_once_when_it_is_unmapped, SLOW)
{
	struct subject *s = &self->s;
	unsigned int i, nr_unpoisoned = 0;
	pthread_t toucher;
	pid_t pid[2];
	int status;

	s->fd = create_memfd(s->size, 0);
	ASSERT_LE(0, s->fd);
	ASSERT_EQ(0, ftruncate(s->fd, 2 * s->size));
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
	ASSERT_TRUE(try_write(s->map));
	s->head[0] = mapped_pfn(s->map);

	ASSERT_EQ(0, pthread_create(&toucher, NULL, touch, s->map + s->size));
	wait_until(pool_get(s->size, "free_hugepages") == s->before.free - 2, 50);
	note_lost(_metadata, s, 2);
	EXPECT_EQ(-EBUSY, inject(s, 2));
	ASSERT_EQ(1, nr_said("%#lx: failed to unmap page", raw_pfn(s, 2)));
	ASSERT_EQ(0, pthread_join(toucher, NULL));
	expect_corrupted(_metadata, s);
	EXPECT_EQ(-EBUSY, unpoison(s->head[0]));

	/* Only memory_failure() still holds a reference. */
	empty_file(_metadata, s);
	expect_change(_metadata, s, 0, -1, 0, 0);
	for (i = 0; i < 2; i++) {
		pid[i] = fork_helper();
		ASSERT_LE(0, pid[i]);
		if (!pid[i])
			_exit(unpoison(s->head[0]) ? KSFT_FAIL : KSFT_PASS);
	}
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(pid[i], waitpid(pid[i], &status, 0));
		nr_unpoisoned += WIFEXITED(status) && WEXITSTATUS(status) == KSFT_PASS;
	}
	ASSERT_EQ(1, nr_unpoisoned);
	s->lost[2] = false;
	s->nr_lost = 0;
	expect_corrupted(_metadata, s);
	expect_change(_metadata, s, 0, 0, 0, 0);

	/* DEBUG_VM looks at the references of what is handed out. */
	s->map = map_others(s, 2);
	ASSERT_NE(NULL, s->map);
	EXPECT_TRUE(try_write(s->map));
	EXPECT_TRUE(try_write(s->map + s->size));
}

/*
 * A hugepage that has left the pool and waits for a worker to restore its struct
 * pages, if need be, and free the healthy ones.  As long as this thread does not give
 * up its CPU, the worker can't run.
 */

FIXTURE_SUBJECT(deferred);

FIXTURE_VARIANTS_HVO(deferred);

FIXTURE_SETUP(deferred)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, SZ_2M, &by_pfn, 1);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, variant->hvo);
	if (!_metadata->exit_code)
		open_one(_metadata, &self->s);
}

/* Let go of a hugepage that has lost page 3, and let nobody have it yet. */
static void let_it_wait(struct __test_metadata *_metadata, struct subject *s)
{
	lose(_metadata, s, 3);
	ASSERT_TRUE(hold_cpu(true));
	empty_file(_metadata, s);
	ASSERT_TRUE(read_kpageflags(s->head[0], 1, s->flags));
	ASSERT_TRUE(s->flags[0] & KPF_HUGE);
	expect_pool(_metadata, s, 1, 0);
}

TEST_F_TIMEOUT(deferred, late_lost_page_is_left_out, SLOW)
{
	struct subject *s = &self->s;

	let_it_wait(_metadata, s);
	expect_not_unpoisoned(_metadata, s->head[0]);
	lose(_metadata, s, s->nr_raw - 1);
	EXPECT_EQ(-EHWPOISON, inject(s, s->nr_raw - 1));
	EXPECT_EQ(-EHWPOISON, inject(s, 3));
	expect_corrupted(_metadata, s);
	expect_not_unpoisoned(_metadata, s->head[0]);
	EXPECT_EQ(s->memmap - s->memmap_less, nr_memmap());

	ASSERT_TRUE(hold_cpu(false));
	expect_released(_metadata, s);
	EXPECT_EQ(s->memmap, nr_memmap());
}

TEST_F_TIMEOUT(deferred, unrecorded_loss_keeps_it_out_of_use, SLOW)
{
	struct subject *s = &self->s;

	if (!can_fail_allocations())
		SKIP(return, "needs CONFIG_FAILSLAB and CONFIG_FAIL_PAGE_ALLOC");
	let_it_wait(_metadata, s);
	note_lost(_metadata, s, 4);
	EXPECT_EQ(0, inject_unrecorded(raw_pfn(s, 4)));
	ASSERT_TRUE(has_failed());
	ASSERT_EQ(1, nr_said("%#lx: no memory to record the lost page", raw_pfn(s, 4)));
	expect_corrupted(_metadata, s);

	ASSERT_TRUE(hold_cpu(false));
	expect_out_for_good(_metadata, s, 0, NOT_ALL_KNOWN);
	expect_pool(_metadata, s, 1, 0);
}

/*
 * Free hugepages that leave their pool while they are unpoisoned: a CPU is held inside
 * unpoisoning until they have left.
 */

FIXTURE(shrunk_early)
{
	struct subject s;
};

FIXTURE_VARIANT(shrunk_early)
{
	const char *caller;
	const char *callee;
	bool other;		/* not the first page is unpoisoned, but another one */
};

/* Points on the way of unpoisoning, the first one first */
FIXTURE_VARIANT_ADD(shrunk_early, behind_the_folio) { .other = true };

FIXTURE_VARIANT_ADD(shrunk_early, before_its_reference)
{
	.caller = "unpoison_memory",
	.callee = "get_hwpoison_page",
};

FIXTURE_VARIANT_ADD(shrunk_early, at_its_lookup)
{
	.caller = "get_hwpoison_page",
	.callee = "get_hwpoison_hugetlb_folio",
};

FIXTURE_VARIANT_ADD(shrunk_early, behind_its_lookup)
{
	.caller = "get_hwpoison_page",
	.callee = "zone_pcp_enable",
};

FIXTURE_VARIANT_ADD(shrunk_early, before_the_lock)
{
	.caller = "unpoison_memory",
	.callee = "_raw_spin_lock_irq",
};

static void setup_held(struct __test_metadata *_metadata, struct subject *s)
{
	if (mce_at < 0)
		SKIP(return, "needs a virtual machine with mce-at");
	/* Stock frees such hugepages wrongly: the series with the flag fixes it. */
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, s, SZ_2M, &by_pfn, 1);
}

static void teardown_held(struct __test_metadata *_metadata, struct subject *s)
{
	let_go_on();
	teardown_subject(_metadata, s);
}

/* Let a child write, and hold its CPU, on which nobody else is, at that call. */
static void start_held(struct __test_metadata *_metadata, struct helper *w,
		       const char *caller, const char *callee, const char *path, long val)
{
	start_writer(_metadata, w, 2, path, val);
	/* Unpoisoning calls nothing between looking up the folio and using it. */
	ASSERT_TRUE(caller ? hold_call(caller, callee) : hold_lookup(val));
	ASSERT_TRUE(tell(w));
	ASSERT_TRUE(wait_until(is_held(), 5000));
}

/* Has it written? */
static bool end_held(struct __test_metadata *_metadata, struct helper *w)
{
	int status;

	ASSERT_TRUE(let_go_on());
	ASSERT_EQ(w->pid, waitpid(w->pid, &status, 0));
	ASSERT_TRUE(WIFEXITED(status));
	return WEXITSTATUS(status) == KSFT_PASS;
}

/* Either raw page @nr is unpoisoned, or it stays lost.  The others stay lost. */
static void end_unpoisoning(struct __test_metadata *_metadata, struct subject *s,
			    struct helper *w, unsigned long nr)
{
	if (!end_held(_metadata, w))
		return;
	s->lost[nr] = false;
	s->nr_lost--;
}

FIXTURE_SETUP(shrunk_early)
{
	setup_held(_metadata, &self->s);
}

FIXTURE_TEARDOWN_PARENT(shrunk_early)
{
	teardown_held(_metadata, &self->s);
}

TEST_F_TIMEOUT(shrunk_early, unpoison_affects_one_page_or_none, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = sample(s, variant->other ? 2 : 0);
	struct helper w;

	poison_free_hugepage(_metadata, s, 0, 3);
	start_held(_metadata, &w, variant->caller, variant->callee, DEBUGFS_UNPOISON_PFN,
		   raw_pfn(s, nr));
	pool_set(s->size, "nr_hugepages", s->before.nr - 1);
	expect_change(_metadata, s, -1, -1, 0, 0);
	end_unpoisoning(_metadata, s, &w, nr);
	expect_released(_metadata, s);
}

#define SMALL_PIECES	(192 << 20)

/* Use up what is free in small pieces, so that larger ones are broken up next. */
static void *take_small_pieces(struct __test_metadata *_metadata)
{
	char *p;

	p = mmap(NULL, SMALL_PIECES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		 -1, 0);
	ASSERT_NE(MAP_FAILED, (void *)p);
	madvise(p, SMALL_PIECES, MADV_NOHUGEPAGE);
	memset(p, 1, SMALL_PIECES);
	return p;
}

/*
 * Have one free hugepage, and take all memory from where that is.  The last node has
 * only one zone: others use memory below 4 GiB last.
 */
static void use_last_node(struct __test_metadata *_metadata, struct subject *s)
{
	int node = MAX_NODES - 2;
	struct pool pool;

	leave_available(_metadata, s, 0);
	while (node && node_pool_get(node, s->size, "nr_hugepages") < 0)
		node--;
	pool = node_pool_read(node, s->size);
	ASSERT_TRUE(node_pool_set(node, s->size, "nr_hugepages", pool.nr - pool.surplus + 1));
	ASSERT_TRUE(bind_to(node));
}

/* Write @nr pages of a file, or until its file system uses the private word of page @pfn. */
static bool write_until_used(int fd, unsigned long pfn, unsigned int nr)
{
	uint64_t flags = 0;
	char page[4096];

	memset(page, 'x', sizeof(page));
	for (; nr && !(flags & KPF_PRIVATE); nr--)
		if (write(fd, page, sizeof(page)) != sizeof(page) ||
		    !read_kpageflags(pfn, 1, &flags))
			return false;
	return flags & KPF_PRIVATE;
}

/* The private word that led to the record of what is lost has another use by now. */
TEST_F_TIMEOUT(shrunk_early, unpoison_spares_a_reused_page, SLOW)
{
	const unsigned long pages[] = { 0, RECORD - 1 };
	struct subject *s = &self->s;
	unsigned long nr = pages[variant->other];
	struct helper w;
	void *taken;
	int fd;

	use_last_node(_metadata, s);
	poison_free_pages(_metadata, s, pages, ARRAY_SIZE(pages));
	taken = take_small_pieces(_metadata);
	fd = open("hugetlb-mfr", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	ASSERT_LE(0, fd);
	unlink("hugetlb-mfr");
	start_held(_metadata, &w, variant->caller, variant->callee, DEBUGFS_UNPOISON_PFN,
		   raw_pfn(s, nr));
	/* The page must not go to a copy on write after fork(). */
	EXPECT_FALSE(write_until_used(fd, s->head[0] + RECORD, 1));
	pool_set(s->size, "nr_hugepages", s->before.nr - 1);
	ASSERT_TRUE(write_until_used(fd, s->head[0] + RECORD, 10000));
	end_unpoisoning(_metadata, s, &w, nr);
	close(fd);
	munmap(taken, SMALL_PIECES);
	/* Pages of the file wait in batches to get on a list: to move one empties these. */
	move_page((char *)s->flags, 0);
	expect_released(_metadata, s);
}

/*
 * Demotion: 1 GiB hugepages become smaller ones
 */

FIXTURE(demoted)
{
	struct subject s;
	struct pool small;		/* the pool of 2 MiB hugepages */
};

FIXTURE_VARIANTS(demoted, simulated)

FIXTURE_SETUP(demoted)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_demotion(_metadata, &self->s, variant->injector, &self->small);
}

FIXTURE_TEARDOWN_SUBJECT(demoted);

TEST_F_TIMEOUT(demoted, neither_in_use_nor_after_release, 2 * SLOW)
{
	struct subject *s = &self->s;
	int i;

	open_one(_metadata, s);
	/* Beside it there is one that can be demoted: in use, it isn't. */
	if (!need_more_hugepages(s, 1))
		SKIP(return, "can't get 2 hugepages of 1 GiB");
	lose_samples(_metadata, s);
	for (i = 0; i < 2; i++) {
		EXPECT_TRUE(write_text(pool_path(SZ_1G, "demote"), "1"));
		expect_small(_metadata, &self->small, SZ_1G / SZ_2M);
		expect_change(_metadata, s, -1, -2, 0, 0);
		expect_intact(_metadata, s);
	}
	pool_set(SZ_2M, "nr_hugepages", self->small.nr);
	expect_small(_metadata, &self->small, 0);

	s->before = pool_read(s->size);
	s->before.free++;
	empty_file(_metadata, s);
	expect_change(_metadata, s, -1, -1, 0, 0);
	EXPECT_TRUE(write_text(pool_path(SZ_1G, "demote"), "1"));
	expect_small(_metadata, &self->small, 0);
	expect_released(_metadata, s);
}

/* The stock kernel does the same: this is independent of the flag. */
FIXTURE(demoted_free)
{
	struct subject s;
	struct pool small;
};

FIXTURE_SETUP(demoted_free)
{
	setup_demotion(_metadata, &self->s, &by_pfn, &self->small);
}

FIXTURE_TEARDOWN_SUBJECT(demoted_free);

TEST_F_TIMEOUT(demoted_free, not_before_it_is_unpoisoned, SLOW)
{
	struct subject *s = &self->s;

	poison_free_hugepage(_metadata, s, 0, 1);
	EXPECT_FALSE(write_text(pool_path(SZ_1G, "demote"), "1"));
	expect_small(_metadata, &self->small, 0);
	expect_change(_metadata, s, 0, 0, 0, 0);
	EXPECT_TRUE(is_poisoned(s->head[0]));

	EXPECT_EQ(0, unpoison(s->head[0]));
	s->lost[0] = false;
	s->nr_lost = 0;
	expect_corrupted(_metadata, s);
	EXPECT_TRUE(write_text(pool_path(SZ_1G, "demote"), "1"));
	expect_small(_metadata, &self->small, SZ_1G / SZ_2M);
	expect_change(_metadata, s, -1, -1, 0, 0);
	pool_set(SZ_2M, "nr_hugepages", self->small.nr);
	expect_small(_metadata, &self->small, 0);
}

/*
 * A free hugepage that waits to be demoted while somebody resizes the pool that its
 * pieces are for: struct pages of the hugepages there have to be restored, which takes
 * long.
 */

FIXTURE(demoted_late)
{
	struct subject s;
	struct pool small;
};

FIXTURE_VARIANTS_HVO(demoted_late);

FIXTURE_SETUP(demoted_late)
{
	/* Stock warns here: the series with the flag fixes it. */
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_demotion(_metadata, &self->s, &by_pfn, &self->small);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, variant->hvo);
}

FIXTURE_TEARDOWN_SUBJECT(demoted_late);

/* The only free hugepage will be demoted. */
static void start_demoter(struct __test_metadata *_metadata, struct helper *w,
			  unsigned int nth)
{
	int node = 0;

	/* (Where a node has no such hugepage, it would be waited for nothing.) */
	while (node < MAX_NODES - 1 && node_pool_get(node, SZ_1G, "free_hugepages") < 1)
		node++;
	start_writer(_metadata, w, nth, node_pool_path(node, SZ_1G, "demote"), 1);
}

TEST_F_TIMEOUT(demoted_late, late_lost_page_is_left_out, SLOW)
{
	const long many = 1024;
	struct subject *s = &self->s;
	struct helper shrinker, demoter;
	unsigned int i;

	find_free_hugepage(_metadata, s);
	grow_optimized(_metadata, SZ_2M, self->small.nr, many);
	if (_metadata->exit_code)
		return;
	start_writer(_metadata, &shrinker, 1, pool_path(SZ_2M, "nr_hugepages"),
		     self->small.nr);
	start_demoter(_metadata, &demoter, 2);
	let_write(_metadata, &shrinker, SZ_2M, self->small.nr);
	let_write(_metadata, &demoter, SZ_1G, s->before.nr - 1);

	for (i = 0; i < 2; i++) {
		note_lost(_metadata, s, sample(s, i));
		/*
		 * memory_failure() must report that it couldn't handle the error, and of
		 * the second one that it has hit a poisoned folio.
		 */
		EXPECT_EQ(i ? -EHWPOISON : -EBUSY, inject(s, sample(s, i)));
	}
	/* The writer must still be running: otherwise the error came too late. */
	EXPECT_EQ(0, waitpid(shrinker.pid, NULL, WNOHANG));
	wait_for_child(_metadata, shrinker.pid);
	wait_for_child(_metadata, demoter.pid);

	expect_small(_metadata, &self->small, 0);
	expect_released(_metadata, s);
}

/* The page was lost too early or too late: be as before. */
static void take_back_demotion(struct __test_metadata *_metadata, struct subject *s,
			       unsigned long nr, long small)
{
	ASSERT_TRUE(pool_set(SZ_2M, "nr_hugepages", small));
	if (is_poisoned(raw_pfn(s, nr)))
		ASSERT_EQ(0, unpoison(raw_pfn(s, nr)));
	s->lost[nr] = false;
	s->nr_lost = 0;
	undo->nr_poison = 0;
	ASSERT_TRUE(pool_set(SZ_1G, "nr_hugepages", s->before.nr));
}

/* Lose a page while the struct pages of a free hugepage make smaller ones of it. */
static bool lose_between_sizes(struct __test_metadata *_metadata, struct subject *s,
			       unsigned long nr)
{
	struct helper demoter;
	unsigned long i;
	uint64_t flags;
	bool in_time;

	find_free_hugepage(_metadata, s);
	note_lost(_metadata, s, nr);
	start_demoter(_metadata, &demoter, 2);
	ASSERT_TRUE(tell(&demoter));
	/* (It may be over before this sees it.) */
	for (i = 0; i < 1000000; i++) {
		ASSERT_TRUE(read_kpageflags(raw_pfn(s, nr), 1, &flags));
		if (!(flags & KPF_HUGE))
			break;
	}
	/* A page that is neither in a pool nor free can't be handled. */
	in_time = inject(s, nr) == -EBUSY;
	wait_for_child(_metadata, demoter.pid);
	return in_time;
}

static void leave_out_lost_between_sizes(struct __test_metadata *_metadata,
					 FIXTURE_DATA(demoted_late) * self,
					 unsigned long nr, unsigned long again)
{
	struct subject *s = &self->s;
	unsigned int tries;

	/* Other load may take this CPU away meanwhile. */
	for (tries = 0; tries < 50; tries++) {
		if (lose_between_sizes(_metadata, s, nr))
			break;
		take_back_demotion(_metadata, s, nr, self->small.nr);
	}
	ASSERT_GT(50, tries);
	expect_small(_metadata, &self->small, SZ_1G / SZ_2M);
	/* Once there is a record, PG_hwpoison of the head doesn't mean the first page. */
	if (again) {
		note_lost(_metadata, s, again);
		inject(s, again);
		expect_corrupted(_metadata, s);
	}
	ASSERT_TRUE(pool_set(SZ_2M, "nr_hugepages", self->small.nr));
	expect_small(_metadata, &self->small, 0);
	expect_released(_metadata, s);
}

/* The last one of the smaller hugepages is done last. */
TEST_F_TIMEOUT(demoted_late, first_page_of_a_piece_is_left_out, SLOW)
{
	unsigned long nr = self->s.nr_raw - SZ_2M / psize();

	leave_out_lost_between_sizes(_metadata, self, nr, nr + 7);
}

TEST_F_TIMEOUT(demoted_late, other_page_of_a_piece_is_left_out, SLOW)
{
	leave_out_lost_between_sizes(_metadata, self, self->s.nr_raw - SZ_2M / psize() + 1, 0);
}

/* Free hugepages that are demoted as soon as they are no longer marked */

FIXTURE(demoted_early)
{
	struct subject s;
	struct pool small;
};

FIXTURE_SETUP(demoted_early)
{
	if (mce_at < 0)
		SKIP(return, "needs a virtual machine with mce-at");
	/* Stock unmarks it when all else is done. */
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_demotion(_metadata, &self->s, &by_pfn, &self->small);
}

FIXTURE_TEARDOWN_PARENT(demoted_early)
{
	teardown_held(_metadata, &self->s);
}

TEST_F_TIMEOUT(demoted_early, while_unpoison_updates_counters, SLOW)
{
	struct subject *s = &self->s;
	struct helper w, demoter;

	poison_free_hugepage(_metadata, s, 0, 3);
	start_demoter(_metadata, &demoter, 1);
	start_held(_metadata, &w, "unpoison_memory", "memblk_nr_poison_sub",
		   DEBUGFS_UNPOISON_PFN, s->head[0]);
	/* The demotion can't end before each CPU has left the kernel. */
	let_write(_metadata, &demoter, SZ_1G, s->before.nr - 1);
	EXPECT_TRUE(end_held(_metadata, &w));
	wait_for_child(_metadata, demoter.pid);
	expect_small(_metadata, &self->small, SZ_1G / SZ_2M);
	s->nr_lost = 0;
	memset(s->lost, 0, s->nr_raw);
	expect_corrupted(_metadata, s);
	expect_change(_metadata, s, -1, -1, 0, 0);
	pool_set(SZ_2M, "nr_hugepages", self->small.nr);
	expect_small(_metadata, &self->small, 0);
	expect_rest_is_free(_metadata, s, 0);
}

/*
 * Demote the only free hugepage, and let a child lose page @nr of it in the middle.
 * Returns the child if its CPU is held before the handler marks the page, which it has
 * seen in no hugepage, until that is part of a smaller one; else 0.
 */
static pid_t hold_handler_between_sizes(struct __test_metadata *_metadata,
					struct subject *s, unsigned long nr,
					struct helper *demoter)
{
	int cpu = nth_cpu(2);
	unsigned int tries;
	struct helper h;
	uint64_t flags;

	find_free_hugepage(_metadata, s);
	note_lost(_metadata, s, nr);
	start_demoter(_metadata, demoter, 1);
	ASSERT_TRUE(start_helper(&h));
	if (!h.pid) {
		move_to_cpu(cpu);
		for (tries = 0; tries < 1000000; tries++) {
			if (read_kpageflags(raw_pfn(s, nr), 1, &flags) &&
			    !(flags & KPF_HUGE))
				_exit(inject(s, nr) ? KSFT_FAIL : KSFT_PASS);
			if (tries == 10 && !tell(&h))
				break;
		}
		_exit(KSFT_FAIL);
	}
	ASSERT_TRUE(wait_for_word(&h));
	close(h.line);
	/* The handler takes the lock to find a hugepage, and elsewhere to mark the page. */
	ASSERT_TRUE(hold_at_call("__memory_failure", "_raw_spin_lock_irq", true) ||
		    hold_at_call("memory_failure", "_raw_spin_lock_irq", true));
	ASSERT_TRUE(tell(demoter));
	for (tries = 0; tries < 100 && !is_held(); tries++)
		usleep(5000);
	/* The demoter may wait for all CPUs before it comes to its end. */
	for (tries = 0; tries < 500 && is_held(); tries++) {
		ASSERT_TRUE(read_kpageflags(raw_pfn(s, nr), 1, &flags));
		if (flags & KPF_HUGE)
			return h.pid;
		usleep(5000);
	}
	let_go_on();
	waitpid(h.pid, NULL, 0);
	wait_for_child(_metadata, demoter->pid);
	return 0;
}

TEST_F_TIMEOUT(demoted_early, while_an_error_is_handled, SLOW)
{
	struct subject *s = &self->s;
	/* In the last one of the smaller hugepages, but not its first page */
	const unsigned long nr = s->nr_raw - 1;
	struct helper handler = {}, demoter;
	unsigned int tries;
	bool taken;

	for (tries = 0; tries < 50; tries++) {
		handler.pid = hold_handler_between_sizes(_metadata, s, nr, &demoter);
		if (handler.pid)
			break;
		take_back_demotion(_metadata, s, nr, self->small.nr);
	}
	ASSERT_GT(50, tries);
	/*
	 * It finds a smaller hugepage now.  If the pool has that already, it takes it out,
	 * else it only records the lost page.
	 */
	taken = end_held(_metadata, &handler);
	wait_for_child(_metadata, demoter.pid);
	expect_small(_metadata, &self->small, SZ_1G / SZ_2M - taken);
	ASSERT_TRUE(pool_set(SZ_2M, "nr_hugepages", self->small.nr));
	expect_small(_metadata, &self->small, 0);
	expect_released(_metadata, s);
}

/*
 * Corrupt, release, unpoison, and all over again
 */

FIXTURE_SUBJECT(cycle);

FIXTURE_VARIANTS(cycle, simulated_2m)

FIXTURE_SETUP_KEPT(cycle, SZ_2M, variant->injector, 1, 0);

/* Open the file anew with a hugepage made of @pfn, while hugepages can be allocated. */
static bool reopen_with(struct __test_metadata *_metadata, struct subject *s,
			unsigned long pfn)
{
	int i;

	for (i = 0; i < 64; i++) {
		struct pool pool = pool_read(s->size);
		long nr = pool.free - pool.resv + 1;
		unsigned long j;

		/* All there are in one file, and its first will be the one. */
		if (!pool_grow(s->size, nr))
			return false;
		s->fd = create_memfd(s->size, MFD_MF_KEEP_UE_MAPPED);
		ASSERT_LE(0, s->fd);
		ASSERT_EQ(0, ftruncate(s->fd, nr * s->size));
		for (j = 0; j < (unsigned long)nr; j++) {
			s->map = mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_SHARED,
				      s->fd, j * s->size);
			ASSERT_NE(MAP_FAILED, s->map);
			ASSERT_TRUE(try_write(s->map));
			s->head[0] = mapped_pfn(s->map);
			if (s->head[0] == pfn)
				break;
			unmap_file(s);
		}
		if (!s->map) {
			close(s->fd);
			continue;
		}
		/* The others go back to the pool. */
		if (j)
			ASSERT_EQ(0, punch(s, 0, j * s->size));
		s->before = pool_read(s->size);
		s->before.free++;
		return true;
	}
	return false;
}

TEST_F_TIMEOUT(cycle, repeats_on_the_same_hugepage, SLOW)
{
	struct subject *s = &self->s;
	unsigned long pfn = s->head[0];
	unsigned int i, j;

	for (i = 0; i < 4; i++) {
		/* The same pages in one half, others in the other half. */
		for (j = 0; j < 4; j++)
			lose(_metadata, s, sample(s, j));
		lose(_metadata, s, 10 + i);
		EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
		unmap_file(s);
		EXPECT_EQ(0, close(s->fd));
		expect_released(_metadata, s);
		if (!reopen_with(_metadata, s, pfn))
			SKIP_REST(return, "can't get the same hugepage once more");
		/* The hugepage can be used like a new one. */
		for (j = 0; j < s->nr_raw; j++)
			EXPECT_TRUE(try_write(raw_page(s, j)));
		EXPECT_FALSE(is_poisoned(pfn));
		undo->nr_poison = 0;
	}
}

TEST_F_TIMEOUT(cycle, unpoison_is_refused_while_pinned, SLOW)
{
	struct subject *s = &self->s;
	int pipefd[2], fd = open_pin();

	if (fd < 0)
		SKIP(return, "needs CONFIG_GUP_TEST");
	ASSERT_EQ(0, pipe(pipefd));
	ASSERT_EQ(0, pin_range(fd, raw_page(s, 9), psize(), 0));
	ASSERT_EQ(psize(), splice_pages(pipefd[1], raw_page(s, 5), psize()));
	lose(_metadata, s, 0);
	lose(_metadata, s, 7);
	let_go(_metadata, s);

	EXPECT_EQ(-EBUSY, unpoison(raw_pfn(s, 0)));
	EXPECT_EQ(-EBUSY, unpoison(raw_pfn(s, 7)));
	/* One reference is all that an unpoisonable hugepage has, too. */
	EXPECT_EQ(0, unpin_range(fd));
	EXPECT_EQ(-EBUSY, unpoison(raw_pfn(s, 0)));
	EXPECT_EQ(-EBUSY, unpoison(raw_pfn(s, 7)));
	expect_corrupted(_metadata, s);
	expect_whole(_metadata, s, 0);
	expect_pool(_metadata, s, 0, 1);

	close(pipefd[0]);
	close(pipefd[1]);
	expect_released(_metadata, s);
}

#define NR_UNPOISONERS	3

TEST_F_TIMEOUT(cycle, unpoison_races_with_release, SLOW)
{
	struct subject *s = &self->s;
	unsigned long *pfns = alloc_shared(psize());
	pid_t pid[NR_UNPOISONERS];
	unsigned int i, j;
	/* The subject is shared with the children, and about to change. */
	char *map = s->map;
	int fd = s->fd;

	ASSERT_NE(NULL, pfns);
	for (i = 0; i < NR_UNPOISONERS; i++) {
		pid[i] = fork_helper();
		ASSERT_LE(0, pid[i]);
		if (!pid[i]) {
			munmap(map, s->size);
			close(fd);
		}
		while (!pid[i])
			for (j = 0; j < NR_SAMPLES; j++)
				if (pfns[j])
					unpoison(pfns[j]);
	}

	for (i = 0; i < 60; i++) {
		lose_samples(_metadata, s);
		for (j = 0; j < NR_SAMPLES; j++)
			pfns[j] = raw_pfn(s, sample(s, j));
		/* Nothing can be unpoisoned before the release. */
		expect_corrupted(_metadata, s);
		unmap_file(s);
		EXPECT_EQ(0, close(s->fd));

		/* Each page can be unpoisoned once after the release. */
		EXPECT_TRUE(wait_until(hardware_corrupted() == s->corrupted, 1000));
		for (j = 0; j < NR_SAMPLES; j++) {
			EXPECT_FALSE(is_poisoned(pfns[j]));
			pfns[j] = 0;
			s->lost[sample(s, j)] = false;
			s->nr_lost--;
		}
		undo->nr_poison = 0;
		expect_pool(_metadata, s, 1, 0);
		if (_metadata->exit_code)
			break;
		ASSERT_TRUE(pool_grow(s->size, 1));
		s->before = pool_read(s->size);
		open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	}
	for (i = 0; i < NR_UNPOISONERS; i++)
		kill_child(_metadata, pid[i]);
}

TEST_F_TIMEOUT(cycle, filter_drops_all_of_an_error_or_nothing, SLOW)
{
	struct subject *s = &self->s;
	unsigned long i, before, nr_filtered = 0;
	unsigned int *flips = alloc_shared(psize());
	pid_t pid;
	char byte;

	ASSERT_NE(NULL, flips);
	ASSERT_TRUE(filter_all_errors());
	pid = fork_helper();
	ASSERT_LE(0, pid);
	while (!pid) {
		write_long(DEBUGFS_FILTER_ENABLE, 0);
		write_long(DEBUGFS_FILTER_ENABLE, 1);
		__atomic_add_fetch(flips, 1, __ATOMIC_RELAXED);
	}
	ASSERT_TRUE(wait_until(__atomic_load_n(flips, __ATOMIC_RELAXED), 1000));

	for (i = 0; i < s->nr_raw; i++) {
		before = hardware_corrupted();
		ASSERT_TRUE(note_poison(raw_pfn(s, i), s->head[0]));
		ASSERT_EQ(0, inject(s, i));
		if (hardware_corrupted() == before) {
			EXPECT_EQ(0, sigbus.nr);
			nr_filtered++;
			continue;
		}
		s->lost[i] = true;
		s->nr_lost++;
		expect_corrupted(_metadata, s);
		expect_sigbus(_metadata, s->injector->code, raw_page(s, i), pshift());
	}
	kill_child(_metadata, pid);
	restore_filter();
	/* At least one error was filtered: there was a race. */
	EXPECT_LT(0, nr_filtered);
	EXPECT_LT(0, s->nr_lost);

	for (i = 0; i < s->nr_raw; i++)
		EXPECT_EQ(s->lost[i] ? -1 : 1, pread(s->fd, &byte, 1, i * psize()));
	expect_intact(_metadata, s);
	expect_end(_metadata, s);
}

/*
 * page-types of tools/mm
 */

/* Do to one page what @option says: of a process, or of all memory if that is 0. */
static int page_types(pid_t process, unsigned long page, const char *option)
{
	char pid[16], where[32];
	pid_t child;
	int status;

	snprintf(pid, sizeof(pid), "%d", process);
	snprintf(where, sizeof(where), "%#lx", page);
	child = fork_helper();
	if (!child) {
		dup2(open("/dev/null", O_WRONLY), STDOUT_FILENO);
		execlp("page-types", "page-types", option, "-a", where,
		       process ? "-p" : NULL, pid, NULL);
		_exit(127);
	}
	while (waitpid(child, &status, 0) < 0)
		if (errno != EINTR)
			return -errno;
	return WIFEXITED(status) && !WEXITSTATUS(status) ? 0 : -ENOENT;
}

static int inject_page_types(char *addr, unsigned long pfn)
{
	return page_types(getpid(), (uintptr_t)addr / psize(), "-X");
}

static const struct injector by_page_types = {
	.inject = inject_page_types,
	.code = BUS_MCEERR_AO,
};

FIXTURE_SUBJECT(page_types);

FIXTURE_SETUP(page_types)
{
	setup_kept(_metadata, &self->s, SZ_2M, &by_page_types, 1, 0);
	if (_metadata->exit_code)
		return;
	if (page_types(getpid(), (uintptr_t)self->s.map / psize(), "-l"))
		SKIP(return, "needs page-types");
}

TEST_F_TIMEOUT(page_types, poisons_pages_of_a_process, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 0);
	lose(_metadata, s, 7);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(2, nr_on_map(s));
	expect_end(_metadata, s);
}

TEST_F_TIMEOUT(page_types, unpoisons_pages_after_release, SLOW)
{
	const unsigned long pages[] = { 0, 7 };
	struct subject *s = &self->s;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(pages); i++)
		lose(_metadata, s, pages[i]);
	EXPECT_EQ(0, page_types(getpid(), (uintptr_t)raw_page(s, 7) / psize(), "-x"));
	expect_corrupted(_metadata, s);
	EXPECT_EQ(2, nr_on_map(s));

	let_go(_metadata, s);
	wait_for_release(s, 1);
	expect_out_of_use(_metadata, s, 0);
	for (i = 0; i < ARRAY_SIZE(pages); i++) {
		EXPECT_EQ(0, page_types(0, raw_pfn(s, pages[i]), "-x"));
		s->lost[pages[i]] = false;
		s->nr_lost--;
		expect_corrupted(_metadata, s);
	}
	expect_released(_metadata, s);
}

TEST_HARNESS_MAIN
