// SPDX-License-Identifier: GPL-2.0
/*
 * Memory failure recovery of hugetlb memfds: all that counts hugepages.
 *
 * A kept hugepage with lost pages leaves its pool when its life ends.  At every
 * step the pool, its nodes, reservations, mounts, cgroups and HardwareCorrupted
 * must say exactly what is there.
 *
 * The fixtures:
 *   accounted	reservations, surplus pages, hugepages side by side
 *   counted	the pool: reserved, overcommitted, shrunk and grown
 *   nodes	the pool of one of several nodes
 *   mounted, mounted_plain	mounts of hugetlbfs that promise or limit hugepages
 *   charged	cgroups
 *   optimized	hugepages without most of their struct pages
 *   one_lost	hugepages with one lost page among the first
 *   gigantic	1 GiB hugepages from wherever they come
 *   booted	a healthy one from boot
 *
 * Some need the kernel's command line to say where 1 GiB hugepages come from:
 * gigantic.cma_* want hugetlb_cma=, with room for two on one node, gigantic.boot
 * wants hugepagesz=1G hugepages=2, and what is optimized at boot
 * hugetlb_free_vmemmap=on as well.
 */

#define _GNU_SOURCE
#include "mfr_harness.h"
#include <linux/udmabuf.h>
#include <sys/vfs.h>

/*
 * Reservations, surplus pages, and hugepages side by side
 */

FIXTURE_SUBJECT(accounted);

FIXTURE_VARIANTS(accounted, simulated)

FIXTURE_SETUP(accounted)
{
	setup_keeping(_metadata, &self->s, SZ_2M, variant->injector, 2);
}

TEST_F(accounted, pages_beside_a_boundary_count_twice)
{
	struct subject *s = &self->s;

	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	lose(_metadata, s, s->nr_raw - 1);
	lose(_metadata, s, s->nr_raw);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 1));
	EXPECT_EQ(0, nr_changed_pages(s));

	empty_file(_metadata, s);
	expect_pool(_metadata, s, 2, 0);
	expect_all_come_back(_metadata, s, 0);
	expect_all_come_back(_metadata, s, 1);
}

TEST_F(accounted, read_returns_the_hugepage_before)
{
	struct subject *s = &self->s;
	unsigned long ps = psize();
	char *buf = malloc(4 * ps);

	ASSERT_NE(NULL, buf);
	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	lose(_metadata, s, s->nr_raw);

	EXPECT_EQ(2 * ps, pread(s->fd, buf, 4 * ps, (s->nr_raw - 2) * ps));
	EXPECT_TRUE(page_is_intact(buf, s->nr_raw - 2));
	EXPECT_TRUE(page_is_intact(buf + ps, s->nr_raw - 1));

	/* The position follows what was read. */
	ASSERT_EQ((s->nr_raw - 1) * ps, lseek(s->fd, (s->nr_raw - 1) * ps, SEEK_SET));
	EXPECT_EQ(ps, read(s->fd, buf, 4 * ps));
	EXPECT_ERRNO(EIO, read(s->fd, buf, 4 * ps));
	EXPECT_EQ(s->nr_raw * ps, lseek(s->fd, 0, SEEK_CUR));
	free(buf);
}

TEST_F(accounted, refused_udmabuf_holds_no_hugepage)
{
	struct subject *s = &self->s;
	struct {
		struct udmabuf_create_list head;
		struct udmabuf_create_item item[2];
	} list = { .head.count = 2 };
	struct udmabuf_create create;
	int fd;

	fd = open("/dev/udmabuf", O_RDWR);
	if (fd < 0)
		SKIP(return, "needs CONFIG_UDMABUF");
	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED | MFD_ALLOW_SEALING);
	ASSERT_EQ(0, fcntl(s->fd, F_ADD_SEALS, F_SEAL_SHRINK));
	lose(_metadata, s, s->nr_raw);

	create = (struct udmabuf_create) {
		.memfd = s->fd,
		.offset = s->size - psize(),
		.size = 2 * psize(),
	};
	EXPECT_ERRNO(EHWPOISON, ioctl(fd, UDMABUF_CREATE, &create));
	list.item[0] = (struct udmabuf_create_item) {
		.memfd = s->fd,
		.offset = s->size - psize(),
		.size = psize(),
	};
	list.item[1] = list.item[0];
	list.item[1].offset = s->size;
	EXPECT_ERRNO(EHWPOISON, ioctl(fd, UDMABUF_CREATE_LIST, &list));

	EXPECT_EQ(0, punch(s, 0, s->size));
	expect_pool(_metadata, s, 0, 1);
	close(fd);
}

TEST_F(accounted, healthy_hugepage_returns_to_the_pool)
{
	struct subject *s = &self->s;

	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	lose(_metadata, s, 5);
	EXPECT_EQ(0, punch(s, s->size, s->size));
	expect_pool(_metadata, s, 0, 1);
	EXPECT_EQ(0, punch(s, 0, s->size));
	expect_pool(_metadata, s, 1, 0);
	expect_all_come_back(_metadata, s, 0);
}

TEST_F(accounted, punch_removes_kept_hugepages)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw - 2;

	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	lose(_metadata, s, nr);

	EXPECT_ERRNO(EIO, punch(s, (nr - 1) * psize(), 3 * psize() + s->size));
	EXPECT_TRUE(page_is_zero(raw_page(s, nr - 1)));
	EXPECT_TRUE(page_is_zero(raw_page(s, nr + 1)));
	EXPECT_TRUE(page_is_intact(raw_page(s, nr), nr));
	EXPECT_TRUE(page_is_intact(raw_page(s, nr - 2), nr - 2));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_FALSE(is_mapped(s->map + s->size));
	expect_pool(_metadata, s, 0, 1);
}

TEST_F(accounted, reservation_outlives_a_poisoned_one)
{
	struct subject *s = &self->s;
	struct pool pool;

	/* Reserve two hugepages, fault in the first. */
	s->fd = create_memfd(s->size, MFD_MF_KEEP_UE_MAPPED);
	ASSERT_LE(0, s->fd);
	ASSERT_EQ(0, ftruncate(s->fd, 2 * s->size));
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
	ASSERT_EQ(s->before.resv + 2, pool_get(s->size, "resv_hugepages"));
	ASSERT_TRUE(try_write(s->map));
	s->head[0] = mapped_pfn(s->map);
	ASSERT_NE(-1UL, s->head[0]);
	lose(_metadata, s, 5);

	EXPECT_EQ(0, punch(s, 0, s->size));
	pool = pool_read(s->size);
	EXPECT_EQ(s->before.nr - 1, pool.nr);
	EXPECT_EQ(s->before.free - 1, pool.free);
	EXPECT_EQ(s->before.resv + 1, pool.resv);
	EXPECT_EQ(s->before.surplus, pool.surplus);

	EXPECT_TRUE(try_write(s->map + s->size));
	expect_pool(_metadata, s, 1, 1);
	empty_file(_metadata, s);
	expect_pool(_metadata, s, 1, 0);
	expect_all_come_back(_metadata, s, 0);
}

/* The pool gets the size that is asked for; sysfs shows the size that it has. */
TEST_F(accounted, nr_hugepages_excludes_the_poisoned_one)
{
	struct subject *s = &self->s;
	long before, after;

	if (default_size() != s->size)
		SKIP(return, "%s is about other hugepages", NR_HUGEPAGES);

	ASSERT_TRUE(read_long(NR_HUGEPAGES, &before));
	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	lose(_metadata, s, 5);
	empty_file(_metadata, s);
	expect_pool(_metadata, s, 1, 0);
	ASSERT_TRUE(read_long(NR_HUGEPAGES, &after));
	EXPECT_EQ(before - 1, after);
	expect_all_come_back(_metadata, s, 0);
}

TEST_F(accounted, surplus_hugepage_leaves_pool_unchanged)
{
	struct subject *s = &self->s;
	struct pool pool;

	/* Leave no hugepage to be had, but allow for one more. */
	pool_set(s->size, "nr_hugepages",
		 s->before.nr - (s->before.free - s->before.resv));
	s->before = pool_read(s->size);
	ASSERT_EQ(s->before.resv, s->before.free);
	ASSERT_TRUE(pool_set(s->size, "nr_overcommit_hugepages",
			     s->before.surplus + 1));

	s->nr_huge = 1;
	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	pool = pool_read(s->size);
	EXPECT_EQ(s->before.nr + 1, pool.nr);
	EXPECT_EQ(s->before.free, pool.free);
	EXPECT_EQ(s->before.resv, pool.resv);
	EXPECT_EQ(s->before.surplus + 1, pool.surplus);

	lose_samples(_metadata, s);
	empty_file(_metadata, s);
	expect_pool(_metadata, s, 0, 0);
	expect_all_come_back(_metadata, s, 0);
	expect_pool(_metadata, s, 0, 0);
}

/*
 * The pool
 */

FIXTURE_SUBJECT(counted);

FIXTURE_VARIANTS(counted, simulated_and_mce)

FIXTURE_SETUP(counted)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, SZ_2M, variant->injector, 2);
}

TEST_F_TIMEOUT(counted, only_first_and_last_page_are_left_out, SLOW)
{
	struct subject *s = &self->s;

	open_one(_metadata, s);
	lose(_metadata, s, 0);
	lose(_metadata, s, s->nr_raw - 1);
	expect_end(_metadata, s);
}

TEST_F_TIMEOUT(counted, all_free_hugepages_can_be_reserved, SLOW)
{
	struct subject *s = &self->s;
	char *others;

	leave_available(_metadata, s, 3);
	open_one(_metadata, s);
	lose_samples(_metadata, s);

	others = map_others(s, 2);
	ASSERT_NE(NULL, others);
	expect_change(_metadata, s, 0, -1, 2, 0);

	empty_file(_metadata, s);
	expect_change(_metadata, s, -1, -1, 2, 0);
	EXPECT_EQ(NULL, map_others(s, 1));

	/* The reserved hugepages are there. */
	EXPECT_TRUE(try_write(others));
	EXPECT_TRUE(try_write(others + s->size));
	expect_change(_metadata, s, -1, -3, 0, 0);
	munmap(others, 2 * s->size);
	expect_change(_metadata, s, -1, -1, 0, 0);
	expect_all_come_back(_metadata, s, 0);
	expect_change(_metadata, s, -1, -1, 0, 0);
}

TEST_F_TIMEOUT(counted, empty_pool_does_not_refill_a_hole, SLOW)
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
	empty_file(_metadata, s);
	expect_change(_metadata, s, 0, 0, 0, 0);
	expect_all_come_back(_metadata, s, 0);
}

/* The file's hugepage is the only surplus one that there may be. */
static void open_surplus(struct __test_metadata *_metadata, struct subject *s)
{
	leave_available(_metadata, s, 0);
	ASSERT_TRUE(pool_set(s->size, "nr_overcommit_hugepages", s->before.surplus + 1));
	open_one(_metadata, s);
}

TEST_F_TIMEOUT(counted, release_allows_another_surplus_hugepage, SLOW)
{
	struct subject *s = &self->s;
	char *other;

	open_surplus(_metadata, s);
	lose(_metadata, s, s->nr_raw / 2);
	expect_change(_metadata, s, 1, 0, 0, 1);

	/* Lost pages or not, it is the one that there may be. */
	EXPECT_EQ(NULL, map_others(s, 1));
	empty_file(_metadata, s);
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

TEST_F_TIMEOUT(counted, healed_surplus_hugepage_stays_surplus, SLOW)
{
	struct subject *s = &self->s;
	char *other;

	open_surplus(_metadata, s);
	expect_change(_metadata, s, 1, 0, 0, 1);
	lose(_metadata, s, 9);
	EXPECT_EQ(0, zero_page(s, 9));
	expect_replaced(_metadata, s);
	expect_change(_metadata, s, 1, 0, 0, 1);
	EXPECT_EQ(NULL, map_others(s, 1));

	empty_file(_metadata, s);
	expect_change(_metadata, s, 0, 0, 0, 0);
	other = map_others(s, 1);
	ASSERT_NE(NULL, other);
	munmap(other, s->size);
	expect_change(_metadata, s, 0, 0, 0, 0);
}

TEST_F_TIMEOUT(counted, healing_keeps_reservations_of_the_file, SLOW)
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
	empty_file(_metadata, s);
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

TEST_F_TIMEOUT(counted, pool_resizes_beside_lost_pages, SLOW)
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
	empty_file(_metadata, s);
	expect_change(_metadata, s, 1, 1, 0, 0);
	expect_all_come_back(_metadata, s, 0);
	expect_all_come_back(_metadata, s, 1);
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 0));
	expect_change(_metadata, s, -2, -2, 0, 0);
}

TEST_F_TIMEOUT(counted, pool_shrunk_to_zero_ends_with_release, SLOW)
{
	struct subject *s = &self->s;

	if (!pool_is_ours(s))
		SKIP(return, "others use hugepages");
	take_whole_pool(_metadata, s);
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 0));
	/* Hugepages in use become surplus. */
	expect_change(_metadata, s, 0, -2, 0, 2);
	EXPECT_EQ(0, nr_meant(s));
	lose(_metadata, s, 4);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 1));
	EXPECT_EQ(0, nr_changed_pages(s));

	ASSERT_EQ(0, punch(s, 0, s->size));
	expect_change(_metadata, s, -1, -2, 0, 1);
	EXPECT_EQ(0, nr_meant(s));
	empty_file(_metadata, s);
	expect_change(_metadata, s, -2, -2, 0, 0);
	EXPECT_EQ(0, nr_meant(s));
	expect_all_come_back(_metadata, s, 0);
	expect_all_come_back(_metadata, s, 1);
	expect_change(_metadata, s, -2, -2, 0, 0);
}

TEST_F_TIMEOUT(counted, regrown_pool_counts_as_before, SLOW)
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

	empty_file(_metadata, s);
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

FIXTURE_VARIANTS(nodes, simulated_and_mce)

FIXTURE_SETUP(nodes)
{
	struct subject *s = &self->s;
	struct pool near, far;

	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");

	if (!find_nodes(&self->near, &self->far))
		SKIP(return, "needs two nodes with memory");

	setup_subject(_metadata, s, SZ_2M, variant->injector, 2);
	if (_metadata->exit_code)
		return;

	/* One free hugepage on each of the two. */
	leave_available(_metadata, s, 0);
	near = node_pool_read(self->near, s->size);
	far = node_pool_read(self->far, s->size);
	ASSERT_TRUE(node_pool_set(self->near, s->size, "nr_hugepages", near.nr - near.surplus + 1));
	ASSERT_TRUE(node_pool_set(self->far, s->size, "nr_hugepages", far.nr - far.surplus + 1));
	s->before = pool_read(s->size);
	ASSERT_EQ(2, s->before.free - s->before.resv);
	self->near_before = node_pool_read(self->near, s->size);
	self->far_before = node_pool_read(self->far, s->size);
	ASSERT_LE(1, self->far_before.free);
	ASSERT_TRUE(bind_to(self->far));
}

FIXTURE_TEARDOWN_SUBJECT(nodes);

static void expect_node(struct __test_metadata *_metadata, struct subject *s, int node,
			const struct pool *before, long nr, long free, long surplus)
{
	struct pool now = node_pool_read(node, s->size);

	EXPECT_EQ(before->nr + nr, now.nr);
	EXPECT_EQ(before->free + free, now.free);
	EXPECT_EQ(before->surplus + surplus, now.surplus);
}

#define expect_near(...) \
	expect_node(_metadata, &self->s, self->near, &self->near_before, __VA_ARGS__)
#define expect_far(...) \
	expect_node(_metadata, &self->s, self->far, &self->far_before, __VA_ARGS__)

TEST_F_TIMEOUT(nodes, only_the_hugepages_own_node_counts_it, SLOW)
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
	lose_samples(_metadata, s);
	expect_far(0, -1, 0);
	expect_near(0, 0, 0);
	for (i = 0; i < ARRAY_SIZE(names); i++) {
		EXPECT_EQ(near[i], node_mf_stat(self->near, names[i]));
		EXPECT_EQ(far[i] + (i < 2 ? NR_SAMPLES : 0),
			  node_mf_stat(self->far, names[i]));
	}

	empty_file(_metadata, s);
	expect_far(-1, -1, 0);
	expect_near(0, 0, 0);
	expect_change(_metadata, s, -1, -1, 0, 0);
	/* The end of it is no event. */
	EXPECT_EQ(far[0] + NR_SAMPLES, node_mf_stat(self->far, names[0]));
	EXPECT_EQ(near[0], node_mf_stat(self->near, names[0]));
	expect_all_come_back(_metadata, s, 0);
	expect_far(-1, -1, 0);
	expect_near(0, 0, 0);
}

TEST_F_TIMEOUT(nodes, surplus_of_another_node_stays_surplus, SLOW)
{
	struct subject *s = &self->s;
	long meant = nr_meant(s);
	char *other;

	open_one(_metadata, s);
	lose(_metadata, s, 7);

	/* Another one is in use, and the pool of its node shrinks by one. */
	ASSERT_TRUE(bind_to(self->near));
	other = map_others(s, 1);
	ASSERT_NE(NULL, other);
	ASSERT_TRUE(try_write(other));
	ASSERT_TRUE(node_pool_set(self->near, s->size, "nr_hugepages", self->near_before.nr - 1));
	expect_near(0, -1, 1);
	expect_far(0, -1, 0);
	EXPECT_EQ(meant - 1, nr_meant(s));

	empty_file(_metadata, s);
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

TEST_F_TIMEOUT(nodes, surplus_of_the_node_is_released_first, SLOW)
{
	struct subject *s = &self->s;
	long meant = nr_meant(s);

	/* One of the pool and one more, both from the same node. */
	ASSERT_TRUE(node_pool_set(self->near, s->size, "nr_hugepages", self->near_before.nr - 1));
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

	/* The other one counts as the pool's now. */
	empty_file(_metadata, s);
	expect_far(0, 0, 0);
	expect_change(_metadata, s, -1, -1, 0, 0);
	EXPECT_EQ(meant - 1, nr_meant(s));
	expect_all_come_back(_metadata, s, 0);
	expect_far(0, 0, 0);
}

/* With nothing free on @node beside what the file has. */
static void leave_none_on(struct __test_metadata *_metadata, struct subject *s, int node)
{
	struct pool pool = node_pool_read(node, s->size);

	node_pool_set(node, s->size, "nr_hugepages", pool.nr - pool.surplus - pool.free);
	ASSERT_EQ(0, node_pool_get(node, s->size, "free_hugepages"));
}

/* Heal it, by a process that would have its own memory from the other node. */
static void heal_from_near(struct __test_metadata *_metadata, struct subject *s, int near)
{
	lose_samples(_metadata, s);
	ASSERT_TRUE(bind_to(near));
	zero_samples(_metadata, s);
	expect_replaced(_metadata, s);
}

TEST_F_TIMEOUT(nodes, healing_takes_from_the_same_node, SLOW)
{
	struct subject *s = &self->s;

	open_one(_metadata, s);
	ASSERT_TRUE(node_pool_set(self->far, s->size, "nr_hugepages", self->far_before.nr + 1));
	expect_far(1, 0, 0);
	heal_from_near(_metadata, s, self->near);
	expect_far(0, -1, 0);
	expect_near(0, 0, 0);
	empty_file(_metadata, s);
	expect_far(0, 0, 0);
	expect_near(0, 0, 0);
}

TEST_F_TIMEOUT(nodes, healing_takes_from_another_node, SLOW)
{
	struct subject *s = &self->s;

	open_one(_metadata, s);
	leave_none_on(_metadata, s, self->far);
	self->far_before = node_pool_read(self->far, s->size);
	heal_from_near(_metadata, s, self->near);
	expect_far(-1, 0, 0);
	expect_near(0, -1, 0);
	empty_file(_metadata, s);
	expect_far(-1, 0, 0);
	expect_near(0, 0, 0);
}

TEST_F_TIMEOUT(nodes, healing_allocates_on_the_same_node, SLOW)
{
	struct subject *s = &self->s;

	open_one(_metadata, s);
	leave_none_on(_metadata, s, self->far);
	leave_none_on(_metadata, s, self->near);
	self->far_before = node_pool_read(self->far, s->size);
	self->near_before = node_pool_read(self->near, s->size);
	heal_from_near(_metadata, s, self->near);
	expect_far(0, 0, 0);
	expect_near(0, 0, 0);
	empty_file(_metadata, s);
	expect_far(0, 1, 0);
	expect_near(0, 0, 0);
}

/*
 * Mounts of hugetlbfs
 */

FIXTURE_SUBJECT(mounted);

FIXTURE_VARIANTS(mounted, simulated)

FIXTURE_SETUP(mounted)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, SZ_2M, variant->injector, 1);
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

TEST_F_TIMEOUT(mounted, min_size_outlives_a_lost_hugepage, SLOW)
{
	struct subject *s = &self->s;
	char *map;
	int fd;

	leave_available(_metadata, s, 3);
	ASSERT_TRUE(mount_privately("hugetlbfs", "pagesize=2M,min_size=4M"));
	expect_change(_metadata, s, 0, 0, 2, 0);

	open_one(_metadata, s);
	lose_samples(_metadata, s);
	empty_file(_metadata, s);
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

/* Files of mounts are plain; that they are is not up to the flag. */
FIXTURE_SUBJECT(mounted_plain);

FIXTURE_VARIANTS(mounted_plain, simulated)

FIXTURE_SETUP(mounted_plain)
{
	setup_subject(_metadata, &self->s, SZ_2M, variant->injector, 1);
}

TEST_F_TIMEOUT(mounted_plain, hugepage_counts_until_unpoisoned, SLOW)
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

	empty_file(_metadata, s);
	expect_change(_metadata, s, 0, -1, 0, 0);
	EXPECT_EQ(1, nr_left_on_mount());
	expect_corrupted(_metadata, s);
	expect_not_unpoisoned(_metadata, raw_pfn(s, nr));

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

FIXTURE_SUBJECT(charged);

FIXTURE_VARIANTS(charged, simulated_and_mce)

#define CHILD	GROUP "/child"

/* The charge of a group, in hugepages; -1 if it is unknown. */
static long charge_get(struct subject *s, const char *group, const char *name)
{
	char path[PATH_MAX];
	long val;

	snprintf(path, sizeof(path), MOUNT "%s/hugetlb.%luMB.%s", group, s->size >> 20,
		 name);
	return read_long(path, &val) ? val / (long)s->size : -1;
}

/* Returns the charge of @group as the sum over the nodes. */
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
	long current;

	EXPECT_EQ(nr, charge_get(s, group, "current"));
	EXPECT_EQ(nr, charge_of_nodes(s, group));
	EXPECT_EQ(reserved, charge_get(s, group, "rsvd.current"));

	/* A little memory is charged that is not in hugepages. */
	snprintf(path, sizeof(path), MOUNT "%s/memory.current", group);
	ASSERT_TRUE(read_long(path, &current));
	EXPECT_EQ(nr, current / (long)s->size);

	EXPECT_TRUE(wait_until(memory_charge_get(s, group) == nr, 20000));
}

FIXTURE_SETUP(charged)
{
	bool memory;

	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	/* Groups are charged for up to 64 pages in advance. */
	if (64 * psize() >= SZ_2M)
		SKIP(return, "needs smaller base pages");
	setup_subject(_metadata, &self->s, SZ_2M, variant->injector, 2);
	if (_metadata->exit_code)
		return;

	if (!make_group(&memory) || !memory)
		SKIP(return, "needs hugetlb and memory controllers of cgroup2, with "
			     CGROUP2_HUGETLB);
	ASSERT_TRUE(write_group(GROUP, "cgroup.subtree_control", "+hugetlb +memory"));
	ASSERT_EQ(0, mkdir(MOUNT CHILD, 0700));
	expect_charges(_metadata, &self->s, CHILD, 0, 0);
	expect_charges(_metadata, &self->s, GROUP, 0, 0);
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
		lose_samples(_metadata, s);
		expect_charges(_metadata, s, CHILD, 2, 2);
		ASSERT_EQ(0, punch(s, 0, s->size));
		expect_charges(_metadata, s, CHILD, 1, 1);
		lose(_metadata, s, s->nr_raw + 1);
		empty_file(_metadata, s);
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

TEST_F_TIMEOUT(charged, group_at_its_limit_replaces_a_hugepage, SLOW)
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
		empty_file(_metadata, s);
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
		lose_samples(_metadata, s);
		unmap_file(s);
		_exit(KSFT_PASS);
	}
	wait_for_child(_metadata, pid);
	expect_charges(_metadata, s, CHILD, 1, 1);
	expect_charges(_metadata, s, GROUP, 1, 1);
}

TEST_F_TIMEOUT(charged, charges_outlive_the_processes, SLOW)
{
	struct subject *s = &self->s;

	fill_in_group(_metadata, s);
	empty_file(_metadata, s);
	expect_charges(_metadata, s, CHILD, 0, 0);
	expect_charges(_metadata, s, GROUP, 0, 0);
	expect_released(_metadata, s);
}

TEST_F_TIMEOUT(charged, parent_gets_charges_of_a_removed_group, SLOW)
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

TEST_F_TIMEOUT(charged, healing_by_others_moves_no_charge, SLOW)
{
	struct subject *s = &self->s;

	fill_in_group(_metadata, s);
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
	zero_samples(_metadata, s);
	expect_replaced(_metadata, s);
	expect_charges(_metadata, s, CHILD, 1, 1);
	expect_charges(_metadata, s, GROUP, 1, 1);
	empty_file(_metadata, s);
	expect_charges(_metadata, s, CHILD, 0, 0);
	expect_charges(_metadata, s, GROUP, 0, 0);
	expect_change(_metadata, s, -1, -1, 0, 0);
}

/* The pool is empty: healing must allocate a hugepage. */
TEST_F_TIMEOUT(charged, group_at_its_limit_can_heal, SLOW)
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
		empty_file(_metadata, s);
		_exit(KSFT_PASS);
	}
	wait_for_child(_metadata, pid);
	expect_charges(_metadata, s, CHILD, 0, 0);
	expect_change(_metadata, s, 0, 0, 0, 0);
}

TEST_F_TIMEOUT(charged, memcg_filter_applies_to_hugepages, SLOW)
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
		empty_file(_metadata, s);
		_exit(KSFT_PASS);
	}
	wait_for_child(_metadata, pid);
	expect_released(_metadata, s);
}

/*
 * Hugepages without most of their struct pages
 */

FIXTURE_SUBJECT(optimized);

FIXTURE_VARIANT(optimized)
{
	const struct injector *injector;
	bool hvo;
};

FIXTURE_VARIANT_ADD(optimized, on_madvise) { .injector = &by_madvise, .hvo = true };
FIXTURE_VARIANT_ADD(optimized, on_corrupt_pfn) { .injector = &by_pfn, .hvo = true };
FIXTURE_VARIANT_ADD(optimized, on_mce) { .injector = &by_mce, .hvo = true };
FIXTURE_VARIANT_ADD(optimized, off_madvise) { .injector = &by_madvise };
FIXTURE_VARIANT_ADD(optimized, off_corrupt_pfn) { .injector = &by_pfn };

FIXTURE_SETUP(optimized)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, SZ_2M, variant->injector, 2);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, variant->hvo);
	if (!_metadata->exit_code)
		open_subject(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
}

/* One of the two hugepages has got its struct pages back, or both. */
static void expect_memmap(struct __test_metadata *_metadata, struct subject *s, long nr)
{
	long wanted = s->memmap - s->memmap_less + nr * s->memmap_less / 2;

	wait_until(nr_memmap() == wanted, 20000);
	EXPECT_EQ(wanted, nr_memmap());
}

TEST_F_TIMEOUT(optimized, release_restores_the_struct_pages, SLOW)
{
	struct subject *s = &self->s;

	lose_samples(_metadata, s);
	expect_intact(_metadata, s);
	expect_memmap(_metadata, s, 0);

	/* Only the hugepage that goes gets them. */
	empty_file(_metadata, s);
	expect_memmap(_metadata, s, 1);
	expect_change(_metadata, s, -1, -1, 0, 0);
	expect_all_come_back(_metadata, s, 0);

	leave_available(_metadata, s, 0);
	expect_memmap(_metadata, s, 2);
}

TEST_F_TIMEOUT(optimized, release_works_after_HVO_was_switched, SLOW)
{
	struct subject *s = &self->s;

	if (access(HVO, W_OK))
		SKIP(return, "needs CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP");
	lose_samples(_metadata, s);
	ASSERT_TRUE(write_text(HVO, variant->hvo ? "0" : "1"));
	lose(_metadata, s, s->nr_raw / 4 + 2);
	empty_file(_metadata, s);
	expect_memmap(_metadata, s, 1);
	expect_change(_metadata, s, -1, -1, 0, 0);
	expect_all_come_back(_metadata, s, 0);
	leave_available(_metadata, s, 0);
	expect_memmap(_metadata, s, 2);
}

TEST_F_TIMEOUT(optimized, healing_restores_the_struct_pages, SLOW)
{
	struct subject *s = &self->s;

	ASSERT_EQ(0, punch(s, s->size, s->size));
	s->nr_huge = 1;
	lose_samples(_metadata, s);
	expect_memmap(_metadata, s, 0);
	zero_samples(_metadata, s);
	expect_replaced(_metadata, s);
	expect_memmap(_metadata, s, 1);
	expect_change(_metadata, s, -1, -2, 0, 0);
	empty_file(_metadata, s);
	expect_change(_metadata, s, -1, -1, 0, 0);
	leave_available(_metadata, s, 0);
	expect_memmap(_metadata, s, 2);
}

TEST_F_TIMEOUT(optimized, healing_works_after_HVO_was_switched, SLOW)
{
	struct subject *s = &self->s;

	lose_samples(_metadata, s);
	/* Without the sysctl, all hugepages are alike. */
	if (!access(HVO, W_OK))
		ASSERT_TRUE(write_text(HVO, variant->hvo ? "0" : "1"));
	zero_samples(_metadata, s);
	expect_replaced(_metadata, s);
	if (variant->hvo)
		expect_memmap(_metadata, s, 1);
	expect_change(_metadata, s, 0, -2, 0, 0);
	empty_file(_metadata, s);
	expect_change(_metadata, s, 0, 0, 0, 0);
	leave_available(_metadata, s, 0);
	expect_memmap(_metadata, s, 2);
}

TEST_F_TIMEOUT(optimized, pool_shrunk_to_zero_ends_with_release, SLOW)
{
	struct subject *s = &self->s;

	if (!pool_is_ours(s))
		SKIP(return, "others use hugepages");
	lose_samples(_metadata, s);
	ASSERT_TRUE(pool_set(s->size, "nr_hugepages", 0));
	expect_change(_metadata, s, 0, -2, 0, 2);
	empty_file(_metadata, s);
	expect_memmap(_metadata, s, 2);
	expect_change(_metadata, s, -2, -2, 0, 0);
	expect_all_come_back(_metadata, s, 0);
}

/*
 * A hugepage whose only lost page is one of the first few: their struct pages hold what
 * is known of the hugepage as a whole.
 */

FIXTURE_SUBJECT(one_lost);

FIXTURE_VARIANT(one_lost)
{
	unsigned long size;
	bool keep;
	bool hvo;
};

FIXTURE_VARIANT_ADD(one_lost, kept_2m) { .size = SZ_2M, .keep = true };
FIXTURE_VARIANT_ADD(one_lost, plain_2m) { .size = SZ_2M };
FIXTURE_VARIANT_ADD(one_lost, kept_1g) { .size = SZ_1G, .keep = true };
FIXTURE_VARIANT_ADD(one_lost, plain_1g) { .size = SZ_1G };
FIXTURE_VARIANT_ADD(one_lost, optimized_kept_2m) { .size = SZ_2M, .keep = true, .hvo = true };
FIXTURE_VARIANT_ADD(one_lost, optimized_plain_2m) { .size = SZ_2M, .hvo = true };
FIXTURE_VARIANT_ADD(one_lost, optimized_kept_1g) { .size = SZ_1G, .keep = true, .hvo = true };
FIXTURE_VARIANT_ADD(one_lost, optimized_plain_1g) { .size = SZ_1G, .hvo = true };

FIXTURE_SETUP(one_lost)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, variant->size, &by_pfn, 1);
	if (!_metadata->exit_code)
		setup_optimized(_metadata, &self->s, variant->hvo);
}

TEST_F_TIMEOUT(one_lost, page_is_left_out_until_unpoisoned, SLOW)
{
	struct subject *s = &self->s;
	unsigned long i;

	for (i = 1; i <= 3 && !_metadata->exit_code; i++) {
		leave_available(_metadata, s, 1);
		if (variant->keep) {
			open_one(_metadata, s);
			lose(_metadata, s, i);
			empty_file(_metadata, s);
			close(s->fd);
		} else {
			poison_free_pages(_metadata, s, &i, 1);
			pool_set(s->size, "nr_hugepages", s->before.nr - 1);
		}
		expect_released(_metadata, s);
		EXPECT_EQ(s->memmap, nr_memmap());
	}
}

/*
 * 1 GiB hugepages from wherever they come
 */

FIXTURE(gigantic)
{
	struct subject s;
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

FIXTURE_VARIANT_ADD(gigantic, cma_madvise) { .injector = &by_madvise, .origin = CMA };
FIXTURE_VARIANT_ADD(gigantic, cma_corrupt_pfn) { .injector = &by_pfn, .origin = CMA };

FIXTURE_VARIANT_ADD(gigantic, cma_optimized)
{
	.injector = &by_madvise,
	.origin = CMA,
	.hvo = true,
};

/* Hugepages from boot don't return as such: there is only one attempt. */
FIXTURE_VARIANT_ADD(gigantic, boot) { .injector = &by_madvise, .origin = BOOT };

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
	for (i = 0; i < undo->nr_sizes; i++)
		if (undo->saved[i].size == SZ_1G)
			return undo->saved[i].nr;
	return 0;
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
	setup_subject(_metadata, s, SZ_1G, variant->injector, nr);
	if (_metadata->exit_code)
		return;
	if (variant->origin == BOOT) {
		ASSERT_EQ(s->nr_huge, s->before.free);
		s->memmap = nr_memmap();
		return;
	}

	leave_available(_metadata, s, 0);
	if (variant->hvo && !write_text(HVO, "1"))
		SKIP(return, "needs CONFIG_HUGETLB_PAGE_OPTIMIZE_VMEMMAP");
	cma_kb = meminfo_kb("CmaFree");
	s->memmap = nr_memmap();
	self->cma_pages = nr_cma_pages();
	leave_available(_metadata, s, 1);
	/* Nodes take turns, and not all have an area of CMA. */
	if (variant->origin == CMA && nr_cma_pages() == self->cma_pages) {
		leave_available(_metadata, s, 0);
		leave_available(_metadata, s, 1);
	}
	if (variant->hvo && nr_memmap() == s->memmap)
		SKIP(return, "the hugepage is not optimized");
	cma_kb -= meminfo_kb("CmaFree");
	if (variant->origin == CMA && cma_kb < (long)(SZ_1G >> 10) - CMA_NOISE_KB)
		SKIP(return, "needs hugetlb_cma= on the command line");
	if (variant->origin == CMA && self->cma_pages < 0)
		SKIP(return, "needs CONFIG_CMA_SYSFS");
	if (variant->origin == CONTIGUOUS && cma_kb > CMA_NOISE_KB)
		SKIP(return, "1 GiB hugepages come from CMA here");
}

FIXTURE_TEARDOWN_SUBJECT(gigantic);

/* First some are free, up to a lost one, and then it takes a while to free the rest. */
TEST_F_TIMEOUT(gigantic, marks_lost_pages_before_freeing_others, SLOW)
{
	struct subject *s = &self->s;
	const time_t end = time(NULL) + 60;
	uint64_t first, last, healthy;

	for (;;) {
		open_one(_metadata, s);
		lose(_metadata, s, s->nr_raw / 256);
		lose(_metadata, s, s->nr_raw - 1);
		empty_file(_metadata, s);
		do {
			ASSERT_TRUE(read_kpageflags(s->head[0], 1, &first));
		} while (!(first & KPF_BUDDY) && time(NULL) < end);
		ASSERT_TRUE(read_kpageflags(raw_pfn(s, s->nr_raw - 1), 1, &last));
		ASSERT_TRUE(read_kpageflags(raw_pfn(s, s->nr_raw - 2), 1, &healthy));
		EXPECT_TRUE(first & KPF_BUDDY);
		EXPECT_TRUE(last & KPF_HWPOISON);
		expect_released(_metadata, s);
		/* All are free if this thread had to wait for a CPU: try again. */
		if (!(healthy & KPF_BUDDY) || _metadata->exit_code)
			break;
		/* A hugepage from boot doesn't come back. */
		ASSERT_NE(BOOT, variant->origin);
		ASSERT_GT(end, time(NULL));
		leave_available(_metadata, s, 1);
	}
}

TEST_F_TIMEOUT(gigantic, release_frees_all_but_lost_pages, 3 * SLOW)
{
	struct subject *s = &self->s;
	long cma_kb, healthy_kb;
	unsigned long i;
	unsigned int j;

	open_subject(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	for (i = 0; i < s->nr_huge; i++) {
		for (j = 0; j < NR_SAMPLES; j++)
			lose(_metadata, s, i * s->nr_raw + sample(s, j));
		/* All of a part that would make a smaller hugepage. */
		for (j = 0; i == 0 && j < 512; j++)
			lose(_metadata, s, 2048 + j);
		s->injector = &by_pfn;
	}
	for (i = 0; i < s->nr_huge; i++)
		EXPECT_TRUE(is_mapped_huge(s, s->map, i));

	cma_kb = meminfo_kb("CmaFree");
	healthy_kb = (s->nr_huge * SZ_1G - s->nr_lost * psize()) >> 10;
	empty_file(_metadata, s);
	wait_for_release(s, s->nr_huge);
	expect_change(_metadata, s, -s->nr_huge, -s->nr_huge, 0, 0);
	expect_corrupted(_metadata, s);
	/* A new size of the pool waits for the worker that frees them. */
	pool_set(SZ_1G, "nr_hugepages", pool_read(SZ_1G).nr);
	cma_kb = meminfo_kb("CmaFree") - cma_kb;
	if (variant->origin == CMA) {
		EXPECT_LT(healthy_kb - CMA_NOISE_KB, cma_kb);
		EXPECT_EQ(self->cma_pages, nr_cma_pages());
	}
	if (variant->origin == CONTIGUOUS)
		EXPECT_GT(CMA_NOISE_KB, labs(cma_kb));
	/* The struct pages of one may lie in what another has given back. */
	if (variant->origin == BOOT && variant->hvo) {
		s->nr_unknown = nr_memmap() - s->memmap;
		EXPECT_LT(0, s->nr_unknown);
	}
	for (i = 0; i < s->nr_huge; i++)
		expect_all_come_back(_metadata, s, i);
	expect_change(_metadata, s, -s->nr_huge, -s->nr_huge, 0, 0);
	if (variant->origin != BOOT)
		EXPECT_EQ(s->memmap, nr_memmap());
	/*
	 * All that CMA believes to have can be had, now that nothing is lost.  The
	 * pool takes hugepages from other nodes, too, so ask for all that there may be.
	 */
	if (variant->origin == CMA) {
		pool_set(SZ_1G, "nr_hugepages",
			 meminfo_kb("MemTotal") / (SZ_1G >> 10));
		EXPECT_GT(CMA_NOISE_KB, meminfo_kb("CmaFree"));
		leave_available(_metadata, s, 1);
	}
}

TEST_F_TIMEOUT(gigantic, heal_returns_memory_to_its_allocator, 3 * SLOW)
{
	struct subject *s = &self->s;
	long cma_kb, cma_pages, healthy_kb;

	open_one(_metadata, s);
	/* (It comes from wherever there is memory.) */
	if (!need_more_hugepages(s, 1))
		SKIP(return, "can't get 2 hugepages");
	lose_samples(_metadata, s);
	cma_kb = meminfo_kb("CmaFree");
	cma_pages = nr_cma_pages();
	healthy_kb = (SZ_1G - s->nr_lost * psize()) >> 10;
	zero_samples(_metadata, s);
	/* A new size of the pool waits for the worker that frees them. */
	pool_set(SZ_1G, "nr_hugepages", s->before.nr - 1);
	cma_kb = meminfo_kb("CmaFree") - cma_kb;
	if (variant->origin == CMA) {
		EXPECT_LT(healthy_kb - CMA_NOISE_KB, cma_kb);
		EXPECT_EQ(cma_pages + (long)s->nr_raw, nr_cma_pages());
	} else {
		EXPECT_GT(CMA_NOISE_KB, labs(cma_kb));
	}
	if (variant->origin == BOOT && variant->hvo)
		s->nr_unknown = nr_memmap() - s->memmap;
	expect_replaced(_metadata, s);
	expect_change(_metadata, s, -1, -2, 0, 0);

	empty_file(_metadata, s);
	leave_available(_metadata, s, 0);
	if (variant->origin == CMA)
		EXPECT_EQ(self->cma_pages, nr_cma_pages());
	if (variant->origin != BOOT)
		EXPECT_EQ(s->memmap, nr_memmap());
}

/*
 * A 1 GiB hugepage that was optimized at boot, and has lost nothing
 */

FIXTURE_SUBJECT(booted);

FIXTURE_SETUP(booted)
{
	if (!nr_at_boot(true))
		SKIP(return, "needs hugepagesz=1G hugepages= " OPTIMIZED_AT_BOOT);
	setup_subject(_metadata, &self->s, SZ_1G, &by_pfn, 1);
}

TEST_F_TIMEOUT(booted, hugepage_is_freed_completely, SLOW)
{
	struct subject *s = &self->s;
	long memmap = nr_memmap(), kb = meminfo_kb("MemFree");

	ASSERT_TRUE(pool_set(SZ_1G, "nr_hugepages", s->before.nr - 1));
	expect_change(_metadata, s, -1, -1, 0, 0);
	memmap = nr_memmap() - memmap;
	EXPECT_LT(0, memmap);
	kb = meminfo_kb("MemFree") - kb + memmap * (long)(psize() >> 10);
	EXPECT_LT((long)(SZ_1G >> 10) - CMA_NOISE_KB, kb);
}

TEST_HARNESS_MAIN
