// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of what tells where a hugetlb memfd has lost pages: the map in
 * /proc/PID/fdinfo, for whoever holds the file, and the trace event
 * ras:memory_failure_kept_event, for an agent on the host.
 *
 *   map	a file of some hugepages, for each size and injector
 *   many	a thousand lost pages in a hugepage of 1 GiB
 *   raced	reading the map while pages are lost and hugepages released
 *   unrecorded	a lost page that there was no memory to record
 *   on_its_way	an error in a hugepage that is not in the file yet
 *   plain	files without the flag show nothing, also on kernels that lack it
 */

#define _GNU_SOURCE
#include "mfr_util.h"
#include <sys/mount.h>
#include <sys/sysmacros.h>

#define KEPT_EVENT	TRACING "/events/ras/memory_failure_kept_event/enable"
#define SEALABLE	(MFD_MF_KEEP_UE_MAPPED | MFD_ALLOW_SEALING)
#define SZ_1T		(1024UL * SZ_1G)
#define NOBODY		65534

/*
 * The map
 */

struct extent {
	unsigned long start;
	unsigned long len;
};

struct map {
	unsigned int nr_policies;
	unsigned int nr_unknown;	/* lines that begin with mf-, but make no sense */
	unsigned long nr;
	struct extent *extents;
};

/* Read all of a file by @chunk bytes.  The caller frees it. */
static char *read_all(const char *path, size_t chunk)
{
	size_t size = 1 << 12, len = 0;
	char *text = malloc(size);
	ssize_t ret = -1;
	int fd;

	fd = open(path, O_RDONLY | O_CLOEXEC);
	while (fd >= 0 && text) {
		if (len + chunk >= size) {
			size = 2 * (size + chunk);
			text = realloc(text, size);
			continue;
		}
		ret = read(fd, text + len, chunk);
		if (ret <= 0)
			break;
		len += ret;
	}
	if (fd >= 0)
		close(fd);
	if (ret || !text) {
		free(text);
		return NULL;
	}
	text[len] = '\0';
	return text;
}

static bool parse_map(char *text, struct map *m)
{
	char *line, *rest;

	memset(m, 0, sizeof(*m));
	m->extents = malloc((strlen(text) / 8 + 1) * sizeof(*m->extents));
	if (!m->extents)
		return false;

	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		struct extent *e = &m->extents[m->nr];
		char again[80];

		if (strncmp(line, "mf-", 3))
			continue;
		if (!strcmp(line, "mf-policy:\tkeep-ue-mapped")) {
			m->nr_policies++;
			continue;
		}
		if (sscanf(line, "mf-lost: %lx %lx", &e->start, &e->len) == 2) {
			snprintf(again, sizeof(again), "mf-lost:\t0x%lx 0x%lx",
				 e->start, e->len);
			m->nr++;
			if (!strcmp(line, again))
				continue;
		}
		m->nr_unknown++;
	}
	return true;
}

static bool read_map_of(const char *pid, int fd, struct map *m)
{
	char path[64];
	char *text;
	bool ok;

	snprintf(path, sizeof(path), "/proc/%s/fdinfo/%d", pid, fd);
	text = read_all(path, 1 << 16);
	ok = text && parse_map(text, m);
	free(text);
	return ok;
}

static bool read_map(int fd, struct map *m)
{
	return read_map_of("self", fd, m);
}

/* Is a map of the file made of extents that are as large as they can be, in order? */
static bool is_well_formed(struct map *m, struct subject *s)
{
	unsigned long ps = psize(), end = 0, i;

	if (m->nr_policies != 1 || m->nr_unknown)
		return false;
	for (i = 0; i < m->nr; i++) {
		struct extent *e = &m->extents[i];

		if (!e->len || (e->start | e->len) % ps || (i && e->start <= end))
			return false;
		end = e->start + e->len;
	}
	return end <= s->nr_huge * s->size;
}

static bool map_has(struct map *m, unsigned long offset)
{
	unsigned long i;

	for (i = 0; i < m->nr; i++)
		if (offset >= m->extents[i].start &&
		    offset - m->extents[i].start < m->extents[i].len)
			return true;
	return false;
}

static unsigned long map_size(struct map *m)
{
	unsigned long i, size = 0;

	for (i = 0; i < m->nr; i++)
		size += m->extents[i].len;
	return size;
}

/* Of what the map says and what the test knows, how many raw pages differ? */
static unsigned long nr_wrong(struct map *m, struct subject *s)
{
	unsigned long ps = psize(), i, wrong = 0;
	struct extent *e = m->extents;

	for (i = 0; i < s->nr_huge * s->nr_raw; i++) {
		bool lost;

		while (e < m->extents + m->nr && e->start + e->len <= i * ps)
			e++;
		lost = e < m->extents + m->nr && e->start <= i * ps;
		wrong += lost != s->lost[i];
	}
	return wrong;
}

/* The map of @fd is exactly what was lost. */
static void expect_map(struct __test_metadata *_metadata, struct subject *s, int fd)
{
	struct map m;

	ASSERT_TRUE(read_map(fd, &m));
	EXPECT_EQ(1, m.nr_policies);
	EXPECT_TRUE(is_well_formed(&m, s));
	EXPECT_EQ(0, nr_wrong(&m, s));
	free(m.extents);
}

static void expect_extents(struct __test_metadata *_metadata, struct subject *s,
			   unsigned long nr)
{
	struct map m;

	ASSERT_TRUE(read_map(s->fd, &m));
	EXPECT_EQ(nr, m.nr);
	free(m.extents);
}

/* A hugepage that was released is no longer of the file; the ledger knows of it. */
static void forget(struct subject *s, unsigned long huge)
{
	memset(s->lost + huge * s->nr_raw, 0, s->nr_raw * sizeof(*s->lost));
}

/*
 * Some hugepages of a kept file
 */

/* As open_subject(), but don't fill it: what it contains doesn't matter here. */
static void open_map(struct __test_metadata *_metadata, struct subject *s,
		     unsigned int flags)
{
	unsigned long i;

	s->fd = create_memfd(s->size, flags);
	ASSERT_LE(0, s->fd);
	ASSERT_EQ(0, ftruncate(s->fd, s->nr_huge * s->size));
	s->map = map_file(s, MAP_SHARED);
	ASSERT_NE(NULL, s->map);
	for (i = 0; i < s->nr_huge; i++) {
		ASSERT_TRUE(try_write(s->map + i * s->size));
		s->head[i] = mapped_pfn(s->map + i * s->size);
		ASSERT_NE(-1UL, s->head[i]);
		ASSERT_NE(0, s->head[i]);
	}
}

FIXTURE(map)
{
	struct subject s;
};

FIXTURE_VARIANT(map)
{
	unsigned long size;
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(map, madvise_2m)
{
	.size = SZ_2M,
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(map, corrupt_pfn_2m)
{
	.size = SZ_2M,
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(map, mce_2m)
{
	.size = SZ_2M,
	.injector = &by_mce,
};

FIXTURE_VARIANT_ADD(map, scrub_2m)
{
	.size = SZ_2M,
	.injector = &by_scrub,
};

FIXTURE_VARIANT_ADD(map, madvise_1g)
{
	.size = SZ_1G,
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(map, corrupt_pfn_1g)
{
	.size = SZ_1G,
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD_SIZES(map)

FIXTURE_SETUP(map)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, variant->size, variant->injector,
		      variant->size < SZ_1G ? 4 : 2);
	if (!_metadata->exit_code)
		open_map(_metadata, &self->s, SEALABLE);
}

FIXTURE_TEARDOWN_PARENT(map)
{
	teardown_subject(_metadata, &self->s);
}

TEST_F_TIMEOUT(map, without_lost_pages_shows_the_policy_alone, SLOW)
{
	expect_map(_metadata, &self->s, self->s.fd);
	expect_extents(_metadata, &self->s, 0);
}

TEST_F_TIMEOUT(map, shows_one_lost_page, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, s->nr_raw + s->nr_raw / 2);
	expect_map(_metadata, s, s->fd);
	expect_extents(_metadata, s, 1);
}

TEST_F_TIMEOUT(map, shows_each_lost_page_as_soon_as_it_is_signalled, SLOW)
{
	struct subject *s = &self->s;
	unsigned long huge;
	unsigned int i;

	/* The last hugepage first: the order is that of the file. */
	for (huge = s->nr_huge; huge--;)
		for (i = 0; i < NR_SPOTS; i++) {
			lose(_metadata, s, huge * s->nr_raw + spot(s, i));
			expect_map(_metadata, s, s->fd);
		}
}

TEST_F_TIMEOUT(map, joins_neighbours_also_in_two_hugepages, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr = s->nr_raw;

	lose(_metadata, s, nr);
	lose(_metadata, s, nr - 1);
	expect_extents(_metadata, s, 1);
	lose(_metadata, s, nr - 3);
	expect_extents(_metadata, s, 2);
	lose(_metadata, s, nr - 2);
	expect_extents(_metadata, s, 1);
	expect_map(_metadata, s, s->fd);
}

TEST_F_TIMEOUT(map, needs_nobody_who_maps_the_file, SLOW)
{
	struct subject *s = &self->s;

	lose_spots(_metadata, s);
	unmap_file(s);
	expect_map(_metadata, s, s->fd);
}

TEST_F_TIMEOUT(map, is_the_same_for_a_reopened_file, SLOW)
{
	struct subject *s = &self->s;
	char path[32];
	int fd;

	lose_spots(_metadata, s);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", s->fd);
	fd = open(path, O_RDONLY);
	ASSERT_LE(0, fd);
	expect_map(_metadata, s, fd);
	close(fd);
}

TEST_F_TIMEOUT(map, is_the_same_when_read_in_pieces, SLOW)
{
	struct subject *s = &self->s;
	char path[64];
	char *whole, *pieces;

	lose_spots(_metadata, s);
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", s->fd);
	whole = read_all(path, 1 << 16);
	pieces = read_all(path, 7);
	ASSERT_NE(NULL, whole);
	ASSERT_NE(NULL, pieces);
	EXPECT_STREQ(whole, pieces);
	free(whole);
	free(pieces);
}

TEST_F_TIMEOUT(map, is_for_an_unprivileged_holder_of_the_file, SLOW)
{
	struct subject *s = &self->s;
	pid_t pid;

	lose_spots(_metadata, s);
	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		ASSERT_EQ(0, setresgid(NOBODY, NOBODY, NOBODY));
		ASSERT_EQ(0, setresuid(NOBODY, NOBODY, NOBODY));
		expect_map(_metadata, s, s->fd);
		_exit(_metadata->exit_code);
	}
	wait_for_child(_metadata, pid);
}

TEST_F_TIMEOUT(map, is_denied_to_other_users, SLOW)
{
	struct subject *s = &self->s;
	char path[64];
	pid_t pid;

	lose(_metadata, s, 0);
	snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", getpid(), s->fd);
	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid) {
		ASSERT_EQ(0, access(path, R_OK));
		ASSERT_EQ(0, setresgid(NOBODY, NOBODY, NOBODY));
		ASSERT_EQ(0, setresuid(NOBODY, NOBODY, NOBODY));
		EXPECT_EQ(-1, open(path, O_RDONLY));
		EXPECT_EQ(EACCES, errno);
		_exit(_metadata->exit_code);
	}
	wait_for_child(_metadata, pid);
}

TEST_F_TIMEOUT(map, does_not_change_with_a_repeat, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 3);
	EXPECT_EQ(s->injector->again, inject(s, 3));
	expect_map(_metadata, s, s->fd);
}

TEST_F_TIMEOUT(map, leaves_out_what_was_filtered, SLOW)
{
	struct subject *s = &self->s;

	expect_filtered(_metadata, s, s->nr_raw / 2);
	expect_extents(_metadata, s, 0);
}

TEST_F_TIMEOUT(map, loses_what_is_punched_out, SLOW)
{
	struct subject *s = &self->s;
	unsigned long huge;

	for (huge = 0; huge < 2; huge++)
		lose(_metadata, s, huge * s->nr_raw + s->nr_raw / 2);
	ASSERT_EQ(0, punch(s, 0, s->size));
	forget(s, 0);
	expect_map(_metadata, s, s->fd);

	ASSERT_EQ(0, punch(s, s->size, s->size));
	forget(s, 1);
	expect_map(_metadata, s, s->fd);
}

TEST_F_TIMEOUT(map, forgets_what_was_punched_out_for_good, SLOW)
{
	struct subject *s = &self->s;

	if (!need_more_hugepages(s, 1))
		SKIP(return, "can't get 2 hugepages of %lu kB", s->size >> 10);

	lose(_metadata, s, 5);
	ASSERT_EQ(0, punch(s, 0, s->size));
	forget(s, 0);
	ASSERT_TRUE(try_write(s->map));
	expect_map(_metadata, s, s->fd);

	/* And begins anew. */
	s->head[0] = mapped_pfn(s->map);
	lose(_metadata, s, 6);
	expect_map(_metadata, s, s->fd);
}

TEST_F_TIMEOUT(map, loses_what_is_truncated, SLOW)
{
	struct subject *s = &self->s;
	unsigned long huge;

	for (huge = 0; huge < s->nr_huge; huge++)
		lose(_metadata, s, huge * s->nr_raw + s->nr_raw - 1);
	ASSERT_EQ(0, ftruncate(s->fd, s->size));
	for (huge = 1; huge < s->nr_huge; huge++)
		forget(s, huge);
	expect_map(_metadata, s, s->fd);

	ASSERT_EQ(0, ftruncate(s->fd, 0));
	forget(s, 0);
	ASSERT_EQ(0, ftruncate(s->fd, s->nr_huge * s->size));
	expect_map(_metadata, s, s->fd);
}

TEST_F_TIMEOUT(map, stays_when_a_part_is_punched, SLOW)
{
	struct subject *s = &self->s;
	unsigned long ps = psize();

	lose(_metadata, s, 2);
	EXPECT_EQ(-1, punch(s, ps, 3 * ps));
	EXPECT_EQ(EIO, errno);
	expect_map(_metadata, s, s->fd);
}

/* Which looks for pins, and has a mark of its own for them. */
TEST_F_TIMEOUT(map, stays_when_the_file_is_sealed, SLOW)
{
	struct subject *s = &self->s;

	lose_spots(_metadata, s);
	unmap_file(s);
	ASSERT_EQ(0, fcntl(s->fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW));
	expect_map(_metadata, s, s->fd);
}

TEST_F_TIMEOUT(map, stays_when_the_file_is_synced, SLOW)
{
	struct subject *s = &self->s;

	lose_spots(_metadata, s);
	EXPECT_EQ(0, fsync(s->fd));
	EXPECT_EQ(0, sync_file_range(s->fd, 0, 0, SYNC_FILE_RANGE_WAIT_BEFORE |
				     SYNC_FILE_RANGE_WRITE |
				     SYNC_FILE_RANGE_WAIT_AFTER));
	sync();
	expect_map(_metadata, s, s->fd);
}

TEST_F_TIMEOUT(map, stays_when_moving_is_refused, SLOW)
{
	struct subject *s = &self->s;
	int node = other_node(move_page(s->map, -1));

	if (node < 0)
		SKIP(return, "needs two nodes with memory");
	lose(_metadata, s, 1);
	move_page(s->map, node);
	expect_map(_metadata, s, s->fd);
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
}

TEST_F_TIMEOUT(map, knows_a_hugepage_that_was_moved_before, SLOW)
{
	struct subject *s = &self->s;
	int node = other_node(move_page(s->map, -1));
	char path[PATH_MAX];

	if (node < 0)
		SKIP(return, "needs two nodes with memory");
	/* One to move to, which for large ones must be there. */
	snprintf(path, sizeof(path),
		 "/sys/devices/system/node/node%d/hugepages/hugepages-%lukB/nr_hugepages",
		 node, s->size >> 10);
	write_long(path, s->nr_huge + 1);
	if (move_page(s->map, node) != node)
		SKIP(return, "can't get hugepages on each node");
	s->head[0] = mapped_pfn(s->map);
	lose(_metadata, s, 1);
	expect_map(_metadata, s, s->fd);
}

TEST_F_TIMEOUT(map, has_room_for_a_large_file, SLOW)
{
	struct subject *s = &self->s;
	struct map m;

	unmap_file(s);
	/* The last hugepage of a TiB; all the others are holes. */
	ASSERT_EQ(0, ftruncate(s->fd, 0));
	ASSERT_EQ(0, ftruncate(s->fd, SZ_1T));
	s->map = mmap(NULL, s->size, PROT_READ | PROT_WRITE, MAP_SHARED, s->fd,
		      SZ_1T - s->size);
	ASSERT_NE(MAP_FAILED, s->map);
	ASSERT_TRUE(try_write(s->map));
	s->head[0] = mapped_pfn(s->map);
	lose(_metadata, s, s->nr_raw - 1);

	ASSERT_TRUE(read_map(s->fd, &m));
	ASSERT_EQ(1, m.nr);
	EXPECT_EQ(SZ_1T - psize(), m.extents[0].start);
	EXPECT_EQ(psize(), m.extents[0].len);
	free(m.extents);
}

/* How often @text is at the end of a line of the trace, and how many lines there are. */
static unsigned int nr_traced(const char *text, unsigned int *lines)
{
	FILE *f = fopen(TRACING "/trace", "r");
	unsigned int nr = 0;
	char line[256];

	*lines = 0;
	while (f && fgets(line, sizeof(line), f)) {
		char *at = strstr(line, "memory_failure_kept_event: ");

		if (!at)
			continue;
		(*lines)++;
		line[strcspn(line, "\n")] = '\0';
		nr += !strcmp(at + strlen("memory_failure_kept_event: "), text);
	}
	if (f)
		fclose(f);
	return nr;
}

static bool trace_kept(void)
{
	return !mkdir(TRACING, 0700) && write_text(KEPT_EVENT, "1");
}

TEST_F_TIMEOUT(map, an_event_tells_the_same_of_each_new_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned int i, lines;
	char text[160];
	struct stat st;

	if (!trace_kept())
		SKIP(return, "no tracing of memory failures in " TRACING);
	ASSERT_EQ(0, fstat(s->fd, &st));

	for (i = 0; i < NR_SPOTS; i++) {
		unsigned long nr = s->nr_raw + spot(s, i);

		lose(_metadata, s, nr);
		snprintf(text, sizeof(text),
			 "pfn %#lx: huge page kept by dev %u:%u ino %lu offset 0x%lx",
			 raw_pfn(s, nr), major(st.st_dev), minor(st.st_dev),
			 (unsigned long)st.st_ino, nr * psize());
		EXPECT_EQ(1, nr_traced(text, &lines));
		EXPECT_EQ(i + 1, lines);
	}
}

TEST_F_TIMEOUT(map, no_event_tells_of_repeats_and_filtered_errors, SLOW)
{
	struct subject *s = &self->s;
	unsigned int lines;

	if (!trace_kept())
		SKIP(return, "no tracing of memory failures in " TRACING);

	lose(_metadata, s, 0);
	EXPECT_EQ(s->injector->again, inject(s, 0));
	expect_filtered(_metadata, s, s->nr_raw);
	nr_traced("", &lines);
	EXPECT_EQ(1, lines);
}

/*
 * Many lost pages
 */

FIXTURE(many)
{
	struct subject s;
};

FIXTURE_VARIANT(many)
{
	unsigned long size;
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(many, madvise_1g)
{
	.size = SZ_1G,
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(many, corrupt_pfn_1g)
{
	.size = SZ_1G,
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(many, mce_1g)
{
	.size = SZ_1G,
	.injector = &by_mce,
};

FIXTURE_SETUP(many)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, variant->size, variant->injector, 1);
	if (!_metadata->exit_code)
		open_map(_metadata, &self->s, SEALABLE);
}

FIXTURE_TEARDOWN_PARENT(many)
{
	teardown_subject(_metadata, &self->s);
}

TEST_F_TIMEOUT(many, lost_pages_are_all_in_the_map, 2 * SLOW)
{
	struct subject *s = &self->s;
	unsigned long i;

	for (i = 0; i < 1000; i++)
		lose(_metadata, s, i * (s->nr_raw / 1000));
	expect_map(_metadata, s, s->fd);
	expect_extents(_metadata, s, 1000);
}

/*
 * Readers that meet what changes the map
 */

#define NR_PUNCHED	24
#define NR_READERS	3

FIXTURE(raced)
{
	struct subject s;
	struct race {
		atomic_ulong begun;	/* of the pages in order, errors that */
		atomic_ulong over;	/* may, or must, be in the map */
		atomic_ulong reads;
		atomic_bool stop;
		unsigned long order[];
	} *race;
};

FIXTURE_VARIANT(raced)
{
	unsigned long size;
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(raced, madvise_2m)
{
	.size = SZ_2M,
	.injector = &by_madvise,
};

FIXTURE_VARIANT_ADD(raced, corrupt_pfn_2m)
{
	.size = SZ_2M,
	.injector = &by_pfn,
};

FIXTURE_VARIANT_ADD(raced, mce_2m)
{
	.size = SZ_2M,
	.injector = &by_mce,
};

FIXTURE_VARIANT_ADD(raced, corrupt_pfn_1g)
{
	.size = SZ_1G,
	.injector = &by_pfn,
};

FIXTURE_SETUP(raced)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, variant->size, variant->injector, 2);
	if (_metadata->exit_code)
		return;
	self->race = alloc_shared(sizeof(*self->race) +
				  2 * self->s.nr_raw * sizeof(self->race->order[0]));
	ASSERT_NE(NULL, self->race);
	open_map(_metadata, &self->s, SEALABLE);
}

FIXTURE_TEARDOWN_PARENT(raced)
{
	teardown_subject(_metadata, &self->s);
}

/* Read maps until told to stop.  Each must have what was lost before, but no more. */
static void read_maps(struct subject *s, struct race *race)
{
	while (!race->stop) {
		unsigned long over = race->over, begun, i, nr = 0;
		struct map m;

		if (!read_map(s->fd, &m))
			_exit(KSFT_FAIL);
		begun = race->begun;
		if (!is_well_formed(&m, s))
			_exit(KSFT_FAIL);
		for (i = 0; i < begun; i++) {
			bool has = map_has(&m, race->order[i] * psize());

			if (i < over && !has)
				_exit(KSFT_FAIL);
			nr += has;
		}
		if (map_size(&m) != nr * psize())
			_exit(KSFT_FAIL);
		free(m.extents);
		race->reads++;
	}
	_exit(KSFT_PASS);
}

/* The same, but hugepages come and go: any part of a hugepage may be lost. */
static void read_some_maps(struct subject *s, struct race *race)
{
	while (!race->stop) {
		struct map m;

		if (!read_map(s->fd, &m) || !is_well_formed(&m, s))
			_exit(KSFT_FAIL);
		free(m.extents);
		race->reads++;
	}
	_exit(KSFT_PASS);
}

static pid_t start_reader(struct __test_metadata *_metadata, struct subject *s,
			  struct race *race, void (*read)(struct subject *, struct race *))
{
	pid_t pid = fork_helper();

	if (!pid) {
		unmap_file(s);
		read(s, race);
	}
	return pid;
}

static void stop_readers(struct __test_metadata *_metadata, struct race *race,
			 const pid_t *pid, unsigned int nr)
{
	unsigned long reads = race->reads;
	unsigned int i;

	/* They must have met something. */
	for (i = 0; i < 1000 && race->reads < reads + 2 * nr; i++)
		usleep(10000);
	EXPECT_LE(reads + 2 * nr, race->reads);
	race->stop = true;
	for (i = 0; i < nr; i++)
		wait_for_child(_metadata, pid[i]);
}

TEST_F_TIMEOUT(raced, errors_are_in_the_map_as_soon_as_they_are_handled, SLOW)
{
	struct subject *s = &self->s, child = *s;
	struct race *race = self->race;
	unsigned long nr_errors = s->injector->for_real ? 20 :
				  s->nr_raw < 400 ? s->nr_raw : 400;
	unsigned long i;
	pid_t pid;

	/* Here and there in both hugepages. */
	for (i = 0; i < nr_errors; i++)
		race->order[i] = i * 1009 % (2 * s->nr_raw);

	pid = start_reader(_metadata, &child, race, read_maps);
	ASSERT_LE(0, pid);
	for (i = 0; i < nr_errors; i++) {
		race->begun = i + 1;
		lose(_metadata, s, race->order[i]);
		race->over = i + 1;
	}
	stop_readers(_metadata, race, &pid, 1);
	expect_map(_metadata, s, s->fd);
}

/* Pages lost in order are one extent, which has at least what was lost before. */
static void read_growing_extent(struct subject *s, struct race *race)
{
	static const char first[] = "mf-lost:\t0x0 ";
	char path[64], text[512], *extent;
	unsigned long over, len;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", s->fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	while (!race->stop) {
		over = race->over;
		memset(text, 0, sizeof(text));
		if (pread(fd, text, sizeof(text) - 1, 0) <= 0)
			_exit(KSFT_FAIL);
		extent = strstr(text, first);
		len = extent ? strtoul(extent + strlen(first), NULL, 16) : 0;
		if (len < over * psize())
			_exit(KSFT_FAIL);
		race->reads++;
	}
	_exit(KSFT_PASS);
}

static bool stay_on_cpu(unsigned int nr)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(nr % sysconf(_SC_NPROCESSORS_ONLN), &one);
	return !sched_setaffinity(0, sizeof(one), &one);
}

TEST_F_TIMEOUT(raced, an_extent_does_not_break_while_it_grows, SLOW)
{
	struct subject *s = &self->s, child = *s;
	struct race *race = self->race;
	unsigned long nr_errors = s->injector->for_real ? 2 :
				  s->nr_raw < 1024 ? 2 * s->nr_raw : 2048;
	pid_t pid[NR_READERS];
	unsigned long i;

	/*
	 * Lookups can't be preempted on each kernel: have a CPU for each, but where those
	 * CPUs are for the victims of machine checks.
	 */
	for (i = 0; i < NR_READERS; i++) {
		EXPECT_TRUE(s->injector->for_real || stay_on_cpu(i + 1));
		pid[i] = start_reader(_metadata, &child, race, read_growing_extent);
		ASSERT_LE(0, pid[i]);
	}
	EXPECT_TRUE(s->injector->for_real || stay_on_cpu(0));
	/* In order: then the tree of lost pages turns with nearly each. */
	for (i = 0; i < nr_errors; i++) {
		note_lost(_metadata, s, i);
		ASSERT_EQ(0, inject(s, i));
		race->over = i + 1;
	}
	stop_readers(_metadata, race, pid, NR_READERS);
}

/* Read the map at each signal.  Is the page that it is about in there? */
static void read_when_signalled(struct subject *s, int report)
{
	siginfo_t si;
	sigset_t set;
	struct map m;
	bool found;

	sigemptyset(&set);
	sigaddset(&set, SIGBUS);
	sigprocmask(SIG_BLOCK, &set, NULL);
	prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0);
	found = true;
	while (write(report, &found, sizeof(found)) == sizeof(found)) {
		if (sigwaitinfo(&set, &si) != SIGBUS || !read_map(s->fd, &m))
			break;
		found = map_has(&m, (char *)si.si_addr - s->map);
		free(m.extents);
	}
	_exit(KSFT_FAIL);
}

TEST_F_TIMEOUT(raced, who_is_signalled_finds_the_page_in_the_map, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr_errors = s->injector->for_real ? 20 :
				  s->nr_raw < 100 ? s->nr_raw : 100;
	unsigned long i;
	bool found;
	int fds[2];
	pid_t pid;

	ASSERT_EQ(0, pipe(fds));
	pid = fork_helper();
	ASSERT_LE(0, pid);
	if (!pid)
		read_when_signalled(s, fds[1]);
	close(fds[1]);
	ASSERT_EQ(sizeof(found), read(fds[0], &found, sizeof(found)));

	/* Each hugepage is new to the map once. */
	for (i = 0; i < nr_errors; i++) {
		lose(_metadata, s, i % 2 * s->nr_raw + 3 * i % s->nr_raw);
		ASSERT_EQ(sizeof(found), read(fds[0], &found, sizeof(found)));
		EXPECT_TRUE(found);
	}
	kill_child(_metadata, pid);
}

TEST_F_TIMEOUT(raced, hugepages_leave_while_the_map_is_read, SLOW)
{
	struct subject *s = &self->s, child = *s;
	struct race *race = self->race;
	unsigned long nr_punched = s->size >= SZ_1G ? 1 :
				   s->injector->for_real ? 2 : NR_PUNCHED;
	unsigned long i, k;
	pid_t pid[2];

	if (!need_more_hugepages(s, nr_punched))
		SKIP(return, "can't get %lu hugepages more of %lu kB", nr_punched,
		     s->size >> 10);

	pid[0] = start_reader(_metadata, &child, race, read_some_maps);
	ASSERT_LE(0, pid[0]);
	child = *s;
	pid[1] = start_reader(_metadata, &child, race, read_some_maps);
	ASSERT_LE(0, pid[1]);

	for (i = 0; i < nr_punched; i++) {
		for (k = 0; k < (s->injector->for_real ? 2 : 16); k++)
			lose(_metadata, s, 31 * k % s->nr_raw);
		expect_map(_metadata, s, s->fd);
		if (i & 1) {
			ASSERT_EQ(0, ftruncate(s->fd, 0));
			ASSERT_EQ(0, ftruncate(s->fd, 2 * s->size));
		} else {
			ASSERT_EQ(0, punch(s, 0, s->size));
		}
		forget(s, 0);
		expect_map(_metadata, s, s->fd);
		ASSERT_TRUE(try_write(s->map));
		s->head[0] = mapped_pfn(s->map);
	}
	stop_readers(_metadata, race, pid, 2);

	/* No reference was left: all of them have left the pool, and no other. */
	unmap_file(s);
	ASSERT_EQ(0, ftruncate(s->fd, 0));
	wait_for_release(s, nr_punched);
	expect_pool(_metadata, s, nr_punched, 0);
}

/*
 * What the record doesn't know
 */

FIXTURE(unrecorded)
{
	struct subject s;
};

FIXTURE_SETUP(unrecorded)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	if (access("/sys/kernel/debug/failslab", F_OK) ||
	    access("/proc/thread-self/fail-nth", W_OK))
		SKIP(return, "needs CONFIG_FAILSLAB");
	setup_subject(_metadata, &self->s, SZ_2M, &by_pfn, 3);
	if (!_metadata->exit_code)
		open_map(_metadata, &self->s, SEALABLE);
}

FIXTURE_TEARDOWN_PARENT(unrecorded)
{
	teardown_subject(_metadata, &self->s);
}

TEST_F_TIMEOUT(unrecorded, a_lost_page_counts_as_its_whole_hugepage, SLOW)
{
	struct subject *s = &self->s;
	char pfn[32], left[16] = "";
	int fail, corrupt, len;

	lose(_metadata, s, 3);

	/* This can't be undone: it is for ever, and not for the ledger. */
	len = snprintf(pfn, sizeof(pfn), "0x%lx\n", raw_pfn(s, s->nr_raw + 9));
	corrupt = open(DEBUGFS_CORRUPT_PFN, O_WRONLY);
	ASSERT_LE(0, corrupt);
	fail = open("/proc/thread-self/fail-nth", O_RDWR);
	ASSERT_LE(0, fail);
	injecting = true;
	ASSERT_EQ(1, pwrite(fail, "1", 1, 0));
	EXPECT_EQ(len, write(corrupt, pfn, len));
	EXPECT_LT(0, pread(fail, left, sizeof(left) - 1, 0));
	ASSERT_EQ(1, pwrite(fail, "0", 1, 0));
	injecting = false;
	close(fail);
	close(corrupt);
	ASSERT_EQ(0, atoi(left));
	s->corrupted += psize() >> 10;
	ledger->corrupted += psize() >> 10;
	expect_corrupted(_metadata, s);

	lose(_metadata, s, 3 * s->nr_raw - 1);
	memset(s->lost + s->nr_raw, true, s->nr_raw);
	expect_map(_metadata, s, s->fd);
	expect_extents(_metadata, s, 3);

	/* Also when it leaves. */
	ASSERT_EQ(0, punch(s, s->size, s->size));
	forget(s, 1);
	expect_map(_metadata, s, s->fd);
}

/*
 * An error in a hugepage that is being cleared, before it is in the file
 */

FIXTURE(on_its_way)
{
	struct subject s;
};

FIXTURE_SETUP(on_its_way)
{
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	setup_subject(_metadata, &self->s, SZ_1G, &by_pfn, 1);
	if (!_metadata->exit_code)
		open_map(_metadata, &self->s, SEALABLE);
}

FIXTURE_TEARDOWN_PARENT(on_its_way)
{
	teardown_subject(_metadata, &self->s);
}

static void *touch(void *arg)
{
	struct subject *s = arg;

	read_byte(s->map);
	return NULL;
}

TEST_F_TIMEOUT(on_its_way, a_lost_page_comes_into_the_map_with_its_hugepage, SLOW)
{
	struct subject *s = &self->s;
	pthread_t thread;
	long nr_free;
	int i, ret;

	/* Get the same hugepage once more. */
	if (s->before.free != 1)
		SKIP(return, "others use hugepages");
	ASSERT_EQ(0, punch(s, 0, s->size));
	nr_free = pool_get(s->size, "free_hugepages");
	ASSERT_EQ(0, pthread_create(&thread, NULL, touch, s));
	for (i = 0; i < 10000 && pool_get(s->size, "free_hugepages") == nr_free; i++)
		usleep(500);
	note_lost(_metadata, s, 77);
	ret = inject(s, 77);
	pthread_join(thread, NULL);

	EXPECT_EQ(s->head[0], mapped_pfn(s->map));
	expect_corrupted(_metadata, s);
	expect_map(_metadata, s, s->fd);
	if (!ret)
		SKIP(return, "the hugepage was in the file already");
}

/*
 * Files without the flag
 */

FIXTURE(plain)
{
	struct subject s;
};

FIXTURE_VARIANT(plain)
{
	bool mounted;
};

FIXTURE_VARIANT_ADD(plain, memfd)
{
};

FIXTURE_VARIANT_ADD(plain, mounted)
{
	.mounted = true,
};

FIXTURE_SETUP(plain)
{
	struct subject *s = &self->s;

	setup_subject(_metadata, s, SZ_2M, &by_pfn, 2);
	if (_metadata->exit_code)
		return;
	if (variant->mounted) {
		/* It goes away with this process. */
		if (unshare(CLONE_NEWNS) ||
		    mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
		    mount("hugetlb-mfr", "/tmp", "hugetlbfs", 0, "pagesize=2M"))
			SKIP(return, "can't mount hugetlbfs in a name space");
		s->fd = open("/tmp/hugetlb-mfr", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		ASSERT_LE(0, s->fd);
		unlink("/tmp/hugetlb-mfr");
	} else {
		s->fd = create_memfd(s->size, MFD_ALLOW_SEALING);
		ASSERT_LE(0, s->fd);
	}
	fill_subject(_metadata, s);
}

FIXTURE_TEARDOWN_PARENT(plain)
{
	teardown_subject(_metadata, &self->s);
}

TEST_F_TIMEOUT(plain, files_show_no_policy_and_no_lost_pages, SLOW)
{
	struct subject *s = &self->s;
	struct map m;

	lose_hugepage(_metadata, s, 7);
	ASSERT_TRUE(read_map(s->fd, &m));
	EXPECT_EQ(0, m.nr_policies);
	EXPECT_EQ(0, m.nr_unknown);
	EXPECT_EQ(0, m.nr);
	free(m.extents);
}

TEST_F_TIMEOUT(plain, files_cause_no_event, SLOW)
{
	struct subject *s = &self->s;
	unsigned int lines;

	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	if (!trace_kept())
		SKIP(return, "no tracing of memory failures in " TRACING);
	lose_hugepage(_metadata, s, 7);
	nr_traced("", &lines);
	EXPECT_EQ(0, lines);
}

int main(int argc, char **argv)
{
	open_ledger();
	return test_harness_run(argc, argv);
}
