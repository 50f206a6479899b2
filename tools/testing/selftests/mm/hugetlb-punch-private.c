// SPDX-License-Identifier: GPL-2.0
/*
 * Punch holes into a hugetlb file while threads fault in a shared and a private
 * mapping of it.
 *
 * The kernel once took the reservation map of the private VMA for a vma lock, which
 * corrupted memory within seconds, so the test passes if the machine survives. It needs
 * eight free hugepages of the default size, and allocates them if it can.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "../kselftest_harness.h"

#define NR_PAGES	4
#define SECONDS		10

static size_t hpage_size;
static atomic_bool over;

static void *read_at_random(void *map)
{
	unsigned int seed = 1;
	char *mem = map;

	while (!over)
		__atomic_load_n(&mem[rand_r(&seed) % (NR_PAGES * hpage_size)],
				__ATOMIC_RELAXED);
	return NULL;
}

static size_t default_hpage_size(void)
{
	FILE *f = fopen("/proc/meminfo", "r");
	unsigned long kb = 0;
	char line[128];

	while (f && fgets(line, sizeof(line), f) &&
	       sscanf(line, "Hugepagesize: %lu kB", &kb) != 1)
		;
	if (f)
		fclose(f);
	return kb << 10;
}

static long pool_size(const char *new)
{
	int fd = open("/proc/sys/vm/nr_hugepages", O_RDWR);
	char buf[32] = "";
	long nr = -1;

	if (fd >= 0 && read(fd, buf, sizeof(buf) - 1) > 0)
		nr = atol(buf);
	if (fd >= 0 && new && pwrite(fd, new, strlen(new), 0) < 0)
		nr = -1;
	if (fd >= 0)
		close(fd);
	return nr;
}

FIXTURE(punched)
{
	char *shared, *private;
	long was;
	int fd;
};

FIXTURE_SETUP(punched)
{
	size_t len;
	char nr[32];

	hpage_size = default_hpage_size();
	len = NR_PAGES * hpage_size;
	if (!hpage_size || pool_size(NULL) < 0)
		SKIP(return, "no hugepages");
	self->was = pool_size(NULL);
	/* The private mapping reserves as many as the file has. */
	snprintf(nr, sizeof(nr), "%ld", self->was + 2 * NR_PAGES);
	pool_size(nr);

	self->fd = memfd_create("punched", MFD_HUGETLB);
	ASSERT_GE(self->fd, 0);
	ASSERT_EQ(ftruncate(self->fd, len), 0);
	self->shared = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, 0);
	self->private = mmap(NULL, len, PROT_READ, MAP_PRIVATE, self->fd, 0);
	if (self->shared == MAP_FAILED || self->private == MAP_FAILED)
		SKIP(return, "needs %d free hugepages", 2 * NR_PAGES);
}

FIXTURE_TEARDOWN(punched)
{
	char nr[32];

	munmap(self->shared, NR_PAGES * hpage_size);
	munmap(self->private, NR_PAGES * hpage_size);
	close(self->fd);
	snprintf(nr, sizeof(nr), "%ld", self->was);
	pool_size(nr);
}

TEST_F_TIMEOUT(punched, under_a_private_mapping_while_both_fault, 4 * SECONDS)
{
	void *map[] = { self->private, self->private, self->shared };
	size_t len = NR_PAGES * hpage_size;
	unsigned long nr_punched = 0;
	pthread_t thread[3];
	struct stat st;
	time_t end;
	int i;

	over = false;
	for (i = 0; i < 3; i++)
		ASSERT_EQ(pthread_create(&thread[i], NULL, read_at_random, map[i]), 0);

	for (end = time(NULL) + SECONDS; time(NULL) < end; nr_punched++)
		ASSERT_EQ(fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				    0, len), 0);
	over = true;
	for (i = 0; i < 3; i++)
		pthread_join(thread[i], NULL);
	TH_LOG("%lu times", nr_punched);

	/* Remove the pages that were faulted in after the last hole. */
	ASSERT_EQ(fallocate(self->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, len), 0);
	ASSERT_EQ(fstat(self->fd, &st), 0);
	EXPECT_EQ(st.st_blocks, 0);
}

TEST_HARNESS_MAIN
