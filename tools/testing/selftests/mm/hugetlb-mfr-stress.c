// SPDX-License-Identifier: GPL-2.0
/*
 * Stress for the recovery from memory errors in hugepages: many processes and
 * threads lose memory in every way there is, while they use, share, pin, move and
 * release it.  The state of each raw page of the machine is recorded.
 *
 * The test runs in rounds, and after each everything must balance: what the kernel
 * calls poisoned is what the test recorded as lost; pools, counters and cgroups are back
 * to where they were; nothing healthy is missing.  In even rounds nobody touches
 * the pool and nothing is given back, so that every hugepage can be accounted for.
 * In odd rounds the pools are resized, hugepages are demoted, memory blocks go offline
 * and come back, and lost pages are unpoisoned all the time.  In every other of them
 * the workers are killed instead of asked to stop.
 *
 * The n-th step of a worker follows from the seed, the round, the worker and n
 * alone, but not when it runs.  The environment says how
 * long, and which seed to replay:
 *
 *   HUGETLB_MFR_SECONDS	for each test, without what the rounds' ends take; up to 8
 *				times as long if an operation has had no effect
 *   HUGETLB_MFR_INJECTIONS	stop after so many
 *   HUGETLB_MFR_SEED
 *   HUGETLB_MFR_WORKERS
 *   HUGETLB_MFR_VERBOSE	1: say what each round has lost
 */
#include "mfr_harness.h"
#include <semaphore.h>
#include <sys/time.h>
#include <sys/uio.h>

#define NO_PFN		(-1UL)
#define NR_FILES	4	/* of a worker */
#define NR_PINS		3
#define NR_STRANDED	32
#define MAX_HUGE	3	/* hugepages in a file */
#define MAX_WORKERS	16

/*
 * An operation without effect in so many tries is not tested.  To get there, a test goes
 * on for up to PATIENCE times as long.
 */
#define MANY_TRIES	200
#define PATIENCE	10

/* The harness must not stop a test that HUGETLB_MFR_SECONDS made long. */
#define LONG_RUN	(24 * 3600)
#define MAX_OPS		32
#define KMEMLEAK	"/sys/kernel/debug/kmemleak"
#define MAX_LISTED	65536
#define MAX_REPORTS	8
#define POOL_2M		384
#define POOL_1G		2
/* Hugepages that nobody uses, so that none is ever made in passing. */
#define MARGIN		48
#define ROUND_MS	3000
/* Kernels with debug options are slow. */
#define HANGS_MS	120000
/* Going offline waits for pins as long as nobody breaks it off. */
#define OFFLINE_S	2
#define OFFLINE_DEBUG_S	20
/*
 * Free pages that the kernel takes: stacks of its workers look like nothing at all.  It
 * takes most of them in the first round, and half as many later.  A leak goes on.
 */
#define NR_UNKNOWN	64
/* Kernels with debug options also record each allocation and its caller. */
#define NR_UNKNOWN_DEBUG	128

/* The state of a raw page */
enum page_state {
	HEALTHY,
	HIT,			/* right now: it may be lost or not */
	LOST,
	BACK,			/* was lost, and is just given back */
	ALIEN,			/* was lost before this test */
};

enum how {
	BY_MADVISE,
	BY_PFN,
	BY_MCE,
	BY_SCRUB,
};

/* The part of a race that somebody else takes. */
enum act {
	ACT_NONE,
	ACT_HIT,
	ACT_PUNCH,
	ACT_PUNCH_PART,
	ACT_TRUNCATE,
	ACT_CLOSE,
	ACT_DROP,
	ACT_READ,
	ACT_PREAD,
	ACT_COPY,
	ACT_MOVE,
	ACT_SOFT_OFFLINE,
	ACT_UNPIN,
	ACT_KILL,
	ACT_QUIT,
	NR_ACTS = ACT_QUIT,
};

/* Changes that pools and memory go through meanwhile. */
enum change {
	CHANGE_GROW,
	CHANGE_SHRINK,
	CHANGE_GROW_1G,
	CHANGE_SHRINK_1G,
	CHANGE_DEMOTE,
	CHANGE_HIT_AND_DEMOTE,
	CHANGE_OFFLINE,
	CHANGE_MOVE,
	CHANGE_HIT_MOVING,
	NR_CHANGES,
};

struct file {
	uint64_t id;
	bool keep;
	int fd;				/* or -1 */
	unsigned long nr_huge;
	unsigned long size;		/* of a hugepage */
	unsigned long nr_raw;		/* raw pages in a hugepage */
	char *map;
	unsigned long head[MAX_HUGE];	/* first pfn, or NO_PFN for a hole */
	uint8_t *gen;			/* how often each raw page was written */
	bool *given_up;			/* raw pages that were zeroed when they were lost */
};

/* A hugepage that can't go away, whatever becomes of its file. */
struct pin {
	bool used;
	bool keep;
	bool is_ring;
	struct ring ring;
	int pipe[2];
	unsigned long head;
	unsigned long nr_raw;
};

/* A thread, or a process, that takes part in the races of a worker. */
struct peer {
	sem_t wake;
	sem_t done;
	atomic_bool ready;
	atomic_bool go;
	pid_t owner;
	bool is_process;
	enum act act;
	enum how how;
	int fd;
	char *map;
	size_t len;
	unsigned long idx;
	unsigned long pfn;
	int node;
	pid_t victim;
	struct pin *pin;
	bool effect;			/* in races where only the peer sees it */
	int ret;
};

struct worker {
	unsigned int nr;
	unsigned long step;
	const char *op;
	bool effect;			/* of this step: see did() */
	uint64_t random;
	uint64_t nr_made;
	unsigned long size;
	unsigned long nr_moves;		/* when it last looked for its hugepages */
	struct file file[NR_FILES];
	struct pin pin[NR_PINS];
	/* Plain hugepages that nobody but memory failure handling holds. */
	unsigned long stranded[NR_STRANDED];
	unsigned int nr_stranded;
	struct peer *peer[2];
	char *buf;
};

/* How often something was tried, and how often it had an effect. */
struct tally {
	atomic_ulong tried;
	atomic_ulong done;
};

static struct state {
	/* Parameters */
	uint64_t seed;
	unsigned long seconds;
	unsigned long limit;
	unsigned int nr_workers;
	bool verbose;
	bool giant;
	bool real;
	bool copy_recovers;
	bool has_nodes;			/* at least two */
	uint64_t start_ns;
	uint64_t round_ns;
	/* This round */
	unsigned long round;
	bool still;
	atomic_bool stop;
	bool idle;			/* nobody is at work any more */
	/* Hugepages may move, and nobody but the kernel knows where to; how often */
	bool moving;
	unsigned long nr_moves;
	/* Sums */
	atomic_ulong nr_hits;
	atomic_ulong nr_lost;
	atomic_ulong nr_back;
	atomic_ulong nr_soft;		/* soft-offlined: lost, but no failure */
	atomic_ulong nr_loose;		/* hits on a page not known before */
	atomic_ulong nr_healed_1g;
	/* Errors in hugepages that their injector doesn't hold: now, and the last */
	atomic_uint nr_wild;
	atomic_ulong wild_ns;
	/* Steps, and races in which both sides may have an effect */
	struct tally op[MAX_OPS];
	struct tally race[NR_ACTS];
	struct tally change[NR_CHANGES];
	/* Failures */
	atomic_uint nr_reports;
	char report[MAX_REPORTS][256];
	/* How it was before */
	bool open;
	unsigned long nr_offlined;
	unsigned long missing;		/* after the first round */
	long corrupted;
	long handled;
	bool has_group;			/* a cgroup that counts hugepages */
	bool counts_memory;		/* the cgroup does, too */
	/* With machine checks: held exclusively to inject one, or to move hugepages */
	pthread_rwlock_t step_lock;
	/* Held to give back lost pages; its owner may be killed. */
	pthread_mutex_t giving;
	/* Memory */
	unsigned long nr_pages;
	unsigned long nr_regions;
	atomic_ulong nr_listed;
	unsigned long listed[MAX_LISTED];
	struct peer peer[MAX_WORKERS][2];
} *st;

static unsigned char *page_states;

/* Of memory in pieces of 2 MiB. */
static struct region {
	/* An error comes from a worker that doesn't hold it: leave it alone */
	unsigned char wild;
	unsigned char seen;		/* it was a hugepage of ours */
	unsigned char giant;		/* of 1 GiB */
	uint64_t wild_ns;		/* of the last such error */
} *regions;

static const struct op {
	const char *name;
	unsigned int weight;
	unsigned int weight_real;
	bool alone;
	bool moving;		/* also while hugepages may move */
	void (*run)(struct worker *w);
} ops[];

/* The last SIGBUS to this thread */
static __thread struct {
	sigjmp_buf back;
	atomic_bool guarded;
	atomic_bool injecting;
	int code;
	int lsb;
	uintptr_t addr;
	/* The one that this thread waits for */
	uintptr_t expected;
	atomic_bool came;
	int came_code;
	int came_lsb;
} bus;

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
	x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
	return x ^ (x >> 31);
}

static unsigned long below(struct worker *w, unsigned long n)
{
	w->random = mix(w->random);
	return w->random % n;
}

static bool one_in(struct worker *w, unsigned long n)
{
	return !below(w, n);
}

/* Something is wrong: say what, and let everybody stop. */
static void __printf(2, 3) fail(struct worker *w, const char *fmt, ...)
{
	unsigned int i = atomic_fetch_add(&st->nr_reports, 1);
	va_list args;
	int len = 0;

	st->stop = true;
	if (i >= MAX_REPORTS)
		return;
	if (w)
		len = snprintf(st->report[i], sizeof(st->report[i]),
			       "round %lu, worker %u, step %lu, %s: ",
			       st->round, w->nr, w->step, w->op);
	else
		len = snprintf(st->report[i], sizeof(st->report[i]),
			       "round %lu: ", st->round);
	va_start(args, fmt);
	vsnprintf(st->report[i] + len, sizeof(st->report[i]) - len, fmt, args);
	va_end(args);
}

static void tally(struct tally *t, bool done)
{
	t->tried++;
	t->done += done;
}

/* This step has changed something, or has been refused as it must be. */
static void did(struct worker *w)
{
	w->effect = true;
}

/* Nobody must interrupt the victim of a machine check, whatever CPU it is on. */
static void enter_step(bool alone)
{
	if (st->real && alone)
		pthread_rwlock_wrlock(&st->step_lock);
	else
		pthread_rwlock_rdlock(&st->step_lock);
}

static void leave_step(void)
{
	pthread_rwlock_unlock(&st->step_lock);
}

/*
 * The state of each page
 */

static struct region *region_of(unsigned long pfn)
{
	return &regions[pfn / (SZ_2M / psize())];
}

static enum page_state state_of(unsigned long pfn)
{
	return __atomic_load_n(&page_states[pfn], __ATOMIC_SEQ_CST);
}

static bool change_state(unsigned long pfn, enum page_state from, enum page_state to)
{
	unsigned char expected = from;

	return __atomic_compare_exchange_n(&page_states[pfn], &expected, to, false,
					   __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
}

static void set_lost(unsigned long pfn)
{
	unsigned char before = __atomic_exchange_n(&page_states[pfn], LOST, __ATOMIC_SEQ_CST);

	if (before == LOST)
		return;
	atomic_fetch_add(&st->nr_lost, 1);
	st->listed[atomic_fetch_add(&st->nr_listed, 1) % MAX_LISTED] = pfn;
}

/* A number of pages together: LOST if any of them is, HEALTHY if all are. */
static enum page_state state_of_all(unsigned long pfn, unsigned long nr)
{
	enum page_state all = HEALTHY;
	unsigned long i;

	for (i = 0; i < nr && all != LOST; i++)
		if (state_of(pfn + i) != HEALTHY)
			all = state_of(pfn + i);
	return all;
}

/* A worker must not lose or release a page in which another injects an error. */
static void wait_for_wild(unsigned long head)
{
	while (__atomic_load_n(&region_of(head)->wild, __ATOMIC_SEQ_CST) && !st->stop)
		sched_yield();
}

/*
 * Accesses that may fail
 */

static void on_sigbus(int nr, siginfo_t *si, void *context)
{
	uintptr_t addr = (uintptr_t)si->si_addr;

	if (bus.expected && addr == bus.expected) {
		bus.came_code = si->si_code;
		bus.came_lsb = si->si_addr_lsb;
		bus.came = true;
	}
	if (si->si_code == BUS_MCEERR_AO)
		return;
	bus.code = si->si_code;
	bus.lsb = si->si_addr_lsb;
	bus.addr = addr;
	release_victim();
	if (bus.guarded)
		siglongjmp(bus.back, 1);
	if (bus.injecting)
		return;
	fail(NULL, "process %d got SIGBUS %d at %p that it didn't ask for",
	     getpid(), si->si_code, si->si_addr);
	_exit(KSFT_FAIL);
}

static void catch_sigbus(void)
{
	struct sigaction sa = {
		.sa_sigaction = on_sigbus,
		.sa_flags = SA_SIGINFO | SA_RESTART,
	};

	sigaction(SIGBUS, &sa, NULL);
}

/* False if SIGBUS comes. */
static bool copy(void *to, const void *from, size_t len)
{
	bool ok = !sigsetjmp(bus.back, 1);

	if (ok) {
		bus.guarded = true;
		memcpy(to, from, len);
	}
	bus.guarded = false;
	return ok;
}

/*
 * Files, of which only their worker changes anything
 */

static unsigned long file_len(struct file *f)
{
	return f->nr_huge * f->size;
}

static char *page_of(struct file *f, unsigned long idx)
{
	return f->map + idx * psize();
}

static unsigned long pfn_of(struct file *f, unsigned long idx)
{
	unsigned long head = f->head[idx / f->nr_raw];

	return head == NO_PFN ? NO_PFN : head + idx % f->nr_raw;
}

/* A plain hugepage is lost as a whole. */
static enum page_state state_in(struct file *f, unsigned long idx)
{
	unsigned long head = f->head[idx / f->nr_raw];

	if (head == NO_PFN)
		return HEALTHY;
	if (f->keep)
		return state_of(head + idx % f->nr_raw);
	return state_of_all(head, f->nr_raw);
}

static uint64_t pattern(struct file *f, unsigned long idx)
{
	return mix(f->id ^ mix(idx * 256 + f->gen[idx]));
}

static void make_page(struct file *f, unsigned long idx, char *buf)
{
	uint64_t *word = (uint64_t *)buf;
	uint64_t base = pattern(f, idx);
	unsigned int i;

	for (i = 0; i < psize() / sizeof(*word); i++)
		word[i] = f->gen[idx] ? base + i : 0;
}

static bool is_page(struct file *f, unsigned long idx, const char *buf)
{
	const uint64_t *word = (const uint64_t *)buf;
	uint64_t base = pattern(f, idx);
	unsigned int i;

	for (i = 0; i < psize() / sizeof(*word); i++)
		if (word[i] != (f->gen[idx] ? base + i : 0))
			return false;
	return true;
}

/* To be called before an access that judge() looks at. */
static enum page_state prepare(struct file *f, unsigned long idx)
{
	bus.code = 0;
	return state_in(f, idx);
}

/*
 * An access to a raw page of @f at @page has brought @buf, or a signal.  In a @fresh
 * mapping the kernel must refuse what is lost.  In one that was there before only
 * the hardware does, and an error that is simulated comes without hardware.
 */
static void judge(struct worker *w, struct file *f, unsigned long idx, const char *page,
		  const char *buf, enum page_state before, bool fresh)
{
	enum page_state after = state_in(f, idx);
	unsigned int lsb = f->keep ? pshift() : __builtin_ctzl(f->size);

	if (buf) {
		if (fresh && before == LOST && after == LOST)
			fail(w, "lost page %#lx of a %s file can be read", pfn_of(f, idx),
			     f->keep ? "kept" : "plain");
		if (before == HEALTHY && after == HEALTHY && !is_page(f, idx, buf))
			fail(w, "page %#lx has changed", pfn_of(f, idx));
		return;
	}
	if (bus.code != BUS_MCEERR_AR)
		fail(w, "SIGBUS %d for page %#lx", bus.code, pfn_of(f, idx));
	else if (before == HEALTHY && after == HEALTHY)
		fail(w, "SIGBUS for healthy page %#lx", pfn_of(f, idx));
	else if ((bus.addr & ~(psize() - 1UL)) != (uintptr_t)page || bus.lsb != lsb)
		fail(w, "SIGBUS for %#lx lsb %d instead of %p lsb %d", bus.addr, bus.lsb,
		     page, lsb);
}

static int punch_file(struct file *f, off_t start, off_t len)
{
	return fallocate(f->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start, len) ?
	       -errno : 0;
}

/* There is a hugepage. */
static void note_hugepage(unsigned long head, unsigned long nr_raw)
{
	unsigned long i;

	for (i = 0; i < nr_raw; i += SZ_2M / psize()) {
		region_of(head + i)->seen = 1;
		region_of(head + i)->giant = nr_raw > SZ_2M / psize();
	}
}

/* A hugepage was allocated after @since: nothing lost must be part of it. */
static void check_fresh(struct worker *w, unsigned long head, unsigned long nr_raw,
			uint64_t since)
{
	struct region *r = region_of(head);
	unsigned long i;

	note_hugepage(head, nr_raw);
	wait_for_wild(head);
	for (i = 0; i < nr_raw; i++) {
		if (state_of(head + i) != LOST && state_of(head + i) != ALIEN)
			continue;
		/* Shot at while it was on its way here: that can't be helped. */
		if (r->wild_ns < since)
			fail(w, "lost page %#lx is part of a new hugepage", head + i);
		return;
	}
}

/* Let hugepage @h have memory.  False if there is none. */
static bool fill_in(struct worker *w, struct file *f, unsigned long h)
{
	unsigned long idx = h * f->nr_raw + below(w, f->nr_raw);
	uint64_t since = now_ns();
	unsigned int tries;
	bool ok;

	if (f->head[h] != NO_PFN)
		return true;
	bus.code = 0;
	ok = copy(w->buf, page_of(f, idx), psize());
	if (!ok && bus.code == BUS_ADRERR) {
		if (st->still && f->size == SZ_2M)
			fail(w, "no hugepage for a hole");
		return false;
	}
	for (tries = 0; ok && tries < 10 && f->head[h] == NO_PFN; tries++) {
		f->head[h] = mapped_pfn(page_of(f, idx));
		/* A fault waits until the hugepage has arrived. */
		if (st->moving && f->head[h] == NO_PFN)
			copy(w->buf, page_of(f, idx), psize());
	}
	if (f->head[h] == NO_PFN) {
		/* Another worker's error came with it, and took away a plain one. */
		if (f->keep || (!st->nr_wild && st->wild_ns < since))
			fail(w, "a hole got no hugepage, but SIGBUS %d", bus.code);
		punch_file(f, h * f->size, f->size);
		return false;
	}
	f->head[h] -= idx % f->nr_raw;
	memset(f->gen + h * f->nr_raw, 0, f->nr_raw);
	check_fresh(w, f->head[h], f->nr_raw, since);
	if (state_in(f, idx) == HEALTHY && !is_page(f, idx, w->buf))
		fail(w, "a hole isn't empty");
	return true;
}

/* Memory that went offline may have moved hugepages: where are they now? */
static void find_again(struct worker *w)
{
	struct file *f;
	unsigned long h;

	if (!st->moving && w->nr_moves == st->nr_moves)
		return;
	w->nr_moves = st->nr_moves;
	for (f = w->file; f < w->file + NR_FILES; f++) {
		for (h = 0; f->fd >= 0 && h < f->nr_huge; h++) {
			unsigned long pfn = NO_PFN;
			unsigned int tries;

			if (f->head[h] == NO_PFN)
				continue;
			/* If all of it is lost, it hasn't moved. */
			for (tries = 0; tries < 10 && pfn == NO_PFN; tries++) {
				pfn = mapped_pfn(f->map + h * f->size);
				if (pfn == NO_PFN)
					copy(w->buf, page_of(f, h * f->nr_raw +
							     below(w, f->nr_raw)), 1);
			}
			if (pfn == NO_PFN || pfn == f->head[h])
				continue;
			f->head[h] = pfn;
			check_fresh(w, pfn, f->nr_raw, now_ns());
		}
	}
}

static bool open_file(struct worker *w, struct file *f, bool keep, unsigned long nr_huge)
{
	unsigned long h;

	memset(f, 0, sizeof(*f));
	f->id = mix((uint64_t)w->nr << 48 | ++w->nr_made);
	f->keep = keep;
	f->size = w->size;
	f->nr_raw = f->size / psize();
	f->nr_huge = f->size > SZ_2M ? 1 : nr_huge;
	for (h = 0; h < MAX_HUGE; h++)
		f->head[h] = NO_PFN;
	f->fd = create_memfd(f->size, keep ? MFD_MF_KEEP_UE_MAPPED : 0);
	if (f->fd < 0) {
		fail(w, "memfd_create: %s", strerror(errno));
		return false;
	}
	f->map = MAP_FAILED;
	if (!ftruncate(f->fd, file_len(f)))
		f->map = mmap(NULL, file_len(f), PROT_READ | PROT_WRITE, MAP_SHARED, f->fd, 0);
	if (f->map == MAP_FAILED) {
		if (errno != ENOMEM || (st->still && f->size == SZ_2M))
			fail(w, "mmap: %s", strerror(errno));
		close(f->fd);
		f->fd = -1;
		return false;
	}
	f->gen = calloc(f->nr_huge, f->nr_raw);
	f->given_up = calloc(f->nr_huge, f->nr_raw);
	return true;
}

/* Hugepage @h is no longer in its file: find out what holds it. */
static void leave(struct worker *w, struct file *f, unsigned long h)
{
	unsigned long head = f->head[h];

	if (head == NO_PFN)
		return;
	f->head[h] = NO_PFN;
	memset(f->gen + h * f->nr_raw, 0, f->nr_raw);
	memset(f->given_up + h * f->nr_raw, 0, f->nr_raw);
	if (state_of_all(head, f->nr_raw) != LOST)
		return;
	if (!f->keep && w->nr_stranded < NR_STRANDED)
		w->stranded[w->nr_stranded++] = head;
}

static void close_file(struct worker *w, struct file *f)
{
	unsigned long h;

	if (f->fd < 0)
		return;
	for (h = 0; h < f->nr_huge; h++)
		if (f->head[h] != NO_PFN)
			wait_for_wild(f->head[h]);
	if (one_in(w, 2)) {
		munmap(f->map, file_len(f));
		close(f->fd);
	} else {
		close(f->fd);
		munmap(f->map, file_len(f));
	}
	for (h = 0; h < f->nr_huge; h++)
		leave(w, f, h);
	free(f->gen);
	free(f->given_up);
	f->gen = NULL;
	f->given_up = NULL;
	f->fd = -1;
}

static struct file *any_file(struct worker *w)
{
	struct file *f = &w->file[below(w, NR_FILES)];

	return f->fd < 0 ? NULL : f;
}

/* Any hugepage of @f that is there. */
static bool any_huge(struct worker *w, struct file *f, unsigned long *h)
{
	if (!f)
		return false;
	*h = below(w, f->nr_huge);
	return fill_in(w, f, *h);
}

static struct file *any_page(struct worker *w, unsigned long *idx)
{
	struct file *f = any_file(w);
	unsigned long h;

	if (!any_huge(w, f, &h))
		return NULL;
	*idx = h * f->nr_raw + below(w, f->nr_raw);
	return f;
}

/* A lost page of the same hugepage as @idx, if there is one. */
static unsigned long rather_lost(struct file *f, unsigned long idx)
{
	unsigned long i, first = idx - idx % f->nr_raw;

	for (i = 0; i < f->nr_raw; i++)
		if (state_of(pfn_of(f, first + (idx + i) % f->nr_raw)) == LOST)
			return first + (idx + i) % f->nr_raw;
	return idx;
}

/*
 * Losing memory
 */

/* Returns what the kernel did; @expected tells whether a signal for @addr came. */
static int shoot(enum how how, char *addr, unsigned long pfn)
{
	int ret = -EINVAL;
	long before;

	bus.came = false;
	bus.expected = (uintptr_t)addr;
	bus.injecting = true;
	switch (how) {
	case BY_MADVISE:
		ret = inject_madvise(addr, pfn);
		break;
	case BY_PFN:
		ret = inject_corrupt_pfn(addr, pfn);
		break;
	case BY_MCE:
		ret = inject_mce(addr, pfn);
		break;
	case BY_SCRUB:
		/* A worker of the kernel deals with it; nobody else does anything. */
		before = mf_stat("total");
		undo->mce_seen = true;
		mce_scrub(undo->monitor, pfn);
		ret = wait_until(mf_stat("total") != before, 2000) ? 0 : -ETIMEDOUT;
		break;
	}
	bus.injecting = false;
	bus.expected = 0;
	if (ret != -EFAULT && ret != -ENOMEM)
		atomic_fetch_add(&st->nr_hits, 1);
	return ret;
}

/* Plain hugepages fail as a whole, may fail to be handled, and yet are hit. */
static bool was_hit(int ret)
{
	return ret == 0 || ret == -EBUSY || ret == -EHWPOISON;
}

static enum how any_how(struct worker *w)
{
	if (st->real)
		return one_in(w, 4) ? BY_SCRUB : BY_MCE;
	return one_in(w, 2) ? BY_MADVISE : BY_PFN;
}

/*
 * Raw page @idx of @f is lost, or lost again. It can't leave its file meanwhile.
 * Returns whether it was healthy.
 */
static bool hit(struct worker *w, struct file *f, unsigned long idx, enum how how)
{
	unsigned long pfn = pfn_of(f, idx);
	enum page_state before;
	bool again, mapped;
	int ret, want = 0;

	wait_for_wild(f->head[idx / f->nr_raw]);
	before = state_in(f, idx);
	mapped = mapped_pfn(page_of(f, idx)) == pfn;
	again = state_of(pfn) == LOST;
	if (again && how == BY_SCRUB)
		return false;
	if (!again && !change_state(pfn, HEALTHY, HIT))
		return false;

	ret = shoot(how, page_of(f, idx), pfn);
	if (!again && was_hit(ret))
		set_lost(pfn);
	else if (!again)
		change_state(pfn, HIT, HEALTHY);

	if (!f->keep) {
		if (!was_hit(ret) && !(ret == -EFAULT && how == BY_MADVISE && before == LOST))
			fail(w, "losing page %#lx of a plain file: %d", pfn, ret);
		return !again && was_hit(ret);
	}
	if (again && how == BY_MADVISE)
		want = -EFAULT;
	else if (again && how == BY_PFN)
		want = -EHWPOISON;
	else if (again && !mapped)
		want = -EFAULT;
	if (ret != want)
		fail(w, "losing page %#lx %sby %d: %d instead of %d", pfn,
		     again ? "again " : "", how, ret, want);
	else if ((!again || how == BY_MCE) &&
		 (!bus.came || bus.came_lsb != pshift() ||
		  bus.came_code != (how == BY_PFN || how == BY_SCRUB ?
				    BUS_MCEERR_AO : BUS_MCEERR_AR)))
		fail(w, "losing page %#lx by %d: signal %d, code %d, lsb %d", pfn, how,
		     bus.came, bus.came_code, bus.came_lsb);
	else if (mapped && mapped_pfn(page_of(f, idx)) != pfn)
		fail(w, "lost page %#lx is no longer mapped", pfn);
	return !again && was_hit(ret);
}

/*
 * The same by address in a hugepage that may move: which page that was is known only
 * afterwards, for then it stays where it is.
 */
static bool hit_moving(struct worker *w, struct file *f, unsigned long idx)
{
	unsigned long pfn = NO_PFN;
	unsigned int tries;
	int ret;

	if (!f->keep || state_in(f, idx) != HEALTHY)
		return false;
	ret = shoot(BY_MADVISE, page_of(f, idx), NO_PFN);
	for (tries = 0; tries < 100 && pfn == NO_PFN; tries++) {
		pfn = mapped_pfn(page_of(f, idx));
		if (pfn == NO_PFN)
			usleep(1000);
	}
	tally(&st->change[CHANGE_HIT_MOVING], !ret);
	if (ret || pfn == NO_PFN) {
		fail(w, "losing a page of a hugepage that may move: %d, now %#lx", ret, pfn);
		return false;
	}
	f->head[idx / f->nr_raw] = pfn - idx % f->nr_raw;
	note_hugepage(pfn - idx % f->nr_raw, f->nr_raw);
	set_lost(pfn);
	return true;
}

static void op_lose(struct worker *w)
{
	unsigned int nr = 1 + below(w, st->real ? 6 : st->moving ? 2 : 24);
	struct file *f = any_file(w);
	unsigned long h, idx;

	if (!any_huge(w, f, &h))
		return;
	if (!f->keep)
		nr = 1 + nr / 4;
	while (nr-- && !st->stop) {
		idx = h * f->nr_raw + below(w, f->nr_raw);
		if (st->moving ? hit_moving(w, f, idx) : hit(w, f, idx, any_how(w)))
			did(w);
	}
}

static void op_lose_again(struct worker *w)
{
	unsigned long idx;
	struct file *f = any_page(w, &idx);
	enum how how = any_how(w);

	if (!f)
		return;
	idx = rather_lost(f, idx);
	/* (hit() doesn't let a scrubber find a page twice.) */
	if (state_of(pfn_of(f, idx)) == LOST && how != BY_SCRUB)
		did(w);
	hit(w, f, idx, how);
}

/*
 * Using memory
 */

static void op_create(struct worker *w)
{
	struct file *f = &w->file[below(w, NR_FILES)];
	unsigned long h;

	if (f->fd >= 0)
		return;
	if (!open_file(w, f, st->real || !one_in(w, 4), 1 + below(w, MAX_HUGE)))
		return;
	for (h = 0; h < f->nr_huge; h++)
		if (!one_in(w, 4) && fill_in(w, f, h))
			did(w);
}

static void op_close(struct worker *w)
{
	struct file *f = any_file(w);

	if (!f)
		return;
	close_file(w, f);
	did(w);
}

static void op_write(struct worker *w)
{
	unsigned int nr = 1 + below(w, 8);
	struct file *f = any_file(w);
	unsigned long h, idx;

	if (!any_huge(w, f, &h))
		return;
	for (; nr && !st->stop; nr--) {
		enum page_state before;
		bool ok;

		idx = h * f->nr_raw + below(w, f->nr_raw);
		before = prepare(f, idx);
		if (before == LOST)
			continue;
		f->gen[idx]++;
		f->gen[idx] += !f->gen[idx];
		make_page(f, idx, w->buf);
		ok = copy(page_of(f, idx), w->buf, psize());
		if (ok)
			did(w);
		judge(w, f, idx, page_of(f, idx), ok ? w->buf : NULL, before, false);
	}
}

static void read_page(struct worker *w, struct file *f, unsigned long idx, char *map,
		      bool fresh)
{
	enum page_state before = prepare(f, idx);
	char *page = map + idx * psize();
	bool ok = copy(w->buf, page, psize());

	/* In a fresh mapping, what is lost must be refused. */
	if (ok || fresh)
		did(w);
	judge(w, f, idx, page, ok ? w->buf : NULL, before, fresh);
}

static void op_read(struct worker *w)
{
	unsigned int nr = 1 + below(w, 8);
	struct file *f;
	unsigned long idx;

	for (; nr && !st->stop; nr--) {
		f = any_page(w, &idx);
		if (f)
			read_page(w, f, idx, f->map, false);
	}
}

/* In a mapping of its own, or where all of the mapping has been dropped. */
static void op_read_afresh(struct worker *w)
{
	unsigned long idx;
	struct file *f = any_page(w, &idx);
	char *map;

	if (!f)
		return;
	if (one_in(w, 2))
		idx = rather_lost(f, idx);
	if (one_in(w, 3)) {
		if (madvise(f->map, file_len(f), MADV_DONTNEED))
			fail(w, "MADV_DONTNEED: %s", strerror(errno));
		read_page(w, f, idx, f->map, true);
		return;
	}
	map = mmap(NULL, file_len(f), PROT_READ | PROT_WRITE,
		   MAP_NORESERVE | (one_in(w, 2) ? MAP_PRIVATE : MAP_SHARED), f->fd, 0);
	if (map == MAP_FAILED) {
		fail(w, "mmap: %s", strerror(errno));
		return;
	}
	read_page(w, f, idx, map, true);
	munmap(map, file_len(f));
}

static void op_pread(struct worker *w)
{
	unsigned long idx, i, nr = 1 + below(w, 4);
	struct file *f = any_page(w, &idx);
	enum page_state before[4];
	bool moved = false;
	ssize_t want, got;

	if (!f)
		return;
	if (one_in(w, 2))
		idx = rather_lost(f, idx);
	nr = nr < f->nr_raw - idx % f->nr_raw ? nr : f->nr_raw - idx % f->nr_raw;
	for (i = 0; i < nr; i++)
		before[i] = state_of(pfn_of(f, idx + i));
	errno = 0;
	got = pread(f->fd, w->buf, nr * psize(), idx * psize());
	if (got < 0)
		got = -errno;
	for (want = 0, i = 0; i < nr; i++) {
		moved |= state_of(pfn_of(f, idx + i)) != before[i] || before[i] == HIT;
		if (before[i] == LOST)
			break;
		want += psize();
	}
	if (!want)
		want = -EIO;
	if (moved)
		return;
	did(w);
	if (got != want)
		fail(w, "pread at page %#lx: %zd instead of %zd", pfn_of(f, idx), got, want);
	for (i = 0; got > 0 && i < got / psize(); i++)
		if (!is_page(f, idx + i, w->buf + i * psize()))
			fail(w, "pread: page %#lx has changed", pfn_of(f, idx + i));
}

static void op_populate(struct worker *w)
{
	int advice = one_in(w, 2) ? MADV_POPULATE_READ : MADV_POPULATE_WRITE;
	struct file *f = any_file(w);
	enum page_state before, after;
	bool fresh = one_in(w, 2);
	unsigned long h;
	int ret;

	if (!any_huge(w, f, &h))
		return;
	if (fresh)
		madvise(f->map + h * f->size, f->size, MADV_DONTNEED);
	before = state_of_all(f->head[h], f->nr_raw);
	ret = madvise(f->map + h * f->size, f->size, advice) ? -errno : 0;
	after = state_of_all(f->head[h], f->nr_raw);
	if (ret && (f->keep || (before == HEALTHY && after == HEALTHY)))
		fail(w, "populating: %s", strerror(-ret));
	/* An error that hits while it is isolated leaves it mapped. */
	if (!ret && !f->keep && fresh && before == LOST)
		fail(w, "a plain hugepage with lost pages could be populated");
	if (!ret && fresh)
		did(w);
	if (!ret && f->keep && mapped_pfn(f->map + h * f->size) != f->head[h])
		fail(w, "populating hasn't mapped page %#lx", f->head[h]);
}

/* Copy on write copies all of a hugepage, and can't if a part is lost. */
static void op_private(struct worker *w)
{
	unsigned long idx, pfn, shared;
	struct file *f = any_page(w, &idx);
	enum page_state before, after;
	uint64_t since = now_ns();
	char *map, *page;
	bool ok;
	int ret;

	if (!f)
		return;
	map = mmap(NULL, file_len(f), PROT_READ | PROT_WRITE, MAP_PRIVATE, f->fd, 0);
	if (map == MAP_FAILED) {
		if (errno != ENOMEM)
			fail(w, "mmap: %s", strerror(errno));
		return;
	}
	page = map + idx * psize();
	shared = f->head[idx / f->nr_raw];
	before = state_of_all(shared, f->nr_raw);
	memset(w->buf, 0x5a, psize());
	bus.code = 0;
	ok = copy(page, w->buf, psize());
	after = state_of_all(shared, f->nr_raw);
	if (!ok && before == HEALTHY && after == HEALTHY)
		fail(w, "SIGBUS %d for a copy of a healthy hugepage", bus.code);
	if (ok && before == LOST && after == LOST)
		fail(w, "hugepage %#lx with lost pages was copied", shared);
	if (!ok && f->keep && bus.code == BUS_MCEERR_AR &&
	    state_of(shared + idx % f->nr_raw) == HEALTHY)
		fail(w, "a copy says that healthy page %#lx is lost",
		     shared + idx % f->nr_raw);
	pfn = ok ? mapped_pfn(page) : NO_PFN;
	if (pfn != NO_PFN && pfn != shared + idx % f->nr_raw)
		did(w);
	if (pfn != NO_PFN) {
		const unsigned long head = pfn - idx % f->nr_raw;

		check_fresh(w, head, f->nr_raw, since);
		wait_for_wild(head);
		/*
		 * The copy is private memory, to which the file's policy doesn't apply:
		 * another worker's error may have taken all of it.
		 */
		if (one_in(w, 2) && !st->real &&
		    state_of_all(head, f->nr_raw) == HEALTHY &&
		    change_state(pfn, HEALTHY, HIT)) {
			ret = shoot(BY_MADVISE, page, pfn);
			if (!was_hit(ret))
				fail(w, "losing a private page: %d", ret);
			else
				set_lost(pfn);
			if (mapped_pfn(page) == pfn && !ret)
				fail(w, "lost private page %#lx is still mapped", pfn);
		}
	}
	munmap(map, file_len(f));
}

/*
 * Releasing memory
 */

static void op_punch(struct worker *w)
{
	struct file *f = any_file(w);
	unsigned long h;

	if (!any_huge(w, f, &h))
		return;
	wait_for_wild(f->head[h]);
	if (punch_file(f, h * f->size, f->size))
		fail(w, "punching a hugepage: %s", strerror(errno));
	leave(w, f, h);
	did(w);
}

static void op_punch_part(struct worker *w)
{
	unsigned long idx, i, nr = 1 + below(w, 32);
	struct file *f = any_page(w, &idx);
	bool lost = false, moved = false;
	int ret;

	if (!f)
		return;
	nr = nr < f->nr_raw - idx % f->nr_raw ? nr : f->nr_raw - idx % f->nr_raw;
	if (nr == f->nr_raw)
		return;
	wait_for_wild(f->head[idx / f->nr_raw]);
	for (i = 0; i < nr; i++) {
		lost |= state_of(pfn_of(f, idx + i)) == LOST;
		moved |= state_of(pfn_of(f, idx + i)) == HIT;
	}
	ret = punch_file(f, idx * psize(), nr * psize());
	if (!moved && ret != (lost ? -EIO : 0))
		fail(w, "punching %lu pages at %#lx, %s: %d", nr, pfn_of(f, idx),
		     lost ? "some of them lost" : "healthy", ret);
	memset(f->gen + idx, 0, nr);
	if (!ret)
		did(w);
}

static void op_truncate(struct worker *w)
{
	struct file *f = any_file(w);
	unsigned long h, nr;

	if (!f)
		return;
	nr = below(w, f->nr_huge);
	for (h = nr; h < f->nr_huge; h++)
		if (f->head[h] != NO_PFN) {
			wait_for_wild(f->head[h]);
			did(w);
		}
	if (ftruncate(f->fd, nr * f->size) || ftruncate(f->fd, file_len(f)))
		fail(w, "truncating: %s", strerror(errno));
	for (h = nr; h < f->nr_huge; h++)
		leave(w, f, h);
}

/* A child uses the file, and sometimes it is the last one who does. */
static void op_child(struct worker *w)
{
	bool last = one_in(w, 2);
	unsigned int i, nr = 1 + below(w, 4);
	unsigned long idx;
	struct file *f = any_page(w, &idx);
	struct helper h;
	int status;

	if (!f || !start_helper(&h))
		return;
	if (!h.pid) {
		for (i = 0; i < nr; i++) {
			idx -= idx % f->nr_raw;
			idx += below(w, f->nr_raw);
			/* The mapping of a hugetlb file is shared, not copied. */
			read_page(w, f, idx, f->map, false);
		}
		if (!last)
			_exit(0);
		for (i = 0; i < NR_FILES; i++)
			if (w->file[i].fd >= 0 && &w->file[i] != f)
				close(w->file[i].fd);
		if (tell(&h))
			pause();
		_exit(1);
	}
	if (last && wait_for_word(&h)) {
		close_file(w, f);
		kill(h.pid, SIGKILL);
	}
	close(h.line);
	if (waitpid(h.pid, &status, 0) == h.pid &&
	    !(last && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL) &&
	    !(WIFEXITED(status) && !WEXITSTATUS(status)))
		fail(w, "a child ended with %#x", status);
	did(w);
}

/*
 * Pins
 */

static bool make_pin(struct worker *w, struct file *f, unsigned long h, struct pin *p)
{
	char *map = f->map + h * f->size;
	struct iovec iov = { .iov_base = map, .iov_len = 8 * psize() };
	unsigned long nr = one_in(w, 2) ? f->nr_raw : 1 + below(w, f->nr_raw);
	enum page_state before, after;
	ssize_t ret;

	p->is_ring = one_in(w, 2);
	p->keep = f->keep;
	p->head = f->head[h];
	p->nr_raw = f->nr_raw;
	if (p->is_ring) {
		if (!make_ring(&p->ring)) {
			fail(w, "io_uring_setup: %s", strerror(errno));
			return false;
		}
		before = state_of_all(p->head, f->keep ? nr : f->nr_raw);
		ret = register_buffer(&p->ring, map, nr * psize()) ? -errno : 0;
		after = state_of_all(p->head, f->keep ? nr : f->nr_raw);
		if (ret && before == HEALTHY && after == HEALTHY)
			fail(w, "can't pin healthy pages: %zd", ret);
		if (!ret && f->keep && before == LOST)
			fail(w, "lost pages could be pinned");
		if (ret)
			destroy_ring(&p->ring);
		return !ret;
	}
	if (pipe(p->pipe))
		return false;
	nr = below(w, f->nr_raw - 8);
	iov.iov_base = map + nr * psize();
	before = state_of(p->head + nr);
	ret = vmsplice(p->pipe[1], &iov, 1, SPLICE_F_NONBLOCK);
	after = state_of(p->head + nr);
	if (f->keep && ret <= 0 && before == HEALTHY && after == HEALTHY)
		fail(w, "can't splice healthy page %#lx: %s", p->head + nr, strerror(errno));
	if (f->keep && ret > 0 && before == LOST)
		fail(w, "lost page %#lx could be spliced", p->head + nr);
	if (ret <= 0) {
		close(p->pipe[0]);
		close(p->pipe[1]);
	}
	return ret > 0;
}

static void release_pin(struct pin *p)
{
	if (p->is_ring) {
		destroy_ring(&p->ring);
	} else {
		close(p->pipe[0]);
		close(p->pipe[1]);
	}
	p->used = false;
}

static void op_pin(struct worker *w)
{
	struct pin *p = &w->pin[below(w, NR_PINS)];
	struct file *f = any_file(w);
	unsigned long h;

	if (p->used || !any_huge(w, f, &h))
		return;
	p->used = make_pin(w, f, h, p);
	if (p->used)
		did(w);
}

static void op_unpin(struct worker *w)
{
	struct pin *p = &w->pin[below(w, NR_PINS)];

	if (!p->used)
		return;
	wait_for_wild(p->head);
	release_pin(p);
	did(w);
}

/* Its file may be gone, but as long as it is pinned it is a hugepage. */
static void op_lose_pinned(struct worker *w)
{
	struct pin *p = &w->pin[below(w, NR_PINS)];
	unsigned int nr = 1 + below(w, 4);
	unsigned long pfn;
	bool again;
	int ret;

	if (!p->used)
		return;
	wait_for_wild(p->head);
	for (; nr && !st->stop; nr--) {
		pfn = p->head + below(w, p->nr_raw);
		again = state_of(pfn) == LOST;
		if (!again && !change_state(pfn, HEALTHY, HIT))
			continue;
		ret = shoot(BY_PFN, NULL, pfn);
		if (!again && was_hit(ret)) {
			set_lost(pfn);
			did(w);
		} else if (!again) {
			change_state(pfn, HIT, HEALTHY);
		}
		if (!was_hit(ret) || (p->keep && ret != (again ? -EHWPOISON : 0)))
			fail(w, "losing pinned page %#lx %s: %d", pfn, again ? "again" : "",
			     ret);
	}
}

/*
 * Moving memory
 */

/*
 * Without a hugepage in the pool of @node a migration makes one in passing, and
 * frees the old one to the page allocator, which would upset the counts.
 */
static bool node_has_room(int node, unsigned long size)
{
	/* Of 1 GiB there are few, which one worker has for itself. */
	return node_pool_get(node, size, "free_hugepages") > (size > SZ_2M ? 0 : MARGIN / 4);
}

static void op_move(struct worker *w)
{
	struct file *f = any_file(w);
	enum page_state before, after;
	unsigned long h, old, new;
	uint64_t since;
	int node;

	if (!any_huge(w, f, &h))
		return;
	old = f->head[h];
	node = move_page(f->map + h * f->size, -1);
	if (node < 0)
		return;
	node = other_node(node);
	if (node < 0 || (st->still && !node_has_room(node, f->size)))
		return;
	wait_for_wild(old);
	before = state_of_all(old, f->nr_raw);
	since = now_ns();
	move_page(f->map + h * f->size, node);
	after = state_of_all(old, f->nr_raw);
	new = mapped_pfn(f->map + h * f->size);
	if (f->keep && before == LOST && new != old)
		fail(w, "hugepage %#lx with lost pages was moved", old);
	if (new == old || new == NO_PFN) {
		if (new == NO_PFN && before == HEALTHY && after == HEALTHY)
			fail(w, "hugepage %#lx got lost on its way", old);
		return;
	}
	f->head[h] = new;
	check_fresh(w, new, f->nr_raw, since);
	did(w);
}

static bool is_pinned(struct worker *w, unsigned long head)
{
	unsigned int i;

	for (i = 0; i < NR_PINS; i++)
		if (w->pin[i].used && w->pin[i].head == head)
			return true;
	return false;
}

/*
 * Give up lost page @idx of a kept file. If all lost pages of its hugepage are given up
 * by then, and nobody holds that, another one takes its place. Returns 0 then.
 */
static int zero_lost(struct worker *w, struct file *f, unsigned long idx)
{
	unsigned long h = idx / f->nr_raw, first = h * f->nr_raw;
	unsigned long i, old = f->head[h], new;
	int ret, want = 0;
	uint64_t since;

	wait_for_wild(old);
	f->given_up[idx] = true;
	for (i = 0; i < f->nr_raw; i++) {
		if (state_of(old + i) != LOST)
			continue;
		f->gen[first + i] = 0;
		if (!f->given_up[first + i])
			want = -EIO;
	}
	if (!want && is_pinned(w, old))
		want = -EBUSY;
	since = now_ns();
	do
		ret = fallocate(f->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
				idx * psize(), psize()) ? -errno : 0;
	while (ret == -EINTR);
	if (ret == -ENOSPC && !want && (!st->still || f->size > SZ_2M))
		return ret;
	if (ret != want)
		fail(w, "zeroing lost page %#lx: %d instead of %d", old + idx - first, ret,
		     want);
	if (ret)
		return ret;

	memset(f->given_up + first, 0, f->nr_raw);
	copy(w->buf, page_of(f, idx), psize());
	new = mapped_pfn(f->map + h * f->size);
	if (new == old || new == NO_PFN) {
		fail(w, "hugepage %#lx wasn't replaced, but %#lx is there", old, new);
		return -EIO;
	}
	f->head[h] = new;
	if (f->size > SZ_2M)
		st->nr_healed_1g++;
	check_fresh(w, new, f->nr_raw, since);
	read_page(w, f, idx, f->map, false);
	return 0;
}

/* Does the file have a hugepage with lost pages that could be replaced? */
static struct file *any_damaged(struct worker *w, unsigned long *idx)
{
	struct file *f = any_page(w, idx);
	struct pool pool;

	if (!f || !f->keep)
		return NULL;
	*idx = rather_lost(f, *idx);
	pool = pool_read(f->size);
	if (state_of(pfn_of(f, *idx)) != LOST ||
	    (st->still && f->size == SZ_2M && pool.free - pool.resv <= MARGIN / 4))
		return NULL;
	return f;
}

static void op_heal(struct worker *w)
{
	unsigned long idx, i, first;
	struct file *f = any_damaged(w, &idx);

	if (!f || (is_pinned(w, f->head[idx / f->nr_raw]) && !one_in(w, 8)))
		return;
	/* There are few of these, and one must be free. */
	for (i = 0; i < NR_FILES && f->size > SZ_2M; i++)
		if (&w->file[i] != f)
			close_file(w, &w->file[i]);
	first = idx - idx % f->nr_raw;
	for (i = first; i < first + f->nr_raw && !st->stop; i++) {
		if (state_of(pfn_of(f, i)) != LOST)
			continue;
		if (zero_lost(w, f, i))
			continue;
		did(w);
		break;
	}
}

/* Mostly it isn't the only one, and nothing happens yet. */
static void op_give_up(struct worker *w)
{
	unsigned long idx;
	struct file *f = any_damaged(w, &idx);

	if (f && zero_lost(w, f, idx) == -EIO)
		did(w);
}

static void op_soft_offline(struct worker *w)
{
	unsigned long h, idx, old, new = NO_PFN, pfn;
	struct file *f = any_file(w);
	enum page_state before;
	unsigned int tries;
	uint64_t since;
	int node, ret;

	if (!any_huge(w, f, &h))
		return;
	/* The first page may look lost for others of its hugepage. */
	idx = h * f->nr_raw + 1 + below(w, f->nr_raw - 1);
	old = f->head[h];
	pfn = pfn_of(f, idx);
	node = move_page(f->map + h * f->size, -1);
	if (st->still && (node < 0 || !node_has_room(node, f->size)))
		return;
	wait_for_wild(old);
	before = state_of_all(old, f->nr_raw);
	if (!change_state(pfn, HEALTHY, HIT))
		return;
	since = now_ns();
	ret = madvise(page_of(f, idx), psize(), MADV_SOFT_OFFLINE) ? -errno : 0;
	if (!ret) {
		set_lost(pfn);
		atomic_fetch_add(&st->nr_soft, 1);
		did(w);
	} else {
		change_state(pfn, HIT, HEALTHY);
	}
	/* Map what is there now. It may be on its way somewhere else again. */
	for (tries = 0; tries < 10 && new == NO_PFN; tries++) {
		copy(w->buf, page_of(f, idx), 1);
		new = mapped_pfn(f->map + h * f->size);
	}
	if (f->keep && before == LOST && (!ret || new != old))
		fail(w, "hugepage %#lx with lost pages was soft-offlined", old);
	if (!ret && new == old)
		fail(w, "soft-offlined page %#lx is still in use", pfn);
	/* Without the flag one error takes all of it away. */
	if (!ret && new == NO_PFN && f->keep)
		fail(w, "hugepage %#lx got lost when it was soft-offlined", old);
	f->head[h] = new;
	if (new == NO_PFN) {
		memset(f->gen + h * f->nr_raw, 0, f->nr_raw);
		punch_file(f, h * f->size, f->size);
	} else if (new != old) {
		check_fresh(w, new, f->nr_raw, since);
	}
}

/*
 * Giving back what was lost
 */

static uint64_t flags_of(unsigned long pfn)
{
	uint64_t flags = 0;

	return read_kpageflags(pfn, 1, &flags) ? flags : 0;
}

/*
 * Give back a plain hugepage, or a page that isn't part of one any more. Not if
 * somebody else has done so: it may be in a hugepage again, that is being hit.
 */
static bool give_back(unsigned long pfn)
{
	const uint64_t tail = KPF_HUGE | KPF_COMPOUND_TAIL;
	unsigned long nr = 1, i;
	bool given = false, pieces, well;

	/* One after the other: two can't both have given back the same page. */
	if (pthread_mutex_lock(&st->giving) == EOWNERDEAD)
		pthread_mutex_consistent(&st->giving);
	if (!st->idle && state_of(pfn) != LOST)
		goto unlock;
	if (flags_of(pfn) & KPF_HUGE) {
		nr = SZ_2M / psize();
		pfn &= ~(nr - 1);
		/* The first 2 MiB of a larger one begin with a head page, too. */
		if (!(flags_of(pfn) & KPF_COMPOUND_HEAD) ||
		    (flags_of(pfn + nr) & tail) == tail) {
			nr = SZ_1G / psize();
			pfn &= ~(nr - 1);
		}
	}
	/* A worker killed between these steps leaves pages in BACK: lost or not. */
	for (i = 0; i < nr; i++)
		change_state(pfn + i, BACK, HIT);
	for (i = 0; i < nr && !st->idle; i++)
		if (state_of(pfn + i) == HIT)
			goto unlock;
	for (i = 0; i < nr; i++)
		change_state(pfn + i, LOST, BACK);
	given = !unpoison(pfn);
	/*
	 * If a kept one has fallen to pieces meanwhile, only its first page was given
	 * back, and the other lost ones are marked.  A surplus one falls to pieces because
	 * all of it was given back.
	 */
	pieces = given && st->idle && nr > 1 && !(flags_of(pfn) & KPF_HUGE);
	for (i = 0; i < nr; i++) {
		if (state_of(pfn + i) != BACK)
			continue;
		well = given && !(pieces && (flags_of(pfn + i) & KPF_HWPOISON));
		if (change_state(pfn + i, BACK, well ? HEALTHY : LOST) && well)
			atomic_fetch_add(&st->nr_back, 1);
	}
unlock:
	pthread_mutex_unlock(&st->giving);
	return given;
}

/* A page leaves its hugepage with a delay. */
static bool give_back_at_last(unsigned long pfn)
{
	unsigned int tries;

	for (tries = 0; tries < 500 && state_of(pfn) == LOST; tries++)
		if (!give_back(pfn))
			usleep(2000);
	return state_of(pfn) != LOST;
}

static void op_give_back(struct worker *w)
{
	unsigned long nr_listed = st->nr_listed;
	unsigned int nr = 16;
	unsigned long pfn;
	uint64_t flags;

	if (st->still || !nr_listed)
		return;
	for (; nr && !st->stop; nr--) {
		pfn = below(w, nr_listed < MAX_LISTED ? nr_listed : MAX_LISTED);
		pfn = st->listed[pfn];
		if (!pfn || state_of(pfn) != LOST)
			continue;
		flags = flags_of(pfn);
		if (!(flags & KPF_HWPOISON) || (flags & (KPF_HUGE | KPF_COMPOUND_TAIL)))
			continue;
		/* The page has no user, except others that give it back. */
		if (give_back_at_last(pfn))
			did(w);
		else
			fail(w, "page %#lx can't be unpoisoned", pfn);
	}
}

static void op_adopt(struct worker *w)
{
	unsigned long head, i;

	if (st->still || !w->nr_stranded)
		return;
	head = w->stranded[--w->nr_stranded];
	for (i = 0; i < w->size / psize() && state_of(head + i) != LOST; i++)
		;
	/* Pins may last longer. */
	if (i < w->size / psize() && give_back(head + i))
		did(w);
}

/* Unpoisoning must be refused as long as a file holds the page. */
static void op_give_back_in_use(struct worker *w)
{
	unsigned long idx;
	struct file *f = any_page(w, &idx);

	if (!f || !f->keep)
		return;
	idx = rather_lost(f, idx);
	if (state_of(pfn_of(f, idx)) != LOST)
		return;
	if (unpoison(one_in(w, 2) ? pfn_of(f, idx) : f->head[idx / f->nr_raw]))
		did(w);
	else
		fail(w, "page %#lx was unpoisoned in its file", pfn_of(f, idx));
}

/*
 * Races
 */

static int take_part(struct peer *p, int fd, char *map)
{
	char *private, *page = map + p->idx * psize();
	static const char zeros[64];
	char buf[64];
	int ret = 0;

	/* The file reads zero. */
	memset(buf, 0xa5, sizeof(buf));
	switch (p->act) {
	case ACT_HIT:
		return shoot(p->how, page, p->pfn);
	case ACT_PUNCH:
		return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, p->len) ?
		       -errno : 0;
	case ACT_PUNCH_PART:
		return fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
				 p->idx * psize(), 2 * psize()) ? -errno : 0;
	case ACT_TRUNCATE:
		return ftruncate(fd, 0) ? -errno : 0;
	case ACT_CLOSE:
		/* A process does that in any case. */
		if (!p->is_process) {
			munmap(map, p->len);
			close(fd);
		}
		return 0;
	case ACT_DROP:
		if (madvise(map, p->len, MADV_DONTNEED))
			return -errno;
		p->effect = mapped_pfn(page) == NO_PFN;
		return 0;
	case ACT_PREAD:
		if (pread(fd, buf, sizeof(buf), p->idx * psize()) < 0)
			return -errno;
		p->effect = !memcmp(buf, zeros, sizeof(buf));
		return p->effect ? 0 : -EBADMSG;
	case ACT_READ:
	case ACT_COPY:
		private = mmap(NULL, p->len, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
		if (private == MAP_FAILED)
			return -errno;
		page = private + p->idx * psize();
		if (!(p->act == ACT_READ ? copy(buf, page, 64) : copy(page, buf, 64)))
			ret = -EFAULT;
		else if (p->act == ACT_COPY)
			p->effect = mapped_pfn(page) != p->pfn;
		else if (memcmp(buf, zeros, sizeof(buf)))
			ret = -EBADMSG;
		else
			p->effect = true;
		munmap(private, p->len);
		return ret;
	case ACT_MOVE:
		return move_page(page, p->node);
	case ACT_SOFT_OFFLINE:
		return madvise(page, psize(), MADV_SOFT_OFFLINE) ? -errno : 0;
	case ACT_UNPIN:
		release_pin(p->pin);
		return 0;
	case ACT_KILL:
		return kill(p->victim, SIGKILL);
	default:
		return 0;
	}
}

static void *be_peer(void *arg)
{
	char path[64], *map;
	struct peer *p = arg;
	int fd;

	/* The worker itself gets the signals of unconsumed errors. */
	prctl(PR_MCE_KILL, PR_MCE_KILL_CLEAR, 0, 0, 0);
	for (;;) {
		sem_wait(&p->wake);
		if (p->act == ACT_QUIT)
			break;
		fd = p->fd;
		map = p->map;
		if (p->is_process) {
			snprintf(path, sizeof(path), "/proc/%d/fd/%d", p->owner, p->fd);
			fd = open(path, O_RDWR);
			map = mmap(NULL, p->len, PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_NORESERVE, fd, 0);
			if (p->act == ACT_DROP && map != MAP_FAILED)
				read_byte(map);
		}
		p->ready = true;
		while (!p->go)
			;
		p->ret = map == MAP_FAILED ? -ENXIO : take_part(p, fd, map);
		if (p->is_process) {
			munmap(map, p->len);
			close(fd);
		}
		sem_post(&p->done);
	}
	return NULL;
}

static void start_peers(struct worker *w)
{
	pthread_t thread;
	unsigned int i;
	pid_t pid;

	for (i = 0; i < 2; i++) {
		struct peer *p = &st->peer[w->nr][i];

		memset(p, 0, sizeof(*p));
		sem_init(&p->wake, 1, 0);
		sem_init(&p->done, 1, 0);
		p->owner = getpid();
		p->is_process = i;
		w->peer[i] = p;
	}
	pid = fork_helper();
	if (!pid) {
		be_peer(w->peer[1]);
		_exit(0);
	}
	if (pid < 0 || pthread_create(&thread, NULL, be_peer, w->peer[0]))
		fail(w, "can't make a peer");
}

static void stop_peers(struct worker *w)
{
	unsigned int i;

	for (i = 0; i < 2; i++) {
		w->peer[i]->act = ACT_QUIT;
		sem_post(&w->peer[i]->wake);
	}
}

/* The races of an error with another operation */
static const struct race {
	enum act act;
	bool plain;		/* also in plain files */
	bool thread;		/* only a thread can do that */
	bool gone;		/* the hugepage may not be in the file afterwards, */
	bool by_pfn;		/* the error can be told by pfn, */
	bool by_madvise;	/* and by address */
} races[] = {
	{ ACT_HIT,		true,	false,	false,	true,	true },
	{ ACT_HIT,		true,	false,	false,	true,	true },
	{ ACT_PUNCH_PART,	true,	false,	false,	true,	true },
	{ ACT_READ,		true,	false,	false,	true,	true },
	{ ACT_PREAD,		true,	false,	false,	true,	true },
	{ ACT_COPY,		true,	false,	false,	true,	true },
	{ ACT_DROP,		true,	false,	false,	true,	true },
	{ ACT_PUNCH,		false,	false,	true,	true,	true },
	{ ACT_PUNCH,		false,	false,	true,	true,	true },
	{ ACT_TRUNCATE,		true,	false,	true,	true,	true },
	{ ACT_TRUNCATE,		true,	false,	true,	true,	true },
	{ ACT_CLOSE,		true,	true,	true,	true,	true },
	{ ACT_CLOSE,		true,	false,	true,	true,	false },
	{ ACT_MOVE,		false,	false,	true,	true,	true },
	{ ACT_SOFT_OFFLINE,	false,	false,	true,	false,	true },
	{ ACT_UNPIN,		true,	true,	true,	true,	false },
	{ ACT_KILL,		true,	true,	true,	true,	false },
	{ ACT_NONE,		true,	true,	true,	true,	false },
};

static const char * const act_names[NR_ACTS] = {
	[ACT_NONE] = "the end of the file",
	[ACT_HIT] = "another error",
	[ACT_PUNCH] = "punching",
	[ACT_PUNCH_PART] = "punching a part",
	[ACT_TRUNCATE] = "truncation",
	[ACT_CLOSE] = "closing",
	[ACT_DROP] = "MADV_DONTNEED",
	[ACT_READ] = "reading",
	[ACT_PREAD] = "pread",
	[ACT_COPY] = "copying",
	[ACT_MOVE] = "moving",
	[ACT_SOFT_OFFLINE] = "soft-offlining",
	[ACT_UNPIN] = "unpinning",
	[ACT_KILL] = "killing the last user",
};

/* Somebody else for whom there is nothing left but the mapping. */
static pid_t leave_to_child(struct worker *w, struct file *f)
{
	struct helper h;

	if (!start_helper(&h))
		return -1;
	if (!h.pid) {
		read_byte(f->map);
		if (tell(&h))
			pause();
		_exit(1);
	}
	if (!wait_for_word(&h))
		fail(w, "can't make a child");
	close(h.line);
	return h.pid;
}

/* One error in a hugepage of a file of its own, and what happens meanwhile. */
struct race_run {
	const struct race *race;
	struct peer *peer;
	enum how how;
	bool wild;		/* the injector doesn't hold the hugepage */
	struct file f;
	struct pin pin;
	unsigned long head;
	unsigned long idx;
	unsigned long other;	/* raw page that the peer is about */
	int ret;
};

static bool peer_is_last(struct race_run *c)
{
	return c->race->act == ACT_UNPIN || c->race->act == ACT_KILL ||
	       c->race->act == ACT_NONE ||
	       (c->race->act == ACT_CLOSE && c->peer->is_process);
}

/* Does the peer lose a page, too? */
static bool peer_loses(struct race_run *c)
{
	return c->race->act == ACT_HIT || c->race->act == ACT_SOFT_OFFLINE;
}

static bool peer_has_lost(struct race_run *c)
{
	return c->race->act == ACT_HIT ? was_hit(c->peer->ret) : !c->peer->ret;
}

static bool prepare_race(struct worker *w, struct race_run *c)
{
	const struct race *r = c->race;
	struct file *f = &c->f;
	struct peer *p = c->peer;

	c->idx = below(w, f->nr_raw - 1);
	c->other = one_in(w, 2) ? c->idx : below(w, f->nr_raw - 1);
	/* The first page looks lost for others: soft-offlining would leave it. */
	if (r->act == ACT_SOFT_OFFLINE && !c->other)
		c->other = 1;
	if (!fill_in(w, f, 0))
		return false;
	c->head = f->head[0];
	/* Another worker's error may have come with it. */
	if (state_of_all(c->head, f->nr_raw) != HEALTHY)
		return false;

	p->act = r->act;
	p->how = one_in(w, 2) ? BY_MADVISE : BY_PFN;
	p->fd = f->fd;
	p->map = f->map;
	p->len = f->size;
	p->idx = c->other;
	p->pfn = c->head + c->other;
	p->pin = &c->pin;
	p->effect = false;
	p->ready = false;
	p->go = false;
	if (r->act == ACT_MOVE || r->act == ACT_SOFT_OFFLINE) {
		p->node = move_page(f->map, -1);
		if (p->node >= 0 && r->act == ACT_MOVE)
			p->node = other_node(p->node);
		if (p->node < 0 || !node_has_room(p->node, f->size))
			return false;
	}
	if (r->act == ACT_UNPIN) {
		c->pin.used = make_pin(w, f, 0, &c->pin);
		if (!c->pin.used)
			return false;
	}
	if (r->act == ACT_KILL)
		p->victim = leave_to_child(w, f);
	return true;
}

static void run_race(struct worker *w, struct race_run *c)
{
	unsigned long delay = one_in(w, 8) ? 0 : below(w, 20000);
	bool peer_is_late = one_in(w, 2);
	struct peer *p = c->peer;
	struct file *f = &c->f;

	if (!change_state(c->head + c->idx, HEALTHY, HIT))
		fail(w, "somebody else hits page %#lx", c->head + c->idx);
	if (peer_loses(c) && c->other != c->idx)
		change_state(c->head + c->other, HEALTHY, HIT);
	if (c->wild) {
		atomic_fetch_add(&st->nr_wild, 1);
		__atomic_store_n(&region_of(c->head)->wild, 1, __ATOMIC_SEQ_CST);
	} else if (c->race->gone) {
		atomic_fetch_add(&st->nr_loose, 1);
	}

	if (p->act != ACT_NONE) {
		sem_post(&p->wake);
		while (!p->ready && !st->stop)
			sched_yield();
	}
	if (peer_is_last(c)) {
		close(f->fd);
		munmap(f->map, f->size);
		f->fd = -1;
	}
	p->go = !peer_is_late;
	/* These take long: let some of them come to their end. */
	if (p->go && (p->act == ACT_MOVE || p->act == ACT_SOFT_OFFLINE ||
		      p->act == ACT_COPY))
		usleep(5 * delay);
	for (; delay; delay--)
		asm volatile("");
	p->go = true;
	c->ret = shoot(c->how, f->map + c->idx * psize(), c->head + c->idx);
	if (p->act != ACT_NONE)
		while (sem_wait(&p->done))
			;
	if (p->act == ACT_KILL)
		waitpid(p->victim, NULL, 0);
	if (p->act == ACT_CLOSE && !p->is_process)
		f->fd = -1;
}

/* Record the pages that were lost: by address, the one that is mapped there now. */
static void record_race(struct race_run *c)
{
	unsigned long new = c->f.fd < 0 ? NO_PFN : mapped_pfn(c->f.map);
	unsigned long pfn = c->head + c->idx;

	if (!was_hit(c->ret)) {
		if (!peer_loses(c) || c->other != c->idx || !peer_has_lost(c))
			change_state(pfn, HIT, HEALTHY);
	} else if (c->how == BY_MADVISE && new != NO_PFN && new != c->head) {
		change_state(pfn, HIT, HEALTHY);
		note_hugepage(new, c->f.nr_raw);
		set_lost(new + c->idx);
	} else {
		set_lost(pfn);
	}

	pfn = c->head + c->other;
	if (peer_loses(c) && peer_has_lost(c)) {
		if (c->race->act == ACT_SOFT_OFFLINE && state_of(pfn) != LOST)
			atomic_fetch_add(&st->nr_soft, 1);
		set_lost(pfn);
	} else if (peer_loses(c) && c->other != c->idx) {
		change_state(pfn, HIT, HEALTHY);
	}

	if (c->wild) {
		st->wild_ns = now_ns();
		region_of(c->head)->wild_ns = st->wild_ns;
		__atomic_store_n(&region_of(c->head)->wild, 0, __ATOMIC_SEQ_CST);
		atomic_fetch_sub(&st->nr_wild, 1);
	} else if (c->race->gone) {
		atomic_fetch_sub(&st->nr_loose, 1);
	}
}

/* Check the results of both sides. */
static bool race_was_right(struct race_run *c)
{
	int ret = c->ret, other = c->peer->ret;

	switch (c->race->act) {
	case ACT_HIT:
		/* In a plain file the one may take it all away from the other. */
		if (!c->f.keep)
			return was_hit(ret) || was_hit(other);
		if (c->idx == c->other)
			return !ret != !other;
		return !ret && !other;
	case ACT_PUNCH:
	case ACT_TRUNCATE:
	case ACT_DROP:
		if (other)
			return false;
		break;
	case ACT_READ:
	case ACT_PREAD:
		if (other == -EBADMSG)
			return false;
		/* A kept hugepage loses one page, and none beside it. */
		if (c->f.keep && c->idx != c->other && (other == -EFAULT || other == -EIO))
			return false;
		break;
	case ACT_PUNCH_PART:
		if (c->f.keep && c->idx != c->other && c->idx != c->other + 1 &&
		    other == -EIO)
			return false;
		break;
	default:
		break;
	}

	/* While it is being allocated anew, a hugepage can't be handled. */
	if (c->wild)
		return !ret || ret == -EBUSY;
	if (c->race->gone && (ret == -EFAULT || ret == -ENOMEM))
		return true;
	return c->f.keep ? !ret : was_hit(ret);
}

/*
 * Of moving, the peer knows to which node; what is taken out of the file is gone.  The
 * end of a round finds hugepages that closing or killing has left in use.
 */
static bool peer_has_failed(struct race_run *c)
{
	switch (c->race->act) {
	case ACT_NONE:
		return false;
	case ACT_HIT:
		return !was_hit(c->peer->ret);
	case ACT_MOVE:
		return c->peer->ret != c->peer->node;
	case ACT_PUNCH:
		return c->peer->ret || mapped_pfn(c->f.map) == c->head;
	case ACT_TRUNCATE:
		return c->peer->ret || lseek(c->f.fd, 0, SEEK_END);
	case ACT_UNPIN:
		return c->pin.used;
	case ACT_READ:
	case ACT_PREAD:
	case ACT_COPY:
	case ACT_DROP:
		return !c->peer->effect;
	default:
		return c->peer->ret;
	}
}

/* Look at the contents of the file when the race is over. */
static void look_again(struct worker *w, struct race_run *c)
{
	struct file *f = &c->f;

	f->head[0] = mapped_pfn(f->map);
	if (f->head[0] == NO_PFN)
		f->head[0] = c->head;
	if (f->head[0] != c->head) {
		note_hugepage(f->head[0], f->nr_raw);
		return;
	}
	if (c->race->gone && mapped_pfn(f->map) == NO_PFN)
		return;
	if (madvise(f->map, f->size, MADV_DONTNEED))
		fail(w, "MADV_DONTNEED: %s", strerror(errno));
	read_page(w, f, c->idx, f->map, true);
}

static void op_race(struct worker *w)
{
	const struct race *r = &races[below(w, ARRAY_SIZE(races))];
	struct race_run c = {
		.race = r,
		.peer = w->peer[r->thread ? 0 : below(w, 2)],
		.how = BY_MADVISE,
		.f.fd = -1,
	};

	if (r->by_pfn && (!r->by_madvise || one_in(w, 2)))
		c.how = BY_PFN;
	if (st->real && (!r->by_pfn || r->act == ACT_HIT))
		return;
	if (st->real && r->act == ACT_COPY && !st->copy_recovers)
		return;
	if (st->real)
		c.how = BY_SCRUB;
	/* It must still be a hugepage when it is hit, if only one in the pool. */
	c.wild = r->gone && c.how != BY_MADVISE;
	if (c.wild && !st->still)
		return;

	if (!open_file(w, &c.f, st->real || !r->plain || !one_in(w, 4), 1))
		return;
	if (prepare_race(w, &c)) {
		run_race(w, &c);
		record_race(&c);
		if (!race_was_right(&c))
			fail(w, "error %d in page %#lx against %d by %s in %#lx: %d, %d", c.how,
			     c.head + c.idx, r->act, c.peer->is_process ? "process" : "thread",
			     c.head + c.other, c.ret, c.peer->ret);
		if (was_hit(c.ret) && !peer_has_failed(&c))
			did(w);
		tally(&st->race[r->act], w->effect);
		if (c.f.fd >= 0)
			look_again(w, &c);
	}
	if (c.f.fd >= 0) {
		close_file(w, &c.f);
	} else {
		leave(w, &c.f, 0);
		free(c.f.gen);
		free(c.f.given_up);
	}
}

/*
 * The operations of the workers
 */

static const struct op ops[] = {
	{ "create",		16,	16,	false,	true,	op_create },
	{ "close",		8,	4,	false,	false,	op_close },
	{ "write",		8,	8,	false,	true,	op_write },
	{ "read",		10,	10,	false,	true,	op_read },
	{ "read afresh",	12,	12,	false,	false,	op_read_afresh },
	{ "pread",		8,	12,	false,	false,	op_pread },
	{ "populate",		4,	4,	false,	false,	op_populate },
	{ "copy",		3,	3,	false,	false,	op_private },
	{ "lose",		40,	30,	true,	true,	op_lose },
	{ "lose again",		5,	2,	true,	false,	op_lose_again },
	{ "punch",		6,	3,	false,	false,	op_punch },
	{ "punch a part",	6,	8,	false,	false,	op_punch_part },
	{ "truncate",		4,	2,	false,	false,	op_truncate },
	{ "child",		3,	3,	false,	false,	op_child },
	{ "pin",		6,	6,	false,	false,	op_pin },
	{ "unpin",		5,	5,	false,	false,	op_unpin },
	{ "lose pinned",	6,	0,	false,	false,	op_lose_pinned },
	{ "move",		6,	6,	false,	false,	op_move },
	{ "heal",		6,	6,	false,	false,	op_heal },
	{ "give up",		4,	2,	false,	false,	op_give_up },
	{ "soft-offline",	3,	3,	false,	false,	op_soft_offline },
	{ "give back",		12,	0,	false,	false,	op_give_back },
	{ "give back a plain",	6,	0,	false,	false,	op_adopt },
	{ "give back in use",	3,	3,	false,	false,	op_give_back_in_use },
	{ "race",		20,	15,	true,	false,	op_race },
	{ }
};

static unsigned int weight_of(const struct op *op)
{
	return st->real ? op->weight_real : op->weight;
}

/* Hugepages can't move if there is one node. */
static bool is_possible(const struct op *op)
{
	return weight_of(op) && (op->run != op_move || st->has_nodes);
}

/* In still rounds nothing is given back. */
static unsigned int weight_now(const struct op *op)
{
	return st->still && (op->run == op_give_back || op->run == op_adopt) ? 0 :
	       weight_of(op);
}

static const struct op *any_op(struct worker *w)
{
	unsigned long sum = 0, n;
	const struct op *op;

	for (op = ops; op->name; op++)
		sum += weight_now(op);
	n = below(w, sum);
	for (op = ops; op->name; op++) {
		sum = weight_now(op);
		if (n < sum)
			break;
		n -= sum;
	}
	return op;
}

/* All CPUs have their share, those too that are kept free of others. */
static void spread(unsigned int nr)
{
	cpu_set_t one;

	CPU_ZERO(&one);
	CPU_SET(nr % sysconf(_SC_NPROCESSORS_ONLN), &one);
	if (!st->real)
		sched_setaffinity(0, sizeof(one), &one);
}

static void join_cgroup(void)
{
	if (st->has_group && !write_group(GROUP, "cgroup.procs", "0"))
		fail(NULL, "can't join the cgroup");
}

/* There are few hugepages of 1 GiB: heal one while another is free. */
static void heal_first(struct worker *w)
{
	struct file *f = &w->file[0];
	unsigned long idx;

	w->op = "heal first";
	if (!open_file(w, f, true, 1) || !fill_in(w, f, 0))
		return;
	idx = below(w, f->nr_raw);
	if (hit(w, f, idx, BY_PFN))
		zero_lost(w, f, idx);
}

static void be_worker(unsigned int nr)
{
	struct worker w = {
		.nr = nr,
		.op = "start",
		.size = st->giant && !nr ? SZ_1G : SZ_2M,
	};
	const struct op *op;
	unsigned int i;

	join_cgroup();
	catch_sigbus();
	/* For the peers: they go where they were started. */
	spread(nr + 1);
	w.buf = aligned_alloc(psize(), 4 * psize());
	for (i = 0; i < NR_FILES; i++)
		w.file[i].fd = -1;
	prctl(PR_MCE_KILL, PR_MCE_KILL_SET, PR_MCE_KILL_EARLY, 0, 0);
	start_peers(&w);
	spread(nr);

	if (w.size > SZ_2M && st->still)
		heal_first(&w);
	for (w.step = 0; !st->stop; w.step++) {
		w.random = mix(st->seed ^ mix(st->round << 40 | (uint64_t)nr << 32 | w.step));
		op = any_op(&w);
		w.op = op->name;
		w.effect = false;
		enter_step(op->alone);
		find_again(&w);
		if (!st->moving || op->moving) {
			op->run(&w);
			tally(&st->op[op - ops], w.effect);
		}
		leave_step();
	}

	for (i = 0; i < NR_FILES; i++)
		close_file(&w, &w.file[i]);
	for (i = 0; i < NR_PINS; i++)
		if (w.pin[i].used)
			release_pin(&w.pin[i]);
	stop_peers(&w);
	_exit(0);
}

/* At no time may a lost page be free, or belong to anybody once it is released. */
static void be_flags_checker(void)
{
	const uint64_t bad = KPF_IN_USE | KPF_COMPOUND_HEAD | KPF_COMPOUND_TAIL;
	uint64_t random = mix(st->seed ^ st->round);
	unsigned int tries, seen;
	unsigned long pfn, nr;
	uint64_t flags;

	while (!st->stop) {
		nr = st->nr_listed;
		if (!nr) {
			usleep(1000);
			continue;
		}
		random = mix(random);
		pfn = st->listed[random % (nr < MAX_LISTED ? nr : MAX_LISTED)];
		for (tries = seen = 0; tries < 2500 && !st->stop; tries++) {
			if (!pfn || state_of(pfn) != LOST)
				break;
			enter_step(false);
			flags = flags_of(pfn);
			leave_step();
			if (state_of(pfn) != LOST)
				break;
			/* It takes two looks to be sure, for one isn't atomic. */
			if ((flags & KPF_BUDDY) && seen++) {
				fail(NULL, "lost page %#lx is free: %#lx", pfn, flags);
				break;
			}
			if (flags & KPF_BUDDY)
				continue;
			if ((flags & KPF_HWPOISON) && ((flags & KPF_HUGE) || !(flags & bad)))
				break;
			/* The hugepage is on its way between the two. */
			usleep(2000);
		}
		if (tries == 2500)
			fail(NULL, "lost page %#lx is in use: %#lx", pfn, flags);
	}
}

/* Whatever else is allocated, no lost page is part of it. */
static void allocate(const char *kind, int fd, bool huge)
{
	const size_t len = 4 * SZ_2M;
	unsigned long pfn, i, nr;
	uint64_t entries[512];
	char *map, *p;

	map = mmap(NULL, len, PROT_READ | PROT_WRITE,
		   fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED, fd, 0);
	if (map == MAP_FAILED)
		return;
	madvise(map, len, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	madvise(map, len, MADV_POPULATE_WRITE);
	for (p = map; p < map + len; p += nr * psize()) {
		nr = (map + len - p) / psize();
		if (nr > 512)
			nr = 512;
		if (!read_pagemap(p, nr, entries))
			break;
		for (i = 0; i < nr; i++) {
			pfn = PAGEMAP_PFN(entries[i]);
			if (PAGEMAP_PRESENT(entries[i]) && pfn < st->nr_pages &&
			    (state_of(pfn) == LOST || state_of(pfn) == ALIEN))
				fail(NULL, "lost page %#lx is part of %s", pfn, kind);
		}
	}
	munmap(map, len);
}

static void be_memory_checker(void)
{
	int fd;

	while (!st->stop) {
		enter_step(false);
		allocate("anonymous memory", -1, false);
		allocate("anonymous memory", -1, true);
		fd = memfd_create("hugetlb-mfr-stress", 0);
		if (fd >= 0 && !ftruncate(fd, 4 * SZ_2M))
			allocate("the page cache", fd, false);
		close(fd);
		leave_step();
		usleep(st->real ? 200000 : 10000);
	}
}

/*
 * Rounds
 */

/* The result of a scan of all memory */
struct scan {
	unsigned long nr_huge;		/* raw pages in hugepages */
	unsigned long nr_lost;
	unsigned long nr_open;		/* being hit when their worker was killed */
	unsigned long nr_unknown;
	unsigned long nr_offlined;	/* hugepages that have left a pool */
	unsigned long last_offlined;
};

/* Compare the recorded state of a page with the kernel's, when all workers are gone. */
static void count_page(struct scan *c, unsigned long pfn, uint64_t flags)
{
	bool huge = flags & KPF_HUGE, bad = flags & KPF_HWPOISON;
	enum page_state s = state_of(pfn);
	unsigned long id;

	if (s == HIT || s == BACK) {
		c->nr_open++;
		if (bad && s == HIT)
			set_lost(pfn);
		s = bad ? LOST : HEALTHY;
		page_states[pfn] = s;
	}
	if (s == LOST && !bad)
		fail(NULL, "lost page %#lx looks healthy: %#lx", pfn, flags);
	if (s == LOST && !huge && (flags & (KPF_IN_USE | KPF_BUDDY)))
		fail(NULL, "lost page %#lx is in use: %#lx", pfn, flags);
	if (s == HEALTHY && bad && !huge) {
		c->nr_unknown++;
		set_lost(pfn);
		s = LOST;
	}
	if (s != LOST)
		return;
	c->nr_lost++;
	/* One for each hugepage that has fallen to pieces. */
	id = pfn / ((region_of(pfn)->giant ? SZ_1G : SZ_2M) / psize());
	if (!huge && id != c->last_offlined) {
		c->nr_offlined++;
		c->last_offlined = id;
	}
}

/* Look at all memory, or in short at what were hugepages in this test. */
static void count_pages(struct scan *c, bool first, bool all)
{
	const unsigned long nr = SZ_2M / psize();
	uint64_t *flags = calloc(nr, sizeof(*flags));
	unsigned long start, i;

	memset(c, 0, sizeof(*c));
	c->last_offlined = -1UL;
	for (start = 0; start + nr <= st->nr_pages; start += nr) {
		bool look = all || region_of(start)->seen;

		if (!read_kpageflags(start, look ? nr : 1, flags))
			continue;
		if (flags[0] & KPF_HUGE)
			c->nr_huge += nr;
		for (i = 0; look && i < nr; i++)
			if (!first)
				count_page(c, start + i, flags[i]);
			else if (flags[i] & KPF_HWPOISON)
				page_states[start + i] = ALIEN;
	}
	free(flags);
}

static unsigned long next_lost(unsigned long pfn)
{
	while (pfn < st->nr_pages && page_states[pfn] != LOST && page_states[pfn] != HIT &&
	       page_states[pfn] != BACK)
		pfn++;
	return pfn;
}

static bool pool_is_at_rest(unsigned long size)
{
	struct pool pool = pool_read(size);

	return pool.free == pool.nr && !pool.resv && !pool.surplus;
}

/* Raw pages in hugepages, by the counters of the pools */
static unsigned long nr_pooled(void)
{
	unsigned long nr = pool_get(SZ_2M, "nr_hugepages") * (SZ_2M / psize());

	if (st->giant)
		nr += pool_get(SZ_1G, "nr_hugepages") * (SZ_1G / psize());
	return nr;
}

/* Raw pages in hugepages, by their flags */
static unsigned long nr_seen(void)
{
	const unsigned long nr = SZ_2M / psize();
	unsigned long pfn, sum = 0;

	for (pfn = 0; pfn + nr <= st->nr_pages; pfn += nr)
		if (flags_of(pfn) & KPF_HUGE)
			sum += nr;
	return sum;
}

/*
 * Released hugepages go at last, and plain ones come back. The last pin may be dropped
 * late, by a worker of io_uring: the pool doesn't count the hugepage any more
 * before another worker has anything to free.
 */
static void wait_for_rest(void)
{
	unsigned long pfn;
	unsigned int tries;

	for (tries = 0; tries < 500; tries++) {
		if (pool_is_at_rest(SZ_2M) && (!st->giant || pool_is_at_rest(SZ_1G))) {
			/* Setting the size of a pool waits for the worker that frees. */
			pool_set(SZ_2M, "nr_hugepages",
				 pool_get(SZ_2M, "nr_hugepages"));
			if (nr_seen() == nr_pooled())
				return;
		}
		for (pfn = next_lost(0); !undo->mce_seen && pfn < st->nr_pages;
		     pfn = next_lost(pfn + 1))
			if (flags_of(pfn) & KPF_HUGE)
				give_back(pfn);
		if (tries)
			usleep(10000);
	}
	fail(NULL, "the pool is not at rest: %ld of %ld free, %ld reserved, %ld surplus",
	     pool_get(SZ_2M, "free_hugepages"), pool_get(SZ_2M, "nr_hugepages"),
	     pool_get(SZ_2M, "resv_hugepages"), pool_get(SZ_2M, "surplus_hugepages"));
}

/* Soft-offlining takes a page off the per-cpu lists, and so empties them. */
static void drain(unsigned long pfn)
{
	char addr[32];
	int fd;

	snprintf(addr, sizeof(addr), "0x%lx\n", pfn * psize());
	fd = open(SOFT_OFFLINE_PAGE, O_WRONLY);
	if (fd >= 0 && write(fd, addr, strlen(addr)) > 0) {
		set_lost(pfn);
		atomic_fetch_add(&st->nr_soft, 1);
		if (!undo->mce_seen)
			give_back(pfn);
	}
	close(fd);
}

/*
 * Pages of what was a hugepage that are nobody's, and yet not free.  Some of them
 * are only on their way: if there were @before, try to bring a few home, from all
 * over memory, since each brings home its zone's.  (Some are the kernel's own, and
 * stay.)
 */
static unsigned long nr_missing(unsigned int round, unsigned long before,
				unsigned long *one_of_them)
{
	const unsigned long nr = SZ_2M / psize(), every = before / 8 + 1;
	unsigned long pfn, i, sum = 0;
	uint64_t flags[512];

	for (pfn = 0; pfn + nr <= st->nr_pages; pfn += nr) {
		if (!region_of(pfn)->seen || nr > 512 || !read_kpageflags(pfn, nr, flags))
			continue;
		for (i = 0; i < nr; i++) {
			if (state_of(pfn + i) != HEALTHY ||
			    (flags[i] & (KPF_BUDDY | KPF_IN_USE)))
				continue;
			*one_of_them = pfn + i;
			if (sum++ % every == round % every && before)
				drain(pfn + i);
		}
	}
	return sum;
}

static void check_cgroup(const char *name)
{
	static const char * const sizes[] = { "2MB", "1GB" };
	char path[PATH_MAX];
	long usage = 0;
	unsigned int i;

	for (i = 0; st->has_group && i < 2; i++) {
		snprintf(path, sizeof(path), MOUNT GROUP "/hugetlb.%s.%s", sizes[i], name);
		if (!wait_until(!read_long(path, &usage) || !usage, 10000))
			fail(NULL, "%s is %ld", path, usage);
	}
}

/* Hugepages as the memory controller counts them, or -1 */
static long memory_charge(void)
{
	char stat[8192], *charge = NULL;

	if (read_text(MOUNT GROUP "/memory.stat", stat, sizeof(stat)) > 0)
		charge = strstr(stat, "\nhugetlb ");
	return charge ? atol(charge + strlen("\nhugetlb ")) : -1;
}

/* The statistics of a memory cgroup take two seconds. */
static void check_memory_cgroup(void)
{
	if (st->counts_memory && !wait_until(!memory_charge(), 20000))
		fail(NULL, "memory.stat: hugetlb is %ld", memory_charge());
}

static void end_round(struct pool *before, bool killed, bool last)
{
	bool debug = !access(KMEMLEAK, F_OK);
	/* The kernel keeps two stacks of dead threads for each CPU, larger ones with KASAN. */
	unsigned long stacks = 2 * sysconf(_SC_NPROCESSORS_ONLN) *
			       (((debug ? 32 : 16) << 10) / psize());
	unsigned long limit = debug ? NR_UNKNOWN_DEBUG : NR_UNKNOWN;
	unsigned long pfn, missing = 0, tries, loose = st->nr_loose;
	struct pool pool;
	long expected, offlined;
	struct scan c;

	/* Hugepages that are still used are surplus then: freeing them ends them. */
	if (!st->still && st->round % 4 == 1)
		pool_set(SZ_2M, "nr_hugepages", 0);
	wait_for_rest();
	/* A worker may have been killed before it noted where its hugepage had moved. */
	count_pages(&c, false, last || loose);
	if (c.nr_unknown > loose)
		fail(NULL, "%lu pages are poisoned that nobody has hit", c.nr_unknown);
	st->nr_loose = 0;
	if (c.nr_open && !killed)
		fail(NULL, "%lu pages are neither lost nor healthy", c.nr_open);

	pool = pool_read(SZ_2M);
	expected = nr_pooled();
	if (c.nr_huge != expected)
		fail(NULL, "%lu pages in hugepages, but %lu in the pools", c.nr_huge, expected);
	/* Hugepages offlined by a machine check stay offline. */
	offlined = c.nr_offlined - st->nr_offlined;
	st->nr_offlined = undo->mce_seen ? c.nr_offlined : 0;
	if (st->still && !st->giant && pool.nr != before->nr - offlined)
		fail(NULL, "%ld hugepages of %ld with %ld offlined", pool.nr, before->nr,
		     offlined);

	expected = st->corrupted + c.nr_lost * (psize() >> 10);
	if (hardware_corrupted() != expected)
		fail(NULL, "HardwareCorrupted is %ld kB instead of %ld", hardware_corrupted(),
		     expected);
	/* The effect of a step whose worker was killed is unknown. */
	expected = st->handled + st->nr_lost - st->nr_soft;
	if (st->handled >= 0 && labs(mf_stat("total") - expected) > (long)c.nr_open)
		fail(NULL, "%ld failures counted instead of %ld", mf_stat("total"), expected);
	if (st->handled >= 0)
		st->handled += mf_stat("total") - expected;
	check_cgroup("current");
	check_cgroup("rsvd.current");
	check_memory_cgroup();

	for (pfn = next_lost(0); !undo->mce_seen && pfn < st->nr_pages;
	     pfn = next_lost(pfn + 1))
		if (!give_back_at_last(pfn))
			fail(NULL, "page %#lx can't be unpoisoned: %#lx", pfn, flags_of(pfn));
	if (!undo->mce_seen && hardware_corrupted() != st->corrupted)
		fail(NULL, "HardwareCorrupted is %ld kB at last instead of %ld",
		     hardware_corrupted(), st->corrupted);

	for (tries = 0; tries < 16; tries++) {
		missing = nr_missing(tries, missing, &pfn);
		if (!missing)
			break;
		usleep(5000);
	}
	if (!st->round)
		st->missing = missing;
	if (missing > limit + stacks || missing > st->missing + limit / 2 + stacks)
		fail(NULL, "%lu healthy pages are missing, %#lx for one, after the first round %lu",
		     missing, pfn, st->missing);
	if (last)
		ksft_print_msg("%lu healthy pages missing, after the first round %lu\n",
			       missing, st->missing);
	if (st->verbose)
		ksft_print_msg("round %lu: %lu lost, %ld of %ld offlined, %lu hits, %lu missing\n",
			       st->round, c.nr_lost, offlined, before->nr,
			       st->nr_hits, missing);
}

static void resize_pool(unsigned long size, long nr)
{
	long before = pool_get(size, "nr_hugepages"), after;
	bool giant = size == SZ_1G;

	pool_set(size, "nr_hugepages", nr);
	after = pool_get(size, "nr_hugepages");
	if (nr > before)
		tally(&st->change[giant ? CHANGE_GROW_1G : CHANGE_GROW], after > before);
	else if (nr < before)
		tally(&st->change[giant ? CHANGE_SHRINK_1G : CHANGE_SHRINK], after < before);
}

static void demote(void)
{
	long before = pool_get(SZ_1G, "nr_hugepages");

	pool_set(SZ_1G, "demote", 1);
	tally(&st->change[CHANGE_DEMOTE], pool_get(SZ_1G, "nr_hugepages") < before);
}

/* Wait until nobody is at work. */
static bool stop_world(void)
{
	struct timespec limit;

	clock_gettime(CLOCK_REALTIME, &limit);
	limit.tv_sec += HANGS_MS / 1000;
	if (!pthread_rwlock_timedwrlock(&st->step_lock, &limit))
		return true;
	fail(NULL, "somebody hangs at work");
	return false;
}

/* Nobody is at work. Give back what a memory block has lost, if nobody has it. */
static bool block_is_healthy(long block)
{
	unsigned long pfn = block * pages_in_block(), end = pfn + pages_in_block();

	for (; pfn < end && pfn < st->nr_pages; pfn++) {
		if (state_of(pfn) == LOST && !(flags_of(pfn) & KPF_HUGE))
			give_back_at_last(pfn);
		if (state_of(pfn) != HEALTHY)
			return false;
	}
	return true;
}

/* How many mapped hugepages begin in a memory block? */
static unsigned long nr_used(long block)
{
	unsigned long pfn = block * pages_in_block(), end = pfn + pages_in_block(), nr = 0;

	for (; pfn < end; pfn += SZ_2M / psize())
		nr += (~flags_of(pfn) & (KPF_HUGE | KPF_COMPOUND_HEAD | KPF_MMAP)) == 0;
	return nr;
}

/* A memory block that has had hugepages of this test and has lost nothing, or -1. */
static long healthy_block(uint64_t random)
{
	unsigned int i, tries = 0;
	unsigned long pfn;

	/* Pages on their way out of a hugepage arrive. */
	pool_set(SZ_2M, "nr_hugepages", pool_get(SZ_2M, "nr_hugepages"));
	for (i = 0; pages_in_block() && i < 4 * st->nr_regions && tries < 32; i++) {
		random = mix(random);
		pfn = random % st->nr_regions * (SZ_2M / psize());
		if (!region_of(pfn)->seen)
			continue;
		/* Rather one with hugepages that have to go elsewhere. */
		if ((tries++ > 24 || nr_used(block_of(pfn))) &&
		    block_is_online(block_of(pfn)) && block_is_healthy(block_of(pfn)))
			return block_of(pfn);
	}
	return -1;
}

static void ring(int nr)
{
}

/* Take a memory block offline, and back.  Meanwhile pages in it may be lost. */
static void take_offline(long block)
{
	const struct itimerval never = {}, soon = {
		.it_value.tv_sec = access(KMEMLEAK, F_OK) ? OFFLINE_S : OFFLINE_DEBUG_S,
	};
	unsigned long pfn = block * pages_in_block(), end = pfn + pages_in_block();
	struct sigaction sa = { .sa_handler = ring };
	bool used = nr_used(block);
	int ret;

	sigaction(SIGALRM, &sa, NULL);
	setitimer(ITIMER_REAL, &soon, NULL);
	ret = change_block(block, "offline");
	setitimer(ITIMER_REAL, &never, NULL);
	/* Some architectures never let go what was there at boot. */
	if (ret != -EPERM)
		tally(&st->change[used ? CHANGE_MOVE : CHANGE_OFFLINE], !ret);
	if (ret)
		return;
	/* None is released meanwhile, so all of them are still in use. */
	for (; pfn < end && pfn < st->nr_pages; pfn++)
		if (state_of(pfn) == LOST)
			fail(NULL, "lost page %#lx went offline with block %ld", pfn, block);
	ret = change_block(block, "online");
	if (ret)
		fail(NULL, "block %ld doesn't go online again: %d", block, ret);
}

/*
 * Let memory go offline, or the pool of 1 GiB grow, which move healthy hugepages.  The
 * workers look where theirs are before each step.
 */
static void move_hugepages(uint64_t random)
{
	bool grow = st->giant && pool_get(SZ_1G, "nr_hugepages") < POOL_1G;
	long block = -1;

	if (!stop_world())
		return;
	if (!grow)
		block = healthy_block(random);
	st->moving = true;
	leave_step();
	if (grow)
		resize_pool(SZ_1G, POOL_1G);
	else if (block >= 0)
		take_offline(block);
	if (!stop_world())
		return;
	st->moving = false;
	st->nr_moves++;
	leave_step();
}

/* Only in rounds that aren't still. */
static void touch_pool(uint64_t random, bool first)
{
	pool_set(SZ_2M, "nr_overcommit_hugepages", random % 16);
	resize_pool(SZ_2M, POOL_2M - 64 + (random >> 8) % 80);
	/* A slow kernel may not get to a second time. */
	if (first || !(random >> 40 & 15))
		move_hugepages(random);
	if (!st->giant || (random >> 32 & 15) || pool_get(SZ_1G, "nr_hugepages") < POOL_1G)
		return;
	if (random >> 36 & 1)
		demote();
	else
		resize_pool(SZ_1G, POOL_1G - 1);
}

/*
 * Before anybody is at work: lose a page of a hugepage of 1 GiB while it is demoted, and
 * while the pool of smaller ones grows, which demotion waits for.  (If that shrank, it
 * could free the lost page as healthy before it is reported again.)
 */
static void hit_and_demote(uint64_t random)
{
	const unsigned long nr_raw = SZ_1G / psize(), nr = st->nr_pages / nr_raw;
	const uint64_t tail = KPF_HUGE | KPF_COMPOUND_TAIL;
	unsigned long i, pfn = 0;
	int ret, again = 0;
	uint64_t flags;
	pid_t pid[2];

	for (i = 0; i < nr && !pfn; i++) {
		pfn = (random + i) % nr * nr_raw;
		if ((flags_of(pfn + SZ_2M / psize()) & tail) != tail)
			pfn = 0;
	}
	if (!pfn)
		return;
	/* Not the first page of a smaller hugepage, whose mark is that of all of it. */
	pfn += (random >> 8) % nr_raw | 1;
	region_of(pfn)->seen = 1;
	change_state(pfn, HEALTHY, HIT);
	fflush(stdout);
	for (i = 0; i < 2; i++) {
		pid[i] = fork_helper();
		if (pid[i])
			continue;
		if (i)
			pool_set(SZ_1G, "demote", 1);
		else
			pool_set(SZ_2M, "nr_hugepages", POOL_2M + 1024);
		_exit(0);
	}
	usleep((random >> 32) % 60000);
	ret = shoot(BY_PFN, NULL, pfn);
	for (i = 0; i < 2; i++)
		waitpid(pid[i], NULL, 0);
	/* Handled it isn't if it was hit between the pools. */
	tally(&st->change[CHANGE_HIT_AND_DEMOTE], ret == -EBUSY);
	set_lost(pfn);
	/* While the smaller ones are being made, there may be no record: report it again. */
	if (flags_of(pfn) & KPF_HUGE) {
		again = shoot(BY_PFN, NULL, pfn);
		st->handled += again != -EHWPOISON;
		/* A known loss keeps it in the pool until that shrinks. */
		pool_set(SZ_2M, "nr_hugepages", 0);
	}
	flags = flags_of(pfn);
	if (!was_hit(ret) || (flags & (KPF_HUGE | KPF_BUDDY | KPF_HWPOISON)) != KPF_HWPOISON)
		fail(NULL, "page %#lx, lost during demotion: %d, then %d, %#lx", pfn, ret,
		     again, flags);
	else if (!give_back_at_last(pfn))
		fail(NULL, "page %#lx can't be unpoisoned", pfn);
}

static bool round_is_over(uint64_t start)
{
	struct pool pool = pool_read(SZ_2M);

	if (st->stop || (st->limit && st->nr_hits >= st->limit))
		return true;
	if (st->still && pool.free - pool.resv < 2 * MARGIN)
		return true;
	return now_ns() - start > st->round_ns;
}

/* Has it had an effect, or is it clear that it has none? */
static bool is_settled(const struct tally *t)
{
	return t->done || t->tried >= MANY_TRIES;
}

/* (A race that was never tried is none that this test can do.) */
static bool all_are_settled(void)
{
	const struct op *op;
	unsigned int i;

	for (op = ops; op->name; op++)
		if (is_possible(op) && !is_settled(&st->op[op - ops]))
			return false;
	for (i = 0; i < NR_ACTS; i++)
		if (st->race[i].tried && !is_settled(&st->race[i]))
			return false;
	return true;
}

static bool is_last(void)
{
	uint64_t ns = st->seconds * 1000000000ULL, past = now_ns() - st->start_ns;

	if (st->limit)
		return st->nr_hits >= st->limit;
	return past > PATIENCE * ns || (past > ns && all_are_settled());
}

static void say_who_hangs(void)
{
	char path[64], pids[512], text[256];
	char *pid, *next = pids;

	snprintf(path, sizeof(path), "/proc/self/task/%d/children", getpid());
	read_text(path, pids, sizeof(pids));
	while ((pid = strsep(&next, " ")) && *pid) {
		snprintf(path, sizeof(path), "/proc/%s/stat", pid);
		if (read_text(path, text, sizeof(text)) > 0)
			fail(NULL, "it hangs: %.60s", text);
		snprintf(path, sizeof(path), "/proc/%s/wchan", pid);
		if (read_text(path, text, sizeof(text)) > 0)
			fail(NULL, "it hangs in %.60s", text);
		snprintf(path, sizeof(path), "/proc/%s/syscall", pid);
		if (read_text(path, text, sizeof(text)) > 0)
			fail(NULL, "it hangs in syscall %.100s", text);
	}
}

/* Those who were killed never leave it. */
static void init_world(void)
{
	pthread_rwlockattr_t attr;

	pthread_rwlockattr_init(&attr);
	pthread_rwlockattr_setpshared(&attr, PTHREAD_PROCESS_SHARED);
	pthread_rwlockattr_setkind_np(&attr, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_rwlock_init(&st->step_lock, &attr);
}

/* Returns whether it was the last one. */
static bool run_round(void)
{
	bool kill_all = !st->real && st->round % 4 == 3;
	uint64_t random = mix(st->seed + st->round);
	pid_t worker[MAX_WORKERS + 2];
	uint64_t start = now_ns();
	struct pool before;
	unsigned int i;
	int status;
	bool last;
	pid_t pid;

	st->stop = false;
	st->idle = false;
	st->moving = false;
	st->still = st->real || st->round % 2 == 0;
	st->nr_listed = 0;
	st->nr_wild = 0;
	init_world();
	pool_set(SZ_2M, "nr_overcommit_hugepages", 0);
	if (st->giant) {
		pool_grow(SZ_1G, POOL_1G);
		if (!st->still)
			hit_and_demote(random);
		pool_set(SZ_2M, "nr_hugepages", POOL_2M);
		pool_grow(SZ_1G, POOL_1G);
	}
	if (!pool_grow(SZ_2M, POOL_2M))
		fail(NULL, "can't fill the pool again");
	before = pool_read(SZ_2M);
	for (i = 0; i < st->nr_regions; i++)
		regions[i].wild = 0;
	fflush(stdout);
	for (i = 0; i < st->nr_workers + 2; i++) {
		worker[i] = fork_helper();
		if (worker[i])
			continue;
		if (i == st->nr_workers)
			be_flags_checker();
		else if (i > st->nr_workers)
			be_memory_checker();
		else
			be_worker(i);
		_exit(0);
	}

	for (i = 0; !round_is_over(start); i++) {
		random = mix(random);
		if (!st->still)
			touch_pool(random, !i);
		usleep(20000);
	}
	for (i = 0; kill_all && !st->nr_reports && i < st->nr_workers; i++)
		kill(worker[i], SIGKILL);
	st->stop = true;

	/* All there are: peers and children of those who were killed, too. */
	for (i = 0; i < HANGS_MS / 10; ) {
		pid = waitpid(-1, &status, WNOHANG);
		if (pid < 0)
			break;
		if (!pid) {
			usleep(10000);
			i++;
		} else if (!kill_all && !(WIFEXITED(status) && !WEXITSTATUS(status)) &&
			   !(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL)) {
			fail(NULL, "process %d ended with %#x", pid, status);
		}
	}
	if (i == HANGS_MS / 10) {
		fail(NULL, "somebody hangs");
		say_who_hangs();
		return true;
	}
	st->idle = true;
	last = is_last();
	start = now_ns();
	if (!st->nr_reports)
		end_round(&before, kill_all, last);
	/* It may take long to look at all memory: don't do nothing else. */
	if (now_ns() - start > st->round_ns)
		st->round_ns = now_ns() - start;
	return last;
}

/*
 * Setting up
 */

static unsigned long parameter(const char *name, unsigned long val)
{
	const char *text = getenv(name);

	return text ? strtoul(text, NULL, 0) : val;
}

static unsigned long end_of_memory(void)
{
	unsigned long spanned = 0, start, end = 0;
	FILE *f = fopen("/proc/zoneinfo", "r");
	char line[128];

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, " spanned %lu", &spanned) == 1)
			continue;
		if (sscanf(line, " start_pfn: %lu", &start) == 1 && start + spanned > end)
			end = start + spanned;
	}
	if (f)
		fclose(f);
	return end;
}

/*
 * On x86 the kernel survives to lose what it is just copying if the CPU has ERMS:
 * without, copy_mc_to_kernel() is memcpy().
 */
static bool copy_recovers(void)
{
	FILE *f = fopen("/proc/cpuinfo", "r");
	bool recovers = false;
	char line[4096];

	while (f && !recovers && fgets(line, sizeof(line), f))
		recovers = !strncmp(line, "flags", 5) && strstr(line, " erms ");
	if (f)
		fclose(f);
	return recovers;
}

static void *share(size_t len)
{
	void *p = mmap(NULL, len, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		ksft_exit_fail_perror("mmap");
	return p;
}

static void open_state(void)
{
	st = share(sizeof(*st));
	st->nr_pages = end_of_memory();
	st->nr_regions = st->nr_pages / (SZ_2M / psize()) + 1;
	page_states = share(st->nr_pages + 1);
	regions = share(st->nr_regions * sizeof(*regions));
	st->seed = parameter("HUGETLB_MFR_SEED", time(NULL));
	st->seconds = parameter("HUGETLB_MFR_SECONDS", 15);
	st->limit = parameter("HUGETLB_MFR_INJECTIONS", 0);
	st->verbose = parameter("HUGETLB_MFR_VERBOSE", 0);
	st->nr_workers = parameter("HUGETLB_MFR_WORKERS", 4);
	if (st->nr_workers > MAX_WORKERS)
		st->nr_workers = MAX_WORKERS;
}

/* Give back all pages recorded as lost, however the test ended. */
static long close_state(void)
{
	unsigned long pfn;
	unsigned int tries;

	if (undo->mce_seen || !st->open)
		return 0;
	st->open = false;
	for (tries = 0; tries < 100 && hardware_corrupted() != st->corrupted; tries++) {
		for (pfn = next_lost(0); pfn < st->nr_pages; pfn = next_lost(pfn + 1))
			if (!give_back(pfn) && !(flags_of(pfn) & KPF_HWPOISON))
				page_states[pfn] = HEALTHY;
		if (tries)
			usleep(20000);
	}
	return hardware_corrupted() - st->corrupted;
}

static void clean_up_stress(void)
{
	if (getpid() == undo->owner)
		close_state();
}

FIXTURE(stress)
{
	struct subject s;
};

FIXTURE_VARIANT(stress)
{
	bool giant;
	const struct injector *injector;
};

FIXTURE_VARIANT_ADD(stress, simulated_2m) { .injector = &by_pfn };
FIXTURE_VARIANT_ADD(stress, simulated_2m_and_1g) { .giant = true, .injector = &by_pfn };
FIXTURE_VARIANT_ADD(stress, machine_checks_2m) { .injector = &by_mce };

FIXTURE_SETUP(stress)
{
	pthread_mutexattr_t giving;

	close_state();
	if (!kernel_can_keep())
		SKIP(return, "kernel lacks MFD_MF_KEEP_UE_MAPPED");
	if (variant->giant && !pool_exists(SZ_1G))
		SKIP(return, "no hugepages of 1 GiB here");
	setup_subject(_metadata, &self->s, SZ_2M, variant->injector, POOL_2M);
	if (_metadata->exit_code)
		return;
	if (variant->giant && !pool_grow(SZ_1G, POOL_1G))
		SKIP(return, "can't get %d hugepages of 1 GiB", POOL_1G);

	st->giant = variant->giant;
	st->real = variant->injector->is_hw;
	st->copy_recovers = copy_recovers();
	st->has_nodes = other_node(0) >= 0;
	write_long(SOFT_OFFLINE, 1);
	st->stop = false;
	st->nr_reports = 0;
	st->nr_hits = 0;
	st->nr_lost = 0;
	st->nr_back = 0;
	st->nr_soft = 0;
	st->nr_healed_1g = 0;
	st->nr_offlined = 0;
	st->wild_ns = 0;
	memset(st->op, 0, sizeof(st->op));
	memset(st->race, 0, sizeof(st->race));
	memset(st->change, 0, sizeof(st->change));
	st->corrupted = self->s.corrupted;
	st->open = true;
	st->handled = mf_stat("total");
	pthread_mutexattr_init(&giving);
	pthread_mutexattr_setpshared(&giving, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&giving, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(&st->giving, &giving);
	st->has_group = make_group(&st->counts_memory);
	/* Older kernels charge hugepages, but don't tell them from other memory. */
	st->counts_memory = st->has_group && st->counts_memory && memory_charge() >= 0;
	ASSERT_EQ(0, prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0));
}

FIXTURE_TEARDOWN_PARENT(stress)
{
	EXPECT_EQ(0, close_state());
	teardown_subject(_metadata, &self->s);
}

static const char * const change_names[NR_CHANGES] = {
	[CHANGE_GROW] = "growing the pool",
	[CHANGE_SHRINK] = "shrinking the pool",
	[CHANGE_GROW_1G] = "growing the pool of 1 GiB",
	[CHANGE_SHRINK_1G] = "shrinking the pool of 1 GiB",
	[CHANGE_DEMOTE] = "demotion",
	[CHANGE_HIT_AND_DEMOTE] = "demotion of what is hit",
	[CHANGE_OFFLINE] = "going offline without hugepages in use",
	[CHANGE_MOVE] = "going offline after moving hugepages away",
	[CHANGE_HIT_MOVING] = "an error in a hugepage that may move",
};

/* An operation must have had an effect, not only been tried. */
static void expect_effect(struct __test_metadata *_metadata, const char *what,
			  const char *name, const struct tally *t)
{
	if (!t->tried)
		return;
	ksft_print_msg("%s%s: %lu of %lu\n", what, name, t->done, t->tried);
	if (t->tried >= MANY_TRIES)
		EXPECT_LT(0, t->done)
			TH_LOG("%s%s had no effect", what, name);
}

TEST_F_TIMEOUT(stress, only_lost_pages_stay_out_of_use, LONG_RUN)
{
	const struct op *op;
	bool last = false;
	struct scan c;
	unsigned int i;

	TH_LOG("seed %lu: to replay, set HUGETLB_MFR_SEED=%lu", st->seed, st->seed);
	if (!st->has_group)
		TH_LOG("no hugetlb controller of cgroup2, so that its counters aren't checked");
	else if (!st->counts_memory)
		TH_LOG("memory.stat doesn't count hugepages, so that it isn't checked");
	if (st->real && !st->copy_recovers)
		TH_LOG("no ERMS: machine checks don't race with copy on write");
	memset(page_states, HEALTHY, st->nr_pages);
	memset(regions, 0, st->nr_regions * sizeof(*regions));
	count_pages(&c, true, true);

	st->start_ns = now_ns();
	st->round_ns = ROUND_MS * 1000000ULL;
	for (st->round = 0; !last && !st->nr_reports; st->round++)
		last = run_round();

	for (i = 0; i < st->nr_reports && i < MAX_REPORTS; i++)
		TH_LOG("%s", st->report[i]);
	TH_LOG("seed %lu: %lu injections, %lu pages lost, %lu soft-offlined, %lu given back",
	       st->seed, st->nr_hits, st->nr_lost, st->nr_soft, st->nr_back);
	if (st->giant)
		ksft_print_msg("%lu hugepages of 1 GiB healed\n", st->nr_healed_1g);
	for (op = ops; op->name; op++)
		if (is_possible(op))
			expect_effect(_metadata, "", op->name, &st->op[op - ops]);
	for (i = 0; i < NR_ACTS; i++)
		expect_effect(_metadata, "an error against ", act_names[i], &st->race[i]);
	for (i = 0; i < NR_CHANGES; i++)
		expect_effect(_metadata, "", change_names[i], &st->change[i]);
	EXPECT_EQ(0, st->nr_reports);
	EXPECT_LT(0, st->nr_lost);
}

int main(int argc, char **argv)
{
	struct __fixture_metadata *f;
	struct __test_metadata *t;

	open_state();
	atexit(clean_up_stress);
	for (f = __fixture_list; f; f = f->next)
		for (t = f->tests; t; t = t->next)
			t->timeout += 2 * st->seconds + st->limit / 50;
	return test_harness_run(argc, argv);
}
