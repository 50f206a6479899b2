/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The part of the tests' library that needs the test harness: it sets up a file, loses
 * pages of it, and checks what must hold then.
 */
#ifndef _SELFTESTS_MM_MFR_HARNESS_H
#define _SELFTESTS_MM_MFR_HARNESS_H

#include "../kselftest_harness.h"
#include <assert.h>
#include <linux/magic.h>
#include <sys/vfs.h>
#include "mfr_util.h"

/* Clearing 1 GiB alone takes seconds on an emulated CPU, and minutes with KASAN. */
#define SLOW			600

/* More than one folio batch, so that a truncation needs several of them. */
#define NR_TRUNCATED		40

/* Skip the rest of a test.  If something has failed in it already, that stays so. */
#define SKIP_REST(statement, fmt, ...) do { \
	if (_metadata->exit_code != KSFT_FAIL) \
		SKIP(, fmt, ##__VA_ARGS__); \
	statement; \
} while (0)

/* An unnamed file for direct I/O, or -1 in a test that is skipped */
static inline int open_direct(struct __test_metadata *_metadata)
{
	struct statfs fs;
	int fd = open(".", O_TMPFILE | O_RDWR | O_DIRECT, 0600);

	if (fd < 0 || fstatfs(fd, &fs))
		SKIP(return -1, "no O_DIRECT and O_TMPFILE in this directory");
	if (fs.f_type == TMPFS_MAGIC || fs.f_type == RAMFS_MAGIC)
		SKIP(return -1, "O_DIRECT means nothing in this directory");
	return fd;
}

/* A call that fails, with that error. */
#define EXPECT_ERRNO(error, call) do { \
	errno = 0; \
	EXPECT_EQ(-1, call); \
	EXPECT_EQ(error, errno); \
} while (0)

/*
 * Variants that many fixtures have: ways to lose a page, each in hugepages of a size that
 * most machines have.
 */
struct size_variant {
	unsigned long size;
	const struct injector *injector;
};

struct named_variant {
	const char *name;
	struct size_variant data;
};

static const struct named_variant simulated[] = {
	{ "madvise", { SZ_2M, &by_madvise } },
	{ "corrupt_pfn", { SZ_2M, &by_pfn } },
};

static const struct named_variant simulated_and_mce[] = {
	{ "madvise", { SZ_2M, &by_madvise } },
	{ "corrupt_pfn", { SZ_2M, &by_pfn } },
	{ "mce", { SZ_2M, &by_mce } },
};

static const struct named_variant simulated_2m[] = {
	{ "madvise_2m", { SZ_2M, &by_madvise } },
	{ "corrupt_pfn_2m", { SZ_2M, &by_pfn } },
};

static const struct named_variant simulated_and_mce_2m[] = {
	{ "madvise_2m", { SZ_2M, &by_madvise } },
	{ "corrupt_pfn_2m", { SZ_2M, &by_pfn } },
	{ "mce_2m", { SZ_2M, &by_mce } },
};

static const struct named_variant all_2m_and_1g[] = {
	{ "madvise_2m", { SZ_2M, &by_madvise } },
	{ "corrupt_pfn_2m", { SZ_2M, &by_pfn } },
	{ "mce_2m", { SZ_2M, &by_mce } },
	{ "scrub_2m", { SZ_2M, &by_scrub } },
	{ "madvise_1g", { SZ_1G, &by_madvise } },
	{ "corrupt_pfn_1g", { SZ_1G, &by_pfn } },
};

static inline void add_variant(struct __fixture_metadata *fixture, const char *name,
			       const struct size_variant *data)
{
	struct __fixture_variant_metadata *variant = calloc(1, sizeof(*variant));

	if (!variant)
		ksft_exit_fail_perror("malloc");
	variant->name = name;
	variant->data = data;
	__register_fixture_variant(fixture, variant);
}

static inline void add_size_variant(struct __fixture_metadata *fixture, const char *how,
				    const struct injector *injector, unsigned long size)
{
	struct size_variant *data = calloc(1, sizeof(*data));
	unsigned long kb = size >> 10;
	char *name = malloc(32);

	if (!data || !name)
		ksft_exit_fail_perror("malloc");
	snprintf(name, 32, "%s_%lu%c", how, kb < 1024 ? kb : kb >> 10,
		 kb < 1024 ? 'k' : 'm');
	data->size = size;
	data->injector = injector;
	add_variant(fixture, name, data);
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

static inline void add_variants(struct __fixture_metadata *fixture,
				const struct named_variant *table, size_t len)
{
	unsigned int i;

	for (i = 0; i < len / sizeof(*table); i++)
		add_variant(fixture, table[i].name, &table[i].data);
}

/* Give a fixture the variants of a table. */
#define FIXTURE_VARIANTS(fixture_name, table) \
	FIXTURE_VARIANT(fixture_name) { \
		unsigned long size; \
		const struct injector *injector; \
	}; \
	static void __attribute__((constructor)) \
		_register_##fixture_name##_variants(void) \
	{ \
		add_variants(&_##fixture_name##_fixture_object, table, sizeof(table)); \
	}

#define FIXTURE_VARIANT_ADD_SIZES(fixture_name) \
	static_assert(sizeof(FIXTURE_VARIANT(fixture_name)) == \
		      sizeof(struct size_variant), "as in struct size_variant"); \
	static void __attribute__((constructor)) \
		_register_##fixture_name##_sizes(void) \
	{ \
		add_size_variants(&_##fixture_name##_fixture_object); \
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
	if (injector->is_hw && undo->monitor < 0)
		SKIP(return, "needs the monitor of a virtual machine, see machine_check.h");
	if (access(SOFT_OFFLINE_PAGE, W_OK))
		SKIP(return, "needs CONFIG_MEMORY_FAILURE's soft_offline_page");
	if ((injector == &by_scrub || injector == &by_broadcast) && mce_on_amd())
		SKIP(return, "not a machine check on AMD's CPUs");
	if (injector->is_hw && !mce_cpus(cpu))
		SKIP(return, "needs CPUs without ticks: nohz_full, isolcpus");
	if (!injector->is_hw && undo->mce_seen)
		SKIP(return, "a machine check has disabled unpoisoning");
	if (!pool_exists(size))
		SKIP(return, "no hugepages of %lu kB here", size >> 10);

	/* A test that ran out of time has not cleaned up. */
	restore_settings();
	unpoison_all();
	restore_pools();

	if (!pool_grow(size, nr_huge)) {
		restore_pools();
		SKIP(return, "can't get %lu hugepages of %lu kB", nr_huge, size >> 10);
	}

	listen_to_kernel();
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

/* See where the file is. */
static inline void find_heads(struct __test_metadata *_metadata, struct subject *s)
{
	unsigned long i;

	for (i = 0; i < s->nr_huge; i++) {
		s->head[i] = mapped_pfn(s->map + i * s->size);
		ASSERT_NE(-1UL, s->head[i]);
		/* No frame number, no injection: lockdown or a user namespace. */
		ASSERT_NE(0, s->head[i]);
	}
}

/* Make a file that has nothing in it, and map it. */
static inline void open_holes(struct __test_metadata *_metadata, struct subject *s,
			      unsigned int flags)
{
	s->fd = create_memfd(s->size, flags);
	ASSERT_LE(0, s->fd);
	ASSERT_EQ(0, ftruncate(s->fd, s->nr_huge * s->size));
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
}

/* Make a file with all its hugepages, but don't fill them. */
static inline void open_unfilled(struct __test_metadata *_metadata, struct subject *s,
				 unsigned int flags)
{
	unsigned long i;

	open_holes(_metadata, s, flags);
	for (i = 0; i < s->nr_huge; i++)
		ASSERT_TRUE(try_write(s->map + i * s->size));
	find_heads(_metadata, s);
}

/* Fill a file. */
static inline void fill_subject(struct __test_metadata *_metadata, struct subject *s)
{
	ASSERT_EQ(0, ftruncate(s->fd, s->nr_huge * s->size));
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
	fill(s);
	find_heads(_metadata, s);
}

static inline void open_subject(struct __test_metadata *_metadata, struct subject *s,
				unsigned int flags)
{
	open_holes(_metadata, s, flags);
	fill(s);
	find_heads(_metadata, s);
}

/* Prepare for a file with the flag. */
static inline void setup_keeping(struct __test_metadata *_metadata, struct subject *s,
				 unsigned long size, const struct injector *injector,
				 unsigned long nr_huge)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, s, size, injector, nr_huge);
}

/* Make a file with the flag, and with other @flags. */
static inline void setup_kept(struct __test_metadata *_metadata, struct subject *s,
			      unsigned long size, const struct injector *injector,
			      unsigned long nr_huge, unsigned int flags)
{
	setup_keeping(_metadata, s, size, injector, nr_huge);
	if (!_metadata->exit_code)
		open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED | flags);
}

/* Map it anew, with nothing in the page table. */
static inline void map_afresh(struct __test_metadata *_metadata, struct subject *s)
{
	if (s->map)
		unmap_file(s);
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
}

/* Take all hugepages out of the file, which stays open. */
static inline void empty_file(struct __test_metadata *_metadata, struct subject *s)
{
	if (s->map)
		unmap_file(s);
	ASSERT_EQ(0, ftruncate(s->fd, 0));
}

/* Take all hugepages out of the file, and close it. */
static inline void let_go(struct __test_metadata *_metadata, struct subject *s)
{
	empty_file(_metadata, s);
	EXPECT_EQ(0, close(s->fd));
	s->fd = -1;
}

/* Runs in the parent when the test and all it held is gone. */
static inline void teardown_subject(struct __test_metadata *_metadata, struct subject *s)
{
	if (!s->size)
		return;
	restore_settings();
	EXPECT_EQ(0, unpoison_all());
	if (!undo->mce_seen)
		EXPECT_EQ(s->corrupted, hardware_corrupted());
	restore_pools();
}

#define FIXTURE_TEARDOWN_SUBJECT(fixture_name) \
	FIXTURE_TEARDOWN_PARENT(fixture_name) \
	{ \
		teardown_subject(_metadata, &self->s); \
	} \
	struct subject

/* A fixture that has a subject and nothing else */
#define FIXTURE_SUBJECT(fixture_name...) \
	struct subject; \
	FIXTURE(fixture_name) { \
		struct subject s; \
	}; \
	FIXTURE_TEARDOWN_SUBJECT(fixture_name)

/* Set up only a kept file, with these parameters of setup_kept(). */
#define FIXTURE_SETUP_KEPT(fixture_name, ...) \
	FIXTURE_SETUP(fixture_name) \
	{ \
		setup_kept(_metadata, &self->s, __VA_ARGS__); \
	} \
	struct subject

/* Set up only a file of one hugepage without the flag. */
#define FIXTURE_SETUP_PLAIN(fixture_name) \
	FIXTURE_SETUP(fixture_name) \
	{ \
		setup_subject(_metadata, &self->s, variant->size, variant->injector, 1); \
		if (!_metadata->exit_code) \
			open_subject(_metadata, &self->s, 0); \
	} \
	struct subject

/* Variants with hugepages that lack most of their struct pages, and with others */
#define FIXTURE_VARIANTS_HVO(fixture_name...) \
	struct subject; \
	FIXTURE_VARIANT(fixture_name) { \
		bool hvo; \
	}; \
	FIXTURE_VARIANT_ADD(fixture_name, optimized) { .hvo = true }; \
	FIXTURE_VARIANT_ADD(fixture_name, not_optimized) { }

/* A thread got one SIGBUS, with this code, address and size. */
static inline void expect_signal(struct __test_metadata *_metadata, const struct sigbus *h,
				 int code, char *addr, unsigned int lsb)
{
	EXPECT_EQ(1, h->nr);
	EXPECT_EQ(code, h->code);
	EXPECT_EQ((uintptr_t)addr, h->addr);
	EXPECT_EQ(lsb, h->lsb);
}

static inline void expect_sigbus(struct __test_metadata *_metadata, int code, char *addr,
				 unsigned int lsb)
{
	expect_signal(_metadata, &sigbus, code, addr, lsb);
}

/* The signal of a fault has the address of the access, in the lost page. */
static inline void expect_fault_signal(struct __test_metadata *_metadata,
				       const struct sigbus *h, char *page)
{
	EXPECT_EQ(1, h->nr);
	EXPECT_EQ(BUS_MCEERR_AR, h->code);
	EXPECT_EQ((uintptr_t)page, h->addr & ~((uintptr_t)psize() - 1));
	EXPECT_EQ(pshift(), h->lsb);
}

static inline void expect_fault_in(struct __test_metadata *_metadata, char *page)
{
	expect_fault_signal(_metadata, &sigbus, page);
}

/* Another process got the early signal for raw page @nr. */
static inline void expect_witnessed(struct __test_metadata *_metadata, struct witness *w,
				    unsigned long nr)
{
	siginfo_t si;

	ASSERT_TRUE(witness_got(w, &si, 10000));
	EXPECT_EQ(BUS_MCEERR_AO, si.si_code);
	EXPECT_EQ((uintptr_t)w->map + nr * psize(), (uintptr_t)si.si_addr);
	EXPECT_EQ(pshift(), si.si_addr_lsb);
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

/* Hugepage 0 is mapped as a whole, and nothing that was not lost has changed. */
static inline void expect_intact(struct __test_metadata *_metadata, struct subject *s)
{
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(0, nr_changed_pages(s));
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
		EXPECT_EQ(0, sigbus.nr);
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

/* An error that the filter turns away, as it is now, has not happened. */
static inline void expect_turned_away(struct __test_metadata *_metadata,
				      struct subject *s, unsigned long nr)
{
	ASSERT_TRUE(note_poison(raw_pfn(s, nr), s->head[nr / s->nr_raw]));
	EXPECT_EQ(s->injector->filtered, inject(s, nr));
	restore_filter();

	EXPECT_EQ(0, sigbus.nr);
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

static inline void lose_samples(struct __test_metadata *_metadata, struct subject *s)
{
	unsigned int i;

	for (i = 0; i < NR_SAMPLES; i++)
		lose(_metadata, s, sample(s, i));
}

/*
 * Many lost pages: all of a small hugepage, several hundred of a large one,
 * its first and last among them.
 */
static inline void lose_many(struct __test_metadata *_metadata, struct subject *s)
{
	/* Machine checks take their time. */
	unsigned long step = s->injector->is_hw ? s->nr_raw / 30 :
			     s->nr_raw > 512 ? s->nr_raw / 300 : 1;
	unsigned long i;

	for (i = 0; i < s->nr_raw; i += step)
		lose(_metadata, s, i);
	if (!s->lost[s->nr_raw - 1])
		lose(_metadata, s, s->nr_raw - 1);
}

/* Unpoisoning @pfn is refused. After a machine check it always is, so don't try then. */
static inline void expect_not_unpoisoned(struct __test_metadata *_metadata,
					 unsigned long pfn)
{
	if (!undo->mce_seen)
		EXPECT_EQ(-EBUSY, unpoison(pfn));
}

/*
 * The lost pages of a released hugepage are poisoned, and neither free nor part
 * of anything else.  A worker may do the release later, but a lost page must not be
 * free at any time.
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
 * Of a released hugepage, each healthy page must show on the lists of the buddy
 * allocator, or in use, and no lost one.  Returns how many don't.
 */
static inline unsigned long expect_rest_is_free(struct __test_metadata *_metadata,
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
	return astray;
}

/*
 * The lost pages of a released hugepage are out of use, and all others free.
 * Unpoison the lost ones one by one: they must be free then, too.  After a machine
 * check that can't be done any more, and they count from now on.  Returns how many don't
 * come back.
 */
static inline unsigned long expect_all_come_back(struct __test_metadata *_metadata,
						 struct subject *s, unsigned long huge)
{
	unsigned long first = huge * s->nr_raw;
	unsigned long i, nr_missing;

	expect_out_of_use(_metadata, s, huge);
	nr_missing = expect_rest_is_free(_metadata, s, huge);

	for (i = first; i < first + s->nr_raw; i++) {
		if (!s->lost[i])
			continue;
		if (undo->mce_seen) {
			s->corrupted += psize() >> 10;
		} else {
			EXPECT_EQ(0, unpoison(raw_pfn(s, i)))
				break;
		}
		s->lost[i] = false;
		s->nr_lost--;
		expect_corrupted(_metadata, s);
	}
	if (!undo->mce_seen)
		nr_missing = expect_rest_is_free(_metadata, s, huge);
	return nr_missing;
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

/* End the file: nothing else holds its only hugepage. */
static inline void expect_end(struct __test_metadata *_metadata, struct subject *s)
{
	let_go(_metadata, s);
	expect_released(_metadata, s);
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
static inline void zero_samples(struct __test_metadata *_metadata, struct subject *s)
{
	unsigned int i;

	for (i = 0; i < NR_SAMPLES - 1; i++)
		EXPECT_EQ(-EIO, zero_page(s, sample(s, i)));
	EXPECT_EQ(0, zero_page(s, sample(s, i)));
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

static inline void start_witness(struct __test_metadata *_metadata, struct subject *s,
				 struct witness *w, int policy)
{
	ASSERT_TRUE(start_helper(&w->helper));
	if (!w->helper.pid)
		be_witness(s, policy, &w->helper);
	ASSERT_EQ(sizeof(w->map), read(w->helper.line, &w->map, sizeof(w->map)));
	ASSERT_NE(NULL, w->map);
}

/* A hugepage of the hugetlb subsystem, in use, poisoned if it has lost pages. */
static inline void expect_whole(struct __test_metadata *_metadata, struct subject *s,
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

/* @gone hugepages have left the pool, @used of the others are still in use. */
static inline void wait_for_pool(struct __test_metadata *_metadata, struct subject *s, long gone,
				 long used)
{
	struct pool pool;

	wait_until((pool = pool_read(s->size), pool.nr == s->before.nr - gone &&
		    pool.free == s->before.free - gone - used), 20000);
	expect_pool(_metadata, s, gone, used);
}

/*
 * Counters of hugepages
 */

/* Open a kept file with only one hugepage. */
static inline void open_one(struct __test_metadata *_metadata, struct subject *s)
{
	s->nr_huge = 1;
	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
}

/* Let exactly @nr hugepages be free and not reserved. */
static inline void leave_available(struct __test_metadata *_metadata, struct subject *s, long nr)
{
	struct pool pool = pool_read(s->size);

	pool_set(s->size, "nr_hugepages",
		 pool.nr - pool.surplus - (pool.free - pool.resv) + nr);
	s->before = pool_read(s->size);
	ASSERT_EQ(nr, s->before.free - s->before.resv);
}

/* Several files show the same numbers. */
static inline void expect_agreement(struct __test_metadata *_metadata, struct subject *s,
				    const struct pool *pool)
{
	unsigned int i, nr_nodes = 0;
	struct pool node, sum = {};
	long kb = 0;

	for (i = 0; i < MAX_NODES; i++) {
		node = node_pool_read(i, s->size);
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

	for (i = 0; i < undo->nr_sizes; i++)
		kb += pool_get(undo->saved[i].size, "nr_hugepages") *
		      (undo->saved[i].size >> 10);
	EXPECT_EQ(kb, meminfo_kb("Hugetlb"));

	if (default_size() != s->size)
		return;
	EXPECT_EQ(pool->nr, meminfo_kb("HugePages_Total"));
	EXPECT_EQ(pool->free, meminfo_kb("HugePages_Free"));
	EXPECT_EQ(pool->resv, meminfo_kb("HugePages_Rsvd"));
	EXPECT_EQ(pool->surplus, meminfo_kb("HugePages_Surp"));
}

/* Compare the pool with how it was before. */
static inline void expect_change(struct __test_metadata *_metadata, struct subject *s,
				 long nr, long free, long resv, long surplus)
{
	struct pool pool = pool_read(s->size);

	EXPECT_EQ(s->before.nr + nr, pool.nr);
	EXPECT_EQ(s->before.free + free, pool.free);
	EXPECT_EQ(s->before.resv + resv, pool.resv);
	EXPECT_EQ(s->before.surplus + surplus, pool.surplus);
	expect_agreement(_metadata, s, &pool);
}

/*
 * The kernel can't tell healthy pages from lost ones, or can't free one without
 * the other.  It says so once, and no page of the hugepage comes back: it stays the
 * compound page that it was, and can't be unpoisoned.
 */
static inline void expect_out_for_good(struct __test_metadata *_metadata, struct subject *s,
				       unsigned long huge, const char *why)
{
	unsigned long first = huge * s->nr_raw;
	unsigned long i, nr_loose = 0, nr_free = 0;

	wait_until(nr_said("hugepage at pfn %#lx stays out of use", s->head[huge]), 20000);
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

	expect_not_unpoisoned(_metadata, s->head[huge]);
	for (i = first; i < first + s->nr_raw; i++)
		if (s->lost[i])
			expect_not_unpoisoned(_metadata, raw_pfn(s, i));
	expect_corrupted(_metadata, s);
	give_up(s, huge);
}

#define NOT_ALL_KNOWN	"not all of its lost raw pages are known"
#define NOT_RESTORED	"no memory to restore its vmemmap"

/* Leave one free hugepage of 1 GiB. */
static inline void setup_demotion(struct __test_metadata *_metadata, struct subject *s,
				  const struct injector *injector, struct pool *small)
{
	setup_subject(_metadata, s, SZ_1G, injector, 1);
	if (_metadata->exit_code)
		return;
	leave_available(_metadata, s, 1);
	if (!demote_to(SZ_1G, SZ_2M))
		SKIP(return, "1 GiB hugepages can't be demoted to 2 MiB");
	*small = pool_read(SZ_2M);
}

static inline void expect_small(struct __test_metadata *_metadata, const struct pool *before,
				long more)
{
	struct pool small = pool_read(SZ_2M);

	EXPECT_EQ(before->nr + more, small.nr);
	EXPECT_EQ(before->free + more, small.free);
	EXPECT_EQ(before->resv, small.resv);
	EXPECT_EQ(before->surplus, small.surplus);
}

/* Find out where the only hugepage that can be had is. */
static inline void find_free_hugepage(struct __test_metadata *_metadata, struct subject *s)
{
	open_unfilled(_metadata, s, 0);
	ASSERT_EQ(0, punch(s, 0, s->size));
	let_go(_metadata, s);
}

/*
 * Make a hugepage of a plain file free, reserve it, and lose pages of it.  It can't
 * be dissolved as long as somebody counts on it, so it stays where it is.
 */
static inline void poison_free_pages(struct __test_metadata *_metadata, struct subject *s,
				     const unsigned long *pages, unsigned int nr_pages)
{
	unsigned int i;
	int ret;

	leave_available(_metadata, s, 1);
	find_free_hugepage(_metadata, s);
	s->map = map_others(s, 1);
	ASSERT_NE(NULL, s->map);
	expect_change(_metadata, s, 0, 0, 1, 0);
	for (i = 0; i < nr_pages; i++) {
		note_lost(_metadata, s, pages[i]);
		/* memory_failure() must report that it couldn't handle the error. */
		ret = inject(s, pages[i]);
		EXPECT_TRUE(ret == -EBUSY || (i && ret == -EHWPOISON))
			TH_LOG("error %u: %d", i, ret);
		expect_corrupted(_metadata, s);
	}
	EXPECT_TRUE(is_poisoned(s->head[0]));
	unmap_file(s);
	expect_change(_metadata, s, 0, 0, 0, 0);
}

static inline void poison_free_hugepage(struct __test_metadata *_metadata, struct subject *s,
					unsigned int first_sample, unsigned int nr_samples)
{
	unsigned long pages[NR_SAMPLES];
	unsigned int i;

	for (i = 0; i < nr_samples; i++)
		pages[i] = sample(s, first_sample + i);
	poison_free_pages(_metadata, s, pages, nr_samples);
}

/* Fill the pool with hugepages that were optimized, or not. */
static inline void setup_optimized(struct __test_metadata *_metadata, struct subject *s,
				   bool hvo)
{
	unsigned long nr_huge = s->nr_huge;

	leave_available(_metadata, s, 0);
	if (!write_text(HVO, hvo ? "1" : "0") && hvo)
		SKIP(return, "needs CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP");
	s->memmap = nr_memmap();
	leave_available(_metadata, s, nr_huge);
	s->memmap_less = s->memmap - nr_memmap();
	if (!hvo)
		ASSERT_EQ(0, s->memmap_less);
	if (hvo && s->memmap_less < (long)nr_huge)
		SKIP(return, "the hugepages are not optimized");
}

/* Make a pool larger by optimized hugepages. */
static inline void grow_optimized(struct __test_metadata *_metadata, unsigned long size,
				  long nr, long more)
{
	long memmap = nr_memmap();

	if (!write_text(HVO, "1"))
		SKIP_REST(return, "needs CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP");
	ASSERT_TRUE(pool_set(size, "nr_hugepages", nr + more));
	if (memmap - nr_memmap() < more)
		SKIP_REST(return, "the hugepages are not optimized");
}

/*
 * A child that writes @val when it is told to, on the @nth CPU after this one.  By then
 * it is ready: one that is just being born waits for those who work on the page tables
 * of the kernel.
 */
static inline void start_writer(struct __test_metadata *_metadata, struct helper *w,
				unsigned int nth, const char *path, long val)
{
	int fd, len, cpu = nth_cpu(nth);
	char text[24];

	ASSERT_TRUE(start_helper(w));
	if (w->pid) {
		ASSERT_TRUE(wait_for_word(w));
		return;
	}

	move_to_cpu(cpu);
	fd = open(path, O_WRONLY);
	len = snprintf(text, sizeof(text), "%ld", val);
	if (!tell(w) || !wait_for_word(w))
		_exit(KSFT_FAIL);
	_exit(write(fd, text, len) == len ? KSFT_PASS : KSFT_FAIL);
}

/* Tell it to, and wait until it has taken hugepages out of a pool. */
static inline void let_write(struct __test_metadata *_metadata, struct helper *w,
			     unsigned long size, long nr)
{
	ASSERT_TRUE(tell(w));
	ASSERT_TRUE(wait_until(pool_read(size).nr == nr, 50));
}

/* Before main(), which needs nothing but TEST_HARNESS_MAIN then. */
static void __attribute__((constructor)) begin_tests(void)
{
	open_undo();
	open_mce_at();
}

#endif /* _SELFTESTS_MM_MFR_HARNESS_H */
