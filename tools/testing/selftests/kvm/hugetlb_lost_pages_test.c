// SPDX-License-Identifier: GPL-2.0
/*
 * KVM maps the healthy pages of a hugepage, and never its lost pages.
 *
 * The guest has a memslot of 2 MiB or 1 GiB hugepages, from a file that was made with
 * MFD_MF_KEEP_UE_MAPPED: the VMM's mapping of a hugepage stays as it is, whatever
 * memory errors take from it.  The guest's mapping does not.  From the moment that a
 * page is lost
 *
 * - no vCPU uses it any more.  An access ends KVM_RUN with EINTR and a SIGBUS for the
 *   thread: BUS_MCEERR_AR, the page's address in the VMM's mapping, the size of a base
 *   page.  The guest has not gone on: KVM_RUN once more is the same access once more.
 *   No machine check comes of it, and nothing is counted or recorded again.
 * - KVM maps everything else with the largest blocks that contain no lost page.
 *
 * Code, stack and page tables of the guest are in ordinary memory.  The guest takes
 * orders, and the VMM sets its pc behind the access that it can't make.
 */
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include "hugetlb_mfr.h"
#include "processor.h"
#include "ucall_common.h"

/* Where the guest has the memory under test, in both of its address spaces. */
#define MEM_SLOT		1
#define MEM_BASE		(4UL << 30)

/* Of each page, words so far apart are written and compared. */
#define STRIDE			64

/* Words in between, for vCPUs that use a page all the time. */
#define WORD_WRITTEN		1
#define WORD_READ		2
#define TOO_LATE		0x6c6f7374

#define NR_BUSY			32
#define NR_MAPPINGS		2000
#define NR_VCPUS		2
#define WRITER			0
#define READER			1

/*
 * The guest
 */
enum what {
	FILL,		/* write all healthy pages */
	CHECK,		/* read all healthy pages, and say how many are right */
	LOAD,		/* read the page */
	STORE,		/* write to the page */
	STAY_BUSY,	/* use the pages that busy[] tells, each vCPU in its way */
};

static struct {
	enum what what;
	u64 page;
} order;

static u64 page_size, nr_pages;
static u64 lost[SZ_1G / SZ_4K / 64];

static u64 busy[NR_BUSY];
static bool stop;
/* How often a vCPU has used them all, */
static u64 rounds[NR_VCPUS];
/* and what it must leave alone, one bit for each. */
static u64 given_up[NR_VCPUS];
/* The pages that the reader has read after they were lost, likewise. */
static u64 read_too_late;

#ifdef __aarch64__
#define LOAD_WORD		"ldr %[value], [%[word]]"
#define STORE_WORD		"str %[value], [%[word]]"
#else
#define LOAD_WORD		"mov (%[word]), %[value]"
#define STORE_WORD		"mov %[value], (%[word])"
#endif

/* Where the guest goes on if the page is lost. */
extern char behind_load[], behind_store[];

static noinline u64 guest_load(u64 *word)
{
	u64 value = 0;

	asm volatile(LOAD_WORD "\n"
		     ".globl behind_load\n"
		     "behind_load:"
		     : [value] "+r" (value) : [word] "r" (word) : "memory");
	return value;
}

static noinline void guest_store(u64 *word, u64 value)
{
	asm volatile(STORE_WORD "\n"
		     ".globl behind_store\n"
		     "behind_store:"
		     : : [value] "r" (value), [word] "r" (word) : "memory");
}

static u64 *guest_page(u64 page)
{
	return (u64 *)(MEM_BASE + page * page_size);
}

static u64 pattern(u64 page, u64 i)
{
	return (page << 16 | i) ^ 0xa5a5a5a5a5a5a5a5;
}

static bool is_lost(u64 page)
{
	return lost[page / 64] >> page % 64 & 1;
}

static void guest_fill(void)
{
	u64 page, i;

	for (page = 0; page < nr_pages; page++) {
		if (is_lost(page))
			continue;
		for (i = 0; i < page_size / sizeof(u64); i += STRIDE)
			guest_page(page)[i] = pattern(page, i);
	}
}

static u64 guest_check(void)
{
	u64 page, i, nr_good = 0;

	for (page = 0; page < nr_pages; page++) {
		u64 differs = 0;

		if (is_lost(page))
			continue;
		for (i = 0; i < page_size / sizeof(u64); i += STRIDE)
			differs |= guest_page(page)[i] ^ pattern(page, i);
		nr_good += !differs;
	}
	return nr_good;
}

static void guest_stay_busy(u64 id)
{
	u64 i;

	while (!READ_ONCE(stop)) {
		WRITE_ONCE(rounds[id], rounds[id] + 1);
		for (i = 0; i < NR_BUSY; i++) {
			if (READ_ONCE(given_up[id]) >> i & 1)
				continue;
			if (id == WRITER)
				guest_store(guest_page(busy[i]) + WORD_WRITTEN, rounds[id]);
			else if (guest_load(guest_page(busy[i]) + WORD_READ) == TOO_LATE)
				read_too_late |= 1ULL << i;
		}
	}
}

static void guest_code(u64 id)
{
	u64 result = 0;

	for (;;) {
		GUEST_SYNC(result);
		switch (order.what) {
		case FILL:
			guest_fill();
			break;
		case CHECK:
			result = guest_check();
			break;
		case LOAD:
			guest_load(guest_page(order.page) + WORD_READ);
			break;
		case STORE:
			guest_store(guest_page(order.page) + WORD_WRITTEN, 0);
			break;
		case STAY_BUSY:
			guest_stay_busy(id);
			break;
		}
	}
}

/*
 * The VMM
 */
struct vmm {
	struct subject s;
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu[NR_VCPUS];
};

/* The number of signals this thread has had, and the contents of the last one. */
static __thread struct {
	u64 nr;
	uintptr_t addr;
	int code;
	int lsb;
} hit;

static void on_sigbus(int sig, siginfo_t *si, void *context)
{
	hit.nr++;
	hit.addr = (uintptr_t)si->si_addr;
	hit.code = si->si_code;
	hit.lsb = si->si_addr_lsb;
	mce_release_victim();
}

/*
 * Let the guest go on until it is done with its order.  Returns false if SIGBUS has come
 * in between.
 */
static bool run_guest(struct kvm_vcpu *vcpu, u64 *result)
{
	u64 before = hit.nr;
	struct ucall uc;

	while (__vcpu_run(vcpu)) {
		TEST_ASSERT(errno == EINTR, KVM_IOCTL_ERROR(KVM_RUN, -1));
		if (hit.nr != before)
			return false;
	}

	switch (get_ucall(vcpu, &uc)) {
	case UCALL_SYNC:
		if (result)
			*result = uc.args[1];
		return true;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
	default:
		TEST_FAIL("unexpected exit: %s", exit_reason_str(vcpu->run->exit_reason));
	}
	return false;
}

static bool let_guest(struct vmm *vmm, enum what what, u64 page, u64 *result)
{
	order.what = what;
	order.page = page;
	sync_global_to_guest(vmm->vm, order);
	return run_guest(vmm->vcpu[0], result);
}

/* The guest leaves out an access. */
static void skip(struct kvm_vcpu *vcpu, enum what what)
{
	vcpu_arch_set_entry_point(vcpu, what == STORE ? behind_store : behind_load);
}

static void set_slot(struct vmm *vmm, u32 flags, u64 size)
{
	vm_set_user_memory_region(vmm->vm, MEM_SLOT, flags, MEM_BASE, size, vmm->s.mem);
}

static u64 size_of_slot(struct vmm *vmm)
{
	return vmm->s.nr_huge * vmm->s.hugepage;
}

/* A virtual machine with the file in it. */
static void create_vm(struct vmm *vmm)
{
	struct subject *s = &vmm->s;
	u32 i;

	map_file(s);
	/* With room for the tables of a guest that maps it with base pages. */
	vmm->vm = __vm_create_with_vcpus(VM_SHAPE_DEFAULT, NR_VCPUS, s->nr_pages, guest_code,
					 vmm->vcpu);
	set_slot(vmm, 0, size_of_slot(vmm));
#ifdef __x86_64__
	/* Shadow page tables have no larger blocks than the guest's own. */
	virt_map_level(vmm->vm, MEM_BASE, MEM_BASE, size_of_slot(vmm),
		       s->hugepage == SZ_1G ? PG_LEVEL_1G : PG_LEVEL_2M);
#else
	virt_map(vmm->vm, MEM_BASE, MEM_BASE, size_of_slot(vmm) / vmm->vm->page_size);
#endif
	page_size = psize();
	nr_pages = s->nr_pages;
	sync_global_to_guest(vmm->vm, page_size);
	sync_global_to_guest(vmm->vm, nr_pages);

	for (i = 0; i < NR_VCPUS; i++) {
		vcpu_args_set(vmm->vcpu[i], 1, (u64)i);
		TEST_ASSERT(run_guest(vmm->vcpu[i], NULL), "The guest doesn't start");
	}
}

/* From now on the guest must not use the page. */
static void tell_guest(struct vmm *vmm, u64 page)
{
	lost[page / 64] |= 1ULL << page % 64;
	sync_global_to_guest(vmm->vm, lost);
}

static void lose(struct vmm *vmm, u64 page)
{
	lose_page(&vmm->s, page);
	tell_guest(vmm, page);
}

/*
 * The tests
 */
/* The guest uses all of its memory but what is lost, and finds it as it should be. */
static void expect_healthy(struct __test_metadata *_metadata, struct vmm *vmm)
{
	u64 nr_good = 0;

	hit.nr = 0;
	ASSERT_TRUE(let_guest(vmm, CHECK, 0, &nr_good))
		TH_LOG("a healthy page is gone: %lu", (hit.addr - (uintptr_t)vmm->s.mem) / psize());
	EXPECT_EQ(vmm->s.nr_pages - vmm->s.nr_lost, nr_good);
	EXPECT_EQ(0, hit.nr);
}

/* The same, and the size of all blocks is right, twice. */
static void expect_exact(struct __test_metadata *_metadata, struct vmm *vmm)
{
	/* The mappings that the error has left are completed. */
	expect_healthy(_metadata, vmm);
	expect_exact_entries(_metadata, &vmm->s, vmm->vm);
	/* Everything is mapped anew. */
	expect_healthy(_metadata, vmm);
	expect_exact_entries(_metadata, &vmm->s, vmm->vm);
}

static void setup(struct __test_metadata *_metadata, struct vmm *vmm, u64 hugepage,
		  bool is_hw)
{
	struct sigaction sa = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };

	setup_subject(_metadata, &vmm->s, hugepage, hugepage == SZ_2M ? MAX_HUGE : 1, is_hw);
	if (_metadata->exit_code == KSFT_SKIP)
		return;
	ASSERT_EQ(0, sigaction(SIGBUS, &sa, NULL));
	make_file(_metadata, &vmm->s, MFD_MF_KEEP_UE_MAPPED);
	create_vm(vmm);
	ASSERT_TRUE(let_guest(vmm, FILL, 0, NULL));
	/* From now on all of the guest's code is mapped. */
	ASSERT_TRUE(let_guest(vmm, LOAD, 0, NULL));
	ASSERT_TRUE(let_guest(vmm, STORE, 0, NULL));
	expect_exact(_metadata, vmm);
	expect_healthy(_metadata, vmm);
}

/* The guest tries to use a lost page, @times times, and is told as often. */
static void expect_signals(struct __test_metadata *_metadata, struct vmm *vmm,
			   enum what what, u64 page, u64 times)
{
	struct kvm_vcpu *vcpu = vmm->vcpu[0];
	u64 i;

	hit.nr = 0;
	ASSERT_FALSE(let_guest(vmm, what, page, NULL))
		TH_LOG("the guest could use page %lu", page);
	for (i = 1; ; i++) {
		ASSERT_EQ(i, hit.nr);
		ASSERT_EQ(BUS_MCEERR_AR, hit.code);
		ASSERT_EQ((uintptr_t)vmm->s.mem + page * psize(), hit.addr & -psize());
		ASSERT_EQ(pshift(), hit.lsb);
		if (i == times)
			break;
		ASSERT_FALSE(run_guest(vcpu, NULL));
	}

	skip(vcpu, what);
	ASSERT_TRUE(run_guest(vcpu, NULL));
	EXPECT_EQ(times, hit.nr);
}

/* All of them, however the guest uses them; and the map is as it was. */
static void expect_lost(struct __test_metadata *_metadata, struct vmm *vmm)
{
	struct entries before;
	u64 i;

	expect_healthy(_metadata, vmm);
	before = entries_of(vmm->vm);
	for (i = 0; i < vmm->s.nr_lost; i++) {
		expect_signals(_metadata, vmm, LOAD, vmm->s.lost[i], 1);
		expect_signals(_metadata, vmm, STORE, vmm->s.lost[i], 1);
	}
	expect_entries(_metadata, before, entries_of(vmm->vm), (struct entries){});
	expect_corrupted(_metadata, &vmm->s);
}

static u64 pages_of_block(void)
{
	return SZ_2M / psize();
}

FIXTURE(lost_pages) {
	struct vmm vmm;
};

FIXTURE_VARIANT(lost_pages) {
	u64 hugepage;
};

FIXTURE_VARIANT_ADD(lost_pages, corrupt_pfn_2m) {
	.hugepage = SZ_2M,
};

FIXTURE_VARIANT_ADD(lost_pages, corrupt_pfn_1g) {
	.hugepage = SZ_1G,
};

FIXTURE_SETUP(lost_pages)
{
	setup(_metadata, &self->vmm, variant->hugepage, false);
}

FIXTURE_TEARDOWN_PARENT(lost_pages)
{
	teardown_subject(_metadata, &self->vmm.s);
}

/* KVM maps the largest blocks around two lost pages, and not these. */
static void lose_two(struct __test_metadata *_metadata, struct vmm *vmm, u64 one, u64 other)
{
	lose(vmm, one);
	expect_exact(_metadata, vmm);
	lose(vmm, other);
	expect_exact(_metadata, vmm);
	expect_lost(_metadata, vmm);
}

TEST_F_TIMEOUT(lost_pages, are_left_out_at_the_ends_of_a_block, SLOW)
{
	lose_two(_metadata, &self->vmm, 0, pages_of_block() - 1);
}

TEST_F_TIMEOUT(lost_pages, are_left_out_at_the_ends_of_memory, SLOW)
{
	lose_two(_metadata, &self->vmm, 0, self->vmm.s.nr_pages - 1);
}

TEST_F_TIMEOUT(lost_pages, are_left_out_of_one_block, SLOW)
{
	lose_two(_metadata, &self->vmm, pages_of_block() + 3, pages_of_block() * 2 - 200);
}

TEST_F_TIMEOUT(lost_pages, are_left_out_of_two_blocks, SLOW)
{
	lose_two(_metadata, &self->vmm, pages_of_block() - 1, pages_of_block());
}

/* A guest can do this as often as it likes, so it must cost the host nothing. */
static void lose_many(struct __test_metadata *_metadata, struct vmm *vmm)
{
	/* Machine checks take their time. */
	const u64 nr = vmm->s.is_hw ? 10 : MAX_ERRORS, times = 1000;
	u64 machine_checks, i;

	for (i = 0; i < nr; i++)
		lose(vmm, nth_page(&vmm->s, i, nr));
	expect_corrupted(_metadata, &vmm->s);
	expect_healthy(_metadata, vmm);
	machine_checks = sum_of_machine_checks();

	for (i = 0; i < nr; i++)
		expect_signals(_metadata, vmm, i % 2 ? STORE : LOAD, vmm->s.lost[i], times);

	EXPECT_EQ(machine_checks, sum_of_machine_checks());
	expect_corrupted(_metadata, &vmm->s);
	expect_exact(_metadata, vmm);
}

TEST_F_TIMEOUT(lost_pages, cause_one_signal_for_each_access, SLOW)
{
	lose_many(_metadata, &self->vmm);
}

/* A vCPU that uses all of busy[] until it is stopped, and its signals. */
struct busy_vcpu {
	struct vmm *vmm;
	u32 id;
	atomic_int nr_signals[NR_BUSY];
	atomic_int nr_wrong;
};

static void *run_busy_vcpu(void *arg)
{
	struct busy_vcpu *b = arg;
	struct kvm_vcpu *vcpu = b->vmm->vcpu[b->id];
	u64 *leave = addr_gva2hva(vcpu->vm, (gva_t)&given_up[b->id]);
	u64 page, i, nr;

	for (nr = 1; !run_guest(vcpu, NULL); nr++) {
		page = (hit.addr - (uintptr_t)b->vmm->s.mem) / psize();
		for (i = 0; i < NR_BUSY && busy[i] != page; i++)
			;
		if (hit.nr != nr || hit.code != BUS_MCEERR_AR || hit.lsb != pshift() ||
		    i == NR_BUSY) {
			b->nr_wrong++;
			break;
		}
		b->nr_signals[i]++;
		WRITE_ONCE(*leave, *leave | 1ULL << i);
		skip(vcpu, b->id == WRITER ? STORE : LOAD);
	}
	return NULL;
}

static void start_busy_vcpus(struct __test_metadata *_metadata, struct vmm *vmm,
			     struct busy_vcpu *b, pthread_t *thread)
{
	u32 id;

	order.what = STAY_BUSY;
	sync_global_to_guest(vmm->vm, order);
	for (id = 0; id < NR_VCPUS; id++) {
		b[id].vmm = vmm;
		b[id].id = id;
		ASSERT_EQ(0, pthread_create(&thread[id], NULL, run_busy_vcpu, &b[id]));
	}
}

#define wait_until(cond)					\
({								\
	int __tries;						\
								\
	for (__tries = 0; __tries < 10000 && !(cond); __tries++)\
		usleep(1000);					\
	__tries < 10000;					\
})

/*
 * When the error has been dealt with, no vCPU writes the page any more, and none reads
 * what the VMM writes there.  (To the VMM, a simulated error does nothing.)
 */
TEST_F_TIMEOUT(lost_pages, are_gone_from_busy_vcpus_at_once, SLOW)
{
	struct vmm *vmm = &self->vmm;
	struct busy_vcpu b[NR_VCPUS] = {};
	pthread_t thread[NR_VCPUS];
	u64 *guest_rounds, last, written, i;
	u32 id;

	for (i = 0; i < NR_BUSY; i++)
		busy[i] = nth_page(&vmm->s, i, NR_BUSY);
	sync_global_to_guest(vmm->vm, busy);
	start_busy_vcpus(_metadata, vmm, b, thread);
	guest_rounds = addr_gva2hva(vmm->vm, (gva_t)rounds);

	for (i = 0; i < NR_BUSY; i++) {
		u64 *word = (u64 *)(vmm->s.mem + busy[i] * psize());

		for (id = 0; id < NR_VCPUS; id++) {
			last = READ_ONCE(guest_rounds[id]);
			ASSERT_TRUE(wait_until(READ_ONCE(guest_rounds[id]) > last + 2));
		}

		lose_page(&vmm->s, busy[i]);
		written = READ_ONCE(word[WORD_WRITTEN]);
		WRITE_ONCE(word[WORD_READ], TOO_LATE);

		for (id = 0; id < NR_VCPUS; id++) {
			EXPECT_TRUE(wait_until(b[id].nr_signals[i] || b[id].nr_wrong))
				TH_LOG("vCPU %u goes on using page %lu", id, busy[i]);
		}
		EXPECT_EQ(written, READ_ONCE(word[WORD_WRITTEN]));
		/* One page that went wrong says enough. */
		ASSERT_EQ(KSFT_PASS, _metadata->exit_code);
	}

	write_guest_global(vmm->vm, stop, true);
	for (id = 0; id < NR_VCPUS; id++) {
		ASSERT_EQ(0, pthread_join(thread[id], NULL));
		EXPECT_EQ(0, b[id].nr_wrong);
		for (i = 0; i < NR_BUSY; i++)
			EXPECT_EQ(1, b[id].nr_signals[i]);
	}
	EXPECT_EQ(0, SYNC_FROM_GUEST_AND_READ(vmm->vm, read_too_late));

	for (i = 0; i < NR_BUSY; i++)
		tell_guest(vmm, busy[i]);
	expect_exact(_metadata, vmm);
}

/*
 * The guest uses the neighbors of a page while it is being lost.  KVM may map them by a
 * block with that page as long as it isn't on record, which is after the VMAs of all
 * other mappings have been looked at.
 */
TEST_F_TIMEOUT(lost_pages, do_not_return_with_their_neighbors, SLOW)
{
	struct vmm *vmm = &self->vmm;
	struct subject other = vmm->s;
	struct busy_vcpu b[NR_VCPUS] = {};
	pthread_t thread;
	u64 *guest_rounds, last, page, i;

	for (i = 0; i < NR_BUSY; i++)
		busy[i] = nth_page(&vmm->s, i, NR_BUSY) ^ 1;
	sync_global_to_guest(vmm->vm, busy);
	for (i = 0; i < NR_MAPPINGS; i++)
		map_file(&other);
	order.what = STAY_BUSY;
	sync_global_to_guest(vmm->vm, order);
	b[READER].vmm = vmm;
	b[READER].id = READER;
	ASSERT_EQ(0, pthread_create(&thread, NULL, run_busy_vcpu, &b[READER]));
	guest_rounds = addr_gva2hva(vmm->vm, (gva_t)rounds);

	for (i = 0; i < NR_BUSY; i++) {
		page = busy[i] ^ 1;
		last = READ_ONCE(guest_rounds[READER]);
		ASSERT_TRUE(wait_until(READ_ONCE(guest_rounds[READER]) > last + 2));
		lose(vmm, page);
		expect_signals(_metadata, vmm, LOAD, page, 1);
	}

	write_guest_global(vmm->vm, stop, true);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	for (i = 0; i < NR_BUSY; i++)
		EXPECT_EQ(0, b[READER].nr_signals[i]);
	expect_exact(_metadata, vmm);
}

/*
 * A page that the VMM gives up becomes zero under the guest, which goes on with the rest
 * of its memory and then has all of it in blocks as large as before.
 */
TEST_F_TIMEOUT(lost_pages, are_healed_under_busy_vcpus, SLOW)
{
	struct vmm *vmm = &self->vmm, healed;
	struct busy_vcpu b[NR_VCPUS] = {};
	pthread_t thread[NR_VCPUS];
	u64 *guest_rounds, last, i, page;
	u32 id;

	write_number(pool(vmm->s.hugepage, "nr_hugepages"), vmm->s.nr_hugepages_with + 1);
	for (i = 0; i < NR_BUSY; i++)
		busy[i] = nth_page(&vmm->s, i, NR_BUSY);
	sync_global_to_guest(vmm->vm, busy);
	page = busy[0] + 1;
	lose(vmm, page);

	start_busy_vcpus(_metadata, vmm, b, thread);
	guest_rounds = addr_gva2hva(vmm->vm, (gva_t)rounds);
	for (i = 0; i < 2; i++) {
		for (id = 0; id < NR_VCPUS; id++) {
			last = READ_ONCE(guest_rounds[id]);
			EXPECT_TRUE(wait_until(READ_ONCE(guest_rounds[id]) > last + 2));
		}
		if (!i)
			EXPECT_EQ(0, fallocate(vmm->s.fd, FALLOC_FL_ZERO_RANGE |
					       FALLOC_FL_KEEP_SIZE, page * psize(), psize()));
	}
	write_guest_global(vmm->vm, stop, true);
	for (id = 0; id < NR_VCPUS; id++) {
		ASSERT_EQ(0, pthread_join(thread[id], NULL));
		EXPECT_EQ(0, b[id].nr_wrong);
		for (i = 0; i < NR_BUSY; i++)
			EXPECT_EQ(0, b[id].nr_signals[i]);
	}
	/* No store is gone. */
	for (i = 0; i < NR_BUSY; i++)
		EXPECT_EQ(guest_rounds[WRITER],
			  ((u64 *)(vmm->s.mem + busy[i] * psize()))[WORD_WRITTEN]);
	for (i = 0; i < psize() && !vmm->s.mem[page * psize() + i]; i++)
		;
	EXPECT_EQ(psize(), i);

	lost[page / 64] = 0;
	sync_global_to_guest(vmm->vm, lost);
	healed = *vmm;
	healed.s.nr_lost = 0;
	ASSERT_TRUE(let_guest(&healed, FILL, 0, NULL));
	expect_exact(_metadata, &healed);
}

/*
 * Right after dirty logging the map is exact if the MMU puts blocks together. It is empty
 * if the MMU drops the small mappings of hugepages, for faults to replace them: the shadow
 * MMU does that, and the TDP MMU of 6.12.
 */
static void expect_recovered_entries(struct __test_metadata *_metadata, struct subject *s,
				     struct entries recovered, struct entries others)
{
	struct entries want = {};

	if (memcmp(&recovered, &others, sizeof(others)))
		want = exact_entries(s);
	expect_entries(_metadata, want, recovered, others);
}

TEST_F_TIMEOUT(lost_pages, stay_out_when_dirty_logging_ends, SLOW)
{
	struct vmm *vmm = &self->vmm;
	struct entries logging, recovered, completed, others, small = {};

	lose(vmm, pages_of_block() - 1);
	expect_healthy(_metadata, vmm);

	set_slot(vmm, KVM_MEM_LOG_DIRTY_PAGES, size_of_slot(vmm));
	ASSERT_TRUE(let_guest(vmm, FILL, 0, NULL));
	lose(vmm, vmm->s.nr_pages - 1);
	expect_lost(_metadata, vmm);
	logging = entries_of(vmm->vm);

	set_slot(vmm, 0, size_of_slot(vmm));
	recovered = entries_of(vmm->vm);
	expect_lost(_metadata, vmm);
	completed = entries_of(vmm->vm);

	unmap_all(&vmm->s);
	others = entries_of(vmm->vm);
	small.nr_4k = vmm->s.nr_pages - vmm->s.nr_lost;
	expect_entries(_metadata, small, logging, others);
	expect_recovered_entries(_metadata, &vmm->s, recovered, others);
	expect_entries(_metadata, exact_entries(&vmm->s), completed, others);
}

TEST_F_TIMEOUT(lost_pages, stay_out_of_a_new_slot, SLOW)
{
	struct vmm *vmm = &self->vmm;

	lose(vmm, 0);
	set_slot(vmm, 0, 0);
	lose(vmm, pages_of_block());
	set_slot(vmm, 0, size_of_slot(vmm));
	expect_exact(_metadata, vmm);
	expect_lost(_metadata, vmm);
}

/* Another process with the same memory, while the first one goes on. */
static void run_other_vmm(struct __test_metadata *_metadata, struct vmm *vmm, int line)
{
	struct vmm other = { .s = vmm->s };
	char c = 0;
	u64 i;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	create_vm(&other);
	expect_exact(_metadata, &other);
	expect_healthy(_metadata, &other);
	ASSERT_EQ(1, write(line, &c, 1));
	ASSERT_EQ(1, read(line, &c, 1));

	for (i = 0; i < vmm->s.nr_lost; i++) {
		other.s.lost[other.s.nr_lost++] = vmm->s.lost[i];
		tell_guest(&other, vmm->s.lost[i]);
	}
	expect_exact(_metadata, &other);
	expect_lost(_metadata, &other);
}

TEST_F_TIMEOUT(lost_pages, are_lost_to_each_vmm, SLOW)
{
	struct vmm *vmm = &self->vmm;
	int line[2], status;
	char c = 0;
	pid_t pid;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, line));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(line[0]);
		run_other_vmm(_metadata, vmm, line[1]);
		_exit(_metadata->exit_code);
	}
	close(line[1]);
	ASSERT_EQ(1, read(line[0], &c, 1));

	lose(vmm, 1);
	lose(vmm, vmm->s.nr_pages / 2);
	expect_exact(_metadata, vmm);
	expect_lost(_metadata, vmm);

	ASSERT_EQ(1, write(line[0], &c, 1));
	ASSERT_EQ(pid, waitpid(pid, &status, 0));
	EXPECT_TRUE(WIFEXITED(status));
	EXPECT_EQ(KSFT_PASS, WEXITSTATUS(status));
	expect_exact(_metadata, vmm);
}

/* After a machine check nothing can be unpoisoned any more, so these come last. */
FIXTURE(consumed_pages) {
	struct vmm vmm;
};

FIXTURE_VARIANT(consumed_pages) {
	u64 hugepage;
};

FIXTURE_VARIANT_ADD(consumed_pages, mce_2m) {
	.hugepage = SZ_2M,
};

FIXTURE_VARIANT_ADD(consumed_pages, mce_1g) {
	.hugepage = SZ_1G,
};

FIXTURE_SETUP(consumed_pages)
{
	setup(_metadata, &self->vmm, variant->hugepage, true);
}

FIXTURE_TEARDOWN_PARENT(consumed_pages)
{
	teardown_subject(_metadata, &self->vmm.s);
}

TEST_F_TIMEOUT(consumed_pages, are_left_out_of_two_blocks, SLOW)
{
	lose_two(_metadata, &self->vmm, pages_of_block() - 1, pages_of_block());
}

TEST_F_TIMEOUT(consumed_pages, cause_one_signal_for_each_access, SLOW)
{
	lose_many(_metadata, &self->vmm);
}

TEST_HARNESS_MAIN
