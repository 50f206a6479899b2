// SPDX-License-Identifier: GPL-2.0
/*
 * The costs of memory failure recovery of hugetlb memfds, and its savings.
 *
 * The same program runs on kernels with MFD_MF_KEEP_UE_MAPPED and without, where it
 * uses files without the flag and leaves out what can't be measured then.  It fails
 * only if it can't measure.  Results are lines
 *
 *   # figure NAME X VALUE
 *
 * VALUE is a number of bytes or blocks where NAME says so, and nanoseconds otherwise.
 * Under QEMU's TCG with "-icount shift=0", which makes the clock advance by one
 * nanosecond for each instruction, those are numbers of instructions; a REP prefix
 * counts once for each time it repeats.
 *
 * The fixtures:
 *   global	what any other memory costs
 *   healthy	what paths cost that hugepages without errors take
 *   damage	how much memory one error takes away
 *   kept	1 GiB that loses page after page: signals, faults, reads, the record
 *   released	how 1 GiB with lost pages returns to the allocator
 *   repeated	a lost page consumed again, with much else mapped; this needs machine
 *		checks, see machine_check.h
 *   guest	what KVM's page faults cost that map healthy memory
 *   lossy_guest	the same beside lost pages of 1 GiB
 *   reached	an error in memory that is mapped again and again, or beside much other
 *		memory; and what it costs in addition if a guest has all of that
 *   healed	a damaged hugepage replaced under its users, beside what a process did
 *		by hand; and how long a user or a guest has to wait meanwhile
 *
 * No guest runs for that, but KVM must have KVM_PRE_FAULT_MEMORY, by which it maps
 * memory as if a guest had touched it.
 */

#define _GNU_SOURCE
#include "mfr_harness.h"
#include <linux/kvm.h>
#include <mm/gup_test.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/time.h>
#include <time.h>

#define SZ_1M		(SZ_2M / 2)
#define MAX_ORDER	32

static unsigned long clock_cost, began, least;

static unsigned long now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC_RAW, &ts);
	return ts.tv_sec * 1000000000UL + ts.tv_nsec;
}

/*
 * @least is the shortest time between start() and stop() in a loop.  The shortest round
 * had no ticks, and found the lists of free memory as the round before left them.
 */
static void start(int round)
{
	if (!round)
		least = -1UL;
	began = now();
}

static void stop(void)
{
	unsigned long took = now() - began - clock_cost;

	least = took < least ? took : least;
}

static void calibrate(void)
{
	int i;

	clock_cost = 0;
	for (i = 0; i < 100; i++) {
		start(i);
		stop();
	}
	clock_cost = least;
}

static const char *prefix = "";

static void print_figure(const char *name, unsigned long x, unsigned long value)
{
	ksft_print_msg("figure %s%s %lu %lu\n", prefix, name, x, value);
}

static unsigned int keep_flag(void)
{
	return kernel_can_keep() ? MFD_MF_KEEP_UE_MAPPED : 0;
}

/*
 * Healthy memory
 */

static void touch(char *map, size_t len)
{
	size_t i;

	for (i = 0; i < len; i += psize())
		__atomic_store_n(map + i, 1, __ATOMIC_RELAXED);
}

static void measure_pages(struct __test_metadata *_metadata, char *map, size_t len,
			  int advice)
{
	int i;

	ASSERT_EQ(0, madvise(map, len, advice));
	for (i = 0; i < 100; i++) {
		ASSERT_EQ(0, madvise(map, len, MADV_DONTNEED));
		start(i);
		touch(map, len);
		stop();
	}
	print_figure("page_alloc", len / psize(), least);

	for (i = 0; i < 100; i++) {
		touch(map, len);
		start(i);
		madvise(map, len, MADV_DONTNEED);
		stop();
	}
	print_figure("page_free", len / psize(), least);
}

/*
 * Memory of others, which knows nothing of hugetlb. It comes first, while nobody has
 * done anything to the lists of free memory.
 */
TEST(pages)
{
	char *map;

	calibrate();
	map = mmap(NULL, 2 * SZ_2M, PROT_READ | PROT_WRITE,
		   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, map);
	map = (char *)(((uintptr_t)map + SZ_2M - 1) & ~(SZ_2M - 1));
	measure_pages(_metadata, map, psize(), MADV_NOHUGEPAGE);
	measure_pages(_metadata, map, 256 * psize(), MADV_NOHUGEPAGE);
	measure_pages(_metadata, map, SZ_2M, MADV_HUGEPAGE);
}

#define NR_HEALTHY	64

FIXTURE_SUBJECT(healthy);

/* Files without the flag, and with it. */
FIXTURE_VARIANT(healthy) {
	unsigned int flag;
	const char *prefix;
};

FIXTURE_VARIANT_ADD(healthy, plain) { .prefix = "" };
FIXTURE_VARIANT_ADD(healthy, kept) { .flag = MFD_MF_KEEP_UE_MAPPED, .prefix = "kept_" };

FIXTURE_SETUP(healthy)
{
	if (variant->flag && !kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, SZ_2M, &by_madvise, NR_HEALTHY);
	if (!self->s.flags)
		return;
	self->s.nr_huge = 1;
	open_unfilled(_metadata, &self->s, variant->flag);
	prefix = variant->prefix;
	calibrate();
}

TEST_F_TIMEOUT(healthy, files, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr;
	int i, fd = -1;

	for (i = 0; i < 50; i++) {
		close(fd);
		start(i);
		fd = create_memfd(s->size, variant->flag);
		stop();
		ASSERT_LE(0, fd);
	}
	print_figure("memfd_create", 1, least);

	for (nr = 1; nr <= NR_HEALTHY / 2; nr *= 4) {
		for (i = 0; i < 10; i++) {
			ASSERT_EQ(0, fallocate(fd, 0, 0, nr * s->size));
			start(i);
			ASSERT_EQ(0, ftruncate(fd, 0));
			stop();
		}
		print_figure("truncate", nr, least);
	}
	close(fd);
}

TEST_F_TIMEOUT(healthy, faults, SLOW)
{
	struct subject *s = &self->s;
	int i;

	for (i = 0; i < 20; i++) {
		ASSERT_EQ(0, punch(s, 0, s->size));
		start(i);
		read_byte(s->map);
		stop();
	}
	print_figure("hugetlb_fault_new", 1, least);

	for (i = 0; i < 50; i++) {
		ASSERT_EQ(0, madvise(s->map, s->size, MADV_DONTNEED));
		start(i);
		read_byte(s->map);
		stop();
	}
	print_figure("hugetlb_fault_again", 1, least);
}

/* Writing to sysfs is part of it. */
static void resize_pool(struct __test_metadata *_metadata, int fd, long nr)
{
	char text[16];
	int len = sprintf(text, "%ld", nr);

	ASSERT_EQ(len, pwrite(fd, text, len, 0));
}

static void measure_pool(struct __test_metadata *_metadata, unsigned long size,
			 int nr, int times, const char *alloc, const char *release)
{
	long before = pool_get(size, "nr_hugepages");
	int i, fd = open(pool_path(size, "nr_hugepages"), O_RDWR);

	ASSERT_LE(0, fd);
	for (i = 0; i < times; i++) {
		start(i);
		resize_pool(_metadata, fd, before + nr);
		stop();
		ASSERT_EQ(before + nr, pool_get(size, "nr_hugepages"));
		resize_pool(_metadata, fd, before);
	}
	print_figure(alloc, nr, least);

	for (i = 0; i < times; i++) {
		resize_pool(_metadata, fd, before + nr);
		start(i);
		resize_pool(_metadata, fd, before);
		stop();
	}
	print_figure(release, nr, least);
	close(fd);
}

TEST_F_TIMEOUT(healthy, pool, SLOW)
{
	/* gup_test needs no file. */
	if (variant->flag)
		return;
	measure_pool(_metadata, SZ_2M, 16, 20, "hugetlb_alloc_2M", "hugetlb_free_2M");
	if (pool_exists(SZ_1G))
		measure_pool(_metadata, SZ_1G, 1, 5, "hugetlb_alloc_1G", "hugetlb_free_1G");
}

#define NR_GUP		256

/* Both getting and putting, and a little for the call. */
static void measure_gup(struct __test_metadata *_metadata, char *map, unsigned int cmd,
			const char *name)
{
	int i, fd = open_pin();

	if (fd < 0)
		SKIP(return, "needs CONFIG_GUP_TEST");
	for (i = 0; i < 50; i++) {
		struct gup_test gup = {
			.addr = (uintptr_t)map,
			.size = NR_GUP * psize(),
			.nr_pages_per_call = NR_GUP,
		};

		start(i);
		ASSERT_EQ(0, ioctl(fd, cmd, &gup));
		stop();
	}
	print_figure(name, NR_GUP, least);
	close(fd);
}

TEST_F_TIMEOUT(healthy, gup, SLOW)
{
	char *small;

	small = mmap(NULL, NR_GUP * psize(), PROT_READ | PROT_WRITE,
		     MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	ASSERT_NE(MAP_FAILED, small);
	if (!variant->flag) {
		measure_gup(_metadata, small, GUP_FAST_BENCHMARK, "gup_fast_small");
		measure_gup(_metadata, small, GUP_BASIC_TEST, "gup_small");
	}
	measure_gup(_metadata, self->s.map, GUP_FAST_BENCHMARK, "gup_fast_hugetlb");
	measure_gup(_metadata, self->s.map, GUP_BASIC_TEST, "gup_hugetlb");
}

/* Read @len bytes from the beginning of the file. */
static void measure_read(struct __test_metadata *_metadata, struct subject *s,
			 char *buffer, ssize_t len)
{
	int i;

	for (i = 0; i < 20; i++) {
		start(i);
		ASSERT_EQ(len, pread(s->fd, buffer, len, 0));
		stop();
	}
}

TEST_F_TIMEOUT(healthy, reads, SLOW)
{
	const size_t lens[] = { 8, 4096, SZ_1M };
	char *buffer = alloc_shared(SZ_1M);
	unsigned int i;

	ASSERT_NE(NULL, buffer);
	for (i = 0; i < ARRAY_SIZE(lens); i++) {
		measure_read(_metadata, &self->s, buffer, lens[i]);
		print_figure("read", lens[i], least);
	}
}

/*
 * Copy and clear memory with as many instructions as the kernel takes for that, so that
 * the figures tell how often it is done, not how. The vectors of a C library are fewer
 * instructions, and hardly faster.
 */
static void copy_words(char *to, const char *from, size_t len)
{
	const uint64_t *src = (const uint64_t *)from, *end = src + len / sizeof(*src);
	uint64_t *dst = (uint64_t *)to;
	int i;

	for (; src < end; src += 4, dst += 4)
#pragma GCC unroll 4
		for (i = 0; i < 4; i++)
			__atomic_store_n(dst + i, __atomic_load_n(src + i, __ATOMIC_RELAXED),
					 __ATOMIC_RELAXED);
}

static void clear_words(char *to, size_t len)
{
#ifdef __x86_64__
	len /= 8;
	asm volatile("rep stosq" : "+D" (to), "+c" (len) : "a" (0UL) : "memory");
#else
	memset(to, 0, len);
#endif
}

/* Zero all of a file that has its hugepages, but not mapped, or one that is a hole. */
static void measure_zeroing(struct __test_metadata *_metadata, struct subject *s,
			    int times, bool hole, bool by_call)
{
	char name[32];
	int i, ret = 0;

	for (i = 0; i < times; i++) {
		ASSERT_EQ(0, hole ? punch(s, 0, s->size) :
				    madvise(s->map, s->size, MADV_DONTNEED));
		start(i);
		if (by_call)
			ret = zero(s, 0, s->size);
		else
			clear_words(s->map, s->size);
		stop();
		ASSERT_EQ(0, ret);
	}
	sprintf(name, "%s_%s", by_call ? "zero_range" : "memset", hole ? "hole" : "file");
	print_figure(name, s->size, least);
}

static void measure_all_zeroing(struct __test_metadata *_metadata, struct subject *s,
				int times)
{
	measure_zeroing(_metadata, s, times, false, false);
	measure_zeroing(_metadata, s, times, true, false);
	if (zero(s, 0, s->size) == -EOPNOTSUPP)
		return;
	measure_zeroing(_metadata, s, times, false, true);
	measure_zeroing(_metadata, s, times, true, true);
}

TEST_F_TIMEOUT(healthy, zeroing, SLOW)
{
	measure_all_zeroing(_metadata, &self->s, 10);
}

/*
 * The memory that one error takes away
 */

FIXTURE_SUBJECT(damage);

FIXTURE_VARIANT(damage) {
	unsigned long size;
};

FIXTURE_VARIANT_ADD(damage, 2m) { .size = SZ_2M };
FIXTURE_VARIANT_ADD(damage, 1g) { .size = SZ_1G };

FIXTURE_SETUP(damage)
{
	setup_subject(_metadata, &self->s, variant->size, &by_madvise, 1);
	if (self->s.flags)
		open_unfilled(_metadata, &self->s, keep_flag());
}

TEST_F_TIMEOUT(damage, of_one_error, SLOW)
{
	struct subject *s = &self->s;
	unsigned long i, lost = 1;
	uint64_t head;

	note_lost(_metadata, s, 1);
	ASSERT_EQ(0, inject(s, 1));

	/* A signal for more than a page is believed as far as the next 2 MiB. */
	for (i = 0; i < s->nr_raw; i++) {
		unsigned long rest = SZ_2M / psize() - i % (SZ_2M / psize());

		if (i == 1 || try_read(raw_page(s, i)))
			continue;
		if (sigbus.lsb == (int)pshift())
			rest = 1;
		/* Lost page 1 counts already. */
		lost += rest - (i < 1 && i + rest > 1);
		i += rest - 1;
	}
	print_figure("lost_running_bytes", s->size, lost * psize());

	unmap_file(s);
	close(s->fd);
	wait_for_release(s, 1);
	ASSERT_TRUE(read_kpageflags(s->head[0], s->nr_raw, s->flags));
	head = s->flags[0];
	for (lost = i = 0; i < s->nr_raw; i++)
		if (s->flags[i] & KPF_HWPOISON ||
		    (s->flags[i] & KPF_HUGE && head & KPF_HWPOISON))
			lost++;
	print_figure("lost_released_bytes", s->size, lost * psize());
}

/*
 * 1 GiB that loses page after page
 */

/* Stock walks a list of lost pages for each raw page that it might read. */
#define STOCK_MAX	1000

#define NR_SPARED	(SZ_1M / psize())

/* When the handler of SIGBUS was entered, and when its victim was seen last. */
static unsigned long arrived;
static atomic_ulong alive;

static void note_arrival(int sig, siginfo_t *si, void *context)
{
	arrived = now();
	/* It may be one of consume_page(), which is in this file. */
	mce_release_victim();
	handle_sigbus(sig, si, context);
}

static void expect_arrivals(struct __test_metadata *_metadata)
{
	struct sigaction sa = {
		.sa_sigaction = note_arrival,
		.sa_flags = SA_SIGINFO | SA_RESTART,
	};

	ASSERT_EQ(0, sigaction(SIGBUS, &sa, NULL));
}

/* The @k-th raw page to lose, from 1 on: anywhere but in the first MiB. */
static unsigned long victim(struct subject *s, unsigned long k)
{
	return NR_SPARED + k * 104729 % (s->nr_raw - NR_SPARED);
}

/*
 * Lose that raw page. Returns what it takes to get to the signal handler, or 0 if
 * there is no signal: without the flag nobody has the hugepage any more by then, and
 * the error must be told in another way.
 */
static unsigned long lose_page(struct __test_metadata *_metadata, struct subject *s,
			       unsigned long nr)
{
	unsigned long begin;
	int ret;

	note_lost(_metadata, s, nr);
	arrived = 0;
	begin = now();
	ret = inject(s, nr);
	if (ret)
		inject_corrupt_pfn(NULL, raw_pfn(s, nr));
	return arrived ? arrived - begin - clock_cost : 0;
}

static unsigned long lose_next(struct __test_metadata *_metadata, struct subject *s,
			       unsigned long k)
{
	return lose_page(_metadata, s, victim(s, k));
}

/* Memory that the kernel has for itself, in kB. */
static unsigned long slab_kb(void)
{
	write_long("/proc/sys/vm/stat_refresh", 1);
	return meminfo_kb("SUnreclaim");
}

FIXTURE(kept) {
	struct subject s;
	char *buffer;
	unsigned long *shared;
};

FIXTURE_SETUP(kept)
{
	setup_subject(_metadata, &self->s, SZ_1G, &by_madvise, 1);
	if (!self->s.flags)
		return;
	open_unfilled(_metadata, &self->s, keep_flag());
	self->buffer = alloc_shared(SZ_1M);
	self->shared = alloc_shared(sizeof(*self->shared));
	ASSERT_NE(NULL, self->buffer);
	ASSERT_NE(NULL, self->shared);
	expect_arrivals(_metadata);
	calibrate();
}

FIXTURE_TEARDOWN_SUBJECT(kept);

/* Another process maps the file and uses a healthy page of it. */
static void measure_fault(struct __test_metadata *_metadata, struct subject *s,
			  unsigned long *shared, unsigned long k)
{
	pid_t pid;

	*shared = 0;
	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		char *map = map_file(s, MAP_SHARED);
		int i;

		if (!map || !try_read(map))
			_exit(0);
		for (i = 0; i < 5; i++) {
			madvise(map, s->size, MADV_DONTNEED);
			start(i);
			read_byte(map);
			stop();
		}
		*shared = least;
		_exit(0);
	}
	wait_for_child(_metadata, pid);
	if (*shared)
		print_figure("lossy_fault", k, *shared);
}

/* Read all of it, a MiB at a time, and what follows behind each lost page. */
static void read_through(struct __test_metadata *_metadata, struct subject *s,
			 char *buffer, unsigned long k)
{
	unsigned long pos = 0;

	start(0);
	while (pos < s->size) {
		ssize_t ret = pread(s->fd, buffer, SZ_1M - pos % SZ_1M, pos);

		ASSERT_NE(0, ret);
		pos += ret > 0 ? (unsigned long)ret : psize();
	}
	stop();
	print_figure("lossy_read_through", k, least);
}

/* Read the map of the lost pages, of which there are @k. */
static void measure_map(struct __test_metadata *_metadata, struct subject *s,
			const char *name, unsigned long k)
{
	char path[64], text[4096];
	ssize_t len;
	int i, fd;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", s->fd);
	for (i = 0; i < 5; i++) {
		fd = open(path, O_RDONLY | O_CLOEXEC);
		ASSERT_LE(0, fd);
		start(i);
		do
			len = read(fd, text, sizeof(text));
		while (len > 0);
		stop();
		close(fd);
		ASSERT_EQ(0, len);
	}
	print_figure(name, k, least);
}

TEST_F_TIMEOUT(kept, page_after_page, SLOW)
{
	const unsigned long stops[] = {
		0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000,
	};
	struct subject *s = &self->s;
	unsigned long k = 0, slab = slab_kb();
	const bool keep = keep_flag();
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(stops); i++) {
		unsigned long took = 0;

		if (!keep && stops[i] > STOCK_MAX)
			break;
		while (k < stops[i]) {
			unsigned long t = lose_next(_metadata, s, ++k);

			/* The least of the last few: without a tick. */
			if (!took || k + 5 <= stops[i] || t < took)
				took = t;
		}
		if (took)
			print_figure("signal", k, took);
		print_figure("record_bytes", k, (slab_kb() - slab) << 10);
		measure_read(_metadata, s, self->buffer, 4096);
		print_figure("lossy_read_4K", k, least);
		measure_fault(_metadata, s, self->shared, k);
		if (!keep)
			continue;
		measure_read(_metadata, s, self->buffer, SZ_1M);
		print_figure("lossy_read_1M", k, least);
		measure_map(_metadata, s, "map", k);
		if (!k || k == 100 || k == 1000 || k == 10000)
			read_through(_metadata, s, self->buffer, k);
	}
}

/* A 1 GiB hugepage that has lost nothing yet */
TEST_F_TIMEOUT(kept, zeroing, SLOW)
{
	prefix = "kept_";
	measure_all_zeroing(_metadata, &self->s, 6);
}

/*
 * 1 GiB that is given back
 */

FIXTURE_SUBJECT(released);

FIXTURE_VARIANT(released) {
	unsigned long lost;
};

FIXTURE_VARIANT_ADD(released, healthy) { .lost = 0 };
FIXTURE_VARIANT_ADD(released, but_1) { .lost = 1 };
FIXTURE_VARIANT_ADD(released, but_2) { .lost = 2 };
FIXTURE_VARIANT_ADD(released, but_10) { .lost = 10 };
FIXTURE_VARIANT_ADD(released, but_100) { .lost = 100 };
FIXTURE_VARIANT_ADD(released, but_1000) { .lost = 1000 };
FIXTURE_VARIANT_ADD(released, but_10000) { .lost = 10000 };

FIXTURE_SETUP(released)
{
	if (variant->lost && !kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, SZ_1G, &by_madvise, 1);
	if (!self->s.flags)
		return;
	open_unfilled(_metadata, &self->s, keep_flag());
	calibrate();
}

/* How many free blocks of each order there are. Returns the number of orders. */
static unsigned int read_buddyinfo(unsigned long *blocks)
{
	FILE *f = fopen("/proc/buddyinfo", "r");
	unsigned int order = 0;
	char line[512];

	memset(blocks, 0, MAX_ORDER * sizeof(*blocks));
	while (f && fgets(line, sizeof(line), f)) {
		char zone[32], *p, *end;
		int len;

		if (sscanf(line, "Node %*d, zone %31s%n", zone, &len) != 1)
			continue;
		p = line + len;
		for (order = 0; order < MAX_ORDER; order++) {
			blocks[order] += strtoul(p, &end, 10);
			if (end == p)
				break;
			p = end;
		}
	}
	if (f)
		fclose(f);
	return order;
}

/* The largest blocks that the lost pages leave room for. */
static void possible_blocks(struct subject *s, unsigned int orders, unsigned long *blocks)
{
	unsigned long i, end;
	unsigned int order;

	memset(blocks, 0, MAX_ORDER * sizeof(*blocks));
	for (i = 0; i < s->nr_raw; i = end) {
		end = i + 1;
		if (s->lost[i])
			continue;
		for (order = 0; order + 1 < orders; order++) {
			unsigned long larger = i + (2UL << order);

			if (i % (2UL << order) || larger > s->nr_raw)
				break;
			while (end < larger && !s->lost[end])
				end++;
			if (end < larger)
				break;
		}
		end = i + (1UL << order);
		blocks[order]++;
	}
}

TEST_F_TIMEOUT(released, all, SLOW)
{
	unsigned long before[MAX_ORDER], after[MAX_ORDER], possible[MAX_ORDER];
	struct subject *s = &self->s;
	unsigned int order, orders;
	int pool, drain;
	unsigned long k;

	for (k = 1; k <= variant->lost; k++)
		lose_next(_metadata, s, k);
	unmap_file(s);
	/* Through a page that is neither lost nor says that others are. */
	drain = open_drain();
	drain_percpu_lists(drain, s->head[0] + 1);
	read_buddyinfo(before);

	/* The healthy one returns to the pool, and must be dissolved. */
	pool = open(pool_path(s->size, "nr_hugepages"), O_RDWR);
	ASSERT_LE(0, pool);
	start(0);
	ASSERT_EQ(0, ftruncate(s->fd, 0));
	resize_pool(_metadata, pool, s->before.nr - 1);
	stop();
	print_figure("release", variant->lost, least);
	close(pool);
	ASSERT_EQ(s->before.nr - 1, pool_get(s->size, "nr_hugepages"));

	drain_percpu_lists(drain, s->head[0] + 1);
	close_drain(drain);
	orders = read_buddyinfo(after);
	possible_blocks(s, orders, possible);
	for (order = 0; order < orders; order++) {
		char name[32];

		sprintf(name, "blocks_%lu", variant->lost);
		print_figure(name, order, after[order] > before[order] ?
				    after[order] - before[order] : 0);
		sprintf(name, "possible_blocks_%lu", variant->lost);
		print_figure(name, order, possible[order]);
	}
}

/*
 * A lost page consumed again
 */

FIXTURE_SUBJECT(repeated);

FIXTURE_SETUP(repeated)
{
	setup_keeping(_metadata, &self->s, SZ_2M, &by_mce, 1);
	if (!self->s.flags)
		return;
	open_unfilled(_metadata, &self->s, keep_flag());
	expect_arrivals(_metadata);
	calibrate();
}

/* Be a victim that knows what time it is, as mce_suffer() is one that doesn't. */
static unsigned long consume_page(struct __test_metadata *_metadata, struct subject *s,
				  unsigned long nr)
{
	struct mce_victim victim = { .addr = raw_page(s, nr), .pfn = raw_pfn(s, nr) };
	struct mce_shot shot = { undo->monitor, MCE_LOAD, &victim };
	cpu_set_t before, one;
	pthread_t thread;
	int cpu[2];

	ASSERT_TRUE(mce_cpus(cpu));
	victim.cpu = cpu[0];
	undo->mce_seen = true;
	arrived = 0;
	injecting = true;
	ASSERT_EQ(0, pthread_create(&thread, NULL, mce_shoot_one, &shot));

	sched_getaffinity(0, sizeof(before), &before);
	CPU_ZERO(&one);
	CPU_SET(victim.cpu, &one);
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(one), &one));
	if (!sigsetjmp(mce_after_signal, 1)) {
		mce_reading = true;
		do {
			alive = now();
			read_byte(victim.addr);
			victim.ready = true;
		} while (!victim.over);
	}
	mce_reading = false;
	victim.over = true;
	injecting = false;
	sched_setaffinity(0, sizeof(before), &before);
	pthread_join(thread, NULL);

	ASSERT_NE(0, arrived);
	return arrived - alive - clock_cost;
}

/* Map that much. Read only, it takes no memory but for page tables. */
static char *map_zeroes(struct __test_metadata *_metadata, size_t len)
{
	char *map = mmap(NULL, len + SZ_2M, PROT_READ,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	size_t pos;

	ASSERT_NE(MAP_FAILED, map);
	map = (char *)(((uintptr_t)map + SZ_2M - 1) & ~(SZ_2M - 1));
	madvise(map, len, MADV_HUGEPAGE);
	for (pos = 0; pos < len; pos += SZ_2M)
		read_byte(map + pos);
	return map;
}

TEST_F_TIMEOUT(repeated, with_much_mapped, SLOW)
{
	struct subject *s = &self->s;
	unsigned long gib, mapped = 0;
	int i;

	note_lost(_metadata, s, 1);
	consume_page(_metadata, s, 1);
	for (gib = 1; gib <= 64; gib *= 4) {
		unsigned long took = -1UL;

		map_zeroes(_metadata, (gib - mapped) * SZ_1G);
		mapped = gib;
		/* Whatever other CPUs do at the same time counts as well, often. */
		for (i = 0; i < 100; i++) {
			unsigned long t = consume_page(_metadata, s, 1);

			took = t < took ? t : took;
		}
		print_figure("repeat", gib, took);
	}
}

/*
 * Memory of guests
 */

/* A virtual machine that doesn't run. */
struct vm {
	int fd;
	int vcpu;
	unsigned int nr_slots;
};

/* Called before a test begins: skips where KVM can't be used. */
static void setup_vm(struct __test_metadata *_metadata, struct vm *vm)
{
	int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

	if (kvm < 0)
		SKIP(return, "needs KVM");
	vm->fd = ioctl(kvm, KVM_CREATE_VM, 0);
	ASSERT_LE(0, vm->fd);
	close(kvm);
	if (ioctl(vm->fd, KVM_CHECK_EXTENSION, KVM_CAP_PRE_FAULT_MEMORY) <= 0)
		SKIP(return, "needs KVM_PRE_FAULT_MEMORY");
	vm->vcpu = ioctl(vm->fd, KVM_CREATE_VCPU, 0);
	ASSERT_LE(0, vm->vcpu);
}

/* The guest sees [map, map + len) at @gpa. */
static void add_memory(struct __test_metadata *_metadata, struct vm *vm, uint64_t gpa,
		       char *map, size_t len, uint32_t flags)
{
	struct kvm_userspace_memory_region region = {
		.slot = vm->nr_slots++,
		.flags = flags,
		.guest_phys_addr = gpa,
		.memory_size = len,
		.userspace_addr = (uintptr_t)map,
	};

	ASSERT_EQ(0, ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &region));
}

/* Map memory as if the guest had read it. Returns how much KVM has left out. */
static uint64_t guest_touches(struct vm *vm, uint64_t gpa, uint64_t len)
{
	struct kvm_pre_fault_memory range = { .gpa = gpa, .size = len };

	while (range.size && !ioctl(vm->vcpu, KVM_PRE_FAULT_MEMORY, &range))
		;
	return range.size;
}

/* How many blocks of a size KVM has mapped, of all virtual machines. */
static long kvm_pages(const char *name)
{
	char path[64];
	long nr;

	sprintf(path, "/sys/kernel/debug/kvm/%s", name);
	return read_long(path, &nr) ? nr : -1;
}

#define NR_GUEST	16

FIXTURE(guest) {
	struct subject s;
	struct vm vm;
};

FIXTURE_VARIANT(guest) {
	unsigned int flag;
	const char *prefix;
};

FIXTURE_VARIANT_ADD(guest, plain) { .prefix = "" };
FIXTURE_VARIANT_ADD(guest, kept) { .flag = MFD_MF_KEEP_UE_MAPPED, .prefix = "kept_" };

FIXTURE_SETUP(guest)
{
	if (variant->flag && !kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_vm(_metadata, &self->vm);
	if (!self->vm.vcpu)
		return;
	setup_subject(_metadata, &self->s, SZ_2M, &by_madvise, NR_GUEST);
	if (!self->s.flags)
		return;
	expect_arrivals(_metadata);
	prefix = variant->prefix;
	calibrate();
}

FIXTURE_TEARDOWN_SUBJECT(guest);

/* Map all of the guest's memory, which is mapped here, in blocks that are counted there. */
static void measure_guest_faults(struct __test_metadata *_metadata, struct vm *vm,
				 char *map, unsigned long nr, unsigned long size,
				 const char *counter, const char *name)
{
	unsigned long len = nr * size, pos, rest;
	int i;

	for (i = 0; i < 50; i++) {
		ASSERT_EQ(0, madvise(map, len, MADV_DONTNEED));
		ASSERT_EQ(0, kvm_pages(counter));
		for (pos = 0; pos < len; pos += size)
			__atomic_store_n(map + pos, 1, __ATOMIC_RELAXED);
		start(i);
		rest = guest_touches(vm, 0, len);
		stop();
		ASSERT_EQ(0, rest);
		ASSERT_EQ(nr, kvm_pages(counter));
	}
	print_figure(name, nr, least);
}

TEST_F_TIMEOUT(guest, hugepages, SLOW)
{
	struct subject *s = &self->s;

	open_holes(_metadata, s, variant->flag);
	add_memory(_metadata, &self->vm, 0, s->map, s->nr_huge * s->size, 0);
	measure_guest_faults(_metadata, &self->vm, s->map, s->nr_huge, s->size,
			     "pages_2m", "guest_fault_2M");
}

/* The rest of a hugepage, page by page. */
TEST_F_TIMEOUT(guest, damaged_hugepage, SLOW)
{
	struct subject *s = &self->s;
	unsigned long rest;
	int i;

	if (!variant->flag)
		return;
	s->nr_huge = 1;
	open_unfilled(_metadata, s, variant->flag);
	add_memory(_metadata, &self->vm, 0, s->map, s->size, 0);
	ASSERT_NE(0, lose_page(_metadata, s, 0));
	for (i = 0; i < 10; i++) {
		ASSERT_EQ(0, madvise(s->map, s->size, MADV_DONTNEED));
		read_byte(raw_page(s, 1));
		start(i);
		rest = guest_touches(&self->vm, psize(), s->size - psize());
		stop();
		ASSERT_EQ(0, rest);
		ASSERT_EQ(s->nr_raw - 1, kvm_pages("pages_4k"));
	}
	print_figure("guest_fault_damaged", 1, least);
}

TEST_F_TIMEOUT(guest, small_pages, SLOW)
{
	const size_t len = NR_GUEST * psize();
	char *map;

	/* gup_test needs no file. */
	if (variant->flag)
		return;
	map = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_NE(MAP_FAILED, map);
	ASSERT_EQ(0, madvise(map, len, MADV_NOHUGEPAGE));
	add_memory(_metadata, &self->vm, 0, map, len, 0);
	measure_guest_faults(_metadata, &self->vm, map, NR_GUEST, psize(),
			     "pages_4k", "guest_fault_4K");
}

FIXTURE(lossy_guest) {
	struct subject s;
	struct vm vm;
};

FIXTURE_SETUP(lossy_guest)
{
	setup_vm(_metadata, &self->vm);
	if (!self->vm.vcpu)
		return;
	setup_subject(_metadata, &self->s, SZ_1G, &by_madvise, 1);
	if (!self->s.flags)
		return;
	open_unfilled(_metadata, &self->s, keep_flag());
	add_memory(_metadata, &self->vm, 0, self->s.map, self->s.size, 0);
	expect_arrivals(_metadata);
	calibrate();
}

FIXTURE_TEARDOWN_SUBJECT(lossy_guest);

/* The first page, beside which less and less is healthy. */
TEST_F_TIMEOUT(lossy_guest, faults, SLOW)
{
	const unsigned long stops[] = { 0, 1, 10, 100, 1000, 10000 };
	struct subject *s = &self->s;
	unsigned long k = 0, rest;
	unsigned int i;
	int round;

	for (i = 0; i < ARRAY_SIZE(stops); i++) {
		/* Without the flag there is nothing left. */
		if (stops[i] && !keep_flag())
			break;
		while (k < stops[i])
			lose_next(_metadata, s, ++k);
		for (round = 0; round < 20; round++) {
			ASSERT_EQ(0, madvise(s->map, s->size, MADV_DONTNEED));
			read_byte(s->map);
			start(round);
			rest = guest_touches(&self->vm, 0, psize());
			stop();
			ASSERT_EQ(0, rest);
			ASSERT_EQ(1, kvm_pages("pages_1g") + kvm_pages("pages_2m") +
				     kvm_pages("pages_4k"));
		}
		print_figure("lossy_guest_fault", k, least);
	}
}

/*
 * An error in memory that much is mapped of, or beside
 */

FIXTURE(reached) {
	struct subject s;
	struct vm vm;
};

FIXTURE_VARIANT(reached) {
	unsigned long size;
	bool guest;
	const char *prefix;
};

FIXTURE_VARIANT_ADD(reached, process_2m) { .size = SZ_2M, .prefix = "2M_" };
FIXTURE_VARIANT_ADD(reached, process_1g) { .size = SZ_1G, .prefix = "1G_" };
FIXTURE_VARIANT_ADD(reached, guest_2m) { .size = SZ_2M, .guest = true, .prefix = "guest_2M_" };
FIXTURE_VARIANT_ADD(reached, guest_1g) { .size = SZ_1G, .guest = true, .prefix = "guest_1G_" };

/* A file that a guest, if there is to be one, can have as its memory. */
static void setup_shared(struct __test_metadata *_metadata, struct vm *vm, struct subject *s,
			 unsigned long size, unsigned long nr_huge)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	if (vm) {
		setup_vm(_metadata, vm);
		if (!vm->vcpu)
			return;
	}
	setup_subject(_metadata, s, size, &by_madvise, nr_huge);
	if (s->flags)
		open_unfilled(_metadata, s, keep_flag());
}

/* 1 GiB of hugepages. */
FIXTURE_SETUP(reached)
{
	struct subject *s = &self->s;

	setup_shared(_metadata, variant->guest ? &self->vm : NULL, s, variant->size,
		     SZ_1G / variant->size);
	if (!s->map)
		return;
	expect_arrivals(_metadata);
	prefix = variant->prefix;
	calibrate();

	if (variant->guest)
		add_memory(_metadata, &self->vm, 0, s->map, SZ_1G, 0);
	/* From now on 2 MiB is the most that a guest can have in a block. */
	ASSERT_NE(0, lose_page(_metadata, s, 0));
}

FIXTURE_TEARDOWN_SUBJECT(reached);

/*
 * A few errors, each in the next block of 2 MiB. Before that the guest, if there is
 * one, uses those that are healthy, in all of its @nr mappings.
 */
static void measure_errors(struct __test_metadata *_metadata, struct subject *s,
			   struct vm *vm, unsigned long nr, const char *name,
			   unsigned long x)
{
	unsigned long took = -1UL, i, t;
	int round;

	for (round = 0; round < 5; round++) {
		unsigned long gone = s->nr_lost * SZ_2M;
		long before;

		for (i = 0; vm && i < nr; i++)
			ASSERT_EQ(0, guest_touches(vm, i * SZ_1G + gone, SZ_1G - gone));
		before = kvm_pages("pages_2m");
		t = lose_page(_metadata, s, gone / psize());
		ASSERT_NE(0, t);
		took = t < took ? t : took;
		/* It has lost that block everywhere, if not more. */
		if (vm)
			ASSERT_LE(nr, before - kvm_pages("pages_2m"));
	}
	print_figure(name, x, took);
}

#define MAX_GIB		64

TEST_F_TIMEOUT(reached, beside_much_other_memory, SLOW)
{
	struct vm *vm = variant->guest ? &self->vm : NULL;
	const unsigned long len = (MAX_GIB - 1) * SZ_1G;
	struct subject *s = &self->s;
	char *map;

	measure_errors(_metadata, s, vm, 1, "error", 1);
	if (!vm)
		measure_map(_metadata, s, "map_of_hugepages", s->nr_huge);

	map = map_zeroes(_metadata, len);
	if (vm) {
		long before = kvm_pages("pages_2m");

		add_memory(_metadata, vm, SZ_1G, map, len, KVM_MEM_READONLY);
		ASSERT_EQ(0, guest_touches(vm, SZ_1G, len));
		ASSERT_EQ(before + len / SZ_2M, kvm_pages("pages_2m"));
	}
	measure_errors(_metadata, s, vm, 1, "error", MAX_GIB);
}

TEST_F_TIMEOUT(reached, in_many_mappings, SLOW)
{
	struct vm *vm = variant->guest ? &self->vm : NULL;
	struct subject *s = &self->s;
	unsigned long nr = 1, i, pos;

	for (;;) {
		measure_errors(_metadata, s, vm, nr, "shared_error", nr);
		if (nr == MAX_GIB)
			break;
		for (i = nr, nr *= 4; i < nr; i++) {
			char *map = map_file(s, MAP_SHARED);

			ASSERT_NE(NULL, map);
			for (pos = 0; pos < SZ_1G; pos += s->size)
				ASSERT_TRUE(try_read(map + pos + s->size - 1));
			if (vm)
				add_memory(_metadata, vm, i * SZ_1G, map, SZ_1G, 0);
		}
	}
}

/*
 * A damaged hugepage replaced
 */

FIXTURE(healed) {
	struct subject s;
	struct vm vm;
	unsigned long rounds;
};

FIXTURE_VARIANT(healed) {
	unsigned long size;
	bool guest;
	const char *prefix;
};

FIXTURE_VARIANT_ADD(healed, process_2m) { .size = SZ_2M, .prefix = "2M_" };
FIXTURE_VARIANT_ADD(healed, process_1g) { .size = SZ_1G, .prefix = "1G_" };
FIXTURE_VARIANT_ADD(healed, guest_2m) { .size = SZ_2M, .guest = true, .prefix = "guest_2M_" };
FIXTURE_VARIANT_ADD(healed, guest_1g) { .size = SZ_1G, .guest = true, .prefix = "guest_1G_" };

FIXTURE_SETUP(healed)
{
	struct subject *s = &self->s;

	setup_shared(_metadata, variant->guest ? &self->vm : NULL, s, variant->size, 1);
	if (!s->map)
		return;
	/* Each round takes one. Those of 1 GiB are few, and ticks don't matter there. */
	self->rounds = s->size < SZ_1G ? 5 : 1;
	if (!need_more_hugepages(s, self->rounds))
		SKIP(return, "can't get %lu hugepages more", self->rounds);
	expect_arrivals(_metadata);
	prefix = variant->prefix;
	calibrate();
	if (variant->guest)
		add_memory(_metadata, &self->vm, 0, s->map, s->size, 0);
}

FIXTURE_TEARDOWN_SUBJECT(healed);

/* Lose a page of what the file has by now. */
static void lose_of_current(struct __test_metadata *_metadata, struct subject *s,
			    unsigned long nr)
{
	s->head[0] = mapped_pfn(s->map);
	ASSERT_NE(0, lose_page(_metadata, s, nr));
}

static void expect_another(struct __test_metadata *_metadata, struct subject *s)
{
	unsigned long pfn = mapped_pfn(s->map);

	ASSERT_NE(-1UL, pfn);
	ASSERT_NE(s->head[0], pfn);
}

TEST_F_TIMEOUT(healed, by_a_call, SLOW)
{
	struct subject *s = &self->s;
	unsigned long i;
	int ret;

	for (i = 0; i < self->rounds; i++) {
		lose_of_current(_metadata, s, i);
		if (variant->guest)
			ASSERT_EQ(0, guest_touches(&self->vm, s->size - psize(), psize()));
		start(i);
		ret = zero_page(s, i);
		stop();
		ASSERT_EQ(0, ret);
		expect_another(_metadata, s);
	}
	print_figure("heal", 1, least);
}

static void copy_healthy(char *to, char *from, size_t size, unsigned long lost)
{
	size_t before = lost * psize(), after = before + psize();

	copy_words(to, from, before);
	copy_words(to + after, from + after, size - after);
}

/* Nobody may use it meanwhile, and the room for the copy costs nothing here. */
TEST_F_TIMEOUT(healed, by_hand, SLOW)
{
	struct subject *s = &self->s;
	unsigned long i;
	char *copy;
	int ret;

	if (variant->guest)
		return;
	copy = alloc_shared(s->size);
	ASSERT_NE(NULL, copy);
	for (i = 0; i < self->rounds; i++) {
		lose_of_current(_metadata, s, i);
		start(i);
		copy_healthy(copy, s->map, s->size, i);
		ret = punch(s, 0, s->size);
		copy_healthy(s->map, copy, s->size, i);
		stop();
		ASSERT_EQ(0, ret);
		expect_another(_metadata, s);
	}
	print_figure("heal_by_hand", 1, least);
}

/*
 * Fault in a page as a guest would, but give up soon: KVM retries as long as another
 * thread unmaps memory, and that thread needs the only CPU.
 */
static bool guest_tries(struct vm *vm, uint64_t gpa)
{
	const struct itimerval soon = { .it_value.tv_usec = 5 }, never = {};
	uint64_t rest;

	setitimer(ITIMER_REAL, &soon, NULL);
	rest = guest_touches(vm, gpa, psize());
	setitimer(ITIMER_REAL, &never, NULL);
	return !rest;
}

static void do_nothing(int sig)
{
}

/*
 * Another process heals the hugepage, and this one, which comes first where there is
 * one CPU, uses it every 40 us. The longest gap is for how long it was not to be had: from
 * when it is unmapped until its successor is mapped, and one such interval at most. A
 * shorter one would take more time from the other process than it finds out sooner. The
 * least of some is free of ticks.
 */
TEST_F_TIMEOUT(healed, while_it_is_used, SLOW)
{
	const struct sched_param first = { .sched_priority = 1 };
	const struct timespec interval = { .tv_nsec = 40000 };
	const struct sigaction sa = { .sa_handler = do_nothing };
	struct subject *s = &self->s;
	unsigned long last, t, i, nr_uses, gap, shortest = -1UL;
	char *page = raw_page(s, s->nr_raw - 1);
	pid_t pid, ended;
	bool used;
	int status;

	ASSERT_EQ(0, sigaction(SIGALRM, &sa, NULL));
	ASSERT_EQ(0, sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &first));
	for (i = 0; i < self->rounds; i++) {
		lose_of_current(_metadata, s, i);
		pid = fork_helper();
		ASSERT_LE(0, pid);
		if (!pid)
			_exit(zero_page(s, i) ? KSFT_FAIL : KSFT_PASS);
		nr_uses = 0;
		gap = 0;
		ended = 0;
		last = now();
		/* Once more when it is over. */
		do {
			if (!ended)
				ended = waitpid(pid, &status, WNOHANG);
			nanosleep(&interval, NULL);
			used = !variant->guest || guest_tries(&self->vm, page - s->map);
			if (!used)
				continue;
			__atomic_add_fetch(page, 1, __ATOMIC_RELAXED);
			nr_uses++;
			t = now();
			gap = t - last > gap ? t - last : gap;
			last = t;
		} while (!ended || !used);
		ASSERT_EQ(pid, ended);
		ASSERT_EQ(0, status);
		ASSERT_LT(1, nr_uses);
		expect_another(_metadata, s);
		shortest = gap < shortest ? gap : shortest;
	}
	print_figure("heal_gap", 1, shortest);
}

TEST_HARNESS_MAIN
