/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The part of the tests' library that doesn't need the test harness: ways to lose memory,
 * a file whose hugepages are lost in part, and what the kernel tells of both.  See
 * mfr_harness.h for the rest.
 *
 * Words: a raw page is one small page of a hugepage.  A lost page is a raw page
 * with an uncorrected error.  A kept hugepage belongs to a file made with
 * MFD_MF_KEEP_UE_MAPPED.
 *
 * The tests size the pools themselves and put them back.  All that was poisoned is
 * recorded in struct undo, and unpoisoned when a test has ended, however it did.
 */
#ifndef _SELFTESTS_MM_MFR_UTIL_H
#define _SELFTESTS_MM_MFR_UTIL_H

#include <asm-generic/mman.h> /* Force the import of the tools version. */
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
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <lib/test_hmm_uapi.h>
#include "../kselftest.h"
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
#define NODES			"/sys/devices/system/node/node"
#define NODES_WITH_MEMORY	"/sys/devices/system/node/has_memory"
#define HVO			"/proc/sys/vm/hugetlb_optimize_vmemmap"
#define NR_HUGEPAGES		"/proc/sys/vm/nr_hugepages"
#define CORE_PATTERN		"/proc/sys/kernel/core_pattern"
#define FAILSLAB	"/sys/kernel/debug/failslab/"
#define FAIL_PAGE	"/sys/kernel/debug/fail_page_alloc/"
#define GUP_TEST		"/sys/kernel/debug/gup_test"
#define TRACING			"/sys/kernel/tracing/instances/hugetlb-mfr"

#define SZ_2M			(2UL << 20)
#define SZ_1G			(512 * SZ_2M)

#define NR_SAMPLES		8
#define MAX_POISON		16384
#define MAX_SIZES		16
#define MAX_NODES		64
#define NR_FILTERS		5
#define NR_SETTINGS		12

/* Mounted over in a mount namespace of the test's own */
#define MOUNT			"/tmp"
#define GROUP			"/hugetlb-mfr"
#define CGROUP2_HUGETLB		"memory_hugetlb_accounting"

/*
 * State that outlives a test: what is poisoned now and how the pools were.  It
 * is shared with all tests, so that a test that dies or runs out of time leaves
 * nothing behind.
 */
struct undo {
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
		long node_nr[MAX_NODES];
	} saved[MAX_SIZES];
	long filter[NR_FILTERS];
	long soft_offline;
	char core_pattern[160];
	char setting[NR_SETTINGS][24];
	bool workers;			/* are chosen for allocations that fail */
	bool group;			/* make_group() has been called: */
	bool had_hugetlb;		/* the controllers that there were before */
	bool had_memory;
	char cgroup_options[128];
	int monitor;			/* line to the virtual machine's, or -1 */
	bool mce_seen;			/* a machine check: no unpoisoning any more */
	pid_t owner;
};

extern struct undo *undo;

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
	int repeat_ret;		/* what injecting into a lost page returns, */
	int filtered;		/* and an error that the filter turns away */
	bool repeat_signals;
	bool is_hw;
};

extern const struct injector by_madvise;
extern const struct injector by_pfn;
extern const struct injector by_mce;
extern const struct injector by_fetch;
extern const struct injector by_broadcast;
extern const struct injector by_scrub;

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
	long memmap;			/* pages of struct pages, without hugepages */
	long memmap_less;		/* what optimized hugepages of the test save */
};

/* The contents of the last SIGBUS to this thread, and how many there were. */
struct sigbus {
	int nr;
	int code;
	int lsb;
	uintptr_t addr;
};

extern __thread struct sigbus sigbus;

/* Is a SIGBUS to be expected that interrupts no access? */
extern atomic_bool injecting;

/* A victim in a thread of its own, and its last SIGBUS */
struct victim_thread {
	struct mce_victim *victim;
	struct sigbus sigbus;
};

/* The line to mce-at, or -1. */
extern int mce_at;

/* Accesses */
void release_victim(void);
void handle_sigbus(int sig, siginfo_t *si, void *ucontext);
int setup_sighandler(void);
bool try_access(char *ptr, bool write);
bool try_read(char *ptr);
bool try_write(char *ptr);

/* Trigger a read fault; the value is discarded. */
static inline void read_byte(const char *ptr)
{
	asm volatile("" : : "r" (*ptr) : "memory");
}

/* Errors */
int write_pfn(const char *path, unsigned long pfn);
int unpoison(unsigned long pfn);
int inject_madvise(char *addr, unsigned long pfn);
int inject_corrupt_pfn(char *addr, unsigned long pfn);
int inject_mce(char *addr, unsigned long pfn);
int consume_as(enum mce_kind kind, struct mce_victim *victim);
void *suffer(void *arg);
bool can_fail_allocations(void);
bool fail_allocation(unsigned int nth);
bool has_failed(void);
int inject_unrecorded(unsigned long pfn);
void mark_workers(bool mark);
int inject(struct subject *s, unsigned long nr);
const struct injector *by_address(struct subject *s);
bool filter_all_errors(void);
void restore_filter(void);

/*
 * Wait until @condition holds, with a look every @us.  Half a minute is enough for
 * whatever a kernel with debugging options does.  Returns whether it holds.
 */
#define WAIT_NS		30000000000ULL
#define wait_until(condition, us) ({ \
	uint64_t __end = now_ns() + WAIT_NS; \
	bool __holds; \
	\
	while (!(__holds = (condition)) && now_ns() < __end) \
		usleep(us); \
	if (!__holds) \
		ksft_print_msg("timed out: %s\n", #condition); \
	__holds; \
})

uint64_t now_ns(void);

/* Files of the kernel */
bool read_long(const char *path, long *val);
bool write_long(const char *path, long val);
ssize_t read_text(const char *path, char *buf, size_t len);
bool write_text(const char *path, const char *text);
long meminfo_kb(const char *name);
unsigned long hardware_corrupted(void);
unsigned long default_size(void);
long node_mf_stat(int node, const char *name);
long mf_stat(const char *name);
unsigned int nr_traced(const char *text);
void restore_soft_offline(void);
void listen_to_kernel(void);
unsigned int __printf(1, 2) nr_said(const char *format, ...);
void restore_settings(void);

/* Mounts and cgroups */
bool mount_privately(const char *type, const char *options);
bool write_group(const char *group, const char *file, const char *text);
bool make_group(bool *memory);

/* Memory blocks and nodes */
unsigned long pages_in_block(void);
long block_of(unsigned long pfn);
int change_block(long block, const char *state);
bool block_is_online(long block);
int move_page(char *addr, int node);
void bind_to_node(char *addr, size_t len, int node);
bool find_nodes(int *first, int *last);
int other_node(int node);
bool bind_to(int node);

/* Pools */
const char *pool_path(unsigned long size, const char *name);
bool pool_exists(unsigned long size);
long pool_get(unsigned long size, const char *name);
bool pool_set(unsigned long size, const char *name, long val);
struct pool pool_read(unsigned long size);
bool pool_grow(unsigned long size, long nr);
const char *node_pool_path(int node, unsigned long size, const char *name);
long node_pool_get(int node, unsigned long size, const char *name);
bool node_pool_set(int node, unsigned long size, const char *name, long val);
struct pool node_pool_read(int node, unsigned long size);
bool node_pool_grow(int node, unsigned long size, long nr);
long nr_cma_pages(void);
bool demote_to(unsigned long size, unsigned long smaller);
void restore_pools(void);
long nr_meant(struct subject *s);
bool pool_is_ours(struct subject *s);
char *map_others(struct subject *s, unsigned long nr);
long nr_memmap(void);

/* Page frames */
bool read_kpageflags(unsigned long pfn, unsigned long nr, uint64_t *flags);
bool read_pagemap(char *addr, unsigned long nr, uint64_t *entries);
bool is_poisoned(unsigned long pfn);
unsigned long mapped_pfn(char *addr);
bool is_mapped(char *addr);
int open_drain(void);
void drain_percpu_lists(int drain, unsigned long pfn);
void close_drain(int drain);

/* The poisoned pages */
void open_undo(void);
long unpoison_all(void);
bool note_poison(unsigned long pfn, unsigned long head);
void clean_up(void);

/* The file under test */
int create_memfd(unsigned long size, unsigned int flags);
bool kernel_can_keep(void);
char *map_file(struct subject *s, int flags);
void unmap_file(struct subject *s);
void fill(struct subject *s);
bool page_is_intact(const char *page, unsigned long nr);
bool page_is_zero(const char *page);
unsigned long nr_changed_pages(struct subject *s);
bool is_mapped_huge(struct subject *s, char *map, unsigned long nr);
bool need_more_hugepages(struct subject *s, long nr);
void give_up(struct subject *s, unsigned long huge);
unsigned long sample(struct subject *s, unsigned int i);
void wait_for_release(struct subject *s, long gone);
int punch(struct subject *s, off_t start, off_t len);
int zero(struct subject *s, off_t start, off_t len);
int zero_page(struct subject *s, unsigned long nr);
long nr_on_map(struct subject *s);

static inline char *raw_page(struct subject *s, unsigned long nr)
{
	return s->map + nr * psize();
}

static inline unsigned long raw_pfn(struct subject *s, unsigned long nr)
{
	return s->head[nr / s->nr_raw] + nr % s->nr_raw;
}

/* A healthy neighbour of the lost page @nr. */
static inline unsigned long neighbour(unsigned long nr)
{
	return nr ^ 1;
}

/* Other processes */
void *alloc_shared(size_t size);
pid_t fork_helper(void);

/* A child that waits for tell() and reports by tell() in turn */
struct helper {
	pid_t pid;
	int line;
};

bool start_helper(struct helper *h);
bool tell(struct helper *h);
bool wait_for_word(struct helper *h);

/*
 * Another process that maps the file and reports each SIGBUS it gets.  It
 * collects them instead of handling them, so none can be missed.
 */
struct witness {
	struct helper helper;
	char *map;
};

void be_witness(struct subject *s, int policy, struct helper *h);
bool witness_got(struct witness *w, siginfo_t *si, int timeout_ms);
void stop_witness(struct witness *w);

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

bool make_ring(struct ring *r);
bool make_ring_of(struct ring *r, unsigned int nr_requests, unsigned int flags);
int register_buffer(struct ring *r, char *addr, size_t len);
void prepare_fixed(struct ring *r, int opcode, int fd, void *addr, size_t len);
int submit(struct ring *r);
int submit_fixed(struct ring *r, int opcode, int fd, void *addr, size_t len);
bool is_in_flight(struct ring *r);
int wait_fixed(struct ring *r);
int transfer_fixed(struct ring *r, int opcode, int fd, char *addr, size_t len);
void destroy_ring(struct ring *r);

/* Pins */
int open_pin(void);
int pin_range(int fd, char *addr, size_t len, unsigned int flags);
int read_pinned(int fd, char *buf);
int unpin_range(int fd);
ssize_t splice_pages(int pipefd, char *addr, size_t len);

/* A device that mirrors page tables */
int open_mirror(void);
int mirror(int fd, unsigned long request, const char *addr, void *buf,
	   unsigned long npages, unsigned long *faults);

/* CPUs */
int nth_cpu(unsigned int nth);
void move_to_cpu(int cpu);
bool hold_cpu(bool hold);

/* CPUs that are held by mce-at */
long ask_mce_at(const char *question);
void open_mce_at(void);
bool hold_at_call(const char *caller, const char *callee, bool other);
bool hold_call(const char *caller, const char *callee);
bool hold_lookup(unsigned long pfn);
bool is_held(void);
bool let_go_on(void);

#endif /* _SELFTESTS_MM_MFR_UTIL_H */
