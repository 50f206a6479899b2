// SPDX-License-Identifier: GPL-2.0
/*
 * KVM's own accesses to guest memory that was lost to a memory error.
 *
 * KVM writes kvmclock and steal time into pages that the guest chooses.  If such a page
 * is in a hugetlb memfd made with MFD_MF_KEEP_UE_MAPPED, it stays mapped when it is
 * lost, and is taken out of the kernel's direct map.  KVM has to stop writing there,
 * without harm to the host or the guest, and has to start again when the guest chooses
 * another page.  Nested guests must not get the page, either.
 *
 * The tests of steal time on ordinary memory pass with and without that flag.
 *
 * A machine check forbids unpoisoning until the next boot, so its variant comes last.
 */
#include <fcntl.h>
#include <linux/bitmap.h>
#include <linux/memfd.h>
#include <linux/sizes.h>
#include <pthread.h>
#include <signal.h>
#include <time.h>
#include <asm/kvm_para.h>
#include <asm/pvclock-abi.h>
#include <sys/mman.h>
#include <unistd.h>

#include "../../mm/machine_check.h"
#include "hugetlb_mfr.h"
#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "processor.h"
#include "svm_util.h"
#include "test_util.h"

/* The memory under test, at the same address in L1's and L2's address spaces. */
#define MEM_SLOT		1
#define MEM_BASE		(4UL << 30)

/* How often something is repeated that must not happen, and must not do harm. */
#define REPEATS			5

/*
 * The guest
 *
 * It carries out one order of the VMM after the other, and returns a result for each.
 */
enum what {
	NOTHING,
	WRITE_MSR,	/* @value to @msr */
	SPIN,		/* until @enough is set */
	WATCH_STEAL,	/* like SPIN, and look at the steal time in @page */
	READ,		/* the first word of @page */
	LEAVE,		/* return from L2 to L1 */
};

static struct {
	enum what what;
	u32 msr;
	u64 value;
	u64 page;
} order;

static u64 enough;

/* The address after the access to memory that the guest is about to make. */
static u64 guest_resume;

static void *guest_page(u64 page)
{
	return (void *)(MEM_BASE + page * PAGE_SIZE);
}

static u64 guest_read(u64 page)
{
	u64 word = 0;

	asm volatile("lea 1f(%%rip), %%rcx\n\t"
		     "mov %%rcx, %[resume]\n\t"
		     "mov (%[page]), %[word]\n\t"
		     "1:"
		     : [resume] "=m" (guest_resume), [word] "+r" (word)
		     : [page] "r" (guest_page(page))
		     : "rcx", "memory");
	return word;
}

/* The flag must have been cleared each time the vCPU runs again. */
static void guest_watch_steal(u64 page)
{
	struct kvm_steal_time *st = guest_page(page);

	while (!READ_ONCE(enough))
		GUEST_ASSERT_EQ(READ_ONCE(st->preempted), 0);
}

static void guest_code(void)
{
	u64 result = 0;

	for (;;) {
		GUEST_SYNC(result);
		switch (order.what) {
		case WRITE_MSR:
			wrmsr(order.msr, order.value);
			break;
		case SPIN:
			while (!READ_ONCE(enough))
				;
			break;
		case WATCH_STEAL:
			guest_watch_steal(order.page);
			break;
		case READ:
			result = guest_read(order.page);
			break;
		case LEAVE:
			return;
		case NOTHING:
			break;
		}
	}
}

static void l2_code(void)
{
	guest_code();
	vmmcall();
}

static void l1_code(struct svm_test_data *svm)
{
	generic_svm_setup(svm, l2_code);
	run_guest(svm->vmcb, svm->vmcb_gpa);
	GUEST_ASSERT_EQ(svm->vmcb->control.exit_code, SVM_EXIT_VMMCALL);
	guest_code();
}

/*
 * The VMM
 */
struct vmm {
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	char *mem;		/* the guest's memory */
	u64 size;
	u64 hugepage;		/* the size of a hugepage there, or 0 */
};

/* How many signals there were since expect_signals(), and the last one's siginfo. */
static struct {
	unsigned int nr;
	int code;
	void *addr;
	int lsb;
} hit;

static void on_sigbus(int sig, siginfo_t *si, void *context)
{
	hit.nr++;
	hit.code = si->si_code;
	hit.addr = si->si_addr;
	hit.lsb = si->si_addr_lsb;
	/* To return from an unexpected one would be to repeat it for ever: die instead. */
	signal(SIGBUS, SIG_DFL);
	if (si->si_code == BUS_MCEERR_AR)
		mce_release_victim();
}

static void expect_signals(void)
{
	struct sigaction sa = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };

	memset(&hit, 0, sizeof(hit));
	TEST_ASSERT(!sigaction(SIGBUS, &sa, NULL), "sigaction");
}

/* Run the vCPU until the guest has carried out its order.  False: KVM_RUN failed. */
static bool run(struct vmm *vmm, u64 *result)
{
	struct ucall uc;

	if (__vcpu_run(vmm->vcpu))
		return false;
	switch (get_ucall(vmm->vcpu, &uc)) {
	case UCALL_SYNC:
		*result = uc.args[1];
		return true;
	case UCALL_ABORT:
		REPORT_GUEST_ASSERT(uc);
	default:
		TEST_FAIL("unexpected exit: %s", exit_reason_str(vmm->vcpu->run->exit_reason));
	}
	return false;
}

static void give_order(struct vmm *vmm, enum what what, u64 page)
{
	order.what = what;
	order.page = page;
	sync_global_to_guest(vmm->vm, order);
}

static bool let_guest(struct vmm *vmm, enum what what, u64 page)
{
	u64 unused;

	give_order(vmm, what, page);
	return run(vmm, &unused);
}

static bool goes_on(struct vmm *vmm)
{
	return let_guest(vmm, NOTHING, 0);
}

static bool write_msr(struct vmm *vmm, u32 msr, u64 value)
{
	order.msr = msr;
	order.value = value;
	return let_guest(vmm, WRITE_MSR, 0);
}

/* Let the guest have the structure that belongs to @msr at the beginning of @page. */
static bool enable(struct vmm *vmm, u32 msr, u64 page)
{
	return write_msr(vmm, msr, (MEM_BASE + page * PAGE_SIZE) | KVM_MSR_ENABLED);
}

static void *host_page(struct vmm *vmm, u64 page)
{
	return vmm->mem + page * PAGE_SIZE;
}

/* Tell if @page has been written since the last call, by KVM or by the guest. */
static bool was_dirtied(struct vmm *vmm, u64 page)
{
	unsigned long *log = bitmap_zalloc(vmm->size / PAGE_SIZE);
	bool dirty;

	kvm_vm_get_dirty_log(vmm->vm, MEM_SLOT, log);
	dirty = test_bit(page, log);
	free(log);
	return dirty;
}

static void set_slot(struct vmm *vmm, u32 flags)
{
	vm_set_user_memory_region(vmm->vm, MEM_SLOT, flags, MEM_BASE, vmm->size, vmm->mem);
}

static void delete_slot(struct vmm *vmm)
{
	vm_set_user_memory_region(vmm->vm, MEM_SLOT, 0, MEM_BASE, 0, NULL);
}

static void map_mem(struct vmm *vmm)
{
	int level = PG_LEVEL_4K;

	if (vmm->hugepage)
		level = vmm->hugepage == SZ_1G ? PG_LEVEL_1G : PG_LEVEL_2M;
	virt_map_level(vmm->vm, MEM_BASE, MEM_BASE, vmm->size, level);
}

static void create_vm(struct vmm *vmm)
{
	vmm->vm = vm_create_with_one_vcpu(&vmm->vcpu, guest_code);
	map_mem(vmm);
	set_slot(vmm, KVM_MEM_LOG_DIRTY_PAGES);
	TEST_ASSERT(goes_on(vmm), "The guest doesn't start");
}

/* Another thread on the vCPU's CPU, for the vCPU to be preempted. */
struct rival {
	struct vmm *vmm;
	struct kvm_steal_time *st;	/* look for the preempted flag there, or NULL */
	void (*meanwhile)(struct vmm *vmm);	/* do this all the time, or NULL */
	u64 preempted;			/* how often the vCPU was */
	bool seen;			/* the flag was set */
};

static u64 now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Returns when the vCPU has been preempted often enough, or obviously won't be. */
static void want_cpu(struct rival *rival)
{
	u64 deadline = now_ms() + SLOW * 1000 / 5, before;
	struct vmm *vmm = rival->vmm;

	before = vcpu_get_stat(vmm->vcpu, preemption_reported);
	do {
		/* Both threads have only this CPU, so the vCPU is not running. */
		if (rival->st && READ_ONCE(rival->st->preempted) == KVM_VCPU_PREEMPTED)
			rival->seen = true;
		if (rival->meanwhile)
			rival->meanwhile(vmm);
		rival->preempted = vcpu_get_stat(vmm->vcpu, preemption_reported) - before;
	} while ((rival->preempted < REPEATS || (rival->st && !rival->seen)) &&
		 now_ms() < deadline);
}

static void *be_rival(void *arg)
{
	struct rival *rival = arg;

	want_cpu(rival);
	write_guest_global(rival->vmm->vm, enough, 1);
	return NULL;
}

/* The guest carries out its order, which is to spin, and is preempted meanwhile. */
static void preempt(struct __test_metadata *_metadata, struct rival *rival, enum what what,
		    u64 page)
{
	struct vmm *vmm = rival->vmm;
	pthread_t thread;

	write_guest_global(vmm->vm, enough, 0);
	ASSERT_EQ(0, pthread_create(&thread, NULL, be_rival, rival));
	EXPECT_TRUE(let_guest(vmm, what, page));
	pthread_join(thread, NULL);
	EXPECT_LE(REPEATS, rival->preempted);
}

/*
 * Steal time, in ordinary memory.
 */
#define NR_PAGES		8

FIXTURE(steal_time) {
	struct vmm vmm;
};

static void *map_pages(int prot, void *addr)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | (addr ? MAP_FIXED : 0);
	char *mem = mmap(addr, NR_PAGES * PAGE_SIZE, prot, flags, -1, 0);

	TEST_ASSERT(mem != MAP_FAILED, "mmap");
	return mem;
}

FIXTURE_SETUP(steal_time)
{
	struct vmm *vmm = &self->vmm;

	if (!kvm_cpu_has(X86_FEATURE_KVM_STEAL_TIME))
		SKIP(return, "needs KVM's steal time");
	pin_self_to_any_cpu();
	vmm->size = NR_PAGES * PAGE_SIZE;
	vmm->mem = map_pages(PROT_READ | PROT_WRITE, NULL);
	create_vm(vmm);
}

FIXTURE_TEARDOWN(steal_time)
{
	if (self->vmm.vm)
		kvm_vm_free(self->vmm.vm);
}

/* The next KVM_RUN writes @st as it is specified. */
static void expect_updated(struct __test_metadata *_metadata, struct vmm *vmm,
			   struct kvm_steal_time *st)
{
	u32 version = READ_ONCE(st->version);

	EXPECT_TRUE(goes_on(vmm));
	EXPECT_LT(version, READ_ONCE(st->version));
	EXPECT_EQ(0, READ_ONCE(st->version) & 1);
	EXPECT_EQ(0, READ_ONCE(st->preempted));
}

/* Do all that makes KVM write steal time. */
static void run_and_preempt(struct __test_metadata *_metadata, struct vmm *vmm)
{
	struct rival rival = { .vmm = vmm };
	int i;

	for (i = 0; i < REPEATS; i++)
		EXPECT_TRUE(goes_on(vmm));
	preempt(_metadata, &rival, SPIN, 0);
}

static void expect_not_updated(struct __test_metadata *_metadata, struct vmm *vmm,
			       void *page)
{
	char before[PAGE_SIZE];

	memcpy(before, page, PAGE_SIZE);
	run_and_preempt(_metadata, vmm);
	EXPECT_EQ(0, memcmp(before, page, PAGE_SIZE));
}

TEST_F_TIMEOUT(steal_time, grows_with_the_time_waited_for_a_cpu, SLOW)
{
	struct vmm *vmm = &self->vmm;
	struct kvm_steal_time *st = host_page(vmm, 1);
	struct rival rival = { .vmm = vmm };
	long waited, at_least;
	u64 steal;

	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, 1));
	steal = st->steal;
	waited = get_run_delay();
	preempt(_metadata, &rival, SPIN, 0);
	at_least = get_run_delay() - waited;
	EXPECT_LT(0, at_least);
	expect_updated(_metadata, vmm, st);
	EXPECT_LE(at_least, st->steal - steal);
	EXPECT_GE(get_run_delay(), st->steal);
}

TEST_F_TIMEOUT(steal_time, says_preempted_while_scheduled_out, SLOW)
{
	struct vmm *vmm = &self->vmm;
	struct kvm_steal_time *st = host_page(vmm, 1);
	struct rival rival = { .vmm = vmm, .st = st };

	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, 1));
	preempt(_metadata, &rival, WATCH_STEAL, 1);
	EXPECT_TRUE(rival.seen);
	EXPECT_EQ(0, st->preempted);
}

TEST_F_TIMEOUT(steal_time, flushes_the_tlb_if_requested, SLOW)
{
	struct vmm *vmm = &self->vmm;
	struct kvm_steal_time *st = host_page(vmm, 1);
	u64 flushes;

	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, 1));
	flushes = vcpu_get_stat(vmm->vcpu, tlb_flush);
	st->preempted = KVM_VCPU_PREEMPTED | KVM_VCPU_FLUSH_TLB;
	expect_updated(_metadata, vmm, st);
	EXPECT_LT(flushes, vcpu_get_stat(vmm->vcpu, tlb_flush));
}

TEST_F_TIMEOUT(steal_time, adds_to_the_value_of_the_guest, SLOW)
{
	struct vmm *vmm = &self->vmm;
	struct kvm_steal_time *st = host_page(vmm, 1);
	const u64 left = 1ULL << 60;

	st->steal = left;
	st->version = 7;
	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, 1));
	EXPECT_LE(left, st->steal);
	EXPECT_EQ(0, st->version & 1);
	EXPECT_LT(7, st->version);
	expect_updated(_metadata, vmm, st);
}

TEST_F_TIMEOUT(steal_time, marks_its_page_dirty_and_no_other, SLOW)
{
	struct vmm *vmm = &self->vmm;

	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, 1));
	was_dirtied(vmm, 1);
	expect_updated(_metadata, vmm, host_page(vmm, 1));
	EXPECT_TRUE(was_dirtied(vmm, 1));
	expect_updated(_metadata, vmm, host_page(vmm, 1));
	EXPECT_FALSE(was_dirtied(vmm, 0));
	EXPECT_FALSE(was_dirtied(vmm, 1));
}

TEST_F_TIMEOUT(steal_time, begins_when_there_is_a_memslot, SLOW)
{
	struct vmm *vmm = &self->vmm;

	delete_slot(vmm);
	/* A VM may be restored in this order. */
	vcpu_set_msr(vmm->vcpu, MSR_KVM_STEAL_TIME,
		     (MEM_BASE + PAGE_SIZE) | KVM_MSR_ENABLED);
	expect_not_updated(_metadata, vmm, host_page(vmm, 1));
	set_slot(vmm, 0);
	expect_updated(_metadata, vmm, host_page(vmm, 1));
}

TEST_F_TIMEOUT(steal_time, pauses_while_there_is_no_memslot, SLOW)
{
	struct vmm *vmm = &self->vmm;

	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, 1));
	expect_updated(_metadata, vmm, host_page(vmm, 1));
	delete_slot(vmm);
	expect_not_updated(_metadata, vmm, host_page(vmm, 1));
	set_slot(vmm, 0);
	expect_updated(_metadata, vmm, host_page(vmm, 1));
}

TEST_F_TIMEOUT(steal_time, moves_with_the_msr, SLOW)
{
	struct vmm *vmm = &self->vmm;

	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, 1));
	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, 2));
	expect_not_updated(_metadata, vmm, host_page(vmm, 1));
	expect_updated(_metadata, vmm, host_page(vmm, 2));
}

TEST_F_TIMEOUT(steal_time, moves_within_its_page, SLOW)
{
	struct vmm *vmm = &self->vmm;
	struct kvm_steal_time *st = host_page(vmm, 1);
	u64 offset = PAGE_SIZE - sizeof(*st);
	u32 version;

	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, 1));
	ASSERT_TRUE(write_msr(vmm, MSR_KVM_STEAL_TIME,
			      (MEM_BASE + PAGE_SIZE + offset) | KVM_MSR_ENABLED));
	version = st->version;
	expect_updated(_metadata, vmm, host_page(vmm, 1) + offset);
	EXPECT_EQ(version, st->version);
}

TEST_F_TIMEOUT(steal_time, ends_with_the_msr, SLOW)
{
	struct vmm *vmm = &self->vmm;

	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, 1));
	ASSERT_TRUE(write_msr(vmm, MSR_KVM_STEAL_TIME, 0));
	expect_not_updated(_metadata, vmm, host_page(vmm, 1));
	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, 1));
	expect_updated(_metadata, vmm, host_page(vmm, 1));
}

TEST_F_TIMEOUT(steal_time, follows_its_memslot, SLOW)
{
	struct vmm *vmm = &self->vmm;
	char *old;

	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, 1));
	old = host_page(vmm, 1);
	delete_slot(vmm);
	vmm->mem = map_pages(PROT_READ | PROT_WRITE, NULL);
	set_slot(vmm, 0);
	expect_not_updated(_metadata, vmm, old);
	expect_updated(_metadata, vmm, host_page(vmm, 1));
}

TEST_F_TIMEOUT(steal_time, follows_the_mapping_of_its_memslot, SLOW)
{
	struct vmm *vmm = &self->vmm;

	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, 1));
	map_pages(PROT_READ | PROT_WRITE, vmm->mem);
	expect_updated(_metadata, vmm, host_page(vmm, 1));
	ASSERT_EQ(0, munmap(vmm->mem, vmm->size));
	ASSERT_TRUE(goes_on(vmm));
	map_pages(PROT_READ | PROT_WRITE, vmm->mem);
	expect_updated(_metadata, vmm, host_page(vmm, 1));
}

TEST_F_TIMEOUT(steal_time, leaves_a_read_only_memslot_alone, SLOW)
{
	struct vmm *vmm = &self->vmm;

	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, 1));
	delete_slot(vmm);
	set_slot(vmm, KVM_MEM_READONLY);
	expect_not_updated(_metadata, vmm, host_page(vmm, 1));
	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, 2));
	expect_not_updated(_metadata, vmm, host_page(vmm, 2));
}

TEST_F_TIMEOUT(steal_time, leaves_a_read_only_mapping_alone, SLOW)
{
	struct vmm *vmm = &self->vmm;

	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, 1));
	ASSERT_EQ(0, mprotect(vmm->mem, vmm->size, PROT_READ));
	expect_not_updated(_metadata, vmm, host_page(vmm, 1));
	ASSERT_EQ(0, mprotect(vmm->mem, vmm->size, PROT_READ | PROT_WRITE));
	expect_updated(_metadata, vmm, host_page(vmm, 1));
}

static void plug_and_unplug(struct vmm *vmm)
{
	delete_slot(vmm);
	set_slot(vmm, 0);
}

TEST_F_TIMEOUT(steal_time, outlives_memslots_that_come_and_go, SLOW)
{
	struct vmm *vmm = &self->vmm;
	struct rival rival = { .vmm = vmm, .meanwhile = plug_and_unplug };

	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, 1));
	preempt(_metadata, &rival, SPIN, 0);
	expect_updated(_metadata, vmm, host_page(vmm, 1));
}

static void map_and_unmap(struct vmm *vmm)
{
	munmap(vmm->mem, vmm->size);
	map_pages(PROT_READ | PROT_WRITE, vmm->mem);
}

TEST_F_TIMEOUT(steal_time, outlives_mappings_that_come_and_go, SLOW)
{
	struct vmm *vmm = &self->vmm;
	struct rival rival = { .vmm = vmm, .meanwhile = map_and_unmap };

	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, 1));
	preempt(_metadata, &rival, SPIN, 0);
	expect_updated(_metadata, vmm, host_page(vmm, 1));
}

/*
 * A page that is lost, of the hugepage that is the guest's memory.
 */
/* A guest, and the page of its memory that gets lost. */
struct loss {
	struct subject s;
	struct vmm vmm;
	u64 page;
	u64 healthy;		/* the one behind it */
	char before[PAGE_SIZE];	/* the contents of the lost one */
};

FIXTURE(lost_page) {
	struct loss l;
};

FIXTURE_VARIANT(lost_page) {
	u64 hugepage;
	bool is_hw;
};

FIXTURE_VARIANT_ADD(lost_page, corrupt_pfn_2m) {
	.hugepage = SZ_2M,
};

FIXTURE_VARIANT_ADD(lost_page, corrupt_pfn_1g) {
	.hugepage = SZ_1G,
};

FIXTURE_VARIANT_ADD(lost_page, mce_2m) {
	.hugepage = SZ_2M, .is_hw = true,
};

FIXTURE_SETUP(lost_page)
{
	int fd;

	/* Without it the neighbors are lost, too, and there is nothing to see. */
	fd = memfd_create("probe", MFD_HUGETLB | MFD_MF_KEEP_UE_MAPPED);
	ASSERT_LE(0, fd)
		TH_LOG("no MFD_MF_KEEP_UE_MAPPED here");
	close(fd);

	setup_subject(_metadata, &self->l.s, variant->hugepage, 1, variant->is_hw);
}

FIXTURE_TEARDOWN_PARENT(lost_page)
{
	teardown_subject(_metadata, &self->l.s);
}

static void make_memory(struct __test_metadata *_metadata, struct loss *l)
{
	struct vmm *vmm = &l->vmm;
	u64 page;

	make_file(_metadata, &l->s, MFD_MF_KEEP_UE_MAPPED);
	map_file(&l->s);
	vmm->mem = l->s.mem;
	vmm->size = l->s.hugepage;
	vmm->hugepage = l->s.hugepage;

	/* KVM prefetches eight pages together, so the neighbors must be among them. */
	l->page = l->s.nr_pages / 2 + 3;
	l->healthy = l->page + 1;
	for (page = l->page - 1; page <= l->healthy; page++)
		*(u64 *)host_page(vmm, page) = page;
	pin_self_to_any_cpu();
}

static void start_guest(struct __test_metadata *_metadata, struct loss *l)
{
	make_memory(_metadata, l);
	create_vm(&l->vmm);
}

/* After this neither the VMM nor the guest uses the page, so no signal is due. */
static void lose(struct __test_metadata *_metadata, struct loss *l)
{
	memcpy(l->before, host_page(&l->vmm, l->page), PAGE_SIZE);
	expect_signals();
	lose_page(&l->s, l->page);
	EXPECT_EQ(l->s.is_hw, hit.nr);
	if (hit.nr) {
		EXPECT_EQ(host_page(&l->vmm, l->page), hit.addr);
		EXPECT_EQ(PAGE_SHIFT, hit.lsb);
	}
	expect_signals();
}

/*
 * The dirty log tells of KVM's writes.  The page itself can be read only if the error is
 * a simulated one.
 */
static void expect_untouched(struct __test_metadata *_metadata, struct loss *l)
{
	struct vmm *vmm = &l->vmm;

	EXPECT_EQ(0, hit.nr);
	EXPECT_FALSE(was_dirtied(vmm, l->page));
	if (!l->s.is_hw)
		EXPECT_EQ(0, memcmp(l->before, host_page(vmm, l->page), PAGE_SIZE));
}

/* Advance the VM's clock: KVM has to tell all vCPUs.  Returns the new time. */
static u64 advance_clock(struct vmm *vmm)
{
	struct kvm_clock_data clock = {};

	vm_ioctl(vmm->vm, KVM_GET_CLOCK, &clock);
	clock.clock += 100 * NSEC_PER_SEC;
	clock.flags = 0;
	vm_ioctl(vmm->vm, KVM_SET_CLOCK, &clock);
	return clock.clock;
}

/* The next KVM_RUN writes the time to @page. */
static void expect_clock(struct __test_metadata *_metadata, struct vmm *vmm, u64 page)
{
	struct pvclock_vcpu_time_info *clock = host_page(vmm, page);
	u64 time = advance_clock(vmm);

	EXPECT_TRUE(goes_on(vmm));
	EXPECT_EQ(0, READ_ONCE(clock->version) & 1);
	EXPECT_LE(time, READ_ONCE(clock->system_time));
}

TEST_F_TIMEOUT(lost_page, no_longer_gets_the_clock, SLOW)
{
	struct loss *l = &self->l;
	struct vmm *vmm = &l->vmm;
	int i;

	start_guest(_metadata, l);
	ASSERT_TRUE(enable(vmm, MSR_KVM_SYSTEM_TIME_NEW, l->page));
	expect_clock(_metadata, vmm, l->page);
	EXPECT_TRUE(was_dirtied(vmm, l->page));

	lose(_metadata, l);
	for (i = 0; i < REPEATS; i++) {
		advance_clock(vmm);
		EXPECT_TRUE(goes_on(vmm));
		/* It wants PVCLOCK_GUEST_STOPPED to be set. */
		vcpu_ioctl(vmm->vcpu, KVM_KVMCLOCK_CTRL, NULL);
		EXPECT_TRUE(goes_on(vmm));
	}
	expect_untouched(_metadata, l);
}

TEST_F_TIMEOUT(lost_page, does_not_get_a_new_clock, SLOW)
{
	struct loss *l = &self->l;
	struct vmm *vmm = &l->vmm;
	int i;

	start_guest(_metadata, l);
	lose(_metadata, l);
	for (i = 0; i < REPEATS; i++) {
		EXPECT_TRUE(enable(vmm, MSR_KVM_SYSTEM_TIME_NEW, l->page));
		advance_clock(vmm);
		EXPECT_TRUE(goes_on(vmm));
	}
	expect_untouched(_metadata, l);
}

TEST_F_TIMEOUT(lost_page, gives_its_clock_to_another_page, SLOW)
{
	struct loss *l = &self->l;
	struct vmm *vmm = &l->vmm;

	start_guest(_metadata, l);
	ASSERT_TRUE(enable(vmm, MSR_KVM_SYSTEM_TIME_NEW, l->page));
	expect_clock(_metadata, vmm, l->page);
	EXPECT_TRUE(was_dirtied(vmm, l->page));

	lose(_metadata, l);
	advance_clock(vmm);
	EXPECT_TRUE(enable(vmm, MSR_KVM_SYSTEM_TIME_NEW, l->healthy));
	expect_clock(_metadata, vmm, l->healthy);
	expect_clock(_metadata, vmm, l->healthy);
	expect_untouched(_metadata, l);
}

TEST_F_TIMEOUT(lost_page, no_longer_gets_steal_time, SLOW)
{
	struct loss *l = &self->l;
	struct vmm *vmm = &l->vmm;

	start_guest(_metadata, l);
	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, l->page));
	expect_updated(_metadata, vmm, host_page(vmm, l->page));
	EXPECT_TRUE(was_dirtied(vmm, l->page));

	lose(_metadata, l);
	run_and_preempt(_metadata, vmm);
	expect_untouched(_metadata, l);
}

TEST_F_TIMEOUT(lost_page, does_not_get_new_steal_time, SLOW)
{
	struct loss *l = &self->l;
	struct vmm *vmm = &l->vmm;

	start_guest(_metadata, l);
	lose(_metadata, l);
	EXPECT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, l->page));
	run_and_preempt(_metadata, vmm);
	expect_untouched(_metadata, l);
}

TEST_F_TIMEOUT(lost_page, gives_its_steal_time_to_another_page, SLOW)
{
	struct loss *l = &self->l;
	struct vmm *vmm = &l->vmm;
	struct rival rival = { .vmm = vmm };

	start_guest(_metadata, l);
	ASSERT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, l->page));
	expect_updated(_metadata, vmm, host_page(vmm, l->page));
	EXPECT_TRUE(was_dirtied(vmm, l->page));

	lose(_metadata, l);
	EXPECT_TRUE(enable(vmm, MSR_KVM_STEAL_TIME, l->healthy));
	rival.st = host_page(vmm, l->healthy);
	expect_updated(_metadata, vmm, rival.st);
	preempt(_metadata, &rival, WATCH_STEAL, l->healthy);
	EXPECT_TRUE(rival.seen);
	expect_untouched(_metadata, l);
}

struct meanwhile {
	struct __test_metadata *_metadata;
	struct loss *l;
	struct rival rival;
};

static void *lose_meanwhile(void *arg)
{
	struct meanwhile *m = arg;
	struct loss *l = m->l;
	struct vmm *vmm = &l->vmm;

	want_cpu(&m->rival);
	lose(m->_metadata, l);
	/* These were KVM's writes before the loss. */
	was_dirtied(vmm, l->page);
	if (!l->s.is_hw)
		memcpy(l->before, host_page(vmm, l->page), PAGE_SIZE);
	advance_clock(vmm);
	want_cpu(&m->rival);
	write_guest_global(vmm->vm, enough, 1);
	return NULL;
}

TEST_F_TIMEOUT(lost_page, gets_nothing_from_a_running_vcpu, SLOW)
{
	struct loss *l = &self->l;
	struct vmm *vmm = &l->vmm;
	struct meanwhile m = { ._metadata = _metadata, .l = l, .rival.vmm = vmm };
	pthread_t thread;
	u64 gpa;

	start_guest(_metadata, l);
	gpa = MEM_BASE + l->page * PAGE_SIZE;
	ASSERT_TRUE(write_msr(vmm, MSR_KVM_SYSTEM_TIME_NEW, gpa | KVM_MSR_ENABLED));
	ASSERT_TRUE(write_msr(vmm, MSR_KVM_STEAL_TIME, (gpa + SZ_1K) | KVM_MSR_ENABLED));
	expect_clock(_metadata, vmm, l->page);
	expect_updated(_metadata, vmm, host_page(vmm, l->page) + SZ_1K);

	write_guest_global(vmm->vm, enough, 0);
	ASSERT_EQ(0, pthread_create(&thread, NULL, lose_meanwhile, &m));
	EXPECT_TRUE(let_guest(vmm, SPIN, 0));
	pthread_join(thread, NULL);
	EXPECT_LE(REPEATS, m.rival.preempted);
	expect_untouched(_metadata, l);
}

/*
 * Nested guests.  L2 runs on KVM's shadow of L1's NPT, or of its own page tables.
 */
static void create_nested_vm(struct vmm *vmm, bool npt)
{
	gva_t svm;

	vmm->vm = vm_create_with_one_vcpu(&vmm->vcpu, l1_code);
	if (npt)
		vm_enable_npt(vmm->vm);
	vcpu_alloc_svm(vmm->vm, &svm);
	vcpu_args_set(vmm->vcpu, 1, svm);
	map_mem(vmm);
	if (npt) {
		tdp_identity_map_default_memslots(vmm->vm);
		tdp_identity_map_1g(vmm->vm, MEM_BASE, SZ_1G);
	}
	set_slot(vmm, 0);
	TEST_ASSERT(goes_on(vmm), "L2 doesn't start");
}

/* The guest at the level that is running can read @page. */
static void expect_readable(struct __test_metadata *_metadata, struct vmm *vmm, u64 page)
{
	u64 word;

	give_order(vmm, READ, page);
	expect_signals();
	ASSERT_TRUE(run(vmm, &word));
	EXPECT_EQ(page, word);
	EXPECT_EQ(0, hit.nr);
}

/*
 * It can't read @page, however often it tries: KVM tells the VMM each time.  Then the VMM
 * lets it go on behind the access.
 */
static void expect_lost(struct __test_metadata *_metadata, struct vmm *vmm, u64 page)
{
	struct kvm_regs regs;
	u64 word;
	int i;

	give_order(vmm, READ, page);
	for (i = 0; i < REPEATS; i++) {
		expect_signals();
		ASSERT_FALSE(run(vmm, &word))
			TH_LOG("the guest has read a lost page");
		EXPECT_EQ(EINTR, errno);
		EXPECT_EQ(1, hit.nr);
		EXPECT_EQ(BUS_MCEERR_AR, hit.code);
		EXPECT_EQ(host_page(vmm, page), hit.addr);
		EXPECT_EQ(PAGE_SHIFT, hit.lsb);
	}
	sync_global_from_guest(vmm->vm, guest_resume);
	vcpu_regs_get(vmm->vcpu, &regs);
	regs.rip = guest_resume;
	vcpu_regs_set(vmm->vcpu, &regs);
	ASSERT_TRUE(run(vmm, &word));
}

static void keep_from_l2(struct __test_metadata *_metadata, struct loss *l, bool npt,
			 bool mapped)
{
	struct vmm *vmm = &l->vmm;

	if (!kvm_cpu_has(X86_FEATURE_SVM) || (npt && !kvm_cpu_has_npt()))
		SKIP(return, "needs nested SVM%s", npt ? " with NPT" : "");
	make_memory(_metadata, l);
	create_nested_vm(vmm, npt);
	if (mapped)
		expect_readable(_metadata, vmm, l->page);
	lose(_metadata, l);

	expect_readable(_metadata, vmm, l->healthy);
	expect_lost(_metadata, vmm, l->page);
	expect_readable(_metadata, vmm, l->page - 1);

	/* L1 has the same memory. */
	ASSERT_TRUE(let_guest(vmm, LEAVE, 0));
	expect_readable(_metadata, vmm, l->healthy);
	expect_lost(_metadata, vmm, l->page);
	expect_readable(_metadata, vmm, l->page - 1);
}

TEST_F_TIMEOUT(lost_page, is_taken_from_l2_with_npt, SLOW)
{
	keep_from_l2(_metadata, &self->l, true, true);
}

TEST_F_TIMEOUT(lost_page, is_taken_from_l2_without_npt, SLOW)
{
	keep_from_l2(_metadata, &self->l, false, true);
}

TEST_F_TIMEOUT(lost_page, is_not_given_to_l2_with_npt, SLOW)
{
	keep_from_l2(_metadata, &self->l, true, false);
}

TEST_F_TIMEOUT(lost_page, is_not_given_to_l2_without_npt, SLOW)
{
	keep_from_l2(_metadata, &self->l, false, false);
}

TEST_HARNESS_MAIN
