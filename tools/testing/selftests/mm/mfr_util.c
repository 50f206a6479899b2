// SPDX-License-Identifier: GPL-2.0
/*
 * The library of the tests of memory failure recovery, without the test harness.
 *
 * machine_check.h keeps the state of a victim in static variables, one set in each file
 * that includes it.  Threads become victims in this file, where the handler of SIGBUS is.
 */

#include <glob.h>
#include "mfr_util.h"
#include "../../../../mm/gup_test.h"

/* The files that decide which errors happen. */
static const char * const filters[NR_FILTERS] = {
	DEBUGFS_FILTER_ENABLE,
	DEBUGFS_FILTER_MAJOR,
	DEBUGFS_FILTER_MASK,
	DEBUGFS_FILTER_VALUE,
	DEBUGFS_FILTER_MEMCG,
};

/* Undo the changes that tests make, in this order: fault injection first. */
static const char * const settings[NR_SETTINGS] = {
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

struct undo *undo;
__thread struct sigbus sigbus;
atomic_bool injecting;
int mce_at = -1;

static atomic_bool accessing;
static sigjmp_buf access_jmp_buf;

/* mce_release_victim() for other files' SIGBUS handlers: the victim is this file's. */
void release_victim(void)
{
	mce_release_victim();
}

void handle_sigbus(int sig, siginfo_t *si, void *ucontext)
{
	sigbus.nr++;
	sigbus.code = si->si_code;
	sigbus.lsb = si->si_addr_lsb;
	sigbus.addr = (uintptr_t)si->si_addr;

	mce_release_victim();
	if (accessing)
		siglongjmp(access_jmp_buf, 1);

	/* An access outside try_access() would fault forever: die. */
	if (!injecting && si->si_code != BUS_MCEERR_AO)
		signal(SIGBUS, SIG_DFL);
}

int setup_sighandler(void)
{
	struct sigaction sa = {
		.sa_sigaction = handle_sigbus,
		.sa_flags = SA_SIGINFO | SA_RESTART,
	};

	return sigaction(SIGBUS, &sa, NULL);
}

bool try_access(char *ptr, bool write)
{
	bool failed;

	sigbus.nr = 0;
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

bool try_read(char *ptr)
{
	return try_access(ptr, false);
}

bool try_write(char *ptr)
{
	return try_access(ptr, true);
}

int write_pfn(const char *path, unsigned long pfn)
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

int unpoison(unsigned long pfn)
{
	return write_pfn(DEBUGFS_UNPOISON_PFN, pfn);
}

int inject_madvise(char *addr, unsigned long pfn)
{
	return madvise(addr, psize(), MADV_HWPOISON) ? -errno : 0;
}

int inject_corrupt_pfn(char *addr, unsigned long pfn)
{
	return write_pfn(DEBUGFS_CORRUPT_PFN, pfn);
}

/* A machine check: this thread is the victim. */
int consume_as(enum mce_kind kind, struct mce_victim *victim)
{
	int cpu[2];

	if (!mce_cpus(cpu))
		return -ENODEV;

	victim->cpu = cpu[0];
	undo->mce_seen = true;
	return mce_consume_as(undo->monitor, kind, victim);
}

static int consume(enum mce_kind kind, char *addr, unsigned long pfn)
{
	struct mce_victim victim = { .addr = addr, .pfn = pfn };

	return consume_as(kind, &victim);
}

void *suffer(void *arg)
{
	struct victim_thread *by = arg;

	mce_suffer(MCE_LOAD, by->victim);
	by->sigbus = sigbus;
	return NULL;
}

int inject_mce(char *addr, unsigned long pfn)
{
	return consume(MCE_LOAD, addr, pfn);
}

static int inject_fetch(char *addr, unsigned long pfn)
{
	return consume(MCE_FETCH, addr, pfn);
}

static int inject_broadcast(char *addr, unsigned long pfn)
{
	return consume(MCE_BROADCAST, addr, pfn);
}

/* A machine check for an error that no CPU has consumed */
static int inject_scrub(char *addr, unsigned long pfn)
{
	unsigned long before = hardware_corrupted();
	int i;

	undo->mce_seen = true;
	mce_scrub(undo->monitor, pfn);

	/* A worker deals with it, sends signals and counts.  (A repeat doesn't count.) */
	for (i = 0; i < 400 && hardware_corrupted() == before; i++)
		usleep(2000);
	return i < 400 ? 0 : -ETIMEDOUT;
}

/*
 * Failing allocations
 */

bool can_fail_allocations(void)
{
	return !access(FAILSLAB "probability", W_OK) &&
	       !access(FAIL_PAGE "probability", W_OK) &&
	       !access("/proc/thread-self/fail-nth", W_OK);
}

static int fail_nth;

/* From now on the @nth allocation of this thread fails. */
bool fail_allocation(unsigned int nth)
{
	char text[16];
	int len = snprintf(text, sizeof(text), "%u", nth);

	fail_nth = open("/proc/thread-self/fail-nth", O_RDWR | O_CLOEXEC);
	return fail_nth >= 0 && pwrite(fail_nth, text, len, 0) == len;
}

/* No more of that.  Has one failed? */
bool has_failed(void)
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
int inject_unrecorded(unsigned long pfn)
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

/* Choose the kernel's workers, or nobody, for allocations that fail. */
void mark_workers(bool mark)
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
	undo->workers = mark;
}

const struct injector by_madvise = {
	.inject = inject_madvise,
	.code = BUS_MCEERR_AR,
	.repeat_ret = -EFAULT,
};

const struct injector by_pfn = {
	.inject = inject_corrupt_pfn,
	.code = BUS_MCEERR_AO,
	.repeat_ret = -EHWPOISON,
};

const struct injector by_mce = {
	.inject = inject_mce,
	.code = BUS_MCEERR_AR,
	.repeat_signals = true,
	.filtered = -ETIMEDOUT,
	.is_hw = true,
};

const struct injector by_fetch = {
	.inject = inject_fetch,
	.code = BUS_MCEERR_AR,
	.repeat_signals = true,
	.is_hw = true,
};

const struct injector by_broadcast = {
	.inject = inject_broadcast,
	.code = BUS_MCEERR_AR,
	.repeat_signals = true,
	.is_hw = true,
};

const struct injector by_scrub = {
	.inject = inject_scrub,
	.code = BUS_MCEERR_AO,
	.repeat_ret = -ETIMEDOUT,
	.filtered = -ETIMEDOUT,
	.is_hw = true,
};

bool read_long(const char *path, long *val)
{
	FILE *f = fopen(path, "r");
	bool ok;

	if (!f)
		return false;
	ok = fscanf(f, "%ld", val) == 1;
	fclose(f);
	return ok;
}

bool write_long(const char *path, long val)
{
	FILE *f = fopen(path, "w");
	bool ok;

	if (!f)
		return false;
	ok = fprintf(f, "%ld", val) > 0;
	return !fclose(f) && ok;
}

ssize_t read_text(const char *path, char *buf, size_t len)
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

bool write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_TRUNC);
	bool ok;

	if (fd < 0)
		return false;
	ok = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
	close(fd);
	return ok;
}

/* The kernel's log from a moment on. */
static struct {
	int fd;
	size_t len;
	char text[256 << 10];
} kernel_log = { .fd = -1 };

void listen_to_kernel(void)
{
	close(kernel_log.fd);
	kernel_log.fd = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	lseek(kernel_log.fd, 0, SEEK_END);
	kernel_log.len = 0;
}

/* How often the kernel has said that since. */
unsigned int nr_said(const char *format, ...)
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

uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

/* A number of /proc/meminfo, most of which are in kB; -1 if it isn't there. */
long meminfo_kb(const char *name)
{
	FILE *f = fopen("/proc/meminfo", "r");
	size_t len = strlen(name);
	char line[128];
	long val = -1;

	while (f && val < 0 && fgets(line, sizeof(line), f))
		if (!strncmp(line, name, len) && line[len] == ':')
			val = atol(line + len + 1);
	if (f)
		fclose(f);
	return val;
}

/* How many lines of the trace have @text in them. */
unsigned int nr_traced(const char *text)
{
	FILE *f = fopen(TRACING "/trace", "r");
	unsigned int nr = 0;
	char line[256];

	while (f && fgets(line, sizeof(line), f))
		nr += !!strstr(line, text);
	if (f)
		fclose(f);
	return nr;
}

/*
 * Memory blocks, which can go offline
 */

static const char *block_path(long block)
{
	static char path[PATH_MAX];

	snprintf(path, sizeof(path), MEMORY_BLOCKS "/memory%ld/state", block);
	return path;
}

unsigned long pages_in_block(void)
{
	static unsigned long nr;
	char text[32];

	if (!nr && read_text(MEMORY_BLOCKS "/block_size_bytes", text, sizeof(text)) > 0)
		nr = strtoul(text, NULL, 16) / psize();
	return nr;
}

/* The memory block that a page is in. */
long block_of(unsigned long pfn)
{
	return pfn / pages_in_block();
}

int change_block(long block, const char *state)
{
	const char *path = block_path(block);

	errno = 0;
	return write_text(path, state) ? 0 : -errno;
}

bool block_is_online(long block)
{
	char state[32] = "";

	read_text(block_path(block), state, sizeof(state));
	return !strncmp(state, "online", 6);
}

/*
 * The kernel has one set of options for all mounts of cgroup2, and each mount sets
 * them anew.  Read those that are there now.
 */
static void cgroup2_options(char *options)
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

bool mount_privately(const char *type, const char *options)
{
	return !unshare(CLONE_NEWNS) &&
	       !mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) &&
	       !mount("none", MOUNT, type, 0, options);
}

bool write_group(const char *group, const char *file, const char *text)
{
	char path[PATH_MAX];

	snprintf(path, sizeof(path), MOUNT "%s/%s", group, file);
	return write_text(path, text);
}

/* Make a cgroup that counts hugepages; @memory: in memory.current, too. */
bool make_group(bool *memory)
{
	char has[256] = "";

	undo->group = true;
	*memory = mount_privately("cgroup2", CGROUP2_HUGETLB);
	if (!*memory && !mount_privately("cgroup2", undo->cgroup_options))
		return false;
	read_text(MOUNT "/cgroup.controllers", has, sizeof(has));
	*memory = *memory && strstr(has, "memory");
	if (!strstr(has, "hugetlb"))
		return false;
	read_text(MOUNT "/cgroup.subtree_control", has, sizeof(has));
	undo->had_hugetlb = strstr(has, "hugetlb");
	undo->had_memory = strstr(has, "memory");
	return write_group("", "cgroup.subtree_control",
			   *memory ? "+hugetlb +memory" : "+hugetlb") &&
	       !mkdir(MOUNT GROUP, 0700);
}

static void remove_group(void)
{
	pid_t pid;

	if (!undo->group)
		return;

	/* A killed test may take a while to leave it. */
	pid = fork();
	if (!pid) {
		if (!mount_privately("cgroup2", undo->cgroup_options))
			_exit(KSFT_FAIL);
		wait_until((rmdir(MOUNT GROUP "/child"),
			    !rmdir(MOUNT GROUP) || errno == ENOENT), 20000);
		if (!undo->had_hugetlb)
			write_group("", "cgroup.subtree_control", "-hugetlb");
		if (!undo->had_memory)
			write_group("", "cgroup.subtree_control", "-memory");
		_exit(KSFT_PASS);
	}
	waitpid(pid, NULL, 0);
	undo->group = false;
}

const char *pool_path(unsigned long size, const char *name)
{
	static char path[PATH_MAX];

	snprintf(path, sizeof(path), SYSFS_HUGEPAGES "/hugepages-%lukB/%s",
		 size >> 10, name);
	return path;
}

bool pool_exists(unsigned long size)
{
	return !access(pool_path(size, "nr_hugepages"), R_OK | W_OK);
}

long pool_get(unsigned long size, const char *name)
{
	long val;

	return read_long(pool_path(size, name), &val) ? val : -1;
}

/* @val may come from a call that uses pool_path(), too. */
bool pool_set(unsigned long size, const char *name, long val)
{
	return write_long(pool_path(size, name), val);
}

struct pool pool_read(unsigned long size)
{
	return (struct pool) {
		.nr = pool_get(size, "nr_hugepages"),
		.free = pool_get(size, "free_hugepages"),
		.resv = pool_get(size, "resv_hugepages"),
		.surplus = pool_get(size, "surplus_hugepages"),
	};
}

/* The size of the hugepages that /proc/sys/vm is about. */
unsigned long default_size(void)
{
	return meminfo_kb("Hugepagesize") << 10;
}

/* The pool of one node */
const char *node_pool_path(int node, unsigned long size, const char *name)
{
	static char path[PATH_MAX];

	snprintf(path, sizeof(path), NODES "%d/hugepages/hugepages-%lukB/%s", node,
		 size >> 10, name);
	return path;
}

long node_pool_get(int node, unsigned long size, const char *name)
{
	long val;

	return read_long(node_pool_path(node, size, name), &val) ? val : -1;
}

bool node_pool_set(int node, unsigned long size, const char *name, long val)
{
	return write_long(node_pool_path(node, size, name), val);
}

struct pool node_pool_read(int node, unsigned long size)
{
	return (struct pool) {
		.nr = node_pool_get(node, size, "nr_hugepages"),
		.free = node_pool_get(node, size, "free_hugepages"),
		.surplus = node_pool_get(node, size, "surplus_hugepages"),
	};
}

bool node_pool_grow(int node, unsigned long size, long nr)
{
	struct pool pool = node_pool_read(node, size);

	if (nr > pool.free)
		node_pool_set(node, size, "nr_hugepages", pool.nr + nr - pool.free);
	return node_pool_get(node, size, "free_hugepages") >= nr;
}

/* Make @nr hugepages available that nobody has reserved. */
bool pool_grow(unsigned long size, long nr)
{
	struct pool pool = pool_read(size);
	long missing = nr - (pool.free - pool.resv);

	if (missing <= 0)
		return true;

	pool_set(size, "nr_hugepages", pool.nr + missing);
	pool = pool_read(size);
	return pool.free - pool.resv >= nr;
}

static void save_settings(void)
{
	DIR *dir = opendir(SYSFS_HUGEPAGES);
	struct dirent *entry;
	unsigned int i;
	int node;

	while (dir && undo->nr_sizes < MAX_SIZES) {
		unsigned long size;

		entry = readdir(dir);
		if (!entry)
			break;
		if (sscanf(entry->d_name, "hugepages-%lukB", &size) != 1)
			continue;
		size <<= 10;
		i = undo->nr_sizes;
		undo->saved[i].size = size;
		undo->saved[i].nr = pool_get(size, "nr_hugepages");
		undo->saved[i].overcommit = pool_get(size, "nr_overcommit_hugepages");
		undo->saved[i].demote_kb = pool_get(size, "demote_size");
		for (node = 0; node < MAX_NODES; node++)
			undo->saved[i].node_nr[node] =
				node_pool_get(node, size, "nr_hugepages");
		undo->nr_sizes++;
	}

	if (dir)
		closedir(dir);

	read_text(CORE_PATTERN, undo->core_pattern, sizeof(undo->core_pattern));
	for (i = 0; i < ARRAY_SIZE(filters); i++)
		if (!read_long(filters[i], &undo->filter[i]))
			undo->filter[i] = -1;
	if (!read_long(SOFT_OFFLINE, &undo->soft_offline))
		undo->soft_offline = 1;
	for (i = 0; i < NR_SETTINGS; i++)
		read_text(settings[i], undo->setting[i], sizeof(undo->setting[i]));
	cgroup2_options(undo->cgroup_options);
}

/* Let only errors in the memory of one device pass, which doesn't exist. */
bool filter_all_errors(void)
{
	return write_long(DEBUGFS_FILTER_MAJOR, 0xfff) &&
	       write_long(DEBUGFS_FILTER_ENABLE, 1);
}

void restore_filter(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(filters); i++)
		write_long(filters[i], undo->filter[i]);
}

void restore_soft_offline(void)
{
	write_long(SOFT_OFFLINE, undo->soft_offline);
}

static void restore_setting(const char *path, const char *was)
{
	char now[sizeof(undo->core_pattern)];

	if (read_text(path, now, sizeof(now)) > 0 && strcmp(now, was))
		write_text(path, was);
}

/* Settings that tests change beside pools and pages. */
void restore_settings(void)
{
	unsigned int i;

	/* Faults first: while there are any, nothing else is certain. */
	for (i = 0; i < NR_SETTINGS; i++)
		restore_setting(settings[i], undo->setting[i]);
	if (undo->workers)
		mark_workers(false);
	remove_group();
	restore_filter();
	restore_soft_offline();
	restore_setting(CORE_PATTERN, undo->core_pattern);
	rmdir(TRACING);
}

/* Set the size to demote to; the default is the next smaller one. */
bool demote_to(unsigned long size, unsigned long smaller)
{
	return pool_set(size, "demote_size", smaller);
}

static void restore_pool(unsigned long size, const char *name, long val)
{
	if (pool_get(size, name) != val)
		pool_set(size, name, val);
}

void restore_pools(void)
{
	unsigned int i;
	int node;

	for (i = 0; i < undo->nr_sizes; i++) {
		unsigned long size = undo->saved[i].size;

		restore_pool(size, "nr_overcommit_hugepages", undo->saved[i].overcommit);
		restore_pool(size, "nr_hugepages", undo->saved[i].nr);
		if (pool_get(size, "demote_size") != undo->saved[i].demote_kb)
			demote_to(size, undo->saved[i].demote_kb << 10);
	}

	/* The pools are restored as a whole: restore the share of each node. */
	for (i = 0; i < undo->nr_sizes; i++)
		for (node = 0; node < MAX_NODES; node++) {
			unsigned long size = undo->saved[i].size;
			long nr = undo->saved[i].node_nr[node];

			if (nr >= 0 && node_pool_get(node, size, "nr_hugepages") != nr)
				node_pool_set(node, size, "nr_hugepages", nr);
		}
}

/* Read the kpageflags of @nr page frames.  The file stays open, which saves much time. */
bool read_kpageflags(unsigned long pfn, unsigned long nr, uint64_t *flags)
{
	static int fd = -1;
	size_t len = nr * sizeof(*flags);

	if (fd < 0)
		fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);
	return fd >= 0 && pread(fd, flags, len, pfn * sizeof(*flags)) == (ssize_t)len;
}

/* Read the entries of pagemap for @nr pages that this process maps from @addr on. */
bool read_pagemap(char *addr, unsigned long nr, uint64_t *entries)
{
	static pid_t whose;
	static int fd;
	size_t len = nr * sizeof(*entries);
	off_t start = (uintptr_t)addr / psize() * sizeof(*entries);

	/* The files that a parent has opened are about the parent's memory. */
	if (whose != getpid()) {
		fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			return false;
		whose = getpid();
	}
	return pread(fd, entries, len, start) == (ssize_t)len;
}

bool is_poisoned(unsigned long pfn)
{
	uint64_t flags = 0;

	return read_kpageflags(pfn, 1, &flags) && (flags & KPF_HWPOISON);
}

/* The pfn that @addr is mapped to, or -1UL. */
unsigned long mapped_pfn(char *addr)
{
	uint64_t entry;

	if (!read_pagemap(addr, 1, &entry) || !PAGEMAP_PRESENT(entry))
		return -1UL;
	return PAGEMAP_PFN(entry);
}

bool is_mapped(char *addr)
{
	return mapped_pfn(addr) != -1UL;
}

/* Move the page at @addr to @node; if that is -1, return the node it is on. */
int move_page(char *addr, int node)
{
	void *page = addr;
	int status = -1;

	if (syscall(SYS_move_pages, 0, 1UL, &page, node < 0 ? NULL : &node, &status,
		    MPOL_MF_MOVE_ALL) < 0)
		return -errno;
	return status;
}

/* Let the memory of a mapping come from @node, if there are nodes. */
void bind_to_node(char *addr, size_t len, int node)
{
	unsigned long nodes = 1UL << node;

	if (node >= 0)
		syscall(SYS_mbind, addr, len, MPOL_BIND, &nodes, sizeof(nodes) * 8, 0);
}

/* The first and the last node with memory.  Returns whether there are two. */
bool find_nodes(int *first, int *last)
{
	char nodes[256], *p;

	if (read_text(NODES_WITH_MEMORY, nodes, sizeof(nodes)) <= 0)
		return false;
	*first = atoi(nodes);
	p = nodes + strcspn(nodes, "\n");
	while (p > nodes && isdigit(p[-1]))
		p--;
	*last = atoi(p);
	return *first != *last;
}

/* A node with memory beside @node, or -1. */
int other_node(int node)
{
	int first, last;

	if (!find_nodes(&first, &last))
		return -1;
	return node == first ? last : first;
}

unsigned long hardware_corrupted(void)
{
	return meminfo_kb("HardwareCorrupted");
}

/* A counter of the memory_failure statistics of one node */
long node_mf_stat(int node, const char *name)
{
	char path[PATH_MAX];
	long val;

	snprintf(path, sizeof(path), NODES "%d/memory_failure/%s", node, name);
	return read_long(path, &val) ? val : -1;
}

/* The sum of such a counter over all nodes */
long mf_stat(const char *name)
{
	long val, sum = -1;
	int node;

	for (node = 0; node < MAX_NODES; node++) {
		val = node_mf_stat(node, name);
		if (val >= 0)
			sum = sum < 0 ? val : sum + val;
	}
	return sum;
}

/*
 * Give back whatever is still poisoned: a plain hugepage as a whole through its
 * first page, the lost pages of a released kept one each for itself.  A process
 * that was just killed may still hold them, or be about to release them: only
 * the counter tells when that is done.  Returns how many kB resisted.
 */
long unpoison_all(void)
{
	unsigned int i, tries;

	/* A kernel that finds mistakes takes its time to free 1 GiB. */
	for (tries = 0; undo->nr_poison && !undo->mce_seen && tries < 3000; tries++) {
		if (tries)
			usleep(20000);
		for (i = 0; i < undo->nr_poison; i++)
			if (!is_poisoned(undo->poison[i].pfn) ||
			    unpoison(undo->poison[i].pfn))
				if (is_poisoned(undo->poison[i].head))
					unpoison(undo->poison[i].head);
		if (hardware_corrupted() == undo->corrupted)
			break;
	}

	if (!undo->nr_poison)
		return 0;
	undo->nr_poison = 0;
	return undo->mce_seen ? 0 : hardware_corrupted() - undo->corrupted;
}

/* Before the page is poisoned, for the test may not come back from it. */
bool note_poison(unsigned long pfn, unsigned long head)
{
	if (undo->nr_poison >= MAX_POISON)
		return false;

	if (!undo->nr_poison)
		undo->corrupted = hardware_corrupted();
	undo->poison[undo->nr_poison].pfn = pfn;
	undo->poison[undo->nr_poison].head = head;
	undo->nr_poison++;
	return true;
}

int create_memfd(unsigned long size, unsigned int flags)
{
	unsigned int log2 = __builtin_ctzl(size);

	return memfd_create("hugetlb-mfr", MFD_HUGETLB | flags | log2 << MFD_HUGE_SHIFT);
}

bool kernel_can_keep(void)
{
	int fd = memfd_create("hugetlb-mfr", MFD_HUGETLB | MFD_MF_KEEP_UE_MAPPED);

	if (fd < 0)
		return false;
	close(fd);
	return true;
}

char *map_file(struct subject *s, int flags)
{
	char *map = mmap(NULL, s->nr_huge * s->size, PROT_READ | PROT_WRITE,
			 flags, s->fd, 0);

	return map == MAP_FAILED ? NULL : map;
}

void unmap_file(struct subject *s)
{
	munmap(s->map, s->nr_huge * s->size);
	s->map = NULL;
}

/* Every word of the file differs, so that a misplaced page can't go unseen. */
void fill(struct subject *s)
{
	uint64_t *word = (uint64_t *)s->map;
	unsigned long i;

#pragma GCC unroll 8
	for (i = 0; i < s->nr_huge * s->size / sizeof(*word); i++)
		word[i] = i ^ 0xa5a5a5a5a5a5a5a5;
}

bool page_is_intact(const char *page, unsigned long nr)
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

bool page_is_zero(const char *page)
{
	return !page[0] && !memcmp(page, page + 1, psize() - 1);
}

/* Compare each byte that was not lost.  Returns how many raw pages changed. */
unsigned long nr_changed_pages(struct subject *s)
{
	unsigned long i, nr = 0;

	for (i = 0; i < s->nr_huge * s->nr_raw; i++)
		if (!s->lost[i] && !page_is_intact(s->map + i * psize(), i))
			nr++;
	return nr;
}

/*
 * Whatever kept file is under test, is hugepage @nr at @map still one entry of
 * the page table?  hugetlb maps nothing but whole hugepages: if each raw page
 * is present in its place and belongs to a hugepage, nothing was unmapped,
 * split or moved.
 */
bool is_mapped_huge(struct subject *s, char *map, unsigned long nr)
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

void *alloc_shared(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

/* Get @nr hugepages more, beside those of the file. */
bool need_more_hugepages(struct subject *s, long nr)
{
	if (!pool_grow(s->size, nr))
		return false;

	s->before = pool_read(s->size);
	s->before.free += s->nr_huge;
	return true;
}

int inject(struct subject *s, unsigned long nr)
{
	int ret;

	sigbus.nr = 0;
	injecting = true;
	ret = s->injector->inject(s->map ? raw_page(s, nr) : NULL, raw_pfn(s, nr));
	injecting = false;
	return ret;
}

/* Pages that the kernel never gives back count from now on. */
void give_up(struct subject *s, unsigned long huge)
{
	unsigned long i, kb = psize() >> 10;
	unsigned int j = 0;

	for (i = huge * s->nr_raw; i < (huge + 1) * s->nr_raw; i++) {
		if (!s->lost[i])
			continue;
		s->lost[i] = false;
		s->nr_lost--;
		s->corrupted += kb;
		undo->corrupted += kb;
	}
	while (j < undo->nr_poison)
		if (undo->poison[j].head == s->head[huge])
			undo->poison[j] = undo->poison[--undo->nr_poison];
		else
			j++;
}

/* Places in a hugepage where a mistake would show. */
unsigned long sample(struct subject *s, unsigned int i)
{
	unsigned long nr = s->nr_raw;
	unsigned long line = s->size > SZ_2M ? SZ_2M / psize() : nr / 4;
	const unsigned long samples[NR_SAMPLES] = {
		0, nr - 1,		/* head and last page */
		line - 1, line,		/* both sides of a 2 MiB line */
		1, nr - 2,
		nr / 2, nr / 2 + 3,
	};

	return samples[i];
}

/*
 * Pages may be free and yet not show as such, on a per-cpu list.  Soft
 * offlining a page empties those of its zone, before it asks the filter.  Opening
 * and closing files allocates and frees pages, and so isn't done in between.
 */
int open_drain(void)
{
	filter_all_errors();
	write_long(SOFT_OFFLINE, 1);
	return open(SOFT_OFFLINE_PAGE, O_WRONLY);
}

void drain_percpu_lists(int drain, unsigned long pfn)
{
	char addr[32];

	snprintf(addr, sizeof(addr), "0x%lx\n", pfn * psize());
	/* The filter rejects every pfn, so the write must fail. */
	if (write(drain, addr, strlen(addr)) > 0)
		ksft_print_msg("a filtered page was offlined\n");
}

void close_drain(int drain)
{
	close(drain);
	restore_soft_offline();
	restore_filter();
}

void wait_for_release(struct subject *s, long gone)
{
	struct pool pool;

	wait_until((pool = pool_read(s->size), pool.nr == s->before.nr - gone &&
		    pool.free == s->before.free - gone), 20000);
}

int punch(struct subject *s, off_t start, off_t len)
{
	return fallocate(s->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, start, len);
}

/* Zero a range of bytes, without a change of the file's size. */
int zero(struct subject *s, off_t start, off_t len)
{
	return fallocate(s->fd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, start, len) ?
	       -errno : 0;
}

int zero_page(struct subject *s, unsigned long nr)
{
	return zero(s, nr * psize(), psize());
}

/* How many lost pages the map of the file shows, -1 if it can't be read. */
long nr_on_map(struct subject *s)
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

/* fork() a process that does not outlive the test. */
pid_t fork_helper(void)
{
	pid_t parent = getpid(), pid = fork();

	if (!pid) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		/* The parent may be dead already. */
		if (getppid() != parent)
			raise(SIGKILL);
	}
	return pid;
}

/* fork_helper(), with a line between both. */
bool start_helper(struct helper *h)
{
	int lines[2];

	if (socketpair(AF_UNIX, SOCK_STREAM, 0, lines))
		return false;
	h->pid = fork_helper();
	h->line = lines[!h->pid];
	close(lines[!!h->pid]);
	return h->pid >= 0;
}

bool tell(struct helper *h)
{
	return write(h->line, "", 1) == 1;
}

bool wait_for_word(struct helper *h)
{
	char byte;

	return read(h->line, &byte, 1) == 1;
}

void be_witness(struct subject *s, int policy, struct helper *h)
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
	while (write(h->line, &map, sizeof(map)) == sizeof(map)) {
		if (sigwaitinfo(&set, &si) != SIGBUS)
			break;
		if (write(h->line, &si, sizeof(si)) != sizeof(si))
			break;
	}
	_exit(KSFT_FAIL);
}

bool witness_got(struct witness *w, siginfo_t *si, int timeout_ms)
{
	struct pollfd pfd = { .fd = w->helper.line, .events = POLLIN };
	char *map;

	return poll(&pfd, 1, timeout_ms) == 1 &&
	       read(pfd.fd, si, sizeof(*si)) == sizeof(*si) &&
	       read(pfd.fd, &map, sizeof(map)) == sizeof(map);
}

void stop_witness(struct witness *w)
{
	kill(w->helper.pid, SIGKILL);
	waitpid(w->helper.pid, NULL, 0);
	close(w->helper.line);
}

bool make_ring_of(struct ring *r, unsigned int nr_requests, unsigned int flags)
{
	size_t len;

	memset(r, 0, sizeof(*r));
	r->params.flags = IORING_SETUP_NO_SQARRAY | flags;
	r->fd = syscall(SYS_io_uring_setup, nr_requests, &r->params);
	if (r->fd < 0)
		return false;
	len = r->params.cq_off.cqes +
	      r->params.cq_entries * sizeof(struct io_uring_cqe);
	r->mem = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, r->fd,
		      IORING_OFF_SQ_RING);
	r->sqe = mmap(NULL, r->params.sq_entries * sizeof(*r->sqe),
		      PROT_READ | PROT_WRITE, MAP_SHARED, r->fd, IORING_OFF_SQES);
	return r->mem != MAP_FAILED && r->sqe != MAP_FAILED;
}

bool make_ring(struct ring *r)
{
	return make_ring_of(r, 1, 0);
}

int register_buffer(struct ring *r, char *addr, size_t len)
{
	struct iovec iov = { .iov_base = addr, .iov_len = len };

	return syscall(SYS_io_uring_register, r->fd, IORING_REGISTER_BUFFERS, &iov, 1);
}

/* Have a part of the registered buffer written to @fd, or read from there. */
void prepare_fixed(struct ring *r, int opcode, int fd, void *addr, size_t len)
{
	memset(r->sqe, 0, sizeof(*r->sqe));
	r->sqe->opcode = opcode;
	r->sqe->fd = fd;
	r->sqe->addr = (uintptr_t)addr;
	r->sqe->len = len;
	/* For sockets the opcode doesn't say whether it reads. */
	if (opcode == IORING_OP_SEND || opcode == IORING_OP_RECV ||
	    opcode == IORING_OP_SEND_ZC)
		r->sqe->ioprio = IORING_RECVSEND_FIXED_BUF;
}

int submit(struct ring *r)
{
	unsigned int *tail = r->mem + r->params.sq_off.tail;

	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	return syscall(SYS_io_uring_enter, r->fd, 1, 0, 0, NULL, 0) == 1 ? 0 : -errno;
}

int submit_fixed(struct ring *r, int opcode, int fd, void *addr, size_t len)
{
	prepare_fixed(r, opcode, fd, addr, len);
	return submit(r);
}

bool is_in_flight(struct ring *r)
{
	unsigned int *head = r->mem + r->params.cq_off.head;
	unsigned int *tail = r->mem + r->params.cq_off.tail;

	return *head == __atomic_load_n(tail, __ATOMIC_ACQUIRE);
}

int wait_fixed(struct ring *r)
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

int transfer_fixed(struct ring *r, int opcode, int fd, char *addr, size_t len)
{
	int ret = submit_fixed(r, opcode, fd, addr, len);

	return ret ?: wait_fixed(r);
}

void destroy_ring(struct ring *r)
{
	/* The close leaves that to a worker. */
	syscall(SYS_io_uring_register, r->fd, IORING_UNREGISTER_BUFFERS, NULL, 0);
	munmap(r->sqe, sizeof(*r->sqe));
	munmap(r->mem, r->params.cq_off.cqes +
	       r->params.cq_entries * sizeof(struct io_uring_cqe));
	close(r->fd);
}

/*
 * gup_test stands in for VFIO: an open file that holds a range of memory by long-term
 * pins, until it is told to stop or closed. In older kernels one at a time can do so.
 */
int open_pin(void)
{
	return open(GUP_TEST, O_RDWR);
}

int pin_range(int fd, char *addr, size_t len, unsigned int flags)
{
	struct pin_longterm_test args = {
		.addr = (uintptr_t)addr,
		.size = len,
		.flags = flags,
	};

	return ioctl(fd, PIN_LONGTERM_TEST_START, &args) ? -errno : 0;
}

/* Copy what is pinned, as a device would read it: without a page table. */
int read_pinned(int fd, char *buf)
{
	__u64 addr = (uintptr_t)buf;

	return ioctl(fd, PIN_LONGTERM_TEST_READ, &addr) ? -errno : 0;
}

int unpin_range(int fd)
{
	return ioctl(fd, PIN_LONGTERM_TEST_STOP) ? -errno : 0;
}

/* Put references to pages into a pipe. */
ssize_t splice_pages(int pipefd, char *addr, size_t len)
{
	struct iovec iov = { .iov_base = addr, .iov_len = len };
	ssize_t ret = vmsplice(pipefd, &iov, 1, SPLICE_F_NONBLOCK);

	return ret < 0 ? -errno : ret;
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
 * The free pages of all CMA areas, or -1 if sysfs doesn't show them.  Older kernels show
 * only how many were allocated and released: subtract these from a large number.
 */
long nr_cma_pages(void)
{
	long left = cma_sum("available_pages");

	if (left < 0 && cma_sum("release_pages_success") >= 0)
		left = (LONG_MAX >> 1) + cma_sum("release_pages_success") -
		       cma_sum("alloc_pages_success");
	return left;
}

/* A device that mirrors the page tables of the process that has opened it. */
int open_mirror(void)
{
	return open("/dev/hmm_dmirror0", O_RDWR);
}

/*
 * Let it read or write @npages from @addr, or look at them.  It asks the kernel for
 * those that it doesn't have: *@faults tells how often, if that is of interest.
 */
int mirror(int fd, unsigned long request, const char *addr, void *buf,
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

long ask_mce_at(const char *question)
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

void open_mce_at(void)
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
static bool find_function(const char *name, unsigned long *start, size_t *len)
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
bool hold_at_call(const char *caller, const char *callee, bool other)
{
	unsigned long from, to;
	size_t len, unused;
	char question[80];

	if (!find_function(callee, &to, &unused) || !find_function(caller, &from, &len))
		return false;
	snprintf(question, sizeof(question), "hold %lx %zx %lx %x\n", from, len, to, other);
	return !ask_mce_at(question);
}

bool hold_call(const char *caller, const char *callee)
{
	return hold_at_call(caller, callee, false);
}

/* Have the first CPU held that has looked up which folio page @pfn is part of. */
bool hold_lookup(unsigned long pfn)
{
	char question[80];

	snprintf(question, sizeof(question), "watch %lx\n",
		 STRUCT_PAGES + pfn * STRUCT_PAGE_SIZE + STRUCT_PAGE_COMPOUND);
	return !ask_mce_at(question);
}

bool is_held(void)
{
	return !ask_mce_at("held\n");
}

/* Let it go on.  Was it there until now? */
bool let_go_on(void)
{
	return !ask_mce_at("release\n");
}

/* How a page gets lost that no process maps, and what a repeat returns. */
const struct injector *by_address(struct subject *s)
{
	return s->injector->is_hw && !mce_on_amd() ? &by_scrub : &by_pfn;
}

/* How many hugepages the pool is meant to have. */
long nr_meant(struct subject *s)
{
	struct pool pool = pool_read(s->size);
	long nr;

	if (default_size() == s->size)
		return read_long(NR_HUGEPAGES, &nr) ? nr : -1;
	return pool.nr - pool.surplus;
}

/* Is there nothing but what the test has asked for? */
bool pool_is_ours(struct subject *s)
{
	return s->before.nr == s->before.free && !s->before.resv && !s->before.surplus;
}

/* Reserve memory in hugepages that has nothing to do with the file. */
char *map_others(struct subject *s, unsigned long nr)
{
	char *map = mmap(NULL, nr * s->size, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB |
			 __builtin_ctzl(s->size) << MAP_HUGE_SHIFT, -1, 0);

	return map == MAP_FAILED ? NULL : map;
}

/* Pages that hold struct pages. */
long nr_memmap(void)
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

/* Take hugepages from this node only. */
bool bind_to(int node)
{
	unsigned long mask = 1UL << node;

	return !syscall(SYS_set_mempolicy, MPOL_BIND, &mask, MAX_NODES);
}

/*
 * The @nth CPU after this one.  The caller stays on its CPU, so that the next call counts
 * from there, too.
 */
int nth_cpu(unsigned int nth)
{
	int cpu = sched_getcpu();

	move_to_cpu(cpu);
	return (cpu + nth) % sysconf(_SC_NPROCESSORS_ONLN);
}

void move_to_cpu(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	sched_setaffinity(0, sizeof(set), &set);
}

/* Be the only one on this CPU, or no more.  Children are not. */
bool hold_cpu(bool hold)
{
	const int policy = hold ? SCHED_FIFO | SCHED_RESET_ON_FORK : SCHED_OTHER;
	const struct sched_param param = { .sched_priority = hold ? 1 : 0 };
	cpu_set_t here;

	CPU_ZERO(&here);
	CPU_SET(sched_getcpu(), &here);
	return !sched_setaffinity(0, sizeof(here), &here) &&
	       !sched_setscheduler(0, policy, &param);
}

/* Undo what tests that died have left. */
void clean_up(void)
{
	if (getpid() != undo->owner)
		return;
	restore_settings();
	unpoison_all();
	restore_pools();
}

static void clean_up_and_die(int sig)
{
	/* exit() will call clean_up(). */
	exit(KSFT_FAIL);
}

/* Has there been a machine check before this program?  Nothing else refuses so. */
static bool unpoisoning_is_disabled(void)
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

void open_undo(void)
{
	undo = alloc_shared(sizeof(*undo));
	if (!undo)
		ksft_exit_fail_perror("mmap");
	undo->owner = getpid();
	undo->monitor = mce_open_monitor();
	undo->mce_seen = unpoisoning_is_disabled();
	save_settings();
	atexit(clean_up);
	signal(SIGINT, clean_up_and_die);
	signal(SIGTERM, clean_up_and_die);
	signal(SIGHUP, clean_up_and_die);
}
