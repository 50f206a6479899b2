/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Memory errors in the hugepages of a guest: a file of hugepages, ways to lose pages of
 * it, what KVM maps around them, and giving everything back.
 */
#ifndef SELFTEST_KVM_HUGETLB_MFR_H
#define SELFTEST_KVM_HUGETLB_MFR_H

#include <linux/sizes.h>

#include "../../../../mm/kept_memory.h"
#include "../../mm/machine_check.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "test_util.h"

/* Clearing and comparing 1 GiB takes its time on an emulated CPU. */
#define SLOW			600

#define CORRUPT_PFN		"/sys/kernel/debug/hwpoison/corrupt-pfn"
#define CORRUPT_ADDR		"/sys/kernel/debug/hwpoison/corrupt-addr"
#define CORRUPT_LSB		"/sys/kernel/debug/hwpoison/corrupt-lsb"
#define UNPOISON_PFN		"/sys/kernel/debug/hwpoison/unpoison-pfn"

#define MAX_HUGE		4
#define MAX_ERRORS		100

/*
 * The file, and what was lost of it.  Pages are counted from the start of the file, and
 * are as large as the kernel's base pages.
 */
struct subject {
	int fd;
	char *mem;			/* the VMM's mapping */
	u64 hugepage;			/* the size of one */
	u64 nr_huge;
	u64 nr_pages;			/* in all of them */
	u64 pfn[MAX_HUGE];		/* of the first page of each hugepage */
	u64 lost[MAX_ERRORS];
	u64 nr_lost;
	int monitor;
	bool is_hw;			/* machine checks: nothing can be unpoisoned */
	u64 nr_hugepages;		/* in the pool, before, */
	u64 nr_hugepages_with;		/* and with those of the test */
	u64 corrupted;			/* HardwareCorrupted, before */
};

static inline u64 psize(void)
{
	return getpagesize();
}

static inline int pshift(void)
{
	return __builtin_ctzl(getpagesize());
}

static inline u64 read_number(const char *path)
{
	u64 n = 0;
	FILE *f = fopen(path, "r");

	TEST_ASSERT(f && fscanf(f, "%lu", &n) == 1, "can't read %s", path);
	fclose(f);
	return n;
}

static inline bool write_number(const char *path, u64 n)
{
	FILE *f = fopen(path, "w");
	bool ok;

	if (!f)
		return false;
	ok = fprintf(f, "%lu\n", n) > 0;
	return !fclose(f) && ok;
}

static inline const char *pool(u64 hugepage, const char *name)
{
	static char path[128];

	snprintf(path, sizeof(path), "/sys/kernel/mm/hugepages/hugepages-%lukB/%s",
		 hugepage / 1024, name);
	return path;
}

static inline u64 hardware_corrupted(void)
{
	FILE *f = fopen("/proc/meminfo", "r");
	char line[128];
	u64 kb = 0;

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "HardwareCorrupted: %lu kB", &kb) == 1)
			break;
	if (f)
		fclose(f);
	return kb;
}

/* How many machine checks all CPUs have had. */
static inline u64 sum_of_machine_checks(void)
{
	FILE *f = fopen("/proc/interrupts", "r");
	char line[1024], *number, *end;
	u64 sum = 0, n;

	while (f && fgets(line, sizeof(line), f)) {
		end = strstr(line, "MCE:");
		if (!end)
			continue;
		end += strlen("MCE:");
		do {
			number = end;
			n = strtoul(number, &end, 10);
			sum += n;
		} while (end != number);
	}
	if (f)
		fclose(f);
	return sum;
}

/* HardwareCorrupted counts each lost page once, however often it is used. */
static inline void expect_corrupted(struct __test_metadata *_metadata, struct subject *s)
{
	EXPECT_EQ(s->corrupted + s->nr_lost * psize() / 1024, hardware_corrupted());
}

static inline u64 pfn_of(struct subject *s, u64 page)
{
	u64 nr = s->hugepage / psize();

	return s->pfn[page / nr] + page % nr;
}

/* The @i-th of @nr pages that lie apart, the first and the last one among them. */
static inline u64 nth_page(struct subject *s, u64 i, u64 nr)
{
	return i * (s->nr_pages - 1) / (nr - 1);
}

/*
 * Lose a page.  A simulated error has been consumed by nobody.  A machine check comes
 * from the access of a thread of the VMM, say, a device that writes the page to a disk.
 * (A machine check injected while the guest itself is running would be the guest's, for
 * that is a CPU, too, to the emulator.)
 */
static inline void lose_page(struct subject *s, u64 page)
{
	u64 pfn = pfn_of(s, page);
	int cpu[2], error;

	TEST_ASSERT(s->nr_lost < MAX_ERRORS, "too many errors");
	s->lost[s->nr_lost++] = page;
	if (!s->is_hw) {
		TEST_ASSERT(write_number(CORRUPT_PFN, pfn), CORRUPT_PFN);
		return;
	}
	TEST_ASSERT(mce_cpus(cpu), "no CPUs without ticks");
	error = mce_consume(s->monitor, MCE_LOAD, s->mem + page * psize(), pfn, cpu[0]);
	TEST_ASSERT(!error, "The machine check did not come: %s", strerror(-error));
}

/* Lose a page of which only 1 << @lsb bytes around @offset are damaged. */
static inline void lose_part(struct subject *s, u64 page, u64 offset, int lsb)
{
	bool ok;

	s->lost[s->nr_lost++] = page;
	TEST_ASSERT(write_number(CORRUPT_LSB, lsb), CORRUPT_LSB);
	ok = write_number(CORRUPT_ADDR, pfn_of(s, page) * psize() + offset);
	write_number(CORRUPT_LSB, pshift());
	TEST_ASSERT(ok, CORRUPT_ADDR);
}

/* The same in a page that is lost already, which isn't a success to the injector. */
static inline void lose_more(struct subject *s, u64 page, u64 offset, int lsb)
{
	TEST_ASSERT(write_number(CORRUPT_LSB, lsb), CORRUPT_LSB);
	write_number(CORRUPT_ADDR, pfn_of(s, page) * psize() + offset);
	write_number(CORRUPT_LSB, pshift());
}

/* The pool gets the hugepages of the test. */
static inline void setup_subject(struct __test_metadata *_metadata, struct subject *s,
				 u64 hugepage, u64 nr_huge, bool is_hw)
{
	int cpu[2];

	s->fd = -1;
	s->monitor = -1;
	s->hugepage = hugepage;
	s->nr_huge = nr_huge;
	s->nr_pages = nr_huge * hugepage / psize();
	s->is_hw = is_hw;

	if (access(CORRUPT_PFN, W_OK) || access(UNPOISON_PFN, W_OK))
		SKIP(return, "needs root, debugfs and hwpoison-inject");
	if (is_hw) {
		s->monitor = mce_open_monitor();
		if (s->monitor < 0 || !mce_cpus(cpu))
			SKIP(return, "needs QEMU's monitor, see mm/machine_check.h");
	}
	if (access(pool(hugepage, "nr_hugepages"), W_OK))
		SKIP(return, "no hugepages of %lu kB here", hugepage / 1024);

	s->nr_hugepages = read_number(pool(hugepage, "nr_hugepages"));
	s->nr_hugepages_with = s->nr_hugepages + nr_huge;
	write_number(pool(hugepage, "nr_hugepages"), s->nr_hugepages_with);
	if (read_number(pool(hugepage, "nr_hugepages")) != s->nr_hugepages_with)
		SKIP(return, "can't get %lu hugepages of %lu kB", nr_huge, hugepage / 1024);
	s->corrupted = hardware_corrupted();
}

/* Run by the parent: a failed test has released its memory, too. */
static inline void teardown_subject(struct __test_metadata *_metadata, struct subject *s)
{
	int tries;
	u64 i;

	if (!s->nr_hugepages_with)
		return;
	/* A worker may be busy releasing it. */
	for (tries = 0; tries < 100 && !s->is_hw; tries++) {
		for (i = 0; i < s->nr_lost; i++)
			if (!write_number(UNPOISON_PFN, pfn_of(s, s->lost[i])))
				write_number(UNPOISON_PFN,
					     s->pfn[s->lost[i] * psize() / s->hugepage]);
		if (hardware_corrupted() == s->corrupted)
			break;
		usleep(20000);
	}
	if (!s->is_hw)
		EXPECT_EQ(s->corrupted, hardware_corrupted());
	write_number(pool(s->hugepage, "nr_hugepages"), s->nr_hugepages);
}

/* Make the file, and find out where its hugepages are, for the injectors. */
static inline void make_file(struct __test_metadata *_metadata, struct subject *s,
			     unsigned int flags)
{
	unsigned int size = __builtin_ctzl(s->hugepage) << MFD_HUGE_SHIFT;
	u64 entry, i;
	char *mem;
	int fd;

	if (flags & MFD_MF_KEEP_UE_MAPPED) {
		s->fd = kept_memfd("guest", size, s->nr_huge * s->hugepage);
		/* An older kernel.  The guest may be lucky, and have no errors. */
		if (!kept_read_map(0, s->fd, NULL, NULL, NULL))
			TH_LOG("no MFD_MF_KEEP_UE_MAPPED: an error will take a whole hugepage");
	} else {
		s->fd = memfd_create("guest", flags | size | MFD_HUGETLB);
		ASSERT_EQ(0, ftruncate(s->fd, s->nr_huge * s->hugepage));
	}
	ASSERT_LE(0, s->fd);

	mem = mmap(NULL, s->nr_huge * s->hugepage, PROT_READ | PROT_WRITE,
		   MAP_SHARED | MAP_POPULATE, s->fd, 0);
	ASSERT_NE(MAP_FAILED, mem);
	fd = open("/proc/self/pagemap", O_RDONLY);
	for (i = 0; i < s->nr_huge; i++) {
		ASSERT_EQ(sizeof(entry),
			  pread(fd, &entry, sizeof(entry),
				((uintptr_t)mem + i * s->hugepage) / psize() * sizeof(entry)));
		s->pfn[i] = entry & ((1ULL << 55) - 1);
		ASSERT_NE(0, s->pfn[i]);
	}
	close(fd);
	munmap(mem, s->nr_huge * s->hugepage);
}

static inline void map_file(struct subject *s)
{
	s->mem = mmap(NULL, s->nr_huge * s->hugepage, PROT_READ | PROT_WRITE, MAP_SHARED,
		      s->fd, 0);
	TEST_ASSERT(s->mem != MAP_FAILED, "mmap");
}

/* All mappings of the file go, as those of a balloon do, and with them stage 2's. */
static inline void unmap_all(struct subject *s)
{
	TEST_ASSERT(!madvise(s->mem, s->nr_huge * s->hugepage, MADV_DONTNEED),
		    "MADV_DONTNEED");
}

/*
 * The number of leaf entries of each size in stage 2, or in the shadow page tables.
 * Only x86 has statistics of them.
 */
struct entries {
	u64 nr_1g;
	u64 nr_2m;
	u64 nr_4k;
};

static inline struct entries entries_of(struct kvm_vm *vm)
{
	struct entries e = {};

#ifdef __x86_64__
	e.nr_1g = vm_get_stat(vm, pages_1g);
	e.nr_2m = vm_get_stat(vm, pages_2m);
	e.nr_4k = vm_get_stat(vm, pages_4k);
#endif
	return e;
}

/* Around lost pages, the largest blocks without any. */
static inline struct entries exact_entries(struct subject *s)
{
	struct entries e = {};
	u64 huge, block, i;

	for (huge = 0; huge < s->nr_huge; huge++) {
		u64 nr_lost[SZ_1G / SZ_2M] = {};
		bool whole = true;

		for (i = 0; i < s->nr_lost; i++) {
			u64 at = s->lost[i] * psize();

			if (at / s->hugepage == huge) {
				nr_lost[at % s->hugepage / SZ_2M]++;
				whole = false;
			}
		}
		if (whole && s->hugepage == SZ_1G) {
			e.nr_1g++;
			continue;
		}
		for (block = 0; block < s->hugepage / SZ_2M; block++) {
			if (nr_lost[block])
				e.nr_4k += SZ_2M / psize() - nr_lost[block];
			else
				e.nr_2m++;
		}
	}
	return e;
}

static inline void expect_entries(struct __test_metadata *_metadata, struct entries want,
				  struct entries all, struct entries others)
{
#ifdef __x86_64__
	EXPECT_EQ(want.nr_1g, all.nr_1g - others.nr_1g);
	EXPECT_EQ(want.nr_2m, all.nr_2m - others.nr_2m);
	EXPECT_EQ(want.nr_4k, all.nr_4k - others.nr_4k);
#endif
}

/*
 * For a guest that has used all healthy pages.  The entries are counted by the loss of
 * all of them, as there are others, for the guest's code.
 */
static inline void expect_exact_entries(struct __test_metadata *_metadata,
					struct subject *s, struct kvm_vm *vm)
{
	struct entries all = entries_of(vm);

	unmap_all(s);
	expect_entries(_metadata, exact_entries(s), all, entries_of(vm));
}

#endif /* SELFTEST_KVM_HUGETLB_MFR_H */
