// SPDX-License-Identifier: GPL-2.0
/*
 * Tests of what tells where a hugetlb memfd has lost pages: the map in
 * /proc/PID/fdinfo, for whoever holds the file, and the trace event
 * ras:memory_failure_kept_event, for an agent on the host.
 *
 *   map	a file of some hugepages, for each size and injector
 *   damaged	which bytes of a lost page are, as far as it is told
 *   reported, reported_amd	the same by machine checks alone, and by CPUs that don't tell
 *   many	a thousand lost pages in a hugepage of 1 GiB
 *   raced	reading the map while pages are lost and hugepages released
 *   unrecorded	a lost page that there was no memory to record
 *   faulting	an error in a hugepage that is not in the file yet
 *   plain	files without the flag show nothing, also on kernels that lack it
 */

#define _GNU_SOURCE
#include "mfr_harness.h"
#include <sys/sysmacros.h>

#define MF_EVENT	TRACING "/events/ras/memory_failure_event/enable"
#define KEPT_EVENT	TRACING "/events/ras/memory_failure_kept_event/enable"
#define KNOWN		"recovery action for already poisoned"
#define KEPT_LINE	"memory_failure_kept_event: "
#define KEPT_TEXT	\
	KEPT_LINE "pfn %#lx: kept by dev %u:%u ino %lu offset 0x%lx damaged 0x%lx+0x%lx\n"
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
	unsigned long nr_damaged;	/* and the damaged bytes among them */
	struct extent *damaged;
};

static void free_map(struct map *m)
{
	free(m->extents);
	free(m->damaged);
}

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
	m->damaged = malloc((strlen(text) / 8 + 1) * sizeof(*m->damaged));
	if (!m->extents || !m->damaged)
		return false;

	for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
		struct extent *e = &m->extents[m->nr];
		struct extent *d = &m->damaged[m->nr_damaged];
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
		if (sscanf(line, "mf-damaged: %lx %lx", &d->start, &d->len) == 2) {
			snprintf(again, sizeof(again), "mf-damaged:\t0x%lx 0x%lx",
				 d->start, d->len);
			m->nr_damaged++;
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

/* The unit of damage */
static unsigned long part(void)
{
	return psize() / 64;
}

/* Are extents as large as they can be, in order? */
static bool are_in_order(struct extent *e, unsigned long nr, unsigned long unit,
			 struct subject *s)
{
	unsigned long end = 0, i;

	for (i = 0; i < nr; i++) {
		if (!e[i].len || (e[i].start | e[i].len) % unit || (i && e[i].start <= end))
			return false;
		end = e[i].start + e[i].len;
	}
	return end <= s->nr_huge * s->size;
}

static bool is_well_formed(struct map *m, struct subject *s)
{
	return m->nr_policies == 1 && !m->nr_unknown &&
	       are_in_order(m->extents, m->nr, psize(), s) &&
	       are_in_order(m->damaged, m->nr_damaged, part(), s);
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

/* Returns how many raw pages the map has wrong. */
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

/* Are all lost pages damaged as a whole? */
static bool all_is_damaged(struct map *m)
{
	return m->nr_damaged == m->nr &&
	       !memcmp(m->damaged, m->extents, m->nr * sizeof(*m->extents));
}

/* The map of @fd is exactly what was lost. */
static void expect_map(struct __test_metadata *_metadata, struct subject *s, int fd)
{
	struct map m;

	ASSERT_TRUE(read_map(fd, &m));
	EXPECT_EQ(1, m.nr_policies);
	EXPECT_TRUE(is_well_formed(&m, s));
	EXPECT_EQ(0, nr_wrong(&m, s));
	EXPECT_TRUE(all_is_damaged(&m));
	free_map(&m);
}

static void expect_extents(struct __test_metadata *_metadata, struct subject *s,
			   unsigned long nr)
{
	struct map m;

	ASSERT_TRUE(read_map(s->fd, &m));
	EXPECT_EQ(nr, m.nr);
	free_map(&m);
}

/* Forget a released hugepage of the file; struct undo still has its poisoned pages. */
static void forget(struct subject *s, unsigned long huge)
{
	memset(s->lost + huge * s->nr_raw, 0, s->nr_raw * sizeof(*s->lost));
}

/*
 * Some hugepages of a kept file
 */

/* The contents of the file don't matter here. */
static void setup_map(struct __test_metadata *_metadata, struct subject *s,
		      unsigned long size, const struct injector *injector,
		      unsigned long nr_huge)
{
	setup_keeping(_metadata, s, size, injector, nr_huge);
	if (!_metadata->exit_code)
		open_unfilled(_metadata, s, MFD_MF_KEEP_UE_MAPPED | MFD_ALLOW_SEALING);
}

FIXTURE_SUBJECT(map);

FIXTURE_VARIANTS(map, all_2m_and_1g)
FIXTURE_VARIANT_ADD_SIZES(map)

FIXTURE_SETUP(map)
{
	setup_map(_metadata, &self->s, variant->size, variant->injector,
		  variant->size < SZ_1G ? 4 : 2);
}

TEST_F_TIMEOUT(map, shows_only_the_policy_without_lost_pages, SLOW)
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

TEST_F_TIMEOUT(map, has_each_lost_page_when_it_is_signalled, SLOW)
{
	struct subject *s = &self->s;
	unsigned long huge;
	unsigned int i;

	/* The last hugepage first: the order is that of the file. */
	for (huge = s->nr_huge; huge--;)
		for (i = 0; i < NR_SAMPLES; i++) {
			lose(_metadata, s, huge * s->nr_raw + sample(s, i));
			expect_map(_metadata, s, s->fd);
		}
}

TEST_F_TIMEOUT(map, joins_adjacent_pages_of_two_hugepages, SLOW)
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

TEST_F_TIMEOUT(map, shows_lost_pages_of_an_unmapped_file, SLOW)
{
	struct subject *s = &self->s;

	lose_samples(_metadata, s);
	unmap_file(s);
	expect_map(_metadata, s, s->fd);
}

TEST_F_TIMEOUT(map, is_the_same_for_a_reopened_file, SLOW)
{
	struct subject *s = &self->s;
	char path[32];
	int fd;

	lose_samples(_metadata, s);
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

	lose_samples(_metadata, s);
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", s->fd);
	whole = read_all(path, 1 << 16);
	pieces = read_all(path, 7);
	ASSERT_NE(NULL, whole);
	ASSERT_NE(NULL, pieces);
	EXPECT_STREQ(whole, pieces);
	free(whole);
	free(pieces);
}

TEST_F_TIMEOUT(map, is_readable_without_privileges, SLOW)
{
	struct subject *s = &self->s;
	pid_t pid;

	lose_samples(_metadata, s);
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
		EXPECT_ERRNO(EACCES, open(path, O_RDONLY));
		_exit(_metadata->exit_code);
	}
	wait_for_child(_metadata, pid);
}

TEST_F_TIMEOUT(map, does_not_change_with_a_repeat, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 3);
	EXPECT_EQ(s->injector->repeat_ret, inject(s, 3));
	expect_map(_metadata, s, s->fd);
}

TEST_F_TIMEOUT(map, leaves_out_filtered_errors, SLOW)
{
	struct subject *s = &self->s;

	expect_filtered(_metadata, s, s->nr_raw / 2);
	expect_extents(_metadata, s, 0);
}

TEST_F_TIMEOUT(map, drops_a_punched_hugepage, SLOW)
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

TEST_F_TIMEOUT(map, starts_empty_after_punch_and_refault, SLOW)
{
	struct subject *s = &self->s;

	if (!need_more_hugepages(s, 1))
		SKIP(return, "can't get 2 hugepages of %lu kB", s->size >> 10);

	lose(_metadata, s, 5);
	ASSERT_EQ(0, punch(s, 0, s->size));
	forget(s, 0);
	ASSERT_TRUE(try_write(s->map));
	expect_map(_metadata, s, s->fd);

	/* The new hugepage has a record of its own. */
	s->head[0] = mapped_pfn(s->map);
	lose(_metadata, s, 6);
	expect_map(_metadata, s, s->fd);
}

TEST_F_TIMEOUT(map, drops_truncated_hugepages, SLOW)
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
	EXPECT_ERRNO(EIO, punch(s, ps, 3 * ps));
	expect_map(_metadata, s, s->fd);
}

/* F_ADD_SEALS looks for pins, and has a mark of its own for them. */
TEST_F_TIMEOUT(map, stays_when_the_file_is_sealed, SLOW)
{
	struct subject *s = &self->s;

	lose_samples(_metadata, s);
	unmap_file(s);
	ASSERT_EQ(0, fcntl(s->fd, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK | F_SEAL_GROW));
	expect_map(_metadata, s, s->fd);
}

TEST_F_TIMEOUT(map, stays_when_the_file_is_synced, SLOW)
{
	struct subject *s = &self->s;

	lose_samples(_metadata, s);
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
	/* One to move to: that is taken by the next hugepage, which is healthy. */
	if (!node_pool_grow(node, s->size, 1))
		SKIP(return, "can't get hugepages on each node");
	lose(_metadata, s, 1);
	EXPECT_NE(node, move_page(s->map, node));
	EXPECT_TRUE(is_mapped_huge(s, s->map, 0));
	EXPECT_EQ(node, move_page(s->map + s->size, node));
	s->head[1] = mapped_pfn(s->map + s->size);
	expect_map(_metadata, s, s->fd);
}

TEST_F_TIMEOUT(map, shows_lost_pages_of_a_moved_hugepage, SLOW)
{
	struct subject *s = &self->s;
	int node = other_node(move_page(s->map, -1));

	if (node < 0)
		SKIP(return, "needs two nodes with memory");
	/* One to move to, which for large ones must be there. */
	node_pool_grow(node, s->size, 1);
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
	free_map(&m);
}

static bool trace_kept(void)
{
	return !mkdir(TRACING, 0700) && write_text(KEPT_EVENT, "1");
}

/* One event is about these bytes of raw page @nr. */
static void expect_event(struct __test_metadata *_metadata, struct subject *s,
			 unsigned long nr, unsigned long offset, unsigned long len)
{
	char text[160];
	struct stat st;

	ASSERT_EQ(0, fstat(s->fd, &st));
	snprintf(text, sizeof(text), KEPT_TEXT, raw_pfn(s, nr), major(st.st_dev),
		 minor(st.st_dev), (unsigned long)st.st_ino, nr * psize(),
		 nr * psize() + offset, len);
	EXPECT_EQ(1, nr_traced(text));
}

TEST_F_TIMEOUT(map, matches_the_event_of_each_lost_page, SLOW)
{
	struct subject *s = &self->s;
	unsigned int i;

	if (!trace_kept())
		SKIP(return, "no tracing of memory failures in " TRACING);

	for (i = 0; i < NR_SAMPLES; i++) {
		unsigned long nr = s->nr_raw + sample(s, i);

		lose(_metadata, s, nr);
		expect_event(_metadata, s, nr, 0, 64 * part());
		EXPECT_EQ(i + 1, nr_traced(KEPT_LINE));
	}
}

TEST_F_TIMEOUT(map, repeats_and_filtered_errors_cause_no_event, SLOW)
{
	struct subject *s = &self->s;

	if (!trace_kept())
		SKIP(return, "no tracing of memory failures in " TRACING);

	lose(_metadata, s, 0);
	EXPECT_EQ(s->injector->repeat_ret, inject(s, 0));
	expect_filtered(_metadata, s, s->nr_raw);
	EXPECT_EQ(1, nr_traced(KEPT_LINE));
}

/*
 * Damaged bytes
 */

/* Hardware vouches for lines of 64 bytes. */
#define LINE		6

FIXTURE_SUBJECT(damaged);

static const struct named_variant damaged_variants[] = {
	{ "corrupt_addr_2m", { SZ_2M, &by_pfn } },
	{ "corrupt_addr_1g", { SZ_1G, &by_pfn } },
	{ "mce_2m", { SZ_2M, &by_mce } },
};

FIXTURE_VARIANTS(damaged, damaged_variants)

FIXTURE_SETUP(damaged)
{
	if (variant->injector->is_hw && mce_on_amd())
		SKIP(return, "this CPU doesn't tell how much is damaged");
	setup_map(_metadata, &self->s, variant->size, variant->injector, 2);
}

static int consume_part(struct subject *s, unsigned long nr, unsigned int offset,
			unsigned int lsb)
{
	struct mce_victim victim = {
		.addr = raw_page(s, nr),
		.pfn = raw_pfn(s, nr),
		.offset = offset,
		.misc = MCI_MISC_PHYSICAL(lsb),
	};

	return consume_as(MCE_LOAD, &victim);
}

static int corrupt_part(struct subject *s, unsigned long nr, unsigned int offset,
			unsigned int lsb)
{
	int ret;

	if (!write_long(DEBUGFS_CORRUPT_LSB, lsb))
		return -errno;
	ret = write_pfn(DEBUGFS_CORRUPT_ADDR, raw_pfn(s, nr) * psize() + offset);
	write_long(DEBUGFS_CORRUPT_LSB, pshift());
	return ret;
}

/* An error that damages only a part of a page. */
static void damage(struct __test_metadata *_metadata, struct subject *s,
		   unsigned long nr, unsigned int offset, unsigned int lsb)
{
	const struct injector *injector = s->injector;
	bool known = s->lost[nr];

	if (!known)
		note_lost(_metadata, s, nr);
	sigbus.nr = 0;
	injecting = true;
	EXPECT_EQ(known ? injector->repeat_ret : 0,
		  injector->is_hw ? consume_part(s, nr, offset, lsb) :
		  corrupt_part(s, nr, offset, lsb));
	injecting = false;
	if (!known || injector->repeat_signals)
		expect_sigbus(_metadata, injector->code, raw_page(s, nr), pshift());
	else
		EXPECT_EQ(0, sigbus.nr);
	expect_corrupted(_metadata, s);
}

/* The map has these damaged bytes, and beside them what was lost. */
static void expect_damaged(struct __test_metadata *_metadata, struct subject *s,
			   const struct extent *damaged, unsigned long nr)
{
	unsigned long i;
	struct map m;

	ASSERT_TRUE(read_map(s->fd, &m));
	EXPECT_TRUE(is_well_formed(&m, s));
	EXPECT_EQ(0, nr_wrong(&m, s));
	EXPECT_EQ(nr, m.nr_damaged);
	for (i = 0; i < nr && i < m.nr_damaged; i++) {
		EXPECT_EQ(damaged[i].start, m.damaged[i].start);
		EXPECT_EQ(damaged[i].len, m.damaged[i].len);
	}
	free_map(&m);
}

static void expect_one_damaged(struct __test_metadata *_metadata, struct subject *s,
			       unsigned long start, unsigned long len)
{
	const struct extent damaged = { start, len };

	expect_damaged(_metadata, s, &damaged, 1);
}

TEST_F_TIMEOUT(damaged, is_one_line, SLOW)
{
	struct subject *s = &self->s;

	damage(_metadata, s, 7, 5 * part(), LINE);
	expect_one_damaged(_metadata, s, 7 * psize() + 5 * part(), part());
}

TEST_F_TIMEOUT(damaged, is_the_line_around_an_unaligned_address, SLOW)
{
	struct subject *s = &self->s;

	damage(_metadata, s, 7, 6 * part() - 1, LINE);
	expect_one_damaged(_metadata, s, 7 * psize() + 5 * part(), part());
}

TEST_F_TIMEOUT(damaged, is_no_less_than_a_line, SLOW)
{
	struct subject *s = &self->s;

	damage(_metadata, s, 7, 5 * part() + 8, 3);
	expect_one_damaged(_metadata, s, 7 * psize() + 5 * part(), part());
}

TEST_F_TIMEOUT(damaged, is_a_block_of_several_lines, SLOW)
{
	struct subject *s = &self->s;

	damage(_metadata, s, 7, psize() / 4 - 1, pshift() - 3);
	expect_one_damaged(_metadata, s, 7 * psize() + psize() / 8, psize() / 8);
}

TEST_F_TIMEOUT(damaged, is_the_first_and_last_line_of_a_hugepage, SLOW)
{
	struct subject *s = &self->s;
	const struct extent ends[] = {
		{ 0, part() },
		{ s->size - part(), part() },
	};

	damage(_metadata, s, 0, 0, LINE);
	damage(_metadata, s, s->nr_raw - 1, psize() - part(), LINE);
	expect_damaged(_metadata, s, ends, 2);
}

TEST_F_TIMEOUT(damaged, joins_lines_of_two_hugepages, SLOW)
{
	struct subject *s = &self->s;

	damage(_metadata, s, s->nr_raw, 0, LINE);
	damage(_metadata, s, s->nr_raw - 1, psize() - part(), LINE);
	expect_one_damaged(_metadata, s, s->size - part(), 2 * part());
	expect_extents(_metadata, s, 1);
}

/* Two lines of raw page 3 */
#define TWO_LINES { \
	{ 3 * psize() + 2 * part(), part() }, \
	{ 3 * psize() + 9 * part(), part() }, \
}

TEST_F_TIMEOUT(damaged, grows_with_another_line_of_the_page, SLOW)
{
	struct subject *s = &self->s;
	const struct extent lines[] = TWO_LINES;

	damage(_metadata, s, 3, lines[1].start % psize(), LINE);
	damage(_metadata, s, 3, lines[0].start % psize(), LINE);
	expect_damaged(_metadata, s, lines, 2);
}

TEST_F_TIMEOUT(damaged, does_not_change_with_a_repeat, SLOW)
{
	struct subject *s = &self->s;

	damage(_metadata, s, 3, 9 * part(), LINE);
	damage(_metadata, s, 3, 9 * part(), LINE);
	expect_one_damaged(_metadata, s, 3 * psize() + 9 * part(), part());
}

TEST_F_TIMEOUT(damaged, is_the_whole_page_after_64_lines, 2 * SLOW)
{
	struct subject *s = &self->s;
	unsigned int i;

	for (i = 0; i < 64; i++) {
		/* In no order: 29 has no factor with 64 in common. */
		damage(_metadata, s, 3, i * 29 % 64 * part(), LINE);
		ASSERT_EQ(KSFT_PASS, _metadata->exit_code);
	}
	expect_one_damaged(_metadata, s, 3 * psize(), psize());
}

TEST_F_TIMEOUT(damaged, is_the_whole_page_if_the_lsb_says_so, SLOW)
{
	struct subject *s = &self->s;

	damage(_metadata, s, 3, 9 * part(), LINE);
	damage(_metadata, s, 3, 0, pshift());
	expect_one_damaged(_metadata, s, 3 * psize(), psize());
}

TEST_F_TIMEOUT(damaged, causes_an_event_each_time_it_grows, SLOW)
{
	struct subject *s = &self->s;
	unsigned int i;

	if (!trace_kept())
		SKIP(return, "no tracing of memory failures in " TRACING);

	for (i = 0; i < 4; i++) {
		unsigned int offset = i / 2 * 3 * part();

		damage(_metadata, s, 3, offset, LINE);
		expect_event(_metadata, s, 3, offset, part());
		EXPECT_EQ(i / 2 + 1, nr_traced(KEPT_LINE));
	}
}

TEST_F_TIMEOUT(damaged, ends_with_its_hugepage, SLOW)
{
	struct subject *s = &self->s;

	damage(_metadata, s, 3, 9 * part(), LINE);
	damage(_metadata, s, s->nr_raw + 3, 9 * part(), LINE);
	ASSERT_EQ(0, punch(s, 0, s->size));
	forget(s, 0);
	expect_one_damaged(_metadata, s, s->size + 3 * psize() + 9 * part(), part());
}

/* Damage that only machine checks can report */
FIXTURE_SUBJECT(reported);

FIXTURE_VARIANT(reported)
{
	unsigned long size;
};

FIXTURE_VARIANT_ADD(reported, mce_2m) { .size = SZ_2M };

FIXTURE_SETUP(reported)
{
	if (mce_on_amd())
		SKIP(return, "this CPU doesn't tell how much is damaged");
	setup_map(_metadata, &self->s, variant->size, &by_mce, 2);
}

/* How many machine checks has this CPU had? */
static unsigned long nr_machine_checks(void)
{
	FILE *f = fopen("/proc/interrupts", "r");
	unsigned long nr = 0;
	char line[1024];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, " MCE: %lu", &nr) == 1)
			break;
	if (f)
		fclose(f);
	return nr;
}

/* A patrol finds what the kernel has no use for, and then something else. */
static void expect_unusable(struct __test_metadata *_metadata, struct subject *s,
			    unsigned long long status, unsigned long long misc)
{
	unsigned long before = nr_machine_checks();

	if (!trace_kept() || !write_text(MF_EVENT, "1"))
		SKIP(return, "no tracing of memory failures in " TRACING);

	lose(_metadata, s, 9);
	mce_scrub_as(undo->monitor, status, (unsigned long long)raw_pfn(s, 3) * psize(), misc);
	/* A machine check during another one is the end of the machine. */
	EXPECT_TRUE(wait_until(nr_machine_checks() != before, 2000));
	usleep(50000);
	mce_scrub(undo->monitor, raw_pfn(s, 9));
	wait_until(nr_traced(KNOWN), 2000);
	EXPECT_EQ(1, nr_traced(KNOWN));
	expect_one_damaged(_metadata, s, 9 * psize(), psize());
	expect_corrupted(_metadata, s);
}

TEST_F_TIMEOUT(reported, without_a_size_is_ignored, SLOW)
{
	expect_unusable(_metadata, &self->s, MCI_STATUS_SCRUB & ~MCI_STATUS_MISC_VALID,
			MCI_MISC_PHYSICAL_4K);
}

TEST_F_TIMEOUT(reported, as_more_than_a_page_is_ignored, SLOW)
{
	expect_unusable(_metadata, &self->s, MCI_STATUS_SCRUB,
			MCI_MISC_PHYSICAL(pshift() + 1));
}

TEST_F_TIMEOUT(reported, as_two_lines_at_once_damages_both, SLOW)
{
	struct subject *s = &self->s;
	const struct extent lines[] = TWO_LINES;
	struct mce_victim victim[2] = {};
	struct victim_thread by[2] = {};
	pthread_t thread[2];
	int cpu[2], i;

	ASSERT_TRUE(mce_cpus(cpu));
	ASSERT_NE(cpu[0], cpu[1]);
	undo->mce_seen = true;
	note_lost(_metadata, s, 3);
	injecting = true;
	for (i = 0; i < 2; i++) {
		victim[i].addr = raw_page(s, 3);
		victim[i].pfn = raw_pfn(s, 3);
		victim[i].offset = lines[i].start % psize();
		victim[i].misc = MCI_MISC_PHYSICAL(LINE);
		victim[i].cpu = cpu[i];
		by[i].victim = &victim[i];
		ASSERT_EQ(0, pthread_create(&thread[i], NULL, suffer, &by[i]));
	}
	mce_shoot(undo->monitor, MCE_LOAD, victim, 2);
	for (i = 0; i < 2; i++)
		pthread_join(thread[i], NULL);
	injecting = false;
	for (i = 0; i < 2; i++) {
		EXPECT_EQ(0, victim[i].error);
		expect_signal(_metadata, &by[i].sigbus, BUS_MCEERR_AR, raw_page(s, 3),
			      pshift());
	}
	expect_damaged(_metadata, s, lines, 2);
	expect_corrupted(_metadata, s);
}

static unsigned long nr_damaged_in(int fd)
{
	unsigned long nr;
	struct map m;

	if (!read_map(fd, &m))
		return -1UL;
	nr = m.nr_damaged;
	free_map(&m);
	return nr;
}

/* Wait until what a patrol has found is in the map. */
static void scrub(struct __test_metadata *_metadata, struct subject *s,
		  unsigned long nr, unsigned int offset, unsigned long nr_damaged)
{
	undo->mce_seen = true;
	if (!s->lost[nr])
		note_lost(_metadata, s, nr);
	mce_scrub_as(undo->monitor, MCI_STATUS_SCRUB,
		     (unsigned long long)raw_pfn(s, nr) * psize() + offset,
		     MCI_MISC_PHYSICAL(LINE));
	EXPECT_TRUE(wait_until(nr_damaged_in(s->fd) == nr_damaged, 2000));
}

TEST_F_TIMEOUT(reported, in_the_background_is_signalled_once, SLOW)
{
	struct subject *s = &self->s;
	const struct extent lines[] = TWO_LINES;

	if (!trace_kept() || !write_text(MF_EVENT, "1"))
		SKIP(return, "no tracing of memory failures in " TRACING);

	sigbus.nr = 0;
	injecting = true;
	scrub(_metadata, s, 3, 2 * part(), 1);
	wait_until(sigbus.nr, 2000);
	expect_sigbus(_metadata, BUS_MCEERR_AO, raw_page(s, 3), pshift());

	sigbus.nr = 0;
	scrub(_metadata, s, 3, 9 * part(), 2);
	/* This comes after all signals. */
	wait_until(nr_traced(KNOWN), 2000);
	EXPECT_EQ(1, nr_traced(KNOWN));
	EXPECT_EQ(0, sigbus.nr);
	injecting = false;
	expect_damaged(_metadata, s, lines, 2);
	expect_corrupted(_metadata, s);
}

FIXTURE_SUBJECT(reported_amd);

FIXTURE_VARIANT(reported_amd)
{
	unsigned long size;
};

FIXTURE_VARIANT_ADD(reported_amd, mce_amd) { .size = SZ_2M };

FIXTURE_SETUP(reported_amd)
{
	if (!mce_on_amd())
		SKIP(return, "needs a CPU of AMD");
	setup_map(_metadata, &self->s, variant->size, &by_mce, 2);
}

/* The MISC of AMD's CPUs has another meaning. */
TEST_F_TIMEOUT(reported_amd, is_the_whole_page_despite_MISC, SLOW)
{
	struct subject *s = &self->s;

	damage(_metadata, s, 3, 9 * part(), LINE);
	expect_one_damaged(_metadata, s, 3 * psize(), psize());
}

/*
 * Many lost pages
 */

FIXTURE_SUBJECT(many);

static const struct named_variant many_variants[] = {
	{ "madvise_1g", { SZ_1G, &by_madvise } },
	{ "corrupt_pfn_1g", { SZ_1G, &by_pfn } },
	{ "mce_1g", { SZ_1G, &by_mce } },
};

FIXTURE_VARIANTS(many, many_variants)

FIXTURE_SETUP(many)
{
	setup_map(_metadata, &self->s, variant->size, variant->injector, 1);
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

static const struct named_variant raced_variants[] = {
	{ "madvise_2m", { SZ_2M, &by_madvise } },
	{ "corrupt_pfn_2m", { SZ_2M, &by_pfn } },
	{ "mce_2m", { SZ_2M, &by_mce } },
	{ "corrupt_pfn_1g", { SZ_1G, &by_pfn } },
};

FIXTURE_VARIANTS(raced, raced_variants)

FIXTURE_SETUP(raced)
{
	setup_keeping(_metadata, &self->s, variant->size, variant->injector, 2);
	if (_metadata->exit_code)
		return;
	self->race = alloc_shared(sizeof(*self->race) +
				  2 * self->s.nr_raw * sizeof(self->race->order[0]));
	ASSERT_NE(NULL, self->race);
	open_unfilled(_metadata, &self->s, MFD_MF_KEEP_UE_MAPPED);
}

FIXTURE_TEARDOWN_SUBJECT(raced);

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
		free_map(&m);
		race->reads++;
	}
	_exit(KSFT_PASS);
}

/* Read maps while hugepages come and go: any part of a hugepage may be lost. */
static void read_some_maps(struct subject *s, struct race *race)
{
	while (!race->stop) {
		struct map m;

		if (!read_map(s->fd, &m) || !is_well_formed(&m, s))
			_exit(KSFT_FAIL);
		free_map(&m);
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

/* Wait until each of @nr readers is likely to have begun to read, and to read again. */
static void meet_readers(struct __test_metadata *_metadata, struct race *race, unsigned int nr)
{
	unsigned long reads = race->reads;

	ASSERT_TRUE(wait_until(race->reads >= reads + 2 * nr, 10000));
}

static void stop_readers(struct __test_metadata *_metadata, struct race *race,
			 const pid_t *pid, unsigned int nr)
{
	unsigned int i;

	meet_readers(_metadata, race, nr);
	race->stop = true;
	for (i = 0; i < nr; i++)
		wait_for_child(_metadata, pid[i]);
}

TEST_F_TIMEOUT(raced, map_has_each_error_that_was_handled, SLOW)
{
	struct subject *s = &self->s, child = *s;
	struct race *race = self->race;
	unsigned long nr_errors = s->injector->is_hw ? 20 :
				  s->nr_raw < 400 ? s->nr_raw : 400;
	unsigned long i;
	pid_t pid;

	/* Here and there in both hugepages. */
	for (i = 0; i < nr_errors; i++)
		race->order[i] = i * 1009 % (2 * s->nr_raw);

	pid = start_reader(_metadata, &child, race, read_maps);
	ASSERT_LE(0, pid);
	for (i = 0; i < nr_errors; i++) {
		if (i == 0 || i == nr_errors / 2)
			meet_readers(_metadata, race, 1);
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
		if (len < over * psize()) {
			ksft_print_msg("%lu pages are lost, but the map is %s\n", over, text);
			_exit(KSFT_FAIL);
		}
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

TEST_F_TIMEOUT(raced, growing_extent_does_not_split, SLOW)
{
	struct subject *s = &self->s, child = *s;
	struct race *race = self->race;
	unsigned long nr_errors = s->injector->is_hw ? 2 :
				  s->nr_raw < 1024 ? 2 * s->nr_raw : 2048;
	pid_t pid[NR_READERS];
	unsigned long i;

	/*
	 * Lookups can't be preempted on each kernel: have a CPU for each, but where those
	 * CPUs are for the victims of machine checks.
	 */
	for (i = 0; i < NR_READERS; i++) {
		EXPECT_TRUE(s->injector->is_hw || stay_on_cpu(i + 1));
		pid[i] = start_reader(_metadata, &child, race, read_growing_extent);
		ASSERT_LE(0, pid[i]);
	}
	EXPECT_TRUE(s->injector->is_hw || stay_on_cpu(0));
	/* Ascending pages rotate the tree of lost pages nearly each time. */
	for (i = 0; i < nr_errors; i++) {
		if (i == 0 || i == nr_errors / 2)
			meet_readers(_metadata, race, NR_READERS);
		note_lost(_metadata, s, i);
		ASSERT_EQ(0, inject(s, i));
		race->over = i + 1;
	}
	stop_readers(_metadata, race, pid, NR_READERS);
}

/* Read the map at each signal.  Is the page that it is about in there? */
static void read_when_signalled(struct subject *s, int line)
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
	while (write(line, &found, sizeof(found)) == sizeof(found)) {
		if (sigwaitinfo(&set, &si) != SIGBUS || !read_map(s->fd, &m))
			break;
		found = map_has(&m, (char *)si.si_addr - s->map);
		free_map(&m);
	}
	_exit(KSFT_FAIL);
}

TEST_F_TIMEOUT(raced, map_has_the_page_that_is_signalled, SLOW)
{
	struct subject *s = &self->s;
	unsigned long nr_errors = s->injector->is_hw ? 20 :
				  s->nr_raw < 100 ? s->nr_raw : 100;
	unsigned long i;
	struct helper h;
	bool found;

	ASSERT_TRUE(start_helper(&h));
	if (!h.pid)
		read_when_signalled(s, h.line);
	ASSERT_EQ(sizeof(found), read(h.line, &found, sizeof(found)));

	/* Each hugepage is new to the map once. */
	for (i = 0; i < nr_errors; i++) {
		lose(_metadata, s, i % 2 * s->nr_raw + 3 * i % s->nr_raw);
		ASSERT_EQ(sizeof(found), read(h.line, &found, sizeof(found)));
		EXPECT_TRUE(found);
	}
	kill_child(_metadata, h.pid);
}

TEST_F_TIMEOUT(raced, map_is_read_while_hugepages_go, SLOW)
{
	struct subject *s = &self->s, child = *s;
	struct race *race = self->race;
	unsigned long nr_punched = s->size >= SZ_1G ? 1 :
				   s->injector->is_hw ? 2 : NR_PUNCHED;
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
		meet_readers(_metadata, race, 2);
		for (k = 0; k < (s->injector->is_hw ? 2 : 16); k++)
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
	empty_file(_metadata, s);
	wait_for_release(s, nr_punched);
	expect_pool(_metadata, s, nr_punched, 0);
}

/*
 * Lost pages that are not recorded
 */

FIXTURE_SUBJECT(unrecorded);

FIXTURE_SETUP(unrecorded)
{
	if (!can_fail_allocations())
		SKIP(return, "needs CONFIG_FAILSLAB and CONFIG_FAIL_PAGE_ALLOC");
	setup_map(_metadata, &self->s, SZ_2M, &by_pfn, 3);
}

TEST_F_TIMEOUT(unrecorded, page_counts_as_its_whole_hugepage, SLOW)
{
	struct subject *s = &self->s;

	lose(_metadata, s, 3);

	/* This page can't be unpoisoned: leave it out of struct undo. */
	injecting = true;
	EXPECT_EQ(0, inject_unrecorded(raw_pfn(s, s->nr_raw + 9)));
	injecting = false;
	ASSERT_TRUE(has_failed());
	s->corrupted += psize() >> 10;
	undo->corrupted += psize() >> 10;
	expect_corrupted(_metadata, s);

	lose(_metadata, s, 3 * s->nr_raw - 1);
	memset(s->lost + s->nr_raw, true, s->nr_raw);
	expect_map(_metadata, s, s->fd);
	expect_extents(_metadata, s, 3);

	/* The page gets recorded now, but not the damage of the first error. */
	injecting = true;
	EXPECT_EQ(0, corrupt_part(s, s->nr_raw + 9, 0, LINE));
	injecting = false;
	s->corrupted += psize() >> 10;
	undo->corrupted += psize() >> 10;
	expect_map(_metadata, s, s->fd);

	/* The same holds when the hugepage leaves the file. */
	ASSERT_EQ(0, punch(s, s->size, s->size));
	forget(s, 1);
	expect_map(_metadata, s, s->fd);
}

/*
 * An error in a hugepage that is being cleared, before it is in the file
 */

FIXTURE_SUBJECT(faulting);

FIXTURE_SETUP(faulting)
{
	setup_map(_metadata, &self->s, SZ_1G, &by_pfn, 1);
}

static void *touch(void *arg)
{
	struct subject *s = arg;

	read_byte(s->map);
	return NULL;
}

TEST_F_TIMEOUT(faulting, map_has_a_page_lost_before_the_hugepage, SLOW)
{
	struct subject *s = &self->s;
	unsigned int tries;
	pthread_t thread;
	long nr_free;
	int ret = 0;

	if (s->before.free != 1)
		SKIP(return, "others use hugepages");
	/* The error comes too late if this thread had to wait for a CPU: try again. */
	for (tries = 0; tries < 8 && !ret; tries++) {
		if (tries) {
			empty_file(_metadata, s);
			expect_released(_metadata, s);
			ASSERT_TRUE(pool_grow(s->size, 1));
			s->before = pool_read(s->size);
			ASSERT_EQ(0, ftruncate(s->fd, s->size));
			s->map = map_file(s, MAP_SHARED);
			ASSERT_NE(NULL, s->map);
			ASSERT_TRUE(try_write(s->map));
			s->head[0] = mapped_pfn(s->map);
		}
		/* Get the same hugepage once more. */
		ASSERT_EQ(0, punch(s, 0, s->size));
		nr_free = pool_get(s->size, "free_hugepages");
		ASSERT_EQ(0, pthread_create(&thread, NULL, touch, s));
		wait_until(pool_get(s->size, "free_hugepages") != nr_free, 500);
		note_lost(_metadata, s, 77);
		ret = inject(s, 77);
		pthread_join(thread, NULL);

		EXPECT_EQ(s->head[0], mapped_pfn(s->map));
		expect_corrupted(_metadata, s);
		expect_map(_metadata, s, s->fd);
	}
	EXPECT_NE(0, ret);
}

/*
 * Files without the flag
 */

FIXTURE_SUBJECT(plain);

FIXTURE_VARIANT(plain)
{
	bool mounted;
};

FIXTURE_VARIANT_ADD(plain, memfd) { };
FIXTURE_VARIANT_ADD(plain, mounted) { .mounted = true };

FIXTURE_SETUP(plain)
{
	struct subject *s = &self->s;

	setup_subject(_metadata, s, SZ_2M, &by_pfn, 2);
	if (_metadata->exit_code)
		return;
	if (variant->mounted) {
		/* The mount goes away with this process. */
		if (!mount_privately("hugetlbfs", "pagesize=2M"))
			SKIP(return, "can't mount hugetlbfs in a name space");
		s->fd = open(MOUNT "/hugetlb-mfr", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		ASSERT_LE(0, s->fd);
		unlink(MOUNT "/hugetlb-mfr");
	} else {
		s->fd = create_memfd(s->size, MFD_ALLOW_SEALING);
		ASSERT_LE(0, s->fd);
	}
	fill_subject(_metadata, s);
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
	free_map(&m);
}

TEST_F_TIMEOUT(plain, files_cause_no_event, SLOW)
{
	struct subject *s = &self->s;

	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	if (!trace_kept())
		SKIP(return, "no tracing of memory failures in " TRACING);
	lose_hugepage(_metadata, s, 7);
	EXPECT_EQ(0, nr_traced(KEPT_LINE));

	/* A file with the flag causes an event. */
	close(s->fd);
	unmap_file(s);
	ASSERT_TRUE(pool_grow(s->size, s->nr_huge));
	open_unfilled(_metadata, s, MFD_MF_KEEP_UE_MAPPED);
	lose(_metadata, s, 9);
	EXPECT_EQ(1, nr_traced(KEPT_LINE));
}

TEST_HARNESS_MAIN
