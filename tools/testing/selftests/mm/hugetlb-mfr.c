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
 *   policy	the policy follows the file, not the descriptor
 *   machine_check, two_victims, thousand	what only machine checks show
 *   udmabuf	a hugepage that a device asks for first, also without the flag
 */

#define _GNU_SOURCE
#include "mfr_harness.h"
#include <linux/futex.h>
#include <linux/udmabuf.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/uio.h>

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

	for (i = 0; i < ARRAY_SIZE(others); i++)
		EXPECT_ERRNO(EINVAL, memfd_create("hugetlb-mfr",
						  MFD_MF_KEEP_UE_MAPPED | others[i]));
}

TEST(unknown_flags_are_refused)
{
	const unsigned int known = MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB |
				   MFD_NOEXEC_SEAL | MFD_EXEC | MFD_MF_KEEP_UE_MAPPED;
	unsigned int bit;

	for (bit = 0; bit < MFD_HUGE_SHIFT; bit++) {
		if (known & (1U << bit))
			continue;
		EXPECT_ERRNO(EINVAL, memfd_create("hugetlb-mfr", 1U << bit));
		EXPECT_ERRNO(EINVAL, memfd_create("hugetlb-mfr", MFD_HUGETLB | 1U << bit));
		EXPECT_ERRNO(EINVAL, memfd_create("hugetlb-mfr", MFD_HUGETLB |
						  MFD_MF_KEEP_UE_MAPPED | 1U << bit));
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

	ASSERT_LT(0, undo->nr_sizes);
	for (i = 0; i < undo->nr_sizes; i++) {
		unsigned long size = undo->saved[i].size;
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

FIXTURE_SUBJECT(kept);

FIXTURE_VARIANTS(kept, all_2m_and_1g)
FIXTURE_VARIANT_ADD_SIZES(kept)

FIXTURE_SETUP_KEPT(kept, variant->size, variant->injector, 1, MFD_ALLOW_SEALING);

TEST_F_TIMEOUT(kept, one_lost_page_is_signalled_exactly, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, s->nr_raw / 2);
	expect_intact(_metadata, s);
	expect_pool(_metadata, s, 0, 1);
}

TEST_F_TIMEOUT(kept, eight_lost_pages_are_signalled_one_by_one, SLOW)
{
	struct subject *s = &self->s;

	lose_samples(_metadata, s);
	expect_intact(_metadata, s);
	expect_pool(_metadata, s, 0, 1);
}

TEST_F_TIMEOUT(kept, many_lost_pages_are_signalled_one_by_one, SLOW)
{
	struct subject *s = &self->s;

	lose_many(_metadata, s);
	expect_intact(_metadata, s);
	expect_pool(_metadata, s, 0, 1);
}

TEST_F_TIMEOUT(kept, all_other_bytes_stay_writable, SLOW)
{
	struct subject *s = &self->s;
	unsigned long i, j, nr_wrong = 0;

	lose_samples(_metadata, s);

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

TEST_F_TIMEOUT(kept, repeat_is_signalled_but_not_counted, SLOW)
{
	struct subject *s = &self->s;
	unsigned int i;

	lose_samples(_metadata, s);
	for (i = 0; i < 2 * NR_SAMPLES; i++) {
		unsigned long nr = sample(s, i % NR_SAMPLES);

		EXPECT_EQ(s->injector->repeat_ret, inject(s, nr));
		if (s->injector->repeat_signals)
			expect_sigbus(_metadata, BUS_MCEERR_AR, raw_page(s, nr), pshift());
		else
			EXPECT_EQ(0, sigbus.nr);
		expect_corrupted(_metadata, s);
	}
	expect_intact(_metadata, s);

	/* The refused errors left no reference behind. */
	expect_end(_metadata, s);
}

TEST_F_TIMEOUT(kept, filtered_error_has_no_effect, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;

	expect_filtered(_metadata, s, nr);
	/* A filtered error isn't recorded: the next one is no repeat. */
	lose(_metadata, s, nr);

	/* Pages lost before stay known. */
	ASSERT_TRUE(filter_all_errors());
	EXPECT_EQ(s->injector->filtered, inject(s, neighbour(nr)));
	restore_filter();
	EXPECT_EQ(0, sigbus.nr);
	EXPECT_TRUE(is_poisoned(s->head[0]));
	EXPECT_TRUE(try_write(raw_page(s, neighbour(nr))));
	expect_corrupted(_metadata, s);

	expect_end(_metadata, s);
}

TEST_F_TIMEOUT(kept, filters_see_the_raw_page, SLOW)
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
	EXPECT_EQ(0, sigbus.nr);

	restore_filter();
	lose(_metadata, s, nr);
	expect_intact(_metadata, s);
	expect_end(_metadata, s);
}

TEST_F_TIMEOUT(kept, mapped_lost_page_counts_as_delayed, SLOW)
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

	lose_samples(_metadata, s);
	EXPECT_EQ(s->injector->repeat_ret, inject(s, sample(s, 3)));

	EXPECT_EQ(before[0] + NR_SAMPLES, mf_stat(names[0]));
	EXPECT_EQ(before[1] + NR_SAMPLES, mf_stat(names[1]));
	for (i = 2; i < ARRAY_SIZE(names); i++)
		EXPECT_EQ(before[i], mf_stat(names[i]));
}

TEST_F_TIMEOUT(kept, each_lost_page_causes_one_event, SLOW)
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
	empty_file(_metadata, s);
	wait_for_release(s, 1);
	EXPECT_EQ(1, nr_traced("recovery action"));
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, new_mapping_refuses_only_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned int i;

	lose_samples(_metadata, s);
	map_afresh(_metadata, s);

	for (i = 0; i < NR_SAMPLES; i++) {
		char *page = raw_page(s, sample(s, i));

		EXPECT_FALSE(try_read(page + 8));
		expect_fault_in(_metadata, page);
		EXPECT_FALSE(try_write(page + psize() - 1));
		expect_fault_in(_metadata, page);
		EXPECT_FALSE(is_mapped(s->map));
	}

	EXPECT_TRUE(try_read(raw_page(s, s->nr_raw / 4 + 1)));
	expect_intact(_metadata, s);
	/* A fault is no new error. */
	expect_corrupted(_metadata, s);
}

TEST_F_TIMEOUT(kept, hugepage_with_a_lost_page_is_faulted_in, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;

	/* A thread that consumes a page must map it; otherwise nobody does when it is lost. */
	if (s->injector->code == BUS_MCEERR_AR) {
		map_afresh(_metadata, s);
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
	expect_intact(_metadata, s);
}

TEST_F_TIMEOUT(kept, second_process_maps_all_but_the_lost_page, SLOW)
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
		map_afresh(_metadata, s);
		EXPECT_FALSE(try_read(raw_page(s, nr)));
		expect_fault_in(_metadata, raw_page(s, nr));
		EXPECT_FALSE(is_mapped(s->map));
		EXPECT_TRUE(try_read(raw_page(s, neighbour(nr))));
		expect_intact(_metadata, s);
		_exit(KSFT_PASS);
	}
	wait_for_child(_metadata, pid);
}

TEST_F_TIMEOUT(kept, early_kill_is_signalled_for_each_page, SLOW)
{
	struct subject *s = &self->s;
	struct witness w;
	unsigned int i;

	start_witness(_metadata, s, &w, PR_MCE_KILL_EARLY);
	for (i = 0; i < NR_SAMPLES; i++) {
		lose(_metadata, s, sample(s, i));
		expect_witnessed(_metadata, &w, sample(s, i));
	}
	stop_witness(&w);
}

TEST_F_TIMEOUT(kept, late_kill_is_not_signalled_for_others, SLOW)
{
	struct subject *s = &self->s;
	struct witness w;
	siginfo_t si;

	start_witness(_metadata, s, &w, PR_MCE_KILL_LATE);
	lose(_metadata, s, 0);
	lose(_metadata, s, s->nr_raw / 2);
	EXPECT_FALSE(witness_got(&w, &si, 500));
	/* The witness must still be waiting for signals. */
	kill_child(_metadata, w.helper.pid);
	close(w.helper.line);
}

TEST_F_TIMEOUT(kept, late_kill_is_signalled_for_its_accesses, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;

	ASSERT_EQ(0, prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0));
	note_lost(_metadata, s, nr);
	EXPECT_EQ(0, inject(s, nr));
	if (s->injector->code == BUS_MCEERR_AR)
		expect_sigbus(_metadata, BUS_MCEERR_AR, raw_page(s, nr), pshift());
	else
		EXPECT_EQ(0, sigbus.nr);
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

TEST_F_TIMEOUT(kept, early_kill_thread_gets_unconsumed_errors, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	struct listener l = {};
	pthread_t thread;

	ASSERT_EQ(0, prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_LATE, 0, 0));
	ASSERT_EQ(0, pthread_create(&thread, NULL, listen_for_sigbus, &l));
	ASSERT_TRUE(wait_until(l.listens, 1000));

	note_lost(_metadata, s, nr);
	EXPECT_EQ(0, inject(s, nr));
	pthread_join(thread, NULL);
	if (s->injector->code == BUS_MCEERR_AR) {
		expect_sigbus(_metadata, BUS_MCEERR_AR, raw_page(s, nr), pshift());
		EXPECT_EQ(-1, l.signal);
	} else {
		EXPECT_EQ(0, sigbus.nr);
		EXPECT_EQ(SIGBUS, l.signal);
		EXPECT_EQ(BUS_MCEERR_AO, l.si.si_code);
		EXPECT_EQ((uintptr_t)raw_page(s, nr), (uintptr_t)l.si.si_addr);
		EXPECT_EQ(pshift(), l.si.si_addr_lsb);
	}
}

TEST_F_TIMEOUT(kept, pread_stops_at_a_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long ps = psize();
	unsigned int i, k;
	char *buf;

	lose_samples(_metadata, s);
	buf = malloc(4 * ps);
	ASSERT_NE(NULL, buf);

	for (i = 0; i < NR_SAMPLES; i++) {
		unsigned long nr = sample(s, i);
		unsigned long first;

		EXPECT_ERRNO(EIO, pread(s->fd, buf, ps, nr * ps));
		/* One byte of it can't be read, either. */
		EXPECT_ERRNO(EIO, pread(s->fd, buf, 1, nr * ps + ps / 2));

		/* Healthy bytes in front of it, but at most four pages. */
		for (first = nr; first && nr - first < 3 && !s->lost[first - 1]; first--)
			;
		if (first < nr) {
			EXPECT_EQ((nr - first) * ps, pread(s->fd, buf, 4 * ps, first * ps));
			for (k = 0; k < nr - first; k++)
				EXPECT_TRUE(page_is_intact(buf + k * ps, first + k));
			EXPECT_EQ(100, pread(s->fd, buf, 4 * ps, nr * ps - 100));
		}

		/* The healthy page behind it can be read. */
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

	EXPECT_ERRNO(EIO, punch(s, (nr - 2) * ps, 4 * ps));
	EXPECT_TRUE(page_is_zero(raw_page(s, nr - 2)));
	EXPECT_TRUE(page_is_zero(raw_page(s, nr - 1)));
	EXPECT_TRUE(page_is_zero(raw_page(s, nr + 1)));
	/* The error is a simulated one: the page still shows its bytes. */
	EXPECT_TRUE(page_is_intact(raw_page(s, nr), nr));

	/* Bytes instead of pages. */
	EXPECT_ERRNO(EIO, punch(s, nr * ps + ps / 2, 2 * ps));
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

TEST_F_TIMEOUT(kept, private_mapping_can_read_but_not_write, SLOW)
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
	EXPECT_EQ(1, sigbus.nr);
	EXPECT_EQ(BUS_ADRERR, sigbus.code);

	/* Nothing was lost by trying. */
	EXPECT_TRUE(try_read(private));
	EXPECT_EQ(0, nr_changed_pages(s));
	expect_corrupted(_metadata, s);

	munmap(private, s->size);
	expect_end(_metadata, s);
}

TEST_F_TIMEOUT(kept, process_vm_access_stops_at_the_lost_page, SLOW)
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
	EXPECT_ERRNO(EFAULT, process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_ERRNO(EFAULT, process_vm_writev(getpid(), &local, 1, &remote, 1, 0));

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
	EXPECT_ERRNO(EIO, pread(fd, buf, ps, (off_t)(uintptr_t)raw_page(s, nr)));
	EXPECT_ERRNO(EIO, pwrite(fd, buf, 1, (off_t)(uintptr_t)raw_page(s, nr) + 1));
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
	EXPECT_ERRNO(EFAULT, vmsplice(pipefd[1], &iov, 1, SPLICE_F_NONBLOCK));
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
	int fd = open_direct(_metadata);

	if (fd < 0)
		return;
	/* Holes are filled with the help of the page cache. */
	ASSERT_EQ(4 * ps, pwrite(fd, raw_page(s, 0), 4 * ps, 0));
	lose(_metadata, s, nr);

	/* A write could fall back to the page cache, a read doesn't. */
	EXPECT_ERRNO(EFAULT, pread(fd, raw_page(s, nr), ps, 0));
	EXPECT_EQ(2 * ps, pwrite(fd, raw_page(s, nr + 1), 2 * ps, 0));
	memset(raw_page(s, nr + 1), 0, 2 * ps);
	EXPECT_EQ(2 * ps, pread(fd, raw_page(s, nr + 1), 2 * ps, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	close(fd);
}

TEST_F_TIMEOUT(kept, populating_skips_lost_pages, SLOW)
{
	struct subject *s = &self->s;
	int advice;

	/* The first page is lost, too. */
	lose(_metadata, s, 0);
	lose(_metadata, s, 1);
	lose(_metadata, s, s->nr_raw / 2);
	for (advice = MADV_POPULATE_READ; advice <= MADV_POPULATE_WRITE; advice++) {
		map_afresh(_metadata, s);
		EXPECT_EQ(0, madvise(s->map, s->size, advice));
		EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
		EXPECT_EQ(0, madvise(s->map, s->size, advice));
	}
	/* Only lost pages are left to populate. */
	lose(_metadata, s, s->nr_raw - 1);
	map_afresh(_metadata, s);
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
	EXPECT_ERRNO(EIO, ptrace(PTRACE_POKEDATA, pid, after - 1, 0));
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

TEST_F_TIMEOUT(kept, shared_futex_fails_only_in_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	char *word;

	lose(_metadata, s, nr);
	EXPECT_ERRNO(EFAULT, futex(raw_page(s, nr), FUTEX_WAIT, 0));
	EXPECT_ERRNO(EFAULT, futex(raw_page(s, nr), FUTEX_WAKE, 1));

	word = raw_page(s, neighbour(nr));
	EXPECT_EQ(0, futex(word, FUTEX_WAKE, 1));
	EXPECT_ERRNO(EAGAIN, futex(word, FUTEX_WAIT, *(uint32_t *)word + 1));
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

	EXPECT_ERRNO(EFAULT, register_buffer(&r, raw_page(s, nr), ps));
	EXPECT_ERRNO(EFAULT, register_buffer(&r, raw_page(s, nr - 2), 4 * ps));
	EXPECT_EQ(0, register_buffer(&r, raw_page(s, 0), nr * ps));
	destroy_ring(&r);

	/* A request that failed holds nothing. */
	expect_end(_metadata, s);
}

TEST_F_TIMEOUT(kept, registered_buffer_leaves_out_the_lost_page, SLOW)
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

#define NR_BATCH	3

/*
 * Submit writes of raw page @nr and both neighbors at once, as a link or one by one. If
 * @nr is lost only its own write fails, and a link ends there.
 */
static void expect_batch(struct __test_metadata *_metadata, struct subject *s,
			 struct ring *r, unsigned long nr, bool link)
{
	const int want[NR_BATCH] = {
		psize(), -EFAULT, link ? -ECANCELED : (int)psize(),
	};
	unsigned int *sq_tail = r->mem + r->params.sq_off.tail;
	unsigned int *sq_mask = r->mem + r->params.sq_off.ring_mask;
	unsigned int *cq_head = r->mem + r->params.cq_off.head;
	unsigned int *cq_tail = r->mem + r->params.cq_off.tail;
	unsigned int *cq_mask = r->mem + r->params.cq_off.ring_mask;
	struct io_uring_cqe *cqe, *cqes = r->mem + r->params.cq_off.cqes;
	int res[NR_BATCH] = {}, fd, i, nr_done = 0;
	char *buf = malloc(psize());

	ASSERT_NE(NULL, buf);
	fd = memfd_create("hugetlb-mfr", 0);
	ASSERT_LE(0, fd);
	for (i = 0; i < NR_BATCH; i++)
		r->sqe[(*sq_tail + i) & *sq_mask] = (struct io_uring_sqe) {
			.opcode = IORING_OP_WRITE_FIXED,
			.flags = link && i < NR_BATCH - 1 ? IOSQE_IO_LINK : 0,
			.fd = fd,
			.off = i * psize(),
			.addr = (uintptr_t)raw_page(s, nr - 1 + i),
			.len = psize(),
			.user_data = i,
		};
	__atomic_store_n(sq_tail, *sq_tail + NR_BATCH, __ATOMIC_RELEASE);
	/* Those that are not submitted would never be done. */
	ASSERT_EQ(NR_BATCH, syscall(SYS_io_uring_enter, r->fd, NR_BATCH, 0, 0, NULL, 0));
	ASSERT_EQ(0, syscall(SYS_io_uring_enter, r->fd, 0, NR_BATCH,
			     IORING_ENTER_GETEVENTS, NULL, 0));
	while (*cq_head != __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE)) {
		cqe = &cqes[*cq_head & *cq_mask];
		ASSERT_GT(NR_BATCH, cqe->user_data);
		res[cqe->user_data] = cqe->res;
		nr_done++;
		__atomic_store_n(cq_head, *cq_head + 1, __ATOMIC_RELEASE);
	}

	EXPECT_EQ(NR_BATCH, nr_done);
	for (i = 0; i < NR_BATCH; i++) {
		EXPECT_EQ(want[i], res[i]);
		if (want[i] < 0)
			continue;
		EXPECT_EQ(psize(), pread(fd, buf, psize(), i * psize()));
		EXPECT_TRUE(page_is_intact(buf, nr - 1 + i));
	}
	close(fd);
	free(buf);
}

static void expect_batches(struct __test_metadata *_metadata, struct subject *s,
			   bool link)
{
	unsigned long nr = s->nr_raw / 2;
	struct ring rings[2];
	int i;

	if (!make_ring_of(&rings[0], NR_BATCH, 0) ||
	    !make_ring_of(&rings[1], NR_BATCH, IORING_SETUP_SUBMIT_ALL))
		SKIP(return, "needs io_uring");
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, register_buffer(&rings[i], s->map, s->size));
	lose(_metadata, s, nr);
	for (i = 0; i < 2; i++) {
		expect_batch(_metadata, s, &rings[i], nr, link);
		destroy_ring(&rings[i]);
	}
}

TEST_F_TIMEOUT(kept, a_lost_page_fails_only_its_request_in_a_batch, SLOW)
{
	expect_batches(_metadata, &self->s, false);
}

TEST_F_TIMEOUT(kept, a_lost_page_fails_its_request_and_the_link, SLOW)
{
	expect_batches(_metadata, &self->s, true);
}

TEST_F_TIMEOUT(kept, cloned_buffer_leaves_out_the_lost_page, SLOW)
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

TEST_F_TIMEOUT(kept, buffer_pieces_leave_out_the_lost_page, SLOW)
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
static void use_lost_ring(struct __test_metadata *_metadata, struct subject *s,
			  unsigned long first, unsigned int nr_pages,
			  void (*lose)(struct __test_metadata *, struct subject *,
				       unsigned long))
{
	unsigned long nr = s->nr_raw / 2;
	int ring = make_ring_in(raw_page(s, nr), 4);
	unsigned int i;

	if (ring < 0)
		SKIP(return, "needs io_uring");
	expect_request_done(_metadata, ring, 1);
	for (i = 0; i < nr_pages; i++) {
		lose(_metadata, s, nr + first + i);
		expect_request_done(_metadata, ring, i + 2);
	}
	close(ring);
}

TEST_F_TIMEOUT(kept, ring_in_lost_pages_goes_on, SLOW)
{
	struct subject *s = &self->s;

	use_lost_ring(_metadata, s, 0, 2, lose);
	if (_metadata->exit_code)
		return;
	expect_intact(_metadata, s);
	expect_end(_metadata, s);
}

/* As on stock, a pipe doesn't check whether its pages are lost. */
TEST_F_TIMEOUT(kept, lost_page_can_be_read_from_a_pipe, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	int pipefd[2];

	put_in_pipe(_metadata, pipefd, raw_page(s, nr));
	lose(_metadata, s, nr);
	take_from_pipe(_metadata, pipefd, nr);
	expect_end(_metadata, s);
}

TEST_F_TIMEOUT(kept, udmabuf_leaves_out_the_lost_page, SLOW)
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
	EXPECT_ERRNO(EHWPOISON, ioctl(fd, UDMABUF_CREATE, &create));
	create.size = 2 * psize();
	buf = ioctl(fd, UDMABUF_CREATE, &create);
	EXPECT_LE(0, buf);
	close(buf);
	create.offset = (nr + 1) * psize();
	buf = ioctl(fd, UDMABUF_CREATE, &create);
	EXPECT_LE(0, buf);
	close(buf);
	close(fd);

	/* A request that failed holds nothing. */
	unmap_file(s);
	close(s->fd);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(kept, hmm_mirror_does_not_get_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2, ps = psize(), i;
	unsigned char prot[4];
	char *buf = malloc(2 * ps);
	int fd = open_mirror();

	ASSERT_NE(NULL, buf);
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

TEST_F_TIMEOUT(kept, hmm_mirror_loses_the_lost_page, SLOW)
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
	/* Consume the page through each of its mappings. */
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
	/* Early kill signals each mapping, if the previous signal was handled. */
	note_lost(_metadata, s, nr);
	ASSERT_EQ(0, inject(s, nr));
	EXPECT_LE(1, sigbus.nr);
	expect_corrupted(_metadata, s);

	for (i = 0; i < 3; i++) {
		EXPECT_EQ(-EFAULT, mirror(fd, HMM_DMIRROR_READ, map[i] + 2 * ps, buf, 1,
					  NULL));
		/* The mirror can access all other pages. */
		EXPECT_EQ(0, mirror(fd, HMM_DMIRROR_READ, map[i], buf, 2, NULL));
		EXPECT_TRUE(page_is_intact(buf, nr - 2));
		EXPECT_TRUE(page_is_intact(buf + ps, nr - 1));
		EXPECT_EQ(0, mirror(fd, HMM_DMIRROR_READ, map[i] + 3 * ps, buf, 1, NULL));
		EXPECT_TRUE(page_is_intact(buf, nr + 1));
	}
	EXPECT_EQ(-EFAULT, mirror(fd, HMM_DMIRROR_WRITE, raw_page(s, nr), buf, 1, NULL));
	expect_intact(_metadata, s);
	close(fd);
	free(buf);
}

TEST_F_TIMEOUT(kept, hmm_mirror_of_another_process_loses_it, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw - 1;
	char *buf = malloc(psize());
	struct helper h;
	int fd = open_mirror();

	ASSERT_NE(NULL, buf);
	if (fd < 0)
		SKIP(return, "needs CONFIG_TEST_HMM");
	close(fd);
	ASSERT_TRUE(start_helper(&h));
	if (!h.pid) {
		char *page = raw_page(s, nr);

		fd = open_mirror();
		if (mirror(fd, HMM_DMIRROR_READ, page, buf, 1, NULL) ||
		    !tell(&h) || !wait_for_word(&h))
			_exit(KSFT_FAIL);
		_exit(mirror(fd, HMM_DMIRROR_READ, page, buf, 1, NULL) != -EFAULT);
	}
	ASSERT_TRUE(wait_for_word(&h));
	lose(_metadata, s, nr);
	ASSERT_TRUE(tell(&h));
	wait_for_child(_metadata, h.pid);
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
TEST_F_TIMEOUT(kept, hmm_mirror_under_load_loses_each_lost_page, SLOW)
{
	struct subject *s = &self->s;
	/* Machine checks take their time. */
	unsigned long nr_errors = s->injector->is_hw ? 10 : 100;
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
		ASSERT_TRUE(wait_until(__atomic_load_n(&r.nr_read, __ATOMIC_RELAXED) != before,
				       100));
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

TEST_F_TIMEOUT(kept, core_dump_has_all_but_the_lost_page, SLOW)
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

/* Punching and memory_failure() both take the folio lock and i_mmap_rwsem. */
TEST_F_TIMEOUT(kept, punching_parts_does_not_deadlock, SLOW)
{
	struct subject *s = &self->s;
	/* Machine checks take their time. */
	unsigned long nr_errors = s->injector->is_hw ? 10 : 500;
	unsigned long *punched = alloc_shared(psize());
	unsigned long i, before;
	pid_t pid;

	ASSERT_NE(NULL, punched);
	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		while (!punch(s, 0, psize()))
			__atomic_add_fetch(punched, 1, __ATOMIC_RELAXED);
		_exit(1);
	}
	EXPECT_TRUE(wait_until(__atomic_load_n(punched, __ATOMIC_RELAXED), 1000));
	before = __atomic_load_n(punched, __ATOMIC_RELAXED);
	for (i = 1; i <= nr_errors && i < s->nr_raw; i++)
		lose(_metadata, s, i);
	/* The puncher goes on during the errors, and afterwards. */
	EXPECT_LT(before, __atomic_load_n(punched, __ATOMIC_RELAXED));
	before = __atomic_load_n(punched, __ATOMIC_RELAXED);
	EXPECT_TRUE(wait_until(__atomic_load_n(punched, __ATOMIC_RELAXED) != before, 1000));
	kill_child(_metadata, pid);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
}

TEST_F_TIMEOUT(kept, unpoison_is_refused_while_in_the_file, SLOW)
{
	struct subject *s = &self->s;
	char byte;

	lose_samples(_metadata, s);

	expect_not_unpoisoned(_metadata, raw_pfn(s, s->nr_raw / 2));
	expect_not_unpoisoned(_metadata, s->head[0]);
	unmap_file(s);
	expect_not_unpoisoned(_metadata, raw_pfn(s, s->nr_raw / 2));
	expect_not_unpoisoned(_metadata, s->head[0]);

	expect_corrupted(_metadata, s);
	EXPECT_ERRNO(EIO, pread(s->fd, &byte, 1, 0));
	EXPECT_ERRNO(EIO, pread(s->fd, &byte, 1, s->nr_raw / 2 * psize()));
	expect_pool(_metadata, s, 0, 1);

	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_released(_metadata, s);
}

/*
 * Machine checks: their kinds, and what other injectors can't do
 */

FIXTURE_SUBJECT(machine_check);

FIXTURE_VARIANT(machine_check)
{
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(machine_check, load) { .injector = &by_mce };
FIXTURE_VARIANT_ADD(machine_check, fetch) { .injector = &by_fetch };
FIXTURE_VARIANT_ADD(machine_check, broadcast) { .injector = &by_broadcast };

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
	setup_kept(_metadata, &self->s, SZ_2M, variant->injector, 1, 0);
	if (!_metadata->exit_code)
		ASSERT_TRUE(map_again(&self->s));
}

TEST_F_TIMEOUT(machine_check, lost_pages_are_signalled_exactly, SLOW)
{
	struct subject *s = &self->s;

	lose_samples(_metadata, s);
	expect_intact(_metadata, s);
	expect_pool(_metadata, s, 0, 1);
}

TEST_F_TIMEOUT(machine_check, release_frees_all_but_lost_pages, SLOW)
{
	struct subject *s = &self->s;

	lose_samples(_metadata, s);
	expect_end(_metadata, s);
}

TEST_F_TIMEOUT(machine_check, is_signalled_in_each_mapping, SLOW)
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

		/* The same in a mapping of the file opened again. */
		snprintf(path, sizeof(path), "/proc/self/fd/%d", s->fd);
		fd = open(path, O_RDWR);
		ASSERT_LE(0, fd);
		close(s->fd);
		s->fd = fd;
		ASSERT_TRUE(map_again(s));
	}
	EXPECT_EQ(0, nr_changed_pages(s));
}

TEST_F_TIMEOUT(machine_check, signals_each_process_consuming_it, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2 + 1;
	pid_t pid;

	lose(_metadata, s, nr);
	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		struct subject mine = *s;	/* the fixture is shared */

		if (!map_again(&mine) || inject(&mine, nr) || sigbus.code != BUS_MCEERR_AR ||
		    sigbus.addr != (uintptr_t)raw_page(&mine, nr) ||
		    sigbus.lsb != pshift())
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
	expect_intact(_metadata, s);
}

TEST_F_TIMEOUT(machine_check, kills_a_thread_that_blocks_SIGBUS, SLOW)
{
	expect_killed(_metadata, &self->s, true);
}

TEST_F_TIMEOUT(machine_check, kills_a_thread_that_ignores_SIGBUS, SLOW)
{
	expect_killed(_metadata, &self->s, false);
}

/*
 * Two CPUs at once
 */

FIXTURE_SUBJECT(two_victims);

FIXTURE_VARIANT(two_victims)
{
	unsigned long size;
};

FIXTURE_VARIANT_ADD(two_victims, mce_2m) { .size = SZ_2M };
FIXTURE_VARIANT_ADD(two_victims, mce_1g) { .size = SZ_1G };

FIXTURE_SETUP(two_victims)
{
	int cpu[2];

	if (mce_cpus(cpu) && cpu[0] == cpu[1])
		SKIP(return, "needs two CPUs without ticks");
	setup_kept(_metadata, &self->s, variant->size, &by_mce, 1, 0);
}

/* Two threads consume two pages, or one, and each gets its own signal. */
static void lose_at_once(struct __test_metadata *_metadata, struct subject *s,
			 unsigned long nr0, unsigned long nr1)
{
	unsigned long nr[2] = { nr0, nr1 };
	struct mce_victim victim[2] = {};
	struct victim_thread by[2] = {};
	pthread_t thread[2];
	int cpu[2];
	int i;

	ASSERT_TRUE(mce_cpus(cpu));
	undo->mce_seen = true;
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
	mce_shoot(undo->monitor, MCE_LOAD, victim, 2);
	for (i = 0; i < 2; i++) {
		pthread_join(thread[i], NULL);
		EXPECT_EQ(0, victim[i].error);
		expect_signal(_metadata, &by[i].sigbus, BUS_MCEERR_AR, raw_page(s, nr[i]),
			      pshift());
	}
	injecting = false;
	expect_corrupted(_metadata, s);
}

TEST_F_TIMEOUT(two_victims, of_two_pages_get_their_own_signals, SLOW)
{
	struct subject *s = &self->s;

	lose_at_once(_metadata, s, 0, s->nr_raw - 1);
	lose_at_once(_metadata, s, s->nr_raw / 2, s->nr_raw / 2 + 1);
	expect_intact(_metadata, s);
	expect_end(_metadata, s);
}

TEST_F_TIMEOUT(two_victims, of_one_page_both_get_a_signal, SLOW)
{
	struct subject *s = &self->s;

	lose_at_once(_metadata, s, s->nr_raw / 2, s->nr_raw / 2);
	EXPECT_EQ(1, s->nr_lost);
	expect_intact(_metadata, s);
	expect_end(_metadata, s);
}

FIXTURE_SUBJECT(thousand);

FIXTURE_SETUP_KEPT(thousand, SZ_1G, &by_mce, 1, 0);

#define NR_LOST_OF_MANY		1000

TEST_F_TIMEOUT(thousand, machine_checks_are_signalled_one_by_one, 2 * SLOW)
{
	struct subject *s = &self->s;
	unsigned long i;

	for (i = 0; i < NR_LOST_OF_MANY; i++)
		lose(_metadata, s, i * (s->nr_raw / NR_LOST_OF_MANY));
	expect_corrupted(_metadata, s);
	expect_intact(_metadata, s);

	expect_end(_metadata, s);
}

/*
 * The same without the flag: nothing changes
 */

FIXTURE_SUBJECT(plain);

FIXTURE_VARIANTS(plain, all_2m_and_1g)
FIXTURE_VARIANT_ADD_SIZES(plain)

FIXTURE_SETUP_PLAIN(plain);

TEST_F_TIMEOUT(plain, first_lost_page_unmaps_the_whole_hugepage, SLOW)
{
	struct subject *s = &self->s;

	lose_hugepage(_metadata, s, s->nr_raw / 2);
	EXPECT_FALSE(is_mapped(s->map));
	EXPECT_FALSE(is_mapped(raw_page(s, s->nr_raw - 1)));
	expect_pool(_metadata, s, 0, 1);
}

TEST_F_TIMEOUT(plain, no_byte_is_accessible_afterwards, SLOW)
{
	struct subject *s = &self->s;
	unsigned int i;

	lose_hugepage(_metadata, s, s->nr_raw / 2);
	for (i = 0; i < NR_SAMPLES; i++) {
		char *ptr = raw_page(s, sample(s, i)) + 8;

		EXPECT_FALSE(try_read(ptr));
		expect_sigbus(_metadata, BUS_MCEERR_AR, ptr, __builtin_ctzl(s->size));
		EXPECT_FALSE(try_write(ptr));
		expect_sigbus(_metadata, BUS_MCEERR_AR, ptr, __builtin_ctzl(s->size));
	}
	expect_corrupted(_metadata, s);
}

TEST_F_TIMEOUT(plain, new_mapping_cannot_access_anything, SLOW)
{
	struct subject *s = &self->s;

	lose_hugepage(_metadata, s, 0);
	map_afresh(_metadata, s);
	EXPECT_FALSE(try_read(raw_page(s, 1)));
	expect_sigbus(_metadata, BUS_MCEERR_AR, raw_page(s, 1), __builtin_ctzl(s->size));
	EXPECT_FALSE(is_mapped(s->map));
}

TEST_F_TIMEOUT(plain, pread_stops_at_a_lost_page, SLOW)
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
	EXPECT_ERRNO(EIO, pread(s->fd, buf, ps, nr * ps));
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

	/* Stock oopses here: the series with the flag fixes it. */
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");

	buf = malloc(ps);
	ASSERT_NE(NULL, buf);
	lose_hugepage(_metadata, s, nr);
	EXPECT_ERRNO(EIO, punch(s, (nr - 1) * ps, 3 * ps));
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

TEST_F_TIMEOUT(plain, registered_buffer_leaves_out_the_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	struct ring r;

	/* Stock has this bug: the series with the flag fixes it. */
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	if (!make_ring(&r))
		SKIP(return, "needs io_uring");
	ASSERT_EQ(0, register_buffer(&r, s->map, s->size));
	lose_held(_metadata, s, nr);
	expect_fixed_io(_metadata, s, &r, nr);
	destroy_ring(&r);
}

TEST_F_TIMEOUT(plain, ring_with_lost_queues_goes_on, SLOW)
{
	use_lost_ring(_metadata, &self->s, 0, 1, lose_held);
}

TEST_F_TIMEOUT(plain, ring_with_lost_requests_goes_on, SLOW)
{
	use_lost_ring(_metadata, &self->s, 1, 1, lose_held);
}

TEST_F_TIMEOUT(plain, lost_page_can_be_read_from_a_pipe, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	int pipefd[2];

	put_in_pipe(_metadata, pipefd, raw_page(s, nr));
	lose_held(_metadata, s, nr);
	take_from_pipe(_metadata, pipefd, nr);
}

TEST_F_TIMEOUT(plain, hmm_mirror_loses_the_whole_hugepage, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2, i;
	char *buf = malloc(2 * psize());
	int fd = open_mirror();

	ASSERT_NE(NULL, buf);
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

TEST_F_TIMEOUT(plain, filtered_error_has_no_effect, SLOW)
{
	struct subject *s = &self->s;

	/* Stock has this bug: the series with the flag fixes it. */
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");

	expect_filtered(_metadata, s, s->nr_raw / 2);
	empty_file(_metadata, s);
	expect_pool(_metadata, s, 0, 0);
}

/*
 * The policy belongs to the file
 */

FIXTURE_SUBJECT(policy);

FIXTURE_SETUP_KEPT(policy, SZ_2M, &by_madvise, 1, 0);

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
	expect_intact(_metadata, s);
}

TEST_F(policy, survives_dup)
{
	expect_kept_through(_metadata, &self->s, dup(self->s.fd));
}

TEST_F(policy, survives_reopening_through_proc)
{
	char path[64];

	snprintf(path, sizeof(path), "/proc/self/fd/%d", self->s.fd);
	expect_kept_through(_metadata, &self->s, open(path, O_RDWR));
}

TEST_F(policy, survives_passing_over_a_socket)
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

TEST_F(policy, survives_fork)
{
	struct subject *s = &self->s;
	pid_t pid;

	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		/* Use the inherited mapping. */
		lose(_metadata, s, 3);
		expect_intact(_metadata, s);
		_exit(KSFT_PASS);
	}
	wait_for_child(_metadata, pid);
	expect_intact(_metadata, s);
}

/*
 * A udmabuf takes a hugepage that nobody has touched. There are no memory errors.
 */

FIXTURE(udmabuf)
{
	struct subject s;
	int dev;
};

FIXTURE_SETUP(udmabuf)
{
	setup_subject(_metadata, &self->s, SZ_2M, &by_pfn, 1);
	self->dev = open("/dev/udmabuf", O_RDWR);
	if (self->dev < 0)
		SKIP(return, "needs CONFIG_UDMABUF");
}

FIXTURE_TEARDOWN_SUBJECT(udmabuf);

/* Make a udmabuf of the first page of a file, which goes with it. */
static int make_udmabuf(struct __test_metadata *_metadata, FIXTURE_DATA(udmabuf) * self)
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

TEST_F(udmabuf, allocates_the_hugepage)
{
	int buf = make_udmabuf(_metadata, self);

	ASSERT_LE(0, buf);
	expect_pool(_metadata, &self->s, 0, 1);
	close(buf);
	expect_pool(_metadata, &self->s, 0, 0);
}

TEST_F(udmabuf, leaves_reserved_hugepages_alone)
{
	struct subject *s = &self->s;
	struct pool pool = pool_read(s->size);
	size_t len = (pool.free - pool.resv) * s->size;
	char *map;

	s->fd = create_memfd(s->size, 0);
	ASSERT_LE(0, s->fd);
	map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	EXPECT_ERRNO(ENOMEM, make_udmabuf(_metadata, self));
	EXPECT_EQ(pool.free, pool_get(s->size, "resv_hugepages"));
	memset(map, 1, len);

	ASSERT_EQ(0, munmap(map, len));
	close(s->fd);
	expect_pool(_metadata, s, 0, 0);
}

TEST_HARNESS_MAIN
