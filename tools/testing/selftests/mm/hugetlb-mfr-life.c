// SPDX-License-Identifier: GPL-2.0
/*
 * The life of the hugepages of a memfd made with MFD_MF_KEEP_UE_MAPPED: all that
 * holds one, and all that moves or reuses one.
 *
 * Whatever holds a kept hugepage, it is given up when the last of them lets go,
 * and not before: then its lost pages stay out of use and all others are free.
 * Whatever would move it is refused if it has lost pages, and otherwise moves it
 * to a hugepage that is kept as well.
 *
 * The fixtures:
 *   pinned	pipes, long-term pins and rings outlive the file
 *   left_over	a plain hugepage that is hit when only they hold it
 *   in_flight	so does direct I/O
 *   several	hugepages with many users, which let go in any order
 *   moved	system calls that move memory between nodes, and soft offlining
 *   moving	errors at the same time
 *   block, large_block, crowded_block
 *		memory blocks that are to go offline
 *   contig	2 MiB hugepages in the way of 1 GiB hugepages
 *   demoted	1 GiB hugepages that are to be made small ones
 *   mapped	what changes a mapping
 *   shared_table	processes that share a page table
 *   faulted	userfaultfd
 *   circle	corrupt, release, unpoison, and all over again
 *   page_types	the same by page-types of tools/mm, which PATH must lead to
 *   leaked	hugepages that stay out of use, in the way of blocks and larger ones
 *
 * Not tested here: with vm.memory_failure_recovery = 0 an error panics the machine,
 * which takes a machine that expects it.  in_flight makes a block device of its own,
 * with CONFIG_BLK_DEV_NULL_BLK and CONFIG_CONFIGFS_FS.
 */

#define _GNU_SOURCE
#include "mfr_util.h"
#include "../../../../mm/gup_test.h"
#include <linux/magic.h>
#include <linux/userfaultfd.h>
#include <linux/vm_sockets.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/vfs.h>

/* What the headers of 6.12 don't have */
#ifndef UFFDIO_RWPROTECT
struct uffdio_rwprotect {
	struct uffdio_range range;
	__u64 mode;
};

#define UFFDIO_RWPROTECT_MODE_RWP	BIT_ULL(0)
#define UFFDIO_REGISTER_MODE_RWP	BIT_ULL(3)
#define UFFD_PAGEFAULT_FLAG_RWP		BIT_ULL(3)
#define UFFD_FEATURE_RWP		BIT_ULL(17)
#define UFFDIO_RWPROTECT		_IOWR(UFFDIO, 0x09, struct uffdio_rwprotect)
#endif

#define GUP_TEST		"/sys/kernel/debug/gup_test"
#define COMPACT_MEMORY		"/proc/sys/vm/compact_memory"

/* Hugepages in files that have several. */
#define NR_SEVERAL		4

/*
 * gup_test stands in for VFIO: an open file that holds a range of memory by long-term
 * pins, until it is told to stop or closed. In older kernels one at a time can do so.
 */
static int open_pin(void)
{
	return open(GUP_TEST, O_RDWR);
}

static int pin_range(int fd, char *addr, size_t len, unsigned int flags)
{
	struct pin_longterm_test args = {
		.addr = (uintptr_t)addr,
		.size = len,
		.flags = flags,
	};

	return ioctl(fd, PIN_LONGTERM_TEST_START, &args) ? -errno : 0;
}

/* Copy what is pinned, as a device would read it: without a page table. */
static int read_pinned(int fd, char *buf)
{
	__u64 addr = (uintptr_t)buf;

	return ioctl(fd, PIN_LONGTERM_TEST_READ, &addr) ? -errno : 0;
}

static int unpin_range(int fd)
{
	return ioctl(fd, PIN_LONGTERM_TEST_STOP) ? -errno : 0;
}

/* Put references to pages into a pipe. */
static ssize_t splice_pages(int pipefd, char *addr, size_t len)
{
	struct iovec iov = { .iov_base = addr, .iov_len = len };
	ssize_t ret = vmsplice(pipefd, &iov, 1, SPLICE_F_NONBLOCK);

	return ret < 0 ? -errno : ret;
}

static void let_go(struct __test_metadata *_metadata, struct subject *s)
{
	if (s->map)
		unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	EXPECT_EQ(0, close(s->fd));
	s->fd = -1;
}

/* How a page gets lost that no process maps, and what a repeat returns. */
static const struct injector *by_address(struct subject *s)
{
	return s->injector->for_real && !mce_on_amd() ? &by_scrub : &by_pfn;
}

/* Lose a page that no process maps. Nobody hears of that. */
static void lose_unmapped(struct __test_metadata *_metadata, struct subject *s,
			  unsigned long nr)
{
	note_lost(_metadata, s, nr);
	heard.nr = 0;
	ASSERT_EQ(0, by_address(s)->inject(NULL, raw_pfn(s, nr)));
	EXPECT_EQ(0, heard.nr);
	expect_corrupted(_metadata, s);
}

/* A hugepage of the hugetlb subsystem, in use, poisoned if it has lost pages. */
static void expect_whole(struct __test_metadata *_metadata, struct subject *s,
			 unsigned long huge)
{
	unsigned long i, nr_lost = 0, nr_other = 0;

	ASSERT_TRUE(read_kpageflags(s->head[huge], s->nr_raw, s->flags));
	for (i = 0; i < s->nr_raw; i++) {
		nr_lost += s->lost[huge * s->nr_raw + i];
		nr_other += !(s->flags[i] & KPF_HUGE) || (s->flags[i] & KPF_BUDDY);
	}
	EXPECT_EQ(0, nr_other);
	EXPECT_EQ(!!nr_lost, !!(s->flags[0] & KPF_HWPOISON));
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

/* @gone hugepages have left the pool, @used of the others are still in use. */
static void wait_for_pool(struct __test_metadata *_metadata, struct subject *s, long gone,
			  long used)
{
	struct pool pool;
	int i;

	for (i = 0; i < 250; i++) {
		pool = pool_read(s->size);
		if (pool.nr == s->before.nr - gone &&
		    pool.free == s->before.free - gone - used)
			break;
		usleep(20000);
	}
	expect_pool(_metadata, s, gone, used);
}

/*
 * What outlives the file
 */

FIXTURE(pinned)
{
	struct subject s;
};

FIXTURE_VARIANT(pinned)
{
	unsigned long size;
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(pinned, madvise_2m)
{
	.size = SZ_2M,
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(pinned, corrupt_pfn_2m)
{
	.size = SZ_2M,
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(pinned, mce_2m)
{
	.size = SZ_2M,
	.injector = &by_mce,
};

FIXTURE_VARIANT_ADD_SIZES(pinned)

FIXTURE_SETUP(pinned)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, variant->size, variant->injector, 1);
	if (_metadata->exit_code)
		return;
	open_subject(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
	/* There must be others, to see that this one is not handed out. */
	if (!need_more_hugepages(&self->s, 2))
		SKIP(return, "can't get 3 hugepages");
}

FIXTURE_TEARDOWN_PARENT(pinned)
{
	teardown_subject(_metadata, &self->s);
}

TEST_F_TIMEOUT(pinned, pages_in_a_pipe_outlive_file_and_mapping, SLOW)
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

TEST_F_TIMEOUT(pinned, a_pipe_that_is_closed_lets_go_of_its_pages, SLOW)
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

TEST_F_TIMEOUT(pinned, a_long_term_pin_outlives_file_and_mapping, SLOW)
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

TEST_F_TIMEOUT(pinned, a_long_term_pin_across_a_lost_page_is_refused, SLOW)
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
			char *page = raw_page(s, nr);

			EXPECT_EQ(-EFAULT, pin_range(fd, page, ps, flags));
			EXPECT_EQ(-EFAULT, pin_range(fd, page, 2 * ps, flags));
			EXPECT_EQ(-EFAULT, pin_range(fd, page - ps, 2 * ps, flags));
			EXPECT_EQ(-EFAULT, pin_range(fd, s->map, s->size, flags));
			EXPECT_EQ(0, pin_range(fd, s->map, nr * ps, flags));
			EXPECT_EQ(0, unpin_range(fd));
			EXPECT_EQ(0, pin_range(fd, page + ps, (nr - 1) * ps, flags));
			EXPECT_EQ(0, unpin_range(fd));
			if (!round)
				continue;
			unmap_file(s);
			s->map = map_file(s, MAP_SHARED);
			ASSERT_NE(NULL, s->map);
		}
	}

	/* What did not come about holds nothing. */
	let_go(_metadata, s);
	expect_released(_metadata, s);
}

/* The kernel can't take the page from its user, but does all that it can. */
TEST_F_TIMEOUT(pinned, the_loss_of_a_pinned_page_is_no_failure, SLOW)
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
	let_go(_metadata, s);
	expect_released(_metadata, s);
}

/* As ever: nobody asks again whether a pinned page is lost. */
TEST_F_TIMEOUT(pinned, a_pinned_page_that_is_lost_stays_where_the_kernel_finds_it, SLOW)
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
	let_go(_metadata, s);
	expect_released(_metadata, s);
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
	struct ring r;
	int ready[2];
	char byte = 0;
	pid_t pid;

	ASSERT_EQ(0, pipe(ready));
	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (with_ring && (!make_ring(&r) ||
				  register_buffer(&r, raw_page(s, nr + 1), 2 * psize())))
			_exit(KSFT_FAIL);
		if (pin >= 0 && pin_range(pin, raw_page(s, 1), psize(), 0))
			_exit(KSFT_FAIL);
		if (write(ready[1], &byte, 1) != 1)
			_exit(KSFT_FAIL);
		for (;;)
			pause();
	}
	close(ready[1]);
	ASSERT_EQ(1, read(ready[0], &byte, 1));
	close(ready[0]);
	return pid;
}

/* Live update, say, has to carry all of a file to the next kernel. */
TEST_F_TIMEOUT(pinned, a_file_with_a_lost_page_can_be_preserved, SLOW)
{
	struct subject *s = &self->s;
	struct pin_memfd_test pin = { .fd = s->fd, .size = s->nr_raw * psize() };
	int fd = open(GUP_TEST, O_RDWR);

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
	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(pinned, who_truncates_need_not_be_who_pins, SLOW)
{
	struct subject *s = &self->s;
	struct ring r;
	pid_t pid;

	if (!make_ring(&r))
		SKIP(return, "needs io_uring");
	destroy_ring(&r);
	pid = start_pinning(_metadata, s, -1, true);
	lose(_metadata, s, s->nr_raw / 2);
	/* The other process keeps the descriptor and the mapping, both empty now. */
	let_go(_metadata, s);
	expect_held(_metadata, s);
	lose_unmapped(_metadata, s, 5);
	expect_held(_metadata, s);
	kill_child(_metadata, pid);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(pinned, a_killed_process_leaves_its_ring_to_a_worker, SLOW)
{
	struct subject *s = &self->s;
	struct ring r;
	pid_t pid;

	if (!make_ring(&r))
		SKIP(return, "needs io_uring");
	destroy_ring(&r);
	pid = start_pinning(_metadata, s, -1, true);
	lose(_metadata, s, s->nr_raw / 2);
	/* From now on the file, the mapping and the pin are all of one process. */
	unmap_file(s);
	EXPECT_EQ(0, close(s->fd));
	expect_pool(_metadata, s, 0, 1);
	kill_child(_metadata, pid);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(pinned, the_pin_of_a_dead_process_ends_in_another, SLOW)
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

TEST_F_TIMEOUT(pinned, errors_find_a_hugepage_that_only_a_pin_holds, SLOW)
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
	/* Also the very page that is pinned. */
	lose_unmapped(_metadata, s, nr + 1);
	/* What was lost is lost, before the end of the file or after it. */
	EXPECT_EQ(by_address(s)->again, by_address(s)->inject(NULL, raw_pfn(s, nr)));
	EXPECT_EQ(by_address(s)->again, by_address(s)->inject(NULL, raw_pfn(s, 0)));
	EXPECT_EQ(delayed + 4, mf_stat("delayed"));
	expect_held(_metadata, s);

	EXPECT_EQ(0, unpin_range(fd));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(pinned, the_first_error_can_find_what_only_a_reference_holds, SLOW)
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

TEST_F_TIMEOUT(pinned, a_healthy_hugepage_returns_to_the_pool_after_the_last_pin, SLOW)
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

	/* It is kept no more: an error takes all of it out of the pool. */
	lose_unmapped(_metadata, s, 7);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(pinned, a_request_in_flight_outlives_the_file, SLOW)
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
TEST_F_TIMEOUT(pinned, a_request_in_flight_does_not_touch_a_page_lost_meanwhile, SLOW)
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
	let_go(_metadata, s);
	expect_released(_metadata, s);
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
	unsigned int tries;

	destroy_ring(r);
	let_go(_metadata, s);
	for (tries = 0; tries < 250; tries++) {
		if (pool_read(s->size).free == s->before.free)
			break;
		usleep(20000);
	}
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
		SKIP(return, "kernel can't do that with registered buffers");
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
	/* A second notice tells that the buffer is not used any more. */
	if (opcode == IORING_OP_SEND_ZC)
		EXPECT_EQ(0, wait_fixed(&r));
	destroy_ring(&r);
	let_go(_metadata, s);
	expect_released(_metadata, s);
}

/* The same with two pieces of the buffer, of which the second is lost. */
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

TEST_F_TIMEOUT(pinned, a_waiting_read_leaves_out_a_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	int fds[2];

	ASSERT_EQ(0, pipe(fds));
	lose_while_waiting(_metadata, s, IORING_OP_READ_FIXED, fds, raw_page(s, nr) + 8, 8,
			   nr);
}

TEST_F_TIMEOUT(pinned, a_waiting_write_leaves_out_a_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	int fds[2];

	ASSERT_EQ(0, pipe(fds));
	lose_while_waiting(_metadata, s, IORING_OP_WRITE_FIXED, fds, raw_page(s, nr),
			   psize(), nr);
}

TEST_F_TIMEOUT(pinned, a_waiting_readv_leaves_out_a_lost_page, SLOW)
{
	lose_a_piece_while_waiting(_metadata, &self->s, OP_READV_FIXED);
}

TEST_F_TIMEOUT(pinned, a_waiting_writev_leaves_out_a_lost_page, SLOW)
{
	lose_a_piece_while_waiting(_metadata, &self->s, OP_WRITEV_FIXED);
}

TEST_F_TIMEOUT(pinned, a_waiting_receive_leaves_out_a_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	int fds[2];

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
	lose_while_waiting(_metadata, s, IORING_OP_RECV, fds, raw_page(s, nr) + 8, 8, nr);
}

TEST_F_TIMEOUT(pinned, a_waiting_send_leaves_out_a_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	int fds[2];

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, fds));
	lose_while_waiting(_metadata, s, IORING_OP_SEND, fds, raw_page(s, nr), psize(), nr);
}

TEST_F_TIMEOUT(pinned, a_resumed_send_leaves_out_a_lost_page, SLOW)
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
	/* There isn't room for as much, and less will not do. */
	prepare_fixed(&r, IORING_OP_SEND, fds[1], s->map, (nr + 1) * ps);
	r.sqe->msg_flags = MSG_WAITALL;
	ASSERT_EQ(0, submit(&r));
	if (!is_in_flight(&r)) {
		ASSERT_EQ(-EINVAL, wait_fixed(&r));
		give_back_ring(_metadata, s, &r);
		SKIP(return, "kernel can't do that with registered buffers");
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
	let_go(_metadata, s);
	expect_released(_metadata, s);
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

TEST_F_TIMEOUT(pinned, a_waiting_send_zc_leaves_out_a_lost_page, SLOW)
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

FIXTURE(left_over)
{
	struct subject s;
	struct ring ring;
	int pipe[2];
};

FIXTURE_VARIANT(left_over)
{
	bool is_pinned;
};

FIXTURE_VARIANT_ADD(left_over, by_reference)
{
	.is_pinned = false,
};

FIXTURE_VARIANT_ADD(left_over, by_pin)
{
	.is_pinned = true,
};

FIXTURE_SETUP(left_over)
{
	struct subject *s = &self->s;

	/* The same series has put it right. */
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, s, SZ_2M, &by_pfn, 1);
	if (_metadata->exit_code)
		return;
	open_subject(_metadata, s, 0);
	/* There must be others, to see that this one is not handed out. */
	if (!need_more_hugepages(s, 2))
		SKIP(return, "can't get 3 hugepages");
	if (variant->is_pinned && !make_ring(&self->ring))
		SKIP(return, "needs io_uring");
	if (variant->is_pinned) {
		ASSERT_EQ(0, register_buffer(&self->ring, s->map, s->size));
		/* Who pins it for long may get it moved. */
		s->head[0] = mapped_pfn(s->map);
	} else {
		ASSERT_EQ(0, pipe(self->pipe));
		ASSERT_EQ(psize(), splice_pages(self->pipe[1], raw_page(s, 5), psize()));
	}
	let_go(_metadata, s);
}

FIXTURE_TEARDOWN_PARENT(left_over)
{
	teardown_subject(_metadata, &self->s);
}

TEST_F_TIMEOUT(left_over, can_be_unpoisoned_when_it_is_nobodys, SLOW)
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

FIXTURE_VARIANT(in_flight)
{
	unsigned long size;
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(in_flight, madvise_2m)
{
	.size = SZ_2M,
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(in_flight, corrupt_pfn_2m)
{
	.size = SZ_2M,
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(in_flight, mce_2m)
{
	.size = SZ_2M,
	.injector = &by_mce,
};

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
 * Lose page @lost while page 12 is on its way to or from the disk. (What is larger than
 * a request would be split, and so be submitted by another thread.)
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

TEST_F_TIMEOUT(in_flight, what_is_being_written_outlives_the_file, SLOW)
{
	lose_in_flight(_metadata, &self->s, &self->ring, IORING_OP_WRITE, self->disk, 3);
}

TEST_F_TIMEOUT(in_flight, what_is_being_read_outlives_the_file, SLOW)
{
	lose_in_flight(_metadata, &self->s, &self->ring, IORING_OP_READ, self->disk, 3);
}

TEST_F_TIMEOUT(in_flight, a_page_lost_on_its_way_is_left_out, SLOW)
{
	lose_in_flight(_metadata, &self->s, &self->ring, IORING_OP_WRITE, self->disk, 12);
}

/* Open it for requests that go through the page cache, without any readahead. */
static int open_cached(void)
{
	int fd = open("/dev/hugetlb-mfr", O_RDWR);

	return fd < 0 || posix_fadvise(fd, 0, 0, POSIX_FADV_RANDOM) ? -1 : fd;
}

TEST_F_TIMEOUT(in_flight, a_resumed_read_leaves_out_a_lost_page, SLOW)
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
	let_go(_metadata, s);
	expect_released(_metadata, s);
}

/*
 * Several hugepages, in use everywhere
 */

FIXTURE(several)
{
	struct subject s;
};

FIXTURE_VARIANT(several)
{
	unsigned long size;
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(several, madvise_2m)
{
	.size = SZ_2M,
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(several, corrupt_pfn_2m)
{
	.size = SZ_2M,
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(several, mce_2m)
{
	.size = SZ_2M,
	.injector = &by_mce,
};

FIXTURE_VARIANT_ADD_SIZES(several)

FIXTURE_SETUP(several)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, variant->size, variant->injector, NR_SEVERAL);
	if (!_metadata->exit_code)
		open_subject(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
}

FIXTURE_TEARDOWN_PARENT(several)
{
	teardown_subject(_metadata, &self->s);
}

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

/* Which hugepages a kind of pins holds; see pin_all(). */
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
	for (i = 0; i < NR_SPOTS; i++)
		lose(_metadata, s, 2 * s->nr_raw + spot(s, i));
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

TEST_F_TIMEOUT(several, pins_end_with_the_pipe, SLOW)
{
	const int order[NR_PINS] = { LONG_TERM, IN_RING, IN_PIPE };

	expect_end_in_order(_metadata, &self->s, order);
}

TEST_F_TIMEOUT(several, pins_end_with_the_long_term_ones, SLOW)
{
	const int order[NR_PINS] = { IN_RING, IN_PIPE, LONG_TERM };

	expect_end_in_order(_metadata, &self->s, order);
}

TEST_F_TIMEOUT(several, pins_end_with_the_ring, SLOW)
{
	const int order[NR_PINS] = { IN_PIPE, LONG_TERM, IN_RING };

	expect_end_in_order(_metadata, &self->s, order);
}

TEST_F_TIMEOUT(several, one_pin_across_hugepages_holds_all_of_them, SLOW)
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
 * Truncate the file bit by bit, with lost pages in every hugepage, under its users. What
 * they have open in @fd is closed with the last of them.
 */
static void truncate_in_use(struct __test_metadata *_metadata, struct subject *s,
			    use_t use, int fd)
{
	struct user u = { .s = s, .owner = getpid(), .fd = fd };
	unsigned long *used = alloc_shared(psize());
	unsigned long i, before;
	pid_t pid[2];
	int j, tries;

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
		for (tries = 0; tries < 10000; tries++) {
			if (__atomic_load_n(used, __ATOMIC_RELAXED) - before > 50)
				break;
			usleep(1000);
		}
		EXPECT_NE(10000, tries);
		EXPECT_EQ(0, ftruncate(s->fd, i * s->size));
		wait_for_pool(_metadata, s, NR_SEVERAL - i, i);
	}
	for (j = 0; j < 2; j++)
		kill_child(_metadata, pid[j]);
	let_go(_metadata, s);
	wait_for_pool(_metadata, s, NR_SEVERAL, 0);
	expect_corrupted(_metadata, s);
	/* What is freed first is taken first, and a kernel stack shows no flag. */
	s->nr_unknown = 4;
	for (i = 0; i < NR_SEVERAL; i++)
		expect_all_come_back(_metadata, s, i);
}

TEST_F_TIMEOUT(several, truncation_races_with_direct_io, SLOW)
{
	struct subject *s = &self->s;
	struct statfs fs;
	int fd;

	fd = open(".", O_TMPFILE | O_RDWR | O_DIRECT, 0600);
	if (fd < 0)
		SKIP(return, "no O_DIRECT and O_TMPFILE in this directory");
	ASSERT_EQ(0, fstatfs(fd, &fs));
	if (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC)
		SKIP(return, "O_DIRECT means nothing in this directory");
	/*
	 * Holes are filled with the help of the page cache.  And a disk that is
	 * memory takes what it needs of that now, and not from what is released.
	 */
	ASSERT_EQ(psize(), pwrite(fd, s->map, psize(), 0));
	ASSERT_EQ(0, syncfs(fd));
	truncate_in_use(_metadata, s, use_by_direct_io, fd);
}

TEST_F_TIMEOUT(several, truncation_races_with_process_vm_readv_and_writev, SLOW)
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
 * What moves a hugepage to another node
 */

/* The file under test has three hugepages, the one in the middle loses pages. */
#define NR_MOVED	3

/* The pools of two nodes, as they were and will be again. */
struct nodes {
	int from, to;
	long nr[2];
	long soft_offline;
};

static const char *node_pool_path(int node, unsigned long size, const char *name)
{
	static char path[PATH_MAX];

	snprintf(path, sizeof(path),
		 "/sys/devices/system/node/node%d/hugepages/hugepages-%lukB/%s", node,
		 size >> 10, name);
	return path;
}

static long node_pool_get(int node, unsigned long size, const char *name)
{
	long val;

	return read_long(node_pool_path(node, size, name), &val) ? val : -1;
}

static bool node_pool_set(int node, unsigned long size, const char *name, long val)
{
	return write_long(node_pool_path(node, size, name), val);
}

static bool node_pool_grow(int node, unsigned long size, long nr)
{
	long missing = nr - node_pool_get(node, size, "free_hugepages");

	if (missing > 0)
		node_pool_set(node, size, "nr_hugepages",
			      node_pool_get(node, size, "nr_hugepages") + missing);
	return node_pool_get(node, size, "free_hugepages") >= nr;
}

/* The first and the last node with memory. */
static bool find_nodes(struct nodes *n)
{
	char nodes[256], *last;

	if (read_text("/sys/devices/system/node/has_memory", nodes, sizeof(nodes)) <= 0)
		return false;
	n->from = atoi(nodes);
	last = nodes + strcspn(nodes, "\n");
	while (last > nodes && last[-1] >= '0' && last[-1] <= '9')
		last--;
	n->to = atoi(last);
	return n->from != n->to;
}

static void save_nodes(struct nodes *n, unsigned long size)
{
	n->nr[0] = node_pool_get(n->from, size, "nr_hugepages");
	n->nr[1] = node_pool_get(n->to, size, "nr_hugepages");
	if (!read_long(SOFT_OFFLINE, &n->soft_offline))
		n->soft_offline = -1;
}

static void restore_nodes(struct nodes *n, unsigned long size)
{
	if (n->from == n->to)
		return;
	node_pool_set(n->from, size, "nr_hugepages", n->nr[0]);
	node_pool_set(n->to, size, "nr_hugepages", n->nr[1]);
	if (n->soft_offline >= 0)
		write_long(SOFT_OFFLINE, n->soft_offline);
}

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

/* The node that the page at @addr is on. */
static int node_of(char *addr)
{
	void *page = addr;
	int status = -1;

	return syscall(SYS_move_pages, 0, 1UL, &page, NULL, &status, 0) ? -1 : status;
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

FIXTURE(moved)
{
	struct subject s;
	struct nodes n;
};

FIXTURE_VARIANT(moved)
{
	unsigned long size;
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(moved, madvise_2m)
{
	.size = SZ_2M,
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(moved, corrupt_pfn_2m)
{
	.size = SZ_2M,
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(moved, mce_2m)
{
	.size = SZ_2M,
	.injector = &by_mce,
};

FIXTURE_VARIANT_ADD_SIZES(moved)

FIXTURE_SETUP(moved)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	if (!find_nodes(&self->n))
		SKIP(return, "needs two nodes with memory");
	save_nodes(&self->n, variant->size);
	setup_subject(_metadata, &self->s, variant->size, variant->injector, NR_MOVED);
	if (!_metadata->exit_code)
		open_on_node(_metadata, &self->s, &self->n, self->n.from, 2);
}

FIXTURE_TEARDOWN_PARENT(moved)
{
	teardown_subject(_metadata, &self->s);
	restore_nodes(&self->n, variant->size);
}

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

	EXPECT_EQ(n->from, node_of(raw_page(s, s->nr_raw + 1)));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 1));
	for (i = 0; i < NR_MOVED; i += 2) {
		expect_was_moved(_metadata, s, i);
		EXPECT_EQ(n->to, node_of(s->map + i * s->size));
	}
	expect_corrupted(_metadata, s);
	expect_pool(_metadata, s, 0, NR_MOVED);
	expect_all_kept(_metadata, s);
}

TEST_F_TIMEOUT(moved, move_pages_moves_all_but_what_has_lost_pages, SLOW)
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
	/* It tells how many were not moved. */
	EXPECT_EQ(1, syscall(SYS_move_pages, 0, (unsigned long)NR_MOVED, pages, nodes,
			     status, MPOL_MF_MOVE));
	expect_rest_was_moved(_metadata, s, &self->n);
}

TEST_F_TIMEOUT(moved, mbind_moves_all_but_what_has_lost_pages, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nodes = 1UL << self->n.to;
	/* MPOL_MF_MOVE may take the page table of contiguous PTEs for a shared one. */
	int move = s->size < SZ_2M ? MPOL_MF_MOVE_ALL : MPOL_MF_MOVE;

	lose_middle(_metadata, s);
	errno = 0;
	EXPECT_EQ(-1, syscall(SYS_mbind, s->map, NR_MOVED * s->size, MPOL_BIND, &nodes,
			      sizeof(nodes) * 8, move | MPOL_MF_STRICT));
	EXPECT_EQ(EIO, errno);
	EXPECT_EQ(0, syscall(SYS_mbind, s->map, NR_MOVED * s->size, MPOL_BIND, &nodes,
			     sizeof(nodes) * 8, move));
	expect_rest_was_moved(_metadata, s, &self->n);
}

TEST_F_TIMEOUT(moved, migrate_pages_moves_all_but_what_has_lost_pages, SLOW)
{
	struct subject *s = &self->s;
	unsigned long from = 1UL << self->n.from;
	unsigned long to = 1UL << self->n.to;

	lose_middle(_metadata, s);
	/* It tells how many were not moved. */
	EXPECT_LT(0, syscall(SYS_migrate_pages, 0, sizeof(from) * 8, &from, &to));
	expect_rest_was_moved(_metadata, s, &self->n);
}

TEST_F_TIMEOUT(moved, compaction_leaves_all_where_they_are, SLOW)
{
	struct subject *s = &self->s;
	unsigned long i;

	lose_middle(_metadata, s);
	if (!write_text(COMPACT_MEMORY, "1"))
		SKIP(return, "needs CONFIG_COMPACTION");
	for (i = 0; i < NR_MOVED; i++)
		EXPECT_TRUE(is_mapped_huge(s, s->map, i));
	expect_all_kept(_metadata, s);
}

TEST_F_TIMEOUT(moved, what_was_moved_back_and_forth_is_kept, SLOW)
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
			EXPECT_EQ(nodes[j], node_of(pages[j]));
			expect_was_moved(_metadata, s, j);
		}
		expect_pool(_metadata, s, 0, NR_MOVED);
	}
	expect_all_kept(_metadata, s);
}

/* Moved by one process, kept in all. */
TEST_F_TIMEOUT(moved, what_was_moved_is_kept_in_all_processes, SLOW)
{
	struct subject *s = &self->s;
	int nodes[NR_MOVED], status[NR_MOVED];
	void *pages[NR_MOVED];
	struct witness w;
	siginfo_t si;
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
		ASSERT_TRUE(witness_heard(&w, &si, 10000));
		EXPECT_EQ(BUS_MCEERR_AO, si.si_code);
		EXPECT_EQ((uintptr_t)w.map + i * s->size + 3 * psize(),
			  (uintptr_t)si.si_addr);
		EXPECT_EQ(pshift(), si.si_addr_lsb);
	}
	stop_witness(&w);
	expect_all_kept(_metadata, s);
}

TEST_F_TIMEOUT(moved, soft_offlining_moves_a_healthy_hugepage_and_it_is_kept, SLOW)
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

	if (ledger->for_ever)
		return;
	EXPECT_EQ(0, unpoison(pfn));
	s->corrupted -= psize() >> 10;
	expect_corrupted(_metadata, s);
}

TEST_F_TIMEOUT(moved, nothing_is_soft_offlined_where_that_is_disabled, SLOW)
{
	struct subject *s = &self->s;
	unsigned long i;

	if (!write_long(SOFT_OFFLINE, 0))
		SKIP(return, "needs vm.enable_soft_offline");
	lose_middle(_metadata, s);
	for (i = 0; i < NR_MOVED; i++) {
		errno = 0;
		EXPECT_EQ(-1, madvise(raw_page(s, i * s->nr_raw + 7), psize(),
				      MADV_SOFT_OFFLINE));
		EXPECT_EQ(EOPNOTSUPP, errno);
		EXPECT_TRUE(is_mapped_huge(s, s->map, i));
	}
	expect_corrupted(_metadata, s);
	expect_all_kept(_metadata, s);
}

static int soft_offline_pfn(unsigned long pfn)
{
	return write_pfn(SOFT_OFFLINE_PAGE, pfn * psize());
}

TEST_F_TIMEOUT(moved, what_only_a_pin_holds_is_not_soft_offlined, SLOW)
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

	/* Neither a page with lost ones beside it nor one of a healthy hugepage. */
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
	if (!find_nodes(&self->n))
		SKIP(return, "needs two nodes with memory");
	save_nodes(&self->n, SZ_2M);
	setup_subject(_metadata, &self->s, SZ_2M, &by_madvise, 1);
}

FIXTURE_TEARDOWN_PARENT(moving)
{
	teardown_subject(_metadata, &self->s);
	restore_nodes(&self->n, SZ_2M);
}

/* A process that moves the hugepage to and fro. */
static pid_t start_moving(struct __test_metadata *_metadata, struct subject *s,
			  struct nodes *n, unsigned long *moved)
{
	pid_t pid = fork_helper();
	unsigned long i;

	ASSERT_LE(0, pid);
	for (i = 0; !pid; i++) {
		int status, node = i % 2 ? n->from : n->to;
		void *page = raw_page(s, 1);

		try_read(page);
		if (!syscall(SYS_move_pages, 0, 1UL, &page, &node, &status,
			     MPOL_MF_MOVE_ALL) && status == node)
			__atomic_add_fetch(moved, 1, __ATOMIC_RELAXED);
	}
	return pid;
}

TEST_F_TIMEOUT(moving, does_not_keep_errors_from_being_told, SLOW)
{
	unsigned long *moved = alloc_shared(psize());
	struct subject *s = &self->s;
	int round, tries;
	pid_t pid;

	ASSERT_NE(NULL, moved);
	for (round = 0; round < 40; round++) {
		unsigned int i;

		open_on_node(_metadata, s, &self->n, self->n.from, 1);
		if (_metadata->exit_code)
			return;
		*moved = 0;
		pid = start_moving(_metadata, s, &self->n, moved);
		for (tries = 0; tries < 10000; tries++) {
			if (__atomic_load_n(moved, __ATOMIC_RELAXED) > 4)
				break;
			usleep(500);
		}
		EXPECT_NE(10000, tries);

		for (i = 0; i < 4; i++) {
			heard.nr = 0;
			EXPECT_EQ(0, inject(s, spot(s, i)));
			expect_sigbus(_metadata, BUS_MCEERR_AR, raw_page(s, spot(s, i)),
				      pshift());
			/* From the first one on it stays where it is. */
			s->head[0] = mapped_pfn(raw_page(s, 2)) - 2;
			note_lost(_metadata, s, spot(s, i));
			expect_corrupted(_metadata, s);
		}
		EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
		EXPECT_EQ(0, nr_changed_pages(s));
		kill_child(_metadata, pid);
		let_go(_metadata, s);
		expect_released(_metadata, s);
		ledger->nr_poison = 0;
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

FIXTURE_VARIANT(block)
{
	unsigned long size;
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(block, madvise_2m)
{
	.size = SZ_2M,
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(block, corrupt_pfn_2m)
{
	.size = SZ_2M,
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(block, mce_2m)
{
	.size = SZ_2M,
	.injector = &by_mce,
};

FIXTURE_VARIANT_ADD(block, madvise_1g)
{
	.size = SZ_1G,
	.injector = &by_madvise,
};

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
	if (!find_nodes(n))
		SKIP(return, "needs two nodes with memory");
	if (access(MEMORY_BLOCKS "/block_size_bytes", R_OK))
		SKIP(return, "needs CONFIG_MEMORY_HOTPLUG");
	/* As on arm64, where what was there at boot stays online. */
	if (size != SZ_2M && movable_block(n->to, state) < 0)
		SKIP(return, "no memory block can go offline");
	save_nodes(n, size);
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
		/* It fills its blocks, there is no room for anything else. */
		open_on_node(_metadata, s, n, n->to, 0);
		if (_metadata->exit_code)
			return;
		block[0] = block_of(s->head[0]);
	}
	/* Another one, if the hugepage is large. */
	block[1] = block_of(s->head[0] + s->nr_raw - 1);
	/* There must be one to move to. */
	if (!node_pool_grow(n->from, s->size, 1))
		SKIP(return, "can't get hugepages on each node");
	s->before = pool_read(s->size);
	s->before.free++;
}

static void teardown_block(struct __test_metadata *_metadata, struct subject *s,
			   struct nodes *n, long *block)
{
	unsigned int i;

	for (i = 0; i < 2; i++)
		if (block[i] >= 0 && !block_is_online(block[i]))
			change_block(block[i], "online");
	teardown_subject(_metadata, s);
	restore_nodes(n, s->size);
}

FIXTURE_SETUP(block)
{
	setup_block(_metadata, &self->s, &self->n, self->block, variant->size,
		    variant->injector, "online");
}

FIXTURE_TEARDOWN_PARENT(block)
{
	teardown_block(_metadata, &self->s, &self->n, self->block);
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

TEST_F_TIMEOUT(block, with_lost_pages_of_a_hugepage_in_use_stays_online, 2 * SLOW)
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
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	/* It is kept like before. */
	lose(_metadata, s, 3);

	/* In the file only, and held by nothing but a pin. */
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
	/* That is so with every block that lost pages. */
	EXPECT_EQ(ledger->for_ever ? -EHWPOISON : 0,
		  change_block(self->block[1], "online"));
	expect_corrupted(_metadata, s);
}

TEST_F_TIMEOUT(block, takes_no_healthy_hugepage_along, 2 * SLOW)
{
	struct subject *s = &self->s;

	ASSERT_EQ(0, change_block(self->block[0], "offline"));
	EXPECT_FALSE(block_is_online(self->block[0]));
	expect_was_moved(_metadata, s, 0);
	EXPECT_NE(self->block[0], block_of(s->head[0]));
	EXPECT_EQ(0, change_block(self->block[0], "online"));
	EXPECT_TRUE(block_is_online(self->block[0]));

	/* What was free in the block has left the pool. */
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
	long hvo;
};

FIXTURE_VARIANT(large_block)
{
	bool hvo;
};

FIXTURE_VARIANT_ADD(large_block, optimized)
{
	.hvo = true,
};

FIXTURE_VARIANT_ADD(large_block, not_optimized)
{
};

FIXTURE_SETUP(large_block)
{
	self->hvo = -1;
	if (read_long(HVO, &self->hvo))
		write_long(HVO, variant->hvo);
	else if (variant->hvo)
		SKIP(return, "needs CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP");
	setup_block(_metadata, &self->s, &self->n, self->block, SZ_1G, &by_madvise,
		    "online");
	if (self->block[0] >= 0 && self->block[0] == self->block[1])
		SKIP(return, "memory blocks are as large as hugepages");
}

FIXTURE_TEARDOWN_PARENT(large_block)
{
	teardown_block(_metadata, &self->s, &self->n, self->block);
	if (self->hvo >= 0)
		write_long(HVO, self->hvo);
}

/* A worker frees it, which takes longer if it has to restore struct pages first. */
TEST_F_TIMEOUT(large_block, goes_offline_while_the_hugepage_is_being_freed, 2 * SLOW)
{
	struct subject *s = &self->s;

	/* If no other is free it must not be taken for one that is reserved. */
	node_pool_set(self->n.from, s->size, "nr_hugepages", 0);
	s->before = pool_read(s->size);
	ASSERT_EQ(0, s->before.free++);

	lose(_metadata, s, 0);
	lose(_metadata, s, 7);
	let_go(_metadata, s);
	EXPECT_EQ(0, change_block(self->block[1], "offline"));
	EXPECT_FALSE(block_is_online(self->block[1]));
	EXPECT_EQ(0, change_block(self->block[1], "online"));
	EXPECT_TRUE(block_is_online(self->block[1]));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(large_block, without_lost_pages_goes_offline_as_ever, 2 * SLOW)
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

FIXTURE_VARIANT(crowded_block)
{
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(crowded_block, madvise_2m)
{
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(crowded_block, corrupt_pfn_2m)
{
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(crowded_block, mce_2m)
{
	.injector = &by_mce,
};

FIXTURE_SETUP(crowded_block)
{
	setup_block(_metadata, &self->s, &self->n, self->block, SZ_2M, variant->injector,
		    "online");
}

FIXTURE_TEARDOWN_PARENT(crowded_block)
{
	teardown_block(_metadata, &self->s, &self->n, self->block);
}

TEST_F_TIMEOUT(crowded_block, moves_what_it_can_but_no_lost_pages, 2 * SLOW)
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
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	lose(_metadata, s, 5);
	expect_pool(_metadata, s, 0, 2);

	munmap(map, s->size);
	close(fd);
	let_go(_metadata, s);
	expect_released(_metadata, s);
}

/*
 * What wants to make hugepages of another size
 */

FIXTURE(contig)
{
	struct subject s;
	struct nodes n;
};

FIXTURE_VARIANT(contig)
{
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(contig, madvise_2m)
{
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(contig, corrupt_pfn_2m)
{
	.injector = &by_pfn,
};

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
	if (!find_nodes(&self->n))
		SKIP(return, "needs two nodes with memory");
	if (!pool_exists(SZ_1G))
		SKIP(return, "no hugepages of 1 GiB here");
	save_nodes(&self->n, SZ_2M);
	setup_subject(_metadata, &self->s, SZ_2M, variant->injector, 1);
	if (_metadata->exit_code)
		return;
	pfn = movable_range(&self->n);
	if (!pfn)
		SKIP(return, "can't get a hugepage of 1 GiB");
	open_in_range(_metadata, &self->s, self->n.to, pfn, SZ_1G / psize());
}

FIXTURE_TEARDOWN_PARENT(contig)
{
	teardown_subject(_metadata, &self->s);
	restore_nodes(&self->n, SZ_2M);
}

/* The same with a hugepage whose file has no policy. */
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

TEST_F_TIMEOUT(contig, a_large_hugepage_takes_the_place_of_a_healthy_one, SLOW)
{
	struct subject *s = &self->s;

	EXPECT_LT(0, take_all_large(&self->n));
	if (mapped_pfn(s->map) == s->head[0] &&
	    !plain_hugepage_makes_room(_metadata, s, &self->n))
		SKIP(return, "this kernel lacks moving hugepages away for larger ones");
	expect_was_moved(_metadata, s, 0);
	s->before = pool_read(s->size);
	s->before.free++;
	expect_all_kept(_metadata, s);
}

TEST_F_TIMEOUT(contig, a_large_hugepage_takes_no_place_with_lost_pages, SLOW)
{
	struct subject *s = &self->s;
	long nr;

	lose(_metadata, s, s->nr_raw / 2);
	nr = take_all_large(&self->n);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
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

FIXTURE(demoted)
{
	struct subject s;
};

FIXTURE_SETUP(demoted)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, SZ_1G, &by_madvise, 1);
	if (!_metadata->exit_code)
		open_subject(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
}

FIXTURE_TEARDOWN_PARENT(demoted)
{
	teardown_subject(_metadata, &self->s);
}

TEST_F_TIMEOUT(demoted, are_only_those_that_are_free, SLOW)
{
	struct subject *s = &self->s;
	long small;

	if (!need_more_hugepages(s, 1))
		SKIP(return, "can't get 2 hugepages of 1 GiB");
	if (!demote_to(s->size, SZ_2M))
		SKIP(return, "no small hugepages to demote to");
	small = pool_get(SZ_2M, "nr_hugepages");
	lose_spots(_metadata, s);

	pool_set(s->size, "demote", s->before.free - s->before.resv);
	EXPECT_EQ(small + (s->before.free - s->before.resv - 1) * (SZ_1G / SZ_2M),
		  pool_get(SZ_2M, "nr_hugepages"));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	lose(_metadata, s, s->nr_raw / 3);

	s->before = pool_read(s->size);
	s->before.free++;
	let_go(_metadata, s);
	expect_released(_metadata, s);
}

/*
 * What changes a mapping
 */

FIXTURE(mapped)
{
	struct subject s;
};

FIXTURE_VARIANT(mapped)
{
	unsigned long size;
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(mapped, madvise_2m)
{
	.size = SZ_2M,
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(mapped, corrupt_pfn_2m)
{
	.size = SZ_2M,
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(mapped, mce_2m)
{
	.size = SZ_2M,
	.injector = &by_mce,
};

FIXTURE_VARIANT_ADD_SIZES(mapped)

FIXTURE_SETUP(mapped)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, variant->size, variant->injector, 1);
	if (!_metadata->exit_code)
		open_subject(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
}

FIXTURE_TEARDOWN_PARENT(mapped)
{
	teardown_subject(_metadata, &self->s);
}

/* Lose a page that the process maps, but can't consume: it hears of it early. */
static void lose_unseen(struct __test_metadata *_metadata, struct subject *s,
			unsigned long nr)
{
	const struct injector *injector = s->injector;

	s->injector = by_address(s);
	lose(_metadata, s, nr);
	s->injector = injector;
}

TEST_F_TIMEOUT(mapped, MADV_DONTNEED_unmaps_no_more_than_that, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;

	lose(_metadata, s, nr);
	EXPECT_EQ(0, madvise(s->map, s->size, MADV_DONTNEED));
	EXPECT_FALSE(is_mapped(s->map));
	expect_pool(_metadata, s, 0, 1);
	/* The mapping covers it, touched or not. */
	lose_unseen(_metadata, s, 6);

	EXPECT_FALSE(try_write(raw_page(s, nr)));
	expect_fault_in(_metadata, raw_page(s, nr));
	EXPECT_FALSE(try_read(raw_page(s, 6)));
	expect_fault_in(_metadata, raw_page(s, 6));
	EXPECT_FALSE(is_mapped(s->map));
	EXPECT_TRUE(try_read(raw_page(s, neighbour(nr))));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	lose(_metadata, s, 0);
	expect_pool(_metadata, s, 0, 1);

	let_go(_metadata, s);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(mapped, MADV_REMOVE_ends_its_life, SLOW)
{
	struct subject *s = &self->s;
	unsigned long i, nr_wrong = 0;

	if (!need_more_hugepages(s, 1))
		SKIP(return, "can't get 2 hugepages");
	lose_spots(_metadata, s);
	EXPECT_EQ(0, madvise(s->map, s->size, MADV_REMOVE));
	EXPECT_FALSE(is_mapped(s->map));
	expect_released(_metadata, s);

	/* The next one is fresh and healthy, and kept. */
	for (i = 0; i < s->nr_raw; i++)
		nr_wrong += !page_is_zero(raw_page(s, i));
	EXPECT_EQ(0, nr_wrong);
	s->head[0] = mapped_pfn(s->map);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	s->before.nr--;
	s->before.free--;
	lose(_metadata, s, 4);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	let_go(_metadata, s);
	expect_released(_metadata, s);
}

/* An address for a mapping of @len bytes, aligned to @align, taken by nobody else. */
static char *reserve(size_t len, size_t align)
{
	char *area = mmap(NULL, len + align, PROT_NONE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (area == MAP_FAILED)
		return NULL;
	return (char *)(((uintptr_t)area + align - 1) & ~(align - 1));
}

TEST_F_TIMEOUT(mapped, mremap_takes_lost_pages_along, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	char *old = s->map, *new;

	new = reserve(s->size, s->size);
	ASSERT_NE(NULL, new);
	lose(_metadata, s, nr);
	ASSERT_EQ(new, mremap(old, s->size, s->size, MREMAP_MAYMOVE | MREMAP_FIXED, new));
	s->map = new;
	EXPECT_FALSE(is_mapped(old));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	expect_pool(_metadata, s, 0, 1);

	/* Whether lost before or after: the address is the new one. */
	lose(_metadata, s, 3);
	if (s->injector->for_real) {
		EXPECT_EQ(0, inject(s, nr));
		expect_sigbus(_metadata, BUS_MCEERR_AR, raw_page(s, nr), pshift());
	}
	/* Also if only the new mapping is faulted in. */
	EXPECT_EQ(0, madvise(s->map, s->size, MADV_DONTNEED));
	EXPECT_FALSE(try_read(raw_page(s, nr)));
	expect_fault_in(_metadata, raw_page(s, nr));

	let_go(_metadata, s);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(mapped, mprotect_changes_nothing_else, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 1);
	ASSERT_EQ(0, mprotect(s->map, s->size, PROT_READ));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	lose(_metadata, s, 3);

	/* Out of reach for the process, but it is told of errors. */
	ASSERT_EQ(0, mprotect(s->map, s->size, PROT_NONE));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	lose_unseen(_metadata, s, 5);

	ASSERT_EQ(0, mprotect(s->map, s->size, PROT_READ | PROT_WRITE));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	EXPECT_TRUE(try_write(raw_page(s, 0)));
	lose(_metadata, s, 7);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));

	let_go(_metadata, s);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(mapped, mlock_and_munlock_change_nothing_else, SLOW)
{
	struct subject *s = &self->s;

	ASSERT_EQ(0, mlock(s->map, s->size));
	lose(_metadata, s, 1);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	ASSERT_EQ(0, munlock(s->map, s->size));
	lose(_metadata, s, 3);
	ASSERT_EQ(0, mlock2(s->map, s->size, MLOCK_ONFAULT));
	ASSERT_EQ(0, mlockall(MCL_CURRENT | MCL_FUTURE));
	lose(_metadata, s, 5);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	/* MCL_FUTURE populates new mappings, across the lost pages. */
	unmap_file(s);
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));

	/* A lock is no hold: the end of the file is the end of it all. */
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_released(_metadata, s);
}

/* What paging and the like make of hugepages: nothing. */
TEST_F_TIMEOUT(mapped, advice_for_small_pages_does_no_harm, SLOW)
{
	static const int advices[] = {
		MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_COLD,
		MADV_PAGEOUT, MADV_FREE, MADV_COLLAPSE, MADV_MERGEABLE, MADV_UNMERGEABLE,
		MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_DONTFORK, MADV_DOFORK, MADV_DONTDUMP,
		MADV_WIPEONFORK,
	};
	struct subject *s = &self->s;
	unsigned int i;

	lose_spots(_metadata, s);
	for (i = 0; i < ARRAY_SIZE(advices); i++) {
		madvise(s->map, s->size, advices[i]);
		EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	}
	EXPECT_EQ(0, nr_changed_pages(s));
	expect_corrupted(_metadata, s);
	let_go(_metadata, s);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(mapped, parent_and_child_hear_of_what_the_other_loses, SLOW)
{
	struct subject *s = &self->s;
	int go[2];
	pid_t pid;
	char byte;

	lose(_metadata, s, 1);
	heard.nr = 0;
	ASSERT_EQ(0, pipe(go));
	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		/* Inherited, but not yet filled in; and with a choice of its own. */
		ASSERT_EQ(1, read(go[0], &byte, 1));
		expect_sigbus(_metadata, BUS_MCEERR_AO, raw_page(s, 3), pshift());
		EXPECT_FALSE(try_read(raw_page(s, 3)));
		expect_fault_in(_metadata, raw_page(s, 3));
		EXPECT_TRUE(try_read(raw_page(s, 4)));
		EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
		lose(_metadata, s, 5);
		EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
		EXPECT_EQ(0, nr_changed_pages(s));
		_exit(_metadata->exit_code);
	}
	lose(_metadata, s, 3);
	heard.nr = 0;
	ASSERT_EQ(1, write(go[1], "x", 1));
	wait_for_child(_metadata, pid);
	expect_sigbus(_metadata, BUS_MCEERR_AO, raw_page(s, 5), pshift());
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	expect_pool(_metadata, s, 0, 1);
	let_go(_metadata, s);
	expect_released(_metadata, s);
}

/*
 * Two processes with one page table
 */

#define NR_SHARED	3

FIXTURE(shared_table)
{
	struct subject s;
};

FIXTURE_VARIANT(shared_table)
{
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(shared_table, madvise_2m)
{
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(shared_table, corrupt_pfn_2m)
{
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(shared_table, mce_2m)
{
	.injector = &by_mce,
};

/* Map so much of the file that it takes a page table of its own. */
static char *map_table(int fd)
{
	char *addr = reserve(SZ_1G, SZ_1G);

	if (!addr)
		return NULL;
	addr = mmap(addr, SZ_1G, PROT_READ | PROT_WRITE,
		    MAP_SHARED | MAP_NORESERVE | MAP_FIXED, fd, 0);
	return addr == MAP_FAILED ? NULL : addr;
}

FIXTURE_SETUP(shared_table)
{
	struct subject *s = &self->s;
	unsigned long i;

	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, s, SZ_2M, variant->injector, NR_SHARED);
	if (_metadata->exit_code)
		return;
	s->fd = create_memfd(s->size, MFD_MF_KEEP_UE_MAPPED);
	ASSERT_LE(0, s->fd);
	/* Mostly a hole, so that it takes few hugepages. */
	ASSERT_EQ(0, ftruncate(s->fd, SZ_1G));
	s->map = map_table(s->fd);
	ASSERT_NE(NULL, s->map);
	fill(s);
	for (i = 0; i < NR_SHARED; i++)
		s->head[i] = mapped_pfn(s->map + i * s->size);
}

FIXTURE_TEARDOWN_PARENT(shared_table)
{
	teardown_subject(_metadata, &self->s);
}

/* A process that does as it is told, and tells what came of it. */
struct sharer {
	pid_t pid;
	int ask, answer;
	char *map;
};

struct answer {
	bool ok;
	int nr, code, lsb;
	uintptr_t addr;
};

enum {
	TOUCH,			/* read a raw page */
	LOOK,			/* is a hugepage mapped, as such? */
	LISTEN,			/* what was heard since the last answer? */
	PROTECT,		/* let nobody write to the end of the mapping */
	UNMAP,			/* unmap the end of the mapping */
};

static void be_sharer(struct subject *s, int ask, int answer)
{
	struct subject mine = *s;
	unsigned long ask_for[2];
	struct answer a = {};

	/* Elsewhere, so that addresses can't be right by chance. */
	mine.map = map_table(s->fd);
	munmap(s->map, SZ_1G);
	a.ok = mine.map;
	a.addr = (uintptr_t)mine.map;
	s = &mine;
	heard.nr = 0;
	for (;;) {
		if (write(answer, &a, sizeof(a)) != sizeof(a) ||
		    read(ask, ask_for, sizeof(ask_for)) != sizeof(ask_for))
			break;
		a.ok = true;
		if (ask_for[0] == TOUCH)
			a.ok = try_read(raw_page(s, ask_for[1]));
		else if (ask_for[0] == LOOK)
			a.ok = is_mapped_huge(s, s->map, ask_for[1]);
		else if (ask_for[0] == PROTECT)
			a.ok = !mprotect(s->map + SZ_1G / 2, SZ_1G / 2, PROT_READ);
		else if (ask_for[0] == UNMAP)
			a.ok = !munmap(s->map + SZ_1G / 2, SZ_1G / 2);
		a.nr = heard.nr;
		a.code = heard.code;
		a.lsb = heard.lsb;
		a.addr = heard.addr;
		heard.nr = 0;
	}
	_exit(KSFT_FAIL);
}

static struct answer ask(struct __test_metadata *_metadata, struct sharer *h,
			 unsigned long what, unsigned long nr)
{
	unsigned long ask_for[] = { what, nr };
	struct answer a;

	ASSERT_EQ(sizeof(ask_for), write(h->ask, ask_for, sizeof(ask_for)));
	ASSERT_EQ(sizeof(a), read(h->answer, &a, sizeof(a)));
	return a;
}

/* Start a process that fills nothing in, and finds all hugepages there. */
static void start_sharer(struct __test_metadata *_metadata, struct subject *s,
			 struct sharer *h)
{
	int there[2], back[2];
	struct answer a;
	unsigned long i;

	ASSERT_EQ(0, pipe(there));
	ASSERT_EQ(0, pipe(back));
	h->pid = fork_helper();
	ASSERT_LE(0, h->pid);
	if (!h->pid)
		be_sharer(s, there[0], back[1]);
	close(there[0]);
	close(back[1]);
	h->ask = there[1];
	h->answer = back[0];
	ASSERT_EQ(sizeof(a), read(h->answer, &a, sizeof(a)));
	ASSERT_TRUE(a.ok);
	h->map = (char *)a.addr;
	ASSERT_NE(s->map, h->map);

	ASSERT_TRUE(ask(_metadata, h, TOUCH, 8).ok);
	for (i = 0; i < NR_SHARED; i++)
		if (!ask(_metadata, h, LOOK, i).ok)
			SKIP(return, "needs CONFIG_HUGETLB_PMD_PAGE_TABLE_SHARING");
}

static void expect_sharer_heard(struct __test_metadata *_metadata, struct sharer *h,
				unsigned long nr)
{
	struct answer a = ask(_metadata, h, LISTEN, 0);

	EXPECT_EQ(1, a.nr);
	EXPECT_EQ(BUS_MCEERR_AO, a.code);
	EXPECT_EQ(pshift(), a.lsb);
	EXPECT_EQ((uintptr_t)h->map + nr * psize(), a.addr);
}

static void expect_all_released(struct __test_metadata *_metadata, struct subject *s,
				unsigned int gone)
{
	unsigned long i;

	wait_for_pool(_metadata, s, gone, 0);
	expect_corrupted(_metadata, s);
	for (i = 0; i < gone; i++)
		expect_all_come_back(_metadata, s, i);
}

TEST_F_TIMEOUT(shared_table, both_processes_hear_of_each_lost_page, SLOW)
{
	struct subject *s = &self->s;
	struct sharer h;
	unsigned long i;

	start_sharer(_metadata, s, &h);
	if (_metadata->exit_code)
		return;
	for (i = 0; i < NR_SPOTS; i++) {
		unsigned long nr = i % 2 * s->nr_raw + spot(s, i);

		lose(_metadata, s, nr);
		expect_sharer_heard(_metadata, &h, nr);
		EXPECT_TRUE(is_mapped_huge(s, s->map, i % 2));
		EXPECT_TRUE(ask(_metadata, &h, LOOK, i % 2).ok);
	}
	EXPECT_EQ(0, nr_changed_pages(s));

	/* What is truncated is truncated in both. */
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	EXPECT_FALSE(is_mapped(s->map));
	EXPECT_FALSE(ask(_metadata, &h, LOOK, 0).ok);
	expect_all_released(_metadata, s, 2);
	kill_child(_metadata, h.pid);
}

/* Who stops to share has to fill in its own page table, but not with lost pages. */
static void expect_unshared(struct __test_metadata *_metadata, struct subject *s,
			    unsigned long how)
{
	unsigned long nr = s->nr_raw / 2;
	struct answer a;
	struct sharer h;
	unsigned long i;

	start_sharer(_metadata, s, &h);
	if (_metadata->exit_code)
		return;
	lose(_metadata, s, nr);
	lose(_metadata, s, s->nr_raw);
	ask(_metadata, &h, LISTEN, 0);

	EXPECT_TRUE(ask(_metadata, &h, how, 0).ok);
	for (i = 0; i < NR_SHARED; i++) {
		EXPECT_FALSE(ask(_metadata, &h, LOOK, i).ok);
		EXPECT_TRUE(is_mapped_huge(s, s->map, i));
	}
	a = ask(_metadata, &h, TOUCH, nr);
	EXPECT_FALSE(a.ok);
	EXPECT_EQ(1, a.nr);
	EXPECT_EQ(BUS_MCEERR_AR, a.code);
	EXPECT_EQ(pshift(), a.lsb);
	EXPECT_EQ((uintptr_t)h.map / psize() + nr, a.addr / psize());
	EXPECT_FALSE(ask(_metadata, &h, LOOK, 0).ok);
	EXPECT_TRUE(ask(_metadata, &h, TOUCH, neighbour(nr)).ok);
	EXPECT_TRUE(ask(_metadata, &h, LOOK, 0).ok);
	EXPECT_FALSE(ask(_metadata, &h, LOOK, 1).ok);

	/* Of new errors it hears, whether it has filled the place in or not. */
	for (i = 0; i < 2; i++) {
		lose(_metadata, s, i * s->nr_raw + 9);
		expect_sharer_heard(_metadata, &h, i * s->nr_raw + 9);
		EXPECT_TRUE(is_mapped_huge(s, s->map, i));
	}
	EXPECT_EQ(0, nr_changed_pages(s));

	kill_child(_metadata, h.pid);
	expect_pool(_metadata, s, 0, NR_SHARED);
	munmap(s->map, SZ_1G);
	s->map = NULL;
	let_go(_metadata, s);
	expect_all_released(_metadata, s, 2);
}

TEST_F_TIMEOUT(shared_table, unsharing_by_mprotect_keeps, SLOW)
{
	expect_unshared(_metadata, &self->s, PROTECT);
}

TEST_F_TIMEOUT(shared_table, unsharing_by_munmap_keeps, SLOW)
{
	expect_unshared(_metadata, &self->s, UNMAP);
}

TEST_F_TIMEOUT(shared_table, both_see_the_healed_hugepage, SLOW)
{
	struct subject *s = &self->s;
	struct sharer h;
	unsigned long i;

	start_sharer(_metadata, s, &h);
	if (_metadata->exit_code)
		return;
	ASSERT_TRUE(need_more_hugepages(s, 1));
	lose_spots(_metadata, s);
	zero_spots(_metadata, s);
	expect_replaced(_metadata, s);
	EXPECT_TRUE(ask(_metadata, &h, TOUCH, 0).ok);
	/* The others are in the same page table. */
	for (i = 0; i < NR_SHARED; i++) {
		EXPECT_TRUE(ask(_metadata, &h, LOOK, i).ok);
		EXPECT_TRUE(is_mapped_huge(s, s->map, i));
	}
	expect_pool(_metadata, s, 1, NR_SHARED);
	kill_child(_metadata, h.pid);
}

TEST_F_TIMEOUT(shared_table, who_dies_leaves_the_other_all, SLOW)
{
	struct subject *s = &self->s;
	struct sharer h;

	start_sharer(_metadata, s, &h);
	if (_metadata->exit_code)
		return;
	lose(_metadata, s, 6);
	kill_child(_metadata, h.pid);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	lose(_metadata, s, 8);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	munmap(s->map, SZ_1G);
	s->map = NULL;
	let_go(_metadata, s);
	expect_all_released(_metadata, s, 1);
}

/*
 * userfaultfd
 */

FIXTURE(faulted)
{
	struct subject s;
	int uffd;
};

FIXTURE_VARIANT(faulted)
{
	unsigned long size;
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(faulted, madvise_2m)
{
	.size = SZ_2M,
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(faulted, corrupt_pfn_2m)
{
	.size = SZ_2M,
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(faulted, mce_2m)
{
	.size = SZ_2M,
	.injector = &by_mce,
};

FIXTURE_VARIANT_ADD_SIZES(faulted)

FIXTURE_SETUP(faulted)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, variant->size, variant->injector, 1);
	if (_metadata->exit_code)
		return;
	open_subject(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
	if (!need_more_hugepages(&self->s, 1))
		SKIP(return, "can't get 2 hugepages");
	self->uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (self->uffd < 0)
		SKIP(return, "needs CONFIG_USERFAULTFD");
}

FIXTURE_TEARDOWN_PARENT(faulted)
{
	teardown_subject(_metadata, &self->s);
}

/* Watch over the mapping. Returns if the kernel can do that. */
static bool watch(int uffd, struct subject *s, uint64_t features, uint64_t mode)
{
	struct uffdio_api api = { .api = UFFD_API, .features = features };
	struct uffdio_register reg = {
		.range = { .start = (uintptr_t)s->map, .len = s->size },
		.mode = mode,
	};

	return !ioctl(uffd, UFFDIO_API, &api) && !ioctl(uffd, UFFDIO_REGISTER, &reg);
}

/* A thread that accesses an address and may have to wait for that. */
struct toucher {
	pthread_t thread;
	char *addr;
	bool write;
	bool ok;
	int nr, code, lsb;
	uintptr_t heard_addr;
};

static void *touch(void *arg)
{
	struct toucher *t = arg;

	t->ok = try_access(t->addr, t->write);
	t->nr = heard.nr;
	t->code = heard.code;
	t->lsb = heard.lsb;
	t->heard_addr = heard.addr;
	return NULL;
}

static void start_touching(struct __test_metadata *_metadata, struct toucher *t,
			   char *addr, bool write)
{
	memset(t, 0, sizeof(*t));
	t->addr = addr;
	t->write = write;
	ASSERT_EQ(0, pthread_create(&t->thread, NULL, touch, t));
}

/* The access was let through, or refused as that of a lost page. */
static void expect_touched(struct __test_metadata *_metadata, struct toucher *t, bool ok)
{
	ASSERT_EQ(0, pthread_join(t->thread, NULL));
	EXPECT_EQ(ok, t->ok);
	if (ok)
		return;
	EXPECT_EQ(1, t->nr);
	EXPECT_EQ(BUS_MCEERR_AR, t->code);
	EXPECT_EQ(pshift(), t->lsb);
	EXPECT_EQ((uintptr_t)t->addr / psize(), t->heard_addr / psize());
}

static void expect_event(struct __test_metadata *_metadata, int uffd, char *addr,
			 uint64_t flags)
{
	struct pollfd pfd = { .fd = uffd, .events = POLLIN };
	struct uffd_msg msg;

	ASSERT_EQ(1, poll(&pfd, 1, 10000));
	ASSERT_EQ(sizeof(msg), read(uffd, &msg, sizeof(msg)));
	EXPECT_EQ(UFFD_EVENT_PAGEFAULT, msg.event);
	EXPECT_EQ((uintptr_t)addr, msg.arg.pagefault.address);
	EXPECT_EQ(flags, msg.arg.pagefault.flags);
}

static void expect_no_event(struct __test_metadata *_metadata, int uffd)
{
	struct pollfd pfd = { .fd = uffd, .events = POLLIN };

	EXPECT_EQ(0, poll(&pfd, 1, 0));
}

TEST_F_TIMEOUT(faulted, UFFDIO_CONTINUE_maps_it_with_its_lost_pages, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	struct uffdio_continue cont;
	struct toucher t;

	lose_spots(_metadata, s);
	unmap_file(s);
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
	if (!watch(self->uffd, s, UFFD_FEATURE_MINOR_HUGETLBFS,
		   UFFDIO_REGISTER_MODE_MINOR))
		SKIP(return, "needs minor faults of userfaultfd");

	/* A lost page is nothing that a handler could provide. */
	start_touching(_metadata, &t, raw_page(s, nr), true);
	expect_touched(_metadata, &t, false);
	expect_no_event(_metadata, self->uffd);
	EXPECT_FALSE(is_mapped(s->map));

	start_touching(_metadata, &t, raw_page(s, neighbour(nr)), false);
	expect_event(_metadata, self->uffd, s->map, UFFD_PAGEFAULT_FLAG_MINOR);
	cont = (struct uffdio_continue) {
		.range = { .start = (uintptr_t)s->map, .len = s->size },
	};
	EXPECT_EQ(0, ioctl(self->uffd, UFFDIO_CONTINUE, &cont));
	EXPECT_EQ(s->size, cont.mapped);
	expect_touched(_metadata, &t, true);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));

	errno = 0;
	EXPECT_EQ(-1, ioctl(self->uffd, UFFDIO_CONTINUE, &cont));
	EXPECT_EQ(EEXIST, errno);
	lose(_metadata, s, 6);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	expect_pool(_metadata, s, 0, 1);
	let_go(_metadata, s);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(faulted, UFFDIO_COPY_fills_a_hole_with_a_kept_hugepage, SLOW)
{
	struct subject *s = &self->s;
	struct uffdio_copy copy;
	struct subject source;
	struct toucher t;

	if (!watch(self->uffd, s, UFFD_FEATURE_MISSING_HUGETLBFS,
		   UFFDIO_REGISTER_MODE_MISSING))
		SKIP(return, "needs missing faults of userfaultfd");
	source = *s;
	source.map = mmap(NULL, s->size, PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, source.map);
	fill(&source);
	copy = (struct uffdio_copy) {
		.dst = (uintptr_t)s->map,
		.src = (uintptr_t)source.map,
		.len = s->size,
	};

	/* Nothing is copied over what is there, lost pages or not. */
	lose(_metadata, s, 5);
	errno = 0;
	EXPECT_EQ(-1, ioctl(self->uffd, UFFDIO_COPY, &copy));
	EXPECT_EQ(EEXIST, errno);
	EXPECT_EQ(0, madvise(s->map, s->size, MADV_DONTNEED));
	errno = 0;
	EXPECT_EQ(-1, ioctl(self->uffd, UFFDIO_COPY, &copy));
	EXPECT_EQ(EEXIST, errno);
	/* It is not missing either. */
	start_touching(_metadata, &t, raw_page(s, 5), false);
	expect_touched(_metadata, &t, false);
	start_touching(_metadata, &t, raw_page(s, 4), false);
	expect_touched(_metadata, &t, true);
	expect_no_event(_metadata, self->uffd);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));

	EXPECT_EQ(0, punch(s, 0, s->size));
	expect_released(_metadata, s);
	start_touching(_metadata, &t, raw_page(s, 5), false);
	expect_event(_metadata, self->uffd, s->map, 0);
	copy.copy = 0;
	EXPECT_EQ(0, ioctl(self->uffd, UFFDIO_COPY, &copy));
	EXPECT_EQ(s->size, copy.copy);
	expect_touched(_metadata, &t, true);
	s->head[0] = mapped_pfn(s->map);
	s->before.nr--;
	s->before.free--;
	EXPECT_EQ(0, nr_changed_pages(s));
	lose_spots(_metadata, s);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	let_go(_metadata, s);
	expect_released(_metadata, s);
}

static int write_protect(int uffd, struct subject *s, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = (uintptr_t)s->map, .len = s->size },
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) ? -errno : 0;
}

TEST_F_TIMEOUT(faulted, UFFDIO_WRITEPROTECT_works_beside_lost_pages, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	struct toucher t;

	if (!watch(self->uffd, s, UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
		   UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFDIO_REGISTER_MODE_WP))
		SKIP(return, "needs userfaultfd to protect hugepages");
	lose(_metadata, s, nr);
	EXPECT_EQ(0, write_protect(self->uffd, s, true));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	lose(_metadata, s, 1);
	expect_no_event(_metadata, self->uffd);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));

	start_touching(_metadata, &t, raw_page(s, neighbour(nr)), true);
	expect_event(_metadata, self->uffd, s->map,
		     UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_WRITE);
	EXPECT_EQ(0, write_protect(self->uffd, s, false));
	expect_touched(_metadata, &t, true);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));

	/* The protection outlives the entry in the page table. */
	EXPECT_EQ(0, write_protect(self->uffd, s, true));
	EXPECT_EQ(0, madvise(s->map, s->size, MADV_DONTNEED));
	start_touching(_metadata, &t, raw_page(s, nr), false);
	expect_touched(_metadata, &t, false);
	start_touching(_metadata, &t, raw_page(s, neighbour(nr)), false);
	expect_touched(_metadata, &t, true);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	lose(_metadata, s, 3);
	EXPECT_EQ(0, write_protect(self->uffd, s, false));
	EXPECT_TRUE(try_write(raw_page(s, neighbour(nr))));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));

	let_go(_metadata, s);
	expect_released(_metadata, s);
}

/* A write waits for the permission, and arrives where that is given. */
static void expect_protected(struct __test_metadata *_metadata,
			     FIXTURE_DATA(faulted) * self, unsigned long nr)
{
	struct subject *s = &self->s;
	struct toucher t;

	expect_no_event(_metadata, self->uffd);
	start_touching(_metadata, &t, raw_page(s, nr), true);
	expect_event(_metadata, self->uffd, s->map,
		     UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_WRITE);
	EXPECT_NE('x', *raw_page(s, nr));
	EXPECT_EQ(0, write_protect(self->uffd, s, false));
	expect_touched(_metadata, &t, true);
	EXPECT_EQ('x', *raw_page(s, nr));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
}

TEST_F_TIMEOUT(faulted, a_healed_hugepage_is_write_protected, SLOW)
{
	struct subject *s = &self->s;

	if (!watch(self->uffd, s, UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
		   UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFDIO_REGISTER_MODE_WP))
		SKIP(return, "needs userfaultfd to protect hugepages");
	lose_spots(_metadata, s);
	EXPECT_EQ(0, write_protect(self->uffd, s, true));
	zero_spots(_metadata, s);
	EXPECT_TRUE(is_mapped(s->map));
	expect_replaced(_metadata, s);
	expect_protected(_metadata, self, 0);
}

TEST_F_TIMEOUT(faulted, healing_leaves_a_marker_of_protection, SLOW)
{
	struct subject *s = &self->s;

	if (!watch(self->uffd, s, UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
		   UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFDIO_REGISTER_MODE_WP))
		SKIP(return, "needs userfaultfd to protect hugepages");
	lose_spots(_metadata, s);
	EXPECT_EQ(0, write_protect(self->uffd, s, true));
	EXPECT_EQ(0, madvise(s->map, s->size, MADV_DONTNEED));
	zero_spots(_metadata, s);
	EXPECT_FALSE(is_mapped(s->map));
	expect_replaced(_metadata, s);
	expect_protected(_metadata, self, 0);
}

/* It has found the damaged hugepage, and waits while that is replaced. */
TEST_F_TIMEOUT(faulted, a_waiting_write_reaches_the_healed_one, SLOW)
{
	struct subject *s = &self->s;
	struct toucher t;

	if (!watch(self->uffd, s, UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
		   UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFDIO_REGISTER_MODE_WP))
		SKIP(return, "needs userfaultfd to protect hugepages");
	lose(_metadata, s, 5);
	EXPECT_EQ(0, write_protect(self->uffd, s, true));
	start_touching(_metadata, &t, raw_page(s, 4), true);
	expect_event(_metadata, self->uffd, s->map,
		     UFFD_PAGEFAULT_FLAG_WP | UFFD_PAGEFAULT_FLAG_WRITE);
	EXPECT_EQ(0, zero_page(s, 5));
	expect_replaced(_metadata, s);
	EXPECT_EQ(0, write_protect(self->uffd, s, false));
	expect_touched(_metadata, &t, true);
	EXPECT_EQ('x', *raw_page(s, 4));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
}

static int access_protect(int uffd, struct subject *s, bool on)
{
	struct uffdio_rwprotect rwp = {
		.range = { .start = (uintptr_t)s->map, .len = s->size },
		.mode = on ? UFFDIO_RWPROTECT_MODE_RWP : 0,
	};

	return ioctl(uffd, UFFDIO_RWPROTECT, &rwp) ? -errno : 0;
}

TEST_F_TIMEOUT(faulted, UFFDIO_RWPROTECT_works_beside_lost_pages, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	struct toucher t;

	if (!watch(self->uffd, s, UFFD_FEATURE_RWP, UFFDIO_REGISTER_MODE_RWP))
		SKIP(return, "this kernel lacks UFFDIO_RWPROTECT");
	lose(_metadata, s, nr);
	EXPECT_EQ(0, access_protect(self->uffd, s, true));
	/* Nobody can consume it now, but it can be lost. */
	lose_unseen(_metadata, s, 1);
	expect_no_event(_metadata, self->uffd);
	start_touching(_metadata, &t, raw_page(s, neighbour(nr)), false);
	expect_event(_metadata, self->uffd, s->map, UFFD_PAGEFAULT_FLAG_RWP);
	EXPECT_EQ(0, access_protect(self->uffd, s, false));
	expect_touched(_metadata, &t, true);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	lose(_metadata, s, 3);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	let_go(_metadata, s);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(faulted, a_healed_hugepage_is_access_protected, SLOW)
{
	struct subject *s = &self->s;
	struct toucher t;

	if (!watch(self->uffd, s, UFFD_FEATURE_RWP, UFFDIO_REGISTER_MODE_RWP))
		SKIP(return, "this kernel lacks UFFDIO_RWPROTECT");
	lose(_metadata, s, 5);
	EXPECT_EQ(0, access_protect(self->uffd, s, true));
	EXPECT_EQ(0, zero_page(s, 5));
	expect_no_event(_metadata, self->uffd);
	start_touching(_metadata, &t, raw_page(s, 5), false);
	expect_event(_metadata, self->uffd, s->map, UFFD_PAGEFAULT_FLAG_RWP);
	EXPECT_EQ(0, access_protect(self->uffd, s, false));
	expect_touched(_metadata, &t, true);
	expect_replaced(_metadata, s);
}

TEST_F_TIMEOUT(faulted, UFFDIO_POISON_means_one_mapping_and_no_memory, SLOW)
{
	struct subject *s = &self->s;
	struct uffdio_poison poison;
	char *map = s->map;

	lose(_metadata, s, 9);
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
	if (!watch(self->uffd, s, UFFD_FEATURE_POISON | UFFD_FEATURE_MISSING_HUGETLBFS,
		   UFFDIO_REGISTER_MODE_MISSING))
		SKIP(return, "needs UFFDIO_POISON");
	poison = (struct uffdio_poison) {
		.range = { .start = (uintptr_t)s->map, .len = s->size },
	};
	EXPECT_EQ(0, ioctl(self->uffd, UFFDIO_POISON, &poison));
	EXPECT_FALSE(try_read(raw_page(s, 8)));
	EXPECT_EQ(1, heard.nr);
	EXPECT_EQ(BUS_MCEERR_AR, heard.code);
	/* The marker stands for all of the hugepage, here and only here. */
	EXPECT_EQ(__builtin_ctzl(s->size), heard.lsb);
	expect_corrupted(_metadata, s);
	EXPECT_TRUE(is_mapped_huge(s, map, 0));
	EXPECT_EQ(psize(), pread(s->fd, s->flags, psize(), 8 * psize()));
	expect_pool(_metadata, s, 0, 1);

	/* It goes with the mapping. */
	unmap_file(s);
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
	EXPECT_TRUE(try_read(raw_page(s, 8)));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	munmap(map, s->size);
	lose(_metadata, s, 3);
	let_go(_metadata, s);
	expect_released(_metadata, s);
}

/*
 * Corrupt, release, unpoison, and all over again
 */

FIXTURE(circle)
{
	struct subject s;
};

FIXTURE_VARIANT(circle)
{
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(circle, madvise_2m)
{
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(circle, corrupt_pfn_2m)
{
	.injector = &by_pfn,
};

FIXTURE_SETUP(circle)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, SZ_2M, variant->injector, 1);
	if (!_metadata->exit_code)
		open_subject(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
}

FIXTURE_TEARDOWN_PARENT(circle)
{
	teardown_subject(_metadata, &self->s);
}

/* As long as hugepages can be got: open the file anew with one that was made of @pfn. */
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

TEST_F_TIMEOUT(circle, the_same_hugepage_can_be_lost_again, SLOW)
{
	struct subject *s = &self->s;
	unsigned long pfn = s->head[0];
	unsigned int i, j;

	for (i = 0; i < 4; i++) {
		/* The same pages in one half, others in the other half. */
		for (j = 0; j < 4; j++)
			lose(_metadata, s, spot(s, j));
		lose(_metadata, s, 10 + i);
		EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
		unmap_file(s);
		EXPECT_EQ(0, close(s->fd));
		expect_released(_metadata, s);
		if (!reopen_with(_metadata, s, pfn))
			SKIP(return, "can't get the same hugepage once more");
		/* It is as good as new. */
		for (j = 0; j < s->nr_raw; j++)
			EXPECT_TRUE(try_write(raw_page(s, j)));
		EXPECT_FALSE(is_poisoned(pfn));
		ledger->nr_poison = 0;
	}
}

TEST_F_TIMEOUT(circle, unpoisoning_is_refused_while_a_pin_holds_it, SLOW)
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
	/* With one reference left it looks like a hugepage to be unpoisoned. */
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

TEST_F_TIMEOUT(circle, unpoisoning_races_with_the_release, SLOW)
{
	struct subject *s = &self->s;
	unsigned long *pfns = alloc_shared(psize());
	pid_t pid[NR_UNPOISONERS];
	unsigned int i, j, tries;
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
			for (j = 0; j < NR_SPOTS; j++)
				if (pfns[j])
					unpoison(pfns[j]);
	}

	for (i = 0; i < 60; i++) {
		lose_spots(_metadata, s);
		for (j = 0; j < NR_SPOTS; j++)
			pfns[j] = raw_pfn(s, spot(s, j));
		/* Nothing can be unpoisoned before the release. */
		expect_corrupted(_metadata, s);
		unmap_file(s);
		EXPECT_EQ(0, close(s->fd));

		/* And everything afterwards, once. */
		for (tries = 0; tries < 10000; tries++) {
			if (hardware_corrupted() == s->corrupted)
				break;
			usleep(1000);
		}
		EXPECT_EQ(s->corrupted, hardware_corrupted());
		for (j = 0; j < NR_SPOTS; j++) {
			EXPECT_FALSE(is_poisoned(pfns[j]));
			pfns[j] = 0;
			s->lost[spot(s, j)] = false;
			s->nr_lost--;
		}
		ledger->nr_poison = 0;
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

TEST_F_TIMEOUT(circle, the_filter_lets_errors_pass_or_not_but_never_half, SLOW)
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
	while (!__atomic_load_n(flips, __ATOMIC_RELAXED))
		usleep(1000);

	for (i = 0; i < s->nr_raw; i++) {
		before = hardware_corrupted();
		ASSERT_TRUE(note_poison(raw_pfn(s, i), s->head[0]));
		ASSERT_EQ(0, inject(s, i));
		if (hardware_corrupted() == before) {
			EXPECT_EQ(0, heard.nr);
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
	/* Else there was no race. */
	EXPECT_LT(0, nr_filtered);
	EXPECT_LT(0, s->nr_lost);

	for (i = 0; i < s->nr_raw; i++)
		EXPECT_EQ(s->lost[i] ? -1 : 1, pread(s->fd, &byte, 1, i * psize()));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	let_go(_metadata, s);
	expect_released(_metadata, s);
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

FIXTURE(page_types)
{
	struct subject s;
};

FIXTURE_SETUP(page_types)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, SZ_2M, &by_page_types, 1);
	if (_metadata->exit_code)
		return;
	open_subject(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
	if (page_types(getpid(), (uintptr_t)self->s.map / psize(), "-l"))
		SKIP(return, "needs page-types");
}

FIXTURE_TEARDOWN_PARENT(page_types)
{
	teardown_subject(_metadata, &self->s);
}

TEST_F_TIMEOUT(page_types, poisons_pages_of_a_process, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 0);
	lose(_metadata, s, 7);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(2, nr_on_map(s));
	let_go(_metadata, s);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(page_types, unpoisons_pages_when_the_hugepage_has_ended, SLOW)
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

/*
 * Hugepages that stay out of use for ever, since there was no memory to record the first
 * error.  These tests come last: they leave less memory for others.
 */

FIXTURE(leaked)
{
	struct subject s;
	struct nodes n;
	long block[2];
	long hvo;
};

FIXTURE_VARIANT(leaked)
{
	bool hvo;
};

FIXTURE_VARIANT_ADD(leaked, optimized)
{
	.hvo = true,
};

FIXTURE_VARIANT_ADD(leaked, not_optimized)
{
};

FIXTURE_SETUP(leaked)
{
	self->block[0] = -1;
	self->block[1] = -1;
	self->hvo = -1;
	self->s.corrupted = hardware_corrupted();
	/* The same series has put it right; without it this hangs the machine. */
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	if (!can_fail_allocations())
		SKIP(return, "needs CONFIG_FAILSLAB and CONFIG_FAIL_PAGE_ALLOC");
	if (read_long(HVO, &self->hvo))
		write_long(HVO, variant->hvo);
	else if (variant->hvo)
		SKIP(return, "needs CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP");
}

FIXTURE_TEARDOWN_PARENT(leaked)
{
	teardown_block(_metadata, &self->s, &self->n, self->block);
	if (self->hvo >= 0)
		write_long(HVO, self->hvo);
}

/* Let the hugepage of the file be free, and lose a page of it. */
static void leak(struct __test_metadata *_metadata, struct subject *s)
{
	let_go(_metadata, s);
	expect_pool(_metadata, s, 0, 0);
	note_lost(_metadata, s, 3);
	/* Handled it isn't. */
	EXPECT_NE(0, inject_unrecorded(raw_pfn(s, 3)));
	ASSERT_TRUE(has_failed());
	expect_corrupted(_metadata, s);
	expect_pool(_metadata, s, 1, 0);
	give_up(s, 0);

	ASSERT_TRUE(read_kpageflags(s->head[0], 1, s->flags));
	ASSERT_EQ(KPF_HUGE | KPF_HWPOISON, s->flags[0] & (KPF_HUGE | KPF_HWPOISON));
}

/* No signal ends those who wait in vain, so they are not waited for. */
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

	/* So that nothing else comes into the block that can't be moved. */
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

TEST_F_TIMEOUT(leaked, a_large_hugepage_is_made_elsewhere, SLOW)
{
	struct subject *s = &self->s;
	unsigned long pfn;
	pid_t pid;
	long nr;

	if (!find_nodes(&self->n))
		SKIP(return, "needs two nodes with memory");
	if (!pool_exists(SZ_1G))
		SKIP(return, "no hugepages of 1 GiB here");
	save_nodes(&self->n, SZ_2M);
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

int main(int argc, char **argv)
{
	open_ledger();
	return test_harness_run(argc, argv);
}
