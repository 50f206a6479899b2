// SPDX-License-Identifier: GPL-2.0
/*
 * The end of the hugepages of a memfd made with MFD_MF_KEEP_UE_MAPPED, and all that holds
 * one longer.
 *
 * Whatever holds a kept hugepage, it is given up when the last of them lets go,
 * and not before: then its lost pages stay out of use and all others are free.
 *
 * The fixtures:
 *   kept	one kept hugepage, and each way to let go of it
 *   plain	the same without the flag, also on kernels that lack the flag
 *   truncated	several poisoned hugepages in one truncation, kept and plain
 *   pinned	pipes, long-term pins and rings outlive the file
 *   pinned_plain	a plain hugepage that is hit when only they hold it
 *   in_flight	so does direct I/O
 *   several	hugepages with many users, which let go in any order
 *   iommu	memory that iommufd gives to devices
 *
 * in_flight makes a block device of its own, with CONFIG_BLK_DEV_NULL_BLK and
 * CONFIG_CONFIGFS_FS.
 */

#define _GNU_SOURCE
#include "mfr_harness.h"
#include "../../../../drivers/iommu/iommufd/iommufd_test.h"
#include "../../../../mm/gup_test.h"
#include <linux/vm_sockets.h>
#include <sys/uio.h>

/* Missing in the headers of 6.12 */
#ifndef IOMMU_IOAS_MAP_FILE
struct iommu_ioas_map_file {
	__u32 size;
	__u32 flags;
	__u32 ioas_id;
	__s32 fd;
	__aligned_u64 start;
	__aligned_u64 length;
	__aligned_u64 iova;
};

#define IOMMU_IOAS_MAP_FILE	_IO(IOMMUFD_TYPE, 0x8f)
#endif

/* Hugepages in files that have several. */
#define NR_SEVERAL		4

/* Lose a page that no process maps: no signal is sent. */
static void lose_unmapped(struct __test_metadata *_metadata, struct subject *s,
			  unsigned long nr)
{
	note_lost(_metadata, s, nr);
	sigbus.nr = 0;
	ASSERT_EQ(0, by_address(s)->inject(NULL, raw_pfn(s, nr)));
	EXPECT_EQ(0, sigbus.nr);
	expect_corrupted(_metadata, s);
}

/* Take all hugepages that are to be had: those of the subject are not among them. */
static void expect_not_handed_out(struct __test_metadata *_metadata, struct subject *s)
{
	struct pool pool = pool_read(s->size);
	long i, nr = pool.free - pool.resv;
	unsigned long pfn, j;
	char *map;
	int fd;

	ASSERT_LT(0, nr);
	fd = create_memfd(s->size, 0);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, nr * s->size));
	map = mmap(NULL, nr * s->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	for (i = 0; i < nr; i++) {
		ASSERT_TRUE(try_write(map + i * s->size));
		pfn = mapped_pfn(map + i * s->size);
		for (j = 0; j < s->nr_huge; j++)
			EXPECT_NE(s->head[j], pfn);
	}
	munmap(map, nr * s->size);
	close(fd);
}

/* The file is gone, its only hugepage isn't. */
static void expect_held(struct __test_metadata *_metadata, struct subject *s)
{
	expect_pool(_metadata, s, 0, 1);
	expect_corrupted(_metadata, s);
	expect_whole(_metadata, s, 0);
	expect_not_handed_out(_metadata, s);
	expect_pool(_metadata, s, 0, 1);
}

/*
 * The last user of a hugepage lets go
 */

FIXTURE_SUBJECT(kept);

FIXTURE_VARIANTS(kept, all_2m_and_1g)
FIXTURE_VARIANT_ADD_SIZES(kept)

FIXTURE_SETUP_KEPT(kept, variant->size, variant->injector, 1, MFD_ALLOW_SEALING);

TEST_F_TIMEOUT(kept, last_pin_frees_all_but_lost_pages, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	struct ring r;

	if (!make_ring(&r))
		SKIP(return, "needs io_uring");
	ASSERT_EQ(0, register_buffer(&r, raw_page(s, nr - 1), 3 * psize()));
	lose(_metadata, s, nr);

	empty_file(_metadata, s);
	EXPECT_EQ(0, close(s->fd));
	expect_pool(_metadata, s, 0, 1);
	expect_corrupted(_metadata, s);
	/* The release also knows of a page that is lost only now. */
	note_lost(_metadata, s, nr + 5);
	EXPECT_EQ(0, inject_corrupt_pfn(NULL, raw_pfn(s, nr + 5)));
	expect_corrupted(_metadata, s);

	destroy_ring(&r);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, truncation_frees_all_but_lost_pages, SLOW)
{
	struct subject *s = &self->s;

	lose_samples(_metadata, s);
	/* The mapping stays, with nothing in it. */
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	EXPECT_FALSE(is_mapped(s->map));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, punch_frees_all_but_lost_pages, SLOW)
{
	struct subject *s = &self->s;

	lose_samples(_metadata, s);
	EXPECT_EQ(0, punch(s, 0, s->size));
	EXPECT_FALSE(is_mapped(s->map));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, last_close_frees_all_but_lost_pages, SLOW)
{
	struct subject *s = &self->s;

	lose_samples(_metadata, s);
	unmap_file(s);
	expect_pool(_metadata, s, 0, 1);
	EXPECT_EQ(0, close(s->fd));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, last_munmap_frees_all_but_lost_pages, SLOW)
{
	struct subject *s = &self->s;

	lose_samples(_metadata, s);
	EXPECT_EQ(0, close(s->fd));
	expect_pool(_metadata, s, 0, 1);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	unmap_file(s);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, many_lost_pages_are_left_out, SLOW)
{
	struct subject *s = &self->s;

	lose_many(_metadata, s);
	expect_end(_metadata, s);
}

/* Leave the file to a child, which loses pages and then says so. */
static pid_t leave_to_child(struct __test_metadata *_metadata, struct subject *s,
			    bool exits)
{
	struct helper h;

	ASSERT_TRUE(start_helper(&h));
	if (!h.pid) {
		ASSERT_TRUE(wait_for_word(&h));
		lose_samples(_metadata, s);
		ASSERT_TRUE(tell(&h));
		if (exits)
			_exit(KSFT_PASS);
		for (;;)
			pause();
	}

	/* The subject is shared with the child, its address with nobody. */
	munmap(s->map, s->size);
	close(s->fd);
	ASSERT_TRUE(tell(&h));
	ASSERT_TRUE(wait_for_word(&h));
	return h.pid;
}

TEST_F_TIMEOUT(kept, exit_frees_all_but_lost_pages, SLOW)
{
	struct subject *s = &self->s;

	wait_for_child(_metadata, leave_to_child(_metadata, s, true));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, SIGKILL_frees_all_but_lost_pages, SLOW)
{
	struct subject *s = &self->s;
	pid_t pid = leave_to_child(_metadata, s, false);
	int status;

	expect_pool(_metadata, s, 0, 1);
	ASSERT_EQ(0, kill(pid, SIGKILL));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFSIGNALED(status));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, refault_after_punch_gives_a_healthy_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long old = s->head[0];
	unsigned long i, nr_dirty = 0;

	if (!need_more_hugepages(s, 1))
		SKIP(return, "can't get 2 hugepages of %lu kB", s->size >> 10);

	lose_samples(_metadata, s);
	ASSERT_EQ(0, punch(s, 0, s->size));
	expect_pool(_metadata, s, 1, 0);

	for (i = 0; i < s->nr_raw; i++) {
		/* Each one must be there and be cleared. */
		if (!try_read(raw_page(s, i)) || *(uint64_t *)raw_page(s, i))
			nr_dirty++;
	}
	EXPECT_EQ(0, nr_dirty);
	s->head[0] = mapped_pfn(s->map);
	EXPECT_NE(old, s->head[0]);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_FALSE(is_poisoned(s->head[0]));
	for (i = 0; i < NR_SAMPLES; i++)
		EXPECT_TRUE(try_write(raw_page(s, sample(s, i))));
	expect_pool(_metadata, s, 1, 1);
	expect_corrupted(_metadata, s);

	/* The old one was released, the fresh one is nothing special. */
	s->head[0] = old;
	expect_all_come_back(_metadata, s, 0);
	empty_file(_metadata, s);
	expect_pool(_metadata, s, 1, 0);
}

/* Free memory in blocks smaller than @size. */
static long fragments_kb(unsigned long size)
{
	FILE *f = fopen("/proc/buddyinfo", "r");
	long kb = 0;
	int node;

	while (f && fscanf(f, " Node %d, zone %*s", &node) == 1) {
		unsigned long block = psize();
		long nr;

		for (; fscanf(f, "%ld", &nr) == 1; block *= 2)
			if (block < size)
				kb += nr * (block >> 10);
	}
	if (f)
		fclose(f);
	return kb;
}

TEST_F_TIMEOUT(kept, lost_pages_are_never_allocated, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr_used = 0;
	long min_kb, keep_kb, nr;
	unsigned long i;
	size_t len;
	char *map;
	int node;

	if (!pool_exists(SZ_2M))
		SKIP(return, "no hugepages of 2 MiB here");

	/* All, that is, but what the watermarks need to keep the peace. */
	ASSERT_TRUE(read_long("/proc/sys/vm/min_free_kbytes", &min_kb));
	keep_kb = 4 * min_kb + (32 << 10);
	if (meminfo_kb("MemFree") < keep_kb + (256 << 10))
		SKIP(return, "needs %ld MiB of free memory", (keep_kb >> 10) + 256);
	ASSERT_TRUE(write_long("/proc/self/oom_score_adj", 1000));

	node = move_page(s->map, -1);
	lose_samples(_metadata, s);
	empty_file(_metadata, s);
	wait_for_release(s, 1);
	expect_pool(_metadata, s, 1, 0);
	/* The healthy pages must not be left on lists of other CPUs. */
	expect_rest_is_free(_metadata, s, 0);

	/* Take memory as small pages first: fragments are used before all else. */
	len = (fragments_kb(SZ_2M) + (64 << 10)) << 10;
	map = mmap(NULL, len, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, map);
	madvise(map, len, MADV_NOHUGEPAGE);
	bind_to_node(map, len, node);
	ASSERT_EQ(0, madvise(map, len, MADV_POPULATE_WRITE));
	expect_out_of_use(_metadata, s, 0);

	/* Take the large blocks as hugepages: nothing is cleared. */
	nr = pool_get(SZ_2M, "nr_hugepages");
	pool_set(SZ_2M, "nr_hugepages",
		 nr + (meminfo_kb("MemFree") - keep_kb) / (long)(SZ_2M >> 10));
	ASSERT_LT(nr, pool_get(SZ_2M, "nr_hugepages"));
	expect_out_of_use(_metadata, s, 0);
	for (i = 0; i < s->nr_raw; i++)
		nr_used += !!(s->flags[i] & KPF_IN_USE);

	/* Most of the healthy pages must be in use, here or elsewhere. */
	EXPECT_LT(0, nr_used);
	if (s->nr_raw >= 512)
		EXPECT_LT(s->nr_raw / 2 - s->nr_lost, nr_used);

	munmap(map, len);
	pool_set(SZ_2M, "nr_hugepages", nr);
	expect_released(_metadata, s);
}

/*
 * The same without the flag
 */

FIXTURE_SUBJECT(plain);

FIXTURE_VARIANTS(plain, all_2m_and_1g)
FIXTURE_VARIANT_ADD_SIZES(plain)

FIXTURE_SETUP_PLAIN(plain);

TEST_F_TIMEOUT(plain, hugepage_stays_out_of_use_until_unpoisoned, SLOW)
{
	struct subject *s = &self->s;

	lose_hugepage(_metadata, s, s->nr_raw / 2);
	empty_file(_metadata, s);

	/* The hugepage counts in the pool, but is neither free nor in use. */
	expect_pool(_metadata, s, 0, 1);
	expect_corrupted(_metadata, s);
	EXPECT_TRUE(is_poisoned(s->head[0]));

	/* After a machine check the kernel unpoisons nothing: it stays out until reboot. */
	if (undo->mce_seen) {
		EXPECT_EQ(-EOPNOTSUPP, unpoison(s->head[0]));
		expect_pool(_metadata, s, 0, 1);
		EXPECT_TRUE(is_poisoned(s->head[0]));
		return;
	}

	/* Only the head page unpoisons the hugepage, as a whole. */
	EXPECT_EQ(-EBUSY, unpoison(raw_pfn(s, s->nr_raw / 2)));
	EXPECT_EQ(0, unpoison(s->head[0]));
	s->nr_lost = 0;
	expect_corrupted(_metadata, s);
	expect_pool(_metadata, s, 0, 0);
}

/*
 * Several poisoned hugepages in one truncation
 */

FIXTURE_SUBJECT(truncated);

FIXTURE_VARIANT(truncated)
{
	const struct injector *injector;
	unsigned int flags;
};

FIXTURE_VARIANT_ADD(truncated, kept_madvise)
{
	.injector = &by_madvise,
	.flags = MFD_MF_KEEP_UE_MAPPED,
};

FIXTURE_VARIANT_ADD(truncated, kept_corrupt_pfn)
{
	.injector = &by_pfn,
	.flags = MFD_MF_KEEP_UE_MAPPED,
};

FIXTURE_VARIANT_ADD(truncated, plain_madvise) { .injector = &by_madvise };
FIXTURE_VARIANT_ADD(truncated, plain_corrupt_pfn) { .injector = &by_pfn };

FIXTURE_SETUP(truncated)
{
	if (variant->flags && !kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, SZ_2M, variant->injector, NR_TRUNCATED);
	if (!_metadata->exit_code)
		open_subject(_metadata, &self->s, variant->flags);
}

/* Poison each hugepage from @first on, @step apart, then truncate them all. */
static void poison_and_truncate(struct __test_metadata *_metadata,
				FIXTURE_DATA(truncated) * self,
				const FIXTURE_VARIANT(truncated) * variant,
				unsigned long first, unsigned long step)
{
	struct subject *s = &self->s;
	unsigned long i, nr = 0;

	for (i = first; i < s->nr_huge; i += step, nr++) {
		unsigned long page = i * s->nr_raw + i % s->nr_raw;

		if (variant->flags)
			lose(_metadata, s, page);
		else
			lose_hugepage(_metadata, s, page);
	}

	empty_file(_metadata, s);
	expect_corrupted(_metadata, s);

	if (variant->flags) {
		/* Kept hugepages leave the pool: their healthy pages are free. */
		expect_pool(_metadata, s, nr, 0);
		for (i = first; i < s->nr_huge; i += step)
			expect_all_come_back(_metadata, s, i);
		expect_pool(_metadata, s, nr, 0);
	} else {
		/* Plain hugepages stay in the pool, out of use as a whole. */
		expect_pool(_metadata, s, 0, nr);
		for (i = first; i < s->nr_huge; i += step)
			EXPECT_EQ(0, unpoison(s->head[i]));
		expect_pool(_metadata, s, 0, 0);
	}
	EXPECT_EQ(s->corrupted, hardware_corrupted());
}

TEST_F_TIMEOUT(truncated, first_hugepage_is_poisoned, SLOW)
{
	poison_and_truncate(_metadata, self, variant, 0, NR_TRUNCATED);
}

TEST_F_TIMEOUT(truncated, middle_hugepage_is_poisoned, SLOW)
{
	poison_and_truncate(_metadata, self, variant, NR_TRUNCATED / 2, NR_TRUNCATED);
}

TEST_F_TIMEOUT(truncated, last_hugepage_is_poisoned, SLOW)
{
	poison_and_truncate(_metadata, self, variant, NR_TRUNCATED - 1, NR_TRUNCATED);
}

TEST_F_TIMEOUT(truncated, first_middle_and_last_are_poisoned, SLOW)
{
	poison_and_truncate(_metadata, self, variant, 0, (NR_TRUNCATED - 1) / 3);
}

TEST_F_TIMEOUT(truncated, every_other_hugepage_is_poisoned, SLOW)
{
	poison_and_truncate(_metadata, self, variant, 1, 2);
}

TEST_F_TIMEOUT(truncated, all_hugepages_are_poisoned, SLOW)
{
	poison_and_truncate(_metadata, self, variant, 0, 1);
}

/*
 * Pins that outlive the file
 */

FIXTURE_SUBJECT(pinned);

FIXTURE_VARIANTS(pinned, simulated_and_mce_2m)
FIXTURE_VARIANT_ADD_SIZES(pinned)

FIXTURE_SETUP(pinned)
{
	setup_kept(_metadata, &self->s, variant->size, variant->injector, 1, 0);
	if (_metadata->exit_code)
		return;
	/* Other hugepages must be free, so that this one isn't needed. */
	if (!need_more_hugepages(&self->s, 2))
		SKIP(return, "can't get 3 hugepages");
}

TEST_F_TIMEOUT(pinned, pipe_outlives_file_and_mapping, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	unsigned long ps = psize();
	char *buf = malloc(2 * ps);
	int pipefd[2];

	ASSERT_NE(NULL, buf);
	ASSERT_EQ(0, pipe(pipefd));
	/* Before their neighbour is lost, and afterwards. */
	EXPECT_EQ(2 * ps, splice_pages(pipefd[1], raw_page(s, nr - 2), 2 * ps));
	lose(_metadata, s, nr);
	EXPECT_EQ(2 * ps, splice_pages(pipefd[1], raw_page(s, nr + 1), 2 * ps));
	let_go(_metadata, s);

	expect_held(_metadata, s);
	EXPECT_EQ(2 * ps, read(pipefd[0], buf, 2 * ps));
	EXPECT_TRUE(page_is_intact(buf, nr - 2));
	EXPECT_TRUE(page_is_intact(buf + ps, nr - 1));
	EXPECT_EQ(ps, read(pipefd[0], buf, ps));
	EXPECT_TRUE(page_is_intact(buf, nr + 1));
	expect_held(_metadata, s);

	/* A page is held until its last byte was read. */
	EXPECT_EQ(ps - 1, read(pipefd[0], buf, ps - 1));
	expect_held(_metadata, s);
	EXPECT_EQ(1, read(pipefd[0], buf + ps - 1, 1));
	EXPECT_TRUE(page_is_intact(buf, nr + 2));
	expect_released(_metadata, s);
	free(buf);
}

TEST_F_TIMEOUT(pinned, closed_pipe_releases_its_pages, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	int pipefd[2];

	ASSERT_EQ(0, pipe(pipefd));
	lose(_metadata, s, nr);
	EXPECT_EQ(4 * psize(), splice_pages(pipefd[1], raw_page(s, nr + 1), 4 * psize()));
	let_go(_metadata, s);
	expect_held(_metadata, s);
	close(pipefd[1]);
	expect_held(_metadata, s);
	close(pipefd[0]);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(pinned, long_term_pin_outlives_file_and_mapping, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	unsigned long ps = psize();
	char *buf = malloc(2 * ps);
	int fd = open_pin();
	struct ring r;

	ASSERT_NE(NULL, buf);
	if (fd < 0 || !make_ring(&r))
		SKIP(return, "needs CONFIG_GUP_TEST and io_uring");
	ASSERT_EQ(0, register_buffer(&r, s->map, s->size));
	ASSERT_EQ(0, pin_range(fd, raw_page(s, nr + 1), 2 * ps, 0));
	lose(_metadata, s, nr);
	lose(_metadata, s, 0);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	let_go(_metadata, s);

	expect_held(_metadata, s);
	EXPECT_EQ(0, read_pinned(fd, buf));
	EXPECT_TRUE(page_is_intact(buf, nr + 1));
	EXPECT_TRUE(page_is_intact(buf + ps, nr + 2));
	destroy_ring(&r);
	expect_held(_metadata, s);
	EXPECT_EQ(0, read_pinned(fd, buf));
	EXPECT_TRUE(page_is_intact(buf, nr + 1));
	EXPECT_EQ(0, unpin_range(fd));
	expect_released(_metadata, s);
	free(buf);
}

TEST_F_TIMEOUT(pinned, long_term_pin_of_a_lost_page_is_refused, SLOW)
{
	const unsigned int all_flags = PIN_LONGTERM_TEST_FLAG_USE_WRITE |
				       PIN_LONGTERM_TEST_FLAG_USE_FAST;
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	unsigned long ps = psize();
	unsigned int flags, round;
	int fd = open_pin();

	if (fd < 0)
		SKIP(return, "needs CONFIG_GUP_TEST");
	lose(_metadata, s, nr);

	/* Through the page table, and through one that is filled on the way. */
	for (round = 0; round < 2; round++) {
		for (flags = 0; flags <= all_flags; flags++) {
			char *page;

			if (round)
				map_afresh(_metadata, s);
			page = raw_page(s, nr);
			EXPECT_EQ(-EFAULT, pin_range(fd, page, ps, flags));
			EXPECT_EQ(-EFAULT, pin_range(fd, page, 2 * ps, flags));
			EXPECT_EQ(-EFAULT, pin_range(fd, page - ps, 2 * ps, flags));
			EXPECT_EQ(-EFAULT, pin_range(fd, s->map, s->size, flags));
			EXPECT_EQ(0, pin_range(fd, s->map, nr * ps, flags));
			EXPECT_EQ(0, unpin_range(fd));
			EXPECT_EQ(0, pin_range(fd, page + ps, (nr - 1) * ps, flags));
			EXPECT_EQ(0, unpin_range(fd));
		}
	}

	/* A pin that failed holds nothing. */
	expect_end(_metadata, s);
}

/* The kernel can't take the page from its user, but does all that it can. */
TEST_F_TIMEOUT(pinned, error_in_a_pinned_page_is_handled, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	int fd = open_pin(), pipefd[2];
	long delayed, failed;

	if (fd < 0)
		SKIP(return, "needs CONFIG_GUP_TEST");
	delayed = mf_stat("delayed");
	failed = mf_stat("failed");
	ASSERT_EQ(0, pipe(pipefd));
	ASSERT_EQ(psize(), splice_pages(pipefd[1], raw_page(s, 5), psize()));
	lose(_metadata, s, 5);
	ASSERT_EQ(0, pin_range(fd, raw_page(s, nr), psize(), 0));
	lose(_metadata, s, nr);
	lose(_metadata, s, 1);
	EXPECT_EQ(delayed + 3, mf_stat("delayed"));
	EXPECT_EQ(failed, mf_stat("failed"));

	close(pipefd[0]);
	close(pipefd[1]);
	EXPECT_EQ(0, unpin_range(fd));
	expect_end(_metadata, s);
}

/* As on stock, users of a pin don't check whether the page is lost. */
TEST_F_TIMEOUT(pinned, lost_page_stays_accessible_by_its_pin, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	char *buf = malloc(psize());
	int fd = open_pin();

	ASSERT_NE(NULL, buf);
	if (fd < 0)
		SKIP(return, "needs CONFIG_GUP_TEST");
	ASSERT_EQ(0, pin_range(fd, raw_page(s, nr), psize(), 0));
	lose(_metadata, s, nr);
	EXPECT_EQ(0, read_pinned(fd, buf));
	EXPECT_TRUE(page_is_intact(buf, nr));

	EXPECT_EQ(0, unpin_range(fd));
	expect_end(_metadata, s);
	free(buf);
}

/*
 * Start a process that pins a part of the file through its own mapping, by a ring
 * and by @pin, an open file it shares with us. It ends when it is killed.
 */
static pid_t start_pinning(struct __test_metadata *_metadata, struct subject *s, int pin,
			   bool with_ring)
{
	unsigned long nr = s->nr_raw / 2;
	struct helper h;
	struct ring r;

	if (with_ring) {
		if (!make_ring(&r))
			SKIP(return 0, "needs io_uring");
		destroy_ring(&r);
	}
	ASSERT_TRUE(start_helper(&h));
	if (!h.pid) {
		if (with_ring && (!make_ring(&r) ||
				  register_buffer(&r, raw_page(s, nr + 1), 2 * psize())))
			_exit(KSFT_FAIL);
		if (pin >= 0 && pin_range(pin, raw_page(s, 1), psize(), 0))
			_exit(KSFT_FAIL);
		if (!tell(&h))
			_exit(KSFT_FAIL);
		for (;;)
			pause();
	}
	ASSERT_TRUE(wait_for_word(&h));
	close(h.line);
	return h.pid;
}

/* Live update, say, has to carry all of a file to the next kernel. */
TEST_F_TIMEOUT(pinned, file_with_a_lost_page_can_be_preserved, SLOW)
{
	struct subject *s = &self->s;
	struct pin_memfd_test pin = { .fd = s->fd, .size = s->nr_raw * psize() };
	int fd = open_pin();

	if (fd < 0)
		SKIP(return, "needs CONFIG_GUP_TEST");
	EXPECT_EQ(1, ioctl(fd, PIN_MEMFD_TEST, &pin));
	lose(_metadata, s, s->nr_raw / 2);

	/* The hugepage, be it asked for whole or for the lost page alone. */
	EXPECT_EQ(1, ioctl(fd, PIN_MEMFD_TEST, &pin));
	pin.start = s->nr_raw / 2 * psize();
	pin.size = psize();
	EXPECT_EQ(1, ioctl(fd, PIN_MEMFD_TEST, &pin));
	close(fd);

	/* The pins are gone. */
	empty_file(_metadata, s);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(pinned, truncation_by_another_process, SLOW)
{
	struct subject *s = &self->s;
	pid_t pid = start_pinning(_metadata, s, -1, true);

	if (!pid)
		return;
	lose(_metadata, s, s->nr_raw / 2);
	/* The other process keeps the descriptor and the mapping, both empty now. */
	let_go(_metadata, s);
	expect_held(_metadata, s);
	lose_unmapped(_metadata, s, 5);
	expect_held(_metadata, s);
	kill_child(_metadata, pid);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(pinned, ring_of_a_killed_process_is_released, SLOW)
{
	struct subject *s = &self->s;
	pid_t pid = start_pinning(_metadata, s, -1, true);

	if (!pid)
		return;
	lose(_metadata, s, s->nr_raw / 2);
	/* From now on the file, the mapping and the pin are all of one process. */
	unmap_file(s);
	EXPECT_EQ(0, close(s->fd));
	expect_pool(_metadata, s, 0, 1);
	kill_child(_metadata, pid);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(pinned, pin_of_a_dead_process_ends_in_another, SLOW)
{
	struct subject *s = &self->s;
	int fd = open_pin();
	pid_t pid;

	if (fd < 0)
		SKIP(return, "needs CONFIG_GUP_TEST");
	pid = start_pinning(_metadata, s, fd, false);
	lose(_metadata, s, s->nr_raw / 2);
	unmap_file(s);
	EXPECT_EQ(0, close(s->fd));
	kill_child(_metadata, pid);
	expect_held(_metadata, s);
	EXPECT_EQ(0, close(fd));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(pinned, errors_find_a_hugepage_held_by_a_pin, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	int fd = open_pin();
	long delayed;

	if (fd < 0)
		SKIP(return, "needs CONFIG_GUP_TEST");
	delayed = mf_stat("delayed");
	ASSERT_EQ(0, pin_range(fd, raw_page(s, nr + 1), psize(), 0));
	lose(_metadata, s, nr);
	let_go(_metadata, s);

	lose_unmapped(_metadata, s, 0);
	lose_unmapped(_metadata, s, s->nr_raw - 1);
	/* The pinned page itself can be lost, too. */
	lose_unmapped(_metadata, s, nr + 1);
	/* The page is lost, whether that was before the end of the file or after it. */
	EXPECT_EQ(by_address(s)->repeat_ret, by_address(s)->inject(NULL, raw_pfn(s, nr)));
	EXPECT_EQ(by_address(s)->repeat_ret, by_address(s)->inject(NULL, raw_pfn(s, 0)));
	EXPECT_EQ(delayed + 4, mf_stat("delayed"));
	expect_held(_metadata, s);

	EXPECT_EQ(0, unpin_range(fd));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(pinned, first_error_finds_a_spliced_hugepage, SLOW)
{
	struct subject *s = &self->s;
	int pipefd[2];

	ASSERT_EQ(0, pipe(pipefd));
	/* The least that can hold it: one reference. */
	ASSERT_EQ(psize(), splice_pages(pipefd[1], raw_page(s, 5), psize()));
	let_go(_metadata, s);
	expect_held(_metadata, s);
	lose_unmapped(_metadata, s, s->nr_raw / 2);
	expect_held(_metadata, s);
	close(pipefd[0]);
	close(pipefd[1]);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(pinned, healthy_hugepage_returns_to_the_pool, SLOW)
{
	struct subject *s = &self->s;
	int pipefd[2];

	ASSERT_EQ(0, pipe(pipefd));
	ASSERT_EQ(psize(), splice_pages(pipefd[1], raw_page(s, 5), psize()));
	let_go(_metadata, s);
	expect_held(_metadata, s);
	close(pipefd[0]);
	close(pipefd[1]);
	expect_pool(_metadata, s, 0, 0);

	/* A free hugepage isn't kept: an error takes all of it out of the pool. */
	lose_unmapped(_metadata, s, 7);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(pinned, request_in_flight_outlives_the_file, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	unsigned long ps = psize();
	char *buf = malloc(ps);
	int pipefd[2], fd;
	struct ring r;
	char *addr;

	ASSERT_NE(NULL, buf);
	ASSERT_EQ(0, pipe(pipefd));
	if (!make_ring(&r))
		SKIP(return, "needs io_uring");
	addr = raw_page(s, nr + 1);
	ASSERT_EQ(0, register_buffer(&r, addr, 2 * ps));
	/* Nothing to read there yet. */
	ASSERT_EQ(0, submit_fixed(&r, IORING_OP_READ_FIXED, pipefd[0], addr, ps));
	lose(_metadata, s, nr);
	let_go(_metadata, s);
	EXPECT_TRUE(is_in_flight(&r));
	expect_held(_metadata, s);

	memset(buf, 0x5a, ps);
	ASSERT_EQ(ps, write(pipefd[1], buf, ps));
	EXPECT_EQ(ps, wait_fixed(&r));
	fd = memfd_create("hugetlb-mfr", 0);
	ASSERT_LE(0, fd);
	EXPECT_EQ(2 * ps, transfer_fixed(&r, IORING_OP_WRITE_FIXED, fd, addr, 2 * ps));
	memset(buf, 0, ps);
	EXPECT_EQ(ps, pread(fd, buf, ps, 0));
	EXPECT_EQ(0x5a, buf[0]);
	EXPECT_EQ(0x5a, buf[ps - 1]);
	EXPECT_EQ(ps, pread(fd, buf, ps, ps));
	EXPECT_TRUE(page_is_intact(buf, nr + 2));

	expect_held(_metadata, s);
	destroy_ring(&r);
	expect_released(_metadata, s);
	free(buf);
}

/* A request may wait for hours: what was healthy at its start can be lost by then. */
TEST_F_TIMEOUT(pinned, request_in_flight_avoids_a_late_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	int in[2], out[2];
	struct ring r, w;
	long size, i;
	char byte;

	ASSERT_EQ(0, pipe(in));
	ASSERT_EQ(0, pipe(out));
	if (!make_ring(&r) || !make_ring(&w))
		SKIP(return, "needs io_uring");
	ASSERT_EQ(0, register_buffer(&r, s->map, s->size));
	ASSERT_EQ(0, register_buffer(&w, raw_page(s, nr), psize()));
	size = fcntl(out[1], F_GETPIPE_SZ);
	for (i = 0; i < size; i += psize())
		ASSERT_EQ(psize(), write(out[1], raw_page(s, 0), psize()));

	ASSERT_EQ(0, submit_fixed(&r, IORING_OP_READ_FIXED, in[0], raw_page(s, nr) + 8, 1));
	ASSERT_EQ(0, submit_fixed(&w, IORING_OP_WRITE_FIXED, out[1], raw_page(s, nr) + 8,
				  1));
	lose(_metadata, s, nr);
	EXPECT_TRUE(is_in_flight(&r));
	EXPECT_TRUE(is_in_flight(&w));

	ASSERT_EQ(1, write(in[1], "x", 1));
	EXPECT_EQ(-EFAULT, wait_fixed(&r));
	for (i = 0; i < size; i++)
		ASSERT_EQ(1, read(out[0], &byte, 1));
	EXPECT_EQ(-EFAULT, wait_fixed(&w));

	/* The undelivered bytes are still there. */
	EXPECT_EQ(1, read(in[0], &byte, 1));
	EXPECT_EQ('x', byte);
	EXPECT_EQ(0, nr_changed_pages(s));
	destroy_ring(&r);
	destroy_ring(&w);
	expect_end(_metadata, s);
}

/* Write a page until there is no room left. Returns the number of bytes, or -1. */
static ssize_t fill_up(int fd, const char *page)
{
	ssize_t ret, len = 0;

	if (fcntl(fd, F_SETFL, O_NONBLOCK))
		return -1;
	while ((ret = write(fd, page, psize())) > 0)
		len += ret;
	return errno == EAGAIN && !fcntl(fd, F_SETFL, 0) ? len : -1;
}

static void drain(struct __test_metadata *_metadata, int fd, ssize_t len)
{
	char buf[4096];
	ssize_t ret;

	for (; len > 0; len -= ret) {
		ret = read(fd, buf, len < (ssize_t)sizeof(buf) ? len : (ssize_t)sizeof(buf));
		ASSERT_LT(0, ret);
	}
}

/* The ring ends in a worker: the next test must find the pool as it was. */
static void give_back_ring(struct __test_metadata *_metadata, struct subject *s,
			   struct ring *r)
{
	destroy_ring(r);
	let_go(_metadata, s);
	wait_until(pool_read(s->size).free == s->before.free, 20000);
}

/*
 * Lose raw page @nr while a request waits for input from fds[0], or for room in fds[1],
 * and then let it have that. @addr and @len name what is in that page, or pieces.
 */
static void lose_while_waiting(struct __test_metadata *_metadata, struct subject *s,
			       int opcode, int fds[2], void *addr, size_t len,
			       unsigned long nr)
{
	bool in = opcode == IORING_OP_READ_FIXED || opcode == OP_READV_FIXED ||
		  opcode == IORING_OP_RECV;
	ssize_t filled = 0;
	struct ring r;
	char buf[8];

	if (!make_ring(&r))
		SKIP(return, "needs io_uring");
	ASSERT_EQ(0, register_buffer(&r, s->map, s->size));
	if (!in) {
		filled = fill_up(fds[1], raw_page(s, 0));
		ASSERT_LT(0, filled);
	}
	ASSERT_EQ(0, submit_fixed(&r, opcode, fds[!in], addr, len));
	if (!is_in_flight(&r)) {
		ASSERT_EQ(-EINVAL, wait_fixed(&r));
		give_back_ring(_metadata, s, &r);
		SKIP_REST(return, "kernel can't do that with registered buffers");
	}

	/* A socket may call for another attempt before it has room. */
	lose(_metadata, s, nr);
	if (!in)
		drain(_metadata, fds[0], filled);
	else
		ASSERT_EQ(sizeof(buf), write(fds[1], "whatever", sizeof(buf)));
	EXPECT_EQ(-EFAULT, wait_fixed(&r));
	/* The undelivered bytes are still there. */
	if (in) {
		ASSERT_EQ(0, fcntl(fds[0], F_SETFL, O_NONBLOCK));
		EXPECT_EQ(sizeof(buf), read(fds[0], buf, sizeof(buf)));
	}
	EXPECT_EQ(0, nr_changed_pages(s));

	close(fds[0]);
	close(fds[1]);
	/* A second completion reports that the buffer is free. */
	if (opcode == IORING_OP_SEND_ZC)
		EXPECT_EQ(0, wait_fixed(&r));
	destroy_ring(&r);
	expect_end(_metadata, s);
}

/* Lose the second of two pages of a waiting vectored request. */
static void lose_a_piece_while_waiting(struct __test_metadata *_metadata,
				       struct subject *s, int opcode)
{
	unsigned long nr = s->nr_raw / 2;
	struct iovec iov[] = {
		{ raw_page(s, nr - 1), 1 }, { raw_page(s, nr) + 8, 1 },
	};
	int fds[2];

	ASSERT_EQ(0, pipe(fds));
	lose_while_waiting(_metadata, s, opcode, fds, iov, 2, nr);
}

/* Lose the only page of a waiting request, on a pipe or on sockets. */
static void lose_page_while_waiting(struct __test_metadata *_metadata, struct subject *s,
				    int opcode)
{
	bool in = opcode == IORING_OP_READ_FIXED || opcode == IORING_OP_RECV;
	bool pipes = opcode == IORING_OP_READ_FIXED || opcode == IORING_OP_WRITE_FIXED;
	unsigned long nr = s->nr_raw / 2;
	int fds[2];

	ASSERT_EQ(0, pipes ? pipe(fds) : socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
	lose_while_waiting(_metadata, s, opcode, fds, raw_page(s, nr) + (in ? 8 : 0),
			   in ? 8 : psize(), nr);
}

TEST_F_TIMEOUT(pinned, waiting_read_leaves_out_a_lost_page, SLOW)
{
	lose_page_while_waiting(_metadata, &self->s, IORING_OP_READ_FIXED);
}

TEST_F_TIMEOUT(pinned, waiting_write_leaves_out_a_lost_page, SLOW)
{
	lose_page_while_waiting(_metadata, &self->s, IORING_OP_WRITE_FIXED);
}

TEST_F_TIMEOUT(pinned, waiting_readv_leaves_out_a_lost_page, SLOW)
{
	lose_a_piece_while_waiting(_metadata, &self->s, OP_READV_FIXED);
}

TEST_F_TIMEOUT(pinned, waiting_writev_leaves_out_a_lost_page, SLOW)
{
	lose_a_piece_while_waiting(_metadata, &self->s, OP_WRITEV_FIXED);
}

TEST_F_TIMEOUT(pinned, waiting_receive_leaves_out_a_lost_page, SLOW)
{
	lose_page_while_waiting(_metadata, &self->s, IORING_OP_RECV);
}

TEST_F_TIMEOUT(pinned, waiting_send_leaves_out_a_lost_page, SLOW)
{
	lose_page_while_waiting(_metadata, &self->s, IORING_OP_SEND);
}

TEST_F_TIMEOUT(pinned, resumed_send_leaves_out_a_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	size_t ps = psize();
	char *buf = malloc(ps);
	struct ring r;
	int fds[2];
	long sent;

	ASSERT_NE(NULL, buf);
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
	if (!make_ring(&r))
		SKIP(return, "needs io_uring");
	ASSERT_EQ(0, register_buffer(&r, s->map, s->size));
	/* The socket has no room for all of it, and a part isn't enough. */
	prepare_fixed(&r, IORING_OP_SEND, fds[1], s->map, (nr + 1) * ps);
	r.sqe->msg_flags = MSG_WAITALL;
	ASSERT_EQ(0, submit(&r));
	if (!is_in_flight(&r)) {
		ASSERT_EQ(-EINVAL, wait_fixed(&r));
		give_back_ring(_metadata, s, &r);
		SKIP_REST(return, "kernel can't do that with registered buffers");
	}
	lose(_metadata, s, nr);
	ASSERT_TRUE(is_in_flight(&r));
	while (is_in_flight(&r))
		if (recv(fds[0], buf, ps, MSG_DONTWAIT) < 0)
			usleep(1000);
	/* The result is the part that was sent before. */
	sent = wait_fixed(&r);
	EXPECT_LT(0, sent);
	EXPECT_GT(nr * ps, sent);

	destroy_ring(&r);
	close(fds[0]);
	close(fds[1]);
	free(buf);
	expect_end(_metadata, s);
}

/* Two ends of a connection that can do without a copy. */
static bool connect_zerocopy(int fds[2])
{
	struct sockaddr_vm addr = {
		.svm_family = AF_VSOCK,
		.svm_cid = VMADDR_CID_LOCAL,
		.svm_port = VMADDR_PORT_ANY,
	};
	socklen_t len = sizeof(addr);
	int fd = socket(AF_VSOCK, SOCK_STREAM, 0);
	bool connected;

	fds[1] = socket(AF_VSOCK, SOCK_STREAM, 0);
	connected = !bind(fd, (struct sockaddr *)&addr, len) && !listen(fd, 1) &&
		    !getsockname(fd, (struct sockaddr *)&addr, &len) &&
		    !connect(fds[1], (struct sockaddr *)&addr, len);
	fds[0] = connected ? accept(fd, NULL, NULL) : -1;
	close(fd);
	return fds[0] >= 0;
}

TEST_F_TIMEOUT(pinned, waiting_send_zc_leaves_out_a_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	int fds[2];

	if (!connect_zerocopy(fds))
		SKIP(return, "needs CONFIG_VSOCKETS_LOOPBACK");
	lose_while_waiting(_metadata, s, IORING_OP_SEND_ZC, fds, raw_page(s, nr), psize(),
			   nr);
}

/*
 * A plain hugepage that is hit when only somebody else holds it
 */

FIXTURE(pinned_plain)
{
	struct subject s;
	struct ring ring;
	int pipe[2];
};

FIXTURE_VARIANT(pinned_plain)
{
	bool is_pinned;
};

FIXTURE_VARIANT_ADD(pinned_plain, by_reference) { .is_pinned = false };
FIXTURE_VARIANT_ADD(pinned_plain, by_pin) { .is_pinned = true };

FIXTURE_SETUP(pinned_plain)
{
	struct subject *s = &self->s;

	/* Stock has this bug: the series with the flag fixes it. */
	setup_keeping(_metadata, s, SZ_2M, &by_pfn, 1);
	if (_metadata->exit_code)
		return;
	open_subject(_metadata, s, 0);
	/* Other hugepages must be free, so that this one isn't needed. */
	if (!need_more_hugepages(s, 2))
		SKIP(return, "can't get 3 hugepages");
	if (variant->is_pinned && !make_ring(&self->ring))
		SKIP(return, "needs io_uring");
	if (variant->is_pinned) {
		ASSERT_EQ(0, register_buffer(&self->ring, s->map, s->size));
		/* FOLL_LONGTERM may have moved the folio: look up its pfn again. */
		s->head[0] = mapped_pfn(s->map);
	} else {
		ASSERT_EQ(0, pipe(self->pipe));
		ASSERT_EQ(psize(), splice_pages(self->pipe[1], raw_page(s, 5), psize()));
	}
	let_go(_metadata, s);
}

FIXTURE_TEARDOWN_SUBJECT(pinned_plain);

TEST_F_TIMEOUT(pinned_plain, can_be_unpoisoned_after_release, SLOW)
{
	struct subject *s = &self->s;

	note_lost(_metadata, s, s->nr_raw / 2);
	EXPECT_EQ(-EBUSY, inject_corrupt_pfn(NULL, raw_pfn(s, s->nr_raw / 2)));
	expect_corrupted(_metadata, s);
	EXPECT_EQ(-EBUSY, unpoison(s->head[0]));
	expect_held(_metadata, s);

	if (variant->is_pinned) {
		destroy_ring(&self->ring);
	} else {
		close(self->pipe[0]);
		close(self->pipe[1]);
	}
	wait_for_pool(_metadata, s, 0, 0);
	EXPECT_EQ(0, unpoison(s->head[0]));
	s->nr_lost = 0;
	expect_corrupted(_metadata, s);
	expect_pool(_metadata, s, 0, 0);
}

/*
 * Direct I/O with a device that takes its time
 */

#define SLOW_DISK		"/sys/kernel/config/nullb/hugetlb-mfr"
#define SLOW_DISK_NS		"2500000000"

static void remove_slow_disk(void)
{
	write_text(SLOW_DISK "/power", "0");
	rmdir(SLOW_DISK);
}

/* Returns a device that completes requests after SLOW_DISK_NS; 5 s are a timeout. */
static int open_slow_disk(void)
{
	remove_slow_disk();
	if (mkdir(SLOW_DISK, 0700) || !write_text(SLOW_DISK "/irqmode", "2") ||
	    !write_text(SLOW_DISK "/completion_nsec", SLOW_DISK_NS) ||
	    !write_text(SLOW_DISK "/power", "1"))
		return -1;
	return open("/dev/hugetlb-mfr", O_RDWR | O_DIRECT);
}

FIXTURE(in_flight)
{
	struct subject s;
	struct ring ring;
	int disk;
};

FIXTURE_VARIANTS(in_flight, simulated_and_mce_2m)
FIXTURE_VARIANT_ADD_SIZES(in_flight)

FIXTURE_SETUP(in_flight)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	if (access("/sys/kernel/config/nullb", W_OK))
		SKIP(return, "needs CONFIG_BLK_DEV_NULL_BLK, and configfs mounted");
	setup_subject(_metadata, &self->s, variant->size, variant->injector, 1);
	if (_metadata->exit_code)
		return;
	open_subject(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
	if (!need_more_hugepages(&self->s, 2))
		SKIP(return, "can't get 3 hugepages");
	if (!make_ring(&self->ring))
		SKIP(return, "needs io_uring");
	self->disk = open_slow_disk();
	ASSERT_LE(0, self->disk);
}

FIXTURE_TEARDOWN_PARENT(in_flight)
{
	remove_slow_disk();
	teardown_subject(_metadata, &self->s);
}

/*
 * Lose page @lost while page 12 is on its way to or from the disk. (A read
 * larger than a request would be split, and so be submitted by another thread.)
 */
static void lose_in_flight(struct __test_metadata *_metadata, struct subject *s,
			   struct ring *ring, int opcode, int disk, unsigned long lost)
{
	ASSERT_EQ(0, submit_fixed(ring, opcode, disk, raw_page(s, 12), psize()));
	lose(_metadata, s, lost);
	let_go(_metadata, s);
	expect_held(_metadata, s);
	ASSERT_TRUE(is_in_flight(ring));
	EXPECT_EQ(psize(), wait_fixed(ring));
	expect_released(_metadata, s);
	destroy_ring(ring);
	close(disk);
}

TEST_F_TIMEOUT(in_flight, write_outlives_the_file, SLOW)
{
	lose_in_flight(_metadata, &self->s, &self->ring, IORING_OP_WRITE, self->disk, 3);
}

TEST_F_TIMEOUT(in_flight, read_outlives_the_file, SLOW)
{
	lose_in_flight(_metadata, &self->s, &self->ring, IORING_OP_READ, self->disk, 3);
}

TEST_F_TIMEOUT(in_flight, late_lost_page_is_left_out, SLOW)
{
	lose_in_flight(_metadata, &self->s, &self->ring, IORING_OP_WRITE, self->disk, 12);
}

/* Open it for requests that go through the page cache, without any readahead. */
static int open_cached(void)
{
	int fd = open("/dev/hugetlb-mfr", O_RDWR);

	return fd < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM) ? -1 : fd;
}

TEST_F_TIMEOUT(in_flight, resumed_read_leaves_out_a_lost_page, SLOW)
{
	struct subject *s = &self->s;
	int fd = open_cached();
	char *buf = malloc(psize());

	ASSERT_LE(0, fd);
	ASSERT_NE(NULL, buf);
	ASSERT_EQ(0, register_buffer(&self->ring, s->map, s->size));
	/* One page can be had at once, the next one has to be read. */
	ASSERT_EQ(psize(), pread(fd, buf, psize(), 0));
	ASSERT_EQ(0, submit_fixed(&self->ring, IORING_OP_READ_FIXED, fd, raw_page(s, 12),
				  2 * psize()));
	lose(_metadata, s, 13);
	ASSERT_TRUE(is_in_flight(&self->ring));
	EXPECT_EQ(psize(), wait_fixed(&self->ring));
	/* One page has come in; the lost page is as it was. */
	EXPECT_EQ(1, nr_changed_pages(s));

	destroy_ring(&self->ring);
	close(fd);
	close(self->disk);
	free(buf);
	expect_end(_metadata, s);
}

/*
 * Several hugepages, in use everywhere
 */

FIXTURE_SUBJECT(several);

FIXTURE_VARIANTS(several, simulated_and_mce_2m)
FIXTURE_VARIANT_ADD_SIZES(several)

FIXTURE_SETUP_KEPT(several, variant->size, variant->injector, NR_SEVERAL, 0);

/* Three kinds of pins. */
struct pins {
	int pipefd[2];
	int longterm;
	struct ring ring[2];
};

enum { IN_PIPE, LONG_TERM, IN_RING, NR_PINS };

/*
 * Each kind pins a page of two hugepages in a row, beginning with its own, and the
 * last hugepage: 0 is in the pipe and in the ring, 1 is pinned long-term and in the
 * pipe, 2 is in the ring and pinned long-term, and 3, which is healthy, is in all.
 */
static void pin_all(struct __test_metadata *_metadata, struct subject *s, struct pins *p)
{
	const int first[NR_PINS] = { [IN_PIPE] = 0, [LONG_TERM] = 1, [IN_RING] = 2 };
	unsigned long ps = psize();
	int i;

	ASSERT_EQ(0, pipe(p->pipefd));
	p->longterm = open_pin();
	ASSERT_EQ(0, pin_range(p->longterm, s->map + s->size + 8 * ps, s->size + ps, 0));
	for (i = 0; i < 2; i++) {
		char *addr[NR_PINS];
		int kind;

		for (kind = 0; kind < NR_PINS; kind++)
			addr[kind] = s->map + (first[kind] + i) % 3 * s->size + 8 * ps;
		ASSERT_EQ(ps, splice_pages(p->pipefd[1], addr[IN_PIPE], ps));
		ASSERT_TRUE(make_ring(&p->ring[i]));
		/* The last hugepage in the same pin as the one in front of it. */
		ASSERT_EQ(0, register_buffer(&p->ring[i], addr[IN_RING],
					     i ? ps : s->size));
	}
	ASSERT_EQ(ps, splice_pages(p->pipefd[1], s->map + 3 * s->size, ps));
}

static void unpin_kind(struct pins *p, int kind)
{
	int i;

	if (kind == IN_PIPE) {
		close(p->pipefd[0]);
		close(p->pipefd[1]);
	}
	if (kind == LONG_TERM)
		close(p->longterm);
	for (i = 0; i < 2 && kind == IN_RING; i++)
		destroy_ring(&p->ring[i]);
}

/* The hugepages that a kind of pins holds; see pin_all(). */
static const unsigned int held_by[NR_PINS] = {
	[IN_PIPE] = 1 << 0 | 1 << 1 | 1 << 3,
	[LONG_TERM] = 1 << 1 | 1 << 2,
	[IN_RING] = 1 << 2 | 1 << 0 | 1 << 3,
};

static void expect_end_in_order(struct __test_metadata *_metadata, struct subject *s,
				const int *order)
{
	unsigned long i;
	struct pins p;
	struct ring r;
	int nr, fd;

	fd = open_pin();
	if (fd < 0 || !make_ring(&r))
		SKIP(return, "needs CONFIG_GUP_TEST and io_uring");
	close(fd);
	destroy_ring(&r);

	pin_all(_metadata, s, &p);
	/* One, two and eight pages of three hugepages. */
	lose(_metadata, s, 3);
	lose(_metadata, s, s->nr_raw);
	lose(_metadata, s, s->nr_raw + 1);
	for (i = 0; i < NR_SAMPLES; i++)
		lose(_metadata, s, 2 * s->nr_raw + sample(s, i));
	let_go(_metadata, s);
	wait_for_pool(_metadata, s, 0, 4);

	for (nr = 0; nr < NR_PINS; nr++) {
		unsigned int held = 0;
		int j;

		unpin_kind(&p, order[nr]);
		for (j = nr + 1; j < NR_PINS; j++)
			held |= held_by[order[j]];
		wait_for_pool(_metadata, s, 3 - __builtin_popcount(held & 7),
			      __builtin_popcount(held));
		expect_corrupted(_metadata, s);
		for (i = 0; i < 3; i++) {
			if (held & (1 << i))
				expect_whole(_metadata, s, i);
			else
				expect_out_of_use(_metadata, s, i);
		}
	}
	for (i = 0; i < 3; i++)
		expect_all_come_back(_metadata, s, i);
	expect_pool(_metadata, s, 3, 0);
}

TEST_F_TIMEOUT(several, pins_of_a_pipe_end_last, SLOW)
{
	const int order[NR_PINS] = { LONG_TERM, IN_RING, IN_PIPE };

	expect_end_in_order(_metadata, &self->s, order);
}

TEST_F_TIMEOUT(several, long_term_pins_end_last, SLOW)
{
	const int order[NR_PINS] = { IN_RING, IN_PIPE, LONG_TERM };

	expect_end_in_order(_metadata, &self->s, order);
}

TEST_F_TIMEOUT(several, pins_of_a_ring_end_last, SLOW)
{
	const int order[NR_PINS] = { IN_PIPE, LONG_TERM, IN_RING };

	expect_end_in_order(_metadata, &self->s, order);
}

TEST_F_TIMEOUT(several, one_pin_holds_several_hugepages, SLOW)
{
	struct subject *s = &self->s;
	int fd = open_pin();
	unsigned long i;

	if (fd < 0)
		SKIP(return, "needs CONFIG_GUP_TEST");
	ASSERT_EQ(0, pin_range(fd, raw_page(s, 5), (NR_SEVERAL - 1) * s->size, 0));
	for (i = 0; i < NR_SEVERAL; i++)
		if (i != 1)
			lose(_metadata, s, i * s->nr_raw + 7);
	/* A hole in what is pinned, and then all the rest. */
	EXPECT_EQ(0, punch(s, s->size, 2 * s->size));
	expect_pool(_metadata, s, 0, 4);
	let_go(_metadata, s);
	expect_pool(_metadata, s, 0, 4);
	expect_corrupted(_metadata, s);

	EXPECT_EQ(0, unpin_range(fd));
	wait_for_pool(_metadata, s, 3, 0);
	for (i = 0; i < NR_SEVERAL; i++)
		if (i != 1)
			expect_all_come_back(_metadata, s, i);
}

/* A process that uses pages which are not going to be lost, over and over. */
struct user {
	struct subject *s;
	pid_t owner;		/* of s->map */
	int fd;
	char *buf;
	int pipefd[2];
};

typedef void (*use_t)(struct user *u, char *page);

static void use_by_direct_io(struct user *u, char *page)
{
	if (pwrite(u->fd, page, psize(), 0) == (ssize_t)psize())
		pread(u->fd, page, psize(), 0);
}

static void use_by_process_vm(struct user *u, char *page)
{
	struct iovec remote = { .iov_base = page, .iov_len = psize() };
	struct iovec local = { .iov_base = u->buf, .iov_len = psize() };

	if (process_vm_readv(u->owner, &local, 1, &remote, 1, 0) == (ssize_t)psize())
		process_vm_writev(u->owner, &local, 1, &remote, 1, 0);
}

static void use_by_vmsplice(struct user *u, char *page)
{
	ssize_t len = splice_pages(u->pipefd[1], page, psize());

	if (len > 0)
		read(u->pipefd[0], u->buf, len);
}

static void use_by_long_term_pin(struct user *u, char *page)
{
	if (!pin_range(u->fd, page, psize(), PIN_LONGTERM_TEST_FLAG_USE_FAST)) {
		read_pinned(u->fd, u->buf);
		unpin_range(u->fd);
	}
}

/*
 * Truncate the file bit by bit, with lost pages in every hugepage, under its users. Their
 * file, @fd, is closed with the last of them.
 */
static void truncate_in_use(struct __test_metadata *_metadata, struct subject *s,
			    use_t use, int fd)
{
	struct user u = { .s = s, .owner = getpid(), .fd = fd };
	unsigned long *used = alloc_shared(psize());
	unsigned long i, before, nr_short = 0;
	pid_t pid[2];
	int j;

	ASSERT_NE(NULL, used);
	for (j = 0; j < 2; j++) {
		pid[j] = fork_helper();
		ASSERT_LE(0, pid[j]);
		if (pid[j])
			continue;
		if (pipe(u.pipefd) || posix_memalign((void **)&u.buf, psize(), psize()))
			_exit(KSFT_FAIL);
		for (i = j;; i++) {
			use(&u, raw_page(s, i % NR_SEVERAL * s->nr_raw + 1 +
					 i % (s->nr_raw / 2 - 1)));
			__atomic_add_fetch(used, 1, __ATOMIC_RELAXED);
		}
	}
	if (fd >= 0)
		close(fd);

	for (i = NR_SEVERAL; i-- > 0;) {
		before = __atomic_load_n(used, __ATOMIC_RELAXED);
		lose(_metadata, s, i * s->nr_raw);
		lose(_metadata, s, i * s->nr_raw + s->nr_raw / 2);
		EXPECT_TRUE(wait_until(__atomic_load_n(used, __ATOMIC_RELAXED) - before > 50,
				       1000));
		EXPECT_EQ(0, ftruncate(s->fd, i * s->size));
		wait_for_pool(_metadata, s, NR_SEVERAL - i, i);
	}
	for (j = 0; j < 2; j++)
		kill_child(_metadata, pid[j]);
	let_go(_metadata, s);
	wait_for_pool(_metadata, s, NR_SEVERAL, 0);
	expect_corrupted(_metadata, s);
	/* Pages freed first may be kernel stacks by now, which set no flag. */
	s->nr_unknown = 4;
	for (i = 0; i < NR_SEVERAL; i++)
		nr_short += expect_all_come_back(_metadata, s, i) > 0;
	/* They are in a few of the hugepages; a leak is in each. */
	EXPECT_GT(NR_SEVERAL, nr_short);
}

TEST_F_TIMEOUT(several, truncation_races_with_direct_io, SLOW)
{
	struct subject *s = &self->s;
	int fd = open_direct(_metadata);

	if (fd < 0)
		return;
	/*
	 * Holes are filled with the help of the page cache.  And a disk that is
	 * memory takes what it needs of that now, and not from what is released.
	 */
	ASSERT_EQ(psize(), pwrite(fd, s->map, psize(), 0));
	ASSERT_EQ(0, syncfs(fd));
	truncate_in_use(_metadata, s, use_by_direct_io, fd);
}

TEST_F_TIMEOUT(several, truncation_races_with_process_vm_access, SLOW)
{
	truncate_in_use(_metadata, &self->s, use_by_process_vm, -1);
}

TEST_F_TIMEOUT(several, truncation_races_with_vmsplice, SLOW)
{
	truncate_in_use(_metadata, &self->s, use_by_vmsplice, -1);
}

TEST_F_TIMEOUT(several, truncation_races_with_long_term_pins, SLOW)
{
	int fd = open_pin();

	if (fd < 0)
		SKIP(return, "needs CONFIG_GUP_TEST");
	/* One for both: in older kernels the end of one races with the use of another. */
	truncate_in_use(_metadata, &self->s, use_by_long_term_pin, fd);
}

/*
 * Memory that iommufd gives to devices
 */

FIXTURE(iommu)
{
	struct subject s;
	int fd;
	__u32 ioas;
	int nr_ways;
};

static const struct named_variant iommu_variants[] = {
	{ "madvise_2m", { SZ_2M, &by_madvise } },
	{ "corrupt_pfn_2m", { SZ_2M, &by_pfn } },
	{ "mce_2m", { SZ_2M, &by_mce } },
	{ "scrub_2m", { SZ_2M, &by_scrub } },
	{ "madvise_1g", { SZ_1G, &by_madvise } },
};

FIXTURE_VARIANTS(iommu, iommu_variants)
FIXTURE_VARIANT_ADD_SIZES(iommu)

/* Memory can be given by its address, or as that of a file. */
#define BY_FILE		1

/* Where devices find raw page @nr. */
static uint64_t iova_of(unsigned long nr)
{
	return MOCK_APERTURE_START + nr * psize();
}

static int iommu_map(FIXTURE_DATA(iommu) * self, int way, unsigned long nr,
		     unsigned long npages)
{
	struct iommu_ioas_map map = {
		.size = sizeof(map),
		.flags = IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_READABLE |
			 IOMMU_IOAS_MAP_WRITEABLE,
		.ioas_id = self->ioas,
		.user_va = (uintptr_t)raw_page(&self->s, nr),
		.length = npages * psize(),
		.iova = iova_of(nr),
	};
	struct iommu_ioas_map_file map_file = {
		.size = sizeof(map_file),
		.flags = map.flags,
		.ioas_id = self->ioas,
		.fd = self->s.fd,
		.start = nr * psize(),
		.length = map.length,
		.iova = map.iova,
	};

	if (way == BY_FILE)
		return ioctl(self->fd, IOMMU_IOAS_MAP_FILE, &map_file) ? -errno : 0;
	return ioctl(self->fd, IOMMU_IOAS_MAP, &map) ? -errno : 0;
}

static int iommu_unmap_all(FIXTURE_DATA(iommu) * self)
{
	struct iommu_ioas_unmap unmap = {
		.size = sizeof(unmap),
		.ioas_id = self->ioas,
		.length = UINT64_MAX,
	};

	return ioctl(self->fd, IOMMU_IOAS_UNMAP, &unmap) ? -errno : 0;
}

/* Pin for a device all that is mapped, and from now on all that will be. */
static int attach_device(FIXTURE_DATA(iommu) * self)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_MOCK_DOMAIN,
		.id = self->ioas,
	};

	return ioctl(self->fd, IOMMU_TEST_CMD, &cmd) ? -errno : 0;
}

/* Get access to the memory as a driver that emulates a device. */
static int open_access(FIXTURE_DATA(iommu) * self)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_CREATE_ACCESS,
		.id = self->ioas,
		.create_access.flags = MOCK_FLAGS_ACCESS_CREATE_NEEDS_PIN_PAGES,
	};

	return ioctl(self->fd, IOMMU_TEST_CMD, &cmd) ? -errno :
	       (int)cmd.create_access.out_access_fd;
}

static int access_read(FIXTURE_DATA(iommu) * self, int access, unsigned long nr, char *buf)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_ACCESS_RW,
		.id = access,
		.access_rw = {
			.iova = iova_of(nr),
			.length = psize(),
			.uptr = (uintptr_t)buf,
			/* Through a pin, not by the mapping of this process. */
			.flags = MOCK_ACCESS_RW_SLOW_PATH,
		},
	};

	return ioctl(self->fd, IOMMU_TEST_CMD, &cmd) ? -errno : 0;
}

static int access_pin(FIXTURE_DATA(iommu) * self, int access, unsigned long nr,
		      unsigned long npages)
{
	struct iommu_test_cmd cmd = {
		.size = sizeof(cmd),
		.op = IOMMU_TEST_OP_ACCESS_PAGES,
		.id = access,
		.access_pages = { .iova = iova_of(nr), .length = npages * psize() },
	};

	return ioctl(self->fd, IOMMU_TEST_CMD, &cmd) ? -errno : 0;
}

FIXTURE_SETUP(iommu)
{
	struct iommu_ioas_alloc alloc = { .size = sizeof(alloc) };
	struct iommu_test_cmd none = { .size = sizeof(none) };

	self->fd = open("/dev/iommu", O_RDWR);
	if (self->fd < 0 || !ioctl(self->fd, IOMMU_TEST_CMD, &none) || errno == ENOTTY)
		SKIP(return, "needs CONFIG_IOMMUFD_TEST");
	ASSERT_EQ(0, ioctl(self->fd, IOMMU_IOAS_ALLOC, &alloc));
	self->ioas = alloc.out_ioas_id;

	setup_kept(_metadata, &self->s, variant->size, variant->injector, 1, 0);
	if (_metadata->exit_code)
		return;
	/* Older kernels don't know files. */
	self->nr_ways = iommu_map(self, BY_FILE, 0, 1) == -ENOTTY ? BY_FILE : BY_FILE + 1;
	ASSERT_EQ(0, iommu_unmap_all(self));
}

FIXTURE_TEARDOWN_SUBJECT(iommu);

static int refusal(int way)
{
	return way == BY_FILE ? -EHWPOISON : -EFAULT;
}

/* Refused requests hold nothing, granted ones end with the file. */
static void close_iommu(struct __test_metadata *_metadata, FIXTURE_DATA(iommu) * self)
{
	close(self->fd);
	unmap_file(&self->s);
	EXPECT_EQ(0, ftruncate(self->s.fd, 0));
	expect_released(_metadata, &self->s);
}

TEST_F_TIMEOUT(iommu, device_can_access_all_but_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	int way;

	ASSERT_EQ(0, attach_device(self));
	lose(_metadata, s, nr);
	for (way = 0; way < self->nr_ways; way++) {
		EXPECT_EQ(refusal(way), iommu_map(self, way, nr, 1));
		EXPECT_EQ(refusal(way), iommu_map(self, way, nr - 2, 4));
		EXPECT_EQ(refusal(way), iommu_map(self, way, 0, s->nr_raw));
		EXPECT_EQ(0, iommu_map(self, way, nr - 2, 2));
		EXPECT_EQ(0, iommu_map(self, way, nr + 1, 2));
		EXPECT_EQ(0, iommu_map(self, way, 0, nr - 2));
		EXPECT_EQ(0, iommu_unmap_all(self));
	}
	close_iommu(_metadata, self);
}

TEST_F_TIMEOUT(iommu, late_device_is_refused_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	int way;

	lose(_metadata, s, nr);
	for (way = 0; way < self->nr_ways; way++) {
		EXPECT_EQ(0, iommu_map(self, way, nr - 2, 4));
		EXPECT_EQ(refusal(way), attach_device(self));
		EXPECT_EQ(0, iommu_unmap_all(self));
	}
	EXPECT_EQ(0, iommu_map(self, 0, nr - 2, 2));
	EXPECT_EQ(0, iommu_map(self, self->nr_ways - 1, nr + 1, 2));
	EXPECT_EQ(0, attach_device(self));
	close_iommu(_metadata, self);
}

TEST_F_TIMEOUT(iommu, driver_is_refused_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	char *buf = malloc(psize());
	int access, way;

	ASSERT_NE(NULL, buf);
	access = open_access(self);
	ASSERT_LE(0, access);
	lose(_metadata, s, nr);
	for (way = 0; way < self->nr_ways; way++) {
		ASSERT_EQ(0, iommu_map(self, way, nr - 2, 4));
		EXPECT_EQ(refusal(way), access_pin(self, access, nr - 2, 4));
		EXPECT_EQ(refusal(way), access_pin(self, access, nr, 1));
		EXPECT_EQ(refusal(way), access_read(self, access, nr, buf));
		EXPECT_EQ(0, access_pin(self, access, nr - 2, 2));
		EXPECT_EQ(0, access_pin(self, access, nr + 1, 1));
		EXPECT_EQ(0, access_read(self, access, nr - 1, buf));
		EXPECT_TRUE(page_is_intact(buf, nr - 1));
		EXPECT_EQ(0, iommu_unmap_all(self));
	}
	close(access);
	free(buf);
	close_iommu(_metadata, self);
}

/* As on stock, users of a pin don't check whether the page is lost. */
TEST_F_TIMEOUT(iommu, driver_keeps_what_a_device_has, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	char *buf = malloc(psize());
	int access;

	ASSERT_NE(NULL, buf);
	if (self->nr_ways <= BY_FILE)
		SKIP(return, "this kernel lacks IOMMU_IOAS_MAP_FILE");
	ASSERT_EQ(0, attach_device(self));
	access = open_access(self);
	ASSERT_LE(0, access);
	ASSERT_EQ(0, iommu_map(self, BY_FILE, nr, 1));
	lose(_metadata, s, nr);
	EXPECT_EQ(0, access_read(self, access, nr, buf));
	EXPECT_TRUE(page_is_intact(buf, nr));
	close(access);
	free(buf);
	close_iommu(_metadata, self);
}

TEST_HARNESS_MAIN
