// SPDX-License-Identifier: GPL-2.0
/*
 * Memory failure recovery of hugetlb memfds.
 *
 * A memfd made with MFD_HUGETLB | MFD_MF_KEEP_UE_MAPPED keeps its hugepages
 * mapped when raw pages of them are lost to uncorrected memory errors.  Each
 * lost page is signalled with its own address and PAGE_SHIFT, all other bytes
 * stay in use, and when the file lets go of the hugepage only the lost pages
 * stay out of use.  A memfd made without the flag behaves as ever: the first
 * error takes the whole hugepage away.
 *
 * The fixtures:
 *   global	flags that memfd_create() takes and refuses
 *   kept	one kept hugepage, for each hugepage size and injector
 *   plain	the same without the flag, also on kernels that lack the flag
 *   iommu	memory that iommufd gives to devices
 *   passed_on	the policy follows the file, not the descriptor
 *   machine_check, two_victims, thousand	what only machine checks show
 *   accounted	reservations, surplus pages, hugepages side by side
 *   truncated	several poisoned hugepages in one truncation, kept and plain
 *   untouched	a hugepage that a device asks for first, also without the flag
 */

#define _GNU_SOURCE
#include "mfr_util.h"
#include "../../../../drivers/iommu/iommufd/iommufd_test.h"
#include <linux/futex.h>
#include <linux/magic.h>
#include <linux/udmabuf.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/vfs.h>

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

/*
 * memfd_create()
 */

TEST(keeping_is_refused_without_MFD_HUGETLB)
{
	const unsigned int others[] = {
		0, MFD_CLOEXEC, MFD_ALLOW_SEALING, MFD_NOEXEC_SEAL, MFD_EXEC,
		MFD_CLOEXEC | MFD_ALLOW_SEALING,
	};
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(others); i++) {
		errno = 0;
		EXPECT_EQ(-1, memfd_create("hugetlb-mfr", MFD_MF_KEEP_UE_MAPPED | others[i]));
		EXPECT_EQ(EINVAL, errno);
	}
}

TEST(unknown_flags_are_refused)
{
	const unsigned int known = MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB |
				   MFD_NOEXEC_SEAL | MFD_EXEC | MFD_MF_KEEP_UE_MAPPED;
	unsigned int bit;

	for (bit = 0; bit < MFD_HUGE_SHIFT; bit++) {
		if (known & (1U << bit))
			continue;
		errno = 0;
		EXPECT_EQ(-1, memfd_create("hugetlb-mfr", 1U << bit));
		EXPECT_EQ(EINVAL, errno);
		errno = 0;
		EXPECT_EQ(-1, memfd_create("hugetlb-mfr", MFD_HUGETLB | 1U << bit));
		EXPECT_EQ(EINVAL, errno);
		errno = 0;
		EXPECT_EQ(-1, memfd_create("hugetlb-mfr", MFD_HUGETLB |
					   MFD_MF_KEEP_UE_MAPPED | 1U << bit));
		EXPECT_EQ(EINVAL, errno);
	}
}

TEST(keeping_goes_with_all_other_flags)
{
	const unsigned int others[] = {
		MFD_CLOEXEC, MFD_ALLOW_SEALING, MFD_NOEXEC_SEAL, MFD_EXEC,
	};
	unsigned int mask, i;

	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");

	for (mask = 0; mask < 1U << ARRAY_SIZE(others); mask++) {
		unsigned int flags = MFD_HUGETLB;
		int plain, kept, plain_errno, kept_errno;

		for (i = 0; i < ARRAY_SIZE(others); i++)
			if (mask & (1U << i))
				flags |= others[i];

		/* Some are refused anyway; the policy must not matter. */
		errno = 0;
		plain = memfd_create("hugetlb-mfr", flags);
		plain_errno = errno;
		errno = 0;
		kept = memfd_create("hugetlb-mfr", flags | MFD_MF_KEEP_UE_MAPPED);
		kept_errno = errno;

		EXPECT_EQ(plain < 0, kept < 0);
		if (plain < 0 || kept < 0) {
			EXPECT_EQ(plain_errno, kept_errno);
		} else {
			struct stat plain_stat, kept_stat;

			EXPECT_EQ(fcntl(plain, F_GETFD), fcntl(kept, F_GETFD));
			EXPECT_EQ(fcntl(plain, F_GET_SEALS), fcntl(kept, F_GET_SEALS));
			EXPECT_EQ(0, fstat(plain, &plain_stat));
			EXPECT_EQ(0, fstat(kept, &kept_stat));
			EXPECT_EQ(plain_stat.st_mode, kept_stat.st_mode);
		}
		close(plain);
		close(kept);
	}
}

TEST(keeping_works_with_every_hugepage_size)
{
	unsigned int i;

	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");

	ASSERT_LT(0, ledger->nr_sizes);
	for (i = 0; i < ledger->nr_sizes; i++) {
		unsigned long size = ledger->saved[i].size;
		struct statfs st;
		int fd;

		fd = create_memfd(size, MFD_MF_KEEP_UE_MAPPED);
		EXPECT_LE(0, fd);
		EXPECT_EQ(0, fstatfs(fd, &st));
		EXPECT_EQ(size, st.f_bsize);
		close(fd);
	}
}

/* A buffer that was registered before raw page @nr in it was lost. */
static void expect_fixed_io(struct __test_metadata *_metadata, struct subject *s,
			    struct ring *r, unsigned long nr)
{
	unsigned long ps = psize();
	char *buf = malloc(2 * ps);
	int fd;

	ASSERT_NE(NULL, buf);
	/* Through the page cache, so that it is the kernel that copies. */
	fd = memfd_create("hugetlb-mfr", 0);
	ASSERT_LE(0, fd);
	EXPECT_EQ(-EFAULT, transfer_fixed(r, IORING_OP_WRITE_FIXED, fd,
					  raw_page(s, nr), ps));
	EXPECT_EQ(-EFAULT, transfer_fixed(r, IORING_OP_WRITE_FIXED, fd,
					  raw_page(s, nr) + ps - 1, 2));
	EXPECT_EQ(2 * ps, transfer_fixed(r, IORING_OP_WRITE_FIXED, fd,
					 raw_page(s, nr - 2), 2 * ps));
	EXPECT_EQ(2 * ps, pread(fd, buf, 2 * ps, 0));
	EXPECT_TRUE(page_is_intact(buf, nr - 2));
	EXPECT_TRUE(page_is_intact(buf + ps, nr - 1));

	EXPECT_EQ(-EFAULT, transfer_fixed(r, IORING_OP_READ_FIXED, fd,
					  raw_page(s, nr - 1), 2 * ps));
	EXPECT_EQ(2 * ps, transfer_fixed(r, IORING_OP_READ_FIXED, fd,
					 raw_page(s, nr + 1), 2 * ps));
	EXPECT_EQ(2 * ps, transfer_fixed(r, IORING_OP_WRITE_FIXED, fd,
					 raw_page(s, nr + 1), 2 * ps));
	EXPECT_EQ(2 * ps, pread(fd, buf, 2 * ps, 0));
	EXPECT_TRUE(page_is_intact(buf, nr - 2));
	EXPECT_TRUE(page_is_intact(buf + ps, nr - 1));
	close(fd);
	free(buf);
}

/*
 * A ring in its user's memory: one page has both queues, the next one the requests.
 * All of those are there from the beginning, and do nothing.
 */
static int make_ring_in(char *mem, unsigned int nr_requests)
{
	struct io_uring_params params = {
		.flags = IORING_SETUP_NO_MMAP | IORING_SETUP_NO_SQARRAY,
		.cq_off.user_addr = (uintptr_t)mem,
		.sq_off.user_addr = (uintptr_t)mem + psize(),
	};
	int ring;

	/* IORING_OP_NOP is 0. */
	memset(mem + psize(), 0, psize());
	ring = syscall(SYS_io_uring_setup, nr_requests, &params);
	if (ring >= 0)
		*(unsigned int *)(mem + params.sq_off.tail) = nr_requests;
	return ring;
}

/* Have the next request done, after which @nr are, without a look at the ring. */
static void expect_request_done(struct __test_metadata *_metadata, int ring,
				unsigned int nr)
{
	ASSERT_EQ(1, syscall(SYS_io_uring_enter, ring, 1, 0, 0, NULL, 0));
	EXPECT_EQ(0, syscall(SYS_io_uring_enter, ring, 0, nr, IORING_ENTER_GETEVENTS,
			     NULL, 0));
}

static void put_in_pipe(struct __test_metadata *_metadata, int pipefd[2], char *page)
{
	struct iovec iov = { .iov_base = page, .iov_len = psize() };

	ASSERT_EQ(0, pipe(pipefd));
	ASSERT_EQ(psize(), vmsplice(pipefd[1], &iov, 1, SPLICE_F_NONBLOCK));
}

/* Take raw page @nr out of a pipe, also through another pipe into a file. */
static void take_from_pipe(struct __test_metadata *_metadata, int pipefd[2],
			   unsigned long nr)
{
	unsigned long ps = psize();
	char *buf = malloc(ps);
	int other[2], fd;

	ASSERT_NE(NULL, buf);
	ASSERT_EQ(0, pipe(other));
	fd = memfd_create("hugetlb-mfr", 0);
	ASSERT_LE(0, fd);
	EXPECT_EQ(ps, tee(pipefd[0], other[1], ps, SPLICE_F_NONBLOCK));
	EXPECT_EQ(ps, splice(other[0], NULL, fd, NULL, ps, SPLICE_F_NONBLOCK));
	EXPECT_EQ(ps, pread(fd, buf, ps, 0));
	EXPECT_TRUE(page_is_intact(buf, nr));
	memset(buf, 0, ps);
	EXPECT_EQ(ps, read(pipefd[0], buf, ps));
	EXPECT_TRUE(page_is_intact(buf, nr));
	close(fd);
	close(other[0]);
	close(other[1]);
	close(pipefd[0]);
	close(pipefd[1]);
	free(buf);
}

/*
 * One kept hugepage
 */

FIXTURE(kept)
{
	struct subject s;
};

FIXTURE_VARIANT(kept)
{
	unsigned long size;
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(kept, madvise_2m)
{
	.size = SZ_2M,
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(kept, corrupt_pfn_2m)
{
	.size = SZ_2M,
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(kept, mce_2m)
{
	.size = SZ_2M,
	.injector = &by_mce,
};

FIXTURE_VARIANT_ADD(kept, scrub_2m)
{
	.size = SZ_2M,
	.injector = &by_scrub,
};

FIXTURE_VARIANT_ADD(kept, madvise_1g)
{
	.size = SZ_1G,
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(kept, corrupt_pfn_1g)
{
	.size = SZ_1G,
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD_SIZES(kept)

FIXTURE_SETUP(kept)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, variant->size, variant->injector, 1);
	if (!_metadata->exit_code)
		open_subject(_metadata, &self->s,
			     MFD_MF_KEEP_UE_MAPPED | MFD_ALLOW_SEALING);
}

FIXTURE_TEARDOWN_PARENT(kept)
{
	teardown_subject(_metadata, &self->s);
}

TEST_F_TIMEOUT(kept, one_lost_page_is_signalled_exactly, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, s->nr_raw / 2);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	expect_pool(_metadata, s, 0, 1);
}

TEST_F_TIMEOUT(kept, eight_lost_pages_are_signalled_one_by_one, SLOW)
{
	struct subject *s = &self->s;

	lose_spots(_metadata, s);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	expect_pool(_metadata, s, 0, 1);
}

TEST_F_TIMEOUT(kept, many_lost_pages_are_signalled_one_by_one, SLOW)
{
	struct subject *s = &self->s;

	lose_many(_metadata, s);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	expect_pool(_metadata, s, 0, 1);
}

TEST_F_TIMEOUT(kept, all_other_bytes_stay_writable, SLOW)
{
	struct subject *s = &self->s;
	unsigned long i, j, nr_wrong = 0;

	lose_spots(_metadata, s);

	for (i = 0; i < s->nr_raw; i++) {
		uint64_t *word = (uint64_t *)raw_page(s, i);

		for (j = 0; j < psize() / sizeof(*word) && !s->lost[i]; j++)
			word[j] = ~word[j];
	}
	for (i = 0; i < s->nr_raw; i++) {
		uint64_t *word = (uint64_t *)raw_page(s, i);

		for (j = 0; j < psize() / sizeof(*word) && !s->lost[i]; j++)
			word[j] = ~word[j];
		nr_wrong += !s->lost[i] && !page_is_intact(raw_page(s, i), i);
	}
	EXPECT_EQ(0, nr_wrong);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
}

TEST_F_TIMEOUT(kept, a_repeat_is_signalled_but_not_counted, SLOW)
{
	struct subject *s = &self->s;
	unsigned int i;

	lose_spots(_metadata, s);
	for (i = 0; i < 2 * NR_SPOTS; i++) {
		unsigned long nr = spot(s, i % NR_SPOTS);

		EXPECT_EQ(s->injector->again, inject(s, nr));
		if (s->injector->again_is_heard)
			expect_sigbus(_metadata, BUS_MCEERR_AR, raw_page(s, nr), pshift());
		else
			EXPECT_EQ(0, heard.nr);
		expect_corrupted(_metadata, s);
	}
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));

	/* Nor did any of them leave a reference behind. */
	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, a_filtered_error_leaves_no_trace, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;

	expect_filtered(_metadata, s, nr);
	/* It is no repeat if it happens later on. */
	lose(_metadata, s, nr);

	/* What was lost before stays known. */
	ASSERT_TRUE(filter_all_errors());
	EXPECT_EQ(s->injector->filtered, inject(s, neighbour(nr)));
	restore_filter();
	EXPECT_EQ(0, heard.nr);
	EXPECT_TRUE(is_poisoned(s->head[0]));
	EXPECT_TRUE(try_write(raw_page(s, neighbour(nr))));
	expect_corrupted(_metadata, s);

	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, filters_see_the_page_that_is_hit, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;

	ASSERT_TRUE(write_long(DEBUGFS_FILTER_MASK, KPF_HUGE | KPF_COMPOUND_TAIL));
	ASSERT_TRUE(write_long(DEBUGFS_FILTER_VALUE, KPF_HUGE));
	ASSERT_TRUE(write_long(DEBUGFS_FILTER_ENABLE, 1));
	lose(_metadata, s, 0);

	/* A tail page isn't what the filter lets pass, though its head is. */
	EXPECT_EQ(s->injector->filtered, inject(s, nr));
	expect_corrupted(_metadata, s);
	EXPECT_EQ(0, heard.nr);

	restore_filter();
	lose(_metadata, s, nr);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, a_page_that_stays_mapped_counts_as_delayed, SLOW)
{
	static const char * const names[] = {
		"total", "delayed", "ignored", "failed", "recovered",
	};
	struct subject *s = &self->s;
	long before[ARRAY_SIZE(names)];
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(names); i++)
		before[i] = mf_stat(names[i]);
	if (before[0] < 0)
		SKIP(return, "no memory_failure statistics in sysfs");

	lose_spots(_metadata, s);
	EXPECT_EQ(s->injector->again, inject(s, spot(s, 3)));

	EXPECT_EQ(before[0] + NR_SPOTS, mf_stat(names[0]));
	EXPECT_EQ(before[1] + NR_SPOTS, mf_stat(names[1]));
	for (i = 2; i < ARRAY_SIZE(names); i++)
		EXPECT_EQ(before[i], mf_stat(names[i]));
}

/* How often @text is in the trace. */
static unsigned int nr_traced(const char *text)
{
	FILE *f = fopen(TRACING "/trace", "r");
	unsigned int nr = 0;
	char line[256];

	while (f && fgets(line, sizeof(line), f))
		nr += !!strstr(line, text);
	if (f)
		fclose(f);
	return nr;
}

TEST_F_TIMEOUT(kept, one_event_tells_of_a_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	char text[80];

	if (mkdir(TRACING, 0700) ||
	    !write_text(TRACING "/events/ras/memory_failure_event/enable", "1"))
		SKIP(return, "no tracing of memory failures in " TRACING);

	lose(_metadata, s, nr);
	snprintf(text, sizeof(text), "pfn %#lx: recovery action for huge page: Delayed",
		 raw_pfn(s, nr));
	EXPECT_EQ(1, nr_traced(text));

	/* The end of the delay is no event. */
	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	wait_for_release(s, 1);
	EXPECT_EQ(1, nr_traced("recovery action"));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, a_new_mapping_refuses_the_lost_page_only, SLOW)
{
	struct subject *s = &self->s;
	unsigned int i;

	lose_spots(_metadata, s);
	unmap_file(s);
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);

	for (i = 0; i < NR_SPOTS; i++) {
		char *page = raw_page(s, spot(s, i));

		EXPECT_FALSE(try_read(page + 8));
		expect_fault_in(_metadata, page);
		EXPECT_FALSE(try_write(page + psize() - 1));
		expect_fault_in(_metadata, page);
		EXPECT_FALSE(is_mapped(s->map));
	}

	EXPECT_TRUE(try_read(raw_page(s, s->nr_raw / 4 + 1)));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	/* A fault is no new error. */
	expect_corrupted(_metadata, s);
}

TEST_F_TIMEOUT(kept, memory_lost_before_the_first_touch_is_faulted_in, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;

	/* Who consumes a page must map it; else nobody does when it is lost. */
	if (s->injector->code == BUS_MCEERR_AR) {
		unmap_file(s);
		s->map = map_file(s, MAP_SHARED);
		ASSERT_NE(NULL, s->map);
		ASSERT_FALSE(is_mapped(s->map));
		lose(_metadata, s, nr);
		unmap_file(s);
	} else {
		unmap_file(s);
		lose(_metadata, s, nr);
	}

	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
	EXPECT_FALSE(try_write(raw_page(s, nr)));
	expect_fault_in(_metadata, raw_page(s, nr));
	EXPECT_FALSE(is_mapped(s->map));
	EXPECT_TRUE(try_read(raw_page(s, neighbour(nr))));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
}

TEST_F_TIMEOUT(kept, a_second_process_faults_in_all_but_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw - 1;
	pid_t pid;

	lose(_metadata, s, nr);

	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		/* The subject is shared, the address space is not. */
		struct subject child = *s;

		s = &child;
		unmap_file(s);
		s->map = map_file(s, MAP_SHARED);
		ASSERT_NE(NULL, s->map);
		EXPECT_FALSE(try_read(raw_page(s, nr)));
		expect_fault_in(_metadata, raw_page(s, nr));
		EXPECT_FALSE(is_mapped(s->map));
		EXPECT_TRUE(try_read(raw_page(s, neighbour(nr))));
		EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
		EXPECT_EQ(0, nr_changed_pages(s));
		_exit(KSFT_PASS);
	}
	wait_for_child(_metadata, pid);
}

TEST_F_TIMEOUT(kept, an_early_kill_process_hears_of_each_page_others_lose, SLOW)
{
	struct subject *s = &self->s;
	struct witness w;
	unsigned int i;

	start_witness(_metadata, s, &w, PR_MCE_KILL_EARLY);
	for (i = 0; i < NR_SPOTS; i++) {
		unsigned long nr = spot(s, i);
		siginfo_t si;

		lose(_metadata, s, nr);
		ASSERT_TRUE(witness_heard(&w, &si, 10000));
		EXPECT_EQ(BUS_MCEERR_AO, si.si_code);
		EXPECT_EQ((uintptr_t)w.map + nr * psize(), (uintptr_t)si.si_addr);
		EXPECT_EQ(pshift(), si.si_addr_lsb);
	}
	stop_witness(&w);
}

TEST_F_TIMEOUT(kept, a_late_kill_process_hears_nothing_of_what_others_lose, SLOW)
{
	struct subject *s = &self->s;
	struct witness w;
	siginfo_t si;

	start_witness(_metadata, s, &w, PR_MCE_KILL_LATE);
	lose(_metadata, s, 0);
	lose(_metadata, s, s->nr_raw / 2);
	EXPECT_FALSE(witness_heard(&w, &si, 500));
	stop_witness(&w);
}

TEST_F_TIMEOUT(kept, a_late_kill_process_hears_only_what_it_consumes, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;

	ASSERT_EQ(0, prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0));
	note_lost(_metadata, s, nr);
	EXPECT_EQ(0, inject(s, nr));
	if (s->injector->code == BUS_MCEERR_AR)
		expect_sigbus(_metadata, BUS_MCEERR_AR, raw_page(s, nr), pshift());
	else
		EXPECT_EQ(0, heard.nr);
	expect_corrupted(_metadata, s);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
}

/* A thread that waits for SIGBUS and does nothing else. */
struct listener {
	atomic_bool listens;
	siginfo_t si;
	int signal;
};

static void *listen_for_sigbus(void *arg)
{
	const struct timespec timeout = { .tv_sec = 1 };
	struct listener *l = arg;
	sigset_t set;

	sigemptyset(&set);
	sigaddset(&set, SIGBUS);
	pthread_sigmask(SIG_BLOCK, &set, NULL);
	prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0);
	l->listens = true;
	l->signal = sigtimedwait(&set, &l->si, &timeout);
	return NULL;
}

TEST_F_TIMEOUT(kept, a_thread_that_asks_hears_of_errors_nobody_consumed, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	struct listener l = {};
	pthread_t thread;

	ASSERT_EQ(0, prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0));
	ASSERT_EQ(0, pthread_create(&thread, NULL, listen_for_sigbus, &l));
	while (!l.listens)
		usleep(1000);

	note_lost(_metadata, s, nr);
	EXPECT_EQ(0, inject(s, nr));
	pthread_join(thread, NULL);
	if (s->injector->code == BUS_MCEERR_AR) {
		expect_sigbus(_metadata, BUS_MCEERR_AR, raw_page(s, nr), pshift());
		EXPECT_EQ(-1, l.signal);
	} else {
		EXPECT_EQ(0, heard.nr);
		EXPECT_EQ(SIGBUS, l.signal);
		EXPECT_EQ(BUS_MCEERR_AO, l.si.si_code);
		EXPECT_EQ((uintptr_t)raw_page(s, nr), (uintptr_t)l.si.si_addr);
		EXPECT_EQ(pshift(), l.si.si_addr_lsb);
	}
}

TEST_F_TIMEOUT(kept, pread_stops_at_a_lost_page_and_goes_on_behind_it, SLOW)
{
	struct subject *s = &self->s;
	unsigned long ps = psize();
	unsigned int i, k;
	char *buf;

	lose_spots(_metadata, s);
	buf = malloc(4 * ps);
	ASSERT_NE(NULL, buf);

	for (i = 0; i < NR_SPOTS; i++) {
		unsigned long nr = spot(s, i);
		unsigned long first;

		errno = 0;
		EXPECT_EQ(-1, pread(s->fd, buf, ps, nr * ps));
		EXPECT_EQ(EIO, errno);
		/* Also for one byte of it. */
		errno = 0;
		EXPECT_EQ(-1, pread(s->fd, buf, 1, nr * ps + ps / 2));
		EXPECT_EQ(EIO, errno);

		/* Healthy bytes in front of it, but at most four pages. */
		for (first = nr; first && nr - first < 3 && !s->lost[first - 1]; first--)
			;
		if (first < nr) {
			EXPECT_EQ((nr - first) * ps, pread(s->fd, buf, 4 * ps, first * ps));
			for (k = 0; k < nr - first; k++)
				EXPECT_TRUE(page_is_intact(buf + k * ps, first + k));
			EXPECT_EQ(100, pread(s->fd, buf, 4 * ps, nr * ps - 100));
		}

		/* And behind it. */
		if (nr + 1 < s->nr_raw && !s->lost[nr + 1]) {
			EXPECT_EQ(ps, pread(s->fd, buf, ps, (nr + 1) * ps));
			EXPECT_TRUE(page_is_intact(buf, nr + 1));
		}
	}
	free(buf);
}

TEST_F_TIMEOUT(kept, punching_parts_spares_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	unsigned long ps = psize();
	unsigned long i;

	lose(_metadata, s, nr);

	errno = 0;
	EXPECT_EQ(-1, punch(s, (nr - 2) * ps, 4 * ps));
	EXPECT_EQ(EIO, errno);
	EXPECT_TRUE(page_is_zero(raw_page(s, nr - 2)));
	EXPECT_TRUE(page_is_zero(raw_page(s, nr - 1)));
	EXPECT_TRUE(page_is_zero(raw_page(s, nr + 1)));
	/* The error is a simulated one: the page still shows its bytes. */
	EXPECT_TRUE(page_is_intact(raw_page(s, nr), nr));

	/* Bytes instead of pages. */
	errno = 0;
	EXPECT_EQ(-1, punch(s, nr * ps + ps / 2, 2 * ps));
	EXPECT_EQ(EIO, errno);
	EXPECT_TRUE(page_is_intact(raw_page(s, nr), nr));
	EXPECT_EQ(0, raw_page(s, nr + 2)[ps / 2 - 1]);
	EXPECT_NE(0, raw_page(s, nr + 2)[ps / 2]);

	for (i = 0; i < s->nr_raw; i++)
		if (i + 2 < nr || i > nr + 2)
			ASSERT_TRUE(page_is_intact(raw_page(s, i), i));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	expect_corrupted(_metadata, s);
	expect_pool(_metadata, s, 0, 1);
}

TEST_F_TIMEOUT(kept, punching_healthy_parts_succeeds, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	unsigned long ps = psize();

	lose(_metadata, s, nr);
	EXPECT_EQ(0, punch(s, (nr - 2) * ps, 2 * ps));
	EXPECT_EQ(0, punch(s, (nr + 1) * ps, 2 * ps));
	EXPECT_TRUE(page_is_zero(raw_page(s, nr - 2)));
	EXPECT_TRUE(page_is_zero(raw_page(s, nr - 1)));
	EXPECT_TRUE(page_is_zero(raw_page(s, nr + 1)));
	EXPECT_TRUE(page_is_zero(raw_page(s, nr + 2)));
	EXPECT_TRUE(page_is_intact(raw_page(s, nr - 3), nr - 3));
	EXPECT_TRUE(page_is_intact(raw_page(s, nr + 3), nr + 3));
}

TEST_F_TIMEOUT(kept, a_private_mapping_reads_but_is_refused_the_copy, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	char *shared = s->map;
	char *private;

	/* The copy must not fail for want of a hugepage. */
	if (!need_more_hugepages(s, 1))
		SKIP(return, "can't get 2 hugepages of %lu kB", s->size >> 10);

	lose(_metadata, s, nr);
	private = map_file(s, MAP_PRIVATE);
	ASSERT_NE(NULL, private);

	EXPECT_TRUE(try_read(private));
	s->map = private;
	EXPECT_EQ(0, nr_changed_pages(s));
	s->map = shared;

	EXPECT_FALSE(try_write(private + nr * psize() + 123));
	expect_fault_in(_metadata, private + nr * psize());
	/* Nobody must believe that this page is lost. */
	EXPECT_FALSE(try_write(private + neighbour(nr) * psize()));
	EXPECT_EQ(1, heard.nr);
	EXPECT_EQ(BUS_ADRERR, heard.code);

	/* Nothing was lost by trying. */
	EXPECT_TRUE(try_read(private));
	EXPECT_EQ(0, nr_changed_pages(s));
	expect_corrupted(_metadata, s);

	munmap(private, s->size);
	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, process_vm_readv_and_writev_stop_at_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	unsigned long ps = psize();
	struct iovec remote = { .iov_len = 3 * ps };
	struct iovec local = { .iov_len = 3 * ps };
	char *buf = malloc(3 * ps);

	ASSERT_NE(NULL, buf);
	local.iov_base = buf;
	lose(_metadata, s, nr);

	remote.iov_base = raw_page(s, nr - 2);
	EXPECT_EQ(2 * ps, process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_TRUE(page_is_intact(buf, nr - 2));
	EXPECT_TRUE(page_is_intact(buf + ps, nr - 1));
	EXPECT_EQ(2 * ps, process_vm_writev(getpid(), &local, 1, &remote, 1, 0));

	remote.iov_base = raw_page(s, nr);
	errno = 0;
	EXPECT_EQ(-1, process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_EQ(EFAULT, errno);
	errno = 0;
	EXPECT_EQ(-1, process_vm_writev(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_EQ(EFAULT, errno);

	remote.iov_base = raw_page(s, nr + 1);
	EXPECT_EQ(3 * ps, process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_TRUE(page_is_intact(buf, nr + 1));
	EXPECT_EQ(0, nr_changed_pages(s));
	free(buf);
}

TEST_F_TIMEOUT(kept, proc_mem_shows_all_but_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	unsigned long ps = psize();
	char *buf = malloc(ps);
	int fd;

	ASSERT_NE(NULL, buf);
	fd = open("/proc/self/mem", O_RDWR);
	ASSERT_LE(0, fd);
	lose(_metadata, s, nr);

	EXPECT_EQ(ps, pread(fd, buf, ps, (off_t)(uintptr_t)raw_page(s, nr - 1)));
	EXPECT_TRUE(page_is_intact(buf, nr - 1));
	EXPECT_EQ(ps, pwrite(fd, buf, ps, (off_t)(uintptr_t)raw_page(s, nr - 1)));
	errno = 0;
	EXPECT_EQ(-1, pread(fd, buf, ps, (off_t)(uintptr_t)raw_page(s, nr)));
	EXPECT_EQ(EIO, errno);
	errno = 0;
	EXPECT_EQ(-1, pwrite(fd, buf, 1, (off_t)(uintptr_t)raw_page(s, nr) + 1));
	EXPECT_EQ(EIO, errno);
	EXPECT_EQ(ps, pread(fd, buf, ps, (off_t)(uintptr_t)raw_page(s, nr + 1)));
	EXPECT_TRUE(page_is_intact(buf, nr + 1));
	close(fd);
	free(buf);
}

TEST_F_TIMEOUT(kept, vmsplice_takes_all_but_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	unsigned long ps = psize();
	struct iovec iov = { .iov_len = 3 * ps };
	int pipefd[2];
	char *buf;

	buf = malloc(2 * ps);
	ASSERT_NE(NULL, buf);
	ASSERT_EQ(0, pipe(pipefd));
	lose(_metadata, s, nr);

	iov.iov_base = raw_page(s, nr);
	errno = 0;
	EXPECT_EQ(-1, vmsplice(pipefd[1], &iov, 1, SPLICE_F_NONBLOCK));
	EXPECT_EQ(EFAULT, errno);
	iov.iov_base = raw_page(s, nr - 2);
	EXPECT_EQ(2 * ps, vmsplice(pipefd[1], &iov, 1, SPLICE_F_NONBLOCK));
	EXPECT_EQ(2 * ps, read(pipefd[0], buf, 2 * ps));
	EXPECT_TRUE(page_is_intact(buf, nr - 2));
	EXPECT_TRUE(page_is_intact(buf + ps, nr - 1));
	free(buf);
}

TEST_F_TIMEOUT(kept, direct_io_leaves_out_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	unsigned long ps = psize();
	struct statfs fs;
	int fd;

	fd = open(".", O_TMPFILE | O_RDWR | O_DIRECT, 0600);
	if (fd < 0)
		SKIP(return, "no O_DIRECT and O_TMPFILE in this directory");
	ASSERT_EQ(0, fstatfs(fd, &fs));
	if (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC)
		SKIP(return, "O_DIRECT means nothing in this directory");
	/* Holes are filled with the help of the page cache. */
	ASSERT_EQ(4 * ps, pwrite(fd, raw_page(s, 0), 4 * ps, 0));
	lose(_metadata, s, nr);

	/* A write could fall back to the page cache, a read doesn't. */
	EXPECT_EQ(-1, pread(fd, raw_page(s, nr), ps, 0));
	EXPECT_EQ(2 * ps, pwrite(fd, raw_page(s, nr + 1), 2 * ps, 0));
	memset(raw_page(s, nr + 1), 0, 2 * ps);
	EXPECT_EQ(2 * ps, pread(fd, raw_page(s, nr + 1), 2 * ps, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	close(fd);
}

TEST_F_TIMEOUT(kept, populating_goes_on_across_lost_pages, SLOW)
{
	struct subject *s = &self->s;
	int advice;

	/* Also where it begins. */
	lose(_metadata, s, 0);
	lose(_metadata, s, 1);
	lose(_metadata, s, s->nr_raw / 2);
	for (advice = MADV_POPULATE_READ; advice <= MADV_POPULATE_WRITE; advice++) {
		unmap_file(s);
		s->map = map_file(s, MAP_SHARED);
		ASSERT_NE(NULL, s->map);
		EXPECT_EQ(0, madvise(s->map, s->size, advice));
		EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
		EXPECT_EQ(0, madvise(s->map, s->size, advice));
	}
	/* And where only lost ones are left. */
	lose(_metadata, s, s->nr_raw - 1);
	unmap_file(s);
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
	EXPECT_EQ(0, madvise(raw_page(s, s->nr_raw - 1), psize(), MADV_POPULATE_READ));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));

	unmap_file(s);
	s->map = map_file(s, MAP_SHARED | MAP_POPULATE);
	ASSERT_NE(NULL, s->map);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, mlock(s->map, s->size));
	EXPECT_EQ(0, nr_changed_pages(s));
}

TEST_F_TIMEOUT(kept, ptrace_reaches_all_but_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	unsigned long *before, *after;
	pid_t pid;

	lose(_metadata, s, nr);
	before = (unsigned long *)raw_page(s, nr) - 1;
	after = (unsigned long *)raw_page(s, nr + 1);
	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		/* The fork has not copied the page tables of a shared mapping. */
		read_byte(s->map);
		ptrace(PTRACE_TRACEME, 0, 0, 0);
		raise(SIGSTOP);
		_exit(KSFT_PASS);
	}
	ASSERT_EQ(pid, waitpid(pid, NULL, 0));

	errno = 0;
	EXPECT_EQ(*before, ptrace(PTRACE_PEEKDATA, pid, before, 0));
	EXPECT_EQ(-1, ptrace(PTRACE_PEEKDATA, pid, before + 1, 0));
	EXPECT_EQ(EIO, errno);
	errno = 0;
	EXPECT_EQ(-1, ptrace(PTRACE_POKEDATA, pid, after - 1, 0));
	EXPECT_EQ(EIO, errno);
	EXPECT_EQ(0, ptrace(PTRACE_POKEDATA, pid, after, *after));
	EXPECT_EQ(*after, ptrace(PTRACE_PEEKDATA, pid, after, 0));

	ptrace(PTRACE_CONT, pid, 0, 0);
	wait_for_child(_metadata, pid);
	EXPECT_EQ(0, nr_changed_pages(s));
}

static long futex(char *addr, int op, uint32_t val)
{
	return syscall(SYS_futex, addr, op, val, NULL, NULL, 0);
}

TEST_F_TIMEOUT(kept, a_shared_futex_can_be_anywhere_but_in_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	char *word;

	lose(_metadata, s, nr);
	errno = 0;
	EXPECT_EQ(-1, futex(raw_page(s, nr), FUTEX_WAIT, 0));
	EXPECT_EQ(EFAULT, errno);
	errno = 0;
	EXPECT_EQ(-1, futex(raw_page(s, nr), FUTEX_WAKE, 1));
	EXPECT_EQ(EFAULT, errno);

	word = raw_page(s, neighbour(nr));
	EXPECT_EQ(0, futex(word, FUTEX_WAKE, 1));
	errno = 0;
	EXPECT_EQ(-1, futex(word, FUTEX_WAIT, *(uint32_t *)word + 1));
	EXPECT_EQ(EAGAIN, errno);
}

TEST_F_TIMEOUT(kept, long_term_pins_leave_out_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	unsigned long ps = psize();
	struct ring r;

	if (!make_ring(&r))
		SKIP(return, "needs io_uring");
	lose(_metadata, s, nr);

	errno = 0;
	EXPECT_EQ(-1, register_buffer(&r, raw_page(s, nr), ps));
	EXPECT_EQ(EFAULT, errno);
	errno = 0;
	EXPECT_EQ(-1, register_buffer(&r, raw_page(s, nr - 2), 4 * ps));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(0, register_buffer(&r, raw_page(s, 0), nr * ps));
	destroy_ring(&r);

	/* What did not come about holds nothing. */
	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, a_registered_buffer_goes_on_without_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	struct ring all, part, one;
	int fd;

	if (!make_ring(&all) || !make_ring(&part) || !make_ring(&one))
		SKIP(return, "needs io_uring");
	ASSERT_EQ(0, register_buffer(&all, s->map, s->size));
	/* One that begins inside the hugepage, and one that is the page itself. */
	ASSERT_EQ(0, register_buffer(&part, raw_page(s, nr - 2), 5 * psize()));
	ASSERT_EQ(0, register_buffer(&one, raw_page(s, nr), psize()));
	lose(_metadata, s, nr);
	expect_fixed_io(_metadata, s, &all, nr);
	expect_fixed_io(_metadata, s, &part, nr);
	fd = memfd_create("hugetlb-mfr", 0);
	ASSERT_LE(0, fd);
	EXPECT_EQ(-EFAULT, transfer_fixed(&one, IORING_OP_WRITE_FIXED, fd,
					  raw_page(s, nr) + 8, 8));
	close(fd);
	destroy_ring(&all);
	destroy_ring(&part);
	destroy_ring(&one);
}

TEST_F_TIMEOUT(kept, a_cloned_buffer_goes_on_without_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	struct ring one, other;
	struct io_uring_clone_buffers clone = {};

	if (!make_ring(&one) || !make_ring(&other))
		SKIP(return, "needs io_uring");
	ASSERT_EQ(0, register_buffer(&one, s->map, s->size));
	clone.src_fd = one.fd;
	ASSERT_EQ(0, syscall(SYS_io_uring_register, other.fd,
			     IORING_REGISTER_CLONE_BUFFERS, &clone, 1));
	lose(_metadata, s, nr);
	expect_fixed_io(_metadata, s, &other, nr);
	destroy_ring(&one);
	expect_fixed_io(_metadata, s, &other, nr);
	destroy_ring(&other);
}

TEST_F_TIMEOUT(kept, pieces_of_a_registered_buffer_leave_out_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	size_t ps = psize();
	struct iovec around[] = {
		{ raw_page(s, nr + 1), ps }, { raw_page(s, nr - 1), ps },
	};
	struct iovec across[] = {
		{ raw_page(s, nr + 1), ps }, { raw_page(s, nr - 1), ps + 1 },
	};
	char *buf = malloc(ps);
	struct ring r;
	int fd, ret;

	if (!make_ring(&r))
		SKIP(return, "needs io_uring");
	ASSERT_NE(NULL, buf);
	ASSERT_EQ(0, register_buffer(&r, s->map, s->size));
	fd = memfd_create("hugetlb-mfr", 0);
	ASSERT_LE(0, fd);
	ret = transfer_fixed(&r, OP_WRITEV_FIXED, fd, (char *)around, 2);
	if (ret == -EINVAL) {
		destroy_ring(&r);
		SKIP(return, "this kernel lacks IORING_OP_WRITEV_FIXED");
	}
	ASSERT_EQ(2 * ps, ret);

	lose(_metadata, s, nr);
	EXPECT_EQ(-EFAULT, transfer_fixed(&r, OP_WRITEV_FIXED, fd, (char *)across, 2));
	EXPECT_EQ(2 * ps, transfer_fixed(&r, OP_WRITEV_FIXED, fd, (char *)around, 2));
	EXPECT_EQ(ps, pread(fd, buf, ps, ps));
	EXPECT_TRUE(page_is_intact(buf, nr - 1));
	close(fd);
	free(buf);
	destroy_ring(&r);
}

/* The kernel uses the pages of the ring by its own address of them. */
TEST_F_TIMEOUT(kept, a_ring_in_it_goes_on_when_its_pages_are_lost, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	int ring = make_ring_in(raw_page(s, nr), 4);

	if (ring < 0)
		SKIP(return, "needs io_uring");
	expect_request_done(_metadata, ring, 1);
	lose(_metadata, s, nr);
	expect_request_done(_metadata, ring, 2);
	lose(_metadata, s, nr + 1);
	expect_request_done(_metadata, ring, 3);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));

	close(ring);
	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_released(_metadata, s);
}

/* As ever: the pipe doesn't ask whether its pages are lost. */
TEST_F_TIMEOUT(kept, a_page_that_is_lost_in_a_pipe_can_be_had_from_there, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	int pipefd[2];

	put_in_pipe(_metadata, pipefd, raw_page(s, nr));
	lose(_metadata, s, nr);
	take_from_pipe(_metadata, pipefd, nr);
	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, the_last_pin_gives_back_all_but_the_lost_pages, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	struct ring r;

	if (!make_ring(&r))
		SKIP(return, "needs io_uring");
	ASSERT_EQ(0, register_buffer(&r, raw_page(s, nr - 1), 3 * psize()));
	lose(_metadata, s, nr);

	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	EXPECT_EQ(0, close(s->fd));
	expect_pool(_metadata, s, 0, 1);
	expect_corrupted(_metadata, s);
	/* Also what is lost now is known at the end. */
	note_lost(_metadata, s, nr + 5);
	EXPECT_EQ(0, inject_corrupt_pfn(NULL, raw_pfn(s, nr + 5)));
	expect_corrupted(_metadata, s);

	destroy_ring(&r);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, a_udmabuf_leaves_out_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	struct udmabuf_create create = { .memfd = s->fd };
	int fd, buf;

	fd = open("/dev/udmabuf", O_RDWR);
	if (fd < 0)
		SKIP(return, "needs CONFIG_UDMABUF");
	ASSERT_EQ(0, fcntl(s->fd, F_ADD_SEALS, F_SEAL_SHRINK));
	lose(_metadata, s, nr);

	create.offset = (nr - 2) * psize();
	create.size = 4 * psize();
	errno = 0;
	EXPECT_EQ(-1, ioctl(fd, UDMABUF_CREATE, &create));
	EXPECT_EQ(EHWPOISON, errno);
	create.size = 2 * psize();
	buf = ioctl(fd, UDMABUF_CREATE, &create);
	EXPECT_LE(0, buf);
	close(buf);
	create.offset = (nr + 1) * psize();
	buf = ioctl(fd, UDMABUF_CREATE, &create);
	EXPECT_LE(0, buf);
	close(buf);
	close(fd);

	/* What did not come about holds nothing. */
	unmap_file(s);
	close(s->fd);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, a_device_that_mirrors_it_is_not_given_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2, ps = psize(), i;
	unsigned char prot[4];
	char *buf = malloc(2 * ps);
	int fd;

	ASSERT_NE(NULL, buf);
	fd = open_mirror();
	if (fd < 0)
		SKIP(return, "needs CONFIG_TEST_HMM");
	lose(_metadata, s, nr);

	/* Asked for what is there, also beside it, and for data. */
	EXPECT_EQ(0, mirror(fd, HMM_DMIRROR_SNAPSHOT, raw_page(s, nr - 2), prot, 4, NULL));
	for (i = 0; i < 4; i++)
		EXPECT_EQ(i == 2 ? HMM_DMIRROR_PROT_ERROR : HMM_DMIRROR_PROT_WRITE,
			  prot[i]);
	/* A device that mapped all of the hugepage for one page would map the lost one. */
	EXPECT_EQ(0, mirror(fd, HMM_DMIRROR_SNAPSHOT, raw_page(s, 1), prot, 1, NULL));
	EXPECT_EQ(HMM_DMIRROR_PROT_WRITE, prot[0]);
	EXPECT_EQ(-EFAULT, mirror(fd, HMM_DMIRROR_READ, raw_page(s, nr), buf, 1, NULL));
	EXPECT_EQ(-EFAULT, mirror(fd, HMM_DMIRROR_READ, raw_page(s, nr - 1), buf, 2, NULL));
	EXPECT_EQ(0, mirror(fd, HMM_DMIRROR_READ, raw_page(s, nr - 2), buf, 2, NULL));
	EXPECT_TRUE(page_is_intact(buf, nr - 2));
	EXPECT_TRUE(page_is_intact(buf + ps, nr - 1));
	EXPECT_EQ(0, mirror(fd, HMM_DMIRROR_READ, raw_page(s, nr + 1), buf, 2, NULL));
	EXPECT_TRUE(page_is_intact(buf, nr + 1));
	EXPECT_TRUE(page_is_intact(buf + ps, nr + 2));
	close(fd);
	free(buf);
}

TEST_F_TIMEOUT(kept, a_device_that_mirrors_it_loses_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2, ps = psize(), faults;
	char *buf = malloc(4 * ps);
	char *map[3];
	int fd, i;

	ASSERT_NE(NULL, buf);
	fd = open_mirror();
	if (fd < 0)
		SKIP(return, "needs CONFIG_TEST_HMM");
	/* By each of its mappings. */
	map[0] = s->map;
	map[1] = map_file(s, MAP_SHARED);
	map[2] = map_file(s, MAP_PRIVATE | MAP_NORESERVE);
	for (i = 0; i < 3; i++) {
		ASSERT_NE(NULL, map[i]);
		map[i] += (nr - 2) * ps;
		ASSERT_EQ(0, mirror(fd, HMM_DMIRROR_READ, map[i], buf, 4, &faults));
		ASSERT_EQ(1, faults);
		/* From now on it doesn't have to ask for them. */
		ASSERT_EQ(0, mirror(fd, HMM_DMIRROR_READ, map[i], buf, 4, &faults));
		ASSERT_EQ(0, faults);
	}
	/* Early kill tells of each mapping, if the signal before was taken. */
	note_lost(_metadata, s, nr);
	ASSERT_EQ(0, inject(s, nr));
	EXPECT_LE(1, heard.nr);
	expect_corrupted(_metadata, s);

	for (i = 0; i < 3; i++) {
		EXPECT_EQ(-EFAULT, mirror(fd, HMM_DMIRROR_READ, map[i] + 2 * ps, buf, 1,
					  NULL));
		/* It can ask for all others. */
		EXPECT_EQ(0, mirror(fd, HMM_DMIRROR_READ, map[i], buf, 2, NULL));
		EXPECT_TRUE(page_is_intact(buf, nr - 2));
		EXPECT_TRUE(page_is_intact(buf + ps, nr - 1));
		EXPECT_EQ(0, mirror(fd, HMM_DMIRROR_READ, map[i] + 3 * ps, buf, 1, NULL));
		EXPECT_TRUE(page_is_intact(buf, nr + 1));
	}
	EXPECT_EQ(-EFAULT, mirror(fd, HMM_DMIRROR_WRITE, raw_page(s, nr), buf, 1, NULL));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	close(fd);
	free(buf);
}

TEST_F_TIMEOUT(kept, the_mirror_of_another_process_loses_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw - 1;
	char *buf = malloc(psize());
	int ready[2], go[2], fd;
	char byte = 0;
	pid_t pid;

	ASSERT_NE(NULL, buf);
	fd = open_mirror();
	if (fd < 0)
		SKIP(return, "needs CONFIG_TEST_HMM");
	close(fd);
	ASSERT_EQ(0, pipe(ready));
	ASSERT_EQ(0, pipe(go));
	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		char *page = raw_page(s, nr);

		fd = open_mirror();
		if (mirror(fd, HMM_DMIRROR_READ, page, buf, 1, NULL) ||
		    write(ready[1], &byte, 1) != 1 || read(go[0], &byte, 1) != 1)
			_exit(KSFT_FAIL);
		_exit(mirror(fd, HMM_DMIRROR_READ, page, buf, 1, NULL) != -EFAULT);
	}
	close(ready[1]);
	ASSERT_EQ(1, read(ready[0], &byte, 1));
	lose(_metadata, s, nr);
	ASSERT_EQ(1, write(go[1], &byte, 1));
	wait_for_child(_metadata, pid);
	free(buf);
}

struct mirror_reader {
	int fd;
	char *map;
	unsigned long npages;
	unsigned long nr_read;
	atomic_bool over;
};

static void *read_mirror(void *arg)
{
	struct mirror_reader *r = arg;
	char *buf = malloc(psize());
	unsigned long i;

	while (buf && !r->over)
		for (i = 0; i < r->npages; i++)
			if (!mirror(r->fd, HMM_DMIRROR_READ, r->map + i * psize(), buf, 1,
				    NULL))
				__atomic_add_fetch(&r->nr_read, 1, __ATOMIC_RELAXED);
	free(buf);
	return NULL;
}

/* A device that asks for the page while it gets lost must not end up with it. */
TEST_F_TIMEOUT(kept, a_device_that_goes_on_asking_loses_each_lost_page, SLOW)
{
	struct subject *s = &self->s;
	/* Machine checks take their time. */
	unsigned long nr_errors = s->injector->for_real ? 10 : 100;
	struct mirror_reader r = { .map = s->map, .npages = s->nr_raw };
	char *buf = malloc(psize());
	unsigned long i, before;
	pthread_t thread;

	ASSERT_NE(NULL, buf);
	r.fd = open_mirror();
	if (r.fd < 0)
		SKIP(return, "needs CONFIG_TEST_HMM");
	if (r.npages > 2 * nr_errors)
		r.npages = 2 * nr_errors;
	ASSERT_EQ(0, pthread_create(&thread, NULL, read_mirror, &r));
	for (i = 0; i < r.npages / 2; i++) {
		before = __atomic_load_n(&r.nr_read, __ATOMIC_RELAXED);
		while (__atomic_load_n(&r.nr_read, __ATOMIC_RELAXED) == before)
			usleep(100);
		lose(_metadata, s, i);
		EXPECT_EQ(-EFAULT, mirror(r.fd, HMM_DMIRROR_READ, raw_page(s, i), buf, 1,
					  NULL));
	}
	r.over = true;
	pthread_join(thread, NULL);
	EXPECT_EQ(0, nr_changed_pages(s));
	close(r.fd);
	free(buf);
}

#define CORE_SIZE	(8UL << 20)

TEST_F_TIMEOUT(kept, a_core_dump_has_all_but_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	struct rlimit limit = { .rlim_cur = CORE_SIZE, .rlim_max = CORE_SIZE };
	char dir[] = "/tmp/hugetlb-mfr.XXXXXX";
	char path[sizeof(dir) + 32];
	unsigned long nr = 5, ps = psize();
	ssize_t len, at = 0;
	char *core;
	int status;
	pid_t pid;

	core = malloc(CORE_SIZE + 1);
	ASSERT_NE(NULL, core);
	lose(_metadata, s, nr);
	ASSERT_NE(NULL, mkdtemp(dir));
	/* With a %p nothing is added to it. */
	sprintf(path, "%s/core.%%p", dir);
	if (!write_text(CORE_PATTERN, path)) {
		rmdir(dir);
		SKIP(return, "needs CONFIG_COREDUMP");
	}

	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		/* Only shared hugetlb memory, and no more than the limit. */
		setrlimit(RLIMIT_CORE, &limit);
		write_text("/proc/self/coredump_filter", "0x40");
		prctl(PR_SET_DUMPABLE, 1);
		signal(SIGABRT, SIG_DFL);
		abort();
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_EQ(SIGABRT, WTERMSIG(status));
	sprintf(path, "%s/core.%d", dir, pid);
	len = read_text(path, core, CORE_SIZE + 1);
	unlink(path);
	rmdir(dir);
	ASSERT_LT(0, len);

	while (at + 3 * (ssize_t)ps <= len && !page_is_intact(core + at, nr - 1))
		at += ps;
	ASSERT_LE(at + 3 * ps, len);
	EXPECT_TRUE(page_is_zero(core + at + ps));
	EXPECT_TRUE(page_is_intact(core + at + 2 * ps, nr + 1));
	free(core);
}

/* Both want the locks of the folio and of the mapping. */
TEST_F_TIMEOUT(kept, punching_parts_does_not_lock_up_with_errors, SLOW)
{
	struct subject *s = &self->s;
	/* Machine checks take their time. */
	unsigned long nr_errors = s->injector->for_real ? 10 : 500;
	unsigned long i;
	pid_t pid;

	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		while (!punch(s, 0, psize()))
			;
		_exit(1);
	}
	for (i = 1; i <= nr_errors && i < s->nr_raw; i++)
		lose(_metadata, s, i);
	kill_child(_metadata, pid);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
}

TEST_F_TIMEOUT(kept, unpoisoning_is_refused_while_the_file_holds_it, SLOW)
{
	struct subject *s = &self->s;
	char byte;

	lose_spots(_metadata, s);

	EXPECT_NE(0, unpoison(raw_pfn(s, s->nr_raw / 2)));
	EXPECT_NE(0, unpoison(s->head[0]));
	unmap_file(s);
	EXPECT_NE(0, unpoison(raw_pfn(s, s->nr_raw / 2)));
	EXPECT_NE(0, unpoison(s->head[0]));

	expect_corrupted(_metadata, s);
	EXPECT_EQ(-1, pread(s->fd, &byte, 1, 0));
	EXPECT_EQ(-1, pread(s->fd, &byte, 1, s->nr_raw / 2 * psize()));
	expect_pool(_metadata, s, 0, 1);

	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_released(_metadata, s);
}

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
	EXPECT_EQ(-1, madvise(raw_page(s, neighbour(nr)), psize(), MADV_SOFT_OFFLINE));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	expect_corrupted(_metadata, s);
	expect_pool(_metadata, s, 0, 1);

	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_released(_metadata, s);
}

/* A migration isolates it, is refused, and gives it back, over and over. */
TEST_F_TIMEOUT(kept, errors_find_a_hugepage_that_is_isolated, SLOW)
{
	struct subject *s = &self->s;
	unsigned long i, before, nr_errors, *refused;
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
		/* If it can't be isolated there is a status; all else comes later. */
		do {
			status = move_page(raw_page(s, s->nr_raw - 1), other);
			__atomic_add_fetch(refused, 1, __ATOMIC_RELAXED);
		} while (status == -1 || status == -ENOMEM);
		_exit(1);
	}
	for (i = 0; i < 1000 && !__atomic_load_n(refused, __ATOMIC_RELAXED); i++)
		usleep(10000);
	before = *refused;
	EXPECT_LT(0, before);
	nr_errors = s->injector->for_real ? 50 : 500;
	for (i = 1; i < s->nr_raw - 1; i++) {
		if (i > nr_errors && __atomic_load_n(refused, __ATOMIC_RELAXED) != before)
			break;
		lose(_metadata, s, i);
	}
	EXPECT_LT(before, *refused);
	kill_child(_metadata, pid);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));

	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, truncation_gives_back_all_but_the_lost_pages, SLOW)
{
	struct subject *s = &self->s;

	lose_spots(_metadata, s);
	/* The mapping stays, with nothing in it. */
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	EXPECT_FALSE(is_mapped(s->map));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, punching_the_hugepage_gives_back_all_but_the_lost_pages, SLOW)
{
	struct subject *s = &self->s;

	lose_spots(_metadata, s);
	EXPECT_EQ(0, punch(s, 0, s->size));
	EXPECT_FALSE(is_mapped(s->map));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, the_last_close_gives_back_all_but_the_lost_pages, SLOW)
{
	struct subject *s = &self->s;

	lose_spots(_metadata, s);
	unmap_file(s);
	expect_pool(_metadata, s, 0, 1);
	EXPECT_EQ(0, close(s->fd));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, the_last_munmap_gives_back_all_but_the_lost_pages, SLOW)
{
	struct subject *s = &self->s;

	lose_spots(_metadata, s);
	EXPECT_EQ(0, close(s->fd));
	expect_pool(_metadata, s, 0, 1);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	unmap_file(s);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, many_lost_pages_are_all_left_out_at_the_end, SLOW)
{
	struct subject *s = &self->s;

	lose_many(_metadata, s);
	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_released(_metadata, s);
}

/* Leave the file to a child, which loses pages and then says so. */
static pid_t leave_to_child(struct __test_metadata *_metadata, struct subject *s,
			    bool exits)
{
	int go[2], done[2];
	char byte = 0;
	pid_t pid;

	ASSERT_EQ(0, pipe(go));
	ASSERT_EQ(0, pipe(done));
	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		ASSERT_EQ(1, read(go[0], &byte, 1));
		lose_spots(_metadata, s);
		ASSERT_EQ(1, write(done[1], &byte, 1));
		if (exits)
			_exit(KSFT_PASS);
		for (;;)
			pause();
	}

	/* The subject is shared with the child, its address with nobody. */
	munmap(s->map, s->size);
	close(s->fd);
	close(done[1]);
	ASSERT_EQ(1, write(go[1], &byte, 1));
	ASSERT_EQ(1, read(done[0], &byte, 1));
	return pid;
}

TEST_F_TIMEOUT(kept, exit_gives_back_all_but_the_lost_pages, SLOW)
{
	struct subject *s = &self->s;

	wait_for_child(_metadata, leave_to_child(_metadata, s, true));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, SIGKILL_gives_back_all_but_the_lost_pages, SLOW)
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

TEST_F_TIMEOUT(kept, punch_and_refault_gives_a_fresh_healthy_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long old = s->head[0];
	unsigned long i, nr_dirty = 0;

	if (!need_more_hugepages(s, 1))
		SKIP(return, "can't get 2 hugepages of %lu kB", s->size >> 10);

	lose_spots(_metadata, s);
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
	for (i = 0; i < NR_SPOTS; i++)
		EXPECT_TRUE(try_write(raw_page(s, spot(s, i))));
	expect_pool(_metadata, s, 1, 1);
	expect_corrupted(_metadata, s);

	/* The old one was released, the fresh one is nothing special. */
	s->head[0] = old;
	expect_all_come_back(_metadata, s, 0);
	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_pool(_metadata, s, 1, 0);
}

/* Of the memory at @map, how much lies in the hugepage?  Lost pages must not. */
static unsigned long nr_handed_out(struct __test_metadata *_metadata, struct subject *s,
				   char *map, size_t len)
{
	unsigned long nr = 0, nr_lost = 0;
	size_t off;
	int fd;

	fd = open("/proc/self/pagemap", O_RDONLY);
	ASSERT_LE(0, fd);
	for (off = 0; off < len; off += psize()) {
		unsigned long pfn = pagemap_get_pfn(fd, map + off);

		if (pfn < s->head[0] || pfn >= s->head[0] + s->nr_raw)
			continue;
		nr++;
		nr_lost += s->lost[pfn - s->head[0]];
	}
	close(fd);
	EXPECT_EQ(0, nr_lost);
	return nr;
}

static long mem_free_kb(void)
{
	FILE *f = fopen("/proc/meminfo", "r");
	char line[128];
	long kb = 0;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "MemFree: %ld kB", &kb) == 1)
			break;
	if (f)
		fclose(f);
	return kb;
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

TEST_F_TIMEOUT(kept, no_lost_page_is_to_be_had_by_allocating_all_memory, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr_ours = 0;
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
	if (mem_free_kb() < keep_kb + (256 << 10))
		SKIP(return, "needs %ld MiB of free memory", (keep_kb >> 10) + 256);
	ASSERT_TRUE(write_long("/proc/self/oom_score_adj", 1000));

	node = move_page(s->map, -1);
	lose_spots(_metadata, s);
	unmap_file(s);
	ASSERT_EQ(0, ftruncate(s->fd, 0));
	wait_for_release(s, 1);
	expect_pool(_metadata, s, 1, 0);

	/* As small pages first, which use up the fragments before all else. */
	len = (fragments_kb(SZ_2M) + (64 << 10)) << 10;
	map = mmap(NULL, len, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	ASSERT_NE(MAP_FAILED, map);
	madvise(map, len, MADV_NOHUGEPAGE);
	bind_to_node(map, len, node);
	ASSERT_EQ(0, madvise(map, len, MADV_POPULATE_WRITE));
	expect_out_of_use(_metadata, s, 0);
	nr_ours = nr_handed_out(_metadata, s, map, len);

	/* Then as hugepages: that takes the large blocks, and clears nothing. */
	nr = pool_get(SZ_2M, "nr_hugepages");
	pool_set(SZ_2M, "nr_hugepages",
		 nr + (mem_free_kb() - keep_kb) / (long)(SZ_2M >> 10));
	ASSERT_LT(nr, pool_get(SZ_2M, "nr_hugepages"));
	expect_out_of_use(_metadata, s, 0);
	for (i = 0; i < s->nr_raw; i++)
		nr_ours += !!(s->flags[i] & KPF_HUGE);

	/* Most of what was freed must be ours by now, or this proves nothing. */
	EXPECT_LT(0, nr_ours);
	if (s->nr_raw >= 512)
		EXPECT_LT(s->nr_raw / 2 - s->nr_lost, nr_ours);

	munmap(map, len);
	pool_set(SZ_2M, "nr_hugepages", nr);
	expect_released(_metadata, s);
}

/*
 * Machine checks: their kinds, and what other injectors can't do
 */

FIXTURE(machine_check)
{
	struct subject s;
};

FIXTURE_VARIANT(machine_check)
{
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(machine_check, load)
{
	.injector = &by_mce,
};

FIXTURE_VARIANT_ADD(machine_check, fetch)
{
	.injector = &by_fetch,
};

FIXTURE_VARIANT_ADD(machine_check, broadcast)
{
	.injector = &by_broadcast,
};

/* Map the file again, for fetches, too, and touch it. */
static bool map_again(struct subject *s)
{
	const int prot = PROT_READ | PROT_WRITE | PROT_EXEC;
	char *map = mmap(NULL, s->size, prot, MAP_SHARED, s->fd, 0);

	if (map == MAP_FAILED)
		return false;
	unmap_file(s);
	s->map = map;
	return try_read(raw_page(s, s->nr_raw - 2));
}

FIXTURE_SETUP(machine_check)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, SZ_2M, variant->injector, 1);
	if (!_metadata->exit_code)
		open_subject(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
	if (!_metadata->exit_code)
		ASSERT_TRUE(map_again(&self->s));
}

FIXTURE_TEARDOWN_PARENT(machine_check)
{
	teardown_subject(_metadata, &self->s);
}

TEST_F_TIMEOUT(machine_check, each_lost_page_is_signalled_exactly, SLOW)
{
	struct subject *s = &self->s;

	lose_spots(_metadata, s);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	expect_pool(_metadata, s, 0, 1);
}

TEST_F_TIMEOUT(machine_check, the_end_gives_back_all_but_the_lost_pages, SLOW)
{
	struct subject *s = &self->s;

	lose_spots(_metadata, s);
	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(machine_check, a_lost_page_is_signalled_in_each_mapping, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2 + 1;
	char path[32];
	int i, fd;

	lose(_metadata, s, nr);
	for (i = 0; i < 3; i++) {
		EXPECT_EQ(0, inject(s, nr));
		expect_sigbus(_metadata, BUS_MCEERR_AR, raw_page(s, nr), pshift());
		expect_corrupted(_metadata, s);

		/* Also in one of a file opened again. */
		snprintf(path, sizeof(path), "/proc/self/fd/%d", s->fd);
		fd = open(path, O_RDWR);
		ASSERT_LE(0, fd);
		close(s->fd);
		s->fd = fd;
		ASSERT_TRUE(map_again(s));
	}
	EXPECT_EQ(0, nr_changed_pages(s));
}

TEST_F_TIMEOUT(machine_check, each_process_hears_what_it_consumes, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2 + 1;
	pid_t pid;

	lose(_metadata, s, nr);
	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		struct subject mine = *s;	/* the fixture is shared */

		if (!map_again(&mine) || inject(&mine, nr) || heard.code != BUS_MCEERR_AR ||
		    heard.addr != (uintptr_t)raw_page(&mine, nr) ||
		    heard.lsb != pshift())
			_exit(1);
		_exit(0);
	}
	wait_for_child(_metadata, pid);
	expect_corrupted(_metadata, s);
	EXPECT_EQ(0, nr_changed_pages(s));
}

static void expect_killed(struct __test_metadata *_metadata, struct subject *s,
			  bool blocked)
{
	unsigned long nr = s->nr_raw / 2 + 1;
	int status;
	pid_t pid;

	note_lost(_metadata, s, nr);
	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		sigset_t set;

		sigemptyset(&set);
		sigaddset(&set, SIGBUS);
		if (blocked)
			sigprocmask(SIG_BLOCK, &set, NULL);
		else
			signal(SIGBUS, SIG_IGN);
		inject(s, nr);
		_exit(0);
	}
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_EQ(SIGBUS, WTERMSIG(status));

	/* Nobody else loses more than the page. */
	expect_corrupted(_metadata, s);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
}

TEST_F_TIMEOUT(machine_check, who_blocks_the_signal_is_killed, SLOW)
{
	expect_killed(_metadata, &self->s, true);
}

TEST_F_TIMEOUT(machine_check, who_ignores_the_signal_is_killed, SLOW)
{
	expect_killed(_metadata, &self->s, false);
}

/*
 * Two CPUs at once
 */

FIXTURE(two_victims)
{
	struct subject s;
};

FIXTURE_VARIANT(two_victims)
{
	unsigned long size;
};

FIXTURE_VARIANT_ADD(two_victims, mce_2m)
{
	.size = SZ_2M,
};

FIXTURE_VARIANT_ADD(two_victims, mce_1g)
{
	.size = SZ_1G,
};

FIXTURE_SETUP(two_victims)
{
	int cpu[2];

	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	if (mce_cpus(cpu) && cpu[0] == cpu[1])
		SKIP(return, "needs two CPUs without ticks");
	setup_subject(_metadata, &self->s, variant->size, &by_mce, 1);
	if (!_metadata->exit_code)
		open_subject(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
}

FIXTURE_TEARDOWN_PARENT(two_victims)
{
	teardown_subject(_metadata, &self->s);
}

/* Two threads consume two pages, or one, and each hears of its own. */
static void lose_at_once(struct __test_metadata *_metadata, struct subject *s,
			 unsigned long nr0, unsigned long nr1)
{
	unsigned long nr[2] = { nr0, nr1 };
	struct mce_victim victim[2] = {};
	struct heard_by by[2] = {};
	pthread_t thread[2];
	int cpu[2];
	int i;

	ASSERT_TRUE(mce_cpus(cpu));
	ledger->for_ever = true;
	injecting = true;
	for (i = 0; i < 2; i++) {
		if (!s->lost[nr[i]])
			note_lost(_metadata, s, nr[i]);
		victim[i].addr = raw_page(s, nr[i]);
		victim[i].pfn = raw_pfn(s, nr[i]);
		victim[i].cpu = cpu[i];
		by[i].victim = &victim[i];
		ASSERT_EQ(0, pthread_create(&thread[i], NULL, suffer, &by[i]));
	}
	mce_shoot(ledger->monitor, MCE_LOAD, victim, 2);
	for (i = 0; i < 2; i++) {
		pthread_join(thread[i], NULL);
		EXPECT_EQ(0, victim[i].error);
		EXPECT_EQ(1, by[i].nr);
		EXPECT_EQ(BUS_MCEERR_AR, by[i].code);
		EXPECT_EQ(pshift(), by[i].lsb);
		EXPECT_EQ((uintptr_t)raw_page(s, nr[i]), by[i].addr);
	}
	injecting = false;
	expect_corrupted(_metadata, s);
}

TEST_F_TIMEOUT(two_victims, of_two_pages_hear_of_their_own, SLOW)
{
	struct subject *s = &self->s;

	lose_at_once(_metadata, s, 0, s->nr_raw - 1);
	lose_at_once(_metadata, s, s->nr_raw / 2, s->nr_raw / 2 + 1);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(two_victims, of_one_page_both_hear_of_it, SLOW)
{
	struct subject *s = &self->s;

	lose_at_once(_metadata, s, s->nr_raw / 2, s->nr_raw / 2);
	EXPECT_EQ(1, s->nr_lost);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_released(_metadata, s);
}

FIXTURE(thousand)
{
	struct subject s;
};

FIXTURE_SETUP(thousand)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, SZ_1G, &by_mce, 1);
	if (!_metadata->exit_code)
		open_subject(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
}

FIXTURE_TEARDOWN_PARENT(thousand)
{
	teardown_subject(_metadata, &self->s);
}

#define NR_LOST_OF_MANY		1000

TEST_F_TIMEOUT(thousand, machine_checks_in_one_hugepage_are_told_one_by_one, 2 * SLOW)
{
	struct subject *s = &self->s;
	unsigned long i;

	for (i = 0; i < NR_LOST_OF_MANY; i++)
		lose(_metadata, s, i * (s->nr_raw / NR_LOST_OF_MANY));
	expect_corrupted(_metadata, s);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));

	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_released(_metadata, s);
}

/*
 * The same without the flag: nothing changes
 */

FIXTURE(plain)
{
	struct subject s;
};

FIXTURE_VARIANT(plain)
{
	unsigned long size;
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(plain, madvise_2m)
{
	.size = SZ_2M,
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(plain, corrupt_pfn_2m)
{
	.size = SZ_2M,
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(plain, mce_2m)
{
	.size = SZ_2M,
	.injector = &by_mce,
};

FIXTURE_VARIANT_ADD(plain, scrub_2m)
{
	.size = SZ_2M,
	.injector = &by_scrub,
};

FIXTURE_VARIANT_ADD(plain, madvise_1g)
{
	.size = SZ_1G,
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(plain, corrupt_pfn_1g)
{
	.size = SZ_1G,
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD_SIZES(plain)

FIXTURE_SETUP(plain)
{
	setup_subject(_metadata, &self->s, variant->size, variant->injector, 1);
	if (!_metadata->exit_code)
		open_subject(_metadata, &self->s, 0);
}

FIXTURE_TEARDOWN_PARENT(plain)
{
	teardown_subject(_metadata, &self->s);
}

TEST_F_TIMEOUT(plain, the_first_lost_page_unmaps_the_whole_hugepage, SLOW)
{
	struct subject *s = &self->s;

	lose_hugepage(_metadata, s, s->nr_raw / 2);
	EXPECT_FALSE(is_mapped(s->map));
	EXPECT_FALSE(is_mapped(raw_page(s, s->nr_raw - 1)));
	expect_pool(_metadata, s, 0, 1);
}

TEST_F_TIMEOUT(plain, every_byte_is_out_of_reach_afterwards, SLOW)
{
	struct subject *s = &self->s;
	unsigned int i;

	lose_hugepage(_metadata, s, s->nr_raw / 2);
	for (i = 0; i < NR_SPOTS; i++) {
		char *ptr = raw_page(s, spot(s, i)) + 8;

		EXPECT_FALSE(try_read(ptr));
		expect_sigbus(_metadata, BUS_MCEERR_AR, ptr, __builtin_ctzl(s->size));
		EXPECT_FALSE(try_write(ptr));
		expect_sigbus(_metadata, BUS_MCEERR_AR, ptr, __builtin_ctzl(s->size));
	}
	expect_corrupted(_metadata, s);
}

TEST_F_TIMEOUT(plain, a_new_mapping_reaches_nothing_either, SLOW)
{
	struct subject *s = &self->s;

	lose_hugepage(_metadata, s, 0);
	unmap_file(s);
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
	EXPECT_FALSE(try_read(raw_page(s, 1)));
	expect_sigbus(_metadata, BUS_MCEERR_AR, raw_page(s, 1), __builtin_ctzl(s->size));
	EXPECT_FALSE(is_mapped(s->map));
}

TEST_F_TIMEOUT(plain, pread_stops_at_the_lost_page_and_goes_on_behind_it, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	unsigned long ps = psize();
	char *buf;

	lose_hugepage(_metadata, s, nr);
	buf = malloc(2 * ps);
	ASSERT_NE(NULL, buf);
	EXPECT_EQ(ps, pread(s->fd, buf, 2 * ps, (nr - 1) * ps));
	EXPECT_TRUE(page_is_intact(buf, nr - 1));
	errno = 0;
	EXPECT_EQ(-1, pread(s->fd, buf, ps, nr * ps));
	EXPECT_EQ(EIO, errno);
	EXPECT_EQ(ps, pread(s->fd, buf, ps, (nr + 1) * ps));
	EXPECT_TRUE(page_is_intact(buf, nr + 1));
	free(buf);
}

TEST_F_TIMEOUT(plain, punching_parts_spares_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	unsigned long ps = psize();
	char *buf;

	/* The same series has put it right: the kernel oopsed. */
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");

	buf = malloc(ps);
	ASSERT_NE(NULL, buf);
	lose_hugepage(_metadata, s, nr);
	errno = 0;
	EXPECT_EQ(-1, punch(s, (nr - 1) * ps, 3 * ps));
	EXPECT_EQ(EIO, errno);
	EXPECT_EQ(ps, pread(s->fd, buf, ps, (nr - 1) * ps));
	EXPECT_TRUE(page_is_zero(buf));
	EXPECT_EQ(ps, pread(s->fd, buf, ps, (nr + 1) * ps));
	EXPECT_TRUE(page_is_zero(buf));
	free(buf);
}

/* The hugepage has another user, which the kernel may call a failure. */
static void lose_held(struct __test_metadata *_metadata, struct subject *s,
		      unsigned long nr)
{
	note_lost(_metadata, s, nr);
	inject(s, nr);
	EXPECT_FALSE(is_mapped(s->map));
	expect_corrupted(_metadata, s);
}

TEST_F_TIMEOUT(plain, a_registered_buffer_goes_on_without_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	struct ring r;

	/* The same series has put it right. */
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	if (!make_ring(&r))
		SKIP(return, "needs io_uring");
	ASSERT_EQ(0, register_buffer(&r, s->map, s->size));
	lose_held(_metadata, s, nr);
	expect_fixed_io(_metadata, s, &r, nr);
	destroy_ring(&r);
}

TEST_F_TIMEOUT(plain, a_ring_in_it_goes_on_when_its_queues_are_lost, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	int ring = make_ring_in(raw_page(s, nr), 4);

	if (ring < 0)
		SKIP(return, "needs io_uring");
	expect_request_done(_metadata, ring, 1);
	lose_held(_metadata, s, nr);
	expect_request_done(_metadata, ring, 2);
	close(ring);
}

TEST_F_TIMEOUT(plain, a_ring_in_it_goes_on_when_its_requests_are_lost, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	int ring = make_ring_in(raw_page(s, nr), 4);

	if (ring < 0)
		SKIP(return, "needs io_uring");
	expect_request_done(_metadata, ring, 1);
	lose_held(_metadata, s, nr + 1);
	expect_request_done(_metadata, ring, 2);
	close(ring);
}

TEST_F_TIMEOUT(plain, a_page_that_is_lost_in_a_pipe_can_be_had_from_there, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	int pipefd[2];

	put_in_pipe(_metadata, pipefd, raw_page(s, nr));
	lose_held(_metadata, s, nr);
	take_from_pipe(_metadata, pipefd, nr);
}

TEST_F_TIMEOUT(plain, a_device_that_mirrors_it_loses_all_of_it, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2, i;
	char *buf = malloc(2 * psize());
	int fd;

	ASSERT_NE(NULL, buf);
	fd = open_mirror();
	if (fd < 0)
		SKIP(return, "needs CONFIG_TEST_HMM");
	ASSERT_EQ(0, mirror(fd, HMM_DMIRROR_READ, raw_page(s, nr), buf, 2, NULL));
	lose_hugepage(_metadata, s, nr);
	for (i = nr; i < nr + 2; i++)
		EXPECT_EQ(-EFAULT, mirror(fd, HMM_DMIRROR_READ, raw_page(s, i), buf, 1,
					  NULL));
	close(fd);
	free(buf);
}

TEST_F_TIMEOUT(plain, a_filtered_error_leaves_no_trace, SLOW)
{
	struct subject *s = &self->s;

	/* The same series has put it right. */
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");

	expect_filtered(_metadata, s, s->nr_raw / 2);
	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_pool(_metadata, s, 0, 0);
}

TEST_F_TIMEOUT(plain, the_hugepage_stays_out_of_use_until_it_is_unpoisoned, SLOW)
{
	struct subject *s = &self->s;

	lose_hugepage(_metadata, s, s->nr_raw / 2);
	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));

	/* In the pool, but neither free nor anybody's. */
	expect_pool(_metadata, s, 0, 1);
	expect_corrupted(_metadata, s);
	EXPECT_TRUE(is_poisoned(s->head[0]));

	/* After a machine check that is for ever. */
	if (ledger->for_ever)
		return;

	/* Only the hugepage as a whole can be given back. */
	EXPECT_NE(0, unpoison(raw_pfn(s, s->nr_raw / 2)));
	EXPECT_EQ(0, unpoison(s->head[0]));
	s->nr_lost = 0;
	expect_corrupted(_metadata, s);
	expect_pool(_metadata, s, 0, 0);
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

FIXTURE_VARIANT(iommu)
{
	unsigned long size;
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(iommu, madvise_2m)
{
	.size = SZ_2M,
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(iommu, corrupt_pfn_2m)
{
	.size = SZ_2M,
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(iommu, mce_2m)
{
	.size = SZ_2M,
	.injector = &by_mce,
};

FIXTURE_VARIANT_ADD(iommu, scrub_2m)
{
	.size = SZ_2M,
	.injector = &by_scrub,
};

FIXTURE_VARIANT_ADD(iommu, madvise_1g)
{
	.size = SZ_1G,
	.injector = &by_madvise,
};

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

	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	self->fd = open("/dev/iommu", O_RDWR);
	if (self->fd < 0 || !ioctl(self->fd, IOMMU_TEST_CMD, &none) || errno == ENOTTY)
		SKIP(return, "needs CONFIG_IOMMUFD_TEST");
	ASSERT_EQ(0, ioctl(self->fd, IOMMU_IOAS_ALLOC, &alloc));
	self->ioas = alloc.out_ioas_id;

	setup_subject(_metadata, &self->s, variant->size, variant->injector, 1);
	if (_metadata->exit_code)
		return;
	open_subject(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
	/* Older kernels don't know files. */
	self->nr_ways = iommu_map(self, BY_FILE, 0, 1) == -ENOTTY ? BY_FILE : BY_FILE + 1;
	ASSERT_EQ(0, iommu_unmap_all(self));
}

FIXTURE_TEARDOWN_PARENT(iommu)
{
	teardown_subject(_metadata, &self->s);
}

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

TEST_F_TIMEOUT(iommu, a_device_is_given_all_but_the_lost_page, SLOW)
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

TEST_F_TIMEOUT(iommu, a_device_that_comes_late_is_refused_the_lost_page, SLOW)
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

TEST_F_TIMEOUT(iommu, a_driver_is_refused_the_lost_page, SLOW)
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

/* As ever: nobody asks again whether a pinned page is lost. */
TEST_F_TIMEOUT(iommu, a_driver_goes_on_with_what_a_device_has, SLOW)
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

/*
 * The policy belongs to the file
 */

FIXTURE(passed_on)
{
	struct subject s;
};

FIXTURE_SETUP(passed_on)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, SZ_2M, &by_madvise, 1);
	if (!_metadata->exit_code)
		open_subject(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
}

FIXTURE_TEARDOWN_PARENT(passed_on)
{
	teardown_subject(_metadata, &self->s);
}

/* Take @fd for the file, forget all else that leads there, and lose a page. */
static void expect_kept_through(struct __test_metadata *_metadata, struct subject *s,
				int fd)
{
	ASSERT_LE(0, fd);
	unmap_file(s);
	close(s->fd);
	s->fd = fd;
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
	lose(_metadata, s, 3);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
}

TEST_F(passed_on, a_duplicate_keeps)
{
	expect_kept_through(_metadata, &self->s, dup(self->s.fd));
}

TEST_F(passed_on, a_file_reopened_through_proc_keeps)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->s.fd);
	expect_kept_through(_metadata, &self->s, open(path, O_RDWR));
}

TEST_F(passed_on, a_descriptor_sent_over_a_socket_keeps)
{
	union {
		struct cmsghdr align;
		char buf[CMSG_SPACE(sizeof(int))];
	} control = {};
	char byte = 0;
	struct iovec iov = { .iov_base = &byte, .iov_len = 1 };
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = control.buf,
		.msg_controllen = sizeof(control.buf),
	};
	struct cmsghdr *cmsg = CMSG_FIRSTHDR(&msg);
	int sk[2], fd;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_DGRAM, 0, sk));
	cmsg->cmsg_level = SOL_SOCKET;
	cmsg->cmsg_type = SCM_RIGHTS;
	cmsg->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cmsg), &self->s.fd, sizeof(int));
	ASSERT_EQ(1, sendmsg(sk[0], &msg, 0));

	memset(&control, 0, sizeof(control));
	ASSERT_EQ(1, recvmsg(sk[1], &msg, 0));
	cmsg = CMSG_FIRSTHDR(&msg);
	ASSERT_NE(NULL, cmsg);
	memcpy(&fd, CMSG_DATA(cmsg), sizeof(int));
	expect_kept_through(_metadata, &self->s, fd);
}

TEST_F(passed_on, a_forked_child_keeps)
{
	struct subject *s = &self->s;
	pid_t pid;

	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		/* With the mapping as it was inherited. */
		lose(_metadata, s, 3);
		EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
		EXPECT_EQ(0, nr_changed_pages(s));
		_exit(KSFT_PASS);
	}
	wait_for_child(_metadata, pid);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
}

/*
 * Reservations, surplus pages, and hugepages side by side
 */

FIXTURE(accounted)
{
	struct subject s;
};

FIXTURE_VARIANT(accounted)
{
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(accounted, madvise)
{
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(accounted, corrupt_pfn)
{
	.injector = &by_pfn,
};

FIXTURE_SETUP(accounted)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, SZ_2M, variant->injector, 2);
}

FIXTURE_TEARDOWN_PARENT(accounted)
{
	teardown_subject(_metadata, &self->s);
}

TEST_F(accounted, the_pages_on_both_sides_of_a_hugepage_line_are_two_losses)
{
	struct subject *s = &self->s;

	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	lose(_metadata, s, s->nr_raw - 1);
	lose(_metadata, s, s->nr_raw);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 1));
	EXPECT_EQ(0, nr_changed_pages(s));

	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_pool(_metadata, s, 2, 0);
	expect_all_come_back(_metadata, s, 0);
	expect_all_come_back(_metadata, s, 1);
}

TEST_F(accounted, a_read_returns_the_hugepage_in_front_of_the_lost_page)
{
	struct subject *s = &self->s;
	unsigned long ps = psize();
	char *buf = malloc(4 * ps);

	ASSERT_NE(NULL, buf);
	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	lose(_metadata, s, s->nr_raw);

	EXPECT_EQ(2 * ps, pread(s->fd, buf, 4 * ps, (s->nr_raw - 2) * ps));
	EXPECT_TRUE(page_is_intact(buf, s->nr_raw - 2));
	EXPECT_TRUE(page_is_intact(buf + ps, s->nr_raw - 1));

	/* The position follows what was read. */
	ASSERT_EQ((s->nr_raw - 1) * ps, lseek(s->fd, (s->nr_raw - 1) * ps, SEEK_SET));
	EXPECT_EQ(ps, read(s->fd, buf, 4 * ps));
	errno = 0;
	EXPECT_EQ(-1, read(s->fd, buf, 4 * ps));
	EXPECT_EQ(EIO, errno);
	EXPECT_EQ(s->nr_raw * ps, lseek(s->fd, 0, SEEK_CUR));
	free(buf);
}

TEST_F(accounted, a_refused_udmabuf_does_not_hold_the_hugepage_before_the_lost_page)
{
	struct subject *s = &self->s;
	struct {
		struct udmabuf_create_list head;
		struct udmabuf_create_item item[2];
	} list = { .head.count = 2 };
	struct udmabuf_create create;
	int fd;

	fd = open("/dev/udmabuf", O_RDWR);
	if (fd < 0)
		SKIP(return, "needs CONFIG_UDMABUF");
	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED | MFD_ALLOW_SEALING);
	ASSERT_EQ(0, fcntl(s->fd, F_ADD_SEALS, F_SEAL_SHRINK));
	lose(_metadata, s, s->nr_raw);

	create = (struct udmabuf_create) {
		.memfd = s->fd,
		.offset = s->size - psize(),
		.size = 2 * psize(),
	};
	errno = 0;
	EXPECT_EQ(-1, ioctl(fd, UDMABUF_CREATE, &create));
	EXPECT_EQ(EHWPOISON, errno);
	list.item[0] = (struct udmabuf_create_item) {
		.memfd = s->fd,
		.offset = s->size - psize(),
		.size = psize(),
	};
	list.item[1] = list.item[0];
	list.item[1].offset = s->size;
	errno = 0;
	EXPECT_EQ(-1, ioctl(fd, UDMABUF_CREATE_LIST, &list));
	EXPECT_EQ(EHWPOISON, errno);

	EXPECT_EQ(0, punch(s, 0, s->size));
	expect_pool(_metadata, s, 0, 1);
	close(fd);
}

TEST_F(accounted, a_healthy_hugepage_of_a_kept_file_goes_back_to_the_pool)
{
	struct subject *s = &self->s;

	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	lose(_metadata, s, 5);
	EXPECT_EQ(0, punch(s, s->size, s->size));
	expect_pool(_metadata, s, 0, 1);
	EXPECT_EQ(0, punch(s, 0, s->size));
	expect_pool(_metadata, s, 1, 0);
	expect_all_come_back(_metadata, s, 0);
}

TEST_F(accounted, a_punch_removes_whole_hugepages_even_if_a_part_is_lost)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw - 2;

	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	lose(_metadata, s, nr);

	errno = 0;
	EXPECT_EQ(-1, punch(s, (nr - 1) * psize(), 3 * psize() + s->size));
	EXPECT_EQ(EIO, errno);
	EXPECT_TRUE(page_is_zero(raw_page(s, nr - 1)));
	EXPECT_TRUE(page_is_zero(raw_page(s, nr + 1)));
	EXPECT_TRUE(page_is_intact(raw_page(s, nr), nr));
	EXPECT_TRUE(page_is_intact(raw_page(s, nr - 2), nr - 2));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_FALSE(is_mapped(s->map + s->size));
	expect_pool(_metadata, s, 0, 1);
}

TEST_F(accounted, a_reservation_outlives_the_poisoned_hugepage_beside_it)
{
	struct subject *s = &self->s;
	struct pool pool;

	/* Reserve two hugepages, fault in the first. */
	s->fd = create_memfd(s->size, MFD_MF_KEEP_UE_MAPPED);
	ASSERT_LE(0, s->fd);
	ASSERT_EQ(0, ftruncate(s->fd, 2 * s->size));
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
	ASSERT_EQ(s->before.resv + 2, pool_get(s->size, "resv_hugepages"));
	ASSERT_TRUE(try_write(s->map));
	s->head[0] = mapped_pfn(s->map);
	ASSERT_NE(-1UL, s->head[0]);
	lose(_metadata, s, 5);

	EXPECT_EQ(0, punch(s, 0, s->size));
	pool = pool_read(s->size);
	EXPECT_EQ(s->before.nr - 1, pool.nr);
	EXPECT_EQ(s->before.free - 1, pool.free);
	EXPECT_EQ(s->before.resv + 1, pool.resv);
	EXPECT_EQ(s->before.surplus, pool.surplus);

	EXPECT_TRUE(try_write(s->map + s->size));
	expect_pool(_metadata, s, 1, 1);
	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_pool(_metadata, s, 1, 0);
	expect_all_come_back(_metadata, s, 0);
}

/* What the pool is meant to have; sysfs tells what it has. */
TEST_F(accounted, the_pool_does_not_wait_for_the_poisoned_hugepage)
{
	struct subject *s = &self->s;
	long before, after;

	if (default_size() != s->size)
		SKIP(return, "%s is about other hugepages", NR_HUGEPAGES);

	ASSERT_TRUE(read_long(NR_HUGEPAGES, &before));
	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	lose(_metadata, s, 5);
	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_pool(_metadata, s, 1, 0);
	ASSERT_TRUE(read_long(NR_HUGEPAGES, &after));
	EXPECT_EQ(before - 1, after);
	expect_all_come_back(_metadata, s, 0);
}

TEST_F(accounted, a_surplus_hugepage_leaves_the_pool_as_it_was)
{
	struct subject *s = &self->s;
	struct pool pool;

	/* Leave no hugepage to be had, but allow for one more. */
	pool_set(s->size, "nr_hugepages",
		 s->before.nr - (s->before.free - s->before.resv));
	s->before = pool_read(s->size);
	ASSERT_EQ(s->before.resv, s->before.free);
	ASSERT_TRUE(pool_set(s->size, "nr_overcommit_hugepages",
			     s->before.surplus + 1));

	s->nr_huge = 1;
	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	pool = pool_read(s->size);
	EXPECT_EQ(s->before.nr + 1, pool.nr);
	EXPECT_EQ(s->before.free, pool.free);
	EXPECT_EQ(s->before.resv, pool.resv);
	EXPECT_EQ(s->before.surplus + 1, pool.surplus);

	lose_spots(_metadata, s);
	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_pool(_metadata, s, 0, 0);
	expect_all_come_back(_metadata, s, 0);
	expect_pool(_metadata, s, 0, 0);
}

/*
 * Several poisoned hugepages in one truncation
 */

FIXTURE(truncated)
{
	struct subject s;
};

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

FIXTURE_VARIANT_ADD(truncated, plain_madvise)
{
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(truncated, plain_corrupt_pfn)
{
	.injector = &by_pfn,
};

FIXTURE_SETUP(truncated)
{
	if (variant->flags && !kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, SZ_2M, variant->injector, NR_TRUNCATED);
	if (!_metadata->exit_code)
		open_subject(_metadata, &self->s, variant->flags);
}

FIXTURE_TEARDOWN_PARENT(truncated)
{
	teardown_subject(_metadata, &self->s);
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

	unmap_file(s);
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_corrupted(_metadata, s);

	if (variant->flags) {
		/* They leave the pool, the rest of it is free again. */
		expect_pool(_metadata, s, nr, 0);
		for (i = first; i < s->nr_huge; i += step)
			expect_all_come_back(_metadata, s, i);
		expect_pool(_metadata, s, nr, 0);
	} else {
		/* They stay in the pool, out of use as a whole. */
		expect_pool(_metadata, s, 0, nr);
		for (i = first; i < s->nr_huge; i += step)
			EXPECT_EQ(0, unpoison(s->head[i]));
		expect_pool(_metadata, s, 0, 0);
	}
	EXPECT_EQ(s->corrupted, hardware_corrupted());
}

TEST_F_TIMEOUT(truncated, the_first_hugepage_is_poisoned, SLOW)
{
	poison_and_truncate(_metadata, self, variant, 0, NR_TRUNCATED);
}

TEST_F_TIMEOUT(truncated, one_in_the_middle_is_poisoned, SLOW)
{
	poison_and_truncate(_metadata, self, variant, NR_TRUNCATED / 2, NR_TRUNCATED);
}

TEST_F_TIMEOUT(truncated, the_last_hugepage_is_poisoned, SLOW)
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
 * A udmabuf takes a hugepage that nobody has touched. There are no memory errors.
 */

FIXTURE(untouched)
{
	struct subject s;
	int dev;
};

FIXTURE_SETUP(untouched)
{
	setup_subject(_metadata, &self->s, SZ_2M, &by_pfn, 1);
	self->dev = open("/dev/udmabuf", O_RDWR);
	if (self->dev < 0)
		SKIP(return, "needs CONFIG_UDMABUF");
}

FIXTURE_TEARDOWN_PARENT(untouched)
{
	teardown_subject(_metadata, &self->s);
}

/* Make a udmabuf of the first page of a file, which goes with it. */
static int make_udmabuf(struct __test_metadata *_metadata, FIXTURE_DATA(untouched) * self)
{
	struct subject *s = &self->s;
	struct udmabuf_create create = { .size = psize() };
	int buf;

	create.memfd = create_memfd(s->size, MFD_ALLOW_SEALING);
	ASSERT_LE(0, (int)create.memfd);
	ASSERT_EQ(0, ftruncate(create.memfd, s->size));
	ASSERT_EQ(0, fcntl(create.memfd, F_ADD_SEALS, F_SEAL_SHRINK));
	buf = ioctl(self->dev, UDMABUF_CREATE, &create);
	close(create.memfd);
	return buf;
}

TEST_F(untouched, a_udmabuf_allocates_the_hugepage)
{
	int buf = make_udmabuf(_metadata, self);

	ASSERT_LE(0, buf);
	expect_pool(_metadata, &self->s, 0, 1);
	close(buf);
	expect_pool(_metadata, &self->s, 0, 0);
}

TEST_F(untouched, a_udmabuf_does_not_take_reserved_hugepages)
{
	struct subject *s = &self->s;
	struct pool pool = pool_read(s->size);
	size_t len = (pool.free - pool.resv) * s->size;
	char *map;

	s->fd = create_memfd(s->size, 0);
	ASSERT_LE(0, s->fd);
	map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	errno = 0;
	EXPECT_EQ(-1, make_udmabuf(_metadata, self));
	EXPECT_EQ(ENOMEM, errno);
	EXPECT_EQ(pool.free, pool_get(s->size, "resv_hugepages"));
	memset(map, 1, len);

	ASSERT_EQ(0, munmap(map, len));
	close(s->fd);
	expect_pool(_metadata, s, 0, 0);
}

int main(int argc, char **argv)
{
	open_ledger();
	return test_harness_run(argc, argv);
}
