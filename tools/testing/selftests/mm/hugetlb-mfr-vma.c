// SPDX-License-Identifier: GPL-2.0
/*
 * Changes to the mappings of hugepages of a memfd made with MFD_MF_KEEP_UE_MAPPED.
 *
 * The fixtures:
 *   mapped	what changes a mapping
 *   shared_table	processes that share a page table
 *   uffd	userfaultfd
 *   tags	mappings with memory tags, on arm64
 */

#define _GNU_SOURCE
#include "mfr_harness.h"
#include <linux/userfaultfd.h>
#ifdef __aarch64__
#include <asm/hwcap.h>
#include <asm/mman.h>
#include <sys/auxv.h>
#endif

/* The headers of 6.12 lack these. */
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

/*
 * System calls that change a mapping
 */

FIXTURE_SUBJECT(mapped);

FIXTURE_VARIANTS(mapped, simulated_and_mce_2m)
FIXTURE_VARIANT_ADD_SIZES(mapped)

FIXTURE_SETUP_KEPT(mapped, variant->size, variant->injector, 1, 0);

/* Lose a page that the process maps, but can't consume: the signal comes early. */
static void lose_unseen(struct __test_metadata *_metadata, struct subject *s,
			unsigned long nr)
{
	const struct injector *injector = s->injector;

	s->injector = by_address(s);
	lose(_metadata, s, nr);
	s->injector = injector;
}

TEST_F_TIMEOUT(mapped, MADV_DONTNEED_unmaps_only_its_range, SLOW)
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
	expect_intact(_metadata, s);
	lose(_metadata, s, 0);
	expect_pool(_metadata, s, 0, 1);

	expect_end(_metadata, s);
}

TEST_F_TIMEOUT(mapped, MADV_REMOVE_releases_the_hugepage, SLOW)
{
	struct subject *s = &self->s;
	unsigned long i, nr_wrong = 0;

	if (!need_more_hugepages(s, 1))
		SKIP(return, "can't get 2 hugepages");
	lose_samples(_metadata, s);
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
	expect_end(_metadata, s);
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

TEST_F_TIMEOUT(mapped, mremap_moves_lost_pages_along, SLOW)
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
	expect_intact(_metadata, s);
	expect_pool(_metadata, s, 0, 1);

	/* Whether lost before or after: the address is the new one. */
	lose(_metadata, s, 3);
	if (s->injector->is_hw) {
		EXPECT_EQ(0, inject(s, nr));
		expect_sigbus(_metadata, BUS_MCEERR_AR, raw_page(s, nr), pshift());
	}
	/* The same holds if only the new mapping is faulted in. */
	EXPECT_EQ(0, madvise(s->map, s->size, MADV_DONTNEED));
	EXPECT_FALSE(try_read(raw_page(s, nr)));
	expect_fault_in(_metadata, raw_page(s, nr));

	expect_end(_metadata, s);
}

TEST_F_TIMEOUT(mapped, mprotect_changes_only_protection, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 1);
	ASSERT_EQ(0, mprotect(s->map, s->size, PROT_READ));
	expect_intact(_metadata, s);
	lose(_metadata, s, 3);

	/* PROT_NONE: no access, but signals of errors still come. */
	ASSERT_EQ(0, mprotect(s->map, s->size, PROT_NONE));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	lose_unseen(_metadata, s, 5);

	ASSERT_EQ(0, mprotect(s->map, s->size, PROT_READ | PROT_WRITE));
	expect_intact(_metadata, s);
	EXPECT_TRUE(try_write(raw_page(s, 0)));
	lose(_metadata, s, 7);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));

	expect_end(_metadata, s);
}

TEST_F_TIMEOUT(mapped, mlock_and_munlock_keep_the_mapping, SLOW)
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
	map_afresh(_metadata, s);
	expect_intact(_metadata, s);

	/* A lock is no hold: the end of the file is the end of it all. */
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	expect_released(_metadata, s);
}

/* Paging and the like don't change hugepages. */
TEST_F_TIMEOUT(mapped, advice_for_small_pages_is_harmless, SLOW)
{
	static const struct {
		int advice;
		int error;
	} advices[] = {
		{ MADV_NORMAL }, { MADV_RANDOM }, { MADV_SEQUENTIAL }, { MADV_WILLNEED },
		{ MADV_COLD, EINVAL }, { MADV_PAGEOUT, EINVAL }, { MADV_FREE, EINVAL },
		{ MADV_COLLAPSE, EINVAL }, { MADV_MERGEABLE }, { MADV_UNMERGEABLE },
		{ MADV_HUGEPAGE }, { MADV_NOHUGEPAGE }, { MADV_DONTFORK },
		{ MADV_DONTDUMP }, { MADV_WIPEONFORK, EINVAL },
	};
	struct subject *s = &self->s;
	unsigned int i;

	lose_samples(_metadata, s);
	for (i = 0; i < ARRAY_SIZE(advices); i++) {
		EXPECT_EQ(advices[i].error, madvise(s->map, s->size, advices[i].advice) ?
					    errno : 0)
			TH_LOG("advice %d", advices[i].advice);
		EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	}
	EXPECT_EQ(0, nr_changed_pages(s));
	expect_corrupted(_metadata, s);
	expect_end(_metadata, s);
}

TEST_F_TIMEOUT(mapped, losses_are_signalled_to_parent_and_child, SLOW)
{
	struct subject *s = &self->s;
	struct helper h;

	lose(_metadata, s, 1);
	sigbus.nr = 0;
	ASSERT_TRUE(start_helper(&h));
	if (!h.pid) {
		/* Inherited, but not yet filled in; and with a choice of its own. */
		ASSERT_TRUE(wait_for_word(&h));
		expect_sigbus(_metadata, BUS_MCEERR_AO, raw_page(s, 3), pshift());
		EXPECT_FALSE(try_read(raw_page(s, 3)));
		expect_fault_in(_metadata, raw_page(s, 3));
		EXPECT_TRUE(try_read(raw_page(s, 4)));
		EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
		lose(_metadata, s, 5);
		expect_intact(_metadata, s);
		_exit(_metadata->exit_code);
	}
	lose(_metadata, s, 3);
	sigbus.nr = 0;
	ASSERT_TRUE(tell(&h));
	wait_for_child(_metadata, h.pid);
	expect_sigbus(_metadata, BUS_MCEERR_AO, raw_page(s, 5), pshift());
	expect_intact(_metadata, s);
	expect_pool(_metadata, s, 0, 1);
	expect_end(_metadata, s);
}

/*
 * Two processes with one page table
 */

#define NR_SHARED	3

FIXTURE_SUBJECT(shared_table);

FIXTURE_VARIANTS(shared_table, simulated_and_mce_2m)

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

	setup_keeping(_metadata, s, SZ_2M, variant->injector, NR_SHARED);
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

/* A process that carries out orders and reports the results. */
struct sharer {
	struct helper helper;
	char *map;
};

struct answer {
	bool ok;
	struct sigbus sigbus;
};

enum {
	TOUCH,			/* read a raw page */
	LOOK,			/* is a hugepage mapped, as such? */
	LISTEN,			/* report the signals since the last answer */
	PROTECT,		/* let nobody write to the end of the mapping */
	UNMAP,			/* unmap the end of the mapping */
};

static void be_sharer(struct subject *s, int line)
{
	struct subject mine = *s;
	unsigned long ask_for[2];
	struct answer a = {};

	/* Elsewhere, so that addresses can't be right by chance. */
	mine.map = map_table(s->fd);
	munmap(s->map, SZ_1G);
	a.ok = mine.map;
	a.sigbus.addr = (uintptr_t)mine.map;
	s = &mine;
	sigbus.nr = 0;
	for (;;) {
		if (write(line, &a, sizeof(a)) != sizeof(a) ||
		    read(line, ask_for, sizeof(ask_for)) != sizeof(ask_for))
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
		a.sigbus = sigbus;
		sigbus.nr = 0;
	}
	_exit(KSFT_FAIL);
}

static struct answer ask(struct __test_metadata *_metadata, struct sharer *h,
			 unsigned long what, unsigned long nr)
{
	unsigned long ask_for[] = { what, nr };
	struct answer a;

	ASSERT_EQ(sizeof(ask_for), write(h->helper.line, ask_for, sizeof(ask_for)));
	ASSERT_EQ(sizeof(a), read(h->helper.line, &a, sizeof(a)));
	return a;
}

/* Start a process that fills nothing in, and finds all hugepages there. */
static void start_sharer(struct __test_metadata *_metadata, struct subject *s,
			 struct sharer *h)
{
	struct answer a;
	unsigned long i;

	ASSERT_TRUE(start_helper(&h->helper));
	if (!h->helper.pid)
		be_sharer(s, h->helper.line);
	ASSERT_EQ(sizeof(a), read(h->helper.line, &a, sizeof(a)));
	ASSERT_TRUE(a.ok);
	h->map = (char *)a.sigbus.addr;
	ASSERT_NE(s->map, h->map);

	ASSERT_TRUE(ask(_metadata, h, TOUCH, 8).ok);
	for (i = 0; i < NR_SHARED; i++)
		if (!ask(_metadata, h, LOOK, i).ok)
			SKIP(return, "needs CONFIG_HUGETLB_PMD_PAGE_TABLE_SHARING");
}

static void expect_sharer_signal(struct __test_metadata *_metadata, struct sharer *h,
				 unsigned long nr)
{
	struct answer a = ask(_metadata, h, LISTEN, 0);

	expect_signal(_metadata, &a.sigbus, BUS_MCEERR_AO, h->map + nr * psize(), pshift());
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

TEST_F_TIMEOUT(shared_table, signals_each_loss_to_both_processes, SLOW)
{
	struct subject *s = &self->s;
	struct sharer h;
	unsigned long i;

	start_sharer(_metadata, s, &h);
	if (_metadata->exit_code)
		return;
	for (i = 0; i < NR_SAMPLES; i++) {
		unsigned long nr = i % 2 * s->nr_raw + sample(s, i);

		lose(_metadata, s, nr);
		expect_sharer_signal(_metadata, &h, nr);
		EXPECT_TRUE(is_mapped_huge(s, s->map, i % 2));
		EXPECT_TRUE(ask(_metadata, &h, LOOK, i % 2).ok);
	}
	EXPECT_EQ(0, nr_changed_pages(s));

	/* Truncated pages are gone from both. */
	EXPECT_EQ(0, ftruncate(s->fd, 0));
	EXPECT_FALSE(is_mapped(s->map));
	EXPECT_FALSE(ask(_metadata, &h, LOOK, 0).ok);
	expect_all_released(_metadata, s, 2);
	kill_child(_metadata, h.helper.pid);
}

/* A process that stops sharing fills its own page table, but not with lost pages. */
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
	expect_fault_signal(_metadata, &a.sigbus, h.map + nr * psize());
	EXPECT_FALSE(ask(_metadata, &h, LOOK, 0).ok);
	EXPECT_TRUE(ask(_metadata, &h, TOUCH, neighbour(nr)).ok);
	EXPECT_TRUE(ask(_metadata, &h, LOOK, 0).ok);
	EXPECT_FALSE(ask(_metadata, &h, LOOK, 1).ok);

	/* New errors are signalled whether or not the page is faulted in. */
	for (i = 0; i < 2; i++) {
		lose(_metadata, s, i * s->nr_raw + 9);
		expect_sharer_signal(_metadata, &h, i * s->nr_raw + 9);
		EXPECT_TRUE(is_mapped_huge(s, s->map, i));
	}
	EXPECT_EQ(0, nr_changed_pages(s));

	kill_child(_metadata, h.helper.pid);
	expect_pool(_metadata, s, 0, NR_SHARED);
	munmap(s->map, SZ_1G);
	s->map = NULL;
	let_go(_metadata, s);
	expect_all_released(_metadata, s, 2);
}

TEST_F_TIMEOUT(shared_table, stays_kept_if_unshared_by_mprotect, SLOW)
{
	expect_unshared(_metadata, &self->s, PROTECT);
}

TEST_F_TIMEOUT(shared_table, stays_kept_if_unshared_by_munmap, SLOW)
{
	expect_unshared(_metadata, &self->s, UNMAP);
}

TEST_F_TIMEOUT(shared_table, maps_the_healed_hugepage_for_both, SLOW)
{
	struct subject *s = &self->s;
	struct sharer h;
	unsigned long i;

	start_sharer(_metadata, s, &h);
	if (_metadata->exit_code)
		return;
	ASSERT_TRUE(need_more_hugepages(s, 1));
	lose_samples(_metadata, s);
	zero_samples(_metadata, s);
	expect_replaced(_metadata, s);
	EXPECT_TRUE(ask(_metadata, &h, TOUCH, 0).ok);
	/* The others are in the same page table. */
	for (i = 0; i < NR_SHARED; i++) {
		EXPECT_TRUE(ask(_metadata, &h, LOOK, i).ok);
		EXPECT_TRUE(is_mapped_huge(s, s->map, i));
	}
	expect_pool(_metadata, s, 1, NR_SHARED);
	kill_child(_metadata, h.helper.pid);
}

TEST_F_TIMEOUT(shared_table, outlives_one_of_the_processes, SLOW)
{
	struct subject *s = &self->s;
	struct sharer h;

	start_sharer(_metadata, s, &h);
	if (_metadata->exit_code)
		return;
	lose(_metadata, s, 6);
	kill_child(_metadata, h.helper.pid);
	expect_intact(_metadata, s);
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

FIXTURE(uffd)
{
	struct subject s;
	int uffd;
};

FIXTURE_VARIANTS(uffd, simulated_and_mce_2m)
FIXTURE_VARIANT_ADD_SIZES(uffd)

FIXTURE_SETUP(uffd)
{
	setup_kept(_metadata, &self->s, variant->size, variant->injector, 1, 0);
	if (_metadata->exit_code)
		return;
	if (!need_more_hugepages(&self->s, 1))
		SKIP(return, "can't get 2 hugepages");
	self->uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	if (self->uffd < 0)
		SKIP(return, "needs CONFIG_USERFAULTFD");
}

FIXTURE_TEARDOWN_SUBJECT(uffd);

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

static bool watch_writes(int uffd, struct subject *s)
{
	return watch(uffd, s, UFFD_FEATURE_WP_HUGETLBFS_SHMEM |
		     UFFD_FEATURE_PAGEFAULT_FLAG_WP, UFFDIO_REGISTER_MODE_WP);
}

/* A thread that accesses an address and may have to wait for that. */
struct toucher {
	pthread_t thread;
	char *addr;
	bool write;
	bool ok;
	struct sigbus sigbus;
};

static void *touch(void *arg)
{
	struct toucher *t = arg;

	t->ok = try_access(t->addr, t->write);
	t->sigbus = sigbus;
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
	if (!ok)
		expect_fault_signal(_metadata, &t->sigbus,
				    (char *)((uintptr_t)t->addr & ~(psize() - 1UL)));
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

TEST_F_TIMEOUT(uffd, UFFDIO_CONTINUE_maps_lost_pages, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	struct uffdio_continue cont;
	struct toucher t;

	lose_samples(_metadata, s);
	map_afresh(_metadata, s);
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
	expect_intact(_metadata, s);

	EXPECT_ERRNO(EEXIST, ioctl(self->uffd, UFFDIO_CONTINUE, &cont));
	lose(_metadata, s, 6);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	expect_pool(_metadata, s, 0, 1);
	expect_end(_metadata, s);
}

TEST_F_TIMEOUT(uffd, UFFDIO_COPY_fills_in_a_kept_hugepage, SLOW)
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
	EXPECT_ERRNO(EEXIST, ioctl(self->uffd, UFFDIO_COPY, &copy));
	EXPECT_EQ(0, madvise(s->map, s->size, MADV_DONTNEED));
	EXPECT_ERRNO(EEXIST, ioctl(self->uffd, UFFDIO_COPY, &copy));
	/* The page isn't missing, either. */
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
	lose_samples(_metadata, s);
	expect_intact(_metadata, s);
	expect_end(_metadata, s);
}

static int write_protect(int uffd, struct subject *s, bool on)
{
	struct uffdio_writeprotect wp = {
		.range = { .start = (uintptr_t)s->map, .len = s->size },
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	return ioctl(uffd, UFFDIO_WRITEPROTECT, &wp) ? -errno : 0;
}

TEST_F_TIMEOUT(uffd, UFFDIO_WRITEPROTECT_works_with_lost_pages, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw / 2;
	struct toucher t;

	if (!watch_writes(self->uffd, s))
		SKIP(return, "needs userfaultfd to protect hugepages");
	lose(_metadata, s, nr);
	EXPECT_EQ(0, write_protect(self->uffd, s, true));
	expect_intact(_metadata, s);
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

	expect_end(_metadata, s);
}

/* A write waits for the permission, and arrives where that is given. */
static void expect_protected(struct __test_metadata *_metadata,
			     FIXTURE_DATA(uffd) * self, unsigned long nr)
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

TEST_F_TIMEOUT(uffd, healed_hugepage_stays_write_protected, SLOW)
{
	struct subject *s = &self->s;

	if (!watch_writes(self->uffd, s))
		SKIP(return, "needs userfaultfd to protect hugepages");
	lose_samples(_metadata, s);
	EXPECT_EQ(0, write_protect(self->uffd, s, true));
	zero_samples(_metadata, s);
	EXPECT_TRUE(is_mapped(s->map));
	expect_replaced(_metadata, s);
	expect_protected(_metadata, self, 0);
}

TEST_F_TIMEOUT(uffd, healing_leaves_a_write_protect_marker, SLOW)
{
	struct subject *s = &self->s;

	if (!watch_writes(self->uffd, s))
		SKIP(return, "needs userfaultfd to protect hugepages");
	lose_samples(_metadata, s);
	EXPECT_EQ(0, write_protect(self->uffd, s, true));
	EXPECT_EQ(0, madvise(s->map, s->size, MADV_DONTNEED));
	zero_samples(_metadata, s);
	EXPECT_FALSE(is_mapped(s->map));
	expect_replaced(_metadata, s);
	expect_protected(_metadata, self, 0);
}

/* The fault has found the damaged hugepage, and waits while it is replaced. */
TEST_F_TIMEOUT(uffd, waiting_write_reaches_the_healed_hugepage, SLOW)
{
	struct subject *s = &self->s;
	struct toucher t;

	if (!watch_writes(self->uffd, s))
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

TEST_F_TIMEOUT(uffd, UFFDIO_RWPROTECT_works_with_lost_pages, SLOW)
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
	expect_intact(_metadata, s);
	lose(_metadata, s, 3);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	expect_end(_metadata, s);
}

TEST_F_TIMEOUT(uffd, healed_hugepage_stays_access_protected, SLOW)
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

TEST_F_TIMEOUT(uffd, UFFDIO_POISON_affects_one_mapping_only, SLOW)
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
	EXPECT_EQ(1, sigbus.nr);
	EXPECT_EQ(BUS_MCEERR_AR, sigbus.code);
	/* The marker stands for all of the hugepage, here and only here. */
	EXPECT_EQ(__builtin_ctzl(s->size), sigbus.lsb);
	expect_corrupted(_metadata, s);
	EXPECT_TRUE(is_mapped_huge(s, map, 0));
	EXPECT_EQ(psize(), pread(s->fd, s->flags, psize(), 8 * psize()));
	expect_pool(_metadata, s, 0, 1);

	/* The marker goes with the mapping. */
	map_afresh(_metadata, s);
	EXPECT_TRUE(try_read(raw_page(s, 8)));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	munmap(map, s->size);
	lose(_metadata, s, 3);
	expect_end(_metadata, s);
}

/*
 * Memory tags
 */

#ifdef __aarch64__
#define TAG		5UL
#define TAG_SHIFT	56

FIXTURE_SUBJECT(tags);

FIXTURE_SETUP(tags)
{
	if (!(getauxval(AT_HWCAP2) & HWCAP2_MTE))
		SKIP(return, "needs MTE");
	setup_keeping(_metadata, &self->s, SZ_2M, &by_pfn, 1);
}

static void set_tag(char *addr)
{
	asm volatile(".arch armv8.5-a+memtag\n"
		     "stg %0, [%0]"
		     : : "r" ((uintptr_t)addr | TAG << TAG_SHIFT) : "memory");
}

static unsigned long tag_of(char *addr)
{
	uintptr_t tagged = (uintptr_t)addr;

	asm volatile(".arch armv8.5-a+memtag\n"
		     "ldg %0, [%1]"
		     : "+r" (tagged) : "r" (addr) : "memory");
	return tagged >> TAG_SHIFT & 0xf;
}

static char *map_tagged(struct subject *s, int flags, int fd)
{
	return mmap(NULL, s->size, PROT_READ | PROT_WRITE | PROT_MTE, flags, fd, 0);
}

/* Leave tags in a hugepage and return its pfn. */
static unsigned long leave_tags(struct __test_metadata *_metadata, struct subject *s)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_POPULATE |
		    21 << MAP_HUGE_SHIFT;
	char *map = map_tagged(s, flags, -1);
	unsigned long pfn, i;

	ASSERT_NE(MAP_FAILED, map);
	for (i = 0; i < s->nr_raw; i++)
		set_tag(map + i * psize());
	pfn = mapped_pfn(map);
	munmap(map, s->size);
	return pfn;
}

TEST_F_TIMEOUT(tags, of_lost_pages_are_not_written, SLOW)
{
	struct subject *s = &self->s;
	unsigned long stale, i;
	char *map;

	/* A node allocates the hugepage that was freed last. */
	stale = leave_tags(_metadata, s);
	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	ASSERT_EQ(stale, s->head[0]);
	lose_samples(_metadata, s);

	map = map_tagged(s, MAP_SHARED, s->fd);
	ASSERT_NE(MAP_FAILED, map);
	read_byte(map + neighbour(s->nr_raw / 2) * psize());
	for (i = 0; i < s->nr_raw; i++)
		EXPECT_EQ(s->lost[i] ? TAG : 0, tag_of(map + i * psize()));
	munmap(map, s->size);
	expect_intact(_metadata, s);
	expect_end(_metadata, s);
}

/* Faults refuse the hugepage then, but it stays where it is mapped. */
TEST_F_TIMEOUT(tags, are_cleared_if_not_all_lost_pages_are_known, SLOW)
{
	struct subject *s = &self->s;
	unsigned long stale, i;

	if (!can_fail_allocations())
		SKIP(return, "needs CONFIG_FAILSLAB and CONFIG_FAIL_PAGE_ALLOC");
	stale = leave_tags(_metadata, s);
	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	ASSERT_EQ(stale, s->head[0]);
	note_lost(_metadata, s, 7);
	EXPECT_EQ(0, inject_unrecorded(raw_pfn(s, 7)));
	ASSERT_TRUE(has_failed());

	ASSERT_EQ(0, mprotect(s->map, s->size, PROT_READ | PROT_WRITE | PROT_MTE));
	for (i = 0; i < s->nr_raw; i++)
		if (!s->lost[i])
			EXPECT_EQ(0, tag_of(raw_page(s, i)));
	empty_file(_metadata, s);
	expect_out_for_good(_metadata, s, 0, NOT_ALL_KNOWN);
	expect_pool(_metadata, s, 1, 0);
}
#endif /* __aarch64__ */

TEST_HARNESS_MAIN
