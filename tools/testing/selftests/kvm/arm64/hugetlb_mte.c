// SPDX-License-Identifier: GPL-2.0
/*
 * The tags of a hugepage are initialised before a guest can see them.
 *
 * A process leaves tags in a hugepage. The next user of the hugepage is a VMM whose guest
 * has MTE. KVM maps a single page of the hugepage, because dirty logging is on, or the VMM
 * writes the tags of one page. The VMM then reads all tags, as for a migration.
 */
#include <asm/hwcap.h>
#include <fcntl.h>
#include <linux/sizes.h>
#include <sys/auxv.h>
#include <sys/mman.h>

#include "kvm_test_harness.h"
#include "kvm_util.h"
#include "processor.h"
#include "test_util.h"
#include "ucall_common.h"

#ifndef PROT_MTE
#define PROT_MTE		0x20
#endif

#define GRANULE			16
#define TAG			0x5UL
#define MEM_SLOT		1
#define MEM_BASE		(4UL << 30)
#define NR_HUGEPAGES		"/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"

static void guest_code(void)
{
	READ_ONCE(*(u64 *)MEM_BASE);
	GUEST_DONE();
}

static long nr_hugepages(void)
{
	FILE *f = fopen(NR_HUGEPAGES, "r");
	long nr = -1;

	if (f) {
		if (fscanf(f, "%ld", &nr) != 1)
			nr = -1;
		fclose(f);
	}
	return nr;
}

static void set_nr_hugepages(long nr)
{
	FILE *f = fopen(NR_HUGEPAGES, "w");

	if (f) {
		fprintf(f, "%ld\n", nr);
		fclose(f);
	}
}

static char *map_hugepage(int prot)
{
	return mmap(NULL, SZ_2M, PROT_READ | PROT_WRITE | prot, MAP_PRIVATE | MAP_ANONYMOUS |
		    MAP_HUGETLB | 21 << MAP_HUGE_SHIFT | MAP_POPULATE, -1, 0);
}

static u64 pfn_of(char *mem)
{
	int fd = open("/proc/self/pagemap", O_RDONLY);
	u64 entry = 0;

	if (pread(fd, &entry, sizeof(entry),
		  (uintptr_t)mem / getpagesize() * sizeof(entry)) != sizeof(entry))
		entry = 0;
	close(fd);
	return entry & ((1ULL << 55) - 1);
}

/* Leave tags in a hugepage and return its frame number, 0 if there is none. */
static u64 leave_tags(void)
{
	char *mem = map_hugepage(PROT_MTE);
	u64 pfn, at;

	if (mem == MAP_FAILED)
		return 0;
	for (at = 0; at < SZ_2M; at += GRANULE)
		asm volatile(".arch armv8.5-a+memtag\n"
			     "stg %0, [%0]"
			     : : "r" ((uintptr_t)(mem + at) | TAG << 56) : "memory");
	pfn = pfn_of(mem);
	munmap(mem, SZ_2M);
	return pfn;
}

FIXTURE(hugepage) {
	long nr_hugepages;
	char *mem;
	char tags[SZ_2M / GRANULE];
	struct kvm_vm *vm;
	struct kvm_vcpu *vcpu;
};

FIXTURE_SETUP(hugepage)
{
	self->nr_hugepages = nr_hugepages();
	if (!(getauxval(AT_HWCAP2) & HWCAP2_MTE) || !kvm_has_cap(KVM_CAP_ARM_MTE))
		SKIP(return, "needs MTE, for guests, too");
	set_nr_hugepages(self->nr_hugepages + 1);
}

FIXTURE_TEARDOWN_PARENT(hugepage)
{
	set_nr_hugepages(self->nr_hugepages);
}

/* A guest whose memory will be a hugepage with stale tags. */
static void create_guest(struct __test_metadata *_metadata, FIXTURE_DATA(hugepage) * self)
{
	u64 pfn;

	if (nr_hugepages() != self->nr_hugepages + 1)
		SKIP(return, "can't get a hugepage of 2 MiB");
	/* A node allocates the hugepage that was freed last. */
	pin_self_to_any_cpu();
	pfn = leave_tags();
	ASSERT_NE(0, pfn);
	self->mem = map_hugepage(0);
	ASSERT_NE(MAP_FAILED, self->mem);
	ASSERT_EQ(pfn, pfn_of(self->mem));

	self->vm = vm_create(1);
	vm_enable_cap(self->vm, KVM_CAP_ARM_MTE, 0);
	self->vcpu = vm_vcpu_add(self->vm, 0, guest_code);
	kvm_arch_vm_finalize_vcpus(self->vm);
	virt_map(self->vm, MEM_BASE, MEM_BASE, SZ_2M / self->vm->page_size);
}

/* Copy the tags of the first pages, from the guest or to it, as for a migration. */
static int copy_tags(FIXTURE_DATA(hugepage) * self, u64 size, u64 flags)
{
	struct kvm_arm_copy_mte_tags copy = {
		.guest_ipa = MEM_BASE,
		.length = size,
		.addr = self->tags,
		.flags = flags,
	};

	return __vm_ioctl(self->vm, KVM_ARM_MTE_COPY_TAGS, &copy);
}

static void expect_no_stale_tags(struct __test_metadata *_metadata,
				 FIXTURE_DATA(hugepage) * self)
{
	u64 i, nr_stale = 0;

	ASSERT_EQ(SZ_2M, copy_tags(self, SZ_2M, KVM_ARM_TAGS_FROM_GUEST));
	for (i = 0; i < SZ_2M / GRANULE; i++)
		nr_stale += !!self->tags[i];
	EXPECT_EQ(0, nr_stale);
}

TEST_F(hugepage, has_no_stale_tags_if_one_page_is_mapped)
{
	struct ucall uc;

	create_guest(_metadata, self);
	if (!self->vm)
		return;
	vm_set_user_memory_region(self->vm, MEM_SLOT, KVM_MEM_LOG_DIRTY_PAGES, MEM_BASE,
				  SZ_2M, self->mem);
	vcpu_run(self->vcpu);
	ASSERT_EQ(UCALL_DONE, get_ucall(self->vcpu, &uc));
	expect_no_stale_tags(_metadata, self);
}

TEST_F(hugepage, has_no_stale_tags_if_one_page_is_tagged)
{
	create_guest(_metadata, self);
	if (!self->vm)
		return;
	vm_set_user_memory_region(self->vm, MEM_SLOT, 0, MEM_BASE, SZ_2M, self->mem);
	ASSERT_EQ(getpagesize(), copy_tags(self, getpagesize(), 0));
	expect_no_stale_tags(_metadata, self);
}

TEST_HARNESS_MAIN
