// SPDX-License-Identifier: GPL-2.0
/*
 * Memory failure recovery of hugetlb memfds when the kernel gets no memory for its own
 * bookkeeping.
 *
 * No lost page may come back into use then, and nothing may be counted twice or not at
 * all.
 *
 * The fixtures:
 *   starved	errors that can't be recorded
 *   failing	allocations that fail one by one while an error is handled,
 *   release, hole	and while a hugepage is released
 *   not_restored, retried, retried_cma	struct pages that can't be restored
 *   freeing	losses while they are restored, and the hugepage freed
 *
 * They need CONFIG_FAILSLAB, CONFIG_FAIL_PAGE_ALLOC and CONFIG_FAULT_INJECTION_DEBUG_FS.
 */

#define _GNU_SOURCE
#include "mfr_harness.h"
#include <glob.h>

#define CMA_AREAS	"/sys/kernel/debug/cma"
#define HARD_OFFLINE_PAGE	"/sys/devices/system/memory/hard_offline_page"

/*
 * Failing allocations
 */

/* Let even those allocations fail that could wait for memory. */
static bool fail_all_kinds(void)
{
	return write_text(FAILSLAB "ignore-gfp-wait", "N") &&
	       write_text(FAIL_PAGE "ignore-gfp-wait", "N") &&
	       write_text(FAIL_PAGE "min-order", "0");
}

/* From now on workers get no pages, after they have got @some. */
static bool starve_workers(unsigned int some)
{
	mark_workers(true);
	return fail_all_kinds() && write_text(FAIL_PAGE "task-filter", "Y") &&
	       write_long(FAIL_PAGE "space", some + 1) &&
	       write_text(FAIL_PAGE "times", "-1") &&
	       write_text(FAIL_PAGE "probability", "100");
}

static void feed_workers(void)
{
	write_text(FAIL_PAGE "probability", "0");
	mark_workers(false);
}

/*
 * Errors that can't be recorded
 */

FIXTURE_SUBJECT(starved);

FIXTURE_VARIANTS(starved, simulated_and_mce)

/* With allocations that can be made to fail, and quietly. */
static void prepare_to_fail(struct __test_metadata *_metadata, struct subject *s,
			    unsigned long size, const struct injector *injector,
			    unsigned long nr_huge)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	if (!can_fail_allocations())
		SKIP(return, "needs CONFIG_FAILSLAB and CONFIG_FAIL_PAGE_ALLOC");
	setup_subject(_metadata, s, size, injector, nr_huge);
	if (_metadata->exit_code)
		return;
	ASSERT_TRUE(write_text(FAILSLAB "verbose", "0"));
	ASSERT_TRUE(write_text(FAIL_PAGE "verbose", "0"));
	/* Of slabs alone, as long as a test doesn't say more. */
	ASSERT_TRUE(write_text(FAIL_PAGE "min-order", "20"));
}

FIXTURE_SETUP(starved)
{
	prepare_to_fail(_metadata, &self->s, SZ_2M, variant->injector, 1);
	if (!_metadata->exit_code)
		open_one(_metadata, &self->s);
}

/*
 * Lose a page that the kernel has no memory to make a note of.  To become a victim
 * of a machine check takes allocations, too.  They come first, and do without what
 * they don't get: so go on with the next page until it hits the right one.  Returns
 * that page.
 */
static unsigned long lose_unrecorded(struct __test_metadata *_metadata,
				     struct subject *s, unsigned long nr)
{
	const unsigned int max = s->injector->is_hw ? 10 : 1;
	unsigned int nth;

	for (nth = 1; nth <= max; nth++, nr++) {
		note_lost(_metadata, s, nr);
		ASSERT_TRUE(fail_allocation(nth));
		EXPECT_EQ(0, inject(s, nr));
		ASSERT_TRUE(has_failed());
		expect_sigbus(_metadata, s->injector->code, raw_page(s, nr), pshift());
		expect_corrupted(_metadata, s);
		if (nr_said("%#lx: no memory to record the lost page", raw_pfn(s, nr)))
			break;
	}
	EXPECT_EQ(1, nr_said("no memory to record the lost page"));
	ASSERT_GE(max, nth);
	return nr;
}

/* The hugepage leaves the pool when the file ends, and none of its pages gets free. */
static void expect_leak(struct __test_metadata *_metadata, struct subject *s)
{
	empty_file(_metadata, s);
	expect_pool(_metadata, s, 1, 0);
	expect_out_for_good(_metadata, s, 0, NOT_ALL_KNOWN);
	expect_pool(_metadata, s, 1, 0);
}

TEST_F_TIMEOUT(starved, unrecorded_page_is_signalled, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 3);
	lose_unrecorded(_metadata, s, 7);
	expect_intact(_metadata, s);
	expect_pool(_metadata, s, 0, 1);

	expect_leak(_metadata, s);
}

TEST_F_TIMEOUT(starved, unrecorded_hugepage_stays_out_of_use, SLOW)
{
	struct subject *s = &self->s;

	lose_unrecorded(_metadata, s, s->nr_raw / 2);
	expect_leak(_metadata, s);
}

TEST_F_TIMEOUT(starved, surplus_hugepage_stays_out_of_use, SLOW)
{
	struct subject *s = &self->s;

	if (!pool_is_ours(s))
		SKIP(return, "others use hugepages");
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 0));
	s->before = pool_read(s->size);
	ASSERT_EQ(1, s->before.surplus);
	lose_unrecorded(_metadata, s, 8);
	empty_file(_metadata, s);
	expect_change(_metadata, s, -1, 0, 0, -1);
	expect_out_for_good(_metadata, s, 0, NOT_ALL_KNOWN);
	expect_change(_metadata, s, -1, 0, 0, -1);
}

TEST_F_TIMEOUT(starved, faults_and_reads_refuse_all_pages, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 4, ps = psize();
	char *buf = malloc(ps);

	ASSERT_NE(NULL, buf);
	lose_unrecorded(_metadata, s, 7);

	/* A process that maps the hugepage can still use it. */
	EXPECT_TRUE(try_write(raw_page(s, nr)));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));

	EXPECT_ERRNO(EIO, pread(s->fd, buf, ps, nr * ps));
	EXPECT_ERRNO(EIO, punch(s, nr * ps, ps));
	EXPECT_EQ('x', *raw_page(s, nr));

	map_afresh(_metadata, s);
	EXPECT_FALSE(try_read(raw_page(s, nr)));
	expect_fault_in(_metadata, raw_page(s, nr));
	EXPECT_FALSE(is_mapped(s->map));

	/* Pages known to be healthy stay out of use, too. */
	expect_leak(_metadata, s);
	free(buf);
}

TEST_F_TIMEOUT(starved, hmm_mirror_loses_the_page, SLOW)
{
	struct subject *s = &self->s;
	char *buf = malloc(16 * psize());
	unsigned long nr;
	int fd = open_mirror();

	ASSERT_NE(NULL, buf);
	if (fd < 0)
		SKIP(return, "needs CONFIG_TEST_HMM");
	ASSERT_EQ(0, mirror(fd, HMM_DMIRROR_READ, raw_page(s, 6), buf, 16, NULL));
	nr = lose_unrecorded(_metadata, s, 7);
	EXPECT_EQ(-EFAULT, mirror(fd, HMM_DMIRROR_READ, raw_page(s, nr), buf, 1, NULL));
	/* From now on all others count as lost, too. */
	EXPECT_EQ(-EFAULT, mirror(fd, HMM_DMIRROR_READ, raw_page(s, 5), buf, 1, NULL));
	close(fd);

	expect_leak(_metadata, s);
	free(buf);
}

TEST_F_TIMEOUT(starved, unrecorded_page_can_be_recorded_later, SLOW)
{
	struct subject *s = &self->s;
	unsigned long kb = psize() >> 10;
	unsigned long nr;

	nr = lose_unrecorded(_metadata, s, 7);
	if (s->injector == &by_madvise) {
		/* MADV_HWPOISON must fault the page in, which fails. */
		EXPECT_EQ(-EFAULT, inject(s, nr));
		EXPECT_EQ(0, sigbus.nr);
	} else {
		/* Counted anew, and only this once. */
		s->corrupted += kb;
		undo->corrupted += kb;
		EXPECT_EQ(0, inject(s, nr));
		expect_sigbus(_metadata, s->injector->code, raw_page(s, nr), pshift());
		expect_corrupted(_metadata, s);
		EXPECT_EQ(s->injector->repeat_ret, inject(s, nr));
	}
	expect_corrupted(_metadata, s);

	/* The repeated errors don't change that the hugepage can't be reused. */
	expect_leak(_metadata, s);
}

/*
 * Allocations that fail one by one while an error is handled
 */

#define NR_FAILING	12

FIXTURE_SUBJECT(failing);

FIXTURE_VARIANTS(failing, simulated)

FIXTURE_SETUP(failing)
{
	prepare_to_fail(_metadata, &self->s, SZ_2M, variant->injector, NR_FAILING);
	if (!_metadata->exit_code)
		open_subject(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
}

/*
 * Whatever fails, the page is counted, and the release spares it.  Processes may get
 * no signal: signals take memory on any kernel.
 */
TEST_F_TIMEOUT(failing, error_counts_whichever_allocation_fails, SLOW)
{
	struct subject *s = &self->s;
	bool unrecorded[NR_FAILING] = {};
	unsigned long i, nr;
	bool failed;

	for (i = 0; i < s->nr_huge; i++) {
		nr = i * s->nr_raw + 11 * i;
		note_lost(_metadata, s, nr);
		ASSERT_TRUE(fail_allocation(i + 1));
		EXPECT_EQ(0, inject(s, nr));
		failed = has_failed();
		unrecorded[i] = nr_said("%#lx: no memory to record", raw_pfn(s, nr));
		EXPECT_EQ(i == 0, unrecorded[i]);
		/*
		 * All others come after the page has been recorded.  The signal may have got
		 * no memory for what it tells, and comes as SI_USER then.
		 */
		if (i == 0 || !failed)
			expect_sigbus(_metadata, s->injector->code, raw_page(s, nr),
				      pshift());
		else if (sigbus.nr && sigbus.code != SI_USER)
			expect_sigbus(_metadata, s->injector->code, raw_page(s, nr),
				      pshift());
		expect_corrupted(_metadata, s);
		EXPECT_TRUE(is_mapped_huge(s, s->map, i));
		if (!failed)
			break;
	}
	/* The record, who is to be signalled, and the signal at least. */
	EXPECT_LT(1, i);
	EXPECT_EQ(1, nr_said("Out of memory while machine check"));
	ASSERT_GT(s->nr_huge, i);
	EXPECT_EQ(0, nr_changed_pages(s));

	empty_file(_metadata, s);
	expect_pool(_metadata, s, i + 1, 0);
	for (nr = 0; nr <= i; nr++)
		if (unrecorded[nr])
			expect_out_for_good(_metadata, s, nr, NOT_ALL_KNOWN);
		else
			expect_all_come_back(_metadata, s, nr);
	expect_pool(_metadata, s, i + 1, 0);
}

/*
 * Allocations that fail one by one while a hugepage is released
 */

FIXTURE_SUBJECT(release);

enum ending {
	BY_TRUNCATION,
	BY_PUNCHING,
	BY_CLOSE,
	BY_MUNMAP,
};

FIXTURE_VARIANT(release)
{
	const struct injector *injector;
	enum ending how;
};

FIXTURE_VARIANT_ADD(release, truncation_madvise) { .injector = &by_madvise, .how = BY_TRUNCATION };
FIXTURE_VARIANT_ADD(release, truncation_corrupt_pfn) { .injector = &by_pfn, .how = BY_TRUNCATION };
FIXTURE_VARIANT_ADD(release, punching_madvise) { .injector = &by_madvise, .how = BY_PUNCHING };
FIXTURE_VARIANT_ADD(release, punching_corrupt_pfn) { .injector = &by_pfn, .how = BY_PUNCHING };
FIXTURE_VARIANT_ADD(release, close_madvise) { .injector = &by_madvise, .how = BY_CLOSE };
FIXTURE_VARIANT_ADD(release, munmap_madvise) { .injector = &by_madvise, .how = BY_MUNMAP };

FIXTURE_SETUP(release)
{
	prepare_to_fail(_metadata, &self->s, SZ_2M, variant->injector, 3);
}

static int end_life(struct subject *s, enum ending how)
{
	switch (how) {
	case BY_TRUNCATION:
		return ftruncate(s->fd, 0);
	case BY_PUNCHING:
		return punch(s, 0, s->size);
	case BY_CLOSE:
		return close(s->fd);
	default:
		return munmap(s->map, s->size);
	}
}

TEST_F_TIMEOUT(release, frees_healthy_pages_despite_failures, SLOW)
{
	struct subject *s = &self->s;
	unsigned int nth = 0;
	bool failed;

	do {
		nth++;
		listen_to_kernel();
		leave_available(_metadata, s, 1);
		open_one(_metadata, s);
		lose(_metadata, s, 0);
		lose(_metadata, s, s->nr_raw / 2);
		if (variant->how == BY_CLOSE)
			unmap_file(s);
		if (variant->how == BY_MUNMAP)
			close(s->fd);

		ASSERT_TRUE(fail_all_kinds());
		ASSERT_TRUE(fail_allocation(nth));
		if (end_life(s, variant->how)) {
			failed = has_failed();
			/* A failed attempt changes nothing. */
			ASSERT_EQ(ENOMEM, errno);
			EXPECT_TRUE(failed);
			EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
			EXPECT_EQ(0, nr_changed_pages(s));
			expect_pool(_metadata, s, 0, 1);
			ASSERT_EQ(0, end_life(s, variant->how));
		} else {
			failed = has_failed();
		}
		restore_settings();

		expect_released(_metadata, s);
		if (variant->how == BY_TRUNCATION || variant->how == BY_PUNCHING) {
			unmap_file(s);
			close(s->fd);
		}
		s->map = NULL;
		expect_pool(_metadata, s, 1, 0);
		EXPECT_EQ(0, nr_said("stays out of use"));
		if (_metadata->exit_code)
			ASSERT_EQ(KSFT_PASS, _metadata->exit_code);
	} while (failed && nth < 100);
	EXPECT_FALSE(failed);
	TH_LOG("%u allocations have failed", nth - 1);
}

/*
 * A hole in the middle of what is reserved takes memory to describe it
 */

FIXTURE_SUBJECT(hole);

FIXTURE_VARIANTS(hole, simulated)

#define NR_AROUND	9

FIXTURE_SETUP(hole)
{
	prepare_to_fail(_metadata, &self->s, SZ_2M, variant->injector, NR_AROUND);
	if (!_metadata->exit_code)
		open_subject(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
}

TEST_F_TIMEOUT(hole, without_memory_loses_no_reservation, SLOW)
{
	struct subject *s = &self->s;
	const unsigned long last = NR_AROUND - 2;
	unsigned long i;

	/* The file has a little memory in reserve: use it up. */
	for (i = 1; i < last; i += 2)
		ASSERT_EQ(0, punch(s, i * s->size, s->size));
	expect_change(_metadata, s, 0, -(NR_AROUND - 3), 0, 0);

	lose(_metadata, s, last * s->nr_raw + 1);
	ASSERT_TRUE(fail_all_kinds());
	ASSERT_TRUE(fail_allocation(1));
	EXPECT_EQ(0, punch(s, last * s->size, s->size));
	EXPECT_TRUE(has_failed());

	/* The place of the hugepage is reserved, as if it had not been used yet. */
	expect_change(_metadata, s, -1, -(NR_AROUND - 3), 1, 0);
	EXPECT_EQ(0, nr_said("may go negative"));
	expect_all_come_back(_metadata, s, last);
	EXPECT_TRUE(try_write(s->map + last * s->size));
	expect_change(_metadata, s, -1, -(NR_AROUND - 2), 0, 0);
	empty_file(_metadata, s);
	expect_change(_metadata, s, -1, -1, 0, 0);
}

/*
 * Struct pages that can't be restored
 */

FIXTURE_SUBJECT(not_restored);

FIXTURE_VARIANTS(not_restored, simulated_and_mce)

FIXTURE_SETUP(not_restored)
{
	prepare_to_fail(_metadata, &self->s, SZ_2M, variant->injector, 1);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, true);
	if (!_metadata->exit_code)
		open_one(_metadata, &self->s);
}

/* The hugepage stays out of use, as workers get no memory to restore its struct pages. */
static void expect_unrestored(struct __test_metadata *_metadata, struct subject *s)
{
	empty_file(_metadata, s);
	expect_pool(_metadata, s, 1, 0);
	expect_out_for_good(_metadata, s, 0, NOT_RESTORED);
	feed_workers();
	expect_pool(_metadata, s, 1, 0);
	EXPECT_EQ(s->memmap - s->memmap_less, nr_memmap());
}

TEST_F_TIMEOUT(not_restored, hugepage_stays_out_of_use, SLOW)
{
	struct subject *s = &self->s;

	lose_samples(_metadata, s);
	ASSERT_TRUE(starve_workers(0));
	expect_unrestored(_metadata, s);
}

TEST_F_TIMEOUT(not_restored, half_is_not_freed, SLOW)
{
	struct subject *s = &self->s;

	if (s->memmap_less < 3)
		SKIP(return, "there is little to restore");
	lose_samples(_metadata, s);
	ASSERT_TRUE(starve_workers(s->memmap_less / 2));
	expect_unrestored(_metadata, s);
}

TEST_F_TIMEOUT(not_restored, surplus_hugepage_stays_out_of_use, SLOW)
{
	struct subject *s = &self->s;

	if (!pool_is_ours(s))
		SKIP(return, "others use hugepages");
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 0));
	expect_change(_metadata, s, 0, -1, 0, 1);
	lose_samples(_metadata, s);
	ASSERT_TRUE(starve_workers(0));
	empty_file(_metadata, s);
	expect_change(_metadata, s, -1, -1, 0, 0);
	expect_out_for_good(_metadata, s, 0, NOT_RESTORED);
	feed_workers();
	expect_change(_metadata, s, -1, -1, 0, 0);
}

TEST_F_TIMEOUT(not_restored, hugepage_can_lose_more_pages, SLOW)
{
	struct subject *s = &self->s;
	unsigned long kb = psize() >> 10;

	lose(_metadata, s, 3);
	ASSERT_TRUE(starve_workers(0));
	empty_file(_metadata, s);
	expect_out_for_good(_metadata, s, 0, NOT_RESTORED);
	feed_workers();

	/* Known is known, and a new one is counted. */
	EXPECT_EQ(-EHWPOISON, write_pfn(DEBUGFS_CORRUPT_PFN, s->head[0] + 3));
	expect_corrupted(_metadata, s);
	s->corrupted += kb;
	EXPECT_EQ(0, write_pfn(DEBUGFS_CORRUPT_PFN, s->head[0] + 4));
	expect_corrupted(_metadata, s);
	expect_pool(_metadata, s, 1, 0);
	expect_not_unpoisoned(_metadata, s->head[0]);
}

TEST_F_TIMEOUT(not_restored, unrecorded_one_stays_out_of_use, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 3);
	lose_unrecorded(_metadata, s, 4);
	ASSERT_TRUE(starve_workers(0));
	empty_file(_metadata, s);
	expect_out_for_good(_metadata, s, 0, NOT_ALL_KNOWN);
	feed_workers();
	expect_pool(_metadata, s, 1, 0);
}

/* As on stock, the hugepage returns to the pool and counts as surplus. */
TEST_F_TIMEOUT(not_restored, healthy_one_returns_to_the_pool, SLOW)
{
	struct subject *s = &self->s;

	if (!pool_is_ours(s))
		SKIP(return, "others use hugepages");
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 0));
	ASSERT_TRUE(starve_workers(0));
	empty_file(_metadata, s);
	wait_until(pool_get(s->size, "nr_hugepages") == 1, 20000);
	feed_workers();
	expect_change(_metadata, s, 0, 0, 0, 1);
	EXPECT_EQ(0, nr_said("stays out of use"));

	/* The hugepage leaves the pool as soon as there is memory. */
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 1));
	expect_change(_metadata, s, 0, 0, 0, 0);
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 0));
	expect_change(_metadata, s, -1, -1, 0, 0);
	EXPECT_EQ(s->memmap, nr_memmap());
}

/*
 * A free hugepage with lost pages that can't leave the pool for want of memory: it
 * goes back there, and is tried again later.
 */

FIXTURE_SUBJECT(retried);

FIXTURE_SETUP(retried)
{
	prepare_to_fail(_metadata, &self->s, SZ_2M, &by_pfn, 1);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, true);
}

/* Take a hugepage out of the pool.  There is no memory to do so. */
static void shrink_in_vain(struct __test_metadata *_metadata, struct subject *s)
{
	int pool = open(pool_path(s->size, "nr_hugepages"), O_WRONLY);
	int probability = open(FAIL_PAGE "probability", O_WRONLY);
	char text[24];
	int len, ret;

	ASSERT_LE(0, pool);
	ASSERT_LE(0, probability);
	ASSERT_TRUE(fail_all_kinds());
	ASSERT_TRUE(write_text(FAIL_PAGE "task-filter", "Y"));
	ASSERT_TRUE(write_text(FAIL_PAGE "times", "-1"));
	ASSERT_TRUE(write_text("/proc/thread-self/make-it-fail", "1"));
	len = snprintf(text, sizeof(text), "%ld", s->before.nr - s->before.surplus - 1);
	ASSERT_EQ(3, write(probability, "100", 3));
	ret = write(pool, text, len);
	ASSERT_EQ(1, write(probability, "0", 1));
	ASSERT_EQ(len, ret);
	ASSERT_TRUE(write_text("/proc/thread-self/make-it-fail", "0"));
	close(pool);
	close(probability);

	/* Still there, and one too many. */
	expect_change(_metadata, s, 0, 0, 0, 1);
	expect_corrupted(_metadata, s);
	EXPECT_TRUE(is_poisoned(s->head[0]));
}

/* Retry the shrink, now that allocations succeed again. */
static void shrink_again(struct __test_metadata *_metadata, struct subject *s)
{
	pool_set(s->size, "nr_hugepages", s->before.nr - s->before.surplus);
	expect_change(_metadata, s, 0, 0, 0, 0);
	pool_set(s->size, "nr_hugepages", s->before.nr - s->before.surplus - 1);
	expect_change(_metadata, s, -1, -1, 0, 0);
}

TEST_F_TIMEOUT(retried, lost_pages_are_left_out, SLOW)
{
	struct subject *s = &self->s;

	poison_free_hugepage(_metadata, s, 0, NR_SAMPLES);
	shrink_in_vain(_metadata, s);
	shrink_again(_metadata, s);
	EXPECT_EQ(s->memmap, nr_memmap());
	expect_all_come_back(_metadata, s, 0);
	EXPECT_EQ(0, nr_said("stays out of use"));
}

TEST_F_TIMEOUT(retried, unknown_loss_keeps_it_out_of_use, SLOW)
{
	struct subject *s = &self->s;

	poison_free_hugepage(_metadata, s, 0, 1);
	note_lost(_metadata, s, 5);
	ASSERT_TRUE(fail_allocation(1));
	inject(s, 5);
	ASSERT_TRUE(has_failed());
	expect_corrupted(_metadata, s);

	shrink_in_vain(_metadata, s);
	shrink_again(_metadata, s);
	expect_out_for_good(_metadata, s, 0, NOT_ALL_KNOWN);
}

/*
 * A 1 GiB hugepage that a worker restores and frees, which takes long, and what is lost
 * meanwhile
 */

FIXTURE_SUBJECT(freeing);

FIXTURE_SETUP(freeing)
{
	prepare_to_fail(_metadata, &self->s, SZ_1G, &by_pfn, 1);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, true);
}

/* The worker is on this CPU: look on from another one. */
static void let_it_leave(struct __test_metadata *_metadata, struct subject *s)
{
	cpu_set_t other;

	ASSERT_TRUE(hold_cpu(true));
	empty_file(_metadata, s);
	CPU_ZERO(&other);
	CPU_SET((sched_getcpu() + 1) % sysconf(_SC_NPROCESSORS_ONLN), &other);
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(other), &other));
	ASSERT_TRUE(hold_cpu(false));
}

TEST_F_TIMEOUT(freeing, page_that_is_hit_again_counts_once, 2 * SLOW)
{
	struct subject *s = &self->s;
	unsigned long last = s->nr_raw - 1;
	unsigned int tries;

	for (tries = 0; tries < 8; tries++) {
		open_one(_metadata, s);
		lose(_metadata, s, last);
		let_it_leave(_metadata, s);
		do {
			ASSERT_TRUE(read_kpageflags(s->head[0], 1, s->flags));
		} while (s->flags[0] & KPF_HUGE);
		/* The hugepage was split, but this page isn't free yet. */
		EXPECT_NE(0, inject(s, last));
		expect_out_of_use(_metadata, s, 0);
		expect_rest_is_free(_metadata, s, 0);
		expect_released(_metadata, s);
		if (_metadata->exit_code)
			return;
		if (nr_said("%#lx: recovery action for get hwpoison page",
			    s->head[0] + last))
			break;
		close(s->fd);
		leave_available(_metadata, s, 1);
	}
	EXPECT_NE(8, tries);
}

TEST_F_TIMEOUT(freeing, unknown_loss_keeps_it_out_of_use, 2 * SLOW)
{
	struct subject *s = &self->s;
	unsigned int tries;
	time_t end;
	long kb;

	for (tries = 0; tries < 8; tries++) {
		open_one(_metadata, s);
		lose(_metadata, s, 3);
		kb = meminfo_kb("MemFree") -
		     s->memmap_less * (long)(psize() >> 10) / 4;
		let_it_leave(_metadata, s);
		/* Some of the struct pages were restored. */
		end = time(NULL) + 60;
		while (meminfo_kb("MemFree") > kb && time(NULL) < end)
			;
		note_lost(_metadata, s, 4);
		inject_unrecorded(raw_pfn(s, 4));
		if (has_failed())
			break;
		/* Too late: it has been freed. */
		expect_released(_metadata, s);
		if (_metadata->exit_code)
			return;
		close(s->fd);
		leave_available(_metadata, s, 1);
	}
	ASSERT_NE(8, tries);
	ASSERT_EQ(1, nr_said("%#lx: no memory to record the lost page", raw_pfn(s, 4)));

	expect_out_for_good(_metadata, s, 0, NOT_ALL_KNOWN);
	expect_pool(_metadata, s, 1, 0);
	EXPECT_EQ(s->memmap, nr_memmap());
}

/* A hugepage from CMA goes back there when its struct pages can be restored. */

FIXTURE(retried_cma)
{
	struct subject s;
	long cma_pages;			/* what CMA can allocate without hugepages */
};

FIXTURE_SETUP(retried_cma)
{
	struct subject *s = &self->s;

	prepare_to_fail(_metadata, s, SZ_1G, &by_pfn, 1);
	if (_metadata->exit_code)
		return;
	leave_available(_metadata, s, 0);
	self->cma_pages = nr_cma_pages();
	if (self->cma_pages < 0)
		SKIP(return, "needs CONFIG_CMA_SYSFS");
	setup_optimized(_metadata, s, true);
	/* Nodes take turns, and not all have an area of CMA. */
	if (!_metadata->exit_code && self->cma_pages == nr_cma_pages())
		setup_optimized(_metadata, s, true);
	if (!_metadata->exit_code && self->cma_pages - nr_cma_pages() != (long)s->nr_raw)
		SKIP(return, "needs hugetlb_cma= on the command line");
}

FIXTURE_TEARDOWN_SUBJECT(retried_cma);

TEST_F_TIMEOUT(retried_cma, memory_returns_to_cma, SLOW)
{
	struct subject *s = &self->s;

	poison_free_hugepage(_metadata, s, 0, 1);
	shrink_in_vain(_metadata, s);
	EXPECT_EQ(self->cma_pages - (long)s->nr_raw, nr_cma_pages());
	shrink_again(_metadata, s);
	EXPECT_EQ(self->cma_pages, nr_cma_pages());
}

/* In debugfs, the file of the area of CMA that begins with that page. */
static bool find_cma_file(unsigned long pfn, const char *name, char path[PATH_MAX])
{
	bool found = false;
	glob_t areas;
	long base;
	size_t i;

	if (glob(CMA_AREAS "/*/base_pfn", 0, NULL, &areas))
		return false;
	for (i = 0; i < areas.gl_pathc && !found; i++) {
		if (!read_long(areas.gl_pathv[i], &base) || base != (long)pfn)
			continue;
		snprintf(path, PATH_MAX, "%.*s%s",
			 (int)(strlen(areas.gl_pathv[i]) - strlen("base_pfn")),
			 areas.gl_pathv[i], name);
		found = true;
	}
	globfree(&areas);
	return found;
}

/* Make as many 1 GiB hugepages as there may be.  Is that one of them? */
static bool is_made_again(struct subject *s)
{
	uint64_t flags = 0;

	pool_set(SZ_1G, "nr_hugepages", meminfo_kb("MemTotal") / (SZ_1G >> 10));
	read_kpageflags(s->head[0] + 2, 1, &flags);
	pool_set(SZ_1G, "nr_hugepages", s->before.nr - 1);
	return flags & KPF_HUGE;
}

TEST_F_TIMEOUT(retried_cma, healthy_pages_can_be_allocated, SLOW)
{
	const long nr_small = SZ_1G / SZ_2M;
	char alloc[PATH_MAX], free[PATH_MAX], text[16];
	struct subject *s = &self->s;
	long nr = 0;

	open_one(_metadata, s);
	if (!find_cma_file(s->head[0], "alloc", alloc) ||
	    !find_cma_file(s->head[0], "free", free))
		SKIP(return, "needs CONFIG_CMA_DEBUGFS");
	/* In the first, second, middle and last 2 MiB. */
	lose_samples(_metadata, s);
	empty_file(_metadata, s);
	wait_for_release(s, 1);
	expect_out_of_use(_metadata, s, 0);
	/* A new size of the pool waits for the worker that frees it. */
	pool_set(SZ_1G, "nr_hugepages", pool_read(SZ_1G).nr);
	EXPECT_EQ(self->cma_pages, nr_cma_pages());
	EXPECT_EQ(s->memmap, nr_memmap());
	EXPECT_FALSE(is_made_again(s));

	snprintf(text, sizeof(text), "%lu", SZ_2M / psize());
	while (nr < nr_small && write_text(alloc, text))
		nr++;
	EXPECT_EQ(nr_small - 4, nr);
	expect_out_of_use(_metadata, s, 0);
	expect_corrupted(_metadata, s);
	snprintf(text, sizeof(text), "%lu", nr * (SZ_2M / psize()));
	EXPECT_TRUE(write_text(free, text));

	expect_all_come_back(_metadata, s, 0);
	EXPECT_TRUE(is_made_again(s));
}

TEST_HARNESS_MAIN
