// SPDX-License-Identifier: GPL-2.0
/*
 * Memory errors in the hugepages of a running guest, and a VMM that hands each of
 * them to its guest as a machine check.
 *
 * The guest's stack and data are in a memfd of 2 MiB or 1 GiB hugepages.  If it was
 * made with MFD_MF_KEEP_UE_MAPPED, an uncorrected error costs the 4 KiB that it is
 * in: everything else stays mapped, with hugepages in both stages, and the guest
 * lives on for as long as it can do without what it has lost.  Otherwise the whole
 * hugepage is gone with the first error, and the guest with it.  On a kernel
 * without the flag that is what the failing tests say.
 *
 * This is also written to be read by those who write VMMs.
 *
 * How the VMM hears of an error
 *
 * By SIGBUS, whose siginfo has in si_addr an address in the VMM's mapping, and in
 * si_addr_lsb the binary logarithm of how much is lost around it.  si_code is
 *
 * BUS_MCEERR_AR	"action required": this thread, or the vCPU that it runs, was
 *			going to use the page.  There are three ways to get there:
 *			- The hardware has raised a machine check while the thread was
 *			  in user mode, as device models are when they access guest
 *			  memory.  The instruction has not been executed; to return
 *			  from the handler is to run into the error again.
 *			- It has done so while the thread was in guest mode.  KVM sees
 *			  to it as if it had happened in user mode, and KVM_RUN
 *			  fails with EINTR when the handler has returned.
 *			- The guest has touched a page already known as lost, which
 *			  KVM never maps.  KVM_RUN ends likewise.
 * BUS_MCEERR_AO	"action optional": nobody has used the page so far.  Only the
 *			thread hears of it that has asked for PR_MCE_KILL_EARLY, which
 *			is a thread that runs no vCPU: ../../../../mm/kept_memory.h has it.
 *
 * The pages that KVM maps
 *
 * From the moment a page is lost KVM maps the largest blocks around it that contain no
 * lost page.  A guest that touches a lost page ends KVM_RUN with SIGBUS, as often as it
 * does so, and never with a machine check: it makes no difference whether the hardware
 * knows of the error.  ../hugetlb_lost_pages_test.c is about that.
 *
 * The rules for threads
 *
 * - A thread that runs a vCPU must not have SIGBUS blocked in KVM_RUN, nor must one
 *   that accesses guest memory.  For a blocked signal of a machine check the kernel
 *   kills the VMM.  KVM's own would just stay pending, with the guest running into
 *   the lost page for ever.
 * - The handler runs at any time, so it makes notes and nothing else.  It stays away
 *   from guest memory.
 * - The signal may arrive just before the thread enters KVM_RUN.  Lest the guest go
 *   on without its machine check, the handler sets immediate_exit.
 * - KVM_X86_SET_MCE is for the thread that runs the vCPU: called by another one it
 *   waits for KVM_RUN to end.  So a thread that is told of a BUS_MCEERR_AO error kicks
 *   that of the vCPU, and leaves the rest to it.
 * - KVM_X86_SET_MCE while the guest is still busy with the previous machine check
 *   shuts the guest down, as hardware would.
 *
 * The rest of a lost page
 *
 * /proc/self/fdinfo says which of its bytes are damaged.  The guest is told by the LSB in
 * MISC.  Before the VMM gives the page up, to have the hugepage healed, it saves the
 * others, by loads that don't touch the damaged ones, and writes them back afterwards.
 */
#include <stdatomic.h>

#include "hugetlb_mfr.h"
#include "mce.h"
#include "processor.h"

/* Where the guest has the memory under test, in both of its address spaces. */
#define MEM_SLOT		1
#define MEM_BASE		(4UL << 30)
#define MAX_PAGES		(SZ_1G / PAGE_SIZE)
#define WORDS			(PAGE_SIZE / sizeof(u64))
#define LINE_LSB		6
#define LINE_SIZE		64UL

/* The pages there that are the guest's stack. */
#define STACK_FIRST		8
#define STACK_PAGES		4

/* Where the guest says that it is going to use a page. */
#define PORT_USE		0x2000

/*
 * The machine checks that the guest gets: RIPV and MCIP, and for a data load, which
 * it can't complete, EIPV.
 */
#define GUEST_BANK		9
#define GUEST_MCG_LOAD		0x7ULL
#define GUEST_MCG_SCRUB		0x5ULL
#define GUEST_MCG_MCIP		0x4ULL

/*
 * The guest
 *
 * It does one thing after the other that the VMM orders.
 */
enum what {
	FILL,		/* all memory with words that differ */
	USE,		/* the page @first */
	CHECK,		/* @nr pages from @first on, without those known as lost */
	COMPARE,	/* the words of the page @first, though it is known as lost */
	WORK,		/* without any memory, until the machine check after @first */
};

static struct {
	enum what what;
	u64 first;
	u64 nr;
} order;

/* The notes of its machine check handler. */
static u64 guest_lost[MAX_PAGES / 64];
static u64 guest_nr_mce;
static u64 guest_damage;	/* offset in the page, of the last one, */
static u64 guest_damage_len;	/* and how much is damaged there */

/* Where it goes on if what it is reading is lost. */
static u64 guest_resume;

static bool has_lost(u64 page)
{
	return guest_lost[page / 64] >> page % 64 & 1;
}

static void guest_mc_handler(struct ex_regs *regs)
{
	u64 status = rdmsr(MSR_IA32_MCx_STATUS(GUEST_BANK));
	u64 addr = rdmsr(MSR_IA32_MCx_ADDR(GUEST_BANK));
	u64 page = (addr - MEM_BASE) / PAGE_SIZE;

	guest_damage = addr % PAGE_SIZE;
	guest_damage_len = 1ULL << (rdmsr(MSR_IA32_MCx_MISC(GUEST_BANK)) & 0x3f);
	GUEST_ASSERT(page < MAX_PAGES);
	guest_lost[page / 64] |= 1ULL << page % 64;
	WRITE_ONCE(guest_nr_mce, guest_nr_mce + 1);

	if (rdmsr(MSR_IA32_MCG_STATUS) == GUEST_MCG_LOAD) {
		GUEST_ASSERT_EQ(status & ~MCI_STATUS_AMD_POISON, MCI_STATUS_DATA_LOAD);
		GUEST_ASSERT(guest_resume);
		regs->rip = guest_resume;
	} else {
		GUEST_ASSERT_EQ(status & ~MCI_STATUS_AMD_POISON, MCI_STATUS_SCRUB);
	}

	/* Ready for the next one. */
	wrmsr(MSR_IA32_MCx_STATUS(GUEST_BANK), 0);
	wrmsr(MSR_IA32_MCG_STATUS, 0);
}

static bool is_stack(u64 page)
{
	return page >= STACK_FIRST && page < STACK_FIRST + STACK_PAGES;
}

static u64 *guest_page(u64 page)
{
	return (u64 *)(MEM_BASE + page * PAGE_SIZE);
}

static u64 pattern(u64 page)
{
	return (page * WORDS) ^ 0xa5a5a5a5a5a5a5a5;
}

/*
 * From the moment that the VMM is told, nothing else of the memory is used.  To be ready
 * for a machine check is to know where to go on after it, as copy_mc_to_kernel() does.
 */
static void guest_use(u64 page)
{
	asm volatile("lea 1f(%%rip), %%rcx\n\t"
		     "mov %%rcx, %[resume]\n\t"
		     "out %%eax, %%dx\n\t"
		     "mov (%[page]), %%rcx\n\t"
		     "1:"
		     : [resume] "=m" (guest_resume)
		     : [page] "r" (guest_page(page)), "a" ((u32)page), "d" (PORT_USE)
		     : "rcx", "memory");
	guest_resume = 0;
}

static void guest_fill(void)
{
	u64 page, i;

	for (page = order.first; page < order.first + order.nr; page++) {
		u64 *word = guest_page(page);

		if (is_stack(page))
			continue;
		/* Emulated CPUs are slow, and slower still at branches. */
#pragma GCC unroll 8
		for (i = 0; i < WORDS; i++)
			word[i] = pattern(page) ^ i;
	}
}

static u64 guest_check(void)
{
	u64 page, i, nr_good = 0;

	for (page = order.first; page < order.first + order.nr; page++) {
		u64 *word = guest_page(page), differs = 0;

		if (has_lost(page))
			continue;
		if (is_stack(page)) {
			READ_ONCE(*word);
			nr_good++;
			continue;
		}
#pragma GCC unroll 8
		for (i = 0; i < WORDS; i++)
			differs |= word[i] ^ pattern(page) ^ i;
		nr_good += !differs;
	}
	return nr_good;
}

static u64 guest_compare(void)
{
	u64 *word = guest_page(order.first), i, nr_good = 0;

	for (i = 0; i < WORDS; i++)
		nr_good += word[i] == (pattern(order.first) ^ i);
	return nr_good;
}

static void guest_work(void)
{
	while (READ_ONCE(guest_nr_mce) == order.first)
		cpu_relax();
}

static void guest_code(void)
{
	u64 result = 0;

	set_cr4(get_cr4() | X86_CR4_MCE);
	for (;;) {
		GUEST_SYNC(result);
		switch (order.what) {
		case FILL:
			guest_fill();
			break;
		case USE:
			guest_use(order.first);
			break;
		case CHECK:
			result = guest_check();
			break;
		case COMPARE:
			result = guest_compare();
			break;
		case WORK:
			guest_work();
			break;
		}
	}
}

/*
 * The VMM
 */
struct vmm {
	struct subject s;	/* the guest's memory */
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
	/* Called for a page that the guest is going to use. */
	void (*happens)(struct subject *s, u64 page);
	/* A lost page that another thread wants reported to the guest, or NONE. */
	atomic_ulong told;
	pthread_t thread;	/* of the vCPU, if it isn't the test's */
};

#define NONE	-1UL

/* The VMM's list of lost pages, and how many there are. */
static atomic_ulong lost[MAX_PAGES / 64];
static atomic_ulong nr_lost;

/* The guest's memory, for the handler. */
static struct kept_memory guest_memory;

/*
 * The vCPU that this thread runs, and the page that it must not go on with.  There is
 * no second one before this is handed over: KVM_RUN ends with the first.
 */
static __thread struct kvm_run *this_run;
static __thread struct {
	atomic_bool pending;
	u64 page;
} required;

/* The number of signals this thread has had, and the last one: for the tests. */
static __thread struct {
	u64 page;
	int lsb;
	unsigned int nr;
} hit;

static bool note_lost(u64 page)
{
	if (atomic_fetch_or(&lost[page / 64], 1UL << page % 64) >> page % 64 & 1)
		return false;
	nr_lost++;
	return true;
}

static void on_sigbus(int sig, siginfo_t *si, void *context)
{
	u64 page = ((uintptr_t)si->si_addr - (uintptr_t)guest_memory.map) / PAGE_SIZE;
	u64 offset, length, i;

	/* Something else, or about other memory: to return is to die of it. */
	if (!kept_lost(&guest_memory, si, &offset, &length)) {
		signal(SIGBUS, SIG_DFL);
		return;
	}

	for (i = 0; i < length; i += PAGE_SIZE)
		note_lost((offset + i) / PAGE_SIZE);
	hit.nr++;
	hit.page = page;
	hit.lsb = si->si_addr_lsb;
	if (si->si_code != BUS_MCEERR_AR)
		return;

	/* The guest must get the machine check before it goes on. */
	required.page = page;
	required.pending = true;
	if (this_run)
		this_run->immediate_exit = true;
	/* If this was an access of the VMM, it can't be completed. */
	mce_release_victim();
}

/* The only purpose of this signal is to end KVM_RUN. */
static void on_kick(int sig)
{
}

/* A bit for each 64 bytes of a page that are damaged, or may be. */
struct damage {
	u64 page;
	u64 lines;
};

static void add_damage(void *arg, uint64_t offset, uint64_t length)
{
	struct damage *d = arg;
	int i;

	for (i = 0; i < 64; i++)
		if (d->page * PAGE_SIZE + i * LINE_SIZE - offset < length)
			d->lines |= 1ULL << i;
}

static u64 damage_of(struct subject *s, u64 page)
{
	struct damage d = { .page = page };

	kept_read_map(0, s->fd, NULL, add_damage, &d);
	return d.lines ?: -1ULL;
}

/*
 * Tell the guest that it has lost a page.  This is for the thread that runs the vCPU.
 *
 * Just one vCPU is told, which is right for AMD's, and for guests that have been
 * given MCG_LMCE_P and get MCG_STATUS_LMCES with it.  Others expect to hear of it on
 * all vCPUs.
 */
static void hand_over(struct vmm *vmm, u64 page, u64 mcg_status, u64 status)
{
	u64 damage = damage_of(&vmm->s, page);
	int first = __builtin_ctzll(damage), last = 63 - __builtin_clzll(damage), lsb = 0;
	struct kvm_x86_mce mce = {
		.bank = GUEST_BANK,
		.status = status | (host_cpu_is_amd_compatible ? MCI_STATUS_AMD_POISON : 0),
		.mcg_status = mcg_status,
		.addr = MEM_BASE + page * PAGE_SIZE + first * LINE_SIZE,
	};

	/* The smallest aligned block around it */
	while (first >> lsb != last >> lsb)
		lsb++;
	mce.misc = MCI_MISC_PHYSICAL(LINE_LSB + lsb);
	vcpu_ioctl(vmm->vcpu, KVM_X86_SET_MCE, &mce);
}

/* Inject a machine check for each loss not yet reported, one at a time. */
static void hand_over_all(struct vmm *vmm)
{
	struct kvm_vcpu *vcpu = vmm->vcpu;

	/* Clear this first: signals from now on set it again. */
	vcpu->run->immediate_exit = false;

	if (required.pending) {
		required.pending = false;
		hand_over(vmm, required.page, GUEST_MCG_LOAD, MCI_STATUS_DATA_LOAD);
	} else if (vmm->told != NONE &&
		   !(vcpu_get_msr(vcpu, MSR_IA32_MCG_STATUS) & GUEST_MCG_MCIP)) {
		hand_over(vmm, atomic_exchange(&vmm->told, NONE),
			  GUEST_MCG_SCRUB, MCI_STATUS_SCRUB);
	}
}

/*
 * Let the guest go on until it is done with its order, and tell its result.
 * Returns false if it died.
 */
static bool run_guest(struct vmm *vmm, u64 *result)
{
	struct kvm_vcpu *vcpu = vmm->vcpu;
	struct kvm_run *run = vcpu->run;
	struct ucall uc;
	u32 page;

	for (;;) {
		hand_over_all(vmm);
		if (__vcpu_run(vcpu)) {
			TEST_ASSERT(errno == EINTR, KVM_IOCTL_ERROR(KVM_RUN, -1));
			continue;
		}

		switch (run->exit_reason) {
		case KVM_EXIT_SHUTDOWN:
			return false;
		case KVM_EXIT_IO:
			break;
		default:
			TEST_FAIL("unexpected exit: %s",
				  exit_reason_str(run->exit_reason));
		}

		if (run->io.port == PORT_USE) {
			memcpy(&page, (char *)run + run->io.data_offset, sizeof(page));
			/* First of all let it be behind this instruction. */
			vcpu_run_complete_io(vcpu);
			vmm->happens(&vmm->s, page);
			continue;
		}

		switch (get_ucall(vcpu, &uc)) {
		case UCALL_SYNC:
			*result = uc.args[1];
			return true;
		case UCALL_ABORT:
			REPORT_GUEST_ASSERT(uc);
		default:
			TEST_FAIL("unexpected ucall: %lu", uc.cmd);
		}
	}
}

static bool let_guest(struct vmm *vmm, enum what what, u64 first, u64 nr, u64 *result)
{
	order.what = what;
	order.first = first;
	order.nr = nr;
	sync_global_to_guest(vmm->vm, order);
	return run_guest(vmm, result);
}

static u64 number_of_machine_checks(struct vmm *vmm)
{
	sync_global_from_guest(vmm->vm, guest_nr_mce);
	return guest_nr_mce;
}

/* A virtual machine with the hugepages in it, which may have been in another one. */
static void create_vm(struct vmm *vmm)
{
	struct subject *s = &vmm->s;
	u64 size = s->nr_huge * s->hugepage, mcg_cap, unused;
	struct kvm_regs regs;

	TEST_ASSERT(!kept_open(&guest_memory, s->fd), "mmap");
	s->mem = guest_memory.map;

	vmm->vm = vm_create_with_one_vcpu(&vmm->vcpu, guest_code);
	vm_set_user_memory_region(vmm->vm, MEM_SLOT, 0, MEM_BASE, size, s->mem);
	virt_map_level(vmm->vm, MEM_BASE, MEM_BASE, size,
		       s->hugepage == SZ_1G ? PG_LEVEL_1G : PG_LEVEL_2M);

	kvm_ioctl(vmm->vm->kvm_fd, KVM_X86_GET_MCE_CAP_SUPPORTED, &mcg_cap);
	mcg_cap &= MCG_CTL_P | MCG_SER_P;
	mcg_cap |= GUEST_BANK + 1;
	vcpu_ioctl(vmm->vcpu, KVM_X86_SETUP_MCE, &mcg_cap);
	vm_install_exception_handler(vmm->vm, MC_VECTOR, guest_mc_handler);

	/* An ABI's stack, as after a call. */
	vcpu_regs_get(vmm->vcpu, &regs);
	regs.rsp = MEM_BASE + (STACK_FIRST + STACK_PAGES) * PAGE_SIZE - sizeof(u64);
	vcpu_regs_set(vmm->vcpu, &regs);

	vmm->told = NONE;
	this_run = vmm->vcpu->run;
	TEST_ASSERT(run_guest(vmm, &unused), "The guest doesn't start");
}

static void destroy_vm(struct vmm *vmm)
{
	kvm_vm_free(vmm->vm);
	munmap(vmm->s.mem, guest_memory.size);
	vmm->vm = NULL;
}

/*
 * The tests
 */
/* The page was lost before, */
static void nothing(struct subject *s, u64 page)
{
}

/*
 * or that, and then all mappings of it went, as they do for a balloon, a migration or a
 * new VMM on the same memory.
 */
static void unmap(struct subject *s, u64 page)
{
	unmap_all(s);
}

static void setup(struct __test_metadata *_metadata, struct vmm *vmm, u64 hugepage,
		  u64 nr_huge, bool is_hw)
{
	struct sigaction sa = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO };
	struct sigaction kick = { .sa_handler = on_kick };

	vmm->happens = lose_page;
	if (!kvm_is_tdp_enabled())
		SKIP(return, "needs page tables of two stages");
	setup_subject(_metadata, &vmm->s, hugepage, nr_huge, is_hw);
	ASSERT_EQ(0, sigaction(SIGBUS, &sa, NULL));
	ASSERT_EQ(0, sigaction(SIGUSR1, &kick, NULL));
}

static void start_guest(struct __test_metadata *_metadata, struct vmm *vmm,
			unsigned int flags)
{
	u64 unused;

	make_file(_metadata, &vmm->s, flags);
	create_vm(vmm);
	ASSERT_TRUE(let_guest(vmm, FILL, 0, vmm->s.nr_pages, &unused));
}

/* The guest uses @page, which is lost at that moment. Returns if it lives. */
static bool lose(struct vmm *vmm, u64 page)
{
	u64 unused;

	return let_guest(vmm, USE, page, 1, &unused);
}

/* All of its memory but what was lost is there, and KVM maps it as it should. */
static void expect_healthy(struct __test_metadata *_metadata, struct vmm *vmm)
{
	u64 nr_good;

	ASSERT_TRUE(let_guest(vmm, CHECK, 0, vmm->s.nr_pages, &nr_good));
	EXPECT_EQ(vmm->s.nr_pages - vmm->s.nr_lost, nr_good);
	expect_exact_entries(_metadata, &vmm->s, vmm->vm);
}

/* The same, and all that must be right then. */
static void lose_one_page(struct __test_metadata *_metadata, struct vmm *vmm, u64 page)
{
	struct subject *s = &vmm->s;
	u64 before = number_of_machine_checks(vmm), nr_good;
	u64 first = page ? page - 1 : 0;
	u64 nr = min(page + 2, s->nr_pages) - first;

	hit.nr = 0;
	ASSERT_TRUE(lose(vmm, page))
		TH_LOG("the guest is dead: with page %lu it has lost page %lu, its stack",
		       page, hit.page);

	/* One signal for the VMM, one machine check for the guest, about one page. */
	EXPECT_EQ(1, hit.nr);
	EXPECT_EQ(page, hit.page);
	EXPECT_EQ(PAGE_SHIFT, hit.lsb);
	EXPECT_EQ(s->nr_lost, nr_lost);
	EXPECT_EQ(before + 1, number_of_machine_checks(vmm));
	expect_corrupted(_metadata, s);

	/* The pages on both sides are there. */
	ASSERT_TRUE(let_guest(vmm, CHECK, first, nr, &nr_good));
	EXPECT_EQ(nr - 1, nr_good);

	/* One page that went wrong says enough. */
	if (_metadata->exit_code)
		ASSERT_EQ(KSFT_PASS, _metadata->exit_code);
}

/* Errors that are found in the background, and a VMM of two threads. */
FIXTURE(warned_guest) {
	struct vmm vmm;
};

FIXTURE_VARIANT(warned_guest) {
	u64 hugepage;
	u64 nr_huge;
};

FIXTURE_VARIANT_ADD(warned_guest, corrupt_pfn_2m) {
	.hugepage = SZ_2M, .nr_huge = 4,
};

FIXTURE_VARIANT_ADD(warned_guest, corrupt_pfn_1g) {
	.hugepage = SZ_1G, .nr_huge = 1,
};

FIXTURE_SETUP(warned_guest)
{
	setup(_metadata, &self->vmm, variant->hugepage, variant->nr_huge, false);
}

FIXTURE_TEARDOWN_PARENT(warned_guest)
{
	teardown_subject(_metadata, &self->vmm.s);
}

static void *run_vcpu(void *arg)
{
	struct vmm *vmm = arg;
	u64 unused;

	this_run = vmm->vcpu->run;
	return (void *)let_guest(vmm, WORK, number_of_machine_checks(vmm), 0, &unused);
}

/* For a thread that gets the signals: leave a note, and make the vCPU's thread look at it. */
static void warn_guest(void *arg, const struct kept_memory *m, uint64_t offset,
		       uint64_t length)
{
	struct vmm *vmm = arg;
	u64 i;

	for (i = 0; i < length; i += PAGE_SIZE) {
		if (!note_lost((offset + i) / PAGE_SIZE))
			continue;
		vmm->told = (offset + i) / PAGE_SIZE;
		vmm->vcpu->run->immediate_exit = true;
		pthread_kill(vmm->thread, SIGUSR1);
	}
}

TEST_F_TIMEOUT(warned_guest, is_told_before_it_uses_the_page, SLOW)
{
	struct vmm *vmm = &self->vmm;
	struct kept_watch watch = {
		.memory = &guest_memory,
		.nr = 1,
		.lost = warn_guest,
		.arg = vmm,
	};
	const u64 nr = 10;
	void *lives;
	u64 i;

	start_guest(_metadata, vmm, MFD_MF_KEEP_UE_MAPPED);
	ASSERT_EQ(0, kept_watch_start(&watch));

	for (i = 0; i < nr; i++) {
		u64 page = nth_page(&vmm->s, i, nr);

		ASSERT_EQ(0, pthread_create(&vmm->thread, NULL, run_vcpu, vmm));
		usleep(10000);
		lose_page(&vmm->s, page);
		ASSERT_EQ(0, pthread_join(vmm->thread, &lives));
		EXPECT_EQ(i + 1, nr_lost);
		ASSERT_NE(NULL, lives)
			TH_LOG("the guest is dead: with page %lu it has lost its stack", page);
		EXPECT_EQ(i + 1, number_of_machine_checks(vmm));
	}

	/* The guest loses nothing else, and this thread has never been signaled. */
	expect_healthy(_metadata, vmm);
	EXPECT_EQ(0, hit.nr);
	kept_watch_stop(&watch);
}

/* A guest that gets a page back, and with it what was not damaged. */
FIXTURE(healed_guest) {
	struct vmm vmm;
};

FIXTURE_VARIANT(healed_guest) {
	u64 hugepage;
};

FIXTURE_VARIANT_ADD(healed_guest, corrupt_addr_2m) {
	.hugepage = SZ_2M,
};

FIXTURE_SETUP(healed_guest)
{
	setup(_metadata, &self->vmm, variant->hugepage, 1, false);
}

FIXTURE_TEARDOWN_PARENT(healed_guest)
{
	teardown_subject(_metadata, &self->vmm.s);
}

#define FIRST_LINE	0x29
#define SECOND_LINE	0x2e
#define WORDS_OF_LINE	(LINE_SIZE / sizeof(u64))

static void lose_line(struct subject *s, u64 page)
{
	lose_part(s, page, FIRST_LINE * LINE_SIZE, LINE_LSB);
}

/* All words of a page but those of damaged lines, each by one load or store. */
static void copy_healthy(u64 *to, const u64 *from, u64 damage)
{
	u64 i;

	for (i = 0; i < WORDS; i++)
		if (!(damage >> i / WORDS_OF_LINE & 1))
			WRITE_ONCE(to[i], READ_ONCE(from[i]));
}

static void expect_told(struct __test_metadata *_metadata, struct vmm *vmm, u64 damage,
			u64 len)
{
	sync_global_from_guest(vmm->vm, guest_damage);
	sync_global_from_guest(vmm->vm, guest_damage_len);
	EXPECT_EQ(damage, guest_damage / len * len);
	EXPECT_EQ(len, guest_damage_len);
}

TEST_F_TIMEOUT(healed_guest, has_all_words_outside_lost_lines, SLOW)
{
	const u64 damage = 1ULL << FIRST_LINE | 1ULL << SECOND_LINE;
	struct vmm *vmm = &self->vmm;
	struct subject *s = &vmm->s;
	u64 saved[WORDS], nr_good, *mem;
	const u64 page = 100;

	start_guest(_metadata, vmm, MFD_MF_KEEP_UE_MAPPED);
	vmm->happens = lose_line;
	ASSERT_TRUE(lose(vmm, page));
	expect_told(_metadata, vmm, FIRST_LINE * LINE_SIZE, LINE_SIZE);

	/* Another line, and then the guest uses the page once more. */
	lose_more(s, page, SECOND_LINE * LINE_SIZE, LINE_LSB);
	vmm->happens = nothing;
	ASSERT_TRUE(lose(vmm, page));
	expect_told(_metadata, vmm, 0x28 * LINE_SIZE, 8 * LINE_SIZE);

	EXPECT_EQ(damage, damage_of(s, page));
	mem = (u64 *)(s->mem + page * PAGE_SIZE);
	copy_healthy(saved, mem, damage_of(s, page));
	ASSERT_EQ(0, kept_heal(s->fd, page * PAGE_SIZE, NULL, NULL));
	copy_healthy(mem, saved, damage);

	ASSERT_TRUE(let_guest(vmm, COMPARE, page, 1, &nr_good));
	EXPECT_EQ(WORDS - 2 * WORDS_OF_LINE, nr_good);
	EXPECT_EQ(0, mem[FIRST_LINE * WORDS_OF_LINE]);
	EXPECT_EQ(0, mem[SECOND_LINE * WORDS_OF_LINE]);
	/* The page next to it is unchanged. */
	ASSERT_TRUE(let_guest(vmm, COMPARE, page + 1, 1, &nr_good));
	EXPECT_EQ(WORDS, nr_good);
}

/* A guest without the flag. */
FIXTURE(plain_guest) {
	struct vmm vmm;
};

FIXTURE_VARIANT(plain_guest) {
	u64 hugepage;
	u64 nr_huge;
};

FIXTURE_VARIANT_ADD(plain_guest, corrupt_pfn_2m) {
	.hugepage = SZ_2M, .nr_huge = 4,
};

FIXTURE_VARIANT_ADD(plain_guest, corrupt_pfn_1g) {
	.hugepage = SZ_1G, .nr_huge = 1,
};

FIXTURE_SETUP(plain_guest)
{
	setup(_metadata, &self->vmm, variant->hugepage, variant->nr_huge, false);
}

FIXTURE_TEARDOWN_PARENT(plain_guest)
{
	teardown_subject(_metadata, &self->vmm.s);
}

TEST_F_TIMEOUT(plain_guest, dies_of_the_first_error, SLOW)
{
	struct vmm *vmm = &self->vmm;

	start_guest(_metadata, vmm, 0);
	hit.nr = 0;
	EXPECT_FALSE(lose(vmm, vmm->s.nr_pages / vmm->s.nr_huge - 1));
	/* The guest lost the page that it used, and then its stack. */
	EXPECT_EQ(2, hit.nr);
	EXPECT_EQ(STACK_FIRST + STACK_PAGES - 1, hit.page);
}

/* A guest that runs into one error after the other. */
FIXTURE(guest) {
	struct vmm vmm;
};

FIXTURE_VARIANT(guest) {
	u64 hugepage;
	u64 nr_huge;
	bool is_hw;
};

/* After a machine check nothing can be unpoisoned any more, so these come last. */
FIXTURE_VARIANT_ADD(guest, corrupt_pfn_2m) {
	.hugepage = SZ_2M, .nr_huge = 4,
};

FIXTURE_VARIANT_ADD(guest, corrupt_pfn_1g) {
	.hugepage = SZ_1G, .nr_huge = 1,
};

FIXTURE_VARIANT_ADD(guest, mce_2m) {
	.hugepage = SZ_2M, .nr_huge = 4, .is_hw = true,
};

FIXTURE_VARIANT_ADD(guest, mce_1g) {
	.hugepage = SZ_1G, .nr_huge = 1, .is_hw = true,
};

FIXTURE_SETUP(guest)
{
	setup(_metadata, &self->vmm, variant->hugepage, variant->nr_huge, variant->is_hw);
}

FIXTURE_TEARDOWN_PARENT(guest)
{
	teardown_subject(_metadata, &self->vmm.s);
}

/* A hundred errors, in one guest's life, cost it a hundred pages. */
TEST_F_TIMEOUT(guest, loses_a_hundred_pages_to_a_hundred_errors, SLOW)
{
	struct vmm *vmm = &self->vmm;
	struct subject *s = &vmm->s;
	int tries;
	u64 i;

	start_guest(_metadata, vmm, MFD_MF_KEEP_UE_MAPPED);
	expect_healthy(_metadata, vmm);
	for (i = 0; i < MAX_ERRORS; i++)
		lose_one_page(_metadata, vmm, nth_page(s, i, MAX_ERRORS));

	/* All of its other memory is right. */
	expect_healthy(_metadata, vmm);
	EXPECT_EQ(MAX_ERRORS, number_of_machine_checks(vmm));
	EXPECT_EQ(s->nr_hugepages_with, read_number(pool(s->hugepage, "nr_hugepages")));

	/* At the end its hugepages leave the pool.  Lost pages stay lost. */
	destroy_vm(vmm);
	close(s->fd);
	for (tries = 0; tries < 250; tries++) {
		if (read_number(pool(s->hugepage, "nr_hugepages")) == s->nr_hugepages)
			break;
		usleep(20000);
	}
	EXPECT_EQ(s->nr_hugepages, read_number(pool(s->hugepage, "nr_hugepages")));
	expect_corrupted(_metadata, s);
}

/* The guest uses all lost pages, and gets a machine check for each again. */
static void use_lost_pages(struct __test_metadata *_metadata, struct vmm *vmm)
{
	u64 before = number_of_machine_checks(vmm);
	struct subject *s = &vmm->s;
	u64 i, unused;

	for (i = 0; i < s->nr_lost; i++) {
		hit.nr = 0;
		ASSERT_TRUE(let_guest(vmm, USE, s->lost[i], 1, &unused));
		ASSERT_EQ(1, hit.nr);
		EXPECT_EQ(s->lost[i], hit.page);
		EXPECT_EQ(PAGE_SHIFT, hit.lsb);
		EXPECT_EQ(before + i + 1, number_of_machine_checks(vmm));
	}

	/* The kernel has recorded nothing new. */
	EXPECT_EQ(s->nr_lost, nr_lost);
	expect_corrupted(_metadata, s);
	expect_healthy(_metadata, vmm);
}

/* A VMM that was restarted, or handed the memory by another one. */
TEST_F_TIMEOUT(guest, is_told_of_pages_lost_before_it_started, SLOW)
{
	struct vmm *vmm = &self->vmm;
	const u64 nr = 6;
	u64 i, nr_good;

	start_guest(_metadata, vmm, MFD_MF_KEEP_UE_MAPPED);
	for (i = 0; i < nr; i++)
		lose_one_page(_metadata, vmm, nth_page(&vmm->s, i, nr));
	destroy_vm(vmm);
	create_vm(vmm);

	/* There are no new errors now, only old ones: in memory that is mapped nowhere, */
	vmm->happens = unmap;
	use_lost_pages(_metadata, vmm);
	/* and in memory that KVM maps all around the lost pages. */
	vmm->happens = nothing;
	ASSERT_TRUE(let_guest(vmm, CHECK, 0, vmm->s.nr_pages, &nr_good));
	use_lost_pages(_metadata, vmm);
}

TEST_HARNESS_MAIN
