// SPDX-License-Identifier: GPL-2.0
/*
 * Healing: fallocate(FALLOC_FL_ZERO_RANGE) gives up the contents of lost pages of a
 * file with MFD_MF_KEEP_UE_MAPPED.  When that holds for all of a hugepage, another
 * takes its place, for all who map it.
 *
 * The needs are those of the hugetlb-mfr test.
 */
#include "mfr_harness.h"
#include <sys/uio.h>
#include <time.h>
#include "../../../../mm/gup_test.h"

#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE	0x0010
#endif

/* Hugepage 0 has been replaced. @gone is what the pool has lost. */
static void expect_healed_by(struct __test_metadata *_metadata, struct subject *s,
			     long gone)
{
	expect_replaced(_metadata, s);
	wait_for_pool(_metadata, s, gone, s->nr_huge);
}

static void expect_healed(struct __test_metadata *_metadata, struct subject *s)
{
	expect_healed_by(_metadata, s, 1);
}

/* A call that has failed has changed nothing. */
static void expect_unhealed(struct __test_metadata *_metadata, struct subject *s)
{
	EXPECT_EQ(s->nr_lost, nr_on_map(s));
	EXPECT_EQ(0, nr_changed_pages(s));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	expect_corrupted(_metadata, s);
	expect_pool(_metadata, s, 0, s->nr_huge);
}

/* A healed hugepage is kept like any other. */
static void expect_kept(struct __test_metadata *_metadata, struct subject *s,
			unsigned long nr)
{
	lose(_metadata, s, nr);
	EXPECT_EQ(1, nr_on_map(s));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_TRUE(try_read(raw_page(s, neighbour(nr))));
}

FIXTURE_SUBJECT(healed);

static const struct named_variant healed_variants[] = {
	{ "madvise_2m", { SZ_2M, &by_madvise } },
	{ "corrupt_pfn_2m", { SZ_2M, &by_pfn } },
	{ "madvise_1g", { SZ_1G, &by_madvise } },
	{ "mce_2m", { SZ_2M, &by_mce } },
};

FIXTURE_VARIANTS(healed, healed_variants)
FIXTURE_VARIANT_ADD_SIZES(healed)

FIXTURE_SETUP(healed)
{
	setup_kept(_metadata, &self->s, variant->size, variant->injector, 1, MFD_ALLOW_SEALING);
	if (_metadata->exit_code)
		return;
	if (!need_more_hugepages(&self->s, 1))
		SKIP(return, "can't get 2 hugepages");
}

TEST_F_TIMEOUT(healed, lost_page_reads_zero_others_are_unchanged, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 5);
	EXPECT_EQ(0, zero_page(s, 5));
	expect_healed(_metadata, s);
}

TEST_F_TIMEOUT(healed, other_lost_page_is_kept, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 0);
	EXPECT_EQ(0, zero_page(s, 0));
	expect_healed(_metadata, s);
	s->before.nr--;
	s->before.free--;
	fill(s);
	expect_kept(_metadata, s, 0);
}

TEST_F_TIMEOUT(healed, all_lost_pages_at_once, SLOW)
{
	struct subject *s = &self->s;
	unsigned long i;

	lose_samples(_metadata, s);
	EXPECT_EQ(0, zero(s, 0, s->size));
	for (i = 0; i < s->nr_raw; i++)
		if (!page_is_zero(raw_page(s, i)))
			break;
	EXPECT_EQ(s->nr_raw, i);
	/* Now put back what expect_healed() compares. */
	fill(s);
	for (i = 0; i < NR_SAMPLES; i++)
		memset(raw_page(s, sample(s, i)), 0, psize());
	expect_healed(_metadata, s);
}

TEST_F_TIMEOUT(healed, not_before_all_lost_pages_are_given_up, SLOW)
{
	struct subject *s = &self->s;
	unsigned int i;

	lose_samples(_metadata, s);
	for (i = 0; i < NR_SAMPLES - 1; i++)
		EXPECT_EQ(-EIO, zero_page(s, sample(s, i)));
	expect_unhealed(_metadata, s);

	EXPECT_EQ(0, zero_page(s, sample(s, NR_SAMPLES - 1)));
	expect_healed(_metadata, s);
}

TEST_F_TIMEOUT(healed, not_if_a_lost_page_is_zeroed_in_part, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 7);
	EXPECT_EQ(-EIO, zero(s, 7 * psize() + 1, psize() - 1));
	EXPECT_EQ(-EIO, zero(s, 6 * psize(), 2 * psize() - 1));
	EXPECT_EQ(-EIO, zero(s, 7 * psize() + 8, 8));
	expect_unhealed(_metadata, s);
	EXPECT_EQ(0, zero(s, 7 * psize() - 1, psize() + 2));
	EXPECT_EQ(0, raw_page(s, 7)[-1]);
	EXPECT_EQ(0, raw_page(s, 8)[0]);
	((uint64_t *)raw_page(s, 7))[-1] = (7 * psize() / 8 - 1) ^ 0xa5a5a5a5a5a5a5a5;
	((uint64_t *)raw_page(s, 8))[0] = (8 * psize() / 8) ^ 0xa5a5a5a5a5a5a5a5;
	expect_healed(_metadata, s);
}

TEST_F_TIMEOUT(healed, not_if_a_page_is_lost_later, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 4);
	lose(_metadata, s, 9);
	EXPECT_EQ(-EIO, zero_page(s, 4));
	lose(_metadata, s, 5);
	EXPECT_EQ(-EIO, zero_page(s, 9));
	expect_unhealed(_metadata, s);
	EXPECT_EQ(0, zero_page(s, 5));
	expect_healed(_metadata, s);
}

TEST_F_TIMEOUT(healed, healthy_pages_are_zeroed_beside_lost_ones, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 4);
	EXPECT_EQ(0, zero_page(s, 5));
	EXPECT_TRUE(page_is_zero(raw_page(s, 5)));
	EXPECT_EQ(1, nr_changed_pages(s));
	EXPECT_EQ(1, nr_on_map(s));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	expect_pool(_metadata, s, 0, 1);
}

/* Take all hugepages that the file doesn't have. */
static void empty_pool(struct __test_metadata *_metadata, struct subject *s)
{
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", s->nr_huge));
	EXPECT_EQ(0, pool_get(s->size, "free_hugepages"));
	s->before = pool_read(s->size);
	s->before.free += s->nr_huge;
}

TEST_F_TIMEOUT(healed, with_an_empty_pool_if_it_can_grow, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 5);
	empty_pool(_metadata, s);
	if (s->size < SZ_1G) {
		EXPECT_EQ(0, zero_page(s, 5));
		expect_healed_by(_metadata, s, 0);
		return;
	}
	EXPECT_EQ(-ENOSPC, zero_page(s, 5));
	expect_unhealed(_metadata, s);
	ASSERT_TRUE(need_more_hugepages(s, 1));
	EXPECT_EQ(0, zero_page(s, 5));
	expect_healed(_metadata, s);
}

TEST_F_TIMEOUT(healed, reservation_is_not_used, SLOW)
{
	struct subject *s = &self->s;
	int fd = create_memfd(s->size, 0);
	char *map;

	lose(_metadata, s, 5);
	ASSERT_LE(0, fd);
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", s->nr_huge + 1));
	ASSERT_EQ(0, ftruncate(fd, s->size));
	map = mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	s->before = pool_read(s->size);
	s->before.free += s->nr_huge;
	if (s->size < SZ_1G) {
		EXPECT_EQ(0, zero_page(s, 5));
		expect_healed_by(_metadata, s, 0);
	} else {
		EXPECT_EQ(-ENOSPC, zero_page(s, 5));
		expect_unhealed(_metadata, s);
	}
	EXPECT_TRUE(try_write(map));
}

TEST_F_TIMEOUT(healed, not_while_a_pipe_holds_it, SLOW)
{
	struct subject *s = &self->s;
	struct iovec iov = { raw_page(s, 20), psize() };
	char *buf = malloc(psize());
	int pipefd[2];

	ASSERT_NE(NULL, buf);
	ASSERT_EQ(0, pipe(pipefd));
	lose(_metadata, s, 5);
	ASSERT_EQ(psize(), vmsplice(pipefd[1], &iov, 1, 0));
	EXPECT_EQ(-EBUSY, zero_page(s, 5));
	expect_unhealed(_metadata, s);

	EXPECT_EQ(psize(), read(pipefd[0], buf, psize()));
	EXPECT_TRUE(page_is_intact(buf, 20));
	EXPECT_EQ(0, zero_page(s, 5));
	expect_healed(_metadata, s);
}

TEST_F_TIMEOUT(healed, not_while_a_ring_holds_it, SLOW)
{
	struct subject *s = &self->s;
	struct ring ring;

	if (!make_ring(&ring))
		SKIP(return, "needs io_uring");
	lose(_metadata, s, 5);
	ASSERT_EQ(0, register_buffer(&ring, raw_page(s, 8), 2 * psize()));
	EXPECT_EQ(-EBUSY, zero_page(s, 5));
	expect_unhealed(_metadata, s);
	destroy_ring(&ring);

	/* A worker lets go of it. */
	wait_until(zero_page(s, 5) != -EBUSY, 20000);
	expect_healed(_metadata, s);
}

TEST_F_TIMEOUT(healed, after_a_pin_has_allocated_it, SLOW)
{
	struct subject *s = &self->s;
	struct pin_memfd_test pin = { .size = s->size };
	int fd = open_pin();

	if (fd < 0)
		SKIP(return, "needs CONFIG_GUP_TEST");
	ASSERT_EQ(0, punch(s, 0, s->size));
	/* PIN_MEMFD_TEST pins the hugepage, and unpins it at once. */
	pin.fd = s->fd;
	EXPECT_EQ(1, ioctl(fd, PIN_MEMFD_TEST, &pin));
	close(fd);
	fill(s);
	s->head[0] = mapped_pfn(s->map);

	lose(_metadata, s, 5);
	EXPECT_EQ(0, zero_page(s, 5));
	expect_healed(_metadata, s);
}

TEST_F_TIMEOUT(healed, not_if_some_losses_are_unknown, SLOW)
{
	struct subject *s = &self->s;

	if (!can_fail_allocations())
		SKIP(return, "needs CONFIG_FAILSLAB and CONFIG_FAIL_PAGE_ALLOC");
	lose(_metadata, s, 5);
	note_lost(_metadata, s, 6);
	EXPECT_EQ(0, inject_unrecorded(raw_pfn(s, 6)));
	ASSERT_TRUE(has_failed());
	EXPECT_EQ(-EIO, zero(s, 0, s->size));
	EXPECT_EQ(0, nr_changed_pages(s));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	expect_pool(_metadata, s, 0, 1);
	/* The hugepage stays out of use. */
	give_up(s, 0);
}

TEST_F_TIMEOUT(healed, not_if_the_file_is_sealed, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 5);
	ASSERT_EQ(0, fcntl(s->fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE));
	EXPECT_EQ(-EPERM, zero_page(s, 5));
	expect_unhealed(_metadata, s);
}

/* Another process that maps the file writes: no update may be lost. */
static pid_t start_counter(struct subject *s, unsigned long nr, atomic_ulong *count,
			   atomic_bool *stop)
{
	pid_t pid = fork_helper();
	uint64_t *word;
	char *map;

	if (pid)
		return pid;

	map = map_file(s, MAP_SHARED);
	if (!map)
		_exit(1);
	word = (uint64_t *)(map + nr * psize());
	*word = 0;
	do {
		if (__atomic_load_n(word, __ATOMIC_RELAXED) != *count)
			_exit(2);
		__atomic_store_n(word, *count + 1, __ATOMIC_RELAXED);
		++*count;
	} while (!*stop);
	_exit(*word == *count ? 0 : 3);
}

#define NR_WRITERS	2

TEST_F_TIMEOUT(healed, writers_in_other_processes_lose_nothing, SLOW)
{
	struct {
		atomic_ulong count[NR_WRITERS];
		atomic_bool stop;
	} *shared = alloc_shared(sizeof(*shared));
	struct subject *s = &self->s;
	pid_t pid[NR_WRITERS];
	unsigned long before;
	unsigned int i;

	ASSERT_NE(NULL, shared);
	lose(_metadata, s, 5);
	for (i = 0; i < NR_WRITERS; i++) {
		pid[i] = start_counter(s, 20 + i, &shared->count[i], &shared->stop);
		ASSERT_LE(0, pid[i]);
		ASSERT_TRUE(wait_until(shared->count[i], 1000));
	}
	EXPECT_EQ(0, zero_page(s, 5));
	for (i = 0; i < NR_WRITERS; i++) {
		before = shared->count[i];
		while (shared->count[i] == before && !kill(pid[i], 0))
			usleep(1000);
	}
	shared->stop = true;
	for (i = 0; i < NR_WRITERS; i++) {
		wait_for_child(_metadata, pid[i]);
		EXPECT_EQ(shared->count[i], *(uint64_t *)raw_page(s, 20 + i));
		((uint64_t *)raw_page(s, 20 + i))[0] =
			((20 + i) * psize() / 8) ^ 0xa5a5a5a5a5a5a5a5;
	}
	expect_healed(_metadata, s);
}

TEST_F_TIMEOUT(healed, private_mapping_sees_it, SLOW)
{
	struct subject *s = &self->s;
	char *map;

	map = mmap(NULL, s->size, PROT_READ, MAP_PRIVATE | MAP_NORESERVE, s->fd, 0);
	ASSERT_NE(MAP_FAILED, map);
	read_byte(map);
	s->injector = by_address(s);
	sigbus.nr = 0;
	note_lost(_metadata, s, 5);
	ASSERT_EQ(0, inject(s, 5));
	EXPECT_EQ(0, zero_page(s, 5));
	EXPECT_TRUE(page_is_zero(map + 5 * psize()));
	EXPECT_TRUE(page_is_intact(map + 6 * psize(), 6));
	expect_healed(_metadata, s);
	EXPECT_TRUE(is_mapped_huge(s, map, 0));
}

TEST_F_TIMEOUT(healed, locked_memory_stays_locked, SLOW)
{
	struct subject *s = &self->s;

	ASSERT_EQ(0, mlock(s->map, s->size));
	lose(_metadata, s, 5);
	EXPECT_EQ(0, zero_page(s, 5));
	EXPECT_TRUE(try_read(raw_page(s, 5)));
	expect_healed(_metadata, s);
	EXPECT_EQ(0, munlock(s->map, s->size));
}

TEST_F_TIMEOUT(healed, whichever_allocation_fails, SLOW)
{
	struct subject *s = &self->s;
	unsigned int nth, nr_failed = 0;
	int ret;

	if (!can_fail_allocations())
		SKIP(return, "needs CONFIG_FAILSLAB and CONFIG_FAIL_PAGE_ALLOC");
	lose(_metadata, s, 5);
	for (nth = 1; nth < 100; nth++) {
		ASSERT_TRUE(fail_allocation(nth));
		ret = zero_page(s, 5);
		if (!has_failed())
			break;
		nr_failed++;
		if (!ret)
			break;
		EXPECT_TRUE(ret == -ENOSPC || ret == -EBUSY || ret == -ENOMEM);
		expect_unhealed(_metadata, s);
	}
	ksft_print_msg("%u allocations failed\n", nr_failed);
	EXPECT_EQ(0, ret);
	expect_healed(_metadata, s);
}

TEST_F_TIMEOUT(healed, marks_end_with_the_file, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 5);
	lose(_metadata, s, 6);
	EXPECT_EQ(-EIO, zero_page(s, 5));
	unmap_file(s);
	EXPECT_EQ(0, close(s->fd));
	s->fd = -1;
	expect_released(_metadata, s);
}

/*
 * Healing races with what else happens to a hugepage. Its second half is never lost, nor
 * zeroed but by hole punching, and must be as it was at all times.
 */
#define NR_RACES	40

enum act {
	ACT_LOSE,
	ACT_HEAL,
	ACT_MOVE,
	ACT_PUNCH,
	ACT_READ,
};

struct race {
	struct subject s;
	struct {
		atomic_bool stop;
		atomic_ulong nr_done;
	} *shared;
	bool *alien;			/* poisoned before, by page frame number */
};

FIXTURE(raced)
{
	struct race race;
};

FIXTURE_VARIANT(raced)
{
	enum act act;
};

FIXTURE_VARIANT_ADD(raced, by_errors) { .act = ACT_LOSE };
FIXTURE_VARIANT_ADD(raced, by_another_call) { .act = ACT_HEAL };
FIXTURE_VARIANT_ADD(raced, by_migration) { .act = ACT_MOVE };
FIXTURE_VARIANT_ADD(raced, by_punching) { .act = ACT_PUNCH };
FIXTURE_VARIANT_ADD(raced, by_references) { .act = ACT_READ };

#define MAX_PFN		(16UL << 20)

/* Note each page that is poisoned and has not been before. How many are there? */
static unsigned long note_all_poisoned(bool *alien, bool first)
{
	static uint64_t flags[4096];
	unsigned long pfn, i, nr = 0;

	for (pfn = 0; pfn < MAX_PFN; pfn += ARRAY_SIZE(flags)) {
		if (!read_kpageflags(pfn, ARRAY_SIZE(flags), flags))
			continue;
		for (i = 0; i < ARRAY_SIZE(flags); i++) {
			if (!(flags[i] & KPF_HWPOISON))
				continue;
			if (first)
				alien[pfn + i] = true;
			else if (!alien[pfn + i])
				nr += note_poison(pfn + i, pfn + i);
		}
	}
	return nr;
}

static void setup_race(struct __test_metadata *_metadata, struct race *race)
{
	struct subject *s = &race->s;

	setup_kept(_metadata, s, SZ_2M, &by_madvise, 1, 0);
	if (_metadata->exit_code)
		return;
	/* Each time that it is healed takes one. */
	if (!need_more_hugepages(s, 4 * NR_RACES))
		SKIP(return, "can't get %d hugepages", 4 * NR_RACES);
	race->shared = alloc_shared(sizeof(*race->shared));
	ASSERT_NE(NULL, race->shared);
	race->alien = alloc_shared(MAX_PFN);
	ASSERT_NE(NULL, race->alien);
	note_all_poisoned(race->alien, true);
	/* Compare with the pages lost until now. */
	ASSERT_TRUE(note_poison(s->head[0], s->head[0]));
	injecting = true;
}

/* Nobody disturbs it any more: what is counted is poisoned, and can be given back. */
static void finish_race(struct __test_metadata *_metadata, struct race *race,
			unsigned long nr_healed)
{
	unsigned long i, nr_lost, half = race->s.nr_raw / 2;
	struct subject *s = &race->s;

	EXPECT_EQ(0, zero(s, 0, s->size / 2));
	EXPECT_EQ(0, nr_on_map(s));
	for (i = 0; i < half && page_is_zero(raw_page(s, i)); i++)
		;
	EXPECT_EQ(half, i);
	unmap_file(s);
	EXPECT_EQ(0, close(s->fd));
	s->fd = -1;

	wait_until(pool_read(s->size).free == pool_read(s->size).nr, 20000);
	nr_lost = note_all_poisoned(race->alien, false);
	EXPECT_LE(nr_healed, nr_lost);
	EXPECT_EQ(s->corrupted + nr_lost * (psize() >> 10), hardware_corrupted());
}

FIXTURE_SETUP(raced)
{
	setup_race(_metadata, &self->race);
}

FIXTURE_TEARDOWN_PARENT(raced)
{
	teardown_subject(_metadata, &self->race.s);
}

static void take_part(struct subject *s, enum act what, unsigned int n)
{
	unsigned long half = s->nr_raw / 2;
	unsigned long nr = n * 7 % half;
	char *page = raw_page(s, nr), byte;
	struct iovec local = { &byte, 1 }, remote = { raw_page(s, half), 1 };

	switch (what) {
	case ACT_LOSE:
		madvise(page, psize(), MADV_HWPOISON);
		usleep(2000);
		break;
	case ACT_HEAL:
		zero(s, 0, s->size / 2);
		break;
	case ACT_MOVE:
		move_page(raw_page(s, half), n % 2);
		break;
	case ACT_PUNCH:
		punch(s, 0, s->size);
		try_write(raw_page(s, half - 1));
		break;
	case ACT_READ:
		process_vm_readv(getpid(), &local, 1, &remote, 1, 0);
		break;
	}
}

/* Is the second half as it was, or, once punched, zero? */
static unsigned long nr_wrong_pages(struct subject *s, bool punched)
{
	unsigned long i, nr = 0;

	for (i = s->nr_raw / 2; i < s->nr_raw; i++)
		if (!page_is_intact(raw_page(s, i), i) &&
		    !(punched && page_is_zero(raw_page(s, i))))
			nr++;
	return nr;
}

TEST_F_TIMEOUT(raced, loses_only_the_pages_given_up, SLOW)
{
	const bool punched = variant->act == ACT_PUNCH;
	unsigned long i, nr_healed = 0, nr_refused = 0, nr_met = 0;
	struct race *race = &self->race;
	struct subject *s = &race->s;
	pid_t pid;
	int ret;

	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		for (i = 0; !race->shared->stop; i++) {
			take_part(s, variant->act, i);
			race->shared->nr_done++;
		}
		_exit(0);
	}
	for (i = 0; i < NR_RACES && !_metadata->exit_code; i++) {
		unsigned long done = race->shared->nr_done;

		madvise(raw_page(s, i), psize(), MADV_HWPOISON);
		ret = zero(s, 0, s->size / 2);
		nr_met += race->shared->nr_done != done;
		/* The signal of an error interrupts the call. */
		EXPECT_TRUE(!ret || ret == -EIO || ret == -EBUSY || ret == -EINTR)
			ksft_print_msg("ZERO_RANGE: %s\n", strerror(-ret));
		nr_healed += !ret;
		nr_refused += !!ret;
		EXPECT_EQ(0, nr_wrong_pages(s, punched));
		/* The other one isn't left behind. */
		while (race->shared->nr_done == done && !waitpid(pid, NULL, WNOHANG))
			usleep(100);
	}
	race->shared->stop = true;
	wait_for_child(_metadata, pid);
	ksft_print_msg("%lu healed, %lu refused, %lu of them raced\n", nr_healed, nr_refused,
		       nr_met);
	EXPECT_LT(0, nr_healed);
	EXPECT_LT(0, nr_met);
	finish_race(_metadata, race, punched ? 0 : nr_healed);
}

FIXTURE(call)
{
	struct race race;
};

FIXTURE_SETUP(call)
{
	setup_race(_metadata, &self->race);
}

FIXTURE_TEARDOWN_PARENT(call)
{
	teardown_subject(_metadata, &self->race.s);
}

TEST_F_TIMEOUT(call, killed_leaves_it_healed_or_unhealed, SLOW)
{
	struct race *race = &self->race;
	struct subject *s = &race->s;
	unsigned long i, old, nr_healed = 0;
	pid_t pid;

	/* Both outcomes must be seen, if need be by killing it at once or late. */
	for (i = 0; i < 2 * NR_RACES && !_metadata->exit_code &&
	     (i < NR_RACES || !nr_healed || nr_healed == i); i++) {
		old = mapped_pfn(s->map);
		madvise(raw_page(s, i), psize(), MADV_HWPOISON);
		pid = fork_helper();
		ASSERT_LE(0, pid);
		if (!pid) {
			zero(s, 0, s->size / 2);
			for (;;)
				pause();
		}
		usleep(i < NR_RACES ? i * 50 : nr_healed ? 0 : 500000);
		kill_child(_metadata, pid);
		read_byte(raw_page(s, s->nr_raw - 1));
		if (mapped_pfn(s->map) == old) {
			EXPECT_LT(0, nr_on_map(s));
		} else {
			EXPECT_EQ(0, nr_on_map(s));
			nr_healed++;
		}
		EXPECT_EQ(0, nr_wrong_pages(s, false));
	}
	ksft_print_msg("%lu of %lu healed\n", nr_healed, i);
	EXPECT_LT(0, nr_healed);
	EXPECT_GT(i, nr_healed);
	finish_race(_metadata, race, nr_healed);
}

static void spin_us(unsigned long us)
{
	struct timespec begin, now;

	clock_gettime(CLOCK_MONOTONIC, &begin);
	do
		clock_gettime(CLOCK_MONOTONIC, &now);
	while ((now.tv_sec - begin.tv_sec) * 1000000 +
	       (now.tv_nsec - begin.tv_nsec) / 1000 < (long)us);
}

/*
 * A page of the second half is lost while the first is given up: it fails the call, or
 * comes after it. Until it is named, too, it never becomes zero.
 */
TEST_F_TIMEOUT(call, does_not_zero_a_page_lost_later, SLOW)
{
	struct race *race = &self->race;
	struct subject *s = &race->s;
	unsigned long i, nr, nr_healed = 0;
	pid_t pid;
	int ret;

	for (i = 0; i < 2 * NR_RACES && !_metadata->exit_code; i++) {
		nr = s->nr_raw / 2 + i;
		madvise(raw_page(s, 0), psize(), MADV_HWPOISON);
		race->shared->stop = false;
		race->shared->nr_done = 0;
		pid = fork_helper();
		ASSERT_LE(0, pid);
		if (!pid) {
			race->shared->nr_done = 1;
			while (!race->shared->stop)
				;
			/* Half of them early, when the call has just begun. */
			spin_us(i < NR_RACES ? i * 25 : (i - NR_RACES) * 1000);
			madvise(raw_page(s, nr), psize(), MADV_HWPOISON);
			_exit(0);
		}
		while (!race->shared->nr_done)
			;
		race->shared->stop = true;
		/* The signal of the error interrupts the call. */
		do
			ret = zero(s, 0, s->size / 2);
		while (ret == -EINTR);
		EXPECT_TRUE(!ret || ret == -EIO)
			ksft_print_msg("ZERO_RANGE: %s\n", strerror(-ret));
		nr_healed += !ret;
		wait_for_child(_metadata, pid);
		EXPECT_EQ(0, nr_wrong_pages(s, false));
		EXPECT_LT(0, nr_on_map(s));

		EXPECT_EQ(0, zero(s, nr * psize(), psize()));
		EXPECT_TRUE(page_is_zero(raw_page(s, nr)));
		fill(s);
	}
	ksft_print_msg("%lu of %lu healed before the loss\n", nr_healed, i);
	EXPECT_LT(0, nr_healed);
	EXPECT_GT(i, nr_healed);
	finish_race(_metadata, race, nr_healed);
}

/*
 * heal-kept-memory of tools/mm, which PATH must lead to
 */

FIXTURE_SUBJECT(tool);

static pid_t start_tool(void)
{
	char parent[16];
	pid_t pid;

	snprintf(parent, sizeof(parent), "%d", getpid());
	pid = fork_helper();
	if (pid)
		return pid;
	if (dup2(open("/dev/null", O_WRONLY), STDOUT_FILENO) >= 0)
		execlp("heal-kept-memory", "heal-kept-memory", parent, NULL);
	_exit(127);
}

FIXTURE_SETUP(tool)
{
	setup_kept(_metadata, &self->s, SZ_2M, &by_madvise, 1, 0);
	if (_metadata->exit_code)
		return;
	if (!need_more_hugepages(&self->s, 1))
		SKIP(return, "can't get 2 hugepages");
	if (system("command -v heal-kept-memory >/dev/null"))
		SKIP(return, "needs heal-kept-memory");
}

TEST_F_TIMEOUT(tool, heals_the_memory_of_a_process, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 5);
	wait_for_child(_metadata, start_tool());
	expect_healed(_metadata, s);
}

/* Is a stopped process on its way out of fallocate()? */
static bool is_leaving_fallocate(pid_t pid)
{
	char path[48], text[256];

	snprintf(path, sizeof(path), "/proc/%d/syscall", pid);
	return read_text(path, text, sizeof(text)) > 0 && atol(text) == SYS_fallocate;
}

/* The call waits while another user holds the hugepage, unless a signal comes. */
TEST_F_TIMEOUT(tool, heals_despite_interruption, SLOW)
{
	struct subject *s = &self->s;
	struct iovec iov = { raw_page(s, 9), psize() };
	bool interrupted = false;
	int pipefd[2], status;
	pid_t pid;

	ASSERT_EQ(0, pipe2(pipefd, O_CLOEXEC));
	ASSERT_EQ(psize(), vmsplice(pipefd[1], &iov, 1, 0));
	lose(_metadata, s, 5);
	pid = start_tool();
	ASSERT_LE(0, pid);
	while (!interrupted) {
		usleep(20000);
		kill(pid, SIGSTOP);
		ASSERT_EQ(pid, waitpid(pid, &status, WUNTRACED));
		/* The tool must still be waiting. */
		ASSERT_TRUE(WIFSTOPPED(status));
		interrupted = is_leaving_fallocate(pid);
		if (interrupted) {
			EXPECT_EQ(1, nr_on_map(s));
			close(pipefd[0]);
			close(pipefd[1]);
		}
		kill(pid, SIGCONT);
	}
	wait_for_child(_metadata, pid);
	expect_healed(_metadata, s);
}

FIXTURE_SUBJECT(plain);

static const struct named_variant plain_variants[] = {
	{ "madvise_2m", { SZ_2M, &by_madvise } },
	{ "madvise_1g", { SZ_1G, &by_madvise } },
};

FIXTURE_VARIANTS(plain, plain_variants)

FIXTURE_SETUP_PLAIN(plain);

/* All mappings lose the whole hugepage, which stays in the file, poisoned. */
TEST_F_TIMEOUT(plain, without_the_flag_nothing_is_healed, SLOW)
{
	struct subject *s = &self->s;
	char byte;

	lose_hugepage(_metadata, s, 5);
	EXPECT_EQ(-EIO, zero_page(s, 5));
	EXPECT_EQ(-EIO, zero(s, 0, s->size));
	EXPECT_EQ(1, pread(s->fd, &byte, 1, 0));
	EXPECT_EQ(-1, pread(s->fd, &byte, 1, 5 * psize()));
	EXPECT_EQ(EIO, errno);
	EXPECT_EQ(0, zero_page(s, 6));
	EXPECT_EQ(1, pread(s->fd, &byte, 1, 6 * psize()));
	EXPECT_EQ(0, byte);
}

TEST_HARNESS_MAIN
