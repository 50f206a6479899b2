/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the tests of memory failure recovery have in common: ways to lose memory, a
 * file whose hugepages are lost in part, and what must hold for it.
 *
 * Words: a raw page is one small page of a hugepage.  A lost page is a raw page
 * with an uncorrected error.  A kept hugepage belongs to a file made with
 * MFD_MF_KEEP_UE_MAPPED.
 *
 * The tests size the pools themselves and put them back.  All that was poisoned is
 * recorded in a ledger and unpoisoned when a test has ended, however it did.
 */
#ifndef _SELFTESTS_MM_MFR_UTIL_H
#define _SELFTESTS_MM_MFR_UTIL_H

#include "../kselftest_harness.h"
#include <asm-generic/mman.h> /* Force the import of the tools version. */
#include <assert.h>
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/falloc.h>
#include <linux/io_uring.h>
#include <linux/memfd.h>
#include <linux/mempolicy.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <lib/test_hmm_uapi.h>
#include "machine_check.h"
#include "vm_util.h"

#ifndef MFD_MF_KEEP_UE_MAPPED
#define MFD_MF_KEEP_UE_MAPPED	0x0020U
#endif

/* Older kernels' vm_util.h has few of these. */
#ifndef KPF_COMPOUND_HEAD
#define KPF_COMPOUND_HEAD	BIT_ULL(15)
#endif
#ifndef KPF_COMPOUND_TAIL
#define KPF_COMPOUND_TAIL	BIT_ULL(16)
#endif
#ifndef KPF_HWPOISON
#define KPF_HWPOISON		BIT_ULL(19)
#endif
#define KPF_LRU			BIT_ULL(5)
#define KPF_SLAB		BIT_ULL(7)
#define KPF_BUDDY		BIT_ULL(10)
#define KPF_MMAP		BIT_ULL(11)
#define KPF_ANON		BIT_ULL(12)
#define KPF_SWAPBACKED		BIT_ULL(14)
#define KPF_HUGE		BIT_ULL(17)
#define KPF_PGTABLE		BIT_ULL(26)
#define KPF_PRIVATE		BIT_ULL(35)

/* A page that shows one of these was free and has found a user since. */
#define KPF_IN_USE		(KPF_LRU | KPF_SLAB | KPF_MMAP | KPF_ANON | \
				 KPF_SWAPBACKED | KPF_HUGE | KPF_PGTABLE)

#define SYSFS_HUGEPAGES		"/sys/kernel/mm/hugepages"
#define DEBUGFS_HWPOISON	"/sys/kernel/debug/hwpoison"
#define DEBUGFS_CORRUPT_PFN	DEBUGFS_HWPOISON "/corrupt-pfn"
#define DEBUGFS_CORRUPT_ADDR	DEBUGFS_HWPOISON "/corrupt-addr"
#define DEBUGFS_CORRUPT_LSB	DEBUGFS_HWPOISON "/corrupt-lsb"
#define DEBUGFS_UNPOISON_PFN	DEBUGFS_HWPOISON "/unpoison-pfn"
#define DEBUGFS_FILTER		DEBUGFS_HWPOISON "/corrupt-filter-"
#define DEBUGFS_FILTER_ENABLE	DEBUGFS_FILTER "enable"
#define DEBUGFS_FILTER_MAJOR	DEBUGFS_FILTER "dev-major"
#define DEBUGFS_FILTER_MASK	DEBUGFS_FILTER "flags-mask"
#define DEBUGFS_FILTER_VALUE	DEBUGFS_FILTER "flags-value"
#define DEBUGFS_FILTER_MEMCG	DEBUGFS_FILTER "memcg"
#define MF_RECOVERY		"/proc/sys/vm/memory_failure_recovery"
#define SOFT_OFFLINE		"/proc/sys/vm/enable_soft_offline"
#define SOFT_OFFLINE_PAGE	"/sys/devices/system/memory/soft_offline_page"
#define MEMORY_BLOCKS		"/sys/devices/system/memory"
#define HVO			"/proc/sys/vm/hugetlb_optimize_vmemmap"
#define NR_HUGEPAGES		"/proc/sys/vm/nr_hugepages"
#define CORE_PATTERN		"/proc/sys/kernel/core_pattern"
#define FAILSLAB	"/sys/kernel/debug/failslab/"
#define FAIL_PAGE	"/sys/kernel/debug/fail_page_alloc/"
#define TRACING			"/sys/kernel/tracing/instances/hugetlb-mfr"

#define SZ_2M			(2UL << 20)
#define SZ_1G			(512 * SZ_2M)

/* Clearing 1 GiB alone takes seconds on an emulated CPU, and minutes with KASAN. */
#define SLOW			600

/* More than one folio batch, so that a truncation needs several of them. */
#define NR_TRUNCATED		40

#define MAX_POISON		16384
#define MAX_SIZES		16

/* The files that decide which errors happen. */
static const char * const filters[] = {
	DEBUGFS_FILTER_ENABLE,
	DEBUGFS_FILTER_MAJOR,
	DEBUGFS_FILTER_MASK,
	DEBUGFS_FILTER_VALUE,
	DEBUGFS_FILTER_MEMCG,
};

/*
 * State that outlives a test: what is poisoned now and how the pools were.  It
 * is shared with all tests, so that a test that dies or runs out of time leaves
 * nothing behind.
 */
static struct ledger {
	unsigned long corrupted;	/* HardwareCorrupted when it was empty */
	unsigned int nr_poison;
	struct {
		unsigned long pfn;
		unsigned long head;
	} poison[MAX_POISON];
	unsigned int nr_sizes;
	struct {
		unsigned long size;
		long nr;
		long overcommit;
		long demote_kb;
	} saved[MAX_SIZES];
	long filter[ARRAY_SIZE(filters)];
	long soft_offline;
	char core_pattern[160];
	int monitor;			/* line to the virtual machine's, or -1 */
	bool for_ever;			/* a machine check: no unpoisoning any more */
	pid_t owner;
} *ledger;

struct pool {
	long nr;
	long free;
	long resv;
	long surplus;
};

/*
 * A way to lose a page.  MADV_HWPOISON and machine checks consume it in the
 * calling thread, which must hear of it.  An error told by its page frame number
 * was consumed by nobody, and only those hear of it who asked for early signals.
 *
 * A lost page can be lost again.  But MADV_HWPOISON doesn't get hold of it, and
 * without having been consumed it is no news.
 */
struct injector {
	int (*inject)(char *addr, unsigned long pfn);
	int code;
	int again;		/* what injecting into a lost page returns, */
	int filtered;		/* and an error that the filter turns away */
	bool again_is_heard;
	bool for_real;
};

/* The hugepages under test. */
struct subject {
	const struct injector *injector;
	unsigned long size;
	unsigned long nr_raw;		/* raw pages in a hugepage */
	unsigned long nr_huge;		/* hugepages in the file */
	int fd;
	char *map;
	unsigned long *head;		/* first pfn of each hugepage */
	bool *lost;			/* by raw page of the file */
	unsigned long nr_lost;
	uint64_t *flags;		/* room for a word on each raw page */
	struct pool before;		/* with all hugepages of the test free */
	unsigned long corrupted;	/* HardwareCorrupted at the start, in kB */
	unsigned long nr_unknown;	/* what the kernel may take meanwhile */
};

/* What the last SIGBUS to this thread said, and how many there were. */
static __thread struct {
	int nr;
	int code;
	int lsb;
	uintptr_t addr;
} heard;

static atomic_bool accessing;
static atomic_bool injecting;
static sigjmp_buf access_jmp_buf;

static inline void handle_sigbus(int sig, siginfo_t *si, void *ucontext)
{
	heard.nr++;
	heard.code = si->si_code;
	heard.lsb = si->si_addr_lsb;
	heard.addr = (uintptr_t)si->si_addr;

	mce_release_victim();
	if (accessing)
		siglongjmp(access_jmp_buf, 1);

	/* An access that nobody expected to fail would fail for ever. */
	if (!injecting && si->si_code != BUS_MCEERR_AO)
		signal(SIGBUS, SIG_DFL);
}

static inline int setup_sighandler(void)
{
	struct sigaction sa = {
		.sa_sigaction = handle_sigbus,
		.sa_flags = SA_SIGINFO | SA_RESTART,
	};

	return sigaction(SIGBUS, &sa, NULL);
}

/* For what happens then, not for the byte. */
static inline void read_byte(const char *ptr)
{
	asm volatile("" : : "r" (*ptr) : "memory");
}

static inline bool try_access(char *ptr, bool write)
{
	bool failed;

	heard.nr = 0;
	failed = sigsetjmp(access_jmp_buf, 1) != 0;
	if (!failed) {
		accessing = true;
		if (write)
			__atomic_store_n(ptr, 'x', __ATOMIC_RELAXED);
		else
			read_byte(ptr);
	}
	accessing = false;
	return !failed;
}

static inline bool try_read(char *ptr)
{
	return try_access(ptr, false);
}

static inline bool try_write(char *ptr)
{
	return try_access(ptr, true);
}

static inline int write_pfn(const char *path, unsigned long pfn)
{
	char buf[32];
	int fd, len, ret;

	fd = open(path, O_WRONLY);
	if (fd < 0)
		return -errno;

	len = snprintf(buf, sizeof(buf), "0x%lx\n", pfn);
	ret = write(fd, buf, len) == len ? 0 : -errno;
	close(fd);
	return ret;
}

static inline int unpoison(unsigned long pfn)
{
	return write_pfn(DEBUGFS_UNPOISON_PFN, pfn);
}

static inline int inject_madvise(char *addr, unsigned long pfn)
{
	return madvise(addr, psize(), MADV_HWPOISON) ? -errno : 0;
}

static inline int inject_corrupt_pfn(char *addr, unsigned long pfn)
{
	return write_pfn(DEBUGFS_CORRUPT_PFN, pfn);
}

/* A machine check: this thread consumes the page. */
static inline int consume(enum mce_kind kind, char *addr, unsigned long pfn)
{
	int cpu[2];

	if (!mce_cpus(cpu))
		return -ENODEV;

	ledger->for_ever = true;
	return mce_consume(ledger->monitor, kind, addr, pfn, cpu[0]);
}

/* A victim in a thread of its own, and what it has heard */
struct heard_by {
	struct mce_victim *victim;
	int nr;
	int code;
	int lsb;
	uintptr_t addr;
};

static inline void *suffer(void *arg)
{
	struct heard_by *by = arg;

	mce_suffer(MCE_LOAD, by->victim);
	by->nr = heard.nr;
	by->code = heard.code;
	by->lsb = heard.lsb;
	by->addr = heard.addr;
	return NULL;
}

static inline int inject_mce(char *addr, unsigned long pfn)
{
	return consume(MCE_LOAD, addr, pfn);
}

static inline int inject_fetch(char *addr, unsigned long pfn)
{
	return consume(MCE_FETCH, addr, pfn);
}

static inline int inject_broadcast(char *addr, unsigned long pfn)
{
	return consume(MCE_BROADCAST, addr, pfn);
}

static inline unsigned long hardware_corrupted(void);

/* A machine check that tells of an error which nobody has consumed. */
static inline int inject_scrub(char *addr, unsigned long pfn)
{
	unsigned long before = hardware_corrupted();
	int i;

	ledger->for_ever = true;
	mce_scrub(ledger->monitor, pfn);

	/* A worker deals with it, sends signals and counts. */
	for (i = 0; i < 400 && hardware_corrupted() == before; i++)
		usleep(2000);
	return i < 400 ? 0 : -ETIMEDOUT;
}

/*
 * Failing allocations
 */

static inline bool can_fail_allocations(void)
{
	return !access(FAILSLAB "probability", W_OK) &&
	       !access(FAIL_PAGE "probability", W_OK) &&
	       !access("/proc/thread-self/fail-nth", W_OK);
}

static int fail_nth;

/* From now on the @nth allocation of this thread fails. */
static inline bool fail_allocation(unsigned int nth)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%u", nth);

	fail_nth = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	return fail_nth >= 0 && pwrite(fail_nth, text, len, 0) == len;
}

/* No more of that.  Has one failed? */
static inline bool has_failed(void)
{
	char text[16] = "";
	bool failed;

	failed = pread(fail_nth, text, sizeof(text) - 1, 0) > 0 && !atoi(text);
	if (pwrite(fail_nth, "0", 1, 0) != 1)
		failed = false;
	close(fail_nth);
	return failed;
}

/* Tell of an error with no memory to record it.  (Opening the file takes some, too.) */
static inline int inject_unrecorded(unsigned long pfn)
{
	int fd = open(DEBUGFS_CORRUPT_PFN, O_WRONLY | O_CLOEXEC);
	char buf[32];
	int len = snprintf(buf, sizeof(buf), "0x%lx\n", pfn), ret;

	if (fd < 0 || !fail_allocation(1))
		return -EBADF;
	ret = write(fd, buf, len) == len ? 0 : -errno;
	close(fd);
	return ret;
}

static const struct injector by_madvise = {
	.inject = inject_madvise,
	.code = BUS_MCEERR_AR,
	.again = -EFAULT,
};

static const struct injector by_pfn = {
	.inject = inject_corrupt_pfn,
	.code = BUS_MCEERR_AO,
	.again = -EHWPOISON,
};

static const struct injector by_mce = {
	.inject = inject_mce,
	.code = BUS_MCEERR_AR,
	.again_is_heard = true,
	.filtered = -ETIMEDOUT,
	.for_real = true,
};

static const struct injector by_fetch = {
	.inject = inject_fetch,
	.code = BUS_MCEERR_AR,
	.again_is_heard = true,
	.for_real = true,
};

static const struct injector by_broadcast = {
	.inject = inject_broadcast,
	.code = BUS_MCEERR_AR,
	.again_is_heard = true,
	.for_real = true,
};

static const struct injector by_scrub = {
	.inject = inject_scrub,
	.code = BUS_MCEERR_AO,
	.again = -ETIMEDOUT,
	.filtered = -ETIMEDOUT,
	.for_real = true,
};

static inline bool read_long(const char *path, long *val)
{
	FILE *f = fopen(path, "r");
	bool ok;

	if (!f)
		return false;
	ok = fscanf(f, "%ld", val) == 1;
	fclose(f);
	return ok;
}

static inline bool write_long(const char *path, long val)
{
	FILE *f = fopen(path, "w");
	bool ok;

	if (!f)
		return false;
	ok = fprintf(f, "%ld", val) > 0;
	return !fclose(f) && ok;
}

static inline ssize_t read_text(const char *path, char *buf, size_t len)
{
	int fd = open(path, O_RDONLY);
	ssize_t ret;

	if (fd < 0)
		return -1;
	ret = read(fd, buf, len - 1);
	close(fd);
	buf[ret > 0 ? ret : 0] = '\0';
	return ret;
}

static inline bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_TRUNC);
	bool ok;

	if (fd < 0)
		return false;
	ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return ok;
}

/*
 * Memory blocks, which can go offline
 */

static inline const char *block_path(long block)
{
	static char path[PATH_MAX];

	snprintf(path, sizeof(path), MEMORY_BLOCKS "/memory%ld/state", block);
	return path;
}

static inline unsigned long pages_in_block(void)
{
	static unsigned long nr;
	char text[32];

	if (!nr && read_text(MEMORY_BLOCKS "/block_size_bytes", text, sizeof(text)) > 0)
		nr = strtoul(text, NULL, 16) / psize();
	return nr;
}

/* The memory block that a page is in. */
static inline long block_of(unsigned long pfn)
{
	return pfn / pages_in_block();
}

static inline int change_block(long block, const char *state)
{
	const char *path = block_path(block);

	errno = 0;
	return write_text(path, state) ? 0 : -errno;
}

static inline bool block_is_online(long block)
{
	char state[32] = "";

	read_text(block_path(block), state, sizeof(state));
	return !strncmp(state, "online", 6);
}

#define CGROUP2_OPTIONS_MAX	128
#define CGROUP2_HUGETLB		"memory_hugetlb_accounting"

/*
 * The kernel has one set of options for all mounts of cgroup2, and each mount sets
 * them anew.  Which ones are there now?
 */
static inline void cgroup2_options(char *options)
{
	static const char * const known[] = {
		"nsdelegate", "favordynmods", "memory_localevents",
		"memory_recursiveprot", CGROUP2_HUGETLB, "pids_localevents",
	};
	FILE *f = fopen("/proc/mounts", "r");
	char line[512];
	unsigned int i;

	*options = 0;
	while (f && fgets(line, sizeof(line), f)) {
		if (!strstr(line, " cgroup2 "))
			continue;
		for (i = 0; i < ARRAY_SIZE(known); i++)
			if (strstr(line, known[i]))
				sprintf(options + strlen(options), "%s%s",
					*options ? "," : "", known[i]);
		break;
	}
	if (f)
		fclose(f);
}

static inline const char *pool_path(unsigned long size, const char *name)
{
	static char path[PATH_MAX];

	snprintf(path, sizeof(path), SYSFS_HUGEPAGES "/hugepages-%lukB/%s",
		 size >> 10, name);
	return path;
}

static inline bool pool_exists(unsigned long size)
{
	return !access(pool_path(size, "nr_hugepages"), R_OK | W_OK);
}

static inline long pool_get(unsigned long size, const char *name)
{
	long val;

	return read_long(pool_path(size, name), &val) ? val : -1;
}

/* Whoever computes @val may use pool_path() for that. */
static inline bool pool_set(unsigned long size, const char *name, long val)
{
	return write_long(pool_path(size, name), val);
}

static inline struct pool pool_read(unsigned long size)
{
	return (struct pool) {
		.nr = pool_get(size, "nr_hugepages"),
		.free = pool_get(size, "free_hugepages"),
		.resv = pool_get(size, "resv_hugepages"),
		.surplus = pool_get(size, "surplus_hugepages"),
	};
}

/* The size of the hugepages that /proc/sys/vm is about. */
static inline unsigned long default_size(void)
{
	FILE *f = fopen("/proc/meminfo", "r");
	unsigned long kb = 0;
	char line[80];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "Hugepagesize: %lu kB", &kb) == 1)
			break;
	if (f)
		fclose(f);
	return kb << 10;
}

/* Make @nr hugepages available that nobody has reserved. */
static inline bool pool_grow(unsigned long size, long nr)
{
	struct pool pool = pool_read(size);
	long missing = nr - (pool.free - pool.resv);

	if (missing <= 0)
		return true;

	pool_set(size, "nr_hugepages", pool.nr + missing);
	pool = pool_read(size);
	return pool.free - pool.resv >= nr;
}

static inline void save_settings(void)
{
	DIR *dir = opendir(SYSFS_HUGEPAGES);
	struct dirent *entry;
	unsigned int i;

	while (dir && ledger->nr_sizes < MAX_SIZES) {
		unsigned long size;

		entry = readdir(dir);
		if (!entry)
			break;
		if (sscanf(entry->d_name, "hugepages-%lukB", &size) != 1)
			continue;
		size <<= 10;
		i = ledger->nr_sizes;
		ledger->saved[i].size = size;
		ledger->saved[i].nr = pool_get(size, "nr_hugepages");
		ledger->saved[i].overcommit = pool_get(size, "nr_overcommit_hugepages");
		ledger->saved[i].demote_kb = pool_get(size, "demote_size");
		ledger->nr_sizes++;
	}

	if (dir)
		closedir(dir);

	read_text(CORE_PATTERN, ledger->core_pattern, sizeof(ledger->core_pattern));
	for (i = 0; i < ARRAY_SIZE(filters); i++)
		if (!read_long(filters[i], &ledger->filter[i]))
			ledger->filter[i] = -1;
	if (!read_long(SOFT_OFFLINE, &ledger->soft_offline))
		ledger->soft_offline = 1;
}

/* What the variants of a fixture begin with that is about hugepages of any size. */
struct size_variant {
	unsigned long size;
	const struct injector *injector;
};

static inline void add_size_variant(struct __fixture_metadata *fixture, const char *how,
				    const struct injector *injector, unsigned long size)
{
	struct __fixture_variant_metadata *variant = calloc(1, sizeof(*variant));
	struct size_variant *data = calloc(1, sizeof(*data));
	unsigned long kb = size >> 10;
	char *name = malloc(32);

	if (!variant || !data || !name)
		ksft_exit_fail_perror("malloc");
	snprintf(name, 32, "%s_%lu%c", how, kb < 1024 ? kb : kb >> 10,
		 kb < 1024 ? 'k' : 'm');
	data->size = size;
	data->injector = injector;
	variant->name = name;
	variant->data = data;
	__register_fixture_variant(fixture, variant);
}

/*
 * Beside the variants for hugepages of 2 MiB and 1 GiB, which most machines have, add
 * some for each other size that there is up to 1 GiB: madvise_64k, corrupt_pfn_64k.
 */
static inline void add_size_variants(struct __fixture_metadata *fixture)
{
	DIR *dir = opendir(SYSFS_HUGEPAGES);
	struct dirent *entry;
	unsigned long kb;

	while (dir && (entry = readdir(dir))) {
		if (sscanf(entry->d_name, "hugepages-%lukB", &kb) != 1 ||
		    kb << 10 == SZ_2M || kb << 10 >= SZ_1G)
			continue;
		add_size_variant(fixture, "madvise", &by_madvise, kb << 10);
		add_size_variant(fixture, "corrupt_pfn", &by_pfn, kb << 10);
	}
	if (dir)
		closedir(dir);
}

#define FIXTURE_VARIANT_ADD_SIZES(fixture_name) \
	static_assert(sizeof(FIXTURE_VARIANT(fixture_name)) == \
		      sizeof(struct size_variant), "as in struct size_variant"); \
	static void __attribute__((constructor)) \
		_register_##fixture_name##_sizes(void) \
	{ \
		add_size_variants(&_##fixture_name##_fixture_object); \
	}

/* Let only errors in the memory of one device pass, which doesn't exist. */
static inline bool filter_all_errors(void)
{
	return write_long(DEBUGFS_FILTER_MAJOR, 0xfff) &&
	       write_long(DEBUGFS_FILTER_ENABLE, 1);
}

static inline void restore_filter(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(filters); i++)
		write_long(filters[i], ledger->filter[i]);
}

static inline void restore_soft_offline(void)
{
	write_long(SOFT_OFFLINE, ledger->soft_offline);
}

/* What tests change beside pools and pages. */
static inline void restore_settings(void)
{
	char now[sizeof(ledger->core_pattern)];

	restore_filter();
	restore_soft_offline();
	if (read_text(CORE_PATTERN, now, sizeof(now)) > 0 &&
	    strcmp(now, ledger->core_pattern))
		write_text(CORE_PATTERN, ledger->core_pattern);
	rmdir(TRACING);
}

/* What hugepages are to become: the next smaller size, unless told otherwise. */
static inline bool demote_to(unsigned long size, unsigned long smaller)
{
	return pool_set(size, "demote_size", smaller);
}

static inline void restore_pool(unsigned long size, const char *name, long val)
{
	if (pool_get(size, name) != val)
		pool_set(size, name, val);
}

static inline void restore_pools(void)
{
	unsigned int i;

	for (i = 0; i < ledger->nr_sizes; i++) {
		unsigned long size = ledger->saved[i].size;

		restore_pool(size, "nr_overcommit_hugepages", ledger->saved[i].overcommit);
		restore_pool(size, "nr_hugepages", ledger->saved[i].nr);
		if (pool_get(size, "demote_size") != ledger->saved[i].demote_kb)
			demote_to(size, ledger->saved[i].demote_kb << 10);
	}
}

/* Read the kpageflags of @nr page frames.  The file stays open, which saves much time. */
static inline bool read_kpageflags(unsigned long pfn, unsigned long nr, uint64_t *flags)
{
	static int fd = -1;
	size_t len = nr * sizeof(*flags);

	if (fd < 0)
		fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	return fd >= 0 && pread(fd, flags, len, pfn * sizeof(*flags)) == (ssize_t)len;
}

/* The same for what this process has mapped from @addr on, as entries of pagemap. */
static inline bool read_pagemap(char *addr, unsigned long nr, uint64_t *entries)
{
	static pid_t whose;
	static int fd;
	size_t len = nr * sizeof(*entries);
	off_t start = (uintptr_t)addr / psize() * sizeof(*entries);

	/* What a parent has opened is about the parent's memory. */
	if (whose != getpid()) {
		fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			return false;
		whose = getpid();
	}
	return pread(fd, entries, len, start) == (ssize_t)len;
}

static inline bool is_poisoned(unsigned long pfn)
{
	uint64_t flags = 0;

	return read_kpageflags(pfn, 1, &flags) && (flags & KPF_HWPOISON);
}

/* The pfn that @addr is mapped to, or -1UL. */
static inline unsigned long mapped_pfn(char *addr)
{
	uint64_t entry;

	if (!read_pagemap(addr, 1, &entry) || !PAGEMAP_PRESENT(entry))
		return -1UL;
	return PAGEMAP_PFN(entry);
}

static inline bool is_mapped(char *addr)
{
	return mapped_pfn(addr) != -1UL;
}

/* Move the page at @addr to @node; if that is -1, return the node it is on. */
static inline int move_page(char *addr, int node)
{
	void *page = addr;
	int status = -1;

	if (syscall(SYS_move_pages, 0, 1UL, &page, node < 0 ? NULL : &node, &status,
		    MPOL_MF_MOVE_ALL) < 0)
		return -errno;
	return status;
}

/* Let the memory of a mapping come from @node, if there are nodes. */
static inline void bind_to_node(char *addr, size_t len, int node)
{
	unsigned long nodes = 1UL << node;

	if (node >= 0)
		syscall(SYS_mbind, addr, len, MPOL_BIND, &nodes, sizeof(nodes) * 8, 0);
}

/* A node with memory beside @node, or -1. */
static inline int other_node(int node)
{
	char nodes[256];
	int first, last;

	if (read_text("/sys/devices/system/node/has_memory", nodes, sizeof(nodes)) <= 0 ||
	    sscanf(nodes, "%d%*[,-]%d", &first, &last) != 2)
		return -1;
	return node == first ? last : first;
}

static inline unsigned long hardware_corrupted(void)
{
	FILE *f = fopen("/proc/meminfo", "r");
	unsigned long kb = -1UL;
	char line[128];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "HardwareCorrupted: %lu kB", &kb) == 1)
			break;
	if (f)
		fclose(f);
	return kb;
}

/* Sum up a counter of the memory_failure statistics of all nodes. */
static inline long mf_stat(const char *name)
{
	DIR *dir = opendir("/sys/devices/system/node");
	struct dirent *entry;
	char path[PATH_MAX];
	long val, sum = -1;
	unsigned int node;

	while (dir && (entry = readdir(dir))) {
		if (sscanf(entry->d_name, "node%u", &node) != 1)
			continue;
		snprintf(path, sizeof(path),
			 "/sys/devices/system/node/node%u/memory_failure/%s", node, name);
		if (read_long(path, &val))
			sum = sum < 0 ? val : sum + val;
	}

	if (dir)
		closedir(dir);
	return sum;
}

/*
 * Give back whatever is still poisoned: a plain hugepage as a whole through its
 * first page, the lost pages of a released kept one each for itself.  A process
 * that was just killed may still hold them, or be about to release them: only
 * the counter tells when that is done.  Returns how many kB resisted.
 */
static inline long settle_ledger(void)
{
	unsigned int i, tries;

	/* A kernel that finds mistakes takes its time to free 1 GiB. */
	for (tries = 0; ledger->nr_poison && !ledger->for_ever && tries < 3000; tries++) {
		if (tries)
			usleep(20000);
		for (i = 0; i < ledger->nr_poison; i++)
			if (!is_poisoned(ledger->poison[i].pfn) ||
			    unpoison(ledger->poison[i].pfn))
				if (is_poisoned(ledger->poison[i].head))
					unpoison(ledger->poison[i].head);
		if (hardware_corrupted() == ledger->corrupted)
			break;
	}

	if (!ledger->nr_poison)
		return 0;
	ledger->nr_poison = 0;
	return ledger->for_ever ? 0 : hardware_corrupted() - ledger->corrupted;
}

/* Before the page is poisoned, for the test may not come back from it. */
static inline bool note_poison(unsigned long pfn, unsigned long head)
{
	if (ledger->nr_poison >= MAX_POISON)
		return false;

	if (!ledger->nr_poison)
		ledger->corrupted = hardware_corrupted();
	ledger->poison[ledger->nr_poison].pfn = pfn;
	ledger->poison[ledger->nr_poison].head = head;
	ledger->nr_poison++;
	return true;
}

static inline int create_memfd(unsigned long size, unsigned int flags)
{
	unsigned int log2 = __builtin_ctzl(size);

	return memfd_create("hugetlb-mfr", MFD_HUGETLB | flags | log2 << MFD_HUGE_SHIFT);
}

static inline bool kernel_can_keep(void)
{
	int fd = memfd_create("hugetlb-mfr", MFD_HUGETLB | MFD_MF_KEEP_UE_MAPPED);

	if (fd < 0)
		return false;
	close(fd);
	return true;
}

static inline char *map_file(struct subject *s, int flags)
{
	char *map = mmap(NULL, s->nr_huge * s->size, PROT_READ | PROT_WRITE,
			 flags, s->fd, 0);

	return map == MAP_FAILED ? NULL : map;
}

static inline void unmap_file(struct subject *s)
{
	munmap(s->map, s->nr_huge * s->size);
	s->map = NULL;
}

/* Every word of the file differs, so that a misplaced page can't go unseen. */
static inline void fill(struct subject *s)
{
	uint64_t *word = (uint64_t *)s->map;
	unsigned long i;

#pragma GCC unroll 8
	for (i = 0; i < s->nr_huge * s->size / sizeof(*word); i++)
		word[i] = i ^ 0xa5a5a5a5a5a5a5a5;
}

static inline bool page_is_intact(const char *page, unsigned long nr)
{
	unsigned long nr_words = psize() / sizeof(uint64_t);
	const uint64_t *word = (const uint64_t *)page;
	uint64_t differs = 0;
	unsigned long i;

	/* Emulated CPUs are slow, and slower still at branches. */
#pragma GCC unroll 8
	for (i = 0; i < nr_words; i++)
		differs |= word[i] ^ (nr * nr_words + i) ^ 0xa5a5a5a5a5a5a5a5;
	return !differs;
}

static inline bool page_is_zero(const char *page)
{
	return !page[0] && !memcmp(page, page + 1, psize() - 1);
}

/* Compare each byte that was not lost.  Returns how many raw pages changed. */
static inline unsigned long nr_changed_pages(struct subject *s)
{
	unsigned long i, nr = 0;

	for (i = 0; i < s->nr_huge * s->nr_raw; i++)
		if (!s->lost[i] && !page_is_intact(s->map + i * psize(), i))
			nr++;
	return nr;
}

static inline char *raw_page(struct subject *s, unsigned long nr)
{
	return s->map + nr * psize();
}

static inline unsigned long raw_pfn(struct subject *s, unsigned long nr)
{
	return s->head[nr / s->nr_raw] + nr % s->nr_raw;
}

/*
 * Whatever kept file is under test, is hugepage @nr at @map still one entry of
 * the page table?  hugetlb maps nothing but whole hugepages: if each raw page
 * is present in its place and belongs to a hugepage, nothing was unmapped,
 * split or moved.
 */
static inline bool is_mapped_huge(struct subject *s, char *map, unsigned long nr)
{
	unsigned long i;

	if (!read_pagemap(map + nr * s->size, s->nr_raw, s->flags))
		return false;
	for (i = 0; i < s->nr_raw; i++)
		if (!PAGEMAP_PRESENT(s->flags[i]) ||
		    PAGEMAP_PFN(s->flags[i]) != s->head[nr] + i)
			return false;

	if (!read_kpageflags(s->head[nr], s->nr_raw, s->flags))
		return false;
	for (i = 0; i < s->nr_raw; i++)
		if (!(s->flags[i] & KPF_HUGE))
			return false;
	return true;
}

static inline void *alloc_shared(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* Prepare for @nr_huge hugepages of @size, without making the file. */
static inline void setup_subject(struct __test_metadata *_metadata, struct subject *s,
				 unsigned long size, const struct injector *injector,
			  unsigned long nr_huge)
{
	struct rlimit no_core = {};
	long recovery;
	int cpu[2];

	s->size = size;
	s->nr_raw = size / psize();
	s->nr_huge = nr_huge;
	s->injector = injector;
	s->fd = -1;

	if (geteuid())
		SKIP(return, "needs root");
	if (access(DEBUGFS_CORRUPT_PFN, W_OK) || access(DEBUGFS_UNPOISON_PFN, W_OK))
		SKIP(return, "needs debugfs and hwpoison-inject");
	if (access("/proc/kpageflags", R_OK))
		SKIP(return, "needs CONFIG_PROC_PAGE_MONITOR");
	if (read_long(MF_RECOVERY, &recovery) && !recovery)
		SKIP(return, "an error would panic: vm.memory_failure_recovery is 0");
	if (injector->for_real && ledger->monitor < 0)
		SKIP(return, "needs the monitor of a virtual machine, see machine_check.h");
	if (access(SOFT_OFFLINE_PAGE, W_OK))
		SKIP(return, "needs CONFIG_MEMORY_FAILURE's soft_offline_page");
	if ((injector == &by_scrub || injector == &by_broadcast) && mce_on_amd())
		SKIP(return, "not a machine check on AMD's CPUs");
	if (injector->for_real && !mce_cpus(cpu))
		SKIP(return, "needs CPUs without ticks: nohz_full, isolcpus");
	if (!injector->for_real && ledger->for_ever)
		SKIP(return, "a machine check has disabled unpoisoning");
	if (!pool_exists(size))
		SKIP(return, "no hugepages of %lu kB here", size >> 10);

	/* A test that ran out of time has not cleaned up. */
	restore_settings();
	settle_ledger();
	restore_pools();

	if (!pool_grow(size, nr_huge)) {
		restore_pools();
		SKIP(return, "can't get %lu hugepages of %lu kB", nr_huge, size >> 10);
	}

	ASSERT_EQ(0, setrlimit(RLIMIT_CORE, &no_core));
	ASSERT_EQ(0, setup_sighandler());
	ASSERT_EQ(0, prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0));

	s->head = alloc_shared(nr_huge * sizeof(*s->head));
	s->lost = alloc_shared(nr_huge * s->nr_raw);
	s->flags = alloc_shared(s->nr_raw * sizeof(*s->flags));
	ASSERT_NE(NULL, s->head);
	ASSERT_NE(NULL, s->lost);
	ASSERT_NE(NULL, s->flags);

	s->before = pool_read(size);
	s->corrupted = hardware_corrupted();
	ASSERT_NE(-1UL, s->corrupted);
}

/* Fill the file, and see where it is. */
static inline void fill_subject(struct __test_metadata *_metadata, struct subject *s)
{
	unsigned long i;

	ASSERT_EQ(0, ftruncate(s->fd, s->nr_huge * s->size));
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
	fill(s);

	for (i = 0; i < s->nr_huge; i++) {
		s->head[i] = mapped_pfn(s->map + i * s->size);
		ASSERT_NE(-1UL, s->head[i]);
		/* No frame number, no injection: lockdown or a user namespace. */
		ASSERT_NE(0, s->head[i]);
	}
}

static inline void open_subject(struct __test_metadata *_metadata, struct subject *s,
				unsigned int flags)
{
	s->fd = create_memfd(s->size, flags);
	ASSERT_LE(0, s->fd);
	fill_subject(_metadata, s);
}

/* Runs in the parent when the test and all it held is gone. */
static inline void teardown_subject(struct __test_metadata *_metadata, struct subject *s)
{
	restore_settings();
	EXPECT_EQ(0, settle_ledger());
	if (!ledger->for_ever)
		EXPECT_EQ(s->corrupted, hardware_corrupted());
	restore_pools();
}

/* Get @nr hugepages more, beside those of the file. */
static inline bool need_more_hugepages(struct subject *s, long nr)
{
	if (!pool_grow(s->size, nr))
		return false;

	s->before = pool_read(s->size);
	s->before.free += s->nr_huge;
	return true;
}

static inline void expect_sigbus(struct __test_metadata *_metadata, int code, char *addr,
				 unsigned int lsb)
{
	EXPECT_EQ(1, heard.nr);
	EXPECT_EQ(code, heard.code);
	EXPECT_EQ((uintptr_t)addr, heard.addr);
	EXPECT_EQ(lsb, heard.lsb);
}

/* A fault tells the address it happened at, somewhere in the lost page. */
static inline void expect_fault_in(struct __test_metadata *_metadata, char *page)
{
	EXPECT_EQ(1, heard.nr);
	EXPECT_EQ(BUS_MCEERR_AR, heard.code);
	EXPECT_EQ((uintptr_t)page, heard.addr & ~((uintptr_t)psize() - 1));
	EXPECT_EQ(pshift(), heard.lsb);
}

static inline void expect_corrupted(struct __test_metadata *_metadata, struct subject *s)
{
	EXPECT_EQ(s->corrupted + s->nr_lost * (psize() >> 10), hardware_corrupted());
}

/* Compare a pool with how it was before, less @gone hugepages, @used in use. */
static inline void expect_pool(struct __test_metadata *_metadata, struct subject *s,
			       long gone, long used)
{
	struct pool pool = pool_read(s->size);

	EXPECT_EQ(s->before.nr - gone, pool.nr);
	EXPECT_EQ(s->before.free - gone - used, pool.free);
	EXPECT_EQ(s->before.resv, pool.resv);
	EXPECT_EQ(s->before.surplus, pool.surplus);
}

static inline int inject(struct subject *s, unsigned long nr)
{
	int ret;

	heard.nr = 0;
	injecting = true;
	ret = s->injector->inject(s->map ? raw_page(s, nr) : NULL, raw_pfn(s, nr));
	injecting = false;
	return ret;
}

static inline void note_lost(struct __test_metadata *_metadata, struct subject *s,
			     unsigned long nr)
{
	ASSERT_FALSE(s->lost[nr]);
	ASSERT_TRUE(note_poison(raw_pfn(s, nr), s->head[nr / s->nr_raw]));
	s->lost[nr] = true;
	s->nr_lost++;
}

/* Lose raw page @nr of a kept file: one exact signal, one page more lost. */
static inline void lose(struct __test_metadata *_metadata, struct subject *s,
			unsigned long nr)
{
	note_lost(_metadata, s, nr);
	ASSERT_EQ(0, inject(s, nr));
	if (s->map)
		expect_sigbus(_metadata, s->injector->code, raw_page(s, nr), pshift());
	else
		EXPECT_EQ(0, heard.nr);
	expect_corrupted(_metadata, s);
	/* One page that went wrong says enough. */
	if (_metadata->exit_code)
		ASSERT_EQ(KSFT_PASS, _metadata->exit_code);
}

/* Lose raw page @nr of a file without the flag: the signal means all of it. */
static inline void lose_hugepage(struct __test_metadata *_metadata, struct subject *s,
				 unsigned long nr)
{
	note_lost(_metadata, s, nr);
	ASSERT_EQ(0, inject(s, nr));
	expect_sigbus(_metadata, s->injector->code, raw_page(s, nr),
		      __builtin_ctzl(s->size));
	expect_corrupted(_metadata, s);
}

/* Pages that the kernel never gives back count from now on. */
static inline void give_up(struct subject *s, unsigned long huge)
{
	unsigned long i, kb = psize() >> 10;
	unsigned int j = 0;

	for (i = huge * s->nr_raw; i < (huge + 1) * s->nr_raw; i++) {
		if (!s->lost[i])
			continue;
		s->lost[i] = false;
		s->nr_lost--;
		s->corrupted += kb;
		ledger->corrupted += kb;
	}
	while (j < ledger->nr_poison)
		if (ledger->poison[j].head == s->head[huge])
			ledger->poison[j] = ledger->poison[--ledger->nr_poison];
		else
			j++;
}

#define NR_SPOTS	8

/* Places in a hugepage where a mistake would show. */
static inline unsigned long spot(struct subject *s, unsigned int i)
{
	unsigned long nr = s->nr_raw;
	unsigned long line = s->size > SZ_2M ? SZ_2M / psize() : nr / 4;
	const unsigned long spots[NR_SPOTS] = {
		0, nr - 1,		/* head and last page */
		line - 1, line,		/* both sides of a 2 MiB line */
		1, nr - 2,
		nr / 2, nr / 2 + 3,
	};

	return spots[i];
}

/* An error that the filter turns away, as it is now, has not happened. */
static inline void expect_turned_away(struct __test_metadata *_metadata,
				      struct subject *s, unsigned long nr)
{
	ASSERT_TRUE(note_poison(raw_pfn(s, nr), s->head[nr / s->nr_raw]));
	EXPECT_EQ(s->injector->filtered, inject(s, nr));
	restore_filter();

	EXPECT_EQ(0, heard.nr);
	expect_corrupted(_metadata, s);
	EXPECT_FALSE(is_poisoned(raw_pfn(s, nr)));
	EXPECT_FALSE(is_poisoned(s->head[nr / s->nr_raw]));
	EXPECT_TRUE(try_write(raw_page(s, nr)));
	EXPECT_TRUE(is_mapped_huge(s, s->map, nr / s->nr_raw));
}

static inline void expect_filtered(struct __test_metadata *_metadata, struct subject *s,
				   unsigned long nr)
{
	ASSERT_TRUE(filter_all_errors());
	expect_turned_away(_metadata, s, nr);
}

static inline void lose_spots(struct __test_metadata *_metadata, struct subject *s)
{
	unsigned int i;

	for (i = 0; i < NR_SPOTS; i++)
		lose(_metadata, s, spot(s, i));
}

/*
 * Many lost pages: all of a small hugepage, several hundred of a large one,
 * its first and last among them.
 */
static inline void lose_many(struct __test_metadata *_metadata, struct subject *s)
{
	/* Machine checks take their time. */
	unsigned long step = s->injector->for_real ? s->nr_raw / 30 :
			     s->nr_raw > 512 ? s->nr_raw / 300 : 1;
	unsigned long i;

	for (i = 0; i < s->nr_raw; i += step)
		lose(_metadata, s, i);
	if (!s->lost[s->nr_raw - 1])
		lose(_metadata, s, s->nr_raw - 1);
}

/* A healthy neighbour of the lost page @nr. */
static inline unsigned long neighbour(unsigned long nr)
{
	return nr ^ 1;
}

/*
 * The lost pages of a released hugepage are poisoned, and neither free nor part
 * of anything else.  The release may be left to a worker, which takes its time.
 * But at no time may a lost page be free.
 */
static inline void expect_out_of_use(struct __test_metadata *_metadata, struct subject *s,
				     unsigned long huge)
{
	const uint64_t bad = KPF_IN_USE | KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL;
	unsigned long nr_unpoisoned, nr_used, nr_free;
	unsigned long i, tries;

	for (tries = 0; tries < 250; tries++) {
		ASSERT_TRUE(read_kpageflags(s->head[huge], s->nr_raw, s->flags));
		nr_unpoisoned = 0;
		nr_used = 0;
		nr_free = 0;
		for (i = 0; i < s->nr_raw; i++) {
			if (!s->lost[huge * s->nr_raw + i])
				continue;
			nr_unpoisoned += !(s->flags[i] & KPF_HWPOISON);
			nr_used += !!(s->flags[i] & bad);
			nr_free += !!(s->flags[i] & KPF_BUDDY);
		}
		if (nr_free || (!nr_unpoisoned && !nr_used))
			break;
		usleep(20000);
	}
	EXPECT_EQ(0, nr_unpoisoned);
	EXPECT_EQ(0, nr_used);
	EXPECT_EQ(0, nr_free);
}

/*
 * Count the healthy pages that are neither free nor in anybody's use, and the lost ones
 * that are free, and note one.
 */
static inline unsigned long nr_astray(struct __test_metadata *_metadata, struct subject *s,
				      unsigned long huge, unsigned long *which)
{
	unsigned long i, nr = 0;
	bool astray;

	ASSERT_TRUE(read_kpageflags(s->head[huge], s->nr_raw, s->flags));
	for (i = 0; i < s->nr_raw; i++) {
		if (s->lost[huge * s->nr_raw + i])
			astray = s->flags[i] & KPF_BUDDY;
		else
			astray = !(s->flags[i] & (KPF_BUDDY | KPF_IN_USE));
		if (astray) {
			*which = i;
			nr++;
		}
	}
	return nr;
}

/*
 * Pages may be free and yet not show as such, on a per-cpu list.  Soft
 * offlining a page empties those of its zone, before it asks the filter.  What opens
 * and closes files allocates and frees pages, and so isn't done in between.
 */
static inline int open_drain(void)
{
	filter_all_errors();
	write_long(SOFT_OFFLINE, 1);
	return open(SOFT_OFFLINE_PAGE, O_WRONLY);
}

static inline void drain_percpu_lists(int drain, unsigned long pfn)
{
	char addr[32];

	snprintf(addr, sizeof(addr), "0x%lx\n", pfn * psize());
	/* Which is what the filter is for. */
	if (write(drain, addr, strlen(addr)) > 0)
		ksft_print_msg("a filtered page was offlined\n");
}

static inline void close_drain(int drain)
{
	close(drain);
	restore_soft_offline();
	restore_filter();
}

/*
 * Of a released hugepage, each healthy page must show on the lists of the buddy
 * allocator, or in use, and no lost one.
 */
static inline void expect_rest_is_free(struct __test_metadata *_metadata,
				       struct subject *s, unsigned long huge)
{
	unsigned long i, tries, which = 0, astray = 0;
	int drain = open_drain();

	for (i = 0; i < s->nr_raw - 1 && s->lost[huge * s->nr_raw + i]; i++)
		;
	/* The lost ones are set apart first, and a worker may free the others. */
	for (tries = 0; tries < 50; tries++) {
		drain_percpu_lists(drain, s->head[huge] + i);
		astray = nr_astray(_metadata, s, huge, &which);
		if (!astray)
			break;
		usleep(20000);
	}
	close_drain(drain);
	EXPECT_GE(s->nr_unknown, astray)
		/* page_owner=on may know more. */
		ksft_print_msg("the last one is pfn %#lx, its kpageflags %#llx\n",
			       s->head[huge] + which, (unsigned long long)s->flags[which]);
}

/*
 * The lost pages of a released hugepage are out of use, and all others free.
 * Unpoison the lost ones one by one: they must be free then, too.  After a machine
 * check that can't be done any more, and they count from now on.
 */
static inline void expect_all_come_back(struct __test_metadata *_metadata,
					struct subject *s, unsigned long huge)
{
	unsigned long first = huge * s->nr_raw;
	unsigned long i;

	expect_out_of_use(_metadata, s, huge);
	expect_rest_is_free(_metadata, s, huge);

	for (i = first; i < first + s->nr_raw; i++) {
		if (!s->lost[i])
			continue;
		if (ledger->for_ever) {
			s->corrupted += psize() >> 10;
		} else {
			EXPECT_EQ(0, unpoison(raw_pfn(s, i)))
				break;
		}
		s->lost[i] = false;
		s->nr_lost--;
		expect_corrupted(_metadata, s);
	}
	if (!ledger->for_ever)
		expect_rest_is_free(_metadata, s, huge);
}

static inline void wait_for_release(struct subject *s, long gone)
{
	int i;

	for (i = 0; i < 250; i++) {
		struct pool pool = pool_read(s->size);

		if (pool.nr == s->before.nr - gone && pool.free == s->before.free - gone)
			break;
		usleep(20000);
	}
}

/* The file is gone: one hugepage less, and of that only the lost pages lost. */
static inline void expect_released(struct __test_metadata *_metadata, struct subject *s)
{
	wait_for_release(s, 1);
	expect_pool(_metadata, s, 1, 0);
	expect_corrupted(_metadata, s);
	expect_all_come_back(_metadata, s, 0);
	expect_pool(_metadata, s, 1, 0);
}

static inline int punch(struct subject *s, off_t start, off_t len)
{
	return fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start, len);
}

/* Zero a range of bytes, without a change of the file's size. */
static inline int zero(struct subject *s, off_t start, off_t len)
{
	return fallocate(s->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, start, len) ?
	       -errno : 0;
}

static inline int zero_page(struct subject *s, unsigned long nr)
{
	return zero(s, nr * psize(), psize());
}

/* How many lost pages the map of the file shows, -1 if it can't be read. */
static inline long nr_on_map(struct subject *s)
{
	unsigned long start, len, nr = 0;
	char line[256], path[64];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", s->fd);
	f = fopen(path, "r");
	if (!f)
		return -1;
	while (fgets(line, sizeof(line), f))
		if (sscanf(line, "mf-lost: %lx %lx", &start, &len) == 2)
			nr += len / psize();
	fclose(f);
	return nr;
}

/* Lost pages that are healed read zero. */
static inline void expect_zero(struct __test_metadata *_metadata, struct subject *s)
{
	unsigned long i, nr_not_zero = 0;

	for (i = 0; i < s->nr_huge * s->nr_raw; i++)
		if (s->lost[i])
			nr_not_zero += !page_is_zero(raw_page(s, i));
	EXPECT_EQ(0, nr_not_zero);
}

/*
 * Another hugepage has taken the place of hugepage 0: what was lost is zero, all else
 * is as it was, and the old one has left as at the end of any other.
 */
static inline void expect_replaced(struct __test_metadata *_metadata, struct subject *s)
{
	unsigned long old = s->head[0];

	EXPECT_EQ(0, nr_on_map(s));
	expect_zero(_metadata, s);
	EXPECT_EQ(0, nr_changed_pages(s));
	EXPECT_NE(old, mapped_pfn(s->map));
	expect_corrupted(_metadata, s);
	expect_all_come_back(_metadata, s, 0);
	/* The test of contents has faulted it in. */
	s->head[0] = mapped_pfn(s->map);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
}

/* Give up the lost pages of hugepage 0 one by one: nothing happens before the last. */
static inline void zero_spots(struct __test_metadata *_metadata, struct subject *s)
{
	unsigned int i;

	for (i = 0; i < NR_SPOTS - 1; i++)
		EXPECT_EQ(-EIO, zero_page(s, spot(s, i)));
	EXPECT_EQ(0, zero_page(s, spot(s, i)));
}

/* End a child that would never end by itself. It must not have died before. */
static inline void kill_child(struct __test_metadata *_metadata, pid_t pid)
{
	int status;

	kill(pid, SIGKILL);
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFSIGNALED(status));
	EXPECT_EQ(SIGKILL, WTERMSIG(status));
}

static inline void wait_for_child(struct __test_metadata *_metadata, pid_t pid)
{
	int status;

	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	ASSERT_TRUE(WIFEXITED(status));
	ASSERT_EQ(0, WEXITSTATUS(status));
}

/* fork() a process that does not outlive the test. */
static inline pid_t fork_helper(void)
{
	pid_t parent = getpid(), pid = fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		/* It may be dead already. */
		if (getppid() != parent)
			raise(SIGKILL);
	}
	return pid;
}

/*
 * Another process that maps the file and reports each SIGBUS it gets.  It
 * collects them instead of handling them, so none can be missed.
 */
struct witness {
	pid_t pid;
	int report;
	char *map;
};

static inline void be_witness(struct subject *s, int policy, int report)
{
	siginfo_t si;
	sigset_t set;
	char *map;

	sigemptyset(&set);
	sigaddset(&set, SIGBUS);
	sigprocmask(SIG_BLOCK, &set, NULL);
	prctl(PR_MCE_KILL, PR_MCE_KILL_SET, policy, 0, 0);

	/* At an address of its own, and nowhere else. */
	map = map_file(s, MAP_SHARED);
	munmap(s->map, s->nr_huge * s->size);
	if (map)
		read_byte(map);
	while (write(report, &map, sizeof(map)) == sizeof(map)) {
		if (sigwaitinfo(&set, &si) != SIGBUS)
			break;
		if (write(report, &si, sizeof(si)) != sizeof(si))
			break;
	}
	_exit(KSFT_FAIL);
}

static inline void start_witness(struct __test_metadata *_metadata, struct subject *s,
				 struct witness *w, int policy)
{
	int fds[2];

	ASSERT_EQ(0, pipe(fds));
	w->pid = fork_helper();
	ASSERT_LE(0, w->pid);
	if (!w->pid)
		be_witness(s, policy, fds[1]);
	close(fds[1]);
	w->report = fds[0];
	ASSERT_EQ(sizeof(w->map), read(w->report, &w->map, sizeof(w->map)));
	ASSERT_NE(NULL, w->map);
}

static inline bool witness_heard(struct witness *w, siginfo_t *si, int timeout_ms)
{
	struct pollfd pfd = { .fd = w->report, .events = POLLIN };
	char *map;

	return poll(&pfd, 1, timeout_ms) == 1 &&
	       read(w->report, si, sizeof(*si)) == sizeof(*si) &&
	       read(w->report, &map, sizeof(map)) == sizeof(map);
}

static inline void stop_witness(struct witness *w)
{
	kill(w->pid, SIGKILL);
	waitpid(w->pid, NULL, 0);
	close(w->report);
}

/* Missing in the headers of 6.12: IORING_OP_READV_FIXED, _WRITEV_FIXED */
#define OP_READV_FIXED		60
#define OP_WRITEV_FIXED		61

/*
 * A ring of io_uring for one request at a time, and for one registered buffer: a
 * long-term pin, as VFIO would have it.
 */
struct ring {
	int fd;
	void *mem;
	struct io_uring_params params;
	struct io_uring_sqe *sqe;
};

static inline bool make_ring(struct ring *r)
{
	size_t len;

	memset(r, 0, sizeof(*r));
	r->params.flags = IORING_SETUP_NO_SQARRAY;
	r->fd = syscall(SYS_io_uring_setup, 1, &r->params);
	if (r->fd < 0)
		return false;
	len = r->params.cq_off.cqes +
	      r->params.cq_entries * sizeof(struct io_uring_cqe);
	r->mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd,
		      IORING_OFF_SQ_RING);
	r->sqe = mmap(NULL, sizeof(*r->sqe), PROT_READ | PROT_WRITE, MAP_SHARED,
		      r->fd, IORING_OFF_SQES);
	return r->mem != MAP_FAILED && r->sqe != MAP_FAILED;
}

static inline int register_buffer(struct ring *r, char *addr, size_t len)
{
	struct iovec iov = { .iov_base = addr, .iov_len = len };

	return syscall(SYS_io_uring_register, r->fd, IORING_REGISTER_BUFFERS, &iov, 1);
}

/* Have a part of the registered buffer written to @fd, or read from there. */
static inline void prepare_fixed(struct ring *r, int opcode, int fd, void *addr,
				 size_t len)
{
	memset(r->sqe, 0, sizeof(*r->sqe));
	r->sqe->opcode = opcode;
	r->sqe->fd = fd;
	r->sqe->addr = (uintptr_t)addr;
	r->sqe->len = len;
	/* Of sockets the opcode doesn't say that. */
	if (opcode == IORING_OP_SEND || opcode == IORING_OP_RECV ||
	    opcode == IORING_OP_SEND_ZC)
		r->sqe->ioprio = IORING_RECVSEND_FIXED_BUF;
}

static inline int submit(struct ring *r)
{
	unsigned int *tail = r->mem + r->params.sq_off.tail;

	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	return syscall(SYS_io_uring_enter, r->fd, 1, 0, 0, NULL, 0) == 1 ? 0 : -errno;
}

static inline int submit_fixed(struct ring *r, int opcode, int fd, void *addr,
			       size_t len)
{
	prepare_fixed(r, opcode, fd, addr, len);
	return submit(r);
}

static inline bool is_in_flight(struct ring *r)
{
	unsigned int *head = r->mem + r->params.cq_off.head;
	unsigned int *tail = r->mem + r->params.cq_off.tail;

	return *head == __atomic_load_n(tail, __ATOMIC_ACQUIRE);
}

static inline int wait_fixed(struct ring *r)
{
	unsigned int *head = r->mem + r->params.cq_off.head;
	unsigned int *mask = r->mem + r->params.cq_off.ring_mask;
	struct io_uring_cqe *cqe = r->mem + r->params.cq_off.cqes;
	int ret;

	if (syscall(SYS_io_uring_enter, r->fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0))
		return -errno;
	ret = cqe[*head & *mask].res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return ret;
}

static inline int transfer_fixed(struct ring *r, int opcode, int fd, char *addr,
				 size_t len)
{
	int ret = submit_fixed(r, opcode, fd, addr, len);

	return ret ?: wait_fixed(r);
}

static inline void destroy_ring(struct ring *r)
{
	/* The close leaves that to a worker. */
	syscall(SYS_io_uring_register, r->fd, IORING_UNREGISTER_BUFFERS, NULL, 0);
	munmap(r->sqe, sizeof(*r->sqe));
	munmap(r->mem, r->params.cq_off.cqes +
	       r->params.cq_entries * sizeof(struct io_uring_cqe));
	close(r->fd);
}

/* A device that mirrors the page tables of the process that has opened it. */
static inline int open_mirror(void)
{
	return open("/dev/hmm_dmirror0", O_RDWR);
}

/*
 * Let it read or write @npages from @addr, or look at them.  It asks the kernel for
 * those that it doesn't have: *@faults tells how often, if that is of interest.
 */
static inline int mirror(int fd, unsigned long request, const char *addr, void *buf,
			 unsigned long npages, unsigned long *faults)
{
	struct hmm_dmirror_cmd cmd = {
		.addr = (uintptr_t)addr,
		.ptr = (uintptr_t)buf,
		.npages = npages,
	};
	int ret = ioctl(fd, request, &cmd) ? -errno : 0;

	if (faults)
		*faults = cmd.faults;
	return ret;
}

/*
 * CPUs of a virtual machine that are stopped at exact instructions: HUGETLB_MFR_AT leads
 * to mce-at, outside of it.
 */

/* The line to mce-at, or -1. */
static int mce_at = -1;

static inline long ask_mce_at(const char *question)
{
	struct pollfd pfd = { .fd = mce_at, .events = POLLIN };
	char answer[64];
	ssize_t len;

	/* A test that was killed has not read its answer. */
	while (poll(&pfd, 1, 0) == 1 && (pfd.revents & POLLIN) &&
	       read(mce_at, answer, sizeof(answer)) > 0)
		;
	if (write(mce_at, question, strlen(question)) != (ssize_t)strlen(question))
		return -1;
	len = read(mce_at, answer, sizeof(answer) - 1);
	if (len <= 0)
		return -1;
	answer[len] = '\0';
	return !strcmp(answer, "ok\n") ? 0 : isdigit(*answer) ? atol(answer) : -1;
}

static inline void open_mce_at(void)
{
	const char *path = getenv("HUGETLB_MFR_AT");

	if (path)
		mce_at = open(path, O_RDWR | O_CLOEXEC);
	/* A test that has died left it as it was. */
	if (mce_at >= 0 && ask_mce_at("clear\n") < 0)
		mce_at = -1;
}

/* Where x86-64 has the struct pages, unless it is told to choose that at random. */
#define STRUCT_PAGES		0xffffea0000000000UL
#define STRUCT_PAGE_SIZE	64
#define STRUCT_PAGE_COMPOUND	8

/* Where in the kernel the function @name is, and how much code. */
static inline bool find_function(const char *name, unsigned long *start, size_t *len)
{
	FILE *f = fopen("/proc/kallsyms", "r");
	size_t name_len = strlen(name);
	unsigned long addr;
	char line[256], *p;

	*start = 0;
	*len = 0;
	while (f && !*len && fgets(line, sizeof(line), f)) {
		addr = strtoul(line, &p, 16);
		if (*start && addr != *start)
			*len = addr - *start;
		else if (!strncmp(p + 3, name, name_len) && isspace(p[3 + name_len]))
			*start = addr;
	}
	if (f)
		fclose(f);
	return *len;
}

/*
 * Have the first CPU held that is about to call @callee in @caller; if @other, at
 * another place than where that is called first.
 */
static inline bool hold_at_call(const char *caller, const char *callee, bool other)
{
	unsigned long from, to;
	size_t len, unused;
	char question[80];

	if (!find_function(callee, &to, &unused) || !find_function(caller, &from, &len))
		return false;
	snprintf(question, sizeof(question), "hold %lx %zx %lx %x\n", from, len, to, other);
	return !ask_mce_at(question);
}

static inline bool hold_call(const char *caller, const char *callee)
{
	return hold_at_call(caller, callee, false);
}

/* Have the first CPU held that has looked up which folio page @pfn is part of. */
static inline bool hold_lookup(unsigned long pfn)
{
	char question[80];

	snprintf(question, sizeof(question), "watch %lx\n",
		 STRUCT_PAGES + pfn * STRUCT_PAGE_SIZE + STRUCT_PAGE_COMPOUND);
	return !ask_mce_at(question);
}

static inline bool is_held(void)
{
	return !ask_mce_at("held\n");
}

/* Let it go on.  Was it there until now? */
static inline bool let_go_on(void)
{
	return !ask_mce_at("release\n");
}

/* For tests that could not: give back what they have taken. */
static inline void clean_up(void)
{
	if (getpid() != ledger->owner)
		return;
	restore_settings();
	settle_ledger();
	restore_pools();
}

static inline void clean_up_and_die(int sig)
{
	/* exit() will call clean_up(). */
	exit(KSFT_FAIL);
}

/* Has there been a machine check before this program?  Nothing else refuses so. */
static inline bool unpoisoning_is_disabled(void)
{
	char *page = mmap(NULL, psize(), PROT_READ | PROT_WRITE,
			  MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
	bool disabled;

	if (page == MAP_FAILED)
		return false;
	disabled = unpoison(mapped_pfn(page)) == -EOPNOTSUPP;
	munmap(page, psize());
	return disabled;
}

static inline void open_ledger(void)
{
	ledger = alloc_shared(sizeof(*ledger));
	if (!ledger)
		ksft_exit_fail_perror("mmap");
	ledger->owner = getpid();
	ledger->monitor = mce_open_monitor();
	ledger->for_ever = unpoisoning_is_disabled();
	save_settings();
	atexit(clean_up);
	signal(SIGINT, clean_up_and_die);
	signal(SIGTERM, clean_up_and_die);
	signal(SIGHUP, clean_up_and_die);
}

#endif /* _SELFTESTS_MM_MFR_UTIL_H */
