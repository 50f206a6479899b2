// SPDX-License-Identifier: GPL-2.0
/*
 * fallocate(FALLOC_FL_ZERO_RANGE) on hugetlbfs: what is there becomes zero, and holes
 * are filled. Needs no memory errors.
 */
#include "../kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/memfd.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>
#include "vm_util.h"

#define NR_HUGE		4
#define SZ_2M		(2UL << 20)

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE	0x0010
#endif

static const char pool_2m[] = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
static const char free_2m[] = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
static const char resv_2m[] = "/sys/kernel/mm/hugepages/hugepages-2048kB/resv_hugepages";

static long read_long(const char *path)
{
	FILE *f = fopen(path, "r");
	long val;

	if (!f || fscanf(f, "%ld", &val) != 1)
		val = -1;
	if (f)
		fclose(f);
	return val;
}

static bool write_long(const char *path, long val)
{
	FILE *f = fopen(path, "w");

	if (!f)
		return false;
	fprintf(f, "%ld", val);
	return !fclose(f);
}

FIXTURE(zero_range)
{
	long nr;
	long nr_free;
	int fd;
	unsigned char *map;
	size_t size;
};

FIXTURE_SETUP(zero_range)
{
	size_t i;

	self->nr = read_long(pool_2m);
	if (self->nr < 0)
		SKIP(return, "needs hugepages of 2 MiB");
	if (!write_long(pool_2m, self->nr + NR_HUGE) ||
	    read_long(pool_2m) != self->nr + NR_HUGE)
		SKIP(return, "can't get %d hugepages", NR_HUGE);

	self->size = NR_HUGE * SZ_2M;
	self->fd = memfd_create("zero-range", MFD_HUGETLB | MFD_HUGE_2MB |
				MFD_ALLOW_SEALING);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, ftruncate(self->fd, self->size));
	self->map = mmap(NULL, self->size, PROT_READ | PROT_WRITE, MAP_SHARED,
			 self->fd, 0);
	ASSERT_NE(MAP_FAILED, self->map);
	for (i = 0; i < self->size; i++)
		self->map[i] = 'x';
	self->nr_free = read_long(free_2m);
}

FIXTURE_TEARDOWN_PARENT(zero_range)
{
	write_long(pool_2m, self->nr);
	EXPECT_EQ(self->nr, read_long(pool_2m));
}

static int zero_range(int fd, int flags, off_t start, off_t len)
{
	return fallocate(fd, FALLOC_FL_ZERO_RANGE | flags, start, len) ? -errno : 0;
}

/* The first byte from @start that is not @c. */
static size_t differs(const unsigned char *map, size_t start, size_t end, int c)
{
	while (start < end && map[start] == c)
		start++;
	return start;
}

/* Zero [start, end), and see that nothing else changes. */
static void zero(struct __test_metadata *_metadata, int fd, unsigned char *map,
		 size_t size, size_t start, size_t end)
{
	ASSERT_EQ(0, zero_range(fd, FALLOC_FL_KEEP_SIZE, start, end - start));
	EXPECT_EQ(start, differs(map, 0, start, 'x'));
	EXPECT_EQ(end, differs(map, start, end, 0));
	EXPECT_EQ(size, differs(map, end, size, 'x'));
}

TEST_F(zero_range, bytes_of_one_page_read_zero)
{
	zero(_metadata, self->fd, self->map, self->size, 5, 7);
}

TEST_F(zero_range, zeroes_its_range_across_hugepages)
{
	zero(_metadata, self->fd, self->map, self->size, SZ_2M - 3, 3 * SZ_2M + 5);
	EXPECT_EQ(self->nr_free, read_long(free_2m));
}

TEST_F(zero_range, a_whole_hugepage_stays_where_it_is)
{
	int pagemap = open("/proc/self/pagemap", O_RDONLY);
	unsigned long pfn = pagemap_get_pfn(pagemap, (char *)self->map + SZ_2M);

	zero(_metadata, self->fd, self->map, self->size, SZ_2M, 2 * SZ_2M);
	EXPECT_EQ(pfn, pagemap_get_pfn(pagemap, (char *)self->map + SZ_2M));
	EXPECT_EQ(self->nr_free, read_long(free_2m));
	close(pagemap);
}

TEST_F(zero_range, fills_holes)
{
	struct stat st;

	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       SZ_2M, SZ_2M));
	EXPECT_EQ(self->nr_free + 1, read_long(free_2m));
	zero(_metadata, self->fd, self->map, self->size, SZ_2M - 1, 2 * SZ_2M + 1);
	EXPECT_EQ(self->nr_free, read_long(free_2m));
	EXPECT_EQ(0, read_long(resv_2m));
	ASSERT_EQ(0, fstat(self->fd, &st));
	EXPECT_EQ(self->size / 512, st.st_blocks);
}

TEST_F(zero_range, fails_if_a_hole_cannot_be_filled)
{
	ASSERT_EQ(0, munmap(self->map, self->size));
	ASSERT_EQ(0, fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			       SZ_2M, SZ_2M));
	ASSERT_TRUE(write_long(pool_2m, 0));
	EXPECT_EQ(0, read_long(free_2m));
	EXPECT_EQ(-ENOSPC, zero_range(self->fd, 0, SZ_2M, SZ_2M));
	self->map = mmap(NULL, self->size, PROT_READ, MAP_SHARED | MAP_NORESERVE,
			 self->fd, 0);
	ASSERT_NE(MAP_FAILED, self->map);
	EXPECT_EQ(SZ_2M, differs(self->map, 0, SZ_2M, 'x'));
	EXPECT_EQ(self->size, differs(self->map, 2 * SZ_2M, self->size, 'x'));
}

TEST_F(zero_range, makes_the_file_larger)
{
	struct stat st;

	ASSERT_EQ(0, ftruncate(self->fd, 2 * SZ_2M));
	EXPECT_EQ(0, zero_range(self->fd, 0, SZ_2M + 1, 2 * SZ_2M - 1));
	ASSERT_EQ(0, fstat(self->fd, &st));
	EXPECT_EQ(3 * SZ_2M, st.st_size);
	EXPECT_EQ(SZ_2M + 1, differs(self->map, 0, SZ_2M + 1, 'x'));
	EXPECT_EQ(3 * SZ_2M, differs(self->map, SZ_2M + 1, 3 * SZ_2M, 0));
	EXPECT_EQ(self->nr_free + 1, read_long(free_2m));
}

TEST_F(zero_range, keeps_the_size_if_told_to)
{
	struct stat st;

	ASSERT_EQ(0, ftruncate(self->fd, 2 * SZ_2M));
	EXPECT_EQ(0, zero_range(self->fd, FALLOC_FL_KEEP_SIZE, SZ_2M, 2 * SZ_2M));
	ASSERT_EQ(0, fstat(self->fd, &st));
	EXPECT_EQ(2 * SZ_2M, st.st_size);
	/* The part behind the end is allocated, for when the file grows. */
	EXPECT_EQ(self->nr_free + 1, read_long(free_2m));
	ASSERT_EQ(0, ftruncate(self->fd, 3 * SZ_2M));
	EXPECT_EQ(SZ_2M, differs(self->map, 0, SZ_2M, 'x'));
	EXPECT_EQ(3 * SZ_2M, differs(self->map, SZ_2M, 3 * SZ_2M, 0));
}

TEST_F(zero_range, respects_write_seals)
{
	ASSERT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
	EXPECT_EQ(-EPERM, zero_range(self->fd, 0, 0, SZ_2M));
	ASSERT_EQ(0, munmap(self->map, self->size));
	ASSERT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_WRITE));
	EXPECT_EQ(-EPERM, zero_range(self->fd, FALLOC_FL_KEEP_SIZE, 0, SZ_2M));
	self->map = mmap(NULL, self->size, PROT_READ, MAP_SHARED, self->fd, 0);
	ASSERT_NE(MAP_FAILED, self->map);
	EXPECT_EQ(self->size, differs(self->map, 0, self->size, 'x'));
}

TEST_F(zero_range, respects_the_seal_on_growing)
{
	ASSERT_EQ(0, fcntl(self->fd, F_ADD_SEALS, F_SEAL_GROW));
	EXPECT_EQ(-EPERM, zero_range(self->fd, 0, 3 * SZ_2M, SZ_2M + 1));
	EXPECT_EQ(self->size, differs(self->map, 0, self->size, 'x'));
	EXPECT_EQ(0, zero_range(self->fd, 0, 3 * SZ_2M, SZ_2M));
	EXPECT_EQ(self->size, differs(self->map, 3 * SZ_2M, self->size, 0));
}

TEST_F(zero_range, respects_the_limit_of_file_sizes)
{
	const struct rlimit limit = { SZ_2M, RLIM_INFINITY };

	signal(SIGXFSZ, SIG_IGN);
	ASSERT_EQ(0, setrlimit(RLIMIT_FSIZE, &limit));
	EXPECT_EQ(-EFBIG, zero_range(self->fd, 0, 3 * SZ_2M, SZ_2M + 1));
	EXPECT_EQ(self->size, differs(self->map, 0, self->size, 'x'));
}

TEST_F(zero_range, updates_mtime_and_ctime)
{
	struct stat before, after;

	ASSERT_EQ(0, fstat(self->fd, &before));
	usleep(20000);
	EXPECT_EQ(0, zero_range(self->fd, 0, 0, 1));
	ASSERT_EQ(0, fstat(self->fd, &after));
	EXPECT_NE(before.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
	EXPECT_NE(before.st_ctim.tv_nsec, after.st_ctim.tv_nsec);
}

static void do_nothing(int sig)
{
}

TEST_F(zero_range, can_be_interrupted_and_called_again)
{
	const struct itimerval often = { { 0, 200 }, { 0, 200 } }, never = {};
	const struct sigaction sa = { .sa_handler = do_nothing };
	int ret = 0, tries;

	ASSERT_EQ(0, sigaction(SIGALRM, &sa, NULL));
	ASSERT_EQ(0, setitimer(ITIMER_REAL, &often, NULL));
	for (tries = 0; tries < 1000 && ret != -EINTR; tries++)
		ret = zero_range(self->fd, FALLOC_FL_KEEP_SIZE, 0, self->size);
	ASSERT_EQ(0, setitimer(ITIMER_REAL, &never, NULL));
	EXPECT_EQ(-EINTR, ret);
	EXPECT_EQ(0, zero_range(self->fd, FALLOC_FL_KEEP_SIZE, 0, self->size));
	EXPECT_EQ(self->size, differs(self->map, 0, self->size, 0));
}

TEST_F(zero_range, leaves_private_copies_alone)
{
	unsigned char *copy = mmap(NULL, self->size, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_NORESERVE, self->fd, 0);

	ASSERT_NE(MAP_FAILED, copy);
	if (!write_long(pool_2m, self->nr + NR_HUGE + 1))
		SKIP(return, "can't get another hugepage");
	copy[SZ_2M] = 'y';
	EXPECT_EQ('x', copy[0]);
	EXPECT_EQ(0, zero_range(self->fd, 0, 0, self->size));
	EXPECT_EQ(0, copy[0]);
	EXPECT_EQ('y', copy[SZ_2M]);
	EXPECT_EQ(2 * SZ_2M, differs(copy, SZ_2M + 1, 2 * SZ_2M, 'x'));
}

TEST_HARNESS_MAIN
