// SPDX-License-Identifier: GPL-2.0
/* KUnit test of ghes.c, which includes this file. */

#include <kunit/test.h>
#include <linux/delay.h>
#include <linux/mman.h>
#include <linux/moduleparam.h>

static bool test_loses_page;
module_param(test_loses_page, bool, 0400);
MODULE_PARM_DESC(test_loses_page,
		 "Run the test that loses a page, and no page can be unpoisoned after it");

struct ghes_extent_case {
	const char *name;
	u64 valid;
	u64 mask;
	unsigned int lsb;
};

#define PA_AND_MASK	(CPER_MEM_VALID_PA | CPER_MEM_VALID_PA_MASK)

static const struct ghes_extent_case ghes_extent_cases[] = {
	{ "without a mask",		CPER_MEM_VALID_PA, 0, PAGE_SHIFT },
	{ "mask that isn't valid",	CPER_MEM_VALID_PA, ~0x3fULL, PAGE_SHIFT },
	{ "one byte",			PA_AND_MASK, ~0ULL, 0 },
	{ "line of 64 bytes",		PA_AND_MASK, ~0x3fULL, 6 },
	{ "block of 256 bytes",		PA_AND_MASK, ~0xffULL, 8 },
	{ "two lines apart",		PA_AND_MASK, ~0x43fULL, 11 },
	{ "two pages apart",		PA_AND_MASK, ~0x2000000ULL, 26 },
	{ "page",			PA_AND_MASK, PAGE_MASK, PAGE_SHIFT },
	{ "more than a page",		PA_AND_MASK, ~0xfffffULL, 20 },
	{ "mask of nothing",		PA_AND_MASK, 0, PAGE_SHIFT },
	{ "inverted mask of a line",	PA_AND_MASK, 0x3f, PAGE_SHIFT },
	{ "inverted mask of a page",	PA_AND_MASK, ~PAGE_MASK, PAGE_SHIFT },
	{ "inverted mask of 1 MiB",	PA_AND_MASK, 0xfffff, PAGE_SHIFT },
	{ "inverted mask of 4 GiB",	PA_AND_MASK, 0xffffffff, PAGE_SHIFT },
	{ "high bits masked out",	PA_AND_MASK, 0xffffffffffc0ULL, 6 },
};

KUNIT_ARRAY_PARAM_DESC(ghes_extent, ghes_extent_cases, name);

static void ghes_extent_test(struct kunit *test)
{
	const struct ghes_extent_case *c = test->param_value;
	const struct cper_sec_mem_err mem_err = {
		.validation_bits = c->valid,
		.physical_addr = 0x123456780,
		.physical_addr_mask = c->mask,
	};

	KUNIT_EXPECT_EQ(test, ghes_mem_err_lsb(&mem_err), c->lsb);
}

/* A report of the firmware: a lost page, and an error whose address it doesn't know */
struct ghes_test_record {
	struct acpi_hest_generic_status status;
	struct {
		struct acpi_hest_generic_data data;
		struct cper_sec_mem_err mem;
	} __packed section[2];
} __packed;

static struct ghes_test_record *ghes_test_record(struct kunit *test, u64 addr)
{
	struct ghes_test_record *record;
	int i;

	if (!ghes_estatus_pool)
		KUNIT_ASSERT_EQ(test, ghes_estatus_pool_init(1), 0);

	record = kunit_kzalloc(test, sizeof(*record), GFP_KERNEL);
	KUNIT_ASSERT_NOT_NULL(test, record);
	record->status.data_length = sizeof(record->section);
	record->status.error_severity = CPER_SEV_RECOVERABLE;
	for (i = 0; i < ARRAY_SIZE(record->section); i++) {
		memcpy(record->section[i].data.section_type,
		       &CPER_SEC_PLATFORM_MEM, sizeof(guid_t));
		record->section[i].data.error_severity = CPER_SEV_RECOVERABLE;
		record->section[i].data.revision = 0x201;
		record->section[i].data.error_data_length =
			sizeof(record->section[i].mem);
	}
	record->section[0].mem.validation_bits = CPER_MEM_VALID_PA;
	record->section[0].mem.physical_addr = addr;
	return record;
}

static bool ghes_test_signaled(void)
{
	return sigismember(&current->pending.signal, SIGBUS);
}

/* The task that consumes an error is the one that handles it, each time. */
static void ghes_consumed_test(struct kunit *test)
{
	struct acpi_hest_generic sea = { .notify.type = ACPI_HEST_NOTIFY_SEA };
	struct ghes ghes = { .generic = &sea };
	struct ghes_test_record *record;
	unsigned long addr;
	struct page *page;
	int i;

	if (!test_loses_page)
		kunit_skip(test, "needs ghes.test_loses_page=1");
	if (!IS_ENABLED(CONFIG_ACPI_APEI_MEMORY_FAILURE))
		kunit_skip(test, "needs CONFIG_ACPI_APEI_MEMORY_FAILURE");

	addr = kunit_vm_mmap(test, NULL, 0, PAGE_SIZE, PROT_READ | PROT_WRITE,
			     MAP_ANONYMOUS | MAP_PRIVATE, 0);
	KUNIT_ASSERT_NE(test, addr, 0);
	KUNIT_ASSERT_EQ(test, get_user_pages_fast(addr, 1, FOLL_WRITE, &page), 1);
	put_page(page);
	record = ghes_test_record(test, page_to_phys(page));

	for (i = 0; i < 2; i++) {
		/* As in ghes_proc_in_irq() */
		local_irq_disable();
		ghes_do_proc(&ghes, &record->status);
		local_irq_enable();

		/* The task may be scheduled before its work runs. */
		msleep(20);
		KUNIT_EXPECT_EQ(test, PageHWPoison(page), i);
		KUNIT_EXPECT_FALSE(test, ghes_test_signaled());

		KUNIT_EXPECT_TRUE(test, task_work_pending(current));
		task_work_run();
		KUNIT_EXPECT_TRUE(test, PageHWPoison(page));
		KUNIT_EXPECT_TRUE(test, ghes_test_signaled());
		flush_signals(current);
	}
}

static struct kunit_case ghes_test_cases[] = {
	KUNIT_CASE_PARAM(ghes_extent_test, ghes_extent_gen_params),
	KUNIT_CASE(ghes_consumed_test),
	{}
};

static struct kunit_suite ghes_test_suite = {
	.name = "ghes",
	.test_cases = ghes_test_cases,
};

kunit_test_suite(ghes_test_suite);
