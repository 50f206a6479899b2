// SPDX-License-Identifier: GPL-2.0
/* KUnit test of ghes.c, which includes this file. */

#include <kunit/test.h>

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

static struct kunit_case ghes_test_cases[] = {
	KUNIT_CASE_PARAM(ghes_extent_test, ghes_extent_gen_params),
	{}
};

static struct kunit_suite ghes_test_suite = {
	.name = "ghes",
	.test_cases = ghes_test_cases,
};

kunit_test_suite(ghes_test_suite);
