// SPDX-License-Identifier: GPL-2.0
/*
 * Memory failure recovery of hugetlb memfds: all that counts hugepages, and what
 * happens when the kernel gets no memory for its own bookkeeping.
 *
 * A kept hugepage with lost pages leaves its pool when its life ends.  At every
 * step the pool, its nodes, reservations, mounts, cgroups and HardwareCorrupted
 * must say exactly what is there.  And where the kernel can't do its work for want
 * of memory, no lost page may come back into use, and nothing may be counted
 * twice or not at all.
 *
 * The fixtures:
 *   counted	the pool: reserved, overcommitted, shrunk and grown
 *   nodes	the pool of one of several nodes
 *   mounted, mounted_plain	mounts of hugetlbfs that promise or limit hugepages
 *   charged	cgroups
 *   demoted, demoted_free	hugepages of 1 GiB that are to become smaller ones
 *   optimized	hugepages without most of their struct pages
 *   demoted_late	hugepages of 1 GiB that wait to become smaller ones
 *   shrunk	hugepages that leave their pool together
 *   filtered	errors in free hugepages that the filter turns away
 *   stuck	a hugepage that could not be unmapped
 *   waiting	hugepages that have left the file and are not free yet
 *   pool_shrinks	errors in free hugepages that are reserved
 *   overtaken, demoted_early	free hugepages that leave their pool while they are
 *		unpoisoned, or an error is handled
 *   alone	hugepages with one lost page among the first
 *   gigantic	1 GiB hugepages from wherever they come
 *   booted	a healthy one from boot
 *   starved	errors that can't be recorded
 *   failing	allocations that fail one by one while an error is handled,
 *   ending, hole	and while a hugepage is released
 *   restored, retried	struct pages that can't be restored
 *   leaving	losses while they are restored, and the hugepage freed
 *
 * Some need the kernel's command line to say where 1 GiB hugepages come from:
 * gigantic.cma_* want hugetlb_cma=, with room for two on one node, gigantic.boot
 * wants hugepagesz=1G hugepages=2, and what is optimized at boot
 * hugetlb_free_vmemmap=on as well.  What holds CPUs needs mce-at, which HUGETLB_MFR_AT
 * leads to, as hugetlb-mfr-kernel does.  What is about failing allocations needs
 * CONFIG_FAILSLAB, CONFIG_FAIL_PAGE_ALLOC and CONFIG_FAULT_INJECTION_DEBUG_FS.
 */

#define _GNU_SOURCE
#include "mfr_util.h"
#include <glob.h>
#include <pthread.h>
#include <stdarg.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/vfs.h>

#define NODES		"/sys/devices/system/node/node"
#define CMA_AREAS	"/sys/kernel/debug/cma"
#define HARD_OFFLINE_PAGE	"/sys/devices/system/memory/hard_offline_page"

/* In a mount namespace of their own, where nobody else misses what is there. */
#define MOUNT		"/tmp"
#define GROUP		"/hugetlb-mfr"

#define MAX_NODES	64

/* The raw page of a hugepage whose struct page leads to the record of its lost pages */
#define RECORD		3

/* What tests change, in the order in which it is put right. */
static const char * const settings[] = {
	FAILSLAB "probability",
	FAILSLAB "times",
	FAILSLAB "ignore-gfp-wait",
	FAILSLAB "verbose",
	FAIL_PAGE "probability",
	FAIL_PAGE "times",
	FAIL_PAGE "space",
	FAIL_PAGE "task-filter",
	FAIL_PAGE "ignore-gfp-wait",
	FAIL_PAGE "min-order",
	FAIL_PAGE "verbose",
	HVO,
};

/*
 * State that outlives a test, as the ledger, of what only tests of this file take.
 */
static struct taken {
	char setting[ARRAY_SIZE(settings)][24];
	long node_nr[MAX_SIZES][MAX_NODES];
	char cgroup_options[CGROUP2_OPTIONS_MAX];
	bool cgroups;
	bool controllers;
	bool workers;
} *taken;

/* What the kernel's log says from a moment on. */
static struct {
	int fd;
	size_t len;
	char text[256 << 10];
} kernel_log = { .fd = -1 };

static void listen_to_kernel(void)
{
	close(kernel_log.fd);
	kernel_log.fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	lseek(kernel_log.fd, 0, SEEK_END);
	kernel_log.len = 0;
}

/* How often the kernel has said that since. */
static unsigned int nr_said(const char *format, ...)
{
	unsigned int nr = 0;
	char text[160], *p;
	ssize_t len;
	va_list ap;

	va_start(ap, format);
	vsnprintf(text, sizeof(text), format, ap);
	va_end(ap);

	for (;;) {
		len = read(kernel_log.fd, kernel_log.text + kernel_log.len,
			   sizeof(kernel_log.text) - kernel_log.len - 1);
		if (len > 0)
			kernel_log.len += len;
		else if (len == 0 || errno != EPIPE)
			break;
	}
	kernel_log.text[kernel_log.len] = '\0';

	for (p = kernel_log.text; (p = strstr(p, text)); p++)
		nr++;
	return nr;
}

/*
 * Nodes
 */

static long node_get(int node, unsigned long size, const char *name)
{
	char path[PATH_MAX];
	long val;

	snprintf(path, sizeof(path), NODES "%d/hugepages/hugepages-%lukB/%s_hugepages",
		 node, size >> 10, name);
	return read_long(path, &val) ? val : -1;
}

static bool node_set(int node, unsigned long size, long nr)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), NODES "%d/hugepages/hugepages-%lukB/nr_hugepages",
		 node, size >> 10);
	return write_long(path, nr);
}

static struct pool node_read(int node, unsigned long size)
{
	return (struct pool) {
		.nr = node_get(node, size, "nr"),
		.free = node_get(node, size, "free"),
		.surplus = node_get(node, size, "surplus"),
	};
}

static long node_mf_stat(int node, const char *name)
{
	char path[PATH_MAX];
	long val;

	snprintf(path, sizeof(path), NODES "%d/memory_failure/%s", node, name);
	return read_long(path, &val) ? val : -1;
}

/* The pools as a whole are restored.  Is it the same on each node? */
static void restore_nodes(void)
{
	unsigned int i;
	int node;

	for (i = 0; i < ledger->nr_sizes; i++)
		for (node = 0; node < MAX_NODES; node++) {
			unsigned long size = ledger->saved[i].size;
			long nr = taken->node_nr[i][node];

			if (nr >= 0 && node_get(node, size, "nr") != nr)
				node_set(node, size, nr);
		}
}

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

/* Choose the kernel's workers, or nobody, for allocations that fail. */
static void mark_workers(bool mark)
{
	DIR *dir = opendir("/proc");
	struct dirent *entry;
	char path[PATH_MAX];
	char comm[32];

	while (dir && (entry = readdir(dir))) {
		snprintf(path, sizeof(path), "/proc/%s/comm", entry->d_name);
		if (read_text(path, comm, sizeof(comm)) <= 0 ||
		    strncmp(comm, "kworker/", 8))
			continue;
		snprintf(path, sizeof(path), "/proc/%s/make-it-fail", entry->d_name);
		write_text(path, mark ? "1" : "0");
	}
	if (dir)
		closedir(dir);
	taken->workers = mark;
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
 * Mounts and cgroups
 */

static bool mount_privately(const char *type, const char *options)
{
	return !unshare(CLONE_NEWNS) &&
	       !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) &&
	       !mount("none", MOUNT, type, 0, options);
}

static bool write_group(const char *group, const char *file, const char *text)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), MOUNT "%s/%s", group, file);
	return write_text(path, text);
}

static void restore_cgroups(void)
{
	unsigned int tries;
	pid_t pid;

	if (!taken->cgroups)
		return;

	/* A killed test may take a while to leave them. */
	pid = fork();
	if (!pid) {
		if (!mount_privately("cgroup2", taken->cgroup_options))
			_exit(KSFT_FAIL);
		for (tries = 0; tries < 250; tries++) {
			rmdir(MOUNT GROUP "/child");
			if (!rmdir(MOUNT GROUP) || errno == ENOENT)
				break;
			usleep(20000);
		}
		if (!taken->controllers)
			write_group("", "cgroup.subtree_control", "-hugetlb -memory");
		_exit(KSFT_PASS);
	}
	waitpid(pid, NULL, 0);
	taken->cgroups = false;
}

static void save_taken(void)
{
	unsigned int i;
	int node;

	taken = alloc_shared(sizeof(*taken));
	if (!taken)
		ksft_exit_fail_perror("mmap");

	for (i = 0; i < ARRAY_SIZE(settings); i++)
		read_text(settings[i], taken->setting[i], sizeof(taken->setting[i]));
	for (i = 0; i < ledger->nr_sizes; i++)
		for (node = 0; node < MAX_NODES; node++)
			taken->node_nr[i][node] =
				node_get(node, ledger->saved[i].size, "nr");
	cgroup2_options(taken->cgroup_options);
}

static void restore_taken(void)
{
	char now[sizeof(taken->setting[0])];
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(settings); i++)
		if (read_text(settings[i], now, sizeof(now)) > 0 &&
		    strcmp(now, taken->setting[i]))
			write_text(settings[i], taken->setting[i]);
	if (taken->workers)
		mark_workers(false);
	restore_cgroups();
}

static void clean_up_taken(void)
{
	if (getpid() != ledger->owner)
		return;
	restore_taken();
	clean_up();
	restore_nodes();
}

static void prepare(struct __test_metadata *_metadata, struct subject *s,
		    unsigned long size, const struct injector *injector,
		    unsigned long nr_huge)
{
	/* A test that ran out of time has not cleaned up. */
	restore_taken();
	restore_nodes();
	setup_subject(_metadata, s, size, injector, nr_huge);
	listen_to_kernel();
}

static void teardown(struct __test_metadata *_metadata, struct subject *s)
{
	/* Faults first: while there are any, nothing else is certain. */
	restore_taken();
	teardown_subject(_metadata, s);
	restore_nodes();
}

/*
 * What the tests have in common
 */

/* Open a kept file with only one hugepage. */
static void open_one(struct __test_metadata *_metadata, struct subject *s)
{
	s->nr_huge = 1;
	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
}

/* Let exactly @nr hugepages be free and not reserved. */
static void leave_available(struct __test_metadata *_metadata, struct subject *s, long nr)
{
	struct pool pool = pool_read(s->size);

	pool_set(s->size, "nr_hugepages",
		 pool.nr - pool.surplus - (pool.free - pool.resv) + nr);
	s->before = pool_read(s->size);
	ASSERT_EQ(nr, s->before.free - s->before.resv);
}

static long meminfo_get(const char *name)
{
	FILE *f = fopen("/proc/meminfo", "r");
	size_t len = strlen(name);
	char line[128];
	long val = -1;

	while (f && fgets(line, sizeof(line), f))
		if (!strncmp(line, name, len) && line[len] == ':')
			val = atol(line + len + 1);
	if (f)
		fclose(f);
	return val;
}

/* The same numbers are told in several places. */
static void expect_agreement(struct __test_metadata *_metadata, struct subject *s,
			     const struct pool *pool)
{
	unsigned int i, nr_nodes = 0;
	struct pool node, sum = {};
	long kb = 0;

	for (i = 0; i < MAX_NODES; i++) {
		node = node_read(i, s->size);
		if (node.nr < 0)
			continue;
		sum.nr += node.nr;
		sum.free += node.free;
		sum.surplus += node.surplus;
		nr_nodes++;
	}
	if (nr_nodes) {
		EXPECT_EQ(pool->nr, sum.nr);
		EXPECT_EQ(pool->free, sum.free);
		EXPECT_EQ(pool->surplus, sum.surplus);
	}

	for (i = 0; i < ledger->nr_sizes; i++)
		kb += pool_get(ledger->saved[i].size, "nr_hugepages") *
		      (ledger->saved[i].size >> 10);
	EXPECT_EQ(kb, meminfo_get("Hugetlb"));

	if (default_size() != s->size)
		return;
	EXPECT_EQ(pool->nr, meminfo_get("HugePages_Total"));
	EXPECT_EQ(pool->free, meminfo_get("HugePages_Free"));
	EXPECT_EQ(pool->resv, meminfo_get("HugePages_Rsvd"));
	EXPECT_EQ(pool->surplus, meminfo_get("HugePages_Surp"));
}

/* Compare the pool with how it was before. */
static void expect_change(struct __test_metadata *_metadata, struct subject *s,
			  long nr, long free, long resv, long surplus)
{
	struct pool pool = pool_read(s->size);

	EXPECT_EQ(s->before.nr + nr, pool.nr);
	EXPECT_EQ(s->before.free + free, pool.free);
	EXPECT_EQ(s->before.resv + resv, pool.resv);
	EXPECT_EQ(s->before.surplus + surplus, pool.surplus);
	expect_agreement(_metadata, s, &pool);
}

/* How many hugepages the pool is meant to have. */
static long nr_meant(struct subject *s)
{
	struct pool pool = pool_read(s->size);
	long nr;

	if (default_size() == s->size)
		return read_long(NR_HUGEPAGES, &nr) ? nr : -1;
	return pool.nr - pool.surplus;
}

/* Is there nothing but what the test has asked for? */
static bool pool_is_ours(struct subject *s)
{
	return s->before.nr == s->before.free && !s->before.resv && !s->before.surplus;
}

/* Reserve memory in hugepages that has nothing to do with the file. */
static char *map_others(struct subject *s, unsigned long nr)
{
	char *map = mmap(NULL, nr * s->size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB |
			 __builtin_ctzl(s->size) << MAP_HUGE_SHIFT, -1, 0);

	return map == MAP_FAILED ? NULL : map;
}

static void let_go(struct __test_metadata *_metadata, struct subject *s)
{
	if (s->map)
		unmap_file(s);
	ASSERT_EQ(0, ftruncate(s->fd, 0));
}

/*
 * The kernel can't tell healthy pages from lost ones, or can't free one without
 * the other.  It says so once, and no page of the hugepage comes back: it stays the
 * compound page that it was, and can't be unpoisoned.
 */
static void expect_out_for_ever(struct __test_metadata *_metadata, struct subject *s,
				unsigned long huge, const char *why)
{
	unsigned long first = huge * s->nr_raw;
	unsigned long i, nr_loose = 0, nr_free = 0;
	unsigned int tries;

	for (tries = 0; tries < 250; tries++) {
		if (nr_said("hugepage at pfn %#lx stays out of use", s->head[huge]))
			break;
		usleep(20000);
	}
	EXPECT_EQ(1, nr_said("hugepage at pfn %#lx stays out of use", s->head[huge]));
	EXPECT_EQ(1, nr_said("hugepage at pfn %#lx stays out of use: %s",
			     s->head[huge], why));

	ASSERT_TRUE(read_kpageflags(s->head[huge], s->nr_raw, s->flags));
	for (i = 0; i < s->nr_raw; i++) {
		nr_loose += !(s->flags[i] & (i ? KPF_COMPOUND_TAIL : KPF_COMPOUND_HEAD));
		nr_free += !!(s->flags[i] & KPF_BUDDY);
	}
	EXPECT_EQ(0, nr_loose);
	EXPECT_EQ(0, nr_free);
	EXPECT_TRUE(is_poisoned(s->head[huge]));

	EXPECT_NE(0, unpoison(s->head[huge]));
	for (i = first; i < first + s->nr_raw; i++)
		if (s->lost[i])
			EXPECT_NE(0, unpoison(raw_pfn(s, i)));
	expect_corrupted(_metadata, s);
	give_up(s, huge);
}

#define NOT_ALL_KNOWN	"not all of its lost raw pages are known"
#define NOT_RESTORED	"no memory to restore its vmemmap"

/*
 * The pool
 */

FIXTURE(counted)
{
	struct subject s;
};

FIXTURE_VARIANT(counted)
{
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(counted, madvise)
{
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(counted, corrupt_pfn)
{
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(counted, mce)
{
	.injector = &by_mce,
};

FIXTURE_SETUP(counted)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	prepare(_metadata, &self->s, SZ_2M, variant->injector, 2);
}

FIXTURE_TEARDOWN_PARENT(counted)
{
	teardown(_metadata, &self->s);
}

TEST_F_TIMEOUT(counted, the_first_and_the_last_page_alone_are_left_out, SLOW)
{
	struct subject *s = &self->s;

	open_one(_metadata, s);
	lose(_metadata, s, 0);
	lose(_metadata, s, s->nr_raw - 1);
	let_go(_metadata, s);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(counted, all_free_hugepages_may_be_reserved_at_the_end, SLOW)
{
	struct subject *s = &self->s;
	char *others;

	leave_available(_metadata, s, 3);
	open_one(_metadata, s);
	lose_spots(_metadata, s);

	others = map_others(s, 2);
	ASSERT_NE(NULL, others);
	expect_change(_metadata, s, 0, -1, 2, 0);

	let_go(_metadata, s);
	expect_change(_metadata, s, -1, -1, 2, 0);
	EXPECT_EQ(NULL, map_others(s, 1));

	/* What was promised is there. */
	EXPECT_TRUE(try_write(others));
	EXPECT_TRUE(try_write(others + s->size));
	expect_change(_metadata, s, -1, -3, 0, 0);
	munmap(others, 2 * s->size);
	expect_change(_metadata, s, -1, -1, 0, 0);
	expect_all_come_back(_metadata, s, 0);
	expect_change(_metadata, s, -1, -1, 0, 0);
}

TEST_F_TIMEOUT(counted, a_dry_pool_has_nothing_in_place_of_what_was_punched, SLOW)
{
	struct subject *s = &self->s;

	leave_available(_metadata, s, 1);
	open_one(_metadata, s);
	lose(_metadata, s, 3);
	ASSERT_EQ(0, punch(s, 0, s->size));
	expect_change(_metadata, s, -1, -1, 0, 0);

	EXPECT_FALSE(try_write(s->map));
	expect_sigbus(_metadata, BUS_ADRERR, s->map, 0);
	expect_change(_metadata, s, -1, -1, 0, 0);

	ASSERT_TRUE(pool_grow(s->size, 1));
	EXPECT_TRUE(try_write(s->map));
	expect_change(_metadata, s, 0, -1, 0, 0);
	let_go(_metadata, s);
	expect_change(_metadata, s, 0, 0, 0, 0);
	expect_all_come_back(_metadata, s, 0);
}

TEST_F_TIMEOUT(counted, the_end_makes_room_for_another_surplus_hugepage, SLOW)
{
	struct subject *s = &self->s;
	char *other;

	leave_available(_metadata, s, 0);
	ASSERT_TRUE(pool_set(s->size, "nr_overcommit_hugepages",
			     s->before.surplus + 1));
	open_one(_metadata, s);
	lose(_metadata, s, s->nr_raw / 2);
	expect_change(_metadata, s, 1, 0, 0, 1);

	/* Lost pages or not, it is the one that there may be. */
	EXPECT_EQ(NULL, map_others(s, 1));
	let_go(_metadata, s);
	wait_for_release(s, 0);
	expect_change(_metadata, s, 0, 0, 0, 0);

	other = map_others(s, 1);
	ASSERT_NE(NULL, other);
	expect_change(_metadata, s, 1, 1, 1, 1);
	EXPECT_EQ(NULL, map_others(s, 1));
	EXPECT_TRUE(try_write(other));
	expect_change(_metadata, s, 1, 0, 0, 1);
	munmap(other, s->size);
	expect_change(_metadata, s, 0, 0, 0, 0);
	expect_all_come_back(_metadata, s, 0);
}

TEST_F_TIMEOUT(counted, a_healed_surplus_hugepage_stays_one, SLOW)
{
	struct subject *s = &self->s;
	char *other;

	leave_available(_metadata, s, 0);
	ASSERT_TRUE(pool_set(s->size, "nr_overcommit_hugepages",
			     s->before.surplus + 1));
	open_one(_metadata, s);
	expect_change(_metadata, s, 1, 0, 0, 1);
	lose(_metadata, s, 9);
	EXPECT_EQ(0, zero_page(s, 9));
	expect_replaced(_metadata, s);
	expect_change(_metadata, s, 1, 0, 0, 1);
	EXPECT_EQ(NULL, map_others(s, 1));

	let_go(_metadata, s);
	expect_change(_metadata, s, 0, 0, 0, 0);
	other = map_others(s, 1);
	ASSERT_NE(NULL, other);
	munmap(other, s->size);
	expect_change(_metadata, s, 0, 0, 0, 0);
}

TEST_F_TIMEOUT(counted, healing_leaves_what_its_file_reserves, SLOW)
{
	struct subject *s = &self->s;
	char *map;

	leave_available(_metadata, s, 2);
	open_one(_metadata, s);
	ASSERT_EQ(0, ftruncate(s->fd, 2 * s->size));
	map = mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd, s->size);
	ASSERT_NE(MAP_FAILED, map);
	expect_change(_metadata, s, 0, -1, 1, 0);
	lose(_metadata, s, 9);
	EXPECT_EQ(0, zero_page(s, 9));
	expect_replaced(_metadata, s);
	expect_change(_metadata, s, 0, -1, 1, 0);

	EXPECT_TRUE(try_write(map));
	expect_change(_metadata, s, 0, -2, 0, 0);
	munmap(map, s->size);
	let_go(_metadata, s);
	expect_change(_metadata, s, 0, 0, 0, 0);
}

/* Both hugepages of the file are all that there is. */
static void take_whole_pool(struct __test_metadata *_metadata, struct subject *s)
{
	leave_available(_metadata, s, 2);
	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	lose(_metadata, s, 3);
	lose(_metadata, s, s->nr_raw + 5);
}

TEST_F_TIMEOUT(counted, the_pool_grows_and_shrinks_beside_lost_pages, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw;

	if (!pool_is_ours(s))
		SKIP(return, "others use hugepages");
	take_whole_pool(_metadata, s);
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 5));
	expect_change(_metadata, s, 3, 1, 0, 0);
	lose(_metadata, s, 4);

	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 3));
	expect_change(_metadata, s, 1, -1, 0, 0);
	lose(_metadata, s, nr + 4);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 1));
	EXPECT_EQ(0, nr_changed_pages(s));

	ASSERT_EQ(0, punch(s, 0, s->size));
	expect_change(_metadata, s, 0, -1, 0, 0);
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 4));
	expect_change(_metadata, s, 2, 1, 0, 0);
	let_go(_metadata, s);
	expect_change(_metadata, s, 1, 1, 0, 0);
	expect_all_come_back(_metadata, s, 0);
	expect_all_come_back(_metadata, s, 1);
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 0));
	expect_change(_metadata, s, -2, -2, 0, 0);
}

TEST_F_TIMEOUT(counted, a_pool_shrunk_to_nothing_goes_with_its_last_hugepages, SLOW)
{
	struct subject *s = &self->s;

	if (!pool_is_ours(s))
		SKIP(return, "others use hugepages");
	take_whole_pool(_metadata, s);
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 0));
	/* In use, and too many by now. */
	expect_change(_metadata, s, 0, -2, 0, 2);
	EXPECT_EQ(0, nr_meant(s));
	lose(_metadata, s, 4);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 1));
	EXPECT_EQ(0, nr_changed_pages(s));

	ASSERT_EQ(0, punch(s, 0, s->size));
	expect_change(_metadata, s, -1, -2, 0, 1);
	EXPECT_EQ(0, nr_meant(s));
	let_go(_metadata, s);
	expect_change(_metadata, s, -2, -2, 0, 0);
	EXPECT_EQ(0, nr_meant(s));
	expect_all_come_back(_metadata, s, 0);
	expect_all_come_back(_metadata, s, 1);
	expect_change(_metadata, s, -2, -2, 0, 0);
}

TEST_F_TIMEOUT(counted, a_pool_grown_again_counts_its_hugepages_as_before, SLOW)
{
	struct subject *s = &self->s;

	if (!pool_is_ours(s))
		SKIP(return, "others use hugepages");
	take_whole_pool(_metadata, s);
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 0));
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 1));
	expect_change(_metadata, s, 0, -2, 0, 1);
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 3));
	expect_change(_metadata, s, 1, -1, 0, 0);
	EXPECT_EQ(3, nr_meant(s));

	let_go(_metadata, s);
	expect_change(_metadata, s, -1, -1, 0, 0);
	EXPECT_EQ(1, nr_meant(s));
	expect_all_come_back(_metadata, s, 0);
	expect_all_come_back(_metadata, s, 1);
}

/*
 * The pool of one of several nodes
 */

FIXTURE(nodes)
{
	struct subject s;
	int near;			/* the first node with memory, and another */
	int far;
	struct pool near_before;
	struct pool far_before;
};

FIXTURE_VARIANT(nodes)
{
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(nodes, madvise)
{
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(nodes, corrupt_pfn)
{
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(nodes, mce)
{
	.injector = &by_mce,
};

/* Take hugepages from this node only. */
static bool bind_to(int node)
{
	unsigned long mask = 1UL << node;

	return !syscall(SYS_set_mempolicy, MPOL_BIND, &mask, MAX_NODES);
}

FIXTURE_SETUP(nodes)
{
	struct subject *s = &self->s;
	struct pool near, far;
	int node;

	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");

	self->near = -1;
	self->far = -1;
	for (node = 0; node < MAX_NODES - 1; node++) {
		if (node_get(node, SZ_2M, "nr") < 0)
			continue;
		if (self->near < 0)
			self->near = node;
		else
			self->far = node;
	}
	if (self->far < 0)
		SKIP(return, "needs two nodes with memory");

	prepare(_metadata, s, SZ_2M, variant->injector, 2);
	if (_metadata->exit_code)
		return;

	/* One free hugepage on each of the two. */
	leave_available(_metadata, s, 0);
	near = node_read(self->near, s->size);
	far = node_read(self->far, s->size);
	ASSERT_TRUE(node_set(self->near, s->size, near.nr - near.surplus + 1));
	ASSERT_TRUE(node_set(self->far, s->size, far.nr - far.surplus + 1));
	s->before = pool_read(s->size);
	ASSERT_EQ(2, s->before.free - s->before.resv);
	self->near_before = node_read(self->near, s->size);
	self->far_before = node_read(self->far, s->size);
	ASSERT_LE(1, self->far_before.free);
	ASSERT_TRUE(bind_to(self->far));
}

FIXTURE_TEARDOWN_PARENT(nodes)
{
	teardown(_metadata, &self->s);
}

static void expect_node(struct __test_metadata *_metadata, struct subject *s, int node,
			const struct pool *before, long nr, long free, long surplus)
{
	struct pool now = node_read(node, s->size);

	EXPECT_EQ(before->nr + nr, now.nr);
	EXPECT_EQ(before->free + free, now.free);
	EXPECT_EQ(before->surplus + surplus, now.surplus);
}

#define expect_near(...) \
	expect_node(_metadata, &self->s, self->near, &self->near_before, __VA_ARGS__)
#define expect_far(...) \
	expect_node(_metadata, &self->s, self->far, &self->far_before, __VA_ARGS__)

TEST_F_TIMEOUT(nodes, the_node_of_the_hugepage_counts_it_and_no_other, SLOW)
{
	static const char * const names[] = {
		"total", "delayed", "ignored", "failed", "recovered",
	};
	struct subject *s = &self->s;
	long near[ARRAY_SIZE(names)], far[ARRAY_SIZE(names)];
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(names); i++) {
		near[i] = node_mf_stat(self->near, names[i]);
		far[i] = node_mf_stat(self->far, names[i]);
		ASSERT_LE(0, near[i]);
		ASSERT_LE(0, far[i]);
	}

	open_one(_metadata, s);
	expect_far(0, -1, 0);
	lose_spots(_metadata, s);
	expect_far(0, -1, 0);
	expect_near(0, 0, 0);
	for (i = 0; i < ARRAY_SIZE(names); i++) {
		EXPECT_EQ(near[i], node_mf_stat(self->near, names[i]));
		EXPECT_EQ(far[i] + (i < 2 ? NR_SPOTS : 0),
			  node_mf_stat(self->far, names[i]));
	}

	let_go(_metadata, s);
	expect_far(-1, -1, 0);
	expect_near(0, 0, 0);
	expect_change(_metadata, s, -1, -1, 0, 0);
	/* The end of it is no event. */
	EXPECT_EQ(far[0] + NR_SPOTS, node_mf_stat(self->far, names[0]));
	EXPECT_EQ(near[0], node_mf_stat(self->near, names[0]));
	expect_all_come_back(_metadata, s, 0);
	expect_far(-1, -1, 0);
	expect_near(0, 0, 0);
}

TEST_F_TIMEOUT(nodes, a_surplus_hugepage_elsewhere_stays_one, SLOW)
{
	struct subject *s = &self->s;
	long meant = nr_meant(s);
	char *other;

	open_one(_metadata, s);
	lose(_metadata, s, 7);

	/* Another one is in use, and its node is told to have one less. */
	ASSERT_TRUE(bind_to(self->near));
	other = map_others(s, 1);
	ASSERT_NE(NULL, other);
	ASSERT_TRUE(try_write(other));
	ASSERT_TRUE(node_set(self->near, s->size, self->near_before.nr - 1));
	expect_near(0, -1, 1);
	expect_far(0, -1, 0);
	EXPECT_EQ(meant - 1, nr_meant(s));

	let_go(_metadata, s);
	expect_near(0, -1, 1);
	expect_far(-1, -1, 0);
	expect_change(_metadata, s, -1, -2, 0, 1);
	EXPECT_EQ(meant - 2, nr_meant(s));

	munmap(other, s->size);
	expect_near(-1, -1, 0);
	expect_change(_metadata, s, -2, -2, 0, 0);
	EXPECT_EQ(meant - 2, nr_meant(s));
	expect_all_come_back(_metadata, s, 0);
}

TEST_F_TIMEOUT(nodes, where_its_node_has_a_surplus_hugepage_it_goes_as_that, SLOW)
{
	struct subject *s = &self->s;
	long meant = nr_meant(s);

	/* One of the pool and one more, both from the same node. */
	ASSERT_TRUE(node_set(self->near, s->size, self->near_before.nr - 1));
	expect_near(-1, -1, 0);
	ASSERT_TRUE(pool_set(s->size, "nr_overcommit_hugepages",
			     s->before.surplus + 1));
	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	expect_far(1, -1, 1);
	expect_near(-1, -1, 0);

	lose(_metadata, s, 0);
	ASSERT_EQ(0, punch(s, 0, s->size));
	expect_far(0, -1, 0);
	EXPECT_EQ(meant - 1, nr_meant(s));

	/* So the other one is of the pool now. */
	let_go(_metadata, s);
	expect_far(0, 0, 0);
	expect_change(_metadata, s, -1, -1, 0, 0);
	EXPECT_EQ(meant - 1, nr_meant(s));
	expect_all_come_back(_metadata, s, 0);
	expect_far(0, 0, 0);
}

/* With nothing free on @node beside what the file has. */
static void leave_none_on(struct __test_metadata *_metadata, struct subject *s, int node)
{
	struct pool pool = node_read(node, s->size);

	node_set(node, s->size, pool.nr - pool.surplus - pool.free);
	ASSERT_EQ(0, node_get(node, s->size, "free"));
}

/* Heal it, by a process that would have its own memory from the other node. */
static void heal_from_near(struct __test_metadata *_metadata, struct subject *s, int near)
{
	lose_spots(_metadata, s);
	ASSERT_TRUE(bind_to(near));
	zero_spots(_metadata, s);
	expect_replaced(_metadata, s);
}

TEST_F_TIMEOUT(nodes, healing_takes_one_of_the_same_node, SLOW)
{
	struct subject *s = &self->s;

	open_one(_metadata, s);
	ASSERT_TRUE(node_set(self->far, s->size, self->far_before.nr + 1));
	expect_far(1, 0, 0);
	heal_from_near(_metadata, s, self->near);
	expect_far(0, -1, 0);
	expect_near(0, 0, 0);
	let_go(_metadata, s);
	expect_far(0, 0, 0);
	expect_near(0, 0, 0);
}

TEST_F_TIMEOUT(nodes, healing_takes_one_of_another_node, SLOW)
{
	struct subject *s = &self->s;

	open_one(_metadata, s);
	leave_none_on(_metadata, s, self->far);
	self->far_before = node_read(self->far, s->size);
	heal_from_near(_metadata, s, self->near);
	expect_far(-1, 0, 0);
	expect_near(0, -1, 0);
	let_go(_metadata, s);
	expect_far(-1, 0, 0);
	expect_near(0, 0, 0);
}

TEST_F_TIMEOUT(nodes, healing_makes_one_on_the_same_node, SLOW)
{
	struct subject *s = &self->s;

	open_one(_metadata, s);
	leave_none_on(_metadata, s, self->far);
	leave_none_on(_metadata, s, self->near);
	self->far_before = node_read(self->far, s->size);
	self->near_before = node_read(self->near, s->size);
	heal_from_near(_metadata, s, self->near);
	expect_far(0, 0, 0);
	expect_near(0, 0, 0);
	let_go(_metadata, s);
	expect_far(0, 1, 0);
	expect_near(0, 0, 0);
}

/*
 * Mounts of hugetlbfs
 */

FIXTURE(mounted)
{
	struct subject s;
};

FIXTURE_VARIANT(mounted)
{
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(mounted, madvise)
{
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(mounted, corrupt_pfn)
{
	.injector = &by_pfn,
};

FIXTURE_SETUP(mounted)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	prepare(_metadata, &self->s, SZ_2M, variant->injector, 1);
}

FIXTURE_TEARDOWN_PARENT(mounted)
{
	teardown(_metadata, &self->s);
}

static int open_on_mount(void)
{
	return open(MOUNT "/file", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
}

/* How many hugepages the mount could still have. */
static long nr_left_on_mount(void)
{
	struct statfs st;

	return statfs(MOUNT, &st) ? -1 : st.f_bfree;
}

TEST_F_TIMEOUT(mounted, what_a_mount_is_promised_outlives_a_lost_hugepage, SLOW)
{
	struct subject *s = &self->s;
	char *map;
	int fd;

	leave_available(_metadata, s, 3);
	ASSERT_TRUE(mount_privately("hugetlbfs", "pagesize=2M,min_size=4M"));
	expect_change(_metadata, s, 0, 0, 2, 0);

	open_one(_metadata, s);
	lose_spots(_metadata, s);
	let_go(_metadata, s);
	expect_change(_metadata, s, -1, -1, 2, 0);
	EXPECT_EQ(NULL, map_others(s, 1));

	/* The promise is kept, and more than that isn't to be had. */
	fd = open_on_mount();
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, 3 * s->size));
	EXPECT_EQ(MAP_FAILED, mmap(NULL, 3 * s->size, PROT_READ | PROT_WRITE,
				   MAP_SHARED, fd, 0));
	expect_change(_metadata, s, -1, -1, 2, 0);
	map = mmap(NULL, 2 * s->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	expect_change(_metadata, s, -1, -1, 2, 0);
	EXPECT_TRUE(try_write(map));
	EXPECT_TRUE(try_write(map + s->size));
	expect_change(_metadata, s, -1, -3, 0, 0);

	munmap(map, 2 * s->size);
	EXPECT_EQ(0, ftruncate(fd, 0));
	expect_change(_metadata, s, -1, -1, 2, 0);
	close(fd);
	EXPECT_EQ(0, umount(MOUNT));
	expect_change(_metadata, s, -1, -1, 0, 0);
	expect_all_come_back(_metadata, s, 0);
}

TEST_F_TIMEOUT(mounted, the_limit_of_a_mount_has_nothing_to_do_with_it, SLOW)
{
	struct subject *s = &self->s;
	char *map;
	int fd;

	leave_available(_metadata, s, 3);
	ASSERT_TRUE(mount_privately("hugetlbfs", "pagesize=2M,size=2M"));
	EXPECT_EQ(1, nr_left_on_mount());
	open_one(_metadata, s);
	lose_spots(_metadata, s);
	EXPECT_EQ(1, nr_left_on_mount());
	let_go(_metadata, s);
	EXPECT_EQ(1, nr_left_on_mount());

	fd = open_on_mount();
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, 2 * s->size));
	EXPECT_EQ(MAP_FAILED, mmap(NULL, 2 * s->size, PROT_READ | PROT_WRITE,
				   MAP_SHARED, fd, 0));
	map = mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	EXPECT_TRUE(try_write(map));
	EXPECT_EQ(0, nr_left_on_mount());
	expect_change(_metadata, s, -1, -2, 0, 0);
	munmap(map, s->size);
	EXPECT_EQ(0, ftruncate(fd, 0));
	EXPECT_EQ(1, nr_left_on_mount());
	close(fd);
	expect_all_come_back(_metadata, s, 0);
	expect_change(_metadata, s, -1, -1, 0, 0);
}

/* Files of mounts are plain; that they are is not up to the flag. */
FIXTURE(mounted_plain)
{
	struct subject s;
};

FIXTURE_VARIANT(mounted_plain)
{
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(mounted_plain, madvise)
{
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(mounted_plain, corrupt_pfn)
{
	.injector = &by_pfn,
};

FIXTURE_SETUP(mounted_plain)
{
	prepare(_metadata, &self->s, SZ_2M, variant->injector, 1);
}

FIXTURE_TEARDOWN_PARENT(mounted_plain)
{
	teardown(_metadata, &self->s);
}

TEST_F_TIMEOUT(mounted_plain, a_poisoned_hugepage_is_in_use_until_unpoisoned, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;

	leave_available(_metadata, s, 2);
	ASSERT_TRUE(mount_privately("hugetlbfs", "pagesize=2M,min_size=2M,size=4M"));
	expect_change(_metadata, s, 0, 0, 1, 0);
	EXPECT_EQ(2, nr_left_on_mount());

	s->fd = open_on_mount();
	ASSERT_LE(0, s->fd);
	fill_subject(_metadata, s);
	expect_change(_metadata, s, 0, -1, 0, 0);
	EXPECT_EQ(1, nr_left_on_mount());
	lose_hugepage(_metadata, s, nr);
	EXPECT_FALSE(is_mapped(s->map));

	let_go(_metadata, s);
	expect_change(_metadata, s, 0, -1, 0, 0);
	EXPECT_EQ(1, nr_left_on_mount());
	expect_corrupted(_metadata, s);
	EXPECT_NE(0, unpoison(raw_pfn(s, nr)));

	EXPECT_EQ(0, unpoison(s->head[0]));
	s->nr_lost = 0;
	s->lost[nr] = false;
	expect_corrupted(_metadata, s);
	expect_change(_metadata, s, 0, 0, 1, 0);
	EXPECT_EQ(2, nr_left_on_mount());
	close(s->fd);
	EXPECT_EQ(0, umount(MOUNT));
	expect_change(_metadata, s, 0, 0, 0, 0);
}

/*
 * Cgroups
 */

FIXTURE(charged)
{
	struct subject s;
};

FIXTURE_VARIANT(charged)
{
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(charged, madvise)
{
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(charged, corrupt_pfn)
{
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(charged, mce)
{
	.injector = &by_mce,
};

#define CHILD	GROUP "/child"

/* What a group is charged for, in hugepages; -1 if it doesn't say. */
static long charge_get(struct subject *s, const char *group, const char *name)
{
	char path[PATH_MAX];
	long val;

	snprintf(path, sizeof(path), MOUNT "%s/hugetlb.%luMB.%s", group, s->size >> 20,
		 name);
	return read_long(path, &val) ? val / (long)s->size : -1;
}

/* The same as a sum over the nodes. */
static long charge_of_nodes(struct subject *s, const char *group)
{
	char path[PATH_MAX], stat[MAX_NODES * 32], *p;
	long sum = 0;

	snprintf(path, sizeof(path), MOUNT "%s/hugetlb.%luMB.numa_stat", group,
		 s->size >> 20);
	if (read_text(path, stat, sizeof(stat)) <= 0)
		return -1;
	for (p = stat; (p = strchr(p, 'N')); p++)
		sum += atol(strchr(p, '=') + 1);
	return sum / (long)s->size;
}

/* Older kernels don't tell hugepages from other memory, of which there is little. */
static long memory_charge_get(struct subject *s, const char *group)
{
	char path[PATH_MAX], line[80];
	long val = -1;
	FILE *f;

	snprintf(path, sizeof(path), MOUNT "%s/memory.stat", group);
	f = fopen(path, "r");
	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "hugetlb %ld", &val) == 1)
			break;
	if (f)
		fclose(f);
	if (val < 0) {
		snprintf(path, sizeof(path), MOUNT "%s/memory.current", group);
		read_long(path, &val);
	}
	return val < 0 ? -1 : val / (long)s->size;
}

/*
 * @nr hugepages and @reserved reservations are charged, to both controllers.  The
 * statistics of memory are collected every two seconds.
 */
static void expect_charges(struct __test_metadata *_metadata, struct subject *s,
			   const char *group, long nr, long reserved)
{
	char path[PATH_MAX];
	unsigned int tries;
	long current;

	EXPECT_EQ(nr, charge_get(s, group, "current"));
	EXPECT_EQ(nr, charge_of_nodes(s, group));
	EXPECT_EQ(reserved, charge_get(s, group, "rsvd.current"));

	/* A little memory is charged that is not in hugepages. */
	snprintf(path, sizeof(path), MOUNT "%s/memory.current", group);
	ASSERT_TRUE(read_long(path, &current));
	EXPECT_EQ(nr, current / (long)s->size);

	for (tries = 0; tries < 250 && memory_charge_get(s, group) != nr; tries++)
		usleep(20000);
	EXPECT_EQ(nr, memory_charge_get(s, group));
}

FIXTURE_SETUP(charged)
{
	char controllers[256] = "";

	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	/* Groups are charged for up to 64 pages in advance. */
	if (64 * psize() >= SZ_2M)
		SKIP(return, "needs smaller base pages");
	prepare(_metadata, &self->s, SZ_2M, variant->injector, 2);
	if (_metadata->exit_code)
		return;

	taken->cgroups = true;
	if (!mount_privately("cgroup2", CGROUP2_HUGETLB))
		SKIP(return, "needs cgroup2, with " CGROUP2_HUGETLB);
	read_text(MOUNT "/cgroup.controllers", controllers, sizeof(controllers));
	if (!strstr(controllers, "hugetlb") || !strstr(controllers, "memory"))
		SKIP(return, "needs the controllers hugetlb and memory");
	read_text(MOUNT "/cgroup.subtree_control", controllers, sizeof(controllers));
	taken->controllers = strstr(controllers, "hugetlb") &&
			     strstr(controllers, "memory");
	ASSERT_TRUE(write_group("", "cgroup.subtree_control", "+hugetlb +memory"));
	ASSERT_EQ(0, mkdir(MOUNT GROUP, 0700));
	ASSERT_TRUE(write_group(GROUP, "cgroup.subtree_control", "+hugetlb +memory"));
	ASSERT_EQ(0, mkdir(MOUNT CHILD, 0700));
	expect_charges(_metadata, &self->s, CHILD, 0, 0);
	expect_charges(_metadata, &self->s, GROUP, 0, 0);
}

FIXTURE_TEARDOWN_PARENT(charged)
{
	teardown(_metadata, &self->s);
}

/* fork() a process that lives in the inner group. */
static pid_t fork_in_group(struct __test_metadata *_metadata)
{
	pid_t pid = fork_helper();

	ASSERT_LE(0, pid);
	if (!pid)
		ASSERT_TRUE(write_group(CHILD, "cgroup.procs", "0"));
	return pid;
}

TEST_F_TIMEOUT(charged, charges_end_with_the_hugepage, SLOW)
{
	struct subject *s = &self->s;
	pid_t pid = fork_in_group(_metadata);

	if (!pid) {
		open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
		expect_charges(_metadata, s, CHILD, 2, 2);
		lose_spots(_metadata, s);
		expect_charges(_metadata, s, CHILD, 2, 2);
		ASSERT_EQ(0, punch(s, 0, s->size));
		expect_charges(_metadata, s, CHILD, 1, 1);
		lose(_metadata, s, s->nr_raw + 1);
		let_go(_metadata, s);
		expect_charges(_metadata, s, CHILD, 0, 0);
		_exit(KSFT_PASS);
	}
	wait_for_child(_metadata, pid);
	expect_charges(_metadata, s, CHILD, 0, 0);
	expect_charges(_metadata, s, GROUP, 0, 0);
	expect_change(_metadata, s, -2, -2, 0, 0);
	expect_all_come_back(_metadata, s, 0);
	expect_all_come_back(_metadata, s, 1);
	expect_charges(_metadata, s, CHILD, 0, 0);
}

TEST_F_TIMEOUT(charged, a_group_at_its_limit_gets_a_fresh_hugepage_for_a_lost_one, SLOW)
{
	struct subject *s = &self->s;
	pid_t pid;

	ASSERT_TRUE(write_group(CHILD, "hugetlb.2MB.max", "2M"));
	pid = fork_in_group(_metadata);
	if (!pid) {
		open_one(_metadata, s);
		lose(_metadata, s, 9);
		ASSERT_EQ(0, punch(s, 0, s->size));
		expect_charges(_metadata, s, CHILD, 0, 0);
		EXPECT_TRUE(try_write(s->map));
		/* Nothing was reserved for this one, but it counts there, too. */
		expect_charges(_metadata, s, CHILD, 1, 1);
		let_go(_metadata, s);
		_exit(KSFT_PASS);
	}
	wait_for_child(_metadata, pid);
	expect_charges(_metadata, s, CHILD, 0, 0);
	expect_change(_metadata, s, -1, -1, 0, 0);
	expect_all_come_back(_metadata, s, 0);
}

/* Let a process of the group fill the file and lose pages, and be gone. */
static void fill_in_group(struct __test_metadata *_metadata, struct subject *s)
{
	pid_t pid;

	s->nr_huge = 1;
	s->fd = create_memfd(s->size, MFD_MF_KEEP_UE_MAPPED);
	ASSERT_LE(0, s->fd);
	pid = fork_in_group(_metadata);
	if (!pid) {
		fill_subject(_metadata, s);
		lose_spots(_metadata, s);
		unmap_file(s);
		_exit(KSFT_PASS);
	}
	wait_for_child(_metadata, pid);
	expect_charges(_metadata, s, CHILD, 1, 1);
	expect_charges(_metadata, s, GROUP, 1, 1);
}

TEST_F_TIMEOUT(charged, charges_wait_for_the_end_when_all_processes_are_gone, SLOW)
{
	struct subject *s = &self->s;

	fill_in_group(_metadata, s);
	let_go(_metadata, s);
	expect_charges(_metadata, s, CHILD, 0, 0);
	expect_charges(_metadata, s, GROUP, 0, 0);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(charged, a_removed_group_leaves_its_charges_to_the_outer_one, SLOW)
{
	struct subject *s = &self->s;

	fill_in_group(_metadata, s);
	ASSERT_EQ(0, rmdir(MOUNT CHILD));
	/* A worker buries the group. */
	usleep(100000);
	expect_charges(_metadata, s, GROUP, 1, 1);
	EXPECT_EQ(0, close(s->fd));
	expect_charges(_metadata, s, GROUP, 0, 0);
	expect_released(_metadata, s);
	EXPECT_EQ(0, rmdir(MOUNT GROUP));
}

TEST_F_TIMEOUT(charged, healing_by_others_changes_no_charge, SLOW)
{
	struct subject *s = &self->s;

	fill_in_group(_metadata, s);
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
	zero_spots(_metadata, s);
	expect_replaced(_metadata, s);
	expect_charges(_metadata, s, CHILD, 1, 1);
	expect_charges(_metadata, s, GROUP, 1, 1);
	let_go(_metadata, s);
	expect_charges(_metadata, s, CHILD, 0, 0);
	expect_charges(_metadata, s, GROUP, 0, 0);
	expect_change(_metadata, s, -1, -1, 0, 0);
}

/* By one that has to be made, for the pool is dry. */
TEST_F_TIMEOUT(charged, a_group_at_its_limit_heals, SLOW)
{
	struct subject *s = &self->s;
	pid_t pid;

	leave_available(_metadata, s, 1);
	ASSERT_TRUE(write_group(CHILD, "hugetlb.2MB.max", "2M"));
	ASSERT_TRUE(write_group(CHILD, "hugetlb.2MB.rsvd.max", "2M"));
	pid = fork_in_group(_metadata);
	if (!pid) {
		open_one(_metadata, s);
		lose(_metadata, s, 9);
		EXPECT_EQ(0, zero_page(s, 9));
		expect_replaced(_metadata, s);
		expect_charges(_metadata, s, CHILD, 1, 1);
		let_go(_metadata, s);
		_exit(KSFT_PASS);
	}
	wait_for_child(_metadata, pid);
	expect_charges(_metadata, s, CHILD, 0, 0);
	expect_change(_metadata, s, 0, 0, 0, 0);
}

TEST_F_TIMEOUT(charged, filters_know_the_group_of_a_hugepage, SLOW)
{
	struct subject *s = &self->s;
	struct stat group, child;
	pid_t pid;

	ASSERT_EQ(0, stat(MOUNT GROUP, &group));
	ASSERT_EQ(0, stat(MOUNT CHILD, &child));
	pid = fork_in_group(_metadata);
	if (!pid) {
		open_one(_metadata, s);
		ASSERT_TRUE(write_long(DEBUGFS_FILTER_MEMCG, group.st_ino));
		ASSERT_TRUE(write_long(DEBUGFS_FILTER_ENABLE, 1));
		expect_turned_away(_metadata, s, 3);

		ASSERT_TRUE(write_long(DEBUGFS_FILTER_MEMCG, child.st_ino));
		ASSERT_TRUE(write_long(DEBUGFS_FILTER_ENABLE, 1));
		lose(_metadata, s, 3);
		restore_filter();
		EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
		let_go(_metadata, s);
		_exit(KSFT_PASS);
	}
	wait_for_child(_metadata, pid);
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

FIXTURE_VARIANT(demoted)
{
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(demoted, madvise)
{
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(demoted, corrupt_pfn)
{
	.injector = &by_pfn,
};

/* With one hugepage of 1 GiB to be had. */
static void setup_demotion(struct __test_metadata *_metadata, struct subject *s,
			   const struct injector *injector, struct pool *small)
{
	prepare(_metadata, s, SZ_1G, injector, 1);
	if (_metadata->exit_code)
		return;
	leave_available(_metadata, s, 1);
	if (!demote_to(SZ_1G, SZ_2M))
		SKIP(return, "1 GiB hugepages can't be demoted to 2 MiB");
	*small = pool_read(SZ_2M);
}

static void expect_small(struct __test_metadata *_metadata, const struct pool *before,
			 long more)
{
	struct pool small = pool_read(SZ_2M);

	EXPECT_EQ(before->nr + more, small.nr);
	EXPECT_EQ(before->free + more, small.free);
	EXPECT_EQ(before->resv, small.resv);
	EXPECT_EQ(before->surplus, small.surplus);
}

FIXTURE_SETUP(demoted)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_demotion(_metadata, &self->s, variant->injector, &self->small);
}

FIXTURE_TEARDOWN_PARENT(demoted)
{
	teardown(_metadata, &self->s);
}

TEST_F_TIMEOUT(demoted, neither_in_use_nor_after_its_end, 2 * SLOW)
{
	struct subject *s = &self->s;

	open_one(_metadata, s);
	lose_spots(_metadata, s);
	write_text(pool_path(SZ_1G, "demote"), "1");
	expect_small(_metadata, &self->small, 0);
	expect_change(_metadata, s, 0, -1, 0, 0);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));

	let_go(_metadata, s);
	expect_change(_metadata, s, -1, -1, 0, 0);
	write_text(pool_path(SZ_1G, "demote"), "1");
	expect_small(_metadata, &self->small, 0);
	expect_released(_metadata, s);
}

/* Find out where the only hugepage that can be had is. */
static void find_free_hugepage(struct __test_metadata *_metadata, struct subject *s)
{
	int fd;

	fd = create_memfd(s->size, 0);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, ftruncate(fd, s->size));
	s->fd = fd;
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
	ASSERT_TRUE(try_write(s->map));
	s->head[0] = mapped_pfn(s->map);
	ASSERT_NE(-1UL, s->head[0]);
	ASSERT_EQ(0, punch(s, 0, s->size));
	unmap_file(s);
	close(fd);
}

/*
 * Make a hugepage of a plain file free, reserve it, and lose pages of it.  It can't
 * be dissolved as long as somebody counts on it, so it stays where it is.
 */
static void poison_free_pages(struct __test_metadata *_metadata, struct subject *s,
			      const unsigned long *pages, unsigned int nr_pages)
{
	unsigned int i;

	leave_available(_metadata, s, 1);
	find_free_hugepage(_metadata, s);
	s->map = map_others(s, 1);
	ASSERT_NE(NULL, s->map);
	expect_change(_metadata, s, 0, 0, 1, 0);
	for (i = 0; i < nr_pages; i++) {
		note_lost(_metadata, s, pages[i]);
		/* Handled it isn't. */
		EXPECT_NE(0, inject(s, pages[i]));
		expect_corrupted(_metadata, s);
	}
	EXPECT_TRUE(is_poisoned(s->head[0]));
	unmap_file(s);
	expect_change(_metadata, s, 0, 0, 0, 0);
}

static void poison_free_hugepage(struct __test_metadata *_metadata, struct subject *s,
				 unsigned int first_spot, unsigned int nr_spots)
{
	unsigned long pages[NR_SPOTS];
	unsigned int i;

	for (i = 0; i < nr_spots; i++)
		pages[i] = spot(s, first_spot + i);
	poison_free_pages(_metadata, s, pages, nr_spots);
}

/* Not of the flag's making, and no different without it. */
FIXTURE(demoted_free)
{
	struct subject s;
	struct pool small;
};

FIXTURE_SETUP(demoted_free)
{
	setup_demotion(_metadata, &self->s, &by_pfn, &self->small);
}

FIXTURE_TEARDOWN_PARENT(demoted_free)
{
	teardown(_metadata, &self->s);
}

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
 * Hugepages without most of their struct pages
 */

FIXTURE(optimized)
{
	struct subject s;
	long memmap;			/* pages of struct pages, without hugepages */
	long memmap_less;		/* what the hugepages of the test save */
};

FIXTURE_VARIANT(optimized)
{
	const struct injector *injector;
	bool hvo;
};

FIXTURE_VARIANT_ADD(optimized, on_madvise)
{
	.injector = &by_madvise,
	.hvo = true,
};

FIXTURE_VARIANT_ADD(optimized, on_corrupt_pfn)
{
	.injector = &by_pfn,
	.hvo = true,
};

FIXTURE_VARIANT_ADD(optimized, on_mce)
{
	.injector = &by_mce,
	.hvo = true,
};

FIXTURE_VARIANT_ADD(optimized, off_madvise)
{
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(optimized, off_corrupt_pfn)
{
	.injector = &by_pfn,
};

/* Pages that hold struct pages. */
static long nr_memmap(void)
{
	FILE *f = fopen("/proc/vmstat", "r");
	long val, nr = 0;
	char line[80];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "nr_memmap_pages %ld", &val) == 1 ||
		    sscanf(line, "nr_memmap_boot_pages %ld", &val) == 1)
			nr += val;
	if (f)
		fclose(f);
	return nr;
}

/* With fresh hugepages, made with the optimization or without. */
static void setup_optimized(struct __test_metadata *_metadata, struct subject *s,
			    bool hvo, long *memmap, long *memmap_less)
{
	unsigned long nr_huge = s->nr_huge;

	leave_available(_metadata, s, 0);
	if (!write_text(HVO, hvo ? "1" : "0") && hvo)
		SKIP(return, "needs CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP");
	*memmap = nr_memmap();
	leave_available(_metadata, s, nr_huge);
	*memmap_less = *memmap - nr_memmap();
	if (!hvo)
		ASSERT_EQ(0, *memmap_less);
	if (hvo && *memmap_less < (long)nr_huge)
		SKIP(return, "the hugepages are not optimized");
}

FIXTURE_SETUP(optimized)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	prepare(_metadata, &self->s, SZ_2M, variant->injector, 2);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, variant->hvo, &self->memmap,
				&self->memmap_less);
	if (!_metadata->exit_code)
		open_subject(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
}

FIXTURE_TEARDOWN_PARENT(optimized)
{
	teardown(_metadata, &self->s);
}

/* One of the two hugepages has got its struct pages back, or both. */
static void expect_memmap(struct __test_metadata *_metadata,
			  FIXTURE_DATA(optimized) * self, long nr)
{
	long wanted = self->memmap - self->memmap_less + nr * self->memmap_less / 2;
	unsigned int tries;

	for (tries = 0; tries < 250 && nr_memmap() != wanted; tries++)
		usleep(20000);
	EXPECT_EQ(wanted, nr_memmap());
}

TEST_F_TIMEOUT(optimized, the_end_restores_the_struct_pages, SLOW)
{
	struct subject *s = &self->s;

	lose_spots(_metadata, s);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	expect_memmap(_metadata, self, 0);

	/* Only the hugepage that goes gets them. */
	let_go(_metadata, s);
	expect_memmap(_metadata, self, 1);
	expect_change(_metadata, s, -1, -1, 0, 0);
	expect_all_come_back(_metadata, s, 0);

	leave_available(_metadata, s, 0);
	expect_memmap(_metadata, self, 2);
}

TEST_F_TIMEOUT(optimized, that_others_are_made_differently_meanwhile_is_no_matter, SLOW)
{
	struct subject *s = &self->s;

	if (access(HVO, W_OK))
		SKIP(return, "needs CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP");
	lose_spots(_metadata, s);
	ASSERT_TRUE(write_text(HVO, variant->hvo ? "0" : "1"));
	lose(_metadata, s, s->nr_raw / 4 + 2);
	let_go(_metadata, s);
	expect_memmap(_metadata, self, 1);
	expect_change(_metadata, s, -1, -1, 0, 0);
	expect_all_come_back(_metadata, s, 0);
	leave_available(_metadata, s, 0);
	expect_memmap(_metadata, self, 2);
}

TEST_F_TIMEOUT(optimized, healing_restores_what_goes, SLOW)
{
	struct subject *s = &self->s;

	ASSERT_EQ(0, punch(s, s->size, s->size));
	s->nr_huge = 1;
	lose_spots(_metadata, s);
	expect_memmap(_metadata, self, 0);
	zero_spots(_metadata, s);
	expect_replaced(_metadata, s);
	expect_memmap(_metadata, self, 1);
	expect_change(_metadata, s, -1, -2, 0, 0);
	let_go(_metadata, s);
	expect_change(_metadata, s, -1, -1, 0, 0);
	leave_available(_metadata, s, 0);
	expect_memmap(_metadata, self, 2);
}

TEST_F_TIMEOUT(optimized, healing_takes_one_made_differently, SLOW)
{
	struct subject *s = &self->s;

	lose_spots(_metadata, s);
	/* Where that can't be chosen they are all alike. */
	if (!access(HVO, W_OK))
		ASSERT_TRUE(write_text(HVO, variant->hvo ? "0" : "1"));
	zero_spots(_metadata, s);
	expect_replaced(_metadata, s);
	if (variant->hvo)
		expect_memmap(_metadata, self, 1);
	expect_change(_metadata, s, 0, -2, 0, 0);
	let_go(_metadata, s);
	expect_change(_metadata, s, 0, 0, 0, 0);
	leave_available(_metadata, s, 0);
	expect_memmap(_metadata, self, 2);
}

TEST_F_TIMEOUT(optimized, a_pool_shrunk_to_nothing_goes_with_its_last_hugepages, SLOW)
{
	struct subject *s = &self->s;

	if (!pool_is_ours(s))
		SKIP(return, "others use hugepages");
	lose_spots(_metadata, s);
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 0));
	expect_change(_metadata, s, 0, -2, 0, 2);
	let_go(_metadata, s);
	expect_memmap(_metadata, self, 2);
	expect_change(_metadata, s, -2, -2, 0, 0);
	expect_all_come_back(_metadata, s, 0);
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
	long memmap;
	long memmap_less;
};

FIXTURE_VARIANT(demoted_late)
{
	bool hvo;
};

FIXTURE_VARIANT_ADD(demoted_late, optimized)
{
	.hvo = true,
};

FIXTURE_VARIANT_ADD(demoted_late, not_optimized)
{
};

FIXTURE_SETUP(demoted_late)
{
	/* The same series has put it right; without it the kernel warns. */
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_demotion(_metadata, &self->s, &by_pfn, &self->small);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, variant->hvo, &self->memmap,
				&self->memmap_less);
}

FIXTURE_TEARDOWN_PARENT(demoted_late)
{
	teardown(_metadata, &self->s);
}

/* Make a pool larger by optimized hugepages. */
static void grow_optimized(struct __test_metadata *_metadata, unsigned long size,
			   long nr, long more)
{
	long memmap = nr_memmap();

	if (!write_text(HVO, "1"))
		SKIP(return, "needs CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP");
	ASSERT_TRUE(pool_set(size, "nr_hugepages", nr + more));
	if (memmap - nr_memmap() < more)
		SKIP(return, "the hugepages are not optimized");
}

/*
 * A child that changes a pool when it is told to, on the @nth CPU after this one.  By
 * then it is ready: one that is just being born waits for those who work on the page
 * tables of the kernel.
 */
struct writer {
	pid_t pid;
	int line;
};

/* The @nth CPU after this one */
static int nth_cpu(unsigned int nth)
{
	return (sched_getcpu() + nth) % sysconf(_SC_NPROCESSORS_ONLN);
}

static void move_to_cpu(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

static void start_writer(struct __test_metadata *_metadata, struct writer *w,
			 unsigned int nth, const char *path, long val)
{
	int lines[2], fd, len, cpu = nth_cpu(nth);
	char text[24], ready;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, lines));
	w->line = lines[0];
	w->pid = fork_helper();
	ASSERT_LE(0, w->pid);
	if (w->pid) {
		close(lines[1]);
		ASSERT_EQ(1, read(w->line, &ready, 1));
		return;
	}

	move_to_cpu(cpu);
	fd = open(path, O_WRONLY);
	len = snprintf(text, sizeof(text), "%ld", val);
	if (write(lines[1], "", 1) != 1 || read(lines[1], &ready, 1) != 1)
		_exit(KSFT_FAIL);
	_exit(write(fd, text, len) == len ? KSFT_PASS : KSFT_FAIL);
}

/* Tell it to, and wait until it has taken hugepages out of a pool. */
static void let_write(struct __test_metadata *_metadata, struct writer *w,
		      unsigned long size, long nr)
{
	unsigned int tries;

	ASSERT_EQ(1, write(w->line, "", 1));
	for (tries = 0; tries < 100000 && pool_read(size).nr != nr; tries++)
		usleep(50);
	ASSERT_EQ(nr, pool_read(size).nr);
}

/* The only free hugepage will be demoted. */
static void start_demoter(struct __test_metadata *_metadata, struct writer *w,
			  unsigned int nth)
{
	char path[PATH_MAX];
	int node = 0;

	/* (Where a node has no such hugepage, it would be waited for nothing.) */
	while (node < MAX_NODES - 1 && node_get(node, SZ_1G, "free") < 1)
		node++;
	snprintf(path, sizeof(path), NODES "%d/hugepages/hugepages-%lukB/demote", node,
		 SZ_1G >> 10);
	start_writer(_metadata, w, nth, path, 1);
}

TEST_F_TIMEOUT(demoted_late, a_page_that_is_lost_meanwhile_is_left_out, SLOW)
{
	const long many = 1024;
	struct subject *s = &self->s;
	struct writer shrinker, demoter;
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
		note_lost(_metadata, s, spot(s, i));
		/* Handled it isn't. */
		EXPECT_NE(0, inject(s, spot(s, i)));
	}
	/* Had that one finished, this would have come too late. */
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
	ledger->nr_poison = 0;
	ASSERT_TRUE(pool_set(SZ_1G, "nr_hugepages", s->before.nr));
}

/* Lose a page while the struct pages of a free hugepage make smaller ones of it. */
static bool lose_between_sizes(struct __test_metadata *_metadata, struct subject *s,
			       unsigned long nr)
{
	struct writer demoter;
	unsigned long i;
	uint64_t flags;
	bool in_time;

	find_free_hugepage(_metadata, s);
	note_lost(_metadata, s, nr);
	start_demoter(_metadata, &demoter, 2);
	ASSERT_EQ(1, write(demoter.line, "", 1));
	/* (It may be over before this sees it.) */
	for (i = 0; i < 1000000; i++) {
		ASSERT_TRUE(read_kpageflags(raw_pfn(s, nr), 1, &flags));
		if (!(flags & KPF_HUGE))
			break;
	}
	/* It is no free page of a pool, so it can't be handled. */
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
	/* With a record PG_hwpoison of the head no longer means the first page. */
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
TEST_F_TIMEOUT(demoted_late, a_first_page_lost_between_two_sizes_is_left_out, SLOW)
{
	unsigned long nr = self->s.nr_raw - SZ_2M / psize();

	leave_out_lost_between_sizes(_metadata, self, nr, nr + 7);
}

TEST_F_TIMEOUT(demoted_late, another_page_lost_between_two_sizes_is_left_out, SLOW)
{
	leave_out_lost_between_sizes(_metadata, self, self->s.nr_raw - SZ_2M / psize() + 1, 0);
}

/*
 * A free hugepage that leaves its pool together with others, and is the last one to be
 * freed.  Those that are optimized need their struct pages back before any is freed.
 */

FIXTURE(shrunk)
{
	struct subject s;
	long memmap;
	long memmap_less;
};

FIXTURE_VARIANT(shrunk)
{
	bool hvo;
	bool others_hvo;
};

FIXTURE_VARIANT_ADD(shrunk, beside_optimized)
{
	.others_hvo = true,
};

FIXTURE_VARIANT_ADD(shrunk, optimized)
{
	.hvo = true,
	.others_hvo = true,
};

FIXTURE_VARIANT_ADD(shrunk, not_optimized)
{
};

FIXTURE_SETUP(shrunk)
{
	prepare(_metadata, &self->s, SZ_2M, &by_pfn, 1);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, variant->hvo, &self->memmap,
				&self->memmap_less);
}

FIXTURE_TEARDOWN_PARENT(shrunk)
{
	teardown(_metadata, &self->s);
}

/* Be the only one on this CPU, or no more.  Children are not. */
static bool hold_cpu(bool hold)
{
	const int policy = hold ? SCHED_FIFO | SCHED_RESET_ON_FORK : SCHED_OTHER;
	const struct sched_param param = { .sched_priority = hold ? 1 : 0 };
	cpu_set_t here;

	CPU_ZERO(&here);
	CPU_SET(sched_getcpu(), &here);
	return !sched_setaffinity(0, sizeof(here), &here) &&
	       !sched_setscheduler(0, policy, &param);
}

/*
 * Empty the pool of all hugepages, and lose a page when the last of them has left it.
 * The task that frees them runs only while this thread sleeps.
 */
static void lose_while_shrinking(struct __test_metadata *_metadata, struct subject *s,
				 const FIXTURE_VARIANT(shrunk) * variant, long nr,
				 unsigned long lost, int err)
{
	struct writer shrinker;
	unsigned int tries;
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
	kb = meminfo_get("MemFree") + (16 << 10);
	for (tries = 0; variant->hvo && tries < 100000; tries++) {
		if (meminfo_get("MemFree") > kb)
			break;
		usleep(50);
	}

	note_lost(_metadata, s, lost);
	EXPECT_EQ(err, inject(s, lost));
	/* Had that one finished, this would have come too late. */
	EXPECT_EQ(0, waitpid(shrinker.pid, NULL, WNOHANG));
	ASSERT_TRUE(hold_cpu(false));
	wait_for_child(_metadata, shrinker.pid);
}

TEST_F_TIMEOUT(shrunk, the_first_page_is_not_known_as_lost_because_another_one_is, SLOW)
{
	struct subject *s = &self->s;

	poison_free_hugepage(_metadata, s, 1, 2);
	lose_while_shrinking(_metadata, s, variant, s->before.nr - 1, 0, -EHWPOISON);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(shrunk, a_healthy_one_may_lose_a_page_meanwhile, SLOW)
{
	struct subject *s = &self->s;

	find_free_hugepage(_metadata, s);
	/* The order in which they are freed is the kernel's affair. */
	ASSERT_EQ(1, s->before.nr);
	lose_while_shrinking(_metadata, s, variant, 0, spot(s, 2), -EBUSY);
	expect_released(_metadata, s);
}

/*
 * Errors in free hugepages that the filter turns away.  corrupt-pfn asks it before it
 * tells of the error, and so would try nothing.
 */

FIXTURE(filtered)
{
	struct subject s;
	long memmap;
	long memmap_less;
};

FIXTURE_VARIANT(filtered)
{
	bool hvo;
};

FIXTURE_VARIANT_ADD(filtered, optimized)
{
	.hvo = true,
};

FIXTURE_VARIANT_ADD(filtered, not_optimized)
{
};

FIXTURE_SETUP(filtered)
{
	prepare(_metadata, &self->s, SZ_2M, &by_pfn, 1);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, variant->hvo, &self->memmap,
				&self->memmap_less);
}

FIXTURE_TEARDOWN_PARENT(filtered)
{
	teardown(_metadata, &self->s);
}

TEST_F_TIMEOUT(filtered, a_free_hugepage_is_as_good_as_before, SLOW)
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

	/* It is the next one that is handed out. */
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

FIXTURE(stuck)
{
	struct subject s;
};

FIXTURE_SETUP(stuck)
{
	prepare(_metadata, &self->s, SZ_1G, &by_pfn, 2);
}

FIXTURE_TEARDOWN_PARENT(stuck)
{
	teardown(_metadata, &self->s);
}

static void *touch(void *addr)
{
	__atomic_store_n((char *)addr, 'x', __ATOMIC_RELAXED);
	return NULL;
}

TEST_F_TIMEOUT(stuck, is_unpoisoned_once_when_it_is_unmapped, SLOW)
{
	struct subject *s = &self->s;
	unsigned int i, tries, nr_unpoisoned = 0;
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
	for (tries = 0; tries < 100000; tries++) {
		if (pool_get(s->size, "free_hugepages") == s->before.free - 2)
			break;
		usleep(50);
	}
	note_lost(_metadata, s, 2);
	EXPECT_EQ(-EBUSY, inject(s, 2));
	ASSERT_EQ(1, nr_said("%#lx: failed to unmap page", raw_pfn(s, 2)));
	ASSERT_EQ(0, pthread_join(toucher, NULL));
	expect_corrupted(_metadata, s);
	EXPECT_EQ(-EBUSY, unpoison(s->head[0]));

	/* There is nothing left but memory_failure()'s reference. */
	let_go(_metadata, s);
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

FIXTURE(waiting)
{
	struct subject s;
	long memmap;
	long memmap_less;
};

FIXTURE_VARIANT(waiting)
{
	bool hvo;
};

FIXTURE_VARIANT_ADD(waiting, optimized)
{
	.hvo = true,
};

FIXTURE_VARIANT_ADD(waiting, not_optimized)
{
};

FIXTURE_SETUP(waiting)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	prepare(_metadata, &self->s, SZ_2M, &by_pfn, 1);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, variant->hvo, &self->memmap,
				&self->memmap_less);
	if (!_metadata->exit_code)
		open_one(_metadata, &self->s);
}

FIXTURE_TEARDOWN_PARENT(waiting)
{
	teardown(_metadata, &self->s);
}

/* Let go of a hugepage that has lost page 3, and let nobody have it yet. */
static void let_it_wait(struct __test_metadata *_metadata, struct subject *s)
{
	lose(_metadata, s, 3);
	ASSERT_TRUE(hold_cpu(true));
	let_go(_metadata, s);
	ASSERT_TRUE(read_kpageflags(s->head[0], 1, s->flags));
	ASSERT_TRUE(s->flags[0] & KPF_HUGE);
	expect_pool(_metadata, s, 1, 0);
}

TEST_F_TIMEOUT(waiting, a_page_that_is_lost_meanwhile_is_left_out, SLOW)
{
	struct subject *s = &self->s;

	let_it_wait(_metadata, s);
	EXPECT_NE(0, unpoison(s->head[0]));
	lose(_metadata, s, s->nr_raw - 1);
	EXPECT_EQ(-EHWPOISON, inject(s, s->nr_raw - 1));
	EXPECT_EQ(-EHWPOISON, inject(s, 3));
	expect_corrupted(_metadata, s);
	EXPECT_NE(0, unpoison(s->head[0]));
	EXPECT_EQ(self->memmap - self->memmap_less, nr_memmap());

	ASSERT_TRUE(hold_cpu(false));
	expect_released(_metadata, s);
	EXPECT_EQ(self->memmap, nr_memmap());
}

TEST_F_TIMEOUT(waiting, a_page_that_is_lost_without_a_record_keeps_it_out_of_use, SLOW)
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
	expect_out_for_ever(_metadata, s, 0, NOT_ALL_KNOWN);
	expect_pool(_metadata, s, 1, 0);
}

/*
 * Errors in free hugepages.  They have nothing to do with the flag, but it is the
 * same way on which they leave the pool.
 */

FIXTURE(pool_shrinks)
{
	struct subject s;
	long memmap;
	long memmap_less;
};

FIXTURE_VARIANT(pool_shrinks)
{
	bool hvo;
};

FIXTURE_VARIANT_ADD(pool_shrinks, optimized)
{
	.hvo = true,
};

FIXTURE_VARIANT_ADD(pool_shrinks, not_optimized)
{
};

FIXTURE_SETUP(pool_shrinks)
{
	/* The same series has put it right. */
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	prepare(_metadata, &self->s, SZ_2M, &by_pfn, 1);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, variant->hvo, &self->memmap,
				&self->memmap_less);
}

FIXTURE_TEARDOWN_PARENT(pool_shrinks)
{
	teardown(_metadata, &self->s);
}

TEST_F_TIMEOUT(pool_shrinks, all_lost_pages_of_a_free_hugepage_stay_behind, SLOW)
{
	struct subject *s = &self->s;

	poison_free_hugepage(_metadata, s, 0, NR_SPOTS);
	pool_set(s->size, "nr_hugepages", s->before.nr - 1);
	expect_change(_metadata, s, -1, -1, 0, 0);
	expect_corrupted(_metadata, s);
	expect_all_come_back(_metadata, s, 0);
}

TEST_F_TIMEOUT(pool_shrinks, soft_offlining_does_not_count_a_lost_page_again, SLOW)
{
	struct subject *s = &self->s;

	if (access(SOFT_OFFLINE_PAGE, W_OK) || !write_long(SOFT_OFFLINE, 1))
		SKIP(return, "needs vm.enable_soft_offline");
	poison_free_hugepage(_metadata, s, 0, NR_SPOTS);
	EXPECT_EQ(0, write_pfn(SOFT_OFFLINE_PAGE, raw_pfn(s, spot(s, 1)) * psize()));
	expect_change(_metadata, s, -1, -1, 0, 0);
	expect_corrupted(_metadata, s);
	expect_all_come_back(_metadata, s, 0);
}

TEST_F_TIMEOUT(pool_shrinks, a_free_hugepage_with_an_unknown_loss_stays_out_of_use, SLOW)
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
	expect_out_for_ever(_metadata, s, 0, NOT_ALL_KNOWN);
	expect_change(_metadata, s, -1, -1, 0, 0);
}

/*
 * Free hugepages that leave their pool while they are unpoisoned: a CPU is held inside
 * unpoisoning until they have left.
 */

FIXTURE(overtaken)
{
	struct subject s;
};

FIXTURE_VARIANT(overtaken)
{
	const char *caller;
	const char *callee;
	bool other;		/* not the first page is unpoisoned, but another one */
};

/* Points on the way of unpoisoning, the first one first */
FIXTURE_VARIANT_ADD(overtaken, behind_the_folio)
{
	.other = true,
};

FIXTURE_VARIANT_ADD(overtaken, before_its_reference)
{
	.caller = "unpoison_memory",
	.callee = "get_hwpoison_page",
};

FIXTURE_VARIANT_ADD(overtaken, at_its_lookup)
{
	.caller = "get_hwpoison_page",
	.callee = "get_hwpoison_hugetlb_folio",
};

FIXTURE_VARIANT_ADD(overtaken, behind_its_lookup)
{
	.caller = "get_hwpoison_page",
	.callee = "zone_pcp_enable",
};

FIXTURE_VARIANT_ADD(overtaken, before_the_lock)
{
	.caller = "unpoison_memory",
	.callee = "_raw_spin_lock_irq",
};

static void setup_held(struct __test_metadata *_metadata, struct subject *s)
{
	if (mce_at < 0)
		SKIP(return, "needs a virtual machine with mce-at");
	/* The same series has put right how it leaves. */
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	prepare(_metadata, s, SZ_2M, &by_pfn, 1);
}

static void teardown_held(struct __test_metadata *_metadata, struct subject *s)
{
	let_go_on();
	teardown(_metadata, s);
}

/* Let a child write, and hold its CPU, on which nobody else is, at that call. */
static void start_held(struct __test_metadata *_metadata, struct writer *w,
		       const char *caller, const char *callee, const char *path, long val)
{
	unsigned int tries;

	start_writer(_metadata, w, 2, path, val);
	/* Unpoisoning calls nothing between looking up the folio and using it. */
	ASSERT_TRUE(caller ? hold_call(caller, callee) : hold_lookup(val));
	ASSERT_EQ(1, write(w->line, "", 1));
	for (tries = 0; tries < 1000 && !is_held(); tries++)
		usleep(5000);
	ASSERT_NE(1000, tries);
}

/* Has it written? */
static bool end_held(struct __test_metadata *_metadata, struct writer *w)
{
	int status;

	ASSERT_TRUE(let_go_on());
	ASSERT_EQ(w->pid, waitpid(w->pid, &status, 0));
	ASSERT_TRUE(WIFEXITED(status));
	return WEXITSTATUS(status) == KSFT_PASS;
}

/* Either raw page @nr is unpoisoned, or it stays lost.  The others stay lost. */
static void end_unpoisoning(struct __test_metadata *_metadata, struct subject *s,
			    struct writer *w, unsigned long nr)
{
	if (!end_held(_metadata, w))
		return;
	s->lost[nr] = false;
	s->nr_lost--;
}

FIXTURE_SETUP(overtaken)
{
	setup_held(_metadata, &self->s);
}

FIXTURE_TEARDOWN_PARENT(overtaken)
{
	teardown_held(_metadata, &self->s);
}

TEST_F_TIMEOUT(overtaken, a_page_is_unpoisoned_alone_or_not, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = spot(s, variant->other ? 2 : 0);
	struct writer w;

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
	while (node && node_get(node, s->size, "nr") < 0)
		node--;
	pool = node_read(node, s->size);
	ASSERT_TRUE(node_set(node, s->size, pool.nr - pool.surplus + 1));
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
TEST_F_TIMEOUT(overtaken, another_use_of_a_page_is_left_alone, SLOW)
{
	const unsigned long pages[] = { 0, RECORD - 1 };
	struct subject *s = &self->s;
	unsigned long nr = pages[variant->other];
	struct writer w;
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

TEST_F_TIMEOUT(demoted_early, while_unpoisoning_counts, SLOW)
{
	struct subject *s = &self->s;
	struct writer w, demoter;

	poison_free_hugepage(_metadata, s, 0, 3);
	start_demoter(_metadata, &demoter, 1);
	start_held(_metadata, &w, "unpoison_memory", "memblk_nr_poison_sub",
		   DEBUGFS_UNPOISON_PFN, s->head[0]);
	/* It can't come to its end before each CPU has been out of the kernel. */
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
					struct writer *demoter)
{
	int cpu = nth_cpu(2), ready[2];
	unsigned int tries;
	uint64_t flags;
	pid_t pid;
	char c;

	find_free_hugepage(_metadata, s);
	note_lost(_metadata, s, nr);
	start_demoter(_metadata, demoter, 1);
	ASSERT_EQ(0, pipe(ready));
	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		move_to_cpu(cpu);
		for (tries = 0; tries < 1000000; tries++) {
			if (read_kpageflags(raw_pfn(s, nr), 1, &flags) &&
			    !(flags & KPF_HUGE))
				_exit(inject(s, nr) ? KSFT_FAIL : KSFT_PASS);
			if (tries == 10 && write(ready[1], "", 1) != 1)
				break;
		}
		_exit(KSFT_FAIL);
	}
	close(ready[1]);
	ASSERT_EQ(1, read(ready[0], &c, 1));
	close(ready[0]);
	/* It takes the lock to look for a hugepage, and then, elsewhere, to mark the page. */
	ASSERT_TRUE(hold_at_call("__memory_failure", "_raw_spin_lock_irq", true) ||
		    hold_at_call("memory_failure", "_raw_spin_lock_irq", true));
	ASSERT_EQ(1, write(demoter->line, "", 1));
	for (tries = 0; tries < 100 && !is_held(); tries++)
		usleep(5000);
	/* The demoter may wait for all CPUs before it comes to its end. */
	for (tries = 0; tries < 500 && is_held(); tries++) {
		ASSERT_TRUE(read_kpageflags(raw_pfn(s, nr), 1, &flags));
		if (flags & KPF_HUGE)
			return pid;
		usleep(5000);
	}
	let_go_on();
	waitpid(pid, NULL, 0);
	wait_for_child(_metadata, demoter->pid);
	return 0;
}

TEST_F_TIMEOUT(demoted_early, while_an_error_is_handled, SLOW)
{
	struct subject *s = &self->s;
	/* In the last one of the smaller hugepages, but not its first page */
	const unsigned long nr = s->nr_raw - 1;
	struct writer handler = {}, demoter;
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
 * A hugepage whose only lost page is one of the first few: their struct pages hold what
 * is known of the hugepage as a whole.
 */

FIXTURE(alone)
{
	struct subject s;
	long memmap;
	long memmap_less;
};

FIXTURE_VARIANT(alone)
{
	unsigned long size;
	bool keep;
	bool hvo;
};

FIXTURE_VARIANT_ADD(alone, kept_2m)
{
	.size = SZ_2M,
	.keep = true,
};

FIXTURE_VARIANT_ADD(alone, plain_2m)
{
	.size = SZ_2M,
};

FIXTURE_VARIANT_ADD(alone, kept_1g)
{
	.size = SZ_1G,
	.keep = true,
};

FIXTURE_VARIANT_ADD(alone, plain_1g)
{
	.size = SZ_1G,
};

FIXTURE_VARIANT_ADD(alone, optimized_kept_2m)
{
	.size = SZ_2M,
	.keep = true,
	.hvo = true,
};

FIXTURE_VARIANT_ADD(alone, optimized_plain_2m)
{
	.size = SZ_2M,
	.hvo = true,
};

FIXTURE_VARIANT_ADD(alone, optimized_kept_1g)
{
	.size = SZ_1G,
	.keep = true,
	.hvo = true,
};

FIXTURE_VARIANT_ADD(alone, optimized_plain_1g)
{
	.size = SZ_1G,
	.hvo = true,
};

FIXTURE_SETUP(alone)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	prepare(_metadata, &self->s, variant->size, &by_pfn, 1);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, variant->hvo, &self->memmap,
				&self->memmap_less);
}

FIXTURE_TEARDOWN_PARENT(alone)
{
	teardown(_metadata, &self->s);
}

TEST_F_TIMEOUT(alone, is_left_out_and_comes_back, SLOW)
{
	struct subject *s = &self->s;
	unsigned long i;

	for (i = 1; i <= 3 && !_metadata->exit_code; i++) {
		leave_available(_metadata, s, 1);
		if (variant->keep) {
			open_one(_metadata, s);
			lose(_metadata, s, i);
			let_go(_metadata, s);
			close(s->fd);
		} else {
			poison_free_pages(_metadata, s, &i, 1);
			pool_set(s->size, "nr_hugepages", s->before.nr - 1);
		}
		expect_released(_metadata, s);
		EXPECT_EQ(self->memmap, nr_memmap());
	}
}

/*
 * 1 GiB hugepages from wherever they come
 */

FIXTURE(gigantic)
{
	struct subject s;
	long memmap;			/* pages of struct pages, without hugepages */
	long cma_pages;			/* and what CMA can allocate then */
};

enum origin {
	CONTIGUOUS,			/* memory that happened to be free */
	CMA,
	BOOT,
};

FIXTURE_VARIANT(gigantic)
{
	const struct injector *injector;
	enum origin origin;
	bool hvo;
};

FIXTURE_VARIANT_ADD(gigantic, contiguous_madvise)
{
	.injector = &by_madvise,
	.origin = CONTIGUOUS,
};

FIXTURE_VARIANT_ADD(gigantic, contiguous_corrupt_pfn)
{
	.injector = &by_pfn,
	.origin = CONTIGUOUS,
};

FIXTURE_VARIANT_ADD(gigantic, contiguous_optimized)
{
	.injector = &by_madvise,
	.origin = CONTIGUOUS,
	.hvo = true,
};

FIXTURE_VARIANT_ADD(gigantic, cma_madvise)
{
	.injector = &by_madvise,
	.origin = CMA,
};

FIXTURE_VARIANT_ADD(gigantic, cma_corrupt_pfn)
{
	.injector = &by_pfn,
	.origin = CMA,
};

FIXTURE_VARIANT_ADD(gigantic, cma_optimized)
{
	.injector = &by_madvise,
	.origin = CMA,
	.hvo = true,
};

/* These can be had once: they don't come back as what they were. */
FIXTURE_VARIANT_ADD(gigantic, boot)
{
	.injector = &by_madvise,
	.origin = BOOT,
};

FIXTURE_VARIANT_ADD(gigantic, boot_optimized)
{
	.injector = &by_madvise,
	.origin = BOOT,
	.hvo = true,
};

#define OPTIMIZED_AT_BOOT	"hugetlb_free_vmemmap=on"

static long nr_at_boot(bool hvo)
{
	char cmdline[2048] = "";
	unsigned int i;

	read_text("/proc/cmdline", cmdline, sizeof(cmdline));
	if (!strstr(cmdline, "hugepagesz=1G") ||
	    hvo != !!strstr(cmdline, OPTIMIZED_AT_BOOT))
		return 0;
	for (i = 0; i < ledger->nr_sizes; i++)
		if (ledger->saved[i].size == SZ_1G)
			return ledger->saved[i].nr;
	return 0;
}

static long cma_sum(const char *name)
{
	long nr, sum = -1;
	glob_t areas;
	char path[80];
	size_t i;

	snprintf(path, sizeof(path), "/sys/kernel/mm/cma/*/%s", name);
	if (glob(path, 0, NULL, &areas))
		return -1;
	for (i = 0; i < areas.gl_pathc; i++)
		if (read_long(areas.gl_pathv[i], &nr))
			sum = sum < 0 ? nr : sum + nr;
	globfree(&areas);
	return sum;
}

/*
 * What CMA believes it has left, in all areas; -1 if it doesn't tell.  In older kernels
 * it tells what has come and gone: take that from a number that is large enough.
 */
static long nr_cma_pages(void)
{
	long left = cma_sum("available_pages");

	if (left < 0 && cma_sum("release_pages_success") >= 0)
		left = (LONG_MAX >> 1) + cma_sum("release_pages_success") -
		       cma_sum("alloc_pages_success");
	return left;
}

/* CMA is used by others, too. */
#define CMA_NOISE_KB	(8 << 10)

FIXTURE_SETUP(gigantic)
{
	struct subject *s = &self->s;
	unsigned long nr = variant->origin == BOOT ? nr_at_boot(variant->hvo) : 1;
	long cma_kb;

	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	if (!nr)
		SKIP(return, "needs hugepagesz=1G hugepages= on the command line");
	prepare(_metadata, s, SZ_1G, variant->injector, nr);
	if (_metadata->exit_code)
		return;
	if (variant->origin == BOOT) {
		ASSERT_EQ(s->nr_huge, s->before.free);
		self->memmap = nr_memmap();
		return;
	}

	leave_available(_metadata, s, 0);
	if (variant->hvo && !write_text(HVO, "1"))
		SKIP(return, "needs CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP");
	cma_kb = meminfo_get("CmaFree");
	self->memmap = nr_memmap();
	self->cma_pages = nr_cma_pages();
	leave_available(_metadata, s, 1);
	/* Nodes take turns, and not all have an area of CMA. */
	if (variant->origin == CMA && nr_cma_pages() == self->cma_pages) {
		leave_available(_metadata, s, 0);
		leave_available(_metadata, s, 1);
	}
	if (variant->hvo && nr_memmap() == self->memmap)
		SKIP(return, "the hugepage is not optimized");
	cma_kb -= meminfo_get("CmaFree");
	if (variant->origin == CMA && cma_kb < (long)(SZ_1G >> 10) - CMA_NOISE_KB)
		SKIP(return, "needs hugetlb_cma= on the command line");
	if (variant->origin == CMA && self->cma_pages < 0)
		SKIP(return, "needs CONFIG_CMA_SYSFS");
	if (variant->origin == CONTIGUOUS && cma_kb > CMA_NOISE_KB)
		SKIP(return, "1 GiB hugepages come from CMA here");
}

FIXTURE_TEARDOWN_PARENT(gigantic)
{
	teardown(_metadata, &self->s);
}

/* First some are free, up to a lost one, and then it takes a while to free the rest. */
TEST_F_TIMEOUT(gigantic, lost_pages_look_lost_before_the_first_healthy_one_is_free, SLOW)
{
	struct subject *s = &self->s;
	const time_t end = time(NULL) + 60;
	uint64_t first, last;

	open_one(_metadata, s);
	lose(_metadata, s, s->nr_raw / 256);
	lose(_metadata, s, s->nr_raw - 1);
	let_go(_metadata, s);
	do {
		ASSERT_TRUE(read_kpageflags(s->head[0], 1, &first));
	} while (!(first & KPF_BUDDY) && time(NULL) < end);
	ASSERT_TRUE(read_kpageflags(raw_pfn(s, s->nr_raw - 1), 1, &last));
	EXPECT_TRUE(first & KPF_BUDDY);
	EXPECT_TRUE(last & KPF_HWPOISON);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(gigantic, the_end_gives_back_all_but_the_lost_pages, 3 * SLOW)
{
	struct subject *s = &self->s;
	long cma_kb, healthy_kb;
	unsigned long i;
	unsigned int j;

	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	for (i = 0; i < s->nr_huge; i++) {
		for (j = 0; j < NR_SPOTS; j++)
			lose(_metadata, s, i * s->nr_raw + spot(s, j));
		/* All of a part that would make a smaller hugepage. */
		for (j = 0; i == 0 && j < 512; j++)
			lose(_metadata, s, 2048 + j);
		s->injector = &by_pfn;
	}
	for (i = 0; i < s->nr_huge; i++)
		EXPECT_TRUE(is_mapped_huge(s, s->map, i));

	cma_kb = meminfo_get("CmaFree");
	healthy_kb = (s->nr_huge * SZ_1G - s->nr_lost * psize()) >> 10;
	let_go(_metadata, s);
	wait_for_release(s, s->nr_huge);
	expect_change(_metadata, s, -s->nr_huge, -s->nr_huge, 0, 0);
	expect_corrupted(_metadata, s);
	/* A new size of the pool waits for the worker that frees them. */
	pool_set(SZ_1G, "nr_hugepages", pool_read(SZ_1G).nr);
	cma_kb = meminfo_get("CmaFree") - cma_kb;
	if (variant->origin == CMA) {
		EXPECT_LT(healthy_kb - CMA_NOISE_KB, cma_kb);
		EXPECT_EQ(self->cma_pages, nr_cma_pages());
	}
	if (variant->origin == CONTIGUOUS)
		EXPECT_GT(CMA_NOISE_KB, labs(cma_kb));
	/* The struct pages of one may lie in what another has given back. */
	if (variant->origin == BOOT && variant->hvo) {
		s->nr_unknown = nr_memmap() - self->memmap;
		EXPECT_LT(0, s->nr_unknown);
	}
	for (i = 0; i < s->nr_huge; i++)
		expect_all_come_back(_metadata, s, i);
	expect_change(_metadata, s, -s->nr_huge, -s->nr_huge, 0, 0);
	if (variant->origin != BOOT)
		EXPECT_EQ(self->memmap, nr_memmap());
	/*
	 * All that CMA believes to have can be had, now that nothing is lost.  The
	 * pool takes hugepages from other nodes, too, so ask for all that there may be.
	 */
	if (variant->origin == CMA) {
		pool_set(SZ_1G, "nr_hugepages",
			 meminfo_get("MemTotal") / (SZ_1G >> 10));
		EXPECT_GT(CMA_NOISE_KB, meminfo_get("CmaFree"));
		leave_available(_metadata, s, 1);
	}
}

TEST_F_TIMEOUT(gigantic, a_healed_one_goes_back_to_where_it_was, 3 * SLOW)
{
	struct subject *s = &self->s;
	long cma_kb, cma_pages, healthy_kb;

	open_one(_metadata, s);
	/* (It comes from wherever there is memory.) */
	if (!need_more_hugepages(s, 1))
		SKIP(return, "can't get 2 hugepages");
	lose_spots(_metadata, s);
	cma_kb = meminfo_get("CmaFree");
	cma_pages = nr_cma_pages();
	healthy_kb = (SZ_1G - s->nr_lost * psize()) >> 10;
	zero_spots(_metadata, s);
	/* A new size of the pool waits for the worker that frees them. */
	pool_set(SZ_1G, "nr_hugepages", s->before.nr - 1);
	cma_kb = meminfo_get("CmaFree") - cma_kb;
	if (variant->origin == CMA) {
		EXPECT_LT(healthy_kb - CMA_NOISE_KB, cma_kb);
		EXPECT_EQ(cma_pages + (long)s->nr_raw, nr_cma_pages());
	} else {
		EXPECT_GT(CMA_NOISE_KB, labs(cma_kb));
	}
	if (variant->origin == BOOT && variant->hvo)
		s->nr_unknown = nr_memmap() - self->memmap;
	expect_replaced(_metadata, s);
	expect_change(_metadata, s, -1, -2, 0, 0);

	let_go(_metadata, s);
	leave_available(_metadata, s, 0);
	if (variant->origin == CMA)
		EXPECT_EQ(self->cma_pages, nr_cma_pages());
	if (variant->origin != BOOT)
		EXPECT_EQ(self->memmap, nr_memmap());
}

/*
 * A 1 GiB hugepage that was optimized at boot, and has lost nothing
 */

FIXTURE(booted)
{
	struct subject s;
};

FIXTURE_SETUP(booted)
{
	if (!nr_at_boot(true))
		SKIP(return, "needs hugepagesz=1G hugepages= " OPTIMIZED_AT_BOOT);
	prepare(_metadata, &self->s, SZ_1G, &by_pfn, 1);
}

FIXTURE_TEARDOWN_PARENT(booted)
{
	teardown(_metadata, &self->s);
}

TEST_F_TIMEOUT(booted, all_of_it_is_free_memory_when_it_goes, SLOW)
{
	struct subject *s = &self->s;
	long memmap = nr_memmap(), kb = meminfo_get("MemFree");

	ASSERT_TRUE(pool_set(SZ_1G, "nr_hugepages", s->before.nr - 1));
	expect_change(_metadata, s, -1, -1, 0, 0);
	memmap = nr_memmap() - memmap;
	EXPECT_LT(0, memmap);
	kb = meminfo_get("MemFree") - kb + memmap * (long)(psize() >> 10);
	EXPECT_LT((long)(SZ_1G >> 10) - CMA_NOISE_KB, kb);
}

/*
 * Errors that can't be recorded
 */

FIXTURE(starved)
{
	struct subject s;
};

FIXTURE_VARIANT(starved)
{
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(starved, madvise)
{
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(starved, corrupt_pfn)
{
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(starved, mce)
{
	.injector = &by_mce,
};

/* With allocations that can be made to fail, and quietly. */
static void prepare_to_fail(struct __test_metadata *_metadata, struct subject *s,
			    unsigned long size, const struct injector *injector,
			    unsigned long nr_huge)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	if (!can_fail_allocations())
		SKIP(return, "needs CONFIG_FAILSLAB and CONFIG_FAIL_PAGE_ALLOC");
	prepare(_metadata, s, size, injector, nr_huge);
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

FIXTURE_TEARDOWN_PARENT(starved)
{
	teardown(_metadata, &self->s);
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
	const unsigned int max = s->injector->for_real ? 10 : 1;
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

TEST_F_TIMEOUT(starved, a_page_that_is_not_recorded_is_signalled_like_any_other, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 3);
	lose_unrecorded(_metadata, s, 7);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
	expect_pool(_metadata, s, 0, 1);

	let_go(_metadata, s);
	expect_pool(_metadata, s, 1, 0);
	expect_out_for_ever(_metadata, s, 0, NOT_ALL_KNOWN);
	expect_pool(_metadata, s, 1, 0);
}

TEST_F_TIMEOUT(starved, a_hugepage_with_no_record_at_all_stays_out_of_use, SLOW)
{
	struct subject *s = &self->s;

	lose_unrecorded(_metadata, s, s->nr_raw / 2);
	let_go(_metadata, s);
	expect_pool(_metadata, s, 1, 0);
	expect_out_for_ever(_metadata, s, 0, NOT_ALL_KNOWN);
	expect_pool(_metadata, s, 1, 0);
}

TEST_F_TIMEOUT(starved, a_surplus_hugepage_stays_out_of_use_as_well, SLOW)
{
	struct subject *s = &self->s;

	if (!pool_is_ours(s))
		SKIP(return, "others use hugepages");
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 0));
	s->before = pool_read(s->size);
	ASSERT_EQ(1, s->before.surplus);
	lose_unrecorded(_metadata, s, 8);
	let_go(_metadata, s);
	expect_change(_metadata, s, -1, 0, 0, -1);
	expect_out_for_ever(_metadata, s, 0, NOT_ALL_KNOWN);
	expect_change(_metadata, s, -1, 0, 0, -1);
}

TEST_F_TIMEOUT(starved, who_has_to_know_takes_all_pages_for_lost, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 4, ps = psize();
	char *buf = malloc(ps);

	ASSERT_NE(NULL, buf);
	lose_unrecorded(_metadata, s, 7);

	/* Who maps it still has it. */
	EXPECT_TRUE(try_write(raw_page(s, nr)));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));

	errno = 0;
	EXPECT_EQ(-1, pread(s->fd, buf, ps, nr * ps));
	EXPECT_EQ(EIO, errno);
	errno = 0;
	EXPECT_EQ(-1, punch(s, nr * ps, ps));
	EXPECT_EQ(EIO, errno);
	EXPECT_EQ('x', *raw_page(s, nr));

	unmap_file(s);
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
	EXPECT_FALSE(try_read(raw_page(s, nr)));
	expect_fault_in(_metadata, raw_page(s, nr));
	EXPECT_FALSE(is_mapped(s->map));

	/* To know which healthy pages there are won't help. */
	let_go(_metadata, s);
	expect_pool(_metadata, s, 1, 0);
	expect_out_for_ever(_metadata, s, 0, NOT_ALL_KNOWN);
	free(buf);
}

TEST_F_TIMEOUT(starved, a_device_that_mirrors_it_loses_the_page_as_well, SLOW)
{
	struct subject *s = &self->s;
	char *buf = malloc(16 * psize());
	unsigned long nr;
	int fd;

	ASSERT_NE(NULL, buf);
	fd = open_mirror();
	if (fd < 0)
		SKIP(return, "needs CONFIG_TEST_HMM");
	ASSERT_EQ(0, mirror(fd, HMM_DMIRROR_READ, raw_page(s, 6), buf, 16, NULL));
	nr = lose_unrecorded(_metadata, s, 7);
	EXPECT_EQ(-EFAULT, mirror(fd, HMM_DMIRROR_READ, raw_page(s, nr), buf, 1, NULL));
	/* From now on all others count as lost, too. */
	EXPECT_EQ(-EFAULT, mirror(fd, HMM_DMIRROR_READ, raw_page(s, 5), buf, 1, NULL));
	close(fd);

	let_go(_metadata, s);
	expect_pool(_metadata, s, 1, 0);
	expect_out_for_ever(_metadata, s, 0, NOT_ALL_KNOWN);
	free(buf);
}

TEST_F_TIMEOUT(starved, a_page_that_is_not_recorded_is_news_when_reported_again, SLOW)
{
	struct subject *s = &self->s;
	unsigned long kb = psize() >> 10;
	unsigned long nr;

	nr = lose_unrecorded(_metadata, s, 7);
	if (s->injector == &by_madvise) {
		/* It asks for the page like anybody else. */
		EXPECT_EQ(-EFAULT, inject(s, nr));
		EXPECT_EQ(0, heard.nr);
	} else {
		/* Counted anew, and only this once. */
		s->corrupted += kb;
		ledger->corrupted += kb;
		EXPECT_EQ(0, inject(s, nr));
		expect_sigbus(_metadata, s->injector->code, raw_page(s, nr), pshift());
		expect_corrupted(_metadata, s);
		EXPECT_EQ(s->injector->again, inject(s, nr));
	}
	expect_corrupted(_metadata, s);

	/* Nor does the hugepage become any better by that. */
	let_go(_metadata, s);
	expect_pool(_metadata, s, 1, 0);
	expect_out_for_ever(_metadata, s, 0, NOT_ALL_KNOWN);
}

/*
 * Allocations that fail one by one while an error is handled
 */

#define NR_FAILING	12

FIXTURE(failing)
{
	struct subject s;
};

FIXTURE_VARIANT(failing)
{
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(failing, madvise)
{
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(failing, corrupt_pfn)
{
	.injector = &by_pfn,
};

FIXTURE_SETUP(failing)
{
	prepare_to_fail(_metadata, &self->s, SZ_2M, variant->injector, NR_FAILING);
	if (!_metadata->exit_code)
		open_subject(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
}

FIXTURE_TEARDOWN_PARENT(failing)
{
	teardown(_metadata, &self->s);
}

/*
 * Whatever fails, the page is counted, and the release spares it.  Who is to be
 * signalled may not hear of it: that takes memory on any kernel.
 */
TEST_F_TIMEOUT(failing, an_error_counts_whichever_allocation_fails, SLOW)
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
		/* All others come after the page has been recorded. */
		if (i == 0 || !failed)
			expect_sigbus(_metadata, s->injector->code, raw_page(s, nr),
				      pshift());
		else
			EXPECT_GE(1, heard.nr);
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

	let_go(_metadata, s);
	expect_pool(_metadata, s, i + 1, 0);
	for (nr = 0; nr <= i; nr++)
		if (unrecorded[nr])
			expect_out_for_ever(_metadata, s, nr, NOT_ALL_KNOWN);
		else
			expect_all_come_back(_metadata, s, nr);
	expect_pool(_metadata, s, i + 1, 0);
}

/*
 * Allocations that fail one by one while a hugepage is released
 */

FIXTURE(ending)
{
	struct subject s;
};

enum ending {
	BY_TRUNCATION,
	BY_PUNCHING,
	BY_CLOSE,
	BY_MUNMAP,
};

FIXTURE_VARIANT(ending)
{
	const struct injector *injector;
	enum ending how;
};

FIXTURE_VARIANT_ADD(ending, truncation_madvise)
{
	.injector = &by_madvise,
	.how = BY_TRUNCATION,
};

FIXTURE_VARIANT_ADD(ending, truncation_corrupt_pfn)
{
	.injector = &by_pfn,
	.how = BY_TRUNCATION,
};

FIXTURE_VARIANT_ADD(ending, punching_madvise)
{
	.injector = &by_madvise,
	.how = BY_PUNCHING,
};

FIXTURE_VARIANT_ADD(ending, punching_corrupt_pfn)
{
	.injector = &by_pfn,
	.how = BY_PUNCHING,
};

FIXTURE_VARIANT_ADD(ending, close_madvise)
{
	.injector = &by_madvise,
	.how = BY_CLOSE,
};

FIXTURE_VARIANT_ADD(ending, munmap_madvise)
{
	.injector = &by_madvise,
	.how = BY_MUNMAP,
};

FIXTURE_SETUP(ending)
{
	prepare_to_fail(_metadata, &self->s, SZ_2M, variant->injector, 3);
}

FIXTURE_TEARDOWN_PARENT(ending)
{
	teardown(_metadata, &self->s);
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

TEST_F_TIMEOUT(ending, all_but_the_lost_pages_come_back_whichever_allocation_fails, SLOW)
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
			/* Then it is not over yet, and nothing has changed. */
			ASSERT_EQ(ENOMEM, errno);
			EXPECT_TRUE(failed);
			EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
			EXPECT_EQ(0, nr_changed_pages(s));
			expect_pool(_metadata, s, 0, 1);
			ASSERT_EQ(0, end_life(s, variant->how));
		} else {
			failed = has_failed();
		}
		restore_taken();

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

FIXTURE(hole)
{
	struct subject s;
};

FIXTURE_VARIANT(hole)
{
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(hole, madvise)
{
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(hole, corrupt_pfn)
{
	.injector = &by_pfn,
};

#define NR_AROUND	9

FIXTURE_SETUP(hole)
{
	prepare_to_fail(_metadata, &self->s, SZ_2M, variant->injector, NR_AROUND);
	if (!_metadata->exit_code)
		open_subject(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
}

FIXTURE_TEARDOWN_PARENT(hole)
{
	teardown(_metadata, &self->s);
}

TEST_F_TIMEOUT(hole, no_reservation_is_lost_when_it_cannot_be_described, SLOW)
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
	let_go(_metadata, s);
	expect_change(_metadata, s, -1, -1, 0, 0);
}

/*
 * Struct pages that can't be restored
 */

FIXTURE(restored)
{
	struct subject s;
	long memmap;
	long memmap_less;
};

FIXTURE_VARIANT(restored)
{
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(restored, madvise)
{
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(restored, corrupt_pfn)
{
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(restored, mce)
{
	.injector = &by_mce,
};

FIXTURE_SETUP(restored)
{
	prepare_to_fail(_metadata, &self->s, SZ_2M, variant->injector, 1);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, true, &self->memmap,
				&self->memmap_less);
	if (!_metadata->exit_code)
		open_one(_metadata, &self->s);
}

FIXTURE_TEARDOWN_PARENT(restored)
{
	teardown(_metadata, &self->s);
}

TEST_F_TIMEOUT(restored, without_memory_for_that_the_hugepage_stays_out_of_use, SLOW)
{
	struct subject *s = &self->s;

	lose_spots(_metadata, s);
	ASSERT_TRUE(starve_workers(0));
	let_go(_metadata, s);
	expect_pool(_metadata, s, 1, 0);
	expect_out_for_ever(_metadata, s, 0, NOT_RESTORED);
	feed_workers();
	expect_pool(_metadata, s, 1, 0);
	EXPECT_EQ(self->memmap - self->memmap_less, nr_memmap());
}

TEST_F_TIMEOUT(restored, nor_is_it_freed_with_memory_for_half_of_them, SLOW)
{
	struct subject *s = &self->s;

	if (self->memmap_less < 3)
		SKIP(return, "there is little to restore");
	lose_spots(_metadata, s);
	ASSERT_TRUE(starve_workers(self->memmap_less / 2));
	let_go(_metadata, s);
	expect_pool(_metadata, s, 1, 0);
	expect_out_for_ever(_metadata, s, 0, NOT_RESTORED);
	feed_workers();
	expect_pool(_metadata, s, 1, 0);
	EXPECT_EQ(self->memmap - self->memmap_less, nr_memmap());
}

TEST_F_TIMEOUT(restored, a_surplus_hugepage_stays_out_of_use_as_well, SLOW)
{
	struct subject *s = &self->s;

	if (!pool_is_ours(s))
		SKIP(return, "others use hugepages");
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 0));
	expect_change(_metadata, s, 0, -1, 0, 1);
	lose_spots(_metadata, s);
	ASSERT_TRUE(starve_workers(0));
	let_go(_metadata, s);
	expect_change(_metadata, s, -1, -1, 0, 0);
	expect_out_for_ever(_metadata, s, 0, NOT_RESTORED);
	feed_workers();
	expect_change(_metadata, s, -1, -1, 0, 0);
}

TEST_F_TIMEOUT(restored, an_error_finds_a_hugepage_that_stays_out_of_use, SLOW)
{
	struct subject *s = &self->s;
	unsigned long kb = psize() >> 10;

	lose(_metadata, s, 3);
	ASSERT_TRUE(starve_workers(0));
	let_go(_metadata, s);
	expect_out_for_ever(_metadata, s, 0, NOT_RESTORED);
	feed_workers();

	/* Known is known, and a new one is counted. */
	EXPECT_EQ(-EHWPOISON, write_pfn(DEBUGFS_CORRUPT_PFN, s->head[0] + 3));
	expect_corrupted(_metadata, s);
	s->corrupted += kb;
	EXPECT_EQ(0, write_pfn(DEBUGFS_CORRUPT_PFN, s->head[0] + 4));
	expect_corrupted(_metadata, s);
	expect_pool(_metadata, s, 1, 0);
	EXPECT_NE(0, unpoison(s->head[0]));
}

TEST_F_TIMEOUT(restored, what_is_not_recorded_is_reason_enough, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 3);
	lose_unrecorded(_metadata, s, 4);
	ASSERT_TRUE(starve_workers(0));
	let_go(_metadata, s);
	expect_out_for_ever(_metadata, s, 0, NOT_ALL_KNOWN);
	feed_workers();
	expect_pool(_metadata, s, 1, 0);
}

/* As ever: it goes back to the pool, where it counts as surplus. */
TEST_F_TIMEOUT(restored, a_healthy_hugepage_of_the_file_goes_back_to_the_pool, SLOW)
{
	struct subject *s = &self->s;
	unsigned int tries;

	if (!pool_is_ours(s))
		SKIP(return, "others use hugepages");
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 0));
	ASSERT_TRUE(starve_workers(0));
	let_go(_metadata, s);
	for (tries = 0; tries < 250 && pool_get(s->size, "nr_hugepages") != 1; tries++)
		usleep(20000);
	feed_workers();
	expect_change(_metadata, s, 0, 0, 0, 1);
	EXPECT_EQ(0, nr_said("stays out of use"));

	/* And goes for good when there is memory. */
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 1));
	expect_change(_metadata, s, 0, 0, 0, 0);
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 0));
	expect_change(_metadata, s, -1, -1, 0, 0);
	EXPECT_EQ(self->memmap, nr_memmap());
}

/*
 * A free hugepage with lost pages that can't leave the pool for want of memory: it
 * goes back there, and is tried again later.
 */

FIXTURE(retried)
{
	struct subject s;
	long memmap;
	long memmap_less;
};

FIXTURE_SETUP(retried)
{
	prepare_to_fail(_metadata, &self->s, SZ_2M, &by_pfn, 1);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, true, &self->memmap,
				&self->memmap_less);
}

FIXTURE_TEARDOWN_PARENT(retried)
{
	teardown(_metadata, &self->s);
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

/* There is by now. */
static void shrink_again(struct __test_metadata *_metadata, struct subject *s)
{
	pool_set(s->size, "nr_hugepages", s->before.nr - s->before.surplus);
	expect_change(_metadata, s, 0, 0, 0, 0);
	pool_set(s->size, "nr_hugepages", s->before.nr - s->before.surplus - 1);
	expect_change(_metadata, s, -1, -1, 0, 0);
}

TEST_F_TIMEOUT(retried, its_lost_pages_are_left_out_then, SLOW)
{
	struct subject *s = &self->s;

	poison_free_hugepage(_metadata, s, 0, NR_SPOTS);
	shrink_in_vain(_metadata, s);
	shrink_again(_metadata, s);
	EXPECT_EQ(self->memmap, nr_memmap());
	expect_all_come_back(_metadata, s, 0);
	EXPECT_EQ(0, nr_said("stays out of use"));
}

TEST_F_TIMEOUT(retried, that_not_all_lost_pages_are_known_is_not_forgotten, SLOW)
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
	expect_out_for_ever(_metadata, s, 0, NOT_ALL_KNOWN);
}

/*
 * A 1 GiB hugepage that a worker restores and frees, which takes long, and what is lost
 * meanwhile
 */

FIXTURE(leaving)
{
	struct subject s;
	long memmap;
	long memmap_less;
};

FIXTURE_SETUP(leaving)
{
	prepare_to_fail(_metadata, &self->s, SZ_1G, &by_pfn, 1);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, true, &self->memmap,
				&self->memmap_less);
}

FIXTURE_TEARDOWN_PARENT(leaving)
{
	teardown(_metadata, &self->s);
}

/* The worker is on this CPU: look on from another one. */
static void let_it_leave(struct __test_metadata *_metadata, struct subject *s)
{
	cpu_set_t other;

	ASSERT_TRUE(hold_cpu(true));
	let_go(_metadata, s);
	CPU_ZERO(&other);
	CPU_SET((sched_getcpu() + 1) % sysconf(_SC_NPROCESSORS_ONLN), &other);
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(other), &other));
	ASSERT_TRUE(hold_cpu(false));
}

TEST_F_TIMEOUT(leaving, a_page_that_is_hit_again_counts_once, 2 * SLOW)
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
		/* It is no hugepage any more, and this page not yet by itself. */
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

TEST_F_TIMEOUT(leaving, an_unknown_loss_keeps_it_out_of_use, 2 * SLOW)
{
	struct subject *s = &self->s;
	unsigned int tries;
	time_t end;
	long kb;

	for (tries = 0; tries < 8; tries++) {
		open_one(_metadata, s);
		lose(_metadata, s, 3);
		kb = meminfo_get("MemFree") -
		     self->memmap_less * (long)(psize() >> 10) / 4;
		let_it_leave(_metadata, s);
		/* It has got some of its struct pages. */
		end = time(NULL) + 60;
		while (meminfo_get("MemFree") > kb && time(NULL) < end)
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

	expect_out_for_ever(_metadata, s, 0, NOT_ALL_KNOWN);
	expect_pool(_metadata, s, 1, 0);
	EXPECT_EQ(self->memmap, nr_memmap());
}

/* So that the memory goes back to where it is from, when there is memory to do so. */

FIXTURE(retried_cma)
{
	struct subject s;
	long memmap;
	long memmap_less;
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
	setup_optimized(_metadata, s, true, &self->memmap, &self->memmap_less);
	/* Nodes take turns, and not all have an area of CMA. */
	if (!_metadata->exit_code && self->cma_pages == nr_cma_pages())
		setup_optimized(_metadata, s, true, &self->memmap, &self->memmap_less);
	if (!_metadata->exit_code && self->cma_pages - nr_cma_pages() != (long)s->nr_raw)
		SKIP(return, "needs hugetlb_cma= on the command line");
}

FIXTURE_TEARDOWN_PARENT(retried_cma)
{
	teardown(_metadata, &self->s);
}

TEST_F_TIMEOUT(retried_cma, where_it_is_from_is_not_forgotten, SLOW)
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

	pool_set(SZ_1G, "nr_hugepages", meminfo_get("MemTotal") / (SZ_1G >> 10));
	read_kpageflags(s->head[0] + 2, 1, &flags);
	pool_set(SZ_1G, "nr_hugepages", s->before.nr - 1);
	return flags & KPF_HUGE;
}

TEST_F_TIMEOUT(retried_cma, cma_gives_the_healthy_part_to_others, SLOW)
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
	lose_spots(_metadata, s);
	let_go(_metadata, s);
	wait_for_release(s, 1);
	expect_out_of_use(_metadata, s, 0);
	EXPECT_EQ(self->cma_pages, nr_cma_pages());
	EXPECT_EQ(self->memmap, nr_memmap());
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

int main(int argc, char **argv)
{
	open_ledger();
	open_mce_at();
	save_taken();
	atexit(clean_up_taken);
	return test_harness_run(argc, argv);
}
